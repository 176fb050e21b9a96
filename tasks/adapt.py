"""Stage adapt: fit the classifier to a new, unlabelled domain without its source data; reject unknown classes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field

from infra import datasets as ds
from infra.references import DatasetRef, ModelRef, StageResult
from tasks.figures import sample_sheet
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task


class AdaptConfig(StageConfig):
    """How the model is adapted."""

    method: str = Field("glc", description="Global and local clustering, source-free.")
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"epochs": 8, "lr": 0.005, "silhouette_max": 800},
        description="Constructor parameters of the method.",
    )
    split: str = Field("target", description="Split that holds the new domain.")


@stage_task("adapt")
def adapt(data: DatasetRef, model: ModelRef, config: AdaptConfig, run: RunContext, stage: str = "adapt") -> StageResult:
    """Adapt to the split of the new domain alone; its labels, if any, are never read."""

    def work(desk: Desk) -> None:
        from models.registry import build_method

        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        target = ds.read_split(folder, config.split)
        X = torch.from_numpy(ds.inputs(target, schema))
        classifier = desk.load_network(model)
        method = build_method(
            config.method, "adapt", model=classifier, **{"random_state": config.seed, **config.parameters}
        )
        method = desk.spread(partial(method.fit, X))
        desk.model = desk.save_network(method.model_)
        score = np.asarray(method.unknown_score(X))
        predicted = np.asarray(method.predict(X))
        threshold = float(getattr(method, "reject_threshold", 0.5))
        desk.metrics |= {
            "rows": len(X),
            "rejected": int((predicted >= schema.n_classes).sum()),
            "estimated_classes": float(method.n_target_classes_),
        }
        desk.evidence |= {"reject_threshold": threshold, "split": config.split}
        if schema.kind == "image":
            rows = np.argsort(-score)[:24]
            titles = [f"{score[row]:.2f}" for row in rows]
            caption = f"Rejected as unknown in {config.split} (normalised entropy, rejected above {threshold:g})"
            desk.figure("unknowns", sample_sheet(X.numpy()[rows], titles), caption)

    return run_stage(stage, config, {"data": data, "model": model}, work, run)

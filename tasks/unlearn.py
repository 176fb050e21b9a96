"""Stage unlearn: remove the rows of an erasure list from the model, and measure that it worked."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field

from infra import datasets as ds
from infra.errors import DatasetNotFoundError
from infra.references import DatasetRef, ModelRef, StageResult
from tasks.figures import curves
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task
from tasks.training_rows import trusted_labels


class UnlearnConfig(StageConfig):
    """How rows are forgotten."""

    method: str = Field("laf", description="Label-agnostic forgetting.")
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"epochs": 5, "vae_epochs": 5}, description="Constructor parameters of the method."
    )


@stage_task("unlearn")
def unlearn(
    data: DatasetRef,
    erasure: DatasetRef,
    model: ModelRef,
    retrained: ModelRef,
    config: UnlearnConfig,
    run: RunContext,
) -> StageResult:
    """Forget the rows whose ids `erasure` lists.

    Parameters
    ----------
    retrained : ModelRef
        A model trained without those rows: the reference the result is measured against.
    """

    def work(desk: Desk) -> None:
        from models.registry import build_method
        from models.unlearn.report import relearning_curve, unlearning_report

        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        train = ds.read_split(folder, "train")
        wanted = set(ds.ids(ds.read_split(desk.project.versions.path(erasure), "ids")))
        forget = np.array([identity in wanted for identity in ds.ids(train)])
        if not forget.any():
            raise DatasetNotFoundError(
                f"None of the {len(wanted)} ids of {erasure} is in the training rows of {data}. "
                "Check the list, or leave the stage out with `--set unlearn.enabled=false`."
            )
        y = trusted_labels(train, 0.5)
        if not (forget & (y >= 0)).any():
            raise DatasetNotFoundError(
                f"None of the {int(forget.sum())} rows to forget was learnt with a label: all count as strangers. "
                "Unlearning has nothing to take back; train a model without them."
            )
        X = torch.from_numpy(ds.inputs(train, schema))
        remain = ~forget & (y >= 0)
        before, reference = desk.load_network(model), desk.load_network(retrained)
        method = build_method(
            config.method, "unlearn", model=before, **{"random_state": config.seed, **config.parameters}
        )
        method = desk.spread(partial(method.fit, X[torch.from_numpy(forget)], X[torch.from_numpy(remain)]))
        desk.model = desk.save_network(method.model_)
        test = ds.read_split(folder, "test")
        seen = forget & (y >= 0)  # strangers among them were never trained on with a label
        report = unlearning_report(
            before,
            reference,
            method.model_,
            X_remain=X[torch.from_numpy(remain)],
            y_remain=y[remain],
            X_forget=X[torch.from_numpy(seen)],
            y_forget=y[seen],
            X_test=torch.from_numpy(ds.inputs(test, schema)),
            y_test=ds.labels(test),
            random_state=config.seed,
        )
        desk.evidence["report"] = report
        models = {"original": before, "retrained": reference, "unlearned": method.model_}
        curve = {name: relearning_curve(m, X[torch.from_numpy(seen)], y[seen]) for name, m in models.items()}
        steps = [{"training": n, "epoch": i, "accuracy": v} for n, c in curve.items() for i, v in enumerate(c)]
        desk.figure(
            "relearning", curves(steps, ("accuracy",)), "Accuracy on forgotten rows while they are learnt again"
        )
        chosen = ("train_r", "train_f", "test", "asr", "distance", "kl_forget", "relearn_steps")
        for name, row in report.items():
            desk.metrics |= {f"{name}.{key}": row[key] for key in chosen if key in row}
        desk.metrics |= {
            "forgotten": int(forget.sum()),
            "kept": int(remain.sum()),
            "missing_ids": len(wanted) - int(forget.sum()),
        }
        desk.figure("curves", curves(desk.history, ("loss_unlearn", "loss_align", "loss")), "Unlearning")

    inputs: dict[str, DatasetRef | ModelRef | None] = {
        "data": data,
        "erasure": erasure,
        "model": model,
        "retrained": retrained,
    }
    return run_stage("unlearn", config, inputs, work, run)

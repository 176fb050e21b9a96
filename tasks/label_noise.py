"""Stage label_noise: which labels are wrong, which rows belong to no class, and what the labels should be."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field

from infra import datasets as ds
from infra.references import DatasetRef, StageResult
from tasks.figures import sample_sheet
from tasks.networks import NetworkConfig, make_encoder
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task


class LabelNoiseConfig(StageConfig):
    """How label noise is looked for."""

    method: str = Field("lsa", description="PLS and linear-separation detection in alternation.")
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"epochs": 8, "warmup": 2, "batch_size": 128, "lr": 0.05, "threshold": 0.5},
        description="Constructor parameters of the method.",
    )
    flip: bool = Field(False, description="Whether a mirrored image keeps its class (digits do not).")


@stage_task("label_noise")
def label_noise(data: DatasetRef, network: NetworkConfig, config: LabelNoiseConfig, run: RunContext) -> StageResult:
    """Flag and correct labels; a new version carries the flags as columns, no row is dropped.

    The result's model is the method's network, whose encoder later stages go on with.
    """

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        train = ds.read_split(folder, "train")
        X, y = ds.inputs(train, schema), ds.labels(train)
        method = desk.spread(partial(detector(config, schema, network).fit, X, y))
        noisy, stranger = np.asarray(method.is_noisy_), np.asarray(method.is_ood_)
        corrected = np.asarray(method.corrected_label_proba_).argmax(axis=1)
        corrected = np.where(noisy | (y < 0), corrected, y)
        confidence = np.where(noisy, np.asarray(method.confidence_), 1.0)
        columns = {
            "noisy": noisy.astype(bool),
            "out_of_distribution": stranger.astype(bool),
            "corrected_label": corrected.astype(np.int64),
            "confidence": confidence.astype(np.float32),
        }

        def write(target: Any) -> int:
            rows = ds.write_split(ds.with_columns(train, columns), target, "train")
            return rows + ds.copy_splits(folder, target, [split for split in schema.splits if split != "train"])

        desk.data = desk.project.versions.add(data.name, write, source=str(data))
        desk.model = desk.save_network(method.network_)
        desk.metrics |= {
            "noisy": int(noisy.sum()),
            "out_of_distribution": int(stranger.sum()),
            "relabelled": int((noisy & ~stranger & (corrected != y)).sum()),
            "rows": len(y),
        }
        _show(desk, X, y, columns, schema)

    return run_stage("label_noise", config, {"data": data}, work, run, settings=network.model_dump(mode="json"))


def detector(config: LabelNoiseConfig, schema: ds.Schema, network: NetworkConfig) -> Any:
    """The method that looks for wrong labels, on a fresh network; not yet fitted."""
    from models.networks.heads import ProjectingClassifier
    from models.registry import build_method

    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        backbone = ProjectingClassifier(make_encoder(schema, network), schema.n_classes)
    views = _views(schema, config.flip)
    given = {"random_state": config.seed, **config.parameters}
    return build_method(
        config.method, "label_noise", backbone=backbone, n_classes=schema.n_classes, augment=views, **given
    )


def _views(schema: ds.Schema, flip: bool) -> dict[str, Any]:
    from models import augment

    if schema.kind != "image":
        shares = {"weak": 0.05, "strong": 0.3, "contrastive": 0.3}
        return {name: augment.FeatureSwap(share) for name, share in shares.items()}
    return {
        "weak": augment.weak(padding=2, flip=flip),
        "strong": augment.strong(schema.channels, flip=flip, scale=(0.5, 1.0)),
        "contrastive": augment.contrastive(schema.channels, flip=flip, scale=(0.4, 1.0)),
    }


def _show(desk: Desk, X: Any, y: Any, columns: dict[str, Any], schema: ds.Schema) -> None:
    if schema.kind != "image":
        return
    names = schema.label_names
    found = columns["noisy"] & ~columns["out_of_distribution"] & (columns["corrected_label"] != y)
    rows = np.flatnonzero(found)[np.argsort(-columns["confidence"][found])][:24]
    titles = [f"{names[y[r]]} → {names[columns['corrected_label'][r]]}" for r in rows]
    desk.figure("label_errors", sample_sheet(X[rows], titles), "Labels found wrong: given → corrected")
    rows = np.flatnonzero(columns["out_of_distribution"])[:24]
    titles = [f"given {names[y[r]]}" for r in rows]
    desk.figure("intruders", sample_sheet(X[rows], titles), "Rows that belong to no class")

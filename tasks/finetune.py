"""Stage finetune: a small supervised training on the cleaned labels; and the naive model, on the labels as given."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from infra import datasets as ds
from infra.errors import DatasetFormatError
from infra.references import DatasetRef, ModelRef, StageResult
from models.training import Row
from tasks.figures import curves
from tasks.networks import NetworkConfig, make_classifier, make_encoder
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task
from tasks.training_rows import trusted_labels, usable_rows


class FinetuneConfig(StageConfig):
    """How the classifier is trained."""

    enabled: Literal[True] = Field(True, description="Always on: later stages need a classifier.")
    method: Literal["none"] = Field("none", description="Supervised cross-entropy; there is nothing to choose.")
    epochs: int = Field(8, ge=1, description="Passes over the labelled rows.")
    lr: float = Field(0.05, gt=0, description="Initial learning rate (SGD, cosine schedule).")
    batch_size: int = Field(128, ge=2, description="Rows a step.")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of the target spread over all classes.")
    augment: bool = Field(True, description="Random shifts of images while training.")
    minimum_confidence: float = Field(0.5, ge=0, le=1, description="Trust in a corrected label needed to train on it.")


class NaiveConfig(StageConfig):
    """The baseline: same network, labels as given, no other stage."""

    method: Literal["none"] = Field("none", description="Supervised cross-entropy; there is nothing to choose.")
    epochs: int = Field(20, ge=1, description="Passes over the labelled rows.")
    lr: float = Field(0.05, gt=0, description="Initial learning rate (SGD, cosine schedule).")
    batch_size: int = Field(128, ge=2, description="Rows a step.")


@stage_task("finetune")
def finetune(
    data: DatasetRef,
    encoder: ModelRef | None,
    network: NetworkConfig,
    config: FinetuneConfig,
    run: RunContext,
    without: DatasetRef | None = None,
    stage: str = "finetune",
) -> StageResult:
    """Train embedding and head on the encoder, with cleaned labels.

    Parameters
    ----------
    without : DatasetRef, optional
        Ids to leave out: what a model retrained for an erasure request would not have seen.
    stage : str
        Name of the result; the retrained reference has its own.
    """

    def work(desk: Desk) -> None:
        from models.augment import PadCrop

        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        train = ds.read_split(folder, "train")
        y = trusted_labels(train, config.minimum_confidence)
        keep = y >= 0
        if without is not None:
            forgotten = set(ds.ids(ds.read_split(desk.project.versions.path(without), "ids")))
            keep &= np.array([identity not in forgotten for identity in ds.ids(train)])
        rows = np.flatnonzero(keep)
        _require_labels(y[rows], schema)
        X = torch.from_numpy(ds.inputs(train.select(rows), schema))
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            base: Any = make_encoder(schema, network) if encoder is None else desk.load_network(encoder)
            classifier: Any = make_classifier(base, schema.n_classes, network)
        train_rows = partial(
            _train,
            classifier,
            X,
            y[rows],
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            label_smoothing=config.label_smoothing,
            augment=PadCrop(2) if config.augment and schema.kind == "image" else None,
            label="fine-tune",
            seed=config.seed,
        )
        classifier, history = desk.spread(train_rows)
        desk.model = desk.save_network(classifier)
        desk.metrics |= {"rows": len(rows), "train_accuracy": history[-1]["train_accuracy"]}
        desk.figure("curves", curves(desk.history, ("loss", "train_accuracy")), "Fine-tuning on cleaned labels")

    inputs = {"data": data, "encoder": encoder, "without": without}
    return run_stage(stage, config, inputs, work, run, settings=network.model_dump(mode="json"))


@stage_task("naive")
def train_naive(data: DatasetRef, network: NetworkConfig, config: NaiveConfig, run: RunContext) -> StageResult:
    """Train the same network on the raw rows and labels; only rows that no network could take are left out."""

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        train = ds.read_split(folder, "train")
        y = ds.labels(train)
        rows = usable_rows(train, schema, np.flatnonzero((y >= 0) & (y < schema.n_classes)))
        _require_labels(y[rows], schema)
        X = torch.from_numpy(ds.inputs(train.select(rows), schema))
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            classifier: Any = make_classifier(make_encoder(schema, network), schema.n_classes, network)
        train_rows = partial(
            _train, classifier, X, y[rows], epochs=config.epochs, batch_size=config.batch_size, lr=config.lr,
            label="naive", seed=config.seed,
        )  # fmt: skip
        classifier, history = desk.spread(train_rows)
        desk.model = desk.save_network(classifier)
        desk.metrics |= {"rows": len(rows), "train_accuracy": history[-1]["train_accuracy"]}

    return run_stage("naive", config, {"data": data}, work, run, settings=network.model_dump(mode="json"))


def _train(classifier: Any, *rows: Any, **settings: Any) -> tuple[Any, list[Row]]:
    from models.supervised import train_classifier

    history = train_classifier(classifier, *rows, **settings)
    return classifier, history


def _require_labels(y: Any, schema: ds.Schema) -> None:
    seen = np.unique(y)
    if len(seen) < 2:
        raise DatasetFormatError(
            f"Training needs labelled rows of at least two classes, got {len(y)} rows of {len(seen)} "
            f"(named: {', '.join(schema.label_names) or 'none'}). Label some rows of the split 'train'."
        )

"""Stage pretrain: self-supervised training of the encoder on labelled and unlabelled rows together."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field

from infra import datasets as ds
from infra.references import DatasetRef, ModelRef, StageResult
from models.training import Hook, Row, Trainer, hooks
from tasks.figures import curves, embedding_map
from tasks.networks import NetworkConfig, make_encoder
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task
from tasks.training_rows import selected, strangers, trusted_labels

PARAMETERS: dict[str, dict[str, Any]] = {
    "g-simclr": {
        "epochs": 3,
        "n_clusters": 128,
        "batch_size": 128,
        "lr": 0.05,
        "sampler": "hard",
        "ae_epochs": 3,
        "ae_samples": 3000,
    },
    # The encoder goes on with raw pixels, so RotNet must not scale them; the rate falls in the second epoch.
    "rotnet": {
        "epochs": 2,
        "batch_size": 64,
        "lr": 0.02,
        "lr_table": [[1, 0.02], [2, 0.004]],
        "mean": 0.0,
        "std": 1.0,
    },
}


class PretrainConfig(StageConfig):
    """How the encoder is pretrained."""

    method: str = Field("g-simclr", description="g-simclr (contrastive) or rotnet (rotation prediction).")
    parameters: dict[str, Any] = Field(
        default_factory=lambda: dict(PARAMETERS["g-simclr"]),
        description="Constructor parameters; empty takes clearwell's for the chosen method.",
    )
    probe_rows: int = Field(1000, ge=50, description="Rows on which each epoch is measured.")
    collapse_rank: float = Field(3.0, ge=1, description="Effective rank of the features below which an alarm is given.")


class EncoderMonitor(Hook):
    """Adds to each epoch's row how good the encoder's features are: k-NN accuracy, effective rank, separability."""

    def __init__(self, X: torch.Tensor, y: np.ndarray, collapse_rank: float, seed: int) -> None:
        from models.validate.separability import PersistenceSeparability

        self.X, self.y, self.collapse_rank = X, y, collapse_rank
        self.separability = PersistenceSeparability(random_state=seed, drop_duplicates=True)
        self.alarms = 0
        self.rows: list[Row] = []

    def measure(self, encoder: torch.nn.Module) -> Row:
        """The figures for an encoder as it is."""
        from models.base import predict_in_batches
        from models.metrics import effective_rank, knn_accuracy

        features = predict_in_batches(encoder, self.X).flatten(1).numpy()
        rank = effective_rank(features)
        row: Row = {"effective_rank": rank, "collapsed": float(rank < self.collapse_rank)}
        labelled = np.flatnonzero(self.y >= 0)
        if len(labelled) >= 40 and np.ptp(features):
            half = len(labelled) // 2
            fit, test = labelled[:half], labelled[half:]
            row["knn_accuracy"] = knn_accuracy(features[fit], self.y[fit], features[test], self.y[test])
        if rank > 1.0 and np.linalg.norm(features, axis=1).min() > 0:
            if not hasattr(self.separability, "score_"):
                self.separability.fit(features)
                row["separability"] = float(self.separability.score_)
            else:
                row["separability"] = float(self.separability.score(features))
        return row

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """Measure the encoder of a network that has one (the autoencoder of g-simclr has none to keep)."""
        encoder = getattr(trainer.plain_network, "encoder", None)
        if encoder is None or not hasattr(encoder, "stages"):
            return
        found = self.measure(encoder)
        self.alarms += int(found["collapsed"])
        self.rows.append(found)
        row |= found


@stage_task("pretrain")
def pretrain(
    data: DatasetRef, warm: ModelRef | None, network: NetworkConfig, config: PretrainConfig, run: RunContext
) -> StageResult:
    """Train the encoder without labels, from where label_noise left it.

    Rows flagged as strangers, and rows that curation left out, take no part. The result's model is the encoder.
    """

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        train = ds.read_split(folder, "train")
        kept = np.flatnonzero(~strangers(train) & selected(train))
        parts = [ds.inputs(train.select(kept), schema)]
        if "unlabelled" in schema.splits:
            parts.append(ds.inputs(ds.read_split(folder, "unlabelled"), schema))
        X = torch.from_numpy(np.concatenate(parts))
        if warm is not None:
            encoder: Any = desk.load_network(warm).encoder
        else:
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                encoder = make_encoder(schema, network)
        probe = np.random.default_rng(config.seed).permutation(len(kept))[: config.probe_rows]
        y = trusted_labels(train, 0.5)[kept][probe]
        monitor = EncoderMonitor(X[torch.from_numpy(probe)], y, config.collapse_rank, config.seed)
        before = monitor.measure(encoder)
        method = pretrainer(config.method, encoder, config.parameters, config.seed)
        method, monitor = desk.spread(partial(_fit, method, X, monitor))
        desk.model = desk.save_network(method.encoder_)
        after = monitor.measure(method.encoder_)
        desk.metrics |= {f"{name}_before": value for name, value in before.items()} | after
        desk.metrics |= {"collapse_alarms": monitor.alarms, "rows": len(X)}
        _show(desk, X, method.encoder_, probe, y, schema)

    inputs = {"data": data, "warm": warm}
    return run_stage("pretrain", config, inputs, work, run, settings=network.model_dump(mode="json"))


def pretrainer(name: str, encoder: torch.nn.Module, parameters: dict[str, Any], seed: int) -> Any:
    """The method around an encoder, not yet fitted; without parameters, with clearwell's for it."""
    from models.registry import build_method

    slot = {"rotnet": "architecture"}.get(name, "encoder")
    given = parameters or PARAMETERS.get(name, {})
    return build_method(name, "pretrain", **{slot: encoder}, random_state=seed, **given)


def _fit(method: Any, X: torch.Tensor, monitor: EncoderMonitor) -> tuple[Any, EncoderMonitor]:
    with hooks(monitor):
        return method.fit(X), monitor


def _show(desk: Desk, X: Any, encoder: Any, probe: Any, y: Any, schema: ds.Schema) -> None:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    from models.base import predict_in_batches

    rows = probe[:600]
    features = predict_in_batches(encoder, X[torch.from_numpy(rows)]).flatten(1).numpy()
    reduced = PCA(min(20, features.shape[1])).fit_transform(features)
    flat = TSNE(2, init="pca", random_state=0, perplexity=min(30, len(rows) // 4)).fit_transform(reduced)
    desk.figure(
        "embedding", embedding_map(flat, y[: len(rows)], schema.label_names), "Encoder features (t-SNE), cleaned labels"
    )
    wanted = ("loss", "knn_accuracy", "effective_rank", "separability")
    desk.figure("curves", curves(desk.history, wanted), "Pretraining")

"""Whose features are good before anybody has labelled much? Encoders are trained without labels, then probed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.arenas import Arena, Arrays, Bout, Facts, Metric, Source, plain_parameters

Features = NDArray[np.float32]
COMPONENTS = 64


@dataclass
class Found:
    """What turns rows into features (n, d)."""

    transform: Callable[[NDArray[np.float32]], Features]
    parameters: dict[str, Any] = field(default_factory=dict)


class PretrainArena(Arena):
    """Features are judged by a linear probe and by neighbours, on labelled rows that no candidate saw."""

    stage = "pretrain"
    question = "Which pretraining makes the best features of this data without labels?"
    metrics = (
        Metric("linear_accuracy", "accuracy of a linear probe on held-out rows"),
        Metric("knn_accuracy", "accuracy of a vote of 20 neighbours on held-out rows"),
        Metric("effective_rank", "dimensions that the features really use", None, "number"),
        Metric("width", "features a row", None, "number"),
    )
    baselines = {  # noqa: RUF012
        "raw-inputs": "The rows as they are: pixels or features.",
        "pca": f"The first {COMPONENTS} principal components.",
        "untrained-encoder": "The encoder with the weights it is made with.",
    }

    modules = {  # noqa: RUF012
        "method": ("tasks.pretrain", "models.networks.convnet", "models.networks.mlp"),
        "pca": ("sklearn.decomposition",),
        "untrained-encoder": ("tasks.networks", "models.networks.convnet", "models.networks.mlp"),
    }

    def prepare(self, source: Source, seed: int, rows: int) -> Bout:
        """Training rows without labels; labelled rows of train for the probes, and others to measure them on."""
        from tasks.arenas.sampling import sample, train_and_test

        train, test, where = train_and_test(source, rows, seed, self.stage)
        X = train.X
        if "unlabelled" in source.schema.splits:
            X = np.concatenate([X, sample(source, ["unlabelled"], rows, seed).X])
        facts = {
            "kind": source.schema.kind,
            "schema": source.schema.model_dump(mode="json"),
            "measured": len(test.y),
        }
        notes = [
            f"Encoders were trained on {len(X):,} rows without labels. Two probes, logistic regression and a vote of "
            f"neighbours, then learnt from the features of {len(train.y):,} labelled rows and were {where}.",
            "All methods begin with the chain's encoder, freshly made.",
        ]
        hidden: Arrays = {"X_train": train.X, "y_train": train.y, "X_test": test.X, "y_test": test.y}
        return Bout({"X": X}, hidden, facts, notes)

    def fit(self, name: str, given: Arrays, facts: Facts, seed: int) -> Found:
        """The features."""
        X = given["X"]
        if name == "raw-inputs":
            return Found(lambda rows: rows.reshape(len(rows), -1))
        if name == "pca":
            from sklearn.decomposition import PCA

            flat = X.reshape(len(X), -1)
            reduction = PCA(min(COMPONENTS, *flat.shape), random_state=seed).fit(flat)
            return Found(
                lambda rows: reduction.transform(rows.reshape(len(rows), -1)),
                {"n_components": int(reduction.n_components_)},
            )
        import torch

        from infra.datasets import Schema
        from tasks.networks import NetworkConfig, make_encoder

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder: Any = make_encoder(Schema.model_validate(facts["schema"]), NetworkConfig())
        if name == "untrained-encoder":
            return Found(_features(encoder))
        from tasks.pretrain import pretrainer

        method = pretrainer(name, encoder, {}, seed).fit(torch.from_numpy(X))
        return Found(_features(method.encoder_), plain_parameters(method))

    def measure(self, found: Found, given: Arrays, hidden: Arrays, facts: Facts, seed: int) -> dict[str, float]:
        """Both probes."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        from models.metrics import effective_rank, knn_accuracy

        train, test = (np.asarray(found.transform(hidden[name]), dtype=np.float64) for name in ("X_train", "X_test"))
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        y, truth = hidden["y_train"], hidden["y_test"]
        near = [(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)) for part in (train, test)]
        return {
            "linear_accuracy": probe.fit(train, y).score(test, truth),
            "knn_accuracy": knn_accuracy(near[0], y, near[1], truth),
            "effective_rank": effective_rank(train[:2000]),
            "width": train.shape[1],
        }


def _features(encoder: Any) -> Callable[[NDArray[np.float32]], Features]:
    import torch

    from models.base import predict_in_batches

    return lambda rows: predict_in_batches(encoder, torch.from_numpy(rows)).flatten(1).numpy()


ARENA = PretrainArena()

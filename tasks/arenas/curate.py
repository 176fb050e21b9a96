"""Which rows are worth training on? Every selection keeps the same number; one recipe trains on each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.arenas import Arena, Arrays, Bout, Facts, Metric, Source

SHARE = 0.2
"""Of the labelled rows, what a selection may keep."""
STEPS, BATCH_SIZE = 400, 64


@dataclass
class Found:
    """The rows kept and how long it took to choose them."""

    kept: NDArray[np.int64]
    weight: NDArray[np.float32]
    seconds: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


class CurateArena(Arena):
    """Judged by a network trained from scratch on the kept rows, as many steps for every selection."""

    stage = "curate"
    question = f"Which {SHARE:.0%} of this data is worth training on?"
    metrics = (
        Metric("accuracy", "accuracy on held-out rows of a network trained on the kept rows"),
        Metric("linear_accuracy", "accuracy of logistic regression on the kept rows"),
        Metric("smallest_class", "share of the kept rows that are of the rarest class", None),
        Metric("rows", "rows kept", None, "number"),
    )
    baselines = {"all-rows": "Every row: what fewer rows are compared with, for as many steps."}  # noqa: RUF012
    modules = {"method": ("tasks.curate",), "all-rows": ()}  # noqa: RUF012

    def prepare(self, source: Source, seed: int, rows: int) -> Bout:
        """Labelled rows to choose from, and others to judge on."""
        from tasks.arenas.sampling import train_and_test

        train, test, where = train_and_test(source, rows, seed, self.stage)
        budget = max(int(SHARE * len(train.y)), len(np.unique(train.y)))
        facts = {
            "kind": source.schema.kind,
            "schema": source.schema.model_dump(mode="json"),
            "budget": budget,
            "measured": len(test.y),
        }
        notes = [
            f"Each method chose {budget:,} of {len(train.y):,} labelled rows. The chain's network was trained from "
            f"scratch on them for {STEPS} steps of {BATCH_SIZE}, whatever they are, and {where}.",
            "The time is that of choosing alone; all-rows takes none.",
        ]
        X, X_test = train.X, test.X
        if source.schema.kind == "table":
            centre, spread = X.mean(axis=0), X.std(axis=0)
            X, X_test = ((rows - centre) / np.where(spread > 0, spread, 1) for rows in (X, X_test))
        return Bout({"X": X, "y": train.y}, {"X_test": X_test, "y_test": test.y}, facts, notes)

    def unfit(self, card: Any, facts: Facts) -> str:
        """Methods that choose no rows of one dataset are for something else."""
        from tasks.curate import chooses_rows

        if not chooses_rows(card):
            return "chooses no rows of one dataset by their numbers: it trains, plans, filters texts or makes rows"
        return super().unfit(card, facts)

    def fit(self, name: str, given: Arrays, facts: Facts, seed: int) -> Found:
        """The selection."""
        n = len(given["y"])
        if name == "all-rows":
            return Found(np.arange(n), np.ones(n, dtype=np.float32), 0.0)
        from tasks.curate import Choice, choose
        from tasks.rowset import Rowset

        flat = given["X"].reshape(n, -1).astype(np.float64)
        images = given["X"] if given["X"].ndim == 4 else None
        rows = Rowset(flat, images, given["y"], np.zeros(n, dtype=np.int64))
        chosen = choose(Choice(name, rows, int(facts["budget"]), seed))
        return Found(np.flatnonzero(chosen.kept), chosen.weight, chosen.seconds, {"budget": int(facts["budget"])})

    def measure(self, found: Found, given: Arrays, hidden: Arrays, facts: Facts, seed: int) -> dict[str, float]:
        """Train on what was kept; the same network, steps and seed for all."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        X, y = given["X"][found.kept], given["y"][found.kept]
        truth = hidden["y_test"]
        shares = np.bincount(y, minlength=int(given["y"].max()) + 1)[np.unique(given["y"])] / len(y)
        measured = {"rows": float(len(y)), "smallest_class": float(shares.min())}
        if len(np.unique(y)) < 2:
            return measured | dict.fromkeys(("accuracy", "linear_accuracy"), float((truth == y[0]).mean()))
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
        flat = [rows.reshape(len(rows), -1) for rows in (X, hidden["X_test"])]
        measured["linear_accuracy"] = float(probe.fit(flat[0], y).score(flat[1], truth))
        measured["accuracy"] = float((_trained(X, y, facts, seed, hidden["X_test"]) == truth).mean())
        return measured


def _trained(
    X: NDArray[np.float32], y: NDArray[np.int64], facts: Facts, seed: int, test: NDArray[np.float32]
) -> NDArray[np.int64]:
    import torch

    from infra.datasets import Schema
    from models.base import isolated_seed
    from models.supervised import probabilities, train_classifier
    from tasks.networks import NetworkConfig, make_classifier, make_encoder

    schema, config = Schema.model_validate(facts["schema"]), NetworkConfig()
    with isolated_seed(seed):
        network: Any = make_classifier(make_encoder(schema, config), schema.n_classes, config)
        batch = min(BATCH_SIZE, len(y))
        epochs = max(1, round(STEPS * batch / len(y)))
        train_classifier(network, torch.from_numpy(X), y, epochs=epochs, batch_size=batch, lr=0.05, seed=seed)
    return np.asarray(probabilities(network, torch.from_numpy(test)).argmax(axis=1), dtype=np.int64)


ARENA = CurateArena()

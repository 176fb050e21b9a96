"""Who finds wrong labels? A share of the labels is exchanged on purpose, and candidates look for them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.arenas import Arena, Arrays, Bout, Facts, Metric, Source, plain_parameters

SHARE = 0.1
FOLDS = 5
NEIGHBOURS = 10


@dataclass
class Found:
    """What a candidate says of every label.

    Attributes
    ----------
    wrong : array of bool, (n,)
        Whether it is called wrong.
    suspicion : array, (n,)
        The larger, the likelier it is wrong.
    """

    wrong: NDArray[np.bool_]
    suspicion: NDArray[np.float64]
    parameters: dict[str, Any] = field(default_factory=dict)


class LabelNoiseArena(Arena):
    """Planted label errors, class-dependent: every class has one other that it is taken for."""

    stage = "label_noise"
    question = "Which method finds wrong labels in this data?"
    metrics = (
        Metric("f1", "F1 of finding the planted errors"),
        Metric("precision", "share of the labels called wrong that were planted"),
        Metric("recall", "share of the planted errors that were called wrong"),
        Metric("average_precision", "how well the order of suspicion puts planted errors first"),
        Metric("flagged", "share of all labels called wrong", None),
    )
    baselines = {  # noqa: RUF012
        "self-confidence": "Logistic regression out of fold; a label is wrong when another class is likelier.",
        "neighbour-disagreement": f"A label is wrong when most of the {NEIGHBOURS} nearest rows have another.",
    }

    modules = {  # noqa: RUF012
        "method": ("tasks.label_noise", "models.networks.heads", "models.networks.convnet", "models.networks.mlp"),
        "self-confidence": ("sklearn.linear_model", "sklearn.model_selection", "sklearn.pipeline"),
        "neighbour-disagreement": ("sklearn.neighbors", "sklearn.preprocessing"),
    }

    def prepare(self, source: Source, seed: int, rows: int) -> Bout:
        """Exchange a tenth of every class's labels."""
        from tasks.arenas.sampling import labelled, sample

        given = labelled(sample(source, ["train"], rows, seed), self.stage)
        noisy = plant(given.y, SHARE, seed)
        planted = noisy != given.y
        facts = {
            "kind": source.schema.kind,
            "schema": source.schema.model_dump(mode="json"),
            "measured": int(planted.sum()),
        }
        notes = [
            f"{len(noisy):,} labelled rows of the split train; the labels of {planted.sum():,} of them were exchanged, "
            f"{SHARE:.0%} of every class, each class for one other, drawn by the seed.",
            "Labels that were wrong before count as right here, so a candidate that finds them has its precision "
            "lowered: on data with errors of its own, true precision is higher than the table says.",
        ]
        return Bout({"X": given.X, "y": noisy}, {"planted": planted}, facts, notes)

    def unfit(self, card: Any, facts: Facts) -> str:
        """Methods that are trained on rows and labels, as the chain trains them, judge every label; others do not."""
        if "backbone" not in inspect.signature(card.cls).parameters:
            return "does not judge the label of every row"
        return super().unfit(card, facts)

    def fit(self, name: str, given: Arrays, facts: Facts, seed: int) -> Found:
        """What is wrong, and how suspicious each label is."""
        X, y = given["X"], given["y"]
        if name == "self-confidence":
            return self_confidence(X.reshape(len(X), -1), y, seed)
        if name == "neighbour-disagreement":
            return neighbour_disagreement(X.reshape(len(X), -1), y)
        from infra.datasets import Schema
        from tasks.label_noise import LabelNoiseConfig, detector
        from tasks.networks import NetworkConfig

        usual = LabelNoiseConfig()
        parameters = usual.parameters if name == usual.method else {}
        config = LabelNoiseConfig(method=name, parameters=parameters, seed=seed)
        method = detector(config, Schema.model_validate(facts["schema"]), NetworkConfig())
        method.fit(X, y)
        return Found(np.asarray(method.is_noisy_), np.asarray(method.noise_proba_), plain_parameters(method))

    def measure(self, found: Found, given: Arrays, hidden: Arrays, facts: Facts, seed: int) -> dict[str, float]:
        """Against what was planted."""
        from sklearn.metrics import average_precision_score, precision_recall_fscore_support

        planted = hidden["planted"]
        precision, recall, f1, _ = precision_recall_fscore_support(
            planted, found.wrong, average="binary", zero_division=0.0
        )
        return {
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "average_precision": average_precision_score(planted, found.suspicion),
            "flagged": found.wrong.mean(),
        }


def plant(y: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Labels with `share` of every class (at least one) exchanged for those of its partner.

    Partners follow each other in a circle that the seed draws.
    """
    rng = np.random.default_rng(seed)
    circle = rng.permutation(np.unique(y))
    noisy = y.copy()
    for label, partner in zip(circle, np.roll(circle, -1), strict=True):
        rows = np.flatnonzero(y == label)
        noisy[rng.choice(rows, max(1, round(share * len(rows))), replace=False)] = partner
    return noisy


def self_confidence(X: NDArray[np.float32], y: NDArray[np.int64], seed: int) -> Found:
    """Out-of-fold probabilities of logistic regression: suspicion is one minus that of the given label."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _, codes = np.unique(y, return_inverse=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    p = cross_val_predict(model, X, codes, cv=folds, method="predict_proba")
    return Found(p.argmax(1) != codes, 1 - p[np.arange(len(codes)), codes], {"folds": FOLDS, "max_iter": 300})


def neighbour_disagreement(X: NDArray[np.float32], y: NDArray[np.int64]) -> Found:
    """Share of the nearest other rows, features standardised, that have another label."""
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    rows = StandardScaler().fit_transform(X)
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(y) - 1)).fit(rows).kneighbors(return_distance=False)
    apart = (y[near] != y[:, None]).mean(axis=1)
    return Found(apart > 0.5, apart, {"n_neighbors": NEIGHBOURS})


ARENA = LabelNoiseArena()

"""Who brings a classifier to a new domain? One source model, the domain's rows without their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.arenas import Arena, Arrays, Bout, Facts, Metric, Source, plain_parameters

REJECT = 0.55
"""Normalised entropy above which a row counts as of no known class; the same for every candidate."""
NEIGHBOURS = 10
LEAST_ROWS = 20


@dataclass
class Found:
    """An adapted network."""

    network: Any
    parameters: dict[str, Any] = field(default_factory=dict)


class AdaptArena(Arena):
    """Judged by the domain's labels where the data has them, else by how decided and varied the answers are."""

    stage = "adapt"
    question = "Which adaptation brings the model to the new domain best?"
    metrics = (
        Metric("accuracy", "accuracy on the new domain"),
        Metric("h_score", "H-score on the new domain: known classes right, unknown ones rejected"),
        Metric("known_accuracy", "mean accuracy of the known classes"),
        Metric("unknown_recall", "share of rows of unknown classes that were rejected"),
        Metric("information", "mutual information of rows and answers, of the most there could be", True, "number"),
        Metric("agreement", f"share of rows answered like most of their {NEIGHBOURS} neighbours", True, "number"),
        Metric("entropy", "mean normalised entropy of the answers", None),
        Metric("rejected", "share of rows rejected as unknown", None),
    )
    baselines = {  # noqa: RUF012
        "source-model": "The source model as it is.",
        "batch-norm": "The source model with the statistics of its batch normalisation taken from the new domain.",
    }

    modules = dict.fromkeys(
        ("method", "source-model", "batch-norm"), ("tasks.adapt", "tasks.arenas.source_model", "models.state")
    )

    def primary(self, facts: Facts) -> Metric:
        """By labels where there are any; the H-score where some rows are of unknown classes."""
        named = {metric.name: metric for metric in self.metrics}
        if not facts["labelled"]:
            return named["information"]
        return named["h_score" if facts["unknown"] else "accuracy"]

    def prepare(self, source: Source, seed: int, rows: int) -> Bout:
        """Train the source model on train; the new domain is the split target, or rows of train from elsewhere."""
        from tasks.arenas.sampling import Sample, labelled
        from tasks.arenas.source_model import packed, train_source

        here, target, where = _domains(source, rows, seed)
        train = labelled(here, self.stage)
        truth = target.y
        known = np.isin(truth, np.arange(source.schema.n_classes))
        network = train_source(Sample(train.X, train.y), source.schema, seed)
        arrays, description = packed(network)
        facts = {
            "kind": source.schema.kind,
            "network": description,
            "batch_norm": any(tensor.endswith("running_mean") for tensor in arrays),
            "n_classes": source.schema.n_classes,
            "labelled": bool((truth >= 0).sum() >= LEAST_ROWS),
            "unknown": bool(((truth >= 0) & ~known).any()),
            "measured": int((truth >= 0).sum()),
        }
        notes = [
            f"A source model, the chain's network with the chain's training, was trained once on {len(train.y):,} "
            f"labelled rows. {where} Candidates saw its {len(target.X):,} rows without their labels.",
            f"All answers are read alike: a normalised entropy above {REJECT:g} rejects a row as unknown.",
        ]
        if not facts["labelled"]:
            notes.append("The new domain has no labels, so nothing here says how many answers are right.")
        return Bout({"X": target.X, **arrays}, {"y": truth}, facts, notes)

    def fit(self, name: str, given: Arrays, facts: Facts, seed: int) -> Found:
        """The adapted network."""
        import torch

        from tasks.arenas.source_model import unpacked

        network: Any = unpacked(given, facts)
        X = torch.from_numpy(given["X"])
        if name == "source-model":
            return Found(network)
        if name == "batch-norm":
            return Found(with_statistics_of(network, X))
        from models.registry import build_method
        from tasks.adapt import AdaptConfig

        usual = AdaptConfig()
        parameters = usual.parameters if name == usual.method else {}
        method = build_method(name, "adapt", model=network, random_state=seed, **parameters).fit(X)
        return Found(method.model_, plain_parameters(method))

    def measure(self, found: Found, given: Arrays, hidden: Arrays, facts: Facts, seed: int) -> dict[str, float]:
        """What needs no label, and with labels what they say."""
        import torch

        from models.metrics import open_set_scores
        from models.supervised import probabilities
        from tasks.arenas.source_model import unpacked

        X = torch.from_numpy(given["X"])
        p = probabilities(found.network, X).astype(np.float64)
        uncertain = entropies(p)
        answers = p.argmax(axis=1)
        metrics = {
            "information": information(p),
            "agreement": agreement(_embedding(unpacked(given, facts), X), answers),
            "entropy": float(uncertain.mean()),
            "rejected": float((uncertain > REJECT).mean()),
        }
        y = hidden["y"]
        there = y >= 0
        if not facts["labelled"]:
            return metrics
        n = facts["n_classes"]
        known = there & (y < n)
        metrics["accuracy"] = float((answers[known] == y[known]).mean()) if known.any() else float("nan")
        if facts["unknown"]:
            metrics |= open_set_scores(y[there], np.where(uncertain > REJECT, n, answers)[there], n)
        return metrics

    def unfit_baseline(self, name: str, facts: Facts) -> str:
        """Statistics can be taken anew only where a network keeps some."""
        return "the network has no batch normalisation" if name == "batch-norm" and not facts["batch_norm"] else ""

    def objection(self, metrics: Mapping[str, float], facts: Facts) -> str:
        """Without labels, decided answers are worth nothing when all are the same."""
        if not facts["labelled"] and metrics.get("information", 1.0) < 0.05:
            return "nearly all rows get the same answer"
        return ""

    def caveat(self, facts: Facts) -> str:
        """What can not be told without labels."""
        if facts["labelled"]:
            return ""
        return (
            "The new domain has no labels: this says whose answers are decided and varied, not whose are right. "
            "Label some rows of it, and compare again, before you rely on the order."
        )


def _domains(source: Source, rows: int, seed: int) -> tuple[Any, Any, str]:
    """Labelled rows of the domain that is known, rows of the new one, and in a sentence where those come from."""
    from infra import datasets as ds
    from infra.errors import DatasetFormatError
    from tasks.arenas.sampling import Sample, drawn, named, sample

    if "target" in source.schema.splits:
        (part,) = drawn(source, ["target"], rows, seed)
        target = Sample(ds.inputs(part, source.schema), _target_labels(part, source))
        return sample(source, ["train"], rows, seed), target, "The new domain is the split target."
    (part,) = drawn(source, ["train"], rows, seed)
    names = np.array([str(name) for name in part["domain"]]) if "domain" in part.column_names else np.array([""])
    found, counts = np.unique(names, return_counts=True)
    if len(found) < 2 or np.sort(counts)[-2] < LEAST_ROWS:
        raise DatasetFormatError(
            "Comparing the methods of 'adapt' needs a new domain: a split 'target', or rows of the split 'train' whose "
            f"column 'domain' names another one. All rows of train are of the domain {str(found[0])!r}."
        )
    order = np.argsort(-counts, kind="stable")
    home, away = found[order[0]], found[order[1]]
    X, y = ds.inputs(part, source.schema), named(part, source.schema)
    where = f"The new domain is {away!r} of the column domain; {home!r} is the one the model knows."
    return Sample(X[names == home], y[names == home]), Sample(X[names == away], y[names == away]), where


def _target_labels(part: Any, source: Source) -> NDArray[np.int64]:
    """The truth where it is kept apart, else the label column."""
    from infra import datasets as ds

    if source.truth is None:
        return ds.labels(part)
    truth = ds.read_split(source.truth, "truth").to_pandas().drop_duplicates("id").set_index("id")
    if "target_label" not in truth.columns:
        return ds.labels(part)
    return truth["target_label"].reindex(ds.ids(part)).fillna(-1).to_numpy(dtype=np.int64)


def with_statistics_of(network: Any, X: Any) -> Any:
    """A copy whose batch normalisation has mean and deviation of these rows, all of them counting alike."""
    import copy

    import torch

    adapted = copy.deepcopy(network)
    layers = [layer for layer in adapted.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    with torch.no_grad():
        for part in X.split(max(256, len(X) // 8)):
            if len(part) > 1:
                adapted(part)
    return adapted.eval()


def entropies(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalised entropy of each answer, (n,)."""
    return np.asarray(-(p * np.log(np.maximum(p, 1e-12))).sum(axis=1) / np.log(p.shape[1]))


def information(p: NDArray[np.float64]) -> float:
    """Entropy of the mean answer minus mean entropy of the answers, of the most it can be: decided and varied is 1."""
    return float(entropies(p.mean(axis=0, keepdims=True))[0] - entropies(p).mean())


def agreement(embedding: NDArray[np.float32], answers: NDArray[np.int64]) -> float:
    """Share of rows whose answer is that of most of their nearest rows in `embedding`."""
    from sklearn.neighbors import KNeighborsClassifier

    count = min(NEIGHBOURS, len(answers) - 1)
    near = KNeighborsClassifier(count).fit(embedding, answers).kneighbors(return_distance=False)
    votes = np.stack([(answers[near] == answer).sum(axis=1) for answer in np.unique(answers)], axis=1)
    return float((np.unique(answers)[votes.argmax(axis=1)] == answers).mean())


def _embedding(network: Any, X: Any) -> NDArray[np.float32]:
    from models.base import predict_in_batches

    return predict_in_batches(network.features, X).numpy()


ARENA = AdaptArena()

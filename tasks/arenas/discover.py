"""Who finds the groups? Labels, where there are any, are hidden from all but a part of some classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.errors import DatasetFormatError
from tasks.arenas import Arena, Arrays, Bout, Facts, Metric, Source

Labels = NDArray[np.int64]
SILHOUETTE_ROWS = 3000
FEWEST_ROWS = 10
MOST_NOISE = 0.5
"""Share of rows left out as noise beyond which a silhouette is not taken for a merit."""


@dataclass
class Found:
    """What a candidate made of the rows.

    Attributes
    ----------
    labels : int array, (n,)
        -1 is noise.
    seconds : float or None
        Of the fit alone, where more than that was done.
    """

    labels: Labels
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None


class DiscoverArena(Arena):
    """Judged by hidden labels where there are any, and always by how compact and apart the groups are."""

    stage = "discover"
    question = "Which method finds the groups in this data?"
    metrics = (
        Metric("accuracy", "accuracy under the best one-to-one match of groups and classes"),
        Metric("nmi", "normalised mutual information with the classes"),
        Metric("ari", "adjusted Rand index with the classes"),
        Metric("silhouette", "mean silhouette of the rows that are in a group", True, "number"),
        Metric("n_clusters", "groups found", None, "number"),
        Metric("noise", "share of rows in no group", None),
    )
    baselines = {  # noqa: RUF012
        "k-means": "k-means, the best of 10 starts.",
        "gaussian-mixture": "A mixture of Gaussians with full covariances.",
        "hdbscan": "HDBSCAN, which finds the number of groups and leaves noise out.",
        "spectral": "Spectral clustering of the graph of 10 nearest neighbours.",
    }

    modules = {  # noqa: RUF012
        "method": ("tasks.discover",),
        "k-means": ("sklearn.cluster",),
        "gaussian-mixture": ("sklearn.mixture",),
        "hdbscan": ("sklearn.cluster",),
        "spectral": ("sklearn.cluster",),
    }

    def primary(self, facts: Facts) -> Metric:
        """Accuracy where there are labels, else the silhouette."""
        name = "accuracy" if facts["labelled"] else "silhouette"
        return next(metric for metric in self.metrics if metric.name == name)

    def prepare(self, source: Source, seed: int, rows: int) -> Bout:
        """Rows as the stage takes them; half of the labels of the first half of the classes are shown."""
        from tasks.arenas.sampling import drawn, named
        from tasks.discover import DiscoverConfig
        from tasks.rowset import rowset

        usual = DiscoverConfig()
        splits = [split for split in usual.splits if split in source.schema.splits] or list(source.schema.splits)
        parts = drawn(source, splits, rows, seed)
        truth = np.concatenate([named(part, source.schema) for part in parts])
        taken = rowset(parts, source.schema, components=usual.components)
        distinct = len(np.unique(taken.matrix, axis=0))
        if distinct < FEWEST_ROWS:
            raise DatasetFormatError(
                f"Comparing the methods of 'discover' needs at least {FEWEST_ROWS} rows that differ, got {distinct} of "
                f"{len(truth)}. Add rows to the data."
            )
        shown = reveal(truth, seed)
        labelled = len(np.unique(truth[truth >= 0])) > 1
        measured = (truth >= 0) & (shown < 0) if labelled else np.ones(len(truth), dtype=bool)
        given: Arrays = {"matrix": taken.matrix, "labels": shown, "domains": taken.domains}
        if taken.images is not None:
            given["images"] = taken.images
        count, counted = self._count(taken.matrix, truth, seed)
        facts = {
            "kind": source.schema.kind,
            "labelled": labelled,
            "shown": int((shown >= 0).sum()),
            "domains": len(np.unique(taken.domains)),
            "n_clusters": count,
            "measured": int(measured.sum()),
        }
        where = " and ".join(splits)
        notes = [f"{len(truth):,} rows of {where}, {counted}", *_hiding(truth, shown, measured)]
        return Bout(given, {"truth": truth, "measured": measured}, facts, notes)

    def _count(self, matrix: NDArray[np.float64], truth: Labels, seed: int) -> tuple[int, str]:
        classes = np.unique(truth[truth >= 0])
        if len(classes) > 1:
            return len(classes), f"of {len(classes)} classes. Methods that must be told how many groups are told that."
        from models.clustering import count_by_silhouette
        from tasks.arenas import draw

        some = matrix[draw(len(matrix), SILHOUETTE_ROWS, seed)]
        count = count_by_silhouette(some, range(2, 16), random_state=seed).n_clusters
        return count, f"without classes. Methods that must be told how many groups are told {count}, the number from " \
                      "2 to 15 whose k-means has the best silhouette."  # fmt: skip

    def unfit(self, card: Any, facts: Facts) -> str:
        """Any data is rows of numbers here; some methods want images, several domains, or a few labels."""
        if set(card.accepts) <= {"image"} and facts["kind"] != "image":
            return f"takes image data, and this is {facts['kind']} data"
        from tasks.discover import needs_labels

        takes = inspect.signature(card.cls.fit).parameters
        if "domains" in takes and facts["domains"] < 2:
            return "needs rows of at least two domains, and all of these are of one"
        if not facts["shown"] and needs_labels(card):
            return "needs some labelled rows, and these have no labels"
        return ""

    def fit(self, name: str, given: Arrays, facts: Facts, seed: int) -> Found:
        """Groups of all rows."""
        if name in self.baselines:
            return _baseline(name, given["matrix"], facts["n_clusters"], seed)
        from models.registry import get_method
        from tasks.discover import Case, fit_case, parameters_of
        from tasks.rowset import Rowset

        card = get_method(name, "discover")
        rows = Rowset(given["matrix"], given.get("images"), given["labels"], given["domains"])
        case = Case(name, rows, facts["n_clusters"], seed)
        grouping = fit_case(case)
        takes = inspect.signature(card.cls).parameters.values()
        usual = {each.name: each.default for each in takes if each.default is not inspect.Parameter.empty}
        used = {
            parameter: value if isinstance(value, (bool, int, float, str)) else str(value)
            for parameter, value in (usual | parameters_of(case, card)).items()
        }
        return Found(grouping.labels, used, grouping.seconds)

    def measure(self, found: Found, given: Arrays, hidden: Arrays, facts: Facts, seed: int) -> dict[str, float]:
        """On the rows whose label nobody saw."""
        from sklearn.metrics import silhouette_score

        measured = hidden["measured"]
        labels, rows = found.labels[measured], given["matrix"][measured]
        metrics = clustering_metrics(hidden["truth"][measured], labels) if facts["labelled"] else {}
        held = labels >= 0
        metrics["silhouette"] = float("nan")
        if 2 <= len(np.unique(labels[held])) < held.sum():
            size = SILHOUETTE_ROWS if held.sum() > SILHOUETTE_ROWS else None
            metrics["silhouette"] = silhouette_score(rows[held], labels[held], sample_size=size, random_state=seed)
        metrics["n_clusters"] = len(np.unique(found.labels[found.labels >= 0]))
        metrics["noise"] = float((~held).mean())
        return metrics

    def objection(self, metrics: Mapping[str, float], facts: Facts) -> str:
        """A silhouette of the few rows that were easy is no merit."""
        noise = metrics.get("noise", 0.0)
        if not facts["labelled"] and noise > MOST_NOISE:
            return f"leaves {noise:.0%} of the rows out as noise"
        return ""

    def caveat(self, facts: Facts) -> str:
        """What a silhouette can not tell."""
        if facts["labelled"]:
            return ""
        return (
            "There are no labels, so the order is that of the silhouette: how compact and how far apart groups are. "
            "It favours round groups of like size and can not tell whether they mean anything. Look at the groups "
            "(`clearwell discover`) before you rely on the order."
        )


def reveal(truth: Labels, seed: int) -> Labels:
    """Labels of half of the rows of the first half of the classes, rounded up; -1 elsewhere.

    With fewer than two classes nothing is shown, and of two, one.
    """
    rng = np.random.default_rng(seed)
    shown = np.full_like(truth, -1)
    classes = np.unique(truth[truth >= 0])
    for label in classes[: (len(classes) + 1) // 2 if len(classes) > 1 else 0]:
        rows = np.flatnonzero(truth == label)
        seen = rng.choice(rows, len(rows) // 2, replace=False)
        shown[seen] = label
    return shown


def clustering_metrics(truth: Labels, labels: Labels) -> dict[str, float]:
    """Accuracy, NMI and ARI; a row of noise is right in none, and a group of its own."""
    from models.metrics import clustering_scores, hungarian_accuracy

    held = labels >= 0
    alone = labels.copy()
    alone[~held] = labels.max(initial=-1) + 1 + np.arange((~held).sum())
    scores = clustering_scores(truth, alone)
    scores["accuracy"] = hungarian_accuracy(truth[held], labels[held]) * float(held.mean()) if held.any() else 0.0
    return scores


def _hiding(truth: Labels, shown: Labels, measured: NDArray[np.bool_]) -> list[str]:
    if not (truth >= 0).any() or not measured.any() or len(np.unique(truth[truth >= 0])) < 2:
        return ["No row has a label that could be hidden, so groups are judged by themselves."]
    classes = len(np.unique(shown[shown >= 0]))
    return [
        f"Methods that can use labels saw those of {(shown >= 0).sum():,} rows, half of the rows of {classes} classes; "
        f"other methods and the baselines saw none. All are measured on the same {measured.sum():,} rows, those whose "
        "label nobody saw."
    ]


def _baseline(name: str, matrix: NDArray[np.float64], k: int, seed: int) -> Found:
    from sklearn import cluster, mixture

    if name == "gaussian-mixture":
        model = mixture.GaussianMixture(k, random_state=seed)
        return Found(np.asarray(model.fit_predict(matrix), dtype=np.int64), {"n_components": k, "covariance": "full"})
    if name == "k-means":
        parameters: dict[str, Any] = {"n_clusters": k, "n_init": 10}
        model = cluster.KMeans(**parameters, random_state=seed)
    elif name == "hdbscan":
        parameters = {"min_cluster_size": 5}
        model = cluster.HDBSCAN(**parameters, copy=True)
    else:
        neighbours = min(10, len(matrix) - 1)
        parameters = {"n_clusters": k, "affinity": "nearest_neighbors", "n_neighbors": neighbours}
        model = cluster.SpectralClustering(**parameters, random_state=seed)
    return Found(np.asarray(model.fit_predict(matrix), dtype=np.int64), parameters)


ARENA = DiscoverArena()

"""Stage discover: which rows belong together, how many groups there are, and which classes nobody has named yet."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from infra import datasets as ds
from infra.errors import ConfigurationError
from infra.references import DatasetRef, ModelRef, StageResult
from infra.runner import runner
from models.registry import MethodCard, get_method, list_methods
from tasks.figures import cluster_sizes, embedding_map, exemplar_sheet, line
from tasks.rowset import Labels, Rows, Rowset, rowset
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task

COUNT_PARAMETERS = ("n_clusters", "n_classes", "n_novel", "n_init_clusters")
"""What methods call the number of clusters; a method without any of them finds it itself."""
NETWORK_PARAMETERS = ("backbone", "encoder", "arch")
"""Methods with one of these train a network of their own, so they take images as they are."""
MAP_ROWS = 1500
EXEMPLARS = 8


class DiscoverConfig(StageConfig):
    """How groups are looked for."""

    method: str = Field("faster-pam", description="Registered name; `clearwell methods discover` lists the choices.")
    n_clusters: int | None = Field(
        None,
        ge=1,
        description="How many groups; by default the method finds out, or the best silhouette of k_grid says.",
    )
    k_grid: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        tuple(range(2, 16)),
        min_length=1,
        description="Numbers of groups tried when none is given and the method needs one.",
    )
    seeds: int = Field(3, ge=1, description="Fits from so many seeds, whose agreement is reported as stability.")
    known: tuple[str, ...] | None = Field(
        None, description="Names of the classes whose labels the method may see; by default all labels there are."
    )
    splits: tuple[str, ...] = Field(
        ("train", "unlabelled"), description="Splits that are grouped, together; others stay as they are."
    )
    components: int = Field(50, ge=2, description="Principal components kept of wider rows, images and text.")
    max_rows: int = Field(
        10_000,
        ge=10,
        description="Rows a method is fitted on, drawn at random; the others join their neighbours' group.",
    )


@dataclass(frozen=True)
class Case:
    """One fit: of what method, with what parameters, on which rows."""

    method: str
    rows: Rowset
    n_clusters: int | None
    seed: int
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grouping:
    """What one fit found.

    Attributes
    ----------
    labels : int array, (n,)
        Group of each row from 0 on, -1 for noise.
    confidence : array, (n,)
        In [0, 1], of each row's group; 0 for noise.
    n_clusters : int
    silhouette : float
        nan for a single group.
    seconds : float
    notes : tuple of str
        Warnings the method gave.
    """

    labels: Labels
    confidence: NDArray[np.float32]
    n_clusters: int
    silhouette: float
    seconds: float
    notes: tuple[str, ...] = ()


@stage_task("discover")
def discover(data: DatasetRef, encoder: ModelRef | None, config: DiscoverConfig, run: RunContext) -> StageResult:
    """Group the rows; a version of ``<name>-clustered`` carries each row's group, its name and a confidence.

    Rows are taken as they are, or as `encoder` embeds them.
    """

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        splits = _splits(config, schema)
        parts = [ds.read_split(folder, split) for split in splits]
        network = None if encoder is None else desk.load_network(encoder)
        rows = rowset(parts, schema, network, config.components, _known(config, schema))
        found = _fitted(desk, rows, config)
        clusters = describe_clusters(rows, found, parts, schema)
        names = np.array([cluster["name"] for cluster in clusters] or [""])

        def write(target: Path) -> int:
            written = start = 0
            for split, part in zip(splits, parts, strict=True):
                here = slice(start, start := start + len(part))
                group = found.labels[here]
                columns = {
                    "cluster": group,
                    "cluster_name": np.where(group < 0, "", names[group]).tolist(),
                    "cluster_confidence": found.confidence[here],
                }
                written += ds.write_split(ds.with_columns(part, columns), target, split)
            return written + ds.copy_splits(folder, target, [s for s in schema.splits if s not in splits])

        desk.data = desk.project.versions.add(f"{data.name}-clustered", write, source=f"{data} by {config.method}")
        desk.evidence |= {"clusters": clusters, "notes": list(found.notes)}
        desk.metrics |= {
            "rows": len(rows),
            "clusters": found.n_clusters,
            "noise": int((found.labels < 0).sum()),
            "silhouette": found.silhouette,
            "fit_seconds": found.seconds,
        }
        _show(desk, rows, found, clusters, parts, schema)

    return run_stage("discover", config, {"data": data, "encoder": encoder}, work, run)


# ---- rows ---------------------------------------------------------------------------------------------------


def _splits(config: DiscoverConfig, schema: ds.Schema) -> list[str]:
    """Splits that are grouped; all of them where the data has none of the usual ones."""
    found = [split for split in config.splits if split in schema.splits]
    if not found and config.splits != DiscoverConfig().splits:
        raise ConfigurationError(
            f"splits names {', '.join(config.splits) or 'none'}, and the data has {', '.join(schema.splits)}."
        )
    return found or list(schema.splits)


def _known(config: DiscoverConfig, schema: ds.Schema) -> tuple[int, ...]:
    """Numbers of the classes whose labels a method may see."""
    if config.known is None:
        return tuple(range(schema.n_classes))
    strange = sorted(set(config.known) - set(schema.label_names))
    if strange:
        raise ConfigurationError(
            f"known names classes that the data does not have: {', '.join(strange)}. "
            f"Its classes are {', '.join(schema.label_names) or 'not named'}."
        )
    return tuple(schema.label_names.index(name) for name in config.known)


# ---- fits ---------------------------------------------------------------------------------------------------


def count_parameter(card: MethodCard) -> str | None:
    """What the method calls the number of clusters, if it takes one."""
    names = inspect.signature(card.cls).parameters
    return next((name for name in COUNT_PARAMETERS if name in names), None)


def needs_labels(card: MethodCard) -> bool:
    """Whether the method can not do without labels."""
    tags = getattr(card.cls, "__sklearn_tags__", None)
    fit: Any = getattr(card.cls, "fit", None)
    if tags is None or fit is None or "y" not in inspect.signature(fit).parameters:
        return False
    try:
        return bool(tags(card.cls()).target_tags.required)
    except TypeError:  # it can not be made without parameters
        return False


def told_count(card: MethodCard, config: DiscoverConfig) -> dict[str, Any]:
    """The parameters given, and the number of groups asked for where the method counts them itself.

    Raises
    ------
    ConfigurationError
        If it can not be told a number.
    """
    if config.n_clusters is None or count_parameter(card):
        return config.parameters
    if _has_range(card):
        return {"k_range": [config.n_clusters], **config.parameters}
    others = [other.name for other in list_methods("discover") if count_parameter(other) or _has_range(other)]
    raise ConfigurationError(
        f"{card.name} finds the number of groups itself and can not be told one, got n_clusters={config.n_clusters}. "
        f"Leave --clusters out, or take one of {', '.join(others)}."
    )


def _has_range(card: MethodCard) -> bool:
    return "k_range" in inspect.signature(card.cls).parameters


def parameters_of(case: Case, card: MethodCard) -> dict[str, Any]:
    """What the method is made with."""
    takes = inspect.signature(card.cls).parameters
    parameters = dict(case.parameters)
    name = count_parameter(card)
    if name and name not in parameters and case.n_clusters is not None:
        parameters[name] = _novel(case) if name == "n_novel" else case.n_clusters
    if "metric" in takes and "metric" not in parameters:
        parameters["metric"] = "euclidean"
    if "random_state" in takes:
        parameters.setdefault("random_state", case.seed)
    return parameters


def fit_case(case: Case) -> Grouping:
    """Fit one method to the rows; runs in whatever process the runner gives it."""
    card = get_method(case.method, "discover")
    parameters = parameters_of(case, card)
    _check_labels(case, card)
    began = time.perf_counter()
    method = card.cls(**parameters)
    _fit(method, card, case.rows)
    seconds = time.perf_counter() - began
    labels = np.unique(np.asarray(method.labels_), return_inverse=True)
    first = 1 if (labels[0] < 0).any() else 0
    groups = labels[1].astype(np.int64) - first
    return Grouping(
        groups,
        _confidence(method, case.rows.matrix, groups),
        int(groups.max()) + 1,
        _silhouette(case.rows.matrix, groups),
        round(seconds, 3),
    )


def fit_and_note(case: Case) -> Grouping:
    """The same, with what the method warned of as notes, for a user who has no use for lines of code."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = fit_case(case)
    said = [str(each.message) for each in heard if issubclass(each.category, (RuntimeWarning, UserWarning))]
    return replace(found, notes=tuple(dict.fromkeys(said)))


def _check_labels(case: Case, card: MethodCard) -> None:
    """Say so in the user's words where a method lives on labels, and sees none or nothing but labels."""
    shown = case.rows.labels >= 0
    if needs_labels(card) and not shown.any():
        raise ConfigurationError(
            f"{case.method} learns from labelled rows, and there is no label that it may see. Label some rows, or take "
            "a method that needs no labels, such as faster-pam or ppp."
        )
    if count_parameter(card) == "n_novel" and shown.all():
        raise ConfigurationError(
            f"{case.method} looks for new classes, and every row has a label already: there is none to find. List in "
            "known (--known) the classes whose labels the method may see, or take faster-pam or ppp to group all rows."
        )


def _novel(case: Case) -> int:
    """How many of the groups asked for are classes without a name."""
    asked, known = case.n_clusters or 0, len(np.unique(case.rows.labels[case.rows.labels >= 0]))
    if asked <= known:
        raise ConfigurationError(
            f"{case.method} looks for new classes, and n_clusters={asked} groups leave none to find: the labels name "
            f"{known} classes already. Ask for more groups, leave n_clusters out to have them counted, or list in "
            "known the classes whose labels the method may see."
        )
    return asked - known


def _fit(method: Any, card: MethodCard, rows: Rowset) -> None:
    takes = inspect.signature(method.fit).parameters
    native = (
        rows.images is not None
        and "image" in card.accepts
        and any(name in inspect.signature(card.cls).parameters for name in NETWORK_PARAMETERS)
    )
    X = rows.images if native else PREPARED[card.rows](rows.matrix)
    if "domains" in takes:
        method.fit(X, rows.domains)
    elif "y" in takes and (rows.labels >= 0).any():
        method.fit(X, rows.labels)
    else:
        method.fit(X)


def _unit(matrix: Rows) -> Rows:
    from sklearn.preprocessing import MinMaxScaler

    return np.asarray(MinMaxScaler(clip=True).fit_transform(matrix))


def _confidence(method: Any, matrix: Rows, labels: Labels) -> NDArray[np.float32]:
    """The method's own, or how much nearer a row is to its group's mean than to any other: 1 - d / d'."""
    own = getattr(method, "confidences_", None)
    if own is None:
        from sklearn.metrics import pairwise_distances

        k = labels.max() + 1
        own = np.ones(len(matrix))
        if k > 1:
            means = np.array([matrix[labels == group].mean(axis=0) for group in range(k)])
            away = pairwise_distances(matrix, means)
            mine = away[np.arange(len(matrix)), labels]
            away[np.arange(len(matrix)), labels] = np.inf
            own = np.clip(1 - mine / np.maximum(away.min(axis=1), 1e-12), 0, 1)
    return np.where(labels < 0, 0.0, own).astype(np.float32)


def _silhouette(matrix: Rows, labels: Labels, max_rows: int = 5000) -> float:
    from sklearn.metrics import silhouette_score

    held = np.flatnonzero(labels >= 0)
    if not 2 <= len(np.unique(labels[held])) < len(held):
        return float("nan")
    size = max_rows if len(held) > max_rows else None
    return float(silhouette_score(matrix[held], labels[held], sample_size=size, random_state=0))


def _fitted(desk: Desk, rows: Rowset, config: DiscoverConfig) -> Grouping:
    """The grouping from the first seed and the best number of groups; the other fits say how stable it is."""
    from models.clustering import stability

    card = get_method(config.method, "discover")
    chosen = np.arange(len(rows))
    if len(rows) > config.max_rows:
        chosen = np.sort(np.random.default_rng(config.seed).choice(len(rows), config.max_rows, replace=False))
    some = rows.take(chosen)
    counts = _counts(config, card, len(some), len(np.unique(some.matrix, axis=0)))
    parameters = told_count(card, config)

    def fits(counts: Sequence[int | None], seeds: range) -> list[Grouping]:
        cases = [Case(config.method, some, k, config.seed + seed, parameters) for k, seed in product(counts, seeds)]
        return runner().map(fit_and_note, cases)

    tried = fits(counts, range(1))
    best = int(np.argmax(np.nan_to_num([each.silhouette for each in tried], nan=-2.0)))
    again = fits([counts[best]], range(1, config.seeds)) if config.seeds > 1 else []
    first = tried[best]
    if len(tried) > 1:
        desk.evidence["silhouette_by_count"] = {str(k): each.silhouette for k, each in zip(counts, tried, strict=True)}
    if again:
        desk.metrics["stability"] = stability([first.labels, *(each.labels for each in again)])
    return first if len(some) == len(rows) else _extended(first, chosen, rows)


def _counts(config: DiscoverConfig, card: MethodCard, rows: int, distinct: int) -> Sequence[int | None]:
    """Numbers of groups to try; [None] where the method counts. Copies of a row are in one group."""
    there = f"{rows:,} rows, of which {distinct:,} differ,"
    if config.n_clusters is not None and config.n_clusters > distinct:
        raise ConfigurationError(f"{there} can not make n_clusters={config.n_clusters} groups. Ask for fewer.")
    if config.n_clusters is not None or count_parameter(card) not in ("n_clusters", "n_classes"):
        return [config.n_clusters]
    if distinct == 1:
        return [1]
    counts = [k for k in config.k_grid if k < rows and k <= distinct]
    if not counts:
        raise ConfigurationError(f"{there} can not make {min(config.k_grid)} groups, the fewest of k_grid.")
    return counts


def _extended(found: Grouping, chosen: Labels, rows: Rowset) -> Grouping:
    """Rows that were not fitted join the group that most of their five nearest fitted rows are in."""
    from sklearn.neighbors import KNeighborsClassifier

    vote = KNeighborsClassifier(5).fit(rows.matrix[chosen], found.labels)
    shares = vote.predict_proba(rows.matrix)
    labels = np.asarray(vote.classes_)[shares.argmax(axis=1)].astype(np.int64)
    confidence = np.where(labels < 0, 0, shares.max(axis=1)).astype(np.float32)
    labels[chosen], confidence[chosen] = found.labels, found.confidence
    return Grouping(labels, confidence, found.n_clusters, _silhouette(rows.matrix, labels), found.seconds, found.notes)


# ---- what the groups are ------------------------------------------------------------------------------------


def describe_clusters(rows: Rowset, found: Grouping, parts: Sequence[Any], schema: ds.Schema) -> list[dict[str, Any]]:
    """A row a group: size, a proposed name, its most typical rows, how sure its members are."""
    from models.clustering import typical_rows

    ids = [name for part in parts for name in ds.ids(part)]
    propose = _namer(rows, parts, schema, ids)
    clusters = []
    for cluster, exemplars in typical_rows(rows.matrix, found.labels, EXEMPLARS).items():
        members = found.labels == cluster
        clusters.append(
            {
                "cluster": cluster,
                "name": propose(members, exemplars),
                "rows": int(members.sum()),
                "share": float(members.mean()),
                "confidence": float(found.confidence[members].mean()),
                "exemplars": [ids[row] for row in exemplars],
                "exemplar_rows": [int(row) for row in exemplars],
            }
        )
    return clusters


def _namer(
    rows: Rowset, parts: Sequence[Any], schema: ds.Schema, ids: Sequence[str | None]
) -> Callable[[NDArray[np.bool_], Labels], str]:
    """What proposes a name: the label most members carry, else what sets them apart, else the medoid."""
    tell = _apart(parts, schema)

    def propose(members: NDArray[np.bool_], exemplars: Labels) -> str:
        seen = rows.labels[members]
        seen = seen[seen >= 0]
        if len(seen) >= max(5, 0.1 * members.sum()):
            counts = np.bincount(seen)
            if counts.max() >= 0.5 * len(seen):
                return schema.label_names[int(counts.argmax())]
        return tell(members) or f"like {ids[exemplars[0]]}"

    return propose


def _apart(parts: Sequence[Any], schema: ds.Schema) -> Callable[[NDArray[np.bool_]], str]:
    """Says in a few words how members differ from all rows: the columns or words that stand out most."""
    if schema.kind == "table":
        values = np.concatenate([ds.inputs(part, schema) for part in parts]).astype(np.float64)
        scaled = (values - values.mean(axis=0)) / np.where(values.std(axis=0) > 0, values.std(axis=0), 1.0)

        def columns(members: NDArray[np.bool_]) -> str:
            shift = scaled[members].mean(axis=0)
            top = [column for column in np.argsort(-np.abs(shift))[:2] if abs(shift[column]) >= 0.5]
            return ", ".join(f"{'high' if shift[c] > 0 else 'low'} {schema.features[c]}" for c in top)

        return columns
    if schema.kind == "text":
        from sklearn.feature_extraction.text import CountVectorizer

        texts = [str(text or "") for part in parts for text in part["text"]]
        counter = CountVectorizer(binary=True, stop_words="english", max_features=20_000)
        there = counter.fit_transform(texts)
        words, usual = counter.get_feature_names_out(), np.asarray(there.mean(axis=0)).ravel()

        def terms(members: NDArray[np.bool_]) -> str:
            own = np.asarray(there[np.flatnonzero(members)].mean(axis=0)).ravel()
            return " ".join(words[np.argsort(-(own - usual), kind="stable")[:3]])

        return terms
    return lambda members: ""


# ---- pictures -----------------------------------------------------------------------------------------------


def _show(
    desk: Desk,
    rows: Rowset,
    found: Grouping,
    clusters: Sequence[dict[str, Any]],
    parts: Sequence[Any],
    schema: ds.Schema,
) -> None:
    from sklearn.metrics import silhouette_samples

    names = [f"{c['cluster']}: {c['name']}" for c in clusters]
    some = np.random.default_rng(0).permutation(len(rows))[:MAP_ROWS]
    labels = found.labels[some]
    if not np.isnan(found.silhouette) and 2 <= len(np.unique(labels[labels >= 0])) < (labels >= 0).sum():
        held = labels >= 0
        each = silhouette_samples(rows.matrix[some][held], labels[held])
        widths = [
            float(each[labels[held] == c["cluster"]].mean()) if (labels[held] == c["cluster"]).any() else 0.0
            for c in clusters
        ]
    else:
        widths = [0.0] * len(clusters)
    desk.figure(
        "sizes", cluster_sizes(names, [c["rows"] for c in clusters], widths), "Rows and silhouette of each group"
    )
    if len(some) >= 10:
        desk.figure(
            "map", embedding_map(_plane(rows.matrix[some]), labels, names, "noise"), "Rows on a plane (t-SNE), by group"
        )
    by_count = desk.evidence.get("silhouette_by_count")
    if by_count and not np.isnan(list(by_count.values())).all():
        figure = line([int(k) for k in by_count], list(by_count.values()), "number of groups", "mean silhouette")
        desk.figure("count", figure, "How many groups: the mean silhouette of each number tried")
    if schema.kind == "image":
        images = np.concatenate([ds.inputs(part, schema) for part in parts]) if rows.images is None else rows.images
        sheet = exemplar_sheet([images[c["exemplar_rows"]] for c in clusters], names)
        desk.figure("exemplars", sheet, "The most typical rows of each group, its medoid first")


def _plane(matrix: Rows) -> Rows:
    """The rows on a plane, by t-SNE unless they are on one already."""
    from sklearn.manifold import TSNE

    distinct, where = np.unique(matrix, axis=0, return_inverse=True)
    if len(distinct) < 10 or matrix.shape[1] <= 2:
        return matrix[:, :2] if matrix.shape[1] > 1 else np.column_stack([matrix[:, 0], np.zeros(len(matrix))])
    if len(distinct) < len(matrix):  # copies would be all the neighbours that t-SNE looks at
        return _plane(distinct)[where]
    perplexity = min(30.0, (len(matrix) - 1) / 3)
    return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=0, n_jobs=1).fit_transform(matrix))


PREPARED: dict[str, Callable[[Rows], Rows]] = {"any": np.asarray, "unit": _unit, "plane": _plane}
"""What rows of numbers are made into, by what the method's registration asks for."""

"""The four stages that find which tables contain which, each looking at more data than the one before.

R. Shah et al., "R2D2: Reducing Redundancy and Duplication in Data Lakes", arXiv:2312.13427, 2023.

A stage takes a graph of edges parent -> child and cuts those that cannot be true, and only those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pandas as pd
from sklearn.utils.parallel import Parallel, delayed

from models.validate.rows import EncodedRows, RowIndex, combine, encode_columns, encode_rows
from models.validate.tables import ColumnStats, TableHandle, family, seed_of

ROWS_IN_MEMORY = 5_000_000
"""Child rows compared in one pass of the exact check; more are split by their hash over several passes."""

Edge = tuple[str, str]
Reasons = dict[Edge, str]


def sample_size(epsilon: float, delta: float) -> int:
    """Rows to draw so that a child of which at most ``1 - epsilon`` is contained survives with probability `delta`.

    ``t = ceil(ln delta / ln(1 - epsilon))``, since each row is found with probability at most ``1 - epsilon``.

    Examples
    --------
    >>> sample_size(0.1, 0.01)
    44
    """
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


# Stage 1: schemas


class SchemaClusters:
    """Schemas in clusters under their widest members, as bit sets; tells each new one its parents and children.

    A table is in every cluster whose centre contains its schema, so whatever contains a table shares a cluster with
    it: no containment is lost. A schema that no centre contains becomes a centre and takes in what it contains.
    """

    def __init__(self) -> None:
        self.bits: dict[str, int] = {}
        self.schemas: dict[str, int] = {}
        self.columns: dict[str, list[int]] = {}
        self.clusters: list[tuple[int, list[str]]] = []
        self.centres_with: dict[int, list[int]] = {}

    def add(self, name: str, columns: Iterable[str]) -> tuple[set[str], set[str]]:
        """Enter a table; returns the tables whose schema contains its, and those whose schema it contains."""
        places = [self.bits.setdefault(column, len(self.bits)) for column in columns]
        schema = sum(1 << place for place in set(places))
        homes = self._homes(schema, places)
        members = {other for home in homes for other in self.clusters[home][1]} if homes else set(self.schemas)
        parents = {other for other in members if not schema & ~self.schemas[other]}
        children = {other for other in members if not self.schemas[other] & ~schema}
        self.schemas[name] = schema
        if not homes:
            for place in places:
                self.centres_with.setdefault(place, []).append(len(self.clusters))
            self.clusters.append((schema, [*sorted(children), name]))
        for home in homes:
            self.clusters[home][1].append(name)
        return parents, children

    def _homes(self, schema: int, places: Sequence[int]) -> list[int]:
        """Clusters whose centre contains `schema`, sought among the centres that have its rarest column."""
        candidates = min((self.centres_with.get(place, []) for place in places), key=len)
        return [home for home in candidates if not schema & ~self.clusters[home][0]]


def schema_containment_graph(schemas: Mapping[str, Iterable[str]]) -> nx.DiGraph:
    """Graph with an edge p -> q wherever the columns of q are among those of p (stage 1).

    Parameters
    ----------
    schemas : mapping
        Table -> its columns. Equal schemas give both directions.

    Raises
    ------
    ValueError
        If a table has no columns.

    Examples
    --------
    >>> sorted(schema_containment_graph({"wide": "abc", "narrow": "ab", "other": "ax"}).edges)
    [('wide', 'narrow')]
    """
    found = {name: list(columns) for name, columns in schemas.items()}
    if empty := [name for name, columns in found.items() if not columns]:
        raise ValueError(f"The table(s) {empty} have an empty schema: every table needs at least one column.")
    graph: nx.DiGraph = nx.DiGraph()
    clusters = SchemaClusters()
    for name in sorted(found, key=lambda name: (-len(found[name]), name)):
        connect(graph, name, *clusters.add(name, found[name]))
    return graph


def connect(graph: nx.DiGraph, name: str, parents: Iterable[str], children: Iterable[str]) -> list[Edge]:
    edges = sorted({(parent, name) for parent in parents} | {(name, child) for child in children})
    graph.add_node(name)
    graph.add_edges_from(edges)
    return edges


# Stage 2: statistics


def min_max_prune(
    graph: nx.DiGraph, tables: Mapping[str, TableHandle], semantics: str = "set", tolerance: float = 0.0
) -> tuple[nx.DiGraph, Reasons]:
    """Cut the edges that column statistics exclude, reading no rows (stage 2).

    Parameters
    ----------
    graph : DiGraph
    tables : mapping
        Node -> table.
    semantics : {"set", "bag"}
        "bag" also cuts a child with more rows than its parent.
    tolerance : float
        Grid to which numbers are rounded before they are compared.

    Returns
    -------
    graph : DiGraph
        A copy without the edges cut.
    reasons : dict
        Edge cut -> why.

    Raises
    ------
    ValueError
        If the minimum and maximum of a column cannot be compared.
    """
    stats = {name: _checked_stats(tables[name]) for name in graph.nodes}
    rows = {name: tables[name].num_rows for name in graph.nodes}
    reasons: Reasons = {}
    for parent, child in graph.edges:
        if not rows[child]:
            continue
        if not rows[parent]:
            reasons[parent, child] = "the parent is empty and the child is not"
        elif semantics == "bag" and rows[child] > rows[parent]:
            reasons[parent, child] = f"the child has {rows[child]} rows, the parent {rows[parent]}"
        elif why := _outside(stats[child], stats[parent], tolerance):
            reasons[parent, child] = why
    pruned = graph.copy()
    pruned.remove_edges_from(reasons)
    return pruned, reasons


def _checked_stats(table: TableHandle) -> dict[str, ColumnStats]:
    stats = table.stats() or {}
    for column, known in stats.items():
        if known.minimum is None or not known.exact:
            continue
        if family(known.minimum) != family(known.maximum) or known.minimum > known.maximum:
            raise ValueError(
                f"The statistics of {table.name!r} give column {column!r} the minimum {known.minimum!r} and the "
                f"maximum {known.maximum!r}, which do not compare. Repair them or mark them as not exact."
            )
    return stats


def _outside(child: Mapping[str, ColumnStats], parent: Mapping[str, ColumnStats], tolerance: float) -> str:
    """Why the child cannot be contained by its statistics, or nothing."""
    for column in sorted(child.keys() & parent.keys()):
        inner, outer = child[column], parent[column]
        if inner.null_count and outer.null_count == 0:
            return f"column {column!r} has nulls, the parent's has none"
        if not (inner.exact and outer.exact) or inner.minimum is None or outer.minimum is None:
            continue
        kind = family(inner.minimum)
        if kind != family(outer.minimum):
            continue
        low, high, least, most = (
            round(float(value) / tolerance) if tolerance and kind == "number" and math.isfinite(value) else value
            for value in (inner.minimum, inner.maximum, outer.minimum, outer.maximum)
        )
        if low < least:
            return f"column {column!r} goes down to {inner.minimum!r}, the parent's to {outer.minimum!r}"
        if high > most:
            return f"column {column!r} goes up to {inner.maximum!r}, the parent's to {outer.maximum!r}"
    return ""


# Stages 3 and 4: rows


@dataclass
class Probe:
    """Rows of a child to look for in a parent."""

    child: str
    columns: tuple[str, ...]
    rows: EncodedRows


def count_missing(
    parent: TableHandle, probes: Sequence[Probe], semantics: str = "set", tolerance: float = 0.0
) -> tuple[dict[str, int], int]:
    """Look for the rows of all `probes` in one pass over `parent`, ended early once all are found.

    Returns
    -------
    missing : dict
        Child -> rows not found; with "bag" each row must occur as often as the child has it.
    rows_read : int
    """
    needs = sorted({column for probe in probes for column in probe.columns})
    groups: dict[tuple[str, ...], list[Probe]] = {}
    for probe in probes:
        groups.setdefault(probe.columns, []).append(probe)
    searches = [_Search(columns, members, semantics) for columns, members in groups.items()]
    rows_read = 0
    for batch in parent.iter_batches(needs):
        rows_read += len(batch)
        cells = encode_columns(batch, needs, tolerance)
        for search in searches:
            search.look(combine(cells, search.columns))
        if all(search.finished for search in searches):
            break
    return {child: count for search in searches for child, count in search.missing()}, rows_read


class _Search:
    """The rows of several children over the same columns, and how often each was met."""

    def __init__(self, columns: tuple[str, ...], probes: Sequence[Probe], semantics: str) -> None:
        self.columns = columns
        self.index = RowIndex(EncodedRows.join([probe.rows for probe in probes]))
        self.met = np.zeros(len(self.index.first), dtype=np.int64)
        ends = np.cumsum([len(probe.rows) for probe in probes])
        self.wanted = []
        for probe, end in zip(probes, ends, strict=True):
            rows, counts = np.unique(self.index.first[end - len(probe.rows) : end], return_counts=True)
            # A set needs each row once, and then the child's copies of it are all found.
            self.wanted.append((probe.child, rows, counts, counts if semantics == "bag" else np.ones_like(counts)))

    def look(self, batch: EncodedRows) -> None:
        hits = self.index.lookup(batch)
        self.met += np.bincount(hits[hits >= 0], minlength=len(self.met))

    @property
    def finished(self) -> bool:
        return all((self.met[rows] >= needed).all() for _, rows, _, needed in self.wanted)

    def missing(self) -> Iterable[tuple[str, int]]:
        for child, rows, counts, needed in self.wanted:
            short = needed - np.minimum(self.met[rows], needed)
            yield child, int(np.where(needed == counts, short, counts * (short > 0)).sum())


@dataclass
class Draw:
    """Rows drawn from a child for stage 3."""

    probe: Probe
    distinct: int


def draw_rows(
    table: TableHandle, sample_rows: int, sample_columns: int | None, seed: int, tolerance: float = 0.0
) -> Draw:
    """Sample a table on all or `sample_columns` of its columns, by a seed that depends on its name alone."""
    seed = seed_of(table.name, seed)
    columns = sorted(table.schema())
    if sample_columns is not None and sample_columns < len(columns):
        columns = sorted(np.random.default_rng(seed).choice(columns, sample_columns, replace=False).tolist())
    rows = encode_rows(table.sample(sample_rows, columns, seed), columns, tolerance)
    return Draw(Probe(table.name, tuple(columns), rows), len(np.unique(RowIndex(rows).first)))


def content_prune(
    graph: nx.DiGraph,
    tables: Mapping[str, TableHandle],
    sample_rows: int = 44,
    sample_columns: int | None = None,
    semantics: str = "set",
    tolerance: float = 0.0,
    seed: int = 0,
    n_jobs: int | None = 1,
) -> tuple[nx.DiGraph, Reasons, int]:
    """Cut the edges whose parent lacks a sampled row of the child (stage 3).

    Each child is sampled once and each parent scanned once for all its children.

    Parameters
    ----------
    graph : DiGraph
    tables : mapping
        Node -> table.
    sample_rows : int
        Uniform rows a child; a table that can adds up to as many that hold extremes and nulls.
    sample_columns : int or None
        Columns compared; None takes all. Fewer stay sound and find fewer false edges.
    semantics : {"set", "bag"}
    tolerance : float
    seed : int
    n_jobs : int or None
        Parents scanned at once, in threads.

    Returns
    -------
    graph : DiGraph
        A copy without the edges cut; edges tell ``sampled_rows``, children ``distinct_rows`` of their sample.
    reasons : dict
        Edge cut -> why.
    rows_read : int
        Rows of children and parents passed over.
    """
    parallel = Parallel(n_jobs=n_jobs, prefer="threads")
    children = sorted({child for _, child in graph.edges})
    drawn = parallel(delayed(draw_rows)(tables[c], sample_rows, sample_columns, seed, tolerance) for c in children)
    draws: dict[str, Draw] = dict(zip(children, drawn, strict=True))
    parents = sorted({parent for parent, _ in graph.edges})
    scans = parallel(
        delayed(count_missing)(tables[p], [draws[c].probe for c in sorted(graph.successors(p))], semantics, tolerance)
        for p in parents
    )
    pruned, reasons = graph.copy(), {}
    for parent, (missing, _) in zip(parents, scans, strict=True):
        for child, count in missing.items():
            size = len(draws[child].probe.rows)
            pruned.edges[parent, child]["sampled_rows"] = size
            if count:
                reasons[parent, child] = f"{count} of {size} sampled rows are not in the parent"
    pruned.remove_edges_from(reasons)
    for child, draw in draws.items():
        pruned.nodes[child]["distinct_rows"] = draw.distinct
    rows_read = sum(tables[child].num_rows for child in children) + sum(rows for _, rows in scans)
    return pruned, reasons, rows_read


def exact_prune(
    graph: nx.DiGraph,
    tables: Mapping[str, TableHandle],
    semantics: str = "set",
    tolerance: float = 0.0,
    n_jobs: int | None = 1,
) -> tuple[nx.DiGraph, Reasons, int]:
    """Compare all rows of every child with its parents and cut what is not contained (stage 4).

    Parameters and results are those of :func:`content_prune`; edges kept gain ``exact=True``.
    """
    parents = sorted({parent for parent, _ in graph.edges})
    scans = Parallel(n_jobs=n_jobs, prefer="threads")(
        delayed(_compare_all)(tables[p], [tables[c] for c in sorted(graph.successors(p))], semantics, tolerance)
        for p in parents
    )
    pruned, reasons = graph.copy(), {}
    for parent, (missing, _) in zip(parents, scans, strict=True):
        for child, count in missing.items():
            pruned.edges[parent, child]["exact"] = not count
            if count:
                share = 1 - count / tables[child].num_rows
                reasons[parent, child] = f"{count} rows are not in the parent (containment {share:.4f})"
    pruned.remove_edges_from(reasons)
    return pruned, reasons, sum(rows for _, rows in scans)


def _compare_all(
    parent: TableHandle, children: Sequence[TableHandle], semantics: str, tolerance: float
) -> tuple[dict[str, int], int]:
    """Missing rows of each child, a few children or a part of a large one in each pass over the parent."""
    missing: dict[str, int] = {}
    rows_read = waiting = 0
    probes: list[Probe] = []

    def search() -> None:
        nonlocal rows_read, waiting
        if probes:
            found, read = count_missing(parent, probes, semantics, tolerance)
            for child, count in found.items():
                missing[child] = missing.get(child, 0) + count
            rows_read += read
        probes.clear()
        waiting = 0

    for child in children:
        parts = max(1, math.ceil(child.num_rows / ROWS_IN_MEMORY))
        for part in range(parts):
            if waiting and (parts > 1 or waiting + child.num_rows > ROWS_IN_MEMORY):
                search()
            probes.append(_all_rows(child, part, parts, tolerance))
            waiting += len(probes[-1].rows)
            rows_read += child.num_rows
    search()
    return missing, rows_read


def _all_rows(table: TableHandle, part: int, parts: int, tolerance: float) -> Probe:
    """Encode the rows of a table whose hash falls into one of `parts`; equal rows fall into the same."""
    columns = tuple(sorted(table.schema()))
    batches = [encode_rows(pd.DataFrame(columns=list(columns)), columns)]
    for batch in table.iter_batches(columns):
        rows = encode_rows(batch, columns, tolerance)
        batches.append(rows.take(np.flatnonzero(rows.hashes % np.uint64(parts) == part)) if parts > 1 else rows)
    return Probe(table.name, columns, EncodedRows.join(batches))

"""R2D2: which tables of a lake contain which, found almost without reading them.

R. Shah, K. Mukherjee, A. Tyagi, S. K. Karnam, D. Joshi, S. Bhosale and S. Mitra, "R2D2: Reducing Redundancy and
Duplication in Data Lakes", Proceedings of the ACM on Management of Data 1(4), 2023; arXiv:2312.13427.

    schemas -> statistics -> a sample of rows -> (all rows) -> what to keep

Each stage only removes edges parent -> child that cannot be true, and looks at more data than the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import networkx as nx
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from models.base import seed_from
from models.registry import register
from models.validate.containment import (
    Edge,
    SchemaClusters,
    connect,
    content_prune,
    exact_prune,
    min_max_prune,
    sample_size,
    schema_containment_graph,
)
from models.validate.retention import Costs, RetentionPlan, RowRecipe, retention_plan, row_recipe
from models.validate.tables import SelectedTable, TableHandle, sizes

STAGES = ("schema", "minmax", "content", "exact")


@register(
    "r2d2",
    stage="validate",
    summary="Finds tables (or splits) contained in others almost without reading them, and which to keep.",
    paper="R2D2: Reducing Redundancy and Duplication in Data Lakes",
    year=2023,
    link="https://arxiv.org/abs/2312.13427",
    licence="none published",
    accepts=("table", "image", "text", "embedding"),
    skips_checks={"survives_packing": "explain and retention_plan read the tables, which stay where the data are"},
)
class R2D2(BaseEstimator):
    """Containment between tables, by schemas, then statistics, then a sample of rows, then all rows.

    Containment is a statement about values: columns of one name are compared whatever they mean, and a table of a few
    flags is contained in many by accident.

    Parameters
    ----------
    sample_rows : int or None, default=44
        Uniform rows drawn from a child; None derives them from `epsilon` and `delta`. Tables that can add up to as
        many rows that hold extremes.
    sample_columns : int or None, default=None
        Columns compared on the sample; None takes all.
    epsilon, delta : float, default=0.1 and 0.01
        A child of which at most 1 - epsilon is contained survives the sample with probability at most delta.
    semantics : {"set", "bag"}, default="set"
        "bag" also asks that the parent has each row as often as the child.
    verify : {"none", "exact"}, default="none"
        "exact" compares all rows on the edges that are left.
    ignore_columns : sequence of str, default=()
        Columns no comparison sees (identifiers, time of loading).
    case_sensitive : bool, default=True
        Of column names.
    float_tolerance : float, default=0.0
        Above 0, numbers equal when they round to the same multiple of it.
    random_state : int, RandomState or None
    n_jobs : int or None, default=1
        Tables read at once, in threads.

    Attributes
    ----------
    graph_ : DiGraph
        Edges parent -> child that survived, with ``stage`` (the last one passed), ``sampled_rows`` and ``exact``
        (True, or None when not verified). Nodes that are children tell the ``distinct_rows`` of their sample.
    edges_by_stage_ : dict of str to set
        Edges left after "schema", "minmax", "content" and, if asked for, "exact".
    duplicates_ : list of list of str
        Groups of tables that contain each other.
    timings_ : dict of str to float
        Seconds of each stage.
    rows_read_ : dict of str to int
        Rows passed over in "content" and "exact".
    tables_ : dict of str to TableHandle
        The tables as compared.
    recipes_ : dict of (parent, child) to RowRecipe
        Recipes derived by the last :meth:`retention_plan` that had to.

    Notes
    -----
    No stage removes a true edge. Statistics that are missing, truncated or of another type never cut one.

    References
    ----------
    Shah et al., arXiv:2312.13427, 2023: schema graph, min-max pruning, content-level pruning, optimal retention.

    Examples
    --------
    >>> import pandas as pd
    >>> from models.validate.tables import FrameTable
    >>> train = pd.DataFrame({"x": range(100), "y": [i % 7 for i in range(100)]})
    >>> lake = [FrameTable("train", train), FrameTable("leak", train[20:50]), FrameTable("clean", train + 500)]
    >>> found = R2D2(random_state=0).fit(lake)
    >>> list(found.graph_.edges)
    [('train', 'leak')]
    >>> found.explain("train", "clean")
    "cut at minmax: column 'x' goes up to 599, the parent's to 99"
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "sample_rows": [Interval(Integral, 1, None, closed="left"), None],
        "sample_columns": [Interval(Integral, 1, None, closed="left"), None],
        "epsilon": [Interval(Real, 0, 1, closed="neither")],
        "delta": [Interval(Real, 0, 1, closed="neither")],
        "semantics": [StrOptions({"set", "bag"})],
        "verify": [StrOptions({"none", "exact"})],
        "ignore_columns": ["array-like"],
        "case_sensitive": ["boolean"],
        "float_tolerance": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        sample_rows: int | None = 44,
        sample_columns: int | None = None,
        epsilon: float = 0.1,
        delta: float = 0.01,
        semantics: str = "set",
        verify: str = "none",
        ignore_columns: Sequence[str] = (),
        case_sensitive: bool = True,
        float_tolerance: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = 1,
    ) -> None:
        self.sample_rows = sample_rows
        self.sample_columns = sample_columns
        self.epsilon = epsilon
        self.delta = delta
        self.semantics = semantics
        self.verify = verify
        self.ignore_columns = ignore_columns
        self.case_sensitive = case_sensitive
        self.float_tolerance = float_tolerance
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, tables: Sequence[TableHandle], y: object = None) -> Self:
        """Find which of `tables` contain which.

        Parameters
        ----------
        tables : sequence of TableHandle
            Such as :class:`~models.validate.tables.FrameTable` or :class:`~models.validate.tables.ParquetTable`.
        y : ignored

        Raises
        ------
        ValueError
            For no tables, two of one name, an empty schema, or statistics that do not compare.
        """
        self._validate_params()
        self._seed = seed_from(self.random_state)
        self._clusters = SchemaClusters()
        self._cut: dict[Edge, tuple[str, str]] = {}
        self.tables_: dict[str, TableHandle] = {}
        self.graph_: nx.DiGraph = nx.DiGraph()
        self.edges_by_stage_: dict[str, set[Edge]] = {stage: set() for stage in STAGES[: self._n_stages()]}
        self.timings_ = dict.fromkeys(self.edges_by_stage_, 0.0)
        self.rows_read_ = {stage: 0 for stage in self.edges_by_stage_ if stage in ("content", "exact")}
        self.recipes_: dict[Edge, RowRecipe] = {}
        return self.partial_fit(tables)

    def partial_fit(self, tables: Sequence[TableHandle], y: object = None) -> Self:
        """Add tables: each is compared with those whose schema contains its, or is contained in it.

        Parameters and errors are those of :meth:`fit`, which starts anew.
        """
        if not hasattr(self, "graph_"):
            return self.fit(tables)
        added = self._admit(tables)
        graph = self._timed("schema", lambda: self._schema_edges(added))
        graph = self._stage("minmax", graph, min_max_prune, self.semantics, self.float_tolerance)
        rows = sample_size(self.epsilon, self.delta) if self.sample_rows is None else self.sample_rows
        options = (self.semantics, self.float_tolerance)
        seeded = (rows, self.sample_columns, *options, self._seed, self.n_jobs)
        graph = self._stage("content", graph, content_prune, *seeded)
        if self.verify == "exact":
            graph = self._stage("exact", graph, exact_prune, *options, self.n_jobs)
        for _, _, told in graph.edges(data=True):
            told.update(stage=STAGES[self._n_stages() - 1], exact=told.get("exact"))
        self.graph_ = nx.compose(self.graph_, graph)
        groups = nx.strongly_connected_components(self.graph_)
        self.duplicates_ = sorted(sorted(group) for group in groups if len(group) > 1)
        return self

    def _n_stages(self) -> int:
        return 4 if self.verify == "exact" else 3

    def _admit(self, tables: Sequence[TableHandle]) -> dict[str, TableHandle]:
        added: dict[str, TableHandle] = {}
        for table in tables:
            selected = SelectedTable(table, self.ignore_columns, self.case_sensitive)
            if selected.name in added or selected.name in self.tables_:
                raise ValueError(f"Two tables are named {selected.name!r}: names must differ.")
            added[selected.name] = selected
        if not added:
            raise ValueError("tables must hold at least one table, got none.")
        self.tables_ |= added
        return added

    def _schema_edges(self, added: Mapping[str, TableHandle]) -> nx.DiGraph:
        graph: nx.DiGraph = nx.DiGraph()
        columns = {name: list(table.schema()) for name, table in added.items()}
        for name in sorted(columns, key=lambda name: (-len(columns[name]), name)):
            edges = connect(graph, name, *self._clusters.add(name, columns[name]))
            self.edges_by_stage_["schema"] |= set(edges)
        return graph

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.timings_[stage] += time.perf_counter() - start
        return result

    def _stage(self, stage: str, graph: nx.DiGraph, prune: Callable[..., Any], *options: Any) -> nx.DiGraph:
        """Run one pruning stage and note what it cut, read and left."""
        pruned, reasons, *rows_read = self._timed(stage, lambda: prune(graph, self.tables_, *options))
        self._cut |= {edge: (stage, why) for edge, why in reasons.items()}
        self.edges_by_stage_[stage] |= set(pruned.edges)
        if rows_read:
            self.rows_read_[stage] += rows_read[0]
        return pruned

    def explain(self, parent: str, child: str) -> str:
        """Why the edge parent -> child was kept or cut, in a sentence.

        Raises
        ------
        ValueError
            If a table is unknown.
        """
        check_is_fitted(self, "graph_")
        for name in (parent, child):
            if name not in self.tables_:
                raise ValueError(f"There is no table {name!r}; fit saw {', '.join(sorted(self.tables_))}.")
        if parent == child:
            return "kept: a table contains itself"
        if self.graph_.has_edge(parent, child):
            told = self.graph_.edges[parent, child]
            proof = "all rows were found" if told["exact"] else f"all {told['sampled_rows']} sampled rows were found"
            return f"kept at {told['stage']}: {proof}"
        if (parent, child) in self._cut:
            stage, why = self._cut[parent, child]
            return f"cut at {stage}: {why}"
        lacking = sorted(self.tables_[child].schema().keys() - self.tables_[parent].schema().keys())
        return f"cut at schema: the parent lacks the column(s) {lacking}"

    def retention_plan(
        self,
        costs: Costs,
        accesses: Mapping[str, float],
        max_latency: float,
        recipes: Mapping[Edge, float | RowRecipe] | None = None,
        solver: str = "milp",
        *,
        maintenance: Mapping[str, float] | None = None,
        min_rows: int = 20,
    ) -> RetentionPlan:
        """Which tables to keep, and from which to rebuild the others. Nothing is deleted.

        Parameters
        ----------
        costs, accesses, max_latency, solver, maintenance
            See :func:`~models.validate.retention.retention_plan`.
        recipes : mapping, optional
            Edge -> recipe, or the bytes it takes (a query known from lineage). None derives row positions for every
            edge fast enough, reading both tables, which also confirms its containment; they stand in ``recipes_``.
        min_rows : int
            Children with fewer distinct rows are kept: their containment may be an accident.

        Raises
        ------
        ValueError
            As the function; also for a table without a size.
        """
        check_is_fitted(self, "graph_")
        graph, size = self.graph_.copy(), sizes(self.tables_)
        refused = {child for _, child in graph.edges if self._too_small(child, min_rows)}
        edges = [(u, v) for u, v in sorted(graph.edges) if v not in refused]
        if recipes is None:
            fast = [(u, v) for u, v in edges if 0 < max_latency >= costs.latency(size[u], size[v])]
            self.recipes_ = self._derive_recipes(fast)
            for edge in self.recipes_:
                graph.edges[edge]["exact"] = True
            recipes = self.recipes_
        weights = {edge: _recipe_bytes(recipes[edge]) for edge in edges if edge in recipes}
        plan = retention_plan(
            graph, size, costs, accesses, max_latency, weights, maintenance=maintenance, solver=solver
        )
        return replace(plan, refused=sorted(refused))

    def _too_small(self, child: str, min_rows: int) -> bool:
        """Few rows, or few distinct ones in a sample that could have shown more."""
        distinct = int(self.graph_.nodes[child].get("distinct_rows", 0))
        drawn = max(self.graph_.edges[edge].get("sampled_rows", 0) for edge in self.graph_.in_edges(child))
        return self.tables_[child].num_rows < min_rows or distinct < min(min_rows, drawn)

    def _derive_recipes(self, edges: Sequence[Edge]) -> dict[Edge, RowRecipe]:
        found = Parallel(n_jobs=self.n_jobs, prefer="threads")(
            delayed(row_recipe)(self.tables_[child], self.tables_[parent], self.float_tolerance)
            for parent, child in edges
        )
        return {edge: recipe for edge, recipe in zip(edges, found, strict=True) if recipe is not None}


def _recipe_bytes(recipe: float | RowRecipe) -> float:
    size = float(recipe.nbytes if isinstance(recipe, RowRecipe) else recipe)
    if not size >= 0:
        raise ValueError(f"A recipe must take 0 or more bytes, got {size}.")
    return size


__all__ = [
    "R2D2",
    "Costs",
    "RetentionPlan",
    "RowRecipe",
    "SchemaClusters",
    "content_prune",
    "exact_prune",
    "min_max_prune",
    "retention_plan",
    "row_recipe",
    "sample_size",
    "schema_containment_graph",
]

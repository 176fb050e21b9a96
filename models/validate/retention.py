"""Which tables to keep when others can be rebuilt from them: step 5 of R2D2.

R. Shah et al., "R2D2: Reducing Redundancy and Duplication in Data Lakes", arXiv:2312.13427, 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from models.validate.tables import TableHandle, matching_rows

MILP_EDGES = 20_000
Edge = tuple[str, str]


@dataclass(frozen=True)
class Costs:
    """Prices of keeping, reading and writing a byte, and how fast bytes move.

    Attributes
    ----------
    store : float
        A byte kept for one period.
    maintain : float
        A byte in one maintenance pass (privacy deletion, compaction).
    read, write : float
        A byte read from the parent and written for the child at each rebuild.
    read_speed, write_speed : float
        Bytes a second; infinite by default.
    overhead : float
        Seconds a rebuild takes beside.

    Raises
    ------
    ValueError
        If a price is negative or a speed not positive.
    """

    store: float
    maintain: float = 0.0
    read: float = 0.0
    write: float = 0.0
    read_speed: float = math.inf
    write_speed: float = math.inf
    overhead: float = 0.0

    def __post_init__(self) -> None:
        for name in ("store", "maintain", "read", "write", "overhead"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"The cost {name!r} must not be negative, got {getattr(self, name)}.")
        for name in ("read_speed", "write_speed"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive (bytes a second), got {getattr(self, name)}.")

    def latency(self, parent_bytes: float, child_bytes: float) -> float:
        """Seconds of a rebuild: the parent is read whole."""
        return self.overhead + parent_bytes / self.read_speed + child_bytes / self.write_speed


@dataclass(frozen=True)
class RowRecipe:
    """A child as rows of its parent: where they stand, how often each occurs, and the child's types.

    Attributes
    ----------
    steps : array
        First position, then the differences between the sorted positions.
    counts : array or None
        Occurrences of each row in the child; None when all are 1.
    dtypes : dict
        Column -> type of the child.
    """

    steps: NDArray[np.unsignedinteger]
    counts: NDArray[np.unsignedinteger] | None
    dtypes: dict[str, object] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes the recipe takes."""
        return int(self.steps.nbytes + (0 if self.counts is None else self.counts.nbytes))

    def rebuild(self, parent: TableHandle) -> pd.DataFrame:
        """Read the rows back from `parent`, in its order; each row as often as the child had it."""
        positions = np.cumsum(self.steps, dtype=np.int64)
        if self.counts is not None:
            positions = np.repeat(positions, self.counts.astype(np.int64))
        parts, start = [], 0
        for batch in parent.iter_batches(list(self.dtypes)):
            stop = start + len(batch)
            parts.append(batch.iloc[positions[(positions >= start) & (positions < stop)] - start])
            start = stop
        rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(self.dtypes))
        return rows.astype(self.dtypes)  # type: ignore[arg-type]


def row_recipe(child: TableHandle, parent: TableHandle, tolerance: float = 0.0) -> RowRecipe | None:
    """Recipe of `child` as positions in `parent`, or None if some row is not there. Reads both tables.

    With a tolerance the rebuilt numbers are the parent's, equal within it.
    """
    columns = list(child.schema())
    found = matching_rows(child, parent, columns, tolerance)
    if (found < 0).any():
        return None
    positions, counts = np.unique(found, return_counts=True)
    batch = next(iter(child.iter_batches(columns)), pd.DataFrame(columns=columns))
    dtypes: dict[str, object] = dict(batch.dtypes.items())  # type: ignore[arg-type]
    return RowRecipe(
        _smallest(np.diff(positions, prepend=0)), None if (counts == 1).all() else _smallest(counts), dtypes
    )


def _smallest(values: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


@dataclass(frozen=True)
class RetentionPlan:
    """What to keep, and how to get back what is dropped. It is a proposal: nothing is deleted.

    Attributes
    ----------
    keep, drop : list of str
    rebuild_from : dict of str to str
        Dropped table -> the kept table it is rebuilt from.
    objective : float
        Cost of the plan for one period.
    savings : float
        What keeping everything costs more.
    unverified_edges : list of (parent, child)
        Rebuilds resting on a containment that no complete comparison has confirmed.
    latency : dict of str to float
        Seconds to rebuild each dropped table.
    gap : float
        Relative distance of the objective to a proven lower bound; 0 means optimal.
    solver : str
        "milp", "chain" or "greedy".
    refused : list of str
        Tables that could be rebuilt but have too few distinct rows for their containment to mean anything.
    """

    keep: list[str]
    drop: list[str]
    rebuild_from: dict[str, str]
    objective: float
    savings: float
    unverified_edges: list[Edge]
    latency: dict[str, float]
    gap: float
    solver: str
    refused: list[str] = field(default_factory=list)


def retention_plan(
    graph: nx.DiGraph,
    num_bytes: Mapping[str, float],
    costs: Costs,
    accesses: Mapping[str, float],
    max_latency: float,
    recipes: Mapping[Edge, float] | None = None,
    *,
    maintenance: Mapping[str, float] | None = None,
    solver: str = "milp",
) -> RetentionPlan:
    """Cheapest choice of tables to keep (step 5).

    Parameters
    ----------
    graph : DiGraph
        Edges parent -> child; the edge attribute ``exact`` says whether containment was confirmed on all rows.
    num_bytes : mapping
        Table -> S, its size.
    costs : Costs
    accesses : mapping
        Table -> a, its expected reads a period; 0 where absent.
    max_latency : float
        Seconds a rebuild may take. 0 keeps everything.
    recipes : mapping, optional
        Edge -> bytes of the recipe that rebuilds the child; an edge without one cannot be used. None stands for
        recipes of no size on every edge.
    maintenance : mapping, optional
        Table -> f, its maintenance passes a period; 0 where absent.
    solver : {"milp", "chain", "greedy"}
        "milp" is exact (HiGHS) and gives way to "greedy" above 20,000 usable edges; "chain" is the dynamic
        programme for tables that contain each other in one line.

    Returns
    -------
    RetentionPlan

    Raises
    ------
    ValueError
        For a missing size, negative reads or latency, an unknown solver, or "chain" on another graph.

    Examples
    --------
    >>> lake = nx.DiGraph([("all", "2023"), ("all", "2024")])
    >>> plan = retention_plan(lake, {"all": 9.0, "2023": 4.0, "2024": 5.0}, Costs(1.0, read=1.0), {"2024": 3}, 60)
    >>> plan.keep, plan.rebuild_from, plan.savings
    (['2024', 'all'], {'2023': 'all'}, 4.0)
    """
    passes = maintenance or {}
    _check_plan(graph, num_bytes, {"accesses": accesses, "maintenance": passes}, max_latency, solver)
    tables = sorted(graph.nodes)
    kept = {v: costs.store * num_bytes[v] + costs.maintain * passes.get(v, 0.0) * num_bytes[v] for v in tables}
    latency = {(u, v): costs.latency(num_bytes[u], num_bytes[v]) for u, v in graph.edges}
    usable = [
        edge
        for edge in sorted(graph.edges)
        if 0 < max_latency >= latency[edge] and edge[0] != edge[1] and (recipes is None or edge in recipes)
    ]
    rebuilt = {
        (u, v): accesses.get(v, 0.0) * (costs.read * num_bytes[u] + costs.write * num_bytes[v])
        + costs.store * (0.0 if recipes is None else recipes[u, v])
        for u, v in usable
    }
    if solver == "milp" and len(usable) > MILP_EDGES:
        solver = "greedy"
    if solver == "milp":
        source, gap = solve_milp(kept, rebuilt)
    elif solver == "chain":
        source, gap = solve_chains(graph, num_bytes, kept, rebuilt), 0.0
    else:
        source, gap = solve_greedy(kept, rebuilt)
    objective = sum(kept[v] for v in tables if v not in source) + sum(rebuilt[u, v] for v, u in source.items())
    return RetentionPlan(
        keep=[v for v in tables if v not in source],
        drop=sorted(source),
        rebuild_from=dict(sorted(source.items())),
        objective=objective,
        savings=sum(kept.values()) - objective,
        unverified_edges=sorted((u, v) for v, u in source.items() if not graph.edges[u, v].get("exact")),
        latency={v: latency[source[v], v] for v in sorted(source)},
        gap=gap,
        solver=solver,
    )


def _check_plan(
    graph: nx.DiGraph,
    num_bytes: Mapping[str, float],
    rates: Mapping[str, Mapping[str, float]],
    max_latency: float,
    solver: str,
) -> None:
    missing = sorted(str(v) for v in graph.nodes if v not in num_bytes)
    if missing:
        raise ValueError(f"num_bytes lacks the size of the table(s) {missing}: give one for each table of the graph.")
    negative = sorted(str(v) for v in graph.nodes if not num_bytes[v] >= 0)
    if negative:
        raise ValueError(f"num_bytes must not be negative; check the table(s) {negative}.")
    for name, values in rates.items():
        wrong = sorted(str(v) for v, value in values.items() if not value >= 0)
        if wrong:
            raise ValueError(f"{name} must not be negative; check the table(s) {wrong}.")
    if not max_latency >= 0:
        raise ValueError(f"max_latency must be 0 or more seconds, got {max_latency}.")
    if solver not in ("milp", "chain", "greedy"):
        raise ValueError(f"solver must be 'milp', 'chain' or 'greedy', got {solver!r}.")


def solve_milp(kept: Mapping[str, float], rebuilt: Mapping[Edge, float]) -> tuple[dict[str, str], float]:
    """Solve the integer programme of step 5 with HiGHS; returns dropped table -> source, and the gap left.

    Minimise ``sum keep_v K_v + sum use_uv R_uv`` subject to ``keep_v + sum_u use_uv >= 1`` and ``use_uv <= keep_u``.
    """
    tables, edges = list(kept), list(rebuilt)
    if not edges:
        return {}, 0.0
    place = {v: i for i, v in enumerate(tables)}
    n, m = len(tables), len(edges)
    target = np.array([place[v] for _, v in edges])
    source = np.array([place[u] for u, _ in edges])
    use = n + np.arange(m)
    cover = coo_array(
        (np.ones(n + m), (np.concatenate([np.arange(n), target]), np.concatenate([np.arange(n), use]))),
        shape=(n, n + m),
    )
    linked = coo_array(
        (
            np.concatenate([np.ones(m), -np.ones(m)]),
            (np.concatenate([np.arange(m), np.arange(m)]), np.concatenate([use, source])),
        ),
        shape=(m, n + m),
    )
    prices = np.array([*kept.values(), *rebuilt.values()])
    scale = prices.max() or 1.0  # the solver's tolerances are absolute
    result = milp(
        prices / scale,
        constraints=[LinearConstraint(cover.tocsr(), lb=1), LinearConstraint(linked.tocsr(), ub=0)],
        integrality=np.ones(n + m, dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise RuntimeError(f"The solver found no retention plan: {result.message}")
    keep = result.x[:n] > 0.5
    best: dict[str, str] = {}
    for j in np.flatnonzero(result.x[n:] > 0.5):
        u, v = edges[j]
        if not keep[place[v]] and (v not in best or rebuilt[u, v] < rebuilt[best[v], v]):
            best[v] = u
    return best, float(result.mip_gap or 0.0)


def solve_greedy(kept: Mapping[str, float], rebuilt: Mapping[Edge, float]) -> tuple[dict[str, str], float]:
    """Take the rebuild with the largest saving first; the gap is to ``sum_v min(keep, cheapest rebuild)``."""
    source: dict[str, str] = {}
    needed: set[str] = set()
    for u, v in sorted(rebuilt, key=lambda edge: rebuilt[edge] - kept[edge[1]]):
        if rebuilt[u, v] < kept[v] and v not in needed and v not in source and u not in source:
            source[v] = u
            needed.add(u)
    cheapest = dict(kept)
    for (_, v), cost in rebuilt.items():
        cheapest[v] = min(cheapest[v], cost)
    bound = sum(cheapest.values())
    objective = sum(cost for v, cost in kept.items() if v not in source) + sum(rebuilt[u, v] for v, u in source.items())
    return source, 0.0 if objective <= bound else (objective - bound) / objective


def solve_chains(
    graph: nx.DiGraph, num_bytes: Mapping[str, float], kept: Mapping[str, float], rebuilt: Mapping[Edge, float]
) -> dict[str, str]:
    """Dynamic programme over each line of tables v1 > v2 > ...; dropped table -> nearest kept one before it.

    Raises
    ------
    ValueError
        If a component is not one line, or a farther source can be cheaper than a nearer one.
    """
    source: dict[str, str] = {}
    for component in nx.weakly_connected_components(graph):
        line = graph.subgraph(component)
        n = len(line)
        if line.number_of_edges() != n * (n - 1) // 2 or not nx.is_directed_acyclic_graph(line):
            raise ValueError(
                f"solver='chain' needs tables that contain each other in one line; {sorted(component)[:5]} do not. "
                "Use solver='milp'."
            )
        source |= best_chain(list(nx.topological_sort(line)), kept, rebuilt)
    return source


def best_chain(order: Sequence[str], kept: Mapping[str, float], rebuilt: Mapping[Edge, float]) -> dict[str, str]:
    """``best(j) = keep_j + min_{i<j} [best(i) + sum_{i<l<j} rebuild(i -> l)]``, the first table kept; O(n^2)."""
    n = len(order)
    price = np.triu(np.array([[rebuilt.get((u, v), math.inf) for v in order] for u in order]), 1)
    for i in range(n - 2):
        if (price[i + 1, i + 2 :] > price[i, i + 2 :]).any():
            raise ValueError(
                f"Rebuilding from {order[i]!r} can be cheaper than from {order[i + 1]!r}, which it contains: "
                "solver='chain' needs nearer sources to be the cheapest. Use solver='milp'."
            )
    between = np.cumsum(price, axis=1)  # [i, j - 1]: rebuild everything between i and j from i
    best, previous = np.full(n + 1, math.inf), np.zeros(n + 1, dtype=int)
    best[0] = kept[order[0]]
    for j in range(1, n + 1):  # n is the end of the line, kept for nothing
        totals = best[:j] + between[:j, j - 1]
        previous[j] = int(totals.argmin())
        best[j] = totals.min() + (kept[order[j]] if j < n else 0.0)
    source: dict[str, str] = {}
    j = n
    while j > 0:
        i = int(previous[j])
        source |= dict.fromkeys(order[i + 1 : j], order[i])
        j = i
    return source


__all__ = ["Costs", "RetentionPlan", "RowRecipe", "retention_plan", "row_recipe"]

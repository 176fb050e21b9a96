import io
import itertools

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits, load_wine

import models.validate.retention as retention
from models.validate.retention import Costs, retention_plan, row_recipe
from models.validate.tables import FrameTable, ParquetTable


def random_lake(rng, n):
    """A transitive DAG with sizes, prices and recipes."""
    names = [f"t{i:02d}" for i in range(n)]
    order = nx.DiGraph()
    order.add_nodes_from(names)
    order.add_edges_from((u, v) for u, v in itertools.combinations(names, 2) if rng.random() < 0.25)
    graph = nx.transitive_closure_dag(order)
    size = {v: float(rng.integers(1, 100)) for v in names}
    costs = Costs(
        store=rng.uniform(0.1, 1),
        maintain=rng.uniform(0, 0.2),
        read=rng.uniform(0, 0.3),
        write=rng.uniform(0, 0.3),
        read_speed=1.0,
    )
    return {
        "graph": graph,
        "num_bytes": size,
        "costs": costs,
        "accesses": {v: float(rng.integers(0, 4)) for v in names},
        "max_latency": float(rng.integers(20, 120)),
        "recipes": {edge: float(rng.integers(0, 20)) for edge in graph.edges if rng.random() < 0.8},
        "maintenance": {v: float(rng.integers(0, 3)) for v in names},
    }


def cheapest_by_enumeration(graph, num_bytes, costs, accesses, max_latency, recipes, maintenance):
    """Objective of the best subset of tables to keep, over all 2^n."""
    names = sorted(graph.nodes)
    n = len(names)
    kept = np.array([costs.store * num_bytes[v] + costs.maintain * maintenance[v] * num_bytes[v] for v in names])
    price = np.full((n, n), np.inf)
    for (i, u), (j, v) in itertools.product(enumerate(names), repeat=2):
        if (u, v) in recipes and num_bytes[u] / costs.read_speed + num_bytes[v] / costs.write_speed <= max_latency:
            price[i, j] = (
                accesses[v] * (costs.read * num_bytes[u] + costs.write * num_bytes[v]) + costs.store * recipes[u, v]
            )
    keep = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
    rebuild = np.where(keep[:, :, None], price, np.inf).min(axis=1)
    return np.where(keep, kept, rebuild).sum(axis=1).min()


def objective_of(plan, graph, num_bytes, costs, accesses, max_latency, recipes, maintenance):
    """Cost of a plan counted anew, with its constraints checked."""
    assert set(plan.keep) | set(plan.drop) == set(graph.nodes)
    assert not set(plan.keep) & set(plan.drop)
    total = sum(num_bytes[v] * (costs.store + costs.maintain * maintenance[v]) for v in plan.keep)
    for child, parent in plan.rebuild_from.items():
        assert parent in plan.keep, "the source of a rebuild must be kept"
        assert plan.latency[child] == costs.latency(num_bytes[parent], num_bytes[child]) <= max_latency
        total += accesses[child] * (costs.read * num_bytes[parent] + costs.write * num_bytes[child])
        total += costs.store * recipes[parent, child]
    return total


def test_milp_equals_enumeration_on_200_random_lakes():
    rng = np.random.default_rng(0)
    dropped = 0
    for _ in range(200):
        lake = random_lake(rng, int(rng.integers(2, 13)))
        plan = retention_plan(**lake)
        assert plan.objective == pytest.approx(objective_of(plan, **lake))
        assert plan.objective == pytest.approx(cheapest_by_enumeration(**lake), rel=1e-6)
        assert plan.savings >= -1e-9
        assert plan.gap < 1e-6
        dropped += len(plan.drop)
    assert dropped > 100


def test_chain_equals_milp_on_200_random_chains():
    rng = np.random.default_rng(1)
    dropped = 0
    for _ in range(200):
        lake = random_lake(rng, int(rng.integers(2, 12)))
        names = sorted(lake["graph"].nodes)
        lake["graph"] = nx.DiGraph(itertools.combinations(names, 2))
        falling = np.sort(list(lake["num_bytes"].values()))[::-1]
        lake["num_bytes"] = dict(zip(names, falling.tolist(), strict=True))
        weight = {v: float(rng.integers(0, 20)) for v in names}
        lake["recipes"] = {(u, v): weight[v] for u, v in lake["graph"].edges}
        chain, exact = retention_plan(**lake, solver="chain"), retention_plan(**lake)
        assert chain.objective == pytest.approx(objective_of(chain, **lake))
        assert chain.objective == pytest.approx(exact.objective, rel=1e-6)
        assert chain.solver == "chain"
        dropped += len(chain.drop)
    assert dropped > 100


def test_chains_are_checked():
    size = {"a": 9.0, "b": 5.0, "c": 2.0}
    fork = nx.DiGraph([("a", "b"), ("a", "c")])
    with pytest.raises(ValueError, match="contain each other in one line"):
        retention_plan(fork, size, Costs(1.0), {}, 9, solver="chain")
    line = nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")])
    with pytest.raises(ValueError, match="Rebuilding from 'a' can be cheaper than from 'b'"):
        retention_plan(line, size, Costs(1.0), {}, 9, {("a", "b"): 0, ("b", "c"): 5, ("a", "c"): 1}, solver="chain")


def test_greedy_is_feasible_never_beats_milp_and_reports_its_gap(monkeypatch):
    rng = np.random.default_rng(2)
    gaps = []
    for _ in range(60):
        lake = random_lake(rng, 12)
        greedy, exact = retention_plan(**lake, solver="greedy"), retention_plan(**lake)
        assert greedy.objective == pytest.approx(objective_of(greedy, **lake))
        assert greedy.objective >= exact.objective - 1e-9
        assert greedy.objective * (1 - greedy.gap) <= exact.objective + 1e-9
        gaps.append(greedy.objective / exact.objective - 1)
    assert 0 < np.mean(gaps) < 0.05
    monkeypatch.setattr(retention, "MILP_EDGES", 0)
    assert retention_plan(**lake).solver == "greedy"


def test_no_latency_allowed_keeps_everything():
    lake = random_lake(np.random.default_rng(3), 10) | {"max_latency": 0.0, "costs": Costs(1.0)}
    plan = retention_plan(**lake)
    assert plan.drop == []
    assert plan.savings == 0


def test_free_rebuilds_keep_one_table_of_each_source_component():
    graph = nx.DiGraph([("a", "b"), ("b", "a"), ("a", "c"), ("b", "c"), ("d", "c"), ("d", "e"), ("e", "d"), ("e", "c")])
    graph.add_node("alone")
    size = dict.fromkeys(graph.nodes, 3.0) | {"a": 2.0}
    plan = retention_plan(graph, size, Costs(1.0), {}, 1.0)
    condensed = nx.condensation(graph)
    sources = [condensed.nodes[c]["members"] for c in condensed if condensed.in_degree(c) == 0]
    assert len(plan.keep) == len(sources) == 3
    assert all(len(members & set(plan.keep)) == 1 for members in sources)
    assert "a" in plan.keep, "the cheaper of two equals stays"


def test_unverified_edges_are_named():
    graph = nx.DiGraph()
    graph.add_edge("a", "b", exact=True)
    graph.add_edge("a", "c", exact=None)
    plan = retention_plan(graph, {"a": 9.0, "b": 1.0, "c": 1.0}, Costs(1.0), {}, 1.0)
    assert plan.drop == ["b", "c"]
    assert plan.unverified_edges == [("a", "c")]


def sorted_bytes(frame):
    """Every row as text, sorted, with the types."""
    return list(frame.dtypes), sorted(map(repr, frame.itertuples(index=False, name=None)))


@pytest.mark.parametrize("form", ["frame", "parquet"])
def test_recipes_rebuild_byte_identical_rows(form):
    def table(name, frame):
        if form == "frame":
            return FrameTable(name, frame)
        buffer = io.BytesIO()
        frame.to_parquet(buffer, row_group_size=100)
        return ParquetTable(name, buffer)

    digits = load_digits(as_frame=True).frame
    wine = load_wine(as_frame=True).frame.assign(label=lambda f: f.target.map({0: "a", 1: None, 2: "c"}))
    rng = np.random.default_rng(0)
    for base in (digits, wine):
        parent = table("p", base)
        children = [
            base[base.target > 1],
            base.sample(frac=0.3, random_state=0),
            base.iloc[rng.permutation(len(base))][[*base.columns[::-2]]],
            base.iloc[rng.integers(0, len(base), 500)],
            base.assign(target=base.target.astype(float))[:40],
            base[:0],
        ]
        for i, frame in enumerate(children):
            child = table(f"c{i}", frame.reset_index(drop=True))
            recipe = row_recipe(child, parent)
            rebuilt = recipe.rebuild(parent)
            parts = list(child.iter_batches(list(rebuilt.columns)))
            wanted = pd.concat(parts) if parts else rebuilt[:0]
            assert sorted_bytes(rebuilt) == sorted_bytes(wanted)
            assert recipe.nbytes <= max(1, len(frame)) * 3
            assert (recipe.counts is not None) == frame.duplicated().any()
        assert row_recipe(table("x", base.assign(target=7)[:30]), parent) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bytes": {"a": 1.0}}, r"lacks the size of the table\(s\) \['b'\]"),
        ({"num_bytes": {"a": 1.0, "b": -1.0}}, r"num_bytes must not be negative.*\['b'\]"),
        ({"accesses": {"a": -1}}, r"accesses must not be negative.*\['a'\]"),
        ({"maintenance": {"b": float("nan")}}, "maintenance must not be negative"),
        ({"max_latency": -1}, "max_latency must be 0 or more seconds, got -1"),
        ({"solver": "simplex"}, "solver must be 'milp', 'chain' or 'greedy', got 'simplex'"),
    ],
)
def test_bad_plans_are_explained(change, message):
    given = {
        "graph": nx.DiGraph([("a", "b")]),
        "num_bytes": {"a": 2.0, "b": 1.0},
        "costs": Costs(1.0),
        "accesses": {},
        "max_latency": 1.0,
    }
    assert retention_plan(**given).drop == ["b"]
    with pytest.raises(ValueError, match=message):
        retention_plan(**given | change)


def test_bad_costs_are_explained():
    with pytest.raises(ValueError, match="The cost 'read' must not be negative, got -1"):
        Costs(1.0, read=-1)
    with pytest.raises(ValueError, match="read_speed must be positive"):
        Costs(1.0, read_speed=0)
    assert Costs(1, read_speed=2, write_speed=5, overhead=1).latency(10, 20) == 1 + 5 + 4

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import models.validate.containment as containment
from models.validate.containment import (
    Probe,
    content_prune,
    count_missing,
    exact_prune,
    min_max_prune,
    sample_size,
    schema_containment_graph,
)
from models.validate.rows import encode_rows
from models.validate.tables import ColumnStats, FrameTable

LETTERS = list("abcdefgh")


def pair(parent, child):
    """Graph of one edge p -> c over these frames or tables."""
    tables = {
        name: frame if isinstance(frame, FrameTable) else FrameTable(name, frame)
        for name, frame in (("p", parent), ("c", child))
    }
    return nx.DiGraph([("p", "c")]), tables


class Told(FrameTable):
    """A frame whose statistics are whatever the test says."""

    def __init__(self, name, frame, stats):
        super().__init__(name, frame)
        self.told = stats

    def stats(self):
        return self.told


@pytest.mark.parametrize("seed", range(20))
def test_schema_graph_equals_all_pairs(seed):
    rng = np.random.default_rng(seed)
    schemas = {f"t{i}": set(rng.choice(LETTERS, rng.integers(1, 8), replace=False)) for i in range(60)}
    wanted = {(p, q) for p in schemas for q in schemas if p != q and schemas[q] <= schemas[p]}
    graph = schema_containment_graph(schemas)
    assert set(graph.edges) == wanted
    assert set(graph.nodes) == set(schemas)


@pytest.mark.parametrize("seed", range(20))
def test_clusters_lose_nothing_when_tables_come_in_any_order(seed):
    rng = np.random.default_rng(seed)
    schemas = {f"t{i}": set(rng.choice(LETTERS, rng.integers(1, 8), replace=False)) for i in range(40)}
    clusters, edges = containment.SchemaClusters(), set()
    for name in rng.permutation(list(schemas)):
        parents, children = clusters.add(name, schemas[name])
        edges |= {(parent, name) for parent in parents} | {(name, child) for child in children}
    assert edges == {(p, q) for p in schemas for q in schemas if p != q and schemas[q] <= schemas[p]}


def test_a_table_joins_every_cluster_whose_centre_contains_it():
    graph = schema_containment_graph({"left": "abcx", "right": "abyz", "both": "ab"})
    assert set(graph.edges) == {("left", "both"), ("right", "both")}


def test_schemas_must_have_columns():
    with pytest.raises(ValueError, match=r"\['t'\] have an empty schema"):
        schema_containment_graph({"t": []})


@pytest.mark.parametrize(
    ("parent", "child", "why"),
    [
        ({"a": [0, 9]}, {"a": [-1, 5]}, "goes down to -1"),
        ({"a": [0, 9]}, {"a": [1.5, 9.5]}, "goes up to 9.5"),
        ({"a": ["b", "d"]}, {"a": ["a"]}, "goes down to 'a'"),
        ({"a": pd.to_datetime(["2024-01-01"])}, {"a": pd.to_datetime(["2025-01-01"])}, "goes up to"),
        ({"a": [1.0, 2.0]}, {"a": [1.0, None]}, "has nulls"),
        ({"a": pd.Series([], dtype=float)}, {"a": [1.0]}, "the parent is empty"),
    ],
)
def test_statistics_cut_what_cannot_be_contained(parent, child, why):
    graph, tables = pair(pd.DataFrame(parent), pd.DataFrame(child))
    pruned, reasons = min_max_prune(graph, tables)
    assert not pruned.edges
    assert why in reasons["p", "c"]
    assert graph.edges, "the graph given is not changed"


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        ({"a": [0, 9]}, {"a": [0.0, 9.0]}),
        ({"a": [1.0, None]}, {"a": [None, None]}),
        ({"a": [1]}, {"a": pd.Series([], dtype=float)}),
        ({"a": ["x"]}, {"a": [1]}),
        ({"a": pd.Series([1, "x"], dtype=object)}, {"a": ["z"]}),
        ({"a": pd.to_datetime(["2024-01-01"])}, {"a": pd.to_datetime(["2025-01-01"], utc=True)}),
        ({"a": [0.0]}, {"a": [-0.0]}),
        ({"a": [1]}, {"a": [1, 1, 1]}),
    ],
)
def test_statistics_that_say_nothing_sure_cut_nothing(parent, child):
    graph, tables = pair(pd.DataFrame(parent), pd.DataFrame(child))
    assert min_max_prune(graph, tables)[0].edges


def test_missing_and_inexact_statistics_never_cut():
    frame = pd.DataFrame({"a": ["m"]})
    wide = {"a": ColumnStats("a", "z", 1, False)}
    for stats in (None, {}, {"a": ColumnStats("m", "m", None, False)}):
        graph, tables = pair(Told("p", frame, stats), Told("c", frame, wide))
        assert min_max_prune(graph, tables)[0].edges


def test_bags_need_as_many_rows_and_tolerance_widens_bounds():
    graph, tables = pair(pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 1, 2]}))
    assert min_max_prune(graph, tables)[0].edges
    assert "3 rows, the parent 2" in min_max_prune(graph, tables, "bag")[1]["p", "c"]
    graph, tables = pair(pd.DataFrame({"a": [0.3]}), pd.DataFrame({"a": [0.1 + 0.2]}))
    assert not min_max_prune(graph, tables)[0].edges
    assert min_max_prune(graph, tables, tolerance=1e-9)[0].edges


@pytest.mark.parametrize("bounds", [(1, "z"), (2, 1)])
def test_bounds_that_do_not_compare_are_an_error(bounds):
    graph, tables = pair(
        Told("p", pd.DataFrame({"a": [1]}), {"a": ColumnStats(*bounds, 0, True)}), pd.DataFrame({"a": [1]})
    )
    with pytest.raises(ValueError, match=r"statistics of 'p' give column 'a'.*do not compare"):
        min_max_prune(graph, tables)


def test_sample_size_is_the_bound():
    assert sample_size(0.1, 0.01) == 44
    assert 0.9**44 <= 0.01 < 0.9**43
    assert sample_size(0.5, 0.5) == 1


def test_one_pass_serves_all_children_and_ends_early():
    parent = FrameTable("p", pd.DataFrame({"a": np.arange(300_000), "b": np.arange(300_000) % 7}))
    probes = [
        Probe("front", ("a", "b"), encode_rows(pd.DataFrame({"a": [1, 8], "b": [1, 1]}), ["a", "b"])),
        Probe("column", ("b",), encode_rows(pd.DataFrame({"b": [0, 6, 6]}), ["b"])),
    ]
    missing, read = count_missing(parent, probes)
    assert missing == {"front": 0, "column": 0}
    assert read == 65_536
    probes.append(Probe("absent", ("b",), encode_rows(pd.DataFrame({"b": [0, 9, 9]}), ["b"])))
    missing, read = count_missing(parent, probes)
    assert missing == {"front": 0, "column": 0, "absent": 2}
    assert read == 300_000


def test_bags_count_occurrences():
    parent = FrameTable("p", pd.DataFrame({"a": [1, 1, 2, 3]}))
    probes = [Probe("c", ("a",), encode_rows(pd.DataFrame({"a": [1, 1, 1, 2, 2, 4]}), ["a"]))]
    assert count_missing(parent, probes, "set")[0] == {"c": 1}
    assert count_missing(parent, probes, "bag")[0] == {"c": 1 + 1 + 1}


def test_a_child_below_one_minus_epsilon_survives_as_rarely_as_the_bound_says():
    rng = np.random.default_rng(0)
    base = pd.DataFrame({"x": rng.permutation(5000), "y": rng.normal(size=5000)})
    survived = 0
    for seed in range(300):
        child = base.sample(1000, random_state=seed).reset_index(drop=True)
        child.loc[rng.choice(1000, 100, replace=False), "y"] += 1e-9
        graph, tables = pair(base, child)
        survived += len(content_prune(graph, tables, sample_rows=20, seed=seed)[0].edges)
    assert survived / 300 <= 0.9**20 + 3 * np.sqrt(0.12 * 0.88 / 300)
    assert survived > 0, "a sample of 20 must let some through, or the test says nothing"


def test_fewer_columns_stay_sound():
    rng = np.random.default_rng(1)
    base = pd.DataFrame(rng.integers(0, 50, (800, 10)), columns=[f"c{i}" for i in range(10)])
    graph, tables = pair(base, base.sample(300, random_state=0))
    for seed in range(10):
        kept, _, _ = content_prune(graph, tables, sample_rows=10, sample_columns=2, seed=seed)
        assert kept.edges["p", "c"]["sampled_rows"] > 10


@pytest.mark.parametrize("semantics", ["set", "bag"])
def test_extreme_rows_drawn_twice_do_not_break_bags(semantics):
    base = pd.DataFrame({"x": np.arange(200.0)})
    graph, tables = pair(base, base[50:150])
    for seed in range(20):
        assert content_prune(graph, tables, 30, semantics=semantics, seed=seed)[0].edges


def test_exact_check_in_parts_equals_the_whole(monkeypatch):
    rng = np.random.default_rng(2)
    base = pd.DataFrame({"x": rng.integers(0, 40, 400)})
    children = {f"c{i}": pd.DataFrame({"x": rng.integers(0, 41 + i % 2, 90)}) for i in range(6)}
    tables = {name: FrameTable(name, frame) for name, frame in {"p": base, **children}.items()}
    graph = nx.DiGraph([("p", name) for name in children])
    results = []
    for limit in (5_000_000, 100, 20):
        monkeypatch.setattr(containment, "ROWS_IN_MEMORY", limit)
        kept, reasons, read = exact_prune(graph, tables, "bag")
        results.append((set(kept.edges), reasons))
        assert read >= 400 + 6 * 90
    assert results[0] == results[1] == results[2]
    assert len(results[0][0]) + len(results[0][1]) == 6

import io
import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import NotFittedError

from models.registry import get_method
from models.validate.r2d2 import R2D2, Costs
from models.validate.tables import FrameTable, ParquetTable, matching_rows


def derived(name, base, rng):
    """Copies, parts and near-copies of a table; the last five are traps."""
    column = base.columns[0]
    some = base.sample(frac=0.4, random_state=int(rng.integers(1000)))
    cell = some.reset_index(drop=True).copy()
    cell.loc[3, column] = (base[column].min() + base[column].max()) / 2 + 1e-6
    row = some.astype(float).reset_index(drop=True)
    row.iloc[5] = row.iloc[5].to_numpy() + 1e-7
    nulls = some.astype(float).reset_index(drop=True)
    nulls.loc[2, column] = None
    tables = {
        "base": base,
        "copy": base.copy(),
        "columns": base[list(base.columns[:3])],
        "filter": base[base[column] > base[column].median()],
        "some": some,
        "shuffled": base.sample(frac=1, random_state=0)[list(base.columns[::-1])],
        "floats": some.astype(float),
        "doubled": pd.concat([some, some]),
        "union": pd.concat([some, base[:30]]),
        "empty": base[:0],
        "cell": cell,
        "row": row,
        "renamed": some.rename(columns={column: "other"}),
        "nulls": nulls,
        "shifted": some + 1000,
    }
    return [FrameTable(f"{name}.{kind}", frame) for kind, frame in tables.items()]


def small_lake(seed=0):
    rng = np.random.default_rng(seed)
    loaders = {"iris": load_iris, "cancer": load_breast_cancer}
    return [table for name, load in loaders.items() for table in derived(name, load(as_frame=True).frame, rng)]


def truth(tables, semantics="set"):
    """All pairs, compared as plain Python tuples."""
    frames = {table.name: table.frame.astype(float).fillna(-99.5) for table in tables}
    counted = {}

    def rows(name, columns):
        if (name, columns) not in counted:
            counted[name, columns] = Counter(map(tuple, frames[name][list(columns)].to_numpy().tolist()))
        return counted[name, columns]

    edges = set()
    for parent, child in itertools.permutations(frames, 2):
        columns = tuple(sorted(frames[child].columns))
        if set(columns) <= set(frames[parent].columns):
            have, want = rows(parent, columns), rows(child, columns)
            if all(have[row] >= (count if semantics == "bag" else 1) for row, count in want.items()):
                edges.add((parent, child))
    return edges


@pytest.fixture(scope="module")
def lake():
    tables = small_lake()
    return tables, truth(tables), truth(tables, "bag")


def test_it_is_registered_for_the_validate_stage():
    card = get_method("r2d2")
    assert (card.stage, card.cls) == ("validate", R2D2)
    assert set(card.accepts) == {"table", "image", "text", "embedding"}


@pytest.mark.parametrize("semantics", ["set", "bag"])
def test_no_stage_loses_a_true_edge_and_exact_equals_brute_force(lake, semantics):
    tables, as_sets, as_bags = lake
    wanted = as_sets if semantics == "set" else as_bags
    found = R2D2(verify="exact", semantics=semantics, random_state=0).fit(tables)
    sizes = [len(edges) for edges in found.edges_by_stage_.values()]
    assert list(found.edges_by_stage_) == ["schema", "minmax", "content", "exact"]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert all(wanted <= edges for edges in found.edges_by_stage_.values())
    assert set(found.graph_.edges) == wanted
    assert as_bags < as_sets
    assert all(told["exact"] is True and told["stage"] == "exact" for _, _, told in found.graph_.edges(data=True))


def test_false_edges_that_survive_the_sample_are_nearly_contained(lake):
    tables, wanted, _ = lake
    by_name = {table.name: table for table in tables}
    found = R2D2(random_state=1).fit(tables)
    assert set(found.timings_) == {"schema", "minmax", "content"}
    for parent, child in set(found.graph_.edges) - wanted:
        columns = list(by_name[child].schema())
        assert (matching_rows(by_name[child], by_name[parent], columns) >= 0).mean() > 0.9
    assert found.rows_read_["content"] <= 2 * sum(table.num_rows for table in tables)
    assert all(told["exact"] is None for _, _, told in found.graph_.edges(data=True))


def test_parquet_gives_the_edges_of_frames(lake):
    tables, wanted, _ = lake
    stored = []
    for table in tables:
        buffer = io.BytesIO()
        table.frame.to_parquet(buffer, row_group_size=100)
        stored.append(ParquetTable(table.name, buffer))
    assert set(R2D2(verify="exact", random_state=0, n_jobs=2).fit(stored).graph_.edges) == wanted


def test_duplicates_are_grouped(lake):
    tables, _, _ = lake
    groups = R2D2(verify="exact", random_state=0).fit(tables).duplicates_
    assert {"iris.base", "iris.copy", "iris.shuffled"} <= set(next(g for g in groups if "iris.base" in g))


def test_adding_tables_later_gives_the_same_graph(lake):
    tables, wanted, _ = lake
    order = np.random.default_rng(0).permutation(len(tables))
    grown = R2D2(verify="exact", random_state=0)
    for part in np.array_split(order, 2):
        grown.partial_fit([tables[i] for i in part])
    whole = R2D2(verify="exact", random_state=0).fit(tables)
    assert set(grown.graph_.edges) == wanted == set(whole.graph_.edges)
    assert grown.edges_by_stage_ == whole.edges_by_stage_
    assert grown.duplicates_ == whole.duplicates_
    with pytest.raises(ValueError, match=f"Two tables are named '{tables[0].name}'"):
        grown.partial_fit(tables[:1])


def test_equal_seeds_give_equal_graphs_and_nothing_else_is_touched(lake):
    tables, _, _ = lake
    before = [table.frame.copy() for table in tables]
    state = np.random.get_state()[1].copy()
    first, second = (R2D2(random_state=3, sample_rows=5, n_jobs=jobs).fit(tables) for jobs in (1, 2))
    assert set(first.graph_.edges) == set(second.graph_.edges)
    assert set(clone(first).fit(tables[::-1]).graph_.edges) == set(first.graph_.edges)
    assert (np.random.get_state()[1] == state).all()
    for table, frame in zip(tables, before, strict=True):
        pd.testing.assert_frame_equal(table.frame, frame)


def test_a_leaked_test_split_of_images_is_an_edge():
    digits = load_digits()
    content = pd.DataFrame({"content": [image.tobytes() for image in digits.images], "id": np.arange(1797)})
    train, test = content[:1500], content[1500:]
    leaky = pd.concat([train, test]).assign(id=lambda frame: frame.id + 5000)
    found = R2D2(ignore_columns=["id"], verify="exact", random_state=0)
    found.fit([FrameTable("train", train), FrameTable("test", test), FrameTable("leaky", leaky)])
    assert set(found.graph_.edges) == {("leaky", "test"), ("leaky", "train")}


def test_options_of_columns_and_floats():
    tables = [FrameTable("p", pd.DataFrame({"A": [0.3, 1.0]})), FrameTable("c", pd.DataFrame({"a": [0.1 + 0.2]}))]
    assert not R2D2().fit(tables).graph_.edges
    assert not R2D2(case_sensitive=False).fit(tables).graph_.edges
    assert list(R2D2(case_sensitive=False, float_tolerance=1e-9).fit(tables).graph_.edges) == [("p", "c")]


def test_sample_rows_follow_from_epsilon_and_delta():
    frame = pd.DataFrame({"x": np.arange(1000)})
    tables = [FrameTable("p", frame), FrameTable("c", frame[:900])]
    drawn = R2D2(sample_rows=None, epsilon=0.05, delta=0.05, random_state=0).fit(tables)
    assert 59 <= drawn.graph_.edges["p", "c"]["sampled_rows"] <= 61


def test_explanations():
    frame = pd.DataFrame({"x": np.arange(50), "y": 1})
    hidden = frame.copy()
    hidden.loc[7, "y"] = 2
    outer = pd.concat([frame, hidden.assign(x=hidden.x - 0.5)])
    tables = [
        FrameTable("outer", outer),
        FrameTable("part", frame[:10]),
        FrameTable("changed", hidden),
        FrameTable("far", frame + 900),
        FrameTable("narrow", frame[["x"]]),
    ]
    sampled = R2D2(random_state=0).fit(tables)
    assert sampled.explain("outer", "part") == "kept at content: all 10 sampled rows were found"
    exact = R2D2(random_state=0, verify="exact", sample_rows=1).fit(tables)
    assert exact.explain("outer", "part") == "kept at exact: all rows were found"
    assert "1 rows are not in the parent (containment 0.9800)" in exact.explain("outer", "changed")
    assert exact.explain("outer", "far").startswith("cut at minmax: column 'x' goes up to 949")
    assert exact.explain("narrow", "part") == "cut at schema: the parent lacks the column(s) ['y']"
    assert R2D2(random_state=0).fit(tables[:1]).explain("outer", "outer") == "kept: a table contains itself"
    with pytest.raises(ValueError, match="There is no table 'lost'; fit saw changed, far"):
        exact.explain("outer", "lost")


def test_a_plan_from_derived_recipes_can_be_carried_out():
    digits = load_digits(as_frame=True).frame
    parts = {"all": digits, "odd": digits[digits.target % 2 == 1], "ones": digits[digits.target == 1]}
    parts["twice"] = pd.concat([parts["ones"], parts["ones"]])
    parts["tiny"] = digits[:10]
    tables = {name: FrameTable(name, frame) for name, frame in parts.items()}
    found = R2D2(random_state=0).fit(list(tables.values()))
    plan = found.retention_plan(Costs(store=1.0, read=0.001), {"odd": 1}, max_latency=60)
    assert plan.keep == ["all", "tiny"]
    assert plan.refused == ["tiny"]
    assert plan.unverified_edges == []
    assert plan.savings > 0
    for child, parent in plan.rebuild_from.items():
        rebuilt = found.recipes_[parent, child].rebuild(tables[parent])[list(digits.columns)]
        wanted = parts[child]
        assert sorted(map(repr, rebuilt.to_numpy().tolist())) == sorted(map(repr, wanted.to_numpy().tolist()))
    assert "tiny" in found.retention_plan(Costs(1.0), {}, 60, min_rows=5).drop
    assert found.retention_plan(Costs(1.0), {}, 0).drop == []


def test_a_plan_on_lineage_names_what_was_not_verified_and_refuses_accidents():
    frame = pd.DataFrame({"x": np.arange(500), "flag": np.arange(500) % 2})
    tables = [FrameTable("p", frame), FrameTable("c", frame[:100]), FrameTable("flags", frame[["flag"]])]
    found = R2D2(random_state=0).fit(tables)
    recipes = {("p", "c"): 10.0, ("p", "flags"): 10.0}
    plan = found.retention_plan(Costs(1.0), {}, 60, recipes)
    assert plan.rebuild_from == {"c": "p"}
    assert plan.unverified_edges == [("p", "c")]
    assert plan.refused == ["flags"]
    assert found.retention_plan(Costs(1.0), {}, 60, {}).drop == []
    with pytest.raises(ValueError, match="A recipe must take 0 or more bytes, got -1"):
        found.retention_plan(Costs(1.0), {}, 60, {("p", "c"): -1})


def test_misuse_is_explained():
    frame = pd.DataFrame({"x": [1, 2]})
    with pytest.raises(ValueError, match="Two tables are named 't'"):
        R2D2().fit([FrameTable("t", frame), FrameTable("t", frame)])
    with pytest.raises(ValueError, match="at least one table, got none"):
        R2D2().fit([])
    with pytest.raises(ValueError, match="Tables must be handles such as FrameTable"):
        R2D2().fit([frame])
    with pytest.raises(ValueError, match="no column left to compare: its schema is empty"):
        R2D2(ignore_columns=["x"]).fit([FrameTable("t", frame)])
    with pytest.raises(NotFittedError, match="not fitted"):
        R2D2().explain("a", "b")
    with pytest.raises(ValueError, match="'epsilon' parameter of R2D2"):
        R2D2(epsilon=1.5).fit([FrameTable("t", frame)])
    with pytest.raises(ValueError, match="'verify' parameter of R2D2"):
        R2D2(verify="some").fit([FrameTable("t", frame)])

    class Unsized(FrameTable):
        num_bytes = None

    with pytest.raises(ValueError, match=r"The size in bytes of the table\(s\) \['t'\] is unknown"):
        R2D2().fit([Unsized("t", frame)]).retention_plan(Costs(1.0), {}, 1)

"""A plan: pools of a dataset, what both laws expect of choices, and the answer beside what training reached."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from infra.errors import ConfigurationError, DatasetFormatError
from infra.importing import import_path
from tasks.forecast import (
    Choice,
    Expected,
    Forecaster,
    SmallNetwork,
    mixture,
    together,
    union,
    unions,
)
from tasks.plan import PlanConfig, check_budget, contrasted, plan, sentences, table
from tasks.pools import Ground, Pool, read_ground
from tasks.stage import RunContext


def written_digits(path, rows=900, **columns):
    """Digits as a table; those of the source `scribbled` carry random labels."""
    X, y = load_digits(return_X_y=True)
    rng, n = np.random.default_rng(0), rows
    source = np.array(["clean", "scribbled", "few"])[np.minimum(np.arange(n) % 5 // 2, 2)]
    frame = pd.DataFrame(X[:n], columns=[f"p{i}" for i in range(64)])
    frame["label"] = [f"d{c}" for c in np.where(source == "scribbled", rng.integers(0, 10, n), y[:n])]
    frame["source"] = source
    frame["trust"] = rng.random(n).round(4)
    frame["split"] = np.where((np.arange(n) % 4 == 0) & (source != "scribbled"), "test", "train")
    frame.assign(**columns).to_csv(path, index=False)
    return path


@pytest.fixture
def digits(project, tmp_path):
    ref = import_path(project.versions, written_digits(tmp_path / "digits.csv"))
    return SimpleNamespace(ref=ref, folder=project.versions.path(ref), project=project)


def small_ground(sizes=(80, 60), noise=(0.0, 1.0)):
    X, y = load_digits(return_X_y=True)
    X, rng = (X / 16).astype(np.float32), np.random.default_rng(0)
    pools, start = [], 0
    for number, (size, share) in enumerate(zip(sizes, noise, strict=True)):
        own = y[start : start + size].copy()
        wrong = rng.random(size) < share
        own[wrong] = rng.integers(0, 10, wrong.sum())
        pools.append(Pool("abc"[number], X[start : start + size], own))
        start += size
    return Ground(tuple(pools), X[1400:], y[1400:], 10)


# ---- a whole plan --------------------------------------------------------------------------------------------


def test_a_plan_recommends_the_clean_pool_and_trains_three_choices(digits):
    run = RunContext(parent=digits.project.tracker.open("plan"), command="clearwell plan")
    found = plan.fn([digits.ref], PlanConfig(budget=1500, pools="source", pilot=60), run)
    assert json.loads(json.dumps(found)) == found
    assert set(found["pools"]) == {"clean", "scribbled", "few"}
    assert len(found["trained"]) == 3
    assert "scribbled" not in found["trained"][0]["rows"]
    reached = {row["choice"]: row["outcome"] for row in found["trained"]}
    everything = next(name for name in reached if name.count("+") == 2)
    assert reached[found["recommended"]] > reached[everything]
    for row in found["choices"]:
        assert 0 <= row["low"] <= row["predicted"] <= row["high"] <= 1
        assert row["passes"] == pytest.approx(1500 / row["total"], abs=0.01)
    home = digits.project.root / "reports" / "plan-digits"
    assert (home / "plan.png").stat().st_size > 10_000
    assert json.loads((home / "summary.json").read_text())["recommended"] == found["recommended"]
    where = f"tags.mlflow.parentRunId = '{run.parent}'"
    children = digits.project.tracker.client.search_runs([digits.project.tracker.experiment], where)
    assert len(children) == 3
    assert all({"predicted", "outcome"} <= set(child.data.metrics) for child in children)
    assert "Train on" in found["text"][0]
    shown = table(found["choices"], found["recommended"])
    assert sum(row["choice"].startswith("→") for row in shown) == 1
    assert sum(row["outcome"] != "not trained" for row in shown) == 3


# ---- pools ---------------------------------------------------------------------------------------------------


def test_pools_are_values_quantiles_or_scores(digits):
    folders = {"digits": digits.folder}
    by_value = read_ground(folders, "source")
    assert by_value.rows.keys() == {"clean", "few", "scribbled"}
    assert by_value.notes == ("Judged on 135 rows of the split test.",)
    by_quantile = read_ground(folders, "trust", quantiles=3)
    sizes = list(by_quantile.rows.values())
    assert len(sizes) == 3
    assert max(sizes) - min(sizes) <= 2
    assert list(by_quantile.rows) == ["trust 1/3", "trust 2/3", "trust 3/3"]
    assert "trust 1/3 from 0.0" in by_quantile.notes[1]
    by_score = read_ground(folders, score="el2n", quantiles=2)
    assert list(by_score.rows) == ["el2n 1/2", "el2n 2/2"]
    assert "el2n would keep first" in " ".join(by_score.notes)


def test_several_datasets_are_a_pool_each(project, tmp_path):
    folders = {}
    for name, rows in (("north", 300), ("south", 450)):
        ref = import_path(project.versions, written_digits(tmp_path / f"{name}.csv", rows))
        folders[name] = project.versions.path(ref)
    found = read_ground(folders)
    assert list(found.rows) == ["north", "south"]
    assert "split test" in found.notes[0]
    with pytest.raises(ConfigurationError, match="leave --pools out"):
        read_ground(folders, "source")
    other = import_path(project.versions, written_digits(tmp_path / "other.csv", 300, extra=1.0))
    with pytest.raises(DatasetFormatError, match="their features differ, only other has "):
        read_ground(folders | {"other": project.versions.path(other)})


def test_without_a_test_split_rows_are_held_out(project, tmp_path):
    path = written_digits(tmp_path / "plain.csv", 300, split="train")
    folder = project.versions.path(import_path(project.versions, path))
    found = read_ground({"plain": folder}, "source")
    assert found.notes == ("Judged on 60 rows held out of all pools.",)
    assert sum(found.rows.values()) == 240


@pytest.mark.parametrize(
    ("changes", "column", "error", "message"),
    [
        ({}, "colour", ConfigurationError, "no column 'colour' .* There are: .*source"),
        ({"source": "one"}, "source", ConfigurationError, "one pool only, 'one'"),
        ({"source": [f"s{i % 12}" for i in range(300)]}, "source", ConfigurationError, "has 12 values"),
        ({"source": ["a"] * 290 + ["b"] * 10}, "source", DatasetFormatError, r"pilot run needs \(40\): b \("),
        ({"label": ""}, "source", DatasetFormatError, "labelled rows of two classes"),
    ],
)
def test_pools_that_can_not_be_used_are_named(project, tmp_path, changes, column, error, message):
    path = written_digits(tmp_path / "odd.csv", 300, **changes)
    folder = project.versions.path(import_path(project.versions, path))
    with pytest.raises(error, match=message):
        read_ground({"odd": folder}, column)


def test_rows_without_a_pool_are_left_out(project, tmp_path):
    kind = [[1, 2, None][i % 3] for i in range(300)]
    path = written_digits(tmp_path / "gap.csv", 300, kind=kind)
    found = read_ground({"gap": project.versions.path(import_path(project.versions, path))}, "kind")
    assert found.X.shape[1] == 50  # components of the 65 other columns
    assert list(found.rows) == ["1", "2"]
    assert "without a value of 'kind'" in " ".join(found.notes)


def test_parts_of_a_pool_keep_every_class():
    pool = Pool("a", np.zeros((100, 2), dtype=np.float32), np.r_[np.zeros(98), 1, 2].astype(np.int64))
    assert set(pool.part(10, 0).y) == {0, 1, 2}
    assert len(pool.part(10, 0)) == 10
    assert pool.part(500, 0) is pool


# ---- choices and forecasts -----------------------------------------------------------------------------------


def test_choices_have_the_rows_and_passes_of_the_budget():
    pools = small_ground((80, 60)).pools
    both = union(pools, 700)
    assert (dict(both.rows), both.passes) == ({"a": 80, "b": 60}, 5.0)
    once = union(pools, 70)
    assert (dict(once.rows), once.passes) == ({"a": 40, "b": 30}, 1.0)
    part = mixture(pools, [0.75, 0.25], 1000)  # 80 rows are three quarters of 106
    assert (dict(part.rows), part.name) == ({"a": 80, "b": 26}, "75% a + 25% b")
    assert mixture(pools, [0.99, 0.01], 1000).rows == {"a": 80}
    assert len(unions(pools, 100, [])) == 3
    many = [Pool(name, pools[0].X, pools[0].y) for name in "abcdefg"]
    assert [list(choice.rows) for choice in unions(many, 10_000, list("gfedcba"))][:2] == [["g"], ["g", "f"]]


def test_two_expectations_count_by_their_certainty():
    sure, unsure = Expected(0.8, 0.01), Expected(0.6, 0.2)
    found = together(sure, unsure)
    assert 0.79 < found.value < 0.8
    assert found.half == pytest.approx(0.1)  # half of what they differ by
    assert together(sure, Expected(0.8, 0.01)).half == pytest.approx(0.01 / np.sqrt(2))
    assert (Expected(0.99, 0.1).high, Expected(0.05, 0.1).low) == (1.0, 0.0)


def test_the_learner_sees_exactly_its_budget_and_repeats_itself():
    ground = small_ground()
    pool = ground.pools[0]
    first, again = (SmallNetwork(10, 800, 3).fit(pool.X, pool.y).predict(ground.X) for _ in range(2))
    assert (first == again).all()
    assert (first == ground.y).mean() > 0.5
    shorter = SmallNetwork(10, 40, 3).fit(pool.X, pool.y)
    assert (shorter.predict(ground.X) == ground.y).mean() < (first == ground.y).mean()


def test_forecasts_prefer_labels_that_are_right():
    ground = small_ground((100, 100), (0.0, 1.0))
    found = Forecaster(ground, 800, 60).fit()
    best, *others = found.candidates()
    assert best.both.value == max(each.both.value for each in [best, *others])
    assert best.choice.rows.get("b", 0) < 30
    alone = {each.choice.name: each for each in [best, *others]}
    assert alone["a"].law.value > alone["b"].law.value + 0.2
    assert alone["a"].projektor.value > alone["b"].projektor.value + 0.2
    assert found.trainings_ == 2 * 3 * 5 + 11 * 2 * 2
    chosen = contrasted([best, *others], ground, 800)
    assert len({each.choice.name for each in chosen}) == 3
    assert chosen[0] is best


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="trains nothing"):
        check_budget(0)
    assert Choice({"a": 10}, 5).passes == 0.5


def test_a_tie_is_not_called_a_lead():
    made = SimpleNamespace(trainings_=3, samples_=100, seconds_=1.0, ground=SimpleNamespace(y=np.zeros(30)))
    chosen = [
        SimpleNamespace(choice=Choice({name: 10}, 10), both=Expected(0.8, 0.1)) for name in ("mine", "yours", "theirs")
    ]
    said = " ".join(sentences(made, chosen, [[0.9], [0.9], [0.5]]))
    assert "None of the 3 trained came out before it; yours reached as much." in said
    said = " ".join(sentences(made, chosen, [[0.9], [0.8], [0.5]]))
    assert "It came out first of the 3 trained, 0.100 before yours." in said

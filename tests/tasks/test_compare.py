"""A contest: who takes part, what becomes of those that fail, are late or do not apply, and who is recommended."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from sklearn.datasets import load_digits, load_wine

from infra import datasets as ds
from infra.errors import ConfigurationError, DatasetFormatError, StageError
from infra.files import is_running
from infra.processes import GroupedProcess, peak_memory_mb
from infra.project import Project
from infra.settings import settings
from tasks import arenas
from tasks.arenas import Bout, Candidate, Metric, Source, open_arena
from tasks.arenas.adapt import agreement, entropies, information, with_statistics_of
from tasks.arenas.discover import clustering_metrics, reveal
from tasks.arenas.label_noise import plant
from tasks.candidate import read_arrays
from tasks.compare import CompareConfig, chosen, compare
from tasks.contest import DONE, FAILED, LATE, UNFIT, Row, contest, write_bout
from tasks.leaderboard import ranked, recommend
from tasks.stage import RunContext, watching
from tests.tasks import planted_arena

PLANTED = "tests.tasks.planted_arena"
KINDS = {name: Value("string") for name in ("id", "domain", "split", "source")}


def write_wine(folder, labels=True, domains=("cellar",)):
    X, y = load_wine(return_X_y=True)
    columns = {"id": [f"w{n}" for n in range(len(y))], "domain": [domains[n % len(domains)] for n in range(len(y))]}
    columns |= {name: ["wine"] * len(y) for name in ("split", "source")}
    columns |= {f"x{n}": X[:, n].tolist() for n in range(X.shape[1])}
    columns["label"] = (y if labels else np.full_like(y, -1)).tolist()
    kinds = KINDS | {f"x{n}": Value("float64") for n in range(X.shape[1])}
    kinds["label"] = ClassLabel(names=["barolo", "grignolino", "barbera"])
    return ds.write_split(Dataset.from_dict(columns, features=Features(kinds)), folder, "train")


def write_digits(folder, rows=240):
    found = load_digits()
    images = (found.images[:rows] * 15).astype(np.uint8)
    kinds = KINDS | {"image": Image(decode=False), "label": ClassLabel(names=list("0123456789"))}
    columns = {name: ["digits"] * rows for name in ("domain", "split", "source")}
    columns |= {"id": [f"d{n}" for n in range(rows)], "image": [ds.encode(image) for image in images]}
    columns["label"] = found.target[:rows].tolist()
    columns["image"][3] = {"bytes": b"broken", "path": None}
    return ds.write_split(Dataset.from_dict(columns, features=Features(kinds)), folder, "train")


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wine")
    write_wine(folder)
    return Source(folder, ds.infer_schema(folder))


@pytest.fixture
def planted(monkeypatch, tmp_path):
    monkeypatch.setitem(arenas.PLACES, "planted", PLANTED)
    monkeypatch.setenv("PLANTED_PID", str(tmp_path / "pids"))


@pytest.fixture(scope="module")
def held(tmp_path_factory, empty_tracking):
    """A contest of all planted candidates on wine: project, parent run, events, summary, and processes that slept."""
    home, before = tmp_path_factory.mktemp("contest"), dict(os.environ)
    (home / ".clearwell").mkdir()
    os.environ |= {"CLEARWELL_ROOT": str(home), "PLANTED_PID": str(home / "pids")}
    settings.cache_clear()
    shutil.copyfile(empty_tracking, home / ".clearwell" / "mlflow.db")
    project = Project()
    data = project.versions.add("wine", write_wine)
    run = RunContext(parent=project.tracker.open("compare"), command="clearwell compare planted --data wine")
    events = []
    with pytest.MonkeyPatch.context() as patch, watching(lambda event, stage, facts: events.append((event, stage))):
        patch.setitem(arenas.PLACES, "planted", PLANTED)
        found = compare.fn(data, None, CompareConfig(stage="planted", budget=2.0, rows=150), run)
    yield SimpleNamespace(
        project=project, run=run, events=events, found=found, slept=(home / "pids").read_text().split()
    )
    os.environ.clear()
    os.environ.update(before)
    settings.cache_clear()


def row_of(found, name):
    return next(row for row in found["candidates"] if row["name"] == name)


# ---- a whole contest -----------------------------------------------------------------------------------------


def test_every_candidate_is_a_row_and_a_run_with_what_became_of_it(held):
    project, run, events, found = held.project, held.run, held.events, held.found
    expected = {
        "oracle": (DONE, "", "FINISHED"),
        "coin": (DONE, "", "FINISHED"),
        "raises": (FAILED, "ValueError: k must be below the number of rows", "FAILED"),
        "dies": (FAILED, "its process was ended by SIGKILL (memory may have run out): out of luck", "FAILED"),
        "leaves": (FAILED, "its process ended with status 7 and no result: it said nothing", "FAILED"),
        "imports": (FAILED, "ModuleNotFoundError: No module named 'tests.tasks.no_such_module'", "FAILED"),
        "sleeps": (LATE, "not done after 2 s; it does not say how far it was", "KILLED"),
        "misplaced": (UNFIT, "takes sound data, and this is table data", "FINISHED"),
    }
    assert {row["name"]: (row["status"], row["reason"]) for row in found["candidates"]} == {
        name: (status, reason) for name, (status, reason, _) in expected.items()
    }
    where = f"tags.mlflow.parentRunId = '{run.parent}'"
    runs = project.tracker.client.search_runs([project.tracker.experiment], where)
    assert {each.info.run_name: each.info.status for each in runs} == {n: e[2] for n, e in expected.items()}
    best = next(each for each in runs if each.info.run_name == "oracle")
    assert best.info.run_id == row_of(found, "oracle")["run"]
    assert best.data.metrics["accuracy"] == row_of(found, "oracle")["metrics"]["accuracy"]
    assert {"seconds", "cpu_seconds", "peak_memory_mb"} < best.data.metrics.keys()
    assert (best.data.params["depth"], best.data.params["inner.kind"], best.data.params["budget"]) == ("2", "x", "2.0")
    broken = next(each for each in runs if each.info.run_name == "raises").info.run_id
    assert [file.path for file in project.tracker.client.list_artifacts(broken)] == ["traceback.txt"]
    assert {stage for event, stage in events if event == "begin"} == {"split", *expected} - {"misplaced"}
    assert {stage for event, stage in events if event == "failed"} == {
        name for name, (status, *_) in expected.items() if status != DONE
    }


def test_nothing_runs_on_and_nothing_is_left_behind(held):
    for pid in held.slept:  # the process that was killed, and the one it had started
        for _ in range(50):
            if not is_running(pid) or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"{pid} still runs")
    assert list((held.project.settings.state / ".drafts").glob("*")) == []


def test_what_is_measured_is_the_run_alone_on_one_thread(held):
    found = held.found
    oracle, coin = row_of(found, "oracle"), row_of(found, "coin")
    assert 0.2 <= oracle["seconds"] < 2
    assert oracle["cpu_seconds"] < 0.2  # it slept
    assert coin["seconds"] == 0.125  # it knows better itself
    assert row_of(found, "sleeps")["seconds"] == pytest.approx(2, abs=1)
    assert oracle["metrics"].keys() == {"accuracy", "threads"}  # nan is no measurement
    assert oracle["metrics"]["threads"] == 1
    assert 10 < oracle["peak_memory_mb"] < 2000
    assert oracle["notes"] == ["this is too easy"]


def test_page_and_summary_hold_the_whole_story(held):
    project, run, found = held.project, held.run, held.found
    folder = project.root / "reports" / "compare-planted-wine"
    assert found["page"] == str(folder / "index.html")
    text = (folder / "index.html").read_text()
    for word in ("Who guesses best?", "takes sound data", "over budget", "this is too easy", "depth=2", "150 rows.",
                 "data:image/png;base64,", run.command):  # fmt: skip
        assert word in text, word
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
    assert json.loads((folder / "summary.json").read_text()) == found
    logged = {file.path for file in project.tracker.client.list_artifacts(run.parent, "report")}
    assert logged == {"report/index.html", "report/summary.json"}
    tags = project.tracker.client.get_run(run.parent).data.tags
    assert tags["clearwell.recommended"] == found["recommendation"]["name"]


def test_a_contest_that_nobody_ends_says_so_and_still_has_its_page(project, planted, monkeypatch):
    left = [Candidate("raises", ""), Candidate("misplaced", "", reason="no")]
    monkeypatch.setattr(planted_arena.PlantedArena, "candidates", lambda *_: left)
    data = project.versions.add("wine", write_wine)
    run = RunContext(parent=project.tracker.open("compare"), command="again")
    with pytest.raises(StageError, match="Not one of 2 candidates of 'planted' got to its end") as error:
        compare.fn(data, None, CompareConfig(stage="planted"), run)
    assert "raises: failed; ValueError: k must be below" in str(error.value)
    assert str(error.value).endswith("continue with: again")
    text = (project.root / "reports" / "compare-planted-wine" / "index.html").read_text()
    assert "Nobody can be recommended." in text


def test_a_contest_that_breaks_off_ends_its_processes_and_closes_its_runs(project, planted):
    data = project.versions.add("wine", write_wine)
    run = RunContext(parent=project.tracker.open("compare"))

    def interrupt(event, stage, facts):
        if (event, stage) == ("begin", "sleeps"):
            raise KeyboardInterrupt

    with watching(interrupt), pytest.raises(KeyboardInterrupt):
        compare.fn(data, None, CompareConfig(stage="planted", methods=("sleeps",)), run)
    where = f"tags.mlflow.parentRunId = '{run.parent}'"
    runs = project.tracker.client.search_runs([project.tracker.experiment], where)
    assert [each.info.status for each in runs] == ["KILLED"]


def test_only_those_that_were_asked_for_and_the_baselines():
    found = planted_arena.ARENA.candidates({})
    assert [each.name for each in chosen(found, ("oracle",), "planted")] == ["oracle", "coin"]
    assert len(chosen(found, (), "planted")) == 8
    with pytest.raises(ConfigurationError, match=r"no candidate 'orakle' for 'planted'\. Did you mean 'oracle'"):
        chosen(found, ("orakle",), "planted")


def test_stages_without_an_arena_are_refused():
    assert {"discover", "curate", "label_noise", "pretrain", "adapt", "compress"} <= arenas.PLACES.keys()
    with pytest.raises(ConfigurationError, match=r"of 'discovery' can not be compared\. Did you mean 'discover'"):
        open_arena("discovery")
    with pytest.raises(ConfigurationError, match="Stages that can: adapt, compress"):
        open_arena("register")


def test_objects_never_reach_a_candidate(tmp_path):
    hostile = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match="allow_pickle"):
        write_bout(Bout({"X": hostile}, {}, {}), tmp_path)
    np.savez(tmp_path / "given.npz", allow_pickle=True, X=hostile)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_arrays(tmp_path / "given.npz")


def test_progress_of_a_training_is_told_when_time_is_up(tmp_path, planted, monkeypatch):
    (tmp_path / "work").mkdir()
    script = tmp_path / "slow_arena.py"
    script.write_text(
        "import torch\n"
        "from models.training import ClassifierTrainer, sgd\n"
        "from tests.tasks.planted_arena import PlantedArena\n"
        "class SlowArena(PlantedArena):\n"
        "    def fit(self, name, given, facts, seed):\n"
        "        x, y = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])\n"
        "        trainer = ClassifierTrainer(torch.nn.Linear(2, 2), epochs=10**9, batch_size=2, optimizer=sgd(0.1),\n"
        "                                    label='tiny')\n"
        "        trainer.fit(x, y)\n"
        "ARENA = SlowArena()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    bout = Bout({"X": np.arange(3)}, {"y": np.arange(3)}, {"kind": "table"})
    heard = []
    (row,) = contest(
        bout, "slow_arena", [Candidate("trains", "")], tmp_path / "work", budget=1.0, seed=0, at_once=1,
        watch=lambda event, row, facts: heard.append((event, facts)),
    )  # fmt: skip
    assert row.status == LATE
    assert "not done after 1 s; it was at tiny, epoch " in row.reason
    assert row.reason.endswith(" of 1000000000")
    assert any(event == "epoch" and facts["training"] == "tiny" for event, facts in heard)


def test_memory_is_that_of_the_process_and_not_of_whoever_started_it(tmp_path):
    held = np.ones(40_000_000)  # 320 MB here
    process = GroupedProcess(["sleep", "30"], tmp_path / "said", os.environ)
    time.sleep(0.3)
    assert process.look() is None
    assert peak_memory_mb(os.getpid()) > held.nbytes / 2**20
    assert 0 < process.peak_memory_mb < 100
    process.end()
    assert process.look() == -9
    assert process.last_words() == ""


# ---- who is recommended --------------------------------------------------------------------------------------


def row(name, value=None, seconds=1.0, baseline=False, **more):
    metrics = {} if value is None else {"accuracy": value}
    return Row(name, baseline, "", metrics=metrics, seconds=seconds, peak_memory_mb=more.pop("memory", 100.0), **more)


def advice(*rows, measured=10_000, metric=None):
    arena = planted_arena.PlantedArena()
    if metric is not None:
        arena.primary = lambda facts: metric
    facts = {"measured": measured}
    found = recommend(ranked(rows, arena.primary(facts)), arena, facts)
    return found, " ".join(found.text)


def test_the_best_is_recommended_with_what_it_costs_against_the_runner_up():
    found, text = advice(row("a", 0.95, 20.0, memory=300.0), row("b", 0.90, 2.0), row("k-means", 0.7, baseline=True))
    assert (found.name, found.runner_up, found.baseline) == ("a", "b", False)
    assert "Take a: accuracy of the guess 0.950, the best of 3, in 20.0 s and 300 MB." in text
    assert "The best baseline, k-means, reaches 0.700." in text
    assert "Against the runner-up, b, it is ahead by 0.050, beyond what chance makes of 10,000 rows (± 0.004)." in text
    assert "It costs 10 times the time; the choice holds 200 MB more memory than the runner-up." in text


def test_a_baseline_that_wins_is_said_plainly():
    found, text = advice(row("a", 0.8), row("k-means", 0.9, baseline=True))
    assert (found.name, found.baseline) == ("k-means", True)
    assert "Take the baseline k-means" in text
    assert "It is a baseline and it wins: a, the one method that finished, reaches 0.800, no more." in text
    text = advice(row("a", 0.8), row("b", 0.7), row("k-means", 0.9, baseline=True))[1]
    assert "It is a baseline and it wins: none of the 2 methods that finished does better on this data." in text
    assert "The best of them, a, reaches 0.800." in text


def test_a_much_cheaper_candidate_is_preferred_when_chance_can_not_tell_them_apart():
    found, text = advice(row("a", 0.91, 60.0), row("k-means", 0.90, 2.0, baseline=True), measured=100)
    assert (found.name, found.runner_up) == ("k-means", "a")
    assert "A is ahead" not in text
    assert (
        "a is ahead with 0.910, but by no more than chance makes of these rows, and it takes 30 times the time" in text
    )
    assert "no method of this stage is ahead of it by more than chance" in text
    assert advice(row("a", 0.91, 60.0), row("b", 0.90, 50.0), measured=100)[0].name == "a"  # not much cheaper
    assert advice(row("a", 0.91, 60.0), row("b", 0.90, 2.0))[0].name == "a"  # 10,000 rows can tell


def test_what_did_not_finish_or_may_not_be_recommended_is_left_out_and_named():
    late, failed = row("slow", status=LATE), row("broken", status=FAILED)
    worse = row("odd", 0.99, objection="leaves 90 % of the rows out")
    found, text = advice(late, failed, worse, row("a", 0.8), row("unfit", status=UNFIT), row("nan"))
    assert found.name == "a"
    assert "Not done within the budget, so nothing is known of: slow. Raise --budget." in text
    assert "Failed, see the table: broken." in text
    assert "No baseline finished" in text
    rows = ranked([late, failed, worse, row("a", 0.8), row("unfit", status=UNFIT), row("nan")], Metric("accuracy", ""))
    assert [each.name for each in rows] == ["a", "odd", "nan", "slow", "broken", "unfit"]
    found, text = advice(worse, failed)
    assert found.name == ""
    assert "Nobody can be recommended. odd: leaves 90 % of the rows out." in text


def test_lower_is_better_where_the_metric_says_so():
    size = Metric("accuracy", "size", False, "bytes")
    found, text = advice(row("a", 900.0), row("b", 1900.0, baseline=True), metric=size)
    assert found.name == "a"
    assert "size 0.9 kB, the best of 2" in text
    assert "it is ahead by 1.0 kB." in text


# ---- the arenas ----------------------------------------------------------------------------------------------


def run_here(stage, source, names, seed=0, rows=200):
    """Candidates of an arena in this process, without contest and clock."""
    arena = open_arena(stage)
    bout = arena.prepare(source, seed, rows)
    facts = json.loads(json.dumps(bout.facts))
    found = {}
    for name in names:
        made = arena.fit(name, bout.given, facts, seed)
        found[name] = arena.measure(made, bout.given, bout.hidden, facts, seed)
    return arena, bout, found


def test_half_of_the_labels_of_half_of_the_classes_are_shown():
    truth = np.repeat([0, 1, 2, 3, 4, -1], 10)
    shown = reveal(truth, 0)
    assert [(shown == label).sum() for label in (-1, 0, 1, 2, 3, 4)] == [45, 5, 5, 5, 0, 0]
    assert set(reveal(np.array([4, 4, 9, 9]), 0)) == {-1, 4}
    assert (truth[shown >= 0] == shown[shown >= 0]).all()
    assert (reveal(truth, 1) != shown).any()
    assert (reveal(np.full(9, -1), 0) == -1).all()
    assert (reveal(np.zeros(9, dtype=int), 0) == -1).all()  # of one class nothing is to be found out


def test_rows_of_noise_are_wrong_and_alone():
    truth = np.array([0, 0, 0, 1, 1, 1])
    assert clustering_metrics(truth, np.array([5, 5, 5, 2, 2, 2]))["accuracy"] == 1
    scores = clustering_metrics(truth, np.array([5, 5, -1, 2, 2, -1]))
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["nmi"] < 1
    assert clustering_metrics(truth, np.full(6, -1))["accuracy"] == 0


def test_discover_finds_the_wines_and_hides_what_it_measures(wine):
    names = ("k-means", "gaussian-mixture", "hdbscan", "spectral")
    arena, bout, found = run_here("discover", wine, names)
    assert arena.primary(bout.facts).name == "accuracy"
    assert bout.facts["n_clusters"] == 3
    assert not (bout.given["labels"][bout.hidden["measured"]] >= 0).any()
    assert bout.facts["measured"] == 178 - bout.facts["shown"] == 178 - 29 - 35
    assert found["k-means"]["accuracy"] > 0.9
    assert found["k-means"].keys() == {"accuracy", "nmi", "ari", "silhouette", "n_clusters", "noise"}
    assert found["k-means"]["noise"] == 0 < found["hdbscan"]["noise"]
    reasons = {each.name: each.reason for each in arena.candidates(bout.facts)}
    assert all(reasons[name] == "" for name in names)


def test_discover_without_labels_goes_by_the_silhouette_and_says_what_that_is_worth(tmp_path):
    write_wine(tmp_path, labels=False)
    arena, bout, found = run_here("discover", Source(tmp_path, ds.infer_schema(tmp_path)), ("k-means",))
    assert arena.primary(bout.facts).name == "silhouette"
    assert found["k-means"].keys() == {"silhouette", "n_clusters", "noise"}
    assert bout.facts["n_clusters"] == found["k-means"]["n_clusters"] == 3
    assert "can not tell whether they mean anything" in arena.caveat(bout.facts)
    assert arena.margin(0.5, bout.facts) is None
    assert arena.objection({"noise": 0.7}, bout.facts) == "leaves 70% of the rows out as noise"


def test_rows_that_are_all_alike_can_not_be_compared_on(tmp_path):
    columns = {"id": [str(n) for n in range(40)], "label": [-1] * 40, "a": [1.0] * 40, "b": [2.0] * 40}
    ds.write_split(Dataset.from_dict(columns), tmp_path, "unlabelled")
    with pytest.raises(DatasetFormatError, match="needs at least 10 rows that differ, got 1 of 40"):
        open_arena("discover").prepare(Source(tmp_path, ds.infer_schema(tmp_path)), 0, 5000)


def test_a_registered_method_of_discover_runs_in_its_arena(wine):
    from models.registry import list_methods

    if not any(card.name == "faster-pam" for card in list_methods("discover")):
        raise AssertionError("faster-pam is gone; name another method here")
    arena, bout, found = run_here("discover", wine, ("faster-pam",))
    assert found["faster-pam"]["accuracy"] > 0.8
    made = arena.fit("faster-pam", bout.given, bout.facts, 0)
    assert made.seconds < 10
    assert (made.parameters["n_clusters"], made.parameters["random_state"]) == (3, 0)
    assert made.parameters["metric"] == "euclidean"  # as the rows are given, not as the class would have it by default
    again = arena.fit("faster-pam", bout.given, bout.facts, 0)
    assert (again.labels == made.labels).all()


def test_planted_errors_are_class_dependent_and_found(wine):
    y = np.repeat([2, 5, 7], [50, 30, 4])
    noisy = plant(y, 0.1, 0)
    assert [(noisy != y)[y == label].sum() for label in (2, 5, 7)] == [5, 3, 1]
    assert all(len(np.unique(noisy[(noisy != y) & (y == label)])) == 1 for label in (2, 5, 7))
    assert set(noisy) == {2, 5, 7}
    arena, bout, found = run_here("label_noise", wine, ("self-confidence", "neighbour-disagreement"))
    reasons = {each.name: each.reason for each in arena.candidates(bout.facts)}
    assert reasons["lsa"] == ""
    assert reasons["local-graph"] == "does not judge the label of every row"
    assert bout.hidden["planted"].sum() == bout.facts["measured"] == 18
    for metrics in found.values():
        assert metrics["f1"] > 0.7
        assert metrics["average_precision"] > 0.8


def test_selections_of_one_size_are_judged_by_one_training(wine):
    arena, bout, found = run_here("curate", wine, ("all-rows", "random-subset", "k-centre"))
    budget = bout.facts["budget"]
    assert budget < len(bout.given["y"])
    assert found["random-subset"]["rows"] == found["k-centre"]["rows"] == budget
    assert found["all-rows"]["rows"] == len(bout.given["y"])
    assert found["all-rows"]["accuracy"] > 0.85
    reasons = {each.name: each.reason for each in arena.candidates(bout.facts)}
    assert "chooses no rows" in reasons["survey"]
    assert not reasons["herding"]


def test_features_are_probed_on_rows_that_were_held_out(wine, tmp_path):
    _, bout, found = run_here("pretrain", wine, ("raw-inputs", "pca", "untrained-encoder"))
    assert len(bout.hidden["y_test"]) == bout.facts["measured"] == 36
    assert len(bout.given["X"]) == 142
    assert found["raw-inputs"]["linear_accuracy"] > 0.9
    assert (found["raw-inputs"]["width"], found["untrained-encoder"]["width"]) == (13, 64)
    write_digits(tmp_path)
    arena = open_arena("pretrain")
    bout = arena.prepare(Source(tmp_path, ds.infer_schema(tmp_path)), 0, 240)
    assert len(bout.given["X"]) + len(bout.hidden["X_test"]) == 239  # one image can not be read
    assert [each.reason for each in arena.candidates(bout.facts)] == [""] * 5
    table = {each.name: each.reason for each in arena.candidates({"kind": "table"})}
    assert table["rotnet"] == "takes image data, and this is table data"


def test_compression_is_judged_by_size_among_those_that_keep_the_accuracy(wine):
    arena, bout, found = run_here("compress", wine, ("as-it-is", "magnitude-pruning", "udfc"))
    whole, pruned, small = (found[name] for name in ("as-it-is", "magnitude-pruning", "udfc"))
    assert whole["accuracy_kept"] == pytest.approx(1)
    assert small["bytes"] < pruned["bytes"] < whole["bytes"]
    assert pruned["parameters"] == small["parameters"] < whole["parameters"]
    assert not any(name.startswith("network.") and array.dtype == object for name, array in bout.given.items())
    assert arena.objection({"accuracy_kept": 0.9}, bout.facts) == "loses 10.0% of the accuracy"
    assert arena.objection({"accuracy_kept": 0.99}, bout.facts) == ""


def test_a_new_domain_with_labels_is_judged_by_them_and_one_without_says_what_is_missing(tmp_path):
    write_wine(tmp_path / "two", domains=("cellar", "cellar", "cave"))
    arena, bout, found = run_here("adapt", Source(tmp_path / "two", ds.infer_schema(tmp_path / "two")),
                                  ("source-model", "batch-norm"))  # fmt: skip
    assert arena.primary(bout.facts).name == "accuracy"
    assert (len(bout.given["X"]), bout.facts["measured"], bout.facts["unknown"]) == (59, 59, False)
    assert set(bout.given) & {"y"} == set()
    assert {"accuracy", "information", "agreement"} <= found["source-model"].keys()
    assert found["batch-norm"] != found["source-model"]
    blind = bout.facts | {"labelled": False}
    assert arena.primary(blind).name == "information"
    assert "not whose are right" in arena.caveat(blind)
    assert arena.objection({"information": 0.01}, blind) == "nearly all rows get the same answer"
    assert arena.primary(bout.facts | {"unknown": True}).name == "h_score"


def test_data_that_a_stage_can_not_be_compared_on_is_refused(wine, tmp_path):
    with pytest.raises(DatasetFormatError, match="needs a new domain: a split 'target', or rows of the split 'train'"):
        open_arena("adapt").prepare(wine, 0, 200)
    write_wine(tmp_path, labels=False)
    bare = Source(tmp_path, ds.infer_schema(tmp_path))
    for stage in ("label_noise", "pretrain", "compress"):
        with pytest.raises(DatasetFormatError, match=f"methods of '{stage}' needs at least 20 labelled rows"):
            open_arena(stage).prepare(bare, 0, 200)


def test_decided_and_varied_answers_carry_information():
    sure = np.eye(4)[[0, 1, 2, 3] * 5]
    assert information(sure) == pytest.approx(1)
    assert information(np.eye(4)[[0] * 20]) == pytest.approx(0, abs=1e-9)
    assert information(np.full((20, 4), 0.25)) == pytest.approx(0, abs=1e-9)
    assert entropies(np.full((1, 4), 0.25))[0] == pytest.approx(1)
    line = np.arange(40, dtype=float)[:, None]
    assert agreement(line, (line[:, 0] >= 20).astype(int)) > 0.8
    assert agreement(line, np.arange(40) % 2) < 0.7


def test_statistics_of_batch_normalisation_become_those_of_the_rows():
    import torch

    norm = torch.nn.BatchNorm1d(3).eval()
    X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 4 + 7
    moved = with_statistics_of(torch.nn.Sequential(norm), X)[0]
    torch.testing.assert_close(moved.running_mean, X.mean(0))
    torch.testing.assert_close(moved.running_var, X.var(0))
    assert (norm.running_mean == 0).all()
    assert not moved.training


def test_workers_limit_how_many_run_at_once(project, planted, monkeypatch):
    monkeypatch.setenv("CLEARWELL_RUNNER__WORKERS", "1")
    settings.cache_clear()
    data = project.versions.add("wine", write_wine)
    run = RunContext(parent=project.tracker.open("compare"))
    found = compare.fn(data, None, CompareConfig(stage="planted", methods=("raises",)), run)
    assert found["at_once"] == 1

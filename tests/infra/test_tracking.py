"""What a run did can be read in MLflow: parameters, curves, data, figures, the code, and how it ended."""

import json
import os
import subprocess
import sys

import pytest

from infra.references import DatasetRef
from infra.tracking import code_commit, flatten

REF = DatasetRef(name="scans", uri=".clearwell/versions/scans/ab", version="0" * 32 + ".dir", rows=7)


@pytest.fixture
def tracker(project):
    return project.tracker


def test_child_run_hangs_below_its_parent_and_names_the_code(tracker, project, monkeypatch):
    monkeypatch.setattr("infra.tracking.code_commit", lambda root: "0123abcd" if root == project.root else None)
    parent = tracker.open("lifecycle")
    child = tracker.open("validate", parent, **{"clearwell.stage": "validate"})
    tags = tracker.client.get_run(child).data.tags
    assert tags["mlflow.parentRunId"] == parent
    assert (tags["mlflow.runName"], tags["clearwell.stage"]) == ("validate", "validate")
    assert tags["mlflow.source.git.commit"] == "0123abcd"
    assert tags["clearwell.version"]
    assert "mlflow.parentRunId" not in tracker.client.get_run(parent).data.tags


def test_runs_end_as_they_are_told(tracker):
    for status in ("FINISHED", "FAILED", "KILLED"):
        run = tracker.open("stage")
        assert tracker.client.get_run(run).info.status == "RUNNING"
        tracker.close(run, status)
        assert tracker.client.get_run(run).info.status == status


def test_parameters_are_flattened_and_may_be_many_and_long(tracker):
    run = tracker.open("stage")
    tracker.params(run, {"method": "lsa", "parameters": {"k": 3, "deep": {"x": None}}, "empty": {}, "long": "y" * 9000})
    tracker.params(run, {"many": {f"p{n:03d}": n for n in range(150)}})
    found = tracker.client.get_run(run).data.params
    assert (found["method"], found["parameters.k"], found["parameters.deep.x"]) == ("lsa", "3", "None")
    assert found["empty"] == "{}"
    assert len(found["long"]) == 6000
    assert found["many.p149"] == "149"


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": []}) == [("a.b", 1), ("a.c.d", 2), ("e", [])]


def test_metrics_and_curves(tracker):
    run = tracker.open("stage")
    history = [{"training": "warm-up", "epoch": n, "loss": 1 / (n + 1), "note": "text"} for n in range(1200)]
    tracker.metrics(run, {"accuracy@5": 0.5, "rows": 10}, history)
    found = tracker.client.get_run(run).data.metrics
    assert found["accuracy_at_5"] == 0.5
    assert found["rows"] == 10
    curve = tracker.client.get_metric_history(run, "warm-up.loss")
    assert sorted(point.step for point in curve) == list(range(1200))
    assert "warm-up.note" not in found


def test_datasets_are_inputs_with_their_version(tracker):
    run = tracker.open("stage")
    tracker.dataset(run, REF, "input")
    tracker.dataset(run, REF.model_copy(update={"name": "scans-quarantine"}), "quarantine")
    inputs = {each.dataset.name: each for each in tracker.client.get_run(run).inputs.dataset_inputs}
    assert inputs["scans"].dataset.digest == "0" * 32
    assert json.loads(inputs["scans"].dataset.source) == {"uri": REF.uri, "version": REF.version}
    assert json.loads(inputs["scans"].dataset.profile) == {"num_rows": 7}
    assert inputs["scans-quarantine"].tags[0].value == "quarantine"


def test_files_become_artifacts_below_the_project(tracker, project, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_bytes(b"png")
    run = tracker.open("stage")
    tracker.files(run, tmp_path / "figures", "figures")
    assert [each.path for each in tracker.client.list_artifacts(run, "figures")] == ["figures/a.png"]
    kept = list((project.root / ".clearwell" / "artifacts").rglob("a.png"))
    assert [path.read_bytes() for path in kept] == [b"png"]


def test_tags_are_text(tracker):
    run = tracker.open("stage")
    tracker.tags(run, {"rows": 3, "why": "changed"})
    assert tracker.client.get_run(run).data.tags["rows"] == "3"


def test_runs_of_dead_processes_are_closed_and_no_others(tracker):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = tracker.client.get_run(tracker.open("mine")).data.tags["clearwell.process"].rpartition(":")[0]
    orphan = tracker.open("orphan", **{"clearwell.process": f"{host}:{dead.pid}"})
    elsewhere = tracker.open("elsewhere", **{"clearwell.process": f"another-host:{dead.pid}"})
    foreign = tracker.client.create_run(tracker.experiment).info.run_id  # made by other software
    tracker.close(foreign)
    assert tracker.close_orphans() == [orphan]
    assert tracker.client.get_run(orphan).info.status == "KILLED"
    assert tracker.client.get_run(elsewhere).info.status == "RUNNING"
    assert tracker.close_orphans() == []


def test_project_is_tidied_of_drafts_and_orphans(project):
    (project.root / ".clearwell" / "cache" / ".drafts" / "999999999-x").mkdir(parents=True)
    project.tracker.open("orphan", **{"clearwell.process": f"{os.uname().nodename}:999999999"})
    assert project.tidy() == {"drafts": 1, "servers": 0, "runs": 1}


def test_commit_is_the_projects_own(tmp_path):
    assert code_commit(tmp_path) is None
    env = {"GIT_CONFIG_GLOBAL": "/dev/null", "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, env=env)
    code_commit.cache_clear()
    assert len(code_commit(tmp_path)) == 40
    code_commit.cache_clear()


def test_the_experiment_opens_as_model_training(project):
    tags = project.tracker.client.get_experiment(project.tracker.experiment).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"

"""Promotions that are killed, overtaken, approved, refused or gone round; what is left is always one state."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.errors import ConfigurationError, LeaseLostError, PromotionError, StoreError
from infra.leases import Lease
from infra.model_registry import CANDIDATE, CHAMPION, PREVIOUS
from infra.project import Project
from infra.reconcile import reconcile
from infra.settings import Settings

MODEL = "scans-classifier"
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("promoting.py")
CALLS = ["add", "begin", "set_registered_model_alias", "step", "set_registered_model_alias", "step",
         "set_model_version_tag", "add", "finish"]  # fmt: skip


def register(project, key, accuracy=0.95):
    run = project.tracker.open("lifecycle")
    project.tracker.client.log_text(run, f"weights {key}", "model/weights.txt")
    measured = {"test": {"source_accuracy": accuracy}, "model": {"size_bytes": 800.0}}
    version = project.registry.register(MODEL, run, key, "card", {}, measured)
    project.registry.judge(MODEL, version)
    return version


@pytest.fixture
def registry(project):
    """Three versions; the first is champion."""
    for key in ("one", "two", "three"):
        register(project, key)
    project.registry.promote(MODEL, "1")
    return project.registry


def with_settings(registry, changes):
    registry.settings = registry.settings.model_copy(update=changes)


def asking_for_approval(registry):
    section = registry.settings.registry.model_copy(update={"requires_approval": True})
    with_settings(registry, {"registry": section})


def kinds(registry):
    return [entry["kind"] for entry in registry.history(MODEL)]


def weights_of(registry, version):
    run = registry.tracker.client.get_model_version(MODEL, version).run_id
    uri = registry.tracker.client.get_run(run).info.artifact_uri
    return Path(uri.removeprefix("file://")) / "model" / "weights.txt"


def run_script(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


@pytest.mark.timeout(300)
def test_promotion_killed_at_any_step_is_completed_or_undone(registry, home):
    """Killed with SIGKILL after everything it writes, with and without the transaction's end; then reconciled twice."""
    points = [f"a{n}" for n in range(1, len(CALLS) + 1)] + ["b3", "b5", "b7", "never"]
    done = run_script("kill", home, *points)
    codes = dict(line.split() for line in done.stdout.splitlines())
    assert codes == {point: "0" if point == "never" else "-9" for point in points}, done.stderr
    assert (home.with_name("project-never") / "calls").read_text().split() == CALLS

    outcomes = {}
    for point in points:
        root = home.with_name(f"project-{point}")
        found = Project(Settings(root=root)).registry
        settled = [each["what"] for each in found.recover()]
        champion, previous = found.holder(MODEL, CHAMPION), found.holder(MODEL, PREVIOUS)
        promoted = [entry["payload"]["version"] for entry in found.history(MODEL) if entry["kind"] == "promoted"]
        outcomes[point] = champion
        assert (champion, previous, promoted) in [("1", None, ["1"]), ("2", "1", ["1", "2"])], point
        assert settled in ([], ["completed" if champion == "2" else "undone"]), point
        assert found.recover() == [], point
        assert found.ledger.broken_at() is None
        tags = found.tracker.client.get_model_version(MODEL, "2").tags
        assert ("clearwell.promoted.champion" in tags) == (champion == "2"), point
        assert found.promote(MODEL, "2").version == "2"
        assert found.holder(MODEL, PREVIOUS) == "1"
        found.ledger.engine.dispose()
    assert outcomes["a4"] == outcomes["b5"] == "1"  # until the alias itself is moved: undone
    assert outcomes["a5"] == outcomes["a8"] == "2"  # from then on: completed


@pytest.mark.timeout(300)
def test_of_two_processes_that_promote_at_once_one_wins_and_the_other_is_told(registry, home):
    done = run_script("race", home)
    told, won = sorted(done.stdout.splitlines(), key=lambda line: line.endswith("won"))
    assert won == "2 won", done.stderr
    assert told.startswith(f"3 LeaseHeldError: Somebody else is changing 'promote:{MODEL}' right now."), done.stdout
    assert (registry.holder(MODEL, CHAMPION), registry.holder(MODEL, PREVIOUS)) == ("2", "1")
    assert registry.recover() == []


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_holder_of_an_expired_lease_changes_nothing_more(registry, monkeypatch, step):
    held, calls = Lease.held, []

    def expiring(lease):
        calls.append(lease)
        if len(calls) == step:
            with registry.ledger.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE leases SET expires = 0")
        return held(lease)

    with monkeypatch.context() as slow:
        slow.setattr(Lease, "held", expiring)
        with pytest.raises(LeaseLostError, match="nothing more was changed"):
            registry.promote(MODEL, "2")
    assert len(calls) == step
    assert registry.holder(MODEL, CHAMPION) == ("2" if step == 4 else "1")
    assert [each["what"] for each in registry.recover()] == [[], ["undone"], ["undone"], ["completed"]][step - 1]
    assert registry.holder(MODEL, PREVIOUS) == ("1" if step == 4 else None)
    assert registry.recover() == []


def test_slow_promotion_keeps_its_lease_as_long_as_it_works(registry, monkeypatch):
    section = registry.settings.registry.model_copy(update={"lease_seconds": 3.0})
    with_settings(registry, {"registry": section})
    tag = registry.tracker.client.set_model_version_tag
    monkeypatch.setattr(registry.tracker.client, "set_model_version_tag", lambda *a: (time.sleep(4), tag(*a)))
    assert registry.promote(MODEL, "2").version == "2"


def test_a_promotion_under_way_is_left_alone(registry):
    with registry.ledger.lease(f"promote:{MODEL}", 60):
        assert registry.recover() == [{"what": "busy", "model": MODEL}]


def test_alias_moved_by_hand_is_noticed_once_and_recorded(registry):
    registry.tracker.client.set_registered_model_alias(MODEL, CHAMPION, "3")
    registry.tracker.client.set_registered_model_alias(MODEL, "shadow", "2")
    drift = {"what": "alias-drift", "model": MODEL}
    assert registry.recover() == [
        drift | {"alias": CHAMPION, "expected": "1", "version": "3"},
        drift | {"alias": "shadow", "expected": None, "version": "2"},
    ]
    assert registry.recover() == []
    [moved, _] = [entry["payload"] for entry in registry.history(MODEL) if entry["kind"] == "alias-drift"]
    assert moved["reason"] == "moved from 1 to 3 outside clearwell"
    registry.tracker.client.delete_registered_model_alias(MODEL, CHAMPION)
    assert registry.recover() == [drift | {"alias": CHAMPION, "expected": "3", "version": None}]


def test_promotion_records_drift_before_it_moves_the_alias_itself(registry):
    registry.tracker.client.set_registered_model_alias(MODEL, CHAMPION, "3")
    registry.promote(MODEL, "2")
    assert kinds(registry)[-3:] == ["alias-drift", "verdicts", "promoted"]
    assert registry.holder(MODEL, PREVIOUS) == "3"


def test_verdicts_of_other_gates_do_not_count(registry):
    stricter = tuple(
        gate.model_copy(update={"at_least": 0.99}) if gate.metric == "source_accuracy" else gate
        for gate in registry.settings.gates
    )
    with_settings(registry, {"gates": stricter})
    assert "to be judged anew, because the gates in mlflow.yaml were changed" in registry.explain(MODEL, "2").judged
    with pytest.raises(PromotionError, match=r"source_accuracy on test: 0\.95 \(bound >= 0\.99"):
        registry.promote(MODEL, "2")
    assert "anew" not in registry.explain(MODEL, "2").judged
    with_settings(registry, {"gates": ()})
    assert registry.promote(MODEL, "2").verdicts == ()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: file.write_text("weights twice"), r"weights\.txt was changed"),
        (lambda file: file.unlink(), r"weights\.txt is missing"),
        (lambda file: file.with_name("conda.yaml").write_text("x"), r"conda\.yaml was added"),
    ],
)
def test_damaged_bytes_refuse_promotion_and_rollback(registry, tmp_path, harm, message):
    harm(weights_of(registry, "2"))
    with pytest.raises(PromotionError, match=f"its registered files are damaged: {message}"):
        registry.promote(MODEL, "2")
    with pytest.raises(StoreError, match=f"is not used: {message}"):
        registry.fetch(MODEL, "2", tmp_path)
    assert not registry.explain(MODEL, "2").promotable
    assert registry.holder(MODEL, CHAMPION) == "1"

    registry.promote(MODEL, "3")
    harm(weights_of(registry, "1"))
    with pytest.raises(PromotionError, match=message):
        registry.rollback(MODEL)
    assert registry.holder(MODEL, CHAMPION) == "3"


def test_damaged_version_is_registered_anew(registry, project):
    weights_of(registry, "2").write_text("x")
    assert register(project, "two") == "4"
    assert register(project, "two") == "4"
    assert registry.promote(MODEL, "4").version == "4"


def test_version_without_files_and_files_that_changed_on_their_way_are_refused(registry, project):
    run = project.tracker.open("lifecycle")
    version = registry.register(MODEL, run, "empty", "", {}, {})
    assert "its registered files are damaged: there are none" in registry.explain(MODEL, version).obstacles
    description = {"weights_sha256": "0" * 64, "program_sha256": None}
    project.tracker.client.log_text(run, json.dumps(description), "model/model.json")
    with pytest.raises(StoreError, match=r"did not arrive in the artifact store as it was made: weights\.safetensors"):
        registry.register(MODEL, run, "changed", "", {}, {})


def test_retired_version_loses_its_aliases_and_says_why(registry):
    registry.promote(MODEL, "2")
    for _ in range(2):
        registry.retire(MODEL, "1", "data erased on request 17")
    with pytest.raises(PromotionError, match=r"Version 1 .*may not become champion:\n  it was retired: data erased"):
        registry.rollback(MODEL)
    with pytest.raises(PromotionError, match=r"Version 1 .*may not become candidate:\n  it was retired: data erased"):
        registry.promote(MODEL, "1", CANDIDATE)
    assert registry.explain(MODEL, "1").retired == "data erased on request 17"
    registry.retire(MODEL, "2", "data erased on request 18")
    assert registry.holder(MODEL, CHAMPION) is None
    registry.tracker.client.set_registered_model_alias(MODEL, CHAMPION, "2")
    assert [each["what"] for each in registry.recover()] == ["alias-drift", "dropped"]
    assert registry.holder(MODEL, CHAMPION) is None
    assert registry.recover() == []
    assert kinds(registry).count("retired") == 2


def test_approval_is_asked_for_filed_and_used_once(registry):
    asking_for_approval(registry)
    with pytest.raises(PromotionError, match=r"nobody approved it: `clearwell promote scans-classifier 2 --approve-by"):
        registry.promote(MODEL, "2")
    assert registry.explain(MODEL, "2").approval == "needed, and nobody gave it"
    with pytest.raises(PromotionError, match="names a person"):
        registry.promote(MODEL, "2", approved_by=" ", reason="x")
    with pytest.raises(PromotionError, match="says why"):
        registry.promote(MODEL, "2", approved_by="head of laboratory", reason=" ")
    assert "approved" not in kinds(registry)

    registry.promote(MODEL, "2", approved_by="head of laboratory", reason="seen on the ward")
    filed = [entry["payload"] for entry in registry.history(MODEL) if entry["kind"] in ("approved", "promoted")]
    assert filed[-2] == {"model": MODEL, "version": "2", "approver": "head of laboratory", "reason": "seen on the ward"}
    assert filed[-1]["approved_by"] == "head of laboratory"
    registry.rollback(MODEL)
    with pytest.raises(PromotionError, match="nobody approved it"):  # the approval was used
        registry.promote(MODEL, "2")


def test_approval_whose_promotion_was_killed_still_stands(registry, monkeypatch):
    asking_for_approval(registry)
    with monkeypatch.context() as crash:
        crash.setattr(registry.moves, "move", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            registry.promote(MODEL, "2", approved_by="head of laboratory", reason="better")
    assert registry.explain(MODEL, "2").approval.startswith("given by head of laboratory at 2")
    assert registry.promote(MODEL, "2").version == "2"


def test_approval_does_not_lift_a_gate(registry, project):
    asking_for_approval(registry)
    poor = register(project, "poor", accuracy=0.5)
    with pytest.raises(PromotionError, match=r"source_accuracy on test: 0\.5"):
        registry.promote(MODEL, poor, approved_by="head of laboratory", reason="please")
    assert "approved" not in kinds(registry)


def test_explanation_names_every_obstacle_and_files_nothing(registry, project):
    poor = register(project, "poor", accuracy=0.5)
    before = kinds(registry)
    found = registry.explain(MODEL, poor)
    assert found.obstacles == ("source_accuracy on test: 0.5 (bound >= 0.9 and >= 0.93 (champion 0.95)) fails",)
    assert [verdict.holds for verdict in found.verdicts] == [False, True]
    assert (found.files, found.retired, found.approval) == ("as registered", None, "not needed")
    assert registry.explain(MODEL, "1").aliases == (CHAMPION,)
    assert registry.explain(MODEL, "2").promotable
    assert "the champion was nobody then" in registry.explain(MODEL, "3").judged
    assert kinds(registry) == before


@pytest.mark.parametrize("alias", [PREVIOUS, "latest", "v3", "a b", "", "x" * 300, "../champion", "'; DROP TABLE"])
def test_alias_that_can_not_be_given_is_refused(registry, alias):
    with pytest.raises(PromotionError, match="can not be given"):
        registry.promote(MODEL, "2", alias)


@pytest.mark.parametrize("name", ["../x", "a b", "m" * 300, "mödel", "x' OR 1=1 --", "", "a/b", ".."])
def test_name_that_can_not_name_a_model_is_refused(registry, name):
    with pytest.raises(ConfigurationError, match="can not name a registered model"):
        registry.register(name, "run", "key", "", {}, {})
    with pytest.raises(PromotionError, match="There is no registered model"):
        registry.explain(name, "1")


def test_reconcile_reports_every_part_even_if_one_fails(registry, project, monkeypatch):
    registry.tracker.client.set_registered_model_alias(MODEL, CHAMPION, "3")
    monkeypatch.setattr(Project, "tidy", lambda _: 1 / 0)
    found = reconcile(project)
    assert found["registry"][0]["what"] == "alias-drift"
    assert found["leftovers"] == {"failed": "ZeroDivisionError: division by zero"}

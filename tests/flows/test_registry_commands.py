"""Commands of registry and ledger, and promotion as a flow."""

import json

import pytest
import sqlalchemy as sa

from infra.errors import PromotionError
from infra.project import Project


@pytest.fixture
def models(tracked):
    """A project with three versions of the model "m"; the gates hold for the first and the third."""
    project = Project()
    run = project.tracker.open("lifecycle")
    project.tracker.client.log_text(run, "weights", "model/weights.txt")
    for key, accuracy in (("a", 0.95), ("b", 0.5), ("c", 0.96)):
        measured = {"test": {"source_accuracy": accuracy}, "model": {"size_bytes": 800.0}}
        project.registry.judge("m", project.registry.register("m", run, key, "card", {}, measured))
    return project


def test_promotion_of_what_is_not_there(tracked):
    for command in ("promote", "explain", "rollback", "history"):
        code, _, err = tracked(command, "scans-classifier")
        assert code == 6
        assert "There is no registered model 'scans-classifier'. Registered models: none." in err


def test_promotion_by_hand_and_back(tracked, models):
    code, _, err = tracked("promote", "m")
    assert code == 6
    assert "has no candidate. Name a version: `clearwell promote m VERSION`" in err
    code, _, err = tracked("promote", "m", "2")
    assert code == 6
    assert "source_accuracy on test: 0.5 (bound >= 0.9) fails" in err
    assert tracked("promote", "m", "9")[0] == 6

    code, out, _ = tracked("promote", "m", "1", "--reason", "measured [by hand]")
    assert code == 0
    assert "m version 1 is now champion" in out
    tracked("promote", "m", "3", "--to", "candidate")
    code, out, _ = tracked("promote", "m", "--json")  # the candidate
    assert json.loads(out)["version"] == "3"
    code, out, _ = tracked("rollback", "m", "--reason", "[/] worse")
    assert code == 0
    assert "m version 1 is champion again" in out

    code, out, _ = tracked("history", "m")
    assert code == 0
    assert "measured [by hand]" in out
    assert "[/] worse" in out
    assert "chain is whole" in out
    story = json.loads(tracked("history", "m", "--json")[1])
    assert story["ledger_broken_at"] is None
    assert [v["aliases"] for v in story["versions"]] == [["candidate", "previous"], [], ["champion"]]


def test_explanation_says_what_is_in_the_way(tracked, models):
    code, out, _ = tracked("explain", "m", "2")
    assert code == 0
    assert "source_accuracy on test" in out
    assert "in the way: source_accuracy on test: 0.5 (bound >= 0.9) fails" in out
    found = json.loads(tracked("explain", "m", "1", "--json")[1])
    assert (found["promotable"], found["files"], found["approval"]) == (True, "as registered", "not needed")
    code, _, err = tracked("explain", "m")
    assert code == 6
    assert "has no candidate" in err


def test_approval_is_demanded_and_shown(tracked, models, home):
    from infra.settings import settings

    with (home / "mlflow.yaml").open("a") as file:
        file.write("registry: {requires_approval: true}\n")
    settings.cache_clear()
    code, _, err = tracked("promote", "m", "1")
    assert code == 6
    assert "clearwell promote m 1 --approve-by WHO --reason WHY" in err
    code, _, err = tracked("promote", "m", "1", "--approve-by", "head of laboratory")
    assert code == 6
    assert "An approval says why" in err
    code, _, _ = tracked("promote", "m", "3", "--approve-by", "head of laboratory", "--reason", "seen on the ward")
    assert code == 0
    assert "seen on the ward, approved by head of laboratory" in tracked("history", "m")[1]


def test_changed_ledger_is_found(tracked, models):
    code, out, _ = tracked("ledger", "verify", "--json")
    found = json.loads(out)
    assert (code, found["entries"]) == (0, 6)
    tracked("promote", "m", "1")
    code, out, _ = tracked("ledger", "verify", "--expect", found["head"])
    assert code == 0
    assert "chain is whole: 7 entries" in out
    code, _, err = tracked("ledger", "verify", "--expect", "0" * 64)
    assert code == 5
    assert "No entry of the ledger has the hash" in err
    shown = json.loads(tracked("ledger", "show", "--kind", "promoted", "--json")[1])
    assert [entry["payload"]["version"] for entry in shown] == ["1"]
    assert "promoted by hand" in tracked("ledger", "show", "--last", "1")[1]

    with models.ledger.engine.begin() as connection:
        connection.execute(sa.text("UPDATE ledger SET payload = replace(payload, '0.5', '0.97')"))
    code, out, err = tracked("ledger", "verify")
    assert (code, out) == (5, "")
    assert "The ledger was changed at entry 4: its content does not fit its hash" in err


def test_promotion_as_a_flow_takes_the_candidate_and_a_named_approver(models):
    from prefect.exceptions import ParameterTypeError

    from flows.promote import promote

    with pytest.raises(PromotionError, match="'m' has no candidate"):
        promote.fn(name="m", approved_by="head of laboratory", reason="better")
    models.registry.promote("m", "3", "candidate")
    done = promote.fn(name="m", approved_by="head of laboratory", reason="better")
    assert (done["version"], done["alias"]) == ("3", "champion")
    assert [e["payload"]["approver"] for e in models.ledger.entries("approved")] == ["head of laboratory"]
    for wrong in ({"approved_by": "  "}, {"reason": ""}, {"version": "newest"}):
        with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
            promote.validate_parameters({"name": "m", "approved_by": "head", "reason": "better", **wrong})

"""Registry, ledger and serving on the servers: MLflow behind its login, the ledger in PostgreSQL, files in S3."""

import json
import re
import subprocess
import sys
import uuid

import httpx
import numpy as np
import pytest

from infra.errors import LeaseHeldError, PromotionError
from infra.model_registry import CHAMPION, PREVIOUS
from infra.project import Project
from tests.served_models import BATCH, register

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def project(on_stack):
    return Project()


@pytest.fixture
def name():
    return f"m-{uuid.uuid4().hex[:8]}"


def simple(project, name, key):
    """A version whose model is one file."""
    run = project.tracker.open("lifecycle")
    project.tracker.client.log_text(run, f"weights {key}", "model/weights.txt")
    measured = {"test": {"source_accuracy": 0.95}, "model": {"size_bytes": 800.0}}
    version = project.registry.register(name, run, key, "card", {}, measured)
    project.registry.judge(name, version)
    return version


def test_promotion_rollback_drift_and_history(stack, project, name):
    registry = project.registry
    for key in ("one", "two", "three"):
        simple(project, name, key)
    done = stack.clearwell("promote", name, "1", "--json")
    assert json.loads(done.stdout)["alias"] == CHAMPION, done.stderr
    registry.promote(name, "2", approved_by="head of laboratory", reason="better")
    assert registry.rollback(name).version == "1"
    assert (registry.holder(name, CHAMPION), registry.holder(name, PREVIOUS)) == ("1", "2")
    registry.tracker.client.set_registered_model_alias(name, CHAMPION, "3")
    assert [each["what"] for each in registry.recover() if each["model"] == name] == ["alias-drift"]
    told = json.loads(stack.clearwell("history", name, "--json").stdout)
    assert told["ledger"][-1]["payload"]["reason"] == "moved from 1 to 3 outside clearwell"
    registry.retire(name, "2", "data erased")
    with pytest.raises(PromotionError, match="it was retired: data erased"):
        registry.promote(name, "2")
    with registry.ledger.lease(f"promote:{name}", 60), pytest.raises(LeaseHeldError, match="right now"):
        registry.promote(name, "1")


def test_bytes_changed_in_the_store_refuse_promotion(project, name):
    registry = project.registry
    simple(project, name, "one")
    run = registry.tracker.client.get_model_version(name, "1").run_id
    registry.tracker.client.log_text(run, "other weights", "model/weights.txt")
    with pytest.raises(PromotionError, match=r"weights\.txt was changed"):
        registry.promote(name, "1")


@pytest.mark.parametrize(("at", "outcome"), [("set_model_version_tag", "completed"), ("_compare_and_set", "undone")])
def test_promotion_killed_half_way_is_settled(stack, project, name, at, outcome):
    for key in ("one", "two"):
        simple(project, name, key)
    project.registry.promote(name, "1")
    program = f"""
import os, signal
from infra.project import Project
from infra.settings import settings
settings()
registry = Project().registry
owner = registry.moves if {at!r} == "_compare_and_set" else registry.tracker.client
setattr(owner, {at!r}, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
registry.promote({name!r}, "2")
"""
    assert stack.python(program).returncode == -9
    settled = [each["what"] for each in project.registry.recover() if each["model"] == name]
    assert settled == [outcome]
    assert project.registry.holder(name, CHAMPION) == ("2" if outcome == "completed" else "1")
    assert project.registry.holder(name, PREVIOUS) == ("1" if outcome == "completed" else None)
    assert project.ledger.broken_at() is None


def test_ledger_is_verified(stack, project):
    project.ledger.append("note", reason="something to verify")
    done = stack.clearwell("ledger", "verify")
    assert done.returncode == 0, done.stderr
    assert "chain is whole" in done.stdout


def test_champion_is_served_from_the_store(stack, project, name):
    answers = dict(register(project, key, name) for key in ("1", "2"))
    project.registry.promote(name, "1")
    command = [sys.executable, "-m", "flows.cli", "serve", f"{name}@champion", "--port", "0", "--every", "0.2"]
    server = subprocess.Popen(
        command, cwd=stack.root, env=stack.environment(COLUMNS="200"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        line = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        answer = httpx.post(f"{address}/invocations", json={"inputs": BATCH}, timeout=30)
        np.testing.assert_allclose(answer.json()["predictions"], answers["1"], rtol=1e-5)
        project.registry.promote(name, "2")
        while answer.headers["x-clearwell-model"] != f"{name}/2":
            answer = httpx.post(f"{address}/invocations", json={"inputs": BATCH}, timeout=30)
            assert answer.is_success
        np.testing.assert_allclose(answer.json()["predictions"], answers["2"], rtol=1e-5)
    finally:
        server.kill()
        server.communicate()

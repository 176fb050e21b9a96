"""Flows as deployments on the real servers: registered, started, told of drift, and settled after kills."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Running
from sklearn.datasets import load_iris

from infra.deployments import ZOMBIES, start
from infra.project import Project
from infra.settings import settings
from infra.zombies import crash_zombies
from tests.tasks.test_watching import champion_of_digits, enlarged_digits, small_classifier

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
NAMES = {
    "lifecycle",
    "label-audit",
    "pretrain",
    "adapt",
    "compare",
    "compress",
    "curate",
    "discover",
    "erasure",
    "plan",
    "promote",
    "score",
    "drift-watch",
    "reconcile",
}
ON_FLOWERS = {
    "discover": {"methods": ["faster-pam"], "config": {"n_clusters": 3, "seeds": 1}},
    "curate": {"config": {"method": "k-centre", "budget": 30}, "labels": {"enabled": False}},
    "compare": {"stage": "discover", "methods": ["faster-pam"], "budget": 60},
    "plan": {"config": {"budget": 300, "quantiles": 2, "pilot": 40}},
}


@pytest.fixture
def client(deployed, on_stack):
    with on_stack.in_force() as current:
        server = {
            PREFECT_API_URL: current.orchestration.api,
            PREFECT_API_AUTH_STRING: current.orchestration.auth.get_secret_value(),
        }
        with temporary_settings(updates=server), get_client(sync_client=True) as client:
            yield client  # Prefect read its settings when it was imported, before the stack was up


def deployments(client):
    return {deployment.name: deployment for deployment in client.read_deployments()}


def finished(client, run, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = client.read_flow_run(UUID(str(run))).state
        if state is not None and state.is_final():
            return state
        time.sleep(1)
    raise AssertionError(f"{run} did not end: {state}")


def test_every_flow_is_a_deployment_with_a_form(client):
    found = deployments(client)
    assert found.keys() >= NAMES
    for name in NAMES - {"reconcile"}:
        schema = found[name].parameter_openapi_schema
        for parameter, field in schema["properties"].items():
            described = (
                field.get("description") or schema["definitions"][field["$ref"].rpartition("/")[2]]["description"]
            )
            assert described, (name, parameter)
    lifecycle = found["lifecycle"].parameter_openapi_schema
    assert lifecycle["properties"]["config"]["default"]["finetune"]["epochs"] == 8
    assert lifecycle["definitions"]["FinetuneConfig"]["properties"]["epochs"]["description"]
    (nightly,) = found["lifecycle"].schedules
    assert (nightly.active, nightly.schedule.cron) == (False, "0 2 * * *")
    assert found["drift-watch"].schedules[0].active
    assert {found[name].work_pool_name for name in NAMES} == {"clearwell"}


def test_deploying_again_changes_nothing(client, deployed):
    before = {name: deployment.id for name, deployment in deployments(client).items()}
    done = deployed.clearwell("deploy")
    assert done.returncode == 0, done.stderr
    assert {name: deployment.id for name, deployment in deployments(client).items()} == before
    assert len(client.read_automations_by_name(ZOMBIES)) == 1
    assert len(client.read_automations_by_name("clearwell: drift starts an adaptation")) == 1


@pytest.mark.parametrize("name", ON_FLOWERS)
def test_the_worker_answers_what_is_asked_of_a_dataset(client, tmp_path, name):
    flowers = tmp_path / "flowers.csv"
    load_iris(as_frame=True).frame.rename(columns={"target": "label"}).to_csv(flowers, index=False)
    data = [str(flowers)] if name == "plan" else str(flowers)
    run = client.create_flow_run_from_deployment(
        deployments(client)[name].id, parameters={"data": data, **ON_FLOWERS[name]}
    )
    state = finished(client, run.id)
    assert state.is_completed(), state.message
    tracker = Project().tracker
    (told,) = tracker.client.search_runs([tracker.experiment], f"tags.clearwell.prefect_run = '{run.id}'")
    assert told.info.status == "FINISHED"
    below = tracker.client.search_runs([tracker.experiment], f"tags.mlflow.parentRunId = '{told.info.run_id}'")
    assert below


def test_drift_in_the_bucket_ends_in_a_candidate(client, monkeypatch):
    digits = enlarged_digits()
    with monkeypatch.context() as lenient:
        lenient.setenv("CLEARWELL_GATES", '[{"metric": "source_accuracy", "split": "test", "at_least": 0.5}]')
        settings.cache_clear()
        made = champion_of_digits(Project(), digits, small_classifier(digits))
        assert made.registered.evidence["alias"] == "champion", made.registered.evidence["refused"]
    settings.cache_clear()
    project = Project()
    bucket = project.object_store.buckets.data

    def land(rows, name):
        shard = io.BytesIO()
        rows.to_parquet(shard)
        project.object_store.write(bucket, f"incoming/digits/{name}.parquet", shard.getvalue())
        parameters = {"where": "incoming/digits", "model": "digits-classifier", "name": "digits-incoming"}
        found = deployments(client)["drift-watch"]
        run = client.create_flow_run_from_deployment(found.id, parameters=parameters)
        assert finished(client, run.id).is_completed()

    land(digits.later, "clean")
    land(digits.other, "other")
    filed = [entry["payload"] for entry in project.ledger.entries("drift")]
    assert [(entry["drifted"], entry["heard"]) for entry in filed] == [(False, False), (True, True)]
    adapt = deployments(client)["adapt"]
    chosen = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[adapt.id]))
    deadline = time.monotonic() + 120
    while not (runs := client.read_flow_runs(flow_run_filter=chosen)):
        assert time.monotonic() < deadline, "the automation did not start adapt"
        time.sleep(1)
    assert len(runs) == 1
    assert runs[0].parameters["batch"] == filed[1]["batch"]
    state = finished(client, runs[0].id)
    assert state.is_completed(), state.message
    assert {version["version"] for version in project.registry.versions("digits-classifier")} == {"1", "2"}
    (verdicts,) = [e for e in project.ledger.entries("verdicts") if e["payload"]["version"] == "2"][-1:]
    assert verdicts["payload"]["verdicts"]
    story = project.tracker.client.search_runs(
        [project.tracker.experiment], f"tags.clearwell.prefect_run = '{runs[0].id}'"
    )[0].data.tags
    assert story["clearwell.prefect_page"].endswith(f"/runs/flow-run/{runs[0].id}")
    assert story["clearwell.prefect_page"] in story["mlflow.note.content"]


def test_a_run_whose_process_is_gone_becomes_crashed(client):
    project = Project()
    run = client.create_flow_run_from_deployment(deployments(client)["score"].id, state=Running())
    code = (
        "import sys; from infra.project import Project\n"
        "Project().tracker.open('score', **{'clearwell.prefect_run': sys.argv[1]})"
    )
    subprocess.run([sys.executable, "-c", code, str(run.id)], check=True)
    project.tracker.open("score", **{"clearwell.prefect_run": str(uuid4())})  # this process lives
    project.tidy()
    assert crash_zombies(project) == [str(run.id)]
    assert client.read_flow_run(run.id).state.is_crashed()
    assert crash_zombies(project) == []


def test_reconcile_runs_as_a_deployment(client):
    assert finished(client, start("reconcile/reconcile")).type.value in ("COMPLETED", "CANCELLED")

"""Tell the Prefect server of the flows: the work pool, the deployments of ``prefect.yaml``, and the automations."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from infra.errors import ConfigurationError, ServerError
from infra.settings import Settings

FILE = "prefect.yaml"
POOL = "clearwell"
ZOMBIES = "clearwell: a run without heartbeat has crashed"
HEARTBEAT_SECONDS = 30
SILENCE = timedelta(seconds=4 * HEARTBEAT_SECONDS)  # a busy machine may be late with a few of them


def find_file(root: Path) -> Path:
    """The project's ``prefect.yaml``, else the one that comes with clearwell's sources.

    Raises
    ------
    ConfigurationError
        If there is neither.
    """
    places = (root / FILE, Path(__file__).parents[1] / FILE)
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise ConfigurationError(f"{root} has no {FILE}. Copy the one of clearwell's sources there.")
    return found


def register(settings: Settings) -> None:
    """Register pool, deployments and automations; doing it again changes nothing.

    Raises
    ------
    ServerError
        If there is no server, or it refuses.
    """
    if not settings.orchestration.api:
        raise ServerError("There is no Prefect server to register the flows with. Start one with `clearwell up`.")
    _register_pool()
    _register_deployments(settings)
    _register_automation()


def start(name: str) -> str:
    """Start a deployment now; returns the flow run's id."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(name)
        return str(client.create_flow_run_from_deployment(deployment.id).id)


def _register_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        try:
            if client.read_work_pool(POOL).base_job_template:
                return
        except ObjectNotFound:
            pass
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:  # the worker makes it when it starts
            return


def _register_deployments(settings: Settings) -> None:
    """Prefect's own command does it, so that ``prefect.yaml`` means what Prefect's documentation says."""
    file = find_file(settings.root)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    environment = {**os.environ, "CLEARWELL_ROOT": str(settings.root), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=settings.root, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ServerError(f"Prefect did not take the deployments of {file}:\n{said}")


def _register_automation() -> None:
    """Runs that stop sending heartbeats become Crashed; a self-hosted server does not do that by itself."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    wanted = AutomationCore(
        name=ZOMBIES,
        description="A killed process sends no heartbeat any more.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ends},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="No heartbeat: its process is gone.")],
    )
    with get_client(sync_client=True) as client:
        present = client.read_automations_by_name(ZOMBIES)
        for old in present[1:]:
            client.delete_automation(old.id)
        if present:
            client.update_automation(present[0].id, wanted)
        else:
            client.create_automation(wanted)

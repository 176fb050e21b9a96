"""Flow runs that Prefect takes for running though their process is gone.

The automation of ``infra/deployments.py`` finds those that sent heartbeats; this finds those whose MLflow run was
closed because its process on this host no longer runs.
"""

from __future__ import annotations

from uuid import UUID

from infra.project import Project

LATEST = 200  # killed runs that are looked at, newest first


def crash_zombies(project: Project) -> list[str]:
    """Mark such runs Crashed; returns their ids."""
    if not project.settings.orchestration.api:
        return []
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    tracker = project.tracker
    killed = tracker.client.search_runs(
        [tracker.experiment], "attributes.status = 'KILLED'", max_results=LATEST, order_by=["attributes.end_time DESC"]
    )
    wanted = [run.data.tags.get("clearwell.prefect_run", "") for run in killed]
    crashed = []
    with get_client(sync_client=True) as client:
        for run in filter(None, wanted):
            try:
                state = client.read_flow_run(UUID(run)).state
            except (ObjectNotFound, ValueError):
                continue
            if state is not None and state.is_running():
                client.set_flow_run_state(UUID(run), Crashed(message="Its process is gone."), force=True)
                crashed.append(run)
    return crashed

"""A flow run as MLflow and Prefect tell it: one run with parameters and outcome, and pages that lead to each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.runtime import flow_run
from pydantic import BaseModel

from infra import pages
from infra.project import Project
from infra.references import StageResult
from tasks.stage import RunContext, stage_task


@contextmanager
def tracked(
    flow: str, data: str, config: Mapping[str, Any], refresh: tuple[str, ...] = (), command: str | None = None
) -> Iterator[RunContext]:
    """Open the MLflow run of a flow run, and close it with what came of it.

    Parameters
    ----------
    flow, data : str
        Names of the flow and of what it works on.
    config : mapping
        The flow's parameters.
    refresh : tuple of str
        Stages to compute even when the cache holds them.
    command : str, optional
        What a user types to continue after a failure; by default, what starts the deployment.
    """
    project = Project()
    run = begin(flow, data, _plain(config))
    continued = command or f"prefect deployment run {flow}/{flow}"
    try:
        yield RunContext(parent=run, refresh=refresh, command=continued)
    except BaseException as error:
        code = str(getattr(error, "exit_code", 1))
        project.tracker.tags(run, {"clearwell.error": str(error)[:4000], "clearwell.exit_code": code})
        project.tracker.close(run, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    project.tracker.close(run)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
        for name, value in config.items()
    }


@stage_task("begin")
def begin(flow: str, data: str, parameters: dict[str, Any]) -> str:
    """Clear what killed processes left, open the MLflow run and link it with the Prefect run; returns its id."""
    project = Project()
    project.tidy()
    own = str(flow_run.get_id() or "")
    tags = {
        "clearwell.flow": flow,
        "clearwell.data": data,
        "clearwell.prefect_run": own,
        "clearwell.prefect_name": str(flow_run.get_name() or ""),
    }
    page = pages.prefect_run(project.settings, own)
    if page:
        tags |= {"clearwell.prefect_page": page, "mlflow.note.content": f"[This run in Prefect]({page})"}
    run = project.tracker.open(flow, **tags)
    project.tracker.params(run, parameters)
    link(pages.mlflow_run(project.settings, project.tracker.experiment, run), "mlflow-run", "This run in MLflow")
    return run


def link(page: str | None, key: str, text: str) -> None:
    """A link on the Prefect run's page, where there is a page to lead to."""
    if page:
        create_link_artifact(page, key=key, link_text=text, description=text)


def summary(results: Sequence[StageResult]) -> dict[str, Any]:
    """What came of a run's stages, JSON values only; shown on the Prefect run's page too."""
    settings = Project().settings
    rows = [
        {
            "stage": result.stage,
            "method": result.method,
            "seconds": result.seconds,
            "from": "cache" if result.cached else "computed",
            "output": str(result.data or result.model or ""),
        }
        for result in results
    ]
    create_table_artifact(rows, key="stages", description="Stages of the run")
    registered = next((result.evidence for result in results if result.stage == "register"), {})
    if registered:
        page = pages.mlflow_version(settings, registered["name"], registered["version"])
        link(page, "registered-model", f"{registered['name']} version {registered['version']} in MLflow")
    return {
        "stages": rows,
        "metrics": {result.stage: result.metrics for result in results},
        "registered": {
            name: registered[name] for name in ("name", "version", "alias", "refused") if name in registered
        },
    }

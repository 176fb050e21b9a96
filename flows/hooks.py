"""What happens when a flow run ends badly, beside the state that Prefect shows."""

from __future__ import annotations

from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import flow_run_logger

from infra import pages
from infra.events import FAILED, emit, notify
from infra.settings import settings


def tell_failure(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Log the failure, send the event ``clearwell.run.failed``, and post it to the webhook of the settings."""
    _tell(flow, flow_run, state, state.message)


def tell_failed_erasure(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The same without the message, which may name rows that somebody wants forgotten."""
    _tell(flow, flow_run, state, "continue it with `clearwell forget --resume`, which says what was wrong")


def _tell(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any], message: str | None) -> None:
    current = settings()
    page = pages.prefect_run(current, str(flow_run.id))
    facts = {"flow": flow.name, "run": flow_run.name, "state": state.name, "message": message, "page": page}
    flow_run_logger(flow_run, flow).error("%s ended as %s: %s", flow_run.name, state.name, message)
    emit(current, FAILED, f"flow.{flow.name}", facts)
    notify(current, f"clearwell: {flow.name} ({flow_run.name}) {state.name}: {message} {page or ''}", facts)

"""What is told to Prefect and to people: events that automations wait for, and a message when a run fails."""

from __future__ import annotations

import logging
from typing import Any

from infra.settings import Settings

DRIFT = "clearwell.drift.detected"
FAILED = "clearwell.run.failed"
_PATIENCE = 10.0  # seconds that sending may take

log = logging.getLogger("clearwell")


def emit(settings: Settings, event: str, resource: str, payload: dict[str, Any]) -> bool:
    """Send an event to the Prefect server; returns False where there is none that could act on it."""
    if not settings.orchestration.api:
        return False
    from prefect.events import emit_event

    emit_event(event, resource={"prefect.resource.id": f"clearwell.{resource}"}, payload=payload)
    return True


def notify(settings: Settings, message: str, payload: dict[str, Any]) -> bool:
    """Post a message to the webhook of the settings, if there is one; trouble with it is logged, never raised."""
    address = settings.notify.webhook
    if address is None:
        return False
    import httpx

    try:
        httpx.post(address.get_secret_value(), json={"text": message, **payload}, timeout=_PATIENCE).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:  # the address is a secret, and stands in the error's text
        log.warning("The webhook did not take the message (%s).", type(error).__name__)
        return False
    return True

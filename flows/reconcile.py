"""After kills: bring runs, registry and erasures back to one state. At start of the stack, and on schedule."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.erasure import finish_erasures
from flows.hooks import tell_failure
from tasks.reconcile import settle


@flow(name="reconcile", on_failure=[tell_failure], on_crashed=[tell_failure])
def reconcile() -> dict[str, Any]:
    """Close what killed processes left open, finish or undo half-done promotions and erasures, report alias drift."""
    return settle() | {"erasures": finish_erasures()}

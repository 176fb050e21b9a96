"""Bring everything back to one state."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_table_artifact

from infra.errors import StoreError
from infra.project import Project
from infra.reconcile import reconcile
from tasks.stage import stage_task


@stage_task("settle")
def settle() -> dict[str, Any]:
    """Run every part of the reconciliation; what each found is shown on the run's page.

    Raises
    ------
    StoreError
        If a part failed; the others were done.
    """
    found = reconcile(Project())
    rows = [{"part": name, "found": str(value)} for name, value in found.items()]
    create_table_artifact(rows, key="reconciled", description="What each part found or did")
    failed = [name for name, value in found.items() if isinstance(value, dict) and "failed" in value]
    if failed:
        told = "; ".join(f"{name}: {found[name]['failed']}" for name in failed)
        raise StoreError(f"Not everything could be settled: {told}. The next run of `reconcile` tries again.")
    return found

"""``clearwell deploy``."""

from __future__ import annotations

from infra.settings import settings


def deploy() -> None:
    """Register pool, deployments and automations with the Prefect server, and settle what kills left."""
    current = settings()
    from infra.deployments import register, start

    register(current)
    start("reconcile/reconcile")


def deploy_and_say() -> None:
    """The same, and what to do next."""
    deploy()
    from flows.commands.console import out

    out.print("The deployments of prefect.yaml are registered. Start one in the Prefect UI, or with:")
    out.print("  prefect deployment run lifecycle/lifecycle", highlight=False)

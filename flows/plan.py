"""What a budget buys: which pools to train on, how much of each, how many passes, and what to expect."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.hooks import tell_failure
from infra.errors import ConfigurationError
from tasks.ingest import ingest
from tasks.plan import PlanConfig, announce, check_budget
from tasks.plan import plan as planning
from tasks.tracked import tracked


@flow(name="plan", on_failure=[tell_failure], on_crashed=[tell_failure])
def plan(
    data: tuple[str, ...] = ("scans",), config: PlanConfig = PlanConfig(budget=20_000), command: str = ""
) -> dict[str, Any]:
    """Forecast choices of pools from pilot runs, recommend one, train it and two others.

    Args:
        data: Datasets: names, NAME@VERSION, or paths. Several are a pool each, judged on the first one's test split.
        config: The budget and what the pools are.
        command: What a user types to do it again.
    """
    check_budget(config.budget)
    with tracked("plan", ", ".join(data), {"data": list(data), "plan": config}, command=command or None) as run:
        versions = [ingest(each).data for each in data]
        if len({each.name for each in versions}) < len(versions):
            raise ConfigurationError("Datasets of one name can not be told apart as pools. Give the files other names.")
        summary = planning(versions, config, run)
        announce(summary)
        return summary

"""``clearwell plan``."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from infra.embedded_server import embedded_server
from infra.settings import settings


def run_plan(
    data: tuple[str, ...], budget: int, pools: str, score: str, quantiles: int, pilot: int, seed: int, as_json: bool
) -> None:
    """Check what can be checked before anything runs, run the flow, print the answer."""
    settings()
    with embedded_server() as server:  # before Prefect is imported, which starts a server of its own otherwise
        from flows.commands.console import print_json, stage_progress
        from flows.plan import plan
        from tasks.plan import PlanConfig, check_budget
        from tasks.pools import check_score

        check_budget(budget)
        check_score(score)
        config = PlanConfig(budget=budget, pools=pools, score=score, quantiles=quantiles, pilot=pilot, seed=seed)
        if server is not None:
            server.wait()
        with stage_progress():
            summary = plan(data, config, command=shlex.join(["clearwell", *sys.argv[1:]]))
    if as_json:
        print_json(summary)
        return
    _show(summary)


def _show(summary: dict[str, Any]) -> None:
    from flows.commands.console import out, plain, print_table
    from tasks.plan import table

    title = f"{summary['budget']:,} rows seen, of {', '.join(summary['data'])}: accuracy predicted and reached"
    print_table(title, table(summary["choices"], summary["recommended"]))
    for sentence in summary["text"]:
        out.print(plain(sentence), highlight=False)
    out.print()
    for note in summary["notes"]:
        out.print(plain(note), highlight=False)
    out.print(f"\nThe figure: {summary['figure']}", highlight=False, soft_wrap=True)

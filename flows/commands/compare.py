"""``clearwell compare``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from infra.embedded_server import embedded_server
from infra.settings import settings

DEPLOYMENT = "compare/compare"


def run_compare(
    stage: str, data: str, methods: str, budget: float, seed: int, rows: int, here: bool, as_json: bool
) -> None:
    """Check the names, hold the contest here or by the stack's worker, print the leaderboard."""
    current = settings()
    from tasks.arenas import open_arena

    arena = open_arena(stage)
    chosen = tuple(name.strip() for name in methods.split(",") if name.strip())
    _check(stage, chosen, arena.baselines)
    given: dict[str, Any] = {
        "stage": stage,
        "data": data,
        "methods": chosen,
        "budget": budget,
        "seed": seed,
        "rows": rows,
    }
    given["command"] = shlex.join(["clearwell", *sys.argv[1:]])
    if current.orchestration.api and not here:
        summary = _submit(given)
    else:
        with embedded_server() as server:
            from flows.commands.console import stage_progress
            from flows.compare import compare

            if server is not None:
                server.wait()
            with stage_progress():
                summary = compare(**given)
    from flows.commands.console import print_json

    if as_json:
        print_json(summary)
        return
    _show(summary)


def _check(stage: str, methods: tuple[str, ...], baselines: dict[str, str]) -> None:
    """A name that nobody knows is refused before anything runs."""
    from models.registry import STAGES, list_methods
    from tasks.arenas import check_names

    if stage in STAGES:
        check_names(methods, [*(card.name for card in list_methods(stage)), *baselines], stage)


def _submit(parameters: dict[str, Any]) -> dict[str, Any]:
    """Let the worker do it, and follow."""
    from flows.commands.console import err
    from infra.flow_runs import submit
    from infra.project import Project
    from tasks.ingest import is_path

    project = Project()
    if is_path(project, parameters["data"]):
        parameters["data"] = str(Path(parameters["data"]).resolve())  # the worker runs elsewhere
    run = submit(project.settings, project.tracker, DEPLOYMENT, parameters)
    err.print(f"Submitted: {run.page}", highlight=False, soft_wrap=True)
    try:
        return run.follow(lambda said: err.print(said, highlight=False, soft_wrap=True))
    except KeyboardInterrupt:
        err.print(f"The run goes on without you. End it with: prefect flow-run cancel {run.number}", highlight=False)
        raise


def _show(summary: dict[str, Any]) -> None:
    from flows.commands.console import out, plain, print_table

    primary = summary["primary"]["name"]
    shown = [primary, *(name for name in summary["metrics"] if name != primary)][:3]
    rows = []
    for row in summary["candidates"]:
        mark = "→ " if row["name"] == summary["recommendation"]["name"] else ""
        line: dict[str, Any] = {"candidate": f"{mark}{row['name']}{' *' if row['baseline'] else ''}"}
        line |= {name: row["metrics"].get(name, "") for name in shown}
        line["seconds"] = "" if row["seconds"] is None else row["seconds"]
        line["MB"] = f"{row['peak_memory_mb']:.0f}" if row["peak_memory_mb"] else ""
        line["status"] = row["status"]
        rows.append(line)
    print_table(f"{summary['stage']} on {summary['version']}: {summary['primary']['meaning']}", rows)
    out.print("* baseline", highlight=False)
    for row in summary["candidates"]:
        if row["reason"]:
            out.print(plain(f"{row['name']}: {row['reason']}"), highlight=False)
    out.print()
    for sentence in summary["recommendation"]["text"]:
        out.print(plain(sentence), highlight=False)
    out.print(f"\nThe page: {summary['page']}", highlight=False, soft_wrap=True)

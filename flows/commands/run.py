"""``clearwell run``."""

from __future__ import annotations

import atexit
import gc
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.embedded_server import EmbeddedServer, embedded_server
from infra.settings import settings

if TYPE_CHECKING:
    from flows.config import LifecycleConfig


DEPLOYMENT = "lifecycle/lifecycle"


def run_lifecycle(
    data: str | None,
    file: Path | None,
    overrides: list[str],
    seed: int | None,
    refresh: list[str],
    explain_cache: bool,
    show_config: bool,
    here: bool,
    as_json: bool,
) -> None:
    """Check the parameters, run the flow here or by the stack's worker, print what came of it."""
    current = settings()  # before any product is imported: it points them at this project
    gc.disable()  # a million objects are imported that live to the end: looking through them again takes seconds
    atexit.register(gc.freeze)
    submitting = bool(current.orchestration.api) and not here
    quick = show_config or submitting
    with nullcontext() if quick else embedded_server() as server:  # it starts while the rest is being imported
        from flows.commands.console import print_json
        from flows.config import load_config

        gc.freeze()
        gc.enable()
        config = load_config(file, overrides, data, seed)
        _check_stages(refresh, list(config.stages()))
        if show_config:
            import yaml

            print(yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False))
            return
        summary = _submit(config, refresh) if submitting else _run_here(config, refresh, server)
    if as_json:
        print_json(summary)
        return
    show_summary(summary, explain_cache)


def _command() -> str:
    """What a user types to continue."""
    return shlex.join(["clearwell", *sys.argv[1:]])


def _run_here(config: LifecycleConfig, refresh: list[str], server: EmbeddedServer | None) -> dict[str, Any]:
    from flows.commands.console import stage_progress
    from flows.lifecycle import lifecycle

    if server is not None:
        server.wait()
    with stage_progress():
        return lifecycle(config, tuple(refresh), _command())


def _submit(config: LifecycleConfig, refresh: list[str]) -> dict[str, Any]:
    """Let the worker run it, and follow."""
    from flows.commands.console import err
    from infra.flow_runs import submit
    from infra.project import Project
    from tasks.ingest import is_path

    project = Project()
    values = config.model_dump(mode="json", by_alias=True)
    if is_path(project, config.data):
        values["data"] = str(Path(config.data).resolve())  # the worker runs elsewhere
    parameters = {"config": values, "refresh": refresh, "command": _command()}
    run = submit(project.settings, project.tracker, DEPLOYMENT, parameters)
    err.print(f"Submitted: {run.page}", highlight=False, soft_wrap=True)
    try:
        return run.follow(lambda said: err.print(said, highlight=False, soft_wrap=True))
    except KeyboardInterrupt:
        err.print(f"The run goes on without you. End it with: prefect flow-run cancel {run.number}", highlight=False)
        raise


def _check_stages(refresh: list[str], known: list[str]) -> None:
    from difflib import get_close_matches

    from infra.errors import ConfigurationError

    known = [*known, "reference", "reference-adapt", "all"]
    for stage in refresh:
        if stage not in known:
            near = get_close_matches(stage, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ConfigurationError(f"--refresh: there is no stage {stage!r}. {hint}")


def show_summary(summary: dict[str, Any], explain_cache: bool = False) -> None:
    """The summary as a person reads it, and the next commands."""
    from flows.commands.console import out, print_table
    from tasks.evaluate import LOWER_IS_BETTER, ROWS

    rows = []
    for stage in summary["stages"]:
        row = {"stage": stage["name"], "method": "" if stage["method"] == "none" else stage["method"]}
        row["seconds"] = f"{stage['seconds']:.1f}"
        row["from"] = "cache" if stage["cached"] else "computed"
        if explain_cache:
            row["why"] = stage["why"]
        rows.append(row)
    print_table("Stages", rows)
    naive, chain = summary["naive"], summary["chain"]
    compared = []
    for key, meaning in ROWS.items():
        if key in naive and key in chain:
            wins = chain[key] < naive[key] if key in LOWER_IS_BETTER else chain[key] > naive[key]
            compared.append(
                {"": meaning, "naive": naive[key], "chain": chain[key], "better": "chain" if wins else "naive"}
            )
    if compared:
        print_table("Naive model against the chain", compared)
    computed = sum(not stage["cached"] for stage in summary["stages"])
    out.print(
        f"{len(summary['stages'])} stages, {computed} computed, {len(summary['stages']) - computed} from the cache; "
        f"{summary['wall_seconds']:.0f} s, peak memory {summary['peak_memory_mb']:.0f} MB."
    )
    champion = summary["champion"]
    if champion["name"]:
        out.print(f"Registered [bold]{champion['name']}[/] version {champion['version']} as {champion['alias']}.")
    if summary.get("refused"):
        out.print(f"[yellow]Not promoted:[/] {summary['refused']}")
    uri = settings().tracking_uri
    out.print("\nNext:")
    out.print("  clearwell report --open                 the page of this run", highlight=False)
    seen = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
    out.print(f"  {seen}", highlight=False, soft_wrap=True)
    if champion["name"]:
        out.print(f"  clearwell history {champion['name']}", highlight=False)
    out.print(
        f"  clearwell data restore {summary['data']['name']}@{summary['data']['output_version'][:12]} --to cleaned",
        highlight=False,
    )

"""``clearwell sweep`` and ``clearwell embed``: work that is divided over workers."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from infra.embedded_server import embedded_server
from infra.settings import settings


def run_sweep(stage: str, data: list[str], vary: list[str], as_json: bool) -> None:
    """Run one stage on every dataset with every combination of values; print a row each."""
    settings()
    from infra.errors import ConfigurationError

    values: dict[str, tuple[str, ...]] = {}
    for each in vary:
        name, equals, given = each.partition("=")
        if not equals or not name or not given:
            raise ConfigurationError(f"--vary takes FIELD=VALUE,VALUE, got {each!r}.")
        values[name] = tuple(given.split(","))
    with embedded_server() as server:  # before Prefect is imported, which starts a server of its own otherwise
        from flows.commands.console import print_json, print_table
        from flows.sweep import sweep, variants
        from infra.runner import task_runner

        variants(stage, values)
        if server is not None:
            server.wait()
        command = shlex.join(["clearwell", *sys.argv[1:]])
        rows = sweep.with_options(task_runner=task_runner())(stage, tuple(data), values, command)
    if as_json:
        print_json(rows)
        return
    print_table(f"{stage}: {len(rows)} runs", [{key: _short(row.get(key)) for key in _telling(rows)} for row in rows])


def _telling(rows: list[dict[str, Any]], at_most: int = 8) -> list[str]:
    """Columns for a person: those in which the runs differ, as many as fit; ``--json`` has them all."""
    first = rows[0]
    differing = [
        key for key in first if key not in ("data", "seconds") and len({str(row.get(key)) for row in rows}) > 1
    ]
    return ["data", "seconds", *differing][:at_most]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_embed(data: str, model: str, as_json: bool) -> None:
    """Embed a dataset with a registered model; print the version that holds the embedding."""
    settings()
    with embedded_server() as server:
        from flows.commands.console import out, print_json
        from flows.embed import embed_dataset

        if server is not None:
            server.wait()
        found = embed_dataset(data, model, shlex.join(["clearwell", *sys.argv[1:]]))
    if as_json:
        print_json(found)
        return
    out.print(f"{found['data']} holds {found['rows']} rows of {found['width']} numbers, by {found['model']}.")

"""``clearwell discover``."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from infra.embedded_server import embedded_server
from infra.settings import settings


def run_discover(
    data: str,
    methods: tuple[str, ...],
    clusters: int | None,
    known: tuple[str, ...] | None,
    encoder: str,
    seed: int | None,
    overrides: list[str],
    as_json: bool,
) -> None:
    """Check the parameters, run the flow, print the groups."""
    settings()
    with embedded_server() as server:  # before Prefect is imported, which starts a server of its own otherwise
        from flows.commands.console import print_json, stage_progress
        from flows.config import load_stage
        from flows.discover import check_choices, discover
        from tasks.discover import DiscoverConfig

        config = load_stage(DiscoverConfig, overrides, n_clusters=clusters, known=known, seed=seed)
        check_choices(config, methods)
        if server is not None:
            server.wait()
        with stage_progress():
            found = discover(data, methods, config, encoder, command=shlex.join(["clearwell", *sys.argv[1:]]))
    if as_json:
        print_json(found)
        return
    from flows.commands.console import left_out, out

    for method, rows in found["clusters"].items():
        _show(method, rows, found["noise"][method], found["notes"][method], found["versions"][method])
    said = left_out(found["metrics"]["validate"], int(found["metrics"]["discover"]["rows"]))
    if said:
        out.print(said, highlight=False)


def _show(method: str, clusters: list[dict[str, Any]], noise: int, notes: list[str], version: str) -> None:
    from flows.commands.console import out, plain, print_table

    rows = [
        {
            "group": cluster["cluster"],
            "name": cluster["name"],
            "rows": cluster["rows"],
            "share": f"{cluster['share']:.1%}",
            "confidence": f"{cluster['confidence']:.2f}",
            "typical rows": ", ".join(map(str, cluster["exemplars"][:3])),
        }
        for cluster in clusters
    ]
    print_table(f"{method}: {len(rows)} group{'s' if len(rows) != 1 else ''}", rows)
    if noise:
        out.print(f"In no group, as noise: {noise:,} rows.", highlight=False)
    for note in notes:
        out.print(plain(f"{method}: {note}"), highlight=False)
    out.print(f"Written as [bold]{version}[/]. Look at the rows with:", highlight=False)
    out.print(f"  clearwell data restore {version} --to groups", highlight=False, soft_wrap=True)

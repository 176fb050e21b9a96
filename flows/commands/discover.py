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
    from flows.config import load_stage
    from tasks.discover import DiscoverConfig

    config = load_stage(DiscoverConfig, overrides, n_clusters=clusters, known=known, seed=seed)
    from flows.discover import check_methods, discover

    check_methods(methods or (config.method,))
    with embedded_server() as server:
        from flows.commands.console import print_json, stage_progress

        if server is not None:
            server.wait()
        with stage_progress():
            found = discover(data, methods, config, encoder, command=shlex.join(["clearwell", *sys.argv[1:]]))
    if as_json:
        print_json(found)
        return
    for method, rows in found["clusters"].items():
        _show(method, rows, found["versions"][method])


def _show(method: str, clusters: list[dict[str, Any]], version: str) -> None:
    from flows.commands.console import out, print_table

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
    print_table(f"{method}: {len(rows)} groups", rows)
    out.print(f"Written as [bold]{version}[/]. Look at the rows with:", highlight=False)
    out.print(f"  clearwell data restore {version} --to groups", highlight=False, soft_wrap=True)

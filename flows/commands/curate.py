"""``clearwell curate``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from infra.embedded_server import embedded_server
from infra.settings import settings


def run_curate(
    data: str,
    method: str | None,
    budget: float | None,
    epochs: int | None,
    encoder: str,
    trust_labels: bool,
    wanted: Path | None,
    evaluation: tuple[Path, ...],
    seed: int | None,
    overrides: list[str],
    as_json: bool,
) -> None:
    """Check the parameters, run the flow, print what was kept and what fewer rows cost."""
    settings()
    with embedded_server() as server:  # before Prefect is imported, which starts a server of its own otherwise
        from flows.commands.console import print_json, stage_progress
        from flows.config import load_stage
        from flows.curate import curate
        from tasks.curate import CurateConfig, check_selector, text_plan
        from tasks.label_noise import LabelNoiseConfig

        config = load_stage(
            CurateConfig,
            overrides,
            method=method,
            budget=budget,
            epochs=epochs,
            wanted=str(wanted.resolve()) if wanted else None,
            evaluation=tuple(str(each.resolve()) for each in evaluation) or None,
            seed=seed,
        )
        check_selector(config.method, config.parameters)
        text_plan(config)
        if server is not None:
            server.wait()
        labels = LabelNoiseConfig(enabled=not trust_labels)
        with stage_progress():
            found = curate(data, config, encoder, labels=labels, command=shlex.join(["clearwell", *sys.argv[1:]]))
    if as_json:
        print_json(found)
        return
    _show(config.method, found)


def _show(method: str, found: dict[str, Any]) -> None:
    from flows.commands.console import left_out, out, print_table

    kept, usable, rows_there = int(found["selected"]), int(found["usable"]), int(found["metrics"]["curate"]["rows"])
    out.print(f"{method} keeps {kept:,} of {usable:,} rows: [bold]{found['version']}[/].")
    if rows_there > usable:
        out.print(
            f"{rows_there - usable:,} more could not be chosen: they belong to no class, or have no label that can be "
            "trusted. --trust-labels takes labels as given.",
            highlight=False,
        )
    said = left_out(found["metrics"]["validate"], rows_there)
    if said:
        out.print(said, highlight=False)
    rows = [
        {
            "method": row["method"],
            "rows": row["rows"],
            "share": f"{row['budget']:.0%}",
            "accuracy": f"{row['accuracy']:.4f}",
            "seconds to choose": f"{row['seconds']:.2f}",
        }
        for row in sorted(found["curve"], key=lambda row: (-row["budget"], row["method"]))
    ]
    if rows:
        print_table("What fewer rows cost (a linear classifier on the rows kept)", rows)
    if found["funnel"]:
        print_table("Texts left out", found["funnel"])
    out.print("Each row's reason is in the column selection_reason:", highlight=False)
    out.print(f"  clearwell data restore {found['version']} --to curated", highlight=False, soft_wrap=True)

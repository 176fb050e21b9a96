"""How commands speak: tables for people, JSON for machines, bars only on a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from infra.errors import visible

out = Console()
err = Console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, default=str))


def print_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Rows as a table; empty cells where a row lacks a column."""
    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    table = Table(title=plain(title), title_justify="left", header_style="bold")
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(plain(figure(row.get(name, ""))) for name in names))
    out.print(table)


def plain(text: str) -> str:
    """Text from data or a user as it is: no markup in it counts, and nothing in it steers the terminal."""
    return escape(visible(text))


def figure(value: Any) -> str:
    """A number with the digits one reads, anything else as text."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def left_out(validated: Mapping[str, float], looked_at: int) -> str:
    """What became of rows that a stage did not look at; empty where it looked at all."""
    aside, elsewhere = int(validated["quarantined"]), int(validated["rows_out"]) - looked_at
    said = [f"{aside:,} set aside by validation"] if aside else []
    said += [f"{elsewhere:,} of other splits"] if elsewhere else []
    return f"Rows not looked at: {', '.join(said)}." if said else ""


@contextmanager
def stage_progress() -> Iterator[None]:
    """A bar for each stage with its epochs inside; nothing at all when standard error is not a terminal."""
    if not err.is_terminal:
        yield
        return
    from tasks.stage import watching  # it brings the methods along, which most commands do not need

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[mark]} {task.description:<16}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=err,
    ) as progress:
        bars: dict[str, TaskID] = {}

        def watch(event: str, stage: str, facts: dict[str, Any]) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=None, detail="", mark=" ")
            bar = bars[stage]
            if event == "begin":
                progress.update(bar, detail=f"{facts['method']}: {facts['why'][:60]}")
            elif event == "epoch":
                text = f"{facts['training']} epoch {facts['epoch']}/{facts['epochs']}"
                progress.update(bar, total=facts["epochs"], completed=facts["epoch"], detail=text)
            else:
                mark = {"end": "[green]✓[/]", "cached": "[cyan]↺[/]", "failed": "[red]✗[/]"}[event]
                said = {"cached": "from the cache", "failed": "failed"}.get(event, "done")
                detail = plain(str(facts.get("detail", said)))
                progress.update(bar, total=1, completed=1, mark=mark, detail=detail)
                progress.stop_task(bar)

        with watching(watch):
            yield


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed wall time."""
        return time.perf_counter() - self.began

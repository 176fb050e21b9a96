"""Compare every method of a stage on the same data: rows split once, candidates run apart, one table, one page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_table_artifact
from pydantic import Field

from infra import datasets as ds
from infra.errors import ClearwellError, StageError
from infra.files import draft_folder, replace, write_text
from infra.processes import cores
from infra.project import Project
from infra.references import DatasetRef, Reference
from tasks.arenas import PLACES, Arena, Bout, Candidate, Source, check_names, open_arena
from tasks.contest import DONE, FAILED, LATE, Row, contest
from tasks.leaderboard import duration, page, ranked, recommend
from tasks.stage import RunContext, stage_task, tell

_ENDS = {DONE: "FINISHED", LATE: "KILLED", FAILED: "FAILED"}


class CompareConfig(Reference):
    """How candidates are compared.

    Attributes
    ----------
    stage : str
    methods : tuple of str
        Registered names; empty takes all that apply. Baselines take part in any case.
    """

    stage: str = Field(description="Stage whose methods are compared.")
    methods: tuple[str, ...] = Field((), description="Registered names; empty takes all. Baselines always take part.")
    budget: float = Field(120.0, gt=0, description="Seconds each candidate has, on one thread.")
    seed: int = Field(0, ge=0, description="Random state of the split, of what is planted, and of every candidate.")
    rows: int = Field(5000, ge=20, description="Rows taken at most, drawn at random.")


@stage_task("compare")
def compare(data: DatasetRef, truth: DatasetRef | None, config: CompareConfig, run: RunContext) -> dict[str, Any]:
    """Hold the contest and write its page; returns the summary, JSON values only.

    Parameters
    ----------
    truth : DatasetRef, optional
        True labels by id, which only measuring sees.

    Raises
    ------
    ConfigurationError
        For a stage that has no arena, or an unknown method.
    DatasetFormatError
        If the data lacks what the stage needs.
    StageError
        If the data can not be made ready, or not one candidate got to its end; then the page is written all the same.
    """
    project = Project()
    arena = open_arena(config.stage)
    folder = project.versions.path(data)
    hidden = None if truth is None else project.versions.path(truth)
    tell("begin", "split", method=config.stage, why=f"{data}")
    try:
        bout = arena.prepare(Source(folder, ds.infer_schema(folder), hidden), config.seed, config.rows)
    except ClearwellError:
        raise
    except Exception as error:
        raise StageError(
            f"{data} could not be made ready for comparing the methods of {config.stage!r}: "
            f"{type(error).__name__}: {error}\nWhen the cause is mended, continue with: {run.command}"
        ) from error
    tell("end", "split")
    candidates = chosen(arena.candidates(bout.facts), config.methods, config.stage)
    at_once = min(project.settings.runner.workers or cores(), len(candidates))
    board = _Board(project, data, config, run)
    project.tracker.dataset(run.parent, data, "input")
    began = time.perf_counter()
    with board, draft_folder(project.settings.state) as work:
        rows = contest(
            bout,
            PLACES[config.stage],
            candidates,
            work,
            budget=config.budget,
            seed=config.seed,
            at_once=at_once,
            watch=board.watch,
        )
    for row in rows:
        row.objection = arena.objection(row.metrics, bout.facts) if row.status == DONE else ""
    rows = ranked(rows, arena.primary(bout.facts))
    summary = summarise(arena, bout, rows, data, config, run)
    summary |= {"at_once": at_once, "wall_seconds": round(time.perf_counter() - began, 1)}
    summary["page"] = _publish(project, arena, bout, rows, summary, run)
    if not any(row.status == DONE for row in rows):
        reasons = "\n".join(f"  {row.name}: {row.status}; {row.reason}" for row in rows)
        raise StageError(
            f"Not one of {len(rows)} candidates of {config.stage!r} got to its end on {data}:\n{reasons}\n"
            f"The page is {summary['page']}. Raise --budget, or mend what they say and continue with: {run.command}"
        )
    return summary


def chosen(candidates: Sequence[Candidate], methods: Sequence[str], stage: str) -> list[Candidate]:
    """Those that were asked for, and the baselines.

    Raises
    ------
    ConfigurationError
        For a name that the stage does not know.
    """
    check_names(methods, [each.name for each in candidates], stage)
    return [each for each in candidates if not methods or each.baseline or each.name in methods]


class _Board:
    """Tells MLflow and the watchers what happens: a child run a candidate."""

    def __init__(self, project: Project, data: DatasetRef, config: CompareConfig, run: RunContext) -> None:
        self.tracker, self.data, self.config, self.run = project.tracker, data, config, run
        self.open: set[str] = set()

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *_: object) -> None:
        """Runs of candidates that a broken-off contest ended are closed as killed."""
        for run in self.open:
            self.tracker.close(run, "KILLED")

    def watch(self, event: str, row: Row, facts: dict[str, Any]) -> None:
        """Open the run, pass on how far it is, close the run with what came of it."""
        if event == "epoch":
            tell("epoch", row.name, **facts)
            return
        if not row.run:
            kind = "baseline" if row.baseline else "method"
            tags = {"clearwell.stage": self.config.stage, "clearwell.candidate": row.name, "clearwell.kind": kind}
            row.run = self.tracker.open(row.name, self.run.parent, **tags)
            self.open.add(row.run)
            self.tracker.dataset(row.run, self.data, "input")
        if event == "begin":
            tell("begin", row.name, method="baseline" if row.baseline else "method", why=row.summary)
            return
        self._close(row)
        done = row.status == DONE
        detail = duration(row.seconds or 0.0) if done else f"{row.status}: {row.reason}"[:80]
        tell("end" if done else "failed", row.name, detail=detail)

    def _close(self, row: Row) -> None:
        spent = {name: getattr(row, name) for name in ("seconds", "cpu_seconds", "peak_memory_mb", "memory_before_mb")}
        given = {"candidate": row.name, "budget": self.config.budget, "seed": self.config.seed, **row.parameters}
        self.tracker.params(row.run, given)
        self.tracker.metrics(row.run, row.metrics | {n: value for n, value in spent.items() if value is not None})
        self.tracker.tags(row.run, {"clearwell.status": row.status, "clearwell.reason": row.reason[:4000] or "-"})
        if row.traceback:
            self.tracker.client.log_text(row.run, row.traceback, "traceback.txt")
        self.tracker.close(row.run, _ENDS.get(row.status, "FINISHED"))
        self.open.discard(row.run)


def summarise(
    arena: Arena, bout: Bout, rows: Sequence[Row], data: DatasetRef, config: CompareConfig, run: RunContext
) -> dict[str, Any]:
    """What came of it, JSON values only."""
    metric = arena.primary(bout.facts)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage": config.stage,
        "question": arena.question,
        "data": data.name,
        "version": str(data),
        "budget": config.budget,
        "seed": config.seed,
        "run": run.parent,
        "command": run.command,
        "primary": {"name": metric.name, "meaning": metric.meaning, "higher_is_better": metric.higher_is_better},
        "metrics": {each.name: each.meaning for each in arena.metrics},
        "recommendation": recommend(rows, arena, bout.facts).model_dump(mode="json"),
        "candidates": [asdict(row) for row in rows],
        "notes": bout.notes,
    }


def _publish(
    project: Project, arena: Arena, bout: Bout, rows: Sequence[Row], summary: dict[str, Any], run: RunContext
) -> str:
    """Page and summary below reports/compare, in one step, and in MLflow; returns where the page is."""
    home = project.root / "reports"
    final = home / f"compare-{summary['stage']}-{summary['data']}"
    summary = summary | {"page": str(final / "index.html")}
    with draft_folder(home) as draft:
        write_text(draft / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_text(draft / "index.html", page(arena, summary, rows, bout.facts))
        project.tracker.files(run.parent, draft, "report")
        replace(draft, final)
    found = summary["recommendation"]
    best = next((row for row in rows if row.name == found["name"]), None)
    project.tracker.tags(run.parent, {"clearwell.recommended": found["name"] or "-"})
    measured = {} if best is None else {f"recommended.{name}": value for name, value in best.metrics.items()}
    project.tracker.metrics(run.parent, measured | {"wall_seconds": summary["wall_seconds"]})
    return str(summary["page"])


def announce(summary: dict[str, Any]) -> None:
    """The leaderboard on the Prefect run's page, with the recommendation, and a link to the page."""
    primary = summary["primary"]["name"]
    rows = [
        {
            "candidate": row["name"],
            primary: row["metrics"].get(primary, ""),
            "seconds": row["seconds"] if row["seconds"] is not None else "",
            "memory MB": row["peak_memory_mb"] or "",
            "status": row["status"],
            "why": row["reason"] or row["objection"],
        }
        for row in summary["candidates"]
    ]
    advice = " ".join(summary["recommendation"]["text"])
    create_table_artifact(rows, key="leaderboard", description=advice)
    create_link_artifact(Path(summary["page"]).as_uri(), key="report", link_text="report", description="The page")

"""What to train on for a budget: which pools, how much of each, how many passes, and what to expect of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from prefect.artifacts import create_table_artifact
from pydantic import Field

from infra.errors import ClearwellError, ConfigurationError, StageError
from infra.files import draft_folder, replace, write_text
from infra.project import Project
from infra.references import DatasetRef, Reference
from tasks.figures import plan_figure
from tasks.forecast import SEEDS, Choice, Forecast, Forecaster, outcomes, union
from tasks.pools import FEWEST_ROWS, Ground, read_ground
from tasks.stage import RunContext, stage_task, tell

FAR = 4.0
TRAINED = 3
"""Choices that are trained: the recommended one and two others."""


class PlanConfig(Reference):
    """How a budget is planned."""

    budget: int = Field(description="Rows seen in training; a row seen twice counts twice.")
    pools: str = Field("", description="Column whose values, or quantiles if numeric, are the pools.")
    score: str = Field("el2n", description="Selector whose scores are cut into pools where no column is named.")
    quantiles: int = Field(4, ge=2, le=8, description="Pools made of a score or a numeric column.")
    pilot: int = Field(300, ge=FEWEST_ROWS, description="Rows of a pool that pilot runs see at most.")
    seed: int = Field(0, ge=0, description="Random state of pilots and trainings.")


def check_budget(budget: int) -> None:
    """Refuse what trains nothing.

    Raises
    ------
    ConfigurationError
        For a budget below 1.
    """
    if budget < 1:
        raise ConfigurationError(
            f"A budget of {budget} rows trains nothing. Give the rows that training may see, such as --budget 5000; a "
            "row seen twice counts twice, so it may be more than there are."
        )


@stage_task("plan")
def plan(data: Sequence[DatasetRef], config: PlanConfig, run: RunContext) -> dict[str, Any]:
    """Make pilot runs, forecast choices, train three of them; returns the summary, JSON values only.

    Raises
    ------
    ConfigurationError
        For a budget below 1, or pools that are not there, too few or too many.
    DatasetFormatError
        For data without the labels a plan needs.
    StageError
        If a pilot run or a fit fails.
    """
    check_budget(config.budget)
    project = Project()
    for each in data:
        project.tracker.dataset(run.parent, each, "input")
    names = ", ".join(map(str, data))
    began = time.perf_counter()
    try:
        tell("begin", "pools", method=config.pools or config.score, why=names)
        folders = {each.name: project.versions.path(each) for each in data}
        ground = read_ground(folders, config.pools, config.score, config.quantiles, config.seed)
        tell("end", "pools")
        tell("begin", "pilots", method="filtering-laws, projektor", why=f"{len(ground.pools)} pools")
        forecaster = Forecaster(ground, config.budget, config.pilot, config.seed).fit()
        candidates = forecaster.candidates()
        tell("end", "pilots")
        chosen = contrasted(candidates, ground, config.budget)
        tell("begin", "outcomes", method=f"{len(chosen)} choices", why=f"{SEEDS} trainings each")
        reached = outcomes(ground, [found.choice for found in chosen], config.seed + 1000)
        tell("end", "outcomes")
    except ClearwellError:
        raise
    except Exception as error:
        raise StageError(
            f"The plan for {names} failed: {type(error).__name__}: {error}\n"
            f"When the cause is mended, continue with: {run.command}"
        ) from error
    summary = summarise(forecaster, candidates, chosen, reached) | {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": [str(each) for each in data],
        "budget": config.budget,
        "seed": config.seed,
        "run": run.parent,
        "command": run.command,
        "seconds": round(time.perf_counter() - began, 1),
    }
    return _publish(project, forecaster, summary, "-".join(each.name for each in data), run)


def contrasted(candidates: Sequence[Forecast], ground: Ground, budget: int) -> list[Forecast]:
    """The recommended choice, and two others worth comparing: everything, and the best of the other kind."""
    best = candidates[0]
    everything = union(ground.pools, budget)
    wanted = [
        best,
        *(found for found in candidates if found.choice == everything),
        *(found for found in candidates if found.choice.whole != best.choice.whole),
        *(found for found in candidates if len(found.choice.rows) == 1),
        *candidates,
    ]
    chosen: list[Forecast] = []
    for found in wanted:
        if found.choice not in [each.choice for each in chosen]:
            chosen.append(found)
    return chosen[:TRAINED]


def summarise(
    forecaster: Forecaster, candidates: Sequence[Forecast], chosen: Sequence[Forecast], reached: Sequence[list[float]]
) -> dict[str, Any]:
    """What came of it, JSON values only."""
    trained = {found.choice.name: values for found, values in zip(chosen, reached, strict=True)}
    rows = [_row(found, trained.get(found.choice.name)) for found in candidates]
    law = forecaster.law_
    projektor = forecaster.projektor_
    return {
        "recommended": chosen[0].choice.name,
        "text": sentences(forecaster, chosen, reached),
        "choices": rows,
        "trained": [_row(found, values) for found, values in zip(chosen, reached, strict=True)],
        "pools": forecaster.ground.rows,
        "notes": [*forecaster.ground.notes, *cautions(forecaster, chosen[0].choice)],
        "pilots": {
            "trainings": forecaster.trainings_,
            "rows_seen": forecaster.samples_,
            "seconds": forecaster.seconds_,
            "runs": forecaster.runs_.to_dict("records"),
        },
        "filtering_laws": {
            str(pool): {"utility": float(row["b"]), "half_life": float(row["tau"])}
            for pool, row in law.params_.iterrows()
        },
        "projektor": {"form": projektor.form_, "sizes": list(projektor.sizes_), "error": projektor.cv_error_},
    }


def _row(found: Forecast, values: list[float] | None) -> dict[str, Any]:
    row = {
        "choice": found.choice.name,
        "rows": dict(found.choice.rows),
        "total": found.choice.total,
        "passes": round(found.choice.passes, 2),
        "filtering_laws": [found.law.value, found.law.half],
        "projektor": [found.projektor.value, found.projektor.half],
        "predicted": found.both.value,
        "low": found.both.low,
        "high": found.both.high,
    }
    if values is not None:
        row |= {"outcome": float(np.mean(values)), "outcomes": values}
    return row


def cautions(forecaster: Forecaster, choice: Choice) -> list[str]:
    """What makes the predictions less sure than they look."""
    found = []
    factor = forecaster.projektor_.extrapolation_factor(forecaster.counted(choice))
    if factor > FAR:
        found.append(
            f"projektor's line is followed far beyond its pilots: errors grow about {factor:.1f} times. A larger "
            "--pilot brings them nearer."
        )
    short = [str(pool) for pool, known in forecaster.law_.params_["at_bound"].items() if known]
    if short:
        found.append(f"How fast these pools wear out lies at the edge of what was tried: {', '.join(short)}.")
    rising = [str(pool) for pool, known in forecaster.law_.params_["rising"].items() if known]
    if rising:
        found.append(f"More passes did harm in the pilots, which filtering-laws can not say: {', '.join(rising)}.")
    small = [pool.name for pool in forecaster.ground.pools if len(pool) < forecaster.pilot]
    if small:
        found.append(f"Smaller than a pilot, so the whole pool was its pilot: {', '.join(small)}.")
    return found


def sentences(forecaster: Forecaster, chosen: Sequence[Forecast], reached: Sequence[list[float]]) -> list[str]:
    """The answer in words: what to train on, what to expect, what came of it."""
    best, means = chosen[0], [float(np.mean(values)) for values in reached]
    amounts = " and ".join(f"{rows:,} rows of {pool}" for pool, rows in best.choice.rows.items())
    times = f"{best.choice.passes:.1f} passes" if best.choice.passes > 1.05 else "one pass"
    spread = float(np.std(reached[0], ddof=1)) if len(reached[0]) > 1 else 0.0
    inside = "inside" if best.both.low <= means[0] <= best.both.high else "outside"
    said = [
        f"Train on {amounts}, {times}: {best.choice.budget:,} rows seen.",
        f"Predicted accuracy {best.both.value:.3f} ({best.both.low:.3f} to {best.both.high:.3f}); {len(reached[0])} "
        f"trainings reached {means[0]:.3f} ± {spread:.3f}, {inside} the interval.",
    ]
    order = int(np.argsort(-np.array(means), kind="stable").tolist().index(0))
    ahead = int(np.argmax(means))
    if order == 0:
        second = max((value, name) for value, name in zip(means[1:], [f.choice.name for f in chosen[1:]], strict=True))
        ahead_by = means[0] - second[0]
        said.append(
            f"It came out first of the {len(chosen)} trained, {ahead_by:.3f} before {second[1]}."
            if ahead_by >= 0.0005
            else f"None of the {len(chosen)} trained came out before it; {second[1]} reached as much."
        )
    else:
        gap, judged = means[ahead] - means[0], len(forecaster.ground.y)
        chance = 2 * (means[ahead] * (1 - means[ahead]) / judged) ** 0.5
        alike = f", no more than chance makes of {judged:,} rows" if gap <= chance else ""
        said.append(
            f"It did not come out first: {chosen[ahead].choice.name} reached {means[ahead]:.3f}, {gap:.3f} more{alike}."
        )
    said.append(
        f"The pilots: {forecaster.trainings_} trainings that saw {forecaster.samples_:,} rows, "
        f"{forecaster.seconds_:.0f} s."
    )
    return said


def _publish(
    project: Project, forecaster: Forecaster, summary: dict[str, Any], name: str, run: RunContext
) -> dict[str, Any]:
    """Figure and summary below reports/plan-DATA, in one step, and in MLflow with a child run a trained choice."""
    home = project.root / "reports"
    final = home / f"plan-{name}"
    summary |= {"figure": str(final / "plan.png"), "page": str(final / "summary.json")}
    samples = np.geomspace(forecaster.runs_["samples_seen"].min(), max(summary["budget"], 1.0) * 1.3, 60)
    curves = {
        pool: (samples, 1 - forecaster.law_.resized({pool: rows}).predict(pool, samples))
        for pool, rows in forecaster.ground.rows.items()
    }
    with draft_folder(home) as draft:
        figure = plan_figure(curves, summary["pilots"]["runs"], summary["trained"], summary["budget"])
        figure.savefig(draft / "plan.png", dpi=120, bbox_inches="tight")
        write_text(draft / "summary.json", json.dumps(summary, indent=2) + "\n")
        project.tracker.files(run.parent, draft, "plan")
        replace(draft, final)
    for row in summary["trained"]:
        child = project.tracker.open(row["choice"][:200], run.parent, **{"clearwell.kind": "choice"})
        amounts = json.dumps(row["rows"])  # as text: names of pools may hold anything
        project.tracker.params(child, {"choice": row["choice"], "rows": amounts, "passes": row["passes"]})
        told = ("predicted", "low", "high", "outcome")
        project.tracker.metrics(child, {metric: row[metric] for metric in told})
        project.tracker.close(child)
    best = summary["trained"][0]
    measured = {f"recommended.{metric}": best[metric] for metric in ("predicted", "outcome", "passes")}
    project.tracker.metrics(run.parent, measured | {"seconds": summary["seconds"]})
    project.tracker.tags(run.parent, {"clearwell.recommended": summary["recommended"][:4000]})
    return summary


def table(choices: Sequence[Mapping[str, Any]], recommended: str) -> list[dict[str, Any]]:
    """The answer as rows for people: what was trained, then the best of the rest."""
    trained = [row for row in choices if "outcome" in row]
    rest = [row for row in choices if "outcome" not in row][:5]
    return [
        {
            "choice": f"{'→ ' if row['choice'] == recommended else ''}{row['choice']}",
            "rows": f"{row['total']:,}",
            "passes": f"{row['passes']:.2f}",
            "filtering-laws": f"{row['filtering_laws'][0]:.3f}",
            "projektor": f"{row['projektor'][0]:.3f}",
            "predicted": f"{row['predicted']:.3f}",
            "90 % interval": f"{row['low']:.3f} to {row['high']:.3f}",
            "outcome": f"{row['outcome']:.3f}" if "outcome" in row else "not trained",
        }
        for row in [*trained, *rest]
    ]


def announce(summary: Mapping[str, Any]) -> None:
    """The table on the Prefect run's page, with the answer in words."""
    rows = table(summary["choices"], summary["recommended"])
    create_table_artifact(rows, key="plan", description=" ".join(summary["text"]))

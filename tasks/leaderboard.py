"""What a contest says in the end: the order of its candidates, whom to take and why, and the page that shows it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from matplotlib.figure import Figure

from infra.references import Reference
from tasks.arenas import Arena, Facts, Metric
from tasks.contest import DONE, FAILED, LATE, UNFIT, Row
from tasks.figures import trade_off

CHEAPER = 0.5
"""Of candidates that chance can not tell apart, the best that takes less than this share of the time is preferred."""
WORTH_SECONDS = 1.0
"""Nobody is passed over for less."""


class Recommendation(Reference):
    """Whom to take.

    Attributes
    ----------
    name : str
        Empty when nobody can be recommended.
    runner_up : str
    baseline : bool
    text : tuple of str
        Sentences: why, what it costs against the runner-up, what is not known.
    """

    name: str = ""
    runner_up: str = ""
    baseline: bool = False
    text: tuple[str, ...] = ()


def ranked(rows: Sequence[Row], metric: Metric) -> list[Row]:
    """The best first; then those that may not be recommended, that were not measured, and that did not finish."""

    def place(row: Row) -> tuple[int, float, float]:
        value = row.metrics.get(metric.name)
        if row.status != DONE:
            return 3 + (LATE, FAILED, UNFIT).index(row.status), 0.0, 0.0
        if value is None:
            return 2, 0.0, row.seconds or 0.0
        return int(bool(row.objection)), -value if metric.higher_is_better else value, row.seconds or 0.0

    return sorted(rows, key=place)


def recommend(rows: Sequence[Row], arena: Arena, facts: Facts) -> Recommendation:
    """Whom to take, given the rows of :func:`ranked`, and why."""
    metric = arena.primary(facts)
    fit = [row for row in rows if row.status == DONE and metric.name in row.metrics and not row.objection]
    caveats = [*_unfinished(rows), *filter(None, [arena.caveat(facts)])]
    if not fit:
        said = [f"{row.name}: {row.reason or row.objection or 'it could not be measured'}." for row in rows[:5]]
        return Recommendation(text=("Nobody can be recommended.", *said, *caveats))
    leader, chosen = fit[0], _cheapest(fit, metric, arena, facts)
    others = [row for row in fit if row is not chosen]
    text = [_praise(chosen, leader, len(fit), metric)]
    if chosen is not leader:
        text.append(_tie(chosen, leader, metric))
    text += _against_baselines(chosen, fit, metric, arena, facts)
    if others:
        text.append(_cost(chosen, others[0], metric, arena, facts))
    runner_up = others[0].name if others else ""
    return Recommendation(
        name=chosen.name, runner_up=runner_up, baseline=chosen.baseline, text=tuple([*text, *caveats])
    )


def _cheapest(fit: Sequence[Row], metric: Metric, arena: Arena, facts: Facts) -> Row:
    """The leader, or a much cheaper one that chance can not tell from it."""
    leader = fit[0]
    enough = CHEAPER * _seconds(leader)
    alike = [row for row in fit if not _apart(row, leader, metric, arena, facts) and _seconds(row) < enough]
    return alike[0] if alike and _seconds(leader) - _seconds(alike[0]) > WORTH_SECONDS else leader


def _apart(one: Row, other: Row, metric: Metric, arena: Arena, facts: Facts) -> bool:
    """Whether they differ by more than chance makes; where that is not known, whether they differ at all."""
    values = [row.metrics[metric.name] for row in (one, other)]
    margins = [arena.margin(value, facts) for value in values]
    return abs(values[0] - values[1]) > max((m for m in margins if m is not None), default=0.0)


def _seconds(row: Row) -> float:
    return row.seconds or 0.0


def _kind(row: Row) -> str:
    return f"the baseline {row.name}" if row.baseline else row.name


def _praise(chosen: Row, leader: Row, count: int, metric: Metric) -> str:
    place = "the best" if chosen is leader else "as good as the best"
    among = f" of {count}" if count > 1 else ", the only one that could be ranked"
    value = metric.show(chosen.metrics[metric.name])
    return (
        f"Take {_kind(chosen)}: {metric.meaning} {value}, {place}{among}, "
        f"in {duration(_seconds(chosen))} and {chosen.peak_memory_mb or 0:,.0f} MB."
    )


def _tie(chosen: Row, leader: Row, metric: Metric) -> str:
    return (
        f"{_capital(_kind(leader))} is ahead with {metric.show(leader.metrics[metric.name])}, but by no more than "
        f"chance makes of these rows, and it takes {_times(_seconds(leader), _seconds(chosen))} the time."
    )


def _against_baselines(chosen: Row, fit: Sequence[Row], metric: Metric, arena: Arena, facts: Facts) -> list[str]:
    methods, baselines = [r for r in fit if not r.baseline], [r for r in fit if r.baseline]
    if chosen.baseline:
        if not methods:
            return ["It is a baseline; no method finished that could be recommended."]
        best = methods[0]
        ahead = metric.better(best.metrics[metric.name], chosen.metrics[metric.name])
        if ahead:
            return ["It is a baseline: no method of this stage is ahead of it by more than chance on this data."]
        if len(methods) == 1:
            reached = metric.show(best.metrics[metric.name])
            return [
                f"It is a baseline and it wins: {best.name}, the one method that finished, reaches {reached}, no more."
            ]
        return [
            f"It is a baseline and it wins: none of the {len(methods)} methods that finished does better on this data. "
            f"The best of them, {best.name}, reaches {metric.show(best.metrics[metric.name])}."
        ]
    if not baselines:
        return ["No baseline finished, so what it gains over a simple way is not known."]
    best = baselines[0]
    alike = "" if _apart(chosen, best, metric, arena, facts) else ", which chance alone could make"
    return [f"The best baseline, {best.name}, reaches {metric.show(best.metrics[metric.name])}{alike}."]


def _cost(chosen: Row, other: Row, metric: Metric, arena: Arena, facts: Facts) -> str:
    """What the choice gains and costs against the next best."""
    gain = abs(chosen.metrics[metric.name] - other.metrics[metric.name])
    ahead = metric.better(chosen.metrics[metric.name], other.metrics[metric.name])
    margin = arena.margin(chosen.metrics[metric.name], facts)
    if gain == 0:
        difference = "it is exactly as good"
    else:
        difference = f"it is {'ahead' if ahead else 'behind'} by {metric.show(gain)}"
    if gain and margin is not None:
        inside = "within" if not _apart(chosen, other, metric, arena, facts) else "beyond"
        difference += f", {inside} what chance makes of {facts['measured']:,} rows (± {metric.show(margin)})"
    slower, faster = (chosen, other) if _seconds(chosen) >= _seconds(other) else (other, chosen)
    time = f"{_times(_seconds(slower), _seconds(faster))} the time"
    spent = f"It costs {time}" if slower is chosen else f"{_capital(other.name)} takes {time}"
    memory = (chosen.peak_memory_mb or 0.0) - (other.peak_memory_mb or 0.0)
    word = f"{abs(memory):,.0f} MB {'more' if memory >= 0 else 'less'} memory"
    return f"Against the runner-up, {_kind(other)}, {difference}. {spent}; the choice holds {word} than the runner-up."


def _unfinished(rows: Sequence[Row]) -> list[str]:
    late = [row.name for row in rows if row.status == LATE]
    failed = [row.name for row in rows if row.status == FAILED]
    barred = [f"{row.name} {row.objection}" for row in rows if row.objection]
    found = [f"Measured, but not to be recommended: {'; '.join(barred)}."] if barred else []
    if late:
        found.append(f"Not done within the budget, so nothing is known of: {', '.join(late)}. Raise --budget.")
    if failed:
        found.append(f"Failed, see the table: {', '.join(failed)}.")
    return found


def _times(more: float, less: float) -> str:
    factor = more / max(less, 1e-3)
    return f"{factor:,.0f} times" if factor >= 10 else f"{factor:.1f} times"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("the ") else text


def duration(seconds: float) -> str:
    """Seconds as one reads them."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


# ---- page ----------------------------------------------------------------------------------------------------


def figure(rows: Sequence[Row], metric: Metric, budget: float, chosen: str) -> Figure:
    """The primary metric against time, a point a candidate that was measured."""
    shown = [row for row in rows if row.status == DONE and metric.name in row.metrics]
    return trade_off(
        [row.name for row in shown],
        [max(_seconds(row), 1e-3) for row in shown],
        [row.metrics[metric.name] for row in shown],
        [row.baseline for row in shown],
        chosen=chosen,
        limit=budget,
        y_label=metric.meaning,
        higher_is_better=bool(metric.higher_is_better),
    )


def page(arena: Arena, summary: Mapping[str, Any], rows: Sequence[Row], facts: Facts) -> str:
    """The self-contained page: the picture is inside it."""
    from jinja2 import Environment

    metric = arena.primary(facts)
    measured = {name for row in rows for name in row.metrics}
    metrics = [metric, *(m for m in arena.metrics if m is not metric and m.name in measured)]
    stream = io.BytesIO()
    if any(metric.name in row.metrics for row in rows):
        drawn = figure(rows, metric, summary["budget"], summary["recommendation"]["name"])
        drawn.savefig(stream, format="png", dpi=120, bbox_inches="tight")
    best = {m.name: _best(m, rows) for m in metrics}
    table = [
        {
            **asdict(row),
            "cells": [
                {"text": m.show(row.metrics.get(m.name)), "best": row.metrics.get(m.name, math.nan) == best[m.name]}
                for m in metrics
            ],
            "time": "–" if row.seconds is None else duration(row.seconds),
            "memory": "–" if not row.peak_memory_mb else f"{row.peak_memory_mb:,.0f} MB",
            "given": ", ".join(f"{name}={value}" for name, value in row.parameters.items()),
        }
        for row in rows
    ]
    template = files("tasks").joinpath("compare_page.html.j2").read_text()
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            summary=summary,
            question=arena.question,
            metrics=metrics,
            primary=metric,
            rows=table,
            picture=base64.b64encode(stream.getvalue()).decode(),
        )
    )


def _best(metric: Metric, rows: Sequence[Row]) -> float | None:
    values = [row.metrics[metric.name] for row in rows if row.status == DONE and metric.name in row.metrics]
    if metric.higher_is_better is None or not values:
        return None
    return max(values) if metric.higher_is_better else min(values)

"""Gates: bounds on measured figures, absolute and against the champion, and the verdicts they give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from infra.files import json_digest
from infra.references import Reference
from infra.settings import Gate

Measured = Mapping[str, Mapping[str, float]]


class Verdict(Reference):
    """What one gate found."""

    metric: str
    split: str
    bound: str
    measured: float | None
    holds: bool

    def __str__(self) -> str:
        value = "not measured" if self.measured is None else f"{self.measured:.4g}"
        return f"{self.metric} on {self.split}: {value} (bound {self.bound}) {'holds' if self.holds else 'fails'}"


def judge(gate: Gate, mine: Measured, champion: Measured) -> Verdict:
    """One gate against the measured figures of a version and, if there is one, of the champion."""
    value = mine.get(gate.split, {}).get(gate.metric)
    lower, upper = gate.at_least, gate.at_most
    bounds = [f">= {lower:g}"] if lower is not None else []
    bounds += [f"<= {upper:g}"] if upper is not None else []
    chance = mine.get(gate.split, {}).get(gate.chance, 0.0)
    if bounds and chance > 0:
        lower, upper = None if lower is None else lower - chance, None if upper is None else upper + chance
        bounds.append(f"give or take {chance:.4g} by chance")
    if value is None and gate.only_if_measured:
        bound = " and ".join([*bounds, "only if measured"])
        return Verdict(metric=gate.metric, split=gate.split, bound=bound, measured=None, holds=True)
    holds = value is not None and math.isfinite(value)
    if holds and value is not None:
        holds = (lower is None or value >= lower) and (upper is None or value <= upper)
    rival = champion.get(gate.split, {}).get(gate.metric)
    slack = gate.worse_than_champion_by_at_most
    if slack is not None and rival is not None:
        limit = rival - slack if gate.higher_is_better else rival + slack
        bounds.append(f"{'>=' if gate.higher_is_better else '<='} {limit:.4g} (champion {rival:.4g})")
        holds = holds and value is not None and (value >= limit if gate.higher_is_better else value <= limit)
    return Verdict(
        metric=gate.metric,
        split=gate.split,
        bound=" and ".join(bounds) or "measured",
        measured=value,
        holds=bool(holds),
    )


def gates_digest(gates: Sequence[Gate]) -> str:
    """sha256 of the gates; a verdict of other gates than today's does not count."""
    return json_digest([gate.model_dump(mode="json") for gate in gates])

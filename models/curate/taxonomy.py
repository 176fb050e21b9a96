"""A map of data selection for language models: which methods there are, for which training, and how they choose.

A. Albalak et al., "A Survey on Data Selection for Language Models", TMLR 2024, arXiv 2402.16827. A method is a
utility, which gives every data point a number, and a mechanism that decides by it (section 2.2).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any, Self

from models.registry import GOALS

STAGES = ("pretraining", "instruction tuning", "alignment", "in-context learning", "task fine-tuning")
FAMILIES = (
    "language filtering",
    "heuristics",
    "quality",
    "domain-specific",
    "deduplication",
    "toxic and explicit",
    "multilingual",
    "mixing",
    "decontamination",
    "diversity",
    "influence",
    "difficulty",
    "preference",
    "retrieval",
)
GRANULARITIES = ("data point", "data set", "token")
OUTPUTS = ("binary", "natural count")
COSTS = ("low", "medium", "high")
"""Of choosing: a pass over the text; a small model's pass or training; a large model's, or many trainings."""


@dataclass(frozen=True)
class Record:
    """One method of the map.

    Attributes
    ----------
    slug, summary : str
    stage : str
        One of :data:`STAGES`.
    family : str
        One of :data:`FAMILIES`.
    utility, mechanism : str
        What it values, and how that decides.
    goal : str
        "distribution matching" or "diversification".
    granularity : str
        What it decides about: "data point", "data set" or "token".
    output : str
        "binary" (in or out), or "natural count" (how often).
    needs_model, needs_target : bool
        Whether a trained model, or a sample of what is wanted, has to be there.
    cost : str
        "low", "medium" or "high".
    implemented_by : tuple of str
        Registered methods and classes of clearwell.
    references : tuple of str
        Addresses.
    """

    slug: str
    stage: str
    family: str
    utility: str
    mechanism: str
    goal: str
    granularity: str
    output: str
    needs_model: bool
    needs_target: bool
    cost: str
    summary: str
    implemented_by: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


CLOSED = {
    "stage": STAGES,
    "family": FAMILIES,
    "goal": GOALS,
    "granularity": GRANULARITIES,
    "output": OUTPUTS,
    "cost": COSTS,
}


class Taxonomy:
    """The map, which can be asked.

    Parameters
    ----------
    records : sequence of Record

    References
    ----------
    Albalak et al., arXiv 2402.16827: section 2 (axes), sections 3 to 8 (methods by stage of training).

    Examples
    --------
    >>> found = Taxonomy.load().find(stage="pretraining", goal="diversification", mechanism="suffix array")
    >>> [record.slug for record in found]
    ['substring-dedup']
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = tuple(records)

    @classmethod
    def load(cls) -> Self:
        """The map that comes with clearwell."""
        rows = json.loads(files(__package__).joinpath("taxonomy.json").read_text(encoding="utf-8"))
        return cls([record_of(row) for row in rows])

    def __len__(self) -> int:
        return len(self.records)

    def find(
        self,
        stage: str | None = None,
        goal: str | None = None,
        mechanism: str | None = None,
        granularity: str | None = None,
        output: str | None = None,
        **others: Any,
    ) -> list[Record]:
        """Records that have all of this.

        Parameters
        ----------
        stage, goal, granularity, output : str, optional
            Compared as a whole.
        mechanism : str, optional
            A part of the text.
        **others
            Further fields of :class:`Record`; ``utility`` and ``summary`` are compared as `mechanism` is, and of
            ``implemented_by`` and ``references`` one has to be equal.

        Raises
        ------
        ValueError
            For a field or value there is not; the message suggests the nearest.
        """
        asked = {"stage": stage, "goal": goal, "mechanism": mechanism, "granularity": granularity, "output": output}
        asked |= others
        known = [each.name for each in fields(Record)]
        for name, wanted in asked.items():
            if name not in known:
                raise ValueError(f"There is no field {name!r}{_nearest(name, known)}")
            if wanted is not None and name in CLOSED and wanted not in CLOSED[name]:
                raise ValueError(f"There is no {name} {wanted!r}{_nearest(wanted, CLOSED[name])}")
        return [
            record
            for record in self.records
            if all(_agrees(getattr(record, name), wanted) for name, wanted in asked.items() if wanted is not None)
        ]

    def recommend(
        self, stage: str, goals: Iterable[str] = GOALS, have_target: bool = False, budget: str = "medium"
    ) -> list[Record]:
        """What can be done with what is there, the best first.

        Parameters
        ----------
        stage : str
        goals : iterable of str
        have_target : bool
            Whether there is a sample of what is wanted: methods that need one are left out otherwise.
        budget : {"low", "medium", "high"}
            Most that choosing may cost.

        Returns
        -------
        list of Record
            What clearwell implements first, then what uses the target that is there, then the cheaper.

        Raises
        ------
        ValueError
            For a stage, goal or budget there is not.
        """
        if budget not in COSTS:
            raise ValueError(f"There is no budget {budget!r}{_nearest(budget, COSTS)}")
        found = [record for goal in dict.fromkeys(goals) for record in self.find(stage=stage, goal=goal)]
        possible = [
            record
            for record in found
            if COSTS.index(record.cost) <= COSTS.index(budget) and (have_target or not record.needs_target)
        ]
        return sorted(
            possible,
            key=lambda record: (
                not record.implemented_by,
                have_target and not record.needs_target,
                COSTS.index(record.cost),
            ),
        )


def record_of(row: dict[str, Any]) -> Record:
    """A record of its JSON form.

    Raises
    ------
    ValueError
        If a field is missing or unknown, or holds a value there is not.
    """
    needed = {each.name for each in fields(Record)}
    if set(row) != needed:
        raise ValueError(f"The record {row.get('slug')!r} must have the fields {sorted(needed)}, got {sorted(row)}.")
    for name, allowed in CLOSED.items():
        if row[name] not in allowed:
            raise ValueError(f"The record {row['slug']!r} has the {name} {row[name]!r}{_nearest(row[name], allowed)}")
    return Record(**row | {name: tuple(row[name]) for name in ("implemented_by", "references")})


def _agrees(held: Any, wanted: Any) -> bool:
    if isinstance(held, tuple):
        return wanted in held
    if isinstance(held, str) and held not in {value for values in CLOSED.values() for value in values}:
        return str(wanted).casefold() in held.casefold()
    return bool(held == wanted)


def _nearest(name: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f". Did you mean {near[0]!r}?" if near else f". Known: {', '.join(known)}."

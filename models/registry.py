"""Name -> method: what each is, where it comes from, and how to reach it without importing all of them.

A method registers itself with :func:`register`, a decorator on its class. Packages outside clearwell
do the same and name their module in the entry-point group ``clearwell.methods``.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

ENTRY_POINT_GROUP = "clearwell.methods"
STAGES = (
    "validate",
    "curate",
    "discover",
    "label_noise",
    "pretrain",
    "adapt",
    "unlearn",
    "compress",
    "segment",
    "retrieve",
    "explain",
)

GOALS = ("distribution matching", "diversification")
AXES = ("goal", "utility", "unit", "mechanism", "stage_of_training")
"""Axes of data selection, after the survey of Albalak et al. (2024): arXiv 2402.16827."""

ROWS = ("any", "unit", "plane")
"""What a method asks of rows of numbers: nothing, values in [0, 1], or points of a plane."""

C = TypeVar("C", bound=type)


class UnknownMethodError(LookupError):
    """No method of that name is registered; the message suggests the nearest names."""


@dataclass(frozen=True)
class MethodCard:
    """What the registry knows of a method.

    Attributes
    ----------
    name, stage : str
        Stable name (kebab-case) and the stage it serves.
    summary : str
        One line: what it does for a user.
    paper, link : str
        Title of the publication and its address.
    year : int
    licence : str
        Licence of the authors' reference code, or "none published".
    accepts : tuple of str
        Kinds of data it can take: "image", "table", "text", "embedding".
    rows : str
        One of :data:`ROWS`: what rows of numbers have to be made into before it sees them.
    skips_checks : dict of str to str
        Checks of the common test battery the method opts out of, each with its reason.
    taxonomy : dict of str to str
        Of a method that selects data, its place on the axes of :data:`AXES`: whether it matches a target or
        diversifies, by which utility, over what unit, by what mechanism, and for which stage of training.
    cls : type
        The class itself.
    """

    name: str
    stage: str
    summary: str
    paper: str
    year: int
    link: str
    licence: str
    accepts: tuple[str, ...]
    cls: type = field(repr=False)
    skips_checks: dict[str, str] = field(default_factory=dict, repr=False)
    taxonomy: dict[str, str] = field(default_factory=dict, repr=False)
    rows: str = "any"


_CARDS: dict[str, MethodCard] = {}


def register(
    name: str,
    *,
    stage: str,
    summary: str,
    paper: str,
    year: int,
    link: str,
    licence: str,
    accepts: tuple[str, ...] = ("image",),
    skips_checks: dict[str, str] | None = None,
    taxonomy: Mapping[str, str] | None = None,
    rows: str = "any",
) -> Callable[[C], C]:
    """Class decorator: enter a method into the registry under `name`.

    Raises
    ------
    ValueError
        If the stage does not exist, another class already holds the name, the rows are none of :data:`ROWS`, or the
        taxonomy names an axis or a goal that there is not.
    """
    if stage not in STAGES:
        raise ValueError(f"Method {name!r} names the stage {stage!r}; stages are {', '.join(STAGES)}.")
    if rows not in ROWS:
        raise ValueError(f"Method {name!r} asks for the rows {rows!r}; rows are {', '.join(ROWS)}.")
    place = dict(taxonomy or {})
    if unknown := [axis for axis in place if axis not in AXES]:
        raise ValueError(f"The taxonomy of {name!r} names the axis {unknown[0]!r}; axes are {', '.join(AXES)}.")
    if not set(place.get("goal", GOALS[0]).split(", ")) <= set(GOALS):
        raise ValueError(f"The taxonomy of {name!r} names the goal {place['goal']!r}; goals are {' and '.join(GOALS)}.")

    def enter(cls: C) -> C:
        held = _CARDS.get(name)
        if held is not None and (held.cls.__module__, held.cls.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"The name {name!r} is already taken by {held.cls.__module__}.{held.cls.__qualname__}.")
        _CARDS[name] = MethodCard(
            name, stage, summary, paper, year, link, licence, accepts, cls, dict(skips_checks or {}), place, rows
        )
        return cls

    return enter


@cache
def _import_all() -> None:
    package = importlib.import_module("models")
    for stage in STAGES:
        try:
            folder = importlib.import_module(f"{package.__name__}.{stage}")
        except ModuleNotFoundError:
            continue
        for module in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"{folder.__name__}.{module.name}")
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        entry.load()


def list_methods(stage: str | None = None, **taxonomy: str | None) -> list[MethodCard]:
    """All registered methods, or those of one stage, in the order of the stages and by name.

    Parameters
    ----------
    stage : str, optional
    **taxonomy : str, optional
        Axes of :data:`AXES`: only methods whose entry on each holds this text, in upper or lower case.

    Raises
    ------
    UnknownMethodError
        If there is no such stage or axis, or no method of the stage has that text on an axis.
    """
    _import_all()
    if stage is not None and stage not in STAGES:
        raise UnknownMethodError(f"There is no stage {stage!r}{_suggestion(stage, STAGES)}")
    cards = [card for card in _CARDS.values() if stage in (None, card.stage)]
    for axis, wanted in taxonomy.items():
        if axis not in AXES:
            raise UnknownMethodError(f"There is no axis {axis!r}{_suggestion(axis, AXES)}")
        if wanted is not None:
            _check_place(axis, wanted, cards)
    asked = {axis: wanted for axis, wanted in taxonomy.items() if wanted is not None}
    cards = [card for card in cards if all(_has(card, axis, wanted) for axis, wanted in asked.items())]
    return sorted(cards, key=lambda card: (STAGES.index(card.stage), card.name))


def _has(card: MethodCard, axis: str, wanted: str) -> bool:
    return axis in card.taxonomy and wanted.casefold() in card.taxonomy[axis].casefold()


def _check_place(axis: str, wanted: str, cards: list[MethodCard]) -> None:
    if not any(_has(card, axis, wanted) for card in cards):
        known = sorted({card.taxonomy[axis] for card in cards if axis in card.taxonomy})
        found = _suggestion(wanted, known) if known else ". None of them is placed on that axis."
        raise UnknownMethodError(f"No method has the {axis.replace('_', ' ')} {wanted!r}{found}")


def get_method(name: str, stage: str | None = None) -> MethodCard:
    """The card registered under `name`.

    Raises
    ------
    UnknownMethodError
        If there is none (in that stage).
    """
    if name not in _CARDS:
        _import_all()
    card = _CARDS.get(name)
    if card is None or stage not in (None, card.stage):
        known = [card.name for card in list_methods(stage)]
        where = f" in the stage {stage!r}" if stage else ""
        raise UnknownMethodError(f"There is no method {name!r}{where}{_suggestion(name, known)}")
    return card


def build_method(name: str, stage: str | None = None, **parameters: Any) -> Any:
    """An unfitted instance of the method `name` with these constructor parameters."""
    return get_method(name, stage).cls(**parameters)


def _suggestion(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f". Did you mean {near[0]!r}?" if near else f". Known: {', '.join(sorted(known))}."

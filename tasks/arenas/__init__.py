"""What a contest needs to know of a stage: one module a stage, called like it, with a class and its instance ``ARENA``.

An arena says what data is split into and hidden, which candidates there are, how one is run, and how all are measured.
`clearwell compare` does the rest. Modules are loaded by the contest and by the process of each candidate, so an
arena imports what only one method needs where it is needed.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from numpy.typing import NDArray

from models.registry import STAGES

if TYPE_CHECKING:
    from infra.datasets import Schema

Arrays = dict[str, NDArray[Any]]
Facts = Mapping[str, Any]

PLACES: dict[str, str] = {
    module.name: f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__) if module.name in STAGES
}
"""Stage -> module of its arena."""


@dataclass(frozen=True)
class Metric:
    """One thing that is measured of every candidate.

    Attributes
    ----------
    name : str
    meaning : str
        In a few words, for somebody who reads the page.
    higher_is_better : bool or None
        None where neither is.
    kind : {"share", "number", "bytes", "milliseconds"}
        How it is written.
    """

    name: str
    meaning: str
    higher_is_better: bool | None = True
    kind: Literal["share", "number", "bytes", "milliseconds"] = "share"

    def show(self, value: float | None) -> str:
        """The value as one reads it."""
        if value is None or math.isnan(value):
            return "–"
        if self.kind == "bytes":
            return f"{value / 1000:,.1f} kB"
        if self.kind == "milliseconds":
            return f"{value:.2f} ms"
        return f"{value:.3f}" if self.kind == "share" else f"{value:,.4g}"

    def better(self, value: float, than: float) -> bool:
        """Whether `value` is."""
        return value > than if self.higher_is_better else value < than


@dataclass(frozen=True)
class Candidate:
    """Somebody who may take part.

    Attributes
    ----------
    name, summary : str
    baseline : bool
        Whether it is there to be compared with.
    reason : str
        Why it does not apply to this data; empty when it does.
    modules : tuple of str
        What its process imports before its time begins.
    link : str
        Address of its paper.
    """

    name: str
    summary: str
    baseline: bool = False
    reason: str = ""
    modules: tuple[str, ...] = ()
    link: str = ""


@dataclass(frozen=True)
class Source:
    """The data of a contest.

    Attributes
    ----------
    folder : Path
        Of the dataset's version.
    schema : Schema
    truth : Path or None
        Folder of the version that holds the truth, for what is only measured with.
    """

    folder: Path
    schema: Schema
    truth: Path | None = None


@dataclass
class Bout:
    """One contest's data, ready to be run on.

    Attributes
    ----------
    given : dict of str to array
        What candidates are run on.
    hidden : dict of str to array
        What only measuring sees.
    facts : dict
        JSON values for both. "kind" is always among them.
    notes : list of str
        What was split and hidden, in sentences, for the page.
    """

    given: Arrays
    hidden: Arrays
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)


class Arena(ABC):
    """One stage's rules.

    Attributes
    ----------
    stage, question : str
        The question is the page's heading.
    metrics : tuple of Metric
        Everything that is measured; the first is the primary one unless :meth:`primary` says otherwise.
    baselines : dict of str to str
        Name -> what it does.
    modules : dict of str to tuple of str
        Name of a baseline, or "method" for every registered method -> what it imports. Imports take seconds, and are
        neither the candidate's time nor, for a baseline that does without them, its memory.
    """

    stage: ClassVar[str]
    question: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    baselines: ClassVar[dict[str, str]]
    modules: ClassVar[dict[str, tuple[str, ...]]] = {}

    @abstractmethod
    def prepare(self, source: Source, seed: int, rows: int) -> Bout:
        """Draw at most `rows` rows, split them, hide what must not be seen.

        Raises
        ------
        DatasetFormatError
            If the data lacks what the stage needs.
        """

    @abstractmethod
    def fit(self, name: str, given: Arrays, facts: Facts, seed: int) -> Any:
        """Run one candidate; its time and memory are measured, and what it returns goes to :meth:`measure`.

        If what it returns has an attribute ``seconds``, that is the time it took; ``parameters``, what it was run with.
        """

    @abstractmethod
    def measure(self, found: Any, given: Arrays, hidden: Arrays, facts: Facts, seed: int) -> dict[str, float]:
        """The metrics of what :meth:`fit` returned; the same for every candidate. nan where one makes no sense."""

    def primary(self, facts: Facts) -> Metric:
        """The metric that decides."""
        return self.metrics[0]

    def unfit(self, card: Any, facts: Facts) -> str:
        """Why a registered method does not apply to this data; empty when it does."""
        if facts["kind"] in card.accepts:
            return ""
        return f"takes {' or '.join(card.accepts)} data, and this is {facts['kind']} data"

    def unfit_baseline(self, name: str, facts: Facts) -> str:
        """The same of a baseline."""
        return ""

    def candidates(self, facts: Facts) -> list[Candidate]:
        """Registered methods of the stage, then baselines."""
        from models.registry import list_methods

        shared = self.modules.get("method", ())
        found = [
            Candidate(
                card.name,
                card.summary,
                reason=self.unfit(card, facts),
                modules=(card.cls.__module__, *shared),
                link=card.link,
            )
            for card in list_methods(self.stage)
        ]
        return found + [
            Candidate(name, summary, True, self.unfit_baseline(name, facts), self.modules.get(name, ()))
            for name, summary in self.baselines.items()
        ]

    def objection(self, metrics: Mapping[str, float], facts: Facts) -> str:
        """Why a candidate with these metrics is not recommended whatever its primary metric; empty when it may be."""
        return ""

    def margin(self, value: float, facts: Facts) -> float | None:
        """What chance alone makes of the primary metric: two standard errors of a share of ``facts["measured"]`` rows.

        None where that can not be said.
        """
        measured = facts.get("measured")
        if not measured or self.primary(facts).kind != "share":
            return None
        share = min(max(value, 0.0), 1.0)
        return 2 * math.sqrt(max(share * (1 - share), 0.25 / measured) / measured)

    def caveat(self, facts: Facts) -> str:
        """What the primary metric can not tell, said beside the recommendation."""
        return ""


def open_arena(stage: str) -> Arena:
    """The arena of a stage.

    Raises
    ------
    ConfigurationError
        If the stage has none.
    """
    from infra.errors import ConfigurationError

    if stage not in PLACES:
        near = get_close_matches(stage, PLACES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Stages that can: {', '.join(PLACES)}."
        raise ConfigurationError(f"The methods of {stage!r} can not be compared. {hint}")
    return load(PLACES[stage])


def load(module: str) -> Arena:
    """The arena that a module holds."""
    arena: Arena = importlib.import_module(module).ARENA
    return arena


def draw(n: int, most: int, seed: int) -> NDArray[Any]:
    """At most `most` of `n` row numbers, drawn at random, ascending."""
    import numpy as np

    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def plain_parameters(method: Any) -> dict[str, Any]:
    """Constructor parameters of an estimator that are JSON values; others by the name of their class."""
    return {name: _plain(value) for name, value in method.get_params(deep=False).items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_plain(inner) for inner in value]
    return type(value).__name__


def check_names(names: Sequence[str], known: Sequence[str], stage: str) -> None:
    """Raise a ConfigurationError, with a suggestion, for a name that is not known."""
    from infra.errors import ConfigurationError

    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ConfigurationError(f"There is no candidate {name!r} for {stage!r}. {hint}")

"""Filters one after another over a corpus, with an account of every document; and decontamination, which ends it.

A. Albalak et al., "A Survey on Data Selection for Language Models", TMLR 2024, arXiv 2402.16827: sections 3.1 to 3.6
name the steps, their order here is that of FineWeb (G. Penedo et al., 2024, arXiv 2406.17557, section 3).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from models.curate.text_dedup import ExactDedup, SentenceDedup, SubstringDedup, without_spans
from models.curate.text_documents import (
    KEEP,
    Decision,
    Document,
    TextFilter,
    after,
    as_documents,
    invalid_utf8_at,
    simplified,
    simplified_words,
    word_spans,
)
from models.curate.text_filters import C4Filter, FineWebFilter, GopherQuality, GopherRepetition
from models.curate.text_hashing import Hashes, hashes_of, ngram_hashes
from models.curate.text_minhash import MinHashDedup
from models.registry import register

CHUNK = 256
"""Documents a worker takes at once."""


def among(hashes: Hashes, index: Hashes) -> NDArray[np.bool_]:
    """Which of the hashes are in an ascending index: a search each, as the index is much the longer."""
    if not len(index):
        return np.zeros(len(hashes), dtype=bool)
    return index[np.minimum(np.searchsorted(index, hashes), len(index) - 1)] == hashes


class Readable(TextFilter):
    r"""Drops what holds no text: rule "empty", and rule "invalid_utf8" with the position of the first bad byte.

    It is the first step of every pipeline.

    Attributes
    ----------
    decisions_ : list of Decision
    indices_ : array of int64, (kept,)

    Examples
    --------
    >>> [decision.rule for decision in Readable().fit(["fine", " ", b"caf\xe9"]).decisions_]
    ['', 'empty', 'invalid_utf8']
    """

    def check(self, document: Document) -> Decision:
        """Whether there is a text, of characters that UTF-8 can hold."""
        place = invalid_utf8_at(document.text)
        if place is not None:
            return Decision(False, "invalid_utf8", float(place))
        return KEEP if document.text.strip() else Decision(False, "empty", float(len(document.text)))


class Decontaminator(TextFilter):
    """Finds training documents that hold passages of evaluation texts, so that scores on these can be believed.

    Parameters
    ----------
    evaluation : mapping of name to sequence of texts, optional
        The benchmarks. It has to be given before ``fit``.
    ngram : int, default=12
        Words in a row that a document must share. Evaluation texts of fewer words can not be looked for.
    mode : {"drop", "trim"}, default="drop"
        Drop the document, or cut the shared words out of it.

    Attributes
    ----------
    index_ : dict of str to array of uint64
        Benchmark -> hashes of its n-grams.
    too_short_ : dict of str to int
        Benchmark -> texts of fewer than `ngram` words.
    decisions_ : list of Decision
        Rule "contaminated:NAME" of the benchmark with most n-grams shared, and their number.
    indices_ : array of int64, (kept,)

    References
    ----------
    Brown et al., "Language Models are Few-Shot Learners", 2020, arXiv 2005.14165, appendix C (13-grams).

    Examples
    --------
    >>> exam = {"exam": ["What is the name of the cat that sat on the mat?"]}
    >>> texts = ["Answer: what is the name of the cat that sat on the mat? Tom.", "A cat sat on a mat."]
    >>> Decontaminator(exam, ngram=8).fit(texts).indices_
    array([1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "evaluation": [Mapping, None],
        "ngram": [Interval(Integral, 1, None, closed="left")],
        "mode": [StrOptions({"drop", "trim"})],
    }

    def __init__(
        self, evaluation: Mapping[str, Sequence[str]] | None = None, ngram: int = 12, mode: str = "drop"
    ) -> None:
        self.evaluation = evaluation
        self.ngram = ngram
        self.mode = mode

    def prepare(self, documents: list[Document]) -> Self:
        """Hash the evaluation texts; the training documents play no part in it."""
        self._validate_params()
        if not self.evaluation:
            raise ValueError("evaluation is missing: give the texts of each benchmark, such as {'exam': [...]}.")
        self.index_: dict[str, Hashes] = {}
        self.too_short_: dict[str, int] = {}
        for name, texts in self.evaluation.items():
            tokens = [simplified_words(document.text) for document in as_documents(texts)]
            long_enough = [words for words in tokens if len(words) >= self.ngram]
            self.too_short_[name] = len(tokens) - len(long_enough)
            hashes = [self._hashes(words) for words in long_enough]
            self.index_[name] = np.unique(np.concatenate([*hashes, np.empty(0, dtype=np.uint64)]))
        return self

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:
        """Look for the evaluation texts in the documents `X`."""
        documents = as_documents(X)
        self.prepare(documents)
        return self._decide([self.check(document) for document in documents])

    def shared(self, document: Document) -> dict[str, int]:
        """Benchmark -> distinct n-grams that the document shares with it; only those with any."""
        check_is_fitted(self, "index_")
        tokens = simplified_words(document.text)
        if len(tokens) < self.ngram:
            return {}
        hashes = np.unique(self._hashes(tokens))
        found = {name: int(among(hashes, index).sum()) for name, index in self.index_.items()}
        return {name: number for name, number in found.items() if number}

    def check(self, document: Document) -> Decision:
        """Keep, drop or trim the document."""
        found = self.shared(document)
        if not found:
            return KEEP
        most = min(found, key=lambda name: (-found[name], name))
        rule, value = f"contaminated:{most}", float(found[most])
        text = self._trimmed(document.text) if self.mode == "trim" else ""
        return Decision(True, rule, value, text) if text else Decision(False, rule, value)

    def _hashes(self, tokens: Sequence[str]) -> Hashes:
        return ngram_hashes(hashes_of(tokens), self.ngram, 3)

    def _trimmed(self, text: str) -> str:
        spans = word_spans(text)
        hashes = self._hashes([simplified(text[start:stop]) for start, stop in spans])
        marked = np.zeros(len(spans), dtype=bool)
        for index in self.index_.values():
            for place in np.flatnonzero(among(hashes, index)):
                marked[place : place + self.ngram] = True
        return without_spans(text, spans, marked) if marked.any() and not marked.all() else ""


STEPS: Mapping[str, type[TextFilter]] = {
    "exact": ExactDedup,
    "gopher-repetition": GopherRepetition,
    "gopher-quality": GopherQuality,
    "c4": C4Filter,
    "fineweb": FineWebFilter,
    "minhash": MinHashDedup,
    "sentences": SentenceDedup,
    "passages": SubstringDedup,
    "decontaminate": Decontaminator,
}
"""Steps that can be named; others are given as filters."""

FINEWEB = (
    "gopher-repetition",
    "gopher-quality",
    ("c4", {"terminal_punctuation": False}),
    "fineweb",
    "minhash",
)
Step = str | tuple[str, Mapping[str, Any]] | TextFilter


@dataclass(frozen=True)
class Dropped:
    """Why a document is not in the result: the step and rule that dropped it, and what that rule measured."""

    id: str
    step: str
    rule: str
    value: float


@dataclass(frozen=True)
class Report:
    """The account of a run.

    Attributes
    ----------
    funnel : list of dict
        One a step: ``step``, ``before``, ``kept``, ``dropped``, ``changed``, and ``rules``, which counts both by rule.
    dropped : list of Dropped
        In the order of the steps, then of the documents.
    kept_ids : list of str
        In the order of the documents.
    replacements : dict of str to str
        Id -> the text that a kept document ends up with, where that is another than it came with.
    """

    funnel: list[dict[str, Any]]
    dropped: list[Dropped]
    kept_ids: list[str]
    replacements: dict[str, str] = field(default_factory=dict)

    def to_mlflow(self) -> dict[str, float]:
        """Counts by dotted names, as they can be logged as metrics."""
        metrics: dict[str, float] = {"documents": float(len(self.kept_ids) + len(self.dropped))}
        metrics["kept"] = float(len(self.kept_ids))
        for row in self.funnel:
            metrics |= {f"{row['step']}.{name}": float(row[name]) for name in ("before", "kept", "dropped", "changed")}
            metrics |= {f"{row['step']}.{rule.replace(':', '.')}": float(n) for rule, n in row["rules"].items()}
        return metrics

    def tables(self) -> dict[str, pd.DataFrame]:
        """Two tables to store beside a data version: ``decisions`` (one row a document dropped) and ``funnel``.

        Equal runs give equal tables, row by row.
        """
        decisions = pd.DataFrame(
            [(one.id, one.step, one.rule, one.value) for one in self.dropped],
            columns=["id", "step", "rule", "value"],
        )
        rows = [
            {"step": row["step"], "before": row["before"], "rule": rule, "documents": number}
            for row in self.funnel
            for rule, number in row["rules"].items()
        ]
        return {"decisions": decisions, "funnel": pd.DataFrame(rows, columns=["step", "before", "rule", "documents"])}


@register(
    "survey",
    stage="curate",
    summary="Runs the classical filters for text in order, and accounts for every document dropped",
    paper="A Survey on Data Selection for Language Models",
    year=2024,
    link="https://arxiv.org/abs/2402.16827",
    licence="CC0-1.0",
    accepts=("text",),
    taxonomy={
        "goal": "distribution matching, diversification",
        "utility": "heuristics of quality, repetition",
        "unit": "data point",
        "mechanism": "threshold",
        "stage_of_training": "pretraining",
    },
)
class TextCurationPipeline(BaseEstimator):
    """Filters in order over one corpus: what stays, what every dropped document fell to, and counts by rule.

    Parameters
    ----------
    steps : sequence, default=FINEWEB
        Each a name of ``STEPS``, a pair of such a name and parameters, or a filter. Filters that compare documents
        are fitted on what the steps before left; those that learn from other texts (language, quality) have to be
        fitted already. A decontamination comes last.
    n_jobs : int or None, default=None
        Processes for filters that look at one document at a time. The result does not depend on it.

    Attributes
    ----------
    report_ : Report
    indices_ : array of int64, (kept,)
        Rows of the documents kept, ascending.
    n_documents_ : int

    Notes
    -----
    The first step is always :class:`Readable`: texts that are empty or no UTF-8 are dropped and counted as such.
    When nothing is left the report says so; it is no error.

    References
    ----------
    Albalak et al., arXiv 2402.16827, section 3; the order and limits of the default are those of Penedo et al., arXiv
    2406.17557, section 3.

    Examples
    --------
    >>> texts = ["The cat sat on the mat.", "the cat sat on the mat", "", "A dog barked at the cat."]
    >>> pipeline = TextCurationPipeline(["exact"]).fit(texts)
    >>> pipeline.indices_, [(one.id, one.rule) for one in pipeline.report_.dropped]
    (array([0, 3]), [('2', 'empty'), ('1', 'duplicate')])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "steps": [list, tuple],
        "n_jobs": [Integral, None],
    }

    def __init__(self, steps: Sequence[Step] = FINEWEB, n_jobs: int | None = None) -> None:
        self.steps = steps
        self.n_jobs = n_jobs

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:
        """Run all steps over the documents `X`; `y` is ignored.

        Raises
        ------
        ValueError
            If `X` is empty, holds something other than text or an id twice, or a step is unknown or out of order.
        NotFittedError
            If a step that learns from other texts was not fitted.
        """
        self._validate_params()
        named = self._named_steps()
        documents = as_documents(X)
        current, dropped, funnel = documents, [], []
        for name, step in named:
            current, fallen, row = self._run(name, step, current)
            dropped += fallen
            funnel.append(row)
        rows = {document.id: number for number, document in enumerate(documents)}
        texts = {document.id: document.text for document in current}
        changed = {key: text for key, text in texts.items() if text != documents[rows[key]].text}
        self.report_ = Report(funnel, dropped, list(texts), changed)
        self.indices_: NDArray[np.int64] = np.array([rows[key] for key in texts], dtype=np.int64)
        self.n_documents_ = len(documents)
        return self

    def run(self, docs: Iterable[Any]) -> Report:
        """:meth:`fit`, and its report."""
        return self.fit(docs).report_

    def transform(self, X: Iterable[Any]) -> list[Document]:
        """The documents kept, of those given to ``fit``, with the texts they ended up with."""
        check_is_fitted(self, "report_")
        kept = set(self.report_.kept_ids)
        return [
            after(document, Decision(True, replacement_text=self.report_.replacements.get(document.id)))  # type: ignore[misc]
            for document in as_documents(X)
            if document.id in kept
        ]

    def _named_steps(self) -> list[tuple[str, TextFilter]]:
        made: list[tuple[str, TextFilter]] = [("readable", Readable())]
        for given in self.steps:
            step = make_step(given)
            if isinstance(made[-1][1], Decontaminator):
                raise ValueError(
                    "A decontamination must be the last step, as steps after it can not be accounted for in what "
                    f"it reports; {type(step).__name__} comes after it. Move it to the end."
                )
            name = next((known for known, cls in STEPS.items() if cls is type(step)), type(step).__name__.lower())
            before = sum(other.partition("#")[0] == name for other, _ in made)
            made.append((f"{name}#{before + 1}" if before else name, step))
        return made

    def _run(
        self, name: str, step: TextFilter, documents: list[Document]
    ) -> tuple[list[Document], list[Dropped], dict[str, Any]]:
        if documents:
            step.prepare(documents)
        parts = [documents[start : start + CHUNK] for start in range(0, len(documents), CHUNK)]
        found = Parallel(n_jobs=self.n_jobs)(delayed(_check_all)(step, part) for part in parts)
        decisions = [decision for part in found for decision in part]
        left, dropped = [], []
        for document, decision in zip(documents, decisions, strict=True):
            kept = after(document, decision)
            if kept is None:
                dropped.append(Dropped(document.id, name, decision.rule, decision.value))
            else:
                left.append(kept)
        rules = Counter(decision.rule for decision in decisions if decision.rule)
        row = {"step": name, "before": len(documents), "kept": len(left), "dropped": len(dropped)}
        row["changed"] = sum(d.keep and d.replacement_text is not None for d in decisions)
        return left, dropped, row | {"rules": dict(sorted(rules.items()))}


def _check_all(step: TextFilter, documents: list[Document]) -> list[Decision]:
    return [step.check(document) for document in documents]


def make_step(given: Step) -> TextFilter:
    """A filter of a name, of a name and parameters, or a copy of one that is given.

    Raises
    ------
    ValueError
        For another thing, or a name that there is not.
    """
    if isinstance(given, TextFilter):
        return copy.copy(given)
    name, parameters = (given, {}) if isinstance(given, str) else (*given, {})[:2]
    if name not in STEPS:
        raise ValueError(f"There is no step {name!r}; steps are {', '.join(STEPS)}, or give a filter.")
    return STEPS[name](**parameters)

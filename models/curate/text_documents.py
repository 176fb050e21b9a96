"""Texts as documents, and what every text filter takes for a word, a line and a sentence.

Ratios over words change with the splitter, so there is one, with a version: figures measured under another version of
it are not comparable. It knows no language: in scripts that put no space between words each character counts as one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

SPLITTER = 2
"""Version of :func:`words`, :func:`simplified_words` and :func:`sentences`."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['’-][^\W{_UNSPACED}]+)*|\.{{2,}}|[^\w\s]")
_PLAIN_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)])\s+|(?<=[。！？])\s*|\n+")
_LINE_BREAKS = re.compile(r"\n+")
_PARAGRAPH_BREAKS = re.compile(r"\n{2,}")


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes
    ----------
    id : str
        Unique in its corpus; ties between documents are settled by it, so that their order never matters.
    text : str
        Bytes that were no UTF-8 are in it as lone surrogates, so nothing of the original is lost.
    meta : mapping
        Whatever else is known, such as ``url`` or ``language``.
    """

    id: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What a filter says of one document.

    Attributes
    ----------
    keep : bool
    rule : str
        The rule that dropped or changed it; empty when none did.
    value : float
        What that rule measured.
    replacement_text : str, optional
        The text to go on with, where lines or passages of it were removed.
    """

    keep: bool
    rule: str = ""
    value: float = 0.0
    replacement_text: str | None = None


KEEP = Decision(True)


def as_documents(X: Iterable[Any]) -> list[Document]:
    """Documents of texts (their row number becomes the id), mappings with ``id`` and ``text``, or documents.

    Texts may be ``bytes``: what is no UTF-8 among them is kept as lone surrogates, see :func:`invalid_utf8_at`.

    Raises
    ------
    ValueError
        If there is none, an id comes twice, or a text is neither str nor bytes; the message names the row.
    """
    if isinstance(X, (str, bytes, Mapping)):
        raise ValueError(f"X must be a sequence of texts or documents, got one {type(X).__name__}. Put it in a list.")
    documents = [_document(value, row) for row, value in enumerate(X)]
    if not documents:
        raise ValueError(
            "X is empty: there is no document in the corpus (n_samples=0). Check the source that was read."
        )
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise ValueError(f"X holds the id {document.id!r} twice. Give every document an id of its own.")
        seen.add(document.id)
    return documents


def _document(value: Any, row: int) -> Document:
    found = value
    if isinstance(value, Mapping):
        rest = {key: item for key, item in value.items() if key not in ("id", "text")}
        found = Document(str(value.get("id", row)), value.get("text"), rest)  # type: ignore[arg-type]
    elif not isinstance(value, Document):
        found = Document(str(row), value)
    if isinstance(found.text, bytes):
        return replace(found, text=found.text.decode("utf-8", "surrogateescape"))
    if not isinstance(found.text, str):
        raise ValueError(
            f"X must hold texts (str or bytes), got {type(found.text).__name__} at row {row} (id {found.id!r}). "
            "Drop rows without text, or turn them into str."
        )
    return found


def invalid_utf8_at(text: str) -> int | None:
    """Position of the first character that UTF-8 can not hold, None if there is none."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def words(text: str) -> list[str]:
    """Words and symbols in order: ``"It's 5 % ..."`` gives ``It's``, ``5``, ``%`` and ``...``.

    Examples
    --------
    >>> words("A well-kept cat's 猫耳, no?")
    ['A', 'well-kept', "cat's", '猫', '耳', ',', 'no', '?']
    """
    return _WORD.findall(text)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the :func:`simplified_words` of `text` stand in it, before any of its characters is changed."""
    return [match.span() for match in _PLAIN_WORD.finditer(text)]


def is_symbol(word: str) -> bool:
    """Whether one of :func:`words` is punctuation or another symbol."""
    return not (word[0].isalnum() or word[0] == "_")


def simplified_words(text: str) -> list[str]:
    """Words without punctuation, of one Unicode form (NFKC) and one case (ß is ss): what copies have in common."""
    folded = (
        text.casefold()
        if text.isascii()
        else unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    )
    return _PLAIN_WORD.findall(folded)


def simplified(text: str) -> str:
    """:func:`simplified_words` joined by single spaces."""
    return " ".join(simplified_words(text))


def sentences(text: str) -> list[str]:
    """Pieces that end in a full stop, question or exclamation mark, or with their line."""
    return [text[start:stop] for start, stop in sentence_spans(text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where the :func:`sentences` of `text` stand in it."""
    ends = [match.span() for match in _SENTENCE_END.finditer(text)]
    borders = zip([0, *(stop for _, stop in ends)], [*(start for start, _ in ends), len(text)], strict=True)
    pieces = ((start, stop, text[start:stop]) for start, stop in borders)
    return [
        (start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip()))
        for start, stop, piece in pieces
        if piece.strip()
    ]


def lines(text: str) -> list[str]:
    """What runs of line breaks separate, first and last break included."""
    return _LINE_BREAKS.split(text)


def paragraphs(text: str) -> list[str]:
    """What empty lines separate."""
    return _PARAGRAPH_BREAKS.split(text.strip())


class TextFilter(BaseEstimator):
    """Base of what decides about documents one by one.

    ``check(document)`` is the filter; :meth:`fit` finds out what of a corpus stays.

    Attributes
    ----------
    decisions_ : list of Decision
        One for each document given to ``fit``.
    indices_ : array of int64, (kept,)
        Rows of the documents kept, ascending.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:
        """Decide about every document of `X`; `y` is ignored."""
        self._validate_params()
        return self._decide([self.check(document) for document in as_documents(X)])

    def prepare(self, documents: list[Document]) -> Self:
        """Find out what has to be known of the corpus before single documents are checked: by default nothing."""
        self._validate_params()
        return self

    def check(self, document: Document) -> Decision:
        """What is to be done with one document, and why."""
        raise NotImplementedError(f"{type(self).__name__} must say what it keeps: override check.")

    def transform(self, X: Iterable[Any]) -> list[Document]:
        """The documents kept, with the texts that replace theirs."""
        return [kept for document in as_documents(X) if (kept := after(document, self.check(document))) is not None]

    def _decide(self, decisions: list[Decision]) -> Self:
        self.decisions_ = decisions
        self.indices_: NDArray[np.int64] = np.flatnonzero([decision.keep for decision in decisions]).astype(np.int64)
        return self


class CorpusFilter(TextFilter):
    """Base of filters that decide about a document by the others: ``fit`` is to call :meth:`_decide_by_id`.

    :meth:`check` answers for the documents given to ``fit`` only.
    """

    def prepare(self, documents: list[Document]) -> Self:
        """Compare the documents with each other."""
        return self.fit(documents)

    def check(self, document: Document) -> Decision:
        """The decision made in ``fit``.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        ValueError
            For a document that was not in the corpus.
        """
        check_is_fitted(self, "corpus_ids_")
        if document.id not in self.corpus_ids_:
            raise ValueError(
                f"The document {document.id!r} was not in the corpus given to fit; {type(self).__name__} compares "
                "documents with each other. Fit it on the corpus that holds it."
            )
        return self.decisions_[self.corpus_ids_[document.id]]

    def _decide_by_id(self, documents: list[Document], decisions: list[Decision]) -> Self:
        self.corpus_ids_ = {document.id: row for row, document in enumerate(documents)}
        return self._decide(decisions)


def after(document: Document, decision: Decision) -> Document | None:
    """What goes on to the next filter: the document, with its replacement text if there is one, or nothing."""
    if not decision.keep:
        return None
    return document if decision.replacement_text is None else replace(document, text=decision.replacement_text)

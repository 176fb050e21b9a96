"""Exact repetition: whole documents, pages of one address, runs of sentences, and passages of text.

Copies are told by the order of ids, never by the order in which documents arrive: the lowest id keeps its text.

- Sentences: the rule of C4 (Raffel et al., 2020, arXiv 1910.10683, section 2.2).
- Passages: K. Lee et al., "Deduplicating Training Data Makes Language Models Better", 2022, arXiv 2107.06499.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval, StrOptions

from models.curate.text_documents import (
    KEEP,
    CorpusFilter,
    Decision,
    Document,
    as_documents,
    sentence_spans,
    simplified,
    word_spans,
    words,
)
from models.curate.text_hashing import hash_of, text_key

TRACKING = ("utm_", "fbclid", "gclid", "ref_src", "mc_cid", "mc_eid")
PORTS = {"http": 80, "https": 443}


# ---- whole documents -----------------------------------------------------------------------------------------


def normalised_url(url: str) -> str:
    """One form of the addresses of a page: host in lower case, no default port, fragment, tracking, or last slash.

    What is no address (a port that is no number, a bracket left open) stays as it is.

    Examples
    --------
    >>> normalised_url("HTTP://Example.org:80/a/?b=2&a=1&utm_source=x#part")
    'http://example.org/a?a=1&b=2'
    """
    try:
        return _normalised(url.strip())
    except ValueError:  # crawls hold such addresses
        return url.strip()


def _normalised(url: str) -> str:
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").removeprefix("www.")
    port = "" if parts.port in (None, PORTS.get(scheme)) else f":{parts.port}"
    query = sorted(pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not pair[0].startswith(TRACKING))
    return urlunsplit((scheme, host + port, parts.path.rstrip("/"), urlencode(query), ""))


class BloomFilter:
    """A set of 64-bit keys in a few bits each: what was added is always found, else wrongly with a given rate.

    Parameters
    ----------
    capacity : int
        Keys to come.
    false_positive_rate : float
        Once they have all come.

    Examples
    --------
    >>> seen = BloomFilter(1000, 0.01)
    >>> seen.add(5), seen.add(6), seen.add(5)
    (False, False, True)
    """

    def __init__(self, capacity: int, false_positive_rate: float) -> None:
        self.bits = max(64, math.ceil(-capacity * math.log(false_positive_rate) / math.log(2) ** 2))
        self.hashes = max(1, round(self.bits / max(capacity, 1) * math.log(2)))
        self.held = np.zeros((self.bits + 7) // 8, dtype=np.uint8)

    def add(self, key: int) -> bool:
        """Add a key; returns whether it was found, rightly or wrongly."""
        low, high = key & 0xFFFFFFFF, (key >> 32) | 1
        found = True
        for k in range(self.hashes):
            place = (low * 0x9E3779B1 + k * high + k * k * k) % self.bits
            bit = 1 << (place & 7)
            found = found and bool(self.held[place >> 3] & bit)
            self.held[place >> 3] |= bit
        return found


def exact_key(document: Document, by: str) -> int | None:
    """64 bits that copies share; None where nothing tells whether it is a copy (no address)."""
    if by == "url":
        url = document.meta.get("url")
        return None if not url else hash_of(normalised_url(str(url)))
    return text_key(document.text)


class ExactDedup(CorpusFilter):
    """Keeps one of the documents that differ in case, white space, punctuation or Unicode form alone.

    Parameters
    ----------
    by : {"text", "url"}, default="text"
        "url" compares the addresses in ``meta["url"]`` instead; documents without one are kept.
    bloom : float, optional
        False-positive rate of a Bloom filter that holds what was seen, about 1.2 bytes a document at 1%, and wrongly
        drops that share of documents. By default 8 bytes a document and no mistakes.

    Attributes
    ----------
    decisions_ : list of Decision
        The value of rule "duplicate" is the row of the copy that is kept, -1 with `bloom`, which does not know it.
    indices_ : array of int64, (kept,)

    References
    ----------
    Albalak et al., arXiv 2402.16827, section 3.5 (deduplication by hashes and Bloom filters).

    Examples
    --------
    >>> ExactDedup().fit(["A cat!", "a  cat", "a dog"]).indices_
    array([0, 2])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "by": [StrOptions({"text", "url"})],
        "bloom": [Interval(Real, 0, 1, closed="neither"), None],
    }

    def __init__(self, by: str = "text", bloom: float | None = None) -> None:
        self.by = by
        self.bloom = bloom

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:
        """Find the copies among the documents `X`."""
        self._validate_params()
        documents = as_documents(X)
        decisions = [KEEP] * len(documents)
        seen: dict[int, int] = {}
        bloom = None if self.bloom is None else BloomFilter(len(documents), self.bloom)
        for row in sorted(range(len(documents)), key=lambda row: documents[row].id):
            key = exact_key(documents[row], self.by)
            if key is None:
                continue
            first = (-1 if bloom.add(key) else row) if bloom is not None else seen.setdefault(key, row)
            if first != row:
                decisions[row] = Decision(False, "duplicate", float(first))
        return self._decide_by_id(documents, decisions)


# ---- parts of documents --------------------------------------------------------------------------------------


class SentenceDedup(CorpusFilter):
    """Cuts runs of sentences that stood in the corpus before, and drops what is too short without them.

    Parameters
    ----------
    span : int, default=3
        Sentences in a run.
    min_sentences : int, default=3
    min_words : int, default=50
        What a document that lost sentences must still have.

    Attributes
    ----------
    decisions_ : list of Decision
        The value of rule "repeated_sentences" is the number of sentences cut.
    indices_ : array of int64, (kept,)

    References
    ----------
    Raffel et al., arXiv 1910.10683, section 2.2.

    Examples
    --------
    >>> dedup = SentenceDedup(span=1, min_sentences=1, min_words=2)
    >>> dedup.fit(["We ship. Cats purr.", "We ship. Dogs bark a lot."]).indices_
    array([0, 1])
    >>> dedup.decisions_[1].replacement_text
    'Dogs bark a lot.'
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "span": [Interval(Integral, 1, None, closed="left")],
        "min_sentences": [Interval(Integral, 0, None, closed="left")],
        "min_words": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, span: int = 3, min_sentences: int = 3, min_words: int = 50) -> None:
        self.span = span
        self.min_sentences = min_sentences
        self.min_words = min_words

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:
        """Find the runs of sentences that come again among the documents `X`."""
        self._validate_params()
        documents = as_documents(X)
        decisions = [KEEP] * len(documents)
        seen: set[int] = set()
        for row in sorted(range(len(documents)), key=lambda row: documents[row].id):
            text = documents[row].text
            spans = sentence_spans(text)
            pieces = [simplified(text[start:stop]) for start, stop in spans]
            repeated = np.zeros(len(pieces), dtype=bool)
            for place in range(len(pieces) - self.span + 1):
                key = hash_of("\n".join(pieces[place : place + self.span]))
                repeated[place : place + self.span] |= key in seen
                seen.add(key)
            if repeated.any():
                decisions[row] = self._without(text, spans, repeated)
        return self._decide_by_id(documents, decisions)

    def _without(self, text: str, spans: list[tuple[int, int]], repeated: NDArray[np.bool_]) -> Decision:
        left = without_spans(text, spans, repeated)
        if (count := int((~repeated).sum())) < self.min_sentences:
            return Decision(False, "too_few_sentences", float(count))
        if (count := len(words(left))) < self.min_words:
            return Decision(False, "too_few_words", float(count))
        return Decision(True, "repeated_sentences", float(repeated.sum()), left)


def repeated_windows(tokens: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    """Which tokens lie in a window of `length` that stood before, without collisions.

    As in the construction of a suffix array, windows of twice the length are ranked by the ranks of their halves; it
    stops at `length`. Negative tokens separate documents: no window reaches over one.
    """
    n = len(tokens)
    covered = np.zeros(n, dtype=bool)
    if n < length:
        return covered
    ranks, width = np.unique(tokens, return_inverse=True)[1].astype(np.int64), 1
    while width < length:
        step = min(width, length - width)
        pairs = ranks[:-step] * (int(ranks.max()) + 1) + ranks[step:]
        ranks, width = np.unique(pairs, return_inverse=True)[1].astype(np.int64), width + step
    borders = np.concatenate([[0], np.cumsum(tokens < 0)])
    inside = borders[length:] == borders[:-length]
    first = np.zeros(len(ranks), dtype=bool)
    places = np.flatnonzero(inside)
    first[places[np.unique(ranks[places], return_index=True)[1]]] = True
    again = np.flatnonzero(inside & ~first)
    marks = np.zeros(n + 1, dtype=np.int64)
    np.add.at(marks, again, 1)
    np.add.at(marks, again + length, -1)
    return np.cumsum(marks[:-1]) > 0


class SubstringDedup(CorpusFilter):
    """Cuts passages of many words that stand elsewhere in the corpus; the first occurrence stays.

    Parameters
    ----------
    length : int, default=50
        Words a passage needs to count.
    min_words : int, default=1
        What a document that lost passages must still have.

    Attributes
    ----------
    decisions_ : list of Decision
        The value of rule "repeated_passage" is the number of words cut.
    indices_ : array of int64, (kept,)

    Notes
    -----
    The words of the whole corpus are held as integers, 8 bytes each, and ranked about log2(`length`) times.

    References
    ----------
    Lee et al., arXiv 2107.06499, section 4.1 (exact substrings of at least 50 tokens).

    Examples
    --------
    >>> dedup = SubstringDedup(length=3).fit(["all rights are reserved", "we say: all rights are reserved."])
    >>> dedup.decisions_[1].replacement_text
    'we say: .'
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "length": [Interval(Integral, 1, None, closed="left")],
        "min_words": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(self, length: int = 50, min_words: int = 1) -> None:
        self.length = length
        self.min_words = min_words

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:
        """Find the passages that come again among the documents `X`."""
        self._validate_params()
        documents = as_documents(X)
        order = sorted(range(len(documents)), key=lambda row: documents[row].id)
        spans = {row: word_spans(documents[row].text) for row in order}
        known: dict[str, int] = {}
        numbers: list[int] = []
        for row in order:
            text = documents[row].text
            numbers += [known.setdefault(text[start:stop].lower(), len(known)) for start, stop in spans[row]] + [-1]
        repeated = repeated_windows(np.array(numbers, dtype=np.int64), self.length)
        decisions, start = [KEEP] * len(documents), 0
        for row in order:
            marked = repeated[start : start + len(spans[row])]
            start += len(spans[row]) + 1
            if marked.any():
                decisions[row] = self._without(documents[row].text, spans[row], marked)
        return self._decide_by_id(documents, decisions)

    def _without(self, text: str, spans: list[tuple[int, int]], marked: NDArray[np.bool_]) -> Decision:
        left = int((~marked).sum())
        if left < self.min_words:
            return Decision(False, "too_few_words", float(left))
        return Decision(True, "repeated_passage", float(marked.sum()), without_spans(text, spans, marked))


def without_spans(text: str, spans: list[tuple[int, int]], marked: NDArray[np.bool_]) -> str:
    """`text` without the runs of marked spans and what stands between those of one run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(np.int8), [0]])))
    cuts = [(spans[first][0], spans[stop - 1][1]) for first, stop in zip(edges[::2], edges[1::2], strict=True)]
    borders = [0, *(place for cut in cuts for place in cut), len(text)]
    return "".join(text[first:stop] for first, stop in list(pairwise(borders))[::2]).strip()

"""Near-duplicate texts by MinHash and locality-sensitive hashing: what is said again in nearly the same words.

Documents become sets of hashed word n-grams, sets become signatures whose entries agree with a probability that is
their Jaccard similarity, and signatures are cut into bands: documents that agree in all rows of one band are
candidates. Candidates are joined to components, of which one document stays.

A. Broder, "On the resemblance and containment of documents", SEQUENCES 1997. The sizes are those of FineWeb: G. Penedo
et al., "The FineWeb Datasets", 2024, arXiv 2406.17557, appendix E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from models.curate.text_documents import KEEP, CorpusFilter, Decision, Document, as_documents
from models.curate.text_hashing import Hashes, band_keys, jaccard, permutations, shingles, signatures_of
from models.registry import register

Rows = NDArray[np.int64]
CHUNK = 512
"""Documents whose shingles are held at once."""


def candidate_probability(similarity: Any, bands: int = 14, rows: int = 8) -> Any:
    """Probability that a pair of this Jaccard similarity agrees in a band: 1 - (1 - s^rows)^bands."""
    return 1 - (1 - np.asarray(similarity, dtype=float) ** rows) ** bands


class Components:
    """Union-find over rows; the order in which pairs are joined does not matter.

    Examples
    --------
    >>> parts = Components(4)
    >>> parts.join(3, 1)
    >>> parts.labels()
    array([0, 1, 2, 1])
    """

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def root(self, row: int) -> int:
        """The lowest row of the component."""
        parent = self.parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    def join(self, first: int, second: int) -> None:
        """Make one component of two."""
        a, b = self.root(first), self.root(second)
        self.parent[max(a, b)] = min(a, b)

    def labels(self) -> Rows:
        """The lowest row of each row's component, (n,)."""
        return np.array([self.root(row) for row in range(len(self.parent))], dtype=np.int64)


def buckets(keys: Hashes) -> Iterator[Rows]:
    """Groups of at least two rows with the same key, of one band's `keys` (n,)."""
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(np.diff(keys[order]) != 0) + 1
    starts = np.concatenate([[0], same])
    stops = np.concatenate([same, [len(keys)]])
    for start, stop in zip(starts[stops - starts > 1], stops[stops - starts > 1], strict=True):
        yield order[start:stop]


def join_candidates(
    bands: Iterable[Hashes], n: int, similar: Callable[[int, int], bool] | None = None, hold: Rows | None = None
) -> Components:
    """Components of `n` rows that agree in a band, one band's keys at a time.

    Parameters
    ----------
    bands : iterable of array of uint64, (n,)
    n : int
    similar : callable, optional
        Asked for each candidate pair not yet connected; only pairs it confirms are joined.
    hold : array of int64, optional
        Rows to look at, all by default.
    """
    parts = Components(n)
    refused: set[tuple[int, int]] = set()
    for keys in bands:
        chosen = keys if hold is None else keys[hold]
        for bucket in buckets(chosen):
            rows = bucket if hold is None else hold[bucket]
            if similar is None:
                for row in rows[1:].tolist():
                    parts.join(int(rows[0]), row)
            else:
                _join_confirmed(parts, rows.tolist(), similar, refused)
    return parts


def _join_confirmed(
    parts: Components, rows: list[int], similar: Callable[[int, int], bool], refused: set[tuple[int, int]]
) -> None:
    """Compare every pair of a bucket that is not connected yet."""
    groups: dict[int, list[int]] = {}
    for row in rows:
        for root, members in list(groups.items()):
            if parts.root(root) == parts.root(row):
                continue
            for member in members:
                pair = (member, row) if member < row else (row, member)
                if pair in refused:
                    continue
                if similar(*pair):
                    parts.join(*pair)
                    break
                refused.add(pair)
        merged: dict[int, list[int]] = {}
        for root, members in [*groups.items(), (row, [row])]:
            merged.setdefault(parts.root(root), []).extend(members)
        groups = merged


def representatives(
    labels: Rows,
    lengths: Sequence[int] | Rows,
    ids: Sequence[str],
    similar: Callable[[int, int], bool] | None = None,
) -> Rows:
    """The row that stays for each row: the longest text of its component, of equals the lowest id; (n,).

    With `similar`, the longest that it confirms: the ends of a chain, which are not alike, both stay.
    """
    order = sorted(range(len(labels)), key=lambda row: (-int(lengths[row]), ids[row]))
    stays = np.arange(len(labels))
    of_component: dict[int, list[int]] = {}
    for row in order:
        kept = of_component.setdefault(int(labels[row]), [])
        alike = (other for other in kept if similar is None or similar(other, row))
        stays[row] = next(alike, row)
        if stays[row] == row:
            kept.append(row)
    return stays


def band_keys_of(texts: Iterable[str], *, ngram: int, bands: int, rows: int, min_words: int, seed: int) -> Hashes:
    """Band keys of texts, (n, bands). A text without shingles (no letter or digit in it) has the keys of none."""
    chosen = permutations(bands * rows, seed)
    found = [np.empty((0, bands), dtype=np.uint64)]
    held: list[Hashes] = []

    def flush() -> None:
        found.append(band_keys(signatures_of(held, chosen), bands))
        held.clear()

    for text in texts:
        held.append(shingles(text, ngram, min_words))
        if len(held) == CHUNK:
            flush()
    if held:
        flush()
    return np.concatenate(found)


@register(
    "minhash-dedup",
    stage="curate",
    summary="Keeps one of the texts that say nearly the same, at any size of corpus",
    paper="On the resemblance and containment of documents",
    year=1997,
    link="https://doi.org/10.1109/SEQUEN.1997.666900",
    licence="none published",
    accepts=("text",),
    taxonomy={
        "goal": "diversification",
        "utility": "Jaccard similarity of word n-grams",
        "unit": "data point",
        "mechanism": "locality-sensitive hashing, threshold",
        "stage_of_training": "pretraining",
    },
)
class MinHashDedup(CorpusFilter):
    """Keeps of each group of near duplicates the longest document.

    Parameters
    ----------
    ngram : int, default=5
        Words in a shingle; characters in texts of fewer than `min_words` words.
    bands, rows : int, default=14, 8
        A pair of Jaccard similarity s becomes a candidate with probability 1 - (1 - s^rows)^bands: 0.92 at 0.8, 0.05 at
        0.5.
    verify : float or None, default=None
        Join only candidates of at least this exact Jaccard similarity, and drop a document only if it is as similar
        to one that stays. None believes the bands and keeps one document a group, as is published.
    min_words : int, default=20
        Below it shingles are of characters. Texts on different sides of it never match.
    random_state : int, default=1
        Of the permutations. Equal on all workers.

    Attributes
    ----------
    components_ : array of int64, (n,)
        The lowest row of each document's group.
    representatives_ : array of int64, (n,)
        The row that stays for each document, its own if it is kept.
    decisions_ : list of Decision
        The value of rule "near_duplicate" is the exact Jaccard similarity with the document kept; without `verify`
        it can lie far below that of neighbours in a long chain.
    indices_ : array of int64, (kept,)

    Notes
    -----
    Documents that hold neither letter nor digit are kept. When all are alike one is kept, and nothing is an error.
    Memory: 8 bytes a band and document beside the texts.

    References
    ----------
    Broder (1997), doi 10.1109/SEQUEN.1997.666900, section 3; Penedo et al., arXiv 2406.17557, appendix E (sizes).

    Examples
    --------
    >>> copies = ["a small tool that reads files", "a small tool that reads files.", "music for the whole family"]
    >>> MinHashDedup().fit(copies).indices_
    array([1, 2])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: [Interval(Integral, 1, None, closed="left")] for name in ("ngram", "bands", "rows")},
        "verify": [Interval(Real, 0, 1, closed="right"), None],
        "min_words": [Interval(Integral, 0, None, closed="left")],
        "random_state": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        ngram: int = 5,
        bands: int = 14,
        rows: int = 8,
        verify: float | None = None,
        min_words: int = 20,
        random_state: int = 1,
    ) -> None:
        self.ngram = ngram
        self.bands = bands
        self.rows = rows
        self.verify = verify
        self.min_words = min_words
        self.random_state = random_state

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:
        """Find the near duplicates among the documents `X`."""
        self._validate_params()
        documents = as_documents(X)
        keys = band_keys_of(
            (document.text for document in documents),
            ngram=self.ngram, bands=self.bands, rows=self.rows, min_words=self.min_words, seed=self.random_state,
        )  # fmt: skip
        told = np.array([row for row, document in enumerate(documents) if has_words(document.text)], dtype=np.int64)
        similar = None if self.verify is None else self._confirms(documents, self.verify)
        parts = join_candidates((keys[:, band] for band in range(self.bands)), len(documents), similar, told)
        self.components_ = parts.labels()
        lengths = [len(document.text) for document in documents]
        ids = [document.id for document in documents]
        self.representatives_ = representatives(self.components_, lengths, ids, similar)
        decisions = [
            KEEP if kept == row else Decision(False, "near_duplicate", self._jaccard(documents[row], documents[kept]))
            for row, kept in enumerate(self.representatives_.tolist())
        ]
        return self._decide_by_id(documents, decisions)

    def candidate_probability(self, similarity: Any) -> Any:
        """Probability that a pair of this Jaccard similarity is compared at all."""
        return candidate_probability(similarity, self.bands, self.rows)

    def groups(self) -> list[Rows]:
        """Rows of each group of at least two near duplicates."""
        check_is_fitted(self, "components_")
        return list(buckets(self.components_.astype(np.uint64)))

    def _jaccard(self, first: Document, second: Document) -> float:
        sets = [shingles(document.text, self.ngram, self.min_words) for document in (first, second)]
        return float(jaccard(*sets))

    def _confirms(self, documents: list[Document], least: float) -> Callable[[int, int], bool]:
        held: dict[int, Hashes] = {}

        def of(row: int) -> Hashes:
            if row not in held:
                if len(held) >= 20 * CHUNK:
                    held.clear()
                held[row] = shingles(documents[row].text, self.ngram, self.min_words)
            return held[row]

        return lambda first, second: bool(jaccard(of(first), of(second)) >= least)


def has_words(text: str) -> bool:
    """Whether there is a letter or digit to compare by."""
    return any(c.isalnum() for c in text)

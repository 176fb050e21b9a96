"""Choosing by importance: which documents of a raw corpus look most like a target (DSIR), and mixing sources.

S. M. Xie et al., "Data Selection for Language Models via Importance Resampling", NeurIPS 2023, arXiv 2302.03169. A
selection is a utility, one number a document, and a mechanism that decides by it; the mechanisms are functions here.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from models.curate.text_documents import Document, as_documents
from models.curate.text_hashing import hash_of, uniform_of
from models.registry import register
from models.selection import Budget, EpochSampler, Selector, check_scores, kept_rows, shares_of_classes, top_rows

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
FLOOR = 1e-8
"""Added to probabilities before the logarithm, so that a bucket never seen costs about -10 a hit."""
SMALL_TARGET = 100_000
"""Tokens below which a target leaves most buckets unseen."""
_TOKEN = re.compile(r"\w+|[^\w\s]+")


# ---- mechanisms: from one number a document to the documents kept ----------------------------------------------


def over_threshold(scores: ArrayLike, threshold: float) -> Rows:
    """Rows whose score is at least `threshold`."""
    values = check_scores(scores, len(scores))  # type: ignore[arg-type]
    return np.flatnonzero(values >= threshold).astype(np.int64)


def gumbel_top(log_weights: ArrayLike, keep: int, uniform: Floats) -> Rows:
    """`keep` rows drawn without replacement in proportion to exp(log_weights): the top after Gumbel(0, 1) noise.

    Parameters
    ----------
    log_weights : array, (n,)
        -inf for rows that may not be drawn.
    keep : int
    uniform : array, (n,)
        Numbers in (0, 1) that become the noise, see :func:`~models.curate.text_hashing.uniform_of`.
    """
    noisy = np.asarray(log_weights, dtype=np.float64) - np.log(-np.log(uniform))
    return np.sort(np.argsort(-noisy, kind="stable")[:keep]).astype(np.int64)


def over_pareto(scores: ArrayLike, uniform: Floats, alpha: float = 9.0) -> Rows:
    """Rows with draw > 1 - score, where the draw is Pareto (Lomax, numpy's ``pareto``) of this shape.

    Most good documents stay and a few bad ones do, so that what the score has not learned is not lost.
    """
    values = check_scores(scores, len(scores))  # type: ignore[arg-type]
    draws = (1 - uniform) ** (-1 / alpha) - 1
    return np.flatnonzero(draws > 1 - values).astype(np.int64)


def cluster_balanced(scores: ArrayLike, clusters: ArrayLike, keep: int) -> Rows:
    """`keep` rows spread over the clusters as evenly as their sizes allow, the best scores of each."""
    values = check_scores(scores, len(scores))  # type: ignore[arg-type]
    _, members, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    quotas = mixture_quotas(sizes, keep, alpha=0.0, max_epochs=1.0)
    chosen = [np.flatnonzero(members == c)[top_rows(values[members == c], int(q))] for c, q in enumerate(quotas) if q]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


# ---- DSIR ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=200_000)
def _sha256_bucket(gram: str, buckets: int) -> int:
    digest = hashlib.sha256(gram.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest, "big") % buckets


def _fast_bucket(gram: str, buckets: int) -> int:
    return hash_of(gram) % buckets


HASHES: Mapping[str, Callable[[str, int], int]] = {"sha256": _sha256_bucket, "fast": _fast_bucket}


def tokens_of(text: str) -> list[str]:
    """Words and runs of punctuation in lower case."""
    return _TOKEN.findall(text.lower())


def bucket_counts(
    texts: Iterable[str], ngrams: int = 2, buckets: int = 10_000, hash: str = "sha256"
) -> tuple[csr_matrix, Rows]:
    """Hashed counts of all n-grams up to `ngrams`, as a sparse (n, buckets), and the number of tokens, (n,)."""
    bucket = HASHES[hash]
    indices: list[int] = []
    stops, lengths = [0], []
    for text in texts:
        tokens = tokens_of(text)
        indices += [bucket(token, buckets) for token in tokens]
        for n in range(2, ngrams + 1):
            indices += [bucket(" ".join(tokens[i : i + n]), buckets) for i in range(len(tokens) - n + 1)]
        stops.append(len(indices))
        lengths.append(len(tokens))
    counts = csr_matrix(
        (np.ones(len(indices), dtype=np.int64), np.array(indices, dtype=np.int64), stops),
        shape=(len(lengths), buckets),
    )
    counts.sum_duplicates()
    return counts, np.array(lengths, dtype=np.int64)


def log_ratio(target: ArrayLike, raw: ArrayLike, smoothing: float = 0.0) -> Floats:
    """Log p - log q of each bucket, from the counts of target and raw corpus; (buckets,)."""
    p = np.asarray(target, dtype=np.float64) + smoothing
    q = np.asarray(raw, dtype=np.float64)
    return np.log(p / p.sum() + FLOOR) - np.log(q / q.sum() + FLOOR)


def warn_of_small_target(tokens: int, smoothing: float, buckets: int) -> None:
    """A warning where a target of so few tokens leaves most buckets unseen, and nothing makes up for it."""
    if tokens < SMALL_TARGET and smoothing == 0:
        warnings.warn(
            f"The target has {tokens} tokens, which leaves most of the {buckets} buckets unseen. "
            "Give target_smoothing=1, or a larger target.",
            UserWarning,
            stacklevel=3,
        )


@register(
    "dsir",
    stage="curate",
    summary="Draws the texts of a raw corpus that look most like a small target corpus",
    paper="Data Selection for Language Models via Importance Resampling",
    year=2023,
    link="https://arxiv.org/abs/2302.03169",
    licence="MIT",
    accepts=("text",),
    taxonomy={
        "goal": "distribution matching",
        "utility": "importance weight of hashed n-grams",
        "unit": "data point",
        "mechanism": "sampling (Gumbel top-k)",
        "stage_of_training": "pretraining",
    },
)
class DSIR(Selector):
    """Importance resampling: documents are drawn in proportion to how much likelier the target makes their n-grams.

    Parameters
    ----------
    budget : int or float, default=0.1
        Documents to draw, or their fraction of those long enough.
    ngrams : int, default=2
    buckets : int, default=10_000
    min_tokens : int, default=100
        Shorter documents are never drawn: their weights say little.
    target_smoothing : float, default=0.0
        Added to every bucket of the target. 0 is published; 1 is better for targets below 100 000 tokens, which leave
        most buckets unseen.
    top_k : bool, default=False
        Take the largest weights, without noise.
    length_normalised : bool, default=False
        Divide log weights by the number of n-grams. As published they grow with length, and long documents dominate.
    hash : {"sha256", "fast"}, default="sha256"
        "sha256" gives the buckets of the reference; "fast" is xxHash.
    random_state : int, default=0
        Of the noise, which depends on it and the document's id alone.

    Attributes
    ----------
    log_weights_ : array of float64, (n,), or (n, targets) for several
        sum_b count_b (log(p_b + 1e-8) - log(q_b + 1e-8)); also those of documents that are too short.
    log_ratio_ : array of float64, (buckets,), or (targets, buckets)
    scores_ : array of float64, (n,)
        The log weights; of several targets that of the one a document was drawn for, or its best.
    eligible_ : array of bool, (n,)
    indices_ : array of int64, (kept,)
    drawn_for_ : array of str or int, (kept,)
        The target each document was drawn for.

    References
    ----------
    Xie et al., arXiv 2302.03169, section 3 and algorithm 1.

    Examples
    --------
    >>> raw = ["a game of chess", "the library for parsing", "the parsing library", "a card game"]
    >>> dsir = DSIR(budget=2, min_tokens=1, target_smoothing=0.01, top_k=True)
    >>> dsir.fit(raw, target=["a game with dragons", "a game"]).indices_
    array([0, 3])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "budget": [Real],
        **{name: [Interval(Integral, 1, None, closed="left")] for name in ("ngrams", "buckets")},
        "min_tokens": [Interval(Integral, 0, None, closed="left")],
        "target_smoothing": [Interval(Real, 0, None, closed="left")],
        "top_k": ["boolean"],
        "length_normalised": ["boolean"],
        "hash": [StrOptions(set(HASHES))],
        "random_state": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        budget: Budget = 0.1,
        ngrams: int = 2,
        buckets: int = 10_000,
        min_tokens: int = 100,
        target_smoothing: float = 0.0,
        top_k: bool = False,
        length_normalised: bool = False,
        hash: str = "sha256",
        random_state: int = 0,
    ) -> None:
        self.budget = budget
        self.ngrams = ngrams
        self.buckets = buckets
        self.min_tokens = min_tokens
        self.target_smoothing = target_smoothing
        self.top_k = top_k
        self.length_normalised = length_normalised
        self.hash = hash
        self.random_state = random_state

    def fit(
        self, X: Iterable[Any], y: Any = None, *, target: Any = None, quotas: Mapping[str, int] | None = None
    ) -> Self:
        """Weigh the raw documents `X` against the target, and draw.

        Parameters
        ----------
        X : sequence of texts or documents
        y : ignored
        target : sequence of texts, or mapping of name to sequences of texts
            Of several targets each draws its quota, in their order, from what those before it left.
        quotas : mapping of name to int, optional
            Documents for each of several targets; by default equal parts of the budget.

        Raises
        ------
        ValueError
            If a corpus is empty, the budget or the sum of quotas is above the documents long enough, a quota is
            negative, or quotas and targets do not have the same names.

        Warns
        -----
        UserWarning
            When a target has fewer than 100 000 tokens and `target_smoothing` is 0.
        """
        self._validate_params()
        documents = as_documents(X)
        targets = self._target_texts(target)
        counts, lengths = self._count(documents)
        self.log_ratio_ = np.stack([self._log_ratio(texts, counts) for texts in targets.values()])
        weights = self._weigh(counts)
        self.eligible_ = lengths >= self.min_tokens
        self.uniform_ = uniform_of([document.id for document in documents], self.random_state)
        self._draw(list(targets), weights, self._quotas(list(targets), quotas))
        self.log_weights_ = weights[:, 0] if len(targets) == 1 else weights
        if len(targets) == 1:
            self.log_ratio_ = self.log_ratio_[0]
        return self

    def score(self, X: Iterable[Any]) -> Floats:
        """Log weights of other documents, (n,) or (n, targets)."""
        check_is_fitted(self, "log_ratio_")
        return self._weigh(self._count(as_documents(X))[0])

    def draw(self, n: int) -> Rows:
        """Rows of another number of documents, ascending, for a single target; the first n of a larger draw are these.

        Raises
        ------
        ValueError
            If `n` is above the number of documents long enough.
        """
        check_is_fitted(self, "log_ratio_")
        if self.log_weights_.ndim != 1:
            raise ValueError("There are several targets: change `quotas` in fit instead.")
        return self._top(self.log_weights_, self._resolve(n), self.eligible_)

    def _count(self, documents: Sequence[Document]) -> tuple[csr_matrix, Rows]:
        return bucket_counts((document.text for document in documents), self.ngrams, self.buckets, self.hash)

    def _weigh(self, counts: csr_matrix) -> Floats:
        weights = np.asarray(counts @ self.log_ratio_.T)
        if not self.length_normalised:
            return weights
        return (weights.T / np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)).T

    def _target_texts(self, target: Any) -> dict[str, list[Document]]:
        if target is None:
            raise ValueError("target is missing: give texts that are as you want the selection to be.")
        given = target if isinstance(target, Mapping) else {"target": target}
        return {str(name): as_documents(texts) for name, texts in given.items()}

    def _log_ratio(self, texts: list[Document], raw: csr_matrix) -> Floats:
        counts, lengths = self._count(texts)
        total = int(lengths.sum())
        if not total or not raw.nnz:
            raise ValueError(
                f"The {'raw corpus X' if total else 'target'} holds no words at all: nothing can be compared."
            )
        warn_of_small_target(total, self.target_smoothing, self.buckets)
        return log_ratio(_column_sums(counts), _column_sums(raw), self.target_smoothing)

    def _resolve(self, budget: Budget, name: str = "budget") -> int:
        return kept_rows(
            budget, int(self.eligible_.sum()), name=name, of=f"documents of at least {self.min_tokens} tokens"
        )

    def _quotas(self, names: list[str], quotas: Mapping[str, int] | None) -> list[int]:
        if quotas is None:
            return [int(q) for q in shares_of_classes([1_000_000] * len(names), self._resolve(self.budget))]
        if set(quotas) != set(names):
            raise ValueError(f"quotas name {sorted(quotas)}, but the targets are {sorted(names)}. Name each once.")
        if negative := [name for name in names if quotas[name] < 0]:
            raise ValueError(f"quotas must not be negative, got {quotas[negative[0]]} for {negative[0]!r}.")
        self._resolve(sum(quotas.values()), "The sum of quotas")
        return [int(quotas[name]) for name in names]

    def _top(self, weights: Floats, keep: int, free: NDArray[np.bool_]) -> Rows:
        allowed = np.where(free, weights, -np.inf)
        if self.top_k:
            return np.sort(np.argsort(-allowed, kind="stable")[:keep]).astype(np.int64)
        return gumbel_top(allowed, keep, self.uniform_)

    def _draw(self, names: list[str], weights: Floats, quotas: list[int]) -> None:
        free, owner = self.eligible_.copy(), np.full(len(weights), -1)
        for number, quota in enumerate(quotas):
            rows = self._top(weights[:, number], quota, free)
            owner[rows], free[rows] = number, False
        self.indices_ = np.flatnonzero(owner >= 0).astype(np.int64)
        self.drawn_for_ = np.array(names)[owner[self.indices_]]
        best = np.where(owner >= 0, owner, weights.argmax(axis=1))
        self.scores_ = np.take_along_axis(weights, best[:, None], axis=1)[:, 0]


def _column_sums(counts: csr_matrix) -> Floats:
    return np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()


# ---- mixing sources ------------------------------------------------------------------------------------------


def mixture_quotas(sizes: ArrayLike, total: int, *, alpha: float = 1.0, max_epochs: float | None = None) -> Rows:
    """How many of `total` rows each source gives: in proportion to size^alpha, none above `max_epochs` passes.

    What a capped source can not give is given by the others in the same proportion. alpha = 1 keeps the sources'
    shares, 0 makes them equal, between lies the temperature of multilingual models.

    Raises
    ------
    ValueError
        If a source is empty, or the caps leave fewer than `total` rows.

    Examples
    --------
    >>> mixture_quotas([900, 100], 100), mixture_quotas([900, 100], 100, alpha=0)
    (array([90, 10]), array([50, 50]))
    >>> mixture_quotas([900, 10], 100, alpha=0, max_epochs=4)
    array([60, 40])
    """
    have = np.asarray(sizes, dtype=np.float64)
    if have.ndim != 1 or not len(have) or (have < 1).any():
        raise ValueError(
            f"Every source must hold at least 1 row, got sizes {have.astype(int).tolist()}. Leave empty ones out."
        )
    caps = np.full(len(have), np.inf) if max_epochs is None else np.floor(have * max_epochs)
    if total > caps.sum():
        raise ValueError(
            f"{total} rows are more than {max_epochs} passes over all sources give ({int(caps.sum())}). "
            "Allow more passes, or ask for fewer rows."
        )
    weights, share = have**alpha, np.zeros(len(have))
    open_ = np.ones(len(have), dtype=bool)
    while open_.any():
        left = total - share[~open_].sum()
        share[open_] = left * weights[open_] / weights[open_].sum()
        above = open_ & (share > caps)
        if not above.any():
            break
        share[above], open_ = caps[above], open_ & ~above
    kept = np.floor(share + 1e-9).astype(np.int64)
    for place in np.argsort(-np.where(kept < caps, share - kept, -np.inf), kind="stable")[: total - int(kept.sum())]:
        kept[place] += 1
    return kept


class MixtureSampler(EpochSampler):
    """A torch sampler that mixes sources which lie one after another in a data set.

    Each source is passed through in orders of its own, to its end before anything of it comes again; an epoch goes on
    where the one before it stopped.

    Parameters
    ----------
    sizes : sequence of int
        Rows of each source.
    n_samples : int
        Rows an epoch.
    alpha : float, default=1.0
        Temperature, see :func:`mixture_quotas`.
    max_epochs : float, optional
        Most passes over a source in one epoch.
    probabilities : sequence of float, optional
        Shares to use in place of `alpha`, such as those of a :class:`MixtureBandit`.
    seed : int, default=0

    Attributes
    ----------
    quotas : array of int64, (sources,)
        Rows of each source in an epoch.

    Examples
    --------
    >>> sampler = MixtureSampler([6, 2], n_samples=4, alpha=0)
    >>> sorted(sampler.rows(0)[sampler.rows(0) >= 6].tolist())
    [6, 7]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        n_samples: int,
        alpha: float = 1.0,
        max_epochs: float | None = None,
        probabilities: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        if probabilities is None:
            self.quotas = mixture_quotas(self.sizes, n_samples, alpha=alpha, max_epochs=max_epochs)
        else:
            self.quotas = shares_of_classes(np.rint(np.asarray(probabilities) * 1e9), n_samples)

    def rows(self, epoch: int) -> Rows:
        """Row numbers of one epoch, shuffled."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        parts = [
            start + self._pass(source, epoch * int(quota), int(quota))
            for source, (start, quota) in enumerate(zip(starts, self.quotas, strict=True))
        ]
        rows = np.concatenate(parts).astype(np.int64)
        return rows[np.random.default_rng([self.seed, epoch]).permutation(len(rows))]

    def _pass(self, source: int, first: int, count: int) -> Rows:
        """`count` rows of a source from the `first` on, counted over all passes."""
        size = int(self.sizes[source])
        orders = [
            np.random.default_rng([self.seed, 1 + source, number]).permutation(size)
            for number in range(first // size, -(-(first + count) // size))
        ]
        return np.concatenate([*orders, np.empty(0, dtype=np.int64)])[first % size :][:count]


class MixtureBandit:
    """Shares of sources that follow what training on them brought: multiplicative weights with exploration (Exp3).

    Parameters
    ----------
    n_sources : int
    eta : float, default=0.1
        How fast shares follow rewards.
    exploration : float, default=0.1
        Part of the shares that is always equal.

    References
    ----------
    Auer et al., "The Nonstochastic Multiarmed Bandit Problem", SIAM J. Comput. 32, 2002, section 3.

    Examples
    --------
    >>> bandit = MixtureBandit(2)
    >>> for _ in range(50):
    ...     bandit.update(1, reward=1.0)
    >>> bool(bandit.probabilities()[1] > 0.9)
    True
    """

    def __init__(self, n_sources: int, eta: float = 0.1, exploration: float = 0.1) -> None:
        if n_sources < 1 or eta <= 0 or not 0 <= exploration <= 1:
            raise ValueError(
                "A mixture needs n_sources >= 1, eta > 0 and exploration in [0, 1], "
                f"got {n_sources}, {eta} and {exploration}."
            )
        self.eta, self.exploration = eta, exploration
        self.log_weights = np.zeros(n_sources)

    def probabilities(self) -> Floats:
        """Share of each source, (n_sources,)."""
        weights = np.exp(self.log_weights - self.log_weights.max())
        return (1 - self.exploration) * weights / weights.sum() + self.exploration / len(weights)

    def update(self, source: int, reward: float) -> None:
        """Take in the reward, in [0, 1], of a batch of one source.

        Raises
        ------
        ValueError
            For a reward outside of [0, 1], NaN among them.
        """
        if not 0 <= reward <= 1:
            raise ValueError(f"A reward must lie in [0, 1], got {reward}. Scale what was gained first.")
        self.log_weights[source] += self.eta * reward / self.probabilities()[source]

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs."""
        return {"log_weights": self.log_weights.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.log_weights = np.array(state["log_weights"], dtype=np.float64)

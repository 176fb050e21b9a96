"""Filters that score pairs one by one and keep the best: their common shape, and two that do not compare the sides.

The two are what A. Fang et al., "Data Filtering Networks", ICLR 2024, arXiv:2309.17425, compare theirs with: a
classifier of trusted pairs against the pool, and the error of a masked autoencoder (X. Geng et al., "Multimodal Masked
Autoencoders Learn Transferable Representations", 2022, arXiv:2205.14204, in small).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.base import isolated_seed
from models.curate.pairs import Mask, Pairs, as_pairs, finite_rows, in_chunks, is_text
from models.networks.mlp import MLPEncoder
from models.networks.pair_encoder import BagOfWords, ContrastivePairEncoder, vocabulary_of
from models.selection import kept_rows, top_rows
from models.training import Row, StepTrainer, adam, cosine

Scores = NDArray[np.float32]

CHUNK = 4096
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
WIDTH, TEXT_WIDTH = 256, 64
AT_LEAST_1 = Interval(Integral, 1, None, closed="left")
TRAINING: dict[str, list[Any]] = {
    "n_steps": [AT_LEAST_1],
    "batch_size": [AT_LEAST_1],
    "lr": [Interval(Real, 0, None, closed="neither")],
    "keep_fraction": [Interval(Real, 0, 1, closed="right")],
    "threshold": [None, Real],
    "prefilter": [None, callable],
    "random_state": ["random_state"],
}


def default_pair_encoder(pairs: Pairs, embed_dim: int) -> ContrastivePairEncoder:
    """Small towers that fit the sides: a perceptron for numbers, a bag of the pairs' own words for texts."""

    def tower(side: Any, shape: tuple[int, ...] | None) -> nn.Module:
        if shape is None:
            return BagOfWords(vocabulary_of(side), width=TEXT_WIDTH)
        return MLPEncoder(int(np.prod(shape)), (WIDTH,), batch_norm=False)

    first, second = side_shapes(pairs)
    return ContrastivePairEncoder(tower(pairs.a, first), tower(pairs.b, second), embed_dim)


def side_shapes(pairs: Pairs) -> list[tuple[int, ...] | None]:
    """Shape of a row of each side, None for texts.

    Raises
    ------
    ValueError
        For pictures of several sizes.
    """
    shapes: list[tuple[int, ...] | None] = []
    for side in (pairs.a, pairs.b):
        if isinstance(side, (list, tuple)) and not is_text(side):
            raise ValueError(
                "The pairs hold pictures of several sizes, which this network can not read. Scale them to one size, or "
                "give a scorer that does, such as OpenClipScorer."
            )
        shapes.append(None if is_text(side) else tuple(side.shape[1:]))
    return shapes


def check_sides(pairs: Pairs, wanted: list[tuple[int, ...] | None]) -> None:
    """Whether both sides hold what was learned from.

    Raises
    ------
    ValueError
        For texts where there were numbers, numbers where there were texts, or rows of another shape.
    """
    found = side_shapes(pairs)
    if found != wanted:
        told = [", ".join("texts" if shape is None else f"rows {shape}" for shape in each) for each in (wanted, found)]
        raise ValueError(f"The sides of the pairs must be as in fit ({told[0]}), got {told[1]}.")


def trusted_ones(given: Any, name: str = "trusted_pairs") -> Pairs:
    """Pairs to learn from.

    Raises
    ------
    ValueError
        As :func:`~models.curate.pairs.as_pairs`; for fewer than two pairs, NaN and infinite numbers.
    """
    pairs = as_pairs(given, name, minimum=2)
    bad = np.flatnonzero(~finite_rows(pairs))
    if len(bad):
        raise ValueError(f"{name} contain NaN or infinite numbers in {len(bad)} pair(s), the first at row {bad[0]}.")
    return pairs


def best_pairs(scores: Scores, keep_fraction: float) -> Mask:
    """Mask of exactly ``round(n * keep_fraction)`` pairs of the highest scores; of equal ones the earlier.

    Pairs that score -inf are never kept, even where fewer than the quota are left.
    """
    quota = kept_rows(float(keep_fraction), len(scores), name="keep_fraction", of="pairs")
    able = np.flatnonzero(scores > -np.inf)
    mask = np.zeros(len(scores), dtype=bool)
    mask[able[top_rows(scores[able], min(quota, len(able)))]] = True
    return mask


class ScoreHistogram:
    """Scores counted in equal bins, for thresholds of pools too large to sort; those of shards add up.

    Parameters
    ----------
    bins : int
    lowest, highest : float
        Scores outside count in the outer bins.

    Examples
    --------
    >>> shards = [ScoreHistogram().add(np.linspace(-1, 0, 50)), ScoreHistogram().add(np.linspace(0, 1, 50))]
    >>> round((shards[0] + shards[1]).threshold(0.25), 2)
    0.51
    """

    def __init__(self, bins: int = 100_000, lowest: float = -1.0, highest: float = 1.0) -> None:
        self.edges = np.linspace(lowest, highest, bins + 1)
        self.counts = np.zeros(bins, dtype=np.int64)

    def add(self, scores: Any) -> Self:
        """Count these; NaN and infinite ones are left out."""
        found = np.asarray(scores, dtype=np.float64)
        found = found[np.isfinite(found)].clip(self.edges[0], self.edges[-1])
        self.counts += np.histogram(found, self.edges)[0]
        return self

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Counts of both, which must have the same bins."""
        if not np.array_equal(self.edges, other.edges):
            raise ValueError("Histograms of other bins can not be added. Give all shards the same.")
        both = ScoreHistogram(len(self.counts), self.edges[0], self.edges[-1])
        both.counts = self.counts + other.counts
        return both

    def threshold(self, keep_fraction: float) -> float:
        """The lower edge of the bin in which the quota is filled; up to a bin more than the quota reaches it."""
        quota = kept_rows(float(keep_fraction), int(self.counts.sum()), name="keep_fraction", of="pairs")
        above = np.cumsum(self.counts[::-1])
        return float(self.edges[len(self.counts) - 1 - int(np.searchsorted(above, quota))])


class PairFilter(BaseEstimator):
    """Base of filters that score each pair alone, so that a pool can be read in pieces on many machines.

    A subclass has the parameters `keep_fraction`, `threshold` and `prefilter`, and scores a piece in
    ``_scores_of``.

    Attributes
    ----------
    scores_ : array of float32, (n,)
        Of the pool last selected from; -inf where a pair failed the prefilter or could not be scored.
    indices_ : array of int64, (kept,)
    threshold_ : float
        Lowest score kept.
    kept_fraction_ : float
    n_unscored_ : int
        Pairs with NaN or infinite numbers, or whose score is none.
    scores_quantiles_ : dict of float to float
        Quantiles of the finite scores.
    report_ : list of dict
        For each value of each column of the pool's ``meta``: pairs there were, and the share of them kept.
    """

    keep_fraction: float
    threshold: float | None
    prefilter: Callable[[Pairs], Any] | None

    def _scores_of(self, pairs: Pairs) -> Tensor:
        """Scores of pairs without NaN, (n,)."""
        raise NotImplementedError(f"{type(self).__name__} must say how pairs are scored: override _scores_of.")

    def score_pairs(self, pool: Any, chunk_size: int = CHUNK) -> Scores:
        """Score of each pair, higher is better.

        Parameters
        ----------
        pool : Pairs, tuple (a, b), or iterable of these
        chunk_size : int
            Pairs scored at once; changes nothing but memory.

        Returns
        -------
        array of float32, (n,)
            -inf for pairs with NaN or infinite numbers.
        """
        return np.concatenate([scores for scores, _ in self._scored(pool, chunk_size)])

    def _scored(self, pool: Any, chunk_size: int) -> Iterator[tuple[Scores, Pairs]]:
        check_is_fitted(self, "logit_scale_")
        for pairs in in_chunks(pool, chunk_size):
            able = finite_rows(pairs)
            found = np.full(len(pairs), -np.inf, dtype=np.float32)
            if able.any():
                scored = self._scores_of(pairs if able.all() else pairs.take(able)).float().cpu().numpy()
                found[able] = np.where(np.isfinite(scored), scored, -np.inf)
            yield found, pairs

    def select(self, pool: Any, keep_fraction: float | None = None, threshold: float | None = None) -> Mask:
        """Which pairs to keep.

        Parameters
        ----------
        pool : Pairs, tuple (a, b), or iterable of these
        keep_fraction : float, optional
            Share of all pairs, in (0, 1]: exactly ``round(n * keep_fraction)`` of the highest scores, of equal ones the
            earlier.
        threshold : float, optional
            Or the lowest score to keep. By default both are as the filter was made.

        Returns
        -------
        array of bool, (n,)

        Raises
        ------
        ValueError
            If both are given, the share is not in (0, 1], or nothing can be kept.

        Warns
        -----
        UserWarning
            If fewer pairs than the quota pass the prefilter and can be scored.
        """
        if keep_fraction is not None and threshold is not None:
            raise ValueError("Give keep_fraction or threshold, not both.")
        if keep_fraction is None and threshold is None:
            keep_fraction, threshold = (
                (None, self.threshold) if self.threshold is not None else (self.keep_fraction, None)
            )
        if keep_fraction is not None and not 0 < keep_fraction <= 1:
            raise ValueError(f"keep_fraction={keep_fraction} must lie in (0, 1].")
        scores, unscored, columns = self._pool_scores(pool)
        if threshold is None:
            assert keep_fraction is not None
            mask = best_pairs(scores, keep_fraction)
            if mask.sum() < round(keep_fraction * len(scores)):
                warnings.warn(
                    f"Only {mask.sum()} of {len(scores)} pairs could be scored and passed the prefilter: "
                    f"fewer than keep_fraction={keep_fraction} asks for.",
                    stacklevel=2,
                )
        else:
            mask = (scores >= threshold) & (scores > -np.inf)
        if not mask.any():
            asked = f"keep_fraction={keep_fraction}" if threshold is None else f"threshold={threshold}"
            raise ValueError(
                f"No pair is kept at {asked}; the highest score is {scores.max():.4g} and {unscored} of {len(scores)} "
                "pairs could not be scored."
            )
        self.scores_, self.indices_ = scores, np.flatnonzero(mask)
        self.threshold_, self.kept_fraction_ = float(scores[mask].min()), float(mask.mean())
        self.n_unscored_ = unscored
        self.scores_quantiles_ = {q: float(np.quantile(scores[scores > -np.inf], q)) for q in QUANTILES}
        self.report_ = kept_by_slice(columns, mask)
        return mask

    def _pool_scores(self, pool: Any) -> tuple[Scores, int, dict[str, list[Any]]]:
        """Scores with those that fail the prefilter at -inf, how many could not be scored, columns of the pool."""
        parts, unscored = [], 0
        columns: dict[str, list[Any]] = {}
        for scores, pairs in self._scored(pool, CHUNK):
            unscored += int((scores == -np.inf).sum())
            if self.prefilter is not None:
                passed = np.asarray(self.prefilter(pairs), dtype=bool)
                if passed.shape != (len(pairs),):
                    raise ValueError(f"prefilter must return a mask shaped ({len(pairs)},), got {passed.shape}.")
                scores[~passed] = -np.inf
            for name, values in pairs.meta.items():
                columns.setdefault(name, []).extend(values.tolist() if hasattr(values, "tolist") else values)
            parts.append(scores)
        return np.concatenate(parts), unscored, columns

    def transform(self, pool: Any) -> Pairs:
        """The kept pairs of a pool; it sets what :meth:`select` sets."""
        pairs = as_pairs(pool, "pool")
        return pairs.take(self.select(pairs))


def kept_by_slice(columns: dict[str, list[Any]], mask: Mask) -> list[dict[str, Any]]:
    """Pairs and the share kept for each value of each column, None for unknown ones: a filter's tastes."""
    rows = []
    for name, values in columns.items():
        if len(values) != len(mask):
            continue  # not every piece of the pool had this column
        table = pd.Series(mask).groupby(pd.Series(values), dropna=False).agg(["size", "mean"])
        for value, n, kept in table.reset_index().itertuples(index=False):
            rows.append({"column": name, "value": None if pd.isna(value) else value, "pairs": n, "kept": kept})
    return rows


# ---- the two that do not compare the sides -------------------------------------------------------------------


class _Judge(nn.Module):
    """Both towers' outputs and their product -> how like the trusted pairs."""

    def __init__(self, encoder: ContrastivePairEncoder, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(3 * width, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        u, v = self.encoder.towers(a, b)
        return self.head(torch.cat([u, v, u * v], dim=1)).squeeze(1)


class _JudgeTrainer(StepTrainer):
    """Cross-entropy of trusted against pool, both weighing the same."""

    weight: Tensor

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        a, b, trusted = batch
        return F.binary_cross_entropy_with_logits(self.network(a, b), trusted, pos_weight=self.weight), {}


class BinaryFilter(PairFilter):
    """Keeps what a classifier takes for a trusted pair; the pool counts as untrusted, good pairs in it too.

    Parameters
    ----------
    embed_dim : int
    n_steps, batch_size : int
    lr : float
    keep_fraction, threshold, prefilter, random_state
        As in :class:`~models.curate.dfn.DataFilteringNetwork`; a score is a log odds.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> trusted = (rng.normal(2, 1, (50, 3)), rng.normal(size=(50, 2)))
    >>> pool = (rng.normal(0, 1, (50, 3)), rng.normal(size=(50, 2)))
    >>> method = BinaryFilter(random_state=0).fit(trusted, pool)
    >>> bool(method.score_pairs(trusted).mean() > method.score_pairs(pool).mean())
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"embed_dim": [AT_LEAST_1], **TRAINING}

    def __init__(
        self,
        embed_dim: int = 64,
        n_steps: int = 250,
        batch_size: int = 128,
        lr: float = 1e-3,
        keep_fraction: float = 0.15,
        threshold: float | None = None,
        prefilter: Callable[[Pairs], Any] | None = None,
        random_state: int | None = None,
    ) -> None:
        self.embed_dim = embed_dim
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.lr = lr
        self.keep_fraction = keep_fraction
        self.threshold = threshold
        self.prefilter = prefilter
        self.random_state = random_state

    def fit(self, trusted_pairs: Any, pool: Any) -> BinaryFilter:
        """Learn to tell the trusted pairs from those of `pool` (which needs finite numbers)."""
        self._validate_params()
        trusted, others = trusted_ones(trusted_pairs), trusted_ones(pool, "pool")
        self.side_shapes_ = side_shapes(trusted)
        check_sides(others, self.side_shapes_)
        both = trusted.joined(others)
        target = torch.cat([torch.ones(len(trusted)), torch.zeros(len(others))])
        with isolated_seed(self.random_state) as seed:
            encoder = default_pair_encoder(both, self.embed_dim)
            trainer = _JudgeTrainer(
                _Judge(encoder, self.embed_dim),
                n_steps=self.n_steps,
                batch_size=min(self.batch_size, len(both)),
                optimizer=adam(self.lr),
                schedule=cosine,
                label="binary filter",
                seed=seed,
            )
            trainer.weight = torch.tensor(len(others) / len(trusted))
            self.judge_ = trainer.fit(encoder.read(both.a, "a"), encoder.read(both.b, "b"), target).plain_network
        self.logit_scale_ = 1.0
        return self

    def _scores_of(self, pairs: Pairs) -> Tensor:
        check_sides(pairs, self.side_shapes_)
        encoder: Any = self.judge_.encoder
        with torch.inference_mode():
            return self.judge_(encoder.read(pairs.a, "a"), encoder.read(pairs.b, "b"))


class _MaskedTrainer(StepTrainer):
    """Squared error of the entries that were hidden, both sides weighing the same."""

    masked_share: float
    weights: Tensor

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        (rows,) = batch
        hidden = torch.rand(rows.shape, generator=self.generator) < self.masked_share
        return _hidden_error(self.network, rows, hidden, self.weights).mean(), {}


def _hidden_error(network: nn.Module, rows: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
    gap = (network(torch.where(hidden, 0.0, rows)) - rows) ** 2
    return (gap * hidden * weights).sum(dim=1)


class ReconstructionFilter(PairFilter):
    """Keeps pairs whose hidden parts an autoencoder of the trusted pairs restores best.

    Parameters
    ----------
    width : int
    masked_share : float
        Share of entries hidden.
    n_masks : int
        Masks a pair is scored with, the same for all.
    most_words : int
        Words of a text side that count.
    n_steps, batch_size : int
    lr : float
    keep_fraction, threshold, prefilter, random_state
        As in :class:`~models.curate.dfn.DataFilteringNetwork`; a score is a negative error.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(60, 1)) @ np.ones((1, 4))
    >>> method = ReconstructionFilter(random_state=0).fit((rows, rows))
    >>> bool(np.diff(method.score_pairs((np.tile(rows[0], (2, 1)), [rows[0], -rows[0]])))[0] < 0)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "width": [AT_LEAST_1],
        "masked_share": [Interval(Real, 0, 1, closed="neither")],
        "n_masks": [AT_LEAST_1],
        "most_words": [AT_LEAST_1],
        **TRAINING,
    }

    def __init__(
        self,
        width: int = 256,
        masked_share: float = 0.5,
        n_masks: int = 4,
        most_words: int = 2000,
        n_steps: int = 250,
        batch_size: int = 128,
        lr: float = 1e-3,
        keep_fraction: float = 0.15,
        threshold: float | None = None,
        prefilter: Callable[[Pairs], Any] | None = None,
        random_state: int | None = None,
    ) -> None:
        self.width = width
        self.masked_share = masked_share
        self.n_masks = n_masks
        self.most_words = most_words
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.lr = lr
        self.keep_fraction = keep_fraction
        self.threshold = threshold
        self.prefilter = prefilter
        self.random_state = random_state

    def fit(self, trusted_pairs: Any) -> ReconstructionFilter:
        """Learn to restore the trusted pairs."""
        self._validate_params()
        trusted = trusted_ones(trusted_pairs)
        self.side_shapes_ = side_shapes(trusted)
        with isolated_seed(self.random_state) as seed:
            self.vocabularies_ = {
                name: vocabulary_of(side, self.most_words) if is_text(side) else None
                for name, side in (("a", trusted.a), ("b", trusted.b))
            }
            sides = [self._side(trusted.a, "a"), self._side(trusted.b, "b")]
            rows = torch.cat(sides, dim=1)
            self.mean_, self.std_ = rows.mean(0), rows.std(0).clamp_min(0.05)
            weights = torch.cat([torch.full((side.shape[1],), 1 / side.shape[1]) for side in sides])
            network = nn.Sequential(nn.Linear(len(weights), self.width), nn.ReLU(), nn.Linear(self.width, len(weights)))
            trainer = _MaskedTrainer(
                network,
                n_steps=self.n_steps,
                batch_size=min(self.batch_size, len(trusted)),
                optimizer=adam(self.lr),
                schedule=cosine,
                label="reconstruction filter",
                seed=seed,
            )
            trainer.masked_share, trainer.weights = self.masked_share, weights
            self.autoencoder_ = trainer.fit((rows - self.mean_) / self.std_).plain_network
            self.masks_, self.weights_ = torch.rand(self.n_masks, len(weights)) < self.masked_share, weights
        self.logit_scale_ = 1.0
        return self

    def _side(self, side: Any, name: str) -> Tensor:
        """Numbers as they are, texts as which words they hold."""
        words = self.vocabularies_[name]
        if words is None:
            values = torch.as_tensor(np.asarray(side)).float().flatten(1)
            return values / 255 if np.asarray(side[:0]).dtype == np.uint8 else values
        tokens = BagOfWords(words, width=1).tokens(side)
        return torch.zeros(len(tokens), len(words) + 1).scatter_(1, tokens, 1.0)[:, 1:]

    def _scores_of(self, pairs: Pairs) -> Tensor:
        check_sides(pairs, self.side_shapes_)
        rows = torch.cat([self._side(pairs.a, "a"), self._side(pairs.b, "b")], dim=1)
        rows = (rows - self.mean_) / self.std_
        with torch.inference_mode():
            errors = [_hidden_error(self.autoencoder_, rows, mask, self.weights_) for mask in self.masks_]
        return -torch.stack(errors).mean(0)

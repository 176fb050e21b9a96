"""FasterPAM: k-medoids for any dissimilarity, at a cost that does not grow with k.

E. Schubert and P. J. Rousseeuw, "Fast and Eager k-Medoids Clustering: O(k) Runtime Improvement of the PAM, CLARA, and
CLARANS Algorithms", Information Systems 101, 101804, 2021, arXiv:2008.05171.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from models.base import seed_from
from models.discover.pam_start import (
    ENGINES,
    build,
    build_on_samples,
    by_candidate,
    check_dissimilarities,
    check_enough,
    working_type,
)
from models.discover.pam_swap import TOLERANCE, Assignment, Costs, Floats, Indices
from models.registry import register

METHODS = ("fasterpam", "fastpam1", "pam", "alternate")
ROUNDING = 1e-3
"""Distances below 0, or of a row to itself, of at most this share of the largest count as 0: a root of rounding."""


class Search(NamedTuple):
    """Where a search from one start ended."""

    medoids: Indices
    history: Floats
    n_iter: int
    converged: bool


def search_eager(
    costs: Costs, start: Indices, order: Indices, max_iter: int, block_size: int, engine: ModuleType
) -> Search:
    """FasterPAM: passes over the candidates until a whole cycle brings no swap."""
    medoids, last, done, n_iter = start.copy(), -1, False, 0
    state = engine.assign(costs, medoids, medoids)
    history: list[Floats] = []
    while n_iter < max_iter and not done:
        losses, last, done = engine.eager_pass(costs, medoids, state, order, last, block_size)
        history.append(losses)
        n_iter += 1
    return Search(medoids, np.concatenate(history), n_iter, done)


def search_steepest(
    costs: Costs, start: Indices, max_iter: int, block_size: int, engine: ModuleType, best_swap: Callable[..., Any]
) -> Search:
    """FastPAM1, or PAM by its `best_swap`: only the best of all swaps is made, pass after pass."""
    medoids, n_iter = start.copy(), 0
    state = engine.assign(costs, medoids, medoids)
    loss = float(state.dn.sum(dtype=np.float64))
    history: list[float] = []
    while n_iter < max_iter:
        n_iter += 1
        change, slot, x = best_swap(costs, medoids, state, block_size)
        if not change < -TOLERANCE * loss:
            return Search(medoids, np.array(history), n_iter, True)
        replaced, medoids[slot] = medoids[slot], x
        new_loss = engine.swap(costs, medoids, state, slot, x)
        if not new_loss < loss:
            medoids[slot] = replaced
            return Search(medoids, np.array(history), n_iter, True)
        loss = new_loss
        history.append(loss)
    return Search(medoids, np.array(history), n_iter, False)


def search_alternating(costs: Costs, start: Indices, max_iter: int, engine: ModuleType) -> Search:
    """In the manner of k-means: assign all objects, then take the best medoid within each cluster."""
    medoids, n_iter = start.copy(), 0
    state = engine.assign(costs, medoids, medoids)
    history: list[float] = []
    while n_iter < max_iter:
        n_iter += 1
        moved = False
        for slot in range(len(medoids)):
            members = np.flatnonzero(state.near == slot)
            sums = costs[np.ix_(members, members)].sum(axis=1, dtype=np.float64)
            best = int(sums.argmin())
            if sums[best] < sums[np.searchsorted(members, medoids[slot])]:
                medoids[slot], moved = members[best], True
        if not moved:
            return Search(medoids, np.array(history), n_iter, True)
        state = engine.assign(costs, medoids, medoids)
        history.append(float(state.dn.sum(dtype=np.float64)))
    return Search(medoids, np.array(history), n_iter, False)


def confidences(near: Costs, second: Costs) -> Floats:
    """How much farther the second nearest medoid is, as a share of its distance: 0 for a tie, 1 beyond compare."""
    first, ahead = np.asarray(near, dtype=np.float64), np.asarray(second, dtype=np.float64)
    finite = np.isfinite(ahead) & (ahead > 0)
    margin = np.where(np.isinf(ahead), 1.0, 0.0)
    np.divide(ahead - first, ahead, out=margin, where=finite)
    return margin


@register(
    "faster-pam",
    stage="discover",
    summary="Groups objects of which only a dissimilarity is known around k real objects; fast for k in the hundreds.",
    paper="Fast and Eager k-Medoids Clustering: O(k) Runtime Improvement of the PAM, CLARA, and CLARANS Algorithms",
    year=2021,
    link="https://arxiv.org/abs/2008.05171",
    licence="GPL-3.0-or-later",
    accepts=("embedding", "table"),
)
class FasterPAM(ClusterMixin, TransformerMixin, BaseEstimator):
    """k-medoids by eager swaps, on a matrix of dissimilarities or on rows with a metric.

    No triangle inequality is needed. The matrix of n² dissimilarities is held in memory; beyond some 20,000 objects
    use :class:`~models.discover.faster_clara.FasterCLARA`.

    Parameters
    ----------
    n_clusters : int, default=8
    metric : str or callable, default="precomputed"
        "precomputed", or a metric of :func:`sklearn.metrics.pairwise_distances`.
    method : {"fasterpam", "fastpam1", "pam", "alternate"}, default="fasterpam"
        "fasterpam" swaps as soon as a swap helps. "fastpam1" makes the best swap of each pass and "pam" the same ones
        at k times the cost. "alternate" works like k-means and ends in worse optima.
    init : {"random", "build", "lab", "first"} or int array of shape (n_clusters,), default="random"
        Medoids to start from; "build" costs O(n²k) and "lab" O(nk).
    max_iter : int, default=100
        Passes over the candidates. "fastpam1" and "pam" make one swap a pass and may need more.
    shuffle : bool, default=True
        Visit the candidates of "fasterpam" in random order, the same in every pass, instead of 0 to n - 1.
    n_init : int, default=1
        Starts tried; the one with the least inertia stays.
    random_state : int, RandomState or None, default=None
    dtype : {"float32", "float64"} or None, default=None
        Type of the dissimilarities; None keeps that of `X`. Sums are in double precision either way.
    block_size : int, default=64
        Candidates evaluated together by the numpy engine.
    engine : {"numba", "numpy"}, default="numba"
        Compiled code, or plain numpy; both make the same swaps.

    Attributes
    ----------
    medoid_indices_ : int array, (n_clusters,)
        Rows of `X` that stand for the clusters.
    labels_ : int array, (n,)
        Position in `medoid_indices_` of the nearest medoid. A medoid is its own even if it has a twin.
    confidences_ : array, (n,)
        (second - first) / second distance to a medoid, in [0, 1].
    n_clusters_ : int
    cluster_centers_ : array, (n_clusters, d), or None
        The medoids' rows; None for a matrix of dissimilarities.
    inertia_ : float
        Sum of the dissimilarities to the own medoid, neither squared nor averaged.
    n_iter_ : int
        Passes of the best start.
    n_swap_ : int
        Swaps of the best start; for "alternate", passes that moved medoids.
    loss_history_ : array, (n_swap_,)
        The loss after each of them, strictly falling.

    References
    ----------
    E. Schubert and P. J. Rousseeuw, arXiv:2008.05171 (FastPAM1, FasterPAM, LAB).
    L. Kaufman and P. J. Rousseeuw, "Finding Groups in Data", 1990 (PAM).

    Examples
    --------
    >>> words = ["cat", "cart", "carts", "house", "mouse"]
    >>> D = [[len(set(a) ^ set(b)) for b in words] for a in words]
    >>> found = FasterPAM(2, random_state=0).fit(D)
    >>> [words[i] for i in sorted(found.medoid_indices_)], found.inertia_, found.labels_.tolist()
    (['cart', 'mouse'], 4.0, [0, 0, 0, 1, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "metric": [str, callable],
        "method": [StrOptions(set(METHODS))],
        "init": [StrOptions({"random", "build", "lab", "first"}), "array-like"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "dtype": [StrOptions({"float32", "float64"}), None],
        "block_size": [Interval(Integral, 1, None, closed="left")],
        "engine": [StrOptions(set(ENGINES))],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: str | Callable[..., float] = "precomputed",
        method: str = "fasterpam",
        init: str | ArrayLike = "random",
        max_iter: int = 100,
        shuffle: bool = True,
        n_init: int = 1,
        random_state: int | np.random.RandomState | None = None,
        dtype: str | None = None,
        block_size: int = 64,
        engine: str = "numba",
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.method = method
        self.init = init
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.n_init = n_init
        self.random_state = random_state
        self.dtype = dtype
        self.block_size = block_size
        self.engine = engine

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.metric == "precomputed"
        tags.input_tags.positive_only = self.metric == "precomputed"
        return tags

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Find the medoids.

        Parameters
        ----------
        X : array, (n, n) or (n, d)
            Dissimilarities ``D[object, medoid]`` when ``metric="precomputed"``, else rows.
        y : ignored
            Labels, even complete ones, change nothing.

        Raises
        ------
        ValueError
            For a matrix that is not square, has NaN, infinite or negative entries or a diagonal other than 0, a metric
            that gives such distances, fewer objects than clusters, or an `init` that does not name `n_clusters`
            distinct objects.

        Warns
        -----
        UserWarning
            If the matrix is not symmetric.
        ConvergenceWarning
            If `max_iter` passes were not enough.
        """
        self._validate_params()
        rows = checked_rows(self, X, self.n_clusters)
        given = self._given_start(len(rows))
        costs = self._costs(rows)
        rng = np.random.default_rng(seed_from(self.random_state))
        best: tuple[float, Search, Assignment] | None = None
        for _ in range(self.n_init):
            found = self._search(costs, self._start(costs, rng) if given is None else given, rng)
            state = ENGINES[self.engine].assign(costs, found.medoids, found.medoids)
            inertia = float(state.dn.sum(dtype=np.float64))
            if best is None or inertia < best[0]:
                best = inertia, found, state
        assert best is not None  # n_init is at least 1
        self._keep(rows, *best)
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Distances to the medoids, (m, n_clusters).

        Parameters
        ----------
        X : array, (m, n) or (m, d)
            With ``metric="precomputed"``, dissimilarities to the n objects given to :meth:`fit`.
        """
        check_is_fitted(self)
        rows = checked_rows(self, X, reset=False)
        if self.cluster_centers_ is None:
            return rows[:, self.medoid_indices_]
        return distances_to(rows, self.cluster_centers_, self.metric)

    def predict(self, X: ArrayLike) -> Indices:
        """Position of the nearest medoid, (m,), for `X` as in :meth:`transform`."""
        return self.transform(X).argmin(axis=1).astype(np.int64)

    def _costs(self, rows: NDArray[Any]) -> Costs:
        if self.metric == "precomputed":
            check_dissimilarities(rows)
            return by_candidate(rows.astype(working_type(rows.dtype, self.dtype), copy=False))
        return distances(rows, self.metric, self.dtype)

    def _given_start(self, n: int) -> Indices | None:
        if isinstance(self.init, str):
            return None
        start = np.asarray(self.init)
        whole = start.shape == (self.n_clusters,) and start.dtype.kind in "iu"
        if not whole or len(np.unique(start)) < len(start) or start.min() < 0 or start.max() >= n:
            raise ValueError(
                f"init must name n_clusters={self.n_clusters} distinct objects from 0 to {n - 1}, got {start.tolist()}."
            )
        if self.n_init != 1:
            raise ValueError(f"n_init must be 1 when init names the medoids, got {self.n_init}.")
        return start.astype(np.int64)

    def _start(self, costs: Costs, rng: np.random.Generator) -> Indices:
        if self.init == "build":
            return build(costs, self.n_clusters, self.engine)
        if self.init == "lab":
            return build_on_samples(costs, self.n_clusters, rng)
        if self.init == "first":
            return np.arange(self.n_clusters)
        return rng.choice(len(costs), self.n_clusters, replace=False)

    def _search(self, costs: Costs, start: Indices, rng: np.random.Generator) -> Search:
        engine = ENGINES[self.engine]
        if self.n_clusters == 1:
            best = costs.sum(axis=1, dtype=np.float64).argmin()
            return Search(np.array([best]), np.empty(0), 1, True)
        if self.method == "fasterpam":
            order = rng.permutation(len(costs)) if self.shuffle else np.arange(len(costs))
            found = search_eager(costs, start, order, self.max_iter, self.block_size, engine)
        elif self.method == "alternate":
            found = search_alternating(costs, start, self.max_iter, engine)
        else:
            best_swap = engine.best_swap if self.method == "fastpam1" else engine.best_swap_pam
            found = search_steepest(costs, start, self.max_iter, self.block_size, engine, best_swap)
        if not found.converged:
            warnings.warn(
                f"{self.method} still found swaps after max_iter={self.max_iter} passes. Allow more.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return found

    def _keep(self, rows: NDArray[Any], inertia: float, found: Search, state: Assignment) -> None:
        self.medoid_indices_ = found.medoids
        self.labels_ = state.near.astype(np.int64)
        self.confidences_ = confidences(state.dn, state.ds)
        self.n_clusters_ = self.n_clusters
        self.cluster_centers_ = None if self.metric == "precomputed" else rows[found.medoids]
        self.inertia_ = inertia
        self.n_iter_, self.n_swap_, self.loss_history_ = found.n_iter, len(found.history), found.history


def checked_rows(
    estimator: BaseEstimator, X: ArrayLike, n_clusters: int | None = None, reset: bool = True
) -> NDArray[Any]:
    """`X` as a matrix of real numbers, with at least `n_clusters` rows when given, seen by `estimator`."""
    shape = getattr(X, "shape", None) or np.asarray(X).shape
    if len(shape) != 2:
        raise ValueError(f"X must be a matrix, got the shape {shape}. Reshape your data to one row an object.")
    if n_clusters is not None:
        check_enough(shape[0], n_clusters)
    return np.asarray(validate_data(estimator, X, dtype="numeric", reset=reset))


def centred(rows: NDArray[Any], about: NDArray[Any], metric: str | Callable[..., float]) -> NDArray[Any]:
    """`rows` less the mean of `about` where distances are Euclidean: it changes none, and keeps them exact.

    scikit-learn adds them up from x·x - 2 x·y + y·y, where they drown when all rows are far from 0.
    """
    return np.asarray(rows - about.mean(axis=0)) if metric in ("euclidean", "l2") else rows


def distances_to(
    rows: NDArray[Any], medoids: NDArray[Any], metric: str | Callable[..., float]
) -> NDArray[np.floating[Any]]:
    """Distances of `rows` from those of the medoids, (m, k)."""
    D = pairwise_distances(centred(rows, medoids, metric), centred(medoids, medoids, metric), metric=metric)
    return np.maximum(D, 0)


def check_metric(D: NDArray[Any], own: NDArray[Any], metric: str | Callable[..., float]) -> None:
    """Refuse a metric whose distances `D`, or those of rows from themselves `own`, are similarities."""
    least, slack = float(D.min()), ROUNDING * float(max(D.max(), -D.min()))
    if min(least, -float(own.max())) < -slack:
        raise ValueError(
            f"metric={metric!r} must give distances of at least 0, and 0 for a row and itself, got {least:.3g} and "
            f"{own.max():.3g} for some rows of X. Turn similarities into distances first, such as 1 - s."
        )


def distances(rows: NDArray[Any], metric: str | Callable[..., float], dtype: str | None = None) -> Costs:
    """All pairwise distances of `rows`.

    Raises
    ------
    ValueError
        If the metric is not known, is not defined for some pair of these rows, or is a similarity.
    """
    D = np.asarray(pairwise_distances(centred(rows, rows, metric), metric=metric))
    if not np.isfinite(D.sum(dtype=np.float64)):
        bad = int(np.flatnonzero(~np.isfinite(D).all(axis=1))[0])
        raise ValueError(
            f"metric={metric!r} gave NaN or infinite distances, the first at row {bad} of X (constant rows have no "
            "correlation, for one). Take another metric or leave those rows out."
        )
    check_metric(D, np.diagonal(D), metric)
    np.maximum(D, 0, out=D)
    np.fill_diagonal(D, 0)
    return np.ascontiguousarray(D, dtype=working_type(D.dtype, dtype))

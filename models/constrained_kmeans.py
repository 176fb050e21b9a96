"""k-means that keeps labelled rows in their class and, when asked, every cluster within size bounds.

Labelled classes seed the first clusters at their means and hold their rows for good (Basu et al., 2002,
constrained k-means); further clusters are seeded among the unlabelled rows by k-means++. With size bounds the
assignment step is a minimum-cost flow (Bradley et al., 2000), solved exactly as a linear programme whose
vertices are whole numbers.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.optimize import linprog
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from models.base import UNLABELLED, check_labels

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


def nearest(squared_distances: Matrix) -> Labels:
    """Index of the nearest centre of each row, (n, K) -> (n,)."""
    return squared_distances.argmin(axis=1).astype(np.int64)


def margins(distances: Matrix) -> Matrix:
    """How much nearer the nearest centre is than the second, (second - first) / second, (n, K) -> (n,).

    In [0, 1]; 1 when there is one centre only.
    """
    if distances.shape[1] < 2:
        return np.ones(len(distances))
    first, second = np.partition(distances, 1, axis=1)[:, :2].T
    return np.where(second > 0, (second - first) / np.where(second > 0, second, 1.0), 0.0)


def bounded_assignment(squared_distances: Matrix, minimum: Labels, maximum: Labels) -> Labels:
    """Cheapest assignment of rows to centres with between ``minimum[k]`` and ``maximum[k]`` rows each.

    Parameters
    ----------
    squared_distances : array, (n, K)
    minimum, maximum : int array, (K,)

    Raises
    ------
    ValueError
        If the bounds leave no room for exactly n rows.

    Notes
    -----
    The transportation polytope has whole-numbered vertices and the simplex method ends in one, so rounding
    the solution changes nothing (Bradley et al., 2000, proposition 2.2).
    """
    n, k = squared_distances.shape
    if n == 0:
        return np.empty(0, dtype=np.int64)
    if minimum.sum() > n or maximum.sum() < n or (minimum > maximum).any():
        raise ValueError(
            f"{n} rows do not fit into {k} clusters of {minimum.tolist()} to {maximum.tolist()} rows. Widen the bounds."
        )
    one_cluster_a_row = sparse.kron(sparse.eye_array(n), np.ones((1, k)), format="csr")
    rows_a_cluster = sparse.kron(np.ones((1, n)), sparse.eye_array(k), format="csr")
    solution = linprog(  # type: ignore[call-overload]  # its stubs know no sparse matrices
        squared_distances.ravel(),
        A_eq=one_cluster_a_row,
        b_eq=np.ones(n),
        A_ub=sparse.vstack([rows_a_cluster, -rows_a_cluster], format="csr"),
        b_ub=np.concatenate([maximum, -minimum]).astype(float),
        bounds=(0, None),
        method="highs-ds",
    )
    if not solution.success:
        raise RuntimeError(f"The size-bounded assignment was not solved: {solution.message}")
    return np.asarray(solution.x).reshape(n, k).argmax(axis=1).astype(np.int64)


class ConstrainedKMeans(ClusterMixin, TransformerMixin, BaseEstimator):
    """k-means seeded by labelled rows, which keep their class; cluster sizes may be bounded.

    Parameters
    ----------
    n_clusters : int, default=8
        At least the number of labelled classes.
    init : "k-means++" or array of shape (n_clusters, d), default="k-means++"
        Where clusters start. An array overrides the means of the labelled classes too.
    minimum_size, maximum_size : int or None, default=None
        Bounds on the rows of every cluster, labelled ones included.
    n_init : int, default=10
        Seedings tried; the one with the smallest inertia stays.
    max_iter : int, default=300
    tol : float, default=1e-4
        Stop when the centres' squared shift is below this share of the mean variance of the columns.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    cluster_centers_ : array, (n_clusters, d)
    labels_ : int array, (n,)
        Cluster of each row. Cluster k < len(classes_) is the class ``classes_[k]``.
    classes_ : int array
        The labels seen, ascending; none without `y`.
    inertia_ : float
        Sum of squared distances to the assigned centres.
    n_iter_ : int
        Rounds of the best run.

    References
    ----------
    S. Basu, A. Banerjee and R. Mooney, "Semi-supervised Clustering by Seeding", ICML 2002, algorithm 2.
    P. S. Bradley, K. P. Bennett and A. Demiriz, "Constrained K-Means Clustering", MSR-TR-2000-65, 2000.
    D. Arthur and S. Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.

    Examples
    --------
    >>> X = [[0.0], [0.1], [0.2], [9.0], [9.1]]
    >>> ConstrainedKMeans(2, random_state=0).fit(X, [-1, -1, 0, 1, -1]).labels_.tolist()
    [0, 0, 0, 1, 1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"k-means++"}), "array-like"],
        "minimum_size": [None, Interval(Integral, 0, None, closed="left")],
        "maximum_size": [None, Interval(Integral, 1, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | ArrayLike = "k-means++",
        minimum_size: int | None = None,
        maximum_size: int | None = None,
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.minimum_size = minimum_size
        self.maximum_size = maximum_size
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> ConstrainedKMeans:
        """Find the clusters.

        Parameters
        ----------
        X : array, (n, d)
        y : int array, (n,), optional
            Classes of the labelled rows, -1 elsewhere. None, or all -1, is plain k-means.

        Raises
        ------
        ValueError
            For NaN, fewer rows than clusters, fewer clusters than labelled classes, or size bounds that
            cannot be met.
        """
        self._validate_params()
        rows: Matrix = validate_data(self, X, dtype=np.float64)
        known = self._known_clusters(y, len(rows))
        minimum, maximum = self._free_sizes(known)
        random = check_random_state(self.random_state)
        runs = 1 if not isinstance(self.init, str) else self.n_init
        best: tuple[float, Matrix, Labels, int] | None = None
        for _ in range(runs):
            found = self._run(rows, known, self._start(rows, known, random), minimum, maximum)
            if best is None or found[0] < best[0]:
                best = found
        assert best is not None  # n_init is at least 1
        self.inertia_, self.cluster_centers_, self.labels_, self.n_iter_ = best
        return self

    def predict(self, X: ArrayLike) -> Labels:
        """Index of the nearest centre; size bounds do not apply to new rows."""
        return nearest(self.transform(X))

    def transform(self, X: ArrayLike) -> Matrix:
        """Distances to the centres, (n, n_clusters)."""
        check_is_fitted(self)
        rows: Matrix = validate_data(self, X, dtype=np.float64, reset=False)
        return euclidean_distances(rows, self.cluster_centers_)

    def _known_clusters(self, y: ArrayLike | None, n: int) -> Labels:
        """Cluster of each labelled row, -1 elsewhere; sets ``classes_``."""
        if n < self.n_clusters:
            raise ValueError(f"X must hold at least n_clusters={self.n_clusters} rows, got n_samples={n}.")
        known = np.full(n, UNLABELLED, dtype=np.int64)
        self.classes_ = np.empty(0, dtype=np.int64)
        if y is None or (np.asarray(y).shape == (n,) and (np.asarray(y) == UNLABELLED).all()):
            return known
        labels = check_labels(y, n, minimum_classes=1)
        self.classes_, known[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)
        if len(self.classes_) > self.n_clusters:
            raise ValueError(
                f"n_clusters={self.n_clusters} is less than the {len(self.classes_)} labelled classes in y. "
                "Ask for at least as many clusters."
            )
        return known

    def _free_sizes(self, known: Labels) -> tuple[Labels, Labels] | tuple[None, None]:
        """Fewest and most unlabelled rows each cluster may take; None without bounds."""
        if self.minimum_size is None and self.maximum_size is None:
            return None, None
        held = np.bincount(known[known >= 0], minlength=self.n_clusters)
        lowest = self.minimum_size or 0
        highest = len(known) if self.maximum_size is None else self.maximum_size
        possible = lowest * self.n_clusters <= len(known) <= highest * self.n_clusters and lowest <= highest
        if not possible or held.max() > highest or np.maximum(lowest - held, 0).sum() > len(known) - held.sum():
            raise ValueError(
                f"minimum_size={self.minimum_size} and maximum_size={self.maximum_size} cannot be met by {len(known)} "
                f"rows in {self.n_clusters} clusters with {held.tolist()} labelled rows. Widen the bounds."
            )
        return np.maximum(lowest - held, 0), highest - held

    def _start(self, X: Matrix, known: Labels, random: np.random.RandomState) -> Matrix:
        if not isinstance(self.init, str):
            given = np.array(self.init, dtype=np.float64)
            if given.shape != (self.n_clusters, X.shape[1]):
                raise ValueError(f"init must be shaped {(self.n_clusters, X.shape[1])}, got {given.shape}.")
            return given
        centres = [X[known == k].mean(axis=0) for k in range(len(self.classes_))]
        free = X[known < 0] if (known < 0).any() else X
        if not centres:
            centres.append(free[random.randint(len(free))])
        while len(centres) < self.n_clusters:
            squared = euclidean_distances(free, np.array(centres), squared=True).min(axis=1)
            total = squared.sum()
            chosen = random.choice(len(free), p=squared / total) if total > 0 else random.randint(len(free))
            centres.append(free[chosen])
        return np.array(centres)

    def _run(
        self, X: Matrix, known: Labels, centres: Matrix, minimum: Labels | None, maximum: Labels | None
    ) -> tuple[float, Matrix, Labels, int]:
        free = np.flatnonzero(known < 0)
        labels = known.copy()
        threshold = self.tol * X.var(axis=0).mean()
        rounds, shift = 0, np.inf
        while rounds < self.max_iter and shift > threshold:
            labels = self._assign(X, labels, free, centres, minimum, maximum)
            moved = self._means(X, labels, free, centres)
            shift = float(((moved - centres) ** 2).sum())
            centres = moved
            rounds += 1
        labels = self._assign(X, labels, free, centres, minimum, maximum)
        return float(((X - centres[labels]) ** 2).sum()), centres, labels, rounds

    def _assign(
        self,
        X: Matrix,
        labels: Labels,
        free: Labels,
        centres: Matrix,
        minimum: Labels | None,
        maximum: Labels | None,
    ) -> Labels:
        squared = euclidean_distances(X[free], centres, squared=True) if len(free) else np.empty((0, len(centres)))
        labels = labels.copy()
        bounded = minimum is not None and maximum is not None
        labels[free] = bounded_assignment(squared, minimum, maximum) if bounded else nearest(squared)  # type: ignore[arg-type]
        return labels

    def _means(self, X: Matrix, labels: Labels, free: Labels, centres: Matrix) -> Matrix:
        """Mean of each cluster; an empty one moves to the unlabelled row that lies farthest from its centre."""
        sizes = np.bincount(labels, minlength=self.n_clusters)
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, X)
        means = sums / np.maximum(sizes, 1)[:, None]
        empty = np.flatnonzero(sizes == 0)
        if len(empty):
            far = free[np.argsort(-((X[free] - centres[labels[free]]) ** 2).sum(axis=1), kind="stable")]
            means[empty] = centres[empty]
            means[empty[: len(far)]] = X[far[: len(empty)]]
        return means

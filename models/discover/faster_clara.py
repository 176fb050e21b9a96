"""FasterCLARA and FasterCLARANS: k-medoids of more rows than a matrix of their distances could hold.

E. Schubert and P. J. Rousseeuw, "Fast and Eager k-Medoids Clustering: O(k) Runtime Improvement of the PAM, CLARA, and
CLARANS Algorithms", Information Systems 101, 101804, 2021, arXiv:2008.05171.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.metrics import pairwise_distances
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from models.base import seed_from
from models.discover.faster_pam import FasterPAM, centred, check_metric, checked_rows, confidences, distances_to
from models.discover.pam_swap import TOLERANCE, Assignment, Floats, Indices, assign, swap, swap_change, total

CHUNK_ROWS = 4096


class Service(NamedTuple):
    """Which medoid serves each row, and how far the two nearest are."""

    labels: Indices
    first: Floats
    second: Floats

    @property
    def loss(self) -> float:
        """Sum of the distances to the own medoid."""
        return float(self.first.sum())


def serve(rows: NDArray[Any], medoids: Indices, metric: str | Callable[..., float]) -> Service:
    """Assign all rows to their nearest medoid, some thousand rows at a time; a medoid keeps itself."""
    labels, first = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
    second = np.full(len(rows), np.inf)
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        D = distances_to(rows[part], rows[medoids], metric)
        labels[part], first[part] = D.argmin(axis=1), D.min(axis=1)
        if len(medoids) > 1:
            second[part] = np.partition(D, 1, axis=1)[:, 1]
    labels[medoids], first[medoids] = np.arange(len(medoids)), 0.0
    if not np.isfinite(first).all():
        raise ValueError(
            f"metric={metric!r} gave NaN or infinite distances, the first at row {np.isfinite(first).argmin()} of X. "
            "Take another metric or leave those rows out."
        )
    return Service(labels, first, second)


class _MedoidsOfRows(ClusterMixin, TransformerMixin, BaseEstimator):
    """What the two estimators share: distances to the medoids' rows, and what fit leaves behind."""

    n_clusters: int
    metric: str | Callable[..., float]

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Distances to the medoids, (m, n_clusters)."""
        check_is_fitted(self)
        rows = checked_rows(self, X, reset=False)
        return distances_to(rows, self.cluster_centers_, self.metric)

    def predict(self, X: ArrayLike) -> Indices:
        """Position of the nearest medoid, (m,)."""
        return self.transform(X).argmin(axis=1).astype(np.int64)

    def _rows(self, X: ArrayLike) -> NDArray[Any]:
        if self.metric == "precomputed":
            raise ValueError(
                f"{type(self).__name__} takes rows and a metric, never a matrix of distances. "
                "Use FasterPAM for metric='precomputed'."
            )
        return checked_rows(self, X, self.n_clusters)

    def _keep(self, rows: NDArray[Any], medoids: Indices, service: Service) -> None:
        self.medoid_indices_ = medoids
        self.cluster_centers_ = rows[medoids]
        self.n_clusters_ = self.n_clusters
        self.labels_ = service.labels
        self.confidences_ = confidences(service.first, service.second)
        self.inertia_ = service.loss


class FasterCLARA(_MedoidsOfRows):
    """k-medoids on samples: FasterPAM finds medoids in each, the ones that serve all rows best stay.

    Memory is O(nd + s²) for samples of s rows; the matrix of all distances is never made.

    Parameters
    ----------
    n_clusters : int, default=8
    metric : str or callable, default="euclidean"
        A metric of :func:`sklearn.metrics.pairwise_distances`.
    n_sampling : int, default=5
        Samples drawn.
    sampling_size : int or None, default=None
        Rows of a sample; None is 80 + 4 n_clusters. All rows, if there are fewer.
    keep_medoids : bool, default=True
        Add the best medoids so far to each further sample.
    init : {"random", "build", "lab", "first"}, default="lab"
        Start of FasterPAM in each sample.
    max_iter : int, default=100
        Passes of FasterPAM in each sample.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    medoid_indices_ : int array, (n_clusters,)
        Rows of `X` that stand for the clusters.
    labels_ : int array, (n,)
    confidences_ : array, (n,)
        (second - first) / second distance to a medoid, in [0, 1].
    n_clusters_ : int
    cluster_centers_ : array, (n_clusters, d)
        The medoids' rows.
    inertia_ : float
        Sum over all rows of the distance to the own medoid.
    n_iter_ : int
        Passes of FasterPAM in the best sample.
    sample_losses_ : array, (n_sampling,)
        Sum over all rows of the distance to the nearest medoid of each sample.

    References
    ----------
    E. Schubert and P. J. Rousseeuw, arXiv:2008.05171 (FasterCLARA).
    L. Kaufman and P. J. Rousseeuw, "Finding Groups in Data", 1990, chapter 3 (CLARA).

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(3000, 2)) + np.repeat([[0, 0], [9, 0], [0, 9]], 1000, axis=0)
    >>> found = FasterCLARA(3, random_state=0).fit(X)
    >>> np.bincount(found.labels_).tolist()
    [1000, 1000, 1000]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "metric": [str, callable],
        "n_sampling": [Interval(Integral, 1, None, closed="left")],
        "sampling_size": [Interval(Integral, 1, None, closed="left"), None],
        "keep_medoids": ["boolean"],
        "init": [StrOptions({"random", "build", "lab", "first"})],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: str | Callable[..., float] = "euclidean",
        n_sampling: int = 5,
        sampling_size: int | None = None,
        keep_medoids: bool = True,
        init: str = "lab",
        max_iter: int = 100,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.n_sampling = n_sampling
        self.sampling_size = sampling_size
        self.keep_medoids = keep_medoids
        self.init = init
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Find the medoids.

        Parameters
        ----------
        X : array, (n, d)
        y : ignored
            Labels, even complete ones, change nothing.

        Raises
        ------
        ValueError
            For NaN, fewer rows or a smaller `sampling_size` than clusters, a similarity as metric, or
            ``metric="precomputed"``.

        Warns
        -----
        ConvergenceWarning
            If `max_iter` passes were not enough in a sample.
        """
        self._validate_params()
        rows = self._rows(X)
        size = 80 + 4 * self.n_clusters if self.sampling_size is None else self.sampling_size
        if size < self.n_clusters:
            raise ValueError(f"sampling_size must be at least n_clusters={self.n_clusters}, got {size}.")
        rng = np.random.default_rng(seed_from(self.random_state))
        losses: list[float] = []
        best: tuple[Indices, Service, int] | None = None
        for _ in range(self.n_sampling):
            sample = rng.choice(len(rows), min(size, len(rows)), replace=False)
            if best is not None and self.keep_medoids:
                sample = np.union1d(sample, best[0])
            pam = FasterPAM(
                self.n_clusters,
                metric=self.metric,
                init=self.init,
                max_iter=self.max_iter,
                random_state=int(rng.integers(2**31 - 1)),
            ).fit(rows[sample])
            found = sample[pam.medoid_indices_]
            service = serve(rows, found, self.metric)
            losses.append(service.loss)
            if best is None or service.loss < best[1].loss:
                best = found, service, pam.n_iter_
        assert best is not None  # n_sampling is at least 1
        self.sample_losses_, self.n_iter_ = np.array(losses), best[2]
        self._keep(rows, best[0], best[1])
        return self


class FasterCLARANS(_MedoidsOfRows):
    """k-medoids by random search: candidates drawn at random, each tried against all k medoids at once.

    Distances are worked out on the fly, n for each candidate; memory is O(nd + nk).

    Parameters
    ----------
    n_clusters : int, default=8
    metric : str or callable, default="euclidean"
        A metric of :func:`sklearn.metrics.pairwise_distances`, taken as symmetric.
    n_local : int, default=2
        Random starts; the one with the least inertia stays.
    max_neighbor : float, default=0.025
        Candidates in a row without a swap that end a search: below 1 a share of the n - k rows that are no medoids,
        else a number.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    medoid_indices_ : int array, (n_clusters,)
        Rows of `X` that stand for the clusters.
    labels_ : int array, (n,)
    confidences_ : array, (n,)
        (second - first) / second distance to a medoid, in [0, 1].
    n_clusters_ : int
    cluster_centers_ : array, (n_clusters, d)
        The medoids' rows.
    inertia_ : float
        Sum over all rows of the distance to the own medoid.
    n_swap_ : int
        Swaps of the best start.
    n_evaluated_ : int
        Candidates tried from all starts.

    References
    ----------
    E. Schubert and P. J. Rousseeuw, arXiv:2008.05171 (FasterCLARANS).
    R. T. Ng and J. Han, "CLARANS: A Method for Clustering Objects for Spatial Data Mining", TKDE 14, 2002.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(300, 2)) + np.repeat([[0, 0], [9, 0], [0, 9]], 100, axis=0)
    >>> found = FasterCLARANS(3, max_neighbor=0.1, random_state=0).fit(X)
    >>> np.bincount(found.labels_).tolist()
    [100, 100, 100]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "metric": [str, callable],
        "n_local": [Interval(Integral, 1, None, closed="left")],
        "max_neighbor": [Interval(Real, 0, None, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        metric: str | Callable[..., float] = "euclidean",
        n_local: int = 2,
        max_neighbor: float = 0.025,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.metric = metric
        self.n_local = n_local
        self.max_neighbor = max_neighbor
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Find the medoids.

        Parameters
        ----------
        X : array, (n, d)
        y : ignored
            Labels, even complete ones, change nothing.

        Raises
        ------
        ValueError
            For NaN, fewer rows than clusters, a similarity as metric, or ``metric="precomputed"``.
        """
        self._validate_params()
        rows = self._rows(X)
        rng = np.random.default_rng(seed_from(self.random_state))
        free = len(rows) - self.n_clusters
        patience = int(np.ceil(self.max_neighbor * free if self.max_neighbor < 1 else self.max_neighbor))
        moved = centred(rows, rows, self.metric)
        searches = [self._search(moved, patience, rng) for _ in range(self.n_local)]
        medoids, _, self.n_swap_, _ = min(searches, key=lambda search: search[1])
        self.n_evaluated_ = sum(search[3] for search in searches)
        self._keep(rows, medoids, serve(rows, medoids, self.metric))
        return self

    def _search(self, rows: NDArray[Any], patience: int, rng: np.random.Generator) -> tuple[Indices, float, int, int]:
        """One local search: medoids, loss, swaps and candidates tried."""
        n, k = len(rows), self.n_clusters
        medoids = rng.choice(n, k, replace=False)
        served = np.ascontiguousarray(pairwise_distances(rows[medoids], rows, metric=self.metric), dtype=np.float64)
        slots = np.arange(k)
        check_metric(served, served[slots, medoids], self.metric)
        served[slots, medoids] = 0.0
        state: Assignment = assign(served, slots, medoids)
        loss, n_swap, n_evaluated = total(state.dn), 0, 0
        unseen = np.setdiff1d(np.arange(n), medoids)
        tried, work = 0, np.empty(k)
        while tried < min(patience, len(unseen)):
            pick = rng.integers(tried, len(unseen))  # a step of Fisher and Yates: none is drawn twice
            unseen[tried], unseen[pick] = unseen[pick], unseen[tried]
            x = int(unseen[tried])
            tried, n_evaluated = tried + 1, n_evaluated + 1
            row = pairwise_distances(rows[x : x + 1], rows, metric=self.metric)[0].astype(np.float64)
            row[x] = 0.0
            change, slot = swap_change(row, state, work) if k > 1 else (row.sum() - loss, 0)
            if not change < -TOLERANCE * loss:
                continue
            medoids[slot], served[slot] = x, row
            loss = swap(served, slots, state, slot, x)
            unseen, tried, n_swap = np.setdiff1d(np.arange(n), medoids), 0, n_swap + 1
        return medoids, loss, n_swap, n_evaluated

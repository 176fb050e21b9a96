"""Clusters on which k-means and a Gaussian mixture agree, with their number found and the start forgotten.

M. Sultan, "Probabilistic Partitive Partitioning (PPP)", arXiv:2003.04372, 2020.

The paper's abstract fixes the parts: k-means partitions because it scales, a mixture of Gaussians validates each of
its partitions, the answer must not depend on the start, the number of clusters is found, and the most separable
rows are told apart. The rules by which this module does so (how agreement is measured, how k is chosen from it, how
the start is forgotten) are our own and stand in this one place.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import (
    adjusted_rand_score,
    pairwise_distances_argmin,
    pairwise_distances_argmin_min,
    silhouette_score,
)
from sklearn.mixture import GaussianMixture
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from models.base import check_embeddings
from models.clustering import Labels, Matrix, largest_first, match_labels
from models.registry import register

EM_TOLERANCE = 1e-4
CLEAR_PRODUCT = 0.5
"""A best product of stability and agreement below this is no clear partition."""
REPEATABLE = 0.99
"""Two searches from different seeds agree when their adjusted Rand index is at least this."""
NEARLY_BEST = 1.001
"""Runs of at most this multiple of the smallest inertia found the same optimum, or one as good."""
LLOYD_ROWS = 100_000
"""Beyond this many rows the runs of the search go through mini-batches."""
SILHOUETTE_ROWS = 5000


class Assessment(NamedTuple):
    """One number of clusters: the centres of all runs, best first, and how far runs and mixture agree."""

    k: int
    runs: list[Matrix]
    score: dict[str, float]


class Refined(NamedTuple):
    """The outcome of one search: what every row is compared with, and the table of all k tried."""

    mixture: GaussianMixture
    centres: Matrix
    runs: list[Matrix]
    labels: Labels
    scores: list[dict[str, float]]
    selected_by: str
    product: float


# Step 1: how well k-means and a mixture agree on k clusters


def kmeans_runs(rows: Matrix, k: int, n_runs: int, max_iter: int, random: np.random.RandomState) -> list[Matrix]:
    """Step 1a: centres of `n_runs` single k-means++ starts, each run until nothing moves."""
    method = KMeans if len(rows) <= LLOYD_ROWS else MiniBatchKMeans
    runs = [
        method(k, n_init=1, max_iter=max_iter, tol=0, random_state=random.randint(2**31 - 1)) for _ in range(n_runs)
    ]
    return [run.fit(rows).cluster_centers_ for run in runs]


def best_first(rows: Matrix, runs: list[Matrix]) -> list[Matrix]:
    """Step 1a: the runs by their inertia, smallest first."""
    return sorted(runs, key=lambda centres: float((pairwise_distances_argmin_min(rows, centres)[1] ** 2).sum()))


def better_half(runs: list[Matrix]) -> list[Matrix]:
    """The runs that are asked: a start that ended badly says nothing about the partition. At least two."""
    return runs[: max(2, (len(runs) + 1) // 2)]


def nearly_best(rows: Matrix, runs: list[Matrix]) -> list[Matrix]:
    """Of the better half, those whose inertia is within a thousandth of the best: which others came is chance."""
    half = better_half(runs)
    inertia = [float((pairwise_distances_argmin_min(rows, run)[1] ** 2).sum()) for run in half]
    return [run for run, own in zip(half, inertia, strict=True) if own <= NEARLY_BEST * min(inertia)]


def aligned_runs(rows: Matrix, runs: list[Matrix], reference: Labels) -> NDArray[np.int64]:
    """Label of every row in every run, renamed by a Hungarian match with `reference`, (R, n)."""
    return np.stack([match_labels(reference, pairwise_distances_argmin(rows, run), len(run)) for run in runs])


def partition_covariances(rows: Matrix, labels: Labels, centres: Matrix, kind: str, ridge: float) -> Matrix:
    """Within-cluster covariance plus `ridge` on the diagonal, shaped as scikit-learn keeps the `kind`."""
    k, p = centres.shape
    sizes = np.maximum(np.bincount(labels, minlength=k), 1)
    apart = rows - centres[labels]
    if kind in ("diag", "spherical"):
        variances = np.stack([(apart[labels == j] ** 2).sum(axis=0) / sizes[j] for j in range(k)]) + ridge
        return variances if kind == "diag" else variances.mean(axis=1)
    eye = ridge * np.eye(p)
    if kind == "tied":
        return np.asarray(apart.T @ apart / len(rows) + eye)
    return np.stack([apart[labels == j].T @ apart[labels == j] / sizes[j] + eye for j in range(k)])


def mixture_from_partition(
    rows: Matrix, labels: Labels, k: int, kind: str, ridge: float, max_iter: int
) -> GaussianMixture:
    """Step 1c: expectation-maximisation from the partition's own means, weights and covariances.

    Started from a seeding of its own, the mixture would validate another partition than this one.
    """
    sizes = np.bincount(labels, minlength=k)
    centres = np.stack([rows[labels == j].mean(axis=0) if sizes[j] else rows.mean(axis=0) for j in range(k)])
    covariances = partition_covariances(rows, labels, centres, kind, ridge)
    mixture = GaussianMixture(
        k,
        covariance_type=kind,
        tol=EM_TOLERANCE,
        reg_covar=ridge,
        max_iter=max_iter,
        weights_init=np.maximum(sizes, 1) / np.maximum(sizes, 1).sum(),
        means_init=centres,
        precisions_init=np.linalg.inv(covariances) if kind in ("full", "tied") else 1 / covariances,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a mixture still moving after max_iter is judged as it is
        return mixture.fit(rows)


def separable(
    rows: Matrix, runs: list[Matrix], hard: Labels, mixture: GaussianMixture, min_posterior: float
) -> NDArray[np.bool_]:
    """Step 1d: rows that the nearly best runs, the partition and a sure mixture put into the same cluster."""
    posterior = mixture.predict_proba(rows)
    agreed = (aligned_runs(rows, nearly_best(rows, runs), hard) == hard).all(axis=0)
    return np.asarray(agreed & (posterior.argmax(axis=1) == hard) & (posterior.max(axis=1) >= min_posterior))


def assess(
    rows: Matrix, runs: list[Matrix], *, kind: str, ridge: float, min_posterior: float, max_iter: int
) -> Assessment:
    """Step 1 for one k: stability of k-means, its agreement with the mixture, their product, core, BIC, silhouette.

    An empty cluster or mixture component makes the product 0.
    """
    runs, k = best_first(rows, runs), len(runs[0])
    partitions = [pairwise_distances_argmin(rows, run).astype(np.int64) for run in better_half(runs)]
    reference = partitions[0]
    stability = float(np.mean([adjusted_rand_score(reference, other) for other in partitions[1:]]))
    mixture = mixture_from_partition(rows, reference, k, kind, ridge, max_iter)
    soft = mixture.predict(rows)
    agreement = float(adjusted_rand_score(reference, soft))
    whole = len(np.unique(reference)) == len(np.unique(soft)) == k
    sample = min(len(rows), SILHOUETTE_ROWS)
    apart = 1 < len(np.unique(reference)) < len(rows)
    core = separable(rows, runs, reference, mixture, min_posterior)
    score = {
        "k": k,
        "stability": stability,
        "agreement": agreement,
        "product": max(stability, 0.0) * max(agreement, 0.0) if whole else 0.0,
        "core_fraction": float(core.mean()),
        "bic": float(mixture.bic(rows)),
        "silhouette": float(silhouette_score(rows, reference, sample_size=sample, random_state=0)) if apart else 0.0,
    }
    return Assessment(k, runs, score)


# Steps 2 to 4: choose k, forget the start, one last mixture


def chosen_k(scores: list[dict[str, float]], tolerance: float) -> tuple[int, str]:
    """Step 2: among the k within `tolerance` of the best product, the one of smallest BIC; and the reason in words.

    The product alone is as high for coarse unions of the true groups, BIC alone ignores whether k-means agrees.
    """
    best = max(score["product"] for score in scores)
    candidates = [score for score in scores if score["product"] >= best - tolerance]
    winner = min(candidates, key=lambda score: score["bic"])
    if len(scores) == 1:
        reason = "the only number of clusters tried"
    elif len(candidates) == 1:
        reason = f"the best product, {best:.3f}"
    else:
        tried = ", ".join(str(int(score["k"])) for score in candidates)
        reason = f"the smallest BIC among k = {tried}, whose product is within {tolerance:g} of the best, {best:.3f}"
    return int(winner["k"]), reason


def lloyd(rows: Matrix, centres: Matrix, max_iter: int) -> Matrix:
    """k-means from given centres: nothing is drawn."""
    return np.asarray(KMeans(len(centres), init=centres, n_init=1, max_iter=max_iter, tol=0).fit(rows).cluster_centers_)


def ordered_mixture(mixture: GaussianMixture, order: Labels) -> GaussianMixture:
    """`mixture` with the components of `order` alone, in that order; changed in place."""
    mixture.weights_ = mixture.weights_[order] / mixture.weights_[order].sum()
    mixture.means_ = mixture.means_[order]
    if mixture.covariance_type != "tied":
        for name in ("covariances_", "precisions_", "precisions_cholesky_"):
            setattr(mixture, name, getattr(mixture, name)[order])
    mixture.n_components = len(order)
    for name in ("weights_init", "means_init", "precisions_init"):
        setattr(mixture, name, None)
    return mixture


@register(
    "ppp",
    stage="discover",
    summary="Finds how many clusters k-means and a Gaussian mixture agree on, and the rows that clearly belong to one.",
    paper="Probabilistic Partitive Partitioning (PPP)",
    year=2020,
    link="https://arxiv.org/abs/2003.04372",
    licence="none published",
    accepts=("table", "embedding"),
)
class PPP(ClusterMixin, BaseEstimator):
    """Number of clusters, partition and most separable rows, the same whatever the seed.

    Parameters
    ----------
    k_range : pair or iterable of int, default=(2, 12)
        A tuple or list of two is the lowest and highest number tried; a range or a longer list is tried as it is.
        Each must be at least 2. One number, as (3, 3), is taken without a choice.
    n_runs : int, default=16
        k-means starts for each k, at least 3.
    covariance_type : {"full", "tied", "diag", "spherical"}, default="full"
        Of the mixture. Full covariances of k clusters in p columns are trusted with at least 5 k p rows.
    min_posterior : float, default=0.95
        How sure the mixture must be of a row for it to be separable.
    tolerance : float, default=0.05
        Numbers of clusters whose product lies this close below the best are decided by BIC.
    refine_rounds : int, default=3
        At most this many rounds of refinement from the separable rows.
    reduce_sample : int or None, default=None
        Search and refine on this many rows drawn at random, then assign all.
    standardize : bool, default=True
        Give every column mean 0 and variance 1 first. Constant columns are left out in any case.
    reg_covar : float, default=1e-4
        Added to the covariances' diagonals, as a share of the mean variance of the columns.
    max_iter : int, default=300
        Bound on the rounds of k-means and of expectation-maximisation.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    n_clusters_ : int
    labels_ : int array, (n,)
        Component of the final mixture each row most probably belongs to, the largest cluster first, ties by the first
        coordinate of the centre.
    core_mask_ : bool array, (n,)
        The separable rows: the nearly best runs of k-means, the refined partition and the mixture agree on
        them.
    core_fraction_ : float
    cluster_centers_ : array, (n_clusters_, p)
        Mean of each cluster, in the units of the input.
    mixture_ : GaussianMixture
        In the units the search worked in (standardised, constant columns left out).
    scores_ : list of dict
        One row for each k tried: "k", "stability" (mean adjusted Rand index of the better half of the runs with the
        best one), "agreement" (of the best run with the mixture), their "product", "core_fraction", "bic",
        "silhouette". Read it whole: two clusters often agree perfectly because one far group dominates.
    selected_by_ : str
        Why this k.
    repeatability_ : float
        Adjusted Rand index of the answers of two searches from different seeds.
    n_iter_ : int
        Rounds of expectation-maximisation of the final mixture: one.
    n_features_in_ : int

    Notes
    -----
    A second search from another seed checks the first. Where they differ (adjusted Rand index below 0.99) both get as
    many runs again; the answer is that of the runs of both. Rows are put in lexicographic order first, so
    that their order changes nothing.

    One cluster is not among the answers. Rows without groups may give a product below 0.5, which is warned of, but
    k-means splits some single groups in the same way at each start: look at the silhouettes of ``scores_``.

    Beyond about 50 columns reduce them first (PCA) or take diagonal covariances; beyond 100,000 rows give
    `reduce_sample`.

    References
    ----------
    M. Sultan, arXiv:2003.04372, 2020: k-means partitions validated by a mixture of Gaussians, the number of clusters
    found, insensitive to the start, the most separable set. The rules that reach this are ours, see the module.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = np.repeat([[0, 0], [9, 0], [0, 9]], [50, 40, 30], axis=0) + rng.normal(size=(120, 2))
    >>> found = PPP(k_range=(2, 5), random_state=0).fit(X)
    >>> found.n_clusters_, np.bincount(found.labels_).tolist()
    (3, [50, 40, 30])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "k_range": ["array-like"],
        "n_runs": [Interval(Integral, 3, None, closed="left")],
        "covariance_type": [StrOptions({"full", "tied", "diag", "spherical"})],
        "min_posterior": [Interval(Real, 0, 1, closed="both")],
        "tolerance": [Interval(Real, 0, None, closed="left")],
        "refine_rounds": [Interval(Integral, 0, None, closed="left")],
        "reduce_sample": [Interval(Integral, 3, None, closed="left"), None],
        "standardize": ["boolean"],
        "reg_covar": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        k_range: Iterable[int] = (2, 12),
        *,
        n_runs: int = 16,
        covariance_type: str = "full",
        min_posterior: float = 0.95,
        tolerance: float = 0.05,
        refine_rounds: int = 3,
        reduce_sample: int | None = None,
        standardize: bool = True,
        reg_covar: float = 1e-4,
        max_iter: int = 300,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.k_range = k_range
        self.n_runs = n_runs
        self.covariance_type = covariance_type
        self.min_posterior = min_posterior
        self.tolerance = tolerance
        self.refine_rounds = refine_rounds
        self.reduce_sample = reduce_sample
        self.standardize = standardize
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Find the number of clusters, the partition and the separable rows.

        Parameters
        ----------
        X : array, (n, p)
        y : ignored
            Labels, known or not, have no part in it.

        Raises
        ------
        ValueError
            For NaN, an empty `k_range` or one with numbers below 2, no more rows than the largest number of clusters,
            identical rows, or fewer distinct rows than the smallest number of clusters.

        Warns
        -----
        UserWarning
            When no k has a product of at least 0.5 ("no clear partition": the labels are given all the same, with few
            separable rows), or when even the smallest k has too few rows for full covariances.
        """
        self._validate_params()
        numbers = self._numbers()
        given = check_embeddings(X, minimum=max(numbers) + 1)
        validate_data(self, X, skip_check_array=True)
        rows = self._standardised(given)
        order = np.lexsort(rows.T[::-1])
        random = check_random_state(self.random_state)
        searched = rows[order]
        if self.reduce_sample is not None and self.reduce_sample < len(rows):
            searched = searched[np.sort(random.choice(len(rows), self.reduce_sample, replace=False))]
        found = self._repeatable_search(searched, self._possible(searched, numbers), random)
        if found.product < CLEAR_PRODUCT:
            warnings.warn(
                f"No clear partition: the best product of stability and agreement is {found.product:.2f}, below "
                f"{CLEAR_PRODUCT}. The labels are given all the same; look at scores_ and trust core_mask_ alone.",
                stacklevel=2,
            )
        self.scores_, self.selected_by_ = found.scores, found.selected_by
        self._finish(given, rows, found)
        return self

    def predict(self, X: ArrayLike) -> Labels:
        """Component of the final mixture each row most probably belongs to, (n,)."""
        return np.asarray(self.predict_proba(X).argmax(axis=1), dtype=np.int64)

    def predict_proba(self, X: ArrayLike) -> Matrix:
        """Posterior probability of each cluster, (n, n_clusters_)."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(self.mixture_.predict_proba((rows - self.offset_)[:, self.columns_] / self.scale_))

    def separability(self, X: ArrayLike) -> Matrix:
        """Largest posterior probability of each row, (n,): near 1, the row clearly belongs to one cluster."""
        return np.asarray(self.predict_proba(X).max(axis=1))

    def _numbers(self) -> list[int]:
        listed = list(self.k_range)
        whole = all(isinstance(k, (int, np.integer)) and k >= 2 for k in listed)
        if whole and isinstance(self.k_range, (tuple, list)) and len(listed) == 2:
            listed = list(range(listed[0], listed[1] + 1))
        numbers = sorted({int(k) for k in listed}) if whole else []
        if not numbers:
            raise ValueError(
                f"k_range must hold at least one whole number, and none below 2, got {self.k_range!r}. "
                "Give (lowest, highest), as (2, 12)."
            )
        return numbers

    def _standardised(self, given: Matrix) -> Matrix:
        """The columns that vary, in the units of the search."""
        spread = given.std(axis=0)
        self.columns_ = np.flatnonzero((np.ptp(given, axis=0) > 0) & (spread > 1e-12 * np.abs(given).max(axis=0)))
        if not len(self.columns_):
            raise ValueError(f"All {len(given)} rows of X are the same (n_samples={len(given)}): there are no groups.")
        self.offset_ = given.mean(axis=0)
        self.scale_ = spread[self.columns_] if self.standardize else np.ones(len(self.columns_))
        return np.asarray((given - self.offset_)[:, self.columns_] / self.scale_)

    def _possible(self, rows: Matrix, numbers: list[int]) -> list[int]:
        """Numbers that the distinct rows allow, and that leave enough rows for the covariances."""
        distinct = len(np.unique(rows, axis=0))
        possible = [k for k in numbers if k <= distinct]
        if not possible:
            raise ValueError(
                f"X holds {distinct} distinct rows, too few for {numbers[0]} clusters. Give more rows or a lower "
                "k_range."
            )
        needed = 5 * rows.shape[1] if self.covariance_type == "full" else 0
        trusted = [k for k in possible if len(rows) >= k * needed]
        if trusted or len(possible) == 1:
            return trusted or possible
        warnings.warn(
            f"{len(rows)} rows are too few for full covariances of {possible[0]} clusters in {rows.shape[1]} columns "
            f"({possible[0] * needed} are trusted), so only that number is tried. Reduce the columns (PCA) or pass "
            'covariance_type="diag".',
            stacklevel=3,
        )
        return possible[:1]

    def _repeatable_search(self, rows: Matrix, numbers: list[int], random: np.random.RandomState) -> Refined:
        """Step 5: two searches from different seeds, as many runs again where they differ; then one of all."""
        runs: list[dict[int, list[Matrix]]] = [{k: [] for k in numbers} for _ in range(2)]
        for _ in range(2):
            for each in runs:
                for k in numbers:
                    each[k] += kmeans_runs(rows, k, self.n_runs, self.max_iter, random)
            pair = [self._search(rows, each) for each in runs]
            self.repeatability_ = float(adjusted_rand_score(pair[0].labels, pair[1].labels))
            if self.repeatability_ >= REPEATABLE:
                break
        return self._search(rows, {k: runs[0][k] + runs[1][k] for k in numbers})

    def _search(self, rows: Matrix, runs: dict[int, list[Matrix]]) -> Refined:
        """Steps 1 to 4 from these runs of each k."""
        ridge = self.reg_covar * float(rows.var(axis=0).mean())
        kind, sure, rounds = self.covariance_type, self.min_posterior, self.max_iter
        assessed = [
            assess(rows, each, kind=kind, ridge=ridge, min_posterior=sure, max_iter=rounds) for each in runs.values()
        ]
        scores = [each.score for each in assessed]
        k, reason = chosen_k(scores, self.tolerance)
        chosen = next(each.runs for each in assessed if each.k == k)
        centres, mixture = self._refined(rows, chosen, ridge)
        product = max(score["product"] for score in scores)
        labels = np.asarray(mixture.predict(rows), dtype=np.int64)
        return Refined(mixture, centres, chosen, labels, scores, reason, product)

    def _refined(self, rows: Matrix, runs: list[Matrix], ridge: float) -> tuple[Matrix, GaussianMixture]:
        """Step 3 and 4: k-means from the centres of the separable rows, and one round of the mixture on its partition.

        Run to its end the mixture would leave the partition it is to validate, each time for another of its optima.
        """
        centres, k = runs[0], len(runs[0])

        def validated(hard: Labels) -> GaussianMixture:
            return mixture_from_partition(rows, hard, k, self.covariance_type, ridge, 1)

        hard = pairwise_distances_argmin(rows, centres).astype(np.int64)
        mixture = validated(hard)
        for _ in range(self.refine_rounds):
            core = separable(rows, runs, hard, mixture, self.min_posterior)
            start = np.stack(
                [rows[core & (hard == j)].mean(axis=0) if (core & (hard == j)).any() else centres[j] for j in range(k)]
            )
            if len(np.unique(rows[core], axis=0)) >= k:
                start = lloyd(rows[core], start, self.max_iter)
            centres = lloyd(rows, start, self.max_iter)
            before, hard = hard, pairwise_distances_argmin(rows, centres).astype(np.int64)
            if (hard == before).all():
                break
            mixture = validated(hard)
        return centres, mixture

    def _finish(self, given: Matrix, rows: Matrix, found: Refined) -> None:
        """Names by size, centres in the input's units, the separable rows of all."""
        soft = np.asarray(found.mixture.predict(rows), dtype=np.int64)
        means = np.stack(
            [
                given[soft == j].mean(axis=0) if (soft == j).any() else self.offset_
                for j in range(found.mixture.n_components)
            ]
        )
        _, order = largest_first(soft, means)
        order = order[: len(np.unique(soft))]  # a component without rows is no cluster
        hard = pairwise_distances_argmin(rows, found.centres[order]).astype(np.int64)
        self.mixture_ = ordered_mixture(found.mixture, order)
        self.n_iter_ = int(self.mixture_.n_iter_)
        self.n_clusters_ = len(order)
        self.cluster_centers_ = means[order]
        self.labels_ = np.asarray(self.mixture_.predict(rows), dtype=np.int64)
        runs = [run for run in found.runs if len(run) == len(order)] or [found.centres[order]]
        self.core_mask_ = separable(rows, runs, hard, self.mixture_, self.min_posterior)
        self.core_fraction_ = float(self.core_mask_.mean())

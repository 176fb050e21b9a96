"""Semi-supervised Gaussian mixtures with split and merge: known and new classes in partly labelled features.

Unlabelled rows come from the labelled classes and from others, nobody knows how many. k-means that respects the labels
alternates with tests, by the evidence of a Gaussian with a conjugate prior, of whether a new cluster is two, or two
are one.

B. Zhao, X. Wen and K. Han, "Learning Semi-supervised Gaussian Mixture Models for Generalized Category Discovery",
ICCV 2023, arXiv:2305.06144.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_triangular
from scipy.special import gammaln, logsumexp, multigammaln
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.preprocessing import normalize as unit_rows
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from models.base import UNLABELLED, check_labels
from models.constrained_kmeans import ConstrainedKMeans, margins
from models.discover.hidden_classes import Labels, Matrix, table_rows
from models.registry import register

JITTER = 1e-10
COIN = 0.1
WITHIN_STRENGTH = 20

# The evidence of a cluster (step 3) --------------------------------------------------------------------------------


class Prior(NamedTuple):
    """Normal-inverse-Wishart prior of a cluster's mean and covariance.

    Attributes
    ----------
    mean : array, (d,)
    kappa, nu : float
    psi : array, (d, d)
    """

    mean: Matrix
    kappa: float
    nu: float
    psi: Matrix


class Posterior(NamedTuple):
    """The prior updated with the rows of a cluster; `psi` is Psi_N."""

    mean: Matrix
    kappa: float
    nu: float
    psi: Matrix

    @property
    def covariance(self) -> Matrix:
        """Mode Psi_N / (nu_N + d + 2) of the covariance."""
        return self.psi / (self.nu + len(self.mean) + 2)


def posterior(rows: Matrix, prior: Prior) -> Posterior:
    """Update of the prior; the scatter is about the rows' own mean."""
    n = len(rows)
    if n == 0:
        return Posterior(*prior)
    centre = rows.mean(axis=0)
    off = centre - prior.mean
    kappa = prior.kappa + n
    scatter = (rows - centre).T @ (rows - centre)
    psi = prior.psi + scatter + prior.kappa * n / kappa * np.outer(off, off)
    return Posterior((prior.kappa * prior.mean + n * centre) / kappa, kappa, prior.nu + n, psi)


def log_evidence(rows: Matrix, prior: Prior) -> float:
    """The term log h(X): log density of the rows of one cluster, its mean and covariance integrated out."""
    n, d = rows.shape
    after = posterior(rows, prior)
    return float(
        -n * d / 2 * math.log(math.pi)
        + multigammaln(after.nu / 2, d)
        - multigammaln(prior.nu / 2, d)
        + prior.nu / 2 * _log_determinant(prior.psi)
        - after.nu / 2 * _log_determinant(after.psi)
        + d / 2 * (math.log(prior.kappa) - math.log(after.kappa))
    )


def _log_determinant(matrix: Matrix) -> float:
    return float(np.linalg.slogdet(matrix + JITTER * np.eye(len(matrix)))[1])


def split_log_ratio(first: Matrix, second: Matrix, prior: Prior, alpha: float) -> float:
    """The split ratio log H_s (step 4): how much better two clusters explain the rows than one does."""
    whole = np.concatenate([first, second])
    apart = gammaln(len(first)) + log_evidence(first, prior) + gammaln(len(second)) + log_evidence(second, prior)
    return float(math.log(alpha) + apart - gammaln(len(whole)) - log_evidence(whole, prior))


def merge_log_ratio(first: Matrix, second: Matrix, prior: Prior, alpha: float) -> float:
    """The merge ratio log H_m (step 5), the reciprocal of the split."""
    return -split_log_ratio(first, second, prior, alpha)


def within_variance(features: Matrix, labels: Labels) -> float:
    """Mean variance of the columns inside the labelled classes; that of all rows where no class has two."""
    deviations = [
        features[labels == label] - features[labels == label].mean(axis=0)
        for label in np.unique(labels[labels >= 0])
        if (labels == label).sum() > 1
    ]
    variance = float(np.concatenate(deviations).var(axis=0).mean()) if deviations else 0.0
    return variance or float(features.var(axis=0).mean()) or JITTER


def densities(features: Matrix, clusters: Labels, centres: Matrix, mean: float = 1.0) -> Matrix:
    """Step 7: phi_k = mean distance to the centre / ln(N_k + 10), tamed, scaled to `mean`: a temperature each.

    Clusters of one row get the largest value; all are clipped to their 10th and 90th percentile.
    """
    distances = np.linalg.norm(features - centres[clusters], axis=1)
    sizes = np.bincount(clusters, minlength=len(centres))
    phi = np.bincount(clusters, distances, minlength=len(centres)) / np.maximum(sizes, 1) / np.log(sizes + 10)
    phi[sizes <= 1] = phi.max()
    phi = np.clip(phi, *np.percentile(phi, [10, 90]))
    return phi / phi.mean() * mean if phi.mean() > 0 else np.full(len(phi), mean)


# Split and merge ---------------------------------------------------------------------------------------------------


@dataclass
class SplitMerge:
    """Steps 4 and 5 on one state of the clusters.

    Attributes
    ----------
    features : array, (n, d)
    clusters : int array, (n,)
        The first `n_labelled` clusters hold the labelled classes and are neither split nor merged together.
    """

    features: Matrix
    clusters: Labels
    centres: Matrix
    n_labelled: int
    prior: Prior
    alpha: float
    accept: str
    min_split_size: int
    merge_into_labelled: bool
    random: np.random.RandomState

    def __call__(self) -> tuple[Matrix, dict[str, Any]]:
        """New centres, labelled ones first, and what was done."""
        parts: dict[int, Matrix] = {}
        split_ratios, merge_ratios = [], []
        for k in range(self.n_labelled, len(self.centres)):
            proposal = self._halves(k)
            if proposal is None:
                continue
            ratio = split_log_ratio(*proposal, self.prior, self.alpha)
            split_ratios.append(ratio)
            if self._accepted(ratio):
                parts[k] = np.array([half.mean(axis=0) for half in proposal])
        gone: set[int] = set()
        merged: list[Matrix] = []
        merges = 0
        for k, other in self._pairs(set(parts)):
            if k in gone or other in gone:
                continue
            ratio = merge_log_ratio(self._rows(k), self._rows(other), self.prior, self.alpha)
            merge_ratios.append(ratio)
            if self._accepted(ratio):
                merges += 1
                gone.add(k)
                if other >= self.n_labelled:
                    gone.add(other)
                    merged.append(np.concatenate([self._rows(k), self._rows(other)]).mean(axis=0, keepdims=True))
        kept = [self.centres[k : k + 1] for k in range(len(self.centres)) if k not in gone and k not in parts]
        history = {
            "clusters": len(self.centres),
            "splits": len(parts),
            "merges": merges,
            "split_log_ratios": split_ratios,
            "merge_log_ratios": merge_ratios,
        }
        return np.concatenate([*kept, *parts.values(), *merged]), history

    def _rows(self, k: int) -> Matrix:
        return self.features[self.clusters == k]

    def _halves(self, k: int) -> tuple[Matrix, Matrix] | None:
        """Two-means of a cluster, or None where it or a half is too small."""
        rows = self._rows(k)
        if len(rows) <= self.min_split_size or (rows == rows[0]).all():
            return None
        half = KMeans(2, n_init=3, random_state=self.random.randint(2**31 - 1)).fit(rows).labels_ == 0
        return (rows[half], rows[~half]) if min(half.sum(), (~half).sum()) > self.min_split_size else None

    def _pairs(self, taken: set[int]) -> list[tuple[int, int]]:
        """Each new cluster that was not split, with its nearest neighbour; a pair once."""
        new = [k for k in range(self.n_labelled, len(self.centres)) if k not in taken]
        others = [*range(self.n_labelled), *new] if self.merge_into_labelled else new
        pairs: dict[tuple[int, int], tuple[int, int]] = {}
        for k in new:
            near = [other for other in others if other != k]
            if near:
                away = np.linalg.norm(self.centres[near] - self.centres[k], axis=1)
                other = near[int(away.argmin())]
                pairs.setdefault((min(k, other), max(k, other)), (k, other))
        return list(pairs.values())

    def _accepted(self, log_ratio: float) -> bool:
        """With probability min(1, H); with "coin" in a tenth of the cases where H does not exceed 1."""
        draw = self.random.uniform()
        if self.accept == "coin":
            return log_ratio > 0 or draw < COIN
        return bool(draw < math.exp(min(0.0, log_ratio)))


@register(
    "gcd-gmm",
    stage="discover",
    summary="Counts and finds classes, known and new, in features of which some rows carry a label",
    paper="Learning Semi-supervised Gaussian Mixture Models for Generalized Category Discovery",
    year=2023,
    link="https://arxiv.org/abs/2305.06144",
    licence="MIT",
    accepts=("embedding", "table"),
    skips_checks={"one_class": "a single labelled class among unknown ones is a problem it is made for"},
)
class SemiSupervisedGMM(BaseEstimator):
    """Mixture of the labelled classes and of as many new ones as the evidence supports.

    Parameters
    ----------
    n_init_clusters : int, optional
        Clusters to start from, labelled classes included; half as many again as there are labelled classes when None.
    n_components_pca : int, optional
        Reduce the rows to so many principal components first; None leaves them.
    normalize : bool, default=True
        Scale rows to unit length (before PCA).
    kappa0 : float, default=1e-4
        Weight of the prior mean, the mean of all rows.
    nu0 : float, optional
        Degrees of freedom of the prior, above d - 1; d + 1 when None (d + 21 with "within").
    psi_scale : float or "within", default=0.005
        Prior scatter, times the identity. 0.005 is published, for unit-length features of 768 dimensions. "within": 20
        times the mean variance inside the labelled classes, for features of any length.
    alpha : float, default=1.0
        Concentration of the Dirichlet process; small values discourage clusters.
    accept : {"metropolis", "coin"}, default="metropolis"
        Accept a change with probability min(1, H), as published, or, as the released code, always above 1 and in a
        tenth of the cases below.
    max_rounds : int, default=20
        Rounds of split, merge and reassignment, at most.
    kmeans_n_init, kmeans_max_iter : int, default=10, 100
    tol : float, default=1e-4
        Of the k-means.
    min_split_size : int, default=5
        Clusters and halves of so many rows or fewer are not split.
    merge_into_labelled : bool, default=False
        Let a new cluster dissolve into the labelled class nearest to it.
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_ : int array
        Labels seen in y.
    n_classes_, n_clusters_, n_novel_ : int
        All classes (two names), and the new ones.
    labels_ : int array, (n,)
        Labelled classes keep their label, new ones get ``classes_.max() + 1 + j``.
    cluster_centers_ : array, (n_classes_, d')
        Labelled classes first, in the order of ``classes_``; in the space after scaling and PCA.
    covariances_ : array, (n_classes_, d', d')
        Posterior modes.
    weights_, density_ : array, (n_classes_,)
        Shares of the rows, and the temperature of each prototype (mean 1).
    confidences_ : array, (n,)
        (second - first) / second distance to the centres; 1 for labelled rows.
    split_history_ : list of dict
        A round each: ``clusters`` before it, ``splits``, ``merges``, ``split_log_ratios``, ``merge_log_ratios``.
    n_features_in_ : int

    Notes
    -----
    The released code keeps both centres of a merge and adds their mean, so that merging raises the count, starts from
    the true number of classes and reports k-means with it; none of this is done here. A labelled class that has drawn
    the rows of a new one to itself is not split: start from more clusters than are expected. An evidence costs d'^3 a
    cluster: with wide features reduce to 128 components or fewer.

    References
    ----------
    Zhao, Wen and Han, 2023, sections 3.2 and 3.3. Evidence: K. Murphy, "Conjugate Bayesian analysis of the Gaussian
    distribution", 2007, equation 266. Ratios: J. Chang and J. W. Fisher III, "Parallel Sampling of DP Mixture Models
    using Sub-Cluster Splits", NeurIPS 2013.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> import numpy as np
    >>> X, y = make_blobs(300, centers=[[0, 0], [9, 0], [0, 9], [9, 9]], random_state=0)
    >>> partly = np.where((y < 2) & (np.arange(300) % 2 == 0), y, -1)
    >>> SemiSupervisedGMM(8, normalize=False, psi_scale="within", random_state=0).fit(X, partly).n_classes_
    4
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_init_clusters": [Interval(Integral, 1, None, closed="left"), None],
        "n_components_pca": [Interval(Integral, 1, None, closed="left"), None],
        "normalize": ["boolean"],
        "kappa0": [Interval(Real, 0, None, closed="neither")],
        "nu0": [Interval(Real, 0, None, closed="neither"), None],
        "psi_scale": [Interval(Real, 0, None, closed="neither"), StrOptions({"within"})],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "accept": [StrOptions({"metropolis", "coin"})],
        "max_rounds": [Interval(Integral, 0, None, closed="left")],
        "kmeans_n_init": [Interval(Integral, 1, None, closed="left")],
        "kmeans_max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "min_split_size": [Interval(Integral, 1, None, closed="left")],
        "merge_into_labelled": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_init_clusters: int | None = None,
        n_components_pca: int | None = None,
        normalize: bool = True,
        kappa0: float = 1e-4,
        nu0: float | None = None,
        psi_scale: float | Literal["within"] = 0.005,
        alpha: float = 1.0,
        accept: Literal["metropolis", "coin"] = "metropolis",
        max_rounds: int = 20,
        kmeans_n_init: int = 10,
        kmeans_max_iter: int = 100,
        tol: float = 1e-4,
        min_split_size: int = 5,
        merge_into_labelled: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_init_clusters = n_init_clusters
        self.n_components_pca = n_components_pca
        self.normalize = normalize
        self.kappa0 = kappa0
        self.nu0 = nu0
        self.psi_scale = psi_scale
        self.alpha = alpha
        self.accept = accept
        self.max_rounds = max_rounds
        self.kmeans_n_init = kmeans_n_init
        self.kmeans_max_iter = kmeans_max_iter
        self.tol = tol
        self.min_split_size = min_split_size
        self.merge_into_labelled = merge_into_labelled
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> SemiSupervisedGMM:
        """Find the classes and their number.

        Parameters
        ----------
        X : array, (n, d)
        y : int array, (n,)
            Labels, -1 = unlabelled, whether of a labelled class or not. All rows may be labelled.

        Raises
        ------
        ValueError
            Without y or any label, for NaN, no more rows than features (after PCA), fewer initial clusters than
            labelled classes or more than rows, or a prior without a density.
        """
        self._validate_params()
        rows = table_rows(self, X, reset=True)
        labels = self._labels(y, len(rows))
        random = check_random_state(self.random_state)
        self.classes_ = np.unique(labels[labels != UNLABELLED])
        features = self._reduce(rows, random)
        k = self._initial_clusters(len(rows), int((labels == UNLABELLED).sum()))
        prior = self._prior(features, labels)
        clusters, centres = self._assign(features, labels, k, "k-means++", random)
        self.split_history_: list[dict[str, Any]] = []
        for _ in range(self.max_rounds):
            clusters, centres, changed = self._round(features, labels, clusters, centres, prior, random)
            if not changed:
                break
        self._store(features, labels, clusters, centres, prior)
        return self

    def fit_predict(self, X: ArrayLike, y: ArrayLike | None = None) -> Labels:
        """Fit and return ``labels_``."""
        return self.fit(X, y).labels_

    def predict(self, X: ArrayLike) -> Labels:
        """Class of each row, that of the nearest centre."""
        features = self._features(X)
        return self._names[euclidean_distances(features, self.cluster_centers_).argmin(axis=1)]

    def score_samples(self, X: ArrayLike) -> Matrix:
        """Log density of each row under the mixture, (n,)."""
        features = self._features(X)
        d = features.shape[1]
        parts = np.empty((len(features), self.n_classes_))
        for k, (weight, covariance) in enumerate(zip(self.weights_, self.covariances_, strict=True)):
            factor = np.linalg.cholesky(covariance + JITTER * np.eye(d))
            scaled = solve_triangular(factor, (features - self.cluster_centers_[k]).T, lower=True)
            log_scale = np.log(np.diag(factor)).sum() + d / 2 * math.log(2 * math.pi)
            parts[:, k] = math.log(weight) - log_scale - (scaled**2).sum(axis=0) / 2
        return np.asarray(logsumexp(parts, axis=1))

    def _labels(self, y: ArrayLike | None, n: int) -> Labels:
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None. Give labels, -1 where "
                "there is none."
            )
        return check_labels(y, n, minimum_classes=1)

    def _reduce(self, rows: Matrix, random: np.random.RandomState) -> Matrix:
        """Step 1; keeps the projection."""
        n, d = rows.shape
        wanted = self.n_components_pca or d
        if wanted >= n:
            raise ValueError(
                f"X must hold more rows than features, got n_samples={n} rows of {wanted} features. "
                "Give more rows or lower n_components_pca."
            )
        if wanted > d:
            raise ValueError(f"n_components_pca={wanted} is more than the {d} features of X.")
        scaled = unit_rows(rows) if self.normalize else rows
        self._pca = None
        if self.n_components_pca is not None:
            pca = PCA(self.n_components_pca, random_state=random.randint(2**31 - 1))
            self._pca = pca.set_output(transform="default").fit(scaled)
        return self._project(rows)

    def _project(self, rows: Matrix) -> Matrix:
        scaled = unit_rows(rows) if self.normalize else rows
        return scaled if self._pca is None else self._pca.transform(scaled)

    def _features(self, X: ArrayLike) -> Matrix:
        check_is_fitted(self)
        return self._project(table_rows(self, X, reset=False))

    def _initial_clusters(self, n: int, n_unlabelled: int) -> int:
        labelled = len(self.classes_)
        if self.n_init_clusters is None:
            return min(labelled + labelled // 2, labelled + n_unlabelled)
        if not labelled <= self.n_init_clusters <= n:
            raise ValueError(
                f"n_init_clusters={self.n_init_clusters} must lie between the {labelled} labelled classes in y and the "
                f"n_samples={n} rows of X."
            )
        return min(self.n_init_clusters, labelled + n_unlabelled)

    def _prior(self, features: Matrix, labels: Labels) -> Prior:
        d = features.shape[1]
        within = self.psi_scale == "within"
        nu = (d + 1 + (WITHIN_STRENGTH if within else 0)) if self.nu0 is None else self.nu0
        if nu <= d - 1:
            raise ValueError(f"nu0={nu} must exceed the number of features less one, {d - 1}.")
        scale = WITHIN_STRENGTH * within_variance(features, labels) if within else float(self.psi_scale)
        return Prior(features.mean(axis=0), self.kappa0, float(nu), scale * np.eye(d))

    def _assign(
        self, features: Matrix, labels: Labels, k: int, init: str | Matrix, random: np.random.RandomState
    ) -> tuple[Labels, Matrix]:
        """Step 2: cluster of each row and centres; new clusters without rows are dropped."""
        found = ConstrainedKMeans(
            k,
            init=init,
            n_init=self.kmeans_n_init,
            max_iter=self.kmeans_max_iter,
            tol=self.tol,
            random_state=random.randint(2**31 - 1),
        ).fit(features, labels)
        held = np.bincount(found.labels_, minlength=k) > 0
        return (np.cumsum(held) - 1)[found.labels_], found.cluster_centers_[held]

    def _round(
        self,
        features: Matrix,
        labels: Labels,
        clusters: Labels,
        centres: Matrix,
        prior: Prior,
        random: np.random.RandomState,
    ) -> tuple[Labels, Matrix, bool]:
        """Steps 4 to 6."""
        changed_centres, history = SplitMerge(
            features,
            clusters,
            centres,
            len(self.classes_),
            prior,
            self.alpha,
            self.accept,
            self.min_split_size,
            self.merge_into_labelled,
            random,
        )()
        self.split_history_.append(history)
        if not history["splits"] + history["merges"]:
            return clusters, centres, False
        return *self._assign(features, labels, len(changed_centres), changed_centres, random), True

    def _store(self, features: Matrix, labels: Labels, clusters: Labels, centres: Matrix, prior: Prior) -> None:
        self.cluster_centers_ = centres
        self.n_classes_ = self.n_clusters_ = len(centres)
        self.n_novel_ = len(centres) - len(self.classes_)
        new = self.classes_.max() + 1 + np.arange(self.n_novel_)
        self._names = np.concatenate([self.classes_, new]).astype(np.int64)
        self.labels_ = self._names[clusters]
        self.weights_ = np.bincount(clusters, minlength=len(centres)) / len(features)
        self.covariances_ = np.array(
            [posterior(features[clusters == k], prior).covariance for k in range(len(centres))]
        )
        self.density_ = densities(features, clusters, centres)
        self.confidences_ = np.where(labels == UNLABELLED, margins(euclidean_distances(features, centres)), 1.0)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

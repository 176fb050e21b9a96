"""Clusters of unlike shapes from a convex programme: iterative likelihood-adjusted SDP (iLA-SDP).

Y. Zhuang, X. Chen and Y. Yang, "Likelihood Adjusted Semidefinite Programs for Clustering Heterogeneous Data",
ICML 2023, arXiv:2209.15097.

Hard labels G_1 ... G_K are parameters of the model x_i ~ N(mu_k, S_k), i in G_k. With the means profiled out and
Z_k = 1_G 1_G' / |G|, the log-likelihood is, up to a factor 1/2 and constants, sum_k <A_k, Z_k> with

    (A_k)_ij = -1/2 (x_i - x_j)' S_k^-1 (x_i - x_j) - log det S_k.

Relaxed to a semidefinite programme it is convex in Z for given S, and S has a closed form for given Z: the method
alternates the two, and never estimates a centre.
"""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from models.base import check_embeddings, check_labels
from models.clustering import Labels, Matrix, knn_graph, spectral_embedding
from models.discover.likelihood_sdp import SDPSolution, la_sdp, la_sdp_low_rank, la_sdp_reference
from models.registry import register

WARN_ROWS, MOST_ROWS = 500, 2000
"""The cost of whole matrices is warned of beyond the first, and refused beyond the second."""
LEAST_GAIN = 1e-4
EXCHANGEABLE = 0.05
"""When no row's weight in a group is this far from 1/K, the groups are not told apart by their weights."""


class Run(NamedTuple):
    """The end of one start."""

    solution: SDPSolution
    labels: Labels
    covariances: Matrix
    history: list[float]
    residuals: list[tuple[float, float]]
    converged: bool


# The two steps that alternate


def factor_of(covariance: Matrix) -> Matrix:
    """Lower Cholesky factor.

    Raises
    ------
    ValueError
        If the covariance is singular.
    """
    try:
        return np.asarray(cholesky(covariance, lower=True))
    except LinAlgError:
        raise ValueError(
            "The covariance of a group of X is singular: it has too few rows, or columns that are constant or follow "
            "from others. Pass reg_covar > 0 or reduce the columns (PCA)."
        ) from None


def log_likelihoods(X: Matrix, covariances: Matrix) -> Matrix:
    """Step 2a: the matrices A_k, (K, n, n). The log-determinant stands in every entry: its weight is 1' Z_k 1."""
    A = np.empty((len(covariances), len(X), len(X)))
    for k, covariance in enumerate(covariances):
        factor = factor_of(covariance)
        white = solve_triangular(factor, X.T, lower=True).T
        A[k] = -cdist(white, white, "sqeuclidean") / 2 - 2 * np.log(np.diag(factor)).sum()
    return A


def scatters(X: Matrix, solution: SDPSolution) -> tuple[Matrix, Matrix]:
    """X' (diag(Z_k 1) - Z_k) X of each group, (K, p, p), and the weights 1' Z_k 1, (K,).

    The first equals 1/2 sum_ij Z_ij (x_i - x_j)(x_i - x_j)', a covariance as long as no entry is negative: those that
    an unfinished solver leaves below 0 count as 0.
    """
    if solution.factored:
        within = np.einsum("np,nk,nq->kpq", X, solution.weights, X, optimize=True)
        between = X.T @ solution.blocks  # X' V_k, (K, p, r)
        return np.asarray(within - between @ between.transpose(0, 2, 1)), np.asarray(solution.weights.sum(axis=0))
    Z = np.maximum(solution.blocks, 0)
    within = np.einsum("np,kn,nq->kpq", X, Z.sum(axis=2), X, optimize=True)
    return np.asarray(within - X.T @ Z @ X), np.asarray(Z.sum(axis=(1, 2)))


def covariances_from(scatter: Matrix, weights: Matrix, kind: str, ridge: float, least: float) -> Matrix:
    """Step 2c: the maximiser S_k of the lifted likelihood, plus `ridge` on the diagonal, (K, p, p).

    A group of weight 1' Z_k 1 below `least` takes the pooled covariance: the likelihood is unbounded when a group
    shrinks to a point.
    """
    K, p, _ = scatter.shape
    pooled = scatter.sum(axis=0) / weights.sum()
    found = np.repeat(pooled[None], K, axis=0)
    if kind != "tied":
        large = weights >= least
        found[large] = scatter[large] / weights[large, None, None]
    if kind == "diag":
        found = found * np.eye(p)
    return np.asarray(found + ridge * np.eye(p))


def hard_scatters(X: Matrix, labels: Labels, K: int) -> Matrix:
    """Scatter of each group about its mean, (K, p, p)."""
    apart = [X[labels == k] - X[labels == k].mean(axis=0) for k in range(K)]
    return np.stack([part.T @ part for part in apart])


def rounded(solution: SDPSolution, random: np.random.RandomState) -> Labels:
    """Step 3: the group of largest weight; where all weights are 1/K, k-means on the eigenvectors of sum_k Z_k."""
    weights = solution.weights
    n, K = weights.shape
    if K == 1 or np.abs(weights - 1 / K).max() >= EXCHANGEABLE:
        return weights.argmax(axis=1).astype(np.int64)
    whole = solution.matrices().sum(axis=0)
    _, vectors = eigh((whole + whole.T) / 2, subset_by_index=[n - K, n - 1])
    return np.asarray(KMeans(K, n_init=10, random_state=random).fit_predict(vectors), dtype=np.int64)


@register(
    "ila-sdp",
    stage="discover",
    summary="Clusters a few hundred rows whose groups differ in shape and orientation, by a convex likelihood.",
    paper="Likelihood Adjusted Semidefinite Programs for Clustering Heterogeneous Data",
    year=2023,
    link="https://arxiv.org/abs/2209.15097",
    licence="none published",
    accepts=("table", "embedding"),
)
class ILASDP(ClusterMixin, BaseEstimator):
    """Groups with covariances of their own, found without centres by a likelihood-adjusted semidefinite programme.

    Parameters
    ----------
    n_clusters : int, default=3
    init : {"ward", "kmeans", "spectral", "random"} or int array (n,), default="ward"
        First labels, 0 to n_clusters - 1, from which the first covariances are taken.
    covariance_type : {"full", "diag", "tied"}, default="full"
    reg_covar : float, default=1e-3
        Added to the covariances' diagonals, as a share of the mean variance of the columns.
    max_iter : int, default=10
        Bound on the alternations.
    n_init : int, default=3
        Starts: the first from `init`, the others from random labels. The largest objective wins.
    sdp_max_iter : int, default=2000
        Bound on the iterations of the solver.
    sdp_tol : float, default=1e-4
        Of the solver.
    solver : {"admm", "low-rank", "cvxpy"}, default="admm"
        "admm" solves the programme itself; its cost grows with the cube of the rows. "low-rank" writes each block as
        V V' with V >= 0 of `rank` columns; an iteration is linear in the rows. "cvxpy" is a reference for at most 60
        rows and needs the package of that name.
    rank : int or None, default=None
        Columns of each V of the low-rank solver; None takes n_clusters.
    min_cluster_weight : float or None, default=None
        A group of less weight takes the pooled covariance; None means p + 1.
    standardize : bool, default=False
        Give every column mean 0 and variance 1 first.
    store_Z : bool, default=False
        Keep the K matrices of n x n.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    labels_ : int array, (n,)
    n_clusters_ : int
        Groups that hold rows.
    memberships_ : array, (n, n_clusters_)
        Weight of each row in each group; rows sum to 1.
    covariances_ : array, (n_clusters_, p, p)
        In the units worked in (those of standardised columns with `standardize`).
    cluster_centers_ : array, (n_clusters_, p)
        Mean of the rows of each label, in the units of the input; only :meth:`predict` and :meth:`score` use it.
    Z_ : array, (n_clusters_, n, n)
        With `store_Z` alone.
    objective_ : float
        sum_k <A_k, Z_k> of the best start.
    objective_history_ : list of float
        The objective at each alternation of the best start.
    objectives_ : list of float
        The last objective of each start.
    sdp_residuals_ : list of (float, float)
        Primal and dual residual of the solver at each alternation.
    n_iter_ : int
        Alternations of the best start.
    converged_ : bool
        Whether labels or objective stood still before `max_iter`, with the last programme solved to `sdp_tol`.
    n_features_in_ : int

    Notes
    -----
    A compact first partition can be a trap where groups differ in shape alone: keep the random starts. With three
    long groups through one common centre the method fails; it wants separate centres, or two groups of contrasting
    shape. With full covariances and few rows for each column reduce the columns first.

    Beyond 500 rows take ``solver="low-rank"``, or cluster a few hundred representative rows and :meth:`predict` the
    others. The low-rank programme is not convex: its objective is at most that of the convex one, give it more starts.
    Beyond some 10,000 rows take ``init="kmeans"`` with it: Ward's tree grows with their square.

    References
    ----------
    Zhuang, Chen and Yang, arXiv:2209.15097, 2023: the likelihood-adjusted programme and its alternation with the
    covariances. J. Peng and Y. Wei, "Approximating K-means-type clustering via semidefinite programming", SIAM Journal
    on Optimization 18, 2007: the programme with equal spherical covariances.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = np.concatenate([rng.normal(size=(12, 2)) * [2, 0.3], rng.normal(size=(12, 2)) * [0.3, 2] + [0, 9]])
    >>> np.bincount(ILASDP(n_clusters=2, n_init=1, random_state=0).fit_predict(X)).tolist()
    [12, 12]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"ward", "kmeans", "spectral", "random"}), "array-like"],
        "covariance_type": [StrOptions({"full", "diag", "tied"})],
        "reg_covar": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "sdp_max_iter": [Interval(Integral, 1, None, closed="left")],
        "sdp_tol": [Interval(Real, 0, None, closed="neither")],
        "solver": [StrOptions({"admm", "low-rank", "cvxpy"})],
        "rank": [Interval(Integral, 1, None, closed="left"), None],
        "min_cluster_weight": [Interval(Real, 0, None, closed="left"), None],
        "standardize": ["boolean"],
        "store_Z": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 3,
        *,
        init: str | ArrayLike = "ward",
        covariance_type: str = "full",
        reg_covar: float = 1e-3,
        max_iter: int = 10,
        n_init: int = 3,
        sdp_max_iter: int = 2000,
        sdp_tol: float = 1e-4,
        solver: str = "admm",
        rank: int | None = None,
        min_cluster_weight: float | None = None,
        standardize: bool = False,
        store_Z: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.covariance_type = covariance_type
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.sdp_max_iter = sdp_max_iter
        self.sdp_tol = sdp_tol
        self.solver = solver
        self.rank = rank
        self.min_cluster_weight = min_cluster_weight
        self.standardize = standardize
        self.store_Z = store_Z
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Find the groups.

        Parameters
        ----------
        X : array, (n, p)
        y : ignored
            Labels, known or not, have no part in it; first labels are given as `init`.

        Raises
        ------
        ValueError
            For NaN, fewer than 2 rows a cluster, fewer distinct rows than clusters, identical rows, first labels that
            are no partition into `n_clusters`, a singular covariance with ``reg_covar=0``, more than 2000 rows with
            "admm" or 60 with "cvxpy".
        ImportError
            With ``solver="cvxpy"``, where that package is not installed.

        Warns
        -----
        UserWarning
            Beyond 500 rows with "admm", of the cost; and where a group ends without rows.
        """
        self._validate_params()
        given = check_embeddings(X, minimum=2 * self.n_clusters)
        validate_data(self, X, skip_check_array=True)
        self._check_cost(len(given))
        if (given == given[0]).all():
            raise ValueError(f"All {len(given)} rows of X are the same (n_samples={len(given)}): there are no groups.")
        distinct = len(np.unique(given, axis=0))
        if distinct < self.n_clusters:
            raise ValueError(
                f"X holds {distinct} distinct rows, fewer than n_clusters={self.n_clusters}. Ask for fewer clusters."
            )
        spread = given.std(axis=0)
        varies = spread > 1e-12 * np.abs(given).max(axis=0)  # rounding gives constant columns a spread too
        self.scale_ = np.where(varies & self.standardize, spread, 1.0)
        self.offset_ = given.mean(axis=0)
        rows = (given - self.offset_) / self.scale_
        random = check_random_state(self.random_state)
        with threadpool_limits(1):  # small eigenproblems are many times slower on contended threads
            runs = [self._run(rows, labels, random) for labels in self._starts(rows, random)]
        self.objectives_ = [run.history[-1] for run in runs]
        self._finish(given, max(runs, key=lambda run: run.history[-1]))
        return self

    def predict(self, X: ArrayLike) -> Labels:
        """Group of largest Gaussian likelihood about the mean of each label, (n,)."""
        return np.asarray(self._fit_of(X).argmin(axis=1), dtype=np.int64)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Mean over the rows of max_k -(x - m_k)' S_k^-1 (x - m_k) - log det S_k: on hard labels, objective over n."""
        return float(-self._fit_of(X).min(axis=1).mean())

    def _fit_of(self, X: ArrayLike) -> Matrix:
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        parts = []
        for centre, covariance in zip(self.cluster_centers_, self.covariances_, strict=True):
            factor = factor_of(covariance)
            white = solve_triangular(factor, ((rows - centre) / self.scale_).T, lower=True)
            parts.append((white**2).sum(axis=0) + 2 * np.log(np.diag(factor)).sum())
        return np.stack(parts, axis=1)

    def _check_cost(self, n: int) -> None:
        if self.solver != "admm" or n <= WARN_ROWS:
            return
        advice = 'Pass solver="low-rank", or cluster representative rows and predict the others.'
        if n > MOST_ROWS:
            raise ValueError(f'X must hold at most {MOST_ROWS} rows with solver="admm", got {n}. {advice}')
        warnings.warn(f"X holds {n} rows, and the cost of each iteration grows with their cube. {advice}", stacklevel=3)

    def _starts(self, rows: Matrix, random: np.random.RandomState) -> list[Labels]:
        """First labels of each start."""
        K, n = self.n_clusters, len(rows)
        shuffled = [random.permutation(n) % K for _ in range(self.n_init)]
        if not isinstance(self.init, str):
            first = check_labels(self.init, n, n_classes=K, allow_unlabelled=False, minimum_classes=K, name="init")
        elif K == 1:
            first = np.zeros(n, dtype=np.int64)
        elif self.init == "ward":
            first = AgglomerativeClustering(K).fit_predict(rows)
        elif self.init == "kmeans":
            first = KMeans(K, n_init=10, random_state=random.randint(2**31 - 1)).fit_predict(rows)
        elif self.init == "spectral":
            near = knn_graph(rows, min(10, n - 1))
            near.data[:] = 1  # twins are at distance 0, and neighbours all the same
            vectors = spectral_embedding(((near + near.T) > 0).astype(np.float64), K)
            first = KMeans(K, n_init=10, random_state=random.randint(2**31 - 1)).fit_predict(vectors)
        else:
            first = shuffled[0]
        return [np.asarray(first, dtype=np.int64), *shuffled[1:]]

    def _run(self, rows: Matrix, labels: Labels, random: np.random.RandomState) -> Run:
        """Steps 1 to 3 from one start: programme and covariances by turns until neither moves."""
        K, p = self.n_clusters, rows.shape[1]
        ridge = self.reg_covar * float(rows.var(axis=0).mean())
        least = p + 1.0 if self.min_cluster_weight is None else float(self.min_cluster_weight)
        sizes = np.bincount(labels, minlength=K).astype(float)
        if not ridge and self.covariance_type == "full" and sizes.min() <= p:
            raise ValueError(
                f"The smallest first group of X has {sizes.min():.0f} rows in {p} columns, so its full covariance is "
                "singular. Pass reg_covar > 0, another covariance_type or fewer columns."
            )
        covariances = covariances_from(hard_scatters(rows, labels, K), sizes, self.covariance_type, ridge, least)
        history: list[float] = []
        residuals: list[tuple[float, float]] = []
        solution: SDPSolution | None = None
        still = False
        for turn in range(self.max_iter):
            solution = self._solve(rows, covariances, labels, solution, random)
            before, labels = labels, rounded(solution, random)
            covariances = covariances_from(*scatters(rows, solution), self.covariance_type, ridge, least)
            history.append(solution.value)
            residuals.append((solution.residuals.primal, solution.residuals.dual))
            gained = turn == 0 or history[-1] - history[-2] >= LEAST_GAIN * max(abs(history[-2]), 1e-12)
            still = not gained or (turn > 0 and bool((labels == before).all()))
            if still:
                break
        assert solution is not None  # max_iter is at least 1
        return Run(solution, labels, covariances, history, residuals, still and solution.converged)

    def _solve(
        self,
        rows: Matrix,
        covariances: Matrix,
        labels: Labels,
        before: SDPSolution | None,
        random: np.random.RandomState,
    ) -> SDPSolution:
        """Step 2b: the programme for these covariances, from the last solution."""
        state = before.state if before is not None else None
        if self.solver == "cvxpy":
            return la_sdp_reference(log_likelihoods(rows, covariances))
        if self.solver == "admm":
            A = log_likelihoods(rows, covariances)
            return la_sdp(A, tol=self.sdp_tol, max_iter=self.sdp_max_iter, state=state)
        factors = [factor_of(covariance) for covariance in covariances]
        log_dets = np.array([2 * np.log(np.diag(factor)).sum() for factor in factors])
        return la_sdp_low_rank(
            rows,
            np.asarray(np.linalg.inv(covariances), dtype=np.float64),
            log_dets,
            self._first_factors(labels, random),
            tol=self.sdp_tol,
            max_iter=self.sdp_max_iter,
            state=state,
        )

    def _first_factors(self, labels: Labels, random: np.random.RandomState) -> Matrix:
        """Factors near the first labels: random, non-negative, of length 1."""
        K, rank = self.n_clusters, self.rank or self.n_clusters
        inside = (labels == np.arange(K)[:, None])[:, :, None]
        V = np.where(inside, 1.0, 0.3) * random.uniform(size=(K, len(labels), rank))
        return np.asarray(V / np.sqrt((V**2).sum(axis=(1, 2), keepdims=True)))

    def _finish(self, given: Matrix, best: Run) -> None:
        """Attributes of the best start; groups without rows are left out."""
        used, self.labels_ = np.unique(best.labels, return_inverse=True)
        self.labels_ = self.labels_.astype(np.int64)
        if len(used) < self.n_clusters:
            warnings.warn(
                f"{self.n_clusters - len(used)} of {self.n_clusters} groups end without rows: X may hold fewer groups, "
                "or sdp_max_iter may be too small (see converged_).",
                stacklevel=3,
            )
        self.n_clusters_ = len(used)
        weights = np.maximum(best.solution.weights[:, used], 0)
        self.memberships_ = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        self.covariances_ = best.covariances[used]
        self.cluster_centers_ = np.stack([given[self.labels_ == k].mean(axis=0) for k in range(len(used))])
        if self.store_Z:
            self.Z_ = best.solution.matrices()[used]
        self.objective_, self.objective_history_ = best.history[-1], best.history
        self.sdp_residuals_, self.n_iter_, self.converged_ = best.residuals, len(best.history), bool(best.converged)

import sys
from functools import cache

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler

from models.discover import ila_sdp
from models.discover.ila_sdp import ILASDP, covariances_from, log_likelihoods, rounded, scatters
from models.discover.likelihood_sdp import (
    Residuals,
    SDPSolution,
    la_sdp,
    la_sdp_low_rank,
    la_sdp_reference,
    project_affine,
    project_psd,
)
from models.metrics import hungarian_accuracy
from models.registry import get_method


def iris(each=15):
    """The first rows of each species, standardised."""
    rows = np.concatenate([np.arange(each) + 50 * k for k in range(3)])
    return StandardScaler().fit_transform(load_iris().data)[rows], load_iris().target[rows]


def cross(seed=0, each=20):
    """Two flat groups through one centre, told apart by their shape alone."""
    rng = np.random.default_rng(seed)
    X = np.concatenate([rng.normal(size=(each, 2)) * [3, 0.2], rng.normal(size=(each, 2)) * [0.2, 3]])
    return X, np.repeat([0, 1], each)


def likelihoods(each=12):
    """The matrices A_k of the two species of iris that overlap, with the covariances of the truth."""
    rows = np.concatenate([np.arange(each) + 50, np.arange(each) + 100])
    X, y = StandardScaler().fit_transform(load_iris().data)[rows], np.repeat([0, 1], each)
    covariances = np.stack([np.cov(X[y == k].T, bias=True) + 0.01 * np.eye(4) for k in range(2)])
    return X, y, covariances, log_likelihoods(X, covariances)


def indicator(labels, K):
    """Z_k = 1_G 1_G' / |G|, (K, n, n)."""
    inside = (labels == np.arange(K)[:, None]).astype(float)
    return np.einsum("ki,kj->kij", inside, inside) / inside.sum(axis=1)[:, None, None]


@cache
def fitted_iris():
    return ILASDP(3, n_init=1, store_Z=True, random_state=0).fit(iris()[0])


def test_it_is_registered_for_the_discover_stage():
    card = get_method("ila-sdp")
    assert (card.stage, card.cls) == ("discover", ILASDP)


# The programme and its solvers


def test_likelihood_of_a_partition_with_the_means_profiled_out():
    X, y, covariances, A = likelihoods()
    expected = 0.0
    for k in range(2):
        apart = X[y == k] - X[y == k].mean(axis=0)
        expected -= np.einsum("np,pq,nq->", apart, np.linalg.inv(covariances[k]), apart)
        expected -= (y == k).sum() * np.linalg.slogdet(covariances[k])[1]
    assert (A * indicator(y, 2)).sum() == pytest.approx(expected)


def test_affine_projection_is_feasible_and_nearest():
    rng = np.random.default_rng(0)
    V = rng.normal(size=(3, 6, 6))
    V += V.transpose(0, 2, 1)
    Z = project_affine(V)
    np.testing.assert_allclose(Z.sum(axis=(0, 2)), 1)
    np.testing.assert_allclose(np.trace(Z, axis1=1, axis2=2), 1)
    other = project_affine(V[::-1] ** 2)
    assert abs(((V - Z) * (other - Z)).sum()) < 1e-9  # the normal of an affine set is orthogonal to it


def test_cone_projection_keeps_the_positive_part():
    V = np.array([[[2.0, 0.0], [0.0, -3.0]], [[-1.0, 0.0], [0.0, -1.0]]])
    assert project_psd(V).tolist() == [[[2, 0], [0, 0]], [[0, 0], [0, 0]]]


def test_admm_reaches_the_value_of_cvxpy():
    *_, A = likelihoods()
    reference = la_sdp_reference(A)
    assert la_sdp(A).value == pytest.approx(reference.value, rel=1e-3)
    assert la_sdp(A, tol=1e-6, max_iter=20_000).value == pytest.approx(reference.value, rel=1e-4)


def test_equal_spherical_covariances_give_the_k_means_programme():
    """Peng and Wei: one block Z with tr Z = K and unit row sums."""
    import cvxpy as cp

    X, _ = iris(each=6)
    A = log_likelihoods(X, np.repeat(np.eye(4)[None], 3, axis=0))
    Z = cp.Variable((18, 18), PSD=True)
    conditions = [Z >= 0, cp.trace(Z) == 3, Z @ np.ones(18) == 1]
    k_means = cp.Problem(cp.Maximize(cp.sum(cp.multiply(A[0], Z))), conditions)
    k_means.solve(solver=cp.CLARABEL)
    assert la_sdp(A, tol=1e-6, max_iter=20_000).value == pytest.approx(k_means.value, rel=1e-4)


def test_solution_is_feasible():
    *_, A = likelihoods()
    solution = la_sdp(A)
    assert solution.converged
    Z = solution.blocks
    np.testing.assert_allclose(np.trace(Z, axis1=1, axis2=2), 1, atol=1e-6)
    np.testing.assert_allclose(Z.sum(axis=(0, 2)), 1, atol=1e-6)
    assert np.linalg.eigvalsh(Z).min() >= -1e-3
    assert Z.min() >= -1e-3


def test_no_labelling_beats_the_relaxation():
    _, y, _, A = likelihoods()
    value = la_sdp(A).value
    rng = np.random.default_rng(0)
    tried = [y, *(rng.permutation(y) for _ in range(20)), *(np.arange(24) % 2 for _ in range(1))]
    assert all((A * indicator(labels, 2)).sum() <= value + 1e-3 * abs(value) for labels in tried)


def test_a_warm_start_takes_fewer_iterations():
    X, _, covariances, A = likelihoods()
    cold = la_sdp(A)
    warm = la_sdp(log_likelihoods(X, covariances * 1.01), state=cold.state)
    assert warm.n_iter < cold.n_iter


def test_low_rank_factors_are_feasible_and_near_the_relaxation():
    X, _, covariances, A = likelihoods()
    start = np.random.default_rng(0).uniform(size=(2, len(X), 3))
    log_dets = np.linalg.slogdet(covariances)[1]
    found = la_sdp_low_rank(X, np.linalg.inv(covariances), log_dets, start)
    Z = found.matrices()
    assert found.converged
    assert (found.blocks >= 0).all()
    np.testing.assert_allclose(np.trace(Z, axis1=1, axis2=2), 1, atol=1e-3)
    np.testing.assert_allclose(Z.sum(axis=(0, 2)), 1, atol=1e-3)
    assert found.value == pytest.approx((A * Z).sum())
    best = la_sdp(A).value
    assert best - 0.05 * abs(best) <= found.value <= best + 1e-3 * abs(best)


def test_cvxpy_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match="pip install cvxpy"):
        ILASDP(2, solver="cvxpy").fit(cross()[0])


def test_the_reference_is_for_few_rows():
    with pytest.raises(ValueError, match="at most 60 rows, got 61"):
        la_sdp_reference(np.zeros((1, 61, 61)))


# The alternation


def test_scatter_is_that_of_weighted_differences():
    X, _, _, A = likelihoods()
    solution = la_sdp(A)
    apart = X[:, None] - X
    Z = np.maximum(solution.blocks, 0)
    scatter, weights = scatters(X, solution)
    np.testing.assert_allclose(scatter, np.einsum("kij,ijp,ijq->kpq", Z, apart, apart) / 2, atol=1e-9)
    np.testing.assert_allclose(weights, solution.weights.sum(axis=0), atol=1e-2)


def test_an_unfinished_solver_still_leaves_covariances_and_tells_of_empty_groups():
    X, _ = iris()
    with pytest.warns(UserWarning, match="1 of 3 groups end without rows"):
        found = ILASDP(3, n_init=1, sdp_max_iter=3, random_state=0).fit(X)
    assert np.linalg.eigvalsh(found.covariances_).min() > 0
    assert not found.converged_
    assert found.n_clusters_ == len(found.covariances_) == found.memberships_.shape[1] == 2
    assert set(found.labels_) == {0, 1}


def test_scatter_of_factors_is_that_of_their_product():
    X, *_ = likelihoods()
    V = np.random.default_rng(0).uniform(size=(2, len(X), 3))
    weights = np.einsum("knr,kr->nk", V, V.sum(axis=1))
    factored = SDPSolution(0.0, weights, V, True, Residuals(0, 0), 0, True, ())
    whole = factored._replace(blocks=factored.matrices(), factored=False)
    for first, second in zip(scatters(X, factored), scatters(X, whole), strict=True):
        np.testing.assert_allclose(first, second)


def test_covariances_by_kind_and_the_rescue_of_a_vanishing_group():
    scatter = np.array([[[8.0, 2.0], [2.0, 4.0]], [[0.5, 0.0], [0.0, 0.5]]])
    weights = np.array([4.0, 0.5])
    full = covariances_from(scatter, weights, "full", 0.0, 1.0)
    np.testing.assert_allclose(full[0], [[2, 0.5], [0.5, 1]])
    np.testing.assert_allclose(full[1], scatter.sum(axis=0) / 4.5)
    np.testing.assert_allclose(covariances_from(scatter, weights, "full", 0.0, 0.1)[1], np.eye(2))
    assert covariances_from(scatter, weights, "diag", 0.1, 0.1)[0].tolist() == [[2.1, 0], [0, 1.1]]
    tied = covariances_from(scatter, weights, "tied", 0.0, 0.1)
    np.testing.assert_allclose(tied[0], tied[1])


def test_exchangeable_blocks_are_rounded_by_their_sum():
    labels = np.repeat([0, 1, 2], [5, 6, 7])
    Z = np.repeat(indicator(labels, 3).sum(axis=0)[None] / 3, 3, axis=0)
    solution = SDPSolution(0.0, Z.sum(axis=2).T, Z, False, Residuals(0, 0), 0, True, ())
    assert hungarian_accuracy(labels, rounded(solution, np.random.RandomState(0))) == 1


def test_objective_does_not_fall():
    history = np.array(fitted_iris().objective_history_)
    assert len(history) > 1
    assert (np.diff(history) >= -1e-3 * np.abs(history[1:])).all()


def test_iris_is_told_apart_by_shape():
    _, y = iris()
    found = fitted_iris()
    assert hungarian_accuracy(y, found.labels_) >= 0.95
    assert found.n_clusters_ == 3
    assert found.n_iter_ == len(found.objective_history_) == len(found.sdp_residuals_)


def test_the_start_of_largest_objective_wins():
    X, _ = iris(each=8)
    alone = ILASDP(3, n_init=1, max_iter=2, random_state=0).fit(X)
    several = ILASDP(3, n_init=3, max_iter=2, random_state=0).fit(X)
    assert several.objectives_[0] == alone.objective_
    assert len(set(several.objectives_)) == 3
    assert several.objective_ == max(several.objectives_) == several.objective_history_[-1]


def test_random_starts_find_the_cross_that_ward_cannot():
    X, y = cross(seed=1, each=30)
    alone = ILASDP(2, n_init=1, solver="low-rank", random_state=1).fit(X)
    several = ILASDP(2, n_init=4, solver="low-rank", random_state=1).fit(X)
    assert hungarian_accuracy(y, alone.labels_) < 0.7
    assert hungarian_accuracy(y, several.labels_) >= 0.9


def test_low_rank_solver_has_no_limit_of_rows():
    rng = np.random.default_rng(0)
    X = np.concatenate([np.array([6, 0]) + rng.normal(size=(1100, 2)), rng.normal(size=(1100, 2)) * [0.2, 3]])
    found = ILASDP(2, n_init=1, solver="low-rank", max_iter=3, random_state=0).fit(X)
    assert hungarian_accuracy(np.repeat([0, 1], 1100), found.labels_) > 0.98


def test_a_linear_map_of_the_rows_changes_no_label():
    X, _ = cross(each=10)
    first = np.arange(len(X)) % 2
    B = np.array([[2.0, 0.3], [-0.5, 0.7]])
    plain, mapped = (ILASDP(2, init=first, n_init=1, reg_covar=0.0, random_state=0).fit(rows) for rows in (X, X @ B))
    assert (plain.labels_ == mapped.labels_).all()


def test_row_order_permutes_labels():
    X, _ = cross(each=10)
    order = np.random.default_rng(0).permutation(len(X))
    first = (X[:, 0] > 0).astype(int)
    plain = ILASDP(2, init=first, n_init=1, random_state=0).fit(X)
    permuted = ILASDP(2, init=first[order], n_init=1, random_state=0).fit(X[order])
    assert (plain.labels_[order] == permuted.labels_).all()


def test_memberships_and_blocks():
    found = fitted_iris()
    np.testing.assert_allclose(found.memberships_.sum(axis=1), 1)
    assert found.memberships_.min() >= 0
    assert (found.memberships_.argmax(axis=1) == found.labels_).all()
    assert found.Z_.shape == (3, 45, 45)
    np.testing.assert_allclose(found.Z_.sum(axis=2).T, found.memberships_, atol=1e-2)
    assert not hasattr(ILASDP(2, n_init=1, max_iter=1, random_state=0).fit(cross(each=6)[0]), "Z_")


def test_predict_and_score_use_the_means_of_the_labels():
    X, _ = iris()
    found = fitted_iris()
    assert (found.predict(X) == found.labels_).mean() > 0.95
    assert found.score(X) == pytest.approx(found.objective_ / len(X), rel=0.05)


@pytest.mark.parametrize("init", ["kmeans", "spectral", "random"])
def test_every_start_partitions(init):
    X, _ = iris(each=8)
    found = ILASDP(3, init=init, n_init=1, max_iter=2, random_state=0).fit(X)
    assert set(found.labels_) == {0, 1, 2}


@pytest.mark.parametrize("kind", ["diag", "tied"])
def test_every_kind_of_covariance_separates_far_groups(kind):
    rng = np.random.default_rng(0)
    X = np.repeat([[0, 0], [9, 0], [0, 9]], 10, axis=0) + rng.normal(size=(30, 2))
    found = ILASDP(3, covariance_type=kind, n_init=1, random_state=0).fit(X)
    assert hungarian_accuracy(np.repeat([0, 1, 2], 10), found.labels_) == 1


def test_one_group_takes_all_rows():
    X, _ = cross(each=10)
    found = ILASDP(1, n_init=1, random_state=0).fit(X)
    assert (found.labels_ == 0).all()
    np.testing.assert_allclose(found.covariances_[0], np.cov(X.T, bias=True), rtol=0.05, atol=0.05)


def test_standardising_undoes_the_scale_of_columns():
    X, _ = cross(each=10)
    scaled = X * [100, 0.01]
    plain, other = (ILASDP(2, standardize=True, n_init=1, random_state=0).fit(rows) for rows in (X, scaled))
    assert (plain.labels_ == other.labels_).all()
    assert (other.predict(scaled) == plain.predict(X)).all()


def test_duplicate_rows_and_constant_columns_are_allowed():
    X, _ = cross(each=8)
    doubled = np.column_stack([np.concatenate([X, X]), np.ones(32)])
    found = ILASDP(2, n_init=1, random_state=0).fit(doubled)
    assert np.isfinite(found.objective_)


@pytest.mark.parametrize("init", ["ward", "kmeans", "spectral", "random"])
def test_fewer_distinct_rows_than_groups_are_refused(init):
    with pytest.raises(ValueError, match="X holds 2 distinct rows, fewer than n_clusters=3"):
        ILASDP(3, init=init, n_init=1).fit(np.repeat([[0.0, 0.0], [1.0, 1.0]], 10, axis=0))


def test_rows_with_more_twins_than_neighbours_start_in_their_own_groups():
    X = np.repeat([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]], 12, axis=0)
    found = ILASDP(3, init="spectral", n_init=1, max_iter=2, random_state=0).fit(X)
    assert hungarian_accuracy(np.repeat([0, 1, 2], 12), found.labels_) == 1


def test_a_constant_column_decides_nothing_when_columns_are_standardised():
    X, _ = cross(each=10)
    constant, otherwise = (np.column_stack([X, np.full(len(X), value)]) for value in (0.1, 0.1001))
    found = ILASDP(2, standardize=True, n_init=1, max_iter=2, random_state=0).fit(constant)
    assert len(set(found.labels_)) == 2
    assert (found.predict(otherwise) == found.predict(constant)).all()


def test_labels_are_ignored():
    X, y = cross(each=8)
    plain, told = (ILASDP(2, n_init=1, max_iter=2, random_state=0).fit(X, labels) for labels in (None, y))
    assert (plain.labels_ == told.labels_).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda X: X[:3], "at least 4 rows"),
        (lambda X: np.where(X == X[3, 1], np.nan, X), "NaN"),
        (lambda X: np.ones_like(X), "are the same"),
    ],
)
def test_bad_rows_are_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        ILASDP(2).fit(spoil(cross()[0]))


def test_singular_covariances_are_refused_without_a_ridge():
    X, _ = cross(each=8)
    with pytest.raises(ValueError, match="covariance of a group of X is singular"):
        ILASDP(2, reg_covar=0.0, n_init=1).fit(np.column_stack([X, X[:, 0]]))
    with pytest.raises(ValueError, match="smallest first group of X has 2 rows in 2 columns"):
        ILASDP(2, init=np.repeat([0, 1], [14, 2]), reg_covar=0.0, n_init=1).fit(X)


@pytest.mark.parametrize("labels", [np.zeros(16, int), np.arange(16) % 3, np.zeros(3, int)])
def test_first_labels_must_be_a_partition(labels):
    with pytest.raises(ValueError, match="init must"):
        ILASDP(2, init=labels).fit(cross(each=8)[0])


def test_cost_is_warned_of_and_then_refused(monkeypatch):
    monkeypatch.setattr(ila_sdp, "WARN_ROWS", 20)
    with pytest.warns(UserWarning, match='Pass solver="low-rank"'):
        ILASDP(2, n_init=1, max_iter=1, sdp_max_iter=10).fit(cross()[0])
    with pytest.raises(ValueError, match="at most 2000 rows"):
        ILASDP(2).fit(np.random.default_rng(0).normal(size=(2001, 2)))


def test_predict_before_fit_is_refused():
    with pytest.raises(NotFittedError, match="fit"):
        ILASDP().predict(cross()[0])

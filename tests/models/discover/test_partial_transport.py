"""Partial transport against a convex solver, POT, the balanced plan, and its own objective."""

import cvxpy
import numpy as np
import ot
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_digits

from models.discover.partial_transport import ppot, sppot
from models.transport import sinkhorn


@pytest.fixture(scope="module")
def log_prob():
    """Log probabilities of 60 digits for 10 prototypes, one digit each, as a clusterer would give them."""
    X = torch.from_numpy(load_digits().data / 16)
    return torch.log_softmax(-(torch.cdist(X[10:70], X[:10]) ** 2) / 4, dim=1)


def test_the_plan_is_that_of_a_convex_solver():
    n, k, rho, epsilon, gamma = 8, 3, 0.4, 0.1, 1.0
    cost = -torch.log_softmax(torch.from_numpy(np.random.default_rng(0).normal(size=(n, k))), dim=1)
    plan = cvxpy.Variable((n, k), nonneg=True)
    slack = 1 / n - cvxpy.sum(plan, axis=1)
    sizes = cvxpy.sum(plan, axis=0)
    entropy = cvxpy.sum(cvxpy.entr(plan)) + cvxpy.sum(cvxpy.entr(slack))
    value = cvxpy.sum(cvxpy.multiply(plan, cost.numpy())) + gamma * cvxpy.sum(cvxpy.kl_div(sizes, np.full(k, rho / k)))
    cvxpy.Problem(cvxpy.Minimize(value - epsilon * entropy), [slack >= 0, cvxpy.sum(plan) == rho]).solve("CLARABEL")
    found, _ = ppot(cost, rho, epsilon=epsilon, gamma=gamma, tol=1e-12)
    assert np.abs(found.numpy() - plan.value).max() <= 1e-5


@pytest.mark.parametrize("rho", [0.1, 0.5, 1.0])
def test_the_share_asked_for_is_placed_and_no_row_gives_more_than_it_has(log_prob, rho):
    plan, info = ppot(-log_prob, rho)
    n = len(log_prob)
    assert plan.dtype == torch.float64
    assert float(plan.sum()) == pytest.approx(rho, abs=1e-6)
    assert float(plan.sum(1).max()) <= 1 / n + 1e-12
    torch.testing.assert_close(plan.sum(1) + info["slack"], torch.full((n,), 1 / n, dtype=torch.float64))


def test_a_small_share_takes_few_rounds(log_prob):
    """Updates alone need hundreds: how much is placed would move by a hundredth of what is missing each round."""
    assert ppot(-log_prob, 0.1)[1]["n_iter"] < 60


def test_rows_that_fit_best_are_placed_first(log_prob):
    plan, _ = ppot(-log_prob, 0.3)
    placed = plan.sum(1)
    certain = log_prob.amax(1).argsort(descending=True)
    assert placed[certain[:15]].mean() > 2 * placed[certain[-15:]].mean()


def test_exact_sizes_and_all_mass_give_the_balanced_plan(log_prob):
    found, _ = ppot(-log_prob, 1 - 1e-9, gamma=1e6, max_iter=20_000, tol=1e-10)
    balanced = sinkhorn(-log_prob, epsilon=0.1, iterations=20_000, tolerance=1e-10).plan
    torch.testing.assert_close(found, balanced, atol=1e-7, rtol=0)


def test_all_mass_gives_the_unbalanced_plan_of_pot(log_prob):
    """POT penalises ``Q log Q - Q + 1``, which differs by a constant once all mass is placed."""
    n, k = log_prob.shape
    found, _ = ppot(-log_prob, 1.0, gamma=1.0, tol=1e-10)
    masses = np.full(n, 1 / n), np.full(k, 1 / k)
    weights, settings = (float("inf"), 1.0), {"reg_type": "entropy", "numItermax": 5000, "stopThr": 1e-12}
    with pytest.warns(UserWarning, match="overwritten"):
        reference = ot.unbalanced.sinkhorn_unbalanced(*masses, -log_prob.numpy(), 0.1, weights, **settings)
    np.testing.assert_allclose(found.numpy(), reference, atol=1e-6)


def test_a_warm_start_gives_the_same_plan_in_fewer_rounds(log_prob):
    cold, info = ppot(-log_prob, 0.5, tol=1e-9)
    warm, again = ppot(-log_prob, 0.5, tol=1e-9, g_init=info["g"])
    torch.testing.assert_close(warm, cold, atol=1e-9, rtol=0)
    assert again["n_iter"] < info["n_iter"] / 4


def test_huge_costs_neither_underflow_nor_lose_mass(log_prob):
    plan, _ = ppot(-30 * log_prob - 500, 0.5, max_iter=20_000)
    assert torch.isfinite(plan).all()
    assert float(plan.sum()) == pytest.approx(0.5, abs=1e-4)


def test_a_prior_goes_to_the_clusters_by_their_predicted_size(log_prob):
    prior = np.linspace(1, 4, 10)
    sizes = ppot(-log_prob, 0.9, gamma=1e4, prior=prior / prior.sum(), max_iter=5000)[0].sum(0)
    order = log_prob.exp().sum(0).argsort(descending=True)
    np.testing.assert_allclose(sizes[order], 0.9 * np.sort(prior)[::-1] / prior.sum(), rtol=1e-3)


def test_without_weight_the_similarity_changes_nothing(log_prob):
    similarity = torch.rand(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plan, info = sppot(log_prob, similarity, 0.5, lam=0.0)
    torch.testing.assert_close(plan, ppot(-log_prob, 0.5)[0], atol=0, rtol=0)
    assert len(info["objective"]) == 1


def test_the_objective_never_rises_for_a_positive_similarity(log_prob):
    roots = torch.rand(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, info = sppot(log_prob, roots @ roots.T, 0.5, lam=20.0, mm_tol=1e-10, tol=1e-12, max_iter=5000)
    values = np.array(info["objective"])
    assert len(values) > 3
    assert np.diff(values).max() <= 1e-8


def test_a_sparse_similarity_does_as_a_dense_one(log_prob):
    similarity = sparse.random_array((60, 60), density=0.1, rng=0, format="csr")
    first, _ = sppot(log_prob, similarity, 0.5, lam=30.0)
    second, _ = sppot(log_prob, torch.from_numpy(similarity.toarray()), 0.5, lam=30.0)
    torch.testing.assert_close(first, second)


def test_neighbours_are_drawn_together(log_prob):
    y = load_digits().target
    same = torch.from_numpy((y[10:70, None] == y[None, 10:70]).astype(float)).fill_diagonal_(0)

    def agreement(plan):
        labels = plan.argmax(1)
        return float(((labels[:, None] == labels[None]) * same).sum() / same.sum())

    assert agreement(sppot(log_prob, same, 0.9, lam=40.0)[0]) > agreement(ppot(-log_prob, 0.9)[0]) + 0.05


@pytest.mark.parametrize("rho", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(log_prob, rho):
    with pytest.raises(ValueError, match=r"rho must lie in \(0, 1\]"):
        ppot(-log_prob, rho)


def test_malformed_problems_are_refused(log_prob):
    with pytest.raises(ValueError, match="finite"):
        ppot(torch.full((3, 2), torch.nan), 0.5)
    for shape in ((0, 2), (3, 0)):
        with pytest.raises(ValueError, match=r"shaped \(n, k\) with rows and columns"):
            ppot(torch.zeros(shape), 0.5)
    for weights in ({"epsilon": 0.0}, {"gamma": -1.0}, {"epsilon": float("nan")}):
        with pytest.raises(ValueError, match="epsilon and gamma must be positive"):
            ppot(-log_prob, 0.5, **weights)
    for lam in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="lam must be at least 0"):
            sppot(log_prob, torch.zeros(60, 60), 0.5, lam=lam)
    with pytest.raises(ValueError, match=r"g_init must be shaped \(11,\)"):
        ppot(-log_prob, 0.5, g_init=torch.zeros(10))
    with pytest.raises(ValueError, match="10 positive shares"):
        ppot(-log_prob, 0.5, prior=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"similarity must be shaped \(60, 60\)"):
        sppot(log_prob, torch.zeros(60, 59), 0.5)
    with pytest.raises(ValueError, match="similarity contains NaN"):
        sppot(log_prob, torch.full((60, 60), torch.nan), 0.5)

"""Entropic and exact transport against POT, scipy and cases by hand."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits

from models.transport import earth_mover, sinkhorn, transport_cost


@pytest.fixture(scope="module")
def digits_cost():
    """Squared distances between 12 zeros and 9 ones of the digits, scaled to at most 1."""
    X, y = load_digits(return_X_y=True)
    cost = ot.dist(X[y == 0][:12], X[y == 1][:9])
    return torch.from_numpy(cost / cost.max())


@pytest.fixture(scope="module")
def masses():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.dirichlet(np.ones(12))), torch.from_numpy(rng.dirichlet(np.ones(9)))


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.01])
def test_the_plan_is_that_of_pot(digits_cost, masses, epsilon):
    a, b = masses
    found = sinkhorn(digits_cost, a, b, epsilon, iterations=20_000, tolerance=1e-10)
    reference = ot.sinkhorn(
        a.numpy(), b.numpy(), digits_cost.numpy(), epsilon, "sinkhorn_log", numItermax=50_000, stopThr=1e-12
    )
    np.testing.assert_allclose(found.plan.numpy(), reference, atol=1e-7)
    assert found.error < 1e-10


def test_both_marginals_hold_and_the_potentials_give_the_plan(digits_cost, masses):
    a, b = masses
    found = sinkhorn(digits_cost, a, b, 0.05, iterations=5000, tolerance=1e-12)
    torch.testing.assert_close(found.plan.sum(1), a)
    torch.testing.assert_close(found.plan.sum(0), b)
    torch.testing.assert_close(found.plan, torch.exp((found.f[:, None] + found.g[None] - digits_cost) / 0.05))


def test_a_small_epsilon_gives_the_assignment_and_its_cost(digits_cost):
    square = digits_cost[:9]
    rows, columns = linear_sum_assignment(square.numpy())
    found = sinkhorn(square, epsilon=1e-3, iterations=20_000, tolerance=1e-8)
    assert (found.plan.argmax(1).numpy() == columns).all()
    assert float(transport_cost(square, found)) == pytest.approx(square.numpy()[rows, columns].mean(), rel=1e-3)


def test_a_large_epsilon_gives_independence(digits_cost, masses):
    a, b = masses
    torch.testing.assert_close(sinkhorn(digits_cost, a, b, 1e5).plan, a[:, None] * b[None], atol=1e-6, rtol=0)


def test_a_batch_is_solved_as_its_problems(digits_cost, masses):
    a, b = masses
    costs = torch.stack([digits_cost, digits_cost.flip(0), digits_cost**2])
    rows = torch.stack([a, a.flip(0), torch.full_like(a, 1 / 12)])
    together = sinkhorn(costs, rows, b, 0.05, iterations=3000, tolerance=1e-9)
    for cost, mass, plan in zip(costs, rows, together.plan, strict=True):
        alone = sinkhorn(cost, mass, b, 0.05, iterations=3000, tolerance=1e-9).plan
        torch.testing.assert_close(plan, alone, atol=1e-8, rtol=0)
    torch.testing.assert_close(sinkhorn(costs[:2, None], rows[:2, None], b, 0.05).plan.shape, (2, 1, 12, 9))


def test_single_precision_and_extreme_costs_stay_finite():
    cost = torch.tensor([[0.0, 1e4], [1e4, 0.0]])
    found = sinkhorn(cost, epsilon=1e-3)
    assert torch.equal(found.plan, torch.eye(2) / 2)


def test_rows_without_mass_send_nothing(digits_cost, masses):
    a = torch.cat([torch.zeros(2), torch.full((10,), 0.1)]).double()
    found = sinkhorn(digits_cost, a, masses[1], 0.05, iterations=5000, tolerance=1e-10)
    assert torch.equal(found.plan[:2], torch.zeros(2, 9).double())
    torch.testing.assert_close(found.plan.sum(0), masses[1])
    relaxed = sinkhorn(digits_cost, a, masses[1], 0.05, relaxation=1.0)
    assert torch.isfinite(relaxed.plan).all()


def test_gradients_of_the_cost_are_the_plan():
    """At convergence d(regularised value)/dC = P (Peyre & Cuturi, 2019, proposition 4.6)."""
    cost = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    found = sinkhorn(cost, epsilon=0.2, iterations=500, tolerance=0)
    value = found.f.mean() + found.g.mean()  # the dual at uniform marginals, up to a constant
    (gradient,) = torch.autograd.grad(value, cost)
    torch.testing.assert_close(gradient, found.plan.detach(), atol=1e-8, rtol=1e-6)


def test_a_fixed_number_of_rounds_is_run_when_there_is_no_tolerance(digits_cost):
    found = sinkhorn(digits_cost, epsilon=0.01, iterations=3, tolerance=0)
    assert found.iterations == 3
    torch.testing.assert_close(found.plan.sum(0), torch.full((9,), 1 / 9).double())  # columns come last
    assert found.error == pytest.approx(float((found.plan.sum(1) - 1 / 12).abs().sum()))


def test_rounds_end_at_the_tolerance_or_say_how_far_they_got(digits_cost):
    done = sinkhorn(digits_cost, epsilon=0.1, tolerance=1e-4)
    assert done.iterations < 1000
    assert done.error < 1e-4
    cut = sinkhorn(digits_cost, epsilon=0.001, iterations=2, tolerance=1e-9)
    assert (cut.iterations, cut.error > 1e-9) == (2, True)


@pytest.mark.filterwarnings("ignore:If reg_type = entropy")
def test_relaxed_marginals_are_those_of_pot(digits_cost, masses):
    a, b = masses
    found = sinkhorn(digits_cost, a, 2 * b, 0.1, iterations=5000, tolerance=1e-12, relaxation=0.5)
    reference = ot.sinkhorn_unbalanced(
        a.numpy(), 2 * b.numpy(), digits_cost.numpy(), 0.1, 0.5, reg_type="entropy", numItermax=5000, stopThr=1e-14
    )
    np.testing.assert_allclose(found.plan.numpy(), reference, atol=1e-6)


def test_one_relaxed_side_keeps_the_other_exact(digits_cost, masses):
    a, b = masses
    found = sinkhorn(digits_cost, a, b, 0.1, iterations=5000, tolerance=1e-10, relaxation=(math.inf, 0.05))
    torch.testing.assert_close(found.plan.sum(1), a)
    assert (found.plan.sum(0) - b).abs().sum() > 0.01
    heavy = sinkhorn(digits_cost, a, b, 0.1, iterations=5000, tolerance=1e-10, relaxation=(math.inf, 1e6))
    torch.testing.assert_close(heavy.plan.sum(0), b, atol=1e-5, rtol=0)


def test_the_exact_plan_is_the_cheapest(digits_cost, masses):
    a, b = masses
    plan, value = earth_mover(digits_cost, a, b)
    assert float(value) == pytest.approx(float(ot.emd2(a.numpy(), b.numpy(), digits_cost.numpy())))
    assert float((plan * digits_cost).sum()) == pytest.approx(float(value))
    torch.testing.assert_close(plan.sum(1), a)
    entropic = sinkhorn(digits_cost, a, b, 0.002, iterations=20_000)
    assert float(value) <= float(transport_cost(digits_cost, entropic)) <= float(value) * 1.02


def test_the_exact_plan_keeps_dtype_and_inputs(digits_cost):
    cost = digits_cost.float()
    before = cost.clone()
    plan, value = earth_mover(cost)
    assert plan.dtype == value.dtype == torch.float32
    assert torch.equal(cost, before)


@pytest.mark.parametrize("solve", [sinkhorn, earth_mover])
@pytest.mark.parametrize(
    ("cost", "a", "message"),
    [
        (torch.zeros(3), None, r"cost must be floats shaped \(..., n, m\), got torch.float32 shaped \(3,\)"),
        (torch.zeros(0, 3), None, r"shaped \(0, 3\)"),
        (torch.zeros(2, 2, dtype=torch.long), None, "cost must be floats"),
        (torch.tensor([[0.0, math.nan], [0.0, 0.0]]), None, "cost contains NaN"),
        (torch.zeros(2, 2), torch.ones(3) / 3, r"a must be shaped \(2,\) to match cost, got \(3,\)"),
        (torch.zeros(2, 2), torch.tensor([1.5, -0.5]), "a must hold finite masses of at least 0"),
        (torch.zeros(2, 2), torch.zeros(2), "not all 0"),
        (torch.zeros(2, 2), torch.ones(2), "equal total mass, got 2 and 1"),
    ],
)
def test_bad_problems_are_refused(solve, cost, a, message):
    if solve is earth_mover and cost.ndim != 2:
        message = "one problem shaped"
    with pytest.raises(ValueError, match=message):
        solve(cost, a)


@pytest.mark.parametrize("settings", [{"epsilon": 0.0}, {"epsilon": -1.0}, {"relaxation": 0.0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="epsilon and relaxation must be positive"):
        sinkhorn(torch.zeros(2, 2), **settings)

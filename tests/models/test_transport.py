"""Entropic and exact transport against POT, scipy and cases by hand."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits

from models.transport import doubly_stochastic, earth_mover, sinkhorn, stabilised_scaling, transport_cost


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


@pytest.mark.parametrize(("epsilon", "weight"), [(0.05, 0.5), (0.01, 0.1), (0.05, math.inf)])
def test_stabilised_scaling_finds_the_plan_of_sinkhorn(digits_cost, masses, epsilon, weight):
    b, rows = masses[1], torch.full((12,), 1 / 12, dtype=torch.float64)
    found = stabilised_scaling(digits_cost, b, torch.full((9,), weight), epsilon, 20_000, 1e-12)
    reference = sinkhorn(digits_cost, rows, b, epsilon, 20_000, 1e-12, (math.inf, weight))
    torch.testing.assert_close(found.plan, reference.plan, atol=1e-9, rtol=1e-6)
    torch.testing.assert_close(found.plan.sum(1), rows)


def test_stabilised_scaling_survives_costs_far_beyond_the_range_of_a_double(digits_cost, masses):
    found = stabilised_scaling(1000 * digits_cost - 400, masses[1], torch.full((9,), math.inf), 0.05, 100_000, 1e-6)
    exact, _ = earth_mover(digits_cost, b=masses[1])
    assert torch.isfinite(found.plan).all()
    assert float((digits_cost * found.plan).sum()) == pytest.approx(float((digits_cost * exact).sum()), rel=1e-3)


def test_columns_are_relaxed_one_by_one(digits_cost, masses):
    weights = torch.full((9,), 0.1)
    weights[3] = math.inf
    sizes = stabilised_scaling(digits_cost, masses[1], weights, 0.05, 5000, 1e-12).plan.sum(0)
    assert float(sizes[3]) == pytest.approx(float(masses[1][3]), abs=1e-9)
    assert float((sizes - masses[1]).abs().max()) > 1e-3


def test_scaling_from_the_solution_takes_a_round(digits_cost, masses):
    weights = torch.full((9,), 0.5)
    first = stabilised_scaling(digits_cost, masses[1], weights, 0.05, 5000, 1e-10)
    again = stabilised_scaling(digits_cost, masses[1], weights, 0.05, 5000, 1e-9, g=first.g)
    assert first.iterations > 5
    assert again.iterations <= 2
    torch.testing.assert_close(again.plan, first.plan)


# ---- doubly stochastic scaling ----------------------------------------------------------------------------


def grouped_scores(groups=3, each=8, noise=0.3):
    """Cosines of unit rows in clear groups."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.eye(groups, 6).double().repeat_interleave(each, 0)
    rows = torch.nn.functional.normalize(rows + noise * torch.randn(rows.shape, generator=generator).double(), dim=1)
    return rows @ rows.T


@pytest.mark.parametrize("epsilon", [1.0, 0.2, 0.1])
def test_doubly_stochastic_is_the_limit_of_alternating_normalisation(epsilon):
    scores = grouped_scores()
    plan = doubly_stochastic(scores, epsilon, tolerance=1e-12)
    one = torch.ones(24).double()
    torch.testing.assert_close(plan.sum(0), one, atol=1e-11, rtol=0)
    assert torch.equal(plan, plan.T)
    alternated = sinkhorn(-scores, one, one, epsilon, iterations=50_000, tolerance=1e-12).plan
    torch.testing.assert_close(plan, alternated, atol=1e-9, rtol=0)


def test_single_precision_sums_stay_within_a_hundred_thousandth():
    plan = doubly_stochastic(grouped_scores().float(), 0.1)
    torch.testing.assert_close(plan.sum(1), torch.ones(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(plan.sum(0), torch.ones(24), atol=1e-5, rtol=0)


def test_the_error_halves_each_round_even_for_clear_groups():
    scores = grouped_scores(noise=0.01)
    errors = [
        float((doubly_stochastic(scores, 0.1, iterations=rounds, tolerance=0).sum(1).log()).abs().max())
        for rounds in range(6, 16)
    ]
    assert (np.divide(errors[1:], errors[:-1]) <= 0.51).all()


def test_doubly_stochastic_gradients_are_those_of_the_rounds():
    rows = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_()

    def plan(rows):
        return doubly_stochastic(rows @ rows.T, 0.3, iterations=200, tolerance=0)

    assert torch.autograd.gradcheck(plan, (rows,))


def test_a_batch_is_scaled_as_its_matrices():
    scores = torch.stack([grouped_scores(), grouped_scores(noise=0.6)]).requires_grad_()
    weights = torch.rand(scores.shape, generator=torch.Generator().manual_seed(2)).double()
    together = doubly_stochastic(scores, 0.2, iterations=80, tolerance=0)
    (gradient,) = torch.autograd.grad((together * weights).sum(), scores)
    for index in range(2):
        alone = scores[index].detach().requires_grad_()
        plan = doubly_stochastic(alone, 0.2, iterations=80, tolerance=0)
        torch.testing.assert_close(plan, together[index])
        torch.testing.assert_close(torch.autograd.grad((plan * weights[index]).sum(), alone)[0], gradient[index])


@pytest.mark.parametrize(
    ("scores", "epsilon", "message"),
    [
        (torch.zeros(2, 3), 1.0, r"shaped \(\.\.\., n, n\), got torch.float32 shaped \(2, 3\)"),
        (torch.zeros(2, 2, dtype=torch.long), 1.0, "scores must be floats"),
        (torch.tensor([[0.0, math.nan], [math.nan, 0.0]]), 1.0, "scores contains NaN"),
        (torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 1.0, "symmetric, but entries mirrored differ by up to 1"),
        (torch.zeros(2, 2), 0.0, "epsilon must be positive, got 0"),
    ],
)
def test_scores_that_can_not_be_scaled_are_refused(scores, epsilon, message):
    with pytest.raises(ValueError, match=message):
        doubly_stochastic(scores, epsilon)

"""Optimal transport: log-domain Sinkhorn in torch (batched, differentiable), and the exact problem on POT.

Entropic transport solves ``min_P <P, C> + epsilon sum P (log P - 1)`` with ``P 1 = a`` and ``P^T 1 = b``
(Cuturi, 2013, eq. 2). Its plan is ``P_ij = exp((f_i + g_j - C_ij) / epsilon)``; :func:`sinkhorn` alternates the two
updates of the potentials f and g (Peyre & Cuturi, 2019, section 4.4), which is stable for any epsilon.

References
----------
M. Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013.
G. Peyre and M. Cuturi, "Computational Optimal Transport", 2019, sections 4.2-4.4 and 10.2.
L. Chizat, G. Peyre, B. Schmitzer and F.-X. Vialard, "Scaling Algorithms for Unbalanced Optimal Transport Problems",
Mathematics of Computation 87, 2018.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Transport(NamedTuple):
    """What :func:`sinkhorn` found.

    Attributes
    ----------
    plan : Tensor, (..., n, m)
        The mass moved from each row to each column.
    f, g : Tensor, (..., n) and (..., m)
        Potentials, in units of the cost.
    iterations : int
        Rounds run; as many as were allowed if the tolerance was not reached.
    error : float
        Largest L1 change of the row sums against `a` over the batch (for relaxed marginals: largest change
        of a potential in the last round).
    """

    plan: Tensor
    f: Tensor
    g: Tensor
    iterations: int
    error: float


def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    epsilon: float = 0.05,
    iterations: int = 1000,
    tolerance: float = 1e-6,
    relaxation: float | tuple[float, float] = math.inf,
) -> Transport:
    """Entropic optimal transport, one problem or a batch of them.

    Parameters
    ----------
    cost : Tensor, (..., n, m)
        Finite costs. Gradients flow through all rounds.
    a, b : Tensor, (..., n) and (..., m), optional
        Non-negative marginals of equal total mass (each problem its own); uniform of mass one by default.
    epsilon : float
        Strength of the entropy, in units of the cost.
    iterations : int
        The most rounds (updates of both potentials).
    tolerance : float
        Stop when the row sums differ from `a` by less than this in L1 for every problem; 0 runs all rounds.
        Not reaching it is no error: look at ``error``. A fixed few rounds, as SwAV runs, is ``tolerance=0``.
    relaxation : float or pair of float
        Weight of the Kullback-Leibler penalty that replaces the exact marginal of the rows and of the columns
        (unbalanced transport, Chizat et al., 2018); ``math.inf`` keeps the marginal exact. With both finite
        the masses of `a` and `b` may differ.

    Raises
    ------
    ValueError
        For shapes that do not fit, costs that are not finite, negative, empty or unequal masses, or a
        non-positive `epsilon` or `relaxation`.

    Examples
    --------
    >>> import torch
    >>> plan = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.05).plan
    >>> plan.round(decimals=3).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    row_weight, column_weight = relaxation if isinstance(relaxation, tuple) else (relaxation, relaxation)
    if min(row_weight, column_weight, epsilon) <= 0:
        raise ValueError(f"epsilon and relaxation must be positive, got {epsilon} and {relaxation}.")
    a, b = _marginals(cost, a, b, balanced=math.isinf(row_weight) or math.isinf(column_weight))
    log_a, log_b = a.log(), b.log()
    row_power = 1.0 if math.isinf(row_weight) else row_weight / (row_weight + epsilon)
    column_power = 1.0 if math.isinf(column_weight) else column_weight / (column_weight + epsilon)
    exact_rows = math.isinf(row_weight)

    scores = -cost / epsilon
    f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
    error, rounds = math.inf, 0
    while rounds < iterations and (tolerance == 0 or error >= tolerance):
        before = f
        f = row_power * (log_a - _log_sum(scores + g.unsqueeze(-2), -1))
        g = column_power * (log_b - _log_sum(scores + f.unsqueeze(-1), -2))
        rounds += 1
        if tolerance > 0:
            with torch.no_grad():
                error = _row_error(scores, f, g, a) if exact_rows else _largest_change(f, before) * epsilon
    plan = torch.exp(scores + f.unsqueeze(-1) + g.unsqueeze(-2))
    if tolerance == 0 and exact_rows:
        error = float((plan.detach().sum(-1) - a).abs().sum(-1).max())
    return Transport(plan, f * epsilon, g * epsilon, rounds, error)


def _marginals(cost: Tensor, a: Tensor | None, b: Tensor | None, balanced: bool) -> tuple[Tensor, Tensor]:
    if cost.ndim < 2 or 0 in cost.shape or not cost.is_floating_point():
        raise ValueError(f"cost must be floats shaped (..., n, m), got {cost.dtype} shaped {tuple(cost.shape)}.")
    if not torch.isfinite(cost).all():
        raise ValueError("cost contains NaN or infinite entries. Use a large finite cost to forbid a pair.")
    filled = []
    for name, given, shape in (("a", a, cost.shape[:-1]), ("b", b, (*cost.shape[:-2], cost.shape[-1]))):
        mass = torch.full(shape, 1 / shape[-1], dtype=cost.dtype, device=cost.device) if given is None else given
        if mass.shape[-1:] != shape[-1:] or mass.ndim > len(shape):
            raise ValueError(f"{name} must be shaped {tuple(shape)} to match cost, got {tuple(mass.shape)}.")
        mass = mass.to(cost).expand(shape)
        if not torch.isfinite(mass).all() or (mass < 0).any() or (mass.sum(-1) <= 0).any():
            raise ValueError(f"{name} must hold finite masses of at least 0 and not all 0.")
        filled.append(mass)
    total_a, total_b = (mass.sum(-1) for mass in filled)
    if balanced and not torch.allclose(total_a, total_b, rtol=1e-4):
        raise ValueError(
            f"a and b must have equal total mass, got {total_a.flatten()[0]:.6g} and {total_b.flatten()[0]:.6g}. "
            "Normalise them, or relax both marginals."
        )
    return filled[0], filled[1]


def _log_sum(values: Tensor, dim: int) -> Tensor:
    """Logarithm of the sum of exponentials; a row or column without mass gets a finite value, not -inf."""
    return torch.logsumexp(values, dim).clamp_min(torch.finfo(values.dtype).min / 4)


def _row_error(scores: Tensor, f: Tensor, g: Tensor, a: Tensor) -> float:
    rows = torch.exp(_log_sum(scores + g.unsqueeze(-2), -1) + f)
    return float((rows - a).abs().sum(-1).max())


def _largest_change(new: Tensor, old: Tensor) -> float:
    finite = torch.isfinite(new) & torch.isfinite(old)
    return float((new - old)[finite].abs().max()) if finite.any() else 0.0


SCALING_ROUNDS = 100
"""Rounds on one kernel before the potentials are taken into it."""
SCALING_RANGE = 1e50
"""Factors beyond this, or below its inverse, are taken into the kernel at once."""


@torch.no_grad()
def stabilised_scaling(
    cost: Tensor,
    b: Tensor,
    column_relaxation: Tensor,
    epsilon: float = 0.05,
    iterations: int = 1000,
    tolerance: float = 1e-6,
    g: Tensor | None = None,
) -> Transport:
    """Entropic transport of n rows of mass 1/n, where each column's marginal has its own weight.

    Many times faster than :func:`sinkhorn` on one problem without gradients: rounds are two products with the kernel
    ``exp((f_i + g_j - C_ij) / epsilon)``, whose potentials are renewed in the log domain now and then (Schmitzer,
    2019, algorithm 2). The last update is that of the rows, whose sums are exact.

    Parameters
    ----------
    cost : Tensor, (n, m)
        Finite; of any sign. Solved in float64.
    b : Tensor, (m,)
        Positive masses that sum to 1.
    column_relaxation : Tensor, (m,)
        Weight of the Kullback-Leibler penalty on each column's mass, the same for all that are relaxed; infinite
        where the mass is exact.
    epsilon, iterations, tolerance
        As in :func:`sinkhorn`.
    g : Tensor, (m,), optional
        Potentials of the columns to start from: those of a similar problem save rounds.

    References
    ----------
    T. Sejourne, F.-X. Vialard and G. Peyre, "Faster Unbalanced Optimal Transport: Translation Invariant Sinkhorn and
    1-D Frank-Wolfe", AISTATS 2022: the shift of the potentials in each round.
    B. Schmitzer, "Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport Problems", SIAM Journal on
    Scientific Computing 41(3), 2019.

    Examples
    --------
    >>> import torch
    >>> cost, half = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0.5, 0.5])
    >>> sizes = [stabilised_scaling(cost, half, torch.full((2,), weight)).plan.sum(0) for weight in (0.1, 10.0)]
    >>> [[round(float(size), 2) for size in pair] for pair in sizes]
    [[1.0, 0.0], [0.52, 0.48]]
    """
    scores = -cost.double() / epsilon
    n, log_b, weights = len(scores), b.to(scores).log(), column_relaxation.to(scores) / epsilon
    power = torch.where(weights.isinf(), 1.0, weights / (weights + 1))
    g = torch.zeros_like(log_b) if g is None else g.to(scores) / epsilon
    f = -math.log(n) - torch.logsumexp(scores + g, 1)
    error, rounds = math.inf, 0
    while rounds < iterations and error >= tolerance:
        before = f
        g = power * (log_b - torch.logsumexp(scores + f[:, None], 0))
        g = g + _best_shift(g, log_b, weights)
        f = -math.log(n) - torch.logsumexp(scores + g, 1)
        error, rounds = float((torch.exp(before - f) - 1).abs().mean()), rounds + 1
        kernel = torch.exp(scores + f[:, None] + g)
        target, u, v = torch.exp(power * log_b + (power - 1) * g), torch.ones_like(f), torch.ones_like(g)
        for _ in range(min(SCALING_ROUNDS, iterations - rounds)):
            if error < tolerance:
                break
            new_v = target / (u @ kernel) ** power
            new_v = new_v * torch.exp(_best_shift(g + new_v.log(), log_b, weights))
            row_sums = kernel @ new_v
            new_u = 1 / (n * row_sums)
            extreme = torch.stack([new_v.max(), 1 / new_v.min(), new_u.max(), 1 / new_u.min()]).max()
            if not extreme < SCALING_RANGE:
                break
            error, rounds = float((u * row_sums * n - 1).abs().mean()), rounds + 1
            u, v = new_u, new_v
        f, g = f + u.log(), g + v.log()
    return Transport(torch.exp(scores + f[:, None] + g), f * epsilon, g * epsilon, rounds, error)


def _best_shift(g: Tensor, log_b: Tensor, weights: Tensor) -> Tensor:
    """The c for which (f - c, g + c) has the best dual value: the plan is the same, the relaxed columns gain.

    Without it this shift converges at the pace of the mass of the relaxed columns (Sejourne, Vialard and Peyre, 2022);
    closed form where all relaxed columns have one weight.
    """
    relaxed = ~weights.isinf()
    if not relaxed.any():
        return g.new_zeros(())
    weight, mass = weights[relaxed].max(), log_b[relaxed]
    return weight * (torch.logsumexp(mass - g[relaxed] / weight, 0) - torch.logsumexp(mass, 0))


def transport_cost(cost: Tensor, transport: Transport) -> Tensor:
    """<P, C> of each problem, (...)."""
    return (cost * transport.plan).sum(dim=(-2, -1))


def earth_mover(cost: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Exact optimal transport of one problem by the network simplex of POT.

    Parameters
    ----------
    cost : Tensor, (n, m)
    a, b : Tensor, (n,) and (m,), optional
        Marginals of equal mass; uniform by default.

    Returns
    -------
    plan : Tensor, (n, m)
    value : Tensor, ()
        Its cost, in the dtype of `cost`; no gradient.

    Raises
    ------
    ValueError
        As :func:`sinkhorn`, or for a batch of problems.
    RuntimeError
        If the simplex does not finish.

    Examples
    --------
    >>> import torch
    >>> plan, value = earth_mover(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    >>> float(value)
    0.0
    """
    plan, log = _network_simplex(cost, a, b)
    return torch.from_numpy(plan).to(cost), cost.new_tensor(log["cost"])


def earth_mover_potentials(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`earth_mover`, and instead of the plan what more mass on a row or column adds to the cost.

    Parameters
    ----------
    cost : Tensor, (n, m)
    a, b : Tensor, (n,) and (m,), optional
        Marginals of equal mass; uniform by default. Rows and columns without mass have no potential: leave them out.

    Returns
    -------
    value : Tensor, ()
    f, g : Tensor, (n,) and (m,)
        Dual potentials, unique up to a constant where the plan is not degenerate: ``f_i + g_j <= C_ij``.

    Examples
    --------
    >>> import torch
    >>> value, f, g = earth_mover_potentials(torch.tensor([[0.0], [1.0]]), torch.tensor([0.25, 0.75]))
    >>> float(value), float(f[1] - f[0])
    (0.75, 1.0)
    """
    _, log = _network_simplex(cost, a, b)
    f, g = (torch.from_numpy(log[name]).to(cost) for name in ("u", "v"))
    return cost.new_tensor(log["cost"]), f, g


def _network_simplex(cost: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Any, dict[str, Any]]:
    import ot

    if cost.ndim != 2:
        raise ValueError(f"earth_mover solves one problem shaped (n, m), got {tuple(cost.shape)}.")
    mass_a, mass_b = _marginals(cost.detach(), a, b, balanced=True)
    rows, columns = (mass.detach().cpu().double().numpy().copy() for mass in (mass_a, mass_b))
    columns *= rows.sum() / columns.sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reported below, as an error
        plan, log = ot.emd(rows, columns, cost.detach().cpu().double().numpy().copy(), numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"The exact transport was not solved: {log['warning']}")
    return plan, log


def doubly_stochastic(scores: Tensor, epsilon: float = 1.0, iterations: int = 50, tolerance: float = 5e-6) -> Tensor:
    """The doubly stochastic P with the largest <P, scores> + epsilon * entropy(P), for symmetric scores.

    It is ``exp(scores_ij / epsilon + f_i + f_j)`` with all row and column sums 1, so it stays symmetric. Each round
    moves f half the way to rows that sum to 1 (Knight, Ruiz and Ucar, 2014). For scores that are inner products the
    error at least halves in each round, however well the rows are grouped; alternating rows and columns would slow
    down as the groups get clear. Gradients are those of the fixed point: one linear system, not the rounds.

    Parameters
    ----------
    scores : Tensor, (..., n, n)
        Symmetric and finite.
    epsilon : float
        In units of the scores: small nears a permutation, large the uniform matrix.
    iterations : int
        The most rounds.
    tolerance : float
        Stop when no row sum is further than this from 1.

    Returns
    -------
    Tensor, (..., n, n)

    Raises
    ------
    ValueError
        For scores that are not square, symmetric and finite, or a non-positive `epsilon`.

    References
    ----------
    P. A. Knight, D. Ruiz and B. Ucar, "A Symmetry Preserving Algorithm for Matrix Scaling", SIAM Journal on Matrix
    Analysis and Applications 35, 2014.

    Examples
    --------
    >>> import torch
    >>> doubly_stochastic(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    tensor([[0.7311, 0.2689],
            [0.2689, 0.7311]])
    """
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2] or not scores.is_floating_point():
        raise ValueError(f"scores must be floats shaped (..., n, n), got {scores.dtype} shaped {tuple(scores.shape)}.")
    if not torch.isfinite(scores).all():
        raise ValueError("scores contains NaN or infinite entries.")
    if epsilon <= 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}.")
    gap = float((scores - scores.mT).detach().abs().max()) if scores.numel() else 0.0
    if gap > 1e-4 * max(1.0, float(scores.detach().abs().max())):
        raise ValueError(f"scores must be symmetric, but entries mirrored differ by up to {gap:.3g}.")
    return _SymmetricScaling.apply((scores + scores.mT) / (2 * epsilon), iterations, tolerance)


class _SymmetricScaling(torch.autograd.Function):
    """exp(S_ij + f_i + f_j) with rows that sum to 1; the gradient follows from (I + P) df = -(P o dS) 1."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, iterations: int, tolerance: float) -> Tensor:
        f = torch.zeros_like(scores[..., 0])
        for _ in range(iterations):
            excess = torch.logsumexp(scores + f.unsqueeze(-2), -1) + f
            if float(excess.abs().max()) < tolerance:
                break
            f = f - excess / 2
        plan = torch.exp(scores + (f.unsqueeze(-1) + f.unsqueeze(-2)))  # symmetric to the last bit
        ctx.save_for_backward(plan)
        return plan

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (plan,) = ctx.saved_tensors
        direct = gradient * plan
        identity = torch.eye(plan.shape[-1], dtype=plan.dtype, device=plan.device)
        moved = torch.linalg.solve(plan + identity, direct.sum(-1) + direct.sum(-2))
        return direct - moved.unsqueeze(-1) * plan, None, None

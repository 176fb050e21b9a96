"""Partial transport of rows to clusters: only a share of the mass is placed, and cluster sizes are loosely equal.

Rows that fit no cluster well give their mass to a virtual column of cost 0, the slack. With a similarity of rows the
plan is also asked to give similar rows similar clusters, which takes a few plans, one after the other.

C. Zhang, H. Ren and X. He, "P2OT: Progressive Partial Optimal Transport for Deep Imbalanced Clustering", ICLR 2024,
arXiv:2401.09266.
C. Zhang, H. Ren and X. He, "SP2OT: Semantic-Regularized Progressive Partial Optimal Transport for Imbalanced
Clustering", 2024, arXiv:2404.03446.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from torch import Tensor

from models.transport import stabilised_scaling

SMALLEST_SLACK = 1e-12
"""Mass kept for the slack when all is to be placed: its logarithm is needed."""


def ppot(
    cost: Tensor,
    rho: float,
    *,
    epsilon: float = 0.1,
    gamma: float = 1.0,
    prior: ArrayLike | None = None,
    max_iter: int = 1000,
    tol: float = 1e-6,
    g_init: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Place a share `rho` of n rows of mass 1/n each into k clusters of loosely given sizes.

    Minimises ``<Q, C> + gamma KL(Q^T 1 || t) + epsilon (sum Q log Q + sum s log s)`` over Q >= 0 with
    ``Q 1 + s = 1/n`` and ``1^T Q 1 = rho``, where s is the slack of each row and t the sizes wanted.

    Parameters
    ----------
    cost : Tensor, (n, k)
        Finite; may be negative. Solved in float64, in the log domain.
    rho : float
        Share of the mass that is placed, in (0, 1].
    epsilon : float
        Strength of the entropy, in units of the cost.
    gamma : float
        Weight of the sizes: near 0 one cluster may take all, a huge one makes sizes those wanted.
    prior : array, (k,), optional
        Share of each cluster, from the one that looks largest by ``softmax(-cost)`` to the smallest in the order
        of the shares' size; equal shares by default.
    max_iter, tol : int, float
        Most rounds of scaling, and the L1 error of the rows at which it stops.
    g_init : Tensor, (k + 1,), optional
        ``info["g"]`` of a similar problem, to start from.

    Returns
    -------
    plan : Tensor, (n, k)
        float64; row sums are at most 1/n and sum to `rho`.
    info : dict
        "g" (k + 1,) potentials of the clusters and the slack, "n_iter", "err", and "slack" (n,).

    Raises
    ------
    ValueError
        For a `rho` outside (0, 1], costs that are empty or not finite, an `epsilon` or `gamma` that is not positive,
        or a `prior` that is not k shares.

    References
    ----------
    Zhang et al. (2024), arXiv:2401.09266, section 3.3: the virtual cluster and the scaling algorithm.

    Examples
    --------
    >>> cost = torch.tensor([[0.1, 3.0], [0.2, 3.0], [3.0, 0.1], [1.5, 1.5]])
    >>> plan, info = ppot(cost, 0.75)
    >>> round(float(plan.sum()), 4), int(info["slack"].argmax())
    (0.75, 3)
    """
    cost = _checked(cost, rho, epsilon, gamma, g_init)
    return _place(cost, _sizes(cost, rho, prior), epsilon, gamma, max_iter, tol, g_init)


def sppot(
    log_prob: Tensor,
    similarity: Tensor | sparse.csr_array,
    rho: float,
    *,
    lam: float = 1000.0,
    epsilon: float = 0.1,
    gamma: float = 1.0,
    prior: ArrayLike | None = None,
    mm_max_iter: int = 100,
    mm_tol: float = 1e-6,
    max_iter: int = 1000,
    tol: float = 1e-6,
    g_init: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """As :func:`ppot` with cost ``-log_prob``, and similar rows drawn to the same clusters.

    Adds ``-lam <S, Q Q^T>`` to the objective and minimises by majorisation: the term is replaced by its tangent at
    the last plan, which makes each step a partial transport of cost ``C - lam (S + S^T) Q``.

    Parameters
    ----------
    log_prob : Tensor, (n, k)
        Logarithms of class probabilities.
    similarity : Tensor or csr_array, (n, n)
        S, non-negative, of any symmetry.
    rho, epsilon, gamma, prior, max_iter, tol, g_init
        As in :func:`ppot`; the order of the `prior` is that of ``exp(log_prob)``.
    lam : float
        Weight of the similarities. Entries of the plan are of order ``rho / (n k)``, so that an equal pull needs a
        `lam` proportional to n; the published 1000 is for 5120 rows.
    mm_max_iter, mm_tol : int, float
        Most steps, and the change of the objective at which they stop.

    Returns
    -------
    plan : Tensor, (n, k)
    info : dict
        As in :func:`ppot` for the last step, with "objective", its value after each step. It never rises when
        ``S + S^T`` is positive semi-definite; that of a neighbour graph is not.

    Raises
    ------
    ValueError
        As :func:`ppot`, or for a negative `lam` or a similarity that is not (n, n) and finite.

    References
    ----------
    Zhang et al. (2024), arXiv:2404.03446: semantic regularisation and its majorisation-minimisation.

    Examples
    --------
    >>> log_prob = torch.log(torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8]]))
    >>> linked = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> [sppot(log_prob, linked, 0.9, lam=lam)[0].argmax(1).tolist() for lam in (0.0, 1.0)]
    [[0, 1, 1], [0, 0, 1]]
    """
    cost = _checked(-log_prob, rho, epsilon, gamma, g_init)
    if not 0 <= lam < math.inf:
        raise ValueError(f"lam must be at least 0 and finite, got {lam}.")
    n, k = cost.shape
    sizes = _sizes(cost, rho, prior)
    pairs = _both_ways(similarity, n, cost.device)
    plan = torch.full_like(cost, rho / (n * k))
    values: list[float] = []
    info: dict[str, Any] = {"g": g_init}
    for _ in range(mm_max_iter):
        plan, info = _place(cost - lam * (pairs @ plan), sizes, epsilon, gamma, max_iter, tol, info["g"])
        pull = lam / 2 * (plan * (pairs @ plan)).sum()
        values.append(float(_objective(cost, plan, info["slack"], sizes, epsilon, gamma) - pull))
        if lam == 0 or (len(values) > 1 and abs(values[-1] - values[-2]) < mm_tol):
            break
    return plan, {**info, "objective": values}


def _place(
    cost: Tensor, sizes: Tensor, epsilon: float, gamma: float, max_iter: int, tol: float, g: Tensor | None
) -> tuple[Tensor, dict[str, Any]]:
    """Transport with a virtual column of cost 0 that takes exactly what is not placed."""
    n, k = cost.shape
    slack_size = (1 - sizes.sum()).clamp_min(SMALLEST_SLACK).reshape(1)
    found = stabilised_scaling(
        torch.cat([cost, cost.new_zeros(n, 1)], dim=1),
        torch.cat([sizes, slack_size]),
        torch.tensor([gamma] * k + [math.inf]),
        epsilon,
        max_iter,
        tol,
        g,
    )
    plan, slack = found.plan[:, :k], found.plan[:, k]
    return plan, {"g": found.g, "n_iter": found.iterations, "err": found.error, "slack": slack}


def _objective(cost: Tensor, plan: Tensor, slack: Tensor, sizes: Tensor, epsilon: float, gamma: float) -> Tensor:
    mass = plan.sum(dim=0)
    divergence = (torch.special.xlogy(mass, mass / sizes) - mass + sizes).sum()
    negative_entropy = torch.special.xlogy(plan, plan).sum() + torch.special.xlogy(slack, slack).sum()
    return (cost * plan).sum() + gamma * divergence + epsilon * negative_entropy


def _checked(cost: Tensor, rho: float, epsilon: float, gamma: float, g: Tensor | None) -> Tensor:
    if not 0 < rho <= 1:
        raise ValueError(f"rho must lie in (0, 1], got {rho}. It is the share of the mass that is placed.")
    if not (epsilon > 0 and gamma > 0):
        raise ValueError(f"epsilon and gamma must be positive, got {epsilon} and {gamma}.")
    if cost.ndim != 2 or 0 in cost.shape or not torch.isfinite(cost).all():
        raise ValueError(
            f"The cost must be finite and shaped (n, k) with rows and columns, got {tuple(cost.shape)} or NaN in it."
        )
    if g is not None and g.shape != (cost.shape[1] + 1,):
        raise ValueError(f"g_init must be shaped ({cost.shape[1] + 1},), a potential a column, got {tuple(g.shape)}.")
    return cost.detach().double()


def _sizes(cost: Tensor, rho: float, prior: ArrayLike | None) -> Tensor:
    """The mass wanted in each cluster, (k,)."""
    k = cost.shape[1]
    if prior is None:
        return torch.full((k,), rho / k, dtype=cost.dtype, device=cost.device)
    shares = np.asarray(prior, dtype=np.float64)
    if shares.shape != (k,) or not (shares > 0).all() or not math.isclose(shares.sum(), 1, rel_tol=1e-6):
        raise ValueError(f"prior must be {k} positive shares that sum to 1, got {shares.tolist()}.")
    sizes = torch.empty(k, dtype=cost.dtype, device=cost.device)
    largest_first = torch.softmax(-cost, dim=1).sum(dim=0).argsort(descending=True, stable=True)
    sizes[largest_first] = rho * torch.from_numpy(np.sort(shares)[::-1].copy()).to(cost)
    return sizes


def _both_ways(similarity: Tensor | sparse.csr_array, n: int, device: torch.device) -> Tensor:
    """S + S^T in float64."""
    if tuple(similarity.shape) != (n, n):
        raise ValueError(f"similarity must be shaped ({n}, {n}) like the rows, got {tuple(similarity.shape)}.")
    values = similarity if isinstance(similarity, Tensor) else torch.from_numpy(np.asarray(similarity.data))
    if not torch.isfinite(values).all():
        raise ValueError("similarity contains NaN or infinite entries. Leave pairs without a similarity at 0.")
    if isinstance(similarity, Tensor):
        dense = similarity.to(device=device, dtype=torch.float64)
        return dense + dense.T
    entries = sparse.coo_array(similarity + similarity.T)
    places = torch.from_numpy(np.stack(entries.coords).astype(np.int64))
    values = torch.from_numpy(entries.data).double()
    return torch.sparse_coo_tensor(places, values, (n, n), device=device, check_invariants=False)

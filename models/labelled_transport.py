"""Distance between two sets of labelled rows: optimal transport whose cost knows how unlike the labels are.

D. Alvarez-Melis and N. Fusi, "Geometric Dataset Distances via Optimal Transport", NeurIPS 2020, arXiv:2002.02923: the
distance of two labels is that of the rows that carry them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from torch import Tensor

from models.base import check_embeddings, check_labels
from models.transport import earth_mover, earth_mover_potentials, stabilised_scaling

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLOUD = 200
"""Rows a class that exact distances of labels are computed from."""


def label_distances(X: Floats, y: Ints, X_val: Floats, y_val: Ints, kind: str = "gaussian") -> Floats:
    """Squared 2-Wasserstein distance between the rows of each class of `y` and of each class of `y_val`.

    Parameters
    ----------
    X, X_val : array, (n, d) and (n_val, d)
    y, y_val : int array
    kind : {"gaussian", "means", "exact"}
        Between normal distributions with shrunk covariances; between means alone (as for classes of fewer than three
        rows in any case); or between the rows themselves, at most 200 a class.

    Returns
    -------
    array, (classes of y, classes of y_val), both ascending
    """
    if kind not in ("gaussian", "means", "exact"):
        raise ValueError(f"The distance of labels must be 'gaussian', 'means' or 'exact', got {kind!r}.")
    clouds, others = ([rows[labels == c] for c in np.unique(labels)] for rows, labels in ((X, y), (X_val, y_val)))
    if kind == "exact":
        return np.array([[_exact_w2(one[:CLOUD], two[:CLOUD]) for two in others] for one in clouds])
    centres, targets = (np.array([cloud.mean(axis=0) for cloud in group]) for group in (clouds, others))
    found: Floats = cdist(centres, targets, "sqeuclidean")
    if kind == "gaussian":
        left, right = ([_covariance(cloud) for cloud in group] for group in (clouds, others))
        found += np.array([[_bures(one, two) for two in right] for one in left])
    return found


def _exact_w2(one: Floats, two: Floats) -> float:
    return float(earth_mover(torch.from_numpy(cdist(one, two, "sqeuclidean")))[1])


def _covariance(cloud: Floats) -> Floats | None:
    return LedoitWolf().fit(cloud).covariance_ if len(cloud) >= 3 else None


def _bures(one: Floats | None, two: Floats | None) -> float:
    """``tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2)``; 0 where a covariance is not known."""
    if one is None or two is None:
        return 0.0
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ two @ root), 0, None)).sum()
    return max(0.0, float(np.trace(one) + np.trace(two) - 2 * cross))


def labelled_ot(
    X: ArrayLike,
    y: ArrayLike,
    X_val: ArrayLike,
    y_val: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    label_cost: float = 1.0,
    label_distance: str = "gaussian",
    solver: str = "exact",
    reg: float = 1e-2,
    debiased: bool = True,
) -> tuple[float, Floats]:
    """Distance of a labelled training set to a validation set, and its derivative in the weights of the rows.

    The cost of a pair is ``|x - x'|^2 + label_cost * W2^2(rows labelled y, validation rows labelled y')``.

    Parameters
    ----------
    X, X_val : array, (n, d) and (n_val, d)
    y, y_val : int array
    weights : array, (n,), optional
        Of the training rows, summing to 1; uniform by default.
    label_cost, label_distance, solver, reg, debiased
        As in :class:`models.curate.projektor.Projektor`.

    Returns
    -------
    value : float
    potential : array, (n,)
        Up to a constant, what more weight on each row adds to the value.

    Raises
    ------
    ValueError
        For rows, labels or weights that do not fit each other, NaN, negative weights, or another solver or distance.

    Examples
    --------
    >>> value, f = labelled_ot([[0.0], [1.0]], [0, 0], [[0.25]], [0], [0.5, 0.5], label_cost=0.0)
    >>> value, float(f[0] - f[1])
    (0.3125, -0.5)
    """
    X, X_val = check_embeddings(X), check_embeddings(X_val, name="X_val")
    if X.shape[1] != X_val.shape[1]:
        raise ValueError(f"X and X_val must have rows of one length, got {X.shape[1]} and {X_val.shape[1]}.")
    labels, labels_val = (
        check_labels(given, len(rows), allow_unlabelled=False, minimum_classes=1, name=name)
        for given, rows, name in ((y, X, "y"), (y_val, X_val, "y_val"))
    )
    a = np.full(len(X), 1 / len(X)) if weights is None else np.asarray(weights, dtype=np.float64)
    if a.shape != (len(X),) or not (np.isfinite(a) & (a >= 0)).all() or not a.any():
        raise ValueError(f"weights must be {len(X)} numbers of 0 and above, not all 0, got {a.tolist()}.")
    sides = (X, labels), (X_val, labels_val)

    def cost(one: tuple[Floats, Ints], two: tuple[Floats, Ints]) -> Floats:
        places = [np.unique(side[1], return_inverse=True)[1] for side in (one, two)]
        told = label_distances(*one, *two, label_distance)[places[0]][:, places[1]]
        return cdist(one[0], two[0], "sqeuclidean") + label_cost * told

    within = (cost(sides[0], sides[0]), cost(sides[1], sides[1])) if solver == "sinkhorn" and debiased else None
    return solved(cost(*sides), a, within, solver, reg)


def solved(
    cost: Floats, a: Floats, within: tuple[Floats, Floats] | None = None, solver: str = "exact", reg: float = 1e-2
) -> tuple[float, Floats]:
    """Value of the transport and potential of the rows, also of those without weight.

    Parameters
    ----------
    cost : array, (n, n_val)
    a : array, (n,)
        Weights of the rows; columns weigh alike.
    within : pair of array, (n, n) and (n_val, n_val), optional
        Costs among rows and among columns, to remove the bias of the entropic transport.
    solver : {"exact", "sinkhorn"}
    reg : float
        Strength of the entropy, as a share of the mean cost.
    """
    if solver not in ("exact", "sinkhorn"):
        raise ValueError(f"solver must be 'exact' or 'sinkhorn', got {solver!r}.")
    there = a > 0
    mass = torch.from_numpy(a[there] / a[there].sum())
    if solver == "exact":
        exact, f, columns = earth_mover_potentials(torch.from_numpy(cost[there]), mass)
        potential: Floats = (cost - columns.numpy()).min(axis=1)
        potential[there] = f.numpy()
        return float(exact), potential
    epsilon = max(reg * float(cost.mean()), np.finfo(np.float64).tiny)
    even = torch.full((cost.shape[1],), 1 / cost.shape[1], dtype=torch.float64)
    g = _column_potential(torch.from_numpy(cost[there]), mass, even, epsilon)
    potential = _softened(torch.from_numpy(cost), g, even, epsilon).numpy()
    value = float(mass @ torch.from_numpy(potential[there]) + even @ g)
    if within is not None:
        rows, own = (torch.from_numpy(each) for each in within)
        h = _own_potential(rows[there][:, there], mass, epsilon)
        potential = potential - _softened(rows[:, there], h, mass, epsilon).numpy()
        value -= float(mass @ h + even @ _own_potential(own, even, epsilon))
    return value, potential


def _column_potential(cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """Potential of the columns, relative to the product of the marginals."""
    found = stabilised_scaling(cost.T, a, torch.full_like(a, torch.inf), epsilon, iterations=5000)
    return found.f - epsilon * b.log()


def _own_potential(cost: Tensor, a: Tensor, epsilon: float) -> Tensor:
    """The potential of a measure's transport to itself: averaged updates converge in some tens of rounds."""
    f = torch.zeros_like(a)
    for _ in range(200):
        new = (f + _softened(cost, f, a, epsilon)) / 2
        if float((new - f).abs().max()) < 1e-9 * max(epsilon, 1.0):
            break
        f = new
    return f


def _softened(cost: Tensor, g: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """Soft c-transform: the potential of rows, given that of columns with masses `b`."""
    return -epsilon * torch.logsumexp((g - cost) / epsilon + b.log(), dim=1)

"""What k-medoids starts from: a checked matrix of dissimilarities, and medoids chosen greedily (BUILD, LAB)."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.base import seed_from
from models.discover import pam_swap, pam_swap_numpy
from models.discover.pam_swap import Costs, Indices

ENGINES: dict[str, ModuleType] = {"numba": pam_swap, "numpy": pam_swap_numpy}
TILE = 512


def working_type(given: np.dtype[Any], asked: str | None = None) -> np.dtype[Any]:
    """float32 and float64 stay; whole numbers of up to 16 bits fit float32 exactly, all others become float64."""
    if asked is not None:
        return np.dtype(asked)
    if given in (np.float32, np.float64):
        return given
    return np.dtype(np.float32 if given.itemsize <= 2 else np.float64)


def check_dissimilarities(D: NDArray[Any], name: str = "X") -> None:
    """Refuse a matrix that is not square, not finite, negative somewhere or not zero on its diagonal."""
    if D.ndim != 2 or D.shape[0] != D.shape[1]:
        raise ValueError(
            f"{name} must be a square matrix of dissimilarities when metric='precomputed', got {D.shape}. "
            "Reshape your data, or name a metric (such as metric='euclidean') to give rows."
        )
    if D.size and not np.isfinite([D.min(), D.max()]).all():
        raise ValueError(f"{name} contains NaN or infinite dissimilarities. Fill or leave out those objects first.")
    if D.size and D.min() < 0:
        raise ValueError(
            f"Negative values in data: {name} must hold dissimilarities of at least 0, got {D.min():.3g}. "
            "Turn similarities into dissimilarities first, such as 1 - s; what rounding alone left below 0 goes by "
            f"np.maximum({name}, 0)."
        )
    diagonal = np.flatnonzero(np.diagonal(D))
    if len(diagonal):
        raise ValueError(
            f"{name} must be 0 on its diagonal, got {D[diagonal[0], diagonal[0]]:.3g} for object {diagonal[0]} "
            f"({len(diagonal)} in all). An object is no distance from itself: where that is rounding, "
            f"np.fill_diagonal({name}, 0)."
        )


def largest_asymmetry(D: NDArray[Any]) -> float:
    """Largest difference between D[i, j] and D[j, i], tile by tile."""
    worst = 0.0
    for top in range(0, len(D), TILE):
        for left in range(top, len(D), TILE):
            tile, mirrored = D[top : top + TILE, left : left + TILE], D[left : left + TILE, top : top + TILE].T
            if not np.array_equal(tile, mirrored):
                worst = max(worst, float(np.abs(tile - mirrored).max()))
    return worst


def by_candidate(D: Costs) -> Costs:
    """``costs[x, o] = D[o, x]`` with contiguous rows: `D` itself when it is symmetric, else a transposed copy.

    Warns
    -----
    UserWarning
        If the asymmetry is more than rounding.
    """
    asymmetry = largest_asymmetry(D)
    if asymmetry == 0:
        return np.ascontiguousarray(D)
    if asymmetry > 1e-5 * float(D.max()):
        warnings.warn(
            f"X is not symmetric (by up to {asymmetry:.3g}): D[i, j] is taken as the cost of serving object i by the "
            "medoid j. Pass (D + D.T) / 2 if no direction is meant.",
            UserWarning,
            stacklevel=4,
        )
    return np.ascontiguousarray(D.T)


def build(costs: Costs, n_clusters: int, engine: str = "numba") -> Indices:
    """BUILD: the best single medoid, then k - 1 times the object that lowers the loss most, O(n²k)."""
    medoids = [int(costs.sum(axis=1, dtype=np.float64).argmin())]
    dn = costs[medoids[0]].copy()
    while len(medoids) < n_clusters:
        changes = ENGINES[engine].additions(costs, dn)
        changes[medoids] = np.inf
        medoids.append(int(changes.argmin()))
        np.minimum(dn, costs[medoids[-1]], out=dn)
    return np.array(medoids)


def build_on_samples(costs: Costs, n_clusters: int, rng: np.random.Generator) -> Indices:
    """LAB: each step of BUILD looks only at a new sample of 10 + ⌈√n⌉ objects not chosen yet, O(nk) in all."""
    n = len(costs)
    size = 10 + int(np.ceil(np.sqrt(n)))
    free = np.ones(n, dtype=bool)
    dn = np.full(n, np.inf)
    medoids: list[int] = []
    while len(medoids) < n_clusters:
        unused = np.flatnonzero(free)
        sample = rng.choice(unused, min(size, len(unused)), replace=False)
        within = costs[np.ix_(sample, sample)].astype(np.float64)
        served = within if not medoids else np.minimum(within, dn[sample])
        medoids.append(int(sample[served.sum(axis=1).argmin()]))
        free[medoids[-1]] = False
        np.minimum(dn, costs[medoids[-1]], out=dn)
    return np.array(medoids)


def pam_build(dissimilarities: ArrayLike, n_clusters: int) -> Indices:
    """Start of PAM: medoids chosen greedily, each to lower the loss most.

    Parameters
    ----------
    dissimilarities : array, (n, n)
        ``D[o, j]`` is the cost of serving object o by medoid j.
    n_clusters : int

    Returns
    -------
    int array, (n_clusters,)
        Distinct objects in the order chosen; when no object lowers the loss any more, the first ones unused.

    Raises
    ------
    ValueError
        As for :class:`FasterPAM` with ``metric="precomputed"``.

    References
    ----------
    L. Kaufman and P. J. Rousseeuw, "Finding Groups in Data", 1990, chapter 2.

    Examples
    --------
    >>> pam_build([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 1], [9, 9, 1, 0]], 2).tolist()
    [0, 2]
    """
    return build(_checked(dissimilarities, n_clusters), n_clusters)


def lab_init(
    dissimilarities: ArrayLike, n_clusters: int, random_state: int | np.random.RandomState | None = None
) -> Indices:
    """Linear approximative BUILD: greedy medoids, each the best of a small random sample.

    Parameters
    ----------
    dissimilarities : array, (n, n)
        ``D[o, j]`` is the cost of serving object o by medoid j.
    n_clusters : int
    random_state : int, RandomState or None

    Returns
    -------
    int array, (n_clusters,)

    Raises
    ------
    ValueError
        As for :class:`FasterPAM` with ``metric="precomputed"``.

    References
    ----------
    E. Schubert and P. J. Rousseeuw, arXiv:2008.05171 (LAB).

    Examples
    --------
    >>> sorted(lab_init([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 1], [9, 9, 1, 0]], 4, random_state=0).tolist())
    [0, 1, 2, 3]
    """
    rng = np.random.default_rng(seed_from(random_state))
    return build_on_samples(_checked(dissimilarities, n_clusters), n_clusters, rng)


def _checked(dissimilarities: ArrayLike, n_clusters: int) -> Costs:
    D = np.asarray(dissimilarities)
    check_dissimilarities(D, "dissimilarities")
    check_enough(len(D), n_clusters, "dissimilarities")
    return by_candidate(D.astype(working_type(D.dtype), copy=False))


def check_enough(n: int, n_clusters: int, name: str = "X") -> None:
    """Refuse fewer objects than clusters."""
    if not 1 <= n_clusters <= n:
        raise ValueError(
            f"{name} must hold at least n_clusters={n_clusters} >= 1 objects, got n_samples={n}. "
            "Ask for fewer clusters or give more objects."
        )

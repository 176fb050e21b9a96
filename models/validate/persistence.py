"""Zero-dimensional persistent homology of a point cloud: death times, and one score drawn from them.

N. Ghalyan et al., "An Unsupervised Method for Estimating Class Separability of Datasets with Application to LLMs
Fine-Tuning", arXiv:2305.15016, 2023.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from models.base import check_embeddings

GAP_RATIO = 1.5
STATISTICS = ("mean", "median", "quantile", "entropy")
NORMALISERS = ("max", "q99")

Floats = NDArray[np.float64]


# Step 3: death times


def h0_persistence(X: ArrayLike | Tensor, metric: str = "euclidean", backend: str = "mst") -> Floats:
    """Death times of the finite H0 classes of the Vietoris-Rips filtration (step 3).

    They are the edge lengths of the minimum spanning tree: full lengths, not the half that some libraries count.

    Parameters
    ----------
    X : array, (n, d)
        At least two points. Coincident points give deaths of 0.
    metric : str
        Any metric of :func:`scipy.spatial.distance.cdist`.
    backend : {"mst", "ripser", "gudhi"}
        "mst" is Prim's algorithm, O(n^2 d) time and O(n) memory; the others need the package of that name.

    Returns
    -------
    array, (n - 1,)
        Sorted, smallest first.

    Raises
    ------
    ValueError
        For an unknown backend or unusable points.
    ImportError
        If the backend's package is not installed.

    Examples
    --------
    >>> h0_persistence([[0.0], [1.0], [3.0], [7.0]]).tolist()
    [1.0, 2.0, 4.0]
    """
    points = check_embeddings(X, minimum=2)
    backends = {"mst": prim_edges, "ripser": ripser_deaths, "gudhi": gudhi_deaths}
    if backend not in backends:
        raise ValueError(f"backend must be one of {', '.join(backends)}, got {backend!r}.")
    finite = backends[backend](points, metric)
    # ripser leaves out classes that die at birth: coincident points must stay counted.
    return np.concatenate([np.zeros(len(points) - 1 - len(finite)), np.sort(finite)])


def prim_edges(points: Floats, metric: Any = "euclidean") -> Floats:
    """Edge lengths of the exact minimum spanning tree, one distance row at a time (Prim)."""
    n = len(points)
    nearest = np.full(n, np.inf)
    outside = np.ones(n, dtype=bool)
    lengths = np.empty(n - 1)
    current = 0
    for step in range(n - 1):
        outside[current] = False
        np.minimum(nearest, cdist(points[current : current + 1], points, metric)[0], out=nearest)
        current = int(np.argmin(np.where(outside, nearest, np.inf)))
        lengths[step] = nearest[current]
    return lengths


def ripser_deaths(points: Floats, metric: Any) -> Floats:
    """Finite H0 deaths computed by ripser (single precision; those at 0 are left out)."""
    try:
        from ripser import ripser
    except ImportError as error:
        raise ImportError("backend='ripser' needs the package ripser: install it, or use backend='mst'.") from error
    bars = ripser(cdist(points, points, metric), maxdim=0, distance_matrix=True)["dgms"][0][:, 1]
    return np.asarray(bars[np.isfinite(bars)], dtype=np.float64)


def gudhi_deaths(points: Floats, metric: Any) -> Floats:
    """Finite H0 deaths computed by gudhi's Rips complex, whose filtration values are full edge lengths."""
    try:
        from gudhi import RipsComplex  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError("backend='gudhi' needs the package gudhi: install it, or use backend='mst'.") from error
    tree = RipsComplex(distance_matrix=cdist(points, points, metric)).create_simplex_tree(max_dimension=1)
    tree.compute_persistence(min_persistence=-1)
    bars = tree.persistence_intervals_in_dimension(0)[:, 1]
    return np.asarray(bars[np.isfinite(bars)], dtype=np.float64)


def h0_persistence_knn(X: ArrayLike | Tensor, metric: str = "euclidean", neighbours: int = 15) -> Floats:
    """Upper bounds of the death times from the k-NN graph, for clouds too large for the exact tree.

    The tree of the graph is joined across its components by exact nearest pairs. Sorted like the true deaths,
    none of these is smaller than the true one of its rank.

    Parameters
    ----------
    X : array, (n, d)
    metric : str
        Any metric of :class:`sklearn.neighbors.NearestNeighbors`.
    neighbours : int

    Returns
    -------
    array, (n - 1,)
        Sorted, smallest first.
    """
    points = check_embeddings(X, minimum=2)
    distinct = np.unique(points, axis=0)  # scipy's sparse graphs read a distance of 0 as "no edge"
    n = len(distinct)
    if n == 1:
        return np.zeros(len(points) - 1)
    search = NearestNeighbors(n_neighbors=min(neighbours, n - 1), metric=metric).fit(distinct)
    distances, found = search.kneighbors()
    rows = np.repeat(np.arange(n), found.shape[1])
    tree = minimum_spanning_tree(coo_array((distances.ravel(), (rows, found.ravel())), shape=(n, n)).tocsr())
    while True:
        count, component = connected_components(tree, directed=False)
        if count == 1:
            break
        tree = minimum_spanning_tree(tree + bridges(distinct, component, metric))
    deaths = np.sort(tree.data)
    return np.concatenate([np.zeros(len(points) - 1 - len(deaths)), deaths])


def bridges(points: Floats, component: NDArray[np.int32], metric: str) -> Any:
    """Edges from each component but the largest to its exact nearest point outside (one step of Boruvka)."""
    n = len(points)
    starts, ends, lengths = [], [], []
    largest = np.bincount(component).argmax()
    for label in np.unique(component[component != largest]):
        inside, outside = np.flatnonzero(component == label), np.flatnonzero(component != label)
        distance, nearest = (
            NearestNeighbors(n_neighbors=1, metric=metric).fit(points[outside]).kneighbors(points[inside])
        )
        best = int(distance[:, 0].argmin())
        starts.append(inside[best])
        ends.append(outside[nearest[best, 0]])
        lengths.append(distance[best, 0])
    return coo_array((lengths, (starts, ends)), shape=(n, n)).tocsr()


# Steps 4 and 5: scale and score


def normalised_times(p: ArrayLike, normaliser: str = "max") -> Floats:
    """Death times divided by their maximum, or by their 99% quantile and clipped at 1 (step 4).

    Raises
    ------
    ValueError
        If all points coincide, or for an unknown normaliser.
    """
    times = np.asarray(p, dtype=np.float64)
    if normaliser not in NORMALISERS:
        raise ValueError(f"normaliser must be one of {', '.join(NORMALISERS)}, got {normaliser!r}.")
    scale = times.max() if normaliser == "max" else np.quantile(times, 0.99)
    if times.max() <= 0:
        raise ValueError(
            "All points are identical, so there is no separability to measure: the encoder has collapsed. "
            "Inspect it before training on."
        )
    if scale <= 0:
        raise ValueError("The 99% quantile of the death times is 0 (mostly duplicates): use normaliser='max'.")
    return np.minimum(times / scale, 1.0)


def persistence_score(p: ArrayLike, statistic: str = "mean", normaliser: str = "max", q: float = 0.75) -> float:
    """Score in [0, 1) of the death times `p`, higher the more clustered (step 5).

    Parameters
    ----------
    p : array, (m,)
        Death times.
    statistic : {"mean", "median", "quantile", "entropy"}
        One minus the mean, median or q-quantile of the normalised times, or ``1 - H / ln m`` with H the entropy
        of ``p / sum p``, which varies in its third digit only.
    normaliser : {"max", "q99"}
        See :func:`normalised_times`.
    q : float
        Of the statistic "quantile".

    Raises
    ------
    ValueError
        If all points coincide, or for unknown options.

    Examples
    --------
    >>> round(persistence_score([1.0, 2.0, 4.0]), 4)
    0.4167
    """
    times = normalised_times(p, normaliser)
    if statistic == "mean":
        return float(1 - times.mean())
    if statistic in ("median", "quantile"):
        return float(1 - np.quantile(times, 0.5 if statistic == "median" else q))
    if statistic != "entropy":
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}.")
    share = times[times > 0] / times.sum()
    return float(1 + (share * np.log(share)).sum() / np.log(len(times))) if len(times) > 1 else 0.0


def largest_gap(p: ArrayLike) -> float:
    """Longest death time over the second longest; inf when the second is 0."""
    first, second = np.sort(np.asarray(p, dtype=np.float64))[::-1][:2]
    return float(first / second) if second > 0 else float("inf")


def count_clusters(p: ArrayLike) -> int:
    """Clusters seen in the largest ratio between neighbouring deaths of the top tenth, -1 if none exceeds 1.5."""
    times = np.sort(np.asarray(p, dtype=np.float64))[::-1]
    top = min(int(np.ceil(0.1 * len(times))), len(times) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(times[:top] / times[1 : top + 1], nan=0.0, posinf=np.inf)
    return int(ratios.argmax()) + 2 if len(ratios) and ratios.max() > GAP_RATIO else -1

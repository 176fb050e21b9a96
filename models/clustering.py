"""What several clustering methods share: k-NN graphs, spectral embeddings, matched labels, a count of clusters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment
from scipy.sparse.linalg import eigsh
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, pairwise_distances, silhouette_score
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state

from models.base import check_embeddings

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

DENSE_ROWS = 3000
"""Laplacians of at most this many rows are decomposed whole; larger sparse ones by Lanczos iterations."""


class SilhouetteCount(NamedTuple):
    """The number of clusters with the best silhouette, and the mean silhouette of every number tried."""

    n_clusters: int
    scores: dict[int, float]


def count_by_silhouette(
    X: ArrayLike,
    k_range: Iterable[int] = range(2, 31),
    repeats: int = 3,
    max_rows: int = 10_000,
    n_init: int = 1,
    random_state: int | np.random.RandomState | None = None,
) -> SilhouetteCount:
    """Number of clusters whose k-means partition has the largest mean silhouette.

    Parameters
    ----------
    X : array, (n, d)
    k_range : iterable of int
        Numbers tried; those that are not between 2 and the number of distinct rows minus 1 are left out.
    repeats : int
        k-means runs, from different starts, averaged for each number.
    max_rows : int
        The silhouette, quadratic in rows, looks at this many rows drawn at random.
    n_init : int
        Starts within each run.

    Raises
    ------
    ValueError
        If no number of `k_range` can be tried.

    References
    ----------
    P. J. Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis",
    Journal of Computational and Applied Mathematics 20, 1987.

    Examples
    --------
    >>> X = [[0.0], [0.1], [0.2], [5.0], [5.1], [9.0], [9.1]]
    >>> count_by_silhouette(X, range(2, 6), random_state=0).n_clusters
    3
    """
    rows = check_embeddings(X)
    asked = sorted(set(k_range))
    most = min(len(np.unique(rows, axis=0)), len(rows)) - 1
    possible = [k for k in asked if 2 <= k <= most]
    if not possible:
        raise ValueError(
            f"No number of clusters can be tried: asked for {asked[:3]}...{asked[-1:]}, "
            f"and {most + 1} distinct rows allow 2 to {most}. Give more rows or another range."
        )
    random = check_random_state(random_state)
    scores = {}
    for k in possible:
        runs = []
        for _ in range(repeats):
            labels = KMeans(k, n_init=n_init, random_state=random.randint(2**31 - 1)).fit(rows).labels_
            size = max_rows if len(rows) > max_rows else None
            runs.append(silhouette_score(rows, labels, sample_size=size, random_state=random.randint(2**31 - 1)))
        scores[k] = float(np.mean(runs))
    return SilhouetteCount(max(scores, key=scores.__getitem__), scores)


def spectral_embedding(affinity: Matrix | sparse.csr_array, n_components: int, skip: int = 0) -> Matrix:
    """Eigenvectors of the smallest eigenvalues of the normalised Laplacian I - G^-1/2 A G^-1/2.

    Parameters
    ----------
    affinity : array or sparse matrix, (n, n)
        Symmetric, non-negative; its diagonal is ignored and rows without an edge count as of degree 1.
    n_components : int
    skip : int
        Eigenvectors left out, those of the smallest eigenvalues first (1 leaves out the trivial one).

    Returns
    -------
    array, (n, n_components)
        Columns of unit length, the entry of largest size positive.

    Raises
    ------
    ValueError
        If `affinity` has fewer rows than vectors wanted.

    References
    ----------
    A. Ng, M. Jordan and Y. Weiss, "On Spectral Clustering: Analysis and an Algorithm", NeurIPS 2001.
    """
    n = affinity.shape[0]
    wanted = n_components + skip
    if wanted > n:
        raise ValueError(f"{wanted} eigenvectors were asked of an affinity of {n} rows. Ask for fewer.")
    if sparse.issparse(affinity) and n > DENSE_ROWS:
        bare = sparse.csr_array(affinity - sparse.diags_array(affinity.diagonal()))
        scale = _root_degrees(np.asarray(bare.sum(axis=1), dtype=np.float64).ravel())
        values, vectors = eigsh(
            sparse.diags_array(scale) @ bare @ sparse.diags_array(scale), k=wanted, which="LA", v0=np.ones(n)
        )
        vectors = vectors[:, np.argsort(-values, kind="stable")]
    else:
        dense: Matrix = affinity.toarray() if sparse.issparse(affinity) else np.array(affinity, dtype=np.float64)
        np.fill_diagonal(dense, 0.0)
        scale = _root_degrees(dense.sum(axis=1))
        _, vectors = eigh(scale[:, None] * dense * scale, subset_by_index=[n - wanted, n - 1])
        vectors = vectors[:, ::-1]
    chosen = vectors[:, skip:wanted]
    signs = np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(chosen.shape[1])])
    return np.ascontiguousarray(chosen * np.where(signs == 0, 1.0, signs))


def _root_degrees(degrees: Matrix) -> Matrix:
    return np.asarray(1 / np.sqrt(np.where(degrees > 0, degrees, 1.0)))


def knn_graph(X: ArrayLike, n_neighbors: int, metric: str = "euclidean") -> sparse.csr_array:
    """Distances to the `n_neighbors` nearest other rows, (n, n) sparse, not symmetrised; a row is not its own.

    Raises
    ------
    ValueError
        For NaN, or with no more rows than neighbours.
    """
    rows = check_embeddings(X, minimum=n_neighbors + 1)
    index = NearestNeighbors(n_neighbors=n_neighbors, metric=metric).fit(rows)
    return sparse.csr_array(index.kneighbors_graph(mode="distance"))


def match_labels(reference: ArrayLike, labels: ArrayLike, n_labels: int | None = None) -> Labels:
    """`labels` renamed so that they agree with `reference` on as many rows as a one-to-one renaming allows.

    Parameters
    ----------
    reference, labels : int array, (n,)
        Both from 0; `labels` may use more values than `reference`.
    n_labels : int, optional
        Names available; the largest label plus one by default.
    """
    first, second = np.asarray(reference, dtype=np.int64), np.asarray(labels, dtype=np.int64)
    k = n_labels or int(max(first.max(), second.max())) + 1
    table = np.zeros((k, k), dtype=np.int64)
    np.add.at(table, (second, first), 1)
    _, renamed = linear_sum_assignment(table, maximize=True)
    return np.asarray(renamed[second], dtype=np.int64)


def largest_first(labels: ArrayLike, centres: Matrix) -> tuple[Labels, Labels]:
    """Names that do not depend on the start: by size, ties by the centre's coordinates from the first on.

    Returns
    -------
    labels : int array, (n,)
    order : int array, (k,)
        ``order[j]`` is the old name of cluster j, so ``centres[order]`` are the centres in the new order.
    """
    old = np.asarray(labels, dtype=np.int64)
    sizes = np.bincount(old, minlength=len(centres))
    order = np.lexsort((*centres.T[::-1], -sizes))
    new = np.empty_like(order)
    new[order] = np.arange(len(order))
    return new[old].astype(np.int64), order.astype(np.int64)


def typical_rows(X: ArrayLike, labels: ArrayLike, n_rows: int = 8, max_rows: int = 1000) -> dict[int, Labels]:
    """Rows that show what a cluster is: its medoid first, then the rows nearest to the medoid.

    Parameters
    ----------
    X : array, (n, d)
    labels : int array, (n,)
        -1 belongs to no cluster.
    n_rows : int
        Rows a cluster; fewer from a smaller one.
    max_rows : int
        The medoid is looked for among this many members, spread evenly over the cluster.

    Returns
    -------
    dict of int to int array
        Cluster -> indices of its rows.
    """
    rows, which = check_embeddings(X), np.asarray(labels)
    found = {}
    for cluster in np.unique(which[which >= 0]):
        members = np.flatnonzero(which == cluster)
        some = members[np.linspace(0, len(members) - 1, min(len(members), max_rows)).astype(int)]
        medoid = some[pairwise_distances(rows[some]).sum(axis=0).argmin()]
        away = np.linalg.norm(rows[members] - rows[medoid], axis=1)
        away[members == medoid] = -1.0  # before its duplicates
        found[int(cluster)] = members[np.argsort(away, kind="stable")][:n_rows]
    return found


def stability(labellings: Sequence[ArrayLike]) -> float:
    """Mean adjusted Rand index over all pairs of labellings of the same rows; nan for fewer than two."""
    pairs = [adjusted_rand_score(first, second) for first, second in combinations(labellings, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")

"""People who group the points of a scatterplot: how far they agree, and simulated ones to learn from.

A rating is an array (n,) of int: the group a person puts each point in, -1 where it belongs to none.

S. Hartwig, C. van Onzenoodt, D. Engel, P. Hermosilla and T. Ropinski, "HPSCAN: Human Perception-Based Scattered Data
Clustering", Computer Graphics Forum 44(1), 2025, arXiv:2304.14185.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score

from models.base import UNLABELLED

Points = NDArray[np.float64]
Labels = NDArray[np.int64]

LARGEST_GAP = 0.12
"""A rater merges groups nearer than a threshold of his own, drawn up to this (the plot is 2 wide)."""
EDGE = 3.0
"""Standard deviations from a group beyond which a point belongs to none."""

# Agreement ---------------------------------------------------------------------------------------------------------


def similarity(first: ArrayLike, second: ArrayLike) -> float:
    """Adjusted Rand index of two ratings; each point that belongs to no group is a group of its own."""
    return float(adjusted_rand_score(singletons(first), singletons(second)))


def singletons(rating: ArrayLike) -> Labels:
    """The rating with a new group for every point marked -1."""
    labels = np.array(rating, dtype=np.int64)
    noise = labels == UNLABELLED
    labels[noise] = labels.max(initial=0) + 1 + np.arange(noise.sum())
    return labels


def group_agreement(ratings: ArrayLike) -> float:
    """Mean similarity over all pairs of raters.

    Parameters
    ----------
    ratings : int array, (r, n)
        At least two.

    Raises
    ------
    ValueError
        For fewer ratings, or entries that are no groups.
    """
    given = _checked(ratings, 2)
    return float(np.mean([similarity(first, second) for first, second in combinations(given, 2)]))


def agreement_index(candidate: ArrayLike, ratings: ArrayLike) -> float:
    """How much a clustering agrees with a group of raters, against how much they agree with each other.

    The mean similarity of the candidate to the raters minus :func:`group_agreement`: above 0 the candidate agrees
    with them more than they do among themselves.

    Parameters
    ----------
    candidate : int array, (n,)
    ratings : int array, (r, n)

    Raises
    ------
    ValueError
        For fewer than two ratings, a candidate of another length, or entries that are no groups.

    Examples
    --------
    >>> ratings = [[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, -1]]
    >>> agreement_index([0, 0, 0, 1, 1, 1], ratings) > 0 > agreement_index([0, 1, 0, 1, 0, 1], ratings)
    True
    """
    given = _checked(ratings, 2)
    labels = _groups(candidate, "candidate")
    if labels.shape != given.shape[1:]:
        raise ValueError(f"The candidate must label {given.shape[1]} points like the ratings, got {labels.shape}.")
    return float(np.mean([similarity(labels, rating) for rating in given])) - group_agreement(given)


def _checked(ratings: ArrayLike, fewest: int) -> Labels:
    given = _groups(ratings, "ratings")
    if given.ndim != 2 or len(given) < fewest:
        raise ValueError(f"ratings must be shaped (raters, points) with at least {fewest}, got {given.shape}.")
    return given


def _groups(values: ArrayLike, name: str) -> Labels:
    given = np.asarray(values)
    if given.dtype.kind not in "iubf" or not (np.floor(given) == given).all() or given.min(initial=0) < UNLABELLED:
        raise ValueError(f"{name} must hold whole numbers, -1 or more: the group of each point, -1 for none.")
    return given.astype(np.int64)


# Simulation --------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """A set of points that were drawn together.

    Attributes
    ----------
    draw : callable
        (number, generator) -> points (number, 2).
    depth : callable
        Points (n, 2) -> how far each is from the group, in its standard deviations (n,).
    """

    draw: Callable[[int, np.random.Generator], Points]
    depth: Callable[[Points], NDArray[np.float64]]


def blobs(rng: np.random.Generator) -> list[Group]:
    """One to seven Gaussians, any two of them 2.4 times the sum of their spreads apart."""
    placed: list[tuple[Points, float]] = []
    groups = []
    for _ in range(rng.integers(1, 8)):
        spread = rng.uniform(0.05, 0.16)
        for _ in range(50):
            centre = rng.uniform(-0.8, 0.8, 2)
            if all(math.dist(centre, other) >= 2.4 * (spread + wide) for other, wide in placed):
                placed.append((centre, spread))
                groups.append(_blob(centre, spread, rng.uniform(0.45, 1), rng.uniform(0, np.pi)))
                break
    return groups


def _blob(centre: Points, spread: float, aspect: float, angle: float) -> Group:
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = spread * np.array([1, aspect])

    def draw(number: int, rng: np.random.Generator) -> Points:
        return centre + (rng.normal(size=(number, 2)) * scale) @ axes

    def depth(points: Points) -> NDArray[np.float64]:
        return np.asarray(np.linalg.norm((points - centre) @ axes.T / scale, axis=1))

    return Group(draw, depth)


def _drawn_curve(curve: Points, thickness: float) -> Group:
    """Points scattered about a curve (m, 2)."""

    def draw(number: int, rng: np.random.Generator) -> Points:
        return curve[rng.integers(len(curve), size=number)] + rng.normal(0, thickness, (number, 2))

    def depth(points: Points) -> NDArray[np.float64]:
        return np.asarray(cdist(points, curve).min(axis=1) / thickness)

    return Group(draw, depth)


def arcs(rng: np.random.Generator) -> list[Group]:
    """Two half circles that reach into each other."""
    t = np.linspace(0, np.pi, 60)
    radius, thickness, lift = rng.uniform(0.45, 0.6), rng.uniform(0.02, 0.05), rng.uniform(0.1, 0.3)
    upper = np.c_[radius * np.cos(t) - radius / 2, radius * np.sin(t) - lift]
    return [_drawn_curve(curve, thickness) for curve in (upper, -upper)]


def rings(rng: np.random.Generator) -> list[Group]:
    """A ring round a smaller ring or round a blob."""
    t = np.linspace(0, 2 * np.pi, 120)
    circle = np.c_[np.cos(t), np.sin(t)]
    outer = _drawn_curve(circle * rng.uniform(0.7, 0.9), rng.uniform(0.02, 0.05))
    if rng.random() < 0.5:
        return [outer, _drawn_curve(circle * rng.uniform(0.25, 0.4), rng.uniform(0.02, 0.05))]
    return [outer, _blob(np.zeros(2), rng.uniform(0.08, 0.13), 1.0, 0.0)]


def lines(rng: np.random.Generator) -> list[Group]:
    """Two to four parallel lines."""
    count, thickness = int(rng.integers(2, 5)), rng.uniform(0.02, 0.04)
    gap = rng.uniform(0.35, 0.5)
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    along = np.linspace(-0.8, 0.8, 60) * rng.uniform(0.6, 1)
    heights = gap * (np.arange(count) - (count - 1) / 2)
    return [_drawn_curve(np.c_[along, np.full(60, height)] @ turn, thickness) for height in heights]


SHAPES: tuple[Callable[[np.random.Generator], list[Group]], ...] = (arcs, rings, lines)
SHARE_OF_SHAPES = 0.3


def simulate_raters(
    n_points: int = 192,
    n_raters: int = 5,
    noise: float = 0.15,
    random_state: int | np.random.Generator | None = None,
) -> tuple[Points, Labels]:
    """A scatterplot, and how simulated raters group its points.

    The plot shows one to seven Gaussian groups of uneven size, or arcs, rings or parallel lines, and points scattered
    over it. Each rater merges groups whose nearest points are closer than a threshold of his own, uniform on
    [0, 0.12], and puts points beyond three standard deviations of every group in none.

    Parameters
    ----------
    n_points, n_raters : int
    noise : float
        Largest share of scattered points; each plot draws its own. 0 also lets every point belong to its group.
    random_state : int, Generator or None

    Returns
    -------
    cloud : array, (n_points, 2)
        Roughly within [-1, 1].
    ratings : int array, (n_raters, n_points)

    Raises
    ------
    ValueError
        For fewer than 16 points, no rater, or a share outside [0, 1).

    Examples
    --------
    >>> cloud, ratings = simulate_raters(100, 3, random_state=0)
    >>> cloud.shape, ratings.shape
    ((100, 2), (3, 100))
    """
    if n_points < 16 or n_raters < 1 or not 0 <= noise < 1:
        raise ValueError(
            "A simulated plot needs at least 16 points, a rater and a noise share in [0, 1), got "
            f"{n_points}, {n_raters} and {noise}."
        )
    rng = np.random.default_rng(random_state)
    make = SHAPES[rng.integers(len(SHAPES))] if rng.random() < SHARE_OF_SHAPES else blobs
    groups = make(rng)
    scattered = int(rng.uniform(0, noise) * n_points)
    sizes = _uneven(n_points - scattered, len(groups), rng)
    drawn = [group.draw(size, rng) for group, size in zip(groups, sizes, strict=True)]
    cloud = np.concatenate([*drawn, rng.uniform(-1, 1, (scattered, 2))])
    truth = np.repeat(np.arange(len(groups)), sizes)
    if noise:
        depths = np.stack([group.depth(cloud) for group in groups])
        nearest = depths.argmin(axis=0)
        nearest[: len(truth)] = truth
        truth = np.where(depths[nearest, np.arange(n_points)] <= EDGE, nearest, UNLABELLED)
    order = rng.permutation(n_points)
    cloud, truth = cloud[order], truth[order]
    gaps = group_gaps(cloud, truth, len(groups))
    merged = [merge(truth, gaps, rng.uniform(0, LARGEST_GAP)) for _ in range(n_raters)]
    return cloud, np.stack(merged)


def _uneven(total: int, count: int, rng: np.random.Generator) -> Labels:
    """Random sizes that sum to `total`, none below a quarter of an equal share."""
    shares = 0.25 / count + 0.75 * rng.dirichlet(np.full(count, 2.0))
    sizes = np.floor(shares * total).astype(np.int64)
    sizes[0] += total - sizes.sum()
    return sizes


def group_gaps(cloud: Points, labels: Labels, count: int) -> Points:
    """Distance between the nearest points of each two groups, (count, count); infinite where one is empty."""
    gaps = np.full((count, count), np.inf)
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    found, starts = np.unique(labels[order], return_index=True)
    if len(found):
        away = cdist(cloud[order], cloud[order])
        gaps[np.ix_(found, found)] = np.minimum.reduceat(np.minimum.reduceat(away, starts), starts, axis=1)
    np.fill_diagonal(gaps, np.inf)
    return gaps


def merge(labels: Labels, gaps: Points, threshold: float) -> Labels:
    """Groups joined wherever a chain of gaps below `threshold` connects them; -1 stays."""
    _, joined = connected_components(gaps < threshold, directed=False)
    return np.where(labels == UNLABELLED, UNLABELLED, joined[labels]).astype(np.int64)

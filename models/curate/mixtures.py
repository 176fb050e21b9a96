"""Mixtures of sources: their grid and draws, how a score depends on shares and distance, and the ascent to the best.

The equations of F. Kang, H. A. Just, A. K. Sahu and R. Jia, "Performance Scaling via Optimal Transport: Enabling Data
Selection from Partially Revealed Sources", NeurIPS 2023, arXiv:2307.02460; :mod:`models.curate.projektor` uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FORMS = ("ot", "cs", "pq")
ALPHAS = np.logspace(-6, 2, 17)


def simplex_grid(m: int, step: float = 0.1) -> Floats:
    """All mixtures of `m` sources whose shares are multiples of `step`.

    Examples
    --------
    >>> len(simplex_grid(3, 0.1)), simplex_grid(2, 0.5).tolist()
    (66, [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    """
    parts = round(1 / step)
    bars = np.array(list(combinations(range(parts + m - 1), m - 1)), dtype=np.int64).reshape(-1, m - 1)
    edges = np.hstack([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), parts + m - 1)])
    return (np.diff(edges, axis=1) - 1) / parts


def drawn_counts(p: Floats, n: int) -> Ints:
    """Rows of each source in a mixture of `n` (largest remainders, so that they sum to n).

    Examples
    --------
    >>> drawn_counts(np.array([0.335, 0.335, 0.33]), 100)
    array([34, 33, 33])
    """
    counts = np.floor(p * n + 1e-9).astype(np.int64)
    order = np.argsort(-(p * n - counts), kind="stable")
    counts[order[: n - counts.sum()]] += 1
    return counts


def mixture_gradient(means: ArrayLike, p: ArrayLike) -> Floats:
    """Derivative of the transport in the shares, along the simplex (step 5): ``mean_i f - sum_j p_j mean_j f``.

    Parameters
    ----------
    means : array, (m,)
        Mean potential of each source's rows.
    p : array, (m,)

    Examples
    --------
    >>> mixture_gradient([0.0625, 0.5625], [0.5, 0.5])
    array([-0.25,  0.25])
    """
    found = np.asarray(means, dtype=np.float64)
    return found - np.asarray(p, dtype=np.float64) @ found


def project_log_linear(at_n0: Any, at_n1: Any, n0: float, n1: float, N: float) -> Any:
    """Step 4: the straight line in log N through the predictions at two sizes.

    Examples
    --------
    >>> round(float(project_log_linear(0.6, 0.7, 100, 200, 400)), 3)
    0.8
    """
    return (np.log(N / n0) * at_n1 - np.log(N / n1) * at_n0) / np.log(n1 / n0)


def simplex_projection(
    v: ArrayLike, min_share: float = 0.0, costs: ArrayLike | None = None, budget: float | None = None
) -> Floats:
    """The nearest mixture whose shares are at least `min_share` and, by choice, whose mean cost is at most `budget`.

    Raises
    ------
    ValueError
        If there is no such mixture, or a limit is negative or not finite.

    Examples
    --------
    >>> simplex_projection([0.9, 0.4, -0.2])
    array([0.75, 0.25, 0.  ])
    """
    point = np.asarray(v, dtype=np.float64)
    m = len(point)
    if not 0 <= min_share:
        raise ValueError(f"min_share must be 0 or above, got {min_share}.")
    free = 1 - m * min_share
    if free < -1e-12:
        raise ValueError(f"min_share={min_share} for each of {m} sources is more than the whole. Lower it.")

    def nearest(w: Floats) -> Floats:
        ranked = np.sort(w - min_share)[::-1]
        over = (np.cumsum(ranked) - max(free, 0.0)) / np.arange(1, m + 1)
        last = np.flatnonzero(ranked - over > 0)
        level = over[last[-1]] if len(last) else over[0]
        return np.maximum(w - min_share - level, 0) + min_share

    if costs is None or budget is None:
        return nearest(point)
    price = np.asarray(costs, dtype=np.float64)
    if not (np.isfinite(price).all() and np.isfinite(budget)):
        raise ValueError(f"costs and budget must be finite, got {price.tolist()} and {budget}.")
    least = min_share * price.sum() + max(free, 0.0) * price.min()
    if budget < least - 1e-12:
        raise ValueError(f"No mixture costs {budget:g} or less a row; the cheapest costs {least:g}. Raise budget.")
    if price @ nearest(point) <= budget:
        return nearest(point)
    if budget - least <= 1e-12:
        cheapest = price == price.min()
        return min_share + max(free, 0.0) * cheapest / cheapest.sum()
    high = 1.0
    while price @ nearest(point - high * price) > budget:
        high *= 2
    return nearest(point - brentq(lambda w: float(price @ nearest(point - w * price)) - budget, 0, high) * price)


def simplex_ascent(
    objective: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    *,
    lr: float = 5e-4,
    decay: float = 0.9,
    iters: int = 100,
    project: Callable[[Floats], Floats] = simplex_projection,
    tolerance: float = 1e-5,
) -> list[tuple[Floats, float]]:
    """Step 6: projected gradient ascent with decaying steps; every mixture it came by, with its value.

    Examples
    --------
    >>> goal = np.array([0.8, 0.2])
    >>> path = simplex_ascent(lambda p: (-((p - goal) ** 2).sum(), -2 * (p - goal)), np.full(2, 0.5), lr=0.1)
    >>> path[-1][0].round(2)
    array([0.76, 0.24])
    """
    p = project(start)
    value, gradient = objective(p)
    path = [(p, value)]
    for t in range(iters):
        new = project(p + lr * decay**t * gradient)
        if np.abs(new - p).max() < tolerance:
            break
        p = new
        value, gradient = objective(p)
        path.append((p, value))
    return path


@dataclass(frozen=True)
class ScoreLaw:
    """Step 3: ``s = (b0 + b1 . p + b2 . p^2) OT + c0 + c1 . p + c2 . p^2``; simpler forms have zeros.

    Attributes
    ----------
    b0, c0 : float
    b1, b2, c1, c2 : array, (m,)
    """

    b0: float
    b1: Floats
    b2: Floats
    c0: float
    c1: Floats
    c2: Floats

    def score(self, P: Floats, ot: Floats) -> Floats:
        """Scores (k,) of mixtures (k, m) whose distances are `ot`."""
        return (self.b0 + P @ self.b1 + P**2 @ self.b2) * ot + self.c0 + P @ self.c1 + P**2 @ self.c2

    def gradient(self, p: Floats, ot: float, slope: Floats, published: bool = False) -> Floats:
        """Derivative of the score in the shares, given the distance and its derivative (step 5).

        The published expression has, of the factor before the derivative of the distance, the source's own part only,
        and moves the others down in proportion.
        """
        if published:
            factor: Any = self.b0 + self.b1 * p + self.b2 * p**2
            slope = slope / np.maximum(1 - p, 1e-12)
        else:
            factor = self.b0 + self.b1 @ p + self.b2 @ p**2
        return factor * slope + (self.b1 + 2 * self.b2 * p) * ot + self.c1 + 2 * self.c2 * p


def terms(form: str, P: Floats, ot: Floats) -> Floats:
    """What the score is regressed on, (k, columns)."""
    along = ot[:, None]
    columns = {"ot": [along], "cs": [along, P * along, P], "pq": [along, P * along, P**2 * along, P, P**2]}
    return np.hstack(columns[form])


def unknowns(form: str, m: int) -> int:
    """Coefficients besides the intercept that are told apart, given that shares sum to 1."""
    return {"ot": 1, "cs": 2 * m - 1, "pq": 4 * m - 1}[form]


def fitted_law(form: str, P: Floats, ot: Floats, scores: Floats, alpha: float | str = "cv") -> tuple[ScoreLaw, Floats]:
    """Ridge regression of scores on standardised terms, and the residuals that leaving each mixture out gives.

    Shares sum to 1, so one of their linear terms is redundant. None is dropped: the ridge divides it evenly, and
    the order of the sources does not matter.
    """
    features = terms(form, P, ot)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-12] = 1.0
    left, singular, right = np.linalg.svd((features - mean) / scale, full_matrices=False)
    target = left.T @ (scores - scores.mean())
    best: tuple[float, Floats, Floats] | None = None
    for tried in ALPHAS if alpha == "cv" else [float(alpha)]:
        kept = singular > 1e-10 * max(singular.max(), 1e-300)
        filtered = np.where(kept, singular**2 / np.where(kept, singular**2 + tried, 1.0), 0.0)
        leverage = np.minimum((left**2 * filtered).sum(axis=1) + 1 / len(P), 1 - 1e-9)
        residuals = (scores - scores.mean() - left @ (filtered * target)) / (1 - leverage)
        error = float((residuals**2).mean())
        if best is None or error < best[0]:
            weights = right.T @ (np.where(kept, filtered / np.where(kept, singular, 1.0), 0.0) * target)
            best = (error, weights, residuals)
    assert best is not None
    w = best[1] / scale
    m, none = P.shape[1], np.zeros(P.shape[1])
    intercept = float(scores.mean() - mean @ w)
    parts = {
        "ot": (none, none, none, none),
        "cs": (w[1 : m + 1], none, w[m + 1 :], none),
        "pq": tuple(np.split(w[1:], 4)) if form == "pq" else (),
    }[form]
    b1, b2, c1, c2 = parts
    return ScoreLaw(float(w[0]), b1, b2, intercept, c1, c2), best[2]


def region_error(form: str, P: Floats, ot: Floats, scores: Floats, alpha: float | str = "cv") -> float:
    """Mean error where each source in turn has its largest shares (a quarter of the mixtures), fitted elsewhere."""
    found = []
    for share in P.T:
        held = share >= np.quantile(share, 0.75)
        if held.all():
            continue
        law, _ = fitted_law(form, P[~held], ot[~held], scores[~held], alpha)
        found.append(np.abs(law.score(P[held], ot[held]) - scores[held]).mean())
    return float(np.mean(found))


def on_simplex(P: ArrayLike, m: int, name: str = "P") -> Floats:
    found = np.asarray(P, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != m:
        raise ValueError(f"{name} must be shaped (k, {m}), a share for each source, got {found.shape}.")
    off = ~((found >= -1e-6).all(axis=1) & (np.abs(found.sum(axis=1) - 1) <= 1e-6))
    if off.any():
        row = int(np.flatnonzero(off)[0])
        raise ValueError(
            f"Row {row} of {name} is not on the simplex (shares >= 0 that sum to 1): {found[row].tolist()}."
        )
    return np.clip(found, 0.0, None) / np.clip(found, 0.0, None).sum(axis=1, keepdims=True)


def quadratic_surface(P: Floats, ot: Floats) -> tuple[float, Floats, Floats]:
    """Values as ``level + linear . p + p' square p``, by least squares of least norm."""
    m = P.shape[1]
    pairs = [(i, j) for i in range(m) for j in range(i, m)]
    products = np.column_stack([P[:, i] * P[:, j] for i, j in pairs])
    found = np.linalg.lstsq(np.column_stack([np.ones(len(P)), P, products]), ot, rcond=1e-10)[0]
    square = np.zeros((m, m))
    for (i, j), weight in zip(pairs, found[m + 1 :], strict=True):
        square[i, j] += weight / 2
        square[j, i] += weight / 2
    linear: Floats = found[1 : m + 1].astype(np.float64)
    return float(found[0]), linear, square

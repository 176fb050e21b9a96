"""What noisy samples are worth in clean ones, and corruption of known noise to measure it with.

G. Daras, Y. Cherapanamjeri and C. Daskalakis, "How Much is a Noisy Image Worth? Data Scaling Laws for Ambient
Diffusion", ICLR 2025, arXiv:2411.02780, section 4.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from sklearn.isotonic import IsotonicRegression

from models.base import seed_from

Floats = NDArray[np.float32]


def corrupt(
    X: ArrayLike, fraction_noisy: float, sigma: float, random_state: int | np.random.RandomState | None = None
) -> tuple[Floats, Floats]:
    """Clean samples, part of them with noise, for experiments on what noise costs.

    Parameters
    ----------
    X : array, (n, ...)
    fraction_noisy : float
        From 0 to 1.
    sigma : float
    random_state : int, RandomState or None
        The noise of a sample depends on it and on the sample's number alone.

    Returns
    -------
    X_noisy : array of float32, (n, ...)
    noise_std : array of float32, (n,)
        `sigma` where noise was added, else 0.

    Examples
    --------
    >>> corrupt(np.zeros((10, 2)), 0.3, 0.5, random_state=0)[1].round(1).tolist()
    [0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0, 0.0]
    """
    if not 0 <= fraction_noisy <= 1:
        raise ValueError(f"fraction_noisy={fraction_noisy} must lie in [0, 1].")
    if not (np.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma={sigma} must be finite and not negative.")
    found = np.array(X, dtype=np.float32)
    seed = seed_from(random_state)
    chosen = np.random.default_rng(seed).permutation(len(found))[: round(fraction_noisy * len(found))]
    for row in chosen.tolist():
        found[row] += sigma * np.random.default_rng([seed, row]).standard_normal(found.shape[1:], dtype=np.float32)
    noise_std = np.zeros(len(found), dtype=np.float32)
    noise_std[chosen] = sigma
    return found, noise_std


@dataclass(frozen=True)
class PriceEstimate:
    """What noisy samples are worth.

    Attributes
    ----------
    n_effective : float
        Clean samples alone that do as well as the mix.
    price : float
        Noisy samples for one clean sample; infinite if they help nothing.
    lower, upper : float
        Least and largest price over the seeds given.
    """

    n_effective: float
    price: float
    lower: float
    upper: float


def clean_equivalent(
    n_clean: NDArray[np.float64], metric: NDArray[np.float64], reached: float, improves: bool | None = None
) -> float:
    """Number of clean samples at which the monotone curve through (n, metric) comes to `reached`.

    The curve is piecewise cubic in log n, through the monotone values next to those measured; beyond its ends it says
    the end. Whether it rises (`improves`) is told by its ends by default.
    """
    improves = bool(metric[-1] > metric[0]) if improves is None else improves
    levels = IsotonicRegression(increasing=improves).fit_transform(np.arange(len(metric)), metric)
    sign = 1.0 if improves else -1.0
    places, heights = np.log(n_clean), sign * (levels - reached)
    if heights[0] >= 0:
        return float(n_clean[0])
    if heights[-1] <= 0:
        return float(n_clean[np.flatnonzero(heights == heights[-1])[0]])
    curve = PchipInterpolator(places, heights)
    first = int(np.flatnonzero(heights >= 0)[0])
    return float(np.exp(brentq(lambda place: float(curve(place)), places[first - 1], places[first], xtol=1e-14)))


def noisy_sample_price(
    n_clean_grid: ArrayLike, metric_clean: ArrayLike, n_base_clean: float, n_noisy: float, metric_mix: ArrayLike
) -> PriceEstimate:
    """How many noisy samples replace a clean one.

    Parameters
    ----------
    n_clean_grid : array, (g,)
        Numbers of clean samples, ascending, at which models were trained on clean samples alone.
    metric_clean : array, (g,) or (g, seeds)
        What they reached; lower or higher may be better, as the ends of the grid tell.
    n_base_clean, n_noisy : float
        Clean and noisy samples in the mix.
    metric_mix : float or array, (seeds,)
        What the mix reached.

    Returns
    -------
    PriceEstimate
        The price from mean metrics, and its range over all pairs of a curve and a mix.

    Raises
    ------
    ValueError
        For fewer than two grid points, a grid that does not ascend, figures that are not finite, or a curve that ends
        where it starts.

    Warns
    -----
    UserWarning
        If the mix does better than the largest clean set: the price is then an upper bound. If it does worse than the
        smallest, which is larger than that in the mix: a lower bound.

    Examples
    --------
    >>> found = noisy_sample_price([100, 200, 400], [8.0, 4.0, 2.0], 100, 200, 4.0)
    >>> round(found.n_effective), round(found.price, 6)
    (200, 2.0)
    """
    grid = np.asarray(n_clean_grid, dtype=np.float64)
    curves = np.asarray(metric_clean, dtype=np.float64)
    curves = curves[:, None] if curves.ndim == 1 else curves
    mixes = np.atleast_1d(np.asarray(metric_mix, dtype=np.float64))
    if grid.ndim != 1 or len(grid) < 2 or not np.isfinite(grid).all() or grid[0] <= 0 or (np.diff(grid) <= 0).any():
        raise ValueError("n_clean_grid must hold at least two positive numbers in ascending order.")
    if curves.ndim != 2 or len(curves) != len(grid):
        raise ValueError(f"metric_clean must have a row for each of {len(grid)} grid points, got {curves.shape}.")
    if not (np.isfinite(curves).all() and np.isfinite(mixes).all() and mixes.size):
        raise ValueError("metric_clean and metric_mix must be finite. Leave out runs that failed.")
    if not (0 < n_noisy < np.inf and 0 <= n_base_clean < np.inf):
        raise ValueError(f"n_noisy={n_noisy} must be positive and n_base_clean={n_base_clean} not negative.")
    mean = curves.mean(axis=1)
    if mean[0] == mean[-1]:
        raise ValueError("metric_clean ends where it starts: more clean samples change nothing, so none has a price.")
    improves = bool(mean[-1] > mean[0])
    sign, reached = (1 if improves else -1), float(mixes.mean())
    if sign * reached > sign * mean[-1]:
        warnings.warn(f"The mix beats {grid[-1]:g} clean samples: the price is an upper bound.", stacklevel=2)
    if sign * reached < sign * mean[0] and n_base_clean < grid[0]:
        warnings.warn(
            f"The mix is worse than {grid[0]:g} clean samples alone: the price is a lower bound. Measure smaller sets.",
            stacklevel=2,
        )

    def price(effective: float) -> float:
        gained = effective - n_base_clean
        return float(n_noisy / gained) if gained > 1e-9 * max(effective, 1.0) else float("inf")

    effective = clean_equivalent(grid, mean, reached, improves)
    prices = [price(clean_equivalent(grid, curve, float(mix), improves)) for curve in curves.T for mix in mixes]
    prices.append(price(effective))
    return PriceEstimate(effective, prices[-1], min(prices), max(prices))

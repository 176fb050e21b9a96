"""Which labels are wrong, and which corrections are right: the detectors of PLS and PLS-LSA.

Albert et al., "Is your noise correction noisy? PLS: Robustness to label noise with two stage detection"
(WACV 2023), and "An accurate detection is not all you need to combat label noise in web-noisy datasets"
(ECCV 2024). Both are pure functions of per-sample numbers, so they serve any network.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

FIT_ROWS = 200_000
"""Detectors are fitted on at most this many rows; every row is judged."""

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]


class DegenerateDetectionError(ValueError):
    """The numbers given do not separate into a clean and a noisy side."""


class DetectionWarning(UserWarning):
    """A detection was degenerate and a fallback took its place."""


def min_max(values: ArrayLike) -> Floats:
    """Values scaled to [0, 1]; infinite ones count as the largest finite one.

    Raises
    ------
    DegenerateDetectionError
        If no value is finite or all are equal.
    """
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    low, high = (array[finite].min(), array[finite].max()) if finite.any() else (0.0, 0.0)
    if high - low <= 1e-12:
        raise DegenerateDetectionError(f"All {len(array)} values are equal or not finite; nothing tells them apart.")
    return (np.where(finite, array, high) - low) / (high - low)


def small_loss_detector(
    losses: ArrayLike, threshold: float = 0.95, random_state: int | None = 0
) -> tuple[Flags, Floats]:
    """Flag the samples of the high mode of the losses (detector Z).

    Parameters
    ----------
    losses : array, (n,)
        Cross-entropy of each sample with its given label; nan marks a sample without label, which takes no
        part in the mixture and is flagged.
    threshold : float
        On the posterior of the component with the higher mean, not on the loss.
    random_state : int, optional

    Returns
    -------
    is_noisy : array of bool, (n,)
    p_noisy : array, (n,)

    Raises
    ------
    DegenerateDetectionError
        With fewer than three labelled samples or constant losses.

    References
    ----------
    PLS, section 3.2. Arazo et al. (2019) introduced loss mixtures; the settings are those of the authors' code.

    Examples
    --------
    >>> is_noisy, p_noisy = small_loss_detector([0.1, 0.2, 0.15, 0.12, 3.0, 3.1, 2.9])
    >>> is_noisy.astype(int).tolist()
    [0, 0, 0, 0, 1, 1, 1]
    """
    array = np.asarray(losses, dtype=np.float64)
    labelled = ~np.isnan(array)
    p_noisy = np.ones(len(array))
    p_noisy[labelled] = _posterior(array[labelled], "higher", random_state)
    return p_noisy > threshold, p_noisy


def linear_separation_detector(
    features: ArrayLike, trusted: ArrayLike, random_state: int | None = 0
) -> tuple[Flags, Floats]:
    """Flag the samples on the noisy side of a hyperplane between trusted clean and noisy ones (detector W).

    Parameters
    ----------
    features : array, (n, d)
        Made unit length row by row, then standardised column by column.
    trusted : array, (n,)
        1 or True: clean; 0 or False: noisy; nan: unknown, judged but not fitted on.
    random_state : int, optional
        Of the subsample fitted on when there are more than :data:`FIT_ROWS` rows.

    Returns
    -------
    is_noisy : array of bool, (n,)
        Hard predictions, also for the samples that were given as trusted.
    p_noisy : array, (n,)

    Raises
    ------
    DegenerateDetectionError
        If the trusted samples are all clean or all noisy.

    References
    ----------
    LSA, section 3.3: un-penalised, class-balanced logistic regression on l2-normalised features.

    Examples
    --------
    >>> features = [[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [0.2, 1.0], [0.1, 0.9]]
    >>> linear_separation_detector(features, [1, 1, 0, 0, float("nan")])[0].astype(int).tolist()
    [0, 0, 1, 1, 1]
    """
    matrix = np.asarray(features, dtype=np.float64)
    matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    matrix = StandardScaler().fit_transform(matrix)
    clean = np.asarray(trusted, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(clean))
    if len(np.unique(clean[known])) < 2:
        raise DegenerateDetectionError(
            f"The {len(known)} trusted samples are all on one side; a separation needs clean and noisy ones."
        )
    rows = _subsample(known, random_state)
    separation = LogisticRegression(C=np.inf, max_iter=1000, class_weight="balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable features have no finite optimum
        separation.fit(matrix[rows], clean[rows] == 0)
    p_noisy = separation.predict_proba(matrix)[:, 1]
    return p_noisy > 0.5, p_noisy


def pseudo_loss_confidence(pseudo_losses: ArrayLike, is_noisy: ArrayLike, random_state: int | None = 0) -> Floats:
    """How far the correction of each flagged sample may be trusted; 1 on samples that keep their label.

    Parameters
    ----------
    pseudo_losses : array, (n,)
        Cross-entropy of the network's output with its own earlier guess. A stable guess has a low one.
    is_noisy : array of bool, (n,)
    random_state : int, optional

    Returns
    -------
    array, (n,)
        Posterior of the lower component among the flagged samples. With one or two flagged samples, or equal
        pseudo-losses, all ones and a :class:`DetectionWarning`.

    References
    ----------
    PLS, section 3.3.

    Examples
    --------
    >>> pseudo_loss_confidence([9.0, 0.1, 0.2, 0.1, 2.0, 2.1], [0, 1, 1, 1, 1, 1]).round(2).tolist()
    [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    flagged = np.asarray(is_noisy, dtype=bool)
    confidence = np.ones(len(flagged))
    if not flagged.any():
        return confidence
    losses = np.asarray(pseudo_losses, dtype=np.float64)
    try:
        confidence[flagged] = _posterior(np.nan_to_num(losses[flagged], nan=np.inf), "lower", random_state)
    except DegenerateDetectionError as error:
        warnings.warn(f"Every correction is trusted fully. {error}", DetectionWarning, stacklevel=2)
    return confidence


def _posterior(values: Floats, component: str, random_state: int | None) -> Floats:
    """Posterior of the component with the lower or higher mean in a two-Gaussian mixture of scaled values."""
    if len(values) < 3:
        raise DegenerateDetectionError(f"A mixture of two needs at least 3 samples, got {len(values)}.")
    column = min_max(values)[:, None]
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=random_state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten steps are the published setting
        mixture.fit(column[_subsample(np.arange(len(column)), random_state)])
    means = mixture.means_.ravel()
    wanted = int(means.argmin() if component == "lower" else means.argmax())
    return mixture.predict_proba(column)[:, wanted]


def _subsample(rows: NDArray[np.intp], random_state: int | None) -> NDArray[np.intp]:
    if len(rows) <= FIT_ROWS:
        return rows
    return np.random.default_rng(random_state).choice(rows, FIT_ROWS, replace=False)

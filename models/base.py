"""What every method needs at its border: seeds kept to itself, and input checked before any work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import validate_data
from torch import Tensor

UNLABELLED = -1


def seed_from(random_state: int | np.random.RandomState | None) -> int:
    """An int seed from scikit-learn's ``random_state`` (None draws a fresh one from the system)."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31 - 1))
    if isinstance(random_state, (int, np.integer)):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


@contextmanager
def isolated_seed(random_state: int | np.random.RandomState | None) -> Iterator[int]:
    """Seed torch's and numpy's global generators inside the block and put them back afterwards.

    Network initialisation, dropout and kornia draw from the global generators; a method runs its
    ``fit`` in this block so that equal seeds give equal results and the caller's state is untouched.

    Yields
    ------
    int
        The seed in force.
    """
    seed = seed_from(random_state)
    numpy_state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield seed
        finally:
            np.random.set_state(numpy_state)


def check_images(X: ArrayLike | Tensor, *, name: str = "X", channels: int | None = None, minimum: int = 1) -> Tensor:
    """Images as a float32 tensor (n, C, H, W) in [0, 1].

    Parameters
    ----------
    X : array or tensor, (n, H, W) or (n, C, H, W)
        uint8 is divided by 255; floats must already lie in [0, 1].
    name : str
        What the message calls the argument.
    channels : int, optional
        The number of channels expected (that seen by ``fit``).
    minimum : int
        The fewest images accepted.

    Raises
    ------
    ValueError
        For another rank, too few images, non-finite or out-of-range pixels, or the wrong number of channels.
    """
    images = X if isinstance(X, Tensor) else torch.from_numpy(np.array(X))
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4:
        raise ValueError(
            f"{name} must be images shaped (n, H, W) or (n, C, H, W), got an array shaped {tuple(images.shape)}. "
            "Reshape each row to its image first."
        )
    if len(images) < minimum:
        raise ValueError(f"{name} must hold at least {minimum} image(s), got {len(images)}.")
    if channels is not None and images.shape[1] != channels:
        raise ValueError(f"{name} must have {channels} channel(s) as in fit, got {images.shape[1]}.")
    if images.dtype == torch.uint8:
        return images.float() / 255
    images = images.to(torch.float32)
    if not torch.isfinite(images).all():
        bad = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten()
        raise ValueError(f"{name} contains NaN or infinite pixels in {len(bad)} image(s), the first at row {bad[0]}.")
    if images.numel() and (images.min() < -1e-4 or images.max() > 1 + 1e-4):
        raise ValueError(
            f"{name} must hold pixels in [0, 1] (or uint8), got values from {images.min():.3g} to {images.max():.3g}. "
            "Divide by the largest possible value first."
        )
    return images


def check_labels(
    y: ArrayLike | Tensor,
    n: int,
    *,
    n_classes: int | None = None,
    allow_unlabelled: bool = True,
    minimum_classes: int = 2,
    name: str = "y",
) -> NDArray[np.int64]:
    """Labels as int64 (n,), -1 meaning unlabelled.

    Raises
    ------
    ValueError
        For a wrong length or type, labels below -1 or not below `n_classes`, -1 where it is not allowed,
        nothing labelled at all, or fewer than `minimum_classes` classes.
    """
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.shape != (n,):
        raise ValueError(f"{name} must be shaped ({n},) to match X, got {labels.shape}.")
    if labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        raise ValueError(f"{name} must hold integers (-1 = unlabelled), got the type {labels.dtype}.")
    labels = labels.astype(np.int64)
    lowest = UNLABELLED if allow_unlabelled else 0
    if n and labels.min() < lowest:
        raise ValueError(f"{name} must not hold labels below {lowest}, got {labels.min()}.")
    if n_classes is not None and n and labels.max() >= n_classes:
        raise ValueError(f"{name} must lie in 0..{n_classes - 1}, got {labels.max()}.")
    seen = np.unique(labels[labels >= 0])
    if not len(seen):
        raise ValueError(f"{name} must hold at least one label; all {n} rows are unlabelled (-1).")
    if len(seen) < minimum_classes:
        raise ValueError(f"{name} must hold at least {minimum_classes} classes, got {len(seen)}: {seen.tolist()}.")
    return labels


def check_embeddings(X: ArrayLike | Tensor, *, name: str = "X", minimum: int = 1) -> NDArray[np.float64]:
    """A finite float64 matrix (n, d).

    Raises
    ------
    ValueError
        For another rank, complex numbers, no columns, fewer than `minimum` rows, or NaN and infinite entries
        (their rows are named).
    TypeError
        For a sparse matrix.
    """
    matrix = check_array(
        X.detach().cpu().numpy() if isinstance(X, Tensor) else X,
        dtype=np.float64,
        input_name=name,
        ensure_all_finite=False,
        ensure_2d=False,
        allow_nd=True,
        ensure_min_samples=0,
    )
    if matrix.ndim != 2:
        raise ValueError(f"{name} must be a matrix shaped (n, d), got {matrix.shape}.")
    if len(matrix) < minimum:
        raise ValueError(f"{name} must hold at least {minimum} rows, got {len(matrix)} (n_samples={len(matrix)}).")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise ValueError(f"{name} contains NaN or infinite entries in {len(bad)} row(s), the first at row {bad[0]}.")
    return matrix


def check_rows(X: ArrayLike | Tensor, *, name: str = "X", minimum: int = 1) -> Tensor:
    """Images, or rows of a table or embedding, as float32: a matrix by :func:`check_embeddings`, else images.

    Returns
    -------
    Tensor, (n, d) or (n, C, H, W)
    """
    if np.ndim(X) == 2:
        return torch.from_numpy(check_embeddings(X, name=name, minimum=minimum).astype(np.float32))
    return check_images(X, name=name, minimum=minimum)


def check_samples(estimator: BaseEstimator, X: ArrayLike | Tensor, *, reset: bool, minimum: int = 1) -> Tensor:
    """:func:`check_rows` for an estimator, with scikit-learn's records of what ``fit`` saw.

    Parameters
    ----------
    estimator : BaseEstimator
        With `reset` it gets ``n_features_in_``, ``sample_shape_`` and, from a table, ``feature_names_in_``;
        otherwise `X` has to agree with them.
    X : array, tensor or table, (n, d), (n, H, W) or (n, C, H, W)
    reset : bool
        True in ``fit``.

    Raises
    ------
    ValueError
        As :func:`check_rows`; for a flat array; for samples of another shape than in fit.
    """
    X = X if hasattr(X, "ndim") else np.asarray(X)
    shape: tuple[int, ...] = tuple(X.shape)  # type: ignore[union-attr]
    if len(shape) < 2:
        raise ValueError(
            f"X must be rows shaped (n, d) or images shaped (n, C, H, W), got an array shaped {shape}. "
            "Reshape your data: X.reshape(1, -1) makes one row of it."
        )
    rows = check_rows(X, minimum=minimum)
    if rows.ndim == 2:
        validate_data(estimator, X, reset=reset, skip_check_array=True)
    if reset:
        estimator.sample_shape_, estimator.n_features_in_ = tuple(rows.shape[1:]), rows[0].numel()
    elif tuple(rows.shape[1:]) != estimator.sample_shape_:
        raise ValueError(
            f"X must hold samples shaped {estimator.sample_shape_} as in fit, got {tuple(rows.shape[1:])}."
        )
    return rows


def check_enough_rows(rows: Tensor, n_clusters: int) -> None:
    """Refuse to look for more clusters than there are distinct rows.

    Raises
    ------
    ValueError
        If there are fewer rows, or fewer distinct rows, than `n_clusters`.
    """
    if len(rows) < n_clusters:
        raise ValueError(f"n_samples={len(rows)} must be at least n_clusters={n_clusters}. Ask for fewer clusters.")
    distinct: set[bytes] = set()
    for row in rows.flatten(1).numpy():
        distinct.add(row.tobytes())
        if len(distinct) >= n_clusters:
            return
    raise ValueError(
        f"X holds {len(distinct)} distinct rows, fewer than n_clusters={n_clusters}. Ask for fewer clusters."
    )


def predict_in_batches(network: Any, X: Tensor, batch_size: int = 1024, device: str | torch.device = "cpu") -> Tensor:
    """`network` applied to `X` batch by batch, in eval mode and without gradients; the mode is restored.

    `network` may be a module or any function of a batch; a module's training flag is put back.
    """
    was_training = getattr(network, "training", False)
    if isinstance(network, torch.nn.Module):
        network.eval()
    try:
        with torch.inference_mode():
            parts = [network(part.to(device)).cpu() for part in X.split(batch_size)]
    finally:
        if was_training:
            network.train()
    return torch.cat(parts).clone()

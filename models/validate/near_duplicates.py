"""Near duplicates among images: the same picture moved a little or with other contrast."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def signature(images: ArrayLike) -> NDArray[np.float32]:
    """Unit vectors that a shift and a change of brightness or contrast leave (nearly) alone.

    Each image is moved so that its centre of mass is in the middle, then centred and scaled to unit length.

    Parameters
    ----------
    images : array, (n, C, H, W)
        Pixels in [0, 1].

    Returns
    -------
    array, (n, C * H * W)
    """
    pixels = np.asarray(images, dtype=np.float32)
    n, _, height, width = pixels.shape
    weight = pixels.sum(axis=1) - pixels.sum(axis=1).min(axis=(1, 2), keepdims=True)
    total = np.maximum(weight.sum(axis=(1, 2)), 1e-6)
    down = np.rint((height - 1) / 2 - (weight.sum(axis=2) * np.arange(height)).sum(axis=1) / total).astype(int)
    right = np.rint((width - 1) / 2 - (weight.sum(axis=1) * np.arange(width)).sum(axis=1) / total).astype(int)
    rows = (np.arange(height)[None, :] - down[:, None]) % height
    columns = (np.arange(width)[None, :] - right[:, None]) % width
    moved = pixels[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].reshape(n, -1)
    moved -= moved.mean(axis=1, keepdims=True)
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-6)


def near_duplicates(images: ArrayLike, threshold: float = 0.98, block: int = 2048) -> list[tuple[int, int, float]]:
    """Triples (later row, earlier row, similarity) whose signatures have at least `threshold` cosine similarity.

    Each later row appears once, with its most similar earlier row.

    Raises
    ------
    ValueError
        If `threshold` is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}.")
    vectors = signature(images)
    pairs: list[tuple[int, int, float]] = []
    for start in range(0, len(vectors), block):
        rows = vectors[start : start + block]
        similarity = rows @ vectors[: start + len(rows)].T
        later = np.arange(start, start + len(rows))
        similarity[np.arange(similarity.shape[1])[None, :] >= later[:, None]] = -1.0
        best = similarity.argmax(axis=1) if similarity.shape[1] else np.zeros(0, int)
        value = similarity[np.arange(len(rows)), best]
        for row in np.flatnonzero(value >= threshold):
            pairs.append((int(later[row]), int(best[row]), float(value[row])))
    return pairs

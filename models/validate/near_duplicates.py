"""Near duplicates among images: the same picture moved a little or with other contrast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Triple = tuple[int, int, float]
BUDGET = 256_000_000
"""Bytes of signatures held at once."""
SIDE = 32
"""Pixels that larger images are reduced to, each way: what makes a picture the same is seen at this size."""
WIDTH = 4096
"""Earlier rows that a block of later ones is compared with at once."""


def signature(images: ArrayLike) -> Floats:
    """Unit vectors that a shift and a change of brightness or contrast leave (nearly) alone.

    Each image is moved so that its centre of mass is in the middle, reduced to at most 32 x 32 by the means of cells,
    then centred and scaled to unit length.

    Parameters
    ----------
    images : array, (n, C, H, W)
        Pixels in [0, 1].

    Returns
    -------
    array, (n, C * min(H, 32) * min(W, 32))
    """
    pixels = np.asarray(images, dtype=np.float32)
    n, _, height, width = pixels.shape
    weight = pixels.sum(axis=1) - pixels.sum(axis=1).min(axis=(1, 2), keepdims=True)
    total = np.maximum(weight.sum(axis=(1, 2)), 1e-6)
    down = np.rint((height - 1) / 2 - (weight.sum(axis=2) * np.arange(height)).sum(axis=1) / total).astype(int)
    right = np.rint((width - 1) / 2 - (weight.sum(axis=1) * np.arange(width)).sum(axis=1) / total).astype(int)
    rows = (np.arange(height)[None, :] - down[:, None]) % height
    columns = (np.arange(width)[None, :] - right[:, None]) % width
    moved = np.moveaxis(pixels[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]], 3, 1)
    moved = np.ascontiguousarray(_cells(moved, SIDE, 1.0)).reshape(n, -1)
    moved -= moved.mean(axis=1, keepdims=True)
    return moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-6)


def near_duplicates(images: ArrayLike, threshold: float = 0.98, block: int = 2048) -> list[Triple]:
    """Triples (later row, earlier row, similarity) whose signatures have at least `threshold` cosine similarity.

    Each later row appears once, with its most similar earlier row.

    Raises
    ------
    ValueError
        If `threshold` is not in (0, 1].
    """
    return _closest(signature(images), threshold, block)


class Signatures:
    """Signatures gathered batch by batch, and the near duplicates among them.

    Beyond a budget of memory they are kept in half precision, which changes similarities by less than 1e-4. Where that
    is too much as well, they are kept as the means of coarser cells and the length of what the means leave out. The
    product of these is never below the true similarity (Cauchy and Schwarz), so it rules pairs out, and those left are
    compared on the images themselves: the result is that of :func:`near_duplicates`, but images are read many times.

    Parameters
    ----------
    n : int
        Images to come.
    shape : tuple of int
        (C, H, W).
    budget : int
        Bytes.

    Examples
    --------
    >>> images = np.random.default_rng(0).random((6, 1, 12, 12), dtype=np.float32)
    >>> images[5] = images[2] * 0.5
    >>> kept = Signatures(6, (1, 12, 12), budget=1000)
    >>> kept.put(np.arange(6), images)
    >>> [pair[:2] for pair in kept.near_duplicates(np.arange(6), 0.98, lambda rows: images[rows])]
    [(5, 2)]
    """

    def __init__(self, n: int, shape: tuple[int, int, int], budget: int = BUDGET) -> None:
        channels, height, width = (shape[0], min(shape[1], SIDE), min(shape[2], SIDE))
        self.shape, self.pixels = (channels, height, width), int(np.prod(shape))
        sides = [side for side in (16, 8, 4) if side < min(height, width)]
        cells = channels * height * width
        fitting = [side for side in sides if n * (channels * side * side + 1) * 4 <= budget]
        self.side = None if n * cells * 2 <= budget or not sides else (fitting or sides[-1:])[0]
        half = self.side is None and n * cells * 4 > budget
        width = cells if self.side is None else channels * self.side**2 + 1
        self.vectors = np.zeros((n, width), dtype=np.float16 if half else np.float32)

    def put(self, rows: Rows, images: ArrayLike) -> None:
        """Take the images (b, C, H, W), pixels in [0, 1], of these rows."""
        vectors = signature(images)
        self.vectors[rows] = vectors if self.side is None else _coarse(vectors, self.shape, self.side)

    def near_duplicates(self, rows: Rows, threshold: float, images: Callable[[Rows], ArrayLike]) -> list[Triple]:
        """As the function of that name, among `rows` (ascending); ``images(rows)`` gives some of them again.

        Raises
        ------
        ValueError
            If `threshold` is not in (0, 1].
        """
        chosen = self.vectors if len(rows) == len(self.vectors) else self.vectors[rows]
        if self.side is None:
            return [(int(rows[a]), int(rows[b]), value) for a, b, value in _closest(chosen, threshold)]
        best: dict[int, tuple[int, float]] = {}
        for later, earlier in _candidates(chosen, threshold):
            for a, b, value in _verify(rows[later], rows[earlier], images, self.pixels):
                if value >= threshold and value > best.get(a, (0, -1.0))[1]:
                    best[a] = (b, value)
        return [(a, *best[a]) for a in sorted(best)]


def _check(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}.")


def _similarities(vectors: Floats, block: int, width: int) -> Iterator[tuple[int, int, Floats]]:
    """First row, first column and similarities of each block; -1 where the column's row is not the earlier one."""
    for start in range(0, len(vectors), block):
        rows = _single(vectors[start : start + block])
        later = np.arange(start, start + len(rows))
        for first in range(0, start + len(rows), width):
            last = min(first + width, start + len(rows))
            part = rows @ _single(vectors[first:last]).T
            if last > start:
                part[np.arange(first, last)[None, :] >= later[:, None]] = -1.0
            yield start, first, part


def _single(vectors: Floats) -> Floats:
    """In single precision, of unit length again: rounding shortens alike what is alike, such as a background."""
    if vectors.dtype == np.float32:
        return vectors
    whole = vectors.astype(np.float32)
    return whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-6)


def _closest(vectors: Floats, threshold: float, block: int = 2048) -> list[Triple]:
    _check(threshold)
    best, value = np.zeros(len(vectors), dtype=np.int64), np.full(len(vectors), -1.0, dtype=np.float32)
    for start, first, part in _similarities(vectors, block, WIDTH):
        place = part.argmax(axis=1)
        found = part[np.arange(len(part)), place]
        rows = start + np.flatnonzero(found > value[start : start + len(part)])
        best[rows], value[rows] = first + place[rows - start], found[rows - start]
    return [(int(row), int(best[row]), float(value[row])) for row in np.flatnonzero(value >= threshold)]


def _candidates(vectors: Floats, threshold: float) -> Iterator[tuple[Rows, Rows]]:
    _check(threshold)
    for start, first, part in _similarities(vectors, 2048, WIDTH):
        later, earlier = np.nonzero(part >= threshold - 1e-4)  # float32 rounds
        if len(later):
            yield later + start, earlier + first


def _coarse(vectors: Floats, shape: tuple[int, int, int], side: int) -> Floats:
    """Coordinates on cells of equal value, (n, C * side^2), and the length of the rest."""
    grid = _cells(vectors.reshape(-1, *shape), side, 0.5)
    cells = grid.reshape(len(grid), -1)
    rest = np.sqrt(np.maximum(1 - (cells**2).sum(axis=1, keepdims=True), 0))
    return np.concatenate([cells, rest], axis=1).astype(np.float32)


def _cells(images: Floats, side: int, power: float) -> Floats:
    """Sums over at most side x side cells of the images (n, C, H, W), divided by the cells' size to that power."""
    grid: NDArray[np.floating] = images
    for axis in (2, 3):
        length = grid.shape[axis]
        if length > side:
            edges = np.linspace(0, length, side + 1).astype(int)
            counts = np.array([b - a for a, b in pairwise(edges)], dtype=np.float32) ** power
            shape = [-1 if place == axis else 1 for place in range(4)]
            grid = np.add.reduceat(grid, edges[:-1], axis=axis) / counts.reshape(shape)
    return grid.astype(np.float32)


def _verify(later: Rows, earlier: Rows, images: Callable[[Rows], ArrayLike], pixels: int) -> Iterator[Triple]:
    """The true similarities of pairs, few images in memory at a time."""
    step = max(1, BUDGET // (8 * pixels * 4))
    for start in range(0, len(later), step):
        a, b = later[start : start + step], earlier[start : start + step]
        rows = np.unique(np.concatenate([a, b]))
        vectors = signature(images(rows))
        values = (vectors[np.searchsorted(rows, a)] * vectors[np.searchsorted(rows, b)]).sum(axis=1)
        yield from zip(a.tolist(), b.tolist(), values.tolist(), strict=True)

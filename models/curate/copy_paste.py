"""Pasting cut-out objects into annotated images, drawn anew for every image and epoch.

The composer of C. Fan et al., "DiverGen", CVPR 2024, arXiv:2405.10185, which follows H. Zhao et al., "X-Paste:
Revisiting Scalable Copy-Paste for Instance Segmentation using CLIP and StableDiffusion", ICML 2023, arXiv:2212.03863.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import count
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve
from sklearn.utils.validation import check_is_fitted
from torch.utils.data import Dataset

from models.base import seed_from
from models.curate.instance_generation import Mask, Picture
from models.curate.instance_pool import Entry, GenerativeInstancePool, Instances, boxes_of, check_instances

BLENDS = ("basic", "alpha", "gaussian", "poisson")
LEAST_SIDE_UNKNOWN = 3
LEAST_SHARE, MOST_SHARE = 10.0, 0.5


class Scene(NamedTuple):
    """An image with its instances.

    Attributes
    ----------
    image : uint8 (h, w, 3)
    boxes : float64 (m, 4)
        x0, y0, x1, y1 with exclusive ends.
    labels : int64 (m,)
    masks : bool (m, h, w)
    source : int64 (m,)
        0 for real objects, 1 for pasted ones.
    """

    image: Picture
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    masks: Mask
    source: NDArray[np.int64]


def size_statistics(images: Sequence[Any], instances: Sequence[Instances]) -> dict[int, tuple[float, float]]:
    """Mean and deviation, for each category, of the square root of a box's share of its image."""
    found: dict[int, list[float]] = {}
    for row, (image, given) in enumerate(zip(images, instances, strict=True)):
        picture, boxes, labels, _ = check_instances(image, given, place=f"image {row}")
        shares = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (picture.shape[0] * picture.shape[1])
        for label, share in zip(labels.tolist(), shares.tolist(), strict=True):
            found.setdefault(label, []).append(share**0.5)
    return {label: (float(np.mean(roots)), float(np.std(roots))) for label, roots in found.items()}


def rescaled(rgba: Picture, height: int, width: int) -> Picture:
    """A cut-out at another size, bilinear with smoothing; as it is when the size stays."""
    if rgba.shape[:2] == (height, width):
        return rgba
    maps = torch.from_numpy(np.ascontiguousarray(rgba)).permute(2, 0, 1)[None].float()
    found = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return found[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def blended(below: Picture, above: Picture, alpha: NDArray[np.float64], blend: str) -> Picture:
    """Step 5: ``below (1 - M) + above M`` for two pictures of one size.

    Parameters
    ----------
    below, above : uint8 (h, w, 3)
    alpha : float (h, w)
        Opacity of `above` in [0, 1]; M is where it passes one half ("basic"), itself ("alpha"), that mask smoothed by
        a 5x5 Gaussian ("gaussian"), or `above`'s gradients continue the surroundings' colours ("poisson").
    blend : {"basic", "alpha", "gaussian", "poisson"}
    """
    solid = alpha > 0.5
    if blend == "basic":
        return np.where(solid[:, :, None], above, below)
    if blend == "poisson":
        return seamless(below, above, solid)
    weight = alpha if blend == "alpha" else ndimage.gaussian_filter(solid.astype(np.float64), 1.0, radius=2)
    mixed = below * (1 - weight[:, :, None]) + above * weight[:, :, None]
    return np.round(mixed).clip(0, 255).astype(np.uint8)


def seamless(below: Picture, above: Picture, mask: Mask) -> Picture:
    """Poisson blending (Pérez et al., 2003): inside `mask` the gradients of `above`, round it the colours of `below`.

    Across the border of the mask no gradient is asked for, and nothing at all across the edge of the picture.
    """
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    rows, columns = np.nonzero(mask)
    matrix = sparse.lil_matrix((len(rows), len(rows)))
    wanted = np.zeros((len(rows), 3))
    degree = np.zeros(len(rows))
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        y, x = rows + down, columns + right
        inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
        own = np.flatnonzero(inside)
        degree[own] += 1
        known = own[~mask[y[own], x[own]]]
        wanted[known] += below[y[known], x[known]]
        unknown = own[mask[y[own], x[own]]]
        wanted[unknown] += above[rows[unknown], columns[unknown]].astype(float) - above[y[unknown], x[unknown]]
        matrix[unknown, number[y[unknown], x[unknown]]] = -1
    if not mask.any() or mask.all():
        return np.where(mask[:, :, None], above, below)
    matrix.setdiag(degree)
    system = matrix.tocsc()
    found = below.copy()
    for channel in range(3):
        solved = np.asarray(spsolve(system, wanted[:, channel]))
        found[mask, channel] = np.round(solved).clip(0, 255)
    return found


def paste(
    scene: Scene,
    rgba: Picture,
    category: int,
    top: int,
    left: int,
    *,
    blend: str = "basic",
    bbox_occluded_thr: float = 10,
    mask_occluded_thr: float = 300,
) -> Scene:
    """Step 5, one object: laid over the image with its upper left corner at (`top`, `left`), which may be outside.

    The masks below lose its pixels. An object stays if it has pixels left and either no side of its box moved by more
    than `bbox_occluded_thr`, or more than `mask_occluded_thr` pixels are left. Nothing changes if nothing is visible.
    """
    height, width = scene.image.shape[:2]
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + rgba.shape[0], height), min(left + rgba.shape[1], width)
    if y0 >= y1 or x0 >= x1:
        return scene
    above, alpha = scene.image.copy(), np.zeros((height, width))
    visible = rgba[y0 - top : y1 - top, x0 - left : x1 - left]
    above[y0:y1, x0:x1] = visible[:, :, :3]
    alpha[y0:y1, x0:x1] = visible[:, :, 3] / 255
    solid = alpha > 0.5
    if not solid.any():
        return scene
    masks = scene.masks & ~solid
    boxes, areas = boxes_of(masks), masks.sum(axis=(1, 2))
    moved = np.abs(boxes - boxes_of(scene.masks)).max(axis=1, initial=0.0)
    stays = (areas > 0) & ((moved <= bbox_occluded_thr) | (areas > mask_occluded_thr))
    return Scene(
        blended(scene.image, above, alpha, blend),
        np.concatenate([boxes[stays], boxes_of(solid[None])]),
        np.append(scene.labels[stays], np.int64(category)),
        np.concatenate([masks[stays], solid[None]]),
        np.append(scene.source[stays], np.int64(1)),
    )


def entries_of(pool: Any) -> list[Entry]:
    """The entries of a fitted pool, or those given as a list.

    Raises
    ------
    ValueError
        For an entry without RGBA pixels or category.
    NotFittedError
        For a pool that was not built yet.
    """
    if isinstance(pool, GenerativeInstancePool):
        check_is_fitted(pool, "pool_")
        pool = pool.pool_
    entries = list(pool or [])
    for number, entry in enumerate(entries):
        given = entry if isinstance(entry, Mapping) else {}
        rgba, category = np.asarray(given.get("rgba")), given.get("category")
        pictured = rgba.ndim == 3 and rgba.shape[2] == 4 and rgba.dtype == np.uint8 and rgba.size > 0
        if not pictured or not isinstance(category, Integral) or category < 0:
            raise ValueError(
                f"pool entry {number} must have 'rgba' (uint8, h, w, 4) and a 'category' of 0 or above, got "
                f"{rgba.dtype} {rgba.shape} and {category!r}."
            )
    return entries


class CopyPasteComposer:
    """Pastes a random number of objects of a pool into an image, and keeps its annotation true.

    Never give it validation images.

    Parameters
    ----------
    pool : GenerativeInstancePool or list of dict
        Fitted, or its entries (``rgba``, ``category``). An empty one is warned of and changes nothing.
    max_samples : int, default=20
        The number pasted is uniform on 0..max_samples - 1.
    balanced : bool, default=True
        A category first, each alike, then one of its entries; otherwise each entry alike.
    size_stats : dict of int to (mean, deviation), optional
        Of the square root of an object's share of the image, as :func:`size_statistics` gives it.
    scale_range : pair of float, default=(0.05, 0.3)
        Factors on the size of cut-outs whose category has no statistics.
    min_size : int, default=5
        Shorter sides are not pasted (3 for categories without statistics), nor those as long as the image's.
    blend : {"basic", "alpha", "gaussian", "poisson"}, default="basic"
        See :func:`blended`.
    hflip : bool, default=True
        Mirror every second object.
    shape_jitter : float, default=0.2
        The ratio of height to width is multiplied by 1 - this to 1 + this.
    bbox_occluded_thr, mask_occluded_thr : float, default=10, 300
        In pixels, see :func:`paste`.
    random_state : int, RandomState or None

    Raises
    ------
    ValueError
        For an unknown blend, numbers out of range, or entries that are none.

    Examples
    --------
    >>> white = np.full((6, 6, 4), 255, dtype=np.uint8)
    >>> composer = CopyPasteComposer([{"rgba": white, "category": 3}], max_samples=3, random_state=2,
    ...                              size_stats={3: (0.3, 0.05)})
    >>> black = np.zeros((32, 32, 3), dtype=np.uint8)
    >>> found = composer(black, np.zeros((0, 4)), [], np.zeros((0, 32, 32), bool), draw=(0, 1))
    >>> found.labels.tolist(), bool((found.image[found.masks.any(axis=0)] == 255).all())
    ([3], True)
    """

    def __init__(
        self,
        pool: Any,
        *,
        max_samples: int = 20,
        balanced: bool = True,
        size_stats: Mapping[int, tuple[float, float]] | None = None,
        scale_range: tuple[float, float] = (0.05, 0.3),
        min_size: int = 5,
        blend: str = "basic",
        hflip: bool = True,
        shape_jitter: float = 0.2,
        bbox_occluded_thr: float = 10,
        mask_occluded_thr: float = 300,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        if blend not in BLENDS:
            raise ValueError(f"blend must be one of {', '.join(BLENDS)}, got {blend!r}.")
        if max_samples < 1 or min_size < 1 or not 0 <= shape_jitter < 1 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(
                "max_samples and min_size must be at least 1, shape_jitter in [0, 1), scale_range positive and "
                f"ascending; got {max_samples}, {min_size}, {shape_jitter} and {scale_range}."
            )
        self.entries = entries_of(pool)
        if not self.entries:
            warnings.warn("The pool is empty: images stay as they are. Look at its report_.", UserWarning, stacklevel=2)
        self.max_samples, self.balanced, self.size_stats = max_samples, balanced, dict(size_stats or {})
        self.scale_range, self.min_size, self.blend, self.hflip = scale_range, min_size, blend, hflip
        self.shape_jitter = shape_jitter
        self.bbox_occluded_thr, self.mask_occluded_thr = bbox_occluded_thr, mask_occluded_thr
        self.seed = seed_from(random_state)
        self.calls = count()
        categories = np.array([entry["category"] for entry in self.entries], dtype=np.int64)
        self.members = [np.flatnonzero(categories == value) for value in np.unique(categories)]

    def draw_entry(self, generator: np.random.Generator) -> int:
        """Number of an entry of the pool."""
        if not self.balanced:
            return int(generator.integers(len(self.entries)))
        return int(generator.choice(self.members[generator.integers(len(self.members))]))

    def draw_size(
        self, rgba: Picture, category: int, height: int, width: int, generator: np.random.Generator
    ) -> tuple[int, int] | None:
        """Height and width to paste at, None if the object is to be skipped."""
        own_height, own_width = rgba.shape[:2]
        if category in self.size_stats:
            mean, deviation = self.size_stats[category]
            root = np.clip(mean + deviation * generator.standard_normal(), LEAST_SHARE / height, MOST_SHARE)
            ratio = own_height / own_width * generator.uniform(1 - self.shape_jitter, 1 + self.shape_jitter)
            area = root**2 * height * width
            sides, least = (np.sqrt(area * ratio), np.sqrt(area / ratio)), self.min_size
        else:
            factor = generator.uniform(*self.scale_range)
            sides, least = (own_height * factor, own_width * factor), min(self.min_size, LEAST_SIDE_UNKNOWN)
        new_height, new_width = round(float(sides[0])), round(float(sides[1]))
        fits = least <= min(new_height, new_width) and new_height < height and new_width < width
        return (new_height, new_width) if fits else None

    def __call__(
        self, image: Any, boxes: ArrayLike, labels: ArrayLike, masks: ArrayLike, draw: Sequence[int] | None = None
    ) -> Scene:
        """Paste into one image; the arguments stay as they are.

        Parameters
        ----------
        image : uint8 (h, w, 3)
        boxes : (m, 4)
        labels : (m,)
        masks : bool (m, h, w)
        draw : sequence of int, optional
            Names the draw, such as (epoch, row): with one seed the same names give the same objects, in whichever
            process. None counts the calls.

        Raises
        ------
        ValueError
            For annotations that do not fit the image or each other.
        """
        given = {"boxes": boxes, "labels": labels, "masks": masks}
        picture, own_boxes, own_labels, own_masks = check_instances(image, given, place="image")
        scene = Scene(picture, own_boxes, own_labels, own_masks, np.zeros(len(own_labels), dtype=np.int64))
        generator = np.random.default_rng([self.seed, *(draw if draw is not None else (next(self.calls),))])
        for _ in range(int(generator.integers(self.max_samples)) if self.entries else 0):
            scene = self._pasted(scene, generator)
        return scene

    def _pasted(self, scene: Scene, generator: np.random.Generator) -> Scene:
        """One more object, somewhere."""
        height, width = scene.image.shape[:2]
        entry = self.entries[self.draw_entry(generator)]
        size = self.draw_size(entry["rgba"], entry["category"], height, width, generator)
        mirrored = self.hflip and generator.random() < 0.5
        y, x = int(generator.integers(height)), int(generator.integers(width))
        if size is None:
            return scene
        rgba = rescaled(entry["rgba"], *size)
        return paste(
            scene,
            np.ascontiguousarray(rgba[:, ::-1]) if mirrored else rgba,
            entry["category"],
            y - size[0] // 2,
            x - size[1] // 2,
            blend=self.blend,
            bbox_occluded_thr=self.bbox_occluded_thr,
            mask_occluded_thr=self.mask_occluded_thr,
        )


class PastedImages(Dataset[Scene]):
    """Training images with objects pasted in, new ones each epoch and the same in whichever worker.

    Parameters
    ----------
    images : sequence of uint8 (h, w, 3)
        After their own augmentation.
    instances : sequence of dict
        ``labels``, ``masks`` and by choice ``boxes`` of each.
    composer : CopyPasteComposer or None
        None gives the images as they are.

    Examples
    --------
    >>> white = np.full((6, 6, 4), 255, dtype=np.uint8)
    >>> composer = CopyPasteComposer([{"rgba": white, "category": 3}], scale_range=(1, 1), random_state=0)
    >>> scenes = PastedImages([np.zeros((32, 32, 3), dtype=np.uint8)], [{"labels": [], "masks": []}], composer)
    >>> scenes.set_epoch(1)
    >>> set(scenes[0].labels.tolist()), set(scenes[0].source.tolist())
    ({3}, {1})
    """

    def __init__(
        self, images: Sequence[Any], instances: Sequence[Instances], composer: CopyPasteComposer | None
    ) -> None:
        if len(images) != len(instances):
            raise ValueError(f"images and instances must be equally many, got {len(images)} and {len(instances)}.")
        self.images, self.instances, self.composer, self.epoch = images, instances, composer, 0

    def set_epoch(self, epoch: int) -> None:
        """Which draw the images get."""
        self.epoch = epoch

    def __len__(self) -> int:
        """How many images."""
        return len(self.images)

    def __getitem__(self, row: int) -> Scene:
        """Image `row`, pasted into."""
        picture, boxes, labels, masks = check_instances(self.images[row], self.instances[row], place=f"image {row}")
        if self.composer is None:
            return Scene(picture, boxes, labels, masks, np.zeros(len(labels), dtype=np.int64))
        return self.composer(picture, boxes, labels, masks, draw=(self.epoch, row))

"""Segmentation with few and unequal examples: objects from several generators pasted into the training images.

C. Fan, M. Zhu, H. Chen, Y. Liu, W. Wu, H. Zhang and C. Shen, "DiverGen: Improving Instance Segmentation by Learning
Wider Data Distribution with More Diverse Generative Data", CVPR 2024, arXiv:2405.10185.

The pool is built in :mod:`models.curate.instance_pool`, objects are pasted in :mod:`models.curate.copy_paste`, and
what generates, segments and embeds stands in :mod:`models.curate.instance_generation`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.base import isolated_seed, predict_in_batches
from models.curate.copy_paste import CopyPasteComposer, PastedImages, entries_of, size_statistics
from models.curate.instance_pool import GenerativeInstancePool, Instances, boxes_of, check_instances, real_cutouts
from models.networks.unet import UNet
from models.registry import register
from models.training import Row, StepTrainer, adam, one_cycle

__all__ = [
    "CopyPasteComposer",
    "DiverGen",
    "GenerativeInstancePool",
    "PastedImages",
    "average_precision",
    "intersection_over_union",
    "real_cutouts",
    "size_statistics",
    "train_val_gap",
    "without_categories",
]

Maps = NDArray[np.int64]
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
NO_OBJECT = -1


# ---- what is trained on ------------------------------------------------------------------------------------


def category_map(labels: NDArray[np.int64], masks: NDArray[np.bool_], shape: Sequence[int]) -> Maps:
    """Category of each pixel, -1 where there is none; of overlapping masks the later one counts."""
    found = np.full(tuple(shape), NO_OBJECT, dtype=np.int64)
    for label, mask in zip(labels, masks, strict=True):
        found[mask] = label
    return found


class PasteTrainer(StepTrainer):
    """Cross-entropy of every pixel, on images pasted into anew each epoch; output 0 is the background."""

    def __init__(self, network: nn.Module, scenes: PastedImages, **parameters: Any) -> None:
        super().__init__(network, **parameters)
        self.scenes = scenes
        self.pasted = self.shown = 0

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, h, w) and categories of their pixels (B, h, w)."""
        self.scenes.set_epoch(self.step)  # a row that comes twice in an epoch is pasted into anew
        drawn = [self.scenes[row] for row in index.tolist()]
        self.pasted += sum(int(scene.source.sum()) for scene in drawn)
        self.shown += sum(len(scene.source) for scene in drawn)
        maps = [category_map(scene.labels, scene.masks, scene.image.shape[:2]) for scene in drawn]
        return pixels([scene.image for scene in drawn]).to(self.device), torch.from_numpy(np.stack(maps)).to(
            self.device
        )

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Mean over pixels."""
        images, categories = batch
        return F.cross_entropy(self.network(images), categories + 1), {}


def pixels(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(list(images)))).permute(0, 3, 1, 2).float() / 255


def without_categories(network: nn.Module, n_outputs: int) -> nn.Module:
    """A copy of `network` whose last layer keeps its first `n_outputs` outputs (step 6).

    Raises
    ------
    ValueError
        If the network has no linear or convolutional layer, or that has fewer outputs.
    """
    own = copy.deepcopy(network)
    layers = [(name, m) for name, m in own.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if not layers or len(layers[-1][1].weight) < n_outputs:
        raise ValueError(f"{type(network).__name__} ends with no layer of {n_outputs} outputs or more to cut.")
    _, last = layers[-1]
    last.weight = nn.Parameter(last.weight.detach()[:n_outputs].clone())
    if last.bias is not None:
        last.bias = nn.Parameter(last.bias.detach()[:n_outputs].clone())
    if isinstance(last, nn.Linear):
        last.out_features = n_outputs
    else:
        last.out_channels = n_outputs
    if isinstance(own, UNet):
        described: dict[str, Any] = dict(own.architecture)  # type: ignore[arg-type]
        own.architecture = described | {"out_channels": n_outputs}  # type: ignore[assignment]
    return own


def _gives_maps(network: nn.Module, images: NDArray[np.uint8], outputs: int) -> bool:
    """Whether logits (n, outputs, h, w) come of images (n, h, w, 3)."""
    try:
        found = predict_in_batches(network, pixels(images))
    except RuntimeError:
        return False
    return tuple(found.shape) == (len(images), outputs, *images.shape[1:3])


# ---- step 7: analysis --------------------------------------------------------------------------------------


def intersection_over_union(predicted: ArrayLike, truth: ArrayLike, n_categories: int) -> NDArray[np.float64]:
    """Of each category over all pixels of all images; nan where a category is neither predicted nor there.

    Parameters
    ----------
    predicted, truth : array of int
        Category maps of one shape, -1 where there is no object.
    n_categories : int

    Examples
    --------
    >>> intersection_over_union([[0, 0, 1, -1]], [[0, 1, 1, -1]], 3)
    array([0.5, 0.5, nan])
    """
    first, second = np.asarray(predicted), np.asarray(truth)
    if first.shape != second.shape:
        raise ValueError(f"predicted and truth must be of the same pixels, got {first.shape} and {second.shape}.")
    both = [((first == c) & (second == c)).sum() for c in range(n_categories)]
    either = [((first == c) | (second == c)).sum() for c in range(n_categories)]
    return np.array([b / e if e else np.nan for b, e in zip(both, either, strict=True)])


def average_precision(
    predicted: Sequence[Instances], truth: Sequence[Instances], n_categories: int
) -> NDArray[np.float64]:
    """Average precision of masks, of each category, as COCO has it: mean over overlaps of 0.5 to 0.95.

    Parameters
    ----------
    predicted : sequence of dict
        ``labels`` (m,), ``masks`` (m, h, w) and ``scores`` (m,) of each image.
    truth : sequence of dict
        ``labels`` and ``masks``.
    n_categories : int
        Real ones: predictions of further categories do not count.

    Returns
    -------
    array of float64, (n_categories,)
        nan where the truth has none.
    """
    if len(predicted) != len(truth):
        raise ValueError(f"predicted and truth must be of the same images, got {len(predicted)} and {len(truth)}.")
    found = np.full(n_categories, np.nan)
    for category in range(n_categories):
        tables, scores, n_true = [], [], 0
        for given, wanted in zip(predicted, truth, strict=True):
            own = np.asarray(given["labels"]) == category
            real = np.asarray(wanted["masks"], dtype=bool)[np.asarray(wanted["labels"]) == category]
            order = np.argsort(-np.asarray(given["scores"])[own], kind="stable")
            tables.append(_matches(np.asarray(given["masks"], dtype=bool)[own][order], real))
            scores.append(np.asarray(given["scores"], dtype=float)[own][order])
            n_true += len(real)
        if n_true:
            ranked = np.argsort(-np.concatenate(scores), kind="stable")
            found[category] = _area_under(np.concatenate(tables, axis=1)[:, ranked], n_true)
    return found


def _matches(masks: NDArray[np.bool_], real: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each prediction, best first, finds a real object that none before it took: (thresholds, m)."""
    hits = np.zeros((len(IOU_THRESHOLDS), len(masks)), dtype=bool)
    if not len(masks) or not len(real):
        return hits
    flat, other = masks.reshape(len(masks), -1).astype(float), real.reshape(len(real), -1).astype(float)
    shared = flat @ other.T
    overlap = shared / np.maximum(flat.sum(axis=1)[:, None] + other.sum(axis=1)[None] - shared, 1)
    for level, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(len(real), dtype=bool)
        for row in range(len(masks)):
            best = int(np.argmax(np.where(free, overlap[row], -1.0)))
            if free[best] and overlap[row, best] >= threshold - 1e-9:
                hits[level, row], free[best] = True, False
    return hits


def _area_under(hits: NDArray[np.bool_], n_true: int) -> float:
    """Precision at 101 recalls, never rising with recall, mean over recalls and thresholds."""
    if not hits.shape[1]:
        return 0.0
    right = np.cumsum(hits, axis=1)
    recall, precision = right / n_true, right / np.arange(1, hits.shape[1] + 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    means = []
    for level in range(len(hits)):
        place = np.searchsorted(recall[level], RECALLS - 1e-12)
        means.append(np.where(place < hits.shape[1], precision[level, np.minimum(place, hits.shape[1] - 1)], 0).mean())
    return float(np.mean(means))


def train_val_gap(ap_train: ArrayLike, ap_val: ArrayLike, categories: Sequence[int] | None = None) -> float:
    """How much better a model does on what it was trained on (step 7): a gauge of over-fitting.

    Parameters
    ----------
    ap_train, ap_val : float or array, (n_categories,)
        Average precision, or another score, on a sample of the training images as large as the validation set, and on
        the validation images; nan for categories that do not occur.
    categories : sequence of int, optional
        Only these, such as the rare ones.

    Examples
    --------
    >>> train_val_gap(0.75, 0.5), train_val_gap([0.5, 0.9, 0.7], [0.5, 0.2, float("nan")], [1, 2])
    (0.25, 0.7)
    """
    train, val = np.atleast_1d(np.asarray(ap_train, dtype=float)), np.atleast_1d(np.asarray(ap_val, dtype=float))
    if train.shape != val.shape:
        raise ValueError(f"ap_train and ap_val must be of the same categories, got {train.shape} and {val.shape}.")
    gaps = (train - val) if categories is None else (train - val)[list(categories)]
    return round(float(np.nanmean(gaps)), 12) if np.isfinite(gaps).any() else float("nan")


# ---- the method --------------------------------------------------------------------------------------------


@register(
    "divergen",
    stage="curate",
    summary="Pastes filtered objects from several image generators into the training images of a segmentation model.",
    paper="DiverGen: Improving Instance Segmentation by Learning Wider Data Distribution with More Diverse "
    "Generative Data",
    year=2024,
    link="https://arxiv.org/abs/2405.10185",
    licence="BSD-2-Clause, non-commercial",
    accepts=("image",),
    taxonomy={
        "goal": "diversification",
        "utility": "resemblance of generated objects to real ones of their category",
        "unit": "data point",
        "mechanism": "generation, filtering by similarity, copy and paste",
        "stage_of_training": "supervised training",
    },
)
class DiverGen(BaseEstimator):
    """Trains a pixel classifier on images into which generated objects are pasted anew each epoch.

    For a detector of your own take :class:`~models.curate.copy_paste.PastedImages`, which gives images, boxes,
    labels and masks. Validation images must never get pastes.

    Parameters
    ----------
    pool : GenerativeInstancePool or list of dict, optional
        Fitted, or its entries; :func:`~models.curate.instance_pool.real_cutouts` makes entries of real objects. Labels
        beyond the real categories are further categories, learned and then dropped. None trains without pasting.
    model_fn : nn.Module or callable, optional
        Number of outputs (categories and one for the background) -> network of images (B, 3, h, w) to logits
        (B, outputs, h, w). A module is copied. None takes a U-Net.
    composer : CopyPasteComposer, optional
        Built on the same pool; None makes one with the sizes of the training objects.
    n_categories : int, optional
        Real categories; one more than the largest label when None.
    n_steps : int, default=700
        Optimisation steps.
    batch_size : int, default=12
    lr, weight_decay : float
        Of AdamW with a one-cycle schedule.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    network_ : nn.Module
        With the outputs of the real categories only.
    n_real_ : int
        Real categories.
    n_categories_ : int
        With the pool's further ones.
    pasted_share_ : float
        Of the objects trained on.
    history_ : list of dict

    References
    ----------
    Fan et al. (2024), section 3; a pixel classifier stands for their detector.

    Examples
    --------
    >>> image = np.zeros((16, 16, 3), dtype=np.uint8)
    >>> image[3:9, 4:10] = 200
    >>> objects = {"labels": [0], "masks": (image[:, :, 0] > 0)[None]}
    >>> model = DiverGen(n_steps=60, batch_size=2, random_state=0).fit([image] * 4, [objects] * 4)
    >>> bool((model.predict([image])[0] == np.where(image[:, :, 0] > 0, 0, -1)).mean() > 0.9)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "pool": [None, GenerativeInstancePool, list],
        "model_fn": [None, nn.Module, callable],
        "composer": [None, CopyPasteComposer],
        "n_categories": [None, Interval(Integral, 1, None, closed="left")],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        pool: GenerativeInstancePool | list[dict[str, Any]] | None = None,
        model_fn: nn.Module | Callable[[int], nn.Module] | None = None,
        composer: CopyPasteComposer | None = None,
        *,
        n_categories: int | None = None,
        n_steps: int = 700,
        batch_size: int = 12,
        lr: float = 6e-3,
        weight_decay: float = 1e-4,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.pool = pool
        self.model_fn = model_fn
        self.composer = composer
        self.n_categories = n_categories
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Sequence[Instances]) -> DiverGen:
        """Train on annotated images.

        Parameters
        ----------
        X : array or sequence, uint8 (n, h, w, 3)
        y : sequence of dict
            ``labels`` (m,) and ``masks`` (m, h, w) of each image, by choice ``boxes``.

        Raises
        ------
        ValueError
            For no images, images of unequal size, annotations that do not fit, no object at all, a network that
            does not give a map of logits, or one whose outputs can not be cut where the pool has further categories.
        """
        self._validate_params()
        images = self._images(X)
        if len(y) != len(images):
            raise ValueError(f"y must hold the instances of {len(images)} images, got {len(y)}.")
        known = [
            check_instances(image, own, place=f"X[{row}]", n_categories=self.n_categories)[2]
            for row, (image, own) in enumerate(zip(images, y, strict=True))
        ]
        labels = np.concatenate(known)
        if not len(labels):
            raise ValueError("y holds no object at all; annotate some first.")
        entries = self.composer.entries if self.composer is not None else entries_of(self.pool)
        n_real = self.n_categories or int(labels.max()) + 1
        self.n_real_ = self.n_categories_ = max([n_real, *(int(entry["category"]) + 1 for entry in entries)])
        with isolated_seed(self.random_state) as seed:
            network = self._network(images, n_real)
            composer = self.composer
            if composer is None and self.pool is not None:
                composer = CopyPasteComposer(self.pool, size_stats=size_statistics(list(images), y), random_state=seed)
            trainer = PasteTrainer(
                network,
                PastedImages(list(images), y, composer),
                n_steps=self.n_steps,
                batch_size=self.batch_size,
                optimizer=adam(self.lr, self.weight_decay, decoupled=True),
                schedule=one_cycle(),
                label="divergen",
                seed=seed,
                device=self.device,
            )
            trainer.fit(torch.arange(len(images)))
        self.network_ = network.cpu().eval()
        self.history_ = trainer.history
        self.pasted_share_ = trainer.pasted / max(trainer.shown, 1)
        return self.drop_categories(n_real)

    def _images(self, X: Any) -> NDArray[np.uint8]:
        shapes = sorted({np.shape(image) for image in X})
        if len(shapes) != 1:
            raise ValueError(
                f"X must hold at least one image, all of one size, got the shapes {shapes[:3]}. Crop or scale them."
            )
        images = np.stack([np.asarray(image) for image in X])
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ValueError(f"X must be uint8 (n, h, w, 3), got {images.dtype} {images.shape}.")
        return images

    def _network(self, images: NDArray[np.uint8], n_real: int) -> nn.Module:
        """The network to train, tried on one image, whole and cut."""
        outputs = self.n_categories_ + 1
        if self.model_fn is None:
            made: Any = UNet(outputs, in_channels=3)
        else:
            made = copy.deepcopy(self.model_fn) if isinstance(self.model_fn, nn.Module) else self.model_fn(outputs)
        if not isinstance(made, nn.Module) or not _gives_maps(made, images[:1], outputs):
            wanted = (1, outputs, *images.shape[1:3])
            raise ValueError(f"model_fn must give a network with maps of logits shaped {wanted} for one image of X.")
        if n_real < self.n_categories_ and not _gives_maps(
            without_categories(made, n_real + 1), images[:1], n_real + 1
        ):
            raise ValueError(
                "The pool's further categories are cut off the last layer of the network, in the order of its modules, "
                "but that does not make its logits. Define the head last."
            )
        return made

    def drop_categories(self, n_real: int) -> DiverGen:
        """Cut the network's outputs to the background and the first `n_real` categories.

        Raises
        ------
        ValueError
            If there are not so many, or none shall stay.
        """
        check_is_fitted(self, "network_")
        if not 1 <= n_real <= self.n_real_:
            raise ValueError(f"n_real must lie in 1..{self.n_real_}, the categories there are, got {n_real}.")
        if n_real < self.n_real_:
            self.network_ = without_categories(self.network_, n_real + 1)
            self.n_real_ = n_real
        return self

    def _logits(self, X: Any) -> Tensor:
        check_is_fitted(self, "network_")
        return predict_in_batches(self.network_, pixels(self._images(X)), 64)

    def predict(self, X: Any) -> Maps:
        """Category of each pixel, (n, h, w); -1 is background."""
        return self._logits(X).argmax(dim=1).numpy() - 1

    def predict_instances(self, X: Any) -> list[dict[str, Any]]:
        """Connected pieces of one category as instances: labels, masks, boxes, scores (mean probability)."""
        logits = self._logits(X)
        found = []
        for sure, categories in zip(logits.softmax(dim=1).numpy(), logits.argmax(dim=1).numpy() - 1, strict=True):
            labels, masks, scores = [], [], []
            for category in np.unique(categories[categories >= 0]).tolist():
                pieces, n = ndimage.label(categories == category)
                for number in range(1, n + 1):
                    labels.append(category)
                    masks.append(pieces == number)
                    scores.append(float(sure[category + 1][pieces == number].mean()))
            stacked = np.array(masks, dtype=bool).reshape(-1, *categories.shape)
            found.append(
                {
                    "labels": np.array(labels, dtype=np.int64),
                    "masks": stacked,
                    "boxes": boxes_of(stacked),
                    "scores": np.array(scores),
                }
            )
        return found

    def score(self, X: Any, y: Sequence[Instances]) -> float:
        """Mean over categories of :func:`average_precision` of the instances predicted."""
        return float(np.nanmean(average_precision(self.predict_instances(X), y, self.n_real_)))

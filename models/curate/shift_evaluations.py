"""What a network (or a training set) is worth: accuracy, transfer to a small task, a probe of frozen features.

B. Feuer et al., "SELECT: A Large-Scale Benchmark of Data Curation Strategies for Image Classification", NeurIPS 2024,
arXiv:2410.05057, section 4. Each is a named function of a network and a seed, as the benchmark's suite wants them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.base import check_labels, isolated_seed, predict_in_batches
from models.curate.curation_strategies import LabelledSet
from models.curate.shift_statistics import balanced_knn_probe
from models.training import ClassifierTrainer, Row, cosine, sgd
from models.unlearn.split import stack_inputs


def endless_batches(n: int, rows: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Batches of the `epoch`-th run of `rows` rows in an endless stream of permutations of `n`; none of one row."""
    order: list[NDArray[np.int64]] = []
    start, stop = epoch * rows, (epoch + 1) * rows
    for number in range(start // n, -(-stop // n)):
        order.append(np.random.default_rng([seed, number]).permutation(n))
    stream = torch.from_numpy(np.concatenate(order)[start - (start // n) * n :][:rows])
    for index in stream.split(batch_size):
        if len(index) > 1:
            yield index


class WeightedTrainer(ClassifierTrainer):
    """Cross-entropy of (X, y, weight), weighted by row."""

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Weighted mean of the rows' cross-entropies."""
        x, y, weight = batch
        logits = self.network(x)
        losses = F.cross_entropy(logits, y, reduction="none", label_smoothing=self.criterion.label_smoothing)
        loss = (losses * weight).sum() / weight.sum().clamp(min=1e-12)
        return loss, {"train_accuracy": float((logits.argmax(1) == y).float().mean())}


class ShiftTrainer:
    """Trains a network on a set for so many rows, whatever the set's size: the same recipe for every set.

    Parameters
    ----------
    epochs : int
        Times the nominal number of rows.
    lr, momentum, weight_decay, label_smoothing : float
        Of SGD with a cosine schedule; the last two as published for ResNet-50 (with rate 0.5 at 192 to 768 rows a
        batch on several devices).
    batch_size : int
    device : str
    """

    def __init__(
        self,
        epochs: int = 10,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 2e-5,
        label_smoothing: float = 0.1,
        batch_size: int = 64,
        device: str = "cpu",
    ) -> None:
        self.epochs, self.lr, self.momentum, self.weight_decay = epochs, lr, momentum, weight_decay
        self.label_smoothing, self.batch_size, self.device = label_smoothing, batch_size, device

    def __call__(self, network: nn.Module, data: LabelledSet, rows: int, seed: int) -> nn.Module:
        """Train `network` in place on `epochs` times `rows` rows of `data`."""
        X, y = stack_inputs(data.X), torch.from_numpy(np.asarray(data.y, dtype=np.int64))
        weight = torch.ones(len(X)) if data.weights is None else torch.as_tensor(data.weights).float()
        WeightedTrainer(
            network,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=sgd(self.lr, self.momentum, self.weight_decay),
            schedule=cosine,
            batches=lambda epoch: endless_batches(len(X), rows, self.batch_size, seed, epoch),
            label_smoothing=self.label_smoothing,
            label="shift",
            seed=seed,
            device=self.device,
        ).fit(X, y, weight)
        return network.cpu().eval()


class Accuracy:
    """Share of rows a network answers right.

    Parameters
    ----------
    X : array or tensor, (n, ...)
    y : array of int, (n,)
    name : str
    """

    def __init__(self, X: Any, y: Any, name: str = "accuracy") -> None:
        self.name, self.rows = name, stack_inputs(X)
        self.y = check_labels(y, len(self.rows), allow_unlabelled=False, minimum_classes=1)

    def predict(self, network: nn.Module) -> NDArray[np.int64]:
        """The likeliest class of each row."""
        return predict_in_batches(network, self.rows).argmax(1).numpy()

    def correct(self, network: nn.Module) -> NDArray[np.bool_]:
        """Which rows are answered right."""
        return self.predict(network) == self.y

    def __call__(self, network: nn.Module, seed: int) -> float:
        """Their share."""
        return float(self.correct(network).mean())


def with_new_head(network: nn.Module, n_classes: int) -> nn.Module:
    """A copy of `network` whose last linear layer is a fresh one for `n_classes`.

    Raises
    ------
    ValueError
        If it has no linear layer.
    """
    copied = copy.deepcopy(network)
    linear = [name for name, layer in copied.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError("The network has no linear layer to replace; give one that ends in a linear head.")
    where, _, last = linear[-1].rpartition(".")
    fresh = nn.Linear(copied.get_submodule(linear[-1]).in_features, n_classes)  # type: ignore[arg-type]
    setattr(copied.get_submodule(where), last, fresh)
    return copied


class Transfer:
    """Accuracy on another task after its head is replaced and all layers are fine-tuned.

    Parameters
    ----------
    X_train, y_train, X_test, y_test : array
        Images (n, C, H, W) and their classes 0..K-1.
    name : str
    steps : int
    lr : float
        Falls to a tenth every `decay_every` steps.
    decay_every, batch_size : int
    momentum : float
        0.9 is meant; the published script leaves it out by mistake.
    side : int, optional
        Images are resized to it; None leaves them. 64 is published.
    device : str
    """

    def __init__(
        self,
        X_train: Any,
        y_train: Any,
        X_test: Any,
        y_test: Any,
        name: str = "transfer",
        *,
        steps: int = 1000,
        lr: float = 0.01,
        decay_every: int = 300,
        batch_size: int = 64,
        momentum: float = 0.9,
        side: int | None = 64,
        device: str = "cpu",
    ) -> None:
        self.name, self.steps, self.lr, self.decay_every = name, steps, lr, decay_every
        self.batch_size, self.momentum, self.device = batch_size, momentum, device
        self.train, self.rows = _resized(stack_inputs(X_train), side), _resized(stack_inputs(X_test), side)
        self.y_train = check_labels(y_train, len(self.train), allow_unlabelled=False)
        self.y = check_labels(y_test, len(self.rows), allow_unlabelled=False, minimum_classes=1)

    def __call__(self, network: nn.Module, seed: int) -> float:
        """Fine-tune a copy and ask it; `network` stays as it is."""
        with isolated_seed(seed):
            tuned = with_new_head(network, int(max(self.y_train.max(), self.y.max())) + 1)
            rows = self.steps * self.batch_size
            ClassifierTrainer(
                tuned,
                epochs=1,
                batch_size=self.batch_size,
                optimizer=sgd(self.lr, self.momentum),
                schedule=lambda step, _: 0.1 ** (step // self.decay_every),
                batches=lambda epoch: endless_batches(len(self.train), rows, self.batch_size, seed, epoch),
                label=f"transfer to {self.name}",
                seed=seed,
                device=self.device,
            ).fit(self.train, torch.from_numpy(self.y_train))
        tuned.cpu().eval()
        return float((predict_in_batches(tuned, self.rows).argmax(1).numpy() == self.y).mean())


def _resized(images: Tensor, side: int | None) -> Tensor:
    if side is None or images.shape[-2:] == (side, side):
        return images
    if images.ndim != 4:
        raise ValueError(f"Only images (n, C, H, W) can be resized, got {tuple(images.shape)}; set side=None.")
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


class BalancedProbe:
    """How well the features of a set, by a frozen encoder, vote for held-out rows; asks no trained network.

    Parameters
    ----------
    encoder : callable
        Rows -> features (n, d), the same for every set, trained without labels.
    X, y : array
        Held-out rows and their classes.
    per_class : int
        Features of each class in the index.
    k : int
    T : float
    name : str
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor],
        X: Any,
        y: Any,
        per_class: int,
        k: int = 20,
        T: float = 0.07,
        name: str = "k-NN probe",
    ) -> None:
        self.encoder, self.per_class, self.k, self.T, self.name = encoder, per_class, k, T, name
        self.rows = stack_inputs(X)
        self.y = check_labels(y, len(self.rows), allow_unlabelled=False, minimum_classes=1)
        self.features = predict_in_batches(encoder, self.rows)

    def __call__(self, data: LabelledSet, seed: int) -> float:
        """Accuracy of the vote."""
        order = np.random.default_rng(seed).permutation(len(data))  # so that what is cut off is chance
        features = predict_in_batches(self.encoder, stack_inputs(data.X)[torch.from_numpy(order)])
        y = np.asarray(data.y)[order]
        accuracy = balanced_knn_probe(features, y, self.features, self.y, self.per_class, self.k, self.T, seed)
        return accuracy if math.isfinite(accuracy) else 0.0

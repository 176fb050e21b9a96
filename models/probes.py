"""Classifiers on frozen feature maps: how good a representation is, asked with a linear, non-linear or conv probe.

S. Gidaris, P. Singh and N. Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations",
ICLR 2018, arXiv:1803.07728, sections 4.1 and 4.2 and the reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.base import UNLABELLED, check_labels, isolated_seed, predict_in_batches
from models.networks.nin import draw_convolutions, nin_block
from models.training import ClassifierTrainer, sgd, table_rate

RateTable = Sequence[tuple[int, float]]
CIFAR_TABLE: RateTable = ((20, 0.1), (40, 0.02), (45, 0.004), (50, 0.0008))
CONV_TABLE: RateTable = ((35, 0.1), (70, 0.02), (85, 0.004), (100, 0.0008))
IMAGENET_TABLE: RateTable = ((5, 0.01), (15, 0.002), (25, 0.0004), (35, 0.00008))
POOLED_FEATURES = 9216
"""About how many features the linear probe looks at."""


def check_rate_table(table: RateTable, name: str = "lr_table") -> None:
    """Raise a ValueError unless `table` holds (bound, rate) pairs with rising bounds and positive rates."""
    try:
        bounds, rates = zip(*table, strict=True)
        fine = bounds[0] > 0 and all(a < b for a, b in pairwise(bounds)) and min(rates) > 0
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise ValueError(
            f"{name} must hold pairs (epochs until, rate) with rising bounds and positive rates, "
            f"for instance ((60, 0.1), (120, 0.02)); got {table!r}."
        )


def draw_linear(module: nn.Module) -> None:
    """Linear weights anew from N(0, 2 / fan_out), biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / layer.out_features))
            nn.init.zeros_(layer.bias)


class TableTrainer(ClassifierTrainer):
    """Cross-entropy with the learning rate of each epoch read from a table."""

    def __init__(self, network: nn.Module, *, lr_table: RateTable, **parameters: Any) -> None:
        super().__init__(network, **parameters)
        self.lr_table = lr_table

    def before_epoch(self) -> None:
        """Set the rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = table_rate(self.lr_table, self.epoch)


class Probe(ClassifierMixin, BaseEstimator):
    """What the three probes share: training by SGD with a rate table, and prediction. Not used by itself.

    Attributes
    ----------
    network_ : nn.Module
    classes_ : array, (n_classes,)
    history_ : list of dict
        One row an epoch.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "lr_table": ["array-like"],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "momentum": [Interval(Real, 0, 1, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
    }
    epochs: int
    lr_table: RateTable
    batch_size: int
    momentum: float
    weight_decay: float
    device: str
    random_state: int | np.random.RandomState | None

    def build(self, shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """The probe's network for feature maps of `shape` (C, h, w)."""
        raise NotImplementedError(f"{type(self).__name__} must say what it is made of: override build.")

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> Probe:
        """Train on features of a frozen network.

        Parameters
        ----------
        X : array or tensor, (n, C, h, w) or (n, d)
            Computed in eval mode.
        y : array of int, (n,)
            -1 rows are left out.

        Raises
        ------
        ValueError
            For features of another rank or that are not finite, or fewer than two classes.
        """
        self._validate_params()
        check_rate_table(self.lr_table)
        features = check_maps(X)
        labels = check_labels(y, len(features))
        kept = labels != UNLABELLED
        self.classes_, targets = np.unique(labels[kept], return_inverse=True)
        rows = features[torch.from_numpy(kept)]
        with isolated_seed(self.random_state) as seed:
            self.network_ = self.build(tuple(rows.shape[1:]), len(self.classes_))
            trainer = TableTrainer(
                self.network_,
                lr_table=self.lr_table,
                epochs=self.epochs,
                batch_size=self.batch_size,
                optimizer=sgd(self.lr_table[0][1], self.momentum, self.weight_decay, nesterov=True),
                label=type(self).__name__,
                seed=seed,
                device=self.device,
            )
            trainer.fit(rows, torch.from_numpy(targets))
        self.network_.cpu()
        self.history_, self.shape_ = trainer.history, tuple(rows.shape[1:])
        return self

    def predict_proba(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Class probabilities, (n, n_classes).

        Raises
        ------
        ValueError
            For features shaped otherwise than in fit.
        """
        check_is_fitted(self, "network_")
        features = check_maps(X)
        if tuple(features.shape[1:]) != self.shape_:
            raise ValueError(
                f"X must hold features shaped {self.shape_} as in fit, got {tuple(features.shape[1:])}. "
                "Take them from the same layer, of images of the same size."
            )
        network = self.network_.to(self.device)
        logits = predict_in_batches(network, features, device=self.device)
        network.cpu()
        return logits.softmax(dim=1).numpy()

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.int64]:
        """The likeliest class of each row, (n,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]


def check_maps(X: ArrayLike | Tensor) -> Tensor:
    """Finite float32 features (n, C, h, w); rows (n, d) become maps of one pixel."""
    features = X.detach().cpu() if isinstance(X, Tensor) else torch.from_numpy(np.array(X))
    if features.ndim == 2:
        features = features[:, :, None, None]
    if features.ndim != 4:
        raise ValueError(
            f"X must be feature maps (n, C, h, w) or rows (n, d), got an array shaped {tuple(features.shape)}."
        )
    features = features.to(torch.float32)
    if not torch.isfinite(features).all():
        raise ValueError("X contains NaN or infinite features. Look at the network they come from.")
    return features


class LinearProbe(Probe):
    """Adaptive max-pool to about 9,000 features, batch normalisation without scale and shift, one linear layer.

    Parameters
    ----------
    epochs : int, default=35
    lr_table : sequence of (int, float)
        (bound, rate): the rate of a 0-based epoch is the first with bound > epoch; afterwards the last.
    batch_size : int, default=192
    momentum : float, default=0.9
        Nesterov's.
    weight_decay : float, default=5e-4
    device : str, default="cpu"
    random_state : int, RandomState or None

    References
    ----------
    Gidaris et al. (2018), section 4.2 (ImageNet).

    Examples
    --------
    >>> import numpy as np
    >>> maps = np.random.default_rng(0).normal(size=(40, 3, 4, 4))
    >>> maps[:20, 0] += 3
    >>> LinearProbe(epochs=5, random_state=0).fit(maps, [0] * 20 + [1] * 20).predict(maps).shape
    (40,)
    """

    def __init__(
        self,
        epochs: int = 35,
        lr_table: RateTable = IMAGENET_TABLE,
        batch_size: int = 192,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.epochs = epochs
        self.lr_table = lr_table
        self.batch_size = batch_size
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state

    def build(self, shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """The probe's network for feature maps of `shape` (C, h, w)."""
        channels, height, width = shape
        side = max(1, round(math.sqrt(POOLED_FEATURES / channels)))
        rows, columns = min(side, height), min(side, width)
        network = nn.Sequential(
            nn.AdaptiveMaxPool2d((rows, columns)),
            nn.BatchNorm2d(channels, affine=False),
            nn.Flatten(),
            nn.Linear(channels * rows * columns, n_classes),
        )
        draw_linear(network)
        return network


class NonLinearProbe(Probe):
    """Two hidden layers of min(20 classes, 2048) units with batch normalisation and ReLU, then one linear layer.

    Parameters
    ----------
    epochs : int, default=100
    lr_table : sequence of (int, float)
        (bound, rate): the rate of a 0-based epoch is the first with bound > epoch; afterwards the last.
    batch_size : int, default=128
    momentum : float, default=0.9
        Nesterov's.
    weight_decay : float, default=5e-4
    device : str, default="cpu"
    random_state : int, RandomState or None

    References
    ----------
    Gidaris et al. (2018), section 4.1 (CIFAR-10, "non-linear").

    Examples
    --------
    >>> import numpy as np
    >>> maps = np.random.default_rng(0).normal(size=(40, 3, 4, 4))
    >>> maps[:20, 0] += 3
    >>> NonLinearProbe(epochs=5, random_state=0).fit(maps, [0] * 20 + [1] * 20).predict(maps).shape
    (40,)
    """

    def __init__(
        self,
        epochs: int = 100,
        lr_table: RateTable = CIFAR_TABLE,
        batch_size: int = 128,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.epochs = epochs
        self.lr_table = lr_table
        self.batch_size = batch_size
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state

    def build(self, shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """The probe's network for feature maps of `shape` (C, h, w)."""
        hidden = min(20 * n_classes, 2048)
        network = nn.Sequential(nn.Flatten())
        for inputs in (math.prod(shape), hidden):
            network.extend([nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU()])
        network.append(nn.Linear(hidden, n_classes))
        draw_linear(network)
        return network


class ConvProbe(Probe):
    """A fresh Network-In-Network block on the maps, global average, one linear layer.

    Parameters
    ----------
    width : int, default=192
        Channels of the block.
    epochs : int, default=100
    lr_table : sequence of (int, float)
        (bound, rate): the rate of a 0-based epoch is the first with bound > epoch; afterwards the last.
    batch_size : int, default=128
    momentum : float, default=0.9
        Nesterov's.
    weight_decay : float, default=5e-4
    device : str, default="cpu"
    random_state : int, RandomState or None

    References
    ----------
    Gidaris et al. (2018), section 4.1 (CIFAR-10, "conv").

    Examples
    --------
    >>> import numpy as np
    >>> maps = np.random.default_rng(0).normal(size=(40, 3, 4, 4))
    >>> maps[:20, 0] += 3
    >>> ConvProbe(width=8, epochs=5, random_state=0).fit(maps, [0] * 20 + [1] * 20).predict(maps).shape
    (40,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Probe._parameter_constraints,
        "width": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        width: int = 192,
        epochs: int = 100,
        lr_table: RateTable = CONV_TABLE,
        batch_size: int = 128,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.width = width
        self.epochs = epochs
        self.lr_table = lr_table
        self.batch_size = batch_size
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state

    def build(self, shape: tuple[int, ...], n_classes: int) -> nn.Module:
        """The probe's network for feature maps of `shape` (C, h, w)."""
        block = nn.Sequential(*nin_block(shape[0], (self.width,) * 3, kernel=3))
        draw_convolutions(block)
        last = nn.Linear(self.width, n_classes)
        nn.init.zeros_(last.bias)
        return nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)

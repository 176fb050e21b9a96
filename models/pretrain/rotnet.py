"""RotNet: an encoder learns what pictures show by telling how far they were turned.

S. Gidaris, P. Singh and N. Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations",
ICLR 2018, arXiv:1803.07728.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import kornia.augmentation as K
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.augment import ResizedCrop, View, weak
from models.base import check_images, isolated_seed, predict_in_batches
from models.networks import network
from models.networks.encoders import EncoderSpec, at_rest, feature_width, for_training, make_encoder, pooled
from models.networks.nin import AlexNetEncoder, NetworkInNetwork
from models.probes import RateTable, check_rate_table
from models.registry import register
from models.training import Row, Trainer, sgd, table_rate

LOG = logging.getLogger(__name__)
LR = 0.1
LR_TABLE: RateTable = ((60, 0.1), (120, 0.02), (160, 0.004), (200, 0.0008))
HOPELESS = 1.6
"""Times chance: with four rotations, accuracy under 0.4 says that the pictures have no upright position."""


# The equations -----------------------------------------------------------------------------------------------------


def rotated(images: Tensor, quarter_turns: int) -> Tensor:
    """Step 2: g(x|k), turned counter-clockwise by k quarter turns as ``numpy.rot90`` does; nothing is resampled."""
    return torch.rot90(images, quarter_turns, dims=(-2, -1))


def rotated_copies(images: Tensor, quarter_turns: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Step 3: every rotation of every image in one batch, (R B, C, H, W), and their labels 0..R-1, (R B,).

    Sorted by rotation: the first B rows are the images turned by the first angle.
    """
    copies = torch.cat([rotated(images, k) for k in quarter_turns])
    labels = torch.arange(len(quarter_turns), device=images.device).repeat_interleave(len(images))
    return copies, labels


def rotation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Step 4: ``-(1/N) sum_i (1/R) sum_k log F^k(g(x_i|k))``, the mean cross-entropy over all copies."""
    return F.cross_entropy(logits, labels)


def channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Step 1: mean and standard deviation of each channel, (C,); a constant channel gets deviation 1."""
    std = images.std(dim=(0, 2, 3), correction=0)
    return images.mean(dim=(0, 2, 3)), torch.where(std < 1e-6, 1.0, std)


# Network and training ----------------------------------------------------------------------------------------------


@network("rotation")
class RotationNetwork(nn.Module):
    """Encoder and a linear classifier of rotations.

    Parameters
    ----------
    encoder : nn.Module
        Gives rows (B, d), or maps, which are averaged over space.
    width : int
        d.
    n_rotations : int
    """

    def __init__(self, encoder: nn.Module, width: int, n_rotations: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(width, n_rotations)
        nn.init.zeros_(self.classifier.bias)

    def layer_names(self, example: Tensor) -> list[str]:
        """conv1..convL for an encoder with stages, and "features", its output."""
        stages = getattr(self.encoder, "stages", None)
        if stages is None:
            return ["features"]
        was_training = self.training
        self.eval()
        with torch.inference_mode():
            count = len(stages(example))
        self.train(was_training)
        return [f"conv{number}" for number in range(1, count + 1)] + ["features"]

    def layer(self, x: Tensor, name: str) -> Tensor:
        """The map (B, C, h, w) of a layer; rows count as maps of one pixel."""
        stage = name.removeprefix("conv")
        found = self.encoder.stages(x)[int(stage) - 1] if stage.isdigit() else self.encoder(x)  # type: ignore[operator]
        return found if found.ndim == 4 else found.flatten(1)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, R)."""
        return self.classifier(pooled(self.encoder(x)))


class RotationTrainer(Trainer):
    """All rotations of each image in one batch; the crop and flip are shared by an image's copies.

    Parameters
    ----------
    network : RotationNetwork
    view : callable
        Batch -> batch: crop and flip, before turning.
    mean, std : Tensor, (C, 1, 1)
    quarter_turns : sequence of int
    lr_table : sequence of (int, float)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        view: View,
        mean: Tensor,
        std: Tensor,
        quarter_turns: Sequence[int],
        lr_table: RateTable,
        **parameters: Any,
    ) -> None:
        super().__init__(network, **parameters)
        self.view, self.quarter_turns, self.lr_table = view, tuple(quarter_turns), lr_table
        self.mean, self.std = mean.to(self.device), std.to(self.device)

    def before_epoch(self) -> None:
        """Step 6: the epoch's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = table_rate(self.lr_table, self.epoch)

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Steps 1 to 3: crop, flip, normalise, then turn, so that no border tells the angle."""
        (images,) = super().fetch(index)
        return rotated_copies((self.view(images) - self.mean) / self.std, self.quarter_turns)

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Step 4, and the share of copies whose rotation was told."""
        copies, labels = batch
        logits = self.network(copies)
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        return rotation_loss(logits, labels), {"rotation_accuracy": float(accuracy)}


@register(
    "rotnet",
    stage="pretrain",
    summary="Pretrains an encoder by predicting how far upright pictures were turned",
    paper="Unsupervised Representation Learning by Predicting Image Rotations",
    year=2018,
    link="https://arxiv.org/abs/1803.07728",
    licence="MIT",
    accepts=("image",),
)
class RotNet(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Self-supervision by rotation, for pictures that have a natural "up".

    Parameters
    ----------
    architecture : {"nin", "alexnet"}, nn.Module or callable, default="nin"
        A module is copied and trained further; a function maps in_channels to one. With ``stages(x)``, the maps
        after each block, its layers can be asked for one by one.
    num_blocks : int, default=4
        Of "nin".
    width : int, default=192
        Of "nin"; scales all its widths.
    rotations : sequence of int, default=(0, 90, 180, 270)
        Angles in degrees, counter-clockwise, multiples of 90.
    feature_layer : str, default="conv2"
        Layer :meth:`transform` gives: "conv1".."convL", or "features" for the encoder's output. Deep layers
        specialise in rotation.
    pool : int, optional
        Average the map to pool x pool before it is flattened.
    epochs : int, default=200
        Passes over the images; each shows all rotations.
    batch_size : int, default=128
        Images; the network sees len(rotations) times as many.
    lr : float, default=0.1
        Initial rate. It scales the published table, and is the rate throughout when `lr_table` is None.
    lr_table : sequence of (int, float) or None
        (bound, rate): the rate of a 0-based epoch is the first with bound > epoch; afterwards the last. A table other
        than the published one is taken as it stands.
    momentum : float, default=0.9
    nesterov : bool, default=True
    weight_decay : float, default=5e-4
    crop_padding : int, default=4
        Zeros round the image before it is cropped back at random. "alexnet" takes a resized crop instead.
    horizontal_flip : bool, default=True
    mean, std : float, sequence of float, or None
        Of each channel, in [0, 1]; None takes those of X.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    network_ : RotationNetwork
    encoder_ : nn.Module
        Its encoder. It was trained on ``(x - mean_) / std_``; with ``mean=0, std=1`` it takes images as they are.
    mean_, std_ : array, (C,)
    loss_curve_, rotation_accuracy_curve_, lr_curve_ : list of float
        One entry an epoch.
    layers_ : list of str
        Names `feature_layer` may take.
    classes_ : array
        The angles.
    n_features_in_ : int
        Pixel values an image, C H W.

    Notes
    -----
    The published table lowers the rate after 60 epochs. A short training wants a table of its own that ends low:
    after four epochs of Fashion-MNIST at a constant 0.05, rotations were told with 0.95 in training but with 0.72 to
    0.95 (three seeds) in eval mode, because the batch-normalisation statistics lag behind fast weights.

    References
    ----------
    Gidaris et al. (2018). Steps are numbered as they run: preprocessing (1), rotation (2), batch (3), loss (4,
    eqs. 2 and 3), network (5), optimiser (6).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from models.networks.convnet import ConvEncoder
    >>> X = load_digits().images[:128] / 16
    >>> method = RotNet(ConvEncoder((4, 8)), epochs=1, crop_padding=1, horizontal_flip=False, random_state=0)
    >>> method.fit(X).transform(X).shape, method.predict_rotation(X).shape
    ((128, 128), (128,))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "architecture": [str, callable],
        "num_blocks": [Interval(Integral, 1, None, closed="left")],
        "width": [Interval(Integral, 2, None, closed="left")],
        "rotations": ["array-like"],
        "feature_layer": [str],
        "pool": [Interval(Integral, 1, None, closed="left"), None],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "lr_table": ["array-like", None],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "nesterov": ["boolean"],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "crop_padding": [Interval(Integral, 0, None, closed="left")],
        "horizontal_flip": ["boolean"],
        "mean": [Real, "array-like", None],
        "std": [Interval(Real, 0, None, closed="neither"), "array-like", None],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        architecture: EncoderSpec = "nin",
        num_blocks: int = 4,
        width: int = 192,
        rotations: Sequence[int] = (0, 90, 180, 270),
        feature_layer: str = "conv2",
        pool: int | None = None,
        epochs: int = 200,
        batch_size: int = 128,
        lr: float = LR,
        lr_table: RateTable | None = LR_TABLE,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        crop_padding: int = 4,
        horizontal_flip: bool = True,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.architecture = architecture
        self.num_blocks = num_blocks
        self.width = width
        self.rotations = rotations
        self.feature_layer = feature_layer
        self.pool = pool
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.lr_table = lr_table
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.crop_padding = crop_padding
        self.horizontal_flip = horizontal_flip
        self.mean = mean
        self.std = std
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: Any = None) -> RotNet:
        """Train the network to tell the rotations of `X` apart.

        Parameters
        ----------
        X : array or tensor, (n, H, W) or (n, C, H, W)
            Upright images in [0, 1] or uint8, square where they are turned by 90 or 270 degrees.
        y : None
            Not used.

        Raises
        ------
        ValueError
            For malformed or non-square images, angles or rates that can not be, or an unknown layer.
        """
        self._validate_params()
        images = self._check(X)
        with isolated_seed(self.random_state) as seed:
            self._build(images)
            self._run(self._trainer(seed), images)
        self._warn_if_hopeless(self.rotation_accuracy_curve_[-1], "At the end of training")
        return self

    def partial_fit(self, X: ArrayLike | Tensor, y: Any = None) -> RotNet:
        """One more epoch, over a chunk of streamed images.

        Goes on where `fit` or the last chunk ended, momentum and learning-rate table included; mean and deviation
        stay those of the first chunk.

        Parameters
        ----------
        X : array or tensor, (n, H, W) or (n, C, H, W)
        y : None
            Not used.

        Raises
        ------
        ValueError
            As :meth:`fit`, and for another number of channels than in the chunk before.
        """
        self._validate_params()
        begun = hasattr(self, "network_")
        images = self._check(X, channels=len(self.mean_) if begun else None)
        with isolated_seed(self.random_state) as seed:
            if not begun:
                self._build(images)
            trainer = self._trainer(seed)
            if begun:
                trainer.load_state_dict({**self._progress, "network": self.network_.state_dict()})
            trainer.epochs = trainer.epoch + 1
            self._run(trainer, images)
        return self

    def feature_map(self, X: ArrayLike | Tensor, layer: str | None = None) -> NDArray[np.float32]:
        """Map of a layer in eval mode, (n, C, h, w); the encoder's output counts as a map of one pixel.

        Parameters
        ----------
        X : array or tensor, (n, H, W) or (n, C, H, W)
        layer : str, optional
            One of `layers_`, instead of `feature_layer`.

        Raises
        ------
        ValueError
            For malformed images, another number of channels than in fit, or an unknown layer.
        """
        return self._layer(X, layer, pool=None).numpy()

    def transform(self, X: ArrayLike | Tensor, layer: str | None = None) -> NDArray[np.float32]:
        """The map of a layer, averaged to `pool` x `pool` if asked to and flattened, (n, d).

        Parameters and errors as :meth:`feature_map`.
        """
        return self._layer(X, layer, self.pool).flatten(1).numpy()

    def predict_rotation_proba(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Probability of each angle of `classes_`, (n, R)."""
        return self._logits(self._prepared(X)).softmax(dim=1).numpy()

    def predict_rotation(self, X: ArrayLike | Tensor) -> NDArray[np.int64]:
        """By which of the angles (0..R-1) each image seems to be turned, (n,)."""
        return self.predict_rotation_proba(X).argmax(axis=1)

    def score(self, X: ArrayLike | Tensor, y: Any = None) -> float:
        """Share of all R rotated copies of upright images `X` whose rotation is told."""
        images = self._prepared(X)
        check_square(images, self._quarter_turns())
        told = [
            (self._logits(rotated(images, turns)).argmax(dim=1) == label).float().mean()
            for label, turns in enumerate(self._quarter_turns())
        ]
        accuracy = float(torch.stack(told).mean())
        self._warn_if_hopeless(accuracy, f"On these {len(images)} images")
        return accuracy

    @property
    def _n_features_out(self) -> int:
        check_is_fitted(self, "network_")
        channels, height, width = self._map_shape
        return channels * (height * width if self.pool is None else self.pool**2)

    def _quarter_turns(self) -> list[int]:
        """The angles as numbers of quarter turns, checked."""
        angles = np.asarray(self.rotations)
        if angles.ndim != 1 or len(angles) < 2:
            raise ValueError(f"rotations must be at least two angles, got {self.rotations!r}.")
        if angles.dtype.kind not in "iuf" or np.any(angles % 90 != 0):
            raise ValueError(f"rotations must be multiples of 90 degrees, got {self.rotations!r}.")
        turns = [int(angle // 90) % 4 for angle in angles]
        if len(set(turns)) < len(turns):
            raise ValueError(f"rotations must all differ, got {self.rotations!r}.")
        return turns

    def _rates(self) -> RateTable:
        """The table of learning rates in force."""
        if self.lr_table is None:
            return ((self.epochs, self.lr),)
        check_rate_table(self.lr_table)
        table = [(int(bound), float(rate)) for bound, rate in self.lr_table]
        if table == list(LR_TABLE):
            return [(bound, rate * (self.lr / LR)) for bound, rate in table]
        if self.lr not in (LR, table[0][1]):
            raise ValueError(
                f"lr={self.lr:g} and an lr_table that starts at {table[0][1]:g} disagree. Give one of the two."
            )
        return table

    def _check(self, X: ArrayLike | Tensor, channels: int | None = None) -> Tensor:
        self._rates()
        images = check_images(X, channels=channels)
        check_square(images, self._quarter_turns())
        return images

    def _moments(self, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and deviation of each channel, given or measured."""
        channels = images.shape[1]
        found = []
        for name, given, measured in zip(("mean", "std"), (self.mean, self.std), channel_moments(images), strict=True):
            values = measured.numpy() if given is None else np.asarray(given, dtype=np.float32).reshape(-1)
            if len(values) not in (1, channels):
                raise ValueError(f"{name} must have one value for each of the {channels} channels, got {len(values)}.")
            found.append(np.broadcast_to(values, channels).astype(np.float32))
        if not (found[1] > 0).all():
            raise ValueError(f"std must be positive, got {self.std!r}.")
        return found[0], found[1]

    def _named(self, name: str, in_channels: int) -> nn.Module:
        if name == "nin":
            return NetworkInNetwork(self.num_blocks, self.width, in_channels)
        if name == "alexnet":
            return AlexNetEncoder(in_channels)
        raise ValueError(f"There is no architecture {name!r}: choose 'nin' or 'alexnet', or pass a module.")

    def _build(self, images: Tensor) -> None:
        """Step 5: the network, and what is known before training."""
        mean, std = self._moments(images)
        encoder = make_encoder(self.architecture, images.shape[1], self._named)
        self.network_ = RotationNetwork(encoder, feature_width(encoder, images[:1]), len(self._quarter_turns()))
        self.layers_ = self.network_.layer_names(images[:1])
        self._check_layer(self.feature_layer)
        self.mean_, self.std_ = mean, std
        self.classes_ = np.asarray(self.rotations)
        self.n_features_in_ = images[0].numel()

    def _trainer(self, seed: int) -> RotationTrainer:
        view: View = weak(self.crop_padding, self.horizontal_flip)
        if self.architecture == "alexnet":
            flip = [K.RandomHorizontalFlip(p=0.5)] if self.horizontal_flip else []
            view = nn.Sequential(ResizedCrop((0.08, 1.0)), *flip)
        table = self._rates()
        mean, std = self._normaliser()
        return RotationTrainer(
            for_training(self.network_),
            view=view,
            mean=mean,
            std=std,
            quarter_turns=self._quarter_turns(),
            lr_table=table,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=sgd(table[0][1], self.momentum, self.weight_decay, self.nesterov and self.momentum > 0),
            label="rotnet",
            seed=seed,
            device=self.device,
        )

    def _run(self, trainer: RotationTrainer, images: Tensor) -> None:
        """Train, and keep what `partial_fit` needs to go on."""
        trainer.fit(images)
        self.encoder_ = at_rest(self.network_).encoder
        self._progress = {key: value for key, value in trainer.state_dict().items() if key != "network"}
        self.history_ = trainer.history
        self.loss_curve_ = [row["loss"] for row in trainer.history]
        self.rotation_accuracy_curve_ = [row["rotation_accuracy"] for row in trainer.history]
        self.lr_curve_ = [row["lr"] for row in trainer.history]
        self._map_shape = self._layer(images[:1], None, None).shape[1:]

    def _normaliser(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.mean_)[:, None, None], torch.from_numpy(self.std_)[:, None, None]

    def _prepared(self, X: ArrayLike | Tensor) -> Tensor:
        """Step 1 at test time: only scale and normalise."""
        check_is_fitted(self, "network_")
        mean, std = self._normaliser()
        return (check_images(X, channels=len(self.mean_)) - mean) / std

    def _logits(self, prepared: Tensor) -> Tensor:
        logits = predict_in_batches(self.network_.to(self.device), prepared, device=self.device)
        self.network_.cpu()
        return logits

    def _check_layer(self, layer: str) -> str:
        if layer not in self.layers_:
            raise ValueError(f"There is no layer {layer!r} in this network: choose one of {', '.join(self.layers_)}.")
        return layer

    def _layer(self, X: ArrayLike | Tensor, layer: str | None, pool: int | None) -> Tensor:
        check_is_fitted(self, "network_")
        name = self._check_layer(self.feature_layer if layer is None else layer)
        self.network_.eval().to(self.device)

        def read(part: Tensor) -> Tensor:
            found = self.network_.layer(part, name)
            return found if pool is None else F.adaptive_avg_pool2d(found, pool)

        maps = predict_in_batches(read, self._prepared(X), 256, self.device)
        self.network_.cpu()
        return maps

    def _warn_if_hopeless(self, accuracy: float, when: str) -> None:
        chance = 1 / len(self.classes_)
        if accuracy < HOPELESS * chance:
            LOG.warning(
                "%s rotations are told with accuracy %.2f, chance being %.2f. Train longer; if that does not help, "
                "the pictures have no upright position and RotNet does not suit them.",
                when,
                accuracy,
                chance,
            )


def check_square(images: Tensor, quarter_turns: Sequence[int]) -> None:
    """Raise a ValueError when quarter turns would change the shape of the images."""
    height, width = images.shape[-2:]
    if height != width and any(turns % 2 for turns in quarter_turns):
        raise ValueError(
            f"Images turned by 90 or 270 degrees must be square, got {height} x {width}. "
            "Crop or pad them, or use rotations=(0, 180)."
        )

"""A handful of synthetic images a class in place of a large image set, each slot against its own copy of a classifier.

J. Du, X. Zhang, J. Hu, W. Huang and J. T. Zhou, "Diversity-Driven Synthesis: Enhancing Dataset Distillation through
Directed Weight Adjustment", NeurIPS 2024, arXiv:2409.17612.

Squeeze, recover and relabel are those of Z. Yin, E. Xing and Z. Shen, "Squeeze, Recover and Relabel: Dataset
Condensation at ImageNet Scale From A New Perspective", NeurIPS 2023, arXiv:2306.13092: a classifier remembers the
data in the statistics of its batch normalisation, images are made that have the same statistics, and a student
learns from them with the classifier's soft labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import kornia.augmentation as K
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.augment import ResizedCrop, weak
from models.base import check_images, check_labels, isolated_seed, predict_in_batches
from models.losses import kl_with_temperature
from models.metrics import class_diversity
from models.networks.convnet import AverageConvNet, Normalised
from models.registry import register
from models.supervised import ClassifierSpec, make_classifier
from models.training import ClassifierTrainer, Row, Trainer, adam, cosine, one_cycle

MOST_CLASSES_AT_ONCE = 200
CROPS = (0.08, 1.0)


# ---- recover: the loss of the pixels -----------------------------------------------------------------------


def remembered(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Layers of batch normalisation that keep running statistics, in the order of the network.

    Raises
    ------
    ValueError
        If there is none.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    if not layers:
        raise ValueError(
            f"teacher {type(network).__name__} has no BatchNorm2d layer with running statistics, which are its memory "
            "of the real images. Give a convolutional network with batch normalisation, or teacher=None to train one."
        )
    return layers


class InputsOf:
    """What reaches some layers in the latest forward pass, by hooks on them."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.seen: dict[nn.Module, Tensor] = {}
        for layer in layers:
            layer.register_forward_pre_hook(self._record)

    def _record(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.seen[layer] = args[0]


def statistics_loss(
    inputs: Sequence[Tensor], layers: Sequence[nn.BatchNorm2d], lambda_var: float, first_multiplier: float
) -> Tensor:
    """Step 2c: distance to the running statistics, ``sum_l m_l (|mu - mu_l| + lambda_var |var - var_l|)``.

    Parameters
    ----------
    inputs : sequence of Tensor, (B, C_l, h, w)
        What reaches each layer; mean and biased variance are taken over batch and space.
    layers : sequence of BatchNorm2d
    lambda_var : float
        Weight of the variances; 1 is SRe2L's.
    first_multiplier : float
        m of the first layer; it is 1 for all others.
    """
    total = inputs[0].new_zeros(())
    for place, (maps, layer) in enumerate(zip(inputs, layers, strict=True)):
        var, mean = torch.var_mean(maps, dim=(0, 2, 3), correction=0)
        assert layer.running_mean is not None and layer.running_var is not None
        apart = torch.linalg.vector_norm(mean - layer.running_mean)
        spread = torch.linalg.vector_norm(var - layer.running_var)
        total = total + (first_multiplier if place == 0 else 1.0) * (apart + lambda_var * spread)
    return total


def directed_weight_adjustment(network: nn.Module, x: Tensor, targets: Tensor, rho: float, steps: int) -> float:
    """Step 2b: move the weights of `network`, in place, up the loss of real images by at most `rho` in all.

    Each of the steps goes ``rho / steps`` along the gradient over all parameters, scaled to length 1 as a whole. The
    network becomes less sure of what `x` shows, so that images made against it add what `x` lacks.

    Parameters
    ----------
    network : nn.Module
        In eval mode.
    x : Tensor, (B, C, H, W)
    targets : Tensor, (B,)
    rho : float
    steps : int

    Returns
    -------
    float
        Euclidean length of the whole shift.
    """
    parameters = [parameter.requires_grad_(True) for parameter in network.parameters()]
    before = [parameter.detach().double().clone() for parameter in parameters]
    for _ in range(steps):
        loss = F.cross_entropy(network(x), targets)
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        found = [(p, slope) for p, slope in zip(parameters, slopes, strict=True) if slope is not None]
        length = torch.stack([(slope.double() ** 2).sum() for _, slope in found]).sum().sqrt() + 1e-12
        with torch.no_grad():
            for parameter, slope in found:
                parameter += (rho / steps / length).to(slope.dtype) * slope
    moved = [((new.detach().double() - old) ** 2).sum() for new, old in zip(parameters, before, strict=True)]
    return float(torch.stack(moved).sum().sqrt())


class Recovered(NamedTuple):
    """One slot: its images in the teacher's units, the loss at each iteration, and how far the weights were moved."""

    pixels: Tensor
    losses: list[float]
    shift: float


class _Pixels(nn.Module):
    """Images as the parameters of a module, so that a trainer can train them."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.pixels = nn.Parameter(start.clone())

    def forward(self) -> Tensor:
        return self.pixels


class PixelTrainer(Trainer):
    """Steps 2c and 2d: Adam on the pixels against frozen weights, clamped to what a pixel can be after each step."""

    def __init__(
        self,
        start: Tensor,
        teacher: nn.Module,
        bounds: tuple[Tensor, Tensor],
        *,
        n_iter: int,
        lr: float,
        weights: tuple[float, float, float],
        jitter: int,
        view: nn.Module,
        **parameters: Any,
    ) -> None:
        every = torch.arange(len(start))
        super().__init__(
            _Pixels(start),
            epochs=1,
            batch_size=len(start),
            optimizer=lambda network: torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.9)),
            schedule=cosine,
            batches=lambda epoch: repeat(every, n_iter),
            **parameters,
        )
        self.teacher = teacher.to(self.device).requires_grad_(False)
        self.layers = remembered(teacher)
        self.recorded = InputsOf(self.layers)
        self.low, self.high = (bound.to(self.device) for bound in bounds)
        self.lambda_bn, self.lambda_var, self.first_multiplier = weights
        self.jitter, self.view = jitter, view
        self.losses: list[float] = []

    def divide(self, index: Tensor) -> Tensor:
        """Every process makes the whole batch: its statistics are of all classes together."""
        return index

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Cross-entropy and distance of statistics, of the images cropped, mirrored and rolled by a few pixels."""
        shift = torch.randint(0, self.jitter + 1, (2,)).tolist()
        logits = self.teacher(self.view(self.network()).roll(shift, dims=(2, 3)))
        told = F.cross_entropy(logits, batch[0])
        reached = [layer for layer in self.layers if layer in self.recorded.seen]  # auxiliary branches are not
        inputs = [self.recorded.seen[layer] for layer in reached]
        apart = statistics_loss(inputs, reached, self.lambda_var, self.first_multiplier)
        return told + self.lambda_bn * apart, {
            "cross_entropy": float(told.detach()),
            "statistics": float(apart.detach()),
        }

    def train_step(self, batch: tuple[Tensor, ...], index: Tensor) -> Row:
        """One step, then every pixel back into its range."""
        terms = super().train_step(batch, index)
        with torch.no_grad():
            pixels = self.plain_network.pixels
            pixels.copy_(torch.minimum(torch.maximum(pixels, self.low), self.high))  # type: ignore[arg-type,operator]
        self.losses.append(terms["loss"])
        return terms


def recover(
    teacher: nn.Module,
    real: Tensor,
    targets: Tensor,
    bounds: tuple[Tensor, Tensor],
    *,
    seed: int,
    init: str,
    dwa_steps: int,
    rho: float,
    random_resized_crop: bool,
    flip: bool,
    device: str = "cpu",
    **settings: Any,
) -> Recovered:
    """Step 2 for one slot: an image of each target, from nothing but the arguments, so slots can be made anywhere.

    Parameters
    ----------
    teacher : nn.Module
        In eval mode; it is copied.
    real : Tensor, (B, C, H, W)
        One real image of each target, in the teacher's units: what the weights are moved against, and with
        ``init="real"`` where the pixels start. With "gaussian" they start at standard normal noise.
    targets : Tensor, (B,)
    bounds : pair of Tensor, (C, 1, 1)
        Lowest and highest value of a pixel in these units.
    seed : int
    **settings
        Of :class:`PixelTrainer`.
    """
    with isolated_seed(seed):
        own = copy.deepcopy(teacher).to(device).eval()
        shift = 0.0
        if dwa_steps and rho:
            shift = directed_weight_adjustment(own, real.to(device), targets.to(device), rho, dwa_steps)
        start = real if init == "real" else torch.randn_like(real)
        views: list[nn.Module] = [ResizedCrop(CROPS)] if random_resized_crop else []
        views += [K.RandomHorizontalFlip(p=0.5)] if flip else []
        trainer = PixelTrainer(start, own, bounds, view=nn.Sequential(*views), device=device, **settings)
        trainer.fit(targets)
    return Recovered(trainer.plain_network.pixels.detach().cpu(), trainer.losses, shift)  # type: ignore[operator]


# ---- squeeze and relabel -----------------------------------------------------------------------------------


def squeeze(
    X: Tensor,
    y: Tensor,
    n_classes: int,
    *,
    width: int = 128,
    epochs: int = 15,
    lr: float = 4e-3,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    augment: Callable[[Tensor], Tensor] | None = None,
    device: str = "cpu",
    random_state: int | None = None,
) -> nn.Module:
    """Step 1: a ConvNet of three blocks, trained to classify the real images; it draws its seed from `random_state`.

    Parameters
    ----------
    X : Tensor, (n, C, H, W)
        In the units in which pixels will be made.
    y : Tensor, (n,)
    """
    with isolated_seed(random_state) as seed:
        network = AverageConvNet(n_classes, X.shape[1], tuple(X.shape[2:]), width)
        trainer = ClassifierTrainer(
            network,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=adam(lr, weight_decay, decoupled=True),
            schedule=one_cycle(),
            augment=augment,
            label="squeeze",
            seed=seed,
            device=device,
        )
        trainer.fit(X, y)
    return network.cpu().eval()


class RelabelTrainer(Trainer):
    """Step 3: the student follows the teacher's softened answers on the same augmented, mixed pixels."""

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float,
        mixup_alpha: float,
        augment: Callable[[Tensor], Tensor] | None,
        **parameters: Any,
    ) -> None:
        super().__init__(network, **parameters)
        self.teacher = copy.deepcopy(teacher).to(self.device).eval().requires_grad_(False)
        self.temperature, self.mixup_alpha, self.augment = temperature, mixup_alpha, augment

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """``KL(teacher / T || student / T)``, batch mean, without the factor T^2."""
        x, y = batch
        x = self.augment(x) if self.augment else x
        if self.mixup_alpha > 0:
            mixing = torch.distributions.Beta(self.mixup_alpha, self.mixup_alpha).sample().to(x.device)
            x = mixing * x + (1 - mixing) * x[torch.randperm(len(x), device=x.device)]
        with torch.no_grad():
            told = self.teacher(x)
        loss = kl_with_temperature(self.network(x), told, self.temperature) / self.temperature**2
        return loss, {"teacher_agrees": float((told.argmax(1) == y).float().mean())}


def train_on_distilled(
    model_fn: ClassifierSpec,
    X_syn: ArrayLike | Tensor,
    y_syn: ArrayLike | Tensor,
    teacher: nn.Module,
    *,
    epochs: int = 400,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    temperature: float = 30.0,
    mixup_alpha: float = 0.8,
    augment: str | Callable[[Tensor], Tensor] | None = "crop_flip",
    random_state: int | np.random.RandomState | None = None,
) -> nn.Module:
    """Train a student on synthetic images with the soft labels of a teacher (step 3).

    Parameters
    ----------
    model_fn : nn.Module, callable or None
        Makes the student; a module is copied. It stands behind the teacher's normalisation, if the teacher has one.
    X_syn : array or tensor, (n, c, h, w)
        Pixels in [0, 1], or uint8.
    y_syn : array or tensor of int, (n,)
        The classes meant; the loss looks at the teacher alone, the history tells how often it agrees.
    teacher : nn.Module
        Pixels -> logits, as ``DWADistiller(...).fit(X, y).teacher_``; it is copied and asked in eval mode.
    epochs, batch_size : int
    lr, weight_decay : float
        Of AdamW, on a cosine to 0. A low loss at a high temperature has gradients that shrink with T^2, which Adam
        makes up for and plain SGD does not.
    temperature : float
    mixup_alpha : float
        Of the Beta distribution, drawn once a batch; 0 mixes nothing.
    augment : {"crop_flip"}, callable or None
        Batch -> batch. "crop_flip" shifts by up to 4 pixels and mirrors: give another where a mirror changes the
        meaning.
    random_state : int, RandomState or None

    Returns
    -------
    nn.Module
        The student, on the CPU in eval mode, with its ``history``.

    Raises
    ------
    ValueError
        For images or labels that do not fit, a teacher or student that does not take them, a temperature that is not
        positive, or another augment.

    Examples
    --------
    >>> from models.networks.convnet import AverageConvNet
    >>> images, teacher = np.random.default_rng(0).random((6, 1, 8, 8)), AverageConvNet(2, size=(8, 8), width=4)
    >>> new = lambda: AverageConvNet(2, size=(8, 8), width=4)
    >>> student = train_on_distilled(new, images, [0, 1] * 3, teacher, epochs=2, random_state=0)
    >>> len(student.history)
    2
    """
    X = check_images(X_syn, name="X_syn")
    y = torch.from_numpy(check_labels(y_syn, len(X), allow_unlabelled=False, name="y_syn"))
    if not (temperature > 0 and mixup_alpha >= 0):
        raise ValueError(
            f"temperature must be above 0 and mixup_alpha at least 0, got {temperature} and {mixup_alpha}."
        )
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}.")
    if isinstance(augment, str):
        if augment != "crop_flip":
            raise ValueError(f"augment must be 'crop_flip', a function of a batch or None, got {augment!r}.")
        augment = weak()
    judge = make_classifier(teacher, X.shape[1:], int(y.max()) + 1, name="teacher").eval()
    with isolated_seed(random_state) as seed:
        width = predict_in_batches(judge, X[:1]).shape[1]
        student = make_classifier(model_fn, X.shape[1:], width, name="model_fn")
        if isinstance(teacher, Normalised):
            student = Normalised(student, teacher.mean.flatten().tolist(), teacher.std.flatten().tolist())
        trainer = RelabelTrainer(
            student,
            judge,
            temperature=temperature,
            mixup_alpha=mixup_alpha,
            augment=augment,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=adam(lr, weight_decay, decoupled=True),
            schedule=cosine,
            label="relabel",
            seed=seed,
        )
        trainer.fit(X, y)
    student.history = trainer.history
    return student


def features_before_the_head(network: nn.Module, X: Tensor) -> Tensor:
    """What reaches the last linear layer, (n, d); the logits of a network that has none."""
    own = copy.deepcopy(network).eval()
    heads = [module for module in own.modules() if isinstance(module, nn.Linear)]
    if not heads:
        return predict_in_batches(own, X)
    recorded = InputsOf(heads[-1:])

    def features(part: Tensor) -> Tensor:
        own(part)
        return recorded.seen[heads[-1]].flatten(1)

    return predict_in_batches(features, X)


# ---- the method --------------------------------------------------------------------------------------------


@register(
    "dwa",
    stage="curate",
    summary="Distils an image set into a few synthetic images a class, each made against a slightly moved classifier.",
    paper="Diversity-Driven Synthesis: Enhancing Dataset Distillation through Directed Weight Adjustment",
    year=2024,
    link="https://arxiv.org/abs/2409.17612",
    licence="none published",
    accepts=("image",),
    taxonomy={
        "goal": "distribution matching, diversification",
        "utility": "match of a classifier's batch-normalisation statistics",
        "unit": "data point",
        "mechanism": "synthesis of pixels against moved weights",
        "stage_of_training": "supervised training",
    },
)
class DWADistiller(BaseEstimator):
    """A few synthetic images a class that stand for a large image set, with a teacher for their soft labels.

    Each of the `ipc` slots holds one image a class, starts from real images and is made against its own copy of the
    teacher, moved a little up the loss of these images. Slots depend on nothing but their number and the seed.

    Parameters
    ----------
    teacher : nn.Module, optional
        Classifier with batch normalisation, trained on the images; it is copied. None trains a ConvNet of three
        blocks, 128 wide (see :func:`squeeze`).
    ipc : int, default=10
        Images a class, also the number of slots.
    n_iter : int, default=1000
        Steps on the pixels of each slot.
    lr : float, default=0.25
        Of Adam (betas 0.5 and 0.9) in the teacher's units, on a cosine to 0.
    lambda_bn : float, default=0.01
        Weight of the statistics beside the cross-entropy.
    lambda_var : float, default=11.0
        Weight of variances beside means; 1 is SRe2L. The paper takes 11 for small images and 2 for ImageNet.
    first_bn_multiplier : float, default=10.0
        Further weight of the first layer of batch normalisation.
    dwa_steps : int, default=12
        Steps up the loss; 0 is SRe2L started from real images.
    rho : float, default=0.015
        Length of all steps together, a distance between weights: for networks much smaller than a ResNet-18 (some
        ten thousand weights) 0.15 is needed to see an effect.
    jitter : int, default=4
        Images are rolled by up to so many pixels at each step.
    random_resized_crop, flip : bool, default=False
        Look at random windows and mirror images of them at each step, as for large images.
    init : {"real", "gaussian"}, default="real"
        What pixels start from.
    batch_classes : int, optional
        Classes made together, which share their statistics. None takes all, in parts of equal size from 200 on;
        each part has its own copy of the teacher.
    channel_mean, channel_std : sequence of float, optional
        Normalisation that `teacher` expects. None: it takes pixels in [0, 1] as they are. Without a teacher they
        are taken from `X`.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    images_ : array of float32, (C * ipc, c, h, w)
        Pixels in [0, 1]. Keep them in a lossless format: JPEG alters the statistics they were made for.
    labels_, slot_ : array of int64, (C * ipc,)
        Class and slot of each; slots follow each other.
    source_rows_ : array of int64, (C * ipc,)
        The real image that each was made from (started from, or the weights moved against).
    teacher_ : nn.Module
        Pixels in [0, 1] -> logits, with the weights as given.
    loss_curve_ : array of float64, (ipc, n_iter)
        The whole loss before each step, mean over parts.
    weight_shift_norm_ : array of float64, (ipc,)
        How far the weights were moved: at most `rho`; the largest over parts.
    diversity_ : float
        Mean ``1 - cosine`` of the teacher's features between synthetic images of one class.

    Notes
    -----
    The text of the paper follows the plain gradient, the authors' code its direction; so does this. Slots may be made
    in parallel with :func:`recover`. With few classes the statistics of a batch are noisy: more classes are easier.

    References
    ----------
    Du et al. (2024), section 3, algorithm 1 and the reference implementation; Yin et al. (2023), sections 3.1 to 3.3.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> images, digit = load_digits(n_class=3, return_X_y=True)
    >>> images = (images[:90] / 16).reshape(-1, 1, 8, 8)
    >>> teacher = AverageConvNet(3, size=(8, 8), width=4)
    >>> small = DWADistiller(teacher, ipc=2, n_iter=5, random_state=0).fit(images, digit[:90])
    >>> small.images_.shape, small.labels_.tolist()
    ((6, 1, 8, 8), [0, 1, 2, 0, 1, 2])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "teacher": [None, nn.Module],
        "ipc": [Interval(Integral, 1, None, closed="left")],
        "n_iter": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "lambda_bn": [Interval(Real, 0, None, closed="left")],
        "lambda_var": [Interval(Real, 0, None, closed="left")],
        "first_bn_multiplier": [Interval(Real, 0, None, closed="left")],
        "dwa_steps": [Interval(Integral, 0, None, closed="left")],
        "rho": [Interval(Real, 0, None, closed="left")],
        "jitter": [Interval(Integral, 0, None, closed="left")],
        "random_resized_crop": ["boolean"],
        "flip": ["boolean"],
        "init": [StrOptions({"real", "gaussian"})],
        "batch_classes": [None, Interval(Integral, 1, None, closed="left")],
        "channel_mean": [None, "array-like"],
        "channel_std": [None, "array-like"],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        teacher: nn.Module | None = None,
        *,
        ipc: int = 10,
        n_iter: int = 1000,
        lr: float = 0.25,
        lambda_bn: float = 0.01,
        lambda_var: float = 11.0,
        first_bn_multiplier: float = 10.0,
        dwa_steps: int = 12,
        rho: float = 0.015,
        jitter: int = 4,
        random_resized_crop: bool = False,
        flip: bool = False,
        init: str = "real",
        batch_classes: int | None = None,
        channel_mean: Sequence[float] | None = None,
        channel_std: Sequence[float] | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.teacher = teacher
        self.ipc = ipc
        self.n_iter = n_iter
        self.lr = lr
        self.lambda_bn = lambda_bn
        self.lambda_var = lambda_var
        self.first_bn_multiplier = first_bn_multiplier
        self.dwa_steps = dwa_steps
        self.rho = rho
        self.jitter = jitter
        self.random_resized_crop = random_resized_crop
        self.flip = flip
        self.init = init
        self.batch_classes = batch_classes
        self.channel_mean = channel_mean
        self.channel_std = channel_std
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> DWADistiller:
        """Train a teacher if there is none, and make the images.

        Parameters
        ----------
        X : array or tensor, (n, c, h, w)
            uint8, or floats in [0, 1].
        y : array or tensor of int, (n,)
            Every class of 0..C-1 with at least `ipc` images. Images that are all alike give slots that are.

        Raises
        ------
        ValueError
            For images or labels of another kind, a gap in the labels, a class of fewer than `ipc` images (each
            named), a teacher without batch normalisation, or one that does not take these images.
        """
        self._validate_params()
        images = check_images(X)
        labels = check_labels(y, len(images), allow_unlabelled=False)
        members = self._members(labels)
        mean, std = self._normalisation(images)
        scaled = (images - mean) / std
        with isolated_seed(self.random_state) as seed:
            if self.teacher is None:
                network = squeeze(scaled, torch.from_numpy(labels), len(members), device=self.device, random_state=seed)
            else:
                network = make_classifier(self.teacher, images.shape[1:], len(members), name="teacher").cpu().eval()
                remembered(network)
            generator = np.random.default_rng(seed)
            rows = np.stack([generator.permutation(rows)[: self.ipc] for rows in members])
            found = [
                self._slot(network, scaled, rows[:, slot], ((0 - mean) / std, (1 - mean) / std), [seed, slot])
                for slot in range(self.ipc)
            ]
        pixels = torch.cat([slot.pixels for slot in found]) * std + mean
        self.images_ = pixels.clamp(0, 1).numpy()
        self.labels_ = np.tile(np.arange(len(members), dtype=np.int64), self.ipc)
        self.slot_ = np.repeat(np.arange(self.ipc, dtype=np.int64), len(members))
        self.source_rows_ = rows.T.ravel()
        self.loss_curve_ = np.array([slot.losses for slot in found])
        self.weight_shift_norm_ = np.array([slot.shift for slot in found])
        self.teacher_ = Normalised(network, mean.flatten().tolist(), std.flatten().tolist()).eval()
        features = features_before_the_head(self.teacher_, torch.from_numpy(self.images_))
        self.diversity_ = class_diversity(features.numpy(), self.labels_)
        return self

    def _members(self, labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Rows of each class."""
        counts = np.bincount(labels)
        if len(gaps := np.flatnonzero(counts == 0)):
            raise ValueError(
                f"y must hold every class of 0..{len(counts) - 1}, but has no image of {gaps.tolist()}. "
                "Number the classes without gaps."
            )
        if len(few := np.flatnonzero(counts < self.ipc)):
            told = ", ".join(f"{c} has {counts[c]}" for c in few)
            raise ValueError(
                f"y must hold at least ipc={self.ipc} images of each class, but class {told}. Lower ipc, or bring more."
            )
        return [np.flatnonzero(labels == c) for c in range(len(counts))]

    def _normalisation(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (c, 1, 1) between pixels and the teacher's units."""
        channels = images.shape[1]
        if (self.channel_mean is None) != (self.channel_std is None):
            raise ValueError("channel_mean and channel_std go together: give both or none.")
        if self.channel_mean is not None and self.channel_std is not None:
            mean, std = (torch.tensor(np.asarray(v, dtype=np.float32)) for v in (self.channel_mean, self.channel_std))
        elif self.teacher is not None:
            mean, std = torch.zeros(channels), torch.ones(channels)
        else:
            std, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
            std = torch.where(std > 0, std, torch.ones_like(std))
        finite = mean.isfinite().all() and std.isfinite().all()
        if mean.shape != (channels,) or std.shape != (channels,) or not (finite and (std > 0).all()):
            raise ValueError(
                f"channel_mean and channel_std must hold one number for each of the {channels} channel(s) of X, the "
                f"deviations above 0; got {mean.tolist()} and {std.tolist()}."
            )
        return mean[:, None, None], std[:, None, None]

    def _slot(
        self,
        network: nn.Module,
        scaled: Tensor,
        rows: NDArray[np.int64],
        bounds: tuple[Tensor, Tensor],
        seeds: list[int],
    ) -> Recovered:
        """One image of each class, part by part of the classes."""
        parts = [
            recover(
                network,
                scaled[rows[classes]],
                torch.from_numpy(classes),
                bounds,
                seed=int(np.random.SeedSequence([*seeds, part]).generate_state(1)[0]),
                init=self.init,
                dwa_steps=self.dwa_steps,
                rho=self.rho,
                random_resized_crop=self.random_resized_crop,
                flip=self.flip,
                device=self.device,
                n_iter=self.n_iter,
                lr=self.lr,
                weights=(self.lambda_bn, self.lambda_var, self.first_bn_multiplier),
                jitter=self.jitter,
                label=f"recover, slot {seeds[-1]}",
            )
            for part, classes in enumerate(self._parts(len(rows)))
        ]
        losses = np.mean([part.losses for part in parts], axis=0).tolist()
        return Recovered(torch.cat([part.pixels for part in parts]), losses, max(part.shift for part in parts))

    def _parts(self, n_classes: int) -> Iterator[NDArray[np.int64]]:
        """Classes made together."""
        most = self.batch_classes or MOST_CLASSES_AT_ONCE
        yield from np.array_split(np.arange(n_classes), -(-n_classes // most))

    def transform(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The synthetic images and their classes.

        Returns
        -------
        images : array of float32, (C * ipc, c, h, w)
        labels : array of int64, (C * ipc,)
        """
        check_is_fitted(self, "images_")
        return self.images_, self.labels_

    def fit_resample(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """:meth:`fit`, then :meth:`transform`."""
        return self.fit(X, y).transform()

    def soft_labels(self, X_aug: ArrayLike | Tensor, temperature: float = 1.0) -> NDArray[np.float32]:
        """What the teacher, its weights not moved, says of images: softmax of its logits over `temperature`.

        Parameters
        ----------
        X_aug : array or tensor, (n, c, h, w)
            The very pixels a student is given, augmented and mixed as they are.
        temperature : float

        Returns
        -------
        array of float32, (n, C)
        """
        check_is_fitted(self, "images_")
        images = check_images(X_aug, name="X_aug", channels=self.images_.shape[1])
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        return (predict_in_batches(self.teacher_, images) / temperature).softmax(dim=1).numpy()

"""PLS and PLS-LSA: correct wrong labels while asking twice, first which labels are wrong, then which corrections hold.

P. Albert, E. Arazo, T. Krishna, N. E. O'Connor and K. McGuinness, "Is your noise correction noisy? PLS:
Robustness to label noise with two stage detection", WACV 2023, arXiv:2210.04578; and P. Albert, J. Valmadre,
E. Arazo, T. Krishna, N. E. O'Connor and K. McGuinness, "An accurate detection is not all you need to combat
label noise in web-noisy datasets", ECCV 2024, arXiv:2407.05528.

Web labels are wrong in two ways: the image belongs to another known class (in-distribution noise, worth
correcting) or to none (out of distribution). PLS flags samples of high loss, guesses their labels, and weighs
each guess by how stable it is. PLS-LSA alternates that detector with a hyperplane in feature space, which
sees out-of-distribution samples far better.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from models import augment as views
from models.base import check_embeddings, check_images, check_labels, isolated_seed, predict_in_batches
from models.label_noise.detectors import linear_separation_detector, pseudo_loss_confidence, small_loss_detector
from models.label_noise.two_stage import (
    NoiseCorrectionTrainer,
    Peers,
    Recipe,
    interpolated_contrastive_loss,
    learning_rate_factor,
    mean_logits,
)
from models.networks.heads import ProjectingClassifier
from models.networks.resnet import NAMED, named_resnet
from models.registry import register
from models.training import sgd

__all__ = [
    "LSAClassifier",
    "PLSClassifier",
    "interpolated_contrastive_loss",
    "linear_separation_detector",
    "pseudo_loss_confidence",
    "small_loss_detector",
]


class PLSClassifier(ClassifierMixin, BaseEstimator):
    """Classifier that finds wrong labels by their loss, corrects them, and trusts only stable corrections.

    Parameters
    ----------
    backbone : str or nn.Module
        A name in :data:`models.networks.resnet.NAMED`, or a module ``forward(x) -> (logits (B, C),
        projection (B, proj_dim), stage features)``; it is copied.
    n_classes : int, optional
        One more than the largest label when None.
    epochs, warmup : int
        `warmup` epochs of plain mixup on the given labels come first.
    batch_size : int
    lr, momentum, weight_decay : float
        Of SGD. The rate is constant during the warm-up, then follows half a cosine.
    gamma : float
        Sharpening of the guesses.
    contrastive_temperature : float
    threshold : float
        Posterior above which the small-loss detector flags. In runs of a few dozen epochs 0.95 flags little.
    mixup_alpha : float
    proj_dim : int
        Width of the projection of a named backbone.
    class_balance : bool
    contrastive : {"interpolated", "supervised"}
    guess_views : tuple of {"v1", "v2"}
        Weak views whose mean prediction is the guess; "v1" is the one trained on.
    augment : mapping or object, optional
        Views "weak", "strong" and "contrastive", each batch -> batch. The default pads by 4, crops and flips;
        give your own where a mirror changes the meaning, and for rows that are not images.
    random_state : int, RandomState or None
    device : str
    n_jobs : int
        Worker processes that read a Dataset into memory.

    Attributes
    ----------
    classes_ : array, (C,)
    is_noisy_ : array of bool, (n,)
        Labels flagged as wrong; unlabelled samples always are.
    noise_proba_ : array, (n,)
        Probability of that, from the detector of the last epoch.
    corrected_label_proba_ : array, (n, C)
        The guess where flagged, the given label elsewhere.
    confidence_ : array, (n,)
        That the correction is right; 1 where not flagged.
    history_ : list of dict
        One an epoch: loss terms, detector, flagged (share), guarded, val_accuracy when validation data are given.
    network_ : nn.Module
    networks_ : list of nn.Module
        Both networks of a co-training; predictions average their logits.

    References
    ----------
    Albert et al., "Is your noise correction noisy? PLS: Robustness to label noise with two stage detection",
    WACV 2023, arXiv:2210.04578, sections 3.1 to 3.4.

    Examples
    --------
    >>> import numpy as np
    >>> from models.networks.convnet import ConvEncoder
    >>> images = np.random.default_rng(0).random((60, 8, 8)) * 0.5
    >>> y = np.arange(60) % 2
    >>> images[y == 1, :4] += 0.5
    >>> y[:6] = 1 - y[:6]
    >>> network = ProjectingClassifier(ConvEncoder((8,)), 2, 16)
    >>> pls = PLSClassifier(network, epochs=3, warmup=1, batch_size=20, random_state=0).fit(images, y)
    >>> pls.corrected_label_proba_.shape
    (60, 2)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "backbone": [StrOptions(set(NAMED)), nn.Module],
        "n_classes": [Interval(Integral, 2, None, closed="left"), None],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "warmup": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "gamma": [Interval(Real, 0, None, closed="neither")],
        "contrastive_temperature": [Interval(Real, 0, None, closed="neither")],
        "threshold": [Interval(Real, 0, 1, closed="left")],
        "mixup_alpha": [Interval(Real, 0, None, closed="neither")],
        "proj_dim": [Interval(Integral, 1, None, closed="left")],
        "class_balance": ["boolean"],
        "contrastive": [StrOptions({"interpolated", "supervised"})],
        "guess_views": [tuple, list],
        "augment": "no_validation",
        "random_state": ["random_state"],
        "device": [str],
        "n_jobs": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        backbone: str | nn.Module = "preact_resnet18",
        n_classes: int | None = None,
        epochs: int = 200,
        warmup: int = 30,
        batch_size: int = 256,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        gamma: float = 2.0,
        contrastive_temperature: float = 0.2,
        threshold: float = 0.95,
        mixup_alpha: float = 1.0,
        proj_dim: int = 128,
        class_balance: bool = True,
        contrastive: str = "interpolated",
        guess_views: Sequence[str] = ("v1", "v2"),
        augment: Any = None,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        n_jobs: int = 0,
    ) -> None:
        self.backbone = backbone
        self.n_classes = n_classes
        self.epochs = epochs
        self.warmup = warmup
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.gamma = gamma
        self.contrastive_temperature = contrastive_temperature
        self.threshold = threshold
        self.mixup_alpha = mixup_alpha
        self.proj_dim = proj_dim
        self.class_balance = class_balance
        self.contrastive = contrastive
        self.guess_views = guess_views
        self.augment = augment
        self.random_state = random_state
        self.device = device
        self.n_jobs = n_jobs

    def fit(
        self,
        X: ArrayLike | Tensor | Dataset[Any],
        y: ArrayLike | None = None,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
    ) -> PLSClassifier:
        """Train on images whose labels may be wrong.

        Parameters
        ----------
        X : array or tensor, (n, H, W) or (n, C, H, W), in [0, 1] or uint8; or a Dataset
            A map-style Dataset gives (image, label, index) and is read into memory once. Rows that are not
            images, (n, d), need a module as backbone and views of their own.
        y : array, (n,)
            Labels in 0..C-1, -1 = unlabelled. None with a Dataset.
        X_val, y_val : array, optional
            Correctly labelled; their accuracy joins ``history_``.

        Raises
        ------
        ValueError
            For bad images or labels, a warm-up that leaves no epoch, or a backbone of another shape.
        """
        self._validate()
        with isolated_seed(self.random_state) as seed:
            trainer = self._trainer_for(seed, X, y, X_val, y_val)
            trainer.fit(trainer.images)
        self._partial: NoiseCorrectionTrainer | None = None
        return self._collect(trainer)

    def partial_epoch(
        self,
        X: ArrayLike | Tensor | Dataset[Any] | None = None,
        y: ArrayLike | None = None,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
    ) -> PLSClassifier:
        """Run the next one of the `epochs` epochs and bring the fitted attributes up to date.

        The data are given to the first call only. All epochs run this way equal one :meth:`fit`.

        Raises
        ------
        ValueError
            If the first call brings no data.
        """
        trainer = getattr(self, "_partial", None)
        if trainer is None:
            if X is None:
                raise ValueError("The first call of partial_epoch needs X and y; later ones go on with them.")
            self._validate()
            with isolated_seed(self.random_state) as seed:
                trainer = self._partial = self._trainer_for(seed, X, y, X_val, y_val)
                trainer.prepare(trainer.images)
        with isolated_seed(trainer.seed):
            trainer.run_epoch()
        if trainer.epoch == trainer.epochs or trainer.stop:
            trainer.notify("on_fit_end")
            self._partial = None
        return self._collect(trainer)

    def predict_proba(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Class probabilities, (n, C)."""
        check_is_fitted(self, "networks_")
        images = self._check_rows(X)
        if images.shape[1:] != self._row_shape:
            raise ValueError(f"X must have rows shaped {self._row_shape} as in fit, got {tuple(images.shape[1:])}.")
        device = next(self.network_.parameters()).device
        logits = predict_in_batches(mean_logits(self.networks_), images, device=device)
        return F.softmax(logits, dim=1).numpy()

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.int64]:
        """Most probable class of each row, (n,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def _validate(self) -> None:
        self._validate_params()
        if self.warmup >= self.epochs:
            raise ValueError(
                f"warmup={self.warmup} leaves no epoch of epochs={self.epochs} for the correction; lower warmup."
            )
        if not self.guess_views or not set(self.guess_views) <= {"v1", "v2"}:
            raise ValueError(f"guess_views must name 'v1', 'v2' or both, got {self.guess_views!r}.")

    def _recipe(self) -> Recipe:
        return Recipe(
            warm_epochs=self.warmup,
            first_tracked=max(self.warmup - 1, 0),
            gamma=self.gamma,
            temperature=self.contrastive_temperature,
            threshold=self.threshold,
            mixup_alpha=self.mixup_alpha,
            class_balance=self.class_balance,
            interpolated=self.contrastive == "interpolated",
            guess_views=tuple(self.guess_views),
        )

    def _rate_warmup(self) -> int:
        return self.warmup

    def _trainer_for(self, seed: int, X: Any, y: Any, X_val: Any, y_val: Any) -> NoiseCorrectionTrainer:
        if isinstance(X, Dataset):
            X, y = _read(X, self.n_jobs)
        if y is None:
            raise ValueError("y is missing: give the (noisy) labels, -1 where there is none.")
        images = self._check_rows(X, minimum=2)
        labels = check_labels(y, len(images), n_classes=self.n_classes)
        n_classes = self.n_classes or int(labels.max()) + 1
        validation = None
        if X_val is not None and y_val is not None:
            held_out = self._check_rows(X_val, name="X_val")
            truth = check_labels(
                y_val, len(held_out), n_classes=n_classes, allow_unlabelled=False, minimum_classes=1, name="y_val"
            )
            validation = (held_out, truth)
        recipe, warmup, epochs = self._recipe(), self._rate_warmup(), self.epochs
        members = [self._network(images, n_classes, recipe) for _ in range(self._members())]
        return NoiseCorrectionTrainer(
            Peers(members),
            images,
            labels,
            n_classes,
            recipe,
            self._views(images, recipe),
            validation,
            epochs=epochs,
            batch_size=self.batch_size,
            optimizer=sgd(self.lr, self.momentum, self.weight_decay),
            schedule=lambda step, total: learning_rate_factor(step * epochs // max(total, 1), warmup, epochs),
            label=type(self).__name__.removesuffix("Classifier").lower(),
            seed=seed,
            device=self.device,
        )

    def _members(self) -> int:
        return 1

    def _check_rows(self, X: Any, name: str = "X", minimum: int = 1) -> Tensor:
        if np.ndim(X) == 2 and isinstance(self.backbone, nn.Module) and self.augment is not None:
            return torch.from_numpy(check_embeddings(X, name=name, minimum=minimum)).float()
        return check_images(X, name=name, minimum=minimum)

    def _network(self, images: Tensor, n_classes: int, recipe: Recipe) -> nn.Module:
        """Return a fresh or copied network, tried on two rows so that a misfit is told before any training."""
        if isinstance(self.backbone, str):
            network: nn.Module = ProjectingClassifier(
                named_resnet(self.backbone, images.shape[1]), n_classes, self.proj_dim
            )
        else:
            network = deepcopy(self.backbone).cpu()
        network.eval()
        with torch.no_grad():
            outputs = network(images[:2])
        if not isinstance(outputs, tuple) or len(outputs) < (2 if recipe.feature_layer is None else 3):
            raise ValueError("backbone must return (logits, projection, stage features); wrap it accordingly.")
        if outputs[0].shape != (2, n_classes):
            raise ValueError(
                f"backbone gives {outputs[0].shape[-1]} logits, but there are {n_classes} classes; "
                "build it with that many or set n_classes."
            )
        if recipe.feature_layer is not None and recipe.feature_layer >= len(outputs[2]):
            raise ValueError(
                f"feature_layer={recipe.feature_layer} is out of range: "
                f"the backbone has the stages 0..{len(outputs[2]) - 1}."
            )
        return network.train()

    def _views(self, images: Tensor, recipe: Recipe) -> dict[str, Callable[[Tensor], Tensor]]:
        if self.augment is None:
            channels = images.shape[1]
            return {
                "weak": views.weak(),
                "strong": views.strong(channels),
                "contrastive": views.contrastive(channels),
            }
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        for name in ("weak", "contrastive", *(["strong"] if recipe.strong_for_noisy else [])):
            view = self.augment.get(name) if isinstance(self.augment, Mapping) else getattr(self.augment, name, None)
            if not callable(view):
                raise ValueError(f"augment must offer a view {name!r} (batch -> batch), got {view!r}.")
            found[name] = view
        return found

    def _collect(self, trainer: NoiseCorrectionTrainer) -> PLSClassifier:
        everyone = torch.arange(len(trainer.labels))
        self.classes_ = np.arange(trainer.onehot.shape[1])
        self.is_noisy_ = trainer.flagged.numpy().copy()
        self.noise_proba_ = trainer.noise_proba.copy()
        self.corrected_label_proba_ = trainer.corrected(everyone).numpy()
        self.confidence_ = trainer.confidence.double().numpy()
        self.history_ = [
            {**row, "detector": name} for row, name in zip(trainer.history, trainer.detectors, strict=True)
        ]
        self.networks_ = list(trainer.plain_network.members)  # type: ignore[arg-type]
        self.network_ = self.networks_[0]
        for network in self.networks_:
            network.eval().to(memory_format=torch.contiguous_format)
        self._row_shape = tuple(trainer.images.shape[1:])
        return self


def _read(data: Dataset[Any], n_jobs: int) -> tuple[Tensor, Tensor]:
    """Images and labels of a Dataset of (image, label, index), ordered by index."""
    parts = [tuple(map(torch.as_tensor, part)) for part in DataLoader(data, batch_size=256, num_workers=n_jobs)]
    if not parts or len(parts[0]) != 3:
        raise ValueError("A Dataset must give (image, label, index) and not be empty.")
    images, labels, index = (torch.cat(column) for column in zip(*parts, strict=True))
    order = torch.argsort(index)
    if not torch.equal(index[order], torch.arange(len(index))):
        raise ValueError(f"The Dataset's indices must be 0..{len(index) - 1}, each once.")
    return images[order], labels[order]


@register(
    "lsa",
    stage="label_noise",
    summary="Finds and corrects wrong labels of web images, alternating a loss mixture with a linear separation",
    paper="An accurate detection is not all you need to combat label noise in web-noisy datasets",
    year=2024,
    link="https://arxiv.org/abs/2407.05528",
    licence="none published",
    accepts=("image", "table", "embedding"),
)
class LSAClassifier(PLSClassifier):
    """PLS with a second detector: a hyperplane in feature space, taught by the first, on every other epoch.

    Parameters
    ----------
    backbone, n_classes, epochs, batch_size, lr, momentum, weight_decay, gamma, contrastive_temperature
        As in :class:`PLSClassifier`.
    threshold, mixup_alpha, proj_dim, augment, random_state, device, n_jobs
        As in :class:`PLSClassifier`.
    warmup : int
        Epochs before the first detection; with 0, the first epoch is trained on the given labels and then judged.
    init_state : mapping of str to Tensor, optional
        Self-supervised weights, of the backbone's ``encoder`` or of the whole backbone (its heads are left out).
        The method builds on them, so None is warned about unless the backbone is a module that you trained.
    feature_layer : int
        Stage, from 0, whose averaged output the hyperplane divides.
    schedule : tuple of {"linear", "loss"}
        Detector of epoch e: ``schedule[e % len(schedule)]``. ("linear",) is LSA alone.
    class_balance, contrastive, guess_views
        As in :class:`PLSClassifier`, with other defaults.
    strong_for_noisy : bool
        Train flagged samples on strongly augmented views.
    guard : bool
        Use the small-loss detector where it can not teach the hyperplane: it flags under 10 %, or the
        hyperplane ranks samples against their loss. Not in the paper; False reproduces it.
    co_train : bool
        Two networks, each judged by the other's guesses ("LSA+").

    Attributes
    ----------
    ood_score_ : array, (n,)
        Probability of noise by the hyperplane times doubt in the correction, both at its last use.
    is_ood_ : array of bool, (n,)
        Probably of no class: flagged by the hyperplane while ``confidence`` was below 0.5. All False, and the
        score 0, if the hyperplane was never used.

    Notes
    -----
    The other fitted attributes are those of :class:`PLSClassifier`. ``history_`` says in "guarded" where the
    guard stepped in.

    References
    ----------
    Albert et al., "An accurate detection is not all you need to combat label noise in web-noisy datasets",
    ECCV 2024, arXiv:2407.05528, sections 3.3 to 3.5.

    Examples
    --------
    >>> import numpy as np
    >>> from models.networks.convnet import ConvEncoder
    >>> images = np.random.default_rng(0).random((60, 8, 8)) * 0.5
    >>> y = np.arange(60) % 2
    >>> images[y == 1, :4] += 0.5
    >>> y[:6] = 1 - y[:6]
    >>> network = ProjectingClassifier(ConvEncoder((8, 8)), 2, 16)
    >>> lsa = LSAClassifier(network, epochs=3, batch_size=20, init_state=network.encoder.state_dict(), random_state=0)
    >>> lsa.fit(images, y).is_ood_.shape
    (60,)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **PLSClassifier._parameter_constraints,
        "init_state": [Mapping, None],
        "feature_layer": [Interval(Integral, None, None, closed="neither")],
        "schedule": [tuple, list],
        "strong_for_noisy": ["boolean"],
        "guard": ["boolean"],
        "co_train": ["boolean"],
    }

    def __init__(
        self,
        backbone: str | nn.Module = "preact_resnet18",
        n_classes: int | None = None,
        epochs: int = 200,
        warmup: int = 0,
        batch_size: int = 256,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        gamma: float = 2.0,
        contrastive_temperature: float = 0.2,
        threshold: float = 0.95,
        mixup_alpha: float = 1.0,
        proj_dim: int = 128,
        init_state: Mapping[str, Tensor] | None = None,
        feature_layer: int = 1,
        schedule: Sequence[str] = ("linear", "loss"),
        class_balance: bool = False,
        contrastive: str = "supervised",
        guess_views: Sequence[str] = ("v2",),
        strong_for_noisy: bool = True,
        guard: bool = True,
        co_train: bool = False,
        augment: Any = None,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        n_jobs: int = 0,
    ) -> None:
        super().__init__(
            backbone=backbone,
            n_classes=n_classes,
            epochs=epochs,
            warmup=warmup,
            batch_size=batch_size,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            gamma=gamma,
            contrastive_temperature=contrastive_temperature,
            threshold=threshold,
            mixup_alpha=mixup_alpha,
            proj_dim=proj_dim,
            class_balance=class_balance,
            contrastive=contrastive,
            guess_views=guess_views,
            augment=augment,
            random_state=random_state,
            device=device,
            n_jobs=n_jobs,
        )
        self.init_state = init_state
        self.feature_layer = feature_layer
        self.schedule = schedule
        self.strong_for_noisy = strong_for_noisy
        self.guard = guard
        self.co_train = co_train

    def _validate(self) -> None:
        super()._validate()
        if not self.schedule or not set(self.schedule) <= {"linear", "loss"}:
            raise ValueError(f"schedule must be a sequence of 'linear' and 'loss', got {self.schedule!r}.")
        if self.feature_layer < 0:
            raise ValueError(f"feature_layer={self.feature_layer} is out of range: stages are counted from 0.")
        if self.init_state is None and isinstance(self.backbone, str):
            warnings.warn(
                "Training starts from random weights; the hyperplane needs self-supervised ones (init_state) to "
                "see out-of-distribution samples.",
                UserWarning,
                stacklevel=3,
            )

    def _recipe(self) -> Recipe:
        return replace(
            super()._recipe(),
            warm_epochs=max(self.warmup, 1),
            first_tracked=self.warmup,
            schedule=tuple(self.schedule),
            feature_layer=self.feature_layer if "linear" in self.schedule else None,
            strong_for_noisy=self.strong_for_noisy,
            guard=self.guard,
        )

    def _rate_warmup(self) -> int:
        return 0

    def _members(self) -> int:
        return 2 if self.co_train else 1

    def _network(self, images: Tensor, n_classes: int, recipe: Recipe) -> nn.Module:
        network = super()._network(images, n_classes, recipe)
        if self.init_state is not None:
            _initialise(network, self.init_state)
        return network

    def _collect(self, trainer: NoiseCorrectionTrainer) -> LSAClassifier:
        super()._collect(trainer)
        self.ood_score_, self.is_ood_ = trainer.ood_score.copy(), trainer.is_ood.copy()
        return self


def _initialise(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load encoder weights, named alone or within the whole network; heads are left as they are."""
    encoder = getattr(network, "encoder", None)
    target = encoder if isinstance(encoder, nn.Module) else network
    inside = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    given, own = inside or state, target.state_dict()
    missing = [key for key in own if key not in given or given[key].shape != own[key].shape]
    if missing:
        raise ValueError(
            f"init_state does not fit the backbone: {len(missing)} of its {len(own)} weights are missing or of "
            f"another shape, such as {missing[0]!r}. Pretrain the same encoder."
        )
    target.load_state_dict({key: given[key] for key in own})

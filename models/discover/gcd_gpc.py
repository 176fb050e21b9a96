"""GPC: Gaussian mixture prototypes and a contrastive encoder that learn from one another.

Each epoch a semi-supervised mixture with split and merge (:mod:`models.discover.gcd_gmm`) gives every row a prototype;
the encoder then learns by contrast of two views, by contrast of the labelled classes, and to find each row's prototype.

B. Zhao, X. Wen and K. Han, "Learning Semi-supervised Gaussian Mixture Models for Generalized Category Discovery",
ICCV 2023, arXiv:2305.06144.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.augment import FeatureSwap, View, contrastive
from models.base import check_labels, check_samples, isolated_seed, predict_in_batches
from models.discover.gcd_gmm import SemiSupervisedGMM, densities
from models.discover.hidden_classes import Labels, Matrix
from models.losses import nt_xent, supervised_contrastive
from models.networks.convnet import ConvEncoder
from models.networks.encoders import at_rest, feature_width, for_training, pooled
from models.networks.heads import ProjectionHead
from models.networks.mlp import MLPEncoder
from models.registry import register
from models.training import Row, Trainer, cosine, sgd

VIEW_TEMPERATURE, LABEL_TEMPERATURE, LAST_RATE = 1.0, 0.07, 1e-3

# The losses (M-step) -----------------------------------------------------------------------------------------------


def prototype_loss(features: Tensor, prototypes: Tensor, density: Tensor, clusters: Tensor) -> Tensor:
    """Cross-entropy of a row's prototype among all, ``softmax_k(f C^T / phi_k)``; `features` of unit length.

    Parameters
    ----------
    features : Tensor, (B, d)
    prototypes : Tensor, (K, d)
    density : Tensor, (K,)
    clusters : Tensor of int64, (B,)
    """
    return F.cross_entropy(features @ prototypes.T / density, clusters)


def contrastive_loss(
    first: Tensor, second: Tensor, labels: Tensor, sup_weight: float
) -> tuple[Tensor, dict[str, float]]:
    """(1 - lambda) contrast of all views + lambda supervised contrast of the labelled rows; 0 where there are none."""
    views = nt_xent(first, second, VIEW_TEMPERATURE)
    known = labels >= 0
    supervised = views * 0.0
    if known.any():
        supervised = supervised_contrastive(first[known], second[known], labels[known], LABEL_TEMPERATURE)
    total = (1 - sup_weight) * views + sup_weight * supervised
    return total, {"nce": float(views.detach()), "supcon": float(supervised.detach())}


def balanced_draws(labels: Labels, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of one epoch, with replacement: labelled rows weigh 1, unlabelled n_labelled / n_unlabelled."""
    known = torch.from_numpy(labels >= 0)
    weights = torch.ones(len(labels), dtype=torch.float64)
    if not known.all():
        weights[~known] = known.sum() / (~known).sum()
    order = torch.multinomial(weights, len(labels), replacement=True, generator=generator)
    for index in order.split(batch_size):
        if len(index) == batch_size:
            yield index


class EncoderWithHead(nn.Module):
    """Unit-length features of the encoder, and projections of its features by the head."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows or images (B, ...) -> features (B, d), projections (B, p)."""
        features = pooled(self.encoder(x))
        return F.normalize(features, dim=1), self.head(features)


class Prototypes:
    """The E-step: assignments, prototypes and temperatures from the features of all rows.

    Parameters
    ----------
    labels : int array, (n,)
    settings : mapping
        Parameters of :class:`SemiSupervisedGMM`.
    seed : int

    Attributes
    ----------
    n_clusters : int or None
        Clusters the next step starts from: those the last one ended with.
    """

    def __init__(self, labels: Labels, settings: Mapping[str, Any], seed: int) -> None:
        self.labels, self.settings, self.seed = labels, dict(settings), seed
        self.n_clusters: int | None = self.settings.pop("n_init_clusters", None)

    def mixture(self, features: Matrix, **settings: Any) -> SemiSupervisedGMM:
        """The mixture fitted to these features from the present number of clusters."""
        parameters = {"random_state": self.seed, **self.settings, **settings, "n_init_clusters": self.n_clusters}
        fitted = SemiSupervisedGMM(**parameters).fit(features, self.labels)
        self.n_clusters = fitted.n_clusters_
        return fitted

    def update(self, features: Tensor) -> None:
        """One E-step with a single round of split and merge; prototypes are means of unit-length features."""
        rows = features.double().numpy()
        fitted = self.mixture(rows, max_rounds=1)
        _, clusters = np.unique(fitted.labels_, return_inverse=True)
        centres = np.array([rows[clusters == k].mean(axis=0) for k in range(clusters.max() + 1)])
        self.clusters = torch.from_numpy(clusters)
        self.density = torch.from_numpy(densities(rows, clusters, centres)).float()
        self.centres = F.normalize(torch.from_numpy(centres).float(), dim=1)


class GPCTrainer(Trainer):
    """The M-step on batches, the E-step before epochs."""

    def __init__(
        self,
        network: EncoderWithHead,
        prototypes: Prototypes,
        views: View,
        *,
        sup_weight: float,
        warmup_epochs: int,
        update_every: int,
        **parameters: Any,
    ) -> None:
        super().__init__(network, **parameters)
        self.prototypes, self.views, self.sup_weight = prototypes, views, sup_weight
        self.warmup_epochs, self.update_every = warmup_epochs, update_every

    @property
    def with_prototypes(self) -> bool:
        """Whether the warm-up is over."""
        return self.epoch >= self.warmup_epochs

    def before_epoch(self) -> None:
        """E-step on the features of the rows as they are."""
        if self.with_prototypes and (self.epoch - self.warmup_epochs) % self.update_every == 0:
            self.plain_network.eval()
            features = predict_in_batches(lambda x: self.plain_network(x)[0], self.tensors[0], device=self.device)
            self.prototypes.update(features)

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Two views of the rows, and their labels."""
        rows, labels = super().fetch(index)
        return self.views(rows), self.views(rows), labels

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Contrast, and the prototypes once the warm-up is over."""
        first, second, labels = batch
        features, projections = self.network(torch.cat([first, second]))
        of_first, of_second = projections.split(len(index))
        total, terms = contrastive_loss(of_first, of_second, labels, self.sup_weight)
        if self.with_prototypes:
            found = self.prototypes
            centres, density = found.centres.to(self.device), found.density.to(self.device)
            clusters = found.clusters[index].repeat(2).to(self.device)
            aimed = prototype_loss(features, centres, density, clusters)
            total, terms["proto"] = total + aimed, float(aimed.detach())
        return total, terms

    def after_epoch(self, row: Row) -> None:
        """Add the number of clusters."""
        if self.with_prototypes:
            row["clusters"] = float(self.prototypes.n_clusters or 0)


@register(
    "gcd-gpc",
    stage="discover",
    summary="Learns features of partly labelled images or rows together with their classes, known and new",
    paper="Learning Semi-supervised Gaussian Mixture Models for Generalized Category Discovery",
    year=2023,
    link="https://arxiv.org/abs/2305.06144",
    licence="MIT",
    accepts=("image", "table", "embedding"),
    skips_checks={"one_class": "a single labelled class among unknown ones is a problem it is made for"},
)
class GPC(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Generalized category discovery with an encoder that is trained along.

    Parameters
    ----------
    encoder : nn.Module, optional
        Gives (B, d) or maps, which are averaged; a copy is trained, and of it only what requires gradients. None: three
        convolutions for images, two fully connected layers for rows.
    head : nn.Module, optional
        (B, d) -> projections (B, p); None: three linear layers with 128 outputs.
    epochs : int, default=60
    batch_size : int, default=256
        At most the number of rows.
    lr : float, default=0.1
        Of SGD with momentum 0.9, falling along a cosine to a thousandth.
    weight_decay : float, default=5e-5
    sup_weight : float, default=0.35
        Lambda: weight of the supervised contrast against that of all views.
    warmup_epochs : int, default=1
        Epochs without prototypes.
    update_every : int, default=1
        Epochs between E-steps.
    gmm_params : dict, optional
        Parameters of :class:`~models.discover.gcd_gmm.SemiSupervisedGMM`.
    views : callable, optional
        Batch -> batch of distorted rows, called twice. None: crops and jitter for images (no flips), swapped features
        for rows.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    encoder_, head_ : nn.Module
    gmm_ : SemiSupervisedGMM
        The mixture of the final features, with all rounds of split and merge.
    classes_ : int array
        Labels seen in y.
    n_classes_, n_clusters_, n_novel_ : int
        All classes (two names), and the new ones.
    labels_ : int array, (n,)
        Labelled classes keep their label, new ones get ``classes_.max() + 1 + j``.
    cluster_centers_ : array, (n_classes_, d')
        Of ``gmm_``.
    confidences_ : array, (n,)
        Of ``gmm_``.
    history_ : list of dict
        ``loss``, ``nce``, ``supcon`` of each epoch, and after the warm-up ``proto`` and ``clusters``.
    n_features_in_ : int
    sample_shape_ : tuple of int

    Notes
    -----
    Clusters are numbered anew in every E-step, so nothing is carried across them but their number. The released code
    starts from the true number of classes and keeps the epoch with the best accuracy on new test classes; here neither
    is known.

    References
    ----------
    Zhao, Wen and Han, 2023, section 3; contrast after Vaze et al., "Generalized Category Discovery", CVPR 2022.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from models.networks.convnet import ConvEncoder
    >>> import numpy as np
    >>> X, y = load_digits().images[:128] / 16, load_digits().target[:128]
    >>> settings = {"n_components_pca": 4, "psi_scale": "within", "n_init_clusters": 8}
    >>> method = GPC(ConvEncoder((4, 8)), epochs=2, batch_size=32, gmm_params=settings, random_state=0)
    >>> bool((method.fit(X, np.where(y < 3, y, -1)).labels_[y < 3] == y[y < 3]).all())
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "encoder": [nn.Module, None],
        "head": [nn.Module, None],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "sup_weight": [Interval(Real, 0, 1, closed="both")],
        "warmup_epochs": [Interval(Integral, 0, None, closed="left")],
        "update_every": [Interval(Integral, 1, None, closed="left")],
        "gmm_params": [dict, None],
        "views": [callable, None],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        encoder: nn.Module | None = None,
        head: nn.Module | None = None,
        epochs: int = 60,
        batch_size: int = 256,
        lr: float = 0.1,
        weight_decay: float = 5e-5,
        sup_weight: float = 0.35,
        warmup_epochs: int = 1,
        update_every: int = 1,
        gmm_params: dict[str, Any] | None = None,
        views: View | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.encoder = encoder
        self.head = head
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.sup_weight = sup_weight
        self.warmup_epochs = warmup_epochs
        self.update_every = update_every
        self.gmm_params = gmm_params
        self.views = views
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None = None) -> GPC:
        """Train the encoder and find the classes.

        Parameters
        ----------
        X : array or tensor, (n, H, W), (n, C, H, W) or (n, d)
            Images in [0, 1] or uint8, or rows.
        y : int array, (n,)
            Labels, -1 = unlabelled.

        Raises
        ------
        ValueError
            Without y or any label, for malformed X, or as :meth:`SemiSupervisedGMM.fit
            <models.discover.gcd_gmm.SemiSupervisedGMM.fit>` on the features.
        """
        self._validate_params()
        rows = check_samples(self, X, reset=True, minimum=2)
        if y is None:
            raise ValueError("GPC requires y to be passed, but the target y is None. Give labels, -1 for none.")
        labels = check_labels(y, len(rows), minimum_classes=1)
        with isolated_seed(self.random_state) as seed:
            network = self._network(rows)
            prototypes = Prototypes(labels, self.gmm_params or {}, seed)
            trainer = self._trainer(network, prototypes, rows, labels, seed)
            trainer.fit(rows, torch.from_numpy(labels))
            at_rest(network)
            self.encoder_, self.head_ = network.encoder, network.head
            self.gmm_ = prototypes.mixture(self._embed(rows))
        self.history_ = trainer.history
        for name in (
            "classes_",
            "n_classes_",
            "n_clusters_",
            "n_novel_",
            "labels_",
            "cluster_centers_",
            "confidences_",
        ):
            setattr(self, name, getattr(self.gmm_, name))
        return self

    def fit_predict(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None = None) -> Labels:
        """Fit and return ``labels_``."""
        return self.fit(X, y).labels_

    def predict(self, X: ArrayLike | Tensor) -> Labels:
        """Class of each image or row, that of the nearest prototype."""
        check_is_fitted(self, "gmm_")
        return self.gmm_.predict(self._embed(check_samples(self, X, reset=False)))

    def transform(self, X: ArrayLike | Tensor) -> Matrix:
        """Unit-length features, (n, d)."""
        check_is_fitted(self, "gmm_")
        return self._embed(check_samples(self, X, reset=False))

    @property
    def _n_features_out(self) -> int:
        return self.gmm_.n_features_in_

    def _embed(self, rows: Tensor) -> Matrix:
        features = predict_in_batches(lambda x: pooled(self.encoder_(x)), rows)
        return F.normalize(features.double(), dim=1).numpy()

    def _network(self, rows: Tensor) -> EncoderWithHead:
        encoder = copy.deepcopy(self.encoder)
        if encoder is None:
            images = rows.ndim == 4
            encoder = ConvEncoder(in_channels=rows.shape[1]) if images else MLPEncoder(rows.shape[1])
        width = feature_width(encoder, rows[:1])
        head = copy.deepcopy(self.head) or ProjectionHead(width, (256, 256, 128))
        return for_training(EncoderWithHead(encoder, head))

    def _trainer(
        self, network: EncoderWithHead, prototypes: Prototypes, rows: Tensor, labels: Labels, seed: int
    ) -> GPCTrainer:
        batch_size = min(self.batch_size, len(rows))
        default = contrastive(rows.shape[1], flip=False, scale=(0.4, 1.0)) if rows.ndim == 4 else FeatureSwap()

        def batches(epoch: int) -> Iterator[Tensor]:
            return balanced_draws(labels, batch_size, torch.Generator().manual_seed(seed + epoch))

        return GPCTrainer(
            network,
            prototypes,
            self.views or default,
            sup_weight=self.sup_weight,
            warmup_epochs=self.warmup_epochs,
            update_every=self.update_every,
            epochs=self.epochs,
            batch_size=batch_size,
            batches=batches,
            optimizer=sgd(self.lr, weight_decay=self.weight_decay),
            schedule=lambda step, total: LAST_RATE + (1 - LAST_RATE) * cosine(step, total),
            label="gpc",
            seed=seed,
            device=self.device,
        )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

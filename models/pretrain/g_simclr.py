"""G-SimCLR: SimCLR whose small batches hold (almost) one image of every pseudo-group.

A denoising autoencoder and k-means guess groups of similar images; batches are then cut so that images of one group
rarely meet, and NT-Xent no longer pushes apart what shows the same thing.

S. Chakraborty, A. R. Gosthipaty and S. Paul, "G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection
via Pseudo Labelling", ICDM workshops 2020, arXiv:2009.12007.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import kornia.augmentation as K
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.augment import Clipped, View, contrastive
from models.base import UNLABELLED, check_images, check_labels, isolated_seed, predict_in_batches
from models.losses import nt_xent
from models.networks.encoders import EncoderSpec, Pooled, at_rest, feature_width, for_training, make_encoder, pooled
from models.networks.heads import ProjectionHead
from models.pretrain.cluster_batches import (
    Labels,
    SamplerName,
    StratifiedClusterBatchSampler,
    expected_repeats,
    repeats,
)
from models.pretrain.pseudo_labels import PseudoLabeller, check_cluster_count, cluster
from models.registry import register
from models.training import Row, Trainer, cosine_restarts, sgd

__all__ = ["GSimCLR", "PseudoLabeller", "StratifiedClusterBatchSampler"]

LOG = logging.getLogger(__name__)

# The equations -----------------------------------------------------------------------------------------------------


def cosine_once(first_steps: int) -> Callable[[int, int], float]:
    """Step 8, as published for 224x224 images: half a cosine over `first_steps`, then 0."""
    return lambda step, total: 0.5 * (1 + math.cos(math.pi * min(step / first_steps, 1.0)))


def default_views(channels: int) -> nn.Module:
    """Step 5: the published distortions for colour (flip, jitter of strength 0.2, grey), a crop and jitter otherwise.

    Jitter of strength s: brightness shifted by up to 0.8 s, contrast and saturation times 1 +- 0.8 s, hue turned by
    up to 0.2 s. All are drawn per image. Without colour there is no flip, since it may change the meaning.
    """
    if channels != 3:
        return contrastive(channels, flip=False, scale=(0.4, 1.0))
    s = 0.2
    jitter = K.ColorJiggle(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.5, same_on_batch=False)
    return Clipped(nn.Sequential(K.RandomHorizontalFlip(p=0.5), jitter, K.RandomGrayscale(p=0.5)))


# Contrastive training ----------------------------------------------------------------------------------------------


class ContrastiveNetwork(nn.Module):
    """Step 6: encoder, average over space, projection head."""

    def __init__(self, encoder: nn.Module, projection: ProjectionHead) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> projections (B, d)."""
        return self.projection(pooled(self.encoder(images)))


class GSimCLRTrainer(Trainer):
    """NT-Xent on two views of the batches the sampler cuts.

    Parameters
    ----------
    network : ContrastiveNetwork
    sampler : StratifiedClusterBatchSampler
    augment : callable
        Batch -> batch of views, called once for each of the two.
    temperature : float
    recluster : callable, optional
        Trainer -> new labels, asked for at the start of an epoch.
    recluster_every : int, optional
    """

    def __init__(
        self,
        network: nn.Module,
        sampler: StratifiedClusterBatchSampler,
        augment: View,
        temperature: float,
        recluster: Callable[[Trainer], Labels],
        recluster_every: int | None,
        **parameters: Any,
    ) -> None:
        super().__init__(network, batches=lambda epoch: self.sampler.batches(epoch), **parameters)
        self.sampler, self.augment, self.temperature = sampler, augment, temperature
        self.recluster, self.recluster_every = recluster, recluster_every

    def before_epoch(self) -> None:
        """Cluster anew where asked to, and note how the epoch's batches go."""
        if self.recluster_every and self.epoch and self.epoch % self.recluster_every == 0:
            self.sampler.labels = self.recluster(self)
        self.repeats: list[int] = []

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Step 5: two independent views of the images."""
        (images,) = super().fetch(index)
        return self.augment(images), self.augment(images)

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Step 7: NT-Xent over the 2B views, which pass the network together."""
        first, second = self.network(torch.cat(batch)).split(len(index))
        self.repeats.append(repeats(self.sampler.labels[index.numpy()]))
        return nt_xent(first, second, self.temperature), {}

    def after_epoch(self, row: Row) -> None:
        """Add the mean number of pseudo-label repeats a batch."""
        row["pseudo_repeats"] = float(np.mean(self.repeats))
        row["batches"] = float(len(self.repeats))


@register(
    "g-simclr",
    stage="pretrain",
    summary="Contrastive pretraining in small batches that hold one image of every guessed group",
    paper="G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection via Pseudo Labelling",
    year=2020,
    link="https://arxiv.org/abs/2009.12007",
    licence="Apache-2.0",
    accepts=("image",),
)
class GSimCLR(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """SimCLR with batches guided by pseudo-labels.

    Parameters
    ----------
    encoder : str, nn.Module or callable, default="resnet20"
        A name of :data:`models.networks.resnet.NAMED`, a module (a copy is trained further), or in_channels -> module.
        It may give rows (B, d) or maps, which are averaged over space. "resnet20" is the basic residual form with
        64 features; the paper's has bottleneck blocks and 256.
    n_clusters : int, default=64
        Published: as many as a batch has images.
    batch_size : int, default=64
    sampler : {"round_robin", "hard", "random"}, default="round_robin"
        See :class:`StratifiedClusterBatchSampler`. "random" is SimCLR and skips autoencoder and k-means.
    reshuffle : bool, default=True
        Draw the batches anew each epoch; the released notebooks do not.
    recluster_every : int, optional
        Epochs after which k-means runs again, on the encoder's own features; None keeps the first groups.
    projection_dims : sequence of int, default=(256, 128, 50)
        At least two widths.
    temperature : float, default=0.1
    epochs : int, default=15
    lr : float, default=0.1
        Of SGD.
    lr_schedule : {"cosine_restarts", "cosine"} or None, default="cosine_restarts"
        By step: restarts with periods `first_decay_steps`, twice that, ...; or once over them and 0 afterwards,
        published for 224x224 images; or constant.
    first_decay_steps : int, default=1000
    momentum : float, default=0.0
    augment : callable, optional
        Batch -> batch of distorted images, drawn per image; called for both views. By default the published
        distortions for colour images, and a resized crop (0.4 to 1) with brightness and contrast jitter for others.
    ae_noise_std : float, default=0.01
    ae_epochs, ae_patience : int, default=100, 2
        Patience is 5 in the paper for 224x224 images.
    ae_widths : sequence of int, optional
        Channels of the autoencoder's stages; None takes the published ones.
    ae_samples : int, optional
        Images the autoencoder is trained on, to save time; None means all.
    feature_layer : {"P1", "P2", "P3"}, default="P3"
        What :meth:`transform` gives: "P3" the pooled encoder, "P2" up to the first hidden layer of the head, "P1" the
        head without its last layer.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    encoder_ : nn.Module
    projection_ : ProjectionHead
    autoencoder_ : DenoisingAutoencoder or None
        None where pseudo-labels were given or not needed; likewise the next two.
    embedding_ : array, (n, 128), or None
    kmeans_ : KMeans, MiniBatchKMeans or None
        Of the last clustering.
    pseudo_labels_ : array of int64, (n,)
        Those the last epoch used, -1 = unknown.
    loss_curve_ : list of float
        Mean NT-Xent of each epoch.
    batch_stats_ : dict
        "repeats": mean pseudo-label repeats a batch, per epoch; "batches": their number, per epoch;
        "random_repeats": what random batches would have; "cluster_sizes": smallest and largest cluster.
    history_ : list of dict
        The trainer's rows.
    n_features_in_ : int
        Pixel values an image, C H W.

    Notes
    -----
    Too few clusters remove useful negatives: images of one cluster never meet, also when the cluster is wrong. Far
    more clusters than classes make the guidance vanish, and as round robin runs out of small clusters its last
    batches repeat the large ones more than random batches would; the log warns when they do.

    References
    ----------
    Chakraborty et al. (2020). Steps are numbered as they run: autoencoder (1), embedding (2), k-means (3), batches
    (4), views (5), network (6), NT-Xent (7, after Chen et al., 2020, eq. 1), optimiser (8).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from models.networks.convnet import ConvEncoder
    >>> X = load_digits().images[:128] / 16
    >>> method = GSimCLR(ConvEncoder((4, 8)), n_clusters=8, batch_size=16, epochs=1, ae_epochs=1, random_state=0)
    >>> method.fit(X).transform(X).shape, method.transform(X, layer="P1").shape
    ((128, 8), (128, 128))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "encoder": [str, callable],
        "n_clusters": [Interval(Integral, 2, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "sampler": [StrOptions({"round_robin", "hard", "random"})],
        "reshuffle": ["boolean"],
        "recluster_every": [Interval(Integral, 1, None, closed="left"), None],
        "projection_dims": ["array-like"],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "lr_schedule": [StrOptions({"cosine_restarts", "cosine"}), None],
        "first_decay_steps": [Interval(Integral, 1, None, closed="left")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "augment": [callable, None],
        "ae_noise_std": [Interval(Real, 0, None, closed="left")],
        "ae_epochs": [Interval(Integral, 1, None, closed="left")],
        "ae_patience": [Interval(Integral, 1, None, closed="left")],
        "ae_widths": ["array-like", None],
        "ae_samples": [Interval(Integral, 4, None, closed="left"), None],
        "feature_layer": [StrOptions({"P1", "P2", "P3"})],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        encoder: EncoderSpec = "resnet20",
        n_clusters: int = 64,
        batch_size: int = 64,
        sampler: SamplerName = "round_robin",
        reshuffle: bool = True,
        recluster_every: int | None = None,
        projection_dims: Sequence[int] = (256, 128, 50),
        temperature: float = 0.1,
        epochs: int = 15,
        lr: float = 0.1,
        lr_schedule: Literal["cosine_restarts", "cosine"] | None = "cosine_restarts",
        first_decay_steps: int = 1000,
        momentum: float = 0.0,
        augment: View | None = None,
        ae_noise_std: float = 0.01,
        ae_epochs: int = 100,
        ae_patience: int = 2,
        ae_widths: Sequence[int] | None = None,
        ae_samples: int | None = None,
        feature_layer: Literal["P1", "P2", "P3"] = "P3",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.encoder = encoder
        self.n_clusters = n_clusters
        self.batch_size = batch_size
        self.sampler = sampler
        self.reshuffle = reshuffle
        self.recluster_every = recluster_every
        self.projection_dims = projection_dims
        self.temperature = temperature
        self.epochs = epochs
        self.lr = lr
        self.lr_schedule = lr_schedule
        self.first_decay_steps = first_decay_steps
        self.momentum = momentum
        self.augment = augment
        self.ae_noise_std = ae_noise_std
        self.ae_epochs = ae_epochs
        self.ae_patience = ae_patience
        self.ae_widths = ae_widths
        self.ae_samples = ae_samples
        self.feature_layer = feature_layer
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike | Tensor,
        y: Any = None,
        *,
        pseudo_labels: ArrayLike | None = None,
        X_val: ArrayLike | Tensor | None = None,
    ) -> GSimCLR:
        """Guess groups and train the encoder on batches that hold one image of each.

        Parameters
        ----------
        X : array or tensor, (n, H, W) or (n, C, H, W)
            Images in [0, 1] or uint8.
        y : None
            Not used.
        pseudo_labels : array of int, (n,), optional
            Known groups, -1 = unknown; they take the place of autoencoder and k-means.
        X_val : like X, optional
            Images that decide when the autoencoder stops; without them a tenth of those it would learn from.

        Raises
        ------
        ValueError
            For malformed images, fewer of them than a batch or the clusters need, or settings that do not go together.
        """
        self._validate_params()
        images = check_images(X, minimum=2)
        given = self._check(images, pseudo_labels)
        with isolated_seed(self.random_state) as seed:
            self._group(images, given, X_val, seed)
            encoder = make_encoder(self.encoder, images.shape[1])
            width = feature_width(encoder, images[:1])
            network = ContrastiveNetwork(encoder, ProjectionHead(width, tuple(self.projection_dims)))
            trainer = self._train(for_training(network), images, seed)
        at_rest(network)
        self.encoder_, self.projection_ = network.encoder, network.projection
        self.pseudo_labels_ = trainer.sampler.labels
        self.history_ = trainer.history
        self.loss_curve_ = [row["loss"] for row in trainer.history]
        self.batch_stats_ = self._batch_stats(trainer)
        self.n_channels_, self.n_features_in_ = images.shape[1], images[0].numel()
        return self

    def transform(self, X: ArrayLike | Tensor, layer: str | None = None) -> NDArray[np.float32]:
        """Features of the images, (n, d) float32, in eval mode.

        Parameters
        ----------
        X : array or tensor, (n, H, W) or (n, C, H, W)
        layer : {"P1", "P2", "P3"}, optional
            Instead of `feature_layer`.

        Raises
        ------
        ValueError
            For malformed images, another number of channels than in fit, or an unknown layer.
        """
        check_is_fitted(self, "encoder_")
        layer = self.feature_layer if layer is None else layer
        if layer not in ("P1", "P2", "P3"):
            raise ValueError(f"There is no layer {layer!r}: choose 'P1', 'P2' or 'P3'.")
        images = check_images(X, channels=self.n_channels_)
        head = {"P1": self.projection_.layers[:-1], "P2": self.projection_.layers[:2], "P3": nn.Identity()}[layer]
        network = nn.Sequential(self.encoder_, Pooled(), head).eval().to(self.device)
        features = predict_in_batches(network, images, device=self.device).numpy()
        network.cpu()
        return features

    @property
    def _n_features_out(self) -> int:
        linear = [layer for layer in self.projection_.layers if isinstance(layer, nn.Linear)]
        return {"P1": linear[-1].in_features, "P2": linear[0].out_features, "P3": linear[0].in_features}[
            self.feature_layer
        ]

    def _check(self, images: Tensor, pseudo_labels: ArrayLike | None) -> Labels | None:
        """Checks across parameters and data; returns the given pseudo-labels."""
        n = len(images)
        if n < self.batch_size:
            raise ValueError(
                f"X holds {n} images, fewer than batch_size={self.batch_size}. Lower batch_size or give more images."
            )
        dims = tuple(self.projection_dims)
        if len(dims) < 2 or not all(width == int(width) > 0 for width in dims):
            raise ValueError(f"projection_dims must be at least two positive widths, got {dims}.")
        if pseudo_labels is None:
            if self.sampler != "random" or self.recluster_every:
                check_cluster_count(self.n_clusters, n)
            return None
        if self.recluster_every:
            raise ValueError(
                f"recluster_every={self.recluster_every} would replace the pseudo_labels given. Use one of the two."
            )
        return check_labels(pseudo_labels, n, minimum_classes=1, name="pseudo_labels")

    def _group(self, images: Tensor, given: Labels | None, X_val: ArrayLike | Tensor | None, seed: int) -> None:
        """Steps 1 to 3."""
        self.autoencoder_ = self.embedding_ = self.kmeans_ = None
        self.pseudo_labels_ = np.full(len(images), UNLABELLED, dtype=np.int64) if given is None else given
        if given is not None or self.sampler == "random":
            return
        labeller = PseudoLabeller(
            self.n_clusters,
            widths=self.ae_widths,
            noise_std=self.ae_noise_std,
            epochs=self.ae_epochs,
            patience=self.ae_patience,
            samples=self.ae_samples,
            device=self.device,
            random_state=seed,
        ).fit(images, X_val=X_val)
        self.autoencoder_, self.embedding_ = labeller.autoencoder_, labeller.embedding_
        self.kmeans_, self.pseudo_labels_ = labeller.kmeans_, labeller.labels_

    def _train(self, network: ContrastiveNetwork, images: Tensor, seed: int) -> GSimCLRTrainer:
        """Steps 4 to 8."""
        schedules = {
            "cosine_restarts": cosine_restarts(self.first_decay_steps),
            "cosine": cosine_once(self.first_decay_steps),
            None: None,
        }

        def recluster(trainer: Trainer) -> Labels:
            features = predict_in_batches(
                nn.Sequential(network.encoder, Pooled()), images, device=trainer.device
            ).numpy()
            network.train()
            self.kmeans_ = cluster(features, self.n_clusters, seed + trainer.epoch)
            return self.kmeans_.labels_.astype(np.int64)

        trainer = GSimCLRTrainer(
            network,
            StratifiedClusterBatchSampler(self.pseudo_labels_, self.batch_size, self.sampler, self.reshuffle, seed),
            self.augment or default_views(images.shape[1]),
            self.temperature,
            recluster,
            self.recluster_every,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=sgd(self.lr, self.momentum),
            schedule=schedules[self.lr_schedule],
            label="g-simclr",
            seed=seed,
            device=self.device,
        )
        self._warn_of_the_tail(trainer.sampler)
        trainer.fit(images)
        return trainer

    def _warn_of_the_tail(self, sampler: StratifiedClusterBatchSampler) -> None:
        """Say so when the last quarter of a round-robin epoch repeats clusters more than random batches would."""
        if sampler.how != "round_robin":
            return
        counts = [repeats(sampler.labels[batch.numpy()]) for batch in sampler.batches(0)]
        tail = float(np.mean(counts[-max(1, len(counts) // 4) :]))
        chance = expected_repeats(sampler.labels, sampler.batch_size)
        if tail > chance:
            LOG.warning(
                "The last quarter of an epoch repeats pseudo-labels %.1f times a batch, random batches %.1f: cluster "
                "sizes differ too much. Use sampler='hard', or other n_clusters.",
                tail,
                chance,
            )

    def _batch_stats(self, trainer: GSimCLRTrainer) -> dict[str, Any]:
        labels = trainer.sampler.labels
        sizes = np.bincount(labels[labels != UNLABELLED]) if (labels != UNLABELLED).any() else np.zeros(1, dtype=int)
        return {
            "repeats": [row["pseudo_repeats"] for row in trainer.history],
            "batches": [int(row["batches"]) for row in trainer.history],
            "random_repeats": expected_repeats(labels, self.batch_size),
            "cluster_sizes": [int(sizes.min()), int(sizes.max())],
        }

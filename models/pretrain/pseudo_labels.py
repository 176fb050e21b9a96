"""Guessed groups of unlabelled images: denoising autoencoder, then k-means on its bottleneck (G-SimCLR, steps 1 to 3).

S. Chakraborty, A. R. Gosthipaty and S. Paul, "G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection
via Pseudo Labelling", ICDM workshops 2020, arXiv:2009.12007, section III-A.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.base import check_images, isolated_seed, predict_in_batches
from models.networks.autoencoder import DEEP, SHALLOW, DenoisingAutoencoder
from models.networks.encoders import at_rest, for_training
from models.training import EarlyStopping, Row, Trainer, adam

DEEP_FROM = 128
"""Images at least this high or wide get the deep autoencoder with its learning rate."""
SHALLOW_LR, DEEP_LR = 1e-3, 1e-4
MANY_IMAGES = 200_000
"""Above this many images k-means runs on mini-batches."""


class AutoencoderTrainer(Trainer):
    """Step 1: mean squared error to the clean image; adds that of held-out images to each epoch's row."""

    def __init__(self, network: nn.Module, held_out: Tensor, **parameters: Any) -> None:
        super().__init__(network, **parameters)
        self.held_out = held_out

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """The network adds the noise to its input, so that the batch itself is the clean target."""
        return F.mse_loss(self.network(batch[0]), batch[0]), {}

    def after_epoch(self, row: Row) -> None:
        """Validation error in eval mode, without noise."""
        restored = predict_in_batches(self.plain_network, self.held_out, self.batch_size, self.device)
        row["validation_loss"] = float(F.mse_loss(restored, self.held_out))


def cluster(embedding: NDArray[np.float32], n_clusters: int, seed: int) -> KMeans | MiniBatchKMeans:
    """Step 3: k-means on the embeddings as they are, by mini-batches above 200,000 rows."""
    kind = MiniBatchKMeans if len(embedding) > MANY_IMAGES else KMeans
    return kind(n_clusters, n_init="auto", random_state=seed % 2**32).fit(embedding)


class PseudoLabeller(BaseEstimator):
    """Denoising autoencoder, pooled bottleneck, k-means: a group for every image.

    Parameters
    ----------
    n_clusters : int, default=64
    widths : sequence of int, optional
        Channels of the autoencoder's stages; by default the published ones, shallow for small images, deep from
        128 pixels.
    noise_std : float, default=0.01
    epochs, patience : int, default=100, 2
        Training ends when the validation error has not fallen for `patience` epochs; the best weights are kept.
    samples : int, optional
        Images, drawn at random, the autoencoder is trained on; all are embedded and clustered. None trains on all.
    batch_size : int, default=64
    lr : float, optional
        Of Adam; by default 1e-3, and 1e-4 for the deep form.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    autoencoder_ : DenoisingAutoencoder
    embedding_ : array, (n, d)
    kmeans_ : KMeans or MiniBatchKMeans
    labels_ : array of int64, (n,)
    history_ : list of dict
        One row an epoch of the autoencoder, with "loss" and "validation_loss".

    References
    ----------
    Chakraborty et al. (2020), section III-A, "Denoising autoencoder" and "Clustering".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X = load_digits().images[:200] / 16
    >>> labeller = PseudoLabeller(n_clusters=5, widths=(4, 8), epochs=1, random_state=0).fit(X)
    >>> labeller.labels_.shape, labeller.embedding_.shape
    ((200,), (200, 8))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 2, None, closed="left")],
        "widths": ["array-like", None],
        "noise_std": [Interval(Real, 0, None, closed="left")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "samples": [Interval(Integral, 4, None, closed="left"), None],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither"), None],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 64,
        widths: Sequence[int] | None = None,
        noise_std: float = 0.01,
        epochs: int = 100,
        patience: int = 2,
        samples: int | None = None,
        batch_size: int = 64,
        lr: float | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.widths = widths
        self.noise_std = noise_std
        self.epochs = epochs
        self.patience = patience
        self.samples = samples
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: None = None, *, X_val: ArrayLike | Tensor | None = None) -> PseudoLabeller:
        """Train the autoencoder, embed `X` and cluster it.

        Parameters
        ----------
        X : array or tensor, (n, H, W) or (n, C, H, W)
            Images in [0, 1] or uint8.
        y : None
            Not used.
        X_val : like X, optional
            Images that decide when the autoencoder stops; without them a tenth of those it would learn from.

        Raises
        ------
        ValueError
            For malformed images, or fewer images than clusters.
        """
        self._validate_params()
        images = check_images(X, minimum=4)
        check_cluster_count(self.n_clusters, len(images))
        with isolated_seed(self.random_state) as seed:
            held_out = None if X_val is None else check_images(X_val, name="X_val", channels=images.shape[1])
            trainer = self._train(images, held_out, seed)
            self.autoencoder_ = at_rest(trainer.plain_network)
            self.embedding_ = self.transform(images)
            self.kmeans_ = cluster(self.embedding_, self.n_clusters, seed)
        self.labels_ = self.kmeans_.labels_.astype(np.int64)
        self.history_ = trainer.history
        return self

    def transform(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Step 2: bottleneck of clean images in eval mode, averaged over space, (n, d)."""
        check_is_fitted(self, "autoencoder_")
        network = self.autoencoder_.eval().to(self.device)
        embedded = predict_in_batches(network.embed, check_images(X), 256, self.device).numpy()
        network.cpu()
        return embedded

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.int64]:
        """Nearest cluster of each image, (n,)."""
        check_is_fitted(self, "kmeans_")
        return self.kmeans_.predict(self.transform(X)).astype(np.int64)

    def _train(self, images: Tensor, held_out: Tensor | None, seed: int) -> Trainer:
        chosen = torch.randperm(len(images))[: self.samples]
        if held_out is None:
            count = max(1, len(chosen) // 10)
            held_out, chosen = images[chosen[:count]], chosen[count:]
        deep = max(images.shape[-2:]) >= DEEP_FROM
        shape: dict[str, Any] = dict(DEEP if deep else SHALLOW)
        if self.widths is not None:
            shape["widths"] = tuple(self.widths)
        network = DenoisingAutoencoder(images.shape[1], noise_std=self.noise_std, **shape)
        trainer = AutoencoderTrainer(
            for_training(network),
            held_out,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=adam(self.lr or (DEEP_LR if deep else SHALLOW_LR)),
            hooks=[EarlyStopping("validation_loss", self.patience)],
            label="autoencoder",
            seed=seed,
            device=self.device,
        )
        return trainer.fit(images[chosen])


def check_cluster_count(n_clusters: int, n: int) -> None:
    """Raise a ValueError when there are fewer images than clusters."""
    if n_clusters > n:
        raise ValueError(f"n_clusters={n_clusters} is more than the {n} images in X. Ask for fewer clusters.")

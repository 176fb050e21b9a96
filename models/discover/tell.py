"""TELL: k-means as the last layer of a network, whose weight rows are centres that can be drawn as pictures.

The k-means distance to a centre is ``|z|^2 + |o_j|^2 - 2 o_j.z``. With codes and centres on the unit sphere the first
two terms are constant, so a linear layer with rows ``W_j = 2 alpha o_j`` scores the centres: its largest output is the
nearest centre, and its rows are readable.

X. Peng, Y. Li, I. W. Tsang, H. Zhu, J. Lv and J. T. Zhou, "XAI Beyond Classification: Interpretable Neural
Clustering", JMLR 23(6), 2022, arXiv:1808.07292.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.optim import Optimizer

from models.base import check_enough_rows, check_samples, isolated_seed, predict_in_batches
from models.networks import network
from models.networks.autoencoder import ConvAutoencoder, MLPAutoencoder, PairedAutoencoder
from models.networks.encoders import at_rest, for_training
from models.registry import register
from models.training import Row, Trainer, adam

LOG = logging.getLogger(__name__)

# The equations -----------------------------------------------------------------------------------------------------


def row_directions(matrix: Tensor) -> Tensor:
    """Step 4: each row divided by its length; rows of zeros (centres without a sample) stay zero."""
    return F.normalize(matrix, dim=1)


def clustering_loss(scores: Tensor, alpha: float) -> Tensor:
    """Step 3: the mean over all B k entries of (2 alpha - delta_ij y_ij), over alpha; delta marks the largest score.

    With unit codes this is ``2 (1 - mean cosine to the own centre / k)``.
    """
    own = F.one_hot(scores.detach().argmax(dim=1), scores.shape[1])
    return (2 * alpha - own * scores).mean() / alpha


def margins(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """(second - nearest) / second distance to a centre, (n, k) -> (n,): 0 where two centres are equally near."""
    nearest, second = np.partition(distances, 1, axis=1)[:, :2].T
    return np.divide(second - nearest, second, out=np.zeros_like(second), where=second > 0)


# The networks ------------------------------------------------------------------------------------------------------


class TELLLayer(nn.Module):
    """k-means as a linear layer; it can end any network that gives unit codes.

    Parameters
    ----------
    n_clusters, n_features : int
        k and the width D of the codes.
    alpha : float
        Scale: every row of ``weight`` has the length ``2 alpha``.

    Attributes
    ----------
    weight : nn.Parameter, (k, D)
    unused_epochs : Tensor, (k,)
        For how many epochs in a row no sample chose the centre.

    References
    ----------
    Peng et al. (2022), steps 2 and 3 of the algorithm.

    Examples
    --------
    >>> import torch
    >>> layer = TELLLayer(2, 3)
    >>> layer.set_centers(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    >>> layer(torch.tensor([[0.6, 0.8, 0.0]])).argmax(dim=1).tolist()
    [1]
    """

    unused_epochs: Tensor

    def __init__(self, n_clusters: int, n_features: int, alpha: float = 1e-3) -> None:
        super().__init__()
        self.alpha = alpha
        self.weight = nn.Parameter(torch.randn(n_clusters, n_features))
        self.register_buffer("unused_epochs", torch.zeros(n_clusters, dtype=torch.long))
        self.normalize_()

    def forward(self, codes: Tensor) -> Tensor:
        """Scores z W^T, (B, D) -> (B, k)."""
        return codes @ self.weight.T

    def loss(self, codes: Tensor) -> Tensor:
        """:func:`clustering_loss` of unit codes (B, D)."""
        return clustering_loss(self(codes), self.alpha)

    def centers(self) -> Tensor:
        """Unit centres W / (2 alpha), (k, D), without gradient."""
        return self.weight.detach() / (2 * self.alpha)

    @torch.no_grad()
    def normalize_(self) -> None:
        """Give every row the length 2 alpha again."""
        self.weight.copy_(2 * self.alpha * F.normalize(self.weight, dim=1))

    @torch.no_grad()
    def set_centers(self, centers: Tensor) -> None:
        """Put centres (k, D), of any length but 0, in place of the present ones."""
        self.weight.copy_(centers)
        self.normalize_()


@network("tell")
class TELLNetwork(nn.Module):
    """Autoencoder with unit codes and a :class:`TELLLayer` on them.

    Parameters
    ----------
    autoencoder : nn.Module
        With ``encoder`` and ``decoder``.
    n_clusters, latent_dim : int
    alpha : float
    """

    def __init__(self, autoencoder: nn.Module, n_clusters: int, latent_dim: int, alpha: float = 1e-3) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.layer = TELLLayer(n_clusters, latent_dim, alpha)

    def codes(self, x: Tensor) -> Tensor:
        """Step 1: samples -> z = f(x) / |f(x)|, (B, latent_dim)."""
        return F.normalize(self.autoencoder.encoder(x), dim=1)  # type: ignore[operator]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Samples -> unit codes and reconstructions."""
        codes = self.codes(x)
        return codes, self.autoencoder.decoder(codes)  # type: ignore[operator]


# Training ----------------------------------------------------------------------------------------------------------

CenterInit = Literal["random", "kmeans", "sample"]


class TELLTrainer(Trainer):
    """Reconstruction in every epoch; after the warm-up, even epochs move the centres and odd ones the codes.

    Parameters
    ----------
    network : TELLNetwork
    cluster_weight, center_step : float
    center_init : {"random", "kmeans", "sample"}
    warmup_epochs : int
    reseed : bool
    centres_in_optimizer : bool
        Whether the optimiser steps the centres, or the plain step of step 5 does.
    log_every : int
        Epochs between two lines in the log; 0 logs nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        cluster_weight: float,
        center_step: float,
        center_init: CenterInit,
        warmup_epochs: int,
        reseed: bool,
        centres_in_optimizer: bool,
        log_every: int = 0,
        **parameters: Any,
    ) -> None:
        super().__init__(network, **parameters)
        self.layer: TELLLayer = network.layer  # type: ignore[assignment]
        self.cluster_weight, self.center_step, self.center_init = cluster_weight, center_step, center_init
        self.warmup_epochs, self.reseed, self.centres_in_optimizer = warmup_epochs, reseed, centres_in_optimizer
        self.log_every = log_every

    @property
    def moves_centres(self) -> bool:
        """Step 4: the even epochs after the warm-up."""
        return self.epoch >= self.warmup_epochs and (self.epoch - self.warmup_epochs) % 2 == 0

    def before_epoch(self) -> None:
        """Place the centres when the warm-up is over; forget who belonged where."""
        if self.epoch == self.warmup_epochs:
            self.place_centres()
        self.assigned = torch.full((len(self.tensors[0]),), -1)
        self.own_scores = torch.zeros(len(self.tensors[0]))

    def place_centres(self) -> None:
        """Centres among the codes; random ones stand already."""
        k = len(self.layer.weight)
        if self.center_init == "random":
            return
        if self.center_init == "sample":
            rows = self.tensors[0][torch.randperm(len(self.tensors[0]), generator=self.generator)[:k]]
            self.layer.set_centers(self.encode(rows))
            return
        seed = int(torch.randint(2**31 - 1, (1,), generator=self.generator))
        found = KMeans(k, n_init=10, random_state=seed).fit(self.encode(self.tensors[0]).numpy())
        self.layer.set_centers(torch.from_numpy(found.cluster_centers_))

    def encode(self, rows: Tensor) -> Tensor:
        """Unit codes in eval mode, (n, latent_dim)."""
        self.plain_network.eval()
        return predict_in_batches(self.plain_network.codes, rows, device=self.device)

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Step 3; codes are detached in even epochs, so that the clustering loss moves the centres alone."""
        (x,) = batch
        codes, drawn = self.network(x)
        reconstruction = F.mse_loss(drawn, x)
        terms = {"reconstruction_loss": float(reconstruction.detach())}
        if self.epoch < self.warmup_epochs:
            return reconstruction, terms
        scores = self.layer(codes.detach() if self.moves_centres else codes)
        own, which = scores.detach().max(dim=1)
        self.assigned[index], self.own_scores[index] = which.cpu(), own.cpu()
        clustering = self.cluster_weight * clustering_loss(scores, self.layer.alpha)
        return reconstruction + clustering, {**terms, "cluster_loss": float(clustering.detach())}

    def train_step(self, batch: tuple[Tensor, ...], index: Tensor) -> Row:
        """Steps 4 and 5: the rows of the centres' gradient get one length, or it is dropped."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = self.loss_of(self.compute_loss, batch, index)
        self.fabric.backward(loss)
        weight, gradient = self.layer.weight, self.layer.weight.grad
        weight.grad = None
        if self.moves_centres and gradient is not None:
            weight.grad = self.center_step * self.layer.alpha * row_directions(gradient)
        self.optimizer.step()
        if weight.grad is not None:
            if not self.centres_in_optimizer:
                weight.data.sub_(weight.grad)
            self.layer.normalize_()
        return {"loss": float(loss.detach()), **terms}

    def row_state(self) -> Sequence[tuple[Tensor, int]]:
        """Which centre each row chose, and with which score."""
        return ((self.assigned, 0), (self.own_scores, 0))

    def after_epoch(self, row: Row) -> None:
        """Step 6: move centres that no sample chose for two whole epochs onto the samples served worst."""
        if self.log_every and (self.epoch + 1) % self.log_every == 0:
            LOG.info("Epoch %d: %s", self.epoch + 1, row)
        if self.epoch < self.warmup_epochs:
            return
        k = len(self.layer.weight)
        seen = (self.assigned >= 0).nonzero().flatten()
        used: Tensor = torch.bincount(self.assigned[seen], minlength=k) > 0
        waiting = self.layer.unused_epochs
        waiting.copy_(torch.where(used.to(waiting.device), 0, waiting + 1))
        idle = (waiting >= 2).nonzero().flatten()
        row["used_clusters"] = float(used.sum())
        if self.reseed and len(idle):
            worst = seen[self.own_scores[seen].argsort(stable=True)[: len(idle)]]
            idle = idle[: len(worst)]
            centres = self.layer.centers()
            centres[idle] = self.encode(self.tensors[0][worst]).to(centres)
            self.layer.set_centers(centres)
            waiting[idle] = 0


# The method --------------------------------------------------------------------------------------------------------


def adadelta(network: nn.Module) -> Optimizer:
    """Step 5: Adadelta with its published settings on everything."""
    return torch.optim.Adadelta(network.parameters(), lr=1.0, rho=0.9, eps=1e-6)


def adam_without_centres(network: nn.Module) -> Optimizer:
    """Adam on the autoencoder; the centres take plain steps."""
    return adam(1e-3)(network.autoencoder)


@register(
    "tell",
    stage="discover",
    summary="k-means as a network layer: clusters and codes learnt together, with centres drawn as pictures",
    paper="XAI Beyond Classification: Interpretable Neural Clustering",
    year=2022,
    link="https://arxiv.org/abs/1808.07292",
    licence="none published",
    accepts=("image", "table", "embedding"),
    rows="unit",
)
class TELL(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Learn codes and k clusters of them together, batch by batch; the centres can be looked at.

    Parameters
    ----------
    n_clusters : int, default=10
    latent_dim : int, default=10
        Width of the codes.
    arch : {"auto", "conv", "mlp"} or (encoder, decoder), default="auto"
        "conv" for square images with sides divisible by 4, "mlp" for rows and other images; "auto" takes "conv" for
        images. Modules of the user's own are copied; the encoder gives (B, latent_dim), the decoder samples again.
    hidden : sequence of int, default=(500, 500, 2000)
        Of the "mlp" encoder; the decoder mirrors it.
    dropout : float, default=0.0
        Before every layer of the "mlp" encoder; published: 0.2.
    alpha : float, default=1e-3
        Scale of the clustering layer.
    cluster_weight : float, default=0.01
        Weight of the clustering loss beside the mean squared error of the pixels.
    center_step : float, default=0.2
        Length of the centres' steps, in units of alpha.
    center_init : {"random", "kmeans", "sample"}, default="random"
        Directions drawn at random, k-means on the codes, or the codes of random samples; the last two once the
        warm-up is over.
    warmup_epochs : int, default=0
        Epochs of reconstruction alone, before `epochs`.
    epochs : int, default=3000
    batch_size : int, default=256
        A last, smaller batch is left out; with fewer samples all of them make one batch.
    reseed : bool, default=True
        Move a centre that no sample chose for two whole epochs onto the sample served worst. The paper does not.
    optimizer : {"adadelta", "adam"}, default="adadelta"
        With "adam" (rate 0.001) the centres take the plain step that Adadelta's nearly is.
    device : str, default="cpu"
    random_state : int, RandomState or None, default=None
    verbose : int, default=0
        Above 0, log the losses every so many epochs.

    Attributes
    ----------
    cluster_centers_ : array of float32, (n_clusters, latent_dim)
        Unit length.
    labels_ : array of int64, (n,)
        The nearest centre of each sample of `fit` (or of the last chunk).
    confidences_ : array, (n,)
        (second - nearest) / second distance: 0 between two centres, 1 on one.
    cluster_sizes_ : array of int64, (n_clusters,)
    n_clusters_ : int
        How many clusters hold a sample.
    reconstruction_loss_, cluster_loss_ : float
        On the samples of `fit`, in eval mode.
    history_ : list of dict
        A row an epoch: both losses (`cluster_loss` only after the warm-up) and `used_clusters`.
    n_iter_ : int
        Epochs run, the warm-up included.
    network_ : TELLNetwork
    n_features_in_ : int
        Values in one sample.
    sample_shape_ : tuple of int

    Notes
    -----
    k clusters are drawn through any data, noise included. On small tables k-means on the columns themselves may do
    better: a code of ten numbers trained on some hundred rows is no better description than they are.

    References
    ----------
    Peng et al. (2022): the clustering layer, the two alternating losses and the published networks; steps are numbered
    as they run: codes (1), layer (2), losses (3), alternation (4), optimiser (5), prediction (6).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X = load_digits().images[:200] / 16
    >>> method = TELL(3, latent_dim=4, center_init="kmeans", warmup_epochs=2, epochs=2, batch_size=50, random_state=0)
    >>> labels = method.fit_predict(X)
    >>> method.explain().shape
    (3, 1, 8, 8)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 2, None, closed="left")],
        "latent_dim": [Interval(Integral, 1, None, closed="left")],
        "arch": [StrOptions({"auto", "conv", "mlp"}), tuple, list],
        "hidden": ["array-like"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "cluster_weight": [Interval(Real, 0, None, closed="left")],
        "center_step": [Interval(Real, 0, None, closed="neither")],
        "center_init": [StrOptions({"random", "kmeans", "sample"})],
        "warmup_epochs": [Interval(Integral, 0, None, closed="left")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "reseed": ["boolean"],
        "optimizer": [StrOptions({"adadelta", "adam"})],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        latent_dim: int = 10,
        arch: str | tuple[nn.Module, nn.Module] = "auto",
        hidden: Sequence[int] = (500, 500, 2000),
        dropout: float = 0.0,
        alpha: float = 1e-3,
        cluster_weight: float = 0.01,
        center_step: float = 0.2,
        center_init: CenterInit = "random",
        warmup_epochs: int = 0,
        epochs: int = 3000,
        batch_size: int = 256,
        reseed: bool = True,
        optimizer: Literal["adadelta", "adam"] = "adadelta",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.latent_dim = latent_dim
        self.arch = arch
        self.hidden = hidden
        self.dropout = dropout
        self.alpha = alpha
        self.cluster_weight = cluster_weight
        self.center_step = center_step
        self.center_init = center_init
        self.warmup_epochs = warmup_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.reseed = reseed
        self.optimizer = optimizer
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike | Tensor, y: Any = None) -> TELL:
        """Learn codes and clusters.

        Parameters
        ----------
        X : array or tensor, (n, d), (n, H, W) or (n, C, H, W)
            Values in [0, 1], or images as uint8.
        y : None
            Not used: labels, even when all are known, do not change the clusters.

        Raises
        ------
        ValueError
            For NaN, values outside [0, 1], more clusters than (distinct) samples, fewer than 2 clusters, or a network
            that does not suit the samples.
        """
        self._validate_params()
        rows = self._rows(X, reset=True)
        check_enough_rows(rows, self.n_clusters)
        with isolated_seed(self.random_state) as seed:
            self._start(rows)
            self._train(rows, self.warmup_epochs + self.epochs, seed)
        return self._describe(rows)

    def partial_fit(self, X: ArrayLike | Tensor, y: Any = None) -> TELL:
        """One epoch over a chunk of a stream; the first `warmup_epochs` calls learn reconstruction alone.

        Parameters
        ----------
        X : array or tensor
            As for :meth:`fit`; the first chunk must hold `n_clusters` distinct samples, and so must the one after the
            warm-up, among which centres are placed unless they are random.
        y : None

        Raises
        ------
        ValueError
            As :meth:`fit`; for samples of another shape than before.

        Notes
        -----
        The optimiser's memory starts anew with each chunk. ``labels_`` are those of the chunk.
        """
        self._validate_params()
        first = not hasattr(self, "network_")
        rows = self._rows(X, reset=first)
        if first or (self.n_iter_ == self.warmup_epochs and self.center_init != "random"):
            check_enough_rows(rows, self.n_clusters)
        with isolated_seed(self.random_state) as seed:
            if first:
                self._start(rows)
            self._train(rows, self.n_iter_ + 1, seed + self.n_iter_)
        return self._describe(rows)

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.int64]:
        """Step 6: the nearest centre of each sample, (n,)."""
        return self._distances(self._codes(X)).argmin(axis=1).astype(np.int64)

    def transform(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Unit codes, (n, latent_dim)."""
        return self._codes(X)

    def cosine_scores(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Cosine between each sample's code and each centre, (n, n_clusters)."""
        return self._codes(X) @ self.cluster_centers_.T

    def explain(self) -> NDArray[np.float32]:
        """The centres drawn by the decoder, (n_clusters, ...) with the shape of the samples, in [0, 1]."""
        check_is_fitted(self, "network_")
        return self._apply(self.network_.autoencoder.decoder, torch.from_numpy(self.cluster_centers_))

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim

    def _codes(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        check_is_fitted(self, "network_")
        return self._apply(self.network_.codes, self._rows(X, reset=False))

    def _apply(self, part: Any, rows: Tensor) -> NDArray[np.float32]:
        """A part of the network on the device, in eval mode."""
        self.network_.eval().to(self.device)
        result = predict_in_batches(part, rows, device=self.device).numpy()
        self.network_.cpu()
        return result

    def _rows(self, X: ArrayLike | Tensor, reset: bool) -> Tensor:
        rows = check_samples(self, X, reset=reset)
        if rows.min() < -1e-4 or rows.max() > 1 + 1e-4:
            raise ValueError(
                f"X must hold values in [0, 1], which the decoder draws, got {rows.min():.3g} to {rows.max():.3g}. "
                "Scale it first, with sklearn.preprocessing.MinMaxScaler(clip=True) for instance."
            )
        return rows

    def _start(self, rows: Tensor) -> None:
        """A new network for samples like these, and no epochs yet."""
        self.network_ = TELLNetwork(self._autoencoder(rows), self.n_clusters, self.latent_dim, self.alpha)
        self.n_iter_ = 0
        self.history_: list[Row] = []

    def _autoencoder(self, rows: Tensor) -> nn.Module:
        shape = tuple(rows.shape[1:])
        if not isinstance(self.arch, str):
            return self._given(self.arch, rows)
        if self.arch == "mlp" or (self.arch == "auto" and rows.ndim == 2):
            if not all(isinstance(width, (int, np.integer)) and width > 0 for width in self.hidden):
                raise ValueError(f"hidden must hold whole numbers above 0, got {self.hidden!r}.")
            return MLPAutoencoder(shape, self.latent_dim, tuple(self.hidden), self.dropout)
        if rows.ndim != 4 or shape[1] != shape[2] or shape[1] % 4:
            raise ValueError(
                f"arch={self.arch!r} takes square images with sides divisible by 4, got samples shaped {shape}. "
                "Use arch='mlp', or pad or crop the images."
            )
        return ConvAutoencoder(shape, self.latent_dim)

    def _given(self, pair: Sequence[nn.Module], rows: Tensor) -> nn.Module:
        """Copies of the user's encoder and decoder, tried on one sample."""
        if len(pair) != 2 or not all(isinstance(part, nn.Module) for part in pair):
            raise ValueError(f"arch must be a name or a pair of modules (encoder, decoder), got {pair!r}.")
        encoder, decoder = copy.deepcopy(pair[0]), copy.deepcopy(pair[1])
        autoencoder = PairedAutoencoder(encoder, decoder).eval()
        with torch.inference_mode():
            codes = encoder(rows[:1])
            if tuple(codes.shape) != (1, self.latent_dim):
                raise ValueError(
                    f"The encoder of arch must give (B, latent_dim={self.latent_dim}), got {tuple(codes.shape)}."
                )
            drawn = decoder(codes)
        if drawn.shape != rows[:1].shape:
            raise ValueError(
                f"The decoder of arch must give samples shaped {tuple(rows.shape[1:])}, got {tuple(drawn.shape[1:])}."
            )
        return autoencoder

    def _train(self, rows: Tensor, until: int, seed: int) -> None:
        """Go on from epoch ``n_iter_`` to `until`."""
        published = self.optimizer == "adadelta"
        trainer = TELLTrainer(
            for_training(self.network_),
            cluster_weight=self.cluster_weight,
            center_step=self.center_step,
            center_init=self.center_init,
            warmup_epochs=self.warmup_epochs,
            reseed=self.reseed,
            centres_in_optimizer=published,
            epochs=until,
            batch_size=min(self.batch_size, len(rows)),
            drop_last=True,
            optimizer=adadelta if published else adam_without_centres,
            log_every=int(self.verbose),
            label="tell",
            seed=seed,
            device=self.device,
        )
        trainer.epoch = self.n_iter_
        trainer.fit(rows)
        at_rest(self.network_)
        self.n_iter_ = trainer.epoch
        self.history_ = [*self.history_, *trainer.history]

    def _describe(self, rows: Tensor) -> TELL:
        """The fitted attributes, from the network and the samples it saw last."""
        self.cluster_centers_ = self.network_.layer.centers().numpy().copy()
        codes = self._apply(self.network_.codes, rows)
        distances = self._distances(codes)
        self.labels_ = distances.argmin(axis=1).astype(np.int64)
        self.confidences_ = margins(distances)
        self.cluster_sizes_ = np.bincount(self.labels_, minlength=self.n_clusters).astype(np.int64)
        self.n_clusters_ = int((self.cluster_sizes_ > 0).sum())
        own = (codes @ self.cluster_centers_.T)[np.arange(len(codes)), self.labels_]
        self.cluster_loss_ = float(2 * self.cluster_weight * (1 - own.astype(np.float64).mean() / self.n_clusters))
        drawn = torch.from_numpy(self._apply(self.network_.autoencoder.decoder, torch.from_numpy(codes)))
        self.reconstruction_loss_ = float(F.mse_loss(drawn, rows))
        return self

    def _distances(self, codes: NDArray[np.float32]) -> NDArray[np.float64]:
        """From each unit code to each unit centre, (n, n_clusters)."""
        cosines = codes.astype(np.float64) @ self.cluster_centers_.T.astype(np.float64)
        return np.sqrt(np.maximum(2 - 2 * cosines, 0))

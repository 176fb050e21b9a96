"""MLC: unlabelled data on several curved manifolds, clustered while each is straightened into a subspace of its own.

The coding rate of a set of vectors says how much room it takes. MLC makes the features of all samples take much room
and those of each cluster little. The clusters are a doubly stochastic matrix that a second head of the network gives,
so that neither their number nor a random start is needed while learning.

T. Ding, S. Tong, K. H. R. Chan, X. Dai, Y. Ma and B. D. Haeffele, "Unsupervised Manifold Linearizing and Clustering",
ICCV 2023, arXiv:2301.01805.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
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

from models.augment import FeatureSwap, View, affine, contrastive
from models.base import check_enough_rows, check_samples, isolated_seed, predict_in_batches
from models.clustering import spectral_embedding
from models.networks import network
from models.networks.convnet import ConvEncoder
from models.networks.encoders import EncoderSpec, at_rest, feature_width, for_training, make_encoder, pooled
from models.networks.mlp import MLPEncoder
from models.registry import register
from models.training import Row, Trainer
from models.transport import doubly_stochastic

Labels = NDArray[np.int64]
ENERGY = 0.95
"""Share of a cluster's squared length that its subspace holds."""
SELF_MEMBERSHIP = 0.3
"""Mean diagonal of the first membership matrix above which clusters fall apart into single samples."""
BLOCK = 2**24
"""Numbers in a block of the cluster rate's d x d matrices: 64 MB in single precision."""

# The equations -----------------------------------------------------------------------------------------------------


def log_det(matrices: Tensor) -> Tensor:
    """Log-determinants of positive definite matrices (..., d, d) by Cholesky factors."""
    return 2 * torch.linalg.cholesky(matrices).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def coding_rate(Z: Tensor, eps2: float = 0.2) -> Tensor:
    """Step 1: R(Z) = log det(I + d / (n eps2) Z^T Z) of unit rows (n, d)."""
    n, d = Z.shape
    return log_det(torch.eye(d, dtype=Z.dtype, device=Z.device) + d / (n * eps2) * Z.T @ Z)


def cluster_rate(Z: Tensor, gamma: Tensor, eps2: float = 0.2) -> Tensor:
    """Step 1: R_c = 1/n sum_j log det(I + d/eps2 Z^T diag(gamma_j) Z), each column of gamma one soft cluster.

    Parameters
    ----------
    Z : Tensor, (n, d)
        Unit rows.
    gamma : Tensor, (n, m)
        Columns sum to 1; m = n for a doubly stochastic matrix.
    eps2 : float

    Notes
    -----
    Step 8: the n products z z^T are weighted by one matrix product, and factored in blocks of columns.
    """
    d = Z.shape[1]
    products = (Z.unsqueeze(2) * Z.unsqueeze(1)).flatten(1)
    identity = torch.eye(d, dtype=Z.dtype, device=Z.device)
    blocks = gamma.T.split(max(1, BLOCK // d**2))
    rates = [log_det(identity + d / eps2 * (block @ products).view(-1, d, d)).sum() for block in blocks]
    return torch.stack(rates).sum() / gamma.shape[1]


def coding_rate_reduction(Z: Tensor, gamma: Tensor, eps2: float = 0.2) -> Tensor:
    """Step 1: what is maximised, R(Z) - R_c(Z, gamma)."""
    return coding_rate(Z, eps2) - cluster_rate(Z, gamma, eps2)


def tcr_loss(first: Tensor, second: Tensor, eps2: float = 0.2, weight: float = 30.0) -> Tensor:
    """Step 4: minus the total coding rate of two views: R(mean view) + weight * mean |cosine of the views|."""
    mean = F.normalize(first + second, dim=1)
    return -coding_rate(mean, eps2) - weight * (first * second).sum(dim=1).abs().mean()


def memberships(codes: Tensor, eta: float = 0.175, iterations: int = 50) -> Tensor:
    """Step 3: the doubly stochastic matrix of unit codes (..., n, d) at temperature `eta`."""
    return doubly_stochastic(codes @ codes.mT, eta, iterations)


def spectral_labels(gamma: NDArray[np.float64], n_clusters: int, seed: int = 0) -> Labels:
    """Step 7: k-means, from ten starts, on the unit rows of gamma's first k spectral coordinates."""
    coordinates = spectral_embedding(gamma, n_clusters)
    lengths = np.linalg.norm(coordinates, axis=1, keepdims=True)
    rows = np.divide(coordinates, lengths, out=np.zeros_like(coordinates), where=lengths > 0)
    return KMeans(n_clusters, n_init=10, random_state=seed).fit(rows).labels_.astype(np.int64)


def subspace(Z: NDArray[np.float32], energy: float = ENERGY) -> NDArray[np.float32]:
    """The fewest singular directions of the rows Z (m, d) that hold `energy` of their squared length, (d, r)."""
    _, values, directions = np.linalg.svd(Z.astype(np.float64), full_matrices=False)
    held = np.cumsum(values**2) / (values**2).sum()
    rank = int(np.searchsorted(held, energy - 1e-12)) + 1
    return directions[:rank].T.astype(np.float32)


# The network -------------------------------------------------------------------------------------------------------


def new_head(width: int, hidden: int | None, feature_dim: int) -> nn.Sequential:
    """A linear layer, with [linear, BN, ReLU] before it where `hidden` gives their width."""
    if hidden is None:
        return nn.Sequential(nn.Linear(width, feature_dim))
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, feature_dim))


@network("mlc")
class MLCNetwork(nn.Module):
    """Step 2: a backbone with two heads of one shape, for features and for clusters.

    Parameters
    ----------
    backbone : nn.Module
        Samples -> rows (B, width), or maps, which are averaged over space.
    width, feature_dim : int
    head_hidden : int, optional
        Width of a hidden layer in each head.
    """

    def __init__(self, backbone: nn.Module, width: int, feature_dim: int = 128, head_hidden: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.feature_head = new_head(width, head_hidden, feature_dim)
        self.cluster_head = new_head(width, head_hidden, feature_dim)

    def start_clusters(self) -> None:
        """Step 5: the cluster head begins as a copy of the feature head."""
        self.cluster_head.load_state_dict(self.feature_head.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Samples -> unit features and unit cluster codes, (2, B, feature_dim)."""
        inner = pooled(self.backbone(x))
        return F.normalize(torch.stack([self.feature_head(inner), self.cluster_head(inner)]), dim=2)

    def both(self, x: Tensor) -> Tensor:
        """:meth:`forward` with the samples along the first axis, (B, 2, feature_dim)."""
        return self(x).transpose(0, 1)


# Training ----------------------------------------------------------------------------------------------------------


class ViewsTrainer(Trainer):
    """Batches of `n_views` views of each sample, which pass the network together.

    Parameters
    ----------
    augment : callable
        Batch -> batch.
    n_views : int
    eps2 : float
    """

    def __init__(self, network: nn.Module, *, augment: View, n_views: int, eps2: float, **parameters: Any) -> None:
        super().__init__(network, drop_last=True, **parameters)
        self.augment, self.n_views, self.eps2 = augment, n_views, eps2

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Independent views of the samples, one after the other."""
        (rows,) = super().fetch(index)
        return (torch.cat([self.augment(rows) for _ in range(self.n_views)]),)

    def views(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Features and cluster codes, (n_views, B, d) each."""
        features, codes = self.network(batch[0])
        return features.unflatten(0, (self.n_views, -1)), codes.unflatten(0, (self.n_views, -1))


class TCRTrainer(ViewsTrainer):
    """Step 4: features that take much room while two views of a sample stay together.

    Parameters
    ----------
    weight : float
    """

    def __init__(self, network: nn.Module, *, weight: float, **parameters: Any) -> None:
        super().__init__(network, n_views=2, **parameters)
        self.weight = weight

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """:func:`tcr_loss` of the two views."""
        features, _ = self.views(batch)
        return tcr_loss(features[0], features[1], self.eps2, self.weight), {}


class MLCTrainer(ViewsTrainer):
    """Step 6: raise R - R_c of the mean features and mean memberships over the views.

    Parameters
    ----------
    eta : float
    sinkhorn_iter : int
    """

    def __init__(self, network: nn.Module, *, eta: float, sinkhorn_iter: int, **parameters: Any) -> None:
        super().__init__(network, **parameters)
        self.eta, self.sinkhorn_iter = eta, sinkhorn_iter

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Minus the rate reduction; both rates are noted."""
        features, codes = self.views(batch)
        Z = F.normalize(features.mean(dim=0), dim=1)
        gamma = memberships(codes, self.eta, self.sinkhorn_iter).mean(dim=0)
        whole, parts = coding_rate(Z, self.eps2), cluster_rate(Z, gamma, self.eps2)
        return parts - whole, {"coding_rate": float(whole.detach()), "cluster_rate": float(parts.detach())}


# The method --------------------------------------------------------------------------------------------------------


@register(
    "mlc",
    stage="discover",
    summary="Clusters on curved manifolds, each straightened into a linear subspace of the learnt features",
    paper="Unsupervised Manifold Linearizing and Clustering",
    year=2023,
    link="https://arxiv.org/abs/2301.01805",
    licence="none published",
    accepts=("image", "table", "embedding"),
)
class MLC(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Learn features in which every cluster spans a subspace of its own, and the clusters with them.

    Parameters
    ----------
    n_clusters : int, default=10
        Used only when the learnt memberships are cut into clusters.
    backbone : None, str, nn.Module or callable, default=None
        None takes a small :class:`~models.networks.convnet.ConvEncoder` for images and a
        :class:`~models.networks.mlp.MLPEncoder` for rows. Otherwise a name of
        :data:`models.networks.resnet.NAMED` (published: ResNet-18), a module (copied), in_channels -> module, or the
        ``network_`` of another fit, which brings its feature head.
    feature_dim : int, default=128
    head_hidden : int, optional
        Width of a hidden layer in both heads; None makes them linear.
    eps2 : float, default=0.2
        Squared distortion of the coding rates.
    eta : float, default=0.175
        Temperature of the memberships. What is right depends on the samples of a cluster in a batch: the mean
        diagonal of the first membership matrix should be near ``5 n_clusters / batch_size``.
    sinkhorn_iter : int, default=50
        The most rounds of scaling.
    n_views : int, default=2
    augment : callable, optional
        Batch -> batch of views. By default rotation, scale and shift for grey images, SimCLR's views for colour, and
        features swapped between rows for tables.
    pretrain : {"tcr"} or None, default="tcr"
        None where backbone and feature head are trained already.
    tcr_lambda : float, default=30.0
        Weight of the agreement of two views in pretraining.
    tcr_epochs : int, default=600
    tcr_lr : float, default=1e-3
        Rate of pretraining. Published: LARS with 0.3.
    epochs : int, default=100
    batch_size : int, default=1024
        At least ``2 n_clusters``, better 10. A last, smaller batch is left out; fewer samples make one batch.
    lr, lr_cluster : float, default=1e-4
        Of backbone and feature head, and of the cluster head.
    weight_decay : float, default=1e-4
    optimizer : {"adam", "sgd"}, default="adam"
        SGD with momentum 0.9.
    assign_sample : int, default=5000
        The most samples whose memberships are cut into clusters at once; the others go to the nearest subspace.
    device : str, default="cpu"
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    labels_ : array of int64, (n,)
    confidences_ : array, (n,)
        How much nearer a sample is to its own subspace than to the nearest other, in [0, 1].
    n_clusters_ : int
    subspaces_ : list of array, (feature_dim, r)
        Orthonormal columns that hold 95 % of each cluster's squared length.
    ranks_ : array of int64, (n_clusters_,)
        Their numbers r.
    rate_history_ : array, (epochs, 3)
        R, R_c and R - R_c, means over the batches of each epoch.
    history_, tcr_history_ : list of dict
        The trainers' rows; the second is empty without pretraining.
    n_iter_ : int
        Epochs after pretraining.
    network_ : MLCNetwork
    n_features_in_ : int
        Values in one sample.
    sample_shape_ : tuple of int

    Notes
    -----
    k clusters are cut out of any data, noise included; their ranks then stay near that of the whole. A learning rate a
    few times higher tends to destroy the clusters. Of several processes that train together each computes the rates of
    its own part of a batch, so `batch_size` should grow with their number.

    References
    ----------
    Ding et al. (2023), equations for the rates and the memberships; pretraining after Li et al., "Neural Manifold
    Clustering and Embedding", 2022. Steps are numbered as they run: rates (1), networks (2), memberships (3),
    pretraining (4), copied head (5), training (6), labels (7), batched rate (8).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X = load_digits().images[:120] / 16
    >>> small = {"feature_dim": 8, "tcr_epochs": 2, "epochs": 2, "eta": 0.5, "batch_size": 60}
    >>> method = MLC(3, **small, random_state=0).fit(X)
    >>> method.transform(X).shape, len(method.subspaces_)
    ((120, 8), 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "backbone": [str, callable, None],
        "feature_dim": [Interval(Integral, 1, None, closed="left")],
        "head_hidden": [Interval(Integral, 1, None, closed="left"), None],
        "eps2": [Interval(Real, 0, None, closed="neither")],
        "eta": [Interval(Real, 0, None, closed="neither")],
        "sinkhorn_iter": [Interval(Integral, 1, None, closed="left")],
        "n_views": [Interval(Integral, 1, None, closed="left")],
        "augment": [callable, None],
        "pretrain": [StrOptions({"tcr"}), None],
        "tcr_lambda": [Interval(Real, 0, None, closed="left")],
        "tcr_epochs": [Interval(Integral, 1, None, closed="left")],
        "tcr_lr": [Interval(Real, 0, None, closed="neither")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "lr_cluster": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "optimizer": [StrOptions({"adam", "sgd"})],
        "assign_sample": [Interval(Integral, 2, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        backbone: EncoderSpec | None = None,
        feature_dim: int = 128,
        head_hidden: int | None = None,
        eps2: float = 0.2,
        eta: float = 0.175,
        sinkhorn_iter: int = 50,
        n_views: int = 2,
        augment: View | None = None,
        pretrain: Literal["tcr"] | None = "tcr",
        tcr_lambda: float = 30.0,
        tcr_epochs: int = 600,
        tcr_lr: float = 1e-3,
        epochs: int = 100,
        batch_size: int = 1024,
        lr: float = 1e-4,
        lr_cluster: float = 1e-4,
        weight_decay: float = 1e-4,
        optimizer: Literal["adam", "sgd"] = "adam",
        assign_sample: int = 5000,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.head_hidden = head_hidden
        self.eps2 = eps2
        self.eta = eta
        self.sinkhorn_iter = sinkhorn_iter
        self.n_views = n_views
        self.augment = augment
        self.pretrain = pretrain
        self.tcr_lambda = tcr_lambda
        self.tcr_epochs = tcr_epochs
        self.tcr_lr = tcr_lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.lr_cluster = lr_cluster
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.assign_sample = assign_sample
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: Any = None) -> MLC:
        """Learn features and memberships, and cut them into clusters.

        Parameters
        ----------
        X : array or tensor, (n, d), (n, H, W) or (n, C, H, W)
            Images in [0, 1] or uint8; rows of any scale.
        y : None
            Not used: labels, even when all are known, do not change the clusters.

        Raises
        ------
        ValueError
            For NaN, fewer (distinct) samples than clusters, batches of fewer than ``2 n_clusters``, an `assign_sample`
            below `n_clusters`, or a backbone that does not take such samples.

        Warns
        -----
        UserWarning
            If samples begin as clusters of their own, because `eta` is too small for the batch.
        """
        self._validate_params()
        rows = check_samples(self, X, reset=True)
        size = self._checked_batch(rows)
        with isolated_seed(self.random_state) as seed:
            net = for_training(self._network(rows))
            self.tcr_history_ = self._pretrain(net, rows, size, seed)
            net.start_clusters()
            self._warn_of_single_samples(net, rows[np.random.default_rng(seed).choice(len(rows), size, replace=False)])
            trainer = MLCTrainer(
                net,
                eta=self.eta,
                sinkhorn_iter=self.sinkhorn_iter,
                n_views=self.n_views,
                epochs=self.epochs,
                optimizer=self._optimizer(self.lr, self.lr_cluster),
                label="mlc",
                **self._common(rows, size, seed),
            ).fit(rows)
            self.network_ = at_rest(net)
            self.history_, self.n_iter_ = trainer.history, len(trainer.history)
            self.rate_history_ = np.array(
                [[row["coding_rate"], row["cluster_rate"], -row["loss"]] for row in trainer.history]
            )
            self._assign(rows, seed)
        return self

    def predict(self, X: ArrayLike | Tensor) -> Labels:
        """The cluster in whose subspace each sample's feature is longest, (n,)."""
        Z, _ = self._codes(X)
        return self._lengths(Z).argmax(axis=1).astype(np.int64)

    def transform(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Unit features, (n, feature_dim)."""
        return self._codes(X)[0]

    def membership(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """The doubly stochastic membership matrix of these samples, (m, m).

        Raises
        ------
        ValueError
            For more than `assign_sample` samples.
        """
        _, codes = self._codes(X)
        if len(codes) > self.assign_sample:
            raise ValueError(f"X holds {len(codes)} samples, more than assign_sample={self.assign_sample}. Give fewer.")
        return memberships(torch.from_numpy(codes), self.eta, self.sinkhorn_iter).numpy()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.network_.feature_dim

    def _checked_batch(self, rows: Tensor) -> int:
        """The samples of a batch, enough for the clusters."""
        check_enough_rows(rows, self.n_clusters)
        if self.assign_sample < self.n_clusters:
            raise ValueError(
                f"assign_sample must be at least n_clusters={self.n_clusters}, got {self.assign_sample}. Raise it."
            )
        size = min(self.batch_size, len(rows))
        if size < 2 * self.n_clusters:
            raise ValueError(
                f"A batch must hold at least 2 samples a cluster, {2 * self.n_clusters}, got "
                f"batch_size={self.batch_size} and n_samples={len(rows)}. Raise the first, or ask for fewer clusters."
            )
        return size

    def _network(self, rows: Tensor) -> MLCNetwork:
        """A network for samples like these; that of another fit is copied with its heads."""
        if isinstance(self.backbone, MLCNetwork):
            net = copy.deepcopy(self.backbone).requires_grad_(True)
            feature_width(net.backbone, rows[:1])
            return net
        backbone = self._backbone(rows)
        width = feature_width(backbone, rows[:1])
        return MLCNetwork(backbone, width, self.feature_dim, self.head_hidden)

    def _backbone(self, rows: Tensor) -> nn.Module:
        if self.backbone is not None:
            return make_encoder(self.backbone, rows.shape[1])
        return MLPEncoder(rows.shape[1]) if rows.ndim == 2 else ConvEncoder(in_channels=rows.shape[1])

    def _views(self, rows: Tensor) -> View:
        if self.augment is not None:
            return self.augment
        if rows.ndim == 2:
            return FeatureSwap()
        return contrastive(3) if rows.shape[1] == 3 else affine()

    def _common(self, rows: Tensor, size: int, seed: int) -> dict[str, Any]:
        """What both trainings share."""
        views = self._views(rows)
        return {"augment": views, "eps2": self.eps2, "batch_size": size, "seed": seed, "device": self.device}

    def _optimizer(self, rate: float, cluster_rate: float) -> Callable[[nn.Module], Optimizer]:
        """Two groups of parameters: the cluster head has a rate of its own."""

        def make(net: nn.Module) -> Optimizer:
            head = list(net.cluster_head.parameters())  # type: ignore[union-attr]
            mine = {id(parameter) for parameter in head}
            others = [parameter for parameter in net.parameters() if id(parameter) not in mine]
            groups: list[dict[str, Any]] = [{"params": others, "lr": rate}, {"params": head, "lr": cluster_rate}]
            if self.optimizer == "adam":
                return torch.optim.Adam(groups, weight_decay=self.weight_decay)
            return torch.optim.SGD(groups, momentum=0.9, weight_decay=self.weight_decay)

        return make

    def _pretrain(self, net: MLCNetwork, rows: Tensor, size: int, seed: int) -> list[Row]:
        """Step 4, where it is wanted."""
        if self.pretrain is None:
            return []
        trainer = TCRTrainer(
            net,
            weight=self.tcr_lambda,
            epochs=self.tcr_epochs,
            optimizer=self._optimizer(self.tcr_lr, self.tcr_lr),
            label="total coding rate",
            **self._common(rows, size, seed),
        )
        return trainer.fit(rows).history

    def _warn_of_single_samples(self, net: MLCNetwork, rows: Tensor) -> None:
        """Look at the first memberships of a batch drawn at random: rows often come in the order of their classes."""
        codes = predict_in_batches(net, rows, batch_size=len(rows), device=self.device)[1]
        own = float(memberships(codes, self.eta, self.sinkhorn_iter).diagonal().mean())
        if own > SELF_MEMBERSHIP:
            right = min(5 * self.n_clusters / len(rows), SELF_MEMBERSHIP)
            warnings.warn(
                f"Samples begin as clusters of their own: the mean diagonal of the first memberships is {own:.2f}, "
                f"where {right:.2g} is right. Raise eta={self.eta} or the batch size.",
                UserWarning,
                stacklevel=3,
            )

    def _codes(self, X: ArrayLike | Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Unit features and cluster codes of samples like those of `fit`."""
        check_is_fitted(self, "network_")
        return self._encode(check_samples(self, X, reset=False))

    def _encode(self, rows: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.network_.eval().to(self.device)
        codes = predict_in_batches(self.network_.both, rows, device=self.device).numpy()
        self.network_.cpu()
        return np.ascontiguousarray(codes[:, 0]), np.ascontiguousarray(codes[:, 1])

    def _assign(self, rows: Tensor, seed: int) -> None:
        """Step 7: clusters of (a part of) the samples, their subspaces, and the nearest subspace for the rest."""
        Z, codes = self._encode(rows)
        chosen = np.arange(len(Z))
        if len(Z) > self.assign_sample:
            chosen = np.sort(np.random.default_rng(seed).choice(len(Z), self.assign_sample, replace=False))
        gamma = memberships(torch.from_numpy(codes[chosen]), self.eta, self.sinkhorn_iter)
        labels = spectral_labels(gamma.numpy().astype(np.float64), self.n_clusters, seed % 2**32)
        found, labels = np.unique(labels, return_inverse=True)
        self.n_clusters_ = len(found)
        self.subspaces_ = [subspace(Z[chosen][labels == j]) for j in range(len(found))]
        self.ranks_ = np.array([basis.shape[1] for basis in self.subspaces_], dtype=np.int64)
        lengths = self._lengths(Z)
        self.labels_ = lengths.argmax(axis=1).astype(np.int64)
        self.labels_[chosen] = labels
        self.confidences_ = leads(lengths, self.labels_)

    def _lengths(self, Z: NDArray[np.float32]) -> NDArray[np.float64]:
        """Length of each feature within each subspace, (n, n_clusters_), at most 1."""
        return np.stack([np.linalg.norm(Z.astype(np.float64) @ basis, axis=1) for basis in self.subspaces_], axis=1)


def leads(lengths: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """(other - own) / other distance to a subspace, for the nearest other one; 0 where that is nearer."""
    distances = np.sqrt(np.maximum(1 - lengths**2, 0))
    rows = np.arange(len(labels))
    own = distances[rows, labels]
    distances[rows, labels] = np.inf
    other = distances.min(axis=1)
    lead = np.divide(other - own, other, out=np.zeros_like(own), where=other > 0) if lengths.shape[1] > 1 else 1 - own
    return np.clip(lead, 0, 1)

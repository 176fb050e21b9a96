"""SP2OT: deep clustering of classes of very different sizes by progressive partial optimal transport.

Pseudo-labels are a transport plan from rows to clusters. It asks only loosely for equal cluster sizes, places few
rows at first (those that fit best) and more as training goes on, and draws rows that are neighbours in feature space
to the same cluster. The last layers of a pretrained network are trained on them.

C. Zhang, H. Ren and X. He, "SP2OT: Semantic-Regularized Progressive Partial Optimal Transport for Imbalanced
Clustering", 2024, arXiv:2404.03446; and "P2OT: Progressive Partial Optimal Transport for Deep Imbalanced Clustering",
ICLR 2024, arXiv:2401.09266.
"""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models import distributed
from models.augment import FeatureSwap, View, contrastive
from models.base import check_enough_rows, check_samples, isolated_seed, predict_in_batches
from models.clustering import knn_graph, largest_first
from models.contrastive import pretrain_contrastive
from models.discover.partial_transport import ppot, sppot
from models.losses import soft_cross_entropy
from models.networks.convnet import ConvEncoder
from models.networks.encoders import EncoderSpec, Pooled, at_rest, feature_width, make_encoder, pooled
from models.networks.mlp import MLPEncoder
from models.registry import register
from models.training import EarlyStopping, Row, Trainer, adam

PUBLISHED_BANK = 5120
"""Rows of the transport problem for which the published `lam` holds."""
PRETRAIN_BATCH, PRETRAIN_LR = 128, 2e-3
FINAL_RATE = 1e-3
"""Share of the learning rate left at the end."""

# The equations -----------------------------------------------------------------------------------------------------


def cosine_logits(features: Tensor, prototypes: Tensor, scale: float) -> Tensor:
    """Step 1: ``s cos(W_c, f)``, (B, d) and (k, d) -> (B, k)."""
    return scale * F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).T


def gaussian_neighbours(features: ArrayLike, n_neighbors: int, scale: float) -> sparse.csr_array:
    """Step 2: similarities of each row to its nearest others, ``exp(-||f_i - f_j||^2 / (2 t^2 v))``, (n, n).

    Published is v = d, the number of features, which presumes features of unit variance. Here v is their total
    variance, the same for those, so that the similarities do not depend on the unit of the features.
    """
    rows = np.asarray(features, dtype=np.float64)
    graph = knn_graph(rows, min(n_neighbors, len(rows) - 1))
    total_variance = max(float(rows.var(axis=0).sum()), np.finfo(np.float64).tiny)
    graph.data = np.exp(-(graph.data**2) / (2 * scale**2 * total_variance))
    return graph


def placed_share(start: float, end: float, progress: float) -> float:
    """Step 4: ``rho = rho_0 + (rho_1 - rho_0) exp(-5 (1 - t/T)^2)``."""
    return start + (end - start) * math.exp(-5 * (1 - progress) ** 2)


def cosine_to_a_thousandth(step: int, total: int) -> float:
    """Step 7: half a cosine from 1 to 0.001."""
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))


# Training ----------------------------------------------------------------------------------------------------------


class PrototypeNetwork(nn.Module):
    """A backbone and unit prototypes; layers whose weights are all frozen stay in eval mode.

    Parameters
    ----------
    backbone : nn.Module
    prototypes : Tensor, (k, d)
    scale : float
        Of the logits.
    """

    def __init__(self, backbone: nn.Module, prototypes: Tensor, scale: float) -> None:
        super().__init__()
        self.backbone, self.scale = backbone, scale
        self.prototypes = nn.Parameter(prototypes)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) -> logits (B, k)."""
        return cosine_logits(pooled(self.backbone(rows)), self.prototypes, self.scale)

    def train(self, mode: bool = True) -> PrototypeNetwork:
        """Batch normalisation of frozen layers keeps its statistics."""
        super().train(mode)
        for layer in self.backbone.modules():
            weights = list(layer.parameters(recurse=False))
            if weights and not any(weight.requires_grad for weight in weights):
                layer.train(False)
        return self


class LogitBank:
    """The newest `size` logits and the rows they belong to; the transport problem is solved on all of them.

    Attributes
    ----------
    logits : Tensor, (N, k)
        Oldest first.
    index : Tensor, (N,)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.logits, self.index = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def push(self, logits: Tensor, index: Tensor) -> None:
        """Add a batch; the oldest rows leave."""
        held = self.logits if len(self.logits) else logits[:0]
        self.logits = torch.cat([held, logits])[-self.size :]
        self.index = torch.cat([self.index, index])[-self.size :]

    def with_last(self, logits: Tensor) -> Tensor:
        """All logits, the newest batch's replaced by `logits`."""
        return torch.cat([self.logits[: len(self.logits) - len(logits)], logits])


class SP2OTTrainer(Trainer):
    """Swapped prediction: each view is trained on the plan of the other.

    Parameters
    ----------
    network : PrototypeNetwork
    settings : SP2OTClustering
        Where rho, lam and the weights of the transport are read.
    augment : callable
        Batch -> batch, called for each view.
    similarity : sparse array, (n, n), or None
        Step 2; None leaves the semantic term out.
    bank_size : int

    Attributes
    ----------
    rho_history : list of float
        One entry a step.
    objective : list of float
        Objective of the last plan, after each step of its majorisation.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: SP2OTClustering,
        augment: View,
        similarity: sparse.csr_array | None,
        bank_size: int,
        **parameters: Any,
    ) -> None:
        super().__init__(network, **parameters)
        self.settings, self.augment, self.similarity = settings, augment, similarity
        self.bank = LogitBank(bank_size)
        self.potentials: Tensor | None = None
        self.rho_history: list[float] = []
        self.objective: list[float] = []

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Step 3: two views."""
        (rows,) = super().fetch(index)
        return self.augment(rows), self.augment(rows)

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Steps 3 to 7."""
        settings, progress = self.settings, self.step / max(self.total_steps, 1)
        start = settings.rho_start if settings.progressive else settings.rho_end
        rho = placed_share(start, settings.rho_end, progress)
        self.rho_history.append(rho)
        first, second = self.network(torch.cat(batch)).split(len(index))
        with torch.no_grad():
            logits, others = (distributed.gathered(view.detach()) for view in (first, second))
            self.bank.push(logits, distributed.gathered(index.to(logits.device)).cpu())
            targets = [self._targets(self.bank.with_last(view), len(logits), rho) for view in (logits, others)]
            mine = slice(distributed.rank() * len(index), (distributed.rank() + 1) * len(index))
        loss = soft_cross_entropy(first, targets[1][mine]) + soft_cross_entropy(second, targets[0][mine])
        return loss, {"rho": rho, "loss_over_rho": float(loss.detach()) / rho}

    def _targets(self, logits: Tensor, newest: int, rho: float) -> Tensor:
        """Steps 5 to 7: N Q of the newest rows, (B, k); a row's sum is its weight in the loss."""
        settings, n = self.settings, len(logits)
        log_prob = F.log_softmax(logits.double(), dim=1)
        weights: dict[str, Any] = {"epsilon": settings.epsilon, "gamma": settings.gamma, "g_init": self.potentials}
        if self.similarity is None:
            plan, info = ppot(-log_prob, rho, **weights)
        else:
            rows = self.bank.index.numpy()
            near = self.similarity[rows][:, rows]
            lam = settings.lam * n / PUBLISHED_BANK * ((1 - rho) if settings.lam_decay else 1.0)
            plan, info = sppot(log_prob, near, rho, lam=lam, mm_max_iter=settings.mm_max_iter, **weights)
            self.objective = info["objective"]
        self.potentials = info["g"]
        return (n * plan[-newest:]).to(logits.dtype)


@register(
    "sp2ot",
    stage="discover",
    summary="Clusters rows whose unknown classes have very different sizes, trusting few rows first and more later",
    paper="SP^2OT: Semantic-Regularized Progressive Partial Optimal Transport for Imbalanced Clustering",
    year=2024,
    link="https://arxiv.org/abs/2404.03446",
    licence="CC-BY-NC-4.0",
    accepts=("image", "table", "embedding"),
)
class SP2OTClustering(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Imbalanced deep clustering on a pretrained backbone.

    Parameters
    ----------
    n_clusters : int, default=10
        Clusters wanted; fewer may end up with rows.
    backbone : nn.Module, str, callable or None
        Rows or images (B, ...) -> (B, d), or maps that are averaged over space. A copy is used; its weights with
        ``requires_grad`` are trained, which should be those of the last block alone. None makes a small encoder,
        trains it by SimCLR on the rows given (comparing the features themselves), and freezes all but its last block.
    pretrain_epochs : int, default=20
        Epochs of that SimCLR; not used with a backbone.
    logit_scale : float, default=10.0
    epsilon : float, default=0.1
        Strength of the plan's entropy.
    gamma : float, default=1.0
        How much equal cluster sizes count. 0.1 lets all rows join one cluster, a huge value ruins small classes.
    rho_start, rho_end : float, default=0.1 and 1.0
        Share of the rows placed at the start and at the end.
    lam : float, default=1000.0
        Weight of the neighbours, for a transport problem of 5120 rows; it is scaled to the size at hand.
    lam_decay : bool, default=True
        Multiply `lam` by 1 - rho, so that neighbours count less as more rows are placed.
    n_neighbors : int, default=20
    kernel_scale : float, default=2.0
        t of the Gaussian similarity.
    bank_factor : int, default=10
        Batches whose logits enter the transport problem.
    batch_size : int, default=512
        With fewer rows, all rows are one batch.
    epochs : int, default=50
    lr : float, default=5e-4
    augment : callable, optional
        Batch -> batch of the same shape, drawn anew each time. By default a crop and brightness jitter for images
        (no flips), and for rows of a table values swapped between rows.
    init : {"random", "k-means"}, default="random"
        Where the prototypes start: random directions as published, or k-means of the backbone's unit features.
    semantic : bool, default=True
        False leaves the neighbours out: P2OT.
    progressive : bool, default=True
        False places the share `rho_end` from the start. With ``semantic=False``: unbalanced optimal transport.
    mm_max_iter : int, default=100
        Most majorisation steps a plan.
    select : {"last", "loss"}, default="last"
        Keep the last epoch, or that with the least training loss over rho. That one can come early, since rows that
        are placed first are also fitted best.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    labels_ : array, (n,)
        Cluster of each row, from the largest cluster (0) to the smallest.
    n_clusters_ : int
        Clusters that hold a row.
    confidences_ : array, (n,)
        Probability of each row's cluster.
    cluster_sizes_ : array, (n_clusters,)
    cluster_centers_ : array, (n_clusters, d)
        Unit prototypes in the space of :meth:`transform`.
    backbone_ : nn.Module
        The trained copy, in eval mode.
    loss_curve_ : list of float
        One entry an epoch.
    rho_history_ : list of float
        One entry a training step.
    mm_objective_ : list of float
        Objective of the last plan, after each step of its majorisation; empty without the semantic term.
    history_ : list of dict
    n_features_in_ : int
    sample_shape_ : tuple of int

    Warns
    -----
    ConvergenceWarning
        If all rows end in one cluster, as they do when `gamma` is too small.

    Notes
    -----
    The transport problem holds ``bank_factor * batch_size`` rows (or all rows, if fewer), whatever n is. The
    similarities take ``n * n_neighbors`` entries. Layers of the backbone without a weight to train stay in eval mode.

    References
    ----------
    Zhang, Ren and He (2024), arXiv:2404.03446 and arXiv:2401.09266. Steps are numbered as they run: head (1),
    similarities (2), views and bank (3), schedule (4), semantic plan (5), partial plan (6), loss (7), choice (8).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X = load_digits().images[:200] / 16
    >>> method = SP2OTClustering(10, epochs=2, pretrain_epochs=1, batch_size=100, random_state=0).fit(X)
    >>> method.labels_.shape, method.predict_proba(X).shape, int(method.cluster_sizes_.sum())
    ((200,), (200, 10), 200)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_clusters": [Interval(Integral, 2, None, closed="left")],
        "backbone": [str, callable, None],
        "pretrain_epochs": [Interval(Integral, 0, None, closed="left")],
        "logit_scale": [Interval(Real, 0, None, closed="neither")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "gamma": [Interval(Real, 0, None, closed="neither")],
        "rho_start": [Interval(Real, 0, 1, closed="right")],
        "rho_end": [Interval(Real, 0, 1, closed="right")],
        "lam": [Interval(Real, 0, None, closed="left")],
        "lam_decay": ["boolean"],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "kernel_scale": [Interval(Real, 0, None, closed="neither")],
        "bank_factor": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "augment": [callable, None],
        "init": [StrOptions({"random", "k-means"})],
        "semantic": ["boolean"],
        "progressive": ["boolean"],
        "mm_max_iter": [Interval(Integral, 1, None, closed="left")],
        "select": [StrOptions({"loss", "last"})],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        backbone: EncoderSpec | None = None,
        pretrain_epochs: int = 20,
        logit_scale: float = 10.0,
        epsilon: float = 0.1,
        gamma: float = 1.0,
        rho_start: float = 0.1,
        rho_end: float = 1.0,
        lam: float = 1000.0,
        lam_decay: bool = True,
        n_neighbors: int = 20,
        kernel_scale: float = 2.0,
        bank_factor: int = 10,
        batch_size: int = 512,
        epochs: int = 50,
        lr: float = 5e-4,
        augment: View | None = None,
        init: Literal["random", "k-means"] = "random",
        semantic: bool = True,
        progressive: bool = True,
        mm_max_iter: int = 100,
        select: Literal["last", "loss"] = "last",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.backbone = backbone
        self.pretrain_epochs = pretrain_epochs
        self.logit_scale = logit_scale
        self.epsilon = epsilon
        self.gamma = gamma
        self.rho_start = rho_start
        self.rho_end = rho_end
        self.lam = lam
        self.lam_decay = lam_decay
        self.n_neighbors = n_neighbors
        self.kernel_scale = kernel_scale
        self.bank_factor = bank_factor
        self.batch_size = batch_size
        self.epochs = epochs
        self.lr = lr
        self.augment = augment
        self.init = init
        self.semantic = semantic
        self.progressive = progressive
        self.mm_max_iter = mm_max_iter
        self.select = select
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: Any = None) -> SP2OTClustering:
        """Train the last layers and the prototypes on the rows, and cluster them.

        Parameters
        ----------
        X : array or tensor, (n, H, W), (n, C, H, W) or (n, d)
            Images in [0, 1] or uint8, or rows of a table or embedding.
        y : None
            Not used.

        Raises
        ------
        ValueError
            For malformed rows, fewer distinct rows than clusters, a batch smaller than the number of clusters, or a
            backbone that does not take the rows.
        """
        self._validate_params()
        rows = check_samples(self, X, reset=True, minimum=2)
        self._check(rows)
        with isolated_seed(self.random_state) as seed:
            views = self.augment or default_views(rows)
            backbone = self._start(rows, views, seed).to(self.device)
            features = _features(backbone, rows, self.device)
            network = PrototypeNetwork(backbone, self._prototypes(features, seed), self.logit_scale)
            similarity = (
                gaussian_neighbours(features, self.n_neighbors, self.kernel_scale)
                if self.semantic and self.lam > 0
                else None
            )
            trainer = self._train(network, rows, views, similarity, seed)
        at_rest(network)
        self.backbone_ = network.backbone
        self.history_, self.rho_history_ = trainer.history, trainer.rho_history
        self.loss_curve_ = [row["loss"] for row in trainer.history]
        self.mm_objective_ = trainer.objective
        self._name_clusters(F.normalize(network.prototypes.detach(), dim=1).numpy(), rows)
        return self

    def predict(self, X: ArrayLike | Tensor) -> NDArray[np.int64]:
        """Cluster of each row, (n,)."""
        return self.predict_proba(X).argmax(axis=1).astype(np.int64)

    def predict_proba(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Softmax of the logits, (n, n_clusters)."""
        return self._probabilities(torch.from_numpy(self._embed(X)))

    def transform(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        """Features of the trained backbone, (n, d).

        Raises
        ------
        ValueError
            For malformed rows, or rows shaped otherwise than in fit.
        """
        return self._embed(X)

    def _embed(self, X: ArrayLike | Tensor) -> NDArray[np.float32]:
        check_is_fitted(self, "backbone_")
        rows = check_samples(self, X, reset=False)
        features = _features(self.backbone_.to(self.device), rows, self.device)
        self.backbone_.cpu()
        return features

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.cluster_centers_.shape[1]

    def _probabilities(self, features: Tensor) -> NDArray[np.float32]:
        centres = torch.from_numpy(self.cluster_centers_)
        return cosine_logits(features, centres, self.logit_scale).softmax(dim=1).numpy()

    def _check(self, rows: Tensor) -> None:
        if self.batch_size < self.n_clusters:
            raise ValueError(
                f"batch_size={self.batch_size} is smaller than n_clusters={self.n_clusters}: a batch could not "
                "hold a row of each cluster. Give larger batches."
            )
        check_enough_rows(rows, self.n_clusters)
        if self.progressive and self.rho_start > self.rho_end:
            raise ValueError(f"rho_start={self.rho_start} must not lie above rho_end={self.rho_end}.")

    def _start(self, rows: Tensor, views: View, seed: int) -> nn.Module:
        """The backbone whose last block is to be trained."""
        if self.backbone is not None:
            backbone = make_encoder(self.backbone, rows.shape[1]).cpu()
            feature_width(backbone, rows[:1])
            return backbone
        encoder: ConvEncoder | MLPEncoder
        encoder = MLPEncoder(rows.shape[1], (128, 64)) if rows.ndim == 2 else ConvEncoder((32, 64, 64), rows.shape[1])
        if self.pretrain_epochs:
            pretrain_contrastive(
                encoder,
                rows,
                views,
                epochs=self.pretrain_epochs,
                batch_size=PRETRAIN_BATCH,
                lr=PRETRAIN_LR,
                projection_dim=None,
                label="sp2ot backbone",
                seed=seed,
                device=self.device,
            )
        encoder.requires_grad_(False)
        encoder.blocks[-1].requires_grad_(True)
        return encoder.eval()

    def _prototypes(self, features: NDArray[np.float32], seed: int) -> Tensor:
        """Step 1: unit prototypes, random or the centres of k-means."""
        if self.init == "random":
            return F.normalize(torch.randn(self.n_clusters, features.shape[1]), dim=1)
        unit = F.normalize(torch.from_numpy(features), dim=1).numpy()
        centres = KMeans(self.n_clusters, n_init=10, random_state=seed % 2**32).fit(unit).cluster_centers_
        return F.normalize(torch.from_numpy(centres).float(), dim=1)

    def _train(
        self,
        network: PrototypeNetwork,
        rows: Tensor,
        views: View,
        similarity: sparse.csr_array | None,
        seed: int,
    ) -> SP2OTTrainer:
        batch = min(self.batch_size, len(rows))
        best = [EarlyStopping("loss_over_rho", patience=self.epochs + 1)] if self.select == "loss" else []
        trainer = SP2OTTrainer(
            network,
            self,
            views,
            similarity,
            min(self.bank_factor * batch, len(rows)),
            epochs=self.epochs,
            batch_size=batch,
            optimizer=adam(self.lr),
            schedule=cosine_to_a_thousandth,
            hooks=best,
            label="sp2ot",
            seed=seed,
            device=self.device,
        )
        trainer.fit(rows)
        return trainer

    def _name_clusters(self, prototypes: NDArray[np.float32], rows: Tensor) -> None:
        features = _features(self.backbone_, rows, "cpu")
        self.cluster_centers_ = prototypes
        found = self._probabilities(torch.from_numpy(features)).argmax(axis=1)
        _, order = largest_first(found, prototypes.astype(np.float64))
        self.cluster_centers_ = np.ascontiguousarray(prototypes[order])
        p = self._probabilities(torch.from_numpy(features))
        self.labels_, self.confidences_ = p.argmax(axis=1).astype(np.int64), p.max(axis=1)
        self.cluster_sizes_ = np.bincount(self.labels_, minlength=self.n_clusters).astype(np.int64)
        self.n_clusters_ = int((self.cluster_sizes_ > 0).sum())
        if self.n_clusters_ == 1:
            warnings.warn(
                f"All {len(rows)} rows ended in one of {self.n_clusters} clusters. Raise gamma (now {self.gamma}), "
                "train longer, or start from a better backbone.",
                ConvergenceWarning,
                stacklevel=3,
            )


def default_views(rows: Tensor) -> View:
    """Step 3: crops and jitter for images, swapped values for rows of a table."""
    return FeatureSwap() if rows.ndim == 2 else contrastive(rows.shape[1], flip=False, scale=(0.5, 1.0))


def _features(backbone: nn.Module, rows: Tensor, device: str) -> NDArray[np.float32]:
    return predict_in_batches(nn.Sequential(backbone, Pooled()).eval(), rows, device=device).numpy()

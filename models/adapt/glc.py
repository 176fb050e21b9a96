"""GLC: adapt a source model to an unlabelled domain with missing and unknown classes, without the source data.

Each epoch labels the target rows by a one-vs-all vote between positive and negative prototypes ("global"); the
training pass fits these labels and the mean prediction of each row's nearest neighbours ("local"). Rows that no
prototype claims get the uniform vector as label, so that the model learns to be undecided on unknown classes.

S. Qu, T. Zou, F. Roehrbein, C. Lu, G. Chen, D. Tao and C. Jiang, "Upcycling Models under Domain and Category
Shift", CVPR 2023, arXiv:2303.07110.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from models.base import check_labels, check_rows, isolated_seed, predict_in_batches
from models.losses import entropy
from models.memory_bank import MemoryBank
from models.registry import register
from models.training import ClassifierTrainer, Row, Trainer, inverse_decay

EPS = 1e-5
TSNE_PERPLEXITY = 30.0
TSNE_MINIMUM = 100
MAX_NEGATIVES = 50_000

View = Callable[[Tensor], Tensor]
Rows = ArrayLike | Tensor | DataLoader[Any]


def cluster_count(n_classes: int, coeff: float) -> int:
    """Step 1: number of target clusters a coefficient stands for, ``max(int(C g), 2)``."""
    return max(int(n_classes * coeff), 2)


def positives_per_class(n_rows: int, n_classes: int, coeff: float) -> int:
    """Step 2: size T of a class's positive set, ``max(1, int(N / (C g)))``.

    C g counts at least two, as in :func:`cluster_count`, so that a negative set never runs empty.
    """
    return max(1, int(n_rows / max(n_classes * coeff, 2.0)))


def planar(z: NDArray[np.float32], how: Literal["tsne", "pca"]) -> NDArray[np.float32]:
    """Map embeddings to the plane for counting clusters, (n, D) -> (n, 2).

    t-SNE starts from PCA with seed 0; under 100 rows PCA takes its place, with a warning.
    """
    if how == "tsne" and len(z) < TSNE_MINIMUM:
        warnings.warn(
            f"{len(z)} target rows are too few for t-SNE; PCA is used to count the target classes. "
            f"Give at least {TSNE_MINIMUM} rows or set estimate_on='pca'.",
            UserWarning,
            stacklevel=2,
        )
        how = "pca"
    if how == "pca":
        return PCA(n_components=2, random_state=0).fit_transform(z)
    return TSNE(n_components=2, init="pca", perplexity=TSNE_PERPLEXITY, random_state=0).fit_transform(z)


def estimate_coeff(points: NDArray[np.float32], n_classes: int, coeffs: Sequence[float]) -> float:
    """Step 1: the ratio of target to source classes whose k-means partition has the best silhouette.

    Parameters
    ----------
    points : array, (n, 2)
    n_classes : int
        Source classes C.
    coeffs : sequence of float
        Candidate ratios; those that ask for as many clusters as rows are left out, ties go to the first.
    """
    scores: dict[float, float] = {}
    for coeff in coeffs:
        clusters = cluster_count(n_classes, coeff)
        if clusters < len(points):
            labels = KMeans(clusters, n_init=10, random_state=0).fit_predict(points)
            scores[coeff] = silhouette_score(points, labels) if len(np.unique(labels)) > 1 else -1.0
    if not scores:
        raise ValueError(
            f"Every ratio in coeffs={tuple(coeffs)} asks for at least {len(points)} clusters, as many as there are "
            "rows. Give a smaller ratio, more target rows or a larger silhouette_max."
        )
    return max(scores, key=scores.__getitem__)


def confidence_weight(mean_probability: Tensor, rho: float) -> Tensor:
    """Step 3: ``omega_c = (1 - rho) mean_{Pos_c} p_c + rho``."""
    return (1 - rho) * mean_probability + rho


def prototypes(
    z: Tensor, p: Tensor, n_positive: int, n_negative: int, rho: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find, in steps 2 and 3, positive and negative prototypes and confidence weight of each class.

    Parameters
    ----------
    z : Tensor, (N, D)
        Normalised embeddings.
    p : Tensor, (N, C)
        Class probabilities.
    n_positive : int
        T; the T rows most probable for a class are its positive set, all others its negative set.
    n_negative : int
        Centres of k-means on the negative set. At most 50,000 negatives, drawn at random, are clustered.
    rho : float
    seed : int

    Returns
    -------
    positive : Tensor, (C, D)
    negative : Tensor, (C, n_negative, D)
    weight : Tensor, (C,)
    """
    top = p.topk(n_positive, dim=0)
    positive = F.normalize(torch.stack([z[rows].mean(dim=0) for rows in top.indices.T]), dim=1)
    rng = np.random.default_rng(seed)
    negative = []
    for rows in top.indices.T:
        others = torch.ones(len(z), dtype=torch.bool)
        others[rows] = False
        points = z[others].numpy()
        if len(points) > MAX_NEGATIVES:
            points = points[rng.choice(len(points), MAX_NEGATIVES, replace=False)]
        centres = KMeans(n_negative, n_init=1, random_state=seed).fit(points).cluster_centers_
        negative.append(F.normalize(torch.from_numpy(centres).float(), dim=1))
    return positive, torch.stack(negative), confidence_weight(top.values.mean(dim=0), rho)


def one_vs_all_labels(z: Tensor, positive: Tensor, negative: Tensor, weight: Tensor) -> Tensor:
    """Give, in steps 4 and 5, pseudo-labels, one-hot at the nearest prototype, or uniform where its vote is lost.

    Row i passes class c if ``omega_c <z_i, P_c> >= max_l <z_i, Q_cl>``; what counts is the class of the nearest
    positive prototype, unweighted. Passing other classes alone is "unknown" as well.

    Parameters
    ----------
    z : Tensor, (N, D)
    positive, negative, weight : Tensor
        As :func:`prototypes` gives them.

    Returns
    -------
    Tensor, (N, C)
        Rows sum to one.
    """
    n_classes = len(positive)
    to_positive = z @ positive.T
    nearest = to_positive.argmax(dim=1)
    to_negative = torch.stack([(z @ centres.T).amax(dim=1) for centres in negative], dim=1)
    passed = (weight * to_positive >= to_negative).gather(1, nearest[:, None])
    one_hot = F.one_hot(nearest, n_classes).to(z.dtype)
    return torch.where(passed, one_hot, torch.full_like(one_hot, 1 / n_classes))


def soft_label_loss(targets: Tensor, p: Tensor) -> Tensor:
    """Step 6: ``-(1/B) sum_b sum_c t_bc log(p_bc + 1e-5)``, the form of both losses."""
    return -(targets * torch.log(p + EPS)).sum(dim=1).mean()


def published_schedule(step: int, total: int) -> float:
    """``(1 + 10 t / T)^-0.75`` with t counted from one, so that the last step has ``11^-0.75``."""
    return inverse_decay()(step + 1, total)


def grouped_sgd(rates: Mapping[str, float], momentum: float, weight_decay: float) -> Callable[[nn.Module], Optimizer]:
    """Nesterov SGD over the trainable parameters of the named groups, each at its own rate."""

    def make(network: nn.Module) -> Optimizer:
        parts = network.parameter_groups()  # type: ignore[operator]
        groups = [{"params": [w for w in parts[name] if w.requires_grad], "lr": lr} for name, lr in rates.items()]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise ValueError(
                f"No parameter in the groups {', '.join(rates)} of the model requires a gradient. "
                "Call requires_grad_() on what is to be trained."
            )
        return SGD(groups, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0)

    return make


def embed(model: nn.Module, X: Tensor, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and class probabilities (N, C) in eval mode, on the CPU, without gradients."""
    was_training = model.training
    model.eval()
    z = predict_in_batches(model.features, X, device=device)
    logits = predict_in_batches(model.head, z, device=device)
    model.train(was_training)
    return z, logits.float().softmax(dim=1)


class GLCTrainer(Trainer):
    """The epochs of GLC: pseudo-labels at the start, then global and local loss batch by batch.

    Parameters
    ----------
    network : nn.Module
    settings : GLCAdapter
        Where the weights of the losses and the settings of the pseudo-labels are read.
    coeff : float
        Ratio of target to source classes.
    parameters : dict
        Those of :class:`~models.training.Trainer`.

    Attributes
    ----------
    pseudo_labels : Tensor, (N, C)
    bank : MemoryBank
    """

    def __init__(self, network: nn.Module, settings: GLCAdapter, coeff: float, seed: int, **parameters: Any) -> None:
        super().__init__(network, seed=seed, **parameters)
        self.settings, self.coeff, self.seed = settings, coeff, seed
        self.refresh_every = 1 if settings.refresh == "epoch" else settings.refresh

    def configure(self) -> None:
        """Let Fabric know that the network is also called through ``features``."""
        super().configure()
        self.network.mark_forward_method("features")

    def before_epoch(self) -> None:
        """Run steps 2 to 5 and fill a fresh memory bank."""
        if self.epoch % self.refresh_every:
            return
        z, p = embed(self.plain_network, self.tensors[0], self.device)
        z = F.normalize(z.float(), dim=1)
        n, n_classes = p.shape
        made = prototypes(
            z,
            p,
            positives_per_class(n, n_classes, self.coeff),
            cluster_count(n_classes, self.coeff),
            self.settings.rho,
            self.seed % 2**32,
        )
        self.pseudo_labels = one_vs_all_labels(z, *made)
        self.device_labels = self.pseudo_labels.to(self.device)
        self.bank = MemoryBank(z.to(self.device), p.to(self.device))

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Step 6: ``lam_psd L_glb + lam_knn L_loc``; the batch enters the bank after its neighbours are found."""
        settings = self.settings
        x = settings.augment(batch[0]) if settings.augment else batch[0]
        z = self.network.features(x)
        p = self.network.head(z).float().softmax(dim=1)
        index = index.to(self.device)
        near = self.bank.neighbour_predictions(z, index, settings.local_k)
        self.bank.update(index, z, p)
        global_loss = soft_label_loss(self.device_labels[index], p)
        local_loss = soft_label_loss(near, p)
        loss = settings.lam_psd * global_loss + settings.lam_knn * local_loss
        return loss, {"loss_global": float(global_loss.detach()), "loss_local": float(local_loss.detach())}

    def row_state(self) -> list[tuple[Tensor, int]]:
        """What the bank remembers of each row."""
        return [(self.bank.embeddings, 0), (self.bank.predictions, 0)]

    def after_epoch(self, row: Row) -> None:
        """Add the share of rows whose pseudo-label is "unknown"."""
        row["pseudo_unknown"] = float((self.pseudo_labels.amax(dim=1) < 1).float().mean())


def train_source(
    model: nn.Module,
    X: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    label_smoothing: float = 0.1,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 1e-2,
    backbone_lr_mult: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-3,
    augment: View | None = None,
    device: str = "cpu",
    random_state: int | np.random.RandomState | None = None,
) -> nn.Module:
    """Train a classifier on the labelled source domain the way GLC expects it, head included.

    Parameters
    ----------
    model : nn.Module
        With ``parameter_groups()``, as :class:`GLCAdapter` takes it. A copy is trained, `model` stays as it is.
    X : array or tensor, (n, H, W), (n, C, H, W) or (n, d)
        Images in [0, 1] (or uint8), or rows of a table or embedding.
    y : array, (n,)
        Classes 0..C-1; -1 = unlabelled, which carries no loss.
    label_smoothing : float
    epochs, batch_size : int
    lr : float
        Initial rate of embedding and head.
    backbone_lr_mult : float
        Factor for the backbone, for one that was pretrained; 1.0 suits a fresh one.
    momentum, weight_decay : float
    augment : callable, optional
        Batch -> batch of the same shape, drawn anew each step.
    device : str
    random_state : int, RandomState or None

    Returns
    -------
    nn.Module
        The trained copy, in eval mode.

    Raises
    ------
    ValueError
        For malformed input, labels beyond the head's classes, or fewer than two classes.

    References
    ----------
    S. Qu et al. (2023), arXiv:2303.07110: the source training of the experiments.
    """
    rows = _rows(X, minimum=2)
    with isolated_seed(random_state) as seed:
        network = copy.deepcopy(model)
        n_classes = _count_classes(network, rows, device)
        labels = check_labels(y, len(rows), n_classes=n_classes)
        rates = {"embedding": lr, "head": lr, "backbone": backbone_lr_mult * lr}
        trainer = ClassifierTrainer(
            network,
            label_smoothing=label_smoothing,
            augment=augment,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=grouped_sgd(rates, momentum, weight_decay),
            schedule=published_schedule,
            label="source",
            seed=seed,
            device=device,
        )
        trainer.fit(rows, torch.from_numpy(labels))
    return network.cpu()


@register(
    "glc",
    stage="adapt",
    summary="Adapts a classifier to an unlabelled domain that lacks known classes or holds unknown ones",
    paper="Upcycling Models under Domain and Category Shift",
    year=2023,
    link="https://arxiv.org/abs/2303.07110",
    licence="none published",
    accepts=("image", "table", "embedding"),
)
class GLCAdapter(BaseEstimator):
    """Source-free universal domain adaptation by global and local clustering.

    Parameters
    ----------
    model : nn.Module
        Trained on the source: ``features(x)`` -> (B, D), ``head(z)`` -> (B, C) logits, and ``parameter_groups()``
        -> {"backbone", "embedding", "head"}; for instance ``SplitClassifier(encoder, C, normalised_head=True)``.
        A copy is adapted, and its head stays as it is.
    lam_psd : float, default=0.3
        Weight of the global loss (1.5 on Office-Home and DomainNet).
    lam_knn : float, default=1.0
        Weight of the local loss.
    local_k : int, default=4
        Neighbours whose predictions a row is drawn to.
    rho : float, default=0.75
        Least confidence weight of a class's prototype; 1 trusts all classes alike.
    reject_threshold : float, default=0.55
        Rows with a normalised entropy above it are predicted "unknown".
    epochs : int, default=20
    batch_size : int, default=64
        At least 2, for batch normalisation. With fewer rows than this, all rows are one batch.
    lr : float, default=1e-3
        Initial rate of the embedding layers.
    backbone_lr_mult : float, default=0.1
        Factor on `lr` for the backbone.
    momentum : float, default=0.9
    weight_decay : float, default=1e-3
    coeffs : sequence of float, default=(0.25, 0.5, 1, 2, 3)
        Candidate ratios of target to source classes. A single one skips the estimate.
    estimate_on : {"tsne", "pca"}, default="tsne"
        Plane in which the target classes are counted. t-SNE is what was published and the costliest step on small
        data: seconds for a thousand rows, growing with n log n.
    silhouette_max : int, default=5000
        Most rows, drawn at random, that the estimate looks at.
    refresh : "epoch" or int, default="epoch"
        Epochs from one computation of pseudo-labels and memory bank to the next; "epoch" means 1.
    augment : callable, optional
        Batch -> batch of the same shape, applied in the training pass alone, drawn anew each step.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    model_ : nn.Module
        The adapted copy, in eval mode.
    n_classes_ : int
        Source classes C; ``predict`` gives C for "unknown".
    coeff_ : float
        Estimated ratio of target to source classes.
    n_target_classes_ : int
        ``max(int(C coeff_), 2)``.
    pseudo_labels_ : array, (N, C)
        Of the last refresh: one-hot rows, or uniform ones for "unknown".
    history_ : list of dict
        One row an epoch: loss, its global and local term, lr, and the share of rows labelled "unknown".

    Notes
    -----
    The model after the last epoch is kept. Choosing the best epoch would take target labels.
    Batch normalisation adapts its statistics in the training pass, so even with both weights at zero the outputs move.

    References
    ----------
    S. Qu et al., "Upcycling Models under Domain and Category Shift", CVPR 2023, arXiv:2303.07110.
    Steps are numbered as they run: count target classes (1), positive sets (2), prototypes (3), one-vs-all vote (4),
    pseudo-labels (5), training pass (6).

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from models.networks.heads import SplitClassifier
    >>> from models.networks.mlp import MLPEncoder
    >>> X, y = load_digits(n_class=4, return_X_y=True)
    >>> model = SplitClassifier(MLPEncoder(64, (32,)), 3, embedding_dim=16, normalised_head=True)
    >>> source = train_source(model, X[y < 3] / 16, y[y < 3], epochs=3, backbone_lr_mult=1.0, random_state=0)
    >>> adapter = GLCAdapter(source, epochs=2, estimate_on="pca", random_state=0).fit(X / 16)
    >>> adapter.predict(X / 16).shape, sorted(set(adapter.predict(X / 16)) - {0, 1, 2, 3})
    ((720,), [])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "model": [HasMethods(["features", "head", "parameter_groups"])],
        "lam_psd": [Interval(Real, 0, None, closed="left")],
        "lam_knn": [Interval(Real, 0, None, closed="left")],
        "local_k": [Interval(Integral, 1, None, closed="left")],
        "rho": [Interval(Real, 0, 1, closed="both")],
        "reject_threshold": [Interval(Real, 0, 1, closed="both")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "backbone_lr_mult": [Interval(Real, 0, None, closed="left")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "coeffs": ["array-like"],
        "estimate_on": [StrOptions({"tsne", "pca"})],
        "silhouette_max": [Interval(Integral, 3, None, closed="left")],
        "refresh": [StrOptions({"epoch"}), Interval(Integral, 1, None, closed="left")],
        "augment": [callable, None],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        model: nn.Module,
        lam_psd: float = 0.3,
        lam_knn: float = 1.0,
        local_k: int = 4,
        rho: float = 0.75,
        reject_threshold: float = 0.55,
        epochs: int = 20,
        batch_size: int = 64,
        lr: float = 1e-3,
        backbone_lr_mult: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        coeffs: Sequence[float] = (0.25, 0.5, 1, 2, 3),
        estimate_on: Literal["tsne", "pca"] = "tsne",
        silhouette_max: int = 5000,
        refresh: Literal["epoch"] | int = "epoch",
        augment: View | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model = model
        self.lam_psd = lam_psd
        self.lam_knn = lam_knn
        self.local_k = local_k
        self.rho = rho
        self.reject_threshold = reject_threshold
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.backbone_lr_mult = backbone_lr_mult
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.coeffs = coeffs
        self.estimate_on = estimate_on
        self.silhouette_max = silhouette_max
        self.refresh = refresh
        self.augment = augment
        self.device = device
        self.random_state = random_state

    def fit(self, X: Rows, y: None = None) -> GLCAdapter:
        """Adapt a copy of the model to the unlabelled target rows `X`.

        Parameters
        ----------
        X : array, tensor or DataLoader
            Images (N, H, W) or (N, C, H, W) in [0, 1] or uint8, or rows (N, d); or a loader of (rows, index),
            each index 0..N-1 once, which is read once and kept in memory.
        y : None
            Not used.

        Raises
        ------
        ValueError
            For malformed input, a head of fewer than two classes, or fewer than 2 C rows.
        """
        self._validate_params()
        coeffs = self._check_coeffs()
        rows = _rows(X)
        with isolated_seed(self.random_state) as seed:
            network = copy.deepcopy(self.model)
            self.n_classes_ = _count_classes(network, rows, self.device)
            self._check_size(len(rows))
            self.coeff_ = coeffs[0] if len(coeffs) == 1 else self._estimate(network, rows, coeffs)
            self.n_target_classes_ = cluster_count(self.n_classes_, self.coeff_)
            trainer = self._train(network, rows, seed)
        self.model_ = network
        self.pseudo_labels_ = trainer.pseudo_labels.numpy()
        self.history_ = trainer.history
        self.row_shape_ = tuple(rows.shape[1:])
        return self

    def predict_proba(self, X: Rows) -> NDArray[np.float32]:
        """Probabilities over the source classes, (n, C); near uniform for unknown rows."""
        return self._probabilities(X).numpy()

    def unknown_score(self, X: Rows) -> NDArray[np.float32]:
        """Normalised entropy of each row, (n,): 0 certain of a source class, 1 undecided."""
        return entropy(self._probabilities(X), normalised=True, eps=EPS).clamp(0, 1).numpy()

    def predict(self, X: Rows, reject: bool = True) -> NDArray[np.int64]:
        """Source class of each row, or C for "unknown", (n,).

        Parameters
        ----------
        X : array, tensor or DataLoader
            As in :meth:`fit`.
        reject : bool
            Whether rows above `reject_threshold` are "unknown"; False where the target can hold source classes
            alone (closed and partial sets).
        """
        p = self._probabilities(X)
        classes = p.argmax(dim=1)
        if reject:
            classes[entropy(p, normalised=True, eps=EPS) > self.reject_threshold] = self.n_classes_
        return classes.numpy()

    def _probabilities(self, X: Rows) -> Tensor:
        check_is_fitted(self)
        rows = _rows(X)
        if tuple(rows.shape[1:]) != self.row_shape_:
            raise ValueError(
                f"X must have rows shaped {self.row_shape_} as in fit, got {tuple(rows.shape[1:])}. "
                "Bring them to that shape or fit again."
            )
        return embed(self.model_, rows, self.device)[1]

    def _check_coeffs(self) -> list[float]:
        coeffs = [float(coeff) for coeff in self.coeffs]
        if not coeffs or not all(0 < coeff < math.inf for coeff in coeffs):
            raise ValueError(f"coeffs must hold at least one ratio, all above 0, got {tuple(self.coeffs)}.")
        return coeffs

    def _check_size(self, n: int) -> None:
        needed = max(2 * self.n_classes_, self.local_k + 1)
        if n < needed:
            raise ValueError(
                f"GLC needs at least {needed} target rows for {self.n_classes_} source classes and "
                f"local_k={self.local_k}, got {n}. Collect more target data."
            )

    def _estimate(self, network: nn.Module, rows: Tensor, coeffs: Sequence[float]) -> float:
        """Step 1, on at most `silhouette_max` rows."""
        if len(rows) > self.silhouette_max:
            rows = rows[torch.randperm(len(rows))[: self.silhouette_max]]
        z = F.normalize(embed(network, rows, self.device)[0].float(), dim=1).numpy()
        return estimate_coeff(planar(z, self.estimate_on), self.n_classes_, coeffs)

    def _train(self, network: nn.Module, rows: Tensor, seed: int) -> GLCTrainer:
        trainable = {name: weight.requires_grad for name, weight in network.named_parameters()}
        for weight in network.parameter_groups()["head"]:  # type: ignore[operator]
            weight.requires_grad_(False)
        rates = {"embedding": self.lr, "backbone": self.backbone_lr_mult * self.lr}
        trainer = GLCTrainer(
            network,
            self,
            self.coeff_,
            seed,
            epochs=self.epochs,
            batch_size=min(self.batch_size, len(rows)),
            optimizer=grouped_sgd(rates, self.momentum, self.weight_decay),
            schedule=published_schedule,
            drop_last=True,
            label="glc",
            device=self.device,
        )
        trainer.fit(rows)
        for name, weight in network.named_parameters():
            weight.requires_grad_(trainable[name])
        return trainer


def _rows(X: Rows, minimum: int = 1) -> Tensor:
    return check_rows(_gather(X) if isinstance(X, DataLoader) else X, minimum=minimum)


def _gather(loader: DataLoader[Any]) -> Tensor:
    """Rows of a loader of (rows, index) in the order of their index."""
    parts = list(loader)
    if not parts or not all(isinstance(part, (tuple, list)) and len(part) == 2 for part in parts):
        raise ValueError("A DataLoader given to GLC must yield pairs (rows, index). Add the index to its data set.")
    rows, index = (torch.cat([torch.as_tensor(part[i]) for part in parts]) for i in (0, 1))
    if not torch.equal(index.sort().values, torch.arange(len(rows))):
        raise ValueError(
            f"A DataLoader given to GLC must yield each index 0..{len(rows) - 1} once. "
            "Turn off drop_last and samplers that repeat rows."
        )
    return rows[index.argsort()]


def _count_classes(network: nn.Module, rows: Tensor, device: str) -> int:
    """Count the outputs C of the model, and check that it takes such rows."""
    network.to(device)
    try:
        n_classes = embed(network, rows[:2], device)[1].shape[1]
    except RuntimeError as error:
        raise ValueError(
            f"The model does not take rows shaped {tuple(rows.shape[1:])}: {error}. Bring X to the shape it was "
            "trained on."
        ) from error
    if n_classes < 2:
        raise ValueError(f"GLC needs a model of at least two source classes, got one with {n_classes}.")
    return n_classes

"""PBN (projection-based novel class discovery): a latent space that names the known classes and keeps the table.

An autoencoder is trained on all rows of a table and a linear classifier, on the same latent space, on the rows whose
class is known; k-means then groups the rows whose class is not.

C. Troisemaine, A. Reiffers-Masson, S. Gosselin, V. Lemaire and S. Vaton, "A Practical Approach to Novel Class
Discovery in Tabular Data", Data Mining and Knowledge Discovery, 2024, arXiv:2311.05440.
"""

from __future__ import annotations

from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.base import isolated_seed, predict_in_batches
from models.constrained_kmeans import margins
from models.discover.hidden_classes import (
    Labels,
    Matrix,
    PartlyNamed,
    estimate_n_novel,
    named,
    partly_named,
    table_rows,
)
from models.networks import network
from models.registry import register
from models.training import Row, Trainer, adam

WIDEST_LATENT = 64
NARROWEST = 8
"""Units of a layer at least: half of two columns is one unit, which sees nothing of them."""

# The network and its loss ------------------------------------------------------------------------------------------


def layers(widths: list[int], p_dropout: float) -> nn.Sequential:
    """Linear layers of these widths with ReLU, batch normalisation and dropout between them."""
    stack: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
    for before, after in pairwise(widths[1:]):
        stack += [nn.ReLU(), nn.BatchNorm1d(before), nn.Dropout(p_dropout), nn.Linear(before, after)]
    return nn.Sequential(*stack)


@network("pbn")
class PBNNetwork(nn.Module):
    """Encoder of widths d, 3d/4, d/2, latent; a decoder that mirrors it and a linear head, both on z = e / |e|.

    The inner widths are 8 at least.

    Parameters
    ----------
    n_features, n_known, latent_dim : int
    p_dropout : float
    """

    def __init__(self, n_features: int, n_known: int, latent_dim: int, p_dropout: float = 0.1) -> None:
        super().__init__()
        inner = (max(NARROWEST, 3 * n_features // 4), max(NARROWEST, n_features // 2))
        widths = [n_features, *inner, latent_dim]
        self.encoder = layers(widths, p_dropout)
        self.decoder = layers(widths[::-1], p_dropout)
        self.head = nn.Linear(latent_dim, n_known)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (B, d) -> z (B, latent), reconstructions (B, d), logits (B, n_known)."""
        z = F.normalize(self.encoder(x), dim=1)
        return z, self.decoder(z), self.head(z)


def pbn_loss(logits: Tensor, y: Tensor, reconstruction: Tensor, x: Tensor, w: float) -> tuple[Tensor, Row]:
    """The loss w CE(known rows) + (1 - w) mean over all rows of the squared error, summed over the features.

    The classification term is 0 when no row of the batch (`y` = -1 elsewhere) is known.
    """
    known = y >= 0
    classification = F.cross_entropy(logits[known], y[known]) if known.any() else logits.sum() * 0.0
    squared = (reconstruction - x).pow(2).sum(dim=1).mean()
    total = w * classification + (1 - w) * squared
    return total, {"ce": float(classification.detach()), "mse": float(squared.detach())}


class PBNTrainer(Trainer):
    """Rows and their known class, -1 where there is none."""

    def __init__(self, network: nn.Module, w: float, **parameters: Any) -> None:
        super().__init__(network, **parameters)
        self.w = w

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Section C."""
        x, y = batch
        _, reconstruction, logits = self.network(x)
        return pbn_loss(logits, y, reconstruction, x, self.w)


@register(
    "tabular-ncd",
    stage="discover",
    summary="Finds the unnamed classes of a table in a latent space learnt with the named ones",
    paper="A Practical Approach to Novel Class Discovery in Tabular Data",
    year=2024,
    link="https://arxiv.org/abs/2311.05440",
    licence="MIT",
    accepts=("table", "embedding"),
)
class PBN(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Novel class discovery by k-means in a latent space that classifies known rows and reconstructs all.

    Parameters
    ----------
    n_novel : int, optional
        Novel classes; when None, estimated by :func:`~models.discover.hidden_classes.estimate_n_novel` in the latent
        space.
    latent_dim : int, optional
        As many as features, from 8 to 64, when None. Published settings go from 11 to 768.
    w : float, default=0.5
        Weight of the classification against the reconstruction, in [0, 1]; published settings go from 0.06 to 0.97.
    lr : float, default=1e-3
        Of AdamW, constant.
    p_dropout : float, default=0.1
    weight_decay : float, default=0.01
    epochs : int, default=200
    batch_size : int, default=512
    cluster_space : {"normalized", "raw"}, default="normalized"
        What k-means sees: z, or the encoder's output before it is normalised, as in the released code.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_ : int array
        Known labels.
    n_novel_, n_clusters_ : int
        Novel classes, and known and novel ones together.
    labels_ : int array, (n,)
        The known label, or ``classes_.max() + 1 + j`` for novel cluster j.
    network_ : PBNNetwork
        Its parts are ``encoder_``, ``decoder_`` and ``head_``.
    novel_centers_, cluster_centers_ : array, (n_novel, latent_dim)
        The same, in the space that was clustered.
    confidences_ : array, (n,)
        (second - first) / second distance to the novel centres; 1 for known rows.
    history_ : list of dict
        ``loss``, ``ce`` and ``mse`` of each epoch.
    n_features_in_ : int

    Notes
    -----
    Scale the columns first, with StandardScaler fitted on the training rows; drop constant columns. All rows labelled
    -1 count as novel: for a mixture of known and novel classes see "gcd-gmm". Choose `w`, `lr`, `p_dropout` and
    `latent_dim` with :func:`~models.discover.hidden_classes.tune_on_hidden_classes`, which looks at no novel row.

    References
    ----------
    Troisemaine et al., 2024, section on PBN. The released code clusters the encoder's output before normalisation and
    counts classes after it; here both use z unless `cluster_space` says otherwise.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> import numpy as np
    >>> X, y = load_digits(return_X_y=True)
    >>> found = PBN(2, epochs=5, random_state=0).fit(X[:200] / 16, np.where(y < 8, y, -1)[:200])
    >>> found.transform(X[:3] / 16).shape, found.predict(X[:3] / 16).max() < 2
    ((3, 64), np.True_)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_novel": [Interval(Integral, 1, None, closed="left"), None],
        "latent_dim": [Interval(Integral, 1, None, closed="left"), None],
        "w": [Interval(Real, 0, 1, closed="both")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "p_dropout": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "cluster_space": [StrOptions({"normalized", "raw"})],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_novel: int | None = None,
        latent_dim: int | None = None,
        w: float = 0.5,
        lr: float = 1e-3,
        p_dropout: float = 0.1,
        weight_decay: float = 0.01,
        epochs: int = 200,
        batch_size: int = 512,
        cluster_space: Literal["normalized", "raw"] = "normalized",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_novel = n_novel
        self.latent_dim = latent_dim
        self.w = w
        self.lr = lr
        self.p_dropout = p_dropout
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.cluster_space = cluster_space
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> PBN:
        """Learn the latent space and find the novel classes in it.

        Parameters
        ----------
        X : array, (n, d)
        y : int array, (n,)
            Known classes, -1 = novel.

        Raises
        ------
        ValueError
            Without y, for NaN, no row labelled -1, fewer than two known classes, more novel classes than distinct
            novel rows, or novel rows of fewer than three distinct latents whose number of classes is to be estimated.
        """
        self._validate_params()
        table = partly_named(self, X, y, self.n_novel)
        with isolated_seed(self.random_state) as seed:
            self.classes_ = table.classes
            self._train(table, seed)
            z = self._latent(table.rows[table.novel], normalized=True)
            self.n_novel_ = self.n_novel or estimate_n_novel(z, random_state=seed).n_clusters
            space = z if self.cluster_space == "normalized" else self._latent(table.rows[table.novel], normalized=False)
            found = KMeans(self.n_novel_, n_init=10, max_iter=1000, tol=1e-10, random_state=seed).fit(space)
        self.n_clusters_ = len(self.classes_) + self.n_novel_
        self.novel_centers_ = self.cluster_centers_ = found.cluster_centers_
        distances = euclidean_distances(space, self.novel_centers_)
        self.labels_ = named(table, distances.argmin(axis=1))
        self.confidences_ = np.ones(len(table.rows))
        self.confidences_[table.novel] = margins(distances)
        return self

    def fit_predict(self, X: ArrayLike, y: ArrayLike | None = None) -> Labels:
        """Fit and return ``labels_``."""
        return self.fit(X, y).labels_

    def transform(self, X: ArrayLike) -> Matrix:
        """Latents z of unit length, (n, latent_dim)."""
        check_is_fitted(self)
        return self._latent(table_rows(self, X, reset=False), normalized=True)

    def predict(self, X: ArrayLike) -> Labels:
        """Novel cluster 0..n_novel_ - 1 of each row, that of the nearest novel centre."""
        check_is_fitted(self)
        latent = self._latent(table_rows(self, X, reset=False), self.cluster_space == "normalized")
        return euclidean_distances(latent, self.novel_centers_).argmin(axis=1).astype(np.int64)

    def predict_known(self, X: ArrayLike) -> Labels:
        """Known label of each row, by the classification head."""
        check_is_fitted(self)
        z = torch.tensor(self._latent(table_rows(self, X, reset=False), normalized=True), dtype=torch.float32)
        return self._head_classes[predict_in_batches(self.head_, z).argmax(dim=1).numpy()]

    @property
    def encoder_(self) -> nn.Module:
        """Rows -> latents before normalisation."""
        return self.network_.encoder

    @property
    def decoder_(self) -> nn.Module:
        """Latents z -> rows."""
        return self.network_.decoder

    @property
    def head_(self) -> nn.Module:
        """Latents z -> logits of the known classes, in the order in which y names them first."""
        return self.network_.head

    def _train(self, table: PartlyNamed, seed: int) -> None:
        """Section C. Classes are numbered as they first appear, so that renaming them changes nothing."""
        known = table.labels[~table.novel]
        self._head_classes = known[np.sort(np.unique(known, return_index=True)[1])]
        targets = np.full(len(table.labels), -1, dtype=np.int64)
        for number, label in enumerate(self._head_classes):
            targets[table.labels == label] = number
        d = table.rows.shape[1]
        self.network_ = PBNNetwork(d, len(self.classes_), self._latent_dim(d), self.p_dropout)
        trainer = PBNTrainer(
            self.network_,
            self.w,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=adam(self.lr, self.weight_decay, decoupled=True),
            label="pbn",
            seed=seed,
            device=self.device,
        )
        self.history_ = trainer.fit(torch.tensor(table.rows, dtype=torch.float32), torch.from_numpy(targets)).history
        self.network_.cpu()

    def _latent_dim(self, d: int) -> int:
        return self.latent_dim or int(np.clip(d, NARROWEST, WIDEST_LATENT))

    def _latent(self, rows: Matrix, normalized: bool) -> Matrix:
        encoded = predict_in_batches(self.encoder_, torch.tensor(rows, dtype=torch.float32)).double()
        return (F.normalize(encoded, dim=1) if normalized else encoded).numpy()

    @property
    def _n_features_out(self) -> int:
        return int(self.head_.in_features)  # type: ignore[arg-type]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

"""ClusterNet: groups the points of a scatterplot as people would, without a number of groups or a radius.

A point network learns from ratings: whether people put two points into one group or not. Names of groups never enter
the loss, and one rater is drawn for each plot and step, so that where raters disagree the network is undecided.

S. Hartwig, C. van Onzenoodt, D. Engel, P. Hermosilla and T. Ropinski, "ClusterNet: A Perception-Based Clustering Model
for Scattered Data", 2023, arXiv:2304.14185; final form "HPSCAN: Human Perception-Based Scattered Data Clustering",
Computer Graphics Forum 44(1), 2025.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from models import distributed
from models.base import UNLABELLED, check_embeddings, isolated_seed
from models.discover.raters import Labels, Points, agreement_index, group_agreement, simulate_raters
from models.networks.pointnet import PointNet2Segmenter, farthest_points
from models.registry import register
from models.training import Row, Trainer, adam, cosine

__all__ = ["ClusterNet", "PointNet2Segmenter", "agreement_index", "group_agreement", "simulate_raters"]

LOG = logging.getLogger(__name__)

FEWEST_POINTS = 8
SMALLEST_SHARE, LEAST_CERTAINTY = 0.02, 0.5
"""Slots with a smaller share of the points and a lower mean probability join their neighbours."""
EPS = 1e-6
SYNTHETIC_LR = 2e-3
SIMULATED_SEED = 0
STEPS_AN_EPOCH = 100

Draw = Callable[[Tensor, np.random.Generator], list[tuple[Points, Labels]]]

# The equations -----------------------------------------------------------------------------------------------------


def normalised(cloud: ArrayLike) -> Points:
    """Step 1: the bounding box's centre at 0 and its longer side from -1 to 1; the aspect ratio is kept."""
    points = np.asarray(cloud, dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    half = (high - low).max() / 2
    return np.asarray((points - (low + high) / 2) / (half if half > 0 else 1.0))


def augmented(points: Points, rng: np.random.Generator) -> Points:
    """Step 1, in training: a turn, a flip, axes scaled by 0.9 to 1.1, and a jitter of 0.005."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = rng.uniform(0.9, 1.1, 2) * rng.choice([-1, 1], 2)
    return normalised(points @ turn * stretch) + rng.normal(0, 0.005, points.shape)


def pair_loss(p: Tensor, labels: Tensor, valid: Tensor, pair_samples: int | None = None) -> Tensor:
    """Step 3: binary cross-entropy of "in one group" over the pairs of points that a rater grouped.

    The chance of a pair is ``s_ij = sum_k p_ik p_jk``, kept between 1e-6 and 1 - 1e-6.

    Parameters
    ----------
    p : Tensor, (B, n, K)
        Probabilities of the slots for groups, without that for noise.
    labels : int Tensor, (B, n)
        Their names do not matter; -1 points are in no pair.
    valid : bool Tensor, (B, n)
    pair_samples : int, optional
        Pairs drawn for each cloud; all pairs by default.
    """
    grouped = valid & (labels >= 0)
    n = p.shape[1]
    if pair_samples is None:
        chance = p @ p.transpose(1, 2)
        together = labels[:, :, None] == labels[:, None, :]
        used = (grouped[:, :, None] & grouped[:, None, :]).triu(diagonal=1)
    else:
        i, j = torch.randint(n, (2, len(p), pair_samples), device=p.device)
        rows = torch.arange(len(p), device=p.device)[:, None]
        chance = (p[rows, i] * p[rows, j]).sum(dim=-1)
        together = labels[rows, i] == labels[rows, j]
        used = grouped[rows, i] & grouped[rows, j] & (i != j)
    losses = F.binary_cross_entropy(chance.clamp(EPS, 1 - EPS), together.to(p.dtype), reduction="none")
    return _mean_of_clouds(losses.flatten(1), used.flatten(1))


def noise_loss(p_noise: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Step 3: binary cross-entropy of the noise slot (B, n) against the rater's marks."""
    marked = (labels == UNLABELLED).to(p_noise.dtype)
    return _mean_of_clouds(F.binary_cross_entropy(p_noise.clamp(EPS, 1 - EPS), marked, reduction="none"), valid)


def _mean_of_clouds(losses: Tensor, used: Tensor) -> Tensor:
    return ((losses * used).sum(dim=1) / used.sum(dim=1).clamp_min(1)).mean()


def point_agreement(ratings: Labels) -> NDArray[np.float64]:
    """Step 4: how alike raters treat each point, the mean Jaccard index of its companions over pairs of raters, (n,).

    A point is its own companion, and the only one where a rater puts it in no group.
    """
    itself = np.eye(ratings.shape[1], dtype=bool)
    companions = [(rating[:, None] == rating) & (rating >= 0) | itself for rating in ratings]
    if len(companions) == 1:
        return np.ones(ratings.shape[1])
    return np.mean([(a & b).sum(1) / (a | b).sum(1) for a, b in combinations(companions, 2)], axis=0)


def merge_small_slots(points: Points, labels: Labels, p: NDArray[np.floating]) -> Labels:
    """Step 5: slots of under 2 % of the points and mean probability under 0.5 join that of their 3-NN majority."""
    merged = labels.copy()
    slots, sizes = np.unique(labels[labels >= 0], return_counts=True)
    for slot, size in sorted(zip(slots.tolist(), sizes.tolist(), strict=True), key=lambda pair: pair[1]):
        members = merged == slot
        others = np.flatnonzero((merged >= 0) & ~members)
        if size >= SMALLEST_SHARE * len(labels) or p[members, slot].mean() >= LEAST_CERTAINTY or not len(others):
            continue
        _, near = cKDTree(points[others]).query(points[members], k=min(3, len(others)))
        merged[members] = np.bincount(merged[others][np.ravel(near)]).argmax()
    return merged


def by_first_appearance(labels: Labels) -> Labels:
    """Groups renamed 0, 1, ... in the order in which the points show them; -1 stays."""
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    shown = np.where(labels[first] >= 0, first, len(labels))
    names = np.argsort(np.argsort(shown, kind="stable"), kind="stable")
    return np.where(labels >= 0, names[place], UNLABELLED).astype(np.int64)


# Training ----------------------------------------------------------------------------------------------------------


class ClusterNetTrainer(Trainer):
    """Steps 1 to 4 on batches of clouds.

    Parameters
    ----------
    network : PointNet2Segmenter
    settings : ClusterNet
    draw : callable
        (indices of a batch, generator) -> for each a normalised cloud (n, 2) and its ratings (r, n).
    """

    def __init__(
        self, network: PointNet2Segmenter, settings: ClusterNet, draw: Draw, seed: int, **parameters: Any
    ) -> None:
        super().__init__(network, seed=seed, **parameters)
        self.settings, self.draw = settings, draw
        self.rng = np.random.default_rng([seed, distributed.rank()])

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Clouds of one length: up to a fifth of the points dropped, one rater each, short clouds padded."""
        views = [self._view(cloud, ratings) for cloud, ratings in self.draw(index, self.rng)]
        longest = max(len(points) for points, _, _ in views)
        places = [np.arange(longest) % len(points) for points, _, _ in views]
        points = np.stack([view[0][place] for view, place in zip(views, places, strict=True)])
        labels = np.stack([view[1][place] for view, place in zip(views, places, strict=True)])
        alike = np.stack([view[2][place] for view, place in zip(views, places, strict=True)])
        valid = np.stack([np.arange(longest) < len(view[0]) for view in views])
        tensors = torch.from_numpy(points).float(), torch.from_numpy(labels), torch.from_numpy(alike).float()
        return *(tensor.to(self.device) for tensor in tensors), torch.from_numpy(valid).to(self.device)

    def _view(self, cloud: Points, ratings: Labels) -> tuple[Points, Labels, NDArray[np.float64]]:
        if len(cloud) > self.settings.n_points:
            kept = sample(cloud, self.settings.n_points)
            cloud, ratings = cloud[kept], ratings[:, kept]
        n = max(int(len(cloud) * self.rng.uniform(0.8, 1)), min(FEWEST_POINTS, len(cloud)))
        kept = self.rng.permutation(len(cloud))[:n]
        ratings = ratings[:, kept]
        alike = point_agreement(ratings) if self.settings.agreement_head else np.zeros(n)
        return augmented(cloud[kept], self.rng), ratings[self.rng.integers(len(ratings))], alike

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """``L_pair + L_noise``, and the squared error of the agreement."""
        points, labels, alike, valid = batch
        settings = self.settings
        logits = self.network(points, valid)
        p = settings._slots(logits)
        pairs = pair_loss(p[..., : settings.max_clusters], labels, valid, settings.pair_samples)
        loss, terms = pairs, {"loss_pair": float(pairs.detach())}
        if settings.noise:
            noise = noise_loss(p[..., -1], labels, valid)
            loss, terms["loss_noise"] = loss + noise, float(noise.detach())
        if settings.agreement_head:
            error = _mean_of_clouds((logits[..., -1].sigmoid() - alike).square(), valid)
            loss, terms["loss_agreement"] = loss + error, float(error.detach())
        return loss, terms


def sample(cloud: Points, count: int) -> Labels:
    """Indices of `count` points that cover the cloud."""
    return farthest_points(torch.from_numpy(cloud)[None], count)[0].numpy()


@register(
    "clusternet",
    stage="discover",
    summary="Groups the points of a two-dimensional scatterplot as people would, without a number of groups",
    paper="ClusterNet: A Perception-Based Clustering Model for Scattered Data",
    year=2023,
    link="https://arxiv.org/abs/2304.14185",
    licence="none published",
    accepts=("table", "embedding"),
    rows="plane",
)
class ClusterNet(ClusterMixin, BaseEstimator):
    """A point network for scatterplots, trained on people's clusterings or on simulated ones.

    ``fit(clouds, ratings)`` trains it on ratings. ``fit(X)`` with one cloud groups its points: with `weights`, else
    with the network that an earlier training left, else with one trained once on simulated raters (about two minutes
    on a core with the defaults; the next fit of the same Python process reuses it).

    Parameters
    ----------
    max_clusters : int, default=16
        Slots for groups K; a plot can not show more groups. Unused ones do no harm.
    n_points : int, default=512
        Points the network looks at. Of a larger cloud it takes those that cover it, and the others follow their three
        nearest.
    noise : bool, default=True
        Whether points may belong to no group. Without it, ratings of -1 say nothing.
    widths : {"small", "paper"}, default="small"
    radius : pair of float, default=(0.2, 0.4)
        Of the network's balls, in a plot that is 2 wide.
    nsample : pair of int, default=(16, 32)
        Most points of a ball that are looked at.
    centres : pair of float, default=(1/4, 1/16)
        Balls, as a share of the points.
    epochs : int, default=100
    batch_size : int, default=16
        Clouds a step.
    lr : float, default=1e-3
    pair_samples : int or None, default=None
        Pairs drawn for a cloud's loss; None takes all.
    agreement_head : bool, default=False
        Learn as well how alike raters treat each point, for :meth:`predict_agreement`.
    weights : dict of str to Tensor, optional
        ``network_.state_dict()`` of a trained ClusterNet of the same sizes. Training starts from them.
    pretrain_steps : int, default=2000
        Steps of the training on simulated raters, where nothing else was trained.
    device : str, default="cpu"
    random_state : int, RandomState or None
        Of the training. That on demand has a fixed seed: the same plot is always grouped alike.

    Attributes
    ----------
    network_ : PointNet2Segmenter
    labels_ : array, (n,)
        Group of each point of the cloud given to fit, in the order of their first appearance; -1 = none.
    n_clusters_ : int
    confidences_ : array, (n,)
        Probability of the most probable slot.
    history_ : list of dict
        Of the training, one row an epoch.
    loss_curve_ : list of float
    n_features_in_ : int
        2.

    Notes
    -----
    Answers do not change when the plot is moved or enlarged; stretching one axis changes what people see, and may.
    Rows of more columns are first projected, for instance by PCA or t-SNE: what is grouped is that picture.
    Points that are all the same are one group to the eye; a cloud may also turn out to be noise altogether, with
    ``n_clusters_ = 0``.

    References
    ----------
    Hartwig et al., arXiv:2304.14185. Steps are numbered as they run: normalising and views (1), network (2), losses
    (3), agreement (4), labels (5), raters (6, 7: :mod:`models.discover.raters`).

    Examples
    --------
    >>> plots = [simulate_raters(40, 2, random_state=seed) for seed in range(4)]
    >>> method = ClusterNet(epochs=1, n_points=64, random_state=0)
    >>> method = method.fit([cloud for cloud, _ in plots], [ratings for _, ratings in plots])
    >>> method.fit_predict(plots[0][0]).shape, method.predict_proba(plots[0][0]).shape
    ((40,), (40, 17))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "max_clusters": [Interval(Integral, 1, None, closed="left")],
        "n_points": [Interval(Integral, FEWEST_POINTS, None, closed="left")],
        "noise": ["boolean"],
        "widths": [StrOptions({"small", "paper"})],
        "radius": ["array-like"],
        "nsample": ["array-like"],
        "centres": ["array-like"],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "pair_samples": [Interval(Integral, 1, None, closed="left"), None],
        "agreement_head": ["boolean"],
        "weights": [dict, None],
        "pretrain_steps": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        max_clusters: int = 16,
        n_points: int = 512,
        noise: bool = True,
        widths: Literal["small", "paper"] = "small",
        radius: tuple[float, float] = (0.2, 0.4),
        nsample: tuple[int, int] = (16, 32),
        centres: tuple[float, float] = (1 / 4, 1 / 16),
        epochs: int = 100,
        batch_size: int = 16,
        lr: float = 1e-3,
        pair_samples: int | None = None,
        agreement_head: bool = False,
        weights: Mapping[str, Tensor] | None = None,
        pretrain_steps: int = 2000,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.max_clusters = max_clusters
        self.n_points = n_points
        self.noise = noise
        self.widths = widths
        self.radius = radius
        self.nsample = nsample
        self.centres = centres
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.pair_samples = pair_samples
        self.agreement_head = agreement_head
        self.weights = weights
        self.pretrain_steps = pretrain_steps
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Sequence[ArrayLike], y: Any = None) -> ClusterNet:
        """Group the points of one cloud, or train on several with their ratings.

        Parameters
        ----------
        X : array (n, 2), or list of arrays (n_i, 2)
            One cloud, or the clouds that were rated.
        y : list of int arrays (r_i, n_i)
            The ratings of each cloud, -1 = in no group. With one cloud `y` is not used.

        Raises
        ------
        ValueError
            For clouds without two columns, of fewer than 8 points, or with entries that are not finite; for ratings
            that do not fit their cloud or show more groups than `max_clusters`; for `weights` of another network.
        """
        self._validate_params()
        self.n_features_in_ = 2
        if _several(X):
            self._train_on(X, y)  # type: ignore[arg-type]
            return self
        cloud = _cloud(X)  # type: ignore[arg-type]
        with isolated_seed(self.random_state):
            self.network_ = self._ready()
        p = self._probabilities(cloud)
        self.labels_ = self._labels(cloud, p)
        self.n_clusters_ = int(self.labels_.max(initial=UNLABELLED)) + 1
        self.confidences_ = p.max(axis=1)
        return self

    def fit_predict(self, X: ArrayLike, y: Any = None) -> Labels:
        """Group the points of one cloud (n, 2): labels (n,) from 0, -1 = in no group. See :meth:`fit`."""
        if _several(X):
            raise ValueError("fit_predict groups one cloud X shaped (n, 2). Train on several with fit(X, ratings).")
        return self.fit(X).labels_

    def fit_synthetic(
        self,
        n_steps: int = 2000,
        *,
        sizes: tuple[int, int] | None = None,
        n_raters: int = 5,
        noise: float = 0.15,
    ) -> ClusterNet:
        """Train on new simulated plots at every step.

        Parameters
        ----------
        n_steps : int
        sizes : pair of int, optional
            Fewest and most points of a plot; those of one step are alike. By default an eighth of `n_points` to all.
        n_raters, noise : int, float
            As in :func:`~models.discover.raters.simulate_raters`.

        Raises
        ------
        ValueError
            For no step, or `sizes` that descend or are below 16.
        """
        self._validate_params()
        self.n_features_in_ = 2
        fewest = max(16, self.n_points // 8)
        low, high = sizes or (fewest, max(fewest, self.n_points))
        if n_steps < 1 or low > high:
            raise ValueError(
                f"Training takes at least one step and sizes=(fewest, most), got n_steps={n_steps} and {(low, high)}."
            )

        def draw(index: Tensor, rng: np.random.Generator) -> list[tuple[Points, Labels]]:
            n = round(np.exp(rng.uniform(np.log(low), np.log(high))))
            plots = [simulate_raters(n, n_raters, noise, rng) for _ in index]
            return [(normalised(cloud), ratings) for cloud, ratings in plots]

        epochs = max(1, round(n_steps / STEPS_AN_EPOCH))
        steps = [len(part) for part in np.array_split(np.arange(n_steps), epochs)]
        batch = torch.arange(self.batch_size)
        return self._train(
            draw,
            batch,
            epochs=epochs,
            lr=SYNTHETIC_LR,
            batches=lambda epoch: [batch] * steps[epoch],
            label="clusternet on simulated raters",
        )

    def predict(self, X: ArrayLike) -> Labels:
        """Group of each point of one cloud (n, 2): labels (n,) from 0, -1 = in no group."""
        cloud = self._seen(X)
        return self._labels(cloud, self._probabilities(cloud))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities of the slots, (n, max_clusters + 1); the last is that of no group (absent without `noise`)."""
        return self._probabilities(self._seen(X))

    def predict_agreement(self, X: ArrayLike) -> NDArray[np.float32]:
        """How alike raters would treat each point, (n,), from 0 to 1.

        Raises
        ------
        ValueError
            If the network was made without ``agreement_head``.
        """
        cloud = self._seen(X)
        if not self.agreement_head:
            raise ValueError("This ClusterNet has not learnt agreement. Train one with agreement_head=True.")
        return self._answers(cloud)[:, -1].sigmoid().numpy()

    # ---- one cloud -------------------------------------------------------------------------------------

    def _seen(self, X: ArrayLike) -> Points:
        check_is_fitted(self, "network_")
        return _cloud(X)

    def _answers(self, cloud: Points) -> Tensor:
        """Logits (n, outputs); points the network did not look at have the mean of their three nearest."""
        points = normalised(cloud)
        kept = np.arange(len(points)) if len(points) <= self.n_points else sample(points, self.n_points)
        network = self.network_.to(self.device).eval()
        with torch.inference_mode():
            logits = network(torch.from_numpy(points[kept]).float()[None].to(self.device))[0].cpu()
        network.cpu()
        if len(kept) == len(points):
            return logits.clone()
        rest = np.setdiff1d(np.arange(len(points)), kept)
        _, near = cKDTree(points[kept]).query(points[rest], k=3)
        whole = torch.empty(len(points), logits.shape[1])
        whole[kept] = logits
        whole[rest] = logits[near].mean(dim=1)
        return whole

    def _slots(self, logits: Tensor) -> Tensor:
        """Step 2: probabilities (..., K + 1), or K without noise."""
        return logits[..., : self.max_clusters + int(self.noise)].softmax(dim=-1)

    def _probabilities(self, cloud: Points) -> NDArray[np.float32]:
        return self._slots(self._answers(cloud)).numpy()

    def _labels(self, cloud: Points, p: NDArray[np.float32]) -> Labels:
        """Step 5."""
        labels = p.argmax(axis=1).astype(np.int64)
        labels[labels == self.max_clusters] = UNLABELLED
        return by_first_appearance(merge_small_slots(normalised(cloud), labels, p))

    # ---- the network -----------------------------------------------------------------------------------

    def _ready(self) -> PointNet2Segmenter:
        """The network that groups a cloud given to fit: of `weights`, of an earlier training, or of simulation."""
        if self.weights is not None:
            return self._new_network().eval()
        held: PointNet2Segmenter | None = getattr(self, "network_", None)
        if held is not None and held.architecture == self._new_network().architecture:
            return held
        settings = self.get_params(deep=False)
        settings |= {name: tuple(settings[name]) for name in ("radius", "nsample", "centres")}
        for name in ("weights", "random_state", "epochs", "lr"):
            settings.pop(name)
        return copy.deepcopy(_trained_on_simulation(**settings))

    def _new_network(self) -> PointNet2Segmenter:
        pairs = {name: tuple(getattr(self, name)) for name in ("radius", "nsample", "centres")}
        for name, pair in pairs.items():
            if len(pair) != 2 or not all(value > 0 for value in pair):
                raise ValueError(f"{name} must be two positive numbers, got {pair}.")
        if not all(isinstance(count, Integral) for count in pairs["nsample"]):
            raise ValueError(f"nsample must be two positive whole numbers, got {pairs['nsample']}.")
        outputs = self.max_clusters + int(self.noise) + int(self.agreement_head)
        network = PointNet2Segmenter(n_outputs=outputs, widths=self.widths, **pairs)
        if self.weights is not None:
            try:
                network.load_state_dict(dict(self.weights))
            except RuntimeError as error:
                raise ValueError(
                    f"weights are not those of this network: {error}. Give max_clusters, noise, widths and "
                    "agreement_head as in the training they come from."
                ) from error
        return network

    def _train_on(self, clouds: Sequence[ArrayLike], ratings: Sequence[ArrayLike] | None) -> None:
        if not len(clouds):
            raise ValueError("X must hold at least one cloud, got an empty list of them.")
        if ratings is None or len(ratings) != len(clouds):
            raise ValueError(
                f"y must hold the ratings of each of the {len(clouds)} clouds of X, got "
                f"{'none' if ratings is None else len(ratings)}."
            )
        cloud_name = "X[{}]".format
        points = [normalised(_cloud(cloud, cloud_name(i))) for i, cloud in enumerate(clouds)]
        rated = [self._rating(rating, len(points[i]), i) for i, rating in enumerate(ratings)]

        def draw(index: Tensor, rng: np.random.Generator) -> list[tuple[Points, Labels]]:
            return [(points[i], rated[i]) for i in index.tolist()]

        self._train(draw, torch.arange(len(points)), epochs=self.epochs, lr=self.lr, label="clusternet")

    def _rating(self, rating: ArrayLike, n: int, i: int) -> Labels:
        given = np.atleast_2d(np.asarray(rating))
        if given.dtype.kind not in "iu" or given.shape[1:] != (n,) or not len(given) or given.min() < UNLABELLED:
            raise ValueError(
                f"y[{i}] must hold int ratings shaped (raters, {n}), -1 = in no group, got {given.dtype} shaped "
                f"{given.shape}."
            )
        most = max(len(np.unique(row[row >= 0])) for row in given)
        if most > self.max_clusters:
            raise ValueError(f"y[{i}] shows {most} groups, more than max_clusters={self.max_clusters}. Raise it.")
        return given.astype(np.int64)

    def _train(
        self,
        draw: Draw,
        rows: Tensor,
        *,
        epochs: int,
        lr: float,
        label: str,
        batches: Callable[[int], Iterable[Tensor]] | None = None,
    ) -> ClusterNet:
        with isolated_seed(self.random_state) as seed:
            network = self._new_network()
            trainer = ClusterNetTrainer(
                network,
                self,
                draw,
                seed,
                epochs=epochs,
                batch_size=min(self.batch_size, len(rows)),
                optimizer=adam(lr),
                schedule=cosine,
                batches=batches,
                label=label,
                device=self.device,
            )
            trainer.fit(rows)
        self.network_ = network.cpu().eval()
        self.history_ = trainer.history
        self.loss_curve_ = [row["loss"] for row in trainer.history]
        for name in ("labels_", "n_clusters_", "confidences_"):
            self.__dict__.pop(name, None)
        return self


@cache
def _trained_on_simulation(pretrain_steps: int, **settings: Any) -> PointNet2Segmenter:
    """The network of these settings trained on simulated raters, once a process."""
    LOG.info("No weights were given: training on simulated raters for %d steps, once.", pretrain_steps)
    return ClusterNet(**settings, random_state=SIMULATED_SEED).fit_synthetic(pretrain_steps).network_


def _several(X: Any) -> bool:
    """Whether X is a list of clouds, not one."""
    return (isinstance(X, (list, tuple)) and len(X) > 0 and np.ndim(X[0]) == 2) or (
        not isinstance(X, (list, tuple)) and np.ndim(X) == 3
    )


def _cloud(X: ArrayLike, name: str = "X") -> Points:
    points = check_embeddings(X, name=name, minimum=FEWEST_POINTS)
    if points.shape[1] != 2:
        raise ValueError(
            f"{name} must be points in the plane shaped (n, 2), got {points.shape}. Project the rows first, for "
            "instance by PCA or t-SNE."
        )
    return points

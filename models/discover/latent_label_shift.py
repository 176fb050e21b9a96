"""DDFA: classes found because their members rise and fall together over several sources of unlabelled data.

Discriminate, discretize, factorize, adjust: a classifier tells the source of a row, its answers are cut into cells, the
shares of the cells in the sources are factorised into classes and their mix in each source, and the mix turns the
classifier's answer about sources into one about classes.

M. Roberts, P. Mani, S. Garg and Z. C. Lipton, "Unsupervised Learning under Latent Label Shift", NeurIPS 2022,
arXiv:2207.13179.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar, nnls
from sklearn.base import BaseEstimator, clone
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.base import check_labels, check_samples, isolated_seed, predict_in_batches
from models.networks.heads import SplitClassifier
from models.networks.mlp import MLPEncoder
from models.registry import register
from models.training import EarlyStopping, Row, Trainer, adam

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
HIDDEN_WIDTH = 100
ILL_CONDITIONED = 50.0
RANK_TOLERANCE = 1e-6

# Discretize and factorize (steps 3 and 4) --------------------------------------------------------------------------


def cell_shares(cells: Labels, domains: Labels, n_cells: int, n_domains: int) -> Matrix:
    """B_jd: fraction of the rows of source d in cell j, (m, r); columns sum to one."""
    counts = np.zeros((n_cells, n_domains))
    np.add.at(counts, (cells, domains), 1.0)
    return counts / counts.sum(axis=0)


def successive_projection(rows: Matrix, k: int) -> Labels:
    """The k extreme rows: again and again the longest, after which all are projected onto its complement.

    Raises
    ------
    ValueError
        If the rows span fewer than k dimensions.
    """
    left = rows.copy()
    chosen: list[int] = []
    for _ in range(k):
        lengths = np.linalg.norm(left, axis=1)
        longest = int(lengths.argmax())
        if lengths[longest] < RANK_TOLERANCE:
            raise _rank_error(len(chosen), k)
        chosen.append(longest)
        direction = left[longest] / lengths[longest]
        left -= np.outer(left @ direction, direction)
    return np.array(chosen)


def _rank_error(rank: int, k: int) -> ValueError:
    return ValueError(
        f"The sources differ in {rank} direction(s) only, and n_classes={k} need as many. "
        "Ask for fewer classes, or add sources whose mix of classes differs."
    )


def anchor_priors(shares: Matrix, cell_sizes: Matrix, k: int, min_cluster_frac: float) -> Matrix:
    """Step 4, "anchor": P_dy, the mix of each source, (r, k), by separable factorisation of `shares` (m, r).

    The rows of `shares`, scaled to sum to one, are convex combinations of q(d|y), which are the rows of cells where one
    class occurs alone; cells with less than `min_cluster_frac` of all rows are too uncertain to be taken for such.
    """
    large = cell_sizes >= min_cluster_frac
    if large.sum() < k:
        raise ValueError(
            f"Only {large.sum()} cells hold min_cluster_frac={min_cluster_frac:g} of the rows or more, and "
            f"n_classes={k} need one each. Lower min_cluster_frac or n_clusters."
        )
    directions = shares[large] / shares[large].sum(axis=1, keepdims=True)
    class_domain = directions[successive_projection(directions, k)]
    r = shares.shape[1]
    masses = nnls(class_domain.T, np.full(r, 1 / r))[0]
    return as_mixes(class_domain.T * masses)


def nmf_priors(shares: Matrix, k: int, n_restarts: int, random: np.random.RandomState) -> Matrix:
    """Step 4, "nmf": the published factorisation from random starts, that of the smallest error; (r, k)."""
    best, error = np.empty((0, k)), np.inf
    for _ in range(n_restarts):
        model = NMF(k, init="random", max_iter=2000, tol=1e-6, random_state=random.randint(2**31 - 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mix = model.fit_transform(shares.T)
        if model.reconstruction_err_ < error:
            best, error = mix * model.components_.sum(axis=1), model.reconstruction_err_
    return as_mixes(best)


def as_mixes(masses: Matrix) -> Matrix:
    """Masses of the classes in each source, (r, k), scaled to shares.

    Raises
    ------
    ValueError
        If a source has none.
    """
    totals = masses.sum(axis=1, keepdims=True)
    if not (totals > 0).all():
        raise ValueError(
            f"No class occurs in source(s) {np.flatnonzero(totals[:, 0] <= 0).tolist()}: none of the cells taken for "
            "classes holds rows of them. Ask for fewer cells (n_clusters) or larger ones (min_cluster_frac)."
        )
    return masses / totals


def reconstruction_error(shares: Matrix, priors: Matrix) -> float:
    """Frobenius norm of B - C P for the non-negative C that fits P best."""
    return float(np.sqrt(sum(nnls(priors, row)[1] ** 2 for row in shares)))


# Adjust (step 5) ---------------------------------------------------------------------------------------------------


def domains_of_classes(priors: Matrix) -> Matrix:
    """A_dy = q(d|y) = P_yd / sum_d' P_yd', (r, k)."""
    return priors / np.maximum(priors.sum(axis=0), 1e-300)


def class_scores(domain_probabilities: Matrix, class_domain: Matrix, adjust: str = "pinv") -> Matrix:
    """Balanced q(y|x) from q(d|x), (n, r) -> (n, k): by the pseudo-inverse of A, or non-negative least squares."""
    if adjust == "pinv":
        return domain_probabilities @ np.linalg.pinv(class_domain).T
    solved = np.array([nnls(class_domain, row)[0] for row in domain_probabilities])
    return solved / np.maximum(solved.sum(axis=1, keepdims=True), 1e-300)


def to_probabilities(scores: Matrix) -> Matrix:
    """Negative scores clipped, rows scaled to sum to one; uniform where nothing is left."""
    clipped = np.maximum(scores, 0.0)
    total = clipped.sum(axis=1, keepdims=True)
    return np.where(total > 0, clipped / np.where(total > 0, total, 1.0), 1 / scores.shape[1])


# Discriminate (steps 1 and 2) --------------------------------------------------------------------------------------


class DomainTrainer(Trainer):
    """Cross-entropy of the source on batches that hold all sources alike; notes the loss on held-out rows."""

    def __init__(
        self, network: nn.Module, held_out: tuple[Tensor, Tensor], weights: Tensor, gamma: float, **parameters: Any
    ) -> None:
        stopping = EarlyStopping("val_loss", patience=parameters["epochs"])
        super().__init__(network, hooks=[stopping], schedule=self.decayed, batches=self.balanced, **parameters)
        self.held_out, self.weights, self.gamma = held_out, weights, gamma

    def decayed(self, step: int, total: int) -> float:
        """Gamma to the power of the epoch."""
        return self.gamma**self.epoch

    def balanced(self, epoch: int) -> Iterator[Tensor]:
        """As many draws as rows, with replacement, each source equally likely."""
        generator = torch.Generator().manual_seed(self.generator.initial_seed() + epoch)
        drawn = torch.multinomial(self.weights, len(self.weights), replacement=True, generator=generator)
        return (index for index in drawn.split(self.batch_size) if len(index) > 1 or len(drawn) == 1)

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Cross-entropy."""
        x, domains = batch
        return F.cross_entropy(self.network(x), domains), {}

    def after_epoch(self, row: Row) -> None:
        """Held-out loss, sources weighing alike."""
        rows, domains = self.held_out
        logits = predict_in_batches(self.plain_network, rows, device=self.device)
        losses = F.cross_entropy(logits, domains, reduction="none")
        weights = 1.0 / torch.bincount(domains).double()[domains]
        row["val_loss"] = float((losses * weights).sum() / weights.sum())


def best_temperature(log_probabilities: Matrix, domains: Labels) -> float:
    """The temperature that makes held-out rows likeliest, sources weighing alike."""
    logits = torch.from_numpy(log_probabilities)
    target = torch.from_numpy(domains)
    weights = 1.0 / torch.bincount(target).double()[target]

    def loss(log_temperature: float) -> float:
        losses = F.cross_entropy(logits / np.exp(log_temperature), target, reduction="none")
        return float((losses * weights).sum() / weights.sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


class Shifted(NamedTuple):
    """Rows drawn from a labelled pool: their indices, the source of each, and the class mix of each source (r, k)."""

    rows: Labels
    domains: Labels
    priors: Matrix


def simulate_label_shift(
    y: ArrayLike,
    n_domains: int,
    alpha: float,
    max_cond: float,
    per_domain: int,
    random_state: int | np.random.RandomState | None = None,
) -> Shifted:
    """Sources with Dirichlet class mixes, drawn from labelled rows without taking one twice.

    Parameters
    ----------
    y : int array, (n,)
        Classes 0..k - 1.
    n_domains : int
    alpha : float
        Mixes are Dirichlet(alpha / k), entries below 1e-7 set to 0; small values shift strongly.
    max_cond : float
        Mixes are redrawn until their condition number is at most this.
    per_domain : int
        Rows of each source.

    Raises
    ------
    ValueError
        If no mix of 10,000 is conditioned so well, a class has too few rows, or a number is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> drawn = simulate_label_shift(np.arange(600) % 3, 4, alpha=3.0, max_cond=8, per_domain=50, random_state=0)
    >>> drawn.rows.shape, drawn.priors.shape
    ((200,), (4, 3))
    """
    labels = check_labels(y, len(np.asarray(y)), allow_unlabelled=False)
    random = check_random_state(random_state)
    k = int(labels.max()) + 1
    if min(n_domains, alpha, per_domain) <= 0:
        raise ValueError(
            f"n_domains, alpha and per_domain must be positive, got {n_domains}, {alpha} and {per_domain}."
        )
    for _ in range(10_000):
        priors = random.dirichlet(np.full(k, alpha / k), size=n_domains)
        priors[priors < 1e-7] = 0.0
        if np.isfinite(priors).all() and np.linalg.cond(priors) <= max_cond:  # a tiny alpha draws NaN
            break
    else:
        raise ValueError(f"No mix of 10,000 had a condition number up to max_cond={max_cond}. Raise it.")
    priors /= priors.sum(axis=1, keepdims=True)
    counts = np.array([random.multinomial(per_domain, mix) for mix in priors])
    pools = [random.permutation(np.flatnonzero(labels == c)) for c in range(k)]
    for c, pool in enumerate(pools):
        if counts[:, c].sum() > len(pool):
            raise ValueError(f"Class {c} of y has {len(pool)} rows and {counts[:, c].sum()} are asked of it.")
    parts = [pool[: counts[:, c].sum()] for c, pool in enumerate(pools)]
    domains = [np.repeat(np.arange(n_domains), counts[:, c]) for c in range(k)]
    return Shifted(np.concatenate(parts), np.concatenate(domains), priors)


@register(
    "latent-label-shift",
    stage="discover",
    summary="Finds classes in unlabelled data from several sources by the way their shares vary together",
    paper="Unsupervised Learning under Latent Label Shift",
    year=2022,
    link="https://arxiv.org/abs/2207.13179",
    licence="CC BY-NC 4.0",
    accepts=("table", "embedding", "image"),
)
class DDFA(BaseEstimator):
    """Classes, and their mix in each source, from rows whose source alone is known.

    Parameters
    ----------
    n_classes : int, default=2
        At most the number of sources.
    discriminator : {"mlp", "logistic"}, callable or classifier, default="mlp"
        "mlp": one hidden layer of 100. A callable takes the number of sources and gives an nn.Module with as many
        logits, which is trained as "mlp" is. A scikit-learn classifier with ``predict_proba`` is cloned and fitted, or,
        when fitted already, used as it is; either way its answers are divided by the sources' frequencies.
    n_clusters : int, optional
        Cells; when None, one a class for "anchor", whose anchors are surest in large cells, and three a class for
        "nmf", as published for discriminators trained from scratch.
    factorizer : {"anchor", "nmf"}, default="anchor"
        "nmf" is published. With as many cells as classes any factorisation is exact and it returns an arbitrary one;
        "anchor" follows the theorem that identifies the classes.
    n_restarts : int, default=20
        Random starts of "nmf".
    min_cluster_frac : float, default=0.01
        Share of the rows that makes a cell a candidate anchor.
    adjust : {"pinv", "nnls"}, default="pinv"
    calibrate : bool, default=True
        Scale the discriminator's logits by one temperature, found on held-out rows.
    val_fraction : float, default=0.2
        Share of each source held out of the discriminator's training.
    epochs : int, default=100
    lr : float, default=1e-3
        Of Adam.
    lr_gamma : float, default=0.97
        Factor on the learning rate after each epoch.
    batch_size : int, default=32
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    labels_ : int array, (n,)
        Class of each row given its source, 0..n_classes - 1 in an order that means nothing.
    n_clusters_ : int
        ``n_classes``.
    confidences_ : array, (n,)
        Probability of that class.
    priors_ : array, (r, n_classes)
        Class mix of each source.
    class_domain_ : array, (n_classes, r)
        q(d|y): where a class comes from, were all sources equally large.
    cluster_centers_ : array, (cells, r)
        Of the cells, in the simplex of sources.
    domain_counts_ : int array, (r,)
    discriminator_ : nn.Module or classifier
    temperature_ : float
    reconstruction_err_ : float
    condition_number_ : float
        Of `priors_`: how alike the mixes are.
    history_ : list of dict
        ``loss`` and ``val_loss`` of each epoch; empty for a classifier of scikit-learn.
    n_features_in_ : int
    sample_shape_ : tuple of int

    Notes
    -----
    Assumes that a class looks the same in every source, that the mixes have as many independent directions as there
    are classes, and that each class has rows no other class resembles. Class numbers are arbitrary: never compare them
    across fits.

    References
    ----------
    Roberts et al., 2022, algorithms 1 and 2. Successive projection: Gillis and Vavasis, IEEE TPAMI 36(4), 2014.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> classes = np.concatenate([rng.random(200) < share for share in (0.2, 0.8)]).astype(int)
    >>> X = classes[:, None] * 6.0 + rng.normal(size=(400, 1))
    >>> found = DDFA(2, "logistic", random_state=0).fit(X, np.repeat([0, 1], 200))
    >>> bool((np.abs(np.sort(found.priors_) - [0.2, 0.8]) < 0.1).all())
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_classes": [Interval(Integral, 2, None, closed="left")],
        "discriminator": [StrOptions({"mlp", "logistic"}), callable, HasMethods(["fit", "predict_proba"])],
        "n_clusters": [Interval(Integral, 1, None, closed="left"), None],
        "factorizer": [StrOptions({"anchor", "nmf"})],
        "n_restarts": [Interval(Integral, 1, None, closed="left")],
        "min_cluster_frac": [Interval(Real, 0, 1, closed="left")],
        "adjust": [StrOptions({"pinv", "nnls"})],
        "calibrate": ["boolean"],
        "val_fraction": [Interval(Real, 0, 1, closed="neither")],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "lr_gamma": [Interval(Real, 0, 1, closed="right")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_classes: int = 2,
        discriminator: Literal["mlp", "logistic"] | Callable[[int], nn.Module] | BaseEstimator = "mlp",
        n_clusters: int | None = None,
        factorizer: Literal["anchor", "nmf"] = "anchor",
        n_restarts: int = 20,
        min_cluster_frac: float = 0.01,
        adjust: Literal["pinv", "nnls"] = "pinv",
        calibrate: bool = True,
        val_fraction: float = 0.2,
        epochs: int = 100,
        lr: float = 1e-3,
        lr_gamma: float = 0.97,
        batch_size: int = 32,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_classes = n_classes
        self.discriminator = discriminator
        self.n_clusters = n_clusters
        self.factorizer = factorizer
        self.n_restarts = n_restarts
        self.min_cluster_frac = min_cluster_frac
        self.adjust = adjust
        self.calibrate = calibrate
        self.val_fraction = val_fraction
        self.epochs = epochs
        self.lr = lr
        self.lr_gamma = lr_gamma
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, domains: ArrayLike | Tensor | None = None) -> DDFA:
        """Find the classes and their mix in each source.

        Parameters
        ----------
        X : array or tensor, (n, d), (n, H, W) or (n, C, H, W)
        domains : int array, (n,)
            Source of each row, 0..r - 1.

        Raises
        ------
        ValueError
            Without domains, for malformed X, fewer sources than classes, a source of fewer than two rows, fewer cells
            than classes, sources whose mixes do not differ in as many directions as there are classes or in which no
            class occurs, or a discriminator that answers for other sources.

        Warns
        -----
        UserWarning
            If the mixes are so alike (condition number above 50) that the classes are guesswork.
        """
        self._validate_params()
        rows = check_samples(self, X, reset=True)
        sources = self._sources(domains, len(rows))
        with isolated_seed(self.random_state) as seed:
            random = np.random.RandomState(seed % 2**32)
            self._discriminate(rows, sources, random)
            found = self._domains(rows)
            self._factorize(self._cells(found, random), sources, random)
        self.n_clusters_ = self.n_classes
        scores = self._scores(found, sources)
        self.labels_ = scores.argmax(axis=1).astype(np.int64)
        self.confidences_ = to_probabilities(scores).max(axis=1)
        return self

    def fit_predict(self, X: ArrayLike | Tensor, domains: ArrayLike | Tensor | None = None) -> Labels:
        """Fit and return ``labels_``."""
        return self.fit(X, domains).labels_

    def score_domain(self, X: ArrayLike | Tensor) -> Matrix:
        """q(d|x): probability of each source, were all equally large, (n, r)."""
        check_is_fitted(self, "discriminator_")
        return self._domains(check_samples(self, X, reset=False))

    def _domains(self, rows: Tensor) -> Matrix:
        logits = self._log_probabilities(rows) / self.temperature_
        return torch.softmax(torch.from_numpy(logits), dim=1).numpy()

    def predict_proba(self, X: ArrayLike | Tensor, domains: ArrayLike | Tensor | None = None) -> Matrix:
        """Probability of each class given source and row, or, without `domains`, in the mean over sources."""
        return to_probabilities(self._checked_scores(X, domains))

    def predict(self, X: ArrayLike | Tensor, domains: ArrayLike | Tensor | None = None) -> Labels:
        """Class of each row, given its source where `domains` names it."""
        return self._checked_scores(X, domains).argmax(axis=1).astype(np.int64)

    def _checked_scores(self, X: ArrayLike | Tensor, domains: ArrayLike | Tensor | None) -> Matrix:
        check_is_fitted(self, "priors_")
        found = self.score_domain(X)
        sources = None
        if domains is not None:
            r = len(self.domain_counts_)
            sources = check_labels(
                domains, len(found), n_classes=r, allow_unlabelled=False, minimum_classes=1, name="domains"
            )
        return self._scores(found, sources)

    def _scores(self, found: Matrix, sources: Labels | None) -> Matrix:
        scores = class_scores(found, self.class_domain_.T, self.adjust)
        return scores if sources is None else scores * self.class_domain_.T[sources]

    def _sources(self, domains: ArrayLike | Tensor | None, n: int) -> Labels:
        if domains is None:
            raise ValueError(
                "domains must tell the source of each row. "
                "Expected array-like (array or non-string sequence), got None."
            )
        sources = check_labels(domains, n, allow_unlabelled=False, minimum_classes=1, name="domains")
        self.domain_counts_ = np.bincount(sources)
        r = len(self.domain_counts_)
        if r < self.n_classes:
            raise ValueError(
                f"domains names {r} source(s), and n_classes={self.n_classes} need at least as many (n_samples={n}). "
                "Ask for fewer classes."
            )
        if self.domain_counts_.min() < 2:
            scarce = np.flatnonzero(self.domain_counts_ < 2)
            raise ValueError(f"domains must name each of 0..{r - 1} at least twice; {scarce.tolist()} do not occur so.")
        if self.n_clusters is not None and self.n_clusters < self.n_classes:
            raise ValueError(f"n_clusters={self.n_clusters} cells are fewer than n_classes={self.n_classes}.")
        return sources

    def _discriminate(self, rows: Tensor, sources: Labels, random: np.random.RandomState) -> None:
        """Steps 1 and 2."""
        held = self._held_out(sources, random)
        self.history_: list[Row] = []
        self.temperature_ = 1.0
        given: Any = LogisticRegression(max_iter=1000) if self.discriminator == "logistic" else self.discriminator
        self._frequencies = np.ones(len(self.domain_counts_))
        if hasattr(given, "predict_proba"):
            as_it_is = _is_fitted(given)
            counted = sources if as_it_is else sources[~held]
            self._frequencies = np.bincount(counted) / len(counted)
            flat = rows.flatten(1).double().numpy()
            self.discriminator_: Any = (
                copy.deepcopy(given) if as_it_is else _seeded(given, random).fit(flat[~held], sources[~held])
            )
            _check_sources(self.discriminator_, self.discriminator_.predict_proba(flat[:1]), len(self.domain_counts_))
        else:
            self._train(rows, sources, held, random)
        if self.calibrate:
            self.temperature_ = best_temperature(self._log_probabilities(rows[torch.from_numpy(held)]), sources[held])

    def _held_out(self, sources: Labels, random: np.random.RandomState) -> NDArray[np.bool_]:
        """Rows of each source kept from training, at least one of each."""
        held = np.zeros(len(sources), dtype=bool)
        for d, count in enumerate(self.domain_counts_):
            size = min(max(1, round(self.val_fraction * count)), count - 1)
            held[random.permutation(np.flatnonzero(sources == d))[:size]] = True
        return held

    def _train(self, rows: Tensor, sources: Labels, held: NDArray[np.bool_], random: np.random.RandomState) -> None:
        r = len(self.domain_counts_)
        if callable(self.discriminator):
            network = _made(self.discriminator, r)
            _check_sources(network, predict_in_batches(network, rows[:1]), r)
        else:
            encoder = MLPEncoder(rows[0].numel(), (HIDDEN_WIDTH,), batch_norm=False)
            network = SplitClassifier(encoder, r, embedding_dim=None)
        target, mask = torch.from_numpy(sources), torch.from_numpy(held)
        trainer = DomainTrainer(
            network,
            (rows[mask], target[mask]),
            (1.0 / torch.bincount(target[~mask]).double())[target[~mask]],
            self.lr_gamma,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=adam(self.lr),
            label="ddfa",
            seed=random.randint(2**31 - 1),
            device=self.device,
        )
        self.history_ = trainer.fit(rows[~mask], target[~mask]).history
        self.discriminator_ = network.cpu().eval()

    def _log_probabilities(self, rows: Tensor) -> Matrix:
        """Log of q(d|x) before calibration."""
        if isinstance(self.discriminator_, nn.Module):
            return torch.log_softmax(predict_in_batches(self.discriminator_, rows).double(), dim=1).numpy()
        found = np.log(np.maximum(self.discriminator_.predict_proba(rows.flatten(1).double().numpy()), 1e-300))
        return np.asarray(found - np.log(self._frequencies), dtype=np.float64)

    def _cells(self, found: Matrix, random: np.random.RandomState) -> Labels:
        """Step 3."""
        distinct = len(np.unique(found.round(9), axis=0))
        if distinct < self.n_classes:
            raise _rank_error(distinct - 1, self.n_classes)
        wanted = self.n_clusters or self.n_classes * (1 if self.factorizer == "anchor" else 3)
        model = KMeans(min(wanted, distinct), n_init=5, max_iter=100, random_state=random.randint(2**31 - 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # answers may be all but equal: fewer cells then
            held, cells = np.unique(model.fit(found).labels_, return_inverse=True)
        self.cluster_centers_ = model.cluster_centers_[held]
        return cells.astype(np.int64)

    def _factorize(self, cells: Labels, sources: Labels, random: np.random.RandomState) -> None:
        """Step 4."""
        m, r = self.cluster_centers_.shape
        shares = cell_shares(cells, sources, m, r)
        if self.factorizer == "anchor":
            sizes = np.bincount(cells, minlength=m) / len(cells)
            self.priors_ = anchor_priors(shares, sizes, self.n_classes, self.min_cluster_frac)
        else:
            self.priors_ = nmf_priors(shares, self.n_classes, self.n_restarts, random)
        rank = int(np.linalg.matrix_rank(self.priors_, tol=RANK_TOLERANCE))
        if rank < self.n_classes:
            raise _rank_error(rank, self.n_classes)
        self.class_domain_ = domains_of_classes(self.priors_).T
        self.reconstruction_err_ = reconstruction_error(shares, self.priors_)
        self.condition_number_ = float(np.linalg.cond(self.priors_))
        if self.condition_number_ > ILL_CONDITIONED:
            warnings.warn(
                f"The class mixes of the sources are nearly alike (condition number {self.condition_number_:.0f}): "
                "small errors of the discriminator change the classes. Add other sources or ask for fewer classes.",
                UserWarning,
                stacklevel=3,
            )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags


def _is_fitted(classifier: Any) -> bool:
    try:
        check_is_fitted(classifier)
    except NotFittedError:
        return False
    return True


def _made(discriminator: Callable[[int], Any], r: int) -> nn.Module:
    if isinstance(discriminator, nn.Module):
        raise ValueError("discriminator must be a function of the number of sources, not a network itself.")
    network = discriminator(r)
    if not isinstance(network, nn.Module):
        raise ValueError(f"The function given as discriminator must return an nn.Module, got {type(network).__name__}.")
    return network


def _check_sources(discriminator: Any, answers: Any, r: int) -> None:
    """Refuse a discriminator of other sources, or of the same by names that put its columns in another order."""
    names = np.asarray(getattr(discriminator, "classes_", np.arange(answers.shape[1])))
    if not np.array_equal(names, np.arange(r)):
        raise ValueError(f"The discriminator answers for the sources {names.tolist()}, and domains names 0..{r - 1}.")


def _seeded(classifier: Any, random: np.random.RandomState) -> Any:
    """An unfitted copy, with a seed where it takes one and has none."""
    copied = clone(classifier)
    if copied.get_params().get("random_state", 0) is None:
        copied.set_params(random_state=random.randint(2**31 - 1))
    return copied

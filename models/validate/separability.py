"""Label-free class separability from zero-dimensional persistent homology.

N. Ghalyan, K. Gourgoulias, Y. Satsangi, S. Moran, M. Labonne and J. Sabelja, "An Unsupervised Method for
Estimating Class Separability of Datasets with Application to LLMs Fine-Tuning", arXiv:2305.15016, 2023.

A cloud of points that falls into tight groups has a minimum spanning tree of many tiny and a few long edges.
Those edges are the death times of the H0 classes of the Vietoris-Rips filtration, and one number drawn from
them follows, without a label, how separated the classes become while an encoder trains.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import calinski_harabasz_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.base import check_embeddings, check_labels, predict_in_batches, seed_from
from models.registry import register
from models.training import Hook, Row, Trainer
from models.validate.persistence import (
    NORMALISERS,
    STATISTICS,
    Floats,
    count_clusters,
    h0_persistence,
    h0_persistence_knn,
    largest_gap,
    normalised_times,
    persistence_score,
)

MINIMUM_ROWS = 10
EXACT_ROWS = 5000
"""Without subsets, clouds up to this size get the exact tree and larger ones that of their k-NN graph."""


# References the score is compared with


def fisher_ratio(X: ArrayLike, y: ArrayLike) -> float:
    """Trace of the between-class over that of the within-class scatter."""
    points = check_embeddings(X, minimum=2)
    labels = check_labels(y, len(points), allow_unlabelled=False)
    centre = points.mean(axis=0)
    between = within = 0.0
    for label in np.unique(labels):
        members = points[labels == label]
        between += len(members) * float(((members.mean(axis=0) - centre) ** 2).sum())
        within += float(((members - members.mean(axis=0)) ** 2).sum())
    return between / within if within > 0 else float("inf")


def thornton_index(X: ArrayLike, y: ArrayLike) -> float:
    """Share of points whose nearest other point is of their class (Thornton, 1998)."""
    points = check_embeddings(X, minimum=2)
    labels = check_labels(y, len(points), allow_unlabelled=False)
    nearest = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(return_distance=False)[:, 0]
    return float((labels[nearest] == labels).mean())


def cv_auc(X: ArrayLike, y: ArrayLike, folds: int = 5, random_state: int = 0) -> float:
    """Cross-validated area under the ROC curve of logistic regression (one against the rest, averaged)."""
    points = check_embeddings(X, minimum=2)
    labels = check_labels(y, len(points), allow_unlabelled=False)
    split = StratifiedKFold(folds, shuffle=True, random_state=random_state)
    scores = cross_val_score(LogisticRegression(max_iter=2000), points, labels, cv=split, scoring="roc_auc_ovr")
    return float(scores.mean())


def calinski_harabasz(X: ArrayLike, n_clusters: int, random_state: int = 0) -> float:
    """Calinski-Harabasz index of the k-means clusters: the unsupervised reference."""
    points = check_embeddings(X, minimum=3)
    return float(
        calinski_harabasz_score(points, KMeans(n_clusters, n_init=5, random_state=random_state).fit_predict(points))
    )


@register(
    "separability",
    stage="validate",
    summary="Scores, without labels, how separated the classes of an embedding are; compares checkpoints.",
    paper="An Unsupervised Method for Estimating Class Separability of Datasets with Application to LLMs Fine-Tuning",
    year=2023,
    link="https://arxiv.org/abs/2305.15016",
    licence="none published",
    accepts=("embedding", "image", "table", "text"),
)
class PersistenceSeparability(BaseEstimator):
    """Label-free separability of an embedding, scored on fixed subsets of its rows.

    The score is relative. Compare checkpoints or encoders on the same rows, never different data sets or sizes.

    Parameters
    ----------
    normalize : bool, default=True
        Divide each row by its length first; right for encoders trained with cosine losses.
    metric : str, default="euclidean"
        Any metric of :func:`scipy.spatial.distance.cdist`.
    statistic : {"mean", "median", "quantile", "entropy"}, default="mean"
    normaliser : {"max", "q99"}, default="max"
        "max" is the published choice and hostage to one outlier; "q99" suits dirty data.
    subsample : int or None, default=300
        Rows in a subset; None scores all rows at once, from the k-NN graph beyond 5000 of them.
    n_subsamples : int, default=5
        Subsets, drawn once by :meth:`fit` and used again by :meth:`score`.
    drop_duplicates : {"warn"} or bool, default="warn"
        Leave coincident rows out of each subset (True), count their zero deaths (False), or count and warn.
    random_state : int, RandomState or None
    n_jobs : int or None, default=1
        Subsets scored at once, in threads.

    Attributes
    ----------
    score_ : float
        Mean over the subsets, in [0, 1).
    score_std_ : float
        Standard deviation over the subsets; 0 when there is one.
    persistence_ : array
        Normalised death times of all subsets, sorted.
    largest_gap_ : float
        Longest over second longest death, mean over the subsets. A value far above 1 with ``estimated_clusters_``
        at 2 may be a single outlier: look before trusting the score.
    estimated_clusters_ : int
        Most frequent :func:`count_clusters` of the subsets; -1 when no gap stands out.
    subsets_ : list of array
        Row positions of each subset.
    n_features_in_ : int

    Notes
    -----
    The score reacts once the gap between classes exceeds the usual distance to the nearest neighbour. In high
    dimension with a wide spread inside the classes it can stay flat under a large shift of the means (ten-dimensional
    unit Gaussians: until about 8 standard deviations; in two dimensions it follows the Fisher ratio from about 6).
    What moves it during training is the collapse of each class on itself. A rising score is not accuracy: grouping
    by the wrong factor raises it too. Take embeddings in evaluation mode, always at the same layer.

    References
    ----------
    Ghalyan et al., arXiv:2305.15016, 2023: H0 persistence normalised by its maximum, watched during fine-tuning.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> blobs = np.repeat(np.eye(3), 20, axis=0)
    >>> tight, wide = (blobs + s * rng.normal(size=(60, 3)) for s in (0.01, 0.3))
    >>> measure = PersistenceSeparability(random_state=0).fit(wide)
    >>> measure.score(tight) > measure.score_
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "normalize": ["boolean"],
        "metric": [str],
        "statistic": [StrOptions(set(STATISTICS))],
        "normaliser": [StrOptions(set(NORMALISERS))],
        "subsample": [Interval(Integral, MINIMUM_ROWS, None, closed="left"), None],
        "n_subsamples": [Interval(Integral, 1, None, closed="left")],
        "drop_duplicates": ["boolean", StrOptions({"warn"})],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        normalize: bool = True,
        metric: str = "euclidean",
        statistic: str = "mean",
        normaliser: str = "max",
        subsample: int | None = 300,
        n_subsamples: int = 5,
        drop_duplicates: str | bool = "warn",
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = 1,
    ) -> None:
        self.normalize = normalize
        self.metric = metric
        self.statistic = statistic
        self.normaliser = normaliser
        self.subsample = subsample
        self.n_subsamples = n_subsamples
        self.drop_duplicates = drop_duplicates
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: ArrayLike | Tensor, y: object = None) -> Self:
        """Draw the subsets and score `X` on them.

        Parameters
        ----------
        X : array, (n, d)
            Embeddings, n >= 10.
        y : ignored

        Raises
        ------
        ValueError
            For fewer than 10 rows, non-finite entries, zero vectors when normalising, or a collapsed embedding.
        """
        self._validate_params()
        points = self._points(X)
        self.n_rows_, self.n_features_in_ = points.shape
        rng = np.random.default_rng(seed_from(self.random_state))
        if self.subsample is None or self.n_rows_ <= self.subsample:
            self.subsets_ = [np.arange(self.n_rows_)]
        else:
            self.subsets_ = [
                np.sort(rng.choice(self.n_rows_, self.subsample, replace=False)) for _ in range(self.n_subsamples)
            ]
        deaths = self._deaths(points)
        scores = [persistence_score(p, self.statistic, self.normaliser) for p in deaths]
        self.score_, self.score_std_ = float(np.mean(scores)), float(np.std(scores))
        self._times = [np.sort(normalised_times(p, self.normaliser)) for p in deaths]
        self.persistence_ = np.sort(np.concatenate(self._times))
        self.largest_gap_ = float(np.mean([largest_gap(p) for p in deaths]))
        guesses, counts = np.unique([count_clusters(p) for p in deaths], return_counts=True)
        self.estimated_clusters_ = int(guesses[counts.argmax()])
        return self

    def score(self, X: ArrayLike | Tensor, y: object = None) -> float:
        """Score of another embedding of the same rows, on the subsets drawn by :meth:`fit`."""
        return float(np.mean(self.subset_scores(X)))

    def subset_scores(self, X: ArrayLike | Tensor) -> Floats:
        """Score of each subset, (n_subsamples,), for another embedding of the rows seen by :meth:`fit`.

        Raises
        ------
        ValueError
            If the number of rows differs, or as :meth:`fit`.
        """
        check_is_fitted(self)
        return np.array([persistence_score(p, self.statistic, self.normaliser) for p in self.deaths(X)])

    def deaths(self, X: ArrayLike | Tensor) -> list[Floats]:
        """Death times of each subset for an embedding of the rows seen by :meth:`fit`, unnormalised."""
        check_is_fitted(self)
        points = self._points(X)
        if len(points) != self.n_rows_:
            raise ValueError(
                f"X must hold the {self.n_rows_} rows seen by fit, got {len(points)}: scores of other rows do not "
                "compare. Fit anew for another data set."
            )
        return self._deaths(points)

    def summary(self, X: ArrayLike | Tensor) -> dict[str, float]:
        """Score, its standard deviation, the largest gap and the variance of an embedding of the rows of :meth:`fit`.

        The variance is the mean squared distance to the centre, after normalisation: near 0, the encoder has all
        but collapsed and the score says nothing.
        """
        deaths = self.deaths(X)
        scores = [persistence_score(p, self.statistic, self.normaliser) for p in deaths]
        return {
            "score": float(np.mean(scores)),
            "std": float(np.std(scores)),
            "largest_gap": float(np.mean([largest_gap(p) for p in deaths])),
            "variance": float(self._points(X).var(axis=0).sum()),
        }

    def n_components_at(self, t: ArrayLike) -> Floats:
        """Betti-0 curve: connected components at the normalised scale `t`, mean over the subsets.

        Parameters
        ----------
        t : float or array
            Edges of normalised length up to `t` connect.
        """
        check_is_fitted(self)
        scale = np.asarray(t, dtype=np.float64)
        return np.mean([1 + len(p) - np.searchsorted(p, scale, side="right") for p in self._times], axis=0)

    def _points(self, X: ArrayLike | Tensor) -> Floats:
        points = check_embeddings(X, minimum=MINIMUM_ROWS)
        if (points == points[0]).all():
            raise ValueError(
                f"All {len(points)} rows of X are identical: the encoder has collapsed and there is nothing to score. "
                "Inspect the training before going on."
            )
        if not self.normalize:
            return points
        lengths = np.linalg.norm(points, axis=1, keepdims=True)
        zero = np.flatnonzero(lengths == 0)
        if len(zero):
            raise ValueError(
                f"X holds {len(zero)} zero vector(s) that cannot be normalised, at rows {zero[:10].tolist()}. "
                "Leave them out or pass normalize=False."
            )
        return points / lengths

    def _deaths(self, points: Floats) -> list[Floats]:
        def of(rows: NDArray[np.int64]) -> tuple[Floats, int]:
            chosen = points[rows]
            distinct = np.unique(chosen, axis=0)
            if self.drop_duplicates is True and len(distinct) > 1:
                chosen = distinct
            if self.subsample is None and len(chosen) > EXACT_ROWS:
                return h0_persistence_knn(chosen, self.metric), len(rows) - len(distinct)
            return h0_persistence(chosen, self.metric), len(rows) - len(distinct)

        results = Parallel(n_jobs=self.n_jobs, prefer="threads")(delayed(of)(rows) for rows in self.subsets_)
        duplicates = max(count for _, count in results)
        if duplicates and self.drop_duplicates == "warn":
            warnings.warn(
                f"A subset holds {duplicates} duplicate row(s), whose zero deaths raise the score. Pass "
                "drop_duplicates=True to leave them out, or False to count them silently.",
                stacklevel=3,
            )
        return [deaths for deaths, _ in results]


class SeparabilityStopper:
    """Stop a training whose separability no longer grows, and say which checkpoint was best (steps 6 and 7).

    Parameters
    ----------
    patience : int
        A checkpoint stalls when its smoothed score is less than `min_delta` above the best of those at least
        `patience` checkpoints back; that many stalls in a row stop the training.
    min_delta : float or None
        None takes the mean standard error over the subsets so far. A gain of exactly `min_delta` stalls too,
        so that a constant score stops even when the standard error is 0.
    warmup : int
        First checkpoints that neither stall nor serve as reference (the untrained encoder).
    smooth : int
        Window of the running median.
    **score_parameters
        Of :class:`PersistenceSeparability`.

    Attributes
    ----------
    history_ : list of dict
        A row a checkpoint: epoch, score, std, smoothed, largest_gap, variance.
    best_epoch_ : int
        Earliest checkpoint whose smoothed score is within one standard error of the highest.
    stopped_ : bool

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> stopper = SeparabilityStopper(patience=2, random_state=0)
    >>> [stopper.update(X) for _ in range(6)]
    [False, False, False, False, True, True]
    """

    def __init__(
        self,
        patience: int = 3,
        min_delta: float | None = None,
        warmup: int = 1,
        smooth: int = 3,
        **score_parameters: Any,
    ) -> None:
        if patience < 1 or smooth < 1 or warmup < 0:
            raise ValueError(
                "patience and smooth must be at least 1 and warmup at least 0, "
                f"got patience={patience}, smooth={smooth}, warmup={warmup}."
            )
        self.patience, self.min_delta, self.warmup, self.smooth = patience, min_delta, warmup, smooth
        self.measure = PersistenceSeparability(**score_parameters)
        self.history_: list[dict[str, float]] = []
        self.stopped_ = False
        self._stalled = 0

    def update(self, X: ArrayLike | Tensor) -> bool:
        """Score the next checkpoint's embeddings of the same rows; True when training should stop."""
        if not self.history_:
            self.measure.fit(X)
        figures = self.measure.summary(X)
        recent = [row["score"] for row in self.history_][-(self.smooth - 1) :] if self.smooth > 1 else []
        smoothed = float(np.median([*recent, figures["score"]]))
        row = {"epoch": len(self.history_), "smoothed": smoothed, **figures}
        self.history_.append(row)
        earlier = self.history_[self.warmup : max(len(self.history_) - self.patience, 0)]
        if earlier:
            gain = row["smoothed"] - max(past["smoothed"] for past in earlier)
            self._stalled = self._stalled + 1 if gain <= self._threshold() else 0
        self.stopped_ = self.stopped_ or self._stalled >= self.patience
        return self.stopped_

    def _standard_error(self) -> float:
        return float(np.mean([row["std"] for row in self.history_])) / np.sqrt(len(self.measure.subsets_))

    def _threshold(self) -> float:
        return self._standard_error() if self.min_delta is None else self.min_delta

    @property
    def best_epoch_(self) -> int:
        """Earliest checkpoint within one standard error of the highest smoothed score."""
        if not self.history_:
            raise ValueError("No checkpoint has been scored yet: call update first.")
        smoothed = np.array([row["smoothed"] for row in self.history_])
        return int(np.argmax(smoothed >= smoothed.max() - self._standard_error()))


class SeparabilityHook(Hook):
    """Score fixed rows after each epoch of a :class:`~models.training.Trainer` and stop it on a plateau.

    The history row gains ``separability/score``, which progress bars and trackers show like any metric.

    Parameters
    ----------
    rows : Tensor
        The rows embedded after each epoch.
    embed : callable, optional
        Network -> function of a batch giving (B, d); the network itself by default.
    stopper : SeparabilityStopper, optional
    stop : bool
        False only records.
    """

    def __init__(
        self,
        rows: Tensor,
        embed: Callable[[nn.Module], Callable[[Tensor], Tensor]] | None = None,
        stopper: SeparabilityStopper | None = None,
        stop: bool = True,
    ) -> None:
        self.rows, self.embed, self.stop = rows, embed, stop
        self.stopper = stopper or SeparabilityStopper()

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """Embed the rows in evaluation mode and update the stopper."""
        network = trainer.plain_network
        function = self.embed(network) if self.embed else network
        was_training = network.training
        network.eval()
        try:
            embeddings = predict_in_batches(function, self.rows, device=trainer.device)
        finally:
            network.train(was_training)
        stop = self.stopper.update(embeddings.flatten(1))
        row["separability/score"] = self.stopper.history_[-1]["score"]
        row["separability/largest_gap"] = self.stopper.history_[-1]["largest_gap"]
        trainer.stop = trainer.stop or (self.stop and stop)


def compare(embeddings: Mapping[str, ArrayLike | Tensor], **parameters: Any) -> list[dict[str, Any]]:
    """Rank encoders by the separability of the same rows, best first.

    Parameters
    ----------
    embeddings : mapping of str to array, (n, d)
        Encoder -> its embedding of the rows; widths may differ.
    **parameters
        Of :class:`PersistenceSeparability`. The first encoder's subsets serve all.

    Returns
    -------
    list of dict
        name, score, std, largest_gap, variance.

    Raises
    ------
    ValueError
        If nothing is given or the numbers of rows differ.
    """
    if not embeddings:
        raise ValueError("embeddings must name at least one encoder, got none.")
    measure = PersistenceSeparability(**parameters).fit(next(iter(embeddings.values())))
    rows = [{"name": name, **measure.summary(X)} for name, X in embeddings.items()]
    return sorted(rows, key=lambda row: -row["score"])


__all__ = [
    "PersistenceSeparability",
    "SeparabilityHook",
    "SeparabilityStopper",
    "calinski_harabasz",
    "compare",
    "cv_auc",
    "fisher_ratio",
    "h0_persistence",
    "h0_persistence_knn",
    "persistence_score",
    "thornton_index",
]

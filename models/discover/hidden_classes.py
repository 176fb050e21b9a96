"""Novel class discovery in tables: the input its methods share, the number of classes, and tuning without them.

Rows labelled -1 are known to belong to classes nobody has named. Their labels can choose no setting, so classes that
do have names take turns at being hidden, and a setting is judged by how well it finds those.

C. Troisemaine, A. Reiffers-Masson, S. Gosselin, V. Lemaire and S. Vaton, "A Practical Approach to Novel Class
Discovery in Tabular Data", Data Mining and Knowledge Discovery, 2024, arXiv:2311.05440.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import ParameterSampler
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from models.base import UNLABELLED, check_embeddings, check_labels
from models.clustering import SilhouetteCount, count_by_silhouette
from models.metrics import clustering_scores

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
SCORERS = {"cluster_acc": "accuracy", "nmi": "nmi", "ari": "ari"}
ENUMERATED = 10_000
"""Up to this many sets of hidden classes are listed and drawn from; beyond, sets are drawn until they differ."""


# Input ------------------------------------------------------------------------------------------------------------


class PartlyNamed(NamedTuple):
    """A table whose rows carry a known class or belong to one that has no name yet.

    Attributes
    ----------
    rows : array, (n, d)
    labels : int array, (n,)
        -1 = novel.
    classes : int array
        Known labels, ascending.
    novel : bool array, (n,)
    """

    rows: Matrix
    labels: Labels
    classes: Labels
    novel: NDArray[np.bool_]


def table_rows(estimator: Any, X: ArrayLike, *, reset: bool, minimum: int = 1) -> Matrix:
    """`X` as a finite float64 matrix; notes its columns on `estimator` in fit and compares them later."""
    if getattr(X, "ndim", 2) < 2:
        raise ValueError(
            f"X must be a matrix shaped (n, d), got an array shaped {np.shape(X)}. "
            "Reshape your data: X.reshape(1, -1) makes one row of it."
        )
    rows = check_embeddings(X, minimum=minimum)
    validate_data(estimator, X, reset=reset, skip_check_array=True)
    if rows.shape[1] == 0:
        raise ValueError(f"0 feature(s) (shape={rows.shape}) while a minimum of 1 is required in X.")
    return rows


def partly_named(estimator: Any, X: ArrayLike, y: ArrayLike | None, n_novel: int | None) -> PartlyNamed:
    """Check what a novel class discovery method is given to fit.

    Raises
    ------
    ValueError
        Without labels, with fewer than two known classes, no row labelled -1, NaN, or more novel classes wanted
        than there are distinct rows labelled -1.
    """
    rows = table_rows(estimator, X, reset=True, minimum=3)
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None. Give the known classes, "
            "and -1 for the rows whose class is novel."
        )
    labels = check_labels(y, len(rows))
    novel = labels == UNLABELLED
    if not novel.any():
        raise ValueError(
            f"y labels all {len(rows)} rows (n_samples={len(rows)}), so there is no novel class to find. "
            "Mark the rows whose class is not known with -1."
        )
    if n_novel is not None and n_novel > (distinct := len(np.unique(rows[novel], axis=0))):
        raise ValueError(
            f"n_novel={n_novel} classes cannot be found in the {distinct} distinct rows that y marks with -1. "
            "Ask for fewer."
        )
    return PartlyNamed(rows, labels, np.unique(labels[~novel]), novel)


def named(table: PartlyNamed, clusters: Labels) -> Labels:
    """Labels of all rows: the known ones, and ``classes.max() + 1 + j`` for the novel rows of cluster j."""
    labels = table.labels.copy()
    labels[table.novel] = table.classes.max() + 1 + clusters
    return labels


# Section D: the number of classes ----------------------------------------------------------------------------------


def estimate_n_novel(
    Z: ArrayLike,
    k_min: int = 2,
    k_max: int = 30,
    repeats: int = 3,
    random_state: int | np.random.RandomState | None = None,
) -> SilhouetteCount:
    """Number of novel classes: the k whose k-means partition of the novel rows has the best mean silhouette.

    Parameters
    ----------
    Z : array, (n, d)
        Novel rows, best in a latent space that knows the named classes.
    k_min, k_max : int
        Numbers tried, both included; those above the number of distinct rows minus 1 are left out.
    repeats : int
        Runs of k-means averaged for each k.

    Returns
    -------
    SilhouetteCount
        ``n_clusters`` and ``scores``, the mean silhouette of every k tried.

    Raises
    ------
    ValueError
        For NaN, or fewer than ``k_min + 1`` distinct rows.

    Examples
    --------
    >>> Z = [[0.0], [0.1], [0.2], [5.0], [5.1], [9.0], [9.1]]
    >>> estimate_n_novel(Z, random_state=0).n_clusters
    3
    """
    return count_by_silhouette(Z, range(k_min, k_max + 1), repeats=repeats, random_state=random_state)


# Section E: tuning on classes that are only hidden -----------------------------------------------------------------


class HiddenClassKFold:
    """Splits of the known classes into visible and hidden ones, no two alike.

    Parameters
    ----------
    n_hidden : int, optional
        Classes hidden in each fold; half of them, at least two, by default, and never all.
    n_folds : int, default=10
        At most; fewer where there are not so many sets of classes.
    random_state : int, RandomState or None

    Examples
    --------
    >>> folds = HiddenClassKFold(n_hidden=1, n_folds=5, random_state=0).split([0, 1, 2, 2, -1])
    >>> sorted(hidden.tolist() for visible, hidden in folds)
    [[0], [1], [2]]
    """

    def __init__(
        self, n_hidden: int | None = None, n_folds: int = 10, random_state: int | np.random.RandomState | None = None
    ) -> None:
        self.n_hidden = n_hidden
        self.n_folds = n_folds
        self.random_state = random_state

    def split(self, y: ArrayLike) -> Iterator[tuple[Labels, Labels]]:
        """Yield (visible classes, hidden classes), both ascending.

        Parameters
        ----------
        y : int array, (n,)
            Rows labelled -1 do not count.

        Raises
        ------
        ValueError
            With fewer than two known classes, or `n_hidden` or `n_folds` that cannot be.
        """
        classes = np.unique(check_labels(y, len(np.asarray(y))))
        classes = classes[classes != UNLABELLED]
        n = len(classes)
        hidden = min(max(2, n // 2), n - 1) if self.n_hidden is None else self.n_hidden
        if not 1 <= hidden < n or self.n_folds < 1:
            raise ValueError(
                f"n_hidden={hidden} of {n} known classes cannot be hidden in {self.n_folds} fold(s). "
                f"Hide between 1 and {n - 1} in at least one fold."
            )
        for chosen in self._sets(n, hidden):
            mask = np.isin(np.arange(n), chosen)
            yield classes[~mask], classes[mask]

    def _sets(self, n: int, hidden: int) -> list[tuple[int, ...]]:
        random = check_random_state(self.random_state)
        wanted = min(self.n_folds, comb(n, hidden))
        if comb(n, hidden) <= ENUMERATED:
            every = list(combinations(range(n), hidden))
            return [every[i] for i in random.permutation(len(every))[:wanted]]
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < wanted:
            drawn[tuple(sorted(random.choice(n, hidden, replace=False).tolist()))] = None
        return list(drawn)


class Tuned(NamedTuple):
    """The best setting, and one row for each tried: its parameters, ``score``, ``std`` and ``folds``."""

    best_params: dict[str, Any]
    trials: list[dict[str, Any]]


def tune_on_hidden_classes(
    make_estimator: Callable[..., Any],
    space: Mapping[str, Any],
    X: ArrayLike,
    y: ArrayLike,
    n_trials: int = 20,
    scorer: str | Callable[[Labels, Labels], float] = "cluster_acc",
    folds: HiddenClassKFold | None = None,
    n_novel_known: bool = True,
    random_state: int | np.random.RandomState | None = None,
) -> Tuned:
    """Choose hyperparameters by how well known classes are found again after they are hidden.

    Parameters
    ----------
    make_estimator : callable
        Parameters -> unfitted method, such as :class:`~models.discover.tabular_ncd.PBN`.
    space : mapping
        Parameter -> list of values, or distribution of scipy with ``rvs``; settings are drawn at random, without
        repeating one when all are lists.
    X : array, (n, d)
    y : int array, (n,)
        Known classes, -1 = novel. Novel rows are left out altogether.
    n_trials : int
    scorer : {"cluster_acc", "nmi", "ari"} or callable
        Of (true labels, found labels) of the hidden rows; larger is better.
    folds : HiddenClassKFold, optional
        Five folds by default, the same for every setting.
    n_novel_known : bool
        Tell the method how many classes are hidden; otherwise it estimates the number inside each fold.
    random_state : int, RandomState or None

    Returns
    -------
    Tuned
        A setting is to be fitted anew, on all rows, by the caller.

    Raises
    ------
    ValueError
        For malformed rows or labels, fewer than three known classes, no trial, or an unknown scorer.
    """
    rows = check_embeddings(X)
    labels = check_labels(y, len(rows), minimum_classes=3)
    rows, labels = rows[labels != UNLABELLED], labels[labels != UNLABELLED]
    score = _scorer(scorer)
    if n_trials < 1:
        raise ValueError(f"n_trials must be at least 1, got {n_trials}.")
    random = check_random_state(random_state)
    if folds is None:
        n_classes = len(np.unique(labels))
        folds = HiddenClassKFold(min(max(2, n_classes // 2), n_classes - 2), 5, random.randint(2**31 - 1))
    splits = list(folds.split(labels))
    trials = []
    for params in ParameterSampler(dict(space), n_trials, random_state=random):
        found = [_fold_score(make_estimator(**params), rows, labels, h, n_novel_known, score) for _, h in splits]
        trials.append({**params, "score": float(np.mean(found)), "std": float(np.std(found)), "folds": found})
    best = max(trials, key=lambda trial: trial["score"])
    return Tuned({name: best[name] for name in space}, trials)


def _scorer(scorer: str | Callable[[Labels, Labels], float]) -> Callable[[Labels, Labels], float]:
    if callable(scorer):
        return scorer
    if scorer not in SCORERS:
        raise ValueError(f"scorer must be one of {', '.join(SCORERS)} or a function, got {scorer!r}.")
    return lambda truth, found: clustering_scores(truth, found)[SCORERS[scorer]]


def _fold_score(
    estimator: Any,
    rows: Matrix,
    labels: Labels,
    hidden: Labels,
    n_novel_known: bool,
    score: Callable[[Labels, Labels], float],
) -> float:
    held = np.isin(labels, hidden)
    estimator.set_params(n_novel=len(hidden) if n_novel_known else None)
    found = estimator.fit(rows, np.where(held, UNLABELLED, labels)).labels_
    return float(score(labels[held], found[held]))

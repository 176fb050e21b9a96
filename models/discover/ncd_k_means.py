"""NCD k-means: k-means for the novel rows of a table, seeded away from the classes that have a name.

C. Troisemaine, A. Reiffers-Masson, S. Gosselin, V. Lemaire and S. Vaton, "A Practical Approach to Novel Class
Discovery in Tabular Data", Data Mining and Knowledge Discovery, 2024, arXiv:2311.05440.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from models.constrained_kmeans import margins
from models.discover.hidden_classes import Labels, Matrix, estimate_n_novel, named, partly_named, table_rows
from models.registry import register

Update = Literal["novel_only", "all", "known_only"]

# The steps ---------------------------------------------------------------------------------------------------------


def class_means(rows: Matrix, labels: Labels, classes: Labels) -> Matrix:
    """Step 1: centre of each known class, (n_known, d)."""
    return np.array([rows[labels == label].mean(axis=0) for label in classes])


def seed_novel_centres(
    novel: Matrix, known_centres: Matrix, n_novel: int, power: int, random: np.random.RandomState
) -> Matrix:
    """Step 2: novel rows drawn one at a time with probability proportional to ``D(x) ** power``.

    D is the distance to the nearest centre, known or already drawn. Without known centres the first row is drawn
    uniformly, and with `power` 2 this is k-means++.
    """
    centres = list(known_centres)
    for _ in range(n_novel):
        weight = euclidean_distances(novel, np.array(centres)).min(axis=1) ** power if centres else np.ones(len(novel))
        total = weight.sum()
        centres.append(novel[random.choice(len(novel), p=weight / total if total > 0 else None)])
    return np.array(centres[len(known_centres) :])


class Lloyd(NamedTuple):
    """Where the centres came to rest, and after how many rounds."""

    centres: Matrix
    n_iter: int


def lloyd(rows: Matrix, centres: Matrix, moving: NDArray[np.bool_], max_iter: int, tol: float) -> Lloyd:
    """Steps 3 and 4: Lloyd iterations in which all `centres` compete for `rows` and those in `moving` follow.

    A centre without rows keeps its place. The end is reached when (sum of the centres' shifts)^2 < `tol`.
    """
    rounds, shift = 0, np.inf
    while rounds < max_iter and (rounds == 0 or shift**2 >= tol):
        nearest = euclidean_distances(rows, centres, squared=True).argmin(axis=1)
        sizes = np.bincount(nearest, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, rows)
        follows = moving & (sizes > 0)
        moved = np.where(follows[:, None], sums / np.maximum(sizes, 1)[:, None], centres)
        shift = float(np.linalg.norm(moved - centres, axis=1).sum())
        centres = moved
        rounds += 1
        if shift == 0.0:
            break
    return Lloyd(centres, rounds)


@register(
    "ncd-k-means",
    stage="discover",
    summary="Groups the unnamed rows of a table by k-means that starts away from the named classes",
    paper="A Practical Approach to Novel Class Discovery in Tabular Data",
    year=2024,
    link="https://arxiv.org/abs/2311.05440",
    licence="MIT",
    accepts=("table", "embedding"),
)
class NCDKMeans(BaseEstimator):
    """k-means of the novel rows, seeded away from the centres of the known classes.

    Parameters
    ----------
    n_novel : int, optional
        Novel classes; estimated by :func:`~models.discover.hidden_classes.estimate_n_novel` when None.
    seeding : {"d2", "d1"}, default="d2"
        Seeds are drawn with probability proportional to the squared distance, as published, or to the distance, as
        the released code does.
    update : {"novel_only", "all", "known_only"}, default="novel_only"
        "novel_only": novel centres alone compete for the novel rows, and move. For ablation, "all": known and novel
        centres compete for all rows and all move; "known_only": likewise, and only the known centres move.
    n_init : int, default=10
    max_iter : int, default=300
    tol : float, default=1e-4
        Bound on the squared sum of the centres' shifts.
    random_state : int, RandomState or None

    Attributes
    ----------
    classes_ : int array
        Known labels.
    n_novel_, n_clusters_ : int
        Novel classes, and known and novel ones together.
    labels_ : int array, (n,)
        The known label, or ``classes_.max() + 1 + j`` for novel cluster j.
    known_centers_, novel_centers_, cluster_centers_ : array, (classes, d)
        The last holds both, known ones first.
    inertia_ : float
        Sum of squared distances of the novel rows to their novel centre.
    confidences_ : array, (n,)
        (second - first) / second distance to the novel centres; 1 for known rows.
    n_iter_ : int
    n_features_in_ : int

    Notes
    -----
    All rows labelled -1 count as novel. Scale the columns first: StandardScaler on the training rows, constant
    columns dropped.

    References
    ----------
    Troisemaine et al., 2024, section on NCD k-means. The released code draws seeds by distance, not its square.

    Examples
    --------
    >>> X = [[0.0], [0.1], [4.0], [4.1], [8.0], [8.1], [12.0], [12.1]]
    >>> NCDKMeans(2, random_state=0).fit_predict(X, [0, 0, 1, 1, -1, -1, -1, -1]).tolist() in (
    ...     [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 1, 3, 3, 2, 2])
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_novel": [Interval(Integral, 1, None, closed="left"), None],
        "seeding": [StrOptions({"d2", "d1"})],
        "update": [StrOptions({"novel_only", "all", "known_only"})],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_novel: int | None = None,
        seeding: Literal["d2", "d1"] = "d2",
        update: Update = "novel_only",
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_novel = n_novel
        self.seeding = seeding
        self.update = update
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> NCDKMeans:
        """Find the novel classes.

        Parameters
        ----------
        X : array, (n, d)
        y : int array, (n,)
            Known classes, -1 = novel.

        Raises
        ------
        ValueError
            Without y, for NaN, no row labelled -1, fewer than two known classes, more novel classes than distinct
            novel rows, or novel rows of fewer than three distinct values whose number of classes is to be estimated.
        """
        self._validate_params()
        table = partly_named(self, X, y, self.n_novel)
        random = check_random_state(self.random_state)
        novel = table.rows[table.novel]
        self.classes_ = table.classes
        self.n_novel_ = self.n_novel or estimate_n_novel(novel, random_state=random).n_clusters
        self.n_clusters_ = len(self.classes_) + self.n_novel_
        known = class_means(table.rows, table.labels, table.classes)
        runs = [self._run(table.rows, novel, known, random) for _ in range(self.n_init)]
        self.inertia_, centres, self.n_iter_ = min(runs, key=lambda run: run[0])
        self.known_centers_, self.novel_centers_ = centres[: len(known)], centres[len(known) :]
        self.cluster_centers_ = centres
        distances = euclidean_distances(novel, self.novel_centers_)
        self.labels_ = named(table, distances.argmin(axis=1))
        self.confidences_ = np.ones(len(table.rows))
        self.confidences_[table.novel] = margins(distances)
        return self

    def fit_predict(self, X: ArrayLike, y: ArrayLike | None = None) -> Labels:
        """Fit and return ``labels_``."""
        return self.fit(X, y).labels_

    def predict(self, X: ArrayLike) -> Labels:
        """Novel cluster 0..n_novel_ - 1 of each row, that of the nearest novel centre."""
        check_is_fitted(self)
        rows = table_rows(self, X, reset=False)
        return euclidean_distances(rows, self.novel_centers_).argmin(axis=1).astype(np.int64)

    def predict_known(self, X: ArrayLike) -> Labels:
        """Known label of each row, that of the nearest known centre."""
        check_is_fitted(self)
        rows = table_rows(self, X, reset=False)
        return self.classes_[euclidean_distances(rows, self.known_centers_).argmin(axis=1)]

    def _run(
        self, rows: Matrix, novel: Matrix, known: Matrix, random: np.random.RandomState
    ) -> tuple[float, Matrix, int]:
        seeds = seed_novel_centres(novel, known, self.n_novel_, 2 if self.seeding == "d2" else 1, random)
        if self.update == "novel_only":
            found = lloyd(novel, seeds, np.ones(len(seeds), dtype=bool), self.max_iter, self.tol)
            centres = np.concatenate([known, found.centres])
        else:
            moving = np.arange(len(known) + len(seeds)) < len(known) + (len(seeds) if self.update == "all" else 0)
            found = lloyd(rows, np.concatenate([known, seeds]), moving, self.max_iter, self.tol)
            centres = found.centres
        inertia = euclidean_distances(novel, centres[len(known) :], squared=True).min(axis=1).sum()
        return float(inertia), centres, found.n_iter

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

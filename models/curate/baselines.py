"""What every way of choosing data has to beat: chance, geometry, and the scores of :mod:`models.curate.trained_scores`.

Each is a selector: a budget, ``fit(X, y)``, ``scores_`` of which the largest are kept, ``indices_``. Papers stand
beside the classes; the collection follows C. Guo, B. Zhao and Y. Bai, "DeepCore: A Comprehensive Library for Coreset
Selection in Deep Learning", DEXA 2022, arXiv:2204.08499.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from models.base import check_labels, seed_from
from models.curate.trained_scores import EL2N, MEASURED_ELSEWHERE, Forgetting, GraNd, Margin
from models.registry import register
from models.selection import BUDGET, Budget, Selector, kept_rows, shares_of_classes
from models.unlearn.split import stack_inputs

__all__ = [
    "EL2N",
    "Forgetting",
    "FullData",
    "GraNd",
    "Herding",
    "KCentre",
    "Margin",
    "RandomSubset",
    "StratifiedSubset",
    "greedy_centres",
    "herded",
]


# ---- the two geometries -----------------------------------------------------------------------------------


def greedy_centres(points: Tensor, keep: int, first: int) -> tuple[NDArray[np.int64], Tensor]:
    """Greedy k-centre: time and again the row farthest from all centres (Sener & Savarese, 2018, algorithm 1).

    Returns
    -------
    picked : array of int64, (keep,)
        In the order they were picked; among rows equally far the earliest, so copies come last, in their order.
    distances : Tensor, (n,)
        Of each row to its nearest centre.
    """
    squares = points.square().sum(1)
    nearest = torch.full((len(points),), torch.inf, device=points.device)
    picked = [first]
    while True:
        centre = picked[-1]
        distance = (squares + squares[centre] - 2 * points @ points[centre]).clamp_(min=0)
        nearest = torch.minimum(nearest, distance)
        nearest[centre] = -1
        if len(picked) == keep:
            return np.array(picked, dtype=np.int64), nearest.clamp(min=0).sqrt()
        picked.append(int(nearest.argmax()))


def herded(points: Tensor, keep: int) -> NDArray[np.int64]:
    """Rows whose running mean follows the mean of all (Welling, 2009): w += mean - x after each pick x of largest w.x.

    Each row is picked once at most.
    """
    mean = points.mean(0)
    towards = points @ mean
    weight = towards.clone()
    picked = []
    for _ in range(keep):
        choice = int(weight.argmax())
        picked.append(choice)
        weight += towards - points @ points[choice]
        weight[choice] = -torch.inf
    return np.array(picked, dtype=np.int64)


# ---- chance -----------------------------------------------------------------------------------------------


class FullData(Selector):
    """Keep every row: what a smaller set is compared with. Its scores are all 1."""

    def fit(self, X: Any, y: Any = None) -> FullData:
        """Keep every row of `X`."""
        self.scores_, self.indices_ = np.ones(len(X)), np.arange(kept_rows(1.0, len(X)))
        return self


@register(
    "random-subset",
    stage="curate",
    summary="Keeps rows by chance, once: the first baseline of any selection.",
    paper="DeepCore: A Comprehensive Library for Coreset Selection in Deep Learning",
    year=2022,
    link="https://arxiv.org/abs/2204.08499",
    licence="MIT",
    accepts=("image", "table", "embedding"),
    skips_checks={"tested_and_measured": MEASURED_ELSEWHERE},
    taxonomy={
        "goal": "diversification",
        "utility": "none: uniform draws",
        "unit": "data point",
        "mechanism": "random sampling once",
        "stage_of_training": "any",
    },
)
class RandomSubset(Selector):
    """Keep rows drawn uniformly, without replacement.

    Parameters
    ----------
    budget : int or float, default=0.1
        Rows, or the fraction of them, to keep.
    random_state : int, RandomState or None

    Attributes
    ----------
    scores_ : array of float64, (n,)
        Uniform draws; the largest are kept.
    indices_ : array of int64, (kept,)

    References
    ----------
    Guo et al. (2022), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> RandomSubset(3, random_state=0).fit(np.zeros((10, 2))).indices_.shape
    (3,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"budget": BUDGET, "random_state": ["random_state"]}

    def __init__(self, budget: Budget = 0.1, random_state: int | np.random.RandomState | None = None) -> None:
        self.budget = budget
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: Any = None) -> RandomSubset:
        """Draw.

        Parameters
        ----------
        X : array or tensor, (n, ...)
        y : ignored

        Raises
        ------
        ValueError
            For no rows, NaN or infinite entries, or a budget of 0 or above the data.
        """
        self._validate_params()
        n = len(stack_inputs(X))
        keep = kept_rows(self.budget, n)
        return self._keep_top(np.random.default_rng(seed_from(self.random_state)).random(n), keep)


@register(
    "stratified-subset",
    stage="curate",
    summary="Keeps rows by chance with the shares of the classes as they are, and at least one row of each class.",
    paper="DeepCore: A Comprehensive Library for Coreset Selection in Deep Learning",
    year=2022,
    link="https://arxiv.org/abs/2204.08499",
    licence="MIT",
    accepts=("image", "table", "embedding"),
    skips_checks={
        "tested_and_measured": MEASURED_ELSEWHERE,
        "one_class": "rows of one class are drawn as by random-subset",
        "all_unlabelled": "unlabelled rows are drawn as a class of their own",
    },
    taxonomy={
        "goal": "distribution matching",
        "utility": "share of each class",
        "unit": "data point",
        "mechanism": "random sampling once, by class",
        "stage_of_training": "any",
    },
)
class StratifiedSubset(Selector):
    """Keep rows drawn uniformly within each class; the classes keep their shares.

    Parameters
    ----------
    budget : int or float, default=0.1
        Rows, or the fraction of them, to keep. It is met exactly.
    random_state : int, RandomState or None

    Attributes
    ----------
    scores_ : array of float64, (n,)
        In [0, 1) for rows left out and in [1, 2) for rows kept; within a class the largest draws are kept.
    indices_ : array of int64, (kept,)

    References
    ----------
    Guo et al. (2022), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.repeat([0, 1], [15, 5])
    >>> np.bincount(StratifiedSubset(4, random_state=0).fit(np.zeros((20, 2)), y).select(y))
    array([3, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"budget": BUDGET, "random_state": ["random_state"]}

    def __init__(self, budget: Budget = 0.1, random_state: int | np.random.RandomState | None = None) -> None:
        self.budget = budget
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None = None) -> StratifiedSubset:
        """Draw.

        Parameters
        ----------
        X : array or tensor, (n, ...)
        y : array of int, (n,)
            -1 (unlabelled) is a class of its own; with one class the draw is uniform.

        Raises
        ------
        ValueError
            For no rows, NaN or infinite entries, no classes, labels of another length or below -1, or a budget of 0
            or above the data.
        """
        self._validate_params()
        n = len(stack_inputs(X))
        keep = kept_rows(self.budget, n)
        if y is None:
            raise ValueError("y must give the classes to keep the shares of; without classes use RandomSubset.")
        labels = check_strata(y, n)
        _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
        scores = np.random.default_rng(seed_from(self.random_state)).random(n)
        for number, share in enumerate(shares_of_classes(counts, keep)):
            members = np.flatnonzero(which == number)
            scores[members[np.argsort(-scores[members], kind="stable")[:share]]] += 1
        return self._keep_top(scores, keep)


def check_strata(y: ArrayLike | Tensor, n: int) -> NDArray[np.int64]:
    """Labels as int64 (n,), -1 allowed everywhere."""
    labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.shape == (n,) and n and (labels == -1).all():
        return labels.astype(np.int64)
    return check_labels(labels, n, minimum_classes=1)


# ---- geometry ---------------------------------------------------------------------------------------------


class _InOrder(Selector):
    """What picks row after row: the score counts down from the first picked, and is 0 for rows left out."""

    def _keep_picked(self, picked: NDArray[np.int64], n: int) -> Any:
        scores = np.zeros(n)
        scores[picked] = np.arange(len(picked), 0, -1)
        return self._keep_top(scores, len(picked))


@register(
    "k-centre",
    stage="curate",
    summary="Keeps rows so that every row left out lies close to a kept one.",
    paper="Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    year=2018,
    link="https://arxiv.org/abs/1708.00489",
    licence="MIT",
    accepts=("image", "table", "embedding"),
    skips_checks={"tested_and_measured": MEASURED_ELSEWHERE},
    taxonomy={
        "goal": "diversification",
        "utility": "distance to the nearest kept row",
        "unit": "data point",
        "mechanism": "greedy cover of an embedding",
        "stage_of_training": "any",
    },
)
class KCentre(_InOrder):
    """Greedy k-centre on Euclidean distances of the rows, which had best be embeddings.

    Parameters
    ----------
    budget : int or float, default=0.1
        Rows, or the fraction of them, to keep.
    device : str, default="cpu"
    random_state : int, RandomState or None
        Of the first centre.

    Attributes
    ----------
    scores_ : array of float64, (n,)
        kept for the first centre, kept - 1 for the second, ..., 0 for rows left out.
    indices_ : array of int64, (kept,)
    radius_ : float
        Largest distance of a row to its nearest kept row. Rows that are all alike have the radius 0; the first centre
        and the earliest rows are kept.

    References
    ----------
    O. Sener and S. Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
    algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0, 0], [0.1, 0], [5, 0], [5.1, 0]])
    >>> selector = KCentre(2, random_state=0).fit(X)
    >>> float(selector.radius_) < 0.11
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "budget": BUDGET,
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self, budget: Budget = 0.1, device: str = "cpu", random_state: int | np.random.RandomState | None = None
    ) -> None:
        self.budget = budget
        self.device = device
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: Any = None) -> KCentre:
        """Cover.

        Parameters
        ----------
        X : array or tensor, (n, ...)
        y : ignored

        Raises
        ------
        ValueError
            For no rows, NaN or infinite entries, or a budget of 0 or above the data.
        """
        self._validate_params()
        points = stack_inputs(X).flatten(1)
        keep = kept_rows(self.budget, len(points))
        first = int(np.random.default_rng(seed_from(self.random_state)).integers(len(points)))
        centred = (points - points.mean(0)).to(self.device)  # the distances stay, the rounding shrinks
        picked, distances = greedy_centres(centred, keep, first)
        self.radius_ = float(distances.max())
        self._keep_picked(picked, len(points))
        return self


@register(
    "herding",
    stage="curate",
    summary="Keeps rows whose mean follows the mean of their class as closely as their number allows.",
    paper="Herding Dynamical Weights to Learn",
    year=2009,
    link="https://doi.org/10.1145/1553374.1553517",
    licence="none published",
    accepts=("image", "table", "embedding"),
    skips_checks={
        "tested_and_measured": MEASURED_ELSEWHERE,
        "one_class": "rows of one class are herded towards their one mean",
        "all_unlabelled": "unlabelled rows are herded as a class of their own",
    },
    taxonomy={
        "goal": "distribution matching",
        "utility": "distance to the mean embedding",
        "unit": "data point",
        "mechanism": "greedy moment matching",
        "stage_of_training": "any",
    },
)
class Herding(_InOrder):
    """Herding of each class (or of all rows, without labels) towards its mean; rows had best be embeddings.

    Parameters
    ----------
    budget : int or float, default=0.1
        Rows, or the fraction of them, to keep; classes keep their shares.
    device : str, default="cpu"

    Attributes
    ----------
    scores_ : array of float64, (n,)
        Larger for rows picked earlier, 0 for rows left out. Rows that are all alike are picked in their order.
    indices_ : array of int64, (kept,)

    References
    ----------
    M. Welling, "Herding Dynamical Weights to Learn", ICML 2009, eq. 3 and 4.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 0], [0, 1], [0.7, 0.7], [0, -1]])
    >>> Herding(2).fit(X).scores_
    array([2., 1., 0., 0.])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {"budget": BUDGET, "device": [str]}

    def __init__(self, budget: Budget = 0.1, device: str = "cpu") -> None:
        self.budget = budget
        self.device = device

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None = None) -> Herding:
        """Herd.

        Parameters
        ----------
        X : array or tensor, (n, ...)
        y : array of int, (n,), optional
            -1 (unlabelled) is a class of its own.

        Raises
        ------
        ValueError
            For no rows, NaN or infinite entries, labels of another length or below -1, or a budget of 0 or above the
            data.
        """
        self._validate_params()
        points = stack_inputs(X).flatten(1).to(self.device)
        n = len(points)
        keep = kept_rows(self.budget, n)
        labels = np.zeros(n, dtype=np.int64) if y is None else check_strata(y, n)
        _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
        orders = []
        for number, share in enumerate(shares_of_classes(counts, keep)):
            members = np.flatnonzero(which == number)
            orders.append(members[herded(points[torch.from_numpy(members).to(points.device)], int(share))])
        picked = sorted((place, int(row)) for order in orders for place, row in enumerate(order))
        self._keep_picked(np.array([row for _, row in picked], dtype=np.int64), n)
        return self

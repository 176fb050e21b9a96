"""The one shape of whatever chooses rows to train on: a budget, a score for each row, the rows kept.

A selector is an estimator with a `budget` and ``fit(X, y=None)``; fitted, it has ``scores_`` (n,), and either
``indices_`` (the rows kept, ascending) or ``sample_weight_`` (n,). A sampler instead draws other rows each epoch; it
is a torch ``Sampler`` that tells and takes back its state, so an interrupted training goes on with the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Compute:
    """A budget of training: what it sees, and how often it sees each row.

    Attributes
    ----------
    samples_seen : int
        Rows that the whole training sees; a row seen twice counts twice.
    epochs : int
        Times that each row is seen.

    Examples
    --------
    >>> kept_rows(Compute(samples_seen=20_000, epochs=8), 60_000), kept_rows(Compute(20_000, 8), 1000)
    (2500, 1000)
    """

    samples_seen: int
    epochs: int

    def rows(self, n: int) -> int:
        """Rows of `n` that the training can see so often, all of them at most.

        Raises
        ------
        ValueError
            If it sees no row so often, or not once.
        """
        if self.epochs < 1 or self.samples_seen < self.epochs:
            raise ValueError(
                f"A training that sees {self.samples_seen} rows in {self.epochs} epochs sees none of them in each. "
                "Give at least 1 epoch, and at least as many rows seen as epochs."
            )
        return min(self.samples_seen // self.epochs, n)


Budget = int | float | Compute
BUDGET: list[Any] = [
    Interval(Integral, None, None, closed="neither"), Interval(Real, None, None, closed="neither"), Compute
]  # fmt: skip
"""Of the parameter `budget`, for ``_parameter_constraints``; :func:`kept_rows` says which numbers will do."""


def kept_rows(budget: Budget, n: int, *, name: str = "budget", of: str = "rows") -> int:
    """How many of `n` rows a budget keeps.

    Parameters
    ----------
    budget : int, float or Compute
        An int is a number of rows, from 1 to `n`; a float in (0, 1] is a fraction of them, rounded to whole rows
        (Python's ``round``, halves to the even neighbour). So ``1`` keeps one row and ``1.0`` keeps all. Of a training
        that may see so many rows, as many as it sees in each epoch.
    n : int
        Rows there are.
    name, of : str
        What the messages call the budget and the rows.

    Returns
    -------
    int
        From 1 to `n`.

    Raises
    ------
    ValueError
        If there are no rows; for a budget of 0 or below, above the data, NaN, so small that no row remains, or no
        number (a bool is none).

    Examples
    --------
    >>> kept_rows(0.1, 60_000), kept_rows(1, 50), kept_rows(1.0, 50)
    (6000, 1, 50)
    """
    given: Any = budget.rows(max(n, 1)) if isinstance(budget, Compute) else budget
    if isinstance(given, (bool, np.bool_)) or not isinstance(given, (Integral, Real)):
        raise ValueError(
            f"{name} must be an int (number of {of}) or a float in (0, 1] (fraction), "
            f"got {budget!r} of the type {type(budget).__name__}."
        )
    if n < 1:
        raise ValueError(f"There are no {of} to choose from (n=0): X is empty. Check the source that was read.")
    if isinstance(given, Integral):
        if not 1 <= int(given) <= n:
            raise ValueError(
                f"{name}={budget} must lie in 1..{n}, the number of {of}. "
                "Ask for fewer, or for all of them with 1.0, or bring more data."
            )
        return int(given)
    if not 0 < float(given) <= 1:
        raise ValueError(f"{name}={budget} must lie in (0, 1] as a fraction. Give an int to ask for a number of {of}.")
    kept = round(float(given) * n)
    if kept < 1:
        raise ValueError(
            f"{name}={budget} of {n} {of} keeps none of them. "
            f"Ask for at least {1 / n:.2g}, or for an int number of {of}."
        )
    return kept


def check_scores(scores: ArrayLike | Tensor, n: int, *, name: str = "scores") -> NDArray[np.float64]:
    """Scores of `n` rows as float64 (n,).

    Raises
    ------
    ValueError
        For another shape, or NaN and infinite scores; the message tells how many and the first row.
    """
    values = np.asarray(scores.detach().cpu().numpy() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    if values.shape != (n,):
        raise ValueError(f"{name} must be shaped ({n},), one a row, got {values.shape}.")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{name} are NaN or infinite in {len(bad)} of {n} row(s), the first at row {bad[0]}. "
            "Such rows can not be ranked: drop them, or find out why they could not be scored."
        )
    return values


def top_rows(scores: ArrayLike | Tensor, keep: int, *, largest: bool = True) -> NDArray[np.int64]:
    """The `keep` rows of the largest (or smallest) score, in ascending order.

    Between equal scores the earlier row wins, so rows that are all alike give the first ones.

    Examples
    --------
    >>> top_rows([0.1, 0.9, 0.5, 0.9], 2)
    array([1, 3])
    """
    values = check_scores(scores, len(scores))  # type: ignore[arg-type]
    order = np.argsort(-values if largest else values, kind="stable")
    return np.sort(order[:keep]).astype(np.int64)


def shares_of_classes(counts: ArrayLike, keep: int) -> NDArray[np.int64]:
    """Rows to keep of each class so that their shares stay and their sum is exactly `keep` (largest remainders).

    Parameters
    ----------
    counts : array of int, (n_classes,)
        Rows there are of each class.
    keep : int
        At most their sum.

    Returns
    -------
    array of int64, (n_classes,)
        Every class with rows keeps at least one, while `keep` is enough for that.

    Examples
    --------
    >>> shares_of_classes([900, 90, 10], 100), shares_of_classes([98, 1, 1], 10)
    (array([90,  9,  1]), array([8, 1, 1]))
    """
    have = np.asarray(counts, dtype=np.int64)
    least = (have > 0).astype(np.int64)
    if keep < least.sum():
        least[:] = 0
    wanted = keep * have / have.sum()
    kept = np.minimum(np.maximum(np.floor(wanted).astype(np.int64), least), have)
    while (missing := keep - int(kept.sum())) != 0:
        step = 1 if missing > 0 else -1
        possible = kept < have if step > 0 else kept > least
        urgency = np.where(possible, step * (wanted - kept), -np.inf)
        kept[int(np.argmax(urgency))] += step
    return kept


class Selector(BaseEstimator):
    """Base of what keeps some rows once, before training: :meth:`fit` scores the rows and keeps as many as allowed.

    A subclass stores `budget` among its parameters, scores in ``fit`` and ends it with :meth:`_keep_top` or by setting
    ``scores_`` and ``indices_`` itself.

    Attributes
    ----------
    scores_ : array of float64, (n,)
        What the rows were ranked by; the docstring of each selector says which end is kept.
    indices_ : array of int64, (kept,)
        The rows kept, ascending.
    """

    budget: Any
    scores_: NDArray[np.float64]
    indices_: NDArray[np.int64]

    def fit(self, X: Any, y: Any = None) -> Self:
        """Score the rows of `X` and keep as many as the budget allows."""
        raise NotImplementedError(f"{type(self).__name__} must say how rows are chosen: override fit.")

    def select(self, *arrays: Any) -> Any:
        """The kept rows of each of these, which hold the rows given to ``fit`` in the same order.

        Returns
        -------
        array or tensor, or a tuple of them when several were given

        Raises
        ------
        ValueError
            If one of them holds another number of rows.
        """
        check_is_fitted(self, "indices_")
        for array in arrays:
            if len(array) != len(self.scores_):
                raise ValueError(f"There must be {len(self.scores_)} rows as in fit, got {len(array)}.")
        kept = tuple(a[self.indices_] if isinstance(a, Tensor) else np.asarray(a)[self.indices_] for a in arrays)
        return kept[0] if len(kept) == 1 else kept

    def _keep_top(self, scores: ArrayLike | Tensor, keep: int, *, largest: bool = True) -> Self:
        self.scores_ = check_scores(scores, len(scores))  # type: ignore[arg-type]
        self.indices_ = top_rows(self.scores_, keep, largest=largest)
        return self


class EpochSampler(Sampler[int]):
    """Base of what draws other rows each epoch: ``rows(epoch)`` says which, and nothing else is remembered.

    Iterating gives the rows of the present epoch, from `position` on. Because ``rows`` depends on the seed and the
    epoch alone, the state is small and a resumed training sees exactly the rows it would have seen. Where workers of
    a ``DataLoader`` fetch ahead of the training, take the state between epochs.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.epoch = self.position = 0

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """Row numbers of one epoch in the order of training: a pure function of the seed and `epoch`."""
        raise NotImplementedError(f"{type(self).__name__} must say which rows an epoch takes: override rows.")

    def __iter__(self) -> Iterator[int]:
        """Rows of the present epoch that are still to come."""
        rows = self.rows(self.epoch)
        while self.position < len(rows):
            self.position += 1
            yield int(rows[self.position - 1])
        self.position = 0

    def __len__(self) -> int:
        """Rows of the present epoch."""
        return len(self.rows(self.epoch))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; to stay in the present one changes nothing."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on with the next row."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.seed, self.epoch, self.position = int(state["seed"]), int(state["epoch"]), int(state["position"])

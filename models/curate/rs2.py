"""Train on a new random part of the data each epoch, with a schedule that fits the shorter run.

P. Okanovic, R. Waleffe, V. Mageirakos, K. E. Nikolakakis, A. Karbasi, D. Kalogerias, N. M. Gürel and T. Rekatsinas,
"Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", ICLR 2024, arXiv:2305.18424.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from models.base import check_labels, isolated_seed, predict_in_batches, seed_from
from models.registry import register
from models.selection import EpochSampler, kept_rows
from models.supervised import ClassifierSpec, make_classifier
from models.training import ClassifierTrainer, Row, sgd
from models.unlearn.split import stack_inputs

Rows = NDArray[np.int64]
CLOCKS = ("seconds_train", "seconds_select")


# ---- the steps of the paper's algorithm -------------------------------------------------------------------


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, number: int) -> Rows:
    """Permutation `number` of `n` rows, drawn once for all slices of a pass."""
    order = np.random.default_rng(np.random.SeedSequence([seed, number])).permutation(n)
    order.flags.writeable = False
    return order


def slice_of_permutation(n: int, size: int, round_number: int, seed: int) -> Rows:
    """Step 2, without replacement: the next slice of one permutation, a new one when all rows had their turn.

    A pass over the data has ceil(n / size) slices; its last one is filled up with the first rows of the same
    permutation. Order within a slice is random.
    """
    number, place = divmod(round_number, math.ceil(n / size))
    order = permutation(n, seed, number)
    rows = order[place * size : (place + 1) * size]
    if len(rows) == size:
        return rows.copy()
    mixing = np.random.default_rng(np.random.SeedSequence([seed, number, place]))
    return mixing.permutation(np.concatenate([rows, order[: size - len(rows)]]))


def independent_draw(n: int, size: int, round_number: int, seed: int) -> Rows:
    """Step 2, with replacement between rounds: `size` distinct rows, whatever the other rounds drew."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, round_number]))
    return generator.choice(n, size, replace=False).astype(np.int64)


def stratified_draw(classes: list[Rows], counts: Rows, size: int, round_number: int, seed: int) -> Rows:
    """Step 2, stratified: ``counts[c]`` distinct rows of each class c, in random order.

    Where a count is 0, each class gives one row first, and the rest of `size` is drawn from the rows left; if `size`
    is below the number of classes, that many classes are drawn and give one row each.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, round_number]))
    if counts.min() > 0:
        drawn = [generator.choice(rows, count, replace=False) for rows, count in zip(classes, counts, strict=True)]
        return generator.permutation(np.concatenate(drawn))
    chosen = generator.permutation(len(classes))[:size]
    one_each = np.array([generator.choice(classes[c]) for c in chosen], dtype=np.int64)
    free = np.ones(sum(map(len, classes)), dtype=bool)
    free[one_each] = False
    more = generator.choice(np.flatnonzero(free), size - len(one_each), replace=False)
    return generator.permutation(np.concatenate([one_each, more]))


def shortened_cosine(min_factor: float) -> Callable[[int, int], float]:
    """Step 1: cosine from 1 to `min_factor` over the steps that RS2 really makes."""

    def factor(step: int, total: int) -> float:
        return min_factor + 0.5 * (1 - min_factor) * (1 + math.cos(math.pi * step / max(total, 1)))

    return factor


# ---- the sampler ------------------------------------------------------------------------------------------


class RS2Sampler(EpochSampler):
    """Which rows each round trains on.

    Iterating gives the subsets of the rounds that are still to come. Once :meth:`set_epoch` has named a round,
    iterating gives the rows of that round one by one instead, as ``DataLoader(..., sampler=...)`` wants them.

    Parameters
    ----------
    n_samples : int
    fraction : float, default=0.1
        Share of the rows a round trains on, in (0, 1].
    n_rounds : int, default=200
    replacement : {"without", "with"}, default="without"
        "without": successive slices of one permutation, so that every row has its turn before any has a second.
        "with": an independent draw each round. Rows of one round are distinct in both.
    stratify : array of int, (n_samples,), optional
        Classes, of which each gives round(fraction * its rows); -1 (unlabelled) counts as a class. Only with
        replacement "with".
    batch_size : int, optional
        None makes the round one batch.
    drop_last : bool, optional
        Leave a last short batch out. None: True for "without", False for "with", as the authors ran it.
    random_state : int, RandomState or None

    Attributes
    ----------
    subset_size_ : int
        round(fraction * n_samples), or the sum over the classes.
    rows_per_round_ : int
        `subset_size_` without what short batches leave out.
    steps_per_round_, total_steps_ : int

    Raises
    ------
    ValueError
        For a fraction outside (0, 1] or one that keeps no row, a batch larger than the subset when short batches are
        dropped (the round would be empty), `stratify` without replacement, or of another length.

    References
    ----------
    Okanovic et al. (2024), section 3 and algorithm 1.

    Examples
    --------
    >>> sampler = RS2Sampler(10, fraction=0.5, n_rounds=4, random_state=0)
    >>> first, second = sampler.subset(0), sampler.subset(1)
    >>> sorted([*first.tolist(), *second.tolist()])
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self,
        n_samples: int,
        fraction: float = 0.1,
        n_rounds: int = 200,
        *,
        replacement: str = "without",
        stratify: ArrayLike | None = None,
        batch_size: int | None = None,
        drop_last: bool | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(seed_from(random_state))
        if replacement not in ("without", "with"):
            raise ValueError(f"replacement must be 'without' or 'with', got {replacement!r}.")
        if n_rounds < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError(f"n_rounds and batch_size must be at least 1, got {n_rounds} and {batch_size}.")
        self.n_samples, self.fraction, self.n_rounds, self.replacement = n_samples, fraction, n_rounds, replacement
        self.subset_size_ = kept_rows(float(fraction), n_samples, name="fraction")
        self.classes: list[Rows] = []
        if stratify is not None:
            self._stratify(np.asarray(stratify))
        self.batch_size = self.subset_size_ if batch_size is None else batch_size
        self.drop_last = replacement == "without" if drop_last is None else drop_last
        if self.drop_last and self.batch_size > self.subset_size_:
            raise ValueError(
                f"batch_size={batch_size} is larger than the subset of {self.subset_size_} rows, and drop_last would "
                "leave the round without a batch. Lower batch_size, raise fraction, or set drop_last=False."
            )
        whole, rest = divmod(self.subset_size_, self.batch_size)
        self.steps_per_round_ = whole + int(rest > 0 and not self.drop_last)
        self.total_steps_ = self.steps_per_round_ * n_rounds
        self.rows_per_round_ = min(self.subset_size_, self.steps_per_round_ * self.batch_size)
        self.by_row = False

    def _stratify(self, labels: NDArray[Any]) -> None:
        if self.replacement != "with":
            raise ValueError(
                "stratify needs replacement='with': slices of one permutation can not keep the shares of the classes."
            )
        if labels.shape != (self.n_samples,):
            raise ValueError(f"stratify must be shaped ({self.n_samples},), one class a row, got {labels.shape}.")
        self.classes = [np.flatnonzero(labels == value) for value in np.unique(labels)]
        self.counts = np.array([round(self.fraction * len(rows)) for rows in self.classes], dtype=np.int64)
        if self.counts.min() > 0:
            self.subset_size_ = int(self.counts.sum())

    def subset(self, round_number: int) -> Rows:
        """Rows of one round, distinct, in random order; the same whatever was asked before.

        Raises
        ------
        ValueError
            For a round outside 0..n_rounds - 1.
        """
        if not 0 <= round_number < self.n_rounds:
            raise ValueError(f"The round must lie in 0..{self.n_rounds - 1}, got {round_number}.")
        if self.classes:
            return stratified_draw(self.classes, self.counts, self.subset_size_, round_number, self.seed)
        draw = slice_of_permutation if self.replacement == "without" else independent_draw
        return draw(self.n_samples, self.subset_size_, round_number, self.seed)

    def rows(self, epoch: int) -> Rows:
        """Rows of the batches of one round in the order of training."""
        return self.subset(epoch)[: self.rows_per_round_]

    def batches(self, round_number: int) -> Iterator[Rows]:
        """Index batches of one round."""
        rows = self.rows(round_number)
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    def __iter__(self) -> Iterator[Any]:
        """Subsets of the rounds to come, or after :meth:`set_epoch` the rows of one round."""
        if self.by_row:
            yield from super().__iter__()
            return
        while self.epoch < self.n_rounds:
            self.epoch += 1
            yield self.subset(self.epoch - 1)
        self.epoch = 0

    def __len__(self) -> int:
        """How many items iterating gives from the start."""
        return self.rows_per_round_ if self.by_row else self.n_rounds

    def set_epoch(self, epoch: int) -> None:
        """Iterate over the rows of the round `epoch` from now on."""
        self.by_row = True
        super().set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on: seed, round, position."""
        return {**super().state_dict(), "by_row": self.by_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with a sampler made with the same parameters."""
        super().load_state_dict(state)
        self.by_row = bool(state["by_row"])


def sample_of(item: Any) -> Tensor:
    """The sample in what a data set gives for one row: the item itself, or the first of a tuple."""
    return torch.as_tensor(item[0] if isinstance(item, (tuple, list)) else item).float()


# ---- training ---------------------------------------------------------------------------------------------


class RoundTrainer(ClassifierTrainer):
    """Cross-entropy over the rounds of a sampler; optimiser and schedule run on from round to round.

    Parameters
    ----------
    sampler : RS2Sampler
    dataset : Dataset, optional
        Where rows come from when they are not held in memory: ``dataset[i]`` is a sample, or a tuple that begins
        with it. :meth:`fit` is then given the row numbers in place of rows.
    evaluate : callable, optional
        network -> metric, called after every `eval_every` rounds and after the last.
    eval_every : int
    target : float, optional
        Stop when the metric reaches it.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        sampler: RS2Sampler,
        dataset: Dataset[Any] | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        eval_every: int = 1,
        target: float | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__(network, epochs=sampler.n_rounds, batch_size=sampler.batch_size, **parameters)
        self.sampler, self.dataset = sampler, dataset
        self.evaluate, self.eval_every, self.target = evaluate, eval_every, target

    def iterate(self, epoch: int, counting: bool = False) -> Iterator[Tensor]:
        """Batches of the round; a last batch of one row is left out, as everywhere."""
        began = time.perf_counter()
        rows = np.arange(self.sampler.rows_per_round_) if counting else self.sampler.rows(epoch)
        self.seconds_select = time.perf_counter() - began
        taken = [index for index in torch.from_numpy(rows).split(self.batch_size) if len(index) > 1 or len(rows) == 1]
        self.rows_taken = sum(map(len, taken))
        yield from taken

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Rows and labels of a batch."""
        if self.dataset is None:
            return super().fetch(index)
        rows = torch.stack([sample_of(self.dataset[int(i)]) for i in index])
        return rows.to(self.device), self.tensors[1][index].to(self.device)

    def before_epoch(self) -> None:
        """Start the clock."""
        self.round_began = time.perf_counter()

    def after_epoch(self, row: Row) -> None:
        """Stop the clock, let the rate arrive at this step's value, and measure."""
        elapsed = time.perf_counter() - self.round_began
        self.apply_schedule()
        before = self.history[-1] if self.history else {}
        row |= {"round": self.epoch, "lr": self.optimizer.param_groups[0]["lr"], "steps": self.step}
        row["samples_seen"] = before.get("samples_seen", 0) + self.rows_taken
        row["seconds_select"] = before.get("seconds_select", 0.0) + self.seconds_select
        row["seconds_train"] = before.get("seconds_train", 0.0) + elapsed - self.seconds_select
        last = self.epoch + 1 == self.epochs
        if self.evaluate is not None and (last or (self.epoch + 1) % self.eval_every == 0):
            row["val_metric"] = self.evaluate(self.plain_network)
            self.stop = self.stop or (self.target is not None and row["val_metric"] >= self.target)


@register(
    "rs2",
    stage="curate",
    summary="Trains on a new random part of the data each epoch and reaches the same accuracy several times sooner.",
    paper="Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning",
    year=2024,
    link="https://arxiv.org/abs/2305.18424",
    licence="none published",
    accepts=("image", "table", "embedding"),
    taxonomy={
        "goal": "diversification",
        "utility": "none: uniform draws",
        "unit": "data point",
        "mechanism": "random sampling anew each epoch",
        "stage_of_training": "any",
    },
)
class RS2Trainer(ClassifierMixin, BaseEstimator):
    """Train a classifier on repeated random subsets.

    Parameters
    ----------
    model_fn : callable or nn.Module, optional
        Makes the network (rows -> logits); a module is copied, weights included. None is a network of two hidden
        layers of 256 units.
    fraction : float, default=0.1
        Share of the rows a round trains on, in (0, 1]; 1 is ordinary training.
    n_rounds : int, default=200
        As many as the epochs of the full training.
    optimizer : {"sgd"} or callable, default="sgd"
        A callable is given the network and returns the optimiser (see :func:`models.training.adam`); `lr`, `momentum`,
        `nesterov` and `weight_decay` are of "sgd". Its rates fall by the factor min_lr / lr too.
    lr : float, default=0.1
        The rate of the full training; a smaller subset asks for no other.
    min_lr : float, default=1e-4
        Where the cosine ends.
    momentum : float, default=0.9
    nesterov : bool, default=True
    weight_decay : float, default=5e-4
    batch_size : int, default=128
        At least 2; a last batch of one row is left out, as batch normalisation can not train on it.
    replacement : {"without", "with"}, default="without"
    stratify : bool, default=False
        Draw by class; only with replacement "with".
    eval_every : int, default=1
        Rounds between measurements on the validation rows.
    target_metric : float, optional
        Stop when the validation accuracy reaches it.
    device : str, default="cpu"
    random_state : int, RandomState or None

    Attributes
    ----------
    model_ : nn.Module
    classes_ : array of int, (n_classes,)
    history_ : list of dict
        One a round: round, steps, samples_seen, seconds_train and seconds_select (all counted from the start), lr,
        loss, train_accuracy, and val_metric where it was measured.
    sampler_state_ : dict
        Of the sampler, for going on with the rows after the last round.

    References
    ----------
    Okanovic et al. (2024), algorithm 1; section 4.1 for the defaults.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> trainer = RS2Trainer(fraction=0.2, n_rounds=10, lr=0.05, batch_size=32, random_state=0).fit(X / 16, y)
    >>> trainer.history_[-1]["steps"], bool(trainer.score(X / 16, y) > 0.8)
    (110, True)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "fraction": [Interval(Real, 0, 1, closed="right")],
        "n_rounds": [Interval(Integral, 1, None, closed="left")],
        "optimizer": [StrOptions({"sgd"}), callable],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "min_lr": [Interval(Real, 0, None, closed="left")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "nesterov": ["boolean"],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "replacement": [StrOptions({"without", "with"})],
        "stratify": ["boolean"],
        "eval_every": [Interval(Integral, 1, None, closed="left")],
        "target_metric": [Real, None],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        model_fn: ClassifierSpec = None,
        *,
        fraction: float = 0.1,
        n_rounds: int = 200,
        optimizer: str | Callable[[nn.Module], Optimizer] = "sgd",
        lr: float = 0.1,
        min_lr: float = 1e-4,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        batch_size: int = 128,
        replacement: str = "without",
        stratify: bool = False,
        eval_every: int = 1,
        target_metric: float | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model_fn = model_fn
        self.fraction = fraction
        self.n_rounds = n_rounds
        self.optimizer = optimizer
        self.lr = lr
        self.min_lr = min_lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.replacement = replacement
        self.stratify = stratify
        self.eval_every = eval_every
        self.target_metric = target_metric
        self.device = device
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike | Tensor | Dataset[Any],
        y: ArrayLike | Tensor,
        X_val: ArrayLike | Tensor | None = None,
        y_val: ArrayLike | Tensor | None = None,
    ) -> RS2Trainer:
        """Train.

        Parameters
        ----------
        X : array or tensor, (n, ...), or map-style Dataset
            A data set is read row by row, as the rounds need them.
        y : array of int, (n,)
            Rows labelled -1 are drawn like others and carry no loss.
        X_val, y_val : array, (m, ...) and (m,), optional
            For ``val_metric``, the accuracy.

        Raises
        ------
        ValueError
            For a parameter out of range, no rows, fewer than two classes, a fraction that keeps no row, a batch larger
            than a subset whose short batches are dropped (replacement "without"), `target_metric` without validation
            rows, a network that does not take the rows, or NaN and infinite entries (of a data set: not looked for).
        """
        self._validate_params()
        dataset = X if isinstance(X, Dataset) else None
        n = len(dataset) if dataset is not None else 0  # type: ignore[arg-type]
        rows = sample_of(dataset[0])[None] if dataset is not None and n else stack_inputs(X)
        n = n or len(rows)
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} must not be above lr={self.lr}: the rate falls from lr to min_lr.")
        labels = check_labels(y, n)
        self.classes_ = np.unique(labels[labels >= 0])
        targets = torch.from_numpy(np.where(labels >= 0, np.searchsorted(self.classes_, labels), -1))
        with isolated_seed(self.random_state) as seed:
            sampler = RS2Sampler(
                n,
                self.fraction,
                self.n_rounds,
                replacement=self.replacement,
                stratify=labels if self.stratify else None,
                batch_size=self.batch_size,
                random_state=seed,
            )
            self.shape_ = tuple(rows.shape[1:])
            network = make_classifier(self.model_fn, self.shape_, len(self.classes_), name="model_fn")
            trainer = self._trainer(network, sampler, dataset, self._evaluation(X_val, y_val), seed)
            trainer.fit(torch.arange(n) if dataset is not None else rows, targets)
        self.model_ = network.cpu().eval()
        self.log_ = [{k: v for k, v in row.items() if k not in (*CLOCKS, "epoch")} for row in trainer.history]
        self.timings_ = [{k: v for k, v in row.items() if k in CLOCKS} for row in trainer.history]
        sampler.epoch = len(self.log_)
        self.sampler_state_ = sampler.state_dict()
        return self

    def _trainer(
        self,
        network: nn.Module,
        sampler: RS2Sampler,
        dataset: Dataset[Any] | None,
        evaluate: Callable[[nn.Module], float] | None,
        seed: int,
    ) -> RoundTrainer:
        own = callable(self.optimizer)
        return RoundTrainer(
            network,
            sampler=sampler,
            dataset=dataset,
            evaluate=evaluate,
            eval_every=self.eval_every,
            target=self.target_metric,
            optimizer=self.optimizer if own else sgd(self.lr, self.momentum, self.weight_decay, self.nesterov),
            schedule=shortened_cosine(self.min_lr / self.lr),
            label="rs2",
            seed=seed,
            device=self.device,
        )

    def _evaluation(self, X: Any, y: Any) -> Callable[[nn.Module], float] | None:
        if X is None or y is None:
            if self.target_metric is not None or (X is None) != (y is None):
                raise ValueError("Validation needs both X_val and y_val, and target_metric needs them.")
            return None
        rows = stack_inputs(X, name="X_val")
        labels = check_labels(y, len(rows), allow_unlabelled=False, minimum_classes=1, name="y_val")

        def accuracy(network: nn.Module) -> float:
            logits = predict_in_batches(network, rows, device=self.device)[:, : len(self.classes_)]
            return float((self.classes_[logits.argmax(1).numpy()] == labels).mean())

        return accuracy

    @property
    def history_(self) -> list[dict[str, float]]:
        """One row a round; see the class."""
        check_is_fitted(self, "model_")
        return [{**row, **clocks} for row, clocks in zip(self.log_, self.timings_, strict=True)]

    def time_to_accuracy(self, target: float) -> float | None:
        """Seconds of training and selection until the validation accuracy first reached `target`; None if never."""
        reached = (row for row in self.history_ if row.get("val_metric", -math.inf) >= target)
        first = next(reached, None)
        return None if first is None else first["seconds_train"] + first["seconds_select"]

    def predict_proba(self, X: ArrayLike | Tensor | Dataset[Any]) -> NDArray[np.float32]:
        """Class probabilities (n, n_classes).

        Raises
        ------
        ValueError
            For rows shaped otherwise than in fit.
        """
        check_is_fitted(self, "model_")
        logits = predict_in_batches(self.model_, stack_inputs(X, shape=self.shape_))
        return logits[:, : len(self.classes_)].softmax(dim=1).numpy()

    def predict(self, X: ArrayLike | Tensor | Dataset[Any]) -> NDArray[np.int64]:
        """The likeliest class of each row (n,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

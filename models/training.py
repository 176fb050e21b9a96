"""One training loop for every method that trains, decomposed so that a method overrides one step.

    fit -> run_epoch -> train_step -> compute_loss          and  notify(hook name) round each

A method subclasses :class:`Trainer` and overrides ``compute_loss`` (most), ``train_step`` (several optimisers,
alternating losses) or ``fetch`` (views, augmentation). The device, precision and distribution are Lightning
Fabric's. What happens beside the loop (progress, tracking, checkpoints, early stopping) is a :class:`Hook`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from models import distributed

Row = dict[str, float]


class Hook:
    """What may happen beside the loop. Every method does nothing unless a subclass says so."""

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Before the first epoch."""

    def on_batch_end(self, trainer: Trainer, terms: Row) -> None:
        """After each optimisation step, with its loss terms."""

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """After each epoch; the hook may add entries to `row` before it joins the history."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, also when the loop stopped early."""


_ambient: ContextVar[tuple[Hook, ...]] = ContextVar("ambient_hooks", default=())


@contextmanager
def hooks(*added: Hook) -> Iterator[None]:
    """Give every trainer that runs inside the block these hooks too (progress bars, tracking)."""
    token = _ambient.set(_ambient.get() + added)
    try:
        yield
    finally:
        _ambient.reset(token)


class Trainer:
    """Train `network` on tensors whose first axis is the sample.

    Parameters
    ----------
    network : nn.Module
    epochs : int
    batch_size : int
    optimizer : callable
        Network -> optimiser; ``sgd(...)`` and ``adam(...)`` below make one.
    schedule : callable, optional
        (step, total steps) -> factor on the initial learning rates, applied before each step.
    batches : callable, optional
        epoch -> iterable of index tensors; the default shuffles and keeps the last short batch.
    drop_last : bool
        Drop a last batch shorter than `batch_size`. A last batch of one row is always dropped, because
        batch normalisation can not train on it.
    hooks : sequence of Hook
        Beside the ambient ones of :func:`hooks`.
    label : str
        What progress bars and tracked metrics call this training ("simclr", "warm-up", ...).
    seed : int
        Of the shuffling and, through :attr:`generator`, of whatever the method draws.
    device, precision : str
        Handed to Fabric ("cpu", "cuda"; "32-true", "bf16-mixed").

    Notes
    -----
    In a process group of torch (see :mod:`models.distributed`) each process takes its part of every batch, and
    gradients are averaged: one step of n processes is a step on the whole batch, but for what a loss takes from the
    batch as a whole (batch normalisation, contrast, labels that are missing).

    Attributes
    ----------
    history : list of dict
        One row an epoch: epoch, lr, loss and its terms, and what hooks added.
    stop : bool
        A hook sets it to end after the current epoch.
    epoch, step, total_steps : int
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        epochs: int,
        batch_size: int,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[[int, int], float] | None = None,
        batches: Callable[[int], Iterable[Tensor]] | None = None,
        drop_last: bool = False,
        hooks: Sequence[Hook] = (),
        label: str = "training",
        seed: int = 0,
        device: str = "cpu",
        precision: Any = "32-true",
    ) -> None:
        accelerator = device.partition(":")[0]
        self.fabric = Fabric(accelerator=accelerator, devices=distributed.device(accelerator), precision=precision)
        self.device = self.fabric.device
        self.plain_network = network
        self.epochs, self.batch_size, self.drop_last = epochs, batch_size, drop_last
        self.make_optimizer, self.schedule, self.batches = optimizer, schedule, batches
        self.hooks, self.label = [*hooks, *_ambient.get()], label
        self.generator = torch.Generator().manual_seed(seed)
        self.history: list[Row] = []
        self.initial_rates: list[float] = []
        self.stop = False
        self.epoch = self.step = 0
        self.averaged: distributed.Averaged | None = None

    # ---- what methods override ------------------------------------------------------------------------

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Loss of one batch and its terms for the history.

        Parameters
        ----------
        batch : tuple of Tensor
            The rows `index` of every tensor given to :meth:`fit`, on the device.
        index : Tensor, (B,)
        """
        raise NotImplementedError(f"{type(self).__name__} must say how a batch is judged: override compute_loss.")

    def train_step(self, batch: tuple[Tensor, ...], index: Tensor) -> Row:
        """One optimisation step; returns the loss terms."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = self.loss_of(self.compute_loss, batch, index)
        self.fabric.backward(loss)
        self.optimizer.step()
        return {"loss": float(loss.detach()), **terms}

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """The rows `index` of the training tensors; override to draw views."""
        return tuple(tensor[index].to(self.device, non_blocking=True) for tensor in self.tensors)

    def configure(self) -> None:
        """Make the optimiser and hand network and optimiser to Fabric; override for several optimisers."""
        self.network, self.optimizer = self.fabric.setup(self.plain_network, self.make_optimizer(self.plain_network))

    def before_epoch(self) -> None:
        """Work a method does at each epoch's start (pseudo-labels, memory banks)."""

    def after_epoch(self, row: Row) -> None:
        """Work a method does at each epoch's end; it may add entries to the history row."""

    def divide(self, index: Tensor) -> Tensor:
        """The part of a batch that this process takes; override where a batch is more than equal rows."""
        return distributed.portion(index)

    def row_state(self) -> Sequence[tuple[Tensor, int]]:
        """Tensors a method writes for each row it sees, with the axis that counts rows; processes exchange them."""
        return ()

    # ---- the loop -------------------------------------------------------------------------------------

    def fit(self, *tensors: Tensor) -> Trainer:
        """Run the loop over rows of `tensors` (equally long) and return self."""
        self.prepare(*tensors)
        while self.epoch < self.epochs and not self.stop:
            self.run_epoch()
        self.notify("on_fit_end")
        self.plain_network.eval()
        return self

    def prepare(self, *tensors: Tensor) -> None:
        """What precedes the first epoch; with :meth:`run_epoch` it lets a caller go epoch by epoch."""
        self.tensors = tensors
        self.configure()
        if not self.initial_rates:  # a resumed optimiser carries the rates of its last step
            self.initial_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.total_steps = self.epochs * sum(1 for _ in self.own_batches(0, counting=True))
        self.notify("on_fit_begin")

    def run_epoch(self) -> None:
        """One pass over the data and its history row."""
        self.before_epoch()
        self.network.train()
        sums: Row = {}
        count = 0
        seen: list[Tensor] = []
        for index in self.own_batches(self.epoch):
            self.apply_schedule()
            terms = self.train_step(self.fetch(index), index)
            self.step += 1
            count += 1
            seen.append(index)
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value
            self.notify("on_batch_end", terms)
        sums, count = distributed.total(sums, count)
        distributed.average_buffers(self.plain_network)
        distributed.merge_rows(self.row_state(), seen)
        row: Row = {"epoch": self.epoch, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= {key: value / max(count, 1) for key, value in sums.items()}
        if not math.isfinite(row.get("loss", 0.0)):
            raise FloatingPointError(
                f"The loss of {self.label!r} became {row['loss']} in epoch {self.epoch + 1}. Lower the learning rate."
            )
        self.after_epoch(row)
        self.notify("on_epoch_end", row)
        self.history.append(row)
        self.epoch += 1

    def loss_of(self, loss: Callable[..., Any], *args: Any) -> Any:
        """What ``loss(*args)`` returns, so that ``backward`` on it averages the gradients over the processes."""
        if distributed.processes() == 1:
            return loss(*args)
        if self.averaged is None:
            self.averaged = distributed.Averaged(self.plain_network)
        return self.averaged(loss, *args)

    def own_batches(self, epoch: int, counting: bool = False) -> Iterator[Tensor]:
        """The part of each batch that this process takes; batches of one row or none a process are left out."""
        several = distributed.processes() > 1
        for index in self.iterate(epoch, counting):
            mine = self.divide(index) if several else index
            if not several or len(mine) > 1:
                yield mine

    def iterate(self, epoch: int, counting: bool = False) -> Iterator[Tensor]:
        """Index tensors of one epoch. With `counting` nothing is drawn from the generator."""
        if self.batches is not None:
            yield from self.batches(epoch)
            return
        n = len(self.tensors[0])
        order = torch.arange(n) if counting else torch.randperm(n, generator=self.generator)
        for index in order.split(self.batch_size):
            short = len(index) < self.batch_size
            if not (short and (self.drop_last or len(index) < 2)) or n < 2:
                yield index

    def apply_schedule(self) -> None:
        """Set every learning rate to its initial value times the schedule's factor for this step."""
        if self.schedule is not None:
            factor = self.schedule(self.step, self.total_steps)
            for group, rate in zip(self.optimizer.param_groups, self.initial_rates, strict=True):
                group["lr"] = rate * factor

    def notify(self, event: str, *args: Any) -> None:
        """Call `event` on every hook."""
        for hook in self.hooks:
            getattr(hook, event)(self, *args)

    # ---- interruption ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on after the last finished epoch."""
        return {
            "network": copy.deepcopy(self.plain_network.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "initial_rates": list(self.initial_rates),
            "history": list(self.history),
            "epoch": self.epoch,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; call it before :meth:`fit`, which then runs the remaining epochs."""
        self.plain_network.load_state_dict(state["network"])
        make = self.make_optimizer

        def restored(network: nn.Module) -> Optimizer:
            optimizer = make(network)
            optimizer.load_state_dict(state["optimizer"])
            return optimizer

        self.make_optimizer = restored
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generator"])
        self.initial_rates, self.history = list(state["initial_rates"]), list(state["history"])
        self.epoch, self.step = state["epoch"], state["step"]


class StepTrainer(Trainer):
    """A trainer told how many steps to take, on full batches from an endless row of shuffles.

    An epoch has as many steps as the rows need; the last has what is left.

    Parameters
    ----------
    n_steps : int
    drop_last : bool
        Let no batch reach from one shuffle into the next, so that no row comes twice in a batch; rows must then be at
        least as many as a batch. Otherwise fewer rows than a batch repeat in it.
    """

    def __init__(self, network: nn.Module, *, n_steps: int, **parameters: Any) -> None:
        super().__init__(network, epochs=0, **parameters)
        self.n_steps = n_steps
        self.waiting = torch.empty(0, dtype=torch.int64)

    def prepare(self, *tensors: Tensor) -> None:
        """Count the epochs, then as any trainer."""
        n, size = len(tensors[0]), self.batch_size
        self.steps_an_epoch = max(1, n // size if self.drop_last else -(-n // size))
        self.epochs = -(-self.n_steps // self.steps_an_epoch)
        super().prepare(*tensors)
        self.total_steps = self.n_steps

    def iterate(self, epoch: int, counting: bool = False) -> Iterator[Tensor]:
        """Full batches; with `counting` nothing is drawn from the generator."""
        n, size = len(self.tensors[0]), self.batch_size
        for _ in range(min(self.steps_an_epoch, self.n_steps - epoch * self.steps_an_epoch)):
            if counting:
                yield torch.arange(size)
                continue
            if self.drop_last and len(self.waiting) < size:
                self.waiting = self.waiting[:0]
            while len(self.waiting) < size:
                self.waiting = torch.cat([self.waiting, torch.randperm(n, generator=self.generator)])
            batch, self.waiting = self.waiting.split([size, len(self.waiting) - size])
            yield batch


class EarlyStopping(Hook):
    """Stop when `key` has not improved by `min_delta` for `patience` epochs; optionally restore the best weights."""

    def __init__(
        self, key: str = "loss", patience: int = 2, min_delta: float = 0.0, maximise: bool = False, restore: bool = True
    ) -> None:
        self.key, self.patience, self.min_delta, self.restore = key, patience, min_delta, restore
        self.sign = -1.0 if maximise else 1.0
        self.best, self.waited = math.inf, 0
        self.best_state: dict[str, Tensor] | None = None

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """Compare this epoch with the best so far."""
        value = self.sign * row[self.key]
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            if self.restore:
                self.best_state = copy.deepcopy(trainer.plain_network.state_dict())
            return
        self.waited += 1
        trainer.stop = trainer.stop or self.waited >= self.patience

    def on_fit_end(self, trainer: Trainer) -> None:
        """Put the best weights back."""
        if self.best_state is not None:
            trainer.plain_network.load_state_dict(self.best_state)


class ExponentialAverage(Hook):
    """Keep an exponential moving average of the weights in ``average`` (Polyak; Tarvainen & Valpola, 2017)."""

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Start from the current weights."""
        self.average = copy.deepcopy(trainer.plain_network).eval().requires_grad_(False)

    def on_batch_end(self, trainer: Trainer, terms: Row) -> None:
        """Move the average one step; buffers are copied."""
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), trainer.plain_network.parameters(), strict=True):
                mean.lerp_(new, 1 - self.decay)
            for kept, current in zip(self.average.buffers(), trainer.plain_network.buffers(), strict=True):
                kept.copy_(current)


def sgd(
    lr: float, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
) -> Callable[..., Optimizer]:
    """Network -> SGD over its trainable parameters."""
    return lambda network: torch.optim.SGD(
        _trainable(network), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
    )


def adam(lr: float, weight_decay: float = 0.0, decoupled: bool = False) -> Callable[..., Optimizer]:
    """Network -> Adam, or AdamW when `decoupled`, over its trainable parameters."""
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return lambda network: kind(_trainable(network), lr=lr, weight_decay=weight_decay)


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def cosine(step: float, total: float) -> float:
    """Half a cosine from 1 to 0 over the whole training."""
    return 0.5 * (1 + math.cos(math.pi * step / max(total, 1)))


def warmup_cosine(warmup: int) -> Callable[[int, int], float]:
    """A linear rise over the first `warmup` steps, then half a cosine to 0."""
    return lambda step, total: (step + 1) / warmup if step < warmup else cosine(step - warmup, total - warmup)


def one_cycle(warm: float = 0.3, start: float = 0.04, end: float = 4e-6) -> Callable[[int, int], float]:
    """Half a cosine from `start` up to 1 over the share `warm` of the steps, then down to `end` (Smith & Topin, 2019).

    Examples
    --------
    >>> [round(one_cycle(0.5)(step, 5), 3) for step in range(5)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """

    def factor(step: int, total: int) -> float:
        last = max(total - 1, 1)
        top = warm * last
        if step < top:
            return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * step / top))
        return end + (1 - end) * cosine(step - top, last - top)

    return factor


def cosine_restarts(first_steps: int, growth: int = 2) -> Callable[[int, int], float]:
    """Cosine decay with warm restarts (Loshchilov & Hutter, 2017); each period is `growth` times the last."""

    def factor(step: int, total: int) -> float:
        start, length = 0, first_steps
        while step >= start + length:
            start, length = start + length, length * growth
        return 0.5 * (1 + math.cos(math.pi * (step - start) / length))

    return factor


def table_rate(table: Sequence[tuple[int, float]], epoch: int) -> float:
    """Learning rate of a 0-based epoch in a table of (bound, rate): the first with bound > epoch, or the last rate."""
    return next((rate for bound, rate in table if bound > epoch), table[-1][1])


def inverse_decay(alpha: float = 10.0, power: float = 0.75) -> Callable[[int, int], float]:
    """(1 + alpha t / T)^-power, the usual schedule of domain adaptation (Ganin et al., 2016)."""
    return lambda step, total: (1 + alpha * step / max(total, 1)) ** -power


class ClassifierTrainer(Trainer):
    """Cross-entropy on (X, y); rows labelled -1 carry no loss.

    Parameters
    ----------
    label_smoothing : float
    augment : callable, optional
        Batch of images -> batch of images, drawn anew each step.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        label_smoothing: float = 0.0,
        augment: Callable[[Tensor], Tensor] | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__(network, **parameters)
        self.augment = augment
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing, ignore_index=-1)

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Cross-entropy and training accuracy of the batch."""
        x, y = batch
        logits = self.network(self.augment(x) if self.augment else x)
        labelled = y >= 0
        if not labelled.any():
            return logits.sum() * 0.0, {}
        accuracy = (logits.argmax(1) == y)[labelled].float().mean()
        return self.criterion(logits, y), {"train_accuracy": float(accuracy)}

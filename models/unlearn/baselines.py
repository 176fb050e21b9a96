"""The yardsticks of unlearning: retraining, fine-tuning (repair) and gradient ascent.

Each takes a trained classifier in any form that :class:`models.unlearn.split.SplitView` reads, leaves it
untouched and returns an edited copy.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.optim import Adam

from models.base import check_labels, isolated_seed
from models.networks import build
from models.training import ClassifierTrainer, Row, adam
from models.unlearn.split import Inputs, SplitView, stack_inputs

M = TypeVar("M", bound=nn.Module)


def retrain(
    model: M,
    X: Inputs,
    y: ArrayLike | Tensor,
    *,
    epochs: int = 20,
    lr: float = 1e-4,
    weight_decay: float = 1e-4,
    batch_size: int = 32,
    random_state: int | None = 0,
    device: str = "cpu",
) -> M:
    """Train a network built like `model` from fresh weights on the data that may stay: what unlearning aims at.

    Parameters
    ----------
    model : nn.Module
    X : array, tensor, Dataset or DataLoader, (n, ...)
    y : array, (n,)
        -1 = unlabelled, not used.
    epochs, lr, weight_decay, batch_size
        Of Adam, by default those of the original models of Shen et al. (2024).
    random_state : int, optional
    device : str

    Returns
    -------
    nn.Module
        In eval mode.

    Raises
    ------
    ValueError
        If nothing is labelled, or the weights can not be drawn anew.
    """
    with isolated_seed(random_state) as seed:
        rows, labels = _labelled(X, y)
        view = SplitView(reinitialised(model), frozen=False)
        ClassifierTrainer(
            view,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=adam(lr, weight_decay),
            label="retrain",
            seed=seed,
            device=device,
        ).fit(rows, labels)
    return view.network  # type: ignore[return-value]


def fine_tune(
    model: M,
    X: Inputs,
    y: ArrayLike | Tensor,
    *,
    epochs: int = 5,
    lr: float = 1e-4,
    batch_size: int = 32,
    scope: str = "all",
    freeze_batch_norm: bool = True,
    random_state: int | None = 0,
    device: str = "cpu",
) -> M:
    """Go on training with cross-entropy on labelled data that may stay.

    With all of it this is the fine-tuning baseline, with a few hundred rows it is repair.

    Parameters
    ----------
    model : nn.Module
    X : array, tensor, Dataset or DataLoader, (n, ...)
    y : array, (n,)
        -1 = unlabelled, not used.
    epochs, lr, batch_size
        Of Adam.
    scope : {"all", "head"}
        Which parameters move.
    freeze_batch_norm : bool
        Stay in eval mode: batch-normalisation statistics are kept, dropout is off.
    random_state : int, optional
    device : str

    Returns
    -------
    nn.Module
        In eval mode.

    Raises
    ------
    ValueError
        If nothing is labelled, or the scope has no trainable parameter.
    """
    if scope not in ("all", "head"):
        raise ValueError(f"scope must be 'all' or 'head', got {scope!r}.")
    with isolated_seed(random_state) as seed:
        rows, labels = _labelled(X, y)
        view = SplitView(copy.deepcopy(model), frozen=freeze_batch_norm)
        optimizer = adam(lr)
        if scope == "head":
            head = view.head_parameters(rows[:2].to(next(view.parameters()).device))
            if not head:
                raise ValueError("The classifier has no trainable head; repair all parameters instead.")
            optimizer = lambda _: Adam(head, lr=lr)  # noqa: E731
        ClassifierTrainer(
            view,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            label="fine-tune",
            seed=seed,
            device=device,
        ).fit(rows, labels)
    return _clean(view)  # type: ignore[return-value]


class _AscentTrainer(ClassifierTrainer):
    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        loss, terms = super().compute_loss(batch, index)
        return -loss, terms


def gradient_ascent(
    model: M,
    X_forget: Inputs,
    y_forget: ArrayLike | Tensor,
    *,
    epochs: int = 1,
    lr: float = 1e-5,
    batch_size: int = 32,
    freeze_batch_norm: bool = True,
    random_state: int | None = 0,
    device: str = "cpu",
) -> M:
    """Climb the cross-entropy of the samples to forget (NegGrad; Golatkar et al., 2020).

    The loss has no upper bound, so the damage to the rest grows with every step: keep `epochs` and `lr` small.

    Parameters
    ----------
    model : nn.Module
    X_forget : array, tensor, Dataset or DataLoader, (n, ...)
    y_forget : array, (n,)
        The labels the model was trained with.
    epochs, lr, batch_size
        Of Adam.
    freeze_batch_norm : bool
    random_state : int, optional
    device : str

    Returns
    -------
    nn.Module
        In eval mode.

    Raises
    ------
    ValueError
        If nothing is labelled.
    """
    with isolated_seed(random_state) as seed:
        rows, labels = _labelled(X_forget, y_forget)
        view = SplitView(copy.deepcopy(model), frozen=freeze_batch_norm)
        _AscentTrainer(
            view,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=adam(lr),
            label="gradient ascent",
            seed=seed,
            device=device,
        ).fit(rows, labels)
    return _clean(view)  # type: ignore[return-value]


def reinitialised(model: M) -> M:
    """A network built like `model`, its weights drawn anew from torch's global generator.

    Raises
    ------
    ValueError
        If the network neither carries an ``architecture`` nor consists of layers that can reset themselves.
    """
    architecture: Any = getattr(model, "architecture", None)
    if architecture is not None:
        return build(architecture)  # type: ignore[return-value]
    fresh = copy.deepcopy(model)
    for name, module in fresh.named_modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"The layer {name or type(module).__name__!r} holds weights but no reset_parameters, so it can not be "
                "retrained from scratch. Use a network of models.networks, or give the layer that method."
            )
    return fresh


def _labelled(X: Inputs, y: ArrayLike | Tensor) -> tuple[Tensor, Tensor]:
    rows = stack_inputs(X)
    labels = torch.from_numpy(check_labels(y, len(rows), minimum_classes=1))
    return rows[labels >= 0], labels[labels >= 0]


def _clean(view: SplitView) -> nn.Module:
    view.zero_grad(set_to_none=True)
    return view.network

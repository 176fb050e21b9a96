"""Plain supervised training of a split classifier: the fine-tune of the chain, and the naive model beside it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.base import isolated_seed, predict_in_batches
from models.networks.heads import SplitClassifier
from models.networks.mlp import MLPEncoder
from models.training import ClassifierTrainer, Row, Trainer, cosine, sgd

ClassifierSpec = torch.nn.Module | Callable[[], torch.nn.Module] | None


def make_classifier(spec: ClassifierSpec, shape: Sequence[int], n_classes: int, *, name: str = "model") -> Any:
    """A classifier that may be trained without changing `spec`.

    Parameters
    ----------
    spec : nn.Module, callable or None
        A module (copied, weights included), a function that makes a fresh one, or None for a network of two hidden
        layers of 256 units.
    shape : sequence of int
        Of one sample.
    n_classes : int
    name : str
        What the messages call the argument.

    Returns
    -------
    nn.Module
        Rows (B, *shape) -> logits (B, at least n_classes).

    Raises
    ------
    ValueError
        If the function gives no module, or the network does not take such samples or gives too few logits.
    """
    if spec is None:
        return SplitClassifier(MLPEncoder(math.prod(shape), (256, 256), batch_norm=False), n_classes, None)
    made: Any = copy.deepcopy(spec) if isinstance(spec, torch.nn.Module) else spec()
    if not isinstance(made, torch.nn.Module):
        raise ValueError(f"{name} must return an nn.Module, got {type(made).__name__}.")
    try:
        logits = predict_in_batches(made, torch.zeros(2, *shape), device=next(iter(made.parameters())).device)
    except (RuntimeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{name} does not take samples shaped {tuple(shape)}: {error}. Give a network made for them."
        ) from error
    if logits.ndim != 2 or logits.shape[1] < n_classes:
        raise ValueError(
            f"{name} must give logits shaped (n, {n_classes}), one a class, got {tuple(logits.shape)} for 2 samples."
        )
    return made


def train_classifier(
    network: SplitClassifier,
    X: Tensor,
    y: NDArray[np.int64],
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    augment: Callable[[Tensor], Tensor] | None = None,
    label: str = "supervised",
    seed: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """Train `network` in place with SGD and a cosine schedule; returns the history.

    Parameters
    ----------
    network : SplitClassifier
    X : Tensor, (n, ...)
    y : array, (n,)
        -1 rows carry no loss.
    augment : callable, optional
        Batch -> batch.
    """
    with isolated_seed(seed):
        trainer: Trainer = ClassifierTrainer(
            network,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=sgd(lr, momentum, weight_decay, nesterov=True),
            schedule=cosine,
            label_smoothing=label_smoothing,
            augment=augment,
            label=label,
            seed=seed,
            device=device,
        )
        trainer.fit(X, torch.from_numpy(np.asarray(y)))
    return trainer.history


def probabilities(network: torch.nn.Module, X: Tensor, batch_size: int = 1024) -> NDArray[np.float32]:
    """Softmax outputs (n, K) in eval mode."""
    return predict_in_batches(network, X, batch_size).softmax(dim=1).numpy()

"""Plain supervised training of a split classifier: the fine-tune of the chain, and the naive model beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.base import isolated_seed, predict_in_batches
from models.networks.heads import SplitClassifier
from models.training import ClassifierTrainer, Row, Trainer, cosine, sgd


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

"""How features are judged: a logistic regression on few labels, and the random network they must beat."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn


def probe_accuracy(
    train: NDArray[np.floating], y_train: NDArray[np.int64], test: NDArray[np.floating], y_test: NDArray[np.int64]
) -> float:
    """Test accuracy of a logistic regression on standardised features (n, ...)."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe.fit(train.reshape(len(train), -1), y_train)
    return float(probe.score(test.reshape(len(test), -1), y_test))


def with_fitted_statistics(network: nn.Module, X: Tensor, batch_size: int = 64) -> nn.Module:
    """A copy with batch-normalisation statistics from one pass over `X`: the fair random control."""
    fitted = copy.deepcopy(network).train()
    for layer in fitted.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over the pass
    with torch.no_grad():
        for part in X.split(batch_size):
            fitted(part)
    return fitted.eval()

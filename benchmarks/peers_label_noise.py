"""Label-noise detection beside cleanlab: the same images, the same encoder and initialisation, the same run.

cleanlab (Northcutt et al., "Confident learning: Estimating uncertainty in dataset labels", JAIR 2021) judges a
trained classifier's out-of-fold probabilities, so the classifier is trained once a fold here. Its outlier score
is the distance to the nearest neighbours in feature space (Kuan and Mueller, 2022).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from models.base import isolated_seed, predict_in_batches

FOLDS = 3


def out_of_fold_probabilities(
    images: Tensor, labels: NDArray[np.int64], train: Callable[[Tensor, NDArray[np.int64]], nn.Module], seed: int
) -> NDArray[np.float64]:
    """Probabilities (n, C) of each row by a network trained on the other folds."""
    probabilities = np.zeros((len(labels), int(labels.max()) + 1))
    for inside, outside in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels):
        network = train(images[inside], labels[inside])
        logits = predict_in_batches(lambda part, net=network: net(part)[0], images[outside])
        probabilities[outside] = torch.softmax(logits.double(), dim=1).numpy()
    return probabilities


def scores(
    peer: str, wrong: NDArray[np.bool_], flagged: NDArray[np.bool_], score: NDArray[np.float64], seconds: float
) -> dict[str, Any]:
    """One row of the comparison: how well wrong labels are ranked and flagged."""
    return {
        "method": peer,
        "noise_auc": round(float(roc_auc_score(wrong, score)), 4),
        "noise_f1": round(float(f1_score(wrong, flagged)), 4),
        "flagged": round(float(flagged.mean()), 4),
        "seconds": round(seconds, 1),
    }


def cleanlab_row(
    images: Tensor,
    labels: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    features: NDArray[np.float64],
    train: Callable[[Tensor, NDArray[np.int64]], nn.Module],
    seed: int,
) -> dict[str, Any]:
    """What cleanlab finds.

    Parameters
    ----------
    images, labels : (n, ...), (n,)
        With the noisy labels.
    wrong, outside : array of bool, (n,)
        Truth: label is wrong; image belongs to no class.
    features : array, (n, d)
        For the outlier score.
    train : callable
        (images, labels) -> trained network whose first output is the logits.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.outlier import OutOfDistribution
    from cleanlab.rank import get_label_quality_scores

    started = time.perf_counter()
    with isolated_seed(seed):
        probabilities = out_of_fold_probabilities(images, labels, train, seed)
    flagged = find_label_issues(labels, probabilities, n_jobs=1)
    quality = get_label_quality_scores(labels, probabilities)
    seconds = time.perf_counter() - started
    row = scores("cleanlab", wrong, np.asarray(flagged, dtype=bool), -quality, seconds)
    typical = OutOfDistribution().fit_score(features=features, verbose=False)
    return {**row, "ood_auc": round(float(roc_auc_score(outside, -typical)), 4)}

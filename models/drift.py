"""Has the data changed since a model was made? Three measures that need no label.

Each compares what a model says of a reference sample with what it says of new rows, so that any kind of data will do:

- domain classifier: how well a classifier tells reference from new rows (D. Lopez-Paz and M. Oquab, "Revisiting
  Classifier Two-Sample Tests", ICLR 2017), on the model's outputs (S. Rabanser, S. Günnemann and Z. C. Lipton,
  "Failing Loudly", NeurIPS 2019);
- confidence: distance between the histograms of the largest probability;
- separability: how much less the outputs fall into groups (:mod:`models.validate.separability`).

Alone each has its blind spot, so :func:`drifted` asks for several that agree.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import jensenshannon
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.base import check_embeddings
from models.validate.separability import PersistenceSeparability

FOLDS = 5
MINIMUM_ROWS = 20
SEPARABILITY_ROWS = 400


def domain_auc(reference: ArrayLike, batch: ArrayLike, random_state: int = 0) -> float:
    """Area under the ROC curve of a cross-validated classifier between the two samples.

    Parameters
    ----------
    reference : array, (n, d)
    batch : array, (m, d)
    random_state : int
        Of the folds.

    Returns
    -------
    float
        0.5 when nothing tells them apart, 1 when everything does.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(200, 3))
    >>> domain_auc(X[:100], X[100:]) < 0.65, domain_auc(X[:100], X[100:] + 3) > 0.95
    (True, True)
    """
    first, second = _samples(reference, batch)
    X = np.vstack([first, second])
    y = np.repeat([0, 1], [len(first), len(second)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=random_state)
    scores = cross_val_predict(classifier, X, y, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(y, scores))


def confidence_divergence(reference: ArrayLike, batch: ArrayLike, bins: int = 10) -> float:
    """Jensen-Shannon divergence, in bits, of the histograms of two samples of confidences in [0, 1].

    Examples
    --------
    >>> confidence_divergence([0.9, 0.95], [0.95, 0.9]), confidence_divergence([0.95, 0.99], [0.2, 0.1])
    (0.0, 1.0)
    """
    edges = np.linspace(0, 1, bins + 1)
    histograms = []
    for values in (reference, batch):
        confidences = np.asarray(values, dtype=np.float64)
        if not confidences.size or not ((confidences >= 0) & (confidences <= 1)).all():
            raise ValueError("Confidences must be numbers in [0, 1], at least one, in both samples.")
        histograms.append(np.histogram(confidences, edges)[0])
    return float(jensenshannon(histograms[0], histograms[1], base=2) ** 2)


def separability_drop(reference: ArrayLike, batch: ArrayLike, random_state: int = 0) -> float:
    """How much of the reference's separability the batch lacks, as a share of it; below 0 when it has more.

    Scores of clouds of different size do not compare, so equally many rows are drawn of both.
    """
    first, second = _samples(reference, batch)
    rows = min(len(first), len(second), SEPARABILITY_ROWS)
    scores = [_separability(sample, rows, random_state) for sample in (first, second)]
    return 1.0 - scores[1] / scores[0] if scores[0] > 0 else 0.0


def _separability(points: NDArray[np.float64], rows: int, random_state: int) -> float:
    drawn = points[np.random.default_rng(random_state).permutation(len(points))[:rows]]
    if not np.ptp(drawn, axis=0).any():
        return 0.0
    return float(PersistenceSeparability(random_state=random_state, drop_duplicates=True).fit(drawn).score_)


def measure(reference: ArrayLike, batch: ArrayLike, random_state: int = 0) -> dict[str, float]:
    """All three measures for log-probabilities (n, classes) of both samples."""
    first, second = _samples(reference, batch)
    confidences = [np.exp(sample).max(axis=1).clip(0, 1) for sample in (first, second)]
    return {
        "domain_auc": domain_auc(first, second, random_state),
        "confidence_divergence": confidence_divergence(*confidences),
        "separability_drop": separability_drop(first, second, random_state),
    }


def drifted(measured: Mapping[str, float], bounds: Mapping[str, float], agreeing: int) -> bool:
    """Whether at least `agreeing` measures exceed their bounds."""
    return sum(measured[name] > bound for name, bound in bounds.items()) >= agreeing


def _samples(reference: ArrayLike, batch: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = (np.asarray(check_embeddings(X, minimum=MINIMUM_ROWS), np.float64) for X in (reference, batch))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"Both samples must have equally many columns, got {first.shape[1]} and {second.shape[1]}.")
    return first, second

"""What is told of a training set without training on it, and of its classes after: the statistics of SELECT.

B. Feuer, J. Xu, N. Cohen, P. Yubeaton, G. Mittal and C. Hegde, "SELECT: A Large-Scale Benchmark of Data Curation
Strategies for Image Classification", NeurIPS 2024, arXiv:2410.05057.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import skew
from sklearn.metrics import confusion_matrix
from torch import Tensor

from models.base import check_embeddings, check_labels

Floats = NDArray[np.float64]
Predictions = tuple[ArrayLike, ArrayLike]
FAR = 10.0  # how far from every feature the stand-ins of an absent class lie, at least
TRIES = 5


def accuracy_interval(accuracy: float, n: int) -> float:
    """Half width of the 95 % interval of an accuracy on `n` items: 1.96 sqrt(a (1 - a) / n).

    Examples
    --------
    >>> round(accuracy_interval(0.9, 100), 4)
    0.0588
    """
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / n)


def correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Pearson's correlation; nan when an entry of either is undefined or one of them is constant."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(a) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def class_figures(predictions: Predictions, n_classes: int) -> dict[str, Floats]:
    """Accuracy (= recall), precision and skewness of the confusions of each class; nan where undefined.

    A class is confused with others in shares; how unequal the shares above zero are is their skewness. Equal shares
    have none (0); a class that is never confused has no shares (nan).
    """
    truth, predicted = (np.asarray(part) for part in predictions)
    table = confusion_matrix(truth, predicted, labels=np.arange(n_classes)).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = np.diag(table) / table.sum(axis=1), np.diag(table) / table.sum(axis=0)
    skewness = np.full(n_classes, np.nan)
    for number, row in enumerate(table):
        confused = np.delete(row, number)
        confused = confused[confused > 0]
        if len(confused):
            skewness[number] = 0.0 if np.ptp(confused) == 0 else float(skew(confused / confused.sum()))
    return {"accuracy": recall, "precision": precision, "skewness": skewness}


def dataset_statistics(
    y: ArrayLike,
    n_classes: int,
    predictions: Predictions | None = None,
    reference_predictions: Predictions | None = None,
    reference_y: ArrayLike | None = None,
) -> dict[str, float]:
    """Statistics of a training set's classes, and how they go with what a network trained on it does.

    Parameters
    ----------
    y : array of int, (n,)
        Its labels, 0..n_classes - 1.
    n_classes : int
    predictions : pair of arrays, optional
        (truth, predicted) on validation rows, of a network trained on the set.
    reference_predictions, reference_y
        The same of the set that others are compared with, and its labels.

    Returns
    -------
    dict of str to float
        ``coverage`` (classes with rows), ``lt500`` (classes with fewer than 500), ``ls5`` (share of the rows in the
        largest 5 % of classes, rounded, at least one), ``imbalance`` (largest count by smallest, inf where one is 0),
        and with predictions ``class_accuracy`` (mean over classes) and the correlations over classes
        ``r_precision_count``, ``r_precision_recall``, ``r_accuracy_skewness``, ``r_reference_accuracy`` and
        ``r_reference_count``. Of a class that is never predicted the precision is undefined, and so are its
        correlations: nan.

    Raises
    ------
    ValueError
        For no labels, or labels outside 0..n_classes - 1.

    Examples
    --------
    >>> dataset_statistics([0, 0, 0, 1], 3)["coverage"]
    2.0
    """
    labels = np.asarray(y)
    if not labels.size:
        raise ValueError("y must hold the labels of at least one row, got none.")
    labels = check_labels(labels, labels.size, n_classes=n_classes, allow_unlabelled=False, minimum_classes=1)
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    largest = np.sort(counts)[::-1][: max(1, round(0.05 * n_classes))]
    found = {
        "coverage": float((counts > 0).sum()),
        "lt500": float((counts < 500).sum()),
        "ls5": float(largest.sum() / counts.sum()),
        "imbalance": float(counts.max() / counts.min()) if counts.min() > 0 else math.inf,
    }
    if reference_y is not None:
        found["r_reference_count"] = correlation(np.bincount(np.asarray(reference_y), minlength=n_classes), counts)
    if predictions is not None:
        own = class_figures(predictions, n_classes)
        found["class_accuracy"] = float(np.mean(own["accuracy"]))
        found["r_precision_count"] = correlation(own["precision"], counts)
        found["r_precision_recall"] = correlation(own["precision"], own["accuracy"])
        found["r_accuracy_skewness"] = correlation(own["accuracy"], own["skewness"])
        if reference_predictions is not None:
            other = class_figures(reference_predictions, n_classes)
            found["r_reference_accuracy"] = correlation(other["accuracy"], own["accuracy"])
    return found


# ---- the probe of features ----------------------------------------------------------------------------------


def balanced_index(
    features: Floats, y: NDArray[np.int64], classes: NDArray[np.int64], per_class: int, seed: int = 0
) -> tuple[Floats, NDArray[np.int64]]:
    """Exactly `per_class` features of each class.

    What is too much is cut off; what is missing is drawn from a normal with the class's mean and deviation; a class
    without any feature gets one far from all (at least 10, of 5 tries the farthest) with jitter, so that it stays
    wrong.
    """
    generator = np.random.default_rng(seed)
    chosen, labels = [], []
    for value in classes:
        own = features[y == value][:per_class]
        missing = per_class - len(own)
        if len(own) and missing:
            drawn = generator.normal(own.mean(axis=0), own.std(axis=0), (missing, features.shape[1]))
            own = np.concatenate([own, drawn])
        elif missing:
            own = _far_feature(features, generator) + 0.01 * generator.normal(size=(missing, features.shape[1]))
        chosen.append(own)
        labels.append(np.full(per_class, value))
    return np.concatenate(chosen), np.concatenate(labels)


def _far_feature(features: Floats, generator: np.random.Generator) -> Floats:
    best, distance = features[0], -1.0
    for _ in range(TRIES):
        direction = generator.normal(size=features.shape[1])
        candidate = features.mean(axis=0) + direction * (2 * FAR / np.linalg.norm(direction))
        nearest = float(np.linalg.norm(features - candidate, axis=1).min())
        if nearest > distance:
            best, distance = candidate, nearest
        if distance >= FAR:
            break
    return best


def balanced_knn_probe(
    train_feats: ArrayLike | Tensor,
    train_y: ArrayLike,
    test_feats: ArrayLike | Tensor,
    test_y: ArrayLike,
    per_class: int,
    k: int = 20,
    T: float = 0.07,
    random_state: int = 0,
) -> float:
    """Accuracy of a cosine k-nearest-neighbour vote, each neighbour weighing exp(cos / T), with classes made equal.

    Parameters
    ----------
    train_feats, test_feats : array or tensor, (n, d) and (m, d)
        Of a frozen encoder.
    train_y, test_y : array of int
    per_class : int
        Features of each class in the index; see :func:`balanced_index`.
    k : int
        Neighbours; 10, 20, 100 and 200 are published.
    T : float
    random_state : int
        Of what is drawn where a class has too few features.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        For features that are not finite, of different widths, labels of another length, or `k`, `T` or `per_class`
        not above 0.

    References
    ----------
    Feuer et al. (2024), section 4, "self-supervised guidance".

    Examples
    --------
    >>> features = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    >>> balanced_knn_probe(features, [0, 0, 1, 1], features, [0, 0, 1, 1], per_class=2, k=1)
    1.0
    """
    if k < 1 or per_class < 1 or T <= 0:
        raise ValueError(f"k and per_class must be at least 1 and T above 0, got k={k}, per_class={per_class}, T={T}.")
    train, test = check_embeddings(train_feats, name="train_feats"), check_embeddings(test_feats, name="test_feats")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train_feats and test_feats must be equally wide, got {train.shape[1]} and {test.shape[1]}.")
    y = check_labels(train_y, len(train), allow_unlabelled=False, minimum_classes=1, name="train_y")
    truth = check_labels(test_y, len(test), allow_unlabelled=False, minimum_classes=1, name="test_y")
    classes = np.unique(np.concatenate([y, truth]))
    index, labels = balanced_index(train, y, classes, per_class, random_state)
    index, test = _unit(index), _unit(test)
    which = np.searchsorted(classes, labels)
    right = 0
    for start in range(0, len(test), 1024):
        cosines = torch.from_numpy(test[start : start + 1024] @ index.T)
        values, neighbours = cosines.topk(min(k, len(index)), dim=1)
        votes = torch.zeros(len(values), len(classes), dtype=torch.float64)
        votes.scatter_add_(1, torch.from_numpy(which)[neighbours], torch.exp((values - 1) / T))
        right += int((classes[votes.argmax(1).numpy()] == truth[start : start + 1024]).sum())
    return right / len(test)


def _unit(features: Floats) -> Floats:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


# ---- quality of images, by an image-text model ----------------------------------------------------------------


class PairScorer(Protocol):
    """An image-text model: both give rows of one space (CLIP and its kin)."""

    def image_features(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) -> (n, d)."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (n, d)."""


def clip_score(images: Floats, texts: Floats) -> float:
    """Mean of 100 max(cos(image, its text), 0) (Hessel et al., 2021)."""
    return float(100 * np.maximum((_unit(images) * _unit(texts)).sum(axis=1), 0).mean())


def clip_iqa(images: Floats, good: Floats, bad: Floats) -> float:
    """Mean probability of "good" against "bad", softmax of 100 cosines (Wang et al., 2023)."""
    difference = 100 * _unit(images) @ (_unit(good[None]) - _unit(bad[None]))[0]
    return float((1 / (1 + np.exp(-difference))).mean())


def inception_score(probabilities: ArrayLike) -> float:
    """Exponential of the mean KL divergence of each row's classes from all rows' (Salimans et al., 2016)."""
    p = np.asarray(probabilities, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(p.mean(axis=0))), 0.0)
    return float(np.exp(terms.sum(axis=1).mean()))


def cmmd(first: Floats, second: Floats, deviation: float = 10.0) -> float:
    """1000 times the squared maximum mean discrepancy of unit features, Gaussian kernel (Jayasumana et al., 2024)."""
    a, b = _unit(first), _unit(second)

    def kernel(x: Floats, z: Floats) -> float:
        squares = 2 - 2 * x @ z.T  # of rows of length 1
        return float(np.exp(-squares / (2 * deviation**2)).mean())

    return 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))


def image_quality(
    images: Tensor, y: ArrayLike, scorer: PairScorer, prompts: Sequence[str], gold: Tensor | None = None
) -> dict[str, float]:
    """Scores of images that need an image-text model.

    Parameters
    ----------
    images : Tensor, (n, C, H, W)
    y : array of int, (n,)
    scorer : PairScorer
    prompts : sequence of str
        One a class, such as "a photo of a shoe".
    gold : Tensor, optional
        Images to measure the distance to.

    Returns
    -------
    dict of str to float
        ``clip_score``, ``clip_iqa``, ``inception_score`` (of the classes the prompts give) and, with `gold`, ``cmmd``.
    """
    features = check_embeddings(scorer.image_features(images), name="image features")
    texts = check_embeddings(scorer.text_features(prompts), name="text features")
    good, bad = check_embeddings(scorer.text_features(["Good photo.", "Bad photo."]), name="text features")
    logits = torch.from_numpy(100 * _unit(features) @ _unit(texts).T)
    found = {
        "clip_score": clip_score(features, texts[np.asarray(y)]),
        "clip_iqa": clip_iqa(features, good, bad),
        "inception_score": inception_score(logits.softmax(dim=1).numpy()),
    }
    if gold is not None:
        found["cmmd"] = cmmd(features, check_embeddings(scorer.image_features(gold), name="image features"))
    return found

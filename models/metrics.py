"""Measures that several methods and the evaluation report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier


def hungarian_accuracy(y_true: ArrayLike, clusters: ArrayLike) -> float:
    """Share of rows whose cluster is mapped to their class by the best one-to-one assignment."""
    table = _contingency(np.asarray(y_true), np.asarray(clusters))
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def _contingency(y_true: NDArray[np.int64], clusters: NDArray[np.int64]) -> NDArray[np.int64]:
    _, truth = np.unique(y_true, return_inverse=True)
    _, found = np.unique(clusters, return_inverse=True)
    table = np.zeros((truth.max() + 1, found.max() + 1), dtype=np.int64)
    np.add.at(table, (truth, found), 1)
    return table


def clustering_scores(y_true: ArrayLike, clusters: ArrayLike) -> dict[str, float]:
    """Hungarian accuracy, normalised mutual information and adjusted Rand index."""
    return {
        "accuracy": hungarian_accuracy(y_true, clusters),
        "nmi": float(normalized_mutual_info_score(y_true, clusters)),
        "ari": float(adjusted_rand_score(y_true, clusters)),
    }


def discovery_accuracy(y_true: ArrayLike, clusters: ArrayLike, known_classes: ArrayLike) -> dict[str, float]:
    """Clustering accuracy on all rows, those of known ("old") classes and those of new ones, after one assignment.

    Parameters
    ----------
    y_true, clusters : array, (n,)
        Of the unlabelled rows.
    known_classes : array
        Classes of which some rows were labelled.

    Notes
    -----
    Clusters are matched to classes once, over all rows (Vaze et al., 2022). A share of no rows is nan.
    """
    truth, found = np.asarray(y_true), np.asarray(clusters)
    classes, names = np.unique(truth), np.unique(found)
    rows, columns = linear_sum_assignment(_contingency(truth, found), maximize=True)
    class_of = dict(zip(names[columns].tolist(), classes[rows].tolist(), strict=True))
    correct = np.array(
        [class_of.get(cluster) == label for cluster, label in zip(found.tolist(), truth.tolist(), strict=True)]
    )
    old = np.isin(truth, known_classes)
    parts = {"all": np.ones(len(truth), dtype=bool), "old": old, "new": ~old}
    return {name: float(correct[part].mean()) if part.any() else float("nan") for name, part in parts.items()}


def open_set_scores(y_true: ArrayLike, y_pred: ArrayLike, n_known: int) -> dict[str, float]:
    """Known accuracy (mean over known classes present), unknown recall, and their harmonic mean, the H-score.

    Parameters
    ----------
    y_true : array, (n,)
        True classes; anything outside 0..n_known - 1 is unknown.
    y_pred : array, (n,)
        Predicted classes; `n_known` or above, or -1, means "unknown".
    n_known : int

    Notes
    -----
    With no unknown row present, unknown recall and H-score are nan.
    """
    truth, predicted = np.asarray(y_true), np.asarray(y_pred)
    known = (truth >= 0) & (truth < n_known)
    rejected = (predicted < 0) | (predicted >= n_known)
    recalls = [(predicted[truth == c] == c).mean() for c in np.unique(truth[known])]
    accuracy = float(np.mean(recalls)) if recalls else float("nan")
    unknown = float(rejected[~known].mean()) if (~known).any() else float("nan")
    both = accuracy + unknown
    h = 2 * accuracy * unknown / both if both > 0 else (0.0 if both == 0 else float("nan"))
    return {"known_accuracy": accuracy, "unknown_recall": unknown, "h_score": h}


def h_score(y_true: ArrayLike, y_pred: ArrayLike, n_known: int) -> float:
    """Harmonic mean of known-class accuracy and unknown recall (Fu et al., 2020)."""
    return open_set_scores(y_true, y_pred, n_known)["h_score"]


def worst_group_accuracy(y_true: ArrayLike, y_pred: ArrayLike, groups: ArrayLike) -> tuple[float, object]:
    """Lowest accuracy over the groups, and that group."""
    correct, groups = np.asarray(y_true) == np.asarray(y_pred), np.asarray(groups)
    scores = {group: float(correct[groups == group].mean()) for group in np.unique(groups)}
    worst = min(scores, key=scores.__getitem__)
    return scores[worst], worst


def expected_calibration_error(probabilities: ArrayLike, y_true: ArrayLike, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al., 2017, eq. 3)."""
    p = np.asarray(probabilities)
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == np.asarray(y_true)
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(confidence[which == b].mean() - correct[which == b].mean()) * (which == b).mean() for b in np.unique(which)
    ]
    return float(np.sum(gaps))


def per_class_accuracy(y_true: ArrayLike, y_pred: ArrayLike, n_classes: int) -> NDArray[np.float64]:
    """Recall of each class, nan where the class does not occur, (n_classes,)."""
    table = confusion_matrix(y_true, y_pred, labels=np.arange(n_classes)).astype(float)
    total = np.array([(np.asarray(y_true) == c).sum() for c in range(n_classes)], dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.diag(table) / total


def class_diversity(features: ArrayLike, labels: ArrayLike) -> float:
    """Mean over classes of the mean ``1 - cosine`` between two different rows of one class.

    Parameters
    ----------
    features : array, (n, d)
    labels : array, (n,)

    Returns
    -------
    float
        0 when the rows of each class point the same way; nan when no class has two rows.

    Examples
    --------
    >>> class_diversity([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [2.0, 2.0]], [0, 0, 1, 1])
    0.5
    """
    rows, classes = np.asarray(features, dtype=np.float64), np.asarray(labels)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    found = []
    for members in (rows[classes == value] for value in np.unique(classes)):
        if (n := len(members)) > 1:
            pairs = float((members.sum(axis=0) ** 2).sum() - (members**2).sum())
            found.append(1 - pairs / (n * (n - 1)))
    return round(float(np.mean(found)), 12) if found else float("nan")


def effective_rank(features: ArrayLike) -> float:
    """Exponential of the entropy of the normalised singular values (Roy & Vetterli, 2007); 1 = collapsed to a line."""
    matrix = np.asarray(features, dtype=np.float64)
    values = np.linalg.svd(matrix - matrix.mean(axis=0), compute_uv=False)
    if values.sum() <= 1e-12:
        return 1.0
    share = values / values.sum()
    share = share[share > 1e-12]
    return float(np.exp(-(share * np.log(share)).sum()))


def knn_accuracy(
    train: ArrayLike, y_train: ArrayLike, test: ArrayLike, y_test: ArrayLike, neighbours: int = 20
) -> float:
    """Accuracy of a cosine k-nearest-neighbour vote on frozen features."""
    vote = KNeighborsClassifier(min(neighbours, len(np.asarray(y_train))), metric="cosine", algorithm="brute")
    return float(vote.fit(train, y_train).score(test, y_test))


def membership_attack(
    members: ArrayLike,
    non_members: ArrayLike,
    suspects: ArrayLike,
    fresh: ArrayLike,
    random_state: int = 0,
    attacker: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """How well softmax outputs betray membership (the attack of Shen et al., 2024).

    A classifier learns to tell `members` from `non_members` by their sorted softmax vectors and is then asked
    about `suspects` (were they trained on?) and `fresh` rows that certainly were not.

    Parameters
    ----------
    members, non_members, suspects, fresh : array, (n, K)
        Softmax outputs of the attacked model.
    attacker : callable, optional
        Makes the classifier; 100 gradient-boosted trees by default.

    Returns
    -------
    dict
        "asr": balanced accuracy on suspects and fresh rows; "advantage": true minus false positive rate,
        0 = nothing learnt; "suspect_rate": share of suspects called members; "chance": what the advantage stays below
        in 95 of 100 cases when nothing was learnt, from the number of rows on either side.
    """
    inside, outside = _sorted(members), _sorted(non_members)
    n = min(len(inside), len(outside))
    rng = np.random.default_rng(random_state)
    inside = inside[rng.choice(len(inside), n, replace=False)]
    outside = outside[rng.choice(len(outside), n, replace=False)]
    model = (
        attacker()
        if attacker
        else GradientBoostingClassifier(n_estimators=100, max_depth=3, subsample=0.5, random_state=random_state)
    )
    model.fit(np.concatenate([inside, outside]), np.repeat([1, 0], n))
    told, unseen = model.predict(_sorted(suspects)), model.predict(_sorted(fresh))
    called, false = float(told.mean()), float(unseen.mean())
    return {
        "asr": (called + 1 - false) / 2,
        "advantage": called - false,
        "suspect_rate": called,
        "chance": _chance(called, len(told), false, len(unseen)),
    }


def _chance(called: float, n: int, false: float, m: int) -> float:
    """One-sided 95 % bound on the difference of two shares that are equal: the pooled two-proportion test."""
    share = (called * n + false * m + 1) / (n + m + 2)  # never 0 or 1, which would leave chance nothing
    return float(norm.ppf(0.95) * np.sqrt(share * (1 - share) * (1 / n + 1 / m)))


def _sorted(probabilities: ArrayLike) -> NDArray[np.float64]:
    return np.sort(np.asarray(probabilities, dtype=np.float64), axis=1)[:, ::-1]


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Fréchet distance of the Gaussians through two sets of rows (Heusel et al., 2017, equation 6).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``.

    Parameters
    ----------
    first, second : array, (n, d) and (m, d)
        At least two rows each.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(a, rowvar=False)))
    other = np.atleast_2d(np.cov(b, rowvar=False))
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(min=0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + values.sum() + np.trace(other) - 2 * common)

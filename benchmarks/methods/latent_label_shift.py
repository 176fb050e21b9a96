"""DDFA on MNIST: classes that differ in their mix over sources, single digits and pairs of unlike ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from benchmarks.data import mnist
from benchmarks.evidence import Evidence
from models.discover.latent_label_shift import DDFA, class_scores, domains_of_classes, simulate_label_shift
from models.metrics import hungarian_accuracy

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
COMPONENTS, PER_DOMAIN = 40, 2000
MAX_COND = {0.5: 3.0, 3.0: 4.0, 10.0: 6.0}
PAIRS = ((0, 1), (2, 7), (4, 8))


class Problem(NamedTuple):
    """Rows of several sources, split 70 to 30, and the truth."""

    train: Matrix
    test: Matrix
    train_domains: Labels
    test_domains: Labels
    test_truth: Labels
    priors: Matrix
    train_pixels: Matrix
    test_pixels: Matrix


def problem(kind: str, alpha: float, seed: int) -> Problem:
    """Digits 0 to 4 in five sources, or three pairs of unlike digits in three."""
    data = mnist()
    groups = PAIRS if kind == "pairs" else tuple((digit,) for digit in range(5))
    classes = np.full(10, -1)
    for label, digits in enumerate(groups):
        classes[list(digits)] = label
    pool = np.flatnonzero(classes[data.train_labels] >= 0)
    y = classes[data.train_labels[pool]]
    drawn = simulate_label_shift(y, len(groups), alpha, MAX_COND[alpha], PER_DOMAIN, random_state=seed)
    pixels = data.train_images[pool[drawn.rows]].reshape(len(drawn.rows), -1) / 255
    order = np.random.default_rng(seed).permutation(len(pixels))
    cut = int(0.7 * len(order))
    train, test = order[:cut], order[cut:]
    pca = PCA(COMPONENTS, random_state=seed).fit(pixels[train])
    scaler = StandardScaler().fit(pca.transform(pixels[train]))
    reduced = scaler.transform(pca.transform(pixels))
    parts = reduced[train], reduced[test], drawn.domains[train], drawn.domains[test], y[drawn.rows][test]
    return Problem(*parts, drawn.priors, pixels[train], pixels[test])


def prior_error(found: Matrix, truth: Matrix) -> float:
    """L1 distance of the mixes, classes matched, over the number of sources."""
    cost = np.abs(truth[:, :, None] - found[:, None, :]).sum(axis=0)
    return float(cost[linear_sum_assignment(cost)].sum() / len(truth))


def measured(kind: str, alpha: float, seed: int) -> dict[str, float]:
    """Accuracy on test rows given their source, of every arm."""
    given = problem(kind, alpha, seed)
    k = given.priors.shape[1]

    def fitted(**settings: Any) -> DDFA:
        classifier = MLPClassifier(100, early_stopping=True, random_state=seed)
        return DDFA(k, classifier, random_state=seed, **settings).fit(given.train, given.train_domains)

    anchor, nmf = fitted(), fitted(factorizer="nmf")
    A = domains_of_classes(given.priors)
    oracle = (class_scores(anchor.score_domain(given.test), A) * A[given.test_domains]).argmax(axis=1)
    pixels = KMeans(k, n_init=10, random_state=seed).fit(given.train_pixels).predict(given.test_pixels)
    components = KMeans(k, n_init=10, random_state=seed).fit(given.train).predict(given.test)

    def score(labels: Labels) -> float:
        return hungarian_accuracy(given.test_truth, labels)

    return {
        "anchor": score(anchor.predict(given.test, given.test_domains)),
        "nmf": score(nmf.predict(given.test, given.test_domains)),
        "oracle priors": score(oracle),
        "k-means of the pixels": score(pixels),
        "k-means of the components": score(components),
        "error of the mixes, anchor": prior_error(anchor.priors_, given.priors),
        "error of the mixes, nmf": prior_error(nmf.priors_, given.priors),
    }


def collect(evidence: Evidence) -> None:
    """Measure at every seed and judge."""
    evidence.uses("MNIST (40 principal components): digits 0 to 4 in five sources, and pairs 0+1, 2+7, 4+8 in three")
    cases = [("digits", alpha) for alpha in MAX_COND] + [("pairs", 0.5), ("pairs", 3.0)]
    runs = {case: [measured(*case, seed) for seed in evidence.seeds] for case in cases}
    evidence.table(
        "clustering accuracy on test rows given their source, and L1 error of the class mixes a source",
        [
            {"classes": kind, "alpha": alpha, "seed": seed, **{key: round(value, 4) for key, value in row.items()}}
            for (kind, alpha), rows in runs.items()
            for seed, row in zip(evidence.seeds, rows, strict=True)
        ],
    )

    def of(case: tuple[str, float], key: str) -> list[float]:
        return [row[key] for row in runs[case]]

    def lead(case: tuple[str, float], first: str, second: str) -> list[float]:
        return [row[first] - row[second] for row in runs[case]]

    pairs, digits = ("pairs", 0.5), ("digits", 3.0)
    evidence.check("pairs, alpha 0.5: accuracy", of(pairs, "anchor"), at_least=0.93)
    evidence.check(
        "pairs, alpha 0.5: over k-means of the pixels", lead(pairs, "anchor", "k-means of the pixels"), at_least=0.35
    )
    evidence.check("pairs, alpha 0.5: error of the mixes", of(pairs, "error of the mixes, anchor"), at_most=0.10)
    evidence.check("digits, alpha 3: accuracy", of(digits, "anchor"), at_least=0.85)
    evidence.check(
        "digits, alpha 3: less than with the true mixes", lead(digits, "oracle priors", "anchor"), at_most=0.04
    )
    evidence.check("digits, alpha 3: anchor over nmf", lead(digits, "anchor", "nmf"), at_least=0.05)

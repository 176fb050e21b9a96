"""Semi-supervised mixtures on the digits: from three starts to the number of classes, against k-means that knows it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from benchmarks.evidence import Evidence
from models.constrained_kmeans import ConstrainedKMeans
from models.discover.gcd_gmm import SemiSupervisedGMM
from models.metrics import discovery_accuracy

N_CLASSES, N_KNOWN = 10, 5
STARTS = (7, 10, 20)
COMPONENTS = 20
SETTINGS: dict[str, Any] = {"n_components_pca": COMPONENTS, "normalize": False, "psi_scale": "within"}


def partly_labelled(seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows, true digits, and labels: half the rows of 0 to 4, -1 elsewhere."""
    X, truth = load_digits(return_X_y=True)
    random = np.random.default_rng(seed)
    y = np.full(len(truth), -1)
    for label in range(N_KNOWN):
        members = random.permutation(np.flatnonzero(truth == label))
        y[members[: len(members) // 2]] = label
    return X / 16, truth, y


def fragments(truth: NDArray[np.int64], labels: NDArray[np.int64]) -> int:
    """New clusters most of whose rows are of a labelled digit."""
    new = [truth[labels == k] for k in np.unique(labels) if k >= N_KNOWN]
    return sum(int(np.bincount(digits).argmax() < N_KNOWN) for digits in new)


def measured(seed: int) -> list[dict[str, Any]]:
    """One row for each arm."""
    X, truth, y = partly_labelled(seed)
    free = y < 0
    reduced = PCA(COMPONENTS, random_state=seed).fit_transform(X)
    rows = []
    arms: list[tuple[str, dict[str, Any]]] = [(f"mixture from {start}", {"n_init_clusters": start}) for start in STARTS]
    arms.append(("from 20, merging into labelled classes", {"n_init_clusters": 20, "merge_into_labelled": True}))
    for name, settings in arms:
        began = time.perf_counter()
        found = SemiSupervisedGMM(**SETTINGS, **settings, random_state=seed).fit(X, y)
        rows.append(
            {
                "arm": name,
                "classes": found.n_classes_,
                **discovery_accuracy(truth[free], found.labels_[free], range(N_KNOWN)),
                "fragments": fragments(truth[free], found.labels_[free]),
                "labelled rows moved": int((found.labels_[~free] != y[~free]).sum()),
                "rounds": len(found.split_history_),
                "seconds": round(time.perf_counter() - began, 2),
            }
        )
    for k, name in ((N_CLASSES, "semi-supervised k-means, true number"), (20, "semi-supervised k-means, 20")):
        began = time.perf_counter()
        plain = ConstrainedKMeans(k, random_state=seed).fit(reduced, y)
        rows.append(
            {
                "arm": name,
                "classes": k,
                **discovery_accuracy(truth[free], plain.labels_[free], range(N_KNOWN)),
                "fragments": fragments(truth[free], plain.labels_[free]),
                "labelled rows moved": 0,
                "rounds": 0,
                "seconds": round(time.perf_counter() - began, 2),
            }
        )
    return [{"seed": seed, **row} for row in rows]


def collect(evidence: Evidence) -> None:
    """Measure at every seed and judge."""
    evidence.uses("UCI digits (1,797 rows, 20 principal components): half the rows of 0 to 4 labelled")
    runs = evidence.map(measured)
    evidence.table(
        "number of classes, and clustering accuracy on unlabelled rows",
        [
            {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
            for rows in runs
            for row in rows
        ],
    )

    def of(arm: str, key: str) -> list[float]:
        return [float(row[key]) for rows in runs for row in rows if row["arm"] == arm]

    pieces = [int(count) for count in of("mixture from 20", "fragments")]
    dissolved = [int(count) for count in of("from 20, merging into labelled classes", "classes")]
    reason = (
        f"{pieces} of the new clusters, by seed, are pieces of labelled digits, which no merge of new clusters takes "
        f"away, and others writing styles of a digit, whose merge the evidence refuses; with merge_into_labelled=True "
        f"the numbers of classes are {dissolved}."
    )
    for start in STARTS:
        errors = [abs(k - N_CLASSES) for k in of(f"mixture from {start}", "classes")]
        evidence.check(
            f"from {start}: error of the number of classes, worst seed",
            max(errors),
            at_most=3,
            note=reason if start == 20 else "",
        )
    evidence.check(
        "from 20: number of classes, largest", max(of("mixture from 20", "classes")), at_most=14, note=reason
    )
    evidence.check("from 7: number of classes, smallest", min(of("mixture from 7", "classes")), at_least=8)
    means = [np.mean([a, b]) for a, b in zip(of("mixture from 10", "all"), of("mixture from 20", "all"), strict=True)]
    reference = of("semi-supervised k-means, true number", "all")
    evidence.check(
        "accuracy from 10 and 20 over semi-supervised k-means that is told the number",
        [float(a - b) for a, b in zip(means, reference, strict=True)],
        at_least=-0.03,
    )
    moved = sum(sum(of(f"mixture from {start}", "labelled rows moved")) for start in STARTS)
    evidence.check("labelled rows that lost their class", moved, at_most=0)
    slowest = max(max(of(f"mixture from {start}", "seconds")) for start in STARTS)
    evidence.check("seconds a fit, slowest", slowest, at_most=60)

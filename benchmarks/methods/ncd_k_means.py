"""NCD k-means on the UCI digits: against k-means, and its seeding and update rules against one another."""

from __future__ import annotations

from sklearn.cluster import KMeans

from benchmarks.evidence import Evidence
from benchmarks.methods.tabular_ncd import N_NOVEL, accuracy, optdigits
from models.discover.ncd_k_means import NCDKMeans

ARMS = {
    "NCD k-means": {},
    "seeds by distance": {"seeding": "d1"},
    "all centres move": {"update": "all"},
    "known centres move": {"update": "known_only"},
    "one start": {"n_init": 1},
}


def measured(seed: int) -> dict[str, float]:
    """Clustering accuracy of every arm on the test rows of novel digits."""
    table = optdigits(seed)
    novel = table.test[table.test_is_novel]
    plain = KMeans(N_NOVEL, n_init=10, random_state=seed).fit(table.novel_train)
    scores = {"k-means": accuracy(table, plain.predict(novel))}
    for name, settings in ARMS.items():
        fitted = NCDKMeans(N_NOVEL, random_state=seed, **settings).fit(table.train, table.train_named)  # type: ignore[arg-type]
        scores[name] = accuracy(table, fitted.predict(novel))
    return scores


def collect(evidence: Evidence) -> None:
    """Measure at every seed and judge."""
    evidence.uses("UCI digits (1,797 rows, 61 columns that vary): digits 2, 1, 9, 8, 7 named, 3, 6, 0, 5, 4 novel")
    scores = evidence.map(measured)
    evidence.table(
        "clustering accuracy on test rows of novel digits",
        [
            {"seed": seed, **{name: round(value, 4) for name, value in row.items()}}
            for seed, row in zip(evidence.seeds, scores, strict=True)
        ],
    )
    lead = [row["NCD k-means"] - row["k-means"] for row in scores]
    evidence.check("NCD k-means over k-means, mean of the seeds", lead, at_least=-0.05)

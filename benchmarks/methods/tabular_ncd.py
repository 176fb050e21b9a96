"""PBN on the UCI digits (the test file of "optdigits"): five digits named, five to be found."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import StandardScaler

from benchmarks.evidence import Evidence
from models.discover.hidden_classes import HiddenClassKFold, estimate_n_novel, tune_on_hidden_classes
from models.discover.ncd_k_means import NCDKMeans
from models.discover.tabular_ncd import PBN
from models.metrics import hungarian_accuracy

KNOWN = (2, 1, 9, 8, 7)
N_NOVEL, N_TRAIN = 5, 1200
CONSTANT_COLUMNS = (0, 32, 39)
PUBLISHED: dict[str, Any] = {"lr": 8.756e-4, "w": 0.0637, "p_dropout": 0.0865, "latent_dim": 58}
PUBLISHED_K_UNKNOWN: dict[str, Any] = {"lr": 3.646e-4, "w": 0.1892, "p_dropout": 0.0661, "latent_dim": 53}
Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


class Table(NamedTuple):
    """Scaled rows; `train_named` holds -1 for the digits that have no name."""

    train: Matrix
    train_named: Labels
    test: Matrix
    test_truth: Labels

    @property
    def novel_train(self) -> Matrix:
        """Training rows without a name."""
        return self.train[self.train_named < 0]

    @property
    def test_is_novel(self) -> NDArray[np.bool_]:
        """Which test rows are of digits without a name."""
        return ~np.isin(self.test_truth, KNOWN)


def optdigits(seed: int) -> Table:
    """1,200 training and 597 test rows, split at random."""
    X, y = load_digits(return_X_y=True)
    X = np.delete(X, CONSTANT_COLUMNS, axis=1)
    order = np.random.default_rng(seed).permutation(len(X))
    train, test = order[:N_TRAIN], order[N_TRAIN:]
    scaler = StandardScaler().fit(X[train])
    named = np.where(np.isin(y[train], KNOWN), y[train], -1)
    return Table(scaler.transform(X[train]), named, scaler.transform(X[test]), y[test])


def accuracy(table: Table, clusters: Labels) -> float:
    """Clustering accuracy on the test rows of novel digits."""
    return hungarian_accuracy(table.test_truth[table.test_is_novel], clusters)


def measured(seed: int) -> dict[str, float]:
    """Every arm of the comparison for one split."""
    table = optdigits(seed)
    novel = table.test[table.test_is_novel]

    def pbn(**settings: Any) -> PBN:
        return PBN(N_NOVEL, random_state=seed, **{**PUBLISHED, **settings}).fit(table.train, table.train_named)

    full, raw = pbn(), pbn(cluster_space="raw")
    known = ~table.test_is_novel
    plain = KMeans(N_NOVEL, n_init=10, random_state=seed).fit(table.novel_train)
    away = NCDKMeans(N_NOVEL, random_state=seed).fit(table.train, table.train_named)
    latent = full.transform(table.novel_train)
    unknown = PBN(random_state=seed, **PUBLISHED_K_UNKNOWN).fit(table.train, table.train_named)
    return {
        "k-means": accuracy(table, plain.predict(novel)),
        "NCD k-means": accuracy(table, away.predict(novel)),
        "PBN": accuracy(table, full.predict(novel)),
        "PBN, not normalised": accuracy(table, raw.predict(novel)),
        "PBN, classifier only (w = 1)": accuracy(table, pbn(w=1.0).predict(novel)),
        "PBN, autoencoder only (w = 0)": accuracy(table, pbn(w=0.0).predict(novel)),
        "PBN, number of classes estimated": accuracy(table, unknown.predict(novel)),
        "known digits, PBN": float(accuracy_score(table.test_truth[known], full.predict_known(table.test[known]))),
        "k, latent": float(estimate_n_novel(latent, random_state=seed).n_clusters),
        "k, as given": float(estimate_n_novel(table.novel_train, random_state=seed).n_clusters),
    }


def tuned(seed: int) -> dict[str, Any]:
    """A short search on hidden classes: its best setting, refitted and judged."""
    table = optdigits(seed)
    space = {"w": [0.05, 0.2, 0.5, 0.9], "lr": [3e-4, 1e-3, 3e-3], "latent_dim": [16, 58], "epochs": [60]}
    found = tune_on_hidden_classes(
        lambda **chosen: PBN(random_state=seed, **chosen),
        space,
        table.train,
        table.train_named,
        n_trials=6,
        folds=HiddenClassKFold(n_folds=2, random_state=seed),
        random_state=seed,
    )
    best = {**found.best_params, "epochs": 200}
    method = PBN(N_NOVEL, random_state=seed, **best).fit(table.train, table.train_named)
    return {
        **best,
        "accuracy on hidden classes": round(max(trial["score"] for trial in found.trials), 4),
        "accuracy on novel classes": round(accuracy(table, method.predict(table.test[table.test_is_novel])), 4),
    }


def collect(evidence: Evidence) -> None:
    """Measure at every seed and judge."""
    evidence.uses("UCI digits (1,797 rows, 61 columns that vary): digits 2, 1, 9, 8, 7 named, 3, 6, 0, 5, 4 novel")
    scores = evidence.map(measured)
    evidence.table(
        "clustering accuracy on test rows of novel digits, and the number of classes estimated",
        [
            {"seed": seed, **{name: round(value, 4) for name, value in row.items()}}
            for seed, row in zip(evidence.seeds, scores, strict=True)
        ],
    )
    evidence.table(
        "settings chosen on hidden classes (6 random settings, 2 folds)",
        [{"seed": seed, **row} for seed, row in zip(evidence.seeds, evidence.map(tuned), strict=True)],
    )

    def column(name: str) -> list[float]:
        return [row[name] for row in scores]

    evidence.check("PBN: clustering accuracy", column("PBN"), at_least=0.85)
    lead = [row["PBN"] - row["PBN, classifier only (w = 1)"] for row in scores]
    evidence.check("PBN over its classifier alone (w = 1)", lead, at_least=0.30)
    errors = [abs(k - N_NOVEL) for k in column("k, latent")]
    evidence.check("number of classes from the latent space: error, worst seed", max(errors), at_most=1)
    raw_error = float(np.mean([abs(k - N_NOVEL) for k in column("k, as given")]))
    evidence.check("number of classes: mean error in the latent space less that in the rows as given",
                   float(np.mean(errors)) - raw_error, at_most=0)  # fmt: skip
    evidence.check("PBN: accuracy on known digits", column("known digits, PBN"), at_least=0.80)

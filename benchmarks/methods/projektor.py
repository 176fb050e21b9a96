"""projektor on MNIST: three sources of skewed classes; scores of mixtures nobody trained on, and the best mixture."""

from __future__ import annotations

import time
import warnings
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from benchmarks.data import mnist
from benchmarks.evidence import Evidence
from models.curate.mixtures import drawn_counts, simplex_grid
from models.curate.projektor import Projektor

Floats = NDArray[np.float64]
DOMINANT = ((range(4), 0.2425), (range(4, 7), 0.32), (range(7, 10), 0.33))
"""Classes that fill a source, and the share of each; the others divide the rest evenly."""
N0, N1, FAR, VALIDATION = 300, 600, 4800, 2000
RANDOM_TRAINING = 25


class Scene(NamedTuple):
    """Sources as large as the farthest training needs, of which pilots are the first rows, and the validation set."""

    sources: list[tuple[Floats, NDArray[np.int64]]]
    X_val: Floats
    y_val: NDArray[np.int64]


@cache
def scene(seed: int) -> Scene:
    """Images as 32 principal components of the pilots together."""
    data, rng = mnist(), np.random.default_rng(seed)
    of_class = [list(rng.permutation(np.flatnonzero(data.train_labels == c))) for c in range(10)]
    sources = []
    for classes, share in DOMINANT:
        rest = (1 - share * len(classes)) / (10 - len(classes))
        counts = drawn_counts(np.array([share if c in classes else rest for c in range(10)]), FAR)
        rows = np.concatenate([[of_class[c].pop() for _ in range(count)] for c, count in enumerate(counts)])
        sources.append(rng.permutation(rows))
    flat = data.train_images.reshape(len(data.train_images), -1) / 255
    embedding = PCA(32, random_state=0).fit(flat[np.concatenate([rows[: 2 * N1] for rows in sources])])
    chosen = rng.choice(len(data.test_images), VALIDATION, replace=False)
    X_val = embedding.transform(data.test_images[chosen].reshape(VALIDATION, -1) / 255)
    parts = [(embedding.transform(flat[rows]), data.train_labels[rows]) for rows in sources]
    return Scene(parts, X_val, data.test_labels[chosen])


def regression(X: Floats, y: NDArray[np.int64], seed: int) -> LogisticRegression:
    """The learner."""
    return LogisticRegression(max_iter=1000).fit(X, y)


def planner(seed: int, **changes: Any) -> Projektor:
    """The method as it is measured here."""
    chosen = {"n0": N0, "n1": N1, "reps": 2, "label_distance": "means", "ot_solver": "exact", "random_state": seed}
    return Projektor(**{"trainer": regression, **chosen, **changes})


def trained(here: Scene, p: Floats, n: int, seed: int) -> float:
    """Accuracy of one training on `n` rows so mixed."""
    rng = np.random.default_rng(seed)
    parts = [
        (X[rows], y[rows])
        for (X, y), count in zip(here.sources, drawn_counts(p, n), strict=True)
        for rows in [rng.permutation(len(X))[:count]]
    ]
    X, y = (np.concatenate(each) for each in zip(*parts, strict=True))
    return float(regression(X, y, seed).score(here.X_val, here.y_val))


COMPOSITION_ONLY = {
    "linear in the shares": lambda P: P[:, 1:],
    "pseudo-quadratic": lambda P: np.column_stack([P[:, 1:], P**2]),
    "quadratic": lambda P: np.column_stack([P[:, 1:], P**2, P[:, :1] * P[:, 1:], P[:, 1] * P[:, 2]]),
}


def composition_errors(
    P: Floats, scores: Floats, fit: NDArray[np.bool_], judged: NDArray[np.bool_]
) -> dict[str, float]:
    """Mean absolute error of least squares on shares alone, at each size (columns of `scores`)."""
    found = {}
    for name, features in COMPOSITION_ONLY.items():
        design = np.column_stack([np.ones(len(P)), features(P)])
        weights = np.linalg.lstsq(design[fit], scores[fit], rcond=None)[0]
        found[name] = float(np.abs(design[judged] @ weights - scores[judged]).mean())
    return found


def split(job: tuple[int, str]) -> dict[str, Any]:
    """Errors on mixtures never fitted: those with half or more of the second source, or all but 25 at random."""
    seed, kind = job
    here, P = scene(seed), simplex_grid(3, 0.1)
    pilots = [(X[: 2 * N1], y[: 2 * N1]) for X, y in here.sources]
    whole = planner(seed, form="ot").fit(pilots, here.X_val, here.y_val)
    scores = whole.table_["score"].to_numpy().reshape(2, -1).T
    if kind == "extrapolation":
        fit = P[:, 1] < 0.5 - 1e-9
    else:
        fit = np.isin(np.arange(len(P)), np.random.default_rng(seed).choice(len(P), RANDOM_TRAINING, replace=False))
    rows: dict[str, Any] = {"seed": seed, "split": kind}
    ot = whole.table_["ot"].to_numpy().reshape(2, -1).T
    for form in ("auto", "ot", "cs", "pq"):
        began = time.perf_counter()
        found = planner(seed, form=form).fit_from_log(whole.table_[np.tile(fit, 2)])
        spent = time.perf_counter() - began
        laws = found.coef_.values()
        predicted = np.column_stack([law.score(P[~fit], ot[~fit, i]) for i, law in enumerate(laws)])
        rows[form] = float(np.abs(predicted - scores[~fit]).mean())
        if form == "auto":
            rows |= {"chosen form": found.form_, "seconds of the fit": round(spent, 3)}
    held = float((~fit).mean())
    rows["seconds of the transports"] = round(whole.timings_["transport"] * held, 3)
    rows["seconds of trainings as small as the pilots"] = round(whole.timings_["training"] * held, 3)
    if kind == "extrapolation":
        began = time.perf_counter()
        for p in P[~fit]:
            trained(here, p, FAR, seed)
        rows["seconds of trainings of 4800, as often"] = round(2 * (time.perf_counter() - began), 3)
    return rows | composition_errors(P, scores, fit, ~fit)


def choice(seed: int) -> dict[str, Any]:
    """The mixture chosen for N1 rows, trained; the grid's best and the single sources; the line continued to 4800."""
    here, P = scene(seed), simplex_grid(3, 0.1)
    pilots = [(X[: 2 * N1], y[: 2 * N1]) for X, y in here.sources]
    found = planner(seed).fit(pilots, here.X_val, here.y_val)

    def true(p: Floats, n: int) -> float:
        return float(np.mean([trained(here, p, n, 10 * seed + again) for again in range(3)]))

    p, _ = found.select(N1)
    grid = [true(each, N1) for each in P]
    far = [np.eye(3)[0], np.array([0.5, 0.5, 0.0]), np.full(3, 1 / 3), p]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted, (low, high) = found.predict(far, FAR), found.score_interval(far, FAR)
    began = time.perf_counter()
    outcome = [trained(here, each, FAR, seed) for each in far]
    return {
        "seed": seed,
        "chosen": " / ".join(f"{share:.2f}" for share in p),
        "its score": true(p, N1),
        "best of the grid": max(grid),
        "uniform mixture": true(np.full(3, 1 / 3), N1),
        "best single source": max(true(each, N1) for each in np.eye(3)),
        "worst single source": min(true(each, N1) for each in np.eye(3)),
        "seconds a training of 4800": round((time.perf_counter() - began) / len(far), 3),
        "far": [
            {"seed": seed, "mixture": " / ".join(f"{share:.2f}" for share in each), "predicted": guess, "low": down,
             "high": up, "true": truth}
            for each, guess, down, up, truth in zip(far, predicted, low, high, outcome, strict=True)
        ],
    }  # fmt: skip


def collect(evidence: Evidence) -> None:
    """Errors on mixtures never fitted, the choice of a mixture, and what it costs."""
    evidence.uses(
        f"MNIST: three sources of skewed classes, pilots of {2 * N1} training images each, {VALIDATION} test images"
    )
    jobs = [(seed, kind) for kind in ("extrapolation", "random") for seed in evidence.seeds]
    rows = evidence.map(split, jobs)
    evidence.table("mean absolute error on mixtures never fitted", rows)
    apart = {kind: [row for row in rows if row["split"] == kind] for kind in ("extrapolation", "random")}
    mean = {
        kind: {name: float(np.mean([row[name] for row in part])) for name in ("auto", *COMPOSITION_ONLY)}
        for kind, part in apart.items()
    }
    best = min(mean["extrapolation"][name] for name in COMPOSITION_ONLY)
    evidence.check("error of auto beyond the region fitted, over that of the best composition-only model",
                   mean["extrapolation"]["auto"] / best, at_most=0.6)  # fmt: skip
    evidence.check("error of auto with 25 random mixtures, over that of the linear model",
                   mean["random"]["auto"] / mean["random"]["linear in the shares"], at_most=0.7)  # fmt: skip
    chosen = evidence.map(choice)
    evidence.table("mixtures chosen for 600 rows", [{k: v for k, v in row.items() if k != "far"} for row in chosen])
    evidence.table("predicted for 4800 rows, and true", [row for each in chosen for row in each["far"]])
    evidence.check("best of the grid minus the choice's score",
                   [row["best of the grid"] - row["its score"] for row in chosen], at_most=0.03)  # fmt: skip
    evidence.check("the choice's score minus the worst single source",
                   [row["its score"] - row["worst single source"] for row in chosen], at_least=0.2)  # fmt: skip
    spent = sum(row["seconds of the transports"] + row["seconds of the fit"] for row in apart["extrapolation"])
    replaced = sum(row["seconds of trainings of 4800, as often"] for row in apart["extrapolation"])
    evidence.check(
        "seconds of transport and fit, over those of the trainings of 4800 rows they replace",
        spent / replaced,
        at_most=1,
        note="Against trainings as small as the pilots' it would fall short: see the table. Logistic regression on 600 "
        "rows of 32 numbers is done sooner than the exact transport of them.",
    )

"""Evidence for RS2: Fashion-MNIST with 1, 5 and 10 % of the rows a round, beside every selection made once."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from benchmarks.data import fashion_mnist
from benchmarks.evidence import Evidence
from models.curate.baselines import Herding, KCentre, StratifiedSubset
from models.curate.rs2 import RS2Trainer
from models.curate.trained_scores import EL2N, Forgetting, GraNd, Margin
from models.selection import Selector, top_rows
from models.training import Hook, Row, Trainer, hooks

FRACTIONS = (0.01, 0.05, 0.1)
ROUNDS, FULL_EPOCHS, LONGER = 40, 10, 60
RECIPE: dict[str, Any] = {"lr": 0.05, "batch_size": 128}
Rows = NDArray[np.int64]


@cache
def data() -> tuple[NDArray[np.float32], Rows, NDArray[np.float32], Rows]:
    """Rows of 784 pixels, standardised by the mean and deviation of all training pixels."""
    split = fashion_mnist()
    mean, deviation = split.train_images.mean(), split.train_images.std()
    train, test = (
        ((images.reshape(len(images), -1) - mean) / deviation).astype(np.float32)
        for images in (split.train_images, split.test_images)
    )
    return train, split.train_labels, test, split.test_labels


def trained(seed: int, rows: Rows | None = None, eval_every: int = ROUNDS, **settings: Any) -> RS2Trainer:
    """The network after 40 rounds over all rows, or 40 epochs over `rows` alone."""
    X, y, X_test, y_test = data()
    chosen = {"n_rounds": ROUNDS, **RECIPE, **settings}
    if rows is not None:
        X, y, chosen["fraction"] = X[rows], y[rows], 1.0
    return RS2Trainer(**chosen, eval_every=eval_every, random_state=seed).fit(X, y, X_test, y_test)


class StopAfter(Hook):
    """Ends a training early, in the midst of its schedule."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """Stop after so many epochs."""
        trainer.stop = trainer.stop or trainer.epoch + 1 == self.epochs


def accuracy(trainer: RS2Trainer) -> float:
    """Test accuracy after the last round."""
    return float(trainer.history_[-1]["val_metric"])


def seconds(trainer: RS2Trainer) -> float:
    """Seconds of training and selection over all rounds."""
    last = trainer.history_[-1]
    return float(last["seconds_train"] + last["seconds_select"])


def chance(seed: int, fraction: float) -> Rows:
    """Rows drawn once."""
    n = len(data()[0])
    return np.sort(np.random.default_rng(seed).choice(n, round(fraction * n), replace=False))


def fractions_run(seed: int) -> list[dict[str, Any]]:
    """Static random and both kinds of RS2 at each fraction."""
    rows = []
    for fraction in FRACTIONS:
        without = trained(seed, fraction=fraction)
        row: dict[str, Any] = {
            "seed": seed,
            "fraction": fraction,
            "steps": int(without.history_[-1]["steps"]),
            "static random": accuracy(trained(seed, chance(seed, fraction))),
            "RS2 without replacement": accuracy(without),
            "RS2 with replacement": accuracy(trained(seed, fraction=fraction, replacement="with")),
            "RS2 with replacement, stratified": accuracy(
                trained(seed, fraction=fraction, replacement="with", stratify=True)
            ),
        }
        rows.append(row)
    return rows


def time_run(seed: int) -> dict[str, Any]:
    """Ten epochs of everything, and when RS2 with a tenth comes within a point of that."""
    full = trained(seed, eval_every=FULL_EPOCHS, fraction=1.0, n_rounds=FULL_EPOCHS)
    with hooks(StopAfter(FULL_EPOCHS)):
        begun = trained(seed, eval_every=FULL_EPOCHS, fraction=1.0)
    short = trained(seed, eval_every=1, fraction=0.1)
    longer = trained(seed, eval_every=1, fraction=0.1, n_rounds=LONGER)
    last = short.history_[-1]
    reached = short.time_to_accuracy(accuracy(full) - 0.01)
    steps = next((row["steps"] for row in short.history_ if row["val_metric"] >= accuracy(full) - 0.01), None)
    return {
        "seed": seed,
        "full: accuracy": accuracy(full),
        "full: seconds": seconds(full),
        "full: steps": int(full.history_[-1]["steps"]),
        "RS2 10 %: accuracy": accuracy(short),
        "RS2 10 %: seconds of all rounds": seconds(short),
        "RS2 10 %: seconds to full - 0.01": reached,
        "RS2 10 %: steps to full - 0.01": steps,
        "share of the full time": None if reached is None else reached / seconds(full),
        f"RS2 10 %, {LONGER} rounds: accuracy": accuracy(longer),
        f"RS2 10 %, {LONGER} rounds: seconds to full - 0.01": longer.time_to_accuracy(accuracy(full) - 0.01),
        "first 10 of 40 full epochs: accuracy": begun.history_[FULL_EPOCHS - 1]["val_metric"],
        "RS2 10 %: seconds to first 10 of 40 full epochs - 0.01": short.time_to_accuracy(
            begun.history_[FULL_EPOCHS - 1]["val_metric"] - 0.01
        ),
        "share of selection in all seconds": last["seconds_select"] / seconds(short),
    }


def selectors(seed: int) -> dict[str, tuple[Callable[[float], Selector], bool]]:
    """Selections made once: fraction -> selector, and whether they look at 64 principal components."""
    short: dict[str, Any] = {"epochs": 10, "n_models": 1, "lr": RECIPE["lr"], "random_state": seed}
    return {
        "stratified random": (lambda r: StratifiedSubset(r, random_state=seed), False),
        "k-centre": (lambda r: KCentre(r, random_state=seed), True),
        "herding": (lambda r: Herding(r), True),
        "margin": (lambda r: Margin(r, **short), False),
        "EL2N": (lambda r: EL2N(r, **short), False),
        "GraNd": (lambda r: GraNd(r, **short), False),
        "forgetting": (lambda r: Forgetting(r, **short), False),
    }


def selections_run(seed: int) -> list[dict[str, Any]]:
    """Accuracy and seconds, selection included, of every rule at the smallest and the largest fraction."""
    X, y, *_ = data()
    began = time.perf_counter()
    components = PCA(64, random_state=seed).fit_transform(X).astype(np.float32)
    projecting = time.perf_counter() - began
    rows = []
    for name, (make, projected) in selectors(seed).items():
        began = time.perf_counter()
        selector = make(FRACTIONS[-1]).fit(components if projected else X, y)
        selecting = time.perf_counter() - began + (projecting if projected else 0.0)
        for fraction in (FRACTIONS[0], FRACTIONS[-1]):
            keep = round(fraction * len(X))
            # scores count down in the order of picking, so their head is the smaller selection
            rule = make(fraction).fit(X, y) if name == "stratified random" else selector
            kept = rule.indices_ if len(rule.indices_) == keep else top_rows(rule.scores_, keep)
            run = trained(seed, kept)
            rows.append(_line(seed, name, fraction, accuracy(run), selecting, seconds(run)))
    for fraction in (FRACTIONS[0], FRACTIONS[-1]):
        static, rs2 = trained(seed, chance(seed, fraction)), trained(seed, fraction=fraction)
        rows.append(_line(seed, "static random", fraction, accuracy(static), 0.0, seconds(static)))
        select = rs2.history_[-1]["seconds_select"]
        rows.append(_line(seed, "RS2", fraction, accuracy(rs2), select, seconds(rs2) - select))
    full = trained(seed, eval_every=FULL_EPOCHS, fraction=1.0, n_rounds=FULL_EPOCHS)
    rows.append(_line(seed, "full data, 10 epochs", 1.0, accuracy(full), 0.0, seconds(full)))
    return rows


def _line(seed: int, rule: str, fraction: float, accuracy: float, selecting: float, training: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "rule": rule,
        "fraction": fraction,
        "accuracy": round(accuracy, 4),
        "seconds of selection": round(selecting, 2),
        "seconds in all": round(selecting + training, 2),
    }


def collect(evidence: Evidence) -> None:
    """Measure RS2 against selections made once, at equal steps, and against the full training by the clock."""
    evidence.uses("Fashion-MNIST (60,000 / 10,000), flattened and standardised; MLP 784-256-256-10")
    rows = [row for run in evidence.map(fractions_run) for row in run]
    evidence.table("accuracy after 40 rounds", rows)
    gaps = {r: [_gap(row) for row in rows if row["fraction"] == r] for r in FRACTIONS}
    evidence.check("1 %: RS2 without replacement minus static random, worst seed", min(gaps[0.01]), at_least=0.03)
    evidence.check(
        "1 %: difference between with and without replacement, worst seed",
        max(
            abs(row["RS2 with replacement"] - row["RS2 without replacement"]) for row in rows if row["fraction"] == 0.01
        ),
        at_most=0.01,
        note=(
            "As in the authors' code short batches are dropped without replacement and kept with it: 4 against 5 steps "
            "a round at this fraction."
        ),
    )
    for fraction in FRACTIONS[1:]:
        evidence.check(f"{fraction:.0%}: RS2 minus static random, mean", gaps[fraction], at_least=0.01)
    means = [float(np.mean(gaps[r])) for r in FRACTIONS]
    evidence.check(
        "the gap shrinks as the fraction grows: smallest step down from 1 to 5 to 10 %",
        min(means[0] - means[1], means[1] - means[2]),
        at_least=0.0,
    )
    times = evidence.map(time_run)
    evidence.table("time to the accuracy of ten full epochs", times)
    shares = [row["share of the full time"] for row in times]
    evidence.check(
        "10 %: share of seeds that come within 0.01 of ten full epochs in less time than those take",
        float(np.mean([share is not None and share < 1 for share in shares])),
        at_least=1.0,
        note=_time_note(times),
    )
    evidence.check(
        "10 %: share of selection in all seconds, worst seed",
        max(row["share of selection in all seconds"] for row in times),
        at_most=0.02,
    )
    evidence.table(
        "selections made once: 40 epochs on the rows kept, beside RS2 of as many steps",
        [row for run in evidence.map(selections_run) for row in run],
    )


def _gap(row: dict[str, Any]) -> float:
    return float(row["RS2 without replacement"] - row["static random"])


def _time_note(times: list[dict[str, Any]]) -> str:
    """What is missing, and what would be enough."""

    def shares(key: str) -> str:
        found = [(row[key], row["full: seconds"]) for row in times]
        return ", ".join("never" if own is None else f"{own / full:.0%}" for own, full in found)

    missing = ", ".join(f"{row['full: accuracy'] - row['RS2 10 %: accuracy']:.4f}" for row in times)
    own = shares("RS2 10 %: seconds to full - 0.01")
    longer = shares(f"RS2 10 %, {LONGER} rounds: seconds to full - 0.01")
    begun = shares("RS2 10 %: seconds to first 10 of 40 full epochs - 0.01")
    return (
        f"40 rounds are 1,840 steps against 4,680; after the last of them RS2 is {missing} below ten full epochs. "
        f"Seconds to full - 0.01 as a share of the full time: {own}; with {LONGER} rounds {longer}; against the first "
        f"ten of forty full epochs, whose rate has not fallen yet, {begun}."
    )

"""What a budget buys: pilot runs, two laws fitted to them, and what both expect of a choice of pools."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from infra.runner import runner
from models.base import isolated_seed, predict_in_batches
from models.curate.filtering_laws import DataFilteringLaw, FilteringLawWarning, effective_samples
from models.curate.mixtures import drawn_counts
from models.curate.projektor import Projektor
from models.networks.heads import SplitClassifier
from models.networks.mlp import MLPEncoder
from models.training import ClassifierTrainer, adam, cosine
from tasks.pools import Ground, Pool

Floats32 = NDArray[np.float32]
Labels = NDArray[np.int64]

BATCH, WIDTH, RATE = 16, 128, 3e-3
PILOT_PASSES = (0.5, 1, 2, 4, 8)
"""Budgets of the pilot runs on single pools, in passes."""
MIXED_PASSES = 8
"""Of the pilot runs on mixtures: so many that what is left to gain comes from more rows, on a line that bends less."""
SEEDS = 3
LEVEL = 0.9
"""Of intervals."""
REFITS = 20
MOST_UNIONS_OF = 6
"""Pools of which every union is a candidate; of more, the first ones by utility."""
STEPS = {2: 0.1, 3: 0.2, 4: 0.25}
"""Step of the pilot mixtures' grid by the number of pools; of more, 40 are drawn."""
LEAST_SHARE = 0.02


# ---- the learner ---------------------------------------------------------------------------------------------


class SmallNetwork(ClassifierMixin, BaseEstimator):
    """One hidden layer, trained with Adam and a cosine schedule that ends when `samples` rows were seen."""

    def __init__(self, n_classes: int, samples: int, seed: int) -> None:
        self.n_classes, self.samples, self.seed = n_classes, samples, seed

    def fit(self, X: Floats32, y: Labels) -> SmallNetwork:
        """Train; rows are gone through in a new order each pass."""
        random = np.random.default_rng(self.seed)
        passes = [random.permutation(len(y)) for _ in range(-(-self.samples // len(y)))]
        order = torch.from_numpy(np.concatenate(passes)[: self.samples])
        with isolated_seed(self.seed):
            self.network_ = SplitClassifier(MLPEncoder(X.shape[1], (WIDTH,), batch_norm=False), self.n_classes, None)
            ClassifierTrainer(
                self.network_,
                epochs=1,
                batch_size=BATCH,
                optimizer=adam(RATE),
                schedule=cosine,
                batches=lambda epoch: order.split(BATCH),
                seed=self.seed,
            ).fit(torch.from_numpy(np.asarray(X, dtype=np.float32)), torch.from_numpy(y))
        self.classes_ = np.arange(self.n_classes)
        return self

    def predict(self, X: Floats32) -> Labels:
        """Class numbers (n,)."""
        return predict_in_batches(self.network_, torch.from_numpy(np.asarray(X, dtype=np.float32))).argmax(1).numpy()


class Run(NamedTuple):
    """One training on these rows, judged on those of the ground."""

    ground: Ground
    X: Floats32
    y: Labels
    samples: int
    seed: int

    def accuracy(self) -> float:
        """Train and judge."""
        model = SmallNetwork(self.ground.n_classes, self.samples, self.seed).fit(self.X, self.y)
        return float((model.predict(self.ground.X) == self.ground.y).mean())


# ---- choices -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What to train on.

    Attributes
    ----------
    rows : dict of str to int
        Rows of each pool, at least one.
    budget : int
        Rows seen in training.
    whole : bool
        Whether pools are taken as they come, and not in chosen proportions.
    """

    rows: Mapping[str, int]
    budget: int
    whole: bool = True

    @property
    def total(self) -> int:
        """Rows of all pools."""
        return sum(self.rows.values())

    @property
    def passes(self) -> float:
        """How often each row is seen."""
        return self.budget / self.total

    @property
    def name(self) -> str:
        """The pools, with shares where those were chosen."""
        if self.whole:
            return " + ".join(self.rows)
        return " + ".join(f"{rows / self.total:.0%} {pool}" for pool, rows in self.rows.items())

    def train(self, ground: Ground, seed: int) -> Run:
        """The training that it means."""
        parts = [pool.part(self.rows[pool.name], seed) for pool in ground.pools if pool.name in self.rows]
        X, y = (np.concatenate([getattr(part, name) for part in parts]) for name in ("X", "y"))
        return Run(ground, X, y, self.budget, seed)


def union(pools: Sequence[Pool], budget: int) -> Choice:
    """Whole pools, or as much of them as the budget sees once."""
    sizes = np.array([len(pool) for pool in pools])
    total = min(budget, int(sizes.sum()))
    counts = np.minimum(np.maximum(drawn_counts(sizes / sizes.sum(), total), 1), sizes)
    return Choice({pool.name: int(n) for pool, n in zip(pools, counts, strict=True)}, budget)


def mixture(pools: Sequence[Pool], shares: Any, budget: int) -> Choice:
    """As many rows in these proportions as there are, or as the budget sees once; small shares fall away."""
    p = np.where(np.asarray(shares) < LEAST_SHARE, 0.0, shares)
    p = p / p.sum()
    sizes = np.array([len(pool) for pool in pools])
    total = min(float(budget), float((sizes[p > 0] / p[p > 0]).min()))
    counts = np.minimum(drawn_counts(p, max(int(total), 1)), sizes)
    return Choice({pool.name: int(n) for pool, n in zip(pools, counts, strict=True) if n}, budget, whole=False)


def unions(pools: Sequence[Pool], budget: int, ranked: Sequence[str]) -> list[Choice]:
    """Every union of few pools; of many, the first ones of `ranked`, the best first."""
    if len(pools) <= MOST_UNIONS_OF:
        groups = [list(group) for k in range(1, len(pools) + 1) for group in combinations(pools, k)]
    else:
        by_name = {pool.name: pool for pool in pools}
        groups = [[by_name[name] for name in ranked[:k]] for k in range(1, len(pools) + 1)]
    return [union(group, budget) for group in groups]


# ---- pilot runs and laws -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """Predicted accuracy and half the width of its 90 % interval."""

    value: float
    half: float

    @property
    def low(self) -> float:
        """Lower end."""
        return max(0.0, self.value - self.half)

    @property
    def high(self) -> float:
        """Upper end."""
        return min(1.0, self.value + self.half)


@dataclass(frozen=True)
class Forecast:
    """What is expected of a choice: by each method, and both together.

    Attributes
    ----------
    choice : Choice
    law, projektor, both : Expected
    """

    choice: Choice
    law: Expected
    projektor: Expected
    both: Expected


def together(one: Expected, other: Expected) -> Expected:
    """Each counts by its certainty; the interval is no narrower than half of what they differ by."""
    weights = np.array([1 / max(each.half, 1e-4) ** 2 for each in (one, other)])
    value = float(weights @ [one.value, other.value] / weights.sum())
    return Expected(value, max(float(weights.sum() ** -0.5), abs(one.value - other.value) / 2))


class Forecaster:
    """Pilot runs on the pools of a ground, both methods fitted to them, and what they expect.

    Parameters
    ----------
    ground : Ground
    budget : int
        Rows seen in training.
    pilot : int
        Rows of a pilot at most.
    seed : int

    Attributes
    ----------
    runs_ : DataFrame
        Pilot runs on single pools: pool, pool_size, samples_seen, error.
    law_ : DataFilteringLaw
    projektor_ : Projektor
    trainings_, samples_ : int
        What the pilot runs came to.
    seconds_ : float
    """

    def __init__(self, ground: Ground, budget: int, pilot: int = 300, seed: int = 0) -> None:
        self.ground, self.budget, self.pilot, self.seed = ground, budget, pilot, seed

    def fit(self) -> Forecaster:
        """Train the pilots, fit filtering-laws to single pools and projektor to mixtures of them."""
        began = time.perf_counter()
        self.runs_ = self._single_runs()
        lowest = float(self.runs_["error"].min())
        law = DataFilteringLaw(
            1.0,
            a_grid=(0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32),
            d_grid=[lowest * share for share in (0.0, 0.3, 0.6, 0.9)],
            b_bounds=(-1.5, -0.02),
            tau_bounds=(0.3, 15.0),
            grid=40,
            weighting="size",
            n_bootstrap=REFITS,
            random_state=self.seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FilteringLawWarning)  # what it warns of stands in the plan's notes
            self.law_ = law.fit(self.runs_)
        self.projektor_ = self._mixed_runs()
        mixed = 2 * len(self.projektor_.table_)
        self.trainings_ = len(self.runs_) + mixed
        seen = self.projektor_.table_["n"].sum() * 2 * MIXED_PASSES
        self.samples_ = int(self.runs_["samples_seen"].sum() + seen)
        self.seconds_ = round(time.perf_counter() - began, 1)
        return self

    def _single_runs(self) -> pd.DataFrame:
        rows, jobs = [], []
        for pool in self.ground.pools:
            size = min(self.pilot, len(pool))
            for number in range(SEEDS):
                part = pool.part(size, self.seed + number)
                for passes in PILOT_PASSES:
                    samples = max(int(passes * size), 1)
                    jobs.append(Run(self.ground, part.X, part.y, samples, self.seed + number))
                    rows.append({"pool": pool.name, "pool_size": float(size), "samples_seen": float(samples)})
        errors = 1 - np.array(runner().map(Run.accuracy, jobs))
        return pd.DataFrame(rows).assign(error=np.maximum(errors, 0.5 / len(self.ground.y)))

    def _mixed_runs(self) -> Projektor:
        pools = self.ground.pools
        n1 = min(self.pilot, *(len(pool) for pool in pools))
        pilots = [pool.part(max(n1, min(self.pilot, len(pool))), self.seed) for pool in pools]
        known = np.isin(self.ground.y, np.unique(np.concatenate([pilot.y for pilot in pilots])))
        return Projektor(
            trainer=partial(_small_network, n_classes=self.ground.n_classes, passes=MIXED_PASSES),
            n0=n1 // 2,
            n1=n1,
            compositions="simplex_grid" if len(pools) in STEPS else 40,
            step=STEPS.get(len(pools), 0.25),
            reps=2,
            ot_solver="exact",
            label_distance="means",
            iters=25,
            random_state=self.seed,
        ).fit([(pilot.X, pilot.y) for pilot in pilots], self.ground.X[known], self.ground.y[known])

    def candidates(self) -> list[Forecast]:
        """Unions of pools and the mixture that projektor would take, the best first."""
        ranked = self.law_.params_.sort_values("b", kind="stable").index.tolist()
        choices = unions(self.ground.pools, self.budget, ranked)
        everything = union(self.ground.pools, self.budget)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # how far it reaches stands in the notes
            shares, _ = self.projektor_.select(self.counted(everything))
        proposed = mixture(self.ground.pools, shares, self.budget)
        if len(proposed.rows) > 1:  # else it is one of the unions
            choices.append(proposed)
        return sorted(map(self.expect, choices), key=lambda found: -found.both.value)

    def expect(self, choice: Choice) -> Forecast:
        """What both methods expect of a choice."""
        law, projektor = self.by_law(choice), self.by_projektor(choice)
        return Forecast(choice, law, projektor, together(law, projektor))

    def by_law(self, choice: Choice) -> Expected:
        """filtering-laws: the union of so many rows of each pool."""
        law, names = self.law_.resized(choice.rows), list(choice.rows)
        error = float(law.predict_mixture(names, choice.budget))
        low, high = law.predict_interval(names, choice.budget, LEVEL)
        return Expected(float(np.clip(1 - error, 0, 1)), float(high - low) / 2)

    def by_projektor(self, choice: Choice) -> Expected:
        """projektor: these shares, of as many rows as the passes are worth."""
        shares = [[choice.rows.get(pool.name, 0) / choice.total for pool in self.ground.pools]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            N = self.counted(choice)
            value = float(self.projektor_.predict(shares, N)[0])
            off = np.abs(self.projektor_.residuals_ @ self._reach(N))
        return Expected(value, float(np.quantile(off, LEVEL)))

    def counted(self, choice: Choice) -> float:
        """Rows, each counting by what its passes are worth against those of the pilots (half-lives of the law)."""
        taus = self.law_.params_["tau"]
        worth = [
            rows * effective_samples(choice.passes, 1.0, taus[pool]) / effective_samples(MIXED_PASSES, 1.0, taus[pool])
            for pool, rows in choice.rows.items()
        ]
        return float(sum(worth))

    def _reach(self, N: float) -> NDArray[np.float64]:
        n0, n1 = self.projektor_.sizes_
        return np.array([-np.log(N / n1), np.log(N / n0)]) / np.log(n1 / n0)


def _small_network(X: Floats32, y: Labels, seed: int, n_classes: int, passes: int) -> SmallNetwork:
    return SmallNetwork(n_classes, passes * len(y), seed).fit(X, y)


def outcomes(ground: Ground, choices: Sequence[Choice], seed: int) -> list[list[float]]:
    """Accuracies of trainings on each choice, one a seed."""
    runs = [choice.train(ground, seed + number) for choice in choices for number in range(SEEDS)]
    found = runner().map(Run.accuracy, runs)
    return [found[start : start + SEEDS] for start in range(0, len(found), SEEDS)]

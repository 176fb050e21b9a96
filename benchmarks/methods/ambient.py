"""ambient on digits of which most are noisy: against clean ones alone, noisy ones alone, and noise taken for image."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import digits
from benchmarks.evidence import Evidence
from models.curate.ambient import AmbientDiffusion, corrupt, noisy_sample_price
from models.metrics import frechet_distance

TRAIN, SIGMA, DRAWN = 1397, 0.4, 1500
SHARE = 0.1
GRID = (70, 140, 280, 560, TRAIN)
SETTINGS: dict[str, Any] = {"batch_size": 256, "n_steps": 1500}
STOPS = (
    "Noisy samples alone do well because the sampler stops at their noise level and answers with the mean there: "
    "distance {stopped:.2f}. The same models sampled below that level, where they were taught nothing: {past:.2f}."
)
Floats = NDArray[np.float32]


@cache
def split(seed: int) -> tuple[Floats, Floats]:
    """Digits in [-1, 1] as rows of 64: 1,397 to train on, 400 held out."""
    rows = (digits().images.reshape(-1, 64) / 127.5 - 1).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[order[:TRAIN]], rows[order[TRAIN:]]


def training_set(kind: str, seed: int) -> tuple[Floats, Floats | float]:
    """Samples and noise levels of one of the compared data sets."""
    clean, _ = split(seed)
    if kind.startswith("clean "):
        return clean[: int(kind.split()[1])], 0.0
    if kind == "noisy":
        return corrupt(clean, 1.0, SIGMA, random_state=seed)
    X, _ = corrupt(clean, 1.0, SIGMA, random_state=seed)
    few = round(SHARE * TRAIN)
    X[:few] = clean[:few]
    levels = np.full(TRAIN, SIGMA, dtype=np.float32)
    levels[:few] = 0
    return X, levels if kind == "mix" else 0.0


def nearest(rows: Floats, others: Floats) -> float:
    """Mean distance of each row to its nearest among `others`."""
    squares = (rows**2).sum(1)[:, None] + (others**2).sum(1) - 2 * rows @ others.T
    return float(np.sqrt(squares.clip(min=0).min(1)).mean())


def trained(job: tuple[str, int]) -> dict[str, float]:
    """Fréchet distance in pixels of samples to held-out digits, and how near they are to the clean training set."""
    kind, seed = job
    X, levels = training_set(kind, seed)
    clean, held_out = split(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # noisy samples alone are the point of one row
        method = AmbientDiffusion(**SETTINGS, random_state=seed).fit(X, levels)
    drawn = method.sample(DRAWN)
    method.lowest_level_ = 0.0  # what the sampler would give if it did not stop at the smallest noise level
    known = clean[: round(SHARE * TRAIN)]
    return {
        "distance": frechet_distance(drawn, held_out),
        "without the stop": frechet_distance(method.sample(DRAWN), held_out),
        "to the nearest of the clean tenth": nearest(drawn, known),
        "held-out digits to it": nearest(held_out, known),
    }


def collect(evidence: Evidence) -> None:
    """Five data sets, and a curve of clean sizes for the price."""
    evidence.uses("scikit-learn's digits: 1,397 to train on (a tenth kept clean), 400 held out")
    kinds = [f"clean {n}" for n in GRID] + ["noisy", "naive", "mix"]
    jobs = [(kind, seed) for kind in kinds for seed in evidence.seeds]
    figures = dict(zip(jobs, evidence.map(trained, jobs), strict=True))

    def distances(kind: str) -> list[float]:
        return [figures[kind, seed]["distance"] for seed in evidence.seeds]

    floor = [frechet_distance(*split(seed)) for seed in evidence.seeds]
    names = {
        f"clean {TRAIN}": "all clean",
        f"clean {round(SHARE * TRAIN)}": "the clean tenth alone",
        "mix": "clean tenth + noisy rest, ambient loss",
        "naive": "clean tenth + noisy rest, noise taken for image",
        "noisy": "all noisy, ambient loss",
    }
    rows = [{"data": "training set itself", **seeded(floor)}]
    rows += [{"data": label, **seeded(distances(kind))} for kind, label in names.items()]
    past = [figures["noisy", seed]["without the stop"] for seed in evidence.seeds]
    rows.append({"data": "all noisy, sampled below the smallest noise level", **seeded(past)})
    evidence.table("Fréchet distance to held-out digits", rows)
    evidence.table(
        "memorisation: distances of samples of the mix",
        [
            {
                "seed": seed,
                **{name: value for name, value in figures["mix", seed].items() if "nearest" in name or "to it" in name},
            }
            for seed in evidence.seeds
        ],
    )
    clean, few, mix, naive, noisy = (
        np.array(distances(kind)) for kind in (f"clean {TRAIN}", f"clean {GRID[1]}", "mix", "naive", "noisy")
    )
    evidence.check("mix over the clean tenth alone, worst seed", float((mix / few).max()), at_most=0.7)
    evidence.check("mix over noise taken for image, worst seed", float((mix / naive).max()), at_most=0.5)
    evidence.check("all clean over mix, worst seed", float((clean / mix).max()), at_most=1.0)
    worst = np.maximum.reduce([clean, few, mix, naive])
    evidence.check(
        "all noisy over the worst of the others, lowest seed (it is worst, or within 15 % of the naive)",
        float(np.maximum(noisy / worst, noisy / naive).min()),
        at_least=0.85,
        note=STOPS.format(stopped=float(noisy.mean()), past=float(np.mean(past))),
    )
    curves = np.array([distances(f"clean {n}") for n in GRID])
    price = noisy_sample_price(GRID, curves, GRID[1], TRAIN - GRID[1], mix)
    evidence.table(
        "distance by clean samples alone",
        [{"clean samples": n, **seeded(c)} for n, c in zip(GRID, curves, strict=True)],
    )
    evidence.table(
        "price: noisy samples for one clean",
        [{"worth in clean": price.n_effective, "price": price.price, "least": price.lower, "most": price.upper}],
    )


def seeded(values: Any) -> dict[str, float]:
    """Mean and figures by seed, as columns."""
    return {"mean": float(np.mean(values)), **{f"seed {i}": float(value) for i, value in enumerate(values)}}

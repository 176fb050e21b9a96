"""local-graph on the k-NN graph of scikit-learn's digits: each digit is a group to find from two of its images."""

from __future__ import annotations

import time
import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import kneighbors_graph

from benchmarks.data import digits
from benchmarks.evidence import Evidence
from models.label_noise.local_graph import LabelFlowDiffusion, flow_diffusion

MASSES = (1.5, 2.0, 3.0, 4.0)
RIGHT_INSIDE, RIGHT_OUTSIDE = 0.7, 0.9
RING = (100_000, 1_000_000)


@cache
def graph() -> tuple[NDArray[Any], NDArray[np.int64], sparse.csr_array]:
    """Pixels, digits, and the symmetric graph of 10 nearest neighbours."""
    images, y = digits()
    X = images.reshape(-1, 64).astype(float)
    near = kneighbors_graph(X, 10)
    return X, y, sparse.csr_array(near.maximum(near.T))


def one_seed(seed: int) -> list[dict[str, Any]]:
    """F1 of the flags, of the diffusion without them and with them, for each digit and both kinds of flags."""
    X, y, A = graph()
    rng = np.random.default_rng(seed)
    rows = []
    for digit in range(10):
        truth = (y == digit).astype(int)
        seeds = rng.choice(np.flatnonzero(truth), 2, replace=False)
        random = rng.random(len(y))
        flags = np.where(truth == 1, random < RIGHT_INSIDE, random >= RIGHT_OUTSIDE).astype(int)
        known = np.r_[
            rng.choice(np.flatnonzero(truth), 10, replace=False),
            rng.choice(np.flatnonzero(truth == 0), 10, replace=False),
        ]
        taught = LogisticRegression(C=0.01, max_iter=1000).fit(X[known], truth[known]).predict(X)
        volume = float(A.sum(axis=1)[truth == 1].sum())
        alone = _f1(A, seeds, None, 1.0, volume, truth, seed)
        for kind, given in (("flipped", flags), ("learnt", taught)):
            rows.append(
                {
                    "seed": seed,
                    "digit": digit,
                    "flags": kind,
                    "F1 of flags": float(f1_score(truth, given)),
                    "F1 without flags": alone,
                    "F1 with flags": _f1(A, seeds, given, 0.05, volume, truth, seed),
                }
            )
    return rows


def _f1(A: Any, seeds: Any, flags: Any, epsilon: float, volume: float, truth: Any, seed: int) -> float:
    model = LabelFlowDiffusion(epsilon, mass_factors=MASSES, target_volume=volume, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(f1_score(truth, model.fit(A, seeds, flags).labels_))


def ring(n: int) -> sparse.csr_array:
    """A ring of n nodes with chords of seven steps."""
    offsets = [1, 7, n - 1, n - 7]
    diagonals: list[Any] = [np.ones(n - offset) for offset in offsets]
    upper = sparse.diags_array(diagonals, offsets=offsets, shape=(n, n))
    return sparse.csr_array(upper + upper.T)


def on_a_ring(n: int) -> dict[str, float]:
    """Nodes visited by one diffusion on a ring, and the processor seconds of the fastest of three."""
    graph, seconds = ring(n), []
    for _ in range(3):
        started = time.process_time()
        found = flow_diffusion(graph, {n // 2: 500.0}, lambda node: 1.0, max_passes=500, random_state=0)
        seconds.append(time.process_time() - started)
    return {"nodes": n, "visited": len(found.visited), "seconds": round(min(seconds), 4)}


def collect(evidence: Evidence) -> None:
    """Measure flipped flags, learnt flags and locality."""
    evidence.uses("scikit-learn digits (1,797 images), symmetric 10-NN graph on pixels")
    rows = [row for part in evidence.map(one_seed) for row in part]
    evidence.table("each digit", rows)

    def gains(kind: str, over: str) -> list[float]:
        return [
            float(np.mean([r["F1 with flags"] - r[over] for r in rows if r["flags"] == kind and r["seed"] == seed]))
            for seed in evidence.seeds
        ]

    means = []
    for kind in ("flipped", "learnt"):
        chosen = [row for row in rows if row["flags"] == kind]
        columns = ("F1 of flags", "F1 without flags", "F1 with flags")
        means.append({"flags": kind} | {name: float(np.mean([row[name] for row in chosen])) for name in columns})
    evidence.table("means over digits and seeds", means)
    evidence.check("flipped flags: gain over the flags", gains("flipped", "F1 of flags"), at_least=0.20)
    evidence.check("flipped flags: gain over the graph alone", gains("flipped", "F1 without flags"), at_least=0.05)
    lost = [row for row in rows if row["flags"] == "flipped" and row["F1 with flags"] <= row["F1 of flags"]]
    evidence.check(
        "flipped flags: runs in which the flags were better",
        float(len(lost)),
        at_most=0,
        note="; ".join(
            f"digit {row['digit']}, seed {row['seed']}: the graph alone reaches F1 {row['F1 without flags']:.2f} "
            f"from these two images, flags {row['F1 of flags']:.2f}, both {row['F1 with flags']:.2f}"
            for row in lost
        ),
    )
    evidence.check("learnt flags: gain over the graph alone", gains("learnt", "F1 without flags"), at_least=0.02)
    evidence.check("learnt flags: gain over the flags", gains("learnt", "F1 of flags"), at_least=0.10)
    short, long = (on_a_ring(n) for n in RING)
    evidence.table("locality", [short, long])
    evidence.check("nodes visited on a ring ten times as long, ratio", long["visited"] / short["visited"], at_most=1.0)
    evidence.check("seconds on a ring ten times as long, ratio", long["seconds"] / short["seconds"], at_most=2.0)

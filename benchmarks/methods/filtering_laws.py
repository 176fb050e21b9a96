"""filtering-laws on Fashion-MNIST: four pools, ever noisier; the error of unions from runs on single pools."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from benchmarks.data import fashion_mnist
from benchmarks.evidence import Evidence
from models.base import isolated_seed, predict_in_batches
from models.curate.filtering_laws import DataFilteringLaw, EffectiveDataLaw
from models.training import ClassifierTrainer, cosine, sgd

NOISE = (0.0, 0.6, 1.0, 1.5)
SIZE, BATCH = 200, 20
BUDGETS = tuple(200 * 2**i for i in range(7))
LAW: dict[str, Any] = {
    "normalizer": 1.0,
    "a_grid": (0.005, 0.01, 0.02, 0.04, 0.08, 0.16),
    "d_grid": (0.05, 0.1, 0.15, 0.2),
    "b_bounds": (-1.0, -0.02),
    "tau_bounds": (0.3, 15.0),
}


@cache
def pools() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, NDArray[np.int64]]:
    """Images (4, 200, 784) and labels of the pools, test images, test labels; pixels standardised before the noise."""
    data = fashion_mnist()
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(data.train_images), len(NOISE) * SIZE, replace=False)
    mean, std = data.train_images.mean() / 255, data.train_images.std() / 255
    images = (data.train_images[chosen].reshape(len(NOISE), SIZE, -1) / 255 - mean) / std
    images = images + rng.normal(size=images.shape) * np.array(NOISE)[:, None, None]
    test = (data.test_images.reshape(len(data.test_images), -1) / 255 - mean) / std
    labels = data.train_labels[chosen].reshape(len(NOISE), SIZE)
    return torch.tensor(images).float(), torch.tensor(labels), torch.tensor(test).float(), data.test_labels


def error_of(job: tuple[tuple[int, ...], int, int]) -> float:
    """Test error after a training on a union, `samples` draws long, from one seed."""
    union, samples, seed = job
    X, y, X_test, y_test = pools()
    rows, labels = X[list(union)].flatten(0, 1), y[list(union)].flatten()
    random = np.random.default_rng(seed)
    passes = [random.permutation(len(rows)) for _ in range(-(-samples // len(rows)))]
    order = torch.tensor(np.concatenate(passes)[:samples])
    with isolated_seed(seed):
        network = nn.Sequential(nn.Linear(X.shape[-1], 128), nn.ReLU(), nn.Linear(128, 10))
        ClassifierTrainer(
            network,
            epochs=1,
            batch_size=BATCH,
            optimizer=sgd(0.05),
            schedule=cosine,
            batches=lambda epoch: order.split(BATCH),
            seed=seed,
        ).fit(rows, labels)
    found = predict_in_batches(network, X_test).argmax(1).numpy()
    return float((found != y_test).mean())


def collect(evidence: Evidence) -> None:
    """Fit single pools, predict their unions, compare choices with the truth."""
    evidence.uses("Fashion-MNIST: 800 training images in 4 pools, all 10,000 test images")
    unions = [(i,) for i in range(len(NOISE))] + [tuple(range(p)) for p in range(2, len(NOISE) + 1)]
    jobs = [(union, n, seed) for union in unions for n in BUDGETS for seed in evidence.seeds]
    errors = evidence.map(error_of, jobs)
    frame = pd.DataFrame(
        [
            {"union": union, "samples_seen": n, "seed": seed, "error": error}
            for (union, n, seed), error in zip(jobs, errors, strict=True)
        ]
    )
    mean: dict[Any, float] = frame.groupby(["union", "samples_seen"], sort=False)["error"].mean().to_dict()
    single = pd.DataFrame(
        [
            {"pool": i, "samples_seen": n, "pool_size": SIZE, "error": mean[(i,), n]}
            for i in range(len(NOISE))
            for n in BUDGETS
        ]
    )
    law = DataFilteringLaw(**LAW).fit(single)
    baseline = EffectiveDataLaw(**LAW).fit(single)
    rows, choices = [], []
    for n in BUDGETS:
        predicted = {p: float(law.predict_mixture(range(p), n)) for p in range(1, len(NOISE) + 1)}
        true = {p: mean[tuple(range(p)), n] for p in predicted}
        rows += [
            {
                "pools": p,
                "samples seen": n,
                "true error": true[p],
                "predicted": predicted[p],
                "effective-data law": float(baseline.predict_mixture(range(p), n)),
            }
            for p in predicted
        ]
        best, guess = min(true, key=true.__getitem__), min(predicted, key=predicted.__getitem__)
        choices.append(
            {
                "samples seen": n,
                "best p": best,
                "predicted p": guess,
                "regret": true[guess] - true[best],
                "regret of the best pool alone": true[1] - true[best],
            }
        )
    evidence.table("unions of the first p pools", rows)
    evidence.table("choice of p by budget", choices)
    fitted: list[dict[str, Any]] = law.params_.reset_index().to_dict("records")  # type: ignore[assignment]
    evidence.table("fitted pools", fitted)
    table, chosen = pd.DataFrame(rows), pd.DataFrame(choices)
    of_unions = table[table["pools"] > 1]
    gap = (of_unions["predicted"] - of_unions["true error"]).abs()
    evidence.check("mean absolute error on unions", float(gap.mean()), at_most=0.05)
    other = (of_unions["effective-data law"] - of_unions["true error"]).abs().mean()
    evidence.table("mean absolute error on unions", [{"law": float(gap.mean()), "effective-data law": float(other)}])
    for name in ("best p", "predicted p"):
        rank = spearmanr(chosen["samples seen"], chosen[name]).statistic
        evidence.check(f"rank correlation of {name} and budget", float(np.nan_to_num(rank)), at_least=1e-9)
    regret, alone = float(chosen["regret"].mean()), float(chosen["regret of the best pool alone"].mean())
    evidence.check("mean regret of the predicted choice", regret, at_most=0.015)
    evidence.check("its ratio to the regret of the best pool alone", regret / alone, at_most=0.5)
    falls = int((np.diff(law.params_["tau"]) < 0).sum())
    evidence.check("neighbouring pools whose half-life falls with the noise", falls, at_least=2)

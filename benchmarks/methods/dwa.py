"""Evidence for DWA: Fashion-MNIST in 100 synthetic images, beside real ones and syntheses without its adjustment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.data import fashion_mnist
from benchmarks.evidence import Evidence
from models.base import predict_in_batches
from models.curate.dwa import DWADistiller, features_before_the_head, squeeze, train_on_distilled
from models.metrics import class_diversity
from models.networks.convnet import AverageConvNet

TRAIN, TEST, IPC, WIDTH = 12_000, 3_000, 10, 24
RECOVERY: dict[str, Any] = {"ipc": IPC, "n_iter": 150, "lr": 0.1, "lambda_bn": 0.01, "lambda_var": 11.0, "jitter": 4}
STUDENT: dict[str, Any] = {"epochs": 250, "batch_size": 100, "lr": 1e-2, "temperature": 20.0, "mixup_alpha": 0.8}
SYNTHESES: dict[str, dict[str, Any]] = {
    "SRe2L, Gaussian start": {"init": "gaussian", "dwa_steps": 0},
    "SRe2L, real start": {"dwa_steps": 0},
    "DWA, rho 0.015": {"rho": 0.015},
    "DWA, rho 0.15": {"rho": 0.15},
}
REAL = "100 real images"
GAUSSIAN_NOTE = (
    "On these images the Gaussian start ends almost as good. Further runs of seed 0 looked for the cause: with pixels "
    "in [0, 1] or normalised as the units, and 0.001 or 0.004 as the student's rate, the real start is 0.008 behind "
    "to 0.006 ahead; with 0.01, as here, 0.008 ahead."
)


def student() -> nn.Module:
    """The network of teacher and students, with fresh weights."""
    return AverageConvNet(10, width=WIDTH)


def run(seed: int) -> dict[str, dict[str, float]]:
    """Accuracy of a student, and diversity, for every synthesis of one draw of the data."""
    split = fashion_mnist()
    order = np.random.default_rng(seed).permutation(len(split.train_images))[:TRAIN]
    held = np.random.default_rng(seed).permutation(len(split.test_images))[:TEST]
    X, y = (split.train_images[order, None] / 255).astype(np.float32), split.train_labels[order]
    X_test = torch.from_numpy((split.test_images[held, None] / 255).astype(np.float32))
    y_test = split.test_labels[held]

    def accuracy(network: nn.Module) -> float:
        return float((predict_in_batches(network, X_test).argmax(1).numpy() == y_test).mean())

    mean, std = float(X.mean()), float(X.std())
    scaled = torch.from_numpy((X - mean) / std)
    teacher = squeeze(scaled, torch.from_numpy(y), 10, width=WIDTH, epochs=3, random_state=seed)
    found: dict[str, dict[str, float]] = {}
    for name, options in SYNTHESES.items():
        method = DWADistiller(
            teacher, channel_mean=[mean], channel_std=[std], random_state=seed, **RECOVERY, **options
        ).fit(X, y)
        learned = train_on_distilled(student, *method.transform(), method.teacher_, random_state=seed, **STUDENT)
        found[name] = {
            "accuracy": accuracy(learned),
            "diversity": method.diversity_,
            "first loss": float(method.loss_curve_[:, 0].mean()),
            "last loss": float(method.loss_curve_[:, -1].mean()),
            "teacher agrees": float((method.soft_labels(method.images_).argmax(1) == method.labels_).mean()),
        }
    rows = method.source_rows_
    learned = train_on_distilled(student, X[rows], y[rows], method.teacher_, random_state=seed, **STUDENT)
    features = features_before_the_head(method.teacher_, torch.from_numpy(X[rows])).numpy()
    found[REAL] = {
        "accuracy": accuracy(learned),
        "diversity": class_diversity(features, y[rows]),
        "first loss": float("nan"),
        "last loss": float("nan"),
        "teacher agrees": float((method.soft_labels(X[rows]).argmax(1) == y[rows]).mean()),
    }
    found["teacher, all images"] = {"accuracy": accuracy(method.teacher_)}
    return found


def collect(evidence: Evidence) -> None:
    """Measure what the adjustment does to diversity and accuracy; the published gains need far larger runs."""
    evidence.uses("Fashion-MNIST, 12,000 training and 3,000 test images drawn anew for each seed; 10 images a class")
    runs = evidence.map(run)
    evidence.table(
        "a student on 100 images",
        [
            {
                "seed": seed,
                "images": name,
                **{
                    key: _rounded(row.get(key))
                    for key in ("accuracy", "diversity", "first loss", "last loss", "teacher agrees")
                },
            }
            for seed, found in zip(evidence.seeds, runs, strict=True)
            for name, row in found.items()
        ],
    )
    dwa, still, gaussian = "DWA, rho 0.15", "SRe2L, real start", "SRe2L, Gaussian start"

    def each(name: str, key: str) -> list[float]:
        return [found[name][key] for found in runs]

    def apart(first: str, second: str) -> list[float]:
        return [a - b for a, b in zip(each(first, "accuracy"), each(second, "accuracy"), strict=True)]

    evidence.check(
        "diversity: mean of DWA (rho 0.15) over that of the real start",
        float(np.mean(each(dwa, "diversity")) / np.mean(each(still, "diversity"))),
        at_least=1.25,
    )
    evidence.check(
        "accuracy: DWA (rho 0.15) minus Gaussian start", apart(dwa, gaussian), at_least=0.05, note=GAUSSIAN_NOTE
    )
    evidence.check(
        "accuracy: real start minus Gaussian start", apart(still, gaussian), at_least=0.05, note=GAUSSIAN_NOTE
    )
    evidence.check("accuracy: DWA (rho 0.15) minus real start", apart(dwa, still), at_least=-0.025)
    evidence.check("accuracy: DWA (rho 0.15) minus 100 real images", apart(dwa, REAL), at_least=-0.03)
    evidence.check(
        "loss: last over first, the largest of all syntheses and seeds",
        max(found[name]["last loss"] / found[name]["first loss"] for found in runs for name in SYNTHESES),
        at_most=0.999,
    )
    evidence.check(
        "share of DWA's images that the unmoved teacher takes for the class meant",
        each(dwa, "teacher agrees"),
        at_least=0.9,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 4)

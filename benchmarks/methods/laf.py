"""LAF on MNIST: a class removed, and mislabelled samples removed, beside retraining and the usual baselines."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.data import mnist
from benchmarks.evidence import Evidence
from models.unlearn.baselines import fine_tune, gradient_ascent, retrain
from models.unlearn.laf import LabelAgnosticForgetting
from models.unlearn.report import unlearning_report
from models.unlearn.split import ExtractorAndHead

N_TRAIN, N_TEST, N_REPAIR, REPAIR_EPOCHS = 12_000, 5_000, 200, 5


@dataclass
class Scenario:
    """Training data, which of it is to be forgotten, test data, and the classifiers with and without it."""

    X: Tensor
    y: NDArray[np.int64]
    forget: NDArray[np.bool_]
    X_test: Tensor
    y_test: NDArray[np.int64]
    forget_classes: tuple[int, ...]
    seed: int
    original: nn.Module = field(default_factory=nn.Identity)
    retrained: nn.Module = field(default_factory=nn.Identity)

    def trained(self) -> Scenario:
        """Train the original on everything and the retrained classifier on what remains."""
        original = retrain(small_cnn(), self.X, self.y, random_state=self.seed)
        retrained = retrain(small_cnn(), self.X[~self.forget], self.y[~self.forget], random_state=self.seed)
        return replace(self, original=original, retrained=retrained)

    def repair_set(self) -> tuple[Tensor, NDArray[np.int64]]:
        """A few labelled samples of what remains."""
        rows = np.random.default_rng(self.seed + 100).choice(np.flatnonzero(~self.forget), N_REPAIR, replace=False)
        return self.X[rows], self.y[rows]

    def unlearned(self, repair_epochs: int = 0, **parameters: Any) -> LabelAgnosticForgetting:
        """LAF on this scenario."""
        laf = LabelAgnosticForgetting(self.original, repair_epochs=repair_epochs, random_state=self.seed, **parameters)
        return laf.fit(self.X[self.forget], self.X[~self.forget], *self.repair_set())

    def repaired(self, model: nn.Module) -> nn.Module:
        """`model` after the short labelled repair."""
        return fine_tune(model, *self.repair_set(), epochs=REPAIR_EPOCHS, random_state=self.seed)

    def ascended(self, **rates: Any) -> nn.Module:
        """The original after gradient ascent on what is to be forgotten."""
        forget, labels = self.X[self.forget], self.y[self.forget]
        return gradient_ascent(self.original, forget, labels, random_state=self.seed, **rates)

    def report(self, models: dict[str, Any]) -> dict[str, dict[str, float]]:
        """The shared unlearning report."""
        keep = ~self.forget
        return unlearning_report(
            self.original,
            self.retrained,
            models,
            X_remain=self.X[keep],
            y_remain=self.y[keep],
            X_forget=self.X[self.forget],
            y_forget=self.y[self.forget],
            X_test=self.X_test,
            y_test=self.y_test,
            forget_classes=self.forget_classes,
            random_state=self.seed,
        )


def small_cnn() -> ExtractorAndHead:
    """The paper's network for digits, for 14x14 images: neither the embedding nor the head has an activation."""
    extractor = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 3 * 3, 256),
    )  # fmt: skip
    return ExtractorAndHead(extractor, nn.Sequential(nn.Linear(256, 128), nn.Linear(128, 10)))


def class_removed(seed: int) -> Scenario:
    """All training samples of class 0 are to be forgotten."""
    X, y, X_test, y_test = _sample(seed)
    return Scenario(X, y, y == 0, X_test, y_test, (0,), seed)


def noisy_labels(seed: int) -> Scenario:
    """60% of the samples of each of the classes 0-4 carry a wrong random label, and are to be forgotten."""
    X, y, X_test, y_test = _sample(seed)
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(y), dtype=bool)
    for label in range(5):
        rows = np.flatnonzero(y == label)
        wrong[rng.choice(rows, int(0.6 * len(rows)), replace=False)] = True
    noisy = np.where(wrong, (y + rng.integers(1, 10, len(y))) % 10, y)
    return Scenario(X, noisy, wrong, X_test, y_test, (), seed)


def _sample(seed: int) -> tuple[Tensor, NDArray[np.int64], Tensor, NDArray[np.int64]]:
    data = mnist()
    rng = np.random.default_rng(seed)
    train = rng.permutation(len(data.train_labels))[:N_TRAIN]
    test = rng.permutation(len(data.test_labels))[:N_TEST]
    return (
        _pooled(data.train_images[train]),
        data.train_labels[train],
        _pooled(data.test_images[test]),
        data.test_labels[test],
    )


def _pooled(images: NDArray[np.uint8]) -> Tensor:
    return F.avg_pool2d(torch.from_numpy(images).float().unsqueeze(1) / 255, 2)


Figures = dict[str, dict[str, float]]
HEADROOM = (
    "Retraining without the mislabelled samples, the target, itself gains only {:.1f} points here: the original, "
    "trained on them, still reaches {:.1f}% on clean test labels."
)
MILDER = (
    "The collapse behind this bound appears with the published decoder, which ends with a sigmoid and lets the "
    "unlearning step alone destroy the network (see the check before). The default decoder has no sigmoid, because "
    "embeddings are unbounded; its unlearning step alone already removes the class and costs far less of the rest, "
    "so there is less to gain back."
)
SHOWN = (
    "train_r", "train_f", "test", "test_r", "test_f", "asr", "distance", "kl_forget", "kl_test", "l1_test",
    "relearn_steps",
)  # fmt: skip
SHARES = ("train_r", "train_f", "test", "test_r", "test_f", "asr", "distance")


def judge_class_removal(seed: int) -> Figures:
    """Report rows for class 0 removed: LAF, its ablations and the baselines."""
    scenario = class_removed(seed).trained()
    keep = ~scenario.forget
    laf = scenario.unlearned()
    models = {
        "LAF": laf,
        "LAF + repair": scenario.repaired(laf.model_),
        "LAF, published decoder": scenario.unlearned(vae_sigmoid=True),
        "LAF without alignment": scenario.unlearned(lr_align=0.0),
        "LAF without alignment, published decoder": scenario.unlearned(vae_sigmoid=True, lr_align=0.0),
        "LAF without unlearning": scenario.unlearned(lr_unlearn=0.0),
        "gradient ascent": scenario.ascended(epochs=2, lr=1e-5),
        "fine-tuning on all that remains": fine_tune(scenario.original, scenario.X[keep], scenario.y[keep]),
        "repair alone": scenario.repaired(scenario.original),
    }
    return scenario.report(models)


def judge_noisy_labels(seed: int) -> Figures:
    """Report rows for mislabelled samples removed."""
    scenario = noisy_labels(seed).trained()
    laf = scenario.unlearned()
    models = {
        "LAF": laf,
        "LAF + repair": scenario.repaired(laf.model_),
        "gradient ascent": scenario.ascended(epochs=1, lr=3e-6),
        "repair alone": scenario.repaired(scenario.original),
    }
    return scenario.report(models)


def collect(evidence: Evidence) -> None:
    """Both scenarios at every seed; shares are given in percent."""
    evidence.uses(f"MNIST averaged to 14x14: {N_TRAIN:,} training and {N_TEST:,} test images drawn by the seed")
    removal = evidence.map(judge_class_removal)
    _check_class_removal(evidence, removal)
    _tables(evidence, "class 0 removed", removal)
    noise = evidence.map(judge_noisy_labels)
    _check_noisy_labels(evidence, noise)
    _tables(evidence, "mislabelled samples removed", noise)


def _check_class_removal(evidence: Evidence, reports: list[Figures]) -> None:
    def percent(model: str, metric: str) -> NDArray[np.float64]:
        return np.array([100 * report[model][metric] for report in reports])

    def check(name: str, values: NDArray[np.float64], **bound: Any) -> None:
        evidence.check(name, values.tolist(), **bound)

    original, retrained = percent("original", "test_r"), percent("retrained", "test_r")
    laf, repaired = percent("LAF", "test_r"), percent("LAF + repair", "test_r")
    published = percent("LAF, published decoder", "test_r")
    without = {decoder: percent(f"LAF without alignment{decoder}", "test_r") for decoder in ("", ", published decoder")}
    check("original test accuracy", percent("original", "test"), at_least=96)
    check("class removed: LAF, Test_f", percent("LAF", "test_f"), at_most=5)
    check("class removed: LAF, Test_r below the original's by", original - laf, at_most=4)
    check("class removed: LAF + repair, Test_r away from retrained", np.abs(repaired - retrained), at_most=1.5)
    check("class removed: LAF + repair, Test_f", percent("LAF + repair", "test_f"), at_most=5)
    gained = published - without[", published decoder"]
    check("class removed: Test_r gained by the alignment step, published sigmoid decoder", gained, at_least=30)
    check("class removed: Test_r gained by the alignment step", laf - without[""], at_least=30, note=MILDER)


def _check_noisy_labels(evidence: Evidence, reports: list[Figures]) -> None:
    original, retrained, laf, repaired, alone = (
        np.array([100 * report[model]["test"] for report in reports])
        for model in ("original", "retrained", "LAF", "LAF + repair", "repair alone")
    )
    gained = repaired - original
    note = "" if gained.mean() >= 5 else HEADROOM.format((retrained - original).mean(), original.mean())
    evidence.check("noisy labels: LAF + repair above the original by", gained.tolist(), at_least=5, note=note)
    evidence.check("noisy labels: LAF + repair above repair alone by", (repaired - alone).tolist(), at_least=0)
    evidence.check("noisy labels: LAF alone away from the original", np.abs(laf - original).tolist(), at_most=1)


def _tables(evidence: Evidence, scenario: str, reports: list[Figures]) -> None:
    """Means over the seeds, and every seed's own row."""
    columns = [key for key in SHOWN if key in reports[0]["original"]]

    def row(figures: list[dict[str, float]]) -> dict[str, float]:
        means = {key: float(np.mean([entry[key] for entry in figures])) for key in columns}
        return {key: round(100 * value, 2) if key in SHARES else round(value, 4) for key, value in means.items()}

    models = list(reports[0])
    evidence.table(
        f"{scenario}, means", [{"model": model, **row([report[model] for report in reports])} for model in models]
    )
    evidence.table(
        f"{scenario}, each seed",
        [
            {"seed": seed, "model": model, **row([report[model]])}
            for seed, report in zip(evidence.seeds, reports, strict=True)
            for model in models
        ],
    )

"""RotNet on Fashion-MNIST: rotations of unseen images, a probe on 500 labels, and images that cannot be told."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data import Split, fashion_mnist
from benchmarks.evidence import Evidence
from benchmarks.probing import probe_accuracy, with_fitted_statistics
from models.base import isolated_seed
from models.networks.convnet import conv_unit
from models.pretrain.rotnet import RotNet, rotated

N_TRAIN, N_LABELLED, N_TEST, N_BLIND = 4000, 500, 2000, 2000
SQUEEZED_TABLE = ((2, 0.05), (3, 0.01), (4, 0.002), (5, 0.0004))  # the published decay, in five epochs from 0.05
TRAINING: dict[str, Any] = {"epochs": 5, "batch_size": 64, "lr": 0.05, "lr_table": SQUEEZED_TABLE, "pool": 4}
LAYERS = ("conv1", "conv2", "conv3")


class NarrowNet(nn.Module):
    """Three blocks of one 3x3 and one 1x1 unit, 32, 64 and 64 wide, halved after the first two."""

    def __init__(self) -> None:
        super().__init__()
        pools = (nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.Identity())
        widths = pairwise((1, 32, 64, 64))
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_unit(a, b, 3), conv_unit(b, b, 1), pool)
            for (a, b), pool in zip(widths, pools, strict=True)
        )

    def stages(self, x: Tensor) -> list[Tensor]:
        """The map after each block."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """The last map."""
        return self.stages(x)[-1]


def sample(data: Split, seed: int) -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
    """Training images with labels and unseen ones with labels."""
    rng = np.random.default_rng(seed)
    train = rng.permutation(len(data.train_labels))[:N_TRAIN]
    test = rng.permutation(len(data.test_labels))[:N_TEST]
    return (
        torch.from_numpy(data.train_images[train]),
        data.train_labels[train],
        torch.from_numpy(data.test_images[test]),
        data.test_labels[test],
    )


def symmetric(images: Tensor) -> Tensor:
    """Mean of the four rotations: the same at every angle."""
    floats = images.float() / 255
    return torch.stack([rotated(floats, turns) for turns in range(4)]).mean(dim=0)


def measure(data: Split, seed: int) -> dict[str, Any]:
    """All figures of one seed."""
    X, y, X_test, y_test = sample(data, seed)
    with isolated_seed(seed):
        network = NarrowNet()
    method = RotNet(network, random_state=seed, **TRAINING).fit(X)
    found: dict[str, Any] = {"accuracy": method.score(X_test), "curve": method.rotation_accuracy_curve_}

    def probes(model: RotNet) -> dict[str, float]:
        return {
            layer: probe_accuracy(
                model.transform(X[:N_LABELLED], layer), y[:N_LABELLED], model.transform(X_test, layer), y_test
            )
            for layer in LAYERS
        }

    found["trained"] = probes(method)
    method.network_.encoder = with_fitted_statistics(network, method._prepared(X))
    found["random"] = probes(method)
    found["pixels"] = probe_accuracy(X[:N_LABELLED].numpy() / 255, y[:N_LABELLED], X_test.numpy() / 255, y_test)
    blind = RotNet(network, random_state=seed, **{**TRAINING, "epochs": 2}).fit(symmetric(X[:N_BLIND]))
    found["blind"] = blind.score(symmetric(X_test))
    return found


def collect(evidence: Evidence) -> None:
    """Measure at every seed and judge."""
    evidence.uses("Fashion-MNIST: 4,000 training images without labels, 500 labels, 2,000 test images")
    data = fashion_mnist()
    found = dict(zip(evidence.seeds, evidence.map(partial(measure, data)), strict=True))
    runs = list(found.values())
    evidence.table(
        "accuracy of a logistic regression with 500 labels, maps pooled to 4x4",
        [
            {"seed": seed, "features": name, **{layer: round(run[name][layer], 4) for layer in LAYERS}}
            for seed, run in found.items()
            for name in ("trained", "random")
        ]
        + [
            {"seed": seed, "features": "pixels", **dict.fromkeys(LAYERS, round(run["pixels"], 4))}
            for seed, run in found.items()
        ],
    )
    evidence.table(
        "share of rotations told",
        [
            {
                "seed": seed,
                "training, by epoch": [round(value, 4) for value in run["curve"]],
                "2,000 unseen images": round(run["accuracy"], 4),
                "images symmetric under rotation": round(run["blind"], 4),
            }
            for seed, run in found.items()
        ],
    )
    evidence.check("rotation accuracy on 2,000 unseen images", [run["accuracy"] for run in runs], at_least=0.93)
    rises = [min(b - a for a, b in pairwise(run["curve"])) for run in runs]
    evidence.check("smallest rise of rotation accuracy from one epoch to the next", rises, at_least=0)
    conv2 = [run["trained"]["conv2"] for run in runs]
    over_random = [value - run["random"]["conv2"] for value, run in zip(conv2, runs, strict=True)]
    evidence.check("probe on conv2 over random weights with fitted statistics", over_random, at_least=0.015)
    over_pixels = [value - run["pixels"] for value, run in zip(conv2, runs, strict=True)]
    evidence.check("probe on conv2 over pixels", over_pixels, at_least=0.015)
    over_last = [value - run["trained"]["conv3"] for value, run in zip(conv2, runs, strict=True)]
    evidence.check("probe on conv2 over the last block", over_last, at_least=0)
    for name, pick in (("lowest", min), ("highest", max)):
        evidence.check(
            f"rotation accuracy on symmetric images, {name} seed",
            pick(run["blind"] for run in runs),
            at_least=0.22,
            at_most=0.28,
        )

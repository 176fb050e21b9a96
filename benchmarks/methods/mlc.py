"""MLC on MNIST: what the learnt memberships add to total coding rate pretraining, and what becomes of the ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor, nn

from benchmarks.data import mnist
from benchmarks.evidence import Evidence
from models.augment import affine
from models.base import check_images, isolated_seed, predict_in_batches
from models.discover.mlc import MLC, MLCTrainer, cluster_rate, coding_rate, memberships, spectral_labels, subspace
from models.metrics import clustering_scores
from models.networks.convnet import conv_unit
from models.training import Hook, Row, Trainer, hooks

N, K, DIM, BATCH, ETA, EPS2 = 3000, 10, 32, 300, 0.2, 0.2
SHIFT = 0.075
"""Share of the side: 0.15 in the coordinates of an affine grid, which run from -1 to 1."""
SETTINGS: dict[str, Any] = {
    "feature_dim": DIM,
    "eta": ETA,
    "eps2": EPS2,
    "batch_size": BATCH,
    "tcr_epochs": 20,
    "tcr_lr": 1e-3,
    "epochs": 20,
    "lr": 1e-4,
    "lr_cluster": 1e-4,
}


def backbone() -> nn.Sequential:
    """Two convolutions and a linear layer."""
    units = [conv_unit(1, 16, stride=2), conv_unit(16, 32, stride=2)]
    return nn.Sequential(*units, nn.Flatten(), nn.Linear(1568, 128), nn.BatchNorm1d(128), nn.ReLU())


class Watch(Hook):
    """What stands before the joint training, and after every fifth epoch of it."""

    def __init__(self, y: NDArray[np.int64], seed: int) -> None:
        self.y, self.seed = y, seed
        self.rows: list[dict[str, Any]] = []

    def on_fit_begin(self, trainer: Trainer) -> None:
        """k-means on the pretrained features, and the memberships they begin with."""
        if isinstance(trainer, MLCTrainer):
            features = self.encoded(trainer)[:, 0].numpy()
            found = KMeans(K, n_init=10, random_state=self.seed).fit(features).labels_
            self.rows.append({"method": "TCR + k-means", **clustering_scores(self.y, found)})
            self.judge(trainer, "memberships at the start")

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """The memberships learnt so far."""
        done = trainer.epoch + 1
        if isinstance(trainer, MLCTrainer) and done % 5 == 0:
            self.judge(trainer, f"MLC, {done} epochs")

    def encoded(self, trainer: Trainer) -> Tensor:
        """Features and cluster codes of all samples, in eval mode, (n, 2, d)."""
        trainer.plain_network.eval()
        return predict_in_batches(trainer.plain_network.both, trainer.tensors[0])

    def judge(self, trainer: Trainer, name: str) -> None:
        """Scores of spectral clustering, rates of the first batch, ranks of all and of the true classes."""
        codes = self.encoded(trainer)
        gamma = memberships(codes[:, 1], ETA)
        labels = spectral_labels(gamma.numpy().astype(np.float64), K, self.seed)
        Z, part = codes[:, 0], memberships(codes[:BATCH, 1], ETA)
        classes = [subspace(Z[torch.from_numpy(self.y == label)].numpy()).shape[1] for label in range(K)]
        self.rows.append(
            {
                "method": name,
                **clustering_scores(self.y, labels),
                "R - R_c": float(coding_rate(Z[:BATCH], EPS2) - cluster_rate(Z[:BATCH], part, EPS2)),
                "mean self-membership": float(part.diagonal().mean()),
                "rank of all": subspace(Z.numpy()).shape[1],
                "mean rank of a class": float(np.mean(classes)),
            }
        )


def clustered(images: Tensor, y: NDArray[np.int64], seed: int) -> list[dict[str, Any]]:
    """One row for k-means on pixels, then those of :class:`Watch`."""
    pixels = KMeans(K, n_init=10, random_state=seed).fit(images.flatten(1).numpy()).labels_
    with isolated_seed(seed):
        network = backbone()
    watch = Watch(y, seed)
    views = affine(degrees=np.rad2deg(0.35), scale=0.2, shift=SHIFT)
    with hooks(watch):
        method = MLC(K, backbone=network, augment=views, random_state=seed, **SETTINGS).fit(images)
    last = {"method": "MLC", **clustering_scores(y, method.labels_)}
    return [{"method": "k-means on pixels", **clustering_scores(y, pixels)}, *watch.rows, last]


COLUMNS = ("accuracy", "nmi", "ari", "R - R_c", "mean self-membership", "rank of all", "mean rank of a class")


def collect(evidence: Evidence) -> None:
    """Measure at every seed and judge."""
    evidence.uses(f"MNIST: the first {N:,} training images")
    data = mnist()
    images, y = check_images(data.train_images[:N]), data.train_labels[:N]
    runs = [{row["method"]: row for row in found} for found in evidence.map(partial(clustered, images, y))]
    evidence.table(
        "clustering of MNIST",
        [
            {
                "seed": seed,
                "method": name,
                **{key: round(row[key], 4) if key in row else "" for key in COLUMNS},
            }
            for seed, run in zip(evidence.seeds, runs, strict=True)
            for name, row in run.items()
        ],
    )
    start, end = "memberships at the start", f"MLC, {SETTINGS['epochs']} epochs"

    def lead(over: str) -> float:
        return min(run["MLC"]["nmi"] - run[over]["nmi"] for run in runs)

    def gained(key: str) -> list[float]:
        return [run[end][key] - run[start][key] for run in runs]

    evidence.check("mean accuracy", [run["MLC"]["accuracy"] for run in runs], at_least=0.85)
    closest = min(runs, key=lambda run: run["MLC"]["nmi"] - run["TCR + k-means"]["nmi"])
    evidence.check(
        "NMI over TCR + k-means, worst seed",
        lead("TCR + k-means"),
        at_least=0.03,
        note=f"That seed's pretraining alone reaches {closest['TCR + k-means']['nmi']:.3f}; MLC still gained "
        f"{closest[end]['nmi'] - closest['MLC, 15 epochs']['nmi']:.3f} in its last five epochs.",
    )
    evidence.check("NMI over the memberships at the start, worst seed", lead(start), at_least=0.08)
    evidence.check("growth of R - R_c, worst seed", min(gained("R - R_c")), at_least=0.0)
    evidence.check("rank of all features at the end, worst seed", min(r[end]["rank of all"] for r in runs), at_least=24)
    evidence.check(
        "change of the mean rank of a true class, worst seed", max(gained("mean rank of a class")), at_most=0.0
    )

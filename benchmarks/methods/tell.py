"""TELL on MNIST: what the clustering layer adds to an autoencoder, and the layer alone against spherical k-means."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from benchmarks.data import digits, mnist
from benchmarks.evidence import Evidence
from models.base import check_images
from models.discover.tell import TELL, TELLLayer, TELLTrainer, row_directions
from models.metrics import clustering_scores
from models.training import Hook, Row, Trainer, hooks

N, K, WARM_UP, EPOCHS = 6000, 10, 8, 16
STEPS = 300


class Watch(Hook):
    """Scores after chosen epochs: k-means on the codes at the end of the warm-up, TELL's own clusters later."""

    def __init__(self, y: NDArray[np.int64], seed: int) -> None:
        self.y, self.seed = y, seed
        self.scores: dict[str, dict[str, float]] = {}

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """Score every fourth epoch."""
        done = trainer.epoch + 1
        if not isinstance(trainer, TELLTrainer) or done < WARM_UP or done % 4:
            return
        codes = trainer.encode(trainer.tensors[0])
        if done == WARM_UP:
            labels = KMeans(K, n_init=10, random_state=self.seed).fit(codes.numpy()).labels_
            self.scores["autoencoder + k-means"] = clustering_scores(self.y, labels)
            return
        labels = trainer.layer(codes).argmax(dim=1).numpy()
        self.scores[f"TELL, {done - WARM_UP} epochs"] = clustering_scores(self.y, labels)


def whole_method(images: Tensor, y: NDArray[np.int64], seed: int) -> dict[str, Any]:
    """Scores of k-means on pixels, of the warm-up and of TELL, and how many clusters are used."""
    pixels = KMeans(K, n_init=10, random_state=seed).fit(images.flatten(1).numpy()).labels_
    watch = Watch(y, seed)
    method = TELL(K, center_init="kmeans", warmup_epochs=WARM_UP, epochs=EPOCHS, batch_size=64, random_state=seed)
    with hooks(watch):
        method.fit(images)
    scores = {"k-means on pixels": clustering_scores(y, pixels), **watch.scores}
    scores["TELL"] = clustering_scores(y, method.labels_)
    return {"scores": scores, "clusters": method.n_clusters_, "cluster_loss": method.cluster_loss_}


def mean_cosine(codes: Tensor, centres: Tensor) -> float:
    """Mean cosine of unit codes to their nearest centre."""
    return float((codes @ centres.T).max(dim=1).values.mean())


def layer_alone(codes: Tensor, seed: int) -> dict[str, float]:
    """The layer's descent on fixed codes, and spherical k-means from the same ten samples."""
    centres = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))[:K]]
    layer = TELLLayer(K, codes.shape[1])
    layer.set_centers(centres)
    path = []
    for step in range(STEPS):
        path.append(mean_cosine(codes, layer.centers()))
        (gradient,) = torch.autograd.grad(layer.loss(codes), layer.weight)
        with torch.no_grad():
            layer.weight.sub_(0.2 * layer.alpha * 0.98**step * row_directions(gradient))
        layer.normalize_()
    path.append(mean_cosine(codes, layer.centers()))
    for _ in range(STEPS):
        own = (codes @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, own, codes)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
    lloyd = mean_cosine(codes, centres)
    return {
        "start": path[0],
        "layer": path[-1],
        "spherical k-means": lloyd,
        "ratio": path[-1] / lloyd,
        "largest fall in a step": max(0.0, float(-np.diff(path).min())),
    }


def collect(evidence: Evidence) -> None:
    """Measure at every seed and judge."""
    evidence.uses(f"MNIST: the first {N:,} training images", "scikit-learn digits: all 1,797, 10 principal components")
    data = mnist()
    images, y = check_images(data.train_images[:N]), data.train_labels[:N]
    runs = evidence.map(partial(whole_method, images, y))
    evidence.table(
        "clustering of MNIST",
        [
            {"seed": seed, "method": name, **{key: round(value, 4) for key, value in row.items()}}
            for seed, run in zip(evidence.seeds, runs, strict=True)
            for name, row in run["scores"].items()
        ],
    )

    def lead(over: str) -> list[float]:
        return [run["scores"]["TELL"]["nmi"] - run["scores"][over]["nmi"] for run in runs]

    evidence.check("NMI of TELL over k-means on pixels, worst seed", min(lead("k-means on pixels")), at_least=0.06)
    evidence.check(
        "NMI of TELL over its own start (k-means on the warm-up's codes), worst seed",
        min(lead("autoencoder + k-means")),
        at_least=0.0,
    )
    evidence.check("clusters used, fewest", min(run["clusters"] for run in runs), at_least=K)

    rows = torch.from_numpy(PCA(10, random_state=0).fit_transform(digits().images.reshape(1797, -1) / 255)).float()
    alone = [layer_alone(F.normalize(rows, dim=1), seed) for seed in evidence.seeds]
    evidence.table(
        "the layer alone on fixed codes: mean cosine to the own centre",
        [
            {"seed": seed, **{key: round(value, 6) for key, value in row.items()}}
            for seed, row in zip(evidence.seeds, alone, strict=True)
        ],
    )
    evidence.check(
        "layer alone: mean cosine over that of spherical k-means, worst seed",
        min(row["ratio"] for row in alone),
        at_least=0.97,
    )
    evidence.check(
        "layer alone: largest fall of the mean cosine in a step",
        max(row["largest fall in a step"] for row in alone),
        at_most=0.0,
    )

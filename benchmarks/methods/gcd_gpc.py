"""GPC on MNIST: what prototypes add to the contrastive terms, in three epochs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.data import mnist
from benchmarks.evidence import Evidence
from models.base import check_images, isolated_seed
from models.constrained_kmeans import ConstrainedKMeans
from models.discover.gcd_gmm import SemiSupervisedGMM
from models.discover.gcd_gpc import GPC
from models.metrics import discovery_accuracy
from models.networks.convnet import ConvEncoder

N_IMAGES, N_CLASSES, N_KNOWN, EPOCHS = 6000, 10, 5, 3
MIXTURE: dict[str, Any] = {"n_components_pca": 20, "psi_scale": "within", "kmeans_n_init": 3}


def measured(seed: int) -> dict[str, Any]:
    """The trained encoder, the same without prototypes, and pixels."""
    data = mnist()
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(data.train_labels))[:N_IMAGES]
    X, truth = check_images(data.train_images[chosen]), data.train_labels[chosen]
    y = np.where((truth < N_KNOWN) & (random.random(N_IMAGES) < 0.5), truth, -1)
    free = y < 0

    def scores(labels: Any) -> dict[str, float]:
        return discovery_accuracy(truth[free], labels[free], range(N_KNOWN))

    def trained(warmup: int, **mixture: Any) -> GPC:
        with isolated_seed(seed):
            encoder = ConvEncoder((32, 64, 128), stem_stride=2)
        settings = MIXTURE | mixture
        return GPC(encoder, epochs=EPOCHS, warmup_epochs=warmup, gmm_params=settings, random_state=seed).fit(X, y)

    def told(features: Any) -> float:
        """Accuracy on new classes of semi-supervised k-means that is told their number."""
        found = ConstrainedKMeans(N_CLASSES, n_init=5, random_state=seed).fit(features, y)
        return scores(found.labels_)["new"]

    full, terms_only, many = trained(1), trained(EPOCHS), trained(1, n_init_clusters=20)
    flat = X.flatten(1).numpy()
    pixels = SemiSupervisedGMM(**MIXTURE, random_state=seed).fit(flat, y)
    after = [row for row in full.history_ if "proto" in row]
    return {
        "GPC": {**scores(full.labels_), "classes": full.n_classes_, "new, number told": told(full.transform(X))},
        "GPC from 20 clusters": {
            **scores(many.labels_),
            "classes": many.n_classes_,
            "new, number told": told(many.transform(X)),
        },
        "contrastive terms only": {
            **scores(terms_only.labels_),
            "classes": terms_only.n_classes_,
            "new, number told": told(terms_only.transform(X)),
        },
        "mixture of pixels": {**scores(pixels.labels_), "classes": pixels.n_classes_, "new, number told": told(flat)},
        "proto": [row["proto"] for row in after],
        "clusters": [int(row["clusters"]) for row in after],
        "finite": all(math.isfinite(row["loss"]) for row in full.history_),
    }


def collect(evidence: Evidence) -> None:
    """Measure at every seed and judge."""
    evidence.uses("MNIST: 6,000 training images, half of those of 0 to 4 labelled")
    runs = evidence.map(measured)
    arms = ("GPC", "contrastive terms only", "GPC from 20 clusters", "mixture of pixels")
    evidence.table(
        "clustering accuracy on unlabelled images and number of classes",
        [
            {"seed": seed, "arm": arm, **{key: round(value, 4) for key, value in run[arm].items()}}
            for seed, run in zip(evidence.seeds, runs, strict=True)
            for arm in arms
        ],
    )
    evidence.table(
        "prototype loss of the epochs after the warm-up",
        [
            {
                "seed": seed,
                "first": round(run["proto"][0], 4),
                "last": round(run["proto"][-1], 4),
                "clusters, first": run["clusters"][0],
                "clusters, last": run["clusters"][-1],
            }
            for seed, run in zip(evidence.seeds, runs, strict=True)
        ],
    )
    evidence.check("loss finite in every epoch, seeds", sum(run["finite"] for run in runs), at_least=len(runs))
    falls = [run["proto"][-1] - run["proto"][0] for run in runs]
    evidence.check(
        "prototype loss: last epoch less first",
        falls,
        at_most=0,
        note=f"Numbers of clusters between which it is compared, by seed: {[run['clusters'] for run in runs]}; a "
        "further cluster alone raises it, since it is a cross-entropy over all of them.",
    )
    lead = [run["GPC"]["new"] - run["contrastive terms only"]["new"] for run in runs]
    counts = [[run[arm]["classes"] for run in runs] for arm in arms[:2]]
    more = [round(run["GPC from 20 clusters"]["new"], 3) for run in runs]
    told = [[round(run[arm]["new, number told"], 3) for run in runs] for arm in arms[:2]]
    evidence.check(
        "accuracy on new classes over the contrastive terms only",
        lead,
        at_least=-0.02,
        note=f"The two encoders are clustered into different numbers of classes, {counts[0]} and {counts[1]} by seed. "
        f"Semi-supervised k-means that is told the number gives {told[0]} and {told[1]} on new classes. "
        f"Started from 20 clusters instead of {N_KNOWN + N_KNOWN // 2}, GPC has {more} on new classes.",
    )

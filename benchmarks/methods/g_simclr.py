"""G-SimCLR on Fashion-MNIST: who meets in a batch, and what a probe gets from the features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.data import Split, fashion_mnist
from benchmarks.evidence import Evidence
from benchmarks.probing import probe_accuracy, with_fitted_statistics
from models.base import check_images, isolated_seed, predict_in_batches
from models.networks.convnet import ConvEncoder
from models.pretrain.cluster_batches import SamplerName, StratifiedClusterBatchSampler, repeats
from models.pretrain.g_simclr import GSimCLR, PseudoLabeller
from models.pretrain.pseudo_labels import cluster

N_PURITY, N_TRAIN, N_LABELLED, N_TEST = 8000, 4000, 1000, 2000
GROUPS: dict[str, Any] = {"n_clusters": 64, "widths": (16, 32, 64), "epochs": 5, "samples": 4000}
TRAINING: dict[str, Any] = {"batch_size": 64, "epochs": 5}
SAMPLERS: tuple[SamplerName, ...] = ("random", "round_robin", "hard")


def same_class_pairs(y: NDArray[np.int64], batches: Sequence[NDArray[np.int64]]) -> float:
    """Share of the pairs inside a batch that are of one true class."""
    size = len(batches[0])
    pairs = [sum(count * (count - 1) for count in np.bincount(y[batch]).tolist()) for batch in batches]
    return float(np.mean(pairs) / (size * (size - 1)))


def purity(data: Split, seed: int) -> dict[tuple[int, str], dict[str, float]]:
    """Who meets in the batches of one epoch, for K = B = 16 and 64 and every way of drawing them."""
    chosen = np.random.default_rng(seed).permutation(len(data.train_labels))[:N_PURITY]
    X, y = data.train_images[chosen], data.train_labels[chosen]
    embedding = PseudoLabeller(random_state=seed, **GROUPS).fit(X).embedding_
    found: dict[tuple[int, str], dict[str, float]] = {}
    for size in (16, 64):
        groups = cluster(embedding, size, seed).labels_.astype(np.int64)
        smallest = int(np.bincount(groups).min())
        for how in SAMPLERS:
            sampler = StratifiedClusterBatchSampler(groups, size, how, random_state=seed)
            batches = [batch.numpy() for batch in sampler.batches(0)]
            counts = [repeats(groups[batch]) for batch in batches]
            found[size, how] = {
                "same-class pairs, epoch": same_class_pairs(y, batches),
                "first half": same_class_pairs(y, batches[: len(batches) // 2]),
                "pseudo-label repeats a batch": float(np.mean(counts)),
                "repeats before a cluster runs out": float(sum(counts[:smallest])),
                "batches": len(batches),
                "smallest cluster": smallest,
            }
    return found


def features(encoder: nn.Module, images: Tensor) -> NDArray[np.float32]:
    """P3: the pooled output of an encoder."""
    return predict_in_batches(encoder, images).numpy()


def probes(data: Split, seed: int) -> dict[str, float]:
    """Probe accuracy of every arm, all from the same initial weights."""
    rng = np.random.default_rng(100 + seed)
    train = rng.permutation(len(data.train_labels))[:N_TRAIN]
    test = rng.permutation(len(data.test_labels))[:N_TEST]
    X, y = check_images(data.train_images[train]), data.train_labels[train]
    X_test, y_test = check_images(data.test_images[test]), data.test_labels[test]
    with isolated_seed(seed):
        encoder = ConvEncoder((16, 32, 64))

    def judged(read: Any) -> float:
        return probe_accuracy(read(X[:N_LABELLED]), y[:N_LABELLED], read(X_test), y_test)

    groups = PseudoLabeller(random_state=seed, **GROUPS).fit(X).labels_
    arms: dict[str, tuple[SamplerName, NDArray[np.int64]]] = {
        "SimCLR (random batches)": ("random", groups),
        "G-SimCLR, round robin": ("round_robin", groups),
        "G-SimCLR, hard": ("hard", groups),
        "G-SimCLR, true classes as groups": ("round_robin", y),
    }
    fitted = with_fitted_statistics(encoder, X)
    scores = {
        "pixels": judged(lambda images: images.numpy()),
        "random encoder": judged(lambda images: features(encoder, images)),
        "random encoder, statistics fitted": judged(lambda images: features(fitted, images)),
    }
    for name, (how, labels) in arms.items():
        method = GSimCLR(encoder, sampler=how, random_state=seed, **TRAINING).fit(X, pseudo_labels=labels)
        scores[name] = judged(method.transform)
    return scores


def collect(evidence: Evidence) -> None:
    """Measure at every seed and judge."""
    evidence.uses(
        "Fashion-MNIST: 8,000 training images for batch purity; 4,000 without labels, 1,000 labels, 2,000 test images"
    )
    data = fashion_mnist()
    met = dict(zip(evidence.seeds, evidence.map(partial(purity, data)), strict=True))
    evidence.table(
        "who meets in a batch",
        [
            {"seed": seed, "K = B": size, "batches drawn": how, **{key: round(value, 4) for key, value in row.items()}}
            for seed, found in met.items()
            for (size, how), row in found.items()
        ],
    )
    judge_batches(evidence, list(met.values()))
    scores = dict(zip(evidence.seeds, evidence.map(partial(probes, data)), strict=True))
    evidence.table(
        "accuracy of a logistic regression with 1,000 labels on P3",
        [{"seed": seed, **{name: round(value, 4) for name, value in row.items()}} for seed, row in scores.items()],
    )
    judge_probes(evidence, list(scores.values()))


def judge_batches(evidence: Evidence, met: list[dict[tuple[int, str], dict[str, float]]]) -> None:
    """Bounds on the batches."""
    whole, half = "same-class pairs, epoch", "first half"

    def ratio(size: int, how: str, part: str) -> list[float]:
        return [found[size, how][part] / found[size, "random"][whole] for found in met]

    evidence.check("K=B=16: same-class pairs of hard over random", ratio(16, "hard", whole), at_most=0.85)
    evidence.check(
        "K=B=16: same-class pairs of round robin, first half, over random", ratio(16, "round_robin", half), at_most=0.85
    )
    below = max(ratio(64, "hard", whole))
    evidence.check("K=B=64: same-class pairs of hard over random, worst seed", below, at_most=1.0)
    for size in (16, 64):
        early = max(found[size, "round_robin"]["repeats before a cluster runs out"] for found in met)
        evidence.check(f"K=B={size}: pseudo-label repeats of round robin before a cluster runs out", early, at_most=0)
        ever = max(found[size, "hard"]["pseudo-label repeats a batch"] for found in met)
        evidence.check(f"K=B={size}: pseudo-label repeats of hard, whole epoch", ever, at_most=0)


def judge_probes(evidence: Evidence, scores: list[dict[str, float]]) -> None:
    """Bounds on the features."""

    def lead(over: str) -> list[float]:
        return [row["G-SimCLR, round robin"] - row[over] for row in scores]

    evidence.check("probe: G-SimCLR over SimCLR of the same budget", lead("SimCLR (random batches)"), at_least=-0.01)
    evidence.check("probe: G-SimCLR over a random encoder", lead("random encoder"), at_least=0.02)
    evidence.check(
        "probe: G-SimCLR over a random encoder with fitted statistics",
        lead("random encoder, statistics fitted"),
        at_least=0.02,
    )

"""Evidence for UDFC: pruning and rounding without data or training, on digits and on clothes.

Digits: the whole set of 1,797, 70/30; three convolutions of 64 channels. The tables of ratios show plain pruning,
one-to-one merging (Kim et al., "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020), the published closed
form, and ours with the mean corrected.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from benchmarks import peers_compress
from benchmarks.data import digits, fashion_mnist
from benchmarks.evidence import Evidence
from benchmarks.peers_compress import compare
from models.base import isolated_seed, predict_in_batches
from models.compress.quantised import pack_integers, unpack_integers
from models.compress.udfc import Layer, UnifiedDataFreeCompressor
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier
from models.training import ClassifierTrainer, cosine, sgd

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
PLAIN: dict[str, Any] = {"alpha2": 1e14, "mean_correction": False}  # an endless ridge leaves nothing but slicing
PAPER: dict[str, Any] = {"mean_correction": False}
NNLS: dict[str, Any] = {"alpha1": 1.0, "alpha2": 0.1, "nonnegative": True}
FASHION_TRAIN, FASHION_TEST = 4_000, 2_000
Data = tuple[Tensor, Tensor, Tensor, Tensor]
Networks = dict[str, tuple[nn.Module, Data]]
Figures = dict[str, float]


class Merging(UnifiedDataFreeCompressor):
    """One-to-one merging: a lost channel becomes a multiple of the one kept channel most like it.

    The partner minimises ``0.85 (cosine distance of the filters) + 0.15 (distance of the offsets, scaled to [0, 1])``;
    the factor is ``|g_j W_j| / |g_k W_k|``. Filters with cosine below 0.1 are merged with nothing.
    """

    def reconstruct(self, layer: Layer) -> Tensor:
        """S with at most one entry in each row."""
        scales = torch.zeros(len(layer.weight), len(layer.kept), dtype=layer.weight.dtype)
        scales[layer.kept, torch.arange(len(layer.kept))] = 1.0
        signed = layer.gain[:, None] * layer.weight
        norms = signed.norm(dim=1).clamp(min=1e-12)
        for j in layer.dropped.tolist():
            cosine_to = signed[layer.kept] @ signed[j] / (norms[layer.kept] * norms[j])
            factors = norms[j] / norms[layer.kept]
            gaps = (layer.offset[j] - factors * layer.offset[layer.kept]).abs()
            gaps = (gaps - gaps.min()) / (gaps.max() - gaps.min()).clamp(min=1e-12)
            best = int((0.85 * (1 - cosine_to) + 0.15 * gaps).argmin())
            if cosine_to[best] >= 0.1:
                scales[j, best] = factors[best]
        return scales


def split_digits(seed: int) -> Data:
    """Train and test images (n, 1, 8, 8) in [0, 1] with labels, 70/30."""
    images, labels = digits()
    X = torch.from_numpy(images).float().unsqueeze(1) / 255
    parts = train_test_split(X.numpy(), labels, test_size=0.3, random_state=seed, stratify=labels)
    return tuple(torch.from_numpy(part) for part in parts)  # type: ignore[return-value]


def split_fashion(seed: int, n_train: int = FASHION_TRAIN) -> Data:
    """`n_train` training images (n, 1, 28, 28) drawn with `seed`, and the first 2,000 test images."""
    data = fashion_mnist()
    rows = np.random.default_rng(seed).permutation(len(data.train_images))[:n_train]
    images = [
        torch.from_numpy(part.copy()).float().unsqueeze(1) / 255
        for part in (data.train_images[rows], data.test_images[:FASHION_TEST])
    ]
    return (
        images[0],
        images[1],
        torch.from_numpy(data.train_labels[rows]),
        torch.from_numpy(data.test_labels[:FASHION_TEST]),
    )


def digits_network() -> nn.Module:
    """3 x [conv 3x3-64, BN, ReLU], max-pooling after the second, global average, linear."""

    def unit(inputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]

    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*unit(1), *unit(64), nn.MaxPool2d(2), *unit(64), *tail)


def fashion_convnet() -> nn.Module:
    """The chain's network: blocks of 32, 64 and 128 channels behind a strided stem, embedding of 128."""
    return SplitClassifier(ConvEncoder((32, 64, 128), stem_stride=2), 10, 128, normalised_head=True)


def trained(make: Callable[[], nn.Module], data: Data, seed: int, epochs: int) -> nn.Module:
    """A network trained with SGD 0.05, momentum 0.9, weight decay 5e-4, cosine, batches of 64."""
    with isolated_seed(seed):
        network = make()
        ClassifierTrainer(
            network,
            epochs=epochs,
            batch_size=64,
            optimizer=sgd(0.05, weight_decay=5e-4),
            schedule=cosine,
            seed=seed,
            label="network to compress",
        ).fit(data[0], data[2])
    return network.eval()


def accuracy(network: nn.Module, data: Data) -> float:
    """Test accuracy in %."""
    predicted = predict_in_batches(network, data[1]).argmax(1)
    return 100 * float((predicted == data[3]).float().mean())


def after(
    network: nn.Module, data: Data, rule: type[UnifiedDataFreeCompressor] = UnifiedDataFreeCompressor, **parameters: Any
) -> float:
    """Test accuracy in % of the compressed network."""
    return accuracy(rule(**parameters).fit_transform(network, data[0][:1]), data)


def means(rows: Iterable[Figures]) -> Figures:
    """Mean of each figure over the seeds."""
    rows = list(rows)
    return {key: round(float(np.mean([row[key] for row in rows])), 2) for key in rows[0]}


def trained_networks(seed: int) -> dict[str, tuple[nn.Module, Data]]:
    """The two networks of the benchmark, trained from `seed`."""
    small, clothes = split_digits(seed), split_fashion(seed)
    return {
        "digits CNN": (trained(digits_network, small, seed, epochs=12), small),
        "Fashion ConvEncoder": (trained(fashion_convnet, clothes, seed, epochs=4), clothes),
    }


def peer_rows(networks: Networks) -> list[dict[str, Any]]:
    """Every network at every ratio beside torch-pruning."""
    return [
        compare(name, network, data[0][:1], partial(accuracy, data=data), ratio)
        for name, (network, data) in networks.items()
        for ratio in peers_compress.RATIOS
    ]


def pruning(networks: Sequence[tuple[nn.Module, Data]], skip_layers: tuple[str, ...]) -> dict[float, list[Figures]]:
    """Accuracy of every rule at every ratio, a row a seed."""
    rules: dict[str, Callable[..., float]] = {
        "plain": partial(after, **PLAIN),
        "merging": partial(after, rule=Merging, mean_correction=False),
        "merging, corrected": partial(after, rule=Merging),
        "paper": partial(after, **PAPER),
        "udfc": after,
        "udfc, nonnegative": partial(after, **NNLS),
    }
    shared: dict[str, Any] = {"weight_bits": 32, "skip_layers": skip_layers}
    return {
        ratio: [
            {name: rule(network, data, prune_ratio=ratio, **shared) for name, rule in rules.items()}
            for network, data in networks
        ]
        for ratio in RATIOS
    }


def rounding(network: nn.Module, data: Data, bits: int, ends: int) -> Figures:
    """Rounding alone: accuracy of plain rounding, the published form and ours; and the mean of the factors s_k."""
    shared: dict[str, Any] = {"prune_ratio": 0.0, "weight_bits": bits, "first_last_bits": ends}
    method = UnifiedDataFreeCompressor(**shared).fit(network, data[0][:1])
    return {
        "plain": after(network, data, **shared, **PLAIN),
        "paper": after(network, data, **shared, **PAPER),
        "udfc": accuracy(method.transform(), data),
        "mean factor": float(np.mean([np.diag(scales).mean() for scales in method.scales_.values()])),
    }


def compressed_file(network: nn.Module, data: Data) -> Figures:
    """The defaults (30% and 6 bits) on a whole network: accuracy, sizes of real safetensors files, seconds."""
    method = UnifiedDataFreeCompressor()
    started = time.perf_counter()
    small = method.fit_transform(network, data[0][:1])
    seconds = time.perf_counter() - started
    tensors, config = pack_integers(small, method.bits_)
    restored = copy.deepcopy(small)
    restored.load_state_dict(unpack_integers(load(save(tensors)), config))
    return {
        "accuracy before": accuracy(network, data),
        "accuracy after": accuracy(restored, data),
        "file bytes before": len(save(network.state_dict())),
        "file bytes after": len(save(tensors)),
        "multiply-adds left": method.flops_["after"] / method.flops_["before"],
        "parameters left": method.params_["after"] / method.params_["before"],
        "seconds": seconds,
    }


def judge_pruning(evidence: Evidence, networks: Sequence[tuple[nn.Module, Data]], before: list[float]) -> None:
    """The bounds on pruning, and the tables they are read from."""
    merciless, gentle = pruning(networks, ()), pruning(networks, ("first",))
    for name, figures in (("all convolutions", merciless), ("first one whole", gentle)):
        evidence.table(f"digits, {name}: accuracy by ratio", [{"ratio": r, **means(figures[r])} for r in RATIOS])
    evidence.table(
        "digits, per seed",
        [
            {"seed": seed, "before": round(start, 2), "ratio": ratio, **{k: round(v, 2) for k, v in figures[i].items()}}
            for ratio, figures in merciless.items()
            for i, (seed, start) in enumerate(zip(evidence.seeds, before, strict=True))
        ],
    )
    at_fifth, at_half = merciless[0.2], merciless[0.5]
    lost = [start - row["udfc"] for start, row in zip(before, at_fifth, strict=True)]
    evidence.check("points lost at ratio 0.2, mean corrected", lost, at_most=1.5)
    evidence.check("points over plain pruning at 0.5", [r["udfc"] - r["plain"] for r in at_half], at_least=30)
    evidence.check("points over merging at 0.5", [r["udfc"] - r["merging"] for r in at_half], at_least=3)
    for ratio in RATIOS:
        gains = [row["paper"] - row["plain"] for row in gentle[ratio]]
        mean = means(gentle[ratio])
        note = (
            f"Same coefficients, same seeds: {mean['udfc']:.1f}% once the mean of each next layer is put right, "
            f"{mean['paper']:.1f}% as published, {mean['plain']:.1f}% plain. What the published form leaves out is the "
            "activation's mean, not the fit of the weights."
        )
        note = note if np.mean(gains) < -1 else ""
        evidence.check(
            f"published form minus plain pruning at {ratio}, first layer whole", gains, at_least=-1, note=note
        )


def judge_rounding(evidence: Evidence, networks: Sequence[tuple[nn.Module, Data]]) -> None:
    """The bounds on bits alone, and on bits and channels together."""
    rows = []
    for bits, ends in ((3, 3), (3, 8), (4, 4), (6, 6)):
        figures = [rounding(network, data, bits, ends) for network, data in networks]
        rows.append({"bits": bits, "first and last": ends, **means(figures)})
        if bits == 3:
            gains = [row["udfc"] - row["plain"] for row in figures]
            where = "everywhere" if ends == 3 else "but 8 in the first and last layer (default)"
            note = (
                f"One test image is {100 / len(networks[0][1][3]):.2f} points. The factors s_k that bring the rounded "
                f"filters nearest are {rows[-1]['mean factor']:.2f} on average: layer by layer they shrink the signal, "
                "which plain rounding does not."
            )
            note = note if np.mean(gains) < 0 else ""
            evidence.check(f"points over plain rounding, 3 bits {where}", gains, at_least=0, note=note)
    evidence.table("digits, rounding alone", rows)
    shared: dict[str, Any] = {"prune_ratio": 0.3, "skip_layers": ()}
    alone = [after(network, data, weight_bits=32, **shared) for network, data in networks]
    joint = [after(network, data, weight_bits=4, **shared) for network, data in networks]
    lost = [a - j for a, j in zip(alone, joint, strict=True)]
    evidence.check("points that 4 bits cost on top of ratio 0.3", lost, at_most=3)


def collect(evidence: Evidence) -> None:
    """Train the networks at each seed, compress them, and judge."""
    evidence.uses(
        "UCI handwritten digits (1,797 images, 8x8), 70/30",
        f"Fashion-MNIST, {FASHION_TRAIN:,} training images and {FASHION_TEST:,} test images",
    )
    by_seed = evidence.map(trained_networks)
    on_digits = [networks["digits CNN"] for networks in by_seed]
    before = [accuracy(network, data) for network, data in on_digits]
    judge_pruning(evidence, on_digits, before)
    judge_rounding(evidence, on_digits)
    seconds = []
    for network, data in on_digits:
        started = time.perf_counter()
        UnifiedDataFreeCompressor(skip_layers=()).fit(network, data[0][:1])
        seconds.append(time.perf_counter() - started)
    evidence.check("seconds to compress the digits network", max(seconds), at_most=2)
    names = list(by_seed[0])
    evidence.table(
        "defaults (30%, 6 bits)",
        [{"network": name, **means(compressed_file(*networks[name]) for networks in by_seed)} for name in names],
    )
    evidence.table(
        "Fashion-MNIST, first layer whole: accuracy by ratio",
        [
            {"network": name, "ratio": ratio, **means(rows)}
            for name in names[1:]
            for ratio, rows in pruning([networks[name] for networks in by_seed], ("first",)).items()
        ],
    )
    if find_spec("torch_pruning") is None:
        evidence.not_run("peer", "torch-pruning is not installed (extra: peers)")
        return
    rows = peers_compress.summary([row for networks in by_seed for row in peer_rows(networks)])
    peers_compress.show(rows)
    evidence.table("peer", rows)

"""Pruning without fine-tuning beside torch-pruning: the same trained networks, layers, channel counts, data and run.

torch-pruning (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023) follows the dependencies between
layers and removes the channels of smallest norm; it has no repair step, because fine-tuning is meant to follow.
Both are given the layers UDFC may prune, and remove equally many channels of each.

``python -m benchmarks.peers_compress [seed ...]`` trains the networks and prints the comparison.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.compress.rebuild import folded
from models.compress.udfc import UnifiedDataFreeCompressor

RATIOS = (0.2, 0.3, 0.5)
REPEATS = 3


def torch_pruning(network: nn.Module, example: Tensor, keep: dict[str, int]) -> nn.Module:
    """`network` pruned by torch-pruning's magnitude pruner until the layers of `keep` have so many outputs."""
    import torch_pruning as tp

    smaller = copy.deepcopy(network).eval()
    layers = {name: layer for name, layer in smaller.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    shares = {  # the pruner rounds n (1 - share) down
        layers[name]: 1 - (count + 1e-6) / len(layers[name].weight) for name, count in keep.items()
    }
    pruner = tp.pruner.MagnitudePruner(
        smaller,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.0,
        pruning_ratio_dict=shares,
        ignored_layers=[layer for name, layer in layers.items() if name not in keep],
    )
    pruner.step()
    return smaller


def fastest(action: Callable[[], Any]) -> tuple[Any, float]:
    """What `action` gives and the shortest of a few times it took, in seconds."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        outcome = action()
        times.append(time.perf_counter() - started)
    return outcome, min(times)


def compare(
    name: str, network: nn.Module, example: Tensor, accuracy: Callable[[nn.Module], float], ratio: float
) -> dict[str, Any]:
    """One network at one ratio: accuracy (%) after each tool, without fine-tuning, and seconds taken.

    Parameters
    ----------
    name : str
        What the row calls the network.
    network : nn.Module
        Trained.
    example : Tensor
        One batch.
    accuracy : callable
        Network -> test accuracy in %.
    ratio : float
        Share of the output channels removed from every layer that may lose some.

    Raises
    ------
    RuntimeError
        If the two pruned networks differ in size, so that the comparison would not be fair.
    """
    network = folded(network).eval()
    method = UnifiedDataFreeCompressor(prune_ratio=ratio, weight_bits=32, skip_layers=())
    ours, our_seconds = fastest(lambda: method.fit_transform(network, example))
    keep = {layer: len(kept) for layer, kept in method.kept_.items()}
    theirs, their_seconds = fastest(lambda: torch_pruning(network, example, keep))
    sizes = [sum(parameter.numel() for parameter in pruned.parameters()) for pruned in (ours, theirs)]
    if sizes[0] != sizes[1]:
        raise RuntimeError(f"The pruned networks have {sizes[0]} and {sizes[1]} parameters; they must be equal.")
    return {
        "network": name,
        "ratio": ratio,
        "parameters left": round(sizes[0] / sum(p.numel() for p in network.parameters()), 3),
        "accuracy before": accuracy(network),
        "accuracy torch-pruning": accuracy(theirs),
        "accuracy udfc": accuracy(ours),
        "seconds torch-pruning": their_seconds,
        "seconds udfc": our_seconds,
    }


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over the seeds of each network and ratio, with the two tools as ratios."""
    merged = []
    for key in dict.fromkeys((row["network"], row["ratio"]) for row in rows):
        group = [row for row in rows if (row["network"], row["ratio"]) == key]
        mean = {name: float(np.mean([row[name] for row in group])) for name in group[0] if name != "network"}
        merged.append(
            {
                "network": key[0],
                **{name: round(value, 4) for name, value in mean.items()},
                "accuracy udfc / torch-pruning": round(mean["accuracy udfc"] / mean["accuracy torch-pruning"], 2),
                "time udfc / torch-pruning": round(mean["seconds udfc"] / mean["seconds torch-pruning"], 2),
                "seeds": len(group),
            }
        )
    return merged


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the comparison."""
    print(f"{'network':<18}{'ratio':>6}{'params left':>13}{'before':>8}{'t-p':>8}{'udfc':>8}{'acc x':>8}{'time x':>8}")
    for row in rows:
        print(
            f"{row['network']:<18}{row['ratio']:>6}{row['parameters left']:>13.2f}{row['accuracy before']:>8.2f}"
            f"{row['accuracy torch-pruning']:>8.2f}{row['accuracy udfc']:>8.2f}"
            f"{row['accuracy udfc / torch-pruning']:>8.2f}{row['time udfc / torch-pruning']:>8.2f}"
        )


if __name__ == "__main__":
    import sys

    from benchmarks.methods.udfc import peer_rows, trained_networks

    torch.set_num_threads(1)
    seeds = [int(seed) for seed in sys.argv[1:]] or [0, 1, 2]
    show(summary([row for seed in seeds for row in peer_rows(trained_networks(seed))]))

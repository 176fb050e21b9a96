"""Who makes a classifier smallest without making it worse? One trained model, compressed without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.arenas import Arena, Arrays, Bout, Facts, Metric, Source, plain_parameters

MOST_LOST = 0.02
"""Share of the accuracy that a recommended candidate may lose."""


@dataclass
class Found:
    """A compressed network, with the bits of each layer that is rounded."""

    network: Any
    bits: dict[str, int]
    parameters: dict[str, Any] = field(default_factory=dict)


class CompressArena(Arena):
    """The smallest wins of those that keep the accuracy."""

    stage = "compress"
    question = "Which compression makes the model smallest without making it worse?"
    metrics = (
        Metric("bytes", "weights as they are stored", False, "bytes"),
        Metric("accuracy_kept", "accuracy, of that of the model as it is"),
        Metric("accuracy", "accuracy on held-out rows"),
        Metric("latency_ms", "time for a batch of 32 on one thread", False, "milliseconds"),
        Metric("parameters", "numbers in the network", False, "number"),
    )
    baselines = {  # noqa: RUF012
        "as-it-is": "The model as it was trained, in 32-bit floats.",
        "magnitude-pruning": "The same share of channels removed, those of the smallest weights; nothing is repaired.",
    }

    modules = dict.fromkeys(
        ("method", "as-it-is", "magnitude-pruning"),
        ("tasks.compress", "tasks.arenas.source_model", "models.compress.udfc", "models.state"),
    )

    def prepare(self, source: Source, seed: int, rows: int) -> Bout:
        """Train the model that is compressed, and hold labelled rows back."""
        from models.supervised import probabilities
        from tasks.arenas.sampling import train_and_test
        from tasks.arenas.source_model import packed, train_source

        train, test, where = train_and_test(source, rows, seed, self.stage)
        network = train_source(train, source.schema, seed)
        import torch

        accuracy = float((probabilities(network, torch.from_numpy(test.X)).argmax(1) == test.y).mean())
        arrays, description = packed(network)
        facts = {
            "kind": source.schema.kind,
            "network": description,
            "accuracy": accuracy,
            "measured": len(test.y),
        }
        notes = [
            f"The chain's network was trained once on {len(train.y):,} labelled rows; its accuracy is {accuracy:.3f}, "
            f"{where}. No candidate sees a row.",
            f"Whoever loses more than {MOST_LOST:.0%} of that accuracy is not recommended, however small.",
            "Latency is measured while other candidates run on the other cores; take it as an order of magnitude.",
        ]
        return Bout({"example": np.zeros((2, *train.X.shape[1:]), np.float32), **arrays},
                    {"X": test.X, "y": test.y}, facts, notes)  # fmt: skip

    def fit(self, name: str, given: Arrays, facts: Facts, seed: int) -> Found:
        """The compressed network."""
        import torch

        from models.registry import build_method
        from tasks.arenas.source_model import unpacked
        from tasks.compress import CompressConfig

        network: Any = unpacked(given, facts)
        if name == "as-it-is":
            return Found(network, {})
        usual = CompressConfig()
        example = torch.from_numpy(given["example"])
        if name == "magnitude-pruning":
            share = float(usual.parameters["prune_ratio"])
            return Found(pruned(network, example, share), {}, {"prune_ratio": share, "criterion": "l2"})
        parameters = usual.parameters if name == usual.method else {}
        method = build_method(name, "compress", random_state=seed, **parameters)
        after = method.fit(network, example).transform()
        return Found(after, dict(method.bits_), plain_parameters(method))

    def measure(self, found: Found, given: Arrays, hidden: Arrays, facts: Facts, seed: int) -> dict[str, float]:
        """Size, accuracy and time of one network."""
        import torch

        from models.compress.quantised import pack_integers
        from models.supervised import probabilities
        from tasks.compress import latencies

        network = found.network.eval()
        tensors, _ = pack_integers(network, found.bits)
        answers = probabilities(network, torch.from_numpy(hidden["X"])).argmax(1)
        accuracy = float((answers == hidden["y"]).mean())
        return {
            "bytes": float(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())),
            "accuracy": accuracy,
            "accuracy_kept": accuracy / max(facts["accuracy"], 1e-9),
            "latency_ms": latencies({"it": network}, torch.from_numpy(given["example"]))["it"],
            "parameters": float(sum(parameter.numel() for parameter in network.parameters())),
        }

    def objection(self, metrics: Mapping[str, float], facts: Facts) -> str:
        """Small is no merit when the model is broken."""
        lost = 1 - metrics.get("accuracy_kept", 1.0)
        return f"loses {lost:.1%} of the accuracy" if lost > MOST_LOST else ""


def pruned(network: Any, example: Any, share: float) -> Any:
    """A copy without the channels of the smallest weights, cut out of the next layer as if they had been zero."""
    import torch

    from models.compress.udfc import Layer, UnifiedDataFreeCompressor

    class Unrepaired(UnifiedDataFreeCompressor):
        def reconstruct(self, layer: Layer) -> torch.Tensor:
            return torch.eye(len(layer.weight), dtype=layer.weight.dtype)[:, layer.kept]

    return Unrepaired(prune_ratio=share, weight_bits=32, mean_correction=False, random_state=0).fit_transform(
        network, example
    )


ARENA = CompressArena()

"""The classifier that adapt and compress begin with: trained once, carried to every candidate as plain arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.arenas import Arrays, Facts

if TYPE_CHECKING:
    from torch.nn import Module

    from infra.datasets import Schema
    from tasks.arenas.sampling import Sample

PREFIX = "network."


def train_source(train: Sample, schema: Schema, seed: int) -> Module:
    """The chain's network, trained on labelled rows as the chain's fine-tuning does it by default."""
    import torch

    from models.augment import PadCrop
    from models.supervised import train_classifier
    from tasks.finetune import FinetuneConfig
    from tasks.networks import NetworkConfig, make_classifier, make_encoder

    config, network = FinetuneConfig(), NetworkConfig()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier: Any = make_classifier(make_encoder(schema, network), schema.n_classes, network)
    train_classifier(
        classifier,
        torch.from_numpy(train.X),
        train.y,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        label_smoothing=config.label_smoothing,
        augment=PadCrop(2) if config.augment and schema.kind == "image" else None,
        label="source model",
        seed=seed,
    )
    return classifier.eval()


def packed(network: Module) -> tuple[Arrays, dict[str, Any]]:
    """The network as named arrays, and JSON values that :func:`unpacked` needs beside them."""
    from models.state import pack

    tensors, description = pack(network)
    return {PREFIX + name: np.asarray(tensor) for name, tensor in tensors.items()}, description


def unpacked(given: Arrays, facts: Facts) -> Module:
    """The network, in eval mode."""
    import torch

    from models.state import unpack

    tensors = {
        name.removeprefix(PREFIX): torch.from_numpy(array) for name, array in given.items() if name.startswith(PREFIX)
    }
    network: Module = unpack(tensors, facts["network"])
    return network.eval()

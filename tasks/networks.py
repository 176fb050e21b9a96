"""The network that the chain and the naive model share, made to fit the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from infra.datasets import Schema
from infra.references import Reference

if TYPE_CHECKING:
    from torch.nn import Module


class NetworkConfig(Reference):
    """Shape of the network; the same for every stage of a run."""

    channels: tuple[int, ...] = Field((32, 64, 128), description="Width of each convolutional block (images).")
    stem_stride: int = Field(2, ge=1, le=4, description="Stride of the first convolution (images).")
    widths: tuple[int, ...] = Field((256, 64), description="Width of each hidden layer (tables).")
    embedding_dim: int = Field(128, gt=1, description="Width of the embedding before the classifier's last layer.")


def make_encoder(schema: Schema, config: NetworkConfig) -> Module:
    """A convolutional encoder for images, a fully connected one for tables."""
    from models.networks.convnet import ConvEncoder
    from models.networks.mlp import MLPEncoder

    if schema.kind == "image":
        return ConvEncoder(channels=config.channels, in_channels=schema.channels, stem_stride=config.stem_stride)
    return MLPEncoder(in_features=len(schema.features), widths=tuple(config.widths), standardise=True)


def make_classifier(encoder: Module, n_classes: int, config: NetworkConfig) -> Module:
    """Encoder, embedding and a weight-normalised last layer."""
    from models.networks.heads import SplitClassifier

    return SplitClassifier(encoder, n_classes, embedding_dim=config.embedding_dim, normalised_head=True)

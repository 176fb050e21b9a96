"""What stands on an encoder: projection heads, classifiers split into extractor and head, and both together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from models.networks import network


def folded_layer(layer: nn.Module) -> nn.Module:
    """The equal layer with plain tensors where `layer` is parametrised (weight normalisation).

    torch's ``remove_parametrizations`` edits a class that copies of the layer share, so that folding a copy breaks
    the original; this makes a new layer and leaves `layer` as it is.
    """
    kind: Any = type(layer).__bases__[0]
    plain: nn.Module = kind.__new__(kind)
    nn.Module.__init__(plain)
    plain.__dict__.update({key: value for key, value in layer.__dict__.items() if not isinstance(value, dict)})
    for name in layer.parametrizations:  # type: ignore[union-attr]
        plain.register_parameter(name, nn.Parameter(getattr(layer, name).detach().clone()))
    for name, value in layer._parameters.items():
        copied = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
        plain.register_parameter(name, copied)
    for name, buffer in layer._buffers.items():
        plain.register_buffer(name, None if buffer is None else buffer.clone())
    return plain


@network("projection")
class ProjectionHead(nn.Module):
    """Linear layers with ReLU between them, none after the last.

    Parameters
    ----------
    in_dim : int
    dims : sequence of int
        Output width of each linear layer.
    """

    def __init__(self, in_dim: int, dims: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip([in_dim, *dims], dims, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.out_dim = dims[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, in_dim) -> projections (B, dims[-1])."""
        return self.layers(x)


@network("split-classifier")
class SplitClassifier(nn.Module):
    """Encoder -> embedding -> head, the three parts that later stages train, freeze and prune apart.

    Parameters
    ----------
    encoder : nn.Module
        Any module with ``out_dim`` giving (B, out_dim).
    n_classes : int
    embedding_dim : int or None
        Width of the bottleneck Linear + BatchNorm (Liang et al., 2020); None leaves it out.
    normalised_head : bool
        Weight-normalised last layer.
    """

    def __init__(
        self, encoder: nn.Module, n_classes: int, embedding_dim: int | None = 256, normalised_head: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        width = int(encoder.out_dim)  # type: ignore[arg-type]
        self.embedding: nn.Module = nn.Identity()
        if embedding_dim is not None:
            self.embedding = nn.Sequential(nn.Linear(width, embedding_dim), nn.BatchNorm1d(embedding_dim))
            width = embedding_dim
        head = nn.Linear(width, n_classes)
        self.head = weight_norm(head) if normalised_head else head
        self.n_classes, self.embedding_dim = n_classes, width

    def features(self, x: Tensor) -> Tensor:
        """Embeddings (B, embedding_dim)."""
        return self.embedding(self.encoder(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes)."""
        return self.head(self.features(x))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of "backbone", "embedding" and "head"."""
        parts = {"backbone": self.encoder, "embedding": self.embedding, "head": self.head}
        return {name: list(part.parameters()) for name, part in parts.items()}

    def fold_head(self) -> SplitClassifier:
        """Replace a weight-normalised head by the equal plain one, in place."""
        if is_parametrized(self.head):
            self.head = folded_layer(self.head)
            self.architecture: dict[str, Any] = {**self.architecture, "normalised_head": False}
        return self


@network("projecting-classifier")
class ProjectingClassifier(nn.Module):
    """Encoder with a classifier and a projection head: ``forward(x) -> (logits, projection, stage maps)``.

    Parameters
    ----------
    encoder : nn.Module
        A module with ``stages`` and ``out_dim``.
    n_classes, projection_dim : int
    """

    def __init__(self, encoder: nn.Module, n_classes: int, projection_dim: int = 128) -> None:
        super().__init__()
        self.encoder = encoder
        width = int(encoder.out_dim)  # type: ignore[arg-type]
        self.classifier = nn.Linear(width, n_classes)
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Images -> logits (B, n_classes), projections (B, projection_dim), maps of every stage."""
        maps = self.encoder.stages(x)  # type: ignore[operator]
        pooled = maps[-1].mean(dim=(2, 3)) if maps[-1].ndim == 4 else maps[-1]
        return self.classifier(pooled), self.projection(pooled), maps

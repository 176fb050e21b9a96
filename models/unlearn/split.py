"""A classifier seen as extractor and head, whichever form it comes in, and the inputs handed to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Inputs = ArrayLike | Tensor | Dataset[Any] | DataLoader[Any]


class ExtractorAndHead(nn.Module):
    """An extractor (X -> (B, d)) and a head ((B, d) -> (B, K)) as one module.

    Parameters
    ----------
    extractor, head : nn.Module
    """

    def __init__(self, extractor: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.extractor, self.head = extractor, head

    def features(self, x: Tensor) -> Tensor:
        """Embeddings (B, d)."""
        return self.extractor(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.head(self.features(x))


class SplitView(nn.Module):
    """``features(x)`` and ``forward(x)`` (the logits) over any accepted form of classifier.

    Parameters
    ----------
    network : nn.Module
        With ``features`` and ``head``; or one whose forward returns (logits, embedding); for the logits
        alone any module that returns them.
    frozen : bool
        Stay in eval mode while trained: batch-normalisation statistics are kept, dropout is off.
    """

    def __init__(self, network: nn.Module, frozen: bool = True) -> None:
        super().__init__()
        self.network, self.frozen = network, frozen
        self.eval()

    def features(self, x: Tensor) -> Tensor:
        """Embeddings (B, d)."""
        if hasattr(self.network, "head") and callable(getattr(self.network, "features", None)):
            return self.network.features(x)  # type: ignore[operator]
        output = self.network(x)
        if not (isinstance(output, tuple) and len(output) == 2):
            raise ValueError(
                "model must return (logits, embedding) or have `features` and `head`, but "
                f"{type(self.network).__name__} returned {_described(output)}. Pass extractor=... and head=... instead."
            )
        return output[1]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        output = self.network(x)
        return output[0] if isinstance(output, tuple) else output

    def train(self, mode: bool = True) -> SplitView:
        """Training mode, unless frozen."""
        super().train(mode and not self.frozen)
        return self

    def head_parameters(self, x: Tensor) -> list[nn.Parameter]:
        """The trainable parameters that the embedding of `x` does not depend on."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if not parameters:
            return []
        gradients = torch.autograd.grad(self.features(x).sum(), parameters, allow_unused=True)
        return [parameter for parameter, grad in zip(parameters, gradients, strict=True) if grad is None]


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"one tensor shaped {tuple(output.shape)}"
    return f"{len(output)} values" if isinstance(output, tuple) else f"a {type(output).__name__}"


def joined(model: nn.Module | None, extractor: nn.Module | None, head: nn.Module | None) -> nn.Module:
    """The classifier that the arguments describe: `model`, or `extractor` and `head` together.

    Raises
    ------
    ValueError
        Unless exactly one of the two ways is used.
    """
    pair = extractor is not None and head is not None
    if (model is None) != pair or (model is not None and (extractor is not None or head is not None)):
        given = [
            name for name, part in (("model", model), ("extractor", extractor), ("head", head)) if part is not None
        ]
        raise ValueError(
            "Pass the trained classifier either as model=... or as extractor=... and head=..., "
            f"got {' and '.join(given) or 'none of them'}."
        )
    if model is not None:
        return model
    return ExtractorAndHead(extractor, head)  # type: ignore[arg-type]


def check_split(view: SplitView, x: Tensor) -> int:
    """Try `view` on a few rows `x` and return its number of classes.

    Raises
    ------
    ValueError
        If the embeddings or the logits are not one row of numbers for each row of `x`.
    """
    with torch.no_grad():
        for name, output in (("embedding", view.features(x)), ("logits", view(x))):
            if output.ndim != 2 or len(output) != len(x):
                raise ValueError(
                    f"The classifier's {name} must be shaped (n, d), got {tuple(output.shape)} for {len(x)} rows. "
                    "Flatten or pool the maps at the end of the extractor."
                )
    return int(output.shape[1])


def stack_inputs(X: Inputs, *, name: str = "X", shape: tuple[int, ...] | None = None) -> Tensor:
    """Any accepted input as one float32 tensor (n, ...); uint8 is divided by 255.

    Parameters
    ----------
    X : array, tensor, Dataset or DataLoader
        Of a data set's tuples only the first entry is read.
    name : str
        What the message calls the argument.
    shape : tuple of int, optional
        Of one sample, as seen before.

    Raises
    ------
    ValueError
        For no rows, one axis only, NaN or infinite entries, or another shape than `shape`.
    """
    if isinstance(X, DataLoader):
        parts = [_first(batch) for batch in X]
        rows = torch.cat(parts) if parts else torch.empty(0, 1)
    elif isinstance(X, Dataset):
        count = len(X)  # type: ignore[arg-type]
        rows = torch.stack([_first(X[i]) for i in range(count)]) if count else torch.empty(0, 1)
    else:
        rows = X if isinstance(X, Tensor) else torch.from_numpy(np.array(X))
    if rows.ndim < 2 or (shape is not None and len(rows) and tuple(rows.shape[1:]) != shape):
        wanted = "..." if shape is None else ", ".join(map(str, shape))
        raise ValueError(f"{name} must be shaped (n, {wanted}), got {tuple(rows.shape)}.")
    if not len(rows):
        raise ValueError(f"{name} must hold at least one sample, got none.")
    rows = rows.detach().float() / 255 if rows.dtype == torch.uint8 else rows.detach().float()
    bad = (~torch.isfinite(rows)).flatten(1).any(1).nonzero().flatten()
    if len(bad):
        raise ValueError(f"{name} contains NaN or infinite entries in {len(bad)} row(s), the first at row {bad[0]}.")
    return rows


def _first(item: Any) -> Tensor:
    return torch.as_tensor(item[0] if isinstance(item, (tuple, list)) else item)

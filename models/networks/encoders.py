"""From what a user names as encoder to a network of their own, and one feature vector an image from any of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.networks.resnet import named_resnet

EncoderSpec = str | nn.Module | Callable[[int], nn.Module]
N = TypeVar("N", bound=nn.Module)


def make_encoder(
    spec: EncoderSpec, in_channels: int, named: Callable[[str, int], nn.Module] = named_resnet
) -> nn.Module:
    """A network that may be trained without changing `spec`.

    Parameters
    ----------
    spec : str, nn.Module or callable
        A name, a module (copied, weights included), or a function in_channels -> module.
    in_channels : int
    named : callable
        (name, in_channels) -> module.

    Raises
    ------
    ValueError
        If the name is not known, or the function gives something other than a module.
    """
    if isinstance(spec, nn.Module):
        return copy.deepcopy(spec)
    made: Any = named(spec, in_channels) if isinstance(spec, str) else spec(in_channels)
    if not isinstance(made, nn.Module):
        raise ValueError(f"The function given as encoder must return an nn.Module, got {type(made).__name__}.")
    return made


def pooled(features: Tensor) -> Tensor:
    """Feature maps (B, C, h, w) averaged over space, or rows as they are: (B, d)."""
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features.flatten(1)


class Pooled(nn.Module):
    """:func:`pooled` as a layer."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps or rows -> rows (B, d)."""
        return pooled(features)


def feature_width(encoder: nn.Module, example: Tensor) -> int:
    """Width of ``pooled(encoder(x))``, found with one image or row `example` (1, ...) in eval mode.

    Raises
    ------
    ValueError
        If the encoder does not take such images or rows.
    """
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            return pooled(encoder(example)).shape[1]
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"The encoder does not take {'images' if example.ndim == 4 else 'rows'} shaped "
            f"{tuple(example.shape[1:])}: {error}. Give one made for them."
        ) from error
    finally:
        encoder.train(was_training)


def for_training(network: N) -> N:
    """`network` with its weights laid out channels last, in place: convolutions train a third faster on a CPU."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def at_rest(network: N) -> N:
    """`network` on the CPU in eval mode with its weights laid out as usual, in place."""
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.cpu().eval()

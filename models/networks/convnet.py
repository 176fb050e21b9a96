"""Plain convolutional networks for small images: the encoder that is the chain's default, and a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import network


def conv_unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution (same padding, no bias), batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


@network("convnet")
class ConvEncoder(nn.Module):
    """Blocks of [conv 3x3, BN, ReLU] with max-pooling between them and a global average at the end.

    Parameters
    ----------
    channels : sequence of int, or of sequences of int
        Width of each block, or of each convolution in it.
    in_channels : int
    units : int
        Convolutions per block whose width is one number.
    stem_stride : int
        Stride of the first convolution; 2 makes everything after it four times cheaper.

    Attributes
    ----------
    out_dim : int
        Width of the pooled output.
    blocks : nn.ModuleList
        The stages; ``stages(x)`` returns the map after each.
    """

    def __init__(
        self,
        channels: Sequence[int | Sequence[int]] = (32, 64, 128),
        in_channels: int = 1,
        units: int = 1,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        before = in_channels
        self.blocks = nn.ModuleList()
        for index, given in enumerate(channels):
            layers: list[nn.Module] = []
            stride = stem_stride if index == 0 else 1
            for width in [given] * units if isinstance(given, int) else given:
                layers.append(conv_unit(before, width, stride=stride))
                before, stride = width, 1
            if index < len(channels) - 1:
                layers.append(nn.MaxPool2d(2))
            self.blocks.append(nn.Sequential(*layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out_dim = before

    def stages(self, x: Tensor) -> list[Tensor]:
        """The feature map (B, C_l, H_l, W_l) after each block."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> features (B, out_dim)."""
        return self.pool(self.stages(x)[-1]).flatten(1)


@network("average-convnet")
class AverageConvNet(nn.Module):
    """Classifier of blocks [conv 3x3, BN, ReLU, 2x2 average pooling] and one linear layer over the last map.

    Nothing in it but ReLU has a kink, so gradients reach every pixel: the ConvNet of work on distilled data sets.

    Parameters
    ----------
    n_classes : int
    in_channels : int
    size : pair of int
        Height and width of the images.
    width, depth : int
        Channels of every block, and how many there are.

    Examples
    --------
    >>> AverageConvNet(10, width=4)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, n_classes: int, in_channels: int = 1, size: Sequence[int] = (28, 28), width: int = 128, depth: int = 3
    ) -> None:
        super().__init__()
        widths = [in_channels] + [width] * depth
        self.blocks = nn.ModuleList(conv_unit(before, after) for before, after in pairwise(widths))
        height, breadth = (-(-side // 2**depth) for side in size)
        self.out_dim = width * height * breadth
        self.head = nn.Linear(self.out_dim, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> features (B, out_dim)."""
        for block in self.blocks:
            x = F.avg_pool2d(block(x), 2, ceil_mode=True)
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, n_classes)."""
        return self.head(self.features(x))


@network("normalised")
class Normalised(nn.Module):
    """A network behind ``(x - mean) / std``, so that it takes pixels in [0, 1] whatever it was trained on.

    Parameters
    ----------
    inner : nn.Module
    mean, std : sequence of float
        One a channel, or one for all.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [0, 1] -> what the inner network makes of them."""
        return self.inner((x - self.mean) / self.std)

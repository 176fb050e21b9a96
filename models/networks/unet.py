"""A small U-Net (Ronneberger et al., 2015) for dense prediction: one output map per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import network
from models.networks.convnet import conv_unit


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch normalisation and ReLU."""
    return nn.Sequential(conv_unit(inputs, outputs), conv_unit(outputs, outputs))


@network("unet")
class UNet(nn.Module):
    """Contracting path, expanding path, and the maps of the first handed across to the second.

    Each step up enlarges bilinearly to the size of the map it meets, so that any height and width works.

    Parameters
    ----------
    out_channels : int
        Maps to predict (classes, colours).
    in_channels : int
    widths : sequence of int
        Channels at each level; the map is halved (rounding up) between levels.

    Attributes
    ----------
    out_dim : int
        Channels of the deepest map.

    References
    ----------
    O. Ronneberger, P. Fischer and T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
    MICCAI 2015, figure 1.

    Examples
    --------
    >>> import torch
    >>> UNet(2, widths=(4, 8))(torch.zeros(1, 1, 9, 7)).shape
    torch.Size([1, 2, 9, 7])
    """

    def __init__(self, out_channels: int, in_channels: int = 1, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.down = nn.ModuleList(double_conv(before, after) for before, after in pairwise([in_channels, *widths]))
        self.up = nn.ModuleList(double_conv(low + high, high) for high, low in reversed(list(pairwise(widths))))
        self.last = nn.Conv2d(widths[0], out_channels, 1)
        self.out_dim = widths[-1]

    def stages(self, x: Tensor) -> list[Tensor]:
        """The map after each level of the contracting path, the deepest last."""
        maps: list[Tensor] = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if maps else x)
            maps.append(x)
        return maps

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last map before the 1x1 convolution, (B, widths[0], H, W)."""
        *across, x = self.stages(x)
        for block in self.up:
            high = across.pop()
            x = F.interpolate(x, size=high.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, high], dim=1))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> maps (B, out_channels, H, W), no activation."""
        return self.last(self.features(x))

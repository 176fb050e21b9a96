"""The two networks of RotNet as encoders: Network-In-Network (Lin et al., 2014) and AlexNet with batch normalisation.

Both give the map after each block by ``stages(x)``; the classifier stands on their output of width ``out_dim``.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from models.networks import network
from models.networks.convnet import conv_unit


def nin_block(inputs: int, widths: tuple[int, int, int], kernel: int) -> list[nn.Module]:
    """Three [conv, BN, ReLU] units: one spatial convolution and two 1x1."""
    first, second, third = widths
    return [conv_unit(inputs, first, kernel), conv_unit(first, second, 1), conv_unit(second, third, 1)]


def draw_convolutions(module: nn.Module) -> None:
    """Convolution weights anew from N(0, 2 / (k k out))."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / fan_out))


@network("nin")
class NetworkInNetwork(nn.Module):
    """Blocks of three units, halved after the first two, and a global average at the end.

    Parameters
    ----------
    num_blocks : int
        At least 1.
    width : int
        Channels w of every unit but the last two of the first block, which have w 160/192 and w 96/192.
    in_channels : int
    pool_third : bool
        Halve the map after the third block too, where more blocks follow; RotNet on CIFAR-10 does not.

    Attributes
    ----------
    out_dim : int

    References
    ----------
    M. Lin, Q. Chen and S. Yan, "Network In Network", ICLR 2014, arXiv:1312.4400; widths as in RotNet (Gidaris
    et al., 2018).

    Examples
    --------
    >>> import torch
    >>> [tuple(m.shape[1:]) for m in NetworkInNetwork().stages(torch.zeros(1, 3, 32, 32))]
    [(96, 16, 16), (192, 8, 8), (192, 8, 8), (192, 8, 8)]
    """

    def __init__(self, num_blocks: int = 4, width: int = 192, in_channels: int = 3, pool_third: bool = False) -> None:
        super().__init__()
        narrowing = (width, max(1, round(width * 160 / 192)), max(1, round(width * 96 / 192)))
        before = in_channels
        self.blocks = nn.ModuleList()
        for number in range(1, num_blocks + 1):
            widths = narrowing if number == 1 else (width, width, width)
            layers = nin_block(before, widths, kernel=5 if number <= 2 else 3)
            if number == 1:
                layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            elif number == 2 or (number == 3 and pool_third and num_blocks > 3):
                layers.append(nn.AvgPool2d(3, stride=2, padding=1))
            self.blocks.append(nn.Sequential(*layers))
            before = widths[-1]
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out_dim = before
        draw_convolutions(self)

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


@network("alexnet")
class AlexNetEncoder(nn.Module):
    """Five convolutions and two linear layers, each with batch normalisation and ReLU, for 224x224 images.

    Parameters
    ----------
    in_channels : int

    Attributes
    ----------
    out_dim : int

    References
    ----------
    A. Krizhevsky, I. Sutskever and G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
    NeurIPS 2012; the batch-normalised form of RotNet (Gidaris et al., 2018).
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        shapes = [(64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)]
        before = in_channels
        self.blocks = nn.ModuleList()
        for number, (after, kernel, stride, padding) in enumerate(shapes, start=1):
            convolution = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
            pool = [nn.MaxPool2d(3, stride=2)] if number in (1, 2, 5) else []
            self.blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(), *pool))
            before = after
        draw_convolutions(self)
        self.pool = nn.AdaptiveAvgPool2d(6)  # 224x224 images arrive as 6x6; other sizes are brought to it
        self.linear = nn.Sequential()
        for inputs in (256 * 6 * 6, 4096):
            self.linear.extend([nn.Linear(inputs, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU()])
        self.out_dim = 4096

    def stages(self, x: Tensor) -> list[Tensor]:
        """The feature map (B, C_l, H_l, W_l) after each convolutional block."""
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> features (B, 4096)."""
        return self.linear(self.pool(self.stages(x)[-1]).flatten(1))

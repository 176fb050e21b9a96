"""A plain convolutional encoder for small images: the default of the chain."""

from __future__ import annotations

from collections.abc import Sequence

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

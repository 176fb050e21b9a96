"""Small residual encoders for 32x32-like images: ResNet (He et al., 2016a) and its pre-activation form (2016b)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import network


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, activation after the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or outputs
        self.conv1, self.bn1 = _conv(inputs, inner, stride), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _conv(inner, outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, stride, kernel=1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map in, map out."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class PreActBlock(nn.Module):
    """Normalisation and activation before each convolution; the shortcut branches after the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or outputs
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, inner, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), _conv(inner, outputs)
        self.shortcut = _conv(inputs, outputs, stride, kernel=1) if stride != 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Map in, map out."""
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


@network("resnet")
class ResNetEncoder(nn.Module):
    """Stem, stages of residual blocks (each stage after the first halves the map), global average.

    Parameters
    ----------
    depths : sequence of int
        Blocks per stage: (3, 3, 3) is ResNet-20, (2, 2, 2, 2) ResNet-18.
    widths : sequence of int
        Channels per stage.
    in_channels : int
    pre_activation : bool
        The 2016b form, with a last normalisation and activation.
    inner_widths : sequence of int, optional
        Channels between the two convolutions of each block, in order; the default is the block's own width.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 3),
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
        pre_activation: bool = False,
        inner_widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        inner: Iterator[int | None] = iter(inner_widths) if inner_widths else repeat(None)
        block = PreActBlock if pre_activation else BasicBlock
        stem: list[nn.Module] = [_conv(in_channels, widths[0])]
        if not pre_activation:
            stem += [nn.BatchNorm2d(widths[0]), nn.ReLU()]
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.ModuleList()
        before = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            layers: list[nn.Module] = []
            for index in range(depth):
                layers.append(block(before, width, 2 if stage > 0 and index == 0 else 1, next(inner)))
                before = width
            self.blocks.append(nn.Sequential(*layers))
        self.last = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU()) if pre_activation else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out_dim = before

    def stages(self, x: Tensor) -> list[Tensor]:
        """The feature map (B, C_l, H_l, W_l) after each stage; the last one normalised and activated."""
        x = self.stem(x)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        maps[-1] = self.last(maps[-1])
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> features (B, out_dim)."""
        return self.pool(self.stages(x)[-1]).flatten(1)


NAMED: dict[str, dict[str, Any]] = {
    "resnet20": {"depths": (3, 3, 3), "widths": (16, 32, 64)},
    "resnet18": {"depths": (2, 2, 2, 2), "widths": (64, 128, 256, 512)},
    "preact_resnet18": {"depths": (2, 2, 2, 2), "widths": (64, 128, 256, 512), "pre_activation": True},
}


def named_resnet(name: str, in_channels: int) -> ResNetEncoder:
    """One of the residual encoders of :data:`NAMED` for images of `in_channels` channels.

    Raises
    ------
    ValueError
        If the name is not there.
    """
    if name not in NAMED:
        raise ValueError(f"There is no encoder {name!r}. Known: {', '.join(NAMED)}; or pass a module.")
    return ResNetEncoder(in_channels=in_channels, **NAMED[name])

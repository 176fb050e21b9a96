"""A convolutional denoising autoencoder (Vincent et al., 2008) whose pooled bottleneck describes an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import network
from models.networks.convnet import conv_unit
from models.networks.encoders import pooled

SHALLOW: dict[str, tuple[int, ...] | int] = {"widths": (32, 64, 128), "kernel_size": 3}
DEEP: dict[str, tuple[int, ...] | int] = {"widths": (64, 128, 256, 512, 1024), "kernel_size": 5}


@network("autoencoder")
class DenoisingAutoencoder(nn.Module):
    """Stages of [conv, BN, ReLU, max-pool 2] down and [nearest x2, conv, BN, ReLU] up, then a sigmoid.

    Images whose sides are not divisible by ``2 ** len(widths)`` are padded inside and cropped again.

    Parameters
    ----------
    in_channels : int
    widths : sequence of int
        Channels of the stages down; the way up mirrors them.
    kernel_size : int
    noise_std : float
        Standard deviation of the noise added to the input, in training mode only.

    Attributes
    ----------
    out_dim : int
        Width of :meth:`embed`.

    References
    ----------
    Widths of G-SimCLR (Chakraborty et al., 2020): (32, 64, 128) with 3x3 kernels for 32x32 images,
    (64, 128, 256, 512, 1024) with 5x5 kernels for 224x224.

    Examples
    --------
    >>> import torch
    >>> autoencoder = DenoisingAutoencoder(1, widths=(4, 8))
    >>> autoencoder(torch.zeros(2, 1, 30, 30)).shape, autoencoder.embed(torch.zeros(2, 1, 30, 30)).shape
    (torch.Size([2, 1, 30, 30]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 64, 128),
        kernel_size: int = 3,
        noise_std: float = 0.01,
    ) -> None:
        super().__init__()
        self.noise_std, self.factor, self.out_dim = noise_std, 2 ** len(widths), widths[-1]
        self.down = nn.Sequential()
        for before, after in zip([in_channels, *widths], widths, strict=False):
            self.down.extend([conv_unit(before, after, kernel_size), nn.MaxPool2d(2)])
        self.up = nn.Sequential()
        outward = widths[::-1]
        for before, after in zip([widths[-1], *outward], outward, strict=False):
            self.up.extend([nn.Upsample(scale_factor=2), conv_unit(before, after, kernel_size)])
        self.up.extend([nn.Conv2d(widths[0], in_channels, kernel_size, padding=kernel_size // 2), nn.Sigmoid()])

    def bottleneck(self, images: Tensor) -> Tensor:
        """The deepest map (B, out_dim, h, w) of clean images."""
        height, width = images.shape[-2:]
        right, below = -width % self.factor, -height % self.factor
        padding = [right // 2, right - right // 2, below // 2, below - below // 2]
        return self.down(F.pad(images, padding) if any(padding) else images)

    def embed(self, images: Tensor) -> Tensor:
        """The bottleneck averaged over space, (B, out_dim)."""
        return pooled(self.bottleneck(images))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> their reconstructions in [0, 1]; noisy input in training mode."""
        noisy = images + self.noise_std * torch.randn_like(images) if self.training else images
        height, width = images.shape[-2:]
        top, left = (-height % self.factor) // 2, (-width % self.factor) // 2
        return self.up(self.bottleneck(noisy))[..., top : top + height, left : left + width]

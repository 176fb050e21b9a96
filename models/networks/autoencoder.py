"""Autoencoders: a convolutional denoising one (Vincent et al., 2008), and small ones with a short code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

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


@network("conv-autoencoder")
class ConvAutoencoder(nn.Module):
    """Square images to a short code through four convolutions and two linear layers, and back.

    Parameters
    ----------
    shape : (C, H, W)
        Of one image; H = W, divisible by 4.
    latent_dim : int
        Width of the code, which passes no activation.

    Attributes
    ----------
    encoder, decoder : nn.Module
        Images (B, C, H, W) -> codes (B, latent_dim) -> images in (0, 1).

    Raises
    ------
    ValueError
        For images that are not square with sides divisible by 4.

    References
    ----------
    The networks of Peng et al., "XAI Beyond Classification: Interpretable Neural Clustering", JMLR 23, 2022.

    Examples
    --------
    >>> import torch
    >>> autoencoder = ConvAutoencoder((1, 8, 8), latent_dim=3)
    >>> code = autoencoder.encoder(torch.zeros(2, 1, 8, 8))
    >>> code.shape, autoencoder.decoder(code).shape
    (torch.Size([2, 3]), torch.Size([2, 1, 8, 8]))
    """

    def __init__(self, shape: Sequence[int], latent_dim: int = 10) -> None:
        super().__init__()
        channels, height, width = shape
        if height != width or height % 4:
            raise ValueError(
                f"Images must be square with sides divisible by 4, got {height}x{width}. Pad or crop them."
            )
        side = height // 4
        self.encoder = nn.Sequential(
            conv_unit(channels, 16),
            conv_unit(16, 32, stride=2),
            conv_unit(32, 32),
            conv_unit(32, 16, stride=2),
            nn.Flatten(),
            nn.Linear(16 * side**2, 256),
            nn.ReLU(),
            nn.Linear(256, latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 256),
            nn.ReLU(),
            nn.Linear(256, 16 * side**2),
            nn.Unflatten(1, (16, side, side)),
            *_widening_unit(16, 32, stride=2),
            *_widening_unit(32, 32),
            *_widening_unit(32, 16, stride=2),
            nn.ConvTranspose2d(16, channels, 3, padding=1),
            nn.Sigmoid(),
        )


def _widening_unit(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """Transposed convolution that multiplies the sides by `stride`, batch normalisation, ReLU."""
    layer = nn.ConvTranspose2d(inputs, outputs, 3, stride, padding=1, output_padding=stride - 1, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


@network("mlp-autoencoder")
class MLPAutoencoder(nn.Module):
    """Rows or flattened images to a short code through linear layers with ReLU, and back.

    Parameters
    ----------
    shape : sequence of int
        Of one sample.
    latent_dim : int
        Width of the code, which passes no activation.
    hidden : sequence of int
        Widths of the encoder's hidden layers; the decoder mirrors them.
    dropout : float
        Before every layer of the encoder.

    Attributes
    ----------
    encoder, decoder : nn.Module
        Samples (B, ...) -> codes (B, latent_dim) -> samples in (0, 1).

    Examples
    --------
    >>> import torch
    >>> autoencoder = MLPAutoencoder((6,), latent_dim=2, hidden=(8, 4))
    >>> code = autoencoder.encoder(torch.zeros(3, 6))
    >>> code.shape, autoencoder.decoder(code).shape
    (torch.Size([3, 2]), torch.Size([3, 6]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int = 10,
        hidden: Sequence[int] = (500, 500, 2000),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [math.prod(shape), *hidden, latent_dim]
        inward = [layer for pair in pairwise(widths) for layer in (nn.Dropout(dropout), nn.Linear(*pair), nn.ReLU())]
        outward = [layer for pair in pairwise(widths[::-1]) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.encoder = nn.Sequential(nn.Flatten(), *inward[:-1])
        self.decoder = nn.Sequential(*outward[:-1], nn.Sigmoid(), nn.Unflatten(1, tuple(shape)))


@network("paired-autoencoder")
class PairedAutoencoder(nn.Module):
    """An encoder and a decoder of the user's own, side by side.

    Parameters
    ----------
    encoder, decoder : nn.Module
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

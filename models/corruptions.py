"""Common corruptions of images at five severities: what a network meets outside the laboratory.

D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019, arXiv:1903.12261: five of its fifteen kinds, with the constants of ImageNet-C; the blur, which is told in pixels,
grows with the image, with the constants of CIFAR-10-C at 32 pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor


def gaussian_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Independent noise on every pixel."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return images + deviation * torch.randn(images.shape, generator=generator)


def gaussian_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Blur by a Gaussian that is as wide, relative to the image, as on CIFAR-10-C."""
    deviation = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] * images.shape[-1] / 32
    side = 2 * max(1, round(3 * deviation)) + 1
    side = min(side, 2 * ((min(images.shape[-2:]) - 1) // 2) + 1)
    return gaussian_blur2d(images, (side, side), (deviation, deviation))


def contrast(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Every pixel moved towards the mean of its image."""
    mean = images.mean(dim=(-2, -1), keepdim=True)
    return (images - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean


def brightness(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Every pixel brighter."""
    return images + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]


def pixelate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Shrunk and enlarged again, without smoothing."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    size = [max(1, round(side * share)) for side in images.shape[-2:]]
    return F.interpolate(F.interpolate(images, size, mode="area"), images.shape[-2:], mode="nearest-exact")


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    function.__name__: function for function in (gaussian_noise, gaussian_blur, contrast, brightness, pixelate)
}


def corrupted(images: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """A corrupted copy of images.

    Parameters
    ----------
    images : Tensor, (n, C, H, W)
        In [0, 1].
    kind : {"gaussian_noise", "gaussian_blur", "contrast", "brightness", "pixelate"}
    severity : int
        1 to 5.
    seed : int
        Of the noise.

    Returns
    -------
    Tensor, (n, C, H, W)
        In [0, 1].

    Raises
    ------
    ValueError
        For another kind or severity, or images of another rank.

    Examples
    --------
    >>> round(float(corrupted(torch.full((1, 1, 8, 8), 0.5), "brightness", 3).mean()), 4)
    0.8
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"There is no corruption {kind!r}. Known: {', '.join(CORRUPTIONS)}.")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}.")
    if images.ndim != 4:
        raise ValueError(f"images must be shaped (n, C, H, W), got {tuple(images.shape)}.")
    return CORRUPTIONS[kind](images, severity, torch.Generator().manual_seed(seed)).clamp(0, 1)

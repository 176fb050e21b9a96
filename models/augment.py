"""Random views of a batch of images: tensor in, tensor of the same shape out, drawn anew for every image.

Draws come from torch's global generator, so a method that runs in ``isolated_seed`` is reproducible.
Whether a flip (or a grey view) leaves the meaning of an image alone depends on the data: digits have no mirror.
"""

from __future__ import annotations

from collections.abc import Callable

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from torch import Tensor, nn

View = Callable[[Tensor], Tensor]


class PadCrop(nn.Module):
    """Shift by up to `padding` pixels each way with zeros coming in (pad, then random crop), per image."""

    def __init__(self, padding: int = 4) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        n, channels, height, width = images.shape
        if self.padding == 0:
            return images
        padded = F.pad(images, [self.padding] * 4)
        top, left = torch.randint(0, 2 * self.padding + 1, (2, n, 1), device=images.device)
        rows = (top + torch.arange(height, device=images.device))[:, None, :, None]
        columns = (left + torch.arange(width, device=images.device))[:, None, None, :]
        sample = torch.arange(n, device=images.device)[:, None, None, None]
        channel = torch.arange(channels, device=images.device)[None, :, None, None]
        return padded[sample, channel, rows, columns]


class ResizedCrop(nn.Module):
    """A random window of each image enlarged back to its size, in one bilinear resampling.

    Parameters
    ----------
    scale : pair of float
        Share of the area the window covers.
    ratio : pair of float
        Width over height.
    """

    def __init__(self, scale: tuple[float, float] = (0.2, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> None:
        super().__init__()
        self.scale, self.ratio = scale, ratio

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        n = len(images)
        draw = torch.rand(4, n, device=images.device)
        area = self.scale[0] + draw[0] * (self.scale[1] - self.scale[0])
        ratio = torch.exp(
            torch.log(torch.tensor(self.ratio[0]))
            + draw[1] * (torch.log(torch.tensor(self.ratio[1])) - torch.log(torch.tensor(self.ratio[0])))
        )
        width = torch.sqrt(area * ratio).clamp(max=1.0)
        height = torch.sqrt(area / ratio).clamp(max=1.0)
        x = (2 * draw[2] - 1) * (1 - width)
        y = (2 * draw[3] - 1) * (1 - height)
        zero = torch.zeros_like(x)
        theta = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


class Clipped(nn.Module):
    """Keep pixels in [0, 1] after `inner`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.inner(images).clamp(0, 1)


class BrightnessContrast(nn.Module):
    """Brightness and contrast jitter for images without colour, with probability `p` per image."""

    def __init__(self, brightness: float = 0.4, contrast: float = 0.4, p: float = 0.8) -> None:
        super().__init__()
        self.brightness, self.contrast, self.p = brightness, contrast, p

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), clipped to [0, 1]."""
        shape = (len(images), 1, 1, 1)
        gain = 1 + self.contrast * (2 * torch.rand(shape, device=images.device) - 1)
        shift = 1 + self.brightness * (2 * torch.rand(shape, device=images.device) - 1)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        changed = ((images * shift - mean) * gain + mean).clamp(0, 1)
        return torch.where(torch.rand(shape, device=images.device) < self.p, changed, images)


def colour_jitter(
    channels: int,
    strengths: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
    p: float = 0.8,
    grey: float = 0.2,
) -> nn.Module:
    """SimCLR's colour distortion; for one channel only brightness and contrast remain.

    Parameters
    ----------
    channels : int
    strengths : tuple of four floats
        Brightness, contrast, saturation, hue.
    p, grey : float
        Probability of the jitter and of turning grey.
    """
    if channels != 3:
        return BrightnessContrast(strengths[0], strengths[1], p)
    jitter = K.ColorJitter(*strengths, p=p, same_on_batch=False)
    return Clipped(nn.Sequential(jitter, K.RandomGrayscale(p=grey)))


def weak(padding: int = 4, flip: bool = True) -> nn.Module:
    """Pad-and-crop, and a horizontal flip where the data allow it."""
    return nn.Sequential(PadCrop(padding), *_flip(flip))


def strong(
    channels: int = 1, flip: bool = True, magnitude: int = 6, scale: tuple[float, float] = (0.2, 1.0)
) -> nn.Module:
    """Resized crop, flip, and one random distortion of strength `magnitude` of 30 (a light RandAugment).

    Cubuk et al. (2020) draw each of N operations from a list at one magnitude; here N = 1.
    """
    m = magnitude / 30
    distortions = [
        K.RandomAffine(degrees=30 * m, p=1.0),
        K.RandomAffine(degrees=0.0, shear=(-17 * m, 17 * m), p=1.0),
        K.RandomAffine(degrees=0.0, translate=(0.45 * m, 0.45 * m), p=1.0),
        BrightnessContrast(0.9 * m, 0.9 * m, p=1.0),
        K.RandomSharpness(sharpness=(0.0, 1 + m), p=1.0),
    ]
    return nn.Sequential(ResizedCrop(scale), *_flip(flip), OneOf(distortions))


def contrastive(
    channels: int = 1,
    flip: bool = True,
    scale: tuple[float, float] = (0.2, 1.0),
    strengths: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
) -> nn.Module:
    """SimCLR's view: resized crop, flip, colour distortion (Chen et al., 2020, appendix A)."""
    return nn.Sequential(ResizedCrop(scale), *_flip(flip), colour_jitter(channels, strengths))


def affine(degrees: float = 20.0, scale: float = 0.2, shift: float = 0.075) -> nn.Module:
    """Rotation, scale and shift drawn per image up to these bounds, in one resampling; what enters is black.

    Parameters
    ----------
    degrees : float
    scale : float
        0.2 means 0.8 to 1.2 times.
    shift : float
        Share of the side.
    """
    return Clipped(K.RandomAffine(degrees, (shift, shift), (1 - scale, 1 + scale), p=1.0))


class FeatureSwap(nn.Module):
    """Views of table rows: a random `share` of each row's features is taken from other rows of the batch.

    The corruption of SCARF (Bahri et al., 2022): every value stays one that the feature really takes.
    """

    def __init__(self, share: float = 0.3) -> None:
        super().__init__()
        self.share = share

    def forward(self, rows: Tensor) -> Tensor:
        """(B, d) -> (B, d)."""
        donors = torch.argsort(torch.rand(rows.shape, device=rows.device), dim=0)
        return torch.where(torch.rand(rows.shape, device=rows.device) < self.share, rows.gather(0, donors), rows)


class OneOf(nn.Module):
    """Give each image one of the distortions, drawn uniformly."""

    def __init__(self, distortions: list[nn.Module]) -> None:
        super().__init__()
        self.distortions = nn.ModuleList(distortions)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), clipped to [0, 1]."""
        which = torch.randint(len(self.distortions), (len(images),), device=images.device)
        result = images.clone()
        for index, distortion in enumerate(self.distortions):
            chosen = which == index
            if chosen.any():
                result[chosen] = distortion(images[chosen]).clamp(0, 1)
        return result


def _flip(flip: bool) -> list[nn.Module]:
    return [K.RandomHorizontalFlip(p=0.5)] if flip else []

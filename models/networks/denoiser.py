"""Denoisers for diffusion models: small networks, and round any of them the preconditioning and sampler of EDM.

A raw network maps (scaled noisy input, noise condition (B,), labels (B,) or None) to an output shaped like its input.
Labels lie in 0..n_classes; the last, n_classes itself, stands for "no label".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import network

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy rows (B, ...), noise levels (B,)) -> clean rows."""


def preconditioning(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in and c_noise of Karras et al. (2022), table 1, for each noise level `sigma`."""
    total = (sigma**2 + sigma_data**2).sqrt()
    return sigma_data**2 / total**2, sigma * sigma_data / total, 1 / total, sigma.log() / 4


def over_rows(values: Tensor, like: Tensor) -> Tensor:
    """One value a row, (B,), shaped to multiply rows (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def noise_grid(highest: Tensor, lowest: Tensor, steps: int, rho: float) -> Tensor:
    """`steps` levels from `highest` to `lowest`, evenly spaced in ``sigma^(1/rho)`` (Karras et al., equation 5)."""
    part = torch.linspace(0, 1, steps, dtype=highest.dtype, device=highest.device)
    part = part.reshape(-1, *[1] * highest.ndim)
    grid = (highest ** (1 / rho) + part * (lowest ** (1 / rho) - highest ** (1 / rho))) ** rho
    grid[0], grid[-1] = highest, lowest
    return grid


def follow(denoise: Denoise, x: Tensor, levels: Sequence[float], heun: bool) -> Tensor:
    """From noise to a sample along ``dx/dsigma = (x - D(x, sigma)) / sigma``; the last of `levels` is 0.

    The step to 0 is D at the level before it.
    """
    for t, below in pairwise(levels):
        slope = (x - denoise(x, x.new_full((len(x),), t))) / t
        ahead = x + (below - t) * slope
        if heun and below > 0:
            other = (ahead - denoise(ahead, x.new_full((len(x),), below))) / below
            ahead = x + (below - t) * (slope + other) / 2
        x = ahead
    return x


@network("edm-denoiser")
class PreconditionedDenoiser(nn.Module):
    """``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)``: an estimate of the clean row from a noisy one.

    Parameters
    ----------
    inner : nn.Module
        F: (input, condition, labels) -> output.
    sigma_data : float
        Standard deviation of clean data, in the units of x.

    References
    ----------
    T. Karras, M. Aittala, T. Aila and S. Laine, "Elucidating the Design Space of Diffusion-Based Generative Models",
    NeurIPS 2022, arXiv:2206.00364, equation 7 and table 1.
    """

    def __init__(self, inner: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.inner, self.sigma_data = inner, sigma_data

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Noisy rows (B, ...) and their noise levels (B,), all positive -> clean rows (B, ...)."""
        skip, out, scale, condition = preconditioning(sigma, self.sigma_data)
        raw = self.inner(over_rows(scale, x) * x, condition, labels)
        if raw.shape != x.shape:
            raise ValueError(
                f"The denoiser must give rows shaped {tuple(x.shape[1:])} as its input, got {tuple(raw.shape[1:])}."
            )
        return over_rows(skip, x) * x + over_rows(out, x) * raw


class _Condition(nn.Module):
    """Noise condition and label -> one vector a row, by random Fourier features and an embedding."""

    frequencies: Tensor

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width // 2) * 4)
        self.label = nn.Embedding(n_classes + 1, width) if n_classes else None
        self.layers = nn.Sequential(nn.Linear(width // 2 * 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, condition: Tensor, labels: Tensor | None) -> Tensor:
        angles = condition[:, None] * self.frequencies
        found = self.layers(torch.cat([angles.cos(), angles.sin()], dim=1))
        if self.label is not None and labels is not None:
            found = found + self.label(labels)
        return found


class _RowBlock(nn.Module):
    """x + W2 silu(W1 norm(x) + condition)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.condition = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(self.norm(x)) + self.condition(condition)))


@network("mlp-denoiser")
class MLPDenoiser(nn.Module):
    """Residual network for rows of a table or embeddings.

    Parameters
    ----------
    in_features : int
    width : int
    depth : int
        Residual blocks.
    n_classes : int
        0 for no labels.

    Examples
    --------
    >>> import torch
    >>> MLPDenoiser(5, width=8)(torch.zeros(3, 5), torch.zeros(3)).shape
    torch.Size([3, 5])
    """

    def __init__(self, in_features: int, width: int = 256, depth: int = 3, n_classes: int = 0) -> None:
        super().__init__()
        self.condition = _Condition(width, n_classes)
        self.first = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(_RowBlock(width) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, in_features))

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        """Rows (B, d) -> rows (B, d)."""
        given = self.condition(condition, labels)
        x = self.first(x)
        for block in self.blocks:
            x = block(x, given)
        return self.last(x)


class _MapBlock(nn.Module):
    """Two normalised 3x3 convolutions, the condition added between them, and a way round."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.before, self.first = nn.GroupNorm(1, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.between, self.second = nn.GroupNorm(1, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.condition = nn.Linear(condition, outputs)
        self.around = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        found = self.first(F.silu(self.before(x))) + self.condition(condition)[:, :, None, None]
        return self.around(x) + self.second(F.silu(self.between(found)))


@network("unet-denoiser")
class UNetDenoiser(nn.Module):
    """Small U-Net for images of any size: a block a level on the way down and up, two where the map is smallest.

    Parameters
    ----------
    in_channels : int
    widths : sequence of int
        Channels at each level; the map is halved (rounding up) between levels.
    n_classes : int
        0 for no labels.

    Examples
    --------
    >>> import torch
    >>> UNetDenoiser(1, widths=(4, 8))(torch.zeros(3, 1, 9, 7), torch.zeros(3)).shape
    torch.Size([3, 1, 9, 7])
    """

    def __init__(self, in_channels: int = 1, widths: Sequence[int] = (32, 64, 64), n_classes: int = 0) -> None:
        super().__init__()
        width = 2 * widths[-1]
        self.condition = _Condition(width, n_classes)
        self.first = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_MapBlock(a, b, width) for a, b in pairwise([widths[0], *widths]))
        self.middle = _MapBlock(widths[-1], widths[-1], width)
        self.up = nn.ModuleList(_MapBlock(low + high, high, width) for high, low in reversed(list(pairwise(widths))))
        self.last = nn.Sequential(
            nn.GroupNorm(1, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], in_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) -> images (B, C, H, W)."""
        given = self.condition(condition, labels)
        across: list[Tensor] = []
        x = self.first(x)
        for block in self.down:
            x = block(F.avg_pool2d(x, 2, ceil_mode=True) if across else x, given)
            across.append(x)
        x = self.middle(across.pop(), given)
        for block in self.up:
            high = across.pop()
            x = block(torch.cat([F.interpolate(x, size=high.shape[-2:], mode="nearest"), high], dim=1), given)
        return self.last(x)

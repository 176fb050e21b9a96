"""PointNet++ for clouds in the plane: an answer for every point, from what surrounds it at growing scales.

C. R. Qi, L. Yi, H. Su and L. J. Guibas, "PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric
Space", NeurIPS 2017, arXiv:1706.02413.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.networks import network
from models.networks.mlp import MLPEncoder

WIDTHS = {
    "small": {"down": ([32, 64], [64, 128], [128, 256]), "up": ([128], [128], [128, 64])},
    "paper": {"down": ([64, 64, 128], [128, 128, 256], [256, 512, 1024]), "up": ([256, 256], [256, 128], [128] * 3)},
}
"""Widths of the shared layers on the way down to one vector for the cloud, and up again to the points."""
FEWEST_CENTRES = (8, 4)


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances (B, n, m), from the differences: those of near points stay exact."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def farthest_points(points: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """Indices (B, count) of points that cover each cloud, each as far as possible from those before it.

    Parameters
    ----------
    points : Tensor, (B, n, 2)
        The first one taken is that nearest to the origin, so that the answer does not depend on the order.
    count : int
        At most n.
    valid : Tensor of bool, (B, n), optional
        Points that may be taken; all by default. Where they run out, one of them is repeated.
    """
    usable = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device) if valid is None else valid
    reach = torch.where(usable, math.inf, -1.0)
    chosen = torch.where(usable, points.square().sum(-1), math.inf).argmin(dim=1)
    rows = torch.arange(len(points), device=points.device)
    found = [chosen]
    for _ in range(count - 1):
        reach = torch.minimum(reach, (points - points[rows, chosen][:, None]).square().sum(-1))
        chosen = reach.argmax(dim=1)
        found.append(chosen)
    return torch.stack(found, dim=1)


def ball_neighbours(points: Tensor, centres: Tensor, radius: float, count: int, valid: Tensor | None = None) -> Tensor:
    """Indices (B, m, count) of the nearest points within `radius`; the nearest of all is repeated where they run out.

    Parameters
    ----------
    points, centres : Tensor, (B, n, 2) and (B, m, 2)
    radius : float
    count : int
    valid : Tensor of bool, (B, n), optional
    """
    away = distances(centres, points)
    if valid is not None:
        away = away.masked_fill(~valid[:, None], math.inf)
    near = away.topk(min(count, points.shape[1]), dim=2, largest=False)
    return torch.where(near.values <= radius, near.indices, near.indices[:, :, :1])


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, ...) of `values` (B, n, c), as (B, ..., c)."""
    batch = torch.arange(len(values), device=values.device).view(-1, *[1] * (index.ndim - 1))
    return values[batch, index]


def interpolate(fine: Tensor, coarse: Tensor, values: Tensor) -> Tensor:
    """Values (B, m, c) of `coarse` points at `fine` ones, from the three nearest by inverse squared distance."""
    near = distances(fine, coarse).topk(min(3, coarse.shape[1]), dim=2, largest=False)
    weights = 1 / (near.values.square() + 1e-8)
    weights = weights / weights.sum(dim=2, keepdim=True)
    return (gather_points(values, near.indices) * weights.unsqueeze(-1)).sum(dim=2)


def _shared(layers: nn.Module, values: Tensor) -> Tensor:
    """The same layers on every vector of (..., c)."""
    return layers(values.reshape(-1, values.shape[-1])).view(*values.shape[:-1], -1)


@network("pointnet2-segmenter")
class PointNet2Segmenter(nn.Module):
    """Logits for every point of a cloud.

    Two set abstractions look at balls round a share of the points, a third at the whole cloud; three feature
    propagations carry what they saw back to the points.

    Parameters
    ----------
    n_outputs : int
        Logits a point.
    widths : {"small", "paper"}
    radius : pair of float
        Of the balls, in a cloud that fills [-1, 1].
    nsample : pair of int
        Most points of a ball that are looked at, the nearest first.
    centres : pair of float
        Balls of each abstraction, as a share of the points.

    Examples
    --------
    >>> cloud = torch.rand(2, 50, 2) * 2 - 1
    >>> PointNet2Segmenter(5).eval()(cloud).shape
    torch.Size([2, 50, 5])
    """

    def __init__(
        self,
        n_outputs: int,
        widths: str = "small",
        radius: Sequence[float] = (0.2, 0.4),
        nsample: Sequence[int] = (16, 32),
        centres: Sequence[float] = (1 / 4, 1 / 16),
    ) -> None:
        super().__init__()
        down, up = WIDTHS[widths]["down"], WIDTHS[widths]["up"]
        self.radius, self.nsample, self.centres = tuple(radius), tuple(nsample), tuple(centres)
        near, far, whole = (widths[-1] for widths in down)
        self.down = nn.ModuleList([MLPEncoder(4, down[0]), MLPEncoder(4 + near, down[1]), MLPEncoder(2 + far, down[2])])
        self.up = nn.ModuleList(
            [MLPEncoder(whole + far, up[0]), MLPEncoder(up[0][-1] + near, up[1]), MLPEncoder(up[1][-1] + 2, up[2])]
        )
        self.head = nn.Linear(up[2][-1], n_outputs)

    def abstract(
        self, level: int, points: Tensor, features: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Centres (B, m, 2) and what their balls hold (B, m, c): the largest of [x_j - c_i, c_i, feature_j] layers."""
        n = points.shape[1]
        m = min(n, max(math.ceil(n * self.centres[level]), FEWEST_CENTRES[level]))
        centres = gather_points(points, farthest_points(points, m, valid))
        near = ball_neighbours(points, centres, self.radius[level], self.nsample[level], valid)
        origin = centres[:, :, None].expand(-1, -1, near.shape[2], -1)
        parts = [gather_points(points, near) - origin, origin]
        if features is not None:
            parts.append(gather_points(features, near))
        return centres, _shared(self.down[level], torch.cat(parts, dim=-1)).amax(dim=2)

    def forward(self, points: Tensor, valid: Tensor | None = None) -> Tensor:
        """Clouds (B, n, 2) in [-1, 1] -> logits (B, n, n_outputs); `valid` (B, n) is False where points are padding."""
        first, f1 = self.abstract(0, points, None, valid)
        second, f2 = self.abstract(1, first, f1, None)
        whole = _shared(self.down[2], torch.cat([second, f2], dim=-1)).amax(dim=1, keepdim=True)
        f2 = _shared(self.up[0], torch.cat([whole.expand(-1, second.shape[1], -1), f2], dim=-1))
        f1 = _shared(self.up[1], torch.cat([interpolate(first, second, f2), f1], dim=-1))
        f0 = _shared(self.up[2], torch.cat([interpolate(points, first, f1), points], dim=-1))
        return self.head(f0)

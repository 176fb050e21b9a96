"""A first encoder without labels: SimCLR on random batches, for methods that start from features.

T. Chen, S. Kornblith, M. Norouzi and G. Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, arXiv:2002.05709.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.augment import View
from models.losses import nt_xent
from models.networks.encoders import Pooled, feature_width
from models.networks.heads import ProjectionHead
from models.training import Row, Trainer, adam, cosine


class ContrastiveTrainer(Trainer):
    """NT-Xent on two views of each row; encoder and projection head pass both views together.

    Parameters
    ----------
    network : nn.Module
        Rows -> projections.
    views : callable
        Batch -> batch, drawn anew each time.
    temperature : float
    """

    def __init__(self, network: nn.Module, views: View, temperature: float, **parameters: Any) -> None:
        super().__init__(network, **parameters)
        self.views, self.temperature = views, temperature

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Two independent views."""
        (rows,) = super().fetch(index)
        return self.views(rows), self.views(rows)

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Chen et al. (2020), eq. 1."""
        first, second = self.network(torch.cat(batch)).split(len(index))
        return nt_xent(first, second, self.temperature), {}


def pretrain_contrastive(
    encoder: nn.Module,
    rows: Tensor,
    views: View,
    *,
    epochs: int = 20,
    batch_size: int = 256,
    lr: float = 1e-3,
    temperature: float = 0.5,
    projection_dim: int | None = 64,
    label: str = "contrastive",
    seed: int = 0,
    device: str = "cpu",
) -> list[Row]:
    """Train `encoder` in place with Adam and a cosine schedule; returns the history.

    Parameters
    ----------
    encoder : nn.Module
        Rows (B, ...) -> (B, d), or maps that are averaged over space.
    rows : Tensor, (n, ...)
    views : callable
        Batch -> batch of the same shape, for instance of :mod:`models.augment`.
    projection_dim : int or None
        Width of what the loss compares, made of the features by two layers; None compares the features themselves.

    Notes
    -----
    Draws come from torch's global generator: call it inside :func:`models.base.isolated_seed`.
    """
    width = feature_width(encoder, rows[:1])
    head = nn.Identity() if projection_dim is None else ProjectionHead(width, (width, projection_dim))
    trainer = ContrastiveTrainer(
        nn.Sequential(encoder, Pooled(), head),
        views,
        temperature,
        epochs=epochs,
        batch_size=min(batch_size, len(rows)),
        optimizer=adam(lr),
        schedule=cosine,
        label=label,
        seed=seed,
        device=device,
    )
    trainer.fit(rows)
    encoder.cpu().eval()
    return trainer.history

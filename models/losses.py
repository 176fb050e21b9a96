"""Losses that several methods share. All take tensors with gradients and return a scalar unless said otherwise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy against soft targets, ``-sum_c t_c log softmax_c``.

    Parameters
    ----------
    logits, targets : Tensor, (B, C)
    reduction : {"mean", "none"}
    """
    losses = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
    return losses.mean() if reduction == "mean" else losses


def kl_with_temperature(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Distillation loss ``T^2 KL(teacher || student)`` at temperature T (Hinton et al., 2015), batch mean."""
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def entropy(probabilities: Tensor, normalised: bool = False, eps: float = 1e-5) -> Tensor:
    """Shannon entropy of each row, (B, C) -> (B,); `normalised` divides by ln C so that it lies in [0, 1]."""
    values = -(probabilities * torch.log(probabilities + eps)).sum(dim=1)
    return values / math.log(probabilities.shape[1]) if normalised else values


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """Normalised temperature-scaled cross-entropy over two views (SimCLR, Chen et al., 2020, eq. 1).

    Parameters
    ----------
    first, second : Tensor, (B, d)
        Projections of the two views; row i of both shows the same sample. Normalised here.
    temperature : float

    Notes
    -----
    The denominator holds the positive and the 2B - 2 negatives, never the anchor itself.
    """
    n = len(first)
    z = F.normalize(torch.cat([first, second]).float(), dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(logits, partner)


def target_contrastive(first: Tensor, second: Tensor, targets: Tensor, temperature: float | Tensor) -> Tensor:
    """Cross-view contrast against a given similarity matrix, ``mean_i CE(S_i, M_i) / sum_j M_ij``.

    Parameters
    ----------
    first, second : Tensor, (B, d)
        Projections, normalised here; S = first second^T / temperature.
    targets : Tensor, (B, B)
        Non-negative weights M. The identity gives InfoNCE, a same-class indicator supervised contrast.
    """
    similarity = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T / temperature
    losses = -(targets * F.log_softmax(similarity, dim=1)).sum(dim=1)
    return (losses / targets.sum(dim=1).clamp_min(1e-12)).mean()


def supervised_contrastive(first: Tensor, second: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrast over two views (Khosla et al., 2020, eq. 2, "out" form), all 2B anchors.

    Parameters
    ----------
    first, second : Tensor, (B, d)
    labels : Tensor, (B,)
        Rows labelled -1 count as a class of their own.
    """
    n = len(first)
    own = torch.where(labels < 0, -1 - torch.arange(n, device=labels.device), labels).repeat(2)
    z = F.normalize(torch.cat([first, second]).float(), dim=1)
    itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    log_p = F.log_softmax((z @ z.T / temperature).masked_fill(itself, -math.inf), dim=1).masked_fill(itself, 0.0)
    positive = (own[:, None] == own[None, :]) & ~itself
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


def coral(source: Tensor, target: Tensor) -> Tensor:
    """CORAL (Sun & Saenko, 2016, eq. 1): squared distance of the two feature covariances over 4 d^2."""
    d = source.shape[1]
    return (torch.cov(source.T) - torch.cov(target.T)).pow(2).sum() / (4 * d * d)

"""A small variational autoencoder for vectors: how well it redraws a row says how usual that row is.

Kingma, D. P., Welling, M. "Auto-Encoding Variational Bayes". ICLR 2014, arXiv 1312.6114.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models.networks import network
from models.training import Row, Trainer, adam


@network("vae")
class VAE(nn.Module):
    """Fully connected encoder and decoder round a Gaussian code.

    Parameters
    ----------
    in_dim : int
        Width of the rows.
    latent_dim : int
        Width of the code z.
    hidden : sequence of int
        Widths of the encoder's hidden layers; the decoder mirrors them.
    sigmoid : bool
        End the decoder with a sigmoid, for rows that lie in [0, 1].

    Examples
    --------
    >>> import torch
    >>> reconstruction, mean, log_variance = VAE(6, latent_dim=2)(torch.zeros(4, 6))
    >>> reconstruction.shape, mean.shape
    (torch.Size([4, 6]), torch.Size([4, 2]))
    """

    def __init__(
        self, in_dim: int, latent_dim: int = 8, hidden: Sequence[int] = (128, 32), sigmoid: bool = False
    ) -> None:
        super().__init__()
        widths = [in_dim, *hidden]
        self.encoder = nn.Sequential(*_layers(widths))
        self.mean = nn.Linear(widths[-1], latent_dim)
        self.log_variance = nn.Linear(widths[-1], latent_dim)
        decoder = [*_layers([latent_dim, *reversed(hidden)]), nn.Linear(hidden[0] if hidden else latent_dim, in_dim)]
        self.decoder = nn.Sequential(*decoder, *([nn.Sigmoid()] if sigmoid else []))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, latent_dim) of the code of rows (B, in_dim)."""
        inner = self.encoder(x)
        return self.mean(inner), self.log_variance(inner)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (B, in_dim) -> (reconstruction, mean, log-variance); the code is drawn anew in every mode."""
        mean, log_variance = self.encode(x)
        z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    pairs = pairwise(widths)
    return [layer for before, after in pairs for layer in (nn.Linear(before, after), nn.ReLU())]


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), summed over the code and averaged over the batch."""
    return -0.5 * (log_variance + 1 - mean**2 - log_variance.exp()).sum(dim=1).mean()


def squared_error(reconstruction: Tensor, x: Tensor) -> Tensor:
    """Squared distance of each row (B, d) to its reconstruction, (B,)."""
    return ((reconstruction - x) ** 2).sum(dim=1)


class VAETrainer(Trainer):
    """Mean squared distance plus `kl_weight` times the KL term.

    Parameters
    ----------
    kl_weight : float
    """

    def __init__(self, network: nn.Module, *, kl_weight: float = 0.025, **parameters: Any) -> None:
        super().__init__(network, **parameters)
        self.kl_weight = kl_weight

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """The negative evidence bound of the batch and its two parts."""
        (x,) = batch
        reconstruction, mean, log_variance = self.network(x)
        error, kl = squared_error(reconstruction, x).mean(), kl_to_standard_normal(mean, log_variance)
        return error + self.kl_weight * kl, {"reconstruction": float(error.detach()), "kl": float(kl.detach())}


def fit_vae(
    rows: Tensor,
    *,
    latent_dim: int = 8,
    hidden: Sequence[int] = (128, 32),
    sigmoid: bool = False,
    kl_weight: float = 0.025,
    epochs: int = 10,
    lr: float = 1e-3,
    batch_size: int = 32,
    label: str = "vae",
    seed: int = 0,
    device: str = "cpu",
) -> VAE:
    """A :class:`VAE` trained on `rows` (n, d) with Adam, frozen and in eval mode.

    Weights and noise come from torch's global generator, so call it in ``isolated_seed``; `seed` is that of the
    shuffling.
    """
    vae = VAE(rows.shape[1], latent_dim, tuple(hidden), sigmoid)
    VAETrainer(
        vae,
        kl_weight=kl_weight,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=adam(lr),
        label=label,
        seed=seed,
        device=device,
    ).fit(rows)
    return vae.requires_grad_(False)

"""Fully connected encoder for tables and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.networks import network


@network("mlp")
class MLPEncoder(nn.Module):
    """Linear -> BN -> ReLU for each hidden width; images are flattened first.

    Parameters
    ----------
    in_features : int
    widths : sequence of int
        Hidden widths; the last is ``out_dim``.
    batch_norm : bool
    standardise : bool
        Bring every column to mean 0 and variance 1 first, by the statistics of what the network is trained on: columns
        of a table have units of their own.
    """

    def __init__(
        self, in_features: int, widths: Sequence[int] = (256, 64), batch_norm: bool = True, standardise: bool = False
    ) -> None:
        super().__init__()
        # The mean over all batches (momentum=None): moved from 0 and 1, columns of small numbers would take hundreds.
        scale = nn.BatchNorm1d(in_features, eps=1e-8, momentum=None, affine=False)
        self.scale = scale if standardise else nn.Identity()
        self.blocks = nn.ModuleList()
        for before, after in zip([in_features, *widths], widths, strict=False):
            norm = [nn.BatchNorm1d(after)] if batch_norm else []
            self.blocks.append(nn.Sequential(nn.Linear(before, after), *norm, nn.ReLU()))
        self.out_dim = widths[-1]

    def stages(self, x: Tensor) -> list[Tensor]:
        """The activations (B, width) after each block."""
        x = self.scale(x.flatten(1))
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, ...) -> features (B, out_dim)."""
        return self.stages(x)[-1]

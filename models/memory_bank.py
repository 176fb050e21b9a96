"""A bank of the latest embedding and prediction of every training row, and the neighbours found in it.

Neighbourhood methods compare each batch with all rows without a second pass over the network: the bank keeps
what the network last said of a row, and the rows of a batch are overwritten once the batch has been seen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class MemoryBank:
    """L2-normalised embeddings and predictions of N rows, in float32 and without gradients.

    Parameters
    ----------
    embeddings : Tensor, (N, D)
        Normalised here; of any scale.
    predictions : Tensor, (N, C)
        Class probabilities (or any per-row vectors to average over neighbours).

    Attributes
    ----------
    embeddings : Tensor, (N, D)
    predictions : Tensor, (N, C)

    Raises
    ------
    ValueError
        If the two are not matrices with the same number of rows.

    Notes
    -----
    The search is exact: O(B N D) for a batch of B rows, N (D + C) floats of memory.

    Examples
    --------
    >>> bank = MemoryBank(torch.eye(3), torch.eye(3))
    >>> bank.nearest(torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([0]), k=1)
    tensor([[1]])
    """

    def __init__(self, embeddings: Tensor, predictions: Tensor) -> None:
        if embeddings.ndim != 2 or predictions.ndim != 2 or len(embeddings) != len(predictions):
            raise ValueError(
                "A memory bank needs embeddings (N, D) and predictions (N, C) of the same rows, got "
                f"{tuple(embeddings.shape)} and {tuple(predictions.shape)}."
            )
        self.embeddings = F.normalize(embeddings.detach().float(), dim=1)
        self.predictions = predictions.detach().float().clone()

    def __len__(self) -> int:
        return len(self.embeddings)

    @torch.no_grad()
    def nearest(self, embeddings: Tensor, index: Tensor, k: int) -> Tensor:
        """Bank rows most similar (cosine) to `embeddings`, never a row's own, most similar first.

        Parameters
        ----------
        embeddings : Tensor, (B, D)
        index : Tensor, (B,)
            The bank row of each embedding; left out by index, because the view of a row seen now
            need not be the most similar to the one banked.
        k : int

        Returns
        -------
        Tensor, (B, k)

        Raises
        ------
        ValueError
            If the bank has not `k` rows besides a row's own.
        """
        if k > len(self) - 1:
            raise ValueError(
                f"A bank of {len(self)} rows has {len(self) - 1} neighbours for a row, {k} were asked for."
            )
        similarity = F.normalize(embeddings.float(), dim=1) @ self.embeddings.T
        similarity.scatter_(1, index.to(similarity.device)[:, None], -torch.inf)
        return similarity.topk(k, dim=1).indices

    @torch.no_grad()
    def neighbour_predictions(self, embeddings: Tensor, index: Tensor, k: int) -> Tensor:
        """Mean prediction of the `k` nearest rows, (B, D) -> (B, C); see :meth:`nearest`."""
        return self.predictions[self.nearest(embeddings, index, k)].mean(dim=1)

    @torch.no_grad()
    def update(self, index: Tensor, embeddings: Tensor, predictions: Tensor) -> None:
        """Overwrite the rows `index` with their current embeddings (B, D) and predictions (B, C)."""
        rows = index.to(self.embeddings.device)
        self.embeddings[rows] = F.normalize(embeddings.detach().float(), dim=1)
        self.predictions[rows] = predictions.detach().float()

"""Batches in which images of one cluster rarely or never meet (G-SimCLR, step 4).

S. Chakraborty, A. R. Gosthipaty and S. Paul, "G-SimCLR: Self-Supervised Contrastive Learning with Guided Projection
via Pseudo Labelling", ICDM workshops 2020, arXiv:2009.12007, section III-B. "hard" and the reshuffling are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Sampler

from models.base import UNLABELLED

SamplerName = Literal["round_robin", "hard", "random"]
Labels = NDArray[np.int64]


def ranks_in_clusters(labels: Labels, rng: np.random.Generator | None = None) -> NDArray[np.int32]:
    """Step 4: 1-based rank of each image inside its own cluster, in the given or in random order.

    Images of unknown cluster (-1) get ranks spread evenly over the epoch.
    """
    order = rng.permutation(len(labels)) if rng is not None else np.arange(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    ranks = np.empty(len(labels), dtype=np.int32)
    ranks[order] = np.arange(len(labels)) - np.repeat(starts, sizes) + 1
    unknown = labels == UNLABELLED
    if unknown.any() and not unknown.all():
        deepest = int(ranks[~unknown].max())
        ranks[unknown] = 1 + (ranks[unknown] - 1) * deepest // int(unknown.sum())
    return ranks


def round_robin_order(labels: Labels, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """Step 4: all images sorted by (rank, cluster)."""
    return np.lexsort((labels, ranks_in_clusters(labels, rng)))


def one_per_cluster_batches(
    labels: Labels, batch_size: int, rng: np.random.Generator, reshuffle: bool = True
) -> Iterator[NDArray[np.int64]]:
    """Step 4, "hard": batches of distinct clusters, drawn with probability proportional to the images they have left.

    Ends when fewer than `batch_size` clusters have any left. An image of unknown cluster is a cluster of its own.
    """
    own = labels.copy()
    unknown = np.flatnonzero(labels == UNLABELLED)
    own[unknown] = labels.max(initial=-1) + 1 + np.arange(len(unknown))
    order = rng.permutation(len(own)) if reshuffle else np.arange(len(own))
    order = order[np.argsort(own[order], kind="stable")]
    _, taken, left = np.unique(own[order], return_index=True, return_counts=True)
    while (left > 0).sum() >= batch_size:
        with np.errstate(divide="ignore"):
            arrival = rng.exponential(size=len(left)) / left  # the first B of these races are such a draw
        drawn = np.argpartition(arrival, batch_size - 1)[:batch_size]
        yield order[taken[drawn]]
        taken[drawn] += 1
        left[drawn] -= 1


def repeats(labels: Labels) -> int:
    """Images of a batch whose known pseudo-label occurred in it before."""
    known = labels[labels != UNLABELLED]
    return len(known) - len(np.unique(known))


def expected_repeats(labels: Labels, batch_size: int) -> float:
    """Mean of :func:`repeats` over random batches (drawn with replacement)."""
    share = np.unique(labels[labels != UNLABELLED], return_counts=True)[1] / len(labels)
    return float(batch_size * share.sum() - (1 - (1 - share) ** batch_size).sum())


class StratifiedClusterBatchSampler(Sampler[list[int]]):
    """Batches in which images of one cluster rarely (round robin) or never (hard) meet.

    Usable as ``batch_sampler`` of a DataLoader, or through :meth:`batches` by a Trainer.

    Parameters
    ----------
    labels : array of int, (n,)
        Cluster of each image, -1 = unknown.
    batch_size : int
    how : {"round_robin", "hard", "random"}
        "round_robin" is the published order: sort by (rank inside the cluster, cluster) and cut into slices, the
        last short one dropped. "hard" draws each batch from distinct clusters, and ends the epoch when fewer than
        `batch_size` clusters have images left; give it more clusters than that to use more images. "random" is
        ordinary SimCLR.
    reshuffle : bool
        Draw the order anew each epoch. The released notebooks keep one order: False.
    random_state : int

    Raises
    ------
    ValueError
        For an unknown `how`, fewer images than `batch_size`, or ("hard") fewer clusters than that.

    References
    ----------
    Chakraborty et al. (2020), section III-B, "Stratified batches". "hard" and the reshuffling are ours.

    Examples
    --------
    >>> sampler = StratifiedClusterBatchSampler([0, 0, 1, 1, 2, 2, 2], batch_size=3, reshuffle=False)
    >>> list(sampler)
    [[0, 2, 4], [1, 3, 5]]
    """

    def __init__(
        self,
        labels: ArrayLike,
        batch_size: int,
        how: SamplerName = "round_robin",
        reshuffle: bool = True,
        random_state: int = 0,
    ) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.batch_size, self.how, self.reshuffle, self.random_state = batch_size, how, reshuffle, random_state
        self.epoch = 0
        if how not in ("round_robin", "hard", "random"):
            raise ValueError(f"how must be 'round_robin', 'hard' or 'random', got {how!r}.")
        if len(self.labels) < batch_size:
            raise ValueError(f"A batch takes {batch_size} images, got {len(self.labels)}. Lower batch_size.")
        unknown = int((self.labels == UNLABELLED).sum())
        clusters = len(np.unique(self.labels[self.labels != UNLABELLED])) + unknown
        if how == "hard" and clusters < batch_size:
            raise ValueError(
                f"The hard sampler takes one image a cluster and needs at least batch_size={batch_size} clusters, "
                f"got {clusters}. Lower batch_size, ask for more clusters, or use 'round_robin'."
            )

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Index tensors (B,) of one epoch; the same for the same epoch each time it is asked."""
        rng = np.random.default_rng([self.random_state, epoch if self.reshuffle else 0])
        if self.how == "hard":
            for drawn in one_per_cluster_batches(self.labels, self.batch_size, rng, self.reshuffle):
                yield torch.from_numpy(drawn)
            return
        n = len(self.labels)
        if self.how == "random":
            order = rng.permutation(n)
        else:
            order = round_robin_order(self.labels, rng if self.reshuffle else None)
        yield from torch.from_numpy(order[: n - n % self.batch_size]).split(self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that iteration draws, as torch's distributed samplers have it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of indices, for a DataLoader."""
        return (batch.tolist() for batch in self.batches(self.epoch))

    def __len__(self) -> int:
        """Batches of the epoch."""
        if self.how == "hard":
            return sum(1 for _ in self.batches(self.epoch))
        return len(self.labels) // self.batch_size

"""One training on several processes: those of torch's process group, when there is one.

Every process holds all rows and runs the same code from the same seeds, so that whatever is drawn or decided comes out
alike; only the batches of a :class:`~models.training.Trainer` are divided. Who starts the processes makes the group:
torchrun, Ray Train, or clearwell's runner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def processes() -> int:
    """How many processes train together; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if processes() > 1 else 0


def device(accelerator: str) -> Any:
    """Fabric's ``devices`` for this process: one, and with several processes each its own GPU."""
    return [rank() % torch.cuda.device_count()] if accelerator == "cuda" and processes() > 1 else 1


def portion(index: Tensor) -> Tensor:
    """The part of a batch that this process takes; what does not divide evenly is left out.

    Unequal parts would weigh rows unequally in the averaged gradient, and let the processes' draws diverge.
    """
    size = processes()
    return index[: len(index) - len(index) % size][rank() :: size] if size > 1 else index


def gathered(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, without gradients; each must give equally many."""
    if processes() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(processes())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


class Averaged:
    """Losses whose gradients are averaged over the processes, by torch's DistributedDataParallel.

    The whole loss is the wrapped forward pass, not the network alone: a method may call the network in parts, or
    several times, and its gradients are averaged all the same.

    Parameters
    ----------
    network : nn.Module
    """

    def __init__(self, network: nn.Module) -> None:
        self.wrapped = DistributedDataParallel(_Step(network), find_unused_parameters=True, forward_sync_buffers=False)

    def __call__(self, loss: Callable[..., Any], *args: Any) -> Any:
        """What ``loss(*args)`` returns; call ``backward`` on it before the next."""
        return self.wrapped(loss, *args)


class _Step(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, loss: Callable[..., Any], *args: Any) -> Any:
        return loss(*args)


def total(sums: Mapping[str, float], count: int) -> tuple[dict[str, float], int]:
    """Sums and counts over all processes; a process may lack a key."""
    if processes() == 1:
        return dict(sums), count
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, (dict(sums), count))
    keys = {key: None for part, _ in found for key in part}
    return {key: sum(part.get(key, 0.0) for part, _ in found) for key in keys}, sum(n for _, n in found)


def average_buffers(network: nn.Module) -> None:
    """Give all processes the mean of what each kept of its own rows (batch normalisation's running statistics)."""
    for buffer in network.buffers() if processes() > 1 else ():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= processes()


def merge_rows(tensors: Iterable[tuple[Tensor, int]], mine: list[Tensor]) -> None:
    """Give all processes the rows that each wrote.

    Parameters
    ----------
    tensors : iterable of (Tensor, int)
        What is kept of each row, and the axis that counts the rows. Changed in place.
    mine : list of Tensor
        The rows this process wrote; no other wrote any of them.
    """
    if processes() == 1:
        return
    for tensor, axis in tensors:
        written = torch.zeros(tensor.shape[axis], dtype=torch.float32)
        written[torch.cat(mine) if mine else torch.zeros(0, dtype=torch.long)] = 1
        shape = [-1 if place == axis else 1 for place in range(tensor.ndim)]
        own = torch.where(written.bool().view(shape), tensor, torch.zeros_like(tensor))
        dist.all_reduce(own)
        dist.all_reduce(written)
        tensor.copy_(torch.where(written.bool().view(shape), own, tensor))

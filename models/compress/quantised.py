"""Whole-number weights: rounding to a symmetric grid with one step per output channel, and storing them as such.

A fake-quantised network computes with floats that lie on such a grid. :func:`pack_integers` stores each weight
in exactly `bits` bits beside one float32 step per channel, so that the file really shrinks;
:func:`unpack_integers` gives back the very floats, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FORMAT = "symmetric-per-channel"
WIDEST = 8
_QUANTISABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def quantize_weight(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round each row to the nearest of 2^bits - 1 evenly spaced values around zero.

    ``step_k = max|W_k| / (2^(bits-1) - 1)`` and ``Q(W_k) = step_k clamp(round(W_k / step_k))``.

    Parameters
    ----------
    weight : Tensor, (n_out, ...)
    bits : int
        From 2 to 8.

    Returns
    -------
    quantised : Tensor, like `weight`
    step : Tensor, (n_out,)
        Zero for a row of zeros.

    Raises
    ------
    ValueError
        If `bits` is out of range.
    """
    _check_bits(bits)
    rows = weight.flatten(1)
    largest = 2 ** (bits - 1) - 1
    step = rows.abs().amax(1) / largest
    codes = _codes(rows, step, largest)
    return (codes * step[:, None]).reshape(weight.shape), step


def _codes(rows: Tensor, step: Tensor, largest: int) -> Tensor:
    return (rows / torch.where(step > 0, step, 1.0)[:, None]).round().clamp(-largest, largest)


def grid_step(weight: Tensor, bits: int) -> Tensor:
    """The step of each row of a fake-quantised `weight`, found so that step times code gives the row bit for bit.

    The largest entry of a row stands at the end of the grid; dividing it back may miss the step that made it by
    a rounding error, so its nearest float neighbours are tried too.

    Raises
    ------
    ValueError
        If some row does not lie on such a grid.
    """
    largest = 2 ** (bits - 1) - 1
    rows = weight.flatten(1)
    first = rows.abs().amax(1) / largest
    step, found = first.clone(), torch.zeros(len(rows), dtype=torch.bool)
    for ulps in (0, 1, -1, 2, -2, 3, -3):
        candidate = first.clone()
        for _ in range(abs(ulps)):
            candidate = torch.nextafter(candidate, torch.full_like(candidate, math.copysign(math.inf, ulps)))
        fits = (_codes(rows, candidate, largest) * candidate[:, None] == rows).all(1) & ~found
        step, found = torch.where(fits, candidate, step), found | fits
    if not found.all():
        raise ValueError(
            f"{int((~found).sum())} of {len(rows)} channels are not on a symmetric {bits}-bit grid. "
            "Quantise the weights first (quantize_weight), with the same number of bits."
        )
    return step


def pack_integers(module: nn.Module, bits: int | Mapping[str, int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a fake-quantised network with its weights as packed integers.

    Parameters
    ----------
    module : nn.Module
        Its weights must lie on the grid of :func:`quantize_weight`.
    bits : int or mapping
        One number for all convolutions and linear layers, or {layer name: bits}; layers at 32 or not
        named stay floats.

    Returns
    -------
    tensors : dict of str to Tensor
        ``<weight>.codes`` (uint8, ceil(numel bits / 8) bytes) and ``<weight>.step`` (n_out,) for a packed weight;
        everything else of the state dict as it is.
    config : dict
        JSON values that :func:`unpack_integers` needs: format, and bits and shape of each packed weight.

    Raises
    ------
    ValueError
        If a named layer has no plain weight, the bits are out of range or a weight is not on the grid.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.Linear(64, 8)
    >>> _ = layer.weight.data.copy_(quantize_weight(layer.weight.data, 4)[0])
    >>> tensors, config = pack_integers(torch.nn.Sequential(layer), 4)
    >>> tensors["0.weight.codes"].numel()  # 512 weights in 4 bits
    256
    >>> torch.equal(unpack_integers(tensors, config)["0.weight"], layer.weight)
    True
    """
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
    packed: dict[str, dict[str, Any]] = {}
    for layer, width in _layer_bits(module, bits).items():
        name = f"{layer}.weight" if layer else "weight"
        if name not in state or state[name].ndim < 2:
            raise ValueError(
                f"There is no plain weight {name!r} to pack. Name convolutions or linear layers, "
                "and fold a weight-normalised layer first."
            )
        weight = state.pop(name)
        step = grid_step(weight, width)
        codes = _codes(weight.flatten(1), step, 2 ** (width - 1) - 1)
        state[f"{name}.codes"] = torch.from_numpy(_pack(codes.numpy().astype(np.int16).ravel(), width))
        state[f"{name}.step"] = step
        packed[name] = {"bits": width, "shape": list(weight.shape)}
    return state, {"format": FORMAT, "weights": packed}


def unpack_integers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict that :func:`pack_integers` stored, equal bit for bit.

    Raises
    ------
    ValueError
        If the format is another one, or a packed weight is missing or of another size than `config` says.
    """
    if config.get("format") != FORMAT:
        raise ValueError(f"The weights are packed as {config.get('format')!r}; this reads {FORMAT!r} only.")
    state = dict(tensors)
    for name, entry in config["weights"].items():
        bits, shape = int(entry["bits"]), tuple(entry["shape"])
        _check_bits(bits)
        codes, step = state.pop(f"{name}.codes", None), state.pop(f"{name}.step", None)
        if codes is None or step is None or codes.numel() != math.ceil(math.prod(shape) * bits / 8):
            raise ValueError(
                f"The packed weight {name!r} is missing or its size does not match {bits} bits of {shape}. "
                "Read the tensors and the configuration that were written together."
            )
        whole = torch.from_numpy(_unpack(codes.cpu().numpy(), bits, math.prod(shape))).to(step.dtype)
        state[name] = (whole.reshape(len(step), -1) * step.cpu()[:, None]).reshape(shape)
    return state


def storage_bytes(module: nn.Module, bits: int | Mapping[str, int]) -> int:
    """Bytes of what :func:`pack_integers` would store: each tensor's numel x bits / 8, rounded up to whole bytes."""
    widths = {f"{layer}.weight" if layer else "weight": width for layer, width in _layer_bits(module, bits).items()}
    total = 0
    for name, tensor in module.state_dict().items():
        if name in widths:
            total += math.ceil(tensor.numel() * widths[name] / 8) + len(tensor) * tensor.element_size()
        else:
            total += tensor.numel() * tensor.element_size()
    return total


def _layer_bits(module: nn.Module, bits: int | Mapping[str, int]) -> dict[str, int]:
    if isinstance(bits, Mapping):
        chosen = dict(bits)
    else:
        chosen = {name: bits for name, layer in module.named_modules() if isinstance(layer, _QUANTISABLE)}
    chosen = {name: width for name, width in chosen.items() if width != 32}
    for width in chosen.values():
        _check_bits(width)
    return chosen


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= WIDEST:
        raise ValueError(f"bits must be from 2 to {WIDEST} (32 leaves a layer as it is), got {bits}.")


def _pack(codes: NDArray[np.int16], bits: int) -> NDArray[np.uint8]:
    offset = (codes + 2 ** (bits - 1)).astype(np.uint8)  # 1 .. 2^bits - 1
    return np.packbits((offset[:, None] >> np.arange(bits, dtype=np.uint8)) & 1, bitorder="little")


def _unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int16]:
    digits = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits).astype(np.int16)
    return (digits << np.arange(bits, dtype=np.int16)).sum(1).astype(np.int16) - np.int16(2 ** (bits - 1))

"""Which layers feed which: chains of producer, batch normalisation, activation and the one consumer, read by torch.fx.

Output channels of a producer may be removed when everything up to the next convolution or linear layer treats each
channel by itself and nothing else reads it. Layers that end in an addition (residual blocks), a concatenation, the
output or several readers must keep their width; they are listed with the reason.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_KEEP, _RELU, _ACT, _AVERAGE, _MAX, _FLATTEN = "keep", "relu", "activation", "average", "max", "flatten"
_MODULE_KINDS: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _KEEP),
    nn.ReLU: _RELU,
    **dict.fromkeys(
        (nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.Softplus),
        _ACT,
    ),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _AVERAGE),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _AVERAGE),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _MAX),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), _MAX),
}
_FUNCTION_KINDS: dict[Any, str] = {
    **dict.fromkeys((F.dropout, F.dropout2d), _KEEP),
    **dict.fromkeys((F.relu, torch.relu), _RELU),
    **dict.fromkeys((F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish), _ACT),
    **dict.fromkeys((torch.tanh, torch.sigmoid, F.softplus), _ACT),
    **dict.fromkeys((F.avg_pool2d, F.adaptive_avg_pool2d), _AVERAGE),
    **dict.fromkeys((F.max_pool2d, F.adaptive_max_pool2d), _MAX),
}
_METHOD_KINDS = {"relu": _RELU, "contiguous": _KEEP}


@dataclass(frozen=True)
class Chain:
    """A producer whose channels may be removed, and what stands between it and its only consumer.

    Attributes
    ----------
    producer, consumer : str
        Names of the two layers.
    norm, consumer_norm : str or None
        Batch normalisation right after the producer, and right after the consumer.
    activation : str
        "identity", "relu" or "other".
    block : int
        Entries of the consumer's input per channel (above 1 where a map is flattened into a linear layer).
    window : int
        Positions that max-pooling between them takes the largest of (1 without).
    predictable : bool
        Whether the mean of the consumer's input follows from mean and deviation of the pre-activation: no activation
        or max-pooling after an average.
    coverage : tuple of float, one for each position of the consumer's kernel or block
        Share of the consumer's outputs for which the position lies on the map and not on zero padding.
    steps : tuple of str
        Nodes of the graph that make up the activation.
    """

    producer: str
    norm: str | None
    activation: str
    consumer: str
    consumer_norm: str | None
    block: int
    window: int
    predictable: bool
    coverage: tuple[float, ...] = field(repr=False)
    steps: tuple[str, ...]


class _Obstacle(Exception):
    """Why a layer's width must stay."""


def trace(model: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """The graph of `model`, which must be in eval mode, with the shape of every value.

    Raises
    ------
    ValueError
        If the model cannot be traced, or does not take the example.
    """
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        raise ValueError(
            f"{type(model).__name__} cannot be traced by torch.fx: {error} "
            "Give the part without data-dependent branches (an encoder, or a SplitClassifier around it)."
        ) from error
    propagate(graph, example_input)
    return graph


def propagate(graph: fx.GraphModule, example_input: Tensor) -> None:
    """Note the shape of every value in the graph's nodes.

    Raises
    ------
    ValueError
        If the model does not take the example.
    """
    try:
        with torch.no_grad():
            ShapeProp(graph).propagate(example_input)
    except RuntimeError as error:
        raise ValueError(
            f"example_input does not fit: the model does not take an input shaped {tuple(example_input.shape)}: "
            f"{error.__cause__ or error}. "
            "Give one example batch as the model sees it."
        ) from error


def layer_nodes(graph: fx.GraphModule) -> list[fx.Node]:
    """Convolutions and linear layers, in the order they run."""
    return [node for node in graph.graph.nodes if isinstance(_module(graph, node), LAYERS)]


def multiply_adds(graph: fx.GraphModule) -> int:
    """Multiply-adds of the convolutions and linear layers for one example; shapes must have been propagated."""
    total = 0
    for node in layer_nodes(graph):
        layer = graph.get_submodule(str(node.target))
        shape = node.meta["tensor_meta"].shape
        positions = shape[2:].numel() if isinstance(layer, _CONVOLUTIONS) else shape[1:-1].numel()
        total += positions * layer.weight.numel()  # type: ignore[operator]
    return total


def find_chains(graph: fx.GraphModule) -> tuple[dict[str, Chain], dict[str, str]]:
    """Every layer either as the producer of a chain, or with the reason why its width must stay.

    Parameters
    ----------
    graph : fx.GraphModule
        From :func:`trace`.

    Returns
    -------
    chains : dict of str to Chain
    obstacles : dict of str to str
    """
    chains: dict[str, Chain] = {}
    obstacles: dict[str, str] = {}
    for node in layer_nodes(graph):
        try:
            chains[str(node.target)] = _follow(graph, node)
        except _Obstacle as obstacle:
            obstacles[str(node.target)] = str(obstacle)
    return chains, obstacles


def activate(graph: fx.GraphModule, chain: Chain, values: Tensor) -> Tensor:
    """The activation of `chain` on any tensor."""
    nodes = {node.name: node for node in graph.graph.nodes}
    for node in (nodes[name] for name in chain.steps):
        module = _module(graph, node)
        if module is not None:
            values = module(values.clone())
        else:
            target: Any = torch.relu if node.target == "relu" else node.target
            options = {key: value for key, value in node.kwargs.items() if key != "inplace"}
            values = target(values, *node.args[1:], **options)
    return values


def rewrite_consumer(graph: fx.GraphModule, chain: Chain, scales: Tensor, shift: Tensor) -> None:
    """Let the consumer read fewer channels: ``W'_new[o, :] = sum_c W'[o, c] S[c, :]`` at every position.

    Parameters
    ----------
    graph : fx.GraphModule
        Changed in place.
    chain : Chain
    scales : Tensor, (n, n_kept)
        S, each old channel in terms of the kept ones.
    shift : Tensor, (n_out,)
        Added to the consumer's output: to its bias, else through the running mean after it, else as a new bias.
    """
    consumer: Any = graph.get_submodule(chain.consumer)
    if not (scales.shape[0] == scales.shape[1] and torch.equal(scales, torch.eye(len(scales), dtype=scales.dtype))):
        blocks = consumer.weight.to(scales.dtype).reshape(len(consumer.weight), len(scales), -1)
        new = torch.einsum("ocp,ck->okp", blocks, scales)
        _replace(consumer, "weight", new.reshape(len(new), -1, *consumer.weight.shape[2:]))
        if isinstance(consumer, nn.Linear):
            consumer.in_features = consumer.weight.shape[1]
        else:
            consumer.in_channels = scales.shape[1]
    if not shift.any():
        return
    if consumer.bias is not None:
        _replace(consumer, "bias", consumer.bias + shift)
    elif chain.consumer_norm is not None:
        norm: Any = graph.get_submodule(chain.consumer_norm)
        norm.running_mean = (norm.running_mean - shift).to(norm.running_mean.dtype)
    else:
        consumer.bias = nn.Parameter(shift.to(consumer.weight.dtype))


def slice_producer(producer: Any, norm: Any, kept: Tensor, stored: Tensor) -> None:
    """Keep the rows `kept`, with the weights as stored."""
    _replace(producer, "weight", stored)
    if producer.bias is not None:
        _replace(producer, "bias", producer.bias[kept])
    if isinstance(producer, nn.Linear):
        producer.out_features = len(kept)
    else:
        producer.out_channels = len(kept)
    if norm is not None:
        norm.num_features = len(kept)
        norm.running_mean, norm.running_var = norm.running_mean[kept], norm.running_var[kept]
        for name in ("weight", "bias"):
            if getattr(norm, name) is not None:
                _replace(norm, name, getattr(norm, name)[kept])


def _follow(graph: fx.GraphModule, start: fx.Node) -> Chain:
    uses = Counter(id(_module(graph, node)) for node in graph.graph.nodes if node.op == "call_module")
    producer = _module(graph, start)
    if getattr(producer, "groups", 1) != 1:
        raise _Obstacle("it is a grouped convolution")
    if uses[id(producer)] > 1:
        raise _Obstacle("the layer is used more than once")
    if isinstance(producer, nn.Linear) and len(_shape(start)) != 2:
        raise _Obstacle("it is a linear layer on more than two axes")
    norm, activation, window, predictable, averaged = None, "identity", 1, True, False
    steps: list[str] = []
    node = _only_reader(start)
    while not isinstance(_module(graph, node), LAYERS):
        module = _module(graph, node)
        if isinstance(module, NORMS):
            if node.args[0] is not start:
                raise _Obstacle(f"the batch normalisation {node.target} does not follow it directly")
            if uses[id(module)] > 1 or module.running_mean is None:
                raise _Obstacle(f"the batch normalisation {node.target} is shared or keeps no statistics")
            norm = str(node.target)
        else:
            kind = _kind(graph, node)
            if kind in (_RELU, _ACT):
                predictable &= not averaged
                activation = kind if activation == "identity" and kind == _RELU else "other"
                steps.append(node.name)
            if kind == _MAX:
                predictable &= not averaged
                window *= _window(node, module)
            averaged |= kind == _AVERAGE
        node = _only_reader(node)
    consumer = _module(graph, node)
    if getattr(consumer, "groups", 1) != 1:
        raise _Obstacle(f"its consumer {node.target} is a grouped convolution")
    if uses[id(consumer)] > 1:
        raise _Obstacle(f"its consumer {node.target} is used more than once")
    block = _block(start, node, consumer)
    return Chain(
        producer=str(start.target),
        norm=norm,
        activation=activation,
        consumer=str(node.target),
        consumer_norm=_norm_after(graph, node, uses),
        block=block,
        window=window,
        predictable=predictable,
        coverage=tuple(_coverage(node, consumer, block).tolist()),
        steps=tuple(steps),
    )


def _only_reader(node: fx.Node) -> fx.Node:
    readers = list(node.users)
    if len(readers) != 1:
        raise _Obstacle(f"its output is read in {len(readers)} places")
    if readers[0].op == "output":
        raise _Obstacle("its output is the network's output")
    return readers[0]


def _norm_after(graph: fx.GraphModule, node: fx.Node, uses: Counter[int]) -> str | None:
    readers = list(node.users)
    if len(readers) != 1:
        return None
    module = _module(graph, readers[0])
    usable = isinstance(module, NORMS) and module.running_mean is not None and uses[id(module)] == 1
    return str(readers[0].target) if usable else None


def _block(start: fx.Node, node: fx.Node, consumer: nn.Module | None) -> int:
    if not isinstance(consumer, nn.Linear):
        return 1
    channels = _shape(start)[1]
    if len(node.args[0].meta["tensor_meta"].shape) != 2 or consumer.in_features % channels:  # type: ignore[union-attr]
        raise _Obstacle(f"its channels are not laid out block by block in the input of {node.target}")
    return consumer.in_features // channels


def _window(node: fx.Node, module: nn.Module | None) -> int:
    before, after = (part.meta["tensor_meta"].shape[2:] for part in (node.args[0], node))  # type: ignore[union-attr]
    size = getattr(module, "kernel_size", None)
    if size is None:
        return max(before.numel() // after.numel(), 1)
    return math.prod(size) if isinstance(size, tuple) else int(size) ** len(before)


def _coverage(node: fx.Node, consumer: Any, block: int) -> Tensor:
    if isinstance(consumer, nn.Linear):
        return torch.ones(block, dtype=torch.float64)
    taps = math.prod(consumer.kernel_size)
    if consumer.padding_mode != "zeros":
        return torch.ones(taps, dtype=torch.float64)
    size = node.args[0].meta["tensor_meta"].shape[2:]  # type: ignore[union-attr]
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    one_tap_each = torch.eye(taps, dtype=torch.float64).reshape(taps, 1, *consumer.kernel_size)
    seen = convolve(
        torch.ones(1, 1, *size, dtype=torch.float64),
        one_tap_each,
        stride=consumer.stride,
        padding=consumer.padding,
        dilation=consumer.dilation,
    )
    return seen[0].flatten(1).mean(1)


def _kind(graph: fx.GraphModule, node: fx.Node) -> str:
    """What the operation does to each channel; an obstacle if it may mix them."""
    module = _module(graph, node)
    target: Any = node.target
    kind: str | None = None
    if module is not None:
        kind = _MODULE_KINDS.get(type(module))
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            kind = _FLATTEN
    elif node.op == "call_function":
        kind = _FLATTEN if target is torch.flatten and _flattens_all(node) else _FUNCTION_KINDS.get(target)
        if target is torch.mean and _averages_map(node):
            kind = _AVERAGE
    elif node.op == "call_method":
        kind = _METHOD_KINDS.get(target)
        if target == "flatten" and _flattens_all(node):
            kind = _FLATTEN
        if target == "mean" and _averages_map(node):
            kind = _AVERAGE
    if kind is None:
        raise _Obstacle(f"it reaches {_label(node, module)}")
    return kind


def _label(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return f"{type(module).__name__} {node.target}, which may mix channels"
    name = getattr(node.target, "__name__", str(node.target))
    additions = (operator.add, operator.iadd, torch.add)
    return "an addition (residual), where the width is fixed" if node.target in additions else f"the operation {name}"


def _flattens_all(node: fx.Node) -> bool:
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return (start, end) == (1, -1)


def _averages_map(node: fx.Node) -> bool:
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = len(node.args[0].meta["tensor_meta"].shape)  # type: ignore[union-attr]
    axes: set[Any] = {given} if isinstance(given, int) else set(given or ())  # type: ignore[arg-type]
    return bool(axes) and all(axis % rank >= 2 for axis in axes)


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _shape(node: fx.Node) -> torch.Size:
    return node.meta["tensor_meta"].shape


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    old: nn.Parameter = getattr(module, name)
    setattr(module, name, nn.Parameter(value.detach().to(old.dtype).clone(), requires_grad=old.requires_grad))

"""Unified data-free compression: prune and quantise a trained network, repair the next layer in closed form.

Bai, Chen, Shen, Qian and Liu, "Unified Data-Free Compression: Pruning and Quantization without Fine-Tuning",
ICCV 2023, arXiv:2308.07209.

A lost channel is taken for a linear combination of the kept ones. A channel of a layer ends as
``A_k = act(g_k Z_k + b_k)`` with the filter's output Z_k, the gain ``g_k = gamma_k / sigma_k`` and the offset
``b_k = beta_k - g_k mu_k`` of its batch normalisation. The weights and these two numbers say how well the kept
channels can stand in for a lost one; no data is needed.
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, fx, nn

from models.compress.chains import (
    Chain,
    activate,
    find_chains,
    layer_nodes,
    multiply_adds,
    propagate,
    rewrite_consumer,
    slice_producer,
    trace,
)
from models.compress.quantised import quantize_weight, storage_bytes
from models.compress.rebuild import folded, rebuilt
from models.registry import register

__all__ = ["UDFC", "Layer", "UnifiedDataFreeCompressor", "quantize_weight", "reconstruct_channels"]

CONSTANT_GAIN = 1e-8
FLOAT_BITS = 32
POOLED_CORRELATION = 0.5  # of neighbours on a map, which the weights do not tell: midway between alike and unrelated
QUANTILES = 200


@dataclass
class Layer:
    """A producer as the equations see it.

    Attributes
    ----------
    weight : Tensor, (n, fan_in)
        Filters W.
    gain, offset : Tensor, (n,)
        g and b of the pre-activation ``g_k Z_k + b_k``.
    kept : Tensor, (n_kept,)
        Indices of the surviving channels, ascending.
    quantised : Tensor, (n_kept, fan_in)
        Their filters V as they will be stored.
    """

    weight: Tensor
    gain: Tensor
    offset: Tensor
    kept: Tensor
    quantised: Tensor

    @property
    def constant(self) -> Tensor:
        """(n,) channels whose gain is so small that they are numbers, not functions of the input."""
        return self.gain.abs() < CONSTANT_GAIN

    @property
    def dropped(self) -> Tensor:
        """Indices of the removed channels that are not constant."""
        lost = ~self.constant
        lost[self.kept] = False
        return lost.nonzero().flatten()

    @property
    def usable(self) -> Tensor:
        """Positions in ``kept`` of the channels that are not constant."""
        return (~self.constant[self.kept]).nonzero().flatten()


def batch_norm_affine(norm: nn.Module | None, bias: Tensor | None, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gain ``g = gamma / sigma`` and offset ``b = beta - g (mu - bias)``, sigma = sqrt(running_var + eps).

    Without batch normalisation gamma = 1, beta = bias, mu = 0 and sigma = 1.
    """
    offset = torch.zeros(n, dtype=dtype) if bias is None else bias.detach().to(dtype)
    if norm is None:
        return torch.ones(n, dtype=dtype), offset
    gamma, beta = batch_norm_output(norm, dtype)
    gain = gamma / (norm.running_var.to(dtype) + norm.eps).sqrt()  # type: ignore[operator]
    return gain, beta + gain * (offset - norm.running_mean.to(dtype))  # type: ignore[operator]


def batch_norm_output(norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale gamma and shift beta (n,): the deviation and mean that batch normalisation promises for its output."""
    gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
    mean: Tensor = norm.running_mean  # type: ignore[assignment]
    if gamma is None or beta is None:
        return torch.ones_like(mean, dtype=dtype), torch.zeros_like(mean, dtype=dtype)
    return gamma.detach().to(dtype), beta.detach().to(dtype)


def filter_importance(weight: Tensor, criterion: str) -> Tensor:
    """Step 2: the norm of each filter (n,), or its summed distance to the others ("l2_gm", geometric median)."""
    if criterion == "l2_gm":
        return torch.cdist(weight, weight).sum(1)
    return weight.norm(p=1 if criterion == "l1" else 2, dim=1)


def rescale_kept(layer: Layer, alpha1: float, alpha2: float) -> Tensor:
    """Step 6: the factor s_k (n_kept,) that brings a quantised channel nearest to the original.

    ``s_k = (<W_k, V_k> + alpha1 (b_k / g_k)^2 + alpha2) / (|V_k|^2 + alpha1 (b_k / g_k)^2 + alpha2)``, the minimum of
    ``|W_k - s V_k|^2 + alpha1 ((b_k - s b_k) / g_k)^2 + alpha2 (s - 1)^2``.
    """
    ratio = (layer.offset / torch.where(layer.constant, 1.0, layer.gain))[layer.kept]
    shared = alpha1 * ratio**2 + alpha2
    kept = layer.weight[layer.kept]
    scale = ((kept * layer.quantised).sum(1) + shared) / ((layer.quantised * layer.quantised).sum(1) + shared)
    return torch.where(layer.constant[layer.kept], 1.0, scale)


def combine_kept(layer: Layer, alpha1: float, alpha2: float, nonnegative: bool = False) -> Tensor:
    """Step 5: coefficients s (n_dropped, n_usable) of each lost channel over the kept ones.

    Row j minimises ``|W_j - U_j s|^2 + alpha1 (y_j - c_j . s)^2 + alpha2 |s|^2`` with ``U_j = [(g_k / g_j) V_k]``,
    ``y_j = b_j / g_j`` and ``c_j = [b_k / g_j]``; multiplied by g_j^2 that is
    ``(H + alpha1 b b^T + alpha2 g_j^2 I) s = Vg (g_j W_j) + alpha1 b_j b`` with ``Vg = [g_k V_k]``, ``H = Vg Vg^T``:
    one eigendecomposition serves all rows.
    """
    dropped, usable = layer.dropped, layer.usable
    gain, offset = layer.gain[layer.kept][usable], layer.offset[layer.kept][usable]
    scaled = gain[:, None] * layer.quantised[usable]
    gain_lost, offset_lost = layer.gain[dropped], layer.offset[dropped]
    right = (gain_lost[:, None] * layer.weight[dropped]) @ scaled.T + alpha1 * offset_lost[:, None] * offset
    values, vectors = torch.linalg.eigh(scaled @ scaled.T + alpha1 * torch.outer(offset, offset))
    ridge = values.clamp(min=0)[None, :] + alpha2 * gain_lost[:, None] ** 2
    rotated = right @ vectors
    if not nonnegative:
        return (rotated / ridge) @ vectors.T
    rows = [
        nnls((root[:, None] * vectors.T).numpy(), (target / root).numpy())[0]
        for root, target in zip(ridge.sqrt(), rotated, strict=True)
    ]
    return torch.from_numpy(np.array(rows)).to(right.dtype).reshape(right.shape)


def reconstruct_channels(layer: Layer, alpha1: float, alpha2: float, nonnegative: bool = False) -> Tensor:
    """Steps 5-7: S (n, n_kept), which writes every channel of `layer` in terms of the stored ones.

    Parameters
    ----------
    layer : Layer
    alpha1, alpha2 : float
        Weights of the batch-normalisation term and of the size of the coefficients.
    nonnegative : bool
        Allow only coefficients >= 0, for which combinations survive a ReLU better.

    Returns
    -------
    Tensor, (n, n_kept)
        Row k of a kept channel has s_k at its own place, row j of a lost one its combination; constant channels
        take no part.
    """
    scales = layer.weight.new_zeros(len(layer.weight), len(layer.kept))
    scales[layer.kept, torch.arange(len(layer.kept))] = rescale_kept(layer, alpha1, alpha2)
    if len(layer.dropped) and len(layer.usable):
        scales[layer.dropped[:, None], layer.usable[None, :]] = combine_kept(layer, alpha1, alpha2, nonnegative)
    return scales


def objective_terms(layer: Layer, scales: Tensor, alpha1: float, alpha2: float) -> dict[str, float]:
    """Step 8: the weight, batch-normalisation and size terms of ``l_re = sum l_q + sum l_p`` at S."""
    rows = (~layer.constant).nonzero().flatten()
    gain, offset = layer.gain[rows], layer.offset[rows]
    parts = scales[rows] * layer.gain[layer.kept] / gain[:, None]
    around = torch.zeros_like(scales)
    around[layer.kept, torch.arange(len(layer.kept))] = 1.0
    return {
        "weight": float(((layer.weight[rows] - parts @ layer.quantised) ** 2).sum()),
        "bn": alpha1 * float((((offset - scales[rows] @ layer.offset[layer.kept]) / gain) ** 2).sum()),
        "norm": alpha2 * float(((scales - around)[rows] ** 2).sum()),
    }


def expected_activation(gamma: Tensor, beta: Tensor, activation: str) -> Tensor:
    """Mean of ReLU(N(beta, gamma^2)), or beta itself for the identity: what batch normalisation promises.

    ``E = beta Phi(t) + |gamma| phi(t)`` with ``t = beta / |gamma|``.
    """
    if activation == "identity":
        return beta
    spread = gamma.abs().clamp(min=torch.finfo(gamma.dtype).tiny)
    t = beta / spread
    density = torch.exp(-0.5 * t**2) / math.sqrt(2 * math.pi)
    return beta * torch.special.ndtr(t) + spread * density


def expected_maximum(gamma: Tensor, beta: Tensor, activation: str, window: int) -> Tensor:
    """Mean of the largest of `window` activations whose pre-activations N(beta, gamma^2) correlate by 1/2.

    Each is ``beta + gamma (sqrt(1/2) Z_0 + sqrt(1/2) Z_i)`` with a shared Z_0. The maximum V of the Z_i has the
    quantiles ``Phi^-1(u^(1/window))``; given V, what remains is one Gaussian, of which the mean is known.
    """
    if window == 1:
        return expected_activation(gamma, beta, activation)
    u = (torch.arange(QUANTILES, dtype=gamma.dtype) + 0.5) / QUANTILES
    largest = torch.special.ndtri(u ** (1 / window))[:, None]
    shared = math.sqrt(POOLED_CORRELATION) * gamma
    own = math.sqrt(1 - POOLED_CORRELATION) * gamma.abs() * largest
    return expected_activation(shared, beta + own, activation).mean(0)


@register(
    "udfc",
    stage="compress",
    summary="Prunes channels and lowers bit-widths without data or training, repairing each next layer in closed form",
    paper="Unified Data-Free Compression: Pruning and Quantization without Fine-Tuning",
    year=2023,
    link="https://arxiv.org/abs/2308.07209",
    licence="none published",
    accepts=("image", "table"),
    skips_checks={
        "nan": "only the shape of example_input is read, never its values",
        "empty": "only the shape of example_input is read, and a batch of none has one",
    },
)
class UnifiedDataFreeCompressor(BaseEstimator):
    """Make a trained network smaller and lower in bits, without its data and without training.

    Output channels are removed and filters rounded layer by layer; for each channel so damaged, the weights of the
    layer that reads it are rewritten so that its input stays as close as weights and batch-normalisation
    statistics can tell.

    Parameters
    ----------
    prune_ratio : float or dict
        Share of the output channels to remove, in [0, 1); or {layer name: share}, other layers whole.
    weight_bits : int or dict
        2 to 8, or 32 for floats; or {layer name: bits}, other layers floats.
    alpha1, alpha2 : float
        Weights of the batch-normalisation term and of the size of the coefficients, as published.
    criterion : {"l2", "l1", "l2_gm"}
        Which filters survive: those of largest norm, or those farthest from the others.
    quant_scheme : {"per_channel_symmetric"}
        One step for each output channel, no offset.
    skip_layers : sequence of str
        Layers that keep their width; "first" is the first layer of the network, which has few inputs per filter.
    first_last_bits : int
        Bits of the first and the last layer when `weight_bits` is one number below 32.
    prune_residual : {"inner"}
        In residual networks only channels that end inside a block are removed, since added branches share a width.
    nonnegative : bool
        Solve for coefficients >= 0.
    mean_correction : bool
        Keep the mean of the next pre-activation that batch normalisation promises (ours; False is the paper).
    dtype : {"float64", "float32"}
        Precision of the solver.
    random_state : int, RandomState or None
        Nothing is drawn; here for the common interface.

    Attributes
    ----------
    plan_ : dict of str to Chain
        Layers that may lose channels: producer, batch normalisation, activation and consumer of each.
    kept_ : dict of str to ndarray of int64
        Indices of the surviving channels.
    scales_ : dict of str to ndarray, (n, n_kept)
        The matrix S of each layer.
    errors_ : dict of str to dict
        weight, bn and norm terms of the objective; their sum "after", and "before" repair; and "largest_sum", the
        largest sum of absolute coefficients of a removed channel (large sums mean cancellation, which a ReLU spoils).
    bits_ : dict of str to int
        Bits of each quantised layer, as :func:`models.compress.quantised.pack_integers` takes them.
    flops_, params_, bytes_ : dict
        "before" and "after": multiply-adds for the example (its batch not counted), parameters, stored bytes.
    skipped_ : dict of str to str
        Layers whose width stays, and why. They are still rounded when bits are asked for.
    network_ : nn.Module
        The smaller network.

    Notes
    -----
    A network with an ``architecture`` comes back as its own class with a new ``architecture`` where that class can
    express the widths; any other as an ``fx.GraphModule``. Weight-normalised layers are folded first.
    The correction of the mean weighs each position of a kernel by how often it lies on the map and not on the zero
    padding, and goes through max-pooling as if pooled pre-activations correlated by 1/2. It adds a bias to a layer that
    has neither bias nor batch normalisation.

    References
    ----------
    S. Bai, J. Chen, X. Shen, Y. Qian and Y. Liu, "Unified Data-Free Compression: Pruning and Quantization without
    Fine-Tuning", ICCV 2023, arXiv:2308.07209: the linear assumption, the reconstruction error, its closed form.

    Examples
    --------
    >>> import torch
    >>> from models.networks.convnet import ConvEncoder
    >>>     >>> network = SplitClassifier(ConvEncoder((8, 16)), n_classes=3, embedding_dim=32)
    >>> method = UnifiedDataFreeCompressor(prune_ratio=0.25, weight_bits=6)
    >>> small = method.fit_transform(network, torch.zeros(1, 1, 8, 8))
    >>> small.architecture["encoder"]["channels"], small.architecture["embedding_dim"]
    ([8, 12], 24)
    >>> method.bytes_["after"] < method.bytes_["before"] / 3
    True
    """

    _parameter_constraints = {  # noqa: RUF012
        "prune_ratio": [Interval(Real, 0, 1, closed="left"), dict],
        "weight_bits": [Interval(Integral, 2, 8, closed="both"), Options(Integral, {FLOAT_BITS}), dict],
        "alpha1": [Interval(Real, 0, None, closed="left")],
        "alpha2": [Interval(Real, 0, None, closed="neither")],
        "criterion": [StrOptions({"l2", "l1", "l2_gm"})],
        "quant_scheme": [StrOptions({"per_channel_symmetric"})],
        "skip_layers": [tuple, list],
        "first_last_bits": [Interval(Integral, 2, 8, closed="both"), Options(Integral, {FLOAT_BITS})],
        "prune_residual": [StrOptions({"inner"})],
        "nonnegative": ["boolean"],
        "mean_correction": ["boolean"],
        "dtype": [StrOptions({"float64", "float32"})],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        prune_ratio: float | Mapping[str, float] = 0.3,
        weight_bits: int | Mapping[str, int] = 6,
        alpha1: float = 0.01,
        alpha2: float = 0.008,
        criterion: str = "l2",
        quant_scheme: str = "per_channel_symmetric",
        skip_layers: tuple[str, ...] | list[str] = ("first",),
        first_last_bits: int = 8,
        prune_residual: str = "inner",
        nonnegative: bool = False,
        mean_correction: bool = True,
        dtype: str = "float64",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.prune_ratio = prune_ratio
        self.weight_bits = weight_bits
        self.alpha1 = alpha1
        self.alpha2 = alpha2
        self.criterion = criterion
        self.quant_scheme = quant_scheme
        self.skip_layers = skip_layers
        self.first_last_bits = first_last_bits
        self.prune_residual = prune_residual
        self.nonnegative = nonnegative
        self.mean_correction = mean_correction
        self.dtype = dtype
        self.random_state = random_state

    def fit(self, model: nn.Module, example_input: Tensor) -> UnifiedDataFreeCompressor:
        """Find the chains of `model`, choose, round and solve layer by layer.

        Parameters
        ----------
        model : nn.Module
            Trained; it is read in eval mode and not changed.
        example_input : Tensor
            One batch as the model sees it; only its shape matters.

        Raises
        ------
        ValueError
            If the model cannot be traced or does not take the example, has no chain of layers, holds weights that are
            not finite, or a named layer does not exist.
        """
        self._validate_params()
        device = _check_model(model, example_input)
        plain, example = folded(model).cpu().eval(), example_input.detach().cpu()
        graph = trace(plain, example)
        self.plan_, self.skipped_ = find_chains(graph)
        if not self.plan_:
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in self.skipped_.items()) or "it has no layers"
            raise ValueError(
                f"{type(model).__name__} has no convolution or linear layer that feeds another one alone ({reasons}). "
                "Give a network with at least two such layers in a row."
            )
        names = list(dict.fromkeys(str(node.target) for node in layer_nodes(graph)))
        ratios, self.bits_ = self._ratios(names), self._bits(names)
        before = _size(graph, plain, example, {})
        self._compress(graph, names, ratios)
        self.network_ = rebuilt(plain, graph.state_dict()) or graph
        after = _size(graph, self.network_, example, self.bits_)
        self.flops_, self.params_, self.bytes_ = ({"before": b, "after": a} for b, a in zip(before, after, strict=True))
        self.network_.to(device)
        self._fitted_digest = _digest(model)
        return self

    def transform(self, model: nn.Module | None = None) -> nn.Module:
        """A copy of the smaller network, in eval mode.

        Parameters
        ----------
        model : nn.Module, optional
            The network given to :meth:`fit`, for the form ``fit(model).transform(model)``.

        Raises
        ------
        ValueError
            If `model` holds other weights than those fitted.
        """
        check_is_fitted(self, "network_")
        if model is not None and _digest(model) != self._fitted_digest:
            raise ValueError(
                "transform got a model with other weights than fit saw; the solution holds for those only. "
                "Call fit with this model first."
            )
        return copy.deepcopy(self.network_)

    def fit_transform(self, model: nn.Module, example_input: Tensor) -> nn.Module:
        """:meth:`fit`, then :meth:`transform`."""
        return self.fit(model, example_input).transform()

    def reconstruct(self, layer: Layer) -> Tensor:
        """S of one layer (:func:`reconstruct_channels`); a subclass may follow another rule."""
        return reconstruct_channels(layer, self.alpha1, self.alpha2, self.nonnegative)

    def _ratios(self, names: list[str]) -> dict[str, float]:
        """Share of channels to remove from each chain's producer; notes in ``skipped_`` which were asked to stay."""
        given = self.prune_ratio
        named = set(given) if isinstance(given, Mapping) else set()
        _check_names(named | set(self.skip_layers) - {"first"}, names)
        ratios = {name: float(given.get(name, 0.0) if isinstance(given, Mapping) else given) for name in self.plan_}
        if wrong := {name: value for name, value in ratios.items() if not 0 <= value < 1}:
            raise ValueError(f"prune_ratio must lie in [0, 1) for every layer, got {wrong}.")
        for name in self.skip_layers:
            asked = names[0] if name == "first" else name
            if ratios.get(asked):
                ratios[asked] = 0.0
                self.skipped_[asked] = f"skip_layers names it ({name!r})"
        return ratios

    def _bits(self, names: list[str]) -> dict[str, int]:
        """Bits of each layer that is to be rounded."""
        given = self.weight_bits
        if isinstance(given, Mapping):
            _check_names(set(given), names)
            bits = {name: int(value) for name, value in given.items()}
        else:
            bits = dict.fromkeys(names, int(given))
            if given != FLOAT_BITS:
                bits[names[0]] = bits[names[-1]] = int(self.first_last_bits)
        if wrong := {name: value for name, value in bits.items() if value != FLOAT_BITS and not 2 <= value <= 8}:
            raise ValueError(f"weight_bits must be 2 to 8, or 32 for floats, for every layer, got {wrong}.")
        return {name: value for name, value in bits.items() if value != FLOAT_BITS}

    @torch.no_grad()
    def _compress(self, graph: fx.GraphModule, names: list[str], ratios: dict[str, float]) -> None:
        """Step 1: from input to output, each layer as its predecessors left it."""
        self.kept_: dict[str, NDArray[np.int64]] = {}
        self.scales_: dict[str, NDArray[np.float64]] = {}
        self.errors_: dict[str, dict[str, float]] = {}
        for name in names:
            if name in self.plan_:
                self._compress_layer(graph, self.plan_[name], ratios[name])
            elif name in self.bits_:
                layer: Any = graph.get_submodule(name)
                layer.weight.copy_(quantize_weight(layer.weight, self.bits_[name])[0])

    def _compress_layer(self, graph: fx.GraphModule, chain: Chain, ratio: float) -> None:
        """Steps 2-7 for one producer: choose, round, solve, and rewrite its consumer."""
        dtype = getattr(torch, self.dtype)
        producer: Any = graph.get_submodule(chain.producer)
        norm = graph.get_submodule(chain.norm) if chain.norm else None
        weight = producer.weight.flatten(1).to(dtype)
        gain, offset = batch_norm_affine(norm, producer.bias, len(weight), dtype)
        importance = filter_importance(weight, self.criterion)
        importance[gain.abs() < CONSTANT_GAIN] = -1.0  # they cost nothing to remove
        kept = importance.argsort(descending=True, stable=True)[: _survivors(chain.producer, len(weight), ratio)]
        kept = kept.sort().values
        stored = producer.weight[kept]
        if chain.producer in self.bits_:
            stored = quantize_weight(stored, self.bits_[chain.producer])[0]
        layer = Layer(weight, gain, offset, kept, stored.flatten(1).to(dtype))
        scales = self.reconstruct(layer)
        self._note(chain.producer, layer, scales)
        shift = self._mean_shift(graph, chain, layer, scales, norm)
        rewrite_consumer(graph, chain, scales, shift)
        slice_producer(producer, norm, kept, stored)

    def _note(self, name: str, layer: Layer, scales: Tensor) -> None:
        around = torch.zeros_like(scales)
        around[layer.kept, torch.arange(len(layer.kept))] = 1.0
        terms = objective_terms(layer, scales, self.alpha1, self.alpha2)
        before = sum(objective_terms(layer, around, self.alpha1, self.alpha2).values())
        sums = scales[layer.dropped].abs().sum(1)
        largest = float(sums.max()) if len(sums) else 0.0
        self.errors_[name] = {**terms, "before": before, "after": sum(terms.values()), "largest_sum": largest}
        self.kept_[name] = layer.kept.numpy().astype(np.int64)
        self.scales_[name] = scales.numpy().astype(np.float64)

    def _mean_shift(
        self, graph: fx.GraphModule, chain: Chain, layer: Layer, scales: Tensor, norm: nn.Module | None
    ) -> Tensor:
        """Step 9: what the next pre-activation loses in mean (n_out,), and what removed constant channels gave it.

        The mean is known where batch normalisation promises it and the activation is a ReLU or none.
        """
        consumer: Any = graph.get_submodule(chain.consumer)
        taps = consumer.weight.to(layer.offset.dtype).reshape(len(consumer.weight), len(layer.offset), -1)
        constant = layer.constant.clone()
        constant[layer.kept] = False
        shift = taps[:, constant].sum(2) @ activate(graph, chain, layer.offset[constant])
        if self.mean_correction and norm is not None and chain.predictable and chain.activation != "other":
            scale_and_shift = batch_norm_output(norm, layer.offset.dtype)
            mean = expected_maximum(*scale_and_shift, chain.activation, chain.window)
            lost = mean - scales @ mean[layer.kept]
            lost[layer.constant] = 0.0
            shift = shift + taps @ taps.new_tensor(chain.coverage) @ lost
        return shift


UDFC = UnifiedDataFreeCompressor


def _survivors(name: str, n: int, ratio: float) -> int:
    kept = n - math.floor(ratio * n + 1e-9)
    if kept < 1:
        warnings.warn(
            f"A ratio of {ratio} would remove all {n} channels of {name!r}; one is kept.", UserWarning, stacklevel=4
        )
    return max(kept, 1)


def _size(graph: fx.GraphModule, network: nn.Module, example: Tensor, bits: dict[str, int]) -> tuple[int, int, int]:
    """Multiply-adds for one example, parameters, stored bytes."""
    propagate(graph, example)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return multiply_adds(graph), parameters, storage_bytes(network, bits)


def _check_model(model: nn.Module, example_input: Tensor) -> torch.device:
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model must be a torch nn.Module, got {type(model).__name__}. Give the trained network itself."
        )
    if not isinstance(example_input, Tensor):
        raise ValueError(
            f"example_input must be a tensor, got {type(example_input).__name__}. Give one batch as the model sees it."
        )
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} of the model contains NaN or infinite entries. Give a network that trained well.")
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _check_names(given: set[str], names: list[str]) -> None:
    if unknown := sorted(given - set(names)):
        raise ValueError(
            f"There is no convolution or linear layer named {', '.join(map(repr, unknown))}. "
            f"The layers are {', '.join(names)}."
        )


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from models.compress import udfc
from models.compress.quantised import pack_integers, quantize_weight, unpack_integers
from models.compress.udfc import UDFC, Layer, UnifiedDataFreeCompressor, batch_norm_affine, reconstruct_channels
from models.networks import build
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier
from models.networks.mlp import MLPEncoder
from models.networks.resnet import ResNetEncoder
from models.registry import get_method
from models.state import pack, unpack
from models.training import ClassifierTrainer, cosine, sgd


def lived_in(network: nn.Module, seed: int = 0) -> nn.Module:
    """Batch normalisation as after training: no two channels alike."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            n = module.num_features
            module.weight.data.copy_(torch.rand(n, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(n, generator=generator) * 0.3)
            module.running_mean.copy_(torch.randn(n, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(n, generator=generator) + 0.3)
    return network.eval()


def conv_network(width: int = 8, out: int = 5) -> nn.Sequential:
    torch.manual_seed(1)
    return lived_in(  # type: ignore[return-value]
        nn.Sequential(
            nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, out, 3, padding=1)
        )
    )


def random_layer(n: int = 9, n_kept: int = 5, fan_in: int = 7, bits: int | None = 3, seed: int = 0) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, fan_in, generator=generator, dtype=torch.float64)
    gain = torch.rand(n, generator=generator, dtype=torch.float64) + 0.4
    gain[::3] *= -1
    offset = torch.randn(n, generator=generator, dtype=torch.float64)
    kept = torch.randperm(n, generator=generator)[:n_kept].sort().values
    stored = weight[kept] if bits is None else quantize_weight(weight[kept], bits)[0]
    return Layer(weight, gain, offset, kept, stored)


def lost_channel_error(layer: Layer, j: int, s: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """l_p as the paper's assumption gives it, written out term by term."""
    combination = sum(s[i] * layer.gain[k] / layer.gain[j] * layer.quantised[i] for i, k in enumerate(layer.kept))
    constant = (layer.offset[j] - sum(s[i] * layer.offset[k] for i, k in enumerate(layer.kept))) / layer.gain[j]
    return ((layer.weight[j] - combination) ** 2).sum() + alpha1 * constant**2 + alpha2 * (s**2).sum()


def kept_channel_error(layer: Layer, i: int, s: Tensor, alpha1: float, alpha2: float) -> Tensor:
    k = layer.kept[i]
    constant = (layer.offset[k] - s * layer.offset[k]) / layer.gain[k]
    return ((layer.weight[k] - s * layer.quantised[i]) ** 2).sum() + alpha1 * constant**2 + alpha2 * (s - 1) ** 2


# ---- the equations ------------------------------------------------------------------------------------------


def test_batch_norm_by_hand_uses_the_root_of_the_variance():
    norm = nn.BatchNorm1d(1, eps=0.25)
    norm.weight.data.fill_(3.0), norm.bias.data.fill_(0.5)
    norm.running_mean.fill_(2.0), norm.running_var.fill_(2.0)  # sigma = sqrt(2.25) = 1.5
    gain, offset = batch_norm_affine(norm, torch.tensor([1.0]), 1, torch.float64)
    assert gain.item() == pytest.approx(2.0)
    assert offset.item() == pytest.approx(0.5 - 2.0 * (2.0 - 1.0))
    z = torch.tensor([[0.7]])
    assert norm.eval()(z + 1.0).item() == pytest.approx((gain * z + offset).item(), abs=1e-5)


@pytest.mark.parametrize(("alpha1", "alpha2"), [(0.01, 0.008), (1.0, 0.1), (0.0, 0.5)])
def test_closed_form_is_the_numeric_minimiser(alpha1, alpha2):
    layer = random_layer()
    scales = reconstruct_channels(layer, alpha1, alpha2)
    for j in layer.dropped.tolist():
        best = minimize(
            lambda s, j=j: float(lost_channel_error(layer, j, torch.from_numpy(s), alpha1, alpha2)),
            np.zeros(5),
            method="BFGS",
            options={"gtol": 1e-9},
        )
        np.testing.assert_allclose(scales[j].numpy(), best.x, atol=1e-6)
    for i, k in enumerate(layer.kept.tolist()):
        best = minimize(
            lambda s, i=i: float(kept_channel_error(layer, i, torch.from_numpy(s), alpha1, alpha2)), [0.0], tol=1e-12
        )
        assert scales[k, i].item() == pytest.approx(best.x[0], abs=1e-6)
        assert scales[k].count_nonzero() == 1


def test_gradient_vanishes_and_curvature_is_at_least_the_ridge():
    layer, alpha1, alpha2 = random_layer(fan_in=3), 0.01, 0.008  # fan_in < n_kept: only the ridge bounds it
    scales = reconstruct_channels(layer, alpha1, alpha2)
    for j in layer.dropped.tolist():
        s = scales[j].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(lost_channel_error(layer, j, s, alpha1, alpha2), s)
        assert gradient.abs().max() < 1e-10
        hessian = torch.autograd.functional.hessian(
            lambda s, j=j: lost_channel_error(layer, j, s, alpha1, alpha2), scales[j]
        )
        assert torch.linalg.eigvalsh(hessian).min() >= 2 * alpha2 * (1 - 1e-9)


def test_nonnegative_solution_is_the_constrained_minimiser():
    layer = random_layer()
    scales = reconstruct_channels(layer, 0.01, 0.008, nonnegative=True)
    assert (scales[layer.dropped] >= 0).all()
    for j in layer.dropped.tolist():
        best = minimize(
            lambda s, j=j: float(lost_channel_error(layer, j, torch.from_numpy(s), 0.01, 0.008)),
            np.full(5, 0.1),
            method="L-BFGS-B",
            bounds=[(0, None)] * 5,
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        np.testing.assert_allclose(scales[j].numpy(), best.x, atol=1e-5)


def test_objective_is_the_sum_over_channels():
    layer, alpha1, alpha2 = random_layer(), 0.3, 0.2
    scales = reconstruct_channels(layer, alpha1, alpha2)
    lost = sum(float(lost_channel_error(layer, j, scales[j], alpha1, alpha2)) for j in layer.dropped.tolist())
    kept = sum(
        float(kept_channel_error(layer, i, scales[k, i], alpha1, alpha2)) for i, k in enumerate(layer.kept.tolist())
    )
    assert sum(udfc.objective_terms(layer, scales, alpha1, alpha2).values()) == pytest.approx(lost + kept)


def test_huge_ridge_is_plain_pruning():
    layer = random_layer()
    scales = reconstruct_channels(layer, 0.01, 1e14)
    assert scales[layer.dropped].abs().max() < 1e-10
    assert torch.allclose(scales[layer.kept], torch.eye(5, dtype=torch.float64), atol=1e-10)


def test_expected_activation_is_the_mean_of_a_rectified_gaussian():
    gamma, beta = (
        torch.tensor([0.5, -1.5, 0.0], dtype=torch.float64),
        torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64),
    )
    draws = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampled = (beta + gamma * draws).relu().mean(0)
    assert torch.allclose(udfc.expected_activation(gamma, beta, "relu"), sampled, atol=4e-3)
    assert torch.equal(udfc.expected_activation(gamma, beta, "identity"), beta)


def test_criteria():
    weight = torch.tensor([[3.0, 0.0], [2.0, 2.0], [3.0, 0.1]])
    assert udfc.filter_importance(weight, "l2").argmin() == 1
    assert udfc.filter_importance(weight, "l1").argmin() == 0
    assert udfc.filter_importance(weight, "l2_gm").argmax() == 1


# ---- exact recoveries ---------------------------------------------------------------------------------------


def drop_only(monkeypatch: pytest.MonkeyPatch, channel: int) -> None:
    def importance(weight: Tensor, criterion: str) -> Tensor:
        values = torch.ones(len(weight), dtype=weight.dtype)
        values[channel] = 0.0
        return values

    monkeypatch.setattr(udfc, "filter_importance", importance)


EXACT = {"prune_ratio": 0.125, "weight_bits": 32, "alpha1": 1e-12, "alpha2": 1e-12, "skip_layers": ()}


@pytest.mark.parametrize("mean_correction", [True, False])
@pytest.mark.parametrize("dropped", [2, 6])
def test_one_of_two_equal_filters_costs_nothing(monkeypatch, dropped, mean_correction):
    network = conv_network()
    for tensor in (network[0].weight.data, network[1].weight.data, network[1].bias.data):
        tensor[6] = tensor[2]
    network[1].running_mean[6], network[1].running_var[6] = network[1].running_mean[2], network[1].running_var[2]
    drop_only(monkeypatch, dropped)
    x = torch.randn(4, 3, 9, 9)
    small = UDFC(**EXACT, mean_correction=mean_correction).fit_transform(network, x)
    assert small.get_submodule("0").weight.shape[0] == 7
    assert torch.allclose(small(x), network(x), atol=1e-5)
    with torch.no_grad():
        network[3].weight[:, dropped] = 0
    assert not torch.allclose(small(x), network(x), atol=1e-2), "plain pruning would have changed the output"


def test_positive_multiple_with_matching_shift_costs_nothing(monkeypatch):
    network = conv_network()
    conv, norm = network[0], network[1]
    factor, stretch = 0.6, 1.7  # W_6 = factor W_2, and its activation is stretch times that of channel 2
    gain, offset = batch_norm_affine(norm, None, 8, torch.float64)
    conv.weight.data[6] = factor * conv.weight.data[2]
    norm.weight.data[6] = stretch / factor * gain[2] * (norm.running_var[6] + norm.eps).sqrt()
    norm.bias.data[6] = stretch * offset[2] + stretch / factor * gain[2] * norm.running_mean[6]
    drop_only(monkeypatch, 6)
    x = torch.randn(4, 3, 9, 9)
    method = UDFC(**EXACT, mean_correction=False).fit(network, x)
    assert method.scales_["0"][6].max() == pytest.approx(stretch, rel=1e-4)
    assert torch.allclose(method.transform()(x), network(x), atol=1e-5)


@pytest.mark.parametrize("true_statistics", [False, True])
def test_identity_activation_is_recovered_exactly(true_statistics):
    torch.manual_seed(0)
    network = lived_in(nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)))
    x = torch.randn(200, 4)
    if true_statistics:  # then the corrected mean is the one the combination has anyway
        network[1].running_mean.copy_(network[0](x).detach().mean(0))
    method = UDFC(0.4, 32, alpha1=1e-6, alpha2=1e-12, skip_layers=(), mean_correction=true_statistics).fit(network, x)
    assert method.kept_["0"].shape == (6,)
    assert method.plan_["0"].activation == "identity"
    np.testing.assert_allclose(method.transform()(x).detach(), network(x).detach(), atol=1e-4)
    assert all(method.errors_["0"][term] < 1e-6 for term in ("weight", "bn"))
    plain = UDFC(0.4, 32, alpha2=1e14, mean_correction=False, skip_layers=()).fit_transform(network, x)
    assert not torch.allclose(plain(x), network(x), atol=0.1)


def test_huge_ridge_only_slices_the_weights():
    network = conv_network()
    x = torch.randn(2, 3, 9, 9)
    method = UDFC(0.5, 32, alpha2=1e14, mean_correction=False, skip_layers=()).fit(network, x)
    state, kept = method.transform().state_dict(), method.kept_["0"]
    assert torch.equal(state["0.weight"], network[0].weight[kept])
    assert torch.allclose(state["3.weight"], network[3].weight[:, kept], atol=1e-10)
    norms = network[0].weight.flatten(1).norm(dim=1)
    assert set(kept.tolist()) == set(norms.topk(4).indices.tolist())


def test_nothing_asked_is_nothing_changed():
    network = lived_in(SplitClassifier(ConvEncoder((6, 8), 3), 4, 12))
    x = torch.randn(5, 3, 8, 8)
    method = UDFC(prune_ratio=0, weight_bits=32).fit(network, x)
    assert torch.equal(method.transform()(x), network(x))
    assert method.bytes_["before"] == method.bytes_["after"]
    assert method.flops_["before"] == method.flops_["after"]


def test_bytes_are_those_of_the_packed_file():
    network = lived_in(SplitClassifier(ConvEncoder((8, 16), 3), 4, 12))
    method = UDFC().fit(network, torch.randn(2, 3, 8, 8))
    small = method.transform()
    bits = {
        "encoder.blocks.0.0.0.weight": 8,
        "encoder.blocks.1.0.0.weight": 6,
        "embedding.0.weight": 6,
        "head.weight": 8,
    }
    expected = 0
    for name, tensor in small.state_dict().items():
        expected += math.ceil(tensor.numel() * bits.get(name, 8 * tensor.element_size()) / 8)
        expected += 4 * len(tensor) if name in bits else 0  # the step of each channel
    assert method.bytes_["after"] == expected
    tensors, config = pack_integers(small, method.bits_)
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == expected
    restored = build(json.loads(json.dumps(small.architecture)))
    restored.load_state_dict(unpack_integers(tensors, json.loads(json.dumps(config))))
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(restored.eval()(x), small(x))


# ---- the correction of the mean -----------------------------------------------------------------------------


@pytest.mark.parametrize("norm_after", [True, False])
def test_mean_of_the_next_pre_activation_is_kept(norm_after):
    torch.manual_seed(0)
    first = nn.Linear(16, 16)
    nn.init.orthogonal_(first.weight)
    tail = [nn.Linear(16, 4, bias=False), nn.BatchNorm1d(4)] if norm_after else [nn.Linear(16, 4)]
    network = nn.Sequential(first, nn.BatchNorm1d(16), nn.ReLU(), *tail).eval()
    network[1].running_mean.copy_(first.bias.detach())  # exact for standard normal input, with variance 1
    network[1].bias.data.normal_()
    x = torch.randn(60_000, 16)
    gap = {}
    for correction in (True, False):
        small = UDFC(0.5, 32, mean_correction=correction, skip_layers=()).fit_transform(network, x[:2])
        with torch.no_grad():
            gap[correction] = (small(x) - network(x)).mean(0).abs().max()
    assert gap[True] < 0.02
    assert gap[False] > 0.1


def test_expected_maximum_is_that_of_correlated_gaussians():
    gamma, beta = torch.tensor([0.5, -1.5], dtype=torch.float64), torch.tensor([0.3, -1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(200_000, 1, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(200_000, 4, 1, generator=generator, dtype=torch.float64)
    sampled = (beta + gamma * (shared + own) / math.sqrt(2)).relu().amax(1).mean(0)
    assert torch.allclose(udfc.expected_maximum(gamma, beta, "relu", 4), sampled, atol=8e-3)
    single = udfc.expected_activation(gamma, beta, "relu")
    assert torch.equal(udfc.expected_maximum(gamma, beta, "relu", 1), single)


@pytest.mark.parametrize("pooled", [False, True])
def test_mean_is_kept_over_the_whole_map_padding_and_pooling_included(pooled):
    torch.manual_seed(0)
    first = nn.Conv2d(8, 12, 1, bias=False)
    pool = [nn.MaxPool2d(2)] if pooled else []
    network = nn.Sequential(
        first, nn.BatchNorm2d(12), nn.ReLU(), *pool, nn.Conv2d(12, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
    ).eval()
    network[1].running_var.copy_(first.weight.detach().flatten(1).square().sum(1))
    network[1].bias.data.normal_()
    own = torch.randn(3000, 8, 4, 4)
    blocks = F.interpolate(torch.randn(3000, 8, 2, 2), scale_factor=2)
    x = (own + blocks) / math.sqrt(2) if pooled else own  # correlation 1/2 within each window
    gap = {}
    for correction in (True, False):
        small = UDFC(0.5, 32, mean_correction=correction, skip_layers=()).fit_transform(network, x[:2])
        with torch.no_grad():
            gap[correction] = (small(x) - network(x)).mean((0, 2, 3)).abs().max()
    assert gap[True] < 0.02
    assert gap[False] > 0.1


@pytest.mark.parametrize(
    ("between", "window", "predictable"),
    [
        ([nn.ReLU(), nn.MaxPool2d(2)], 4, True),
        ([nn.MaxPool2d(3, stride=2), nn.ReLU()], 9, True),
        ([nn.ReLU(), nn.AdaptiveMaxPool2d(5)], 4, True),
        ([nn.ReLU(), nn.AvgPool2d(2)], 1, True),
        ([nn.AvgPool2d(2), nn.ReLU()], 1, False),
        ([nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)], 4, False),
    ],
)
def test_what_stands_between_decides_whether_the_mean_is_known(between, window, predictable):
    torch.manual_seed(0)
    network = lived_in(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *between, nn.Conv2d(8, 4, 1)))
    method = UDFC(0.5, 32, skip_layers=()).fit(network, torch.randn(1, 3, 12, 12))
    assert (method.plan_["0"].window, method.plan_["0"].predictable) == (window, predictable)
    bias = method.transform().get_submodule(method.plan_["0"].consumer).bias
    assert torch.equal(bias, network[-1].bias) is not predictable


# ---- graphs -------------------------------------------------------------------------------------------------


def simulated(network: nn.Sequential, method: UDFC, x: Tensor) -> Tensor:
    """The original network with its first layer's activations replaced by S times the kept ones."""
    a = network[:3](x)
    scales = torch.from_numpy(method.scales_["0"]).float()
    kept = a[:, torch.from_numpy(method.kept_["0"])]
    return network[3:](torch.einsum("ck,bk...->bc...", scales, kept))


@pytest.mark.parametrize("tail", ["conv", "flatten", "average", "maxpool"])
def test_consumer_reads_the_combination(tail):
    torch.manual_seed(0)
    tails = {
        "conv": [nn.Conv2d(8, 5, 3, padding=1)],
        "flatten": [nn.Flatten(), nn.Linear(8 * 36, 5)],
        "average": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)],
        "maxpool": [nn.Conv2d(8, 5, 1)],
    }
    middle = nn.ReLU()
    network = lived_in(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), middle, *tails[tail]))
    x = torch.randn(4, 3, 8, 8)
    method = UDFC(0.4, 32, mean_correction=False, skip_layers=()).fit(network, x)
    assert method.transform().get_submodule("0").weight.shape[0] == 5
    assert torch.allclose(method.transform()(x), simulated(network, method, x), atol=1e-5)


def test_layer_without_batch_norm_is_the_unit_one():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Identity(), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    method = UDFC(0.3, 32, skip_layers=()).fit(network, x)
    assert method.plan_["0"].norm is None
    with_norm = copy.deepcopy(network)
    with_norm[1] = nn.BatchNorm2d(8, eps=0.0).eval()
    other = UDFC(0.3, 32, skip_layers=(), mean_correction=False).fit(with_norm, x)
    np.testing.assert_allclose(method.scales_["0"], other.scales_["0"], atol=1e-6)
    assert torch.allclose(method.transform()(x), simulated(network, method, x), atol=1e-5)


def test_constant_channel_moves_into_the_next_bias():
    network = conv_network()
    network[3].padding = (0, 0)
    network[1].weight.data[4] = 0.0
    network[1].bias.data[4] = 1.3
    x = torch.randn(2, 3, 9, 9)
    method = UDFC(0.125, 32, mean_correction=False, skip_layers=()).fit(network, x)
    assert 4 not in method.kept_["0"]
    assert not method.scales_["0"][4].any()
    assert torch.allclose(method.transform()(x), network(x), atol=1e-5)


class Tangled(nn.Module):
    """A grouped consumer, a shared layer, a concatenation and a plain chain."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.depthwise, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, 1)
        self.shared, self.left, self.right = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)
        self.plain, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(F.relu(self.depthwise(F.relu(self.a(x)))))
        x = self.shared(F.relu(self.shared(x)))
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        return self.last(F.relu(self.plain(x)))


def test_what_cannot_be_pruned_is_listed_with_its_reason():
    torch.manual_seed(0)
    network, x = Tangled().eval(), torch.randn(2, 3, 9, 9)
    method = UDFC(0.5, 32, skip_layers=()).fit(network, x)
    assert set(method.plan_) == {"plain"}
    reasons = {
        "a": "consumer depthwise is a grouped",
        "depthwise": "grouped convolution",
        "c": "consumer shared is used more than once",
        "shared": "used more than once",
        "left": "operation cat",
        "last": "network's output",
    }
    for layer, reason in reasons.items():
        assert reason in method.skipped_[layer]
    assert method.transform()(x).shape == network(x).shape


@pytest.mark.parametrize("pre_activation", [False, True])
def test_residual_networks_lose_inner_channels_only(pre_activation):
    torch.manual_seed(0)
    encoder = ResNetEncoder((2, 1), (8, 16), pre_activation=pre_activation)
    network = lived_in(SplitClassifier(encoder, 4, None))
    x = torch.randn(2, 3, 16, 16)
    method = UDFC(0.25, 32, mean_correction=False).fit(network, x)
    blocks = ["encoder.blocks.0.0", "encoder.blocks.0.1", "encoder.blocks.1.0"]
    assert list(method.plan_) == [f"{block}.conv1" for block in blocks]
    assert "addition" in method.skipped_["encoder.blocks.0.1.conv2"]
    small = method.transform()
    assert small.architecture["encoder"]["inner_widths"] == [6, 6, 12]
    assert torch.equal(build(small.architecture).train(False).eval()(x).isfinite().all(), torch.tensor(True))
    assert method.flops_["after"] < method.flops_["before"]


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (ConvEncoder((8, 12), 3), {"channels": [8, 9]}),
        (ConvEncoder((8, 12), 3, units=2), {"channels": [[8, 6], [9, 9]]}),
        (MLPEncoder(192, (16, 8)), {"widths": [16, 6]}),
    ],
)
@pytest.mark.parametrize("normalised_head", [True, False])
def test_shared_networks_come_back_as_their_own_class(encoder, expected, normalised_head):
    torch.manual_seed(0)
    network = lived_in(SplitClassifier(copy.deepcopy(encoder), 4, 16, normalised_head))
    x = torch.randn(2, 3, 8, 8)
    before = network(x)
    small = UDFC(0.25, 32).fit_transform(network, x)
    assert torch.equal(network(x), before), "the model given must stay whole, weight-normalised head included"
    assert type(small) is SplitClassifier
    assert expected.items() <= small.architecture["encoder"].items()
    assert small.architecture["embedding_dim"] == small.embedding_dim == 12
    assert not small.architecture.get("normalised_head", False)
    again = build(json.loads(json.dumps(small.architecture)))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(x), small(x))


def test_other_modules_come_back_as_a_graph():
    network, x = conv_network(), torch.randn(2, 3, 9, 9)
    small = UDFC(skip_layers=()).fit_transform(network, x)
    assert isinstance(small, torch.fx.GraphModule)
    assert torch.allclose(torch.export.export(small, (x,)).module()(x), small(x), atol=1e-6)


# ---- behaviour of the class ---------------------------------------------------------------------------------


def test_registered():
    assert get_method("udfc").cls is UnifiedDataFreeCompressor is UDFC
    assert clone(UDFC(prune_ratio=0.1)).get_params()["prune_ratio"] == 0.1


def test_model_generator_and_mode_are_untouched_and_fits_agree():
    network = lived_in(SplitClassifier(ConvEncoder((6, 8), 3), 4, 12, normalised_head=True)).train()
    x = torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    method = UDFC()
    first = method.fit_transform(network, x)
    assert torch.equal(torch.rand(3), expected)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    second = method.fit(network, x).transform(network)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in method.transform().state_dict().items())


def test_everything_fitted_is_packed():
    network = lived_in(SplitClassifier(ConvEncoder((6, 8), 3), 4, 12))
    method = UDFC().fit(network, torch.randn(2, 3, 8, 8))
    tensors, config = pack(method)
    assert config["left_out"] == {}
    again = unpack(tensors, json.loads(json.dumps(config)))
    assert again.plan_ == method.plan_
    assert again.bits_ == method.bits_


def test_dicts_choose_layers():
    network, x = conv_network(), torch.randn(2, 3, 9, 9)
    method = UDFC(prune_ratio={"0": 0.5}, weight_bits={"3": 4}, skip_layers=()).fit(network, x)
    assert len(method.kept_["0"]) == 4
    assert method.bits_ == {"3": 4}
    skipped = UDFC(prune_ratio=0.5).fit(network, x)
    assert len(skipped.kept_["0"]) == 8
    assert "skip_layers" in skipped.skipped_["0"]
    assert skipped.bits_ == {"0": 8, "3": 8}


def test_ratio_that_leaves_nothing_keeps_one_channel_and_warns():
    network, x = conv_network(), torch.randn(2, 3, 9, 9)
    with pytest.warns(UserWarning, match="would remove all 8 channels of '0'"):
        method = UDFC(prune_ratio=1 - 1e-12, skip_layers=()).fit(network, x)
    assert len(method.kept_["0"]) == 1
    assert method.transform()(x).isfinite().all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prune_ratio": 1.0}, "prune_ratio"),
        ({"prune_ratio": -0.1}, "prune_ratio"),
        ({"prune_ratio": {"0": 1.5}}, "prune_ratio must lie in"),
        ({"prune_ratio": {"nowhere": 0.5}}, "no convolution or linear layer named 'nowhere'"),
        ({"skip_layers": ("head",)}, "no convolution or linear layer named 'head'"),
        ({"weight_bits": 9}, "weight_bits"),
        ({"weight_bits": {"0": 16}}, "weight_bits must be 2 to 8"),
        ({"alpha2": 0.0}, "alpha2"),
        ({"criterion": "random"}, "criterion"),
    ],
)
def test_wrong_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        UDFC(**parameters).fit(conv_network(), torch.randn(2, 3, 9, 9))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) if x.sum() > 0 else self.b(x)


def test_unsuitable_models_are_refused():
    x = torch.randn(2, 3, 9, 9)
    with pytest.raises(
        ValueError, match=r"no convolution or linear layer that feeds another one alone \(0: its output"
    ):
        UDFC().fit(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), x)
    with pytest.raises(ValueError, match="cannot be traced"):
        UDFC().fit(Branching(), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"does not take an input shaped \(2, 5, 9, 9\)"):
        UDFC().fit(conv_network(), torch.randn(2, 5, 9, 9))
    with pytest.raises(ValueError, match=r"model must be a torch nn\.Module"):
        UDFC().fit("network", x)
    with pytest.raises(ValueError, match="example_input must be a tensor"):
        UDFC().fit(conv_network(), (2, 3, 9, 9))
    broken = conv_network()
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight of the model contains NaN"):
        UDFC().fit(broken, x)


def test_transform_wants_the_fitted_model():
    network, x = conv_network(), torch.randn(2, 3, 9, 9)
    with pytest.raises(NotFittedError, match="not fitted"):
        UDFC().transform()
    method = UDFC().fit(network, x)
    network[0].weight.data[0] += 1.0
    with pytest.raises(ValueError, match="other weights than fit saw"):
        method.transform(network)


# ---- real digits --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    X = torch.tensor(bunch.images / 16, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(bunch.target)
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    ClassifierTrainer(
        network, epochs=5, batch_size=64, optimizer=sgd(0.05, weight_decay=5e-4), schedule=cosine, seed=0
    ).fit(X[:1200], y[:1200])
    return network, X[1200:], y[1200:]


def accuracy(network: nn.Module, X: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((network(X).argmax(1) == y).float().mean())


def test_digits_survive_pruning_that_kills_the_plain_network(digits):
    network, X, y = digits
    shared = {"prune_ratio": 0.3, "weight_bits": 32, "skip_layers": ()}
    ours = accuracy(UDFC(**shared).fit_transform(network, X[:1]), X, y)
    plain = accuracy(UDFC(**shared, alpha2=1e14, mean_correction=False).fit_transform(network, X[:1]), X, y)
    assert accuracy(network, X, y) - ours < 0.06
    assert ours > plain + 0.2


def test_digits_survive_four_bits_and_a_third_of_the_channels(digits):
    network, X, y = digits
    method = UDFC(prune_ratio=0.2, weight_bits=4).fit(network, X[:1])
    assert accuracy(network, X, y) - accuracy(method.transform(), X, y) < 0.05
    assert method.bytes_["after"] < method.bytes_["before"] / 8
    assert all(error["after"] <= error["before"] for error in method.errors_.values())

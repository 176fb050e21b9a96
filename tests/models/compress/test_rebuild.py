import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from models.compress.rebuild import folded, rebuilt, resized_architecture
from models.networks import build
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier
from models.networks.resnet import ResNetEncoder


def test_folding_a_copy_leaves_the_original_working():
    torch.manual_seed(0)
    network = SplitClassifier(ConvEncoder((4, 6)), 3, 8, normalised_head=True).eval()
    x = torch.rand(5, 1, 8, 8)
    before = network(x)
    plain = folded(network)
    assert torch.equal(network(x), before)
    assert torch.allclose(plain(x), before, atol=1e-6)
    assert type(plain.head) is nn.Linear
    assert "head.weight" in plain.state_dict()
    assert plain.architecture["normalised_head"] is False
    again = copy.deepcopy(network)
    again.fold_head()
    assert torch.allclose(again(x), network(x), atol=1e-6)


def test_any_weight_normalised_layer_is_folded():
    torch.manual_seed(0)
    network = nn.Sequential(
        weight_norm(nn.Conv2d(2, 4, 3, padding=1, bias=False)), nn.ReLU(), weight_norm(nn.Conv2d(4, 2, 1))
    )
    x = torch.rand(3, 2, 5, 5)
    plain = folded(network)
    assert set(plain.state_dict()) == {"0.weight", "2.weight", "2.bias"}
    assert torch.allclose(plain(x), network(x), atol=1e-6)
    assert plain[0].padding == (1, 1)


@pytest.mark.parametrize(
    "network",
    [
        ConvEncoder((4, 6), 3, units=2),
        ConvEncoder([[4, 5], [6]], 3),
        ResNetEncoder((2, 1), (4, 8), inner_widths=(3, 4, 5)),
    ],
)
def test_own_state_gives_the_same_network_back(network):
    x = torch.rand(2, 3, 8, 8)
    again = rebuilt(network, network.state_dict())
    assert torch.equal(again(x), network.eval()(x))
    described = build(resized_architecture(network, network.state_dict()))
    described.load_state_dict(network.state_dict())


def test_what_the_class_cannot_hold_is_none():
    network = ConvEncoder((4, 6))
    assert rebuilt(nn.Linear(2, 2), nn.Linear(2, 2).state_dict()) is None
    assert rebuilt(network, {**network.state_dict(), "blocks.0.0.0.bias": torch.zeros(4)}) is None
    assert rebuilt(network, {"other": torch.zeros(4)}) is None

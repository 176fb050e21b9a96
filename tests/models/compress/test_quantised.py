import math

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from models.compress.quantised import grid_step, pack_integers, quantize_weight, storage_bytes, unpack_integers


def rounded(network: nn.Module, bits: int) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.data.copy_(quantize_weight(layer.weight.data, bits)[0])
    return network


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 36, 5))


def test_rounds_by_hand():
    weight = torch.tensor([[3.0, -1.2, 0.4, 1.6], [0.0, 0.0, 0.0, 0.0]])
    quantised, step = quantize_weight(weight, 3)  # codes -3 .. 3
    assert step.tolist() == [1.0, 0.0]
    assert quantised.tolist() == [[3.0, -1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_error_is_at_most_half_a_step_and_rounding_again_changes_nothing(bits):
    weight = torch.randn(20, 3, 3, 3, generator=torch.Generator().manual_seed(bits))
    quantised, step = quantize_weight(weight, bits)
    assert ((weight - quantised).abs().flatten(1) <= step[:, None] / 2 * (1 + 1e-5)).all()
    assert (quantised.flatten(1) / step[:, None]).round().unique().numel() <= 2**bits - 1
    assert torch.allclose(quantize_weight(quantised, bits)[0], quantised, rtol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_gives_back_every_bit(bits):
    network = rounded(small_network(), bits)
    tensors, config = pack_integers(network, bits)
    restored = unpack_integers(load(save(tensors)), config)
    state = network.state_dict()
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)


@pytest.mark.parametrize("seed", range(5))
def test_step_is_found_whatever_the_rounding_of_floats(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2000, 12, generator=generator) * torch.rand(2000, 1, generator=generator).mul(20).sub(10).exp()
    for bits in (3, 4, 6, 7, 8):
        quantised, _ = quantize_weight(weight, bits)
        step = grid_step(quantised, bits)
        assert torch.equal((quantised / step[:, None]).round() * step[:, None], quantised)


@pytest.mark.parametrize(("bits", "per_weight"), [(8, 1.0), (6, 0.75), (4, 0.5), (3, 0.375), (2, 0.25)])
def test_file_is_really_smaller(bits, per_weight):
    network = rounded(nn.Sequential(nn.Linear(256, 128, bias=False)), bits)
    tensors, _ = pack_integers(network, bits)
    expected = 256 * 128 * per_weight + 128 * 4
    assert sum(t.numel() * t.element_size() for t in tensors.values()) == expected
    assert len(save(tensors)) < expected + 400  # the header of the file
    assert len(save(network.state_dict())) > 256 * 128 * 4


def test_storage_bytes_is_the_sum_over_tensors():
    network = small_network()
    n_conv, n_linear = 7 * 27, 5 * 252
    floats = 7 + 5 + 4 * 7  # biases, batch normalisation
    expected = math.ceil(n_conv * 3 / 8) + 7 * 4 + math.ceil(n_linear * 5 / 8) + 5 * 4 + floats * 4 + 8
    assert storage_bytes(network, {"0": 3, "4": 5}) == expected
    assert storage_bytes(network, {}) == (n_conv + n_linear + floats) * 4 + 8


def test_layers_may_have_their_own_bits():
    network = small_network()
    network[0].weight.data.copy_(quantize_weight(network[0].weight.data, 3)[0])
    tensors, config = pack_integers(network, {"0": 3, "4": 32})
    assert "0.weight.codes" in tensors
    assert "4.weight" in tensors
    assert config["weights"] == {"0.weight": {"bits": 3, "shape": [7, 3, 3, 3]}}
    assert torch.equal(unpack_integers(tensors, config)["0.weight"], network[0].weight)


def test_weights_off_the_grid_are_refused():
    with pytest.raises(ValueError, match="7 of 7 channels are not on a symmetric 4-bit grid"):
        pack_integers(small_network(), {"0": 4})


def test_unknown_layer_is_refused():
    with pytest.raises(ValueError, match=r"no plain weight 'conv\.weight'"):
        pack_integers(small_network(), {"conv": 4})


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be from 2 to 8"):
        quantize_weight(torch.ones(2, 2), bits)
    with pytest.raises(ValueError, match="bits must be from 2 to 8"):
        pack_integers(small_network(), bits)


def test_mismatched_pieces_are_refused():
    tensors, config = pack_integers(rounded(small_network(), 4), 4)
    with pytest.raises(ValueError, match="packed as 'zip'"):
        unpack_integers(tensors, {**config, "format": "zip"})
    broken = {**tensors, "0.weight.codes": tensors["0.weight.codes"][:-1]}
    with pytest.raises(ValueError, match=r"'0\.weight' is missing or its size does not match 4 bits"):
        unpack_integers(broken, config)

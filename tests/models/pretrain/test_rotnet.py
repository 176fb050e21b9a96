"""RotNet: exact rotations, balanced batches, no leak of the angle, and features of real digits."""

import logging
import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import nn

from models.networks.convnet import ConvEncoder
from models.networks.nin import AlexNetEncoder, NetworkInNetwork
from models.pretrain.rotnet import RotationNetwork, RotNet, channel_moments, rotated, rotated_copies, rotation_loss
from models.state import pack, unpack
from models.training import Hook, hooks, table_rate

# digits that look the same upside down or sideways are left out: 0, 1, 8 and the pair 6, 9
DIGITS = load_digits()
UPRIGHT = np.isin(DIGITS.target, [2, 3, 4, 5, 7])
X = (DIGITS.images[UPRIGHT] / 16).astype(np.float32)
SMALL = {"epochs": 2, "batch_size": 32, "lr": 0.05, "crop_padding": 0, "horizontal_flip": False}


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvEncoder((8, 16, 16))


@pytest.fixture(scope="module")
def fitted(encoder):
    return RotNet(encoder, random_state=0, **{**SMALL, "epochs": 8}).fit(X[:600])


# The equations


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_is_that_of_numpy_and_undone_bit_for_bit(turns):
    images = torch.rand(3, 2, 7, 7)
    turned = rotated(images, turns)
    np.testing.assert_array_equal(turned.numpy(), np.rot90(images.numpy(), turns, axes=(2, 3)))
    assert torch.equal(rotated(turned, (4 - turns) % 4), images)


def test_a_quarter_turn_is_counter_clockwise():
    corner = torch.zeros(1, 1, 3, 3)
    corner[0, 0, 0, 2] = 1  # top right goes to the top left
    assert rotated(corner, 1)[0, 0, 0, 0] == 1


def test_a_batch_holds_all_copies_with_balanced_labels():
    images = torch.rand(5, 1, 4, 4)
    copies, labels = rotated_copies(images, [0, 1, 2, 3])
    assert torch.bincount(labels).tolist() == [5, 5, 5, 5]
    for row, label in enumerate(labels.tolist()):
        assert torch.equal(copies[row], rotated(images, label)[row % 5])
    subset, labels = rotated_copies(images, [0, 3])
    assert torch.equal(subset[5:], rotated(images, 3))
    assert labels.tolist() == [0] * 5 + [1] * 5


def test_the_loss_is_the_mean_over_images_of_the_mean_over_rotations():
    logits, labels = torch.randn(8, 4), torch.arange(4).repeat_interleave(2)
    by_hand = 0.0
    for i in range(2):
        by_hand -= sum(logits[2 * k + i].log_softmax(0)[k].item() for k in range(4)) / 4 / 2
    assert float(rotation_loss(logits, labels)) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(("angles", "expected"), [((0, 90, 180, 270), math.log(4)), ((0, 180), math.log(2))])
@pytest.mark.parametrize("architecture", ["nin", "module"])
def test_the_loss_starts_near_chance(angles, expected, architecture, encoder):
    given = encoder if architecture == "module" else "nin"
    settings = {**SMALL, "epochs": 1, "lr": 1e-9, "rotations": angles, "width": 48, "num_blocks": 3}
    method = RotNet(given, feature_layer="conv1", random_state=0, **settings).fit(X[:64])
    assert method.loss_curve_[0] == pytest.approx(expected, abs=0.12)


def test_moments_are_those_of_each_channel():
    images = torch.rand(6, 3, 5, 5)
    images[:, 2] = 0.5
    mean, std = channel_moments(images)
    np.testing.assert_allclose(mean, images.numpy().mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(std[:2], images.numpy().std(axis=(0, 2, 3))[:2], rtol=1e-5)
    assert std[2] == 1


def test_the_rate_of_an_epoch_is_the_first_entry_with_a_bound_above_it():
    table = ((60, 0.1), (120, 0.02), (160, 0.004), (200, 0.0008))
    epochs = [0, 59, 60, 119, 120, 159, 160, 199, 200, 500]
    assert [table_rate(table, epoch) for epoch in epochs] == [0.1] * 2 + [0.02] * 2 + [0.004] * 2 + [0.0008] * 4


# The networks


def test_the_published_network_has_the_published_maps():
    network = NetworkInNetwork(num_blocks=4).eval()
    shapes = [tuple(found.shape[1:]) for found in network.stages(torch.zeros(1, 3, 32, 32))]
    assert shapes == [(96, 16, 16), (192, 8, 8), (192, 8, 8), (192, 8, 8)]
    pooled = NetworkInNetwork(num_blocks=4, pool_third=True).eval().stages(torch.zeros(1, 3, 32, 32))
    assert [found.shape[-1] for found in pooled] == [16, 8, 4, 4]
    units = [layer for layer in network.blocks[0].modules() if isinstance(layer, nn.Conv2d)]
    assert [(unit.out_channels, unit.kernel_size[0]) for unit in units] == [(192, 5), (160, 1), (96, 1)]
    assert all(unit.bias is None for unit in units)
    assert float(units[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / (25 * 192)), rel=0.05)
    assert NetworkInNetwork(2, width=24).out_dim == 24


def test_alexnet_has_five_maps_and_a_wide_output():
    network = AlexNetEncoder().eval()
    with torch.no_grad():
        maps = network.stages(torch.zeros(1, 3, 224, 224))
        assert [found.shape[1] for found in maps] == [64, 192, 384, 256, 256]
        assert maps[-1].shape[-2:] == (6, 6)
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 4096)
        logits = RotationNetwork(network, 4096, 4).eval()(torch.zeros(1, 3, 224, 224))
    assert logits.shape == (1, 4)


# What it learns


def test_rotations_of_unseen_digits_are_told_and_accuracy_rises(fitted):
    assert fitted.score(X[600:]) > 0.75
    assert fitted.rotation_accuracy_curve_[-1] > fitted.rotation_accuracy_curve_[0] + 0.1


def test_predicting_a_turned_image_equals_the_batch_path(fitted):
    images = torch.from_numpy(X[600:640])
    told = [np.mean(fitted.predict_rotation(np.rot90(images.numpy(), k, axes=(1, 2))) == k) for k in range(4)]
    assert fitted.score(images) == pytest.approx(np.mean(told), abs=1e-6)
    proba = fitted.predict_rotation_proba(np.rot90(images.numpy(), 1, axes=(1, 2)).copy())
    inside = fitted._logits(rotated(fitted._prepared(images), 1)).softmax(dim=1).numpy()
    np.testing.assert_array_equal(proba, inside)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)


def test_images_that_look_the_same_at_every_angle_leave_nothing_to_tell(encoder, caplog):
    turned = np.stack([np.rot90(X, k, axes=(1, 2)) for k in range(4)])
    symmetric = turned.mean(axis=0)
    with caplog.at_level(logging.WARNING):
        method = RotNet(encoder, random_state=0, **{**SMALL, "epochs": 4}).fit(symmetric[:600])
        accuracy = method.score(symmetric[600:])
    assert accuracy == pytest.approx(0.25, abs=0.03)
    assert "the pictures have no upright position" in caplog.text


def test_only_two_angles_may_be_told_on_oblong_images(encoder):
    method = RotNet(encoder, rotations=(0, 180), random_state=0, **SMALL).fit(X[:64, :6])
    assert method.predict_rotation_proba(X[:3, :6]).shape == (3, 2)
    np.testing.assert_array_equal(method.classes_, [0, 180])


# Features


def test_layers_shapes_and_names(fitted):
    assert fitted.layers_ == ["conv1", "conv2", "conv3", "features"]
    assert fitted.feature_map(X[:3], "conv1").shape == (3, 8, 4, 4)
    assert fitted.feature_map(X[:3]).shape == (3, 16, 2, 2)
    assert fitted.transform(X[:3]).shape == (3, 64)
    assert fitted.transform(X[:3], layer="features").shape == (3, 16)
    assert len(fitted.get_feature_names_out()) == 64
    pooled = clone(fitted).set_params(pool=1, epochs=1).fit(X[:64])
    np.testing.assert_allclose(
        pooled.transform(X[:3]), pooled.feature_map(X[:3]).mean(axis=(2, 3)), rtol=1e-5, atol=1e-6
    )
    assert len(pooled.get_feature_names_out()) == 16


def test_features_do_not_depend_on_the_company(fitted):
    np.testing.assert_allclose(fitted.transform(X[:40])[:5], fitted.transform(X[:5]), atol=1e-5)
    assert not fitted.encoder_.training


def test_the_encoder_left_behind_is_the_trained_one(encoder, fitted):
    mean, std = float(fitted.mean_[0]), float(fitted.std_[0])
    with torch.no_grad():
        direct = fitted.encoder_(torch.from_numpy((X[:4, None] - mean) / std))
    np.testing.assert_allclose(direct, fitted.transform(X[:4], layer="features"), atol=1e-5)
    moved = [not torch.equal(a, b) for a, b in zip(encoder.parameters(), fitted.encoder_.parameters(), strict=True)]
    assert all(moved)
    as_they_are = RotNet(encoder, mean=0, std=1, random_state=0, **SMALL).fit(X[:64])
    with torch.no_grad():
        direct = as_they_are.encoder_(torch.from_numpy(X[:4, None]))
    np.testing.assert_allclose(direct, as_they_are.transform(X[:4], layer="features"), atol=1e-5)


def test_an_encoder_without_stages_has_one_layer():
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    method = RotNet(plain, feature_layer="features", random_state=0, **SMALL).fit(X[:64])
    assert method.layers_ == ["features"]
    assert method.transform(X[:3]).shape == (3, 4 * 6 * 6)


# Training


def test_equal_seeds_give_equal_fits_and_the_given_module_stays(encoder):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    first = RotNet(encoder, random_state=3, **{**SMALL, "crop_padding": 1}).fit(X[:100])
    second = clone(first).fit(X[:100])
    assert torch.equal(state, torch.get_rng_state())
    assert first.loss_curve_ == second.loss_curve_
    np.testing.assert_array_equal(first.transform(X[:9]), second.transform(X[:9]))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_epochs_by_partial_fit_equal_those_of_fit(encoder):
    whole = RotNet(encoder, random_state=0, **{**SMALL, "epochs": 3}).fit(X[:96])
    chunks = RotNet(encoder, random_state=0, **{**SMALL, "epochs": 3})
    for _ in range(3):
        chunks.partial_fit(X[:96])
    assert chunks.loss_curve_ == pytest.approx(whole.loss_curve_, abs=1e-5)
    np.testing.assert_allclose(chunks.transform(X[:5]), whole.transform(X[:5]), atol=1e-4)
    assert len(chunks.partial_fit(X[96:150]).loss_curve_) == 4


def test_it_survives_being_described_rebuilt_and_trained_on(encoder):
    method = RotNet(encoder, random_state=0, **SMALL).fit(X[:96])
    again = unpack(*pack(method))
    np.testing.assert_array_equal(again.transform(X[:5]), method.transform(X[:5]))
    assert again.partial_fit(X[:96]).loss_curve_ == method.partial_fit(X[:96]).loss_curve_


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": 0.05}, [0.05, 0.05, 0.05]),
        ({"lr": 0.05, "lr_table": None}, [0.05, 0.05, 0.05]),
        ({"lr": 0.1, "lr_table": ((1, 0.05), (2, 0.01))}, [0.05, 0.01, 0.01]),
    ],
)
def test_learning_rates(encoder, settings, expected):
    method = RotNet(encoder, random_state=0, **{**SMALL, **settings, "epochs": 3}).fit(X[:32])
    assert method.lr_curve_ == pytest.approx(expected)


def test_hooks_reach_the_encoder(encoder):
    class Watch(Hook):
        def on_epoch_end(self, trainer, row):
            row["seen"] = float(hasattr(trainer.plain_network, "encoder"))

    with hooks(Watch()):
        method = RotNet(encoder, random_state=0, **SMALL).fit(X[:32])
    assert [row["seen"] for row in method.history_] == [1.0, 1.0]


def test_alexnet_and_bytes_work_at_a_small_size():
    rgb = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64)).astype(np.uint8)
    settings = {**SMALL, "epochs": 1, "batch_size": 2, "rotations": (0, 90)}
    method = RotNet("alexnet", feature_layer="conv1", random_state=0, **settings).fit(rgb)
    assert method.feature_map(rgb[:1]).shape == (1, 64, 7, 7)
    np.testing.assert_allclose(method.mean_, rgb.mean(axis=(0, 2, 3)) / 255, rtol=1e-4)


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotations": (0,)}, "at least two angles"),
        ({"rotations": (0, 45)}, "multiples of 90 degrees"),
        ({"rotations": (0, 90, 90)}, "must all differ"),
        ({"rotations": (0, 360)}, "must all differ"),
        ({"feature_layer": "conv9"}, r"no layer 'conv9'.*choose one of conv1, conv2, conv3, features"),
        ({"architecture": "vgg"}, "no architecture 'vgg': choose 'nin' or 'alexnet'"),
        ({"lr_table": ((5, 0.1), (3, 0.01))}, "rising bounds and positive rates"),
        ({"lr_table": ((5, 0.01),), "lr": 0.05}, "lr=0.05 and an lr_table that starts at 0.01 disagree"),
        ({"mean": (0.1, 0.2)}, r"mean must have one value for each of the 1 channels, got 2"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_settings_that_can_not_be_are_refused(encoder, changes, message):
    with pytest.raises(ValueError, match=message):
        RotNet(**{"architecture": encoder, "random_state": 0, **SMALL, **changes}).fit(X[:40])


def test_images_that_can_not_be_are_refused(encoder, fitted):
    with pytest.raises(ValueError, match="must be square, got 6 x 8"):
        RotNet(encoder, **SMALL).fit(X[:40, :6])
    broken = X[:40].copy()
    broken[7, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinite pixels in 1 image.*row 7"):
        RotNet(encoder, **SMALL).fit(broken)
    with pytest.raises(ValueError, match="must have 1 channel"):
        fitted.transform(np.zeros((2, 3, 8, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="must have 1 channel"):
        clone(fitted).fit(X[:32]).partial_fit(np.zeros((2, 3, 8, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="no layer 'fc'"):
        fitted.transform(X[:2], layer="fc")
    for ask in ("transform", "predict_rotation", "score", "feature_map"):
        with pytest.raises(NotFittedError, match="not fitted"):
            getattr(RotNet(encoder), ask)(X[:2])

"""Probes: their layers, their learning-rate tables, and digits read from raw pixels."""

import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import nn

from models.probes import CIFAR_TABLE, CONV_TABLE, IMAGENET_TABLE, ConvProbe, LinearProbe, NonLinearProbe

IMAGES, Y = load_digits().images[:, None] / 16, load_digits().target
TABLE = ((4, 0.05), (8, 0.01))
PROBES = [LinearProbe, NonLinearProbe, ConvProbe]


def small(kind):
    extra = {"width": 16} if kind is ConvProbe else {}
    return kind(epochs=8, lr_table=TABLE, batch_size=64, random_state=0, **extra)


@pytest.mark.parametrize("kind", PROBES)
def test_a_probe_reads_digits(kind):
    probe = small(kind).fit(IMAGES[:900], Y[:900])
    least = 0.4 if kind is ConvProbe else 0.75  # one 3x3 convolution on pixels sees strokes, not where they are
    assert probe.score(IMAGES[1200:], Y[1200:]) > least
    assert [row["lr"] for row in probe.history_] == [0.05] * 4 + [0.01] * 4
    proba = probe.predict_proba(IMAGES[:7])
    assert proba.shape == (7, 10)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probe.predict(IMAGES[:7]), probe.classes_[proba.argmax(axis=1)])


@pytest.mark.parametrize("kind", PROBES)
def test_equal_seeds_labels_of_any_kind_and_unlabelled_rows(kind):
    y = np.where(np.arange(300) % 3 == 0, -1, 10 + 5 * (Y[:300] % 2))
    probe = small(kind).fit(IMAGES[:300], y)
    np.testing.assert_array_equal(probe.classes_, [10, 15])
    labelled = clone(probe).fit(IMAGES[:300][y >= 0], y[y >= 0])
    np.testing.assert_array_equal(probe.predict_proba(IMAGES[:9]), labelled.predict_proba(IMAGES[:9]))


def test_the_published_shapes():
    linear = LinearProbe().build((256, 13, 13), 1000)
    assert linear[-1].in_features == 256 * 6 * 6  # about 9,000
    assert LinearProbe().build((64, 4, 4), 10)[-1].in_features == 64 * 4 * 4
    assert not linear[1].affine
    assert float(linear[-1].weight.detach().std()) == pytest.approx(math.sqrt(2 / 1000), rel=0.02)
    assert not linear[-1].bias.detach().any()
    hidden = [layer.out_features for layer in NonLinearProbe().build((8, 2, 2), 10) if isinstance(layer, nn.Linear)]
    assert hidden == [200, 200, 10]
    many = NonLinearProbe().build((1, 1, 1), 500)
    assert many[1].out_features == 2048
    block = ConvProbe().build((96, 8, 8), 10)
    kernels = [m.kernel_size[0] for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [3, 1, 1]
    assert block(torch.zeros(2, 96, 8, 8)).shape == (2, 10)


def test_the_published_tables():
    assert CIFAR_TABLE == ((20, 0.1), (40, 0.02), (45, 0.004), (50, 0.0008))
    assert CONV_TABLE == ((35, 0.1), (70, 0.02), (85, 0.004), (100, 0.0008))
    assert IMAGENET_TABLE == ((5, 0.01), (15, 0.002), (25, 0.0004), (35, 0.00008))
    assert (LinearProbe().epochs, NonLinearProbe().epochs, ConvProbe().epochs) == (35, 100, 100)


def test_rows_count_as_maps_of_one_pixel():
    flat = IMAGES.reshape(len(IMAGES), -1)
    assert small(NonLinearProbe).fit(flat[:600], Y[:600]).score(flat[1200:], Y[1200:]) > 0.75


@pytest.mark.parametrize("kind", PROBES)
def test_refusals(kind):
    with pytest.raises(ValueError, match=r"feature maps \(n, C, h, w\) or rows"):
        small(kind).fit(np.zeros((4, 2, 2)), [0, 1, 0, 1])
    broken = IMAGES[:4].copy()
    broken[0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        small(kind).fit(broken, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="at least 2 classes"):
        small(kind).fit(IMAGES[:4], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="rising bounds"):
        clone(small(kind)).set_params(lr_table=((3, 0.1), (2, 0.1))).fit(IMAGES[:4], [0, 1, 0, 1])
    with pytest.raises(NotFittedError, match="not fitted"):
        small(kind).predict(IMAGES[:2])
    with pytest.raises(ValueError, match=r"shaped \(1, 8, 8\) as in fit, got \(1, 8, 4\)"):
        small(kind).set_params(epochs=1).fit(IMAGES[:40], Y[:40]).predict(IMAGES[:2, :, :, :4])

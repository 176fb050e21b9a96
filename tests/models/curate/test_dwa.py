"""DWA: the moved weights, the statistics the pixels are fitted to, and digits distilled with a small teacher."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import nn

from models.base import isolated_seed
from models.curate.dwa import (
    DWADistiller,
    InputsOf,
    directed_weight_adjustment,
    recover,
    remembered,
    squeeze,
    statistics_loss,
    train_on_distilled,
)
from models.metrics import class_diversity
from models.networks.convnet import AverageConvNet, Normalised
from models.networks.mlp import MLPEncoder

DATA, TARGET = load_digits(n_class=4, return_X_y=True)
IMAGES = (DATA / 16).astype(np.float32).reshape(-1, 1, 8, 8)
X, Y, X_TEST, Y_TEST = IMAGES[:400], TARGET[:400], IMAGES[400:], TARGET[400:]
SMALL: dict[str, Any] = {"ipc": 3, "n_iter": 15, "lr": 0.1, "jitter": 1, "random_state": 0}


@cache
def trained() -> nn.Module:
    return squeeze(
        torch.from_numpy(X), torch.from_numpy(Y), 4, width=8, epochs=10, lr=1e-2, batch_size=32, random_state=0
    )


def teacher() -> nn.Module:
    return copy.deepcopy(trained())


def real_batch() -> tuple[torch.Tensor, torch.Tensor]:
    rows = [int(np.flatnonzero(c == Y)[0]) for c in range(4)]
    return torch.from_numpy(X[rows]), torch.arange(4)


def distance(first: nn.Module, second: nn.Module) -> float:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return float(sum(((a.detach().double() - b.detach().double()) ** 2).sum() for a, b in pairs) ** 0.5)


# ---- the moved weights ----


def test_without_adjustment_it_is_sre2l_from_real_images() -> None:
    plain = DWADistiller(teacher(), dwa_steps=0, **SMALL).fit(X, Y)
    still = DWADistiller(teacher(), rho=0.0, **SMALL).fit(X, Y)
    moved = DWADistiller(teacher(), rho=0.5, **SMALL).fit(X, Y)
    np.testing.assert_array_equal(plain.images_, still.images_)
    assert plain.weight_shift_norm_.tolist() == still.weight_shift_norm_.tolist() == [0.0, 0.0, 0.0]
    assert not np.array_equal(plain.images_, moved.images_)


def test_weights_move_by_rho_at_most_and_by_rho_in_one_step() -> None:
    x, targets = real_batch()
    one, many = teacher(), teacher()
    told = directed_weight_adjustment(one, x, targets, 0.015, 1)
    assert told == pytest.approx(0.015, abs=1e-6)
    assert distance(one, trained()) == pytest.approx(told, abs=1e-9)
    shift = directed_weight_adjustment(many, x, targets, 0.5, 12)
    assert 0.25 < shift <= 0.5 + 1e-6
    assert distance(many, trained()) == pytest.approx(shift, abs=1e-9)


def test_the_first_step_is_the_normalised_gradient_over_all_parameters() -> None:
    x, targets = real_batch()
    network, moved = teacher(), teacher()
    slopes = torch.autograd.grad(F.cross_entropy(network(x), targets), list(network.parameters()))
    length = sum((slope**2).sum() for slope in slopes).sqrt()
    directed_weight_adjustment(moved, x, targets, 0.1, 1)
    for before, slope, after in zip(network.parameters(), slopes, moved.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.1 * slope / length, atol=1e-6, rtol=1e-5)


def test_the_moved_network_is_less_sure_of_the_real_batch() -> None:
    x, targets = real_batch()
    moved = teacher()
    directed_weight_adjustment(moved, x, targets, 0.15, 12)
    with torch.no_grad():
        assert F.cross_entropy(moved(x), targets) > F.cross_entropy(trained()(x), targets) + 1e-4


def test_the_norm_told_is_that_of_each_slot() -> None:
    fitted = DWADistiller(teacher(), rho=0.2, dwa_steps=1, **SMALL).fit(X, Y)
    np.testing.assert_allclose(fitted.weight_shift_norm_, 0.2, atol=1e-6)


def test_the_given_teacher_stays_bit_for_bit() -> None:
    given = teacher().train()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    fitted = DWADistiller(given, rho=0.5, **SMALL).fit(X, Y)
    assert given.training
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    kept = fitted.teacher_.inner.state_dict()
    assert all(torch.equal(before[name], value) for name, value in kept.items())


# ---- the statistics ----


def test_statistics_of_the_batch_that_made_them_cost_nothing() -> None:
    x = torch.from_numpy(X[:64])
    network = AverageConvNet(4, size=(8, 8), width=8).train()
    layers = remembered(network)
    recorded = InputsOf(layers)
    with torch.no_grad():
        network(x)
        for layer in layers:
            var, mean = torch.var_mean(recorded.seen[layer], dim=(0, 2, 3), correction=0)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(var)
        network.eval()(x)
        seen = [recorded.seen[layer] for layer in layers]
        assert float(statistics_loss(seen, layers, 11.0, 10.0)) < 1e-5
        assert float(statistics_loss([2 * maps for maps in seen], layers, 11.0, 10.0)) > 0.1


def test_the_statistics_are_of_the_input_biased_and_their_norms_not_squared() -> None:
    layers = [nn.BatchNorm2d(1).eval(), nn.BatchNorm2d(1).eval()]
    maps = torch.tensor([[[[3.0, 5.0]]]])  # mean 4, biased variance 1: running statistics are 0 and 1
    assert float(statistics_loss([maps], layers[:1], 11.0, 10.0)) == pytest.approx(40.0)
    assert float(statistics_loss([maps, 2 * maps], layers, 11.0, 10.0)) == pytest.approx(40 + 8 + 11 * 3)


class Auxiliary(nn.Module):
    """A classifier with a branch that is trained with and left out afterwards, as those of Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.main = teacher()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x) + self.branch(x) if self.training else self.main(x)


def test_layers_that_no_image_reaches_do_not_count() -> None:
    fitted, plain = (DWADistiller(given, **SMALL).fit(X, Y) for given in (Auxiliary(), teacher()))
    np.testing.assert_allclose(fitted.loss_curve_, plain.loss_curve_, rtol=1e-5)


# ---- the images ----


@pytest.mark.parametrize("options", [{}, {"init": "gaussian"}, {"flip": True, "random_resized_crop": True}])
def test_images_are_pixels_whatever_the_steps(options: dict[str, Any]) -> None:
    fitted = DWADistiller(teacher(), **(SMALL | {"lr": 2.0}), **options).fit(X, Y)
    assert fitted.images_.shape == (12, 1, 8, 8)
    assert fitted.images_.dtype == np.float32
    assert fitted.images_.min() >= 0
    assert fitted.images_.max() <= 1
    assert fitted.labels_.tolist() == [0, 1, 2, 3] * 3
    assert fitted.slot_.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (Y[fitted.source_rows_] == fitted.labels_).all()
    assert len(set(fitted.source_rows_)) == 12


def test_slots_made_in_another_order_are_the_same() -> None:
    x, targets = real_batch()
    low, high = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    settings: dict[str, Any] = {
        "init": "real", "dwa_steps": 2, "rho": 0.1, "random_resized_crop": False, "flip": True, "n_iter": 4, "lr": 0.1,
        "weights": (0.01, 11.0, 10.0), "jitter": 2,
    }  # fmt: skip
    forth = [recover(trained(), x, targets, (low, high), seed=seed, **settings).pixels for seed in (0, 1, 2)]
    back = [recover(trained(), x, targets, (low, high), seed=seed, **settings).pixels for seed in (2, 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forth, back, strict=True))
    assert not torch.equal(forth[0], forth[1])


def test_a_slot_does_not_depend_on_how_many_follow() -> None:
    two = DWADistiller(teacher(), **(SMALL | {"ipc": 2})).fit(X, Y)
    three = DWADistiller(teacher(), **SMALL).fit(X, Y)
    np.testing.assert_array_equal(two.images_, three.images_[:8])


def test_classes_in_parts_each_start_from_the_teacher() -> None:
    fitted = DWADistiller(teacher(), batch_classes=2, rho=0.2, dwa_steps=1, **SMALL).fit(X, Y)
    assert fitted.images_.shape == (12, 1, 8, 8)
    np.testing.assert_allclose(fitted.weight_shift_norm_, 0.2, atol=1e-6)
    assert [part.tolist() for part in fitted._parts(5)] == [[0, 1], [2, 3], [4]]
    assert [len(part) for part in DWADistiller()._parts(401)] == [134, 134, 133]


def test_the_loss_falls_and_the_teacher_knows_the_images() -> None:
    fitted = DWADistiller(teacher(), **(SMALL | {"n_iter": 60, "init": "gaussian"})).fit(X, Y)
    assert fitted.loss_curve_.shape == (3, 60)
    assert fitted.loss_curve_[:, -1].mean() < 0.5 * fitted.loss_curve_[:, 0].mean()
    assert (fitted.soft_labels(fitted.images_).argmax(1) == fitted.labels_).mean() >= 0.9


def test_a_larger_shift_makes_images_more_diverse() -> None:
    still = DWADistiller(teacher(), dwa_steps=0, **(SMALL | {"n_iter": 60})).fit(X, Y)
    moved = DWADistiller(teacher(), rho=1.0, **(SMALL | {"n_iter": 60})).fit(X, Y)
    assert moved.diversity_ > still.diversity_


def test_images_that_are_all_alike_still_give_images() -> None:
    fitted = DWADistiller(teacher(), **SMALL).fit(np.full_like(X[:40], 0.5), np.arange(40) % 4)
    assert np.isfinite(fitted.images_).all()


def test_uint8_and_floats_agree_and_a_teacher_is_trained_when_there_is_none() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.curate.dwa.squeeze", lambda X, y, n, **kw: squeeze(X, y, n, width=4, epochs=1, **kw))
        bytes_ = np.round(X[:80] * 255).astype(np.uint8)
        first = DWADistiller(**SMALL).fit(bytes_, Y[:80])
        second = DWADistiller(**SMALL).fit(bytes_.astype(np.float32) / 255, Y[:80])
    np.testing.assert_array_equal(first.images_, second.images_)
    assert isinstance(first.teacher_, Normalised)
    assert float(first.teacher_.mean) == pytest.approx(float(bytes_.mean()) / 255, abs=1e-4)


def test_normalised_units_are_those_of_the_teacher() -> None:
    inner = teacher()
    plain = DWADistiller(Normalised(inner, [0.3], [0.5]), **SMALL).fit(X, Y)
    scaled = DWADistiller(inner, channel_mean=[0.3], channel_std=[0.5], **SMALL).fit(X, Y)
    with torch.no_grad():
        torch.testing.assert_close(plain.teacher_(torch.from_numpy(X[:5])), scaled.teacher_(torch.from_numpy(X[:5])))
    assert not np.array_equal(plain.images_, scaled.images_)  # steps of Adam have the length of the units


def test_soft_labels_are_the_teachers_at_a_temperature() -> None:
    fitted = DWADistiller(teacher(), **SMALL).fit(X, Y)
    with torch.no_grad():
        expected = (trained()(torch.from_numpy(X_TEST[:9])) / 20).softmax(1).numpy()
    np.testing.assert_allclose(fitted.soft_labels(X_TEST[:9], 20.0), expected, atol=1e-6)
    images, labels = fitted.transform()
    again = DWADistiller(teacher(), **SMALL).fit_resample(X, Y)
    np.testing.assert_array_equal(images, again[0])
    np.testing.assert_array_equal(labels, again[1])


def test_diversity_is_one_minus_cosine_between_rows_of_a_class() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 5))
    labels = np.repeat([0, 1], [4, 5])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    found = [1 - cosines[np.ix_(m, m)][~np.eye(len(m), dtype=bool)].mean() for m in (np.arange(4), np.arange(4, 9))]
    assert class_diversity(rows, labels) == pytest.approx(np.mean(found))
    assert class_diversity(np.ones((4, 2)), [0, 0, 1, 1]) == 0.0
    assert np.isnan(class_diversity(np.ones((2, 2)), [0, 1]))


# ---- the student ----


def test_a_student_learns_the_digits_from_distilled_images() -> None:
    fitted = DWADistiller(teacher(), **(SMALL | {"ipc": 5, "n_iter": 40})).fit(X, Y)

    def student() -> nn.Module:
        return AverageConvNet(4, size=(8, 8), width=8)

    trained_on = train_on_distilled(
        student, *fitted.transform(), fitted.teacher_, epochs=120, lr=1e-2, augment=None, random_state=0
    )
    with torch.no_grad():
        accuracy = float((trained_on(torch.from_numpy(X_TEST)).argmax(1).numpy() == Y_TEST).mean())
    assert accuracy > 0.8
    assert len(trained_on.history) == 120
    again = train_on_distilled(
        student, *fitted.transform(), fitted.teacher_, epochs=2, lr=1e-2, augment="crop_flip", random_state=0
    )
    assert isinstance(again, Normalised)


def test_the_student_is_reproducible_and_its_start_unchanged() -> None:
    with isolated_seed(0):
        given = AverageConvNet(4, size=(8, 8), width=4)
    before = copy.deepcopy(given.state_dict())
    runs = [train_on_distilled(given, X[:8], Y[:8], trained(), epochs=3, random_state=5) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())


# ---- errors ----


def test_what_does_not_fit_is_refused() -> None:
    mlp = nn.Sequential(nn.Flatten(), MLPEncoder(64, (5, 4), batch_norm=False))
    with pytest.raises(ValueError, match="no BatchNorm2d layer with running statistics"):
        DWADistiller(mlp, **SMALL).fit(X, Y)
    with pytest.raises(ValueError, match=r"y must hold every class of 0\.\.3, but has no image of \[2\]"):
        DWADistiller(teacher(), **SMALL).fit(X[Y != 2], Y[Y != 2])
    with pytest.raises(ValueError, match=r"ipc=3 images of each class, but class 3 has 1"):
        DWADistiller(teacher(), **SMALL).fit(X[:10], [0, 0, 0, 1, 1, 1, 2, 2, 2, 3])
    with pytest.raises(ValueError, match="teacher does not take samples shaped"):
        DWADistiller(AverageConvNet(4, 3, (8, 8), 4), **SMALL).fit(X, Y)
    with pytest.raises(ValueError, match=r"teacher must give logits shaped \(n, 4\)"):
        DWADistiller(AverageConvNet(3, 1, (8, 8), 4), **SMALL).fit(X, Y)
    with pytest.raises(ValueError, match="rho"):
        DWADistiller(teacher(), rho=-0.1).fit(X, Y)
    with pytest.raises(ValueError, match="at least 2 classes"):
        DWADistiller(teacher(), **SMALL).fit(X, np.zeros(len(X), dtype=int))
    with pytest.raises(ValueError, match="go together"):
        DWADistiller(teacher(), channel_mean=[0.5], **SMALL).fit(X, Y)
    with pytest.raises(ValueError, match=r"one number for each of the 1 channel\(s\)"):
        DWADistiller(teacher(), channel_mean=[0.5, 0.5], channel_std=[1.0, 1.0], **SMALL).fit(X, Y)
    with pytest.raises(ValueError, match=r"got \[nan\] and \[1\.0\]"):
        DWADistiller(teacher(), channel_mean=[np.nan], channel_std=[1.0], **SMALL).fit(X, Y)
    with pytest.raises(NotFittedError, match="fit"):
        DWADistiller().transform()
    fitted = DWADistiller(teacher(), **SMALL).fit(X, Y)
    for temperature in (0.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            fitted.soft_labels(X, temperature)
    with pytest.raises(ValueError, match=r"must have 1 channel"):
        fitted.soft_labels(np.zeros((2, 3, 8, 8)))
    with pytest.raises(ValueError, match="augment must be 'crop_flip'"):
        train_on_distilled(None, X, Y, trained(), augment="twist")
    for wrong in ({"temperature": 0.0}, {"temperature": float("nan")}, {"mixup_alpha": float("nan")}):
        with pytest.raises(ValueError, match="temperature must be above 0 and mixup_alpha at least 0"):
            train_on_distilled(None, X, Y, trained(), **wrong)
    with pytest.raises(ValueError, match="epochs and batch_size must be at least 1, got 0 and 128"):
        train_on_distilled(None, X, Y, trained(), epochs=0)

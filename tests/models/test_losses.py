"""Exact cases of the shared losses."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.losses import (
    coral,
    entropy,
    kl_with_temperature,
    nt_xent,
    soft_cross_entropy,
    supervised_contrastive,
    target_contrastive,
)


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 5, generator=generator).double()


def test_nt_xent_of_one_pair_is_zero(views):
    first, second = views
    assert nt_xent(first[:1], second[:1]) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_nt_xent_of_equal_projections_is_the_log_of_the_candidates(n):
    same = torch.ones(n, 3)
    assert nt_xent(same, same, temperature=0.5) == pytest.approx(math.log(2 * n - 1), abs=1e-5)


def test_nt_xent_is_cross_entropy_over_the_similarities_without_the_anchor(views):
    first, second = views
    z = F.normalize(torch.cat([first, second]), dim=1)
    n, losses = len(first), []
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k != i]
        logits = torch.stack([z[i] @ z[k] / 0.2 for k in others])
        partner = others.index((i + n) % (2 * n))
        losses.append(F.cross_entropy(logits[None], torch.tensor([partner])))
    assert nt_xent(first, second, 0.2) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_nt_xent_is_symmetric_and_ignores_lengths(views):
    first, second = views
    assert nt_xent(first, second) == pytest.approx(float(nt_xent(second, first)), abs=1e-5)
    assert nt_xent(3 * first, second) == pytest.approx(float(nt_xent(first, second)), abs=1e-5)


def test_soft_cross_entropy_of_one_hot_targets_is_the_usual_one(views):
    logits, y = views[0], torch.tensor([0, 1, 2, 3, 4, 0])
    onehot = F.one_hot(y, 5).double()
    assert soft_cross_entropy(logits, onehot) == pytest.approx(float(F.cross_entropy(logits, y)))
    each = soft_cross_entropy(logits, onehot, reduction="none")
    torch.testing.assert_close(each, F.cross_entropy(logits, y, reduction="none"))


def test_soft_cross_entropy_is_least_at_the_targets_and_then_their_entropy(views):
    targets = views[0].softmax(1)
    least = soft_cross_entropy(views[0], targets)
    assert least == pytest.approx(float(entropy(targets, eps=0.0).mean()))
    assert soft_cross_entropy(views[0] + views[1], targets) > least


def test_distillation_is_zero_for_equal_logits_and_scales_with_the_squared_temperature(views):
    student, teacher = views
    assert kl_with_temperature(student, student, 4.0) == pytest.approx(0.0, abs=1e-12)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    by_hand = 4 * (p * (p / q).log()).sum(1).mean()
    assert kl_with_temperature(student, teacher, 2.0) == pytest.approx(float(by_hand))


def test_entropy_runs_from_nought_to_one():
    rows = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])
    values = entropy(rows, normalised=True)
    assert values[0] == pytest.approx(1.0, abs=1e-3)
    assert values[1] == pytest.approx(0.0, abs=1e-3)
    assert entropy(rows)[0] == pytest.approx(math.log(4), abs=1e-3)


def test_target_contrast_with_the_identity_is_infonce(views):
    first, second = views
    similarity = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T / 0.2
    infonce = F.cross_entropy(similarity, torch.arange(6))
    assert target_contrastive(first, second, torch.eye(6), 0.2) == pytest.approx(float(infonce), abs=1e-6)


def test_target_contrast_does_not_depend_on_the_scale_of_the_targets(views):
    first, second = views
    targets = torch.rand(6, 6, generator=torch.Generator().manual_seed(1))
    one = target_contrastive(first, second, targets, 0.2)
    assert target_contrastive(first, second, 7 * targets, 0.2) == pytest.approx(float(one), abs=1e-5)


def test_supervised_contrast_of_distinct_or_unknown_labels_is_nt_xent(views):
    first, second = views
    plain = float(nt_xent(first, second, 0.1))
    assert supervised_contrastive(first, second, torch.arange(6)) == pytest.approx(plain, abs=1e-5)
    assert supervised_contrastive(first, second, torch.full((6,), -1)) == pytest.approx(plain, abs=1e-5)


def test_supervised_contrast_of_orthogonal_collapsed_classes():
    # every anchor: 3 positives at similarity 1, 4 negatives at 0
    z = torch.eye(2)[[0, 0, 1, 1]]
    expected = math.log(3 * math.exp(1 / 0.5) + 4) - 1 / 0.5
    assert supervised_contrastive(z, z, torch.tensor([0, 0, 1, 1]), 0.5) == pytest.approx(expected, abs=1e-5)


def test_coral_of_equal_covariances_is_zero_and_of_a_doubled_one_by_hand(views):
    source = views[0]
    assert coral(source, source + 3) == pytest.approx(0.0, abs=1e-12)
    gap = 3 * torch.cov(source.T)  # covariance of 2x is 4 times that of x
    assert coral(source, 2 * source) == pytest.approx(float(gap.pow(2).sum() / (4 * 25)))


@pytest.mark.parametrize("loss", [nt_xent, lambda a, b: target_contrastive(a, b, torch.eye(6), 0.1)])
def test_contrast_has_finite_gradients(views, loss):
    first = views[0].clone().requires_grad_()
    loss(first, views[1]).backward()
    assert torch.isfinite(first.grad).all()
    assert first.grad.abs().sum() > 0

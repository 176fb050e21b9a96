"""Ambient diffusion: the loss in closed form, what is refused, and digits learned from noisy ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from models.augment import PadCrop, affine
from models.curate.ambient import (
    AmbientDiffusion,
    AmbientTrainer,
    RampedAverage,
    add_noise,
    ambient_loss,
    clean_equivalent,
    corrupt,
    draw_sigma,
    expected_observation,
    moves_pixels_only,
    noisy_sample_price,
)
from models.networks import build
from models.networks.denoiser import (
    MLPDenoiser,
    PreconditionedDenoiser,
    UNetDenoiser,
    follow,
    noise_grid,
    preconditioning,
)
from models.training import Trainer, adam

DIGITS = (load_digits().data / 8 - 1).astype(np.float32)
SMALL: dict[str, Any] = {"batch_size": 64, "n_steps": 40, "random_state": 0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_network(features: int = 64, n_classes: int = 0) -> MLPDenoiser:
    torch.manual_seed(0)
    return MLPDenoiser(features, width=64, depth=2, n_classes=n_classes)


# ---- the loss ----


def best_gain(y: Tensor, x: Tensor, s: Tensor, sigma: Tensor) -> float:
    """The `a` of D(x) = a x that minimises the loss, which is quadratic in it."""
    nothing = expected_observation(torch.zeros_like(x), x, s, sigma)
    direction = expected_observation(x, x, s, sigma) - nothing
    return float((direction * (y - nothing)).sum() / (direction**2).sum())


@pytest.mark.parametrize(("v", "s", "sigma"), [(1.0, 0.4, 0.9), (0.25, 0.2, 0.5), (2.0, 1.0, 3.0)])
def test_noisy_samples_alone_give_the_denoiser_of_clean_ones(v: float, s: float, sigma: float) -> None:
    random = seeded()
    n = 200_000
    y = v**0.5 * torch.randn(n, 1, generator=random) + s * torch.randn(n, 1, generator=random)
    own, level = torch.full((n,), s), torch.full((n,), sigma)
    x = add_noise(y, own, level, torch.randn(n, 1, generator=random))
    assert best_gain(y, x, own, level) == pytest.approx(v / (v + sigma**2), abs=1e-2)
    naive = add_noise(y, torch.zeros(n), level, torch.randn(n, 1, generator=random))
    wrong = (v + s**2) / (v + s**2 + sigma**2)
    assert best_gain(y, naive, torch.zeros(n), level) == pytest.approx(wrong, abs=1e-2)


def test_of_clean_samples_the_loss_is_edm() -> None:
    random = seeded()
    network = PreconditionedDenoiser(small_network(), sigma_data=0.5)
    y, noise = torch.from_numpy(DIGITS[:50]), torch.randn(50, 64, generator=random)
    sigma = draw_sigma(torch.zeros(50), -1.2, 1.2, "clamp", random)
    x = add_noise(y, torch.zeros(50), sigma, noise)
    found = ambient_loss(network(x, sigma), x, y, torch.zeros(50), sigma, 0.5)
    column = sigma[:, None]
    weight = (column**2 + 0.25) / (column * 0.5) ** 2
    expected = (weight * (network(y + column * noise, sigma) - y) ** 2).mean()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-7)


def test_at_its_own_level_a_sample_teaches_nothing() -> None:
    y, s = torch.from_numpy(DIGITS[:20]), torch.full((20,), 0.3)
    x = add_noise(y, s, s, torch.randn(20, 64, generator=seeded()))
    denoised = torch.randn(20, 64, generator=seeded(1)).requires_grad_()
    loss = ambient_loss(denoised, x, y, s, s, 0.5)
    loss.backward()
    assert float(loss.detach()) == 0
    assert denoised.grad is not None
    assert float(denoised.grad.abs().max()) == 0


def test_noise_adds_up_to_the_level() -> None:
    random, n = seeded(), 200_000
    clean = torch.full((n, 1), 0.7)
    s, sigma = torch.full((n,), 0.4), torch.full((n,), 0.9)
    y = clean + 0.4 * torch.randn(n, 1, generator=random)
    x = add_noise(y, s, sigma, torch.randn(n, 1, generator=random))
    assert float(x.var()) == pytest.approx(0.81, rel=0.02)
    assert float(x.mean()) == pytest.approx(0.7, abs=0.01)
    tiny = add_noise(clean[:1], sigma[:1] * (1 + 1e-7), sigma[:1], torch.ones(1, 1))
    assert torch.isfinite(tiny).all()


def test_levels_are_nowhere_below_the_samples_own() -> None:
    s = torch.tensor([0.0, 0.2, 1.0, 70.0]).repeat_interleave(20_000)
    for sampling in ("clamp", "reject"):
        sigma = draw_sigma(s, -1.2, 1.2, sampling, seeded())
        assert (sigma >= s).all()
        assert (sigma > 0).all()
        assert torch.isfinite(sigma).all()
    clamped = draw_sigma(s, -1.2, 1.2, "clamp", seeded())[20_000:40_000]
    assert float((clamped == 0.2).float().mean()) == pytest.approx(norm.cdf((np.log(0.2) + 1.2) / 1.2), abs=0.01)


def test_rejection_draws_what_drawing_again_would() -> None:
    plain = draw_sigma(torch.zeros(400_000), -1.2, 1.2, "clamp", seeded())
    again = plain[plain >= 0.5].numpy()
    drawn = draw_sigma(torch.full((100_000,), 0.5), -1.2, 1.2, "reject", seeded(1)).numpy()
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(np.quantile(drawn, shares), np.quantile(again, shares), rtol=0.03)


def test_rejection_far_above_the_distribution_stays_at_the_samples_level() -> None:
    s = torch.tensor([0.5, 70.0])
    torch.testing.assert_close(draw_sigma(s, -30.0, 0.1, "reject", seeded()), s)


def test_preconditioning_keeps_variances() -> None:
    sigma = torch.tensor([0.01, 0.5, 20.0])
    skip, out, scale, condition = preconditioning(sigma, 0.5)
    torch.testing.assert_close(scale**2 * (sigma**2 + 0.25), torch.ones(3))
    torch.testing.assert_close(skip * (sigma**2 + 0.25), torch.full((3,), 0.25))
    torch.testing.assert_close(out**2 * (sigma**2 + 0.25), sigma**2 * 0.25)
    torch.testing.assert_close(condition, sigma.log() / 4)


# ---- the sampler ----


def gaussian_denoiser(v: float) -> Any:
    return lambda x, sigma: x * (v / (v + sigma**2)).reshape(-1, 1)


def test_the_grid_of_levels() -> None:
    grid = noise_grid(torch.tensor(80.0), torch.tensor(0.002), 18, 7.0)
    assert grid[0] == 80
    assert float(grid[-1]) == pytest.approx(0.002)
    assert (grid.diff() < 0).all()
    middle = (80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(grid[5]) == pytest.approx(middle, rel=1e-4)


def test_the_sampler_recovers_a_gaussian() -> None:
    noise = 80 * torch.randn(20_000, 1, generator=seeded())
    errors = {}
    for steps, heun in [(18, True), (72, True), (18, False)]:
        levels = [*noise_grid(torch.tensor(80.0), torch.tensor(0.002), steps, 7.0).tolist(), 0.0]
        scale = follow(gaussian_denoiser(0.25), noise, levels, heun).std() / noise.std()
        errors[steps, heun] = abs(float(scale) * (80**2 + 0.25) ** 0.5 - 0.5)
    assert errors[18, True] < 0.05
    assert errors[72, True] < errors[18, True] / 8
    assert errors[18, False] > 2 * errors[18, True]


def test_the_last_step_is_the_denoiser_itself() -> None:
    x = torch.randn(10, 1, generator=seeded())
    found = follow(gaussian_denoiser(0.25), x, [0.4, 0.0], heun=True)
    torch.testing.assert_close(found, gaussian_denoiser(0.25)(x, torch.full((10,), 0.4)))


class Gaussian(nn.Module):
    """The exact denoiser of N(0, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return x / (1 + sigma[:, None] ** 2)


def consistency_trainer(network: nn.Module, **parameters: Any) -> AmbientTrainer:
    method = AmbientDiffusion(**parameters)
    trainer = AmbientTrainer(network, method, False, False, n_steps=1, batch_size=8, optimizer=adam(1e-3))
    trainer.network = network  # type: ignore[assignment]
    return trainer


def test_the_exact_denoiser_is_consistent_and_another_is_not() -> None:
    x, sigma = torch.randn(8, 1, generator=seeded()) * 2, torch.full((8,), 1.5)
    settings = {"consistency_draws": 4000, "consistency_steps": 60, "p_mean": -1.0, "p_std": 0.3}
    exact = Gaussian()
    trainer = consistency_trainer(exact, **settings)
    assert float(trainer.consistency(x, sigma, exact(x, sigma), None)) < 2e-3

    class Stubborn(Gaussian):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return x / (1 + 0 * sigma[:, None])

    other = Stubborn()
    assert float(consistency_trainer(other, **settings).consistency(x, sigma, 0.2 * x, None)) > 0.1


@pytest.mark.parametrize("through", [True, False])
def test_gradients_flow_through_the_reverse_process_only_where_asked(through: bool) -> None:
    torch.manual_seed(0)
    network = PreconditionedDenoiser(MLPDenoiser(2, width=8, depth=1), sigma_data=0.5)
    trainer = consistency_trainer(network, consistency_grad=through, consistency_steps=2, consistency_draws=2)
    calls = []
    network.register_forward_hook(lambda module, given, found: calls.append(found.requires_grad))
    x, sigma = torch.randn(3, 2, generator=seeded()), torch.full((3,), 2.0)
    trainer.consistency(x, sigma, torch.zeros(3, 2), None).backward()
    assert calls == [through, through, True]


def test_consistency_is_weighed_as_asked() -> None:
    x, sigma = torch.randn(8, 1, generator=seeded()), torch.full((8,), 0.8)
    found = [
        float(consistency_trainer(Gaussian(), consistency_weight=w).consistency(x, sigma, x, None))
        for w in (True, False)
    ]
    assert found[0] == pytest.approx(found[1] * (0.64 + 0.25) / 0.16, rel=1e-5)


# ---- training ----


def test_the_average_follows_what_was_seen() -> None:
    average = RampedAverage(1000.0, 0.05, 10)
    network = nn.Linear(1, 1)
    trainer = Trainer(network, epochs=1, batch_size=10, optimizer=adam(1e-3))
    average.on_fit_begin(trainer)
    decays = []
    for step in (1, 101, 100_000):
        trainer.step = step
        average.on_batch_end(trainer, {})
        decays.append(average.decay)
    assert decays == [0.0, pytest.approx(0.5 ** (10 / 50)), pytest.approx(0.5 ** (10 / 1000))]


@pytest.mark.parametrize(("n", "steps", "passes"), [(100, 7, 4), (30, 5, 5), (128, 4, 2)])
def test_as_many_steps_as_asked_of_full_batches(n: int, steps: int, passes: int) -> None:
    seen: list[int] = []

    class Counting(MLPDenoiser):
        def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
            seen.append(len(x))
            return super().forward(x, condition, labels)

    method = AmbientDiffusion(Counting(64, width=8, depth=1), batch_size=64, n_steps=steps, random_state=0)
    method.fit(DIGITS[:n])
    assert seen == [64] * steps
    assert len(method.loss_curve_) == passes


def test_gradients_that_are_not_finite_do_no_harm() -> None:
    class Broken(MLPDenoiser):
        def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
            found = super().forward(x, condition, labels)
            if found.requires_grad:
                found.register_hook(lambda gradient: gradient * float("nan"))
            return found

    method = AmbientDiffusion(Broken(64, width=8, depth=1), **SMALL).fit(DIGITS[:100])
    assert all(torch.isfinite(parameter).all() for parameter in method.model_.parameters())


def test_noisy_digits_are_cleaned() -> None:
    X, noise_std = corrupt(DIGITS[:1000], 0.9, 0.4, random_state=0)
    before = X.copy()
    method = AmbientDiffusion(small_network(), batch_size=64, n_steps=300, random_state=0).fit(X, noise_std)
    np.testing.assert_array_equal(X, before)
    cleaned = method.posterior_mean(X, noise_std)
    noisy = noise_std > 0
    assert ((cleaned - DIGITS[:1000])[noisy] ** 2).mean() < 0.7 * ((X - DIGITS[:1000])[noisy] ** 2).mean()
    np.testing.assert_array_equal(cleaned[~noisy], X[~noisy])
    assert (method.n_clean_, method.n_noisy_) == (100, 900)
    np.testing.assert_allclose(method.noise_levels_, [0, 0.4])
    assert method.loss_curve_[-1] < method.loss_curve_[0]


def test_what_is_drawn_has_less_noise_than_most_samples() -> None:
    clean = np.random.default_rng(0).choice([-0.5, 0.5], (1000, 1)).astype(np.float32)
    X, noise_std = corrupt(clean, 0.9, 0.3, random_state=0)
    settings: dict[str, Any] = {"batch_size": 128, "n_steps": 200, "random_state": 0}
    method = AmbientDiffusion(small_network(1), **settings).fit(X, noise_std)
    naive = AmbientDiffusion(small_network(1), **settings).fit(X)
    spread = [np.abs(np.abs(fitted.sample(300)) - 0.5).mean() for fitted in (method, naive)]
    assert spread[0] < 0.75 * spread[1]
    drawn = method.sample(20)
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, method.sample(20))
    assert not np.array_equal(drawn, method.sample(20, generator=seeded(5)))


def test_only_noisy_samples_warn_and_the_sampler_stops_above() -> None:
    with pytest.warns(UserWarning, match=r"smallest noise level, 0\.3"):
        method = AmbientDiffusion(small_network(), **SMALL).fit(DIGITS[:100], 0.3)
    assert method.lowest_level_ == pytest.approx(0.3)
    levels: list[float] = []
    method.ema_model_.register_forward_pre_hook(lambda module, given: levels.append(float(given[1][0])))
    method.sample(3, n_steps=4)
    assert min(levels) == pytest.approx(0.3)
    assert levels[-1] == pytest.approx(0.3)


def test_consistency_takes_noisy_samples_alone_without_warning() -> None:
    settings = SMALL | {"n_steps": 3, "consistency_coef": 1.0, "consistency_draws": 2, "consistency_steps": 2}
    method = AmbientDiffusion(small_network(), **settings).fit(DIGITS[:100], 0.3)
    assert method.lowest_level_ == 0


def test_classes_are_drawn_as_asked() -> None:
    X = np.repeat(np.float32([[-0.5, -0.5], [0.5, 0.5]]), 100, axis=0)
    y = np.repeat([0, 1], 100)
    y[::10] = -1
    network = small_network(2, n_classes=2)
    method = AmbientDiffusion(network, batch_size=128, n_steps=250, random_state=0).fit(X, 0.0, y)
    for label, place in ((0, -0.5), (1, 0.5)):
        np.testing.assert_allclose(method.sample(50, y=label).mean(0), place, atol=0.1)
    assert method.label_shares_ is not None
    np.testing.assert_allclose(method.label_shares_, [0.45, 0.45, 0.1])
    shares = (method.sample(200)[:, 0] > 0).mean()
    assert 0.35 < shares < 0.65
    near = method.denoise([[0.0, 0.0]], 0.5, [1])
    assert (near > 0.2).all()
    assert method.posterior_mean(X[:4], 0.1, y[:4]).shape == (4, 2)
    with pytest.raises(ValueError, match=r"y must lie in 0\.\.1"):
        method.sample(2, y=2)
    with pytest.raises(ValueError, match="y must be an int"):
        method.sample(2, y=[0, 1, 1])


def test_images_of_odd_sides_take_the_u_net() -> None:
    images = DIGITS[:40].reshape(-1, 1, 8, 8)[:, :, :7, :5]
    method = AmbientDiffusion(batch_size=16, n_steps=3, random_state=0).fit(images)
    assert isinstance(method.ema_model_.inner, UNetDenoiser)
    assert method.sample(2, n_steps=3, solver="euler").shape == (2, 1, 7, 5)


@pytest.mark.parametrize("network", [MLPDenoiser(6, width=8, depth=1, n_classes=3), UNetDenoiser(1, (4, 6), 3)])
def test_networks_are_rebuilt_and_hear_labels(network: nn.Module) -> None:
    x = torch.randn((2, 6) if isinstance(network, MLPDenoiser) else (2, 1, 6, 5), generator=seeded())
    sigma = torch.tensor([0.3, 2.0])
    wrapped = PreconditionedDenoiser(network, sigma_data=0.7)
    again: Any = build(wrapped.architecture)
    again.load_state_dict(wrapped.state_dict())
    first = wrapped(x, sigma, torch.tensor([0, 1]))
    torch.testing.assert_close(again(x, sigma, torch.tensor([0, 1])), first)
    assert not torch.allclose(wrapped(x, sigma, torch.tensor([2, 3])), first)


# ---- augmentation ----


def flipped(images: Tensor) -> Tensor:
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)


def test_what_changes_noise_is_told_from_what_moves_it() -> None:
    assert moves_pixels_only(flipped, (1, 8, 8))
    assert not moves_pixels_only(PadCrop(2), (1, 8, 8))
    assert not moves_pixels_only(affine(), (1, 8, 8))


def test_noise_is_never_interpolated() -> None:
    y, s = torch.from_numpy(DIGITS[:6]).reshape(-1, 1, 8, 8), torch.tensor([0.0, 0.0, 0.0, 0.4, 0.4, 0.4])
    method = AmbientDiffusion(augment=lambda images: images + 1)
    for both in (False, True):
        trainer = AmbientTrainer(nn.Identity(), method, both, False, n_steps=1, batch_size=4, optimizer=adam(1e-3))
        trainer.tensors = (y, s, torch.zeros(6))
        moved = (trainer.fetch(torch.arange(6))[0] - y).flatten(1).mean(1)
        torch.testing.assert_close(moved, torch.tensor([1.0, 1, 1, both, both, both]))


# ---- what noisy samples are worth ----


def test_corruption_is_frozen_by_number() -> None:
    X, noise_std = corrupt(DIGITS[:200], 0.25, 0.3, random_state=1)
    again, _ = corrupt(DIGITS[:200], 0.25, 0.3, random_state=1)
    np.testing.assert_array_equal(X, again)
    assert (noise_std > 0).sum() == 50
    np.testing.assert_array_equal(X[noise_std == 0], DIGITS[:200][noise_std == 0])
    assert (X - DIGITS[:200])[noise_std > 0].std() == pytest.approx(0.3, rel=0.05)
    more, _ = corrupt(DIGITS[:200], 1.0, 0.3, random_state=1)
    np.testing.assert_array_equal(more[noise_std > 0], X[noise_std > 0])
    with pytest.raises(ValueError, match=r"fraction_noisy=1\.5"):
        corrupt(DIGITS[:5], 1.5, 0.3)
    with pytest.raises(ValueError, match="sigma=-1"):
        corrupt(DIGITS[:5], 0.5, -1.0)


GRID, CURVE = [50, 100, 200, 400], [9.0, 5.0, 3.0, 2.0]


def test_a_point_of_the_curve_costs_one_and_no_help_costs_infinity() -> None:
    assert noisy_sample_price(GRID, CURVE, 50, 150, 3.0).price == pytest.approx(1.0)
    assert noisy_sample_price(GRID, CURVE, 100, 100, 3.0).price == pytest.approx(1.0)
    assert noisy_sample_price(GRID, CURVE, 100, 300, 3.0).price == pytest.approx(3.0)
    assert noisy_sample_price(GRID, CURVE, 100, 300, 5.0).price == np.inf
    assert noisy_sample_price(GRID, CURVE, 100, 300, 7.0).price == np.inf
    rising = noisy_sample_price(GRID, [0.5, 0.6, 0.7, 0.8], 100, 300, 0.7)
    assert rising.price == pytest.approx(3.0)


def test_between_points_the_curve_is_monotone_even_where_figures_are_not() -> None:
    found = [clean_equivalent(np.array(GRID, float), np.array([9.0, 4.0, 4.5, 2.0]), m) for m in (8, 6, 4.3, 3, 2.2)]
    assert (np.diff(found) > 0).all()
    assert 50 < found[0] < found[-1] < 400


def test_the_interval_spans_the_seeds() -> None:
    curves = np.array(CURVE)[:, None] * np.array([1.0, 1.1, 0.9])
    price = noisy_sample_price(GRID, curves, 50, 300, [3.0, 3.3, 2.8])
    assert price.lower < price.price < price.upper
    assert price.n_effective > 50


def test_a_seed_whose_curve_turns_counts_as_the_mean_does() -> None:
    turned = np.array(
        [[8.0, 8.0, 3.0], [4.0, 5.0, 4.0], [2.0, 2.0, 3.5]]
    )  # of the last seed the ends lie the other way
    found = noisy_sample_price([100, 200, 400], turned, 50, 300, 3.7)
    assert found.lower < found.price < found.upper
    assert found.upper == pytest.approx(300 / 50)  # lower is better: that seed is level at 3.5, which 100 reach
    assert clean_equivalent(np.array([100.0, 200.0]), np.array([3.0, 4.0]), 3.2, improves=False) == 100
    assert clean_equivalent(np.array([100.0, 200.0]), np.array([3.0, 4.0]), 3.2, improves=True) > 100


def test_a_mix_worse_than_the_smallest_clean_set_warns() -> None:
    with pytest.warns(UserWarning, match="lower bound"):
        assert noisy_sample_price(GRID, CURVE, 20, 300, 20.0).price == pytest.approx(300 / 30)
    assert noisy_sample_price(GRID, CURVE, 50, 300, 20.0).price == np.inf


def test_a_mix_beyond_the_curve_warns() -> None:
    with pytest.warns(UserWarning, match="upper bound"):
        assert noisy_sample_price(GRID, CURVE, 100, 300, 1.0).n_effective == 400


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([50], [9.0], 5, 5, 3.0), "n_clean_grid"),
        (([100, 50], [9.0, 5.0], 5, 5, 3.0), "n_clean_grid"),
        (([50, 100], [9.0], 5, 5, 3.0), "metric_clean must have a row"),
        (([50, 100], [9.0, np.nan], 5, 5, 3.0), "finite"),
        (([50, 100], [9.0, 5.0], 5, 0, 3.0), "n_noisy=0"),
        (([50, 100], [9.0, 5.0], 5, np.nan, 3.0), "n_noisy=nan"),
        (([50, 100], [9.0, 5.0], np.nan, 5, 3.0), "n_base_clean=nan"),
        (([50, np.nan], [9.0, 5.0], 5, 5, 3.0), "n_clean_grid"),
        (([50, 100], [9.0, 9.0], 5, 5, 3.0), "ends where it starts"),
    ],
)
def test_prices_that_can_not_be_told(given: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        noisy_sample_price(*given)


# ---- errors ----


@pytest.mark.parametrize(
    ("X", "noise_std", "message"),
    [
        (DIGITS[:10], -0.1, "noise_std must be finite and not negative"),
        (DIGITS[:10], np.nan, "noise_std must be finite"),
        (DIGITS[:10], np.zeros(9), r"noise_std must be a number or shaped \(10,\)"),
        (DIGITS[:10], 80.0, "noise_std must lie below sigma_max"),
        ((DIGITS[:10] * 100 + 100).astype(np.uint8), 0.0, "X must hold floats .* got uint8"),
        (DIGITS[0], 0.0, r"X must be shaped \(n, d\)"),
        (DIGITS[:10].reshape(-1, 8, 8), 0.0, "one channel"),
        (DIGITS[:0], 0.0, "X holds no samples"),
        (np.full((3, 4), np.nan), 0.0, "X contains NaN"),
    ],
)
def test_what_fit_refuses(X: Any, noise_std: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AmbientDiffusion(**SMALL).fit(X, noise_std)


def test_a_denoiser_of_another_shape_is_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor, condition: Tensor, labels: Tensor | None = None) -> Tensor:
            return self.scale * x.mean(dim=1, keepdim=True)

    with pytest.raises(ValueError, match=r"denoiser must give rows shaped \(64,\) as its input, got \(1,\)"):
        AmbientDiffusion(Mean(), **SMALL).fit(DIGITS[:10])


def test_levels_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="sigma_min=1"):
        AmbientDiffusion(sigma_min=1.0, sigma_max=0.5).fit(DIGITS[:10])


def test_what_answers_refuse() -> None:
    method = AmbientDiffusion(small_network(), **SMALL)
    with pytest.raises(NotFittedError, match="fit"):
        method.sample(2)
    method.fit(DIGITS[:100])
    with pytest.raises(ValueError, match="n=0"):
        method.sample(0)
    with pytest.raises(ValueError, match="solver must be"):
        method.sample(1, solver="dpm")
    with pytest.raises(ValueError, match=r"shaped \(64,\) as in fit"):
        method.denoise(DIGITS[:2, :5], 0.3)
    with pytest.raises(ValueError, match="sigma must be positive"):
        method.denoise(DIGITS[:2], 0.0)
    with pytest.raises(ValueError, match="trained without labels"):
        method.sample(2, y=1)
    labelled = AmbientDiffusion(small_network(n_classes=10), **SMALL).fit(DIGITS[:100], 0.0, load_digits().target[:100])
    with pytest.raises(ValueError, match="y is needed"):
        labelled.denoise(DIGITS[:2], 0.3)


def test_alike_samples_are_learned() -> None:
    X = np.full((50, 3), 0.25, dtype=np.float32)
    method = AmbientDiffusion(small_network(3), batch_size=64, n_steps=200, random_state=0).fit(X)
    np.testing.assert_allclose(method.sample(20).mean(0), 0.25, atol=0.1)

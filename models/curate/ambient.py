"""Train a generative model on a few clean and many noisy samples whose noise is known, and price the noisy ones.

G. Daras, Y. Cherapanamjeri and C. Daskalakis, "How Much is a Noisy Image Worth? Data Scaling Laws for Ambient
Diffusion", ICLR 2025, arXiv:2411.02780. The loss for noisy samples is that of G. Daras, A. Dimakis and C. Daskalakis,
"Consistent Diffusion Meets Tweedie: Training Exact Ambient Diffusion Models with Noisy Data", ICML 2024,
arXiv:2404.10177.

Noise of level sigma is added to a sample that carries noise of level s already: only what is missing between the two
is drawn. A sample teaches the denoiser at levels above its own, and nothing below. Step by step: (1) EDM's denoiser,
(2) a noise level for each sample, (3) the noise that is missing, (4) what the denoiser expects to observe, (5) the
loss, (6) consistency between levels, (7) the optimiser and the moving average, (8) the sampler.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from models.augment import View
from models.base import check_labels, isolated_seed, seed_from
from models.curate.noise_price import PriceEstimate, clean_equivalent, corrupt, noisy_sample_price
from models.networks.denoiser import (
    Denoise,
    MLPDenoiser,
    PreconditionedDenoiser,
    UNetDenoiser,
    follow,
    noise_grid,
    over_rows,
)
from models.registry import register
from models.training import ExponentialAverage, Row, StepTrainer, Trainer, adam

__all__ = ["AmbientDiffusion", "PriceEstimate", "clean_equivalent", "corrupt", "noisy_sample_price"]

Floats = NDArray[np.float32]

RAMP_IMAGES = 10_000_000
LARGEST_GRADIENT = 1e5
CHUNK = 512


# ---- the equations ------------------------------------------------------------------------------------------


def draw_sigma(s: Tensor, p_mean: float, p_std: float, sampling: str, generator: torch.Generator) -> Tensor:
    """Noise levels with ln sigma ~ N(p_mean, p_std^2) that are nowhere below `s` (step 2).

    "clamp" raises a level that is too low to the sample's own. "reject" draws from the part of the distribution above
    it, as drawing again until a level is high enough would.
    """
    if sampling == "clamp":
        return torch.maximum((p_mean + p_std * torch.randn(len(s), generator=generator).to(s)).exp(), s)
    lowest = (s.double().log() - p_mean) / p_std
    share = 1 - torch.rand(len(s), generator=generator, dtype=torch.float64).to(s.device)
    tiny = torch.finfo(torch.float64).tiny
    drawn = -torch.special.ndtri((share * torch.special.ndtr(-lowest)).clamp_min(tiny))
    return torch.maximum((p_mean + p_std * drawn).exp().to(s.dtype), s)


def add_noise(y: Tensor, s: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """``x_sigma = y + sqrt(sigma^2 - s^2) n``: from a sample's own level to `sigma` (step 3)."""
    return y + over_rows((sigma**2 - s**2).clamp_min(0).sqrt(), y) * noise


def expected_observation(denoised: Tensor, x: Tensor, s: Tensor, sigma: Tensor) -> Tensor:
    """``E[y | x_sigma] = (s/sigma)^2 x_sigma + (1 - (s/sigma)^2) E[x_0 | x_sigma]``, by Tweedie's formula (step 4)."""
    share = over_rows((s / sigma) ** 2, x)
    return share * x + (1 - share) * denoised


def loss_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """``(sigma^2 + sd^2) / (sigma sd)^2``: lambda of step 5."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def ambient_loss(denoised: Tensor, x: Tensor, y: Tensor, s: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Weighted squared error of the expected observation, mean over samples and pixels (step 5).

    Parameters
    ----------
    denoised : Tensor, (B, ...)
        D(x, sigma).
    x, y : Tensor, (B, ...)
        The sample at level sigma, and as it was observed.
    s, sigma : Tensor, (B,)
    sigma_data : float
    """
    gap = expected_observation(denoised, x, s, sigma) - y
    return (over_rows(loss_weight(sigma, sigma_data), y) * gap**2).mean()


def reverse_step(x: Tensor, denoised: Tensor, t: Tensor, below: Tensor, noise: Tensor) -> Tensor:
    """One step of the reverse stochastic equation from level `t` to `below` (step 6)."""
    drift = 2 * over_rows((below - t) / t, x) * (x - denoised)
    return x + drift + over_rows((2 * t * (t - below)).clamp_min(0).sqrt(), x) * noise


# ---- training ------------------------------------------------------------------------------------------------


class RampedAverage(ExponentialAverage):
    """Moving average of the weights whose half-life grows with what was seen, up to `half_life` samples (step 7)."""

    def __init__(self, half_life: float, ramp: float | None, batch_size: int) -> None:
        super().__init__()
        self.half_life, self.ramp, self.batch_size = half_life, ramp, batch_size

    def on_batch_end(self, trainer: Trainer, terms: Row) -> None:
        """Set the decay for what was seen before this batch, then average."""
        seen = (trainer.step - 1) * self.batch_size
        half_life = self.half_life if self.ramp is None else min(self.half_life, self.ramp * seen)
        self.decay = 0.5 ** (self.batch_size / max(half_life, 1e-8))
        super().on_batch_end(trainer, terms)


class AmbientTrainer(StepTrainer):
    """The loss of step 5, and of step 6 where asked for, on (samples, noise levels, labels).

    Parameters
    ----------
    network : PreconditionedDenoiser
    method : AmbientDiffusion
        Its parameters are read.
    augments_noisy : bool
        Whether noisy samples are augmented too.
    labelled : bool
        Whether the network is given labels.
    """

    def __init__(
        self, network: nn.Module, method: AmbientDiffusion, augments_noisy: bool, labelled: bool, **parameters: Any
    ) -> None:
        super().__init__(network, **parameters)
        self.method, self.augments_noisy, self.labelled = method, augments_noisy, labelled

    def fetch(self, index: Tensor) -> tuple[Tensor, ...]:
        """Samples, augmented where that leaves their noise alone, their levels and labels."""
        y, s, labels = super().fetch(index)
        if self.method.augment is not None:
            changed = self.method.augment(y)
            y = changed if self.augments_noisy else torch.where(over_rows(s, y) > 0, y, changed)
        return y, s, labels

    def noise(self, like: Tensor) -> Tensor:
        """Normal noise from the trainer's own generator."""
        return torch.randn(like.shape, generator=self.generator).to(like)

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Steps 2-6."""
        y, s, labels = batch
        method, given = self.method, labels if self.labelled else None
        sigma = draw_sigma(s, method.p_mean, method.p_std, method.sigma_sampling, self.generator)
        x = add_noise(y, s, sigma, self.noise(y))
        denoised = self.network(x, sigma, given)
        loss = ambient_loss(denoised, x, y, s, sigma, method.sigma_data)
        if not method.consistency_coef:
            return loss, {}
        few = slice(method.consistency_batch)
        other = self.consistency(x[few], sigma[few], denoised[few], None if given is None else given[few])
        terms = {"ambient_loss": float(loss.detach()), "consistency_loss": float(other.detach())}
        return loss + method.consistency_coef * other, terms

    def consistency(self, x: Tensor, sigma: Tensor, denoised: Tensor, labels: Tensor | None) -> Tensor:
        """Squared gap between D at sigma and the mean of D at a lower level reached by the reverse process (step 6)."""
        method, copies = self.method, self.method.consistency_draws
        free = draw_sigma(torch.zeros_like(sigma), method.p_mean, method.p_std, "clamp", self.generator)
        grid = noise_grid(sigma, torch.minimum(free, sigma), method.consistency_steps + 1, method.rho).repeat(1, copies)
        given = None if labels is None else labels.repeat(copies)
        path = x.repeat(copies, *[1] * (x.ndim - 1))
        with torch.set_grad_enabled(method.consistency_grad):
            for t, below in pairwise(grid):
                path = reverse_step(path, self.network(path, t, given), t, below, self.noise(path))
        reached = self.network(path, grid[-1], given).unflatten(0, (copies, len(x))).mean(0)
        gap = (reached - denoised) ** 2
        if method.consistency_weight:
            gap = over_rows(loss_weight(sigma, method.sigma_data), x) * gap
        return gap.mean()

    def train_step(self, batch: tuple[Tensor, ...], index: Tensor) -> Row:
        """As any step, with gradients that are not finite replaced (step 7)."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = self.loss_of(self.compute_loss, batch, index)
        self.fabric.backward(loss)
        for parameter in self.plain_network.parameters():
            if parameter.grad is not None:
                torch.nan_to_num_(parameter.grad, nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT)
        self.optimizer.step()
        return {"loss": float(loss.detach()), **terms}


def moves_pixels_only(augment: View, shape: tuple[int, ...]) -> bool:
    """Whether an augmentation of white noise makes no new values: flips do, rotations and borders of zeros do not."""
    noise = torch.randn(16, *shape)
    return bool(torch.isin(augment(noise), noise).all())


@register(
    "ambient",
    stage="curate",
    summary="Trains a generative model on clean and noisy samples of known noise, and prices noisy ones in clean ones.",
    paper="How Much is a Noisy Image Worth? Data Scaling Laws for Ambient Diffusion",
    year=2025,
    link="https://arxiv.org/abs/2411.02780",
    licence="CC BY-NC-SA 4.0 in most files",
    accepts=("image", "table", "embedding"),
    taxonomy={
        "goal": "distribution matching",
        "utility": "noise level of each sample",
        "unit": "data point",
        "mechanism": "samples count at noise levels above their own",
        "stage_of_training": "pretraining",
    },
)
class AmbientDiffusion(BaseEstimator):
    """Diffusion model of clean data, learnt from clean and noisy samples together.

    Noise must be Gaussian, independent between pixels, of a level known for each sample, and must not have been
    clipped: pixels stored as bytes, or cut to [-1, 1], no longer have it. It must also stay the same each time a
    sample is seen; noise drawn anew would give the clean sample away by its mean.

    Parameters
    ----------
    denoiser : nn.Module, optional
        (input, noise condition (B,), labels (B,) or None) -> output like the input; it is copied. By default a small
        U-Net for images and a residual network for rows.
    sigma_data : float, default=0.5
        Standard deviation of clean data.
    p_mean, p_std : float, default=-1.2, 1.2
        Mean and standard deviation of ln sigma in training.
    sigma_min, sigma_max, rho : float, default=0.002, 80.0, 7.0
        Lowest and highest noise level of the sampler, and how its levels crowd towards the lowest.
    lr : float, default=1e-3
        Of Adam.
    batch_size : int, default=512
        Where there are fewer samples they repeat within a batch.
    n_steps : int, default=20000
    lr_rampup_steps : int, optional
        Steps in which the learning rate grows from 0; by default those of ten million images, a tenth of all at most.
    ema_halflife_images : float, default=500_000
        Half-life of the weights' moving average, in images.
    ema_rampup_ratio : float or None, default=0.05
        The half-life is at most this share of the images seen.
    consistency_coef : float, default=0.0
        Weight of the consistency loss, which may help where there is (almost) no clean sample and costs many times
        a step.
    consistency_steps, consistency_draws, consistency_batch : int, default=6, 6, 32
        Steps of the reverse process, its copies of a sample, samples of a batch it starts from.
    consistency_grad : bool, default=True
        Differentiate through the reverse process.
    consistency_weight : bool, default=False
        Weigh the consistency loss by noise level as the other.
    sigma_sampling : {"clamp", "reject"}, default="clamp"
        What happens to levels drawn below a sample's own: raised to it, where they teach nothing, or drawn again.
    augment : callable, optional
        Batch -> batch, drawn anew each time. One that makes new values (rotation, zeros at the border) would change
        the noise, so it is applied to clean samples only. What it makes is part of what is learnt.
    device : str, default="cpu"
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    ema_model_ : PreconditionedDenoiser
        The averaged network, which all answers come from.
    model_ : PreconditionedDenoiser
        The network after the last step.
    loss_curve_ : list of float
        Mean loss of each pass.
    n_clean_, n_noisy_ : int
    noise_levels_ : array of float32
        Distinct levels, ascending; 0 is clean.
    lowest_level_ : float
        Sampling goes down to this level before its last step: 0 with clean samples or consistency.
    augments_noisy_ : bool
        Whether `augment` was applied to noisy samples too.
    label_shares_ : array of float64, (n_classes + 1,), or None
        Shares of the classes in training, unlabelled samples last.
    sample_shape_ : tuple of int
    n_features_in_ : int

    Raises
    ------
    ValueError
        In ``fit`` for samples of another rank or of whole numbers, NaN, noise levels that are negative, not finite, of
        another number than samples or not below `sigma_max`.

    Warns
    -----
    UserWarning
        With noisy samples only and no consistency loss: the model knows nothing below the smallest noise level. Its
        samples are the mean of what is possible there, and blurry.

    References
    ----------
    Daras et al. (2025), section 2; Daras et al. (2024), theorem 4.1 and equation 8; Karras et al., "Elucidating the
    Design Space of Diffusion-Based Generative Models", NeurIPS 2022, arXiv:2206.00364, algorithm 1 and table 1.

    Examples
    --------
    >>> import numpy as np
    >>> clean = np.random.default_rng(0).choice([-0.5, 0.5], (200, 2)).astype(np.float32)
    >>> X, noise_std = corrupt(clean, 0.9, 0.2, random_state=0)
    >>> method = AmbientDiffusion(batch_size=32, n_steps=20, random_state=0).fit(X, noise_std)
    >>> method.n_clean_, method.n_noisy_, method.sample(5).shape
    (20, 180, (5, 2))
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "denoiser": [None, nn.Module],
        "sigma_data": [Interval(Real, 0, None, closed="neither")],
        "p_mean": [Real],
        "p_std": [Interval(Real, 0, None, closed="neither")],
        "sigma_min": [Interval(Real, 0, None, closed="neither")],
        "sigma_max": [Interval(Real, 0, None, closed="neither")],
        "rho": [Interval(Real, 0, None, closed="neither")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
        "lr_rampup_steps": [None, Interval(Integral, 1, None, closed="left")],
        "ema_halflife_images": [Interval(Real, 0, None, closed="neither")],
        "ema_rampup_ratio": [None, Interval(Real, 0, None, closed="neither")],
        "consistency_coef": [Interval(Real, 0, None, closed="left")],
        "consistency_steps": [Interval(Integral, 1, None, closed="left")],
        "consistency_draws": [Interval(Integral, 1, None, closed="left")],
        "consistency_batch": [Interval(Integral, 1, None, closed="left")],
        "consistency_grad": ["boolean"],
        "consistency_weight": ["boolean"],
        "sigma_sampling": [StrOptions({"clamp", "reject"})],
        "augment": [None, callable],
        "device": [str],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        denoiser: nn.Module | None = None,
        *,
        sigma_data: float = 0.5,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        lr: float = 1e-3,
        batch_size: int = 512,
        n_steps: int = 20_000,
        lr_rampup_steps: int | None = None,
        ema_halflife_images: float = 500_000,
        ema_rampup_ratio: float | None = 0.05,
        consistency_coef: float = 0.0,
        consistency_steps: int = 6,
        consistency_draws: int = 6,
        consistency_batch: int = 32,
        consistency_grad: bool = True,
        consistency_weight: bool = False,
        sigma_sampling: str = "clamp",
        augment: View | None = None,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.sigma_data = sigma_data
        self.p_mean = p_mean
        self.p_std = p_std
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.rho = rho
        self.lr = lr
        self.batch_size = batch_size
        self.n_steps = n_steps
        self.lr_rampup_steps = lr_rampup_steps
        self.ema_halflife_images = ema_halflife_images
        self.ema_rampup_ratio = ema_rampup_ratio
        self.consistency_coef = consistency_coef
        self.consistency_steps = consistency_steps
        self.consistency_draws = consistency_draws
        self.consistency_batch = consistency_batch
        self.consistency_grad = consistency_grad
        self.consistency_weight = consistency_weight
        self.sigma_sampling = sigma_sampling
        self.augment = augment
        self.device = device
        self.random_state = random_state

    # ---- training ------------------------------------------------------------------------------------------

    def fit(
        self, X: ArrayLike | Tensor, noise_std: ArrayLike | Tensor = 0.0, y: ArrayLike | Tensor | None = None
    ) -> AmbientDiffusion:
        """Train on all samples at once.

        Parameters
        ----------
        X : array or tensor of floats, (n, c, h, w) or (n, d)
            Scaled to [-1, 1] before the noise came; with it, values may lie outside.
        noise_std : float or array, (n,)
            Standard deviation of each sample's noise in the units of `X` (0.2 here is 0.1 for pixels in [0, 1]); 0 is
            clean.
        y : array of int, (n,), optional
            Classes for conditional sampling, -1 where unknown.
        """
        self._validate_params()
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} must lie below sigma_max={self.sigma_max}.")
        samples = check_noisy(X)
        levels = self._check_levels(noise_std, len(samples))
        labels, n_classes = np.zeros(len(samples), dtype=np.int64), 0
        self.label_shares_: NDArray[np.float64] | None = None
        if y is not None:
            labels = check_labels(y, len(samples))
            n_classes = int(labels.max()) + 1
            labels = np.where(labels < 0, n_classes, labels)
            self.label_shares_ = np.bincount(labels, minlength=n_classes + 1) / len(labels)
        self.sample_shape_, self.n_features_in_ = tuple(samples.shape[1:]), samples[0].numel()
        self.noise_levels_ = levels.unique().numpy()
        self.n_noisy_ = int((levels > 0).sum())
        self.n_clean_ = len(samples) - self.n_noisy_
        self.lowest_level_ = 0.0 if self.n_clean_ or self.consistency_coef else float(self.noise_levels_[0])
        if self.lowest_level_:
            warnings.warn(
                f"All {len(samples)} samples are noisy: nothing is learnt below the smallest noise level, "
                f"{self.lowest_level_:.4g}, and what is sampled will be blurry. Add a few clean samples.",
                stacklevel=2,
            )
        with isolated_seed(self.random_state) as seed:
            self._train(samples, levels, torch.from_numpy(labels), n_classes, seed)
        return self

    def _check_levels(self, given: ArrayLike | Tensor, n: int, name: str = "noise_std") -> Tensor:
        levels = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=np.float32)
        if levels.shape not in ((), (n,)):
            raise ValueError(f"{name} must be a number or shaped ({n},) to match X, got {levels.shape}.")
        if not (np.isfinite(levels) & (levels >= 0)).all():
            raise ValueError(f"{name} must be finite and not negative; 0 marks a clean sample.")
        if name == "noise_std" and (levels >= self.sigma_max).any():
            raise ValueError(
                f"noise_std must lie below sigma_max={self.sigma_max}, got {levels.max():.4g}. "
                "It counts in the units of X, scaled to [-1, 1]."
            )
        return torch.from_numpy(np.broadcast_to(levels, (n,)).copy())

    def _train(self, samples: Tensor, levels: Tensor, labels: Tensor, n_classes: int, seed: int) -> None:
        shape = self.sample_shape_
        if self.denoiser is not None:
            inner = copy.deepcopy(self.denoiser)
        elif len(shape) == 1:
            inner = MLPDenoiser(shape[0], n_classes=n_classes)
        else:
            inner = UNetDenoiser(shape[0], n_classes=n_classes)
        self.augments_noisy_ = self.augment is not None and moves_pixels_only(self.augment, shape)
        ramp = self.lr_rampup_steps or max(1, min(-(-RAMP_IMAGES // self.batch_size), self.n_steps // 10))
        average = RampedAverage(self.ema_halflife_images, self.ema_rampup_ratio, self.batch_size)
        trainer = AmbientTrainer(
            PreconditionedDenoiser(inner, sigma_data=self.sigma_data),
            self,
            self.augments_noisy_,
            n_classes > 0,
            n_steps=self.n_steps,
            batch_size=self.batch_size,
            optimizer=adam(self.lr),
            schedule=lambda step, total: min((step + 1) / ramp, 1.0),
            hooks=[average],
            label="ambient diffusion",
            seed=seed,
            device=self.device,
        ).fit(samples, levels, labels)
        self.model_, self.ema_model_ = trainer.plain_network, average.average
        self.model_.requires_grad_(False)
        self.loss_curve_ = [row["loss"] for row in trainer.history]

    # ---- answers -------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        y: ArrayLike | None = None,
        n_steps: int = 18,
        solver: str = "heun",
        generator: torch.Generator | None = None,
    ) -> Floats:
        """Draw new clean samples (step 8).

        Trained on noisy samples only, the sampler stops at the smallest noise level and answers with the mean of the
        clean samples that are possible there, which is blurry.

        Parameters
        ----------
        n : int
        y : int or array of int, (n,), optional
            Classes; by default, of a model trained with labels, drawn by their shares in training.
        n_steps : int, default=18
            Noise levels on the way; "heun" evaluates the network twice at each.
        solver : {"heun", "euler"}, default="heun"
        generator : torch.Generator, optional
            On the CPU; by default one seeded by `random_state`.

        Returns
        -------
        array of float32, (n, c, h, w) or (n, d)
            Not clipped.
        """
        check_is_fitted(self, "ema_model_")
        if n < 1 or n_steps < 2:
            raise ValueError(f"At least one sample and two steps are needed, got n={n} and n_steps={n_steps}.")
        if solver not in ("heun", "euler"):
            raise ValueError(f"solver must be 'heun' or 'euler', got {solver!r}.")
        if generator is None:
            generator = torch.Generator().manual_seed(seed_from(self.random_state))
        if y is None and self.label_shares_ is not None:
            shares = torch.from_numpy(self.label_shares_)
            labels: Tensor | None = torch.multinomial(shares, n, replacement=True, generator=generator)
        else:
            labels = self._labels(y, n)
        lowest = max(self.sigma_min, self.lowest_level_)
        grid = noise_grid(torch.tensor(self.sigma_max), torch.tensor(lowest), n_steps, self.rho)
        levels = [*grid.tolist(), 0.0]
        x = torch.randn((n, *self.sample_shape_), generator=generator) * self.sigma_max
        return self._in_chunks(lambda denoise, rows: follow(denoise, rows[0], levels, solver == "heun"), [x], labels)

    def denoise(self, X: ArrayLike | Tensor, sigma: ArrayLike, y: ArrayLike | None = None) -> Floats:
        """The mean of the clean samples behind noisy ones, ``E[x_0 | x_sigma]``.

        Parameters
        ----------
        X : array, (n, c, h, w) or (n, d)
        sigma : float or array, (n,)
            Noise level, positive. Below the smallest level of the training data the network was never taught.
        y : int or array of int, (n,), optional
            Classes; a model trained with a label for every sample needs them.
        """
        check_is_fitted(self, "ema_model_")
        rows = check_noisy(X, self.sample_shape_)
        levels = self._check_levels(sigma, len(rows), "sigma")
        if (levels <= 0).any():
            raise ValueError("sigma must be positive: a sample without noise needs no denoising.")
        if y is None and self.label_shares_ is not None and not self.label_shares_[-1]:
            raise ValueError("y is needed: this model was trained with a label for every sample.")
        return self._in_chunks(lambda denoise, given: denoise(*given), [rows, levels], self._labels(y, len(rows)))

    def posterior_mean(self, X: ArrayLike | Tensor, noise_std: ArrayLike, y: ArrayLike | None = None) -> Floats:
        """Training samples without their noise: :meth:`denoise` at each one's level; clean ones stay as they are."""
        check_is_fitted(self, "ema_model_")
        rows = check_noisy(X, self.sample_shape_)
        levels = self._check_levels(noise_std, len(rows)).numpy()
        noisy = levels > 0
        found = rows.numpy().copy()
        if noisy.any():
            labels = None if y is None else np.broadcast_to(np.asarray(y), (len(rows),))[noisy]
            found[noisy] = self.denoise(found[noisy], levels[noisy], labels)
        return found

    def _labels(self, y: ArrayLike | None, n: int) -> Tensor | None:
        """Labels for the network, that for "none" last; None where it takes none."""
        if self.label_shares_ is None:
            if y is not None:
                raise ValueError("y was given, but the model was trained without labels.")
            return None
        n_classes = len(self.label_shares_) - 1
        given = np.asarray(-1 if y is None else y)
        if given.shape not in ((), (n,)) or given.dtype.kind not in "iu":
            raise ValueError(f"y must be an int or ints shaped ({n},), got {given.dtype} shaped {given.shape}.")
        if (given < -1).any() or (given >= n_classes).any():
            raise ValueError(f"y must lie in 0..{n_classes - 1} (-1 for no class), got {given.min()} to {given.max()}.")
        return torch.from_numpy(np.where(given < 0, n_classes, np.broadcast_to(given, (n,))).astype(np.int64))

    def _in_chunks(
        self, answer: Callable[[Denoise, list[Tensor]], Tensor], rows: list[Tensor], labels: Tensor | None
    ) -> Floats:
        """`answer` of the averaged network, `CHUNK` rows at a time."""
        device = next(self.ema_model_.parameters()).device
        found = []
        with torch.inference_mode():
            for part in torch.arange(len(rows[0])).split(CHUNK):
                given = None if labels is None else labels[part].to(device)
                own = [values[part].to(device) for values in rows]
                found.append(answer(lambda x, t, given=given: self.ema_model_(x, t, given), own).cpu())  # type: ignore[misc]
        return torch.cat(found).numpy()


def check_noisy(X: ArrayLike | Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Rows or images with whatever noise they carry, as a new float32 tensor.

    Raises
    ------
    ValueError
        For another rank, whole numbers, no rows, NaN and infinite values, or samples of another shape than `shape`.
    """
    array = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
    if array.ndim not in (2, 4):
        raise ValueError(f"X must be shaped (n, d) or (n, c, h, w), got {array.shape}. Give grey images one channel.")
    if array.dtype.kind != "f":
        raise ValueError(
            f"X must hold floats scaled to [-1, 1] before the noise, got {array.dtype}. Rounded or clipped noise is no "
            "longer Gaussian: go back to the values before they were stored as whole numbers."
        )
    if not array.size:
        raise ValueError(f"X holds no samples (n_samples=0) or no features: it is shaped {array.shape}.")
    if shape is not None and array.shape[1:] != shape:
        raise ValueError(f"X must hold samples shaped {shape} as in fit, got {array.shape[1:]}.")
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if len(bad):
        raise ValueError(f"X contains NaN or infinite values in {len(bad)} sample(s), the first at row {bad[0]}.")
    return torch.from_numpy(np.array(array, dtype=np.float32))

"""The training of PLS and PLS-LSA: its losses, its state of each sample, and the detection after each epoch.

Section numbers are those of PLS (Albert et al., WACV 2023) unless LSA (Albert et al., ECCV 2024) is named.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from models.base import predict_in_batches
from models.label_noise.detectors import (
    DegenerateDetectionError,
    DetectionWarning,
    linear_separation_detector,
    pseudo_loss_confidence,
    small_loss_detector,
)
from models.losses import soft_cross_entropy, target_contrastive
from models.training import Row, Trainer

HALF_PRECISION_GUESSES = 10**9
"""Guesses are kept in float16 above this many entries (10^6 samples of 1000 classes)."""


# Equations. PLS numbers its losses in section 3; LSA keeps them.


def sharpen(probabilities: Tensor, gamma: float) -> Tensor:
    """Guess with its temperature lowered, ``q^gamma / sum_c q^gamma`` over the last axis (PLS, section 3.1)."""
    powered = probabilities.pow(gamma)
    return powered / powered.sum(dim=-1, keepdim=True).clamp_min(1e-12)


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """``sum_i w_i CE(logits_i, t_i) / sum_i w_i`` (PLS, section 3.3)."""
    losses = soft_cross_entropy(logits, targets, reduction="none")
    return (weights * losses).sum() / weights.sum().clamp_min(1e-12)


def mixup_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, mixing: float, partner: Tensor) -> Tensor:
    """Weighted cross-entropy of inputs mixed as ``mixing x + (1 - mixing) x[partner]`` (L_cls)."""
    own = weighted_cross_entropy(logits, targets, weights)
    other = weighted_cross_entropy(logits, targets[partner], weights[partner])
    return mixing * own + (1 - mixing) * other


def class_balance_loss(logits: Tensor) -> Tensor:
    """``KL(uniform || batch mean of softmax)``: 0 when the predicted classes are balanced (L_reg)."""
    n, classes = logits.shape
    log_mean = torch.logsumexp(F.log_softmax(logits, dim=1), dim=0) - math.log(n)
    return -math.log(classes) - log_mean.mean()


def similarity_targets(classes: Tensor, weights: Tensor) -> Tensor:
    """Who should look like whom: ``M_ij = w_i w_j 1[c_i = c_j] + (1 - w_i)(1 - w_j) 1[i = j]`` (PLS, section 3.4).

    Parameters
    ----------
    classes, weights : Tensor, (B,)

    Returns
    -------
    Tensor, (B, B)
        The same-class indicator at weight 1, the identity at weight 0.
    """
    same = (classes[:, None] == classes[None, :]).to(weights.dtype)
    return weights[:, None] * weights[None, :] * same + torch.diag((1 - weights) ** 2)


def interpolated_contrastive_loss(
    first: Tensor,
    second: Tensor,
    classes: Tensor,
    weights: Tensor,
    temperature: float = 0.2,
    mixing: float = 1.0,
    partner: Tensor | None = None,
) -> Tensor:
    """Contrast that goes from supervised (weight 1) to unsupervised InfoNCE (weight 0), sample by sample.

    Parameters
    ----------
    first : Tensor, (B, d)
        Projections of the (mixed) inputs.
    second : Tensor, (B, d)
        Projections of the contrastive views of the same samples.
    classes, weights : Tensor, (B,)
        Class of each target and the confidence in it.
    temperature : float
    mixing : float
    partner : Tensor, (B,), optional
        Mixup's permutation. It permutes the rows of the target matrix only: the columns stay with `second`.

    References
    ----------
    PLS, section 3.4. LSA uses it at weight 1.
    """
    targets = similarity_targets(classes, weights)
    if partner is not None:
        targets = mixing * targets + (1 - mixing) * targets[partner]
    return target_contrastive(first, second, targets, temperature)


def learning_rate_factor(epoch: int, warmup: int, epochs: int) -> float:
    """Constant until `warmup`, then half a cosine."""
    if epoch < warmup:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup + 1) / (epochs - warmup + 1)))


@dataclass(frozen=True)
class Recipe:
    """What differs between PLS and PLS-LSA, and the settings both train with."""

    warm_epochs: int
    first_tracked: int
    gamma: float
    temperature: float
    threshold: float
    mixup_alpha: float
    class_balance: bool
    interpolated: bool
    guess_views: tuple[str, ...]
    schedule: tuple[str, ...] = ("loss",)
    feature_layer: int | None = None
    strong_for_noisy: bool = False
    guard: bool = False


@dataclass
class _Detection:
    """Of one network after one epoch; `linear` holds the hyperplane's own flags where it was used."""

    is_noisy: NDArray[np.bool_]
    p_noisy: NDArray[np.float64]
    confidence: NDArray[np.float64]
    detector: str
    guarded: bool = False
    linear: NDArray[np.bool_] | None = None


class Peers(nn.Module):
    """The networks trained side by side: one, or two that check each other."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor, member: int) -> tuple[Any, ...]:
        """Return the outputs of one member."""
        return self.members[member](x)


class NoiseCorrectionTrainer(Trainer):
    """Train on given and guessed labels; the per-sample state is indexed by row, never by position in a batch.

    Attributes
    ----------
    flagged : Tensor of bool, (n,)
    confidence : Tensor, (n,)
    guesses : Tensor, (networks, n, C)
        Latest unsharpened guesses; the given labels until there are any.
    noise_proba, ood_score : array, (n,)
    is_ood : array of bool, (n,)
    detectors : list of str
        One an epoch: "none", "loss", "linear" or "kept" (a degenerate detection left the flags as they were).
    """

    def __init__(
        self,
        network: Peers,
        images: Tensor,
        labels: NDArray[np.int64],
        n_classes: int,
        recipe: Recipe,
        augment: dict[str, Callable[[Tensor], Tensor]],
        validation: tuple[Tensor, NDArray[np.int64]] | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__(network, **parameters)
        self.images = images
        self.recipe, self.augment, self.validation = recipe, augment, validation
        self.members = len(network.members)
        self.seed = self.generator.initial_seed()
        self.labels = torch.from_numpy(labels)
        self.labelled = self.labels >= 0
        self.onehot = F.one_hot(self.labels.clamp(min=0), n_classes).float()
        self.onehot[~self.labelled] = 1 / n_classes
        kept_as = torch.float16 if self.onehot.numel() > HALF_PRECISION_GUESSES else torch.float32
        self.guesses = self.onehot.to(kept_as).repeat(self.members, 1, 1)
        self.flagged, self.confidence = ~self.labelled, torch.ones(len(labels))
        self.noise_proba = self.flagged.double().numpy()
        self.ood_score, self.is_ood = np.zeros(len(labels)), np.zeros(len(labels), dtype=bool)
        self.detectors: list[str] = []

    def before_epoch(self) -> None:
        """Seed the epoch's draws, so that an epoch run alone equals the same one of a whole fit.

        Convolutions train channels-last, which is two to three times as fast on a CPU.
        """
        self.plain_network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.manual_seed(self.seed + 7919 * self.epoch)
        self.rng = np.random.default_rng([self.seed, self.epoch])

    def compute_loss(self, batch: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, Row]:
        """Warm-up: mixup on the given labels. Afterwards L = L_cls + L_reg + L_con of every network."""
        (images,) = batch
        first = self.augment["weak"](images)
        if self.epoch < self.recipe.warm_epochs:
            return self.warm_up_loss(first, index)
        targets = self.targets(images, first, index)
        flagged = self.flagged[index].to(self.device)
        weights = self.confidence[index].to(self.device)
        if self.recipe.strong_for_noisy and flagged.any():
            first = first.clone()
            first[flagged] = self.augment["strong"](images[flagged])
        contrasted = self.augment["contrastive"](images)
        total, sums = torch.zeros((), device=self.device), {"cls": 0.0, "reg": 0.0, "con": 0.0}
        for member in range(self.members):
            terms = self.member_loss(member, first, contrasted, targets, weights)
            total = total + torch.stack(list(terms.values())).sum()
            for name, value in terms.items():
                sums[name] += float(value.detach()) / self.members
        return total, sums

    def warm_up_loss(self, first: Tensor, index: Tensor) -> tuple[Tensor, Row]:
        """Step 1: mixup cross-entropy on the given labels; unlabelled samples weigh nothing."""
        targets, weights = self.onehot[index].to(self.device), self.labelled[index].float().to(self.device)
        mixing, partner = self.draw_mixup(len(index))
        mixed = mixing * first + (1 - mixing) * first[partner]
        loss = torch.zeros((), device=self.device)
        for member in range(self.members):
            logits = self.network(mixed, member)[0]
            loss = loss + mixup_cross_entropy(logits, targets, weights, mixing, partner)
        return loss, {"cls": float(loss.detach()) / self.members}

    def member_loss(
        self, member: int, first: Tensor, contrasted: Tensor, targets: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """Take steps 3 to 6 for one network: mixed inputs, classification, class balance, contrast."""
        recipe = self.recipe
        mixing, partner = self.draw_mixup(len(first))
        logits, mixed_projection = self.network(mixing * first + (1 - mixing) * first[partner], member)[:2]
        projection = self.network(contrasted, member)[1]
        terms = {"cls": mixup_cross_entropy(logits, targets, weights, mixing, partner)}
        if recipe.class_balance:
            terms["reg"] = class_balance_loss(logits)
        terms["con"] = interpolated_contrastive_loss(
            mixed_projection,
            projection,
            targets.argmax(dim=1),
            weights if recipe.interpolated else torch.ones_like(weights),
            recipe.temperature,
            mixing,
            partner,
        )
        return terms

    def draw_mixup(self, n: int) -> tuple[float, Tensor]:
        """Share of the first image, at least a half, and who is mixed with whom."""
        mixing = float(self.rng.beta(self.recipe.mixup_alpha, self.recipe.mixup_alpha))
        return max(mixing, 1 - mixing), torch.randperm(n).to(self.device)

    @torch.no_grad()
    def targets(self, images: Tensor, first: Tensor, index: Tensor) -> Tensor:
        """Step 2: guess, in train mode as published, remember it, and take it where the label is flagged."""
        names = self.recipe.guess_views
        guess_from = {name: first if name == "v1" else self.augment["weak"](images) for name in names}
        for member in range(self.members):
            outputs = [F.softmax(self.network(view, member)[0].float(), dim=1) for view in guess_from.values()]
            self.guesses[member, index] = torch.stack(outputs).mean(dim=0).to(self.guesses)
        return self.corrected(index).to(self.device)

    def corrected(self, index: Tensor) -> Tensor:
        """Sharpened guesses where flagged, given labels elsewhere, (B, C)."""
        guesses = sharpen(self.guesses[:, index].float().mean(dim=0), self.recipe.gamma)
        return torch.where(self.flagged[index, None], guesses, self.onehot[index])

    def row_state(self) -> list[tuple[Tensor, int]]:
        """The guesses, which are remembered as rows pass."""
        return [(self.guesses, 1)]

    # Detection, after each epoch.

    def after_epoch(self, row: Row) -> None:
        """Step 8: judge every sample with a centred view in eval mode."""
        self.plain_network.eval()
        name = "none"
        if self.epoch >= self.recipe.first_tracked:
            found = [self.detect(member, *self.judge(member)) for member in range(self.members)]
            self.combine(found)
            name = found[0].detector
            row["guarded"] = float(np.mean([one.guarded for one in found]))
        self.detectors.append(name)
        row["flagged"] = float(self.flagged.float().mean())
        if self.validation is not None:
            images, truth = self.validation
            row["val_accuracy"] = float((self.average_logits(images).argmax(dim=1).numpy() == truth).mean())

    def judge(self, member: int) -> tuple[Tensor, Tensor]:
        """Logits (n, C) and pooled features (n, d) of all samples; no features where no detector reads them."""
        layer, classes = self.recipe.feature_layer, self.onehot.shape[1]

        def outputs(part: Tensor) -> Tensor:
            result = self.network(part, member)
            if layer is None:
                return result[0].float()
            return torch.cat([result[0], _pool(result[2][layer])], dim=1).float()

        both = predict_in_batches(outputs, self.images, device=self.device)
        return both[:, :classes], both[:, classes:]

    def average_logits(self, images: Tensor) -> Tensor:
        """Mean logits of the networks, (n, C)."""
        return predict_in_batches(mean_logits(list(self.plain_network.members)), images, device=self.device)  # type: ignore[arg-type]

    def detect(self, member: int, logits: Tensor, features: Tensor) -> _Detection:
        """Run the detector that is due and weigh the corrections; a peer's guesses judge a peer's network."""
        recipe, n = self.recipe, len(logits)
        guesses = sharpen(self.guesses[(member + 1) % self.members].float(), recipe.gamma)
        pseudo_losses = soft_cross_entropy(logits, guesses, reduction="none").numpy()
        losses = F.cross_entropy(logits, self.labels.clamp(min=0), reduction="none").double()
        losses[~self.labelled] = torch.nan
        wanted = recipe.schedule[self.epoch % len(recipe.schedule)]
        try:
            result = self.flag(wanted, losses.numpy(), features.numpy())
        except DegenerateDetectionError as error:
            message = f"Epoch {self.epoch + 1} kept the flags it had and trusts them fully. {error}"
            warnings.warn(message, DetectionWarning, stacklevel=2)
            return _Detection(self.flagged.numpy(), self.noise_proba, np.ones(n), "kept")
        unlabelled = (~self.labelled).numpy()
        result.is_noisy, result.p_noisy = result.is_noisy | unlabelled, np.where(unlabelled, 1.0, result.p_noisy)
        result.confidence = pseudo_loss_confidence(pseudo_losses, result.is_noisy, self.seed)
        return result

    def flag(self, wanted: str, losses: NDArray[np.float64], features: NDArray[np.float32]) -> _Detection:
        """Detector Z, or W on what Z says, unless the guard finds Z unfit to teach W."""
        is_noisy, p_noisy = small_loss_detector(losses, self.recipe.threshold, self.seed)
        by_loss = _Detection(is_noisy, p_noisy, np.ones(0), "loss")
        if wanted == "loss":
            return by_loss
        labelled = self.labelled.numpy()
        guarded = replace(by_loss, guarded=True)
        if self.recipe.guard and is_noisy[labelled].mean() < 0.1:
            return guarded
        trusted = np.where(labelled, ~is_noisy, np.nan)
        separated, p_separated = linear_separation_detector(features, trusted, self.seed)
        if self.recipe.guard and _rank_correlation(p_separated[labelled], losses[labelled]) < 0:
            return guarded
        return _Detection(separated, p_separated, np.ones(0), "linear", linear=separated)

    def combine(self, found: list[_Detection]) -> None:
        """Step 9: a label is flagged if every network flags it; confidence is the mean, 1 where not flagged."""
        self.flagged = torch.from_numpy(np.logical_and.reduce([one.is_noisy for one in found]))
        self.noise_proba = np.mean([one.p_noisy for one in found], axis=0)
        mean = torch.from_numpy(np.mean([one.confidence for one in found], axis=0)).float()
        self.confidence = torch.where(self.flagged, mean, torch.ones(()))
        separated = [one.linear for one in found if one.linear is not None]
        if len(separated) == len(found):
            doubt = 1 - self.confidence.double().numpy()
            self.is_ood = np.logical_and.reduce(separated) & (doubt > 0.5)
            self.ood_score = self.noise_proba * doubt

    # Interruption.

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's state and the per-sample one."""
        names = ("flagged", "confidence", "guesses", "noise_proba", "ood_score", "is_ood", "detectors")
        return {**super().state_dict(), "samples": {name: deepcopy(getattr(self, name)) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last finished epoch of `state`."""
        super().load_state_dict(state)
        for name, value in state["samples"].items():
            setattr(self, name, deepcopy(value))


def _pool(features: Tensor) -> Tensor:
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features.flatten(1)


def mean_logits(networks: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    return lambda part: torch.stack([network(part)[0].float() for network in networks]).mean(dim=0)


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    ranks = np.stack([rankdata(first), rankdata(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    return float((ranks[0] * ranks[1]).sum() / max(math.sqrt(float((ranks**2).sum(axis=1).prod())), 1e-12))

"""Corruptions: they grow with their severity and stay images."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from models.corruptions import CORRUPTIONS, corrupted

SMALL = torch.from_numpy((load_digits().images[:50] / 16).astype(np.float32)).unsqueeze(1)
IMAGES = F.interpolate(SMALL, (32, 32), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_they_grow_with_severity_and_stay_images(kind: str) -> None:
    before = IMAGES.clone()
    changes = [float((corrupted(IMAGES, kind, severity) - IMAGES).abs().mean()) for severity in range(1, 6)]
    assert changes[0] > 0
    assert all(later > 0.95 * earlier for earlier, later in pairwise(changes))  # whole pixels come in steps
    assert changes[4] > changes[0]
    worst = corrupted(IMAGES, kind, 5)
    assert worst.shape == IMAGES.shape
    assert worst.min() >= 0
    assert worst.max() <= 1
    assert torch.equal(IMAGES, before)
    assert torch.equal(worst, corrupted(IMAGES, kind, 5))


def test_noise_has_the_published_deviation_and_its_seed() -> None:
    grey = torch.full((40, 1, 32, 32), 0.5)
    assert float((corrupted(grey, "gaussian_noise", 1) - grey).std()) == pytest.approx(0.08, rel=0.02)
    assert not torch.equal(corrupted(grey, "gaussian_noise", 1, seed=1), corrupted(grey, "gaussian_noise", 1, seed=2))


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no corruption 'rain'. Known: gaussian_noise"):  # noqa: RUF043
        corrupted(IMAGES, "rain", 1)
    with pytest.raises(ValueError, match="severity must be 1, 2, 3, 4 or 5, got 6"):
        corrupted(IMAGES, "contrast", 6)
    with pytest.raises(ValueError, match=r"images must be shaped \(n, C, H, W\)"):
        corrupted(IMAGES[:, 0], "contrast", 1)

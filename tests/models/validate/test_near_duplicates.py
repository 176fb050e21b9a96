"""Near duplicates: found whatever memory there is, and only pairs that are as alike as asked."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from models.validate.near_duplicates import Signatures, near_duplicates


@pytest.fixture(scope="module")
def images():
    """Real digits at 24 x 24, some shifted, darkened, or with a little noise; (220, 1, 24, 24)."""
    rng = np.random.default_rng(0)
    original = np.kron(load_digits().images[:200] / 16, np.ones((3, 3))).astype(np.float32)
    copies = [
        np.roll(original[:10], 2, axis=1),
        original[10:15] * 0.6,
        np.clip(original[15:20] + rng.normal(0, 0.05, (5, 24, 24)), 0, 1),
    ]
    return np.concatenate([original, *copies]).astype(np.float32)[:, None]


def gathered(images, budget):
    kept = Signatures(len(images), images.shape[1:], budget)
    for rows in np.array_split(np.arange(len(images)), 7):
        kept.put(rows, images[rows])
    return kept


@pytest.mark.parametrize("side", [4, 8, 16, None])
@pytest.mark.parametrize("threshold", [0.9, 0.98])
def test_coarse_signatures_find_what_whole_ones_find(images, side, threshold):
    expected = near_duplicates(images, threshold)
    kept = gathered(images, len(images) * 4 * (24 * 24 if side is None else side * side + 1))
    assert kept.side == side
    read = []

    def again(rows):
        read.append(len(rows))
        return images[rows]

    found = kept.near_duplicates(np.arange(len(images)), threshold, again)
    assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
    np.testing.assert_allclose([pair[2] for pair in found], [pair[2] for pair in expected], atol=1e-5)
    assert len(expected) > 5
    assert sum(read) < (1 if side is None else 40 * len(images))


def test_half_precision_finds_the_same(images):
    expected = near_duplicates(images, 0.9)
    kept = gathered(images, len(images) * 24 * 24 * 2)
    assert kept.vectors.dtype == np.float16
    found = kept.near_duplicates(np.arange(len(images)), 0.9, lambda rows: pytest.fail("nothing is to be read again"))
    assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
    np.testing.assert_allclose([pair[2] for pair in found], [pair[2] for pair in expected], atol=1e-4)


def test_larger_images_are_compared_at_a_smaller_size(images):
    rng = np.random.default_rng(0)
    large = np.kron(images[:40], np.ones((1, 1, 4, 4))).astype(np.float32)  # 96 x 96
    grain = rng.normal(0, 0.05, large.shape)
    noisy = np.clip(np.roll(large, 9, axis=3) + grain, 0, 1).astype(np.float32)
    found = near_duplicates(np.concatenate([large, noisy]), 0.9)
    assert Signatures(80, (1, 96, 96)).vectors.shape == (80, 32 * 32)
    assert {(row, row - 40) for row in range(40, 80)} <= {pair[:2] for pair in found}


def test_only_the_rows_asked_for_are_compared(images):
    rows = np.r_[5:200, 205:220]
    expected = [(int(rows[a]), int(rows[b])) for a, b, _ in near_duplicates(images[rows], 0.98)]
    for budget in (10**9, len(images) * 4 * 65):
        found = gathered(images, budget).near_duplicates(rows, 0.98, lambda chosen: images[chosen])
        assert [pair[:2] for pair in found] == expected


def test_many_rows_are_compared_block_by_block(images, monkeypatch):
    expected = near_duplicates(images, 0.95)
    monkeypatch.setattr("models.validate.near_duplicates.WIDTH", 37)
    assert [pair[:2] for pair in near_duplicates(images, 0.95, block=50)] == [pair[:2] for pair in expected]


def test_a_threshold_outside_its_range_is_refused(images):
    for budget in (10**9, 1):
        with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\], got 2"):
            gathered(images, budget).near_duplicates(np.arange(220), 2, lambda rows: images[rows])

"""Agreement of raters, and the plots and ratings that are simulated."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from models.discover.raters import (
    UNLABELLED,
    agreement_index,
    arcs,
    blobs,
    group_agreement,
    group_gaps,
    lines,
    merge,
    rings,
    similarity,
    simulate_raters,
)


@pytest.fixture(scope="module")
def plot():
    """A plot whose five raters do not agree."""
    for seed in range(50):
        cloud, ratings = simulate_raters(150, 5, random_state=seed)
        if group_agreement(ratings) < 0.9:
            return cloud, ratings
    raise AssertionError("no plot of 50 divides its raters")


def test_noise_points_are_groups_of_their_own():
    assert similarity([0, 0, 1, -1], [0, 0, 1, 2]) == 1.0
    assert similarity([-1, -1, 0, 0], [5, 6, 9, 9]) == 1.0
    assert similarity([-1, -1, 0, 0], [5, 5, 9, 9]) == adjusted_rand_score([0, 1, 2, 2], [5, 5, 9, 9])


def test_identical_raters_agree_fully(plot):
    _, ratings = plot
    assert group_agreement(np.stack([ratings[0]] * 3)) == 1.0
    assert agreement_index(ratings[0], np.stack([ratings[0]] * 3)) == 0.0


def test_a_copy_of_the_central_rater_is_above_any_random_labelling(plot):
    _, ratings = plot
    indices = [agreement_index(rating, ratings) for rating in ratings]
    rng = np.random.default_rng(0)
    chance = [agreement_index(rng.integers(k, size=150), ratings) for k in range(1, 8) for _ in range(5)]
    assert max(indices) >= max(chance)
    assert max(indices) > 0


def test_names_of_groups_do_not_matter(plot):
    _, ratings = plot
    renamed = np.where(ratings == UNLABELLED, UNLABELLED, 7 - ratings)
    assert group_agreement(renamed) == pytest.approx(group_agreement(ratings))
    assert agreement_index(renamed[0], ratings) == pytest.approx(agreement_index(ratings[0], ratings))


def test_too_few_raters_or_other_points_are_refused(plot):
    _, ratings = plot
    with pytest.raises(ValueError, match="at least 2"):
        group_agreement(ratings[:1])
    with pytest.raises(ValueError, match="must label 150 points"):
        agreement_index(ratings[0][:-1], ratings)


def test_what_is_no_rating_is_refused(plot):
    _, ratings = plot
    for spoilt in (ratings[0] + 0.5, np.where(ratings[0] == 0, -2, ratings[0]), np.full(150, np.nan)):
        with pytest.raises(ValueError, match="candidate must hold whole numbers, -1 or more"):
            agreement_index(spoilt, ratings)
        with pytest.raises(ValueError, match="ratings must hold whole numbers, -1 or more"):
            group_agreement(np.stack([spoilt, spoilt]))
    assert agreement_index(ratings[0].astype(float), ratings) == agreement_index(ratings[0], ratings)


@pytest.mark.parametrize("seed", range(12))
def test_plots_are_as_asked(seed):
    cloud, ratings = simulate_raters(120, 4, random_state=seed)
    assert cloud.shape == (120, 2)
    assert ratings.shape == (4, 120)
    assert ratings.min() >= -1
    assert max(len(np.unique(rating[rating >= 0])) for rating in ratings) <= 7
    assert ((ratings == UNLABELLED) == (ratings[0] == UNLABELLED)).all()  # who merges, keeps the noise
    again, same = simulate_raters(120, 4, random_state=seed)
    np.testing.assert_array_equal(again, cloud)
    np.testing.assert_array_equal(same, ratings)


def test_noise_is_up_to_its_share_and_none_when_asked():
    marked = [(simulate_raters(200, 1, 0.15, seed)[1] == UNLABELLED).mean() for seed in range(30)]
    assert 0.01 < np.mean(marked) < 0.15
    assert not any((simulate_raters(200, 1, 0.0, seed)[1] == UNLABELLED).any() for seed in range(10))


@pytest.mark.parametrize(("make", "fewest", "most"), [(blobs, 1, 7), (arcs, 2, 2), (rings, 2, 2), (lines, 2, 4)])
def test_points_lie_in_the_depth_of_their_own_group(make, fewest, most):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        groups = make(rng)
        assert fewest <= len(groups) <= most
        for group in groups:
            assert np.mean(group.depth(group.draw(200, rng)) <= 3) > 0.95


def test_groups_merge_along_chains_of_small_gaps():
    cloud = np.array([[0.0, 0], [0.1, 0], [0.15, 0], [0.5, 0], [0.9, 0]])
    labels = np.array([0, 0, 1, 2, -1])
    gaps = group_gaps(cloud, labels, 4)
    assert gaps[0, 1] == pytest.approx(0.05)
    assert gaps[1, 2] == pytest.approx(0.35)
    assert np.isinf(gaps[3]).all()
    assert merge(labels, gaps, 0.06).tolist() == [0, 0, 0, 1, -1]
    assert merge(labels, gaps, 0.36).tolist() == [0, 0, 0, 0, -1]
    assert len(set(merge(labels, gaps, 0.0).tolist())) == 4


def test_impossible_plots_are_refused():
    for arguments in ((10, 5, 0.1), (100, 0, 0.1), (100, 5, 1.0)):
        with pytest.raises(ValueError, match="at least 16 points"):
            simulate_raters(*arguments)

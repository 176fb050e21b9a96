"""ClusterNet: its losses, what its answers depend on, and what little training teaches it."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError

from models.base import isolated_seed
from models.discover.clusternet import (
    ClusterNet,
    by_first_appearance,
    merge_small_slots,
    noise_loss,
    normalised,
    pair_loss,
    point_agreement,
    simulate_raters,
)
from models.discover.raters import similarity
from models.networks.pointnet import (
    PointNet2Segmenter,
    ball_neighbours,
    distances,
    farthest_points,
    interpolate,
)

SMALL = {"max_clusters": 8, "n_points": 96, "random_state": 0}


@pytest.fixture(scope="module")
def picture():
    """Iris in the plane."""
    return PCA(2).fit_transform(load_iris().data)


@pytest.fixture(scope="module")
def trained():
    """A network after two dozen steps: it answers, not more."""
    return ClusterNet(**SMALL, batch_size=8).fit_synthetic(24, sizes=(64, 64))


@pytest.fixture(scope="module")
def plots():
    found = [simulate_raters(60, 3, random_state=seed) for seed in range(6)]
    return [cloud for cloud, _ in found], [ratings for _, ratings in found]


# ---- the network ------------------------------------------------------------------------------------------------


def test_farthest_points_start_at_the_middle_and_cover():
    points = torch.tensor([[[1.0, 1.0], [0.1, 0.0], [-1.0, -1.0], [0.9, 0.9], [1.0, -1.0]]])
    assert farthest_points(points, 4)[0].tolist() == [1, 2, 0, 4]
    valid = torch.tensor([[True, True, False, True, True]])
    assert farthest_points(points, 3, valid)[0].tolist() == [1, 0, 4]


def test_balls_hold_the_nearest_and_repeat_the_first():
    points = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [0.15, 0.0], [2.0, 0.0]]])
    centre = torch.tensor([[[0.0, 0.0]]])
    assert ball_neighbours(points, centre, 0.2, 4)[0, 0].tolist() == [0, 1, 2, 0]
    assert ball_neighbours(points, centre, 0.2, 2)[0, 0].tolist() == [0, 1]
    valid = torch.tensor([[True, False, True, True]])
    assert ball_neighbours(points, centre, 0.2, 3, valid)[0, 0].tolist() == [0, 2, 0]


def test_interpolation_weighs_by_inverse_squared_distance():
    coarse = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    values = torch.tensor([[[1.0], [2.0], [3.0], [100.0]]])
    found = interpolate(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), coarse, values)[0, :, 0]
    weights = np.array([1, 1 / 4, 1 / 17])
    assert float(found[0]) == pytest.approx((weights * [1, 2, 3]).sum() / weights.sum(), rel=1e-5)
    assert float(found[1]) == pytest.approx(1.0, abs=1e-5)


def test_near_points_have_exact_distances():
    points = torch.tensor([[[0.70000, 0.7], [0.70001, 0.7]]])
    assert float(distances(points, points)[0, 0, 1]) == pytest.approx(1e-5, rel=0.02)


def test_permuted_points_have_permuted_logits(picture, trained):
    points = torch.from_numpy(normalised(picture)).float()[None]
    order = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = trained.network_(points)[0], trained.network_(points[:, order])[0]
    assert float((first[order] - second).abs().max()) <= 1e-5


def test_padding_does_not_change_the_answer(picture):
    with isolated_seed(0):
        network = PointNet2Segmenter(4, centres=(0.25, 0.1)).eval()
    points = torch.from_numpy(normalised(picture)).float()[None][:, :40]
    padded = torch.cat([points, points[:, :1].expand(-1, 3, -1) + 0.01], dim=1)
    valid = torch.arange(43)[None] < 40
    with torch.no_grad():
        answers = network(padded, valid)[:, :40]
        network.centres = (10 / 40, 0.1)
        assert network.abstract(0, points, None, None)[0].shape[1] == 10
        inside = network.abstract(0, padded, None, valid)[0]
    assert answers.shape == (1, 40, 4)
    assert (distances(inside, points).amin(2) == 0).all()  # no centre is padding


@pytest.mark.parametrize("widths", ["small", "paper"])
def test_both_widths_answer_for_the_fewest_points(widths):
    with isolated_seed(0):
        network = PointNet2Segmenter(5, widths=widths).eval()
    assert network(torch.rand(2, 8, 2)).shape == (2, 8, 5)


# ---- equations --------------------------------------------------------------------------------------------------


def test_normalising_keeps_the_aspect_ratio():
    points = normalised([[0.0, 0.0], [4.0, 1.0], [2.0, 2.0]])
    np.testing.assert_allclose(points, [[-1, -0.5], [1, 0], [0, 0.5]])
    assert not normalised(np.full((5, 2), 3.0)).any()


def test_perfect_slots_cost_nothing_whatever_the_rater_calls_them():
    labels = torch.tensor([[0, 0, 1, 1, 2, -1]])
    valid = torch.ones(1, 6, dtype=torch.bool)
    slots = torch.eye(4)[torch.tensor([[3, 3, 0, 0, 1, 2]])]
    assert float(pair_loss(slots, labels, valid)) < 1e-4
    mixed = torch.rand(1, 6, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    renamed = torch.tensor([[7, 7, 0, 0, 4, -1]])
    assert float(pair_loss(mixed, labels, valid)) == float(pair_loss(mixed, renamed, valid)) > 0.1


def test_one_slot_for_all_says_that_all_are_together():
    p = torch.eye(3)[torch.zeros(1, 5, dtype=torch.long)]
    valid = torch.ones(1, 5, dtype=torch.bool)
    assert float(pair_loss(p, torch.zeros(1, 5, dtype=torch.long), valid)) < 1e-4
    assert float(pair_loss(p, torch.arange(5)[None], valid)) > 10


def test_the_pair_loss_is_the_mean_over_pairs_of_grouped_points():
    p = torch.rand(1, 4, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    labels, valid = torch.tensor([[0, 0, 1, -1]]), torch.ones(1, 4, dtype=torch.bool)
    s = (p[0] @ p[0].T).numpy()
    by_hand = -(np.log(s[0, 1]) + np.log(1 - s[0, 2]) + np.log(1 - s[1, 2])) / 3
    assert float(pair_loss(p, labels, valid)) == pytest.approx(by_hand, rel=1e-5)
    with isolated_seed(0):
        drawn = float(pair_loss(p, labels, valid, pair_samples=20_000))
    assert drawn == pytest.approx(by_hand, rel=0.02)


def test_the_noise_loss_is_a_cross_entropy_of_valid_points():
    labels, valid = torch.tensor([[-1, 0, -1]]), torch.tensor([[True, True, False]])
    loss = noise_loss(torch.tensor([[0.8, 0.3, 0.1]]), labels, valid)
    assert float(loss) == pytest.approx(-(np.log(0.8) + np.log(0.7)) / 2, rel=1e-5)


def test_agreement_is_the_overlap_of_companions():
    ratings = np.array([[0, 0, 0, -1], [0, 0, 1, 1]])
    np.testing.assert_allclose(point_agreement(ratings), [2 / 3, 2 / 3, 1 / 4, 1 / 2])
    assert (point_agreement(ratings[:1]) == 1).all()


def test_small_doubtful_slots_join_their_neighbours():
    points = np.r_[np.random.default_rng(0).normal(size=(99, 2)) * 0.1, [[0.2, 0.0]]]
    points[:50] += [5, 0]
    labels = np.r_[np.zeros(50), np.ones(49), 2].astype(np.int64)
    doubtful, certain = np.full((100, 3), 0.4), np.full((100, 3), 0.9)
    assert merge_small_slots(points, labels, doubtful)[99] == 1
    assert merge_small_slots(points, labels, certain)[99] == 2
    alone = np.r_[np.full(99, -1), 2].astype(np.int64)
    assert merge_small_slots(points, alone, doubtful)[99] == 2


def test_groups_are_named_as_they_appear():
    assert by_first_appearance(np.array([-1, 5, 2, 5, -1, 0])).tolist() == [-1, 0, 1, 0, -1, 2]
    assert by_first_appearance(np.array([-1, -1])).tolist() == [-1, -1]


# ---- the method -------------------------------------------------------------------------------------------------


def test_training_learns_pairs():
    method = ClusterNet(max_clusters=8, n_points=64, noise=False, nsample=(12, 8), random_state=0)
    method.fit_synthetic(100, sizes=(64, 64), n_raters=1, noise=0.0)
    cloud = np.r_[np.random.default_rng(0).normal(size=(60, 2)) * 0.06 - 0.7, np.zeros((0, 2))]
    apart = np.r_[cloud[:30], cloud[30:] + 1.4]
    truth = np.repeat([0, 1], 30)
    p = method.predict_proba(apart)
    together = p @ p.T
    assert together[:30, :30].mean() > together[:30, 30:].mean() + 0.2
    assert similarity(method.predict(apart), truth) > 0.3


def test_fit_on_ratings_then_group_a_cloud(plots):
    clouds, ratings = plots
    method = ClusterNet(**SMALL, epochs=2, batch_size=3).fit(clouds, ratings)
    assert len(method.loss_curve_) == 2
    assert not hasattr(method, "labels_")
    labels = method.fit_predict(clouds[0])
    np.testing.assert_array_equal(labels, method.predict(clouds[0]))
    assert labels.dtype == np.int64
    assert method.n_clusters_ == labels.max() + 1
    assert ((method.confidences_ > 0) & (method.confidences_ <= 1)).all()
    assert method.predict_proba(clouds[0]).shape == (60, 9)


def test_ratings_of_other_names_train_alike(plots):
    clouds, ratings = plots
    renamed = [np.where(rating < 0, -1, 20 - rating) for rating in ratings]
    first = ClusterNet(**SMALL, epochs=1).fit(clouds, ratings)
    second = ClusterNet(**SMALL, epochs=1).fit(clouds, renamed)
    assert first.loss_curve_ == second.loss_curve_


def test_moving_and_enlarging_the_plot_changes_nothing(picture, trained):
    labels = trained.predict(picture)
    np.testing.assert_array_equal(trained.predict(8 * picture + [64.0, -32.0]), labels)


def test_a_large_cloud_is_sampled_and_the_rest_follows(trained):
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(3000, 2))
    p = trained.predict_proba(cloud)
    assert p.shape == (3000, 9)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-4)
    doubled = trained.predict_proba(np.r_[cloud, cloud])
    np.testing.assert_allclose(doubled[:3000], doubled[3000:], atol=0.15)


def test_weights_travel(picture, trained):
    other = ClusterNet(max_clusters=8, n_points=96, weights=trained.network_.state_dict())
    np.testing.assert_array_equal(other.fit_predict(picture), trained.predict(picture))


def test_without_weights_the_training_on_simulation_runs_once(picture):
    settings = {"max_clusters": 3, "n_points": 40, "batch_size": 2, "pretrain_steps": 2}
    first, second = ClusterNet(**settings, random_state=1).fit(picture), ClusterNet(**settings).fit(picture)
    np.testing.assert_array_equal(first.predict_proba(picture), second.predict_proba(picture))
    assert first.network_ is not second.network_


def test_the_fewest_points_to_look_at_are_enough(picture):
    method = ClusterNet(max_clusters=3, n_points=8, batch_size=2, pretrain_steps=1, random_state=0)
    assert method.fit_predict(picture).shape == (150,)


def test_agreement_can_be_learnt(plots):
    clouds, ratings = plots
    method = ClusterNet(**SMALL, epochs=2, agreement_head=True).fit(clouds, ratings)
    agreement = method.predict_agreement(clouds[0])
    assert agreement.shape == (60,)
    assert ((agreement > 0) & (agreement < 1)).all()
    assert method.predict_proba(clouds[0]).shape == (60, 9)
    assert "loss_agreement" in method.history_[0]


def test_without_noise_every_point_is_in_a_group(plots):
    clouds, ratings = plots
    method = ClusterNet(**SMALL, epochs=1, noise=False, pair_samples=100).fit(clouds, ratings)
    assert method.predict_proba(clouds[0]).shape == (60, 8)
    assert method.predict(clouds[0]).min() >= 0


def test_degenerate_clouds_have_an_answer(trained):
    assert trained.predict(np.ones((20, 2))).shape == (20,)  # all alike
    assert len(set(trained.predict(np.ones((20, 2))).tolist())) == 1
    assert trained.predict(np.c_[np.arange(20.0), np.zeros(20)]).shape == (20,)  # a constant column


def test_all_noise_is_no_group(picture, trained):
    state = {key: value.clone() for key, value in trained.network_.state_dict().items()}
    state["head.bias"][-1] = 1e4
    method = ClusterNet(max_clusters=8, n_points=96, weights=state).fit(picture, y=np.zeros(150))
    assert (method.labels_ == -1).all()
    assert method.n_clusters_ == 0


# ---- bad input --------------------------------------------------------------------------------------------------


def test_untrained_it_does_not_predict(picture):
    with pytest.raises(NotFittedError, match="fit"):
        ClusterNet().predict(picture)


def test_malformed_clouds_are_refused(picture, trained):
    with pytest.raises(ValueError, match=r"shaped \(n, 2\), got \(150, 4\)"):
        trained.predict(load_iris().data)
    with pytest.raises(ValueError, match="at least 8 rows"):
        trained.predict(picture[:7])
    with pytest.raises(ValueError, match="NaN"):
        trained.predict(np.where(picture > 2, np.nan, picture))
    with pytest.raises(ValueError, match="groups one cloud"):
        trained.fit_predict([picture, picture])


def test_malformed_ratings_are_refused(plots):
    clouds, ratings = plots
    with pytest.raises(ValueError, match="ratings of each of the 6 clouds"):
        ClusterNet().fit(clouds)
    with pytest.raises(ValueError, match="ratings of each of the 6 clouds"):
        ClusterNet().fit(clouds, ratings[:5])
    with pytest.raises(ValueError, match=r"y\[2\] must hold int ratings"):
        ClusterNet().fit(clouds, [*ratings[:2], ratings[2][:, :-1], *ratings[3:]])
    with pytest.raises(ValueError, match=r"y\[0\] shows 60 groups, more than max_clusters=16"):
        ClusterNet().fit(clouds, [np.arange(60), *ratings[1:]])
    with pytest.raises(ValueError, match=r"y\[1\] must hold int ratings shaped \(raters, 60\)"):
        ClusterNet().fit(clouds, [ratings[0], np.zeros((0, 60), dtype=int), *ratings[2:]])
    with pytest.raises(ValueError, match="X must hold at least one cloud"):
        ClusterNet().fit(np.zeros((0, 60, 2)), [])
    with pytest.raises(ValueError, match=r"X\[1\] contains NaN"):
        ClusterNet().fit([clouds[0], np.full((60, 2), np.nan), *clouds[2:]], ratings)


def test_settings_that_do_not_fit_are_refused(picture, trained):
    with pytest.raises(ValueError, match="weights are not those of this network"):
        ClusterNet(max_clusters=5, weights=trained.network_.state_dict()).fit(picture)
    with pytest.raises(ValueError, match="radius must be two positive numbers"):
        ClusterNet(radius=(0.2, -1.0)).fit(picture)
    with pytest.raises(ValueError, match="nsample must be two positive whole numbers"):
        ClusterNet(nsample=(2.5, 4)).fit(picture)
    for steps, sizes in ((0, None), (1, (40, 20))):
        with pytest.raises(ValueError, match=r"at least one step and sizes=\(fewest, most\)"):
            ClusterNet().fit_synthetic(steps, sizes=sizes)
    with pytest.raises(ValueError, match="at least 16 points"):
        ClusterNet().fit_synthetic(1, sizes=(8, 8))
    with pytest.raises(ValueError, match="agreement_head=True"):
        trained.predict_agreement(picture)

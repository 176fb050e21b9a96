"""Semi-supervised mixtures on the digits: the evidence against what it must equal, splits, merges, and the count."""

import numpy as np
import pytest
import sklearn
from scipy.stats import ortho_group, t
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError

from models.discover.gcd_gmm import (
    Prior,
    SemiSupervisedGMM,
    SplitMerge,
    densities,
    log_evidence,
    merge_log_ratio,
    posterior,
    split_log_ratio,
    within_variance,
)
from models.metrics import discovery_accuracy
from tests.models.discover.partly_named import name_of, sklearn_contract


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X / 16, y, np.where((y < 5) & (np.arange(len(y)) % 2 == 0), y, -1)


def blobs(distance, n=100, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)), rng.normal(size=(n, 2)) + np.array([distance, 0.0])


PLAIN = Prior(np.zeros(2), 1e-4, 5.0, np.eye(2))


@pytest.mark.parametrize(
    ("estimator", "check"), sklearn_contract(SemiSupervisedGMM, n_init_clusters=4, kmeans_n_init=1), ids=name_of
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


# ---- the evidence -----------------------------------------------------------------------------------------


def test_evidence_of_two_rows_is_the_known_figure():
    prior = Prior(np.zeros(1), 1.0, 2.0, np.eye(1))
    assert log_evidence(np.array([[0.0], [2.0]]), prior) == pytest.approx(-4.292601998, abs=1e-8)


def test_evidence_is_the_product_of_predictive_densities():
    rows = np.random.default_rng(1).normal(size=(7, 1))
    prior = Prior(np.array([0.3]), 0.5, 2.5, np.array([[0.8]]))
    total = 0.0
    for i in range(7):
        now = posterior(rows[:i], prior)
        scale = np.sqrt(now.psi[0, 0] * (now.kappa + 1) / (now.kappa * now.nu))
        total += t(now.nu, now.mean[0], scale).logpdf(rows[i, 0])
    assert log_evidence(rows, prior) == pytest.approx(total, abs=1e-7)


def test_evidence_knows_neither_order_nor_rotation():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(30, 4))
    prior = Prior(rows.mean(axis=0), 1e-4, 5.0, 0.3 * np.eye(4))
    value = log_evidence(rows, prior)
    assert log_evidence(rows[::-1], prior) == pytest.approx(value)
    turn = ortho_group.rvs(4, random_state=0)
    assert log_evidence(rows @ turn, prior._replace(mean=prior.mean @ turn)) == pytest.approx(value)


def test_merging_is_splitting_backwards():
    first, second = blobs(3.0)
    assert split_log_ratio(first, second, PLAIN, 0.7) == -merge_log_ratio(first, second, PLAIN, 0.7)


@pytest.mark.parametrize(("distance", "splits"), [(2.0, False), (8.0, True)])
def test_far_blobs_are_split_and_near_ones_are_not(distance, splits):
    first, second = blobs(distance)
    prior = PLAIN._replace(mean=np.concatenate([first, second]).mean(axis=0))
    assert (split_log_ratio(first, second, prior, 1.0) > 0) == splits


# ---- one round --------------------------------------------------------------------------------------------


def round_of(features, clusters, n_labelled=0, **settings):
    centres = np.array([features[clusters == k].mean(axis=0) for k in range(clusters.max() + 1)])
    prior = PLAIN._replace(mean=features.mean(axis=0))
    given = {"alpha": 1.0, "accept": "metropolis", "min_split_size": 5, "merge_into_labelled": False} | settings
    return SplitMerge(features, clusters, centres, n_labelled, prior, random=np.random.RandomState(0), **given)()


def test_a_split_replaces_the_centre_by_two():
    features = np.concatenate(blobs(8.0))
    centres, history = round_of(features, np.zeros(200, dtype=np.int64))
    assert history["splits"] == 1
    np.testing.assert_allclose(sorted(centres[:, 0]), [0, 8], atol=0.5)


def test_a_merge_shrinks_the_number_and_keeps_the_weighted_mean():
    first, second = blobs(0.0)
    far = np.random.default_rng(3).normal(size=(50, 2)) + 40
    features = np.concatenate([first, second[:40], far])
    clusters = np.repeat([0, 1, 2], [100, 40, 50])
    centres, history = round_of(features, clusters)
    assert (history["clusters"], history["splits"], history["merges"], len(centres)) == (3, 0, 1, 2)
    np.testing.assert_allclose(centres[-1], features[:140].mean(axis=0))


def test_labelled_clusters_are_neither_split_nor_merged_together():
    features = np.concatenate([*blobs(0.0), *blobs(30.0, seed=1)])
    clusters = np.repeat([0, 1, 2], [100, 100, 200])
    centres, history = round_of(features, clusters, n_labelled=3)
    assert (len(centres), history["splits"], history["merges"]) == (3, 0, 0)


@pytest.mark.parametrize(("allowed", "left"), [(False, 2), (True, 1)])
def test_a_new_cluster_dissolves_into_a_labelled_one_only_when_allowed(allowed, left):
    features = np.concatenate(blobs(0.0))
    centres, history = round_of(features, np.repeat([0, 1], 100), n_labelled=1, merge_into_labelled=allowed)
    assert len(centres) == left
    assert history["merges"] == 2 - left


def test_small_clusters_and_halves_are_not_split():
    few = np.concatenate([np.zeros((5, 2)), np.full((20, 2), 9.0) + np.random.default_rng(0).normal(size=(20, 2))])
    assert round_of(few, np.zeros(25, dtype=np.int64))[1]["split_log_ratios"] == []
    assert round_of(few, np.zeros(25, dtype=np.int64), min_split_size=4)[1]["splits"] == 1


def test_without_concentration_nothing_is_split():
    features = np.concatenate(blobs(8.0))
    assert round_of(features, np.zeros(200, dtype=np.int64), alpha=1e-300)[1]["splits"] == 0


def test_the_coin_accepts_what_the_ratio_refuses():
    features = np.concatenate(blobs(0.0))
    clusters = np.zeros(200, dtype=np.int64)
    prior, given = PLAIN._replace(mean=features.mean(axis=0)), {"alpha": 1.0, "min_split_size": 5}
    done = {
        accept: sum(
            SplitMerge(features, clusters, features.mean(axis=0, keepdims=True), 0, prior, accept=accept,
                       merge_into_labelled=False, random=np.random.RandomState(s), **given)()[1]["splits"]
            for s in range(40)
        )
        for accept in ("metropolis", "coin")
    }  # fmt: skip
    assert done["metropolis"] == 0
    assert 1 <= done["coin"] <= 10


def test_densities_have_mean_one_and_tame_lonely_clusters():
    features = np.concatenate([np.zeros((1, 2)), *blobs(5.0)])
    clusters = np.repeat([0, 1, 2], [1, 100, 100])
    centres = np.array([features[clusters == k].mean(axis=0) for k in range(3)])
    phi = densities(features, clusters, centres)
    assert phi.mean() == pytest.approx(1.0)
    assert phi[0] == phi.max()
    assert (densities(np.zeros((4, 2)), np.array([0, 0, 1, 1]), np.zeros((2, 2))) == 1).all()


def test_the_variance_within_classes_ignores_lonely_labels():
    features = np.array([[0.0], [2.0], [10.0], [50.0]])
    assert within_variance(features, np.array([0, 0, 1, -1])) == 1.0
    assert within_variance(features, np.array([0, 1, -1, -1])) == features.var()


# ---- the whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [7, 20])
def test_the_number_of_digits_is_neared_from_below_and_above(digits, start):
    X, truth, y = digits
    found = SemiSupervisedGMM(
        start, n_components_pca=20, normalize=False, psi_scale="within", kmeans_n_init=3, random_state=0
    ).fit(X, y)
    assert 7 < found.n_classes_ < 17
    assert (found.n_classes_ > start) == (start == 7)
    assert (found.labels_[y >= 0] == y[y >= 0]).all()
    assert sorted(set(found.labels_)) == list(range(found.n_classes_))
    assert (found.n_clusters_, found.n_novel_) == (found.n_classes_, found.n_classes_ - 5)
    assert discovery_accuracy(truth[y < 0], found.labels_[y < 0], range(5))["all"] > 0.55
    assert found.split_history_[0]["clusters"] == start
    assert found.covariances_.shape == (found.n_classes_, 20, 20)
    assert found.weights_.sum() == pytest.approx(1.0)
    free = y < 0
    assert (found.predict(X)[free] == found.labels_[free]).all()
    assert ((found.confidences_ >= 0) & (found.confidences_ <= 1)).all()
    assert found.score_samples(X).mean() > found.score_samples(X + 1).mean()


def test_the_projection_stays_an_array_whatever_scikit_learn_is_told(digits):
    X, _, y = digits
    settings = {"n_components_pca": 5, "kmeans_n_init": 1, "max_rounds": 1}
    plain = SemiSupervisedGMM(**settings, random_state=0).fit(X, y)
    with sklearn.config_context(transform_output="pandas"):
        found = SemiSupervisedGMM(**settings, random_state=0).fit(X, y)
        assert (found.predict(X) == plain.predict(X)).all()


def test_no_concentration_never_raises_the_count(digits):
    X, _, y = digits
    settings = {"n_components_pca": 5, "normalize": False, "psi_scale": "within", "kmeans_n_init": 1}
    found = SemiSupervisedGMM(9, **settings, alpha=1e-300, random_state=0).fit(X, y)
    assert found.n_classes_ <= 9
    assert all(row["splits"] == 0 for row in found.split_history_)


def test_labels_need_not_be_consecutive_nor_frequent():
    X, truth = make_blobs(200, centers=[[0, 0], [12, 0], [0, 12]], random_state=0)
    y = np.full(200, -1)
    y[np.flatnonzero(truth == 0)[:20]] = 7
    y[np.flatnonzero(truth == 1)[0]] = 3
    found = SemiSupervisedGMM(normalize=False, psi_scale="within", random_state=0).fit(X, y)
    assert found.classes_.tolist() == [3, 7]
    assert set(found.labels_) == {3, 7, 8}
    assert discovery_accuracy(truth, found.labels_, [0, 1])["all"] == 1.0


def test_rows_that_are_all_labelled_leave_nothing_to_find(digits):
    X, truth, _ = digits
    found = SemiSupervisedGMM(n_components_pca=5, random_state=0).fit(X, truth)
    assert (found.n_classes_, found.n_novel_) == (10, 0)
    assert (found.labels_ == truth).all()


def test_constant_and_duplicate_rows_are_no_trouble(digits):
    y = np.array([0, 0, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1])
    for X in (np.ones((12, 2)), np.repeat(np.eye(2), 6, axis=0)):
        found = SemiSupervisedGMM(4, random_state=0).fit(X, y)
        assert 2 <= found.n_classes_ <= 4
        assert (found.labels_[:4] == y[:4]).all()


@pytest.mark.parametrize(
    ("settings", "y", "message"),
    [
        ({}, None, "requires y to be passed, but the target y is None"),
        ({}, [-1] * 8, "y must hold at least one label"),
        ({"n_init_clusters": 1}, [0, 1] * 4, "n_init_clusters=1 must lie between the 2 labelled classes"),
        ({"n_init_clusters": 9}, [0, 1, -1, -1] * 2, "n_samples=8 rows of X"),
        ({"nu0": 0.5}, [0, 1, -1, -1] * 2, "nu0=0.5 must exceed the number of features less one, 1"),
        ({"n_components_pca": 3}, [0, 1, -1, -1] * 2, "n_components_pca=3 is more than the 2 features"),
        ({"n_components_pca": 8}, [0, 1, -1, -1] * 2, "more rows than features, got n_samples=8 rows of 8"),
        ({"alpha": 0.0}, [0, 1, -1, -1] * 2, "'alpha' parameter of SemiSupervisedGMM"),
        ({"psi_scale": "wide"}, [0, 1, -1, -1] * 2, "'psi_scale' parameter of SemiSupervisedGMM"),
    ],
)
def test_what_cannot_be_is_refused(settings, y, message):
    with pytest.raises(ValueError, match=message):
        SemiSupervisedGMM(**settings).fit(np.arange(16.0).reshape(8, 2), y)


def test_nan_is_refused_and_predict_waits_for_fit():
    with pytest.raises(ValueError, match="X contains NaN"):
        SemiSupervisedGMM().fit([[0.0], [np.nan], [1.0]], [0, 1, -1])
    with pytest.raises(NotFittedError, match="fit"):
        SemiSupervisedGMM().predict([[0.0]])

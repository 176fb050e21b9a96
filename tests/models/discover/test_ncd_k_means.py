"""NCD k-means on the digits, against scikit-learn and its own promises."""

import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from models.discover.ncd_k_means import NCDKMeans, class_means, lloyd, seed_novel_centres
from models.metrics import hungarian_accuracy
from tests.models.discover.partly_named import name_of, sklearn_contract


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:500] / 16, y[:500]


@pytest.mark.parametrize(("estimator", "check"), sklearn_contract(NCDKMeans, n_novel=1, n_init=2), ids=name_of)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_without_known_classes_it_is_lloyd_from_the_same_seeds(digits):
    X, _ = digits
    seeds = seed_novel_centres(X, np.empty((0, 64)), 10, 2, np.random.RandomState(0))
    ours = lloyd(X, seeds, np.ones(10, dtype=bool), 300, 0.0).centres
    theirs = KMeans(10, init=seeds, n_init=1, tol=0.0).fit(X).cluster_centers_
    np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_seeds_are_as_good_as_those_of_k_means_plus_plus(digits):
    X, _ = digits

    def cost(centres):
        return ((X[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1).sum()

    ours = [cost(seed_novel_centres(X, np.empty((0, 64)), 10, 2, np.random.RandomState(s))) for s in range(20)]
    theirs = [cost(kmeans_plusplus(X, 10, random_state=s, n_local_trials=1)[0]) for s in range(20)]
    assert abs(np.mean(ours) - np.mean(theirs)) < 3 * (np.std(ours) + np.std(theirs)) / np.sqrt(20)


def test_seeds_keep_away_from_known_centres():
    novel = np.array([[0.0], [0.0], [10.0]])
    seeds = [seed_novel_centres(novel, np.array([[0.0]]), 1, 2, np.random.RandomState(s)) for s in range(5)]
    assert all(seed.tolist() == [[10.0]] for seed in seeds)


def test_distance_draws_differ_from_squared_distance_draws():
    novel = np.array([[1.0], [3.0]])
    far = {
        power: np.mean(
            [
                seed_novel_centres(novel, np.zeros((1, 1)), 1, power, np.random.RandomState(s))[0, 0] == 3
                for s in range(600)
            ]
        )
        for power in (1, 2)
    }
    assert far[1] == pytest.approx(0.75, abs=0.05)
    assert far[2] == pytest.approx(0.90, abs=0.05)


def test_an_empty_centre_keeps_its_place():
    found = lloyd(np.array([[0.0], [1.0]]), np.array([[0.0], [99.0]]), np.ones(2, dtype=bool), 10, 1e-4)
    assert found.centres.tolist() == [[0.5], [99.0]]


def test_known_rows_keep_their_label_and_novel_ones_get_new_ones(digits):
    X, truth = digits
    y = np.where(truth < 5, truth, -1)
    fitted = NCDKMeans(5, random_state=0).fit(X, y)
    novel = y < 0
    assert (fitted.labels_[~novel] == y[~novel]).all()
    assert sorted(set(fitted.labels_[novel])) == [5, 6, 7, 8, 9]
    assert (fitted.predict(X[novel]) + 5 == fitted.labels_[novel]).all()
    assert hungarian_accuracy(truth[novel], fitted.labels_[novel]) > 0.7
    assert (fitted.predict_known(X[~novel]) == y[~novel]).mean() > 0.85
    np.testing.assert_array_equal(fitted.known_centers_, class_means(X, y, np.arange(5)))
    assert (fitted.n_novel_, fitted.n_clusters_, fitted.cluster_centers_.shape) == (5, 10, (10, 64))
    assert (fitted.confidences_[~novel] == 1).all()
    assert ((fitted.confidences_ >= 0) & (fitted.confidences_ <= 1)).all()


def test_more_starts_are_never_worse(digits):
    X, truth = digits
    y = np.where(truth < 5, truth, -1)
    few, many = (NCDKMeans(5, n_init=n, random_state=1).fit(X, y).inertia_ for n in (1, 10))
    assert many <= few


@pytest.mark.parametrize("update", ["novel_only", "all", "known_only"])
def test_permuted_names_change_nothing_but_names(digits, update):
    X, truth = digits
    y = np.where(truth < 5, truth, -1)
    names = np.array([3, 0, 4, 1, 2])
    renamed = np.where(y >= 0, names[y], -1)
    first, second = (NCDKMeans(5, update=update, random_state=0).fit(X, labels) for labels in (y, renamed))
    assert (first.labels_[y < 0] == second.labels_[y < 0]).all()
    assert (names[first.predict_known(X)] == second.predict_known(X)).all()


def test_who_moves_depends_on_the_update(digits):
    X, truth = digits
    y = np.where(truth < 5, truth, -1)
    means = class_means(X, y, np.arange(5))
    fitted = {u: NCDKMeans(5, update=u, random_state=0).fit(X, y) for u in ("novel_only", "all", "known_only")}
    assert (fitted["novel_only"].known_centers_ == means).all()
    assert (fitted["all"].known_centers_ != means).any()
    assert (fitted["known_only"].known_centers_ != means).any()
    rows = {row.tobytes() for row in X[y < 0]}
    assert all(centre.tobytes() in rows for centre in fitted["known_only"].novel_centers_)


def test_the_number_of_classes_is_estimated():
    rng = np.random.default_rng(0)
    X = np.repeat(np.eye(6) * 10, 20, axis=0) + rng.normal(size=(120, 6))
    y = np.repeat([0, 1, -1, -1, -1, -1], 20)
    assert NCDKMeans(random_state=0).fit(X, y).n_novel_ == 4


def test_equal_and_constant_rows_are_no_trouble():
    X = np.ones((8, 2))
    fitted = NCDKMeans(1, random_state=0).fit(X, [0, 0, 1, 1, -1, -1, -1, -1])
    assert fitted.inertia_ == 0.0
    with pytest.raises(ValueError, match="n_novel=2 classes cannot be found in the 1 distinct rows that y marks"):
        NCDKMeans(2, random_state=0).fit(X, [0, 0, 1, 1, -1, -1, -1, -1])
    with pytest.raises(ValueError, match="No number of clusters can be tried"):
        NCDKMeans(random_state=0).fit(X, [0, 0, 1, 1, -1, -1, -1, -1])


@pytest.mark.parametrize(
    ("settings", "y", "message"),
    [
        ({}, [0, 1, 0, 1, 0, 1], "y labels all 6 rows"),
        ({}, [0, 0, 0, -1, -1, -1], "at least 2 classes"),
        ({}, [-1] * 6, "at least one label"),
        ({"n_novel": 3}, [0, 1, 0, 1, -1, -1], "n_novel=3 classes cannot be found in the 2 distinct rows"),
        ({"n_novel": 0}, [0, 1, 0, 1, -1, -1], "'n_novel' parameter of NCDKMeans"),
        ({}, None, "requires y to be passed, but the target y is None"),
        ({}, [0, 1, -1], r"y must be shaped \(6,\)"),
    ],
)
def test_what_cannot_be_is_refused(settings, y, message):
    with pytest.raises(ValueError, match=message):
        NCDKMeans(**settings).fit(np.arange(6.0)[:, None], y)


def test_nan_is_refused_and_predict_waits_for_fit():
    with pytest.raises(ValueError, match="X contains NaN"):
        NCDKMeans(1).fit([[0.0], [np.nan], [1.0]], [0, 1, -1])
    with pytest.raises(NotFittedError, match="fit"):
        NCDKMeans(1).predict([[0.0]])

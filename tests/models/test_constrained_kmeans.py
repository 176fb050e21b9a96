"""Constrained k-means on the digits, against scikit-learn, exact flows, and its own promises."""

from itertools import product

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.utils.estimator_checks import estimator_checks_generator

from models.constrained_kmeans import ConstrainedKMeans, bounded_assignment, nearest
from models.metrics import hungarian_accuracy

MORE_CLASSES = "the check labels its rows with more classes than it asks for clusters"
CHECKS_WITH_TOO_MANY_CLASSES = (
    "check_dont_overwrite_parameters",
    "check_dtype_object",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_fit2d_1feature",
    "check_fit2d_predict1d",
)


def contract():
    """Checks of scikit-learn, less the one that needs an environment variable set before scipy is imported."""
    checks = estimator_checks_generator(
        ConstrainedKMeans(3, random_state=0),
        expected_failed_checks=dict.fromkeys(CHECKS_WITH_TOO_MANY_CLASSES, MORE_CLASSES),
        mark="xfail",
    )
    return [pair for pair in checks if "check_array_api_input" not in str(pair)]


def check_name(value):
    return getattr(getattr(value, "func", None), "__name__", "")


@pytest.mark.parametrize(("estimator", "check"), contract(), ids=check_name)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:600], y[:600]


@pytest.fixture(scope="module")
def few_labels(digits):
    """Five labelled rows of each of the digits 0 to 5."""
    _, y = digits
    labels = np.full(len(y), -1)
    for digit in range(6):
        labels[np.flatnonzero(y == digit)[:5]] = digit
    return labels


def test_without_labels_it_is_kmeans(digits):
    X, _ = digits
    start = KMeans(10, n_init=1, random_state=0).fit(X).cluster_centers_ + 0.5
    theirs = KMeans(10, init=start, n_init=1, tol=0, random_state=0).fit(X)
    ours = ConstrainedKMeans(10, init=start, tol=0).fit(X)
    assert (ours.labels_ == theirs.labels_).all()
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-12)
    assert ours.inertia_ == pytest.approx(theirs.inertia_)


def test_seeding_is_about_as_good_as_scikit_learns(digits):
    X, _ = digits
    theirs = KMeans(10, n_init=10, random_state=0).fit(X).inertia_
    assert ConstrainedKMeans(10, random_state=0).fit(X).inertia_ < 1.02 * theirs


def test_labelled_rows_keep_their_class_and_their_cluster_its_number(digits, few_labels):
    X, _ = digits
    fitted = ConstrainedKMeans(10, random_state=0, n_init=2).fit(X, few_labels)
    labelled = few_labels >= 0
    assert (fitted.labels_[labelled] == few_labels[labelled]).all()
    assert fitted.classes_.tolist() == list(range(6))
    assert set(fitted.labels_) == set(range(10))


def test_a_few_labels_help(digits, few_labels):
    X, y = digits
    plain, helped = (ConstrainedKMeans(10, random_state=0).fit(X, labels) for labels in (None, few_labels))
    known = (y < 6) & (few_labels < 0)
    assert hungarian_accuracy(y[known], helped.labels_[known]) > hungarian_accuracy(y[known], plain.labels_[known])
    assert (helped.labels_[known] == y[known]).mean() > 0.75  # numbers are classes: no matching needed


def test_labels_may_be_any_numbers():
    X = np.array([[0.0], [1.0], [10.0], [11.0], [20.0]])
    fitted = ConstrainedKMeans(3, random_state=0).fit(X, [40, -1, 7, -1, -1])
    assert fitted.classes_.tolist() == [7, 40]
    assert fitted.labels_.tolist() == [1, 1, 0, 0, 2]


def test_a_wrongly_labelled_row_stays_and_drags_its_centre():
    X = np.array([[0.0], [1.0], [10.0], [11.0]])
    fitted = ConstrainedKMeans(2, random_state=0).fit(X, [0, -1, 1, 0])
    assert fitted.labels_[3] == 0
    assert fitted.predict([[11.0]]).tolist() == [1]


def test_everything_labelled_gives_the_class_means(digits):
    X, y = digits
    fitted = ConstrainedKMeans(10).fit(X, y)
    np.testing.assert_allclose(fitted.cluster_centers_, [X[y == k].mean(axis=0) for k in range(10)])
    assert (fitted.labels_ == y).all()


@pytest.mark.parametrize("bounds", [(55, 65), (60, 60), (None, 70), (50, None)])
def test_cluster_sizes_keep_their_bounds(digits, few_labels, bounds):
    X, _ = digits
    lowest, highest = bounds
    fitted = ConstrainedKMeans(10, minimum_size=lowest, maximum_size=highest, n_init=1, max_iter=3, random_state=0).fit(
        X, few_labels
    )
    sizes = np.bincount(fitted.labels_, minlength=10)
    assert sizes.min() >= (lowest or 0)
    assert sizes.max() <= (highest or len(X))
    assert (fitted.labels_[few_labels >= 0] == few_labels[few_labels >= 0]).all()


def test_wide_bounds_change_nothing(digits):
    X, _ = digits
    free = ConstrainedKMeans(4, n_init=1, random_state=0).fit(X[:200])
    bounded = ConstrainedKMeans(4, n_init=1, minimum_size=1, maximum_size=200, random_state=0).fit(X[:200])
    assert (free.labels_ == bounded.labels_).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_bounded_assignment_is_the_cheapest_of_all(seed):
    costs = np.random.default_rng(seed).random((6, 3))
    minimum, maximum = np.array([1, 0, 2]), np.array([3, 2, 4])
    found = bounded_assignment(costs, minimum, maximum)

    def allowed(labels):
        sizes = np.bincount(labels, minlength=3)
        return (sizes >= minimum).all() and (sizes <= maximum).all()

    best = min(costs[np.arange(6), labels].sum() for labels in product(range(3), repeat=6) if allowed(labels))
    assert allowed(found)
    assert costs[np.arange(6), found].sum() == pytest.approx(best)


def test_an_assignment_without_effective_bounds_is_the_nearest():
    costs = np.random.default_rng(0).random((20, 3))
    assert (bounded_assignment(costs, np.zeros(3, int), np.full(3, 20)) == nearest(costs)).all()
    assert len(bounded_assignment(np.empty((0, 3)), np.zeros(3, int), np.full(3, 20))) == 0


def test_an_impossible_assignment_is_refused():
    with pytest.raises(ValueError, match="4 rows do not fit into 2 clusters"):
        bounded_assignment(np.zeros((4, 2)), np.array([0, 0]), np.array([1, 1]))


def test_empty_clusters_move_to_far_rows():
    X = np.array([[0.0], [1.0], [100.0]])
    fitted = ConstrainedKMeans(3, init=[[0.0], [500.0], [600.0]], tol=0).fit(X)
    assert sorted(fitted.cluster_centers_.ravel()) == [0.0, 1.0, 100.0]
    assert fitted.inertia_ == 0.0


def test_equal_rows_are_no_trouble():
    fitted = ConstrainedKMeans(3, random_state=0, max_iter=5).fit(np.ones((6, 2)))
    assert fitted.inertia_ == 0.0


def test_distances_and_predictions_agree(digits, few_labels):
    X, _ = digits
    fitted = ConstrainedKMeans(10, random_state=0, n_init=1).fit(X, few_labels)
    assert fitted.transform(X).shape == (600, 10)
    free = few_labels < 0
    assert (fitted.predict(X)[free] == fitted.labels_[free]).all()


def test_equal_seeds_give_equal_clusters(digits):
    X, _ = digits
    first, second = (ConstrainedKMeans(10, n_init=2, random_state=4).fit(X) for _ in "ab")
    assert (first.cluster_centers_ == second.cluster_centers_).all()


@pytest.mark.parametrize(
    ("settings", "y", "message"),
    [
        ({"n_clusters": 7}, None, "at least n_clusters=7 rows, got n_samples=6"),
        ({"n_clusters": 2}, [0, 1, 2, -1, -1, -1], "n_clusters=2 is less than the 3 labelled classes"),
        ({"n_clusters": 0}, None, "'n_clusters' parameter of ConstrainedKMeans must be an int in the range"),
        ({"n_clusters": 2, "init": [[0.0]]}, None, r"init must be shaped \(2, 1\), got \(1, 1\)"),
        ({"n_clusters": 2, "maximum_size": 2}, None, "maximum_size=2 cannot be met by 6 rows in 2 clusters"),
        ({"n_clusters": 2, "minimum_size": 4}, None, "minimum_size=4 and maximum_size=None cannot be met"),
        ({"n_clusters": 2, "minimum_size": 3, "maximum_size": 2}, None, "cannot be met"),
        ({"n_clusters": 3, "maximum_size": 2}, [0, 0, 0, -1, -1, -1], r"with \[3, 0, 0\] labelled rows. Widen"),
        ({"n_clusters": 2, "minimum_size": 3}, [0, 0, 0, 0, -1, -1], "cannot be met"),
        ({"n_clusters": 2}, [0, 1], r"y must be shaped \(6,\)"),
    ],
)
def test_what_cannot_be_is_refused(settings, y, message):
    with pytest.raises(ValueError, match=message):
        ConstrainedKMeans(**settings).fit(np.arange(6.0)[:, None], y)

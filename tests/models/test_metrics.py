"""Measures against cases worked by hand and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import recall_score

from models.metrics import (
    clustering_scores,
    discovery_accuracy,
    effective_rank,
    expected_calibration_error,
    frechet_distance,
    h_score,
    hungarian_accuracy,
    knn_accuracy,
    membership_attack,
    open_set_scores,
    per_class_accuracy,
    worst_group_accuracy,
)


def test_hungarian_accuracy_ignores_the_names_of_the_clusters():
    y = np.array([0, 0, 1, 1, 2, 2])
    assert hungarian_accuracy(y, [7, 7, 3, 3, 5, 5]) == 1.0
    assert hungarian_accuracy(y, [0, 0, 0, 0, 1, 1]) == pytest.approx(4 / 6)  # one cluster can win one class only


def test_hungarian_accuracy_counts_rows_of_surplus_clusters_as_wrong():
    assert hungarian_accuracy([0, 0, 0, 0], [0, 0, 1, 2]) == 0.5


def test_clustering_scores_of_a_perfect_and_a_constant_clustering():
    y = np.repeat([0, 1], 10)
    assert clustering_scores(y, 1 - y) == {"accuracy": 1.0, "nmi": 1.0, "ari": 1.0}
    constant = clustering_scores(y, np.zeros(20))
    assert constant["accuracy"] == 0.5
    assert constant["nmi"] == pytest.approx(0.0)
    assert constant["ari"] == pytest.approx(0.0)


@pytest.mark.parametrize("unknown", [2, 5, -1])
def test_open_set_scores_by_hand(unknown):
    truth = np.array([0, 0, 0, 0, 1, 1, 9, 9])
    predicted = np.array([0, 0, 0, unknown, 1, 0, unknown, 1])
    scores = open_set_scores(truth, predicted, n_known=2)
    assert scores["known_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert scores["unknown_recall"] == pytest.approx(1 / 2)
    assert scores["h_score"] == pytest.approx(2 * 0.625 * 0.5 / 1.125)


def test_h_score_of_one_half_and_one_is_two_thirds():
    assert h_score([0, 0, 2], [0, 1, 2], n_known=2) == pytest.approx(2 / 3)


def test_h_score_is_zero_when_nothing_unknown_is_found_and_nan_when_there_is_none():
    assert h_score([0, 1, 2], [0, 1, 0], n_known=2) == 0.0
    assert math.isnan(h_score([0, 1], [0, 1], n_known=2))


def test_worst_group():
    score, group = worst_group_accuracy([0, 0, 1, 1], [0, 1, 1, 1], np.array(["a", "a", "b", "b"]))
    assert (score, group) == (0.5, "a")


def test_calibration_error_by_hand():
    sure_and_right = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert expected_calibration_error(sure_and_right, [0, 1]) == 0.0
    assert expected_calibration_error(sure_and_right, [1, 0]) == 1.0
    # two bins: confidence .6 with accuracy 1/2 (two rows), confidence .9 with accuracy 1 (two rows)
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
    assert expected_calibration_error(p, [0, 1, 0, 0], bins=4) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)


def test_per_class_accuracy_is_recall_and_nan_for_absent_classes():
    y, predicted = np.array([0, 0, 1, 1, 3]), np.array([0, 1, 1, 1, 0])
    scores = per_class_accuracy(y, predicted, 4)
    expected = recall_score(y, predicted, labels=[0, 1, 3], average=None, zero_division=0)
    np.testing.assert_allclose(scores[[0, 1, 3]], expected)
    assert np.isnan(scores[2])


def test_effective_rank_of_equal_directions_and_of_a_line():
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])  # three equal singular values
    assert effective_rank(corners) == pytest.approx(3.0)
    assert effective_rank(np.outer(np.arange(5.0), [1, 2, 3])) == pytest.approx(1.0)
    assert effective_rank(np.ones((5, 3))) == 1.0


def test_knn_accuracy_follows_directions_not_lengths():
    train, y = np.array([[1.0, 0], [5, 0], [0, 1], [0, 5]]), [0, 0, 1, 1]
    assert knn_accuracy(train, y, [[100.0, 1], [1, 100]], [0, 1], neighbours=2) == 1.0
    assert knn_accuracy(train, y, [[1.0, 0.1]], [1]) in (0.0, 1.0)  # more neighbours asked than rows: still answers


@pytest.fixture(scope="module")
def attacked():
    """A model that overfits 300 digits with random labels, and one attacked set of each kind."""
    X, _ = load_digits(return_X_y=True)
    y = np.random.default_rng(0).integers(0, 5, len(X))
    return RandomForestClassifier(30, random_state=0).fit(X[:300], y[:300]).predict_proba(X)


def test_the_attack_recognises_members_of_an_overfitted_model(attacked):
    scores = membership_attack(attacked[:200], attacked[300:500], attacked[200:300], attacked[500:600])
    assert scores["asr"] > 0.75
    assert scores["advantage"] == pytest.approx(2 * scores["asr"] - 1)


def test_the_attack_finds_nothing_among_rows_that_were_never_seen(attacked):
    scores = membership_attack(attacked[:200], attacked[300:500], attacked[700:1100], attacked[1100:1500])
    assert abs(scores["advantage"]) < 0.1


@pytest.mark.parametrize("n", [1, 5, 40])
def test_the_attack_says_what_chance_makes_of_few_rows(attacked, n):
    """Of twenty draws of rows that were never seen, about one may lie beyond it."""
    beyond = 0
    for draw in range(20):
        unseen = np.random.default_rng(draw).permutation(np.arange(500, 1797))
        scores = membership_attack(
            attacked[:200], attacked[300:500], attacked[unseen[:n]], attacked[unseen[n : n + 300]]
        )
        beyond += scores["advantage"] > scores["chance"]
    assert beyond <= 3


def test_chance_shrinks_with_the_rows_on_either_side(attacked):
    few, many = (
        membership_attack(attacked[:200], attacked[300:500], attacked[200 : 200 + n], attacked[500:900])["chance"]
        for n in (1, 100)
    )
    assert few > 2 * many > 0


def test_the_attack_is_reproducible(attacked):
    first, second = (membership_attack(attacked[:99], attacked[300:380], attacked[99:], attacked[400:]) for _ in "ab")
    assert first == second


def test_discovery_accuracy_matches_once_and_reports_old_and_new():
    truth = [0, 0, 0, 1, 1, 5, 5, 6]
    clusters = [7, 7, 2, 3, 3, 4, 4, 4]
    assert discovery_accuracy(truth, clusters, [0, 1]) == {"all": 6 / 8, "old": 4 / 5, "new": 2 / 3}
    assert discovery_accuracy(truth, clusters, [0, 1])["all"] == hungarian_accuracy(truth, clusters)
    assert np.isnan(discovery_accuracy([0, 1], [0, 1], [0, 1])["new"])


def test_frechet_distance_of_gaussians_of_known_shape():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(200_000, 2)) * [1.0, 2.0]
    second = rng.normal(size=(200_000, 2)) * [3.0, 0.5] + [1.0, 0.0]
    assert frechet_distance(first, second) == pytest.approx(1 + (1 - 3) ** 2 + (2 - 0.5) ** 2, rel=0.02)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    turned = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert frechet_distance(first @ turned, second @ turned) == pytest.approx(frechet_distance(first, second))
    assert frechet_distance(first[:, :1], second[:, :1]) == pytest.approx(1 + 4, rel=0.02)

import warnings
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_iris, load_wine, make_blobs
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler

from models.discover.ppp import (
    PPP,
    aligned_runs,
    best_first,
    better_half,
    chosen_k,
    mixture_from_partition,
    partition_covariances,
)
from models.registry import get_method


def groups():
    """Five groups of unlike sizes: two near pairs and one alone, so that three is a good number as well."""
    centres = [[0, 0], [7, 0], [0, 30], [7, 30], [30, 15]]
    return make_blobs([90, 80, 70, 60, 50], centers=np.array(centres), cluster_std=1.2, random_state=3)


@cache
def wine():
    data = load_wine()
    return PCA(5, random_state=0).fit_transform(StandardScaler().fit_transform(data.data)), data.target


@cache
def fitted_wine():
    return PPP(k_range=(2, 6), standardize=False, random_state=0).fit(wine()[0])


def fast(**parameters):
    return PPP(**{"k_range": (3, 6), "n_runs": 4, "random_state": 0} | parameters)


def test_it_is_registered_for_the_discover_stage():
    card = get_method("ppp")
    assert (card.stage, card.cls) == ("discover", PPP)


def test_wine_has_three_cultivars_and_a_core_that_is_purer():
    y = wine()[1]
    found = fitted_wine()
    assert found.n_clusters_ == 3
    whole = adjusted_rand_score(y, found.labels_)
    assert whole >= 0.85
    assert adjusted_rand_score(y[found.core_mask_], found.labels_[found.core_mask_]) >= whole
    assert 0.6 < found.core_fraction_ < 1
    assert found.core_fraction_ == found.core_mask_.mean()


def test_the_pair_of_overlapping_iris_species_counts_as_one():
    found = PPP(k_range=(2, 4), n_runs=4, random_state=0).fit(load_iris().data)
    assert found.n_clusters_ == 2
    assert np.bincount(found.labels_).tolist() == [100, 50]


def test_seeds_change_nothing_on_separate_groups():
    X, y = groups()
    answers = [fast(random_state=seed).fit(X).labels_ for seed in range(3)]
    assert adjusted_rand_score(y, answers[0]) > 0.97
    assert all((answer == answers[0]).all() for answer in answers)


def test_bic_decides_where_coarser_splits_agree_as_well():
    X, _ = groups()
    found = fast().fit(X)
    assert found.n_clusters_ == 5
    coarse = next(score for score in found.scores_ if score["k"] == 3)
    assert coarse["product"] > 0.9
    assert "BIC" in found.selected_by_


def test_choice_takes_the_smallest_bic_among_products_near_the_best():
    scores = [{"k": 2, "product": 1.0, "bic": 9.0}, {"k": 3, "product": 0.96, "bic": 5.0}]
    scores.append({"k": 4, "product": 0.9, "bic": 1.0})
    assert chosen_k(scores, 0.05)[0] == 3
    assert chosen_k(scores, 0.0) == (2, "the best product, 1.000")
    assert chosen_k(scores, 0.2)[0] == 4


def test_one_number_skips_the_choice():
    found = PPP(k_range=(3, 3), n_runs=4, random_state=0).fit(groups()[0])
    assert found.n_clusters_ == 3
    assert [score["k"] for score in found.scores_] == [3]
    assert found.selected_by_ == "the only number of clusters tried"


def test_numbers_may_be_listed():
    found = PPP(k_range=[5, 2, 4], n_runs=4, random_state=0).fit(groups()[0])
    assert [score["k"] for score in found.scores_] == [2, 4, 5]
    assert [score["k"] for score in PPP(k_range=range(3, 5), n_runs=3).fit(groups()[0]).scores_] == [3, 4]


def test_row_order_changes_nothing():
    X, _ = groups()
    order = np.random.default_rng(0).permutation(len(X))
    first, second = fast().fit(X), fast().fit(X[order])
    assert (first.labels_[order] == second.labels_).all()
    assert (first.core_mask_[order] == second.core_mask_).all()


def test_column_order_changes_no_partition():
    X, _ = groups()
    assert adjusted_rand_score(fast().fit(X).labels_, fast().fit(X[:, ::-1]).labels_) == 1


def test_shift_and_scale_of_columns_change_nothing():
    X, _ = groups()
    first, second = fast().fit(X), fast().fit(X * [10, 0.01] + [5, -7])
    assert (first.labels_ == second.labels_).all()
    np.testing.assert_allclose(second.cluster_centers_, first.cluster_centers_ * [10, 0.01] + [5, -7])
    assert not np.array_equal(fast(standardize=False).fit(X).mixture_.means_, first.mixture_.means_)


def test_duplicate_rows_get_one_label():
    X, _ = groups()
    doubled = np.concatenate([X, X[:100]])
    found = fast().fit(doubled)
    assert (found.labels_[:100] == found.labels_[len(X) :]).all()
    assert (found.core_mask_[:100] == found.core_mask_[len(X) :]).all()


def test_the_core_is_sure_and_labels_are_those_of_predict():
    X, _ = wine()
    found = fitted_wine()
    posterior = found.predict_proba(X)
    assert found.separability(X)[found.core_mask_].min() >= 0.95
    assert (found.predict(X) == found.labels_).all()
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    assert posterior.shape == (len(X), 3)


def test_clusters_are_named_by_size_and_centred_in_input_units():
    X, _ = wine()
    found = fitted_wine()
    sizes = np.bincount(found.labels_)
    assert (np.diff(sizes) <= 0).all()
    for k, centre in enumerate(found.cluster_centers_):
        np.testing.assert_allclose(centre, X[found.labels_ == k].mean(axis=0))


@pytest.mark.filterwarnings("ignore:No clear partition")
def test_starts_matter_less_than_to_one_run_of_k_means():
    X = PCA(10, random_state=0).fit_transform(load_digits().data[:600])
    labels = [PPP(k_range=(8, 8), n_runs=4, random_state=seed).fit(X).labels_ for seed in range(3)]
    single = [
        KMeans(8, n_init=1, random_state=seed).fit_predict(StandardScaler().fit_transform(X)) for seed in range(3)
    ]
    first, second = (min(adjusted_rand_score(a, b) for a, b in combinations(each, 2)) for each in (labels, single))
    assert first > second


def test_a_bad_start_is_not_asked():
    runs = [np.full((2, 1), float(i)) for i in range(5)]
    assert [run[0, 0] for run in better_half(runs)] == [0, 1, 2]
    assert len(better_half(runs[:3])) == 2


def test_runs_are_put_in_order_of_inertia():
    X = np.array([[0.0], [1.0], [9.0], [10.0]])
    good, bad = np.array([[0.5], [9.5]]), np.array([[0.0], [7.0]])
    assert best_first(X, [bad, good])[0] is good


def test_constant_columns_are_left_out():
    X, _ = groups()
    padded = np.column_stack([np.full(len(X), 3.0), X])
    found = fast().fit(padded)
    assert (found.labels_ == fast().fit(X).labels_).all()
    assert (found.cluster_centers_[:, 0] == 3).all()
    assert (found.predict(padded) == found.labels_).all()


def test_a_sample_searches_and_all_rows_are_assigned():
    X, y = groups()
    found = fast(reduce_sample=150).fit(X)
    assert adjusted_rand_score(y, found.labels_) > 0.95
    assert len(found.core_mask_) == len(X)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_every_kind_of_covariance_starts_from_the_partition(kind):
    X, y = groups()
    mixture = mixture_from_partition(X, y, 5, kind, 1e-4, 1)
    centres = np.stack([X[y == j].mean(axis=0) for j in range(5)])
    expected = partition_covariances(X, y, centres, kind, 1e-4)
    np.testing.assert_allclose(mixture.means_init, centres)
    assert mixture.covariances_.shape == expected.shape
    assert adjusted_rand_score(fast(covariance_type=kind).fit(X).labels_, y) > 0.9


def test_covariances_of_a_partition():
    X, labels = np.array([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0], [5.0, 5.0]]), np.array([0, 0, 1, 1])
    full = partition_covariances(X, labels, np.array([[1.0, 0.0], [5.0, 3.0]]), "full", 0.5)
    assert full.tolist() == [[[1.5, 0], [0, 0.5]], [[0.5, 0], [0, 4.5]]]


def test_runs_are_renamed_before_they_are_compared():
    X = np.array([[0.0], [0.1], [9.0]])
    aligned = aligned_runs(X, [np.array([[9.0], [0.0]]), np.array([[0.0], [9.0]])], np.array([0, 0, 1]))
    assert aligned.tolist() == [[0, 0, 1], [0, 0, 1]]


def test_noise_is_warned_of():
    X = np.random.default_rng(0).uniform(size=(300, 6))
    with pytest.warns(UserWarning, match="No clear partition"):
        found = PPP(k_range=(4, 6), n_runs=4, random_state=0).fit(X)
    assert max(score["product"] for score in found.scores_) < 0.5
    assert len(found.labels_) == 300


def test_a_single_group_has_no_answer_but_a_low_silhouette():
    X = np.random.default_rng(1).normal(size=(300, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = PPP(k_range=(2, 3), n_runs=4, random_state=0).fit(X)
    assert max(score["silhouette"] for score in found.scores_) < 0.35


def test_labels_are_ignored():
    X, y = groups()
    assert (fast().fit(X, y).labels_ == fast().fit(X).labels_).all()


def test_too_few_rows_for_full_covariances_try_the_smallest_number():
    X, _ = make_blobs(40, n_features=10, centers=2, random_state=0)
    with pytest.warns(UserWarning, match='covariance_type="diag"'):
        found = PPP(k_range=(2, 4), n_runs=3, random_state=0).fit(X)
    assert found.n_clusters_ == 2
    assert len(PPP(k_range=(2, 4), n_runs=3, covariance_type="diag", random_state=0).fit(X).scores_) == 3


def test_numbers_beyond_the_distinct_rows_are_left_out():
    X = np.repeat([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]], 20, axis=0)
    found = PPP(k_range=(2, 6), n_runs=3, random_state=0).fit(X)
    assert [score["k"] for score in found.scores_] == [2, 3]
    assert found.n_clusters_ == 3
    with pytest.raises(ValueError, match="3 distinct rows, too few for 4 clusters"):
        PPP(k_range=(4, 6)).fit(X)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda X: X[:6], "at least 7 rows"),
        (lambda X: np.where(X == X[3, 1], np.nan, X), "NaN"),
        (lambda X: np.ones_like(X), "are the same"),
    ],
)
def test_bad_rows_are_refused(spoil, message):
    with pytest.raises(ValueError, match=message):
        fast().fit(spoil(groups()[0]))


@pytest.mark.parametrize("k_range", [(5, 3), (1, 4), [], (2.5, 4), ("2", "4"), (True, 3)])
def test_an_impossible_range_is_refused(k_range):
    with pytest.raises(ValueError, match="k_range must hold at least one whole number, and none below 2"):
        PPP(k_range=k_range).fit(groups()[0])


def test_two_runs_cannot_show_stability():
    with pytest.raises(ValueError, match="n_runs"):
        PPP(n_runs=2).fit(groups()[0])


def test_predict_before_fit_is_refused():
    with pytest.raises(NotFittedError, match="fit"):
        PPP().predict(groups()[0])

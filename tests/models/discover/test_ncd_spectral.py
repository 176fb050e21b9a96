"""NCD spectral clustering on the digits: the bandwidth rule, the embedding, and what it refuses."""

import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from models.discover import ncd_spectral
from models.discover.ncd_spectral import NCDSpectralClustering, bandwidth, gaussian_affinity, tune_on_known_rows
from models.metrics import hungarian_accuracy
from tests.models.discover.partly_named import name_of, sklearn_contract


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300] / 16, y[:300], np.where(y[:300] < 5, y[:300], -1)


@pytest.fixture(scope="module")
def fitted(digits):
    X, _, y = digits
    return NCDSpectralClustering(5, random_state=0).fit(X, y)


@pytest.mark.parametrize(
    ("estimator", "check"),
    sklearn_contract(NCDSpectralClustering, n_novel=1, n_init=1, n_components=2),
    ids=name_of,
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("rule", "weight"), [("exact", 0.116), ("released", np.sqrt(0.116))])
def test_the_weakest_edge_of_the_tree_weighs_what_the_rule_says(digits, rule, weight):
    X, _, _ = digits
    affinity = gaussian_affinity(X, bandwidth(X, 0.116, rule))
    tree = minimum_spanning_tree(cdist(X, X)).tocoo()
    assert affinity[tree.row, tree.col].min() == pytest.approx(weight, abs=1e-6)


def test_the_affinity_is_symmetric_without_loops(digits):
    X, _, _ = digits
    affinity = gaussian_affinity(X, 1.0)
    assert (affinity == affinity.T).all()
    assert (affinity.diagonal() == 0).all()


def test_duplicates_do_not_change_the_bandwidth(digits):
    X, _, _ = digits
    assert bandwidth(np.concatenate([X, X[:40]]), 0.5) == pytest.approx(bandwidth(X, 0.5))


def test_copies_of_a_row_share_their_cluster(digits):
    X, _, y = digits
    rows, labels = np.concatenate([X[:30], X[:30], X[:30]]), np.concatenate([y[:30]] * 3)
    found = NCDSpectralClustering(5, n_components=60, random_state=0).fit(rows, labels)
    assert (found.embedding_[:30] == found.embedding_[30:60]).all()
    assert (found.labels_[:30] == found.labels_[60:]).all()


def test_a_quantile_guards_against_an_outlier(digits):
    X, _, _ = digits
    spoilt = np.concatenate([X, X[:1] + 100])
    assert bandwidth(spoilt, 0.5) > 50 * bandwidth(X, 0.5)
    assert bandwidth(spoilt, 0.5, edge_quantile=0.99) < 1.2 * bandwidth(X, 0.5)


def test_it_finds_the_hidden_digits(digits, fitted):
    _, truth, y = digits
    novel = y < 0
    assert (fitted.labels_[~novel] == y[~novel]).all()
    assert sorted(set(fitted.labels_[novel])) == [5, 6, 7, 8, 9]
    assert hungarian_accuracy(truth[novel], fitted.labels_[novel]) > 0.7
    assert fitted.embedding_.shape == (300, 10)
    assert fitted.known_accuracy_ > 0.7
    assert (fitted.confidences_[~novel] == 1).all()


def test_permuted_names_change_nothing_but_names(digits, fitted):
    X, _, y = digits
    renamed = np.where(y >= 0, (y + 2) % 5, -1)
    again = NCDSpectralClustering(5, random_state=0).fit(X, renamed)
    assert (again.labels_[y < 0] == fitted.labels_[y < 0]).all()
    assert again.known_accuracy_ == fitted.known_accuracy_


def test_clusters_of_all_rows_may_be_fewer_or_more_among_the_novel(digits):
    X, _, y = digits
    found = NCDSpectralClustering(5, kmeans_on="all", random_state=0).fit(X, y)
    assert found.n_novel_ == len(set(found.labels_[y < 0])) <= 10
    assert found.labels_[y < 0].min() == 5


def test_the_number_of_classes_is_estimated():
    rng = np.random.default_rng(0)
    X = np.repeat(np.eye(6) * 10, 20, axis=0) + rng.normal(size=(120, 6))
    found = NCDSpectralClustering(random_state=0).fit(X, np.repeat([0, 1, -1, -1, -1, -1], 20))
    assert (found.n_novel_, found.n_clusters_) == (4, 6)


def test_tuning_takes_the_pair_that_shows_the_known_classes_best(digits):
    X, _, y = digits
    tuned = tune_on_known_rows(X, y, (0.1, 0.6), (2, 10), n_init=2, random_state=0)
    scores = {(t["min_weight"], t["n_components"]): t["score"] for t in tuned.trials}
    assert len(scores) == 4
    assert scores[tuned.best_params["min_weight"], tuned.best_params["n_components"]] == max(scores.values())
    single = NCDSpectralClustering(5, **tuned.best_params, n_init=2, random_state=0).fit(X, y)
    assert single.known_accuracy_ == pytest.approx(max(scores.values()), abs=0.05)


def test_tuning_leaves_out_what_cannot_be(digits):
    X, _, y = digits
    tuned = tune_on_known_rows(X[:24], y[:24], (0.5,), (0, 5, 10, 40), n_init=1, random_state=0)
    assert [trial["n_components"] for trial in tuned.trials] == [5, 10]
    for settings in ({"n_components": (0, 24)}, {"min_weights": ()}):
        with pytest.raises(ValueError, match="Nothing to try"):
            tune_on_known_rows(X[:24], y[:24], **settings)
    for weight in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"min_weight must lie in \(0, 1\)"):
            tune_on_known_rows(X[:24], y[:24], (weight,), (5,))


def test_tuning_is_blind_to_how_the_novel_rows_are_grouped(digits):
    X, truth, y = digits
    first = tune_on_known_rows(X, y, (0.3,), (5,), n_init=1, random_state=0)
    assert first == tune_on_known_rows(X, np.where(truth < 5, truth, -1), (0.3,), (5,), n_init=1, random_state=0)


@pytest.mark.parametrize(
    ("X", "y", "settings", "message"),
    [
        (np.ones((6, 2)), [0, 0, 1, 1, -1, -1], {"n_novel": 1}, "has length 0"),
        (np.arange(12.0).reshape(6, 2), [0, 0, 1, 1, -1, -1], {"n_novel": 3}, "n_novel=3 classes cannot be found"),
        (np.arange(12.0).reshape(6, 2), [0, 0, 1, 1, 0, 1], {"n_novel": 1}, "y labels all 6 rows"),
        (np.arange(12.0).reshape(6, 2), [0, 0, 1, 1, -1, -1], {"n_novel": 1, "n_components": 6}, "7 eigenvectors"),
        (np.full((6, 2), np.nan), [0, 0, 1, 1, -1, -1], {"n_novel": 1}, "X contains NaN"),
        (np.ones((6, 2)), [0, 0, 1, 1, -1, -1], {"min_weight": 1.0}, "'min_weight' parameter"),
    ],
)
def test_what_cannot_be_is_refused(X, y, settings, message):
    with pytest.raises(ValueError, match=message):
        NCDSpectralClustering(**settings).fit(X, y)


def test_too_many_rows_are_refused(monkeypatch, digits):
    monkeypatch.setattr(ncd_spectral, "MOST_ROWS", 100)
    X, _, y = digits
    with pytest.raises(ValueError, match="X holds 300 rows; the dense affinity allows 100"):
        NCDSpectralClustering(5).fit(X, y)

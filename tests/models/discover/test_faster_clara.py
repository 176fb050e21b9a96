"""FasterCLARA and FasterCLARANS on the digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import pairwise_distances
from sklearn.utils.estimator_checks import estimator_checks_generator

from models.discover import faster_clara
from models.discover.faster_clara import FasterCLARA, FasterCLARANS
from models.discover.faster_pam import FasterPAM

BOTH = pytest.mark.parametrize("method", [FasterCLARA, FasterCLARANS])


def check_name(value):
    return getattr(getattr(value, "func", None), "__name__", type(value).__name__)


def contract():
    pairs = [*estimator_checks_generator(FasterCLARA(2, random_state=0))]
    pairs += estimator_checks_generator(FasterCLARANS(2, random_state=0))
    return [pair for pair in pairs if "check_array_api_input" not in str(pair)]


@pytest.mark.parametrize(("estimator", "check"), contract(), ids=check_name)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def X():
    return load_digits().data[:1000]


@pytest.fixture(scope="module")
def best(X):
    return FasterPAM(10, metric="euclidean", random_state=0).fit(X).inertia_


@pytest.mark.parametrize(
    ("method", "within"),
    [(FasterCLARA(10, random_state=0), 1.05), (FasterCLARANS(10, max_neighbor=0.1, random_state=0), 1.02)],
)
def test_the_loss_is_near_that_of_fasterpam(X, best, method, within):
    found = method.fit(X)
    D = pairwise_distances(X, X[found.medoid_indices_])
    assert found.inertia_ == pytest.approx(D.min(axis=1).sum(), rel=1e-6)
    assert best * 0.99 < found.inertia_ < best * within
    np.testing.assert_array_equal(found.labels_, D.argmin(axis=1))
    np.testing.assert_array_equal(found.predict(X), found.labels_)
    np.testing.assert_array_equal(found.cluster_centers_, X[found.medoid_indices_])
    assert found.labels_[found.medoid_indices_].tolist() == list(range(10))
    assert found.n_clusters_ == 10
    assert (found.confidences_ >= 0).all() and (found.confidences_ <= 1).all()


@pytest.mark.parametrize(("method", "largest"), [(FasterCLARA, 2 * 130**2), (FasterCLARANS, 1000 * 10)])
def test_no_matrix_of_all_distances_is_made(X, monkeypatch, method, largest):
    from models.discover import faster_pam

    sizes = []

    def watched(A, B=None, **options):
        D = pairwise_distances(A, B, **options)
        sizes.append(D.size)
        return D

    monkeypatch.setattr(faster_clara, "pairwise_distances", watched)
    monkeypatch.setattr(faster_pam, "pairwise_distances", watched)
    method(10, random_state=0).fit(X)
    assert max(sizes) <= largest


def test_rows_in_chunks_are_served_as_at_once(X, monkeypatch):
    medoids = np.arange(10)
    whole = faster_clara.serve(X, medoids, "euclidean")
    monkeypatch.setattr(faster_clara, "CHUNK_ROWS", 77)
    parts = faster_clara.serve(X, medoids, "euclidean")
    np.testing.assert_array_equal(whole.labels, parts.labels)
    np.testing.assert_allclose(whole.second, parts.second)


def test_a_sample_of_all_rows_is_fasterpam(X):
    rows = X[:100]
    found = FasterCLARA(4, sampling_size=1000, random_state=0).fit(rows)
    alone = min(FasterPAM(4, metric="euclidean", random_state=s).fit(rows).inertia_ for s in range(10))
    assert found.inertia_ == pytest.approx(alone, rel=0.01)
    assert found.inertia_ == found.sample_losses_.min()


def test_kept_medoids_help(X):
    kept, fresh = (
        np.mean([FasterCLARA(10, keep_medoids=keep, random_state=seed).fit(X).inertia_ for seed in range(5)])
        for keep in (True, False)
    )
    assert kept < fresh


def test_candidates_are_not_drawn_twice_before_a_swap():
    X = np.random.default_rng(0).normal(size=(40, 2))
    found = FasterCLARANS(3, n_local=1, max_neighbor=10_000, random_state=0).fit(X)
    D = pairwise_distances(X)
    for x in range(40):  # patience beyond all candidates, each seen once: no swap can be left
        for slot in range(3):
            medoids = np.where(np.arange(3) == slot, x, found.medoid_indices_)
            assert D[:, medoids].min(axis=1).sum() >= found.inertia_ * (1 - 1e-9)
    assert found.n_evaluated_ <= 37 * (found.n_swap_ + 1)


def test_patience_is_a_share_or_a_number(X):
    share = FasterCLARANS(10, n_local=1, max_neighbor=0.05, random_state=0).fit(X)
    number = FasterCLARANS(10, n_local=1, max_neighbor=50, random_state=0).fit(X)  # ⌈0.05 · 990⌉
    assert share.medoid_indices_.tolist() == number.medoid_indices_.tolist()
    hasty = FasterCLARANS(10, n_local=1, max_neighbor=1, random_state=0).fit(X)
    assert hasty.n_evaluated_ < number.n_evaluated_
    assert hasty.inertia_ > number.inertia_


@BOTH
def test_one_cluster(X, method):
    found = method(1, random_state=0).fit(X)
    assert found.labels_.tolist() == [0] * 1000
    assert found.confidences_.tolist() == [1] * 1000
    assert found.inertia_ < 1.05 * pairwise_distances(X).sum(axis=0).min()


@BOTH
def test_duplicates_and_constant_columns(method):
    rows = np.repeat([[0.0, 7.0], [1.0, 7.0], [5.0, 7.0]], 10, axis=0)
    found = method(4, random_state=0).fit(rows)
    assert len(set(found.medoid_indices_)) == len(set(found.labels_)) == 4
    assert method(3, random_state=0).fit(np.ones((20, 2))).inertia_ == 0


@BOTH
def test_labels_change_nothing(X, method):
    known = method(5, random_state=0).fit(X, load_digits().target[:1000])
    assert known.labels_.tolist() == method(5, random_state=0).fit(X).labels_.tolist()


@BOTH
@pytest.mark.parametrize(
    ("parameters", "change", "message"),
    [
        ({"n_clusters": 31}, None, "n_clusters=31 >= 1 objects, got n_samples=30"),
        ({"metric": "precomputed"}, None, "Use FasterPAM for metric='precomputed'"),
        ({"metric": "no such metric"}, None, "no such metric"),
        ({}, np.nan, "X contains NaN"),
    ],
)
def test_malformed_input_is_refused(X, method, parameters, change, message):
    rows = X[:30].copy()
    rows[3, 3] = rows[3, 3] if change is None else change
    with pytest.raises(ValueError, match=message):
        method(**{"n_clusters": 3, **parameters}).fit(rows)


@BOTH
@pytest.mark.parametrize("metric", [lambda a, b: float(a @ b), lambda a, b: -float(abs(a - b).sum())])
def test_a_similarity_as_metric_is_refused(X, method, metric):
    with pytest.raises(ValueError, match="at least 0, and 0 for a row and itself"):
        method(2, metric=metric, random_state=0).fit(X[:20])


@BOTH
def test_rows_far_from_zero_keep_their_distances(method):
    X = np.repeat([[0.0], [5.0], [10.0]], 11, axis=0) + np.random.default_rng(0).normal(size=(33, 1)) / 10
    near, far = (method(3, random_state=0).fit(rows) for rows in (X, X + 1.7e9))
    assert far.medoid_indices_.tolist() == near.medoid_indices_.tolist()
    assert far.labels_.tolist() == far.predict(X + 1.7e9).tolist() == near.labels_.tolist()
    assert far.inertia_ == pytest.approx(near.inertia_, rel=1e-4)


def test_a_sample_must_hold_the_clusters(X):
    with pytest.raises(ValueError, match="sampling_size must be at least n_clusters=8, got 5"):
        FasterCLARA(8, sampling_size=5).fit(X)


@BOTH
def test_asked_before_fit(X, method):
    with pytest.raises(NotFittedError, match="fit"):
        method(3).predict(X)

"""FasterPAM on worked examples, on the digits, and on input nobody should give it."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances
from sklearn.utils.estimator_checks import estimator_checks_generator

from models.discover.faster_pam import FasterPAM
from models.discover.pam_start import lab_init, pam_build

FIVE = np.array(
    [[0, 1, 2, 4, 7], [1, 0, 3, 5, 8], [2, 3, 0, 6, 9], [4, 5, 6, 0, 1], [7, 8, 9, 1, 0]],
    dtype=np.float64,
)
EVERY_ENGINE = pytest.mark.parametrize("engine", ["numba", "numpy"])
EVERY_METHOD = pytest.mark.parametrize("method", ["fasterpam", "fastpam1", "pam", "alternate"])


@pytest.fixture(scope="module")
def digits():
    return pairwise_distances(load_digits().data[:300])


def loss_of(D, medoids):
    return D[:, medoids].min(axis=1).sum()


def check_name(value):
    return getattr(getattr(value, "func", None), "__name__", type(value).__name__)


def contract():
    rows_for_everyone = {"check_clustering": "it gives rows even to an estimator of dissimilarities"}
    checks = estimator_checks_generator(
        FasterPAM(2, random_state=0), expected_failed_checks=rows_for_everyone, mark="xfail"
    )
    return [pair for pair in checks if "check_array_api_input" not in str(pair)]


@pytest.mark.parametrize(("estimator", "check"), contract(), ids=check_name)
def test_scikit_learn_contract_on_dissimilarities(estimator, check):
    check(estimator)


@EVERY_ENGINE
@pytest.mark.parametrize(("method", "swaps"), [("fastpam1", 1), ("pam", 1), ("fasterpam", 2)])
def test_five_objects(engine, method, swaps):
    found = FasterPAM(2, method=method, init=[0, 1], shuffle=False, engine=engine).fit(FIVE)
    assert (found.inertia_, found.n_swap_, found.n_iter_) == (4, swaps, 2)
    assert set(found.medoid_indices_) == {0, 3}
    assert (found.labels_ == found.labels_[0]).tolist() == [True, True, True, False, False]


def test_five_objects_by_fastpam1_are_numbered_by_slot():
    found = FasterPAM(2, method="fastpam1", init=[0, 1]).fit(FIVE)
    assert found.medoid_indices_.tolist() == [0, 3]
    assert found.labels_.tolist() == [0, 0, 0, 1, 1]
    assert found.medoid_indices_.dtype == found.labels_.dtype == np.int64


@EVERY_METHOD
def test_one_cluster_is_the_exact_medoid(method):
    found = FasterPAM(1, method=method, init=[1]).fit(FIVE)
    assert (found.medoid_indices_.tolist(), found.inertia_, found.n_iter_) == ([0], 14, 1)
    assert found.labels_.tolist() == [0] * 5
    assert found.confidences_.tolist() == [1] * 5


@EVERY_METHOD
@pytest.mark.parametrize("init", ["random", "build", "lab", "first"])
def test_engines_agree(digits, method, init):
    compiled, plain = (
        FasterPAM(10, method=method, init=init, engine=engine, random_state=3).fit(digits)
        for engine in ("numba", "numpy")
    )
    assert compiled.medoid_indices_.tolist() == plain.medoid_indices_.tolist()
    assert compiled.labels_.tolist() == plain.labels_.tolist()
    assert (compiled.n_iter_, compiled.n_swap_) == (plain.n_iter_, plain.n_swap_)
    np.testing.assert_allclose(compiled.loss_history_, plain.loss_history_, rtol=1e-12)


def test_fastpam1_makes_the_swaps_of_pam(digits):
    start = np.random.default_rng(0).choice(300, 10, replace=False)
    fast, slow = (FasterPAM(10, method=method, init=start).fit(digits) for method in ("fastpam1", "pam"))
    assert fast.n_swap_ > 5
    assert (fast.n_swap_, fast.medoid_indices_.tolist()) == (slow.n_swap_, slow.medoid_indices_.tolist())
    np.testing.assert_allclose(fast.loss_history_, slow.loss_history_, rtol=1e-12)


@EVERY_METHOD
def test_the_loss_falls_and_is_what_it_says(digits, method):
    start = np.arange(20)
    found = FasterPAM(20, method=method, init=start, random_state=0).fit(digits)
    history = np.array([loss_of(digits, start), *found.loss_history_])
    assert len(history) == found.n_swap_ + 1 > 1
    assert (np.diff(history) < 0).all()
    own = digits[np.arange(300), found.medoid_indices_[found.labels_]]
    assert found.inertia_ == pytest.approx(own.sum()) == pytest.approx(history[-1])
    assert found.inertia_ == pytest.approx(loss_of(digits, found.medoid_indices_))
    two = np.sort(digits[:, found.medoid_indices_], axis=1)[:, :2]
    np.testing.assert_allclose(found.confidences_, 1 - two[:, 0] / two[:, 1])
    assert len(set(found.medoid_indices_)) == found.n_clusters_ == 20


@pytest.mark.parametrize("method", ["fasterpam", "fastpam1"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_no_swap_improves_on_the_result(method, shuffle):
    D = pairwise_distances(load_digits().data[:60])
    found = FasterPAM(4, method=method, shuffle=shuffle, random_state=1).fit(D)
    for x in np.setdiff1d(np.arange(60), found.medoid_indices_):
        for slot in range(4):
            medoids = np.where(np.arange(4) == slot, x, found.medoid_indices_)
            assert loss_of(D, medoids) >= found.inertia_ * (1 - 1e-12)


def test_it_ends_lower_than_alternating_from_the_same_start(digits):
    for seed in range(3):
        start = np.random.default_rng(seed).choice(300, 20, replace=False)
        eager, alternate = (FasterPAM(20, method=m, init=start, random_state=seed) for m in ("fasterpam", "alternate"))
        assert eager.fit(digits).inertia_ < 0.98 * alternate.fit(digits).inertia_


def test_build_is_the_greedy_rule(digits):
    chosen = [int(digits.sum(axis=0).argmin())]
    for _ in range(9):
        losses = [loss_of(digits, [*chosen, x]) if x not in chosen else np.inf for x in range(300)]
        chosen.append(int(np.argmin(losses)))
    assert pam_build(digits, 10).tolist() == chosen


def test_lab_starts_better_than_random_and_repeats(digits):
    labs = [lab_init(digits, 20, random_state=seed) for seed in range(10)]
    assert all(len(set(medoids)) == 20 for medoids in labs)
    assert lab_init(digits, 20, random_state=4).tolist() == labs[4].tolist()
    assert labs[0].tolist() != labs[1].tolist()
    rng = np.random.default_rng(0)
    randoms = [loss_of(digits, rng.choice(300, 20, replace=False)) for _ in range(10)]
    assert np.mean([loss_of(digits, medoids) for medoids in labs]) < 0.98 * np.mean(randoms)


@pytest.mark.parametrize("start", [lambda D, k: pam_build(D, k), lambda D, k: lab_init(D, k, random_state=0)])
def test_starts_fill_up_with_unused_objects(start):
    twins = np.zeros((6, 6))
    twins[3:, :3] = twins[:3, 3:] = 1
    medoids = start(twins, 5)
    assert len(set(medoids.tolist())) == 5
    assert set(medoids[:2] // 3) == {0, 1}


@EVERY_ENGINE
@EVERY_METHOD
def test_all_objects_alike_end_at_once(engine, method):
    found = FasterPAM(3, method=method, engine=engine, random_state=0).fit(np.zeros((8, 8)))
    assert (found.inertia_, found.n_swap_, found.n_iter_) == (0, 0, 1)
    assert found.labels_[found.medoid_indices_].tolist() == [0, 1, 2]
    assert found.confidences_.tolist() == [0] * 8


def test_duplicate_rows_and_constant_columns():
    X = np.repeat(np.array([[0.0, 7.0], [1.0, 7.0], [5.0, 7.0]]), 10, axis=0)
    found = FasterPAM(3, metric="euclidean", random_state=0).fit(X)
    assert found.inertia_ == 0
    assert len(set(found.labels_)) == 3
    more = FasterPAM(4, metric="euclidean", random_state=0).fit(X)
    assert more.inertia_ == 0
    assert len(set(more.medoid_indices_)) == len(set(more.labels_)) == 4


def test_as_many_clusters_as_objects():
    found = FasterPAM(5, random_state=0).fit(FIVE)
    assert found.inertia_ == 0
    assert sorted(found.labels_) == [0, 1, 2, 3, 4]


def test_rows_of_an_asymmetric_matrix_are_the_objects():
    rng = np.random.default_rng(0)
    D = rng.uniform(1, 2, (30, 30))
    D[:, 7] = 0.1  # cheap as a medoid, dear as an object
    np.fill_diagonal(D, 0)
    for k in (1, 3):
        with pytest.warns(UserWarning, match="not symmetric"):
            found = FasterPAM(k, random_state=0).fit(D)
        assert 7 in found.medoid_indices_
        assert found.inertia_ == pytest.approx(loss_of(D, found.medoid_indices_))
    with pytest.warns(UserWarning, match="not symmetric"):
        assert pam_build(D, 2)[0] == 7


def test_rounding_is_no_asymmetry(digits):
    shaken = digits.copy()
    shaken[0, 1] *= 1 + 1e-14
    assert FasterPAM(3, random_state=0).fit(shaken).n_clusters_ == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float16, np.float32])
def test_no_number_type_overflows(dtype):
    D = pairwise_distances(np.random.default_rng(0).integers(0, 120, (200, 2)), metric="cityblock")
    D = np.minimum(D, 200)
    start = np.arange(5)
    plain, other = (FasterPAM(5, init=start, random_state=0).fit(M) for M in (D, D.astype(dtype)))
    assert other.inertia_ == plain.inertia_
    assert other.medoid_indices_.tolist() == plain.medoid_indices_.tolist()


def test_single_precision_on_request(digits):
    single, double = (FasterPAM(10, dtype=dtype, random_state=0).fit(digits) for dtype in ("float32", None))
    assert single.medoid_indices_.tolist() == double.medoid_indices_.tolist()
    assert single.inertia_ != double.inertia_
    assert single.inertia_ == pytest.approx(double.inertia_, rel=1e-6)


def test_new_objects_go_to_the_nearest_medoid():
    X = load_digits().data
    from_rows = FasterPAM(10, metric="cosine", random_state=0).fit(X[:300])
    given = pairwise_distances(X[:300], metric="cosine")
    from_matrix = FasterPAM(10, random_state=0).fit(given)
    assert from_matrix.medoid_indices_.tolist() == from_rows.medoid_indices_.tolist()
    assert from_matrix.cluster_centers_ is None
    np.testing.assert_array_equal(from_rows.cluster_centers_, X[from_rows.medoid_indices_])
    np.testing.assert_array_equal(from_rows.predict(X[:300]), from_rows.labels_)
    new = pairwise_distances(X[300:400], X[:300], metric="cosine")
    np.testing.assert_array_equal(from_matrix.predict(new), from_rows.predict(X[300:400]))
    np.testing.assert_array_equal(from_matrix.transform(new), new[:, from_matrix.medoid_indices_])
    assert from_rows.fit_predict(X[:300]).tolist() == from_rows.labels_.tolist()


def test_a_function_may_be_the_metric():
    def unlike(a, b):
        return float((a != b).sum()) ** 2  # no triangle inequality

    found = FasterPAM(2, metric=unlike, random_state=0).fit([[0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 1, 1]])
    assert found.inertia_ == 1
    assert found.predict([[0, 0, 0]])[0] == found.labels_[0]


def test_the_best_of_several_starts_stays(digits):
    losses = [FasterPAM(10, method="alternate", random_state=seed).fit(digits).inertia_ for seed in range(8)]
    best = FasterPAM(10, method="alternate", n_init=8, random_state=0).fit(digits)
    assert best.inertia_ < np.mean(losses)
    assert best.loss_history_[-1] == pytest.approx(best.inertia_)


def test_labels_change_nothing(digits):
    known = FasterPAM(5, random_state=0).fit(digits, load_digits().target[:300])
    assert known.labels_.tolist() == FasterPAM(5, random_state=0).fit(digits).labels_.tolist()


def test_the_input_stays_as_it_was(digits):
    before = digits.copy()
    FasterPAM(10, random_state=0).fit(digits)
    np.testing.assert_array_equal(digits, before)


@pytest.mark.parametrize("method", ["fasterpam", "fastpam1", "alternate"])
def test_too_few_passes_are_told(digits, method):
    with pytest.warns(ConvergenceWarning, match="max_iter=1 passes"):
        found = FasterPAM(10, method=method, max_iter=1, random_state=0).fit(digits)
    assert found.n_iter_ == 1
    assert found.loss_history_[-1] == pytest.approx(found.inertia_)


def spoilt(i, j, value):
    D = FIVE.copy()
    D[i, j] = value
    return D


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (FIVE[:, :4], "square matrix of dissimilarities"),
        (spoilt(1, 2, np.nan), "X contains NaN"),
        (spoilt(1, 2, np.inf), "X contains infinity"),
        (spoilt(1, 2, -1.0), "at least 0, got -1"),
        (spoilt(1, 2, -1e-17), r"rounding alone.*np.maximum"),
        (spoilt(2, 2, 0.5), r"0 on its diagonal, got 0.5 for object 2.*np.fill_diagonal"),
        (FIVE[0], "X must be a matrix"),
        (FIVE[:0], "n_samples=0"),
        (FIVE[:1, :1], "at least n_clusters=2 >= 1 objects, got n_samples=1"),
    ],
)
def test_malformed_matrices_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        FasterPAM(2).fit(X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_clusters": 6}, "n_clusters=6"),
        ({"n_clusters": 0}, "n_clusters"),
        ({"method": "clara"}, "method"),
        ({"init": [0, 0]}, "2 distinct objects from 0 to 4"),
        ({"init": [0, 5]}, "2 distinct objects from 0 to 4"),
        ({"init": [-1, 2]}, "2 distinct objects from 0 to 4"),
        ({"init": [0, 1, 2]}, "2 distinct objects from 0 to 4"),
        ({"init": [0.0, 1.0]}, "2 distinct objects from 0 to 4"),
        ({"init": [0, 1], "n_init": 2}, "n_init must be 1"),
        ({"metric": "no such metric"}, "no such metric"),
    ],
)
def test_malformed_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        FasterPAM(**{"n_clusters": 2, **parameters}).fit(FIVE)


@pytest.mark.parametrize("start", [pam_build, lab_init])
def test_starts_refuse_what_the_method_refuses(start):
    with pytest.raises(ValueError, match="dissimilarities must be a square matrix"):
        start(FIVE[:, :3], 2)
    with pytest.raises(ValueError, match="dissimilarities contains NaN"):
        start(spoilt(0, 1, np.nan), 2)
    with pytest.raises(ValueError, match="n_clusters=9"):
        start(FIVE, 9)


def test_a_metric_that_is_not_defined_everywhere_is_refused():
    X = load_digits().data[:20].copy()
    X[4] = 3.0
    with pytest.raises(ValueError, match="metric='correlation' gave NaN or infinite distances, the first at row"):
        FasterPAM(2, metric="correlation", random_state=0).fit(X)


@pytest.mark.parametrize("metric", [lambda a, b: float(a @ b), lambda a, b: -float(abs(a - b).sum())])
def test_a_similarity_as_metric_is_refused(metric):
    with pytest.raises(ValueError, match=r"at least 0, and 0 for a row and itself.*such as 1 - s"):
        FasterPAM(2, metric=metric, random_state=0).fit(load_digits().data[:20])


def test_rounding_of_a_metric_is_no_similarity():
    X = load_digits().data[:60]
    rounded = FasterPAM(4, metric=lambda a, b: float(abs(a - b).sum()) - 1e-9, random_state=0).fit(X)
    exact = FasterPAM(4, metric="cityblock", random_state=0).fit(X)
    assert rounded.medoid_indices_.tolist() == exact.medoid_indices_.tolist()
    assert rounded.inertia_ == pytest.approx(exact.inertia_)
    assert rounded.confidences_.max() == 1
    assert rounded.transform(X).min() == 0


def test_rows_far_from_zero_keep_their_distances():
    X = np.repeat([[0.0], [5.0], [10.0]], 11, axis=0) + np.random.default_rng(0).normal(size=(33, 1)) / 10
    near, far = (FasterPAM(3, metric="euclidean", random_state=0).fit(rows) for rows in (X, X + 1.7e9))
    assert far.medoid_indices_.tolist() == near.medoid_indices_.tolist()
    assert far.inertia_ == pytest.approx(near.inertia_, rel=1e-4)
    np.testing.assert_allclose(far.transform(X + 1.7e9), near.transform(X), atol=1e-5)
    assert far.cluster_centers_.min() > 1.6e9


def test_an_object_whose_distances_are_of_another_width_is_refused(digits):
    found = FasterPAM(3, random_state=0).fit(digits)
    with pytest.raises(ValueError, match="expecting 300 features"):
        found.predict(digits[:, :20])

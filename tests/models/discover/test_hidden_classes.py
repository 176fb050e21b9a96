"""What novel class discovery methods share: input, the count of classes, and tuning on classes that are only hidden."""

import numpy as np
import pytest
from scipy.stats import uniform
from sklearn.datasets import load_digits

from models.discover.hidden_classes import HiddenClassKFold, estimate_n_novel, tune_on_hidden_classes
from models.discover.ncd_k_means import NCDKMeans


@pytest.fixture(scope="module")
def table():
    X, y = load_digits(return_X_y=True)
    return X[:400] / 16, np.where(y[:400] < 6, y[:400], -1)


@pytest.mark.parametrize(("n_classes", "n_hidden", "n_folds"), [(5, None, 10), (3, 2, 50), (2, None, 4), (40, 20, 30)])
def test_folds_never_repeat_and_never_hide_everything(n_classes, n_hidden, n_folds):
    y = np.append(np.arange(n_classes), -1)
    folds = list(HiddenClassKFold(n_hidden, n_folds, random_state=0).split(y))
    assert len({tuple(hidden) for _, hidden in folds}) == len(folds) > 0
    for visible, hidden in folds:
        assert len(visible) > 0
        assert sorted([*visible, *hidden]) == list(range(n_classes))


def test_half_of_the_classes_are_hidden_unless_asked_otherwise():
    assert {len(h) for _, h in HiddenClassKFold(random_state=0).split(np.arange(8))} == {4}
    assert len(list(HiddenClassKFold(n_hidden=1, n_folds=10).split(np.arange(4)))) == 4


def test_folds_depend_on_the_seed_alone():
    first, again, other = ([tuple(h) for _, h in HiddenClassKFold(random_state=s).split(range(9))] for s in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("settings", [{"n_hidden": 3}, {"n_hidden": 0}, {"n_folds": 0}])
def test_folds_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="of 3 known classes cannot be hidden"):
        list(HiddenClassKFold(**settings).split([0, 1, 2]))


def test_blobs_are_counted():
    rng = np.random.default_rng(0)
    Z = np.repeat(np.eye(6) * 10, 20, axis=0) + rng.normal(size=(120, 6))
    found = estimate_n_novel(Z, k_max=12, random_state=0)
    assert found.n_clusters == 6
    assert sorted(found.scores) == list(range(2, 13))


def test_too_few_distinct_rows_have_no_count():
    with pytest.raises(ValueError, match="No number of clusters can be tried"):
        estimate_n_novel(np.ones((9, 2)))


def test_tuning_finds_the_setting_that_works(table):
    X, y = table
    space = {"max_iter": [0, 300]}

    def make(max_iter):
        return NCDKMeans(n_init=1, max_iter=max(max_iter, 1), seeding="d1" if max_iter == 0 else "d2", random_state=0)

    tuned = tune_on_hidden_classes(make, space, X, y, n_trials=2, random_state=0)
    by_setting = {trial["max_iter"]: trial["score"] for trial in tuned.trials}
    assert set(by_setting) == {0, 300}
    assert by_setting[tuned.best_params["max_iter"]] == max(by_setting.values())
    assert all(len(trial["folds"]) == 5 and trial["score"] == np.mean(trial["folds"]) for trial in tuned.trials)


def test_tuning_never_looks_at_novel_rows(table):
    X, y = table

    def tuned(rows):
        space = {"tol": uniform(0, 1), "n_init": [1, 2]}
        return tune_on_hidden_classes(
            lambda **chosen: NCDKMeans(random_state=0, **chosen), space, rows, y, 2, random_state=1
        )

    assert tuned(X) == tuned(np.where((y < 0)[:, None], 1e6, X))


def test_tuning_may_estimate_the_number_of_classes(table):
    X, y = table
    folds = HiddenClassKFold(2, 2, random_state=0)
    tuned = tune_on_hidden_classes(
        lambda: NCDKMeans(n_init=1, random_state=0), {}, X, y, n_trials=1, scorer="ari", folds=folds,
        n_novel_known=False, random_state=0,
    )  # fmt: skip
    assert 0 < tuned.trials[0]["score"] <= 1


def test_a_function_may_score(table):
    X, y = table
    tuned = tune_on_hidden_classes(NCDKMeans, {"n_init": [1]}, X, y, 1, scorer=lambda truth, found: 7.0)
    assert tuned.trials[0]["score"] == 7.0


def test_tuning_refuses_what_it_cannot_use(table):
    X, y = table
    with pytest.raises(ValueError, match="scorer must be one of cluster_acc, nmi, ari or a function, got 'best'"):
        tune_on_hidden_classes(NCDKMeans, {}, X, y, scorer="best")
    with pytest.raises(ValueError, match="n_trials must be at least 1, got 0"):
        tune_on_hidden_classes(NCDKMeans, {}, X, y, n_trials=0)
    with pytest.raises(ValueError, match="at least 3 classes"):
        tune_on_hidden_classes(NCDKMeans, {}, X, np.minimum(y, 1))

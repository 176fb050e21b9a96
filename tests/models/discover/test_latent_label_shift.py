"""DDFA where the answer is known exactly, on the digits, and what it refuses."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from torch import nn

from models.discover.latent_label_shift import (
    DDFA,
    anchor_priors,
    cell_shares,
    class_scores,
    domains_of_classes,
    nmf_priors,
    simulate_label_shift,
    successive_projection,
    to_probabilities,
)
from models.metrics import hungarian_accuracy
from tests.models.discover.partly_named import name_of, sklearn_contract

# Six inputs, three classes: inputs 0, 1 and 2 belong to one class each; columns are p(x|y), counts of ten.
INPUTS = np.array([[5, 0, 0], [0, 5, 0], [0, 0, 5], [3, 2, 0], [0, 3, 2], [2, 0, 3]]) / 10
PRIORS = np.array([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2]])


class Exact(ClassifierMixin, BaseEstimator):
    """A fitted classifier that knows q(d|x) of the six inputs."""

    def __init__(self, joint=None):
        self.joint = joint

    def __sklearn_is_fitted__(self):
        return True

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        shares = self.joint[X[:, 0].round().astype(int)]
        return shares / shares.sum(axis=1, keepdims=True)


def exact_problem(priors):
    """Rows in exact proportion to p(x|d), 500 a source, and the classifier that knows them."""
    joint = INPUTS @ priors.T
    counts = np.rint(joint * 500).astype(int)
    assert np.allclose(counts, joint * 500)
    X = np.concatenate([np.repeat(np.arange(6), counts[:, d]) for d in range(len(priors))])[:, None]
    return X.astype(float), np.repeat(np.arange(len(priors)), 500), Exact(joint)


def in_order(found, truth):
    """Columns of `found` in the order that fits `truth` best."""
    from scipy.optimize import linear_sum_assignment

    return found[:, linear_sum_assignment(np.abs(truth[:, :, None] - found[:, None, :]).sum(axis=0))[1]]


FEW_CELLS = "the check sets n_clusters to 1, and cells must not be fewer than classes"
NOT_SCIKIT_LEARN = {
    "check_fit_score_takes_y": "its second argument is the source of each row, not a label",
    "check_dont_overwrite_parameters": FEW_CELLS,
    "check_methods_subset_invariance": FEW_CELLS,
    "check_fit2d_1feature": FEW_CELLS,
    "check_fit2d_predict1d": FEW_CELLS,
}


@pytest.mark.parametrize(
    ("estimator", "check"),
    sklearn_contract(
        DDFA, NOT_SCIKIT_LEARN, labels=lambda n: np.arange(n) % 2, discriminator="logistic", calibrate=False
    ),
    ids=name_of,
)
def test_scikit_learn_contract(estimator, check):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The class mixes of the sources are nearly alike")
        check(estimator)


def test_known_priors_are_recovered_exactly():
    X, domains, classifier = exact_problem(PRIORS)
    fitted = DDFA(3, classifier, n_clusters=6, calibrate=False, random_state=0).fit(X, domains)
    np.testing.assert_allclose(in_order(fitted.priors_, PRIORS), PRIORS, atol=1e-8)
    assert fitted.reconstruction_err_ < 1e-8
    assert fitted.condition_number_ == pytest.approx(np.linalg.cond(PRIORS))
    assert fitted.domain_counts_.tolist() == [500] * 4
    np.testing.assert_allclose(fitted.class_domain_.sum(axis=1), 1.0)


@pytest.mark.parametrize("adjust", ["pinv", "nnls"])
def test_classes_explain_what_the_sources_say(adjust):
    X, domains, classifier = exact_problem(PRIORS)
    fitted = DDFA(3, classifier, n_clusters=6, calibrate=False, adjust=adjust, random_state=0).fit(X, domains)
    inputs = np.arange(6.0)[:, None]
    f = fitted.score_domain(inputs)
    np.testing.assert_allclose(fitted.predict_proba(inputs) @ fitted.class_domain_, f, atol=1e-7)


def test_given_the_source_the_answer_is_that_of_bayes():
    X, domains, classifier = exact_problem(PRIORS)
    fitted = DDFA(3, classifier, n_clusters=6, calibrate=False, random_state=0).fit(X, domains)
    inputs = np.arange(6.0)[:, None]
    for d in range(4):
        truth = INPUTS * PRIORS[d]
        truth /= truth.sum(axis=1, keepdims=True)
        found = fitted.predict_proba(inputs, np.full(6, d))
        order = in_order(fitted.priors_, PRIORS)
        columns = [int(np.abs(fitted.priors_ - order[:, [c]]).sum(axis=0).argmin()) for c in range(3)]
        np.testing.assert_allclose(found[:, columns], truth, atol=1e-7)


def test_sources_of_one_class_each_give_the_discriminator_back():
    priors = np.eye(3)
    X, domains, classifier = exact_problem(priors)
    fitted = DDFA(3, classifier, n_clusters=6, calibrate=False, random_state=0).fit(X, domains)
    inputs = np.arange(6.0)[:, None]
    columns = fitted.priors_.argmax(axis=1)
    np.testing.assert_allclose(fitted.predict_proba(inputs)[:, columns], fitted.score_domain(inputs), atol=1e-8)
    assert (fitted.labels_ == columns[domains]).all()


def test_permuted_sources_permute_the_rows_of_the_priors():
    order = np.array([2, 0, 3, 1])
    first, second = (
        DDFA(3, classifier, n_clusters=6, calibrate=False, random_state=0).fit(X, domains)
        for X, domains, classifier in (exact_problem(PRIORS), exact_problem(PRIORS[order]))
    )
    np.testing.assert_allclose(in_order(second.priors_, first.priors_[order]), first.priors_[order], atol=1e-8)


@pytest.mark.parametrize("factorizer", ["anchor", "nmf"])
def test_equal_mixes_are_refused(factorizer):
    X, domains, classifier = exact_problem(np.tile([0.4, 0.4, 0.2], (4, 1)))
    with pytest.raises(ValueError, match="n_classes=3 need as many"):
        DDFA(3, classifier, n_clusters=6, calibrate=False, factorizer=factorizer, random_state=0).fit(X, domains)


def test_nearly_equal_mixes_are_warned_of():
    priors = np.array([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.38, 0.4, 0.22], [0.4, 0.42, 0.18]])
    X, domains, classifier = exact_problem(priors)
    with pytest.warns(UserWarning, match=r"nearly alike \(condition number"):
        DDFA(3, classifier, n_clusters=6, calibrate=False, random_state=0).fit(X, domains)


def test_projection_picks_the_corners():
    rng = np.random.default_rng(0)
    corners = rng.dirichlet(np.ones(5), size=3)
    inside = rng.dirichlet(np.ones(3), size=20) @ corners
    rows = np.concatenate([inside, corners])
    assert sorted(successive_projection(rows, 3)) == [20, 21, 22]
    with pytest.raises(ValueError, match=r"differ in 3 direction\(s\) only, and n_classes=4"):
        successive_projection(rows, 4)


def test_tiny_cells_are_no_anchors():
    shares = np.array([[0.5, 0.1], [0.1, 0.5], [0.39, 0.4], [0.01, 0.0]])
    sizes = shares.mean(axis=1)
    guarded, open_to_all = (anchor_priors(shares, sizes, 2, fraction) for fraction in (0.01, 0.0))
    assert 0 < guarded.min()
    assert not np.allclose(guarded, open_to_all)
    with pytest.raises(ValueError, match=r"Only 1 cells hold min_cluster_frac=0.4"):
        anchor_priors(shares, np.array([0.5, 0.3, 0.2, 0.0]), 2, 0.4)


def test_random_factorisations_reproduce_the_shares():
    shares = INPUTS @ PRIORS.T
    found = nmf_priors(shares, 3, 5, np.random.RandomState(0))
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found >= 0).all()


def test_cells_are_counted_by_source():
    assert cell_shares(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]), 2, 2).tolist() == [[2 / 3, 0.0], [1 / 3, 1.0]]


def test_negative_scores_are_clipped_and_nothing_becomes_uniform():
    found = to_probabilities(np.array([[-1.0, 1.0, 3.0], [-1.0, -2.0, -3.0]]))
    np.testing.assert_allclose(found, [[0, 0.25, 0.75], [1 / 3] * 3])


def test_both_adjustments_agree_inside_the_simplex():
    A = domains_of_classes(PRIORS)
    f = np.random.default_rng(0).dirichlet(np.ones(3), size=5) @ A.T
    np.testing.assert_allclose(class_scores(f, A, "pinv"), class_scores(f, A, "nnls"), atol=1e-8)


# ---- digits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shifted():
    X, y = load_digits(return_X_y=True)
    X, y = X[y < 3] / 16, y[y < 3]
    drawn = simulate_label_shift(y, 3, alpha=0.5, max_cond=3, per_domain=100, random_state=1)
    return X[drawn.rows], y[drawn.rows], drawn.domains, drawn.priors


@pytest.mark.parametrize("discriminator", ["mlp", "logistic", "factory", "scikit-learn"])
def test_digits_are_told_apart_by_their_mix(shifted, discriminator):
    X, y, domains, priors = shifted
    made = {
        "factory": lambda r: nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, r)),
        "scikit-learn": LogisticRegression(max_iter=500),
    }.get(discriminator, discriminator)
    fitted = DDFA(3, made, n_clusters=3, epochs=15, random_state=0).fit(X, domains)
    assert hungarian_accuracy(y, fitted.labels_) > 0.85
    assert (fitted.predict(X, domains) == fitted.labels_).all()
    assert np.abs(in_order(fitted.priors_, priors) - priors).sum() / 3 < 0.3
    assert fitted.n_clusters_ == 3
    np.testing.assert_allclose(fitted.predict_proba(X).sum(axis=1), 1.0)
    assert ((fitted.confidences_ > 0) & (fitted.confidences_ <= 1)).all()
    if discriminator in ("mlp", "factory"):
        losses = [row["val_loss"] for row in fitted.history_]
        assert min(losses) < losses[0]
        assert [row["lr"] for row in fitted.history_][:2] == pytest.approx([1e-3, 0.97e-3])


def test_sources_of_unequal_size_weigh_alike(shifted):
    X, _, domains, _ = shifted
    few = np.flatnonzero((domains != 0) | (np.cumsum(domains == 0) <= 25))
    fitted = DDFA(3, "logistic", random_state=0).fit(X[few], domains[few])
    assert fitted.score_domain(X).mean(axis=0)[0] > 0.2
    unseen = fitted.predict_proba(X[:5], np.zeros(5, dtype=int))
    assert unseen.shape == (5, 3)


def test_a_fitted_classifier_is_used_as_it_is(shifted):
    X, _, domains, _ = shifted
    given = LogisticRegression(max_iter=500).fit(X, domains)
    fitted = DDFA(3, given, calibrate=False, random_state=0).fit(X, domains)
    np.testing.assert_allclose(fitted.score_domain(X), given.predict_proba(X), atol=1e-7)
    assert len(fitted.cluster_centers_) == 3


def test_a_table_with_named_columns_is_taken_without_a_warning(shifted):
    X, _, domains, _ = shifted
    frame = pd.DataFrame(X, columns=[f"pixel {i}" for i in range(64)])
    named, plain = (DDFA(3, "logistic", random_state=0).fit(rows, domains) for rows in (frame, X))
    assert (named.predict(frame) == plain.predict(X)).all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda r: nn.Linear(64, r - 1), r"for the sources \[0, 1\], and domains names 0\.\.2"),
        (lambda r: nn.Linear(64, r + 1), r"for the sources \[0, 1, 2, 3\], and domains names 0\.\.2"),
        (lambda r: r, "must return an nn.Module, got int"),
        (nn.Linear(64, 3), "not a network itself"),
    ],
)
def test_networks_that_do_not_name_the_sources_are_refused(shifted, made, message):
    X, _, domains, _ = shifted
    with pytest.raises(ValueError, match=message):
        DDFA(3, made, epochs=1, random_state=0).fit(X, domains)


def test_fitted_classifiers_of_other_sources_are_refused(shifted):
    X, _, domains, _ = shifted
    with pytest.raises(ValueError, match=r"for the sources \['a', 'b', 'c'\], and domains names 0\.\.2"):
        DDFA(2, LogisticRegression(max_iter=500).fit(X, np.array(["a", "b", "c"])[domains])).fit(X, domains)
    with pytest.raises(ValueError, match=r"for the sources \[0, 1\], and domains names 0\.\.2"):
        DDFA(2, LogisticRegression(max_iter=500).fit(X, domains % 2)).fit(X, domains)
    Y, given, classifier = exact_problem(PRIORS)
    with pytest.raises(ValueError, match=r"for the sources \[0, 1, 2, 3\], and domains names 0\.\.2"):
        DDFA(2, classifier).fit(Y[given < 3], given[given < 3])


def test_a_source_that_no_class_explains_is_named():
    shares = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])  # the third cell is too small for an anchor
    with pytest.raises(ValueError, match=r"No class occurs in source\(s\) \[2\]"):
        anchor_priors(shares, np.array([0.4, 0.4, 0.2]), 2, 0.3)
    with pytest.raises(ValueError, match=r"No class occurs in source\(s\) \[2\]"):
        nmf_priors(np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]), 2, 1, np.random.RandomState(0))


def test_images_are_taken_as_they_are(shifted):
    X, _, domains, _ = shifted
    images = X.reshape(-1, 8, 8)
    fitted = DDFA(2, epochs=1, random_state=0).fit(images, domains)
    assert fitted.predict(images[:4]).shape == (4,)
    assert fitted.sample_shape_ == (1, 8, 8)


def test_simulated_sources_have_the_mix_they_claim():
    y = np.arange(30_000) % 3
    drawn = simulate_label_shift(y, 4, alpha=3.0, max_cond=6, per_domain=2000, random_state=0)
    assert len(set(drawn.rows)) == 8000
    assert np.linalg.cond(drawn.priors) <= 6
    for d in range(4):
        mix = np.bincount(y[drawn.rows[drawn.domains == d]], minlength=3) / 2000
        np.testing.assert_allclose(mix, drawn.priors[d], atol=0.04)
    for settings in ({"n_domains": 0}, {"alpha": 0.0}, {"per_domain": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            simulate_label_shift(y, **{"n_domains": 4, "alpha": 3.0, "max_cond": 6, "per_domain": 10} | settings)
    assert set(simulate_label_shift(y, 4, 1e-4, 6, 10, random_state=0).priors.ravel()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="are asked of it"):
        simulate_label_shift(y[:300], 4, 3.0, 6, 2000, random_state=0)
    with pytest.raises(ValueError, match=r"up to max_cond=1\.0"):
        simulate_label_shift(y, 4, 3.0, 1.0, 10, random_state=0)


@pytest.mark.parametrize(
    ("domains", "settings", "message"),
    [
        (None, {}, "domains must tell the source of each row"),
        ([0] * 8, {}, r"domains names 1 source\(s\), and n_classes=2 need at least as many"),
        ([0, 1] * 4, {"n_classes": 3}, "n_classes=3 need at least as many"),
        ([0, 2] * 4, {}, r"each of 0\.\.2 at least twice; \[1\] do not occur so"),
        ([0, 1] * 4, {"n_clusters": 2, "n_classes": 2, "val_fraction": 1.0}, "'val_fraction' parameter of DDFA"),
        ([0, 1, 2, 0, 1, 2, 0, 1], {"n_classes": 3, "n_clusters": 2}, "n_clusters=2 cells are fewer than n_classes=3"),
        ([0, 1, -1, 0, 1, 0, 0, 1], {}, "domains must not hold labels below 0"),
        ([0, 1], {}, r"domains must be shaped \(8,\)"),
    ],
)
def test_what_cannot_be_is_refused(domains, settings, message):
    with pytest.raises(ValueError, match=message):
        DDFA(discriminator="logistic", **settings).fit(np.arange(16.0).reshape(8, 2), domains)


def test_bad_rows_are_refused_and_constant_ones_tell_nothing():
    with pytest.raises(ValueError, match="X contains NaN"):
        DDFA(discriminator="logistic").fit(np.full((8, 2), np.nan), [0, 1] * 4)
    with pytest.raises(ValueError, match=r"differ in 0 direction\(s\) only"):
        DDFA(discriminator="logistic").fit(np.ones((8, 2)), [0, 1] * 4)
    with pytest.raises(NotFittedError, match="fit"):
        DDFA().predict([[0.0]])


def test_unknown_sources_are_refused_in_predict(shifted):
    X, _, domains, _ = shifted
    fitted = DDFA(2, "logistic", random_state=0).fit(X, domains)
    with pytest.raises(ValueError, match=r"domains must lie in 0\.\.2, got 3"):
        fitted.predict(X[:2], [0, 3])

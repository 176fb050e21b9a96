"""Drift: nothing where nothing changed, much where something did, on real digits and a real classifier."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from models.drift import confidence_divergence, domain_auc, drifted, measure, separability_drop

BOUNDS = {"domain_auc": 0.75, "confidence_divergence": 0.1, "separability_drop": 0.15}


@pytest.fixture(scope="module")
def outputs():
    """Log-probabilities of held-out digits: two halves as they are, one blurred and inverted."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    order = np.random.default_rng(0).permutation(len(X))
    train, first, second, third = np.split(order, [800, 1130, 1460])
    model = LogisticRegression(max_iter=2000).fit(X[train], y[train])
    changed = 1 - gaussian_filter(X[third].reshape(-1, 8, 8), (0, 0.7, 0.7)).reshape(-1, 64)
    return [model.predict_log_proba(rows) for rows in (X[first], X[second], changed)]


def test_rows_of_the_same_source_are_no_drift(outputs):
    reference, same, _ = outputs
    found = measure(reference, same)
    assert found["domain_auc"] < 0.6
    assert found["confidence_divergence"] < 0.05
    assert abs(found["separability_drop"]) < 0.15
    assert not drifted(found, BOUNDS, 2)


def test_changed_rows_are_drift(outputs):
    reference, _, changed = outputs
    found = measure(reference, changed)
    assert found["domain_auc"] > 0.9
    assert found["confidence_divergence"] > 0.1
    assert drifted(found, BOUNDS, 2)


def test_measures_repeat_and_leave_their_input_alone(outputs):
    reference, same, _ = outputs
    before = reference.copy()
    assert measure(reference, same, 3) == measure(reference, same, 3)
    assert (reference == before).all()


def test_divergence_knows_its_ends():
    assert confidence_divergence([0.95] * 5, [0.97] * 9) == 0
    assert confidence_divergence([0.95] * 5, [0.05] * 5) == 1
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        confidence_divergence([0.5], [])
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        confidence_divergence([0.5], [np.nan])


def test_separability_is_lost_when_groups_are(outputs):
    rng = np.random.default_rng(0)
    groups = np.repeat(10 * np.eye(5), 40, axis=0) + 0.1 * rng.normal(size=(200, 5))
    assert separability_drop(groups, rng.normal(size=(150, 5))) > 0.15
    assert separability_drop(groups, np.ones((50, 5))) == 1  # collapsed
    assert separability_drop(np.ones((50, 5)), groups) == 0  # nothing to lose


def test_what_can_not_be_compared_is_said():
    X = np.zeros((30, 3))
    with pytest.raises(ValueError, match="equally many columns, got 3 and 2"):
        domain_auc(X, np.zeros((30, 2)))
    with pytest.raises(ValueError, match="20"):
        domain_auc(X, X[:5])
    with pytest.raises(ValueError, match="NaN"):
        domain_auc(X, np.full((30, 3), np.nan))


def test_agreement_is_counted():
    found = {"domain_auc": 0.9, "confidence_divergence": 0.2, "separability_drop": 0.0}
    assert drifted(found, BOUNDS, 2)
    assert not drifted(found, BOUNDS, 3)

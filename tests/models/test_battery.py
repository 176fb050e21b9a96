"""The common battery itself: a sound method passes, and each flaw is caught by the check that is meant for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.utils.validation import check_is_fitted

from models import registry
from models.base import check_embeddings, check_labels, isolated_seed
from models.registry import get_method, list_methods, register
from tests.models import test_common as battery
from tests.models.specimens import SPECIMENS, Specimen


class Sound(BaseEstimator):
    """Class means, each moved a little at random."""

    def __init__(self, scale=0.1, random_state=None):
        self.scale = scale
        self.random_state = random_state

    def fit(self, X, y):
        X = self.rows(X)
        y = self.labels(y, len(X))
        with self.seeded():
            self.means_ = np.array([X[y == c].mean(axis=0) for c in range(y.max() + 1)])
            self.means_ += self.scale * np.random.rand(*self.means_.shape) + self.scale * torch.rand(1).numpy()
        return self

    def predict(self, X):
        check_is_fitted(self)
        return ((X[:, None] - self.means_) ** 2).sum(axis=2).argmin(axis=1)

    def rows(self, X):
        return check_embeddings(X)

    def labels(self, y, n):
        return check_labels(y, n)

    def seeded(self):
        return isolated_seed(self.random_state)


class Unseeded(Sound):
    def seeded(self):
        return isolated_seed(None)


class Reseeding(Sound):
    def fit(self, X, y):
        torch.manual_seed(0)
        return super().fit(X, y)


class Scaling(Sound):
    def rows(self, X):
        X *= 2.0
        return check_embeddings(X)


class WarmStarting(Sound):
    def fit(self, X, y):
        before = getattr(self, "means_", 0.0)
        super().fit(X, y)
        self.means_ = self.means_ + before
        return self


class Deriving(Sound):
    def __init__(self, scale=0.1, random_state=None):
        super().__init__(scale, random_state)
        self.double = 2 * scale


class Overwriting(Sound):
    def fit(self, X, y):
        self.scale = float(np.float32(self.scale))
        return super().fit(X, y)


class Demanding(Sound):
    def __init__(self, scale, random_state=None):
        super().__init__(scale, random_state)


class Eager(Sound):
    def predict(self, X):
        return np.zeros(len(X)) if not hasattr(self, "means_") else super().predict(X)


class Trusting(Sound):
    def rows(self, X):
        return np.atleast_2d(np.nan_to_num(X))

    def labels(self, y, n):
        return np.maximum(np.resize(y, n), 0)


class Anonymous(Sound):
    def rows(self, X):
        if np.ndim(X) != 2 or not len(X) or not np.isfinite(X).all():
            raise ValueError("bad input")
        return X


class Unpackable(Sound):
    def fit(self, X, y):
        super().fit(X, y)
        self.rule_ = lambda rows: super(Unpackable, self).predict(rows)
        return self

    def predict(self, X):
        check_is_fitted(self)
        return self.rule_(X)


@pytest.fixture
def entered(monkeypatch):
    """Enter a class as a method with a specimen, for this test."""
    list_methods()
    monkeypatch.setattr(registry, "_CARDS", dict(registry._CARDS))

    def enter(cls):
        X, y = load_digits(return_X_y=True)
        register("flawed", stage="curate", summary="s", paper="p", year=2020, link="l", licence="MIT")(cls)
        specimen = Specimen(
            make=lambda: cls(scale=0.1, random_state=0),
            arguments=lambda: {"X": X[:60].copy(), "y": y[:60] % 3},
            answers=lambda fitted: {"classes": fitted.predict(X[60:90])},
            labels="y",
        )
        monkeypatch.setitem(SPECIMENS, "flawed", lambda: specimen)
        battery.fitted_once.cache_clear()
        return get_method("flawed"), specimen

    yield enter
    battery.fitted_once.cache_clear()


OF_FILES = {"documented", "tested_and_measured"}


@pytest.mark.parametrize("check", sorted(battery.CHECKS.keys() - OF_FILES))
def test_a_sound_method_passes(entered, check):
    battery.CHECKS[check](*entered(Sound))


@pytest.mark.parametrize(
    ("flawed", "check"),
    [
        (Unseeded, "reproducible"),
        (Unseeded, "fits_twice_alike"),
        (Reseeding, "global_state_untouched"),
        (Scaling, "inputs_unchanged"),
        (Scaling, "read_only_inputs"),
        (WarmStarting, "fits_twice_alike"),
        (Deriving, "clone"),
        (Overwriting, "fits_twice_alike"),
        (Demanding, "defaults"),
        (Eager, "not_fitted"),
        (Trusting, "wrong_shape"),
        (Trusting, "nan"),
        (Trusting, "empty"),
        (Trusting, "one_class"),
        (Trusting, "all_unlabelled"),
        (Trusting, "labels_of_another_length"),
        (Anonymous, "nan"),
        (Unpackable, "survives_packing"),
        (Sound, "documented"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_each_flaw_is_caught(entered, flawed, check):
    with pytest.raises((AssertionError, pytest.fail.Exception, ValueError, AttributeError)):
        battery.CHECKS[check](*entered(flawed))

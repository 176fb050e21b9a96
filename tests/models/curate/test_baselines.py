"""The selections that any other has to beat: what each keeps, and what bad input is told."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from models.base import isolated_seed
from models.curate.baselines import (
    EL2N,
    Forgetting,
    FullData,
    GraNd,
    Herding,
    KCentre,
    Margin,
    RandomSubset,
    StratifiedSubset,
)
from models.curate.trained_scores import ForgettingTrainer, el2n, gradient_norms, margins
from models.selection import Selector
from models.supervised import make_classifier
from models.training import sgd

DATA, TARGET = load_digits(return_X_y=True)
X, Y = (DATA[:400] / 16).astype(np.float32), TARGET[:400]
SHORT: dict[str, Any] = {"epochs": 3, "n_models": 1, "batch_size": 32, "random_state": 0}


def every(budget: float) -> list[Selector]:
    return [
        RandomSubset(budget, random_state=0),
        StratifiedSubset(budget, random_state=0),
        KCentre(budget, random_state=0),
        Herding(budget),
        Margin(budget, **SHORT),
        EL2N(budget, **SHORT),
        GraNd(budget, **SHORT),
        Forgetting(budget, **SHORT),
    ]


NAMES = [type(selector).__name__ for selector in every(1)]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_each_has_the_shape_of_a_selector(number: int) -> None:
    selector = every(0.1)[number].fit(X, Y)
    assert selector.scores_.shape == (400,)
    assert np.isfinite(selector.scores_).all()
    assert selector.indices_.dtype == np.int64
    assert len(selector.indices_) == 40
    assert (np.diff(selector.indices_) > 0).all()
    left_out = np.setdiff1d(np.arange(400), selector.indices_)
    assert selector.scores_[selector.indices_].min() >= selector.scores_[left_out].max()
    kept, labels = selector.select(X, Y)
    np.testing.assert_array_equal(kept, X[selector.indices_])
    np.testing.assert_array_equal(labels, Y[selector.indices_])
    whole = every(1.0)[number].fit(X, Y)
    np.testing.assert_array_equal(whole.indices_, np.arange(400))


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_each_refuses_budgets_and_rows_that_can_not_be(number: int) -> None:
    for budget in (0, 401, 0.0, 1.01):
        with pytest.raises(ValueError, match=rf"budget={budget} must lie in"):
            every(budget)[number].fit(X, Y)
    with pytest.raises(ValueError, match="X must hold at least one sample"):
        every(5)[number].fit(X[:0], Y[:0])
    with pytest.raises(ValueError, match=r"X contains NaN or infinite entries in 1 row\(s\), the first at row 3"):
        spoilt = X.copy()
        spoilt[3, 5] = np.nan
        every(5)[number].fit(spoilt, Y)


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_rows_that_are_all_alike_still_fill_the_budget(number: int) -> None:
    alike = np.full((60, 5), 0.7, dtype=np.float32)
    selector = every(12)[number].fit(alike, np.arange(60) % 3)
    assert len(np.unique(selector.indices_)) == 12


def test_all_rows_and_chance() -> None:
    assert FullData().fit(X).indices_.tolist() == list(range(400))
    with pytest.raises(ValueError, match="X is empty"):
        FullData().fit(X[:0])
    draws = np.concatenate([RandomSubset(40, random_state=seed).fit(X).indices_ for seed in range(60)])
    counts = np.bincount(draws, minlength=400)
    assert counts.mean() == 6
    assert 4 < counts.var() < 7  # binomial: 5.4
    first, again = (RandomSubset(40, random_state=1).fit(X).indices_ for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_strata_keep_their_shares_exactly_and_unlabelled_rows_are_one() -> None:
    y = np.repeat([-1, 3, 8], [40, 320, 40])
    chosen = StratifiedSubset(50, random_state=0).fit(X, y)
    assert np.bincount(chosen.select(y) + 1).tolist() == [5, 0, 0, 0, 40, 0, 0, 0, 0, 5]
    assert len(StratifiedSubset(50, random_state=0).fit(X, np.zeros(400, dtype=int)).indices_) == 50
    assert len(StratifiedSubset(50, random_state=0).fit(X, np.full(400, -1)).indices_) == 50
    rare = StratifiedSubset(4, random_state=0).fit(X, np.repeat([0, 1], [399, 1]))
    assert rare.select(np.repeat([0, 1], [399, 1])).tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="without classes use RandomSubset"):
        StratifiedSubset(50).fit(X)
    with pytest.raises(ValueError, match=r"y must be shaped \(400,\)"):
        StratifiedSubset(50).fit(X, Y[:-1])


def test_k_centre_covers_within_twice_the_best_radius() -> None:
    points = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    distances = cdist(points, points)
    best = min(distances[:, list(centres)].min(axis=1).max() for centres in itertools.combinations(range(12), 3))
    for seed in range(5):
        selector = KCentre(3, random_state=seed).fit(points)
        assert selector.radius_ == pytest.approx(distances[:, selector.indices_].min(axis=1).max(), abs=1e-5)
        assert selector.radius_ <= 2 * best + 1e-6
    chosen = KCentre(40, random_state=0).fit(X)
    chance = RandomSubset(40, random_state=0).fit(X)
    assert chosen.radius_ < cdist(X, X[chance.indices_]).min(axis=1).max()


def test_herding_follows_the_definition_and_the_mean() -> None:
    points = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32) + 1
    mean, weight, free, picked = points.mean(0), points.mean(0), set(range(30)), []
    for _ in range(6):
        picked.append(max(free, key=lambda row: float(points[row] @ weight)))
        free.remove(picked[-1])
        weight = weight + mean - points[picked[-1]]
    selector = Herding(6).fit(points)
    assert np.argsort(-selector.scores_)[:6].tolist() == picked
    herd = np.linalg.norm(points[selector.indices_].mean(0) - mean)
    by_chance = [
        np.linalg.norm(points[RandomSubset(6, random_state=s).fit(points).indices_].mean(0) - mean) for s in range(9)
    ]
    assert herd < min(by_chance)
    y = np.repeat([0, 1, -1], [15, 10, 5])
    assert np.bincount(Herding(6).fit(points, y).select(y) + 1).tolist() == [1, 3, 2]


def test_margin_and_error_by_hand() -> None:
    probabilities = [[0.7, 0.2, 0.1], [0.1, 0.45, 0.45]]
    np.testing.assert_allclose(margins(probabilities), [0.5, 0.0])
    np.testing.assert_allclose(
        el2n(probabilities, np.array([0, 2])), [np.sqrt(0.09 + 0.04 + 0.01), np.sqrt(0.01 + 0.45**2 + 0.55**2)]
    )


def test_gradient_norms_equal_one_backward_pass_a_row() -> None:
    with isolated_seed(0):
        network = make_classifier(None, (64,), 10)
    rows, labels = torch.from_numpy(X[:7]), torch.from_numpy(Y[:7])
    expected = []
    for x, y in zip(rows, labels, strict=True):
        network.zero_grad()
        F.cross_entropy(network(x[None]), y[None]).backward()
        expected.append(float(torch.cat([p.grad.flatten() for p in network.parameters()]).norm()))
    np.testing.assert_allclose(gradient_norms(network, rows, labels, batch_size=3), expected, rtol=1e-4)


def test_forgetting_counts_from_right_to_wrong() -> None:
    answers = iter([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 0, 1]])  # predicted classes of three rows, step by step

    class Scripted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.one_hot(torch.tensor(next(answers)), 2).float() * self.scale

    trainer = ForgettingTrainer(
        Scripted(), epochs=4, batch_size=3, optimizer=sgd(0.01), batches=lambda _: [torch.arange(3)]
    )
    trainer.fit(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    assert trainer.events.tolist() == [2, 1, 0]
    assert trainer.learned.tolist() == [1, 1, 0]


def test_mislabelled_rows_are_the_hardest() -> None:
    rng = np.random.default_rng(0)
    wrong = rng.choice(400, 40, replace=False)
    y = Y.copy()
    y[wrong] = (y[wrong] + rng.integers(1, 10, 40)) % 10
    settings = {**SHORT, "epochs": 8, "lr": 0.03}
    for selector in (EL2N(40, **settings), GraNd(40, **settings), Forgetting(40, **settings)):
        found = np.isin(selector.fit(X, y).indices_, wrong).mean()
        assert found > 0.5, type(selector).__name__  # by chance 0.1


def test_trained_scores_tell_what_they_need() -> None:
    labels = np.where(np.arange(400) % 2, Y, -1)
    assert len(Margin(9, **SHORT).fit(X, labels).indices_) == 9
    with pytest.raises(ValueError, match="y must not hold labels below 0"):
        EL2N(9, **SHORT).fit(X, labels)
    with pytest.raises(ValueError, match="y must give the labels that Margin trains with"):
        Margin(9, **SHORT).fit(X)
    with pytest.raises(ValueError, match="at least 2 classes"):
        GraNd(9, **SHORT).fit(X, np.zeros(400, dtype=int))
    with pytest.raises(ValueError, match="model does not take samples"):
        EL2N(9, torch.nn.Linear(3, 10), **SHORT).fit(X, Y)

"""Budgets, ranks and the shape of selectors and samplers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from torch.utils.data import DataLoader

from models.curate.baselines import RandomSubset
from models.selection import Compute, EpochSampler, Selector, check_scores, kept_rows, shares_of_classes, top_rows


def test_a_budget_of_training_is_the_rows_it_sees_in_an_epoch():
    assert kept_rows(Compute(100, 4), 1000) == 25
    assert kept_rows(Compute(103, 4), 1000) == 25
    assert kept_rows(Compute(100_000, 4), 1000) == 1000
    for samples, epochs in ((3, 4), (3, 0)):
        with pytest.raises(ValueError, match=f"sees {samples} rows in {epochs} epochs sees none"):
            kept_rows(Compute(samples, epochs), 1000)
    with pytest.raises(ValueError, match="X is empty"):
        kept_rows(Compute(100, 4), 0)
    found = RandomSubset(budget=Compute(40, 4), random_state=0).fit(np.zeros((30, 2)))
    assert len(found.indices_) == 10


@pytest.mark.parametrize(
    ("budget", "n", "expected"),
    [(1, 50, 1), (50, 50, 50), (1.0, 50, 50), (0.1, 60_000, 6000), (np.int64(7), 9, 7), (np.float32(0.5), 10, 5)],
)
def test_a_budget_is_rows_or_a_fraction(budget: float, n: int, expected: int) -> None:
    kept = kept_rows(budget, n)
    assert kept == expected
    assert type(kept) is int


@pytest.mark.parametrize("budget", [0, -1, 51])
def test_rows_outside_the_data_are_refused(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"budget={budget} must lie in 1\.\.50"):
        kept_rows(budget, 50)


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_fractions_outside_0_to_1_are_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\] as a fraction"):
        kept_rows(budget, 50)


def test_budgets_that_keep_nothing_or_are_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps none of them\. Ask for at least 0\.02"):
        kept_rows(0.001, 50)
    with pytest.raises(ValueError, match="n=0"):
        kept_rows(0.5, 0)
    for wrong in (True, "all", None):
        with pytest.raises(ValueError, match="size must be an int"):
            kept_rows(wrong, 50, name="size")  # type: ignore[arg-type]


def test_ranks_are_ascending_rows_and_ties_go_to_the_earlier_row() -> None:
    scores = np.array([3.0, 1.0, 3.0, 2.0, 3.0])
    np.testing.assert_array_equal(top_rows(scores, 2), [0, 2])
    np.testing.assert_array_equal(top_rows(scores, 2, largest=False), [1, 3])
    np.testing.assert_array_equal(top_rows(torch.ones(6), 3), [0, 1, 2])
    assert top_rows(scores, 5).dtype == np.int64


def test_scores_that_can_not_be_ranked_are_refused() -> None:
    with pytest.raises(ValueError, match=r"NaN or infinite in 2 of 4 row\(s\), the first at row 1"):
        check_scores([0.0, np.nan, 1.0, np.inf], 4)
    with pytest.raises(ValueError, match=r"losses must be shaped \(3,\)"):
        check_scores([0.0, 1.0], 3, name="losses")


@pytest.mark.parametrize("keep", [1, 2, 5, 10, 99, 500, 1110])
def test_shares_of_classes_add_up_and_stay_within_the_classes(keep: int) -> None:
    counts = np.array([1000, 0, 100, 9, 1])
    kept = shares_of_classes(counts, keep)
    assert kept.sum() == keep
    assert (kept <= counts).all()
    assert (kept >= 0).all()
    if keep >= 4:
        assert (kept[[0, 2, 3, 4]] >= 1).all()


class Largest(Selector):
    def __init__(self, budget: float = 0.5) -> None:
        self.budget = budget

    def fit(self, X: NDArray[np.float64], y: object = None) -> Largest:
        return self._keep_top(X[:, 0], kept_rows(self.budget, len(X)))


def test_a_selector_gives_the_kept_rows_of_whatever_lies_beside_the_data() -> None:
    X = np.array([[3.0], [9.0], [1.0], [5.0]])
    selector = Largest(0.5).fit(X)
    np.testing.assert_array_equal(selector.indices_, [1, 3])
    kept, names = selector.select(torch.from_numpy(X), ["a", "b", "c", "d"])
    assert kept.flatten().tolist() == [9.0, 5.0]
    assert names.tolist() == ["b", "d"]
    with pytest.raises(ValueError, match="There must be 4 rows as in fit, got 3"):
        selector.select(X[:3])
    with pytest.raises(NotFittedError, match="fit"):
        Largest().select(X)


class Reshuffled(EpochSampler):
    def rows(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(10)


def test_a_sampler_goes_on_in_the_middle_of_an_epoch() -> None:
    sampler = Reshuffled(3)
    sampler.set_epoch(2)
    whole = list(sampler)
    assert sorted(whole) == list(range(10))
    started = iter(sampler)
    seen = [next(started) for _ in range(4)]
    again = Reshuffled(0)
    again.load_state_dict(sampler.state_dict())
    again.set_epoch(2)
    assert seen + list(again) == whole
    assert list(again) == whole
    again.set_epoch(3)
    assert list(again) != whole


def test_a_sampler_feeds_a_data_loader() -> None:
    sampler = Reshuffled(1)
    batches = list(DataLoader(list(range(10)), sampler=sampler, batch_size=4))  # type: ignore[arg-type]
    assert torch.cat(batches).tolist() == sampler.rows(0).tolist()
    assert len(sampler) == 10

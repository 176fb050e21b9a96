"""RS2: which rows each round takes, the shortened schedule, and digits learned from a tenth of the data a round."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from models.base import isolated_seed
from models.curate.rs2 import RS2Sampler, RS2Trainer, permutation, shortened_cosine
from models.networks.heads import SplitClassifier
from models.networks.mlp import MLPEncoder
from models.supervised import make_classifier
from models.training import Hook, Row, Trainer, adam, hooks

DATA, TARGET = load_digits(return_X_y=True)
X, Y = (DATA[:1200] / 16).astype(np.float32), TARGET[:1200]
X_TEST, Y_TEST = (DATA[1200:] / 16).astype(np.float32), TARGET[1200:]
SMALL: dict[str, Any] = {"n_rounds": 3, "fraction": 0.2, "batch_size": 32, "lr": 0.05, "random_state": 0}


# ---- the sampler ----


def test_slices_of_one_pass_partition_the_rows() -> None:
    sampler = RS2Sampler(1000, 0.1, 20, random_state=3)
    rounds = [sampler.subset(i) for i in range(20)]
    assert sorted(np.concatenate(rounds[:10])) == list(range(1000))
    assert sorted(np.concatenate(rounds[10:])) == list(range(1000))
    assert not np.array_equal(rounds[0], rounds[10])
    assert rounds[0].dtype == np.int64


def test_the_last_slice_is_filled_up_from_the_same_permutation() -> None:
    sampler = RS2Sampler(1000, 0.3, 8, random_state=5)
    order = permutation(1000, 5, 0)
    first = [sampler.subset(i) for i in range(5)]
    assert len(set(np.concatenate(first[:3]))) == 900
    assert set(first[3]) == set(order[900:]) | set(order[:200])
    assert len(first[3]) == 300
    np.testing.assert_array_equal(first[4], permutation(1000, 5, 1)[:300])


def test_independent_draws_use_each_row_binomially() -> None:
    n, rounds, r = 100, 2000, 0.1
    sampler = RS2Sampler(n, r, rounds, replacement="with", random_state=0)
    counts = np.zeros(n)
    for i in range(rounds):
        rows = sampler.subset(i)
        assert len(np.unique(rows)) == len(rows) == 10
        counts[rows] += 1
    # k distinct rows a round: counts covary as variance * n / (n - 1) * (I - 1/n)
    variance = rounds * r * (1 - r) * n / (n - 1)
    assert chi2.sf(((counts - rounds * r) ** 2).sum() / variance, n - 1) > 1e-3
    assert counts.mean() == rounds * r


@pytest.mark.parametrize("replacement", ["without", "with"])
def test_subsets_do_not_depend_on_what_was_asked_before(replacement: str) -> None:
    first = RS2Sampler(97, 0.3, 12, replacement=replacement, random_state=1)
    second = RS2Sampler(97, 0.3, 12, replacement=replacement, random_state=1)
    backwards = {i: second.subset(i) for i in reversed(range(12))}
    for i in range(12):
        np.testing.assert_array_equal(first.subset(i), backwards[i])
    assert not np.array_equal(first.subset(0), RS2Sampler(97, 0.3, 12, random_state=2).subset(0))


@pytest.mark.parametrize("replacement", ["without", "with"])
def test_resumed_at_round_7_the_later_subsets_are_the_same(replacement: str) -> None:
    sampler = RS2Sampler(100, 0.3, 12, replacement=replacement, random_state=0)
    whole = list(sampler)
    assert len(whole) == len(sampler) == 12
    running = iter(sampler)
    for _ in range(7):
        next(running)
    again = RS2Sampler(100, 0.3, 12, replacement=replacement, random_state=99)
    again.load_state_dict(sampler.state_dict())
    rest = list(again)
    assert len(rest) == 5
    for expected, found in zip(whole[7:], rest, strict=True):
        np.testing.assert_array_equal(expected, found)


def test_it_feeds_a_data_loader_round_by_round() -> None:
    sampler = RS2Sampler(50, 0.5, 4, batch_size=10, random_state=0)
    loader = DataLoader(TensorDataset(torch.arange(50)), sampler=sampler, batch_size=10)
    for number in (2, 3):
        sampler.set_epoch(number)
        seen = torch.cat([batch for (batch,) in loader]).numpy()
        np.testing.assert_array_equal(seen, sampler.subset(number)[:20])
        np.testing.assert_array_equal(seen, np.concatenate(list(sampler.batches(number))))
        assert len(sampler) == 20


def test_batches_and_steps() -> None:
    dropped = RS2Sampler(1000, 0.1, 5, batch_size=32)
    kept = RS2Sampler(1000, 0.1, 5, replacement="with", batch_size=32)
    assert (dropped.steps_per_round_, dropped.total_steps_, dropped.rows_per_round_) == (3, 15, 96)
    assert (kept.steps_per_round_, kept.total_steps_, kept.rows_per_round_) == (4, 20, 100)
    assert [len(batch) for batch in kept.batches(0)] == [32, 32, 32, 4]
    assert [len(batch) for batch in RS2Sampler(1000, 0.1, 5).batches(0)] == [100]


def test_stratified_rounds_keep_the_shares() -> None:
    y = np.repeat([-1, 0, 1], [20, 100, 880])
    sampler = RS2Sampler(1000, 0.1, 9, replacement="with", stratify=y, random_state=0)
    assert sampler.subset_size_ == 100
    for i in range(9):
        rows = sampler.subset(i)
        assert len(np.unique(rows)) == 100
        assert np.bincount(y[rows] + 1).tolist() == [2, 10, 88]


def test_tiny_stratified_rounds_take_one_of_each_class_first() -> None:
    y = np.repeat([0, 1, 2], [990, 6, 4])
    sampler = RS2Sampler(1000, 0.02, 9, replacement="with", stratify=y, random_state=0)
    for i in range(9):
        rows = sampler.subset(i)
        assert len(np.unique(rows)) == 20
        assert (np.bincount(y[rows], minlength=3) >= 1).all()
    fewer = RS2Sampler(1000, 0.002, 60, replacement="with", stratify=y, random_state=0)
    drawn = [set(y[fewer.subset(i)]) for i in range(60)]
    assert all(len(classes) == 2 for classes in drawn)
    assert set().union(*drawn) == {0, 1, 2}


def test_the_sampler_refuses() -> None:
    for fraction in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"fraction=.* must lie in \(0, 1\]"):
            RS2Sampler(100, fraction)
    with pytest.raises(ValueError, match="keeps none of them"):
        RS2Sampler(100, 0.001)
    with pytest.raises(ValueError, match="X is empty"):
        RS2Sampler(0, 0.5)
    with pytest.raises(ValueError, match="batch_size=64 is larger than the subset of 10 rows"):
        RS2Sampler(100, 0.1, batch_size=64)
    assert RS2Sampler(100, 0.1, batch_size=64, drop_last=False).steps_per_round_ == 1
    with pytest.raises(ValueError, match="stratify needs replacement='with'"):
        RS2Sampler(4, 0.5, stratify=[0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"stratify must be shaped \(4,\)"):
        RS2Sampler(4, 0.5, replacement="with", stratify=[0, 1])
    with pytest.raises(ValueError, match="'without' or 'with', got 'maybe'"):
        RS2Sampler(4, 0.5, replacement="maybe")
    with pytest.raises(ValueError, match="n_rounds and batch_size must be at least 1"):
        RS2Sampler(4, 0.5, n_rounds=0)
    with pytest.raises(ValueError, match=r"round must lie in 0\.\.3, got 4"):
        RS2Sampler(4, 0.5, n_rounds=4).subset(4)


# ---- training ----


def test_with_all_rows_it_is_the_plain_reshuffled_loop_bit_for_bit() -> None:
    epochs, batch, rows = 3, 32, torch.from_numpy(X[:320])
    labels = torch.from_numpy(Y[:320])
    with isolated_seed(7):
        plain = make_classifier(None, (64,), 10)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        factor, step = shortened_cosine(1e-4 / 0.05), 0
        for epoch in range(epochs):
            order = np.random.default_rng(np.random.SeedSequence([7, epoch])).permutation(320)
            for index in torch.from_numpy(order).split(batch):
                optimizer.param_groups[0]["lr"] = 0.05 * factor(step, epochs * 10)
                optimizer.zero_grad()
                F.cross_entropy(plain(rows[index]), labels[index]).backward()
                optimizer.step()
                step += 1
    settings = {**SMALL, "fraction": 1.0, "n_rounds": epochs, "random_state": 7}
    trained = RS2Trainer(**settings).fit(X[:320], Y[:320])
    for expected, found in zip(plain.parameters(), trained.model_.parameters(), strict=True):
        assert torch.equal(expected, found)


def test_the_rate_ends_at_its_lowest_and_falls_once_over_all_rounds() -> None:
    sampler = RS2Sampler(1200, 0.2, 5, batch_size=32)
    trained = RS2Trainer(**{**SMALL, "n_rounds": 5, "min_lr": 1e-3}).fit(X, Y)
    rates = [row["lr"] for row in trained.history_]
    assert abs(rates[-1] - 1e-3) < 1e-12
    assert all(a > b for a, b in pairwise(rates))
    middle = 1e-3 + 0.5 * (0.05 - 1e-3) * (1 + np.cos(np.pi * 2 / 5))
    assert abs(rates[1] - middle) < 1e-12
    assert trained.history_[-1]["steps"] == sampler.total_steps_
    assert trained.history_[-1]["samples_seen"] == 5 * 224


def test_a_last_batch_of_one_row_is_neither_trained_on_nor_counted() -> None:
    trained = RS2Trainer(**{**SMALL, "fraction": 65 / 1200, "replacement": "with"}).fit(X, Y)
    assert [row["steps"] for row in trained.history_] == [2, 4, 6]
    assert [row["samples_seen"] for row in trained.history_] == [64, 128, 192]


def test_optimiser_state_outlives_the_round() -> None:
    class Momentum(Hook):
        def on_fit_begin(self, trainer: Trainer) -> None:
            self.seen: list[float] = []

        def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
            self.seen.append(len(trainer.optimizer.state))

        def on_batch_end(self, trainer: Trainer, terms: Row) -> None:
            self.first = trainer.optimizer if not hasattr(self, "first") else self.first
            assert trainer.optimizer is self.first

    watch = Momentum()
    with hooks(watch):
        RS2Trainer(**SMALL).fit(X, Y)
    assert watch.seen == [6, 6, 6]


def test_new_rows_each_round_beat_the_same_rows_each_round() -> None:
    settings = {"n_rounds": 60, "batch_size": 12, "lr": 0.05, "random_state": 0}
    few = np.random.default_rng(0).choice(1200, 36, replace=False)
    static = RS2Trainer(fraction=1.0, **settings).fit(X[few], Y[few])
    repeated = RS2Trainer(fraction=0.03, **settings).fit(X, Y)
    assert static.log_[-1]["steps"] == repeated.log_[-1]["steps"]
    assert repeated.score(X_TEST, Y_TEST) > static.score(X_TEST, Y_TEST) + 0.05


def test_it_measures_and_stops_at_the_target() -> None:
    settings = {**SMALL, "n_rounds": 40}
    trained = RS2Trainer(**settings, target_metric=0.8, eval_every=2).fit(X, Y, X_TEST, Y_TEST)
    history = trained.history_
    assert len(history) < 40
    assert history[-1]["val_metric"] >= 0.8
    assert "val_metric" not in history[0]
    assert history[-1]["val_metric"] == pytest.approx(trained.score(X_TEST, Y_TEST))
    assert [row["round"] for row in history] == list(range(len(history)))
    seconds = trained.time_to_accuracy(0.8)
    assert seconds == history[-1]["seconds_train"] + history[-1]["seconds_select"]
    assert history[-1]["seconds_train"] > history[0]["seconds_train"] > 0
    assert trained.time_to_accuracy(1.1) is None


def test_a_data_set_is_read_row_by_row_with_the_same_result() -> None:
    asked: list[int] = []

    class Rows(TensorDataset):
        def __getitem__(self, i: int) -> Any:
            asked.append(i)
            return super().__getitem__(i)

    lazy = RS2Trainer(**SMALL).fit(Rows(torch.from_numpy(X), torch.from_numpy(Y)), Y)
    direct = RS2Trainer(**SMALL).fit(X, Y)
    assert len(asked) == 1 + 3 * 224
    np.testing.assert_array_equal(lazy.predict(X_TEST), direct.predict(X_TEST))


def test_own_network_labels_and_optimiser() -> None:
    with isolated_seed(0):
        network = SplitClassifier(MLPEncoder(64, (16,)), 10, embedding_dim=None)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    labels = np.where(np.arange(1200) % 3 == 0, -1, Y * 5 + 2)
    trained = RS2Trainer(
        network, **{**SMALL, "n_rounds": 20}, optimizer=adam(0.01), replacement="with", stratify=True
    ).fit(X, labels)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert trained.classes_.tolist() == [5 * c + 2 for c in range(10)]
    assert trained.score(X_TEST, Y_TEST * 5 + 2) > 0.8
    assert trained.predict_proba(X_TEST[:4]).shape == (4, 10)


def test_the_trainer_refuses() -> None:
    with pytest.raises(ValueError, match="fraction"):
        RS2Trainer(fraction=1.5).fit(X, Y)
    with pytest.raises(ValueError, match="keeps none of them"):
        RS2Trainer(fraction=1e-5).fit(X, Y)
    with pytest.raises(ValueError, match="batch_size=128 is larger than the subset of 12 rows"):
        RS2Trainer(fraction=0.01).fit(X, Y)
    with pytest.raises(ValueError, match=r"'batch_size' parameter of RS2Trainer must be an int in the range \[2, inf"):
        RS2Trainer(fraction=0.1, batch_size=1).fit(X, Y)
    with pytest.raises(ValueError, match="stratify needs replacement='with'"):
        RS2Trainer(**SMALL, stratify=True).fit(X, Y)
    with pytest.raises(ValueError, match=r"y must be shaped \(1200,\)"):
        RS2Trainer(**SMALL).fit(X, Y[:-1])
    with pytest.raises(ValueError, match="at least 2 classes"):
        RS2Trainer(**SMALL).fit(X, np.zeros(1200, dtype=int))
    with pytest.raises(ValueError, match="X must hold at least one sample"):
        RS2Trainer(**SMALL).fit(X[:0], Y[:0])
    with pytest.raises(ValueError, match="at least one sample"):
        RS2Trainer(**SMALL).fit(TensorDataset(torch.zeros(0, 3)), Y[:0])
    with pytest.raises(ValueError, match=r"min_lr=0\.1 must not be above lr=0\.05"):
        RS2Trainer(**SMALL, min_lr=0.1).fit(X, Y)
    with pytest.raises(ValueError, match="target_metric needs them"):
        RS2Trainer(**SMALL, target_metric=0.9).fit(X, Y)
    with pytest.raises(ValueError, match="both X_val and y_val"):
        RS2Trainer(**SMALL).fit(X, Y, X_TEST)
    with pytest.raises(ValueError, match="model_fn does not take samples"):
        RS2Trainer(nn.Linear(3, 10), **SMALL).fit(X, Y)
    with pytest.raises(ValueError, match=r"logits shaped \(n, 10\)"):
        RS2Trainer(lambda: nn.Linear(64, 4), **SMALL).fit(X, Y)
    with pytest.raises(ValueError, match=r"must return an nn\.Module, got int"):
        RS2Trainer(lambda: 3, **SMALL).fit(X, Y)  # type: ignore[arg-type,return-value]
    with pytest.raises(ValueError, match=r"X must be shaped \(n, 64\)"):
        RS2Trainer(**SMALL).fit(X, Y).predict(X[:, :5])
    with pytest.raises(NotFittedError, match="fit"):
        RS2Trainer().predict(X)


def test_rows_that_are_all_alike_train_to_the_shares_of_the_classes() -> None:
    alike = np.ones((200, 4), dtype=np.float32)
    y = np.repeat([0, 1], [150, 50])
    trained = RS2Trainer(fraction=0.5, n_rounds=30, batch_size=50, lr=0.05, random_state=0).fit(alike, y)
    assert trained.predict_proba(alike[:1])[0, 0] == pytest.approx(0.75, abs=0.1)

"""The shared loop: its order, its history, interruption, and the hooks beside it."""

import math

import pytest
import torch
from torch import nn

from models.base import isolated_seed
from models.training import (
    ClassifierTrainer,
    EarlyStopping,
    ExponentialAverage,
    Hook,
    StepTrainer,
    Trainer,
    adam,
    cosine,
    cosine_restarts,
    hooks,
    inverse_decay,
    sgd,
    warmup_cosine,
)


class Regression(Trainer):
    """Mean squared error."""

    def compute_loss(self, batch, index):
        x, y = batch
        loss = (self.network(x).squeeze(1) - y).square().mean()
        return loss, {"mse": float(loss.detach())}


def line(n=20):
    x = torch.linspace(-1, 1, n)[:, None]
    return x, 3 * x.squeeze(1) + 1


def trainer(network=None, kind=Regression, **changes):
    with isolated_seed(0):
        network = network or nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    settings = {"epochs": 4, "batch_size": 6, "optimizer": sgd(0.05), "seed": 3} | changes
    return kind(network, **settings)


class Diary(Hook):
    def __init__(self):
        self.events = []

    def on_fit_begin(self, trainer):
        self.events.append("fit begins")

    def on_batch_end(self, trainer, terms):
        self.events.append("batch")

    def on_epoch_end(self, trainer, row):
        self.events.append("epoch")
        row["seen"] = float(trainer.step)

    def on_fit_end(self, trainer):
        self.events.append("fit ends")


def test_events_come_in_order_and_rows_hold_what_hooks_add():
    diary = Diary()
    fitted = trainer(epochs=2, hooks=[diary]).fit(*line())
    one_epoch = ["batch"] * 4 + ["epoch"]  # 20 rows in batches of 6
    assert diary.events == ["fit begins", *one_epoch, *one_epoch, "fit ends"]
    assert [row["epoch"] for row in fitted.history] == [0, 1]
    assert [row["seen"] for row in fitted.history] == [4.0, 8.0]
    assert fitted.total_steps == fitted.step == 8
    assert not fitted.plain_network.training


def test_method_steps_run_round_each_epoch():
    class Steps(Regression):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.calls = []

        def before_epoch(self):
            self.calls.append("before")

        def train_step(self, batch, index):
            self.calls.append("step")
            return super().train_step(batch, index)

        def after_epoch(self, row):
            self.calls.append("after")
            row["extra"] = 1.0

    fitted = trainer(kind=Steps, epochs=1, batch_size=20).fit(*line())
    assert fitted.calls == ["before", "step", "after"]
    assert fitted.history[0]["extra"] == 1.0


def test_terms_are_averaged_over_the_batches_and_the_loss_falls():
    fitted = trainer(nn.Linear(1, 1), epochs=30).fit(*line())
    assert fitted.history[0]["loss"] == pytest.approx(fitted.history[0]["mse"])
    assert fitted.history[-1]["loss"] < 0.01 * fitted.history[0]["loss"]


@pytest.mark.parametrize(
    ("n", "drop_last", "sizes"), [(20, False, [6, 6, 6, 2]), (20, True, [6, 6, 6]), (7, False, [6])]
)
def test_batches_cover_the_rows_and_one_row_never_trains_alone(n, drop_last, sizes):
    loop = trainer(drop_last=drop_last)
    loop.tensors = line(n)
    batches = list(loop.iterate(0))
    assert [len(index) for index in batches] == sizes
    assert len(torch.cat(batches).unique()) == sum(sizes)


def test_own_batches_replace_the_shuffle():
    seen = []

    class Watching(Regression):
        def compute_loss(self, batch, index):
            seen.append(index.tolist())
            return super().compute_loss(batch, index)

    trainer(kind=Watching, epochs=2, batches=lambda epoch: [torch.tensor([epoch, 5])]).fit(*line())
    assert seen == [[0, 5], [1, 5]]


def test_a_trainer_without_a_loss_says_what_to_override():
    with pytest.raises(NotImplementedError, match="override compute_loss"):
        trainer(kind=Trainer).fit(*line())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_training():
    x, y = line()
    with pytest.raises(FloatingPointError, match="'warm-up' became nan in epoch 1"):
        trainer(label="warm-up").fit(x, y * math.nan)


@pytest.mark.parametrize("optimizer", [sgd(0.05, momentum=0.9), adam(0.05, decoupled=True)])
@pytest.mark.parametrize("schedule", [None, cosine])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(optimizer, schedule):
    settings = {"optimizer": optimizer, "schedule": schedule, "epochs": 5}
    with isolated_seed(1):
        whole = trainer(**settings).fit(*line())

    class Interrupted(Hook):
        def on_epoch_end(self, trainer, row):
            trainer.stop = row["epoch"] == 1

    with isolated_seed(1):
        first = trainer(hooks=[Interrupted()], **settings).fit(*line())
        state = first.state_dict()
    with isolated_seed(99):  # the state brings its own
        second = trainer(**settings)
        second.load_state_dict(state)
        second.fit(*line())
    assert second.history == whole.history
    for mine, theirs in zip(second.plain_network.parameters(), whole.plain_network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_is_a_snapshot():
    loop = trainer(epochs=1).fit(*line())
    state = loop.state_dict()
    kept = {key: value.clone() for key, value in state["network"].items()}
    loop.epochs = 3
    loop.fit(*line())
    assert all(torch.equal(kept[key], value) for key, value in state["network"].items())
    assert len(state["history"]) == 1


class Script(Hook):
    """Writes given values into the rows, in place of a validation."""

    def __init__(self, values):
        self.values = values

    def on_epoch_end(self, trainer, row):
        row["score"] = self.values[int(row["epoch"])]
        with torch.no_grad():
            trainer.plain_network.bias.fill_(row["epoch"])


@pytest.mark.parametrize(
    ("maximise", "values", "epochs_run", "best"),
    [(False, [3.0, 1.0, 2.0, 1.5, 0.0], 4, 1), (True, [1.0, 2.0, 1.0, 3.0, 1.0], 5, 3), (True, [5, 4, 3, 2, 1], 3, 0)],
)
def test_early_stopping_waits_then_restores_the_best_weights(maximise, values, epochs_run, best):
    stopping = EarlyStopping("score", patience=2, maximise=maximise)
    fitted = trainer(nn.Linear(1, 1), epochs=5, hooks=[Script(values), stopping]).fit(*line())
    assert len(fitted.history) == epochs_run
    assert fitted.plain_network.bias.item() == best


def test_early_stopping_counts_small_gains_as_none():
    stopping = EarlyStopping("score", patience=2, min_delta=0.1, restore=False)
    fitted = trainer(nn.Linear(1, 1), epochs=5, hooks=[Script([1.0, 0.95, 0.92, 0.0, 0.0]), stopping]).fit(*line())
    assert len(fitted.history) == 3
    assert fitted.plain_network.bias.item() == 2


def test_the_exponential_average_follows_its_recursion_and_copies_buffers():
    average, weights = ExponentialAverage(0.9), []

    class Recorder(Hook):
        def on_batch_end(self, trainer, terms):
            weights.append(trainer.plain_network[0].weight.detach().clone())

    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    expected = network[0].weight.detach().clone()
    fitted = trainer(network, epochs=2, hooks=[average, Recorder()]).fit(*line())
    for weight in weights:
        expected = 0.9 * expected + 0.1 * weight
    torch.testing.assert_close(average.average[0].weight, expected)
    assert torch.equal(average.average[1].running_mean, fitted.plain_network[1].running_mean)
    assert not any(parameter.requires_grad for parameter in average.average.parameters())


def test_ambient_hooks_reach_trainers_made_inside_the_block_only():
    outer, inner = Diary(), Diary()
    with hooks(outer):
        with hooks(inner):
            trainer(epochs=1).fit(*line())
        trainer(epochs=1).fit(*line())
    trainer(epochs=1).fit(*line())
    assert outer.events.count("epoch") == 2
    assert inner.events.count("epoch") == 1


def test_ambient_hooks_end_with_the_block_also_after_an_error():
    diary = Diary()
    with pytest.raises(RuntimeError, match="on purpose"), hooks(diary):
        raise RuntimeError("on purpose")
    trainer(epochs=1).fit(*line())
    assert diary.events == []


def test_cosine_runs_from_one_to_nought():
    assert [cosine(step, 4) for step in range(5)] == pytest.approx([1, 0.5 + 2**-1.5, 0.5, 0.5 - 2**-1.5, 0])


def test_restarts_come_after_periods_that_grow():
    factor = cosine_restarts(2, growth=2)
    values = [factor(step, 99) for step in range(7)]
    assert [step for step, value in enumerate(values) if value == 1.0] == [0, 2, 6]
    assert values[1] == pytest.approx(0.5)
    assert values[4] == pytest.approx(0.5)


def test_inverse_decay_ends_at_eleven_to_the_minus_three_quarters():
    factor = inverse_decay()
    assert factor(0, 10) == 1.0
    assert factor(10, 10) == pytest.approx(11**-0.75)


def test_the_schedule_scales_every_group_from_its_own_rate():
    rates = []

    class Rates(Hook):
        def on_batch_end(self, trainer, terms):
            rates.append([group["lr"] for group in trainer.optimizer.param_groups])

    def two_groups(network):
        return torch.optim.SGD([{"params": [network.weight]}, {"params": [network.bias], "lr": 0.01}], lr=0.1)

    settings = {"optimizer": two_groups, "schedule": lambda step, total: 1 - step / total, "batch_size": 20}
    trainer(nn.Linear(1, 1), epochs=4, hooks=[Rates()], **settings).fit(*line())
    factors = [1, 0.75, 0.5, 0.25]
    assert [rate for rate, _ in rates] == pytest.approx([0.1 * factor for factor in factors])
    assert [rate for _, rate in rates] == pytest.approx([0.01 * factor for factor in factors])


def test_optimisers_leave_frozen_parameters_out():
    network = nn.Linear(2, 1)
    network.bias.requires_grad_(False)
    for make in (sgd(0.1), adam(0.1)):
        assert [id(p) for p in make(network).param_groups[0]["params"]] == [id(network.weight)]


def test_the_classifier_learns_from_labelled_rows_only():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator)
    y = (x[:, 0] > 0).long()
    hidden = torch.arange(60) % 3 == 0
    wrong = torch.where(hidden, -1, y)
    fitted = trainer(nn.Linear(2, 2), kind=ClassifierTrainer, epochs=20, batch_size=16).fit(x, wrong)
    assert fitted.history[-1]["train_accuracy"] > 0.95
    assert (fitted.plain_network(x).argmax(1) == y)[hidden].float().mean() > 0.9


def test_a_batch_without_labels_changes_nothing():
    network = nn.Linear(2, 2)
    before = network.weight.detach().clone()
    trainer(network, kind=ClassifierTrainer, epochs=1).fit(torch.randn(6, 2), torch.full((6,), -1))
    assert torch.equal(network.weight, before)


class Stepped(StepTrainer):
    def compute_loss(self, batch, index):
        self.batches_seen.append(index)
        return self.network(batch[0]).square().mean(), {}


def stepped(n, n_steps, size, drop_last=False):
    trained = Stepped(nn.Linear(1, 1), n_steps=n_steps, batch_size=size, optimizer=sgd(0.05), drop_last=drop_last)
    trained.batches_seen = []
    trained.fit(torch.zeros(n, 1))
    return trained


@pytest.mark.parametrize(("n", "n_steps", "epochs"), [(10, 7, 3), (10, 3, 1), (3, 5, 5), (8, 4, 2)])
def test_steps_are_counted_and_batches_full(n, n_steps, epochs):
    trained = stepped(n, n_steps, 4)
    assert [len(index) for index in trained.batches_seen] == [4] * n_steps
    assert trained.step == trained.total_steps == n_steps
    assert len(trained.history) == epochs
    assert sorted(torch.cat(trained.batches_seen)[:n].tolist()) == list(range(n))


def test_no_row_comes_twice_in_a_batch_where_shuffles_are_kept_apart():
    trained = stepped(10, 9, 4, drop_last=True)
    assert all(len(set(index.tolist())) == 4 for index in trained.batches_seen)
    assert len(set(torch.cat(trained.batches_seen[:2]).tolist())) == 8
    assert len(trained.history) == 5


def test_warm_up_rises_to_one_and_falls_to_nothing():
    factor = warmup_cosine(10)
    assert [factor(0, 110), factor(9, 110), factor(10, 110)] == pytest.approx([0.1, 1, 1])
    assert factor(60, 110) == pytest.approx(0.5)
    assert factor(110, 110) == pytest.approx(0)
    assert warmup_cosine(0)(5, 20) == pytest.approx(cosine(5, 20))

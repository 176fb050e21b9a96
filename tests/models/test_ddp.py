"""One training over two processes (gloo): the same network on both, and the one that a single process trains."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from infra.errors import ConfigurationError
from infra.runner import Runner
from models import distributed
from models.base import isolated_seed
from models.training import ClassifierTrainer, EarlyStopping, Hook, adam, sgd

ROWS, BATCH, EPOCHS = 61, 20, 3  # batches of 20, 20, 20 and 1


def spread(function, *args):
    """What each of two processes gives."""
    return Runner("local").train(_from_all, function, args, processes=2)


def _from_all(function, args):
    found = [None] * distributed.processes()
    dist.all_gather_object(found, function(*args))
    return found


def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 5, generator=generator)
    return x, (x[:, 0] + x[:, 1] ** 2 > 1).long()


class Seen(Hook):
    """Gradients and rows of every step."""

    def __init__(self):
        self.gradients, self.rows = [], []

    def on_batch_end(self, trainer, terms):
        self.gradients.append(torch.cat([p.grad.flatten() for p in trainer.plain_network.parameters()]).clone())


class Watched(ClassifierTrainer):
    def compute_loss(self, batch, index):
        self.hooks[0].rows.append((self.epoch, index.tolist()))
        return super().compute_loss(batch, index)


def train(optimizer="sgd", norm=False, patience=None):
    seen = Seen()
    with isolated_seed(0):
        layers = [nn.Linear(5, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.Tanh(), nn.Linear(16, 2)]
        network = nn.Sequential(*layers)
        stopping = [EarlyStopping("loss", patience=1, min_delta=10.0)] if patience else []
        trainer = Watched(
            network,
            epochs=EPOCHS,
            batch_size=BATCH,
            optimizer=sgd(0.1) if optimizer == "sgd" else adam(0.01),
            hooks=[seen, *stopping],
            seed=1,
        ).fit(*rows())
    state = {key: value.clone() for key, value in network.state_dict().items()}
    return {"state": state, "history": trainer.history, "gradients": seen.gradients, "rows": seen.rows}


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], **tolerance)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_processes_train_what_one_trains(optimizer):
    single = train(optimizer)
    first, second = spread(train, optimizer)
    same(first["state"], second["state"], rtol=0, atol=0)
    same(first["state"], single["state"], rtol=1e-5, atol=1e-6)
    assert first["history"] == second["history"]
    for mine, alone in zip(first["history"], single["history"], strict=True):
        assert mine == pytest.approx(alone, rel=1e-5)


def test_gradients_are_the_mean_over_the_processes():
    first, second = spread(train)
    single = train()
    assert len(first["gradients"]) == len(single["gradients"]) == 3 * EPOCHS
    for mine, theirs, alone in zip(first["gradients"], second["gradients"], single["gradients"], strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-6)


def test_no_row_is_seen_twice_in_an_epoch_and_parts_are_equal():
    first, second = spread(train)
    for epoch in range(EPOCHS):
        mine, theirs = ([index for at, index in one["rows"] if at == epoch] for one in (first, second))
        assert [len(index) for index in mine] == [len(index) for index in theirs] == [10, 10, 10]
        seen = [row for index in (*mine, *theirs) for row in index]
        assert len(seen) == len(set(seen)) == ROWS - 1  # a last batch of one row is never trained on


def test_running_statistics_are_the_mean_of_what_each_process_saw():
    first, second = spread(train, "sgd", True)
    same(first["state"], second["state"], rtol=0, atol=0)
    assert first["state"]["1.running_mean"].abs().sum() > 0
    single = train("sgd", True)
    torch.testing.assert_close(first["state"]["1.running_mean"], single["state"]["1.running_mean"], rtol=0, atol=0.05)


def test_processes_stop_together():
    first, second = spread(train, "sgd", False, 1)
    assert len(first["history"]) == len(second["history"]) == 2


def _every_method():
    from tests.models.specimens import SPECIMENS

    found = {}
    for name in ("lsa", "g-simclr", "rotnet", "glc", "laf"):
        specimen = SPECIMENS[name]()
        fitted = specimen.make().fit(**specimen.arguments())
        found[name] = {key: np.asarray(value) for key, value in specimen.answers(fitted).items()}
    return found


@pytest.mark.filterwarnings("ignore")
def test_every_method_trains_on_two_processes_and_both_come_to_the_same():
    first, second = spread(_every_method)
    for name, answers in first.items():
        for key, value in answers.items():
            np.testing.assert_array_equal(value, second[name][key], err_msg=f"{name}: {key}")
            assert value.dtype.kind != "f" or np.isfinite(value).all()


def _merged():
    table, rank = torch.zeros(2, 6), distributed.rank()
    mine = [torch.tensor([rank, 2 + rank])]
    table[:, mine[0]] = 1.0 + rank
    distributed.merge_rows([(table, 1)], mine)
    return table, distributed.total({"a": 1.0, f"only {rank}": 2.0}, 3 + rank)


def test_rows_and_sums_are_exchanged():
    first, second = spread(_merged)
    assert torch.equal(first[0], torch.tensor([[1.0, 2.0, 1.0, 2.0, 0.0, 0.0]] * 2))
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1] == ({"a": 2.0, "only 0": 2.0, "only 1": 2.0}, 7)


def _fails_on_one():
    if distributed.rank() == 1:
        raise ValueError("row 3 is bad")
    dist.barrier()


def test_an_error_in_one_process_ends_the_training():
    with pytest.raises((ValueError, RuntimeError), match=r"row 3 is bad|Connection"):  # who is heard first
        Runner("local").train(_fails_on_one, processes=2)


def test_without_a_group_everything_is_one_process():
    index = torch.arange(7)
    assert distributed.processes() == 1
    assert torch.equal(distributed.portion(index), index)
    assert Runner("local").train(train, processes=1)["history"] == train()["history"]


@pytest.mark.parametrize("address", ["nowhere", "ray:/x", "ray://host", "ray://host:port", "http://host:1"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigurationError, match="A runner is 'local', 'ray' or 'ray://host:port', got"):
        Runner(address)


def ranks():
    return distributed.gathered(torch.full((2, 1), float(distributed.rank()))).flatten().tolist()


def test_rows_of_all_processes_are_gathered_in_the_order_of_their_ranks():
    assert spread(ranks) == [[0.0, 0.0, 1.0, 1.0]] * 2
    assert ranks() == [0.0, 0.0]

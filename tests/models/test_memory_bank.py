"""The memory bank finds neighbours by cosine, leaves a row itself out, and forgets what was overwritten."""

import pytest
import torch
import torch.nn.functional as F

from models.memory_bank import MemoryBank


@pytest.fixture
def rows():
    return torch.randn(30, 6, generator=torch.Generator().manual_seed(0))


def test_nearest_agrees_with_a_plain_search(rows):
    bank = MemoryBank(rows, rows)
    index = torch.tensor([4, 0, 29])
    found = bank.nearest(rows[index], index, k=5)
    for row, neighbours in zip(index.tolist(), found.tolist(), strict=True):
        similarity = F.cosine_similarity(rows[row][None], rows, dim=1)
        ranked = [i for i in similarity.argsort(descending=True).tolist() if i != row]
        assert neighbours == ranked[:5]


def test_own_row_is_left_out_by_index_even_when_another_view_is_asked_for(rows):
    bank = MemoryBank(rows, rows)
    everything = torch.arange(30)
    found = bank.nearest(-rows, everything, k=29)
    assert not (found == everything[:, None]).any()


def test_neighbour_predictions_are_their_mean():
    bank = MemoryBank(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [-1.0, 0.0]]), torch.eye(4))
    mean = bank.neighbour_predictions(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), k=2)
    assert mean.tolist() == [[0.0, 0.5, 0.5, 0.0]]


def test_update_changes_only_the_given_rows_and_keeps_no_gradient(rows):
    bank = MemoryBank(rows, rows)
    before = bank.embeddings.clone()
    new = torch.ones(2, 6, requires_grad=True)
    bank.update(torch.tensor([3, 7]), 5 * new, new)
    untouched = [i for i in range(30) if i not in (3, 7)]
    assert torch.equal(bank.embeddings[untouched], before[untouched])
    assert torch.allclose(bank.embeddings[[3, 7]].norm(dim=1), torch.ones(2))
    assert torch.equal(bank.predictions[[3, 7]], torch.ones(2, 6))
    assert not bank.embeddings.requires_grad and not bank.predictions.requires_grad


def test_what_went_in_is_not_changed(rows):
    kept = rows.clone()
    bank = MemoryBank(rows, rows)
    bank.update(torch.tensor([0]), torch.zeros(1, 6), torch.zeros(1, 6))
    assert torch.equal(rows, kept)


def test_too_many_neighbours(rows):
    with pytest.raises(ValueError, match="has 29 neighbours for a row, 30 were asked for"):
        MemoryBank(rows, rows).nearest(rows[:1], torch.tensor([0]), k=30)


def test_rows_must_match(rows):
    with pytest.raises(ValueError, match=r"of the same rows, got \(30, 6\) and \(29, 6\)"):
        MemoryBank(rows, rows[1:])

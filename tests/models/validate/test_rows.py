import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

import models.validate.rows as rows_module
from models.validate.rows import EncodedRows, RowIndex, encode_rows


def same(left, right, tolerance=0.0):
    """Whether a cell equals another, each in a column of its own."""
    a, b = (encode_rows(pd.DataFrame({"c": values}), ["c"], tolerance) for values in (left, right))
    equal = bool(a.equal(b).all())
    assert not equal or (a.hashes == b.hashes).all(), "equal rows must have equal hashes"
    return equal


UTC = datetime.timezone.utc  # noqa: UP017


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([1], [1.0]),
        ([1], pd.array([1], dtype="Int64")),
        ([1], [Decimal("1.00")]),
        ([0.5], [Decimal("0.5")]),
        ([-3], np.array([-3.0], dtype=np.float32)),
        ([0.0], [-0.0]),
        ([None], [float("nan")]),
        ([None], [pd.NaT]),
        ([2**63 + 5], np.array([2**63 + 5], dtype=np.uint64)),
        ([2**70], [float(2**70)]),
        ([2**70 + 1], [Decimal(2**70 + 1)]),
        (["a"], pd.Categorical(["a"])),
        (["a"], pd.array(["a"], dtype="string")),
        ([True], pd.array([True], dtype="boolean")),
        ([True], np.array([True], dtype=object)),
        ([pd.Timestamp("2024-01-01 01:00", tz="Europe/Paris")], [pd.Timestamp("2024-01-01", tz="UTC")]),
        ([datetime.datetime(2024, 1, 1)], pd.Series(["2024-01-01"]).astype("datetime64[s]")),
        (np.array([datetime.datetime(2024, 1, 1)], dtype=object), [pd.Timestamp("2024-01-01")]),
        ([pd.Timedelta(1, "s")], np.array([1000], dtype="timedelta64[ms]")),
        ([[1, 2]], [np.array([1, 2])]),
        ([b"\xff"], [b"\xff"]),
        ([1, "x", None], np.array([1.0, "x", np.nan], dtype=object)),
    ],
)
def test_cells_that_are_equal(left, right):
    assert same(left, right)
    assert same(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([1], ["1"]),
        ([1], [True]),
        ([0], [None]),
        ([""], [None]),
        ([b"a"], ["a"]),
        ([1], [1.0000001]),
        ([2**53 + 1], [float(2**53)]),
        ([-1], np.array([2**64 - 1], dtype=np.uint64)),
        ([2**70], [2**70 + 1]),
        ([4602678819172646912], [0.5]),
        ([pd.Timestamp("2024-01-01")], [pd.Timestamp("2024-01-01", tz="UTC")]),
        ([pd.Timestamp("2024-01-01")], [datetime.date(2024, 1, 1)]),
        ([pd.Timestamp(1)], [pd.Timestamp(0)]),
        ([float("inf")], [float("-inf")]),
        ([Decimal("0.1")], [0.1]),
    ],
)
def test_cells_that_differ(left, right):
    assert not same(left, right)
    assert not same(right, left)


def test_the_form_of_a_cell_does_not_depend_on_its_neighbours():
    values = [1, 2**63, 2**70, 0.5, "x", None, Decimal(7)]
    mixed = encode_rows(pd.DataFrame({"c": pd.Series(values, dtype=object)}), ["c"])
    for i, value in enumerate(values):
        alone = encode_rows(pd.DataFrame({"c": pd.Series([value], dtype=object)}), ["c"])
        assert alone.equal(mixed.take(np.array([i]))).all(), value


def test_a_tolerance_rounds_numbers_to_its_multiples():
    assert not same([0.1 + 0.2], [0.3])
    assert same([0.1 + 0.2], [0.3], 1e-9)
    assert same([3], [3.0000000001], 1e-6)
    assert not same([0.3], [0.31], 1e-3)
    assert not same([float("inf")], [1e300], 1e-3)


def test_hashes_ignore_the_order_of_columns_and_see_which_column_holds_a_value():
    frame = pd.DataFrame({"a": [1, 2], "b": [2, 1]})
    straight, turned = encode_rows(frame, ["a", "b"]), encode_rows(frame[["b", "a"]], ["b", "a"])
    assert (straight.hashes == turned.hashes).all()
    assert straight.hashes[0] != straight.hashes[1]


def test_two_million_small_rows_do_not_collide():
    grid = np.arange(2_000_000)
    frame = pd.DataFrame({"a": grid // 1000, "b": grid % 1000, "c": 0})
    assert len(np.unique(encode_rows(frame, list("abc")).hashes)) == len(frame)


@pytest.mark.parametrize("collide", [False, True])
def test_lookup_finds_the_first_equal_row_even_when_hashes_collide(monkeypatch, collide):
    if collide:
        original = rows_module.hash_rows
        monkeypatch.setattr(rows_module, "hash_rows", lambda columns: original(columns) % np.uint64(3))
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"n": rng.integers(0, 6, 80), "t": rng.choice(list("abc"), 80)})
    other = pd.DataFrame({"n": rng.integers(0, 8, 50), "t": rng.choice(list("abcd"), 50)})
    index = RowIndex(encode_rows(frame, ["n", "t"]))
    keys = list(frame.itertuples(index=False, name=None))
    wanted = [keys.index(row) if row in keys else -1 for row in other.itertuples(index=False, name=None)]
    assert -1 in wanted
    assert index.lookup(encode_rows(other, ["n", "t"])).tolist() == wanted
    assert index.first.tolist() == [keys.index(row) for row in keys]


def test_joined_parts_equal_the_whole():
    frame = pd.DataFrame({"t": ["a", None, "b", "c"], "n": [1.5, 2, None, 4]})
    whole = encode_rows(frame, ["t", "n"])
    joined = EncodedRows.join(
        [encode_rows(frame[:1], ["t", "n"]), encode_rows(frame[1:2], ["t", "n"]), whole.take(np.array([2, 3]))]
    )
    assert joined.equal(whole).all()
    assert (joined.hashes == whole.hashes).all()

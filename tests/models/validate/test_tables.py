import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits, load_wine

from models.validate.tables import (
    FrameTable,
    ParquetTable,
    SelectedTable,
    TableHandle,
    first_occurrences,
    matching_rows,
    overlapping_rows,
)


def parquet(name, table, **options):
    buffer = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pandas(table), buffer, **options)
    return ParquetTable(name, buffer)


def test_overlapping_rows_name_the_leak_between_splits():
    digits = load_digits()
    content = pd.DataFrame({"content": [image.tobytes() for image in digits.images]})
    train, test = content[:1500], content[1500:]
    assert len(overlapping_rows(train, test, ["content"])) == 0
    leaked = pd.concat([train, test.iloc[[3, 40, 7]]])
    assert overlapping_rows(leaked, test, ["content"]).tolist() == [1500, 1501, 1502]
    assert matching_rows(leaked, test, ["content"])[-3:].tolist() == [3, 40, 7]
    assert overlapping_rows(FrameTable("l", leaked), FrameTable("t", test), ["content"]).tolist() == [1500, 1501, 1502]


def test_overlap_agrees_with_a_pandas_merge():
    rng = np.random.default_rng(0)
    a, b = (pd.DataFrame({"x": rng.integers(0, 20, n), "y": rng.choice(list("uvw"), n)}) for n in (200, 30))
    merged = a.merge(b.drop_duplicates(), how="left", indicator=True)
    assert overlapping_rows(a, b, ["x", "y"]).tolist() == np.flatnonzero(merged["_merge"] == "both").tolist()
    assert first_occurrences(a, ["x", "y"]).tolist() == [
        int(np.flatnonzero((a.x == x) & (a.y == y))[0]) for x, y in a.itertuples(index=False)
    ]


def test_overlap_input_is_checked():
    frame = pd.DataFrame({"a": [1]})
    with pytest.raises(ValueError, match="at least one column"):
        overlapping_rows(frame, frame, [])
    with pytest.raises(ValueError, match=r"lacks the column\(s\) \['b'\]; it has \['a'\]"):
        overlapping_rows(frame, frame, ["a", "b"])
    assert overlapping_rows(frame[:0], frame, ["a"]).tolist() == []
    assert overlapping_rows(frame, frame[:0], ["a"]).tolist() == []
    assert overlapping_rows(frame, FrameTable("e", frame[:0]), ["a"]).tolist() == []


def test_frame_and_parquet_tables_answer_alike():
    frame = load_wine(as_frame=True).frame
    frame["origin"] = np.where(frame.target == 0, None, "somewhere")
    memory, stored = FrameTable("t", frame), parquet("t", frame, row_group_size=50)
    for table in (memory, stored):
        assert isinstance(table, TableHandle)
        assert table.num_rows == 178
        assert table.num_bytes > 1000
        assert list(table.schema()) == list(frame.columns)
        assert table.stats()["alcohol"][:2] == (11.03, 14.83)
        assert table.stats()["origin"] == ("somewhere", "somewhere", 59, True)
        assert table.anti_join_count(frame.iloc[:9], list(frame.columns)) == 0
        changed = frame.iloc[:9].assign(alcohol=[99.0, 99.0, *frame.alcohol[2:9]])
        assert table.anti_join_count(changed, list(frame.columns)) == 2
    columns = list(frame.columns)
    assert matching_rows(memory, stored, columns).tolist() == matching_rows(memory, memory, columns).tolist()


def test_footers_are_not_trusted_about_nan_nulls_in_floats_or_cut_text():
    table = parquet("t", pa.table({"f": [1.0, float("nan")], "i": [1, None], "n": pa.array([None, None], pa.int64())}))
    assert table.stats()["f"].null_count is None
    assert table.stats()["i"] == (1, 1, 1, True)
    assert table.stats()["n"] == (None, None, 2, False)
    assert not parquet("t", pa.table({"s": ["a" * 9000]})).stats()["s"].exact
    assert "t" not in parquet("t", pa.table({"t": [[1], [2]]})).stats()
    nanoseconds = pa.table({"t": pa.array([1, 2], pa.timestamp("ns"))})
    assert not parquet("t", nanoseconds, version="2.6").stats()["t"].exact


def test_large_integers_beside_nulls_stay_exact():
    stored = parquet("t", pa.table({"i": [2**60 + 1, None]}))
    assert overlapping_rows(pd.DataFrame({"i": [2**60, 2**60 + 1]}), stored, ["i"]).tolist() == [1]


def test_nested_columns_become_dotted():
    records = [{"u": 1, "in": {"v": "a"}}, {"u": 2, "in": {"v": "b"}}]
    stored = parquet("t", pa.table({"s": records, "k": [1, 2]}))
    memory = FrameTable("t", pd.DataFrame({"s": records, "k": [1, 2]}))
    for table in (stored, memory):
        assert set(table.schema()) == {"s.u", "s.in.v", "k"}
        (batch,) = table.iter_batches(["s.in.v", "s.u"])
        assert batch.to_numpy().tolist() == [["a", 1], ["b", 2]]
        assert table.stats()["s.u"][:2] == (1, 2)


def test_several_parquet_files_are_one_table():
    digits = load_digits(as_frame=True).frame
    buffers = [io.BytesIO() for _ in range(3)]
    for buffer, part in zip(buffers, np.array_split(np.arange(1797), 3), strict=True):
        digits.iloc[part].to_parquet(buffer)
    table = ParquetTable("t", buffers)
    assert table.num_rows == 1797
    assert (matching_rows(digits, table, list(digits.columns)) == first_occurrences(digits, list(digits.columns))).all()
    other = io.BytesIO()
    load_wine(as_frame=True).frame.to_parquet(other)
    with pytest.raises(ValueError, match="differ in their columns"):
        ParquetTable("t", [buffers[0], other])
    with pytest.raises(ValueError, match="has no Parquet file"):
        ParquetTable("t", [])


@pytest.mark.parametrize("on_disk", [False, True])
def test_threads_read_one_parquet_table_at_once(tmp_path, on_disk):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(5000, 4)), columns=list("abcd"))
    place = tmp_path / "t.parquet" if on_disk else io.BytesIO()
    frame.to_parquet(place, row_group_size=100)
    table = ParquetTable("t", place)

    def read(columns):
        return pd.concat(list(table.iter_batches(columns)), ignore_index=True)

    wanted = [list(columns) for columns in ("ab", "cd", "abcd", "b")] * 10
    with ThreadPoolExecutor(4) as threads:
        for columns, found in zip(wanted, threads.map(read, wanted), strict=True):
            pd.testing.assert_frame_equal(found, frame[columns])


@pytest.mark.parametrize("make", [FrameTable, parquet])
def test_a_sample_is_uniform_distinct_and_holds_the_extremes(make):
    n = 3000
    frame = pd.DataFrame({"x": np.random.default_rng(0).permutation(n), "t": [f"{i:04d}" for i in range(n)]})
    frame.loc[17, "t"] = None
    table = make("t", frame)
    sample = table.sample(50, ["x", "t"], 3)
    assert 50 < len(sample) <= 55
    assert not sample.duplicated().any()
    assert {0, n - 1} <= set(sample.x)
    assert {"0000", f"{n - 1}"} <= set(sample.t)
    assert sample.t.isna().any()
    pd.testing.assert_frame_equal(sample, table.sample(50, ["x", "t"], 3))
    means = [table.sample(50, ["x"], seed).x.iloc[:50].astype(float).mean() for seed in range(40)]
    assert abs(np.mean(means) - n / 2) < 4 * n / np.sqrt(12 * 50 * 40)
    pd.testing.assert_frame_equal(table.sample(9999, ["x"], 0).astype(int), frame[["x"]])


def test_extremes_never_exceed_the_rows_asked_for():
    digits = load_digits(as_frame=True).frame
    sample = FrameTable("t", digits).sample(44, list(digits.columns), 0)
    assert 44 < len(sample) <= 88


def test_a_selection_folds_case_and_leaves_columns_out():
    table = FrameTable("t", pd.DataFrame({"A": [1, 2], "b": [3, 4], "Loaded": [5, 6]}))
    chosen = SelectedTable(table, ["loaded"], case_sensitive=False)
    assert list(chosen.schema()) == ["a", "b"]
    assert set(chosen.stats()) == {"a", "b"}
    assert chosen.sample(5, ["a"], 0).columns.tolist() == ["a"]
    assert chosen.anti_join_count(pd.DataFrame({"a": [1, 9]}), ["a"]) == 1
    assert (chosen.num_rows, chosen.num_bytes) == (2, table.num_bytes)
    with pytest.raises(ValueError, match="differ only in case"):
        SelectedTable(FrameTable("t", pd.DataFrame({"A": [1], "a": [1]})), case_sensitive=False)
    with pytest.raises(ValueError, match="no column left"):
        SelectedTable(table, ["A", "b", "Loaded"])
    with pytest.raises(ValueError, match=r"Tables must be handles.*got DataFrame"):
        SelectedTable(pd.DataFrame({"a": [1]}))


def test_frames_are_checked_and_left_alone():
    with pytest.raises(ValueError, match="'t' has an empty schema"):
        FrameTable("t", pd.DataFrame())
    with pytest.raises(ValueError, match=r"names the column\(s\) \['a'\] twice"):
        FrameTable("t", pd.DataFrame([[1, 2]], columns=["a", "a"]))
    frame = pd.DataFrame({0: [{"k": 1}]}, index=[7])
    copy = frame.copy(deep=True)
    assert list(FrameTable("t", frame).schema()) == ["0.k"]
    pd.testing.assert_frame_equal(frame, copy)

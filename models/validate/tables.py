"""Tables behind one small interface, whatever holds them, and the rows two tables share."""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.validate.rows import EncodedRows, Positions, RowIndex, encode_rows

BATCH_ROWS = 65_536
NULLABLE = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
}
"""Integers with nulls stay integers: as floats, those beyond 2^53 would change."""
COMPARABLE = {"truth", "number", "text", "bytes", "aware", "naive", "date", "span"}


class ColumnStats(NamedTuple):
    """What metadata say of a column.

    Attributes
    ----------
    minimum, maximum : object
        Over the values that are not null; None when unknown or when all are null.
    null_count : int or None
        Nulls and NaN together; None when unknown.
    exact : bool
        False when the bounds may be truncated or widened: they then never cut an edge.
    """

    minimum: Any
    maximum: Any
    null_count: int | None
    exact: bool


@runtime_checkable
class TableHandle(Protocol):
    """What a table must answer. Columns go by qualified name: a nested field is ``outer.inner``."""

    name: str

    @property
    def num_rows(self) -> int:
        """Rows."""

    @property
    def num_bytes(self) -> int | None:
        """Stored bytes; None when unknown."""

    def schema(self) -> dict[str, str]:
        """Qualified column -> type, as text."""

    def stats(self) -> dict[str, ColumnStats] | None:
        """Statistics of the columns that have any, from metadata where the source keeps them."""

    def sample(self, n: int, columns: Sequence[str], seed: int) -> pd.DataFrame:
        """Return `n` rows drawn uniformly without replacement (all if fewer), and possibly up to `n` telling ones."""

    def anti_join_count(self, rows: pd.DataFrame, columns: Sequence[str]) -> int:
        """How many of `rows` are missing here."""

    def iter_batches(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """All rows in their stored order, part by part."""


class StreamedTable:
    """Sampling and anti-joins in one pass over ``iter_batches``; subclasses say where the rows are."""

    name: str

    @property
    def num_rows(self) -> int:
        """Rows."""
        raise NotImplementedError(f"{type(self).__name__} must say how many rows it has.")

    def iter_batches(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """All rows in their stored order, part by part."""
        raise NotImplementedError(f"{type(self).__name__} must say how its rows are read.")

    def sample(self, n: int, columns: Sequence[str], seed: int) -> pd.DataFrame:
        """Draw `n` uniform rows, and up to `n` more that hold a column's minimum, maximum or a null.

        The uniform half carries the sampling bound; the extreme half catches what a filter cut off.
        Columns are visited in an order drawn from the seed while there is room.
        """
        rng = np.random.default_rng(seed)
        size = self.num_rows
        chosen = np.sort(rng.choice(size, n, replace=False)) if size > n else np.arange(size)
        watched = [columns[i] for i in rng.permutation(len(columns))[: max(1, n // 2)]] if size > n else []
        extremes = {name: _Extremes() for name in watched}
        parts: list[pd.DataFrame] = []
        told: list[tuple[NDArray[np.int64], pd.DataFrame]] = []
        start = 0
        for batch in self.iter_batches(columns):
            stop = start + len(batch)
            parts.append(batch.iloc[chosen[(chosen >= start) & (chosen < stop)] - start])
            rows = np.array(
                [row for name, kept in extremes.items() for row in kept.look(batch[name], start)], dtype=int
            )
            told.append((rows + start, batch.iloc[rows]))
            start = stop
        drawn = set(chosen.tolist())
        wanted = list(dict.fromkeys(p for kept in extremes.values() for p in kept.held.values() if p not in drawn))[:n]
        for positions, rows_told in told:
            _, first = np.unique(positions, return_index=True)
            parts.append(rows_told.iloc[[i for i in first if positions[i] in wanted]])
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))

    def anti_join_count(self, rows: pd.DataFrame, columns: Sequence[str]) -> int:
        """How many of `rows` are missing here."""
        index = RowIndex(encode_rows(rows, columns))
        found = np.zeros(len(rows), dtype=bool)
        for batch in self.iter_batches(columns):
            hits = index.lookup(encode_rows(batch, columns))
            found[hits[hits >= 0]] = True
            if found[index.first].all():
                return 0
        return int((~found[index.first]).sum())


class _Extremes:
    """Where the least, the greatest and a null value of a column seen so far stand."""

    def __init__(self) -> None:
        self.ends: dict[str, Any] = {}
        self.held: dict[str, int] = {}

    def look(self, values: pd.Series, start: int) -> list[int]:
        """Rows of this batch that hold an extreme not met before."""
        missing = values.isna().to_numpy(dtype=bool)
        rows: list[int] = []
        if missing.any() and "null" not in self.held:
            rows.append(self._hold("null", start, missing))
        if missing.all():
            return rows
        plain = values.dtype == object or isinstance(values.dtype, (np.dtype, pd.StringDtype))
        present = (values if plain else values.astype(object)).to_numpy()[~missing]
        try:
            for what, end in (("low", present.min()), ("high", present.max())):
                past = self.ends.get(what)
                if past is None or (end < past if what == "low" else end > past):
                    self.ends[what] = end
                    where = np.zeros(len(missing), dtype=bool)
                    where[~missing] = present == end
                    rows.append(self._hold(what, start, where))
        except (TypeError, ValueError):
            return rows  # lists, mixed types: no order, no extremes
        return rows

    def _hold(self, what: str, start: int, where: NDArray[np.bool_]) -> int:
        row = int(where.argmax())
        self.held[what] = start + row
        return row


class FrameTable(StreamedTable):
    """A pandas frame as a table.

    Parameters
    ----------
    name : str
    frame : DataFrame
        Columns of dictionaries are flattened to ``outer.inner``. Not changed.

    Examples
    --------
    >>> FrameTable("t", pd.DataFrame({"a": [1, None]})).stats()["a"]
    ColumnStats(minimum=1.0, maximum=1.0, null_count=1, exact=True)
    """

    def __init__(self, name: str, frame: pd.DataFrame) -> None:
        self.name = name
        self.frame = flatten_frame(frame)
        _check_columns(name, list(self.frame.columns))

    @property
    def num_rows(self) -> int:
        """Rows."""
        return len(self.frame)

    @property
    def num_bytes(self) -> int:
        """Bytes held in memory."""
        return int(self.frame.memory_usage(index=False, deep=True).sum())

    def schema(self) -> dict[str, str]:
        """Column -> type."""
        return {str(name): str(kind) for name, kind in self.frame.dtypes.items()}

    def stats(self) -> dict[str, ColumnStats]:
        """Bounds and nulls of the columns that have an order."""
        return {str(name): _series_stats(self.frame[name]) for name in self.frame.columns}

    def iter_batches(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Slices of the frame."""
        for start in range(0, len(self.frame), BATCH_ROWS):
            yield self.frame.iloc[start : start + BATCH_ROWS][list(columns)]


class ParquetTable(StreamedTable):
    """A table stored as Parquet; statistics come from the footers, without reading a row.

    Parameters
    ----------
    name : str
    source : path, buffer or open file, or a sequence of them
        Several are one table, in this order; their schemas must agree. Threads may read one table at once.
    """

    def __init__(self, name: str, source: Any) -> None:
        self.name = name
        sources = list(source) if isinstance(source, (list, tuple)) else [source]
        if not sources:
            raise ValueError(f"The table {name!r} has no Parquet file: give at least one.")
        # Buffering ahead belongs to the open file: one thread's read would drop what another's waits for.
        self.files = [pq.ParquetFile(item, pre_buffer=False) for item in sources]
        self._types = dict(_leaves(self.files[0].schema_arrow))
        _check_columns(name, [path for path, _ in _leaves(self.files[0].schema_arrow)])
        for file in self.files[1:]:
            if dict(_leaves(file.schema_arrow)).keys() != self._types.keys():
                raise ValueError(
                    f"The Parquet files of the table {name!r} differ in their columns: give one table each."
                )

    @property
    def num_rows(self) -> int:
        """Rows."""
        return sum(file.metadata.num_rows for file in self.files)

    @property
    def num_bytes(self) -> int:
        """Compressed bytes of the columns and footers."""
        return sum(
            file.metadata.serialized_size + sum(chunk.total_compressed_size for chunk in _chunks(file))
            for file in self.files
        )

    def schema(self) -> dict[str, str]:
        """Qualified column -> Arrow type."""
        return {name: str(kind) for name, kind in self._types.items()}

    def stats(self) -> dict[str, ColumnStats]:
        """Statistics of the columns for which every row group has them."""
        chunks: dict[str, list[Any]] = {}
        for file in self.files:
            # Other writers may cut long text short without saying so.
            whole = "parquet-cpp" in (file.metadata.created_by or "")
            for chunk in _chunks(file):
                chunks.setdefault(chunk.path_in_schema, []).append((chunk, whole))
        return {
            name: _footer_stats(chunks[name], self._types[name])
            for name in self._types
            if name in chunks and not pa.types.is_nested(self._types[name])
        }

    def iter_batches(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Record batches, nested columns flattened."""
        for file in self.files:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns)):
                table = pa.Table.from_batches([batch])
                while any(pa.types.is_struct(field.type) for field in table.schema):
                    table = table.flatten()
                yield table.select(list(columns)).to_pandas(ignore_metadata=True, types_mapper=NULLABLE.get)


class SelectedTable:
    """Another table with columns left out or their case folded.

    Parameters
    ----------
    table : TableHandle
    ignore : sequence of str
    case_sensitive : bool

    Raises
    ------
    ValueError
        If no column is left, two coincide once folded, or the handle lacks part of the interface.
    """

    def __init__(self, table: TableHandle, ignore: Sequence[str] = (), case_sensitive: bool = True) -> None:
        if not isinstance(table, TableHandle):
            raise ValueError(
                f"Tables must be handles such as FrameTable or ParquetTable, got {type(table).__name__}. "
                "Wrap it: FrameTable(name, frame)."
            )
        self.name, self.table = table.name, table
        fold = str if case_sensitive else str.casefold
        ignored = {fold(name) for name in ignore}
        self.columns = {fold(name): name for name in table.schema() if fold(name) not in ignored}
        kept = sum(fold(name) not in ignored for name in table.schema())
        if not kept:
            raise ValueError(f"The table {table.name!r} has no column left to compare: its schema is empty.")
        if kept > len(self.columns):
            raise ValueError(f"Columns of the table {table.name!r} differ only in case: rename them or match case.")

    @property
    def num_rows(self) -> int:
        """Rows."""
        return self.table.num_rows

    @property
    def num_bytes(self) -> int | None:
        """Stored bytes; None when unknown."""
        return self.table.num_bytes

    def schema(self) -> dict[str, str]:
        """Column -> type."""
        kinds = self.table.schema()
        return {name: kinds[origin] for name, origin in self.columns.items()}

    def stats(self) -> dict[str, ColumnStats] | None:
        """Statistics of the columns kept."""
        found = self.table.stats()
        if found is None:
            return None
        return {name: found[origin] for name, origin in self.columns.items() if origin in found}

    def sample(self, n: int, columns: Sequence[str], seed: int) -> pd.DataFrame:
        """See :class:`TableHandle`."""
        rows = self.table.sample(n, [self.columns[name] for name in columns], seed)
        return rows.set_axis(list(columns), axis=1)

    def anti_join_count(self, rows: pd.DataFrame, columns: Sequence[str]) -> int:
        """See :class:`TableHandle`."""
        origins = [self.columns[name] for name in columns]
        return self.table.anti_join_count(rows[list(columns)].set_axis(origins, axis=1), origins)

    def iter_batches(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """See :class:`TableHandle`."""
        for batch in self.table.iter_batches([self.columns[name] for name in columns]):
            yield batch.set_axis(list(columns), axis=1)


# Rows that two tables share


def matching_rows(
    child: TableHandle | pd.DataFrame,
    parent: TableHandle | pd.DataFrame,
    columns: Sequence[str],
    tolerance: float = 0.0,
) -> Positions:
    """Position of the first equal row of `parent` for each row of `child`, -1 where there is none.

    Parameters
    ----------
    child, parent : table handle or DataFrame
    columns : sequence of str
        The columns compared.
    tolerance : float
        See :func:`models.validate.rows.encode_columns`.

    Returns
    -------
    array, (rows of child,)

    Raises
    ------
    ValueError
        If no column is named or a table lacks one.

    Examples
    --------
    >>> train, test = pd.DataFrame({"a": [5, 7, 7]}), pd.DataFrame({"a": [7.0, 9.0]})
    >>> matching_rows(train, test, ["a"]).tolist()
    [-1, 0, 0]
    """
    return RowIndex(encoded(parent, columns, tolerance)).lookup(encoded(child, columns, tolerance))


def overlapping_rows(
    child: TableHandle | pd.DataFrame,
    parent: TableHandle | pd.DataFrame,
    columns: Sequence[str],
    tolerance: float = 0.0,
) -> Positions:
    """Positions of the rows of `child` that stand in `parent` too: the leaked rows.

    Parameters and errors are those of :func:`matching_rows`.

    Examples
    --------
    >>> train, test = pd.DataFrame({"a": [5, 7, 7]}), pd.DataFrame({"a": [7.0, 9.0]})
    >>> overlapping_rows(train, test, ["a"]).tolist()
    [1, 2]
    """
    return np.flatnonzero(matching_rows(child, parent, columns, tolerance) >= 0)


def first_occurrences(table: TableHandle | pd.DataFrame, columns: Sequence[str], tolerance: float = 0.0) -> Positions:
    """Position of the first row equal to each row: its own, unless the row is an exact duplicate of an earlier one.

    Examples
    --------
    >>> first_occurrences(pd.DataFrame({"a": ["x", "y", "x"]}), ["a"]).tolist()
    [0, 1, 0]
    """
    return RowIndex(encoded(table, columns, tolerance)).first


def encoded(table: TableHandle | pd.DataFrame, columns: Sequence[str], tolerance: float = 0.0) -> EncodedRows:
    """All rows of a table over `columns`, encoded batch by batch."""
    if not len(columns):
        raise ValueError("columns must name at least one column to compare, got none.")
    names = list(table.columns) if isinstance(table, pd.DataFrame) else list(table.schema())
    if missing := [name for name in columns if name not in names]:
        raise ValueError(f"A table lacks the column(s) {missing}; it has {names}.")
    if isinstance(table, pd.DataFrame):
        return encode_rows(table, columns, tolerance)
    batches = [encode_rows(batch, columns, tolerance) for batch in table.iter_batches(columns)]
    return EncodedRows.join(batches) if batches else encode_rows(pd.DataFrame(columns=list(columns)), columns)


# Columns and statistics


def flatten_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Replace columns of dictionaries by one column for each key, named ``outer.inner``; never changes `frame`."""
    flat = frame.set_axis([str(name) for name in frame.columns], axis=1).reset_index(drop=True)
    while nested := [name for name in flat.columns if list(flat.columns).count(name) == 1 and _is_nested(flat[name])]:
        for name in nested:
            records = [value if isinstance(value, dict) else {} for value in flat[name]]
            inner = pd.DataFrame.from_records(records, index=flat.index).add_prefix(f"{name}.")
            place = list(flat.columns).index(name)
            flat = pd.concat([flat.iloc[:, :place], inner, flat.iloc[:, place + 1 :]], axis=1)
    return flat


def _is_nested(values: pd.Series) -> bool:
    if values.dtype != object:
        return False
    present = values.dropna()
    return bool(len(present)) and all(isinstance(value, dict) and value for value in present)


def _check_columns(name: str, columns: list[str]) -> None:
    if not columns:
        raise ValueError(f"The table {name!r} has an empty schema: it needs at least one column.")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise ValueError(f"The table {name!r} names the column(s) {twice} twice: rename them.")


def _leaves(schema: Any, prefix: str = "") -> Iterator[tuple[str, pa.DataType]]:
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.num_fields:
            yield from _leaves([field.type.field(i) for i in range(field.type.num_fields)], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.type


def _chunks(file: pq.ParquetFile) -> Iterator[Any]:
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        for column in range(row_group.num_columns):
            yield row_group.column(column)


def _footer_stats(chunks: Sequence[tuple[Any, bool]], kind: pa.DataType) -> ColumnStats:
    found = [(chunk.statistics, whole) for chunk, whole in chunks]
    if any(stats is None or not stats.has_null_count for stats, _ in found):
        nulls = None
    else:
        nulls = sum(stats.null_count for stats, _ in found)
        if nulls == 0 and pa.types.is_floating(kind):
            nulls = None  # footers do not count NaN, which equals null here
    filled = [(stats, whole) for stats, whole in found if stats is None or stats.num_values or stats.has_min_max]
    if not filled or any(stats is None or not stats.has_min_max for stats, _ in filled):
        return ColumnStats(None, None, nulls, False)
    low, high = min(stats.min for stats, _ in filled), max(stats.max for stats, _ in filled)
    exact = family(low) in COMPARABLE and (family(low) not in ("text", "bytes") or all(whole for _, whole in filled))
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        exact = False  # footers give them back in microseconds
    return ColumnStats(low, high, nulls, exact)


def _series_stats(values: pd.Series) -> ColumnStats:
    nulls = int(values.isna().sum())
    present = values.dropna()
    if isinstance(present.dtype, pd.CategoricalDtype):
        present = present.astype(object)
    try:
        families = {family(value) for value in present} if present.dtype == object else {""}
        if not len(present) or len(families) > 1:
            return ColumnStats(None, None, nulls, False)
        low, high = present.min(), present.max()
    except (TypeError, ValueError):
        return ColumnStats(None, None, nulls, False)
    low, high = (value.item() if isinstance(value, np.generic) else value for value in (low, high))
    return ColumnStats(low, high, nulls, family(low) in COMPARABLE)


def family(value: Any) -> str:
    """Which values can be ordered against each other: those of the same family."""
    if isinstance(value, (bool, np.bool_)):
        return "truth"
    if isinstance(value, (int, float, Decimal, np.number)):
        return "number" if value == value else "nan"
    if isinstance(value, datetime.datetime):
        return "naive" if value.tzinfo is None else "aware"
    for name, kind in (("text", str), ("bytes", bytes), ("date", datetime.date), ("span", datetime.timedelta)):
        if isinstance(value, kind):
            return name
    return "other"


def seed_of(name: str, seed: int) -> int:
    """Derive the sampling seed of the table `name`: the same whatever other tables stand beside it."""
    return zlib.crc32(name.encode()) ^ (seed & 0xFFFFFFFF)


def sizes(tables: Mapping[str, TableHandle]) -> dict[str, float]:
    """Bytes of each table.

    Raises
    ------
    ValueError
        If a table does not know its size.
    """
    missing = [name for name, table in tables.items() if table.num_bytes is None]
    if missing:
        raise ValueError(f"The size in bytes of the table(s) {missing} is unknown: their handles must give num_bytes.")
    return {name: float(table.num_bytes or 0) for name, table in tables.items()}


__all__ = [
    "ColumnStats",
    "FrameTable",
    "ParquetTable",
    "SelectedTable",
    "StreamedTable",
    "TableHandle",
    "first_occurrences",
    "flatten_frame",
    "matching_rows",
    "overlapping_rows",
]

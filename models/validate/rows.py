"""When two rows are equal: one answer for every stage that compares tables.

Null equals null and NaN; 1 equals 1.0 and ``Decimal(1)``; text is never cast to a number, nor a truth value or a
time. Time stamps equal when they name the same instant, but one with a time zone never equals one without.
A row gets a 64-bit hash; rows whose hashes agree are compared cell by cell before they count as equal.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Codes = NDArray[np.uint64]
Positions = NDArray[np.int64]

NULL, WHOLE, NEGATIVE, REAL, TRUTH, TEXT, BYTES, INSTANT, INSTANT_NS, LOCAL, LOCAL_NS, SPAN, SPAN_NS, OTHER = range(14)
PER_MICROSECOND = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass
class EncodedColumn:
    """Cells of one column: kind and 64-bit payload, exact but for text, whose hash stands beside the text itself."""

    kind: NDArray[np.uint8]
    payload: Codes
    texts: NDArray[np.object_] | None = None

    @classmethod
    def blank(cls, n: int) -> Self:
        """`n` nulls."""
        return cls(np.zeros(n, dtype=np.uint8), np.zeros(n, dtype=np.uint64))

    def put(self, where: NDArray[Any], part: EncodedColumn) -> None:
        """Write `part` at the positions `where`."""
        self.kind[where], self.payload[where] = part.kind, part.payload
        if part.texts is not None:
            if self.texts is None:
                self.texts = np.full(len(self.kind), None, dtype=object)
            self.texts[where] = part.texts

    def take(self, rows: NDArray[Any]) -> EncodedColumn:
        """Return the cells at `rows`."""
        return EncodedColumn(self.kind[rows], self.payload[rows], None if self.texts is None else self.texts[rows])

    def equal(self, other: EncodedColumn) -> NDArray[np.bool_]:
        """Cell by cell."""
        same = (self.kind == other.kind) & (self.payload == other.payload)
        if self.texts is not None and other.texts is not None:
            same &= self.texts == other.texts
        return same


@dataclass
class EncodedRows:
    """Rows of a table over an ordered choice of columns, with their hashes.

    Attributes
    ----------
    columns : list of EncodedColumn
    hashes : array, (n,), uint64
        Independent of the table the rows come from.
    """

    columns: list[EncodedColumn]
    hashes: Codes

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: NDArray[Any]) -> EncodedRows:
        """Return the rows at these positions."""
        return EncodedRows([column.take(rows) for column in self.columns], self.hashes[rows])

    def equal(self, other: EncodedRows) -> NDArray[np.bool_]:
        """Row by row, on the cells themselves."""
        same = np.ones(len(self), dtype=bool)
        for mine, theirs in zip(self.columns, other.columns, strict=True):
            same &= mine.equal(theirs)
        return same

    @classmethod
    def join(cls, parts: Sequence[EncodedRows]) -> EncodedRows:
        """One below the other."""
        columns = []
        for cells in zip(*(part.columns for part in parts), strict=True):
            joined = EncodedColumn(
                np.concatenate([cell.kind for cell in cells]), np.concatenate([cell.payload for cell in cells])
            )
            if any(cell.texts is not None for cell in cells):
                blank = [
                    np.full(len(cell.kind), None, dtype=object) if cell.texts is None else cell.texts for cell in cells
                ]
                joined.texts = np.concatenate(blank)
            columns.append(joined)
        return cls(columns, np.concatenate([part.hashes for part in parts]))


def encode_columns(frame: pd.DataFrame, columns: Sequence[str], tolerance: float = 0.0) -> dict[str, EncodedColumn]:
    """Encode the cells of `columns`.

    Parameters
    ----------
    frame : DataFrame
    columns : sequence of str
    tolerance : float
        Above 0, numbers are equal when they round to the same multiple of it. (Rounding keeps equality transitive,
        which "differs by less than" is not.)
    """
    return {name: _encode(frame[name], tolerance) for name in columns}


def encode_rows(frame: pd.DataFrame, columns: Sequence[str], tolerance: float = 0.0) -> EncodedRows:
    """Encode and hash the rows of `frame` over `columns`; equal rows have equal hashes whatever the order given."""
    return combine(encode_columns(frame, columns, tolerance), columns)


def combine(encoded: dict[str, EncodedColumn], columns: Sequence[str]) -> EncodedRows:
    """Rows over `columns`, taken in the order of their names."""
    chosen = [encoded[name] for name in sorted(columns)]
    return EncodedRows(chosen, hash_rows(chosen))


def hash_rows(columns: Sequence[EncodedColumn]) -> Codes:
    """Mix the cells of each row into 64 bits (the finaliser of splitmix64 after each cell)."""
    rows = np.zeros(len(columns[0].kind), dtype=np.uint64)
    for column in columns:
        rows = rows * np.uint64(0x9E3779B97F4A7C15) + (column.kind.astype(np.uint64) << np.uint64(56)) + np.uint64(1)
        rows = _scramble(rows ^ _scramble(column.payload))
    return rows


def _scramble(codes: Codes) -> Codes:
    codes = (codes ^ (codes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    codes = (codes ^ (codes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return codes ^ (codes >> np.uint64(31))


class RowIndex:
    """Distinct rows of a set, to look others up in.

    Parameters
    ----------
    rows : EncodedRows

    Attributes
    ----------
    first : array
        For each row, the position of the first row equal to it.
    """

    def __init__(self, rows: EncodedRows) -> None:
        self.rows = rows
        self._order = np.argsort(rows.hashes, kind="stable")
        self._sorted = rows.hashes[self._order]
        self.first = self.lookup(rows)

    def lookup(self, others: EncodedRows) -> Positions:
        """Position of the first equal row for each of `others`, -1 where there is none."""
        found = np.full(len(others), -1, dtype=np.int64)
        place = np.searchsorted(self._sorted, others.hashes)
        pending = np.arange(len(others))
        while True:
            pending = pending[place[pending] < len(self._sorted)]
            pending = pending[self._sorted[place[pending]] == others.hashes[pending]]
            if not len(pending):
                return found
            candidates = self._order[place[pending]]
            equal = others.take(pending).equal(self.rows.take(candidates))
            found[pending[equal]] = candidates[equal]
            pending = pending[~equal]
            place[pending] += 1


def _encode(values: pd.Series, tolerance: float) -> EncodedColumn:
    """Encode one column by its type; a column of mixed objects type by type."""
    kind = values.dtype
    if isinstance(kind, pd.CategoricalDtype):
        return _encode_categories(values, tolerance)
    column = EncodedColumn.blank(len(values))
    present = ~values.isna().to_numpy(dtype=bool)
    if not present.any():
        return column
    cells = values[present] if not present.all() else values
    if pd.api.types.is_bool_dtype(kind):
        part = _exact(TRUTH, cells.to_numpy(dtype=np.uint64))
    elif pd.api.types.is_integer_dtype(kind):
        part = _integers(cells.to_numpy(dtype=np.uint64 if "u" in str(kind).lower() else np.int64), tolerance)
    elif pd.api.types.is_float_dtype(kind) and not isinstance(kind, pd.ArrowDtype):
        part = _floats(cells.to_numpy(dtype=np.float64), tolerance)
    elif pd.api.types.is_datetime64_any_dtype(kind) and not isinstance(kind, pd.ArrowDtype):
        aware = getattr(kind, "tz", None) is not None
        naive = cells.dt.tz_convert("UTC").dt.tz_localize(None) if aware else cells
        part = _ticks(naive.to_numpy(), (INSTANT, INSTANT_NS) if aware else (LOCAL, LOCAL_NS))
    elif pd.api.types.is_timedelta64_dtype(kind) and not isinstance(kind, pd.ArrowDtype):
        part = _ticks(cells.to_numpy(), (SPAN, SPAN_NS))
    else:
        part = _objects(cells.astype(object), tolerance)
    column.put(present, part)
    return column


def _encode_categories(values: pd.Series, tolerance: float) -> EncodedColumn:
    codes = values.cat.codes.to_numpy()
    column = EncodedColumn.blank(len(values))
    column.put(codes >= 0, _encode(values.cat.categories.to_series(), tolerance).take(codes[codes >= 0]))
    return column


def _exact(kind: int, payload: NDArray[Any]) -> EncodedColumn:
    return EncodedColumn(np.full(len(payload), kind, dtype=np.uint8), payload.astype(np.uint64, copy=False))


def _integers(numbers: NDArray[Any], tolerance: float) -> EncodedColumn:
    if tolerance > 0:
        return _floats(numbers.astype(np.float64), tolerance)
    if numbers.dtype == np.uint64:
        return _exact(WHOLE, numbers)
    return EncodedColumn(np.where(numbers < 0, NEGATIVE, WHOLE).astype(np.uint8), numbers.view(np.uint64))


def _floats(numbers: NDArray[np.float64], tolerance: float) -> EncodedColumn:
    """Whole numbers as integers, the rest by their bits; -0.0 is 0."""
    if tolerance > 0:
        numbers = np.rint(numbers / tolerance)
    column = _exact(REAL, numbers.view(np.uint64).copy())
    whole = numbers == np.floor(numbers)
    up, down = whole & (numbers >= 0) & (numbers < 2.0**64), whole & (numbers < 0) & (numbers >= -(2.0**63))
    column.kind[up], column.payload[up] = WHOLE, numbers[up].astype(np.uint64)
    column.kind[down], column.payload[down] = NEGATIVE, numbers[down].astype(np.int64).view(np.uint64)
    return column


def _ticks(stamps: NDArray[Any], kinds: tuple[int, int]) -> EncodedColumn:
    """Microseconds, or nanoseconds where there is a rest."""
    unit = np.datetime_data(stamps.dtype)[0]
    ticks = stamps.view(np.int64)
    if unit != "ns":
        return _exact(kinds[0], (ticks * PER_MICROSECOND[unit]).view(np.uint64))
    rest = ticks % 1000 != 0
    column = _exact(kinds[0], np.where(rest, ticks, ticks // 1000).view(np.uint64))
    column.kind[rest] = kinds[1]
    return column


def _texts(kind: int, texts: NDArray[np.object_]) -> EncodedColumn:
    column = _exact(kind, pd.util.hash_array(texts, categorize=True))
    column.texts = texts
    return column


def _objects(cells: pd.Series, tolerance: float) -> EncodedColumn:
    """Cells held as Python objects, each by its own type."""
    values = cells.to_numpy(dtype=object)
    if pd.api.types.infer_dtype(values, skipna=False) == "string":
        return _texts(TEXT, values)
    column = EncodedColumn.blank(len(values))
    families = np.array([_family(value) for value in values])
    for family in np.unique(families):
        where = np.flatnonzero(families == family)
        column.put(where, _encode_family(str(family), values[where], tolerance))
    return column


def _family(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "truth"
    if isinstance(value, (int, np.integer)):
        return _number_family(int(value))
    if isinstance(value, Decimal):
        return _number_family(value)
    for name, types in (("float", (float, np.floating)), ("text", str), ("bytes", bytes)):
        if isinstance(value, types):
            return name
    if isinstance(value, (datetime.datetime, np.datetime64)):
        return "aware" if getattr(value, "tzinfo", None) is not None else "naive"
    return "span" if isinstance(value, (datetime.timedelta, np.timedelta64)) else "other"


def _number_family(value: int | Decimal) -> str:
    """Which exact form holds an integer or decimal: it must not depend on the other cells."""
    if isinstance(value, Decimal) and not value.is_finite():
        return "float"
    if value == int(value):
        if -(2**63) <= value < 2**63:
            return "integer"
        if 0 <= value < 2**64:
            return "unsigned"
    try:
        return "float" if float(value) == value else "huge"
    except OverflowError:
        return "huge"


def _encode_family(family: str, values: NDArray[np.object_], tolerance: float) -> EncodedColumn:
    if family == "truth":
        return _exact(TRUTH, values.astype(bool))
    if family in ("integer", "unsigned"):
        whole = np.array([int(value) for value in values], dtype=np.int64 if family == "integer" else np.uint64)
        return _integers(whole, tolerance)
    if family == "huge":
        digits = [f"{Decimal(value):f}" for value in values]
        plain = [text.rstrip("0").rstrip(".") if "." in text else text for text in digits]
        return _texts(OTHER, np.array([f"number {text}" for text in plain], dtype=object))
    if family == "float":
        return _floats(values.astype(np.float64), tolerance)
    if family == "text":
        return _texts(TEXT, values)
    if family == "bytes":
        return _texts(BYTES, np.array([value.decode("latin1") for value in values], dtype=object))
    if family in ("aware", "naive", "span"):
        return _encode(_stamps(family, values), tolerance)
    return _texts(OTHER, np.array([_describe(value) for value in values], dtype=object))


def _stamps(family: str, values: NDArray[np.object_]) -> pd.Series:
    if family == "span":
        return pd.Series(pd.to_timedelta(list(values)))
    return pd.Series(pd.to_datetime(list(values), utc=family == "aware"))


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        value = sorted(value.items())
    return f"{type(value).__name__} {value!r}"

"""Find rows in bytes: encoded images, their pixels and texts, and ids; inside Parquet, Arrow, zip and SQLite as well.

What is looked for is known by fingerprints only: the salted digest of each needle, and a coarse hash of eight of its
bytes that says where a comparison is worth it. So the same search can be repeated when the rows themselves are gone.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import mmap
import re
import sqlite3
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.references import Reference

WINDOW = 8
BLOCK = 16 << 20
LARGEST_MEMBER = 1 << 30
"""Bytes a member of a zip or gzip file may unpack to: a small file can hold as many as it likes."""
_BITS = 20
_SHORT = re.compile(rb"[\"'>]([^\"'<>\n]{1,7})(?=[\"'<])")
_WORD = re.compile(rb"[A-Za-z0-9_]")
Buffer = bytes | mmap.mmap
Kind = Literal["id", "image", "image in base64", "pixels", "text"]


class Fingerprint(Reference):
    """What is known of a needle.

    Attributes
    ----------
    subject : str
        Salted digest of the id the needle belongs to.
    kind : str
    length : int
        Bytes of the needle.
    offset : int
        Where in it the eight bytes begin whose coarse hash is `probe`; -1 for needles shorter than that, which
        count only between quotes or tags.
    probe : int
    digest : str
        Salted sha256 of the needle.
    apart : bool
        Whether letters and digits beside it make it something else: `scan-1` in `scan-12`.
    """

    subject: str
    kind: Kind
    length: int
    offset: int
    probe: int
    digest: str
    apart: bool = False


class Trace(NamedTuple):
    """One needle found."""

    fingerprint: Fingerprint
    inside: str
    at: int


class Sealed(ValueError):
    """Bytes say that they pack something, and can not be unpacked."""

    def __init__(self, message: str, found: Sequence[Trace] = ()) -> None:
        super().__init__(message)
        self.found = list(found)


def salted(salt: str, value: bytes) -> str:
    """Digest by which a needle is known."""
    return hashlib.sha256(salt.encode() + b"\0" + value).hexdigest()


def of_id(salt: str, identity: str, apart: bool = False) -> list[Fingerprint]:
    """Fingerprints of an id: as it is, and as JSON writes it if that differs."""
    forms = dict.fromkeys((identity.encode(), json.dumps(identity)[1:-1].encode()))
    return [_fingerprint(salt, identity, "id", form, 0, apart) for form in forms]


def of_image(salt: str, identity: str, encoded: bytes, pixels: NDArray[np.uint8] | None) -> list[Fingerprint]:
    """Fingerprints of an image: its file, the file in base64, its pixels as bytes and as floats in [0, 1]."""
    found = [_fingerprint(salt, identity, "image", encoded)]
    for shift in range(3):
        found.append(_fingerprint(salt, identity, "image in base64", _base64(encoded, shift)))
    if pixels is not None and len(np.unique(pixels)) > 2 and pixels.size >= 64:
        floats = np.divide(pixels, 255, dtype=np.float32)
        for array in (pixels, floats):
            found.append(_fingerprint(salt, identity, "pixels", array.tobytes()))
    return found


def of_text(salt: str, identity: str, text: str) -> list[Fingerprint]:
    """Fingerprints of a text, if it is long enough to be one's own."""
    forms = dict.fromkeys((text.encode(), json.dumps(text)[1:-1].encode()))
    return [_fingerprint(salt, identity, "text", form) for form in forms if len(form) >= 24]


def _base64(content: bytes, shift: int) -> bytes:
    """The part of the base64 form that does not depend on what stands before (`shift` bytes modulo 3) and after."""
    skip = (3 - shift) % 3
    whole = content[skip:]
    return base64.b64encode(whole[: len(whole) // 3 * 3])


def _fingerprint(
    salt: str, identity: str, kind: Kind, needle: bytes, offset: int | None = None, apart: bool = False
) -> Fingerprint:
    subject = salted(salt, identity.encode())
    if len(needle) < WINDOW:
        place, probe = -1, 0
    else:
        place = _telling(needle) if offset is None else offset
        probe = int(_coarse(np.frombuffer(needle, "<u8", 1, place), _factor(salt))[0])
    return Fingerprint(
        subject=subject, kind=kind, length=len(needle), offset=place, probe=probe, digest=salted(salt, needle),
        apart=apart,
    )  # fmt: skip


def _telling(needle: bytes) -> int:
    """Offset of the eight bytes that differ most among themselves; head and tail are the same in all files."""
    last = len(needle) - WINDOW
    starts = range(64, last - 32) if last > 128 else range(last + 1)
    return max(starts, key=lambda start: len(set(needle[start : start + WINDOW])))


def _factor(salt: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "little") | 1)


def _coarse(windows: NDArray[np.uint64], factor: np.uint64) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return (windows * factor) >> np.uint64(64 - _BITS)


class Search:
    """Looks for fingerprints in bytes.

    Parameters
    ----------
    salt : str
        The fingerprints were made with it.
    fingerprints : iterable of Fingerprint
    """

    def __init__(self, salt: str, fingerprints: Iterable[Fingerprint]) -> None:
        self.salt, self.factor = salt, _factor(salt)
        self.known: dict[int, list[Fingerprint]] = defaultdict(list)
        self.short: dict[str, Fingerprint] = {}
        for each in fingerprints:
            if each.offset < 0:
                self.short[each.digest] = each
            else:
                self.known[each.probe].append(each)
        self.table = np.zeros(1 << _BITS, dtype=bool)
        self.table[list(self.known)] = True
        lengths = [each.length for found in self.known.values() for each in found]
        self.overlap = max(lengths, default=0) + 1

    def file(self, path: Path) -> list[Trace]:
        """Traces in a file, and in what it packs."""
        found = self.content(path.read_bytes())
        if not is_sqlite(path):
            return found
        try:
            return found + list(self._in_sqlite(path))
        except sqlite3.Error as error:
            raise Sealed(f"it is a damaged database: {error}", found) from None

    def content(self, raw: bytes, inside: str = "", depth: int = 3) -> list[Trace]:
        """Traces in bytes, and in what they pack.

        Raises
        ------
        Sealed
            If they say that they pack something and it can not be unpacked; it carries what was found in them as they
            are.
        """
        found = self._plain(raw, inside)
        try:
            for name, part, packed in _parts(raw) if depth else ():
                where = f"{inside}/{name}" if inside else name
                found += self.content(part, where, depth - 1) if packed else self._plain(part, where)
        except Sealed as error:
            raise Sealed(str(error), [*found, *error.found]) from None
        return found

    def raw(self, held: Buffer) -> list[Trace]:
        """Traces in a file of any size, taken as it is."""
        return self._plain(held, "")

    def cells(self, rows: Iterable[Sequence[Any]], inside: str) -> list[Trace]:
        """Traces in the rows of a database's table."""
        found: list[Trace] = []
        waiting, size = [], 0
        for row in rows:
            waiting.append(quoted(row))
            size += len(waiting[-1])
            if size > BLOCK:
                found += self._plain(b"\n".join(waiting), inside)
                waiting, size = [], 0
        return found + self._plain(b"\n".join(waiting), inside)

    def _plain(self, raw: Buffer, inside: str) -> list[Trace]:
        found: list[Trace] = []
        for start in range(0, max(len(raw) - WINDOW + 1, 0), BLOCK):
            found += self._block(raw, start, min(start + BLOCK + WINDOW - 1, len(raw)), inside)
        if self.short:
            for match in _SHORT.finditer(raw):
                each = self.short.get(salted(self.salt, match.group(1)))
                if each is not None:
                    found.append(Trace(each, inside, match.start(1)))
        return found

    def _block(self, raw: Buffer, start: int, end: int, inside: str) -> Iterator[Trace]:
        for shift in range(WINDOW):
            count = (end - start - shift) // WINDOW
            if count <= 0:
                continue
            probes = _coarse(np.frombuffer(raw, "<u8", count, start + shift), self.factor)
            for place in np.flatnonzero(self.table[probes]):
                at = start + shift + int(place) * WINDOW
                for each in self.known[int(probes[place])]:
                    begin = at - each.offset
                    if begin >= 0 and self._is(each, raw, begin):
                        yield Trace(each, inside, begin)

    def _is(self, each: Fingerprint, raw: Buffer, begin: int) -> bool:
        end = begin + each.length
        if end > len(raw) or salted(self.salt, raw[begin:end]) != each.digest:
            return False
        beside = raw[max(begin - 1, 0) : begin], raw[end : end + 1]
        return not (each.apart and any(_WORD.match(one) for one in beside))

    def _in_sqlite(self, path: Path) -> Iterator[Trace]:
        """Cells one by one: in the file they stand without anything between them, or in the write-ahead log."""
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
            connection.text_factory = bytes
            names = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
            for (name,) in names:
                table = name.decode()
                yield from self.cells(connection.execute(f'select * from "{table}"'), table)


def quoted(cells: Sequence[Any]) -> bytes:
    """Cells of a database as bytes, each between quotes."""
    return b'"' + b'"\n"'.join(_as_bytes(cell) for cell in cells if cell is not None) + b'"'


def _as_bytes(cell: Any) -> bytes:
    if isinstance(cell, bytes | memoryview):
        return bytes(cell)
    return (json.dumps(cell) if isinstance(cell, dict | list) else str(cell)).encode()


def is_sqlite(path: Path) -> bool:
    """Whether a file is a database of SQLite."""
    with path.open("rb") as stream:
        return stream.read(16) == b"SQLite format 3\0"


Part = tuple[str, bytes, bool]


def _parts(raw: bytes) -> Iterator[Part]:
    """What is packed in bytes whose beginning says so: name, bytes, and whether these may pack something again."""
    try:
        if raw[:4] == b"PAR1":
            yield from _in_parquet(raw)
        elif raw[:4] == b"PK\3\4":
            yield from _in_zip(raw)
        elif raw[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(raw)) as stream:
                yield "gzip", stream.read(LARGEST_MEMBER), True
        elif raw[:4] == b"\xff\xff\xff\xff" or raw[:6] == b"ARROW1":
            yield from _in_arrow(raw)
    except (OSError, zipfile.BadZipFile, EOFError, pa.ArrowException, RuntimeError) as error:
        raise Sealed(f"it can not be unpacked: {error}") from None


def _in_parquet(raw: bytes) -> Iterator[Part]:
    with pq.ParquetFile(pa.BufferReader(raw)) as file:
        for batch in file.iter_batches(4096):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                yield from _column(name, column)


def _in_arrow(raw: bytes) -> Iterator[Part]:
    """Texts only, one by one: other columns stand in the file as they are."""
    source = pa.BufferReader(raw)
    if raw[:6] == b"ARROW1":
        file = pa.ipc.open_file(source)
        batches: Iterable[Any] = (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        batches = pa.ipc.open_stream(source)
    for batch in batches:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if _is_text(column.type):
                yield from _column(name, column)


def _column(name: str, column: Any) -> Iterator[Part]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_struct(kind):
        for number, field in enumerate(kind):
            yield from _column(f"{name}.{field.name}", column.field(number))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _column(name, column.flatten())
    elif _is_text(kind):
        yield name, quoted(column.to_pylist()), False
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        yield name, b"\0".join(cell for cell in column.to_pylist() if cell), False
    elif pa.types.is_primitive(kind) and column.buffers()[-1] is not None:
        yield name, column.buffers()[-1].to_pybytes(), False


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _in_zip(raw: bytes) -> Iterator[Part]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                yield member.filename, stream.read(LARGEST_MEMBER), True

"""Rows are found in bytes of every kind by fingerprints alone, and what is not them is not found."""

import base64
import gzip
import io
import json
import sqlite3
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import datasets as ds
from infra import traces

SALT = "salt"
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 12), dtype=np.uint8)
ENCODED = ds.encode(PIXELS)["bytes"]
IDENTITY = "person-0042"


@pytest.fixture
def search():
    marks = traces.of_id(SALT, IDENTITY, apart=True) + traces.of_image(SALT, IDENTITY, ENCODED, PIXELS)
    return traces.Search(SALT, marks)


def kinds(found):
    return sorted({trace.fingerprint.kind for trace in found})


def parquet(compression="zstd", **columns):
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, compression=compression)
    return stream.getvalue()


def zipped(name, content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def arrow(**columns):
    stream = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


CELLS = pa.array([{"bytes": b"other", "path": None}, {"bytes": ENCODED, "path": None}])
HIDDEN = {
    "a file in a file": (b"\x00" * 777 + ENCODED + b"tail", ["image"]),
    "a log line": (f"row {IDENTITY} is bad".encode(), ["id"]),
    "base64 after one byte": (b'{"image": "' + base64.b64encode(b"a" + ENCODED) + b'"}', ["image in base64"]),
    "base64 after two bytes": (base64.b64encode(b"ab" + ENCODED + b"c"), ["image in base64"]),
    "pixels of an array": (PIXELS.tobytes(), ["pixels"]),
    "pixels as floats": ((PIXELS / np.float32(255)).astype(np.float32).tobytes(), ["pixels"]),
    "Parquet": (parquet(image=CELLS, id=["a", IDENTITY]), ["id", "image"]),
    "a list in Parquet": (parquet(neighbours=[["x"], ["y", IDENTITY]]), ["id"]),
    "a dictionary in Parquet": (parquet(who=pa.array(["z", IDENTITY]).dictionary_encode()), ["id"]),
    "Arrow, ids without anything between": (arrow(id=["aaaa", IDENTITY, "bbbb"]), ["id"]),
    "gzip": (gzip.compress(b"x" + ENCODED), ["image"]),
    "zip": (zipped("data/1.bin", ENCODED), ["image"]),
    "Parquet in zip": (zipped("rows.parquet", parquet(id=[IDENTITY])), ["id"]),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_found_wherever_it_is_packed(search, name):
    content, expected = HIDDEN[name]
    assert kinds(search.content(content)) == expected


def test_found_in_a_database_and_in_its_deleted_rows(search, tmp_path):
    path = tmp_path / "kept.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (a text, b text, c blob)")
        connection.execute("insert into t values (?, ?, ?)", ("left", IDENTITY, b"right"))
        connection.execute("insert into t values (?, ?, ?)", ("x" * 50, "y", ENCODED))
    assert kinds(search.file(path)) == ["id", "image"]
    with sqlite3.connect(path) as connection:
        connection.execute("pragma secure_delete = off")
        connection.execute("delete from t")
    assert kinds(search.file(path)) == ["image"], "a free page still holds the bytes"


def test_a_longer_id_and_other_images_are_not_found(search):
    for other in (f"{IDENTITY}7", f"x{IDENTITY}", "person-0043"):
        assert not search.content(json.dumps({"id": other}).encode())
    changed = PIXELS.copy()
    changed[0, 0] ^= 1
    assert not search.content(ds.encode(changed)["bytes"] + changed.tobytes())
    assert not search.content(b"\x00" * 100_000)


def test_short_ids_count_between_quotes_only():
    search = traces.Search(SALT, traces.of_id(SALT, "f3"))
    assert len(search.content(b'["f2", "f3"]')) == 1
    assert len(search.content(b"<td>f3</td>")) == 1
    assert len(search.content(parquet(id=["f3", "f4"]))) == 1
    assert not search.content(b"color: #f3f3f3; f3 f3")


def test_fingerprints_do_not_tell_what_they_stand_for():
    text = json.dumps([mark.model_dump() for mark in traces.of_id(SALT, IDENTITY)])
    assert IDENTITY not in text
    again = traces.of_id("other salt", IDENTITY)[0]
    assert again.digest not in text
    assert again.subject not in text


def test_ids_with_quotes_and_accents_are_found_in_json():
    search = traces.Search(SALT, traces.of_id(SALT, 'Zoë "2" Smith'))
    assert search.content(json.dumps({"id": 'Zoë "2" Smith'}).encode())
    assert search.content('Zoë "2" Smith'.encode())


def test_what_can_not_be_unpacked_is_searched_as_it_is(search):
    with pytest.raises(traces.Sealed, match="can not be unpacked") as caught:
        search.content(b"PAR1" + b"\x07" * 100 + ENCODED)
    assert kinds(caught.value.found) == ["image"]


@given(before=st.binary(max_size=200), after=st.binary(max_size=50), text=st.binary(min_size=16, max_size=300))
def test_whatever_stands_round_it(before, after, text):
    marks = traces.of_image(SALT, "one", text, None)
    found = traces.Search(SALT, marks).content(before + text + after, depth=0)
    assert any(trace.at == len(before) and trace.fingerprint.kind == "image" for trace in found)

"""Data that ask for too much, or for what is not theirs: images that swell, links that lead out, broken tables."""

import io
import json
import os
import resource
import struct
import zipfile
import zlib

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from infra import datasets as ds
from infra.errors import DatasetFormatError
from infra.importing import import_path, read_path

SECRET = b"a secret of this machine"


def png(width, height, rows):
    """A grey PNG that declares a size, and holds `rows` rows of it."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    squeezer, body = zlib.compressobj(9), b""
    for _ in range(rows):
        body += squeezer.compress(bytes(width + 1))
    body += squeezer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(50_000_000))
    return stream.getvalue()


def long_comment():
    """A PNG with a text chunk of 200 MB, packed."""
    whole = png(4, 4, 4)
    text = b"zTXtkey\0\0"[4:] + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return whole[:33] + chunk + whole[33:]


BOMBS = {
    "declares 2^31 squared": lambda: png(2**31 - 1, 2**31 - 1, 0),
    "declares 100 million pixels": lambda: png(10_000, 10_000, 0),
    "holds 64 million pixels in 62 kB": lambda: png(8000, 8000, 8000),
    "declares 49 million, holds none": lambda: png(7000, 7000, 0),
    "a packed archive": zipped,
    "a packed comment": long_comment,
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n",
    "a drawing": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "a PDF": lambda: b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BOMBS)
def test_image_that_swells_is_undecodable(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert ds.decode({"bytes": BOMBS[name](), "path": None}) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 250_000  # kB; what makes the bomb included


def test_swelling_images_are_rows_like_any_other_bad_row(project, tmp_path, capsys):
    from flows.commands.data import check_data

    sound = [ds.encode(each)["bytes"] for each in np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)]
    bombs = [BOMBS[name]() for name in ("declares 2^31 squared", "a packed archive", "declares 49 million, holds none")]
    pd.DataFrame({"image": sound + bombs, "label": -1, "split": "train"}).to_parquet(tmp_path / "t.parquet")
    check_data(str(tmp_path / "t.parquet"), as_json=True)
    found = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["row"], row["reason"]) for row in found] == [
        (row, "image bytes can not be decoded") for row in (30, 31, 32)
    ]


def test_parquet_of_few_bytes_and_more_rows_than_memory(tmp_path, monkeypatch):
    zeros = np.zeros(2_000_000, np.int8)
    pq.write_table(pa.table({f"c{n}": zeros for n in range(4)}), tmp_path / "t.parquet", compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 100_000
    memory = psutil.virtual_memory()._replace(available=50_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(DatasetFormatError, match=r"its 2000000 rows need at least 0.1 GB of memory, 0.1 GB are free"):
        read_path(tmp_path / "t.parquet")


# Links and paths


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "secret.png"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def mine(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        Pillow.fromarray(np.full((4, 4), 9, np.uint8)).save(tmp_path / "mine" / name / "1.png")
    return tmp_path / "mine"


def test_link_out_of_the_folder_is_refused(project, mine, secret):
    (mine / "a" / "2.png").symlink_to(secret)
    with pytest.raises(
        DatasetFormatError, match=r"2.png is a link to .*secret.png, outside .*mine. Copy the file there"
    ):
        import_path(project.versions, mine)
    (mine / "a" / "2.png").unlink()
    (mine / "a" / "2.png").symlink_to(mine / "b" / "1.png")  # one that stays inside is a file like any other
    assert import_path(project.versions, mine).rows == 3
    (mine / "rows.csv").symlink_to(secret)
    with pytest.raises(DatasetFormatError, match=r"rows.csv is a link to"):
        import_path(project.versions, mine)


def test_linked_folders_are_not_followed(project, mine, secret):
    (mine / "c").symlink_to(secret.parent, target_is_directory=True)
    (mine / "circle").symlink_to(mine, target_is_directory=True)
    assert import_path(project.versions, mine).rows == 2


@pytest.mark.parametrize("way", ["absolute", "upwards", "link"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_image_path_out_of_the_folder_is_refused(project, mine, secret, way, kind):
    (mine / "inside.png").symlink_to(secret)
    cell = {"absolute": str(secret), "upwards": "../elsewhere/secret.png", "link": "inside.png"}[way]
    frame = pd.DataFrame({"image": ["a/1.png", cell], "label": ["x", "y"]})
    if kind == "csv":
        frame.to_csv(mine / "t.csv", index=False)
    else:
        frame["image"] = [{"bytes": None, "path": each} for each in frame["image"]]
        frame.to_parquet(mine / "t.parquet")
    with pytest.raises(DatasetFormatError, match=r"Row 1 of .* names the image .* which lies outside .*mine") as error:
        import_path(project.versions, mine / f"t.{kind}")
    assert error.value.rows == [1]
    assert SECRET not in b"".join(p.read_bytes() for p in project.root.rglob("*") if p.is_file())


def test_image_names_that_no_file_has(project, mine):
    strange = ["x" * 5000, "a\0b", "a/1.png/2.png", "", "a"]
    pd.DataFrame({"image": ["a/1.png", *strange], "split": "train"}).to_parquet(mine / "t.parquet")
    folder = project.versions.path(import_path(project.versions, mine / "t.parquet"))
    decoded = [ds.decode(cell) is not None for cell in ds.read_split(folder, "train")["image"]]
    assert decoded == [True] + [False] * 5


def test_pipes_and_folders_with_the_name_of_a_file_are_left_out(project, mine):
    os.mkfifo(mine / "a" / "pipe.png")  # reading one would wait for ever
    os.mkfifo(mine / "pipe.csv")
    (mine / "folder.csv").mkdir()
    assert import_path(project.versions, mine).rows == 2


def test_file_names_that_are_no_text(project, mine):
    name = b"b/\xff\xfe name \xe9.png"
    (mine / "b" / "1.png").rename(os.fsdecode(os.fsencode(mine) + b"/" + name))
    ref = import_path(project.versions, mine)
    folder = project.versions.path(ref)
    found = {identity for split in ds.splits_of(folder) for identity in ds.ids(ds.read_split(folder, split))}
    assert found == {"a/1.png", r"b/\xff\xfe name \xe9.png"}


# Formats


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00text",
        b'a,b\n1,"2\n' * 3,
        b"a,b\n1,2,3,4\n5\n",
        b"\0" * 100,
        b"a,b\n1,2\n3,4,5\n",
        b"id,id,label\n1,2,3\n",
    ],
    ids=["encoding", "quote", "ragged", "nulls", "longer", "twice"],
)
def test_broken_csv_is_one_message(tmp_path, project, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DatasetFormatError, match=r"t\.csv (can not be read as csv|holds no rows)"):
        import_path(project.versions, tmp_path / "t.csv")
    assert project.versions.list() == []


def test_footers_that_lie(tmp_path, project):
    pd.DataFrame({"width": np.arange(1000.0), "label": 0}).to_parquet(tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        torn = bytearray(whole)
        for at in rng.integers(len(whole) - 800, len(whole) - 8, 3):
            torn[at] = rng.integers(256)
        (tmp_path / "t.parquet").write_bytes(torn)
        try:
            read_path(tmp_path / "t.parquet")
        except DatasetFormatError as error:
            assert "can not be read as parquet" in str(error) or "must be numeric" in str(error)

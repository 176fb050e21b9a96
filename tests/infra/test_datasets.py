"""Datasets survive being written and read; what can not be used is named with its row and id."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from sklearn.datasets import load_digits

from infra import datasets as ds
from infra.errors import DatasetFormatError
from infra.files import folder_digest

NAMES = ["cat", "dog"]


def images(n=4, size=(6, 5), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *size), dtype=np.uint8)
    return pixels, [ds.encode(each) for each in pixels]


def image_rows(cells, **columns):
    n = len(cells)
    rows = {"id": [f"r{i}" for i in range(n)], "image": cells, "label": [i % 2 for i in range(n)]} | columns
    kinds = {"id": Value("string"), "image": Image(decode=False), "label": ClassLabel(names=NAMES)}
    kinds |= {name: Value("string") for name in columns if name not in kinds}
    return Dataset.from_dict(rows, features=Features(kinds))


@pytest.mark.parametrize("shard_rows", [2, 3, 100])
def test_split_survives_writing_and_reading(tmp_path, shard_rows):
    pixels, cells = images(5)
    data = image_rows(cells, extra=list("vwxyz"))
    assert ds.write_split(data, tmp_path, "train", shard_rows) == 5
    assert len(list((tmp_path / "train").glob("*.parquet"))) == -(-5 // shard_rows)
    found = ds.read_split(tmp_path, "train")
    assert found.column_names == data.column_names
    assert found.features["label"].names == NAMES
    assert ds.ids(found) == ["r0", "r1", "r2", "r3", "r4"]
    assert list(found["extra"]) == list("vwxyz")
    assert all(np.array_equal(ds.decode(cell), each) for cell, each in zip(found["image"], pixels, strict=True))
    assert ds.count_rows(tmp_path) == 5


def test_writing_is_repeatable_to_the_byte(tmp_path):
    _, cells = images(5)
    for folder in ("a", "b"):
        ds.write_split(image_rows(cells), tmp_path / folder, "train")
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")


def test_empty_split_keeps_its_columns(tmp_path):
    ds.write_split(image_rows(images(2)[1]).select([]), tmp_path, "train")
    found = ds.read_split(tmp_path, "train")
    assert (len(found), found.features["label"].names) == (0, NAMES)


def test_missing_and_unreadable_splits_are_named(tmp_path):
    with pytest.raises(DatasetFormatError, match=r"no split 'train'; it has none"):
        ds.read_split(tmp_path, "train")
    ds.write_split(image_rows(images(2)[1]), tmp_path, "test")
    with pytest.raises(DatasetFormatError, match=r"no split 'train'; it has test"):
        ds.read_split(tmp_path, "train")
    (tmp_path / "test" / "part-00000.parquet").write_bytes(b"PAR1 no, not really")
    with pytest.raises(DatasetFormatError, match=r"shards of 'test' .* can not be read"):
        ds.read_split(tmp_path, "test")


def test_splits_are_copied_byte_for_byte(tmp_path):
    for split in ("train", "test", "target"):
        ds.write_split(image_rows(images(3)[1]), tmp_path / "from", split, shard_rows=2)
    assert ds.copy_splits(tmp_path / "from", tmp_path / "to", ["train", "test"]) == 6
    assert ds.splits_of(tmp_path / "to") == ["test", "train"]
    for split in ("train", "test"):
        assert folder_digest(tmp_path / "to" / split) == folder_digest(tmp_path / "from" / split)


def test_columns_are_added_and_replaced(tmp_path):
    data = image_rows(images(3)[1])
    found = ds.with_columns(ds.with_columns(data, {"noisy": [True, False, True]}), {"noisy": [False] * 3})
    assert list(found["noisy"]) == [False] * 3
    assert "noisy" not in data.column_names


def test_schema_of_images_is_what_most_look_like(tmp_path):
    cells = images(5)[1] + images(1, (9, 9))[1] + [{"bytes": b"broken", "path": None}]
    ds.write_split(image_rows(cells), tmp_path, "train")
    ds.write_split(image_rows(images(2)[1]), tmp_path, "target")
    schema = ds.infer_schema(tmp_path)
    assert (schema.kind, schema.image_size, schema.channels) == ("image", (6, 5), 1)
    assert (schema.label_names, schema.n_classes, schema.splits) == (("cat", "dog"), 2, ("target", "train"))


def test_schema_of_colour_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 3), dtype=np.uint8)
    ds.write_split(image_rows([ds.encode(each) for each in pixels]), tmp_path, "train")
    schema = ds.infer_schema(tmp_path)
    assert (schema.image_size, schema.channels) == ((4, 3), 3)
    found = ds.inputs(ds.read_split(tmp_path, "train"), schema)
    assert np.allclose(found, pixels.transpose(0, 3, 1, 2) / 255)


def test_schema_of_tables_leaves_out_reserved_columns_flags_and_text(tmp_path):
    rows = {
        "id": ["a"],
        "label": [0],
        "domain": ["x"],
        "width": [1.5],
        "count": [3],
        "note": ["n"],
        "confidence": [0.5],
    }
    ds.write_split(Dataset.from_dict(rows), tmp_path, "train")
    schema = ds.infer_schema(tmp_path)
    assert (schema.kind, schema.features, schema.n_classes) == ("table", ("width", "count"), 0)
    found = ds.inputs(ds.read_split(tmp_path, "train"), schema)
    assert (found.dtype, found.tolist()) == (np.float32, [[1.5, 3.0]])


def test_schema_of_text(tmp_path):
    ds.write_split(Dataset.from_dict({"id": ["a"], "text": ["hello"]}), tmp_path, "train")
    schema = ds.infer_schema(tmp_path)
    assert schema.kind == "text"
    with pytest.raises(DatasetFormatError, match=r"no numeric inputs of their own. Add embedding columns"):
        ds.inputs(ds.read_split(tmp_path, "train"), schema)


def test_schema_of_nothing_and_of_rubbish(tmp_path):
    with pytest.raises(DatasetFormatError, match="holds no dataset"):
        ds.infer_schema(tmp_path)
    ds.write_split(image_rows([{"bytes": b"broken", "path": None}] * 2), tmp_path, "train")
    with pytest.raises(DatasetFormatError, match="None of the first images of 'train' can be decoded"):
        ds.infer_schema(tmp_path)


def test_inputs_are_pixels_between_0_and_1():
    pixels, cells = images(3)
    schema = ds.Schema(kind="image", image_size=(6, 5))
    found = ds.inputs(image_rows(cells), schema)
    assert (found.dtype, found.shape) == (np.float32, (3, 1, 6, 5))
    assert np.allclose(found[:, 0] * 255, pixels)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (images(1, (4, 4))[1][0], r"Row 2 \(id 'r2'\) holds an image shaped \(4, 4\), expected \(6, 5\)"),
        ({"bytes": images(1)[1][0]["bytes"][:40], "path": None}, r"Row 2 \(id 'r2'\) holds bytes that can not be"),
        (None, r"Row 2 \(id 'r2'\) holds bytes that can not be decoded"),
    ],
)
def test_unusable_image_is_named_by_row_and_id(cell, message):
    data = image_rows([*images(2)[1], cell])
    with pytest.raises(DatasetFormatError, match=message) as error:
        ds.inputs(data, ds.Schema(kind="image", image_size=(6, 5)))
    assert error.value.row == 2


def test_labels_and_missing_ones():
    data = Dataset.from_dict({"id": ["a", None], "label": [1, None]})
    assert ds.labels(data).tolist() == [1, -1]
    assert ds.labels(data, "corrected_label").tolist() == [-1, -1]
    assert ds.ids(data) == ["a", None]


@pytest.mark.parametrize("cell", [None, {}, {"bytes": None}, {"bytes": b""}, {"bytes": b"\x89PNG\r\n\x1a\n"}])
def test_what_is_no_image_decodes_to_none(cell):
    assert ds.decode(cell) is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_decodes_to_grey_or_colour(mode):
    stream = io.BytesIO()
    Pillow.new(mode, (5, 6)).save(stream, format="TIFF")
    image = ds.decode({"bytes": stream.getvalue()})
    assert image is not None
    assert image.shape == ((6, 5) if mode in ("1", "L", "I;16") else (6, 5, 3))
    assert image.dtype == np.uint8


FORMATS = {}
for _name in ("PNG", "JPEG", "BMP", "GIF"):
    _stream = io.BytesIO()
    Pillow.fromarray(images(1, (16, 16))[0][0]).save(_stream, format=_name)
    FORMATS[_name] = _stream.getvalue()


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_damaged_images_never_raise(name, data):
    content = bytearray(FORMATS[name])
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    image = ds.decode({"bytes": bytes(content[: data.draw(st.integers(0, len(content)))])})
    assert image is None or image.dtype == np.uint8


def test_truncated_images_are_seen():
    for name in ("PNG", "JPEG", "BMP"):
        assert ds.decode({"bytes": FORMATS[name]}) is not None
        assert ds.decode({"bytes": FORMATS[name][: len(FORMATS[name]) // 2]}) is None


def test_image_as_large_as_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 20)
    assert ds.decode({"bytes": FORMATS["PNG"]}) is None


@pytest.fixture
def shards(tmp_path):
    """50 rows of real digits over three shards in several row groups, with an unknown column and missing values."""
    digits = load_digits()
    images = (digits.images[:50] * 15).astype(np.uint8)
    columns = {
        "id": [None if row == 7 else f"r{row}" for row in range(50)],
        "image": [ds.encode(image) for image in images],
        "label": [int(label) for label in digits.target[:50]],
        "note": [f"note {row}" for row in range(50)],
    }
    kinds = {"id": Value("string"), "image": Image(decode=False), "label": ClassLabel(names=list("0123456789"))}
    data = Dataset.from_dict(columns, features=Features(kinds | {"note": Value("string")}))
    for number, part in enumerate((range(20), range(20, 21), range(21, 50))):
        (tmp_path / "train").mkdir(exist_ok=True)
        data.select(part).to_parquet(str(tmp_path / "train" / f"part-{number:05d}.parquet"), batch_size=8)
    return tmp_path


def test_a_split_read_in_parts_is_the_split_read_at_once(shards, monkeypatch):
    monkeypatch.setattr(ds, "BATCH_BYTES", 1000)
    whole, split = ds.read_split(shards, "train"), ds.Split(shards, "train")
    assert len(split) == 50
    assert split.features == whole.features
    parts = list(split.parts())
    assert len(parts) > 3
    assert max(part.nbytes for part in parts) < 4000
    assert [row for part in parts for row in part.to_pylist()] == whole.data.table.to_pylist()
    assert ds.ids(split) == ds.ids(whole)
    assert ds.labels(split).tolist() == ds.labels(whole).tolist()
    assert ds.labels(split, "absent").tolist() == [-1] * 50


def test_rows_are_taken_in_the_order_asked_for(shards):
    split = ds.Split(shards, "train")
    taken = split.take([49, 0, 20, 20, 7])
    assert taken["note"] == [f"note {row}" for row in (49, 0, 20, 20, 7)]
    assert ds.inputs(taken, ds.infer_schema(shards)).shape == (5, 1, 8, 8)
    assert len(split.take([])) == 0


@pytest.mark.parametrize("limits", [{}, {"SHARD_ROWS": 15}, {"SHARD_BYTES": 2000, "BATCH_BYTES": 1000}])
def test_rows_are_left_out_in_one_pass(shards, tmp_path, monkeypatch, limits):
    for name, value in limits.items():
        monkeypatch.setattr(ds, name, value)
    keep = np.ones(50, dtype=bool)
    keep[[0, 19, 33]] = False
    assert ds.Split(shards, "train").write(tmp_path / "out", keep) == 47
    written = ds.read_split(tmp_path / "out", "train")
    assert written["note"] == [f"note {row}" for row in np.flatnonzero(keep)]
    assert written.features == ds.read_split(shards, "train").features
    assert len(list((tmp_path / "out" / "train").iterdir())) >= (3 if limits else 1)
    assert ds.Split(shards, "train").write(tmp_path / "none", np.zeros(50, dtype=bool)) == 0
    assert len(ds.read_split(tmp_path / "none", "train")) == 0


def test_a_damaged_shard_is_named_also_when_streamed(shards):
    shard = shards / "train" / "part-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(DatasetFormatError, match=r"'train' .* can not be read"):
        list(ds.Split(shards, "train").parts())

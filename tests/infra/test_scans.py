"""The shipped dataset holds exactly what its truth table says, and says nothing of it itself.

Reads ``data/``, which ``dvc pull`` brings.
"""

import io
import re
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.build_scans import BROKEN, CONFUSED_WITH, SOURCES, compose, write
from benchmarks.data import Digits, Split

DATA = Path(__file__).resolve().parents[2] / "data"
ROWS = {"train": 7610, "unlabelled": 6000, "test": 2000, "target": 1797}


def read(path):
    if not path.is_file():
        pytest.fail(f"{path.relative_to(DATA.parent)} is missing: run `dvc pull` first")
    return pd.read_parquet(path)


def decode(cell):
    with Image.open(io.BytesIO(cell["bytes"])) as image:
        image.load()
        return np.asarray(image)


@pytest.fixture(scope="module")
def scans():
    return {split: read(DATA / "scans" / split / "part-00000.parquet") for split in ROWS}


@pytest.fixture(scope="module")
def truth():
    table = read(DATA / "truth" / "scans.parquet")
    return {split: rows.reset_index(drop=True) for split, rows in table.groupby("split")}


@pytest.fixture(scope="module")
def train(scans, truth):
    """Train rows beside their truth, with decoded pixels where they can be decoded."""
    rows = scans["train"].join(truth["train"].drop(columns=["id", "split"]))
    whole = rows["broken"] != "truncated bytes"
    rows["pixels"] = [decode(cell) if ok else None for cell, ok in zip(rows["image"], whole, strict=True)]
    return rows


@pytest.fixture(scope="module")
def ordinary(train):
    extra = train["intruder"] | train["leak"] | (train["duplicate_kind"] != "") | (train["broken"] != "")
    return train[~extra]


def test_rows_and_columns(scans, truth):
    for split, rows in ROWS.items():
        assert len(scans[split]) == len(truth[split]) == rows
        assert list(scans[split].columns) == ["id", "image", "label", "domain", "split", "source"]
        assert truth[split]["row"].tolist() == list(range(rows))
        pd.testing.assert_series_equal(scans[split]["id"], truth[split]["id"])


def test_ingredients_are_counted(train, ordinary):
    assert len(ordinary) == 6000
    assert train["intruder"].sum() == 900
    assert Counter(train["duplicate_kind"]) == {"": 7010, "exact": 300, "near": 300}
    assert train["leak"].sum() == 50
    assert Counter(train["broken"]) == {"": 7550} | dict.fromkeys(BROKEN, 10)


def test_nothing_else_is_wrong_outside_train(truth):
    for split in ("unlabelled", "test", "target"):
        rows = truth[split]
        assert not rows[["mislabelled", "intruder", "leak"]].any(axis=None)
        assert (rows["broken"] == "").all() and (rows["duplicate_kind"] == "").all()


def test_constant_columns_and_opaque_ids_tell_nothing(scans):
    for split, rows in scans.items():
        assert set(rows["split"]) == {split}
        assert set(rows["source"]) == {SOURCES[split]}
        assert set(rows["domain"]) == {"scanner-b" if split == "target" else "scanner-a"}
        assert all(cell["path"] is None for cell in rows["image"])
        assert all(re.fullmatch(r"a-[0-9a-f]{12}", name) for name in rows["id"].dropna())


def test_ids_are_unique_save_the_broken_ones(scans, train):
    everything = pd.concat([rows["id"] for rows in scans.values()])
    assert everything.isna().sum() == 10
    repeated = train.loc[train["broken"] == "repeated id", "id"]
    assert (everything.value_counts()[repeated] == 2).all()
    assert everything.dropna().nunique() == len(everything) - 10 - 10


def test_order_tells_nothing(train):
    halves = np.arange(len(train)) < len(train) // 2
    for wrong in (train["intruder"], train["duplicate_kind"] != "", train["mislabelled"]):
        assert 0.42 < (wrong & halves).sum() / wrong.sum() < 0.58
    sorted_rows = (train["label"].diff() >= 0).mean()
    assert 0.5 < sorted_rows < 0.63


def test_a_quarter_of_the_labels_is_wrong_in_the_documented_way(ordinary):
    wrong = ordinary[ordinary["label"] != ordinary["true_label"]]
    assert len(wrong) == 1500
    assert wrong["mislabelled"].all() and ordinary["mislabelled"].sum() == 1500
    assert (wrong["true_label"].map(CONFUSED_WITH) == wrong["label"]).all()
    rates = ordinary.groupby("true_label")["mislabelled"].mean()
    assert rates.between(0.20, 0.30).all()


def test_classes_are_balanced(ordinary, scans, truth):
    assert ordinary["true_label"].value_counts().to_dict() == dict.fromkeys(range(8), 750)
    assert truth["unlabelled"]["true_label"].value_counts().to_dict() == dict.fromkeys(range(8), 750)
    assert scans["test"]["label"].value_counts().to_dict() == dict.fromkeys(range(8), 250)
    assert (scans["test"]["label"] == truth["test"]["true_label"]).all()


def test_intruders_carry_any_digit(train):
    strangers = train[train["intruder"]]
    assert (strangers["true_label"] == -1).all()
    assert strangers["label"].value_counts().reindex(range(8)).between(70, 155).all()
    assert strangers["origin"].str.startswith("fashion-mnist/train/").all()


def test_duplicates_point_at_ordinary_rows(train, ordinary):
    originals = ordinary.drop_duplicates("id", keep=False).set_index("id")
    copies = train[train["duplicate_kind"] != ""]
    assert copies["duplicate_of"].is_unique
    for copy, first in zip(copies.itertuples(), originals.loc[copies["duplicate_of"]].itertuples(), strict=True):
        assert copy.label == first.label and copy.true_label == first.true_label
        same = np.array_equal(copy.pixels, first.pixels)
        assert same if copy.duplicate_kind == "exact" else not same
        if copy.duplicate_kind == "near":
            assert closest_shift(copy.pixels, first.pixels) > 0.9


def closest_shift(copy, first):
    """Highest correlation with `first` over shifts of up to two pixels."""
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    return max(np.corrcoef(copy.ravel(), np.roll(first, shift, (0, 1)).ravel())[0, 1] for shift in shifts)


def test_leaked_rows_equal_their_test_rows(train, scans):
    test_rows = scans["test"].set_index("id")
    leaks = train[train["leak"]]
    assert leaks["leak_of"].is_unique
    for leak in leaks.itertuples():
        original = test_rows.loc[leak.leak_of]
        assert leak.label == original["label"]
        assert np.array_equal(leak.pixels, decode(original["image"]))


def test_no_other_image_stands_twice(scans, train):
    original = train[(train["duplicate_kind"] == "") & ~train["leak"] & train["pixels"].notna()]
    images = [pixels.tobytes() for pixels in original["pixels"]]
    images += [decode(cell).tobytes() for split in ("unlabelled", "test") for cell in scans[split]["image"]]
    assert len(images) == 6000 + 900 + 50 + 6000 + 2000  # all but the truncated ten of the broken
    assert len(set(images)) == len(images)


def test_images_decode_save_the_truncated_ones(train, scans):
    for cell in train.loc[train["broken"] == "truncated bytes", "image"]:
        with pytest.raises((OSError, SyntaxError)):
            decode(cell)
    sizes = train.loc[train["pixels"].notna(), ["pixels", "broken"]]
    odd = sizes["broken"] == "wrong size"
    assert all(pixels.shape != (28, 28) for pixels in sizes.loc[odd, "pixels"])
    assert all(pixels.shape == (28, 28) and pixels.dtype == np.uint8 for pixels in sizes.loc[~odd, "pixels"])
    for split in ("unlabelled", "test", "target"):
        assert all(decode(cell).shape == (28, 28) for cell in scans[split]["image"])


def test_broken_rows_are_broken_as_told(train):
    broken = train.groupby("broken")
    assert all(np.ptp(pixels) == 0 for pixels in broken.get_group("blank image")["pixels"])
    assert broken.get_group("missing id")["id"].isna().all()
    stray = broken.get_group("label out of range")["label"]
    assert ((stray < -1) | (stray >= 8)).all()
    assert train.drop(stray.index)["label"].between(0, 7).all()


def test_unlabelled_and_target_have_no_labels(scans, truth):
    assert (scans["unlabelled"]["label"] == -1).all()
    assert (scans["target"]["label"] == -1).all()
    target = truth["target"]
    assert set(target["target_label"]) == set(range(10))
    known = target["target_label"] < 8
    assert (target.loc[known, "true_label"] == target.loc[known, "target_label"]).all()
    assert (target.loc[~known, "true_label"] == -1).all() and (~known).sum() == 174 + 180


def test_erasure_names_ordinary_rows_that_have_no_copy(train, ordinary):
    forgotten = read(DATA / "erasure" / "scans.parquet")["id"]
    assert len(forgotten) == forgotten.nunique() == 120
    assert forgotten.isin(ordinary["id"]).all()
    assert not forgotten.isin(train["duplicate_of"]).any()
    assert (train["id"].value_counts()[forgotten] == 1).all()


def test_reads_back_with_its_features(tmp_path):
    path = DATA / "scans" / "train" / "part-00000.parquet"
    data = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path))
    assert data.features["label"].names == [str(digit) for digit in range(8)]
    assert isinstance(data.features["image"], datasets.Image)
    assert data[0]["image"].size == (28, 28)


def drawings(count, size, labels, seed):
    """Images that compress well and differ from each other: the row number in black and white, plus its seed."""
    images = np.zeros((count, size, size), np.uint8)
    bits = (np.arange(count)[:, None] >> np.arange(20)) & 1
    flat = images.reshape(count, -1)
    flat[:, :20], flat[:, 20] = bits * 255, seed
    return images, np.arange(count) % labels


def test_equal_seeds_give_equal_bytes(tmp_path):
    handwriting = Split(*drawings(20_000, 28, 10, 1), *drawings(4_000, 28, 10, 2))
    clothes = Split(*drawings(2_000, 28, 10, 3), *drawings(10, 28, 10, 4))
    other = Digits(*drawings(1_797, 8, 10, 5))
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        write(compose(handwriting, clothes, other, seed), tmp_path / name)
    names = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*")]
    assert len(names) == 7
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    shard = "scans/train/part-00000.parquet"
    assert (tmp_path / "first" / shard).read_bytes() != (tmp_path / "other" / shard).read_bytes()

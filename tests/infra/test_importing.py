"""A user's own data become a version; what is wrong with them is named by row and id."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from infra import datasets as ds
from infra.errors import DatasetFormatError, DatasetNotFoundError
from infra.importing import import_path, read_path, unpacked
from infra.versions import DataVersions


@pytest.fixture
def versions(tmp_path):
    return DataVersions(tmp_path / "project")


@pytest.fixture
def imported(versions):
    """Import a path; returns the reference, and the rows of every split as one frame each."""

    def read(path, name=None):
        ref = import_path(versions, path, name)
        folder = versions.path(ref)
        return ref, {split: ds.read_split(folder, split).to_pandas() for split in ds.splits_of(folder)}

    return read


def picture(path, value=100, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Pillow.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    return path


def table(n=40, **columns):
    rng = np.random.default_rng(0)
    return pd.DataFrame({"width": rng.normal(size=n), "height": rng.normal(size=n)} | columns)


def test_folders_named_after_classes(tmp_path, imported, versions):
    for n in range(12):
        picture(tmp_path / "my pets" / ("cat" if n % 2 else "dog") / f"{n}.png", n)
    picture(tmp_path / "my pets" / "loose.jpg", 99)
    (tmp_path / "my pets" / "notes.txt").write_text("no image")
    ref, splits = imported(tmp_path / "my pets")
    assert (ref.name, ref.rows) == ("my-pets", 13)
    assert set(splits) <= {"train", "test", "unlabelled"}
    assert splits["unlabelled"]["id"].tolist() == ["loose.jpg"]
    rows = pd.concat(splits.values())
    named = rows[rows["label"] >= 0]
    assert all((row.id.split("/")[0] == ("cat", "dog")[row.label]) for row in named.itertuples())
    schema = ds.infer_schema(versions.path(ref))
    assert (schema.kind, schema.image_size, schema.label_names) == ("image", (6, 6), ("cat", "dog"))


def test_folders_with_splits(tmp_path, imported):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / "pets" / split / name / "1.png")
    picture(tmp_path / "pets" / "target" / "5.png")
    picture(tmp_path / "pets" / "unlabelled" / "anything" / "6.png")
    _, splits = imported(tmp_path / "pets")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2, "test": 2, "target": 1, "unlabelled": 1}
    assert splits["target"]["label"].tolist() == splits["unlabelled"]["label"].tolist() == [-1]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_of_features_with_named_labels(tmp_path, imported, versions, kind):
    frame = table(label=["red", "green"] * 20, id=[f"p{n:03d}" for n in range(40)])
    path = tmp_path / f"Flowers.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    ref, splits = imported(path)
    assert (ref.name, ref.rows) == ("flowers", 40)
    assert set(splits) == {"train", "test"}
    rows = pd.concat(splits.values()).set_index("id").loc[frame["id"]]
    assert np.allclose(rows["width"], frame["width"])
    assert rows["label"].tolist() == [1, 0] * 20
    schema = ds.infer_schema(versions.path(ref))
    assert (schema.kind, schema.features, schema.label_names) == ("table", ("width", "height"), ("green", "red"))
    assert rows["domain"].unique() == ["default"]
    assert rows["source"].unique() == [path.name]


def test_numbered_labels_stay_numbers(tmp_path, imported, versions):
    table(label=[0, 3, None, -1] * 10).to_csv(tmp_path / "t.csv", index=False)
    ref, splits = imported(tmp_path / "t.csv")
    assert len(splits["unlabelled"]) == 20
    assert set(pd.concat([splits["train"], splits["test"]])["label"]) == {0, 3}
    assert ds.infer_schema(versions.path(ref)).label_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(("label", "shown"), [(123456789, r"1\.23457e\+08"), (-2, "-2")])
def test_labels_that_can_not_count_classes(tmp_path, imported, label, shown):
    table(label=[0, 1, -1, label] * 10).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DatasetFormatError, match=rf"label of row 3 \(id .*\) is {shown}.*give names otherwise"):
        imported(tmp_path / "t.csv")


def test_labels_that_are_no_whole_numbers_are_names(tmp_path, imported, versions):
    table(4, label=["1.5", "inf", "-7", "1.5"], split="train").to_csv(tmp_path / "t.csv", index=False)
    assert ds.infer_schema(versions.path(imported(tmp_path / "t.csv")[0])).label_names == ("-7.0", "1.5", "inf")


def test_data_without_labels_are_unlabelled(tmp_path, imported):
    table().to_csv(tmp_path / "t.csv", index=False)
    _, splits = imported(tmp_path / "t.csv")
    assert {name: len(rows) for name, rows in splits.items()} == {"unlabelled": 40}


def test_ids_keep_leading_zeros_and_whole_numbers(tmp_path, imported, versions):
    table(3, id=["001", "002", "003"], split="train").to_csv(tmp_path / "a.csv", index=False)
    assert imported(tmp_path / "a.csv")[1]["train"]["id"].tolist() == ["001", "002", "003"]
    table(3, id=[1, 2, None], split="train").to_parquet(tmp_path / "b.parquet")
    ref, _ = imported(tmp_path / "b.parquet")
    assert ds.ids(ds.read_split(versions.path(ref), "train")) == ["1", "2", None]


def test_absent_ids_are_made_from_the_content_and_stay(tmp_path):
    frame = table(6)
    frame = pd.concat([frame, frame.iloc[:2]], ignore_index=True)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.iloc[::-1].to_csv(tmp_path / "back.csv", index=False)
    first, back = read_path(tmp_path / "t.csv"), read_path(tmp_path / "back.csv")
    assert first["id"].is_unique
    assert set(first["id"]) == set(back["id"])
    assert read_path(tmp_path / "t.csv")["id"].tolist() == first["id"].tolist()


def test_one_labelled_row_in_five_becomes_test_and_keeps_its_place_when_rows_are_added(tmp_path):
    frame = table(600, label=[0, 1, 2] * 200, id=[f"r{n}" for n in range(600)])
    frame.iloc[:500].to_csv(tmp_path / "before.csv", index=False)
    frame.to_csv(tmp_path / "after.csv", index=False)
    before, after = (read_path(tmp_path / f"{name}.csv").set_index("id")["split"] for name in ("before", "after"))
    assert after[before.index].equals(before)
    assert 0.14 < (before == "test").mean() < 0.26
    assert set(before) == {"train", "test"}


def test_given_splits_are_kept_and_gaps_filled(tmp_path):
    table(4, label=[0, 1, 0, None], split=["test", "train", "target", None]).to_csv(tmp_path / "t.csv", index=False)
    assert read_path(tmp_path / "t.csv")["split"].tolist() == ["test", "train", "target", "unlabelled"]


def test_files_below_folders_named_after_splits(tmp_path, imported):
    for split in ("train", "test"):
        (tmp_path / "t" / split).mkdir(parents=True)
        table(5, label=[0, 1, 0, 1, 0]).to_parquet(tmp_path / "t" / split / "part-0.parquet")
    _, splits = imported(tmp_path / "t")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 5, "test": 5}


def test_unknown_split_is_named_with_its_row(tmp_path):
    table(3, split=["train", "valid", "valid"]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(
        DatasetFormatError, match=r"'split' holds 'valid' in row 1 \(id .*\) and 1 more; it may be train"
    ) as error:
        read_path(tmp_path / "t.csv")
    assert error.value.rows == [1, 2]


def test_feature_that_is_no_number_is_named_with_rows_and_ids(tmp_path, imported):
    frame = table(5, id=[f"r{n}" for n in range(5)], colour=["1", "red", "2", "blue", None])
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(
        DatasetFormatError, match=r"'colour' must be numeric; 2 rows are not: row 1 \(id r1\): 'red', row 3"
    ):
        imported(tmp_path / "t.csv")


def test_images_named_in_a_csv(tmp_path, imported):
    for n in range(3):
        picture(tmp_path / "pictures" / f"{n}.png", n)
    rows = {"image": ["pictures/0.png", "pictures/1.png", "pictures/no.png", "pictures", None], "split": "train"}
    pd.DataFrame(rows | {"label": ["a", "b", "a", "b", "a"], "weight": range(5)}).to_csv(
        tmp_path / "t.csv", index=False
    )
    _, splits = imported(tmp_path / "t.csv")
    decoded = [ds.decode(cell) is not None for cell in splits["train"]["image"]]
    assert decoded == [True, True, False, False, False]  # validation finds the others
    assert splits["train"]["weight"].tolist() == [0, 1, 2, 3, 4]  # further columns pass through


def test_images_of_which_none_is_there(tmp_path, imported):
    pd.DataFrame({"image": [None, None], "id": ["a", "b"]}).to_csv(tmp_path / "t.csv", index=False)
    _, splits = imported(tmp_path / "t.csv")
    assert [ds.decode(cell) for cell in splits["unlabelled"]["image"]] == [None, None]


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"bytes": b, "path": "a.png"}])
def test_images_inside_parquet(tmp_path, imported, wrap):
    content = picture(tmp_path / "a.png").read_bytes()
    frame = pd.DataFrame({"image": [wrap(content)] * 2, "id": ["a", "b"], "split": "train", "label": ["x", "y"]})
    frame.to_parquet(tmp_path / "t.parquet")
    _, splits = imported(tmp_path / "t.parquet")
    assert [cell["bytes"] for cell in splits["train"]["image"]] == [content] * 2


def test_text_and_missing_text(tmp_path, imported, versions):
    frame = pd.DataFrame({"text": ["good", None, "bad"], "label": ["pos", "neg", "neg"], "split": "train"})
    frame.to_csv(tmp_path / "reviews.csv", index=False)
    ref, splits = imported(tmp_path / "reviews.csv")
    assert splits["train"]["text"].isna().tolist() == [False, True, False]
    assert ds.infer_schema(versions.path(ref)).kind == "text"


def test_same_data_are_the_same_version(tmp_path, imported):
    table(label=[0, 1] * 20).to_csv(tmp_path / "t.csv", index=False)
    assert imported(tmp_path / "t.csv")[0] == imported(tmp_path / "t.csv")[0]


@pytest.mark.parametrize(("file", "name"), [("Ab c!.csv", "ab-c"), ("..x.csv", "x"), ("é.csv", "data")])
def test_name_is_made_from_the_path(tmp_path, imported, file, name):
    table().to_csv(tmp_path / file, index=False)
    assert imported(tmp_path / file)[0].name == name


def test_nothing_there_empty_unreadable_and_of_no_use(tmp_path, imported):
    with pytest.raises(DatasetNotFoundError, match=r"There is nothing at .*absent"):
        imported(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetFormatError, match=r"holds neither .parquet nor .csv files nor images"):
        imported(tmp_path / "empty")
    (tmp_path / "rows.csv").write_text("width,height\n")
    with pytest.raises(DatasetFormatError, match="holds no rows"):
        imported(tmp_path / "rows.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetFormatError, match=r"broken\.parquet can not be read as parquet"):
        imported(tmp_path / "broken.parquet")
    (tmp_path / "void.csv").write_text("")
    with pytest.raises(DatasetFormatError, match=r"void\.csv can not be read as csv"):
        imported(tmp_path / "void.csv")
    (tmp_path / "only.csv").write_text("id,label\na,1\n")
    with pytest.raises(DatasetFormatError, match="no column image or text, and no feature columns"):
        imported(tmp_path / "only.csv")


def test_data_can_be_looked_at_without_a_version_and_rows_are_those_of_the_users_files(tmp_path, versions):
    (tmp_path / "mine").mkdir()
    table(3, split=["train", "test", "train"]).to_csv(tmp_path / "mine" / "a.csv", index=False)
    table(2, split=["test", "train"], id=["x", "y"]).to_parquet(tmp_path / "mine" / "b.parquet")
    with unpacked(tmp_path / "mine", tmp_path / "looked_at") as (folder, places):
        assert places == {
            "train": [("a.csv", 0), ("a.csv", 2), ("b.parquet", 1)],
            "test": [("a.csv", 1), ("b.parquet", 0)],
        }
        assert ds.ids(ds.read_split(folder, "train"))[2] == "y"
    assert not [p for p in (tmp_path / "looked_at").rglob("*") if p.is_file()]
    assert versions.list() == []
    for n in range(2):
        picture(tmp_path / "pets" / "cat" / f"{n}.png", n)
    with unpacked(tmp_path / "pets", tmp_path / "looked_at") as (_, places):
        assert sorted(place for found in places.values() for place in found) == [
            ("cat/0.png", None),
            ("cat/1.png", None),
        ]


def test_messages_name_the_file_of_a_row_when_there_are_several(tmp_path, imported):
    (tmp_path / "mine").mkdir()
    table(3, id=list("abc")).to_csv(tmp_path / "mine" / "a.csv", index=False)
    table(2, id=list("de")).assign(width=["1", "wet"]).to_csv(tmp_path / "mine" / "b.csv", index=False)
    with pytest.raises(DatasetFormatError, match=r"'width' must be numeric; .* row 1 of b.csv \(id e\): 'wet'"):
        imported(tmp_path / "mine")


def test_class_names_of_a_files_own_come_with_it(tmp_path, imported, versions):
    from datasets import ClassLabel, Dataset, Features, Value

    kinds = Features(
        {"id": Value("string"), "width": Value("float32"), "label": ClassLabel(names=["zebra", "7", "ant"])}
    )
    rows = Dataset.from_dict({"id": list("abcd"), "width": [1.0] * 4, "label": [2, 0, -1, None]}, features=kinds)
    rows.to_parquet(str(tmp_path / "t.parquet"))
    ref, splits = imported(tmp_path / "t.parquet")
    assert ds.infer_schema(versions.path(ref)).label_names == ("zebra", "7", "ant")
    labels = pd.concat(splits.values()).set_index("id")["label"]
    assert labels.to_dict() == {"a": 2, "b": 0, "c": -1, "d": -1}
    strange = rows.cast_column("label", Value("int64")).to_pandas().assign(label=[2, 0, 1, 3])
    Dataset.from_pandas(strange).to_parquet(str(tmp_path / "u.parquet"))
    assert ds.infer_schema(versions.path(imported(tmp_path / "u.parquet")[0])).label_names == ("0", "1", "2", "3")

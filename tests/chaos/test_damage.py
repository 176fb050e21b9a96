"""Bytes that rot, and disks that fill up: noticed before anything is computed from them, and nothing else is lost."""

import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from infra import datasets as ds
from infra.errors import DatasetFormatError, StoreError
from infra.files import folder_digest, write_text
from infra.importing import import_path
from infra.references import StageResult
from tasks.ingest import ingest


@contextmanager
def disk_of(size):
    """No file grows beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def rows(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(n, 4)), columns=list("abcd"))
    return frame.assign(label=rng.integers(0, 2, n), id=[f"r{row}" for row in range(n)], split="train")


@pytest.fixture
def data(project, tmp_path):
    rows().to_parquet(tmp_path / "rows.parquet")
    return import_path(project.versions, tmp_path / "rows.parquet")


def overwrite(path, content, linked=False):
    """Change a file; `linked` changes DVC's copy with it, when both are one."""
    path.chmod(0o644)
    if not linked:
        path.unlink()
    path.write_bytes(content)


def shard(project, ref):
    return project.root / ref.uri / "train" / "part-00000.parquet"


def cached(project, path):
    import hashlib

    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return Path(project.versions.repo.cache.local.oid_to_path(digest))


@pytest.mark.parametrize("place", ["header", "middle", "footer", "cut", "gone"])
def test_damaged_shard_of_a_version_comes_back_from_the_cache(project, data, place):
    path = shard(project, data)
    whole = path.read_bytes()
    kept = cached(project, path)
    assert kept.read_bytes() == whole
    overwrite(kept, whole)  # a copy of its own, as on disks without links
    at = {"header": 10, "middle": len(whole) // 2, "footer": len(whole) - 30, "cut": len(whole) // 2, "gone": 0}[place]
    torn = whole[:at] if place in ("cut", "gone") else whole[:at] + bytes(20) + whole[at + 20 :]
    overwrite(path, torn)
    assert not project.versions.intact(data)
    found = project.versions.path(ingest.fn(f"rows@{data.version}").data)
    assert shard(project, data).read_bytes() == whole
    assert len(ds.read_split(found, "train")) == 2000
    assert project.versions.intact(data)


def test_damaged_shard_whose_copy_is_damaged_too_stops_before_anything_reads_it(project, data):
    path = shard(project, data)
    whole, kept = path.read_bytes(), cached(project, path)
    torn = whole[:200] + bytes(50) + whole[250:]
    overwrite(path, torn)
    overwrite(kept, torn)
    message = r"DVC's cache lost the file train/part-00000.parquet of rows@.*, or it was changed there. Run the stage"
    with pytest.raises(StoreError, match=message):
        project.versions.path(data)
    assert path.read_bytes() == torn, "what is left of it is not thrown away"
    overwrite(kept, whole)  # somebody brings a whole copy
    assert project.versions.path(data)
    assert path.read_bytes() == whole


def test_listing_that_was_changed_in_the_cache_restores_nothing(project, data, tmp_path):
    import json

    listing = Path(project.versions.repo.cache.local.oid_to_path(data.version))
    entries = json.loads(listing.read_text())
    entries[0]["relpath"] = "../../../planted.parquet"
    overwrite(listing, json.dumps(entries).encode())
    with pytest.raises(StoreError, match=r"DVC's cache does not hold rows@.*: .* can not be used, its bytes changed"):
        project.versions.restore(data, tmp_path / "back")
    assert not list(tmp_path.rglob("planted.parquet"))
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("place", ["pages", "footer"])
def test_damaged_shard_of_the_working_copy_is_named(project, place):
    folder = project.root / "data" / "mine" / "train"
    folder.mkdir(parents=True)
    rows().to_parquet(folder / "part-00000.parquet")
    whole = (folder / "part-00000.parquet").read_bytes()
    footer = pq.read_metadata(folder / "part-00000.parquet")
    names = [footer.row_group(0).column(n).path_in_schema for n in range(footer.num_columns)]
    ids = footer.row_group(0).column(names.index("id"))
    at = ids.dictionary_page_offset + 60 if place == "pages" else len(whole) - 30
    (folder / "part-00000.parquet").write_bytes(whole[:at] + bytes(25) + whole[at + 25 :])
    with pytest.raises(DatasetFormatError, match=r"shards? .*can not be read: .*clearwell data pull"):
        ds.read_split(project.versions.path(ingest.fn("mine").data), "train")
    (folder / "part-00000.parquet").write_bytes(whole)
    assert len(ds.read_split(project.versions.path(ingest.fn("mine").data), "train")) == 2000


@pytest.fixture
def model(project):
    return project.models.save("finetune", {"w": torch.arange(5000.0)}, {"kind": "nothing"})


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "another", "description", "gone"])
def test_model_whose_bytes_are_not_its_digests_is_not_opened_and_made_again(project, model, damage):
    parts = {"inputs": {}}
    project.cache.keep(StageResult(stage="finetune", method="none", model=model), parts)
    assert project.cache.find("finetune", parts)[0] is not None
    path = project.models.path(model) / "weights.safetensors"
    whole = path.read_bytes()
    other = project.models.save("other", {"w": torch.zeros(5000)}, {"kind": "nothing"})
    changed = {"cut": whole[: len(whole) // 2], "empty": b"", "flipped": whole[:-1] + b"\x7f"}
    changed["another"] = (project.models.path(other) / path.name).read_bytes()
    if damage in changed:
        path.write_bytes(changed[damage])
    elif damage == "description":
        description = path.with_name("model.json")
        description.write_text(description.read_text().replace("nothing", "anything"))
    else:
        path.unlink()
    with pytest.raises(StoreError, match=r"The model finetune@.* is missing from .* or was changed. Run the stage"):
        project.models.load(model)
    found, why = project.cache.find("finetune", parts)
    assert (found, why) == (None, f"its output {model} is no longer whole")
    assert project.models.save("finetune", {"w": torch.arange(5000.0)}, {"kind": "nothing"}) == model
    assert project.models.load(model)[0]["w"][-1] == 4999
    assert project.models.load(other)[0]["w"][-1] == 0


FULL = r"Writing below .* failed: .* MB are free there. Nothing half-written was kept .*run the same command"


def test_full_disk_while_a_version_is_written(project, tmp_path, data):
    rows(seed=1).to_parquet(tmp_path / "more.parquet")
    before = folder_digest(project.root / data.uri)
    with disk_of(20_000), pytest.raises(StoreError, match=FULL) as error:
        import_path(project.versions, tmp_path / "more.parquet")
    assert "File too large" in str(error.value)
    assert project.versions.list() == [data]
    assert folder_digest(project.root / data.uri) == before
    assert not [p for p in (project.versions.folder / ".drafts").rglob("*") if p.is_file()]
    again = import_path(project.versions, tmp_path / "more.parquet")
    assert project.versions.intact(again)


def test_full_disk_while_a_model_is_written(project, model):
    tensors = {"w": torch.arange(50_000.0)}
    with disk_of(60_000), pytest.raises(StoreError, match=FULL):
        project.models.save("large", tensors, {"kind": "nothing"})
    assert [p.name for p in project.models.folder.iterdir() if p.name != ".drafts"] == [Path(model.uri).name]
    assert not [p for p in (project.models.folder / ".drafts").rglob("*") if p.is_file()]
    assert project.models.load(model)[0]["w"][-1] == 4999
    assert project.models.intact(project.models.save("large", tensors, {"kind": "nothing"}))


def test_full_disk_while_a_result_is_kept(project):
    parts, result = {"inputs": {}}, StageResult(stage="finetune", method="none", evidence={"rows": list(range(20_000))})
    with disk_of(10_000), pytest.raises(StoreError, match=FULL):
        project.cache.keep(result, parts)
    assert project.cache.find("finetune", parts)[0] is None
    project.cache.keep(result, parts)
    assert project.cache.find("finetune", parts)[0].evidence == result.evidence


def test_full_disk_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "notes", "before")
    with disk_of(1000), pytest.raises(StoreError, match=FULL):
        write_text(tmp_path / "notes", "after" * 1000)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("notes", "before")]


def test_restored_shards_come_in_again_as_the_same_version(project, tmp_path):
    frame = rows(40).assign(label=["oak", "birch", "ash", None] * 10)
    frame["split"] = ["train", "test", "unlabelled", "unlabelled"] * 10
    frame.to_csv(tmp_path / "trees.csv", index=False)
    ref = import_path(project.versions, tmp_path / "trees.csv")
    names = ds.infer_schema(project.versions.path(ref)).label_names
    back = project.versions.restore(ref, tmp_path / "back")
    (back / "train").rename(back / "hidden")  # ash and birch have no row left: their numbers stay
    part = import_path(project.versions, back / "test", "part")
    assert ds.infer_schema(project.versions.path(part)).label_names == names == ("ash", "birch", "oak")
    (back / "hidden").rename(back / "train")
    again = import_path(project.versions, back, "trees")
    assert again == ref

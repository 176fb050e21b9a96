"""Dataset versions in a real DVC repository: whole or absent, found again, restored, repaired."""

import os
import shutil
from pathlib import Path

import pytest

from infra.errors import ConfigurationError, DatasetNotFoundError, StoreError
from infra.versions import DataVersions


def writer(**shards):
    """Writes one shard of these bytes for each split; the number of splits passes for rows."""

    def write(folder: Path) -> int:
        for split, content in shards.items():
            (folder / split).mkdir()
            (folder / split / "part-00000.parquet").write_bytes(content)
        return len(shards)

    return write


@pytest.fixture
def versions(tmp_path):
    return DataVersions(tmp_path)


def shard(versions, ref, split="train"):
    return versions.root / ref.uri / split / "part-00000.parquet"


def cached(versions, path):
    """DVC's copy of a file."""
    import hashlib

    digest = hashlib.md5(path.read_bytes()).hexdigest()
    return Path(versions.repo.cache.local.oid_to_path(digest))


def overwrite(path, content):
    path.chmod(0o644)
    path.unlink()
    path.write_bytes(content)


def test_version_is_what_was_written_under_dvcs_hash(versions):
    ref = versions.add("scans", writer(train=b"abc", test=b"de"), source="data.dvc")
    assert (ref.name, ref.rows) == ("scans", 2)
    assert ref.version.endswith(".dir")
    assert shard(versions, ref).read_bytes() == b"abc"
    assert not Path(ref.uri).is_absolute()
    assert "source: data.dvc" in versions.pin(ref).read_text()
    assert versions.intact(ref)


def test_same_content_is_one_version(versions):
    first = versions.add("scans", writer(train=b"abc"))
    assert versions.add("scans", writer(train=b"abc")) == first
    assert versions.add("scans", writer(train=b"abx")) != first
    assert len(versions.list("scans")) == 2


def test_another_name_is_another_dataset_with_the_same_bytes(versions):
    first, other = (versions.add(name, writer(train=b"abc")) for name in ("scans", "copies"))
    assert first.version == other.version
    assert [ref.name for ref in versions.list("copies")] == ["copies"]
    assert {ref.name for ref in versions.list()} == {"scans", "copies"}


def test_versions_are_listed_newest_first(versions):
    made = [versions.add("scans", writer(train=content)) for content in (b"1", b"2", b"3")]
    for age, ref in enumerate(reversed(made)):
        os.utime(versions.pin(ref), (1e9 - age, 1e9 - age))
    assert versions.list("scans") == made[::-1]
    assert DataVersions(versions.root).list("none of that name") == []


@pytest.mark.parametrize("name", ["", ".", "..", ".drafts", "a/b", "/tmp/a", "*", "a b", "a@b"])
def test_name_must_fit_into_a_folder_and_an_address(versions, name):
    with pytest.raises(ConfigurationError, match="can not name a dataset"):
        versions.add(name, writer(train=b"abc"))
    assert not versions.folder.exists()


def test_writer_that_raises_leaves_nothing(versions):
    def write(folder):
        writer(train=b"half")(folder)
        raise RuntimeError("decoder died")

    with pytest.raises(RuntimeError, match="decoder died"):
        versions.add("scans", write)
    assert versions.list() == []
    assert [p for p in versions.folder.rglob("*") if p.is_file()] == []


def test_version_is_found_by_abbreviation(versions):
    ref = versions.add("scans", writer(train=b"abc"))
    digest = Path(ref.uri).name
    for version in ("", ref.version, ref.version[:4], ref.version[:12], digest, digest[:6]):
        assert versions.resolve("scans", version) == ref


def test_unknown_and_too_short_versions_are_named_with_what_is_known(versions):
    with pytest.raises(DatasetNotFoundError, match=r"no version 'abcd' of the dataset 'scans'. Known: none yet"):
        versions.resolve("scans", "abcd")
    ref = versions.add("scans", writer(train=b"abc"))
    for version in (ref.version[:3], "ffff0000"):
        with pytest.raises(DatasetNotFoundError, match=f"no version .* Known: {ref}"):
            versions.resolve("scans", version)
    with pytest.raises(DatasetNotFoundError, match="no version '' of the dataset 'scnas'"):
        versions.resolve("scnas", "")


def test_ambiguous_version_is_refused(versions):
    made = [versions.add("scans", writer(train=content)) for content in (b"1", b"2")]
    pins = [versions.pin(ref) for ref in made]
    for pin, ref, digest in zip(pins, made, ("abcd1", "abcd2"), strict=True):
        pin.write_text(pin.read_text().replace(ref.version, f"{digest}.dir"))
    with pytest.raises(DatasetNotFoundError, match="are 2 versions 'abcd'"):
        versions.resolve("scans", "abcd")
    with pytest.raises(DatasetNotFoundError, match="are 2 versions ''"):
        versions.resolve("scans", "")
    assert versions.resolve("scans", "abcd1").version == "abcd1.dir"


def test_deleted_folder_comes_back_from_the_cache(versions):
    ref = versions.add("scans", writer(train=b"abc", test=b"de"))
    shutil.rmtree(versions.root / ref.uri)
    assert versions.intact(ref)
    assert shard(versions, ref, "test").read_bytes() == b"de"
    assert versions.path(ref) == versions.root / ref.uri


def test_restore_writes_to_a_new_or_empty_folder_only(versions, tmp_path):
    ref = versions.add("scans", writer(train=b"abc"))
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "new" / "deep"):
        assert (versions.restore(ref, target) / "train" / "part-00000.parquet").read_bytes() == b"abc"
    with pytest.raises(StoreError, match=r"is not empty. Name a folder that does not exist yet"):
        versions.restore(ref, tmp_path / "empty")


def test_version_whose_bytes_are_nowhere_is_not_intact(versions):
    ref = versions.add("scans", writer(train=b"abc"))
    shutil.rmtree(versions.root / ref.uri)
    shutil.rmtree(versions.folder / ".dvc" / "cache")
    assert not versions.intact(ref)
    with pytest.raises(StoreError, match=f"cache does not hold {ref}"):
        versions.path(ref)


@pytest.mark.parametrize("damage", ["changed", "lost", "added"])
def test_damaged_version_is_not_intact_and_adding_it_again_mends_it(versions, damage):
    write = writer(train=b"abc", test=b"de")
    ref = versions.add("scans", write)
    path = shard(versions, ref)
    if damage == "changed":
        overwrite(path, b"abC")
    elif damage == "lost":
        path.unlink()
    else:
        (path.parent / "part-00001.parquet").write_bytes(b"stray")
    assert not versions.intact(ref)
    assert versions.add("scans", write) == ref
    assert versions.intact(ref)
    assert path.read_bytes() == b"abc"


def test_damaged_cache_is_not_restored_and_adding_again_mends_it(versions, tmp_path):
    write = writer(train=b"abc", test=b"de")
    ref = versions.add("scans", write)
    overwrite(cached(versions, shard(versions, ref)), b"abC")
    with pytest.raises(StoreError, match=r"lost the file train/part-00000.parquet of .* or it was changed"):
        versions.restore(ref, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    shutil.rmtree(versions.root / ref.uri)
    assert not versions.intact(ref)
    assert versions.add("scans", write) == ref
    assert (versions.restore(ref, tmp_path / "target") / "train" / "part-00000.parquet").read_bytes() == b"abc"


@pytest.mark.parametrize("died", ["_add_to_dvc", "_annotate"])
def test_crash_before_the_version_was_filed_is_repaired(versions, monkeypatch, died):
    write = writer(train=b"abc")
    with monkeypatch.context() as crash:
        crash.setattr(DataVersions, died, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            versions.add("scans", write)
    assert versions.list() == []  # never seen half-made
    ref = DataVersions(versions.root).add("scans", write)
    assert versions.intact(ref)
    assert versions.list() == [ref]


def test_leftover_with_other_bytes_is_replaced(versions):
    ref = versions.add("scans", writer(train=b"abc"))
    versions.pin(ref).unlink()
    overwrite(shard(versions, ref), b"garbage")
    assert versions.add("scans", writer(train=b"abc")) == ref
    assert shard(versions, ref).read_bytes() == b"abc"


def test_version_whose_file_was_deleted_is_gone(versions):
    ref = versions.add("scans", writer(train=b"abc"))
    versions.pin(ref).unlink()
    assert not versions.intact(ref)
    assert versions.list() == []


def test_projects_data_and_its_file_are_left_alone(tmp_path):
    from dvc.repo import Repo

    with Repo.init(str(tmp_path), no_scm=True) as repo:
        (tmp_path / "data" / "scans").mkdir(parents=True)
        (tmp_path / "data" / "scans" / "a.parquet").write_bytes(b"raw")
        repo.add(str(tmp_path / "data"))
    before = (tmp_path / "data.dvc").read_bytes()
    versions = DataVersions(tmp_path)
    ref = versions.add("scans", writer(train=b"abc"))
    assert (tmp_path / "data.dvc").read_bytes() == before
    assert (tmp_path / "data" / "scans" / "a.parquet").read_bytes() == b"raw"
    assert cached(versions, shard(versions, ref)).is_relative_to(tmp_path / ".dvc" / "cache")  # one cache for both
    assert sorted(p.name for p in tmp_path.iterdir()) == [".clearwell", ".dvc", ".dvcignore", "data", "data.dvc"]


def test_half_written_drafts_of_dead_processes_are_cleared(versions):
    versions.add("scans", writer(train=b"abc"))
    (versions.folder / ".drafts" / "999999999-x").mkdir(parents=True)
    assert versions.clear_drafts() == 1

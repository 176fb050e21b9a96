"""The project's own data.dvc is fetched and read, never written."""

import shutil

import pandas as pd
import pytest

from infra.errors import DatasetNotFoundError, StoreError
from infra.working_copy import find, names, pull


def put(root, path):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"id": ["a", "b"]}).to_parquet(root / path)


@pytest.fixture
def root(tmp_path):
    put(tmp_path, "data/scans/train/part-00000.parquet")
    put(tmp_path, "data/truth/scans.parquet")
    put(tmp_path, "data/erasure/scans.parquet")
    put(tmp_path, "data/plain/train/part-00000.parquet")
    return tmp_path


def test_dataset_comes_with_truth_and_erasure_list_if_it_has_them(root):
    found = find(root, "scans")
    assert found == (root / "data/scans", root / "data/truth/scans.parquet", root / "data/erasure/scans.parquet")
    assert find(root, "plain") == (root / "data/plain", None, None)
    assert names(root) == ["plain", "scans"]


@pytest.mark.parametrize("name", ["scnas", "truth", "", ".", "..", "/tmp"])
def test_what_is_no_dataset_is_refused_with_the_known_ones(root, name):
    with pytest.raises(DatasetNotFoundError, match="Known: plain, scans"):
        find(root, name)


def test_without_data_there_is_nothing_to_find(tmp_path):
    assert names(tmp_path) == []
    with pytest.raises(DatasetNotFoundError, match="Known: none"):
        find(tmp_path, "scans")
    with pytest.raises(StoreError, match=r"has no data\.dvc"):
        pull(tmp_path)


@pytest.fixture
def versioned(root, tmp_path_factory):
    """The same data under DVC with a remote, checked in and then lost."""
    from dvc.repo import Repo

    remote = tmp_path_factory.mktemp("remote")
    with Repo.init(str(root), no_scm=True) as repo:
        with repo.config.edit() as config:
            config["remote"]["store"] = {"url": str(remote)}
            config["core"]["remote"] = "store"
        repo.add(str(root / "data"))
        repo.push()
    shutil.rmtree(root / "data")
    shutil.rmtree(root / ".dvc" / "cache")
    return root, remote


def test_missing_data_are_fetched_when_first_asked_for(versioned):
    root, _ = versioned
    before = (root / "data.dvc").read_bytes()
    assert find(root, "scans").truth is not None
    assert (root / "data.dvc").read_bytes() == before
    assert pull(root) == 0  # the second time there is nothing to fetch


def test_files_that_were_fetched_are_counted(versioned):
    root, _ = versioned
    assert pull(root) == 2  # the tables have the same bytes; and the list of them


def test_remote_that_lost_the_data_is_named(versioned):
    root, remote = versioned
    shutil.rmtree(remote / "files")
    with pytest.raises(StoreError, match=r"data\.dvc names could not be fetched"):
        pull(root)

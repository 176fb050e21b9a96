"""What a run may be told to work on: a dataset of the working copy, an earlier version, a user's path."""

import pandas as pd
import pytest

from infra import datasets as ds
from infra.errors import DatasetNotFoundError
from infra.files import folder_digest
from tasks.ingest import ingest


@pytest.fixture
def working_copy(home):
    """A dataset `scans` with its truth and its erasure list, as data.dvc brings them."""
    rows = pd.DataFrame({"id": ["a", "b", "c"], "label": [0, 1, 0], "width": [1.0, 2.0, 3.0]})
    for path in ("scans/train/part-00000.parquet", "truth/scans.parquet", "erasure/scans.parquet"):
        (home / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(home / "data" / path)
        rows = rows[["id"]].iloc[:2]
    return home / "data"


def test_dataset_of_the_working_copy_comes_with_truth_and_erasure_apart(working_copy, home):
    from infra.versions import DataVersions

    before = folder_digest(working_copy)
    found = ingest.fn("scans")
    assert (found.data.name, found.data.rows) == ("scans", 3)
    assert (found.truth.name, found.truth.rows) == ("scans-truth", 2)
    assert (found.erasure.name, found.erasure.rows) == ("scans-erasure", 2)
    versions = DataVersions(home)
    assert ds.splits_of(versions.path(found.data)) == ["train"]  # the truth is not among what stages read
    assert folder_digest(versions.path(found.data)) == folder_digest(working_copy / "scans")
    assert folder_digest(working_copy) == before
    assert ingest.fn("scans") == found


def test_earlier_version_is_taken_as_it_is(working_copy):
    data = ingest.fn("scans").data
    found = ingest.fn(f"scans@{data.version[:8]}")
    assert (found.data, found.truth, found.erasure) == (data, None, None)


@pytest.mark.parametrize("absolute", [True, False])
def test_users_path_is_imported_wherever_it_lies(working_copy, tmp_path, monkeypatch, absolute):
    (tmp_path / "mine" / "train").mkdir(parents=True)
    pd.DataFrame({"id": ["a"], "label": [0], "width": [1.0]}).to_parquet(tmp_path / "mine" / "train" / "p.parquet")
    before = folder_digest(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    found = ingest.fn(str(tmp_path / "mine") if absolute else "mine")
    assert (found.data.name, found.data.rows, found.truth) == ("mine", 1, None)
    assert folder_digest(tmp_path / "mine") == before


def test_name_of_the_working_copy_wins_over_a_folder_of_that_name(working_copy, home):
    (home / "scans").mkdir()
    assert ingest.fn("scans").truth is not None


@pytest.mark.parametrize("data", ["scnas", "scans@ffff0000", "truth"])
def test_what_is_not_there_is_named(working_copy, data):
    ingest.fn("scans")
    with pytest.raises(DatasetNotFoundError, match="Known: scans"):
        ingest.fn(data)

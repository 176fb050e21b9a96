"""Fetching of real data, with a client that answers on this machine alone."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import data
from benchmarks.data import DataUnavailableError, Source, digits, fetched, package_table, read_idx, run_client

GOOD = hashlib.sha256(b"pixels").hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARWELL_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source_of(content):
    """A source whose package holds one file, and a list of the fetches made."""
    fetches = []

    def fetch(scratch):
        fetches.append(scratch)
        (scratch / "images").write_bytes(content)
        return scratch

    return Source("toy", fetch, {"images": GOOD}), fetches


def test_fetched_once_and_kept(cache):
    source, fetches = source_of(b"pixels")
    assert fetched(source) == fetched(source) == cache / "toy"
    assert len(fetches) == 1
    assert [path.name for path in cache.iterdir()] == ["toy"]


def test_damaged_file_is_fetched_again(cache):
    source, fetches = source_of(b"pixels")
    (fetched(source) / "images").write_bytes(b"pixelz")
    assert (fetched(source) / "images").read_bytes() == b"pixels"
    assert len(fetches) == 2


def test_wrong_digest_is_refused_and_not_kept(cache):
    with pytest.raises(DataUnavailableError, match="images is missing or not the pinned version"):
        fetched(source_of(b"other pixels")[0])
    assert list(cache.iterdir()) == []


def test_client_that_fails_is_quoted(tmp_path):
    with pytest.raises(DataUnavailableError, match="status 3 and said: 'no such package'"):
        run_client(
            [sys.executable, "-c", "import sys; print('no such package', file=sys.stderr); sys.exit(3)"], tmp_path
        )


def test_client_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataUnavailableError, match="install no-such-client and try again"):
        run_client(["no-such-client", "pack"], tmp_path)


def test_client_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CLIENT_TIMEOUT_S", 0.2)
    with pytest.raises(DataUnavailableError, match=r"no answer in 0\.2 s"):
        run_client([sys.executable, "-c", "import time; time.sleep(30)"], tmp_path)


def test_idx_files(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    header = b"\x00\x00\x08\x03" + np.array(array.shape, dtype=">u4").tobytes()
    (tmp_path / "array").write_bytes(header + array.tobytes())
    np.testing.assert_array_equal(read_idx(tmp_path / "array"), array)
    (tmp_path / "page").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not an IDX file of unsigned bytes"):
        read_idx(tmp_path / "page")


def test_digits_fill_the_range_of_bytes():
    images, labels = digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and images.max() == 255
    assert labels.dtype == np.int64 and set(labels) == set(range(10))


PACKAGES = """\
Package: hello
Version: 2.10-3
Installed-Size: 280
Description: example package
Description-md5: 123
Section: devel
Size: 53080
Tag: devel::lang:c, role::program,
 works-with::text

Package: bare
Section: misc
Description: no long form
"""
TRANSLATIONS = """\
Package: hello
Description-md5: 123
Description-en: example package
 Produces a familiar greeting.
 .
 Second paragraph.
"""


def test_package_lists_are_joined_with_their_descriptions():
    table = package_table([PACKAGES], [TRANSLATIONS]).set_index("package")
    hello = table.loc["hello"]
    assert hello["description"] == "example package\n\nProduces a familiar greeting.\n\nSecond paragraph."
    assert hello["tags"] == "devel::lang:c, role::program, works-with::text"
    assert (hello["size"], hello["installed_size"], hello["synopsis"]) == (53080, 280, "example package")
    bare = table.loc["bare"]
    assert (bare["description"], bare["tags"], bare["size"], bare["source"]) == ("no long form", "", 0, "bare")


def test_stored_descriptions_are_read_with_their_release(cache, monkeypatch):
    folder = cache / "packages"
    folder.mkdir(parents=True)
    pd.DataFrame({"package": ["hello"]}).to_parquet(folder / "packages.parquet")
    digest = hashlib.sha256((folder / "packages.parquet").read_bytes()).hexdigest()
    (folder / "release.json").write_text(json.dumps({"release": "Debian 12.1", "sha256": digest}))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a client was run"))
    frame = data.package_descriptions()
    assert frame["package"].tolist() == ["hello"]
    assert frame.attrs == {"release": "Debian 12.1", "sha256": digest}

"""The object store errs, is late, or is away for a while: what was sent is whole, and what is lost here comes back."""

import hashlib
import shutil
from pathlib import Path

import pytest

from infra.data_remote import DataRemote
from infra.errors import ServerError, StoreError
from infra.object_store import ObjectStore
from infra.project import Project
from tests.unreliable_proxy import Proxy


@pytest.fixture
def project(on_stack):
    return Project()


@pytest.fixture
def proxy(project):
    proxy = Proxy(int(project.settings.object_store.endpoint.rpartition(":")[2]))
    yield proxy
    proxy.close()


@pytest.fixture
def remote(project, proxy):
    """The project's remote, reached through the proxy."""
    settings = project.settings.object_store.model_copy(update={"endpoint": f"http://127.0.0.1:{proxy.port}"})
    return DataRemote(project.versions, ObjectStore(settings))


def version(project, text):
    def write(folder):
        (folder / "train").mkdir()
        (folder / "train" / "part-00000.parquet").write_text(text)
        return 1

    return project.versions.add("faulty", write)


def lose(project, ref):
    """The version's bytes are gone from this machine; its pin is not."""
    shutil.rmtree(project.root / ref.uri)
    shutil.rmtree(project.versions.repo.cache.local.path)


@pytest.mark.parametrize("trouble", ["503", "cut", "slow"])
def test_trouble_that_passes_is_not_noticed(project, proxy, remote, trouble):
    ref = version(project, f"rows of {trouble}")
    proxy.fail(trouble, 2)
    remote.push([ref])
    assert proxy.hits == 2
    lose(project, ref)
    proxy.fail(trouble, 1)
    assert ref in DataRemote(Project().versions, remote.store).pull()
    assert project.versions.intact(ref)


def test_store_that_stays_away_is_named_and_the_repeat_completes(project, proxy, remote):
    ref = version(project, "rows of a long absence")
    proxy.fail("cut", 10_000)
    with pytest.raises(ServerError, match=rf"failed while DVC was to push {ref}: .*run the same command again"):
        remote.push([ref])
    assert project.versions.intact(ref)
    proxy.fail("pass", 0)
    fresh = DataRemote(Project().versions, remote.store)
    assert fresh.push([ref]) == 2
    lose(project, ref)
    assert ref in fresh.pull()
    assert project.versions.intact(ref)


def test_damaged_bytes_are_fetched_again(project, remote):
    ref = version(project, "rows that rot")
    remote.push([ref])
    shard = project.root / ref.uri / "train" / "part-00000.parquet"
    kept = project.versions.repo.cache.local.oid_to_path(hashlib.md5(shard.read_bytes()).hexdigest())
    for path in (shard, Path(kept)):
        path.chmod(0o644)
        path.write_text("rows that rotted")
    with pytest.raises(StoreError, match=r"DVC's cache lost the file"):
        project.versions.path(ref)
    assert remote.pull() == [ref]
    assert (project.versions.path(ref) / "train" / "part-00000.parquet").read_text() == "rows that rot"

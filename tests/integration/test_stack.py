"""The stack as the rest of clearwell uses it: data, runs, registry, ledger and results live in its servers."""

import json
import random
import shutil
import time
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from infra.data_remote import DataRemote
from infra.errors import StoreError
from infra.places import Places
from infra.project import Project
from infra.traces import Search, of_id, of_image


@pytest.fixture
def project(on_stack):
    return Project()


def write_shard(text):
    def write(folder):
        (folder / "train").mkdir()
        (folder / "train" / "part-0.txt").write_text(text)
        return 1

    return write


def test_status_shows_every_part(stack):
    found = {part["part"]: part for part in json.loads(stack.clearwell("status", "--json").stdout)}
    assert set(found) == {"postgres", "objects", "prefect", "mlflow", "worker"}
    for part in found.values():
        assert part["state"] == "healthy", part
        assert part["version"][0].isdigit()
        assert 10 < part["memory_mb"] < 1500
        assert part["address"]


def test_up_twice_changes_nothing(stack):
    before = {name: info["pid"] for name, info in stack.stack.supervisor.processes().items()}
    done = stack.clearwell("up")
    assert done.returncode == 0, done.stderr
    assert {name: info["pid"] for name, info in stack.stack.supervisor.processes().items()} == before


def test_data_versions_travel_through_the_object_store(project):
    ref = project.versions.add("travel", write_shard("some rows"), source="a test")
    remote = DataRemote(project.versions, project.object_store)
    assert remote.push([ref]) == 2  # the shard and the list that names it
    assert remote.push([ref]) == 0
    pin, cache = project.versions.pin(ref), project.versions.repo.cache.local.path
    pin.unlink()
    shutil.rmtree(pin.with_suffix(""))
    shutil.rmtree(cache)
    fresh = Project()
    assert [str(found) for found in DataRemote(fresh.versions, fresh.object_store).pull()] == [str(ref)]
    assert (fresh.versions.path(ref) / "train" / "part-0.txt").read_text() == "some rows"
    assert fresh.versions.intact(ref)
    assert DataRemote(fresh.versions, fresh.object_store).pull() == []


def test_the_commands_push_and_pull(stack, project):
    project.versions.add("typed", write_shard("typed rows"))
    done = stack.clearwell("data", "push", "typed")
    assert "1 dataset versions" in done.stdout, done.stderr
    done = stack.clearwell("data", "push", "unheard-of")
    assert done.returncode == 3
    assert "unheard-of" in done.stderr
    assert "0 dataset versions fetched" in stack.clearwell("data", "pull").stdout


def test_a_pin_that_leads_elsewhere_is_refused(project):
    store = project.object_store
    for key in ("pins/planted.dvc", "pins/a/b/planted.dvc", "pins/a/planted.yaml"):
        store.write("dvc", key, b"outs: []")
        try:
            with pytest.raises(StoreError, match="impossible name"):
                DataRemote(project.versions, store).pull()
        finally:
            store.purge("dvc", key)


def test_runs_go_through_the_server_and_their_files_to_the_store(project, tmp_path):
    (tmp_path / "report.txt").write_text("what the run left behind")
    run = project.tracker.open("a run")
    project.tracker.params(run, {"depth": 3})
    project.tracker.metrics(run, {"accuracy": 0.9})
    project.tracker.files(run, tmp_path)
    project.tracker.close(run)
    found = project.tracker.client.get_run(run)
    assert (found.data.params["depth"], found.info.status) == ("3", "FINISHED")
    assert found.info.artifact_uri.startswith("mlflow-artifacts:/")
    store = project.object_store
    key = next(key for key in store.keys("mlflow") if key.endswith(f"{run}/artifacts/report.txt"))
    assert store.read("mlflow", key) == b"what the run left behind"
    assert project.tracker.settings.tracking_uri.startswith("http://127.0.0.1:")


def test_the_ledger_is_in_postgres_and_its_chain_holds(project):
    assert project.ledger.engine.dialect.name == "postgresql"
    entry = project.ledger.append("test", what="an entry")
    assert project.ledger.entries("test")[-1]["hash"] == entry["hash"]
    assert project.ledger.broken_at() is None


def test_results_of_prefect_are_json_in_the_store(stack):
    program = (
        "from infra.settings import settings; settings()\n"
        "from prefect import flow\n"
        "@flow(persist_result=True)\n"
        "def kept(): return {'kept by': 'prefect'}\n"
        "kept()\n"
    )
    done = stack.python(program)
    assert done.returncode == 0, done.stderr
    with stack.in_force():
        store = Project().object_store
        found = [store.read("prefect", key) for key in store.keys("prefect", "results/")]
    assert b'{"kept by": "prefect"}' in found
    assert all(json.loads(content) is not None for content in found)


def test_old_versions_of_objects_can_be_seen_and_purged(project):
    store = project.object_store
    for content in (b"first", b"second"):
        store.write("dvc", "test/object", content)
    store.client.delete_object(Bucket="dvc", Key="test/object")
    found = list(store.versions("dvc", "test/object"))
    assert sorted(f.deleted for f in found) == [False, False, True]
    old = next(f for f in found if not f.deleted and store.read("dvc", f.key, f.version) == b"first")
    assert not old.latest
    assert store.purge("dvc", "test/object") == 3
    assert list(store.versions("dvc", "test/object")) == []
    with pytest.raises(StoreError, match="does not hold dvc/test/object"):
        store.read("dvc", "test/object")


SHORT = """
validate: {method: r2d2}
label_noise: {enabled: false}
pretrain: {enabled: false}
finetune: {epochs: 2}
adapt: {enabled: false}
unlearn: {enabled: false}
compress: {enabled: false}
naive: {enabled: false}
"""


def test_a_deleted_object_leaves_the_disk(project):
    store, salt = project.object_store, "salt"
    contents = {name: random.Random(name).randbytes(4000) for name in ("goes", "stays")}
    for name, content in contents.items():
        store.client.put_object(Bucket=store.buckets.data, Key=f"disk/{name}", Body=content)
    marks = {name: of_image(salt, name, content, None)[0] for name, content in contents.items()}
    search, volumes = Search(salt, marks.values()), ".clearwell/stack/objects"

    def on_disk():
        found = Places(project).search(search, only=volumes).findings
        return {name for name, mark in marks.items() if mark.subject in {f.subject for f in found}}

    assert on_disk() == {"goes", "stays"}
    store.purge(store.buckets.data, "disk/goes")
    assert on_disk() == {"goes", "stays"}  # deleted, and yet there
    Places(project).disks.settle()
    assert on_disk() == {"stays"}
    assert store.read(store.buckets.data, "disk/stays") == contents["stays"]


def test_what_a_table_let_go_leaves_the_disk_of_postgresql(stack, project):
    engine, who = project.ledger.engine, "somebody-to-forget"
    search = Search("salt", of_id("salt", who))
    disks = Places(project).disks

    def on_disk():
        found = Places(project).search(search, only=".clearwell/stack/postgres").findings
        return {Path(f.where).parts[3] for f in found}

    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE visitors (who text)")
        connection.execute(sa.text("INSERT INTO visitors VALUES (:who), ('somebody else')"), {"who": who})
        connection.exec_driver_sql("ANALYZE visitors")
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM visitors WHERE who = :who"), {"who": who})
    disks.settle()
    assert on_disk() == {"base"}, "the table's dead row, and the sample that the planner keeps"
    disks.rewrite({"ledger"}, [])
    assert "pg_wal" in on_disk() or not on_disk()
    disks.settle()
    assert not on_disk()
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT who FROM visitors").scalars().all() == ["somebody else"]
        connection.exec_driver_sql("DROP TABLE visitors")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_is_submitted_and_followed_to_its_end(deployed, tmp_path):
    from sklearn.datasets import load_iris

    load_iris(as_frame=True).frame.rename(columns={"target": "label"}).to_csv(tmp_path / "flowers.csv", index=False)
    (tmp_path / "short.yaml").write_text(SHORT)
    done = deployed.clearwell("run", "--data", str(tmp_path / "flowers.csv"), "--config", str(tmp_path / "short.yaml"))
    assert done.returncode == 0, done.stderr
    assert "finetune: done after" in done.stderr
    assert "/runs/flow-run/" in done.stderr
    assert "from the cache" in done.stdout  # the same summary as embedded
    with deployed.in_force():
        project = Project()
        mine = "tags.`clearwell.data` = 'flowers.csv'"
        (run,) = project.tracker.client.search_runs([project.tracker.experiment], mine)
        assert run.info.status == "FINISHED"
        assert run.data.tags["clearwell.prefect_page"] in done.stderr


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_submitted_run_fails_with_the_same_exit_code_and_words(deployed):
    done = deployed.clearwell("run", "--data", "unheard-of")
    assert done.returncode == 3, done.stderr
    assert "There is no dataset 'unheard-of'" in done.stderr
    assert "flow-run/" in done.stderr


@pytest.mark.long
@pytest.mark.timeout(600)
def test_schedules_make_runs(deployed):
    """Prefect's scheduler is silent about its own failures; only the runs show that it works."""
    with deployed.in_force() as current:
        auth = tuple(current.orchestration.auth.get_secret_value().split(":"))
        waiting = {"state": {"type": {"any_": ["SCHEDULED"]}}, "tags": {"all_": ["auto-scheduled"]}}
        wanted = {"limit": 5, "flow_runs": waiting}
        for _ in range(90):
            found = httpx.post(
                f"{current.orchestration.api}/flow_runs/filter", json=wanted, auth=auth, timeout=30
            ).json()
            if found:
                return
            time.sleep(1)
    raise AssertionError("nothing was scheduled")

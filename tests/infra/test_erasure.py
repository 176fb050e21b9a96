"""Erasure at the stores: the plan, working copy and pin, caches and remotes, a bucket with versions, databases."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from infra import datasets as ds
from infra import traces
from infra.deletion import Deletion
from infra.erasure import Erasures, object_name
from infra.errors import ConfigurationError, DataError, DatasetNotFoundError, ErasureError, StoreError
from infra.places import Places
from infra.project import Project
from infra.settings import ObjectStore, settings

RNG = np.random.default_rng(3)
IMAGES = [ds.encode(RNG.integers(0, 255, (8, 8), dtype=np.uint8)) for _ in range(40)]


def shard(rows, **more):
    columns = {"id": [f"p-{row:06d}" for row in rows], "image": [IMAGES[row] for row in rows]}
    columns |= {"label": [row % 2 for row in rows], "domain": ["d"] * len(rows), "split": ["train"] * len(rows)}
    return pa.table(columns | more)


@pytest.fixture(autouse=True)
def own_row_cache(home, monkeypatch):
    """Other tests' rows are no place of this project."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / ".clearwell" / "arrow"))


@pytest.fixture
def people(project):
    """A working copy: rows 0 to 29 in two shards, 30 to 39 to test on; a truth that names ids in other columns."""
    root = project.root
    for split, rows in {"train": (range(20), range(20, 30)), "test": (range(30, 40),)}.items():
        for number, part in enumerate(rows):
            folder = root / "data" / "people" / split
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(shard(part), folder / f"part-{number:05d}.parquet")
    (root / "data" / "truth").mkdir()
    names = [f"p-{row:06d}" for row in range(40)]
    twins = ["p-000003" if row == 9 else "" for row in range(40)]
    pq.write_table(pa.table({"id": names, "duplicate_of": twins}), root / "data" / "truth" / "people.parquet")
    (root / "data" / "erasure").mkdir()
    pq.write_table(pa.table({"id": ["p-000003"]}), root / "data" / "erasure" / "people.parquet")
    return project


def all_ids(root):
    return sorted(pd.concat(pd.read_parquet(f) for f in (root / "data" / "people").glob("*/*.parquet"))["id"])


def test_unknown_and_missing_ids_are_refused(people):
    erasures = Erasures(people)
    with pytest.raises(ConfigurationError, match="No ids were given"):
        erasures.examine(["", " "])
    with pytest.raises(DataError, match=r"1 of 2 ids .* people: p-00003. Did you mean 'p-00003\d'"):
        erasures.examine(["p-00003", "p-000004"])
    with pytest.raises(DataError, match=r"There is no dataset 'pepole'\. Known: people"):
        erasures.examine(["p-000003"], data="pepole")
    with pytest.raises(ErasureError, match="no unfinished erasure"):
        erasures.open()


def test_the_last_row_of_a_class_is_not_taken(people):
    with pytest.raises(DataError, match="would leave no training row of 0 in 'people'"):
        Erasures(people).examine([f"p-{row:06d}" for row in range(0, 30, 2)])


def test_rows_of_the_same_bytes_have_to_be_decided_on(people):
    twin = shard([3]).set_column(0, "id", pa.array(["q-twin-of-3"]))
    pq.write_table(twin, people.root / "data" / "people" / "train" / "part-00002.parquet")
    erasures = Erasures(people)
    with pytest.raises(DataError, match=r"q-twin-of-3 \(people\).*--with-copies.*--keep-copies"):
        erasures.examine(["p-000003"])
    plan, rows = erasures.examine(["p-000003"], copies="erase")
    assert (plan.subjects, plan.copies, plan.rows) == (2, {"people": 1}, {"people": {"train": 2}})
    plan, rows = erasures.examine(["p-000003"], copies="keep")
    assert plan.copies_stay
    assert {mark.kind for mark in rows.fingerprints} == {"id"}


def test_a_plan_changes_nothing_and_names_no_id(people):
    erasures = Erasures(people)
    before = {path: path.read_bytes() for path in (people.root / "data").rglob("*.parquet")}
    plan, rows = erasures.examine(["p-000003", "p-000030"], reason="asked")
    assert plan.rows == {"people": {"train": 1, "test": 1}}
    assert plan.places == {"working copy": 4}
    assert "p-0000" not in plan.model_dump_json()
    assert {path: path.read_bytes() for path in (people.root / "data").rglob("*.parquet")} == before
    assert rows.control
    request = erasures.begin(plan, rows)
    with pytest.raises(ErasureError, match=f"{request} is not finished"):
        erasures.begin(plan, rows)
    room = people.settings.state / "erasures" / request
    assert (room.stat().st_mode & 0o777, (room / "rows.json").stat().st_mode & 0o777) == (0o700, 0o600)
    assert b"p-000003" not in (people.settings.state / "ledger.db").read_bytes()


def test_the_working_copy_is_rewritten_where_it_must(people):
    erasures = Erasures(people)
    untouched = people.root / "data" / "people" / "train" / "part-00001.parquet"
    before = untouched.read_bytes()
    request = erasures.begin(*erasures.examine(["p-000003", "p-000030"]))
    erasures.rewrite(request)
    erasures.rewrite(request)  # again, as after a kill
    assert all_ids(people.root) == [f"p-{row:06d}" for row in range(40) if row not in (3, 30)]
    assert untouched.read_bytes() == before
    truth = pd.read_parquet(people.root / "data" / "truth" / "people.parquet")
    assert not truth.astype(str).map(lambda cell: "p-000003" in cell).any(axis=None)
    assert len(truth) == 38
    assert not (people.root / "data" / "erasure" / "people.parquet").exists(), "an empty list is none"


def test_files_that_can_not_be_rewritten_are_named_first(people):
    (people.root / "data" / "notes.txt").write_text("call p-000003 back")
    with pytest.raises(ErasureError, match=r"data/notes.txt .* rewrites Parquet only"):
        Erasures(people).examine(["p-000003"])


def test_a_working_copy_behind_a_link_is_refused_before_anything_happens(people, tmp_path):
    (people.root / "data").rename(tmp_path / "disk")
    (people.root / "data").symlink_to(tmp_path / "disk")
    with pytest.raises(ErasureError, match=r"data is a link to .*disk, .* Move the folder to where the link is"):
        Erasures(people).examine(["p-000003"])


def test_folders_behind_links_are_searched_under_their_own_names(people, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "page.html").write_text("row p-000003")
    (people.root / "reports").symlink_to(tmp_path / "disk")
    found = Places(people).search(traces.Search("salt", traces.of_id("salt", "p-000003")), only="reports").findings
    assert [(f.place, f.where) for f in found] == [("reports", "reports/page.html")]


def test_nothing_is_searched_while_the_stack_is_down(people):
    (people.settings.state / "stack" / "postgres").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"The stack of this project is down, .* `clearwell up`"):
        Erasures(people).examine(["p-000003"])


def test_a_draft_killed_between_the_renames_is_taken_up(people):
    erasures = Erasures(people)
    request = erasures.begin(*erasures.examine(["p-000003"]))
    erasures.rewrite(request)
    room = people.settings.state / "erasures" / request
    (people.root / "data").rename(room / "data")
    (room / "before").mkdir()
    erasures.rewrite(request)
    assert "p-000003" not in all_ids(people.root)


def version(project, rows, name="people"):
    def write(folder):
        (folder / "train").mkdir()
        pq.write_table(shard(rows), folder / "train" / "part-00000.parquet")
        (folder / "test").mkdir()
        pq.write_table(shard(range(30, 40)), folder / "test" / "part-00000.parquet")
        return len(rows) + 10

    return project.versions.add(name, write, source="import")


def test_versions_go_with_their_objects_and_lists_and_leave_a_tombstone(project):
    old, new = version(project, range(20)), version(project, range(5, 20))
    erasures = Erasures(project)
    plan, rows = erasures.examine(["p-000003"])
    assert plan.versions == (old,)
    deletion = Deletion(erasures, erasures.begin(plan, rows))
    doomed = deletion.listed((), ())
    for _ in range(2):  # the second time as after a kill
        deletion.delete(doomed, "c-1")
    assert not deletion.search().findings
    assert deletion.control().findings
    assert project.versions.list() == [new]
    assert project.versions.intact(new), "the shard that both versions share stays"
    with pytest.raises(DatasetNotFoundError, match="can no longer be rebuilt: rows of it were erased; certificate c-1"):
        project.versions.resolve("people", old.version[:12])


def test_reports_that_name_a_lost_version_go_whatever_their_shape(project):
    old, new = version(project, range(20)), version(project, range(5, 20))
    told = {
        "latest": {"data": {"name": "people", "input_version": old.version}},
        "plan-people": {"data": [f"people@{old.version[:12]}"], "run": ""},
        "compare-people": {"data": str(new)},
    }
    for name, summary in told.items():
        (project.root / "reports" / name).mkdir(parents=True)
        (project.root / "reports" / name / "summary.json").write_text(json.dumps(summary))
    erasures = Erasures(project)
    deletion = Deletion(erasures, erasures.begin(*erasures.examine(["p-000003"])))
    reports = {path for path in deletion.listed((), ()).paths if path.startswith("reports/")}
    assert reports == {"reports/latest", "reports/plan-people"}


def test_databases_are_overwritten_and_hold_nothing_in_free_pages(people):
    path = people.settings.state / "notes.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("pragma secure_delete = off")
        connection.execute("create table notes (who text, what json, n integer)")
        connection.execute("insert into notes values ('p-000003', '{\"about\": \"p-000003\"}', 1)")
        connection.execute("insert into notes values ('p-000004', 'p-000003 ' || hex(zeroblob(3000)), 2)")
        connection.execute("delete from notes where n = 2")
    erasures = Erasures(people)
    deletion = Deletion(erasures, erasures.begin(*erasures.examine(["p-000003"])))
    erasures.rewrite(deletion.request)
    deletion.delete(deletion.listed((), ()), "c")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("select * from notes").fetchall() == [("(erased)", '{"about": "(erased)"}', 1)]
    assert b"p-000003" not in path.read_bytes()


@pytest.fixture
def bucketed(home, empty_tracking):
    """A project whose data lie in a bucket that keeps old versions."""
    import shutil

    from moto.server import ThreadedMotoServer

    shutil.copyfile(empty_tracking, home / ".clearwell" / "mlflow.db")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = ObjectStore(endpoint=f"http://{host}:{port}", access_key="k", secret_key=SecretStr("s"))
    project = Project(settings().model_copy(update={"object_store": store}))
    project.object_store.prepare()
    yield project
    server.stop()


def test_every_version_of_every_object_goes(bucketed):
    old, _ = version(bucketed, range(20)), version(bucketed, range(5, 20))
    store, cache = bucketed.object_store, bucketed.versions.folder / ".dvc" / "cache"
    for path in cache.rglob("*"):
        if path.is_file():
            store.write("dvc", f"versions/{path.relative_to(cache).as_posix()}", path.read_bytes())
    store.write("dvc", f"pins/people/{bucketed.versions.pin(old).name}", bucketed.versions.pin(old).read_bytes())
    store.write(
        "dvc", "incoming/batch/part.parquet", (bucketed.root / old.uri / "train/part-00000.parquet").read_bytes()
    )
    store.write("mlflow", "artifacts/1/r/artifacts/example.json", b'{"id": "p-000003"}')
    store.write("mlflow", "artifacts/1/r/artifacts/example.json", b'{"id": "p-000004"}')
    store.write("prefect", "results/abc", b'{"result": ["p-000003"]}')
    store.client.delete_object(Bucket="dvc", Key="incoming/batch/part.parquet")  # a mark; the bytes stay below it
    erasures = Erasures(bucketed)
    plan, rows = erasures.examine(["p-000003"])
    assert plan.places["bucket dvc"] == 2
    assert (plan.places["bucket mlflow"], plan.places["bucket prefect"]) == (1, 1)
    deletion = Deletion(erasures, erasures.begin(plan, rows))
    deletion.delete(deletion.listed((), ()), "c")
    assert not deletion.search().findings
    search = traces.Search(rows.salt, rows.fingerprints)
    left = []
    for bucket in ("dvc", "mlflow", "prefect"):
        for item in store.client.list_object_versions(Bucket=bucket).get("Versions", ()):
            content = store.read(bucket, item["Key"], item["VersionId"])
            assert not search.content(content), item["Key"]
            left.append(item["Key"])
    assert "artifacts/1/r/artifacts/example.json" in left
    assert not any(object_name(key) == old.version for key in left), "the list of its files goes too"
    assert not any(key.startswith("pins/") for key in left)
    kept = {entry["md5"] for entry in json.loads(_dir(bucketed))}
    assert kept <= {object_name(key) for key in left}


def _dir(project):
    ref = project.versions.list()[0]
    odb = project.versions.repo.cache.local
    return Path(odb.oid_to_path(ref.version)).read_text()


def test_tables_on_postgresql_are_searched_and_overwritten(home, postgres):
    project = Project(settings().model_copy(update={"ledger": postgres}))
    engine = project.ledger.engine
    with engine.begin() as connection:
        for statement in (
            "CREATE TYPE mood AS ENUM ('calm', 'cross')",
            'CREATE TABLE "Notes" (who varchar(40), more jsonb, feels mood, n integer)',
            'INSERT INTO "Notes" VALUES (\'p-000003\', \'{"seen": ["p-000003", "p-000004"]}\', \'calm\', 1)',
        ):
            connection.exec_driver_sql(statement)
    places = Places(project)
    search = traces.Search("salt", traces.of_id("salt", "p-000003"))
    found = places.search(search).findings
    assert {f.where.partition("/")[2] for f in found} == {"Notes"}
    for where in {f.where for f in found}:
        assert places.is_database(where)
        places.redact(where, ["p-000003"])
    assert not places.search(search).findings
    with engine.connect() as connection:
        row = connection.exec_driver_sql('SELECT * FROM "Notes"').one()
    assert row == ("(erased)", {"seen": ["(erased)", "p-000004"]}, "calm", 1)
    engine.dispose()

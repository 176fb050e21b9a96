"""An erasure on the stack: buckets with their old versions, artifacts behind the server, PostgreSQL."""

import json

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from infra.data_remote import DataRemote
from infra.importing import import_path
from infra.places import Places
from infra.project import Project
from infra.settings import Tracking
from infra.tracking import Tracker

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
WHO = "visitor-0007"


def test_rows_are_gone_from_buckets_artifacts_and_databases(on_stack, tmp_path):
    project = Project()
    store, tracker = project.object_store, project.tracker
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": [f"visitor-{n:04d}" for n in range(40)], "label": ["in", "out"] * 20, "split": "train"})
    frame["x"], frame["y"] = rng.normal(size=40), rng.normal(size=40)
    frame.to_csv(tmp_path / "visitors.csv", index=False)
    ref = import_path(project.versions, tmp_path / "visitors.csv")
    DataRemote(project.versions, store).push([ref])
    run = tracker.open("notes", complaint=f"{WHO} wrote")
    tracker.dataset(run, ref, "input")
    tracker.client.log_text(run, f"row {WHO}", "figures/rows.txt")
    tracker.client.log_text(run, "row nobody", "figures/rows.txt")  # the version before stays in the bucket
    store.write("prefect", "results/erasure-test", json.dumps({"result": [WHO]}).encode())

    tracker.client.set_tag(run, "seen", WHO)
    tracker.client.set_tag(run, "seen", "nobody")  # the row before stays on PostgreSQL's disk
    assert named_on_disk(project)

    before = Tracker(project.settings.model_copy(update={"tracking": Tracking()}))  # as if made without the stack
    drew, idle = before.open("label_noise"), before.open("label_noise")
    before.dataset(drew, ref, "input")
    for each in (drew, idle):
        before.client.log_text(each, "a picture", "figures/rows.txt")
    kept = project.settings.state / "artifacts"
    assert {drew, idle} <= {path.name for path in kept.iterdir()}

    done = on_stack.clearwell("forget", WHO, "--reason", "asked to", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    certificate = json.loads(done.stdout)
    places = {"bucket dvc", "bucket mlflow", "bucket prefect", "database mlflow", "PostgreSQL's disk"}
    assert certificate["places"].keys() >= places
    assert certificate["search"]["findings"] == 0
    assert certificate["search"]["control"]["findings"] > 0

    for bucket in ("dvc", "mlflow", "prefect"):
        for found in store.versions(bucket):
            assert ref.version[2:] not in found.key
            if not found.deleted:
                named = None if found.version == "null" else found.version
                assert WHO.encode() not in store.read(bucket, found.key, named), found.key
    tag = tracker.client.get_run(run).data.tags["complaint"]
    assert tag == "(erased) wrote"
    with sa.create_engine(Places(project).databases()["mlflow"]).connect() as connection:
        assert connection.execute(sa.text("select count(*) from tags where value like '%visitor-0007%'")).scalar() == 0
    assert not named_on_disk(project)
    assert (drew in {path.name for path in kept.iterdir()}, (kept / idle).exists()) == (False, True)
    assert on_stack.clearwell("forget", "--verify", certificate["path"]).returncode == 0
    assert DataRemote(project.versions, store).pull() == [], "what was erased is not brought back"


def named_on_disk(project):
    """Files of PostgreSQL that name who is to be forgotten."""
    files = [path for place, path in Places(project).disks.files() if place == "PostgreSQL's disk"]
    return [path for path in files if path.exists() and WHO.encode() in path.read_bytes()]

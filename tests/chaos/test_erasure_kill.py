"""An erasure on real stores: what it leaves when it runs through, and the same when it is killed at every step.

One small champion is trained; the project is copied, erased from, put back, and erased from again under kills.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from infra.certificate import verify
from infra.erasure import Erasures
from infra.errors import ClearwellError
from infra.files import folder_digest
from infra.project import Project
from infra.settings import Settings, Tracking

ROOT = Path(__file__).parents[2]
ROWS = {"train": 500, "unlabelled": 60, "test": 160, "target": 60}
SETTINGS = """
gates:
  - {metric: source_accuracy, split: test, at_least: 0.02}
  - metric: membership_advantage
    split: erasure
    at_most: 0.15
    chance: membership_chance
    only_if_measured: true
    higher_is_better: false
"""
SMALL = """
network: {channels: [8, 16], embedding_dim: 16}
label_noise: {enabled: false}
pretrain: {enabled: false}
finetune: {epochs: 3}
adapt: {enabled: false}
unlearn: {parameters: {epochs: 1, vae_epochs: 1}}
naive: {enabled: false}
"""
KILLS = (
    "sources", "renamed", "data", "models", "retire", "list", "removed", "delete", "search", "filed", "finish",
)  # fmt: skip

DRIVER = '''
"""Runs the erasure of one project in forked processes, each killed at one point; imports are paid for once."""
import os, sys
from pathlib import Path
from infra.settings import settings
settings()
from infra.embedded_server import EmbeddedServer
server = EmbeddedServer()  # before Prefect is imported: it reads then where its server is
import flows.erasure as module
from infra import journal, ledger, places
from infra.erasure import Erasures
from infra.project import Project
import tasks.register, models.unlearn.laf, models.compress.udfc, infra.expectations, mlflow.pyfunc

def arm(point):
    real_step, real_rename, real_remove = journal.Journal.step, Path.rename, places.Places.remove
    real_finish, real_append = journal.Journal.finish, ledger.Ledger.append
    removed = []

    def step(self, request, name, facts=None, connection=None):
        if name == point: os._exit(9)  # its work is done, and nobody noted it
        real_step(self, request, name, facts, connection)
    def rename(self, target):
        made = real_rename(self, target)
        if point == "renamed" and self.name == "data" and Path(target).name == "before": os._exit(9)
        return made
    def remove(self, where):
        gone = real_remove(self, where)
        removed.append(where)
        if point == "removed" and len(removed) == 3: os._exit(9)
        return gone
    def append(self, kind, **payload):
        if point == "filed" and kind == "erasure": os._exit(9)
        return real_append(self, kind, **payload)
    def finish(self, request, connection=None):
        if point == "finish" and self.open("erasure"): os._exit(9)
        real_finish(self, request, connection)
    journal.Journal.step, Path.rename, places.Places.remove = step, rename, remove
    journal.Journal.finish, ledger.Ledger.append = finish, append

def attempt(point, ids):
    erasures = Erasures(Project())
    if erasures.journal.open("erasure"):
        request = erasures.open().id
    else:
        request = erasures.begin(*erasures.examine(ids, copies="erase", reason="asked to"))
    arm(point)
    module.erasure(request)

ids, points = sys.argv[1].split(","), sys.argv[2].split(",")
server.wait()
try:
    for point in points:
        pid = os.fork()
        if pid == 0:
            try:
                attempt(point, ids)
                code = 0
            except BaseException as error:
                print(f"{point}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                code = 1
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(point, code, flush=True)
finally:
    server.stop()
'''

pytestmark = [pytest.mark.long, pytest.mark.timeout(1000)]


def environment(project: Path) -> dict[str, str]:
    left = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_TRACKING", "HF_DATASETS"))}
    return {**left, "CLEARWELL_ROOT": str(project), "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}


def clearwell(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("clearwell")), *arguments],
        cwd=project, env=environment(project), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def drive(project: Path, ids: list[str], *points: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, ",".join(ids), ",".join(points)],
        cwd=project, env=environment(project), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines() if line.count(" ") == 1}
    assert 1 not in found.values(), done.stderr[-3000:]
    return found


def stores(root: Path):
    uri = f"sqlite:///{root}/.clearwell/mlflow.db"
    return Project(
        Settings(
            root=root,
            ledger=f"sqlite:///{root}/.clearwell/ledger.db",
            tracking=Tracking(uri=uri, artifacts=str(root / ".clearwell" / "artifacts")),
        )
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A project with data.dvc, a remote, a champion, and traces of rows where products and people leave them."""
    from dvc.repo import Repo

    project = tmp_path_factory.mktemp("erasure") / "project"
    for split, rows in ROWS.items():
        table = pq.read_table(ROOT / "data" / "scans" / split / "part-00000.parquet").slice(0, rows)
        (project / "data" / "scans" / split).mkdir(parents=True)
        pq.write_table(table, project / "data" / "scans" / split / "part-00000.parquet")
    truth = pd.read_parquet(ROOT / "data" / "truth" / "scans.parquet")
    (project / "data" / "truth").mkdir()
    kept = pd.concat(truth[truth["split"] == split].iloc[:rows] for split, rows in ROWS.items())
    kept.to_parquet(project / "data" / "truth" / "scans.parquet")
    (project / "mlflow.yaml").write_text(SETTINGS)
    (project / "small.yaml").write_text(SMALL)
    repo = Repo.init(str(project), no_scm=True)
    (project / ".dvc" / "config").write_text(
        "[core]\n    no_scm = true\n    remote = shelf\n['remote \"shelf\"']\n    url = ../shelf\n"
    )
    repo.close()
    with Repo(str(project)) as repo:
        repo.add([str(project / "data")])
        repo.push()
    clearwell(project, "run", "--config", "small.yaml", "--json")
    return project


@pytest.fixture(scope="module")
def ids(trained) -> list[str]:
    """Rows that reached the model, one of them with a twin under another id."""
    frame = pd.read_parquet(trained / "data" / "scans" / "train")
    content = frame["image"].map(lambda cell: cell["bytes"])
    usable = frame[content.map(len) > 100]
    return usable["id"].drop_duplicates().iloc[10:22].tolist()


def plant(project: Path, ids: list[str]) -> list[Path]:
    """Leave rows where logs, results, pages and tags keep them; returns the files."""
    frame = pd.read_parquet(project / "data" / "scans" / "train").set_index("id")
    image = frame.loc[ids[0], "image"]
    encoded = (image if isinstance(image, dict) else image.iloc[0])["bytes"]
    state = project / ".clearwell"
    files = {
        state / "prefect" / "storage" / "result.json": json.dumps({"result": [ids[1]]}).encode(),
        state / "logs" / "run.log": b"sent " + base64.b64encode(b"x" + encoded) + b" away",
        state / "data_docs" / "old" / "page.html": f"<td>{ids[2]}</td>".encode(),
        project / "reports" / "old" / "rows.csv": f"id\n{ids[3]}\n".encode(),
        project.parent / "project" / ".dvc" / "tmp" / "picture.png": encoded,
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    tracker = stores(project).tracker
    tracker.tags(tracker.open("notes"), {"complaint": f"the owner of {ids[4]} wrote"})
    return list(files)


def state(root: Path) -> dict:
    """What an erasure leaves, without times and run ids."""
    project = stores(root)
    registry = project.registry
    entries = project.ledger.entries()
    assert project.ledger.broken_at() is None
    assert not Erasures(project).journal.open("erasure")
    assert not list((root / ".clearwell" / "erasures").glob("*"))
    return {
        "versions": sorted(f"{ref.name}@{ref.version}" for ref in project.versions.list()),
        "intact": all(project.versions.intact(ref) for ref in project.versions.list()),
        "models": sorted(path.name for path in (root / ".clearwell" / "models").glob("[!.]*")),
        "records": sorted(f"{p.parent.name}/{p.name}" for p in (root / ".clearwell" / "cache").glob("[!.]*/*")),
        "registry": [
            (v["version"], v["aliases"], v["tags"]["clearwell.data"], "clearwell.retired" in v["tags"])
            for v in registry.versions("scans-classifier")
        ],
        "erasures": [e["payload"]["versions"] for e in entries if e["kind"] == "erasure"],
        "retired": [e["payload"]["version"] for e in entries if e["kind"] == "retired"],
        "data": folder_digest(root / "data"),
        "pin": (root / "data.dvc").read_text(),
        "cache": sorted(p.name for p in (root / ".dvc" / "cache" / "files" / "md5").glob("*/*")),
        "remote": sorted(p.name for p in (root / "shelf" / "files" / "md5").glob("*/*")),
        "certificates": len(list((root / ".clearwell" / "certificates").glob("*/certificate.json"))),
    }


def refusal(attempt) -> str:
    """What the user is told."""
    with pytest.raises(ClearwellError, match=r"\w") as caught:
        attempt()
    return str(caught.value)


@pytest.fixture(scope="module")
def erased(trained, ids) -> Iterator[dict]:
    """The end of an erasure nobody disturbed; the project is put back as it was."""
    shared = os.environ["HF_DATASETS_CACHE"]
    os.environ["HF_DATASETS_CACHE"] = str(trained / ".clearwell" / "arrow")  # of other tests' rows nothing is asked
    planted = plant(trained, ids)
    backup = trained.parent / "backup"
    shutil.copytree(trained, backup, symlinks=True)
    project = stores(trained)
    plan, _ = Erasures(project).examine(ids, copies="erase")
    out = json.loads(clearwell(trained, "forget", *ids, "--with-copies", "--reason", "asked to", "--yes", "--json"))
    _, found_again, control = verify(project, Path(out["path"]))
    found = {
        "plan": plan,
        "certificate": out,
        "state": state(trained),
        "planted": [path for path in planted if path.exists()],
        "again": (len(found_again.findings), len(control.findings)),
        "gone": refusal(lambda: project.versions.resolve("scans", plan.versions[0].version)),
        "refused": refusal(lambda: project.registry.promote("scans-classifier", "1")),
        "rollback": refusal(lambda: project.registry.rollback("scans-classifier")),
        "grep": [str(p) for p in trained.rglob("*") if p.is_file() and any(i.encode() in p.read_bytes() for i in ids)],
        "page": Path(out["page"]).read_text(),
        "file": json.loads(Path(out["path"]).read_text()),
    }
    shutil.rmtree(trained)
    backup.rename(trained)
    yield found
    os.environ["HF_DATASETS_CACHE"] = shared


def test_the_plan_names_places_models_and_versions(erased):
    plan = erased["plan"]
    assert plan.places.keys() >= {"working copy", "dataset versions", "DVC cache", "DVC remote", "MLflow database"}
    assert plan.places.keys() >= {"Prefect", "validation results", "reports", "other files", "row cache"}
    assert [(model.version, model.action) for model in plan.models] == [("1", "unlearn or retrain")]
    assert plan.working_copy
    assert {ref.name for ref in plan.versions} >= {"scans", "scans-truth"}


def test_nothing_is_found_afterwards_but_the_row_that_stays(erased, ids):
    certificate = erased["certificate"]
    assert certificate["search"]["findings"] == 0
    assert certificate["search"]["control"]["findings"] > 3
    assert {"id", "image"} <= set(certificate["search"]["control"]["kinds"])
    assert erased["again"][0] == 0
    assert erased["again"][1] > 3
    assert erased["grep"] == []
    assert not [path for path in erased["planted"] if path.suffix != ".db"]


def test_the_certificate_says_what_was_done_and_names_no_id(erased, ids):
    certificate = erased["file"]
    text = json.dumps(certificate) + erased["page"]
    assert not any(identity in text for identity in ids)
    model = certificate["models"]["scans-classifier"]
    assert model["how"] in ("unlearned", "retrained")
    assert set(model["measured"]) == {"before", "after", "retrained"}
    assert all("membership_advantage" in row for row in model["measured"].values())
    assert certificate["models_retired"] == ["scans-classifier version 1"]
    assert certificate["reason"] == "asked to"
    assert "src=" not in erased["page"]


def test_what_learnt_from_the_rows_can_not_come_back(erased):
    assert "can no longer be rebuilt" in erased["gone"]
    assert "erased" in erased["refused"]
    assert "erased" in erased["rollback"] or "retired" in erased["rollback"]
    aliases = {version: names for version, names, _, _ in erased["state"]["registry"]}
    assert "champion" in aliases["2"]
    assert erased["state"]["intact"]


def test_killed_at_every_step_it_ends_the_same(trained, erased, ids):
    codes = drive(trained, ids, *KILLS, "none")
    assert codes == {**dict.fromkeys(KILLS, 9), "none": 0}
    assert state(trained) == erased["state"]
    certificate = next((trained / ".clearwell" / "certificates").glob("*/certificate.json"))
    assert not verify(stores(trained), certificate)[1].findings


def test_a_changed_certificate_is_not_believed(trained, erased):
    certificate = next((trained / ".clearwell" / "certificates").glob("*/certificate.json"))
    copy = trained / "copy.json"
    copy.write_text(certificate.read_text().replace('"fingerprints": [', '"fingerprints": [], "old": ['))
    assert "it was changed" in refusal(lambda: verify(stores(trained), copy))

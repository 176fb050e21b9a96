"""The whole flow on a reduced `scans`: killed in the middle of stages, continued, repeated, changed.

The tests of this file tell one story and run in order, each on what the one before left.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from infra.embedded_server import orphans
from infra.files import is_running
from infra.ledger import Ledger
from infra.references import StageResult

pytestmark = pytest.mark.timeout(600)

CHAIN = [
    "validate",
    "label_noise",
    "pretrain",
    "finetune",
    "adapt",
    "reference",
    "reference-adapt",
    "unlearn",
    "compress",
    "naive",
    "evaluate",
    "register",
]


def stores(root: Path):
    from infra.model_store import ModelStore
    from infra.versions import DataVersions

    return DataVersions(root), ModelStore(root)


def assert_nothing_half_written(root: Path) -> None:
    """Every visible version, model and result is whole; drafts belong to nobody who lives."""
    versions, models = stores(root)
    for ref in versions.list():
        assert versions.intact(ref), ref
    for record in (root / ".clearwell" / "cache").glob("*/*"):
        if record.parent.name == ".drafts":
            continue
        result = StageResult.model_validate_json((record / "result.json").read_text())
        for ref in result.references:
            assert (versions if hasattr(ref, "rows") else models).intact(ref), ref
        for figure in result.figures:
            assert (record / figure.file).stat().st_size > 0
    for draft in (root / ".clearwell").glob("*/.drafts/*"):
        assert not is_running(draft.name.partition("-")[0])
    ledger = root / ".clearwell" / "ledger.db"
    if ledger.exists():
        assert Ledger(f"sqlite:///{ledger}").broken_at() is None


def registered(root: Path) -> list:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/.clearwell/mlflow.db", f"sqlite:///{root}/.clearwell/mlflow.db")
    return client.search_model_versions("name = 'scans-classifier'")


def cached(summary: dict) -> dict[str, bool]:
    return {stage["name"]: stage["cached"] for stage in summary["stages"]}


@pytest.mark.parametrize(
    ("stage", "delay"), [("validate", 0.5), ("label_noise", 1.0), ("unlearn", 0.3), ("register", 0.2)]
)
def test_a_kill_leaves_nothing_half_written(runner, stage, delay):
    before = len(list((runner.project / ".clearwell" / "cache" / stage).glob("*")))
    assert runner.kill_during(stage, delay), f"{stage} ended before it could be killed"
    assert_nothing_half_written(runner.project)
    assert len(list((runner.project / ".clearwell" / "cache" / stage).glob("*"))) == before


@pytest.fixture(scope="module")
def finished(runner) -> dict:
    return runner.run()


def test_the_same_command_continues_after_a_kill(runner, finished):
    found = cached(finished)
    assert list(found) == CHAIN
    assert not found["register"], "it was killed, so it must run again"
    assert all(found[name] for name in CHAIN[: CHAIN.index("compress")])
    assert_nothing_half_written(runner.project)
    assert not list((runner.project / ".clearwell").rglob(".drafts/*"))
    assert len(registered(runner.project)) == 1
    assert finished["champion"] == {"name": "scans-classifier", "version": "1", "alias": "champion"}


def test_servers_of_killed_runs_are_stopped(runner, finished):
    assert not list(orphans(runner.project / ".clearwell" / "prefect"))


def test_killed_runs_are_closed(runner, finished):
    from mlflow import MlflowClient

    uri = f"sqlite:///{runner.project}/.clearwell/mlflow.db"
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("clearwell").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    assert not [run for run in runs if run.info.status == "RUNNING"]
    killed = [run.info.run_name for run in runs if run.info.status == "KILLED"]
    assert killed.count("lifecycle") == 4
    assert {"validate", "label_noise", "unlearn", "register"} <= set(killed)


def test_the_summary_tells_what_was_measured(finished):
    keys = {"source_accuracy", "h_score", "known_accuracy", "membership_advantage", "size_bytes", "latency_ms"}
    assert keys <= set(finished["naive"])
    assert keys <= set(finished["chain"])
    assert finished["chain"]["size_bytes"] < finished["naive"]["size_bytes"] / 3
    assert finished["data"]["input_version"] != finished["data"]["output_version"]
    assert finished["peak_memory_mb"] > 100
    metrics = {stage["name"]: stage["metrics"] for stage in finished["stages"]}
    assert metrics["compress"]["export_gap"] < 1e-4
    assert metrics["validate"]["train.leaks"] > 0
    assert metrics["validate"]["train.exact_duplicates"] > 0


def test_the_report_is_one_self_contained_page(runner, finished):
    folder = runner.project / "reports" / "latest"
    page = (folder / "index.html").read_text()
    assert json.loads((folder / "summary.json").read_text())["run"] == finished["run"]
    assert page.count("data:image/png;base64,") >= 8
    assert 'src="http' not in page
    assert "scans-classifier" in page


def test_rows_are_kept_and_quarantined_with_a_reason(runner, finished):
    from infra import datasets as ds

    versions, _ = stores(runner.project)
    quarantine = ds.read_split(versions.path(versions.list("scans-quarantine")[0]), "train")
    assert all(quarantine["reason"])
    assert {"id", "image", "label", "row"} <= set(quarantine.column_names)
    raw, cleaned = (versions.resolve("scans", finished["data"][k]) for k in ("input_version", "output_version"))
    assert cleaned.rows + len(quarantine) == raw.rows
    columns = ds.read_split(versions.path(cleaned), "train").column_names
    assert {"noisy", "out_of_distribution", "corrected_label", "confidence"} <= set(columns)


def test_lineage_can_be_followed_from_the_registered_version(runner, finished):
    from mlflow import MlflowClient

    uri = f"sqlite:///{runner.project}/.clearwell/mlflow.db"
    client = MlflowClient(uri, uri)
    version = client.get_model_version_by_alias("scans-classifier", "champion")
    assert version.tags["clearwell.data_version"].endswith(".dir")
    parent = client.get_run(version.run_id)
    assert parent.data.params["compress.method"] == "udfc"
    experiment = client.get_experiment_by_name("clearwell").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} >= set(CHAIN)
    assert any(child.inputs.dataset_inputs for child in children)


def test_the_served_model_answers_like_the_stored_one(runner, finished):
    import mlflow.pyfunc
    import numpy as np
    import torch

    from infra.project import Project
    from infra.settings import Settings, Tracking
    from tasks.compress import load_model

    uri = f"sqlite:///{runner.project}/.clearwell/mlflow.db"
    project = Project(Settings(root=runner.project, tracking=Tracking(uri=uri)))
    record = next((runner.project / ".clearwell" / "cache" / "compress").glob("*/result.json"))
    network = load_model(project, StageResult.model_validate_json(record.read_text()).model)
    mlflow.set_tracking_uri(uri)
    served = mlflow.pyfunc.load_model("models:/scans-classifier@champion")
    batch = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).softmax(1).numpy()
    np.testing.assert_allclose(served.predict(batch), expected, atol=1e-5)


def test_again_with_nothing_changed_recomputes_nothing(runner, finished):
    again = runner.run()
    assert all(cached(again).values())
    assert again["chain"] == finished["chain"]
    assert len(registered(runner.project)) == 1


def test_a_changed_parameter_runs_only_what_depends_on_it(runner, finished):
    changed = runner.run("--set", "compress.parameters.weight_bits=5")
    assert [name for name, hit in cached(changed).items() if not hit] == ["compress", "evaluate", "register"]
    why = {stage["name"]: stage["why"] for stage in changed["stages"]}
    assert "weight_bits" in why["compress"]
    assert changed["champion"]["version"] == "2"


def test_stages_can_not_see_the_truth(runner, finished):
    """Without the truth everything up to the model comes from the cache; only what was scored with it changes."""
    truth = runner.project / "data" / "truth"
    hidden = runner.project / "hidden-truth"
    truth.rename(hidden)
    try:
        blind = runner.run()
    finally:
        hidden.rename(truth)
    hits = cached(blind)
    assert all(hits[name] for name in CHAIN if name not in ("evaluate", "register"))
    assert not hits["evaluate"]
    assert "h_score" not in blind["chain"]
    for name in CHAIN[: CHAIN.index("evaluate")]:
        key = next((runner.project / ".clearwell" / "cache" / name).glob("*/key.json"))
        assert not any("truth" in entry for entry in json.loads(key.read_text())["inputs"])


def test_lost_bytes_are_noticed_and_made_again(runner, finished):
    record = next((runner.project / ".clearwell" / "cache" / "finetune").glob("*/result.json"))
    model = StageResult.model_validate_json(record.read_text()).model
    shutil.rmtree(runner.project / model.uri)
    summary = runner.run()
    stage = {s["name"]: s for s in summary["stages"]}
    assert not stage["finetune"]["cached"]
    assert "no longer whole" in stage["finetune"]["why"]
    assert stage["adapt"]["cached"], "the same bytes were made, so what depends on them still holds"


def test_failure_names_input_and_the_command_that_continues(runner, finished):
    from mlflow import MlflowClient

    code, message = runner.finish(
        "run", "--config", "reduced.yaml", "--set", "adapt.parameters.lr=1e9", "--set", "adapt.parameters.epochs=1"
    )
    assert code == 4, message
    assert "adapt" in message
    assert "continue with: clearwell run --config reduced.yaml" in message
    uri = f"sqlite:///{runner.project}/.clearwell/mlflow.db"
    client = MlflowClient(uri, uri)
    runs = client.search_runs([client.get_experiment_by_name("clearwell").experiment_id], max_results=5)
    assert {run.info.status for run in runs if run.info.run_name in ("adapt", "lifecycle")} >= {"FAILED"}


def test_rollback_gives_the_alias_back(runner, finished):
    from mlflow import MlflowClient

    uri = f"sqlite:///{runner.project}/.clearwell/mlflow.db"
    client = MlflowClient(uri, uri)
    before, earlier = (
        client.get_model_version_by_alias("scans-classifier", alias).version for alias in ("champion", "previous")
    )
    code, message = runner.finish("rollback", "scans-classifier")
    assert code == 0, message
    now, way_back = (
        client.get_model_version_by_alias("scans-classifier", alias).version for alias in ("champion", "previous")
    )
    assert before != earlier
    assert (now, way_back) == (earlier, before)


def test_prefect_knows_the_flow_runs(runner, finished):
    import sqlite3

    database = runner.project / ".clearwell" / "prefect" / "prefect.db"
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        states = [row[0] for row in connection.execute("select state_type from flow_run order by created")]
        artifacts = {row[0] for row in connection.execute("select key from artifact")}
    assert "COMPLETED" in states
    assert "FAILED" in states
    assert {"stages", "naive-against-chain", "report"} <= artifacts

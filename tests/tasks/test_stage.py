"""Round every stage: taken from the cache or computed, tracked, kept whole, and closed when it fails."""

from functools import partial

import pytest
import torch
from pydantic import ValidationError

from infra.errors import DatasetFormatError, StageError
from infra.settings import settings
from models.training import ClassifierTrainer, sgd
from tasks.stage import RunContext, StageConfig, run_stage, watching


class Config(StageConfig):
    method: str = "none"
    epochs: int = 1


def write(folder):
    (folder / "train").mkdir()
    (folder / "train" / "part.parquet").write_bytes(b"abc")
    return 3


@pytest.fixture
def run(project):
    return RunContext(parent=project.tracker.open("lifecycle"), command="clearwell run --data mine")


@pytest.fixture
def data(project):
    return project.versions.add("scans", write)


@pytest.fixture
def work():
    """Work that counts how often it was done."""

    def do(desk):
        do.times += 1
        desk.metrics["rows"] = 3.0
        desk.evidence["found"] = ["a"]

    do.times = 0
    return do


def children(project, run):
    found = project.tracker.client.search_runs(
        [project.tracker.experiment], f"tags.mlflow.parentRunId = '{run.parent}'", order_by=["attributes.start_time"]
    )
    return [(each.info.run_name, each.info.status, each.data.tags) for each in found]


def test_second_run_takes_the_result_from_the_cache(project, run, data, work):
    first = run_stage("check", Config(), {"data": data}, work, run)
    second = run_stage("check", Config(), {"data": data}, work, run)
    assert work.times == 1
    assert (first.cached, first.why) == (False, "it never ran on this project")
    assert (second.cached, second.why) == (True, "same inputs, parameters and code")
    assert second.metrics == first.metrics == {"rows": 3.0}
    assert [(name, status) for name, status, _ in children(project, run)] == [("check", "FINISHED")] * 2
    assert children(project, run)[1][2]["clearwell.computed_by"] == first.run_id


def test_changed_parameter_input_or_setting_computes_again_and_says_why(project, run, data, work):
    run_stage("check", Config(), {"data": data}, work, run)
    assert run_stage("check", Config(epochs=2), {"data": data}, work, run).why == "changed: config.epochs 1 -> 2"
    other = project.versions.add("other", lambda folder: write(folder) and (folder / "x").write_text("x"))
    assert "changed: inputs.data" in run_stage("check", Config(), {"data": other}, work, run).why
    assert "changed: settings" in run_stage("check", Config(), {"data": data}, work, run, settings={"w": 1}).why
    assert work.times == 4
    assert run_stage("check", Config(), {"data": data, "model": None}, work, run).cached  # no input is no change


@pytest.mark.parametrize("refresh", [("check",), ("all",)])
def test_refresh_computes_again(run, data, work, refresh):
    run_stage("check", Config(), {"data": data}, work, run)
    again = run_stage("check", Config(), {"data": data}, work, run.model_copy(update={"refresh": refresh}))
    assert (work.times, again.why) == (2, "asked to with --refresh")
    run_stage("check", Config(), {"data": data}, work, run.model_copy(update={"refresh": ("another",)}))
    assert work.times == 2


def test_result_whose_outside_record_is_gone_is_made_again(run, data, work):
    run_stage("check", Config(), {"data": data}, work, run)
    assert run_stage("check", Config(), {"data": data}, work, run, still_true=lambda *_: True).cached
    again = run_stage("check", Config(), {"data": data}, work, run, still_true=lambda *_: False)
    assert (again.cached, again.why) == (False, "what it recorded outside no longer holds")


def test_outputs_are_kept_tracked_and_filed(project, run, data):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    def work(desk):
        desk.data = desk.project.versions.add("scans", lambda folder: write(folder) and (folder / "x").write_text("1"))
        desk.model = desk.project.models.save("check", {"w": torch.ones(2)}, {})
        desk.others["quarantine"] = data
        desk.metrics["accuracy"] = 0.5
        desk.figure("curve", Figure(), "A curve")

    result = run_stage("check", Config(), {"data": data}, work, run)
    assert (project.cache.record(result) / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [figure.caption for figure in result.figures] == ["A curve"]
    client, child = project.tracker.client, result.run_id
    logged = {each.path for folder in ("data/output", "data/quarantine", "weights", "figures")
              for each in client.list_artifacts(child, folder)}  # fmt: skip
    assert {"weights/weights.safetensors", "figures/curve.png"} < logged
    assert f"data/output/{project.versions.pin(result.data).name}" in logged
    named = {(each.dataset.name, each.tags[0].value) for each in client.get_run(child).inputs.dataset_inputs}
    assert ("scans", "output") in named
    assert client.get_run(child).data.metrics["accuracy"] == 0.5
    filed = [(entry["payload"]["name"], entry["payload"]["stage"]) for entry in project.ledger.entries("data")]
    assert filed == [("scans", "check"), ("scans", "check")]


def test_failure_names_input_and_command_and_closes_the_run(project, run, data):
    def work(desk):
        desk.project.versions.add("half", write)
        raise ValueError("perplexity must be below the number of rows")

    with pytest.raises(StageError, match="Stage 'check'") as error:
        run_stage("check", Config(), {"data": data, "model": None}, work, run)
    text = str(error.value)
    assert f"(none) failed on data {data}: ValueError: perplexity must be below" in text
    assert text.endswith("continue with: clearwell run --data mine")
    assert isinstance(error.value.__cause__, ValueError)
    assert [(name, status) for name, status, _ in children(project, run)] == [("check", "FAILED")]
    assert project.cache.find("check", {})[0] is None
    assert list((project.cache.folder).glob("check/*")) == []


def test_errors_of_clearwell_keep_their_kind(project, run, data):
    def work(desk):
        raise DatasetFormatError("Row 3 (id 'r3') is broken.", row=3)

    with pytest.raises(DatasetFormatError, match=r"Row 3 \(id 'r3'\)"):
        run_stage("check", Config(), {"data": data}, work, run)
    assert children(project, run)[0][1] == "FAILED"


def test_interruption_marks_the_run_killed(project, run, data):
    def work(desk):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage("check", Config(), {"data": data}, work, run)
    assert children(project, run)[0][1] == "KILLED"


def test_lost_output_is_computed_again(project, run, data):
    def work(desk):
        desk.model = desk.project.models.save("check", {"w": torch.ones(2)}, {})

    first = run_stage("check", Config(), {"data": data}, work, run)
    (project.models.path(first.model) / "weights.safetensors").write_bytes(b"damaged")
    again = run_stage("check", Config(), {"data": data}, work, run)
    assert again.why == f"its output {first.model} is no longer whole"
    assert project.models.intact(again.model)
    assert run_stage("check", Config(), {"data": data}, work, run).cached


def test_watchers_hear_of_every_stage_and_epoch(project, run, data):
    def work(desk):
        network = torch.nn.Linear(2, 2)
        trainer = ClassifierTrainer(network, epochs=2, batch_size=2, optimizer=sgd(0.1), label="tiny")
        trainer.fit(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))

    heard = []
    with watching(lambda event, stage, facts: heard.append((event, stage, facts.get("epoch")))):
        for _ in range(2):
            result = run_stage("check", Config(), {"data": data}, work, run)
    assert [(row["training"], row["epoch"]) for row in result.history] == [("tiny", 0), ("tiny", 1)]
    assert heard == [
        ("begin", "check", None), ("epoch", "check", 1), ("epoch", "check", 2), ("end", "check", None),
        ("cached", "check", None),
    ]  # fmt: skip
    run_stage("check", Config(seed=1), {"data": data}, work, run)
    assert len(heard) == 5  # nobody listens any more


def test_config_is_frozen_and_closed():
    with pytest.raises(ValidationError, match="frozen"):
        Config().seed = 3
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Config(seed=-1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Config(sede=1)


def train(rows):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Linear(4, 2)
        x = torch.randn(rows, 4)
    ClassifierTrainer(network, epochs=2, batch_size=10, optimizer=sgd(0.1), label="toy").fit(x, (x[:, 0] > 0).long())
    return network.weight.detach()


def test_training_over_two_processes_comes_back_with_its_curves_and_has_a_key_of_its_own(
    project, run, data, monkeypatch
):
    weights = []

    def work(desk):
        weights.append(desk.spread(partial(train, 40)))

    alone = run_stage("check", Config(), {"data": data}, work, run)
    monkeypatch.setenv("CLEARWELL_RUNNER__PROCESSES", "2")
    settings.cache_clear()
    spread = run_stage("check", Config(), {"data": data}, work, run)
    assert not spread.cached
    assert "processes" in spread.why
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)
    assert [row["training"] for row in spread.history] == ["toy", "toy"]
    assert [row["loss"] for row in spread.history] == pytest.approx([row["loss"] for row in alone.history])

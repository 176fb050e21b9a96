"""`clearwell forget` and the flow: what is asked, what is refused, and data that no model was trained on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows import cli
from flows.commands.forget import read_ids
from flows.erasure import config_of
from infra.errors import ConfigurationError
from infra.project import Project
from infra.tracking import flatten

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def clearwell(home, monkeypatch, capsys, empty_tracking):
    """Run a command as a user does; returns exit code, standard output and standard error."""
    shutil.copyfile(empty_tracking, home / ".clearwell" / "mlflow.db")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / ".clearwell" / "arrow"))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["clearwell", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def flowers(clearwell, tmp_path):
    """A table of the user's, imported."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"id": [f"flower-{n:03d}" for n in range(60)], "label": ["red", "green"] * 30, "split": "train"}
    )
    frame["width"], frame["height"] = rng.normal(size=60), rng.normal(size=60)
    frame.to_csv(tmp_path / "flowers.csv", index=False)
    code, out, _ = clearwell("data", "import", tmp_path / "flowers.csv", "--json")
    assert code == 0
    return json.loads(out)


def process(home, *arguments):
    """What a command prints, run in a process of its own: Prefect reads its server's address once."""
    command = [Path(sys.executable).with_name("clearwell"), *map(str, arguments)]
    left = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(command, cwd=home, env=left, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_ids_come_from_arguments_and_files(tmp_path):
    (tmp_path / "lines.txt").write_text("a\n\n b \n")
    pd.DataFrame({"id": ["c", None, "d"]}).to_csv(tmp_path / "rows.csv")
    pd.DataFrame({"id": ["e"]}).to_parquet(tmp_path / "rows.parquet")
    files = [str(tmp_path / name) for name in ("lines.txt", "rows.csv", "rows.parquet")]
    assert read_ids(["x", *files]) == ["x", "a", "b", "c", "d", "e"]
    pd.DataFrame({"name": ["e"]}).to_csv(tmp_path / "rows.csv")
    with pytest.raises(ConfigurationError, match="has no column 'id'"):
        read_ids([str(tmp_path / "rows.csv")])
    (tmp_path / "rows.parquet").write_text("no table")
    with pytest.raises(ConfigurationError, match="can not be read"):
        read_ids([str(tmp_path / "rows.parquet")])


def test_parameters_of_a_run_are_read_back_from_its_record():
    from flows.config import load_config

    given = load_config(
        None,
        [
            "finetune.epochs=3",
            "pretrain.enabled=false",
            "unlearn.parameters.epochs=1",
            "validate.mean_range=[1, 9]",
            "validate.near_duplicates='off'",
        ],
    )
    kept = {name: str(value) for name, value in flatten(given.model_dump(mode="json", by_alias=True))}
    found = config_of(kept, "flowers")
    assert found.data == "flowers"
    same = {"data", "register_"}
    assert found.model_dump(exclude=same) == given.model_dump(exclude=same)
    assert found.register_.promote
    assert config_of({"finetune.epochs": "many"}, "x").finetune.epochs > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "No ids were given"),
        (["flower-999", "--yes"], 3, "in none of the datasets flowers: flower-999. Did you mean 'flower-0"),
        (["flower-001", "--data", "trees"], 3, "There is no dataset 'trees'. Known: flowers"),
        (["flower-001"], 2, "add --yes, or look first with --dry-run"),
        (["--resume"], 8, "There is no unfinished erasure"),
        (["--verify", "absent.json"], 8, "absent.json is no certificate of an erasure"),
    ],
)
def test_what_can_not_be_done_is_one_message_and_a_code(clearwell, flowers, arguments, code, message):
    found, _, err = clearwell("forget", *arguments)
    assert (found, message in err) == (code, True), err
    assert "Traceback" not in err


def test_a_plan_is_shown_and_nothing_changes(clearwell, flowers):
    code, out, _ = clearwell("forget", "flower-007", "flower-008", "--dry-run")
    assert code == 0
    assert "2 ids to forget" in out
    assert "dataset versions" in out
    assert "Nothing was changed." in out
    assert json.loads(clearwell("data", "list", "--json")[1])[0]["version"] == flowers["version"]


def test_data_without_a_model_are_erased_and_certified(clearwell, flowers, home, monkeypatch):
    monkeypatch.setenv("CLEARWELL_ACTOR", "Ada")
    certificate = json.loads(process(home, "forget", "--ids", "flower-007", "--reason", "asked to", "--yes", "--json"))
    assert (certificate["models"], certificate["actor"], certificate["reason"]) == ({}, "Ada", "asked to")
    listed = json.loads(clearwell("data", "list", "--json")[1])
    assert [(each["name"], each["rows"]) for each in listed] == [("flowers", 59)]
    assert not any(b"flower-007" in path.read_bytes() for path in home.rglob("*") if path.is_file())
    entry = Project().ledger.entries("erasure")[0]
    assert (entry["actor"], entry["payload"]["ids"], entry["payload"]["reason"]) == ("Ada", 1, "asked to")
    code, out, _ = clearwell("forget", "--verify", certificate["path"])
    assert code == 0
    assert "Nothing of the erased rows is in" in out
    assert "finds the row that stays" in out
    (home / ".clearwell" / "note.txt").write_text("flower-007 called again")
    code, _, err = clearwell("forget", "--verify", certificate["path"])
    assert code == 8
    assert ".clearwell/note.txt" in err
    assert Path(certificate["page"]).read_text().startswith("<!doctype html>")


ONE_ROW = """
network: {widths: [8], embedding_dim: 4}
validate: {near_duplicates: "off"}
label_noise: {enabled: false}
pretrain: {enabled: false}
finetune: {epochs: 3}
adapt: {enabled: false}
naive: {enabled: false}
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_one_row_without_a_label_is_forgotten_by_a_model_trained_anew(home, empty_tracking, tmp_path):
    """Unlearning has nothing to take back, and of one row an attack can tell nothing: neither stands in the way."""
    shutil.copyfile(empty_tracking, home / ".clearwell" / "mlflow.db")
    gate = "metric: membership_advantage, split: erasure, at_most: 0.15, chance: membership_chance"
    (home / "mlflow.yaml").write_text(f"gates:\n  - {{{gate}, only_if_measured: true, higher_is_better: false}}\n")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": [f"flower-{n:03d}" for n in range(200)], "label": ["red", "green"] * 100})
    frame["split"] = np.where(frame.index < 120, "train", "test")
    frame["width"], frame["height"] = rng.normal(size=200) + (frame["label"] == "red"), rng.normal(size=200)
    frame["depth"] = rng.normal(size=200)
    frame.loc[3, "label"] = None
    frame.to_csv(tmp_path / "flowers.csv", index=False)
    (tmp_path / "small.yaml").write_text(ONE_ROW)
    process(home, "run", "--data", tmp_path / "flowers.csv", "--config", tmp_path / "small.yaml")
    certificate = json.loads(process(home, "forget", "flower-003", "--reason", "asked", "--yes", "--json"))
    (model,) = certificate["models"].values()
    assert model["how"] == "retrained"
    assert "None of the 1 rows to forget was learnt with a label" in model["refused"][0]
    assert model["measured"]["after"]["membership_chance"] > 0.15

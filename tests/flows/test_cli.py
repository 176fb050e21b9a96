"""The command line: fast help, tables and JSON, messages instead of tracebacks, documented exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows import cli
from infra import errors

ROOT = Path(__file__).parents[2]


@pytest.fixture
def flowers(tmp_path):
    """A table of real kind with one duplicate and one missing value."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": [f"f{n}" for n in range(60)], "label": ["red", "green"] * 30, "split": "train"})
    frame["width"], frame["height"] = rng.normal(size=60), rng.normal(size=60)
    frame.loc[50, ["width", "height"]] = frame.loc[3, ["width", "height"]].to_numpy()
    frame.loc[51, "width"] = np.nan
    frame.to_csv(tmp_path / "flowers.csv", index=False)
    return tmp_path / "flowers.csv"


def test_help_imports_no_product():
    code = (
        "import sys; sys.argv = ['clearwell', *sys.argv[1:]]\n"
        "from flows import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'dvc', 'pandas', 'numpy', 'great_expectations'}\n"
        "print('IMPORTED', sorted(heavy & set(sys.modules)))"
    )
    for arguments in (["--help"], ["run", "--help"], ["data", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Exit codes" in done.stdout or arguments[0] == "data"
        assert done.stdout.endswith("IMPORTED []\n")


def test_every_command_has_help(clearwell):
    for command in ("run", "methods", "reproduce", "report", "promote", "explain", "rollback", "history", "serve",
                    "ledger verify", "ledger show", "doctor", "data pull",
                    "data import", "data check", "data list", "data restore"):  # fmt: skip
        code, out, _ = clearwell(*command.split(), "--help")
        assert code == 0
        assert f"clearwell {command}" in out


def test_exit_codes_are_those_of_the_help():
    codes = {error.__name__: error.exit_code for error in vars(errors).values() if isinstance(error, type)
             and issubclass(error, errors.ClearwellError)}  # fmt: skip
    assert codes["ConfigurationError"] == 2
    assert codes["DatasetNotFoundError"] == codes["DatasetFormatError"] == codes["ValidationGateError"] == 3
    assert (codes["StageError"], codes["StoreError"], codes["PromotionError"], codes["LeaseHeldError"]) == (4, 5, 6, 6)
    for code in sorted(set(codes.values())):
        assert f"{code} " in cli.EXIT_CODES


def test_unknown_command_and_option_exit_with_2(clearwell):
    code, _, err = clearwell("runx")
    assert code == 2
    assert "run" in err
    assert clearwell("run", "--sed", "1")[0] == 2


def test_interruption_exits_with_130_and_says_what_is_kept(clearwell, monkeypatch):
    monkeypatch.setattr("flows.commands.methods.show_methods", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    code, _, err = clearwell("methods")
    assert code == 130
    assert "the same command continues" in err


def test_unexpected_errors_are_not_hidden(clearwell, monkeypatch):
    monkeypatch.setattr("flows.commands.methods.show_methods", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["clearwell", "methods"])
    with pytest.raises(ZeroDivisionError, match="division"):
        cli.main()


def test_methods(clearwell):
    code, out, _ = clearwell("methods")
    assert code == 0
    assert "udfc" in out
    code, out, _ = clearwell("methods", "unlearn", "--json")
    found = json.loads(out)
    assert {each["stage"] for each in found} == {"unlearn"}
    laf = next(each for each in found if each["name"] == "laf")
    assert laf["link"].startswith("https://")
    assert laf["what_for"]
    assert isinstance(laf["year"], int)


def test_methods_by_their_place_in_the_taxonomy(clearwell):
    code, out, _ = clearwell("methods", "curate", "--goal", "diversification", "--unit", "data point", "--json")
    assert code == 0
    found = {each["name"]: each for each in json.loads(out)}
    assert found["minhash-dedup"]["mechanism"] == "locality-sensitive hashing, threshold"
    assert "dsir" not in found
    code, out, _ = clearwell("methods", "--goal", "distribution matching")
    assert code == 0
    assert "dsir" in out
    code, out, err = clearwell("methods", "curate", "--goal", "diversificatoin")
    assert (code, out) == (2, "")
    assert err.startswith("clearwell: No method has the goal 'diversificatoin'. Did you mean 'diversification'?")


def test_unknown_stage_and_method_get_a_suggestion(clearwell):
    code, out, err = clearwell("methods", "unlern")
    assert (code, out) == (2, "")
    assert err == "clearwell: There is no stage 'unlern'. Did you mean 'unlearn'?\n"
    code, _, err = clearwell("reproduce", "rotnett")
    assert code == 2
    assert "Did you mean 'rotnet'?" in err


def test_run_refuses_misspelt_names_before_anything_starts(clearwell, home):
    code, _, err = clearwell("run", "--set", "finetune.epoch=1")
    assert code == 2
    assert "finetune.epoch: there is no such name. Did you mean 'epochs'?" in err
    code, _, err = clearwell("run", "--refresh", "finetun")
    assert code == 2
    assert "--refresh: there is no stage 'finetun'. Did you mean 'finetune'?" in err
    assert not (home / ".clearwell" / "mlflow.db").exists()


def test_run_shows_its_parameters(clearwell):
    import yaml

    code, out, _ = clearwell("run", "--show-config", "--set", "finetune.epochs=2", "--seed", "4")
    assert code == 0
    shown = yaml.safe_load(out)
    assert (shown["finetune"]["epochs"], shown["adapt"]["seed"]) == (2, 4)
    assert list(shown)[:3] == ["data", "network", "validate"]


def test_broken_settings_are_one_message(clearwell, home):
    (home / "mlflow.yaml").write_text("trackng: {}")
    code, _, err = clearwell("data", "list")
    assert code == 2
    assert "trackng: there is no such name. Did you mean 'tracking'?" in err


def test_own_data_are_imported_listed_and_restored(clearwell, flowers, tmp_path):
    assert json.loads(clearwell("data", "list", "--json")[1]) == []
    code, out, _ = clearwell("data", "import", flowers, "--json")
    assert code == 0
    ref = json.loads(out)
    assert (ref["name"], ref["rows"]) == ("flowers", 60)
    code, out, _ = clearwell("data", "import", flowers, "--name", "twice")
    assert code == 0
    assert "clearwell data check twice@" in out
    assert [each["name"] for each in json.loads(clearwell("data", "list", "--json")[1])] == ["twice", "flowers"]
    assert "flowers" in clearwell("data", "list")[1]

    target = tmp_path / "back"
    code, out, _ = clearwell("data", "restore", f"flowers@{ref['version'][:12]}", "--to", target)
    assert code == 0
    assert len(pd.read_parquet(target / "train")) == 60
    code, _, err = clearwell("data", "restore", "flowers", "--to", target)
    assert code == 5
    assert "is not empty" in err
    code, _, err = clearwell("data", "restore", "flowers@ffff", "--to", tmp_path / "x")
    assert code == 3
    assert "no version 'ffff' of the dataset 'flowers'. Known: flowers@" in err


def test_check_shows_rows_ids_and_reasons_and_changes_nothing(clearwell, flowers):
    code, out, _ = clearwell("data", "check", flowers, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["rows"] == [
        {"split": "train", "file": "flowers.csv", "row": 50, "id": "f50", "reason": "exact duplicate of f3"},
        {
            "split": "train",
            "file": "flowers.csv",
            "row": 51,
            "id": "f51",
            "reason": "missing or infinite value in width",
        },
    ]
    assert found["counts"]["train.exact_duplicates"] == 1
    assert json.loads(clearwell("data", "list", "--json")[1]) == []
    version = json.loads(clearwell("data", "import", flowers, "--json")[1])["version"]
    code, out, _ = clearwell("data", "check", f"flowers@{version[:8]}")
    assert code == 0
    assert "2 rows need attention" in out
    assert "missing or infinite value in width" in out
    assert len(json.loads(clearwell("data", "list", "--json")[1])) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data", "import", "absent.csv"], 3, "There is nothing at absent.csv"),
        (["data", "check", "absent"], 3, "There is no dataset 'absent'"),
        (["data", "check", "."], 3, "holds neither .parquet nor .csv files nor images"),
        (["data", "pull"], 5, "has no data.dvc"),
        (["data", "restore", "scans@abcd", "--to", "x"], 3, "no version 'abcd' of the dataset 'scans'"),
        (["report"], 3, "There is no report"),
        (["reproduce", "rotnet", "--seeds", "one"], 2, "--seeds takes whole numbers"),
    ],
)
def test_what_can_not_be_done_is_one_message_and_a_code(clearwell, arguments, code, message):
    found, out, err = clearwell(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("clearwell: ")
    assert message in err
    assert "Traceback" not in err


def test_name_that_is_no_name_is_refused(clearwell, flowers):
    code, _, err = clearwell("data", "import", flowers, "--name", "../../outside")
    assert code == 2
    assert "can not name a dataset" in err


def test_doctor_finds_a_sound_project_sound(clearwell):
    code, out, _ = clearwell("doctor", "--json")
    assert code == 0
    assert {each["check"]: each["state"] for each in json.loads(out)} == dict.fromkeys(
        ("python", "packages", "settings", "state folder", "data", "ledger"), "ok"
    )


def test_doctor_says_what_to_mend(clearwell, home, monkeypatch):
    from flows.commands import doctor

    monkeypatch.setitem(doctor.PINNED, "torch", "0.0.1")
    (home / "data.dvc").write_text("outs: []")
    (home / ".clearwell" / "ledger.db").write_bytes(b"this is no database, far from it")
    code, out, err = clearwell("doctor")
    assert code == 2
    assert "3 of 6 checks need attention: packages, data, ledger." in err
    assert "0.0.1 is needed. Run `make install`" in out
    assert "Run `clearwell data pull`" in out

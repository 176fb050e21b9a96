"""``clearwell plan``, as a user types it."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine

from flows.plan import plan  # noqa: F401 - Prefect notes its server when imported: before a command starts one


@pytest.fixture
def wine(tmp_path):
    """Two cellars; the labels of the second are wrong for the most part."""
    X, y = load_wine(return_X_y=True)
    X, y = np.concatenate([X, X]), np.concatenate([y, (y + np.arange(len(y)) % 3) % 3])
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])
    frame["label"] = y.astype(str)
    frame["source"] = np.repeat(["tidy", "untidy"], len(y) // 2)
    frame["split"] = np.where((np.arange(len(y)) % 4 == 0) & (frame["source"] == "tidy"), "test", "train")
    frame.to_csv(tmp_path / "wine.csv", index=False)
    return tmp_path / "wine.csv"


@pytest.mark.long
def test_a_plan_answers_with_a_table_and_a_figure(tracked, wine, home):
    command = ("plan", "--data", wine, "--budget", "600", "--pools", "source", "--pilot", "60")
    code, printed, errors = tracked(*command)
    assert code == 0, errors
    for said in ("600 rows seen", "filtering-laws", "projektor", "predicted", "outcome", "→ ", "Train on",
                 "of tidy", "Predicted accuracy", "The pilots: ", "The figure: "):  # fmt: skip
        assert said in printed, said
    folder = home / "reports" / "plan-wine"
    assert (folder / "plan.png").exists()
    found = json.loads((folder / "summary.json").read_text())
    rows = found["trained"][0]["rows"]
    assert rows["tidy"] > 3 * rows.get("untidy", 0)
    assert found["trained"][0]["outcome"] > 0.85
    assert found["command"] == f"clearwell {' '.join(map(str, command))}"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--budget", "0"), 2, "A budget of 0 rows trains nothing. Give the rows that training may see"),
        (("--budget", "-5"), 2, "A budget of -5 rows trains nothing"),
        ((), 2, "Missing option '--budget'"),
        (("--budget", "100", "--score", "el3n"), 2, "Did you mean 'el2n'"),
        (("--budget", "100", "--score", "survey"), 2, "survey scores no rows. Name another selector, such as el2n"),
        (("--budget", "100", "--data", "no-such-data"), 3, "no file or folder of that name"),
        (("--budget", "100", "--quantiles", "1"), 2, "Invalid value for '--quantiles'"),
    ],
)
def test_what_can_not_be_planned_is_refused(tracked, wine, arguments, code, message):
    given = () if "--data" in arguments else ("--data", wine)
    found, _, errors = tracked("plan", *given, *arguments)
    assert found == code
    assert message in " ".join(errors.replace("│", " ").split())


def test_help_says_what_it_does(clearwell):
    code, printed, _ = clearwell("plan", "--help")
    assert code == 0
    for word in ("which pools", "--budget", "--pools", "--score", "--pilot", "--json", "Exit codes"):
        assert word in printed, word


def test_data_without_labels_can_not_be_planned_with(tracked, wine, home):
    pd.read_csv(wine).drop(columns=["label", "split"]).to_csv(home / "bare.csv", index=False)
    code, _, errors = tracked("plan", "--data", "bare.csv", "--budget", "100")
    assert code == 3
    assert "A plan needs labelled rows of two classes in the split 'train' of bare" in errors

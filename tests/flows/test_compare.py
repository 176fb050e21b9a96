"""``clearwell compare``, as a user types it."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine

from flows.compare import compare  # noqa: F401 - Prefect notes its server when imported: before a command starts one
from tasks import arenas


@pytest.fixture
def wine(tmp_path):
    X, y = load_wine(return_X_y=True)
    frame = pd.DataFrame(np.column_stack([X[:, :6], y]), columns=[*"abcdef", "label"])
    frame.to_csv(tmp_path / "wine.csv", index=False)
    return tmp_path / "wine.csv"


def test_a_contest_prints_its_leaderboard_and_recommendation(tracked, wine, home, monkeypatch):
    monkeypatch.setitem(arenas.PLACES, "planted", "tests.tasks.planted_arena")
    code, printed, errors = tracked("compare", "planted", "--data", wine, "--methods", "oracle,raises,misplaced")
    assert code == 0, errors
    assert "planted on wine@" in printed
    assert "accuracy of the guess" in printed
    for said in ("misplaced: takes sound data", "raises: ValueError: k must be below", "Take ", "→ ", "coin *",
                 "Failed, see the table: raises.", "The page: "):  # fmt: skip
        assert said in printed, said
    assert (home / "reports" / "compare-planted-wine" / "index.html").exists()


def test_json_is_one_document_with_everything(tracked, wine, home):
    command = ("compare", "discover", "--data", wine, "--methods", "k-means", "--budget", "60", "--seed", "3", "--json")
    code, printed, errors = tracked(*command)
    assert code == 0, errors
    found = json.loads(printed)
    assert (found["stage"], found["seed"], found["budget"]) == ("discover", 3, 60.0)
    assert {row["name"] for row in found["candidates"]} == {"k-means", "gaussian-mixture", "hdbscan", "spectral"}
    assert {row["status"] for row in found["candidates"]} == {"done"}
    values = [row["metrics"]["accuracy"] for row in found["candidates"]]
    assert values == sorted(values, reverse=True)
    assert found["recommendation"]["baseline"] is True
    assert found["command"] == f"clearwell {' '.join(map(str, command))}"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("discovr",), 2, "The methods of 'discovr' can not be compared. Did you mean 'discover'?"),
        (
            ("discover", "--methods", "k-meens"),
            2,
            "no candidate 'k-meens' for 'discover'. Did you mean 'k-means'",
        ),
        (("discover", "--budget", "0"), 2, "Invalid value for '--budget'"),
    ],
)
def test_what_can_not_be_compared_is_refused(tracked, arguments, code, message):
    found, _, errors = tracked("compare", *arguments)
    assert found == code
    assert message in " ".join(errors.replace("│", " ").split())


def test_help_says_what_it_does(clearwell):
    code, printed, _ = clearwell("compare", "--help")
    assert code == 0
    for word in ("baselines", "--methods", "--budget", "--here", "--json", "Exit codes"):
        assert word in printed, word

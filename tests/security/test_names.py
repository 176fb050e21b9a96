"""Names that lead elsewhere, ask databases for more, or fill a screen are refused in words, and harm nothing."""

import numpy as np
import pandas as pd
import pytest

from infra.errors import ClearwellError, ConfigurationError, DatasetNotFoundError, PromotionError
from infra.files import folder_digest
from infra.importing import import_path, read_path
from tasks.ingest import ingest

STRANGE = [
    "../outside",
    "..",
    "/etc/passwd",
    "a/../../b",
    "with space",
    "naïve",
    "数据",
    "\u212aelvin",  # the sign of kelvin, which is a k to a pattern that ignores case
    "a\nb",
    "a\0b",
    "-rf",
    "a@b",
    "*",
    "**",
    "[a]",
    "x' OR '1'='1",
    '"; DROP TABLE ledger; --',
    "$(touch mark)",
    "n" * 300,
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    frame = pd.DataFrame({"width": np.arange(20.0), "label": ["a", "b"] * 10, "id": [f"r{n}" for n in range(20)]})
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def nothing_else_changes(tmp_path):
    """What lies round the project stays as it is."""
    outside = tmp_path / "outside" / "ab.dvc"
    outside.parent.mkdir()
    outside.write_text("meta: {name: outside, rows: 1, sha256: x}\nouts: [{md5: abcdef.dir, path: ab}]\n")
    before = {path.name for path in tmp_path.iterdir()} | {folder_digest(outside.parent)}
    yield
    assert {path.name for path in tmp_path.iterdir()} | {folder_digest(outside.parent)} == before | {"project"}


@pytest.mark.parametrize("name", STRANGE)
def test_name_of_a_dataset(project, rows, nothing_else_changes, name):
    with pytest.raises(ConfigurationError, match=r"can not name a dataset|has at most 100 letters, got 300"):
        import_path(project.versions, rows, name)
    assert project.versions.list() == []
    for version in ("", "abcd", "../../outside/ab"):
        with pytest.raises(DatasetNotFoundError, match=r"There is no version .* of the dataset"):
            project.versions.resolve(name, version)


@pytest.mark.parametrize("name", [*STRANGE, "../project/.clearwell@abcd", "n" * 300 + "@abcd", "@", ""])
def test_name_that_a_run_is_given(project, nothing_else_changes, name):
    if name in ("..", "../outside", "/etc/passwd"):
        name = f"{name}@abcd"  # without it, it is a path that is there
    with pytest.raises(DatasetNotFoundError, match=r"There is no (version|dataset)") as error:
        ingest.fn(name)
    assert len(str(error.value)) < 900


def test_name_made_from_a_long_path_leaves_room_for_what_stages_add(project, tmp_path, rows):
    path = rows.rename(tmp_path / f"{'é n' * 60}.csv")
    ref = import_path(project.versions, path)
    assert len(ref.name) <= 100
    assert project.versions.add(f"{ref.name}-quarantine", lambda folder: 0).name == f"{ref.name}-quarantine"


@pytest.mark.parametrize("name", STRANGE)
def test_name_of_a_model(project, name):
    project.ledger.append("registered", model="other", version="1", run="r", key="k")
    for ask in (
        lambda: project.registry.promote(name, "1"),
        lambda: project.registry.rollback(name),
    ):
        with pytest.raises(PromotionError, match=r"(?s).+") as error:
            ask()
        assert isinstance(error.value, ClearwellError)
    assert project.registry.history(name) == []
    assert project.ledger.broken_at() is None


def test_ids_that_are_commands_are_only_text(project, tmp_path):
    ids = [
        "'; DROP TABLE ledger; --",
        "1 OR 1=1",
        "=HYPERLINK(A1)",
        "@SUM(1)",
        "${jndi:ldap://x}",
        "<script>alert(1)</script>",
    ]
    ids += ["[red]", "[/]", "\x1b[2J", "../../id", "a\nb", "naïve 数据", "i" * 300, "%s%n", "{0}", "NULL"]
    frame = pd.DataFrame({"id": ids, "text": ids, "label": ids, "domain": ids, "source": ids, "split": "train"})
    frame.to_parquet(tmp_path / "rows.parquet")
    ref = import_path(project.versions, tmp_path / "rows.parquet")
    from infra import datasets as ds

    data = ds.read_split(project.versions.path(ref), "train")
    assert ds.ids(data) == list(data["text"]) == list(data["domain"]) == ids
    assert [data.features["label"].names[n] for n in data["label"]] == ids
    entry = project.ledger.append("data", name=ref.name, ids=ids)
    assert project.ledger.entries()[-1]["payload"]["ids"] == ids
    assert (project.ledger.broken_at(), entry["number"]) == (None, 1)
    run = project.tracker.open("a 'run'; --")
    project.tracker.dataset(run, ref, "input")
    project.tracker.tags(run, {"ids": " ".join(ids)})
    assert project.tracker.client.get_run(run).data.tags["ids"] == " ".join(ids)


def test_ids_that_write_to_the_terminal_are_shown_as_text(project, tmp_path, capsys):
    from flows.commands.data import check_data

    frame = pd.DataFrame({"text": [f"x{n}" if n % 2 else None for n in range(20)], "label": 0, "split": "train"})
    frame["id"] = [f"\x1b]0;owned\x07[/]{n}" for n in range(20)]
    frame.to_csv(tmp_path / "[bold]rows\x1b[2J.csv", index=False)
    check_data(str(tmp_path / "[bold]rows\x1b[2J.csv"), as_json=False)
    shown = capsys.readouterr().out
    assert "10 rows need attention" in shown
    assert "missing text" in shown
    assert r"[bold]rows\x1b[2J.csv" in shown.replace("\n", "")
    assert "\x1b" not in shown
    check_data(str(tmp_path / "[bold]rows\x1b[2J.csv"), as_json=True)
    assert "\x1b" not in capsys.readouterr().out  # JSON writes it as an escape


def test_fields_of_a_csv_are_values_whatever_they_begin_with(tmp_path):
    cells = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "x" * 2_000_000]
    pd.DataFrame({"text": cells, "id": list("abcde")}).to_csv(tmp_path / "t.csv", index=False)
    assert read_path(tmp_path / "t.csv")["text"].tolist() == cells


def test_words_for_nothing_are_words_where_text_stands_and_missing_where_a_number_does(tmp_path):
    frame = pd.DataFrame({"id": ["NA", "null", ""], "label": ["None", "", "NA"], "width": ["NA", "1.5", "null"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = read_path(tmp_path / "t.csv")
    assert found["id"].tolist()[:2] == ["NA", "null"]
    assert found["id"].isna().tolist() == [False, False, True]
    assert found["label"].isna().tolist() == [False, True, True]
    assert found["width"].isna().tolist() == [True, False, True]

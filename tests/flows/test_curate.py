"""`clearwell curate` keeps rows within a budget, says why, and measures what fewer rows cost."""

import json

import numpy as np
import pytest
from datasets import Dataset
from sklearn.datasets import load_wine

from infra import datasets as ds
from infra.errors import ConfigurationError, DatasetFormatError
from infra.project import Project
from tasks.curate import Choice, CurateConfig, _columns, _split, as_budget, check_selector, choose, text_plan
from tasks.rowset import RowReader, Rowset
from tasks.training_rows import selected, trusted_labels


@pytest.fixture
def wine(home):
    found = load_wine(as_frame=True)
    frame = found.frame.rename(columns={"target": "label"})
    frame.insert(0, "id", [f"w{row}" for row in range(len(frame))])
    frame["label"] = frame["label"].map(dict(enumerate(("barolo", "grignolino", "barbera"))))
    frame.to_csv(home / "wine.csv", index=False)
    return frame


def test_every_row_says_whether_it_is_kept_and_why(tracked, wine):
    code, printed, said = tracked(
        "curate", "wine.csv", "--method", "k-centre", "--budget", "0.25", "--trust-labels", "--set", "curve=[0.5]",
        "--json",
    )  # fmt: skip
    assert code == 0, said
    found = json.loads(printed)
    project = Project()
    name, _, version = found["version"].partition("@")
    folder = project.versions.path(project.versions.resolve(name, version))
    frame = ds.read_split(folder, "train").to_pandas()
    assert frame["selected"].sum() == found["selected"] == round(0.25 * found["usable"])
    assert ((frame["sample_weight"] > 0) == frame["selected"]).all()
    assert frame["selection_reason"].str.contains("by k-centre, score").all()
    assert ds.infer_schema(folder).features == tuple(load_wine().feature_names)  # the new columns are no features
    curve = {(row["method"], row["budget"]): row["accuracy"] for row in found["curve"]}
    assert {method for method, _ in curve} == {"k-centre", "random-subset", "stratified-subset", "all rows"}
    assert 0.8 < curve["all rows", 1.0] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "k-center"), "Did you mean 'k-centre'"),
        (("--method", "filtering-laws"), "does not choose rows of one dataset"),
        (("--method", "dsir"), "does not choose rows of one dataset. These do: "),
        (("--budget", "0"), "budget: "),
        (("--budget", "inf"), "budget: Input should be a finite number, got inf"),
        (("--set", "curve=[2.0]"), "curve.0: Input should be less than or equal to 1, got 2.0"),
        (("--method", "el2n", "--set", "parameters.epoch=3"), "has no parameter 'epoch'. Did you mean 'epochs'"),
        (("--set", "parameters.budget=3"), "has no parameter 'budget'. The stage sets it, by its own budget"),
        (("--method", "survey", "--set", "parameters.filters=c4"), "filters is a list of names, or of a name and"),
        (("--wanted", "wine.csv"), "wanted and evaluation are for texts"),
        (("--method", "survey", "--wanted", "none.txt"), "none.txt'. Give a text file with one text a line"),
        (("--method", "survey", "--set", "parameters.filter=[]"), "has no parameter 'filter'. Its parameters: filters"),
    ],
)
def test_what_can_not_be_done_is_said_before_anything_runs(clearwell, arguments, message):
    code, _, said = clearwell("curate", "wine.csv", *arguments)
    assert code == 2
    assert message in said


def test_a_budget_is_a_share_or_a_number():
    given = {budget: as_budget(CurateConfig(budget=budget), 1000) for budget in (0.5, 1.0, 200.0)}
    assert given == {0.5: 0.5, 1.0: 1.0, 200.0: 200}
    assert isinstance(given[1.0], float)


def test_of_a_training_a_budget_is_the_rows_it_sees():
    assert as_budget(CurateConfig(budget=2000, epochs=8), 1000) == 250
    assert as_budget(CurateConfig(budget=2000, epochs=1), 1000) == 1000
    with pytest.raises(ConfigurationError, match="sees 3 rows in 8 epochs sees none of them in each"):
        as_budget(CurateConfig(budget=3, epochs=8), 1000)
    with pytest.raises(ConfigurationError, match="no method 'k-center'"):
        check_selector("k-center")


def test_more_rows_than_there_are_is_an_error():
    rows = Rowset(np.eye(4), None, np.array([0, 0, 1, 1]), np.zeros(4, dtype=np.int64))
    assert choose(Choice("random-subset", rows, 3, 0)).kept.sum() == 3
    with pytest.raises(ValueError, match="must lie in"):
        choose(Choice("random-subset", rows, 5, 0))


def test_reasons_of_rows_that_could_not_be_chosen():
    rows = Rowset(np.eye(2), None, np.array([0, 1]), np.zeros(2, dtype=np.int64))
    found = choose(Choice("random-subset", rows, 1, 0))
    columns = _columns(4, np.array([0, 3]), found, np.array([False, True, False, False]), "random-subset")
    assert columns["selection_reason"][1:3] == ["belongs to no class", "has no label that can be trusted"]
    assert columns["selected"].sum() == 1
    assert np.isnan(columns["selection_score"][1])


def test_later_stages_train_on_the_selected_rows_only():
    part = Dataset.from_dict({"id": list("abc"), "label": [0, 1, 1], "selected": [True, False, True]})
    assert selected(part).tolist() == [True, False, True]
    assert trusted_labels(part, 0.5).tolist() == [0, -1, 1]


def test_rows_are_read_on_the_scale_of_those_it_was_fitted_on():
    columns = {"id": list("abcd"), "f": [0.0, 2.0, 4.0, 6.0], "label": [0, 0, 1, 1]}
    schema = ds.Schema(kind="table", features=("f",), label_names=("no", "yes"))
    reader = RowReader(schema).fit([Dataset.from_dict(columns)])
    other = reader.read([Dataset.from_dict(columns | {"f": [3.0, 3.0, 3.0, 3.0]})], known=[1])
    np.testing.assert_allclose(other.matrix, 0)
    assert other.labels.tolist() == [-1, -1, 1, 1]


def test_texts_are_filtered_and_drawn_towards_those_wanted(tracked, home):
    random = np.random.default_rng(0)
    words = {"games": "chess board player dice card puzzle", "science": "atom planet orbit enzyme proof field"}
    rows = []
    for name, list_ in words.items():
        for _ in range(40):
            rows.append((" ".join(random.choice([*list_.split(), "the", "of", "and"], 30)), name))
    rows += [(rows[0][0].upper(), "games"), (" ", "games")]
    Dataset.from_dict({"text": [r[0] for r in rows], "label": [r[1] for r in rows]}).to_parquet(home / "texts.parquet")
    (home / "wanted.txt").write_text("a game of chess\n\ndice and card game of the player\n")
    code, printed, said = tracked(
        "curate", "texts.parquet", "--method", "survey", "--wanted", "wanted.txt", "--budget", "20",
        "--set", "parameters.filters=[]", "--set", "parameters.minhash=null", "--set", "parameters.dsir.min_tokens=5",
        "--set", "parameters.dsir.target_smoothing=0.1", "--json",
    )  # fmt: skip
    assert code == 0, said
    found = json.loads(printed)
    name, _, version = found["version"].partition("@")
    project = Project()
    frame = ds.read_split(project.versions.path(project.versions.resolve(name, version)), "train").to_pandas()
    assert frame["selected"].sum() == found["selected"] == 20
    names = ds.infer_schema(project.versions.path(project.versions.resolve(name, version))).label_names
    assert (frame.loc[frame["selected"], "label"] == names.index("games")).mean() > 0.9
    assert {row["rule"] for row in found["funnel"]} >= {"not_drawn"}
    assert frame.loc[~frame["selected"], "selection_reason"].str.startswith(("dsir: ", "exact: ", "readable: ")).all()


def test_filters_may_be_names_alone():
    config = CurateConfig(method="survey", parameters={"filters": ["c4", ["gopher-quality", {"min_words": 5}]]})
    assert text_plan(config).filters == (("c4", {}), ("gopher-quality", {"min_words": 5}))


def test_a_file_of_texts_that_is_no_utf8_is_said_so(home):
    (home / "wanted.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ConfigurationError, match=r"wanted\.txt' is not UTF-8 text: .*position 3.* Save it as UTF-8"):
        text_plan(CurateConfig(method="survey", wanted=str(home / "wanted.txt")))


def test_rows_without_any_label_can_be_chosen_from(tracked, wine, home):
    wine.drop(columns="label").to_csv(home / "bare.csv", index=False)
    code, printed, said = tracked("curate", "bare.csv", "--method", "k-centre", "--budget", "20", "--json")
    assert code == 0, said
    found = json.loads(printed)
    assert (found["selected"], found["usable"]) == (20, 178)
    code, _, said = tracked("curate", "bare.csv", "--budget", "20")
    assert code == 2
    assert "No row has a label, and stratified-subset can not do without" in said
    assert "Take --method k-centre" in said


def test_what_could_not_be_chosen_is_counted(tracked, wine, home):
    wine.assign(split="train", label=wine["label"].where(wine.index % 3 > 0)).to_csv(home / "wine.csv", index=False)
    code, printed, said = tracked("curate", "wine.csv", "--budget", "500", "--trust-labels")
    assert code == 2
    assert "budget=500 asks for more rows than the 118 that can be chosen" in said
    code, printed, said = tracked("curate", "wine.csv", "--budget", "10", "--trust-labels", "--set", "curve=[]")
    assert code == 0, said
    assert "keeps 10 of 118 rows" in printed
    assert "60 more could not be chosen: they belong to no class, or have no label that can be trusted" in printed


def test_labels_of_one_class_are_not_looked_at(tracked, wine, home):
    wine[:59].assign(split="train").to_csv(home / "one.csv", index=False)
    code, printed, said = tracked("curate", "one.csv", "--budget", "10", "--json")
    assert code == 0, said
    assert [stage["stage"] for stage in json.loads(printed)["stages"]] == ["validate", "curate"]


def test_rows_are_chosen_from_train_or_from_those_without_labels():
    assert _split(ds.Schema(kind="table", splits=("test", "train", "unlabelled"))) == "train"
    assert _split(ds.Schema(kind="table", splits=("test", "unlabelled"))) == "unlabelled"
    with pytest.raises(DatasetFormatError, match="or from 'unlabelled' without it; the data has test"):
        _split(ds.Schema(kind="table", splits=("test",)))

"""`clearwell discover` groups tables, images and text, and writes what it found beside the rows."""

import json
import warnings

import numpy as np
import pytest
from datasets import Dataset
from sklearn.datasets import load_digits, load_wine
from sklearn.metrics import adjusted_rand_score

from infra import datasets as ds
from infra.errors import ConfigurationError
from infra.project import Project
from models.registry import MethodCard, get_method
from tasks.discover import (
    Case,
    DiscoverConfig,
    Grouping,
    _counts,
    _extended,
    _known,
    _plane,
    _splits,
    fit_and_note,
    fit_case,
    needs_labels,
)
from tasks.rowset import Rowset, rowset


@pytest.fixture
def wine(home):
    """The wine table with the labels of one class and a half."""
    found = load_wine(as_frame=True)
    frame = found.frame.rename(columns={"target": "label"})
    frame.insert(0, "id", [f"w{row}" for row in range(len(frame))])
    frame["label"] = frame["label"].map(dict(enumerate(("barolo", "grignolino", "barbera"))))
    frame.to_csv(home / "wine.csv", index=False)
    return frame


def rows_of(printed, method):
    name, _, version = json.loads(printed)["versions"][method].partition("@")
    project = Project()
    return ds.read_split(project.versions.path(project.versions.resolve(name, version)), "train").to_pandas()


def test_groups_of_a_table_get_names_and_are_written_beside_its_rows(tracked, wine):
    code, printed, said = tracked(
        "discover", "wine.csv", "--method", "ppp", "--clusters", "3", "--set", "seeds=2", "--json",
    )  # fmt: skip
    assert code == 0, said
    frame = rows_of(printed, "ppp")
    assert adjusted_rand_score(wine.set_index("id")["label"][frame["id"]], frame["cluster"]) > 0.8
    assert frame["cluster_confidence"].between(0, 1).all()
    groups = json.loads(printed)["clusters"]["ppp"]
    assert sum(group["rows"] for group in groups) == len(frame)
    assert {group["name"] for group in groups} == {"barolo", "grignolino", "barbera"}
    assert all(set(group["exemplars"]) <= set(wine["id"]) for group in groups)


def test_without_labels_a_group_is_named_by_what_sets_it_apart(tracked, wine, home):
    wine.drop(columns="label").to_csv(home / "bare.csv", index=False)
    code, printed, said = tracked("discover", "bare.csv", "--method", "faster-pam", "--set", "k_grid=[2,3]", "--json")
    assert code == 0, said
    names = [group["name"] for group in json.loads(printed)["clusters"]["faster-pam"]]
    assert all(name.startswith(("high ", "low ")) for name in names)
    assert json.loads(printed)["metrics"]["discover"]["stability"] > 0.7


def test_a_class_whose_labels_were_hidden_is_told_from_the_known_ones():
    X, y = load_wine(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    rows = Rowset(X, None, np.where(y == 1, -1, y), np.zeros(len(y), dtype=np.int64))
    found = fit_case(Case("gcd-gmm", rows, None, 0, {"psi_scale": "within", "n_components_pca": 5}))
    known = set(found.labels[y != 1])
    assert np.mean([group not in known for group in found.labels[y == 1]]) > 0.85


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "faster-pan"), "Did you mean 'faster-pam'"),
        (("--set", "seedz=3"), "Did you mean 'seed'"),
        (
            ("--set", "parameters.n_inits=3"),
            "'faster-pam' has no parameter 'n_inits'. Did you mean 'n_init'",
        ),
        (("--set", "parameters.n_init=0"), "must be an int in the range [1, inf). Got 0"),
        (("--set", "parameters.random_state=0"), "The stage sets it, by its own seed"),
        (("--set", "k_grid=[]"), "k_grid: Tuple should have at least 1 item"),
        (("--set", "k_grid=[0,2]"), "k_grid.0: Input should be greater than or equal to 1, got 0"),
        (("--method", "gcd-gpc", "--clusters", "3"), "can not be told one, got n_clusters=3. Leave --clusters out, or"),
    ],
)
def test_what_is_misspelt_is_said_before_anything_runs(clearwell, arguments, message):
    code, _, said = clearwell("discover", "wine.csv", *arguments)
    assert code == 2
    assert message in said


def test_a_class_that_the_data_does_not_have_is_no_known_one():
    schema = ds.Schema(kind="table", label_names=("barolo", "barbera"))
    assert _known(DiscoverConfig(known=("barbera",)), schema) == (1,)
    with pytest.raises(ConfigurationError, match=r"does not have: merlot\. Its classes are barolo, barbera"):
        _known(DiscoverConfig(known=("merlot",)), schema)


def test_text_is_grouped_by_its_words():
    texts = [f"{word} {word} package {number}" for word in ("fonts", "kernel") for number in range(20)]
    part = Dataset.from_dict({"id": [str(n) for n in range(40)], "text": texts})
    rows = rowset([part], ds.Schema(kind="text"), components=5)
    assert rows.matrix.shape == (40, 5)
    assert (rows.labels == -1).all()
    near, far = rows.matrix[:20] @ rows.matrix[:20].T, rows.matrix[:20] @ rows.matrix[20:].T
    assert near.mean() > far.mean() + 0.3


def test_rows_beyond_the_limit_join_their_neighbours():
    X, y = load_digits(return_X_y=True)
    rows = Rowset(X, None, np.full(len(X), -1), np.zeros(len(X), dtype=np.int64))
    chosen = np.arange(0, len(X), 3)
    found = Grouping(y[chosen], np.ones(len(chosen), dtype=np.float32), 10, 0.2, 1.0)
    whole = _extended(found, chosen, rows)
    assert (whole.labels[chosen] == y[chosen]).all()
    assert (whole.labels == y).mean() > 0.95


def test_noise_and_gaps_in_a_methods_labels_become_a_plain_numbering(monkeypatch):
    class Fixed:
        def __init__(self, n_clusters=2):
            self.n_clusters = n_clusters

        def fit(self, X, y=None):
            self.labels_ = np.array([7, 7, -1, 3])

    card = MethodCard("fixed", "discover", "", "", 2020, "", "", ("table",), Fixed)
    monkeypatch.setattr("tasks.discover.get_method", lambda *_: card)
    rows = Rowset(np.array([[0.0], [0.1], [9.0], [5.0]]), None, np.full(4, -1), np.zeros(4, dtype=np.int64))
    found = fit_case(Case("fixed", rows, 2, 0))
    assert found.labels.tolist() == [1, 1, -1, 0]
    assert found.confidence[2] == 0
    assert found.n_clusters == 2


@pytest.mark.parametrize("n_clusters", [3, 2])
def test_no_class_left_to_find_is_said_in_the_users_words(n_clusters):
    rows = Rowset(load_wine().data, None, load_wine().target.astype(np.int64), np.zeros(178, np.int64))
    with pytest.raises(ConfigurationError, match=f"n_clusters={n_clusters} groups leave none to find.* 3 classes"):
        fit_case(Case("ncd-k-means", rows, n_clusters, 0))


def test_copies_of_a_row_lie_on_one_point_of_the_map():
    rows = np.repeat(load_wine().data[::10], 10, axis=0)
    places = _plane(rows).reshape(18, 10, 2)
    assert (places == places[:, :1]).all()
    assert len(np.unique(places[:, 0], axis=0)) == 18


@pytest.mark.parametrize(("asked", "width", "within"), [("unit", 13, 1.0), ("plane", 2, np.inf), ("any", 13, np.inf)])
def test_rows_are_made_into_what_the_method_asks_for(monkeypatch, asked, width, within):
    class Sees:
        def fit(self, X):
            assert X.shape == (178, width)
            assert abs(X).max() <= within
            self.labels_ = np.arange(len(X)) % 2
            return self

    monkeypatch.setattr(
        "tasks.discover.get_method",
        lambda name, stage: MethodCard(name, stage, "", "", 2026, "", "", ("table",), Sees, rows=asked),
    )
    rows = Rowset(load_wine().data, None, np.full(178, -1), np.zeros(178, np.int64))
    assert fit_case(Case("sees", rows, None, 0)).n_clusters == 2


def test_rows_that_were_not_grouped_are_counted_and_one_group_is_one(tracked, wine, home):
    wine.loc[:1, "ash"] = np.inf
    wine.assign(split=np.where(wine.index % 5, "train", "test")).to_csv(home / "wine.csv", index=False)
    code, printed, said = tracked("discover", "wine.csv", "--clusters", "1", "--set", "seeds=1")
    assert code == 0, said
    assert "faster-pam: 1 group\n" in printed.replace(" ", "").replace("faster-pam:1group", "faster-pam: 1 group")
    assert "Rows not looked at: 2 set aside by validation, 35 of other splits." in printed


@pytest.mark.parametrize("method", ["faster-pam", "tell"])
def test_copies_of_a_row_are_one_group(method):
    card = get_method(method, "discover")
    assert _counts(DiscoverConfig(), card, 40, 1) == [1]
    assert _counts(DiscoverConfig(), card, 40, 4) == [2, 3, 4]
    assert _counts(DiscoverConfig(), card, 4, 4) == [2, 3]
    assert _counts(DiscoverConfig(n_clusters=4), card, 40, 4) == [4]
    with pytest.raises(ConfigurationError, match="40 rows, of which 4 differ, can not make n_clusters=5 groups"):
        _counts(DiscoverConfig(n_clusters=5), card, 40, 4)
    with pytest.raises(ConfigurationError, match="can not make 20 groups, the fewest of k_grid"):
        _counts(DiscoverConfig(k_grid=(30, 20)), card, 9, 9)


@pytest.mark.parametrize(
    ("method", "labels", "message"),
    [
        ("gcd-gmm", -1, "learns from labelled rows, and there is no label that it may see"),
        ("tabular-ncd", -1, "learns from labelled rows"),
        ("ncd-k-means", 0, "every row has a label already: there is none to find. List in known"),
    ],
)
def test_a_method_without_the_labels_it_lives_on_says_so(method, labels, message):
    rows = Rowset(np.eye(12), None, np.full(12, labels), np.zeros(12, dtype=np.int64))
    with pytest.raises(ConfigurationError, match=message):
        fit_case(Case(method, rows, None, 0))


def test_sources_do_without_labels():
    assert not needs_labels(get_method("latent-label-shift", "discover"))


def test_what_a_method_warns_of_is_a_note(monkeypatch):
    class Doubtful:
        def fit(self, X, y=None):
            for _ in range(2):
                warnings.warn("No clear partition.", UserWarning, stacklevel=1)
            self.labels_ = np.zeros(len(X), dtype=int)

    card = MethodCard("doubtful", "discover", "", "", 2020, "", "", ("table",), Doubtful)
    monkeypatch.setattr("tasks.discover.get_method", lambda *_: card)
    rows = Rowset(np.eye(4), None, np.full(4, -1), np.zeros(4, dtype=np.int64))
    assert fit_and_note(Case("doubtful", rows, None, 0)).notes == ("No clear partition.",)


def test_a_misspelt_split_is_not_taken_for_all_of_them():
    schema = ds.Schema(kind="table", splits=("test", "train"))
    assert _splits(DiscoverConfig(), schema) == ["train"]
    assert _splits(DiscoverConfig(), ds.Schema(kind="table", splits=("test",))) == ["test"]
    with pytest.raises(ConfigurationError, match="splits names trayn, and the data has test, train"):
        _splits(DiscoverConfig(splits=("trayn",)), schema)

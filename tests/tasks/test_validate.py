"""Stage validate on real digits: what fails goes to quarantine with its reason, and nothing else does."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from sklearn.datasets import load_digits

from infra import datasets as ds
from infra.errors import ValidationGateError
from infra.files import folder_digest
from tasks.stage import RunContext
from tasks.validate import ValidateConfig, validate

FEATURES = Features(
    {"id": Value("string"), "image": Image(decode=False), "label": ClassLabel(names=[str(n) for n in range(10)])}
    | {name: Value("string") for name in ("domain", "split", "source", "note")}
)


@pytest.fixture(scope="module")
def digits():
    """Real images (1797, 8, 8) as bytes, and their labels."""
    found = load_digits()
    return (found.images * 15).astype(np.uint8), found.target


def rows(images, labels, prefix):
    n = len(images)
    return {
        "id": [f"{prefix}{row}" for row in range(n)],
        "image": [each if isinstance(each, dict) else ds.encode(each) for each in images],
        "label": [int(label) for label in labels],
        "note": [f"note {row}" for row in range(n)],
    } | {name: ["digits"] * n for name in ("domain", "split", "source")}


@pytest.fixture
def add(project):
    """Make a dataset version of these splits."""

    def make(**splits):
        def write(folder):
            return sum(
                ds.write_split(Dataset.from_dict(columns, features=FEATURES), folder, split)
                for split, columns in splits.items()
            )

        return project.versions.add("digits", write)

    return make


@pytest.fixture
def check(project):
    """Run the stage; returns its result, the clean rows and the quarantined rows of train."""

    def run(data, **config):
        context = RunContext(parent=project.tracker.open("lifecycle"))
        # At 8 x 8 pixels some different digits are more alike than copies of larger images are.
        result = validate.fn(data, ValidateConfig(**{"near_duplicate_similarity": 0.99} | config), context)
        clean = ds.read_split(project.versions.path(result.data), "train").to_pandas().set_index("id")
        if "quarantine" not in result.others:
            return result, clean, None
        folder = project.versions.path(result.others["quarantine"])
        return result, clean, ds.read_split(folder, "train").to_pandas()

    return run


@pytest.fixture
def messy(digits, add):
    """200 sound training rows, then one or two of every kind of trouble; 40 rows of test."""
    images, labels = digits
    train = rows(images[:200], labels[:200], "t")
    test = rows(images[1000:1040], labels[1000:1040], "v")

    def also(image, label, identity):
        train["id"].append(identity)
        train["image"].append(image if isinstance(image, dict) else ds.encode(image))
        train["label"].append(label)
        train["note"].append("added")
        for name in ("domain", "split", "source"):
            train[name].append("digits")

    also(images[3], 3, "exact")
    also(images[3], 3, "exact again")
    also((images[5] * 0.7 + 20).astype(np.uint8), 5, "near")
    also(images[1007], 7, "leak")
    also(np.zeros((8, 8), np.uint8), 0, "blank")
    also(np.ascontiguousarray(images[9, :7]), 9, "small")
    also({"bytes": ds.encode(images[11])["bytes"][:60], "path": None}, 1, "cut")
    also(images[201], 1, None)
    also(images[202], 1, "t17")
    return add(train=train, test=test)


def test_trouble_is_quarantined_with_its_reason_and_the_rest_is_untouched(project, messy, check, digits):
    result, clean, quarantine = check(messy)
    assert dict(zip(quarantine["row"], quarantine["reason"], strict=True)) == {
        200: "exact duplicate of t3",
        201: "exact duplicate of t3",
        202: "near duplicate of t5",
        203: "leak: the same content stands in test",
        204: "blank image; mean pixel outside 2 to 253",
        205: "image height is not 8",
        206: "image bytes can not be decoded",
        207: "missing id",
        208: "repeated id",
    }
    assert quarantine["id"].tolist()[:3] == ["exact", "exact again", "near"]
    assert clean.index.tolist() == [f"t{row}" for row in range(200)]
    assert clean["note"].tolist() == [f"note {row}" for row in range(200)]  # further columns pass through
    assert all(np.array_equal(ds.decode(cell), each) for cell, each in zip(clean["image"], digits[0], strict=False))
    before, after = project.versions.path(messy), project.versions.path(result.data)
    assert folder_digest(after / "test") == folder_digest(before / "test")
    assert ds.infer_schema(after).n_classes == 10

    found = result.metrics
    assert (found["rows_in"], found["rows_out"], found["quarantined"]) == (249, 240, 9)
    assert (found["train.leaks"], found["train.exact_duplicates"], found["train.near_duplicates"]) == (1, 2, 1)
    assert (found["train.failing"], found["test.failing"]) == (5, 0)
    assert 0 <= found["separability"] <= 1
    assert result.evidence["reasons"]["exact duplicate"] == 2
    assert [pair[:2] for pair in result.evidence["near_duplicates"]] == [("near", "t5")]

    index = project.root / result.evidence["data_docs"]
    assert "train" in index.read_text()
    assert not any("exact again" in page.read_text() for page in index.parent.rglob("*.html"))


def test_data_without_trouble_stay_the_same_version(check, digits, add):
    images, labels = digits
    sound = add(train=rows(images[:120], labels[:120], "t"), test=rows(images[600:640], labels[600:640], "v"))
    result, _, quarantine = check(sound)
    assert result.data == sound
    assert quarantine is None
    assert result.metrics["quarantined"] == 0


def test_an_id_stands_in_one_split_only(check, digits, add):
    images, labels = digits
    train, test = rows(images[:120], labels[:120], "t"), rows(images[600:640], labels[600:640], "v")
    target = rows(images[700:780], labels[700:780], "w")
    train["id"][7], target["id"][3], target["id"][5], target["id"][6] = "v4", "v9", "t11", None
    result, clean, quarantine = check(add(train=train, test=test, target=target))
    assert dict(zip(quarantine["row"], quarantine["reason"], strict=True)) == {7: "repeated id: stands in test too"}
    assert len(clean) == 119
    assert result.evidence["reasons"] == {
        "repeated id: stands in test too": 2,
        "repeated id: stands in train too": 1,
        "missing id": 1,
    }


def test_near_duplicates_may_be_reported_only(messy, check):
    result, clean, quarantine = check(messy, near_duplicates="report")
    assert "near" in clean.index
    assert "near" not in quarantine["id"].tolist()
    assert result.metrics["train.near_duplicates"] == 1
    assert [pair[:2] for pair in result.evidence["near_duplicates"]] == [("near", "t5")]


def test_run_stops_when_too_many_rows_fail_and_says_which(project, messy, check):
    with pytest.raises(ValidationGateError, match="5 of 209 rows of 'train' fail validation") as error:
        check(messy, max_failing_share=0.02)
    text = str(error.value)
    assert "(2.4%, accepted: 2.0%)" in text
    for part in ("blank image (1)", "missing id (1)", "repeated id (1)", "First rows: [204, 205, 206, 207, 208]"):
        assert part in text
    assert f"clearwell data check {messy}" in text
    assert error.value.rows == [204, 205, 206, 207, 208]
    assert [ref.name for ref in project.versions.list()] == ["digits"]  # nothing was written


def test_run_stops_when_a_split_is_too_small(digits, add, check):
    tiny = add(train=rows(digits[0][:60], digits[1][:60], "t"), test=rows(digits[0][70:75], digits[1][70:75], "v"))
    with pytest.raises(ValidationGateError, match="The split 'test' holds 5 rows; at least 10 are needed"):
        check(tiny)


def test_tables_are_checked_for_missing_values_leaks_and_duplicates(project):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 2)).astype(np.float32)
    values[50], values[51, 0] = values[3], np.nan
    test = rng.normal(size=(20, 2)).astype(np.float32)
    test[4] = values[7]

    def write(folder):
        for split, part in (("train", values), ("test", test)):
            n = len(part)
            columns = {"id": [f"{split}{row}" for row in range(n)], "label": [row % 2 for row in range(n)]}
            columns |= {name: ["x"] * n for name in ("domain", "split", "source")}
            columns |= {"width": [None if np.isnan(v) else float(v) for v in part[:, 0]], "height": part[:, 1].tolist()}
            kinds = {name: Value("string") for name in ("id", "domain", "split", "source")}
            kinds |= {"label": ClassLabel(names=["a", "b"]), "width": Value("float32"), "height": Value("float32")}
            ds.write_split(Dataset.from_dict(columns, features=Features(kinds)), folder, split)
        return 80

    data = project.versions.add("table", write)
    result = validate.fn(data, ValidateConfig(), RunContext(parent=project.tracker.open("lifecycle")))
    found = ds.read_split(project.versions.path(result.others["quarantine"]), "train").to_pandas()
    assert dict(zip(found["row"], found["reason"], strict=True)) == {
        7: "leak: the same content stands in test",
        50: "exact duplicate of train3",
        51: "missing or infinite value in width",
    }
    assert result.data.rows == 77


def table_of(values, split):
    """How a version of one table is written: the given columns, and what every row has."""
    n = len(next(iter(values.values())))
    columns = {"id": [f"r{row}" for row in range(n)], "label": [-1] * n}
    columns |= {name: ["x"] * n for name in ("domain", "split", "source")}
    columns |= {name: list(given) for name, given in values.items()}
    return lambda folder: ds.write_split(Dataset.from_dict(columns), folder, split)


@pytest.mark.parametrize("values", [np.ones(30), np.arange(1.0, 31.0)], ids=["alike", "one column"])
def test_a_table_that_has_no_separability_passes_all_the_same(project, values):
    data = project.versions.add("table", table_of({"width": values}, "unlabelled"))
    result = validate.fn(data, ValidateConfig(), RunContext(parent=project.tracker.open("lifecycle")))
    assert result.data.rows == 30
    assert "separability" not in result.metrics


def test_an_infinite_number_is_set_aside_as_a_missing_one_is(project):
    values = np.random.default_rng(0).normal(size=30)
    values[[3, 8]] = np.inf, -np.inf
    data = project.versions.add("table", table_of({"width": values, "height": np.ones(30)}, "train"))
    checks = ValidateConfig(max_failing_share=0.1)
    result = validate.fn(data, checks, RunContext(parent=project.tracker.open("lifecycle")))
    found = ds.read_split(project.versions.path(result.others["quarantine"]), "train").to_pandas()
    assert dict(zip(found["row"], found["reason"], strict=True)) == dict.fromkeys(
        (3, 8), "missing or infinite value in width"
    )

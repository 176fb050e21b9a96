"""Every kind of broken row is found with the right reason, and the Data Docs tell nobody's values."""

import numpy as np
import pandas as pd
import pytest

from infra.datasets import Schema
from infra.expectations import Bounds, Validator, build_suite, row_facts

IMAGES = Schema(kind="image", label_names=("a", "b", "c"), image_size=(8, 6))
TABLE = Schema(kind="table", label_names=("a", "b"), features=("width", "height"))
TEXT = Schema(kind="text", label_names=("a", "b"))
N = 30


@pytest.fixture
def check(tmp_path):
    validator = Validator(tmp_path / "docs")
    numbers = iter(range(100))

    def validate(frame, schema, bounds=None, split=None):
        return validator.validate(split or f"split{next(numbers)}", frame, schema, bounds or Bounds())

    return validate


def image_facts(n=N, n_classes=3, **replaced):
    """Facts of n sound images; ``column={row: value}`` replaces single ones."""
    columns = {
        "ids": [f"secret-{row:03d}" for row in range(n)],
        "labels": [row % n_classes for row in range(n)],
        "domains": ["scanner"] * n,
        "decodable": [True] * n,
        "height": [8.0] * n,
        "width": [6.0] * n,
        "mean": [100.0] * n,
        "contrast": [40.0] * n,
    }
    for column, values in replaced.items():
        for row, value in values.items():
            columns[column][row] = value
    ids, labels, domains = columns.pop("ids"), np.array(columns.pop("labels")), columns.pop("domains")
    return row_facts(ids, labels, domains, n_classes, columns)


def test_sound_rows_pass(check):
    report = check(image_facts(), IMAGES)
    assert (report.failing, report.table_failures) == ({}, [])
    assert report.expectations == 12


def test_each_kind_of_broken_image_is_found_with_its_reason_and_no_other(check):
    facts = image_facts(
        ids={0: None, 2: "secret-001", 3: "secret-001"},
        domains={4: None},
        labels={5: -2, 6: 99},
        decodable={7: False},
        height={7: None, 8: 9.0},
        width={7: None, 9: 5.0},
        contrast={7: None, 6: 0.0, 10: 3.9},
        mean={7: None, 11: 0.0, 12: 254.0},
    )
    report = check(facts, IMAGES)
    assert report.failing == {
        0: ["missing id"],
        2: ["repeated id"],
        3: ["repeated id"],  # the first of the three stays
        4: ["missing domain"],
        5: ["label out of range"],
        6: ["label out of range", "blank image"],
        7: ["image bytes can not be decoded"],
        8: ["image height is not 8"],
        9: ["image width is not 6"],
        10: ["blank image"],
        11: ["mean pixel outside 2 to 253"],
        12: ["mean pixel outside 2 to 253"],
    }
    assert report.table_failures == []


def test_bounds_are_the_callers(check):
    bounds = Bounds(mean_range=(0, 99), minimum_contrast=41)
    report = check(image_facts(), IMAGES, bounds)
    assert set(report.failing) == set(range(N))
    assert report.failing[0] == ["blank image", "mean pixel outside 0 to 99"]


def test_unlabelled_rows_are_sound(check):
    report = check(image_facts(labels=dict.fromkeys(range(N), -1)), IMAGES)
    assert (report.failing, report.table_failures) == ({}, [])


def test_classes_out_of_balance_and_too_few_rows_concern_the_whole(check):
    lopsided = check(image_facts(labels=dict.fromkeys(range(N), 0)), IMAGES)
    assert (lopsided.failing, lopsided.table_failures) == ({}, ["classes are out of balance"])
    assert check(image_facts(n=6), IMAGES).table_failures == ["too few rows"]


def test_tables(check):
    facts = row_facts(
        ["x"] + [f"r{n}" for n in range(1, N)],
        np.array([n % 2 for n in range(N)]),
        ["d"] * N,
        2,
        {"width": pd.Series([None, *[1.0] * (N - 1)]), "height": pd.Series([1.0] * (N - 1) + [None])},
    )
    report = check(facts, TABLE)
    assert report.failing == {0: ["missing or infinite value in width"], N - 1: ["missing or infinite value in height"]}


def test_text(check):
    facts = row_facts(
        [f"r{n}" for n in range(N)],
        np.array([n % 2 for n in range(N)]),
        ["d"] * N,
        2,
        {"text": ["", None, *["words"] * (N - 2)]},
    )
    assert check(facts, TEXT).failing == {0: ["empty text"], 1: ["missing text"]}


def test_data_without_named_labels_have_no_label_set(check):
    facts = row_facts([f"r{n}" for n in range(N)], np.full(N, -1), ["d"] * N, 0, {"width": [1.0] * N})
    report = check(facts, Schema(kind="table", features=("width",)))
    assert (report.failing, report.table_failures) == ({}, [])


def test_every_expectation_of_a_suite_has_its_reason():
    for schema in (IMAGES, TABLE, TEXT):
        suite, reasons = build_suite("train", schema, Bounds())
        assert len(reasons) == len(suite.expectations)
        assert len(set(reasons.values())) == len(reasons)


def test_data_docs_show_every_split_and_no_rows_values(check, tmp_path):
    facts = image_facts(ids={4: "secret-001", 5: None}, labels={6: 777_777}, domains={7: None}, mean={8: 254.12345})
    for split in ("train", "test"):
        assert check(facts, IMAGES, split=split).failing
    pages = {page.relative_to(tmp_path): page.read_text() for page in (tmp_path / "docs").rglob("*.html")}
    index = next(text for page, text in pages.items() if page.name == "index.html")
    assert "train" in index
    assert "test" in index
    assert len(pages) >= 5  # the index, and for either split its suite and what came of it
    for page, text in pages.items():
        for value in ("secret-", "254.12345", "777777"):
            assert value not in text, f"{page} shows {value!r}"


def test_many_rows_are_checked_in_parts_with_the_same_report(check, monkeypatch):
    """Ids repeat within and across the parts; what concerns the whole is asked of the whole."""
    facts = image_facts(
        ids={0: None, 2: "secret-001", 3: "secret-020", 25: "secret-001", 29: None},
        domains={4: None},
        labels={5: -2, 26: 99},
        contrast={5: 0.0, 25: 0.0, 26: 3.9},
    )
    whole = check(facts, IMAGES)
    lopsided = image_facts(labels=dict.fromkeys(range(N), 0))
    monkeypatch.setattr("infra.expectations.PART_ROWS", 7)
    assert check(facts, IMAGES) == whole
    assert whole.failing[25] == ["repeated id", "blank image"]
    assert 20 in whole.failing  # its id was first in another part
    assert check(lopsided, IMAGES).table_failures == ["classes are out of balance"]
    assert check(image_facts(n=8), IMAGES).table_failures == ["too few rows"]

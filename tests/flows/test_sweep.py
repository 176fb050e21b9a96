"""A sweep runs a stage once for every dataset and combination of values, and says of each what came out."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from sklearn.datasets import load_digits

from flows.sweep import variants
from infra import datasets as ds
from infra.errors import ConfigurationError


@pytest.fixture
def digits(home):
    """A working copy of 80 real images with two exact copies."""
    found = load_digits()
    images = (found.images[:80] * 15).astype(np.uint8)
    images[70:72] = images[3]
    kinds = {name: Value("string") for name in ("id", "domain", "split", "source")}
    kinds |= {"image": Image(decode=False), "label": ClassLabel(names=list("0123456789"))}
    columns = {name: ["digits"] * 80 for name in ("domain", "split", "source")}
    columns |= {"id": [f"r{row}" for row in range(80)], "image": [ds.encode(image) for image in images]}
    data = Dataset.from_dict(columns | {"label": found.target[:80].tolist()}, features=Features(kinds))
    ds.write_split(data, home / "data" / "digits", "train")


def test_every_combination_is_a_whole_configuration():
    found = variants("label_noise", {"seed": ("0", "3"), "parameters.epochs": ("2", "4")})
    assert [values for values, _ in found] == [
        {"seed": seed, "parameters.epochs": epochs} for seed in ("0", "3") for epochs in ("2", "4")
    ]
    assert [(c.label_noise.seed, c.label_noise.parameters["epochs"]) for _, c in found] == [
        (0, 2), (0, 4), (3, 2), (3, 4)
    ]  # fmt: skip
    assert found[0][1].label_noise.parameters["batch_size"] == 128  # the rest stays as it is
    assert len(variants("validate", {})) == 1


@pytest.mark.parametrize(
    ("stage", "vary", "message"),
    [
        ("register", {}, "A sweep takes one of the stages validate, label_noise, pretrain, got 'register'"),
        ("validate", {"near_duplicate_similarty": ("1",)}, "Did you mean 'near_duplicate_similarity'"),
        ("validate", {"near_duplicate_similarity": ("0.9", "7")}, "less than or equal to 1, got 7"),
    ],
)
def test_what_can_not_be_swept_is_refused_before_anything_runs(stage, vary, message):
    with pytest.raises(ConfigurationError, match=message):
        variants(stage, vary)


def test_a_sweep_gives_a_row_for_each_and_goes_on_from_the_cache(tracked, digits):
    command = ("sweep", "validate", "digits", "--vary", "near_duplicate_similarity=0.7,1.0", "--json")
    code, printed, _ = tracked(*command)
    assert code == 0
    rows = json.loads(printed)
    assert [row["near_duplicate_similarity"] for row in rows] == ["0.7", "1.0"]
    assert [row["train.exact_duplicates"] for row in rows] == [2, 2]
    assert rows[0]["train.near_duplicates"] > rows[1]["train.near_duplicates"]
    assert not any(row["cached"] for row in rows)
    _, printed, _ = tracked(*command)
    assert all(row["cached"] for row in json.loads(printed))


def test_values_that_are_none_are_refused(tracked):
    code, _, errors = tracked("sweep", "validate", "digits", "--vary", "seed")
    assert code == 2
    assert "--vary takes FIELD=VALUE,VALUE, got 'seed'" in errors
    code, _, errors = tracked("sweep", "validate", "digits", "--runner", "spark")
    assert code == 2
    assert "A runner is 'local', 'ray' or 'ray://host:port', got 'spark'" in errors

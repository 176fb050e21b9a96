"""Finished stages are found again under everything they depend on, and say what changed when they are not."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.cache import StageCache
from infra.errors import StoreError
from infra.references import StageResult

PARTS = {
    "inputs": {"data": "aaaa.dir"},
    "config": {"method": "udfc", "epochs": 3, "parameters": {"ratio": 0.5}},
    "settings": None,
    "code": {"tasks.compress": "1", "models.compress.udfc": "2"},
    "clearwell": "0.1.0",
}


def changed(**changes):
    """The parts with ``a__b=value`` put at parts["a"]["b"]; dots in a name are written as three underscores."""
    import copy

    parts = copy.deepcopy(PARTS)
    for path, value in changes.items():
        *above, last = [step.replace("·", ".") for step in path.split("__")]
        inner = parts
        for step in above:
            inner = inner[step]
        inner[last] = value
    return parts


@pytest.fixture
def cache(tmp_path):
    return StageCache(tmp_path)


def write(folder):
    (folder / "train").mkdir()
    (folder / "train" / "part.parquet").write_bytes(b"abc")
    return 1


def test_kept_result_is_found_with_its_figures(cache):
    result = StageResult(stage="compress", method="udfc", cached=True, metrics={"size": 10.0})
    kept = cache.keep(result, PARTS, lambda folder: (folder / "a.png").write_bytes(b"png"))
    found, why = cache.find("compress", PARTS)
    assert found == kept
    assert (kept.cached, kept.key) == (False, cache.key(PARTS))
    assert why == "same inputs, parameters and code"
    assert (cache.record(found) / "a.png").read_bytes() == b"png"


def test_order_of_the_parts_does_not_matter(cache):
    cache.keep(StageResult(stage="compress", method="udfc"), PARTS)
    assert cache.find("compress", dict(reversed(PARTS.items())))[0] is not None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"config__epochs": 4}, "changed: config.epochs 3 -> 4"),
        ({"config__parameters__ratio": 0.25}, "changed: config.parameters.ratio 0.5 -> 0.25"),
        ({"config__parameters__bits": 8}, "changed: config.parameters.bits null -> 8"),
        ({"inputs__data": "bbbb.dir"}, 'changed: inputs.data "aaaa.dir" -> "bbbb.dir"'),
        ({"code__models·compress·udfc": "3"}, "changed: code of models.compress.udfc"),
        ({"code__models·losses": "9"}, "changed: code of models.losses"),
        ({"clearwell": "0.2.0"}, 'changed: clearwell "0.1.0" -> "0.2.0"'),
        ({"settings": {"gates": [1]}}, 'changed: settings null -> {"gates": [1]}'),
    ],
)
def test_miss_says_what_changed(cache, changes, why):
    cache.keep(StageResult(stage="compress", method="udfc"), PARTS)
    assert cache.find("compress", changed(**changes)) == (None, why)


def test_miss_is_explained_by_the_nearest_record(cache):
    cache.keep(StageResult(stage="compress", method="udfc"), PARTS)
    cache.keep(StageResult(stage="compress", method="udfc"), changed(config__epochs=9, inputs__data="bbbb.dir"))
    assert cache.find("compress", changed(config__epochs=4))[1] == "changed: config.epochs 3 -> 4"


def test_long_explanations_are_cut(cache):
    cache.keep(StageResult(stage="compress", method="udfc"), PARTS)
    many = changed(**{f"config__f{n}": n for n in range(7)}, inputs__data="b" * 80)
    why = cache.find("compress", many)[1]
    told, _, more = why.rpartition("; and ")
    assert told.count("; ") + 1 + int(more.removesuffix(" more")) == 8
    assert cache.find("compress", changed(inputs__data="b" * 80))[1].endswith("b…")


def test_first_run_says_so(cache):
    cache.keep(StageResult(stage="validate", method="r2d2"), PARTS)
    assert cache.find("compress", PARTS) == (None, "it never ran on this project")


@pytest.mark.parametrize("lost", ["data", "quarantine", "model"])
def test_result_whose_bytes_are_lost_does_not_count(cache, tmp_path, lost):
    import torch

    data = cache.versions.add("scans", write)
    quarantine = cache.versions.add("scans-quarantine", write)
    model = cache.models.save("s", {"w": torch.ones(2)}, {})
    cache.keep(StageResult(stage="s", method="m", data=data, model=model, others={"q": quarantine}), PARTS)
    assert cache.find("s", PARTS)[0] is not None
    ref = {"data": data, "quarantine": quarantine, "model": model}[lost]
    shutil.rmtree(tmp_path / ref.uri)
    shutil.rmtree(tmp_path / ".clearwell/versions/.dvc/cache", ignore_errors=True)
    if lost == "model":
        assert cache.find("s", PARTS) == (None, f"its output {ref} is no longer whole")
    else:
        assert cache.find("s", PARTS)[1] == f"its output {ref} is no longer whole"


def test_record_of_the_same_key_is_replaced(cache):
    for value in (1.0, 2.0):
        cache.keep(StageResult(stage="s", method="m", metrics={"x": value}), PARTS)
    assert cache.find("s", PARTS)[0].metrics == {"x": 2.0}
    assert len(list((cache.folder / "s").iterdir())) == 1


def test_half_written_record_is_never_seen(cache):
    def die(folder):
        (folder / "a.png").write_bytes(b"half")
        assert cache.find("s", PARTS)[0] is None
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.keep(StageResult(stage="s", method="m"), PARTS, die)
    assert cache.find("s", PARTS) == (None, "it never ran on this project")


def test_damaged_record_is_computed_again(cache):
    kept = cache.keep(StageResult(stage="s", method="m"), PARTS)
    (cache.record(kept) / "result.json").write_text("{")
    found, why = cache.find("s", PARTS)
    assert found is None
    assert "can not be read" in why
    cache.keep(StageResult(stage="s", method="m"), PARTS)
    assert cache.find("s", PARTS)[0] is not None


def test_record_that_is_gone_is_reported(cache):
    kept = cache.keep(StageResult(stage="s", method="m"), PARTS)
    shutil.rmtree(cache.record(kept))
    with pytest.raises(StoreError, match="The record of stage 's' is gone"):
        cache.record(kept)


CONFIG = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2) | st.text(max_size=2), max_size=4)


@given(CONFIG, CONFIG)
def test_key_differs_exactly_when_the_parts_do(one, other):
    assert (StageCache.key({"config": one}) == StageCache.key({"config": other})) == (one == other)

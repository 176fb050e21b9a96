"""Shards are curated alike in one piece or many, here or on workers, at once or after being cut short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value

from infra import datasets as ds
from infra.errors import ConfigurationError, DatasetFormatError
from models.curate.survey import TextCurationPipeline
from models.curate.text_resampling import DSIR
from tasks import curate_text as stage
from tasks.curate_text import TextPlan, curate_text, write_curated

WORDS = [f"word{i}" for i in range(400)]
STOPS = ("the", "of", "and", "that", "have", "with")
EXAM = "who wrote the letter that was found under the old window of the second garden house"


def prose(random, sentences=7):
    """Lines of nonsense with function words, without repetition to speak of."""

    def sentence():
        tokens = random.choice(WORDS, size=12)
        tokens[[0, 4, 8]] = random.choice(STOPS, size=3)
        return " ".join(tokens).capitalize() + "."

    return "\n".join(sentence() for _ in range(sentences))


def rows(n=120):
    random = np.random.default_rng(0)
    texts = [prose(random) for _ in range(n)]
    texts[1] = texts[0].upper()
    texts[50] = texts[2] + "\nOne more line of that and the other."
    texts[4] = ""
    texts[6] = "Too short."
    texts[8] += "\nRead our privacy policy at the end of it."
    for i in range(60, 80):
        texts[i] = texts[i].replace(".\n", ".\nA game of chess and ", 3)
    texts[90] += f"\nThe exam asked {EXAM}."
    return [f"id{i:03}" for i in range(n)], texts


def written(folder, shard_rows):
    ids, texts = rows()
    features = Features({"id": Value("string"), "text": Value("string"), "source": Value("string")})
    data = Dataset.from_dict({"id": ids, "text": texts, "source": ["web"] * len(ids)}, features=features)
    ds.write_split(data, folder, "train", shard_rows=shard_rows)
    return folder


TARGET = ("a game of cards and dice", "the game of chess that children play", "one game more of that kind")
PLAN = TextPlan(
    target=TARGET,
    dsir={"budget": 30, "min_tokens": 10, "target_smoothing": 0.01, "length_normalised": True},
    evaluation={"exam": (EXAM,)},
)


def decisions(curated):
    table = pa.concat_tables([pq.read_table(path) for path in sorted((curated.folder / "decide").glob("*.parquet"))])
    return {row["id"]: (row["keep"], row["step"], row["rule"]) for row in table.to_pylist()}


def test_shards_make_no_difference(tmp_path):
    whole = curate_text(written(tmp_path / "one", 1000), "train", tmp_path / "work", PLAN)
    parts = curate_text(written(tmp_path / "many", 17), "train", tmp_path / "work", PLAN)
    assert whole.folder != parts.folder
    assert decisions(whole) == decisions(parts)
    assert whole.funnel == parts.funnel
    assert np.array_equal(whole.keep, parts.keep)
    assert (whole.rows, whole.kept) == (120, int(whole.keep.sum()))


def test_every_row_is_accounted_for(tmp_path):
    plan = replace(PLAN, dsir={**PLAN.dsir, "top_k": True})
    curated = curate_text(written(tmp_path / "data", 40), "train", tmp_path / "work", plan)
    found = decisions(curated)
    assert found["id001"] == (False, "exact", "duplicate")
    assert found["id002"] == (False, "minhash", "near_duplicate")
    assert found["id004"] == (False, "readable", "empty")
    assert found["id006"][1].startswith("gopher")
    assert sum(row["documents"] for row in curated.funnel) + curated.kept == 120
    assert 29 <= curated.kept <= 30
    drawn = np.flatnonzero(curated.keep)
    assert ((drawn >= 60) & (drawn < 80)).mean() > 0.5


def test_the_same_as_the_pipeline_in_memory(tmp_path):
    ids, texts = rows()
    plan = TextPlan()
    curated = curate_text(written(tmp_path / "data", 25), "train", tmp_path / "work", plan)
    report = TextCurationPipeline([*[(name, dict(given)) for name, given in plan.filters], "exact", "minhash"]).run(
        [{"id": key, "text": text} for key, text in zip(ids, texts, strict=True)]
    )
    assert [ids[row] for row in np.flatnonzero(curated.keep)] == report.kept_ids
    assert {(row["step"], row["rule"], row["documents"]) for row in curated.funnel} == {
        (row["step"], rule, number)
        for row in report.funnel
        for rule, number in row["rules"].items()
        if rule != "lines_cut"
    }
    verified = curate_text(tmp_path / "data", "train", tmp_path / "work", TextPlan(minhash={"verify": 0.5}))
    assert np.array_equal(verified.keep, curated.keep)


def test_rows_without_ids_are_numbered_as_in_memory(tmp_path):
    texts = rows()[1]
    texts[100] = texts[3].upper()
    plan = TextPlan(filters=(), minhash=None, target=TARGET, dsir=PLAN.dsir)
    kept = []
    for shard_rows in (1000, 17):
        folder = tmp_path / str(shard_rows)
        ds.write_split(Dataset.from_dict({"text": texts}), folder, "train", shard_rows=shard_rows)
        curated = curate_text(folder, "train", tmp_path / "work", plan)
        kept.append(np.flatnonzero(curated.keep).tolist())
    left = TextCurationPipeline(["exact"]).fit(texts)
    drawn = DSIR(**PLAN.dsir).fit([{"id": str(row), "text": texts[row]} for row in left.indices_], target=TARGET)
    assert kept[0] == kept[1] == left.indices_[drawn.indices_].tolist()


def test_a_small_target_without_smoothing_is_told(tmp_path):
    plan = replace(PLAN, dsir={"budget": 5, "min_tokens": 10})
    with pytest.warns(UserWarning, match="The target has 19 tokens"):
        curate_text(written(tmp_path / "data", 60), "train", tmp_path / "work", plan)


def test_the_draw_is_that_of_dsir(tmp_path):
    ids, texts = rows()
    plan = TextPlan(filters=(), exact=False, minhash=None, target=TARGET, dsir=PLAN.dsir)
    curated = curate_text(written(tmp_path / "data", 25), "train", tmp_path / "work", plan)
    documents = [{"id": key, "text": text} for key, text in zip(ids, texts, strict=True) if text]
    expected = DSIR(**PLAN.dsir).fit(documents, target=TARGET)
    assert [ids[row] for row in np.flatnonzero(curated.keep)] == [documents[row]["id"] for row in expected.indices_]


def test_every_row_is_written_with_its_verdict_and_the_text_the_filters_left(tmp_path):
    folder = written(tmp_path / "data", 50)
    curated = curate_text(folder, "train", tmp_path / "work", TextPlan(evaluation={"exam": (EXAM,)},
                                                                      decontaminate={"mode": "trim"}))  # fmt: skip
    count = write_curated(folder, "train", curated, tmp_path / "out")
    assert count == 120 == ds.count_rows(tmp_path / "out")
    data = ds.read_split(tmp_path / "out", "train")
    assert sum(data["selected"]) == curated.kept == sum(weight == 1 for weight in data["sample_weight"])
    reasons = dict(zip(data["id"], data["selection_reason"], strict=True))
    assert (reasons["id001"], reasons["id010"]) == ("exact: duplicate of row 0", "kept")
    assert reasons["id004"] == "readable: empty, 0"
    texts = dict(zip(data["id"], data["text"], strict=True))
    assert "privacy" not in texts["id008"]
    assert "asked " in texts["id090"]
    assert "wrote the letter" not in texts["id090"]
    assert texts["id006"] == "Too short."  # left out: as it came
    assert texts["id010"] == rows()[1][10]
    assert set(data["source"]) == {"web"}


def test_a_run_that_was_cut_short_continues_after_its_shards(tmp_path, monkeypatch):
    folder = written(tmp_path / "data", 20)
    expected = decisions(curate_text(folder, "train", tmp_path / "undisturbed", PLAN))
    for of in ("screen", "count", "weigh", "decide"):
        genuine = getattr(stage, f"{of}_shard")
        called: list[int] = []

        def failing(shard, genuine=genuine, called=called):
            if shard.number == 3 and 3 not in called:
                called.append(3)
                raise KeyboardInterrupt
            called.append(shard.number)
            return genuine(shard)

        monkeypatch.setattr(stage, f"{of}_shard", failing)
        work = tmp_path / of
        with pytest.raises(KeyboardInterrupt):
            curate_text(folder, "train", work, PLAN)
        before = {path: path.stat().st_mtime_ns for path in work.rglob("*.parquet")}
        called[:] = [3]
        assert decisions(curate_text(folder, "train", work, PLAN)) == expected
        assert called == [3, 3, 4, 5]  # 0, 1 and 2 had been finished
        assert {path: path.stat().st_mtime_ns for path in before} == before
        monkeypatch.undo()


def test_another_plan_or_input_starts_afresh(tmp_path):
    folder = written(tmp_path / "data", 60)
    first = curate_text(folder, "train", tmp_path / "work", TextPlan(filters=()))
    assert curate_text(folder, "train", tmp_path / "work", TextPlan(filters=())).folder == first.folder
    assert curate_text(folder, "train", tmp_path / "work", TextPlan()).folder != first.folder


def test_bytes_that_are_no_utf8_and_missing_texts(tmp_path):
    shard = tmp_path / "data" / "train" / "part-00000.parquet"
    shard.parent.mkdir(parents=True)
    spoiled = pa.array([b"caf\xe9 au lait", b"plain text of words"], pa.binary()).view(pa.string())
    texts = pa.concat_arrays([spoiled, pa.array([None], pa.string())])
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": texts}), shard)
    curated = curate_text(tmp_path / "data", "train", tmp_path / "work", TextPlan(filters=()))
    assert decisions(curated) == {
        "a": (False, "readable", "invalid_utf8"), "b": (True, "", ""), "c": (False, "readable", "empty"),
    }  # fmt: skip


def test_all_copies_and_nothing_left(tmp_path):
    data = Dataset.from_dict({"text": ["same words again"] * 30 + ["", " "]})
    ds.write_split(data, tmp_path / "data", "train", shard_rows=8)
    curated = curate_text(tmp_path / "data", "train", tmp_path / "work", TextPlan(filters=()))
    assert curated.kept == 1
    assert curate_text(tmp_path / "data", "train", tmp_path / "work", TextPlan()).kept == 0


def test_what_can_not_be_curated_is_refused(tmp_path):
    folder = written(tmp_path / "data", 60)
    with pytest.raises(ConfigurationError, match="There is no step 'gofer'"):
        curate_text(folder, "train", tmp_path / "work", TextPlan(filters=(("gofer", {}),)))
    with pytest.raises(ConfigurationError, match="'sentences' does not look at one document at a time"):
        curate_text(folder, "train", tmp_path / "work", TextPlan(filters=(("sentences", {}),)))
    with pytest.raises(ConfigurationError, match="'min_words' parameter of GopherQuality"):
        curate_text(folder, "train", tmp_path / "work", TextPlan(filters=(("gopher-quality", {"min_words": -3}),)))
    with pytest.raises(ConfigurationError, match="'minhash' has no parameter 'band'"):
        curate_text(folder, "train", tmp_path / "work", TextPlan(minhash={"band": 3}))
    for wrong in ({"ngram": 0}, {"mode": "burn"}, {"words": 3}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            curate_text(folder, "train", tmp_path / "none", TextPlan(evaluation={"exam": (EXAM,)}, decontaminate=wrong))
    assert not (tmp_path / "none").exists()  # told before anything was read
    with pytest.raises(ValueError, match="budget=500 must lie in"):
        curate_text(
            folder,
            "train",
            tmp_path / "work",
            TextPlan(target=TARGET, dsir={"budget": 500, "min_tokens": 1, "target_smoothing": 1}),
        )
    ds.write_split(Dataset.from_dict({"id": ["a"], "words": ["x"]}), tmp_path / "other", "train")
    with pytest.raises(DatasetFormatError, match="no column 'text', only id, words"):
        curate_text(tmp_path / "other", "train", tmp_path / "work")
    ds.write_split(Dataset.from_dict({"id": ["a", "a"], "text": ["x", "y"]}), tmp_path / "twice", "train")
    with pytest.raises(DatasetFormatError, match="The id 'a' comes twice"):
        curate_text(tmp_path / "twice", "train", tmp_path / "work", TextPlan(filters=()))
    empty = Dataset.from_dict(
        {"id": [], "text": []}, features=Features({"id": Value("string"), "text": Value("string")})
    )
    ds.write_split(empty, tmp_path / "empty", "train")
    with pytest.raises(DatasetFormatError, match="holds no rows"):
        curate_text(tmp_path / "empty", "train", tmp_path / "work")

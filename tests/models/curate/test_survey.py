"""Every document is accounted for, whatever the steps, the processes and what is wrong with it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from models.curate.survey import Decontaminator, Readable, TextCurationPipeline, make_step
from models.curate.text_dedup import ExactDedup
from models.curate.text_documents import Document
from models.curate.text_filters import C4Filter, GopherQuality, LanguageFilter
from models.curate.text_minhash import MinHashDedup

WORDS = [f"word{i}" for i in range(500)]
STOPS = ("the", "of", "and", "that", "have", "with")


def prose(random, sentences=8):
    """Lines of nonsense with function words, without repetition to speak of."""

    def sentence():
        tokens = random.choice(WORDS, size=12)
        tokens[[0, 4, 8]] = random.choice(STOPS, size=3)
        return " ".join(tokens).capitalize() + "."

    return "\n".join(sentence() for _ in range(sentences))


def corpus(n=60):
    random = np.random.default_rng(0)
    texts = [prose(random) for _ in range(n)]
    texts[3] = texts[0].upper()
    texts[5] = texts[1].replace("word", "Word", 1) + "\nOne more line of the same and that."
    texts[7] = "Short."
    texts[9] = texts[9] + "\nThis site uses cookies to be of use."
    texts[11] = "the same line and that\n" * 20
    return [*texts, "", "  \n", b"caf\xe9 au lait"]


def test_every_document_is_kept_or_accounted_for():
    texts = corpus()
    pipeline = TextCurationPipeline().fit(texts)
    report = pipeline.report_
    assert len(report.kept_ids) + len(report.dropped) == len(texts)
    assert {one.id for one in report.dropped}.isdisjoint(report.kept_ids)
    assert pipeline.indices_.tolist() == [int(key) for key in report.kept_ids]
    assert [row["step"] for row in report.funnel] == [
        "readable", "gopher-repetition", "gopher-quality", "c4", "fineweb", "minhash",
    ]  # fmt: skip
    for before, row in zip(report.funnel, report.funnel[1:], strict=False):
        assert row["before"] == before["kept"]
        assert row["kept"] + row["dropped"] == row["before"]
    rules = {one.id: (one.step, one.rule) for one in report.dropped}
    assert rules["60"] == rules["61"] == ("readable", "empty")
    assert rules["62"] == ("readable", "invalid_utf8")
    assert rules["7"][0] in ("gopher-repetition", "gopher-quality")
    assert rules["11"] == ("gopher-repetition", "duplicate_lines")
    assert rules["3"] == ("minhash", "near_duplicate")
    assert rules["1"] == ("minhash", "near_duplicate")  # its copy is longer
    assert list(report.replacements) == ["9"]
    assert "cookies" not in report.replacements["9"]
    assert [document.text for document in pipeline.transform(texts) if document.id == "9"] == [report.replacements["9"]]


def test_the_result_depends_neither_on_processes_nor_on_chunks(monkeypatch):
    texts = corpus(40)
    expected = TextCurationPipeline().run(texts)
    monkeypatch.setattr("models.curate.survey.CHUNK", 7)
    assert TextCurationPipeline().run(texts) == expected
    assert TextCurationPipeline(["gopher-quality", "c4"], n_jobs=2).run(texts) == TextCurationPipeline(
        ["gopher-quality", "c4"]
    ).run(texts)


def test_the_report_as_metrics_and_tables():
    report = TextCurationPipeline(["exact"]).run(["a b", "A B", "", "c"])
    metrics = report.to_mlflow()
    assert (metrics["documents"], metrics["kept"], metrics["readable.empty"], metrics["exact.duplicate"]) == (
        4,
        2,
        1,
        1,
    )
    tables = report.tables()
    assert tables["decisions"].values.tolist() == [["2", "readable", "empty", 0.0], ["1", "exact", "duplicate", 0.0]]
    assert tables["funnel"].values.tolist() == [["readable", 4, "empty", 1], ["exact", 3, "duplicate", 1]]


def test_steps_by_name_with_parameters_and_as_filters():
    assert make_step("minhash").get_params() == MinHashDedup().get_params()
    assert make_step(("c4", {"min_sentences": 2})).min_sentences == 2
    own = C4Filter(min_sentences=1)
    assert make_step(own) is not own
    report = TextCurationPipeline(["exact", GopherQuality(min_words=2), ExactDedup()]).run(["a b of the", "x"])
    assert [row["step"] for row in report.funnel] == ["readable", "exact", "gopher-quality", "exact#2"]
    with pytest.raises(ValueError, match="There is no step 'gofer'; steps are exact, gopher-repetition"):
        TextCurationPipeline(["gofer"]).fit(["a"])
    with pytest.raises(NotFittedError, match="not fitted"):
        TextCurationPipeline([LanguageFilter()]).fit(["a text"])
    with pytest.raises(NotFittedError, match="fit"):
        TextCurationPipeline().transform(["a"])


def test_nothing_left_is_a_report_and_not_an_error():
    report = TextCurationPipeline().run(["", " ", "x"])
    assert report.kept_ids == []
    assert len(report.dropped) == 3
    assert report.funnel[-1]["before"] == 0
    with pytest.raises(ValueError, match="X is empty"):
        TextCurationPipeline().run([])


def test_readable_keeps_whatever_has_text():
    found = Readable().fit(["x", "", "\t", "é", b"\xff", "猫"])
    assert found.indices_.tolist() == [0, 3, 5]
    assert found.decisions_[4].rule == "invalid_utf8"


def exam():
    random = np.random.default_rng(1)
    return [" ".join(random.choice(WORDS, size=30)) for _ in range(20)]


def test_planted_passages_are_found_and_shuffled_words_are_not():
    random = np.random.default_rng(2)
    texts, questions = [prose(random) for _ in range(100)], exam()
    planted = [
        text + "\n" + " ".join(questions[i % 20].upper().split()[8:20]) + "!" if i % 2 else text
        for i, text in enumerate(texts)
    ]
    step = Decontaminator({"exam": questions}).fit(planted)
    assert step.indices_.tolist() == list(range(0, 100, 2))
    assert {decision.rule for decision in step.decisions_ if not decision.keep} == {"contaminated:exam"}
    shuffled = [" ".join(random.permutation(question.split())) for question in questions]
    assert len(Decontaminator({"exam": questions}).fit(shuffled).indices_) == 20
    eleven = [" ".join(question.split()[:11]) for question in questions]
    assert len(Decontaminator({"exam": questions}).fit(eleven).indices_) == 20
    assert Decontaminator({"exam": questions}, ngram=13).fit(planted).indices_.size == 100


def test_trimming_cuts_the_passage_alone():
    question = exam()[0]
    words = question.split()
    text = f"Before it. {' '.join(words[:15])}, and after it."
    decision = Decontaminator({"exam": [question]}, mode="trim").prepare([]).check(Document("a", text))
    assert (decision.keep, decision.rule, decision.value) == (True, "contaminated:exam", 4.0)
    assert decision.replacement_text == "Before it. , and after it."
    whole = Decontaminator({"exam": [question]}, mode="trim").fit([question])
    assert whole.indices_.size == 0


def test_decontamination_reports_by_benchmark_and_comes_last():
    questions = exam()
    step = Decontaminator({"one": questions[:10], "two": questions[5:], "short": ["a b c"]}).prepare([])
    assert step.shared(Document("a", questions[7])) == {"one": 19, "two": 19}
    assert step.too_short_ == {"one": 0, "two": 0, "short": 1}
    report = TextCurationPipeline(["exact", ("decontaminate", {"evaluation": {"one": questions}})]).run(
        [*questions[:3], "clean"]
    )
    assert report.to_mlflow()["decontaminate.contaminated.one"] == 3
    assert report.kept_ids == ["3"]
    with pytest.raises(ValueError, match="decontamination must be the last step"):
        TextCurationPipeline([("decontaminate", {"evaluation": {"one": questions}}), "exact"]).run(["a"])
    with pytest.raises(ValueError, match="evaluation is missing"):
        Decontaminator().fit(["a"])

"""Learned utilities: the language model is a distribution, and each utility tells trusted text from noise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from models.curate.text_documents import Document
from models.curate.text_quality import STOP, KneserNey, MooreLewis, PerplexityFilter, QualityClassifier

TRUSTED = [f"{subject} that {verb} the {thing}" for subject in ("a tool", "a program", "a library")
           for verb in ("reads", "writes", "sorts", "draws") for thing in ("files", "pictures", "letters")]  # fmt: skip
GOOD = ["a tool that draws the files", "a program that reads the pictures", "a library that letters sorts the"]
BAD = ["buy cheap pills now", "click here", "xx yy zz qq ww vv"]
RAW = GOOD + BAD


@pytest.mark.parametrize("order", [1, 2, 3])
def test_kneser_ney_probabilities_sum_to_one(order):
    model = KneserNey(order).fit([text.split() for text in TRUSTED])
    vocabulary = {word for text in TRUSTED for word in text.split()} | {STOP}
    assert model.vocabulary == len(vocabulary) + 1
    for history in ((), ("a",), ("a", "tool"), ("never", "seen")):
        if len(history) < order:
            total = sum(model.probability((*history, word)) for word in [*vocabulary, "unseen"])
            assert total == pytest.approx(1.0)


def test_kneser_ney_counts_histories_in_lower_orders():
    model = KneserNey(2).fit([["san", "francisco"], ["san", "francisco"], ["a", "cat"], ["the", "cat"]])
    assert model.probability(("cat",)) > model.probability(("francisco",))
    assert model.probability(("san", "francisco")) > model.probability(("san", "cat"))


def test_quality_classifier():
    model = QualityClassifier(keep="threshold").fit(RAW, trusted=TRUSTED)
    assert model.scores_[:3].min() > model.scores_[3:].max()
    assert model.indices_.tolist() == [0, 1, 2]
    assert [model.check(Document(str(i), text)) for i, text in enumerate(RAW)] == model.decisions_
    documents = [{"id": f"{i}", "text": text} for i, text in enumerate(RAW * 100)]
    noisy = QualityClassifier(keep="pareto").fit(documents, trusted=TRUSTED)
    kept = np.isin(np.arange(600), noisy.indices_).reshape(100, 6).mean(axis=0)
    expected = (2 - noisy.scores_[:6]) ** -9.0
    assert np.abs(kept - expected).max() < 4.5 * 0.05
    with pytest.raises(ValueError, match="trusted is missing"):
        QualityClassifier().fit(RAW)
    with pytest.raises(NotFittedError, match="fit"):
        QualityClassifier().check(Document("a", "x"))


def test_perplexity_by_language():
    documents = [{"id": str(i), "text": text, "language": "en"} for i, text in enumerate(RAW)]
    documents += [{"id": f"x{i}", "text": text, "language": "xx"} for i, text in enumerate(BAD)]
    model = PerplexityFilter().fit(documents, trusted=TRUSTED)
    assert set(model.indices_[model.indices_ < 6]) < {0, 1, 2}
    assert len(model.indices_) == 2 + 1
    assert sorted(model.terciles_) == ["en", "xx"]
    everything = PerplexityFilter(keep=("head", "middle", "tail")).fit(documents, trusted=TRUSTED)
    assert len(everything.indices_) == 9
    with pytest.raises(ValueError, match="No document of the language 'de'"):
        model.check(Document("a", "x", {"language": "de"}))
    with pytest.raises(ValueError, match="keep must name some of head, middle, tail"):
        PerplexityFilter(keep=("best",)).fit(RAW, trusted=TRUSTED)
    with pytest.raises(ValueError, match="trusted is missing"):
        PerplexityFilter().fit(RAW)


def test_moore_lewis():
    model = MooreLewis(budget=0.5).fit(RAW, target=TRUSTED)
    assert model.indices_.tolist() == [0, 1, 2]
    assert np.isfinite(model.scores_).all()
    with pytest.raises(ValueError, match="target is missing"):
        MooreLewis().fit(RAW)
    with pytest.raises(ValueError, match=r"budget=7 must lie in 1\.\.6"):
        MooreLewis(budget=7).fit(RAW, target=TRUSTED)

"""Copies are found whatever their order; passages are cut as a slow search would cut them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from models.curate.text_dedup import (
    BloomFilter,
    ExactDedup,
    SentenceDedup,
    SubstringDedup,
    normalised_url,
    repeated_windows,
)
from models.curate.text_documents import Document


def test_exact_copies_differ_in_form_alone():
    texts = ["A cat!", "a   CAT", "Ａ cat", "a dog", "!!!", "???", "!!!"]
    dedup = ExactDedup().fit(texts)
    assert dedup.indices_.tolist() == [0, 3, 4, 5]
    assert dedup.decisions_[2].rule == "duplicate"
    assert dedup.decisions_[2].value == 0.0


def test_the_lowest_id_stays_whatever_the_order():
    documents = [Document(key, text) for key, text in (("c", "one"), ("a", "ONE"), ("b", "two"), ("d", "one."))]
    kept = set()
    for order in np.random.default_rng(0).permuted(np.tile(np.arange(4), (6, 1)), axis=1):
        shuffled = [documents[i] for i in order]
        kept.add(tuple(sorted(shuffled[row].id for row in ExactDedup().fit(shuffled).indices_)))
    assert kept == {("a", "b")}


def test_all_copies_leave_one():
    assert ExactDedup().fit(["x"] * 50).indices_.tolist() == [0]


def test_urls():
    assert normalised_url("https://WWW.Example.org:443/x/?utm_source=a&z=1#top") == "https://example.org/x?z=1"
    pages = [
        {"id": "a", "text": "1", "url": "http://example.org/x"},
        {"id": "b", "text": "2", "url": "http://www.example.org/x/#part"},
        {"id": "c", "text": "1"},
        {"id": "d", "text": "1"},
    ]
    assert ExactDedup(by="url").fit(pages).indices_.tolist() == [0, 2, 3]


def test_addresses_that_are_none_are_compared_as_they_are():
    broken = ["http://[::1", "http://host:port/", "http://host:99999/", "http://host/?q=caf\udce9"]
    assert [normalised_url(f" {url}\n") for url in broken] == broken
    pages = [{"id": str(row), "text": str(row), "url": url} for row, url in enumerate([*broken, broken[0]])]
    assert ExactDedup(by="url").fit(pages).indices_.tolist() == [0, 1, 2, 3]


def test_bloom_filter_finds_all_and_errs_as_often_as_said():
    keys = np.random.default_rng(0).integers(0, 2**63, size=20_000).tolist()
    bloom = BloomFilter(10_000, 0.01)
    for key in keys[:10_000]:
        bloom.add(key)
    assert all(bloom.add(key) for key in keys[:100])
    fresh = BloomFilter(10_000, 0.01)
    for key in keys[:10_000]:
        fresh.add(key)
    snapshot = fresh.held.copy()
    wrong = 0
    for key in keys[10_000:]:
        fresh.held[:] = snapshot
        wrong += fresh.add(key)
    assert wrong / 10_000 == pytest.approx(0.01, abs=0.004)
    assert fresh.held.nbytes < 1.3 * 10_000


def test_bloom_variant_drops_the_same_copies():
    texts = [f"text number {i % 300}" for i in range(900)]
    assert ExactDedup(bloom=1e-6).fit(texts).indices_.size == 300


SHARED = "We write good programs. They run on old machines. You can change them as you like."


def test_repeated_sentences_are_cut():
    own = " ".join(f"Here is sentence number {i} about a matter of its own." for i in range(8))
    dedup = SentenceDedup().fit([f"{SHARED} {own}", f"First of all. {own.replace('Here', 'There')} {SHARED}", SHARED])
    assert [decision.rule for decision in dedup.decisions_] == ["", "repeated_sentences", "too_few_sentences"]
    assert dedup.decisions_[1].value == 3.0
    assert SHARED not in dedup.decisions_[1].replacement_text
    assert dedup.decisions_[1].replacement_text.startswith("First of all. There is sentence")
    assert dedup.indices_.tolist() == [0, 1]
    few = SentenceDedup(min_sentences=1).fit([SHARED, f"{SHARED} A few words more."])
    assert few.decisions_[1].rule == "too_few_words"


def slow_windows(tokens, length):
    """Literal search: a window counts when its words stood before, and no separator is in it."""
    covered = np.zeros(len(tokens), dtype=bool)
    seen = set()
    for place in range(len(tokens) - length + 1):
        window = tuple(tokens[place : place + length])
        if min(window) < 0:
            continue
        if window in seen:
            covered[place : place + length] = True
        seen.add(window)
    return covered


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 50])
def test_repeated_windows_equal_a_literal_search(length):
    random = np.random.default_rng(length)
    for alphabet in (2, 4, 50):
        tokens = random.integers(0, alphabet, size=400)
        tokens[random.integers(0, 400, size=6)] = -1
        assert repeated_windows(tokens, length).tolist() == slow_windows(tokens.tolist(), length).tolist()


def test_passages_are_cut_from_the_text():
    passage = " ".join(f"word{i}" for i in range(60))
    dedup = SubstringDedup().fit([f"Start. {passage}", f"Before, {passage.upper()} - after!", passage])
    assert [decision.rule for decision in dedup.decisions_] == ["", "repeated_passage", "too_few_words"]
    assert dedup.decisions_[1].replacement_text == "Before,  - after!"
    assert dedup.decisions_[1].value == 60.0
    assert dedup.indices_.tolist() == [0, 1]
    assert SubstringDedup(length=61).fit([passage, passage]).indices_.tolist() == [0, 1]


def test_a_document_that_was_not_in_the_corpus_is_refused():
    dedup = ExactDedup().fit([Document("a", "x")])
    assert dedup.check(Document("a", "x")).keep
    with pytest.raises(ValueError, match="document 'b' was not in the corpus given to fit; ExactDedup compares"):
        dedup.check(Document("b", "x"))
    with pytest.raises(NotFittedError, match="fit"):
        SentenceDedup().check(Document("a", "x"))
    with pytest.raises(ValueError, match="X is empty"):
        SubstringDedup().fit([])
    with pytest.raises(ValueError, match="'bloom' parameter"):
        ExactDedup(bloom=0.0).fit(["a"])

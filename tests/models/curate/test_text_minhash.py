"""Signatures are exact, candidates come as often as the formula says, and groups depend on no order."""

from __future__ import annotations

import numpy as np
import pytest

from models.curate.text_documents import Document
from models.curate.text_hashing import (
    PRIME,
    band_keys,
    jaccard,
    ngram_hashes,
    permutations,
    shingles,
    signatures_of,
    uniform_of,
)
from models.curate.text_minhash import Components, MinHashDedup, buckets, candidate_probability, join_candidates
from models.curate.text_semantic import SemanticDedup, nearest_before, unit_rows

WORDS = [f"word{i}" for i in range(3000)]


def sets_of_jaccard(similarity, n, size, random):
    """Pairs of hash sets of exactly this Jaccard similarity."""
    common = round(2 * size * similarity / (1 + similarity))
    for _ in range(n):
        drawn = np.unique(random.integers(0, 2**64, size=2 * size + 50, dtype=np.uint64))
        random.shuffle(drawn)
        first, second = drawn[:size], np.concatenate([drawn[:common], drawn[size : 2 * size - common]])
        yield np.sort(first), np.sort(second)


def test_signatures_equal_arithmetic_of_any_precision():
    random = np.random.default_rng(0)
    sets = [random.integers(0, 2**64, size=n, dtype=np.uint64) for n in (1, 3, 40)]
    sets.append(np.array([0, 1, PRIME - 1, PRIME, PRIME + 1, 2**64 - 1], dtype=np.uint64))
    chosen = permutations(12, seed=5)
    chosen.a[:2], chosen.b[:2] = [PRIME - 1, 1], [PRIME - 1, 0]
    found = signatures_of(sets, chosen)
    for row, members in enumerate(sets):
        for j, (a, b) in enumerate(zip(chosen.a.tolist(), chosen.b.tolist(), strict=True)):
            assert int(found[row, j]) == min((a * h + b) % PRIME for h in members.tolist())


def test_agreement_of_signatures_estimates_jaccard():
    random = np.random.default_rng(1)
    chosen = permutations(2000, seed=0)
    for similarity in (0.2, 0.5, 0.8):
        first, second = next(sets_of_jaccard(similarity, 1, 300, random))
        exact = jaccard(first, second)
        pair = signatures_of([first, second], chosen)
        assert (pair[0] == pair[1]).mean() == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 2000) ** 0.5)


def test_the_formula_at_its_known_points():
    assert candidate_probability(0.8) == pytest.approx(0.924, abs=5e-4)
    assert candidate_probability(0.5) == pytest.approx(0.053, abs=5e-4)
    assert (1 / 14) ** (1 / 8) == pytest.approx(0.72, abs=5e-3)
    assert MinHashDedup(bands=1, rows=1).candidate_probability(0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9])
def test_candidates_come_as_often_as_the_formula_says(similarity):
    random = np.random.default_rng(2)
    pairs = list(sets_of_jaccard(similarity, 1500, 40, random))
    exact = jaccard(*pairs[0])
    keys = [band_keys(signatures_of(side, permutations(112, seed=1)), 14) for side in zip(*pairs, strict=True)]
    rate = (keys[0] == keys[1]).any(axis=1).mean()
    expected = candidate_probability(exact)
    assert rate == pytest.approx(expected, abs=3 * (expected * (1 - expected) / 1500) ** 0.5)


def test_ngrams_depend_on_order_and_width():
    items = np.arange(6, dtype=np.uint64)
    grams = ngram_hashes(items, 3, 1)
    assert len(set(grams.tolist())) == 4
    assert ngram_hashes(items[1:4], 3, 1)[0] == grams[1]
    assert ngram_hashes(items[[0, 2, 1]], 3, 1)[0] != grams[0]
    assert ngram_hashes(items, 3, 2)[0] != grams[0]
    assert len(ngram_hashes(items[:2], 3, 1)) == 1
    assert len(ngram_hashes(items[:0], 3, 1)) == 0


def test_shingles_of_short_texts_are_characters():
    assert len(shingles("abcdefg")) == 3
    assert len(shingles(" ".join(WORDS[:20]))) == 16
    assert len(shingles("!?")) == 0
    assert jaccard(shingles("Reads files."), shingles("reads  FILES")) == 1.0


def test_jaccard_equals_sets():
    random = np.random.default_rng(3)
    for _ in range(20):
        first, second = (np.unique(random.integers(0, 30, size=12).astype(np.uint64)) for _ in range(2))
        a, b = set(first.tolist()), set(second.tolist())
        assert jaccard(first, second) == len(a & b) / len(a | b)


def edited(text, number, random):
    tokens = text.split()
    for place in random.choice(len(tokens), size=number, replace=False):
        tokens[place] = f"new{random.integers(10**6)}"
    return " ".join(tokens)


def corpus(random, n=60):
    texts = [" ".join(random.choice(WORDS, size=60)) for _ in range(n)]
    return texts + [edited(texts[i], 1, random) for i in range(0, n, 3)]


def test_planted_copies_are_found_and_the_longest_stays():
    texts = corpus(np.random.default_rng(4))
    texts[60] += " and a tail"
    dedup = MinHashDedup(verify=0.7).fit(texts)
    assert len(dedup.groups()) == 20
    assert {tuple(group.tolist()) for group in dedup.groups()} == {(3 * i, 60 + i) for i in range(20)}
    assert 60 in dedup.indices_
    assert 0 not in dedup.indices_
    assert dedup.decisions_[0].rule == "near_duplicate"
    assert dedup.decisions_[0].value > 0.7
    assert len(dedup.indices_) == 60


def test_groups_do_not_depend_on_the_order_of_documents_or_pairs():
    random = np.random.default_rng(5)
    documents = [Document(f"{i:03}", text) for i, text in enumerate(corpus(random, 30))]
    expected = {documents[row].id for row in MinHashDedup().fit(documents).indices_}
    for _ in range(3):
        shuffled = [documents[i] for i in random.permutation(len(documents))]
        assert {shuffled[row].id for row in MinHashDedup().fit(shuffled).indices_} == expected
    pairs = random.integers(0, 200, size=(150, 2))
    labels = []
    for order in (np.arange(150), random.permutation(150), np.arange(150)[::-1]):
        parts = Components(200)
        for first, second in pairs[order]:
            parts.join(int(first), int(second))
        labels.append(parts.labels().tolist())
    assert labels[0] == labels[1] == labels[2]


def test_verified_groups_equal_those_of_all_pairs():
    random = np.random.default_rng(6)
    keys = random.integers(0, 12, size=(3, 80)).astype(np.uint64)
    values = random.random(80)

    def similar(a, b):
        return abs(values[a] - values[b]) < 0.05

    expected = Components(80)
    for band in keys:
        for a in range(80):
            for b in range(a):
                if band[a] == band[b] and similar(a, b):
                    expected.join(a, b)
    assert join_candidates(iter(keys), 80, similar).labels().tolist() == expected.labels().tolist()


def test_what_is_dropped_is_as_alike_as_asked_to_what_stays():
    random = np.random.default_rng(10)
    first = random.choice(WORDS, size=80).tolist()
    second = [*random.choice(WORDS, size=8), *first[8:]]  # alike, neighbour by neighbour
    third = [*second[:72], *random.choice(WORDS, size=8)]
    texts = [" ".join([*first, "and", "more"]), " ".join(second), " ".join([*third, "end"])]
    sets = [shingles(text) for text in texts]
    assert jaccard(sets[0], sets[1]) > 0.7 < jaccard(sets[1], sets[2])
    assert jaccard(sets[0], sets[2]) < 0.7
    dedup = MinHashDedup(bands=60, rows=2, verify=0.7).fit(texts)
    assert dedup.components_.tolist() == [0, 0, 0]
    assert len(dedup.indices_) == 2
    assert all(decision.keep or decision.value >= 0.7 for decision in dedup.decisions_)
    assert len(MinHashDedup(bands=60, rows=2).fit(texts).indices_) == 1  # as published


def test_buckets():
    found = [bucket.tolist() for bucket in buckets(np.array([5, 3, 5, 9, 3, 5], dtype=np.uint64))]
    assert found == [[1, 4], [0, 2, 5]]
    assert list(buckets(np.array([1, 2], dtype=np.uint64))) == []


def test_documents_without_words_all_alike_huge_or_spoiled():
    assert MinHashDedup().fit(["!!", "??", "..."]).indices_.tolist() == [0, 1, 2]
    assert MinHashDedup().fit(["the same text"] * 40).indices_.tolist() == [0]
    large = " ".join(WORDS) * 400
    assert len(large) > 10_000_000
    assert MinHashDedup().fit([large, large + " end"]).indices_.tolist() == [1]
    assert MinHashDedup().fit([b"caf\xe9 au lait, please", b"caf\xe9 au lait, please!", "word"]).indices_.tolist() == [
        1,
        2,
    ]
    with pytest.raises(ValueError, match="X is empty"):
        MinHashDedup().fit([])
    with pytest.raises(ValueError, match="'verify' parameter"):
        MinHashDedup(verify=0.0).fit(["a"])


def test_draws_depend_on_key_and_seed_alone():
    keys = [f"id{i}" for i in range(5000)]
    first = uniform_of(keys, 0)
    assert np.array_equal(uniform_of(keys[::-1], 0), first[::-1])
    assert not np.array_equal(uniform_of(keys, 1), first)
    assert 0 < first.min() < first.max() < 1
    assert first.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / 5000) ** 0.5)
    assert np.histogram(first, 10, (0, 1))[0] == pytest.approx(500, abs=4 * 450**0.5)


def test_semantic_dedup_with_eps_0_drops_equal_rows_only():
    random = np.random.default_rng(7)
    X = random.normal(size=(120, 5))
    X[100:110] = X[:10]
    X[110:] = X[10:20] * (1 + 1e-9) + 1e-9
    kept = SemanticDedup(eps=0.0, n_clusters=4).fit(X)
    assert len(kept.indices_) == 110
    assert len({tuple(row) for row in unit_rows(X[kept.indices_])}) == 110


def test_semantic_dedup_against_a_literal_loop():
    X = unit_rows(np.random.default_rng(8).normal(size=(300, 3)))
    dedup = SemanticDedup(eps=0.02, n_clusters=5).fit(X)
    for cluster in range(5):
        members = np.flatnonzero(dedup.clusters_ == cluster)
        assert (dedup.scores_[members] == -1).sum() == 1
    assert np.allclose(nearest_before(X[:50])[1:], [max(X[j] @ X[i] for j in range(i)) for i in range(1, 50)])
    assert set(dedup.indices_) == set(np.flatnonzero(dedup.scores_ <= 0.98))
    assert 0 < len(dedup.indices_) < 300


def test_semantic_dedup_budget_embedder_and_errors():
    X = np.random.default_rng(9).normal(size=(50, 4))
    assert len(SemanticDedup(budget=0.5).fit(X).indices_) == 25
    texts = [f"{'cat' if i % 2 else 'dog'} {i}" for i in range(10)]
    dedup = SemanticDedup(embed=lambda given: [[1.0, 0.0] if "cat" in text else [0.0, 1.0] for text in given]).fit(
        texts
    )
    assert len(dedup.indices_) == 2
    assert dedup.check(Document("0", texts[0])).keep
    with pytest.raises(ValueError, match=r"budget=51 must lie in 1\.\.50"):
        SemanticDedup(budget=51).fit(X)
    with pytest.raises(ValueError, match=r"X contains NaN .* row 3"):
        X[3, 0] = np.nan
        SemanticDedup().fit(X)

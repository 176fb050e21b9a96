"""Weights are the published sums, draws follow them, and sources mix as asked."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader

from models.curate.text_hashing import uniform_of
from models.curate.text_resampling import (
    DSIR,
    MixtureBandit,
    MixtureSampler,
    bucket_counts,
    cluster_balanced,
    gumbel_top,
    log_ratio,
    mixture_quotas,
    over_pareto,
    over_threshold,
)

GAMES = ["a game of chess with pieces", "an arcade game with dragons", "a card game for children", "chess game engine"]
TOOLS = ["a library for parsing text", "tools that read files", "a compiler for the language", "a parsing toolkit"]
RAW = [f"{text} number {i}" for i in range(25) for text in (GAMES if i < 5 else TOOLS)]


def dsir(**parameters):
    return DSIR(**({"budget": 10, "min_tokens": 1, "target_smoothing": 0.01} | parameters))


def test_counts_are_hashed_as_the_reference_does():
    text = "A cat, a dog: a CAT"
    tokens = re.findall(r"\w+|[^\w\s]+", text.lower())
    grams = tokens + [f"{one} {two}" for one, two in itertools.pairwise(tokens)]
    expected = Counter(int(hashlib.sha256(gram.encode()).hexdigest(), 16) % 10_000 for gram in grams)
    counts, lengths = bucket_counts([text, ""])
    assert lengths.tolist() == [8, 0]
    assert dict(zip(counts[0].indices.tolist(), counts[0].data.tolist(), strict=True)) == dict(expected)
    assert counts[1].nnz == 0


def test_log_weights_are_the_published_sum():
    raw, target = ["b a a", "c c"], ["a b", "a"]
    with pytest.warns(UserWarning, match="The target has 3 tokens"):
        fitted = DSIR(budget=1, ngrams=1, buckets=7, min_tokens=1).fit(raw, target=target)

    def bucket(word):
        return int(hashlib.sha256(word.encode()).hexdigest(), 16) % 7

    p, q = np.zeros(7), np.zeros(7)
    for word in ["a", "b", "a"]:
        p[bucket(word)] += 1 / 3
    for word in ["b", "a", "a", "c", "c"]:
        q[bucket(word)] += 1 / 5
    ratio = np.log(p + 1e-8) - np.log(q + 1e-8)
    expected = [sum(ratio[bucket(word)] for word in text.split()) for text in raw]
    assert fitted.log_weights_ == pytest.approx(expected)
    assert fitted.score(raw) == pytest.approx(expected)


def test_target_equal_to_raw_gives_no_weights_and_a_uniform_draw():
    with pytest.warns(UserWarning, match="target_smoothing=1"):
        fitted = dsir(target_smoothing=0.0).fit(RAW, target=RAW)
    assert np.abs(fitted.log_weights_).max() < 1e-12
    drawn = np.zeros(len(RAW))
    ids = [str(row) for row in range(len(RAW))]
    for seed in range(600):
        drawn[gumbel_top(fitted.log_weights_, 10, uniform_of(ids, seed))] += 1
    share = 10 / len(RAW)
    assert np.abs(drawn / 600 - share).max() < 4.5 * (share * (1 - share) / 600) ** 0.5


def test_first_draw_follows_the_softmax_of_the_weights():
    weights = np.array([0.0, 1.0, 2.0, -1.0])
    expected = np.exp(weights) / np.exp(weights).sum()
    ids = ["a", "b", "c", "d"]
    first = np.array([gumbel_top(weights, 1, uniform_of(ids, seed))[0] for seed in range(6000)])
    found = np.bincount(first, minlength=4) / 6000
    assert (np.abs(found - expected) < 3 * np.sqrt(expected * (1 - expected) / 6000)).all()


def test_the_target_is_drawn_and_the_draw_is_reproducible():
    fitted = dsir().fit(RAW, target=["another game of chess", "a game"])
    assert (fitted.indices_ < 20).mean() > 0.8
    assert fitted.indices_.tolist() == sorted(fitted.indices_.tolist())
    again = dsir().fit(RAW, target=["another game of chess", "a game"])
    assert np.array_equal(fitted.indices_, again.indices_)
    flat = [dsir(target_smoothing=1.0, random_state=seed).fit(RAW, target=RAW).indices_ for seed in (0, 1)]
    assert not np.array_equal(*flat)
    assert set(fitted.draw(5)) <= set(fitted.draw(10)) == set(fitted.indices_)
    assert fitted.select(np.array(RAW)).shape == (10,)


def test_a_document_is_drawn_or_not_whatever_the_order_of_the_others():
    documents = [{"id": f"d{i}", "text": text} for i, text in enumerate(RAW)]
    target = ["a game"]
    kept = {documents[row]["id"] for row in dsir().fit(documents, target=target).indices_}
    turned = documents[::-1]
    assert {turned[row]["id"] for row in dsir().fit(turned, target=target).indices_} == kept


def test_top_k_smoothing_and_length():
    fitted = dsir(top_k=True).fit(RAW, target=GAMES)
    assert set(fitted.indices_) == set(np.argsort(-fitted.log_weights_, kind="stable")[:10])
    doubled = [text + " " + text for text in RAW]
    plain, normal = (dsir(length_normalised=flag, ngrams=1).fit(RAW + doubled, target=GAMES) for flag in (False, True))
    n = len(RAW)
    assert plain.log_weights_[n:] == pytest.approx(2 * plain.log_weights_[:n])
    assert normal.log_weights_[n:] == pytest.approx(normal.log_weights_[:n])
    assert dsir(hash="fast", top_k=True).fit(RAW, target=GAMES).indices_.max() < 20


def test_several_targets_share_without_double_picks():
    fitted = dsir(budget=20).fit(RAW, target={"games": GAMES, "tools": TOOLS}, quotas={"games": 12, "tools": 8})
    assert Counter(fitted.drawn_for_.tolist()) == {"games": 12, "tools": 8}
    assert len(set(fitted.indices_.tolist())) == 20
    assert fitted.log_weights_.shape == (len(RAW), 2)
    assert Counter(dsir(budget=11).fit(RAW, target={"a": GAMES, "b": TOOLS}).drawn_for_.tolist()) == {"a": 6, "b": 5}
    with pytest.raises(ValueError, match=r"quotas name \['a'\], but the targets are \['games'\]"):
        dsir().fit(RAW, target={"games": GAMES}, quotas={"a": 1})
    with pytest.raises(ValueError, match=r"The sum of quotas=200 must lie in 1\.\.100"):
        dsir().fit(RAW, target={"a": GAMES, "b": TOOLS}, quotas={"a": 100, "b": 100})
    with pytest.raises(ValueError, match="quotas must not be negative, got -2 for 'b'"):
        dsir().fit(RAW, target={"a": GAMES, "b": TOOLS}, quotas={"a": 5, "b": -2})
    with pytest.raises(ValueError, match="several targets: change `quotas`"):
        fitted.draw(3)


def test_short_documents_are_never_drawn():
    fitted = dsir(budget=4, min_tokens=5).fit([*RAW[:10], "game", "chess"], target=GAMES)
    assert fitted.eligible_[-2:].tolist() == [False, False]
    assert max(fitted.indices_) < 10
    assert np.isfinite(fitted.scores_).all()
    with pytest.raises(ValueError, match=r"must lie in 1\.\.10, the number of documents of at least 5 tokens"):
        dsir(budget=11, min_tokens=5).fit([*RAW[:10], "game", "chess"], target=GAMES)


@pytest.mark.parametrize(
    ("X", "target", "parameters", "message"),
    [
        ([], GAMES, {}, "X is empty"),
        (RAW, [], {}, "X is empty"),
        (RAW, None, {}, "target is missing"),
        (RAW, ["  "], {}, "The target holds no words"),
        ([" ", ""], GAMES, {"min_tokens": 0}, "The raw corpus X holds no words"),
        (RAW, GAMES, {"budget": 0}, "budget=0 must lie in 1..100"),
        (RAW, GAMES, {"budget": 1000}, "budget=1000 must lie in 1..100"),
        (RAW, GAMES, {"budget": 1.5}, r"budget=1.5 must lie in \(0, 1\]"),
        (RAW, GAMES, {"min_tokens": 500}, r"no documents of at least 500 tokens to choose from"),
        (["a", 3], GAMES, {}, "got int at row 1"),
        (RAW, GAMES, {"hash": "md5"}, "'hash' parameter of DSIR"),
    ],
)
def test_what_can_not_be_drawn_is_refused(X, target, parameters, message):
    with pytest.raises(ValueError, match=message):
        dsir(**parameters).fit(X, target=target)


def test_log_ratio_has_a_floor():
    assert log_ratio([1, 0], [1, 1])[1] == pytest.approx(np.log(1e-8) - np.log(0.5), abs=1e-6)
    assert log_ratio([3, 1], [1, 1], smoothing=1.0) == pytest.approx(np.log([4 / 6, 2 / 6]) - np.log(0.5), abs=1e-6)


def test_mechanisms():
    assert over_threshold([0.2, 0.5, 0.9], 0.5).tolist() == [1, 2]
    uniform = uniform_of([str(i) for i in range(20_000)], 0)
    scores = np.repeat([0.2, 0.9, 1.0], [10_000, 9_999, 1])
    kept = over_pareto(scores, uniform)
    low, high = (kept < 10_000).mean() * len(kept) / 10_000, ((kept >= 10_000) & (kept < 19_999)).sum() / 9_999
    for found, score in ((low, 0.2), (high, 0.9)):
        expected = (1 + (1 - score)) ** -9.0  # P(Lomax(9) > 1 - score)
        assert found == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 10_000) ** 0.5)
    assert 19_999 in kept
    balanced = cluster_balanced([0.9, 0.8, 0.7, 0.6, 0.1, 0.2], [0, 0, 0, 0, 1, 2], 4)
    assert balanced.tolist() == [0, 1, 4, 5]
    with pytest.raises(ValueError, match="NaN or infinite in 1 of 2"):
        over_threshold([np.nan, 1.0], 0.5)


def test_mixture_quotas():
    assert mixture_quotas([700, 200, 100], 10).tolist() == [7, 2, 1]
    assert mixture_quotas([700, 200, 100], 9, alpha=0).tolist() == [3, 3, 3]
    half = mixture_quotas([900, 100], 1000, alpha=0.5)
    assert half.tolist() == [750, 250]
    assert mixture_quotas([1000, 1000, 10], 300, alpha=0, max_epochs=2).tolist() == [140, 140, 20]
    assert mixture_quotas([7, 7, 7], 20).sum() == 20
    with pytest.raises(ValueError, match="Every source must hold at least 1 row"):
        mixture_quotas([5, 0], 3)
    with pytest.raises(ValueError, match=r"more than 2 passes over all sources give \(20\)"):
        mixture_quotas([5, 5], 21, max_epochs=2)


def test_mixture_sampler_passes_through_every_source():
    sampler = MixtureSampler([30, 4], n_samples=20, alpha=0, seed=3)
    assert sampler.quotas.tolist() == [10, 10]
    drawn = np.concatenate([sampler.rows(epoch) for epoch in range(6)])
    counts = np.bincount(drawn, minlength=34)
    assert counts[:30].tolist() == [2] * 30
    assert counts[30:].tolist() == [15] * 4
    assert np.array_equal(sampler.rows(2), MixtureSampler([30, 4], n_samples=20, alpha=0, seed=3).rows(2))


def test_mixture_sampler_resumes_and_serves_a_loader():
    sampler = MixtureSampler([6, 6], n_samples=8, seed=1)
    sampler.set_epoch(2)
    rows = iter(sampler)
    first = [next(rows) for _ in range(3)]
    other = MixtureSampler([6, 6], n_samples=8)
    other.load_state_dict(sampler.state_dict())
    assert first + list(other) == sampler.rows(2).tolist()
    assert sum(len(batch) for batch in DataLoader(range(12), sampler=MixtureSampler([6, 6], 8), batch_size=3)) == 8


def test_mixture_follows_rewards():
    bandit = MixtureBandit(3, eta=0.05, exploration=0.1)
    assert bandit.probabilities() == pytest.approx([1 / 3] * 3)
    random = np.random.default_rng(0)
    for _ in range(400):
        source = random.choice(3, p=bandit.probabilities())
        bandit.update(source, float(random.random() < (0.2, 0.3, 0.8)[source]))
    assert bandit.probabilities().argmax() == 2
    assert bandit.probabilities().min() >= 0.1 / 3 - 1e-12
    again = MixtureBandit(3, eta=0.05)
    again.load_state_dict(bandit.state_dict())
    assert again.probabilities() == pytest.approx(bandit.probabilities())
    assert MixtureSampler([9, 9, 9], 10, probabilities=[0.1, 0.2, 0.7]).quotas.tolist() == [1, 2, 7]
    with pytest.raises(ValueError, match=r"reward must lie in \[0, 1\], got nan"):
        bandit.update(0, float("nan"))
    with pytest.raises(ValueError, match="n_sources >= 1"):
        MixtureBandit(0)

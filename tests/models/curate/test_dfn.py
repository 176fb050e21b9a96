"""Data filtering networks: the loss, the scores, what is kept, and a pool with shuffled captions made clean."""

from __future__ import annotations

import copy
import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from models.curate.dfn import (
    BinaryFilter,
    ContrastivePairEncoder,
    DataFilteringNetwork,
    HFClipScorer,
    OpenClipScorer,
    Pairs,
    PairScorer,
    ReconstructionFilter,
    ScoreHistogram,
    averaged_weights,
    basic_filter,
    best_pairs,
    clip_adamw,
    induced_benchmark,
    pair_loss,
    zero_shot_accuracy,
)
from models.curate.pairs import as_pairs, cosine, in_chunks
from models.networks import build
from models.networks.pair_encoder import BagOfWords, vocabulary_of

NAMES = ["nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DATA = (load_digits().data / 16).astype(np.float32)
TARGET = load_digits().target
PROMPTS = [f"a picture of the digit {name}" for name in NAMES]
SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "epochs_or_samples": 12_000,
    "batch_size": 64,
    "lr": 3e-3,
    "warmup_steps": 20,
    "random_state": 0,
}


def captions(target: np.ndarray) -> list[str]:
    forms = ["a picture of the digit {}", "{}", "the number {}"]
    return [forms[row % 3].format(NAMES[label]) for row, label in enumerate(target)]


def trusted(n: int = 300) -> Pairs:
    return Pairs(DATA[:n], captions(TARGET[:n]))


def noisy_pool(start: int = 300, stop: int = 1300) -> tuple[Pairs, np.ndarray]:
    """Pairs of which 60 % got the caption of a random row, and which of them are true all the same."""
    rng = np.random.default_rng(0)
    told = TARGET[start:stop].copy()
    wrong = rng.random(len(told)) < 0.6
    told[wrong] = rng.permutation(told[wrong])
    aligned = told == TARGET[start:stop]
    meta = {"source": np.where(wrong, "crawl", "shop").tolist(), "row": np.arange(len(told)) % 2}
    return Pairs(DATA[start:stop], captions(told), meta), aligned


@pytest.fixture(scope="module")
def fitted() -> DataFilteringNetwork:
    return DataFilteringNetwork(**SMALL).fit(trusted())


class Fixed:
    """A scorer whose two sides are vectors already."""

    def encode_a(self, batch: Any) -> Tensor:
        return torch.as_tensor(np.asarray(batch)).float()

    def encode_b(self, batch: Any) -> Tensor:
        return torch.as_tensor(np.asarray(batch)).float()

    def score(self, a: Any, b: Any) -> Tensor:
        return cosine(self.encode_a(a), self.encode_b(b))


def rows(*scores: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of unit vectors with these cosines."""
    a = np.tile(np.float32([1, 0]), (len(scores), 1))
    found = np.array(scores, dtype=np.float32)
    return a, np.stack([found, np.sqrt(1 - found**2)], axis=1).astype(np.float32)


def frozen(**parameters: Any) -> DataFilteringNetwork:
    return DataFilteringNetwork(Fixed(), **parameters).fit(rows(0.1, 0.2))


# ---- the loss ----


def test_the_loss_between_its_ends() -> None:
    same = torch.eye(8)
    assert float(pair_loss(same, same, 1e4)) == pytest.approx(0, abs=1e-6)
    u, v = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    assert float(pair_loss(u, v, 0.0)) == pytest.approx(math.log(8), abs=1e-6)


def test_the_loss_is_the_mean_of_both_directions() -> None:
    u, v = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    u, v = nn.functional.normalize(u, dim=1), nn.functional.normalize(v, dim=1)
    own = torch.arange(6)
    both = [nn.functional.cross_entropy(7 * s, own) for s in (u @ v.T, v @ u.T)]
    assert float(pair_loss(u, v, 7.0)) == pytest.approx(float(sum(both)) / 2, rel=1e-6)
    assert float(pair_loss(u, v, 7.0)) == pytest.approx(float(pair_loss(v, u, 7.0)), rel=1e-6)


def test_the_scale_starts_at_one_over_seven_hundredths_and_stays_below_a_hundred(fitted: DataFilteringNetwork) -> None:
    fresh = DataFilteringNetwork(**SMALL | {"epochs_or_samples": 0}).fit(trusted())
    assert fresh.logit_scale_ == pytest.approx(1 / 0.07)
    assert fresh.loss_curve_ == []
    assert fitted.logit_scale_ != pytest.approx(1 / 0.07)
    steep = DataFilteringNetwork(**SMALL | {"lr": 0.5, "epochs_or_samples": 1000}).fit(trusted())
    assert steep.logit_scale_ <= 100
    assert float(steep.scorer_.log_scale) <= math.log(100) + 1e-6


def test_norms_biases_and_scale_do_not_decay() -> None:
    encoder = DataFilteringNetwork(**SMALL | {"epochs_or_samples": 0}).fit(trusted()).scorer_.requires_grad_(True)
    decayed, kept = clip_adamw(1e-3, 0.2)(encoder).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.2, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert any(p is encoder.log_scale for p in kept["params"])
    assert decayed["betas"] == (0.9, 0.98)


# ---- scores ----


def test_scores_do_not_change_with_the_length_of_features() -> None:
    u, v = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cosine(3 * u, 0.2 * v), cosine(u, v))
    assert (cosine(u, v).abs() <= 1).all()
    assert cosine(u.half(), v.half()).dtype == torch.float32


@pytest.mark.parametrize("size", [1, 7, 200, 5000])
def test_pieces_of_any_size_score_alike(fitted: DataFilteringNetwork, size: int) -> None:
    pool, _ = noisy_pool(300, 500)
    whole = fitted.score_pairs(pool)
    assert whole.dtype == np.float32
    assert whole.shape == (200,)
    np.testing.assert_allclose(fitted.score_pairs(pool, chunk_size=size), whole, atol=1e-6)


def test_a_pool_may_come_as_a_stream(fitted: DataFilteringNetwork) -> None:
    pool, _ = noisy_pool(300, 400)
    stream = (pool.take(part) for part in np.array_split(np.arange(100), 7))
    mask = fitted.select(stream)
    np.testing.assert_array_equal(mask, fitted.select(pool))
    assert [row["pairs"] for row in fitted.report_ if row["column"] == "row"] == [50, 50]


def test_the_score_is_the_cosine_of_the_encodings(fitted: DataFilteringNetwork) -> None:
    pool, _ = noisy_pool(300, 310)
    scorer = fitted.scorer_
    assert isinstance(scorer, PairScorer)
    np.testing.assert_allclose(fitted.score_pairs(pool), scorer.score(pool.a, pool.b).numpy(), atol=1e-6)
    expected = (scorer.encode_a(pool.a) * scorer.encode_b(pool.b)).sum(1)
    np.testing.assert_allclose(fitted.score_pairs(pool), expected.numpy(), atol=1e-6)


# ---- what is kept ----


@pytest.mark.parametrize("keep_fraction", [0.01, 0.15, 1 / 3, 0.5, 1.0])
def test_exactly_the_share_is_kept(fitted: DataFilteringNetwork, keep_fraction: float) -> None:
    pool, _ = noisy_pool()
    mask = fitted.select(pool, keep_fraction=keep_fraction)
    assert mask.sum() == round(1000 * keep_fraction)
    scores = fitted.score_pairs(pool)
    if keep_fraction < 1:
        assert scores[mask].min() >= scores[~mask].max()
    assert fitted.threshold_ == scores[mask].min()
    assert fitted.kept_fraction_ == pytest.approx(mask.mean())
    np.testing.assert_array_equal(fitted.indices_, np.flatnonzero(mask))


def test_ties_go_to_the_earlier() -> None:
    pool = rows(0.1, 0.5, 0.5, 0.9, 0.5)
    assert frozen().select(pool, keep_fraction=0.6).tolist() == [False, True, True, True, False]
    alike = rows(*[0.3] * 10)
    assert frozen().select(alike, keep_fraction=0.4).tolist() == [True] * 4 + [False] * 6


def test_the_whole_share_is_the_identity() -> None:
    pool = rows(0.1, -0.5, 0.5)
    kept = frozen(keep_fraction=1.0).transform(pool)
    np.testing.assert_array_equal(kept.a, pool[0])
    np.testing.assert_array_equal(kept.b, pool[1])


def test_a_threshold_keeps_ties() -> None:
    method = frozen()
    assert method.select(rows(0.2, 0.6, 0.8, 0.6), threshold=float(np.float32(0.6))).tolist() in (
        [False, True, True, True],
    )
    assert frozen(threshold=0.7).select(rows(0.2, 0.6, 0.8)).tolist() == [False, False, True]
    assert frozen(threshold=0.7).select(rows(0.2, 0.6, 0.8), keep_fraction=0.67).sum() == 2


def test_pairs_that_are_not_finite_are_counted_and_never_kept() -> None:
    a, b = rows(0.1, 0.9, 0.5, 0.8)
    a[1, 0], b[3, 1] = np.nan, np.inf
    method = frozen()
    assert method.score_pairs((a, b))[[1, 3]].tolist() == [-np.inf, -np.inf]
    assert method.select((a, b), keep_fraction=0.5).tolist() == [True, False, True, False]
    assert method.n_unscored_ == 2
    with pytest.warns(UserWarning, match="Only 2 of 4 pairs could be scored"):
        assert method.select((a, b), keep_fraction=1.0).sum() == 2
    a[:] = np.nan
    with pytest.warns(UserWarning, match="Only 0 of 4"), pytest.raises(ValueError, match="No pair is kept"):
        method.select((a, b), keep_fraction=0.5)


def test_a_prefilter_comes_before_the_scores() -> None:
    a, b = rows(0.1, 0.9, 0.5, 0.8)
    method = frozen(prefilter=lambda pairs: np.asarray(pairs.b)[:, 0] < 0.85)
    assert method.select((a, b), keep_fraction=0.5).tolist() == [False, False, True, True]
    assert method.n_unscored_ == 0
    with pytest.raises(ValueError, match="prefilter must return a mask"):
        frozen(prefilter=lambda pairs: [True]).select((a, b))


def test_the_report_tells_what_share_of_each_slice_is_kept() -> None:
    a, b = rows(0.1, 0.9, 0.5, 0.8)
    method = frozen()
    method.select(Pairs(a, b, {"language": ["en", "de", "en", "de"]}), keep_fraction=0.5)
    assert method.report_ == [
        {"column": "language", "value": "de", "pairs": 2, "kept": 1.0},
        {"column": "language", "value": "en", "pairs": 2, "kept": 0.0},
    ]
    assert method.scores_quantiles_[0.5] == pytest.approx(0.65)


def test_slices_may_be_unknown_or_mixed() -> None:
    a, b = rows(0.1, 0.9, 0.5, 0.8)
    method = frozen()
    method.select(Pairs(a, b, {"language": ["en", None, "en", "de"], "mixed": [1, "x", 1, "x"]}), keep_fraction=0.5)
    told = {(row["column"], row["value"]): (row["pairs"], row["kept"]) for row in method.report_}
    assert told == {
        ("language", "de"): (1, 1.0),
        ("language", "en"): (2, 0.0),
        ("language", None): (1, 1.0),
        ("mixed", 1): (2, 0.0),
        ("mixed", "x"): (2, 1.0),
    }
    method.select(Pairs(a, b, {"year": [2020.0, np.nan, 2020.0, 2021.0]}), keep_fraction=0.5)
    assert [(row["value"], row["pairs"]) for row in method.report_] == [(2020.0, 2), (2021.0, 1), (None, 1)]


def test_best_pairs_are_counted_by_rounding() -> None:
    scores = np.arange(7, dtype=np.float32)
    assert [int(best_pairs(scores, f).sum()) for f in (0.1, 0.2, 0.5, 1)] == [1, 1, 4, 7]


def test_histograms_of_shards_find_the_threshold_of_all() -> None:
    scores = np.random.default_rng(0).normal(0.2, 0.2, 20_000).clip(-1, 1)
    shards = [ScoreHistogram().add(part) for part in np.array_split(scores, 3)]
    both = shards[0] + shards[1] + shards[2]
    assert both.counts.sum() == 20_000
    found = both.threshold(0.15)
    assert found == pytest.approx(np.sort(scores)[-3000], abs=1e-4)
    assert (scores >= found).mean() >= 0.15
    assert ScoreHistogram().add([np.nan, np.inf, 0.5]).counts.sum() == 1
    with pytest.raises(ValueError, match="other bins"):
        shards[0] + ScoreHistogram(bins=10)


def test_basic_rules() -> None:
    told = ["a red shoe", "shoe red", "a b c", "ein roter Schuh"]
    assert basic_filter(told).tolist() == [True, False, False, True]
    assert basic_filter(told, is_english=lambda text: "ein" not in text).tolist() == [True, False, False, False]
    sizes = [[200, 600], [400, 400], [400, 400], [199, 300]]
    assert basic_filter(told, sizes).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match=r"sizes must be shaped \(4, 2\)"):
        basic_filter(told, [[1, 2]])


# ---- behaviour on digits ----


def test_shuffled_captions_are_found(fitted: DataFilteringNetwork) -> None:
    pool, aligned = noisy_pool()
    assert roc_auc_score(aligned, fitted.score_pairs(pool)) > 0.9
    kept = fitted.select(pool, keep_fraction=0.3)
    assert aligned[kept].mean() > 0.9 > aligned.mean()
    shares = {row["value"]: row["kept"] for row in fitted.report_ if row["column"] == "source"}
    assert shares["shop"] > 2 * shares["crawl"]
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]


def test_its_own_accuracy_is_recorded(fitted: DataFilteringNetwork) -> None:
    assert math.isnan(DataFilteringNetwork(**SMALL | {"epochs_or_samples": 0}).fit(trusted()).filter_accuracy_)
    found = fitted.record_accuracy(DATA[1300:], TARGET[1300:], PROMPTS)
    assert found == fitted.filter_accuracy_ > 0.8
    assert found == zero_shot_accuracy(fitted.scorer_, DATA[1300:], TARGET[1300:], PROMPTS, chunk=100)


def train(pairs: Pairs) -> Any:
    return DataFilteringNetwork(**SMALL | {"epochs_or_samples": 3200}).fit(pairs).scorer_


def evaluate(scorer: Any) -> float:
    return zero_shot_accuracy(scorer, DATA[1300:], TARGET[1300:], PROMPTS)


def test_filters_are_ranked_by_the_model_they_induce(fitted: DataFilteringNetwork) -> None:
    pool, aligned = noisy_pool()
    masks = {"dfn": fitted.select(pool, keep_fraction=0.3), "wrong ones": ~aligned}
    proxies = {"dfn": {"own": 0.1}, "wrong ones": {"own": 0.9}}
    found = induced_benchmark(pool, masks, train, evaluate, proxies=proxies, random_state=0)
    assert list(found.columns) == ["filter", "pairs", "own", "induced"]
    assert found["filter"][0] == "dfn"
    assert found["filter"].iloc[-1] == "wrong ones"
    assert found["induced"].is_monotonic_decreasing
    sizes = dict(zip(found["filter"], found["pairs"], strict=True))
    assert sizes["random, same size"] == sizes["dfn"] == 300
    assert sizes["no filter"] == 1000
    assert fitted.induced_score(pool, masks["dfn"], train, evaluate) == found["induced"][0]


def test_poison_and_uses_are_reported() -> None:
    pool, _ = noisy_pool()
    method = DataFilteringNetwork(**SMALL | {"epochs_or_samples": 3200, "keep_fraction": 0.3})
    found = method.poison_sweep(trusted(), pool, [0.0, 1.0], train, evaluate)
    assert found["poison"].tolist() == [0.0, 1.0]
    assert found["own"][0] > found["own"][1]
    assert found["induced"][0] > found["induced"][1]
    with pytest.raises(ValueError, match="fractions must lie in"):
        method.poison_sweep(trusted(), pool, [2.0], train, evaluate)
    seen: list[int] = []

    def count(pairs: Pairs) -> int:
        seen.append(len(pairs))
        return len(pairs)

    uses = method.compare_uses(trusted(), pool, count, float)
    assert seen == [300, 1300, 600]
    assert uses["use"].tolist() == ["train only", "both", "filter only"]
    masked = method.compare_uses(trusted(), pool, count, float, other_mask=np.arange(1000) < 50)
    assert masked["pairs"].tolist() == [600, 350, 300]


def test_the_two_other_filters_see_what_does_not_look_trusted() -> None:
    pool, _ = noisy_pool()
    odd = Pairs(np.concatenate([pool.a[:200], 1 - pool.a[200:400]]), pool.b[:400])
    binary = BinaryFilter(n_steps=120, random_state=0).fit(trusted(), odd)
    restored = ReconstructionFilter(n_steps=300, random_state=0).fit(trusted())
    for method in (binary, restored):
        scores = method.score_pairs(odd)
        assert roc_auc_score(np.arange(400) < 200, scores) > 0.95
        np.testing.assert_allclose(method.score_pairs(odd, chunk_size=7), scores, atol=1e-4)
        assert method.select(odd, keep_fraction=0.25).sum() == 100
    again = ReconstructionFilter(n_steps=300, random_state=0).fit(trusted())
    np.testing.assert_array_equal(again.score_pairs(odd), restored.score_pairs(odd))


def test_masks_are_of_the_pool() -> None:
    pool, method = rows(0.1, 0.9, 0.5, 0.8), frozen(keep_fraction=0.5)
    marks = np.array([0, 1, 0, 1])
    assert method.induced_score(pool, marks, lambda pairs: pairs.a[:, 0].size, float) == 2
    for wrong in ([True, True], [0, 1, 2, 3], np.zeros(4, dtype=bool)):
        with pytest.raises(ValueError, match="mask must mark some of 4 pairs"):
            method.induced_score(pool, wrong, len, float)
        with pytest.raises(ValueError, match="other_mask must mark some of 4 pairs"):
            method.compare_uses(rows(0.1, 0.2), pool, len, float, other_mask=wrong)
    with pytest.raises(ValueError, match="a mask of 4 pairs, got one of 2"):
        Pairs(*pool).take([True, False])


def test_zero_shot_labels_are_numbers_of_prompts() -> None:
    prompts = np.eye(2, dtype=np.float32)
    for labels, message in [([[0], [1]], r"labels must be shaped \(2,\)"), ([0, 2], r"labels must lie in 0\.\.1")]:
        with pytest.raises(ValueError, match=message):
            zero_shot_accuracy(Fixed(), prompts, labels, prompts)
    with pytest.raises(ValueError, match="at least one label"):
        zero_shot_accuracy(Fixed(), prompts[:0], [], prompts)


# ---- where training starts and ends ----


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_weights_before_and_after_are_averaged(alpha: float) -> None:
    before, after = nn.Linear(3, 2), nn.Linear(3, 2)
    found = averaged_weights(before, after, alpha)
    if alpha in (0.0, 1.0):
        torch.testing.assert_close(found["weight"], (after if alpha else before).weight.detach(), rtol=0, atol=0)
    torch.testing.assert_close(found["bias"], ((1 - alpha) * before.bias + alpha * after.bias).detach())


def test_fine_tuning_moves_from_one_end_to_the_other() -> None:
    few = Pairs(DATA[300:400], captions(TARGET[300:400]))
    settings = SMALL | {"epochs_or_samples": 640, "finetune_pairs": few}
    plain, none, half, full = (
        DataFilteringNetwork(**changed).fit(trusted()).scorer_.state_dict()["project_a.weight"]
        for changed in (
            SMALL | {"epochs_or_samples": 640},
            settings | {"ensemble_alpha": 0.0},
            settings | {"ensemble_alpha": 0.5},
            settings | {"ensemble_alpha": 1.0},
        )
    )
    torch.testing.assert_close(none, plain, rtol=0, atol=0)
    assert not torch.equal(full, plain)
    torch.testing.assert_close(half, (plain + full) / 2)


def test_a_given_network_is_copied_and_its_weights_are_a_start(fitted: DataFilteringNetwork) -> None:
    given = copy.deepcopy(fitted.scorer_)
    state = copy.deepcopy(given.state_dict())
    still = SMALL | {"epochs_or_samples": 0}
    pool, _ = noisy_pool(300, 320)
    for start in ({"init": given}, {"scorer": given}, {"scorer": given, "init": given}):
        again = DataFilteringNetwork(**still, **start).fit(trusted(50))
        np.testing.assert_array_equal(again.score_pairs(pool), fitted.score_pairs(pool))
    DataFilteringNetwork(**SMALL | {"epochs_or_samples": 640}, scorer=given).fit(trusted())
    assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())
    other = ContrastivePairEncoder(BagOfWords(["a"], 4), BagOfWords(["b"], 4), 3)
    with pytest.raises(ValueError, match="init do not fit"):
        DataFilteringNetwork(given, init=other).fit(trusted())


def test_passes_and_samples() -> None:
    curves = [
        len(DataFilteringNetwork(**SMALL | {"epochs_or_samples": wanted, "batch_size": 50}).fit(trusted()).loss_curve_)
        for wanted in (2.0, 600, 301)
    ]
    assert curves == [2, 2, 2]


def test_images_are_augmented_and_texts_on_both_sides_work() -> None:
    seen: list[tuple[int, ...]] = []

    def notice(batch: Tensor) -> Tensor:
        seen.append(tuple(batch.shape))
        return batch

    DataFilteringNetwork(**SMALL | {"epochs_or_samples": 200}, augment=notice).fit(trusted())
    assert seen == [(64, 64)] * 4
    first = captions(TARGET[:200])
    texts = Pairs(first, [text.upper() for text in first])
    method = DataFilteringNetwork(**SMALL | {"epochs_or_samples": 6400}).fit(texts)
    pool = Pairs([first[0]] * 2, [first[0], "the number nine"])
    assert np.diff(method.score_pairs(pool))[0] < 0


class Brightness(Fixed):
    """A scorer of pictures of any size: the captions are the names of how bright they are."""

    def encode_a(self, batch: Any) -> Tensor:
        return torch.tensor([[float(np.mean(np.asarray(picture, dtype=float))), 1.0] for picture in batch])

    def encode_b(self, batch: Any) -> Tensor:
        return torch.tensor([[255.0 if text == "bright" else 0.0, 1.0] for text in batch])


def test_pictures_may_differ_in_size() -> None:
    sizes, greys = [(4, 6), (5, 3), (4, 6), (7, 7)], [250, 250, 0, 0]
    pictures = [np.full((*size, 3), grey, dtype=np.uint8) for size, grey in zip(sizes, greys, strict=True)]
    told = ["bright", "dark", "dark", "bright"]
    method = DataFilteringNetwork(Brightness(), keep_fraction=0.5).fit((pictures, told))
    from PIL.Image import fromarray

    for given in (pictures, [fromarray(picture) for picture in pictures], [*pictures[:3], pictures[3][:, :, 0]]):
        assert method.select((given, told)).tolist() == [True, False, True, False]
    floats = [picture / 255 for picture in pictures]
    floats[2][0, 0, 0] = np.nan
    assert method.score_pairs((floats, told), chunk_size=3)[2] == -np.inf
    same = Pairs(np.stack([pictures[0], pictures[2]]), ["bright", "dark"])
    assert len(Pairs(pictures, told).joined(same)) == len(same.joined(Pairs(pictures, told))) == 6
    assert len(as_pairs(same.joined(Pairs(np.zeros((2, 9, 9, 3), np.uint8), ["x", "y"])))) == 4
    for filter_ in (DataFilteringNetwork(**SMALL), ReconstructionFilter()):
        with pytest.raises(ValueError, match="pictures of several sizes"):
            filter_.fit((pictures, told))
    with pytest.raises(ValueError, match="Row 1 of side a of pairs must be a picture"):
        as_pairs(([np.zeros((2, 3)), np.zeros(4)], ["x", "y"]))
    with pytest.raises(ValueError, match="Row 0 of side a of pairs must be a picture"):
        as_pairs(([None, np.zeros((2, 3))], ["x", "y"]))


def test_the_two_other_filters_take_the_sides_they_learned() -> None:
    binary = BinaryFilter(n_steps=1).fit(trusted(4), noisy_pool(300, 304)[0])
    restored = ReconstructionFilter(n_steps=1).fit(trusted(4))
    for method in (binary, restored):
        for sides in ((DATA[:3, :5], ["one"] * 3), (DATA[:3], DATA[:3])):
            with pytest.raises(ValueError, match="sides of the pairs must be as in fit"):
                method.score_pairs(sides)
    with pytest.raises(ValueError, match="sides of the pairs must be as in fit"):
        BinaryFilter(n_steps=1).fit(trusted(4), (DATA[:3, :5], ["one"] * 3))
    for wrong in (BinaryFilter(n_steps=0), ReconstructionFilter(n_steps=0), ReconstructionFilter(masked_share=2.0)):
        with pytest.raises(ValueError, match="must be a"):
            wrong.fit(*([trusted(4)] * (2 if isinstance(wrong, BinaryFilter) else 1)))


def test_bags_of_words() -> None:
    assert vocabulary_of(["B b, a!", "a c"]) == ["a", "b", "c"]
    assert vocabulary_of(["B b, a!", "a c"], most=1) == ["a"]
    tower = BagOfWords(["a", "b"], width=4, max_words=3)
    assert tower.tokens(["b a b a", "", "unheard \ud800"]).tolist() == [[2, 1, 2], [0, 0, 0], [0, 0, 0]]
    assert tower.tokens(["x" * 1000]).shape == (1, 1)
    wide = nn.functional.pad(tower.tokens(["a b"]), (0, 5))
    torch.testing.assert_close(tower(wide), tower(tower.tokens(["a b"])))
    again: Any = build(ContrastivePairEncoder(tower, BagOfWords(["c"], 3), 5).architecture)
    assert again.encoder_a.tokens(["b"]).tolist() == [[2]]


def test_bytes_are_scaled(fitted: DataFilteringNetwork) -> None:
    as_bytes = (DATA[:5] * 255).round().astype(np.uint8)
    found = fitted.score_pairs((as_bytes, captions(TARGET[:5])))
    np.testing.assert_allclose(found, fitted.score_pairs((as_bytes / np.float32(255), captions(TARGET[:5]))), atol=1e-6)


# ---- errors ----


def test_what_fit_refuses() -> None:
    spoilt = DATA[:5].copy()
    spoilt[3, 2] = np.nan
    for given, message in [
        ((DATA[:0], []), "trusted_pairs must hold at least 2"),
        ((DATA[:1], ["one"]), "trusted_pairs must hold at least 2"),
        ((DATA[:3], ["one"]), "one length"),
        ((spoilt, captions(TARGET[:5])), "trusted_pairs contain NaN or infinite numbers in 1 pair"),
        (DATA, "must be Pairs or a tuple"),
        ((DATA[:2, 0], ["one", "two"]), "Side a of trusted_pairs must hold"),
        ((DATA[:2], [b"one", b"two"]), "Decode bytes first"),
        (Pairs(DATA[:2], ["a", "b"], {"source": ["x"]}), "one length"),
    ]:
        with pytest.raises(ValueError, match=message):
            DataFilteringNetwork(**SMALL).fit(given)


@pytest.mark.parametrize("changed", [{"keep_fraction": 0.0}, {"keep_fraction": 1.5}, {"batch_size": 1}, {"scorer": 3}])
def test_parameters_are_checked(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed))):
        DataFilteringNetwork(**changed).fit(trusted())


def test_what_select_refuses(fitted: DataFilteringNetwork) -> None:
    pool, _ = noisy_pool(300, 340)
    with pytest.raises(NotFittedError, match="fit"):
        DataFilteringNetwork().select(pool)
    with pytest.raises(ValueError, match="not both"):
        fitted.select(pool, keep_fraction=0.1, threshold=0.2)
    for share in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match="must lie in"):
            fitted.select(pool, keep_fraction=share)
    with pytest.raises(ValueError, match="keeps none"):
        fitted.select(pool, keep_fraction=0.001)
    with pytest.raises(ValueError, match="No pair is kept at threshold=2"):
        fitted.select(pool, threshold=2.0)
    with pytest.raises(ValueError, match="The pool holds no pairs"):
        fitted.select((DATA[:0], []))
    with pytest.raises(ValueError, match="do not fit the network"):
        fitted.score_pairs((DATA[:3, :5], ["one"] * 3))
    with pytest.raises(ValueError, match="encoded alike"):
        frozen().score_pairs((np.ones((2, 3)), np.ones((2, 4))))


def test_what_the_benchmark_refuses() -> None:
    pool, _ = noisy_pool(300, 340)
    with pytest.raises(ValueError, match="masks is empty"):
        induced_benchmark(pool, {}, train, evaluate)
    with pytest.raises(ValueError, match="The mask of 'x' must mark some of 40"):
        induced_benchmark(pool, {"x": np.zeros(40, dtype=bool)}, train, evaluate)


def test_a_foreign_scorer_is_not_trained() -> None:
    with pytest.raises(ValueError, match="this scorer stays as it is"):
        DataFilteringNetwork(Fixed(), finetune_pairs=rows(0.1, 0.2)).fit(rows(0.1, 0.2))
    assert frozen().logit_scale_ == 1.0


def test_pairs_are_read_as_they_come() -> None:
    found = as_pairs((DATA[:2], np.array(["one", "two"])))
    assert found.b == ["one", "two"]
    assert as_pairs(([[1.0, 2.0]], ["x"])).a.shape == (1, 2)
    assert [len(piece) for piece in in_chunks((DATA[:5], list("abcde")), 2)] == [2, 2, 1]
    joined = Pairs(torch.ones(2, 1), ["a", "b"], {"s": [1, 2], "t": [0, 0]}).joined(
        Pairs(torch.zeros(1, 1), ["c"], {"s": [3]})
    )
    assert joined.a.flatten().tolist() == [1, 1, 0]
    assert joined.b == ["a", "b", "c"]
    assert joined.meta == {"s": [1, 2, 3]}


# ---- published models, behind the same protocol ----


@pytest.mark.parametrize(
    ("make", "module", "package"),
    [
        (lambda: OpenClipScorer("ViT-B-32", "weights.safetensors"), "open_clip", "open_clip_torch"),
        (lambda: HFClipScorer("folder"), "transformers", "transformers"),
    ],
)
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, make: Any, module: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        make()


class Tower(nn.Module):
    """Answers like a CLIP model: images by their mean colour, texts by their first word number."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return nn.functional.one_hot(tokens[:, 0], 3).float()


def test_open_clip_is_asked_for_local_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def create(name: str, pretrained: str, device: str) -> Any:
        asked.append((name, pretrained, device))
        return Tower(), None, lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float()

    words = ["red", "green", "blue"]
    fake = SimpleNamespace(
        create_model_and_transforms=create,
        get_tokenizer=lambda name: lambda texts: torch.tensor([[words.index(text)] for text in texts]),
    )
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    scorer = OpenClipScorer("ViT-B-32", "weights.safetensors")
    assert asked == [("ViT-B-32", "weights.safetensors", "cpu")]
    red = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    red[..., 0] = 200
    assert scorer.score(np.repeat(red, 2, axis=0), ["red", "blue"]).tolist() == [1.0, 0.0]
    assert isinstance(scorer, PairScorer)
    seen: list[int] = []
    encode = scorer.model.encode_image
    monkeypatch.setattr(scorer.model, "encode_image", lambda pixels: (seen.append(len(pixels)), encode(pixels))[1])
    assert scorer.encode_a(np.repeat(red, 150, axis=0)).shape == (150, 3)
    assert seen == [64, 64, 22]  # a chunk of the pool at once would not fit a large tower
    with pytest.raises(ValueError, match="safetensors"):
        OpenClipScorer("ViT-B-32", "openai")


def test_transformers_is_asked_for_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Processor:
        def __call__(self, images: Any = None, text: Any = None, **options: Any) -> dict[str, Tensor]:
            if images is not None:
                return {"pixel_values": torch.stack([torch.from_numpy(np.array(i)).float() for i in images])}
            return {"input_ids": torch.tensor([[["red", "green", "blue"].index(t)] for t in text])}

    class Model(Tower):
        config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=77))

        def get_image_features(self, pixel_values: Tensor) -> Tensor:
            return pixel_values.mean(dim=(1, 2))

        def get_text_features(self, input_ids: Tensor) -> Any:
            return SimpleNamespace(pooler_output=self.encode_text(input_ids))

    def loader(made: Any) -> Any:
        def load(path: str, **options: Any) -> Any:
            asked.append((path, options))
            return made

        return SimpleNamespace(from_pretrained=load)

    monkeypatch.setitem(
        sys.modules, "transformers", SimpleNamespace(CLIPModel=loader(Model()), CLIPProcessor=loader(Processor()))
    )
    scorer = HFClipScorer("folder")
    assert asked == [
        ("folder", {"local_files_only": True, "use_safetensors": True}),
        ("folder", {"local_files_only": True}),
    ]
    green = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    green[..., 1] = 9
    assert scorer.score(list(green) * 2, ["green", "red"]).tolist() == [1.0, 0.0]

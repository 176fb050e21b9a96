"""SELECT: statistics by hand, the probe against scikit-learn's, each strategy, the report, and its leak check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import skew
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from models.base import isolated_seed
from models.curate.curation_strategies import (
    CurationStrategy,
    EmbeddingLookup,
    ExpertSubset,
    GeneratorStrategy,
    LabelledSet,
    TaxonomyMap,
    looked_up,
    without_rows,
)
from models.curate.select_benchmark import CurationBenchmark, Report, paired_bootstrap
from models.curate.shift_evaluations import (
    Accuracy,
    BalancedProbe,
    ShiftTrainer,
    Transfer,
    endless_batches,
    with_new_head,
)
from models.curate.shift_statistics import (
    accuracy_interval,
    balanced_index,
    balanced_knn_probe,
    class_figures,
    clip_iqa,
    clip_score,
    cmmd,
    correlation,
    dataset_statistics,
    image_quality,
    inception_score,
)
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier

DIGITS = load_digits()
IMAGES = (DIGITS.images / 16).astype(np.float32)[:, None]
X, Y = IMAGES.reshape(len(IMAGES), -1), DIGITS.target.astype(np.int64)
GOLD, POOL = LabelledSet(X[:300], Y[:300]), LabelledSet(X[300:1000], np.full(700, -1))
TEST = Accuracy(X[1400:], Y[1400:], name="test")
QUICK = ShiftTrainer(epochs=4)


# ---- statistics ----


def test_class_counts_by_hand() -> None:
    uniform = dataset_statistics(np.repeat(np.arange(40), 7), 40)
    assert uniform == {"coverage": 40.0, "lt500": 40.0, "ls5": 0.05, "imbalance": 1.0}
    counts = [900, 600, 499, 500, 1] + [0] * 15
    found = dataset_statistics(np.repeat(np.arange(20), counts), 20)
    assert found == {"coverage": 5.0, "lt500": 17.0, "ls5": 900 / 2500, "imbalance": math.inf}


def test_correlations_by_hand_and_undefined_ones_are_nan() -> None:
    truth = np.repeat([0, 1, 2], 10)
    predicted = np.array([0] * 9 + [1] + [1] * 6 + [0] * 3 + [2] + [2] * 5 + [0] * 2 + [1] * 3)
    figures = class_figures((truth, predicted), 3)
    np.testing.assert_allclose(figures["accuracy"], [0.9, 0.6, 0.5])
    np.testing.assert_allclose(figures["precision"], [9 / 14, 6 / 10, 5 / 6])
    np.testing.assert_allclose(figures["skewness"], [0.0, skew([0.75, 0.25]), skew([0.4, 0.6])])
    y = np.repeat([0, 1, 2], [5, 3, 2])
    found = dataset_statistics(y, 3, (truth, predicted), (truth, truth), y)
    assert found["r_precision_count"] == pytest.approx(np.corrcoef([9 / 14, 0.6, 5 / 6], [5, 3, 2])[0, 1])
    assert found["r_precision_recall"] == pytest.approx(np.corrcoef([9 / 14, 0.6, 5 / 6], [0.9, 0.6, 0.5])[0, 1])
    assert found["r_reference_count"] == pytest.approx(1.0)
    assert math.isnan(found["r_reference_accuracy"])  # the reference is constant
    assert found["class_accuracy"] == pytest.approx(2 / 3)
    never = dataset_statistics([0, 0, 1], 3, (truth, np.minimum(predicted, 1)))
    assert math.isnan(never["r_precision_count"])
    assert math.isnan(correlation([1.0], [2.0]))


def test_statistics_refuse_what_is_no_label() -> None:
    with pytest.raises(ValueError, match=r"y must lie in 0\.\.2, got 3"):
        dataset_statistics([0, 3], 3)
    with pytest.raises(ValueError, match="at least one row, got none"):
        dataset_statistics([], 3)


def test_an_interval_is_the_closed_form() -> None:
    assert accuracy_interval(0.3, 50) == 1.96 * math.sqrt(0.3 * 0.7 / 50)
    assert accuracy_interval(1.0, 50) == 0.0


# ---- the probe ----


def test_the_probe_is_scikit_learns_when_the_classes_are_equal() -> None:
    rows = np.concatenate([np.flatnonzero(Y[:800] == c)[:30] for c in range(10)])
    mine = balanced_knn_probe(X[rows], Y[rows], X[1000:], Y[1000:], per_class=30, k=20)
    weighted = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    assert mine == weighted.fit(X[rows], Y[rows]).score(X[1000:], Y[1000:])
    assert mine > 0.85


def test_the_index_is_balanced_and_absent_classes_stay_wrong() -> None:
    features, labels = X[:200].astype(np.float64), np.where(Y[:200] == 3, 4, Y[:200])
    few = np.flatnonzero(labels != 7)
    few = np.concatenate([few, np.flatnonzero(labels == 7)[:2]])
    index, y = balanced_index(features[few], labels[few], np.arange(10), 15)
    assert np.bincount(y).tolist() == [15] * 10
    fours = np.flatnonzero(labels[few] == 4)
    np.testing.assert_array_equal(index[y == 4], features[few][fours[:15]])  # cut off
    np.testing.assert_array_equal(index[y == 7][:2], features[few][labels[few] == 7])  # filled up
    assert np.abs(index[y == 7][2:].mean(0) - index[y == 7][:2].mean(0)).max() < 0.5
    far = index[y == 3]
    assert np.linalg.norm(features[few][:, None] - far[None], axis=2).min() > 9
    assert np.linalg.norm(far - far[0], axis=1).max() < 1
    threes = Y[1000:] == 3
    assert balanced_knn_probe(features, labels, X[1000:][threes], Y[1000:][threes], 15) < 0.1


def test_the_probe_refuses() -> None:
    with pytest.raises(ValueError, match="at least 1 and T above 0"):
        balanced_knn_probe(X[:9], Y[:9], X[:9], Y[:9], per_class=0)
    with pytest.raises(ValueError, match="equally wide, got 64 and 3"):
        balanced_knn_probe(X[:9], Y[:9], X[:9, :3], Y[:9], per_class=1)
    with pytest.raises(ValueError, match="train_feats contains NaN"):
        balanced_knn_probe(np.full((2, 3), np.nan), [0, 1], X[:9, :3], Y[:9], per_class=1)


class Words:
    """A stand-in for an image-text model whose space is the pixels."""

    def __init__(self) -> None:
        self.vectors = {f"digit {c}": torch.from_numpy(X[Y == c][:20].mean(0)) for c in range(10)}
        self.vectors |= {"Good photo.": torch.ones(64), "Bad photo.": -torch.ones(64)}

    def image_features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self.vectors[text] for text in texts])


def test_quality_scores_by_hand() -> None:
    eye = np.eye(3)
    assert clip_score(eye, np.roll(eye, 1, axis=0)) == 0.0
    assert clip_score(eye, 5 * eye) == pytest.approx(100.0)
    assert clip_iqa(eye, np.ones(3), np.ones(3)) == pytest.approx(0.5)
    assert inception_score(eye) == pytest.approx(3.0)
    assert inception_score(np.full((4, 3), 1 / 3)) == pytest.approx(1.0)
    assert cmmd(eye, eye) == pytest.approx(0.0, abs=1e-9)
    assert cmmd(eye[:1], eye[1:2]) == pytest.approx(2000 * (1 - math.exp(-2 / 200)))
    prompts = [f"digit {c}" for c in range(10)]
    right = image_quality(torch.from_numpy(X[:100]), Y[:100], Words(), prompts, torch.from_numpy(X[100:200]))
    wrong = image_quality(torch.from_numpy(X[:100]), (Y[:100] + 1) % 10, Words(), prompts)
    assert right["clip_score"] > wrong["clip_score"]
    assert right["clip_iqa"] > 0.9
    assert 1 < right["inception_score"] <= 10
    assert 0 <= right["cmmd"] < 1


# ---- strategies ----


def test_every_strategy_makes_a_labelled_set_of_the_size_with_its_cost() -> None:
    source = LabelledSet(X[300:1000], Y[300:1000] + 100)
    strategies: list[CurationStrategy] = [
        ExpertSubset(),
        TaxonomyMap({100 + c: c for c in range(10)}, source),
        EmbeddingLookup("image"),
        EmbeddingLookup("text", Words(), texts=[f"digit {c}" for c in range(10)]),
        GeneratorStrategy(lambda y, rows, seed: rows + 0.01, "image"),
        GeneratorStrategy(lambda y, rows, seed: torch.full((len(y), 64), float(seed)), "prompt"),
    ]
    kinds = ["expert", "crowd", "embed_i2i", "embed_t2i", "synth_i2i", "synth_t2i"]
    assert [strategy.kind for strategy in strategies] == kinds
    for strategy in strategies:
        assert isinstance(strategy, CurationStrategy)
        made, again = (strategy.curate(GOLD, POOL, 120, 3) for _ in range(2))
        assert len(made) == len(made.y) == 120
        np.testing.assert_array_equal(np.asarray(made.X), np.asarray(again.X))
        assert sum(made.meta["cost"].values()) > 0
        assert set(made.y) <= set(range(10))


def test_a_crowd_keeps_its_imbalance_exactly() -> None:
    y = np.repeat([7, 8, 9], [400, 200, 100])
    made = TaxonomyMap({7: 0, 8: 1}, LabelledSet(X[:700], y)).curate(GOLD, POOL, 90, 0)
    assert np.bincount(made.y).tolist() == [60, 30]
    with pytest.raises(ValueError, match=r"No row of the source of 'crowd' bears a label of the mapping \[70\]"):
        TaxonomyMap({70: 0}, LabelledSet(X[:700], y)).curate(GOLD, POOL, 90, 0)


def test_lookup_goes_rank_by_rank_and_takes_each_row_once() -> None:
    angles = np.radians([0, 10, 80, 90, 45])
    vectors = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1)).float()
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    rows, found = looked_up(
        queries / queries.norm(dim=1, keepdim=True), vectors, 4, None, [bytes([i]) for i in range(5)]
    )
    assert rows.tolist() == [0, 3, 1, 2]
    assert found.tolist()[:2] == [0, 2]
    twice, _ = looked_up(queries, vectors, 4, 1, None)
    assert sorted(twice.tolist()) == [0, 0, 3]
    copies, _ = looked_up(queries, vectors, 5, None, [b"same"] * 5)
    assert len(copies) == 1


def test_lookup_by_image_finds_the_class() -> None:
    made = EmbeddingLookup("image").curate(GOLD, POOL, 200, 0)
    rows = {row.tobytes(): label for row, label in zip(X[300:1000], Y[300:1000], strict=True)}
    right = np.mean([rows[row.tobytes()] == label for row, label in zip(np.asarray(made.X), made.y, strict=True)])
    assert right > 0.9
    assert len(EmbeddingLookup("image", k=1).curate(GOLD, POOL, 5000, 0)) <= 300
    assert len(EmbeddingLookup("image").curate(GOLD, POOL, 5000, 0)) == 700


def test_strategies_tell_what_is_wrong() -> None:
    empty = LabelledSet(X[:0], Y[:0])
    for strategy in (ExpertSubset(empty), TaxonomyMap({0: 0}, empty)):
        with pytest.raises(ValueError, match="holds no rows"):
            strategy.curate(GOLD, POOL, 10, 0)
    with pytest.raises(ValueError, match="source of 'embed_i2i' holds no rows"):
        EmbeddingLookup().curate(GOLD, empty, 10, 0)
    with pytest.raises(ValueError, match="'image' or 'text', got 'sound'"):
        EmbeddingLookup("sound")
    with pytest.raises(ValueError, match="needs texts"):
        EmbeddingLookup("text")
    with pytest.raises(ValueError, match="k must be at least 1"):
        EmbeddingLookup(k=0)
    with pytest.raises(ValueError, match="need an encoder with text_features"):
        EmbeddingLookup("text", texts=["shoe", "bag"]).curate(GOLD, POOL, 10, 0)
    with pytest.raises(ValueError, match="embeddings contains NaN"):
        EmbeddingLookup(encoder=lambda rows: rows * torch.nan).curate(GOLD, POOL, 10, 0)
    with pytest.raises(ValueError, match="'image' or 'prompt'"):
        GeneratorStrategy(lambda y, rows, seed: rows, "sketch")
    with pytest.raises(ValueError, match="gave 1 rows where 10 were asked for"):
        GeneratorStrategy(lambda y, rows, seed: torch.zeros(1, 64)).curate(GOLD, POOL, 10, 0)


# ---- evaluations ----


def test_an_endless_stream_sees_every_row_equally_often() -> None:
    seen = torch.cat([index for epoch in range(3) for index in endless_batches(10, 25, 4, 0, epoch)])
    counts = torch.bincount(seen, minlength=10)
    assert len(seen) == 3 * 24  # of 25 rows the last batch would have been one row
    assert counts.min() >= 5
    assert counts.max() <= 8
    exact = torch.cat([index for epoch in range(2) for index in endless_batches(10, 20, 4, 0, epoch)])
    assert torch.bincount(exact).tolist() == [4] * 10


def test_weights_count() -> None:
    both = LabelledSet(np.repeat(X[:1], 60, axis=0), np.repeat([0, 1], 30), np.repeat([0.0, 1.0], 30))
    with isolated_seed(0):
        network = ShiftTrainer(epochs=20, lr=0.5)(nn.Linear(64, 2), both, 60, 0)
    assert network(torch.from_numpy(X[:1])).argmax().item() == 1


def test_transfer_tunes_a_copy_with_a_new_head() -> None:
    with isolated_seed(0):
        network = SplitClassifier(ConvEncoder((4, 8)), 10, embedding_dim=None)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    odd = Y % 2
    task = Transfer(IMAGES[:400], odd[:400], IMAGES[1000:], odd[1000:], "parity", steps=60, lr=0.05, side=None)
    assert task(network, 0) > 0.6
    assert task(network, 0) == task(network, 0)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert with_new_head(network, 3)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert Transfer(IMAGES[:4], odd[:4], IMAGES[:4], odd[:4]).train.shape == (4, 1, 64, 64)
    with pytest.raises(ValueError, match="no linear layer to replace"):
        with_new_head(nn.Flatten(), 3)
    with pytest.raises(ValueError, match="Only images"):
        Transfer(X[:4], odd[:4], X[:4], odd[:4])


# ---- the benchmark ----


def crowd() -> TaxonomyMap:
    noisy = np.where(np.arange(400) % 2, (Y[1000:1400] + 1) % 10, Y[1000:1400])
    return TaxonomyMap({c: c for c in range(10)}, LabelledSet(X[1000:1400], noisy))


def benchmark(**settings: Any) -> CurationBenchmark:
    suite = {"base": [TEST], "ssl": [BalancedProbe(lambda rows: rows, X[1400:], Y[1400:], 20)]}
    return CurationBenchmark(**{"trainer": QUICK, "size": 200, "eval_suite": suite, "seeds": (0, 1), **settings})


def test_a_clean_set_ranks_above_a_noisy_one_and_the_report_tells() -> None:
    report = benchmark().run([ExpertSubset(), crowd(), EmbeddingLookup()], GOLD, POOL)
    assert report.groups == ["base", "ssl"]
    assert report.table.index.tolist() == ["expert", "crowd", "embed_i2i"]
    assert report.ranks.base["crowd"] == 3
    assert (report.relative.loc["expert"] == 1).all()
    assert report.pairwise.set_index(["first", "second"]).p["expert", "crowd"] < 0.05
    base = report.intervals.set_index(["strategy", "task"]).loc[("expert", "test")]
    assert base.interval == pytest.approx(accuracy_interval(base.value, 397))
    assert report.to_mlflow()["base/crowd"] == pytest.approx(report.table.base["crowd"])
    assert "| strategy | base | ssl |" in report.to_markdown()
    assert {"ls5", "class_accuracy", "r_reference_accuracy"} <= set(report.statistics)
    assert report.utility_of_cost["log10 human_labels"]["expert"] == pytest.approx(math.log10(201))
    assert report.sizes.rows_per_epoch.tolist() == [200] * 6


def test_the_same_seeds_give_the_same_table_bit_for_bit() -> None:
    first, again = (benchmark(seeds=(0,)).run([ExpertSubset(), crowd()], GOLD, POOL) for _ in range(2))
    assert first.scores.equals(again.scores)
    assert first.statistics.equals(again.statistics)


def test_identical_sets_give_identical_rows_and_p_of_1() -> None:
    report = benchmark().run([ExpertSubset(), ExpertSubset(name="twin")], GOLD, POOL)
    assert report.table.loc["expert"].equals(report.table.loc["twin"])
    assert report.pairwise.p.tolist() == [1.0]
    assert report.ranks.base.tolist() == [1.0, 1.0]
    assert paired_bootstrap(np.ones(50), np.zeros(50)) == 0.0


def test_one_planted_test_row_is_found() -> None:
    planted = LabelledSet(np.concatenate([X[:199], X[1500:1501]]), np.append(Y[:199], Y[1500]))
    with pytest.raises(ValueError, match=r"set of 'expert' \(seed 0\) holds 1 row\(s\) of the evaluation 'test'"):
        benchmark().run([ExpertSubset(planted)], GOLD, POOL)
    assert len(without_rows(planted, TEST.rows)) == 199


def test_sizes_that_differ_and_rows_that_repeat_are_told() -> None:
    small = LabelledSet(X[:100], Y[:100])
    fitted = benchmark(seeds=(0,)).fit([ExpertSubset(small)], GOLD, POOL)
    assert fitted.notes_ == ["expert (seed 0) gave 100 rows where 200 were asked for."]
    assert fitted.sizes_[0]["rows_per_epoch"] == 200
    own = benchmark(seeds=(0,), compute="epochs").fit([ExpertSubset(small)], GOLD, POOL)
    assert own.sizes_[0]["rows_per_epoch"] == 100
    with pytest.raises(ValueError, match="gave 100 rows where 200 were asked for. Give it a larger"):  # noqa: RUF043
        benchmark(strict=True).fit([ExpertSubset(small)], GOLD, POOL)
    alike = LabelledSet(np.repeat(X[:1], 200, axis=0), np.zeros(200, dtype=int))  # and of one class
    assert benchmark(seeds=(0,)).fit([ExpertSubset(alike)], GOLD, POOL).notes_ == [
        "expert (seed 0): 199 of 200 rows repeat another."
    ]


def test_dead_tasks_leave_the_means_and_checkpoints_join() -> None:
    def faces(network: Any, seed: int) -> float:
        return 0.0

    suite = {"base": [TEST], "transfer": [faces]}
    fitted = benchmark(eval_suite=suite, seeds=(0,)).fit([ExpertSubset()], GOLD, POOL)
    assert fitted.notes_ == ["faces is 0 for every set and was left out of the means."]
    assert fitted.report_.groups == ["base"]
    linear = nn.Linear(64, 10)
    joined = fitted.evaluate_checkpoint(linear, "untrained")
    assert joined.table.base["untrained"] < joined.table.base["expert"]
    assert joined.groups == ["base"]
    with pytest.raises(ValueError, match="0 for every set: nothing tells them apart"):
        benchmark(eval_suite={"transfer": [faces]}, seeds=(0,)).fit([ExpertSubset()], GOLD, POOL)
    with pytest.raises(ValueError, match="The name 'expert' is taken"):
        fitted.evaluate_checkpoint(linear, "expert")
    alone = benchmark(seeds=(0,)).evaluate_checkpoint(linear, "untrained")
    assert isinstance(alone, Report)
    assert alone.groups == ["base"]
    assert np.isnan(alone.utility_of_cost["log10 human_labels"]["untrained"])


def test_intervals_are_of_accuracies_alone() -> None:
    class Gain:
        name, rows = "gain", X[1700:]

        def __call__(self, network: Any, seed: int) -> float:
            return 2.5

    report = benchmark(eval_suite={"base": [TEST, Gain()]}, seeds=(0,)).run([ExpertSubset()], GOLD, POOL)
    assert report.intervals.task.tolist() == ["test"]
    assert "base/expert" in report.to_mlflow()


def test_the_benchmark_refuses() -> None:
    for suite in (None, {}, {"base": []}):
        with pytest.raises(ValueError, match="eval_suite must name what to measure"):
            benchmark(eval_suite=suite).fit([ExpertSubset()], GOLD, POOL)
    with pytest.raises(ValueError, match="seeds must hold at least one"):
        benchmark(seeds=()).fit([ExpertSubset()], GOLD, POOL)
    with pytest.raises(ValueError, match="different names, got"):
        benchmark(eval_suite={"base": [TEST, TEST]}).fit([ExpertSubset()], GOLD, POOL)
    for strategies in ([], [crowd()], [ExpertSubset(), ExpertSubset()]):
        with pytest.raises(ValueError, match=r"different names, 'expert' \(the reference\) among them"):
            benchmark().fit(strategies, GOLD, POOL)
    odd = ExpertSubset()
    odd.kind = "oracle"
    with pytest.raises(ValueError, match="kind of a strategy must be one of expert"):
        benchmark().fit([odd], GOLD, POOL)
    with pytest.raises(ValueError, match="gave an empty set"):
        benchmark().fit([ExpertSubset(), EmbeddingNothing()], GOLD, POOL)
    with pytest.raises(ValueError, match=r"the labels of 'expert' must lie in 0\.\.9, got 10"):
        benchmark().fit([ExpertSubset(LabelledSet(X[:300], Y[:300] + 1))], GOLD, POOL)
    with pytest.raises(ValueError, match=r"rows of 'expert' are shaped \(5,\), those of the gold set \(64,\)"):
        benchmark().fit([ExpertSubset(LabelledSet(X[:300, :5], Y[:300]))], GOLD, POOL)
    with pytest.raises(ValueError, match="gold.y must not hold labels below 0"):  # noqa: RUF043
        benchmark().fit([ExpertSubset()], LabelledSet(X[:300], Y[:300] - 1), POOL)
    with pytest.raises(ValueError, match="gold.X must hold at least one sample"):  # noqa: RUF043
        benchmark().fit([ExpertSubset()], LabelledSet(X[:0], Y[:0]), POOL)
    with pytest.raises(ValueError, match="gold.y must hold at least 2 classes"):  # noqa: RUF043
        benchmark().fit([ExpertSubset()], LabelledSet(X[:9], np.zeros(9, dtype=int)), POOL)
    with pytest.raises(ValueError, match="gave nan; it must give a finite number"):
        benchmark(eval_suite={"base": [lambda network, seed: math.nan]}).fit([ExpertSubset()], GOLD, POOL)
    with pytest.raises(NotFittedError, match="fit"):
        _ = CurationBenchmark().report_


class EmbeddingNothing:
    """A strategy that finds nothing."""

    name, kind = "nothing", "embed_t2i"

    def curate(self, gold: LabelledSet, pool: LabelledSet, size: int, random_state: int) -> LabelledSet:
        return pool.rows([])

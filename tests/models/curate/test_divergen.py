"""DiverGen: what is generated and filtered, what pasting does to images and annotations, and a small training."""

from __future__ import annotations

import sys
from collections import Counter
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from sklearn.exceptions import NotFittedError
from torch import nn

from models.curate.copy_paste import (
    CopyPasteComposer,
    PastedImages,
    Scene,
    blended,
    paste,
    rescaled,
    seamless,
    size_statistics,
)
from models.curate.divergen import (
    DiverGen,
    GenerativeInstancePool,
    average_precision,
    intersection_over_union,
    train_val_gap,
    without_categories,
)
from models.curate.instance_generation import (
    CornerSegmenter,
    DeepFloydGenerator,
    DiffusersGenerator,
    NetworkEmbedder,
    OpenClipEmbedder,
    PixelEmbedder,
    SAMSegmenter,
    as_bytes,
    corners,
)
from models.curate.instance_pool import (
    boxes_of,
    cut_out,
    default_prompt,
    generation_plan,
    mean_cosine,
    object_mask,
    real_crop,
    real_cutouts,
)
from models.networks.unet import UNet

SIDE = 40


def random_image(seed: int = 0, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def patch(height: int, width: int, grey: int = 255, category: int = 0) -> dict[str, Any]:
    rgba = np.full((height, width, 4), grey, dtype=np.uint8)
    rgba[:, :, 3] = 255
    return {"rgba": rgba, "category": category}


def scene_of(*corners_of: tuple[int, int, int, int], side: int = SIDE) -> Scene:
    """A scene whose objects are rectangles y0, x0, y1, x1."""
    masks = np.zeros((len(corners_of), side, side), dtype=bool)
    for mask, (y0, x0, y1, x1) in zip(masks, corners_of, strict=True):
        mask[y0:y1, x0:x1] = True
    m = len(masks)
    return Scene(random_image(side=side), boxes_of(masks), np.arange(m), masks, np.zeros(m, dtype=np.int64))


class Shapes:
    """Coloured rectangles (category "box") or discs ("disc") in front of white; `wrong` of them the other shape."""

    def __init__(self, name: str = "shapes", wrong: float = 0.0, copies: bool = False) -> None:
        self.name, self.wrong, self.copies = name, wrong, copies
        self.calls: list[tuple[str, int, int]] = []

    def generate(self, prompt: str, n: int, seed: int) -> np.ndarray:
        self.calls.append((prompt, n, seed))
        generator = np.random.default_rng(0 if self.copies else seed)
        return np.stack(
            [self.draw(("box" in prompt) != (generator.random() < self.wrong), generator) for _ in range(n)]
        )

    def draw(self, box: bool, generator: np.random.Generator) -> np.ndarray:
        y, x = np.mgrid[:24, :24] - generator.integers(11, 14)
        image = np.full((24, 24, 3), 255, dtype=np.uint8)
        inside = (np.abs(y) < 3) & (np.abs(x) < 9) if box else y**2 + x**2 < 36
        image[inside] = generator.integers(140, 220, 3)
        return image


def real_shapes(n: int = 6) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    drawn, generator = Shapes(), np.random.default_rng(9)
    images = [drawn.draw(bool(i % 2), generator) for i in range(2 * n)]
    return images, [{"labels": [i % 2], "masks": (image < 255).all(axis=2)[None]} for i, image in enumerate(images)]


NAMES: dict[int, Any] = {0: "disc", 1: ("box", "with four corners")}


# ---- the composer ----


def test_pasted_pixels_are_the_sources_and_all_others_untouched() -> None:
    before = scene_of((2, 2, 12, 12))
    rgba = np.random.default_rng(1).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    rgba[:, :, 3] = np.where(np.random.default_rng(2).random((9, 7)) < 0.7, 255, 0)
    after = paste(before, rgba, 5, 20, 25)
    solid = np.zeros((SIDE, SIDE), dtype=bool)
    solid[20:29, 25:32] = rgba[:, :, 3] > 127
    np.testing.assert_array_equal(after.masks[-1], solid)
    np.testing.assert_array_equal(after.image[~solid], before.image[~solid])
    np.testing.assert_array_equal(after.image[20:29, 25:32][rgba[:, :, 3] > 127], rgba[:, :, :3][rgba[:, :, 3] > 127])
    assert after.image.dtype == np.uint8
    assert after.masks.dtype == bool
    assert after.labels.tolist() == [0, 5]


def test_masks_stay_disjoint_and_boxes_are_their_extents() -> None:
    pool = [patch(12, 9, 10, 0), patch(8, 14, 200, 1)]
    composer = CopyPasteComposer(pool, max_samples=12, size_stats={0: (0.3, 0.1), 1: (0.3, 0.1)}, random_state=0)
    start = scene_of((2, 2, 16, 16), (20, 20, 38, 38))
    for draw in range(20):
        found = composer(start.image, start.boxes, start.labels, start.masks, draw=(draw,))
        assert found.masks.sum(axis=0).max() <= 1
        for box, mask in zip(found.boxes, found.masks, strict=True):
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize(
    ("covered", "stays"),
    [
        (np.s_[0:20, 0:16], False),  # all of its 320 pixels
        (np.s_[0:19, 0:1], True),  # 301 left, its box unmoved
        (np.s_[0:1, 0:16], True),
        (np.s_[11:20, 0:16], True),  # 176 left, moved by 9
        (np.s_[10:20, 0:16], True),  # 160 left, moved by 10
        (np.s_[9:20, 0:16], False),  # 144 left, moved by 11
    ],
)
def test_an_object_that_is_covered_goes(covered: Any, stays: bool) -> None:
    before = scene_of((0, 0, 20, 16))
    rgba = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    rgba[covered] = 255
    assert (0 in paste(before, rgba, 7, 0, 0).labels.tolist()) is stays


@pytest.mark.parametrize(("left", "stays"), [(301, True), (300, False), (299, False)])
def test_a_moved_object_stays_with_more_than_300_pixels(left: int, stays: bool) -> None:
    before = scene_of((0, 0, 40, 40))
    rgba = np.full((SIDE, SIDE, 4), 255, dtype=np.uint8)
    rgba[:8, :, 3] = np.where(np.arange(320).reshape(8, 40) < left, 0, 255)
    after = paste(before, rgba, 7, 0, 0)
    assert (0 in after.labels.tolist()) is stays
    if stays:
        assert after.masks[0].sum() == left


def test_nothing_is_pasted_from_an_empty_pool_or_with_one_sample_at_most() -> None:
    start = scene_of((2, 2, 16, 16))
    with pytest.warns(UserWarning, match="pool is empty"):
        empty = CopyPasteComposer([])
    for composer in (empty, CopyPasteComposer([patch(9, 9)], max_samples=1)):
        found = composer(start.image, start.boxes + 0.25, start.labels, start.masks)
        np.testing.assert_array_equal(found.image, start.image)
        np.testing.assert_array_equal(found.boxes, start.boxes + 0.25)
        np.testing.assert_array_equal(found.masks, start.masks)
        assert found.source.tolist() == [0]


def test_sources_count_and_outside_or_small_objects_change_nothing() -> None:
    start = scene_of((2, 2, 8, 8), (30, 30, 38, 38))
    twice = paste(paste(start, patch(4, 4)["rgba"], 3, 15, 15), patch(4, 4)["rgba"], 4, 22, 22)
    assert twice.source.tolist() == [0, 0, 1, 1]
    assert twice.labels.tolist() == [0, 1, 3, 4]
    assert paste(start, patch(4, 4)["rgba"], 3, 50, 50) is start
    assert paste(start, np.zeros((4, 4, 4), dtype=np.uint8), 3, 10, 10) is start
    tiny = CopyPasteComposer([patch(9, 9)], size_stats={}, scale_range=(0.1, 0.2), random_state=0)
    found = [tiny(*start[:4], draw=(i,)).source.sum() for i in range(20)]
    assert sum(found) == 0


def test_the_number_pasted_is_uniform_below_the_most() -> None:
    composer = CopyPasteComposer([patch(6, 6)], max_samples=4, scale_range=(1.0, 1.0), random_state=0)
    blank = np.zeros((400, 400, 3), dtype=np.uint8)
    counts = Counter(len(composer(blank, [], [], [], draw=(i,)).labels) for i in range(400))
    assert set(counts) == {0, 1, 2, 3}
    assert chisquare([counts[k] for k in range(4)]).pvalue > 1e-3


def test_the_same_seed_draws_the_same_whoever_asks() -> None:
    pool = [patch(12, 9, 10, 0), patch(8, 14, 200, 1)]
    images, instances = [random_image(1), random_image(2)], [{"labels": [], "masks": []}] * 2
    first, second = (
        PastedImages(images, instances, CopyPasteComposer(pool, scale_range=(0.5, 1.5), random_state=3))
        for _ in range(2)
    )
    forth = [first[0], first[1]]
    back = [second[1], second[0]][::-1]
    for a, b in zip(forth, back, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    second.set_epoch(1)
    assert not np.array_equal(second[1].image, forth[1].image)
    assert PastedImages(images, instances, None)[0].source.tolist() == []


def test_categories_are_drawn_alike_from_an_unequal_pool() -> None:
    pool = [patch(6, 6, category=0)] * 100 + [patch(6, 6, category=1)] + [patch(6, 6, category=2)] * 10
    composer, generator = CopyPasteComposer(pool, random_state=0), np.random.default_rng(0)
    counts = Counter(pool[composer.draw_entry(generator)]["category"] for _ in range(20_000))
    assert chisquare([counts[c] for c in range(3)]).pvalue > 1e-3
    plain = CopyPasteComposer(pool, balanced=False, random_state=0)
    counts = Counter(pool[plain.draw_entry(generator)]["category"] for _ in range(20_000))
    assert chisquare([counts[c] for c in range(3)], np.array([100, 1, 10]) * 20_000 / 111).pvalue > 1e-3


def test_sizes_follow_the_statistics() -> None:
    composer = CopyPasteComposer([patch(20, 10)], size_stats={0: (0.2, 0.0)}, shape_jitter=0.0, random_state=0)
    rgba, generator = patch(20, 10)["rgba"], np.random.default_rng(0)
    height, width = composer.draw_size(rgba, 0, 200, 200, generator) or (0, 0)
    assert height * width == pytest.approx(0.04 * 200 * 200, rel=0.05)
    assert height / width == pytest.approx(2, rel=0.05)
    huge = CopyPasteComposer([patch(20, 20)], size_stats={0: (3.0, 0.0)}, shape_jitter=0.0, random_state=0)
    assert huge.draw_size(patch(20, 20)["rgba"], 0, 100, 100, generator) == (50, 50)
    small = CopyPasteComposer([patch(20, 20)], size_stats={0: (0.0, 0.0)}, shape_jitter=0.0, random_state=0)
    assert small.draw_size(patch(20, 20)["rgba"], 0, 100, 100, generator) == (10, 10)
    assert composer.draw_size(np.zeros((400, 10, 4), np.uint8), 0, 30, 30, generator) is None
    jittered = CopyPasteComposer([patch(20, 20)], size_stats={0: (0.3, 0.0)}, random_state=0)
    drawn = [jittered.draw_size(patch(20, 20)["rgba"], 0, 500, 500, generator) or (0, 1) for _ in range(200)]
    ratios = np.array([h / w for h, w in drawn])
    assert 0.79 <= ratios.min() < 0.85
    assert 1.15 < ratios.max() <= 1.21


def test_size_statistics_are_of_the_root_of_the_share_of_boxes() -> None:
    start = scene_of((0, 0, 10, 10), (0, 20, 20, 40))
    found = size_statistics([start.image] * 2, [{"labels": [4, 4], "masks": start.masks}, {"labels": [], "masks": []}])
    assert found[4] == pytest.approx(((10 / 40 + 20 / 40) / 2, 0.125))


def test_blends_keep_to_the_mask_and_to_the_range_of_bytes() -> None:
    below, above = random_image(0, 20), random_image(1, 20)
    alpha = np.zeros((20, 20))
    alpha[5:15, 5:15] = 1.0
    alpha[9, 9] = 0.25
    half = blended(below, above, alpha, "alpha")
    np.testing.assert_array_equal(half[9, 9], np.round(0.75 * below[9, 9] + 0.25 * above[9, 9]).astype(np.uint8))
    np.testing.assert_array_equal(half[alpha == 0], below[alpha == 0])
    smooth = blended(below, above, alpha, "gaussian")
    np.testing.assert_array_equal(smooth[:2], below[:2])
    np.testing.assert_array_equal(smooth[12, 12], above[12, 12])
    assert not np.array_equal(smooth[5, 8], above[5, 8])
    np.testing.assert_array_equal(seamless(below, np.full_like(below, 7), np.zeros((20, 20), bool)), below)
    flat = seamless(np.full_like(below, 90), np.full_like(below, 7), alpha > 0.5)
    assert (flat == 90).all()  # no gradients inside: the colour round it goes on
    ramp = np.zeros_like(below)
    ramp[:] = (10 * np.arange(20)).astype(np.uint8)[None, :, None]
    found = seamless(np.full_like(below, 90), ramp, alpha > 0.5).astype(int)
    assert found[10, 13, 0] > found[10, 6, 0]


def test_rescaling_keeps_what_fits_and_bytes() -> None:
    rgba = patch(6, 8)["rgba"]
    assert rescaled(rgba, 6, 8) is rgba
    assert rescaled(rgba, 3, 5).shape == (3, 5, 4)
    assert (rescaled(rgba, 13, 17) == 255).all()


# ---- the pool ----


def test_the_plan_gives_equal_shares_and_no_seed_twice() -> None:
    jobs = generation_plan({0: ["a", "b", "c"], 4: ["d"]}, ["one", "two"], 10, 7)
    assert [(j.category, j.prompt, j.generator, j.n) for j in jobs] == [
        (c, p, g, n)
        for c, texts in ((0, (("a", 4), ("b", 3), ("c", 3))), (4, (("d", 10),)))
        for g in ("one", "two")
        for p, n in texts
    ]
    assert len({job.seed for job in jobs}) == len(jobs)
    assert generation_plan({0: ["a", "b", "c"], 4: ["d"]}, ["one", "two"], 10, 7) == jobs


def test_the_corner_segmenter_finds_an_object_on_a_plain_background() -> None:
    y, x = np.mgrid[:60, :80]
    truth = ((y - 28) / 15) ** 2 + ((x - 45) / 22) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 2, (60, 80, 3))
    image = np.where(truth[:, :, None], (40, 90, 160), (235, 240, 238)) + noise
    image[27:30, 40:44] = 237  # a hole of the background's colour is not reached from the corners
    found = ~CornerSegmenter().background_mask(image.clip(0, 255).astype(np.uint8), corners(np.zeros((60, 80, 3))))
    assert (found & truth).sum() / (found | truth).sum() > 0.98
    assert corners(np.zeros((60, 80, 3))).tolist() == [[0, 0], [79, 0], [0, 59], [79, 59]]


def test_object_masks_are_the_largest_piece_and_not_a_line() -> None:
    background = np.ones((20, 20), dtype=bool)
    background[2:8, 2:8] = background[15:17, 15:17] = False
    found = object_mask(background)
    assert found is not None
    assert found.sum() == 36
    both = object_mask(background, keep_largest=False)
    assert both is not None
    assert both.sum() == 40
    assert object_mask(np.ones((9, 9), dtype=bool)) is None
    line = np.ones((9, 9), dtype=bool)
    line[4, 1:8] = False
    assert object_mask(line) is None


def test_the_mean_cosine_is_that_over_all_pairs() -> None:
    generator = np.random.default_rng(0)
    ours, real = generator.normal(size=(7, 5)), generator.normal(size=(4, 5)) * [[1], [10], [0.1], [3]]
    cosine = ours @ real.T / np.linalg.norm(ours, axis=1)[:, None] / np.linalg.norm(real, axis=1)
    np.testing.assert_allclose(mean_cosine(ours, real), cosine.mean(axis=1))


def test_real_crops_are_windows_with_the_outside_blurred_or_black() -> None:
    image, mask = random_image(), np.zeros((SIDE, SIDE), dtype=bool)
    mask[4:10, 20:30] = True
    window = real_crop(image, mask, crop="padding", margin=8, background="blur")
    assert window.shape == (16, 16, 3)
    np.testing.assert_array_equal(window[5:11, 3:13], image[4:10, 20:30])
    assert window[12:].std() < 0.5 * image.std()
    box = real_crop(image, ~mask, crop="box", margin=8, background="black")
    assert box.shape == image.shape
    assert (box[mask] == 0).all()


def test_a_pool_keeps_what_resembles_real_objects() -> None:
    images, instances = real_shapes()
    before = [image.copy() for image in images]
    pool = GenerativeInstancePool(
        [Shapes("first", wrong=0.4), Shapes("second", wrong=0.4)],
        embedder=PixelEmbedder(12),
        n_per_category=20,
        similarity_threshold=0.0,
        crop_margin=12,
        background="black",
        random_state=0,
    ).fit(images, instances, NAMES)
    assert all(np.array_equal(a, b) for a, b in zip(before, images, strict=True))
    assert len(pool.pool_) + len(pool.rejected_) == 80
    assert {entry["generator"] for entry in pool.pool_} == {"first", "second"}
    for entry in pool.pool_:
        height, width = entry["rgba"].shape[:2]
        assert (width > 1.5 * height) == (entry["category"] == 1)  # boxes are wide, discs round
        assert entry["prompt"] == default_prompt(*(("disc",) if entry["category"] == 0 else NAMES[1]))
        again = Shapes(wrong=0.4).generate(entry["prompt"], 20, entry["seed"])[entry["index"]]
        np.testing.assert_array_equal(cut_out(again, (again < 255).all(axis=2)), entry["rgba"])
    assert 15 < Counter(entry["reason"] for entry in pool.rejected_)["similarity"] < 50
    assert pool.report_["generated"].tolist() == [40, 40]
    assert (pool.report_["kept"] + pool.report_["similarity"]).tolist() == [40, 40]
    assert pool.report_["diversity"].notna().all()
    assert set(pool.plane()["source"]) == {"real", "first", "second"}


def test_a_share_to_reject_calibrates_the_threshold_of_each_category() -> None:
    images, instances = real_shapes()
    options: dict[str, Any] = {"n_per_category": 20, "crop_margin": 12, "random_state": 0}
    pool = GenerativeInstancePool([Shapes(wrong=0.3)], embedder=PixelEmbedder(12), reject_share=0.25, **options)
    assert pool.fit(images, instances, NAMES).report_["similarity"].tolist() == [5, 5]
    assert pool.threshold_[0] != pool.threshold_[1]
    trained = GenerativeInstancePool([Shapes(wrong=0.3)], reject_share=0.3, **options)
    assert len(trained.fit(images, instances, NAMES).pool_) == 28


def test_copies_are_kept_once() -> None:
    pool = GenerativeInstancePool([Shapes(copies=True)], prompts={2: ["a star", "a moon"]}, n_per_category=6)
    counts = pool.fit([], []).report_.iloc[0]
    assert counts[["category", "kept", "duplicate"]].tolist() == [2, 3, 3]  # both prompts gave the same three


def test_further_categories_are_not_filtered_by_resemblance() -> None:
    images, instances = real_shapes()
    pool = GenerativeInstancePool(
        [Shapes()],
        embedder=PixelEmbedder(12),
        prompts={2: ["a star", "a moon"]},
        n_per_category=6,
        similarity_threshold=1.0,
        crop_margin=12,
        random_state=0,
    ).fit(images, instances, NAMES)
    assert [entry["category"] for entry in pool.pool_] == [2] * 6
    assert all(entry["similarity"] is None for entry in pool.pool_)
    assert pool.report_["similarity"].tolist() == [6, 6, 0]


def test_areas_and_texts_are_bounds_too() -> None:
    class Blind:
        def embed(self, images: Any) -> np.ndarray:
            return np.tile([1.0, 0.0], (len(images), 1))

        def embed_text(self, texts: Any) -> np.ndarray:
            return np.array([[1.0, 0.0] if "disc" in text else [0.0, 1.0] for text in texts])

    images, instances = real_shapes()
    options: dict[str, Any] = {"n_per_category": 4, "crop_margin": 12, "random_state": 0}
    told = GenerativeInstancePool([Shapes()], embedder=Blind(), min_text_score=0.5, **options).fit(
        images, instances, NAMES
    )
    assert told.report_["text"].tolist() == [0, 4]
    large = GenerativeInstancePool([Shapes()], embedder=Blind(), min_area=0.9, **options).fit(images, instances, NAMES)
    assert large.report_["area"].tolist() == [4, 4]
    assert large.pool_ == []
    with pytest.raises(ValueError, match="embed_text"):
        GenerativeInstancePool([Shapes()], min_text_score=0.5).fit(images, instances, NAMES)


class Given:
    """A generator of the images it is told."""

    def __init__(self, images: np.ndarray) -> None:
        self.name, self.images = "given", images

    def generate(self, prompt: str, n: int, seed: int) -> np.ndarray:
        return self.images


def test_what_generators_and_embedders_answer_is_checked() -> None:
    drawn = Shapes().generate("a box", 3, 0)
    for images in (drawn / 255, drawn.transpose(0, 3, 1, 2), drawn[:2], drawn[0]):
        with pytest.raises(ValueError, match=r"generator 'given' must give uint8 images \(3, h, w, 3\)"):
            GenerativeInstancePool([Given(images)], prompts={0: ["a box"]}, n_per_category=3).fit([], [])

    class Broken:
        def embed(self, images: Any) -> np.ndarray:
            return np.full((len(images), 2), np.nan)

    images, instances = real_shapes()
    with pytest.raises(ValueError, match="embedder must give a finite vector for each of 12 pictures"):
        GenerativeInstancePool([Shapes()], embedder=Broken(), n_per_category=3).fit(images, instances, NAMES)
    with pytest.raises(ValueError, match=r"min_area=0\.5 must not be above max_area=0\.2"):
        GenerativeInstancePool([Shapes()], min_area=0.5, max_area=0.2).fit(images, instances, NAMES)


def test_pictures_are_embedded_job_by_job() -> None:
    seen: list[int] = []

    class Counting(PixelEmbedder):
        def embed(self, images: Any) -> np.ndarray:
            seen.append(len(images))
            return super().embed(images)

    images, instances = real_shapes()
    pool = GenerativeInstancePool(
        [Shapes()], embedder=Counting(8), n_per_category=5, crop_margin=12, random_state=0, chunk=3
    )
    pool.fit(images, instances, NAMES)
    assert seen == [3, 3, 3, 3, 3, 2, 3, 2]  # real crops, then five images of each category
    assert len(pool.pool_) + len(pool.rejected_) == 10


def test_a_plane_needs_vectors() -> None:
    with pytest.raises(ValueError, match="nothing was embedded"):
        GenerativeInstancePool([Shapes()], prompts={0: ["a box"]}, n_per_category=2).fit([], []).plane()
    images, instances = real_shapes()
    single = GenerativeInstancePool([Shapes()], embedder=PixelEmbedder(8), similarity_threshold=1.0, n_per_category=1)
    assert single.fit(images[:1], instances[:1], {0: "disc"}).plane()[["x", "y"]].to_numpy().tolist() == [[0.0, 0.0]]


def test_new_categories_are_unlike_every_known_one() -> None:
    vectors = {"cat": [1, 0, 0], "lion": [0.9, 0.4, 0], "car": [0, 1, 0], "moon": [0, 0.3, 1], "cup": [0.3, 0.2, 0.9]}

    def embed(names: list[str]) -> np.ndarray:
        return np.array([vectors[name] for name in names], dtype=float)

    chosen = GenerativeInstancePool.extra_categories(embed, ["cat", "lion", "moon", "cup", "moon"], ["cat", "car"])
    assert chosen == ["moon", "cup"]
    assert GenerativeInstancePool.extra_categories(embed, list(vectors), ["cat", "car"], n=1) == ["moon"]


def test_what_a_pool_can_not_work_with_is_refused() -> None:
    images, instances = real_shapes()
    with pytest.raises(ValueError, match=r"Categories \[1\] have no prompt"):
        GenerativeInstancePool([Shapes()], prompts={0: ["a disc"]}).fit(images, instances)
    with pytest.raises(ValueError, match="at least one, of different names"):
        GenerativeInstancePool([Shapes(), Shapes()]).fit(images, instances, NAMES)
    with pytest.raises(ValueError, match="equally many"):
        GenerativeInstancePool([Shapes()]).fit(images[:1], instances, NAMES)
    with pytest.raises(ValueError, match="segmenter"):
        GenerativeInstancePool([Shapes()], "edges").fit(images, instances, NAMES)
    with pytest.raises(ValueError, match="learns to tell categories apart, but real instances show 1"):
        GenerativeInstancePool([Shapes()]).fit(images[:1], instances[:1], {0: "disc"})
    with pytest.raises(NotFittedError, match="fit"):
        GenerativeInstancePool([Shapes()]).plane()


# ---- adapters ----


def test_adapters_say_what_to_install() -> None:
    image = random_image()
    for call, package in (
        (lambda: DiffusersGenerator("folder").generate("a cup", 1, 0), "diffusers"),
        (lambda: OpenClipEmbedder("file.safetensors").embed([image]), "open_clip_torch"),
        (lambda: SAMSegmenter("file").background_mask(image, corners(image)), "segment-anything"),
    ):
        with pytest.raises(ImportError, match=f"pip install {package}"):
            call()


def test_diffusers_pipelines_are_asked_for_n_images_with_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipeline:
        def to(self, device: str) -> Pipeline:
            return self

        def encode_prompt(self, prompt: str, num_images_per_prompt: int) -> tuple[str, str]:
            return prompt, ""

        def __call__(self, prompt: Any = None, **given: Any) -> Any:
            together.append(len(given["generator"]))
            return SimpleNamespace(
                images=np.stack([torch.rand(4, 4, 3, generator=g).numpy() for g in given["generator"]])
            )

    together: list[int] = []
    loaded: list[tuple[str, dict[str, Any]]] = []

    def load(model: str, **options: Any) -> Pipeline:
        loaded.append((model, options))
        return Pipeline()

    library: Any = ModuleType("diffusers")
    library.DiffusionPipeline = SimpleNamespace(from_pretrained=load)
    monkeypatch.setitem(sys.modules, "diffusers", library)
    for kind, folders in ((DiffusersGenerator, ["sd"]), (DeepFloydGenerator, ["if-1", "if-2"])):
        generator = kind(*folders, device="cpu", batch_size=2)
        together.clear()
        whole = kind(*folders, device="cpu").generate("a cup", 3, 5)
        np.testing.assert_array_equal(generator.generate("a cup", 3, 5), whole)
        assert together == [3] * len(folders) + [2] * len(folders) + [1] * len(folders)
        found = generator.generate("a cup", 3, 5)
        assert found.shape == (3, 4, 4, 3)
        assert found.dtype == np.uint8
        assert not np.array_equal(found[0], found[1])
        np.testing.assert_array_equal(found, generator.generate("a cup", 3, 5))
    local = {"local_files_only": True, "use_safetensors": True}
    assert loaded[:2] == [("sd", local)] * 2
    assert loaded[2:] == [("if-1", local), ("if-2", local | {"text_encoder": None})] * 2


def test_sam_gives_its_third_mask_for_the_corners_as_foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Predictor:
        def __init__(self, network: Any) -> None: ...

        def set_image(self, image: Any) -> None: ...

        def predict(self, **given: Any) -> tuple[Any, None, None]:
            asked.update(given)
            return np.stack([np.zeros((5, 9)), np.zeros((5, 9)), np.eye(5, 9)]), None, None

    library: Any = ModuleType("segment_anything")
    library.SamPredictor = Predictor
    library.sam_model_registry = {"vit_h": lambda checkpoint: SimpleNamespace(to=lambda device: None)}
    monkeypatch.setitem(sys.modules, "segment_anything", library)
    image = np.zeros((5, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(SAMSegmenter("file").background_mask(image, corners(image)), np.eye(5, 9, dtype=bool))
    assert asked["point_coords"].tolist() == [[0, 0], [8, 0], [0, 4], [8, 4]]  # x, y
    assert asked["point_labels"].tolist() == [1, 1, 1, 1]
    assert asked["multimask_output"]


def test_clip_embeds_images_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clip(nn.Module):
        visual = SimpleNamespace(image_size=(8, 8))

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

        def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.float()

    library: Any = ModuleType("open_clip")
    library.create_model_and_transforms = lambda model, pretrained, device: (Clip(), None, None)
    library.get_tokenizer = lambda model: lambda texts: torch.ones(len(texts), 3)
    monkeypatch.setitem(sys.modules, "open_clip", library)
    with pytest.raises(ValueError, match="weights must name a local"):
        OpenClipEmbedder("openai")
    embedder = OpenClipEmbedder("file.safetensors")
    found = embedder.embed([np.zeros((6, 6, 3), np.uint8), np.full((9, 5, 3), 255, np.uint8)])
    np.testing.assert_allclose(
        found[0], [-0.48145466 / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711], rtol=1e-4
    )
    assert embedder.embed_text(["a", "b"]).shape == (2, 3)


def test_floats_become_bytes_without_overflow() -> None:
    assert as_bytes([-0.1, 0.0, 0.5, 1.0, 1.3]).tolist() == [0, 0, 128, 255, 255]


def test_the_default_embedder_tells_categories_apart() -> None:
    images, instances = real_shapes(20)
    labels = [own["labels"][0] for own in instances]
    embedder = NetworkEmbedder(epochs=40, random_state=0).fit(images[:30], labels[:30])
    centres = [
        embedder.embed([im for im, c in zip(images[:30], labels, strict=False) if c == k]).mean(0) for k in (0, 1)
    ]
    nearest = mean_cosine(embedder.embed(images[30:]), centres[1:]) > mean_cosine(
        embedder.embed(images[30:]), centres[:1]
    )
    assert (nearest == np.array(labels[30:], dtype=bool)).mean() > 0.9


# ---- the training ----


def test_precision_overlap_and_gap() -> None:
    masks = scene_of((0, 0, 10, 10), (20, 20, 30, 30)).masks
    truth = [{"labels": [0, 1], "masks": masks}]
    right = [{"labels": [0, 1], "masks": masks, "scores": [0.9, 0.8]}]
    np.testing.assert_allclose(average_precision(right, truth, 3), [1, 1, np.nan])
    half = scene_of((0, 0, 10, 6), (20, 20, 30, 30)).masks  # overlap 0.6: right at 0.5, 0.55 and 0.6
    missed = [{"labels": [0, 0], "masks": half, "scores": [0.5, 0.9]}]
    assert average_precision(missed, truth, 2)[0] == pytest.approx(0.3 * 0.5)  # a better-scored wrong one comes first
    assert average_precision([{"labels": [], "masks": [], "scores": []}], truth, 2).tolist() == [0, 0]
    np.testing.assert_allclose(intersection_over_union([0, 0, 1, -1], [0, 1, 1, 0], 3), [1 / 3, 0.5, np.nan])
    assert train_val_gap(0.6, 0.4) == pytest.approx(0.2)
    assert train_val_gap([0.6, 0.9], [0.4, 0.1], [1]) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="same categories"):
        train_val_gap([0.1, 0.2], [0.1])


def small_scenes() -> tuple[np.ndarray, list[dict[str, Any]]]:
    scenes = [scene_of((4 + i, 6, 14 + i, 20), (22, 20 + i, 34, 32 + i)) for i in range(6)]
    images = np.full((6, SIDE, SIDE, 3), 20, dtype=np.uint8)
    for image, scene in zip(images, scenes, strict=True):
        image[scene.masks[0]], image[scene.masks[1]] = (250, 40, 40), (40, 250, 40)
    return images, [{"labels": scene.labels, "masks": scene.masks, "boxes": scene.boxes} for scene in scenes]


def test_it_learns_to_segment_and_drops_further_categories() -> None:
    images, instances = small_scenes()
    before = images.copy()
    pool = [*real_cutouts(images, instances), patch(10, 10, 255, category=4)]
    model = DiverGen(pool, lambda n: UNet(n, 3, (8, 16)), n_steps=60, batch_size=4, random_state=0).fit(
        images, instances
    )
    np.testing.assert_array_equal(images, before)
    assert (model.n_real_, model.n_categories_) == (2, 5)
    assert model.network_(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    assert 0.3 < model.pasted_share_ < 0.95
    found = model.predict(images)
    truth = np.stack([np.where(own["masks"][0], 0, np.where(own["masks"][1], 1, -1)) for own in instances])
    assert intersection_over_union(found, truth, 2).min() > 0.6
    assert found.dtype == np.int64
    pieces = model.predict_instances(images[:1])[0]
    assert len(pieces["labels"]) == len(pieces["masks"]) == len(pieces["boxes"]) == len(pieces["scores"])
    assert 0 <= model.score(images, instances) <= 1
    assert model.drop_categories(1).predict(images).max() == 0


def test_cutting_keeps_the_first_outputs() -> None:
    network, x = UNet(5, 3, (4,)).eval(), torch.rand(2, 3, 6, 6)
    cut = without_categories(network, 3)
    with torch.no_grad():
        torch.testing.assert_close(cut(x), network(x)[:, :3])
    assert cut.architecture["out_channels"] == 3
    assert network.architecture["out_channels"] == 5
    with pytest.raises(ValueError, match="6 outputs"):
        without_categories(network, 6)
    linear = nn.Linear(4, 5, bias=False)
    assert without_categories(linear, 2)(torch.zeros(1, 4)).shape == (1, 2)


class HeadFirst(nn.Module):
    """A network whose head is not its last layer in the order of its modules."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.head, self.body = nn.Conv2d(8, outputs, 1), nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu())


class HeadTwice(HeadFirst):
    """A network with an auxiliary head after the one that answers."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.auxiliary = nn.Conv2d(8, outputs, 1)


def test_a_head_that_is_not_last_is_refused_only_where_it_must_be_cut() -> None:
    images, instances = small_scenes()
    small: dict[str, Any] = {"n_steps": 1, "batch_size": 2, "random_state": 0}
    for kind in (HeadFirst, HeadTwice):
        assert DiverGen(model_fn=kind, **small).fit(images, instances).predict(images).shape == images.shape[:3]
        with pytest.raises(ValueError, match="further categories are cut off the last layer"):
            DiverGen([patch(6, 6, category=4)], kind, **small).fit(images, instances)


def test_entries_that_are_none_are_refused() -> None:
    for entry in (
        {"rgba": np.zeros((4, 4, 4), np.uint8), "category": None},
        {"rgba": np.zeros((0, 4, 4), np.uint8), "category": 1},
        {"rgba": np.zeros((4, 4, 4), np.uint8), "category": -1},
        {"category": 1},
        "x",
    ):
        with pytest.raises(ValueError, match="pool entry 0 must have 'rgba'"):
            CopyPasteComposer([entry])
    with pytest.raises(NotFittedError, match="fit"):
        CopyPasteComposer(GenerativeInstancePool([Shapes()]))


def test_scores_are_of_as_many_images() -> None:
    with pytest.raises(ValueError, match="of the same pixels"):
        intersection_over_union(np.zeros((2, 4), int), np.zeros((1, 4), int), 2)
    with pytest.raises(ValueError, match="of the same images, got 1 and 2"):
        average_precision([{}], [{}, {}], 2)


def test_what_does_not_fit_is_refused() -> None:
    images, instances = small_scenes()
    small: dict[str, Any] = {"n_steps": 1, "batch_size": 2, "random_state": 0}
    with pytest.raises(ValueError, match=r"Masks of X\[0\] must be"):
        DiverGen(**small).fit(images[:, :20], instances)
    with pytest.raises(ValueError, match="one label, mask and box for each"):
        DiverGen(**small).fit(images[:1], [{"labels": [0], "masks": instances[0]["masks"]}])
    with pytest.raises(ValueError, match=r"must lie in 0\.\.0, got \[0, 1\]"):
        DiverGen(n_categories=1, **small).fit(images, instances)
    with pytest.raises(ValueError, match="must lie in 0 and above, got"):
        DiverGen(**small).fit(images[:1], [{"labels": [-1, 0], "masks": instances[0]["masks"]}])
    with pytest.raises(ValueError, match="'labels' and 'masks'; masks is missing"):
        DiverGen(**small).fit(images[:1], [{"labels": [0]}])
    with pytest.raises(ValueError, match="X must be uint8"):
        DiverGen(**small).fit(images / 255, instances)
    with pytest.raises(ValueError, match="X must hold at least one image"):
        DiverGen(**small).fit([], [])
    with pytest.raises(ValueError, match="all of one size"):
        DiverGen(**small).fit([images[0], images[1][:20]], instances[:2])
    with pytest.raises(ValueError, match="y must hold the instances of 6 images, got 2"):
        DiverGen(**small).fit(images, instances[:2])
    with pytest.raises(ValueError, match="y holds no object at all"):
        DiverGen(**small).fit(images[:1], [{"labels": [], "masks": []}])
    with pytest.raises(ValueError, match="maps of logits shaped"):
        DiverGen(model_fn=lambda n: UNet(n + 1, 3, (4,)), **small).fit(images, instances)
    with pytest.raises(ValueError, match="pool entry 0 must have 'rgba'"):
        DiverGen([{"rgba": images[0], "category": 0}], **small).fit(images, instances)
    with pytest.raises(ValueError, match="blend must be one of"):
        CopyPasteComposer([patch(6, 6)], blend="glue")
    with pytest.raises(ValueError, match="at least 1"):
        CopyPasteComposer([patch(6, 6)], max_samples=0)
    with pytest.raises(NotFittedError, match="fit"):
        DiverGen().predict(images)
    fitted = DiverGen(**small).fit(images, instances)
    with pytest.raises(ValueError, match=r"n_real must lie in 1\.\.2"):
        fitted.drop_categories(3)

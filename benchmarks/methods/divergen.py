"""Evidence for DiverGen: Fashion-MNIST items on random backgrounds, four rare classes, two stand-in generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from benchmarks.data import fashion_mnist
from benchmarks.evidence import Evidence
from models.curate.divergen import (
    CopyPasteComposer,
    DiverGen,
    GenerativeInstancePool,
    average_precision,
    intersection_over_union,
    real_cutouts,
    size_statistics,
    train_val_gap,
)
from models.curate.divergen import category_map as map_of
from models.curate.instance_generation import PixelEmbedder, as_bytes

NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
RARE, FEW, MANY = (1, 5, 8, 9), 4, 150
TRAIN, TEST, SIDE, ITEM, MARGIN = 250, 150, 32, 14, 5
KNOWN, EACH, DIRT = 1_000, 150, 0.4
PASTES, STEPS = 3, 700
Floats = NDArray[np.float64]


def pooled_items(images: NDArray[np.uint8]) -> Floats:
    """Items of 28 pixels, averaged over 2x2 pixels, in [0, 1]."""
    return images.reshape(-1, ITEM, 2, ITEM, 2).mean(axis=(2, 4)) / 255


def enlarged(maps: Floats, side: int, mode: str) -> Floats:
    """One map (h, w) at another size."""
    return F.interpolate(torch.from_numpy(maps)[None, None], size=(side, side), mode=mode)[0, 0].numpy()


def scene(
    items: Floats, labels: Sequence[int], generator: np.random.Generator
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Items at random places and sizes on a smooth random background with noise, later ones in front."""
    canvas = enlarged(generator.random((4, 4)), SIDE, "bicubic") + 0.05 * generator.standard_normal((SIDE, SIDE))
    masks: list[NDArray[np.bool_]] = []
    for item in items:
        side = round(ITEM * generator.uniform(0.8, 1.3))
        top, left = generator.integers(SIDE - side + 1, size=2)
        shown = np.zeros((SIDE, SIDE))
        shown[top : top + side, left : left + side] = enlarged(item, side, "bilinear")
        mask = shown > 0.1
        masks = [*(before & ~mask for before in masks), mask]
        canvas = np.where(mask, shown, canvas)
    seen = [row for row, mask in enumerate(masks) if mask.any()]
    stacked = np.array([masks[row] for row in seen]).reshape(-1, SIDE, SIDE)
    return colours(canvas), {"labels": np.array([labels[row] for row in seen], dtype=np.int64), "masks": stacked}


def colours(grey: Floats) -> NDArray[np.uint8]:
    """A grey picture as RGB."""
    return as_bytes(np.repeat(grey[:, :, None], 3, axis=2))


def alone(item: Floats) -> Floats:
    """An item in the midst of a plain background."""
    return np.pad(item, MARGIN)


class PrincipalGenerator:
    """Stands for a text-to-image model: a Gaussian over the first principal components of other items of a class.

    With `dirt`, so many of its images show a class drawn at random.
    """

    def __init__(self, name: str, rank: int, items: Floats, labels: NDArray[np.int64], dirt: float = 0.0) -> None:
        self.name, self.dirt = name, dirt
        self.models = []
        for c in range(len(NAMES)):
            rows = items[labels == c].reshape(-1, ITEM * ITEM)
            _, lengths, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
            self.models.append((rows.mean(axis=0), axes[:rank] * lengths[:rank, None] / np.sqrt(len(rows) - 1)))

    def generate(self, prompt: str, n: int, seed: int) -> NDArray[np.uint8]:
        """Images of the class that the prompt names."""
        asked = next(c for c, name in enumerate(NAMES) if f"a single {name}," in prompt)
        generator = np.random.default_rng(seed)
        shown = np.where(generator.random(n) < self.dirt, generator.integers(len(NAMES), size=n), asked)
        items = []
        for c in shown:
            mean, axes = self.models[c]
            items.append((mean + generator.standard_normal(len(axes)) @ axes).clip(0, 1).reshape(ITEM, ITEM))
        return np.stack([colours(alone(item)) for item in items])


class World:
    """What one seed draws: real items with a long tail, scenes of them, balanced test scenes, and generators."""

    def __init__(self, seed: int) -> None:
        split, generator = fashion_mnist(), np.random.default_rng(seed)
        items, labels, own, other = pooled_items(split.train_images), split.train_labels, [], []
        for c in range(len(NAMES)):
            rows = generator.permutation(np.flatnonzero(labels == c))
            own.append(rows[: FEW if c in RARE else MANY])
            other.append(rows[MANY : MANY + KNOWN])
        kept, rest = np.concatenate(own), np.concatenate(other)
        self.real = [colours(alone(item)) for item in items[kept]]
        self.objects = [
            {"labels": [label], "masks": (alone(item) > 0.1)[None]}
            for item, label in zip(items[kept], labels[kept], strict=True)
        ]
        drawn = [generator.choice(kept, generator.integers(1, 4)) for _ in range(TRAIN)]
        self.images, self.instances = zip(*(scene(items[r], labels[r], generator) for r in drawn), strict=True)
        tests, test_labels = pooled_items(split.test_images), split.test_labels
        classes = [np.flatnonzero(test_labels == c) for c in range(len(NAMES))]
        drawn = [
            np.array(
                [generator.choice(classes[c]) for c in generator.integers(len(NAMES), size=generator.integers(1, 4))]
            )
            for _ in range(TEST)
        ]
        self.test, self.truth = zip(*(scene(tests[r], test_labels[r], generator) for r in drawn), strict=True)
        self.known = items[rest], labels[rest]
        sizes = size_statistics(self.images, self.instances)
        common = tuple(np.mean(list(sizes.values()), axis=0))
        self.sizes = {c: sizes.get(c, common) for c in range(len(NAMES))}

    def pool(self, seed: int, ranks: Sequence[int] = (8, 30), dirt: float = 0.0, reject: float | None = None) -> Any:
        """Generated objects, 150 of each class from each generator."""
        return GenerativeInstancePool(
            [PrincipalGenerator(f"rank {rank}", rank, *self.known, dirt) for rank in ranks],
            embedder=PixelEmbedder(ITEM + 2 * MARGIN),
            n_per_category=EACH,
            similarity_threshold=-1.0,
            reject_share=reject,
            crop_margin=ITEM // 2 + MARGIN,
            background="black",
            random_state=seed,
        ).fit(self.real, self.objects, dict(enumerate(NAMES)))


def judged(world: World, pool: Any, seed: int) -> dict[str, float]:
    """Train with a pool, and judge on test scenes and on as many training scenes."""
    composer = None
    if pool is not None:
        composer = CopyPasteComposer(pool, max_samples=PASTES, size_stats=world.sizes, random_state=seed)
    model = DiverGen(pool, None, composer, n_categories=len(NAMES), n_steps=STEPS, random_state=seed)
    model.fit(world.images, world.instances)
    found: dict[str, dict[str, Any]] = {}
    for part, images, truth in (
        ("train", world.images[:TEST], world.instances[:TEST]),
        ("test", world.test, world.truth),
    ):
        maps = np.stack([map_of(own["labels"], own["masks"], (SIDE, SIDE)) for own in truth])
        found[part] = {
            "iou": intersection_over_union(model.predict(images), maps, len(NAMES)),
            "ap": average_precision(model.predict_instances(images), truth, len(NAMES)),
        }
    rare = list(RARE)
    return {
        "mean IoU": float(np.nanmean(found["test"]["iou"])),
        "rare IoU": float(np.nanmean(found["test"]["iou"][rare])),
        "mean AP": float(np.nanmean(found["test"]["ap"])),
        "rare AP": float(np.nanmean(found["test"]["ap"][rare])),
        "rare IoU, train": float(np.nanmean(found["train"]["iou"][rare])),
        "rare gap, IoU": train_val_gap(found["train"]["iou"], found["test"]["iou"], rare),
        "rare gap, AP": train_val_gap(found["train"]["ap"], found["test"]["ap"], rare),
        "gap, AP": train_val_gap(found["train"]["ap"], found["test"]["ap"]),
        "pasted share": model.pasted_share_,
    }


def run(seed: int) -> dict[str, dict[str, float]]:
    """Every pool of one seed, and what the filter does to a dirty one."""
    world = World(seed)
    filtered = world.pool(seed, dirt=DIRT, reject=DIRT)
    pools = {
        "none": None,
        "real cut-outs": real_cutouts(world.real, world.objects),
        "two generators": world.pool(seed),
        "rank 8 alone": world.pool(seed, ranks=(8,)),
        "rank 30 alone": world.pool(seed, ranks=(30,)),
        "dirty": world.pool(seed, dirt=DIRT),
        "dirty, filtered": filtered,
    }
    return {name: judged(world, pool, seed) for name, pool in pools.items()}


def collect(evidence: Evidence) -> None:
    """Measure pools clean, dirty and filtered, beside no pasting and pasting of real cut-outs."""
    evidence.uses(
        "Fashion-MNIST items of 14 pixels on random backgrounds of 32: 250 training scenes (4 items of each of four "
        "classes, 150 of the others), 150 balanced test scenes of test items; generators fitted to 1,000 other items a "
        "class"
    )
    runs = evidence.map(run)
    evidence.table(
        "pixel classifier, 700 steps of 12",
        [
            {"seed": seed, "pool": name, **{key: round(value, 4) for key, value in row.items()}}
            for seed, found in zip(evidence.seeds, runs, strict=True)
            for name, row in found.items()
        ],
    )

    def minus(first: str, second: str, key: str) -> list[float]:
        return [found[first][key] - found[second][key] for found in runs]

    rare, gap = "rare IoU", "rare gap, AP"
    evidence.check("rare IoU: clean pool minus none", minus("two generators", "none", rare), at_least=0.10)
    evidence.check(
        "rare IoU: clean pool minus real cut-outs", minus("two generators", "real cut-outs", rare), at_least=0.02
    )
    evidence.check("rare IoU: filtered minus dirty", minus("dirty, filtered", "dirty", rare), at_least=0.05)
    evidence.check("mean IoU: filtered minus none", minus("dirty, filtered", "none", "mean IoU"), at_least=0.02)
    evidence.check(
        "train-val gap (AP) of the rare classes: none minus clean pool",
        minus("none", "two generators", gap),
        at_least=0.0,
        note=_gap_note(runs),
    )
    for one in ("rank 8 alone", "rank 30 alone"):
        evidence.check(
            f"mean IoU: two generators minus {one}", minus("two generators", one, "mean IoU"), at_least=-0.02
        )


def _gap_note(runs: list[dict[str, dict[str, float]]]) -> str:
    """What the rare classes' gap is made of, and the gap of all classes."""

    def each(name: str, key: str) -> str:
        return ", ".join(f"{found[name][key]:.3f}" for found in runs)

    return (
        "Without a pool the rare classes are not learned on the training scenes either (IoU there "
        f"{each('none', 'rare IoU, train')}; with the pool {each('two generators', 'rare IoU, train')}): nothing is "
        f"over-fitted, so their gap is 0. Over all classes the gap is {each('none', 'gap, AP')} without and "
        f"{each('two generators', 'gap, AP')} with the pool."
    )

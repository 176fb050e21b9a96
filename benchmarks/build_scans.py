"""Builds the dataset the repository ships, ``data/scans``: ``python -m benchmarks.build_scans [folder]``.

Scanned digits as they come out of a crawl: wrong labels, strangers among the images, duplicates, rows leaked from
the test set, broken rows, and a second scanner whose digits nobody labelled. Every image is real (MNIST,
Fashion-MNIST, UCI digits); what is wrong with a row is told in ``data/truth`` alone. Equal seeds and package
versions give equal bytes. It lives with the benchmarks because it reads their sources; the platform itself
reads only what this wrote.

    scans/<split>/part-00000.parquet     id · image · label · domain · split · source
    truth/scans.parquet                  one row for each row of scans, in the same order
    erasure/scans.parquet                ids of people who ask to be forgotten
    ATTRIBUTION.md
"""

from __future__ import annotations

import io
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature
from numpy.typing import NDArray
from PIL import Image

from benchmarks.data import Digits, Split, digits, fashion_mnist, mnist

SEED = 20240229
N_CLASSES = 8
FOLDER = Path(__file__).resolve().parents[1] / "data"

# Digits that are mistaken for each other in handwriting: a wrong label is always the partner of the true one.
CONFUSED_WITH = {0: 6, 1: 7, 2: 3, 3: 5, 4: 6, 5: 3, 6: 0, 7: 1}
BROKEN = ("blank image", "wrong size", "label out of range", "missing id", "repeated id", "truncated bytes")
WRONG_SIZES = ((14, 14), (20, 28), (28, 20), (32, 32), (56, 56))  # (height, width)
STRAY_LABELS = (8, 9, 10, 42, 99, 255, -2, -5, -9, -99)
SOURCES = {
    "train": "scans/train-crawl",
    "unlabelled": "scans/unlabelled-crawl",
    "test": "scans/test-set",
    "target": "scans/target-crawl",
}

SCANS = Features(
    {
        "id": Value("string"),
        "image": ImageFeature(),
        "label": ClassLabel(names=[str(digit) for digit in range(N_CLASSES)]),
        "domain": Value("string"),
        "split": Value("string"),
        "source": Value("string"),
    }
)
TRUTH = Features(
    {
        "split": Value("string"),
        "row": Value("int64"),  # position in the split
        "id": Value("string"),
        "true_label": Value("int64"),  # what the image shows, -1 when it is none of the eight classes
        "mislabelled": Value("bool"),  # the label given is another class than the one shown
        "intruder": Value("bool"),
        "duplicate_of": Value("string"),
        "duplicate_kind": Value("string"),  # "", "exact" or "near"
        "leak": Value("bool"),  # the image also stands in the test split, under `leak_of`
        "leak_of": Value("string"),
        "broken": Value("string"),  # "" or one of BROKEN
        "target_label": Value("int64"),  # digit 0-9 of a target row, else -1
        "origin": Value("string"),  # data set, part and position the image was made from
    }
)

ATTRIBUTION = """\
# Where the images come from

`scans` is put together from three public data sets by `python -m benchmarks.build_scans`. Changes made: images
were selected, some shifted, dimmed, resized, blanked or cut off, some labels replaced, and all encoded as PNG.

| rows | data set | authors | licence |
|---|---|---|---|
| train (digits), unlabelled, test | [MNIST](http://yann.lecun.com/exdb/mnist/) | Yann LeCun, Corinna Cortes | [CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/) |
| train (strangers among the digits) | [Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist) | Han Xiao, Kashif Rasul, Roland Vollgraf (Zalando SE) | MIT, below |
| target | [Optical Recognition of Handwritten Digits](https://doi.org/10.24432/C50P49), its test part as bundled with scikit-learn | Ethem Alpaydin, Cenk Kaynak | [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/) |

Images made from MNIST are passed on under CC BY-SA 3.0, the others under the licence of their source.

## Licence of Fashion-MNIST

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""  # noqa: E501


@dataclass
class Sample:
    """A row being made: what everybody sees, and the truth about it."""

    pixels: NDArray[np.uint8]
    label: int
    true_label: int
    origin: str
    id: str | None = ""
    intruder: bool = False
    copied_from: Sample | None = None
    duplicate_kind: str = ""
    leaked_from: Sample | None = None
    broken: str = ""
    target_label: int = -1
    truncated_at: float = 1.0

    @property
    def png(self) -> bytes:
        """The encoded image, cut off where the row is truncated."""
        stream = io.BytesIO()
        Image.fromarray(self.pixels).save(stream, format="PNG", optimize=True)
        whole = stream.getvalue()
        return whole[: int(len(whole) * self.truncated_at)]


@dataclass
class Scans:
    """Rows of each split in their final order, and the ids to be erased."""

    splits: dict[str, list[Sample]]
    erasure: list[str] = field(default_factory=list)


@dataclass
class Pool:
    """Images of one source in random order, each given out once and no two with equal pixels.

    Only those with labels below `n_labels` are given out; `used` remembers pixels across pools.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    n_labels: int
    rng: np.random.Generator
    used: set[bytes]

    def __post_init__(self) -> None:
        self.order: list[int] = self.rng.permutation(np.flatnonzero(self.labels < self.n_labels)).tolist()

    def draw(self, count: int, label: int | None = None) -> list[Sample]:
        """Give out `count` images, of one label if it is named."""
        drawn: list[Sample] = []
        kept: list[int] = []
        while len(drawn) < count:
            row = self.order.pop()
            if label is not None and self.labels[row] != label:
                kept.append(row)
            elif (key := self.images[row].tobytes()) not in self.used:
                self.used.add(key)
                shown = int(self.labels[row])
                drawn.append(Sample(self.images[row], shown, shown, f"{self.name}/{row}"))
        self.order += kept[::-1]
        return drawn

    def draw_balanced(self, count: int) -> list[Sample]:
        """Give out `count` images, equally many of each of the eight classes."""
        return [sample for label in range(N_CLASSES) for sample in self.draw(count // N_CLASSES, label)]


def compose(handwriting: Split, clothes: Split, other_scanner: Digits, seed: int = SEED) -> Scans:
    """Put the four splits together. The same arguments give the same rows in the same order."""
    rng = np.random.default_rng(seed)
    used: set[bytes] = set()
    train_pool = Pool("mnist/train", handwriting.train_images, handwriting.train_labels, N_CLASSES, rng, used)
    test_pool = Pool("mnist/test", handwriting.test_images, handwriting.test_labels, N_CLASSES, rng, used)
    clothes_pool = Pool("fashion-mnist/train", clothes.train_images, clothes.train_labels, 10, rng, used)

    test = test_pool.draw_balanced(2000)
    ordinary = train_pool.draw_balanced(6000)
    unlabelled = train_pool.draw_balanced(6000)
    target = scan_again(other_scanner)
    for sample in unlabelled + target:
        sample.label = -1
    mislabel(ordinary, 0.25, rng)
    roles = pick(ordinary, 300 + 300 + 10 + 120, rng)  # one role each: an erased row has no copy left behind
    exact, near, id_owners, forgotten = roles[:300], roles[300:600], roles[600:610], roles[610:]
    broken = break_rows(train_pool.draw(60), id_owners, rng)
    train = [
        *ordinary,
        *intruders(clothes_pool.draw(900), rng),
        *(Sample(s.pixels, s.label, s.true_label, s.origin, copied_from=s, duplicate_kind="exact") for s in exact),
        *(nearly(sample, rng) for sample in near),
        *(Sample(s.pixels, s.label, s.true_label, s.origin, leaked_from=s) for s in pick(test, 50, rng)),
        *broken,
    ]
    splits = {"train": train, "unlabelled": unlabelled, "test": test, "target": target}
    splits = {split: pick(samples, len(samples), rng) for split, samples in splits.items()}
    name_rows([sample for samples in splits.values() for sample in samples], id_owners, rng)
    return Scans(splits, [str(sample.id) for sample in forgotten])


def pick(samples: list[Sample], count: int, rng: np.random.Generator) -> list[Sample]:
    """Take `count` of the samples at random, in random order."""
    return [samples[row] for row in rng.permutation(len(samples))[:count]]


def mislabel(samples: list[Sample], rate: float, rng: np.random.Generator) -> None:
    """Give `rate` of the samples the label their digit is confused with."""
    for sample in pick(samples, round(rate * len(samples)), rng):
        sample.label = CONFUSED_WITH[sample.true_label]


def intruders(samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
    """Pass images that show no digit off as digits."""
    for sample in samples:
        sample.label, sample.true_label, sample.intruder = int(rng.integers(N_CLASSES)), -1, True
    return samples


def nearly(original: Sample, rng: np.random.Generator) -> Sample:
    """Scan an image once more: shifted by up to two pixels, with another contrast, or both."""
    pixels = original.pixels
    change = rng.choice(["shift", "contrast", "both"])
    if change != "contrast":
        shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3) if (down, right) != (0, 0)]
        pixels = shifted(pixels, *shifts[rng.integers(len(shifts))])
    if change != "shift":
        pixels = np.rint(pixels * rng.uniform(0.6, 0.9)).astype(np.uint8)
    return Sample(
        pixels, original.label, original.true_label, original.origin, copied_from=original, duplicate_kind="near"
    )


def shifted(pixels: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """Move an image over a black ground; what leaves the frame is lost."""
    height, width = pixels.shape
    room = np.pad(pixels, 2)
    return room[2 - down : 2 - down + height, 2 - right : 2 - right + width]


def break_rows(samples: list[Sample], id_owners: list[Sample], rng: np.random.Generator) -> list[Sample]:
    """Break the samples, equally many in each way."""
    share = len(samples) // len(BROKEN)
    for number, sample in enumerate(samples):
        sample.broken, turn = BROKEN[number // share], number % share
        if sample.broken == "blank image":
            sample.pixels = np.full_like(sample.pixels, round(turn * 255 / (share - 1)))
            sample.true_label = -1
        elif sample.broken == "wrong size":
            height, width = WRONG_SIZES[turn % len(WRONG_SIZES)]
            resized = Image.fromarray(sample.pixels).resize((width, height), Image.Resampling.BICUBIC)
            sample.pixels = np.asarray(resized)
        elif sample.broken == "label out of range":
            sample.label = STRAY_LABELS[turn % len(STRAY_LABELS)]
        elif sample.broken == "missing id":
            sample.id = None
        elif sample.broken == "truncated bytes":
            sample.truncated_at = rng.uniform(0.3, 0.8)
    return samples


def scan_again(other_scanner: Digits) -> list[Sample]:
    """Enlarge the 8x8 digits of the other scanner to 24x24 (bicubic), centred in 28x28."""
    samples = []
    for row, (small, digit) in enumerate(zip(other_scanner.images, other_scanner.labels.tolist(), strict=True)):
        large = Image.fromarray(small).resize((24, 24), Image.Resampling.BICUBIC)
        known = digit if digit < N_CLASSES else -1
        samples.append(Sample(np.pad(np.asarray(large), 2), known, known, f"digits/{row}", target_label=digit))
    return samples


def name_rows(samples: list[Sample], id_owners: list[Sample], rng: np.random.Generator) -> None:
    """Give each row a random id; a row broken by a repeated id takes that of an owner."""
    taken = iter(dict.fromkeys(f"a-{rng.bytes(6).hex()}" for _ in range(2 * len(samples))))
    for sample in samples:
        if sample.id is not None:
            sample.id = next(taken)
    repeated = [sample for sample in samples if sample.broken == "repeated id"]
    for sample, owner in zip(repeated, id_owners, strict=True):
        sample.id = owner.id


def scan_columns(samples: list[Sample], split: str) -> dict[str, list[Any]]:
    """Columns that everybody sees."""
    return {
        "id": [sample.id for sample in samples],
        "image": [{"bytes": sample.png, "path": None} for sample in samples],
        "label": [sample.label for sample in samples],
        "domain": ["scanner-b" if split == "target" else "scanner-a"] * len(samples),
        "split": [split] * len(samples),
        "source": [SOURCES[split]] * len(samples),
    }


def truth_columns(splits: dict[str, list[Sample]]) -> dict[str, list[Any]]:
    """Columns that tell what is true of each row."""
    rows = [(split, row, sample) for split, samples in splits.items() for row, sample in enumerate(samples)]
    return {
        "split": [split for split, _, _ in rows],
        "row": [row for _, row, _ in rows],
        "id": [sample.id for _, _, sample in rows],
        "true_label": [sample.true_label for _, _, sample in rows],
        "mislabelled": [is_mislabelled(sample) for _, _, sample in rows],
        "intruder": [sample.intruder for _, _, sample in rows],
        "duplicate_of": [sample.copied_from.id if sample.copied_from else None for _, _, sample in rows],
        "duplicate_kind": [sample.duplicate_kind for _, _, sample in rows],
        "leak": [sample.leaked_from is not None for _, _, sample in rows],
        "leak_of": [sample.leaked_from.id if sample.leaked_from else None for _, _, sample in rows],
        "broken": [sample.broken for _, _, sample in rows],
        "target_label": [sample.target_label for _, _, sample in rows],
        "origin": [sample.origin for _, _, sample in rows],
    }


def is_mislabelled(sample: Sample) -> bool:
    """Whether the row carries the label of a class it does not show."""
    return 0 <= sample.label < N_CLASSES and sample.true_label >= 0 and sample.label != sample.true_label


def write_parquet(columns: dict[str, list[Any]], features: Features, path: Path) -> None:
    """Write one shard that Hugging Face ``datasets`` reads back with its features.

    Goes through pyarrow, as ``Dataset.to_parquet`` fixes the compression of image columns to none, and would
    refuse labels that are out of range on purpose.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = features.arrow_schema
    table = pa.table([pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema)
    pq.write_table(
        table,
        path,
        row_group_size=2000,
        version="2.6",
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name in schema.names if name in ("domain", "split", "source", "broken")],
        write_statistics=[name for name in schema.names if name != "image"],
        data_page_version="1.0",
    )


def write(scans: Scans, folder: Path) -> None:
    """Write the dataset, its truth and the erasure request below `folder`, over what stands there."""
    for part in ("scans", "truth", "erasure"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for split, samples in scans.splits.items():
        write_parquet(scan_columns(samples, split), SCANS, folder / "scans" / split / "part-00000.parquet")
    write_parquet(truth_columns(scans.splits), TRUTH, folder / "truth" / "scans.parquet")
    write_parquet({"id": list(scans.erasure)}, Features({"id": Value("string")}), folder / "erasure" / "scans.parquet")
    (folder / "ATTRIBUTION.md").write_text(ATTRIBUTION)


def main(folder: Path = FOLDER) -> None:
    """Fetch the three data sets and build the dataset in `folder`."""
    write(compose(mnist(), fashion_mnist(), digits()), folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        print(f"{path.stat().st_size:>10,}  {path.relative_to(folder)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))

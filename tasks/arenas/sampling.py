"""Rows for a contest: drawn at random, those left out that nothing could be made of, some held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra import datasets as ds
from infra.errors import DatasetFormatError
from tasks.arenas import Source, draw
from tasks.training_rows import usable_rows

if TYPE_CHECKING:
    from datasets import Dataset

Labels = NDArray[np.int64]
HELD_OUT = 0.2
"""Share of the labelled training rows that is held out where there is no test split."""


class Sample(NamedTuple):
    """Rows as a network takes them, with their labels (-1 = none)."""

    X: NDArray[np.float32]
    y: Labels


def drawn(source: Source, splits: Sequence[str], rows: int, seed: int) -> list[Dataset]:
    """At most `rows` usable rows of these splits together, in their order, split by split."""
    parts = [ds.read_split(source.folder, split) for split in splits]
    sizes = [len(part) for part in parts]
    taken = draw(sum(sizes), rows, seed)
    starts = np.cumsum([0, *sizes])
    found = []
    for part, start, stop in zip(parts, starts[:-1], starts[1:], strict=True):
        own = taken[(taken >= start) & (taken < stop)] - start
        found.append(part.select(own if source.schema.kind == "text" else usable_rows(part, source.schema, own)))
    return found


def sample(source: Source, splits: Sequence[str], rows: int, seed: int) -> Sample:
    """The same as arrays."""
    parts = drawn(source, splits, rows, seed)
    return Sample(
        np.concatenate([ds.inputs(part, source.schema) for part in parts]),
        np.concatenate([named(part, source.schema) for part in parts]),
    )


def named(part: Dataset, schema: ds.Schema) -> Labels:
    """Labels of the classes that have a name; -1 for any other."""
    y = ds.labels(part)
    return np.where(y < schema.n_classes, y, -1)


def labelled(given: Sample, stage: str, least: int = 20) -> Sample:
    """Those with a label.

    Raises
    ------
    DatasetFormatError
        If they are too few, or of one class.
    """
    kept = given.y >= 0
    classes = np.unique(given.y[kept])
    if kept.sum() < least or len(classes) < 2:
        raise DatasetFormatError(
            f"Comparing the methods of {stage!r} needs at least {least} labelled rows of two classes, got "
            f"{int(kept.sum())} of {len(classes)}. Label some rows of the split 'train'."
        )
    return Sample(given.X[kept], given.y[kept])


def train_and_test(source: Source, rows: int, seed: int, stage: str) -> tuple[Sample, Sample, str]:
    """Labelled rows to learn from, others to be measured on, and where those come from in a sentence.

    Raises
    ------
    DatasetFormatError
        If there are not enough labelled rows.
    """
    train = labelled(sample(source, ["train"], rows, seed), stage)
    if "test" in source.schema.splits:
        test = sample(source, ["test"], rows, seed)
        known = np.isin(test.y, np.unique(train.y))
        if known.sum() >= 20:
            return train, Sample(test.X[known], test.y[known]), f"measured on {known.sum():,} rows of the split test"
    from sklearn.model_selection import train_test_split

    smallest = np.bincount(train.y)[np.unique(train.y)].min()
    first, second = train_test_split(
        np.arange(len(train.y)), test_size=HELD_OUT, random_state=seed, stratify=train.y if smallest > 1 else None
    )
    held = Sample(train.X[second], train.y[second])
    return Sample(train.X[first], train.y[first]), held, f"measured on {len(second):,} rows held out of train"

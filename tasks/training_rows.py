"""Which rows a stage trains on, and with which labels, given what earlier stages found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra import datasets as ds

if TYPE_CHECKING:
    from datasets import Dataset


def trusted_labels(train: Dataset, minimum_confidence: float) -> NDArray[np.int64]:
    """Cleaned labels: corrected where a correction is trusted, -1 for strangers, doubtful and unselected rows.

    Before label noise was looked for, the labels as given.
    """
    given = np.where(selected(train), ds.labels(train), -1)
    if "corrected_label" not in train.column_names:
        return given
    noisy = np.asarray(train["noisy"], dtype=bool)
    stranger = np.asarray(train["out_of_distribution"], dtype=bool)
    confidence = np.asarray(train["confidence"], dtype=float)
    cleaned = np.where(noisy, ds.labels(train, "corrected_label"), given)
    cleaned[stranger | (noisy & (confidence < minimum_confidence)) | ~selected(train)] = -1
    return cleaned


def strangers(train: Dataset) -> NDArray[np.bool_]:
    """Rows flagged as belonging to no class."""
    if "out_of_distribution" not in train.column_names:
        return np.zeros(len(train), dtype=bool)
    return np.asarray(train["out_of_distribution"], dtype=bool)


def selected(train: Dataset) -> NDArray[np.bool_]:
    """Rows that curation kept; all rows of data that was not curated."""
    if "selected" not in train.column_names:
        return np.ones(len(train), dtype=bool)
    return np.asarray(train["selected"], dtype=bool)


def usable_rows(split: Dataset, schema: ds.Schema, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the rows that a network could take: images that decode to the right shape, features that are finite."""
    return np.array([row for row in rows if _usable(split[int(row)], schema)], dtype=np.int64)


def _usable(row: dict[str, Any], schema: ds.Schema) -> bool:
    if schema.kind != "image":
        return all(row[column] is not None and np.isfinite(row[column]) for column in schema.features)
    pixels = ds.decode(row["image"])
    shape = schema.image_size if schema.channels == 1 else (*(schema.image_size or ()), 3)
    return pixels is not None and pixels.shape == shape

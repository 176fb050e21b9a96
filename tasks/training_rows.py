"""Which rows a stage trains on, and with which labels, given what earlier stages found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra import datasets as ds

if TYPE_CHECKING:
    from datasets import Dataset


def trusted_labels(train: Dataset, minimum_confidence: float) -> NDArray[np.int64]:
    """Cleaned labels: corrected where a correction is trusted, -1 for strangers and doubtful rows.

    Before label noise was looked for, the labels as given.
    """
    given = ds.labels(train)
    if "corrected_label" not in train.column_names:
        return given
    noisy = np.asarray(train["noisy"], dtype=bool)
    stranger = np.asarray(train["out_of_distribution"], dtype=bool)
    confidence = np.asarray(train["confidence"], dtype=float)
    cleaned = np.where(noisy, ds.labels(train, "corrected_label"), given)
    cleaned[stranger | (noisy & (confidence < minimum_confidence))] = -1
    return cleaned


def strangers(train: Dataset) -> NDArray[np.bool_]:
    """Rows flagged as belonging to no class."""
    if "out_of_distribution" not in train.column_names:
        return np.zeros(len(train), dtype=bool)
    return np.asarray(train["out_of_distribution"], dtype=bool)

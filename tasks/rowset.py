"""Rows of a dataset as clustering and selection methods take them: numbers, images, labels and domains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra import datasets as ds

Rows = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Rowset:
    """Rows as clustering methods take them.

    Attributes
    ----------
    matrix : array, (n, d)
        One row of numbers each: features, an embedding, or principal components of pixels or words.
    images : array, (n, C, H, W), or None
    labels : int array, (n,)
        What a method may see, -1 elsewhere.
    domains : int array, (n,)
        Number of each row's domain.
    """

    matrix: Rows
    images: NDArray[np.float32] | None
    labels: Labels
    domains: Labels

    def __len__(self) -> int:
        return len(self.matrix)

    def take(self, rows: Labels) -> Rowset:
        """These rows, in this order."""
        images = None if self.images is None else self.images[rows]
        return Rowset(self.matrix[rows], images, self.labels[rows], self.domains[rows])


def rowset(
    parts: Sequence[Any], schema: ds.Schema, network: Any = None, components: int = 50, known: Sequence[int] = ()
) -> Rowset:
    """The rows of these splits, as numbers.

    Parameters
    ----------
    parts : sequence of Dataset
    schema : Schema
    network : Module, optional
        Embeds the rows; without it features are standardised, and pixels and words reduced to components.
    components : int
        Principal components kept of wider rows.
    known : sequence of int
        Classes whose labels are kept.
    """
    labels = np.concatenate([ds.labels(part) for part in parts])
    domains = [
        str(name) for part in parts for name in (part["domain"] if "domain" in part.column_names else [""] * len(part))
    ]
    numbers = np.unique(domains, return_inverse=True)[1].astype(np.int64)
    labels = np.where(np.isin(labels, list(known)), labels, -1)
    if schema.kind == "text":
        words = [str(text or "") for part in parts for text in part["text"]]
        return Rowset(_of_texts(words, components), None, labels, numbers)
    inputs = np.concatenate([ds.inputs(part, schema) for part in parts])
    images = inputs if schema.kind == "image" and network is None else None
    wide = inputs.reshape(len(inputs), -1) if network is None else _embedded(network, inputs)
    return Rowset(_components(wide, components, scale=network is None and images is None), images, labels, numbers)


def _components(wide: NDArray[Any], components: int, scale: bool) -> Rows:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    matrix = np.asarray(wide, dtype=np.float64)
    if scale:
        matrix = StandardScaler().fit_transform(matrix)
    if matrix.shape[1] > components and len(matrix) > components:
        matrix = PCA(components, random_state=0).fit_transform(matrix)
    return np.ascontiguousarray(matrix)


def _of_texts(texts: list[str], components: int) -> Rows:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    words = TfidfVectorizer(sublinear_tf=True, max_features=50_000).fit_transform(texts)
    width = min(components, words.shape[1] - 1, len(texts) - 1)
    return np.asarray(normalize(TruncatedSVD(max(1, width), random_state=0).fit_transform(words)), dtype=np.float64)


def _embedded(network: Any, inputs: NDArray[np.float32]) -> Rows:
    import torch

    from models.base import predict_in_batches
    from tasks.embed import features_of

    found = predict_in_batches(features_of(network), torch.from_numpy(inputs))
    flat = found.mean(dim=(2, 3)) if found.ndim == 4 else found.flatten(1)
    return flat.double().numpy()

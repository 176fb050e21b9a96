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
    """The rows of these splits, as :class:`RowReader` makes them of themselves; labels of `known` classes are kept."""
    return RowReader(schema, network, components).fit(parts).read(parts, known)


class RowReader:
    """Makes numbers of rows: what it is fitted on says how features are scaled and which components are kept.

    Parameters
    ----------
    schema : Schema
    network : Module, optional
        Embeds the rows; without it features are standardised, and pixels and words reduced to components.
    components : int
        Principal components kept of wider rows.
    """

    def __init__(self, schema: ds.Schema, network: Any = None, components: int = 50) -> None:
        self.schema, self.network, self.components = schema, network, components

    def fit(self, parts: Sequence[Any]) -> RowReader:
        """Look at the rows of these splits."""
        wide, _ = self._wide(parts)
        self.pipeline_ = self._steps(wide)
        self.pipeline_.fit(wide)
        return self

    def read(self, parts: Sequence[Any], known: Sequence[int] = ()) -> Rowset:
        """Rows of these splits; labels of classes that are not `known` are hidden."""
        labels = np.concatenate([ds.labels(part) for part in parts])
        named = [part["domain"] if "domain" in part.column_names else [""] * len(part) for part in parts]
        domains = np.unique([str(name) for names in named for name in names], return_inverse=True)[1]
        wide, images = self._wide(parts)
        matrix = np.ascontiguousarray(self.pipeline_.transform(wide), dtype=np.float64)
        return Rowset(matrix, images, np.where(np.isin(labels, list(known)), labels, -1), domains.astype(np.int64))

    def _wide(self, parts: Sequence[Any]) -> tuple[Any, NDArray[np.float32] | None]:
        """What the components are made of, and images where they are taken as they are."""
        if self.schema.kind == "text":
            return [str(text or "") for part in parts for text in part["text"]], None
        inputs = np.concatenate([ds.inputs(part, self.schema) for part in parts])
        if self.network is not None:
            return _embedded(self.network, inputs), None
        flat = inputs.reshape(len(inputs), -1).astype(np.float64)
        return flat, inputs if self.schema.kind == "image" else None

    def _steps(self, wide: Any) -> Any:
        from sklearn.decomposition import PCA, TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import Normalizer, StandardScaler

        if self.schema.kind == "text":
            words = TfidfVectorizer(sublinear_tf=True, max_features=50_000)
            width = min(self.components, words.fit_transform(wide).shape[1] - 1, len(wide) - 1)
            return make_pipeline(words, TruncatedSVD(max(1, width), random_state=0), Normalizer())
        steps = [StandardScaler()] if self.network is None and self.schema.kind == "table" else []
        if wide.shape[1] > self.components and len(wide) > self.components:
            steps.append(PCA(self.components, random_state=0))
        return make_pipeline(*steps) if steps else make_pipeline("passthrough")


def _embedded(network: Any, inputs: NDArray[np.float32]) -> Rows:
    import torch

    from models.base import predict_in_batches
    from tasks.embed import features_of

    found = predict_in_batches(features_of(network), torch.from_numpy(inputs))
    flat = found.mean(dim=(2, 3)) if found.ndim == 4 else found.flatten(1)
    return flat.double().numpy()

"""Ways to turn a pool into a labelled set of a given size: experts, another source's labels, retrieval, generation.

B. Feuer et al., "SELECT: A Large-Scale Benchmark of Data Curation Strategies for Image Classification", NeurIPS 2024,
arXiv:2410.05057, section 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from models.base import check_embeddings
from models.selection import shares_of_classes
from models.unlearn.split import stack_inputs

KINDS = ("expert", "crowd", "embed_i2i", "embed_t2i", "synth_i2i", "synth_t2i")
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Rows with a label each.

    Parameters
    ----------
    X : array or tensor, (n, ...)
    y : array of int, (n,)
        -1 where the label is hidden.
    weights : array of float, (n,), optional
        Of each row in the loss.
    meta : dict
        How it came about; ``meta["cost"]`` counts human labels, encoder passes and generator passes.
    """

    X: Any
    y: Any
    weights: Any = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Rows."""
        return len(self.X)

    def rows(self, index: ArrayLike, **meta: Any) -> LabelledSet:
        """Some of the rows, with more said about them."""
        at = np.asarray(index, dtype=np.int64)
        weights = None if self.weights is None else np.asarray(self.weights)[at]
        X = self.X[torch.from_numpy(at)] if isinstance(self.X, Tensor) else np.asarray(self.X)[at]
        return LabelledSet(X, np.asarray(self.y)[at], weights, {**self.meta, **meta})


@runtime_checkable
class CurationStrategy(Protocol):
    """A way to a labelled set. `kind` is one of expert, crowd, embed_i2i, embed_t2i, synth_i2i and synth_t2i."""

    name: str
    kind: str

    def curate(self, gold: LabelledSet, pool: LabelledSet, size: int, random_state: int) -> LabelledSet:
        """About `size` labelled rows, made from the pool with the help of the gold set."""


def cost(human_labels: int = 0, encoder_passes: int = 0, generator_passes: int = 0) -> dict[str, int]:
    """What a set cost, in the units that are paid for."""
    return {"human_labels": human_labels, "encoder_passes": encoder_passes, "generator_passes": generator_passes}


def digests(X: Any) -> list[bytes]:
    """One digest a row, of its float32 values: equal rows have equal digests."""
    rows = stack_inputs(X).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def without_rows(data: LabelledSet, *others: Any) -> LabelledSet:
    """`data` without the rows that occur, exactly, in one of `others` (arrays of rows shaped alike).

    Take the evaluation sets out of a pool before retrieval copies them into a training set.

    Examples
    --------
    >>> pool = LabelledSet(np.array([[0.0], [1.0], [2.0]]), np.array([-1, -1, -1]))
    >>> len(without_rows(pool, np.array([[1.0]])))
    2
    """
    unwanted = set().union(*(digests(other) for other in others))
    return data.rows([row for row, digest in enumerate(digests(data.X)) if digest not in unwanted])


def _usable(data: LabelledSet | None, fallback: LabelledSet, name: str) -> LabelledSet:
    source = fallback if data is None else data
    if not len(source):
        raise ValueError(f"The source of {name!r} holds no rows. Check where it was read from.")
    return source


class ExpertSubset:
    """Rows labelled as carefully as the gold set, drawn by chance.

    Parameters
    ----------
    source : LabelledSet, optional
        None draws from the gold set itself.
    name : str
    """

    kind = "expert"

    def __init__(self, source: LabelledSet | None = None, name: str = "expert") -> None:
        self.source, self.name = source, name

    def curate(self, gold: LabelledSet, pool: LabelledSet, size: int, random_state: int) -> LabelledSet:
        """Draw `size` rows, or take all where there are fewer.

        Raises
        ------
        ValueError
            If the source is empty.
        """
        source = _usable(self.source, gold, self.name)
        drawn = np.random.default_rng(random_state).permutation(len(source))[:size]
        return source.rows(np.sort(drawn), cost=cost(human_labels=len(drawn)))


class TaxonomyMap:
    """Rows of another labelled source, its labels mapped to ours; the source's imbalance is kept.

    Parameters
    ----------
    mapping : mapping of int to int
        Label of the source -> ours; rows of other labels are left out.
    source : LabelledSet, optional
        None takes the labelled rows of the pool.
    name : str
    """

    kind = "crowd"

    def __init__(self, mapping: Mapping[int, int], source: LabelledSet | None = None, name: str = "crowd") -> None:
        self.mapping, self.source, self.name = mapping, source, name

    def curate(self, gold: LabelledSet, pool: LabelledSet, size: int, random_state: int) -> LabelledSet:
        """Draw `size` rows with the shares of the classes as they are, or take all where there are fewer.

        Raises
        ------
        ValueError
            If the source is empty, or none of its labels is mapped.
        """
        source = _usable(self.source, pool, self.name)
        given = np.asarray(source.y)
        usable = np.flatnonzero(np.isin(given, list(self.mapping)))
        if not len(usable):
            raise ValueError(
                f"No row of the source of {self.name!r} bears a label of the mapping {sorted(self.mapping)}; "
                f"its labels are {np.unique(given)[:20].tolist()}."
            )
        y = np.array([self.mapping[int(label)] for label in given[usable]], dtype=np.int64)
        values, counts = np.unique(y, return_counts=True)
        generator = np.random.default_rng(random_state)
        drawn = [
            generator.choice(usable[y == value], share, replace=False)
            for value, share in zip(values, shares_of_classes(counts, min(size, len(y))), strict=True)
        ]
        rows = np.sort(np.concatenate(drawn))
        mapped = source.rows(rows, cost=cost(human_labels=len(rows)))
        labels = np.array([self.mapping[int(label)] for label in given[rows]], dtype=np.int64)
        return LabelledSet(mapped.X, labels, mapped.weights, mapped.meta)


class EmbeddingLookup:
    """Rows of the pool that lie nearest to queries in an embedding; the label is the query's.

    Parameters
    ----------
    query : {"image", "text"}
        Every gold image asks, or every class does by its text.
    encoder : callable or PairScorer, optional
        Rows -> (n, d), or an image-text model. None compares the rows themselves.
    k : int, optional
        Most rows that one query may take; None: as many as it needs.
    dedup : bool
        Take each row of the pool, and each of several equal rows, once.
    texts : sequence of str, or array (n_classes, d), optional
        For "text": one text a class, embedded by the encoder, or the vectors themselves.
    name : str, optional
    """

    def __init__(
        self,
        query: str = "image",
        encoder: Any = None,
        k: int | None = None,
        dedup: bool = True,
        *,
        texts: Sequence[str] | ArrayLike | None = None,
        name: str | None = None,
    ) -> None:
        if query not in ("image", "text"):
            raise ValueError(f"query must be 'image' or 'text', got {query!r}.")
        if query == "text" and texts is None:
            raise ValueError("query='text' needs texts: one a class, or the vectors that stand for them.")
        if k is not None and k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self.query, self.encoder, self.k, self.dedup, self.texts = query, encoder, k, dedup, texts
        self.kind = "embed_i2i" if query == "image" else "embed_t2i"
        self.name = name or self.kind

    def curate(self, gold: LabelledSet, pool: LabelledSet, size: int, random_state: int) -> LabelledSet:
        """Look `size` rows up: first every query's nearest, then every query's second nearest, and so on.

        Where two queries want a row, the nearer one labels it. Fewer rows come where the pool or `k` has no more.

        Raises
        ------
        ValueError
            If the pool is empty, or embeddings are not finite.
        """
        source = _usable(pool, pool, self.name)
        vectors = self._embed(source.X)
        if self.query == "image":
            queries, labels = self._embed(gold.X), np.asarray(gold.y)
            passes, people = len(source) + len(gold), len(gold)
        else:
            queries = self._text_vectors()
            labels, passes, people = np.arange(len(queries)), len(source) + len(queries), 0
        rows, found = looked_up(queries, vectors, size, self.k, digests(source.X) if self.dedup else None)
        picked = source.rows(rows, cost=cost(human_labels=people, encoder_passes=passes))
        return LabelledSet(picked.X, labels[found].astype(np.int64), picked.weights, picked.meta)

    def _embed(self, X: Any) -> Tensor:
        rows = stack_inputs(X)
        if self.encoder is not None:
            encode: Callable[[Tensor], Any] = getattr(self.encoder, "image_features", self.encoder)
            with torch.inference_mode():
                rows = torch.cat([torch.as_tensor(encode(part)) for part in rows.split(1024)])
        return _unit(rows.flatten(1))

    def _text_vectors(self) -> Tensor:
        texts: Any = self.texts
        if isinstance(texts[0], str):
            if not hasattr(self.encoder, "text_features"):
                raise ValueError(
                    "texts of words need an encoder with text_features; give an image-text model, or vectors as texts."
                )
            texts = self.encoder.text_features(list(texts))
        return _unit(torch.from_numpy(check_embeddings(texts, name="texts")).float())


def _unit(vectors: Tensor) -> Tensor:
    checked = check_embeddings(vectors, name="embeddings")
    return torch.nn.functional.normalize(torch.from_numpy(checked).float(), dim=1)


def looked_up(
    queries: Tensor, vectors: Tensor, size: int, k: int | None, content: Sequence[bytes] | None
) -> tuple[Rows, Rows]:
    """Rows of `vectors` and the query each was found by, rank by rank, nearer pairs first within a rank.

    Parameters
    ----------
    queries, vectors : Tensor, (q, d) and (n, d)
        Of length 1.
    size : int
    k : int, optional
    content : sequence of bytes, optional
        Digest of each row; a row or digest is taken once. None takes rows as often as they are found.
    """
    most = min(len(vectors), k or len(vectors))
    depth = min(most, max(1, -(-2 * size // len(queries))))
    while True:
        parts = [(part @ vectors.T).topk(depth, dim=1) for part in queries.split(256)]
        values = torch.cat([part.values for part in parts]).numpy()
        nearest = torch.cat([part.indices for part in parts]).numpy()
        rows, found = _walk(values, nearest, size, content)
        if len(rows) >= size or depth == most:
            return np.array(rows, dtype=np.int64), np.array(found, dtype=np.int64)
        depth = min(most, 2 * depth)


def _walk(
    values: NDArray[np.float32], nearest: Rows, size: int, content: Sequence[bytes] | None
) -> tuple[list[int], list[int]]:
    rows: list[int] = []
    found: list[int] = []
    taken: set[Any] = set()
    for rank in range(values.shape[1]):
        for query in np.argsort(-values[:, rank], kind="stable"):
            row = int(nearest[query, rank])
            if content is not None:
                if content[row] in taken:
                    continue
                taken.add(content[row])
            rows.append(row)
            found.append(int(query))
            if len(rows) == size:
                return rows, found
    return rows, found


class GeneratorStrategy:
    """Generated rows: from gold rows (img2img), or from the class alone.

    Parameters
    ----------
    generator : callable
        (labels (n,), gold rows (n, ...) or None, seed) -> rows (n, ...).
    condition : {"image", "prompt"}
    name : str, optional

    Notes
    -----
    A set made by a generator that was trained on the gold set is no evidence independent of it.
    """

    def __init__(
        self,
        generator: Callable[[Rows, Tensor | None, int], Tensor],
        condition: str = "prompt",
        name: str | None = None,
    ) -> None:
        if condition not in ("image", "prompt"):
            raise ValueError(f"condition must be 'image' or 'prompt', got {condition!r}.")
        self.generator, self.condition = generator, condition
        self.kind = "synth_i2i" if condition == "image" else "synth_t2i"
        self.name = name or self.kind

    def curate(self, gold: LabelledSet, pool: LabelledSet, size: int, random_state: int) -> LabelledSet:
        """Generate `size` rows, from each gold row or for each class equally often.

        Raises
        ------
        ValueError
            If the gold set is empty, or the generator gives another number of rows.
        """
        source = _usable(gold, gold, self.name)
        order = np.random.default_rng(random_state).permutation(len(source))
        y = np.asarray(source.y)
        if self.condition == "image":
            chosen = np.sort(np.resize(order, size))
            labels = y[chosen]
            made = self.generator(labels, stack_inputs(source.X)[torch.from_numpy(chosen)], random_state)
        else:
            labels = np.sort(np.resize(np.unique(y), size))
            made = self.generator(labels, None, random_state)
        if len(made) != size:
            raise ValueError(f"The generator of {self.name!r} gave {len(made)} rows where {size} were asked for.")
        meta = {"cost": cost(human_labels=len(source), generator_passes=size)}
        return LabelledSet(made, labels.astype(np.int64), None, meta)

"""Pools of labelled rows to plan a budget with, and the rows that plans are judged on.

Pools are values of a column, quantiles of a numeric one, datasets, or quantiles of what a selector scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra import datasets as ds
from infra.errors import ConfigurationError, DatasetFormatError
from models.selection import shares_of_classes
from tasks.curate import TEXTS, check_selector, choose
from tasks.curate import Choice as Scoring
from tasks.rowset import RowReader, Rowset
from tasks.training_rows import trusted_labels, usable_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from models.registry import MethodCard

Floats32 = NDArray[np.float32]
Labels = NDArray[np.int64]

MOST_POOLS = 8
FEWEST_ROWS = 40
"""Labelled rows a pool needs for pilot runs."""
FEWEST_JUDGED = 20
COMPONENTS = 50
NOT_POOLS = ("id", "image", "text", "split")
QUICK: Mapping[str, int] = {"n_models": 3, "epochs": 5}
"""Parameters of selectors that train networks, for scores that only divide rows into pools."""


@dataclass(frozen=True)
class Pool:
    """Labelled rows that can be trained on.

    Attributes
    ----------
    name : str
    X : float32 array, (n, d)
    y : int array, (n,)
    """

    name: str
    X: Floats32
    y: Labels

    def __len__(self) -> int:
        return len(self.y)

    def part(self, rows: int, seed: int) -> Pool:
        """So many rows drawn at random, classes in their proportions and each with one row at least."""
        if rows >= len(self):
            return self
        rng, classes = np.random.default_rng(seed), np.unique(self.y)
        members = [np.flatnonzero(self.y == c) for c in classes]
        counts = shares_of_classes([len(own) for own in members], rows)
        taken = np.sort(np.concatenate([rng.permutation(own)[:n] for own, n in zip(members, counts, strict=True)]))
        return Pool(self.name, self.X[taken], self.y[taken])


@dataclass(frozen=True)
class Ground:
    """What a plan is made on.

    Attributes
    ----------
    pools : tuple of Pool
    X, y : array
        Rows that models are judged on.
    n_classes : int
    notes : tuple of str
        What was left out, and where the judged rows come from.
    """

    pools: tuple[Pool, ...]
    X: Floats32
    y: Labels
    n_classes: int
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> dict[str, int]:
        """Rows there are of each pool."""
        return {pool.name: len(pool) for pool in self.pools}


def read_ground(
    folders: Mapping[str, Path], column: str = "", score: str = "el2n", quantiles: int = 4, seed: int = 0
) -> Ground:
    """Read the pools of one or several datasets.

    Parameters
    ----------
    folders : mapping
        Name of each dataset -> its version's folder. Several are a pool each, judged on the first one's split `test`.
    column : str
        Of one dataset: its values are the pools, or its quantiles if it is numeric with many values. It is not
        learnt from.
    score : str
        Selector whose scores are cut into pools where neither is given.
    quantiles, seed : int

    Raises
    ------
    ConfigurationError
        For a column with several datasets, one that is not there, or too few or too many pools.
    DatasetFormatError
        For datasets that do not fit together, labels that are missing, or pools too small for pilot runs.
    """
    schemas = {name: ds.infer_schema(folder) for name, folder in folders.items()}
    schema = next(iter(schemas.values()))
    _check_alike(schemas)
    if column and len(folders) > 1:
        raise ConfigurationError("Several datasets are a pool each: leave --pools out, or name one dataset.")
    schema = schema.model_copy(update={"features": tuple(name for name in schema.features if name != column)})
    if any("train" not in each.splits for each in schemas.values()):
        raise _without_labels(folders)
    parts, labels = [], []
    for folder in folders.values():
        train = ds.read_split(folder, "train")
        y = trusted_labels(train, 0.5)
        rows = np.flatnonzero((y >= 0) & (y < schema.n_classes))
        rows = rows if schema.kind == "text" else usable_rows(train, schema, rows)
        parts.append(train.select(rows))
        labels.append(y[rows])
    if not sum(map(len, parts)) or len(np.unique(np.concatenate(labels))) < 2:
        raise _without_labels(folders)
    if column:  # before anything costs time
        names, notes = _by_column(parts[0], column, quantiles)
    reader = RowReader(schema, None, COMPONENTS).fit([part for part in parts if len(part)])
    read = reader.read(parts)
    y = np.concatenate(labels)
    if len(folders) > 1:
        names, notes = np.repeat(list(folders), [len(part) for part in parts]).astype(object), []
    elif not column:
        names, notes = _by_score(Rowset(read.matrix, read.images, y, read.domains), score, quantiles, seed)
    keep = np.array([name is not None for name in names])
    first = next(iter(folders.values()))
    X_judged, y_judged, held, said = _yardstick(first, schema, reader, np.flatnonzero(keep), seed)
    if held is not None:
        X_judged, y_judged = read.matrix[held], y[held]
        keep[held] = False
    scale = float(np.sqrt((read.matrix**2).mean())) or 1.0
    order = list(folders) if len(folders) > 1 else sorted(dict.fromkeys(names[keep]))
    pools = [
        Pool(str(name), (read.matrix[own] / scale).astype(np.float32), y[own])
        for name in order
        for own in [np.flatnonzero(keep & (names == name))]
    ]
    _check_pools(pools, column)
    known = np.isin(y_judged, np.unique(np.concatenate([pool.y for pool in pools])))
    if not known.all():
        notes.append(f"{int((~known).sum())} judged rows are of classes that no pool has, and were left out.")
    if known.sum() < FEWEST_JUDGED:
        raise DatasetFormatError(f"Only {int(known.sum())} labelled rows are left to judge on. Label more of `test`.")
    judged = (X_judged[known] / scale).astype(np.float32), y_judged[known]
    return Ground(tuple(pools), *judged, schema.n_classes, (said, *notes))


def _without_labels(names: Iterable[str]) -> DatasetFormatError:
    return DatasetFormatError(
        f"A plan needs labelled rows of two classes in the split 'train' of {', '.join(names)}. Label some rows, or "
        "look for groups with `clearwell discover`."
    )


def _check_alike(schemas: Mapping[str, ds.Schema]) -> None:
    first, *others = schemas.items()
    for name, schema in others:
        for what in ("kind", "features", "image_size", "channels", "label_names"):
            one, other = getattr(first[1], what), getattr(schema, what)
            if one != other:
                listed = what in ("features", "label_names")
                said = _difference(first[0], one, name, other) if listed else f"{one} and {other}"
                raise DatasetFormatError(
                    f"{first[0]} and {name} can not be pools of one training: their {what.replace('_', ' ')} differ, "
                    f"{said}. Import them with the same columns and classes."
                )


def _difference(name: str, one: Sequence[str], other_name: str, other: Sequence[str]) -> str:
    """The names that only one of two lists has."""
    alone = {name: [each for each in one if each not in other], other_name: [each for each in other if each not in one]}
    said = [f"only {who} has {', '.join(what[:5])}" for who, what in alone.items() if what]
    return " and ".join(said) or "in their order"


def _by_column(train: Dataset, column: str, quantiles: int) -> tuple[NDArray[Any], list[str]]:
    usable = [name for name in train.column_names if name not in NOT_POOLS]
    if column not in train.column_names or column in NOT_POOLS:
        raise ConfigurationError(
            f"There is no column {column!r} to divide rows into pools by. There are: {', '.join(usable)}."
        )
    values = np.array(train[column], dtype=object)
    missing = np.array([value is None or value != value for value in values])
    notes = [f"{int(missing.sum())} rows without a value of {column!r} are in no pool."] if missing.any() else []
    distinct = sorted({str(value) for value in values[~missing]})
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values[~missing])
    if numbers and len(distinct) > MOST_POOLS:
        names = np.full(len(values), None, dtype=object)
        names[~missing], said = _cut(values[~missing].astype(np.float64), column, quantiles)
        return names, [*notes, said]
    if len(distinct) > MOST_POOLS:
        raise ConfigurationError(
            f"The column {column!r} has {len(distinct)} values, and a plan is made for {MOST_POOLS} pools at most. "
            "Name a coarser column, or leave --pools out for quantiles of a score."
        )
    feature = train.features[column]
    shown = feature.int2str if hasattr(feature, "int2str") else "{:g}".format if numbers else str
    return np.array([None if gone else shown(value) for value, gone in zip(values, missing, strict=True)]), notes


def check_score(name: str) -> MethodCard:
    """The card of a selector that scores rows.

    Raises
    ------
    ConfigurationError
        If there is none of that name, or it scores no rows.
    """
    card = check_selector(name)
    if card.name == TEXTS:
        raise ConfigurationError(
            f"{TEXTS} scores no rows. Name another selector, such as el2n or k-centre, a column with --pools, or "
            "several datasets with --data."
        )
    return card


def _by_score(rows: Rowset, score: str, quantiles: int, seed: int) -> tuple[NDArray[Any], list[str]]:
    import inspect

    takes = inspect.signature(check_score(score).cls).parameters
    quick = {name: value for name, value in QUICK.items() if name in takes}
    found = choose(Scoring(score, rows, 1.0, seed, quick))
    names, said = _cut(found.score.astype(np.float64), score, quantiles)
    return names, [said, f"The rows that {score} would keep first have the highest scores."]


def _cut(values: NDArray[np.float64], name: str, quantiles: int) -> tuple[NDArray[Any], str]:
    """Names of equally many rows each, by rank, and what they mean; rows of equal value stay together."""
    inner = np.quantile(values, np.arange(1, quantiles) / quantiles)
    place = np.searchsorted(inner, values, side="left")
    edges = np.array([values.min(), *inner, values.max()])
    spans = [f"{name} {i + 1}/{quantiles} from {edges[i]:.3g} to {edges[i + 1]:.3g}" for i in range(quantiles)]
    return np.array([f"{name} {i + 1}/{quantiles}" for i in place], dtype=object), f"Pools: {'; '.join(spans)}."


def _yardstick(
    folder: Path, schema: ds.Schema, reader: RowReader, pooled: Labels, seed: int
) -> tuple[Any, Any, Labels | None, str]:
    """Rows judged on, or the numbers of the pooled rows to hold out for it."""
    if "test" in schema.splits:
        part = ds.read_split(folder, "test")
        y = ds.labels(part)
        rows = np.flatnonzero((y >= 0) & (y < schema.n_classes))
        rows = rows if schema.kind == "text" else usable_rows(part, schema, rows)
        if len(rows) >= FEWEST_JUDGED:
            matrix = reader.read([part.select(rows)]).matrix
            return matrix, y[rows], None, f"Judged on {len(rows):,} rows of the split test."
    held = np.sort(np.random.default_rng(seed).permutation(pooled)[: max(len(pooled) // 5, 1)])
    return None, None, held, f"Judged on {len(held):,} rows held out of all pools."


def _check_pools(pools: Sequence[Pool], column: str) -> None:
    if len(pools) < 2:
        name = pools[0].name if pools else "none"
        raise ConfigurationError(
            f"There is one pool only, {name!r}, so there is nothing to choose among. Name another column with --pools, "
            "several datasets with --data, or leave --pools out for quantiles of a score."
        )
    if len(pools) > MOST_POOLS:
        raise ConfigurationError(f"A plan is made for {MOST_POOLS} pools at most, got {len(pools)}. Name fewer.")
    small = [f"{pool.name} ({len(pool)})" for pool in pools if len(pool) < FEWEST_ROWS]
    if small:
        merge = f"Merge values of the column {column!r}, or label more rows." if column else "Label more rows."
        raise DatasetFormatError(
            f"Pools with fewer labelled rows than a pilot run needs ({FEWEST_ROWS}): {', '.join(small)}. {merge}"
        )

"""Datasets as Parquet shards, read and written through Hugging Face ``datasets``.

A version's folder holds one folder a split; a split's shards share their columns:

    id (str) · image | text | feature columns · label (ClassLabel, -1 = unlabelled) · domain (str) · split · source

Extra columns pass through every stage untouched.
"""

from __future__ import annotations

import io
import logging
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Value
from numpy.typing import NDArray
from PIL import Image as Pillow
from pydantic import BaseModel, ConfigDict

from infra.errors import DatasetFormatError

datasets.disable_progress_bars()
logging.getLogger("datasets").setLevel(logging.ERROR)

RESERVED = ("id", "image", "text", "label", "domain", "split", "source")
SCORES = ("prediction", "prediction_confidence", "unknown")
CLUSTERS = ("cluster", "cluster_confidence")
SELECTION = ("selected", "sample_weight", "selection_score")
FLAGS = ("noisy", "out_of_distribution", "corrected_label", "confidence", *SCORES, *CLUSTERS, *SELECTION)
SHARD_ROWS = 20_000
SHARD_BYTES = 64_000_000
GROUP_BYTES = 8_000_000
BATCH_BYTES = 32_000_000
"""What one part of a streamed split holds, encoded or decoded."""
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # no format whose reader starts a program
LARGEST_IMAGE = 50_000_000
"""Pixels an image may declare: a few bytes can ask for as many as they like."""
Kind = Literal["image", "text", "table"]


class Schema(BaseModel):
    """What the rows of a dataset look like.

    Attributes
    ----------
    kind : {"image", "text", "table"}
    label_names : tuple of str
    image_size : tuple of int or None
        (height, width) of most images.
    channels : int
        1 (grey) or 3.
    features : tuple of str
        Feature columns of a table.
    splits : tuple of str
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    label_names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    channels: int = 1
    features: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    @property
    def n_classes(self) -> int:
        """Number of named labels."""
        return len(self.label_names)


def splits_of(folder: Path) -> list[str]:
    """Names of the splits in a version's folder."""
    return sorted({path.parent.name for path in folder.glob("*/*.parquet")})


def read_split(folder: Path, split: str) -> Dataset:
    """One split, memory-mapped; images stay encoded bytes.

    Raises
    ------
    DatasetFormatError
        If the split is not there or its shards can not be read.
    """
    shards = sorted((folder / split).glob("*.parquet"))
    if not shards:
        raise DatasetFormatError(
            f"The dataset has no split {split!r}; it has {', '.join(splits_of(folder)) or 'none'}.", split=split
        )
    try:
        features = Features.from_arrow_schema(pq.read_schema(shards[0]))
        if not any(pq.read_metadata(shard).num_rows for shard in shards):
            return Dataset.from_dict({name: [] for name in features}, features=features)
        data = Dataset.from_parquet([str(shard) for shard in shards], features=features)
    except Exception as error:
        raise _unreadable(split, folder, error) from error
    assert isinstance(data, Dataset)
    return data.cast_column("image", Image(decode=False)) if "image" in data.column_names else data


class Split:
    """One split, read part by part and never held whole.

    Nothing is mapped into memory or copied beside the shards, as :func:`read_split` does it for random access.

    Parameters
    ----------
    folder : Path
        Of the version.
    name : str
    shard : int, optional
        Number of one shard, to read no other.

    Raises
    ------
    DatasetFormatError
        If the split is not there or its shards can not be read.
    """

    def __init__(self, folder: Path, name: str, shard: int | None = None) -> None:
        self.folder, self.name = folder, name
        found = sorted((folder / name).glob("*.parquet"))
        self.shards = found if shard is None else found[shard : shard + 1]
        if not self.shards:
            raise DatasetFormatError(
                f"The dataset has no split {name!r}; it has {', '.join(splits_of(folder)) or 'none'}.", split=name
            )
        try:
            self.features = Features.from_arrow_schema(pq.read_schema(self.shards[0]))
        except Exception as error:
            raise _unreadable(name, folder, error) from error
        if "image" in self.features:
            self.features["image"] = Image(decode=False)
        self.column_names = list(self.features)

    @cached_property
    def _rows(self) -> int:
        return sum(rows_of(shard) for shard in self.shards)

    def __len__(self) -> int:
        return self._rows

    def parts(self, columns: Sequence[str] | None = None, row_bytes: int = 0) -> Iterator[pa.Table]:
        """The rows in order, a part at a time.

        Parameters
        ----------
        columns : sequence of str, optional
        row_bytes : int
            What a row becomes (a decoded image), if more than it is in the shard.
        """
        names = list(columns) if columns is not None else self.column_names
        chosen = Features({name: self.features[name] for name in names}).arrow_schema
        for shard in self.shards:
            try:
                with pq.ParquetFile(shard) as file:
                    metadata = file.metadata
                    stored = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
                    each = max(row_bytes, stored // max(metadata.num_rows, 1), 1)
                    size = max(1, min(BATCH_BYTES // each, SHARD_ROWS))
                    for batch in file.iter_batches(batch_size=size, columns=names):
                        yield pa.Table.from_batches([batch]).select(names).cast(chosen)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(self.name, self.folder, error) from error

    def column(self, name: str) -> list[Any]:
        """All values of a column that is no image; all None if there is no such column."""
        if name not in self.features:
            return [None] * len(self)
        return [value for part in self.parts([name]) for value in part[name].to_pylist()]

    def take(self, rows: Sequence[int] | NDArray[np.int64], columns: Sequence[str] | None = None) -> Dataset:
        """These rows, in this order, read from the row groups that hold them."""
        names = list(columns) if columns is not None else self.column_names
        features = Features({name: self.features[name] for name in names})
        wanted = np.asarray(rows, dtype=np.int64)
        order = np.argsort(wanted, kind="stable")
        found, start = [features.arrow_schema.empty_table()], 0
        for shard in self.shards:
            with pq.ParquetFile(shard) as file:
                for group in range(file.metadata.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    low, high = np.searchsorted(wanted[order], [start, stop])
                    if high > low:
                        table = file.read_row_group(group, columns=names).select(names).cast(features.arrow_schema)
                        found.append(table.take(pa.array(wanted[order][low:high] - start)))
                    start = stop
        back = np.empty(len(wanted), dtype=np.int64)
        back[order] = np.arange(len(wanted))
        return as_dataset(pa.concat_tables(found).take(pa.array(back)), features)

    def write(self, folder: Path, keep: NDArray[np.bool_], added: Mapping[str, pa.Array] | None = None) -> int:
        """Write the rows where `keep` is true to the split of the same name below `folder`; returns how many.

        Columns `added` have a value for each of these rows.
        """
        further = dict(added or {})
        features = Features(
            self.features | Features.from_arrow_schema(pa.schema({name: cells.type for name, cells in further.items()}))
        )
        target = folder / self.name
        target.mkdir(parents=True, exist_ok=True)
        held: list[pa.Table] = []
        start = number = written = 0

        def flush(whole: bool) -> None:
            nonlocal held, number
            table = pa.concat_tables(held) if held else features.arrow_schema.empty_table()
            while len(table) >= SHARD_ROWS or table.nbytes > SHARD_BYTES or (whole and (len(table) or not number)):
                shard = table.slice(0, SHARD_ROWS)
                group = max(1, min(len(shard), GROUP_BYTES * len(shard) // max(shard.nbytes, 1)))
                pq.write_table(
                    shard.cast(features.arrow_schema), target / f"part-{number:05d}.parquet", row_group_size=group
                )
                table, number = table.slice(SHARD_ROWS), number + 1
            held = [table] if len(table) else []

        for part in self.parts():
            chosen = keep[start : start + len(part)]
            start += len(part)
            rows = part if chosen.all() else part.filter(pa.array(chosen))
            for name, cells in further.items():
                rows = rows.append_column(name, cells.slice(written, len(rows)))
            written += len(rows)
            held.append(rows)
            if sum(map(len, held)) >= SHARD_ROWS or sum(table.nbytes for table in held) > SHARD_BYTES:
                flush(False)
        flush(True)
        return written


def as_dataset(table: pa.Table, features: Features) -> Dataset:
    """A table in memory as a dataset with those of the features that it has."""
    own = Features({name: features[name] for name in table.column_names})
    return Dataset(table, info=datasets.DatasetInfo(features=own))


def features_with(features: Features, kept: Sequence[str], added: Mapping[str, str]) -> Features:
    """Some of the features, and further columns of the types named."""
    return Features({name: features[name] for name in kept} | {name: Value(kind) for name, kind in added.items()})


def decoded_bytes(schema: Schema) -> int:
    """Of one image as the largest of what is made of it: floats, three times over. 0 for other rows."""
    height, width = schema.image_size or (0, 0)
    return height * width * schema.channels * 12


def _unreadable(split: str, folder: Path, error: Exception) -> DatasetFormatError:
    return DatasetFormatError(
        f"The shards of {split!r} in {folder} can not be read: {str(error.__cause__ or error).strip().rstrip('.')}. "
        "If they were whole once, bring them back with `clearwell data restore` or `clearwell data pull`.",
        split=split,
    )


def write_split(data: Dataset, folder: Path, split: str, shard_rows: int = SHARD_ROWS) -> int:
    """Write a split as shards of at most `shard_rows` rows; returns the number of rows."""
    target = folder / split
    target.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, max(len(data), 1), shard_rows)):
        shard = data.select(range(start, min(start + shard_rows, len(data))))
        shard.to_parquet(str(target / f"part-{number:05d}.parquet"))
    return len(data)


def copy_splits(source: Path, target: Path, splits: Iterable[str]) -> int:
    """Copy whole splits unchanged, byte for byte; returns the number of rows."""
    rows = 0
    for split in splits:
        shutil.copytree(source / split, target / split)
        rows += sum(rows_of(shard) for shard in (source / split).glob("*.parquet"))
    return rows


def count_rows(folder: Path) -> int:
    """Rows of all splits, from the footers alone."""
    return sum(rows_of(shard) for shard in folder.glob("*/*.parquet"))


def rows_of(shard: Path) -> int:
    """Rows of one shard, from its footer.

    Raises
    ------
    DatasetFormatError
        If it has none that can be read.
    """
    try:
        return int(pq.read_metadata(shard).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise DatasetFormatError(
            f"The shard {shard} can not be read: {str(error).strip().rstrip('.')}. If it was whole once, bring it "
            "back with `clearwell data pull`.",
            shard=shard,
        ) from error


def with_columns(data: Dataset, columns: dict[str, Any]) -> Dataset:
    """The dataset with these columns added or replaced."""
    for name, values in columns.items():
        if name in data.column_names:
            data = data.remove_columns(name)
        data = data.add_column(name, values)
    return data


def infer_schema(folder: Path) -> Schema:
    """Schema of a version from its columns and, for images, from what most of them look like."""
    splits = splits_of(folder)
    if not splits:
        raise DatasetFormatError(f"{folder} holds no dataset: expected <split>/*.parquet.", folder=folder)
    reference = "train" if "train" in splits else splits[0]
    data = Split(folder, reference)
    names = tuple(data.features["label"].names) if isinstance(data.features.get("label"), ClassLabel) else ()
    if "image" in data.column_names:
        first = next(data.parts(["image"]), None)
        cells = [] if first is None else first["image"].slice(0, 200).to_pylist()
        shapes = pd.Series([_shape(cell) for cell in cells], dtype=object).dropna()
        if shapes.empty:
            raise DatasetFormatError(f"None of the first images of {reference!r} can be decoded.", split=reference)
        height, width, channels = shapes.mode()[0]
        return Schema(
            kind="image", label_names=names, image_size=(height, width), channels=channels, splits=tuple(splits)
        )
    if "text" in data.column_names:
        return Schema(kind="text", label_names=names, splits=tuple(splits))
    numeric = [c for c in data.column_names if c not in RESERVED + FLAGS and _is_number(data.features[c])]
    return Schema(kind="table", label_names=names, features=tuple(numeric), splits=tuple(splits))


def _is_number(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "float", "bool"))


def _shape(cell: dict[str, Any]) -> tuple[int, int, int] | None:
    image = decode(cell)
    return None if image is None else (image.shape[0], image.shape[1], 1 if image.ndim == 2 else 3)


_UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, OverflowError)


def decode(cell: dict[str, Any] | None) -> NDArray[np.uint8] | None:
    """Pixels (H, W) or (H, W, 3) of an encoded image cell, None when they can not be decoded whole."""
    if not cell or not cell.get("bytes"):
        return None
    try:
        with Pillow.open(io.BytesIO(cell["bytes"]), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > LARGEST_IMAGE:
                return None
            image.load()
            return np.asarray(image.convert("L" if image.mode in ("1", "L", "I;16", "I") else "RGB"))
    except (*_UNDECODABLE, Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        return None


def encode(image: NDArray[np.uint8]) -> dict[str, Any]:
    """An image cell (PNG bytes) from pixels (H, W) or (H, W, 3)."""
    stream = io.BytesIO()
    Pillow.fromarray(image).save(stream, format="PNG", optimize=True)
    return {"bytes": stream.getvalue(), "path": None}


def inputs(data: Dataset, schema: Schema) -> NDArray[np.float32]:
    """Model inputs of all rows: images float32 (n, C, H, W) in [0, 1], or table features (n, d).

    Raises
    ------
    DatasetFormatError
        If an image can not be decoded or has another size; validation keeps such rows out.
    """
    if schema.kind == "table":
        frame = data.select_columns(list(schema.features)).to_pandas()
        return np.ascontiguousarray(frame.to_numpy(dtype=np.float32))
    if schema.kind == "text":
        raise DatasetFormatError(
            "Text rows have no numeric inputs of their own. Add embedding columns, then import the table."
        )
    height, width = schema.image_size or (0, 0)
    shape = (height, width) if schema.channels == 1 else (height, width, 3)
    images = np.empty((len(data), *shape), dtype=np.uint8)
    for row, cell in enumerate(data["image"]):
        pixels = decode(cell)
        if pixels is None or pixels.shape != shape:
            got = "bytes that can not be decoded" if pixels is None else f"an image shaped {pixels.shape}"
            raise DatasetFormatError(f"Row {row} (id {data[row]['id']!r}) holds {got}, expected {shape}.", row=row)
        images[row] = pixels
    return as_inputs(images)


def as_inputs(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (n, H, W) or (n, H, W, 3) as a model takes them: float32 (n, C, H, W) in [0, 1]."""
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return np.divide(images, 255, dtype=np.float32)


def labels(data: Dataset | Split, column: str = "label") -> NDArray[np.int64]:
    """A label column as int64 (n,), missing values as -1."""
    if isinstance(data, Split):
        return np.array([-1 if v is None else int(v) for v in data.column(column)], dtype=np.int64)
    values = data.with_format("arrow")[column] if column in data.column_names else [None] * len(data)
    return np.array([-1 if v is None else int(v) for v in _plain(values)], dtype=np.int64)


def ids(data: Dataset | Split) -> list[str | None]:
    """The id column."""
    return data.column("id") if isinstance(data, Split) else list(_plain(data.with_format("arrow")["id"]))


def _plain(values: Any) -> list[Any]:
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)

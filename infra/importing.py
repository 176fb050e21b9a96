"""A user's own data as a dataset version: Parquet, CSV, or folders of images named after their class.

Columns of Parquet and CSV (only one of the first three groups is needed, everything else has a default):

    image           PNG or JPEG bytes (Parquet), or a path relative to the file (CSV)
    text            a string
    other columns   numeric features of a table
    label           a class name or number; empty or -1 = unlabelled
    id              unique text; made from the row's content when absent
    split           train, unlabelled, test or target; absent: one labelled row in five becomes test
    domain, source  text

Nothing outside the path is read: links that lead out of it, and image paths that do, are refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Value
from rich.progress import track

from infra import datasets as ds
from infra.errors import ConfigurationError, DatasetFormatError, DatasetNotFoundError
from infra.files import draft_folder
from infra.references import DatasetRef
from infra.versions import DataVersions

SPLITS = ("train", "unlabelled", "test", "target")
IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp")
TABLE_FILES = (".parquet", ".csv")
TEST_SHARE = 5  # one labelled row in five
MOST_CLASSES = 10_000
MISSING_NUMBERS = ["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "#N/A"]
LONGEST_NAME = 100  # stages make names of their own from it, such as NAME-quarantine
FILES, CLASSES = "files", "classes"  # what a frame's attrs say: its files with their rows, its class names in order
Place = tuple[str, int | None]


def import_path(versions: DataVersions, path: Path, name: str | None = None) -> DatasetRef:
    """Make a version of the data at `path`.

    Raises
    ------
    ConfigurationError
        If `name` is too long.
    DatasetNotFoundError
        If nothing is there.
    DatasetFormatError
        If it is none of the formats above, or columns can not be used; rows are named.
    """
    if name is not None and len(name) > LONGEST_NAME:
        raise ConfigurationError(f"A dataset's name has at most {LONGEST_NAME} letters, got {len(name)}.")
    frame, label_names = _prepared(path)
    chosen = name or re.sub(r"[^a-z0-9._-]+", "-", path.resolve().stem.lower())[:LONGEST_NAME].strip("-._") or "data"
    return versions.add(chosen, lambda folder: _write(frame, label_names, folder), source=_text(path.name))


@contextmanager
def unpacked(path: Path, home: Path) -> Iterator[tuple[Path, dict[str, list[Place]]]]:
    """The data at `path` as shards in a passing folder below `home`: to be looked at, without making a version.

    Yields
    ------
    folder : Path
    places : dict of str to list of (str, int or None)
        For every row of a split, the user's file and the row in it, from 0 and without the header; for images of
        a folder the file alone.
    """
    frame, label_names = _prepared(path)
    with draft_folder(home) as draft:
        _write(frame, label_names, draft)
        yield (
            draft,
            {
                str(split): [_place(frame, row) for row in part.index]
                for split, part in frame.groupby("split", sort=True)
            },
        )


def _prepared(path: Path) -> tuple[pd.DataFrame, list[str]]:
    frame = read_path(path)
    label_names = _number_labels(frame)
    _require_content(frame, path)
    return frame, label_names


def _write(frame: pd.DataFrame, label_names: list[str], folder: Path) -> int:
    rows = 0
    for split, part in frame.groupby("split", sort=True):
        rows += ds.write_split(_dataset(part.reset_index(drop=True), label_names), folder, str(split))
    return rows


def _place(frame: pd.DataFrame, row: int) -> Place:
    """The file a row came from, and its row there."""
    for name, rows in frame.attrs.get(FILES, ()):
        if row < rows:
            return name, int(row)
        row -= rows
    return str(frame["id"][row]), None


def _where(frame: pd.DataFrame, row: int) -> str:
    """A row as messages name it."""
    name, number = _place(frame, row)
    inside = f" of {name}" if len(frame.attrs.get(FILES, ())) > 1 else ""
    return f"row {number}{inside} (id {frame['id'][row]})" if number is not None else name


def read_path(path: Path) -> pd.DataFrame:
    """The rows at `path` with every reserved column filled in."""
    if not path.exists():
        raise DatasetNotFoundError(f"There is nothing at {path}. Name a Parquet or CSV file, or a folder.", path=path)
    if path.is_file():
        frame = _read_file(path, path.parent)
        frame.attrs[FILES] = [(path.name, len(frame))]
    else:
        tables = _files_below(path, TABLE_FILES)
        frame = _joined([_read_file(p, path) for p in tables], tables, path) if tables else _read_folders(path)
    if frame.empty:
        raise DatasetFormatError(f"{path} holds no rows.", path=path)
    return _complete(frame, path)


def _files_below(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """Files with these endings, in order; none that a link fetches from elsewhere."""
    home = path.resolve()
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings and p.is_file())
    for file in found:
        if not file.resolve().is_relative_to(home):
            raise DatasetFormatError(
                f"{file} is a link to {file.resolve()}, outside {path}. Copy the file there if it belongs to the data, "
                "or remove the link.",
                path=file,
            )
    return found


def _joined(frames: list[pd.DataFrame], files: list[Path], path: Path) -> pd.DataFrame:
    names = list(dict.fromkeys(name for frame in frames for name in frame.attrs.get(CLASSES, ())))
    for frame in frames:
        frame.attrs = {}
    whole = pd.concat(frames, ignore_index=True)
    rows = [(_text(file.relative_to(path).as_posix()), len(frame)) for file, frame in zip(files, frames, strict=True)]
    whole.attrs = {FILES: rows, CLASSES: names}
    return whole


def _read_file(path: Path, home: Path) -> pd.DataFrame:
    try:
        frame = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except Exception as error:
        raise DatasetFormatError(f"{path} can not be read as {path.suffix[1:] or 'a table'}: {error}") from error
    if path.parent.name in SPLITS and "split" not in frame:
        frame["split"] = path.parent.name
    if "image" in frame:
        cells = [_image_bytes(cell, path, home, row) for row, cell in enumerate(frame["image"])]
        frame["image"] = pd.Series(cells, dtype=object)
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    """A CSV file, in which `None` and `null` can be words of a text, an id or the name of a class."""
    header = pd.read_csv(path, nrows=1, header=None, dtype="string").iloc[0].tolist()
    twice = (
        sorted({str(column) for column in header if header.count(column) > 1}) if len(set(header)) < len(header) else []
    )
    if twice:
        raise ValueError(f"its header names {', '.join(twice[:5])} twice")
    missing = {column: MISSING_NUMBERS for column in header}
    missing |= {column: [""] for column in ds.RESERVED if column in missing}
    missing |= {"label": ["", "NA", "NaN", "nan"]} if "label" in missing else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would be cut
        return pd.read_csv(path, dtype={"id": "string"}, keep_default_na=False, na_values=missing, index_col=False)


def _read_parquet(path: Path) -> pd.DataFrame:
    """A Parquet file; class numbers become the names that the file gives them, as in the shards of a version."""
    footer = pq.read_metadata(path)
    least, free = 8 * footer.num_rows * footer.num_columns, psutil.virtual_memory().available
    if least > free:
        raise ValueError(
            f"its {footer.num_rows} rows need at least {least / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free. "
            "Import it in parts"
        )
    frame = pd.read_parquet(path)
    frame.attrs = {}
    label = Features.from_arrow_schema(footer.schema.to_arrow_schema()).get("label")
    if isinstance(label, ClassLabel):
        names = dict(enumerate(label.names)) | {-1: None}
        strange = frame["label"][frame["label"].notna() & ~frame["label"].isin(names)]
        if len(strange):
            row, number = strange.index[0], strange.iloc[0]
            raise ValueError(f"row {row} has the label {number}, and the file names {len(label.names)} classes")
        frame["label"] = frame["label"].map(names)
        frame.attrs[CLASSES] = label.names
    return frame


def _image_bytes(cell: Any, table: Path, home: Path, row: int) -> bytes | None:
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        file = table.parent / cell
        if not _inside(file, home):
            raise DatasetFormatError(
                f"Row {row} of {table} names the image {cell[:80]!r}, which lies outside {home}. Only files below "
                "it are read: put the table and its images into one folder.",
                path=table,
                rows=[row],
            )
        return _read_image(file)
    return cell if isinstance(cell, bytes) else None


def _inside(file: Path, home: Path) -> bool:
    try:
        return file.resolve().is_relative_to(home.resolve())
    except (OSError, ValueError, RuntimeError):  # no file has such a name, so nothing will be read
        return True


def _read_folders(path: Path) -> pd.DataFrame:
    rows = []
    files = _files_below(path, IMAGE_FILES)
    if not files:
        raise DatasetFormatError(
            f"{path} holds neither {' nor '.join(TABLE_FILES)} files nor images ({', '.join(IMAGE_FILES)}). "
            "Expected: one folder a class with images inside, optionally below train/, test/, target/ or unlabelled/.",
            path=path,
        )
    for file in _progress(files, f"reading {path.name}"):
        parts = file.relative_to(path).parts
        split = parts[0] if parts[0] in SPLITS else None
        inner = parts[1:] if split else parts
        labelled = len(inner) > 1 and split not in ("unlabelled", "target")
        row = {"image": _read_image(file), "label": _text(inner[0]) if labelled else None, "id": _text("/".join(parts))}
        rows.append(row | ({"split": split} if split else {}))
    return pd.DataFrame(rows)


def _read_image(file: Path) -> bytes | None:
    try:
        return file.read_bytes() if file.is_file() else None
    except (OSError, ValueError):
        return None  # like any image that is not there: validation names the row


def _text(name: str) -> str:
    """A file's name as text that every product can write, whatever bytes the file system holds."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _progress(items: list[Any], text: str) -> Iterable[Any]:
    import sys

    return track(items, text) if sys.stderr.isatty() and len(items) > 500 else items


def _complete(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    frame = frame.copy()
    if "id" not in frame:
        frame["id"] = list(_content_ids(frame))
    frame["id"] = frame["id"].convert_dtypes().astype("string")  # whole numbers beside missing ones stay whole
    if "label" not in frame:
        frame["label"] = None
    for column, default in (("domain", "default"), ("source", _text(path.name))):
        frame[column] = frame[column].astype("string").fillna(default) if column in frame else default
    unlabelled = frame["label"].isna() | frame["label"].isin([-1, "-1", ""])
    automatic = pd.Series("train", index=frame.index)
    automatic[[_fraction(str(identity)) < 1 / TEST_SHARE for identity in frame["id"]]] = "test"
    automatic[unlabelled] = "unlabelled"
    frame["split"] = frame["split"].fillna(automatic) if "split" in frame else automatic
    strange = frame.index[~frame["split"].isin(SPLITS)]
    if len(strange):
        raise DatasetFormatError(
            f"The column 'split' holds {frame['split'][strange[0]]!r} in {_where(frame, strange[0])} and "
            f"{len(strange) - 1} more; it may be {', '.join(SPLITS)}.",
            rows=list(strange),
        )
    return frame


def _fraction(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8


def _content_ids(frame: pd.DataFrame) -> Iterator[str]:
    seen: dict[str, int] = {}
    for row in frame.itertuples(index=False):
        digest = hashlib.sha256(repr(tuple(row)).encode()).hexdigest()[:16]
        seen[digest] = seen.get(digest, 0) + 1
        yield digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def _number_labels(frame: pd.DataFrame) -> list[str]:
    """Replace labels by numbers in place and return the class names; unlabelled rows become -1."""
    given = frame["label"].where(~frame["label"].isin([-1, "-1", ""]))
    known = frame.attrs.get(CLASSES, [])
    numeric = pd.to_numeric(given, errors="coerce").replace([np.inf, -np.inf], np.nan).astype("Float64")
    if not known and (numeric.notna() == given.notna()).all() and (numeric.dropna() == numeric.dropna().round()).all():
        impossible = numeric.index[((numeric < 0) | (numeric >= MOST_CLASSES)).fillna(False)]
        if len(impossible):
            row = impossible[0]
            raise DatasetFormatError(
                f"The label of {_where(frame, row)} is {numeric[row]:g}. Numbers as labels count classes "
                f"from 0 and stay below {MOST_CLASSES}, -1 means unlabelled; give names otherwise.",
                rows=list(impossible),
            )
        names = [str(c) for c in range(int(numeric.max()) + 1)] if numeric.notna().any() else []
        frame["label"] = numeric.fillna(-1).astype(int)
        return names
    names = list(dict.fromkeys([*known, *sorted(str(v) for v in given.dropna().unique())]))
    codes = {name: code for code, name in enumerate(names)}
    frame["label"] = [-1 if pd.isna(value) else codes[str(value)] for value in given]
    return names


def _require_content(frame: pd.DataFrame, path: Path) -> None:
    if "image" in frame or "text" in frame:
        return
    features = [column for column in frame if column not in ds.RESERVED]
    if not features:
        raise DatasetFormatError(f"{path} has no column image or text, and no feature columns.", path=path)
    for column in features:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        bad = frame.index[numbers.isna() & frame[column].notna()]
        if len(bad):
            where = ", ".join(f"{_where(frame, row)}: {frame[column][row]!r}" for row in bad[:3])
            raise DatasetFormatError(
                f"The feature column {column!r} must be numeric; {len(bad)} rows are not: {where}. "
                "Encode it as numbers, rename it to 'text', or leave it out.",
                column=column,
                rows=list(bad),
            )
        frame[column] = numbers.astype("float32")


def _dataset(frame: pd.DataFrame, names: list[str]) -> Dataset:
    features: dict[str, Any] = {"id": Value("string")}
    if "image" in frame:
        images = [None if cell is None else {"bytes": cell, "path": None} for cell in frame["image"]]
        frame = frame.assign(image=pd.Series(images, dtype=object))
        features["image"] = Image(decode=False)
    elif "text" in frame:
        features["text"] = Value("string")
    features["label"] = ClassLabel(names=names) if names else Value("int64")
    features |= {column: Value("string") for column in ("domain", "split", "source")}
    for column in frame:
        if column not in features:
            dtype = str(frame[column].dtype)
            features[str(column)] = Value(dtype if dtype.startswith(("int", "uint", "float", "bool")) else "string")
    columns = {
        name: [None if pd.api.types.is_scalar(value) and pd.isna(value) else value for value in frame[name].tolist()]
        for name in features
    }
    for name, feature in features.items():
        if isinstance(feature, Value) and feature.dtype == "string":
            columns[name] = [None if value is None else str(value) for value in columns[name]]
    return Dataset.from_dict(columns, features=Features(features))

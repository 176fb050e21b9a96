"""One pass over a split, decoding each image once: what expectations and duplicates ask of its rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from infra import datasets as ds

if TYPE_CHECKING:
    from models.validate.near_duplicates import Signatures

IMAGE_FACTS = ("decodable", "height", "width", "mean", "contrast")


@dataclass
class RowFacts:
    """What is kept of the rows of one split; of an image a few numbers, never its pixels.

    Attributes
    ----------
    rows : DataFrame
        As Great Expectations checks it: row, id, label, domain, and what the kind of data adds.
    content : DataFrame
        What makes two rows the same: a digest of the pixels, the text, or the features.
    signatures : Signatures or None
        Of the images of a split in which near duplicates are looked for.
    """

    rows: pd.DataFrame
    content: pd.DataFrame
    signatures: Signatures | None = None

    def __len__(self) -> int:
        return len(self.rows)


def gather(split: ds.Split, schema: ds.Schema, near_duplicates: bool = False) -> RowFacts:
    """Read a split part by part."""
    from infra.expectations import row_facts

    columns = {"image": ["image"], "text": ["text"], "table": list(schema.features)}[schema.kind]
    kept = [name for name in ("id", "label", "domain") if name in split.column_names]
    signatures = _signatures(len(split), schema) if near_duplicates and schema.kind == "image" else None
    facts, contents, start = [], [], 0
    for part in split.parts([*kept, *columns], row_bytes=ds.decoded_bytes(schema)):
        if schema.kind == "image":
            extra, content = _of_images(part["image"].to_pylist(), start, schema, signatures)
        else:
            content = part.select(columns).to_pandas()
            extra = {name: content[name] for name in columns}
            if schema.kind == "table":  # an infinite number is as little use as a missing one
                extra = {name: content[name].replace([np.inf, -np.inf], np.nan) for name in columns}
        known = {name: part[name].to_pylist() if name in kept else [None] * len(part) for name in ("id", "domain")}
        given = part["label"].to_pylist() if "label" in kept else [None] * len(part)
        labels = np.array([-1 if label is None else int(label) for label in given], dtype=np.int64)
        facts.append(row_facts(known["id"], labels, known["domain"], schema.n_classes, extra))
        contents.append(content)
        start += len(part)
    if not facts:
        empty: dict[str, list[Any]] = {name: [] for name in (IMAGE_FACTS if schema.kind == "image" else columns)}
        facts = [row_facts([], np.zeros(0, dtype=np.int64), [], schema.n_classes, empty)]
        contents = [pd.DataFrame(columns=["content"] if schema.kind == "image" else columns)]
    rows = pd.concat(facts, ignore_index=True).assign(row=np.arange(start))
    return RowFacts(rows, pd.concat(contents, ignore_index=True), signatures)


def _signatures(n: int, schema: ds.Schema) -> Signatures:
    from models.validate.near_duplicates import Signatures

    height, width = schema.image_size or (0, 0)
    return Signatures(n, (schema.channels, height, width))


def _of_images(
    cells: list[Any], start: int, schema: ds.Schema, signatures: Signatures | None
) -> tuple[dict[str, list[Any]], pd.DataFrame]:
    found, digests, usable, pixels = [], [], [], []
    shape = schema.image_size if schema.channels == 1 else (*(schema.image_size or ()), 3)
    for row, cell in enumerate(cells, start):
        image = ds.decode(cell)
        found.append(_image_facts(image))
        digests.append(_pixel_digest(image, row))
        if signatures is not None and image is not None and image.shape == shape:
            usable.append(row)
            pixels.append(image)
    if signatures is not None and usable:
        signatures.put(np.array(usable), ds.as_inputs(np.stack(pixels)))
    extra = {name: [facts[place] for facts in found] for place, name in enumerate(IMAGE_FACTS)}
    return extra, pd.DataFrame({"content": digests})


def _image_facts(image: Any) -> tuple[bool, int | None, int | None, float | None, float | None]:
    if image is None:
        return False, None, None, None, None
    return True, image.shape[0], image.shape[1], float(image.mean()), float(image.std())


def _pixel_digest(image: Any, row: int) -> str:
    if image is None:
        return f"undecodable row {row}"
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()

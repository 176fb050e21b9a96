"""New data that land in a watched place, and joining them to what a model was made from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infra import datasets as ds
from infra.arrivals import Arrival, Place
from infra.errors import DataError
from infra.files import draft_folder
from infra.importing import import_path, read_path
from infra.project import Project
from infra.references import DatasetRef, Reference
from models.drift import MINIMUM_ROWS
from tasks.stage import stage_task

if TYPE_CHECKING:
    from datasets import Dataset


class Batch(Reference):
    """What landed since the last look.

    Attributes
    ----------
    data : DatasetRef or None
        None while too few rows are there.
    files : tuple of Arrival
    rows : int
    """

    data: DatasetRef | None = None
    files: tuple[Arrival, ...] = ()
    rows: int = 0


@stage_task("collect")
def collect(where: str, name: str, minimum_rows: int) -> Batch:
    """Make one dataset version of all files that landed at `where` and were not looked at before.

    A file that is no data is noted in the ledger with the reason, once. Fewer rows than `minimum_rows` wait for more.
    """
    project = Project()
    place = Place(project, where)
    with draft_folder(project.settings.state) as draft:
        good: list[Arrival] = []
        rows = 0
        found = place.take(draft / name)
        for arrival, path in zip(found, sorted((draft / name).iterdir()), strict=True):
            try:
                rows += len(read_path(path))
                good.append(arrival)
            except DataError as error:
                path.unlink()
                place.note([arrival], refused=re.sub(re.escape(str(path)), arrival.name, str(error)))
        if rows < max(minimum_rows, MINIMUM_ROWS):
            return Batch(files=tuple(good), rows=rows)
        data = import_path(project.versions, draft / name, name)
    return Batch(data=data, files=tuple(good), rows=rows)


@stage_task("with_target")
def with_target(data: DatasetRef, batch: DatasetRef, split: str = "target") -> DatasetRef:
    """The version `data` with all rows of `batch` as its split of the new domain; their labels are left behind."""
    project = Project()
    folder, new = project.versions.path(data), project.versions.path(batch)
    names = ds.infer_schema(folder).label_names

    def write(target: Path) -> int:
        from datasets import concatenate_datasets

        parts = [_unlabelled(ds.read_split(new, part), names, split) for part in ds.splits_of(new)]
        rows = ds.write_split(concatenate_datasets(parts), target, split)
        return rows + ds.copy_splits(folder, target, [other for other in ds.splits_of(folder) if other != split])

    return project.versions.add(data.name, write, source=f"{data} with {batch} as {split}")


def _unlabelled(rows: Dataset, names: tuple[str, ...], split: str) -> Dataset:
    from datasets import ClassLabel, Features, Value

    bare = rows.remove_columns([name for name in ("label", "split") if name in rows.column_names])
    added = {"label": np.full(len(rows), -1, dtype=np.int64), "split": np.full(len(rows), split)}
    whole = ds.with_columns(bare, added)
    return whole.cast(Features({**whole.features, "label": ClassLabel(names=list(names)), "split": Value("string")}))

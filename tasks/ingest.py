"""Bring data into the project's versions: a dataset of the working copy, a version made before, or a user's path."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from infra import datasets as ds
from infra.project import Project
from infra.references import DatasetRef, Reference
from infra.working_copy import find, names
from tasks.stage import stage_task


class Ingested(Reference):
    """The versions a run works on.

    Attributes
    ----------
    data : DatasetRef
    erasure : DatasetRef or None
        Ids to forget.
    truth : DatasetRef or None
        What only evaluation may read.
    """

    data: DatasetRef
    erasure: DatasetRef | None = None
    truth: DatasetRef | None = None


@stage_task("ingest")
def ingest(data: str) -> Ingested:
    """Make versions of the data a run was asked to work on.

    Parameters
    ----------
    data : str
        Name of a dataset of the working copy ("scans"), ``NAME@VERSION`` of a version made before,
        or a path to Parquet, CSV or a folder of class-named image folders.
    """
    project = Project()
    if is_path(project, data):
        from infra.importing import import_path

        return Ingested(data=import_path(project.versions, Path(data)))
    name, _, version = data.partition("@")
    if version:
        return Ingested(data=project.versions.resolve(name, version))
    if name not in names(project.root) and project.versions.list(name):
        return Ingested(data=project.versions.list(name)[0])  # imported before: the newest version
    sources = find(project.root, name)
    return Ingested(
        data=project.versions.add(name, lambda folder: _copy(sources.data, folder), source="data.dvc"),
        truth=_single(project, f"{name}-truth", "truth", sources.truth),
        erasure=_single(project, f"{name}-erasure", "ids", sources.erasure),
    )


def newest(name: str) -> DatasetRef | None:
    """The newest version of a dataset, None if there is none."""
    return next(iter(Project().versions.list(name)), None)


def is_path(project: Project, data: str) -> bool:
    """Whether `data` means the user's own files and no dataset of the working copy."""
    return os.path.exists(data) and data not in names(project.root)  # Path.exists raises for a name that is too long


def _copy(source: Path, target: Path) -> int:
    return ds.copy_splits(source, target, ds.splits_of(source))


def _single(project: Project, name: str, split: str, file: Path | None) -> DatasetRef | None:
    if file is None:
        return None

    def write(folder: Any) -> int:
        (folder / split).mkdir()
        shutil.copyfile(file, folder / split / "part-00000.parquet")
        return ds.rows_of(file)

    return project.versions.add(name, write, source="data.dvc")

"""The project's own ``data.dvc``: fetch what it names, and read it. Nothing here writes to it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from infra.errors import DatasetNotFoundError, StoreError

DATA, PIN = "data", "data.dvc"


class Sources(NamedTuple):
    """Where a named dataset of the working copy stands; what it does not have is None."""

    data: Path
    truth: Path | None
    erasure: Path | None


def pull(root: Path) -> int:
    """Fetch the data version that ``data.dvc`` names and check it out; returns how many files were fetched.

    Raises
    ------
    StoreError
        If the project has no ``data.dvc``, or the remote does not hold the version.
    """
    if not (root / PIN).exists():
        raise StoreError(f"{root} has no {PIN}. Name your own data with `clearwell run --data PATH`.", root=root)
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            found = repo.pull([str(root / PIN)])
    except DvcException as error:
        raise StoreError(
            f"The data that {PIN} names could not be fetched: {error}. Check the remote with `dvc remote list`."
        ) from error
    return int(found["stats"]["fetched"])


def names(root: Path) -> list[str]:
    """Datasets of the working copy, as far as it is checked out."""
    return sorted(folder.name for folder in (root / DATA).glob("*") if any(folder.glob("*/*.parquet")))


def find(root: Path, name: str) -> Sources:
    """The parts of the dataset `name` in the working copy, fetched first if the copy is not there.

    Raises
    ------
    DatasetNotFoundError
        If the working copy has no such dataset.
    """
    home = root / DATA
    if not home.exists() and (root / PIN).exists():
        pull(root)
    known = names(root)
    if name not in known:
        raise DatasetNotFoundError(
            f"There is no dataset {name!r} in {home}, and no file or folder of that name. Known: "
            f"{', '.join(known) or 'none'}. Name one of these, or the path of your own data.",
            name=name,
        )
    parts = [home / part / f"{name}.parquet" for part in ("truth", "erasure")]
    truth, erasure = (part if part.exists() else None for part in parts)
    return Sources(home / name, truth, erasure)

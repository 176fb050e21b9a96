"""Files that are either whole or absent, and digests of what is in them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.errors import StoreError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def draft_folder(parent: Path) -> Iterator[Path]:
    """A fresh folder under ``parent/.drafts``, removed at the end unless it was moved away.

    Write into it, then ``publish`` it: nobody ever sees it half-written. Folders that a killed process
    left behind are cleared by :func:`clear_drafts`.

    Raises
    ------
    StoreError
        If what was written did not fit on the disk.
    """
    folder = parent / ".drafts" / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with _telling_of_full_disks(parent):
        try:
            folder.mkdir(parents=True)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _telling_of_full_disks(place: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Libraries written in other languages give the system's answer as text only.
        if getattr(error, "errno", None) not in FULL and not any(f"os error {code})" in str(error) for code in FULL):
            raise
        free = shutil.disk_usage(place if place.exists() else "/").free / 1e6
        raise StoreError(
            f"Writing below {place} failed: {error}. {free:.0f} MB are free there. Nothing half-written was kept and "
            "nothing that was there is lost: make room (`clearwell doctor` shows how much), and run the same command "
            "again.",
            place=place,
        ) from error


def publish(draft: Path, final: Path) -> Path:
    """Move a finished draft to its place in one step; if something equal is there already, that stays."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        draft.rename(final)
    except OSError as error:
        if error.errno == errno.EXDEV:  # another disk: copied beside its place first
            beside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
            try:
                shutil.copytree(draft, beside)
                beside.rename(final)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        elif not final.exists():
            raise
    return final


def replace(draft: Path, final: Path) -> Path:
    """Move a finished draft to its place, in the stead of what is there."""
    with draft_folder(final.parent) as old:
        if final.exists():
            final.rename(old / "replaced")
        return publish(draft, final)


def clear_drafts(parent: Path) -> int:
    """Remove the drafts of processes that no longer run; returns how many."""
    cleared = 0
    for folder in (parent / ".drafts").glob("*-*"):
        if not is_running(folder.name.partition("-")[0]):
            shutil.rmtree(folder, ignore_errors=True)
            cleared += 1
    return cleared


def is_running(pid: str) -> bool:
    """Whether a process of that number runs on this host."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    with _telling_of_full_disks(path.parent):
        try:
            draft.write_text(text)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """sha256 of one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over the relative names and contents of all files below `folder`."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


def json_digest(value: Any) -> str:
    """sha256 of a JSON value, the same for the same value whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()

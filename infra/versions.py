"""Dataset versions: every one is a folder of Parquet shards that DVC knows by its directory hash.

    .clearwell/versions/<name>/<content digest>/          the shards, linked to DVC's cache
    .clearwell/versions/<name>/<content digest>.dvc       the version; written last, so its presence means "whole"

The versions live in a DVC repository of their own, which shares the project's cache. The project's ``data.dvc``
and its working copy are only ever read.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from infra.errors import ConfigurationError, DatasetNotFoundError, StoreError
from infra.files import clear_drafts, draft_folder, folder_digest, json_digest, publish, write_text
from infra.references import DatasetRef

if TYPE_CHECKING:
    from dvc.repo import Repo

_LOCK = threading.Lock()
_SEEN: set[str] = set()  # versions found unchanged by this process
_DIRECTORY = re.compile(r"[0-9a-f]+\.dir")  # DVC's hash of a folder
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}", re.IGNORECASE | re.ASCII)  # a folder, and part of NAME@VERSION
_LOCK_PATIENCE = 60.0  # DVC itself gives up on its repository lock after 3 seconds


class DataVersions:
    """The versions kept below one project.

    Parameters
    ----------
    root : Path
        The project.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".clearwell" / "versions"

    @cached_property
    def repo(self) -> Repo:
        """The DVC repository of the versions, made on first use."""
        from dvc.repo import Repo

        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ".dvc" / "config").exists():
            shutil.rmtree(self.folder / ".dvc", ignore_errors=True)
            cache = self.root / ".dvc" / "cache"
            lines = ["[core]", "    no_scm = true", "    analytics = false", "    check_update = false"]
            lines += ["[cache]", "    type = reflink,hardlink,copy"]
            if (self.root / ".dvc" / "config").exists():
                lines.append("    dir = ../../../.dvc/cache")
                cache.mkdir(exist_ok=True)
            (self.folder / ".dvc" / "tmp").mkdir(parents=True)
            write_text(self.folder / ".dvc" / "config", "\n".join(lines) + "\n")
        return Repo(str(self.folder))

    def add(self, name: str, write: Callable[[Path], int], source: str = "") -> DatasetRef:
        """Make a version of the dataset `name` from what `write` puts into the folder it is given.

        Parameters
        ----------
        name : str
        write : callable
            Writes the shards into a draft folder and returns the number of rows. If it raises, nothing remains.
        source : str
            What the version was made from; kept in the ``.dvc`` file.

        Raises
        ------
        ConfigurationError
            If `name` can not be a dataset's name.
        """
        if not _NAME.fullmatch(name):
            shown = name if len(name) <= 60 else f"{name[:57]}..."
            raise ConfigurationError(
                f"{shown!r} can not name a dataset. Use letters A to Z, digits, '.', '_' and '-' only, "
                f"a letter or digit first, 128 at most (got {len(name)})."
            )
        with draft_folder(self.folder) as draft:
            rows = write(draft)
            digest = folder_digest(draft)
            final = self.folder / name / digest[:20]
            whole = final.exists() and folder_digest(final) == digest
            if not whole or not self._complete(final):
                if not whole and final.exists():  # bytes lost or changed since
                    shutil.rmtree(final)
                publish(draft, final)
                self._drop_damaged_cache(final)
                self._add_to_dvc(final)
                self._annotate(final, name, rows, digest, source)
        return self._ref(final)

    def resolve(self, name: str, version: str) -> DatasetRef:
        """The reference of a version by its (abbreviated) DVC hash or content digest.

        Raises
        ------
        DatasetNotFoundError
            If there is none, or the abbreviation fits several.
        """
        found = [ref for ref in self.list(name) if version in ("", ref.version) or _abbreviates(version, ref)]
        if len({ref.version for ref in found}) != 1:
            self._require_unburied(name, version)
            known = ", ".join(str(ref) for ref in self.list(name)[:5]) or "none yet"
            what = "is no version" if not found else f"are {len(found)} versions"
            raise DatasetNotFoundError(
                f"There {what} {version[:60]!r} of the dataset {name[:60]!r}. Known: {known}. "
                "List them with `clearwell data list`.",
                name=name,
                version=version,
            )
        return found[0]

    def list(self, name: str = "*") -> list[DatasetRef]:
        """All versions, newest first."""
        if name != "*" and not _NAME.fullmatch(name):
            return []
        pins = sorted(self.folder.glob(f"{name}/*.dvc"), key=lambda pin: pin.stat().st_mtime, reverse=True)
        folders = (pin.with_suffix("") for pin in pins)
        return [self._ref(folder) for folder in folders if self._complete(folder)]

    def path(self, ref: DatasetRef) -> Path:
        """Folder of the version's shards, brought back from DVC's cache if it is gone or was changed.

        Raises
        ------
        StoreError
            If the bytes are nowhere to be found.
        """
        folder = self.root / ref.uri
        if folder.exists() and not self._unchanged(folder):
            with draft_folder(self.folder) as aside:
                folder.rename(aside / "changed")
                try:
                    self.restore(ref, folder)
                except StoreError:
                    (aside / "changed").rename(folder)
                    raise
        return self._present(ref)

    def source(self, ref: DatasetRef) -> str:
        """What the version was made from, as it was said when it was added."""
        pin = self._read_pin(self.root / ref.uri)
        return str(pin["meta"].get("source", "")) if pin else ""

    def bury(self, ref: DatasetRef, why: str) -> None:
        """Note that a version is gone for good, for those who ask for it later."""
        stone = {"name": ref.name, "version": ref.version, "why": why}
        write_text(self.folder / ref.name / f"{Path(ref.uri).name}.gone.json", json.dumps(stone))

    def _require_unburied(self, name: str, version: str) -> None:
        if not _NAME.fullmatch(name):
            return
        for file in (self.folder / name).glob("*.gone.json"):
            stone = json.loads(file.read_text())
            if len(version) >= 4 and (stone["version"].startswith(version) or file.name.startswith(version)):
                raise DatasetNotFoundError(
                    f"{name}@{version[:12]} can no longer be rebuilt: {stone['why']}. "
                    "See what there is with `clearwell data list`.",
                    name=name,
                    version=version,
                )

    def pin(self, ref: DatasetRef) -> Path:
        """The version's ``.dvc`` file."""
        return self._pin(self.root / ref.uri)

    def intact(self, ref: DatasetRef) -> bool:
        """Whether the version is there and its bytes are those it was made of."""
        pin = self._read_pin(self.root / ref.uri)
        if pin is None or pin["outs"][0]["md5"] != ref.version:
            return False
        try:
            return bool(folder_digest(self._present(ref)) == pin["meta"]["sha256"])
        except StoreError:
            return False

    def held(self, ref: DatasetRef) -> bool:
        """Whether this machine has the bytes. What is damaged in DVC's cache is removed, so that it can be fetched."""
        folder = self.root / ref.uri
        if folder.exists() and self._unchanged(folder):
            return True
        try:
            damaged = [digest for digest in self._listing(ref).values() if _md5(self._cached(digest)) != digest]
        except StoreError:
            damaged = [ref.version]
        for digest in damaged:
            self._cached(digest).unlink(missing_ok=True)
        return not damaged

    def restore(self, ref: DatasetRef, target: Path) -> Path:
        """Write the shards of a version to `target`, from DVC's cache.

        Raises
        ------
        StoreError
            If `target` exists and is not empty, or the cache does not hold the version as it was.
        """
        if target.exists() and any(target.iterdir()):
            raise StoreError(f"{target} is not empty. Name a folder that does not exist yet.", target=target)
        with draft_folder(self.folder) as draft:
            for name, digest in self._listing(ref).items():
                source, destination = self._cached(digest), draft / name
                destination.parent.mkdir(parents=True, exist_ok=True)
                if _md5(source) != digest:
                    raise StoreError(
                        f"DVC's cache lost the file {name} of {ref}, or it was changed there. "
                        "Run the stage that made it again with `--refresh`.",
                        ref=ref,
                    )
                shutil.copyfile(source, destination)
            if target.exists():
                target.rmdir()
            return publish(draft, target)

    def clear_drafts(self) -> int:
        """Remove what killed processes left half-written."""
        return clear_drafts(self.folder)

    def _listing(self, ref: DatasetRef) -> dict[str, str]:
        """Relative name -> MD5 of a version's files, as DVC's cache has them."""
        kept = self._cached(ref.version)
        try:
            if f"{_md5(kept)}.dir" != ref.version:
                raise ValueError("its bytes changed, or it is gone")
            files = {entry["relpath"]: entry["md5"] for entry in json.loads(kept.read_bytes())}
            if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
                raise ValueError("it names files outside the version")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"DVC's cache does not hold {ref}: {kept} can not be used, {error}. Run `clearwell data pull`, or run "
                "the stage that made it again with `--refresh`.",
                ref=ref,
            ) from None
        return files

    def _cached(self, digest: str) -> Path:
        """Where DVC's cache keeps a content."""
        return Path(self.repo.cache.local.oid_to_path(digest))

    def _present(self, ref: DatasetRef) -> Path:
        folder = self.root / ref.uri
        if not folder.exists():
            self.restore(ref, folder)
        return folder

    def _unchanged(self, folder: Path) -> bool:
        """Whether the shards are those the version was made of; looked at again only when a file was written since."""
        pin = self._read_pin(folder)
        if pin is None:
            return True  # a version in the making
        state = [(str(path), path.stat()) for path in sorted(folder.rglob("*"))]
        key = json_digest([pin["meta"]["sha256"], *((name, at.st_size, at.st_mtime_ns) for name, at in state)])
        if key not in _SEEN and folder_digest(folder) == pin["meta"]["sha256"]:
            _SEEN.add(key)
        return key in _SEEN

    def _ref(self, folder: Path) -> DatasetRef:
        pin = self._read_pin(folder)
        assert pin is not None
        meta = pin["meta"]
        uri = folder.relative_to(self.root).as_posix()
        return DatasetRef(name=meta["name"], uri=uri, version=pin["outs"][0]["md5"], rows=meta["rows"])

    def _annotate(self, folder: Path, name: str, rows: int, digest: str, source: str) -> None:
        """Add what DVC does not know to the ``.dvc`` file, then put it in its place in one step."""
        made = folder.with_name(f"{folder.name}.dvc")
        pin = yaml.safe_load(made.read_text())
        pin["meta"] = {"name": name, "rows": rows, "sha256": digest, "source": source}
        write_text(made, yaml.safe_dump(pin, sort_keys=False))

    def _read_pin(self, folder: Path) -> dict[str, Any] | None:
        """The version's ``.dvc`` file; None if there is none, or what is there says of no version what it is."""
        try:
            pin = yaml.safe_load(self._pin(folder).read_text())
            meta, version = pin["meta"], pin["outs"][0]["md5"]
            usable = _DIRECTORY.fullmatch(version) and {"name", "rows", "sha256"} <= meta.keys()
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError):
            return None
        return pin if usable else None

    @staticmethod
    def _pin(folder: Path) -> Path:
        return folder.with_name(f"{folder.name}.dvc")

    def _complete(self, folder: Path) -> bool:
        return self._read_pin(folder) is not None

    def _drop_damaged_cache(self, folder: Path) -> None:
        """DVC trusts a file its cache already has, so one that was changed there has to go first."""
        for path in (p for p in folder.rglob("*") if p.is_file()):
            name = str(_md5(path))
            kept = self._cached(name)
            if kept.exists() and _md5(kept) != name:
                kept.unlink()

    def _add_to_dvc(self, folder: Path) -> None:
        """One DVC command at a time: threads queue here, other processes are waited for."""
        from dvc.lock import LockError
        from dvc.utils.serialize import ParseError
        from dvc.utils.strictyaml import YAMLValidationError

        with _LOCK:
            deadline = time.monotonic() + _LOCK_PATIENCE
            while True:
                try:
                    self.repo.add(str(folder))
                    return
                except LockError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
                except (ParseError, YAMLValidationError):
                    if not self._set_damaged_pins_aside():
                        raise

    def _set_damaged_pins_aside(self) -> int:
        """DVC reads all pins for each command, so one that it can not read would hold up every dataset."""
        damaged = [pin for pin in self.folder.glob("*/*.dvc") if not _readable(pin)]
        for pin in damaged:
            pin.rename(pin.with_name(f"{pin.name}.damaged"))
        self.repo._reset()
        return len(damaged)


def _readable(pin: Path) -> bool:
    try:
        outs = yaml.safe_load(pin.read_text())["outs"]
        return all(isinstance(out["md5"], str) and isinstance(out["path"], str) for out in outs)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return False


def _md5(path: Path) -> str | None:
    """DVC's name for a file's content; None if it is not there."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except FileNotFoundError:
        return None


def _abbreviates(version: str, ref: DatasetRef) -> bool:
    return len(version) >= 4 and (ref.version.startswith(version) or Path(ref.uri).name.startswith(version))

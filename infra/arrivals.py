"""A place where new data land: a prefix of the object store, or a folder. Files are looked at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from infra.errors import ConfigurationError
from infra.importing import TABLE_FILES
from infra.project import Project
from infra.references import Reference

SEEN = "arrival"  # kind of ledger entry


class Arrival(Reference):
    """A file that landed.

    Attributes
    ----------
    name : str
        Below the place.
    digest : str
        sha256 of its bytes.
    """

    name: str
    digest: str


class Place:
    """What lies at `where`: a prefix of the data bucket while the stack is up, else a folder of the project.

    Whoever writes into a folder writes under a name that begins with a dot and renames; an object is whole when it
    appears.

    Parameters
    ----------
    project : Project
    where : str
        "incoming/scans", say. Nothing outside the project can be watched.
    """

    def __init__(self, project: Project, where: str) -> None:
        parts = PurePosixPath(where).parts
        if not parts or where.startswith("/") or ".." in parts:
            raise ConfigurationError(f"{where!r} can not be watched: name a folder inside the project, or a prefix.")
        self.project, self.where = project, "/".join(parts)

    def __str__(self) -> str:
        store = self.project.object_store
        return f"s3://{store.buckets.data}/{self.where}/" if store else str(self.project.root / self.where)

    def take(self, folder: Path) -> list[Arrival]:
        """Copy what was not seen before into `folder`; the same bytes under another name count as seen."""
        folder.mkdir(parents=True, exist_ok=True)
        seen = {entry["payload"]["digest"] for entry in self.project.ledger.entries(SEEN)}
        new = []
        for number, (name, content) in enumerate(self._files()):
            digest = hashlib.sha256(content).hexdigest()
            if digest not in seen:
                seen.add(digest)
                (folder / f"{number:06d}{PurePosixPath(name).suffix.lower()}").write_bytes(content)
                new.append(Arrival(name=name, digest=digest))
        return new

    def note(self, arrivals: Iterable[Arrival], **facts: object) -> None:
        """Remember files as seen, with what became of them."""
        for arrival in arrivals:
            self.project.ledger.append(SEEN, place=str(self), **arrival.model_dump(), **facts)

    def _files(self) -> Iterable[tuple[str, bytes]]:
        store = self.project.object_store
        if store is not None:
            prefix = f"{self.where}/"
            for key in sorted(store.keys(store.buckets.data, prefix)):
                if _counts(key):
                    yield key.removeprefix(prefix), store.read(store.buckets.data, key)
            return
        home = self.project.root / self.where
        for path in sorted(home.rglob("*")):
            if path.is_file() and not path.is_symlink() and _counts(path.name):
                yield path.relative_to(home).as_posix(), path.read_bytes()


def _counts(name: str) -> bool:
    file = PurePosixPath(name)
    return file.suffix.lower() in TABLE_FILES and not file.name.startswith(".")

"""Dataset versions in the object store: DVC's remote, and beside it the ``.dvc`` files that name the versions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from infra.errors import ServerError, StoreError
from infra.files import write_text
from infra.object_store import ObjectStore
from infra.references import DatasetRef
from infra.versions import DataVersions

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE, OBJECTS, PINS = "stack", "versions", "pins"
_LOCK_PATIENCE = 60.0  # DVC itself gives up on its repository lock after 3 seconds


class DataRemote:
    """Send dataset versions to the object store, and bring them back.

    Parameters
    ----------
    versions : DataVersions
    store : ObjectStore
    """

    def __init__(self, versions: DataVersions, store: ObjectStore) -> None:
        self.versions, self.store = versions, store
        self.bucket = store.buckets.data

    @cached_property
    def repo(self) -> Repo:
        """The versions' DVC repository with the object store as its remote; the keys stand in no file of it."""
        from dvc.repo import Repo

        settings = self.store.settings
        remote = {
            "url": f"s3://{self.bucket}/{OBJECTS}",
            "endpointurl": settings.endpoint,
            "region": settings.region,
            "access_key_id": settings.access_key,
            "secret_access_key": settings.secret_key.get_secret_value(),
        }
        folder = self.versions.repo.root_dir
        return Repo(folder, config={"core": {"remote": REMOTE}, "remote": {REMOTE: remote}})

    def push(self, refs: Sequence[DatasetRef]) -> int:
        """Send versions; returns how many objects were not there yet. A version's pin goes last, when it is whole."""
        sent = self._dvc("push", refs)
        for ref in refs:
            pin = self.versions.pin(ref)
            key = f"{PINS}/{ref.name}/{pin.name}"
            if key not in self.store.keys(self.bucket, key):
                self.store.write(self.bucket, key, pin.read_bytes())
        return sent

    def pull(self) -> list[DatasetRef]:
        """Bring back every version that the store knows and whose pin or bytes are not here, or are damaged."""
        known = [key for key in self.store.keys(self.bucket, f"{PINS}/") if not self._erased(key)]
        for key in known:
            pin = self.versions.folder / _place(key)
            if not pin.exists():
                write_text(pin, self.store.read(self.bucket, key).decode())
        names = {_place(key).with_suffix("").as_posix() for key in known}
        stored = [ref for ref in self.versions.list() if ref.uri.partition("versions/")[2] in names]
        fetched = [ref for ref in stored if not self.versions.held(ref)]
        if fetched:
            self._dvc("fetch", fetched)
        return fetched

    def _erased(self, key: str) -> bool:
        return (self.versions.folder / _place(key)).with_suffix(".gone.json").exists()

    def _dvc(self, verb: str, refs: Sequence[DatasetRef]) -> int:
        from botocore.exceptions import BotoCoreError, ClientError
        from dvc.exceptions import DvcException
        from dvc.lock import LockError

        targets = [str(self.versions.pin(ref)) for ref in refs]
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                return int(getattr(self.repo, verb)(targets, remote=REMOTE))
            except LockError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            except DvcException as error:
                names = ", ".join(map(str, refs))
                raise StoreError(f"DVC could not {verb} {names}: {error}. See `clearwell status`.") from error
            except (BotoCoreError, ClientError, OSError) as error:
                raise ServerError(
                    f"The object store at {self.store.settings.endpoint} failed while DVC was to {verb} "
                    f"{', '.join(map(str, refs))}: {error}. What arrived is kept; see `clearwell status`, and run the "
                    "same command again.",
                    transient=True,
                ) from error


def _place(key: str) -> PurePosixPath:
    """Where a pin belongs below the versions; a key that leads elsewhere is nobody's pin."""
    parts = PurePosixPath(key).parts[1:]
    if len(parts) != 2 or ".." in parts or not parts[1].endswith(".dvc"):
        raise StoreError(
            f"The object store holds a version under the impossible name {key!r}. Delete it there.", key=key
        )
    return PurePosixPath(*parts)

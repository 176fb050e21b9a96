"""What the stack's servers leave on their disks of what was deleted, and how it is made to go.

A server that has deleted something keeps the bytes for a while: the object store in its volumes, PostgreSQL in pages,
in its statistics and in its write-ahead log. The files are searched as they are; the servers are asked to write them
anew without what is gone.
"""

from __future__ import annotations

import mmap
import ssl
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import StoreError
from infra.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from infra.traces import Search, Trace

SETTLED = 2.5
"""Seconds after which the object store has told its volumes of what was deleted; it does so about once a second."""
OBJECTS, POSTGRES = "object store's disk", "PostgreSQL's disk"
_NEXT = "Look at `clearwell status`, then continue with `clearwell forget --resume`."


class Disks:
    """The disks of the stack of one project; there are none where its servers run elsewhere.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.folder = settings, settings.state / "stack"

    @property
    def here(self) -> bool:
        """Whether the servers' disks are part of this project."""
        return (self.folder / "postgres").exists()

    def files(self) -> Iterator[tuple[str, Path]]:
        """Files to search, each with the name of its place."""
        for path in sorted((self.folder / "objects").glob("*.dat")):
            yield OBJECTS, path
        for part in ("base", "global", "pg_wal"):
            for path in sorted((self.folder / "postgres" / part).rglob("*")):
                if path.is_file():
                    yield POSTGRES, path

    def holds(self, path: Path) -> bool:
        """Whether a file belongs to a server, which alone may change it."""
        return any(path.is_relative_to(self.folder / name) for name in ("objects", "postgres"))

    def settle(self) -> None:
        """Let the servers take leave of what was deleted: volumes are compacted, the write-ahead log starts anew.

        Raises
        ------
        StoreError
            If a server does not do it.
        """
        if (self.folder / "certificates").exists():
            self._compact_volumes()
        if self._superuser is not None:
            with self._asked("start a new write-ahead log") as connection:
                connection.exec_driver_sql("SELECT pg_switch_wal()")
                connection.exec_driver_sql("CHECKPOINT")  # segments before it are removed: wal_recycle is off

    def rewrite(self, databases: Collection[str], files: Iterable[Path]) -> None:
        """Write databases anew: those named, and those to which files belong, whose tables let go of what these hold.

        Raises
        ------
        StoreError
            If PostgreSQL does not do it.
        """
        base = self.folder / "postgres" / "base"
        numbers = {path.relative_to(base).parts[0] for path in files if path.is_relative_to(base)}
        if self._superuser is None or not (databases or numbers):
            return
        with self._asked("name its databases") as connection:
            known = connection.exec_driver_sql("SELECT oid::text, datname FROM pg_database WHERE datallowconn").all()
        for number, name in known:
            if number in numbers or name in databases:
                with self._asked("write its tables anew", name) as connection:
                    connection.exec_driver_sql("VACUUM (FULL, ANALYZE)")
                    connection.exec_driver_sql("VACUUM FULL pg_catalog.pg_statistic")  # samples of the columns

    def _compact_volumes(self) -> None:
        import httpx

        certificates = self.folder / "certificates"
        door = ssl.create_default_context(cafile=str(certificates / "authority.pem"))
        door.load_cert_chain(certificates / "part.pem", certificates / "part.key")
        time.sleep(SETTLED)
        try:
            httpx.get(
                f"https://127.0.0.1:{self.settings.stack.objects_port + 1}/vol/vacuum",
                params={"garbageThreshold": "0.0000001"},
                verify=door,
                timeout=600,
            ).raise_for_status()
        except httpx.HTTPError as error:
            raise StoreError(
                f"The object store did not compact its volumes: {error}. What was deleted may still be on its disk. "
                + _NEXT
            ) from None

    @cached_property
    def _superuser(self) -> sa.URL | None:
        """Address of the stack's PostgreSQL for the role that may do everything."""
        import sqlalchemy as sa

        from infra.stack import credentials

        kept = self.folder / "credentials.json"
        if not kept.exists() or not self.here:
            return None
        return sa.make_url("postgresql+psycopg2://127.0.0.1/postgres").set(
            username="postgres",
            password=credentials.load(kept).postgres["postgres"],
            port=self.settings.stack.postgres_port,
        )

    @contextmanager
    def _asked(self, what: str, database: str = "postgres") -> Iterator[sa.Connection]:
        """A connection of the superuser, outside of any transaction."""
        import sqlalchemy as sa

        assert self._superuser is not None
        engine = sa.create_engine(
            self._superuser.set(database=database),
            isolation_level="AUTOCOMMIT",
            poolclass=sa.NullPool,
            connect_args={"connect_timeout": 10},
        )
        try:
            with engine.connect() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise StoreError(
                f"PostgreSQL did not {what}: {str(error.orig).strip()}. What was deleted may still be on its disk. "
                + _NEXT
            ) from None


def look_at(path: Path, search: Search) -> list[Trace]:
    """Traces in a server's file, taken as it is."""
    if path.suffix != ".dat":  # of PostgreSQL, which may cut it short meanwhile: what is mapped must not shrink
        return search.raw(path.read_bytes())
    if not path.stat().st_size:
        return []
    with path.open("rb") as file:
        return search.raw(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

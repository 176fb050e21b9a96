"""The audit trail: an append-only table in which every entry carries the hash of the one before.

Prefect's and MLflow's databases are views that may be vacuumed; what happened to data and models stands here.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from getpass import getuser
from typing import Any

import sqlalchemy as sa

from infra.errors import LeaseHeldError, StoreError
from infra.files import is_running, json_digest

GENESIS = "0" * 64
_META = sa.MetaData()
_ENTRIES = sa.Table(
    "ledger",
    _META,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time", sa.String, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False, unique=True),
    sa.Column("hash", sa.String(64), nullable=False),
)
_LEASES = sa.Table(
    "leases",
    _META,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
)


def actor() -> str:
    """Who acts: ``CLEARWELL_ACTOR``, else the system's user name."""
    try:
        return os.environ.get("CLEARWELL_ACTOR") or getuser()
    except (KeyError, OSError):
        return "unknown"


class Ledger:
    """Append to, read and verify the audit trail.

    Parameters
    ----------
    url : str
        SQLAlchemy address.
    """

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url, connect_args={"timeout": 30} if url.startswith("sqlite") else {})
        _META.create_all(self.engine)

    def append(self, kind: str, **payload: Any) -> dict[str, Any]:
        """Add an entry and return it. Concurrent writers queue; a lost race is tried again."""
        for _ in range(20):
            try:
                with self.engine.begin() as connection:
                    return self._append(connection, kind, payload)
            except (sa.exc.IntegrityError, sa.exc.OperationalError):
                time.sleep(0.05)
        raise StoreError(f"The ledger at {self.engine.url!r} stays locked. Is another process stuck in a promotion?")

    def _append(self, connection: sa.Connection, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        last = connection.execute(
            sa.select(_ENTRIES.c.number, _ENTRIES.c.hash).order_by(_ENTRIES.c.number.desc()).limit(1)
        ).first()
        entry = {
            "number": last.number + 1 if last else 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "actor": actor(),
            "kind": kind,
            "payload": json.dumps(payload, sort_keys=True, default=str),
            "previous": last.hash if last else GENESIS,
        }
        entry["hash"] = json_digest(entry)
        connection.execute(_ENTRIES.insert().values(**entry))
        return entry

    def entries(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Entries in order, payloads decoded."""
        query = sa.select(_ENTRIES).order_by(_ENTRIES.c.number)
        if kind is not None:
            query = query.where(_ENTRIES.c.kind == kind)
        with self.engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return [row | {"payload": json.loads(row["payload"])} for row in rows]

    def broken_at(self) -> int | None:
        """Number of the first entry that does not fit the chain, None when all do."""
        previous, expected = GENESIS, 1
        with self.engine.connect() as connection:
            for row in connection.execute(sa.select(_ENTRIES).order_by(_ENTRIES.c.number)).mappings():
                entry = {name: row[name] for name in ("number", "time", "actor", "kind", "payload", "previous")}
                if row["number"] != expected or row["previous"] != previous or row["hash"] != json_digest(entry):
                    return int(row["number"])
                previous, expected = row["hash"], expected + 1
        return None

    @contextmanager
    def lease(self, name: str, seconds: float) -> Iterator[None]:
        """Hold `name` alone; a lease whose holder died expires after `seconds`.

        Raises
        ------
        LeaseHeldError
            If somebody else holds it.
        """
        holder = self._take(name, seconds)
        try:
            yield
        finally:
            self._give_back(name, holder)

    @contextmanager
    def turn(self, name: str, patience: float, seconds: float = 60.0) -> Iterator[None]:
        """Hold `name` alone for as long as the block runs, waiting for whoever holds it at most `patience` seconds.

        Unlike :meth:`lease` this is for work of unknown length: it is prolonged from a thread every third of
        `seconds`, and a holder of this host whose process is gone loses it at once.

        Raises
        ------
        LeaseHeldError
            If it did not come free in time.
        """
        deadline = time.monotonic() + patience
        while True:
            self._forget_the_dead(name)
            try:
                holder = self._take(name, seconds)
                break
            except LeaseHeldError as error:
                if time.monotonic() >= deadline:
                    raise LeaseHeldError(
                        f"{name!r} has been held by {self._holder(name)} for longer than {patience:.0f} seconds. "
                        "Wait for that run to end, or cancel it, then start again.",
                        lease=name,
                    ) from error
                time.sleep(min(1.0, patience))
        ended = threading.Event()
        keeper = threading.Thread(target=self._prolong, args=(name, holder, seconds, ended), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            self._give_back(name, holder)

    def _take(self, name: str, seconds: float) -> str:
        holder = f"{socket.gethostname()}:{os.getpid()}:{time.monotonic_ns()}"
        now = time.time()
        try:
            with self.engine.begin() as connection:
                connection.execute(_LEASES.delete().where(_LEASES.c.name == name, _LEASES.c.expires < now))
                connection.execute(_LEASES.insert().values(name=name, holder=holder, expires=now + seconds))
        except (sa.exc.IntegrityError, sa.exc.OperationalError) as error:
            raise LeaseHeldError(
                f"Somebody else is changing {name!r} right now. Try again in {seconds:.0f} seconds at the latest.",
                lease=name,
            ) from error
        return holder

    def _give_back(self, name: str, holder: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(_LEASES.delete().where(_LEASES.c.name == name, _LEASES.c.holder == holder))

    def _holder(self, name: str) -> str | None:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(_LEASES.c.holder).where(_LEASES.c.name == name)).scalar()

    def _prolong(self, name: str, holder: str, seconds: float, ended: threading.Event) -> None:
        mine = (_LEASES.c.name == name, _LEASES.c.holder == holder)
        while not ended.wait(seconds / 3):
            try:
                with self.engine.begin() as connection:
                    connection.execute(_LEASES.update().where(*mine).values(expires=time.time() + seconds))
            except sa.exc.OperationalError:  # the database is away; the next third tries again
                continue

    def _forget_the_dead(self, name: str) -> None:
        """End a lease whose holder ran on this host and does no longer."""
        holder = self._holder(name) or ""
        host, _, rest = holder.partition(":")
        if host == socket.gethostname() and not is_running(rest.partition(":")[0]):
            self._give_back(name, holder)

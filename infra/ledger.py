"""The audit trail: an append-only table in which every entry carries the hash of the one before.

Prefect's and MLflow's databases are views that may be vacuumed; what happened to data and models stands here.
The number and hash of the last entry are kept in a row of their own, so that entries cut off at the end are missed too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from typing import Any

import sqlalchemy as sa

from infra.database import lock, open_database, writing
from infra.files import json_digest
from infra.leases import Leases

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
_HEAD = sa.Table(
    "ledger_head",
    _META,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)


@dataclass(frozen=True)
class Break:
    """Where the chain does not fit, and how."""

    number: int
    why: str


def actor() -> str:
    """Who acts: ``CLEARWELL_ACTOR``, else the system's user name."""
    try:
        return os.environ.get("CLEARWELL_ACTOR") or getuser()
    except (KeyError, OSError):
        return "unknown"


class Ledger(Leases):
    """Append to, read and verify the audit trail. The leases under which it is written stand in the same database.

    Parameters
    ----------
    url : str
        SQLAlchemy address.
    """

    def __init__(self, url: str) -> None:
        super().__init__(open_database(url))
        with writing(self.engine) as connection:
            _META.create_all(connection)

    def append(self, kind: str, **payload: Any) -> dict[str, Any]:
        """Add an entry and return it. Concurrent writers queue."""
        with writing(self.engine) as connection:
            return self.add(connection, kind, payload)

    def add(self, connection: sa.Connection, kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Add an entry within the transaction of `connection`, and return it."""
        lock(connection)
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
        head = {"number": entry["number"], "hash": entry["hash"]}
        if connection.execute(_HEAD.update().values(**head)).rowcount == 0:
            connection.execute(_HEAD.insert().values(only=1, **head))
        return entry

    def entries(self, *kinds: str, last: int | None = None) -> list[dict[str, Any]]:
        """Entries in order, of some kinds or of all, at most the `last` ones; payloads decoded."""
        query = sa.select(_ENTRIES).order_by(_ENTRIES.c.number.desc())
        if kinds:
            query = query.where(_ENTRIES.c.kind.in_(kinds))
        if last is not None:
            query = query.limit(last)
        with self.engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return [row | {"payload": json.loads(row["payload"])} for row in reversed(rows)]

    def head(self) -> tuple[int, str]:
        """Number and hash of the last entry; kept elsewhere, they show later whether this history is still there."""
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(_ENTRIES).order_by(_ENTRIES.c.number.desc()).limit(1))
            last = rows.mappings().first()
        return (int(last["number"]), str(last["hash"])) if last else (0, GENESIS)

    def holds(self, digest: str) -> bool:
        """Whether an entry has this hash."""
        with self.engine.connect() as connection:
            query = sa.select(_ENTRIES.c.number).where(_ENTRIES.c.hash == digest)
            return connection.execute(query).first() is not None

    def broken_at(self) -> int | None:
        """Number of the first entry that does not fit the chain, None when all do."""
        found = self.first_break()
        return found.number if found else None

    def first_break(self) -> Break | None:
        """The first entry that does not fit the chain, and why; None when all do."""
        previous, expected = GENESIS, 1
        with self.engine.connect() as connection:
            head = connection.execute(sa.select(_HEAD.c.number, _HEAD.c.hash)).first()
            for row in _rows(connection):
                why = _misfit(row, previous, expected)
                if why:
                    return Break(int(row["number"]), why)
                previous, expected = row["hash"], expected + 1
        if head is not None and (head.number, head.hash) != (expected - 1, previous):
            return Break(expected, f"the last entry was number {head.number}, and the entries end at {expected - 1}")
        return None


def _rows(connection: sa.Connection) -> Iterator[sa.RowMapping]:
    query = sa.select(_ENTRIES).order_by(_ENTRIES.c.number).execution_options(yield_per=1000)
    return iter(connection.execute(query).mappings())


def _misfit(row: sa.RowMapping, previous: str, expected: int) -> str:
    """Why an entry does not follow the one before it; empty when it does."""
    if row["number"] != expected:
        return f"entry {expected} is missing"
    if row["previous"] != previous:
        return "it does not carry the hash of the entry before it: one of the two was changed"
    entry = {name: row[name] for name in ("number", "time", "actor", "kind", "payload", "previous")}
    return "" if row["hash"] == json_digest(entry) else "its content does not fit its hash: it was changed"

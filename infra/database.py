"""The database of ledger, leases and journals: SQLite in a project of its own, PostgreSQL on the stack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from infra.errors import ServerError, StoreError

PATIENCE = 30.0  # seconds for which a locked or restarting database is waited for
_TURN = 7165017  # any number; all writers of this database agree on it


def open_database(url: str) -> sa.Engine:
    """An engine whose connections are seen to be alive before they are used."""
    if url.startswith("sqlite"):
        return sa.create_engine(url, connect_args={"timeout": PATIENCE})
    return sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10})


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that is the only one to write here; others queue.

    Raises
    ------
    StoreError
        If SQLite's file stays locked.
    ServerError
        If PostgreSQL does not answer.
    """
    connection = _connect(engine)
    try:
        with connection, connection.begin():
            lock(connection)
            yield connection
    except sa.exc.OperationalError as error:
        raise _unavailable(engine, error) from error


def lock(connection: sa.Connection) -> None:
    """Make the transaction of `connection` the only one that writes here, until it ends."""
    if connection.dialect.name != "sqlite":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:turn)"), {"turn": _TURN})
    elif not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
        connection.exec_driver_sql("PRAGMA secure_delete = ON")  # what a finished journal held leaves no bytes
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def now(connection: sa.Connection) -> float:
    """Seconds since the epoch by the clock that all who share the database share."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.exec_driver_sql("SELECT extract(epoch FROM clock_timestamp())").scalar_one())


def _connect(engine: sa.Engine) -> sa.Connection:
    """A connection; a server that is just restarting is waited for."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return engine.connect()
        except sa.exc.OperationalError as error:
            if engine.dialect.name == "sqlite" or time.monotonic() > deadline:
                raise _unavailable(engine, error) from error
            time.sleep(0.5)


def _unavailable(engine: sa.Engine, error: Exception) -> StoreError | ServerError:
    if engine.dialect.name == "sqlite":
        return StoreError(
            f"The ledger at {engine.url!r} stays locked, or its disk is full ({getattr(error, 'orig', error)}). "
            "Is another process stuck in a promotion?"
        )
    return ServerError(
        f"The ledger's database {engine.url!r} does not answer: {getattr(error, 'orig', error)}. "
        "See `clearwell status`; nothing was written.",
        transient=True,
    )

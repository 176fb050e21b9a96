"""Leases: a name that one holder has alone for a while, and that nobody can keep by dying.

Every lease carries a number that grows each time the lease changes hands (a fencing token). A holder proves with it
that the lease is still its own before it changes anything; see :meth:`Lease.held`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from infra.database import lock, now, writing
from infra.errors import LeaseHeldError, LeaseLostError
from infra.files import is_running

META = sa.MetaData()
_LEASES = sa.Table(
    "leases",
    META,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("token", sa.Integer, nullable=False, server_default="0"),
)


@dataclass(frozen=True)
class Lease:
    """A lease as its holder has it.

    Attributes
    ----------
    name, holder : str
    token : int
        Grows whenever the lease changes hands.
    """

    engine: sa.Engine
    name: str
    holder: str
    token: int

    @contextmanager
    def held(self) -> Iterator[sa.Connection]:
        """A transaction during which the lease is this holder's, and nobody else can take it.

        Do what the lease protects inside, shortly.

        Raises
        ------
        LeaseLostError
            If the lease expired, whether or not somebody else took it since.
        """
        with self.engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                lock(connection)
            found = connection.execute(
                sa.select(_LEASES.c.token, _LEASES.c.expires).where(_LEASES.c.name == self.name).with_for_update()
            ).one_or_none()
            if found is None or found.token != self.token or found.expires <= now(connection):
                raise LeaseLostError(
                    f"The lease {self.name!r} expired while its holder was at work (token {self.token}, now "
                    f"{found.token if found else 'gone'}); nothing more was changed. Start again, and raise "
                    "registry.lease_seconds in mlflow.yaml if this happens often.",
                    lease=self.name,
                )
            yield connection


class Leases:
    """The leases of one database.

    Parameters
    ----------
    engine : sqlalchemy.Engine
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        with writing(engine) as connection:
            META.create_all(connection)
            if "token" not in {column["name"] for column in sa.inspect(connection).get_columns("leases")}:
                connection.exec_driver_sql("ALTER TABLE leases ADD COLUMN token INTEGER NOT NULL DEFAULT 0")

    @contextmanager
    def lease(self, name: str, seconds: float) -> Iterator[Lease]:
        """Hold `name` alone for at most `seconds`; a holder of this host whose process is gone loses it at once.

        Raises
        ------
        LeaseHeldError
            If somebody else holds it.
        """
        self._forget_the_dead(name)
        lease = self._take(name, seconds)
        try:
            yield lease
        finally:
            self._give_back(name, lease.holder)

    @contextmanager
    def turn(self, name: str, patience: float, seconds: float = 60.0) -> Iterator[Lease]:
        """Hold `name` alone for as long as the block runs, waiting for whoever holds it at most `patience` seconds.

        Unlike :meth:`lease` this is for work of unknown length: it is prolonged from a thread every third of
        `seconds`, and a holder of this host whose process is gone loses it at once.

        Raises
        ------
        LeaseHeldError
            If it did not come free in time.
        """
        lease = self._wait_for(name, patience, seconds)
        try:
            with self.kept(lease, seconds):
                yield lease
        finally:
            self._give_back(name, lease.holder)

    @contextmanager
    def kept(self, lease: Lease, seconds: float) -> Iterator[None]:
        """Prolong a lease by `seconds` from a thread, every third of them, as long as this process works on it.

        A process that is killed or stopped prolongs nothing, so its lease expires all the same.
        """
        ended = threading.Event()
        keeper = threading.Thread(target=self._prolong, args=(lease, seconds, ended), daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()

    def _take(self, name: str, seconds: float) -> Lease:
        holder = f"{socket.gethostname()}:{os.getpid()}:{time.monotonic_ns()}"
        mine = _LEASES.c.name == name
        try:
            with self.engine.begin() as connection:
                if connection.dialect.name == "sqlite":
                    lock(connection)
                else:
                    connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")  # a holder is in the middle of held()
                row = {"name": name, "holder": "", "expires": 0.0, "token": 0}
                statement = (
                    "INSERT INTO leases (name, holder, expires, token) VALUES (:name, :holder, :expires, :token)"
                )
                connection.execute(sa.text(f"{statement} ON CONFLICT (name) DO NOTHING"), row)
                at = now(connection)
                taken = connection.execute(
                    _LEASES.update()
                    .where(mine, _LEASES.c.expires <= at)
                    .values(holder=holder, expires=at + seconds, token=_LEASES.c.token + 1)
                )
                token = connection.execute(sa.select(_LEASES.c.token).where(mine)).scalar_one()
        except sa.exc.OperationalError as error:
            raise _taken(name, seconds) from error
        if taken.rowcount != 1:
            raise _taken(name, seconds)
        return Lease(self.engine, name, holder, token)

    def _give_back(self, name: str, holder: str) -> None:
        mine = (_LEASES.c.name == name, _LEASES.c.holder == holder)
        with writing(self.engine) as connection:
            connection.execute(_LEASES.update().where(*mine).values(expires=0.0, holder=""))

    def _wait_for(self, name: str, patience: float, seconds: float) -> Lease:
        deadline = time.monotonic() + patience
        while True:
            self._forget_the_dead(name)
            try:
                return self._take(name, seconds)
            except LeaseHeldError as error:
                if time.monotonic() >= deadline:
                    raise LeaseHeldError(
                        f"{name!r} has been held by {self._holder(name)} for longer than {patience:.0f} seconds. "
                        "Wait for that run to end, or cancel it, then start again.",
                        lease=name,
                    ) from error
                time.sleep(min(1.0, patience))

    def _holder(self, name: str) -> str | None:
        with self.engine.connect() as connection:
            return connection.execute(sa.select(_LEASES.c.holder).where(_LEASES.c.name == name)).scalar()

    def _prolong(self, lease: Lease, seconds: float, ended: threading.Event) -> None:
        mine = (_LEASES.c.name == lease.name, _LEASES.c.holder == lease.holder)
        while not ended.wait(seconds / 3):
            try:
                with self.engine.begin() as connection:
                    connection.execute(_LEASES.update().where(*mine).values(expires=now(connection) + seconds))
            except sa.exc.OperationalError:  # the database is away; the next third tries again
                continue

    def _forget_the_dead(self, name: str) -> None:
        """End a lease whose holder ran on this host and does no longer."""
        holder = self._holder(name) or ""
        host, _, rest = holder.partition(":")
        if host == socket.gethostname() and not is_running(rest.partition(":")[0]):
            self._give_back(name, holder)


def _taken(name: str, seconds: float) -> LeaseHeldError:
    return LeaseHeldError(
        f"Somebody else is changing {name!r} right now. Try again in {seconds:.0f} seconds at the latest.", lease=name
    )

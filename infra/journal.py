"""The plan of work that takes several steps, written down first, so that a killed attempt can be settled.

A journal stands beside the ledger, in its database. It only lives while its work does: ``finish`` removes it, and what
happened stands in the ledger.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from infra.database import writing

_META = sa.MetaData()
_JOURNALS = sa.Table(
    "journals",
    _META,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String, nullable=False, index=True),
    sa.Column("subject", sa.String, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("began", sa.Float, nullable=False),
)
_STEPS = sa.Table(
    "journal_steps",
    _META,
    sa.Column("journal", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class Unfinished:
    """A journal nobody finished.

    Attributes
    ----------
    id, kind, subject : str
    plan : dict
        What was meant to be done.
    began : float
        Seconds since the epoch.
    steps : dict of str to dict
        Steps that were done, in order, with their facts; of a step done twice the later facts.
    """

    id: str
    kind: str
    subject: str
    plan: dict[str, Any]
    began: float
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)


class Journal:
    """Plans and finished steps of work that may be killed.

    Parameters
    ----------
    engine : sqlalchemy.Engine
        Of the ledger's database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        with writing(engine) as connection:
            _META.create_all(connection)

    def begin(self, kind: str, subject: str, plan: Mapping[str, Any], connection: sa.Connection | None = None) -> str:
        """Write a plan down before its first step; returns the journal's id."""
        made = uuid.uuid4().hex
        row = {"id": made, "kind": kind, "subject": subject, "plan": _text(plan), "began": time.time()}
        with self._use(connection) as current:
            current.execute(_JOURNALS.insert().values(**row))
        return made

    def step(
        self, journal: str, name: str, facts: Mapping[str, Any] | None = None, connection: sa.Connection | None = None
    ) -> None:
        """Note that a step is done, with what a later attempt has to know of it."""
        with self._use(connection) as current:
            count = sa.select(sa.func.count()).where(_STEPS.c.journal == journal)
            number = current.execute(count).scalar_one()
            current.execute(_STEPS.insert().values(journal=journal, number=number, name=name, facts=_text(facts or {})))

    def finish(self, journal: str, connection: sa.Connection | None = None) -> None:
        """Forget the journal: what it planned is done or undone. Finishing twice does no harm."""
        with self._use(connection) as current:
            current.execute(_STEPS.delete().where(_STEPS.c.journal == journal))
            current.execute(_JOURNALS.delete().where(_JOURNALS.c.id == journal))

    def open(self, kind: str, subject: str | None = None) -> list[Unfinished]:
        """Unfinished journals of a kind, oldest first, with the steps that were done.

        One of them may belong to somebody who is at work right now; whoever settles a journal takes the lease
        that its worker holds first.
        """
        query = sa.select(_JOURNALS).where(_JOURNALS.c.kind == kind).order_by(_JOURNALS.c.began, _JOURNALS.c.id)
        if subject is not None:
            query = query.where(_JOURNALS.c.subject == subject)
        with self.engine.connect() as connection:
            return [self._unfinished(connection, row) for row in connection.execute(query).mappings().all()]

    def _unfinished(self, connection: sa.Connection, row: sa.RowMapping) -> Unfinished:
        query = sa.select(_STEPS).where(_STEPS.c.journal == row["id"]).order_by(_STEPS.c.number)
        steps = {step["name"]: json.loads(step["facts"]) for step in connection.execute(query).mappings()}
        return Unfinished(row["id"], row["kind"], row["subject"], json.loads(row["plan"]), row["began"], steps)

    @contextmanager
    def _use(self, connection: sa.Connection | None) -> Iterator[sa.Connection]:
        """The caller's transaction, or one of our own."""
        if connection is not None:
            yield connection
            return
        with writing(self.engine) as own:
            yield own


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True, default=str)

"""Moves of registry aliases: compare-and-set under a lease, journaled, settled after a kill, and drift noticed.

A move is four steps: the plan into the journal, the way back (the alias ``previous``), the alias itself, and, in one
transaction, the entry in the ledger and the end of the journal. Every step asks first whether the lease is still held.
Whoever finds an open journal looks where the alias is: at its goal, the move is completed; where it was, it is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from infra.errors import PromotionError
from infra.journal import Journal, Unfinished
from infra.leases import Lease
from infra.ledger import Ledger, actor
from infra.tracking import Tracker

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
KIND = "promotion"
MOVES = ("promoted", "rollback")


class AliasMoves:
    """Give and take aliases of registered models.

    Parameters
    ----------
    tracker : Tracker
    ledger : Ledger
    """

    def __init__(self, tracker: Tracker, ledger: Ledger) -> None:
        self.tracker, self.ledger = tracker, ledger
        self.journal = Journal(ledger.engine)

    def holders(self, name: str) -> dict[str, str]:
        """Alias -> version, as the registry has it now."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.tracker.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return {}
            raise
        return {alias: str(version) for alias, version in aliases.items()}

    def move(self, lease: Lease, name: str, version: str, alias: str, kind: str, **facts: Any) -> None:
        """Give `alias` to `version`, and enter it into the ledger as `kind` with `facts`.

        Raises
        ------
        LeaseLostError
            If the lease expired on the way; what was done by then is settled by the next who holds it.
        PromotionError
            If somebody moved the alias meanwhile without asking for the lease.
        """
        now = self.holders(name)
        plan: dict[str, Any] = {
            "version": version,
            "alias": alias,
            "kind": kind,
            "before": now.get(alias),
            "facts": facts,
        }
        plan |= {"previous": now.get(PREVIOUS), "asked_by": actor()}
        with lease.held() as connection:
            journal = self.journal.begin(KIND, name, plan, connection)
        if alias == CHAMPION and plan["before"] not in (None, version):
            with lease.held() as connection:
                self._set(name, PREVIOUS, plan["before"])
                self.journal.step(journal, PREVIOUS, connection=connection)
        with lease.held() as connection:
            self._compare_and_set(name, plan)
            self.journal.step(journal, alias, connection=connection)
        self._file(lease, journal, name, plan)

    def settle(self, lease: Lease, name: str) -> list[dict[str, Any]]:
        """Complete or undo the moves of `name` that were cut short; returns what was done."""
        return [self._settle(lease, found) for found in self.journal.open(KIND, name)]

    def note_drift(self, lease: Lease, name: str) -> list[dict[str, Any]]:
        """Enter into the ledger which aliases were moved by somebody who did not ask for the lease."""
        filed, found = filed_holders(self.ledger.entries(*MOVES, "alias-drift", "dropped"), name), self.holders(name)
        drifts = [
            {"model": name, "alias": alias, "expected": filed.get(alias), "version": found.get(alias)}
            for alias in sorted(filed.keys() | found.keys())
            if filed.get(alias) != found.get(alias)
        ]
        for drift in drifts:
            reason = f"moved from {drift['expected'] or 'nobody'} to {drift['version'] or 'nobody'} outside clearwell"
            with lease.held() as connection:
                self.ledger.add(connection, "alias-drift", drift | {"reason": reason})
        return [{"what": "alias-drift"} | drift for drift in drifts]

    def drop_retired(self, lease: Lease, name: str) -> list[dict[str, Any]]:
        """Take every alias from retired versions but ``previous``, which says why there is no way back to them."""
        gone = self.retired(name)
        if not gone:
            return []
        held = {
            alias: version for alias, version in self.holders(name).items() if version in gone and alias != PREVIOUS
        }
        dropped = [{"model": name, "alias": alias, "version": version} for alias, version in held.items()]
        for drop in dropped:
            with lease.held() as connection:
                self.ledger.add(connection, "dropped", drop | {"reason": f"retired: {gone[drop['version']]}"})
                self._set(name, drop["alias"], None)
        return [{"what": "dropped"} | drop for drop in dropped]

    def retired(self, name: str) -> dict[str, str]:
        """Version -> why it was retired."""
        found = [entry["payload"] for entry in self.ledger.entries("retired")]
        return {str(payload["version"]): payload["reason"] for payload in found if payload["model"] == name}

    def subjects(self) -> set[str]:
        """Models with a move that was cut short."""
        return {found.subject for found in self.journal.open(KIND)}

    def _settle(self, lease: Lease, found: Unfinished) -> dict[str, Any]:
        name, plan = found.subject, found.plan
        holder = self.holders(name).get(plan["alias"])
        outcome = {"model": name, "alias": plan["alias"], "version": plan["version"]}
        if holder == plan["version"]:
            self._file(lease, found.id, name, plan, settled_by=actor())
            return {"what": "completed"} | outcome
        with lease.held() as connection:
            if holder == plan["before"] and plan["alias"] == CHAMPION:
                self._set(name, PREVIOUS, plan["previous"])
            reason = "cut short before the alias was moved"
            self.ledger.add(connection, "undone", outcome | {"reason": reason, "asked_by": plan["asked_by"]})
            self.journal.finish(found.id, connection)
        return {"what": "undone"} | outcome

    def _file(self, lease: Lease, journal: str, name: str, plan: Mapping[str, Any], **more: Any) -> None:
        version, alias, kind = plan["version"], plan["alias"], plan["kind"]
        entry = {"model": name, "version": version, "alias": alias, "before": plan["before"], **plan["facts"], **more}
        when = f"{datetime.now(UTC).isoformat(timespec='milliseconds')} by {plan['asked_by']}"
        self.tracker.client.set_model_version_tag(name, version, f"clearwell.{kind}.{alias}", when)
        with lease.held() as connection:
            self.ledger.add(connection, kind, entry | {"asked_by": plan["asked_by"]})
            self.journal.finish(journal, connection)

    def _compare_and_set(self, name: str, plan: Mapping[str, Any]) -> None:
        alias = plan["alias"]
        found = self.holders(name).get(alias)
        if found == plan["before"]:
            self._set(name, alias, plan["version"])
            found = self.holders(name).get(alias)
        if found != plan["version"]:
            raise PromotionError(
                f"The alias {alias!r} of {name!r} was moved by somebody else meanwhile: "
                f"version {found or 'nobody'} holds it. See `clearwell history {name}`, then start again.",
                model=name,
            )

    def _set(self, name: str, alias: str, version: str | None) -> None:
        client = self.tracker.client
        if version is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, version)


def filed_holders(entries: Iterable[Mapping[str, Any]], name: str) -> dict[str, str]:
    """Alias -> version of a model, as the ledger has it."""
    held: dict[str, str | None] = {}
    for entry in entries:
        payload = entry["payload"]
        if payload.get("model") != name:
            continue
        if entry["kind"] == "dropped":
            held[payload["alias"]] = None
            continue
        if payload["alias"] == CHAMPION and entry["kind"] in MOVES:
            way_back = payload["before"] not in (None, payload["version"])
            held[PREVIOUS] = payload["before"] if way_back else held.get(PREVIOUS)
        held[payload["alias"]] = payload["version"]
    return {alias: str(version) for alias, version in held.items() if version is not None}

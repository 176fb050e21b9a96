"""``clearwell promote``, ``rollback`` and ``history``."""

from __future__ import annotations

from infra.errors import PromotionError
from infra.model_registry import CANDIDATE
from infra.project import Project
from infra.settings import settings


def promote_version(name: str, version: str | None, alias: str, reason: str, as_json: bool) -> None:
    """Promote, or say which gate refuses."""
    settings()
    from flows.commands.console import out, print_json

    registry = Project().registry
    registry.require_model(name)
    chosen = version or registry.holder(name, CANDIDATE)
    if chosen is None:
        raise PromotionError(
            f"The model {name!r} has no candidate. Name a version: `clearwell promote {name} VERSION`."
        )
    done = registry.promote(name, chosen, alias, reason or "promoted by hand")
    if as_json:
        print_json(done.model_dump())
        return
    for verdict in done.verdicts:
        out.print(f"  {verdict}")
    out.print(f"{name} version {chosen} is now {alias}. To take it back: clearwell rollback {name}")


def roll_back(name: str, reason: str, as_json: bool) -> None:
    """Roll back the champion."""
    settings()
    from flows.commands.console import out, print_json

    registry = Project().registry
    registry.require_model(name)
    done = registry.rollback(name, reason)
    if as_json:
        print_json(done.model_dump())
        return
    out.print(f"{name} version {done.version} is champion again.")


def show_history(name: str, as_json: bool) -> None:
    """Versions and ledger entries of a model."""
    settings()
    from flows.commands.console import out, print_json, print_table

    project = Project()
    project.registry.require_model(name)
    versions, entries = project.registry.versions(name), project.registry.history(name)
    broken = project.ledger.broken_at()
    if as_json:
        print_json({"versions": versions, "ledger": entries, "ledger_broken_at": broken})
        return
    shown = [
        {
            "version": v["version"],
            "aliases": ", ".join(v["aliases"]),
            "data": v["tags"].get("clearwell.data", ""),
            "run": v["run"],
        }
        for v in versions
    ]
    print_table(f"Versions of {name}", shown)
    rows = []
    for entry in entries:
        payload = entry["payload"]
        detail = payload.get("reason") or ", ".join(
            f"{v['metric']} {'holds' if v['holds'] else 'fails'}" for v in payload.get("verdicts", ())
        )
        rows.append(
            {
                "number": entry["number"],
                "time": entry["time"],
                "actor": entry["actor"],
                "what": entry["kind"],
                "version": payload.get("version", ""),
                "alias": payload.get("alias", ""),
                "detail": detail,
            }
        )
    print_table("Ledger", rows)
    out.print(
        "The ledger's chain is whole." if broken is None else f"[red]The ledger was changed at entry {broken}.[/]"
    )

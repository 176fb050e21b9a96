"""``clearwell promote``, ``rollback``, ``history``, ``explain``, and ``clearwell ledger``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from infra.errors import StoreError
from infra.project import Project
from infra.settings import settings


def promote_version(name: str, version: str | None, alias: str, reason: str, approved_by: str, as_json: bool) -> None:
    """Promote, or say everything that stands in the way."""
    settings()
    from flows.commands.console import out, print_json

    registry = Project().registry
    chosen = version or registry.candidate(name)
    done = registry.promote(name, chosen, alias, reason or ("" if approved_by else "promoted by hand"), approved_by)
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


def explain_version(name: str, version: str | None, as_json: bool) -> None:
    """Why a version may or may not become champion."""
    settings()
    from rich.markup import escape

    from flows.commands.console import out, print_json, print_table

    registry = Project().registry
    found = registry.explain(name, version or registry.candidate(name))
    if as_json:
        print_json(found.model_dump() | {"promotable": found.promotable})
        return
    shown = [{"gate": f"{v.metric} on {v.split}", "bound": v.bound,
              "measured": "not measured" if v.measured is None else v.measured,
              "verdict": "holds" if v.holds else "fails"} for v in found.verdicts]  # fmt: skip
    print_table(
        f"{name} version {found.version} against today's gates", shown, ("gate", "bound", "measured", "verdict")
    )
    facts = {"aliases": ", ".join(found.aliases) or "none", "judged": found.judged, "approval": found.approval,
             "files": found.files, "retired": found.retired or "no"}  # fmt: skip
    for fact, value in facts.items():
        out.print(f"{fact + ':':<10} {escape(value)}")
    for obstacle in found.obstacles:
        out.print(f"[red]in the way:[/] {escape(obstacle)}")
    if found.promotable:
        out.print(f"Nothing stands in the way: clearwell promote {name} {found.version}")


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
    print_table("Ledger", _rows(entries), ("time", "actor", "what", "version", "alias", "detail"))
    out.print(
        "The ledger's chain is whole." if broken is None else f"[red]The ledger was changed at entry {broken}.[/]"
    )


def verify_ledger(expect: str | None, as_json: bool) -> None:
    """Check the chain of the ledger from its first entry to its last.

    Raises
    ------
    StoreError
        If an entry was changed or is missing, or no entry has the expected hash.
    """
    settings()
    from flows.commands.console import out, print_json

    ledger = Project().ledger
    broken = ledger.first_break()
    if broken is not None:
        raise StoreError(
            f"The ledger was changed at entry {broken.number}: {broken.why}. Compare it with a backup; "
            "`clearwell ledger show` lists what is there now.",
            number=broken.number,
        )
    number, head = ledger.head()
    if expect is not None and not ledger.holds(expect):
        raise StoreError(
            f"No entry of the ledger has the hash {expect[:80]!r}: its chain is whole, but it is not the chain that "
            "hash was taken from. Somebody wrote the ledger anew; compare it with a backup."
        )
    if as_json:
        print_json({"entries": number, "head": head})
        return
    out.print(f"The ledger's chain is whole: {number} entries, head {head}", soft_wrap=True)
    out.print(
        "Keep the head elsewhere; later `clearwell ledger verify --expect HEAD` shows that nothing was rewritten."
    )


def show_ledger(kind: str | None, last: int, as_json: bool) -> None:
    """The latest entries of the ledger."""
    settings()
    from flows.commands.console import print_json, print_table

    entries = Project().ledger.entries(*([kind] if kind else []), last=last)
    if as_json:
        print_json(entries)
        return
    print_table("Ledger", _rows(entries))


def _rows(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for entry in entries:
        payload = entry["payload"]
        rows.append(
            {
                "number": entry["number"],
                "time": entry["time"][:19].replace("T", " "),
                "actor": payload.get("asked_by") or entry["actor"],
                "what": entry["kind"],
                "of": payload.get("model") or payload.get("name", ""),
                "version": payload.get("version") or "",
                "alias": payload.get("alias", ""),
                "detail": _detail(payload),
            }
        )
    return rows


def _detail(payload: Mapping[str, Any]) -> str:
    parts = [f"{v['metric']} {'holds' if v['holds'] else 'fails'}" for v in payload.get("verdicts", ())]
    parts += [str(payload["reason"])] if payload.get("reason") else []
    approver = payload.get("approver") or payload.get("approved_by")
    parts += [f"approved by {approver}"] if approver else []
    parts += [f"settled by {payload['settled_by']} after a kill"] if payload.get("settled_by") else []
    return ", ".join(parts)

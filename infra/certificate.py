"""The certificate of an erasure: what was asked, what was done, and a search that anybody can repeat."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from infra import traces
from infra.deletion import Doomed
from infra.erasure import KIND, Erasures, Plan
from infra.errors import ErasureError
from infra.files import draft_folder, file_digest, publish, write_text
from infra.ledger import actor
from infra.places import Places, Searched
from infra.project import Project

FOLDER = "certificates"


def file_certificate(
    erasures: Erasures, request: str, plan: Plan, doomed: Doomed, facts: dict[str, Any], after: dict[str, Any], run: str
) -> dict[str, Any]:
    """Write the certificate, enter it into the ledger once, and forget what the erasure had to know of the rows."""
    project = erasures.project
    folder = project.settings.state / FOLDER / request
    if not (folder / "certificate.json").exists():
        rows = erasures.rows(request)
        certificate = _certificate(request, plan, doomed, facts, after) | {
            "salt": rows.salt,
            "ids": sorted({mark.subject for mark in rows.fingerprints}),
            "fingerprints": [mark.model_dump() for mark in rows.fingerprints],
            "control": [mark.model_dump() for mark in rows.control],
        }
        with draft_folder(folder.parent) as draft:
            write_text(draft / "certificate.json", json.dumps(certificate, indent=1) + "\n")
            write_text(draft / "index.html", page(certificate))
            publish(draft, folder)
    certificate = json.loads((folder / "certificate.json").read_text())
    project.tracker.files(run, folder, "certificate")
    if not any(entry["payload"]["certificate"] == request for entry in project.ledger.entries(KIND)):
        project.ledger.append(
            KIND,
            certificate=request,
            sha256=file_digest(folder / "certificate.json"),
            ids=plan.subjects,
            datasets=list(plan.datasets),
            versions=[str(ref) for ref in doomed.versions],
            models=facts["retired"],
            reason=plan.reason,
        )
    shutil.rmtree(erasures.home / request, ignore_errors=True)
    erasures.journal.finish(request)
    return certificate | {"path": str(folder / "certificate.json"), "page": str(folder / "index.html")}


def _certificate(
    request: str, plan: Plan, doomed: Doomed, facts: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    return {
        "certificate": request,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "asked": datetime.fromtimestamp(facts["began"], UTC).isoformat(timespec="seconds"),
        "actor": actor(),
        "reason": plan.reason,
        "subjects": plan.subjects,
        "rows": plan.rows,
        "copies": plan.copies,
        "copies_stay": plan.copies_stay,
        "new_versions": {name: str(each.data) for name, each in after.items()},
        "versions_gone": [ref.model_dump() for ref in doomed.versions],
        "places": plan.places,
        "deleted": facts["deleted"],
        "models": facts["models"],
        "models_retired": facts["retired"],
        "models_deleted": [digest[:20] for digest in doomed.models],
        "search": facts["proof"],
        "out_of_reach": list(plan.out_of_reach),
    }


def page(certificate: dict[str, Any]) -> str:
    """The certificate as a self-contained page."""
    from jinja2 import Environment

    template = files("infra").joinpath("certificate_page.html.j2").read_text()
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template).render(c=certificate)
    )


def verify(project: Project, file: Path) -> tuple[dict[str, Any], Searched, Searched]:
    """Search everything again for what a certificate says is gone, and for its control row.

    Raises
    ------
    ErasureError
        If the file is no certificate, or not the one that the ledger knows.
    """
    try:
        certificate = json.loads(file.read_text())
        marks, control = (
            [traces.Fingerprint.model_validate(mark) for mark in certificate[part]]
            for part in ("fingerprints", "control")
        )
        salt, request = certificate["salt"], certificate["certificate"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ErasureError(f"{file} is no certificate of an erasure: {error!r}.", file=file) from None
    filed = [e["payload"]["sha256"] for e in project.ledger.entries(KIND) if e["payload"]["certificate"] == request]
    if filed != [file_digest(file)]:
        state = "does not know it" if not filed else "knows another form of it: it was changed"
        raise ErasureError(f"{file} can not be trusted: the ledger {state}.", file=file)
    places = Places(project)
    return certificate, places.search(traces.Search(salt, marks)), places.search(traces.Search(salt, control))

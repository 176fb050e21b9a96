"""``clearwell forget``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import ConfigurationError, ErasureError
from infra.settings import settings

if TYPE_CHECKING:
    from infra.erasure import Copies, Plan


def forget_rows(
    given: Sequence[str],
    data: str | None,
    reason: str,
    copies: Copies,
    accept_no_champion: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Show the plan, ask, and carry it out."""
    settings()
    from flows.commands.console import out, print_json
    from infra.erasure import Erasures
    from infra.project import Project

    erasures = Erasures(Project())
    plan, rows = erasures.examine(read_ids(given), data, copies, reason, accept_no_champion)
    if dry_run and as_json:
        print_json(plan.model_dump(mode="json"))
        return
    if not as_json:
        show_plan(plan)
    if dry_run:
        out.print("Nothing was changed.")
        return
    _require_consent(yes)
    _run(erasures.begin(plan, rows), as_json)


def resume(accept_no_champion: bool, as_json: bool) -> None:
    """Continue the erasure that was not finished."""
    settings()
    from infra.erasure import Erasures
    from infra.project import Project

    _run(Erasures(Project()).open().id, as_json, accept_no_champion)


def verify_certificate(file: Path, as_json: bool) -> None:
    """Search again for what a certificate says is gone."""
    settings()
    from flows.commands.console import out, print_json
    from infra.certificate import verify
    from infra.project import Project

    certificate, found, control = verify(Project(), file)
    wheres = sorted({finding.where for finding in found.findings})
    if as_json:
        shown = {"certificate": certificate["certificate"], "findings": wheres, "control": len(control.findings)}
        print_json(shown | {"places": found.places, "bytes": found.bytes})
    if wheres:
        raise ErasureError(
            f"{len(wheres)} places hold something of the erased rows again: {', '.join(wheres[:5])}. "
            "Erase the same ids again with `clearwell forget`.",
            places=wheres,
        )
    if not as_json:
        places = sum(found.places.values())
        out.print(f"Nothing of the erased rows is in {places} places ({found.bytes / 1e6:,.0f} MB).")
        out.print(
            f"The same search finds the row that stays {len(control.findings)} times."
            if control.findings
            else "[yellow]The row that was to stay is gone too, so this search proves little.[/]"
        )


def read_ids(given: Sequence[str]) -> list[str]:
    """Ids as they were given: each is an id, or a file of them (text with one a line, CSV or Parquet with `id`).

    Raises
    ------
    ConfigurationError
        If a file has no column `id`, or can not be read.
    """
    found: list[str] = []
    for each in given:
        path = Path(each)
        if not path.is_file():
            found.append(each)
            continue
        try:
            if path.suffix in (".parquet", ".csv"):
                import pandas as pd

                frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
                found += [str(identity) for identity in frame["id"].dropna()]
            else:
                found += [line.strip() for line in path.read_text().splitlines() if line.strip()]
        except KeyError:
            raise ConfigurationError(f"{path} has no column 'id'.") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"The ids in {path} can not be read: {error}") from None
    return found


def show_plan(plan: Plan) -> None:
    """The plan as a person reads it."""
    from flows.commands.console import out, print_table

    rows = [{"dataset": name, **splits} for name, splits in plan.rows.items()]
    print_table(f"{plan.subjects} ids to forget: rows that go", rows)
    print_table(
        "Places that hold something of them", [{"place": p, "files or objects": n} for p, n in plan.places.items()]
    )
    if plan.models:
        shown = [
            {
                "model": m.name,
                "version": m.version,
                "aliases": ", ".join(m.aliases),
                "trained on": m.data,
                "what": m.action,
            }
            for m in plan.models
        ]
        print_table("Model versions that saw them", shown)
    versions = ", ".join(str(ref) for ref in plan.versions) or "none"
    out.print(f"Dataset versions that can no longer be rebuilt: {versions}", highlight=False)
    if plan.working_copy:
        out.print("The working copy data/ is rewritten, and data.dvc with it.")
    if plan.copies:
        out.print(f"Rows of the same bytes under other ids {'stay' if plan.copies_stay else 'go too'}: {plan.copies}")
    for line in plan.out_of_reach:
        out.print(f"[yellow]Out of reach:[/] {line}", highlight=False)


def _require_consent(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError("Deleting for good needs consent: add --yes, or look first with --dry-run.")
    import typer

    if not typer.confirm("Delete all of this for good?"):
        raise ConfigurationError("Nothing was changed.")


def _run(request: str, as_json: bool, accept_no_champion: bool = False) -> None:
    from flows.commands.console import out, print_json, stage_progress
    from infra.embedded_server import embedded_server

    with embedded_server() as server:
        from flows.erasure import erasure

        if server is not None:
            server.wait()
        with stage_progress():
            certificate = erasure(request, accept_no_champion=accept_no_champion)
    if as_json:
        print_json({name: value for name, value in certificate.items() if name not in ("fingerprints", "control")})
        return
    show_certificate(certificate)
    out.print("\nNext:")
    out.print(f"  clearwell forget --verify {certificate['path']}", highlight=False, soft_wrap=True)


def show_certificate(certificate: dict[str, Any]) -> None:
    """What an erasure came to."""
    from flows.commands.console import out, print_table

    rows = []
    for name, model in certificate["models"].items():
        row = {"model": name, "how": model["how"], "champion": model["version"] or "none"}
        for which in ("before", "after", "retrained"):
            found = model["measured"].get(which, {})
            row[f"attack {which}"] = found.get("membership_advantage", "")
            row["by chance"] = found.get("membership_chance", row.get("by chance", ""))
        rows.append(row)
    if rows:
        print_table("Models", rows)
    search = certificate["search"]
    out.print(
        f"{certificate['subjects']} ids are erased. The search of {sum(search['places'].values())} places "
        f"({search['bytes'] / 1e6:,.0f} MB) finds nothing of them; a row that stays it finds "
        f"{search['control']['findings']} times."
    )
    out.print(f"Retired: {', '.join(certificate['models_retired']) or 'none'}.", highlight=False)
    out.print(f"Certificate: {certificate['page']}", highlight=False, soft_wrap=True)

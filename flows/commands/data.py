"""``clearwell data``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.project import Project
from infra.settings import settings


def pull_data() -> None:
    """Fetch what data.dvc names."""
    root = settings().root
    from flows.commands.console import out
    from infra.working_copy import pull

    fetched = pull(root)
    out.print(f"data.dvc is checked out ({fetched} files fetched).")


def import_data(path: Path, name: str | None, as_json: bool) -> None:
    """Make a version of the user's data."""
    settings()
    from flows.commands.console import out, print_json
    from infra.importing import import_path

    ref = import_path(Project().versions, path, name)
    if as_json:
        print_json(ref.model_dump())
        return
    out.print(f"{ref}: {ref.rows} rows.\nNext:\n  clearwell data check {ref}\n  clearwell run --data {ref}")


def check_data(data: str, as_json: bool) -> None:
    """Show failing rows, leaks and duplicates."""
    settings()
    from flows.commands.console import out, print_json, print_table
    from infra import datasets as ds
    from tasks.ingest import ingest
    from tasks.validate import ValidateConfig, check_rows, find_duplicates

    project, config = Project(), ValidateConfig()
    ref = ingest.fn(data).data
    folder = project.versions.path(ref)
    schema = ds.infer_schema(folder)
    splits = {split: ds.read_split(folder, split) for split in schema.splits}
    reports = check_rows(splits, schema, config, project.settings.state / "data_docs")
    reasons = {split: dict(report.failing) for split, report in reports.items()}
    counts, _, edges = find_duplicates(splits, schema, config, reasons)
    rows: list[dict[str, Any]] = []
    for split, found in reasons.items():
        names = ds.ids(splits[split])
        rows += [{"split": split, "row": r, "id": names[r], "reason": "; ".join(found[r])} for r in sorted(found)]
    table = {split: report.table_failures for split, report in reports.items() if report.table_failures}
    if as_json:
        print_json({"data": ref.model_dump(), "rows": rows, "splits": table, "counts": counts, "containment": edges})
        return
    kinds: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        kinds.setdefault((row["split"], row["reason"].partition(" of ")[0]), []).append(row["row"])
    summary = [
        {"split": split, "reason": reason, "rows": len(found), "first": ", ".join(map(str, found[:6]))}
        for (split, reason), found in sorted(kinds.items())
    ]
    print_table(f"{ref}: {schema.kind}, {ref.rows} rows, {schema.n_classes} classes", summary)
    for split, failures in table.items():
        out.print(f"{split} as a whole: {', '.join(failures)}")
    out.print(
        f"{len(rows)} rows need attention; every one with its id: clearwell data check {data} --json\n"
        "Great Expectations Data Docs: .clearwell/data_docs/latest/index.html"
    )


def list_data(as_json: bool) -> None:
    """List versions."""
    settings()
    from flows.commands.console import print_json, print_table

    versions = [ref.model_dump() | {"version": ref.version} for ref in Project().versions.list()]
    if as_json:
        print_json(versions)
        return
    print_table("Dataset versions, newest first", versions, ("name", "version", "rows", "uri"))


def restore_data(version: str, to: Path) -> None:
    """Restore a version."""
    settings()
    from flows.commands.console import out

    versions = Project().versions
    name, _, digest = version.partition("@")
    ref = versions.resolve(name, digest)
    versions.restore(ref, to)
    out.print(f"{ref} ({ref.rows} rows) is in {to}.")

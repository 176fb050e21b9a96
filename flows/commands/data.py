"""``clearwell data``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.project import Project
from infra.settings import settings


def pull_data() -> None:
    """Fetch what data.dvc names, and from the object store the versions that are not here."""
    root = settings().root
    from flows.commands.console import out
    from infra.working_copy import PIN, pull

    project = Project()
    if (root / PIN).exists() or project.object_store is None:
        out.print(f"data.dvc is checked out ({pull(root)} files fetched).")
    if project.object_store is not None:
        from infra.data_remote import DataRemote

        found = DataRemote(project.versions, project.object_store).pull()
        out.print(f"{len(found)} dataset versions fetched from {project.object_store.settings.endpoint}.")


def push_data(data: str | None) -> None:
    """Send versions to the object store."""
    settings()
    from flows.commands.console import out
    from infra.data_remote import DataRemote
    from infra.errors import ServerError

    project = Project()
    if project.object_store is None:
        raise ServerError("There is no object store to push to. Start one with `clearwell up`.")
    name, _, version = (data or "").partition("@")
    versions = project.versions
    refs = [versions.resolve(name, version)] if version else versions.list(name or "*")
    if name and not refs:
        versions.resolve(name, version)  # says what there is instead
    sent = DataRemote(versions, project.object_store).push(refs) if refs else 0
    out.print(f"{len(refs)} dataset versions are in {project.object_store.settings.endpoint} ({sent} objects sent).")


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
    from infra.importing import unpacked
    from infra.working_copy import find, names
    from tasks.ingest import ingest, is_path

    project = Project()
    if is_path(project, data):
        with unpacked(Path(data), project.settings.state / "looked_at") as (folder, places):
            _check_folder(project, data, folder, {"path": data}, places, as_json)
        return
    if data in names(project.root):
        folder = find(project.root, data).data
        _check_folder(project, data, folder, {"path": str(folder)}, _places(folder), as_json)
        return
    ref = ingest.fn(data).data
    _check_folder(project, str(ref), project.versions.path(ref), ref.model_dump(), {}, as_json)


def _check_folder(
    project: Project,
    data: str,
    folder: Path,
    facts: dict[str, Any],
    places: dict[str, list[tuple[str, int | None]]],
    as_json: bool,
) -> None:
    from flows.commands.console import out, plain, print_json, print_table
    from infra import datasets as ds
    from tasks.validate import ValidateConfig, check_rows, find_duplicates, gather_facts

    config, schema = ValidateConfig(), ds.infer_schema(folder)
    splits = {split: ds.Split(folder, split) for split in schema.splits}
    known = gather_facts(splits, schema, config)
    reports = check_rows(known, schema, config, project.settings.state / "data_docs")
    reasons = {split: dict(report.failing) for split, report in reports.items()}
    counts, _, edges = find_duplicates(splits, known, schema, config, reasons)
    rows: list[dict[str, Any]] = []
    for split, found in reasons.items():
        names = ds.ids(splits[split])
        for number in sorted(found):
            place = dict(zip(("file", "row"), places[split][number], strict=True)) if places else {"row": number}
            rows.append({"split": split, **place, "id": names[number], "reason": "; ".join(found[number])})
    table = {split: report.table_failures for split, report in reports.items() if report.table_failures}
    if as_json:
        print_json({"data": facts, "rows": rows, "splits": table, "counts": counts, "containment": edges})
        return
    kinds: dict[tuple[str, str], list[str]] = {}
    files = {row.get("file") for row in rows}
    for row in rows:
        kinds.setdefault((row["split"], row["reason"].partition(" of ")[0]), []).append(_shown_place(row, len(files)))
    summary = [
        {"split": split, "reason": reason, "rows": len(found), "first": ", ".join(found[:6])}
        for (split, reason), found in sorted(kinds.items())
    ]
    total = sum(map(len, splits.values()))
    print_table(f"{data}: {schema.kind}, {total} rows, {schema.n_classes} classes", summary)
    for split, failures in table.items():
        out.print(f"{split} as a whole: {plain(', '.join(failures))}")
    out.print(
        f"{len(rows)} rows need attention. Rows count from 0, without a header; every one with its id: "
        f"clearwell data check {plain(data)} --json\n"
        "Great Expectations Data Docs: .clearwell/data_docs/latest/index.html"
    )


def _places(folder: Path) -> dict[str, list[tuple[str, int | None]]]:
    """For every row of a split, its shard and the row there."""
    from infra import datasets as ds

    return {
        split: [
            (f"{split}/{shard.name}", row)
            for shard in sorted((folder / split).glob("*.parquet"))
            for row in range(ds.rows_of(shard))
        ]
        for split in ds.splits_of(folder)
    }


def _shown_place(row: dict[str, Any], files: int) -> str:
    if row["row"] is None:
        return str(row["file"])
    return f"{row['file']}:{row['row']}" if files > 1 else str(row["row"])


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
    from flows.commands.console import out, plain

    versions = Project().versions
    name, _, digest = version.partition("@")
    ref = versions.resolve(name, digest)
    versions.restore(ref, to)
    out.print(f"{ref} ({ref.rows} rows) is in {plain(str(to))}.")

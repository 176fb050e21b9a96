"""Results of finished stages, kept under a key that names everything they depend on.

    .clearwell/cache/<stage>/<key>/result.json  key.json  figures…

A record appears in one step when its stage has finished. It counts only while the bytes it refers to are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infra.errors import StoreError
from infra.files import clear_drafts, draft_folder, json_digest, publish, write_text
from infra.model_store import ModelStore
from infra.references import DatasetRef, StageResult
from infra.versions import DataVersions

Parts = dict[str, Any]
SHOWN = 3


class StageCache:
    """The records kept below one project.

    Parameters
    ----------
    root : Path
        The project.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / ".clearwell" / "cache"
        self.versions, self.models = DataVersions(root), ModelStore(root)

    @staticmethod
    def key(parts: Parts) -> str:
        """Key of the parts: input digests, configuration, code, package version."""
        return json_digest(parts)

    def find(self, stage: str, parts: Parts) -> tuple[StageResult | None, str]:
        """The kept result for these parts, if it counts, and the reason in words.

        Returns
        -------
        result : StageResult or None
        why : str
            Where it was taken from, or which part of the key changed since the nearest record.
        """
        key = self.key(parts)
        record = self.folder / stage / key
        if not (record / "result.json").exists():
            return None, self._what_changed(stage, parts)
        try:
            result = StageResult.model_validate_json((record / "result.json").read_text())
        except (OSError, ValueError):
            return None, f"its record in {record} can not be read"
        for ref in result.references:
            store = self.versions if isinstance(ref, DatasetRef) else self.models
            if not store.intact(ref):  # type: ignore[arg-type]
                return None, f"its output {ref} is no longer whole"
        return result, "same inputs, parameters and code"

    def keep(self, result: StageResult, parts: Parts, fill: Callable[[Path], None] | None = None) -> StageResult:
        """Keep a finished result; `fill` writes its figures into the record's folder.

        A record of the same key whose outputs were lost is replaced.
        """
        key = self.key(parts)
        kept = result.model_copy(update={"key": key, "cached": False})
        final = self.folder / result.stage / key
        with draft_folder(self.folder) as draft:
            if fill is not None:
                fill(draft)
            write_text(draft / "key.json", json.dumps(parts, indent=2, sort_keys=True))
            write_text(draft / "result.json", kept.model_dump_json(indent=2))
            if final.exists():
                with draft_folder(self.folder) as old:
                    final.rename(old / "replaced")
            publish(draft, final)
        return kept

    def record(self, result: StageResult) -> Path:
        """Folder of a kept result, with its figures.

        Raises
        ------
        StoreError
            If it is gone.
        """
        folder = self.folder / result.stage / result.key
        if not folder.exists():
            raise StoreError(f"The record of stage {result.stage!r} is gone from {folder}. Run the flow again.")
        return folder

    def records(self) -> Iterator[tuple[Path, StageResult, dict[str, str]]]:
        """Every readable record: its folder, the result, and the digest of every input by name."""
        for file in sorted(self.folder.glob("*/*/result.json")):
            if file.parent.parent.name == ".drafts":
                continue
            try:
                result = StageResult.model_validate_json(file.read_text())
                inputs = json.loads((file.parent / "key.json").read_text())["inputs"]
            except (ValueError, OSError, KeyError):
                continue
            yield file.parent, result, inputs

    def clear_drafts(self) -> int:
        """Remove what killed processes left half-written."""
        return clear_drafts(self.folder)

    def _what_changed(self, stage: str, parts: Parts) -> str:
        records = sorted((self.folder / stage).glob("*/key.json"), key=lambda p: p.stat().st_mtime, reverse=True)
        if not records:
            return "it never ran on this project"
        changes = [_differences(_read(record), parts) for record in records]
        nearest = min(changes, key=len)
        more = f"; and {len(nearest) - SHOWN} more" if len(nearest) > SHOWN else ""
        return "changed: " + "; ".join(nearest[:SHOWN]) + more


def _read(record: Path) -> Any:
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError, RecursionError):
        return {}  # damaged: everything differs


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in sorted(before.keys() | now.keys()):
            found += _differences(before.get(name), now.get(name), f"{where}.{name}" if where else name)
        return found
    if before == now:
        return []
    if where.startswith("code."):
        return [f"code of {where.removeprefix('code.')}"]
    return [f"{where} {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else f"{text[:20]}…"

"""The files behind a registered version: their digests when it was registered, and whether they still have them."""

from __future__ import annotations

import json
from pathlib import Path

from infra.errors import StoreError
from infra.files import draft_folder, file_digest
from infra.model_store import DESCRIPTION, PROGRAM, WEIGHTS
from infra.tracking import Tracker

ARTIFACT = "model"  # of the run that made the version
SERVED_PROGRAM = f"artifacts/{PROGRAM}"


def fetch(tracker: Tracker, run: str, to: Path) -> Path:
    """Copy the model artifact of `run` into the folder `to`; returns its folder, which is empty if there is none."""
    if tracker.client.list_artifacts(run, ARTIFACT):
        tracker.client.download_artifacts(run, ARTIFACT, str(to))
    folder = to / ARTIFACT
    folder.mkdir(exist_ok=True)
    return folder


def file_digests(folder: Path) -> dict[str, str]:
    """Relative name -> sha256 of every file below `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def stored_digests(tracker: Tracker, run: str) -> dict[str, str]:
    """Digests of what is stored as the model of `run`, after checking that it arrived as it was made.

    Raises
    ------
    StoreError
        If the program or the weights are not those that the model's own description names.
    """
    with draft_folder(tracker.settings.state) as draft:
        folder = fetch(tracker, run, draft)
        found = file_digests(folder)
        if DESCRIPTION in found:
            record = json.loads((folder / DESCRIPTION).read_text())
            made = {WEIGHTS: record.get("weights_sha256"), SERVED_PROGRAM: record.get("program_sha256")}
            wrong = [name for name, digest in made.items() if digest is not None and found.get(name) != digest]
            if wrong:
                raise StoreError(
                    f"The model of run {run} did not arrive in the artifact store as it was made: "
                    f"{', '.join(wrong)}. Run the same command again with `--refresh register`.",
                    run=run,
                )
    return found


def faults(recorded: dict[str, str], folder: Path) -> list[str]:
    """What is wrong with the files in `folder`, one line each; empty when they are as recorded."""
    found = file_digests(folder)
    lines = [f"{name} is missing" for name in recorded if name not in found]
    lines += [f"{name} was changed" for name in recorded if name in found and found[name] != recorded[name]]
    return lines + [f"{name} was added" for name in found if name not in recorded]

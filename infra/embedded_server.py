"""Prefect's embedded server: a child process of each run, which outlives a run that was killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

APPLICATION = "prefect.server.api.server:create_app"


def orphans(home: Path) -> Iterator[psutil.Process]:
    """Embedded servers of the Prefect folder `home` whose run is gone."""
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if APPLICATION not in (process.info["cmdline"] or ()):
            continue
        try:
            parent = process.parent()
            if process.environ().get("PREFECT_HOME") == str(home) and (parent is None or parent.pid == 1):
                yield process
        except psutil.Error:  # it ended, or is somebody else's
            continue


def stop_orphans(home: Path) -> int:
    """End them; returns how many."""
    found = list(orphans(home))
    for process in found:
        process.terminate()
    psutil.wait_procs(found, timeout=5)
    return len(found)

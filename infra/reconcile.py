"""Bring everything back to one state after kills: what runs at start and on schedule, each part by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infra.project import Project
from infra.zombies import crash_zombies

Part = Callable[[Project], Any]
PARTS: dict[str, Part] = {
    "leftovers": lambda project: project.tidy(),
    "zombies": crash_zombies,
    "registry": lambda project: project.registry.recover(),
}


def reconcile(project: Project) -> dict[str, Any]:
    """Run every part and return what each found or did; one that fails says so and does not stop the others."""
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        try:
            found[name] = part(project)
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
    return found

"""``clearwell doctor``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from infra.errors import ClearwellError, ConfigurationError
from infra.settings import settings

PINNED = {"prefect": "3.8.8", "fastapi": "0.150.0", "torch": "2.13.0"}
PACKAGES = ("prefect", "mlflow", "dvc", "great-expectations", "boto3", "torch", "scikit-learn", "datasets", "kornia")


def examine(as_json: bool) -> None:
    """Run every check; exit with code 2 if one fails."""
    findings = [_finding(name, check) for name, check in CHECKS.items()]
    from flows.commands.console import print_json, print_table

    if as_json:
        print_json(findings)
    else:
        print_table("Doctor", findings)
    failed = [str(item["check"]) for item in findings if item["state"] != "ok"]
    if failed:
        raise ConfigurationError(f"{len(failed)} of {len(findings)} checks need attention: {', '.join(failed)}.")


def _finding(name: str, check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"check": name, "state": "ok", "found": check()}
    except (ClearwellError, OSError, RuntimeError, SQLAlchemyError) as problem:
        return {"check": name, "state": "mend", "found": str(problem)}


def _python() -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise ConfigurationError(f"Python {sys.version.split()[0]} runs; 3.11 to 3.13 is needed. Make the venv anew.")
    return sys.version.split()[0]


def _packages() -> str:
    found = {}
    for name in dict.fromkeys((*PACKAGES, *PINNED)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise ConfigurationError(f"{name} is not installed. Run `make install`.") from None
    for name, pinned in PINNED.items():
        if version(name).partition("+")[0] != pinned:
            raise ConfigurationError(f"{name} is {version(name)}, {pinned} is needed. Run `make install`.")
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _settings() -> str:
    current = settings()
    if not (current.root / "mlflow.yaml").exists():
        raise ConfigurationError(f"There is no mlflow.yaml in {current.root} or above. Run inside the project.")
    return f"{current.root}: {len(current.gates)} gates, tracking {current.tracking.uri}"


def _state() -> str:
    folder = settings().state
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{os.getpid()}"
    probe.write_text("")
    probe.unlink()
    free = shutil.disk_usage(folder).free / 1e9
    if free < 2:
        raise ConfigurationError(f"{folder} has {free:.1f} GB left; a run may need 2. Free some space.")
    return f"writable, {free:.0f} GB free"


def _data() -> str:
    root: Path = settings().root
    if not (root / "data.dvc").exists():
        return "no data.dvc; bring your own with `clearwell run --data PATH`"
    if not (root / "data").exists():
        raise ConfigurationError("data.dvc is not checked out. Run `clearwell data pull`.")
    return "data.dvc is checked out"


def _ledger() -> str:
    from infra.project import Project

    ledger = Project().ledger
    broken = ledger.broken_at()
    if broken is not None:
        raise ConfigurationError(f"Entry {broken} does not fit the chain: the ledger was changed from outside.")
    return f"{len(ledger.entries())} entries, chain whole"


CHECKS: dict[str, Callable[[], str]] = {
    "python": _python,
    "packages": _packages,
    "settings": _settings,
    "state folder": _state,
    "data": _data,
    "ledger": _ledger,
}

"""Promotes version 2 in copies of a project and kills itself on the way. Started by test_promotion.py, as a process.

promoting.py kill PROJECT POINT...   a copy PROJECT-<point> each, killed before (b3) or after (a3) the third call
promoting.py race PROJECT            two promotions at once; prints what became of each
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow  # noqa: F401 - imported before the forks, opened after them

from infra.errors import PromotionError
from infra.journal import Journal
from infra.ledger import Ledger
from infra.project import Project
from infra.settings import Settings

MODEL = "scans-classifier"


def project_at(root: Path) -> Project:
    """The project of a folder, whatever the environment says."""
    os.environ["CLEARWELL_ROOT"] = str(root)
    return Project(Settings(root=root))


def counted(project: Project, die: Callable[[str, int], None]) -> list[str]:
    """Call ``die(moment, number)`` before and after everything that is written anywhere."""
    done: list[str] = []

    def wrap(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            done.append(name)
            number = len(done)
            die("b", number)
            found = inner(*arguments, **options)
            die("a", number)
            return found

        setattr(owner, name, call)

    client = project.tracker.client
    for owner, name in (
        (Journal, "begin"),
        (Journal, "step"),
        (Journal, "finish"),
        (Ledger, "add"),
        (client, "set_registered_model_alias"),
        (client, "set_model_version_tag"),
    ):
        wrap(owner, name)
    return done


def kill_at(root: Path, point: str) -> None:
    """Promote version 2 and be killed at `point`."""
    project = project_at(root)

    def die(moment: str, number: int) -> None:
        if f"{moment}{number}" == point:
            os.kill(os.getpid(), signal.SIGKILL)

    done = counted(project, die)
    project.registry.promote(MODEL, "2", reason="better")
    (root / "calls").write_text(" ".join(done))


def wait_for(sign: Path) -> None:
    """Return when the file is there."""
    deadline = time.monotonic() + 60
    while not sign.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def compete(root: Path, version: str, first: bool) -> str:
    """Promote `version`; the first pauses in the middle until the other has tried."""
    project = project_at(root)
    begun, tried = root / "begun", root / "tried"
    tag = project.tracker.client.set_model_version_tag

    def pause(*arguments: str) -> None:
        begun.touch()
        wait_for(tried)
        tag(*arguments)

    if first:
        project.tracker.client.set_model_version_tag = pause  # type: ignore[method-assign,assignment]
    else:
        wait_for(begun)
    try:
        return f"{project.registry.promote(MODEL, version).version} won"
    except PromotionError as error:
        return f"{version} {type(error).__name__}: {error}"
    finally:
        tried.touch()


def forked(work: Callable[[], None]) -> int:
    """Do `work` in a process of its own; returns its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def main() -> None:
    """See the module's docstring."""
    mode, root = sys.argv[1], Path(sys.argv[2])
    if mode == "kill":
        for point in sys.argv[3:]:
            copy = root.with_name(f"{root.name}-{point}")
            shutil.copytree(root, copy)
            child = forked(lambda copy=copy, point=point: kill_at(copy, point))  # type: ignore[misc]
            print(point, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        return
    for version, first in (("2", True), ("3", False)):
        forked(lambda v=version, f=first: print(compete(root, v, f), flush=True))  # type: ignore[misc]
    os.wait()
    os.wait()


if __name__ == "__main__":
    main()

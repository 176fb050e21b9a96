"""Candidates against each other: each in a process of its own, one thread, the same budget, some at once."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infra.processes import ONE_THREAD, GroupedProcess
from tasks.arenas import Bout, Candidate
from tasks.candidate import EVENTS, FACTS, GIVEN, HIDDEN, JOB, RESULT

DONE, LATE, FAILED, UNFIT = "done", "over budget", "failed", "does not apply"
START_SECONDS = 300.0
"""Patience until a candidate begins: imports and reading data are not on its budget."""
MEASURE_SECONDS = 600.0
"""Patience while it is measured, which is not on its budget either."""
_LOOK_AGAIN = 0.1


@dataclass
class Row:
    """What came of one candidate.

    Attributes
    ----------
    status : {"done", "over budget", "failed", "does not apply"}
    reason : str
        Why it is not done; empty when it is.
    metrics : dict of str to float
        nan is left out.
    seconds, cpu_seconds : float or None
        Of the run itself; start and measuring are not in it.
    peak_memory_mb : float or None
        Of the whole process.
    notes : list of str
        Warnings it gave.
    """

    name: str
    baseline: bool
    summary: str
    link: str = ""
    status: str = DONE
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory_mb: float | None = None
    memory_before_mb: float | None = None
    notes: list[str] = field(default_factory=list)
    traceback: str = ""
    objection: str = ""
    run: str = ""


Watcher = Callable[[str, Row, dict[str, Any]], None]
"""Told "begin", "epoch" and "end" of a candidate."""


def contest(
    bout: Bout,
    arena: str,
    candidates: Sequence[Candidate],
    folder: Path,
    *,
    budget: float,
    seed: int,
    at_once: int,
    watch: Watcher,
) -> list[Row]:
    """Let all candidates run; returns a row each, in their order.

    Parameters
    ----------
    arena : str
        Module of the arena.
    folder : Path
        For data and jobs; nothing in it is needed afterwards.
    budget : float
        Seconds each candidate has.
    at_once : int
        Processes side by side.
    watch : callable
    """
    write_bout(bout, folder)
    rows = [Row(each.name, each.baseline, each.summary, each.link, UNFIT, each.reason) for each in candidates]
    waiting = deque(
        _Entry(number, each, row, folder, arena, budget, seed)
        for number, (each, row) in enumerate(zip(candidates, rows, strict=True))
        if not each.reason
    )
    for each, row in zip(candidates, rows, strict=True):
        if each.reason:
            watch("end", row, {})
    running: list[_Entry] = []
    with _ended(running):
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(waiting.popleft())
                running[-1].start()
                watch("begin", running[-1].row, {})
            time.sleep(_LOOK_AGAIN)
            for entry in list(running):
                over = entry.look()
                for facts in entry.news():
                    watch("epoch", entry.row, facts)
                if over:
                    running.remove(entry)
                    watch("end", entry.row, {})
    return rows


def write_bout(bout: Bout, folder: Path) -> None:
    """Put the data where every candidate's process reads it."""
    np.savez(folder / GIVEN, allow_pickle=False, **bout.given)
    np.savez(folder / HIDDEN, allow_pickle=False, **bout.hidden)
    (folder / FACTS).write_text(json.dumps(bout.facts))


@contextmanager
def _ended(running: list[_Entry]) -> Iterator[None]:
    """No process is left behind, however the block ends."""
    try:
        yield
    finally:
        for entry in running:
            entry.process.end()


class _Entry:
    """One candidate's process."""

    process: GroupedProcess

    def __init__(
        self, number: int, candidate: Candidate, row: Row, data: Path, arena: str, budget: float, seed: int
    ) -> None:
        self.candidate, self.row, self.budget = candidate, row, budget
        self.folder = data / f"{number:02d}"
        self.job = {
            "arena": arena,
            "data": str(data),
            "modules": candidate.modules,
            "name": candidate.name,
            "parent": os.getpid(),
            "seed": seed,
        }
        self.began = self.fitted = 0.0
        self.progress: dict[str, Any] = {}
        self.read = self.heard = self.told = 0

    def start(self) -> None:
        """Begin; the process finds the same modules as this one."""
        self.folder.mkdir()
        (self.folder / JOB).write_text(json.dumps(self.job))
        path = os.pathsep.join([str(Path(part).resolve()) for part in sys.path])
        command = [sys.executable, "-m", "tasks.candidate", str(self.folder)]
        self.started = time.time()
        self.process = GroupedProcess(command, self.folder / "output", {**os.environ, **ONE_THREAD, "PYTHONPATH": path})

    def look(self) -> bool:
        """Whether it is over; then its row is filled."""
        status = self.process.look()
        self._listen()
        late = self._late()
        if status is None and not late:
            return False
        self.process.end()
        if late and status is None:
            self.row.status, self.row.reason = late
        elif not (self.folder / RESULT).exists():
            self.row.status, self.row.reason = FAILED, self._death(status or 0)
        else:
            self._take(json.loads((self.folder / RESULT).read_text()))
        if self.row.status != DONE and self.began:
            self.row.seconds = round((self.fitted or time.time()) - self.began, 2)
        self.row.peak_memory_mb = round(max(self.row.peak_memory_mb or 0.0, self.process.peak_memory_mb), 1)
        return True

    def news(self) -> Iterator[dict[str, Any]]:
        """Its epochs since last asked: the latest one."""
        if self.told < self.heard and self.progress:
            yield self.progress
        self.told = self.heard

    def _listen(self) -> None:
        path = self.folder / EVENTS
        if not path.exists():
            return
        with path.open("rb") as stream:
            stream.seek(self.read)
            fresh = stream.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            said = json.loads(line)
            self.heard += 1
            if said["event"] == "begin":
                self.began = said["at"]
            elif said["event"] == "fitted":
                self.fitted = time.time()
            else:
                self.progress = {name: value for name, value in said.items() if name != "event"}

    def _late(self) -> tuple[str, str] | None:
        now = time.time()
        if not self.began:
            waited = now - self.started
            return (FAILED, f"did not begin within {START_SECONDS:.0f} s") if waited > START_SECONDS else None
        if self.fitted:
            measured = now - self.fitted
            return (FAILED, f"measuring took over {MEASURE_SECONDS:.0f} s") if measured > MEASURE_SECONDS else None
        if now - self.began <= self.budget:
            return None
        far = "it does not say how far it was"
        if self.progress:
            far = "it was at {training}, epoch {epoch} of {epochs}".format(**self.progress)
        return LATE, f"not done after {self.budget:g} s; {far}"

    def _death(self, status: int) -> str:
        said = self.process.last_words()
        last = said.splitlines()[-1] if said else "it said nothing"
        if status < 0:
            name = signal.Signals(-status).name
            hint = " (memory may have run out)" if name == "SIGKILL" else ""
            return f"its process was ended by {name}{hint}: {last}"
        return f"its process ended with status {status} and no result: {last}"

    def _take(self, result: dict[str, Any]) -> None:
        self.row.peak_memory_mb, self.row.notes = result["peak_memory_mb"], result["notes"]
        if "error" in result:
            self.row.status, self.row.reason, self.row.traceback = FAILED, result["error"], result["traceback"]
            return
        self.row.status = DONE
        self.row.metrics = {name: value for name, value in result["metrics"].items() if value is not None}
        self.row.parameters = result["parameters"]
        self.row.seconds, self.row.cpu_seconds = result["seconds"], result["cpu_seconds"]
        self.row.memory_before_mb = result["memory_before_mb"]

"""A command in a process group of its own: watched for memory, and ended with everything it started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ONE_THREAD = {
    name: "1"
    for name in ("MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
}
"""Variables by which numerical libraries are told to use one thread."""


class GroupedProcess:
    """A running command with its own process group.

    Parameters
    ----------
    command : sequence of str
    output : Path
        File for what it prints, errors included.
    environment : mapping
        All of its variables.

    Attributes
    ----------
    peak_memory_mb : float
        The most it was seen to hold.
    """

    def __init__(self, command: Sequence[str], output: Path, environment: Mapping[str, str]) -> None:
        with output.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        self.output, self.peak_memory_mb = output, 0.0

    def look(self) -> int | None:
        """Its exit status (negative: the signal that ended it), None while it runs; memory is noted on the way."""
        self.peak_memory_mb = max(self.peak_memory_mb, peak_memory_mb(self._process.pid))
        return self._process.poll()

    def end(self) -> None:
        """Kill it and what it started; nothing happens to what has ended already."""
        self.peak_memory_mb = max(self.peak_memory_mb, peak_memory_mb(self._process.pid))
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def last_words(self, length: int = 2000) -> str:
        """The end of what it printed."""
        return self.output.read_bytes()[-length:].decode(errors="replace").strip()


def peak_memory_mb(pid: int) -> float:
    """The most memory a process held so far, in MB; 0 when it is gone.

    Read from the kernel's high-water mark of the program it runs now. ``resource.getrusage`` would not do: what it
    tells begins at the memory of the process that started this one. Without such a mark, what it holds at present.
    """
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    with suppress(psutil.Error):
        return float(psutil.Process(pid).memory_info().rss) / 2**20
    return 0.0


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

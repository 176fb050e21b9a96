"""The process of one candidate: ``python -m tasks.candidate JOB``. Run, measure, write down, end.

JOB is a folder with ``job.json``; what happens is told line by line in ``events.jsonl``, and the result stands in
``result.json``. The data lies beside it for all candidates, as plain arrays.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from infra.processes import peak_memory_mb
from tasks.arenas import Arrays, load

JOB, EVENTS, RESULT = "job.json", "events.jsonl", "result.json"
GIVEN, HIDDEN, FACTS = "given.npz", "hidden.npz", "facts.json"
MOST_NOTES = 3
TELL_SECONDS = 0.2
"""Epochs that follow each other faster are not all told."""


def main(folder: Path) -> None:
    """Do the job in `folder`."""
    job = json.loads((folder / JOB).read_text())
    _end_with(job["parent"])
    data = Path(job["data"])

    def say(event: str, **facts: Any) -> None:
        with (folder / EVENTS).open("a") as stream:
            stream.write(json.dumps({"event": event, **facts}) + "\n")

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        try:
            result = _compete(job, data, say)
        except BaseException as error:
            result = {
                "error": f"{type(error).__name__}: {error}".rstrip(": "),
                "traceback": traceback.format_exc(),
            }
    result["peak_memory_mb"] = round(peak_memory_mb(os.getpid()), 1)
    said = [each.message for each in heard if issubclass(each.category, (RuntimeWarning, UserWarning))]
    result["notes"] = list(dict.fromkeys(" ".join(str(message).split())[:300] for message in said))[:MOST_NOTES]
    draft = folder / f".{RESULT}"
    draft.write_text(json.dumps(result))
    draft.rename(folder / RESULT)


def _compete(job: dict[str, Any], data: Path, say: Any) -> dict[str, Any]:
    arena = load(job["arena"])
    for module in job["modules"]:
        importlib.import_module(module)
    facts = json.loads((data / FACTS).read_text())
    given = read_arrays(data / GIVEN)
    before = peak_memory_mb(os.getpid())
    say("begin", at=time.time())
    began, cpu = time.perf_counter(), time.process_time()
    with _telling(say):
        found = arena.fit(job["name"], given, facts, job["seed"])
    cpu_seconds, seconds = time.process_time() - cpu, time.perf_counter() - began
    say("fitted")
    own = getattr(found, "seconds", None)
    metrics = arena.measure(found, given, read_arrays(data / HIDDEN), facts, job["seed"])
    return {
        "metrics": {name: _number(value) for name, value in metrics.items()},
        "parameters": getattr(found, "parameters", {}),
        "seconds": round(seconds if own is None else float(own), 4),
        "cpu_seconds": round(cpu_seconds, 4),
        "memory_before_mb": round(before, 1),
    }


def read_arrays(path: Path) -> Arrays:
    """Named arrays of a file; nothing in it is unpickled."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


@contextmanager
def _telling(say: Any) -> Iterator[None]:
    """Epochs of trainers are told; candidates that never imported one do not pay for it."""
    if "torch" not in sys.modules:
        yield
        return
    from models.training import Hook, Row, Trainer, hooks

    class Teller(Hook):
        told = 0.0

        def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
            if time.monotonic() < self.told + TELL_SECONDS:
                return
            self.told = time.monotonic()
            say("epoch", training=trainer.label, epoch=trainer.epoch + 1, epochs=trainer.epochs)

    with hooks(Teller()):
        yield


def _end_with(parent: int) -> None:
    """End, with everything this process started, when the contest is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""An arena for tests: candidates that are good, slow, broken, gone, or of no use here. Nothing heavy is imported."""

import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from infra import datasets as ds
from tasks.arenas import Arena, Bout, Candidate, Metric


@dataclass
class Found:
    guess: np.ndarray
    parameters: dict = field(default_factory=dict)


class PlantedArena(Arena):
    stage = "planted"
    question = "Who guesses best?"
    metrics = (
        Metric("accuracy", "accuracy of the guess"),
        Metric("threads", "threads it was told to use", None, "number"),
        Metric("undefined", "what nobody can say"),
    )
    baselines = {"coin": "Guesses at random."}  # noqa: RUF012
    others = ("oracle", "raises", "sleeps", "dies", "leaves", "misplaced", "imports")

    def prepare(self, source, seed, rows):
        y = ds.labels(ds.read_split(source.folder, "train"))[:rows]
        facts = {"kind": source.schema.kind, "measured": len(y), "pid_file": os.environ.get("PLANTED_PID", "")}
        return Bout({"X": np.arange(len(y))}, {"y": y}, facts, [f"{len(y)} rows."])

    def candidates(self, facts):
        found = [Candidate(name, f"The one that {name}.", reason=self.reason(name)) for name in self.others]
        found[-1] = Candidate("imports", "Its module is broken.", modules=("tests.tasks.no_such_module",))
        return [*found, Candidate("coin", self.baselines["coin"], baseline=True)]

    def reason(self, name):
        return "takes sound data, and this is table data" if name == "misplaced" else ""

    def fit(self, name, given, facts, seed):
        X = given["X"]
        if name == "raises":
            raise ValueError("k must be below the number of rows")
        if name == "sleeps":
            print("going to bed", flush=True)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            Path(facts["pid_file"]).write_text(f"{os.getpid()} {child.pid}")
            time.sleep(600)
        if name == "dies":
            print("out of luck", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "leaves":
            os._exit(7)
        if name == "oracle":
            warnings.warn("this is too easy", stacklevel=1)
            time.sleep(0.2)
            return Found(X % 3, {"depth": 2, "inner": {"kind": "x"}})
        return SimpleNamespace(guess=np.random.default_rng(seed).integers(0, 3, len(X)), seconds=0.125)

    def measure(self, found, given, hidden, facts, seed):
        accuracy = float((found.guess == hidden["y"]).mean())
        return {"accuracy": accuracy, "threads": int(os.environ["OMP_NUM_THREADS"]), "undefined": float("nan")}


ARENA = PlantedArena()

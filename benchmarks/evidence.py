"""How a method's evidence is gathered: measured figures, their bounds, verdicts, one JSON file.

A module of ``benchmarks/methods`` has one function, ``collect(evidence)``: it measures on real data at
``evidence.seeds`` and calls :meth:`Evidence.check` for each bound and :meth:`Evidence.table` for what
is reported beside them (baselines, per-seed figures).
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from infra.runner import runner

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Check:
    """One bound and what was measured against it."""

    name: str
    bound: str
    measured: float
    holds: bool
    per_seed: list[float] = field(default_factory=list)
    note: str = ""


class Evidence:
    """The figures of one method.

    Parameters
    ----------
    method : str
        The registered name.
    seeds : sequence of int
    progress : bool
        Print a line as each check is measured.
    """

    def __init__(self, method: str, seeds: Sequence[int] = SEEDS, progress: bool = True) -> None:
        self.method, self.seeds, self.progress = method, tuple(seeds), progress
        self.checks: list[Check] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.missing: list[dict[str, str]] = []
        self.data: list[str] = []
        self.started = time.perf_counter()

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item] | None = None, at_once: int = 1
    ) -> list[Result]:
        """``function`` of each item, or of each seed, by the runner of the settings; `at_once` is the least locally."""
        return runner().map(function, self.seeds if items is None else items, at_once)  # type: ignore[arg-type]

    def uses(self, *descriptions: str) -> None:
        """Name the real data behind the figures."""
        self.data += [text for text in descriptions if text not in self.data]

    def check(
        self,
        name: str,
        measured: float | Sequence[float],
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        note: str = "",
    ) -> Check:
        """Record a figure against its bound. A sequence (one figure a seed) is judged by its mean."""
        per_seed = [float(value) for value in measured] if isinstance(measured, Sequence) else []
        value = sum(per_seed) / len(per_seed) if per_seed else float(measured)  # type: ignore[arg-type]
        if at_least is None and at_most is None:
            raise ValueError(f"The check {name!r} has no bound: give at_least, at_most or both.")
        parts = [f">= {at_least:g}"] if at_least is not None else []
        parts += [f"<= {at_most:g}"] if at_most is not None else []
        holds = math.isfinite(value)
        holds = holds and (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        result = Check(name, " and ".join(parts), round(value, 6), bool(holds), per_seed, note)
        self.checks.append(result)
        if self.progress:
            print(f"  {'holds' if result.holds else 'FALLS SHORT'}  {name}: {value:.4g} ({result.bound})", flush=True)
        return result

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Figures shown beside the checks: one mapping a row, same keys in each."""
        self.tables[name] = [dict(row) for row in rows]

    def not_run(self, name: str, reason: str) -> None:
        """Say that a check could not be run and why; it never counts as holding."""
        self.missing.append({"name": name, "reason": reason})

    @property
    def holds(self) -> bool:
        """Whether every check was run and holds."""
        return bool(self.checks) and not self.missing and all(check.holds for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """What the JSON file says."""
        return {
            "method": self.method,
            "seeds": list(self.seeds),
            "data": self.data,
            "command": f"clearwell reproduce {self.method}",
            "seconds": round(time.perf_counter() - self.started, 1),
            "environment": {
                "python": platform.python_version(),
                "torch": version("torch"),
                "scikit-learn": version("scikit-learn"),
                "cpus": os.cpu_count(),
            },
            "checks": [asdict(check) for check in self.checks],
            "not_run": self.missing,
            "tables": self.tables,
        }

    def write(self, folder: Path = RESULTS) -> Path:
        """Write ``<folder>/<method>.json`` (whole or not at all) and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.method}.json"
        draft = path.with_suffix(".json.part")
        plain = json.loads(
            json.dumps(self.as_dict(), default=lambda value: value.item()), parse_constant=lambda _: None
        )
        draft.write_text(json.dumps(plain, indent=2) + "\n")  # JSON knows no NaN and no infinity: null
        draft.replace(path)
        return path


def collect(method: str, seeds: Sequence[int] = SEEDS) -> Evidence:
    """Run the evidence module of `method` and return what it measured, unwritten.

    Raises
    ------
    LookupError
        If the method has no evidence module.
    """
    name = f"benchmarks.methods.{method.replace('-', '_')}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise LookupError(f"There is no evidence module {name} for the method {method!r}.") from None
    evidence = Evidence(method, seeds)
    module.collect(evidence)
    return evidence


if __name__ == "__main__":
    import sys

    outcome = collect(sys.argv[1], [int(seed) for seed in sys.argv[2:]] or SEEDS)
    print(outcome.write(), "holds" if outcome.holds else "falls short")

"""The stack measured: from nothing to all servers healthy, from stopped to healthy, and the memory of each part.

In a project of its own below a temporary folder, on ports of its own.

    python -m benchmarks.stack            writes benchmarks/results/stack.json
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.evidence import RESULTS
from infra.files import write_text

BUDGET = 60.0  # seconds from nothing to all healthy
PORTS = "stack: {postgres_port: 27432, objects_port: 27500, prefect_port: 27420, mlflow_port: 27450}\n"
_LINE = re.compile(r"^\s*([\d.]+) s  (.+?)(?: at .*)?$", re.MULTILINE)


def clearwell(project: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command in `project`; returns what it said, and its wall time with everything it imports."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("CLEARWELL_", "PREFECT_", "MLFLOW_", "AWS_"))}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=project, env={**kept, "CLEARWELL_ROOT": str(project)}, capture_output=True, text=True, check=True
    )
    return done, time.perf_counter() - began


def measure() -> dict[str, Any]:
    """One cold start, one warm start, one registration of the flows."""
    project = Path(tempfile.mkdtemp(prefix="clearwell-benchmark-"))
    project.chmod(0o711)  # the database's user passes through when root measures
    (project / "mlflow.yaml").write_text(PORTS)
    load = os.getloadavg()[0]
    try:
        cold, cold_seconds = clearwell(project, "up", "--no-deployments")
        parts = json.loads(clearwell(project, "status", "--json")[0].stdout)
        _, down_seconds = clearwell(project, "down")
        _, warm_seconds = clearwell(project, "up", "--no-deployments")
        _, deploy_seconds = clearwell(project, "deploy")
    finally:
        clearwell(project, "down")
        shutil.rmtree(project, ignore_errors=True)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": psutil.cpu_count(),
        "load_before": round(load, 2),
        "cold_seconds": round(cold_seconds, 1),
        "budget_seconds": BUDGET,
        "within_budget": cold_seconds <= BUDGET,
        "healthy_after": {name: float(seconds) for seconds, name in _LINE.findall(cold.stderr)},
        "warm_seconds": round(warm_seconds, 1),
        "register_flows_seconds": round(deploy_seconds, 1),
        "down_seconds": round(down_seconds, 1),
        "memory_mb": {part["part"]: part["memory_mb"] for part in parts},
    }


def main() -> None:
    """Measure, print and keep."""
    found = measure()
    print(json.dumps(found, indent=2))
    write_text(RESULTS / "stack.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

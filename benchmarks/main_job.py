"""The main job measured: time and memory by stage, three seeds, warm rerun, one change, and the platform's overhead.

Runs in a project of its own below a temporary folder, so that nothing of this checkout is touched.

    python -m benchmarks.main_job            writes benchmarks/results/main_job.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.evidence import RESULTS, SEEDS
from infra.files import write_text
from infra.settings import SETTINGS_FILE, find_root
from tasks.evaluate import LOWER_IS_BETTER, ROWS

BUDGETS = {"cold_seconds": 240.0, "warm_seconds": 15.0, "peak_memory_mb": 3072.0, "overhead": 0.10}


def call(command: list[str], project: Path) -> tuple[dict[str, Any], float]:
    """Run a command that prints JSON in `project`; returns what it printed and its wall time."""
    environment = {**os.environ, "CLEARWELL_ROOT": str(project)}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout), seconds


def measure(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Cold runs at every seed, a warm rerun, a changed parameter, and the methods called directly."""
    root = find_root()
    run = [str(Path(sys.executable).with_name("clearwell")), "run", "--json"]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            project = Path(folder) / f"seed-{seed}"
            project.mkdir()
            shutil.copy(root / SETTINGS_FILE, project)
            shutil.copytree(root / "data", project / "data")
            summary, seconds = call([*run, "--seed", str(seed)], project)
            runs.append({"seed": seed, "wall_seconds": seconds, **_kept(summary)})
            print(f"seed {seed}: {seconds:.0f} s, {summary['chain']}", flush=True)
        warm, warm_seconds = call([*run, "--seed", str(seeds[-1])], project)
        changed, _ = call([*run, "--seed", str(seeds[-1]), "--set", "compress.parameters.weight_bits=5"], project)
        direct, direct_seconds = call(
            [sys.executable, "-m", "benchmarks.direct", str(project / "data" / "scans")], root
        )
    cold = min(run["wall_seconds"] for run in runs)
    return {
        "command": "python -m benchmarks.main_job",
        "cpus": os.cpu_count(),
        "runs": runs,
        "wins": {key: sum(_wins(run, key) for run in runs) for key in ROWS},
        "cold_seconds": cold,
        "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
        "warm_seconds": warm_seconds,
        "warm_recomputed": [stage["name"] for stage in warm["stages"] if not stage["cached"]],
        "changed_compress_recomputed": [stage["name"] for stage in changed["stages"] if not stage["cached"]],
        "direct": direct | {"wall_seconds": direct_seconds},
        "overhead": cold / direct_seconds - 1,
        "budgets": BUDGETS,
    }


def _kept(summary: dict[str, Any]) -> dict[str, Any]:
    stages = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
    chosen = ("naive", "chain", "champion", "peak_memory_mb")
    return {"stages": stages, **{name: summary[name] for name in chosen}}


def _wins(run: dict[str, Any], key: str) -> bool:
    naive, chain = run["naive"][key], run["chain"][key]
    return bool(chain < naive if key in LOWER_IS_BETTER else chain > naive)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    found = measure(tuple(parser.parse_args().seeds))
    write_text(RESULTS / "main_job.json", json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: found[name] for name in (*BUDGETS, "wins", "warm_recomputed")}, indent=2))

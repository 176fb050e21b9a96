"""The report of a run: ``reports/latest/index.html`` and ``summary.json``, also logged to MLflow and Prefect."""

from __future__ import annotations

import json
import resource
import time
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from infra.files import draft_folder, publish, write_text
from infra.project import Project
from infra.references import StageResult
from tasks.ingest import Ingested

BEGAN = time.time()


@task(name="report", cache_policy=NO_CACHE)
def publish_report(found: Ingested, results: list[StageResult], parent: str) -> dict[str, Any]:
    """Write the report in one step and return its summary."""
    project = Project()
    summary = summarise(found, results, parent)
    reports = project.root / "reports"
    with draft_folder(reports) as draft:
        write_text(draft / "summary.json", json.dumps(summary, indent=2) + "\n")
        project.tracker.files(parent, draft, "report")
        latest = reports / "latest"
        if latest.exists():
            with draft_folder(reports) as old:
                latest.rename(old / "replaced")
        publish(draft, latest)
    return summary


def summarise(found: Ingested, results: list[StageResult], parent: str) -> dict[str, Any]:
    """The run in figures, JSON values only."""
    stages = {result.stage: result for result in results}
    judged = stages["evaluate"].evidence["models"] if "evaluate" in stages else {}
    registered = stages["register"].evidence if "register" in stages else {}
    outputs = [result.data for result in results if result.data is not None]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": parent,
        "stages": [
            {
                "name": result.stage,
                "method": result.method,
                "seconds": result.seconds,
                "cached": result.cached,
                "why": result.why,
                "metrics": result.metrics,
            }
            for result in results
        ],
        "naive": judged.get("naive", {}),
        "chain": judged.get("chain", {}),
        "champion": {name: registered.get(name) for name in ("name", "version", "alias")},
        "data": {
            "name": found.data.name,
            "input_version": found.data.version,
            "output_version": outputs[-1].version if outputs else found.data.version,
        },
        "wall_seconds": round(time.time() - BEGAN, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }

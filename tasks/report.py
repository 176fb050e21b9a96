"""The report of a run: ``reports/latest/index.html`` and ``summary.json``, also logged to MLflow and Prefect."""

from __future__ import annotations

import base64
import json
import resource
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from prefect.artifacts import create_link_artifact, create_table_artifact

from infra.files import draft_folder, replace, write_text
from infra.project import Project
from infra.references import DatasetRef, StageResult
from tasks.evaluate import LOWER_IS_BETTER, ROWS
from tasks.ingest import Ingested
from tasks.stage import stage_task

GROUPS = {
    "Samples": ("label_errors", "intruders", "duplicates", "unknowns"),
    "Training": ("curves", "relearning"),
    "Features and mistakes": (
        "embedding",
        "confusion_source_naive",
        "confusion_source_chain",
        "confusion_target_naive",
        "confusion_target_chain",
    ),
}
WIDE = ("label_errors", "intruders", "duplicates", "unknowns", "curves", "embedding")


@stage_task("report")
def publish_report(found: Ingested, results: list[StageResult], parent: str, began: float) -> dict[str, Any]:
    """Write the report in one step and return its summary.

    Parameters
    ----------
    parent : str
        MLflow run of the flow; the report becomes its artifact.
    began : float
        ``time.time()`` when the flow began.
    """
    project = Project()
    summary = summarise(found, results, parent, began)
    reports = project.root / "reports"
    with draft_folder(reports) as draft:
        write_text(draft / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_text(draft / "index.html", page(project, summary, results))
        project.tracker.files(parent, draft, "report")
        replace(draft, reports / "latest")
    project.tracker.metrics(parent, {f"chain.{name}": value for name, value in summary["chain"].items()})
    project.tracker.metrics(parent, {"wall_seconds": summary["wall_seconds"]})
    _prefect_artifacts(summary, (project.root / "reports" / "latest" / "index.html").as_uri())
    return summary


def summarise(found: Ingested, results: Sequence[StageResult], parent: str, began: float) -> dict[str, Any]:
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
                "headline": _headline(result),
            }
            for result in results
        ],
        "naive": judged.get("naive", {}),
        "chain": judged.get("chain", {}),
        "champion": {name: registered.get(name) for name in ("name", "version", "alias")},
        "refused": registered.get("refused", "" if registered else "register or compress is switched off"),
        "data": {
            "name": found.data.name,
            "input_version": found.data.version,
            "output_version": outputs[-1].version if outputs else found.data.version,
        },
        "wall_seconds": round(time.time() - began, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def page(project: Project, summary: dict[str, Any], results: Sequence[StageResult]) -> str:
    """The self-contained page: pictures are inside it."""
    from jinja2 import Environment

    template = files("tasks").joinpath("report_page.html.j2").read_text()
    registered = next((r.evidence for r in results if r.stage == "register"), {})
    validated = next((r.evidence for r in results if r.stage == "validate"), {})
    judged = next((r.evidence for r in results if r.stage == "evaluate"), {})
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            summary=summary,
            rows=_comparison(summary),
            cleaning=judged.get("cleaning", {}),
            groups=_figures(project, results),
            verdicts=registered.get("verdicts", []),
            versions=list(_versions(results)),
            commands=_commands(project, summary),
            data_docs=validated.get("data_docs", ""),
        )
    )


def _headline(result: StageResult) -> str:
    shown = {name: value for name, value in result.metrics.items() if "." not in name}
    return ", ".join(f"{name.replace('_', ' ')} {_figure(value)}" for name, value in list(shown.items())[:6])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _comparison(summary: dict[str, Any]) -> list[dict[str, Any]]:
    naive, chain = summary["naive"], summary["chain"]
    rows = []
    for key, meaning in ROWS.items():
        if key in naive and key in chain:
            wins = chain[key] < naive[key] if key in LOWER_IS_BETTER else chain[key] > naive[key]
            shown = [f"{value:,.0f}" if key == "size_bytes" else f"{value:.3f}" for value in (naive[key], chain[key])]
            rows.append({"meaning": meaning, "naive": shown[0], "chain": shown[1], "wins": wins})
    return rows


def _figures(project: Project, results: Sequence[StageResult]) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: list[tuple[str, list[dict[str, Any]]]] = []
    for title, names in GROUPS.items():
        found = []
        for name in names:
            for result in results:
                for figure in result.figures:
                    if figure.file == f"{name}.png":
                        png = base64.b64encode((project.cache.record(result) / figure.file).read_bytes()).decode()
                        found.append(
                            {"png": png, "caption": figure.caption, "stage": result.stage, "wide": name in WIDE}
                        )
        groups.append((title, found))
    return groups


def _versions(results: Sequence[StageResult]) -> Any:
    for result in results:
        for ref in result.references:
            if isinstance(ref, DatasetRef):
                command = f"clearwell data restore {ref} --to {ref.name}"
                yield {"stage": result.stage, "ref": str(ref), "rows": ref.rows, "command": command}
            else:
                yield {"stage": result.stage, "ref": str(ref), "rows": None, "command": f"in {ref.uri}"}


def _commands(project: Project, summary: dict[str, Any]) -> list[str]:
    lines = ["clearwell run                                  # again: everything comes from the cache"]
    lines.append("clearwell run --set compress.parameters.prune_ratio=0.3 --explain-cache")
    lines.append(f"mlflow ui --backend-store-uri {project.settings.tracking_uri}")
    name = summary["champion"]["name"]
    if name:
        lines += [f"clearwell history {name}", f"clearwell rollback {name}"]
    return lines


def _prefect_artifacts(summary: dict[str, Any], address: str) -> None:
    stages = [
        {
            "stage": s["name"],
            "method": s["method"],
            "seconds": s["seconds"],
            "from": "cache" if s["cached"] else "computed",
        }
        for s in summary["stages"]
    ]
    create_table_artifact(stages, key="stages", description="Stages of the run")
    compared = [{"measured": r["meaning"], "naive": r["naive"], "chain": r["chain"]} for r in _comparison(summary)]
    if compared:
        create_table_artifact(compared, key="naive-against-chain", description="Same network, same rows")
    create_link_artifact(address, key="report", link_text="report", description="The page of this run")

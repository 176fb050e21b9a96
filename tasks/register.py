"""Stage register: the compressed model becomes a version in the registry, is judged by the gates and promoted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from infra import datasets as ds
from infra.errors import PromotionError
from infra.files import draft_folder
from infra.model_registry import CANDIDATE, CHAMPION
from infra.project import Project
from infra.references import DatasetRef, ModelRef, StageResult
from infra.registered import origin_tags
from infra.scoring import save_scoring_model
from tasks.compress import load_program
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task

SPLIT_OF = {
    "source_accuracy": "test",
    "calibration_error": "test",
    "h_score": "target",
    "known_accuracy": "target",
    "unknown_recall": "target",
    "membership_advantage": "erasure",
    "membership_chance": "erasure",
    "size_bytes": "model",
    "latency_ms": "model",
}


class RegisterConfig(StageConfig):
    """How the model is registered."""

    method: Literal["none"] = Field(
        "none", description="There is nothing to choose; gates and names stand in mlflow.yaml."
    )
    promote: bool = Field(True, description="Make the version champion when every gate holds.")


@stage_task("register")
def register(
    data: DatasetRef,
    model: ModelRef,
    stages: list[StageResult],
    evaluation: StageResult,
    config: RegisterConfig,
    run: RunContext,
) -> StageResult:
    """Register, judge, and promote if the gates hold; the former champion keeps the alias ``previous``."""
    project = Project()
    name = project.settings.registry.model.format(data=data.name)

    def work(desk: Desk) -> None:
        registry = desk.project.registry
        measured = _measured(evaluation)
        run_id = _log_model(desk, data, model, run)
        key = f"{model.digest}:{data.version}"
        card = _model_card(name, data, model, stages, evaluation)
        tags = {"clearwell.data": str(data), "clearwell.data_version": data.version, "clearwell.model": model.digest}
        tags |= origin_tags(_evidence(stages, "compress"), _evidence(stages, "adapt").get("split"))
        version = registry.register(name, run_id, key, card, tags, measured)
        verdicts = registry.judge(name, version)
        registry.promote(name, version, CANDIDATE, reason="registered")
        alias = CANDIDATE
        refused = ""
        if config.promote and not desk.project.settings.registry.requires_approval:
            try:
                registry.promote(name, version)
                alias = CHAMPION
            except PromotionError as error:
                refused = str(error)
        desk.model = model
        desk.evidence |= {
            "name": name,
            "version": version,
            "alias": alias,
            "refused": refused,
            "card": card,
            "verdicts": [verdict.model_dump() | {"text": str(verdict)} for verdict in verdicts],
        }
        desk.metrics |= {"gates": len(verdicts), "gates_failed": sum(not verdict.holds for verdict in verdicts)}

    settings = project.settings
    depends = {"gates": [gate.model_dump() for gate in settings.gates], "name": name, "scores": evaluation.key}
    return run_stage(
        "register", config, {"data": data, "model": model}, work, run, still_true=_exists, settings=depends
    )


def _exists(project: Project, result: StageResult) -> bool:
    try:
        project.registry.require_version(result.evidence["name"], result.evidence["version"])
    except PromotionError:
        return False
    return True


def _evidence(stages: list[StageResult], stage: str) -> dict[str, Any]:
    return next((result.evidence for result in stages if result.stage == stage), {})


def _measured(evaluation: StageResult) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for metric, value in evaluation.evidence["models"]["chain"].items():
        found.setdefault(SPLIT_OF.get(metric, "model"), {})[metric] = value
    return found


def _log_model(desk: Desk, data: DatasetRef, model: ModelRef, run: RunContext) -> str:
    """Write the served model (program, signature, input example) as an artifact of the flow's run."""
    schema = ds.infer_schema(desk.project.versions.path(data))
    shape = (schema.channels, *(schema.image_size or ())) if schema.kind == "image" else (len(schema.features),)
    example = np.zeros((2, *shape), dtype=np.float32)
    program = load_program(desk.project, model)

    def answer(batch: Any) -> Any:
        import torch

        with torch.inference_mode():
            return program(torch.from_numpy(batch)).softmax(1).numpy()

    with draft_folder(desk.project.settings.state) as draft:
        target = Path(draft) / "model"
        save_scoring_model(target, desk.project.models.path(model), schema, example, answer(example))
        desk.project.tracker.files(run.parent, target, "model")
    return run.parent


def _model_card(
    name: str, data: DatasetRef, model: ModelRef, stages: list[StageResult], evaluation: StageResult
) -> str:
    lines = [f"# {name}", "", f"Made from `{data}` ({data.rows} rows); weights `{model.digest[:20]}`.", "", "## How"]
    for stage in stages:
        detail = ", ".join(f"{key} {value:.4g}" for key, value in list(stage.metrics.items())[:6])
        lines.append(f"- **{stage.stage}** ({stage.method}): {detail}")
    lines += ["", "## Measured", "| model | " + " | ".join(evaluation.evidence["models"]["chain"]) + " |"]
    lines.append("|---" * (1 + len(evaluation.evidence["models"]["chain"])) + "|")
    for which, row in evaluation.evidence["models"].items():
        lines.append(f"| {which} | " + " | ".join(f"{value:.4g}" for value in row.values()) + " |")
    lines += [
        "",
        "## Limits",
        "Trained and measured on the splits of this dataset version only. Rows whose normalised entropy exceeds the "
        "rejection threshold are answered 'unknown'.",
        "",
        "```json",
        json.dumps({"data": data.model_dump(), "model": model.model_dump()}, indent=2),
        "```",
    ]
    return "\n".join(lines)

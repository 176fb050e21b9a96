"""Stage drift: has what arrives changed since the champion was made? Nothing is asked of labels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from infra import datasets as ds
from infra.arrivals import Place
from infra.events import DRIFT, emit
from infra.project import Project
from infra.references import DatasetRef, ModelRef, StageResult
from infra.registered import Registered
from tasks.arrivals import Batch
from tasks.score import log_probabilities
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task

Inputs = dict[str, DatasetRef | ModelRef | None]


class DriftConfig(StageConfig):
    """When new data count as drift."""

    enabled: Literal[True] = Field(True, description="Always on.")
    method: Literal["none"] = Field("none", description="There is nothing to choose: all measures are taken.")
    domain_auc: float = Field(
        0.75, ge=0.5, le=1, description="A classifier tells new rows from the reference this well (0.5: not at all)."
    )
    confidence_divergence: float = Field(
        0.1, ge=0, le=1, description="Jensen-Shannon divergence, in bits, of the histograms of confidence."
    )
    separability_drop: float = Field(0.15, le=1, description="Share of the reference's separability that is lost.")
    agreeing: int = Field(2, ge=1, le=3, description="How many of these bounds must be exceeded.")
    sample_rows: int = Field(1000, ge=50, description="Rows that are drawn of each side at most.")

    @property
    def bounds(self) -> dict[str, float]:
        """Measure -> bound."""
        return {name: getattr(self, name) for name in ("domain_auc", "confidence_divergence", "separability_drop")}


@stage_task("drift_reference")
def drift_reference(model: Registered, config: DriftConfig, run: RunContext) -> StageResult:
    """What the model says of the data it is meant for: log-probabilities of a sample, one tensor a domain.

    Made once a version; the result's model holds them.
    """

    def work(desk: Desk) -> None:
        import torch

        folder = desk.project.versions.path(model.data)
        tensors = {
            domain: torch.from_numpy(_sample(desk, model, folder, [domain], config))
            for domain in model.domains
            if domain in ds.splits_of(folder)
        }
        desk.model = desk.project.models.save("drift-reference", tensors, {"model": str(model.model), "of": model.name})
        desk.metrics |= {f"{domain}.rows": len(values) for domain, values in tensors.items()}

    inputs: Inputs = {"data": model.data, "model": model.model}
    settings = {"domains": list(model.domains), "rows": config.sample_rows}
    kept = StageConfig(method="none", seed=config.seed)
    return run_stage("drift_reference", kept, inputs, work, run, settings=settings)


@stage_task("drift")
def drift(
    batch: DatasetRef, model: Registered, reference: ModelRef, config: DriftConfig, run: RunContext
) -> StageResult:
    """Compare a batch with every domain of the model; it has drifted when it is far from each of them."""

    def work(desk: Desk) -> None:
        from models.drift import drifted, measure

        folder = desk.project.versions.path(batch)
        new = _sample(desk, model, folder, ds.splits_of(folder), config)
        known, _ = desk.project.models.load(reference)
        found = {domain: measure(values.numpy(), new, config.seed) for domain, values in known.items()}
        nearest = min(found, key=lambda domain: _excess(found[domain], config))
        desk.metrics |= {f"{domain}.{name}": value for domain, row in found.items() for name, value in row.items()}
        desk.metrics |= found[nearest] | {"rows": batch.rows}
        desk.evidence |= {
            "drifted": drifted(found[nearest], config.bounds, config.agreeing),
            "nearest": nearest,
            "measured": found[nearest],
            "bounds": config.bounds,
        }

    inputs: Inputs = {"data": batch, "model": model.model, "reference": reference}
    return run_stage("drift", config, inputs, work, run, settings={"model": model.name, "version": model.version})


@stage_task("announce")
def announce(where: str, batch: Batch, model: Registered, found: StageResult) -> dict[str, Any]:
    """File what was found in the ledger, and tell the Prefect server when it is drift.

    The event is sent first: a watch that dies in between finds the same files new and tells it again.
    """
    project = Project()
    told = {
        "batch": str(batch.data),
        "rows": batch.rows,
        "model": model.name,
        "version": model.version,
        "drifted": bool(found.evidence["drifted"]),
        "nearest": found.evidence["nearest"],
        **{name: round(value, 4) for name, value in found.evidence["measured"].items()},
    }
    heard = told["drifted"] and emit(project.settings, DRIFT, f"model.{model.name}", told)
    project.ledger.append("drift", **told, heard=heard)
    Place(project, where).note(batch.files, batch=str(batch.data), drifted=told["drifted"])
    return {**told, "bounds": found.evidence["bounds"], "event": DRIFT if heard else ""}


def _sample(desk: Desk, model: Registered, folder: Any, splits: list[str], config: DriftConfig) -> Any:
    """Log-probabilities of rows drawn from these splits together."""
    schema = ds.infer_schema(folder)
    found = []
    sizes = [len(ds.Split(folder, split)) for split in splits]
    share = min(1.0, config.sample_rows / max(sum(sizes), 1))
    for split, size in zip(splits, sizes, strict=True):
        drawn = np.random.default_rng(config.seed).permutation(size)[: int(np.ceil(size * share))]
        found.append(
            log_probabilities(desk.project, model, ds.read_split(folder, split).select(np.sort(drawn)), schema)
        )
    return np.concatenate(found)


def _excess(measured: dict[str, float], config: DriftConfig) -> tuple[int, float]:
    """How many bounds a domain's measures exceed, then how well it is told apart."""
    return sum(measured[name] > bound for name, bound in config.bounds.items()), measured["domain_auc"]

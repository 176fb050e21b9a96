"""The main job: from a dataset nobody fully trusts to a registered champion, every step tracked and kept.

    ingest -> validate -> label_noise -> pretrain -> finetune -> adapt -> unlearn -> compress -> evaluate -> register

On request `curate` chooses rows between label_noise and pretrain.

Beside the chain the naive model is trained, same network, raw labels; both are judged on the same rows.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow

from flows.config import LifecycleConfig, check_methods
from flows.hooks import tell_failure
from infra import datasets as ds
from infra.project import Project
from infra.references import DatasetRef, ModelRef, StageResult
from tasks.adapt import adapt
from tasks.compress import compress
from tasks.curate import curate
from tasks.evaluate import evaluate
from tasks.finetune import finetune, train_naive
from tasks.ingest import Ingested, ingest
from tasks.label_noise import label_noise
from tasks.pretrain import pretrain
from tasks.register import register
from tasks.report import publish_report
from tasks.stage import RunContext
from tasks.tracked import tracked
from tasks.unlearn import unlearn
from tasks.validate import validate

DEFAULTS = LifecycleConfig()
PATIENCE = 6 * 3600.0  # seconds that a run waits for another one on the same dataset


@flow(name="lifecycle", log_prints=False, on_failure=[tell_failure], on_crashed=[tell_failure])
def lifecycle(
    config: LifecycleConfig = DEFAULTS,
    refresh: tuple[str, ...] = (),
    command: str = "clearwell run",
) -> dict[str, Any]:
    """Run the whole chain, from data nobody fully trusts to a registered model, and return the report's summary.

    One run at a time works on a dataset; another one waits, and then takes from the cache what the first one made.

    Args:
        config: What to run on, and how each stage works.
        refresh: Stages to compute even when the cache holds them; "all" means every stage.
        command: What a user types to continue after a failure.
    """
    began = time.time()
    project = Project()
    values = config.model_dump(mode="json", by_alias=True)
    with tracked("lifecycle", Path(config.data).name, values, refresh, command) as run:
        found = ingest(config.data)
        with project.ledger.turn(f"lifecycle:{found.data.name}", PATIENCE):
            check_methods(config, ds.infer_schema(project.versions.path(found.data)).kind)
            project.tracker.dataset(run.parent, found.data, "input")
            results = _chain(found, config, run)
            return publish_report(found, results, run.parent, began)


def _chain(found: Ingested, config: LifecycleConfig, run: RunContext) -> list[StageResult]:
    """The stages in order; a stage that is switched off, or has nothing to work on, hands its input on."""
    results: list[StageResult] = []
    data, network, model = found.data, config.network, None

    def note(result: StageResult) -> StageResult:
        results.append(result)
        return result

    if config.validate_.enabled:
        data = _data(note(validate(data, config.validate_, run)))
    checked = data
    if config.label_noise.enabled:
        labelled = note(label_noise(data, network, config.label_noise, run))
        data, model = _data(labelled), labelled.model
    if config.curate.enabled:
        data = _data(note(curate(data, None, config.curate, run)))
    encoder: ModelRef | None = None
    if config.pretrain.enabled:
        encoder = note(pretrain(data, model, network, config.pretrain, run)).model
    model = note(finetune(data, encoder, network, config.finetune, run)).model
    assert model is not None
    splits = ds.splits_of(Project().versions.path(data))
    adapting = config.adapt.enabled and config.adapt.split in splits
    if adapting:
        model = _model(note(adapt(checked, model, config.adapt, run)))
    if config.unlearn.enabled and found.erasure is not None:
        reference = _model(note(finetune(data, encoder, network, config.finetune, run, found.erasure, "reference")))
        if adapting:
            reference = _model(note(adapt(checked, reference, config.adapt, run, "reference-adapt")))
        model = _model(note(unlearn(data, found.erasure, model, reference, config.unlearn, run)))
    if config.compress.enabled:
        model = _model(note(compress(checked, model, config.compress, run)))
    models = {"chain": model}
    if config.naive.enabled:
        models = {"naive": _model(note(train_naive(found.data, network, config.naive, run))), **models}
    judged = note(evaluate(data, found.data, found.erasure, found.truth, models, config.evaluate, run))
    if config.register_.enabled and config.compress.enabled:  # what is registered is compress's exported program
        note(register(data, model, results, judged, config.register_, run))
    return results


def _data(result: StageResult) -> DatasetRef:
    assert result.data is not None
    return result.data


def _model(result: StageResult) -> ModelRef:
    assert result.model is not None
    return result.model

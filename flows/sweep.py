"""One stage over many datasets and parameters: mapped work, divided over the runner that the settings name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from prefect import flow

from flows.config import LifecycleConfig, load_config
from infra.errors import ConfigurationError
from infra.references import DatasetRef, StageResult
from tasks.ingest import ingest
from tasks.label_noise import label_noise
from tasks.pretrain import pretrain
from tasks.stage import RunContext
from tasks.tracked import tracked
from tasks.validate import validate

STAGES = ("validate", "label_noise", "pretrain")


@flow(name="sweep")
def sweep(
    stage: str, data: tuple[str, ...], vary: dict[str, tuple[Any, ...]], command: str = ""
) -> list[dict[str, Any]]:
    """Run a stage on every dataset with every combination of values.

    Args:
        stage: validate, label_noise or pretrain.
        data: Names of datasets, NAME@VERSION, or paths.
        vary: Field of the stage -> the values to try, such as seed or parameters.epochs.
        command: What a user types to continue after a failure.
    """
    chosen = variants(stage, vary)
    with tracked(
        "sweep", ", ".join(data), {"stage": stage, "data": data, "vary": vary}, command=command or None
    ) as run:
        found = [ingest(name).data for name in data]
        cases = [(ref, values, config) for ref in found for values, config in chosen]
        futures = [_submit(stage, ref, config, run) for ref, _, config in cases]
        results: list[StageResult] = [future.result() for future in futures]
    return [
        {"data": str(ref), **values, "seconds": result.seconds, "cached": result.cached, **result.metrics}
        for (ref, values, _), result in zip(cases, results, strict=True)
    ]


def variants(stage: str, vary: Mapping[str, Sequence[Any]]) -> list[tuple[dict[str, Any], LifecycleConfig]]:
    """Each combination of the values, and the whole configuration it makes.

    Raises
    ------
    ConfigurationError
        For a stage that can not stand alone, an unknown field or an impossible value.
    """
    if stage not in STAGES:
        raise ConfigurationError(f"A sweep takes one of the stages {', '.join(STAGES)}, got {stage!r}.")
    combinations = [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]
    return [
        (each, load_config(overrides=[f"{stage}.{name}={value}" for name, value in each.items()]))
        for each in combinations
    ]


def _submit(stage: str, data: DatasetRef, config: LifecycleConfig, run: RunContext) -> Any:
    if stage == "validate":
        return validate.submit(data, config.validate_, run)
    if stage == "label_noise":
        return label_noise.submit(data, config.network, config.label_noise, run)
    return pretrain.submit(data, None, config.network, config.pretrain, run)

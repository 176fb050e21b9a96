"""From a network to a candidate: compress, measure beside the champion, register, let the gates judge."""

from __future__ import annotations

from infra.errors import StoreError
from infra.references import DatasetRef, ModelRef, StageResult
from infra.registered import Registered
from tasks.compress import CompressConfig, compress
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.ingest import newest
from tasks.register import RegisterConfig, register
from tasks.stage import RunContext


def origin(model: Registered) -> ModelRef:
    """The network that a registered version was compressed from.

    Raises
    ------
    StoreError
        If the version does not say, as those that an older clearwell registered.
    """
    if model.origin is None:
        raise StoreError(f"{model} does not say which network it was compressed from. Run the lifecycle flow again.")
    return model.origin


def candidate(
    champion: Registered,
    data: DatasetRef,
    network: ModelRef,
    before: list[StageResult],
    config: CompressConfig,
    promote: bool,
    run: RunContext,
) -> list[StageResult]:
    """The stages from a network on; the last one is the registration."""
    small = compress(data, network, config, run)
    assert small.model is not None
    models = {"champion": champion.model, "chain": small.model}
    erasure = newest(f"{data.name}-erasure")
    judged = evaluate(data, data, erasure, None, models, EvaluateConfig(), run)
    results = [*before, small, judged]
    return [*results, register(data, small.model, results, judged, RegisterConfig(promote=promote), run)]

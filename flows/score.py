"""Batch prediction: what the champion says of every row, as a new version of the dataset."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.hooks import tell_failure
from tasks.champion import find_model
from tasks.ingest import ingest
from tasks.score import ScoreConfig
from tasks.score import score as scoring
from tasks.tracked import summary, tracked


@flow(name="score", on_failure=[tell_failure], on_crashed=[tell_failure])
def score(
    data: str = "scans",
    model: str = "",
    config: ScoreConfig = ScoreConfig(),
) -> dict[str, Any]:
    """Add class, confidence and "unknown" to every row; written as a version of ``<name>-scored``.

    Args:
        data: Name of a dataset, NAME@VERSION, or a path to your own data.
        model: NAME@ALIAS or NAME@VERSION; empty: the champion of the dataset.
        config: How rows are scored.
    """
    with tracked("score", data, {"data": data, "model": model, "score": config}) as run:
        found = ingest(data).data
        chosen = find_model(model, found.name)
        result = scoring(found, chosen, config, run)
        assert result.data is not None
        return {**summary([result]), "data": str(result.data), "rows": result.data.rows, "model": str(chosen)}

"""Embed a dataset with a registered model's network, shard by shard."""

from __future__ import annotations

from typing import Any

from prefect import flow

from tasks.champion import find_model
from tasks.embed import EmbedConfig
from tasks.embed import embed as embedding
from tasks.ingest import ingest
from tasks.tracked import tracked


@flow(name="embed")
def embed_dataset(data: str = "scans", model: str = "", command: str = "") -> dict[str, Any]:
    """Write what the network makes of every row as a version of ``<name>-embedded``.

    Args:
        data: Name of a dataset, NAME@VERSION, or a path to your own data.
        model: NAME@ALIAS or NAME@VERSION; empty: the champion of the dataset.
        command: What a user types to continue after a failure.
    """
    with tracked("embed", data, {"data": data, "model": model}, command=command or None) as run:
        found = ingest(data).data
        chosen = find_model(model, found.name)
        result = embedding(found, chosen.origin or chosen.model, EmbedConfig(), run)
        assert result.data is not None
        return {**result.metrics, "data": str(result.data), "rows": result.data.rows, "model": str(chosen)}

"""Stage embed: what a network makes of every row, shard by shard, as a table that is a dataset of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from infra import datasets as ds
from infra.errors import DatasetFormatError
from infra.model_store import ModelStore
from infra.references import DatasetRef, ModelRef, StageResult
from infra.runner import runner
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

KEPT = ("id", "label", "domain", "split", "source")


class EmbedConfig(StageConfig):
    """How rows are embedded."""

    enabled: Literal[True] = Field(True, description="Always on.")
    method: Literal["none"] = Field("none", description="There is nothing to choose: the network is run.")
    batch_rows: int = Field(1024, gt=0, description="Rows that pass the network together.")


@dataclass(frozen=True)
class Shard:
    """One shard to embed, and where its embedding goes."""

    root: Path
    folder: Path
    split: str
    number: int
    target: Path
    schema: ds.Schema
    model: ModelRef
    batch_rows: int


@stage_task("embed")
def embed(data: DatasetRef, model: ModelRef, config: EmbedConfig, run: RunContext) -> StageResult:
    """Embed every row; the result's data is a version of ``<name>-embedded`` with the columns e0, e1, ...

    Shards are read part by part, and are divided over the workers of the runner.
    """

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)

        def write(target: Path) -> int:
            shards = [
                Shard(desk.project.root, folder, split, number, target, schema, model, config.batch_rows)
                for split in schema.splits
                for number in range(len(ds.Split(folder, split).shards))
            ]
            for split in schema.splits:
                (target / split).mkdir(parents=True)
            return sum(runner().map_shards(embed_shard, shards))

        desk.data = desk.project.versions.add(f"{data.name}-embedded", write, source=f"{data} by {model}")
        desk.metrics |= {
            "rows": desk.data.rows,
            "width": len(ds.infer_schema(desk.project.versions.path(desk.data)).features),
        }

    return run_stage("embed", config, {"data": data, "model": model}, work, run)


def embed_shard(shard: Shard) -> int:
    """Embed the rows of one shard; returns how many."""
    import torch

    from models.base import predict_in_batches
    from models.state import unpack

    network = unpack(*ModelStore(shard.root).load(shard.model)).eval()
    source = ds.Split(shard.folder, shard.split, shard.number)
    kept = [name for name in KEPT if name in source.column_names]
    inputs = ["image"] if shard.schema.kind == "image" else list(shard.schema.features)
    target = shard.target / shard.split / source.shards[0].name
    writer: pq.ParquetWriter | None = None
    rows = 0
    for part in source.parts([*kept, *inputs], row_bytes=ds.decoded_bytes(shard.schema)):
        X = torch.from_numpy(
            ds.inputs(ds.as_dataset(part.select(_needed(kept, inputs)), source.features), shard.schema)
        )
        found = predict_in_batches(partial(_embedding, features_of(network)), X, shard.batch_rows).numpy()
        columns = [pa.array(column) for column in found.T]
        table = part.select(kept)
        for place, column in enumerate(columns):
            table = table.append_column(f"e{place}", column)
        if writer is None:
            features = ds.features_with(
                source.features, kept, {f"e{place}": "float32" for place in range(len(columns))}
            )
            writer = pq.ParquetWriter(target, features.arrow_schema)
        writer.write_table(table.cast(writer.schema))
        rows += len(part)
    if writer is not None:
        writer.close()
    return rows


def _needed(kept: list[str], inputs: list[str]) -> list[str]:
    return [*(name for name in kept if name == "id"), *inputs]  # the id is named when an image can not be used


def features_of(network: Any) -> Callable[[Tensor], Any]:
    """The part of a network that embeds: what lies before its classifier, or all of an encoder."""
    return getattr(network, "features", None) or getattr(network, "encoder", None) or network


def _embedding(function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    found = function(x)
    if not hasattr(found, "ndim"):
        raise DatasetFormatError("The network gives no embedding: register a classifier, or name an encoder.")
    return (found.mean(dim=(2, 3)) if found.ndim == 4 else found.flatten(1)).float()

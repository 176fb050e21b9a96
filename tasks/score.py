"""Stage score: what a registered model says of every row, as a new version of the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field

from infra import datasets as ds
from infra.errors import DatasetFormatError
from infra.references import DatasetRef, StageResult
from infra.registered import Registered
from tasks.compress import example_input, load_program
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from infra.project import Project


class ScoreConfig(StageConfig):
    """How rows are scored."""

    enabled: Literal[True] = Field(True, description="Always on.")
    method: Literal["none"] = Field("none", description="There is nothing to choose: the registered program is run.")
    reject_threshold: float = Field(0.55, gt=0, lt=1, description="Normalised entropy above which a row is unknown.")
    batch_rows: int = Field(1024, gt=0, description="Rows that are held in memory at a time.")


@stage_task("score")
def score(data: DatasetRef, model: Registered, config: ScoreConfig, run: RunContext) -> StageResult:
    """Add to every row the model's class (-1: unknown), its confidence, and whether it is unknown.

    The result's data is a version of ``<name>-scored`` with the columns of ``infra.datasets.SCORES``.
    """

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        names = class_names(desk.project, model)
        unknown: dict[str, int] = {}

        def write(target: Path) -> int:
            rows = 0
            for split in schema.splits:
                rows_of_split = ds.read_split(folder, split)
                found = log_probabilities(desk.project, model, rows_of_split, schema, config.batch_rows)
                columns = scores(found, config.reject_threshold)
                unknown[split] = int(columns["unknown"].sum())
                rows += ds.write_split(_with_scores(rows_of_split, columns, names), target, split)
            return rows

        desk.data = desk.project.versions.add(f"{data.name}-scored", write, source=f"{data} by {model}")
        desk.metrics |= {"rows": desk.data.rows, "unknown": sum(unknown.values())}
        desk.metrics |= {f"{split}.unknown": count for split, count in unknown.items()}
        desk.evidence |= {"model": model.name, "version": model.version}

    return run_stage("score", config, {"data": data, "model": model.model}, work, run, settings=model.version)


def scores(log_p: NDArray[np.float32], threshold: float) -> dict[str, NDArray[Any]]:
    """The columns that scoring adds, from log-probabilities (n, classes)."""
    from models.losses import entropy

    p = torch.from_numpy(log_p).exp()
    unknown = (entropy(p, normalised=True) > threshold).numpy()
    confidence, predicted = p.max(dim=1)
    found = (np.where(unknown, -1, predicted.numpy()), confidence.numpy(), unknown)
    return dict(zip(ds.SCORES, found, strict=True))


def log_probabilities(
    project: Project, model: Registered, rows: Dataset, schema: ds.Schema, batch_rows: int = 1024
) -> NDArray[np.float32]:
    """Log-probabilities (n, classes) by the exported program, `batch_rows` at a time.

    A row that can not be read, or of which the program makes no number, gets the same probability for every class.

    Raises
    ------
    DatasetFormatError
        If the program takes rows of another shape.
    """
    program = load_program(project, model.model)
    try:
        with torch.inference_mode():
            classes = program(example_input(schema)).shape[1]
    except Exception as error:
        raise DatasetFormatError(
            f"The rows are {schema.kind} shaped {tuple(example_input(schema).shape[1:])}, which {model} does not take: "
            f"it was made from {model.data}. ({str(error).splitlines()[0]})"
        ) from error
    found = np.full((len(rows), classes), -np.log(classes), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(rows), batch_rows):
            part = rows.select(range(start, min(start + batch_rows, len(rows))))
            readable, X = _inputs(part, schema)
            answers = program(torch.from_numpy(X)).log_softmax(1).numpy() if len(X) else found[:0]
            whole = np.isfinite(answers).all(axis=1)
            found[start + readable[whole]] = answers[whole]
    return found


def _inputs(part: Dataset, schema: ds.Schema) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Numbers of the rows that can be read, and what the model takes of them."""
    try:
        return np.arange(len(part)), ds.inputs(part, schema)
    except DatasetFormatError:
        alone = [part.select([row]) for row in range(len(part))]
        readable = [row for row, cell in enumerate(alone) if _is_readable(cell, schema)]
        return np.asarray(readable, dtype=np.int64), ds.inputs(part.select(readable), schema)


def _is_readable(row: Dataset, schema: ds.Schema) -> bool:
    try:
        ds.inputs(row, schema)
    except DatasetFormatError:
        return False
    return True


def class_names(project: Project, model: Registered) -> tuple[str, ...]:
    """Names of the classes that the model answers with."""
    return ds.infer_schema(project.versions.path(model.data)).label_names


def _with_scores(rows: Dataset, columns: dict[str, Any], names: tuple[str, ...]) -> Dataset:
    from datasets import ClassLabel

    return ds.with_columns(rows, columns).cast_column(ds.SCORES[0], ClassLabel(names=list(names)))

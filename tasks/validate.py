"""Stage validate: Great Expectations gates, leaks and duplicates, and how separable the raw data are."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import BeforeValidator, Field

from infra import datasets as ds
from infra.errors import ValidationGateError
from infra.files import draft_folder, publish
from infra.references import DatasetRef, StageResult
from infra.runner import runner
from tasks.figures import sample_sheet
from tasks.row_facts import RowFacts, gather
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from infra.expectations import Report

LATEST = "latest"
SCORED_ROWS, SCORED_SIDE = 10_000, 32
PRECEDENCE = ("test", "train", "target", "unlabelled")  # which split keeps a row whose id stands in several


class ValidateConfig(StageConfig):
    """How data are checked, and what is done with what fails."""

    method: Literal["r2d2"] = Field("r2d2", description="Finds containment, duplicates and leaks between splits.")
    max_failing_share: float = Field(
        0.05, ge=0, le=1, description="The run stops when a larger share of a split's rows fails validation."
    )
    near_duplicates: Annotated[
        Literal["remove", "report", "off"],
        BeforeValidator(lambda given: "off" if given is False else given),  # what YAML reads in the word
    ] = Field(
        "remove",
        description="What to do with near duplicates; off does not look for them, which takes n^2 comparisons.",
    )
    near_duplicate_similarity: float = Field(
        0.98, gt=0, le=1, description="Cosine similarity from which two centred, contrast-normalised images are one."
    )
    mean_range: tuple[float, float] = Field((2.0, 253.0), description="Mean pixel an image may have, 0 to 255.")
    minimum_contrast: float = Field(4.0, ge=0, description="Smallest standard deviation of an image's pixels.")
    max_class_imbalance: float = Field(0.5, gt=0, description="Largest KL divergence of class shares from equal ones.")


@stage_task("validate")
def validate(data: DatasetRef, config: ValidateConfig, run: RunContext) -> StageResult:
    """Check a dataset version; failing rows, leaks and duplicates go to a quarantine version with the reason."""

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        splits = {split: ds.Split(folder, split) for split in schema.splits}
        facts = gather_facts(splits, schema, config)
        reports = check_rows(facts, schema, config, desk.project.settings.state / "data_docs")
        reasons: Reasons = {split: dict(report.failing) for split, report in reports.items()}
        for split, report in reports.items():
            desk.metrics |= {f"{split}.failing": len(report.failing), f"{split}.expectations": report.expectations}
        desk.evidence["data_docs"] = f".clearwell/data_docs/{LATEST}/index.html"
        desk.evidence["table_failures"] = {s: r.table_failures for s, r in reports.items() if r.table_failures}
        _gate(data, facts, reports, config)
        counts, pairs, edges = find_duplicates(splits, facts, schema, config, reasons)
        desk.metrics |= counts
        desk.evidence |= {"near_duplicates": pairs, "containment": edges}
        _score_separability(desk, splits, schema, reasons, config.seed)
        _show(desk, splits, schema, pairs)
        _write(desk, data, splits, reasons)

    return run_stage("validate", config, {"data": data}, work, run)


Reasons = dict[str, dict[int, list[str]]]


def gather_facts(splits: dict[str, ds.Split], schema: ds.Schema, config: ValidateConfig) -> dict[str, RowFacts]:
    """One pass over every split; the rows themselves are not kept."""
    wanted = config.near_duplicates != "off"
    return {name: gather(split, schema, near_duplicates=wanted and name == "train") for name, split in splits.items()}


def check_rows(facts: dict[str, RowFacts], schema: ds.Schema, config: ValidateConfig, home: Path) -> dict[str, Report]:
    """Hold every split against its expectation suite; the Data Docs appear in ``home/latest``."""
    from infra.expectations import Bounds, Validator

    bounds = Bounds(config.mean_range, config.minimum_contrast, config.max_class_imbalance)
    with draft_folder(home) as docs:
        validator = Validator(docs)
        reports = {split: validator.validate(split, known.rows, schema, bounds) for split, known in facts.items()}
        for split, row, other in _repeated_across(facts):
            reports[split].failing.setdefault(row, []).append(f"repeated id: stands in {other} too")
        latest = home / LATEST
        shutil.rmtree(latest, ignore_errors=True)
        publish(docs, latest)
    return reports


def _repeated_across(facts: dict[str, RowFacts]) -> Iterator[tuple[str, int, str]]:
    """Rows whose id stands in an earlier split too: the split, the row, the other split. Test keeps its rows."""
    seen: dict[str, str] = {}
    for split in sorted(facts, key=lambda name: PRECEDENCE.index(name) if name in PRECEDENCE else len(PRECEDENCE)):
        own = facts[split].rows["id"].tolist()
        for row, identity in enumerate(own):
            if identity in seen:
                yield split, row, seen[identity]
        seen = {identity: split for identity in own if identity is not None} | seen


def _gate(data: DatasetRef, facts: dict[str, RowFacts], reports: dict[str, Report], config: ValidateConfig) -> None:
    for split, known in facts.items():
        failing = reports[split].failing
        share = len(failing) / max(len(known), 1)
        if share > config.max_failing_share:
            counts = pd.Series([reason for found in failing.values() for reason in found]).value_counts()
            raise ValidationGateError(
                f"{len(failing)} of {len(known)} rows of {split!r} fail validation ({share:.1%}, accepted: "
                f"{config.max_failing_share:.1%}). Reasons: "
                + ", ".join(f"{reason} ({count})" for reason, count in counts.items())
                + f". First rows: {sorted(failing)[:5]}. Look at them with `clearwell data check {data}` and mend the "
                "data, or let the lifecycle go on with `clearwell run --set validate.max_failing_share=…`.",
                split=split,
                share=share,
                rows=sorted(failing),
            )
        if "too few rows" in reports[split].table_failures:
            raise ValidationGateError(
                f"The split {split!r} holds {len(known)} rows; at least 10 are needed. Bring more rows, or say in a "
                "column 'split' which rows are for what.",
                split=split,
            )


def find_duplicates(
    splits: dict[str, ds.Split], facts: dict[str, RowFacts], schema: ds.Schema, config: ValidateConfig, reasons: Reasons
) -> tuple[dict[str, float], list[tuple[str, str, float]], list[list[str]]]:
    """Leaks between train and test, exact and near duplicates inside train; the first of each group stays.

    Adds what is to be removed to `reasons`.

    Returns
    -------
    counts : dict
        Metric name -> rows.
    pairs : list of (id, id, similarity)
        Near duplicates and what they repeat.
    edges : list of [parent, child]
        Splits whose content contains another's.
    """
    from models.registry import build_method
    from models.validate.tables import FrameTable, first_occurrences, overlapping_rows

    frames = {split: known.content for split, known in facts.items() if len(known)}
    columns = list(next(iter(frames.values())).columns)
    parameters = {"random_state": config.seed, "verify": "exact", **config.parameters}
    with runner().parallel() as workers:  # a table at a time on each, as parent of the others
        method = build_method(config.method, "validate", **{"n_jobs": workers, **parameters})
        method.fit([FrameTable(split, frame) for split, frame in frames.items()])
    edges = sorted([str(parent), str(child)] for parent, child in method.graph_.edges)
    counts = {"train.leaks": 0.0, "train.exact_duplicates": 0.0, "train.near_duplicates": 0.0}
    if "train" not in frames:
        return counts, [], edges
    train, found, ids = frames["train"], reasons["train"], facts["train"].rows["id"].tolist()
    if "test" in frames:
        for row in overlapping_rows(train, frames["test"], columns):
            if int(row) not in found:
                found[int(row)] = ["leak: the same content stands in test"]
                counts["train.leaks"] += 1
    whole = [row for row in range(len(train)) if row not in found]
    for row, place in zip(whole, first_occurrences(train.iloc[whole], columns), strict=True):
        if row != whole[place]:
            found[row] = [f"exact duplicate of {ids[whole[place]]}"]
            counts["train.exact_duplicates"] += 1
    pairs = []
    if facts["train"].signatures is not None:
        for row, original, similarity in _near_duplicates(splits["train"], facts["train"], schema, found, config):
            counts["train.near_duplicates"] += 1
            pairs.append((str(ids[row]), str(ids[original]), round(similarity, 4)))
            if config.near_duplicates == "remove":
                found[row] = [f"near duplicate of {ids[original]}"]
    return counts, pairs, edges


def _near_duplicates(
    data: ds.Split, facts: RowFacts, schema: ds.Schema, known: dict[int, list[str]], config: ValidateConfig
) -> list[tuple[int, int, float]]:
    assert facts.signatures is not None
    rows = np.array([row for row in range(len(data)) if row not in known], dtype=np.int64)

    def images(chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        return ds.inputs(data.take(chosen), schema)

    signatures, facts.signatures = facts.signatures, None  # hundreds of megabytes, not needed after this
    return signatures.near_duplicates(rows, config.near_duplicate_similarity, images)


def _show(desk: Desk, splits: dict[str, ds.Split], schema: ds.Schema, pairs: list[tuple[str, str, float]]) -> None:
    if schema.kind != "image" or "train" not in splits:
        return
    place = {identity: row for row, identity in enumerate(ds.ids(splits["train"]))}
    chosen = sorted(pairs, key=lambda pair: pair[2])[:: max(1, len(pairs) // 12)][:12]
    rows = [place[identity] for pair in chosen for identity in pair[:2]]
    titles = [text for pair in chosen for text in ("copy", f"of, {pair[2]:.3f}")]
    images = ds.inputs(splits["train"].take(rows), schema) if rows else np.zeros((0, 1, 1, 1))
    desk.figure("duplicates", sample_sheet(images, titles), "Near duplicates, each beside the row it repeats")


def _score_separability(
    desk: Desk, splits: dict[str, ds.Split], schema: ds.Schema, reasons: Reasons, seed: int
) -> None:
    """Of the raw rows; of many a sample, and of large images reduced ones."""
    from models.validate.separability import PersistenceSeparability

    if schema.kind == "text":
        return
    split = "train" if "train" in splits else next(iter(splits))
    rows = np.array([row for row in range(len(splits[split])) if row not in reasons[split]], dtype=np.int64)
    if len(rows) < 20:
        return
    if len(rows) > SCORED_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, SCORED_ROWS, replace=False))
    few = 2 * ds.BATCH_BYTES // max(ds.decoded_bytes(schema), 1) + 1  # images in memory at a time
    parts = [
        _reduced(ds.inputs(splits[split].take(rows[start : start + few]), schema)) for start in range(0, len(rows), few)
    ]
    X = np.concatenate(parts).reshape(len(rows), -1)
    try:
        score = PersistenceSeparability(random_state=seed, drop_duplicates=True).fit(X.astype(np.float64))
    except ValueError:  # rows that are all alike, or of one column, lie on one point: there is nothing to score
        return
    desk.metrics["separability"] = float(score.score_)


def _reduced(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images of more than 32 pixels a side, averaged down; anything else as it is."""
    if X.ndim != 4 or max(X.shape[2:]) <= SCORED_SIDE:
        return X
    import torch
    from torch.nn.functional import interpolate

    return interpolate(torch.from_numpy(X), (SCORED_SIDE, SCORED_SIDE), mode="area").numpy()


def _write(desk: Desk, source: DatasetRef, splits: dict[str, ds.Split], reasons: Reasons) -> None:
    versions = desk.project.versions
    origin = versions.path(source)

    def clean(folder: Any) -> int:
        total = 0
        for split, data in splits.items():
            if not reasons[split]:
                total += ds.copy_splits(origin, folder, [split])
                continue
            kept = np.ones(len(data), dtype=bool)
            kept[list(reasons[split])] = False
            total += data.write(folder, kept)
        return total

    def quarantine(folder: Any) -> int:
        total = 0
        for split, found in reasons.items():
            if found:
                rows = sorted(found)
                failing = np.zeros(len(splits[split]), dtype=bool)
                failing[rows] = True
                columns = {"reason": pa.array(["; ".join(found[row]) for row in rows]), "row": pa.array(rows)}
                total += splits[split].write(folder, failing, columns)
        return total

    desk.data = versions.add(source.name, clean, source=str(source))
    if any(reasons.values()):
        desk.others["quarantine"] = versions.add(f"{source.name}-quarantine", quarantine, source=str(source))
    counts = pd.Series([_kind(reason) for found in reasons.values() for each in found.values() for reason in each])
    desk.evidence["reasons"] = (
        {str(reason): int(n) for reason, n in counts.value_counts().items()} if len(counts) else {}
    )
    desk.metrics |= {"rows_in": source.rows, "rows_out": desk.data.rows, "quarantined": source.rows - desk.data.rows}


def _kind(reason: str) -> str:
    return reason.partition(" of ")[0] if "duplicate of" in reason else reason

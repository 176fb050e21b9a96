"""Stage validate: Great Expectations gates, leaks and duplicates, and how separable the raw data are."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from infra import datasets as ds
from infra.errors import ValidationGateError
from infra.files import draft_folder, publish
from infra.references import DatasetRef, StageResult
from tasks.stage import Desk, RunContext, StageConfig, run_stage

if TYPE_CHECKING:
    from datasets import Dataset


class ValidateConfig(StageConfig):
    """How data are checked, and what is done with what fails."""

    method: str = Field("r2d2", description="Finds containment, duplicates and leaks between splits.")
    max_failing_share: float = Field(
        0.05, ge=0, le=1, description="The run stops when a larger share of a split's rows fails validation."
    )
    near_duplicates: Literal["remove", "report"] = Field("remove", description="What to do with near duplicates.")
    near_duplicate_similarity: float = Field(
        0.97, gt=0, le=1, description="Cosine similarity from which two centred, contrast-normalised images are one."
    )
    mean_range: tuple[float, float] = Field((2.0, 253.0), description="Mean pixel an image may have, 0 to 255.")
    minimum_contrast: float = Field(4.0, ge=0, description="Smallest standard deviation of an image's pixels.")
    max_class_imbalance: float = Field(0.5, gt=0, description="Largest KL divergence of class shares from equal ones.")


@task(name="validate", cache_policy=NO_CACHE)
def validate(data: DatasetRef, config: ValidateConfig, run: RunContext) -> StageResult:
    """Check a dataset version; failing rows, leaks and duplicates go to a quarantine version with the reason."""

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        splits = {split: ds.read_split(folder, split) for split in schema.splits}
        reasons = _check_rows(desk, splits, schema, config)
        _find_duplicates(desk, splits, schema, config, reasons)
        _score_separability(desk, splits, schema, reasons, config.seed)
        _write(desk, data, splits, reasons)

    return run_stage("validate", config, {"data": data}, work, run)


Reasons = dict[str, dict[int, list[str]]]


def _check_rows(desk: Desk, splits: dict[str, Dataset], schema: ds.Schema, config: ValidateConfig) -> Reasons:
    from infra.expectations import Bounds, Validator, row_facts

    bounds = Bounds(tuple(config.mean_range), config.minimum_contrast, config.max_class_imbalance)
    home = desk.project.settings.state / "data_docs"
    reasons: Reasons = {}
    table_failures: dict[str, list[str]] = {}
    with draft_folder(home) as docs:
        validator = Validator(docs)
        for split, data in splits.items():
            facts = row_facts(ds.ids(data), ds.labels(data), list(data["domain"]), _facts(data, schema))
            report = validator.validate(split, facts, schema, bounds)
            reasons[split] = report.failing
            table_failures[split] = report.table_failures
            desk.metrics[f"{split}.failing"] = len(report.failing)
            desk.metrics[f"{split}.expectations"] = report.expectations
        latest = home / "latest"
        shutil.rmtree(latest, ignore_errors=True)
        publish(docs, latest)
    desk.evidence["data_docs"] = latest.relative_to(desk.project.root).as_posix() + "/index.html"
    desk.evidence["table_failures"] = {split: found for split, found in table_failures.items() if found}
    _gate(splits, reasons, table_failures, config)
    return reasons


def _facts(data: Dataset, schema: ds.Schema) -> dict[str, Any]:
    if schema.kind == "image":
        images = [ds.decode(cell) for cell in data["image"]]
        return {
            "decodable": [image is not None for image in images],
            "height": [None if image is None else image.shape[0] for image in images],
            "width": [None if image is None else image.shape[1] for image in images],
            "mean": [None if image is None else float(image.mean()) for image in images],
            "contrast": [None if image is None else float(image.std()) for image in images],
        }
    if schema.kind == "text":
        return {"text": list(data["text"])}
    return {column: pd.Series(list(data[column])) for column in schema.features}


def _gate(
    splits: dict[str, Dataset], reasons: Reasons, table_failures: dict[str, list[str]], config: ValidateConfig
) -> None:
    for split, data in splits.items():
        share = len(reasons[split]) / max(len(data), 1)
        if share > config.max_failing_share:
            counts = pd.Series([reason for found in reasons[split].values() for reason in found]).value_counts()
            first = sorted(reasons[split])[:5]
            raise ValidationGateError(
                f"{len(reasons[split])} of {len(data)} rows of {split!r} fail validation ({share:.1%}, accepted: "
                f"{config.max_failing_share:.1%}). Reasons: "
                + ", ".join(f"{reason} ({count})" for reason, count in counts.items())
                + f". First rows: {first}. Look at them with `clearwell data check`, mend the data, or raise "
                "`--set validate.max_failing_share=…`.",
                split=split,
                share=share,
                rows=sorted(reasons[split]),
            )
        if "too few rows" in table_failures[split]:
            raise ValidationGateError(
                f"The split {split!r} holds {len(data)} rows; at least 10 are needed.", split=split
            )


def _find_duplicates(
    desk: Desk, splits: dict[str, Dataset], schema: ds.Schema, config: ValidateConfig, reasons: Reasons
) -> None:
    """Leaks between train and test, exact and near duplicates inside train; the first of each group is kept."""
    from models.validate.tables import FrameTable, overlapping_rows

    from models.registry import build_method

    frames = {split: _content(data, schema) for split, data in splits.items()}
    columns = [c for c in frames[next(iter(frames))].columns]
    tables = [FrameTable(split, frame) for split, frame in frames.items() if len(frame)]
    method = build_method(
        config.method, "validate", **{"random_state": config.seed, "verify": "exact"} | config.parameters
    )
    method.fit(tables)
    desk.evidence["containment"] = sorted([list(edge) for edge in method.graph_.edges])
    found = {"leak": 0, "exact": 0, "near": 0}
    train = frames.get("train")
    if train is None:
        return
    train_ids = ds.ids(splits["train"])

    def mark(row: int, kind: str, reason: str) -> None:
        if row not in reasons["train"]:
            reasons["train"][row] = [reason]
            found[kind] += 1

    if "test" in frames:
        for row in overlapping_rows(train, frames["test"], columns):
            mark(int(row), "leak", "leak: the same content stands in test")
    whole = train.drop(index=[row for row in reasons["train"] if row in train.index])
    first = whole.groupby(columns, sort=False, dropna=False)[columns[0]].transform(lambda group: group.index[0])
    for row, original in first.items():
        if row != original:
            mark(int(row), "exact", f"exact duplicate of {train_ids[int(original)]}")
    if schema.kind == "image":
        for row, original in _near_duplicates(splits["train"], schema, reasons["train"], config):
            if config.near_duplicates == "remove":
                mark(row, "near", f"near duplicate of {train_ids[original]}")
            else:
                found["near"] += 1
            desk.evidence.setdefault("near_duplicates", []).append([train_ids[row], train_ids[original]])
    desk.metrics |= {f"train.{kind}_duplicates" if kind != "leak" else "train.leaks": n for kind, n in found.items()}


def _content(data: Dataset, schema: ds.Schema) -> pd.DataFrame:
    """What makes two rows the same: the pixels, the text, or the features."""
    if schema.kind == "image":
        digests = [_pixel_digest(ds.decode(cell), row) for row, cell in enumerate(data["image"])]
        return pd.DataFrame({"content": digests})
    if schema.kind == "text":
        return pd.DataFrame({"text": list(data["text"])})
    return data.select_columns(list(schema.features)).to_pandas()


def _pixel_digest(image: Any, row: int) -> str:
    import hashlib

    if image is None:
        return f"undecodable row {row}"
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def _near_duplicates(
    data: Dataset, schema: ds.Schema, known: dict[int, list[str]], config: ValidateConfig
) -> list[tuple[int, int]]:
    from models.validate.near_duplicates import near_duplicates

    rows = np.array([row for row in range(len(data)) if row not in known])
    images = ds.inputs(data.select(rows), schema)
    pairs = near_duplicates(images, threshold=config.near_duplicate_similarity)
    return [(int(rows[later]), int(rows[earlier])) for later, earlier in pairs]


def _score_separability(desk: Desk, splits: dict[str, Dataset], schema: ds.Schema, reasons: Reasons, seed: int) -> None:
    from models.registry import build_method

    if schema.kind == "text":
        return
    split = "train" if "train" in splits else next(iter(splits))
    rows = [row for row in range(len(splits[split])) if row not in reasons[split]]
    X = ds.inputs(splits[split].select(rows), schema).reshape(len(rows), -1)
    if len(X) < 20:
        return
    score = build_method("separability", "validate", random_state=seed, drop_duplicates=True).fit(X.astype(np.float64))
    desk.metrics["separability"] = float(score.score_)


def _write(desk: Desk, source: DatasetRef, splits: dict[str, Dataset], reasons: Reasons) -> None:
    versions = desk.project.versions
    origin = versions.path(source)

    def clean(folder: Any) -> int:
        total = 0
        for split, data in splits.items():
            if not reasons[split]:
                total += ds.copy_splits(origin, folder, [split])
                continue
            kept = [row for row in range(len(data)) if row not in reasons[split]]
            total += ds.write_split(data.select(kept), folder, split)
        return total

    def quarantine(folder: Any) -> int:
        total = 0
        for split, found in reasons.items():
            if found:
                rows = sorted(found)
                failing = splits[split].select(rows)
                columns = {"reason": ["; ".join(found[row]) for row in rows], "row": rows}
                total += ds.write_split(ds.with_columns(failing, columns), folder, split)
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

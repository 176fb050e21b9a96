"""Evaluation: the chain's model and the naive one on the same rows. The only reader of the truth."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from infra import datasets as ds
from infra.references import DatasetRef, ModelRef, StageResult
from tasks.compress import example_input, latencies, load_model
from tasks.figures import confusion
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task

ROWS = {
    "source_accuracy": "accuracy on the test split",
    "h_score": "H-score on the new domain",
    "known_accuracy": "known-class accuracy on the new domain",
    "membership_advantage": "membership-attack advantage on the erasure list",
    "size_bytes": "weights on disk, bytes",
    "latency_ms": "milliseconds for a batch of 32, one thread",
}
ATTACKS = 6
LOWER_IS_BETTER = ("membership_advantage", "size_bytes", "latency_ms")


class EvaluateConfig(StageConfig):
    """How models are judged."""

    enabled: Literal[True] = Field(True, description="Always on: the gates read what is measured here.")
    method: Literal["none"] = Field("none", description="There is nothing to choose.")
    reject_threshold: float = Field(0.55, gt=0, lt=1, description="Normalised entropy above which a row is unknown.")


@stage_task("evaluate")
def evaluate(
    data: DatasetRef,
    raw: DatasetRef,
    erasure: DatasetRef | None,
    truth: DatasetRef | None,
    models: dict[str, ModelRef],
    config: EvaluateConfig,
    run: RunContext,
) -> StageResult:
    """Judge every model on the same splits.

    Parameters
    ----------
    data, raw : DatasetRef
        The cleaned version, and the version the run began with (the erasure rows are looked up there).
    truth : DatasetRef, optional
        True labels by id; without it the target split and the found errors are not scored.
    models : dict of str to ModelRef
        "naive" and "chain".
    """

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        networks = {name: load_model(desk.project, ref) for name, ref in models.items()}
        found: dict[str, dict[str, float]] = {name: {} for name in networks}
        if "test" in schema.splits:
            _judge_source(desk, folder, schema, networks, found)
        if truth is not None and "target" in schema.splits:
            _judge_target(desk, folder, schema, networks, found, truth, config.reject_threshold)
        if erasure is not None and "test" in schema.splits:
            _judge_privacy(desk, folder, schema, networks, found, raw, erasure, config.seed)
        timed = latencies(networks, example_input(schema), repeats=300)
        for name, ref in models.items():
            found[name] |= {"size_bytes": float(desk.project.models.size(ref)), "latency_ms": timed[name]}
        desk.evidence["models"] = found
        desk.metrics |= {f"{name}.{key}": value for name, row in found.items() for key, value in row.items()}
        if truth is not None:
            desk.evidence["cleaning"] = _judge_cleaning(desk, folder, raw, truth)
            desk.metrics |= {f"cleaning.{key}": value for key, value in desk.evidence["cleaning"].items()}

    inputs = {"data": data, "raw": raw, "erasure": erasure, "truth": truth, **models}
    return run_stage("evaluate", config, inputs, work, run)


Found = dict[str, dict[str, float]]


def _judge_source(desk: Desk, folder: Any, schema: ds.Schema, networks: dict[str, Any], found: Found) -> None:
    from sklearn.metrics import confusion_matrix

    from models.metrics import expected_calibration_error
    from models.supervised import probabilities

    test = ds.read_split(folder, "test")
    X, y = torch.from_numpy(ds.inputs(test, schema)), ds.labels(test)
    for name, network in networks.items():
        p = probabilities(network, X)
        found[name]["source_accuracy"] = float((p.argmax(1) == y).mean())
        found[name]["calibration_error"] = expected_calibration_error(p, y)
        table = confusion_matrix(y, p.argmax(1), labels=range(schema.n_classes))
        figure = confusion(table, schema.label_names, schema.label_names, f"{name}: test split")
        desk.figure(f"confusion_source_{name}", figure, f"Test split, {name} model")


def _judge_target(
    desk: Desk,
    folder: Any,
    schema: ds.Schema,
    networks: dict[str, Any],
    found: Found,
    truth: DatasetRef,
    threshold: float,
) -> None:
    from sklearn.metrics import confusion_matrix

    from models.losses import entropy
    from models.metrics import open_set_scores
    from models.supervised import probabilities

    target = ds.read_split(folder, "target")
    known = ds.read_split(desk.project.versions.path(truth), "truth").to_pandas().set_index("id")
    y = known.loc[ds.ids(target), "target_label"].to_numpy(dtype=np.int64)
    X = torch.from_numpy(ds.inputs(target, schema))
    n = schema.n_classes
    for name, network in networks.items():
        p = torch.from_numpy(probabilities(network, X))
        predicted = torch.where(entropy(p, normalised=True) > threshold, n, p.argmax(1)).numpy()
        found[name] |= open_set_scores(y, predicted, n)
        table = confusion_matrix(np.minimum(y, n), predicted, labels=range(n + 1))
        names = [*schema.label_names, "?"]
        figure = confusion(table, names, names, f"{name}: new domain (? = unknown)")
        desk.figure(f"confusion_target_{name}", figure, f"New domain, {name} model; ? is unknown")


def _judge_privacy(
    desk: Desk,
    folder: Any,
    schema: ds.Schema,
    networks: dict[str, Any],
    found: Found,
    raw: DatasetRef,
    erasure: DatasetRef,
    seed: int,
) -> None:
    """One attack on all models: members are other training rows, non-members one half of the test split.

    The mean over several attackers with other halves; below nothing learnt (0) there is nothing. Of few rows chance
    alone makes much: how much is measured beside it.
    """
    from models.metrics import membership_attack
    from models.supervised import probabilities

    wanted = set(ds.ids(ds.read_split(desk.project.versions.path(erasure), "ids")))
    train = ds.read_split(folder, "train")
    suspect = np.array([identity in wanted for identity in ds.ids(train)])
    if not suspect.any():
        return
    X = torch.from_numpy(ds.inputs(train, schema))
    test = torch.from_numpy(ds.inputs(ds.read_split(folder, "test"), schema))
    rng = np.random.default_rng(seed)
    halves = [np.array_split(rng.permutation(len(test)), 2) for _ in range(ATTACKS)]
    for name, network in networks.items():
        p, outside = probabilities(network, X), probabilities(network, test)
        attacks = [
            membership_attack(p[~suspect], outside[known], p[suspect], outside[fresh], number)
            for number, (known, fresh) in enumerate(halves)
        ]
        found[name]["membership_advantage"] = max(float(np.mean([each["advantage"] for each in attacks])), 0.0)
        found[name]["membership_chance"] = float(np.mean([each["chance"] for each in attacks]))


def _judge_cleaning(desk: Desk, folder: Any, raw: DatasetRef, truth: DatasetRef) -> dict[str, float]:
    """How well wrong labels, intruders, duplicates and leaks were found, against the truth."""
    known = ds.read_split(desk.project.versions.path(truth), "truth").to_pandas()
    before = ds.read_split(desk.project.versions.path(raw), "train")
    train = ds.read_split(folder, "train")
    kept = pd.Series(ds.ids(train)).value_counts()
    planted = known[known["split"] == "train"]
    scores = {}
    for kind in ("exact", "near"):
        pairs = planted[planted["duplicate_kind"] == kind]
        both = pairs["id"].isin(kept.index) & pairs["duplicate_of"].isin(kept.index)
        scores[f"{kind}_duplicates_resolved"] = float((~both).mean())
    leaks, broken = planted.loc[planted["leak"], "id"], planted[planted["broken"] != ""]
    scores["leaks_removed"] = float((~leaks.isin(kept.index)).mean())
    twice = broken["id"].duplicated(keep=False) | (broken["id"].map(planted["id"].value_counts()) > 1)
    gone = np.where(twice, broken["id"].map(kept).fillna(0) <= 1, ~broken["id"].isin(kept.index))
    scores["broken_removed"] = float(gone.mean()) if len(broken) else float("nan")
    scores["kept_share"] = len(train) / len(before)
    if "noisy" in train.column_names:
        rows = planted.drop_duplicates("id").set_index("id").loc[ds.ids(train)]
        given, correct = ds.labels(train), rows["true_label"].to_numpy(dtype=np.int64)
        intruder = rows["intruder"].to_numpy(dtype=bool)
        wrong = ~intruder & (given != correct)
        noisy = np.asarray(train["noisy"], dtype=bool)
        stranger = np.asarray(train["out_of_distribution"], dtype=bool)
        corrected = ds.labels(train, "corrected_label")
        scores |= _detection("wrong_labels", noisy[~intruder], wrong[~intruder])
        scores |= _detection("intruders", stranger, intruder)
        scores["label_accuracy_before"] = float((given == correct)[~intruder].mean())
        scores["label_accuracy_after"] = float((corrected == correct)[~intruder].mean())
    return {name: value for name, value in scores.items() if np.isfinite(value)}


def _detection(name: str, flagged: Any, actual: Any) -> dict[str, float]:
    hit = float((flagged & actual).sum())
    return {f"{name}_recall": hit / max(actual.sum(), 1), f"{name}_precision": hit / max(flagged.sum(), 1)}

"""Choose what to train on: rows of a cleaned dataset, within a budget, with the reason of each."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.hooks import tell_failure
from infra import datasets as ds
from infra.errors import ConfigurationError
from infra.project import Project
from infra.references import DatasetRef
from tasks.champion import find_model
from tasks.curate import TEXTS, CurateConfig, check_selector
from tasks.curate import curate as selection
from tasks.ingest import ingest
from tasks.label_noise import LabelNoiseConfig, label_noise
from tasks.networks import NetworkConfig
from tasks.tracked import summary, tracked
from tasks.validate import ValidateConfig, validate


def _labels_can_be_wrong(data: DatasetRef) -> bool:
    """Whether there are labels of more than one class to look at.

    Raises
    ------
    ConfigurationError
        For texts, whose labels can not be looked at.
    """
    schema = ds.infer_schema(Project().versions.path(data))
    if schema.kind == "text":
        raise ConfigurationError(
            "Wrong labels are not looked for in texts. Take them as given with --trust-labels, or choose texts by what "
            f"they say with --method {TEXTS}."
        )
    return "train" in schema.splits and schema.n_classes > 1


@flow(name="curate", on_failure=[tell_failure], on_crashed=[tell_failure])
def curate(
    data: str = "scans",
    config: CurateConfig = CurateConfig(),
    encoder: str = "",
    checks: ValidateConfig = ValidateConfig(),
    labels: LabelNoiseConfig = LabelNoiseConfig(),
    network: NetworkConfig = NetworkConfig(),
    command: str = "",
) -> dict[str, Any]:
    """Write a version whose rows say whether they are selected, with what weight, and why.

    Args:
        data: Name of a dataset, NAME@VERSION, or a path to your own data.
        config: How rows are chosen.
        encoder: NAME@ALIAS or NAME@VERSION of a registered model whose network embeds the rows; empty takes
            the rows as they are.
        checks: How rows are checked first.
        labels: How wrong labels are looked for first; `enabled` false takes the labels as given.
        network: The network that looks for wrong labels.
        command: What a user types to continue after a failure.
    """
    check_selector(config.method, config.parameters)
    given = {"data": data, "validate": checks, "label_noise": labels, "network": network, "curate": config}
    with tracked("curate", data, {**given, "encoder": encoder}, command=command or None) as run:
        results = [validate(ingest(data).data, checks, run)]
        assert results[-1].data is not None
        if labels.enabled and config.method != TEXTS and _labels_can_be_wrong(results[-1].data):
            results.append(label_noise(results[-1].data, network, labels, run))
        cleaned = results[-1].data
        assert cleaned is not None
        registered = find_model(encoder, cleaned.name) if encoder else None
        embedder = None if registered is None else registered.origin or registered.model
        chosen = selection(cleaned, embedder, config, run)
        return {
            **summary([*results, chosen]),
            "selected": chosen.metrics["selected"],
            "usable": chosen.metrics["usable"],
            "version": str(chosen.data),
            "curve": chosen.evidence.get("curve", []),
            "funnel": chosen.evidence.get("funnel", []),
        }

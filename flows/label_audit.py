"""Look for what is wrong with a dataset and its labels; nothing is trained further, nothing registered."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.hooks import tell_failure
from tasks.ingest import ingest
from tasks.label_noise import LabelNoiseConfig, label_noise
from tasks.networks import NetworkConfig
from tasks.tracked import summary, tracked
from tasks.validate import ValidateConfig, validate


@flow(name="label-audit", on_failure=[tell_failure], on_crashed=[tell_failure])
def label_audit(
    data: str = "scans",
    checks: ValidateConfig = ValidateConfig(),
    labels: LabelNoiseConfig = LabelNoiseConfig(),
    network: NetworkConfig = NetworkConfig(),
) -> dict[str, Any]:
    """Check every row, find duplicates, leaks, wrong labels and strangers, and report them.

    Args:
        data: Name of a dataset, NAME@VERSION, or a path to your own data.
        checks: How rows are checked.
        labels: How wrong labels and strangers are looked for.
        network: The network that looks for wrong labels.
    """
    given = {"data": data, "validate": checks, "label_noise": labels, "network": network}
    with tracked("label-audit", data, given) as run:
        checked = validate(ingest(data).data, checks, run)
        assert checked.data is not None
        return summary([checked, label_noise(checked.data, network, labels, run)])

"""The encoder alone: cleaned data to pretrained features. What the lifecycle made already comes from the cache."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.hooks import tell_failure
from tasks.ingest import ingest
from tasks.label_noise import LabelNoiseConfig, label_noise
from tasks.networks import NetworkConfig
from tasks.pretrain import PretrainConfig
from tasks.pretrain import pretrain as pretraining
from tasks.tracked import summary, tracked
from tasks.validate import ValidateConfig, validate


@flow(name="pretrain", on_failure=[tell_failure], on_crashed=[tell_failure])
def pretrain(
    data: str = "scans",
    config: PretrainConfig = PretrainConfig(),
    checks: ValidateConfig = ValidateConfig(),
    labels: LabelNoiseConfig = LabelNoiseConfig(),
    network: NetworkConfig = NetworkConfig(),
) -> dict[str, Any]:
    """Train an encoder without labels on cleaned data.

    Args:
        data: Name of a dataset, NAME@VERSION, or a path to your own data.
        config: How the encoder is pretrained.
        checks: How rows are checked first.
        labels: How wrong labels are looked for; its encoder is where training starts.
        network: Shape of the network.
    """
    given = {"data": data, "validate": checks, "label_noise": labels, "network": network, "pretrain": config}
    with tracked("pretrain", data, given) as run:
        checked = validate(ingest(data).data, checks, run)
        assert checked.data is not None
        cleaned = label_noise(checked.data, network, labels, run)
        assert cleaned.data is not None
        return summary([checked, cleaned, pretraining(cleaned.data, cleaned.model, network, config, run)])

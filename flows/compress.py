"""Make the champion smaller, or less small: compress the network behind it again; the result is a candidate."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.candidates import candidate, origin
from flows.hooks import tell_failure
from tasks.champion import find_model
from tasks.compress import CompressConfig
from tasks.tracked import summary, tracked


@flow(name="compress", on_failure=[tell_failure], on_crashed=[tell_failure])
def compress(
    model: str = "scans-classifier",
    config: CompressConfig = CompressConfig(),
    promote: bool = False,
) -> dict[str, Any]:
    """Compress the network of a registered version with other parameters.

    Args:
        model: NAME, NAME@ALIAS or NAME@VERSION; without more, the champion.
        config: How the model is made small.
        promote: Make the candidate champion when every gate holds.
    """
    with tracked("compress", model, {"model": model, "compress": config, "promote": promote}) as run:
        champion = find_model(model)
        return summary(candidate(champion, champion.data, origin(champion), [], config, promote, run))

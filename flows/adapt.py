"""Adapt the champion to a batch of new, unlabelled data; what comes of it is a candidate and goes through the gates."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.candidates import candidate, origin
from flows.hooks import tell_failure
from tasks.adapt import AdaptConfig
from tasks.adapt import adapt as adaptation
from tasks.arrivals import with_target
from tasks.champion import find_model
from tasks.compress import CompressConfig
from tasks.ingest import ingest
from tasks.tracked import summary, tracked


@flow(name="adapt", on_failure=[tell_failure], on_crashed=[tell_failure])
def adapt(
    batch: str,
    model: str = "scans-classifier",
    config: AdaptConfig = AdaptConfig(),
    compression: CompressConfig = CompressConfig(),
    promote: bool = True,
) -> dict[str, Any]:
    """Fit a registered model to new data without labels and without the data it was trained on.

    Args:
        batch: The new data: name of a dataset, NAME@VERSION, or a path.
        model: NAME, NAME@ALIAS or NAME@VERSION; without more, the champion.
        config: How the model is adapted.
        compression: How it is made small again.
        promote: Make the candidate champion when every gate holds.
    """
    given = {"batch": batch, "model": model, "adapt": config, "compress": compression, "promote": promote}
    with tracked("adapt", batch, given) as run:
        champion = find_model(model)
        data = with_target(champion.data, ingest(batch).data, config.split)
        adapted = adaptation(data, origin(champion), config, run)
        assert adapted.model is not None
        return summary(candidate(champion, data, adapted.model, [adapted], compression, promote, run))

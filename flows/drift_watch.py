"""Look at what landed in the watched place; when it is not what the champion was made for, say so.

The Prefect server hears the event and starts the deployment ``adapt`` on the batch.
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.hooks import tell_failure
from tasks.arrivals import collect
from tasks.champion import find_model
from tasks.drift import DriftConfig, announce, drift, drift_reference
from tasks.tracked import summary, tracked


@flow(name="drift-watch", on_failure=[tell_failure], on_crashed=[tell_failure])
def drift_watch(
    where: str = "incoming/scans",
    model: str = "scans-classifier",
    name: str = "scans-incoming",
    minimum_rows: int = 50,
    config: DriftConfig = DriftConfig(),
) -> dict[str, Any]:
    """Take files that landed since the last look, compare them with the champion's reference, announce drift.

    Args:
        where: Prefix in the data bucket (or, without a stack, folder of the project) to watch.
        model: NAME, NAME@ALIAS or NAME@VERSION; without more, the champion.
        name: Name of the dataset that batches become versions of.
        minimum_rows: Fewer new rows than this wait for more.
        config: When new data count as drift.
    """
    batch = collect(where, name, minimum_rows)
    if batch.data is None:
        return {"rows": batch.rows, "waiting": [arrival.name for arrival in batch.files], "drifted": False}
    given = {"where": where, "model": model, "batch": str(batch.data), "drift": config}
    with tracked("drift-watch", str(batch.data), given) as run:
        champion = find_model(model)
        reference = drift_reference(champion, config, run)
        assert reference.model is not None
        found = drift(batch.data, champion, reference.model, config, run)
        return {**announce(where, batch, champion, found), **summary([reference, found])}

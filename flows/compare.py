"""Every method of a stage on the same data, in the same time, by the same measures: whom to take, and why."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.hooks import tell_failure
from tasks.compare import CompareConfig, announce
from tasks.compare import compare as comparing
from tasks.ingest import ingest
from tasks.tracked import tracked


@flow(name="compare", on_failure=[tell_failure], on_crashed=[tell_failure])
def compare(
    stage: str = "discover",
    data: str = "scans",
    methods: tuple[str, ...] = (),
    budget: float = 120.0,
    seed: int = 0,
    rows: int = 5000,
    command: str = "",
) -> dict[str, Any]:
    """Run every method of a stage that applies, and baselines, and say which to take.

    Args:
        stage: Stage whose methods are compared, such as discover, label_noise, pretrain, adapt or compress.
        data: Name of a dataset, NAME@VERSION, or a path to your own data.
        methods: Registered names; empty takes all that apply. Baselines always take part.
        budget: Seconds each candidate has, on one thread.
        seed: Random state of the split, of what is planted, and of every candidate.
        rows: Rows taken at most, drawn at random.
        command: What a user types to do it again.
    """
    config = CompareConfig(stage=stage, methods=methods, budget=budget, seed=seed, rows=rows)
    with tracked("compare", data, {"data": data, "compare": config}, command=command or None) as run:
        found = ingest(data)
        summary = comparing(found.data, found.truth, config, run)
        announce(summary)
        return summary

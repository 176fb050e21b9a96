"""Group the rows of a dataset: how many groups there are, which rows belong together, what they could be called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow

from flows.hooks import tell_failure
from infra.errors import ConfigurationError
from models.registry import UnknownMethodError, get_method
from tasks.champion import find_model
from tasks.discover import DiscoverConfig, told_count
from tasks.discover import discover as grouping
from tasks.ingest import ingest
from tasks.parameters import check_parameters
from tasks.tracked import summary, tracked
from tasks.validate import ValidateConfig, validate


def check_choices(config: DiscoverConfig, methods: Sequence[str]) -> list[DiscoverConfig]:
    """A config for each method; by default that of the config.

    Raises
    ------
    ConfigurationError
        For a name that no method of the stage has, or for what a method can not be told.
    """
    chosen = [config.model_copy(update={"method": name}) for name in methods] or [config]
    for each in chosen:
        try:
            card = get_method(each.method, "discover")
        except UnknownMethodError as error:
            raise ConfigurationError(str(error)) from None
        check_parameters(f"The method {each.method!r}", card.cls, told_count(card, each), ["random_state"])
    return chosen


@flow(name="discover", on_failure=[tell_failure], on_crashed=[tell_failure])
def discover(
    data: str = "scans",
    methods: tuple[str, ...] = (),
    config: DiscoverConfig = DiscoverConfig(),
    encoder: str = "",
    checks: ValidateConfig = ValidateConfig(),
    command: str = "",
) -> dict[str, Any]:
    """Write each row's group, its proposed name and a confidence as a version of ``<name>-clustered``.

    Args:
        data: Name of a dataset, NAME@VERSION, or a path to your own data.
        methods: Registered names; each makes a version of its own. Empty takes the one of the config.
        config: How groups are looked for.
        encoder: NAME@ALIAS or NAME@VERSION of a registered model whose network embeds the rows; empty takes
            the rows as they are.
        checks: How rows are checked first; what fails is set aside.
        command: What a user types to continue after a failure.
    """
    chosen = check_choices(config, methods)
    given = {
        "data": data,
        "validate": checks,
        "methods": [each.method for each in chosen],
        "discover": config,
        "encoder": encoder,
    }
    with tracked("discover", data, given, command=command or None) as run:
        checked = validate(ingest(data).data, checks, run)
        assert checked.data is not None
        network = None
        if encoder:
            registered = find_model(encoder, checked.data.name)
            network = registered.origin or registered.model
        results = [grouping(checked.data, network, each, run) for each in chosen]
        return {
            **summary([checked, *results]),
            "clusters": {result.method: result.evidence["clusters"] for result in results},
            "notes": {result.method: result.evidence["notes"] for result in results},
            "noise": {result.method: int(result.metrics["noise"]) for result in results},
            "versions": {result.method: str(result.data) for result in results},
        }

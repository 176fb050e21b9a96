"""``clearwell methods``."""

from __future__ import annotations

from collections.abc import Mapping


def show_methods(stage: str | None, taxonomy: Mapping[str, str | None], as_json: bool) -> None:
    """Print the registry, or what of it is at that place of the taxonomy of data selection."""
    from flows.commands.console import print_json, print_table
    from infra.errors import ConfigurationError
    from models.registry import AXES, UnknownMethodError, list_methods

    try:
        cards = list_methods(stage, **taxonomy)
    except UnknownMethodError as error:
        raise ConfigurationError(str(error)) from None
    rows = [
        {
            "name": card.name,
            "stage": card.stage,
            "year": card.year,
            "takes": ", ".join(card.accepts),
            "what_for": card.summary,
            **({axis: card.taxonomy.get(axis, "") for axis in AXES} if card.taxonomy else {}),
            "paper": card.paper,
            "link": card.link,
            "licence": card.licence,
        }
        for card in cards
    ]
    if as_json:
        print_json(rows)
        return
    columns = ["name", "stage", "year", "takes", "what_for", "paper"]
    if any(axis is not None for axis in taxonomy.values()):
        columns[3:4] = ["goal", "unit", "mechanism"]
    print_table("Methods", rows, columns)

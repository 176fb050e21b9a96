"""``clearwell methods``."""

from __future__ import annotations


def show_methods(stage: str | None, as_json: bool) -> None:
    """Print the registry."""
    from flows.commands.console import print_json, print_table
    from infra.errors import ConfigurationError
    from models.registry import UnknownMethodError, list_methods

    try:
        cards = list_methods(stage)
    except UnknownMethodError as error:
        raise ConfigurationError(str(error)) from None
    rows = [
        {
            "name": card.name,
            "stage": card.stage,
            "year": card.year,
            "takes": ", ".join(card.accepts),
            "what_for": card.summary,
            "paper": card.paper,
            "link": card.link,
            "licence": card.licence,
        }
        for card in cards
    ]
    if as_json:
        print_json(rows)
        return
    print_table("Methods", rows, ("name", "stage", "year", "takes", "what_for", "paper"))

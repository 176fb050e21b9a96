"""What a method was told, held against what it can be told: before anything runs, in the user's words."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from infra.errors import ConfigurationError


def check_parameters(who: str, cls: type, given: Mapping[str, Any], without: Sequence[str] = ()) -> None:
    """See that a class takes these parameters, and that they may have these values.

    Parameters
    ----------
    who : str
        What messages call it.
    cls : type
    given : mapping
    without : sequence of str
        Parameters that a stage sets itself.

    Raises
    ------
    ConfigurationError
        With a suggestion for a misspelt name, or with what a value may be.
    """
    from sklearn.utils._param_validation import validate_parameter_constraints

    known = [name for name in inspect.signature(cls).parameters if name not in without]
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known) or 'none'}."
            if name in without:
                hint = f"The stage sets it, by its own {'seed' if name == 'random_state' else name}."
            raise ConfigurationError(f"{who} has no parameter {name!r}. {hint}")
    try:
        validate_parameter_constraints(getattr(cls, "_parameter_constraints", {}), dict(given), cls.__name__)
    except ValueError as error:
        raise ConfigurationError(f"{who}: {error}") from None

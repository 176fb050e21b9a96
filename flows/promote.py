"""Promotion with a named approver, as a flow: the form of the deployment ``promote/promote``.

It waits for nobody: who starts it has decided, says who approved and why, and both go into the ledger.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.hooks import tell_failure
from infra.model_registry import CHAMPION
from infra.project import Project

Name = Annotated[str, Field(min_length=1, max_length=200, description="Registered model, such as scans-classifier.")]
Version = Annotated[str, Field(pattern=r"^\d*$", description="Version; empty for the one with the alias candidate.")]
Approver = Annotated[
    str, Field(min_length=2, max_length=200, pattern=r"\S", description="The person who approves. Kept in the ledger.")
]
Reason = Annotated[
    str, Field(min_length=3, max_length=2000, pattern=r"\S", description="Why it is approved. Kept in the ledger.")
]
Alias = Annotated[str, Field(min_length=1, max_length=100, description="Alias to give.")]


@flow(name="promote", on_failure=[tell_failure], on_crashed=[tell_failure])
def promote(
    name: Name, approved_by: Approver, reason: Reason, version: Version = "", alias: Alias = CHAMPION
) -> dict[str, Any]:
    """Give a model version an alias, approved by a named person. It becomes champion only if every gate holds.

    Args:
        name: Registered model, such as scans-classifier.
        approved_by: The person who approves. Kept in the ledger.
        reason: Why it is approved. Kept in the ledger.
        version: Version; empty for the one with the alias candidate.
        alias: Alias to give.
    """
    registry = Project().registry
    chosen = version or registry.candidate(name)
    done = registry.promote(name, chosen, alias, reason, approved_by)
    return done.model_dump(mode="json")

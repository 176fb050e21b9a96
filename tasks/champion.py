"""Find a registered version and what it was made from."""

from __future__ import annotations

from infra.project import Project
from infra.registered import Registered, find_registered
from tasks.stage import stage_task


@stage_task("find_model")
def find_model(wanted: str, data: str = "") -> Registered:
    """The version that NAME, NAME@ALIAS or NAME@VERSION means; without a name, the champion of the dataset `data`."""
    project = Project()
    return find_registered(project, wanted or project.settings.registry.model.format(data=data))

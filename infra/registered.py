"""What a registered version was made from, and its model as a file that is checked before it is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.errors import PromotionError, StoreError
from infra.files import draft_folder, publish
from infra.model_registry import CHAMPION
from infra.model_store import DESCRIPTION, PROGRAM, WEIGHTS
from infra.project import Project
from infra.references import DatasetRef, ModelRef, Reference
from infra.registered_files import SERVED_PROGRAM, fetch

ORIGIN, DOMAINS = "clearwell.origin", "clearwell.domains"  # tags of a version


class Registered(Reference):
    """A registered version.

    Attributes
    ----------
    name, version, run : str
    model : ModelRef
        With the exported program.
    origin : ModelRef or None
        The network before compression, from which training can go on.
    data : DatasetRef
        What it was made from.
    domains : tuple of str
        Splits of `data` that the model is meant for.
    """

    name: str
    version: str
    run: str
    model: ModelRef
    origin: ModelRef | None
    data: DatasetRef
    domains: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def find_registered(project: Project, wanted: str) -> Registered:
    """The version that NAME, NAME@ALIAS or NAME@VERSION means; without more, the champion.

    Raises
    ------
    PromotionError
        If there is no such model, alias or version.
    StoreError
        If its bytes are gone, or are not those that were registered.
    """
    name, _, which = wanted.partition("@")
    registry = project.registry
    registry.require_model(name)
    version = which if which.isdigit() else registry.holder(name, which or CHAMPION)
    if version is None:
        raise PromotionError(
            f"No version of {name!r} is {which or CHAMPION}. See its versions with `clearwell history {name}`.",
            model=name,
        )
    registry.require_version(name, version)
    found = project.tracker.client.get_model_version(name, version)
    tags = found.tags
    data, _, _ = tags["clearwell.data"].partition("@")
    digest = tags["clearwell.model"]
    model = ModelRef(name="compress", uri=_place(project, digest), digest=digest)
    if not project.models.intact(model) or not (project.models.path(model) / PROGRAM).exists():
        _bring(project, str(found.run_id), model)
    return Registered(
        name=name,
        version=version,
        run=str(found.run_id),
        model=model,
        origin=ModelRef.model_validate_json(tags[ORIGIN]) if ORIGIN in tags else None,
        data=project.versions.resolve(data, tags["clearwell.data_version"]),
        domains=tuple(tags.get(DOMAINS, "test").split(",")),
    )


def origin_tags(compressed: dict[str, Any], adapted: str | None) -> dict[str, str]:
    """Tags by which :func:`find_registered` finds the way back.

    Parameters
    ----------
    compressed : dict
        Evidence of the stage compress.
    adapted : str or None
        Split of the new domain that the model was adapted to.
    """
    tags = {DOMAINS: ",".join(["test", *([adapted] if adapted else [])])}
    return tags | ({ORIGIN: json.dumps(compressed["origin"])} if "origin" in compressed else {})


def _place(project: Project, digest: str) -> str:
    return (project.models.folder / digest[:20]).relative_to(project.root).as_posix()


def _bring(project: Project, run: str, model: ModelRef) -> None:
    """Fetch a model that another machine made from the artifacts of its run."""
    with draft_folder(project.models.folder) as draft:
        folder = fetch(project.tracker, run, draft)
        parts = {WEIGHTS: folder / WEIGHTS, DESCRIPTION: folder / DESCRIPTION, PROGRAM: folder / SERVED_PROGRAM}
        missing = [name for name, path in parts.items() if not path.exists()]
        if missing:
            raise StoreError(f"The artifacts of run {run} lack {', '.join(missing)}: {model} can not be used.")
        whole = draft / "whole"
        whole.mkdir()
        for name, path in parts.items():
            path.rename(whole / name)
        final = Path(project.models.path(model))
        if final.exists():
            final.rename(draft / "replaced")
        publish(whole, final)
    if not project.models.intact(model):
        raise StoreError(f"The artifacts of run {run} were changed: they are not {model}, which was registered.")

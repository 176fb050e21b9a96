"""What an erasure does to a model: forget the rows in the champion's network, or take the one trained without them."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from infra.deletion import Deletion, Doomed
from infra.erasure import Affected, Erasures, Plan, model_ref
from infra.errors import DatasetNotFoundError, ErasureError
from infra.project import Project
from infra.references import DatasetRef, ModelRef, Reference, StageResult
from infra.working_copy import names
from tasks.ingest import Ingested, ingest

MEASURED = ("membership_advantage", "membership_chance", "source_accuracy", "size_bytes")


class Champion(Reference):
    """The model that an erasure starts from, as far as its bytes are there.

    Attributes
    ----------
    name, version : str
    parameters : dict of str to str
        Those of the run that made it.
    small : ModelRef or None
        As it is served.
    network : ModelRef or None
        As it was before compression; this is what unlearns.
    data : DatasetRef or None
        Version it was trained on.
    declines : str
        Why it can not unlearn these rows; empty when it can.
    """

    name: str
    version: str
    parameters: dict[str, str]
    small: ModelRef | None
    network: ModelRef | None
    data: DatasetRef | None
    declines: str = ""


@task(name="erasure-sources", cache_policy=NO_CACHE)
def sources(plan: Plan) -> dict[str, Ingested]:
    """The datasets as they are before anything is taken out of them."""
    return {name: ingest.fn(name) for name in plan.datasets}


@task(name="erasure-data", cache_policy=NO_CACHE)
def write_data(plan: Plan, request: str) -> dict[str, Ingested]:
    """New versions without the rows; working copy and pin follow."""
    project = Project()
    erasures = Erasures(project)
    if plan.working_copy:
        erasures.rewrite(request)
    found = {}
    for name in plan.datasets:
        mine = name in names(project.root)
        found[name] = ingest.fn(name) if mine else Ingested(data=erasures.renew(name, request))
    return found


@task(name="erasure-champion", cache_policy=NO_CACHE)
def look_up(model: Affected, request: str) -> Champion:
    """What is left of a champion, and whether it can unlearn."""
    project = Project()
    erasures = Erasures(project)
    client = project.tracker.client
    version = client.get_model_version(model.name, model.version)
    digest = version.tags.get("clearwell.model", "")
    small = model_ref("champion", digest)
    network = erasures.network_of(digest)
    name, _, _ = model.data.partition("@")
    try:
        data: DatasetRef | None = project.versions.resolve(name, version.tags.get("clearwell.data_version", "-"))
    except DatasetNotFoundError:
        data = None
    declines = ""
    if data is None:
        declines = "the data it was trained on are gone"
    elif network is None:
        declines = "its network as it was before compression is gone"
    elif set(erasures.rows_in(data, request)) != {"train"}:
        declines = "rows of other splits than train can not be unlearnt"
    return Champion(
        name=model.name,
        version=model.version,
        parameters=dict(client.get_run(str(version.run_id)).data.params),
        small=small if project.models.intact(small) else None,
        network=network,
        data=data,
        declines=declines,
    )


@task(name="erasure-lists", cache_policy=NO_CACHE)
def lists(
    champion: Champion, truth: DatasetRef | None, request: str
) -> tuple[DatasetRef, DatasetRef, DatasetRef | None]:
    """The ids as a version, the champion's data without the rows, and the truth if it speaks of all of these data."""
    erasures = Erasures(Project())
    assert champion.data is not None
    if truth is not None and not erasures.speaks_of(truth, champion.data):
        truth = None
    return erasures.id_list(champion.data.name, request), erasures.without(champion.data, request), truth


@task(name="erasure-retire", cache_policy=NO_CACHE)
def retire(models: list[Affected], request: str) -> list[str]:
    """Withdraw every version that saw the rows and was not unlearnt."""
    registry = Project().registry
    for model in models:
        registry.retire(model.name, model.version, f"rows it was trained on were erased (certificate {request})")
    return [f"{model.name} version {model.version}" for model in models]


@task(name="erasure-list", cache_policy=NO_CACHE)
def list_doomed(plan: Plan, kept: list[str], request: str) -> Doomed:
    """Everything that goes."""
    deletion = Deletion(Erasures(Project()), request)
    return deletion.listed(kept, [(model.name, model.version) for model in plan.models])


@task(name="erasure-delete", cache_policy=NO_CACHE)
def delete(doomed: Doomed, request: str) -> dict[str, int]:
    """Take it away."""
    return Deletion(Erasures(Project()), request).delete(doomed, request)


@task(name="erasure-search", cache_policy=NO_CACHE)
def search(request: str) -> dict[str, Any]:
    """Search everything for the rows, and for one that stays.

    Raises
    ------
    ErasureError
        If something is found, or the row that stays is not.
    """
    deletion = Deletion(Erasures(Project()), request)
    found, control = deletion.search(), deletion.control()
    kinds = sorted({finding.kind for finding in control.findings})
    if found.findings or (deletion.rows.control and not control.findings):
        left = ", ".join(sorted({finding.where for finding in found.findings})[:5])
        raise ErasureError(
            f"The search does not prove the erasure: it finds rows in {left or 'no place'} and the row that stays in "
            f"{len(control.findings)} places. Continue with `clearwell forget --resume`."
        )
    return {
        "findings": 0,
        "places": found.places,
        "bytes": found.bytes,
        "unopened": list(found.unopened),
        "control": {"findings": len(control.findings), "kinds": kinds},
    }


def measured(judged: StageResult) -> dict[str, dict[str, float]]:
    """Before, retrained and after: what evaluation measured of them."""
    called = {"before": "before", "retrained": "retrained", "chain": "after"}
    models = judged.evidence["models"]
    return {
        called[name]: {key: models[name][key] for key in MEASURED if key in models[name]}
        for name in models
        if name in called
    }

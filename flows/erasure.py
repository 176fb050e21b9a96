"""Erasure of rows that a person asks to be forgotten: data, models, then every byte, then the proof.

    sources -> data -> models -> retire -> list -> delete -> search -> certificate

Every step is noted in a journal; after a kill the same request continues where it was, and ends the same.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from prefect import flow
from pydantic import ValidationError

from flows.config import LifecycleConfig
from flows.hooks import tell_failed_erasure
from infra import datasets as ds
from infra.certificate import file_certificate
from infra.deletion import Doomed
from infra.erasure import KIND, LEASE, Affected, Copies, Erasures, Plan
from infra.errors import ClearwellError, DatasetNotFoundError, ErasureError, LeaseHeldError, StageError
from infra.model_registry import CHAMPION
from infra.project import Project
from infra.references import DatasetRef, ModelRef, Reference, StageResult
from tasks.adapt import adapt
from tasks.compress import compress
from tasks.erase import delete, list_doomed, lists, look_up, measured, retire, search, sources, write_data
from tasks.evaluate import evaluate
from tasks.finetune import finetune
from tasks.ingest import Ingested
from tasks.label_noise import label_noise
from tasks.pretrain import pretrain
from tasks.register import register
from tasks.stage import RunContext
from tasks.unlearn import unlearn
from tasks.validate import validate

RESUME = "clearwell forget --resume"


@flow(name="erasure", log_prints=False, on_failure=[tell_failed_erasure], on_crashed=[tell_failed_erasure])
def erasure(
    request: str = "",
    ids: tuple[str, ...] = (),
    data: str | None = None,
    copies: Copies = "ask",
    reason: str = "",
    accept_no_champion: bool = False,
) -> dict[str, Any]:
    """Forget rows by their ids, and return the certificate.

    Args:
        request: An erasure that was begun before; empty begins one with the ids.
        ids: Ids of the rows. They are taken out of this run's record again.
        data: Dataset they belong to; by default every dataset that has them.
        copies: What to do with rows of the same bytes under other ids: "ask" (stop and name them), "erase" or "keep".
        reason: Why; kept in ledger and certificate.
        accept_no_champion: Whether to go on when no model passes the gates; the alias champion then falls away.
    """
    project = Project()
    erasures = Erasures(project)
    try:
        with project.ledger.turn(LEASE, patience=0):
            if ids and not request:
                plan, rows = erasures.examine(ids, data, copies, reason, accept_no_champion)
                request = erasures.begin(plan, rows)
            return _carry_out(project, erasures, erasures.open(request).id, accept_no_champion)
    except LeaseHeldError as error:
        raise ErasureError(f"Another erasure is under way ({error}). Wait until it has ended.") from None


def finish_erasures() -> list[dict[str, str]]:
    """Finish the erasures that were cut short; one that somebody is at work on, or must decide on, is left to them."""
    settled = []
    for found in Erasures(Project()).journal.open(KIND):
        try:
            settled.append({"request": found.id, "certificate": erasure(found.id)["path"]})
        except ClearwellError as error:
            settled.append({"request": found.id, "waits": str(error)})
    return settled


def _carry_out(project: Project, erasures: Erasures, request: str, accept_no_champion: bool) -> dict[str, Any]:
    """The steps in order, each at most once."""
    found = erasures.open(request)
    plan, done = Plan.model_validate(found.plan["plan"]), dict(found.steps)
    plan = plan.model_copy(update={"accept_no_champion": plan.accept_no_champion or accept_no_champion})
    project.tidy()
    tracker = project.tracker
    parent = tracker.open("erasure", **{"clearwell.flow": "erasure", "clearwell.certificate": request})
    run = RunContext(parent=parent, command=RESUME)

    def step(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in done:
            done[name] = work()
            erasures.journal.step(request, name, done[name])
        return done[name]

    try:
        before = _ingested(step("sources", lambda: _dump(sources(plan))))
        after = _ingested(step("data", lambda: _dump(write_data(plan, request))))
        models = step("models", lambda: _renew(project, plan, request, before, after, run))
        kept = [digest for model in models.values() for digest in model["kept"]]
        retired = step("retire", lambda: {"versions": retire(list(plan.models), request)})
        doomed = Doomed.model_validate(step("list", lambda: list_doomed(plan, kept, request).model_dump(mode="json")))
        deleted = step("delete", lambda: delete(doomed, request))
        proof = step("search", lambda: search(request))
        facts = {
            "models": models,
            "retired": retired["versions"],
            "deleted": deleted,
            "proof": proof,
            "began": found.began,
        }
        certificate = file_certificate(erasures, request, plan, doomed, facts, after, parent)
    except BaseException as error:
        tracker.close(parent, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.close(parent)
    return certificate


def _renew(
    project: Project, plan: Plan, request: str, before: dict[str, Ingested], after: dict[str, Ingested], run: RunContext
) -> dict[str, Any]:
    """A new champion for every model whose champion saw the rows."""
    found = {}
    for model in plan.models:
        name = model.data.partition("@")[0]
        if CHAMPION in model.aliases and name in after:
            found[model.name] = _new_champion(project, plan, model, request, before[name], after[name], run)
    return found


class _Chain(Reference):
    """What training on the data without the rows gave."""

    results: tuple[StageResult, ...]
    checked: DatasetRef
    data: DatasetRef
    model: ModelRef


def _new_champion(
    project: Project, plan: Plan, model: Affected, request: str, before: Ingested, after: Ingested, run: RunContext
) -> dict[str, Any]:
    """Unlearn; where that is declined, or what comes of it does not pass the gates, take the retrained model."""
    champion = look_up(model, request)
    config = config_of(champion.parameters, after.data.name)
    chain = _train(after, config, run)
    refused = [champion.declines] if champion.declines else []
    listed, data, truth = (None, chain.data, None) if champion.data is None else lists(champion, before.truth, request)
    trained_on = champion.data or chain.data

    def offer(how: str, results: list[StageResult], network: ModelRef, on: DatasetRef) -> dict[str, Any] | None:
        attempt = run.model_copy(update={"parent": project.tracker.open(how, run.parent)})
        project.tracker.params(attempt.parent, config.model_dump(mode="json", by_alias=True))
        small = _model(compress(chain.checked, network, config.compress, attempt))
        known = {"before": champion.small, "retrained": chain.model, "chain": small}
        judged = evaluate(
            trained_on, before.data, listed, truth if champion.data else after.truth,
            {name: ref for name, ref in known.items() if ref is not None}, config.evaluate, attempt,
        )  # fmt: skip
        made = register(on, small, [*results, judged], judged, config.register_, attempt)
        project.tracker.close(attempt.parent)
        if made.evidence["alias"] == CHAMPION:
            return {
                "how": how, "version": made.evidence["version"], "before": model.version, "data": str(on),
                "kept": [small.digest, network.digest], "measured": measured(judged), "refused": refused,
            }  # fmt: skip
        if not made.evidence["refused"]:
            raise ErasureError(
                f"{model.name} version {made.evidence['version']} has forgotten the rows and waits for approval: "
                f"`clearwell promote {model.name} --approve-by NAME --reason …`, then `{RESUME}`.",
                model=model.name,
            )
        refused.append(f"{how}: {made.evidence['refused']}")
        return None

    if not champion.declines and config.unlearn.enabled:
        assert champion.network is not None and champion.data is not None and listed is not None
        try:
            forgot = unlearn(champion.data, listed, champion.network, chain.model, config.unlearn, run)
        except (StageError, DatasetNotFoundError) as error:
            refused.append(f"{config.unlearn.method} declined: {error}")
        else:
            accepted = offer("unlearned", [forgot], _model(forgot), data)
            if accepted is not None:
                return accepted
    accepted = offer("retrained", list(chain.results), chain.model, chain.data)
    if accepted is not None:
        return accepted
    if plan.accept_no_champion:
        return {
            "how": "withdrawn",
            "version": None,
            "before": model.version,
            "kept": [],
            "measured": {},
            "refused": refused,
        }
    raise ErasureError(
        f"No model without the rows may become {CHAMPION} of {model.name}:\n" + "\n".join(refused) + "\n"
        f"Nothing was deleted yet. Mend what the gates refuse, then `{RESUME}`; or let the champion go without a "
        f"successor: `{RESUME} --accept-no-champion`.",
        model=model.name,
    )


def _train(found: Ingested, config: LifecycleConfig, run: RunContext) -> _Chain:
    """The lifecycle's stages up to the model that the rows never reached."""
    results: list[StageResult] = []

    def note(result: StageResult) -> StageResult:
        results.append(result)
        return result

    data, network, model = found.data, config.network, None
    if config.validate_.enabled:
        data = note(validate(data, config.validate_, run)).data or data
    checked = data
    if config.label_noise.enabled:
        labelled = note(label_noise(data, network, config.label_noise, run))
        data, model = labelled.data or data, labelled.model
    encoder = note(pretrain(data, model, network, config.pretrain, run)).model if config.pretrain.enabled else None
    model = _model(note(finetune(data, encoder, network, config.finetune, run)))
    if config.adapt.enabled and config.adapt.split in ds.splits_of(Project().versions.path(data)):
        model = _model(note(adapt(checked, model, config.adapt, run)))
    return _Chain(results=tuple(results), checked=checked, data=data, model=model)


def config_of(parameters: dict[str, str], data: str) -> LifecycleConfig:
    """The parameters that a run was made with, as its MLflow run keeps them; defaults where they no longer fit."""
    values: dict[str, Any] = {}
    for name, text in parameters.items():
        inner = values
        *path, last = name.split(".")
        for part in path:
            inner = inner.setdefault(part, {}) if isinstance(inner.setdefault(part, {}), dict) else {}
        inner[last] = _read_back(text)
    values["data"] = data
    try:
        config = LifecycleConfig.model_validate(values)
    except ValidationError:
        config = LifecycleConfig(data=data)
    promoting = config.register_.model_copy(update={"enabled": True, "promote": True})
    return config.model_copy(update={"register_": promoting})


def _read_back(text: str) -> Any:
    """What Python wrote as this text; a word, such as off, stays one."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _model(result: StageResult) -> ModelRef:
    assert result.model is not None
    return result.model


def _dump(found: dict[str, Ingested]) -> dict[str, Any]:
    return {name: each.model_dump(mode="json") for name, each in found.items()}


def _ingested(facts: dict[str, Any]) -> dict[str, Ingested]:
    return {name: Ingested.model_validate(each) for name, each in facts.items()}

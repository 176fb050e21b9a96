"""What every stage task does round its work: look in the cache, track the run, keep the result in one step.

A stage module has a frozen config, a function that does the work at a :class:`Desk`, and a Prefect task
that hands both to :func:`run_stage`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff
from pydantic import Field

from infra.errors import ClearwellError, StageError, is_transient
from infra.files import draft_folder
from infra.project import Project
from infra.references import DatasetRef, FigureRef, ModelRef, Reference, StageResult
from infra.runner import runner
from infra.source import LAYERS, source_files
from models.registry import get_method
from models.training import Hook, Row, Trainer, hooks

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from prefect.client.schemas.objects import State
    from prefect.tasks import Task
    from torch.nn import Module

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class RunContext(Reference):
    """The flow run a stage belongs to.

    Attributes
    ----------
    parent : str
        MLflow run of the flow.
    refresh : tuple of str
        Stages to compute even when the cache holds them; "all" means every stage.
    command : str
        What a user types to continue after a failure.
    """

    parent: str
    refresh: tuple[str, ...] = ()
    command: str = "clearwell run"


class StageConfig(Reference):
    """What the config of every stage has."""

    enabled: bool = Field(True, description="Leave the stage out with false; later stages work on what there is.")
    method: str = Field(description="Registered name of the method; `clearwell methods STAGE` lists the choices.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="Constructor parameters of the method.")
    seed: int = Field(0, ge=0, description="Random state of the stage.")


def stage_task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a function a Prefect task that is tried again, ever later, while a server it needs is away or busy.

    Whatever else goes wrong ends it at once. Results are kept by :func:`run_stage`, not by Prefect.
    """
    return task(
        name=name,
        cache_policy=NO_CACHE,
        retries=4,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=_may_succeed_later,
    )


def _may_succeed_later(_task: Any, _run: Any, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


Watcher = Callable[[str, str, dict[str, Any]], None]
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("stage_watchers", default=())


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher(event, stage, facts)`` inside the block.

    Events: "begin", "epoch", "end", "cached", "failed".
    """
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def tell(event: str, stage: str, **facts: Any) -> None:
    """Let the watchers know."""
    for watcher in _watchers.get():
        watcher(event, stage, facts)


@dataclass
class Desk:
    """What a stage's work is done with: stores to read from, and places to put what it makes.

    Attributes
    ----------
    project : Project
    stage : str
    figures_folder : Path
    metrics, evidence : dict
    history : list of dict
        Filled from every trainer that runs, one row an epoch.
    """

    project: Project
    stage: str
    figures_folder: Path
    metrics: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    figures: list[FigureRef] = field(default_factory=list)
    data: DatasetRef | None = None
    model: ModelRef | None = None
    others: dict[str, DatasetRef] = field(default_factory=dict)

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Keep a matplotlib figure as PNG under `name`."""
        figure.savefig(self.figures_folder / f"{name}.png", dpi=110, bbox_inches="tight")
        self.figures.append(FigureRef(file=f"{name}.png", caption=caption))

    def spread(self, training: Callable[[], T]) -> T:
        """What ``training()`` returns, done on as many processes as the setting ``runner.processes`` says.

        With several, it is done on copies of what it refers to: only what it returns comes back.
        """
        processes = self.project.settings.runner.processes
        if processes == 1:
            return training()
        found, history = runner(self.project.settings).train(_recorded, training, processes=processes)
        self.history += history
        return found

    def load_network(self, ref: ModelRef) -> Module:
        """The network of a model reference, in eval mode."""
        from models.state import unpack

        tensors, description = self.project.models.load(ref)
        return unpack(tensors, description).eval()

    def save_network(self, network: Module, name: str | None = None) -> ModelRef:
        """Keep a network; returns its reference."""
        from models.state import pack

        tensors, description = pack(network)
        return self.project.models.save(name or self.stage, tensors, description)


class _Observer(Hook):
    """Takes the history of every trainer, and tells the watchers how far it is."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """One row for the curves, one event for the progress bar."""
        tell("epoch", self.desk.stage, training=trainer.label, epoch=trainer.epoch + 1, epochs=trainer.epochs)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Curves are taken whole, with what other hooks added."""
        self.desk.history += [{"training": trainer.label, **row} for row in trainer.history]


class _Recorder(Hook):
    """Takes the history of every trainer in a process that has no desk."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []

    def on_fit_end(self, trainer: Trainer) -> None:
        """Curves are taken whole."""
        self.history += [{"training": trainer.label, **row} for row in trainer.history]


def _recorded(training: Callable[[], T]) -> tuple[T, list[dict[str, Any]]]:
    recorder = _Recorder()
    with hooks(recorder):
        return training(), recorder.history


def run_stage(
    stage: str,
    config: StageConfig,
    inputs: Mapping[str, DatasetRef | ModelRef | None],
    work: Callable[[Desk], None],
    run: RunContext,
    *,
    still_true: Callable[[Project, StageResult], bool] | None = None,
    settings: Any = None,
) -> StageResult:
    """Take the stage's result from the cache, or do the work and keep what it made.

    Parameters
    ----------
    stage : str
        Name under which the result is kept and tracked.
    config : StageConfig
    inputs : mapping
        Every reference the work reads; their digests are part of the cache key.
    work : callable
        Does the stage's work at a desk. Its module's source is part of the key.
    run : RunContext
    still_true : callable, optional
        Further condition for a cached result to count (a registry entry that must still exist).
    settings : JSON value, optional
        Anything else the result depends on.

    Raises
    ------
    StageError
        If the work fails; says on which input, and which command continues.
    """
    project = Project()
    parts = _key_parts(config, inputs, work.__module__, settings)
    if project.settings.runner.processes > 1:  # batches in parts make other models
        parts["processes"] = project.settings.runner.processes
    result, why = project.cache.find(stage, parts)
    if result is not None and not {"all", stage} & set(run.refresh):
        if still_true is None or still_true(project, result):
            return _reuse(project, result, run, why)
        why = "what it recorded outside no longer holds"
    elif result is not None:
        why = "asked to with --refresh"
    return _compute(project, stage, config, inputs, work, run, parts, why)


def _key_parts(
    config: StageConfig, inputs: Mapping[str, DatasetRef | ModelRef | None], module: str, settings: Any
) -> dict[str, Any]:
    digests = {
        name: ref.version if isinstance(ref, DatasetRef) else ref.digest
        for name, ref in inputs.items()
        if ref is not None
    }
    code = dict(source_files(module, LAYERS)) | dict(source_files("infra.datasets", ()))
    if config.method != "none":
        code |= dict(source_files(get_method(config.method).cls.__module__, LAYERS))
    return {
        "inputs": digests,
        "config": config.model_dump(mode="json"),
        "settings": settings,
        "code": code,
        "clearwell": version("clearwell"),
    }


def _reuse(project: Project, result: StageResult, run: RunContext, why: str) -> StageResult:
    taken = result.model_copy(update={"cached": True, "why": why})
    tracker = project.tracker
    child = tracker.open(
        result.stage, run.parent, **{"clearwell.cached": "true", "clearwell.computed_by": result.run_id or "-"}
    )
    tracker.metrics(child, result.metrics)
    tracker.close(child)
    tell("cached", result.stage, why=why)
    return taken


def _compute(
    project: Project,
    stage: str,
    config: StageConfig,
    inputs: Mapping[str, DatasetRef | ModelRef | None],
    work: Callable[[Desk], None],
    run: RunContext,
    parts: dict[str, Any],
    why: str,
) -> StageResult:
    tracker = project.tracker
    child = tracker.open(stage, run.parent, **{"clearwell.stage": stage, "clearwell.why": why})
    tell("begin", stage, method=config.method, why=why)
    began = time.perf_counter()
    try:
        _log_inputs(project, child, config, inputs)
        with draft_folder(project.cache.folder) as figures:
            desk = Desk(project, stage, figures)
            with hooks(_Observer(desk)):
                work(desk)
            result = StageResult(
                stage=stage,
                method=config.method,
                seconds=round(time.perf_counter() - began, 3),
                why=why,
                data=desk.data,
                model=desk.model,
                others=desk.others,
                metrics=desk.metrics,
                evidence=desk.evidence,
                history=tuple(desk.history),
                figures=tuple(desk.figures),
                run_id=child,
            )
            _log_outputs(project, child, result, figures)
            kept = project.cache.keep(result, parts, lambda folder: _copy(figures, folder))
    except BaseException as error:
        tracker.close(child, "FAILED" if isinstance(error, Exception) else "KILLED")
        tell("failed", stage, error=str(error))
        if isinstance(error, ClearwellError) or not isinstance(error, Exception):
            raise
        given = ", ".join(f"{name} {ref}" for name, ref in inputs.items() if ref is not None)
        raise StageError(
            f"Stage {stage!r} ({config.method}) failed on {given or 'no input'}: {type(error).__name__}: {error}\n"
            f"What finished before it is kept. When the cause is mended, continue with: {run.command}",
            stage=stage,
            inputs=dict(inputs),
            run_id=child,
        ) from error
    tracker.close(child)
    tell("end", stage, seconds=kept.seconds)
    return kept


def _log_inputs(
    project: Project, child: str, config: StageConfig, inputs: Mapping[str, DatasetRef | ModelRef | None]
) -> None:
    tracker = project.tracker
    tracker.params(child, config.model_dump(mode="json"))
    for name, ref in inputs.items():
        if isinstance(ref, DatasetRef):
            tracker.dataset(child, ref, name)
        elif ref is not None:
            tracker.tags(child, {f"clearwell.input.{name}": str(ref)})


def _log_outputs(project: Project, child: str, result: StageResult, figures: Path) -> None:
    tracker = project.tracker
    tracker.metrics(child, {"seconds": result.seconds, **result.metrics}, result.history)
    outputs = {"output": result.data, **result.others}
    for context, ref in outputs.items():
        if ref is not None:
            tracker.dataset(child, ref, context)
            tracker.client.log_artifact(child, str(project.versions.pin(ref)), f"data/{context}")
            project.ledger.append(
                "data", name=ref.name, version=ref.version, rows=ref.rows, stage=result.stage, run=child
            )
    if result.model is not None:
        tracker.files(child, project.models.path(result.model), "weights")
        tracker.tags(child, {"clearwell.output.model": str(result.model)})
    if result.figures:
        tracker.files(child, figures, "figures")


def _copy(source: Path, target: Path) -> None:
    for path in source.iterdir():
        path.rename(target / path.name)

"""Start a deployment on the Prefect server of the stack and follow its run to the end."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import ClearwellError, ServerError
from infra.ledger import actor
from infra.pages import prefect_run
from infra.settings import Settings
from infra.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run

_LOOK_AGAIN = 2.0  # seconds
_PATIENCE = 60.0  # seconds that the server may be away, as when the supervisor starts it again
_HANDED_ON = ("CLEARWELL_RUNNER__ADDRESS", "CLEARWELL_RUNNER__WORKERS")

Tell = Callable[[str], None]


class FlowRun:
    """One run of a deployment.

    Parameters
    ----------
    settings : Settings
    tracker : Tracker
    number : str
        Prefect's id of the run.
    """

    def __init__(self, settings: Settings, tracker: Tracker, number: str) -> None:
        self.settings, self.tracker, self.number = settings, tracker, number

    @property
    def page(self) -> str | None:
        """Its page in Prefect."""
        return prefect_run(self.settings, self.number)

    def follow(self, tell: Tell) -> dict[str, Any]:
        """Wait for its end, say which stage it is at, and return the summary that it wrote.

        Raises
        ------
        ClearwellError
            What ended it, with the exit code that the same error has here.
        """
        said: set[tuple[str, str]] = set()
        before = ""
        while True:
            state = self._state()
            if state.name != before:
                tell(f"{state.name}{': ' + state.message if state.message and not state.is_final() else ''}")
                before = state.name
            for child in self._stages():
                event = (child.info.run_name or "", child.info.status)
                if event not in said:
                    said.add(event)
                    tell(f"  {event[0]}: {_words(child)}")
            if state.is_final():
                break
            time.sleep(_LOOK_AGAIN)
        if not state.is_completed():
            raise self._failure(state)
        return self._summary()

    def _state(self) -> Any:
        from httpx import HTTPError
        from prefect.client.orchestration import get_client

        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with get_client(sync_client=True) as client:
                    return client.read_flow_run(self.number).state  # type: ignore[arg-type]
            except (HTTPError, OSError) as error:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"The Prefect server does not answer: {error}. The run {self.number} goes on without it. "
                        "See `clearwell status`."
                    ) from error
                time.sleep(_LOOK_AGAIN)

    def _tracked(self) -> Run | None:
        """The MLflow run that this flow run opened; a run that was tried again opened several."""
        where = f"tags.`clearwell.prefect_run` = '{self.number}'"
        found = self.tracker.client.search_runs([self.tracker.experiment], where, order_by=["start_time DESC"])
        return found[0] if found else None

    def _stages(self) -> Iterator[Run]:
        parent = self._tracked()
        if parent is not None:
            where = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
            yield from self.tracker.client.search_runs(
                [self.tracker.experiment], where, order_by=["start_time ASC"], max_results=200
            )

    def _failure(self, state: Any) -> ClearwellError:
        run = self._tracked()
        tags = run.data.tags if run else {}
        message = tags.get("clearwell.error") or state.message or state.name
        where = f"\nThe run: {self.page}" if self.page else ""
        code = tags.get("clearwell.exit_code", "")
        if code.isdigit():
            return ClearwellError(message + where, exit_code=int(code))
        return ServerError(f"The run ended as {state.name}: {message}{where}\nSee `clearwell logs worker`.")

    def _summary(self) -> dict[str, Any]:
        run = self._tracked()
        if run is None:
            raise ServerError(f"MLflow does not know the run {self.number}. See {self.page}.")
        with tempfile.TemporaryDirectory() as folder:
            path = self.tracker.client.download_artifacts(run.info.run_id, "report/summary.json", folder)
            return dict(json.loads(Path(path).read_text()))


def submit(settings: Settings, tracker: Tracker, deployment: str, parameters: dict[str, Any]) -> FlowRun:
    """Start a deployment with parameters of its own.

    Raises
    ------
    ServerError
        If the server does not answer, or has no such deployment.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectException

    try:
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(deployment)
            run = client.create_flow_run_from_deployment(
                found.id, parameters=parameters, job_variables=_variables(found.job_variables)
            )
    except ObjectNotFound:
        raise ServerError(
            f"The Prefect server has no deployment {deployment!r}. Register the flows with `clearwell deploy`."
        ) from None
    except (HTTPError, OSError, PrefectException) as error:
        raise ServerError(
            f"The Prefect server at {settings.orchestration.api} did not take the run: {error}. "
            "Start what ended with `clearwell up`, or go on without the stack after `clearwell down`."
        ) from error
    return FlowRun(settings, tracker, str(run.id))


def _variables(of_deployment: dict[str, Any] | None) -> dict[str, Any]:
    """The deployment's variables, with who started the run and on what it shall work."""
    variables = dict(of_deployment or {})
    own = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    return variables | {"env": {**variables.get("env", {}), **own, "CLEARWELL_ACTOR": actor()}}


def _words(stage: Run) -> str:
    if stage.info.status == "RUNNING":
        return "begun"
    if stage.info.status != "FINISHED":
        return stage.info.status.lower()
    seconds = (stage.info.end_time - stage.info.start_time) / 1000
    return "from the cache" if stage.data.tags.get("clearwell.cached") else f"done after {seconds:.1f} s"

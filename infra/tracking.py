"""MLflow runs: one parent a flow run, one child a stage; parameters, curves, datasets, figures, the code's commit.

Only the client with explicit run ids is used: MLflow's fluent interface opens stray runs from other threads.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.files import is_running
from infra.references import DatasetRef
from infra.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PROCESS = "clearwell.process"


class Tracker:
    """Write access to the tracking server that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def client(self) -> MlflowClient:
        """The MLflow client, imported and connected on first use."""
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        return MlflowClient(self.settings.tracking_uri, self.settings.tracking_uri)

    @cached_property
    def experiment(self) -> str:
        """Id of the experiment, made on first use."""
        name = self.settings.tracking.experiment
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        kind = {"mlflow.experimentKind": "custom_model_development"}  # its pages open with runs and curves, not chats
        return self.client.create_experiment(name, artifact_location=self.settings.artifact_root, tags=kind)

    def open(self, name: str, parent: str | None = None, **tags: str) -> str:
        """Start a run and return its id."""
        all_tags = {"mlflow.runName": name, _PROCESS: _process(), "clearwell.version": version("clearwell"), **tags}
        commit = code_commit(self.settings.root)
        if commit:
            all_tags["mlflow.source.git.commit"] = commit
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        return self.client.create_run(self.experiment, tags=all_tags, run_name=name).info.run_id

    def close(self, run: str, status: str = "FINISHED") -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run, status)

    def params(self, run: str, values: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings become dotted names."""
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:6000]) for name, value in flatten(values)]
        for start in range(0, len(flat), 100):
            self.client.log_batch(run, params=flat[start : start + 100])

    def metrics(self, run: str, values: Mapping[str, float], history: Iterable[Mapping[str, Any]] = ()) -> None:
        """Log metrics in batches: final values, and rows of training curves whose ``epoch`` is the step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(_name(name), float(value), now, 0) for name, value in values.items()]
        for row in history:
            label, step = row.get("training", "training"), int(row.get("epoch", 0))
            found += [
                Metric(_name(f"{label}.{name}"), float(value), now, step)
                for name, value in row.items()
                if name != "epoch" and isinstance(value, (int, float))
            ]
        for start in range(0, len(found), 1000):
            self.client.log_batch(run, metrics=found[start : start + 1000])

    def tags(self, run: str, values: Mapping[str, str]) -> None:
        """Set tags in one call."""
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def dataset(self, run: str, ref: DatasetRef, context: str) -> None:
        """Log a dataset version as the run's input or output (`context`: "input", "output", "quarantine")."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=ref.name,
            digest=ref.version[:32],
            source_type="local",
            source=json.dumps({"uri": ref.uri, "version": ref.version}),
            profile=json.dumps({"num_rows": ref.rows}),
        )
        tag = InputTag(key="mlflow.data.context", value=context)
        self.client.log_inputs(run, [DatasetInput(dataset=entity, tags=[tag])])

    def files(self, run: str, folder: Path, to: str | None = None) -> None:
        """Log every file below `folder` as artifacts."""
        self.client.log_artifacts(run, str(folder), to)

    def close_orphans(self) -> list[str]:
        """Mark runs KILLED whose process on this host is gone; returns their ids."""
        runs = self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'", max_results=1000)
        host = socket.gethostname()
        orphans = []
        for run in runs:
            where, _, pid = run.data.tags.get(_PROCESS, "").rpartition(":")
            if where == host and not is_running(pid):
                self.close(run.info.run_id, "KILLED")
                orphans.append(run.info.run_id)
        return orphans


def _process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _name(metric: str) -> str:
    return metric.replace("@", "_at_")


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as (dotted name, value) pairs."""
    flat: list[tuple[str, Any]] = []
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        flat += flatten(value, f"{dotted}.") if isinstance(value, Mapping) and value else [(dotted, value)]
    return flat


@cache
def code_commit(root: Path) -> str | None:
    """The project's Git commit, None outside Git."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()

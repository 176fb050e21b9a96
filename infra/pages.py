"""Addresses of pages that a person opens, in MLflow and in Prefect; None where no server shows them."""

from __future__ import annotations

import os
from urllib.parse import quote

from infra.settings import Settings

_TRAINING = "?workflowType=machine_learning"  # MLflow's pages open for chats otherwise


def mlflow_run(settings: Settings, experiment: str, run: str) -> str | None:
    """Page of a run."""
    return _below(_mlflow(settings), f"#/experiments/{experiment}/runs/{run}{_TRAINING}")


def mlflow_version(settings: Settings, name: str, version: str) -> str | None:
    """Page of a registered model's version."""
    return _below(_mlflow(settings), f"#/models/{quote(name, safe='')}/versions/{version}{_TRAINING}")


def prefect_run(settings: Settings, run: str) -> str | None:
    """Page of a flow run; the server that a run starts for itself has none."""
    if not settings.orchestration.api or not run:
        return None
    pages = os.environ.get("PREFECT_UI_URL") or settings.orchestration.api.removesuffix("/").removesuffix("/api")
    return _below(pages, f"runs/flow-run/{run}")


def _mlflow(settings: Settings) -> str | None:
    return settings.tracking_uri if settings.tracking_uri.startswith("http") else None


def _below(server: str | None, path: str) -> str | None:
    return f"{server.rstrip('/')}/{path}" if server else None

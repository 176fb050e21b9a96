"""One project: its settings and its stores, each opened when first used."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from infra.cache import StageCache
from infra.embedded_server import stop_orphans
from infra.files import clear_drafts
from infra.ledger import Ledger
from infra.model_registry import ModelRegistry
from infra.model_store import ModelStore
from infra.object_store import ObjectStore
from infra.settings import Settings, settings
from infra.tracking import Tracker
from infra.versions import DataVersions


class Project:
    """Everything a task needs of the outside world.

    Parameters
    ----------
    current : Settings, optional
        The settings in force by default.
    """

    def __init__(self, current: Settings | None = None) -> None:
        self.settings = current or settings()
        self.root: Path = self.settings.root

    @cached_property
    def versions(self) -> DataVersions:
        """Dataset versions."""
        return DataVersions(self.root)

    @cached_property
    def models(self) -> ModelStore:
        """Model weights."""
        return ModelStore(self.root)

    @cached_property
    def cache(self) -> StageCache:
        """Results of finished stages."""
        return StageCache(self.root)

    @cached_property
    def ledger(self) -> Ledger:
        """The audit trail."""
        return Ledger(self.settings.ledger_url)

    @cached_property
    def tracker(self) -> Tracker:
        """MLflow runs."""
        return Tracker(self.settings)

    @cached_property
    def registry(self) -> ModelRegistry:
        """MLflow model registry with gates."""
        return ModelRegistry(self.settings, self.tracker, self.ledger)

    @cached_property
    def object_store(self) -> ObjectStore | None:
        """The S3-compatible store; None embedded."""
        return ObjectStore(self.settings.object_store) if self.settings.object_store else None

    def tidy(self) -> dict[str, int]:
        """Clear what killed processes left: drafts, servers, and tracking runs that still say RUNNING."""
        state = self.settings.state
        homes = (state, state / "data_docs", self.root / "reports")
        drafts = self.versions.clear_drafts() + self.models.clear_drafts() + self.cache.clear_drafts()
        drafts += sum(clear_drafts(home) for home in homes)
        servers = stop_orphans(self.settings.state / "prefect")
        return {"drafts": drafts, "servers": servers, "runs": len(self.tracker.close_orphans())}

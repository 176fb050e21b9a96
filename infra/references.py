"""What travels between tasks: references to data and models, never the bytes themselves."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Reference(BaseModel):
    """Frozen, JSON-able value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetRef(Reference):
    """One version of a dataset.

    Attributes
    ----------
    name : str
        Dataset name ("scans").
    uri : str
        Folder of the version, relative to the project.
    version : str
        DVC's directory hash ("….dir").
    rows : int
    """

    name: str
    uri: str
    version: str
    rows: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version[:12]}"


class ModelRef(Reference):
    """Trained weights with their architecture.

    Attributes
    ----------
    name : str
        What made it ("label_noise", "compress").
    uri : str
        Folder of the model, relative to the project.
    digest : str
        sha256 over weights and architecture.
    """

    name: str
    uri: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.digest[:12]}"


class FigureRef(Reference):
    """A picture a stage made: file name inside the stage's record, and what it shows."""

    file: str
    caption: str


class StageResult(Reference):
    """What a stage leaves behind.

    Attributes
    ----------
    stage, method : str
    key : str
        Cache key under which the result is kept.
    seconds : float
        Time the stage took when it was computed.
    cached : bool
        Whether this run took it from the cache.
    why : str
        Why it ran, or from where it was taken.
    data, model : reference or None
        The main outputs.
    others : dict of str to DatasetRef
        Further datasets (quarantined rows, duplicates).
    metrics : dict of str to float
    evidence : dict
        JSON values that the gates and the report read.
    history : tuple of dict
        Rows of the training curves.
    figures : tuple of FigureRef
    run_id : str
        The stage's MLflow run.
    """

    stage: str
    method: str
    key: str = ""
    seconds: float = 0.0
    cached: bool = False
    why: str = ""
    data: DatasetRef | None = None
    model: ModelRef | None = None
    others: dict[str, DatasetRef] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    evidence: dict[str, Any] = Field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    figures: tuple[FigureRef, ...] = ()
    run_id: str = ""

    @property
    def references(self) -> tuple[DatasetRef | ModelRef, ...]:
        """Everything whose bytes must exist for the result to count."""
        return tuple(r for r in (self.data, self.model, *self.others.values()) if r is not None)

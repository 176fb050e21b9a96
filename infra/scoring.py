"""The registered model as MLflow serves it: the exported program behind a pyfunc written as code, without pickle."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from infra.datasets import Schema
from infra.model_store import DESCRIPTION, PROGRAM, WEIGHTS

SCORING_CODE = Path(__file__).with_name("scoring_model.py")


def save_scoring_model(target: Path, model: Path, schema: Schema, example: Any, answer: Any) -> None:
    """Write an MLflow model folder to `target`.

    Parameters
    ----------
    target : Path
        Must not exist yet.
    model : Path
        Folder of the stored model with its exported program.
    schema : Schema
    example, answer : array
        A batch as the model takes it, and the class probabilities it gives.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema as Columns
    from mlflow.types import TensorSpec

    labels = target.with_name("labels.json")
    labels.write_text(json.dumps({"label_names": list(schema.label_names)}))
    signature = ModelSignature(
        inputs=Columns([TensorSpec(np.dtype(example.dtype), (-1, *example.shape[1:]))]),
        outputs=Columns([TensorSpec(np.dtype(answer.dtype), (-1, *answer.shape[1:]))]),
    )
    with _without_advice():
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(SCORING_CODE),
            code_paths=[str(_serving_package(target.parent))],
            artifacts={"program": str(model / PROGRAM), "labels": str(labels)},
            signature=signature,
            pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "numpy", "torch")],
            input_example=example,
            metadata={"product": "clearwell"},
        )
    for name in (WEIGHTS, DESCRIPTION):
        shutil.copyfile(model / name, target / name)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence MLflow's advice to add type hints, which it would then take for the signature given here."""
    logger = logging.getLogger("py.warnings")  # where warnings go once Prefect captures them
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _serving_package(folder: Path) -> Path:
    """The few modules of this package that the served model imports, and nothing else of it."""
    package = folder / "infra"
    package.mkdir(exist_ok=True)
    for name in ("__init__.py", "errors.py", "program.py"):
        shutil.copyfile(SCORING_CODE.with_name(name), package / name)
    return package

"""Loaded by MLflow as code: class probabilities from the exported program.

``predict`` carries no type hints, because MLflow would take them for the model's signature.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

from infra.program import open_program


class ExportedClassifier(PythonModel):
    """Runs ``program.pt2`` on a float32 batch."""

    def load_context(self, context: Any) -> None:
        """Open the program."""
        self.program = open_program(Path(context.artifacts["program"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Class probabilities (n, classes) of a float32 batch."""
        if not np.isfinite(model_input).all():
            raise MlflowException.invalid_parameter_value("The input holds values that are not finite.")
        with torch.inference_mode():
            return self.program(torch.from_numpy(np.ascontiguousarray(model_input))).softmax(1).numpy()


mlflow.models.set_model(ExportedClassifier())

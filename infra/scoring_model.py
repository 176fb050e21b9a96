"""Loaded by MLflow as code: class probabilities from the exported program."""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc import PythonModel


class ExportedClassifier(PythonModel):
    """Runs ``program.pt2`` on a float32 batch."""

    def load_context(self, context: Any) -> None:
        """Open the program."""
        self.program = torch.export.load(context.artifacts["program"]).module()

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Probabilities (n, classes) of the batch under the key "inputs"."""
        batch = model_input["inputs"] if isinstance(model_input, dict) else model_input
        with torch.inference_mode():
            rows = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32))
            return {"probabilities": self.program(rows).softmax(1).numpy()}


mlflow.models.set_model(ExportedClassifier())

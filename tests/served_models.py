"""Small models that are registered and served as real ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from infra.datasets import Schema
from infra.files import draft_folder
from infra.project import Project
from infra.scoring import save_scoring_model

MODEL = "flowers-classifier"
SCHEMA = Schema(kind="table", features=("a", "b", "c", "d"), label_names=("x", "y", "z"))
BATCH = [[0.5, -1.0, 2.0, 0.25], [1, 2, 3, 4]]


def register(project: Project, key: str, name: str = MODEL) -> tuple[str, np.ndarray]:
    """A version whose program multiplies with random numbers of its own; with what it says of BATCH."""
    torch.manual_seed(int(key))
    network = torch.nn.Linear(4, 3).eval()
    example = torch.zeros(2, 4)

    def export(path: Path) -> None:
        batch = torch.export.Dim("batch", min=1, max=64)
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), str(path))

    ref = project.models.save("test", dict(network.state_dict()), {"kind": "linear"}, export)
    answer = network(example).softmax(1).detach().numpy()
    run = project.tracker.open("lifecycle")
    with draft_folder(project.settings.state) as draft:
        save_scoring_model(draft / "model", project.models.path(ref), SCHEMA, example.numpy(), answer)
        project.tracker.files(run, draft / "model", "model")
    measured = {"test": {"source_accuracy": 0.95}, "model": {"size_bytes": 800.0}}
    version = project.registry.register(name, run, key, "card", {}, measured)
    project.registry.judge(name, version)
    return version, network(torch.tensor(BATCH)).softmax(1).detach().numpy()

"""Does the drift watch fire when it should, and only then? Real scans of two scanners, arriving in parts.

    python -m benchmarks.drift            writes benchmarks/results/drift.json

For each seed a classifier is trained on scanner A alone. Half of A's test rows are the reference. What arrives is drawn
from the other half (no drift) or from scanner B (drift), in parts of several sizes. The bounds are those of the
``drift-watch`` deployment, written down before this was measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.evidence import RESULTS, SEEDS
from infra import datasets as ds
from infra.files import write_text
from models.adapt.glc import GLCAdapter
from models.base import isolated_seed, predict_in_batches
from models.drift import drifted, measure
from models.supervised import train_classifier
from tasks.adapt import AdaptConfig
from tasks.drift import DriftConfig
from tasks.networks import NetworkConfig, make_classifier, make_encoder

DATA = Path(__file__).parents[1] / "data" / "scans"
SIZES = (50, 100, 200, 400)
PARTS = 25  # of each size, seed and scanner
Outputs = NDArray[np.float32]


def study(seeds: Sequence[int]) -> dict[str, Any]:
    """Share of parts that fire, by state of the model, scanner and size."""
    began = time.perf_counter()
    config = DriftConfig()
    rows, accuracies = [], []
    schema = ds.infer_schema(DATA)
    test, target = (ds.read_split(DATA, split) for split in ("test", "target"))
    a, b = (torch.from_numpy(ds.inputs(split, schema)) for split in (test, target))
    for seed in seeds:
        network = _trained(schema, seed)
        order = np.random.default_rng(seed).permutation(len(a))
        reference, others = np.array_split(order, 2)
        z_a, z_b = (_log_probabilities(network, X) for X in (a, b))
        accuracies.append(float((z_a.argmax(1) == ds.labels(test)).mean()))
        known = {"scanner A": z_a[reference]}
        rows += _fired("before", seed, known, {"A": z_a[others], "B": z_b}, config)
        arrived, later = np.array_split(np.random.default_rng(seed).permutation(len(b)), 2)
        settings = {"random_state": seed, **AdaptConfig().parameters}
        adapted = GLCAdapter(model=network, **settings).fit(b[torch.from_numpy(arrived)]).model_
        z_a, z_b = (_log_probabilities(adapted, X) for X in (a, b))
        known = {"scanner A": z_a[reference], "scanner B": z_b[arrived]}
        rows += _fired("adapted", seed, known, {"A": z_a[others], "B": z_b[later]}, config)
        print(json.dumps(_summary(rows), indent=1), flush=True)
    return {
        "command": "python -m benchmarks.drift",
        "seeds": list(seeds),
        "bounds": config.bounds | {"agreeing": config.agreeing},
        "source_accuracy": accuracies,
        "parts_of_each_size": PARTS,
        "summary": _summary(rows),
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _trained(schema: ds.Schema, seed: int) -> Any:
    train = ds.read_split(DATA, "train")
    labels = ds.labels(train)
    possible = (labels >= 0) & (labels < schema.n_classes)
    train = train.select([row for row, cell in enumerate(train["image"]) if possible[row] and _fits(cell, schema)])
    with isolated_seed(seed):
        network = make_classifier(make_encoder(schema, NetworkConfig()), schema.n_classes, NetworkConfig())
    X, y = torch.from_numpy(ds.inputs(train, schema)), ds.labels(train)
    train_classifier(network, X, y, epochs=8, label_smoothing=0.1, seed=seed)  # type: ignore[arg-type]
    return network.eval()


def _fits(cell: Any, schema: ds.Schema) -> bool:
    pixels = ds.decode(cell)
    return pixels is not None and pixels.shape == schema.image_size


def _log_probabilities(network: Any, X: torch.Tensor) -> Outputs:
    return predict_in_batches(network, X, 1024).log_softmax(1).numpy()


def _fired(
    model: str, seed: int, known: dict[str, Outputs], arriving: dict[str, Outputs], config: DriftConfig
) -> list[dict[str, Any]]:
    """One row a scanner and size: how many parts fire, and the measures against the nearest domain on average."""
    rows = []
    for scanner, z in arriving.items():
        for size in SIZES:
            rng = np.random.default_rng([seed, size])
            parts = [_part(z[rng.permutation(len(z))[:size]], known, config) for _ in range(PARTS)]
            means = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
            rows.append({"model": model, "seed": seed, "scanner": scanner, "size": size, **means})
    return rows


def _part(z: Outputs, known: dict[str, Outputs], config: DriftConfig) -> dict[str, float]:
    found = [measure(reference, z) for reference in known.values()]
    nearest = min(found, key=lambda row: (sum(row[n] > bound for n, bound in config.bounds.items()), row["domain_auc"]))
    return {"fires": float(drifted(nearest, config.bounds, config.agreeing)), **nearest}


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds."""
    found = []
    for model, scanner, size in dict.fromkeys((row["model"], row["scanner"], row["size"]) for row in rows):
        alike = [row for row in rows if (row["model"], row["scanner"], row["size"]) == (model, scanner, size)]
        names = ("fires", "domain_auc", "confidence_divergence", "separability_drop")
        means = {name: round(float(np.mean([row[name] for row in alike])), 4) for name in names}
        found.append({"model": model, "scanner": scanner, "size": size, **means})
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    outcome = study(parser.parse_args().seeds)
    write_text(RESULTS / "drift.json", json.dumps(outcome, indent=2) + "\n")

"""Stage compress: prune and quantise without data; export the program that is served."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from infra import datasets as ds
from infra.errors import StoreError
from infra.model_store import PROGRAM
from infra.program import open_program
from infra.project import Project
from infra.references import DatasetRef, ModelRef, StageResult
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task

MAX_EXPORT_GAP = 1e-4


class CompressConfig(StageConfig):
    """How the model is made small."""

    method: str = Field("udfc", description="Unified data-free pruning and quantisation.")
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"prune_ratio": 0.25, "weight_bits": 6},
        description="Constructor parameters of the method.",
    )


@stage_task("compress")
def compress(data: DatasetRef, model: ModelRef, config: CompressConfig, run: RunContext) -> StageResult:
    """Compress a classifier. `data` gives the shape of one input; no row of it is used."""

    def work(desk: Desk) -> None:
        from models.compress.quantised import pack_integers
        from models.registry import build_method

        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        example = example_input(schema)
        before: Any = desk.load_network(model)
        method = build_method(config.method, "compress", **{"random_state": config.seed, **config.parameters})
        after = method.fit(before, example).transform()
        tensors, packing = pack_integers(after, method.bits_)
        description = {"packing": packing, "architecture": after.architecture}
        desk.model = desk.project.models.save(
            "compress", tensors, description, lambda path: export(after, example, path)
        )
        small = load_model(desk.project, desk.model)
        batch = torch.rand(64, *example.shape[1:], generator=torch.Generator().manual_seed(config.seed))
        with torch.inference_mode():
            gap = float((load_program(desk.project, desk.model)(batch) - small(batch)).abs().max())
            drift = float((small(batch) - before(batch)).abs().mean())
        if gap > MAX_EXPORT_GAP:
            raise StoreError(f"The exported program differs from the module by {gap:.3g} (accepted {MAX_EXPORT_GAP}).")
        desk.metrics |= {
            "bytes_before": desk.project.models.size(model),
            "bytes_after": desk.project.models.size(desk.model),
            "export_gap": gap,
            "logit_drift": drift,
        }
        for name, figures in (("flops", method.flops_), ("params", method.params_)):
            desk.metrics |= {f"{name}_{when}": float(value) for when, value in figures.items()}
        desk.metrics |= {
            f"latency_ms_{name}": value
            for name, value in latencies({"before": before, "after": small}, example).items()
        }
        desk.evidence["origin"] = model.model_dump()
        desk.evidence["skipped"] = {str(name): str(reason) for name, reason in method.skipped_.items()}

    return run_stage("compress", config, {"data": data, "model": model}, work, run)


def example_input(schema: ds.Schema) -> torch.Tensor:
    """Two rows of zeros in the shape of the model's input."""
    if schema.kind == "image":
        return torch.zeros(2, schema.channels, *(schema.image_size or (1, 1)))
    return torch.zeros(2, len(schema.features))


def export(network: torch.nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write the network as a program with a free batch size."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, str(path))


def load_program(project: Project, ref: ModelRef) -> torch.nn.Module:
    """The exported program of a model."""
    return open_program(project.models.path(ref) / PROGRAM)


def load_model(project: Project, ref: ModelRef) -> torch.nn.Module:
    """The network of any model reference, whether its weights are kept as floats or as integers; in eval mode."""
    from models.compress.quantised import unpack_integers
    from models.networks import build
    from models.state import unpack

    tensors, description = project.models.load(ref)
    if "packing" not in description:
        return unpack(tensors, description).eval()
    network = build(description["architecture"])
    network.load_state_dict(unpack_integers(tensors, description["packing"]))
    return network.eval()


def latencies(networks: dict[str, torch.nn.Module], example: torch.Tensor, repeats: int = 100) -> dict[str, float]:
    """Milliseconds for a batch of 32 on one thread: the fastest tenth of `repeats`, the networks timed in turns.

    The fastest passes are those that nothing else on the machine disturbed.
    """
    batch = torch.rand(32, *example.shape[1:])
    taken: dict[str, list[float]] = {name: [] for name in networks}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(repeats):
                for name, network in networks.items():
                    began = time.perf_counter()
                    network(batch)
                    taken[name].append(1000 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.quantiles(values, n=10)[0] for name, values in taken.items()}

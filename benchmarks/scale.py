"""How time and memory grow with rows, what more workers bring, and data larger than memory.

Rows come from MNIST and Fashion-MNIST: pixels averaged to 4 x 4 for small rows, images as they are, and images enlarged
to 192 x 192 with the noise of a sensor, two gigabytes of them. A thousand real rows become a million by small changes
of brightness and noise, since no real set of that size is at hand; what is measured does not depend on their meaning.

Every figure is taken in a process of its own. Its memory is the largest sum of what it and the processes it started
held, looked at four times a second; pages that several share are divided among them (PSS).

    python -m benchmarks.scale               writes benchmarks/results/scale.json and its tables in docs/scale.md
    python -m benchmarks.scale --parts growth workers
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.data import fashion_mnist, mnist
from benchmarks.evidence import RESULTS
from infra.files import write_text
from infra.settings import SETTINGS_FILE

LARGER_BYTES, LARGER_SIDE, LIMIT_MB = 2_000_000_000, 192, 1536
GROWTH = (10_000, 100_000, 1_000_000)
IMAGES = (10_000, 30_000)
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
MARKS = ("<!-- scale -->", "<!-- /scale -->")
NAMES = [str(number) for number in range(10)]


# ---- data ---------------------------------------------------------------------------------------------


def small_rows(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """MNIST at 4 x 4, (n, 16), changed a little where the 70,000 do not suffice."""
    found = mnist()
    images = (
        np.concatenate([found.train_images, found.test_images]).reshape(-1, 4, 7, 4, 7).mean((2, 4)).reshape(-1, 16)
    )
    labels = np.concatenate([found.train_labels, found.test_labels])
    rng = np.random.default_rng(seed)
    chosen = np.resize(rng.permutation(len(images)), n)
    light = rng.uniform(0.8, 1.0, (n, 1))
    return (images[chosen] * light + rng.normal(0, 1, (n, 16))).astype(np.float32), labels[chosen].astype(np.int64)


def write_table(folder: Path, n: int) -> None:
    """`n` small rows as a dataset; a tenth of them is test, and of these a hundredth has leaked into train."""
    import pandas as pd
    import pyarrow as pa
    from datasets import ClassLabel, Dataset, Features, Value

    from infra import datasets as ds

    X, y = small_rows(n)
    cut = n // 10
    X[cut : cut + cut // 100] = X[: cut // 100]
    kinds = {name: Value("string") for name in ("id", "domain", "split", "source")}
    features = Features(kinds | {"label": ClassLabel(names=NAMES)} | {f"p{i}": Value("float32") for i in range(16)})
    for split, part in (("test", slice(0, cut)), ("train", slice(cut, n))):
        frame = pd.DataFrame(X[part], columns=[f"p{i}" for i in range(16)])
        frame["id"] = [f"{split}-{row}" for row in range(len(frame))]
        frame = frame.assign(label=y[part], domain="mnist", split=split, source="mnist")[list(features)]
        data = Dataset(pa.Table.from_pandas(frame, schema=features.arrow_schema, preserve_index=False))
        ds.write_split(data.cast(features), folder, split)


def write_images(folder: Path, n: int, side: int = 28, noise: float = 0.0, shard_rows: int = 20_000) -> int:
    """`n` images of both sets as a dataset with one in fifty as test; returns the bytes of the shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features, Image, Value

    digits, clothes = mnist(), fashion_mnist()
    pool = np.concatenate([digits.train_images, clothes.train_images, digits.test_images, clothes.test_images])
    labels = np.concatenate([digits.train_labels, clothes.train_labels, digits.test_labels, clothes.test_labels])
    order = np.random.default_rng(0).permutation(len(pool))[:n]
    kinds = {name: Value("string") for name in ("id", "domain", "split", "source")}
    features = Features(kinds | {"image": Image(decode=False), "label": ClassLabel(names=NAMES)})
    for split, rows in (("test", order[: n // 50]), ("train", order[n // 50 :])):
        (folder / split).mkdir(parents=True)
        for number, start in enumerate(range(0, len(rows), shard_rows)):
            part = rows[start : start + shard_rows]
            same = {name: [split] * len(part) for name in ("domain", "split", "source")}
            cells = [_encoded(pool[row], side, noise, int(row)) for row in part]
            names = [f"{split}-{row}" for row in part]
            table = pa.table({"id": names, **same, "image": cells, "label": labels[part]}, features.arrow_schema)
            pq.write_table(table, folder / split / f"part-{number:05d}.parquet", row_group_size=500)
    return sum(path.stat().st_size for path in folder.glob("*/*.parquet"))


def _encoded(image: NDArray[np.uint8], side: int, noise: float, seed: int) -> dict[str, Any]:
    import io

    from PIL import Image

    if side != image.shape[0]:
        image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    if noise:
        grain = np.random.default_rng(seed).normal(0, noise, image.shape)
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG", compress_level=1)
    return {"bytes": stream.getvalue(), "path": None}


# ---- what is measured, each in a process of its own ---------------------------------------------------


def check(folder: str, near_duplicates: str = "off") -> dict[str, Any]:
    """Great Expectations and R2D2 (and near duplicates) over the dataset in `folder`."""
    from infra import datasets as ds
    from tasks.validate import ValidateConfig, check_rows, find_duplicates, gather_facts

    config, schema = ValidateConfig(near_duplicates=near_duplicates), ds.infer_schema(Path(folder))
    splits = {name: ds.Split(Path(folder), name) for name in schema.splits}
    times = {"read": time.perf_counter()}
    facts = gather_facts(splits, schema, config)
    times["expectations"] = time.perf_counter()
    with tempfile.TemporaryDirectory() as docs:
        reports = check_rows(facts, schema, config, Path(docs))
    times["duplicates"] = time.perf_counter()
    counts, _, _ = find_duplicates(
        splits, facts, schema, config, {name: dict(r.failing) for name, r in reports.items()}
    )
    times["end"] = time.perf_counter()
    laps = list(times.items())
    return {name: laps[i + 1][1] - start for i, (name, start) in enumerate(laps[:-1])} | {
        "rows": sum(map(len, splits.values())), "leaks": counts["train.leaks"], "near": counts["train.near_duplicates"]
    }  # fmt: skip


def score_labels(n: int) -> dict[str, Any]:
    """One detection of PLS-LSA: logits and features of all rows, mixture of their losses, separating plane."""
    import torch
    import torch.nn.functional as F

    from models.base import predict_in_batches
    from models.label_noise.detectors import linear_separation_detector, small_loss_detector
    from models.networks.mlp import MLPEncoder
    from models.training import ClassifierTrainer, adam

    X, y = (torch.from_numpy(part) for part in small_rows(n))
    X = X / 255
    given = torch.where(torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.2, (y + 1) % 10, y)
    torch.manual_seed(0)
    encoder = MLPEncoder(in_features=16, widths=(256, 64))
    head = torch.nn.Linear(64, 10)
    ClassifierTrainer(
        torch.nn.Sequential(encoder, head), epochs=2, batch_size=256, optimizer=adam(1e-3), label="warm-up"
    ).fit(X[:20_000], given[:20_000])
    began = time.perf_counter()
    features = predict_in_batches(encoder, X)
    logits = predict_in_batches(head, features)
    losses = F.cross_entropy(logits, given, reduction="none").numpy()
    noisy, _ = small_loss_detector(losses, 0.5)
    flagged, _ = linear_separation_detector(features.numpy(), ~noisy)
    seconds = time.perf_counter() - began
    wrong = (given != y).numpy()
    return {"rows": n, "measured": seconds, "recall": float(flagged[wrong].mean())}


def embed_folder(
    folder: str, address: str = "local", workers: int = 1, channels: tuple[int, ...] = (32, 64, 128)
) -> Any:
    """Embed every row of the dataset in `folder` with a convolutional network."""
    import torch

    from infra import datasets as ds
    from infra.model_store import ModelStore
    from infra.runner import Runner
    from models.networks.convnet import ConvEncoder
    from models.networks.mlp import MLPEncoder
    from models.state import pack
    from tasks.embed import Shard, embed_shard

    schema = ds.infer_schema(Path(folder))
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        stride = 4 if (schema.image_size or (0,))[0] > 64 else 2
        network: torch.nn.Module = MLPEncoder(in_features=len(schema.features), widths=(256, 64))
        if schema.kind == "image":
            network = ConvEncoder(channels=tuple(channels), in_channels=1, stem_stride=stride)
        root, target = Path(scratch), Path(scratch) / "out"
        ref = ModelStore(root).save("encoder", *pack(network))
        shards = [
            Shard(root, Path(folder), split, number, target, schema, ref, 1024)
            for split in schema.splits
            for number in range(len(ds.Split(Path(folder), split).shards))
        ]
        for split in schema.splits:
            (target / split).mkdir(parents=True)
        runner = Runner(address, workers)
        ready = time.perf_counter()
        if not runner.is_local:
            _ = runner.workers  # the cluster starts
        began = time.perf_counter()
        rows = sum(runner.map_shards(embed_shard, shards))
        seconds = time.perf_counter() - began
        return {"rows": rows, "shards": len(shards), "start": began - ready, "measured": seconds}


def train(processes: int, address: str = "local") -> dict[str, Any]:
    """Supervised training of a convolutional network on 20,000 images, spread over processes."""
    from infra.runner import Runner

    runner = Runner(address, processes)
    began = time.perf_counter()
    found = runner.train(_train_once, processes=processes)
    return {"processes": processes, "measured": found.pop("seconds"), "start": time.perf_counter() - began, **found}


def _train_once() -> dict[str, float]:
    import torch

    from models.networks.convnet import ConvEncoder
    from models.networks.heads import SplitClassifier
    from models.supervised import train_classifier

    data = fashion_mnist()
    X = torch.from_numpy(data.train_images[:20_000, None]).float() / 255
    torch.manual_seed(0)
    network = SplitClassifier(ConvEncoder(channels=(32, 64, 128), in_channels=1, stem_stride=2), 10, embedding_dim=128)
    began = time.perf_counter()
    history = train_classifier(network, X, data.train_labels[:20_000], epochs=2, batch_size=128, lr=0.05)
    seconds = time.perf_counter() - began
    with torch.inference_mode():
        test = torch.from_numpy(data.test_images[:, None]).float() / 255
        right = network.eval()(test).argmax(1).numpy() == data.test_labels
    return {"seconds": seconds, "loss": history[-1]["loss"], "test_accuracy": float(right.mean())}


def validate_version(source: str) -> dict[str, Any]:
    """The whole stage on the shards in `source`, which become a version: what fails is left out, the rest written."""
    from infra import datasets as ds
    from infra.project import Project
    from tasks.stage import RunContext
    from tasks.validate import ValidateConfig, validate

    def take(target: Path) -> int:
        for split in Path(source).iterdir():
            shutil.move(split, target / split.name)
        return ds.count_rows(target)

    project = Project()
    data = project.versions.add("larger", take)
    began = time.perf_counter()
    result = validate.fn(data, ValidateConfig(), RunContext(parent=project.tracker.open("larger")))
    assert result.data is not None
    seconds = time.perf_counter() - began
    return {**result.metrics, "measured": seconds, "version": result.data.version, "rows": result.data.rows}


def embed_version(version: str) -> dict[str, Any]:
    """The whole stage on that version, with a small convolutional network."""
    import torch

    from infra.project import Project
    from models.networks.convnet import ConvEncoder
    from models.state import pack
    from tasks.embed import EmbedConfig, embed
    from tasks.stage import RunContext

    torch.manual_seed(0)
    project = Project()
    model = project.models.save("encoder", *pack(ConvEncoder(channels=(8, 16, 32), in_channels=1, stem_stride=4)))
    data = project.versions.resolve("larger", version)
    began = time.perf_counter()
    result = embed.fn(data, model, EmbedConfig(), RunContext(parent=project.tracker.open("larger")))
    assert result.data is not None
    return {**result.metrics, "measured": time.perf_counter() - began, "rows": result.data.rows}


MEASURES: dict[str, Callable[..., Any]] = {
    "check": check, "score_labels": score_labels, "embed": embed_folder, "train": train,
    "validate_version": validate_version, "embed_version": embed_version,
}  # fmt: skip


def measured(name: str, threads: int | None = None, project: Path | None = None, **arguments: Any) -> dict[str, Any]:
    """Run one of `MEASURES` in a process of its own; its figures, its wall time and peak memory."""
    command = [sys.executable, "-m", "benchmarks.scale", "--measure", name, json.dumps(arguments)]
    count = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    count |= {} if project is None else {"CLEARWELL_ROOT": str(project)}
    began, peak, resident = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile("w+") as out:
        process = psutil.Popen(command, stdout=out, env={**os.environ, **count})
        while process.poll() is None:
            resident = max(resident, process.memory_info().rss)
            peak = max(peak, _proportional(process))
            time.sleep(0.25)
        out.seek(0)
        lines = out.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"{name} {arguments} ended with {process.returncode}.")
    figures = {
        key: round(value, 4) if isinstance(value, float) else value for key, value in json.loads(lines[-1]).items()
    }
    found = {**figures, "wall_seconds": round(time.perf_counter() - began, 2), "peak_mb": round(peak / 2**20)}
    found["peak_resident_mb"] = round(resident / 2**20)  # of the process alone, what it shares counted whole
    print(name, {key: value for key, value in arguments.items() if key != "folder"}, found, flush=True)
    return found


def _proportional(process: psutil.Process) -> int:
    """Memory of a process and those it started. Pages that several share are counted once (PSS)."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


# ---- the parts ----------------------------------------------------------------------------------------


def growth(scratch: Path) -> dict[str, Any]:
    """From 10^4 to 10^6 rows."""
    found: dict[str, Any] = {
        "validate": [],
        "label_noise": [],
        "embed_rows": [],
        "validate_images": [],
        "embed_images": [],
    }
    for n in GROWTH:
        folder = scratch / f"rows-{n}"
        write_table(folder, n)
        found["validate"].append(measured("check", folder=str(folder)))
        found["embed_rows"].append(measured("embed", folder=str(folder)))
        found["label_noise"].append(measured("score_labels", n=n))
        shutil.rmtree(folder)
    for n in IMAGES:
        folder = scratch / f"images-{n}"
        write_images(folder, n)
        found["validate_images"].append(measured("check", folder=str(folder), near_duplicates="remove"))
        found["embed_images"].append(measured("embed", folder=str(folder)))
        shutil.rmtree(folder)
    found["exponents"] = {
        name: _exponent([row["rows"] for row in rows], [_work(row) for row in rows])
        for name, rows in found.items()
        if rows
    }
    return found


def _work(row: dict[str, Any]) -> float:
    return float(row.get("measured") or row["read"] + row["expectations"] + row["duplicates"])


def _exponent(rows: list[int], seconds: list[float]) -> float:
    """Of the power of the number of rows that the time grows with, between the two largest sizes."""
    return round(float(np.log(seconds[-1] / seconds[-2]) / np.log(rows[-1] / rows[-2])), 2)


def workers(scratch: Path) -> dict[str, Any]:
    """One worker and two, in this process, in several and on Ray; each worker with one thread."""
    folder = scratch / "images-40000"
    write_images(folder, 40_000, shard_rows=5_000)
    embedded = [
        {
            "runner": address,
            "workers": count,
            **measured("embed", 1, folder=str(folder), address=address, workers=count),
        }
        for address, count in (("local", 1), ("local", 2), ("ray", 1), ("ray", 2))
    ]
    trained = [
        {"runner": address, **measured("train", 1, processes=count, address=address)}
        for address, count in (("local", 1), ("local", 2), ("ray", 2))
    ]
    shutil.rmtree(folder)
    return {"embed": embedded, "train": trained}


def larger(scratch: Path) -> dict[str, Any]:
    """Two gigabytes of images through validation and embedding."""
    folder, project = scratch / "larger", scratch / "project"
    tried = 2000
    n = int(tried * LARGER_BYTES / write_images(folder, tried, LARGER_SIDE, noise=12.0)) + 1
    shutil.rmtree(folder)
    size = write_images(folder, n, LARGER_SIDE, noise=12.0, shard_rows=2_500)
    print(f"{n} images of {LARGER_SIDE} x {LARGER_SIDE} in {size / 1e9:.2f} GB", flush=True)
    project.mkdir()
    (project / SETTINGS_FILE).touch()
    validated = measured("validate_version", project=project, source=str(folder))
    embedded = measured("embed_version", project=project, version=validated["version"])
    facts = {"images": n, "side": LARGER_SIDE, "bytes": size, "decoded_bytes": n * LARGER_SIDE**2}
    return {**facts, "limit_mb": LIMIT_MB, "validate": validated, "embed": embedded}


PARTS = {"growth": growth, "workers": workers, "larger": larger}


# ---- the page -----------------------------------------------------------------------------------------


def tables(found: dict[str, Any]) -> str:
    """What was measured, as tables in Markdown."""
    lines: list[str] = [f"Measured on {found['cpus']} processors with `{found['command']}`.", ""]
    if "growth" in found:
        grown = found["growth"]
        lines += ["### From ten thousand rows to a million", ""]
        names = {
            "validate": "Great Expectations and R2D2, 16 columns", "label_noise": "label-noise scoring, 16 columns",
            "embed_rows": "embedding, 16 columns", "validate_images": "the same and near duplicates, 28 x 28 images",
            "embed_images": "embedding, 28 x 28 images",
        }  # fmt: skip
        rows = [
            [title, f"{row['rows']:,}", f"{_work(row):.1f}", row["peak_mb"], grown["exponents"].get(name, "")]
            for name, title in names.items()
            for row in grown[name]
        ]
        lines += _table(["what", "rows", "seconds", "peak MB", "grows as rows to the power"], rows)
    if "workers" in found:
        lines += ["", "### One worker and two, one thread each", ""]
        cells = [
            [f"embedding {row['rows']:,} images", row["runner"], row["workers"], row["measured"], row["peak_mb"]]
            for row in found["workers"]["embed"]
        ]
        cells += [
            ["training on 20,000 images", row["runner"], row["processes"], row["measured"], row["peak_mb"]]
            for row in found["workers"]["train"]
        ]
        cells = [[*row[:3], f"{row[3]:.1f}", row[4]] for row in cells]
        lines += _table(["what", "runner", "workers", "seconds", "peak MB, all processes"], cells)
    if "larger" in found:
        big = found["larger"]
        lines += ["", f"### {big['bytes'] / 1e9:.1f} GB of images", ""]
        lines += [
            f"{big['images']:,} images of {big['side']} x {big['side']}, {big['decoded_bytes'] / 1e9:.1f} GB decoded.",
            "",
        ]
        cells = [
            [name, f"{big[name]['rows']:,}", f"{big[name]['measured']:.0f}", big[name]["peak_resident_mb"]]
            for name in ("validate", "embed")
        ]
        lines += _table(["stage", "rows out", "seconds", f"peak resident MB (limit {big['limit_mb']})"], cells)
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(str, row)) + " |" for row in cells]


def main(parts: list[str], scratch: Path | None) -> None:
    """Measure the parts; put them into the file beside those measured before, and into the page."""
    path = RESULTS / "scale.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in parts:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            found = PARTS[name](Path(folder))
        kept |= {"command": "python -m benchmarks.scale", "cpus": os.cpu_count(), name: found}
        write_text(path, json.dumps(kept, indent=2) + "\n")
        before, _, rest = PAGE.read_text().partition(MARKS[0])
        write_text(PAGE, f"{before}{MARKS[0]}\n{tables(kept)}{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument(
        "--scratch", type=Path, help="Folder with 5 GB to spare; by default the system's temporary one."
    )
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "ARGUMENTS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(MEASURES[given.measure[0]](**json.loads(given.measure[1]))))
    else:
        main(given.parts, given.scratch)

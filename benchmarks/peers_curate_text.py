"""MinHash deduplication beside datatrove, and the engines of its signatures: the same texts, sizes, core and run.

datatrove (Penedo et al., "DataTrove: large scale data processing", Apache-2.0) deduplicated FineWeb; it is given a
splitter at white space, lighter than any of its own, after its own simplification of the text. Its four steps run one
after another in one process, as ours does. datasketch and rensa (both MIT) make signatures of the same hashed shingles.

``python -m benchmarks.peers_curate_text TOOL TEXTS.parquet`` measures one tool in a process of its own, as the peak of
memory needs, and prints JSON. TOOL is clearwell, shards or datatrove. Seconds are those of a processor, over all
threads: what else runs on the machine does not count.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from numpy.typing import NDArray

MEBIBYTE = 2**20
Floats = NDArray[np.float64]


# ---- whole deduplication -------------------------------------------------------------------------------------


def clearwell(texts: list[str]) -> list[int]:
    """Rows kept by :class:`~models.curate.text_minhash.MinHashDedup`."""
    from models.curate.text_minhash import MinHashDedup

    return MinHashDedup().fit(texts).indices_.tolist()


def datatrove(texts: list[str]) -> list[int]:
    """Rows kept by datatrove's four steps."""
    import xxhash
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import TextNormConfig
    from loguru import logger

    logger.remove()
    config = MinhashConfig(
        n_grams=5,
        num_buckets=14,
        hashes_per_bucket=8,
        hash_config=HashConfig(precision=64),
        norm_config=TextNormConfig(norm_numbers=False),  # numbers made equal would bring the planted words together
    )

    def documents() -> Any:
        return (Document(text=text, id=str(row)) for row, text in enumerate(texts))

    with tempfile.TemporaryDirectory() as folder:
        parts = {name: f"{folder}/{name}" for name in ("signatures", "buckets", "remove")}
        signatures = MinhashDedupSignature(parts["signatures"], config, language="bal_Arab")
        signatures.word_tokenizer = SimpleNamespace(word_tokenize=str.split)  # its own need spaCy, or data of NLTK
        signatures._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # as xxHash 4 wants it
        signatures.run(documents(), 0, 1)
        for band in range(14):
            MinhashDedupBuckets(parts["signatures"], parts["buckets"], config=config).run(None, band, 14)
        MinhashDedupCluster(parts["buckets"], parts["remove"], config).run(None, 0, 1)
        return [int(document.id) for document in MinhashDedupFilter(parts["remove"]).run(documents(), 0, 1)]


def shards(path: Path) -> list[int]:
    """Rows kept by the pass over shards that ``clearwell`` runs, without filters."""
    from tasks.curate_text import TextPlan, curate_text

    with tempfile.TemporaryDirectory() as work:
        plan = TextPlan(filters=(), exact=False)
        return np.flatnonzero(curate_text(path.parent.parent, path.parent.name, Path(work), plan).keep).tolist()


TOOLS: dict[str, Callable[[list[str]], list[int]]] = {"clearwell": clearwell, "datatrove": datatrove}


def measure(tool: str, path: Path) -> dict[str, Any]:
    """Processor seconds, memory and rows kept of one tool in this process, compiled code loaded beforehand."""
    texts = [] if tool == "shards" else pq.read_table(path, columns=["text"])["text"].to_pylist()
    clearwell(["a text to load compiled code with", "another"])
    if tool == "shards":
        importlib.import_module("tasks.curate_text")
    if tool == "datatrove":
        datatrove(["one two three four five six", "a b c d e f g"])
    before = psutil.Process().memory_info().rss
    started = time.process_time()
    kept = shards(path) if tool == "shards" else TOOLS[tool](texts)
    seconds = time.process_time() - started
    return {"seconds": seconds, "before": before / MEBIBYTE, "peak": peak_memory() / MEBIBYTE, "kept": kept}


def peak_memory() -> int:
    """Most bytes this process held; getrusage would count what its parent held when it was forked."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def in_a_process_of_its_own(tool: str, path: Path) -> dict[str, Any]:
    """:func:`measure` in a new process."""
    command = [sys.executable, "-m", "benchmarks.peers_curate_text", tool, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- engines of signatures -----------------------------------------------------------------------------------


def numpy_signature(hashes: NDArray[np.uint64], a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The least (a h + b) mod (2^61 - 1), in whole arrays: products in halves of 32 bits."""
    u, prime, half = np.uint64, np.uint64((1 << 61) - 1), np.uint64(0xFFFFFFFF)

    def reduced(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        x = (x & prime) + (x >> u(61))
        return np.where(x >= prime, x - prime, x)

    h = reduced(hashes)[:, None]
    a1, a0, h1, h0 = a >> u(32), a & half, h >> u(32), h & half
    middle, low = a1 * h0 + a0 * h1, a0 * h0
    total = ((a1 * h1) << u(3)) + (middle >> u(29)) + ((middle & u((1 << 29) - 1)) << u(32))
    return reduced(total + (low & prime) + (low >> u(61)) + b).min(axis=0)


def engines(sets: Sequence[NDArray[np.uint64]], pairs: NDArray[np.int64], exact: Floats) -> list[dict[str, Any]]:
    """Microseconds a text, and the error of Jaccard similarities of `pairs`, for each engine of 112 values."""
    import datasketch
    import rensa

    from models.curate.text_hashing import permutations, signatures_of

    chosen = permutations(112, 1)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in sets])]).astype(np.uint64)

    def by_datasketch() -> list[Any]:
        found = []
        for one in sets:
            sketch = datasketch.MinHash(num_perm=112, seed=1, hashfunc=int)
            sketch.update_batch((one & np.uint64(0xFFFFFFFF)).tolist())
            found.append(sketch.hashvalues)
        return found

    made: dict[str, Callable[[], Any]] = {
        "clearwell (numba)": lambda: signatures_of(sets, chosen),
        "numpy": lambda: np.stack([numpy_signature(one, *chosen) for one in sets]),
        "datasketch": by_datasketch,
        "rensa": lambda: rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(sets), offsets, 112, 1
        ).to_rows(),
    }
    signatures_of(sets[:2], chosen)
    rows = []
    for name, make in made.items():
        started = time.process_time()
        found = make()
        seconds = time.process_time() - started
        matrix = np.asarray(found)
        error = (matrix[pairs[:, 0]] == matrix[pairs[:, 1]]).mean(axis=1) - exact
        rows.append({
            "engine": name,
            "microseconds a text": round(seconds / len(sets) * 1e6, 1),
            "mean error": round(float(error.mean()), 4),
            "root mean square error": round(float(np.sqrt((error**2).mean())), 4),
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))

"""Evidence of minhash-dedup on 60,000 package descriptions with planted near copies, beside exact Jaccard and peers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from benchmarks.data import package_descriptions
from benchmarks.evidence import Evidence
from benchmarks.peers_curate_text import engines, in_a_process_of_its_own
from models.curate.text_hashing import jaccard, shingles
from models.curate.text_minhash import MinHashDedup, band_keys_of, buckets, candidate_probability

N, PLANTED, LEVELS = 60_000, 2000, (0.5, 0.7, 0.8, 0.9)
THRESHOLD = 0.8
SHARDS = 6
Pairs = set[tuple[int, int]]


def planted_copy(tokens: list[str], level: float, random: np.random.Generator) -> str:
    """The text with one run of words replaced by new ones, so that about `level` of the 5-grams stay common."""
    grams = len(tokens) - 4
    broken = max(5, int(grams * (1 - level) / (1 + level)))
    run = broken - 4
    start = int(random.integers(4, len(tokens) - run - 4))
    new = [f"x{value}" for value in random.integers(10**9, size=run)]
    return " ".join([*tokens[:start], *new, *tokens[start + run :]])


def corpus(frame: pd.DataFrame, seed: int) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Texts, then the planted copies; pairs (copy, original), the level each was planted at, and package names."""
    random = np.random.default_rng(seed)
    rows = random.permutation(len(frame))[: N - PLANTED]
    texts = [str(text) for text in frame["description"].to_numpy()[rows]]
    long_enough = [row for row, text in enumerate(texts) if len(text.split()) >= 120]
    chosen = random.choice(long_enough, size=PLANTED, replace=False)
    levels = np.repeat(LEVELS, PLANTED // len(LEVELS))
    copies = [planted_copy(texts[row].split(), level, random) for row, level in zip(chosen, levels, strict=True)]
    pairs = np.column_stack([np.arange(len(texts), len(texts) + PLANTED), chosen])
    return texts + copies, pairs, levels, [str(name) for name in frame["package"].to_numpy()[rows]]


def similar_pairs(sets: list[NDArray[np.uint64]], least: float) -> dict[tuple[int, int], float]:
    """All pairs (lower, higher row) of at least this Jaccard similarity, from a sparse product: no pair is missed."""
    sizes = np.array([len(one) for one in sets])
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ones = np.ones(len(columns), dtype=np.int32)
    matrix = csr_matrix((ones, columns, offsets), shape=(len(sets), int(columns.max()) + 1))
    frequent = np.flatnonzero(np.bincount(columns) > 1)  # what occurs once is common to no pair
    matrix = matrix[:, frequent].tocsr()
    across = matrix.T.tocsr()
    found: dict[tuple[int, int], float] = {}
    for start in range(0, len(sets), 2000):
        common = (matrix[start : start + 2000] @ across).tocoo()
        first, second = common.row + start, common.col
        value = common.data / (sizes[first] + sizes[second] - common.data)
        chosen = (first < second) & (value >= least)
        found |= dict(
            zip(zip(first[chosen].tolist(), second[chosen].tolist(), strict=True), value[chosen], strict=True)
        )
    return found


def candidates(keys: NDArray[np.uint64], told: NDArray[np.int64]) -> Pairs:
    """All pairs (lower, higher row) that agree in a band."""
    found: Pairs = set()
    for band in range(keys.shape[1]):
        for bucket in buckets(keys[told, band]):
            rows = np.sort(told[bucket]).tolist()
            found.update((a, b) for place, a in enumerate(rows) for b in rows[place + 1 :])
    return found


def one_seed(seed: int) -> dict[str, Any]:
    """All figures of one draw of texts and planted copies."""
    texts, pairs, levels, names = corpus(package_descriptions(), seed)
    sets = [shingles(text) for text in texts]
    exact = np.array([jaccard(sets[a], sets[b]) for a, b in pairs])
    keys = band_keys_of(texts, ngram=5, bands=14, rows=8, min_words=20, seed=1)
    hit = (keys[pairs[:, 0]] == keys[pairs[:, 1]]).any(axis=1)
    expected = candidate_probability(exact)
    truth = similar_pairs(sets, 0.5)
    over = {pair for pair, value in truth.items() if value >= THRESHOLD}
    told = np.flatnonzero([len(one) > 0 for one in sets])
    proposed = candidates(keys, told)
    dedup = MinHashDedup(verify=THRESHOLD).fit(texts)
    joined = np.flatnonzero(dedup.representatives_ != np.arange(len(texts)))
    drawn = np.random.default_rng(seed).choice(joined, size=100, replace=False)
    sampled = [jaccard(sets[row], sets[dedup.representatives_[row]]) for row in drawn]
    same_group = sum(dedup.components_[a] == dedup.components_[b] for a, b in over)
    place = {name: row for row, name in enumerate(names)}
    kin = [(place[name], place.get(name[:-4])) for name in names if name.endswith(("-dbg", "-dev"))]
    alike = [(a, b) for a, b in kin if b is not None and (min(a, b), max(a, b)) in over]
    return {
        "levels": [
            {
                "planted at": level,
                "exact Jaccard": float(exact[levels == level].mean()),
                "candidates": float(hit[levels == level].mean()),
                "formula": float(expected[levels == level].mean()),
                "standard errors": float(
                    (hit[levels == level] - expected[levels == level]).sum()
                    / np.sqrt((expected[levels == level] * (1 - expected[levels == level])).sum())
                ),
            }
            for level in LEVELS
        ],
        "recall at .8": float(hit[levels == THRESHOLD].mean()),
        "pairs over .8": len(over),
        "recall of pairs over .8": len(proposed & over) / len(over),
        "precision of bands": len(proposed & over) / len(proposed),
        "precision of bands at .5": sum(pair in truth for pair in proposed) / len(proposed),
        "recall, verified": same_group / len(over),
        "precision, verified": float(np.mean([value >= THRESHOLD for value in sampled])),
        "mean Jaccard of dropped and kept": float(np.mean(sampled)),
        "kin pairs over .8": len(alike),
        "kin found": float(np.mean([dedup.components_[a] == dedup.components_[b] for a, b in alike])),
        "dropped": len(joined) / len(texts),
    }


def speed(evidence: Evidence) -> None:
    """Rows a second and memory beside datatrove, and the engines of signatures."""
    texts, pairs, _, _ = corpus(package_descriptions(), 0)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "one" / "train", Path(folder) / "many" / "train"
        for place in (whole, parts):
            place.mkdir(parents=True)
        pq.write_table(pa.table({"text": texts}), whole / "part-00000.parquet")
        size = -(-len(texts) // SHARDS)
        for number in range(SHARDS):
            table = pa.table({"text": texts[number * size : (number + 1) * size]})
            pq.write_table(table, parts / f"part-{number:05d}.parquet")
        runs = {
            "clearwell": ("clearwell", whole / "part-00000.parquet"),
            f"clearwell, {SHARDS} Parquet shards": ("shards", parts / "part-00000.parquet"),
            "datatrove": ("datatrove", whole / "part-00000.parquet"),
        }
        rows = []
        for name, (tool, path) in runs.items():
            done = in_a_process_of_its_own(tool, path)
            kept = set(done["kept"])
            rows.append({
                "tool": name,
                "rows a second on one core": round(len(texts) / done["seconds"]),
                "processor seconds": round(done["seconds"], 1),
                "MiB before": round(done["before"]),
                "MiB at peak": round(done["peak"]),
                "kept": len(kept),
                "planted pairs kept both": int(sum(a in kept and b in kept for a, b in pairs.tolist())),
            })  # fmt: skip
    evidence.table(f"speed and memory, {len(texts):,} descriptions, whole deduplication", rows)
    sets = [shingles(text) for text in texts[:20_000]]
    random = np.random.default_rng(0)
    chosen = random.choice([row for row, one in enumerate(sets) if len(one) > 50], size=3000)
    halves = [np.unique(np.concatenate([sets[row][::2], sets[row][: len(sets[row]) // 2]])) for row in chosen]
    both = np.column_stack([chosen, np.arange(20_000, 23_000)])
    exact = np.array([jaccard(sets[row], half) for row, half in zip(chosen, halves, strict=True)])
    evidence.table("engines of signatures, 23,000 sets", engines(sets + halves, both, exact))


def collect(evidence: Evidence) -> None:
    """Candidate rates against the formula, recall and precision against exact Jaccard, speed beside datatrove."""
    frame = package_descriptions()
    evidence.uses(f"{N:,} package descriptions of {frame.attrs['release']}, {PLANTED:,} of them planted near copies")
    found = evidence.map(one_seed)
    for number, level in enumerate(LEVELS):
        errors = [abs(each["levels"][number]["standard errors"]) for each in found]
        evidence.check(
            f"candidate rate of copies planted at Jaccard {level}: standard errors off the formula (worst seed)",
            max(errors),
            at_most=3.0,
        )
    evidence.check(
        "recall of copies planted at .8 (least of the seeds)", min(x["recall at .8"] for x in found), at_least=0.9
    )
    recalls = [each["recall of pairs over .8"] for each in found]
    evidence.check("recall of all pairs of exact Jaccard >= .8", recalls, at_least=0.9)
    evidence.check(
        "precision on 100 pairs (dropped, kept), candidates verified",
        [x["precision, verified"] for x in found],
        at_least=0.95,
    )
    evidence.check(
        "pairs of -dev or -dbg packages over .8 that are found", [x["kin found"] for x in found], at_least=0.9
    )
    names = [name for name in found[0] if name != "levels"]
    evidence.table(
        "recall and precision against exact Jaccard of all pairs",
        [
            {"seed": seed} | {name: round(each[name], 4) for name in names}
            for seed, each in zip(evidence.seeds, found, strict=True)
        ],
    )
    evidence.table(
        "candidate rate of planted copies",
        [
            {"seed": seed} | {name: round(value, 4) for name, value in row.items()}
            for seed, each in zip(evidence.seeds, found, strict=True)
            for row in each["levels"]
        ],
    )
    speed(evidence)

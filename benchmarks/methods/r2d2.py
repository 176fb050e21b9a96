"""Evidence for R2D2: a seeded lake of about 300 Parquet tables whose true containments are known."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine

from benchmarks.data import package_descriptions
from benchmarks.evidence import Evidence
from models.validate.r2d2 import R2D2, Costs, row_recipe
from models.validate.tables import ParquetTable

PACKAGE_COLUMNS = [
    "package", "section", "synopsis", "tags", "size", "installed_size", "version", "priority", "architecture",
    "source", "maintainer",
]  # fmt: skip
PACKAGE_ROWS = 40_000
TIMED_PAIRS = 200
PERMUTATIONS = 128

Edge = tuple[str, str]


def bases() -> dict[str, pd.DataFrame]:
    """Load the tables everything is derived from."""
    loaders = {
        "iris": load_iris,
        "wine": load_wine,
        "breast_cancer": load_breast_cancer,
        "diabetes": load_diabetes,
        "digits": load_digits,
    }
    frames = {name: load(as_frame=True).frame for name, load in loaders.items()}
    frames["packages"] = package_descriptions()[PACKAGE_COLUMNS].iloc[:PACKAGE_ROWS].reset_index(drop=True)
    return frames


def numeric(frame: pd.DataFrame) -> list[str]:
    """Name the columns of numbers."""
    return [str(name) for name in frame.select_dtypes("number").columns]


def part(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Draw a share of the rows, 5 to 60 percent and at least 30."""
    n = max(30, int(rng.uniform(0.05, 0.6) * len(frame)))
    return frame.iloc[np.sort(rng.choice(len(frame), n, replace=False))]


def filtered(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Keep the rows in which one number lies in a range."""
    column = rng.choice(numeric(frame))
    low, high = np.sort(rng.uniform(0, 1, 2))
    bounds = frame[column].quantile([low, high]).to_numpy()
    return frame[frame[column].between(*bounds)]


def projected(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Keep two columns or more."""
    width = int(rng.integers(2, frame.shape[1] + 1))
    return frame[[frame.columns[i] for i in rng.choice(frame.shape[1], width, replace=False)]]


def shuffled(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Put rows and columns in another order."""
    return frame.iloc[rng.permutation(len(frame)), rng.permutation(frame.shape[1])]


def whole_numbers_as_floats(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Take a part and store its numbers as floats."""
    return part(frame, rng).astype(dict.fromkeys(numeric(frame), float))


def cell_changed(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Take a part and replace one number by another inside its range."""
    taken = part(frame, rng).reset_index(drop=True)
    column = rng.choice(numeric(frame))
    values = taken[column].to_numpy().copy()
    row = int(rng.integers(len(values)))
    low, high = float(values.min()), float(values.max())
    new = rng.uniform(low, high)
    values[row] = round(new) if values.dtype.kind in "iu" else new
    return taken.assign(**{column: values})


def row_replaced(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Take a part and replace one row by one put together from the cells of others."""
    taken = part(frame, rng).reset_index(drop=True)
    mixed = {column: [taken[column].iloc[int(rng.integers(len(taken)))]] for column in taken.columns}
    return pd.concat([taken.iloc[1:], pd.DataFrame(mixed).astype(taken.dtypes.to_dict())], ignore_index=True)


def nulls_added(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Take a part and put three nulls into a column of numbers."""
    taken = part(frame, rng).reset_index(drop=True)
    column = rng.choice(numeric(frame))
    values = taken[column].astype(float).to_numpy().copy()
    values[rng.choice(len(values), 3, replace=False)] = np.nan
    return taken.assign(**{column: values})


def renamed(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Take a part and give one column another name."""
    column = rng.choice(list(frame.columns))
    return part(frame, rng).rename(columns={column: f"{column}_x"})


KINDS: dict[str, tuple[int, Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]]] = {
    "base": (1, lambda frame, rng: frame),
    "projection": (6, projected),
    "filter": (8, lambda frame, rng: filtered(frame if rng.random() < 0.6 else with_number(frame, rng), rng)),
    "sample": (8, lambda frame, rng: part(frame if rng.random() < 0.6 else projected(frame, rng), rng)),
    "shuffle": (3, shuffled),
    "copy": (2, lambda frame, rng: frame.copy()),
    "union": (3, lambda frame, rng: pd.concat([part(frame, rng), filtered(frame, rng)])),
    "doubled": (3, lambda frame, rng: pd.concat([taken := part(frame, rng), taken])),
    "floats": (3, whole_numbers_as_floats),
    "trap: cell": (6, cell_changed),
    "trap: row": (4, row_replaced),
    "trap: name": (3, renamed),
    "trap: nulls": (2, nulls_added),
}


def with_number(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Project onto columns with at least one number among them."""
    chosen = projected(frame, rng)
    return chosen if numeric(chosen) else frame


def lake(frames: Mapping[str, pd.DataFrame], seed: int) -> dict[str, pd.DataFrame]:
    """Make the tables of one seed."""
    rng = np.random.default_rng(seed)
    return {
        f"{name}/{kind}/{i}": make(frame, rng).reset_index(drop=True)
        for name, frame in frames.items()
        for kind, (count, make) in KINDS.items()
        for i in range(count)
    }


def containments(tables: Mapping[str, pd.DataFrame]) -> dict[Edge, float]:
    """Share of the child's rows found in the parent for all pairs whose schemas allow it, by pandas' own grouping.

    Nothing of the method is used: rows over the child's columns are numbered by ``groupby(...).ngroup()`` across
    all tables that have these columns, and numbers are compared.
    """
    columns_of = {name: frozenset(frame.columns) for name, frame in tables.items()}
    found: dict[Edge, float] = {}
    for columns in set(columns_of.values()):
        names = [name for name in tables if columns <= columns_of[name]]
        order = sorted(columns)
        stacked = pd.concat([tables[name][order] for name in names], ignore_index=True)
        numbers = stacked.groupby(order, dropna=False, sort=False).ngroup().to_numpy()
        ends = np.cumsum([len(tables[name]) for name in names])
        rows = {name: numbers[end - len(tables[name]) : end] for name, end in zip(names, ends, strict=True)}
        sets = {name: np.unique(ids) for name, ids in rows.items()}
        for child in (name for name in names if columns_of[name] == columns):
            for parent in names:
                if parent != child:
                    inside = np.isin(rows[child], sets[parent], assume_unique=False)
                    found[parent, child] = float(inside.mean()) if len(inside) else 1.0
    return found


def anti_join(folder: Path, files: Mapping[str, str], edge: Edge, columns: list[str]) -> bool:
    """Read both tables of a pair and join them, as brute force does."""
    parent, child = (pd.read_parquet(folder / files[name], columns=columns) for name in edge)
    joined = child.merge(parent.drop_duplicates(), how="left", on=columns, indicator=True)
    return bool((joined["_merge"] == "both").all())


def brute_force_seconds(
    folder: Path, files: Mapping[str, str], tables: Mapping[str, pd.DataFrame], share: Mapping[Edge, float], seed: int
) -> tuple[float, float]:
    """Estimated seconds of all pairs and its standard error, from pairs drawn at random; answers are verified."""
    pairs = sorted(share)
    chosen = np.random.default_rng(seed).choice(len(pairs), min(TIMED_PAIRS, len(pairs)), replace=False)
    seconds = []
    for i in chosen:
        start = time.perf_counter()
        answer = anti_join(folder, files, pairs[i], sorted(tables[pairs[i][1]].columns))
        seconds.append(time.perf_counter() - start)
        if answer != (share[pairs[i]] == 1.0):
            raise RuntimeError(f"The two brute forces disagree on {pairs[i]}.")
    scale = len(pairs)
    return float(np.mean(seconds)) * scale, float(np.std(seconds)) * scale / np.sqrt(len(seconds))


def minhash_edges(tables: Mapping[str, pd.DataFrame], threshold: float = 0.9) -> set[Edge]:
    """Containments guessed from MinHash signatures of whole rows (Broder, 1997), as data-lake indexes do."""
    rng = np.random.default_rng(0)
    prime = (1 << 61) - 1
    a, b = rng.integers(1, 1 << 31, (2, PERMUTATIONS, 1), dtype=np.uint64)

    def signature(frame: pd.DataFrame) -> NDArray[np.uint64]:
        plain = frame[sorted(frame.columns)].astype(dict.fromkeys(numeric(frame), float))
        rows = np.unique(pd.util.hash_pandas_object(plain, index=False).to_numpy()) >> np.uint64(33)
        return np.asarray(((a * rows[None, :] + b) % np.uint64(prime)).min(axis=1))

    filled = {name: frame for name, frame in tables.items() if len(frame)}
    signatures = {name: signature(frame) for name, frame in filled.items()}
    sizes = {name: len(frame.drop_duplicates()) for name, frame in filled.items()}
    edges = set()
    for parent, child in itertools.permutations(filled, 2):
        jaccard = float((signatures[parent] == signatures[child]).mean())
        if jaccard * (sizes[parent] + sizes[child]) / ((1 + jaccard) * sizes[child]) >= threshold:
            edges.add((parent, child))
    return edges


def quality(name: str, seed: int, edges: set[Edge], true: set[Edge]) -> dict[str, Any]:
    """Precision and recall of a set of edges."""
    hits = len(edges & true)
    return {
        "seed": seed,
        "edges from": name,
        "edges": len(edges),
        "precision": round(hits / max(len(edges), 1), 4),
        "recall": round(hits / max(len(true), 1), 4),
    }


def rebuilt_alike(found: R2D2) -> Iterator[bool]:
    """Plan with recipes from the base tables, rebuild what is dropped, and compare sorted rows."""
    edges = [(p, c) for p, c in found.graph_.edges if "/base/" in p and "/base/" not in c]
    recipes = {edge: recipe for edge in edges if (recipe := row_recipe(found.tables_[edge[1]], found.tables_[edge[0]]))}
    plan = found.retention_plan(Costs(store=1.0, read=0.001), {}, 3600.0, recipes)
    for child, parent in plan.rebuild_from.items():
        columns = sorted(found.tables_[child].schema())
        rebuilt = recipes[parent, child].rebuild(found.tables_[parent])[columns]
        wanted = pd.concat(list(found.tables_[child].iter_batches(columns)), ignore_index=True)
        yield sorted(rebuilt.to_csv(index=False).splitlines()) == sorted(wanted.to_csv(index=False).splitlines())


def run(frames: Mapping[str, pd.DataFrame], seed: int, folder: Path) -> dict[str, Any]:
    """Build the lake of a seed, find its containments and compare."""
    tables = lake(frames, seed)
    files = {name: f"{i}.parquet" for i, name in enumerate(tables)}
    for name, frame in tables.items():
        frame.to_parquet(folder / files[name], row_group_size=10_000)
    handles = [ParquetTable(name, folder / files[name]) for name in tables]
    start = time.perf_counter()
    share = containments(tables)
    grouped_seconds = time.perf_counter() - start
    true = {edge for edge, value in share.items() if value == 1.0}
    start = time.perf_counter()
    found = R2D2(random_state=seed).fit(handles)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    exact = R2D2(random_state=seed, verify="exact").fit(handles)
    exact_seconds = time.perf_counter() - start
    brute, error = brute_force_seconds(folder, files, tables, share, seed)
    brute_rows = sum(len(tables[parent]) + len(tables[child]) for parent, child in share)
    stages = found.edges_by_stage_
    false = stages["content"] - true
    far = {edge for edge, value in share.items() if value <= 0.9}
    counts = [len(edges) for edges in exact.edges_by_stage_.values()]
    return {
        "baselines": [
            quality("all pairs (truth)", seed, true, true),
            quality("schema only", seed, stages["schema"], true),
            quality("schema and min-max", seed, stages["minmax"], true),
            quality("schema, min-max and content", seed, stages["content"], true),
            quality("with exact verification", seed, set(exact.graph_.edges), true),
            quality("MinHash of rows, containment >= 0.9", seed, minhash_edges(tables), true),
        ],
        "recall": min(len(edges & true) / len(true) for edges in [*stages.values(), *exact.edges_by_stage_.values()]),
        "falls": float(all(more >= fewer for more, fewer in itertools.pairwise(counts))),
        "lowest false": min((share[edge] for edge in false), default=1.0),
        "far survivors": len(far & stages["content"]) / len(far),
        "differences": len(set(exact.graph_.edges) ^ true),
        "rows": found.rows_read_["content"] / brute_rows,
        "time": seconds / brute,
        "costs": {
            "seed": seed,
            "tables": len(tables),
            "rows in the lake": sum(map(len, tables.values())),
            "pairs with fitting schemas": len(share),
            "of which contained": len(true),
            "false edges left by the sample": len(false),
            "seconds": round(seconds, 2),
            **{f"seconds, {stage}": round(value, 2) for stage, value in found.timings_.items()},
            "seconds with exact verification": round(exact_seconds, 2),
            "seconds of brute force (estimated)": round(brute, 1),
            "standard error of it": round(float(error), 1),
            "seconds of all pairs with every table in memory, rows numbered once": round(grouped_seconds, 1),
            "rows read before the exact stage": found.rows_read_["content"],
            "rows read by the exact stage": exact.rows_read_["exact"],
            "rows read by brute force": brute_rows,
            "groups of duplicates": len(exact.duplicates_),
            "longest line of containments": nx.dag_longest_path_length(nx.condensation(exact.graph_)),
        },
        "rebuilt": list(rebuilt_alike(exact)),
    }


def collect(evidence: Evidence) -> None:
    """Compare the edges of every stage with all pairs joined by brute force."""
    frames = bases()
    evidence.uses(
        "iris, wine, breast cancer, diabetes and digits (scikit-learn)",
        f"metadata of {PACKAGE_ROWS} Debian packages",
    )
    runs = []
    for seed in evidence.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run(frames, seed, Path(folder)))
            print(runs[-1]["costs"], flush=True)
    evidence.table("baselines", [row for one in runs for row in one["baselines"]])
    evidence.table("costs", [one["costs"] for one in runs])
    evidence.check("recall of true edges after every stage, worst", min(one["recall"] for one in runs), at_least=1.0)
    evidence.check("edge counts fall from stage to stage, every seed", min(one["falls"] for one in runs), at_least=1.0)
    evidence.check(
        "containment of the surviving false edges (44 rows), lowest",
        min(one["lowest false"] for one in runs),
        at_least=0.9,
    )
    evidence.check(
        "share of pairs contained by 0.9 or less that survive", [one["far survivors"] for one in runs], at_most=0.01
    )
    evidence.check(
        "differences from brute force with exact verification, most", max(one["differences"] for one in runs), at_most=0
    )
    evidence.check("rows read before the exact stage, share of brute force", [one["rows"] for one in runs], at_most=0.2)
    evidence.check(
        "wall time, share of brute force",
        [one["time"] for one in runs],
        at_most=1 / 3,
        note=f"Brute force reads and joins both tables of each pair; timed on {TIMED_PAIRS} random pairs and scaled.",
    )
    rebuilt = [alike for one in runs for alike in one["rebuilt"]]
    evidence.check(
        "dropped tables rebuilt from their recipes with identical sorted rows, share",
        float(np.mean(rebuilt)),
        at_least=1.0,
        note=f"{len(rebuilt)} tables.",
    )

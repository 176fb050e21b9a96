"""Evidence of dsir on package descriptions: how much of a section is drawn, given some of its descriptions."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.data import package_descriptions
from benchmarks.evidence import Evidence
from models.curate.text_quality import MooreLewis
from models.curate.text_resampling import DSIR, tokens_of
from models.selection import top_rows

SECTIONS = ("games", "science", "python")
N, DRAWN = 40_000, 300


def supervised(raw: list[str], target: list[str]) -> NDArray[np.int64]:
    """The top rows of a logistic regression that tells target from raw texts."""
    hashed = HashingVectorizer(ngram_range=(1, 2), n_features=2**18)
    labels = np.repeat([0, 1], [len(raw), len(target)])
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(hashed.transform(raw + target), labels)
    return top_rows(model.predict_proba(hashed.transform(raw))[:, 1], DRAWN)


def drawn_by(name: str, raw: list[str], target: list[str], seed: int) -> NDArray[np.int64]:
    """Rows that one way of choosing takes."""
    if name == "random":
        return np.random.default_rng(seed).choice(len(raw), DRAWN, replace=False)
    if name == "supervised":
        return supervised(raw, target)
    if name == "Moore-Lewis":
        return MooreLewis(budget=DRAWN).fit(raw, target=target).indices_
    options: dict[str, Any] = {
        "DSIR, smoothing 0": {},
        "DSIR, smoothing 1": {"target_smoothing": 1.0},
        "DSIR, smoothing 1, top k": {"target_smoothing": 1.0, "top_k": True},
        "DSIR, smoothing 1, by length": {"target_smoothing": 1.0, "length_normalised": True, "top_k": True},
    }[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the target is small is the point
        return DSIR(budget=DRAWN, min_tokens=3, random_state=seed, **options).fit(raw, target=target).indices_


WAYS = (
    "random",
    "DSIR, smoothing 0",
    "DSIR, smoothing 1",
    "DSIR, smoothing 1, top k",
    "DSIR, smoothing 1, by length",
    "Moore-Lewis",
    "supervised",
)


def one_seed(seed: int) -> list[dict[str, Any]]:
    """Share of the section in what each way chooses, section by section."""
    frame = package_descriptions()
    random = np.random.default_rng(seed)
    frame = frame.iloc[random.permutation(len(frame))[:N]]
    texts, sections = frame["synopsis"].astype(str).to_numpy(), frame["section"].to_numpy()
    long_enough = np.array([len(tokens_of(text)) >= 3 for text in texts])
    rows = []
    for section in SECTIONS:
        inside = np.flatnonzero(sections == section)
        known = inside[: min(DRAWN, len(inside) // 2)]
        others = np.setdiff1d(np.flatnonzero(long_enough), known)
        raw, target = texts[others].tolist(), texts[known].tolist()
        wanted = sections[others] == section
        for way in WAYS:
            started = time.perf_counter()
            chosen = drawn_by(way, raw, target, seed)
            rows.append({
                "seed": seed,
                "section": section,
                "way": way,
                "base rate": round(float(wanted.mean()), 4),
                "share": round(float(wanted[chosen].mean()), 4),
                "seconds": round(time.perf_counter() - started, 1),
            })  # fmt: skip
    return rows


def collect(evidence: Evidence) -> None:
    """Shares drawn, against the base rate, a random choice and a supervised one."""
    release = package_descriptions().attrs["release"]
    evidence.uses(f"{N:,} short package descriptions of {release}; targets are 300 (or half) of one section's")
    rows = [row for found in evidence.map(one_seed) for row in found]

    def share(section: str, way: str) -> NDArray[np.float64]:
        return np.array([row["share"] for row in rows if (row["section"], row["way"]) == (section, way)])

    for section in SECTIONS:
        base = np.array([row["base rate"] for row in rows if (row["section"], row["way"]) == (section, "random")])
        smooth, plain = share(section, "DSIR, smoothing 1"), share(section, "DSIR, smoothing 0")
        chance, best = share(section, "random"), share(section, "supervised")
        top = share(section, "DSIR, smoothing 1, top k") - best
        notes = {
            "share with smoothing 1 less that of the supervised choice": (
                "The published noise gives away a part of it: without noise (top_k) the seeds lie at "
                f"{', '.join(f'{value:.3f}' for value in top)}, with it at "
                f"{', '.join(f'{value:.3f}' for value in smooth - best)}."
            )
        }
        least = {
            "share over base rate with smoothing 1": ((smooth / base).min(), 8.0),
            "share with smoothing 1 less that of the supervised choice": ((smooth - best).min(), -0.20),
            "share with smoothing 1 above that with smoothing 0": ((smooth - plain).min(), 1 / DRAWN),
            "share with smoothing 0 above a random choice's": ((plain - chance).min(), 1 / DRAWN),
            "share with smoothing 1 above a random choice's": ((smooth - chance).min(), 1 / DRAWN),
        }
        for name, (value, bound) in least.items():
            evidence.check(
                f"{section}: {name} (least of the seeds)", float(value), at_least=bound, note=notes.get(name, "")
            )
    evidence.table(
        "share of the section among 300 chosen, mean of the seeds",
        [
            {
                "section": section,
                "base rate": round(float(np.mean([r["base rate"] for r in rows if r["section"] == section])), 4),
                **{way: round(float(share(section, way).mean()), 3) for way in WAYS},
            }
            for section in SECTIONS
        ],
    )
    evidence.table("each seed", rows)

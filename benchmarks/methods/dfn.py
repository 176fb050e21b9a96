"""dfn on Fashion-MNIST with captions of which most are random, and on packages with descriptions of others."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from benchmarks.data import embed_texts, fashion_mnist, package_descriptions
from benchmarks.evidence import Evidence
from models.curate.dfn import (
    BinaryFilter,
    ContrastivePairEncoder,
    DataFilteringNetwork,
    Pairs,
    ReconstructionFilter,
    best_pairs,
    induced_benchmark,
    zero_shot_accuracy,
)

NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FORMS = ("a photo of a {}", "{}", "a black {}", "a picture of a {}", "a photo of one {} for sale", "my new {}")
PROMPTS = [FORMS[0].format(name) for name in NAMES]
POOL, TRUSTED, NOISE, KEEP = 12_000, 1000, 0.6, 0.3
BATCH, FILTER_STEPS, INDUCED_STEPS = 128, 250, 400
POISON = (0.25, 0.5, 1.0)
RECIPE: dict[str, Any] = {"embed_dim": 64, "batch_size": BATCH, "lr": 1e-3, "keep_fraction": KEEP}
PACKAGES, TRUSTED_PACKAGES = 6000, 2000
WIDTH = 384


def captions(labels: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    """A caption a label, worded by chance."""
    forms = rng.integers(len(FORMS), size=len(labels))
    return [FORMS[form].format(NAMES[label]) for form, label in zip(forms, labels, strict=True)]


def clothes(seed: int) -> tuple[Pairs, NDArray[np.bool_], Pairs, Pairs]:
    """The pool, which of its captions are true, trusted pairs, and test images with their labels."""
    data, rng = fashion_mnist(), np.random.default_rng(seed)
    rows = rng.choice(len(data.train_images), POOL + TRUSTED, replace=False)
    images = data.train_images[rows].reshape(len(rows), -1).astype(np.float32) / 255
    labels = data.train_labels[rows]
    told = labels[:POOL].copy()
    random = rng.random(POOL) < NOISE
    told[random] = rng.integers(len(NAMES), size=int(random.sum()))
    pool = Pairs(images[:POOL], captions(told, rng), {"class": [NAMES[label] for label in labels[:POOL]]})
    trusted = Pairs(images[POOL:], captions(labels[POOL:], rng))
    test = data.test_images.reshape(len(data.test_images), -1).astype(np.float32) / 255
    return pool, told == labels[:POOL], trusted, Pairs(test, data.test_labels.tolist())


def figures(seed: int) -> dict[str, Any]:
    """Everything measured on one pool."""
    pool, true, trusted, test = clothes(seed)

    def network(pairs: Pairs, steps: int) -> DataFilteringNetwork:
        return DataFilteringNetwork(**RECIPE, epochs_or_samples=steps * BATCH, random_state=seed).fit(pairs)

    def train(pairs: Pairs) -> Any:
        return network(pairs, INDUCED_STEPS).scorer_

    def evaluate(scorer: Any) -> float:
        return zero_shot_accuracy(scorer, test.a, test.b, PROMPTS)

    filters: dict[str, Any] = {
        "A: trained on trusted pairs": network(trusted, FILTER_STEPS),
        "B: trained on the pool": network(pool, INDUCED_STEPS),
        "binary classifier": BinaryFilter(n_steps=FILTER_STEPS, random_state=seed).fit(trusted, pool),
        "reconstruction": ReconstructionFilter(n_steps=FILTER_STEPS, random_state=seed).fit(trusted),
        "untrained network": network(trusted, 0),
    }
    masks, proxies = {}, {}
    for name, fitted in filters.items():
        scores = fitted.score_pairs(pool)
        masks[name] = best_pairs(scores, KEEP)
        accuracy = evaluate(fitted.scorer_) if hasattr(fitted, "scorer_") else float("nan")
        auc = float(roc_auc_score(true, scores))
        proxies[name] = {"own accuracy": accuracy, "AUC": auc, "purity": float(true[masks[name]].mean())}
    table = induced_benchmark(pool, masks, train, evaluate, proxies=proxies, random_state=seed)
    own_aucs = []

    def own(scorer: Any) -> float:
        own_aucs.append(float(roc_auc_score(true, scorer.score(pool.a, pool.b).numpy())))
        return evaluate(scorer)

    sweeper = DataFilteringNetwork(**RECIPE, epochs_or_samples=FILTER_STEPS * BATCH, random_state=seed)
    poison = sweeper.poison_sweep(trusted, pool, POISON, train, evaluate, own).assign(AUC=own_aucs)
    uses = sweeper.compare_uses(trusted, pool, train, evaluate)
    return {
        "seed": seed,
        "filters": table.to_dict("records"),
        "poison": poison.to_dict("records"),
        "uses": uses.to_dict("records"),
    }


class Embedded(nn.Module):
    """A tower for texts that are embedded already."""

    out_dim = WIDTH

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Embeddings as they are."""
        return rows


def started() -> ContrastivePairEncoder:
    """Two linear layers on a sentence encoder's embeddings that change nothing at first."""
    encoder = ContrastivePairEncoder(Embedded(), Embedded(), WIDTH)
    for layer in (encoder.project_a, encoder.project_b):
        nn.init.eye_(layer.weight)
    return encoder


def packages(seed: int, first: NDArray[np.float32], second: NDArray[np.float32]) -> dict[str, float]:
    """AUC for true pairs among package lines and descriptions, 60 % of them of another package."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(first))
    trusted, others = order[:TRUSTED_PACKAGES], order[TRUSTED_PACKAGES:]
    told = others.copy()
    wrong = np.flatnonzero(rng.random(len(others)) < NOISE)
    told[wrong] = others[np.roll(wrong, 1)]
    method = DataFilteringNetwork(started(), batch_size=256, lr=1e-4, epochs_or_samples=10.0, random_state=seed)
    method.fit((first[trusted], second[trusted]))
    pool, true = (first[others], second[told]), told == others
    untrained = DataFilteringNetwork(started(), epochs_or_samples=0).fit((first[trusted], second[trusted]))
    mask = method.select(pool, keep_fraction=KEEP)
    return {
        "seed": seed,
        "AUC": float(roc_auc_score(true, method.score_pairs(pool))),
        "AUC of the encoder as it is": float(roc_auc_score(true, untrained.score_pairs(pool))),
        "purity": float(true[mask].mean()),
    }


def own_words(texts: list[str]) -> list[int]:
    """A digest of each text, for a sample that does not depend on the order of the list."""
    return [zlib.crc32(text.encode()) for text in texts]


def collect(evidence: Evidence) -> None:
    """Filters ranked by the model they induce, with poison and without; then texts."""
    evidence.uses(
        "Fashion-MNIST with captions made of its class names: a pool of 12,000, 1,000 trusted, 10,000 to test"
    )
    found = evidence.map(figures)
    names = [row["filter"] for row in found[0]["filters"]]
    by_name = [{row["filter"]: row for row in one["filters"]} for one in found]

    def column(name: str, key: str) -> list[float]:
        return [float(one[name].get(key, float("nan"))) for one in by_name]

    rows = []
    for name in names:
        keys = ("pairs", "own accuracy", "AUC", "purity", "induced")
        means = {key: float(np.mean(column(name, key))) for key in keys}
        known = {key: value if np.isfinite(value) else "none" for key, value in means.items()}
        seeds = {
            f"induced, seed {seed}": value for seed, value in zip(evidence.seeds, column(name, "induced"), strict=True)
        }
        rows.append({"filter": name, **known, **seeds})
    evidence.table("filters, best induced model first", sorted(rows, key=lambda row: -row["induced"]))
    poison = [
        {
            "poison": fraction,
            **{key: float(np.mean([one["poison"][i][key] for one in found])) for key in ("own", "AUC", "induced")},
        }
        for i, fraction in enumerate(POISON)
    ]
    a, b, nothing, chance = "A: trained on trusted pairs", "B: trained on the pool", "no filter", "random, same size"
    clean = {
        "poison": 0.0,
        **{
            to: float(np.mean(column(a, of)))
            for to, of in (("own", "own accuracy"), ("AUC", "AUC"), ("induced", "induced"))
        },
    }
    evidence.table("random pairs among the trusted", [clean, *poison])
    uses = sorted({row["use"] for row in found[0]["uses"]})
    evidence.table(
        "what the trusted pairs serve for",
        [
            {
                "use": use,
                "induced": float(np.mean([r["induced"] for one in found for r in one["uses"] if r["use"] == use])),
            }
            for use in uses
        ],
    )
    dfn, unfiltered, random = column(a, "induced"), column(nothing, "induced"), column(chance, "induced")
    gains = [x - y for x, y in zip(dfn, unfiltered, strict=True)]
    evidence.check("induced accuracy over no filter, lowest seed", min(gains), at_least=1e-9)
    over = [x - y for x, y in zip(dfn, random, strict=True)]
    evidence.check("induced accuracy over random pairs of the same number", over, at_least=0.10)
    evidence.check("purity of what is kept", column(a, "purity"), at_least=0.93)
    falling = [row["induced"] for row in (clean, *poison)]
    evidence.check(
        "rise of induced accuracy from one share of poison to the next", float(np.diff(falling).max()), at_most=0
    )
    half = [one["poison"][POISON.index(0.5)]["induced"] - base for one, base in zip(found, unfiltered, strict=True)]
    evidence.check("induced accuracy at 50 % poison over no filter", half, at_most=0)
    lead = {
        key: [x - y for x, y in zip(column(a, key), column(b, key), strict=True)]
        for key in ("own accuracy", "purity", "induced")
    }
    evidence.check("own accuracy of A over B (B wins)", lead["own accuracy"], at_most=0)
    evidence.check("purity of A over B (B wins)", lead["purity"], at_most=0)
    evidence.check("induced accuracy of A over B (A wins all the same)", lead["induced"], at_least=0)
    texts(evidence)


def texts(evidence: Evidence) -> None:
    """The second case: a package's one line and its long description."""
    table = package_descriptions()
    long = table["description"].str.partition("\n\n")[2]
    able = table[(long.str.len() > 100) & (table["synopsis"].str.len() > 10)]
    chosen = able.iloc[np.argsort(own_words(able["package"].tolist()), kind="stable")[:PACKAGES]]
    evidence.uses(f"{PACKAGES:,} package descriptions of {table.attrs['release']}, embedded by all-MiniLM-L6-v2")
    first = embed_texts((chosen["package"] + ": " + chosen["synopsis"]).tolist())
    second = embed_texts(chosen["description"].str.partition("\n\n")[2].tolist())
    rows = [packages(seed, first, second) for seed in evidence.seeds]
    evidence.table("package lines and descriptions, 60 % of another package", rows)
    evidence.check("AUC for true pairs of texts", [row["AUC"] for row in rows], at_least=0.95)

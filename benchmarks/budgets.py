"""What fewer rows cost: accuracy against budget of every method that chooses rows, with clean and with wrong labels.

Rows are 2,000 images of Fashion-MNIST with their labels, and the same with a fifth of the labels replaced by others. A
convolutional network is trained from scratch on the rows kept, for as many steps whatever the budget, and judged
on 2,000 test images.

    python -m benchmarks.budgets         writes benchmarks/results/budgets.json and docs/img/curate-budgets.png; goes on
                                         where it was cut short
    python -m benchmarks.budgets --draw  draws the figure again from that file
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.data import fashion_mnist
from benchmarks.evidence import RESULTS
from infra.files import write_text
from models.base import isolated_seed
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier
from models.selection import top_rows
from models.supervised import probabilities, train_classifier
from tasks.curate import Choice, choose, selectors
from tasks.figures import PALETTE
from tasks.rowset import Rowset

ROWS, TEST, WRONG = 2000, 2000, 0.2
BUDGETS = (0.03, 0.1, 0.3, 0.6)
SEEDS = (0, 1, 2)
STEPS, BATCH_SIZE = 200, 64
RANKED = ("margin", "el2n", "grand", "forgetting")
"""Methods whose rows are those of the highest scores, whatever the budget: they score once."""
FILE = RESULTS / "budgets.json"
PICTURE = Path(__file__).parents[1] / "docs" / "img" / "curate-budgets.png"
Rows = NDArray[np.int64]


def data(seed: int, wrong: float) -> tuple[NDArray[np.float32], Rows, Rows]:
    """Images (n, 1, 28, 28), the labels a user has, and the true ones."""
    split = fashion_mnist()
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(split.train_images), ROWS, replace=False)
    truth = split.train_labels[rows].astype(np.int64)
    changed = rng.random(ROWS) < wrong
    given = np.where(changed, (truth + rng.integers(1, 10, ROWS)) % 10, truth)
    return split.train_images[rows, None].astype(np.float32) / np.float32(255), given, truth


def accuracy(images: NDArray[np.float32], labels: Rows, kept: Rows, seed: int) -> float:
    """Of the network trained on the rows kept."""
    split = fashion_mnist()
    test = torch.from_numpy(split.test_images[:TEST, None].astype(np.float32) / 255)
    with isolated_seed(seed):
        network = SplitClassifier(ConvEncoder((8, 16, 32)), 10, embedding_dim=None)
        batch = min(BATCH_SIZE, len(kept))
        epochs = max(1, round(STEPS * batch / len(kept)))
        chosen = torch.from_numpy(images[kept])
        train_classifier(network, chosen, labels[kept], epochs=epochs, batch_size=batch, lr=0.05, seed=seed)
    return float((probabilities(network, test).argmax(axis=1) == split.test_labels[:TEST]).mean())


def chosen_rows(name: str, rows: Rowset, seed: int) -> tuple[dict[float, Rows], float]:
    """Rows kept for each budget, and the seconds of the longest choice."""
    if name in RANKED:
        found = choose(Choice(name, rows, BUDGETS[-1], seed))
        return {b: top_rows(found.score, round(b * len(rows))) for b in BUDGETS}, found.seconds
    every = {b: choose(Choice(name, rows, b, seed)) for b in BUDGETS}
    return {b: np.flatnonzero(found.kept) for b, found in every.items()}, max(f.seconds for f in every.values())


def measure() -> None:
    """Every method, budget and seed, and all rows; what is in the file already is kept."""
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    table = found.get("table", []) if found.get("rows") == ROWS else []
    for seed in SEEDS:
        for wrong in (0.0, WRONG):
            images, given, truth = data(seed, wrong)
            rows = Rowset(images.reshape(ROWS, -1).astype(np.float64), images, given, np.zeros(ROWS, dtype=np.int64))
            for name in ["all rows", *(card.name for card in selectors())]:
                if any((row["method"], row["seed"], row["wrong_labels"]) == (name, seed, wrong) for row in table):
                    continue
                every: tuple[dict[float, Rows], float] = ({1.0: np.arange(ROWS)}, 0.0)
                kept, seconds = every if name == "all rows" else chosen_rows(name, rows, seed)
                for budget, where in kept.items():
                    table.append({
                        "wrong_labels": wrong, "seed": seed, "method": name, "budget": budget, "rows": len(where),
                        "accuracy": round(accuracy(images, given, where, seed), 4),
                        "wrong_kept": round(float((given[where] != truth[where]).mean()), 4),
                        "seconds_to_choose": round(seconds, 2),
                    })  # fmt: skip
                print(table[-1], flush=True)
                facts = {"command": "python -m benchmarks.budgets", "cpus": os.cpu_count(), "rows": ROWS}
                write_text(FILE, json.dumps(facts | {"table": table}, indent=1) + "\n")


def draw(found: dict[str, Any]) -> None:
    """Mean over seeds, with the seeds' range as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9))
    axes = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(row["method"] for row in found["table"] if row["method"] != "all rows"))
    for axis, wrong in zip(axes, sorted({row["wrong_labels"] for row in found["table"]}), strict=True):
        part = [row for row in found["table"] if row["wrong_labels"] == wrong]
        full = np.mean([row["accuracy"] for row in part if row["method"] == "all rows"])
        axis.axhline(full, color="#666666", lw=1, ls="--", label="all rows")
        for number, name in enumerate(names):
            chance = name in ("random-subset", "stratified-subset")
            own = {b: [r["accuracy"] for r in part if r["method"] == name and r["budget"] == b] for b in BUDGETS}
            if not all(own.values()):
                continue
            mean, low, high = (np.array([of(found) for found in own.values()]) for of in (np.mean, np.min, np.max))
            colour = "#333333" if chance else PALETTE[number % 10]
            style = {"ls": ":" if name == "stratified-subset" else "-", "lw": 1.8 if chance else 1.3, "color": colour}
            axis.plot(BUDGETS, mean, marker="o", ms=3.5, label=name, **style)
            axis.fill_between(BUDGETS, low, high, color=colour, alpha=0.12, lw=0)
        axis.set_xscale("log")
        axis.set_xticks(BUDGETS, [f"{b:.0%}" for b in BUDGETS], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel("rows kept", fontsize=9)
        axis.set_title("labels as they are" if not wrong else f"{wrong:.0%} of the labels wrong", fontsize=9)
        axis.tick_params(axis="y", labelsize=8)
    axes[0].set_ylabel("test accuracy", fontsize=9)
    axes[1].legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout(pad=0.5)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="Only draw, from the figures measured before.")
    if not parser.parse_args().draw:
        measure()
    draw(json.loads(FILE.read_text()))

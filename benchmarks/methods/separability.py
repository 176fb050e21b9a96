"""Evidence for the label-free separability score: handwritten digits, package descriptions, two Gaussians."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.data import digits, embed_texts, package_descriptions
from benchmarks.evidence import Evidence
from models.base import isolated_seed
from models.training import ClassifierTrainer, Hook, Row, Trainer, adam
from models.validate.separability import (
    PersistenceSeparability,
    SeparabilityStopper,
    calinski_harabasz,
    cv_auc,
    fisher_ratio,
    h0_persistence,
    persistence_score,
    thornton_index,
)

CHECKPOINTS = (0, 1, 2, 3, 4, 6, 8, 10, 14, 18, 24, 30, 40, 50, 60)
PAIRS = {"far": ("games", "science"), "near": ("libs", "libdevel")}
SHIFTS = np.arange(13)


class CosineClassifier(nn.Module):
    """Linear - ReLU - linear - row of length 1, and a softmax over cosines times 8."""

    def __init__(self, in_features: int, hidden: int, width: int, n_classes: int, scale: float = 8.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.prototypes = nn.Parameter(torch.randn(n_classes, width))
        self.scale = scale

    def embed(self, x: Tensor) -> Tensor:
        """Rows -> embeddings of length 1."""
        return F.normalize(self.encoder(x), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Rows -> logits."""
        return self.scale * self.embed(x) @ F.normalize(self.prototypes, dim=1).T


class Checkpoints(Hook):
    """Embeddings and predictions of held-out rows at the epochs in `CHECKPOINTS`."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.embeddings: list[NDArray[np.float32]] = []
        self.predictions: list[NDArray[np.int64]] = []

    def look(self, network: Any) -> None:
        """Embed and classify the rows now."""
        network.eval()
        with torch.inference_mode():
            self.embeddings.append(network.embed(self.rows).numpy())
            self.predictions.append(network(self.rows).argmax(1).numpy())

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Epoch 0: the untrained encoder."""
        self.look(trainer.plain_network)

    def on_epoch_end(self, trainer: Trainer, row: Row) -> None:
        """Look at the checkpoints."""
        if trainer.epoch + 1 in CHECKPOINTS:
            self.look(trainer.plain_network)


def trained(
    X: NDArray[Any], y: NDArray[Any], held_out: NDArray[Any], seed: int, hidden: int, width: int, lr: float = 1e-3
) -> Checkpoints:
    """Train the encoder for 60 epochs and return what it made of the held-out rows on the way."""
    hook = Checkpoints(torch.tensor(held_out, dtype=torch.float32))
    with isolated_seed(seed):
        network = CosineClassifier(X.shape[1], hidden, width, int(y.max()) + 1)
        ClassifierTrainer(
            network, epochs=CHECKPOINTS[-1], batch_size=50, optimizer=adam(lr), seed=seed, hooks=[hook]
        ).fit(torch.tensor(X, dtype=torch.float32), torch.tensor(y))
    return hook


def curve(embeddings: list[NDArray[np.float32]], seed: int, **parameters: Any) -> NDArray[np.float64]:
    """Score at each checkpoint on the same subsets."""
    measure = PersistenceSeparability(random_state=seed, drop_duplicates=False, **parameters).fit(embeddings[0])
    return np.array([measure.score(X) for X in embeddings])


def rank_correlation(a: Any, b: Any) -> float:
    """Spearman's correlation."""
    return float(spearmanr(a, b).statistic)


def digits_run(seed: int, standardise: bool = True) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Figures of one seed, and its course over the checkpoints."""
    images, labels = digits()
    rows = images.reshape(len(images), -1) / 255
    order = np.random.default_rng(seed).permutation(len(rows))
    train, test = order[:300], order[300:1100]
    if standardise:
        rows = StandardScaler().fit(rows[train]).transform(rows)
    X, y, held_out, truth = rows[train], labels[train], rows[test], labels[test]
    run = trained(X, y, held_out, seed, 64, 32)
    scores = curve(run.embeddings, seed)
    accuracy = np.array([(p == truth).mean() for p in run.predictions])
    references = {
        "thornton": [thornton_index(E, truth) for E in run.embeddings],
        "fisher_ratio": [fisher_ratio(E, truth) for E in run.embeddings],
        "cv_auc": [cv_auc(E, truth) for E in run.embeddings],
        "calinski_harabasz": [calinski_harabasz(E, 10) for E in run.embeddings],
    }
    stopper = SeparabilityStopper(random_state=seed, drop_duplicates=False)
    for E in run.embeddings:
        if stopper.update(E):
            break
    frozen = trained(X, y, held_out, seed, 64, 32, lr=0.0).embeddings
    still = SeparabilityStopper(random_state=seed, drop_duplicates=False)
    fired = [still.update(E) for E in frozen]
    frozen_scores = [row["score"] for row in still.history_]
    shuffled = trained(X, np.random.default_rng(seed + 100).permutation(y), held_out, seed, 64, 32)
    figures = {
        "seed": seed,
        "spearman": rank_correlation(scores, accuracy),
        "spearman_median": rank_correlation(curve(run.embeddings, seed, statistic="median"), accuracy),
        "spearman_entropy": rank_correlation(curve(run.embeddings, seed, statistic="entropy"), accuracy),
        "spearman_q99": rank_correlation(curve(run.embeddings, seed, normaliser="q99"), accuracy),
        **{f"spearman_{name}": rank_correlation(values, accuracy) for name, values in references.items()},
        "first_score": float(scores[0]),
        "first_variance": float(run.embeddings[0].var(axis=0).sum()),
        "final_score": float(scores[-1]),
        "final_score_shuffled_labels": float(curve(shuffled.embeddings, seed)[-1]),
        "stopped_after_checkpoint": len(stopper.history_) - 1 if stopper.stopped_ else -1,
        "chosen_epoch": CHECKPOINTS[stopper.best_epoch_],
        "points_lost": 100 * float(accuracy.max() - accuracy[stopper.best_epoch_]),
        "frozen_range_in_std": float(np.ptp(frozen_scores) / np.mean([row["std"] for row in still.history_])),
        "frozen_fired_at": fired.index(True) if any(fired) else -1,
    }
    course = [
        {"seed": seed, "epoch": epoch, "score": round(float(s), 4), "accuracy": round(float(a), 4)}
        | {name: round(float(values[i]), 4) for name, values in references.items()}
        for i, (epoch, s, a) in enumerate(zip(CHECKPOINTS, scores, accuracy, strict=True))
    ]
    return figures, course


def package_sections() -> dict[str, NDArray[np.float32]]:
    """Embeddings of 1000 descriptions of each of the four sections."""
    frame = package_descriptions()
    return {
        section: embed_texts(frame[frame.section == section].sample(1000, random_state=0).description.tolist())
        for pair in PAIRS.values()
        for section in pair
    }


def package_run(name: str, embeddings: dict[str, NDArray[np.float32]], seed: int) -> dict[str, Any]:
    """Score and held-out AUC before and after training a head on 64 labels."""
    first, second = PAIRS[name]
    X, y = np.concatenate([embeddings[first], embeddings[second]]), np.repeat([0, 1], 1000)
    order = np.random.default_rng(seed).permutation(2000)
    few, rest = order[:64], order[64:]
    run = trained(X[few], y[few], np.concatenate([X[few], X[rest]]), seed, 64, 32)
    held_out = [E[64:] for E in run.embeddings]
    measure = PersistenceSeparability(random_state=seed, drop_duplicates=False).fit(held_out[0])
    scores = [measure.score(E) for E in held_out]

    def auc(E: NDArray[np.float32]) -> float:
        probe = LogisticRegression(max_iter=2000).fit(E[:64], y[few])
        return float(roc_auc_score(y[rest], probe.decision_function(E[64:])))

    aucs = [auc(E) for E in run.embeddings]
    return {
        "pair": f"{name}: {first} / {second}",
        "seed": seed,
        "score_before": float(scores[0]),
        "score_after": float(scores[-1]),
        "score_std_before": measure.score_std_,
        "auc_before": aucs[0],
        "auc_after": aucs[-1],
        "same_sign": float(np.sign(scores[-1] - scores[0]) == np.sign(aucs[-1] - aucs[0])),
        "spearman": rank_correlation(scores, aucs),
    }


def texts_note(rows: list[dict[str, Any]]) -> str:
    """Say what the two pairs show."""
    parts = []
    for name in PAIRS:
        mine = [row for row in rows if row["pair"].startswith(name)]
        agree = sum(row["same_sign"] for row in mine)
        moved = np.mean([row["score_after"] - row["score_before"] for row in mine])
        spread = np.mean([row["score_std_before"] for row in mine])
        before, after = (np.mean([row[f"auc_{when}"] for row in mine]) for when in ("before", "after"))
        parts.append(
            f"{mine[0]['pair']}: {agree:.0f} of {len(mine)} agree, AUC {before:.2f} -> {after:.2f}, "
            f"score {moved:+.3f} (standard deviation over subsets {spread:.3f})"
        )
    return "; ".join(parts) + ". Classes that still overlap open no gap for the score to see."


def plane_run(seed: int, direction: tuple[float, float], repeats: int = 1) -> tuple[list[float], list[float]]:
    """Mean score and Fisher ratio of two Gaussian clouds of 100 points at each shift along `direction`."""
    y = np.repeat([0, 1], 100)
    scores, ratios = [], []
    for shift in SHIFTS:
        rng = np.random.default_rng([seed, int(shift)])
        clouds = [rng.normal(size=(200, 2)) + shift * np.outer(y, direction) for _ in range(repeats)]
        scores.append(float(np.mean([persistence_score(h0_persistence(X)) for X in clouds])))
        ratios.append(float(np.mean([fisher_ratio(X, y) for X in clouds])))
    return scores, ratios


def collect_plane(evidence: Evidence) -> None:
    """Two Gaussians in the plane, moved apart."""
    rows = []
    for seed in evidence.seeds:
        single, averaged = plane_run(seed, (1, 0)), plane_run(seed, (1, 0), repeats=50)
        rows.append(
            {
                "seed": seed,
                "shift 0..12": rank_correlation(*single),
                "shift 6..12": rank_correlation(single[0][6:], single[1][6:]),
                "shift 0..12, mean of 50 data sets": rank_correlation(*averaged),
                "both coordinates shifted by 0..12": rank_correlation(*plane_run(seed, (1, 1))),
                "lowest mean score at shift": int(SHIFTS[np.argmin(averaged[0])]),
            }
        )
    evidence.table("two Gaussians in the plane: Spearman of score and Fisher ratio", rows)
    lowest = ", ".join(str(row["lowest mean score at shift"]) for row in rows)
    above = np.mean([row["shift 6..12"] for row in rows])
    evidence.check(
        "two Gaussians in the plane: Spearman of score and Fisher ratio, shift 0..12",
        [row["shift 0..12"] for row in rows],
        at_least=0.90,
        note=(
            "Between overlapping clouds the longest edge belongs to an outlier: it does not grow with the shift while "
            f"the cloud thins out, so the score falls first (lowest at shift {lowest} in the mean of 50 data sets) "
            f"and rises once the gap is the longest edge. From shift 6 on the correlation is {above:.2f}."
        ),
    )


def collect(evidence: Evidence) -> None:
    """Measure the score against held-out accuracy, on texts, and on Gaussians whose separation is known."""
    evidence.uses("UCI handwritten digits (scikit-learn), 300 training and 800 held-out rows, standardised")
    runs = evidence.map(digits_run)
    figures = [run[0] for run in runs]
    evidence.table("digits: each seed", figures)
    raw = [found[0] for found in evidence.map(partial(digits_run, standardise=False))]
    evidence.table("digits: raw pixels in place of standardised ones", raw)
    evidence.table("digits: course of training", [row for run in runs for row in run[1]])
    spearman = [row["spearman"] for row in figures]
    evidence.check("digits: Spearman of score and held-out accuracy, mean", spearman, at_least=0.80)
    evidence.check("digits: Spearman of score and held-out accuracy, worst seed", min(spearman), at_least=0.60)
    rise = [row["final_score"] - row["first_score"] for row in figures]
    raw_rise = min(row["final_score"] - row["first_score"] for row in raw)
    spreads, starts = (
        [float(np.mean([row[key] for row in rows])) for rows in (figures, raw)]
        for key in ("first_variance", "first_score")
    )
    raw_lost = max(row["points_lost"] for row in raw)
    evidence.check(
        "digits: rise of the score from epoch 0 to 60, smallest",
        min(rise),
        at_least=0.08,
        note=(
            "The protocol leaves the scaling of the inputs open. Raw pixels were tried first and fall short "
            f"(smallest rise {raw_rise:.3f}, {raw_lost:.1f} points lost by the stopper): the untrained encoder then "
            f"maps all rows close together (variance {spreads[1]:.2f} against {spreads[0]:.2f}) and its score starts "
            f"high ({starts[1]:.2f} against {starts[0]:.2f})."
        ),
    )
    lost = [row["points_lost"] for row in figures]
    evidence.check(
        "digits: accuracy points lost by the stopper's checkpoint, worst seed",
        max(lost),
        at_most=1.0,
        note=(
            f"Mean {np.mean(lost):.2f}; epochs chosen: {[row['chosen_epoch'] for row in figures]}. "
            "Where the score peaks early, accuracy still gains its last points on a plateau of the score."
        ),
    )
    still = max(row["frozen_range_in_std"] for row in figures)
    evidence.check("digits: range of a frozen encoder's score, in standard deviations", still, at_most=2.0)
    fired = [row["frozen_fired_at"] for row in figures]
    evidence.check(
        "digits: checkpoint at which the stopper ends a frozen training (warm-up 1, patience 3)",
        max(fired) if min(fired) >= 0 else float("inf"),
        at_most=6,
    )
    margin = min(row["final_score"] - row["final_score_shuffled_labels"] for row in figures)
    evidence.check("digits: final score, true minus shuffled labels, smallest", margin, at_least=0.0)

    X = digits().images[:300].reshape(300, -1) / 255
    evidence.check(
        "digits: largest difference of a death time from ripser's",
        float(np.abs(h0_persistence(X, backend="ripser") - h0_persistence(X)).max()),
        at_most=1e-6,
    )

    evidence.uses("Debian package descriptions, 1000 of each of four sections, embedded by all-MiniLM-L6-v2")
    embeddings = package_sections()
    texts = [package_run(pair, embeddings, seed) for pair in PAIRS for seed in evidence.seeds]
    evidence.table("package descriptions: before and after training on 64 labels", texts)
    evidence.check(
        "package descriptions: share of runs whose score and held-out AUC change with the same sign",
        float(np.mean([row["same_sign"] for row in texts])),
        at_least=1.0,
        note=texts_note(texts),
    )

    evidence.uses("Two Gaussian clouds in the plane, drawn")
    collect_plane(evidence)

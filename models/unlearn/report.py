"""One report for every unlearning method: how near it comes to a model that never saw the samples.

Accuracy on what stays, what goes and on test data, a membership attack, the distance of the outputs to the
retrained model's, and how quickly the removed samples are learnt again.

Shen, S. et al. "Label-Agnostic Forgetting". ICLR 2024, arXiv 2404.00506 (accuracies and attack).
Golatkar, A., Achille, A., Soatto, S. "Eternal Sunshine of the Spotless Net". CVPR 2020, arXiv 1911.04933
(output distance and relearning time).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from models.base import check_labels, isolated_seed, predict_in_batches
from models.metrics import membership_attack
from models.training import ClassifierTrainer, Hook, Row, Trainer, adam
from models.unlearn.split import Inputs, SplitView, stack_inputs

ACCURACIES = ("train_r", "train_f", "test", "test_r", "test_f")


def probabilities(model: Any, X: Tensor) -> NDArray[np.float64]:
    """Softmax outputs (n, K) of a network in any accepted form, or of anything with ``predict_proba``."""
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(X), dtype=np.float64)
    view = SplitView(model)
    device = next((parameter.device for parameter in model.parameters()), "cpu")
    return F.softmax(predict_in_batches(view, X, device=device).double(), dim=1).numpy()


def output_distance(p: ArrayLike, q: ArrayLike) -> dict[str, float]:
    """Mean Kullback-Leibler divergence KL(p || q) in nats and mean L1 distance between rows of softmax outputs.

    Parameters
    ----------
    p, q : array, (n, K)
        Outputs of the retrained and of the judged model on the same rows.
    """
    first, second = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    tiny = np.finfo(np.float64).tiny
    kl = (first * (np.log(first.clip(tiny)) - np.log(second.clip(tiny)))).sum(axis=1)
    return {"kl": float(kl.mean()), "l1": float(np.abs(first - second).sum(axis=1).mean())}


class _AccuracyEachStep(Hook):
    def __init__(self, X: Tensor, y: NDArray[np.int64]) -> None:
        self.X, self.y = X, y
        self.accuracies: list[float] = []

    def on_fit_begin(self, trainer: Trainer) -> None:
        self._measure(trainer)

    def on_batch_end(self, trainer: Trainer, terms: Row) -> None:
        self._measure(trainer)

    def _measure(self, trainer: Trainer) -> None:
        predicted = predict_in_batches(trainer.plain_network, self.X, device=trainer.device).argmax(1).numpy()
        self.accuracies.append(float((predicted == self.y).mean()))


def relearning_curve(
    model: Any,
    X: Inputs,
    y: ArrayLike | Tensor,
    *,
    steps: int = 30,
    lr: float = 1e-4,
    batch_size: int = 32,
    random_state: int | None = 0,
    device: str = "cpu",
) -> list[float]:
    """Accuracy on forgotten samples before and after each of `steps` Adam steps of cross-entropy on them.

    A model that only hides what it knew learns it again within few steps. The given model is not changed.

    Parameters
    ----------
    model : nn.Module, or a fitted method with ``model_``
    X, y : (n, ...) and (n,)
        The forgotten samples, labelled.
    steps, lr, batch_size
    random_state : int, optional
    device : str

    Returns
    -------
    list of float
        steps + 1 accuracies.
    """
    rows = stack_inputs(X)
    labels = check_labels(y, len(rows), allow_unlabelled=False, minimum_classes=1)
    network = copy.deepcopy(_network(model)).requires_grad_(True)
    with isolated_seed(random_state) as seed:
        rng = np.random.default_rng(seed)
        batches = [torch.from_numpy(rng.permutation(len(rows))[:batch_size]) for _ in range(steps)]
        curve = _AccuracyEachStep(rows, labels)
        ClassifierTrainer(
            SplitView(network),
            epochs=1,
            batch_size=batch_size,
            batches=lambda _: batches,
            optimizer=adam(lr),
            hooks=[curve],
            label="relearn",
            device=device,
        ).fit(rows, torch.from_numpy(labels))
    return curve.accuracies


def steps_to_reach(curve: Sequence[float], target: float) -> int:
    """First step of a curve at or above `target`; its length when it never gets there."""
    return next((step for step, accuracy in enumerate(curve) if accuracy >= target), len(curve))


def unlearning_report(
    model_original: Any,
    model_retrained: Any | None,
    model_unlearned: Any | Mapping[str, Any],
    *,
    X_remain: Inputs,
    y_remain: ArrayLike | Tensor,
    X_forget: Inputs,
    y_forget: ArrayLike | Tensor,
    X_test: Inputs,
    y_test: ArrayLike | Tensor,
    forget_classes: Sequence[int] = (),
    relearn_steps: int = 30,
    relearn_lr: float = 1e-4,
    relearn_share: float = 0.9,
    random_state: int = 0,
    device: str = "cpu",
) -> dict[str, dict[str, float]]:
    """Judge unlearned classifiers beside the original and the retrained one.

    Parameters
    ----------
    model_original : nn.Module
    model_retrained : nn.Module or None
        Trained on the remaining data alone: the target of every figure. Without it there are no distances.
    model_unlearned : nn.Module, fitted method, or mapping of names to them
        Networks return logits or (logits, embedding); methods have ``predict_proba`` and ``model_``.
    X_remain, X_forget, X_test : array, tensor, Dataset or DataLoader, (n, ...)
    y_remain, y_forget, y_test : array, (n,)
        For the samples to forget the labels the original was trained with, right or wrong.
    forget_classes : sequence of int
        When whole classes are removed: their test accuracy is given apart from the rest's.
    relearn_steps, relearn_lr : int, float
        See :func:`relearning_curve`.
    relearn_share : float
        Share of the original's accuracy on the forgotten samples that counts as learnt again.
    random_state : int
    device : str
        Where the relearning runs.

    Returns
    -------
    dict of str to dict of str to float
        A row for "original", "retrained" and each judged model ("unlearned" unless named), all shares in [0, 1]:

        - "train_r", "train_f", "test": accuracy on remaining, forgotten and test samples; "test_r", "test_f" with
          `forget_classes`;
        - "asr": membership attack success (half of the test rows train the attacker, the others are judged);
        - "relearn_steps": steps until the forgotten samples are learnt again, ``relearn_steps + 1`` when never;
        - "gap_<metric>": absolute distance of accuracies and attack to the retrained model's, and their mean
          "distance", the figure to order methods by;
        - "kl_forget", "l1_forget", "kl_test", "l1_test": see :func:`output_distance`.

    Raises
    ------
    ValueError
        For empty data, unlabelled rows, or no more than three test rows.
    """
    data = {
        name: _evaluation_rows(name, X, y)
        for name, X, y in (("remain", X_remain, y_remain), ("forget", X_forget, y_forget), ("test", X_test, y_test))
    }
    if len(data["test"][0]) < 4:
        raise ValueError(f"X_test must hold at least 4 samples for the attack, got {len(data['test'][0])}.")
    judged = model_unlearned if isinstance(model_unlearned, Mapping) else {"unlearned": model_unlearned}
    retrained = {} if model_retrained is None else {"retrained": model_retrained}
    models = {"original": model_original, **retrained, **judged}
    outputs = {name: {part: probabilities(model, X) for part, (X, _) in data.items()} for name, model in models.items()}
    labels = {part: y for part, (_, y) in data.items()}
    report = {name: _accuracies(output, labels, forget_classes) for name, output in outputs.items()}
    target = relearn_share * report["original"]["train_f"]
    for name, model in models.items():
        report[name]["asr"] = attack_success(outputs[name], random_state)
        curve = relearning_curve(
            model, *data["forget"], steps=relearn_steps, lr=relearn_lr, random_state=random_state, device=device
        )
        report[name]["relearn_steps"] = float(steps_to_reach(curve, target))
    if retrained:
        reference = dict(report["retrained"])
        for name, row in report.items():
            row.update(_distances(row, reference, outputs[name], outputs["retrained"]))
    return report


def attack_success(outputs: Mapping[str, NDArray[np.float64]], random_state: int = 0) -> float:
    """Success of the membership attack on softmax outputs of "remain", "forget" and "test" rows.

    The attacker is trained on remaining rows against one random half of the test rows and asked about the forgotten
    rows and the other half.
    """
    order = np.random.default_rng(random_state).permutation(len(outputs["test"]))
    known, fresh = np.array_split(order, 2)
    test = outputs["test"]
    return membership_attack(outputs["remain"], test[known], outputs["forget"], test[fresh], random_state)["asr"]


def _evaluation_rows(name: str, X: Inputs, y: ArrayLike | Tensor) -> tuple[Tensor, NDArray[np.int64]]:
    rows = stack_inputs(X, name=f"X_{name}")
    return rows, check_labels(y, len(rows), allow_unlabelled=False, minimum_classes=1, name=f"y_{name}")


def _accuracies(
    outputs: Mapping[str, NDArray[np.float64]], labels: Mapping[str, NDArray[np.int64]], forget_classes: Sequence[int]
) -> dict[str, float]:
    correct = {part: outputs[part].argmax(axis=1) == labels[part] for part in outputs}
    row = {"train_r": correct["remain"].mean(), "train_f": correct["forget"].mean(), "test": correct["test"].mean()}
    if forget_classes:
        removed = np.isin(labels["test"], forget_classes)
        row |= {"test_r": correct["test"][~removed].mean(), "test_f": correct["test"][removed].mean()}
    return {name: float(value) for name, value in row.items()}


def _distances(
    row: Mapping[str, float],
    reference: Mapping[str, float],
    outputs: Mapping[str, NDArray[np.float64]],
    retrained: Mapping[str, NDArray[np.float64]],
) -> dict[str, float]:
    gaps = {f"gap_{key}": abs(row[key] - reference[key]) for key in (*ACCURACIES, "asr") if key in row}
    result = {**gaps, "distance": float(np.mean(list(gaps.values())))}
    for part in ("forget", "test"):
        for name, value in output_distance(retrained[part], outputs[part]).items():
            result[f"{name}_{part}"] = value
    return result


def _network(model: Any) -> nn.Module:
    return model if isinstance(model, nn.Module) else model.model_

"""The unlearning report: every figure on cases where it is known beforehand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from models.unlearn.report import (
    attack_success,
    output_distance,
    probabilities,
    relearning_curve,
    steps_to_reach,
    unlearning_report,
)


class Fixed:
    """A classifier whose certainty and answers are read from the data: column 0 is the answer, 1 the certainty."""

    def __init__(self, wrong_above=math.inf, certainty=None):
        self.wrong_above, self.certainty = wrong_above, certainty
        self.model_ = nn.Linear(3, 2)

    def predict_proba(self, X):
        X = np.asarray(X)
        answer = X[:, 0].astype(int) ^ (X[:, 2] > self.wrong_above)
        certainty = X[:, 1] if self.certainty is None else np.full(len(X), self.certainty)
        return np.where(np.arange(2) == answer[:, None], certainty[:, None], 1 - certainty[:, None])


@pytest.fixture
def data():
    rng = np.random.default_rng(0)

    def rows(n, certainty, mark):
        y = rng.integers(0, 2, n)
        return np.stack([y, np.full(n, certainty), np.full(n, mark)], 1).astype(np.float32), y

    (Xr, yr), (Xf, yf), (Xt, yt) = rows(60, 0.99, 0), rows(40, 0.99, 2), rows(80, 0.7, 0)
    return {"X_remain": Xr, "y_remain": yr, "X_forget": Xf, "y_forget": yf, "X_test": Xt, "y_test": yt}


def test_known_figures(data):
    report = unlearning_report(
        Fixed(), Fixed(1, 0.8), {"same": Fixed(1, 0.8), "none": Fixed()}, **data, forget_classes=(1,), relearn_steps=2
    )
    assert list(report) == ["original", "retrained", "same", "none"]
    assert report["original"]["train_f"] == 1
    assert report["retrained"]["train_f"] == 0
    assert report["none"]["gap_train_f"] == 1
    assert all(report["none"][key] == 1 for key in ("train_r", "test", "test_r", "test_f"))
    assert report["same"]["distance"] == report["same"]["kl_test"] == report["same"]["l1_forget"] == 0
    gaps = [value for key, value in report["none"].items() if key.startswith("gap_")]
    assert len(gaps) == 6
    assert report["none"]["distance"] == pytest.approx(np.mean(gaps))
    assert report["none"]["asr"] == 1  # members are certain, test rows are not
    assert report["same"]["asr"] == 0.5  # nothing tells them apart
    assert report["none"]["l1_test"] == pytest.approx(0.2, abs=1e-6)


def test_without_classes_or_a_retrained_model(data):
    report = unlearning_report(Fixed(), None, Fixed(), **data, relearn_steps=1)
    assert list(report) == ["original", "unlearned"]
    assert set(report["unlearned"]) == {"train_r", "train_f", "test", "asr", "relearn_steps"}


def test_output_distance_of_known_rows():
    p, q = [[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]
    assert output_distance(p, q) == pytest.approx({"kl": math.log(2) / 2, "l1": 0.5})
    assert output_distance(q, q) == {"kl": 0, "l1": 0}


def test_attack_sees_only_a_real_difference():
    rng = np.random.default_rng(0)

    def outputs(low, high, n=300):
        top = rng.uniform(low, high, n)
        return np.stack([top, 1 - top], 1)

    test = outputs(0.5, 0.8)
    assert attack_success({"remain": outputs(0.9, 1), "forget": outputs(0.9, 1), "test": test}) > 0.95
    assert abs(attack_success({"remain": outputs(0.5, 0.8), "forget": outputs(0.5, 0.8), "test": test}) - 0.5) < 0.1


def test_relearning_curve_climbs_and_leaves_the_model_alone():
    torch.manual_seed(0)
    X = torch.randn(60, 4)
    y = (X[:, 0] > 0).long().numpy()
    model = nn.Linear(4, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.requires_grad_(False)
    curve = relearning_curve(model, X, y, steps=40, lr=0.1)
    assert len(curve) == 41
    assert curve[0] == pytest.approx((probabilities(model, X).argmax(1) == y).mean())
    assert curve[-1] > 0.9
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert curve == relearning_curve(model, X, y, steps=40, lr=0.1)


def test_steps_to_reach():
    assert steps_to_reach([0.1, 0.5, 0.9, 0.4], 0.5) == 1
    assert steps_to_reach([0.1, 0.2], 0.5) == 2
    assert steps_to_reach([0.7], 0.5) == 0


def test_clear_errors(data):
    with pytest.raises(ValueError, match="X_test must hold at least 4"):
        unlearning_report(Fixed(), None, Fixed(), **(data | {"X_test": data["X_test"][:3], "y_test": [0, 1, 0]}))
    with pytest.raises(ValueError, match="y_forget must not hold labels below 0"):
        unlearning_report(Fixed(), None, Fixed(), **(data | {"y_forget": np.full(40, -1)}))
    with pytest.raises(ValueError, match="X_forget must hold at least one sample"):
        unlearning_report(Fixed(), None, Fixed(), **(data | {"X_forget": data["X_forget"][:0], "y_forget": []}))

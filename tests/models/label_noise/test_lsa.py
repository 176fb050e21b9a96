import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import Dataset

from models import augment
from models.label_noise.detectors import DegenerateDetectionError, DetectionWarning, min_max
from models.label_noise.lsa import (
    LSAClassifier,
    PLSClassifier,
    interpolated_contrastive_loss,
    linear_separation_detector,
    pseudo_loss_confidence,
    small_loss_detector,
)
from models.label_noise.two_stage import (
    _Detection,
    class_balance_loss,
    learning_rate_factor,
    mixup_cross_entropy,
    sharpen,
    similarity_targets,
)
from models.networks.convnet import ConvEncoder
from models.networks.heads import ProjectingClassifier
from models.networks.mlp import MLPEncoder
from models.registry import get_method

VIEWS = {
    "weak": augment.weak(padding=1, flip=False),
    "strong": augment.strong(flip=False, scale=(0.6, 1.0)),
    "contrastive": augment.contrastive(flip=False, scale=(0.6, 1.0)),
}
AS_IS = {name: (lambda batch: batch) for name in VIEWS}


def digits(n=300, n_classes=10):
    data = load_digits()
    rows = np.flatnonzero(data.target < n_classes)[:n]
    return (data.images[rows] / 16).astype(np.float32), data.target[rows]


def network(n_classes=10, channels=(8, 16), seed=0):
    torch.manual_seed(seed)
    return ProjectingClassifier(ConvEncoder(channels), n_classes, 16)


def short(cls, **parameters):
    defaults = {"epochs": 4, "warmup": 1, "batch_size": 64, "lr": 0.05, "threshold": 0.5, "random_state": 0}
    backbone = parameters.pop("backbone", None) or network()
    return cls(backbone, **{**defaults, "augment": VIEWS, **parameters})


def trainer_of(method, X, y):
    method._validate()
    trainer = method._trainer_for(0, X, y, None, None)
    trainer.prepare(trainer.images)
    trainer.before_epoch()
    return trainer


# Equations.


def test_similarity_is_the_same_class_indicator_at_weight_one_and_the_identity_at_zero():
    classes = torch.tensor([0, 1, 0, 2])
    same = (classes[:, None] == classes[None, :]).float()
    assert torch.equal(similarity_targets(classes, torch.ones(4)), same)
    assert torch.equal(similarity_targets(classes, torch.zeros(4)), torch.eye(4))
    partly = similarity_targets(classes, torch.tensor([0.5, 1.0, 0.8, 0.2]))
    assert partly[0, 2] == pytest.approx(0.4)
    assert partly[0, 0] == pytest.approx(0.5**2 + 0.5**2)
    assert partly[0, 1] == 0


def test_contrast_at_weight_zero_is_info_nce():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 12, 5, generator=generator)
    classes = torch.arange(12) % 3
    logits = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / 0.2
    expected = F.cross_entropy(logits, torch.arange(12))
    loss = interpolated_contrastive_loss(first, second, classes, torch.zeros(12), temperature=0.2)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_mixed_contrast_permutes_rows_of_the_targets_only():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 4, 3, generator=generator)
    classes, partner = torch.tensor([0, 1, 0, 2]), torch.tensor([1, 0, 3, 2])
    same = (classes[:, None] == classes[None, :]).float()
    targets = 0.7 * same + 0.3 * same[partner]
    log_p = F.log_softmax(F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / 0.5, dim=1)
    expected = (-(targets * log_p).sum(1) / targets.sum(1)).mean()
    loss = interpolated_contrastive_loss(first, second, classes, torch.ones(4), 0.5, 0.7, partner)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_sharpening_keeps_row_sums_and_the_winner():
    guesses = F.softmax(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    sharp = sharpen(guesses, 2.0)
    assert torch.allclose(sharp.sum(1), torch.ones(50), atol=1e-6)
    assert torch.equal(sharp.argmax(1), guesses.argmax(1))
    assert (sharp.amax(1) > guesses.amax(1)).all()


def test_class_balance_is_zero_for_uniform_predictions_only():
    assert class_balance_loss(torch.zeros(6, 4)).item() == pytest.approx(0, abs=1e-6)
    one_hot_each = 50 * torch.eye(4)  # certain, yet balanced over the batch
    assert class_balance_loss(one_hot_each).item() == pytest.approx(0, abs=1e-6)
    skewed = torch.tensor([[math.log(3.0), 0.0]])  # mean prediction 3/4, 1/4
    assert class_balance_loss(skewed).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)


def test_mixup_cross_entropy_normalises_the_weights_of_each_side():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    targets, weights = torch.eye(2)[[0, 1, 0]], torch.tensor([1.0, 0.5, 0.0])
    partner = torch.tensor([2, 0, 1])
    log_p = F.log_softmax(logits, dim=1)
    own = -(1.0 * log_p[0, 0] + 0.5 * log_p[1, 1]) / 1.5
    other = -(0.0 * log_p[0, 0] + 1.0 * log_p[1, 0] + 0.5 * log_p[2, 1]) / 1.5
    loss = mixup_cross_entropy(logits, targets, weights, 0.8, partner)
    assert loss.item() == pytest.approx((0.8 * own + 0.2 * other).item(), abs=1e-6)


def test_learning_rate_is_constant_then_half_a_cosine():
    assert [learning_rate_factor(epoch, 3, 10) for epoch in range(3)] == [1, 1, 1]
    assert learning_rate_factor(3, 3, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi / 8)))
    assert learning_rate_factor(9, 3, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


# Detectors.


@pytest.mark.parametrize("flip", [False, True])
def test_small_loss_splits_two_clusters_exactly_whatever_their_order(flip):
    rng = np.random.default_rng(0)
    truth = np.repeat([False, True], [60, 40])
    losses = np.where(truth, 4.0, 0.3) + 0.1 * rng.standard_normal(100)
    if flip:
        truth, losses = truth[::-1], losses[::-1]
    is_noisy, p_noisy = small_loss_detector(losses)
    np.testing.assert_array_equal(is_noisy, truth)
    assert p_noisy[truth].min() > 0.95 > 0.05 > p_noisy[~truth].max()


def test_small_loss_leaves_unlabelled_rows_out_and_flags_them():
    losses = np.array([0.1, 0.2, 0.15, 0.12, 3.0, 3.1, 2.9])
    with_gap = np.insert(losses, 2, np.nan)
    is_noisy, p_noisy = small_loss_detector(with_gap)
    assert is_noisy[2]
    np.testing.assert_allclose(np.delete(p_noisy, 2), small_loss_detector(losses)[1])


def test_infinite_losses_count_as_the_largest_finite_one():
    np.testing.assert_allclose(min_max([1.0, 2.0, np.inf, 3.0]), [0, 0.5, 1, 1])


def test_threshold_is_a_posterior():
    losses = np.random.default_rng(0).gamma(1.0, size=300)
    _, p_noisy = small_loss_detector(losses)
    for threshold in (0.3, 0.95):
        np.testing.assert_array_equal(small_loss_detector(losses, threshold)[0], p_noisy > threshold)


@pytest.mark.parametrize("losses", [[1.0] * 10, [0.1, 0.9]])
def test_losses_that_tell_nothing_are_refused(losses):
    with pytest.raises(DegenerateDetectionError, match=r"nothing tells them apart|at least 3 samples"):
        small_loss_detector(losses)


def test_linear_separation_generalises_from_trusted_rows_and_ignores_the_length_of_a_row():
    rng = np.random.default_rng(0)
    truth = np.arange(200) % 2 == 0
    features = rng.standard_normal((200, 6)) + np.where(truth, 3.0, -3.0)[:, None] * np.eye(6)[0] + 1.0
    trusted = np.where(np.arange(200) < 100, ~truth, np.nan)
    is_noisy, p_noisy = linear_separation_detector(features, trusted)
    assert (is_noisy == truth).mean() > 0.95
    rescaled = features * rng.uniform(0.1, 10, size=(200, 1))
    np.testing.assert_allclose(linear_separation_detector(rescaled, trusted)[1], p_noisy, atol=1e-6)


def test_linear_separation_needs_both_sides():
    with pytest.raises(DegenerateDetectionError, match="all on one side"):
        linear_separation_detector(np.eye(4), [1, 1, np.nan, 1])


def test_confidence_is_one_on_unflagged_and_high_where_the_pseudo_loss_is_low():
    rng = np.random.default_rng(0)
    flagged = np.arange(90) % 3 > 0
    stable = np.arange(90) % 3 == 1
    losses = np.where(stable, 0.2, 2.0) + 0.05 * rng.standard_normal(90)
    confidence = pseudo_loss_confidence(losses, flagged)
    assert (confidence[~flagged] == 1).all()
    assert confidence[stable].min() > 0.9
    assert confidence[flagged & ~stable].max() < 0.1


def test_confidence_falls_back_to_one():
    with pytest.warns(DetectionWarning, match="trusted fully"):
        np.testing.assert_array_equal(pseudo_loss_confidence([1.0, 2.0, 3.0], [True, True, False]), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pseudo_loss_confidence([1.0, 2.0], [False, False]), 1)


# The per-sample state.


class ReadsItsIndex(nn.Module):
    """Logits and features spelt out in the image itself, so that what belongs to a row can be checked."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        rows = x.flatten(1)
        return 5 * rows[:, :3] + self.nothing, rows + self.nothing, [rows]


def index_readers(n=40):
    X = np.random.default_rng(0).random((n, 1, 4, 4)).astype(np.float32)
    return X, np.arange(n) % 3


def test_guesses_are_scattered_by_sample_not_by_position():
    X, y = index_readers()
    pls = short(PLSClassifier, backbone=ReadsItsIndex(), augment=AS_IS, epochs=2, batch_size=7)
    trainer = trainer_of(pls, X, y)
    trainer.run_epoch()
    trainer.run_epoch()
    expected = F.softmax(5 * torch.from_numpy(X).flatten(1)[:, :3], dim=1)
    seen = ~torch.isclose(trainer.guesses[0], trainer.onehot).all(1)
    assert seen.sum() == 40  # the last short batch of five too
    torch.testing.assert_close(trainer.guesses[0], expected)
    assert trainer.flagged.any()
    assert not trainer.flagged.all()
    corrected = trainer.corrected(torch.arange(40))
    torch.testing.assert_close(corrected[trainer.flagged], sharpen(expected, 2.0)[trainer.flagged])
    torch.testing.assert_close(corrected[~trainer.flagged], trainer.onehot[~trainer.flagged])


def test_unlabelled_rows_are_flagged_from_the_start_and_have_no_loss():
    X, y = index_readers()
    y[:8] = -1
    pls = short(PLSClassifier, backbone=ReadsItsIndex(), augment=AS_IS, epochs=3)
    trainer = trainer_of(pls, X, y)
    assert trainer.flagged.nonzero().flatten().tolist() == list(range(8))
    fitted = pls.fit(X, y)
    assert fitted.is_noisy_[:8].all()
    assert (fitted.noise_proba_[:8] == 1).all()
    losses = -F.log_softmax(5 * torch.from_numpy(X).flatten(1)[:, :3], dim=1).double().numpy()[np.arange(40), y]
    expected, _ = small_loss_detector(losses[8:], 0.5, random_state=0)
    np.testing.assert_array_equal(fitted.is_noisy_[8:], expected)


def test_degenerate_detection_keeps_the_flags_and_warns():
    X, y = index_readers()
    trainer = trainer_of(short(PLSClassifier, backbone=ReadsItsIndex(), augment=AS_IS), X, y)
    trainer.flagged[3] = True
    with pytest.warns(DetectionWarning, match="kept the flags it had"):
        found = trainer.detect(0, torch.zeros(40, 3), torch.zeros(40, 2))
    assert found.detector == "kept"
    assert np.flatnonzero(found.is_noisy).tolist() == [3]
    assert (found.confidence == 1).all()


@pytest.mark.parametrize("guard", [True, False])
def test_guard_steps_in_when_the_small_loss_detector_cannot_teach(guard):
    X, y = index_readers(100)
    lsa = short(LSAClassifier, backbone=ReadsItsIndex(), augment=AS_IS, guard=guard, feature_layer=0)
    trainer = trainer_of(lsa, X, y)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((100, 3)).astype(np.float32)
    few = np.where(np.arange(100) < 5, 5.0, 0.1) + 0.01 * rng.random(100)
    found = trainer.flag("linear", few, features)
    assert (found.detector, found.guarded) == (("loss", True) if guard else ("linear", False))

    # An eighth is flagged and looks like the rows of the lowest losses, so the hyperplane ranks against the loss.
    losses = np.r_[np.full(12, 5.0), np.linspace(0, 0.5, 88)] + 0.01 * rng.random(100)
    features = np.r_[np.linspace(-1, 0, 12), np.linspace(-1, 1, 88)][:, None] * [1.0, 0, 0] + [0, 1.0, 0]
    found = trainer.flag("linear", losses, features)
    assert (found.detector, found.guarded) == (("loss", True) if guard else ("linear", False))

    agreeing = np.r_[np.full(30, 2.0), np.full(70, -2.0)][:, None] * [1.0, 0, 0] + 0.1 * rng.standard_normal((100, 3))
    losses = np.r_[np.full(30, 5.0), np.full(70, 0.1)] + 0.01 * rng.random(100)
    found = trainer.flag("linear", losses, agreeing)
    assert (found.detector, found.guarded) == ("linear", False)
    np.testing.assert_array_equal(found.is_noisy, np.arange(100) < 30)


def test_two_networks_must_agree_and_share_confidence():
    X, y = index_readers(4)
    trainer = trainer_of(short(LSAClassifier, backbone=ReadsItsIndex(), augment=AS_IS, feature_layer=0), X, y)
    first = np.array([True, True, False, False])
    second = np.array([True, False, True, False])
    trainer.combine(
        [
            _Detection(first, np.full(4, 0.8), np.array([0.2, 0.1, 1, 1]), "linear", linear=first),
            _Detection(second, np.full(4, 0.6), np.array([0.4, 1, 0.1, 1]), "linear", linear=second),
        ]
    )
    assert trainer.flagged.tolist() == [True, False, False, False]
    torch.testing.assert_close(trainer.confidence, torch.tensor([0.3, 1, 1, 1]))
    assert trainer.is_ood.tolist() == [True, False, False, False]
    np.testing.assert_allclose(trainer.ood_score, [0.7 * 0.7, 0, 0, 0], atol=1e-6)


def test_detectors_follow_warm_up_and_schedule():
    X, y = digits()
    detectors = [row["detector"] for row in short(PLSClassifier, warmup=2).fit(X, y).history_]
    assert detectors == ["none", "loss", "loss", "loss"]
    lsa = short(LSAClassifier, warmup=0, guard=False).fit(X, y)
    assert [row["detector"] for row in lsa.history_] == ["linear", "loss", "linear", "loss"]
    assert [("con" in row) for row in lsa.history_] == [False, True, True, True]
    alone = short(LSAClassifier, warmup=1, guard=False, schedule=("linear",)).fit(X, y)
    assert [row["detector"] for row in alone.history_] == ["none", "linear", "linear", "linear"]


# The estimators.


def flipped_digits(share=0.3, n=600):
    X, truth = digits(n, 5)
    rng = np.random.default_rng(0)
    y, wrong = truth.copy(), rng.random(len(truth)) < share
    y[wrong] = (y[wrong] + rng.integers(1, 5, wrong.sum())) % 5
    return X, y, truth, wrong


@pytest.mark.parametrize("cls", [PLSClassifier, LSAClassifier])
def test_finds_and_corrects_flipped_digits(cls):
    X, y, truth, wrong = flipped_digits()
    method = short(cls, backbone=network(5, (16, 32)), epochs=12, warmup=4, lr=0.1).fit(X, y)
    assert roc_auc_score(wrong, method.noise_proba_) > 0.95
    corrected = method.corrected_label_proba_.argmax(1)
    assert (corrected == truth).mean() > (y == truth).mean() + 0.1
    assert method.score(X, truth) > 0.9
    np.testing.assert_allclose(method.corrected_label_proba_.sum(1), 1, atol=1e-5)
    assert (method.confidence_[~method.is_noisy_] == 1).all()
    assert ((method.confidence_ >= 0) & (method.confidence_ <= 1)).all()


def test_equal_seeds_agree_and_nothing_of_the_caller_changes():
    X, y = digits(150)
    backbone = network()
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}
    X_before, y_before = X.copy(), y.copy()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = short(LSAClassifier, backbone=backbone, guard=False).fit(X, y)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    np.testing.assert_array_equal(X, X_before)
    np.testing.assert_array_equal(y, y_before)
    assert all(torch.equal(value, weights[name]) for name, value in backbone.state_dict().items())
    second = clone(first).fit(X, y)
    np.testing.assert_array_equal(first.noise_proba_, second.noise_proba_)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    other = clone(first).set_params(random_state=1).fit(X, y)
    assert not np.array_equal(first.noise_proba_, other.noise_proba_)


def test_epoch_by_epoch_equals_a_whole_fit():
    X, y = digits(150)
    whole = short(LSAClassifier, guard=False).fit(X, y)
    pieces = short(LSAClassifier, guard=False)
    for epoch in range(4):
        pieces.partial_epoch(*((X, y) if epoch == 0 else ()))
        assert len(pieces.history_) == epoch + 1
    np.testing.assert_array_equal(pieces.noise_proba_, whole.noise_proba_)
    np.testing.assert_allclose(pieces.predict_proba(X), whole.predict_proba(X), atol=1e-6)
    with pytest.raises(ValueError, match="first call of partial_epoch needs X and y"):
        pieces.partial_epoch()


def test_an_interrupted_training_goes_on_where_it_stopped():
    X, y = digits(150)
    whole = trainer_of(short(LSAClassifier, guard=False), X, y)
    broken = trainer_of(short(LSAClassifier, guard=False), X, y)
    for _ in range(2):
        broken.run_epoch()
    state = broken.state_dict()
    resumed = short(LSAClassifier, guard=False)._trainer_for(0, X, y, None, None)
    resumed.load_state_dict(state)
    resumed.fit(resumed.images)
    for _ in range(4):
        whole.run_epoch()
    np.testing.assert_allclose(resumed.noise_proba, whole.noise_proba, atol=1e-4)
    torch.testing.assert_close(resumed.confidence, whole.confidence, atol=1e-4, rtol=0)


class Listed(Dataset):
    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, row):
        row = len(self.X) - 1 - row  # not in the order of the indices
        return self.X[row][None], self.y[row], row


def test_a_dataset_gives_what_its_arrays_give():
    X, y = digits(120)
    from_arrays = short(PLSClassifier, epochs=2).fit(X, y)
    from_dataset = short(PLSClassifier, epochs=2).fit(Listed(X, y))
    np.testing.assert_array_equal(from_arrays.noise_proba_, from_dataset.noise_proba_)


def test_rows_of_a_table_with_views_of_their_own():
    X, y = digits(200, 4)
    X = X.reshape(len(X), -1)
    torch.manual_seed(0)
    backbone = ProjectingClassifier(MLPEncoder(64, (32, 16)), 4, 8)
    noise = {name: (lambda rows: rows + 0.05 * torch.randn_like(rows)) for name in VIEWS}
    lsa = short(LSAClassifier, backbone=backbone, augment=noise, epochs=8).fit(X, y)
    assert lsa.score(X, y) > 0.8


def test_co_training_averages_two_networks():
    X, y = digits(150)
    lsa = short(LSAClassifier, co_train=True, guard=False).fit(X, y)
    assert len(lsa.networks_) == 2
    assert lsa.network_ is lsa.networks_[0]
    with torch.no_grad():
        logits = [member(torch.from_numpy(X)[:, None])[0] for member in lsa.networks_]
    assert not torch.allclose(*logits)
    np.testing.assert_allclose(lsa.predict_proba(X), F.softmax(sum(logits) / 2, dim=1).numpy(), atol=1e-5)


def test_validation_accuracy_joins_the_history():
    X, y = digits(200)
    pls = short(PLSClassifier).fit(X[:150], y[:150], X[150:], y[150:])
    assert pls.history_[-1]["val_accuracy"] == pytest.approx(pls.score(X[150:], y[150:]))


def test_outsiders_need_the_hyperplane():
    X, y = digits(150)
    never = short(LSAClassifier, schedule=("loss",)).fit(X, y)
    assert not never.is_ood_.any()
    assert not never.ood_score_.any()
    used = short(LSAClassifier, schedule=("linear",), guard=False).fit(X, y)
    np.testing.assert_array_equal(used.is_ood_, used.is_noisy_ & (used.confidence_ < 0.5))


def test_initial_weights_are_taken_and_misfits_refused():
    X, y = digits(60)
    donor = network(seed=7)
    for state in (donor.encoder.state_dict(), donor.state_dict()):
        trainer = trainer_of(short(LSAClassifier, init_state=state), X, y)
        encoder = trainer.plain_network.members[0].encoder.state_dict()
        assert all(torch.equal(value, donor.encoder.state_dict()[name]) for name, value in encoder.items())
    with pytest.raises(ValueError, match="init_state does not fit the backbone"):
        short(LSAClassifier, init_state=network(channels=(8, 12)).state_dict()).fit(X, y)


def test_a_named_backbone_without_initial_weights_is_warned_about():
    X, y = digits(40, 2)
    lsa = LSAClassifier("resnet20", epochs=1, batch_size=20, guard=False, random_state=0)
    with pytest.warns(UserWarning, match="starts from random weights"):
        lsa.fit(X, y)
    assert lsa.predict(X).shape == (40,)


def test_registered():
    assert get_method("lsa", "label_noise").cls is LSAClassifier


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"warmup": 4}, "warmup=4 leaves no epoch"),
        ({"feature_layer": 2}, r"feature_layer=2 is out of range: the backbone has the stages 0\.\.1"),
        ({"feature_layer": -1}, "feature_layer=-1 is out of range"),
        ({"schedule": ("linear", "both")}, "schedule must be a sequence"),
        ({"guess_views": ()}, "guess_views must name"),
        ({"n_classes": 12}, "gives 10 logits, but there are 12 classes"),
        ({"lr": 0.0}, "'lr' parameter"),
        ({"backbone": "resnet9000"}, "'backbone' parameter"),
        ({"augment": {"weak": VIEWS["weak"]}}, "augment must offer a view 'contrastive'"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    X, y = digits(30)
    with pytest.raises(ValueError, match=message):
        short(LSAClassifier, **parameters).fit(X, y)


def test_bad_data_are_named():
    X, y = digits(30)
    with pytest.raises(ValueError, match="at least 2 classes"):
        short(PLSClassifier).fit(X, np.zeros(30, dtype=int))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.9, got 10"):
        short(PLSClassifier, n_classes=10).fit(X, np.r_[10, y[1:]])
    with pytest.raises(ValueError, match="below -1"):
        short(PLSClassifier).fit(X, np.r_[-2, y[1:]])
    broken = X.copy()
    broken[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="first at row 3"):
        short(PLSClassifier).fit(broken, y)
    with pytest.raises(ValueError, match="y is missing"):
        short(PLSClassifier).fit(X)
    with pytest.raises(ValueError, match="must return"):
        short(LSAClassifier, backbone=nn.Flatten()).fit(X, y)
    fitted = short(PLSClassifier, epochs=2).fit(X, y)
    with pytest.raises(ValueError, match="as in fit"):
        fitted.predict(X[:, :6])

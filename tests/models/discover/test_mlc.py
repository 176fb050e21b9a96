"""MLC: coding rates against their definitions, memberships, and the estimator on the digits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn

from models.base import isolated_seed
from models.discover.mlc import (
    MLC,
    MLCNetwork,
    cluster_rate,
    coding_rate,
    coding_rate_reduction,
    leads,
    memberships,
    spectral_labels,
    subspace,
    tcr_loss,
)
from models.metrics import clustering_scores
from models.networks.mlp import MLPEncoder

IMAGES = (load_digits().images / 16).astype(np.float32)
ROWS, CLASSES = IMAGES.reshape(len(IMAGES), -1), load_digits().target
SMALL = {"feature_dim": 8, "tcr_epochs": 2, "epochs": 2, "eta": 0.5, "batch_size": 60, "random_state": 0}


@pytest.fixture(scope="module")
def unit():
    """60 digits on the unit sphere of 12 principal components, and their classes of three."""
    chosen = np.flatnonzero(CLASSES < 3)[:60]
    rows = PCA(12, random_state=0).fit_transform(ROWS[chosen])
    return F.normalize(torch.from_numpy(rows).double(), dim=1), CLASSES[chosen]


@pytest.fixture(scope="module")
def learnt():
    """MLC on the digits 0 to 4, and what k-means makes of their pixels."""
    chosen = np.flatnonzero(CLASSES < 5)[:600]
    settings = {"feature_dim": 16, "tcr_epochs": 15, "epochs": 12, "eta": 0.2, "batch_size": 150, "lr": 3e-4}
    method = MLC(5, backbone=MLPEncoderOf(), lr_cluster=3e-4, random_state=0, **settings).fit(ROWS[chosen])
    return method, ROWS[chosen], CLASSES[chosen]


def MLPEncoderOf():
    with isolated_seed(0):
        return MLPEncoder(64, (128, 64))


# ---- the rates -------------------------------------------------------------------------------------------


def test_one_cluster_of_all_has_the_rate_of_all(unit):
    Z, _ = unit
    gamma = torch.full((60, 60), 1 / 60, dtype=torch.float64)
    assert float(coding_rate_reduction(Z, gamma)) == pytest.approx(0, abs=1e-9)
    assert float(coding_rate_reduction(Z.float(), gamma.float())) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("eps2", [0.2, 0.01])
def test_every_sample_alone_has_the_rate_of_one_direction(unit, eps2):
    Z, _ = unit
    expected = np.log(1 + 12 / eps2)
    assert float(cluster_rate(Z, torch.eye(60).double(), eps2)) == pytest.approx(expected, abs=1e-9)


def test_memberships_of_blocks_give_the_rate_of_hard_labels(unit):
    Z, classes = unit
    same = torch.from_numpy(classes[:, None] == classes)
    gamma = same.double() / same.sum(dim=0)
    expected = 0.0
    for label in range(3):
        part = Z[classes == label]
        whole = torch.eye(12).double() + 12 / (len(part) * 0.2) * part.T @ part
        expected += len(part) / 60 * float(torch.logdet(whole))
    assert float(cluster_rate(Z, gamma)) == pytest.approx(expected, abs=1e-9)
    assert float(coding_rate_reduction(Z, gamma)) > 1


def test_the_rate_of_all_is_its_definition(unit):
    Z, _ = unit
    inner = torch.eye(60).double() + 12 / (60 * 0.2) * Z @ Z.T  # the same determinant, in the samples' space
    assert float(coding_rate(Z)) == pytest.approx(float(torch.logdet(inner)), abs=1e-9)


def test_rotated_features_have_the_same_rates(unit):
    Z, _ = unit
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)).double())
    gamma = memberships(Z, 0.2)
    for rate in (lambda rows: coding_rate(rows), lambda rows: cluster_rate(rows, gamma)):
        torch.testing.assert_close(rate(Z @ rotation), rate(Z))


def test_the_cluster_rate_comes_in_blocks(unit, monkeypatch):
    Z, _ = unit
    gamma = memberships(Z, 0.2)
    whole = cluster_rate(Z, gamma)
    monkeypatch.setattr("models.discover.mlc.BLOCK", 7 * 12**2)
    torch.testing.assert_close(cluster_rate(Z, gamma), whole)


def test_rates_have_the_gradients_of_their_values(unit):
    Z = unit[0][:6, :4].clone().requires_grad_()
    codes = F.normalize(unit[0][6:12, :4], dim=1).clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda Z, codes: coding_rate_reduction(Z, memberships(codes, 0.5, 200)), (Z, codes), atol=1e-4
    )


def test_memberships_are_doubly_stochastic_and_symmetric(unit):
    gamma = memberships(unit[0].float(), 0.15)
    torch.testing.assert_close(gamma.sum(0), torch.ones(60), atol=1e-5, rtol=0)
    torch.testing.assert_close(gamma.sum(1), torch.ones(60), atol=1e-5, rtol=0)
    torch.testing.assert_close(gamma, gamma.T)
    diagonals = [float(memberships(unit[0], eta).diagonal().mean()) for eta in (0.05, 0.15, 0.5)]
    assert diagonals == sorted(diagonals, reverse=True)


def test_the_pretraining_loss_wants_room_and_agreement(unit):
    Z, _ = unit
    same = float(tcr_loss(Z, Z))
    assert same == pytest.approx(-float(coding_rate(Z)) - 30)
    assert float(tcr_loss(Z, Z[torch.randperm(60, generator=torch.Generator().manual_seed(0))])) > same
    collapsed = Z[:1].expand(60, -1)
    assert float(tcr_loss(collapsed, collapsed)) > same


def test_spectral_labels_cut_blocks():
    truth = np.repeat([0, 1, 2], [10, 20, 30])
    gamma = 0.9 * (truth[:, None] == truth) / np.bincount(truth)[truth] + 0.1 / 60
    assert clustering_scores(truth, spectral_labels(gamma, 3))["accuracy"] == 1


def test_a_subspace_holds_its_share():
    rows = np.zeros((40, 5), dtype=np.float32)
    rows[:, 1], rows[:20, 3], rows[0, 4] = 1, 1, 0.1
    basis = subspace(rows)
    assert basis.shape == (5, 2)
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(np.abs(basis[[0, 2, 4]]), 0, atol=1e-2)
    assert subspace(rows, energy=1.0).shape == (5, 3)


def test_the_lead_tells_clear_from_torn():
    lengths = np.array([[1.0, 0.0], [0.6, 0.6], [0.0, 1.0]])
    assert leads(lengths, np.array([0, 0, 0])).tolist() == pytest.approx([1, 0, 0])


# ---- the estimator ---------------------------------------------------------------------------------------


def test_learning_beats_k_means_on_pixels(learnt):
    method, X, y = learnt
    pixels = KMeans(5, n_init=10, random_state=0).fit(X).labels_
    found = clustering_scores(y, method.labels_)["nmi"]
    assert found > 0.7
    assert found > clustering_scores(y, pixels)["nmi"] - 0.1


def test_the_rate_reduction_grows_and_clusters_get_flat(learnt):
    method, X, _ = learnt
    assert method.rate_history_.shape == (12, 3)
    np.testing.assert_allclose(
        method.rate_history_[:, 2], method.rate_history_[:, 0] - method.rate_history_[:, 1], atol=1e-4
    )
    assert method.rate_history_[-1, 2] > method.rate_history_[0, 2] + 0.5
    whole = subspace(method.transform(X)).shape[1]
    assert method.ranks_.mean() < whole


def test_what_is_fitted_fits_together(learnt):
    method, X, _ = learnt
    Z = method.transform(X)
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, atol=1e-5)
    assert (method.n_clusters_, len(method.subspaces_), method.ranks_.tolist()) == (
        5,
        5,
        [basis.shape[1] for basis in method.subspaces_],
    )
    gamma = method.membership(X)
    np.testing.assert_allclose(gamma.sum(axis=0), 1, atol=1e-4)
    assert (method.predict(X) == method.labels_).mean() > 0.85
    assert method.confidences_.min() >= 0
    assert method.confidences_.max() <= 1
    assert method.confidences_[method.predict(X) != method.labels_].max(initial=0) == 0
    assert method.n_iter_ == len(method.history_) == 12
    assert len(method.tcr_history_) == 15


def test_samples_beyond_the_first_go_to_the_nearest_subspace():
    method = MLC(3, assign_sample=40, **SMALL).fit(ROWS[:120])
    assert method.labels_.shape == (120,)
    assert (method.predict(ROWS[:120]) == method.labels_).sum() >= 80
    with pytest.raises(ValueError, match="X holds 41 samples, more than assign_sample=40"):
        method.membership(ROWS[:41])


def test_images_of_every_kind_have_a_default():
    grey = MLC(3, **SMALL).fit(IMAGES[:80])
    assert grey.transform(IMAGES[:5]).shape == (5, 8)
    colour = np.repeat(IMAGES[:70, None], 3, axis=1)
    assert MLC(3, **SMALL).fit(colour).predict(colour[:4]).shape == (4,)


def test_the_cluster_head_starts_as_the_feature_head():
    with isolated_seed(0):
        net = MLCNetwork(MLPEncoder(64, (16,)), 16, 8, head_hidden=12).eval()
    x = torch.from_numpy(ROWS[:10])
    features, codes = net(x)
    assert not torch.allclose(features, codes)
    net.start_clusters()
    features, codes = net(x)
    assert torch.equal(features, codes)


def test_a_trained_network_goes_on_without_pretraining():
    first = MLC(3, head_hidden=12, **SMALL).fit(ROWS[:80])
    before = {name: value.clone() for name, value in first.network_.state_dict().items()}
    second = MLC(3, backbone=first.network_, pretrain=None, **(SMALL | {"lr": 1e-9, "lr_cluster": 1e-9}))
    second.fit(ROWS[:80])
    assert second.tcr_history_ == []
    assert all(torch.equal(before[name], value) for name, value in first.network_.state_dict().items())
    weight = "feature_head.3.weight"
    torch.testing.assert_close(second.network_.state_dict()[weight], before[weight], atol=1e-5, rtol=0)


def test_own_backbone_views_and_the_other_optimiser():
    with isolated_seed(0):
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
    before = backbone[1].weight.detach().clone()
    seen = []

    def views(batch):
        seen.append(len(batch))
        return batch

    method = MLC(3, backbone=backbone, augment=views, n_views=3, optimizer="sgd", **SMALL).fit(IMAGES[:120])
    assert torch.equal(backbone[1].weight, before)
    assert set(seen) == {60}
    assert len(seen) == 2 * 2 * 2 + 2 * 2 * 3  # epochs, batches, views, of both trainings
    assert method.labels_.shape == (120,)


# ---- odd input -------------------------------------------------------------------------------------------


def test_too_small_an_eta_is_told():
    with pytest.warns(UserWarning, match="Samples begin as clusters of their own: the mean diagonal"):
        MLC(3, **(SMALL | {"eta": 0.01})).fit(ROWS[:80])


def test_too_small_an_eta_is_told_of_rows_in_the_order_of_their_classes():
    order = np.argsort(CLASSES[:400], kind="stable")
    settings = SMALL | {"feature_dim": 32, "eta": 0.15, "batch_size": 40, "epochs": 1}
    with pytest.warns(UserWarning, match="where 0.3 is right"):
        MLC(10, **settings).fit(ROWS[:400][order])


def test_labels_change_nothing_even_when_all_are_known():
    plain, told = MLC(3, **SMALL).fit(ROWS[:80]), MLC(3, **SMALL).fit(ROWS[:80], CLASSES[:80])
    np.testing.assert_array_equal(plain.labels_, told.labels_)


def test_duplicates_constants_and_noise_are_clustered_all_the_same():
    noise = np.random.default_rng(0).normal(size=(40, 6))
    noise[:, 2] = 5.0
    method = MLC(3, **SMALL).fit(np.concatenate([noise, noise]))
    np.testing.assert_array_equal(method.labels_[:40], method.labels_[40:])
    assert np.isfinite(method.confidences_).all()


def test_one_cluster_holds_everything():
    method = MLC(1, **SMALL).fit(ROWS[:80])
    assert (method.labels_ == 0).all()
    assert (method.n_clusters_, len(method.subspaces_)) == (1, 1)
    assert (method.confidences_.min() >= 0, method.confidences_.max() <= 1) == (True, True)


@pytest.mark.parametrize(
    ("settings", "X", "message"),
    [
        ({"n_clusters": 0}, ROWS[:80], "'n_clusters' parameter of MLC must be an int in the range"),
        ({"eps2": 0}, ROWS[:80], "'eps2' parameter of MLC must be a float in the range"),
        ({"eta": 0.0}, ROWS[:80], "'eta' parameter of MLC must be a float in the range"),
        ({"batch_size": 5}, ROWS[:80], "at least 2 samples a cluster, 6, got batch_size=5 and n_samples=80"),
        ({"assign_sample": 2}, ROWS[:80], "assign_sample must be at least n_clusters=3, got 2"),
        ({"backbone": MLCNetwork(MLPEncoder(5), 64, 8)}, ROWS[:80], "The encoder does not take"),
        ({}, ROWS[:5], "at least 2 samples a cluster, 6, got batch_size=60 and n_samples=5"),
        ({}, ROWS[:2], "n_samples=2 must be at least n_clusters=3"),
        ({}, np.repeat(ROWS[:2], 9, axis=0), "X holds 2 distinct rows, fewer than n_clusters=3"),
        ({}, np.where(np.eye(80, 64) > 0, np.inf, 0.5), "X contains NaN or infinite"),
        ({"backbone": MLPEncoder(5)}, ROWS[:80], "The encoder does not take"),
    ],
)
def test_bad_input_is_refused(settings, X, message):
    with pytest.raises(ValueError, match=message):
        MLC(**({"n_clusters": 3} | SMALL | settings)).fit(X)


def test_samples_of_another_shape_are_refused(learnt):
    with pytest.raises(ValueError, match="X has 60 features, but MLC is expecting 64"):
        learnt[0].predict(ROWS[:3, :60])

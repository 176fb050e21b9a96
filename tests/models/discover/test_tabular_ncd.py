"""PBN on the digits: its latent space, its loss, and what it refuses."""

import numpy as np
import pytest
import sklearn
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import StandardScaler

from models.discover.hidden_classes import estimate_n_novel
from models.discover.tabular_ncd import PBN, PBNNetwork, pbn_loss
from models.metrics import hungarian_accuracy
from tests.models.discover.partly_named import name_of, sklearn_contract


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X = np.delete(X, [0, 32, 39], axis=1)[:600]
    return StandardScaler().fit_transform(X), y[:600], np.where(y[:600] < 5, y[:600], -1)


@pytest.fixture(scope="module")
def fitted(digits):
    X, _, y = digits
    return PBN(5, epochs=25, batch_size=64, w=0.1, random_state=0).fit(X, y)


CONTRACT = [
    pair
    for pair in sklearn_contract(PBN, n_novel=1, epochs=1, latent_dim=2)
    if "check_methods_subset_invariance" not in str(pair)  # float32: latents of one row and of many differ in digit 7
]


@pytest.mark.parametrize(("estimator", "check"), CONTRACT, ids=name_of)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_latents_have_unit_length(digits, fitted):
    X, _, _ = digits
    latents = fitted.transform(X)
    assert latents.shape == (600, 61)
    np.testing.assert_allclose(np.linalg.norm(latents, axis=1), 1.0, atol=1e-6)


def test_widths_are_as_published():
    network = PBNNetwork(61, 5, 58)
    shapes = [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert shapes == [(61, 45), (45, 30), (30, 58), (58, 30), (30, 45), (45, 61), (58, 5)]
    kinds = [type(m).__name__ for m in network.encoder]
    assert kinds == ["Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]


@pytest.mark.parametrize(("w", "part"), [(1.0, "decoder"), (0.0, "head")])
def test_the_weight_silences_one_part(digits, w, part):
    X, _, y = digits
    torch.manual_seed(0)
    network = PBNNetwork(61, 5, 8)
    x, targets = torch.from_numpy(X[:40]).float(), torch.from_numpy(y[:40])
    _, reconstruction, logits = network(x)
    pbn_loss(logits, targets, reconstruction, x, w)[0].backward()
    gradients = {
        name: sum(float(p.grad.abs().sum()) for p in getattr(network, name).parameters() if p.grad is not None)
        for name in ("encoder", "decoder", "head")
    }
    assert gradients.pop(part) == 0.0
    assert all(value > 0 for value in gradients.values())


def test_reconstruction_is_summed_over_features_and_classification_over_known_rows():
    x, reconstruction = torch.zeros(2, 3), torch.ones(2, 3)
    logits, y = torch.zeros(2, 4, requires_grad=True), torch.tensor([1, -1])
    total, terms = pbn_loss(logits, y, reconstruction, x, 0.25)
    assert terms["mse"] == 3.0
    assert terms["ce"] == pytest.approx(np.log(4))
    assert total.item() == pytest.approx(0.25 * np.log(4) + 0.75 * 3)
    nobody, terms = pbn_loss(logits, torch.tensor([-1, -1]), reconstruction, x, 0.25)
    assert terms["ce"] == 0.0
    assert nobody.item() == 2.25


def test_it_finds_the_hidden_digits_and_names_the_others(digits, fitted):
    X, truth, y = digits
    novel = y < 0
    assert (fitted.labels_[~novel] == y[~novel]).all()
    assert sorted(set(fitted.labels_[novel])) == [5, 6, 7, 8, 9]
    assert (fitted.predict(X[novel]) + 5 == fitted.labels_[novel]).all()
    assert hungarian_accuracy(truth[novel], fitted.labels_[novel]) > 0.8
    assert (fitted.predict_known(X[~novel]) == y[~novel]).mean() > 0.9
    assert (fitted.n_novel_, fitted.n_clusters_, fitted.cluster_centers_.shape) == (5, 10, (5, 61))
    assert fitted.history_[-1]["loss"] < fitted.history_[0]["loss"]
    assert {"loss", "ce", "mse"} <= set(fitted.history_[0])


def test_permuted_names_change_nothing_but_names(digits):
    X, _, y = digits
    names = np.array([3, 0, 4, 1, 2])
    renamed = np.where(y >= 0, names[y], -1)
    first, second = (PBN(5, epochs=2, random_state=0).fit(X, labels) for labels in (y, renamed))
    assert (first.labels_[y < 0] == second.labels_[y < 0]).all()
    assert (first.transform(X) == second.transform(X)).all()
    assert (names[first.predict_known(X)] == second.predict_known(X)).all()


def test_the_raw_space_is_clustered_when_asked(digits):
    X, _, y = digits
    raw, normal = (PBN(5, epochs=2, cluster_space=space, random_state=0).fit(X, y) for space in ("raw", "normalized"))
    assert np.linalg.norm(normal.novel_centers_, axis=1).max() <= 1 + 1e-6
    assert np.linalg.norm(raw.novel_centers_, axis=1).max() > 1
    assert (raw.predict(X[y < 0]) + 5 == raw.labels_[y < 0]).all()


def test_the_number_of_classes_is_estimated_in_the_latent_space(digits):
    X, _, y = digits
    found = PBN(epochs=10, batch_size=64, w=0.1, random_state=0).fit(X, y)
    assert found.n_novel_ == estimate_n_novel(found.transform(X[y < 0]), random_state=0).n_clusters
    assert len(set(found.labels_[y < 0])) == found.n_novel_ == len(found.novel_centers_) > 1


def test_latents_may_come_as_a_table(digits, fitted):
    X, _, _ = digits
    names = fitted.predict_known(X)
    with sklearn.config_context(transform_output="pandas"):
        assert fitted.transform(X).shape == (600, 61)
        assert (fitted.predict_known(X) == names).all()


def test_constant_and_duplicate_rows_are_no_trouble(digits):
    X, _, y = digits
    twice = np.concatenate([X[:40], X[:40]])
    twice[:, 3] = 0.0
    found = PBN(2, epochs=1, random_state=0).fit(twice, np.concatenate([y[:40], y[:40]]))
    assert (found.labels_[:40] == found.labels_[40:]).all()
    with pytest.raises(ValueError, match="No number of clusters can be tried"):
        PBN(epochs=1, random_state=0).fit(np.ones((8, 2)), [0, 0, 1, 1, -1, -1, -1, -1])


@pytest.mark.parametrize(
    ("settings", "y", "message"),
    [
        ({}, [0, 1, 0, 1, 0, 1], "y labels all 6 rows"),
        ({}, [0, 0, 0, -1, -1, -1], "at least 2 classes"),
        ({"n_novel": 3}, [0, 1, 0, 1, -1, -1], "n_novel=3 classes cannot be found in the 2 distinct rows"),
        ({"w": 1.5}, [0, 1, 0, 1, -1, -1], "'w' parameter of PBN"),
        ({}, None, "requires y to be passed"),
    ],
)
def test_what_cannot_be_is_refused(settings, y, message):
    with pytest.raises(ValueError, match=message):
        PBN(**settings).fit(np.arange(6.0)[:, None], y)


def test_nan_is_refused_and_transform_waits_for_fit():
    with pytest.raises(ValueError, match="X contains NaN"):
        PBN(1).fit([[0.0], [np.nan], [1.0]], [0, 1, -1])
    with pytest.raises(NotFittedError, match="fit"):
        PBN(1).transform([[0.0]])


def test_a_table_of_two_columns_is_seen_whole():
    novel, truth = make_blobs(150, centers=[(-2, 0), (0, 2), (2, 0)], cluster_std=0.2, random_state=0)
    named, y = make_blobs(100, centers=[(4, 4), (4, -4)], cluster_std=0.2, random_state=0)
    X, y = np.concatenate([novel, named]), np.concatenate([np.full(150, -1), y])
    found = PBN(3, epochs=60, random_state=0).fit(X, y).labels_[:150]
    assert hungarian_accuracy(truth, found) > 0.9

"""GPC on small digits: its losses, its draws, its epochs, and what it refuses."""

import math

import numpy as np
import pytest
import sklearn
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from models.base import isolated_seed
from models.discover.gcd_gpc import GPC, Prototypes, balanced_draws, contrastive_loss, prototype_loss
from models.losses import nt_xent, supervised_contrastive
from models.networks.convnet import ConvEncoder
from models.networks.mlp import MLPEncoder
from tests.models.discover.partly_named import name_of, sklearn_contract

MIXTURE = {"n_components_pca": 4, "psi_scale": "within", "n_init_clusters": 8, "kmeans_n_init": 2}


@pytest.fixture(scope="module")
def digits():
    bunch = load_digits()
    X, y = (bunch.images[:300] / 16).astype(np.float32), bunch.target[:300]
    return X, y, np.where((y < 5) & (np.arange(300) % 2 == 0), y, -1)


def encoder():
    with isolated_seed(0):
        return ConvEncoder((4, 8))


@pytest.fixture(scope="module")
def fitted(digits):
    X, _, y = digits
    return GPC(encoder(), epochs=4, batch_size=50, gmm_params=MIXTURE, random_state=0).fit(X, y)


def contract():
    """Without the check that subsets have bit-equal features: those of a network differ in the seventh digit."""
    small = {"epochs": 1, "batch_size": 16, "warmup_epochs": 0}
    checks = sklearn_contract(GPC, gmm_params={"n_components_pca": 1, "kmeans_n_init": 1}, **small)
    return [pair for pair in checks if "check_methods_subset_invariance" not in str(pair)]


@pytest.mark.parametrize(("estimator", "check"), contract(), ids=name_of)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_the_prototype_loss_sees_all_prototypes_at_their_own_temperature():
    features, prototypes = torch.eye(3)[:1], torch.eye(3)[:2]
    density = torch.tensor([0.5, 2.0])
    expected = -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + math.exp(0.0)))
    assert float(prototype_loss(features, prototypes, density, torch.tensor([0]))) == pytest.approx(expected)
    wrong = -math.log(math.exp(0.0) / (math.exp(1 / 0.5) + math.exp(0.0)))
    assert float(prototype_loss(features, prototypes, density, torch.tensor([1]))) == pytest.approx(wrong)


def test_the_contrast_weighs_all_views_against_labelled_ones():
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 4)
    labels = torch.tensor([0, 0, 1, -1, -1, -1])
    total, terms = contrastive_loss(first, second, labels, 0.35)
    views, supervised = nt_xent(first, second, 1.0), supervised_contrastive(first[:3], second[:3], labels[:3], 0.07)
    assert float(total) == pytest.approx(0.65 * float(views) + 0.35 * float(supervised), rel=1e-5)
    assert terms == {"nce": float(views), "supcon": float(supervised)}
    assert contrastive_loss(first, second, torch.full((6,), -1), 0.35)[1]["supcon"] == 0.0


def test_labelled_and_unlabelled_rows_are_drawn_alike():
    labels = np.where(np.arange(1000) < 100, 3, -1)
    drawn = torch.cat(list(balanced_draws(labels, 100, torch.Generator().manual_seed(0))))
    assert len(drawn) == 1000
    assert float((drawn < 100).float().mean()) == pytest.approx(0.5, abs=0.06)
    assert all(len(batch) == 300 for batch in balanced_draws(labels, 300, torch.Generator().manual_seed(0)))
    everything = torch.cat(list(balanced_draws(np.zeros(50, dtype=int), 10, torch.Generator().manual_seed(0))))
    assert len(everything) == 50


def test_the_e_step_gives_prototypes_of_unit_length_in_the_space_of_the_features(digits):
    X, _, y = digits
    features = F.normalize(torch.from_numpy(X).flatten(1), dim=1)
    step = Prototypes(y, MIXTURE, seed=0)
    step.update(features)
    assert step.centres.shape == (step.n_clusters, 64)
    assert torch.allclose(step.centres.norm(dim=1), torch.ones(step.n_clusters))
    assert float(step.density.mean()) == pytest.approx(1.0, abs=1e-5)
    assert len(step.clusters) == 300
    for label in range(5):
        assert len(set(step.clusters[torch.from_numpy(y == label)].tolist())) == 1


def test_prototypes_come_after_the_warm_up(fitted):
    assert "proto" not in fitted.history_[0]
    assert all("proto" in row and "clusters" in row for row in fitted.history_[1:])
    assert all(math.isfinite(row["loss"]) for row in fitted.history_)
    assert fitted.history_[-1]["loss"] < fitted.history_[1]["loss"]


def test_the_rate_falls_along_a_cosine(fitted):
    rates = [row["lr"] for row in fitted.history_]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] <= 0.1
    assert rates[-1] < 0.02


def test_labels_names_and_predictions_agree(digits, fitted):
    X, _, y = digits
    assert (fitted.labels_[y >= 0] == y[y >= 0]).all()
    assert sorted(set(fitted.labels_)) == list(range(fitted.n_classes_))
    free = y < 0
    assert (fitted.predict(X)[free] == fitted.labels_[free]).mean() > 0.99
    np.testing.assert_allclose(np.linalg.norm(fitted.transform(X), axis=1), 1.0, atol=1e-6)
    assert fitted.predict(X[:2, None]).shape == (2,)


def test_features_may_come_as_a_table(digits, fitted):
    X, _, _ = digits
    labels = fitted.predict(X)
    with sklearn.config_context(transform_output="pandas"):
        assert fitted.transform(X).columns[0] == "gpc0"
        assert (fitted.predict(X) == labels).all()


def test_the_given_encoder_is_copied_and_frozen_parts_stay(digits):
    X, _, y = digits
    given = encoder()
    given.blocks[0].requires_grad_(False)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    found = GPC(given, epochs=1, batch_size=100, gmm_params=MIXTURE, random_state=0).fit(X, y)
    assert all((value == before[name]).all() for name, value in given.state_dict().items())
    first, second = (block[0][0].weight for block in found.encoder_.blocks)
    assert (first == before["blocks.0.0.0.weight"]).all()
    assert (second != before["blocks.1.0.0.weight"]).any()


def test_rows_of_a_table_do_as_well(digits):
    X, _, y = digits
    found = GPC(epochs=1, batch_size=100, gmm_params=MIXTURE, random_state=0).fit(X.reshape(300, 64), y)
    assert isinstance(found.encoder_, MLPEncoder)
    assert found.transform(X.reshape(300, 64)).shape == (300, 64)


def test_rows_that_are_all_labelled_leave_nothing_to_find(digits):
    X, truth, _ = digits
    settings = MIXTURE | {"n_init_clusters": None}
    found = GPC(encoder(), epochs=2, batch_size=100, gmm_params=settings, random_state=0).fit(X, truth)
    assert (found.n_novel_, found.labels_.tolist()) == (0, truth.tolist())


@pytest.mark.parametrize(
    ("y", "settings", "message"),
    [
        (None, {}, "requires y to be passed, but the target y is None"),
        ([-1] * 20, {}, "y must hold at least one label"),
        ([0, 1] * 10, {"sup_weight": 2.0}, "'sup_weight' parameter of GPC"),
        (
            [0, 1] * 10,
            {"gmm_params": {"n_init_clusters": 1, "n_components_pca": 2}},
            "n_init_clusters=1 must lie between",
        ),
        ([0, 1] * 10, {"gmm_params": {}}, "must hold more rows than features"),
    ],
)
def test_what_cannot_be_is_refused(digits, y, settings, message):
    with pytest.raises(ValueError, match=message):
        GPC(epochs=1, warmup_epochs=1, **settings).fit(digits[0][:20], y)


def test_bad_pixels_and_shapes_are_refused(digits, fitted):
    X, _, y = digits
    with pytest.raises(ValueError, match="X contains NaN"):
        GPC(epochs=1).fit(np.where(X == X.max(), np.nan, X), y)
    with pytest.raises(ValueError, match="as in fit"):
        fitted.predict(X[:, :6])
    with pytest.raises(NotFittedError, match="fit"):
        GPC().predict(X)

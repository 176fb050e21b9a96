"""SP2OT: its equations, what it trains and what it leaves alone, and what it finds in digits of uneven classes."""

import math
import warnings

import numpy as np
import pytest
import sklearn
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

from models.base import isolated_seed
from models.discover.sp2ot import (
    LogitBank,
    PrototypeNetwork,
    SP2OTClustering,
    cosine_logits,
    cosine_to_a_thousandth,
    gaussian_neighbours,
    placed_share,
)
from models.networks.convnet import ConvEncoder
from models.networks.mlp import MLPEncoder

QUICK = {"init": "k-means", "epochs": 2, "pretrain_epochs": 1, "batch_size": 70, "mm_max_iter": 3, "random_state": 0}


@pytest.fixture(scope="module")
def uneven():
    """Digits 0 to 3 with 65, 40, 20 and 15 images."""
    data = load_digits()
    chosen = np.concatenate([np.flatnonzero(data.target == c)[:size] for c, size in enumerate((65, 40, 20, 15))])
    order = np.random.default_rng(0).permutation(chosen)
    return (data.images[order] / 16).astype(np.float32), data.target[order]


# ---- equations --------------------------------------------------------------------------------------------------


def test_logits_are_scaled_cosines():
    logits = cosine_logits(torch.tensor([[2.0, 0.0], [3.0, 3.0]]), torch.tensor([[0.5, 0.0], [0.0, 7.0]]), 10.0)
    torch.testing.assert_close(logits, torch.tensor([[10.0, 0.0], [50**0.5, 50**0.5]]))


def test_neighbours_are_gaussian_in_units_of_the_spread():
    X = load_digits().data[:50]
    found = gaussian_neighbours(X, 5, 2.0).toarray()
    distances = ((X[:, None] - X[None]) ** 2).sum(-1)
    expected = np.exp(-distances / (2 * 4 * X.var(axis=0).sum()))
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :5]
    assert (np.count_nonzero(found, axis=1) == 5).all()
    assert not found.diagonal().any()
    np.testing.assert_allclose(
        np.take_along_axis(found, nearest, 1), np.take_along_axis(expected, nearest, 1), atol=1e-12
    )


def test_neighbours_do_not_depend_on_the_unit_and_equal_rows_are_fully_alike():
    X = load_digits().data[:50]
    np.testing.assert_allclose(gaussian_neighbours(X, 5, 2.0).toarray(), gaussian_neighbours(1e3 * X, 5, 2.0).toarray())
    assert (gaussian_neighbours(np.ones((6, 2)), 3, 2.0).data == 1).all()


def test_for_unit_variances_the_scale_is_the_published_one():
    X = np.random.default_rng(0).normal(size=(200, 7))
    X = (X - X.mean(0)) / X.std(0)
    graph = gaussian_neighbours(X, 1, 2.0).tocoo()
    i, j = graph.coords
    np.testing.assert_allclose(graph.data, np.exp(-((X[i] - X[j]) ** 2).sum(1) / (2 * 4 * 7)))


def test_the_share_placed_grows_from_start_to_end():
    shares = [placed_share(0.1, 1.0, t) for t in np.linspace(0, 1, 50)]
    assert shares[0] == pytest.approx(0.1 + 0.9 * math.exp(-5))
    assert shares[-1] == 1.0
    assert (np.diff(shares) > 0).all()


def test_the_learning_rate_ends_at_a_thousandth():
    assert cosine_to_a_thousandth(0, 100) == 1.0
    assert cosine_to_a_thousandth(100, 100) == pytest.approx(1e-3)


def test_the_bank_keeps_the_newest_and_takes_the_other_view():
    bank = LogitBank(5)
    bank.push(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
    bank.push(torch.ones(3, 2), torch.tensor([3, 4, 5]))
    assert bank.index.tolist() == [1, 2, 3, 4, 5]
    assert bank.logits[:, 0].tolist() == [0, 0, 1, 1, 1]
    assert bank.with_last(torch.full((3, 2), 2.0))[:, 0].tolist() == [0, 0, 2, 2, 2]
    assert bank.logits[:, 0].tolist() == [0, 0, 1, 1, 1]


def test_layers_without_a_weight_to_train_stay_in_eval_mode():
    backbone = ConvEncoder((4, 8)).requires_grad_(False)
    backbone.blocks[-1].requires_grad_(True)
    network = PrototypeNetwork(backbone, torch.eye(8), 10.0).train()
    assert [layer.training for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)] == [False, True]


# ---- behaviour --------------------------------------------------------------------------------------------------


def test_uneven_digits_are_found(uneven):
    X, y = uneven
    method = SP2OTClustering(4, epochs=10, pretrain_epochs=10, batch_size=70, lr=5e-3, mm_max_iter=3, random_state=0)
    labels = method.fit_predict(X)
    assert normalized_mutual_info_score(y, labels) > 0.6
    assert (np.diff(method.cluster_sizes_) <= 0).all()
    assert method.cluster_sizes_.sum() == len(X)
    np.testing.assert_array_equal(method.predict(X), labels)
    np.testing.assert_allclose(method.predict_proba(X).sum(1), 1, rtol=1e-5)


def test_the_backbone_given_is_copied_and_its_frozen_part_stays(uneven):
    X, _ = uneven
    with isolated_seed(0):
        backbone = ConvEncoder((4, 8)).requires_grad_(False)
    backbone.blocks[-1].requires_grad_(True)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    method = SP2OTClustering(4, backbone=backbone, **QUICK).fit(X)
    after = method.backbone_.state_dict()
    assert all(torch.equal(backbone.state_dict()[key], before[key]) for key in before)
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("blocks.0"))
    assert not torch.equal(after["blocks.1.0.0.weight"], before["blocks.1.0.0.weight"])


def test_the_records_of_training(uneven):
    X, _ = uneven
    method = SP2OTClustering(4, **QUICK).fit(X)
    steps = [placed_share(0.1, 1.0, t / 4) for t in range(4)]  # 140 rows in batches of 70, two epochs
    np.testing.assert_allclose(method.rho_history_, steps)
    assert len(method.loss_curve_) == 2
    assert 1 <= len(method.mm_objective_) <= 3
    assert method.n_features_in_ == 64


def test_without_neighbours_or_progress_the_parts_are_gone(uneven):
    X, _ = uneven
    plain = SP2OTClustering(4, semantic=False, progressive=False, **QUICK).fit(X)
    assert plain.mm_objective_ == []
    assert set(plain.rho_history_) == {1.0}


def test_the_epoch_of_the_least_loss_over_rho_is_kept(uneven):
    X, _ = uneven
    last = SP2OTClustering(4, **QUICK).fit(X)
    best = SP2OTClustering(4, select="loss", **QUICK).fit(X)
    rows = [row["loss_over_rho"] for row in best.history_]
    kept_last = int(np.argmin(rows)) == len(rows) - 1
    assert np.array_equal(best.cluster_centers_, last.cluster_centers_) == kept_last
    assert rows == [row["loss_over_rho"] for row in last.history_]


def test_rows_of_a_table_and_prototypes_from_k_means():
    X, y = load_digits(n_class=3, return_X_y=True)
    method = SP2OTClustering(3, init="k-means", pretrain_epochs=10, epochs=5, mm_max_iter=5, random_state=0).fit(X)
    assert normalized_mutual_info_score(y, method.labels_) > 0.5
    np.testing.assert_allclose(np.linalg.norm(method.cluster_centers_, axis=1), 1, rtol=1e-5)


def test_labels_that_are_all_known_are_not_looked_at(uneven):
    X, y = uneven
    np.testing.assert_array_equal(
        SP2OTClustering(4, **QUICK).fit(X, y).labels_, SP2OTClustering(4, **QUICK).fit(X).labels_
    )


def test_a_backbone_may_come_as_a_function_of_the_columns():
    X = load_digits().data[:80]
    method = SP2OTClustering(3, backbone=lambda columns: MLPEncoder(columns, (16,)), **QUICK).fit(X)
    assert method.transform(X).shape == (80, 16)


def test_duplicate_rows_share_their_cluster(uneven):
    X, _ = uneven
    doubled = np.concatenate([X[:60], X[:60]])
    labels = SP2OTClustering(4, **QUICK).fit(doubled).labels_
    np.testing.assert_array_equal(labels[:60], labels[60:])


def test_one_column_that_says_nothing_does_no_harm():
    X = np.c_[load_digits().data[:100], np.ones(100)]
    assert SP2OTClustering(3, **QUICK).fit(X).labels_.shape == (100,)


def test_without_progress_the_start_of_the_share_does_not_matter(uneven):
    X, _ = uneven
    plain = SP2OTClustering(4, progressive=False, rho_end=0.05, **QUICK).fit(X)
    assert set(plain.rho_history_) == {0.05}


def test_features_may_come_as_a_table():
    X = load_digits().data[:80]
    method = SP2OTClustering(3, **QUICK).fit(X)
    labels = method.predict(X)
    with sklearn.config_context(transform_output="pandas"):
        assert method.transform(X).shape[0] == 80
        np.testing.assert_array_equal(method.predict(X), labels)


# ---- bad input --------------------------------------------------------------------------------------------------


def collapsed():
    """A backbone whose features are the same for all rows."""
    network = nn.Linear(64, 4)
    nn.init.zeros_(network.weight)
    nn.init.ones_(network.bias)
    return network.requires_grad_(False)


def test_a_single_cluster_is_said():
    X = load_digits().data[:60]
    with pytest.warns(ConvergenceWarning, match="All 60 rows ended in one of 3 clusters"):
        method = SP2OTClustering(3, backbone=collapsed(), **QUICK | {"init": "random"}).fit(X)
    assert method.n_clusters_ == 1
    assert set(method.labels_) == {0}


def test_too_few_rows_are_refused():
    X = load_digits().data[:60]
    with pytest.raises(ValueError, match="n_clusters=61"):
        SP2OTClustering(61).fit(X)
    with pytest.raises(ValueError, match="1 distinct rows, fewer than n_clusters=3"):
        SP2OTClustering(3).fit(np.ones((20, 5)))
    with pytest.raises(ValueError, match="batch_size=5 is smaller than n_clusters=10"):
        SP2OTClustering(10, batch_size=5).fit(X)


def test_settings_that_make_no_sense_are_refused():
    X = load_digits().data[:60]
    with pytest.raises(ValueError, match="rho_start"):
        SP2OTClustering(3, rho_start=0.0).fit(X)
    with pytest.raises(ValueError, match=r"rho_start=0.9 must not lie above rho_end=0.5"):
        SP2OTClustering(3, rho_start=0.9, rho_end=0.5).fit(X)
    with pytest.raises(ValueError, match="n_clusters"):
        SP2OTClustering(1).fit(X)


def test_a_backbone_for_other_rows_is_refused(uneven):
    with pytest.raises(ValueError, match=r"does not take images shaped \(1, 8, 8\)"):
        SP2OTClustering(4, backbone=nn.Linear(7, 4), **QUICK).fit(uneven[0])
    with pytest.raises(ValueError, match=r"does not take rows shaped \(64,\)"):
        SP2OTClustering(4, backbone=nn.Linear(7, 4), **QUICK).fit(load_digits().data[:20])


def test_rows_unlike_those_of_fit_are_refused(uneven):
    X, _ = uneven
    method = SP2OTClustering(4, **QUICK).fit(X)
    with pytest.raises(ValueError, match=r"shaped \(1, 8, 8\) as in fit"):
        method.predict(X[:, :6])


def test_no_warning_where_all_is_well(uneven):
    X, _ = uneven
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SP2OTClustering(4, **QUICK).fit(X)

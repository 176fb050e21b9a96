"""Seeds kept to themselves, and input checked at the border."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import BaseEstimator
from torch import nn

from models.base import (
    check_embeddings,
    check_enough_rows,
    check_images,
    check_labels,
    check_samples,
    isolated_seed,
    predict_in_batches,
    seed_from,
)


def draws():
    return torch.rand(3).tolist() + np.random.rand(3).tolist()


def test_equal_seeds_draw_equally_and_leave_no_trace():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = draws()
    torch.manual_seed(5)
    np.random.seed(5)
    with isolated_seed(0) as seed:
        first = draws()
    with isolated_seed(0):
        second = draws()
    assert seed == 0
    assert first == second
    assert draws() == expected


def test_the_state_is_put_back_after_an_error():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="on purpose"), isolated_seed(0):
        draws()
        raise RuntimeError("on purpose")
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_no_seed_means_a_new_one_each_time():
    with isolated_seed(None):
        first = draws()
    with isolated_seed(None):
        assert draws() != first


def test_seeds_from_every_kind_of_random_state():
    assert seed_from(7) == seed_from(np.int64(7)) == 7
    assert seed_from(np.random.RandomState(0)) == seed_from(np.random.RandomState(0))
    shared = np.random.RandomState(0)
    assert seed_from(shared) != seed_from(shared)
    with pytest.raises(ValueError, match="cannot be used to seed"):
        seed_from("seven")


def test_images_of_bytes_become_floats():
    images = check_images(np.array([[[0, 255], [51, 102]]], dtype=np.uint8))
    assert images.shape == (1, 1, 2, 2)
    assert images.flatten().tolist() == pytest.approx([0, 1, 0.2, 0.4])


def test_checked_images_never_share_memory_with_an_array():
    X = np.zeros((2, 4, 4), dtype=np.float32)
    check_images(X)[0] = 1.0
    assert X.sum() == 0


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((3, 64)), r"X must be images shaped \(n, H, W\) or .* got an array shaped \(3, 64\)"),
        (np.zeros((0, 4, 4)), r"X must hold at least 1 image\(s\), got 0"),
        (np.full((2, 4, 4), np.nan), r"X contains NaN or infinite pixels in 2 image\(s\), the first at row 0"),
        (np.full((2, 4, 4), 16.0), r"X must hold pixels in \[0, 1\] \(or uint8\), got values from 16 to 16"),
    ],
)
def test_bad_images_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        check_images(X)


def test_another_number_of_channels_than_in_fit_is_refused():
    with pytest.raises(ValueError, match=r"pictures must have 3 channel\(s\) as in fit, got 1"):
        check_images(np.zeros((2, 4, 4)), name="pictures", channels=3)


def test_labels_come_as_integers_whatever_held_them():
    for y in ([0, 1, -1], np.array([0.0, 1.0, -1.0]), torch.tensor([0, 1, -1])):
        labels = check_labels(y, 3)
        assert labels.dtype == np.int64
        assert labels.tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("y", "settings", "message"),
    [
        ([0, 1], {}, r"y must be shaped \(3,\) to match X, got \(2,\)"),
        (["a", "b", "c"], {}, "y must hold integers"),
        ([0.5, 1.0, 2.0], {}, "y must hold integers"),
        ([0, 1, -2], {}, "labels below -1, got -2"),
        ([0, 1, -1], {"allow_unlabelled": False}, "labels below 0, got -1"),
        ([0, 1, 2], {"n_classes": 2}, r"y must lie in 0..1, got 2"),
        ([-1, -1, -1], {}, r"at least one label; all 3 rows are unlabelled"),
        ([1, 1, -1], {}, r"at least 2 classes, got 1: \[1\]"),
    ],
)
def test_bad_labels_are_refused(y, settings, message):
    with pytest.raises(ValueError, match=message):
        check_labels(y, 3, **settings)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros(3), r"X must be a matrix shaped \(n, d\), got \(3,\)"),
        (np.zeros((1, 3)), "X must hold at least 2 rows, got 1"),
        (np.zeros((3, 0)), r"0 feature\(s\)"),
        (np.ones((3, 2)) * 1j, "Complex data not supported"),
        (np.array([[0, 1], [np.inf, 0], [np.nan, 0]]), r"in 2 row\(s\), the first at row 1"),
    ],
)
def test_bad_embeddings_are_refused(X, message):
    with pytest.raises(ValueError, match=message):
        check_embeddings(X, minimum=2)


def test_sparse_embeddings_are_refused():
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        check_embeddings(sparse.eye_array(3))


def test_embeddings_of_a_tensor_with_gradients_become_doubles():
    assert check_embeddings(torch.ones(2, 3, requires_grad=True)).dtype == np.float64


@pytest.mark.parametrize("training", [True, False])
def test_prediction_runs_in_eval_mode_and_puts_the_mode_back(training):
    network = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train(training)
    statistics = network[2].running_mean.clone()
    X = torch.rand(10, 2)
    out = predict_in_batches(network, X, batch_size=3)
    assert network.training is training
    assert torch.equal(network[2].running_mean, statistics)
    assert not out.requires_grad
    torch.testing.assert_close(out, network.eval()(X).detach())


def test_prediction_puts_the_mode_back_after_an_error():
    network = nn.Linear(2, 3).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict_in_batches(network, torch.rand(4, 5))
    assert network.training


def test_prediction_takes_a_plain_function():
    assert predict_in_batches(lambda x: x + 1, torch.zeros(5, 2), batch_size=2).tolist() == [[1.0, 1.0]] * 5


def test_samples_are_checked_against_those_of_fit():
    estimator = BaseEstimator()
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    assert check_samples(estimator, table, reset=True).dtype == torch.float32
    assert (estimator.n_features_in_, estimator.sample_shape_) == (2, (2,))
    assert estimator.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="feature names should match"):
        check_samples(estimator, table[["b", "a"]], reset=False)
    unnamed = BaseEstimator()
    check_samples(unnamed, table.to_numpy(), reset=True)
    with pytest.raises(ValueError, match="X has 3 features, but BaseEstimator is expecting 2"):
        check_samples(unnamed, np.zeros((1, 3)), reset=False)


def test_image_samples_keep_their_shape():
    estimator = BaseEstimator()
    assert check_samples(estimator, np.zeros((3, 4, 5)), reset=True).shape == (3, 1, 4, 5)
    assert (estimator.n_features_in_, estimator.sample_shape_) == (20, (1, 4, 5))
    with pytest.raises(ValueError, match=r"samples shaped \(1, 4, 5\) as in fit, got \(1, 5, 4\)"):
        check_samples(estimator, np.zeros((3, 5, 4)), reset=False)
    with pytest.raises(ValueError, match="Reshape your data"):
        check_samples(estimator, np.zeros(20), reset=False)


def test_clusters_need_as_many_distinct_rows():
    rows = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    check_enough_rows(rows, 2)
    with pytest.raises(ValueError, match="X holds 2 distinct rows, fewer than n_clusters=3"):
        check_enough_rows(rows, 3)
    with pytest.raises(ValueError, match="n_samples=3 must be at least n_clusters=4"):
        check_enough_rows(rows, 4)

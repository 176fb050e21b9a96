"""SimCLR as a start for other methods: it learns, and is reproducible."""

import torch
from sklearn.datasets import load_digits

from models.augment import FeatureSwap
from models.base import isolated_seed, predict_in_batches
from models.contrastive import pretrain_contrastive
from models.metrics import knn_accuracy
from models.networks.mlp import MLPEncoder


def learnt(epochs):
    X = torch.from_numpy(load_digits().data[:400]).float()
    with isolated_seed(0):
        encoder = MLPEncoder(64, (32, 8))
        history = pretrain_contrastive(encoder, X, FeatureSwap(), epochs=epochs, batch_size=100, lr=5e-3, seed=0)
    return encoder, history, predict_in_batches(encoder, X).numpy()


def test_views_of_one_row_come_together_and_classes_with_them():
    y = load_digits().target[:400]
    encoder, history, features = learnt(15)
    untrained = learnt(1)[2]
    assert history[-1]["loss"] < history[0]["loss"] - 0.3
    assert not encoder.training
    scores = [knn_accuracy(found[:300], y[:300], found[300:], y[300:]) for found in (features, untrained)]
    assert scores[0] > scores[1] + 0.03


def test_equal_seeds_give_equal_encoders():
    assert (learnt(2)[2] == learnt(2)[2]).all()

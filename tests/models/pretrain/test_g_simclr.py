"""G-SimCLR: the sampler's promises, the autoencoder, and what guided batches do on real digits."""

import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from models.losses import nt_xent
from models.metrics import knn_accuracy
from models.networks.autoencoder import DenoisingAutoencoder
from models.networks.convnet import ConvEncoder
from models.pretrain.cluster_batches import expected_repeats, ranks_in_clusters, repeats
from models.pretrain.g_simclr import (
    GSimCLR,
    PseudoLabeller,
    StratifiedClusterBatchSampler,
    cosine_once,
    default_views,
)
from models.state import pack, unpack
from models.training import Hook, hooks

X, Y = load_digits(return_X_y=True)
X = (X / 16).reshape(-1, 8, 8).astype(np.float32)
SMALL = {
    "n_clusters": 8,
    "batch_size": 16,
    "epochs": 2,
    "ae_epochs": 1,
    "ae_widths": (4, 8),
    "projection_dims": (16, 8),
}


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvEncoder((4, 8))


@pytest.fixture(scope="module")
def fitted(encoder):
    return GSimCLR(encoder, random_state=0, **SMALL).fit(X[:200])


# The loss


def test_nt_xent_matches_cross_entropy_over_the_masked_similarities():
    z = F.normalize(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    logits = (z @ z.T / 0.1).masked_fill(torch.eye(10, dtype=torch.bool), -math.inf)
    expected = F.cross_entropy(logits, torch.arange(10).roll(5))
    assert float(nt_xent(z[:5], z[5:], 0.1)) == pytest.approx(float(expected), abs=1e-6)
    assert float(nt_xent(z[5:], z[:5], 0.1)) == pytest.approx(float(expected), abs=1e-6)


def test_nt_xent_of_one_image_is_zero_and_of_equal_projections_the_log_of_the_candidates():
    z = torch.randn(2, 7)
    assert float(nt_xent(z[:1], z[1:])) == pytest.approx(0.0, abs=1e-7)
    assert float(nt_xent(torch.ones(64, 5), torch.ones(64, 5))) == pytest.approx(math.log(127), abs=1e-5)


# The sampler


def uneven(sizes, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


@pytest.mark.parametrize("how", ["round_robin", "random", "hard"])
@pytest.mark.parametrize("reshuffle", [True, False])
def test_each_index_occurs_at_most_once_an_epoch(how, reshuffle):
    labels = uneven([9, 5, 14, 7, 30, 6, 6, 6])
    sampler = StratifiedClusterBatchSampler(labels, 8, how, reshuffle, random_state=3)
    drawn = np.concatenate(list(sampler))
    assert len(np.unique(drawn)) == len(drawn)
    assert drawn.min() >= 0
    assert drawn.max() < len(labels)
    assert {len(batch) for batch in sampler} == {8}
    if how != "hard":
        assert len(drawn) == len(labels) - len(labels) % 8


def test_ranks_count_the_images_of_each_cluster():
    np.testing.assert_array_equal(ranks_in_clusters(np.array([1, 0, 1, 1, 0])), [1, 1, 2, 3, 2])
    shuffled = ranks_in_clusters(np.array([0] * 6 + [1] * 4), np.random.default_rng(0))
    assert sorted(shuffled[:6]) == [1, 2, 3, 4, 5, 6]
    assert sorted(shuffled[6:]) == [1, 2, 3, 4]
    assert list(shuffled[:6]) != [1, 2, 3, 4, 5, 6]


def test_round_robin_repeats_no_cluster_until_the_smallest_runs_out():
    labels = uneven([5, 9, 14, 7])
    counts = [repeats(labels[batch]) for batch in StratifiedClusterBatchSampler(labels, 4)]
    assert counts[:5] == [0] * 5
    assert sum(counts[5:]) > 0


def test_the_released_order_is_by_rank_and_cluster():
    labels = [2, 0, 0, 1, 1, 2, 0, 0]
    sampler = StratifiedClusterBatchSampler(labels, 3, reshuffle=False)
    assert list(sampler) == [[1, 3, 0], [2, 4, 5]]
    sampler.set_epoch(4)
    assert list(sampler) == [[1, 3, 0], [2, 4, 5]]


@pytest.mark.parametrize("sizes", [[5, 9, 14, 7], [40, 3, 3, 3, 3, 3, 3], [1] * 12])
def test_hard_never_repeats_a_cluster_and_ends_when_too_few_are_left(sizes):
    labels = uneven(sizes)
    sampler = StratifiedClusterBatchSampler(labels, 4, "hard", random_state=1)
    batches = list(sampler)
    assert len(batches) == len(sampler) > 0
    assert all(repeats(labels[batch]) == 0 for batch in batches)
    left = np.bincount(np.delete(labels, np.concatenate(batches)), minlength=len(sizes))
    assert (left > 0).sum() < 4


def test_hard_draws_large_clusters_more_often():
    labels = np.repeat(np.arange(6), [60, 10, 10, 10, 10, 10])
    first = [next(StratifiedClusterBatchSampler(labels, 2, "hard", random_state=s).batches(0)) for s in range(300)]
    with_large = np.mean([(labels[batch.numpy()] == 0).any() for batch in first])
    expected = 60 / 110 + 5 * (10 / 110) * (60 / 100)  # drawn first, or second after a small one
    assert with_large == pytest.approx(expected, abs=0.08)


def test_epochs_differ_only_when_reshuffled():
    labels = uneven([8, 8, 8, 8])
    for reshuffle, how in [(True, "round_robin"), (False, "round_robin"), (True, "random"), (False, "random")]:
        sampler = StratifiedClusterBatchSampler(labels, 4, how, reshuffle)
        first, again, second = (torch.stack(list(sampler.batches(epoch))) for epoch in (0, 0, 1))
        assert torch.equal(first, again)
        assert torch.equal(first, second) is not reshuffle


def test_unknown_images_are_spread_over_the_epoch_and_never_count_as_repeats():
    labels = np.concatenate([np.repeat([0, 1, 2], 20), np.full(20, -1)])
    batches = [labels[batch] for batch in StratifiedClusterBatchSampler(labels, 4)]
    assert [int((batch == -1).sum()) for batch in batches] == [1] * 20
    assert sum(repeats(batch) for batch in batches) == 0
    assert repeats(np.array([-1, -1, 0, 0])) == 1
    hard = StratifiedClusterBatchSampler(np.array([0, 0, -1, -1]), 3, "hard")
    assert all(repeats(np.array([0, 0, -1, -1])[batch]) == 0 for batch in hard)


def test_expected_repeats_are_those_of_random_batches():
    labels = uneven([200, 100, 50, 50])
    sampler = StratifiedClusterBatchSampler(labels, 8, "random")
    seen = np.mean([repeats(labels[b.numpy()]) for epoch in range(20) for b in sampler.batches(epoch)])
    assert expected_repeats(labels, 8) == pytest.approx(seen, abs=0.1)


def test_a_data_loader_takes_the_sampler():
    data = TensorDataset(torch.arange(20))
    loader = DataLoader(data, batch_sampler=StratifiedClusterBatchSampler(np.arange(20) % 5, 5))
    assert len(loader) == 4
    assert all(len(set((rows % 5).tolist())) == 5 for (rows,) in loader)


@pytest.mark.parametrize(
    ("labels", "size", "how", "message"),
    [
        ([0, 1], 3, "random", "A batch takes 3 images, got 2"),
        ([0, 0, 0, 1], 3, "hard", "at least batch_size=3 clusters, got 2"),
        ([0, 1, 2], 2, "soft", "'round_robin', 'hard' or 'random', got 'soft'"),
    ],
)
def test_a_sampler_that_can_not_be_is_refused(labels, size, how, message):
    with pytest.raises(ValueError, match=message):
        StratifiedClusterBatchSampler(labels, size, how)


# Autoencoder and pseudo-labels


def test_the_autoencoder_adds_noise_in_training_only_and_keeps_odd_sizes():
    images = torch.rand(3, 1, 13, 10)
    network = DenoisingAutoencoder(1, (4, 8, 8), noise_std=0.5).eval()
    assert network(images).shape == images.shape
    assert torch.equal(network(images), network(images))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.0
    assert torch.equal(network.embed(images), network.embed(images))
    network.train()
    assert not torch.equal(network(images), network(images))


def test_the_published_autoencoder_has_a_128_wide_bottleneck_an_eighth_of_the_size():
    assert DenoisingAutoencoder(3).eval().bottleneck(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 4, 4)


def test_the_target_is_the_clean_image():
    labeller = PseudoLabeller(4, widths=(8, 16), noise_std=0.01, epochs=8, random_state=0).fit(X[:300])
    losses = [row["validation_loss"] for row in labeller.history_]
    assert losses[-1] < 0.5 * losses[0]
    noisy = PseudoLabeller(4, widths=(8, 16), noise_std=0.5, epochs=8, random_state=0).fit(X[:300])
    assert (
        min(row["loss"] for row in noisy.history_) < 0.15
    )  # against a target noisy by 0.5 it could not fall under 0.25


def test_pseudo_labels_tell_digits_better_than_chance_and_predict_agrees():
    labeller = PseudoLabeller(20, widths=(8, 16), epochs=8, random_state=0).fit(X[:600])
    together = labeller.labels_[:, None] == labeller.labels_[None, :]
    same = Y[:600, None] == Y[None, :600]
    assert same[together].mean() > 0.35
    np.testing.assert_array_equal(labeller.predict(X[:600]), labeller.labels_)
    assert labeller.embedding_.shape == (600, 16)


def test_training_of_the_autoencoder_ends_when_the_validation_error_stops_falling():
    labeller = PseudoLabeller(2, widths=(4,), epochs=60, patience=1, lr=0.3, random_state=0).fit(X[:64], X_val=X[64:80])
    losses = [row["validation_loss"] for row in labeller.history_]
    assert len(losses) < 60
    with torch.no_grad():
        restored = labeller.autoencoder_(torch.from_numpy(X[64:80])[:, None])
    error = float(F.mse_loss(restored, torch.from_numpy(X[64:80])[:, None]))
    assert error == pytest.approx(min(losses), rel=1e-4)


def test_the_autoencoder_may_be_trained_on_a_sample_and_still_embeds_all():
    whole = PseudoLabeller(4, widths=(4,), epochs=1, batch_size=10, random_state=0, samples=50).fit(X[:300])
    assert whole.labels_.shape == (300,)


# The method


def test_features_of_every_layer(fitted):
    assert fitted.transform(X[:5]).shape == (5, 8)
    assert fitted.transform(X[:5], layer="P2").shape == (5, 16)
    assert fitted.transform(X[:5]).dtype == np.float32
    published = GSimCLR(ConvEncoder((4, 8)), **{**SMALL, "projection_dims": (256, 128, 50), "epochs": 1})
    published.set_params(random_state=0).fit(X[:64])
    widths = [published.transform(X[:3], layer=layer).shape[1] for layer in ("P1", "P2", "P3")]
    assert widths == [128, 256, 8]
    assert (published.transform(X[:3], layer="P1") >= 0).all()
    assert list(fitted.get_feature_names_out())[:2] == ["gsimclr0", "gsimclr1"]
    assert len(fitted.get_feature_names_out()) == 8


def test_what_a_fit_leaves_behind(fitted):
    assert fitted.pseudo_labels_.shape == (200,)
    assert fitted.pseudo_labels_.dtype == np.int64
    assert fitted.embedding_.shape == (200, 8)
    assert len(fitted.loss_curve_) == 2
    assert fitted.batch_stats_["batches"] == [12, 12]
    assert fitted.n_features_in_ == 64
    assert not fitted.encoder_.training


def test_equal_seeds_give_equal_fits_and_the_given_encoder_stays(encoder, fitted):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    again = clone(fitted).fit(X[:200])
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(again.pseudo_labels_, fitted.pseudo_labels_)
    assert again.loss_curve_ == fitted.loss_curve_
    np.testing.assert_array_equal(again.transform(X[:50]), fitted.transform(X[:50]))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    other = clone(fitted).set_params(random_state=1).fit(X[:200])
    assert other.loss_curve_ != fitted.loss_curve_


def test_it_survives_being_described_and_rebuilt(fitted):
    again = unpack(*pack(fitted))
    np.testing.assert_array_equal(again.transform(X[:9]), fitted.transform(X[:9]))
    np.testing.assert_array_equal(again.pseudo_labels_, fitted.pseudo_labels_)


def test_training_lowers_the_loss_and_makes_better_features():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = ConvEncoder((8, 16, 32))
    settings = {"batch_size": 32, "n_clusters": 32, "ae_widths": (8, 16), "ae_epochs": 4, "epochs": 8}
    method = GSimCLR(start, random_state=0, **settings).fit(X[:900])
    assert method.loss_curve_[-1] < method.loss_curve_[0] - 0.5

    def neighbours(model):
        f = model.transform(X[:1200])
        return knn_accuracy(f[:900], Y[:900], f[900:], Y[900:1200], 5)

    untrained = GSimCLR(start, random_state=0, **{**settings, "epochs": 1, "lr": 1e-9}).fit(X[:900])
    assert neighbours(method) > neighbours(untrained) + 0.02


def test_known_groups_replace_autoencoder_and_clusters(encoder):
    method = GSimCLR(encoder, random_state=0, **{**SMALL, "batch_size": 10}).fit(X[:200], pseudo_labels=Y[:200])
    np.testing.assert_array_equal(method.pseudo_labels_, Y[:200])
    assert method.autoencoder_ is None
    assert method.kmeans_ is None
    partly = np.where(np.arange(200) % 2 == 0, Y[:200], -1)
    assert GSimCLR(encoder, random_state=0, **SMALL).fit(X[:200], pseudo_labels=partly).batch_stats_["repeats"][0] < 4


def test_random_batches_are_plain_simclr(encoder):
    method = GSimCLR(encoder, sampler="random", random_state=0, **SMALL).fit(X[:100])
    assert method.autoencoder_ is None
    assert (method.pseudo_labels_ == -1).all()
    assert method.batch_stats_["batches"] == [6, 6]


def test_guided_batches_hold_fewer_pseudo_repeats_than_random_ones(encoder):
    given = {"pseudo_labels": Y[:400]}
    settings = {**SMALL, "batch_size": 10, "epochs": 1}
    counts = {
        how: GSimCLR(encoder, sampler=how, random_state=0, **settings).fit(X[:400], **given).batch_stats_["repeats"][0]
        for how in ("random", "round_robin", "hard")
    }
    assert counts["hard"] == 0
    assert counts["round_robin"] < 0.5 * counts["random"]


def test_clusters_may_be_drawn_again_from_the_encoder(encoder):
    method = GSimCLR(encoder, recluster_every=1, random_state=0, **SMALL).fit(X[:200])
    assert method.kmeans_.cluster_centers_.shape == (8, 8)
    first = PseudoLabeller(8, widths=(4, 8), epochs=1, random_state=0).fit(X[:200])
    assert not np.array_equal(method.pseudo_labels_, first.labels_)


def test_the_log_warns_when_the_tail_repeats_clusters(encoder, caplog):
    skewed = np.where(np.arange(200) < 120, 0, np.arange(200) % 15 + 1)
    with caplog.at_level(logging.WARNING):
        GSimCLR(encoder, random_state=0, **{**SMALL, "epochs": 1}).fit(X[:200], pseudo_labels=skewed)
    assert "The last quarter of an epoch repeats pseudo-labels" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        GSimCLR(encoder, random_state=0, **{**SMALL, "epochs": 1}).fit(X[:192], pseudo_labels=np.arange(192) % 16)
    assert caplog.text == ""


def test_hooks_reach_the_encoder_of_the_contrastive_training_only(encoder):
    class Watch(Hook):
        seen = ()

        def on_epoch_end(self, trainer, row):
            self.seen = (*self.seen, (trainer.label, hasattr(trainer.plain_network, "encoder")))

    watch = Watch()
    with hooks(watch):
        GSimCLR(encoder, random_state=0, **SMALL).fit(X[:64])
    assert watch.seen == (("autoencoder", False), ("g-simclr", True), ("g-simclr", True))


def test_learning_rates_follow_the_steps(encoder):
    method = GSimCLR(encoder, random_state=0, lr=0.2, first_decay_steps=12, **{**SMALL, "epochs": 3})
    rates = [row["lr"] for row in method.fit(X[:192]).history_]
    half = lambda t, length: 0.2 * 0.5 * (1 + math.cos(math.pi * t / length))  # noqa: E731
    assert rates == pytest.approx([half(11, 12), half(11, 24), half(23, 24)])
    assert [cosine_once(10)(t, 99) for t in (0, 5, 10, 50)] == pytest.approx([1, 0.5, 0, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_drawn_per_image_within_bounds(channels):
    torch.manual_seed(0)
    image = torch.rand(1, channels, 16, 16).expand(32, -1, -1, -1)
    view = default_views(channels)(image)
    assert view.shape == image.shape
    assert view.min() >= 0
    assert view.max() <= 1
    assert len(torch.unique(view.flatten(1), dim=0)) > 16


def test_colour_images_bytes_and_named_encoders_work():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16)).astype(np.uint8)
    settings = {**SMALL, "epochs": 1, "ae_widths": None}
    assert GSimCLR(random_state=0, **settings).fit(rgb).transform(rgb[:4]).shape == (4, 64)
    maps = GSimCLR(lambda channels: nn.Conv2d(channels, 5, 3), random_state=0, **settings).fit(rgb)
    assert maps.transform(rgb[:4]).shape == (4, 5)


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_clusters": 1}, "n_clusters"),
        ({"temperature": 0.0}, "temperature"),
        ({"sampler": "soft"}, "sampler"),
        ({"n_clusters": 101}, "n_clusters=101 is more than the 100 images"),
        ({"batch_size": 128}, "100 images, fewer than batch_size=128"),
        ({"projection_dims": (8,)}, "at least two positive widths"),
        ({"encoder": "resnet21"}, "There is no encoder 'resnet21'"),
        ({"encoder": lambda channels: None}, "must return an nn.Module, got NoneType"),
        ({"encoder": ConvEncoder((4,), in_channels=3)}, r"does not take images shaped \(1, 8, 8\)"),
        ({"sampler": "hard", "n_clusters": 8}, "at least batch_size=16 clusters, got 8"),
    ],
)
def test_settings_that_can_not_be_are_refused(encoder, changes, message):
    with pytest.raises(ValueError, match=message):
        GSimCLR(**{"encoder": encoder, "random_state": 0, **SMALL, **changes}).fit(X[:100])


def test_images_that_can_not_be_are_refused(encoder, fitted):
    broken = X[:100].copy()
    broken[3, 2, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN or infinite pixels in 1 image.*row 3"):
        GSimCLR(encoder, **SMALL).fit(broken)
    with pytest.raises(ValueError, match="must have 1 channel"):
        fitted.transform(np.zeros((4, 3, 8, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="There is no layer 'P4'"):
        fitted.transform(X[:4], layer="P4")
    with pytest.raises(NotFittedError, match="not fitted"):
        GSimCLR(encoder).transform(X[:4])
    with pytest.raises(ValueError, match="would replace the pseudo_labels given"):
        GSimCLR(encoder, recluster_every=1, **SMALL).fit(X[:100], pseudo_labels=Y[:100])
    with pytest.raises(ValueError, match=r"pseudo_labels must be shaped \(100,\)"):
        GSimCLR(encoder, **SMALL).fit(X[:100], pseudo_labels=Y[:99])

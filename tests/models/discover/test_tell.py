"""TELL: the layer against k-means by hand, the two alternating losses, and the estimator on the digits."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from models.base import isolated_seed
from models.discover.tell import (
    TELL,
    TELLLayer,
    TELLNetwork,
    TELLTrainer,
    adadelta,
    adam_without_centres,
    clustering_loss,
    margins,
    row_directions,
)
from models.metrics import clustering_scores
from models.networks.autoencoder import ConvAutoencoder, MLPAutoencoder

IMAGES = (load_digits().images / 16).astype(np.float32)
ROWS, CLASSES = IMAGES.reshape(len(IMAGES), -1), load_digits().target
SMALL = {"latent_dim": 4, "hidden": (32,), "batch_size": 50, "random_state": 0}


@pytest.fixture(scope="module")
def fitted():
    return TELL(5, center_init="kmeans", warmup_epochs=3, epochs=4, **SMALL).fit(ROWS[:300])


@pytest.fixture(scope="module")
def codes():
    """PCA-10 of the digits on the unit sphere."""
    return F.normalize(torch.from_numpy(PCA(10, random_state=0).fit_transform(ROWS)).float(), dim=1)


def trainer(epoch=0, **changes):
    """A trainer on 64 digits, prepared to run `epoch`."""
    with isolated_seed(0):
        network = TELLNetwork(MLPAutoencoder((64,), 4, (16,)), 5, 4, alpha=1e-3)
    settings = {
        "cluster_weight": 0.01,
        "center_step": 0.2,
        "center_init": "random",
        "warmup_epochs": 0,
        "reseed": True,
        "centres_in_optimizer": True,
        "epochs": 10,
        "batch_size": 32,
        "optimizer": adadelta,
    }
    made = TELLTrainer(network, **(settings | changes))
    made.prepare(torch.from_numpy(ROWS[:64]))
    made.epoch = epoch
    made.before_epoch()
    return made


# ---- the layer -------------------------------------------------------------------------------------------


def test_the_largest_score_is_the_nearest_centre(codes):
    with isolated_seed(0):
        layer = TELLLayer(10, 10)
    nearest = torch.cdist(codes.double(), layer.centers().double()).argmin(dim=1)
    assert torch.equal(layer(codes).argmax(dim=1), nearest)


def test_rows_have_the_length_two_alpha():
    layer = TELLLayer(7, 5, alpha=0.03)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.full((7,), 0.06))
    layer.set_centers(3 * torch.eye(7, 5) + 1)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.full((7,), 0.06))
    torch.testing.assert_close(layer.centers().norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("alpha", [1e-3, 0.5])
def test_the_loss_has_a_closed_form(codes, alpha):
    layer = TELLLayer(8, 10, alpha)
    cosines = (codes @ layer.centers().T).max(dim=1).values
    expected = 2 * (1 - cosines.mean() / 8)
    torch.testing.assert_close(layer.loss(codes), expected, atol=1e-6, rtol=0)
    by_entries = (2 * alpha - layer(codes) * (layer(codes) == layer(codes).max(1, keepdim=True).values)).sum()
    torch.testing.assert_close(layer.loss(codes), by_entries / (alpha * len(codes) * 8), atol=1e-6, rtol=0)


def test_the_layer_alone_finds_what_spherical_k_means_finds(codes):
    """Fixed codes, full batch, shrinking steps: the mean cosine never falls and reaches Lloyd's from the same start."""
    for seed in range(3):
        start = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))[:10]]
        layer = TELLLayer(10, 10)
        layer.set_centers(start)
        path = []
        for step in range(300):
            path.append(float((codes @ layer.centers().T).max(dim=1).values.mean()))
            (gradient,) = torch.autograd.grad(layer.loss(codes), layer.weight)
            with torch.no_grad():
                layer.weight -= 0.2 * layer.alpha * 0.98**step * row_directions(gradient)
            layer.normalize_()
        assert np.diff(path).min() > -1e-6  # single precision
        assert path[-1] >= 0.97 * spherical_k_means(codes, start)
        assert path[-1] > path[0] + 0.02


def spherical_k_means(codes, centres):
    for _ in range(100):
        own = (codes @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, own, codes)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
    return float((codes @ centres.T).max(dim=1).values.mean())


def test_a_centre_without_a_sample_has_no_direction():
    directions = row_directions(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(directions, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_the_margin_tells_clear_from_torn():
    distances = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 2.0], [0.5, 2.0, 1.0], [0.0, 0.0, 1.0]])
    assert margins(distances).tolist() == [1.0, 0.0, 0.5, 0.0]


# ---- the alternation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1])
def test_each_epoch_moves_its_own_side(epoch):
    made = trainer(epoch)
    x, index = made.tensors[0], torch.arange(64)
    layer, encoder = made.layer, made.plain_network.autoencoder.encoder
    loss, _ = made.compute_loss((x,), index)
    drawn = made.network(x)[1]
    weights = list(encoder.parameters())
    whole = torch.autograd.grad(loss, weights, retain_graph=True)
    redrawn = torch.autograd.grad(F.mse_loss(drawn, x), weights)
    pull = max(float((a - b).abs().max()) for a, b in zip(whole, redrawn, strict=True))
    before = layer.weight.detach().clone()
    made.train_step((x,), index)
    moved = (layer.weight.detach() - before).norm(dim=1)
    if epoch == 0:
        assert pull < 1e-7
        used = made.assigned.unique()
        assert (moved[used] > 1e-6).all()
        assert (moved[used] < 1.1 * 0.2e-3).all()
    else:
        assert pull > 1e-5
        assert float(moved.max()) == 0


def test_the_first_adadelta_step_is_nearly_the_plain_step():
    moved = {}
    for name, published in (("adadelta", True), ("plain", False)):
        made = trainer(centres_in_optimizer=published, optimizer=adadelta if published else adam_without_centres)
        before = made.layer.weight.detach().clone()
        made.train_step((made.tensors[0],), torch.arange(64))
        moved[name] = made.layer.weight.detach() - before
    assert float((moved["adadelta"] - moved["plain"]).norm()) < 0.1 * float(moved["plain"].norm())


def test_the_warm_up_leaves_the_centres_alone():
    made = trainer(warmup_epochs=1)
    before = made.layer.weight.detach().clone()
    terms = made.train_step((made.tensors[0],), torch.arange(64))
    assert torch.equal(made.layer.weight, before)
    assert terms["loss"] == terms["reconstruction_loss"]


@pytest.mark.parametrize("reseed", [True, False])
def test_a_centre_unused_for_two_epochs_moves_to_the_sample_served_worst(reseed):
    made = trainer(reseed=reseed)
    made.plain_network.eval()
    codes = made.encode(made.tensors[0])
    centres = codes[:5].clone()
    centres[4] = -codes.mean(dim=0)  # opposite to everything
    made.layer.set_centers(centres)
    for _ in range(2):
        scores, which = made.layer(codes).max(dim=1)
        made.assigned, made.own_scores = which, scores.detach()
        made.after_epoch({})
    worst = codes[scores.argmin()]
    assert float((made.layer.centers()[4] - worst).norm() < 1e-5) == reseed
    assert int(made.layer.unused_epochs[4]) == (0 if reseed else 2)


@pytest.mark.parametrize("center_init", ["kmeans", "sample"])
def test_centres_start_among_the_codes_when_the_warm_up_is_over(center_init):
    made = trainer(epoch=2, warmup_epochs=2, center_init=center_init)
    codes = made.encode(made.tensors[0])
    cosines = codes @ made.layer.centers().T
    if center_init == "sample":
        torch.testing.assert_close(cosines.max(dim=0).values, torch.ones(5))
    else:
        inertia = KMeans(5, n_init=10, random_state=0).fit(codes.numpy()).inertia_
        assert float((2 - 2 * cosines.max(dim=1).values).sum()) <= 1.1 * inertia


# ---- the estimator ---------------------------------------------------------------------------------------


def test_centres_labels_and_losses_fit_together(fitted):
    X = ROWS[:300]
    codes = fitted.transform(X)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(fitted.cluster_centers_, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(fitted.network_.layer.weight.detach().norm(dim=1).numpy(), 2e-3, atol=1e-6)
    distances = np.linalg.norm(codes[:, None] - fitted.cluster_centers_, axis=2)
    np.testing.assert_array_equal(fitted.labels_, distances.argmin(axis=1))
    np.testing.assert_array_equal(fitted.predict(X), fitted.labels_)
    np.testing.assert_array_equal(fitted.cosine_scores(X).argmax(axis=1), fitted.labels_)
    assert fitted.cluster_sizes_.tolist() == np.bincount(fitted.labels_, minlength=5).tolist()
    assert fitted.n_clusters_ == len(np.unique(fitted.labels_))
    assert (fitted.confidences_.min() >= 0, fitted.confidences_.max() <= 1) == (True, True)
    own = fitted.cosine_scores(X).max(axis=1).mean()
    assert fitted.cluster_loss_ == pytest.approx(0.02 * (1 - own / 5), abs=1e-6)
    assert fitted.n_iter_ == len(fitted.history_) == 7
    assert ["cluster_loss" in row for row in fitted.history_] == [False] * 3 + [True] * 4


def test_the_centres_are_drawn_by_the_decoder(fitted):
    with torch.no_grad():
        drawn = fitted.network_.autoencoder.decoder(torch.from_numpy(fitted.cluster_centers_)).numpy()
    np.testing.assert_array_equal(fitted.explain(), drawn)
    assert drawn.shape == (5, 64)


def test_reconstruction_gets_better_and_clusters_are_not_chance():
    """On these small images TELL does not beat k-means on pixels, but what it finds is structure."""
    method = TELL(10, latent_dim=10, hidden=(128, 64), center_init="kmeans", warmup_epochs=15, epochs=10, batch_size=64)
    method.set_params(random_state=0).fit(ROWS[:1000])
    losses = [row["reconstruction_loss"] for row in method.history_]
    assert losses[-1] < 0.7 * losses[0]
    assert clustering_scores(CLASSES[:1000], method.labels_)["nmi"] > 0.4
    assert method.n_clusters_ == 10


def test_images_take_the_convolutional_network_and_are_drawn_as_images():
    method = TELL(3, epochs=1, center_init="sample", **SMALL).fit(IMAGES[:100])
    assert isinstance(method.network_.autoencoder, ConvAutoencoder)
    assert method.explain().shape == (3, 1, 8, 8)
    as_bytes = TELL(3, epochs=1, center_init="sample", **SMALL).fit(np.rint(IMAGES[:100] * 255).astype(np.uint8))
    assert as_bytes.labels_.shape == (100,)
    flat = TELL(3, epochs=1, arch="mlp", **SMALL).fit(IMAGES[:100, :7])
    assert flat.explain().shape == (3, 1, 7, 8)


def test_own_modules_are_copied():
    with isolated_seed(0):
        encoder, decoder = nn.Linear(64, 4), nn.Sequential(nn.Linear(4, 64), nn.Sigmoid())
    before = encoder.weight.detach().clone()
    method = TELL(3, arch=(encoder, decoder), epochs=1, **SMALL).fit(ROWS[:100])
    assert torch.equal(encoder.weight, before)
    assert not torch.equal(method.network_.autoencoder.encoder.weight, before)


def test_a_stream_is_learnt_chunk_by_chunk():
    stream = TELL(4, center_init="kmeans", warmup_epochs=2, **SMALL)
    for start in range(0, 400, 100):
        assert stream.partial_fit(ROWS[start : start + 100]) is stream
    assert stream.n_iter_ == 4
    assert ["cluster_loss" in row for row in stream.history_] == [False, False, True, True]
    assert stream.labels_.shape == (100,)
    whole = TELL(4, center_init="kmeans", warmup_epochs=2, epochs=1, **SMALL).fit(ROWS[:100])
    centres = whole.cluster_centers_.copy()
    whole.partial_fit(ROWS[100:200])
    assert whole.n_iter_ == 4
    np.testing.assert_array_equal(whole.cluster_centers_, centres)  # the second epoch after the warm-up is an odd one
    with pytest.raises(ValueError, match="X has 60 features, but TELL is expecting 64"):
        stream.partial_fit(ROWS[:50, :60])


def test_random_centres_ask_no_chunk_but_the_first_for_as_many_rows():
    stream = TELL(4, warmup_epochs=1, **SMALL).partial_fit(ROWS[:100])
    assert stream.partial_fit(ROWS[100:102]).n_iter_ == 2
    placed = TELL(4, center_init="sample", warmup_epochs=1, **SMALL).partial_fit(ROWS[:100])
    with pytest.raises(ValueError, match="n_samples=2 must be at least n_clusters=4"):
        placed.partial_fit(ROWS[100:102])


def test_the_other_optimiser_trains_too():
    method = TELL(3, optimizer="adam", epochs=4, center_init="sample", **SMALL).fit(ROWS[:100])
    assert method.history_[-1]["reconstruction_loss"] < method.history_[0]["reconstruction_loss"]
    np.testing.assert_allclose(method.network_.layer.weight.detach().norm(dim=1).numpy(), 2e-3, atol=1e-6)


def test_the_log_tells_the_losses(caplog):
    with caplog.at_level(logging.INFO, logger="models.discover.tell"):
        TELL(3, epochs=4, verbose=2, **SMALL).fit(ROWS[:60])
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["Epoch 2", "Epoch 4"]


# ---- odd input -------------------------------------------------------------------------------------------


def test_labels_change_nothing_even_when_all_are_known():
    plain = TELL(3, epochs=1, **SMALL).fit(ROWS[:60])
    told = TELL(3, epochs=1, **SMALL).fit(ROWS[:60], CLASSES[:60])
    np.testing.assert_array_equal(plain.labels_, told.labels_)


def test_duplicate_rows_share_a_cluster():
    twice = np.concatenate([ROWS[:40], ROWS[:40]])
    labels = TELL(4, epochs=2, center_init="kmeans", **SMALL).fit_predict(twice)
    np.testing.assert_array_equal(labels[:40], labels[40:])


def test_constant_features_and_noise_are_clustered_all_the_same():
    noise = np.random.default_rng(0).random((80, 6))
    noise[:, 2] = 0.5
    method = TELL(3, epochs=2, center_init="kmeans", **SMALL).fit(noise)
    assert set(method.labels_) <= {0, 1, 2}
    assert np.isfinite(method.confidences_).all()


@pytest.mark.filterwarnings("error", category=ConvergenceWarning)
def test_n_clusters_counts_those_that_hold_a_sample():
    rows = np.repeat(ROWS[:2], 20, axis=0)
    method = TELL(2, epochs=2, center_init="random", **SMALL).fit(rows)
    assert method.n_clusters_ == len(np.unique(method.labels_)) <= 2


@pytest.mark.parametrize(
    ("settings", "X", "message"),
    [
        ({"n_clusters": 1}, ROWS[:20], "'n_clusters' parameter of TELL must be an int in the range"),
        ({"alpha": 0}, ROWS[:20], "'alpha' parameter of TELL must be a float in the range"),
        ({"n_clusters": 30}, ROWS[:20], "n_samples=20 must be at least n_clusters=30"),
        ({}, np.repeat(ROWS[:2], 9, axis=0), "X holds 2 distinct rows, fewer than n_clusters=3"),
        ({}, np.where(np.eye(20, 64) > 0, np.nan, 0.5), "X contains NaN"),
        ({}, 16 * ROWS[:20], r"X must hold values in \[0, 1\].*MinMaxScaler"),
        ({}, ROWS[0], "Reshape your data"),
        ({}, IMAGES[:20, :, :6], "square images with sides divisible by 4, got samples shaped"),
        ({"hidden": (32, 0)}, ROWS[:20], r"hidden must hold whole numbers above 0, got \(32, 0\)"),
        ({"hidden": (3.5,)}, ROWS[:20], r"hidden must hold whole numbers above 0, got \(3.5,\)"),
        ({"arch": "conv"}, ROWS[:20], "square images with sides divisible by 4"),
        ({"arch": (nn.Linear(64, 4),)}, ROWS[:20], r"a pair of modules \(encoder, decoder\)"),
        ({"arch": (nn.Linear(64, 5), nn.Linear(5, 64))}, ROWS[:20], r"must give \(B, latent_dim=4\), got \(1, 5\)"),
        ({"arch": (nn.Linear(64, 4), nn.Linear(4, 9))}, ROWS[:20], r"must give samples shaped \(64,\), got \(9,\)"),
    ],
)
def test_bad_input_is_refused(settings, X, message):
    with pytest.raises(ValueError, match=message):
        TELL(**({"n_clusters": 3, "epochs": 1} | SMALL | settings)).fit(X)


def test_samples_of_another_shape_are_refused(fitted):
    with pytest.raises(ValueError, match="samples shaped"):
        fitted.predict(IMAGES[:3])


def test_the_loss_needs_no_unit_scale():
    scores = torch.tensor([[0.2, 0.1]], requires_grad=True)
    loss = clustering_loss(scores, 0.1)
    assert float(loss.detach()) == pytest.approx((0.4 - 0.2) / 2 / 0.1)
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(gradient, torch.tensor([[-5.0, 0.0]]))

"""GLC: the equations on small numbers, its behaviour on rotated digits, and its messages."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import rotate
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch.utils.data import DataLoader, TensorDataset

from models.adapt.glc import (
    GLCAdapter,
    cluster_count,
    confidence_weight,
    estimate_coeff,
    one_vs_all_labels,
    planar,
    positives_per_class,
    prototypes,
    published_schedule,
    soft_label_loss,
    train_source,
)
from models.losses import entropy
from models.metrics import h_score
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier
from models.networks.mlp import MLPEncoder
from models.registry import get_method
from models.training import Hook, hooks

N_KNOWN = 4
FAST = {"epochs": 3, "estimate_on": "pca", "random_state": 0}


def classifier(n_classes=N_KNOWN, in_features=64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SplitClassifier(MLPEncoder(in_features, (64,)), n_classes, embedding_dim=32, normalised_head=True)


@pytest.fixture(scope="module")
def digits():
    """Digits 0-3 (source half) and rotated, dimmed digits 0-5 (target half)."""
    X, y = load_digits(return_X_y=True)
    images = (X / 16).reshape(-1, 8, 8).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    ours, theirs = order[:900], order[900:1500]
    ours, theirs = ours[y[ours] < N_KNOWN], theirs[y[theirs] < 6]
    shifted = rotate(images[theirs], 20, axes=(2, 1), reshape=False, order=1)
    noise = np.random.default_rng(1).uniform(0, 0.15, shifted.shape)
    return images[ours], y[ours], np.clip(0.7 * shifted + noise, 0, 1).astype(np.float32), y[theirs]


@pytest.fixture(scope="module")
def source(digits):
    return train_source(classifier(), digits[0], digits[1], epochs=15, backbone_lr_mult=1.0, random_state=0)


@pytest.fixture(scope="module")
def adapted(digits, source):
    settings = FAST | {"epochs": 8, "lr": 1e-2}
    return GLCAdapter(source, **settings).fit(digits[2])


def weights(model):
    return {name: value.clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize(("coeff", "expected"), [(0.25, 2), (0.5, 3), (1, 6), (2, 12), (3, 18)])
def test_cluster_count(coeff, expected):
    assert cluster_count(6, coeff) == expected


def test_positive_count_depends_on_the_estimated_number_of_classes():
    assert positives_per_class(1200, 6, 0.5) == 400
    assert positives_per_class(1200, 6, 2) == 100
    assert positives_per_class(5, 6, 3) == 1
    assert positives_per_class(100, 2, 0.25) == 50


@pytest.mark.parametrize(("centres", "expected"), [(3, 0.5), (6, 1), (12, 2)])
def test_estimate_finds_the_number_of_blobs(centres, expected):
    rng = np.random.default_rng(0)
    angles = 2 * np.pi * np.arange(centres) / centres
    middle = 20 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.concatenate([m + rng.normal(scale=0.5, size=(30, 2)) for m in middle]).astype(np.float32)
    assert estimate_coeff(points, 6, (0.25, 0.5, 1, 2, 3)) == expected


def test_estimate_skips_more_clusters_than_rows_and_says_when_none_is_left():
    points = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    assert estimate_coeff(points, 6, (0.5, 2, 3)) == 0.5
    with pytest.raises(ValueError, match="Every ratio in coeffs=\\(2, 3\\) asks for at least 10 clusters"):
        estimate_coeff(points, 6, (2, 3))


def test_few_rows_are_mapped_by_pca_with_a_warning():
    z = np.random.default_rng(0).normal(size=(99, 5)).astype(np.float32)
    with pytest.warns(UserWarning, match="99 target rows are too few for t-SNE; PCA is used"):
        mapped = planar(z, "tsne")
    assert np.array_equal(mapped, planar(z, "pca"))


def test_tsne_is_used_from_a_hundred_rows_on():
    z = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    assert not np.allclose(planar(z, "tsne"), planar(z, "pca"))


def test_confidence_weight_is_one_for_rho_one():
    mean = torch.tensor([0.2, 0.8])
    assert torch.equal(confidence_weight(mean, 1.0), torch.ones(2))
    assert torch.allclose(confidence_weight(mean, 0.75), torch.tensor([0.8, 0.95]))


def test_prototypes_by_hand():
    z = F.normalize(torch.tensor([[1, 0.0], [1, 0.2], [0.0, 1], [0.1, 1], [-1, 0], [-1, -0.1]]), dim=1)
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.5, 0.5], [0.5, 0.5]])
    positive, negative, weight = prototypes(z, p, n_positive=2, n_negative=2, rho=0.75, seed=0)
    assert torch.allclose(positive[0], F.normalize(z[:2].mean(0), dim=0))
    assert torch.allclose(positive[1], F.normalize(z[2:4].mean(0), dim=0))
    assert torch.allclose(weight, torch.tensor([0.25 * 0.85 + 0.75, 0.25 * 0.8 + 0.75]))
    centres = F.normalize(torch.stack([z[2:4].mean(0), z[4:].mean(0)]), dim=1)
    assert torch.allclose(torch.cdist(centres, negative[0]).amin(dim=1), torch.zeros(2), atol=1e-3)
    assert torch.allclose(negative.norm(dim=2), torch.ones(2, 2))


def test_negative_sets_are_capped(monkeypatch):
    monkeypatch.setattr("models.adapt.glc.MAX_NEGATIVES", 40)
    seen = []
    real = KMeans.fit
    monkeypatch.setattr(KMeans, "fit", lambda self, X, *rest: seen.append(len(X)) or real(self, X, *rest))
    z = F.normalize(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    prototypes(z, z.softmax(1), n_positive=20, n_negative=3, rho=0.75, seed=0)
    assert seen == [40] * 4


def test_vote_of_the_nearest_prototype_alone_decides():
    z = torch.eye(3)[:2]
    positive = torch.tensor([[0.9, 0.0, 0.0], [0.8, 0.6, 0.0]])
    negative = torch.tensor([[[0.85, 0.0, 0.0]], [[0.7, 0.0, 0.0]]])
    claimed = one_vs_all_labels(z, positive, negative, torch.tensor([1.0, 1.0]))
    assert claimed.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    # A smaller weight loses class 0 its vote; row 0 still passes class 1, which is not its nearest: unknown.
    lost = one_vs_all_labels(z, positive, negative, torch.tensor([0.9, 1.0]))
    assert lost.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_a_draw_counts_as_passed():
    z = torch.tensor([[1.0, 0.0]])
    prototype = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    assert one_vs_all_labels(z, prototype, prototype[:, None], torch.ones(2)).tolist() == [[1.0, 0.0]]


def test_loss_on_known_numbers():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    targets = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    expected = -(np.log(0.5 + 1e-5) + np.log(1e-5)) / 2
    assert float(soft_label_loss(targets, p)) == pytest.approx(expected, rel=1e-5)


def test_last_step_has_the_published_rate():
    assert published_schedule(99, 100) == pytest.approx(11**-0.75)


def test_rates_of_the_last_step_in_training(digits, source):
    rates = {}

    class Rates(Hook):
        def on_batch_end(self, trainer, terms):
            rates["last"] = [group["lr"] for group in trainer.optimizer.param_groups]

    with hooks(Rates()):
        GLCAdapter(source, lr=0.02, **FAST).fit(digits[2])
    assert rates["last"] == pytest.approx([0.02 * 11**-0.75, 0.002 * 11**-0.75])


def test_normalised_entropy_of_uniform_and_one_hot():
    values = entropy(torch.stack([torch.full((5,), 0.2), torch.eye(5)[0]]), normalised=True)
    assert values.tolist() == pytest.approx([1, 0], abs=1e-3)


def test_h_score():
    assert h_score([0, 0, 9, 9], [0, 1, 4, 4], 4) == pytest.approx(2 / 3)
    assert h_score([0, 0, 9, 9], [0, 0, 1, 1], 4) == 0


def test_pseudo_labels_are_one_hot_or_uniform(adapted):
    labels = adapted.pseudo_labels_
    assert np.allclose(labels.sum(axis=1), 1)
    top = labels.max(axis=1)
    assert set(np.unique(top)) == {np.float32(1 / N_KNOWN), np.float32(1)}
    assert np.allclose(labels[top < 1], 1 / N_KNOWN)


def test_adapting_raises_the_accuracy_of_shared_classes(digits, source, adapted):
    _, _, X, y = digits
    shared = y < N_KNOWN
    with torch.no_grad():
        before = source(torch.from_numpy(X).unsqueeze(1)).argmax(1).numpy()
    after = adapted.predict(X, reject=False)
    assert (after == y)[shared].mean() >= (before == y)[shared].mean() + 0.02
    assert adapted.unknown_score(X)[~shared].mean() > adapted.unknown_score(X)[shared].mean() + 0.05


def test_head_is_bit_identical_and_the_given_model_untouched(digits, source):
    before = weights(source)
    adapter = GLCAdapter(source, lr=1e-2, **FAST).fit(digits[2])
    for name, old in before.items():
        assert torch.equal(old, dict(source.named_parameters())[name])
        new = dict(adapter.model_.named_parameters())[name]
        assert torch.equal(old, new) == name.startswith("head.")
        assert new.requires_grad


def test_no_weights_no_decay_no_change(digits, source):
    adapter = GLCAdapter(source, lam_psd=0, lam_knn=0, weight_decay=0, **FAST).fit(digits[2])
    assert all(torch.equal(old, new) for old, new in zip(source.parameters(), adapter.model_.parameters(), strict=True))


def test_predictions_agree_with_each_other(digits, adapted):
    X = digits[2]
    p, score = adapted.predict_proba(X), adapted.unknown_score(X)
    rejected = score > adapted.reject_threshold
    assert p.shape == (len(X), N_KNOWN) and np.allclose(p.sum(1), 1, atol=1e-5)
    assert 0 < rejected.mean() < 1
    assert np.array_equal(adapted.predict(X), np.where(rejected, N_KNOWN, p.argmax(1)))
    assert np.array_equal(adapted.predict(X, reject=False), p.argmax(1))


def test_fitted_attributes_and_history(adapted):
    assert adapted.n_classes_ == N_KNOWN
    assert adapted.n_target_classes_ == cluster_count(N_KNOWN, adapted.coeff_)
    assert [row["epoch"] for row in adapted.history_] == list(range(8))
    row = adapted.history_[-1]
    assert row["loss"] == pytest.approx(0.3 * row["loss_global"] + row["loss_local"], rel=1e-4)
    assert row["pseudo_unknown"] == pytest.approx((adapted.pseudo_labels_.max(axis=1) < 1).mean(), rel=1e-5)


def test_equal_seeds_equal_results_and_global_state_kept(digits, source):
    X = digits[2].copy()
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    first = GLCAdapter(source, silhouette_max=150, **FAST).fit(X)
    assert (torch.rand(1), np.random.rand()) == expected
    second = clone(first).fit(X)
    assert np.array_equal(first.predict_proba(X), second.predict_proba(X))
    assert np.array_equal(X, digits[2])


def test_loader_gives_what_the_tensor_gives(digits, source):
    X = torch.from_numpy(digits[2]).unsqueeze(1)
    pairs = TensorDataset(X, torch.arange(len(X)))
    loader = DataLoader(pairs, batch_size=50, shuffle=True, generator=torch.Generator().manual_seed(3))
    from_loader = GLCAdapter(source, **FAST).fit(loader)
    from_tensor = GLCAdapter(source, **FAST).fit(X)
    assert np.array_equal(from_loader.predict_proba(X), from_tensor.predict_proba(X))


def test_refresh_spares_the_epochs_between(digits, source, monkeypatch):
    calls = []
    monkeypatch.setattr("models.adapt.glc.prototypes", lambda *given: calls.append(1) or prototypes(*given))
    GLCAdapter(source, refresh=2, **FAST).fit(digits[2])
    assert len(calls) == 2
    GLCAdapter(source, **FAST).fit(digits[2])
    assert len(calls) == 5


def test_augment_sees_training_batches_only(digits, source):
    seen = []

    def view(x):
        seen.append(len(x))
        return x.flip(-1)

    adapter = GLCAdapter(source, augment=view, **FAST).fit(digits[2])
    assert seen == [64] * (3 * (len(digits[2]) // 64))
    plain = GLCAdapter(source, **FAST).fit(digits[2])
    assert not np.array_equal(adapter.predict_proba(digits[2]), plain.predict_proba(digits[2]))


def test_one_ratio_skips_the_estimate(digits, source, monkeypatch):
    monkeypatch.setattr("models.adapt.glc.planar", None)
    adapter = GLCAdapter(source, coeffs=(2,), **FAST).fit(digits[2])
    assert adapter.coeff_ == 2 and adapter.n_target_classes_ == 8


def test_fewer_rows_than_a_batch(digits, source):
    before = weights(source)
    adapter = GLCAdapter(source, **FAST).fit(digits[2][:20])
    assert not torch.equal(before["embedding.0.weight"], dict(adapter.model_.named_parameters())["embedding.0.weight"])


def test_table_rows(digits, source):
    flat = digits[2].reshape(len(digits[2]), -1)
    images = GLCAdapter(source, **FAST).fit(digits[2])
    table = GLCAdapter(source, **FAST).fit(flat)
    assert np.array_equal(images.predict(digits[2]), table.predict(flat))


def test_convolutional_encoder(digits):
    model = SplitClassifier(ConvEncoder((4, 8)), N_KNOWN, embedding_dim=16, normalised_head=True)
    adapter = GLCAdapter(model, **(FAST | {"epochs": 1})).fit(digits[2])
    assert adapter.predict(digits[2][:7]).shape == (7,)


def test_train_source_learns_and_leaves_the_model_alone(digits):
    model = classifier()
    before = weights(model)
    trained = train_source(model, digits[0], digits[1], epochs=10, backbone_lr_mult=1.0, random_state=0)
    again = train_source(model, digits[0], digits[1], epochs=10, backbone_lr_mult=1.0, random_state=0)
    X = torch.from_numpy(digits[0]).unsqueeze(1)
    with torch.no_grad():
        assert (trained(X).argmax(1).numpy() == digits[1]).mean() > 0.97
        assert torch.equal(trained(X), again(X))
    assert all(torch.equal(old, model.get_parameter(name)) for name, old in before.items())
    assert all(not torch.equal(old, trained.get_parameter(name)) for name, old in before.items() if "head" in name)
    assert not trained.training


def test_registered():
    card = get_method("glc")
    assert card.cls is GLCAdapter and card.stage == "adapt" and card.accepts == ("image", "table", "embedding")


def test_too_few_rows(digits, source):
    with pytest.raises(ValueError, match="at least 8 target rows for 4 source classes and local_k=4, got 7"):
        GLCAdapter(source).fit(digits[2][:7])
    with pytest.raises(ValueError, match="at least 21 target rows for 4 source classes and local_k=20, got 20"):
        GLCAdapter(source, local_k=20).fit(digits[2][:20])


def test_one_class(digits):
    with pytest.raises(ValueError, match="at least two source classes, got one with 1"):
        GLCAdapter(classifier(1)).fit(digits[2])


def test_batch_of_one(digits, source):
    with pytest.raises(ValueError, match="'batch_size' parameter of GLCAdapter must be an int in the range"):
        GLCAdapter(source, batch_size=1).fit(digits[2])


def test_model_without_the_protocol(digits):
    with pytest.raises(ValueError, match="'model' parameter of GLCAdapter must be an object implementing"):
        GLCAdapter(torch.nn.Linear(64, 4)).fit(digits[2])


def test_model_for_other_rows(digits):
    with pytest.raises(ValueError, match=r"does not take rows shaped \(1, 8, 8\)"):
        GLCAdapter(classifier(in_features=50)).fit(digits[2])


def test_nothing_left_to_train(digits):
    with pytest.raises(ValueError, match="No parameter in the groups embedding, backbone"):
        GLCAdapter(classifier().requires_grad_(False), **FAST).fit(digits[2])


@pytest.mark.parametrize("coeffs", [(), (0, 1), (float("inf"),)])
def test_coeffs_must_be_positive(digits, source, coeffs):
    with pytest.raises(ValueError, match="coeffs must hold at least one ratio, all above 0"):
        GLCAdapter(source, coeffs=coeffs).fit(digits[2])


def test_bad_rows(digits, source, adapted):
    spoilt = digits[2].copy()
    spoilt[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite pixels in 1 image"):
        GLCAdapter(source).fit(spoilt)
    with pytest.raises(ValueError, match=r"rows shaped \(1, 8, 8\) as in fit, got \(1, 7, 8\)"):
        adapted.predict(digits[2][:, 1:])


def test_loader_without_index(digits, source):
    X = torch.from_numpy(digits[2])
    with pytest.raises(ValueError, match=r"must yield pairs \(rows, index\)"):
        GLCAdapter(source).fit(DataLoader(TensorDataset(X), batch_size=50))
    with pytest.raises(ValueError, match=r"must yield each index 0\.\.49 once"):
        GLCAdapter(source).fit(DataLoader(TensorDataset(X[:50], torch.zeros(50, dtype=torch.long)), batch_size=50))


def test_unfitted(digits, source):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        GLCAdapter(source).predict(digits[2])


def test_train_source_labels(digits):
    with pytest.raises(ValueError, match=r"y must lie in 0\.\.2, got 3"):
        train_source(classifier(3), digits[0], digits[1])

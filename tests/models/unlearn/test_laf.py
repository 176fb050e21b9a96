"""LAF: its two losses, what it must leave alone, the forms of classifier it takes, and digits forgotten."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from models.networks import build
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier
from models.networks.mlp import MLPEncoder
from models.networks.vae import VAE, fit_vae, kl_to_standard_normal
from models.registry import get_method
from models.training import Hook, hooks
from models.unlearn.baselines import fine_tune, gradient_ascent, reinitialised, retrain
from models.unlearn.laf import LAF, LabelAgnosticForgetting, alignment_loss, drift, squashed, unlearning_loss
from models.unlearn.split import ExtractorAndHead, SplitView


class LogitsAndEmbedding(nn.Module):
    """The (logits, embedding) form."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x):
        inner = self.body(x.flatten(1))
        return self.last(inner), inner


def small_pair() -> ExtractorAndHead:
    extractor = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    return ExtractorAndHead(extractor, nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)))


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    X = torch.from_numpy((data.images / 16).astype(np.float32)).unsqueeze(1)
    return X[:1300], data.target[:1300], X[1300:], data.target[1300:]


@pytest.fixture(scope="module")
def original(digits):
    """A classifier that knows all ten digits."""
    X, y, X_test, y_test = digits
    model = retrain(small_pair(), X, y, epochs=15, lr=2e-3)
    assert accuracy(model, X_test, y_test) > 0.88
    return model


@pytest.fixture(scope="module")
def forgotten(digits, original):
    """The same with all zeros removed, without labels."""
    return zeros_forgotten(original, digits, lr_align=2e-3)


def zeros_forgotten(original, digits, lr_align):
    X, y, _, _ = digits
    laf = quick(original, epochs=20, batch_size=16, lr_unlearn=1e-3, lr_align=lr_align, vae_epochs=4)
    return laf.fit(X[y == 0], X[y != 0][:800])


def quick(model, **parameters):
    return LabelAgnosticForgetting(model, **({"epochs": 1, "vae_epochs": 1, "random_state": 0} | parameters))


def accuracy(model, X, y):
    with torch.no_grad():
        return float((SplitView(model)(X).argmax(1).numpy() == y).mean())


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---- losses -------------------------------------------------------------------------------------------


def test_squash_runs_from_one_to_e():
    s = torch.linspace(0, 50, 200, dtype=torch.float64)
    rho = squashed(s)
    assert rho[0] == 1
    assert (rho.diff() > 0).all()
    assert squashed(torch.tensor(math.inf)) == pytest.approx(math.e)
    torch.testing.assert_close(rho, torch.exp(s / (s + 1)))
    assert torch.equal(squashed(s, "plain"), s)


def test_unlearning_loss_is_a_difference_of_sums():
    remain, forget = torch.tensor([0.0, 1.0]), torch.tensor([3.0])
    expected = 1 + math.exp(0.5) - math.exp(0.75)
    assert unlearning_loss(remain, forget).item() == pytest.approx(expected, rel=1e-6)
    assert unlearning_loss(remain, forget, "plain").item() == pytest.approx(-2)


def test_alignment_loss_without_drift():
    g0 = torch.randn(7, 5, dtype=torch.float64)
    d_remain, d_forget = drift(g0[:4], g0[:4]), drift(g0[4:], g0[4:])
    assert d_remain.abs().max() < 1e-12
    assert alignment_loss(d_remain, d_forget, 20.0).item() == pytest.approx(-4 * math.log(3))


def test_alignment_loss_is_the_published_ratio_with_tau_on_the_forget_side_only():
    d_remain, d_forget, tau = torch.tensor([0.1, 0.7]), torch.tensor([0.3, 1.5, 0.0]), 5.0
    expected = sum(math.log(math.exp(d) / sum(math.exp(f / tau) for f in d_forget.tolist())) for d in d_remain.tolist())
    assert alignment_loss(d_remain, d_forget, tau).item() == pytest.approx(expected, rel=1e-6)
    assert alignment_loss(torch.tensor([0.0]), torch.tensor([5000.0]), 1.0).item() == -5000  # no overflow


def test_alignment_keeps_remaining_and_pushes_forgotten_away():
    remain, forget = torch.tensor([0.2, 0.2], requires_grad=True), torch.tensor([0.2, 0.2], requires_grad=True)
    alignment_loss(remain, forget, 20.0).backward()
    assert (remain.grad > 0).all()
    assert (forget.grad < 0).all()


def test_drift_ignores_length_and_reaches_two():
    x = torch.tensor([[1.0, 0.0]])
    assert drift(3 * x, x).item() == pytest.approx(0)
    assert drift(-x, x).item() == pytest.approx(2)


def test_losses_give_the_head_no_gradient(digits):
    X = digits[0][:20]
    model = small_pair()
    teacher, view = SplitView(copy.deepcopy(model)), SplitView(model)
    moved = view.features(X + 0.1)
    d = drift(moved, teacher.features(X).detach())
    alignment_loss(d[:10], d[10:], 20.0).backward()
    assert all(parameter.grad is None for parameter in model.head.parameters())
    assert all(parameter.grad is not None for parameter in model.extractor.parameters())


# ---- the VAE ------------------------------------------------------------------------------------------


def test_vae_is_rebuilt_from_its_description():
    vae = VAE(6, latent_dim=2, hidden=(5, 3), sigmoid=True)
    assert same_shapes(vae, build(vae.architecture))
    assert ((vae(torch.randn(9, 6))[0] > 0) & (vae(torch.randn(9, 6))[0] < 1)).all()


def same_shapes(first, second):
    shapes = [[(key, value.shape) for key, value in module.state_dict().items()] for module in (first, second)]
    return shapes[0] == shapes[1]


def test_vae_layers_are_the_published_ones():
    widths = [tuple(weight.shape) for key, weight in VAE(256).state_dict().items() if key.endswith("weight")]
    assert widths == [(128, 256), (32, 128), (8, 32), (8, 32), (32, 8), (128, 32), (256, 128)]


def test_kl_against_the_closed_form():
    mean, log_variance = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, math.log(4)]])
    expected = (0.5 + 0.5 * (4 - 1 - math.log(4))) / 2
    assert kl_to_standard_normal(mean, log_variance).item() == pytest.approx(expected)
    assert kl_to_standard_normal(torch.zeros(3, 2), torch.zeros(3, 2)).item() == 0


def test_vae_redraws_its_own_rows_better_than_others():
    torch.manual_seed(0)
    rows = torch.randn(300, 1) @ torch.randn(1, 10)
    vae = fit_vae(rows, latent_dim=2, epochs=15)
    others = torch.randn(300, 10) * rows.std()
    assert ((vae(rows)[0] - rows) ** 2).sum(1).mean() < 0.5 * ((vae(others)[0] - others) ** 2).sum(1).mean()
    assert not any(parameter.requires_grad for parameter in vae.parameters())


# ---- what must stay as it was -------------------------------------------------------------------------


def test_model_is_unchanged_and_head_is_identical(digits, original, forgotten):
    X, y, _, _ = digits
    before = state(original)
    laf = quick(original).fit(X[y == 0], X[y != 0])
    assert same(before, state(original))
    assert same(state(original.head), state(laf.model_.head))
    assert not same(state(original.extractor), state(laf.model_.extractor))
    assert same(state(original), state(laf.teacher_))
    assert same(state(original.head), state(forgotten.model_.head))


def test_zero_rates_leave_predictions_identical(digits):
    X = digits[0]
    model = SplitClassifier(ConvEncoder((4, 8)), n_classes=10, embedding_dim=16)
    view = SplitView(model)
    expected = torch.softmax(view(X[:100]), 1).detach().numpy()
    laf = quick(model, lr_unlearn=0.0, lr_align=0.0).fit(X[:64], X[64:200])
    np.testing.assert_array_equal(laf.predict_proba(X[:100]), expected)


def test_batch_norm_is_frozen_unless_asked(digits):
    X = digits[0][:160]
    model = SplitClassifier(MLPEncoder(64, (16, 8)), n_classes=10, embedding_dim=None)

    def statistics(module):
        return torch.cat([value.float().flatten() for value in module.buffers()])

    assert torch.equal(statistics(quick(model).fit(X[:40], X[40:]).model_), statistics(model))
    moved = quick(model, freeze_batch_norm=False).fit(X[:40], X[40:]).model_
    assert not torch.equal(statistics(moved), statistics(model))
    assert not moved.training


def test_inputs_and_global_random_state_are_untouched(digits, original):
    X = digits[0][:100].numpy().copy()
    kept, torch_state, numpy_state = X.copy(), torch.get_rng_state(), np.random.get_state()[1].copy()
    quick(original).fit(X[:40], X[40:])
    np.testing.assert_array_equal(X, kept)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_equal_seeds_give_equal_results(digits, original):
    X = digits[0]
    first, second, other = (quick(original, random_state=seed).fit(X[:64], X[64:300]) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.transform(X), second.transform(X))
    assert not np.array_equal(first.transform(X), other.transform(X))


# ---- forms of classifier and of input ------------------------------------------------------------------


def test_every_form_of_classifier_is_split(digits):
    X = digits[0][:100]
    pair = small_pair()
    forms = [
        quick(None, extractor=pair.extractor, head=pair.head),
        quick(pair),
        quick(LogitsAndEmbedding()),
        quick(SplitClassifier(ConvEncoder((4, 8)), 10, embedding_dim=12)),
        quick(SplitClassifier(ConvEncoder((4, 8)), 10, embedding_dim=12, normalised_head=True)),
    ]
    for laf, width in zip(forms, (32, 32, 16, 12, 12), strict=True):
        laf.fit(X[:40], X[40:])
        assert laf.transform(X).shape == (100, width)
        assert laf.transform(X).dtype == laf.predict_proba(X).dtype == np.float32
        assert laf.predict(X).dtype == np.int64
        np.testing.assert_allclose(laf.predict_proba(X).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(forms[0].transform(X), forms[1].transform(X))
    assert isinstance(forms[2].model_, LogitsAndEmbedding)


def test_data_sets_and_loaders_are_read_without_labels(digits, original):
    X, y = digits[0][:100], torch.from_numpy(digits[1][:100])
    plain = quick(original).fit(X[:40], X[40:])
    data = quick(original).fit(TensorDataset(X[:40], y[:40]), DataLoader(TensorDataset(X[40:], y[40:]), batch_size=7))
    np.testing.assert_array_equal(plain.transform(X), data.transform(TensorDataset(X, y)))


def test_short_forget_set_still_takes_steps(digits, original):
    X = digits[0]
    laf = quick(original, epochs=3).fit(X[:1], X[1:200])
    assert laf.n_iter_ == 3
    assert not same(state(original), state(laf.model_))


def test_steps_follow_the_shorter_side(digits, original):
    X = digits[0]
    laf = quick(original, epochs=2, batch_size=16).fit(X[:40], X[40:300])
    assert laf.n_iter_ == 2 * 3
    assert [set(row) >= {"loss_unlearn", "loss_align"} for row in laf.history_] == [True, True]
    assert laf.fit_seconds_ > 0


def test_remaining_vae_sees_what_the_option_says(digits, original):
    X = digits[0]
    everything, remain = (quick(original, remain_vae_data=data).fit(X[:64], X[64:200]) for data in ("all", "remain"))
    assert not same(state(everything.vae_remain_), state(remain.vae_remain_))
    assert isinstance(quick(original, vae_sigmoid=True).fit(X[:9], X[9:99]).vae_forget_.decoder[-1], nn.Sigmoid)


def test_ambient_hooks_see_every_training(digits, original):
    seen = []

    class Labels(Hook):
        def on_fit_begin(self, trainer):
            seen.append(trainer.label)

    with hooks(Labels()):
        quick(original, repair_epochs=1).fit(digits[0][:40], digits[0][40:99], digits[0][40:60], digits[1][40:60])
    assert seen == ["remaining VAE", "forget VAE", "forget", "fine-tune"]


def test_verbose_says_the_losses(digits, original, capsys):
    quick(original, epochs=2, verbose=1).fit(digits[0][:40], digits[0][40:99])
    assert capsys.readouterr().out.count("L_RA") == 2


# ---- errors -------------------------------------------------------------------------------------------


def test_clear_errors(digits, original):
    X, y = digits[0][:50], digits[1][:50]
    with pytest.raises(ValueError, match="X_forget must hold at least one sample"):
        quick(original).fit(X[:0], X)
    with pytest.raises(ValueError, match="X_remain must hold at least one sample"):
        quick(original).fit(X, X[:0])
    with pytest.raises(ValueError, match="temperature"):
        quick(original, temperature=0.0).fit(X, X)
    with pytest.raises(ValueError, match=r"embedding must be shaped \(n, d\), got \(2, 4, 8, 8\)"):
        quick(None, extractor=nn.Conv2d(1, 4, 3, padding=1), head=nn.Flatten()).fit(X, X)
    with pytest.raises(ValueError, match="needs X_repair and y_repair with at least one label"):
        quick(original, repair_epochs=1).fit(X, X)
    with pytest.raises(ValueError, match="all 50 rows are unlabelled"):
        quick(original, repair_epochs=1).fit(X, X, X, np.full(50, -1))
    with pytest.raises(ValueError, match=r"y_repair must lie in 0\.\.9, got 10"):
        quick(original, repair_epochs=1).fit(X, X, X, y + 1)
    with pytest.raises(NotFittedError, match="not fitted"):
        quick(original).predict(X)
    with pytest.raises(ValueError, match="got none of them"):
        LAF().fit(X, X)
    with pytest.raises(ValueError, match="got model and head"):
        LAF(original, head=nn.Linear(2, 2)).fit(X, X)
    with pytest.raises(ValueError, match="returned one tensor"):
        quick(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))).fit(X, X)
    with pytest.raises(ValueError, match="X_forget contains NaN or infinite entries in 1 row"):
        quick(original).fit(torch.where(torch.arange(50)[:, None, None, None] == 3, math.nan, X), X)
    with pytest.raises(ValueError, match=r"X_forget must be shaped \(n, 1, 8, 8\)"):
        quick(original).fit(X[..., :4], X)
    with pytest.raises(ValueError, match=r"X must be shaped \(n, 1, 8, 8\)"):
        quick(original).fit(X[:20], X).predict(X[:, :, :4])


# ---- behaviour on digits -------------------------------------------------------------------------------


def test_a_class_is_forgotten_without_labels(digits, original, forgotten):
    _, _, X_test, y_test = digits
    zero = y_test == 0
    assert accuracy(original, X_test[zero], y_test[zero]) > 0.9
    assert (forgotten.predict(X_test[zero]) == 0).mean() < 0.1
    kept = accuracy(original, X_test[~zero], y_test[~zero])
    assert (forgotten.predict(X_test[~zero]) == y_test[~zero]).mean() > kept - 0.1


def test_alignment_is_what_keeps_the_rest(digits, original, forgotten):
    _, _, X_test, y_test = digits
    without = zeros_forgotten(original, digits, lr_align=0.0)
    rest = y_test != 0
    kept, lost = ((laf.predict(X_test[rest]) == y_test[rest]).mean() for laf in (forgotten, without))
    assert kept > lost + 0.1


def test_repair_uses_labelled_rows_only(digits, original):
    X, y, _, _ = digits
    labels = np.where(np.arange(300) < 200, y[:300], -1)
    rest = quick(original, repair_epochs=2).fit(X[1000:1100], X[:300], X[:300], labels)
    alone = quick(original, repair_epochs=2).fit(X[1000:1100], X[:300], X[:200], y[:200])
    np.testing.assert_array_equal(rest.transform(X), alone.transform(X))
    assert not same(state(rest.model_.head), state(original.head))


def test_repair_of_the_head_leaves_the_features(digits):
    X, y, _, _ = digits
    for model in (small_pair(), LogitsAndEmbedding()):
        unrepaired = quick(model).fit(X[:64], X[64:200])
        repaired = quick(model, repair_epochs=2, repair_scope="head").fit(X[:64], X[64:200], X[64:200], y[64:200])
        np.testing.assert_array_equal(unrepaired.transform(X), repaired.transform(X))
        assert not np.array_equal(unrepaired.predict_proba(X), repaired.predict_proba(X))


# ---- baselines ------------------------------------------------------------------------------------------


def test_baselines_leave_the_model_alone_and_do_what_they_say(digits, original):
    X, y, X_test, y_test = digits
    before, zero = state(original), y == 0
    ascended = gradient_ascent(original, X[zero], y[zero], epochs=10, lr=3e-4)
    assert accuracy(ascended, X[zero], y[zero]) < 0.5
    tuned = fine_tune(original, X[~zero], y[~zero], epochs=1)
    assert accuracy(tuned, X_test, y_test) > 0.85
    assert accuracy(retrain(original, X[~zero], y[~zero], epochs=3, lr=2e-3), X[zero], y[zero]) == 0
    assert same(before, state(original))
    assert all(parameter.grad is None for parameter in ascended.parameters())
    with pytest.raises(ValueError, match="scope must be 'all' or 'head'"):
        fine_tune(original, X, y, scope="tail")
    with pytest.raises(ValueError, match="unlabelled"):
        retrain(original, X[:5], np.full(5, -1))


def test_fresh_weights_are_fresh():
    described = SplitClassifier(MLPEncoder(64), 10, normalised_head=True)
    for model in (described, small_pair()):
        fresh = reinitialised(model)
        assert same_shapes(model, fresh)
        weights = zip(model.parameters(), fresh.parameters(), strict=True)
        assert all(not torch.equal(a, b) for a, b in weights if a.ndim > 1 and a.std() > 0)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    with pytest.raises(ValueError, match="no reset_parameters"):
        reinitialised(Bare())


def test_registered():
    card = get_method("laf", "unlearn")
    assert card.cls is LabelAgnosticForgetting
    assert card.cls is LAF

import sys
import types

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from torch import nn

from models.registry import get_method
from models.training import ClassifierTrainer, adam
from models.validate.persistence import (
    count_clusters,
    h0_persistence,
    h0_persistence_knn,
    largest_gap,
    normalised_times,
    persistence_score,
)
from models.validate.separability import (
    PersistenceSeparability,
    SeparabilityHook,
    SeparabilityStopper,
    calinski_harabasz,
    compare,
    cv_auc,
    fisher_ratio,
    thornton_index,
)


def blobs(rng, centres, spread, per_cluster=30):
    centres = np.asarray(centres, dtype=float)
    labels = np.repeat(np.arange(len(centres)), per_cluster)
    return centres[labels] + spread * rng.normal(size=(len(labels), centres.shape[1])), labels


def plain(**parameters):
    return PersistenceSeparability(normalize=False, random_state=0, **parameters)


def test_it_is_registered_for_the_validate_stage():
    card = get_method("separability")
    assert (card.stage, card.cls) == ("validate", PersistenceSeparability)
    assert set(card.accepts) == {"embedding", "image", "table", "text"}


def test_deaths_and_score_of_four_points_on_a_line():
    deaths = h0_persistence([[0.0], [1.0], [3.0], [7.0]])
    assert deaths.tolist() == [1, 2, 4]
    assert persistence_score(deaths) == pytest.approx(5 / 12)


def test_equal_spacing_scores_zero():
    assert persistence_score(h0_persistence(np.arange(20.0)[:, None])) == pytest.approx(0)


@pytest.mark.parametrize("sizes", [(5, 5), (3, 9)])
def test_two_coincident_blobs_score_one_minus_one_over_m(sizes):
    points = np.repeat([[0.0, 0.0], [3.0, 4.0]], sizes, axis=0)
    m = len(points) - 1
    deaths = h0_persistence(points)
    assert deaths.tolist() == [0] * (m - 1) + [5]
    assert persistence_score(deaths) == pytest.approx(1 - 1 / m)


@pytest.mark.parametrize("seed", range(5))
def test_score_is_invariant_to_rigid_motion_scale_and_row_order(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(60, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    reference = plain().fit(X).score_
    for moved in (X + rng.normal(size=4) * 50, X @ rotation, X * 1234.5, X[rng.permutation(60)]):
        assert plain().fit(moved).score_ == pytest.approx(reference, abs=1e-9)


def test_normalize_makes_row_lengths_irrelevant():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    stretched = X * rng.uniform(0.1, 9, size=(40, 1))
    assert PersistenceSeparability().fit(stretched).score_ == pytest.approx(PersistenceSeparability().fit(X).score_)
    assert plain().fit(stretched).score_ != pytest.approx(plain().fit(X).score_, abs=1e-3)


def test_backends_that_leave_out_zero_deaths_agree(monkeypatch):
    X = np.random.default_rng(1).normal(size=(120, 6))
    X[50:57] = X[:7]

    def stand_in(distances, maxdim, distance_matrix):
        assert maxdim == 0 and distance_matrix
        deaths = linkage(squareform(distances), "single")[:, 2]
        bars = np.append(deaths[deaths > 0], np.inf)
        return {"dgms": [np.stack([np.zeros_like(bars), bars], axis=1)]}

    module = types.ModuleType("ripser")
    module.ripser = stand_in
    monkeypatch.setitem(sys.modules, "ripser", module)
    np.testing.assert_allclose(h0_persistence(X, backend="ripser"), h0_persistence(X), atol=1e-9)


@pytest.mark.parametrize("metric", ["euclidean", "cityblock", "cosine"])
def test_deaths_equal_single_linkage_merge_heights(metric):
    X = load_digits().data[:200]
    X = np.concatenate([X, X[:5]])
    np.testing.assert_allclose(h0_persistence(X, metric), np.sort(linkage(X, "single", metric)[:, 2]), atol=1e-9)


def test_knn_deaths_bound_the_true_ones_from_above_and_join_far_components():
    X, _ = blobs(np.random.default_rng(2), [[0, 0], [100, 0], [0, 300]], 1.0)
    X = np.concatenate([X, X[:4]])
    exact, bound = h0_persistence(X), h0_persistence_knn(X, neighbours=4)
    assert len(bound) == len(exact)
    assert (bound >= exact - 1e-9).all()
    assert bound[-2:] == pytest.approx(exact[-2:])
    assert (bound[:4] == 0).all()
    np.testing.assert_allclose(h0_persistence_knn(X, neighbours=89), exact, atol=1e-9)
    assert h0_persistence_knn(np.ones((5, 2))).tolist() == [0] * 4


@pytest.mark.parametrize("seed", range(5))
def test_shrinking_two_clusters_never_lowers_the_score_once_the_gap_is_the_longest_edge(seed):
    X, y = blobs(np.random.default_rng(seed), [[0, 0], [12, 0]], 1.0)
    means = np.array([X[y == c].mean(axis=0) for c in (0, 1)])
    scores = [persistence_score(h0_persistence(means[y] + s * (X - means[y]))) for s in np.linspace(1, 0.01, 25)]
    assert (np.diff(scores) >= -1e-12).all()
    assert scores[-1] > scores[0] + 0.05


def test_k_tight_far_blobs_score_at_least_the_bound():
    X, _ = blobs(np.random.default_rng(0), 1000 * np.eye(5), 1e-6)
    assert persistence_score(h0_persistence(X)) >= 1 - 4 / (len(X) - 1) - 1e-6


def test_every_statistic_rates_tight_above_wide():
    rng = np.random.default_rng(3)
    tight, wide = (h0_persistence(blobs(rng, 10 * np.eye(3), s)[0]) for s in (0.1, 3.0))
    for statistic in ("mean", "median", "quantile", "entropy"):
        assert 0 <= persistence_score(wide, statistic) < persistence_score(tight, statistic) < 1, statistic
    assert persistence_score([1, 1, 1, 1], "entropy") == pytest.approx(0)
    assert persistence_score([1, 2, 4], "median") == pytest.approx(0.5)
    assert persistence_score([1, 2, 3, 4, 5], "quantile", q=0.25) == pytest.approx(0.6)


def test_q99_is_not_hostage_to_one_outlier():
    X = np.random.default_rng(4).normal(size=(200, 2))
    dirty = X.copy()
    dirty[0] = 1000
    jump = {
        how: persistence_score(h0_persistence(dirty), normaliser=how)
        - persistence_score(h0_persistence(X), normaliser=how)
        for how in ("max", "q99")
    }
    assert jump["max"] > 0.15
    assert abs(jump["q99"]) < 0.08
    assert normalised_times([1.0] * 200 + [9.0], "q99").max() == 1
    assert plain(subsample=None).fit(dirty).largest_gap_ > 100


def test_gap_and_clusters_are_read_from_the_long_deaths():
    assert largest_gap([1.0, 2.0, 8.0]) == 4
    assert largest_gap([0.0, 0.0, 1.0]) == np.inf
    X, _ = blobs(np.random.default_rng(5), 50 * np.eye(4), 1.0)
    assert count_clusters(h0_persistence(X)) == 4
    assert count_clusters(h0_persistence(np.arange(50.0)[:, None])) == -1
    measure = plain(subsample=60, n_subsamples=3).fit(X)
    assert measure.estimated_clusters_ == 4
    assert measure.n_components_at(0) == 60
    assert measure.n_components_at([0.5, 1.0]).tolist() == [4, 1]
    assert len(measure.persistence_) == 3 * 59


def test_subsets_are_drawn_once_and_reused():
    X = load_digits().data
    measure = PersistenceSeparability(subsample=100, n_subsamples=4, random_state=0).fit(X)
    assert len(measure.subsets_) == 4
    assert measure.score(X) == measure.score_
    assert measure.score_std_ == pytest.approx(np.std(measure.subset_scores(X)))
    again = PersistenceSeparability(subsample=100, n_subsamples=4, random_state=0, n_jobs=2).fit(X)
    assert again.score_ == measure.score_
    other = PersistenceSeparability(subsample=100, n_subsamples=4, random_state=1).fit(X)
    assert other.score_ != measure.score_


def test_fit_leaves_the_input_and_the_global_state_alone():
    X = load_digits().data[:100]
    before, state = X.copy(), np.random.get_state()[1].copy()
    PersistenceSeparability(subsample=20).fit(X)
    assert (before == X).all()
    assert (np.random.get_state()[1] == state).all()


def test_small_data_is_scored_whole_and_large_data_from_the_graph(monkeypatch):
    X = load_digits().data[:150]
    whole = plain().fit(X)
    assert len(whole.subsets_) == 1
    assert whole.score_ == pytest.approx(persistence_score(h0_persistence(X)))
    monkeypatch.setattr("models.validate.separability.EXACT_ROWS", 100)
    graph = plain(subsample=None).fit(X)
    assert graph.score_ == pytest.approx(persistence_score(h0_persistence_knn(X)))


def test_duplicates_are_counted_with_a_warning_or_left_out():
    X = np.random.default_rng(6).normal(size=(40, 3))
    doubled = np.concatenate([X, X])
    clean = plain().fit(X).score_
    with pytest.warns(UserWarning, match="40 duplicate row"):
        counted = plain().fit(doubled).score_
    assert counted > clean + 0.1
    assert plain(drop_duplicates=False).fit(doubled).score_ == counted
    assert plain(drop_duplicates=True).fit(doubled).score_ == pytest.approx(clean)


def test_supervised_references_tell_apart_from_mixed():
    rng = np.random.default_rng(7)
    X, y = blobs(rng, [[0, 0], [9, 0]], 1.0)
    mixed = rng.permutation(y)
    assert thornton_index(X, y) == 1
    assert 0.3 < thornton_index(X, mixed) < 0.7
    assert cv_auc(X, y) == 1
    assert cv_auc(X, mixed) < 0.75
    assert fisher_ratio(X, y) > 5 > 0.5 > fisher_ratio(X, mixed)
    assert fisher_ratio([[-1.0], [1.0], [3.0], [5.0]], [0, 0, 1, 1]) == pytest.approx(4.0)
    assert calinski_harabasz(X, 2) > calinski_harabasz(rng.normal(size=X.shape), 2)


def test_two_gaussians_in_the_plane_follow_the_fisher_ratio_once_the_gap_is_open():
    rng = np.random.default_rng(0)
    noise, y = rng.normal(size=(200, 2)), np.repeat([0, 1], 100)
    clouds = [noise + shift * y[:, None] * [1, 0] for shift in range(6, 13)]
    scores = [persistence_score(h0_persistence(X)) for X in clouds]
    assert spearmanr(scores, [fisher_ratio(X, y) for X in clouds]).statistic > 0.95
    assert scores[-1] > scores[0] + 0.1


def test_digits_projected_by_class_score_above_an_unsupervised_projection():
    X, y = load_digits(return_X_y=True)
    ranked = compare(
        {
            "pca": PCA(9, random_state=0).fit_transform(X),
            "lda": LinearDiscriminantAnalysis().fit_transform(X, y),
        },
        random_state=0,
    )
    assert [row["name"] for row in ranked] == ["lda", "pca"]
    assert set(ranked[0]) == {"name", "score", "std", "largest_gap", "variance"}


def test_stopper_fires_by_patience_on_a_frozen_encoder_and_keeps_the_first_checkpoint():
    X = load_digits().data
    stopper = SeparabilityStopper(patience=3, random_state=0)
    fired = [stopper.update(X) for _ in range(9)]
    assert fired == [False] * 6 + [True] * 3
    assert stopper.best_epoch_ == 0
    assert stopper.stopped_


def test_stopper_goes_on_while_classes_tighten_and_stops_on_the_plateau():
    X, y = blobs(np.random.default_rng(8), 5 * np.eye(6), 1.0, per_cluster=60)
    means = np.array([X[y == c].mean(axis=0) for c in range(6)])
    shrink = [*np.linspace(1, 0.1, 10), *[0.1] * 10]
    stopper = SeparabilityStopper(patience=3, random_state=0, subsample=200)
    stops = [stopper.update(means[y] + s * (X - means[y])) for s in shrink]
    assert not any(stops[:12])
    assert stops[-1]
    assert 8 <= stopper.best_epoch_ <= 12
    assert len(stopper.history_) == 20
    assert stopper.history_[0]["variance"] > stopper.history_[-1]["variance"]


def test_smoothing_is_a_running_median():
    X = load_digits().data
    stopper = SeparabilityStopper(smooth=3, random_state=0, normalize=False, drop_duplicates=False)
    rng = np.random.default_rng(0)
    for scale in (0, 10, 0, 5):
        stopper.update(X + rng.normal(scale=scale + 1e-9, size=X.shape))
    raw = [row["score"] for row in stopper.history_]
    smoothed = [row["smoothed"] for row in stopper.history_]
    assert smoothed == [np.median(raw[max(0, i - 2) : i + 1]) for i in range(4)]


def test_hook_records_the_score_and_stops_the_trainer():
    X, y = load_digits(return_X_y=True)
    rows = torch.tensor(X / 16, dtype=torch.float32)
    network = nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))
    frozen = {"epochs": 10, "batch_size": 600, "optimizer": adam(0.0)}
    hook = SeparabilityHook(rows, stopper=SeparabilityStopper(patience=2, warmup=0, random_state=0))
    trainer = ClassifierTrainer(network, hooks=[hook], **frozen).fit(rows, torch.tensor(y))
    assert len(trainer.history) == 4
    assert len({row["separability/score"] for row in trainer.history}) == 1
    silent = SeparabilityHook(rows, embed=lambda net: net[0], stop=False)
    assert len(ClassifierTrainer(network, hooks=[silent], **frozen).fit(rows, torch.tensor(y)).history) == 10


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((9, 2)), "at least 10 rows, got 9"),
        (np.zeros((20, 2, 2)), "must be a matrix"),
        (np.full((20, 2), np.nan), "NaN or infinite entries in 20"),
        (np.ones((20, 2)), "All 20 rows of X are identical: the encoder has collapsed"),
        (np.eye(20)[:, :18], r"2 zero vector\(s\).*rows \[18, 19\]"),
    ],
)
def test_bad_input_is_named(X, message):
    with pytest.raises(ValueError, match=message):
        PersistenceSeparability().fit(X)


@pytest.mark.parametrize(
    "parameters",
    [{"subsample": 9}, {"statistic": "mode"}, {"normaliser": "std"}, {"n_subsamples": 0}, {"drop_duplicates": "yes"}],
)
def test_bad_parameters_are_named(parameters):
    with pytest.raises(ValueError, match=f"'{next(iter(parameters))}' parameter of PersistenceSeparability"):
        PersistenceSeparability(**parameters).fit(np.eye(20))


def test_misuse_is_explained(monkeypatch):
    X = load_digits().data[:50]
    with pytest.raises(NotFittedError, match="not fitted"):
        PersistenceSeparability().score(X)
    with pytest.raises(ValueError, match="the 50 rows seen by fit, got 40"):
        PersistenceSeparability().fit(X).score(X[:40])
    with pytest.raises(ValueError, match="backend must be one of mst, ripser, gudhi, got 'dipha'"):
        h0_persistence(X, backend="dipha")
    with pytest.raises(ValueError, match="statistic must be one of"):
        persistence_score([1, 2], "mode")
    with pytest.raises(ValueError, match="normaliser must be one of"):
        persistence_score([1, 2], normaliser="std")
    with pytest.raises(ValueError, match="encoder has collapsed"):
        persistence_score([0, 0])
    with pytest.raises(ValueError, match="use normaliser='max'"):
        persistence_score([0.0] * 300 + [1.0], normaliser="q99")
    with pytest.raises(ValueError, match="at least one encoder"):
        compare({})
    with pytest.raises(ValueError, match="No checkpoint has been scored"):
        _ = SeparabilityStopper().best_epoch_
    with pytest.raises(ValueError, match="patience and smooth must be at least 1"):
        SeparabilityStopper(patience=0)
    for package in ("ripser", "gudhi"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=f"needs the package {package}"):
            h0_persistence(X, backend=package)

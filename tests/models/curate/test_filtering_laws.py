import numpy as np
import pandas as pd
import pytest

from models.curate.filtering_laws import (
    DataFilteringLaw,
    EffectiveDataLaw,
    FilteringLawWarning,
    effective_samples,
    mixture_curve,
    pool_curve,
)

A, B, TAU, D, SIZE = 0.022 / 1e5, -0.13106060606, 3.0, 0.1, 12.8e6
BUDGETS = (500.0, 1000.0, 2000.0, 4000.0, 8000.0, 12_000.0)
POOLS = {"best": (-0.35, 1.8), "middle": (-0.25, 3.1), "worst": (-0.12, 6.0)}


def runs(pools=POOLS, budgets=BUDGETS, size=1000.0, a=0.02, d=0.1):
    rows = [
        {"pool": name, "samples_seen": n, "pool_size": size, "error": float(pool_curve(n, size, a, b, tau, d))}
        for name, (b, tau) in pools.items()
        for n in budgets
    ]
    return pd.DataFrame(rows)


def law(**parameters):
    return DataFilteringLaw(**{"normalizer": 1.0, "a": 0.02, "d": 0.1, **parameters})


# ---- the law -----------------------------------------------------------------------------------------------


def test_the_curve_of_one_pool():
    found = pool_curve([12.8e6, 25.6e6, 64e6, 640e6], SIZE, A, B, TAU, D)
    np.testing.assert_allclose(found, [0.973114, 0.912376, 0.862062, 0.843318], atol=1e-6)


def test_the_curve_of_two_alike_pools():
    found = mixture_curve([64e6, 640e6], [SIZE, SIZE], A, [B, B], [TAU, TAU], D)
    np.testing.assert_allclose(found, [0.818436, 0.732200], atol=1e-6)


def test_data_that_never_wears_out_follows_the_plain_power_law():
    assert pool_curve(640e6, SIZE, A, B, 1e9, D) == pytest.approx(0.622881, abs=1e-6)
    assert pool_curve(640e6, SIZE, A, B, 1e9, D) == pytest.approx((A * 640e6) ** B + D, abs=1e-6)


def test_the_curve_falls_and_has_no_jumps_between_passes():
    samples = np.linspace(0.5 * SIZE, 6 * SIZE, 400)
    errors = pool_curve(samples, SIZE, A, B, TAU, D)
    assert (np.diff(errors) < 0).all()
    for whole in (1, 2, 5):
        near = pool_curve([whole * SIZE * (1 - 1e-9), whole * SIZE * (1 + 1e-9)], SIZE, A, B, TAU, D)
        assert abs(near[0] - near[1]) < 1e-7


def test_order_of_pools_does_not_matter_and_size_weighs():
    one = mixture_curve(5e7, [1e6, 3e6], A, [-0.1, -0.3], [2.0, 4.0], D)
    assert one == pytest.approx(float(mixture_curve(5e7, [3e6, 1e6], A, [-0.3, -0.1], [4.0, 2.0], D)))
    assert mixture_curve(5e7, [1e6, 1e-3], A, [B, -0.4], [TAU, 5.0], D) == pytest.approx(
        float(pool_curve(5e7, 1e6, A, B, TAU, D)), rel=1e-6
    )


def test_effective_samples():
    assert effective_samples(2500.0, 1000.0, 1.0) == pytest.approx(1000 + 500 + 500 * 0.25)


# ---- fitting -----------------------------------------------------------------------------------------------


def test_it_finds_the_parameters_behind_the_curves():
    found = law().fit(runs())
    for name, (b, tau) in POOLS.items():
        assert found.utility_[name] == pytest.approx(b, rel=0.01)
        assert found.half_life_[name] == pytest.approx(tau, rel=0.1)
    np.testing.assert_allclose(found.residuals_["residual"], 0, atol=1e-4)


def test_it_finds_scale_and_floor_on_the_grid():
    found = law(a=None, d=None, a_grid=(0.01, 0.02, 0.04), d_grid=(0.05, 0.1, 0.15)).fit(runs())
    assert (found.a_, found.d_) == (0.02, 0.1)
    own = law(a=None, d=0.1, shared_a=False, a_upper=0.04, grid=40).fit(runs())
    assert own.residuals_["residual"].abs().max() < 0.01


def test_a_short_budget_takes_the_best_pool_and_a_long_one_takes_more():
    found = law().fit(runs())
    table = found.pareto([1000, 10_000, 1e6])
    assert table["n_pools"].is_monotonic_increasing
    assert table["n_pools"].tolist()[0] == 1 < table["n_pools"].tolist()[-1]
    pools, error, all_unions = found.best_pools(1e6, candidates="all")
    assert len(all_unions) == 7
    assert error <= found.best_pools(1e6)[1]
    assert found.predict_mixture(pools, 1e6) == pytest.approx(error)


def test_seeds_are_averaged_and_refits_tell_how_sure_the_choice_is():
    noise = np.random.default_rng(0)
    many = pd.concat([runs().assign(seed=seed) for seed in range(3)])
    many["error"] += noise.normal(0, 0.004, len(many))
    found = law(n_bootstrap=8, random_state=0).fit(many)
    assert len(found.bootstrap_) == 8
    shares = found.choice_probability(1000)
    assert sum(shares.values()) == pytest.approx(1)
    single = law(n_bootstrap=4, random_state=0).fit(runs())
    assert single.choice_probability(1000) == {1: 1.0}
    with pytest.raises(ValueError, match="fit with n_bootstrap"):
        law().fit(runs()).choice_probability(1000)


def test_intervals_hold_the_curve_and_grow_with_noise():
    noise = np.random.default_rng(0)

    def width(scale):
        many = pd.concat([runs().assign(seed=seed) for seed in range(3)])
        many["error"] += noise.normal(0, scale, len(many))
        found = law(n_bootstrap=8, random_state=0).fit(many)
        low, high = found.predict_interval(["best", "middle"], [2000.0, 12_000.0])
        centre = found.predict_mixture(["best", "middle"], [2000.0, 12_000.0])
        assert ((low < centre) & (centre < high)).all()
        return float((high - low).mean())

    assert width(0.02) > 2 * width(0.002)
    with pytest.raises(ValueError, match="fit with n_bootstrap"):
        law().fit(runs()).predict_interval(["best"], 1000)


def test_pools_of_another_size_wear_out_later():
    found = law(n_bootstrap=2, weighting="size", random_state=0).fit(runs())
    larger = found.resized({"best": 4000.0})
    assert larger.predict("best", 8000) == pytest.approx(
        float(pool_curve(8000, 4000.0, 0.02, found.utility_["best"], found.half_life_["best"], 0.1))
    )
    assert larger.predict("best", 8000) < found.predict("best", 8000)
    assert larger.predict("worst", 8000) == found.predict("worst", 8000)
    assert found.params_.loc["best", "size"] == 1000  # the law itself is as it was
    assert larger.predict_interval(["best"], 8000)[1] < found.predict_interval(["best"], 8000)[1]
    with pytest.raises(ValueError, match="were not in fit"):
        found.resized({"other": 10.0})
    with pytest.raises(ValueError, match="must be positive"):
        found.resized({"best": 0.0})


def test_without_repeated_passes_the_half_life_is_not_told():
    found = law().fit(runs(budgets=(250.0, 500.0, 1000.0)))
    assert np.isnan(found.half_life_["best"])
    assert not found.params_["identifiable"].any()


def test_a_half_life_at_the_edge_of_what_was_tried_is_told():
    with pytest.warns(FilteringLawWarning, match=r"wear out \['best'\] .* lies at the edge of tau_bounds"):
        found = law(tau_bounds=(2.5, 10.0)).fit(runs())
    assert found.params_["at_bound"].tolist() == [True, False, False]


def test_errors_that_rise_with_passes_are_told():
    frame = runs()
    late = (frame["pool"] == "middle") & (frame["samples_seen"] >= 4000)
    frame.loc[late, "error"] = frame.loc[late, "error"].min() + np.array([0.01, 0.05, 0.09])
    with pytest.warns(FilteringLawWarning, match=r"the error of \['middle'\] rises over its last three budgets"):
        found = law().fit(frame)
    assert found.params_["rising"].tolist() == [False, True, False]


def test_pools_with_scales_of_their_own_have_no_union():
    mixed = pd.concat([runs({"best": POOLS["best"]}), runs({"worst": POOLS["worst"]}, a=0.03)])
    own = law(a=None, shared_a=False, a_upper=0.04, grid=40).fit(mixed)
    assert own.params_["a"].nunique() == 2
    assert np.isfinite(own.predict("worst", 1000))
    with pytest.raises(ValueError, match="shared_a=True"):
        own.predict_mixture(["best", "worst"], 1000)
    with pytest.raises(ValueError, match="shared_a=True"):
        own.best_pools(1000)
    alike = law(shared_a=False).fit(runs())
    alike.params_["a"] *= [1.0, 1.0 + 1e-12, 1.0]
    assert np.isfinite(alike.predict_mixture(["best", "worst"], 1000))


def test_the_baselines_union_weighs_utilities_by_what_the_samples_still_count():
    found = EffectiveDataLaw(1.0, a=0.02, d=0.1, refine=False).fit(runs())
    found.params_.loc[["best", "worst"], ["b", "tau"]] = [[-0.4, 1.0], [-0.2, 1e9]]
    counted = np.array([1000 + 500 + 250, 3000])  # three passes of each
    b = (counted @ [-0.4, -0.2]) / counted.sum()
    assert found.predict_mixture(["best", "worst"], 6000) == pytest.approx((0.02 * counted.sum()) ** b + 0.1)


def test_the_baseline_lets_samples_fade_and_not_their_utility():
    found = EffectiveDataLaw(1.0, a=0.02, d=0.1).fit(runs())
    assert np.isfinite(found.predict_mixture(["best", "worst"], [1000.0, 1e5])).all()
    alone = float(found.predict("best", 1e7))
    assert alone == pytest.approx(float(found.predict("best", 1e8)), rel=1e-6)  # faded samples add nothing


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="error"), "error is missing"),
        (lambda frame: frame[:0], "holds no run"),
        (lambda frame: frame.assign(error=np.nan), "NaN or infinite"),
        (lambda frame: frame.assign(pool_size=0.0), "must be positive"),
        (lambda frame: frame.assign(error=0.0), "error must be positive"),
        (lambda frame: frame.assign(error=0.05), "not above any irreducible error"),
        (lambda frame: frame.assign(pool_size=np.arange(len(frame)) + 500.0), r"'best'.* more than one pool_size"),
        (lambda frame: frame[frame["samples_seen"] < 2000], "fewer than 3 budgets"),
    ],
)
def test_runs_that_can_not_be_used_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        law().fit(change(runs()))


def test_unions_that_can_not_be_predicted_are_named():
    found = law().fit(runs())
    with pytest.raises(ValueError, match=r"Pools \['other'\] were not in fit"):
        found.predict("other", 1000)
    with pytest.raises(ValueError, match="samples_seen must be positive"):
        found.predict("best", 0)
    with pytest.raises(ValueError, match="'prefix' or 'all'"):
        found.best_pools(1000, candidates="some")
    uneven = pd.concat([runs({"best": POOLS["best"]}), runs({"worst": POOLS["worst"]}, size=500.0)])
    with pytest.raises(ValueError, match="weighting='size'"):
        law().fit(uneven).predict_mixture(["best", "worst"], 1000)
    assert np.isfinite(law(weighting="size").fit(uneven).predict_mixture(["best", "worst"], 1000))

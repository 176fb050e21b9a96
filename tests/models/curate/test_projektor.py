import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from models.curate.mixtures import (
    FORMS,
    drawn_counts,
    fitted_law,
    mixture_gradient,
    project_log_linear,
    simplex_ascent,
    simplex_grid,
    simplex_projection,
)
from models.curate.projektor import Projektor
from models.labelled_transport import label_distances, labelled_ot, solved
from models.transport import earth_mover_potentials


def regression(X, y, seed):
    return LogisticRegression(max_iter=300).fit(X, y)


@pytest.fixture(scope="module")
def pilots():
    """Digits 0-4 with 3, digits 5-9, and few of all; and rows of all digits to be scored on."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    first, rest = (X[:1300], y[:1300]), (X[1300:], y[1300:])
    low = np.flatnonzero(first[1] < 5)
    high = np.flatnonzero(first[1] >= 5)
    groups = [low[:400], high[:400], np.r_[low[400:520], high[400:520]]]
    return [(first[0][rows], first[1][rows]) for rows in groups], *rest


def planner(**changes):
    chosen = {"n0": 80, "n1": 160, "step": 0.25, "reps": 1, "ot_solver": "exact", "iters": 30, "random_state": 0}
    return Projektor(**{"trainer": regression, **chosen, **changes})


@pytest.fixture(scope="module")
def found(pilots):
    return planner().fit(*pilots)


# ---- transport -----------------------------------------------------------------------------------------------


def test_point_masses_have_the_distance_and_gradient_of_the_formula():
    for p in ([0.5, 0.5], [0.2, 0.8]):
        value, f = labelled_ot([[0.0], [1.0]], [0, 0], [[0.25]], [0], p, label_cost=0.0)
        assert value == pytest.approx(0.0625 * p[0] + 0.5625 * p[1])
        slope = mixture_gradient(f, p)
        assert slope[0] - slope[1] == pytest.approx(-0.5)
        assert (slope / (1 - np.array(p)))[0] == pytest.approx(-0.5)  # against the other source alone


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_the_gradient_is_that_of_the_transport_on_fixed_supports(solver):
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(centre, 1, (30, 2)) for centre in ((0, 0), (2, 1), (-1, 2))])
    source, X_val = np.repeat(np.arange(3), 30), rng.normal(0.5, 1, (37, 2))
    y, y_val = np.tile([0, 1], 45), np.arange(37) % 2
    p = np.array([0.5, 0.3, 0.2])

    def distance(shares):
        weights = (shares / 30)[source]
        return labelled_ot(X, y, X_val, y_val, weights, solver=solver, reg=0.05)

    value, f = distance(p)
    means = np.array([f[source == i].mean() for i in range(3)])
    for direction in ([1, -1, 0], [0, 1, -1], [-1, -1, 2]):
        d = np.array(direction) * 1e-5
        central = (distance(p + d)[0] - distance(p - d)[0]) / 2e-5
        assert mixture_gradient(means, p) @ direction == pytest.approx(central, abs=1e-4)
    np.testing.assert_allclose(mixture_gradient(means + 7.0, p), mixture_gradient(means, p), atol=1e-9)
    assert value > 0


def test_debiased_entropic_transport_is_near_the_exact_one_and_zero_for_equal_sets():
    rng = np.random.default_rng(1)
    X, X_val = rng.normal(size=(60, 3)), rng.normal(1, 1, (50, 3))
    y, y_val = np.arange(60) % 2, np.arange(50) % 2
    exact = labelled_ot(X, y, X_val, y_val)[0]
    soft = labelled_ot(X, y, X_val, y_val, solver="sinkhorn")[0]
    assert soft == pytest.approx(exact, rel=0.05)
    assert labelled_ot(X, y, X, y, solver="sinkhorn")[0] == pytest.approx(0, abs=1e-4)
    assert labelled_ot(X, y, X, y, solver="sinkhorn", debiased=False)[0] > 1e-3


def test_sources_of_the_same_rows_count_together():
    rng = np.random.default_rng(2)
    same, other, X_val = rng.normal(size=(20, 2)), rng.normal(2, 1, (20, 2)), rng.normal(size=(25, 2))
    X, y = np.concatenate([same, same, other]), np.zeros(60, dtype=int)

    def distance(p):
        return labelled_ot(X, y, X_val, np.zeros(25, dtype=int), np.repeat(p, 20) / 20)[0]

    assert distance([0.5, 0.1, 0.4]) == pytest.approx(distance([0.2, 0.4, 0.4]), abs=1e-6)
    assert distance([0.5, 0.1, 0.4]) != pytest.approx(distance([0.5, 0.4, 0.1]), abs=1e-3)


def test_rows_without_weight_have_the_potential_that_weight_would_meet():
    rng = np.random.default_rng(3)
    cost, a = rng.random((8, 9)), np.r_[np.full(7, 1 / 7), 0.0]
    value, f = solved(cost, a)
    grown = np.r_[np.full(7, (1 - 1e-6) / 7), 1e-6]
    assert (solved(cost, grown)[0] - value) / 1e-6 == pytest.approx(f[7] - f[:7].mean(), abs=1e-4)


def test_exact_potentials_are_feasible_and_add_up_to_the_cost():
    rng = np.random.default_rng(4)
    cost, a = torch.from_numpy(rng.random((12, 7))), torch.from_numpy(rng.dirichlet(np.ones(12)))
    value, f, g = earth_mover_potentials(cost, a)
    assert (f[:, None] + g - cost).max() < 1e-9
    assert float(a @ f + g.mean()) == pytest.approx(float(value))


def test_distances_between_classes():
    rng = np.random.default_rng(5)
    one, two = rng.normal(0, 1, (4000, 2)), rng.normal([3, 0], 2, (4000, 2))
    X, y = np.concatenate([one, two]), np.repeat([0, 1], 4000)
    found = label_distances(X, y, X, y)
    assert found[0, 1] == pytest.approx(9 + 2 * (2 - 1) ** 2, rel=0.05)
    np.testing.assert_allclose(np.diag(found), 0, atol=1e-6)
    assert label_distances(X, y, X, y, "means")[0, 1] == pytest.approx(9, rel=0.05)
    assert label_distances(X, y, X, y, "exact")[0, 1] == pytest.approx(11, rel=0.3)
    few = label_distances(X[:2], y[:2], X, y)
    np.testing.assert_allclose(few, label_distances(X[:2], y[:2], X, y, "means"))  # two rows have no covariance


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 0]}, r"y must be shaped \(3,\)"),
        ({"y_val": [0.5, 0.5]}, "y_val must hold integers"),
        ({"X_val": [[0.0], [1.0]]}, r"X and X_val must have rows of one length, got 2 and 1"),
        ({"weights": [0.5, 0.5]}, r"weights must be 3 numbers"),
        ({"weights": [1.0, 0.5, -0.5]}, "weights must be 3 numbers"),
        ({"weights": [np.nan, 0.5, 0.5]}, "weights must be 3 numbers"),
        ({"weights": [0.0, 0.0, 0.0]}, "weights must be 3 numbers"),
        ({"solver": "emd"}, "solver must be 'exact' or 'sinkhorn', got 'emd'"),
        ({"label_distance": "mean"}, "'gaussian', 'means' or 'exact', got 'mean'"),
    ],
)
def test_transports_that_can_not_be_told(change, message):
    given = {"X": np.eye(3, 2), "y": [0, 1, 1], "X_val": np.ones((2, 2)), "y_val": [0, 1]}
    with pytest.raises(ValueError, match=message):
        labelled_ot(**{**given, **change})


# ---- mixtures ------------------------------------------------------------------------------------------------


def test_grid_and_counts():
    grid = simplex_grid(3, 0.1)
    assert len(grid) == 66
    np.testing.assert_allclose(grid.sum(axis=1), 1)
    for p in np.random.default_rng(0).dirichlet(np.ones(5), 50):
        counts = drawn_counts(p, 997)
        assert counts.sum() == 997
        assert (np.abs(counts - 997 * p) < 1).all()


def test_the_line_goes_through_both_sizes():
    assert project_log_linear(0.4, 0.6, 100, 300, 100) == pytest.approx(0.4)
    assert project_log_linear(0.4, 0.6, 100, 300, 300) == pytest.approx(0.6)
    assert project_log_linear(0.4, 0.6, 100, 300, 900) == pytest.approx(0.8)


def test_projection_respects_every_limit():
    rng = np.random.default_rng(0)
    costs = np.array([1.0, 2.0, 4.0])
    for v in rng.normal(size=(30, 3)):
        p = simplex_projection(v, 0.1, costs, 2.0)
        assert p.sum() == pytest.approx(1)
        assert (p >= 0.1 - 1e-9).all()
        assert costs @ p <= 2.0 + 1e-9
        nearer = [q for q in simplex_grid(3, 0.05) if (q >= 0.1).all() and costs @ q <= 2]
        assert np.linalg.norm(v - p) <= min(np.linalg.norm(v - q) for q in nearer) + 1e-9
    with pytest.raises(ValueError, match="cheapest costs 1"):
        simplex_projection([1, 0, 0], 0.0, costs, 0.5)
    with pytest.raises(ValueError, match="Lower it"):
        simplex_projection([1, 0, 0], 0.4)
    for least in (-0.1, np.nan):
        with pytest.raises(ValueError, match="min_share must be 0 or above"):
            simplex_projection([1, 0, 0], least)
    for price, most in (([1, np.nan, 2], 1.0), ([1, 1, 2], np.nan)):
        with pytest.raises(ValueError, match="costs and budget must be finite"):
            simplex_projection([1, 0, 0], 0.0, price, most)
    np.testing.assert_allclose(simplex_projection([0, 0, 9], 0.0, costs, 1.0), [1, 0, 0])


def test_ascent_stops_when_steps_are_small():
    path = simplex_ascent(lambda p: (0.0, np.zeros(2)), np.array([0.3, 0.7]))
    assert len(path) == 1


@pytest.mark.parametrize("form", FORMS)
def test_each_form_finds_its_own_surface(form):
    P = simplex_grid(3, 0.1)
    ot = 1 + ((P - [0.2, 0.3, 0.5]) ** 2).sum(axis=1)
    first, second = np.array([0.1, 0.2, -0.3]), np.array([0.3, 0.1, 0.2])
    scores = {
        "ot": 2 - 0.5 * ot,
        "cs": (0.3 + P @ first) * ot + P @ second,
        "pq": (0.3 + P @ first + P**2 @ second) * ot + P**2 @ first,
    }[form]
    law, residuals = fitted_law(form, P, ot, scores, alpha=0.0)
    np.testing.assert_allclose(law.score(P, ot), scores, atol=1e-8)
    np.testing.assert_allclose(residuals, 0, atol=1e-6)


def test_residuals_are_those_of_leaving_each_mixture_out():
    rng = np.random.default_rng(0)
    P, ot, scores = simplex_grid(3, 0.25), rng.random(15), rng.random(15)
    _, residuals = fitted_law("ot", P, ot, scores, alpha=0.0)
    for k in range(15):
        rest = np.arange(15) != k
        law, _ = fitted_law("ot", P[rest], ot[rest], scores[rest], alpha=0.0)
        assert scores[k] - law.score(P[[k]], ot[[k]])[0] == pytest.approx(residuals[k])


# ---- the estimator on digits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_the_fitted_score_agrees_with_central_differences(found, form):
    again = planner(form=form)
    again.__dict__.update(found.__dict__ | {"form": form})
    again._regress(found.table_)
    p = np.array([0.3371, 0.4213, 0.2416])  # no edge of a rounded count near
    _, slope = again._score_and_gradient(p, 200)
    for direction in ([1, -1, 0], [1, 1, -2]):
        d = np.array(direction) * 1e-5
        upper, lower = (again._score_and_gradient(q, 200)[0] for q in (p + d, p - d))
        assert slope @ direction == pytest.approx((upper - lower) / 2e-5, abs=1e-4)


def test_predictions_rank_mixtures_and_the_choice_is_good(found, pilots):
    table = found.table_[found.table_["n"] == 160]
    P = table[["p_1", "p_2", "p_3"]].to_numpy()
    predicted = found.predict(P, 160)
    assert np.abs(predicted - table["score"]).mean() < 0.06
    best, history = found.select(160)
    assert best.sum() == pytest.approx(1)
    assert found.predict([best], 160)[0] >= predicted.max() - 0.01
    assert {step.start for step in history} == {0, 1, 2}
    assert found.predict([best], 160)[0] > found.predict(np.eye(3), 160).min() + 0.2
    low, high = found.score_interval(P, 160)
    assert ((low <= table["score"]) & (table["score"] <= high)).mean() > 0.7
    wider = found.score_interval(P, 320)
    assert (wider[1] - wider[0]).mean() > (high - low).mean()


def test_limits_of_the_choice_are_kept(found):
    p, _ = found.select(160, min_share=0.2)
    assert (p >= 0.2 - 1e-9).all()
    p, _ = found.select(160, budget=1.5, costs=[1.0, 2.0, 4.0])
    assert p @ [1.0, 2.0, 4.0] <= 1.5 + 1e-9
    with pytest.raises(ValueError, match="come together"):
        found.select(160, budget=1.0)


def test_the_order_of_sources_does_not_matter(pilots):
    sources, X_val, y_val = pilots
    small = {"n0": 60, "n1": 120, "step": 0.5, "iters": 10}
    first = planner(**small).fit(sources, X_val, y_val)
    second = planner(**small).fit([sources[i] for i in (2, 0, 1)], X_val, y_val)
    np.testing.assert_allclose(second.select(240)[0], first.select(240)[0][[2, 0, 1]], atol=1e-6)


def test_published_gradient_differs_from_the_derivative(found):
    law = found.coef_[160]
    p, slope = np.array([0.3, 0.3, 0.4]), np.array([0.1, -0.2, 0.1])
    full, published = law.gradient(p, 1.0, slope), law.gradient(p, 1.0, slope, published=True)
    assert full.shape == published.shape == (3,)
    assert not np.allclose(full - full.mean(), published - published.mean())


def test_a_log_of_runs_is_enough(found):
    again = Projektor(form=found.form_).fit_from_log(found.table_)
    P = found.table_[found.table_["n"] == 160][["p_1", "p_2", "p_3"]].to_numpy()
    np.testing.assert_allclose(again.predict(P, 160), found.predict(P, 160), atol=0.05)
    p, _ = again.select(160)
    assert found.predict([p], 160)[0] > found.predict([found.select(160)[0]], 160)[0] - 0.05


def test_columns_of_a_log_are_told_by_their_numbers(found):
    log = found.table_.assign(p_value=0.01)
    again = Projektor(form=found.form_).fit_from_log(log)
    turned = Projektor(form=found.form_).fit_from_log(log[["p_value", "p_3", "score", "p_1", "ot", "p_2", "n"]])
    P = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
    np.testing.assert_allclose(turned.predict(P, 160), again.predict(P, 160))
    many = pd.DataFrame(np.random.default_rng(0).dirichlet(np.ones(11), 20), columns=[f"p_{i + 1}" for i in range(11)])
    many = pd.concat([many.assign(n=n, ot=1.0, score=many["p_2"]) for n in (10, 20)])
    by_name = many[sorted(many.columns)]  # p_1, p_10, p_11, p_2
    best = np.eye(11)[[1]]
    forth, back = (Projektor(form="cs").fit_from_log(log).predict(best, 20) for log in (many, by_name))
    assert forth == pytest.approx(back)
    with pytest.raises(ValueError, match="must have the columns p_1, p_2"):
        Projektor().fit_from_log(log.rename(columns={"p_2": "p_5"}))


def test_losses_are_brought_down(pilots):
    sources, X_val, y_val = pilots
    loss = planner(scorer=lambda model, X, y: 1 - model.score(X, y), greater_is_better=False, n0=60, n1=120)
    p, _ = loss.fit(sources, X_val, y_val).select(120)
    assert loss.predict([p], 120)[0] < loss.predict(np.eye(3), 120).max() - 0.2


def test_entropic_transport_and_many_sources(pilots):
    sources, X_val, y_val = pilots
    five = [(X[:60], y[:60]) for X, y in (*sources, *((X[60:120], y[60:120]) for X, y in sources[:2]))]
    found = Projektor(
        trainer=regression, n0=20, n1=40, compositions=8, reps=1, label_distance="means", reg=0.1, random_state=0
    ).fit(five, X_val[:80], y_val[:80])
    assert found.n_sources_ == 5
    assert len(found.table_) == 16
    assert 0 <= found.predict([np.full(5, 0.2)], 40)[0] <= 1
    assert found.timings_["training"] > 0


# ---- bad input -----------------------------------------------------------------------------------------------


def test_what_can_not_be_fitted_is_named(pilots):
    sources, X_val, y_val = pilots
    with pytest.raises(ValueError, match="n1 must be above n0"):
        planner(n0=100, n1=100).fit(*pilots)
    with pytest.raises(ValueError, match=r"sources\[2\] has 240 rows, and up to 250 are drawn"):
        planner(n1=250).fit(*pilots)
    assert planner(n1=250, replace=True, step=0.5).fit(*pilots).sizes_ == (80, 250)
    with pytest.raises(ValueError, match=r"classes that no source has: \[5, 6, 7, 8, 9\]"):
        planner().fit([sources[0], sources[0]], X_val, y_val)
    with pytest.raises(ValueError, match="at least two pilots"):
        planner().fit(sources[:1], X_val, y_val)
    with pytest.raises(ValueError, match=r"sources\[1\] must hold at least 1"):
        planner().fit([sources[0], (sources[1][0][:0], [])], X_val, y_val)
    with pytest.raises(ValueError, match="Row 0 of compositions is not on the simplex"):
        planner(compositions=[[0.5, 0.4, 0.0]]).fit(*pilots)
    with pytest.raises(ValueError, match="At least 4 different mixtures"):
        planner(compositions=np.eye(3)).fit(*pilots)
    with pytest.raises(ValueError, match="At least 4 different mixtures are needed to fit the regressions, got 2"):
        planner(compositions=[[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]] * 3, n0=20, n1=30).fit(*pilots)
    with pytest.raises(ValueError, match=r"rows of one length, got \[5, 64\]"):
        planner().fit(sources, X_val[:, :5], y_val)
    with pytest.raises(ValueError, match="scorer gave nan"):
        planner(scorer=lambda model, X, y: np.nan).fit(*pilots)


def test_what_can_not_be_asked_is_named(found):
    with pytest.raises(ValueError, match="Row 0 of P is not on the simplex"):
        found.predict([[0.5, 0.5, 0.1]], 160)
    with pytest.raises(ValueError, match=r"must be shaped \(k, 3\)"):
        found.predict([[0.5, 0.5]], 160)
    for N in (0, np.inf, np.nan):
        with pytest.raises(ValueError, match="N must be a positive"):
            found.predict([[0.5, 0.25, 0.25]], N)
    with pytest.raises(ValueError, match="one of the sizes fitted"):
        found.ot_distance([0.5, 0.25, 0.25], 100)
    with pytest.warns(UserWarning, match="no need to predict"):
        found.predict([[0.5, 0.25, 0.25]], 100)
    with pytest.warns(UserWarning, match=r"grow about 5\.6 times"):
        found.predict([[0.5, 0.25, 0.25]], 4000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.predict([[0.5, 0.25, 0.25]], 80).shape == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.drop(columns="ot"), "must have the columns"),
        (lambda log: log.assign(score=np.nan), "NaN or infinite"),
        (lambda log: log[log["n"] == 80], "exactly two sizes"),
        (lambda log: log.assign(p_1=log["p_1"] + 0.1), "not on the simplex"),
        (lambda log: log[:-1], "same mixtures at both sizes"),
    ],
)
def test_logs_that_can_not_be_used_are_named(found, change, message):
    with pytest.raises(ValueError, match=message):
        Projektor().fit_from_log(change(pd.DataFrame(found.table_)))

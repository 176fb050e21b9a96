import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.neighbors import kneighbors_graph

from models.label_noise.local_graph import (
    LabelFlowDiffusion,
    UninformativeLabelsWarning,
    conductance,
    correct_multiclass,
    factor,
    flow_diffusion,
    label_edge_weights,
    sweep_cut,
)

PATH = sparse.csr_array([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
EXACT = {"tol": 1e-10, "max_passes": 5000, "random_state": 0}


def planted(n=200, k=60, inside=0.3, outside=0.02, seed=0):
    """A graph with one dense group, its first k nodes."""
    rng = np.random.default_rng(seed)
    chance = np.full((n, n), outside)
    chance[:k, :k] = inside
    upper = np.triu(rng.random((n, n)) < chance, 1)
    return sparse.csr_array((upper | upper.T).astype(float)), (np.arange(n) < k).astype(int)


def flipped(truth, inside=0.8, outside=0.9, seed=1):
    random = np.random.default_rng(seed).random(len(truth))
    return np.where(truth == 1, random < inside, random >= outside).astype(int)


# ---- the cases that can be worked out ----------------------------------------------------------------------


def test_a_path_is_solved_exactly():
    found = flow_diffusion(PATH, {0: 3.0}, np.ones(3), **EXACT)
    np.testing.assert_allclose(found.x, [3, 1, 0], atol=1e-8)
    half = PATH.copy()
    half.data = np.array([1, 1, 0.5, 0.5])
    np.testing.assert_allclose(flow_diffusion(half, {0: 3.0}, np.ones(3), **EXACT).x, [4, 2, 0], atol=1e-7)


def test_the_conditions_of_optimality_hold_and_mass_is_kept():
    A, _ = planted()
    degree = A.sum(axis=1)
    source = {0: 0.4 * degree.sum(), 5: 30.0}
    found = flow_diffusion(A, source, degree, tol=1e-6, max_passes=3000, random_state=0)
    assert (found.mass - degree).max() <= 1e-6
    np.testing.assert_allclose(found.mass[found.x > 0], degree[found.x > 0], atol=1e-6)
    assert found.mass.sum() == pytest.approx(sum(source.values()), abs=1e-9)
    assert found.residual <= 1e-6


def test_it_is_the_minimum_that_a_general_solver_finds():
    A, _ = planted(60, 20, 0.4, 0.05)
    A = sparse.csr_array(A + sparse.diags_array([0.01] * 59, offsets=1) + sparse.diags_array([0.01] * 59, offsets=-1))
    sink, source = np.ones(60), np.zeros(60)
    source[0] = 25.0
    laplacian = np.diag(A.sum(axis=1)) - A.toarray()

    def objective(x):
        return 0.5 * x @ laplacian @ x + x @ (sink - source)

    solved = minimize(
        objective, np.zeros(60), jac=lambda x: laplacian @ x + sink - source, bounds=[(0, None)] * 60,
        options={"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-9},
    )  # fmt: skip
    found = flow_diffusion(A, source, sink, tol=1e-8, max_passes=5000, random_state=0)
    assert objective(found.x) == pytest.approx(solved.fun, rel=1e-5)
    np.testing.assert_allclose(found.x, solved.x, atol=1e-3)


def test_flags_that_are_ignored_change_nothing():
    A, truth = planted()
    options = {"target_volume": 1000.0, "mass_factors": (1.5, 2.0), "random_state": 0}
    with_flags = LabelFlowDiffusion(1.0, **options).fit(A, [3], flipped(truth))
    without = LabelFlowDiffusion(1.0, **options).fit(A, [3])
    assert np.array_equal(with_flags.embedding_, without.embedding_)
    assert np.array_equal(with_flags.cluster_, without.cluster_)


def test_right_flags_and_cut_edges_stay_inside_the_seeds_part_of_the_group():
    A, truth = planted()
    volume = 0.5 * A.sum(axis=1)[truth == 1].sum()
    found = LabelFlowDiffusion(0.0, target_volume=volume, mass_factors=(1.0,), random_state=0).fit(A, [3], truth)
    assert set(found.cluster_) <= set(np.flatnonzero(truth))
    assert len(found.cluster_) > 5


def test_renaming_nodes_renames_the_answer():
    A, truth = planted()
    flags = flipped(truth)
    order = np.random.default_rng(3).permutation(len(truth))
    options = {"target_volume": 500.0, "mass_factors": (2.0,), "tol": 1e-8, "max_passes": 3000}
    found = LabelFlowDiffusion(**options, random_state=0).fit(A, [3], flags)
    renamed = LabelFlowDiffusion(**options, random_state=0).fit(
        A[order][:, order], [int(np.argmax(order == 3))], flags[order]
    )
    np.testing.assert_allclose(renamed.embedding_, found.embedding_[order], atol=1e-4)


# ---- weights, cuts -----------------------------------------------------------------------------------------


def test_weights_by_agreement():
    weighted = label_edge_weights(PATH, [1, 1, 0], 0.05)
    assert weighted.toarray().tolist() == [[0, 1, 0], [1, 0, 0.05], [0, 0.05, 0]]
    np.testing.assert_allclose(label_edge_weights(PATH, [1, -1, 0], 0.04).data, 0.2)
    np.testing.assert_allclose(factor(0.8, np.array([0.5]), 0.1), 0.5 + 0.1 * 0.5)
    assert np.array_equal(label_edge_weights(PATH, [1, 0, 1], 1.0).toarray(), PATH.toarray())


def test_conductance_and_the_best_cut():
    two = np.kron(np.eye(2), np.ones((4, 4)) - np.eye(4))
    two[3, 4] = two[4, 3] = 1.0
    graph = sparse.csr_array(two)
    assert conductance(graph, [0, 1, 2, 3], graph.data.sum()) == pytest.approx(1 / 13)
    assert conductance(graph, [], graph.data.sum()) == 1
    potentials = np.array([4.0, 3, 3, 2, 0.5, 0.2, 0, 0])
    assert sweep_cut(graph, potentials, graph.data.sum()).tolist() == [0, 1, 2, 3]


# ---- what it is for ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    X, y = X[:900], y[:900]
    graph = kneighbors_graph(X, 10)
    return X, y, sparse.csr_array(graph.maximum(graph.T))


def test_it_is_better_than_the_flags_and_than_the_graph(digits):
    _, y, A = digits
    truth = (y == 4).astype(int)
    flags = flipped(truth, 0.7, 0.9)
    options = {"mass_factors": (1.5, 2.0, 3.0), "target_volume": A.sum(axis=1)[truth == 1].sum(), "random_state": 0}
    seeds = np.flatnonzero(truth)[:2]
    found = LabelFlowDiffusion(**options).fit(A, seeds, flags)
    alone = LabelFlowDiffusion(1.0, **options).fit(A, seeds)
    assert f1_score(truth, found.labels_) > f1_score(truth, flags) + 0.2
    assert f1_score(truth, found.labels_) >= f1_score(truth, alone.labels_)
    assert np.array_equal(found.correct_labels(), found.labels_)


def test_flags_can_be_learnt_from_a_few_rows_and_are_asked_for_where_the_flow_goes(digits):
    X, y, A = digits
    truth = (y == 0).astype(int)
    known = np.r_[np.flatnonzero(truth)[:10], np.flatnonzero(1 - truth)[:10]]
    model = LabelFlowDiffusion(mass_factors=(1.0,), target_volume=200.0, random_state=0)
    found = model.fit(A, known[:2], X=X, labelled_idx=known, labelled_y=truth[known])
    assert (found.labels_used_ >= 0).sum() < len(y)
    assert truth[found.cluster_].mean() > 0.9


def test_flags_that_tell_nothing_are_left_out_with_a_warning():
    A, truth = planted(400, 80, 0.2, 0.01)
    coins = np.random.default_rng(0).integers(0, 2, len(truth))
    model = LabelFlowDiffusion(target_volume=A.sum(axis=1)[truth == 1].sum(), mass_factors=(1.5,), random_state=0)
    with pytest.warns(UninformativeLabelsWarning, match="the graph alone is used"):
        model.fit(A, [3], coins)
    assert model.epsilon_ == 1
    assert f1_score(truth, model.labels_) > 0.5


def test_several_classes_at_once(digits):
    _, y, A = digits
    kept = np.flatnonzero(y < 3)
    graph, truth = A[kept][:, kept], y[kept]
    noisy = truth.copy()
    wrong = np.random.default_rng(0).random(len(truth)) < 0.25
    noisy[wrong] = (noisy[wrong] + 1) % 3
    seeds = {name: np.flatnonzero(truth == name)[:2] for name in range(3)}
    volume = {"target_volume": float(graph.sum() / 4), "mass_factors": (1.0, 1.3), "random_state": 0}
    repaired = correct_multiclass(graph, noisy, seeds, **volume)
    reached = repaired >= 0
    assert reached.mean() > 0.6
    assert (repaired == truth)[reached].mean() > 0.95 > (noisy == truth).mean()


def test_cost_depends_on_the_mass_and_not_on_the_graph():
    def ring(n):
        offsets = [1, 7, n - 1, n - 7]
        diagonals = [np.ones(n - offset) for offset in offsets]
        upper = sparse.diags_array(diagonals, offsets=offsets, shape=(n, n))
        return sparse.csr_array(upper + upper.T)

    found = [
        flow_diffusion(ring(n), {n // 2: 200.0}, lambda node: 1.0, max_passes=200, random_state=0)
        for n in (2000, 50_000)
    ]
    assert len(found[0].visited) == len(found[1].visited)
    assert found[0].n_pushes == found[1].n_pushes


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("A", "seeds", "labels", "message"),
    [
        (np.ones((2, 3)), [0], None, r"square with at least one node, got \(2, 3\)"),
        (np.array([[0, 1], [0.5, 0]]), [0], None, "must be symmetric"),
        (np.array([[0, -1], [-1, 0]]), [0], None, "no negative weight, got -1"),
        (np.array([[0, np.nan], [np.nan, 0]]), [0], None, "NaN or infinite"),
        (PATH, [3], None, r"seeds must name nodes in 0\.\.2"),
        (PATH, [], None, "at least one, got"),
        (np.diag([0.0, 1, 1])[:, [0, 2, 1]], [0], None, r"Seeds \[0\] have no edge"),
        (PATH, [0], [1, 0], r"labels must be shaped \(3,\)"),
        (PATH, [0], [1, 2, 0], "got 2.0 at node 1"),
    ],
)
def test_what_can_not_be_used_is_named(A, seeds, labels, message):
    with pytest.raises(ValueError, match=message):
        LabelFlowDiffusion().fit(A, np.array(seeds, dtype=int), labels)


def test_more_mass_than_the_component_takes():
    with pytest.raises(ValueError, match="take 3 mass and are given 9"):
        flow_diffusion(PATH, {0: 9.0}, np.ones(3))
    with pytest.raises(ValueError, match="finite, non-negative mass"):
        flow_diffusion(PATH, {0: np.inf}, np.ones(3))
    with pytest.raises(ValueError, match="can not come to rest"):
        LabelFlowDiffusion(target_volume=100.0).fit(PATH, [0])


def test_masses_that_do_not_fit_leave_the_smaller_ones_in_whatever_order():
    options = {"target_volume": 2.0, "random_state": 0}
    fits = LabelFlowDiffusion(mass_factors=(1.0,), **options).fit(PATH, [0])
    both = LabelFlowDiffusion(mass_factors=(5.0, 1.0), **options).fit(PATH, [0])
    assert both.mass_factor_ == 1.0
    assert both.cluster_.tolist() == fits.cluster_.tolist()


def test_a_node_without_conducting_edges_keeps_its_excess_and_is_reported():
    cut = flow_diffusion(PATH, {0: 1.0}, np.full(3, 0.5), lazy_weights=lambda node, near, weights: weights)
    assert len(cut.stuck) == 0
    with pytest.raises(ValueError, match="1 nodes that the seeds reach"):
        flow_diffusion(PATH, {0: 1.0}, np.full(3, 0.5), lazy_weights=lambda node, near, weights: weights * 0)


def test_labelled_rows_must_teach_something(digits):
    X, _, A = digits
    with pytest.raises(ValueError, match="labelled_idx and labelled_y to teach"):
        LabelFlowDiffusion().fit(A, [0], X=X)
    with pytest.raises(ValueError, match="at least 2 classes"):
        LabelFlowDiffusion().fit(A, [0], X=X, labelled_idx=[0, 1], labelled_y=[1, 1])
    with pytest.raises(ValueError, match="must sum to more than 1"):
        LabelFlowDiffusion(label_rates=(0.5, 0.5)).fit(A, [0], np.ones(len(X)))

"""The swap engines against brute force, and against each other."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances

from models.discover import pam_swap, pam_swap_numpy

ENGINES = pytest.mark.parametrize("engine", [pam_swap, pam_swap_numpy], ids=["numba", "numpy"])


def random_costs(n=40, seed=0, dtype=np.float64):
    """Asymmetric and without a triangle inequality."""
    costs = np.random.default_rng(seed).uniform(0.1, 1.0, (n, n)).astype(dtype)
    np.fill_diagonal(costs, 0)
    return costs


def loss_of(costs, medoids):
    return costs[medoids].min(axis=0).sum(dtype=np.float64)


def medoids_of(seed, n, k):
    return np.random.default_rng(seed).choice(n, k, replace=False)


@ENGINES
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [2, 3, 11])
def test_after_every_swap_the_assignment_is_that_from_scratch(engine, dtype, k):
    costs, medoids = random_costs(seed=k, dtype=dtype), medoids_of(k, 40, k)
    state = engine.assign(costs, medoids, medoids)
    rng = np.random.default_rng(1)
    for _ in range(30):
        slot, x = int(rng.integers(k)), int(rng.choice(np.setdiff1d(np.arange(40), medoids)))
        medoids[slot] = x
        loss = engine.swap(costs, medoids, state, slot, x)
        assert loss == pytest.approx(loss_of(costs, medoids), rel=1e-12)
        for kept, fresh in zip(state, engine.assign(costs, medoids, medoids), strict=True):
            np.testing.assert_allclose(kept, fresh, rtol=1e-12)


@ENGINES
def test_the_assignment_is_that_of_sorted_distances(engine):
    costs, medoids = random_costs(), medoids_of(3, 40, 6)
    near, dn, sec, ds, removal = engine.assign(costs, medoids, medoids)
    order = costs[medoids].argsort(axis=0)
    np.testing.assert_array_equal(near, order[0])
    np.testing.assert_array_equal(sec, order[1])
    np.testing.assert_array_equal([dn, ds], np.sort(costs[medoids], axis=0)[:2])
    without = [loss_of(costs, np.delete(medoids, slot)) - loss_of(costs, medoids) for slot in range(6)]
    np.testing.assert_allclose(removal, without)


@ENGINES
def test_twins_are_assigned_to_themselves(engine):
    costs = np.zeros((4, 4))
    medoids = np.array([2, 0, 3])
    state = engine.assign(costs, medoids, medoids)
    assert state.near[medoids].tolist() == [0, 1, 2]
    medoids[1] = 1
    engine.swap(costs, medoids, state, 1, 1)
    assert state.near[medoids].tolist() == [0, 1, 2]
    assert state.dn.tolist() == state.ds.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_candidates_change_is_that_of_the_best_slot(dtype):
    n, k = 70, 5  # more than a stride
    costs, medoids = random_costs(n, dtype=dtype), medoids_of(0, n, k)
    state = pam_swap.assign(costs, medoids, medoids)
    blocks = pam_swap_numpy.swap_changes(costs, state)
    for x in np.setdiff1d(np.arange(n), medoids):
        changed = [loss_of(costs, np.where(np.arange(k) == slot, x, medoids)) for slot in range(k)]
        change, slot = pam_swap.swap_change(costs[x], state, np.empty(k))
        assert slot == np.argmin(changed) == blocks[1][x]
        assert change == pytest.approx(min(changed) - loss_of(costs, medoids), abs=1e-10)
        assert blocks[0][x] == pytest.approx(change, abs=1e-10)


@ENGINES
@pytest.mark.parametrize("name", ["best_swap", "best_swap_pam"])
def test_the_best_of_all_swaps_is_found(engine, name):
    costs, medoids = random_costs(), medoids_of(5, 40, 4)
    state = engine.assign(costs, medoids, medoids)
    change, slot, x = getattr(engine, name)(costs, medoids, state, 7)
    losses = {
        (i, j): loss_of(costs, np.where(np.arange(4) == i, j, medoids))
        for j in np.setdiff1d(np.arange(40), medoids)
        for i in range(4)
    }
    assert (slot, x) == min(losses, key=losses.get)
    assert change == pytest.approx(min(losses.values()) - loss_of(costs, medoids), abs=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["euclidean", "cityblock"])
def test_engines_make_the_same_eager_swaps(dtype, metric):
    # City-block distances of whole numbers are full of ties.
    costs = pairwise_distances(load_digits().data[:250], metric=metric).astype(dtype)
    order = np.random.default_rng(0).permutation(250)
    results = []
    for engine, block_size in ((pam_swap, 64), (pam_swap_numpy, 64), (pam_swap_numpy, 1), (pam_swap_numpy, 999)):
        medoids, last, done, passes, losses = medoids_of(0, 250, 12), -1, False, 0, []
        state = engine.assign(costs, medoids, medoids)
        while not done:
            some, last, done = engine.eager_pass(costs, medoids, state, order, last, block_size)
            passes, losses = passes + 1, [*losses, *some]
        results.append((medoids.tolist(), last, passes, losses))
    for medoids, last, passes, losses in results[1:]:
        assert (medoids, last, passes) == results[0][:3]
        np.testing.assert_allclose(losses, results[0][3], rtol=1e-12)


@ENGINES
def test_additions_are_what_a_further_medoid_gains(engine):
    costs, medoids = random_costs(), medoids_of(2, 40, 3)
    gains = engine.additions(costs, costs[medoids].min(axis=0))
    expected = [loss_of(costs, np.append(medoids, x)) - loss_of(costs, medoids) for x in range(40)]
    np.testing.assert_allclose(gains, expected, atol=1e-10)

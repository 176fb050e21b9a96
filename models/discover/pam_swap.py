"""The swap engine of k-medoids, compiled: what replacing a medoid would change, and doing it.

``costs[x, o]`` is what it costs to serve object o by the candidate x, so that one candidate is one contiguous row.
`near` and `sec` are positions in the list of medoids, of the nearest and the second nearest of each object, `dn` and
`ds` the distances to them. The functions here and in :mod:`models.discover.pam_swap_numpy` have the same names, take
the same arguments and find the same swaps.

E. Schubert and P. J. Rousseeuw, "Fast and Eager k-Medoids Clustering: O(k) Runtime Improvement of the PAM, CLARA, and
CLARANS Algorithms", Information Systems 101, 2021.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Costs = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

TOLERANCE = 1e-12
"""A swap counts as better when it lowers the loss by more than this share: less may be rounding."""

STRIDE = 32
"""Objects looked at together; far more often than not none of them is touched by a candidate."""


class Assignment(NamedTuple):
    """Nearest and second nearest medoid of each object, changed in place by ``swap``.

    Attributes
    ----------
    near, sec : int32 array, (n,)
        Positions in the list of medoids.
    dn, ds : array, (n,)
        Distances to them, in the type of the costs; `ds` is infinite with a single medoid.
    removal : float64 array, (k,)
        What deleting each medoid would cost: sum of ``ds - dn`` over its objects.
    """

    near: NDArray[np.int32]
    dn: Costs
    sec: NDArray[np.int32]
    ds: Costs
    removal: Floats


@njit(cache=True)
def removal_losses(near: NDArray[np.int32], dn: Costs, ds: Costs, removal: Floats) -> None:
    """Write the cost of deleting each medoid into `removal` (the paper's ΔTD of a removal)."""
    removal[:] = 0.0
    for o in range(len(near)):
        removal[near[o]] += np.float64(ds[o]) - np.float64(dn[o])


@njit(cache=True)
def assign(costs: Costs, rows: Indices, medoids: Indices) -> Assignment:
    """Nearest and second nearest medoid of every object, from scratch in O(nk).

    Parameters
    ----------
    costs : array, (·, n)
    rows : int array, (k,)
        The row of `costs` that belongs to each medoid.
    medoids : int array, (k,)
        The objects that are medoids. Each is assigned to itself even if another medoid is at distance 0.
    """
    n, k = costs.shape[1], len(rows)
    near, sec = np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)
    dn, ds = np.full(n, np.inf, dtype=costs.dtype), np.full(n, np.inf, dtype=costs.dtype)
    for slot in range(k):
        row = costs[rows[slot]]
        for o in range(n):
            if row[o] < dn[o]:
                sec[o], ds[o] = near[o], dn[o]
                near[o], dn[o] = slot, row[o]
            elif row[o] < ds[o]:
                sec[o], ds[o] = slot, row[o]
    for slot in range(k):
        o = medoids[slot]
        if near[o] != slot:
            sec[o], ds[o] = near[o], dn[o]
            near[o], dn[o] = slot, costs[rows[slot], o]
    removal = np.empty(k)
    removal_losses(near, dn, ds, removal)
    return Assignment(near, dn, sec, ds, removal)


@njit(cache=True)
def swap_change(row: Costs, state: Assignment, change: Floats) -> tuple[float, int]:
    """Best medoid to replace by one candidate and what that changes in the loss, for all k at once in O(n).

    Parameters
    ----------
    row : array, (n,)
        Costs of serving each object by the candidate.
    state : Assignment
    change : float64 array, (k,)
        Room to work in; holds the part of the change that depends on the medoid replaced.

    Returns
    -------
    change : float
    slot : int
        The first of the best.
    """
    near, dn, _, ds, removal = state
    n = len(row)
    shared = 0.0
    change[:] = removal
    for start in range(0, n, STRIDE):
        stop = min(start + STRIDE, n)
        touched = False
        for o in range(start, stop):
            touched |= row[o] < ds[o]
        if not touched:
            continue
        for o in range(start, stop):
            if row[o] < dn[o]:
                shared += np.float64(row[o]) - np.float64(dn[o])
                change[near[o]] += np.float64(dn[o]) - np.float64(ds[o])
            elif row[o] < ds[o]:
                change[near[o]] += np.float64(row[o]) - np.float64(ds[o])
    slot = int(np.argmin(change))
    return shared + change[slot], slot


@njit(cache=True)
def swap(costs: Costs, rows: Indices, state: Assignment, slot: int, x: int | np.int64) -> float:
    """Bring object `x` in at `slot`, whose row in `costs` is already that of `x`, and return the new loss.

    Most objects keep their two medoids or take `x`; only those that lose one look through all k again.
    """
    near, dn, sec, ds, removal = state
    n, row = len(near), costs[rows[slot]]
    stale, n_stale = np.empty(n, dtype=np.int64), 0
    for o in range(n):
        d = row[o]
        if o == x:
            if near[o] != slot:
                sec[o], ds[o] = near[o], dn[o]
            near[o], dn[o] = slot, d
        elif near[o] == slot:
            if d < ds[o]:
                dn[o] = d
            else:
                near[o], dn[o] = sec[o], ds[o]
                stale[n_stale] = o
                n_stale += 1
        elif d < dn[o]:
            sec[o], ds[o] = near[o], dn[o]
            near[o], dn[o] = slot, d
        elif d < ds[o]:
            sec[o], ds[o] = slot, d
        elif sec[o] == slot:
            stale[n_stale] = o
            n_stale += 1
    find_second(costs, rows, state, stale[:n_stale])
    removal_losses(near, dn, ds, removal)
    return total(dn)


@njit(cache=True)
def find_second(costs: Costs, rows: Indices, state: Assignment, objects: Indices) -> None:
    """Look through all medoids for the second nearest of these objects."""
    near, _, sec, ds, _ = state
    for o in objects:
        ds[o] = np.inf
    for slot in range(len(rows)):
        row = costs[rows[slot]]
        for o in objects:
            if row[o] < ds[o] and near[o] != slot:
                sec[o], ds[o] = slot, row[o]


@njit(cache=True)
def total(values: Costs) -> float:
    """Sum in double precision."""
    result = 0.0
    for value in values:
        result += value
    return result


@njit(cache=True)
def best_swap(costs: Costs, medoids: Indices, state: Assignment, block_size: int) -> tuple[float, int, int]:
    """FastPAM1: change, slot and candidate of the best of all k(n - k) swaps, in O(n²). `block_size` is not used."""
    least, best_slot, best = np.inf, -1, -1
    work = np.empty(len(medoids))
    for x in range(len(costs)):
        if medoids[state.near[x]] != x:
            change, slot = swap_change(costs[x], state, work)
            if change < least:
                least, best_slot, best = change, slot, x
    return least, best_slot, best


@njit(cache=True)
def best_swap_pam(costs: Costs, medoids: Indices, state: Assignment, block_size: int) -> tuple[float, int, int]:
    """PAM: what :func:`best_swap` finds, by working each of the k(n - k) swaps out on its own, in O(kn²)."""
    near, dn, _, ds, _ = state
    n, least, best_slot, best = len(near), np.inf, -1, -1
    for x in range(n):
        if medoids[near[x]] == x:
            continue
        row = costs[x]
        for slot in range(len(medoids)):
            change = 0.0
            for o in range(n):
                if near[o] == slot:
                    change += np.float64(min(row[o], ds[o])) - np.float64(dn[o])
                elif row[o] < dn[o]:
                    change += np.float64(row[o]) - np.float64(dn[o])
            if change < least:
                least, best_slot, best = change, slot, x
    return least, best_slot, best


@njit(cache=True)
def eager_pass(
    costs: Costs, medoids: Indices, state: Assignment, order: Indices, last: int, block_size: int
) -> tuple[Floats, int, bool]:
    """FasterPAM: visit the candidates once and make every swap that helps as soon as it is seen.

    Parameters
    ----------
    costs : array, (n, n)
    medoids : int array, (k,)
        Changed in place, as is `state`.
    state : Assignment
    order : int array, (n,)
        The candidates in the order of the visit.
    last : int
        The candidate of the last swap of the pass before, -1 at first.
    block_size : int
        Not used here.

    Returns
    -------
    losses : float64 array
        The loss after each swap.
    last : int
    done : bool
        No candidate since the last swap helps, or the loss stands still.
    """
    losses, n_swaps = np.empty(len(order)), 0
    loss = total(state.dn)
    work = np.empty(len(medoids))
    for x in order:
        if x == last:
            return losses[:n_swaps], last, True
        if medoids[state.near[x]] == x:
            continue
        change, slot = swap_change(costs[x], state, work)
        if not change < -TOLERANCE * loss:
            continue
        replaced, medoids[slot] = medoids[slot], x
        new_loss = swap(costs, medoids, state, slot, x)
        if not new_loss < loss:
            medoids[slot] = replaced
            return losses[:n_swaps], last, True
        loss, last = new_loss, x
        losses[n_swaps] = loss
        n_swaps += 1
    return losses[:n_swaps], last, n_swaps == 0


@njit(cache=True)
def additions(costs: Costs, dn: Costs) -> Floats:
    """What making each object a further medoid changes in the loss, (n,): the greedy rule of BUILD."""
    changes = np.zeros(len(costs))
    for x in range(len(costs)):
        row = costs[x]
        for o in range(len(dn)):
            if row[o] < dn[o]:
                changes[x] += np.float64(row[o]) - np.float64(dn[o])
    return changes

"""The swap engine of k-medoids in plain numpy, candidates in blocks; :mod:`models.discover.pam_swap` is compiled.

E. Schubert and P. J. Rousseeuw, "Fast and Eager k-Medoids Clustering: O(k) Runtime Improvement of the PAM, CLARA, and
CLARANS Algorithms", Information Systems 101, 2021.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from models.discover.pam_swap import TOLERANCE, Assignment, Costs, Floats, Indices


def removal_losses(state: Assignment) -> Floats:
    """Cost of deleting each medoid, (k,)."""
    gaps = state.ds.astype(np.float64) - state.dn
    return np.bincount(state.near, weights=gaps, minlength=len(state.removal)).astype(np.float64)


def assign(costs: Costs, rows: Indices, medoids: Indices) -> Assignment:
    """Nearest and second nearest medoid of every object; each medoid is assigned to itself."""
    served = costs[rows]
    everyone, k = np.arange(served.shape[1]), len(rows)
    near = served.argmin(axis=0).astype(np.int32)
    near[medoids] = np.arange(k)
    dn = served[near, everyone]
    served[near, everyone] = np.inf
    sec = served.argmin(axis=0).astype(np.int32)
    state = Assignment(near, dn, sec, served[sec, everyone], np.zeros(k))
    state.removal[:] = removal_losses(state)
    return state


def swap_changes(block: Costs, state: Assignment) -> tuple[Floats, Indices]:
    """Least change of the loss by each candidate of a block (b, n), and the medoid it would replace, both (b,)."""
    near, dn, _, ds, removal = state
    wide = block.astype(np.float64)
    shared = np.minimum(wide - dn, 0).sum(axis=1)
    by_medoid = np.argsort(near, kind="stable")
    starts = np.searchsorted(near[by_medoid], np.arange(len(removal)))
    corrections = np.minimum(np.maximum(wide, dn) - ds, 0)[:, by_medoid]
    changes = removal + np.add.reduceat(corrections, starts, axis=1)
    slots = changes.argmin(axis=1)
    return shared + changes[np.arange(len(block)), slots], slots


def swap(costs: Costs, rows: Indices, state: Assignment, slot: int, x: int) -> float:
    """Bring object `x` in at `slot`, whose row in `costs` is already that of `x`, and return the new loss."""
    near, dn, sec, ds, removal = state
    d = costs[rows[slot]]
    other = np.arange(len(near)) != x
    own = other & (near == slot)
    kept, lost = own & (d < ds), own & (d >= ds)
    closer = other & ~own & (d < dn)
    closer[x] = near[x] != slot
    second = other & ~own & ~closer & (d < ds)
    stale = lost | (other & ~own & ~closer & ~second & (sec == slot))

    near[lost], dn[lost] = sec[lost], ds[lost]
    sec[closer], ds[closer] = near[closer], dn[closer]
    near[closer], sec[second], ds[second] = slot, slot, d[second]
    dn[kept], dn[closer], dn[x] = d[kept], d[closer], d[x]
    objects = np.flatnonzero(stale)
    served = costs[np.ix_(rows, objects)]
    served[near[objects], np.arange(len(objects))] = np.inf
    sec[objects], ds[objects] = served.argmin(axis=0), served.min(axis=0)
    removal[:] = removal_losses(state)
    return float(dn.sum(dtype=np.float64))


def others(medoids: Indices, state: Assignment, order: Indices, block_size: int) -> Iterator[Indices]:
    """Those objects of `order` that are no medoids, in blocks."""
    candidates = order[medoids[state.near[order]] != order]
    for start in range(0, len(candidates), block_size):
        yield candidates[start : start + block_size]


def best_swap(costs: Costs, medoids: Indices, state: Assignment, block_size: int) -> tuple[float, int, int]:
    """FastPAM1: change, slot and candidate of the best of all swaps."""
    least, best_slot, best = np.inf, -1, -1
    for block in others(medoids, state, np.arange(len(costs)), block_size):
        changes, slots = swap_changes(costs[block], state)
        first = int(changes.argmin())
        if changes[first] < least:
            least, best_slot, best = float(changes[first]), int(slots[first]), int(block[first])
    return least, best_slot, best


def best_swap_pam(costs: Costs, medoids: Indices, state: Assignment, block_size: int) -> tuple[float, int, int]:
    """PAM: what :func:`best_swap` finds, each swap's new loss worked out on its own."""
    near, dn, _, ds, _ = state
    least, best_slot, best = np.inf, -1, -1
    without = np.array([np.where(near == slot, ds, dn) for slot in range(len(medoids))], dtype=np.float64)
    for block in others(medoids, state, np.arange(len(costs)), block_size):
        for x in block:
            changes = (np.minimum(costs[x], without) - dn).sum(axis=1)
            slot = int(changes.argmin())
            if changes[slot] < least:
                least, best_slot, best = float(changes[slot]), slot, int(x)
    return least, best_slot, best


def eager_pass(
    costs: Costs, medoids: Indices, state: Assignment, order: Indices, last: int, block_size: int
) -> tuple[Floats, int, bool]:
    """FasterPAM: one visit to all candidates; after a swap the rest of the block is evaluated again."""
    losses: list[float] = []
    loss = float(state.dn.sum(dtype=np.float64))
    position = 0
    while position < len(order):
        block = order[position : position + block_size]
        changes, slots = swap_changes(costs[block], state)
        helps = (changes < -TOLERANCE * loss) & (medoids[state.near[block]] != block)
        helps |= block == last
        if not helps.any():
            position += len(block)
            continue
        first = int(helps.argmax())
        x, slot = int(block[first]), int(slots[first])
        if x == last:
            return np.array(losses), last, True
        replaced, medoids[slot] = medoids[slot], x
        new_loss = swap(costs, medoids, state, slot, x)
        if not new_loss < loss:
            medoids[slot] = replaced
            return np.array(losses), last, True
        loss, last = new_loss, x
        losses.append(loss)
        position += first + 1
    return np.array(losses), last, not losses


def additions(costs: Costs, dn: Costs) -> Floats:
    """What making each object a further medoid changes in the loss, (n,)."""
    changes = np.empty(len(costs))
    for start in range(0, len(costs), 64):
        block = costs[start : start + 64].astype(np.float64)
        changes[start : start + 64] = np.minimum(block - dn, 0).sum(axis=1)
    return changes

"""Find a group in a graph around one known member, with unreliable flags of who belongs to it; and repair the flags.

A. Back de Luca, K. Fountoulakis and S. Yang, "Local Graph Clustering with Noisy Labels", ICLR 2024, arXiv:2310.08031.
S. Yang and K. Fountoulakis, "Weighted Flow Diffusion for Local Graph Clustering with Node Attributes", ICML 2023,
arXiv:2301.13187: the diffusion and its solver (algorithm 1).

Mass is put on the seeds and flows along edges until no node holds more than its sink takes. Edges between nodes whose
flags differ conduct less, so the flow stays in the group; only nodes that it reaches are ever looked at.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from models.base import UNLABELLED, check_embeddings, check_labels, seed_from
from models.registry import register

Floats = NDArray[np.float64]
Nodes = NDArray[np.int64]
Graph = sparse.csr_array
Rows = Callable[[int], tuple[NDArray[Any], Floats]]

SUPPORT = 1e-12
"""Potentials at or below this count as zero."""
GUESS_HOPS, LIFT_HOPS = 3, 2
LEAST_LIFT = 1.1
"""Flags that do not gather by more than this near the seeds tell nothing and are not used."""
BASE_ROWS = 500


class UninformativeLabelsWarning(UserWarning):
    """Flags do not gather near the seeds: they tell nothing, and the graph alone is used."""


# ---- the graph and its weights ------------------------------------------------------------------------------


def check_graph(A: Any) -> Graph:
    """The adjacency as float64 CSR without self-loops.

    Raises
    ------
    ValueError
        If it is not square, not symmetric, or holds NaN, infinite or negative weights.
    """
    if not sparse.issparse(A) and np.ndim(A) != 2:
        raise ValueError(f"A must be a matrix shaped (n, n), sparse or dense, got an array shaped {np.shape(A)}.")
    graph = sparse.csr_array(A, dtype=np.float64)
    if graph.shape[0] != graph.shape[1] or not graph.shape[0]:
        raise ValueError(f"A must be square with at least one node, got {graph.shape}.")
    if not np.isfinite(graph.data).all():
        raise ValueError("A contains NaN or infinite weights. Leave out edges whose weight is unknown.")
    if len(graph.data) and graph.data.min() < 0:
        raise ValueError(f"A must hold no negative weight, got {graph.data.min():.3g}. Use similarities.")
    gap = abs(graph - graph.T)
    if gap.nnz and gap.max() > 1e-8:
        raise ValueError(
            f"A must be symmetric, got entries that differ by {gap.max():.3g} from their mirror. "
            "Make it symmetric first, for instance with A.maximum(A.T)."
        )
    if graph.diagonal().any():
        graph = sparse.csr_array(graph - sparse.diags_array(graph.diagonal()))
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def factor(own: float, others: Floats, epsilon: float) -> Floats:
    """Step 1: what the weights of a node's edges are multiplied by.

    1 where flags agree and `epsilon` where they differ; between soft flags p and q the mean of both by the chance
    s = p q + (1 - p)(1 - q) that they agree; ``sqrt(epsilon)`` where one is unknown (-1).
    """
    if own < 0:
        return np.full(len(others), math.sqrt(epsilon))
    agree = own * others + (1 - own) * (1 - others)
    return np.where(others < 0, math.sqrt(epsilon), agree + epsilon * (1 - agree))


def label_edge_weights(A: Any, labels: ArrayLike, epsilon: float = 0.05) -> Graph:
    """The graph with weights lowered between nodes whose flags differ (step 1), same pattern.

    Parameters
    ----------
    A : sparse or dense matrix, (n, n)
    labels : array, (n,)
        0, 1 or -1 (unknown), or floats in [0, 1].
    epsilon : float
        Share of its weight that an edge between different flags keeps: 1 ignores the flags, 0 cuts such edges.

    Raises
    ------
    ValueError
        For a graph that is none, flags out of range, or `epsilon` outside [0, 1].
    """
    graph = check_graph(A)
    flags = check_flags(labels, graph.shape[0])
    _check_epsilon(epsilon)
    weighted = graph.copy()
    for node in range(graph.shape[0]):
        here = slice(graph.indptr[node], graph.indptr[node + 1])
        weighted.data[here] *= factor(flags[node], flags[graph.indices[here]], epsilon)
    return weighted


def check_flags(labels: ArrayLike, n: int) -> Floats:
    """Flags as float64 (n,): -1 unknown, else in [0, 1]."""
    flags = np.asarray(labels, dtype=np.float64)
    if flags.shape != (n,):
        raise ValueError(f"labels must be shaped ({n},), one a node, got {flags.shape}.")
    fine = (flags == UNLABELLED) | ((flags >= 0) & (flags <= 1))
    if not fine.all():
        bad = int(np.flatnonzero(~fine)[0])
        raise ValueError(f"labels must be 0, 1 or -1 (unknown), or lie in [0, 1], got {flags[bad]} at node {bad}.")
    return flags


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], got {epsilon}.")


# ---- the diffusion ------------------------------------------------------------------------------------------


class Diffusion(NamedTuple):
    """Where the mass went.

    Attributes
    ----------
    x : array, (n,)
        Potentials; the dual solution.
    mass : array, (n,)
        Mass each node holds at the end; at most its sink plus the tolerance where the solver converged.
    residual : float
        Largest excess over a sink that remains.
    visited : array of int, (touched,)
        Nodes that were looked at, ascending.
    n_pushes : int
    stuck : array of int
        Nodes with an excess and no edge to send it along.
    """

    x: Floats
    mass: Floats
    residual: float
    visited: Nodes
    n_pushes: int
    stuck: Nodes


def flow_diffusion(
    A: Graph,
    source: Mapping[int, float] | ArrayLike,
    sink: Callable[[int], float] | ArrayLike,
    tol: float = 1e-4,
    max_passes: int = 100,
    random_state: int | np.random.RandomState | None = None,
    lazy_weights: Callable[[int, NDArray[Any], Floats], Floats] | None = None,
) -> Diffusion:
    """Solve the diffusion by pushing excess mass to neighbours, in random order (algorithm 1).

    Each push minimises ``F(x) = 0.5 x' L x + x' (sink - source)`` over ``x >= 0`` exactly in one coordinate. Nodes that
    the mass does not reach cost nothing.

    Parameters
    ----------
    A : csr_array, (n, n)
        Symmetric, non-negative, without self-loops; only touched rows are read, none is checked.
    source : mapping of node to mass, or array (n,)
    sink : callable of node, or array (n,)
        What a node takes, positive.
    tol : float
        Excess that is let be.
    max_passes : int
        Rounds over the nodes with excess.
    random_state : int, RandomState or None
    lazy_weights : callable, optional
        ``lazy_weights(node, neighbours, weights)`` gives the weights used for a node's edges; called once a node.

    Raises
    ------
    ValueError
        If a source is negative or not finite, a sink not positive, or a component gets more mass than its sinks take.

    Examples
    --------
    >>> from scipy import sparse
    >>> path = sparse.csr_array([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> flow_diffusion(path, {0: 3.0}, [1.0, 1.0, 1.0], tol=1e-9, max_passes=1000).x.round(3).tolist()
    [3.0, 1.0, 0.0]
    """
    n = A.shape[0]
    given = dict(source) if isinstance(source, Mapping) else _nonzero(source, n)
    capacity = sink if callable(sink) else np.asarray(sink, dtype=np.float64).__getitem__
    rows = _remembered(A, lazy_weights)
    _require_room(given, capacity, rows)
    x, mass = np.zeros(n), np.zeros(n)
    touched = set(given)
    for node, amount in given.items():
        mass[node] = amount
    active, order = set(given), np.random.default_rng(seed_from(random_state))
    pushes, stuck = 0, set()
    for _ in range(max_passes):
        waiting = sorted(node for node in active if mass[node] > capacity(node) + tol and node not in stuck)
        if not waiting:
            break
        active = set()
        for node in order.permutation(waiting).tolist():
            excess = mass[node] - capacity(node)
            if excess <= 0:
                continue
            neighbours, weights = rows(node)
            degree = weights.sum()
            if degree <= 0:
                stuck.add(node)
                continue
            step = excess / degree
            x[node] += step
            mass[node] = capacity(node)
            mass[neighbours] += weights * step
            pushes += 1
            reached = neighbours.tolist()
            active.update(reached)
            touched.update(reached)
        active.update(waiting)
    visited = np.array(sorted(touched), dtype=np.int64)
    excess_left = max((mass[node] - capacity(node) for node in touched), default=0.0)
    return Diffusion(x, mass, max(0.0, float(excess_left)), visited, pushes, np.array(sorted(stuck), dtype=np.int64))


def _nonzero(source: ArrayLike, n: int) -> dict[int, float]:
    values = np.asarray(source, dtype=np.float64)
    if values.shape != (n,):
        raise ValueError(f"source must be shaped ({n},), one a node, got {values.shape}.")
    return {int(node): float(values[node]) for node in np.flatnonzero(values)}


def _remembered(A: Graph, lazy_weights: Callable[[int, NDArray[Any], Floats], Floats] | None) -> Rows:
    """Neighbours of a node and the weights to them; made once for each node that is asked for."""
    held: dict[int, tuple[NDArray[Any], Floats]] = {}

    def row(node: int) -> tuple[NDArray[Any], Floats]:
        if node not in held:
            here = slice(A.indptr[node], A.indptr[node + 1])
            neighbours, weights = A.indices[here], A.data[here]
            held[node] = (neighbours, weights if lazy_weights is None else lazy_weights(node, neighbours, weights))
        return held[node]

    return row


def _require_room(source: Mapping[int, float], capacity: Callable[[int], float], rows: Rows) -> None:
    """A breadth-first walk from each seed, until the sinks met can take all mass there is."""
    if not source or not all(math.isfinite(amount) and amount >= 0 for amount in source.values()):
        raise ValueError(f"source must hold finite, non-negative mass on at least one node, got {dict(source)}.")
    total = sum(source.values())
    done: set[int] = set()
    for seed in source:
        if seed in done:
            continue
        room, seen, queue = 0.0, {seed}, deque([seed])
        while queue and room <= total:
            node = queue.popleft()
            sink = capacity(node)
            if not sink > 0:
                raise ValueError(f"sink must be positive, got {sink} at node {node}.")
            room += sink
            neighbours, weights = rows(node)
            fresh = [other for other in neighbours[weights > 0].tolist() if other not in seen]
            seen.update(fresh)
            queue.extend(fresh)
        held = sum(amount for node, amount in source.items() if node in seen)
        if not queue and held > room * (1 + 1e-9):
            raise ValueError(
                f"The {len(seen)} nodes that the seeds reach take {room:.4g} mass and are given {held:.4g}, so the "
                "flow can not come to rest. Lower mass_factors or target_volume, or add the group's missing edges."
            )
        done |= seen


# ---- groups -------------------------------------------------------------------------------------------------


def conductance(A: Graph, nodes: ArrayLike, total: float | None = None) -> float:
    """Weight of the edges that leave `nodes`, over the smaller of the two volumes; 1 for no nodes.

    Parameters
    ----------
    A : csr_array, (n, n)
    nodes : array of int
    total : float, optional
        Volume of the whole graph, the sum of its weights; without it the volume of `nodes` is taken for the smaller.
    """
    inside = np.asarray(nodes, dtype=np.int64)
    if not len(inside):
        return 1.0
    block = A[inside]
    volume = float(block.sum())
    own = float(block[:, inside].sum())
    smaller = volume if total is None else min(volume, total - volume)
    return (volume - own) / smaller if smaller > 0 else 1.0


def sweep_cut(A: Graph, x: Floats, total: float | None = None) -> Nodes:
    """The nodes of largest potential, as many as give the least conductance."""
    order = np.flatnonzero(x > SUPPORT)
    order = order[np.argsort(-x[order], kind="stable")]
    volume, cut, best, chosen = 0.0, 0.0, math.inf, 0
    inside: set[int] = set()
    for count, node in enumerate(order.tolist(), start=1):
        here = slice(A.indptr[node], A.indptr[node + 1])
        weights = A.data[here]
        degree = float(weights.sum())
        within = float(weights[[other in inside for other in A.indices[here].tolist()]].sum()) if inside else 0.0
        volume, cut = volume + degree, cut + degree - 2 * within
        inside.add(node)
        smaller = volume if total is None else min(volume, total - volume)
        if smaller > 0 and cut / smaller < best:
            best, chosen = cut / smaller, count
    return np.sort(order[:chosen]).astype(np.int64)


def label_lift(A: Graph, flags: Floats, seeds: Iterable[int], base: float, hops: int = LIFT_HOPS) -> float:
    """How much more often than anywhere a neighbour of a flagged node is flagged, near the seeds.

    Inside a group all flags are equally likely, so that agreement alone would say nothing there; the share of flags 1
    in the whole graph, `base`, is what a neighbour's flag is compared with. nan where nothing is known.
    """
    near = np.array(sorted(_within(A, seeds, hops)), dtype=np.int64)
    near = near[flags[near] > 0]
    told, weight = 0.0, 0.0
    for node in near.tolist():
        others = flags[A.indices[A.indptr[node] : A.indptr[node + 1]]]
        others = others[others >= 0]
        told += float(flags[node] * others.sum())
        weight += float(flags[node] * len(others))
    return told / weight / base if weight and base > 0 else math.nan


def _within(A: Graph, seeds: Iterable[int], hops: int) -> set[int]:
    seen = set(seeds)
    front = set(seen)
    for _ in range(hops):
        front = {other for node in front for other in A.indices[A.indptr[node] : A.indptr[node + 1]].tolist()} - seen
        seen |= front
    return seen


@register(
    "local-graph",
    stage="label_noise",
    summary="Finds a group around a known member of a graph, with noisy flags of who belongs to it, and repairs them.",
    paper="Local Graph Clustering with Noisy Labels",
    year=2024,
    link="https://arxiv.org/abs/2310.08031",
    licence="none published",
    accepts=("embedding", "table"),
    skips_checks={
        "wrong_shape": "it is given a graph; its own tests refuse every graph that is none",
        "nan": "it is given a graph; its own tests refuse NaN in it",
        "empty": "it is given a graph; its own tests refuse one without nodes",
        "one_class": "flags that are all alike leave the graph to decide",
        "all_unlabelled": "flags that are all unknown leave the graph to decide",
    },
)
class LabelFlowDiffusion(BaseEstimator):
    """The group of the seeds, by a flow that prefers edges between nodes of equal flags.

    It needs groups that are denser inside than to the outside. Flags that do not gather near the seeds do harm; this
    is noticed, and they are left out with a warning.

    Parameters
    ----------
    epsilon : float, default=0.05
        Share of its weight that an edge between different flags keeps; 0.01 to 0.1 give much the same.
    mass_factors : sequence of float, default=(1.5, 1.75, ..., 5.0)
        Source mass tried, as multiples of the target volume; the group of least conductance stays.
    target_volume : float or None, default=None
        Sum of the sinks of the group looked for. None guesses it: the sinks of the nodes flagged 1 within three
        hops of the seeds, corrected by `label_rates`.
    sink : {"degree", "one"}, default="degree"
        What a node takes: its unweighted degree (weights of `A` without flags), or 1.
    rounding : {"support", "conductance"}, default="support"
        The group: every node with a potential (published), or the part of them with the least conductance.
    tol : float, default=1e-4
        Excess that is let be.
    max_passes : int, default=50
        Rounds of pushes for each mass.
    label_rates : pair of float or None, default=None
        Shares of flags 1 inside and of flags 0 outside the group, if known; they correct the guessed volume.
    labeller : classifier or None, default=None
        Gives the flags of reached nodes when `fit` gets labelled rows instead of flags; logistic regression.
    random_state : int, RandomState or None, default=None
        Order of the pushes; it changes potentials within `tol`.

    Attributes
    ----------
    cluster_ : array of int
        Nodes of the group, ascending.
    labels_ : int array, (n,)
        1 in the group, 0 outside.
    embedding_ : array, (n,)
        Potentials of the mass chosen: how firmly a node belongs.
    conductance_, mass_factor_ : float
        Of the group chosen, on the weighted graph.
    visited_ : int
        Nodes touched by the largest of the diffusions.
    n_pushes_ : int
        Over all masses.
    residual_ : float
        Largest excess that was left where the group was found; above `tol` the passes did not suffice.
    labels_used_ : array, (n,)
        Flags as used: seeds are 1, nodes that were never reached -1.
    lift_ : float
        How much more often than anywhere a neighbour of a flagged node is flagged, near the seeds.
    epsilon_ : float
        `epsilon`, or 1 where the flags told nothing.

    References
    ----------
    Back de Luca et al. (2024), section 3; Yang & Fountoulakis (2023), algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> two = sparse.csr_array(np.kron(np.eye(2), np.ones((5, 5))) + np.eye(10, k=5) * 0.2 + np.eye(10, k=-5) * 0.2)
    >>> found = LabelFlowDiffusion(random_state=0, target_volume=20).fit(two, [0], [1, 1, 0, 1, 1, 0, 0, 0, 0, 0])
    >>> found.cluster_.tolist()
    [0, 1, 2, 3, 4]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "epsilon": [Interval(Real, 0, 1, closed="both")],
        "mass_factors": ["array-like"],
        "target_volume": [None, Interval(Real, 0, None, closed="neither")],
        "sink": [StrOptions({"degree", "one"})],
        "rounding": [StrOptions({"support", "conductance"})],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_passes": [Interval(Integral, 1, None, closed="left")],
        "label_rates": [None, "array-like"],
        "labeller": [None, HasMethods(["fit", "predict"])],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        epsilon: float = 0.05,
        *,
        mass_factors: Sequence[float] = tuple(np.arange(1.5, 5.01, 0.25).tolist()),
        target_volume: float | None = None,
        sink: str = "degree",
        rounding: str = "support",
        tol: float = 1e-4,
        max_passes: int = 50,
        label_rates: tuple[float, float] | None = None,
        labeller: Any = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.mass_factors = mass_factors
        self.target_volume = target_volume
        self.sink = sink
        self.rounding = rounding
        self.tol = tol
        self.max_passes = max_passes
        self.label_rates = label_rates
        self.labeller = labeller
        self.random_state = random_state

    def fit(
        self,
        A: Any,
        seeds: ArrayLike,
        labels: ArrayLike | None = None,
        X: ArrayLike | None = None,
        labelled_idx: ArrayLike | None = None,
        labelled_y: ArrayLike | None = None,
    ) -> LabelFlowDiffusion:
        """Find the group.

        Parameters
        ----------
        A : sparse or dense matrix, (n, n)
            Symmetric, non-negative; the diagonal does not count.
        seeds : array of int
            Nodes known to belong to the group.
        labels : array, (n,), optional
            Flags: 1 in the group, 0 not, -1 unknown; or chances in [0, 1].
        X : array, (n, d), optional
            Without `labels`: rows from which the labeller tells the flags, asked for reached nodes only.
        labelled_idx, labelled_y : array of int
            Rows of `X` whose flag is known, 0 or 1, to teach the labeller.

        Raises
        ------
        ValueError
            For a graph that is not square, symmetric or non-negative, or holds NaN; seeds that do not exist or have no
            edge; flags out of range; labelled rows of one class; or more mass than a component takes.

        Warns
        -----
        UninformativeLabelsWarning
            When flags do not gather near the seeds.
        """
        self._validate_params()
        if self.label_rates is not None and not sum(map(float, self.label_rates)) > 1:
            raise ValueError(f"label_rates must sum to more than 1 to tell anything, got {self.label_rates}.")
        graph = check_graph(A)
        n = graph.shape[0]
        chosen = self._check_seeds(seeds, graph)
        self._flags(n, chosen, labels, X, labelled_idx, labelled_y)
        capacity = self._capacity(graph)
        self.lift_ = self._lift(graph, chosen)
        self.epsilon_ = float(self.epsilon)
        if self.lift_ < LEAST_LIFT:
            self.epsilon_ = 1.0
            warnings.warn(
                f"Near the seeds a neighbour of a flagged node is flagged {self.lift_:.2f} times as often as any "
                "node: the flags tell nothing, and the graph alone is used. Give better flags, or set epsilon=1.",
                UninformativeLabelsWarning,
                stacklevel=2,
            )
        volume = self._volume(graph, chosen, capacity)
        self._choose(graph, chosen, capacity, volume)
        return self

    def fit_predict(self, A: Any, seeds: ArrayLike, labels: ArrayLike | None = None, **others: Any) -> Nodes:
        """Find the group; 1 for its nodes, 0 for the others."""
        return self.fit(A, seeds, labels, **others).labels_

    def correct_labels(self) -> Nodes:
        """The flags repaired: 1 in the group, 0 outside, (n,)."""
        check_is_fitted(self, "labels_")
        return self.labels_.copy()

    # ---- flags

    def _flags(self, n: int, seeds: Nodes, labels: Any, X: Any, labelled_idx: Any, labelled_y: Any) -> None:
        """Set ``labels_used_`` and what tells further flags when they are asked for."""
        self._rows = self._teacher = None
        if labels is not None:
            self.labels_used_ = check_flags(labels, n).copy()
        elif X is None:
            self.labels_used_ = np.full(n, float(UNLABELLED))
        else:
            self.labels_used_ = np.full(n, float(UNLABELLED))
            self._rows = check_embeddings(X)
            known = np.asarray(labelled_idx, dtype=np.int64) if labelled_idx is not None else np.empty(0, np.int64)
            if len(self._rows) != n or not len(known) or labelled_y is None:
                raise ValueError(
                    f"Without labels, fit needs X with {n} rows and labelled_idx and labelled_y to teach the labeller, "
                    f"got {len(self._rows)} rows and {len(known)} labelled ones."
                )
            truth = check_labels(labelled_y, len(known), n_classes=2, allow_unlabelled=False, name="labelled_y")
            teacher = clone(self.labeller) if self.labeller is not None else LogisticRegression(max_iter=1000)
            self._teacher = teacher.fit(self._rows[known], truth)
            self.labels_used_[known] = truth
        self.labels_used_[seeds] = 1.0

    def _ask(self, nodes: NDArray[Any]) -> None:
        """Let the labeller tell the flags of nodes that have none yet."""
        if self._teacher is None or self._rows is None:
            return
        fresh = np.unique(nodes[self.labels_used_[nodes] < 0])
        if len(fresh):
            self.labels_used_[fresh] = self._teacher.predict(self._rows[fresh])

    def _weights(self, node: int, neighbours: NDArray[Any], weights: Floats) -> Floats:
        self._ask(np.append(neighbours, node))
        if self.epsilon_ == 1:
            return weights
        return weights * factor(self.labels_used_[node], self.labels_used_[neighbours], self.epsilon_)

    def _lift(self, graph: Graph, seeds: Nodes) -> float:
        if self.epsilon == 1:
            return math.nan
        self._ask(np.array(sorted(_within(graph, seeds.tolist(), LIFT_HOPS + 1)), dtype=np.int64))
        known = self.labels_used_[self.labels_used_ >= 0]
        if self._teacher is not None and self._rows is not None:  # reached nodes are no fair sample of all
            some = np.random.default_rng(0).choice(len(self._rows), min(len(self._rows), BASE_ROWS), replace=False)
            known = self._teacher.predict(self._rows[some]).astype(float)
        return label_lift(graph, self.labels_used_, seeds.tolist(), float(known.mean())) if len(known) else math.nan

    # ---- masses

    def _check_seeds(self, seeds: ArrayLike, graph: Graph) -> Nodes:
        chosen = np.unique(np.atleast_1d(np.asarray(seeds)))
        n = graph.shape[0]
        if not len(chosen) or chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= n:
            raise ValueError(f"seeds must name nodes in 0..{n - 1}, at least one, got {np.asarray(seeds).tolist()}.")
        alone = [int(node) for node in chosen if graph.indptr[node] == graph.indptr[node + 1]]
        if alone:
            raise ValueError(f"Seeds {alone} have no edge, so nothing can flow from them. Choose others.")
        return chosen.astype(np.int64)

    def _capacity(self, graph: Graph) -> Callable[[int], float]:
        if self.sink == "one":
            return lambda node: 1.0
        return lambda node: float(graph.data[graph.indptr[node] : graph.indptr[node + 1]].sum())

    def _volume(self, graph: Graph, seeds: Nodes, capacity: Callable[[int], float]) -> float:
        """Sum of the sinks of the group looked for, as given or guessed near the seeds."""
        if self.target_volume is not None:
            return float(self.target_volume)
        near = np.array(sorted(_within(graph, seeds.tolist(), GUESS_HOPS)), dtype=np.int64)
        self._ask(near)
        sinks = np.array([capacity(node) for node in near.tolist()])
        flags = self.labels_used_[near]
        volume = float((sinks * np.clip(flags, 0, 1)).sum())
        if self.label_rates is not None:
            inside, outside = map(float, self.label_rates)
            seen = float(sinks[flags >= 0].sum())
            volume = (volume - (1 - outside) * seen) / (inside + outside - 1)
        return max(volume, float(sum(capacity(node) for node in seeds.tolist())))

    def _choose(self, graph: Graph, seeds: Nodes, capacity: Callable[[int], float], volume: float) -> None:
        """Diffuse each mass, keep the group of least conductance on the weighted graph (step 5)."""
        factors = sorted(float(each) for each in self.mass_factors)
        if not factors or not all(math.isfinite(each) and each > 0 for each in factors):
            raise ValueError(f"mass_factors must hold positive numbers, got {list(self.mass_factors)}.")
        seed = seed_from(self.random_state)
        self.n_pushes_ = self.visited_ = 0
        best: tuple[float, float, Nodes, Diffusion] | None = None
        refused: ValueError | None = None
        for each in factors:
            share = each * volume / len(seeds)
            try:
                flow = flow_diffusion(
                    graph,
                    dict.fromkeys(seeds.tolist(), share),
                    capacity,
                    self.tol,
                    self.max_passes,
                    seed,
                    self._weights,
                )
            except ValueError as error:  # larger masses do not fit either
                refused = error
                break
            self.n_pushes_ += flow.n_pushes
            self.visited_ = max(self.visited_, len(flow.visited))
            group, apart = self._group(graph, flow)
            if best is None or apart < best[0]:
                best = (apart, each, group, flow)
        if best is None:
            assert refused is not None
            raise refused
        self.conductance_, self.mass_factor_, self.cluster_, flow = best
        self.embedding_, self.residual_ = flow.x, flow.residual
        self.labels_ = np.zeros(graph.shape[0], dtype=np.int64)
        self.labels_[self.cluster_] = 1
        del self._rows, self._teacher

    def _group(self, graph: Graph, flow: Diffusion) -> tuple[Nodes, float]:
        """Step 4, and its conductance where the flow went: weights of other edges are never needed."""
        row = _remembered(graph, self._weights)
        touched = flow.visited
        place = np.full(graph.shape[0], -1, dtype=np.int64)
        place[touched] = np.arange(len(touched))
        support = np.flatnonzero(flow.x > SUPPORT)
        starts, columns, data = [0], [], []
        for node in touched.tolist():
            neighbours, weights = row(node) if flow.x[node] > SUPPORT else (np.empty(0, np.int64), np.empty(0))
            columns.append(place[neighbours])
            data.append(weights)
            starts.append(starts[-1] + len(neighbours))
        local = sparse.csr_array(
            (np.concatenate(data), np.concatenate(columns), np.array(starts)), shape=(len(touched), len(touched))
        )
        total = self._total(graph)
        nodes = support.astype(np.int64)
        if self.rounding == "conductance":
            nodes = touched[sweep_cut(local, flow.x[touched], total)]
        return nodes, conductance(local, place[nodes], total)

    def _total(self, graph: Graph) -> float | None:
        """Volume of the weighted graph where all flags are known; else a group is taken for the smaller side."""
        if self.epsilon_ == 1:
            return float(graph.data.sum())
        if (self.labels_used_ < 0).any() or self._teacher is not None:
            return None
        sources = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
        own, others = self.labels_used_[sources], self.labels_used_[graph.indices]
        agree = own * others + (1 - own) * (1 - others)
        return float((graph.data * (agree + self.epsilon_ * (1 - agree))).sum())


def correct_multiclass(
    A: Any, y_noisy: ArrayLike, seeds_per_class: Mapping[int, ArrayLike], **parameters: Any
) -> Nodes:
    """Repair the labels of several classes: one diffusion each, and every node goes to the one that flows to it most.

    Parameters
    ----------
    A : sparse or dense matrix, (n, n)
    y_noisy : int array, (n,)
        Labels, -1 unknown.
    seeds_per_class : mapping of class to nodes
    **parameters
        Of :class:`LabelFlowDiffusion`.

    Returns
    -------
    int array, (n,)
        The class whose diffusion gives a node the largest potential, as a share of that diffusion's largest; -1 for
        nodes that none reaches.

    Raises
    ------
    ValueError
        As :meth:`LabelFlowDiffusion.fit`; or without any class.
    """
    graph = check_graph(A)
    given = check_labels(y_noisy, graph.shape[0], minimum_classes=1, name="y_noisy")
    if not seeds_per_class:
        raise ValueError("seeds_per_class names no class; give at least one known node for each class.")
    classes = sorted(seeds_per_class)
    reach = np.zeros((len(classes), graph.shape[0]))
    for place, name in enumerate(classes):
        flags = np.where(given < 0, -1, given == name)
        found = LabelFlowDiffusion(**parameters).fit(graph, seeds_per_class[name], flags)
        inside = np.where(found.labels_ == 1, found.embedding_, 0.0)
        reach[place] = inside / inside.max() if inside.max() > 0 else 0.0
    return np.where(reach.max(axis=0) > 0, np.array(classes)[reach.argmax(axis=0)], UNLABELLED).astype(np.int64)

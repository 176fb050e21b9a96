"""Solvers of the semidefinite programme behind likelihood-adjusted clustering.

Given one symmetric matrix A_k for each of K groups, over symmetric n x n matrices Z_1 ... Z_K,

    maximise  sum_k <A_k, Z_k>
    subject to  Z_k positive semidefinite,  Z_k >= 0 entrywise,  tr Z_k = 1,  (sum_k Z_k) 1 = 1.

A partition G_1 ... G_K is the feasible point Z_k = 1_G 1_G' / |G|, so the programme is a convex relaxation of a
search over partitions. Three ways to solve it:

``la_sdp``            alternating directions (ADMM), on whole matrices: the programme itself, up to hundreds of rows
``la_sdp_low_rank``   Z_k = V_k V_k' with V_k >= 0 of few columns (Burer-Monteiro): not convex, linear in the rows
``la_sdp_reference``  cvxpy, to check the others by

Y. Zhuang, X. Chen and Y. Yang, "Likelihood Adjusted Semidefinite Programs for Clustering Heterogeneous Data",
ICML 2023. S. Burer and R. Monteiro, "A nonlinear programming algorithm for solving semidefinite programs via low-rank
factorization", Mathematical Programming 95, 2003.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import Bounds, minimize

Matrix = NDArray[np.float64]

CHECK_EVERY = 10
REFERENCE_ROWS = 60


class Residuals(NamedTuple):
    """How far a solution is from feasible and from stationary, in the solver's own scale."""

    primal: float
    dual: float


class SDPSolution(NamedTuple):
    """What a solver found.

    Attributes
    ----------
    value : float
        sum_k <A_k, Z_k>.
    weights : array, (n, K)
        Z_k 1: how much of each row lies in each group.
    blocks : array, (K, n, n) or (K, n, r)
        Z_k, or the factors V_k of the low-rank solver.
    factored : bool
        Whether `blocks` are factors.
    residuals : Residuals
    n_iter : int
    converged : bool
    state : tuple
        What a later call with slightly other A may start from.
    """

    value: float
    weights: Matrix
    blocks: Matrix
    factored: bool
    residuals: Residuals
    n_iter: int
    converged: bool
    state: tuple[Any, ...]

    def matrices(self) -> Matrix:
        """Z_k whole, (K, n, n)."""
        return self.blocks @ self.blocks.transpose(0, 2, 1) if self.factored else self.blocks


# The programme itself, by alternating directions


def project_affine(V: Matrix) -> Matrix:
    """Nearest symmetric blocks with tr Z_k = 1 and (sum_k Z_k) 1 = 1, in closed form, (K, n, n).

    From the stationarity of the Lagrangian, Z_k = V_k + (y 1' + 1 y') / 2 + t_k I; the constraints give y and t.
    """
    K, n, _ = V.shape
    missing = 1 - V.sum(axis=(0, 2))
    traces = np.trace(V, axis1=1, axis2=2)
    if n == 1:
        return np.full_like(V, 1 / K)
    s = (missing.sum() - K + traces.sum()) / (K * (n - 1))
    t = (1 - traces - s) / n
    y = (2 * (missing - t.sum()) / K - s) / n
    Z = V + (y[:, None] + y) / 2
    Z[:, np.arange(n), np.arange(n)] += t[:, None]
    return Z


def project_psd(V: Matrix) -> Matrix:
    """Nearest positive semidefinite blocks: the eigenvectors of positive eigenvalues alone, (K, n, n)."""
    P = np.empty_like(V)
    for k, block in enumerate((V + V.transpose(0, 2, 1)) / 2):
        values, vectors = eigh(block, subset_by_value=(0.0, np.inf), driver="evr", check_finite=False)
        P[k] = (vectors * values) @ vectors.T
    return P


def la_sdp(
    A: Matrix,
    *,
    tol: float = 1e-4,
    max_iter: int = 2000,
    state: tuple[Any, ...] | None = None,
) -> SDPSolution:
    """Solve the programme by alternating directions (ADMM), all blocks together.

    Z stays in the affine set, P in the positive semidefinite cone and N among the non-negative matrices; the scaled
    duals U and W drive the three together. The cost of an iteration is K eigendecompositions, O(K n^3).

    Parameters
    ----------
    A : array, (K, n, n)
        Symmetric.
    tol : float
        Stop when the primal residual ||(Z - P, Z - N)|| and the dual one, rho ||(change of P, change of N)||, are
        below ``tol * sqrt(K)``. A counts as divided by its largest entry: a value near 0 among large entries is
        exact to that entry, not to itself.
    max_iter : int
    state : tuple, optional
        The ``state`` of an earlier solution, to start from.

    Returns
    -------
    SDPSolution
        Its ``blocks`` satisfy the equations exactly, the two cones up to the residual.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([0.0, 1.0, 5.0, 6.0])
    >>> A = -np.subtract.outer(X, X)[None] ** 2 / 2
    >>> found = la_sdp(np.repeat(A, 2, axis=0))
    >>> round(found.value, 1)  # minus the k-means cost of {0, 1}, {5, 6}
    -1.0
    """
    K, n, _ = A.shape
    scale = float(np.abs(A).max()) or 1.0
    step = A / scale
    if state is None:
        P = np.repeat(np.eye(n)[None] / n, K, axis=0)
        N, U, W, rho = P.copy(), np.zeros_like(P), np.zeros_like(P), 1.0
    else:
        P, N, U, W, rho = state[0].copy(), state[1].copy(), state[2].copy(), state[3].copy(), state[4]
    enough, primal, dual, iteration = tol * np.sqrt(K), np.inf, np.inf, 0
    for iteration in range(1, max_iter + 1):
        Z = project_affine((P - U + N - W) / 2 + step / (2 * rho))
        P_new, N_new = project_psd(Z + U), np.maximum(Z + W, 0)
        U += Z - P_new
        W += Z - N_new
        if iteration % CHECK_EVERY == 0 or iteration == max_iter:
            primal = float(np.sqrt(((Z - P_new) ** 2).sum() + ((Z - N_new) ** 2).sum()))
            dual = float(rho * np.sqrt(((P_new - P) ** 2).sum() + ((N_new - N) ** 2).sum()))
        P, N = P_new, N_new
        if max(primal, dual) < enough:
            break
        if iteration % CHECK_EVERY == 0 and max(primal, dual) > 5 * min(primal, dual):
            factor = 1.5 if primal > dual else 1 / 1.5
            rho, U, W = rho * factor, U / factor, W / factor
    residuals = Residuals(primal, dual)
    value = float((A * Z).sum())
    return SDPSolution(
        value, Z.sum(axis=2).T, Z, False, residuals, iteration, max(residuals) < enough, (P, N, U, W, rho)
    )


# Low-rank factors


def la_sdp_low_rank(
    X: Matrix,
    precisions: Matrix,
    log_dets: Matrix,
    start: Matrix,
    *,
    tol: float = 1e-4,
    max_iter: int = 2000,
    state: tuple[Any, ...] | None = None,
) -> SDPSolution:
    """Solve the programme over Z_k = V_k V_k', V_k >= 0, by an augmented Lagrangian; A_k is never formed.

    With (A_k)_ij = -1/2 (x_i - x_j)' S_k^-1 (x_i - x_j) - log det S_k the products A_k V cost O(n p r). The
    result is feasible for the convex programme up to the residual, and its value therefore a lower bound; like any
    factorisation it may stop at a local optimum.

    Parameters
    ----------
    X : array, (n, p)
    precisions : array, (K, p, p)
        S_k^-1.
    log_dets : array, (K,)
        log det S_k.
    start : array, (K, n, r)
        Factors to start from, non-negative.
    tol : float
        Stop when the root mean square of the violated equations is below it.
    max_iter : int
        Bound on the inner quasi-Newton iterations, in all.
    state : tuple, optional
        The ``state`` of an earlier solution, to start from in place of `start`.
    """
    K, n, r = start.shape
    centred = X - X.mean(axis=0)
    mapped = np.einsum("np,kpq->knq", centred, precisions)
    squares = np.einsum("knp,np->kn", mapped, centred)
    scale = float(np.abs(squares + log_dets[:, None]).mean()) or 1.0
    V = np.maximum(start, 0) if state is None else state[0]
    rows, traces = (np.zeros(n), np.zeros(K)) if state is None else state[1:3]

    def times(V: Matrix, sums: Matrix) -> Matrix:
        """A_k V_k of every block; `sums` are 1' V_k."""
        inner = mapped @ (centred.T @ V)
        inner -= (squares[:, :, None] * sums[:, None] + np.einsum("kn,knr->kr", squares, V)[:, None]) / 2
        return np.asarray(inner - log_dets[:, None, None] * sums[:, None])

    def lagrangian(flat: Matrix, penalty: float) -> tuple[float, Matrix]:
        V = flat.reshape(K, n, r)
        sums = V.sum(axis=1)
        product = times(V, sums)
        missing = 1 - np.einsum("knr,kr->n", V, sums)
        excess = 1 - (V**2).sum(axis=(1, 2))
        y, z = rows + penalty * missing, traces + penalty * n * excess
        value = -(V * product).sum() / scale + missing @ (rows + penalty / 2 * missing)
        value += excess @ (traces + penalty * n / 2 * excess)
        slope = -2 * product / scale - y[:, None] * sums[:, None] - np.einsum("n,knr->kr", y, V)[:, None]
        return float(value), np.asarray(slope - 2 * z[:, None, None] * V).ravel()

    penalty, before, used, violation = 1.0, np.inf, 0, np.inf
    while used < max_iter:
        inner = minimize(
            lagrangian,
            V.ravel(),
            args=(penalty,),
            jac=True,
            method="L-BFGS-B",
            bounds=Bounds(0, np.inf),
            options={"maxiter": min(200, max_iter - used), "maxcor": 20, "ftol": 1e-9, "gtol": 1e-6},
        )
        V, used = inner.x.reshape(K, n, r), used + max(inner.nit, 1)
        missing = 1 - np.einsum("knr,kr->n", V, V.sum(axis=1))
        excess = 1 - (V**2).sum(axis=(1, 2))
        violation = float(np.sqrt((missing**2).mean() + (excess**2).sum()))
        rows, traces = rows + penalty * missing, traces + penalty * n * excess
        if violation < tol:
            break
        if violation > before / 4:
            penalty = min(penalty * 2, 1e4)
        before = violation
    sums = V.sum(axis=1)
    value = float((V * times(V, sums)).sum())
    weights = np.einsum("knr,kr->nk", V, sums)
    residuals = Residuals(violation, float(np.abs(inner.jac[V.ravel() > 0]).max(initial=0)))
    return SDPSolution(value, weights, V, True, residuals, used, violation < tol, (V, rows, traces))


# The reference


def la_sdp_reference(A: Matrix) -> SDPSolution:
    """Solve the programme with cvxpy, at most 60 rows.

    Raises
    ------
    ImportError
        If cvxpy is not installed.
    ValueError
        For more than 60 rows.
    """
    try:
        cp: Any = importlib.import_module("cvxpy")
    except ImportError:
        raise ImportError(
            "solver='cvxpy' needs the package cvxpy, which is not installed. Run `pip install cvxpy`, "
            "or use solver='admm'."
        ) from None
    K, n, _ = A.shape
    if n > REFERENCE_ROWS:
        raise ValueError(f"solver='cvxpy' is a reference for at most {REFERENCE_ROWS} rows, got {n}. Use 'admm'.")
    blocks = [cp.Variable((n, n), PSD=True) for _ in range(K)]
    constraints = [sum(blocks) @ np.ones(n) == 1]
    constraints += [condition for Z in blocks for condition in (Z >= 0, cp.trace(Z) == 1)]
    problem = cp.Problem(cp.Maximize(sum(cp.sum(cp.multiply(A[k], Z)) for k, Z in enumerate(blocks))), constraints)
    problem.solve(solver=cp.CLARABEL)
    Z = np.stack([block.value for block in blocks])
    return SDPSolution(float(problem.value), Z.sum(axis=2).T, Z, False, Residuals(0.0, 0.0), 0, True, ())

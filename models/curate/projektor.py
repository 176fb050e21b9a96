"""From which source, and in what proportions: scores of mixtures predicted from pilot samples by optimal transport.

F. Kang, H. A. Just, A. K. Sahu and R. Jia, "Performance Scaling via Optimal Transport: Enabling Data Selection from
Partially Revealed Sources", NeurIPS 2023, arXiv:2307.02460.

Trainings on small mixtures of the pilots tell how the score depends on the shares and on the distance of the mixture to
the validation set. Two such regressions, at two sizes, are continued on a line in the logarithm of the size. The
equations are in :mod:`models.curate.mixtures`, the distance in :mod:`models.labelled_transport`.
"""

from __future__ import annotations

import re
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator
from sklearn.metrics import get_scorer
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from models.base import check_embeddings, check_labels, isolated_seed
from models.curate.mixtures import (
    FORMS,
    drawn_counts,
    fitted_law,
    mixture_gradient,
    on_simplex,
    project_log_linear,
    quadratic_surface,
    region_error,
    simplex_ascent,
    simplex_grid,
    simplex_projection,
    unknowns,
)
from models.labelled_transport import label_distances, labelled_ot, solved
from models.registry import register

__all__ = ["Projektor", "labelled_ot", "mixture_gradient", "project_log_linear", "simplex_ascent"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STARTS = 3
"""Of the ascent: the uniform mixture and the best of the table."""
MOST_GRID_SOURCES = 4
DIRICHLET_POINTS = 50
FAR = 4.0
"""Errors multiplied by more than this are worth a warning."""


class Step(NamedTuple):
    """One mixture that an ascent came by, with its predicted score."""

    start: int
    step: int
    p: Floats
    score: float


def logistic_regression(X: Any, y: Ints, seed: int) -> Any:
    """The default training: multinomial logistic regression on standardised rows."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    learner = LogisticRegression(max_iter=2000) if len(np.unique(y)) > 1 else DummyClassifier()
    return make_pipeline(FunctionTransformer(flattened), StandardScaler(), learner).fit(X, y)


def flattened(X: Any) -> Floats:
    """Rows as one vector each."""
    rows = X.detach().cpu().numpy() if isinstance(X, Tensor) else np.asarray(X)
    return rows.reshape(len(rows), -1).astype(np.float64) if rows.ndim > 2 else rows


def digest(points: Floats) -> int:
    """Of the content: sources are drawn from and gone through by it, so that their order changes nothing."""
    return zlib.crc32(np.ascontiguousarray(points).tobytes())


@dataclass(frozen=True)
class Side:
    """The rows of a source, or of the validation set, as the transport sees them.

    Attributes
    ----------
    points : array, (n, d)
        Embedded rows.
    codes : int array, (n,)
        Their classes, as rows or columns of the table of label distances.
    orders : int array, (reps, n)
        An order of the rows for each repetition: a mixture takes the first ones.
    """

    points: Floats
    codes: Ints
    orders: Ints


@register(
    "projektor",
    stage="curate",
    summary="Predicts from pilot samples what any mixture of sources would score, and finds the best proportions.",
    paper="Performance Scaling via Optimal Transport: Enabling Data Selection from Partially Revealed Sources",
    year=2023,
    link="https://arxiv.org/abs/2307.02460",
    licence="MIT",
    accepts=("image", "table", "text", "embedding"),
    skips_checks={"survives_packing": "it holds pilot rows and a training routine; its table of runs fits again"},
    taxonomy={
        "goal": "distribution matching",
        "utility": "score predicted from the optimal-transport distance to validation data",
        "unit": "data set",
        "mechanism": "gradient ascent on mixture proportions",
        "stage_of_training": "supervised training",
    },
)
class Projektor(BaseEstimator):
    """Scores of models trained on N rows mixed in any proportions, from small trainings on pilots of the sources.

    The line in log N knows no ceiling: for learners that saturate, scores far above the pilots are overestimated.

    Parameters
    ----------
    trainer : callable, optional
        ``trainer(X, y, seed)`` returns a fitted estimator; None is logistic regression.
    scorer : str or callable, default="accuracy"
        A scorer's name in scikit-learn, or ``scorer(estimator, X, y)``. Predicted accuracies are clipped to [0, 1].
    n0, n1 : int, default=1000 and 1500
        Rows of the pilot mixtures.
    compositions : "simplex_grid", int or array (k, m), default="simplex_grid"
        Mixtures to train on: all multiples of `step` (50 drawn uniformly for more than four sources), as many drawn
        uniformly, or these.
    step : float, default=0.1
    reps : int, default=3
        Trainings of each mixture; the median score counts.
    form : {"auto", "ot", "cs", "pq"}, default="auto"
        How scores depend on distance and shares; "auto" takes the form of least error on mixtures unlike those
        it was fitted on, of those that have at most a third as many coefficients as there are mixtures.
    embed : callable, optional
        Rows -> (n, d); by default the rows themselves.
    label_cost : float, default=1.0
        Weight of the distance between labels.
    label_distance : {"gaussian", "means", "exact"}, default="gaussian"
        As in :func:`label_distances`; classes are looked at over all pilots together.
    ot_solver : {"sinkhorn", "exact"}, default="sinkhorn"
        Exact is as fast up to some 1500 rows.
    reg : float, default=0.01
        Strength of the entropy, as a share of the mean cost.
    debiased : bool, default=True
    alpha : float or "cv", default="cv"
        Of the ridge; "cv" takes the best by leaving one mixture out, 0 is plain least squares.
    lr, decay, iters : float, float, int, default=5e-4, 0.9, 100
        Of the ascent. Steps are those of accuracies in percent, as published.
    gradient : {"full", "published"}, default="full"
        The published expression is not the derivative of the fitted score; it is here to be compared with.
    greater_is_better : bool, default=True
    replace : bool, default=False
        Whether a pilot smaller than what is drawn from it is gone through again.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    coef_ : dict of int to ScoreLaw
        The regression at n0 and at n1.
    form_ : str
    table_ : DataFrame
        A row a mixture and size: p_1 ... p_m, n, ot, score.
    cv_error_ : dict of str to float
        Mean error of each form tried on mixtures unlike those it was fitted on.
    residuals_ : array, (k, 2)
        What leaving each mixture out gives, at n0 and n1.
    timings_ : dict of str to float
        Seconds of training and of transport.

    References
    ----------
    Kang et al. (2023), sections 3 and 4. The ridge, the choice of the form, the intervals and the gradient along the
    simplex are ours.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> low, high = y < 5, y >= 5
    >>> pilots = [(X[:900][low[:900]], y[:900][low[:900]]), (X[:900][high[:900]], y[:900][high[:900]])]
    >>> planner = Projektor(n0=60, n1=120, step=0.2, reps=1, ot_solver="exact", random_state=0)
    >>> planner = planner.fit(pilots, X[900:1200], y[900:1200])
    >>> bool(planner.predict([[0.5, 0.5]], 120)[0] > planner.predict([[1.0, 0.0]], 120)[0] + 0.2)
    True
    >>> bool(0.2 < planner.select(120)[0][0] < 0.8)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "trainer": [callable, None],
        "scorer": [str, callable],
        "n0": [Interval(Integral, 2, None, closed="left")],
        "n1": [Interval(Integral, 2, None, closed="left")],
        "compositions": [StrOptions({"simplex_grid"}), Interval(Integral, 4, None, closed="left"), "array-like"],
        "step": [Interval(Real, 0, 0.5, closed="right")],
        "reps": [Interval(Integral, 1, None, closed="left")],
        "form": [StrOptions({"auto", *FORMS})],
        "embed": [callable, None],
        "label_cost": [Interval(Real, 0, None, closed="left")],
        "label_distance": [StrOptions({"gaussian", "means", "exact"})],
        "ot_solver": [StrOptions({"sinkhorn", "exact"})],
        "reg": [Interval(Real, 0, None, closed="neither")],
        "debiased": ["boolean"],
        "alpha": [StrOptions({"cv"}), Interval(Real, 0, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "decay": [Interval(Real, 0, 1, closed="right")],
        "iters": [Interval(Integral, 1, None, closed="left")],
        "gradient": [StrOptions({"full", "published"})],
        "greater_is_better": ["boolean"],
        "replace": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        trainer: Callable[[Any, Ints, int], Any] | None = None,
        scorer: str | Callable[[Any, Any, Any], float] = "accuracy",
        n0: int = 1000,
        n1: int = 1500,
        compositions: str | int | ArrayLike = "simplex_grid",
        step: float = 0.1,
        reps: int = 3,
        form: str = "auto",
        embed: Callable[[Any], ArrayLike] | None = None,
        label_cost: float = 1.0,
        label_distance: str = "gaussian",
        ot_solver: str = "sinkhorn",
        reg: float = 1e-2,
        debiased: bool = True,
        alpha: float | str = "cv",
        lr: float = 5e-4,
        decay: float = 0.9,
        iters: int = 100,
        gradient: str = "full",
        greater_is_better: bool = True,
        replace: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.trainer = trainer
        self.scorer = scorer
        self.n0 = n0
        self.n1 = n1
        self.compositions = compositions
        self.step = step
        self.reps = reps
        self.form = form
        self.embed = embed
        self.label_cost = label_cost
        self.label_distance = label_distance
        self.ot_solver = ot_solver
        self.reg = reg
        self.debiased = debiased
        self.alpha = alpha
        self.lr = lr
        self.decay = decay
        self.iters = iters
        self.gradient = gradient
        self.greater_is_better = greater_is_better
        self.replace = replace
        self.random_state = random_state

    # ---- fitting

    def fit(self, sources: Sequence[tuple[Any, ArrayLike]], X_val: Any, y_val: ArrayLike) -> Projektor:
        """Train on mixtures of the pilots, measure their distances to the validation set, fit both regressions.

        Parameters
        ----------
        sources : sequence of (X, y)
            The pilot of each source, at least two.
        X_val, y_val : array
            What models are scored on.

        Raises
        ------
        ValueError
            For fewer than two sources, an empty one, NaN, one class, n1 not above n0, mixtures that are not on the
            simplex, a class that only the validation set has, or a pilot smaller than what is drawn from it.
        """
        self._validate_params()
        if self.n1 <= self.n0:
            raise ValueError(f"n1 must be above n0, got n0={self.n0} and n1={self.n1}.")
        with isolated_seed(self.random_state) as seed:
            rows, labels = self._read(sources, X_val, y_val, seed)
            P = self._mixtures(len(sources), seed)
            self._check_sizes(P)
            jobs = [(p, n, rep) for n in (self.n0, self.n1) for p in P for rep in range(self.reps)]
            found = Parallel()(delayed(self._pilot_run)(rows, labels, *job, seed) for job in jobs)
        runs = pd.DataFrame(found, columns=["ot", "score", "training", "transport"])
        self.timings_ = {name: float(runs[name].sum()) for name in ("training", "transport")}
        runs["job"] = np.arange(len(jobs)) // self.reps
        merged = runs.groupby("job").agg(ot=("ot", "mean"), score=("score", "median"))
        table = pd.DataFrame(np.vstack([P, P]), columns=[f"p_{i + 1}" for i in range(P.shape[1])])
        table["n"] = np.repeat([self.n0, self.n1], len(P))
        return self._regress(table.assign(ot=merged["ot"].to_numpy(), score=merged["score"].to_numpy()))

    def fit_from_log(self, df: pd.DataFrame) -> Projektor:
        """Fit the regressions to runs made before.

        Distances of other mixtures are then interpolated, by a quadratic in the shares.

        Parameters
        ----------
        df : DataFrame
            Columns p_1 ... p_m, n (two values), ot, score. Runs of one mixture and size are merged: the median score,
            the mean distance.

        Raises
        ------
        ValueError
            For missing columns, other than two sizes, sizes of different mixtures, or numbers that are not finite.
        """
        self._validate_params()
        frame = pd.DataFrame(df)
        numbers = sorted(int(name[2:]) for name in map(str, frame.columns) if re.fullmatch(r"p_\d+", name))
        shares = [f"p_{number}" for number in numbers]
        missing = [name for name in ("n", "ot", "score") if name not in frame.columns]
        if missing or len(shares) < 2 or numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(
                f"The log must have the columns p_1, p_2, ..., n, ot and score; got {list(frame.columns)}."
            )
        if not np.isfinite(frame[[*shares, "n", "ot", "score"]].to_numpy(dtype=np.float64)).all():
            raise ValueError("The log contains NaN or infinite numbers. Leave out runs that failed.")
        sizes = sorted(frame["n"].unique())
        if len(sizes) != 2:
            raise ValueError(f"The log must hold runs of exactly two sizes n, got {sizes}.")
        on_simplex(frame[shares].to_numpy(dtype=np.float64), len(shares))
        merged = frame.groupby(["n", *shares], as_index=False).agg(ot=("ot", "mean"), score=("score", "median"))
        halves = [part[shares].to_numpy() for _, part in merged.groupby("n")]
        if halves[0].shape != halves[1].shape or not np.allclose(halves[0], halves[1]):
            raise ValueError("The log must hold the same mixtures at both sizes n. Leave out those of one size only.")
        self.sources_: list[Side] = []
        return self._regress(merged[[*shares, "n", "ot", "score"]])

    def _read(self, sources: Sequence[tuple[Any, ArrayLike]], X_val: Any, y_val: ArrayLike, seed: int) -> Any:
        """Check everything, embed it once, and give each source its orders."""
        if len(sources) < 2:
            raise ValueError(f"sources must hold at least two pilots to mix, got {len(sources)}.")
        embed = self.embed or flattened
        points = [check_embeddings(embed(X), name=f"sources[{i}]", minimum=1) for i, (X, _) in enumerate(sources)]
        points_val = check_embeddings(embed(X_val), name="X_val", minimum=2)
        if len(widths := {rows.shape[1] for rows in (*points, points_val)}) > 1:
            raise ValueError(f"sources and X_val must have rows of one length, got {sorted(widths)}.")
        y = [
            check_labels(labels, len(P), allow_unlabelled=False, minimum_classes=1, name=f"labels of sources[{i}]")
            for i, ((_, labels), P) in enumerate(zip(sources, points, strict=True))
        ]
        labels_val = check_labels(y_val, len(points_val), allow_unlabelled=False, name="y_val")
        known, codes = np.unique(np.concatenate(y), return_inverse=True)
        absent = np.setdiff1d(labels_val, known)
        if len(absent):
            raise ValueError(
                f"y_val has classes that no source has: {absent.tolist()}. Leave them out, or add a source of them."
            )
        self.classes_ = known
        all_points = np.concatenate(points)
        self.label_table_ = label_distances(all_points, codes, points_val, labels_val, self.label_distance)
        self.own_label_tables_ = tuple(
            label_distances(*each, *each, self.label_distance)
            if self.ot_solver == "sinkhorn" and self.debiased
            else None
            for each in ((all_points, codes), (points_val, labels_val))
        )
        starts = np.cumsum([0, *(len(part) for part in points)])
        self.sources_ = [
            Side(part, codes[start : start + len(part)], self._orders(part, seed))
            for part, start in zip(points, starts, strict=False)
        ]
        self.order_ = np.argsort([digest(part) for part in points], kind="stable")
        codes_val = np.unique(labels_val, return_inverse=True)[1]
        self.validation_ = Side(points_val, codes_val, self._orders(points_val, seed))
        return [*(X for X, _ in sources), X_val], [*y, labels_val]

    def _orders(self, points: Floats, seed: int) -> Ints:
        own = digest(points)
        return np.array([np.random.default_rng([seed, rep, own]).permutation(len(points)) for rep in range(self.reps)])

    def _mixtures(self, m: int, seed: int) -> Floats:
        if isinstance(self.compositions, str):
            if m <= MOST_GRID_SOURCES:
                return simplex_grid(m, self.step)
            return np.random.default_rng(seed).dirichlet(np.ones(m), DIRICHLET_POINTS)
        if isinstance(self.compositions, Integral):
            return np.random.default_rng(seed).dirichlet(np.ones(m), int(self.compositions))
        return on_simplex(self.compositions, m, name="compositions")

    def _check_sizes(self, P: Floats) -> None:
        most = np.max([drawn_counts(p, self.n1) for p in P], axis=0)
        for i, (side, wanted) in enumerate(zip(self.sources_, most, strict=True)):
            if wanted > len(side.points) and not self.replace:
                raise ValueError(
                    f"sources[{i}] has {len(side.points)} rows, and up to {wanted} are drawn from it. Lower n1, leave "
                    "out mixtures with that much of it, or go through it again with replace=True."
                )

    def _pilot_run(self, rows: list[Any], labels: list[Ints], p: Floats, n: int, rep: int, seed: int) -> Any:
        """One training and one transport on the same rows: distance, score, seconds of each."""
        X: list[Any] = []
        y: list[Ints] = []
        for i, count in zip(self.order_, drawn_counts(p[self.order_], n), strict=True):
            if count:
                taken, source = np.resize(self.sources_[i].orders[rep], count), rows[i]
                X.append(source[taken] if isinstance(source, Tensor) else np.asarray(source)[taken])
                y.append(labels[i][taken])
        began = time.perf_counter()
        joined = torch.cat(X) if isinstance(X[0], Tensor) else np.concatenate(X)
        model = (self.trainer or logistic_regression)(joined, np.concatenate(y), seed + rep)
        trained = time.perf_counter()
        score = get_scorer(self.scorer) if isinstance(self.scorer, str) else self.scorer
        value = float(score(model, rows[-1], labels[-1]))
        if not np.isfinite(value):
            raise ValueError(
                f"The scorer gave {value} for the mixture {p.tolist()} of {n} rows; scores must be finite."
            )
        scored = time.perf_counter()
        ot = self._transport(p, n, rep, slopes=False)[0]
        return ot, value, trained - began, time.perf_counter() - scored

    def _regress(self, table: pd.DataFrame) -> Projektor:
        """Step 3, at both sizes, with one form."""
        self.table_ = table.reset_index(drop=True)
        self.sizes_ = tuple(int(n) for n in sorted(table["n"].unique()))
        m = sum(str(name).startswith("p_") for name in table.columns)
        parts = []
        for n in self.sizes_:
            part = table[table["n"] == n]
            parts.append((part.iloc[:, :m].to_numpy(dtype=np.float64), part["ot"].to_numpy(), part["score"].to_numpy()))
        k = len(np.unique(parts[0][0].round(9), axis=0))
        if k < 4:
            raise ValueError(f"At least 4 different mixtures are needed to fit the regressions, got {k}. Lower step.")
        tried = [f for f in FORMS if f == "ot" or 3 * unknowns(f, m) <= k] if self.form == "auto" else [self.form]
        self.cv_error_ = {f: float(np.mean([region_error(f, *part, self.alpha) for part in parts])) for f in tried}
        self.form_ = min(self.cv_error_, key=self.cv_error_.__getitem__)
        laws = [fitted_law(self.form_, *part, self.alpha) for part in parts]
        self.coef_ = {n: law for n, (law, _) in zip(self.sizes_, laws, strict=True)}
        self.residuals_ = np.column_stack([residuals for _, residuals in laws])
        self.n_sources_ = m
        if not self.sources_:
            self.ot_surfaces_ = [quadratic_surface(P, ot) for P, ot, _ in parts]
        return self

    # ---- distances

    def _transport(self, p: Floats, n: int, rep: int, slopes: bool) -> tuple[float, Floats]:
        """Distance of the mixture's draw, whose rows weigh exactly `p`; by choice the mean potential of each source."""
        order, p = self.order_, p[self.order_]
        counts = np.where(p > 0, np.maximum(drawn_counts(p, n), 1), n if slopes else 0)
        sides = [self.sources_[i] for i in order]
        drawn = [(side, side.orders[rep][:count]) for side, count in zip(sides, counts, strict=True) if count]
        sizes = np.array([len(rows) for _, rows in drawn])
        points = np.concatenate([side.points[rows] for side, rows in drawn])
        codes = np.concatenate([side.codes[rows] for side, rows in drawn])
        there = self.validation_.orders[rep][:n]
        target, target_codes = self.validation_.points[there], self.validation_.codes[there]

        def cost(one: Floats, two: Floats, told: Floats) -> Floats:
            return cdist(one, two, "sqeuclidean") + self.label_cost * told

        own, own_val = self.own_label_tables_
        within = None
        if own is not None and own_val is not None:
            within = (
                cost(points, points, own[codes][:, codes]),
                cost(target, target, own_val[target_codes][:, target_codes]),
            )
        across = cost(points, target, self.label_table_[codes][:, target_codes])
        value, potential = solved(across, np.repeat(p[counts > 0] / sizes, sizes), within, self.ot_solver, self.reg)
        means = np.zeros(len(p))
        means[order[counts > 0]] = np.add.reduceat(potential, np.cumsum([0, *sizes[:-1]])) / sizes
        return value, means

    def _distance(self, p: Floats, n: int, slopes: bool = True) -> tuple[float, Floats]:
        """Distance of a mixture at one of the sizes, and by choice its derivative along the simplex."""
        if not self.sources_:
            level, linear, square = self.ot_surfaces_[self.sizes_.index(n)]
            return float(level + linear @ p + p @ square @ p), mixture_gradient(linear + 2 * square @ p, p)
        found = [self._transport(p, n, rep, slopes) for rep in range(self.reps)]
        value = float(np.mean([value for value, _ in found]))
        return value, mixture_gradient(np.mean([means for _, means in found], axis=0), p) if slopes else np.zeros(0)

    def ot_distance(self, p: ArrayLike, n: int) -> float:
        """Distance of a mixture's draw of `n` rows to the validation set, the mean over the repetitions.

        Parameters
        ----------
        p : array, (m,)
        n : int
            One of the two sizes fitted.
        """
        check_is_fitted(self, "coef_")
        if n not in self.sizes_:
            raise ValueError(f"n must be one of the sizes fitted, {self.sizes_}, got {n}.")
        return self._distance(on_simplex(np.array([p], dtype=np.float64), self.n_sources_)[0], n, slopes=False)[0]

    # ---- answers

    def predict(self, P: ArrayLike, N: float) -> Floats:
        """Predicted scores of models trained on `N` rows mixed as the rows of `P` say.

        Parameters
        ----------
        P : array, (k, m)
        N : int
            Warned of below n1 (which is no extrapolation) and so far above that errors grow more than fourfold.

        Raises
        ------
        ValueError
            For rows not on the simplex or N that is not positive.
        """
        check_is_fitted(self, "coef_")
        mixtures = on_simplex(P, self.n_sources_)
        self._check_reach(N)
        return self._clipped(
            self._line([law.score(mixtures, self._distances(mixtures, n)) for n, law in self.coef_.items()], N)
        )

    def score_interval(self, P: ArrayLike, N: float, level: float = 0.9) -> tuple[Floats, Floats]:
        """Where scores lie with probability `level`: errors of leaving a mixture out, projected as scores are.

        It knows the noise of runs and the misfit of the regressions. That the line in log N may bend it can not know.

        Returns
        -------
        low, high : array, (k,)
        """
        centre = self.predict(P, N)
        off = np.abs(self._line(list(self.residuals_.T), N))
        half = float(np.quantile(off, level))
        return self._clipped(centre - half), self._clipped(centre + half)

    def extrapolation_factor(self, N: float) -> float:
        """About how many times errors at n1 grow at `N`: log(N / n0) / log(n1 / n0)."""
        check_is_fitted(self, "coef_")
        n0, n1 = self.sizes_
        return float(np.log(N / n0) / np.log(n1 / n0))

    def select(
        self,
        N: float,
        budget: float | None = None,
        min_share: float = 0.0,
        costs: ArrayLike | None = None,
    ) -> tuple[Floats, list[Step]]:
        """The mixture of the best predicted score for `N` rows (step 6).

        Parameters
        ----------
        N : int
        budget : float, optional
            What a row may cost on average; needs `costs`.
        min_share : float, default=0
            What every source gets at least.
        costs : array, (m,), optional
            Of a row of each source.

        Returns
        -------
        p : array, (m,)
        history : list of Step
            Every mixture looked at, by start and step.

        Raises
        ------
        ValueError
            If no mixture satisfies the limits, or costs do not fit the sources.
        """
        check_is_fitted(self, "coef_")
        self._check_reach(N)
        if (budget is None) != (costs is None) or (costs is not None and np.shape(costs) != (self.n_sources_,)):
            raise ValueError(f"budget and costs come together, with a cost for each of {self.n_sources_} sources.")
        sign = 1.0 if self.greater_is_better else -1.0

        def project(v: Floats) -> Floats:
            return simplex_projection(v, min_share, costs, budget)

        def objective(p: Floats) -> tuple[float, Floats]:
            score, slope = self._score_and_gradient(p, N)
            return sign * score, sign * (100.0 if self.scorer == "accuracy" else 1.0) * slope

        history = []
        for number, start in enumerate(self._starts(N, sign)):
            path = simplex_ascent(objective, start, lr=self.lr, decay=self.decay, iters=self.iters, project=project)
            history += [Step(number, t, p, sign * value) for t, (p, value) in enumerate(path)]
        best = max(history, key=lambda step: sign * step.score)
        return best.p, history

    def _starts(self, N: float, sign: float) -> list[Floats]:
        """The uniform mixture and the best of the table, by their predictions."""
        parts = [self.table_[self.table_["n"] == n] for n in self.sizes_]
        P = parts[0].iloc[:, : self.n_sources_].to_numpy(dtype=np.float64)
        laws = zip(self.coef_.values(), parts, strict=True)
        predicted = self._line([law.score(P, part["ot"].to_numpy()) for law, part in laws], N)
        order = np.argsort(-sign * predicted, kind="stable")
        return [np.full(self.n_sources_, 1 / self.n_sources_), *P[order[: STARTS - 1]]]

    def _score_and_gradient(self, p: Floats, N: float) -> tuple[float, Floats]:
        scores, slopes = [], []
        for n, law in self.coef_.items():
            ot, slope = self._distance(p, n)
            scores.append(float(law.score(p[None], np.array([ot]))[0]))
            slopes.append(law.gradient(p, ot, slope, self.gradient == "published"))
        return float(self._line(scores, N)), self._line(slopes, N)

    def _distances(self, P: Floats, n: int) -> Floats:
        return np.array([self._distance(p, n, slopes=False)[0] for p in P])

    def _line(self, at_sizes: Sequence[Any], N: float) -> Any:
        return project_log_linear(at_sizes[0], at_sizes[1], self.sizes_[0], self.sizes_[1], N)

    def _clipped(self, scores: Floats) -> Floats:
        return np.clip(scores, 0.0, 1.0) if self.scorer == "accuracy" else scores

    def _check_reach(self, N: float) -> None:
        if not 0 < N < np.inf:
            raise ValueError(f"N must be a positive number of rows, got {N}.")
        if N < self.sizes_[1] and N != self.sizes_[0]:
            warnings.warn(
                f"N={N} is below n1={self.sizes_[1]}: train on it, there is no need to predict.", stacklevel=3
            )
        factor = self.extrapolation_factor(N)
        if factor > FAR:
            warnings.warn(
                f"N={N} is so far above the pilots that errors grow about {factor:.1f} times. Raise n1, or take the "
                "order of mixtures and not their scores.",
                stacklevel=3,
            )

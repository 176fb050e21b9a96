"""How much of a ranked pool to train on: scaling laws in which repeated data wears out.

S. Goyal, P. Maini, Z. Lipton, A. Raghunathan and Z. Kolter, "Scaling Laws for Data Filtering -- Data Curation cannot be
Compute Agnostic", CVPR 2024, arXiv:2404.07177.

Small runs on one quality bucket at a time tell the utility of its samples, and how fast it fades when they are seen
again. From that the error of every union of buckets follows at every budget, without training on a union.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.stats import norm
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from models.base import seed_from
from models.registry import register

Floats = NDArray[np.float64]

SHARED_A = (0.01, 0.015, 0.018, 0.02, 0.022, 0.025, 0.03)
SHARED_D = np.linspace(0.02, 0.15, 10)
MOST_SUBSETS_OF = 15
COLUMNS = ("pool", "samples_seen", "pool_size", "error")


class FilteringLawWarning(UserWarning):
    """The runs say something that the law can not, or lie at the edge of what was tried."""


# ---- the law ------------------------------------------------------------------------------------------------


def repeated_curve(samples: float, size: float, a: float, d: float, utilities: Any) -> float:
    """Step 3: error after `samples` draws from `size` samples, in passes of unequal utility.

    Parameters
    ----------
    samples : float
        Samples seen, n.
    size : float
        Samples there are, m.
    a, d : float
        Scale inside the power, and the error that no data removes.
    utilities : callable
        Exponent of pass e (from 0); negative.
    """
    log_error = utilities(0) * np.log(a * min(size, samples))
    for e in range(1, int(np.ceil(samples / size - 1e-12))):
        log_error += utilities(e) * np.log(min(size * (e + 1), samples) / (size * e))
    return float(d + np.exp(log_error))


def pool_curve(samples: ArrayLike, size: float, a: float, b: float, tau: float, d: float) -> Floats:
    """Error of training on one pool (step 3): utility ``b * 2^(-e / tau)`` in pass e.

    Examples
    --------
    >>> float(pool_curve(12.8e6, 12.8e6, 0.022 / 1e5, -0.13106060606, 3.0, 0.1).round(6))
    0.973114
    """
    return np.vectorize(lambda n: repeated_curve(n, size, a, d, lambda e: b * 2.0 ** (-e / tau)))(
        np.asarray(samples, dtype=np.float64)
    )


def mixture_curve(
    samples: ArrayLike, sizes: Sequence[float], a: float, b: Sequence[float], tau: Sequence[float], d: float
) -> Floats:
    """Error of training on the union of pools, sampled uniformly (step 4).

    The union's pass is longer, so each pool's half-life counts as many times more of its own: ``tau_i * (sum m) / m_i``
    passes of the union; the utility is the mean over samples.
    """
    size = np.asarray(sizes, dtype=np.float64)
    share, total = size / size.sum(), float(size.sum())
    slower = np.asarray(tau, dtype=np.float64) / share
    own = np.asarray(b, dtype=np.float64)

    def utility(e: int) -> float:
        return float((share * own * 2.0 ** (-e / slower)).sum())

    return np.vectorize(lambda n: repeated_curve(n, total, a, d, utility))(np.asarray(samples, dtype=np.float64))


def passes(samples: Floats, size: float, deltas: Floats) -> Floats:
    """``log(a m)`` aside, what multiplies b in the logarithm of item 3, for each fading `delta`: (taus, runs).

    The logarithm of ``y - d`` is ``b * (log(a * min(m, n)) + sum_e delta^e log r_e)``: linear in b.
    """
    found = np.zeros((len(deltas), len(samples)))
    for run, n in enumerate(samples):
        for e in range(1, int(np.ceil(n / size - 1e-12))):
            found[:, run] += deltas**e * np.log(min(size * (e + 1), n) / (size * e))
    return found


def effective_samples(samples: float, size: float, tau: float) -> float:
    """Samples seen, each pass counting ``2^(-e / tau)`` of its own."""
    whole = int(samples // size)
    found = sum(size * 2.0 ** (-e / tau) for e in range(whole))
    return float(found + (samples - whole * size) * 2.0 ** (-whole / tau))


class _Law(BaseEstimator):
    """What both laws share: reading runs, a grid over (a, d), answers about unions."""

    normalizer: float
    weighting: str

    def _read(self, runs: Any) -> pd.DataFrame:
        frame = pd.DataFrame(runs)
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            raise ValueError(f"runs must have the columns {', '.join(COLUMNS)}; {', '.join(missing)} is missing.")
        if frame.empty:
            raise ValueError("runs holds no run. Train small models on each pool at three budgets or more.")
        numbers = frame[["samples_seen", "pool_size", "error"]].to_numpy(dtype=np.float64)
        if not np.isfinite(numbers).all():
            raise ValueError("runs contains NaN or infinite numbers. Leave out runs that failed.")
        if (numbers[:, :2] <= 0).any():
            raise ValueError("samples_seen and pool_size must be positive in every run.")
        if (numbers[:, 2] <= 0).any():
            raise ValueError("error must be positive in every run: 1 - metric, as a fraction and not in percent.")
        sizes = frame.groupby("pool", sort=False)["pool_size"].nunique()
        if (sizes > 1).any():
            raise ValueError(
                f"Pools {sizes.index[sizes > 1].tolist()} come with more than one pool_size. Give runs on pools of "
                "different sizes different names; `resized` then predicts for other sizes."
            )
        mean = frame.groupby(["pool", "samples_seen"], sort=False, as_index=False).agg(
            pool_size=("pool_size", "first"), error=("error", "mean")
        )
        few = mean.groupby("pool", sort=False).size()
        if (few < 3).any():
            raise ValueError(
                f"Pools {few.index[few < 3].tolist()} have fewer than 3 budgets; a pool's curve needs at least 3, and "
                "one beyond two passes to tell how fast it wears out."
            )
        return mean

    def _pools(self, pools: Sequence[Hashable]) -> pd.DataFrame:
        check_is_fitted(self, "params_")
        chosen = list(dict.fromkeys(pools))
        unknown = [pool for pool in chosen if pool not in self.params_.index]
        if unknown or not chosen:
            raise ValueError(f"Pools {unknown} were not in fit; there are {self.params_.index.tolist()}.")
        found = self.params_.loc[chosen]
        if self.weighting == "uniform" and found["size"].nunique() > 1:
            raise ValueError(
                f"The pools are of unequal size ({found['size'].tolist()}), and the law for unions is published for "
                "equal ones. Set weighting='size' to weigh each by its samples."
            )
        return found

    def predict(self, pool: Hashable, samples_seen: ArrayLike) -> Floats:
        """Error of training on one pool, at one or several budgets in samples seen."""
        return self.predict_mixture([pool], samples_seen)

    def predict_mixture(self, pools: Sequence[Hashable], samples_seen: ArrayLike) -> Floats:
        """Error of training on the union of `pools`."""
        raise NotImplementedError

    def best_pools(self, samples_seen: float, candidates: str = "prefix") -> tuple[list[Hashable], float, pd.DataFrame]:
        """What to train on for a budget (step 5).

        Parameters
        ----------
        samples_seen : float
        candidates : {"prefix", "all"}
            Unions of the first p pools by utility; or every union, of at most 15 pools.

        Returns
        -------
        pools : list
        error : float
        table : DataFrame
            Every candidate with its predicted error and passes, best first.
        """
        check_is_fitted(self, "params_")
        ranked = self.params_.sort_values("b", kind="stable").index.tolist()
        if candidates == "prefix":
            tried = [ranked[:p] for p in range(1, len(ranked) + 1)]
        elif candidates == "all":
            if len(ranked) > MOST_SUBSETS_OF:
                raise ValueError(
                    f"All unions of {len(ranked)} pools are too many (at most {MOST_SUBSETS_OF} pools). "
                    "Take candidates='prefix'."
                )
            tried = [list(c) for p in range(1, len(ranked) + 1) for c in combinations(ranked, p)]
        else:
            raise ValueError(f"candidates must be 'prefix' or 'all', got {candidates!r}.")
        rows = [
            {
                "pools": union,
                "error": float(self.predict_mixture(union, samples_seen)),
                "passes": samples_seen / float(self.params_.loc[union, "size"].sum()),
            }
            for union in tried
        ]
        table = pd.DataFrame(rows).sort_values("error", kind="stable", ignore_index=True)
        return list(table["pools"][0]), float(table["error"][0]), table

    def pareto(self, budgets: Sequence[float]) -> pd.DataFrame:
        """The best union of the first pools for each budget, with its predicted error."""
        rows = []
        for budget in budgets:
            pools, error, _ = self.best_pools(budget)
            rows.append({"samples_seen": budget, "pools": pools, "n_pools": len(pools), "error": error})
        return pd.DataFrame(rows)


@register(
    "filtering-laws",
    stage="curate",
    summary="Predicts from small runs how much of a ranked pool to keep for a budget, when repeated data wears out.",
    paper="Scaling Laws for Data Filtering -- Data Curation cannot be Compute Agnostic",
    year=2024,
    link="https://arxiv.org/abs/2404.07177",
    licence="none published",
    accepts=("image", "table", "text", "embedding"),
    skips_checks={"survives_packing": "it is a table of runs, which fits again in a second"},
    taxonomy={
        "goal": "distribution matching",
        "utility": "exponent of a scaling law that halves every few passes",
        "unit": "data set",
        "mechanism": "the cut of least predicted error",
        "stage_of_training": "pretraining",
    },
)
class DataFilteringLaw(_Law):
    """Error of any union of quality buckets at any budget, from small runs on single buckets.

    The law is monotone: it can not say that more passes hurt, nor that labels are wrong. Every run must have finished
    its schedule of learning rates; points along one long run do not count.

    Parameters
    ----------
    normalizer : float, default=100_000
        Samples are counted in these; ``a * pool size / normalizer`` should be about 1.
    a, d : float or None, default=None
        Scale and irreducible error; None looks for them on a grid.
    shared_a : bool, default=True
        One scale for all pools, which unions need.
    a_grid, d_grid : sequence of float or None, default=None
        What is tried; None takes the published grids.
    b_bounds : pair of float, default=(-0.5, -0.005)
        Utilities tried; more negative is better data.
    tau_bounds : pair of float, default=(1.0, 10.0)
        Half-lives tried, in passes.
    a_upper : float, default=0.02
        Largest scale tried for a pool of its own (``shared_a=False``).
    grid : int, default=100
        Half-lives tried between the bounds.
    refine : bool, default=True
        Go on from the grid's best by bounded least squares.
    weighting : {"uniform", "size"}, default="uniform"
        How unions of pools of unequal size are weighed; "uniform" refuses them.
    n_bootstrap : int, default=0
        Refits on runs drawn with replacement, for the uncertainty of a choice.
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    params_ : DataFrame
        A row a pool: size, a, b, tau, sse, whether tau could be told (``identifiable``) or lies at a bound
        (``at_bound``), and whether the errors measured rise over the last three budgets (``rising``).
    a_, d_ : float
    utility_, half_life_ : dict of pool to float
        b and tau; nan for a half-life that the runs can not tell.
    residuals_ : DataFrame
        Runs with predicted error and difference.
    bootstrap_ : list of DataFrame
        ``params_`` of the refits.

    References
    ----------
    Goyal et al. (2024), equations 3-7 and the reference implementation. The irreducible error stands outside the
    product here; there it is multiplied along.

    Examples
    --------
    >>> budgets, runs = [1000, 2000, 4000, 8000], []
    >>> for pool, b, tau in (("good", -0.3, 1.2), ("poor", -0.25, 3.0)):
    ...     for n, error in zip(budgets, pool_curve(budgets, 1000.0, 0.02, b, tau, 0.1)):
    ...         runs.append({"pool": pool, "samples_seen": n, "pool_size": 1000.0, "error": error})
    >>> law = DataFilteringLaw(normalizer=1.0, a=0.02, d=0.1).fit(pd.DataFrame(runs))
    >>> round(law.utility_["good"], 2), law.best_pools(1000)[0], law.best_pools(1e6)[0]
    (-0.3, ['good'], ['good', 'poor'])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "normalizer": [Interval(Real, 0, None, closed="neither")],
        "a": [None, Interval(Real, 0, None, closed="neither")],
        "d": [None, Interval(Real, 0, None, closed="left")],
        "shared_a": ["boolean"],
        "a_grid": [None, "array-like"],
        "d_grid": [None, "array-like"],
        "b_bounds": ["array-like"],
        "tau_bounds": ["array-like"],
        "a_upper": [Interval(Real, 0, None, closed="neither")],
        "grid": [Interval(Integral, 2, None, closed="left")],
        "refine": ["boolean"],
        "weighting": [StrOptions({"uniform", "size"})],
        "n_bootstrap": [Interval(Integral, 0, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        normalizer: float = 100_000,
        *,
        a: float | None = None,
        d: float | None = None,
        shared_a: bool = True,
        a_grid: Sequence[float] | None = None,
        d_grid: Sequence[float] | None = None,
        b_bounds: tuple[float, float] = (-0.5, -0.005),
        tau_bounds: tuple[float, float] = (1.0, 10.0),
        a_upper: float = 0.02,
        grid: int = 100,
        refine: bool = True,
        weighting: str = "uniform",
        n_bootstrap: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.normalizer = normalizer
        self.a = a
        self.d = d
        self.shared_a = shared_a
        self.a_grid = a_grid
        self.d_grid = d_grid
        self.b_bounds = b_bounds
        self.tau_bounds = tau_bounds
        self.a_upper = a_upper
        self.grid = grid
        self.refine = refine
        self.weighting = weighting
        self.n_bootstrap = n_bootstrap
        self.random_state = random_state

    def fit(self, runs: Any) -> DataFilteringLaw:
        """Fit a curve to each pool.

        Parameters
        ----------
        runs : DataFrame
            Columns ``pool``, ``samples_seen``, ``pool_size``, ``error`` (1 - metric, a fraction); runs of further seeds
            are averaged. At least three budgets a pool, one of them beyond two passes.

        Raises
        ------
        ValueError
            For missing columns, too few budgets, a pool of several sizes, numbers that are not positive and finite, or
            errors not above `d`.

        Warns
        -----
        FilteringLawWarning
            When a half-life lies at the edge of `tau_bounds`, or errors rise with passes, which the law can not say.
        """
        self._validate_params()
        points = self._read(runs)
        self.params_, self.a_, self.d_ = self._fit(points)
        self.params_["rising"] = [_rises(points[points["pool"] == pool]) for pool in self.params_.index]
        self._warn()
        self.utility_ = self.params_["b"].to_dict()
        known = self.params_["identifiable"]
        self.half_life_ = self.params_["tau"].where(known).to_dict()
        predicted = [
            float(self._curve(self.params_.loc[[pool]], n))
            for pool, n in zip(points["pool"], points["samples_seen"].astype(float), strict=True)
        ]
        self.residuals_ = points.assign(predicted=predicted, residual=points["error"] - predicted)
        random = np.random.default_rng(seed_from(self.random_state))
        frame = pd.DataFrame(runs)
        self.bootstrap_ = [self._fit(self._resampled(frame, random))[0] for _ in range(self.n_bootstrap)]
        return self

    def _warn(self) -> None:
        told = self.params_
        edge = told.index[told["at_bound"] & told["identifiable"]].tolist()
        if edge:
            warnings.warn(
                f"How fast the pools wear out {edge} can not be told: it lies at the edge of tau_bounds="
                f"{tuple(self.tau_bounds)}. Widen them, or add runs of more passes.",
                FilteringLawWarning,
                stacklevel=3,
            )
        rising = told.index[told["rising"]].tolist()
        if rising:
            warnings.warn(
                f"In the runs the error of {rising} rises over its last three budgets: more passes hurt, which the law "
                "can not say. Leave these budgets out, or train so that more passes do no harm.",
                FilteringLawWarning,
                stacklevel=3,
            )

    def predict_mixture(self, pools: Sequence[Hashable], samples_seen: ArrayLike) -> Floats:
        """Error of training on the union of `pools`, at one or several budgets in samples seen.

        Raises
        ------
        ValueError
            For pools that were not in `fit`, pools of unequal size under uniform weighting or with scales of their own,
            or budgets that are not positive.
        """
        if not np.all(np.asarray(samples_seen, dtype=np.float64) > 0):
            raise ValueError(f"samples_seen must be positive, got {samples_seen!r}.")
        return self._curve(self._pools(pools), samples_seen)

    def choice_probability(self, samples_seen: float) -> dict[int, float]:
        """How often the refits keep the first p pools for this budget: p -> share. Needs ``n_bootstrap``."""
        check_is_fitted(self, "bootstrap_")
        if not self.bootstrap_:
            raise ValueError("There are no refits to ask: fit with n_bootstrap=50 or so.")
        counts: dict[int, int] = {}
        for params in self.bootstrap_:
            ranked = params.sort_values("b", kind="stable")
            errors = [float(self._curve(ranked.iloc[:p], samples_seen)) for p in range(1, len(ranked) + 1)]
            best = int(np.argmin(errors)) + 1
            counts[best] = counts.get(best, 0) + 1
        return {p: counts[p] / len(self.bootstrap_) for p in sorted(counts)}

    def predict_interval(
        self, pools: Sequence[Hashable], samples_seen: ArrayLike, level: float = 0.9
    ) -> tuple[Floats, Floats]:
        """Where the error of a union lies with probability `level`; needs ``n_bootstrap``.

        From the spread of the refits and of the residuals, taken as normal. It knows the noise of runs and what the
        curves miss in them, and not what they miss further out.

        Returns
        -------
        low, high : array
        """
        centre = self.predict_mixture(pools, samples_seen)
        if not self.bootstrap_:
            raise ValueError("There are no refits to ask: fit with n_bootstrap=50 or so.")
        chosen = list(dict.fromkeys(pools))
        refits = np.array([self._curve(params.loc[chosen], samples_seen) for params in self.bootstrap_])
        variance = refits.var(axis=0) + float((self.residuals_["residual"] ** 2).mean())
        half = float(norm.ppf((1 + level) / 2)) * np.sqrt(variance)
        return np.maximum(centre - half, 0.0), centre + half

    def resized(self, sizes: Mapping[Any, float]) -> DataFilteringLaw:
        """A copy that answers for pools of other sizes than those of the runs, as when runs were made on pilots.

        Utilities and half-lives are taken to be those of the pilots.

        Raises
        ------
        ValueError
            For pools that were not in `fit`, or sizes that are not positive.
        """
        check_is_fitted(self, "params_")
        unknown = [pool for pool in sizes if pool not in self.params_.index]
        if unknown:
            raise ValueError(f"Pools {unknown} were not in fit; there are {self.params_.index.tolist()}.")
        if not all(size > 0 for size in sizes.values()):
            raise ValueError(f"Sizes must be positive, got {dict(sizes)}.")
        other = copy.copy(self)
        given = pd.Series(dict(sizes), dtype=np.float64)

        def at_size(params: pd.DataFrame) -> pd.DataFrame:
            return params.assign(size=given.reindex(params.index).fillna(params["size"]))

        other.params_ = at_size(self.params_)
        other.bootstrap_ = [at_size(params) for params in self.bootstrap_]
        return other

    # ---- fitting

    def _curve(self, params: pd.DataFrame, samples: ArrayLike) -> Floats:
        return mixture_curve(
            samples,
            params["size"].tolist(),
            self._scale(params),
            params["b"].tolist(),
            params["tau"].tolist(),
            float(params["d"].iloc[0]),
        )

    def _scale(self, params: pd.DataFrame) -> float:
        """The scale that all pools of a union share (step 4)."""
        scales = params["a"].to_numpy(dtype=np.float64)
        if not np.allclose(scales, scales[0], rtol=1e-6, atol=0.0):
            raise ValueError(
                f"The pools {params.index.tolist()} have scales of their own ({scales.tolist()}), and the law for "
                "unions needs one for all. Fit with shared_a=True."
            )
        return float(scales[0]) / self.normalizer

    def _fit(self, points: pd.DataFrame) -> tuple[pd.DataFrame, float, float]:
        """Steps 6 and 7: (b, tau) of each pool for each (a, d); the pair of least mean squared error stays."""
        scales = [self.a] if self.a is not None else list(self.a_grid if self.a_grid is not None else SHARED_A)
        floors = [self.d] if self.d is not None else list(self.d_grid if self.d_grid is not None else SHARED_D)
        lowest = float(points["error"].min())
        floors = [d for d in floors if d < lowest]
        if not floors:
            raise ValueError(
                f"The lowest error {lowest:.4g} is not above any irreducible error d tried. Give a smaller d or d_grid."
            )
        if not self.shared_a and self.a is None:
            scales = np.linspace(1e-4, self.a_upper, self.grid).tolist()
        groups = [(pool, rows) for pool, rows in points.groupby("pool", sort=False)]
        best: tuple[float, list[dict[str, Any]]] | None = None
        for d in floors:
            fits = [[self._fit_pool(pool, rows, a, d) for pool, rows in groups] for a in scales]
            if not self.shared_a:
                own = [min((fit[i] for fit in fits), key=lambda row: row["sse"]) for i in range(len(groups))]
                fits = [own]
            for found in fits:
                error = float(np.mean([row["sse"] for row in found]))
                if best is None or error < best[0]:
                    best = (error, found)
        assert best is not None
        rows = (
            [self._refined(row, points[points["pool"] == row["pool"]]) for row in best[1]] if self.refine else best[1]
        )
        frame = pd.DataFrame(rows).set_index("pool")
        return frame, float(frame["a"].mean()), float(frame["d"].iloc[0])

    def _fit_pool(self, pool: Hashable, rows: pd.DataFrame, a: float, d: float) -> dict[str, Any]:
        samples, errors, size = self._arrays(rows)
        taus = np.linspace(*self.tau_bounds, self.grid)
        told = passes(samples, size, 2.0 ** (-1 / taus))
        base = np.log(a / self.normalizer * np.minimum(size, samples)) + told
        target = np.log(errors - d)
        b = np.clip((base @ target) / np.maximum((base**2).sum(axis=1), 1e-12), *self.b_bounds)
        sse = ((d + np.exp(b[:, None] * base) - errors) ** 2).sum(axis=1)
        place = int(sse.argmin())
        beyond = bool((samples > 2 * size).any())
        return {
            "pool": pool,
            "size": size,
            "a": a,
            "b": float(b[place]),
            "tau": float(taus[place]),
            "d": d,
            "sse": float(sse[place]),
            "identifiable": beyond,
            "at_bound": bool(place in (0, len(taus) - 1)),
        }

    def _refined(self, row: dict[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
        samples, errors, size = self._arrays(rows)
        scale = row["a"] / self.normalizer

        def gaps(values: Floats) -> Floats:
            return pool_curve(samples, size, scale, values[0], values[1], row["d"]) - errors

        bounds = ([self.b_bounds[0], self.tau_bounds[0]], [self.b_bounds[1], self.tau_bounds[1]])
        start = np.clip([row["b"], row["tau"]], np.array(bounds[0]) + 1e-9, np.array(bounds[1]) - 1e-9)
        found = least_squares(gaps, start, bounds=bounds, x_scale=[0.1, 1.0])
        sse = float((found.fun**2).sum())
        if sse >= row["sse"]:
            return row
        tau = float(found.x[1])
        at_bound = bool(np.isclose(tau, self.tau_bounds).any())
        return {**row, "b": float(found.x[0]), "tau": tau, "sse": sse, "at_bound": at_bound}

    @staticmethod
    def _arrays(rows: pd.DataFrame) -> tuple[Floats, Floats, float]:
        return (
            rows["samples_seen"].to_numpy(dtype=np.float64),
            rows["error"].to_numpy(dtype=np.float64),
            float(rows["pool_size"].iloc[0]),
        )

    def _resampled(self, runs: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
        """Runs of each pool and budget drawn anew; with one run each, its residual is drawn instead."""
        counts = runs.groupby(["pool", "samples_seen"]).size()
        if counts.max() > 1:
            parts = [
                rows.iloc[random.integers(0, len(rows), len(rows))]
                for _, rows in runs.groupby(["pool", "samples_seen"], sort=False)
            ]
            return self._read(pd.concat(parts))
        drawn = random.choice(self.residuals_["residual"].to_numpy(), len(self.residuals_))
        floor = self.d_ + 1e-6
        return self.residuals_[["pool", "samples_seen", "pool_size"]].assign(
            error=np.maximum(self.residuals_["predicted"] + drawn, floor)
        )


def _rises(points: pd.DataFrame) -> bool:
    last = points.sort_values("samples_seen")["error"].to_numpy()[-3:]
    return bool((np.diff(last) > 0).all())


class EffectiveDataLaw(DataFilteringLaw):
    """The data-constrained baseline: repetition makes samples count less, and their utility stays.

    In a union the utility is the mean over the samples by what each still counts.

    Parameters, attributes and errors are those of :class:`DataFilteringLaw`; tau is the half-life of a sample's count.

    References
    ----------
    N. Muennighoff et al., "Scaling Data-Constrained Language Models", NeurIPS 2023, arXiv:2305.16264, in the form that
    Goyal et al. (2024) compare with.
    """

    def _fit_pool(self, pool: Hashable, rows: pd.DataFrame, a: float, d: float) -> dict[str, Any]:
        samples, errors, size = self._arrays(rows)
        taus = np.linspace(*self.tau_bounds, self.grid)
        counted = np.array([[effective_samples(n, size, tau) for n in samples] for tau in taus])
        base = np.log(a / self.normalizer * counted)
        target = np.log(errors - d)
        b = np.clip((base @ target) / np.maximum((base**2).sum(axis=1), 1e-12), *self.b_bounds)
        sse = ((d + np.exp(b[:, None] * base) - errors) ** 2).sum(axis=1)
        place = int(sse.argmin())
        found = {"pool": pool, "size": size, "a": a, "b": float(b[place]), "tau": float(taus[place]), "d": d}
        told = {"identifiable": bool((samples > 2 * size).any()), "at_bound": bool(place in (0, len(taus) - 1))}
        return {**found, "sse": float(sse[place]), **told}

    def _refined(self, row: dict[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
        return row

    def _curve(self, params: pd.DataFrame, samples: ArrayLike) -> Floats:
        sizes, taus = params["size"].to_numpy(dtype=np.float64), params["tau"].to_numpy(dtype=np.float64)
        share, b = sizes / sizes.sum(), params["b"].to_numpy(dtype=np.float64)
        scale, d = self._scale(params), float(params["d"].iloc[0])

        def error(n: float) -> float:
            counted = np.array(
                [effective_samples(n * p, size, tau) for p, size, tau in zip(share, sizes, taus, strict=True)]
            )
            return float(d + (scale * counted.sum()) ** float(counted @ b / counted.sum()))

        return np.vectorize(error)(np.asarray(samples, dtype=np.float64))

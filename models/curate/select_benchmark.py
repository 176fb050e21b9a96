"""Which way of assembling a training set to use, and for what: one network, one recipe, several sets, many measures.

B. Feuer, J. Xu, N. Cohen, P. Yubeaton, G. Mittal and C. Hegde, "SELECT: A Large-Scale Benchmark of Data Curation
Strategies for Image Classification", NeurIPS 2024, arXiv:2410.05057.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted
from torch import nn

from models.base import check_labels, isolated_seed
from models.curate.curation_strategies import KINDS, CurationStrategy, LabelledSet, digests
from models.curate.shift_evaluations import ShiftTrainer
from models.curate.shift_statistics import accuracy_interval, dataset_statistics
from models.registry import register
from models.supervised import ClassifierSpec, make_classifier
from models.unlearn.split import stack_inputs

TOLERANCE = 0.2  # by how much a set's size may differ before it is reported
BOOTSTRAPS = 1000
Suite = Mapping[str, Sequence[Any]]
"""Groups of named functions (network or set, seed) -> float."""
Shift = tuple[str, str, int, LabelledSet]
"""Name and kind of the strategy, seed, and the set it made."""


def paired_bootstrap(first: NDArray[Any], second: NDArray[Any], seed: int = 0) -> float:
    """Two-sided p of a difference in means of figures on the same items: how often resampled items turn its sign.

    Equal figures give 1.

    Examples
    --------
    >>> paired_bootstrap(np.array([1.0, 0, 1]), np.array([1.0, 0, 1]))
    1.0
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.array(
        [difference[generator.integers(0, len(difference), len(difference))].mean() for _ in range(BOOTSTRAPS)]
    )
    return float(min(1.0, 2 * min((means <= 0).mean(), (means >= 0).mean())))


@dataclass
class Report:
    """What the benchmark found.

    Attributes
    ----------
    scores : DataFrame
        One row a strategy, seed and evaluation: strategy, kind, seed, group, task, value, n (items, where known).
    sizes : DataFrame
        One row a strategy and seed: rows, samples seen, and the costs.
    statistics : DataFrame
        One row a strategy and seed, see :func:`models.curate.shift_statistics.dataset_statistics`.
    notes : list of str
        What a reader has to know: sizes that differ, tasks left out.
    items : dict of str to array
        Strategy -> share of seeds in which each item of the first base evaluation was answered right.
    reference : str
    """

    scores: pd.DataFrame
    sizes: pd.DataFrame
    statistics: pd.DataFrame
    notes: list[str]
    items: dict[str, NDArray[np.float64]] = field(repr=False)
    reference: str = "expert"

    @property
    def groups(self) -> list[str]:
        """Names of the groups of evaluations."""
        return list(dict.fromkeys(self.scores.group))

    @property
    def table(self) -> pd.DataFrame:
        """Mean over tasks and seeds: one row a strategy, one column a group. Groups are never averaged."""
        wide = self.scores.pivot_table("value", "strategy", "group", "mean", sort=False)
        return wide.reindex(index=list(dict.fromkeys(self.scores.strategy)), columns=self.groups)

    @property
    def intervals(self) -> pd.DataFrame:
        """95 % half widths of means over seeds by strategy and task: 1.96 sqrt(a (1 - a) / n), of values in [0, 1]."""
        counted = self.scores[self.scores.n.notna() & self.scores.value.between(0, 1)]
        means = counted.groupby(["strategy", "task"], sort=False)[["value", "n"]].mean()
        means["interval"] = [accuracy_interval(a, int(n)) for a, n in zip(means.value, means.n, strict=True)]
        return means.reset_index()

    @property
    def ranks(self) -> pd.DataFrame:
        """Rank of each strategy in each group, 1 the best; equal means share a rank."""
        return self.table.rank(ascending=False, method="min")

    @property
    def relative(self) -> pd.DataFrame:
        """Each mean as a share of the reference's."""
        return self.table / self.table.loc[self.reference]

    @property
    def pairwise(self) -> pd.DataFrame:
        """Pairs of strategies: difference in base accuracy and its p by paired bootstrap over the test items."""
        rows = [
            {
                "first": a,
                "second": b,
                "difference": float(self.items[a].mean() - self.items[b].mean()),
                "p": paired_bootstrap(self.items[a], self.items[b]),
            }
            for a, b in itertools.combinations(self.items, 2)
        ]
        return pd.DataFrame(rows, columns=["first", "second", "difference", "p"])

    @property
    def utility_of_cost(self) -> pd.DataFrame:
        """The table beside log10(1 + cost) of each kind of cost, mean over seeds; nan for a checkpoint."""
        costs = ["human_labels", "encoder_passes", "generator_passes"]
        sizes = self.sizes.reindex(columns=["strategy", *costs])
        mean = sizes.groupby("strategy", sort=False)[costs].mean().map(lambda value: math.log10(1 + value))
        return self.table.join(mean.rename(columns={name: f"log10 {name}" for name in costs}))

    def to_mlflow(self) -> dict[str, float]:
        """Metrics by name: ``base/expert`` and so on, as a tracker logs them; undefined figures are left out."""
        metrics = {
            f"{group}/{name}": float(value)
            for group, column in self.table.items()
            for name, value in column.items()
            if math.isfinite(value)
        }
        for row in self.intervals.to_dict("records"):
            metrics[f"interval/{row['task']}/{row['strategy']}"] = float(row["interval"])
        return metrics

    def to_markdown(self) -> str:
        """Means with ranks in brackets, one row a strategy, and the notes."""
        lines = ["| strategy | " + " | ".join(self.groups) + " |", "|---|" + "---:|" * len(self.groups)]
        means, ranks = self.table.to_numpy(), self.ranks.to_numpy()
        for name, own, places in zip(self.table.index, means, ranks, strict=True):
            cells = [
                "–" if math.isnan(mean) else f"{mean:.3f} ({place:.0f})"
                for mean, place in zip(own, places, strict=True)
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"


@register(
    "select",
    stage="curate",
    summary="Trains one network on each of several training sets of equal size and tells which to use for what.",
    paper="SELECT: A Large-Scale Benchmark of Data Curation Strategies for Image Classification",
    year=2024,
    link="https://arxiv.org/abs/2410.05057",
    licence="MIT",
    accepts=("image", "table", "embedding"),
    skips_checks={
        "survives_packing": "its parameters are functions of the user: evaluations, network and training",
    },
    taxonomy={
        "goal": "distribution matching",
        "utility": "accuracy, robustness, transfer and a probe after training",
        "unit": "data set",
        "mechanism": "training on each candidate",
        "stage_of_training": "supervised training",
    },
)
class CurationBenchmark(BaseEstimator):
    """Compare ways of curating a training set by training on each.

    Parameters
    ----------
    model_fn : callable or nn.Module, optional
        Makes the network (rows -> logits of classes 0..K-1); None is a network of two hidden layers of 256 units.
    trainer : callable, optional
        (network, LabelledSet, rows, seed) -> trained network, where `rows` counts as one epoch. None is
        :class:`models.curate.shift_evaluations.ShiftTrainer`.
    size : int, optional
        Rows of each set; None takes the size of the gold set.
    eval_suite : mapping of str to sequence of callables
        Groups ("base", "ood_synthetic", "ood_natural", "transfer", "ssl", ...) of named functions
        (network, seed) -> float; see :mod:`models.curate.shift_evaluations`. Those of the group "ssl" are given the
        :class:`LabelledSet` in place of a network. What has ``rows`` is looked through for rows of the sets.
    seeds : sequence of int, default=(0, 1, 2)
    compute : {"samples_seen", "epochs"}, default="samples_seen"
        "samples_seen" trains on `size` rows an epoch however large the set came out; "epochs" on each set as it is.
    reference : str, default="expert"
        Name of the strategy that others are compared with.
    n_jobs : int, default=1
        Processes; the functions given must then be importable.
    strict : bool, default=False
        Refuse a set whose size differs by more than 20 %, in place of a note.

    Attributes
    ----------
    records_ : list of dict
        Values by strategy, seed, group and task.
    sizes_, statistics_ : list of dict
    items_ : dict of str to array
    notes_ : list of str
    report_ : Report

    References
    ----------
    Feuer et al. (2024), sections 3 and 4.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from models.curate.curation_strategies import ExpertSubset, TaxonomyMap
    >>> from models.curate.shift_evaluations import Accuracy, ShiftTrainer
    >>> X, y = load_digits(return_X_y=True)
    >>> gold, pool = LabelledSet(X[:300] / 16, y[:300]), LabelledSet(X[300:900] / 16, y[300:900] ** 2 % 10)
    >>> suite = {"base": [Accuracy(X[900:] / 16, y[900:])]}
    >>> benchmark = CurationBenchmark(trainer=ShiftTrainer(5), size=200, eval_suite=suite, seeds=(0,))
    >>> crowd = TaxonomyMap({i: i for i in range(10)})
    >>> report = benchmark.run([ExpertSubset(), crowd], gold, pool)
    >>> report.ranks.base.to_dict()
    {'expert': 1.0, 'crowd': 2.0}
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "size": [Interval(Integral, 1, None, closed="left"), None],
        "trainer": [callable, None],
        "eval_suite": [Mapping, None],
        "seeds": ["array-like"],
        "compute": [StrOptions({"samples_seen", "epochs"})],
        "reference": [str],
        "n_jobs": [Integral],
        "strict": ["boolean"],
    }

    def __init__(
        self,
        model_fn: ClassifierSpec = None,
        trainer: Callable[[Any, LabelledSet, int, int], nn.Module] | None = None,
        size: int | None = None,
        eval_suite: Suite | None = None,
        seeds: Sequence[int] = (0, 1, 2),
        compute: str = "samples_seen",
        reference: str = "expert",
        n_jobs: int = 1,
        strict: bool = False,
    ) -> None:
        self.model_fn = model_fn
        self.trainer = trainer
        self.size = size
        self.eval_suite = eval_suite
        self.seeds = seeds
        self.compute = compute
        self.reference = reference
        self.n_jobs = n_jobs
        self.strict = strict

    def run(self, strategies: Sequence[CurationStrategy], gold: LabelledSet, pool: LabelledSet) -> Report:
        """:meth:`fit`, and its report."""
        return self.fit(strategies, gold, pool).report_

    def fit(self, strategies: Sequence[CurationStrategy], gold: LabelledSet, pool: LabelledSet) -> CurationBenchmark:
        """Let each strategy make a set at each seed, train on it, and measure.

        Parameters
        ----------
        strategies : sequence of CurationStrategy
            Of different names, the reference among them.
        gold : LabelledSet
            Classes 0..K-1.
        pool : LabelledSet

        Raises
        ------
        ValueError
            For no strategies or two of one name, no reference among them, no evaluations, an unlabelled or empty
            gold set, fewer than two classes, a set that is empty, of another shape, bears other classes or holds rows
            of an evaluation, or, if `strict`, is more than 20 % off in size; evaluations that are all 0 for every set.
            A set of one class is trained on as it is.
        """
        self._validate_params()
        suite = self._checked_suite()
        names = [strategy.name for strategy in strategies]
        if len(set(names)) != len(names) or self.reference not in names:
            raise ValueError(
                f"The strategies must have different names, {self.reference!r} (the reference) among them; got {names}."
            )
        if wrong := [s.kind for s in strategies if s.kind not in KINDS]:
            raise ValueError(f"The kind of a strategy must be one of {', '.join(KINDS)}, got {wrong[0]!r}.")
        rows = stack_inputs(gold.X, name="gold.X")
        labels = check_labels(gold.y, len(rows), allow_unlabelled=False, name="gold.y")
        self.n_classes_, self.sample_shape_ = int(labels.max()) + 1, tuple(rows.shape[1:])
        self.size_ = len(rows) if self.size is None else self.size
        self.notes_: list[str] = []
        shifts = [self._shift(strategy, gold, pool, seed) for strategy in strategies for seed in self.seeds]
        self._refuse_leaks(shifts, suite)
        found = Parallel(n_jobs=self.n_jobs)(delayed(self._train_and_measure)(shift, suite) for shift in shifts)
        self.records_ = [record for part in found for record in part["records"]]
        self.sizes_ = [part["size"] for part in found]
        self._gather([(name, seed) for name, _, seed, _ in shifts], shifts, found)
        self._drop_dead_tasks()
        return self

    def _checked_suite(self) -> Suite:
        if not self.eval_suite or not any(self.eval_suite.values()):
            raise ValueError(
                "eval_suite must name what to measure, such as {'base': [Accuracy(X_test, y_test)]}; got none."
            )
        if not len(self.seeds):
            raise ValueError("seeds must hold at least one seed, got none.")
        tasks = [_name(task) for group in self.eval_suite.values() for task in group]
        if len(set(tasks)) != len(tasks):
            raise ValueError(f"Evaluations must have different names, got {tasks}.")
        return self.eval_suite

    def _shift(self, strategy: CurationStrategy, gold: LabelledSet, pool: LabelledSet, seed: int) -> Shift:
        with isolated_seed(seed):
            shift = strategy.curate(gold, pool, self.size_, seed)
        if not len(shift):
            raise ValueError(f"The strategy {strategy.name!r} gave an empty set. Look at its source.")
        shape = tuple(stack_inputs(shift.X).shape[1:])
        if shape != self.sample_shape_:
            raise ValueError(
                f"The rows of {strategy.name!r} are shaped {shape}, those of the gold set {self.sample_shape_}. "
                "Bring its source to that shape first."
            )
        check_labels(
            shift.y,
            len(shift),
            n_classes=self.n_classes_,
            allow_unlabelled=False,
            minimum_classes=1,
            name=f"the labels of {strategy.name!r}",
        )
        if abs(len(shift) - self.size_) > TOLERANCE * self.size_:
            note = f"{strategy.name} (seed {seed}) gave {len(shift)} rows where {self.size_} were asked for."
            if self.strict:
                raise ValueError(f"{note} Give it a larger source, ask for fewer, or set strict=False.")
            self.notes_.append(note)
        repeated = len(shift) - len(set(digests(shift.X)))
        if repeated:
            self.notes_.append(f"{strategy.name} (seed {seed}): {repeated} of {len(shift)} rows repeat another.")
        return strategy.name, strategy.kind, seed, shift

    def _refuse_leaks(self, shifts: Sequence[Shift], suite: Suite) -> None:
        guarded = [
            (_name(task), set(digests(task.rows)))
            for group in suite.values()
            for task in group
            if tuple(getattr(task, "rows", np.empty(0)).shape[1:]) == self.sample_shape_
        ]
        for name, _, seed, shift in shifts:
            own = digests(shift.X)
            for task, unwanted in guarded:
                leaked = [row for row, digest in enumerate(own) if digest in unwanted]
                if leaked:
                    raise ValueError(
                        f"The set of {name!r} (seed {seed}) holds {len(leaked)} row(s) of the evaluation {task!r}, the "
                        f"first at row {leaked[0]}: its figures would be too good. Take them out of the source first "
                        "(models.curate.curation_strategies.without_rows)."
                    )

    def _train_and_measure(self, shift: Shift, suite: Suite) -> dict[str, Any]:
        name, kind, seed, data = shift
        rows = self.size_ if self.compute == "samples_seen" else len(data)
        with isolated_seed(seed):
            network = make_classifier(self.model_fn, self.sample_shape_, self.n_classes_, name="model_fn")
            network = (self.trainer or ShiftTrainer())(network, data, rows, seed)
            records = _measured(network, data, suite, name, kind, seed)
        spent = {"human_labels": 0, "encoder_passes": 0, "generator_passes": 0, **data.meta.get("cost", {})}
        size = {"strategy": name, "seed": seed, "rows": len(data), "rows_per_epoch": rows, **spent}
        base = next((task for task in suite.get("base", ()) if hasattr(task, "correct")), None)
        return {
            "records": records,
            "size": size,
            "correct": None if base is None else base.correct(network),
            "predictions": None if base is None else (base.y, base.predict(network)),
        }

    def _gather(self, keys: list[tuple[str, int]], shifts: list[Shift], found: list[dict[str, Any]]) -> None:
        references = {seed: i for i, (name, seed) in enumerate(keys) if name == self.reference}
        self.statistics_ = []
        for (name, seed), (*_, data), part in zip(keys, shifts, found, strict=True):
            at = references[seed]
            figures = dataset_statistics(
                data.y, self.n_classes_, part["predictions"], found[at]["predictions"], shifts[at][3].y
            )
            self.statistics_.append({"strategy": name, "seed": seed, **figures})
        self.items_ = {}
        if all(part["correct"] is not None for part in found):
            for name in dict.fromkeys(name for name, _ in keys):
                own = [part["correct"] for (other, _), part in zip(keys, found, strict=True) if other == name]
                self.items_[name] = np.mean(own, axis=0)

    def _drop_dead_tasks(self) -> None:
        values: dict[str, list[float]] = {}
        for record in self.records_:
            values.setdefault(record["task"], []).append(record["value"])
        dead = [task for task, of_task in values.items() if all(value == 0 for value in of_task)]
        if len(dead) == len(values):
            raise ValueError(
                f"Evaluations {dead} are 0 for every set: nothing tells them apart. Check that the rows and labels of "
                "the evaluations are those of the gold set's classes."
            )
        for task in dead:
            self.notes_.append(f"{task} is 0 for every set and was left out of the means.")
        self.records_ = [record for record in self.records_ if record["task"] not in dead]

    @property
    def report_(self) -> Report:
        """What was found, as tables."""
        check_is_fitted(self, "records_")
        return Report(
            pd.DataFrame(self.records_),
            pd.DataFrame(self.sizes_),
            pd.DataFrame(self.statistics_),
            list(self.notes_),
            dict(self.items_),
            self.reference,
        )

    def evaluate_checkpoint(self, model: nn.Module, name: str) -> Report:
        """Measure a network that was trained elsewhere, and report it beside what was fitted, under `name`.

        The group "ssl" looks at sets, not at networks, and stays empty.

        Raises
        ------
        ValueError
            If the name is taken, or there are no evaluations.
        """
        suite = {group: tasks for group, tasks in self._checked_suite().items() if group != "ssl"}
        fitted = self.report_ if hasattr(self, "records_") else None
        if fitted is not None and name in set(fitted.scores.strategy):
            raise ValueError(f"The name {name!r} is taken by a strategy; give the checkpoint another.")
        records = []
        for seed in self.seeds:
            with isolated_seed(seed):
                records += _measured(model, None, suite, name, "checkpoint", seed)
        scores = pd.DataFrame(records)
        base = next((task for task in suite.get("base", ()) if hasattr(task, "correct")), None)
        items = {} if base is None else {name: base.correct(model).astype(np.float64)}
        if fitted is None:
            return Report(scores, pd.DataFrame(), pd.DataFrame(), [], items, name)
        kept = scores[scores.task.isin(fitted.scores.task)]
        return Report(
            pd.concat([fitted.scores, kept], ignore_index=True),
            fitted.sizes,
            fitted.statistics,
            fitted.notes,
            {**fitted.items, **items},
            self.reference,
        )


def _name(task: Any) -> str:
    return str(getattr(task, "name", None) or getattr(task, "__name__", type(task).__name__))


def _measured(
    network: nn.Module, data: LabelledSet | None, suite: Suite, name: str, kind: str, seed: int
) -> list[dict[str, Any]]:
    records = []
    for group, tasks in suite.items():
        for task in tasks:
            value = float(task(data if group == "ssl" else network, seed))
            if not math.isfinite(value):
                raise ValueError(
                    f"The evaluation {_name(task)!r} of {name!r} gave {value}; it must give a finite number."
                )
            items = len(task.rows) if hasattr(task, "rows") else None
            records.append(
                {
                    "strategy": name,
                    "kind": kind,
                    "seed": seed,
                    "group": group,
                    "task": _name(task),
                    "value": value,
                    "n": float("nan") if items is None else float(items),
                }
            )
    return records

"""Stage curate: which rows to train on, within a budget, and what fewer rows cost."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from infra import datasets as ds
from infra.errors import ConfigurationError, DatasetFormatError
from infra.files import file_digest
from infra.references import DatasetRef, ModelRef, StageResult
from infra.runner import runner
from models.registry import MethodCard, get_method, list_methods
from models.selection import Compute, Selector
from tasks.curate_text import TextPlan, curate_text, write_curated
from tasks.figures import bars, histogram, lines, sample_sheet
from tasks.parameters import check_parameters
from tasks.rowset import Labels, RowReader, Rowset
from tasks.stage import Desk, RunContext, StageConfig, run_stage, stage_task
from tasks.training_rows import strangers, trusted_labels

BASELINES = ("random-subset", "stratified-subset")
"""Drawn into the figure of accuracy against budget, beside the method."""
TEXTS = "survey"
"""The method that looks at texts as such: filters, copies, resampling, evaluation texts."""
FEWEST_JUDGED = 20
"""Labelled rows of the split `test` from which on they are the yardstick."""


class CurateConfig(StageConfig):
    """How rows to train on are chosen."""

    enabled: bool = Field(False, description="Whether the lifecycle chooses rows, between label_noise and pretrain.")
    method: str = Field("stratified-subset", description="Registered name; `clearwell methods curate` lists them.")
    budget: float = Field(
        0.3, gt=0, allow_inf_nan=False, description="Rows to keep: a fraction up to 1, or above 1 a number of rows."
    )
    epochs: int | None = Field(
        None, ge=1, description="Of the training it is for: the budget then counts the rows seen in all of them."
    )
    components: int = Field(
        50, ge=2, description="Principal components kept of wider rows, for methods without network."
    )
    minimum_confidence: float = Field(
        0.5, ge=0, le=1, description="Trust in a corrected label needed to select its row."
    )
    wanted: str = Field(
        "",
        description="For survey: a file with one text a line, like those wanted; rows are then drawn towards them "
        "within the budget. Empty keeps all rows that pass.",
    )
    evaluation: tuple[str, ...] = Field(
        (), description="For survey: files with one evaluation text a line; rows that share a passage are left out."
    )
    curve: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.1, 0.5), description="Further fractions at which the cost of fewer rows is measured; empty leaves it out."
    )


@dataclass(frozen=True)
class Choice:
    """One selection to make: by what method, of which rows, within what budget."""

    method: str
    rows: Rowset
    budget: int | float
    seed: int
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes
    ----------
    kept : bool array, (n,)
    weight : array, (n,)
        Of each row in training; 0 where it is not kept.
    score : array, (n,)
        What rows were ranked by.
    seconds : float
    """

    kept: NDArray[np.bool_]
    weight: NDArray[np.float32]
    score: NDArray[np.float32]
    seconds: float


@stage_task("curate")
def curate(data: DatasetRef, encoder: ModelRef | None, config: CurateConfig, run: RunContext) -> StageResult:
    """Choose rows of the split `train`; a new version says of each whether it is kept, with what weight, and why.

    No row is dropped: later stages train on those whose column `selected` is true.
    """
    files = [file_digest(_text_file(name)) for name in (config.wanted, *config.evaluation) if name]

    def work(desk: Desk) -> None:
        folder = desk.project.versions.path(data)
        schema = ds.infer_schema(folder)
        if config.method == TEXTS:
            _curate_texts(desk, data, folder, schema, config)
        else:
            _curate_rows(desk, data, folder, schema, encoder, config)

    return run_stage("curate", config, {"data": data, "encoder": encoder}, work, run, settings=files or None)


def _curate_rows(
    desk: Desk, data: DatasetRef, folder: Path, schema: ds.Schema, encoder: ModelRef | None, config: CurateConfig
) -> None:
    split = _split(schema)
    train = ds.read_split(folder, split)
    y = trusted_labels(train, config.minimum_confidence)
    stranger = strangers(train)
    usable = np.flatnonzero(y >= 0) if (y >= 0).any() else np.flatnonzero(~stranger)
    if not len(usable):
        raise ConfigurationError(f"No row of {split!r} can be chosen: every one is flagged as a stranger.")
    budget = as_budget(config, len(usable))
    if budget > len(usable):
        raise ConfigurationError(
            f"budget={config.budget:g} asks for more rows than the {len(usable)} that can be chosen. Ask for fewer, or "
            "for a fraction of them."
        )
    network = None if encoder is None else desk.load_network(encoder)
    reader = RowReader(schema, network, config.components).fit([train.select(usable)])
    rows = replace(reader.read([train.select(usable)]), labels=y[usable])
    found = _chosen(Choice(config.method, rows, budget, config.seed, config.parameters))
    columns = _columns(len(train), usable, found, stranger, config.method)

    def write(target: Path) -> int:
        return ds.write_split(ds.with_columns(train, columns), target, split)

    _keep(desk, data, folder, schema, write)
    desk.metrics |= {
        "rows": len(train),
        "usable": len(usable),
        "selected": int(found.kept.sum()),
        "selection_seconds": found.seconds,
    }
    if config.curve and len(np.unique(rows.labels[rows.labels >= 0])) > 1:
        desk.evidence["curve"] = _curve(folder, reader, rows, found, config)
    _show(desk, rows, found, config.method)


def _chosen(choice: Choice) -> Selection:
    """The selection; a method that needs labels and has none is told so in the user's words."""
    try:
        return choose(choice)
    except ValueError as error:
        if (choice.rows.labels >= 0).any() or not str(error).startswith("y must give"):
            raise
        raise ConfigurationError(
            f"No row has a label, and {choice.method} can not do without: {error} Take --method k-centre or "
            "--method random-subset, or label some rows."
        ) from error


def _keep(desk: Desk, data: DatasetRef, folder: Path, schema: ds.Schema, write: Callable[[Path], int]) -> None:
    """A version whose curated split is written anew, and whose other splits are as they were."""
    others = [split for split in schema.splits if split != _split(schema)]

    def whole(target: Path) -> int:
        return write(target) + ds.copy_splits(folder, target, others)

    desk.data = desk.project.versions.add(data.name, whole, source=str(data))


def _split(schema: ds.Schema) -> str:
    """The split whose rows are chosen: `train`, or `unlabelled` where no row has a label."""
    for split in ("train", "unlabelled"):
        if split in schema.splits:
            return split
    raise DatasetFormatError(
        f"Rows are chosen from the split 'train', or from 'unlabelled' without it; the data has "
        f"{', '.join(schema.splits)}. Say in a column 'split' which rows are for what."
    )


def as_budget(config: CurateConfig, n: int) -> int | float:
    """A fraction up to 1, a number of rows above; of `n` rows, what a training may see in each epoch.

    Raises
    ------
    ConfigurationError
        For a training that sees no row so often.
    """
    if config.epochs is None:
        return config.budget if config.budget <= 1 else round(config.budget)
    try:
        return Compute(round(config.budget), config.epochs).rows(n)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def _columns(n: int, usable: Labels, found: Selection, stranger: NDArray[np.bool_], method: str) -> dict[str, Any]:
    kept, weight = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.float32)
    score = np.full(n, np.nan, dtype=np.float32)
    kept[usable], weight[usable], score[usable] = found.kept, found.weight, found.score
    reason = np.where(stranger, "belongs to no class", "has no label that can be trusted").astype(object)
    verdict = np.where(found.kept, "kept", "left out")
    reason[usable] = [
        f"{said} by {method}, score {value:.4g}" for said, value in zip(verdict, found.score, strict=True)
    ]
    return {
        "selected": kept,
        "sample_weight": weight,
        "selection_score": score,
        "selection_reason": [str(said) for said in reason],
    }


# ---- texts as such ------------------------------------------------------------------------------------------


def _curate_texts(desk: Desk, data: DatasetRef, folder: Path, schema: ds.Schema, config: CurateConfig) -> None:
    if schema.kind != "text":
        raise ConfigurationError(
            f"The method {TEXTS!r} looks at texts; {data.name!r} holds rows of kind {schema.kind}."
        )
    began = time.perf_counter()
    split = _split(schema)
    curated = curate_text(folder, split, desk.project.settings.state / "curate_text", text_plan(config))
    seconds = round(time.perf_counter() - began, 3)
    _keep(desk, data, folder, schema, lambda target: write_curated(folder, split, curated, target))
    desk.metrics |= {
        "rows": curated.rows,
        "usable": curated.rows,
        "selected": curated.kept,
        "selection_seconds": seconds,
    }
    desk.evidence["funnel"] = curated.funnel
    if curated.funnel:
        dropped = {f"{row['step']}: {row['rule']}": row["documents"] for row in curated.funnel}
        desk.figure(
            "funnel", bars(dropped, "documents left out"), "What texts were left out for, in the order of steps"
        )


def text_plan(config: CurateConfig) -> TextPlan:
    """What the settings ask of texts; `parameters` are the fields of the plan.

    Raises
    ------
    ConfigurationError
        If a file is not there or holds no text, or a parameter is no field of the plan.
    """
    if config.method != TEXTS:
        if config.wanted or config.evaluation:
            raise ConfigurationError(f"wanted and evaluation are for texts: they go with method={TEXTS}.")
        return TextPlan()
    given = dict(config.parameters)
    unknown = sorted(set(given) - {each.name for each in fields(TextPlan)})
    if unknown:
        known = ", ".join(each.name for each in fields(TextPlan))
        raise ConfigurationError(f"The method {TEXTS!r} has no parameter {unknown[0]!r}. Its parameters: {known}.")
    if "filters" in given:
        given["filters"] = _filters(given["filters"])
    if config.wanted:
        given["target"] = _texts_of(config.wanted)
    if given.get("target"):
        drawn = {"budget": as_budget(config, sys.maxsize), "random_state": config.seed, "target_smoothing": 1.0}
        given["dsir"] = drawn | dict(given.get("dsir", {}))
    if config.evaluation:
        given["evaluation"] = {Path(name).stem: _texts_of(name) for name in config.evaluation}
    return TextPlan(**given)


def _filters(given: Any) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Filters as pairs of a name and parameters; a name alone will do."""
    listed = given if isinstance(given, (list, tuple)) else [None]
    entries: list[Any] = [(each, {}) if isinstance(each, str) else each for each in listed]
    if any(
        not isinstance(each, (list, tuple)) or len(each) != 2 or not isinstance(each[1], Mapping) for each in entries
    ):
        raise ConfigurationError(
            f"filters is a list of names, or of a name and parameters each, got {given!r}. Write it like "
            "--set 'parameters.filters=[gopher-quality, [c4, {terminal_punctuation: false}]]'."
        )
    return tuple((str(name), parameters) for name, parameters in entries)


def _texts_of(name: str) -> tuple[str, ...]:
    try:
        lines = _text_file(name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"The file {name!r} is not UTF-8 text: {error}. Save it as UTF-8.") from None
    texts = tuple(each for each in lines if each.strip())
    if not texts:
        raise ConfigurationError(f"The file {name!r} holds no text. Write one text a line.")
    return texts


def _text_file(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise ConfigurationError(f"There is no file {name!r}. Give a text file with one text a line.")
    return path


# ---- choosing -----------------------------------------------------------------------------------------------


def selectors() -> list[MethodCard]:
    """Methods of the stage that choose rows of numbers or images (others filter text, plan budgets or make rows)."""
    return [card for card in list_methods("curate") if chooses_rows(card)]


def chooses_rows(card: MethodCard) -> bool:
    """Whether a method chooses rows of one dataset by their numbers or pixels."""
    return issubclass(card.cls, Selector) and set(card.accepts) != {"text"}


def check_selector(name: str, parameters: Mapping[str, Any] | None = None) -> MethodCard:
    """The card of a method that chooses rows.

    Raises
    ------
    ConfigurationError
        If there is none of that name, it does something else, or it can not be told these parameters.
    """
    try:
        card = get_method(name, "curate")
    except LookupError as error:
        raise ConfigurationError(str(error)) from None
    if not chooses_rows(card) and card.name != TEXTS:
        known = ", ".join(each.name for each in selectors())
        raise ConfigurationError(
            f"The method {name!r} does not choose rows of one dataset. These do: {known}; and {TEXTS} of texts."
        )
    if parameters and name != TEXTS:
        check_parameters(f"The method {name!r}", card.cls, parameters, ["random_state", "budget"])
    return card


def choose(choice: Choice) -> Selection:
    """Make one selection; runs in whatever process the runner gives it."""
    card = check_selector(choice.method)
    takes = inspect.signature(card.cls).parameters
    parameters = {"budget": choice.budget, **choice.parameters}
    if "random_state" in takes:
        parameters.setdefault("random_state", choice.seed)
    method = card.cls(**parameters)
    rows = choice.rows
    trains = {"model_fn", "network", "backbone", "encoder"} & set(takes)
    X: Any = rows.images if rows.images is not None and trains else rows.matrix
    began = time.perf_counter()
    method.fit(X, rows.labels if (rows.labels >= 0).any() else None)
    seconds = time.perf_counter() - began
    kept = np.zeros(len(rows), dtype=bool)
    weight = getattr(method, "sample_weight_", None)
    if weight is None:
        kept[method.indices_] = True
        weight = kept
    else:
        kept = np.asarray(weight) > 0
    return Selection(
        kept, np.asarray(weight, dtype=np.float32), np.asarray(method.scores_, dtype=np.float32), round(seconds, 3)
    )


# ---- what fewer rows cost -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    choice: Choice
    test: Rowset

    def accuracy(self) -> dict[str, Any]:
        found = choose(self.choice)
        return {
            "method": self.choice.method,
            "budget": float(self.choice.budget),
            "rows": int(found.kept.sum()),
            "seconds": found.seconds,
            "accuracy": _judge(self.choice.rows, found, self.test),
        }


def _curve(
    folder: Path, reader: RowReader, rows: Rowset, found: Selection, config: CurateConfig
) -> list[dict[str, Any]]:
    """Accuracy of a linear classifier on the kept rows, for the method and for chance, at several budgets.

    Measured on the split `test` where it is labelled, else on a fifth of the rows that no selection sees.
    """
    train, test = _held_out(folder, reader, rows, config.seed)
    n = len(train)
    own = found.kept.sum() / len(rows)
    budgets = sorted({*(min(each, 1.0) for each in map(float, config.curve)), round(float(own), 4)})
    budgets = [each for each in budgets if each * n >= 1]
    names = dict.fromkeys((config.method, *BASELINES))
    points = [
        _Point(Choice(name, train, budget, config.seed, config.parameters if name == config.method else {}), test)
        for name in names
        for budget in budgets
        if budget < 1
    ]
    table = runner().map(_Point.accuracy, points)
    whole = Selection(np.ones(n, dtype=bool), np.ones(n, dtype=np.float32), np.zeros(n, dtype=np.float32), 0.0)
    full = {"method": "all rows", "budget": 1.0, "rows": n, "seconds": 0.0, "accuracy": _judge(train, whole, test)}
    return [*table, full]


def _held_out(folder: Path, reader: RowReader, rows: Rowset, seed: int) -> tuple[Rowset, Rowset]:
    from sklearn.model_selection import train_test_split

    if "test" in reader.schema.splits:
        test = reader.read([ds.read_split(folder, "test")], range(reader.schema.n_classes))
        labelled = np.flatnonzero(test.labels >= 0)
        if len(labelled) >= FEWEST_JUDGED:
            return rows, test.take(labelled)
    fit, held = train_test_split(np.flatnonzero(rows.labels >= 0), test_size=0.2, random_state=seed)
    return rows.take(np.sort(fit)), rows.take(np.sort(held))


def _judge(train: Rowset, found: Selection, test: Rowset) -> float:
    from sklearn.linear_model import LogisticRegression

    kept = np.flatnonzero(found.kept & (train.labels >= 0))
    if len(np.unique(train.labels[kept])) < 2:
        return float((test.labels == train.labels[kept][0]).mean()) if len(kept) else 0.0
    model = LogisticRegression(max_iter=200).fit(train.matrix[kept], train.labels[kept], found.weight[kept])
    return float(model.score(test.matrix, test.labels))


# ---- pictures -----------------------------------------------------------------------------------------------


def _show(desk: Desk, rows: Rowset, found: Selection, method: str) -> None:
    finite = np.isfinite(found.score)
    groups = {"kept": found.score[finite & found.kept], "left out": found.score[finite & ~found.kept]}
    desk.figure("scores", histogram(groups, f"score by {method}"), "Scores of the rows kept and left out")
    table: Sequence[Mapping[str, Any]] = desk.evidence.get("curve", ())
    if table:
        full = next(row["accuracy"] for row in table if row["method"] == "all rows")
        series: dict[str, list[tuple[float, float]]] = {}
        for row in table:
            if row["method"] != "all rows":
                series.setdefault(row["method"], []).append((row["budget"], row["accuracy"]))
        figure = lines(series, "share of the rows", "accuracy", level=full, level_name="all rows")
        desk.figure("budget", figure, "What fewer rows cost: accuracy of a linear classifier against the budget")
        desk.metrics["accuracy_all_rows"] = full
        own = [row["accuracy"] for row in table if row["method"] == method]
        desk.metrics |= {f"accuracy_{method}": max(own)} if own else {}
    if rows.images is not None:
        order = np.argsort(-found.score, kind="stable")
        for name, chosen in (("kept", order[found.kept[order]]), ("left_out", order[~found.kept[order]])):
            some = chosen[np.linspace(0, len(chosen) - 1, min(24, len(chosen))).astype(int)] if len(chosen) else chosen
            titles = [f"{found.score[row]:.3g}" for row in some]
            desk.figure(
                name, sample_sheet(rows.images[some], titles), f"Rows {name.replace('_', ' ')}, highest score first"
            )

"""Text curation over the shards of a split: filters, deduplication, resampling, decontamination.

Shards are read part by part and divided over the workers of the runner. What a shard gave is a file, written whole or
not at all: a run that was cut short continues after the shards it finished. Nothing depends on how rows are spread
over shards or workers, as copies are told and noise is drawn by ids.

Passes, each over all shards: ``screen`` (filters, keys of copies, MinHash bands), ``count`` and ``weigh`` (resampling
towards a target, if there is one), ``decide`` (decontamination, and the decision of each row). Between them this
process holds a few hundred bytes a row: ids, lengths, and the keys of one band at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value
from numpy.typing import NDArray

from infra import datasets as ds
from infra.errors import ConfigurationError, DatasetFormatError
from infra.files import file_digest, json_digest
from infra.runner import runner
from models.curate.survey import Decontaminator, Readable, make_step
from models.curate.text_documents import SPLITTER, CorpusFilter, Decision, Document, after
from models.curate.text_hashing import Hashes, jaccard, shingles, text_key, uniform_of
from models.curate.text_minhash import MinHashDedup, band_keys_of, has_words, join_candidates, representatives
from models.curate.text_resampling import DSIR, bucket_counts, gumbel_top, log_ratio, warn_of_small_target
from models.selection import kept_rows
from tasks.parameters import check_parameters

FILTERS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("gopher-repetition", {}),
    ("gopher-quality", {}),
    ("c4", {"terminal_punctuation": False}),
    ("fineweb", {}),
)
DECISION = {
    "selected": Value("bool"),
    "sample_weight": Value("float32"),
    "selection_score": Value("float32"),
    "selection_reason": Value("string"),
}
"""Columns that a curated split has more."""
COPIES = ("exact", "minhash")
"""Steps whose value is the row of the split that stays."""


@dataclass(frozen=True)
class TextPlan:
    """What is to be done; JSON values only, so that it can be told apart from another by a digest.

    Attributes
    ----------
    filters : tuple of (str, mapping)
        Filters that look at one document at a time, with their parameters, in order.
    exact : bool
        Keep one of the documents that differ in case, spaces and punctuation alone.
    minhash : mapping or None
        Parameters of :class:`~models.curate.text_minhash.MinHashDedup`; None leaves near duplicates in.
    target : tuple of str
        Texts as one wants them; without any nothing is resampled.
    dsir : mapping
        Parameters of :class:`~models.curate.text_resampling.DSIR`.
    evaluation : mapping of str to tuple of str
        Benchmarks whose passages must not be in the result.
    decontaminate : mapping
        Parameters of :class:`~models.curate.survey.Decontaminator`.
    """

    filters: tuple[tuple[str, Mapping[str, Any]], ...] = FILTERS
    exact: bool = True
    minhash: Mapping[str, Any] | None = field(default_factory=dict)
    target: tuple[str, ...] = ()
    dsir: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    decontaminate: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextCuration:
    """What came of it.

    Attributes
    ----------
    folder : Path
        Of the results; ``decide/part-*.parquet`` has one row a document in the order of the split: ``id``, ``keep``,
        ``step``, ``rule``, ``value``.
    rows, kept : int
    funnel : list of dict
        ``step``, ``rule`` and how many ``documents`` it dropped, in order.
    keep : array of bool, (rows,)
    """

    folder: Path
    rows: int
    kept: int
    funnel: list[dict[str, Any]]
    keep: NDArray[np.bool_]


@dataclass(frozen=True)
class Shard:
    """One shard, where it is in the split, and where its results go."""

    folder: Path
    split: str
    number: int
    work: Path
    plan: TextPlan
    target: Path | None = None

    def result(self, of: str) -> Path:
        """The file of one pass."""
        return self.work / of / f"part-{self.number:05d}.parquet"

    def source(self) -> ds.Split:
        """To be read part by part."""
        return ds.Split(self.folder, self.split, self.number)

    def documents(self) -> Iterator[list[Document]]:
        """Documents as they lie in the data set; without ids they are numbered through the split."""
        source = self.source()
        names = [name for name in ("id", "text") if name in source.column_names]
        row = 0 if "id" in names else sum(map(ds.rows_of, ds.Split(self.folder, self.split).shards[: self.number]))
        for part in source.parts(names):
            texts = part["text"].cast(pa.large_binary()).to_pylist()  # not every file holds the UTF-8 it promises
            ids = part["id"].to_pylist() if "id" in names else range(row, row + len(part))
            row += len(part)
            yield [
                Document(str(key), (text or b"").decode("utf-8", "surrogateescape"))
                for key, text in zip(ids, texts, strict=True)
            ]

    def current(self) -> Iterator[list[tuple[int, Document]]]:
        """Documents still kept after the filters, as they left them, with their rows in the shard."""
        screened = pq.read_table(self.result("screen"), columns=["keep", "text"])
        keep, texts = screened["keep"].to_pylist(), screened["text"]
        start = 0
        for part in self.documents():
            found = []
            for row, document in enumerate(part, start):
                if keep[row]:
                    text = texts[row].as_py()
                    found.append((row, document if text is None else replace(document, text=text)))
            start += len(part)
            yield found


def curate_text(folder: Path, split: str, work: Path, plan: TextPlan | None = None) -> TextCuration:
    """Decide about every row of a split, shard by shard.

    Parameters
    ----------
    folder : Path
        Of the data set's version.
    split : str
    work : Path
        Results of shards are kept here, in a folder of their own for each plan and input: call it again with the
        same arguments to continue.
    plan : TextPlan, optional

    Raises
    ------
    ConfigurationError
        If a filter is unknown, compares documents, or has a parameter it can not use.
    DatasetFormatError
        If the split has no column ``text``, no rows, or an id twice.
    ValueError
        If more documents are to be drawn than are left.
    """
    plan = plan or TextPlan()
    _check(plan)
    source = ds.Split(folder, split)
    if "text" not in source.column_names:
        raise DatasetFormatError(
            f"The split {split!r} has no column 'text', only {', '.join(source.column_names)}. Name the text so.",
            split=split,
        )
    if not len(source):
        raise DatasetFormatError(f"The split {split!r} holds no rows: there is nothing to curate.", split=split)
    home = work / _digest(source, plan)
    shards = [Shard(folder, split, number, home, plan) for number in range(len(source.shards))]
    _map(screen_shard, shards, "screen")
    dropped = _find_copies(shards, plan)
    if plan.target:
        dropped |= _resample(shards, plan, dropped)
    _write_once(home / "dropped.parquet", lambda: _as_table(dropped))
    _map(decide_shard, shards, "decide")
    return _collect(home, shards)


def write_curated(folder: Path, split: str, curated: TextCuration, target: Path) -> int:
    """Write the split below `target`, each row with what was decided about it; returns how many rows.

    New columns: ``selected``, ``sample_weight`` (1 or 0), ``selection_score`` (what the rule measured) and
    ``selection_reason``. Texts that filters changed are the changed ones where the row is kept.

    Parameters
    ----------
    folder, split
        As given to :func:`curate_text`.
    curated : TextCuration
    target : Path
    """
    shards = [Shard(folder, split, n, curated.folder, TextPlan(), target) for n in range(_shards_of(curated.folder))]
    (target / split).mkdir(parents=True, exist_ok=True)
    return sum(runner().map_shards(write_shard, shards))


# ---- passes over one shard -----------------------------------------------------------------------------------


def screen_shard(shard: Shard) -> int:
    """Filter the documents of a shard, and hash what is left of them."""
    minhash = _minhash(shard.plan)
    filters = [("readable", Readable()), *((name, make_step((name, given))) for name, given in shard.plan.filters)]
    tables = []
    for part in shard.documents():
        rows = [_screen(document, filters) for document in part]
        texts = [text or "" for _, _, text in rows]
        columns: dict[str, Any] = {
            "id": [document.id for document in part],
            "keep": [text is not None for _, _, text in rows],
            "step": [step for step, _, _ in rows],
            "rule": [decision.rule for _, decision, _ in rows],
            "value": [decision.value for _, decision, _ in rows],
            "text": [
                text if text is not None and text != document.text else None
                for document, (_, _, text) in zip(part, rows, strict=True)
            ],
            "length": [len(text) for text in texts],
            "told": [has_words(text) for text in texts],
            "key": pa.array(np.array([text_key(text) for text in texts], dtype=np.uint64)),
        }
        if minhash is not None:
            keys = _bands(minhash, texts)
            columns |= {f"band{band}": pa.array(keys[:, band]) for band in range(minhash.bands)}
        tables.append(pa.table(columns).cast(_screen_schema(minhash)))
    return _write_once(
        shard.result("screen"), lambda: pa.concat_tables([_screen_schema(minhash).empty_table(), *tables])
    )


def count_shard(shard: Shard) -> int:
    """Count the hashed n-grams of the documents still kept."""
    dsir = _dsir(shard.plan)
    dropped = _dropped_rows(shard)
    total = np.zeros(dsir.buckets, dtype=np.int64)
    for part in shard.current():
        texts = [document.text for row, document in part if row not in dropped]
        counts, _ = bucket_counts(texts, dsir.ngrams, dsir.buckets, dsir.hash)
        total += np.asarray(counts.sum(axis=0)).ravel()
    return _write_once(shard.result("count"), lambda: pa.table({"count": total}))


def weigh_shard(shard: Shard) -> int:
    """Log weights of the documents still kept and long enough."""
    dsir = _dsir(shard.plan)
    ratio = pq.read_table(shard.work / "ratio.parquet")["log_ratio"].to_numpy()
    dropped = _dropped_rows(shard)
    rows: list[int] = []
    weights: list[float] = []
    for part in shard.current():
        left = [(row, document.text) for row, document in part if row not in dropped]
        counts, lengths = bucket_counts((text for _, text in left), dsir.ngrams, dsir.buckets, dsir.hash)
        found = counts @ ratio
        if dsir.length_normalised:
            found = found / np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
        long_enough = np.flatnonzero(lengths >= dsir.min_tokens)
        rows += [left[place][0] for place in long_enough]
        weights += found[long_enough].tolist()
    table = {"row": pa.array(rows, pa.int64()), "weight": pa.array(weights, pa.float64())}
    return _write_once(shard.result("weigh"), lambda: pa.table(table))


def decide_shard(shard: Shard) -> int:
    """Look for evaluation texts in what is left, and write the decision of every row."""
    table = pq.read_table(shard.result("screen"), columns=["id", "keep", "step", "rule", "value"])
    columns = {name: table[name].to_pylist() for name in table.column_names}
    texts: dict[int, str] = {}
    dropped = _dropped_rows(shard)

    def drop(row: int, step: str, rule: str, value: float) -> None:
        for name, cell in zip(("keep", "step", "rule", "value"), (False, step, rule, value), strict=True):
            columns[name][row] = cell

    for row, (step, rule, value) in dropped.items():
        drop(row, step, rule, value)
    if shard.plan.evaluation:
        step = Decontaminator(shard.plan.evaluation, **shard.plan.decontaminate).prepare([])
        for part in shard.current():
            for row, document in part:
                decision = step.check(document) if columns["keep"][row] else None
                if decision is not None and not decision.keep:
                    drop(row, "decontaminate", decision.rule, decision.value)
                elif decision is not None and decision.replacement_text is not None:
                    texts[row] = decision.replacement_text
    columns["text"] = [texts.get(row) for row in range(len(columns["id"]))]
    schema = pa.schema({
        "id": pa.string(), "keep": pa.bool_(), "step": pa.string(), "rule": pa.string(), "value": pa.float64(),
        "text": pa.string(),
    })  # fmt: skip
    return _write_once(shard.result("decide"), lambda: pa.table(columns, schema=schema))


def write_shard(shard: Shard) -> int:
    """Write the rows of one shard with what was decided about them; returns how many."""
    assert shard.target is not None
    decided = pq.read_table(shard.result("decide"))
    screened = pq.read_table(shard.result("screen"), columns=["text"])["text"]
    texts = pa.compute.coalesce(decided["text"], screened)
    source = shard.source()
    schema = Features({**source.features, **DECISION}).arrow_schema
    start = 0
    with pq.ParquetWriter(shard.target / shard.split / f"part-{shard.number:05d}.parquet", schema) as writer:
        for part in source.parts():
            said = decided.slice(start, len(part))
            changed = pa.compute.if_else(said["keep"], texts.slice(start, len(part)), None)
            columns = {name: part[name] for name in source.column_names}
            columns["text"] = pa.compute.coalesce(changed.cast(part["text"].type), part["text"])
            columns |= _verdicts(said)
            writer.write_table(pa.table(columns).select(schema.names).cast(schema))
            start += len(part)
    return start


def _verdicts(said: pa.Table) -> dict[str, Any]:
    keep = said["keep"].to_pylist()
    reasons = [
        "kept" if kept else f"{step}: {rule} of row {value:.0f}" if step in COPIES else f"{step}: {rule}, {value:.4g}"
        for kept, step, rule, value in zip(keep, *(said[n].to_pylist() for n in ("step", "rule", "value")), strict=True)
    ]
    return {
        "selected": said["keep"],
        "sample_weight": pa.array(np.asarray(keep, dtype=np.float32)),
        "selection_score": said["value"].cast(pa.float32()),
        "selection_reason": reasons,
    }


# ---- between the passes --------------------------------------------------------------------------------------

Drops = dict[int, tuple[str, str, float]]
"""Row of the split -> step, rule and value that drop it."""


def _find_copies(shards: list[Shard], plan: TextPlan) -> Drops:
    """Rows that repeat another one, which stays."""
    ids = _column(shards, "id")
    if len(set(ids)) < len(ids):
        twice = next(key for key, number in Counter(ids).items() if number > 1)
        raise DatasetFormatError(f"The id {twice!r} comes twice. Give every row an id of its own.", id=twice)
    left = np.flatnonzero(np.array(_column(shards, "keep"), dtype=bool))
    dropped: Drops = {}
    if plan.exact:
        keys = _numbers(shards, "key")
        first: dict[int, int] = {}
        for row in sorted(left.tolist(), key=lambda row: ids[row]):
            kept = first.setdefault(int(keys[row]), row)
            if kept != row:
                dropped[row] = ("exact", "duplicate", float(kept))
        left = np.array([row for row in left.tolist() if row not in dropped], dtype=np.int64)
    minhash = _minhash(plan)
    if minhash is not None and len(left):
        dropped |= _near_copies(shards, minhash, ids, left)
    return dropped


def _near_copies(shards: list[Shard], minhash: MinHashDedup, ids: list[str], left: NDArray[np.int64]) -> Drops:
    told = left[np.array(_column(shards, "told"), dtype=bool)[left]]
    lengths = np.array(_column(shards, "length"), dtype=np.int64)

    def bands() -> Iterator[Hashes]:
        return (_numbers(shards, f"band{band}") for band in range(minhash.bands))

    similar = None if minhash.verify is None else _comparison(shards, minhash, _in_a_bucket(bands(), told))
    labels = join_candidates(bands(), len(ids), similar, told).labels()
    confirmed = None if similar is None else lambda first, second: similar(int(told[first]), int(told[second]))
    kept = told[representatives(labels[told], lengths[told], [ids[row] for row in told], confirmed)]
    return {
        int(row): ("minhash", "near_duplicate", float(stays))
        for row, stays in zip(told, kept, strict=True)
        if row != stays
    }


def _in_a_bucket(bands: Iterator[Hashes], told: NDArray[np.int64]) -> set[int]:
    found: set[int] = set()
    for keys in bands:
        _, inverse, counts = np.unique(keys[told], return_inverse=True, return_counts=True)
        found.update(told[counts[inverse] > 1].tolist())
    return found


def _comparison(shards: list[Shard], minhash: MinHashDedup, wanted: set[int]) -> Callable[[int, int], bool]:
    """Whether two of the `wanted` rows are as similar as asked; the shingles of these alone are held."""
    held: dict[int, Hashes] = {}
    for shard, start in zip(shards, _starts(shards), strict=True):
        for part in shard.current():
            for row, document in part:
                if start + row in wanted:
                    held[start + row] = shingles(document.text, minhash.ngram, minhash.min_words)
    least = float(minhash.verify or 0)
    return lambda first, second: bool(jaccard(held[first], held[second]) >= least)


def _resample(shards: list[Shard], plan: TextPlan, dropped: Drops) -> Drops:
    """Rows that were not drawn, and those too short to be."""
    home, dsir = shards[0].work, _dsir(plan)
    _write_once(home / "copies.parquet", lambda: _as_table(dropped))
    _map(count_shard, shards, "count")
    raw = np.sum([pq.read_table(shard.result("count"))["count"].to_numpy() for shard in shards], axis=0)
    target, lengths = bucket_counts(plan.target, dsir.ngrams, dsir.buckets, dsir.hash)
    warn_of_small_target(int(lengths.sum()), dsir.target_smoothing, dsir.buckets)
    wanted = np.asarray(target.sum(axis=0)).ravel()
    if not raw.sum() or not wanted.sum():
        raise ValueError(f"{'The target' if raw.sum() else 'What the filters left'} holds no words to compare by.")
    ratio = log_ratio(wanted, raw, dsir.target_smoothing)
    _write_once(home / "ratio.parquet", lambda: pa.table({"log_ratio": ratio}))
    _map(weigh_shard, shards, "weigh")
    found = [pq.read_table(shard.result("weigh")) for shard in shards]
    starts = _starts(shards)
    rows = np.concatenate([t["row"].to_numpy() + start for t, start in zip(found, starts, strict=True)]).astype(
        np.int64
    )
    weights = np.concatenate([table["weight"].to_numpy() for table in found])
    keep = kept_rows(dsir.budget, len(rows), of=f"documents of at least {dsir.min_tokens} tokens")
    ids = _column(shards, "id")
    if dsir.top_k:
        chosen = np.argsort(-weights, kind="stable")[:keep]
    else:
        chosen = gumbel_top(weights, keep, uniform_of([ids[row] for row in rows], dsir.random_state))
    drawn = set(rows[chosen].tolist())
    weight_of = dict(zip(rows.tolist(), weights.tolist(), strict=True))
    left = np.flatnonzero(np.array(_column(shards, "keep"), dtype=bool)).tolist()
    return {
        row: ("dsir", "not_drawn" if row in weight_of else "min_tokens", weight_of.get(row, 0.0))
        for row in left
        if row not in drawn and row not in dropped
    }


def _collect(home: Path, shards: list[Shard]) -> TextCuration:
    tables = [pq.read_table(shard.result("decide"), columns=["keep", "step", "rule"]) for shard in shards]
    table = pa.concat_tables(tables)
    keep = np.array(table["keep"].to_pylist(), dtype=bool)
    fallen = Counter(
        (step, rule)
        for kept, step, rule in zip(keep, table["step"].to_pylist(), table["rule"].to_pylist(), strict=True)
        if not kept
    )
    order = ["readable", *(name for name, _ in shards[0].plan.filters), "exact", "minhash", "dsir", "decontaminate"]
    funnel = [
        {"step": step, "rule": rule, "documents": number}
        for (step, rule), number in sorted(fallen.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
    return TextCuration(home, len(keep), int(keep.sum()), funnel, keep)


# ---- small parts ---------------------------------------------------------------------------------------------


def _check(plan: TextPlan) -> None:
    """Refuse a plan that can not be carried out before anything is read."""
    try:
        for name, given in plan.filters:
            check_parameters(f"The filter {name!r}", type(make_step(name)), given)
            step = make_step((name, given))
            if isinstance(step, (CorpusFilter, Decontaminator)):
                raise ValueError(
                    f"The step {name!r} does not look at one document at a time. Near and exact duplicates, resampling "
                    "and decontamination have fields of their own in the plan; others run in memory, see "
                    "models.curate.survey."
                )
            step._validate_params()
        for what, cls, told in (("minhash", MinHashDedup, plan.minhash), ("dsir", DSIR, plan.dsir)):
            if told is not None:
                check_parameters(f"The step {what!r}", cls, told)
        if plan.evaluation:
            check_parameters("The step 'decontaminate'", Decontaminator, plan.decontaminate)
    except ConfigurationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error


def _minhash(plan: TextPlan) -> MinHashDedup | None:
    return None if plan.minhash is None else MinHashDedup(**plan.minhash)


def _dsir(plan: TextPlan) -> DSIR:
    return DSIR(**plan.dsir)


def _bands(minhash: MinHashDedup, texts: list[str]) -> Hashes:
    return band_keys_of(
        texts,
        ngram=minhash.ngram, bands=minhash.bands, rows=minhash.rows,
        min_words=minhash.min_words, seed=minhash.random_state,
    )  # fmt: skip


def _screen(document: Document, filters: list[tuple[str, Any]]) -> tuple[str, Decision, str | None]:
    """The step that drops a document and its decision, or its text when none does."""
    current = document
    for name, step in filters:
        decision = step.check(current)
        left = after(current, decision)
        if left is None:
            return name, decision, None
        current = left
    return "", Decision(True), current.text


def _screen_schema(minhash: MinHashDedup | None) -> pa.Schema:
    bands = 0 if minhash is None else minhash.bands
    return pa.schema({
        "id": pa.string(), "keep": pa.bool_(), "step": pa.string(), "rule": pa.string(), "value": pa.float64(),
        "text": pa.string(), "length": pa.int64(), "told": pa.bool_(), "key": pa.uint64(),
        **{f"band{band}": pa.uint64() for band in range(bands)},
    })  # fmt: skip


def _digest(source: ds.Split, plan: TextPlan) -> str:
    """Name of the results: of the plan, the version of the splitter, and the bytes of the shards."""
    shards = [file_digest(path) for path in source.shards]
    return json_digest([asdict(plan), SPLITTER, source.name, shards])[:16]


def _map(function: Callable[[Shard], int], shards: list[Shard], of: str) -> None:
    """`function` of the shards that have no result of that pass yet."""
    (shards[0].work / of).mkdir(parents=True, exist_ok=True)
    runner().map_shards(function, [shard for shard in shards if not shard.result(of).exists()])


def _write_once(path: Path, table: Callable[[], pa.Table]) -> int:
    """Write a table whole or not at all, unless it is there; returns its rows."""
    if path.exists():
        return ds.rows_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made, draft = table(), path.with_suffix(".draft")
    pq.write_table(made, draft, compression="zstd")
    draft.replace(path)
    return int(made.num_rows)


def _column(shards: list[Shard], name: str) -> list[Any]:
    return [
        value for shard in shards for value in pq.read_table(shard.result("screen"), columns=[name])[name].to_pylist()
    ]


def _numbers(shards: list[Shard], name: str) -> Hashes:
    return np.concatenate(
        [pq.read_table(shard.result("screen"), columns=[name])[name].to_numpy() for shard in shards]
    ).astype(np.uint64)


def _starts(shards: list[Shard]) -> list[int]:
    """Row of the split at which each shard starts."""
    counts = [ds.rows_of(shard.result("screen")) for shard in shards]
    return [sum(counts[:number]) for number in range(len(counts))]


def _shards_of(home: Path) -> int:
    return len(list((home / "decide").glob("part-*.parquet")))


def _as_table(dropped: Drops) -> pa.Table:
    rows = sorted(dropped)
    return pa.table({
        "row": pa.array(rows, pa.int64()),
        "step": pa.array([dropped[row][0] for row in rows], pa.string()),
        "rule": pa.array([dropped[row][1] for row in rows], pa.string()),
        "value": pa.array([dropped[row][2] for row in rows], pa.float64()),
    })  # fmt: skip


def _dropped_rows(shard: Shard) -> Drops:
    """What was dropped between the passes, by the row in the shard."""
    found = shard.work / "dropped.parquet"
    path = found if found.exists() else shard.work / "copies.parquet"
    siblings = [replace(shard, number=number) for number in range(shard.number)]
    start = sum(ds.rows_of(sibling.result("screen")) for sibling in siblings)
    stop = start + ds.rows_of(shard.result("screen"))
    table = pq.read_table(path, filters=[("row", ">=", start), ("row", "<", stop)])
    return {
        row - start: (step, rule, value)
        for row, step, rule, value in zip(
            *(table[n].to_pylist() for n in ("row", "step", "rule", "value")), strict=True
        )
    }

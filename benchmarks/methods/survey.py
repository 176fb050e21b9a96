"""Evidence of the text pipeline: filters against a literal reading of the rules, decontamination, shards."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import package_descriptions
from benchmarks.evidence import Evidence
from models.curate.survey import Decontaminator, Step, TextCurationPipeline
from models.curate.taxonomy import Taxonomy
from models.curate.text_documents import Document, sentences, simplified_words, words
from models.curate.text_filters import C4Filter, FineWebFilter, GopherQuality, GopherRepetition
from tasks.curate_text import TextPlan, curate_text

CHECKED = 5000


def joined_by_source() -> list[str]:
    """The descriptions of each source package, joined: documents of the length the rules were made for."""
    frame = package_descriptions()
    groups = frame.groupby("source", sort=True)["description"]
    return [str(text) for text in groups.agg(lambda column: "\n\n".join(dict.fromkeys(column)))]


# ---- the rules once more, read off word by word and slowly -----------------------------------------------------


def literal_gopher_quality(text: str) -> str:
    """The first rule broken, or nothing."""
    found = words(text)
    plain = [w for w in found if re.match(r"\w", w)]
    n = len(plain)
    if n < 50:
        return "min_words"
    if n > 100_000:
        return "max_words"
    average = sum(len(w) for w in plain) / n
    if average < 3:
        return "min_mean_length"
    if average > 10:
        return "max_mean_length"
    if len([c for c in text if c == "#"]) / len(found) > 0.1:
        return "hash_ratio"
    if (len(re.findall(r"\.\.\.", text)) + len(re.findall("…", text))) / len(found) > 0.1:
        return "ellipsis_ratio"
    rows = text.splitlines()
    if len([r for r in rows if re.match(r"\s*[•-]", r)]) / len(rows) > 0.9:
        return "bullet_lines"
    if len([r for r in rows if re.search(r"(\.\.\.|…)\s*$", r)]) / len(rows) > 0.3:
        return "ellipsis_lines"
    if len([w for w in found if re.search(r"[^\W\d_]", w)]) / len(found) < 0.8:
        return "letter_words"
    lower = [w.lower() for w in plain]
    present = [w for w in ("the", "be", "to", "of", "and", "that", "have", "with") if w in lower]
    return "stop_words" if len(present) < 2 else ""


def literal_gopher_repetition(text: str) -> str:
    """The first rule broken, or nothing."""
    for name, parts in (("line", re.split(r"\n+", text)), ("paragraph", re.split(r"\n{2,}", text.strip()))):
        again = [part for place, part in enumerate(parts) if part in parts[:place]]
        if len(again) / len(parts) > 0.30:
            return f"duplicate_{name}s"
        if len("".join(again)) / len(text) > 0.20:
            return f"duplicate_{name}_characters"
    found = words(text)
    for n, limit in ((2, 0.20), (3, 0.18), (4, 0.16)):
        grams = [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]
        if grams:
            counts = {gram: 0 for gram in grams}
            for gram in grams:
                counts[gram] += 1
            most = max(counts.values())
            if max(len(gram) * most for gram in counts if counts[gram] == most) / len(text) > limit:
                return f"top_{n}_gram"
    for n, limit in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True):
        place = total = 0
        known: set[str] = set()
        while place < len(found) - n + 1:
            gram = "\0".join(found[place : place + n])
            if gram in known:
                total += len(gram) - (n - 1)
                place += n
            else:
                known.add(gram)
                place += 1
        if total / len(text) > limit:
            return f"repeated_{n}_grams"
    return ""


def literal_c4(text: str) -> str:
    """The rule that drops the document, "lines_cut" or nothing."""
    kept, cut = [], False
    for row in text.splitlines():
        line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", row).strip()
        low = line.lower()
        if (
            any(len(w) > 1000 for w in row.split())
            or not re.search(r"[.?!\"']$", line)
            or re.search(r"(\.\.\.|…)$", line)
            or len(row.split()) < 3
            or re.search(
                "javascript|terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", low
            )
        ):
            cut = True
            continue
        if "lorem ipsum" in low:
            return "lorem_ipsum"
        if "{" in low:
            return "curly_bracket"
        kept.append(line)
    if len(sentences("\n".join(kept))) < 5:
        return "min_sentences"
    return "lines_cut" if cut or "\n".join(kept) != text else ""


def literal_fineweb(text: str) -> str:
    """The first rule broken, or nothing."""
    rows = [row for row in text.split("\n") if row.strip()]
    if len([r for r in rows if re.search(r"[.?!\"'。！？]\s*$", r)]) / len(rows) < 0.12:
        return "terminal_lines"
    if len([r for r in rows if len(r) <= 30]) / len(rows) > 0.67:
        return "short_lines"
    again = [row for place, row in enumerate(rows) if row in rows[:place]]
    if len("".join(again)) / len(text.replace("\n", "")) > 0.01:
        return "duplicate_characters"
    return "newlines_per_word" if text.count("\n") / len(words(text)) > 0.3 else ""


RULES: dict[str, tuple[Any, Callable[[str], str]]] = {
    "gopher-quality": (GopherQuality(), literal_gopher_quality),
    "gopher-repetition": (GopherRepetition(), literal_gopher_repetition),
    "c4": (C4Filter(), literal_c4),
    "fineweb": (FineWebFilter(), literal_fineweb),
}


# ---- what is measured ------------------------------------------------------------------------------------------


def agreement(texts: list[str]) -> list[dict[str, Any]]:
    """How often each filter names the same rule as its literal reading, and how fast it is."""
    rows = []
    for name, (step, literal) in RULES.items():
        started = time.perf_counter()
        found = [step.check(Document(str(i), text)).rule for i, text in enumerate(texts)]
        seconds = time.perf_counter() - started
        same = [rule == literal(text) for rule, text in zip(found, texts, strict=True)]
        rows.append({
            "filter": name,
            "documents": len(texts),
            "equal": float(np.mean(same)),
            "flagged": round(float(np.mean([rule != "" for rule in found])), 4),
            "rows a second on one core": round(len(texts) / seconds),
        })  # fmt: skip
    return rows


def decontamination(texts: list[str], seed: int) -> dict[str, float]:
    """Share of planted 12-grams found, and of documents wrongly dropped whose words are an exam's in another order."""
    random = np.random.default_rng(seed)
    rows = random.permutation([row for row, text in enumerate(texts) if len(simplified_words(text)) >= 40])
    exam = [texts[row] for row in rows[:500]]
    clean = Decontaminator({"exam": exam})
    others = [texts[row] for row in rows[500:4500]]
    others = [others[row] for row in clean.fit(others).indices_]  # some packages share text with those of the exam
    planted = []
    for number, text in enumerate(others[:2000]):
        tokens = simplified_words(exam[number % 500])
        start = int(random.integers(len(tokens) - 11))
        planted.append(f"{text} {' '.join(tokens[start : start + 12]).upper()}!")
    shuffled = [" ".join(random.permutation(simplified_words(text))) for text in exam]
    return {
        "recall": 1 - len(clean.fit(planted).indices_) / len(planted),
        "false drops": 1 - len(clean.fit(shuffled).indices_) / len(shuffled),
        "clean documents dropped": 1 - len(clean.fit(others).indices_) / len(others),
    }


def over_shards(texts: list[str]) -> tuple[list[dict[str, Any]], bool, bool]:
    """Default filters and deduplication in memory and over Parquet shards; whether both, and a restart, agree."""
    plan = TextPlan()
    steps: list[Step] = [*plan.filters, "exact", "minhash"]
    documents = [{"id": f"{row:06d}", "text": text} for row, text in enumerate(texts)]
    started = time.perf_counter()
    pipeline = TextCurationPipeline(steps).fit(documents)
    seconds = time.perf_counter() - started
    rows = [
        {"way": "in memory", "seconds": round(seconds, 1), "rows a second on one core": round(len(texts) / seconds)}
    ]
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "data" / "train"
        split.mkdir(parents=True)
        size = -(-len(texts) // 8)
        for number in range(8):
            pq.write_table(
                pa.Table.from_pylist(documents[number * size : (number + 1) * size]),
                split / f"part-{number:05d}.parquet",
            )
        started = time.perf_counter()
        curated = curate_text(split.parent, "train", Path(folder) / "work", plan)
        seconds = time.perf_counter() - started
        rows.append(
            {"way": "8 shards", "seconds": round(seconds, 1), "rows a second on one core": round(len(texts) / seconds)}
        )
        same = np.array_equal(np.flatnonzero(curated.keep), pipeline.indices_)
        for number in (5, 6, 7):  # what a run that was cut short had not finished
            for of in ("screen", "decide"):
                (curated.folder / of / f"part-{number:05d}.parquet").unlink()
        (curated.folder / "dropped.parquet").unlink()
        started = time.perf_counter()
        again = curate_text(split.parent, "train", Path(folder) / "work", plan)
        seconds = time.perf_counter() - started
        rows.append({"way": "8 shards, 5 of them finished before", "seconds": round(seconds, 1)})
        return rows, bool(same), bool(np.array_equal(again.keep, curated.keep) and again.funnel == curated.funnel)


def collect(evidence: Evidence) -> None:
    """Filters, decontamination, shards and the funnel of the default pipeline."""
    release = package_descriptions().attrs["release"]
    texts = joined_by_source()
    evidence.uses(f"descriptions of the packages of {release}, joined by source package ({len(texts):,} documents)")
    random = np.random.default_rng(0)
    chosen = [texts[row] for row in random.permutation(len(texts))[:CHECKED]]
    rows = agreement(chosen)
    for row in rows:
        evidence.check(
            f"{row['filter']}: decisions equal to a literal reading of the rules", row["equal"], at_least=1.0
        )
    evidence.table("filters", rows)
    found = [decontamination(texts, seed) for seed in evidence.seeds]
    evidence.check("decontamination: recall of planted 12-grams", [each["recall"] for each in found], at_least=1.0)
    evidence.check(
        "decontamination: documents of an exam's words in another order dropped",
        [x["false drops"] for x in found],
        at_most=0.0,
    )
    evidence.table(
        "decontamination",
        [{"seed": s} | {k: round(v, 5) for k, v in x.items()} for s, x in zip(evidence.seeds, found, strict=True)],
    )
    ways, same, restarted = over_shards(texts)
    evidence.check("rows kept over 8 Parquet shards are those kept in memory (1 = all)", float(same), at_least=1.0)
    evidence.check("a run continued after 5 of 8 shards ends the same (1 = all)", float(restarted), at_least=1.0)
    evidence.table(f"{len(texts):,} documents through the default filters and deduplication", ways)
    report = TextCurationPipeline().run(texts)
    evidence.table(
        "funnel of the default pipeline",
        [
            {"step": row["step"], "before": row["before"], "kept": row["kept"], "changed": row["changed"],
             "rules": ", ".join(f"{rule} {number}" for rule, number in row["rules"].items())}
            for row in report.funnel
        ],
    )  # fmt: skip
    evidence.check("methods on the map of selection", float(len(Taxonomy.load())), at_least=60)

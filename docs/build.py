"""Write the pages of the documentation that follow from code and measurements.

python -m docs.build            the pages of docs/generated: methods, parameters, command line, main job
python -m docs.build --readme   the figures of README.md, from benchmarks/results/main_job.json
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.cli import EXIT_CODES, app
from flows.config import LifecycleConfig
from infra.settings import Gate, Registry, Settings, Tracking
from models.registry import MethodCard, list_methods
from tasks.evaluate import LOWER_IS_BETTER, ROWS

ROOT = Path(__file__).parents[1]
GENERATED = ROOT / "docs" / "generated"
RESULTS = ROOT / "benchmarks" / "results"
TOP = ("ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
MARKS = ("<!-- main-job -->", "<!-- /main-job -->")


def pages(results: Path = RESULTS) -> dict[str, str]:
    """Path below docs/generated -> text, for every generated page."""
    cards = list_methods()
    found = {"methods.md": methods_page(cards, results), "parameters.md": parameters_page()}
    found |= {"command-line.md": command_page(), "main-job.md": "# The main job, measured\n\n" + main_job(results)}
    found |= {f"methods/{card.name}.md": method_page(card, _evidence(card.name, results)) for card in cards}
    return found | {name.lower(): _moved((ROOT / name).read_text()) for name in TOP}


def write(target: Path = GENERATED) -> None:
    """Write every generated page below `target`, in place of what was there."""
    shutil.rmtree(target, ignore_errors=True)
    for name, text in pages().items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def fill_readme(text: str, results: Path = RESULTS) -> str:
    """The README with the figures between its marks replaced by those of `results`."""
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    return f"{before}{MARKS[0]}\n{main_job(results)}{MARKS[1]}{after}"


# ---- methods and their evidence ----------------------------------------------------------------------------


def methods_page(cards: Sequence[MethodCard], results: Path) -> str:
    """Every registered method with what was measured of it."""
    rows = [
        {
            "stage": card.stage,
            "method": f"[`{card.name}`](methods/{card.name}.md)",
            "what for": card.summary,
            "takes": ", ".join(card.accepts),
            "paper": f"[{card.paper}]({card.link}), {card.year}",
            "evidence": verdict(_evidence(card.name, results)),
        }
        for card in cards
    ]
    return (
        "# Methods\n\nEvery method a stage can use, from the registry. *Evidence* counts the bounds that were checked "
        "on real data; each method's page shows them all, the ones that fall short included. "
        "[How evidence is made](../evidence.md).\n\n" + table(rows)
    )


def verdict(evidence: dict[str, Any] | None) -> str:
    """How many checks hold, in words."""
    if evidence is None:
        return "not measured yet"
    held, total = sum(c["holds"] for c in evidence["checks"]), len(evidence["checks"]) + len(evidence["not_run"])
    return f"{held} of {total} checks hold"


def method_page(card: MethodCard, evidence: dict[str, Any] | None) -> str:
    """One method: where it comes from, how it is used, what was measured."""
    module, name = card.cls.__module__, card.cls.__qualname__
    parts = [
        f"# {card.name}\n\n{card.summary.rstrip('.')}.",
        table(
            [
                {"": "Stage", " ": f"[{card.stage}]({_stage_page(card.stage)})"},
                {"": "Paper", " ": f"[{card.paper}]({card.link}), {card.year}"},
                {"": "Takes", " ": ", ".join(card.accepts)},
                {"": "Licence of the authors' code", " ": card.licence},
                {"": "Class", " ": f"`from {module} import {name}`"},
                {"": "Evidence", " ": verdict(evidence)},
            ]
        ),
        "## Evidence\n\n" + _evidence_section(evidence, card.name),
        f"## The class\n\n```text\n{name}{inspect.signature(card.cls)}\n\n{inspect.getdoc(card.cls)}\n```\n",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _evidence_section(evidence: dict[str, Any] | None, name: str) -> str:
    if evidence is None:
        return f"Not measured yet. `clearwell reproduce {name}` measures it."
    environment = ", ".join(f"{key} {value}" for key, value in evidence["environment"].items())
    rows = [
        {
            "check": check["name"],
            "bound": check["bound"],
            "measured": _figure(check["measured"]),
            "each seed": ", ".join(_figure(value) for value in check["per_seed"]),
            "verdict": "holds" if check["holds"] else "**falls short**",
        }
        for check in evidence["checks"]
    ]
    rows += [{"check": m["name"], "verdict": f"**not run**: {m['reason']}"} for m in evidence["not_run"]]
    parts = [
        f"Measured with `{evidence['command']}`: seeds {', '.join(map(str, evidence['seeds']))}, "
        f"{evidence['seconds']:,.0f} s, {environment}.",
        "\n".join(["Data:", "", *(f"- {text}" for text in evidence["data"])]) if evidence["data"] else "",
        table(rows, ("check", "bound", "measured", "each seed", "verdict")),
        "\n".join(f"- **{c['name']}**: {c['note']}" for c in evidence["checks"] if c["note"]),
        *(f"### {title}\n\n{table(given)}" for title, given in evidence["tables"].items()),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part)


def _evidence(name: str, results: Path) -> dict[str, Any] | None:
    path = results / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _stage_page(stage: str) -> str:
    page = f"stages/{stage.replace('_', '-')}.md"
    return f"../../{page}" if (ROOT / "docs" / page).exists() else "../methods.md"


# ---- parameters, settings, commands ------------------------------------------------------------------------


def parameters_page() -> str:
    """Every flow parameter and every setting, from the models that check them."""
    text = "# Parameters and settings\n\n## Parameters of the flow\n\n"
    text += "Set one with `clearwell run --set NAME=VALUE`, or in a [YAML file](../configuration.md).\n\n"
    text += table(_fields(LifecycleConfig, scalars_only=True))
    for name, field in LifecycleConfig.model_fields.items():
        config = getattr(LifecycleConfig(), name)
        if isinstance(config, BaseModel):
            stage = field.alias or name
            doc = inspect.getdoc(type(config)) or ""
            text += f"\n### {stage}\n\n{doc}\n\n{table(_fields(type(config), f'{stage}.'))}"
    text += "\n## Settings in mlflow.yaml\n\n" + table(_fields(Settings, scalars_only=True, leave_out=("root",)))
    for name, model in (("tracking", Tracking), ("registry", Registry), ("gates[]", Gate)):
        text += f"\n### {name}\n\n{inspect.getdoc(model)}\n\n{table(_fields(model, f'{name}.'))}"
    return text


def _fields(
    model: type[BaseModel], prefix: str = "", scalars_only: bool = False, leave_out: Sequence[str] = ()
) -> list[dict[str, str]]:
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        if name in leave_out or (scalars_only and isinstance(default, BaseModel)):
            continue
        shown = default if default == "required" else f"`{json.dumps(default, default=str)}`"
        row = {"name": f"`{prefix}{field.alias or name}`", "default": shown, "meaning": field.description or ""}
        rows.append(row)
    return rows


def command_page() -> str:
    """Every command with its arguments, as ``--help`` knows them."""
    from typer.main import get_command

    text = "# Command line\n\n" + _sentences(EXIT_CODES)
    text += "\n\nEvery command that takes `--json` prints one JSON document on standard output.\n"
    group = get_command(app)
    for path, command in _commands("clearwell", group):
        given = [p for p in command.params if p.name != "help"]
        usage = " ".join([path, *(_usage(p) for p in given if p.param_type_name == "argument")])
        text += (
            f"\n## {path}\n\n```text\n{usage}{' [OPTIONS]' if given else ''}\n```\n\n{_sentences(command.help or '')}\n"
        )
        rows = [{"option": f"`{_usage(p)}`", "default": _default(p), "meaning": p.help or ""} for p in given]
        text += f"\n{table(rows)}" if rows else ""
    return text


def _commands(path: str, command: Any) -> Iterable[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from _commands(f"{path} {name}", inner)


def _usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.name.upper()
        return name if parameter.required else f"[{name}]"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'VALUE'}"


def _default(parameter: Any) -> str:
    value = parameter.default
    return "" if value is None or value is False or callable(value) else f"`{value}`" if value else ""


# ---- the main job ------------------------------------------------------------------------------------------


def main_job(results: Path) -> str:
    """Naive model against chain, times and memory, as ``make bench`` measured them."""
    path = results / "main_job.json"
    if not path.exists():
        return "Not measured yet on this version: `make bench` writes the figures.\n"
    found = json.loads(path.read_text())
    runs = found["runs"]
    rows = []
    for key, meaning in ROWS.items():
        measured = [run for run in runs if key in run["naive"] and key in run["chain"]]
        if measured:
            better = f"chain, {found['wins'][key]} of {len(runs)} seeds"
            means = {w: sum(run[w][key] for run in measured) / len(measured) for w in ("naive", "chain")}
            direction = "lower is better" if key in LOWER_IS_BETTER else "higher is better"
            shown = {which: _figure(value) for which, value in means.items()}
            rows.append({f"mean of {len(runs)} seeds": f"{meaning} ({direction})", **shown, "better": better})
    stages = {name: _mean(run["stages"].get(name, 0.0) for run in runs) for name in runs[0]["stages"]}
    warm = ", ".join(found["warm_recomputed"]) or "no stage"
    text = table(rows) + "\n"
    text += f"`{found['command']}` on {found['cpus']} cores: the whole chain in {found['cold_seconds']:.0f} s "
    text += f"(peak memory {found['peak_memory_mb']:,.0f} MB), again with nothing changed in "
    text += (
        f"{found['warm_seconds']:.0f} s ({warm} recomputed); {100 * found['overhead']:.0f} % more time than calling "
    )
    text += "the methods directly. Seconds by stage: "
    return text + ", ".join(f"{name} {seconds:.0f}" for name, seconds in stages.items()) + ".\n"


# ---- text --------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as a Markdown table."""
    names = list(columns or dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return " ".join(_figure(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _figure(value: Any) -> str:
    if value is None:  # nothing was measured, or it never came to it
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _sentences(text: str) -> str:
    return " ".join(text.split())


def _moved(text: str) -> str:
    """A document of the top folder as a page below docs/generated: links follow."""
    for name in TOP:
        text = text.replace(f"]({name}", f"]({name.lower()}")
    return re.sub(r"\]\(docs/", "](../", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="Refresh the figures of README.md and stop.")
    if parser.parse_args().readme:
        readme = ROOT / "README.md"
        readme.write_text(fill_readme(readme.read_text()))
    else:
        write()

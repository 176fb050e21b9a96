"""Documents say what is true: commands run, links lead somewhere, generated pages are whole.

A command in a fenced bash or console block is run here, in a project with small data, or stands in ELSEWHERE with the
reason. ``clearwell run`` is checked with ``--show-config``: its options and parameters are real, the chain itself
is run by the tests of flows.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits, load_iris

from docs import build
from flows.cli import app
from infra.project import Project
from infra.settings import settings
from models.registry import list_methods

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/getting-started.md",
    "docs/your-own-data.md",
    "docs/configuration.md",
    "docs/compare.md",
    "docs/plan.md",
    "docs/evidence.md",
    "docs/registry.md",
    "docs/scale.md",
    "docs/erasure.md",
    "docs/flows.md",
    "docs/operations.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "stages").glob("*.md")),
)
ELSEWHERE = {
    "git clone ": "whoever reads this has done it",
    ". .venv/bin/activate": "the tests run in the environment",
    "make run": "installs and runs the whole chain: minutes",
    "make test": "is running",
    "ruff check ": "make check, which CI runs before the tests",
    "mypy": "make check",
    "lint-imports": "make check",
    "codespell": "make check",
    "pytest ": "is running; that its files exist is checked below",
    "make docs": "installs mkdocs; what it builds from is checked below",
    "make bench": "runs the whole chain several times: many minutes",
    "python -m docs.build --readme": "checked below, without changing the README",
    "clearwell run --runner ": "needs Ray; tests/integration/test_ray.py does the work on it",
    "clearwell compare label_noise ": "trains networks for minutes; tests/tasks/test_compare.py runs each arena",
    "clearwell compare pretrain ": "the same",
    "clearwell compare curate ": "the same",
    "clearwell compare adapt ": "the same",
    "clearwell compare compress ": "the same",
    "clearwell discover scans": "minutes; tests/flows/test_discover.py does on small data",
    "clearwell plan --data scans ": "minutes; tests/flows/test_plan.py does on small data",
    "clearwell plan --data my-images --data ": "needs a second dataset; tests/tasks/test_plan.py has one",
    "clearwell curate scans": "minutes; tests/flows/test_curate.py does on small data",
    "clearwell curate corpus.parquet ": "needs texts; tests/flows/test_curate.py has some",
    "python -m benchmarks.": "measures for minutes or more",
    "clearwell sweep ": "runs a stage several times; tests/flows/test_sweep.py does on small data",
    "clearwell embed ": "needs a champion; tests/integration/test_ray.py embeds",
    "clearwell reproduce ": "measures on real data: minutes to an hour",
    "clearwell forget ": "deletes for good; tests/chaos/test_erasure_kill.py runs it on a project of its own",
    "make up": "installs and starts servers; tests/integration/test_stack.py does",
    "make down": "tests/integration/test_stack.py stops them",
    "clearwell status": "needs the servers; tests/integration/test_stack.py asks",
    "clearwell logs ": "needs the servers; tests/integration/test_stack.py reads them",
    "clearwell down": "tests/integration/test_stack.py stops them",
    "clearwell backup ": "tests/integration/test_stack_faults.py makes one and restores it",
    "clearwell restore ": "tests/integration/test_stack_faults.py makes one and restores it",
    "clearwell rotate-credentials": "tests/integration/test_stack_faults.py rotates them",
    'eval "$(clearwell env)"': "changes the shell",
    "pg_dumpall ": "a program of PostgreSQL, on the running servers",
    "git pull": "whoever reads this knows what to pull",
    "for name in ": "writes passwords for Docker",
    "chmod 600 infra/.env": "of the passwords for Docker",
    "docker ": "needs a container engine; the file is checked by schema",
    "clearwell deploy": "needs a Prefect server; tests/integration/test_deployments.py registers them",
    "prefect ": "needs a Prefect server; tests/integration/test_deployments.py starts runs",
    "clearwell score ": "needs a champion; tests/tasks/test_watching.py scores",
    "clearwell drift ": "needs a champion; tests/tasks/test_watching.py watches",
    "mlflow ui ": "is a server that does not end",
    "clearwell serve ": "is a server that does not end; tests/infra/test_serving.py asks it",
    "curl ": "asks that server",
    "mlflow models serve ": "is a server that does not end; tests/infra/test_serving.py compares it with clearwell's",
}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def blocks(text: str, *languages: str) -> list[str]:
    return [body for _, language, body in FENCE.findall(text) if language in languages]


def commands(document: str) -> list[str]:
    found = blocks((ROOT / document).read_text(), "bash", "console", "sh")
    lines = [line.removeprefix("$ ") for body in found for line in body.replace("\\\n", "").splitlines()]
    return [re.sub(r"\s+# .*", "", line).strip() for line in lines if line.strip() and not line.startswith("#")]


def elsewhere(command: str) -> bool:
    return any(command.startswith(start) for start in ELSEWHERE)


# ---- a project in which the documents' commands make sense ---------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory, empty_tracking):
    """Images by class, a table, a report, and a registered model with two versions, the second champion."""
    root = tmp_path_factory.mktemp("documents")
    for name in ("mlflow.yaml", "Makefile"):
        shutil.copy(ROOT / name, root)
    digits = load_digits()
    for row in range(90):
        folder = root / "my-images" / ("oak", "birch", "maple")[digits.target[row] % 3]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[row] * 15.9).astype(np.uint8)
        Image.fromarray(pixels).resize((28, 28)).save(folder / f"{row:03}.png")
    iris = load_iris(as_frame=True).frame.rename(columns={"target": "label"})
    iris.to_csv(root / "flowers.csv", index=False)
    summary = {
        "stages": [{"name": "validate", "method": "r2d2", "seconds": 1.0, "cached": False, "why": "", "metrics": {}}],
        "naive": {"source_accuracy": 0.8},
        "chain": {"source_accuracy": 0.9},
        "champion": {"name": "scans-classifier", "version": "2", "alias": "champion"},
        "data": {"name": "scans", "input_version": "a" * 32, "output_version": "b" * 32},
        "wall_seconds": 1.0,
        "peak_memory_mb": 1.0,
    }
    (root / "reports" / "latest").mkdir(parents=True)
    (root / "reports" / "latest" / "summary.json").write_text(json.dumps(summary))
    (root / ".clearwell").mkdir()
    shutil.copyfile(empty_tracking, root / ".clearwell" / "mlflow.db")
    quick = next(body for body in blocks((ROOT / "docs/configuration.md").read_text(), "yaml") if "# quick" in body)
    (root / "quick.yaml").write_text(quick)
    return root


@pytest.fixture
def inside(scene, monkeypatch):
    """Work in the scene, as a user in a shell."""
    before = dict(os.environ)
    os.environ["CLEARWELL_ROOT"] = str(scene)
    monkeypatch.chdir(scene)
    settings.cache_clear()
    yield scene
    os.environ.clear()
    os.environ.update(before)
    settings.cache_clear()


@pytest.fixture
def registered(inside):
    """Two versions of scans-classifier, the second champion; made once."""
    registry = Project().registry
    if (inside / "registered").exists():
        return
    measured = {"test": {"source_accuracy": 0.95}, "target": {"h_score": 0.8}, "model": {"size_bytes": 900.0}}
    measured["erasure"] = {"membership_advantage": 0.0}
    run = registry.tracker.open("lifecycle")
    registry.tracker.client.log_text(run, "weights", "model/weights.txt")
    for key in ("first", "second"):
        version = registry.register("scans-classifier", run, key, "card", {}, measured)
        registry.judge("scans-classifier", version)
        registry.promote("scans-classifier", version, "candidate")
        registry.promote("scans-classifier", version)
    (inside / "registered").touch()


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
        settings.cache_clear()
    if words[0] != "clearwell":
        subprocess.run(["bash", "-ec", command], check=True, timeout=60)
        return
    if words[1] == "run":
        words = [word for word in words if word != "--show-config"] + ["--show-config"]
    app(words[1:], standalone_mode=False)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_run(document, inside, registered, monkeypatch):
    found = commands(document)
    assert found
    for command in found:
        if not elsewhere(command):
            with monkeypatch.context() as patch:
                run(command, patch)
            settings.cache_clear()


def test_what_runs_elsewhere_is_still_in_a_document():
    written = [command for document in DOCUMENTS for command in commands(document)]
    assert [start for start in ELSEWHERE if not any(command.startswith(start) for command in written)] == []


def test_files_that_are_tested_by_hand_exist():
    written = [
        word for document in DOCUMENTS for c in commands(document) if c.startswith("pytest") for word in c.split()
    ]
    paths = [word for word in written if word.endswith(".py")]
    assert paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_targets_of_make_exist():
    text = "\n".join((ROOT / document).read_text() for document in DOCUMENTS)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", text)) <= targets


def test_python_of_the_readme_runs(capsys):
    for body in blocks((ROOT / "README.md").read_text(), "python"):
        exec(compile(body, "README.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out) < 1


def test_settings_of_the_configuration_page_are_read(home):
    found = [body for body in blocks((ROOT / "docs/configuration.md").read_text(), "yaml") if "tracking:" in body]
    assert len(found) == 1
    (home / "mlflow.yaml").write_text(found[0])
    settings.cache_clear()
    assert settings().model_dump(exclude={"root"}) == settings().model_validate(yaml.safe_load(found[0])).model_dump(
        exclude={"root"}
    )
    assert [gate.metric for gate in settings().gates] == ["source_accuracy", "size_bytes"]


# ---- generated pages, links ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated():
    return build.pages()


def test_method_table_lists_every_method_and_what_was_measured(generated):
    for card in list_methods():
        row = next(line for line in generated["methods.md"].splitlines() if f"methods/{card.name}.md" in line)
        page = generated[f"methods/{card.name}.md"]
        assert card.link in row
        path = build.RESULTS / f"{card.name}.json"
        if path.exists():
            checks = json.loads(path.read_text())["checks"]
            assert f"{sum(check['holds'] for check in checks)} of " in row
            assert page.count("**falls short**") == sum(not check["holds"] for check in checks)
        else:
            assert "not measured yet" in row


def test_what_falls_short_and_what_was_not_run_is_shown(tmp_path):
    held = {"name": "a | b", "bound": "<= 2", "measured": 1.0, "holds": True, "per_seed": [1.0], "note": ""}
    short = held | {"name": "c", "holds": False, "note": "The reason."}
    card = list_methods()[0]
    evidence = {"seeds": [0], "data": ["digits"], "command": "clearwell reproduce x", "seconds": 1.0, "environment": {}}
    evidence |= {"checks": [held, short], "not_run": [{"name": "d", "reason": "no data"}], "tables": {"t": [{"k": 1}]}}
    (tmp_path / f"{card.name}.json").write_text(json.dumps(evidence))
    assert "1 of 3 checks hold" in build.methods_page([card], tmp_path)
    page = build.method_page(card, evidence)
    assert "| a \\| b | &lt;= 2 | 1 | 1 | holds |" in page
    assert "**falls short**" in page
    assert "- **c**: The reason." in page
    assert "**not run**: no data" in page


def test_parameter_and_command_pages_name_everything(generated):
    for name in ("validate.max_failing_share", "label_noise.parameters", "register.promote", "gates[].at_least"):
        assert f"`{name}`" in generated["parameters.md"]
    for name in ("run", "data restore", "rollback", "doctor"):
        assert f"## clearwell {name}\n" in generated["command-line.md"]
    rows = [line for name in ("parameters.md", "command-line.md") for line in generated[name].splitlines()]
    assert [line for line in rows if re.search(r"\| +\|$", line)] == []  # everything says what it means


def test_main_job_is_told_from_its_figures(tmp_path):
    models = {"naive": {"source_accuracy": 0.8}, "chain": {"source_accuracy": 0.9}}
    one = {"seed": 0, "stages": {"validate": 2.0}, "wall_seconds": 5.0, "peak_memory_mb": 10.0, **models}
    job = {"command": "python -m benchmarks.main_job", "cpus": 2, "runs": [one], "wins": {"source_accuracy": 1}}
    job |= {"cold_seconds": 5.0, "warm_seconds": 1.0, "peak_memory_mb": 10.0, "warm_recomputed": [], "overhead": 0.04}
    (tmp_path / "main_job.json").write_text(json.dumps(job))
    text = build.fill_readme("before <!-- main-job -->old<!-- /main-job --> after", tmp_path)
    assert text.startswith("before <!-- main-job -->\n| mean of 1 seeds |")
    assert "| 0.8 | 0.9 | chain, 1 of 1 seeds |" in text
    assert "no stage recomputed" in text
    assert text.endswith("<!-- /main-job --> after")


def test_figures_of_the_readme_are_those_of_the_benchmark():
    text = (ROOT / "README.md").read_text()
    assert build.fill_readme(text) == text, "Refresh them: python -m docs.build --readme"


def test_build_writes_the_pages_and_nothing_else(generated, tmp_path):
    (tmp_path / "stale.md").write_text("of a method that is gone")
    build.write(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.md")} == generated.keys()


def anchors(text: str) -> set[str]:
    plain = re.sub(r"```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_links_lead_somewhere(generated):
    texts = {
        path: path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/stages/*")]
    }
    texts |= {build.GENERATED / name: text for name, text in generated.items()}
    broken = []
    for path, text in texts.items():
        for link in LINK.findall(FENCE.sub("", text)):
            target, _, anchor = link.partition("#")
            place = (path.parent / target).resolve() if target else path
            if re.match(r"https?:", link):
                continue
            if not (place.exists() or place in texts) or (anchor and anchor not in anchors(texts.get(place, ""))):
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def test_every_page_is_in_the_navigation(generated):
    text = (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("*.md")]
    pages += [f"stages/{path.name}" for path in (ROOT / "docs" / "stages").glob("*.md")]
    pages += [f"generated/{name}" for name in generated if "/" not in name]
    assert [page for page in pages if not re.search(rf"[ :]{re.escape(page)}$", text, re.MULTILINE)] == []

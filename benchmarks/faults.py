"""Break the platform on purpose and write down what happened: ``python -m benchmarks.faults``.

A project with a small part of `scans` runs on a real stack. Its servers are killed with ``kill -9`` in the middle of a
run, the object store answers with errors or late, the API gets 200 submissions in a minute, two runs want one dataset.
After each fault everything that was kept is compared with its digests. The quick cases are tests; their results are
taken from a run of them. The table goes to ``docs/reliability.md``, the figures to ``benchmarks/results/faults.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pyarrow.parquet as pq

from tests.running_stack import RunningStack, running_stack
from tests.unreliable_proxy import Proxy

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "faults.json", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table of benchmarks/faults.py -->", "<!-- end of table -->"
ROWS = {"train": 400, "test": 150}
GATES = """
gates:
  - {metric: size_bytes, split: model, at_most: 1000000, higher_is_better: false}
"""
SMALL = """
network: {channels: [8, 16], embedding_dim: 16}
label_noise: {enabled: false}
pretrain: {enabled: false}
adapt: {enabled: false}
unlearn: {enabled: false}
naive: {enabled: false}
finetune: {epochs: 2}
"""
Row = dict[str, Any]
Fault = Callable[[RunningStack], Row]


def fill(root: Path) -> None:
    """Put a part of `scans` into a project."""
    (root / "small.yaml").write_text(SMALL)
    for split, rows in ROWS.items():
        table = pq.read_table(ROOT / "data" / "scans" / split / "part-00000.parquet").slice(0, rows)
        (root / "data" / "scans" / split).mkdir(parents=True)
        pq.write_table(table, root / "data" / "scans" / split / "part-00000.parquet")


class Run:
    """``clearwell run`` in a process of its own, whose output is read while it goes."""

    def __init__(self, running: RunningStack, *more: str) -> None:
        command = [sys.executable, "-m", "flows.cli", "run", "--config", "small.yaml", "--json", *more]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command,
            cwd=running.root,
            env=running.environment(OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def wait_for(self, said: str, seconds: float = 600) -> bool:
        """Whether it said this before it ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if any(said in line for line in self.lines):
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.1)
        return False

    def end(self, seconds: float = 900) -> tuple[int, Row]:
        """Exit code and summary."""
        assert self.process.stdout is not None
        try:
            out = self.process.communicate(timeout=seconds)[0]
        except (subprocess.TimeoutExpired, ValueError):
            self.process.kill()
            return -9, {}
        return self.process.returncode, json.loads(out) if self.process.returncode == 0 else {}


def intact(running: RunningStack) -> str:
    """What is wrong with what the project keeps; empty when nothing is."""
    program = """
import json
from infra.project import Project
p = Project()
bad = [str(r) for r in p.versions.list() if not p.versions.intact(r)]
from infra.references import StageResult
for record in p.cache.folder.glob("*/*/result.json"):
    for ref in StageResult.model_validate_json(record.read_text()).references:
        store = p.versions if hasattr(ref, "rows") else p.models
        bad += [] if store.intact(ref) else [str(ref)]
broken = p.ledger.broken_at()
bad += [] if broken is None else [f"ledger entry {broken}"]
print(json.dumps({"bad": bad, "entries": len(p.ledger.entries()), "versions": len(p.versions.list())}))
"""
    done = running.python(program)
    if done.returncode:
        return f"could not be looked at: {done.stderr.strip().splitlines()[-1][:200]}"
    found = json.loads(done.stdout)
    return ", ".join(found["bad"])


def healthy(running: RunningStack, seconds: float = 240) -> float | None:
    """Seconds until every part is well again, None if it did not come to that."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if running.stack.healthy():
            return round(time.monotonic() - began, 1)
        time.sleep(0.5)
    return None


def kill(part: str, stage: str, seed: int) -> Fault:
    """Kill a part, and what it started, with the stage in progress."""

    def case(running: RunningStack) -> Row:
        run = Run(running, "--seed", str(seed))
        if not run.wait_for(f"{stage}: begun"):
            return {"fault": f"kill -9 of {part}", "held": False, "happened": f"{stage} never began: {run.lines[-3:]}"}
        time.sleep(1)
        victim = psutil.Process(running.stack.supervisor.processes()[part]["pid"])
        killed = [*victim.children(recursive=True), victim] if part == "worker" else [victim]
        for process in killed:
            process.send_signal(signal.SIGKILL)
        back = healthy(running)
        code, summary = run.end()
        happened = f"killed during `{stage}`; the part was well again after {back} s; the run "
        if code == 0:
            happened += "went on to its end"
        else:
            last = next((line for line in reversed(run.lines) if line.strip()), "")[:200]
            again = Run(running, "--seed", str(seed))
            code, summary = again.end()
            computed = [s["name"] for s in summary.get("stages", []) if not s["cached"]]
            happened += f"failed ({last}); the same command completed it, computing {', '.join(computed) or 'nothing'}"
            happened += "" if code == 0 else f" NOT: {again.lines[-3:]}"
        wrong = intact(running)
        held = code == 0 and back is not None and not wrong
        return {"fault": f"kill -9 of {part}", "happened": happened, "lost": wrong or "nothing", "held": held}

    return case


# The object store behind a proxy that misbehaves


def store(mode: str, times: int, said: str) -> Fault:
    """Push and pull versions while the store misbehaves for some requests."""

    def case(running: RunningStack) -> Row:
        with running.in_force() as current:
            proxy = Proxy(current.stack.objects_port)
        via = {"CLEARWELL_OBJECT_STORE__ENDPOINT": f"http://127.0.0.1:{proxy.port}"}
        rows = running.root / f"rows-{mode}-{times}.csv"
        rows.write_text(
            "width,label,id\n" + "\n".join(f"{n}.{times},{'ab'[n % 2]},{mode}{n}" for n in range(50)) + "\n"
        )
        made = running.clearwell("data", "import", str(rows), "--json")
        ref = json.loads(made.stdout)
        name = f"{ref['name']}@{ref['version'][:12]}"
        proxy.fail(mode, times)
        began = time.monotonic()
        pushed = running.clearwell("data", "push", name, **via)
        seconds, hits = time.monotonic() - began, proxy.hits
        happened = f"{hits} requests {said}; `data push` "
        if pushed.returncode:
            said_so = [line for line in pushed.stderr.splitlines() if line.startswith("clearwell: ")]
            last = f"exit code {pushed.returncode}, {said_so[0][:170] if said_so else 'NO message'}"
            proxy.fail("pass", 0)
            pushed = running.clearwell("data", "push", name, **via)
            happened += f"stopped ({last}...); repeated, it went through"
        else:
            happened += f"went through after {seconds:.0f} s"
        shutil.rmtree(running.root / ref["uri"])
        cache = running.root / ".clearwell" / "versions" / ".dvc" / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        proxy.fail(mode, min(times, 3))
        pulled = running.clearwell("data", "pull", **via)
        target = running.root / f"back-{mode}-{times}"
        shutil.rmtree(target, ignore_errors=True)
        back = running.clearwell("data", "restore", name, "--to", str(target))
        proxy.close()
        held = not pushed.returncode and hits > 0 and not back.returncode
        lost = "nothing" if not back.returncode else (pulled.stderr + back.stderr)[-300:]
        happened += "; pulled again and equal to its digest"
        return {"fault": f"object store: {said}", "happened": happened, "lost": lost, "held": held}

    return case


# Load


def submissions(running: RunningStack, count: int = 200) -> Row:
    """Submit runs through the API, kill the server once they are in, and count."""
    program = f"""
import asyncio, json, time
from infra.settings import settings
settings()
from prefect.client.orchestration import get_client
async def main():
    async with get_client() as client:
        found = await client.read_deployment_by_name("label-audit/label-audit")
        gate = asyncio.Semaphore(10)
        async def one(n):
            async with gate:
                run = await client.create_flow_run_from_deployment(found.id, tags=["load"], name=f"load-{{n}}")
                return str(run.id)
        began = time.monotonic()
        ids = await asyncio.gather(*[one(n) for n in range({count})])
        print(json.dumps({{"ids": ids, "seconds": round(time.monotonic() - began, 1)}}))
asyncio.run(main())
"""
    count_program = """
import json, sys
from collections import Counter
from infra.settings import settings
settings()
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
with get_client(sync_client=True) as client:
    found, offset, load = [], 0, FlowRunFilter(tags={"all_": ["load"]})
    while page := client.read_flow_runs(flow_run_filter=load, limit=200, offset=offset):
        found, offset = found + page, offset + len(page)
print(json.dumps({"ids": [str(run.id) for run in found], "states": Counter(run.state_type.value for run in found)}))
"""
    done = running.python(program)
    if done.returncode:
        return {"fault": f"{count} submissions", "happened": done.stderr[-300:], "lost": "?", "held": False}
    sent = json.loads(done.stdout)
    victim = psutil.Process(running.stack.supervisor.processes()["prefect"]["pid"])
    victim.send_signal(signal.SIGKILL)
    back = healthy(running)
    time.sleep(60)
    found = json.loads(running.python(count_program).stdout)
    missing = set(sent["ids"]) - set(found["ids"])
    states = ", ".join(f"{number} {state.lower()}" for state, number in sorted(found["states"].items()))
    happened = (
        f"{len(sent['ids'])} runs accepted in {sent['seconds']} s; then kill -9 of the Prefect server, well again "
        f"after {back} s; a minute later all are there: {states}"
    )
    cancel = """
from infra.settings import settings
settings()
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
with get_client(sync_client=True) as client:
    while page := client.read_flow_runs(flow_run_filter=FlowRunFilter(tags={"all_": ["load"]}), limit=200):
        for run in page:
            client.delete_flow_run(run.id)
"""
    running.python(cancel)
    held = not missing and len(set(sent["ids"])) == count and sent["seconds"] <= 60
    return {
        "fault": f"{count} submissions",
        "happened": happened,
        "lost": f"{len(missing)} runs" if missing else "nothing",
        "held": held,
    }


def two_at_once(running: RunningStack) -> Row:
    """Two runs on one dataset, started in the same second."""
    runs = [Run(running, "--seed", "71"), Run(running, "--seed", "72")]
    ends = [run.end() for run in runs]
    wrong = intact(running)
    versions = [summary.get("champion", {}).get("version") for _, summary in ends]
    held = [code for code, _ in ends] == [0, 0] and not wrong and len(set(versions)) == 2
    happened = f"one waited for the other; both ended well, as versions {' and '.join(str(v) for v in versions)}"
    return {
        "fault": "two lifecycles on one dataset at once",
        "happened": happened if held else f"{[(run.process.returncode, run.lines[-2:]) for run in runs]}",
        "lost": wrong or "nothing",
        "held": held,
    }


CASES: dict[str, Fault] = {
    "postgres": kill("postgres", "finetune", 11),
    "objects": kill("objects", "finetune", 12),
    "mlflow": kill("mlflow", "compress", 13),
    "prefect": kill("prefect", "compress", 14),
    "worker": kill("worker", "evaluate", 15),
    "store-500": store("500", 3, "answered 500"),
    "store-503": store("503", 3, "answered 503"),
    "store-slow": store("slow", 4, "answered 3 s late"),
    "store-cut": store("cut", 3, "cut off without an answer"),
    "store-down": store("503", 60, "answered 503, for longer than anybody tries again"),
    "submissions": submissions,
    "two": two_at_once,
}

# Quick cases: tests. What each shows stands here, whether it holds is taken from a run of them.
TESTS: dict[str, tuple[str, str, str]] = {
    "chaos/test_damage.py::test_damaged_shard_of_a": (
        "damaged shard of a version",
        "brought back from DVC's cache before anything reads it",
        "nothing",
    ),
    "chaos/test_damage.py::test_damaged_shard_whose": (
        "damaged shard, and DVC's copy of it too",
        "stops, names version and file; the rest of the bytes stays",
        "the damaged bytes",
    ),
    "chaos/test_damage.py::test_damaged_shard_of_the_working": (
        "damaged shard in the working copy",
        "stops, names the shard",
        "the damaged bytes",
    ),
    "chaos/test_damage.py::test_listing": (
        "changed listing in DVC's cache, naming files elsewhere",
        "nothing is restored, nothing written elsewhere",
        "nothing",
    ),
    "chaos/test_damage.py::test_model_whose": (
        "truncated or changed model file, bytes that are not the digest's",
        "not opened; the stage computes it again",
        "nothing",
    ),
    "chaos/test_damage.py::test_full_disk": (
        "disk full while a version, a model, a result, a file is written",
        "stops and says what is free; no half-written file, the old one stays; the repeat completes",
        "nothing",
    ),
    "chaos/test_lifecycle.py::test_a_kill": (
        "kill -9 of a run, in four stages (embedded)",
        "nothing half-written; the same command continues",
        "the stage in progress",
    ),
    "security/test_planted_code.py::test_pickle": (
        "pickle as weights, description, program, cache entry, data, MLflow model",
        "refused, not run: the payload's mark never appears",
        "nothing",
    ),
    "security/test_planted_code.py::test_code_in": (
        "code in the graph of an exported program: sizes, guards, operators, names",
        "refused, not run",
        "nothing",
    ),
    "security/test_planted_code.py::test_tags": (
        "YAML tags in configuration, overrides, mlflow.yaml, pins, data.dvc",
        "refused, not run; a damaged pin is set aside",
        "nothing",
    ),
    "security/test_names.py::test_name": (
        "names with ../, spaces, unicode, SQL, 300 characters",
        "refused in one message; nothing outside the project is touched",
        "nothing",
    ),
    "security/test_names.py::test_ids": (
        "SQL, markup, terminal commands, formulas as ids",
        "kept and shown as text",
        "nothing",
    ),
    "security/test_hostile_data.py::test_image_that": (
        "images that swell, declare 2^31 pixels, are archives or PostScript",
        "undecodable rows, under 250 MB; no reader's program starts",
        "nothing",
    ),
    "security/test_hostile_data.py::test_parquet_of": (
        "Parquet of few bytes and more rows than memory",
        "refused with the memory it would need",
        "nothing",
    ),
    "security/test_hostile_data.py::test_link": (
        "links and image paths that lead out of the imported folder",
        "refused; nothing of the target is read",
        "nothing",
    ),
    "security/test_hostile_data.py::test_broken": ("broken CSV", "one message", "nothing"),
}


def tested() -> list[Row]:
    """Run the quick cases and say of each group whether it holds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        places = ["tests/chaos", "tests/security/test_planted_code.py", "tests/security/test_names.py"]
        places += ["tests/security/test_hostile_data.py"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *places]
        wanted = "test_damage or test_a_kill or planted or names or hostile"
        subprocess.run([*command, "-k", wanted], cwd=ROOT, capture_output=True)
        cases = list(ElementTree.parse(report).iter("testcase"))
    rows = []
    for place, (fault, happened, lost) in TESTS.items():
        file, _, name = place.partition("::")
        module = "tests." + file.removesuffix(".py").replace("/", ".")
        mine = [case for case in cases if case.get("classname") == module and str(case.get("name")).startswith(name)]
        failed = [case for case in mine if case.find("failure") is not None or case.find("error") is not None]
        held = bool(mine) and not failed
        shown = f"tests/{file}, {len(mine)} cases"
        rows.append({"fault": fault, "happened": happened, "lost": lost, "held": held, "shown_by": shown})
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| fault | what happened | lost | as promised | shown by |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [row["fault"], row["happened"], row["lost"], "yes" if row["held"] else "**no**"]
        cells.append(row.get("shown_by", "benchmarks/faults.py"))
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


@contextmanager
def a_stack(root: Path | None) -> Iterator[RunningStack]:
    """The stack at `root` if there is one, or one for this run alone."""
    if root is not None:
        yield RunningStack(root)
        return
    with running_stack(GATES) as running:
        fill(running.root)
        deployed = running.clearwell("up")
        if deployed.returncode != 0:
            raise RuntimeError(f"clearwell up: {deployed.stderr[-4000:]}")
        yield running


def measure(names: list[str], root: Path | None, with_tests: bool) -> None:
    """Run the cases and write results and page; cases that are not named keep what was found of them before."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": {}, "tests": []}
    if names:
        with a_stack(root) as running:
            for name in names:
                began = time.monotonic()
                row = CASES[name](running)
                known["cases"][name] = {**row, "seconds": round(time.monotonic() - began)}
                known["date"] = datetime.now(UTC).date().isoformat()
                print(json.dumps({name: known["cases"][name]}), flush=True)
                RESULTS.write_text(json.dumps(known, indent=2) + "\n")
    if with_tests:
        known["tests"] = tested()
        RESULTS.write_text(json.dumps(known, indent=2) + "\n")
    write_page(known)


def write_page(known: dict[str, Any]) -> None:
    """Put the table where the page has room for it."""
    rows = [known["cases"][name] for name in CASES if name in known["cases"]] + known["tests"]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}; by default all")
    parser.add_argument("--root", type=Path, help="a project whose stack is up, made for this")
    parser.add_argument("--no-tests", action="store_true", help="leave the quick cases as they were")
    parser.add_argument("--only-tests", action="store_true", help="leave the heavy cases as they were")
    given = parser.parse_args()
    unknown = set(given.cases) - set(CASES)
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    os.chdir(ROOT)
    measure([] if given.only_tests else given.cases or list(CASES), given.root, not given.no_tests)


if __name__ == "__main__":
    main()

"""A real stack for tests: started once a session by the command that people use, in a folder of its own."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from infra.settings import Settings, settings
from infra.stack.servers import Stack

PARTS = ("postgres", "objects", "prefect", "mlflow", "worker")


@dataclass
class RunningStack:
    """A stack that is up, and the project that it belongs to."""

    root: Path

    @cached_property
    def stack(self) -> Stack:
        """The stack's own view of itself."""
        with self.in_force() as current:
            return Stack(current)

    @contextmanager
    def in_force(self) -> Iterator[Settings]:
        """The project's settings, and what they put into the environment, as long as the block runs."""
        before = dict(os.environ)
        try:
            for name in [name for name in os.environ if name.startswith(("CLEARWELL_", "PREFECT_API", "AWS_"))]:
                del os.environ[name]
            os.environ["CLEARWELL_ROOT"] = str(self.root)
            settings.cache_clear()
            yield settings()
        finally:
            os.environ.clear()
            os.environ.update(before)
            settings.cache_clear()

    def clearwell(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a person would."""
        return self._run(["-m", "flows.cli", *arguments], variables)

    def python(self, program: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the project."""
        return self._run(["-c", program], variables)

    def environment(self, **variables: str) -> dict[str, str]:
        """What a person's shell would have."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("CLEARWELL_", "PREFECT_", "MLFLOW_", "AWS_"))}
        return {**kept, "CLEARWELL_ROOT": str(self.root), "PYTHONPATH": str(Path(__file__).parents[1]), **variables}

    def _run(self, arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        environment = self.environment(**variables)
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)


def make_project(yaml: str) -> Path:
    """A project folder that PostgreSQL's user can enter, with ports that are free now."""
    root = Path(tempfile.mkdtemp(prefix="clearwell-stack-"))
    root.chmod(0o711)
    (root / "mlflow.yaml").write_text(f"{yaml}\nstack: {free_ports()}\n")
    return root


def free_ports() -> dict[str, int]:
    """Ports of a stack, chosen at random among those on which nobody listens."""
    for _ in range(100):
        base = random.randrange(20_000, 40_000, 20)
        wanted = [*range(base, base + 10), *range(base + 10_000, base + 10_010)]
        with ExitStack() as probes:
            try:
                for port in wanted:
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        names = ("postgres_port", "prefect_port", "mlflow_port", "objects_port")
        return {name: base + i for i, name in enumerate(names)}
    raise RuntimeError("no free ports")


@contextmanager
def running_stack(yaml: str) -> Iterator[RunningStack]:
    """A stack that is up as long as the block runs."""
    running = RunningStack(make_project(yaml))
    try:
        done = running.clearwell("up", "--no-deployments")
        if done.returncode != 0:
            raise RuntimeError(f"clearwell up: {done.stderr[-4000:]}")
        yield running
    finally:
        running.clearwell("down")
        shutil.rmtree(running.root, ignore_errors=True)

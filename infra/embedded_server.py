"""Prefect's embedded server: a child process of each run, started while the run is still importing.

Prefect would start the same server itself, but only when the flow is called, and by importing the whole server first.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from infra.errors import ServerError

APPLICATION = "prefect.server.api.server:create_app"
PATIENCE = 120.0  # seconds; a cold disk on a busy machine takes twenty


@contextmanager
def embedded_server() -> Iterator[EmbeddedServer | None]:
    """Serve Prefect's API to this process while the block runs; None where ``PREFECT_API_URL`` names a server."""
    if os.environ.get("PREFECT_API_URL"):
        yield None
        return
    server = EmbeddedServer()
    try:
        yield server
    finally:
        server.stop()


class EmbeddedServer:
    """A Prefect server on loopback, without its pages, over the database in ``PREFECT_HOME``."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        command = [sys.executable, "-m", "uvicorn", "--factory", APPLICATION]
        command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        home = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect"))
        home.mkdir(parents=True, exist_ok=True)
        # Two at once would both make the tables of a new database.
        self.turn = (home / "starting").open("w")
        fcntl.flock(self.turn, fcntl.LOCK_EX)
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"},
            stdout=subprocess.DEVNULL,
            stderr=self.said,
        )
        os.environ["PREFECT_API_URL"] = self.url

    def wait(self) -> None:
        """Return when it answers.

        Raises
        ------
        ServerError
            When it ended, or does not answer in time.
        """
        import httpx

        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/health").is_success:
                    self.turn.close()
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        self.process.kill()
        self.process.wait()
        self.said.seek(0)
        said = self.said.read().decode(errors="replace").strip()
        raise ServerError(
            f"Prefect's embedded server did not start: {said[-2000:] or 'it said nothing'}. "
            "Run `clearwell doctor`, then the same command again."
        )

    def stop(self) -> None:
        """End it and forget its address."""
        os.environ.pop("PREFECT_API_URL", None)
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said.close()
        self.turn.close()


def orphans(home: Path) -> Iterator[psutil.Process]:
    """Embedded servers of the Prefect folder `home` whose run is gone."""
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if APPLICATION not in (process.info["cmdline"] or ()):
            continue
        try:
            parent = process.parent()
            if process.environ().get("PREFECT_HOME") == str(home) and (parent is None or parent.pid == 1):
                yield process
        except psutil.Error:  # it ended, or is somebody else's
            continue


def stop_orphans(home: Path) -> int:
    """End them; returns how many."""
    found = list(orphans(home))
    for process in found:
        process.terminate()
    psutil.wait_procs(found, timeout=5)
    return len(found)

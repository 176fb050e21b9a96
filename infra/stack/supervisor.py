"""Supervisord over the stack's parts: it starts them, and starts again what ended unasked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil

from infra.errors import ServerError
from infra.stack.credentials import write_private
from infra.stack.parts import Part

_LONGEST_SOCKET = 100  # the kernel takes 107 characters; supervisord adds its number while it binds
_NOT_OURS = ("AWS_", "MLFLOW_", "PREFECT_", "WEED_", "PG")  # variables that would change what a part does
_PROGRAM = {
    "autostart": "false",
    "autorestart": "true",
    "startsecs": 1,
    "startretries": 20,
    "stopasgroup": "true",
    "killasgroup": "true",
    "stopwaitsecs": 15,
    "redirect_stderr": "true",
    "stdout_logfile_maxbytes": "10MB",
    "stdout_logfile_backups": 3,
}


class Supervisor:
    """One supervisord, in a folder of its own.

    Parameters
    ----------
    folder : Path
        Where its files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configuration = folder / "supervisord.conf"

    @cached_property
    def socket(self) -> Path:
        """Where it listens; sockets need a short name, so for a long path it is in a private temporary folder."""
        inside = self.folder / "supervisor.sock"
        if len(str(inside)) < _LONGEST_SOCKET:
            return inside
        digest = sha256(str(self.folder).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"clearwell-{os.getuid()}-{digest}" / "supervisor.sock"

    def log(self, part: str) -> Path:
        """Log of a part."""
        return self.folder / "logs" / f"{part}.log"

    def write(self, parts: Sequence[Part]) -> None:
        """Write what it shall supervise. The file holds credentials, so only its owner can read it."""
        (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
        self.socket.parent.mkdir(mode=0o700, exist_ok=True)
        sections: dict[str, dict[str, Any]] = {
            "unix_http_server": {"file": self.socket, "chmod": "0600"},
            "rpcinterface:supervisor": {
                "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
            },
            "supervisord": {
                "logfile": self.folder / "logs" / "supervisor.log",
                "logfile_maxbytes": "10MB",
                "pidfile": self.folder / "supervisord.pid",
                "childlogdir": self.folder / "logs",
                "directory": self.folder,
                "umask": "077",
                **({"user": "root"} if os.geteuid() == 0 else {}),
            },
        }
        sections |= {f"program:{part.name}": self._program(part) for part in parts}
        lines = []
        for title, options in sections.items():
            lines += [f"[{title}]", *(f"{name}={_escaped(value)}" for name, value in options.items()), ""]
        write_private(self.configuration, "\n".join(lines))

    def _program(self, part: Part) -> dict[str, Any]:
        return {
            **_PROGRAM,
            **part.supervision,
            "command": " ".join(f'"{word}"' for word in part.command),
            "environment": ",".join(f'{name}="{value}"' for name, value in part.environment.items()),
            "stdout_logfile": self.log(part.name),
            **({"user": part.user} if part.user else {}),
        }

    def start(self) -> None:
        """Start it; it detaches itself.

        Raises
        ------
        ServerError
            If it does not answer.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.configuration)]
        done = subprocess.run(command, env=kept, capture_output=True, text=True)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.answers():
                return
            time.sleep(0.05)
        said = (done.stdout + done.stderr).strip()
        raise ServerError(f"The supervisor did not start: {said or f'see {self.folder}/logs/supervisor.log'}")

    def call(self, method: str, *arguments: Any) -> Any:
        """One call of its interface; ConnectionError or FileNotFoundError when it does not run."""
        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        with ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    def answers(self) -> bool:
        """Whether it runs."""
        try:
            return bool(self.call("getState")["statename"] == "RUNNING")
        except (OSError, HTTPException, Fault):
            return False

    def processes(self) -> dict[str, dict[str, Any]]:
        """What it knows of each part; empty when it does not run."""
        try:
            return {info["name"]: info for info in self.call("getAllProcessInfo")}
        except (OSError, HTTPException):
            return {}

    def start_part(self, name: str) -> None:
        """Start a part that does not run."""
        if self.processes()[name]["statename"] not in ("RUNNING", "STARTING", "BACKOFF"):
            self.call("startProcess", name, False)

    def stop_part(self, name: str) -> None:
        """Stop a part and wait until it ended."""
        try:
            self.call("stopProcess", name, True)
        except Fault as fault:
            if "NOT_RUNNING" not in fault.faultString:
                raise

    def stop(self) -> None:
        """End it and what it still supervises."""
        try:
            number = self.call("getPID")
            self.call("shutdown")
            psutil.Process(number).wait(timeout=60)
        except (OSError, HTTPException, psutil.Error):
            pass  # it was gone already, or goes with the rest

    def children(self) -> Iterator[psutil.Process]:
        """Processes that it started, or that those started, even when it is gone itself."""
        mark = f"unix://{self.socket}"
        for process in psutil.process_iter():
            try:
                if process.environ().get("SUPERVISOR_SERVER_URL") == mark:
                    yield process
            except (psutil.Error, OSError):  # it ended, or is somebody else's
                continue


def _escaped(value: Any) -> str:
    return str(value).replace("%", "%%")

"""Start, watch and stop the stack.

Everything lies in ``.clearwell/stack``: the servers' data, their credentials, logs, and while all of them are well
``connection.json``, from which every other process learns where they are.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from infra.errors import ConfigurationError, ServerError
from infra.object_store import ObjectStore
from infra.settings import CONNECTION_FILE, Settings
from infra.settings import ObjectStore as ObjectStoreSettings
from infra.stack import credentials as doors
from infra.stack import postgres
from infra.stack.parts import Part, connection, mlflow_auth, parts
from infra.stack.supervisor import Supervisor

Tell = Callable[[str], None]


class Stack:
    """The servers of one project.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.root / CONNECTION_FILE.rpartition("/")[0]
        self.connection = settings.root / CONNECTION_FILE
        self.supervisor = Supervisor(self.folder)

    @property
    def credentials_file(self) -> Path:
        """What the servers ask for."""
        return self.folder / "credentials.json"

    @cached_property
    def credentials(self) -> doors.Credentials:
        """Read, or made when there are none yet."""
        if not self.credentials_file.exists():
            doors.keep(doors.generate(postgres.ROLES), self.credentials_file)
        return doors.load(self.credentials_file)

    @cached_property
    def parts(self) -> list[Part]:
        """What belongs to the stack, in the order in which it starts."""
        return parts(self.settings, self.credentials, self.folder)

    def up(self, tell: Tell = lambda said: None) -> None:
        """Start what does not run, wait until all is well, then say where it is. Harmless when it is up.

        Raises
        ------
        ConfigurationError
            If a port is taken, or the servers are not installed.
        ServerError
            If a server does not come up.
        """
        self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.folder.chmod(0o711 if postgres.system_user() else 0o700)  # the database's user passes through
        with self._alone():
            if not self.supervisor.answers():
                self._begin()
            for wave in sorted({part.wave for part in self.parts}):
                members = [part for part in self.parts if part.wave == wave]
                for part in members:
                    self.supervisor.start_part(part.name)
                for part in members:
                    version = self._wait(part)
                    tell(f"{part.title} {version} at {part.address}")
                if wave == 0:
                    self._object_store().prepare()
            doors.write_private(self.connection, json.dumps(connection(self.settings, self.credentials), indent=2))

    def _begin(self) -> None:
        """From nothing, or from what a crash left, to a supervisor that has started no part yet."""
        self.connection.unlink(missing_ok=True)
        self._end_leftovers()
        self._require_free_ports()
        if not (self.folder / "certificates" / "part.key").exists():
            doors.write_certificates(self.folder / "certificates")
        (self.folder / "objects").mkdir(mode=0o700, exist_ok=True)
        postgres.prepare(self.folder / "postgres", self.credentials)
        doors.write_private(self.folder / "mlflow-auth.ini", mlflow_auth(self.settings, self.credentials))
        self.supervisor.write(self.parts)
        self.supervisor.start()

    def down(self) -> bool:
        """Stop everything; returns whether anything ran."""
        if not self.folder.exists():
            return False
        with self._alone():
            self.connection.unlink(missing_ok=True)
            ran = self.supervisor.answers()
            if ran:
                for name in ("worker", "mlflow", "prefect", "postgres", "objects"):
                    self.supervisor.stop_part(name)
                self.supervisor.stop()
            return self._end_leftovers() > 0 or ran

    def status(self) -> list[dict[str, Any]]:
        """Each part with its address, whether it is well, its version and memory in MB."""
        if not self.credentials_file.exists():
            return []
        known = self.supervisor.processes()
        return [self._state(part, known.get(part.name, {"statename": "STOPPED", "pid": 0})) for part in self.parts]

    def _state(self, part: Part, known: dict[str, Any]) -> dict[str, Any]:
        state, version = known["statename"].lower(), ""
        if state == "running":
            try:
                version, state = part.health(), "healthy"
            except Exception:
                state = "does not answer"
        return {
            "part": part.name,
            "what": part.title,
            "state": state,
            "address": part.address,
            "version": version,
            "memory_mb": round(_memory(known["pid"]) / 1e6) if known["pid"] else 0,
            "pid": known["pid"] or None,
            "log": str(self.supervisor.log(part.name)),
        }

    def healthy(self) -> bool:
        """Whether every part is well."""
        states = [part["state"] for part in self.status()]
        return bool(states) and set(states) == {"healthy"}

    def rotate_credentials(self, tell: Tell = lambda said: None) -> None:
        """Give every door a new key. The servers are stopped for it, and started again if they ran."""
        ran = self.supervisor.answers()
        self.down()
        doors.keep(doors.generate(postgres.ROLES), self.credentials_file)
        shutil.rmtree(self.folder / "certificates", ignore_errors=True)
        for name in ("credentials", "parts"):
            self.__dict__.pop(name, None)
        if ran:
            self.up(tell)

    def _object_store(self) -> ObjectStore:
        found = connection(self.settings, self.credentials)["object_store"]
        return ObjectStore(ObjectStoreSettings.model_validate(found))

    def _wait(self, part: Part) -> str:
        """Version of the part, once it answers."""
        deadline = time.monotonic() + self.settings.stack.start_seconds
        why: object = "it was not asked"
        while time.monotonic() < deadline:
            state = self.supervisor.processes().get(part.name, {}).get("statename", "gone")
            if state in ("FATAL", "gone"):
                why = f"it ends as soon as it starts ({state.lower()})"
                break
            try:
                return part.health()
            except Exception as error:  # whatever its client raises: it is not well yet
                why = error
                time.sleep(0.2)
        log = self.supervisor.log(part.name)
        last = log.read_text(errors="replace").strip().splitlines()[-5:] if log.exists() else []
        raise ServerError(
            f"{part.title} at {part.address} is not well: {why}. It said last:\n  "
            + "\n  ".join(last or ["nothing"])
            + f"\nSee `clearwell logs {part.name}`; stop the rest with `clearwell down`.",
            part=part.name,
        )

    def _require_free_ports(self) -> None:
        for part in self.parts:
            for port in part.ports:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind(("127.0.0.1", port))
                    except OSError as error:
                        if error.errno != errno.EADDRINUSE:
                            raise
                        variable = f"CLEARWELL_{part.setting.upper().replace('.', '__')}"
                        raise ConfigurationError(
                            f"Port {port} of {part.title} is taken{_by_whom(port)}. Set another one with "
                            f"`{part.setting}` in mlflow.yaml, or {variable}.",
                            port=port,
                        ) from None

    def _end_leftovers(self) -> int:
        """End what a supervisor that was killed left running; returns how many."""
        left = [*self.supervisor.children()]
        server = postgres.postmaster(self.folder / "postgres")
        if server is not None:
            left.append(server)
        for process in left:
            _signal(process, signal.SIGINT if process == server else signal.SIGTERM)
        _, stubborn = psutil.wait_procs(left, timeout=15)
        for process in stubborn:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(stubborn, timeout=5)
        return len(left)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` at a time; the lock goes with the process that holds it."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _by_whom(port: int) -> str:
    with suppress(psutil.Error):
        for found in psutil.net_connections("inet"):
            if found.status == psutil.CONN_LISTEN and found.laddr[1:] == (port,) and found.pid:
                return f" by {psutil.Process(found.pid).name()} (process {found.pid})"
    return ""


def _memory(number: int) -> int:
    """Resident bytes of a process and its children; pages that several share count once where the system says so."""
    try:
        top = psutil.Process(number)
        return sum(_unshared(process) for process in (top, *top.children(recursive=True)))
    except psutil.Error:
        return 0


def _unshared(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    except psutil.Error:
        return 0

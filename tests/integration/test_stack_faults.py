"""What happens to the stack when a part is killed, a port is taken, or a crash left its files behind."""

import json
import os
import signal
import socket
import time
import uuid

import httpx
import psutil
import pytest

from infra.errors import ConfigurationError, StoreError
from infra.places import Places
from infra.project import Project
from infra.settings import CONNECTION_FILE, Settings
from infra.settings import Stack as Ports
from infra.stack import credentials as doors
from infra.stack import postgres
from infra.stack.backup import restore
from infra.stack.servers import Stack
from tests.running_stack import PARTS, free_ports

PATIENCE = 100.0


class Traces:
    """Something in every server, by which one sees that its state is the same."""

    def __init__(self, running):
        self.running, self.mark = running, uuid.uuid4().hex
        with running.in_force() as current:
            project = Project()
            project.ledger.append("trace", mark=self.mark)
            project.object_store.write("dvc", f"trace/{self.mark}", self.mark.encode())
            self.run = project.tracker.open(self.mark)
            project.tracker.close(self.run)
            answer = httpx.post(
                f"{current.orchestration.api}/variables/",
                json={"name": self.mark, "value": "kept"},
                auth=tuple(current.orchestration.auth.get_secret_value().split(":")),
                timeout=30,
            )
            answer.raise_for_status()

    def missing(self):
        """What is no longer there."""
        with self.running.in_force() as current:
            project = Project()
            auth = tuple(current.orchestration.auth.get_secret_value().split(":"))
            found = {
                "ledger": any(e["payload"]["mark"] == self.mark for e in project.ledger.entries("trace")),
                "chain": project.ledger.broken_at() is None,
                "objects": f"trace/{self.mark}" in project.object_store.keys("dvc", "trace/"),
                "mlflow": project.tracker.client.get_run(self.run).info.status == "FINISHED",
                "prefect": httpx.get(
                    f"{current.orchestration.api}/variables/name/{self.mark}", auth=auth, timeout=30
                ).is_success,
            }
            return [name for name, there in found.items() if not there]


def wait_until_healthy(running, part, other_than):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        states = {found["part"]: found for found in running.stack.status()}
        if states[part]["pid"] not in (None, other_than) and {s["state"] for s in states.values()} == {"healthy"}:
            return
        time.sleep(0.5)
    raise AssertionError(
        f"not well after {PATIENCE} s: {states}\n{running.stack.supervisor.log(part).read_text()[-3000:]}"
    )


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", PARTS)
def test_a_killed_part_comes_back_with_its_state(stack, part):
    traces = Traces(stack)
    number = stack.stack.supervisor.processes()[part]["pid"]
    os.kill(number, signal.SIGKILL)
    wait_until_healthy(stack, part, number)
    assert traces.missing() == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_killed_supervisor_and_stale_files_do_no_harm(stack):
    traces = Traces(stack)
    supervisor = stack.stack.supervisor
    before = {name: info["pid"] for name, info in supervisor.processes().items()}
    os.kill(supervisor.call("getPID"), signal.SIGKILL)
    (stack.stack.folder / "supervisord.pid").write_text(f"{os.getpid()}\n")  # by now somebody else has that number
    done = stack.clearwell("up", "--no-deployments")
    assert done.returncode == 0, done.stderr
    assert traces.missing() == []
    after = {name: info["pid"] for name, info in supervisor.processes().items()}
    assert not set(before.values()) & set(after.values())
    assert not [number for number in before.values() if psutil.pid_exists(number)]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_credentials_rotate_and_a_backup_restores(stack, tmp_path):
    """Down, new credentials, backup, up; then a change, which the restored backup does not have."""
    traces, old = Traces(stack), stack.stack.credentials
    for arguments in (
        ["down"],
        ["rotate-credentials"],
        ["backup", str(tmp_path / "kept.tar.gz")],
        ["up", "--no-deployments"],
    ):
        done = stack.clearwell(*arguments)
        assert done.returncode == 0, done.stderr
    stack.__dict__.pop("stack")  # it remembers the old credentials
    new = stack.stack.credentials
    assert not set(old.secrets) & set(new.secrets)
    assert traces.missing() == []
    ports = stack.stack.settings.stack
    for port, path, password in [
        (ports.prefect_port, "/api/version", old.prefect),
        (ports.mlflow_port, "/version", old.mlflow),
    ]:
        assert httpx.get(f"http://127.0.0.1:{port}{path}", auth=("clearwell", password)).status_code == 401
    with pytest.raises(Exception, match="password authentication failed"):
        postgres.server_version(old, ports.postgres_port)

    kept = tmp_path / "kept.tar.gz"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert stack.clearwell("backup", str(kept)).returncode == 5  # it exists, and stays
    later = Traces(stack)
    done = stack.clearwell("restore", str(kept))
    assert done.returncode == 0, done.stderr
    assert json.loads((stack.root / CONNECTION_FILE).read_text())["object_store"]["secret_key"] == new.secret_key
    assert traces.missing() == []
    with pytest.raises(Exception, match=later.run):
        later.missing()
    aside = list(stack.root.glob(".clearwell.before-*"))
    assert len(aside) == 1
    assert (aside[0] / "stack" / "postgres" / "PG_VERSION").exists()
    with stack.in_force():
        unreached = Places(Project()).out_of_reach()
    for left in (f"{aside[0].name}, which a restore moved aside", f"{kept}: make a new one"):
        assert any(left in line for line in unreached), "an erasure says where rows may still be"


@pytest.fixture
def idle(home):
    """A stack that was never started, on free ports."""
    return Stack(Settings(root=home, stack=Ports(**free_ports())))


@pytest.mark.parametrize("name", ["postgres_port", "objects_port", "prefect_port", "mlflow_port"])
def test_a_taken_port_is_named(idle, name):
    port = getattr(idle.settings.stack, name)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(ConfigurationError, match=rf"Port {port} .*taken by .*process {os.getpid()}.*stack\.{name}"):
            idle.up()
    assert not idle.connection.exists()
    assert not idle.supervisor.answers()


def test_an_inner_port_of_the_object_store_is_named_too(idle):
    port = idle.settings.stack.objects_port + 3
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(ConfigurationError, match=rf"Port {port} of SeaweedFS .*CLEARWELL_STACK__OBJECTS_PORT"):
            idle.up()


def test_what_never_ran_can_be_asked_and_stopped(idle):
    assert idle.status() == []
    assert idle.down() is False
    assert not idle.healthy()


def test_a_postmaster_file_with_the_number_of_another_process_is_dropped(tmp_path):
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n")
    assert postgres.postmaster(tmp_path) is None
    postgres._drop_stale_pid_file(tmp_path)
    assert not (tmp_path / "postmaster.pid").exists()


def test_credentials_that_others_can_read_are_not_used(idle):
    idle.folder.mkdir(parents=True)
    doors.keep(doors.generate(postgres.ROLES), idle.credentials_file)
    idle.credentials_file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="rotate-credentials"):
        _ = idle.credentials


def test_what_is_no_backup_changes_nothing(idle, tmp_path):
    (idle.settings.root / ".clearwell" / "mine").write_text("precious")
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(StoreError, match="Nothing was changed"):
        restore(idle, tmp_path / "text.tar.gz")
    with pytest.raises(StoreError, match="Nothing was changed"):
        restore(idle, tmp_path / "absent.tar.gz")
    assert (idle.settings.root / ".clearwell" / "mine").read_text() == "precious"


def test_a_backup_that_was_cut_off_is_refused(idle, tmp_path):
    from infra.stack.backup import back_up

    (idle.settings.root / ".clearwell" / "mine").write_bytes(os.urandom(200_000))
    whole = back_up(idle, tmp_path / "whole.tar.gz")
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(StoreError, match="can not be restored"):
        restore(idle, tmp_path / "cut.tar.gz")
    before = (idle.settings.root / ".clearwell" / "mine").read_bytes()
    (idle.settings.root / ".clearwell" / "mine").write_text("changed")
    restore(idle, whole)
    assert (idle.settings.root / ".clearwell" / "mine").read_bytes() == before

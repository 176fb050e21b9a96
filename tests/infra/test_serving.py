"""A champion served by a process of its own: right answers, clear refusals, and no request lost when it changes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from infra.errors import PromotionError, ServerError
from infra.model_registry import CHAMPION
from infra.project import Project
from infra.serving import LARGEST_REQUEST, VERSION_HEADER, ServedAlias, _listening
from infra.settings import Settings
from tests.served_models import BATCH, MODEL, register

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory, empty_tracking):
    """A project with three versions, and what each says of BATCH."""
    root = tmp_path_factory.mktemp("serving")
    (root / ".clearwell").mkdir()
    (root / "mlflow.yaml").write_text("gates: []\n")
    shutil.copyfile(empty_tracking, root / ".clearwell" / "mlflow.db")
    project = Project(Settings(root=root, gates=()))
    answers = dict(register(project, str(n)) for n in range(3))
    project.registry.promote(MODEL, "1")
    return project, answers


def process(project, *command):
    environment = {**os.environ, "CLEARWELL_ROOT": str(project.root), "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    environment |= {
        "MLFLOW_TRACKING_URI": project.settings.tracking_uri,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(server):
    if server.poll() is None:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.kill()
        server.kill()
    server.communicate()


@pytest.fixture(scope="module")
def server(served):
    """``clearwell serve``, and its address."""
    started = process(served[0], "-m", "flows.cli", "serve", f"{MODEL}@champion", "--port", "0", "--every", "0.2")
    line = started.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line + started.stderr.read()
    yield started, found[0]
    end(started)


def ask(address, content, **options):
    if isinstance(content, dict):
        return httpx.post(f"{address}/invocations", json=content, timeout=30)
    return httpx.post(f"{address}/invocations", content=content, timeout=30, **options)


def wait_for(address, version):
    deadline = time.monotonic() + 30
    while ask(address, {"inputs": BATCH}).headers[VERSION_HEADER] != f"{MODEL}/{version}":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_same_answers_as_mlflow_models_serve(served, server):
    project, answers = served
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    theirs = process(
        project, "-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}@champion", "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ping").is_success:
                    break
            except httpx.TransportError:
                assert time.monotonic() < deadline and theirs.poll() is None, theirs.stderr.read()
                time.sleep(0.2)
        for content in ({"inputs": BATCH}, {"instances": BATCH}):
            mine, other = ask(server[1], content), ask(f"http://127.0.0.1:{port}", content)
            assert (mine.status_code, mine.content) == (other.status_code, other.content) == (200, other.content)
            np.testing.assert_allclose(mine.json()["predictions"], answers["1"], rtol=1e-5)
        for content in ({"inputs": [[1.0]]}, {"inputs": [["a"] * 4]}, {"inputs": [[float("nan")] * 4]}):
            text, header = json.dumps(content), {"content-type": "application/json"}
            codes = [ask(at, text, headers=header).status_code for at in (server[1], f"http://127.0.0.1:{port}")]
            assert codes == [400, 400]
    finally:
        end(theirs)


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        ('{"inputs": [[1, 2, 3]]}', 400, r"Shape of input \(1, 3\) does not match expected shape \(-1, 4\)"),
        ('{"inputs": [[[1, 2, 3, 4]]]}', 400, "does not match expected shape"),
        ('{"inputs": []}', 400, "Failed to enforce schema"),
        ('{"inputs": [["a", "b", "c", "d"]]}', 400, "could not convert string to float"),
        ('{"inputs": [[1, 2, 3, null]]}', 400, "."),
        ('{"inputs": [[1, 2, 3, NaN]]}', 400, "not finite"),
        ('{"inputs": [[1, 2], [3]]}', 400, "."),
        ('{"rows": [[1, 2, 3, 4]]}', 400, "."),
        ("[1, 2, 3, 4]", 400, "."),
        ("not json", 400, "valid JSON"),
        ("", 400, "valid JSON"),
    ],
)
def test_request_that_does_not_fit_is_told_the_expected_signature(server, content, code, message):
    answer = ask(server[1], content, headers={"content-type": "application/json"})
    assert answer.status_code == code
    said = answer.json()
    assert re.search(message, said["message"]), said
    assert "float32" in said["expected"]
    assert "(-1, 4)" in said["message"]
    assert "Traceback" not in answer.text


def test_request_of_no_or_another_type_is_refused(server):
    assert ask(server[1], b"x").status_code == 415
    assert ask(server[1], b"x", headers={"content-type": "application/x-pickle"}).status_code == 415
    with socket.create_connection(("127.0.0.1", int(server[1].rpartition(":")[2])), timeout=30) as raw:
        raw.sendall(b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_request_without_a_length_is_cut_off_all_the_same(server):
    parts = (b" " * 2**20 for _ in range(LARGEST_REQUEST // 2**20 + 1))
    answer = httpx.post(f"{server[1]}/invocations", content=parts, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert f"{LARGEST_REQUEST} bytes at most" in answer.json()["message"]


def test_it_listens_on_loopback_only(server):
    process = psutil.Process(server[0].pid)
    listening = [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


def test_no_request_is_lost_when_the_champion_changes(served, server):
    project, answers = served
    ended, seen, wrong = threading.Event(), [], []

    def keep_asking():
        with httpx.Client(timeout=30) as client:
            while not ended.is_set():
                answer = client.post(f"{server[1]}/invocations", json={"inputs": BATCH})
                version = answer.headers[VERSION_HEADER].rpartition("/")[2]
                seen.append(version)
                right = answer.is_success and np.allclose(answer.json()["predictions"], answers[version], rtol=1e-5)
                if not right:
                    wrong.append(answer.text)

    askers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for version in ("2", "3"):
            project.registry.promote(MODEL, version)
            wait_for(server[1], version)
        assert project.registry.rollback(MODEL).version == "2"
        wait_for(server[1], "2")
    finally:
        ended.set()
        for asker in askers:
            asker.join()
    assert wrong == []
    assert set(seen) >= {"2", "3"}
    assert len(seen) > 20


def test_damaged_champion_is_not_taken_over_and_a_retired_one_is_not_served(served, server):
    project, _ = served
    registry = project.registry
    registry.promote(MODEL, "2")
    app = ServedAlias(registry, MODEL, CHAMPION)
    run = registry.tracker.client.get_model_version(MODEL, "3").run_id
    artifacts = Path(registry.tracker.client.get_run(run).info.artifact_uri.removeprefix("file://")) / "model"
    program = artifacts / "artifacts" / "program.pt2"
    program.write_bytes(program.read_bytes()[:-7] + b"1234567")
    registry.tracker.client.set_registered_model_alias(MODEL, CHAMPION, "3")  # by hand, past every check
    app.look()
    assert (app.current.version, app.refused) == ("2", "3")
    registry.tracker.client.set_registered_model_alias(MODEL, CHAMPION, "2")
    registry.retire(MODEL, "2", "data erased")
    app.look()
    assert app.current is None
    deadline = time.monotonic() + 30
    while (answer := ask(server[1], {"inputs": BATCH})).status_code != 503:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "the last was retired" in answer.text
    with pytest.raises(PromotionError, match="Nobody holds the alias 'champion'"):
        ServedAlias(registry, MODEL, CHAMPION)


def test_busy_port_is_named():
    with _listening(0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} of 127.0.0.1 can not be listened on"), _listening(port):
            pass


def test_it_ends_when_asked_to(server):
    started, _ = server
    started.send_signal(signal.SIGINT)
    assert started.wait(30) in (0, 130)

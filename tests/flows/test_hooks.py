"""A run that ends badly is told to people, and an erasure without what its message may name."""

from __future__ import annotations

import importlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed

from flows.hooks import tell_failed_erasure, tell_failure
from infra.settings import settings

DEPLOYMENTS = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]


@flow(name="lifecycle")
def stops():
    """Only its name is used."""


@pytest.fixture
def listener(home, monkeypatch):
    """A server that takes messages, and the settings that lead to it."""
    heard = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if "refuse" in self.path else 200)
            self.end_headers()

        def log_message(self, *said):
            pass

    server = HTTPServer(("127.0.0.1", 0), Ear)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def at(path):
        monkeypatch.setenv("CLEARWELL_NOTIFY__WEBHOOK", f"http://127.0.0.1:{server.server_port}/{path}")
        settings.cache_clear()
        return heard

    yield at
    server.shutdown()
    thread.join()
    server.server_close()


def failed(message):
    run = FlowRun(flow_id=uuid4(), name="calm-otter")
    return run, Failed(message=message)


def test_a_failure_is_posted_with_what_went_wrong(listener):
    heard = listener("hook")
    tell_failure(stops, *failed("no rows in 'train'"))
    (message,) = heard
    assert message["text"].startswith("clearwell: lifecycle (calm-otter) Failed: no rows in 'train'")
    assert (message["flow"], message["run"], message["state"]) == ("lifecycle", "calm-otter", "Failed")


def test_a_failed_erasure_is_posted_without_the_ids_of_its_message(listener, caplog):
    heard = listener("hook")
    tell_failed_erasure(stops, *failed("further ids have the same bytes: visitor-0007"))
    (message,) = heard
    assert "visitor-0007" not in json.dumps(message)
    assert "visitor-0007" not in caplog.text
    assert "clearwell forget --resume" in message["text"]


def test_a_webhook_that_refuses_stops_nothing_and_keeps_its_address(listener, caplog):
    heard = listener("refuse-secret")
    tell_failure(stops, *failed("gone"))
    assert len(heard) == 1
    assert "did not take the message (HTTPStatusError)" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=[each["name"] for each in DEPLOYMENTS])
def test_every_deployment_tells_when_it_fails_or_crashes(deployment):
    module, _, name = deployment["entrypoint"].rpartition(".")
    found = getattr(importlib.import_module(module), name)
    wanted = [tell_failed_erasure if name == "erasure" else tell_failure]
    assert (found.on_failure_hooks, found.on_crashed_hooks) == (wanted, wanted)

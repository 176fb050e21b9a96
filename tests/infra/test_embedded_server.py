"""Prefect's embedded server: there while the block runs, gone after it, never beside a server that was set."""

import os

import httpx
import pytest

from infra.embedded_server import embedded_server
from infra.errors import ServerError
from infra.files import is_running
from infra.settings import settings


def test_it_answers_inside_the_block_and_is_gone_after(home):
    settings()
    with embedded_server() as server:
        server.wait()
        assert os.environ["PREFECT_API_URL"] == server.url
        assert httpx.get(f"{server.url}/health").json() is True
        pid = server.process.pid
    assert "PREFECT_API_URL" not in os.environ
    assert not is_running(str(pid))


def test_a_server_that_is_set_is_left_alone(home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    with embedded_server() as server:
        assert server is None
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:1/api"


def test_one_that_does_not_start_says_why(home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgres://nowhere")
    with embedded_server() as server, pytest.raises(ServerError, match=r"did not start: .*(?s:.)*clearwell doctor"):
        server.wait()

"""What is worth trying again: servers that are away or busy, and nothing else."""

import botocore.exceptions
import httpx
import pytest
import requests
import sqlalchemy as sa
from mlflow.exceptions import MlflowException

from infra.errors import ConfigurationError, LeaseHeldError, StageError, is_transient


def s3(status):
    answer = {"Error": {"Code": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(answer, "PutObject")


def caused(outer, inner):
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        httpx.ConnectError("no"),
        httpx.ReadTimeout("late"),
        requests.ConnectionError(),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
        s3(500),
        s3(503),
        s3(429),
        sa.exc.OperationalError("select", {}, Exception("database is locked")),
        MlflowException("API request to http://x failed with exception timed out"),
        LeaseHeldError("taken"),
        caused(StageError("failed"), s3(503)),
        caused(StageError("failed"), caused(RuntimeError(), ConnectionResetError())),
    ],
)
def test_servers_that_are_away_or_busy(error):
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("wrong"),
        ConfigurationError("wrong"),
        s3(403),
        s3(404),
        MlflowException("no such experiment"),
        caused(StageError("failed"), ValueError("shape")),
        FileNotFoundError(),
        sa.exc.IntegrityError("insert", {}, Exception()),
        None,
    ],
)
def test_what_would_fail_again(error):
    assert not is_transient(error)

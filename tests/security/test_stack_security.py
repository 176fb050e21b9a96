"""The stack's doors: nothing opens without the right key, and nobody but this machine can knock."""

import json
import ssl
import stat
import subprocess

import httpx
import psutil
import psycopg2
import pytest
from botocore.exceptions import ClientError

from infra.object_store import ObjectStore
from infra.stack.credentials import USER
from infra.stack.parts import GRPC_ABOVE

WRONG = [None, (USER, "wrong"), ("admin", "password1234"), ("", "")]


@pytest.fixture(scope="module")
def ports(stack):
    return stack.stack.settings.stack


@pytest.fixture(scope="module")
def processes(stack):
    """Every process of the stack, those that its parts started included."""
    top = psutil.Process(stack.stack.supervisor.call("getPID"))
    return [top, *top.children(recursive=True)]


@pytest.mark.parametrize("who", WRONG)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/flow_runs/filter"),
        ("POST", "/deployments/filter"),
        ("POST", "/block_documents/filter"),
        ("GET", "/admin/settings"),
        ("GET", "/version"),
        ("POST", "/work_pools/"),
        ("DELETE", "/work_pools/clearwell"),
    ],
)
def test_prefect_refuses(ports, method, path, who):
    url = f"http://127.0.0.1:{ports.prefect_port}/api{path}"
    assert httpx.request(method, url, json={} if method == "POST" else None, auth=who).status_code == 401


@pytest.mark.parametrize("who", WRONG)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/version"),
        ("GET", "/api/2.0/mlflow/experiments/search?max_results=1"),
        ("POST", "/api/2.0/mlflow/runs/create"),
        ("GET", "/api/2.0/mlflow/registered-models/search"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/planted.txt"),
        ("POST", "/graphql"),
        ("POST", "/api/2.0/mlflow/users/create"),
    ],
)
def test_mlflow_refuses(ports, method, path, who):
    url = f"http://127.0.0.1:{ports.mlflow_port}{path}"
    assert httpx.request(method, url, json={} if method == "POST" else None, auth=who).status_code == 401


@pytest.mark.parametrize("database", ["postgres", "prefect", "mlflow", "mlflow_auth", "ledger"])
@pytest.mark.parametrize("password", ["", "wrong"])
def test_postgres_refuses(ports, database, password):
    role = {"mlflow_auth": "mlflow"}.get(database, database)
    with pytest.raises(psycopg2.OperationalError, match=r"no password supplied|password authentication failed"):
        psycopg2.connect(
            host="127.0.0.1",
            port=ports.postgres_port,
            user=role,
            password=password,
            dbname=database,
            passfile="/dev/null",
        )


def test_a_database_is_closed_to_the_roles_of_the_others(stack, ports):
    words = stack.stack.credentials.postgres
    for role, database in [
        ("mlflow", "ledger"),
        ("prefect", "ledger"),
        ("ledger", "mlflow_auth"),
        ("mlflow", "prefect"),
    ]:
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            psycopg2.connect(
                host="127.0.0.1", port=ports.postgres_port, user=role, password=words[role], dbname=database
            )


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/dvc"), ("PUT", "/dvc/planted"), ("GET", "/?Action=x")]
)
def test_the_object_store_refuses_who_shows_no_key(ports, method, path):
    assert httpx.request(method, f"http://127.0.0.1:{ports.objects_port}{path}").status_code in (400, 403)


def test_the_object_store_refuses_a_wrong_key(on_stack):
    from infra.settings import settings

    right = settings().object_store
    for change in ({"secret_key": "wrong"}, {"access_key": "unknown"}):
        wrong = ObjectStore(right.model_validate({**right.model_dump(), **change}))
        calls = {
            "list_buckets": {},
            "put_object": {"Bucket": "dvc", "Key": "planted", "Body": b"x"},
            "get_object": {"Bucket": "dvc", "Key": "planted"},
            "delete_bucket": {"Bucket": "dvc"},
        }
        for name, arguments in calls.items():
            with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|InvalidAccessKeyId"):
                getattr(wrong.client, name)(**arguments)


def test_the_doors_behind_the_object_store_ask_for_a_certificate(ports):
    """SeaweedFS' master, volume, filer and admin servers know no keys: without mutual TLS they would open to all."""
    for port in range(ports.objects_port + 1, ports.objects_port + 5):
        for path in ("/", "/dir/assign", "/buckets/", "/buckets/dvc/", "/cluster/status", "/vol/status"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 400
            with pytest.raises(
                (httpx.TransportError, ssl.SSLError), match=r"(?i)certificate required|disconnected|reset"
            ):
                httpx.get(f"https://127.0.0.1:{port}{path}", verify=False)
    for port in range(ports.objects_port + GRPC_ABOVE, ports.objects_port + GRPC_ABOVE + 5):
        with pytest.raises(httpx.TransportError, match=r"disconnected|reset"):
            httpx.get(f"http://127.0.0.1:{port}/")


def test_everything_listens_on_loopback_only(processes, ports):
    listening = {}
    for process in processes:
        for found in process.net_connections("inet"):
            if found.status == psutil.CONN_LISTEN or (found.type == 2 and found.laddr):  # TCP, or UDP
                listening[found.laddr.port] = found.laddr.ip
    assert set(listening.values()) == {"127.0.0.1"}
    expected = {ports.postgres_port, ports.objects_port, ports.prefect_port, ports.mlflow_port}
    assert expected <= set(listening)


def test_nothing_is_connected_to_anywhere_else(processes):
    peers = {c.raddr.ip for p in processes if p.is_running() for c in p.net_connections("inet") if c.raddr}
    assert peers <= {"127.0.0.1"}


def test_no_secret_is_seen_by_others(stack, processes):
    """Not on a command line, not in a log, and in no file that another user could open."""
    secrets = stack.stack.credentials.secrets
    lines = "\n".join(" ".join(process.cmdline()) for process in processes if process.is_running())
    shown = stack.clearwell("status", "--json").stdout + stack.clearwell("status").stdout
    assert not [secret for secret in secrets if secret in lines + shown]
    json.loads(stack.clearwell("status", "--json").stdout)
    for path in (p for p in stack.root.rglob("*") if p.is_file() and not p.is_symlink()):
        readable = stat.S_IMODE(path.stat().st_mode) & 0o077
        inside = stack.stack.folder / "postgres" in path.parents
        if not inside and (readable or path.suffix == ".log"):
            content = path.read_bytes()
            assert not [s for s in secrets if s.encode() in content], path


def test_what_the_parts_keep_is_closed_to_others(stack):
    folder = stack.stack.folder
    for name in ("credentials.json", "connection.json", "supervisord.conf", "mlflow-auth.ini", "certificates/part.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    for name in ("postgres", "objects", "certificates", "logs"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o700, name


def test_telemetry_is_off(processes):
    told = {}
    for process in processes:
        line = " ".join(process.cmdline())
        told |= {name: process.environ() for name in ("prefect server", "mlflow_app", "prefect worker") if name in line}
        if "weed" in line.split()[0]:
            assert "-master.telemetry=false" in process.cmdline()
    assert told["prefect server"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert told["mlflow_app"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert all(environment["DO_NOT_TRACK"] in ("1", "true") for environment in told.values())
    assert len(told) == 3


def test_an_unprivileged_user_of_this_machine_gets_nothing(stack):
    """Seen as the user nobody, when the tests run as root."""
    import os

    if os.geteuid() != 0:
        return
    for name in ("credentials.json", "connection.json", "supervisord.conf"):
        tried = subprocess.run(["cat", str(stack.stack.folder / name)], user="nobody", capture_output=True, text=True)
        assert "Permission denied" in tried.stderr

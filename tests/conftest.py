"""What every test runs under: few threads, so that parallel runs do not fight, and no product phoning home."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_CACHE", str(Path(tempfile.gettempdir()) / "clearwell-tests-arrow"))
os.environ.setdefault("OMP_NUM_THREADS", "2")

SETTINGS = """
gates:
  - {metric: source_accuracy, split: test, at_least: 0.9, worse_than_champion_by_at_most: 0.02}
  - {metric: size_bytes, split: model, at_most: 1000, worse_than_champion_by_at_most: 100, higher_is_better: false}
"""


@pytest.fixture(scope="session")
def empty_tracking(tmp_path_factory):
    """An MLflow database without runs. Making one takes seconds, copying it none."""
    from infra.settings import Settings, Tracking
    from infra.tracking import Tracker

    home = tmp_path_factory.mktemp("tracking")
    settings = Settings(root=home, tracking=Tracking(uri="sqlite:///empty.db"))
    _ = Tracker(settings).client.search_experiments()
    return home / "empty.db"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project folder of its own, in force as long as the test runs."""
    from infra.settings import settings

    root = tmp_path / "project"
    (root / ".clearwell").mkdir(parents=True)
    (root / "mlflow.yaml").write_text(SETTINGS)
    before = dict(os.environ)
    monkeypatch.chdir(root)
    os.environ["CLEARWELL_ROOT"] = str(root)
    settings.cache_clear()
    yield root
    settings.cache_clear()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def project(home, empty_tracking):
    """The stores of a project of its own, MLflow's database included."""
    from infra.project import Project

    shutil.copyfile(empty_tracking, home / ".clearwell" / "mlflow.db")
    return Project()


@pytest.fixture(scope="session")
def stack():
    """The real servers, started once for all tests that ask for them. Whoever harms one waits until it is back."""
    from tests.running_stack import running_stack

    with running_stack(SETTINGS) as running:
        yield running


@pytest.fixture(scope="session")
def deployed(stack):
    """The same servers, told of the flows."""
    done = stack.clearwell("up")
    assert done.returncode == 0, done.stderr
    return stack


@pytest.fixture
def on_stack(stack, tmp_path, monkeypatch):
    """The stack's project is in force as long as the test runs."""
    monkeypatch.chdir(tmp_path)
    with stack.in_force():
        yield stack


def pytest_collection_modifyitems(items):
    """The first test that asks for the servers waits until they are up, which takes a busy machine minutes."""
    for item in items:
        if "stack" in item.fixturenames and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(400))

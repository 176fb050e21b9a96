"""A person's way through the pages of the real servers, with a real browser."""

import shutil
from pathlib import Path

import pytest

from tests.browser.tour import take
from tests.chaos.conftest import make_project

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_from_the_login_to_the_champion(deployed, tmp_path):
    made = make_project(tmp_path)
    shutil.copytree(made / "data", deployed.root / "data", dirs_exist_ok=True)
    settings = deployed.root / "mlflow.yaml"
    before = settings.read_text()
    ports = next(line for line in before.splitlines() if line.startswith("stack:"))
    settings.write_text(f"{(made / 'mlflow.yaml').read_text()}\n{ports}\n")  # gates that a model made in a minute meets
    try:
        version = take(Path(deployed.root), tmp_path / "pictures")
    finally:
        settings.write_text(before)
    assert int(version) >= 1
    assert {path.name for path in (tmp_path / "pictures").glob("*.png")} == {
        f"{name}.png" for name in ("deployments", "form", "completed", "mlflow-run", "registered-model", "champion")
    }

"""The command line, as a user calls it."""

import shutil
import sys

import pytest

from flows import cli


@pytest.fixture
def clearwell(home, monkeypatch, capsys):
    """Run a command as a user does; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["clearwell", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    monkeypatch.setenv("COLUMNS", "160")
    return run


@pytest.fixture
def tracked(clearwell, home, empty_tracking):
    """The command line of a project whose MLflow database is there already."""
    shutil.copyfile(empty_tracking, home / ".clearwell" / "mlflow.db")
    return clearwell

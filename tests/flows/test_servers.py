"""One Prefect server a command: ours is named before Prefect is imported, which starts one of its own otherwise."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALLS = {
    "discover": "run_discover('d', (), None, None, '', None, [], False)",
    "curate": "run_curate('d', None, None, None, '', False, None, (), None, [], False)",
    "plan": "run_plan(('d',), 100, '', 'el2n', 4, 300, 0, False)",
    "compare": "run_compare('discover', 'd', 'ppp', 1.0, 0, 100, True, False)",
    "embed": "run_embed('d', '', False)",
    "sweep": "run_sweep('validate', ['d'], [], False)",
}
MODULES = {"embed": "scale", "sweep": "scale"}


@pytest.mark.parametrize("command", CALLS)
def test_prefect_is_imported_when_its_server_is_known(home, command):
    asked = (
        "import sys\n"
        f"from flows.commands import {MODULES.get(command, command)} as command\n"
        "def server():\n"
        "    sys.exit('too late' if 'prefect' in sys.modules else 0)\n"
        "command.embedded_server = server\n"
        f"command.{CALLS[command]}\n"
    )
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""``clearwell up``, ``down``, ``status``, ``logs``, ``backup``, ``restore`` and ``rotate-credentials``."""

from __future__ import annotations

import shlex
import time
from collections import deque
from pathlib import Path

from infra.errors import ConfigurationError, ServerError
from infra.settings import environment, settings
from infra.stack.servers import Stack


def start_stack(deployments: bool) -> None:
    """Start the servers, tell them of the flows, and say where everything is."""
    from flows.commands.console import Stopwatch, err, out
    from infra.stack.results import prepare_results

    clock, current = Stopwatch(), settings()
    stack = Stack(current)
    stack.up(lambda said: err.print(f"{clock.seconds:5.1f} s  {said}", highlight=False))
    _use_new_connection()
    prepare_results(settings())
    if deployments:
        from flows.commands.deploy import deploy

        deploy()
        err.print(f"{clock.seconds:5.1f} s  deployments registered", highlight=False)
    ports = current.stack
    out.print(f"The stack is up after {clock.seconds:.0f} s. Passwords: {stack.credentials_file}", soft_wrap=True)
    out.print(f"  Prefect  http://127.0.0.1:{ports.prefect_port}   log in with clearwell:PASSWORD", highlight=False)
    out.print(f"  MLflow   http://127.0.0.1:{ports.mlflow_port}   log in as clearwell", highlight=False)
    out.print("\nNext:\n  clearwell status\n  clearwell run\n  clearwell down", highlight=False)


def _use_new_connection() -> None:
    settings.cache_clear()
    settings()


def stop_stack() -> None:
    """Stop the servers."""
    from flows.commands.console import out

    ran = Stack(settings()).down()
    out.print("The stack is down; its data stays." if ran else "The stack was not up.")


def show_status(as_json: bool) -> None:
    """Each part with its address, health, version and memory; exit code 7 unless all are well."""
    from flows.commands.console import out, print_json, print_table

    found = Stack(settings()).status()
    if as_json:
        print_json(found)
    elif found:
        print_table("Stack", found, ("part", "what", "state", "version", "address", "memory_mb"))
        out.print(f"{sum(part['memory_mb'] for part in found)} MB in all.")
    if not found or all(part["state"] == "stopped" for part in found):
        raise ServerError("The stack is not up. Start it with `clearwell up`.")
    ill = [part["part"] for part in found if part["state"] != "healthy"]
    if ill:
        raise ServerError(f"Not well: {', '.join(ill)}. See `clearwell logs {ill[0]}`, then `clearwell up`.")


def show_logs(part: str, lines: int, follow: bool) -> None:
    """The end of a part's log."""
    stack = Stack(settings())
    known = sorted(path.stem for path in (stack.folder / "logs").glob("*.log"))
    log = stack.supervisor.log(part)
    if part not in known:
        names = ", ".join(known) or "none; run `clearwell up`"
        raise ConfigurationError(f"There is no log of {part!r}. Known: {names}.")
    with log.open(errors="replace") as stream:
        print("".join(deque(stream, maxlen=lines)), end="")
        while follow:
            line = stream.readline()
            print(line, end="", flush=True)
            if not line:
                time.sleep(0.3)


def show_environment() -> None:
    """Shell lines that point other programs at the stack."""
    current = settings()
    if current.orchestration.api is None:
        raise ServerError("The stack is not up. Start it with `clearwell up`.")
    for name, value in sorted(environment(current).items()):
        print(f"export {name}={shlex.quote(value)}")


def back_up(target: Path) -> None:
    """One file with everything the project keeps."""
    from flows.commands.console import err, out
    from infra.stack.backup import back_up as write

    path = write(Stack(settings()), target, lambda said: err.print(said, highlight=False))
    out.print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
    out.print("It holds personal data if the datasets do: keep it closed, and make a new one after an erasure.")


def restore(source: Path) -> None:
    """Put a backup in the place of what is there."""
    from flows.commands.console import err, out
    from infra.stack.backup import restore as put_back

    aside = put_back(Stack(settings()), source, lambda said: err.print(said, highlight=False))
    out.print(f"{source} is restored.", highlight=False, soft_wrap=True)
    if aside:
        out.print(f"What was there before is in {aside}; delete it when all is as it should be.", soft_wrap=True)


def rotate_credentials() -> None:
    """New passwords and keys for every server."""
    from flows.commands.console import err, out

    stack = Stack(settings())
    stack.rotate_credentials(lambda said: err.print(said, highlight=False))
    out.print(f"New credentials are in {stack.credentials_file}. What runs elsewhere with the old ones is shut out.")

"""``clearwell drift``."""

from __future__ import annotations

from infra.embedded_server import embedded_server
from infra.settings import settings


def look(where: str, model: str, as_json: bool) -> None:
    """Run the flow, say what was found and what to do about it."""
    settings()
    with embedded_server() as server:
        from flows.commands.console import out, print_json, print_table, stage_progress
        from flows.drift_watch import drift_watch

        if server is not None:
            server.wait()
        with stage_progress():
            done = drift_watch(where, model)
    if as_json:
        print_json(done)
        return
    if "batch" not in done:
        out.print(f"{done['rows']} new rows in {where}: too few for a judgement; they wait for more.")
        return
    measured = done["metrics"]["drift"]
    rows = [{"measure": name, "found": measured[name], "bound": bound} for name, bound in done["bounds"].items()]
    print_table(f"{done['batch']} ({done['rows']} rows) against {done['model']} version {done['version']}", rows)
    if not done["drifted"]:
        out.print("No drift.")
    elif done["event"]:
        out.print(f"Drift. The Prefect server was told ({done['event']}) and starts the deployment adapt.")
    else:
        out.print(
            f"Drift. With a stack (`clearwell up`) the deployment adapt would start on {done['batch']} by itself."
        )

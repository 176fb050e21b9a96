"""``clearwell score``."""

from __future__ import annotations

from infra.embedded_server import embedded_server
from infra.settings import settings


def score_data(data: str, model: str, as_json: bool) -> None:
    """Run the flow, say where the answers are."""
    settings()
    with embedded_server() as server:
        from flows.commands.console import out, print_json, stage_progress
        from flows.score import score

        if server is not None:
            server.wait()
        with stage_progress():
            done = score(data, model)
    if as_json:
        print_json(done)
        return
    found = done["metrics"]["score"]
    out.print(f"{done['model']}: {found['rows']:.0f} rows, {found['unknown']:.0f} of them unknown.")
    out.print(f"Next:\n  clearwell data restore {done['data']} --to scored", highlight=False)

"""``clearwell report``."""

from __future__ import annotations

import json
import webbrowser

from infra.errors import DatasetNotFoundError
from infra.settings import settings


def show_report(open_page: bool, as_json: bool) -> None:
    """Print the latest summary and the page's address."""
    folder = settings().root / "reports" / "latest"
    if not (folder / "summary.json").exists():
        raise DatasetNotFoundError(f"There is no report in {folder} yet. Make one with `clearwell run`.")
    summary = json.loads((folder / "summary.json").read_text())
    from flows.commands.console import out, print_json
    from flows.commands.run import show_summary

    if as_json:
        print_json(summary)
        return
    show_summary(summary)
    page = folder / "index.html"
    out.print(f"\nThe page: {page}", soft_wrap=True)
    if open_page:
        webbrowser.open(page.as_uri())

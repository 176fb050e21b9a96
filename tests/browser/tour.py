"""The way of a person through the pages: log in, start the lifecycle from its form, follow it, read the champion.

python -m tests.browser.tour PROJECT docs/img      takes the pictures of docs/tour.md from a running stack
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.chaos.conftest import REDUCED

SIZE = {"width": 1280, "height": 860}
RUN_MINUTES = 8

expect.set_options(timeout=40_000)  # a busy machine draws late


@dataclass
class Tour:
    """What was read on the way.

    Attributes
    ----------
    browser : Browser
    prefect, mlflow : str
        Addresses of the pages.
    user : str
    passwords : dict
        "prefect" and "mlflow".
    pictures : Path
        Folder for the screenshots.
    """

    browser: Browser
    prefect: str
    mlflow: str
    user: str
    passwords: dict[str, str]
    pictures: Path

    def prefect_page(self) -> Page:
        """The Prefect pages, logged in through their form."""
        page = self.browser.new_page(viewport=SIZE)
        page.goto(self.prefect)
        page.get_by_placeholder("admin:pass").fill("somebody:wrong")
        page.get_by_role("button", name="Login").click()
        expect(page.get_by_text("Invalid credentials")).to_be_visible()
        page.get_by_placeholder("admin:pass").fill(f"{self.user}:{self.passwords['prefect']}")
        page.get_by_role("button", name="Login").click()
        page.wait_for_url("**/dashboard**")
        return page

    def mlflow_page(self) -> Page:
        """The MLflow pages, logged in by basic authentication."""
        refused = self.browser.new_context().request.get(self.mlflow, fail_on_status_code=False)
        assert refused.status == 401, refused.status
        who = {"username": self.user, "password": self.passwords["mlflow"]}
        return self.browser.new_context(viewport=SIZE, http_credentials=who).new_page()

    def picture(self, page: Page, name: str) -> None:
        """Keep what the page shows."""
        page.wait_for_timeout(1500)  # what slides in has slid in
        page.screenshot(path=self.pictures / f"{name}.png")

    def start(self, page: Page, parameters: dict[str, Any]) -> str:
        """Start the lifecycle from its form, filled with `parameters`; returns the flow run's id."""
        page.goto(f"{self.prefect}/v2/deployments")
        expect(page.get_by_text("drift-watch", exact=True).first).to_be_visible()
        self.picture(page, "deployments")
        page.get_by_text("lifecycle", exact=True).first.click()
        page.wait_for_url("**/deployment/*")
        expect(page.get_by_text("At 02:00 AM")).to_be_visible()
        page.get_by_role("button", name="Run").first.click()
        page.get_by_role("menuitem", name="Custom run").click()
        page.wait_for_url("**/run?**")
        page.goto(re.sub(r"\?.*", f"?parameters={quote(json.dumps(parameters))}", page.url))
        expect(page.get_by_text("Name of a dataset, NAME@VERSION, or a path to your own data.").first).to_be_visible()
        self.picture(page, "form")
        with page.expect_response(lambda answer: answer.url.endswith("/create_flow_run")) as created:
            page.get_by_role("button", name="Submit").click()
        return str(created.value.json()["id"])

    def follow(self, page: Page, run: str) -> str:
        """Watch the run until it is Completed; returns the address that its page gives for MLflow's."""
        page.goto(f"{self.prefect}/v2/runs/flow-run/{run}")
        expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=RUN_MINUTES * 60_000)
        page.get_by_role("tab", name="Artifacts").click()
        expect(page.get_by_text("mlflow-run").first).to_be_visible()
        page.wait_for_timeout(3000)  # the graph is drawn
        self.picture(page, "completed")
        answer = page.context.request.post(
            f"{self.prefect}/api/artifacts/filter",
            data={"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": ["mlflow-run"]}}},
            headers={"Authorization": _basic(self.user, self.passwords["prefect"])},
        )
        return str(re.search(r"\((http[^)]*)\)", answer.json()[0]["data"]).group(1))  # type: ignore[union-attr]

    def read(self, page: Page, address: str, run: str) -> None:
        """Open the MLflow run where Prefect's page leads, and see that it leads back."""
        page.goto(address)
        expect(page.get_by_text("lifecycle").first).to_be_visible()
        expect(page.locator(f"a[href$='/runs/flow-run/{run}']").first).to_be_attached()
        self._without_assistant(page)
        self.picture(page, "mlflow-run")

    @staticmethod
    def _without_assistant(page: Page) -> None:
        close = page.get_by_role("button", name="Close")
        if close.count():
            close.first.click()

    def champion(self, page: Page, name: str) -> str:
        """Read on the registered model's page which version is champion."""
        page.goto(f"{self.mlflow}/#/models/{name}?workflowType=machine_learning")
        row = page.get_by_role("row").filter(has_text="champion").first
        expect(row).to_be_visible()
        self.picture(page, "registered-model")
        found = re.search(r"Version (\d+)", row.inner_text())
        assert found, row.inner_text()
        page.goto(f"{self.mlflow}/#/models/{name}/versions/{found.group(1)}?workflowType=machine_learning")
        expect(page.get_by_text("champion").first).to_be_visible()
        self.picture(page, "champion")
        return found.group(1)


def _basic(user: str, password: str) -> str:
    import base64

    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@contextmanager
def touring(root: Path, pictures: Path) -> Iterator[Tour]:
    """A browser before the stack of the project `root`."""
    kept = json.loads((root / ".clearwell" / "stack" / "connection.json").read_text())
    user, _, password = kept["orchestration"]["auth"].partition(":")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "The browser test needs Chromium on PATH: `apt-get install chromium`."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield Tour(
            browser=browser,
            prefect=kept["orchestration"]["api"].removesuffix("/api"),
            mlflow=kept["tracking"]["uri"],
            user=user,
            passwords={"prefect": password, "mlflow": kept["tracking"]["password"]},
            pictures=pictures,
        )
        browser.close()


def reduced_parameters() -> dict[str, Any]:
    """The lifecycle made small."""
    return {"config": {"data": "scans", **yaml.safe_load(REDUCED)}, "command": "prefect deployment run"}


def take(root: Path, pictures: Path) -> str:
    """The whole tour; returns the champion's version."""
    pictures.mkdir(parents=True, exist_ok=True)
    with touring(root, pictures) as tour:
        page = tour.prefect_page()
        run = tour.start(page, reduced_parameters())
        address = tour.follow(page, run)
        other = tour.mlflow_page()
        tour.read(other, address, run)
        return tour.champion(other, "scans-classifier")


if __name__ == "__main__":
    print("champion: version", take(Path(sys.argv[1]), Path(sys.argv[2])))

"""A project with a reduced `scans`, on which the flow is really run: killed several times, then to the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
ROWS = {"train": 1500, "unlabelled": 400, "test": 500, "target": 400}
REDUCED = """
network: {channels: [8, 16, 32], embedding_dim: 32}
label_noise: {parameters: {epochs: 3, warmup: 1}}
pretrain: {probe_rows: 300, parameters: {epochs: 1, n_clusters: 64, batch_size: 64, ae_epochs: 1, ae_samples: 500}}
finetune: {epochs: 4}
adapt: {parameters: {epochs: 2, silhouette_max: 300}}
unlearn: {parameters: {epochs: 2, vae_epochs: 3}}
naive: {epochs: 3}
"""
GATES = """
gates:
  - {metric: source_accuracy, split: test, at_least: 0.2, worse_than_champion_by_at_most: 0.5}
  - {metric: size_bytes, split: model, at_most: 100000, higher_is_better: false}
"""


def make_project(folder: Path) -> Path:
    """A project folder with a part of `scans`, taken by row number."""
    source = ROOT / "data"
    assert (source / "scans").exists(), "The tests need the working copy of data.dvc: run `clearwell data pull`."
    (folder / "mlflow.yaml").write_text(GATES)
    (folder / "reduced.yaml").write_text(REDUCED)
    kept = []
    for split, rows in ROWS.items():
        table = pq.read_table(source / "scans" / split / "part-00000.parquet").slice(0, rows)
        (folder / "data" / "scans" / split).mkdir(parents=True)
        pq.write_table(table, folder / "data" / "scans" / split / "part-00000.parquet")
        kept += [(split, row) for row in range(rows)]
    truth = pd.read_parquet(source / "truth" / "scans.parquet").set_index(["split", "row"], drop=False)
    (folder / "data" / "truth").mkdir()
    truth.loc[kept].reset_index(drop=True).to_parquet(folder / "data" / "truth" / "scans.parquet")
    (folder / "data" / "erasure").mkdir()
    erasure = pd.read_parquet(source / "erasure" / "scans.parquet")
    erasure.to_parquet(folder / "data" / "erasure" / "scans.parquet")
    return folder


@dataclass
class Runner:
    """Starts the command line in a project, in processes of its own."""

    project: Path
    log: list[str] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``clearwell`` and return at once."""
        environment = {**os.environ, "CLEARWELL_ROOT": str(self.project), "OMP_NUM_THREADS": "2"}
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("clearwell")), *arguments],
            cwd=self.project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *more: str) -> dict:
        """Run the reduced flow to its end and return its summary."""
        process = self.start("run", "--config", "reduced.yaml", "--json", *more)
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err[-3000:]
        return json.loads(out)

    def finish(self, *arguments: str) -> tuple[int, str]:
        """Run a command to its end; returns exit code and standard error."""
        process = self.start(*arguments)
        _, err = process.communicate(timeout=500)
        return process.returncode, err

    def kill_during(self, stage: str, delay: float) -> bool:
        """Run the flow and kill it `delay` seconds after `stage` began; its embedded server lives on.

        Returns whether the stage had really begun and not yet ended.
        """
        process = self.start("run", "--config", "reduced.yaml", "--json")
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and process.poll() is None:
            if self.running(stage):
                time.sleep(delay)
                process.kill()
                process.wait()
                process.stdout.close()
                process.stderr.close()
                return self.running(stage)
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"{stage} never began: {process.communicate()[1][-2000:]}")

    def running(self, stage: str) -> bool:
        """Whether the tracking database says that the stage's run is under way."""
        import sqlite3

        database = self.project / ".clearwell" / "mlflow.db"
        if not database.exists():
            return False
        try:
            with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5) as connection:
                query = "select count(*) from runs where name = ? and status = 'RUNNING'"
                return bool(connection.execute(query, (stage,)).fetchone()[0])
        except sqlite3.OperationalError:
            return False


@pytest.fixture(scope="session")
def runner(tmp_path_factory) -> Runner:
    """A fresh project, nothing run yet."""
    return Runner(make_project(tmp_path_factory.mktemp("lifecycle")))

"""Journals outlive their process and go when their work is done."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from infra.journal import Journal
from infra.ledger import Ledger

ROOT = Path(__file__).parents[2]


@pytest.fixture
def journal(url):
    engine = Ledger(url).engine
    yield Journal(engine)
    engine.dispose()


def test_journal_keeps_plan_and_steps_in_order_until_it_is_finished(journal):
    first = journal.begin("promotion", "scans", {"version": "2", "before": None})
    journal.begin("erasure", "scans", {})
    second = journal.begin("promotion", "grains", {})
    journal.step(first, "alias")
    journal.step(first, "tag", {"at": 3})
    found = journal.open("promotion")
    assert [each.id for each in found] == [first, second]
    assert (found[0].subject, found[0].plan) == ("scans", {"version": "2", "before": None})
    assert list(found[0].steps.items()) == [("alias", {}), ("tag", {"at": 3})]
    assert [each.id for each in journal.open("promotion", "grains")] == [second]
    for _ in range(2):
        journal.finish(first)
    assert [each.id for each in journal.open("promotion")] == [second]
    assert journal.open("promotion")[0].steps == {}


def test_repeated_step_keeps_its_later_facts(journal):
    made = journal.begin("erasure", "scans", {})
    for n in range(2):
        journal.step(made, "delete", {"files": n})
    assert journal.open("erasure")[0].steps == {"delete": {"files": 1}}


def test_journal_of_a_killed_process_is_found_by_the_next(journal, url):
    code = "import os, sys; from infra.journal import Journal; from infra.ledger import Ledger\n"
    code += (
        "j = Journal(Ledger(sys.argv[1]).engine); j.step(j.begin('erasure', 'scans', {'n': 1}), 'scan'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, url], cwd=ROOT).returncode == 9
    [found] = journal.open("erasure")
    assert (found.plan, list(found.steps)) == ({"n": 1}, ["scan"])


def test_steps_of_a_transaction_that_fails_were_never_done(journal):
    made = journal.begin("erasure", "scans", {})
    with pytest.raises(ZeroDivisionError, match="division"), journal.engine.begin() as connection:
        journal.step(made, "delete", connection=connection)
        _ = 1 / 0
    assert journal.open("erasure")[0].steps == {}


def test_steps_noted_at_once_are_all_kept(journal):
    made = journal.begin("erasure", "scans", {})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: journal.step(made, f"step {n}"), range(24)))
    assert sorted(journal.open("erasure")[0].steps) == sorted(f"step {n}" for n in range(24))


def test_finished_journal_leaves_no_bytes_in_the_database(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    journal = Journal(Ledger(url).engine)
    made = journal.begin("erasure", "scans", {"ids": ["person-4711"] * 500})
    journal.step(made, "found", {"id": "person-4711"})
    file = Path(url.removeprefix("sqlite:///"))
    assert b"person-4711" in file.read_bytes()
    journal.finish(made)
    assert b"person-4711" not in file.read_bytes()


def test_journal_opens_on_tables_that_are_there(journal):
    made = journal.begin("erasure", "scans", {})
    assert [each.id for each in Journal(journal.engine).open("erasure")] == [made]
    with journal.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM journals")).scalar_one() == 1

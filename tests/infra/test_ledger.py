"""The ledger only grows, shows every change made to it, and lets one holder a lease at a time."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.database import writing
from infra.errors import LeaseHeldError, LeaseLostError, StoreError
from infra.ledger import GENESIS, Ledger, actor

PAYLOADS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda key: key != "kind"),
    st.none() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=20) | st.booleans(),
    max_size=4,
)
COLUMNS = ("number", "time", "actor", "kind", "payload", "previous", "hash")


@pytest.fixture
def ledger(url):
    made = Ledger(url)
    yield made
    made.engine.dispose()


def tamper(ledger, statement, **values):
    with ledger.engine.begin() as connection:
        connection.execute(sa.text(statement), values)


def test_entries_are_chained_and_come_back_in_order(ledger, monkeypatch):
    monkeypatch.setenv("CLEARWELL_ACTOR", "registrar")
    made = [ledger.append("data", name="scans", rows=n) for n in range(3)]
    found = ledger.entries()
    assert [entry["number"] for entry in found] == [1, 2, 3]
    assert [entry["previous"] for entry in found] == [GENESIS, made[0]["hash"], made[1]["hash"]]
    assert found[2]["payload"] == {"name": "scans", "rows": 2}
    assert found[0]["actor"] == "registrar"
    assert ledger.broken_at() is None


def test_entries_of_one_kind(ledger):
    ledger.append("data", name="a")
    ledger.append("promoted", model="b")
    assert [entry["payload"] for entry in ledger.entries("promoted")] == [{"model": "b"}]
    assert ledger.entries("erasure") == []


def test_ledger_outlives_the_process(ledger, url):
    ledger.append("data", name="a")
    assert Ledger(url).append("data", name="b")["previous"] == ledger.entries()[0]["hash"]


def test_actor_is_never_missing(monkeypatch):
    monkeypatch.delenv("CLEARWELL_ACTOR", raising=False)
    assert actor()
    monkeypatch.setattr("infra.ledger.getuser", lambda: (_ for _ in ()).throw(OSError("no such user")))
    assert actor() == "unknown"


@pytest.mark.parametrize("column", COLUMNS)
def test_change_of_any_column_shows(ledger, column):
    for n in range(3):
        ledger.append("data", rows=n)
    tamper(ledger, f"UPDATE ledger SET {column} = :value WHERE number = 2", value=7 if column == "number" else "x")
    assert ledger.broken_at() in (2, 3, 7)


def test_lost_entry_shows(ledger):
    for n in range(4):
        ledger.append("data", rows=n)
    tamper(ledger, "DELETE FROM ledger WHERE number = 2")
    assert ledger.broken_at() == 3


def test_rewritten_entry_breaks_the_next_even_with_its_own_hash_made_new(ledger):
    from infra.files import json_digest

    for n in range(3):
        ledger.append("data", rows=n)
    with ledger.engine.connect() as connection:
        row = dict(connection.execute(sa.text("SELECT * FROM ledger WHERE number = 2")).mappings().one())
    row["payload"] = '{"rows": 1000}'
    forged = json_digest({name: row[name] for name in COLUMNS[:-1]})
    tamper(ledger, "UPDATE ledger SET payload = :p, hash = :h WHERE number = 2", p=row["payload"], h=forged)
    assert ledger.broken_at() == 3


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=4), data=st.data())
def test_any_payload_is_kept_and_any_change_of_it_shows(tmp_path_factory, payloads, data):
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'l.db'}")
    for payload in payloads:
        ledger.append("data", **payload)
    assert [entry["payload"] for entry in ledger.entries()] == payloads
    assert ledger.broken_at() is None
    number = data.draw(st.integers(1, len(payloads)))
    other = data.draw(PAYLOADS.filter(lambda payload: payload != payloads[number - 1]))
    import json

    tamper(ledger, "UPDATE ledger SET payload = :p WHERE number = :n", p=json.dumps(other, sort_keys=True), n=number)
    assert ledger.broken_at() == number
    ledger.engine.dispose()


def test_threads_that_append_at_once_keep_the_chain_whole(ledger):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ledger.append("data", rows=n), range(48)))
    assert sorted(entry["payload"]["rows"] for entry in ledger.entries()) == list(range(48))
    assert ledger.broken_at() is None


def test_processes_that_append_at_once_keep_the_chain_whole(ledger, url):
    code = "import sys; from infra.ledger import Ledger; l = Ledger(sys.argv[1])\n"
    code += "for n in range(25): l.append('data', writer=sys.argv[2], rows=n)"
    root = Path(__file__).parents[2]
    writers = [subprocess.Popen([sys.executable, "-c", code, url, name], cwd=root) for name in ("a", "b")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = [(entry["payload"]["writer"], entry["payload"]["rows"]) for entry in ledger.entries()]
    assert sorted(found) == [(name, n) for name in ("a", "b") for n in range(25)]
    assert ledger.broken_at() is None


def test_stuck_ledger_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("infra.database.PATIENCE", 0.2)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger(url)
    with writing(ledger.engine), pytest.raises(StoreError, match="stays locked"):
        Ledger(url).append("data")


def test_entries_cut_off_at_the_end_are_missed(ledger):
    for n in range(3):
        ledger.append("data", rows=n)
    assert ledger.head()[0] == 3
    tamper(ledger, "DELETE FROM ledger WHERE number = 3")
    assert ledger.first_break().why == "the last entry was number 3, and the entries end at 2"
    assert ledger.broken_at() == 3


def test_ledger_from_before_heads_and_tokens_goes_on(url):
    old = sa.create_engine(url)
    with old.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE leases (name VARCHAR PRIMARY KEY, holder VARCHAR, expires FLOAT)")
    ledger = Ledger(url)
    ledger.append("data")
    tamper(ledger, "DELETE FROM ledger_head")
    assert ledger.broken_at() is None
    ledger.append("data")
    with ledger.lease("promote:m", 60) as lease:
        assert lease.token == 1
    assert ledger.head()[0] == 2
    assert ledger.broken_at() is None


def test_lease_excludes_others_and_ends_with_the_block(ledger, url):
    with (
        ledger.lease("promote:m", 60),
        ledger.lease("promote:other", 60),
        pytest.raises(LeaseHeldError, match="else is changing 'promote:m' right now"),
        Ledger(url).lease("promote:m", 60),
    ):
        pass
    with Ledger(url).lease("promote:m", 60):
        pass


def test_lease_ends_when_its_holder_fails(ledger):
    with pytest.raises(ZeroDivisionError, match="division"), ledger.lease("promote:m", 60):
        _ = 1 / 0
    with ledger.lease("promote:m", 60):
        pass


def test_lease_of_a_dead_holder_is_free_at_once_on_its_host_and_expires_on_others(ledger, url):
    code = "import os, sys; from infra.ledger import Ledger\n"
    code += "with Ledger(sys.argv[1]).lease('promote:m', 60): os._exit(9)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, url], cwd=root).returncode == 9
    with ledger.lease("promote:m", 60) as lease:
        assert lease.token == 2
        tamper(ledger, "UPDATE leases SET holder = 'elsewhere:1:1'")
        with pytest.raises(LeaseHeldError, match="right now") as held, ledger.lease("promote:m", 60):
            pass
        assert held.value.transient
        tamper(ledger, "UPDATE leases SET expires = expires - 60")  # time passes
        with ledger.lease("promote:m", 60):
            pass


def test_late_holder_may_change_nothing_more(ledger):
    with ledger.lease("promote:m", 60) as lease:
        with lease.held():
            pass
        tamper(ledger, "UPDATE leases SET expires = 0")
        with (
            pytest.raises(LeaseLostError, match=r"expired while its holder was at work \(token 1, now 1\)"),
            lease.held(),
        ):
            pytest.fail("the block must not run")
        with ledger.lease("promote:m", 60) as following:
            assert following.token == 2
            with pytest.raises(LeaseLostError, match=r"token 1, now 2"), lease.held():
                pytest.fail("the block must not run")
            with following.held() as connection:
                ledger.add(connection, "promoted", {})
    assert len(ledger.entries()) == 1


def test_nobody_takes_an_expired_lease_while_its_holder_makes_its_change(ledger, url):
    """The change itself may outlast the lease: who wants the lease waits for the change to end, or is told no."""
    with ledger.lease("promote:m", 0.4) as lease:
        changed, taken = threading.Event(), []

        def rival():
            for _ in range(100):
                try:
                    with Ledger(url).lease("promote:m", 60):
                        taken.append(changed.is_set())
                        return
                except LeaseHeldError:
                    time.sleep(0.05)

        with lease.held():
            thread = threading.Thread(target=rival)
            thread.start()
            time.sleep(0.8)
            changed.set()
        thread.join()
    assert taken == [True]


def test_late_holder_does_not_end_the_lease_of_the_next(ledger):
    with ledger.lease("promote:m", 60):
        tamper(ledger, "UPDATE leases SET expires = 0")
        following = ledger.lease("promote:m", 60)
        following.__enter__()
    with pytest.raises(LeaseHeldError, match="right now"), ledger.lease("promote:m", 60):
        pass
    following.__exit__(None, None, None)


def test_one_of_many_threads_gets_the_lease(ledger):
    gate, holding, refused = threading.Barrier(6), [], []

    def take(n):
        gate.wait()
        try:
            with ledger.lease("promote:m", 60):
                holding.append(n)
                time.sleep(0.3)
        except LeaseHeldError:
            refused.append(n)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(take, range(6)))
    assert len(holding) == 1
    assert len(refused) == 5


def test_a_turn_is_waited_for(ledger, url):
    order, inside = [], threading.Event()

    def first():
        with Ledger(url).turn("lifecycle:scans", 5):
            inside.set()
            time.sleep(0.4)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with ledger.turn("lifecycle:scans", 30):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_turn_outlives_its_lease_and_refuses_who_will_not_wait(ledger, url):
    with ledger.turn("lifecycle:scans", 0, seconds=0.3):
        time.sleep(0.9)
        with (
            pytest.raises(LeaseHeldError, match=r"held by .* for longer than 0 seconds"),
            Ledger(url).turn("lifecycle:scans", 0),
        ):
            pass


def test_the_turn_of_a_dead_process_ends_with_it(ledger, url):
    code = "import os, sys; from infra.ledger import Ledger\n"
    code += "with Ledger(sys.argv[1]).turn('lifecycle:scans', 0, 3600): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, url], cwd=Path(__file__).parents[2]).returncode == 9
    with ledger.turn("lifecycle:scans", 0):
        pass

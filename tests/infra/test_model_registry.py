"""Versions are judged, promoted and rolled back in MLflow's registry; the ledger knows all of it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra.errors import LeaseHeldError, PromotionError
from infra.gates import judge
from infra.model_registry import CANDIDATE, CHAMPION, PREVIOUS, ModelRegistry
from infra.project import Project
from infra.settings import Gate

GOOD = {"test": {"source_accuracy": 0.95}, "model": {"size_bytes": 800.0}}
MODEL = "scans-classifier"


def run_with_model(tracker):
    """A run that left a model behind: one file stands for all."""
    made = tracker.open("lifecycle")
    tracker.client.log_text(made, "weights", "model/weights.txt")
    return made


@pytest.fixture
def registry(project):
    return project.registry


@pytest.fixture
def run(project):
    return run_with_model(project.tracker)


@pytest.fixture
def add(registry, run):
    """Register and judge a version that measures this."""

    def make(key, accuracy=0.95, size=800.0):
        measured = {"test": {"source_accuracy": accuracy}, "model": {"size_bytes": size}}
        version = registry.register(MODEL, run, key, "card", {}, measured)
        registry.judge(MODEL, version)
        return version

    return make


def kinds(registry):
    return [entry["kind"] for entry in registry.history(MODEL)]


def test_version_is_registered_with_what_was_measured(registry, run):
    version = registry.register(MODEL, run, "key", "The card.", {"clearwell.data": "scans@ab"}, GOOD)
    found = registry.tracker.client.get_model_version(MODEL, version)
    assert (found.description, found.run_id, found.tags["clearwell.data"]) == ("The card.", run, "scans@ab")
    assert registry.measured(MODEL, version) == GOOD
    assert registry.versions(MODEL)[0]["aliases"] == []
    assert kinds(registry) == ["registered"]


def test_measured_values_keep_every_digit(registry, run):
    exact = {"test": {"source_accuracy": 1 / 3}}
    assert registry.measured(MODEL, registry.register(MODEL, run, "k", "", {}, exact)) == exact


def test_same_key_is_the_same_version(registry, run):
    first = registry.register(MODEL, run, "key", "", {}, GOOD)
    assert registry.register(MODEL, run, "key", "", {}, GOOD) == first
    assert registry.register(MODEL, run, "other", "", {}, GOOD) != first
    assert kinds(registry) == ["registered", "registered"]


def test_what_is_measured_again_of_a_version_takes_the_place_of_what_was(registry, run):
    first = registry.register(MODEL, run, "key", "", {"kept": "yes"}, {"test": {"source_accuracy": 0.5, "old": 1.0}})
    again = {"test": {"source_accuracy": 0.75}, "erasure": {"membership_chance": 0.8}}
    assert registry.register(MODEL, run, "key", "", {"kept": "no"}, again) == first
    assert registry.measured(MODEL, first) == {
        "test": {"source_accuracy": 0.75, "old": 1.0},
        "erasure": {"membership_chance": 0.8},
    }


def test_registration_whose_process_died_before_filing_it_is_filed_by_the_next(registry, run, monkeypatch):
    with monkeypatch.context() as crash:
        crash.setattr(ModelRegistry, "_file_registration", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            registry.register(MODEL, run, "key", "", {}, GOOD)
    assert registry.register(MODEL, run, "key", "", {}, GOOD) == "1"
    assert kinds(registry) == ["registered"]


def test_promotion_moves_the_alias_and_keeps_the_way_back(registry, add):
    first, second = add("1"), add("2", 0.96)
    assert registry.holder(MODEL, CHAMPION) is None
    done = registry.promote(MODEL, first)
    assert (done.version, done.alias, [verdict.holds for verdict in done.verdicts]) == (first, CHAMPION, [True, True])
    assert registry.holder(MODEL, PREVIOUS) is None
    registry.promote(MODEL, second)
    assert (registry.holder(MODEL, CHAMPION), registry.holder(MODEL, PREVIOUS)) == (second, first)
    aliases = {each["version"]: each["aliases"] for each in registry.versions(MODEL)}
    assert aliases == {second: [CHAMPION], first: [PREVIOUS]}


def test_rollback_gives_the_alias_back_and_may_be_taken_back(registry, add):
    first, second = add("1"), add("2", 0.96)
    for version in (first, second):
        registry.promote(MODEL, version)
    assert registry.rollback(MODEL, "worse in production").version == first
    assert (registry.holder(MODEL, CHAMPION), registry.holder(MODEL, PREVIOUS)) == (first, second)
    assert registry.history(MODEL)[-1]["payload"]["reason"] == "worse in production"
    assert registry.rollback(MODEL).version == second


def test_rollback_without_an_earlier_champion_is_refused(registry, add):
    add("1")
    with pytest.raises(PromotionError, match=f"The model '{MODEL}' has no earlier champion"):
        registry.rollback(MODEL)
    registry.promote(MODEL, "1")
    with pytest.raises(PromotionError, match="has no earlier champion"):
        registry.rollback(MODEL)


def test_candidate_needs_no_gate(registry, add):
    version = add("1", accuracy=0.1)
    assert registry.promote(MODEL, version, CANDIDATE).alias == CANDIDATE
    assert registry.holder(MODEL, CANDIDATE) == version


def test_failed_gate_refuses_and_names_what_failed(registry, add):
    version = add("1", accuracy=0.5)
    with pytest.raises(PromotionError, match=r"source_accuracy on test: 0\.5 \(bound >= 0\.9\) fails") as error:
        registry.promote(MODEL, version)
    assert len(error.value.obstacles) == 1
    assert registry.holder(MODEL, CHAMPION) is None


@pytest.mark.parametrize(
    ("accuracy", "size", "failed"),
    [(0.94, 820.0, []), (0.92, 800.0, ["source_accuracy"]), (0.99, 950.0, ["size_bytes"])],
)
def test_gates_relative_to_the_champion_hold_in_both_directions(registry, add, accuracy, size, failed):
    registry.promote(MODEL, add("1", 0.95, 800.0))
    version = add("2", accuracy, size)
    assert [verdict.metric for verdict in registry.verdicts(MODEL, version) if not verdict.holds] == failed
    if failed:
        with pytest.raises(PromotionError, match=f"{failed[0]} .*champion"):
            registry.promote(MODEL, version)
    else:
        registry.promote(MODEL, version)


def test_unjudged_version_is_refused(registry, run):
    version = registry.register(MODEL, run, "key", "", {}, GOOD)
    with pytest.raises(PromotionError, match=r"was never judged. Run the lifecycle flow"):
        registry.promote(MODEL, version)


def test_missing_metric_fails_its_gate(registry, run):
    version = registry.register(MODEL, run, "key", "", {}, {"test": GOOD["test"]})
    registry.judge(MODEL, version)
    with pytest.raises(PromotionError, match="size_bytes on model: not measured"):
        registry.promote(MODEL, version)


def test_verdict_against_a_former_champion_does_not_count(registry, add):
    registry.promote(MODEL, add("1", 0.91))
    slow = add("2", 0.92)  # judged against version 1, where it holds
    registry.promote(MODEL, add("3", 0.99))
    with pytest.raises(PromotionError, match=r"0\.92 .*champion 0\.99.* fails"):
        registry.promote(MODEL, slow)
    assert registry.holder(MODEL, CHAMPION) == "3"


def test_unknown_model_and_version_are_named_with_what_there_is(registry, add):
    add("1")
    with pytest.raises(PromotionError, match=rf"no version '9' of the model '{MODEL}'. Its versions: 1\."):
        registry.promote(MODEL, "9")
    with pytest.raises(PromotionError, match=rf"no registered model 'scnas'. Registered models: {MODEL}"):
        registry.promote("scnas", "1")


def test_promoting_twice_changes_and_files_nothing_more(registry, add):
    add("1")
    for _ in range(2):
        registry.promote(MODEL, "1")
    assert kinds(registry) == ["registered", "verdicts", "promoted"]
    assert registry.holder(MODEL, PREVIOUS) is None


def test_promotion_waits_for_nobody_who_holds_the_lease(registry, add):
    add("1")
    with (
        registry.ledger.lease(f"promote:{MODEL}", 60),
        pytest.raises(LeaseHeldError, match="Try again in 60 seconds at the latest"),
    ):
        registry.promote(MODEL, "1")
    assert registry.holder(MODEL, CHAMPION) is None


def test_alias_moved_by_somebody_else_meanwhile_is_noticed(registry, add, monkeypatch):
    first, second = add("1"), add("2")
    client = registry.tracker.client
    give = client.set_registered_model_alias
    monkeypatch.setattr(client, "set_registered_model_alias", lambda name, alias, _: give(name, alias, first))
    with pytest.raises(PromotionError, match="moved by somebody else meanwhile"):
        registry.promote(MODEL, second)
    assert "promoted" not in kinds(registry)


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(registry, add, project):
    versions = [add(str(n), 0.95 + n / 1000) for n in range(2)]
    gate = threading.Barrier(2)

    def promote(version):
        own = Project(project.settings)
        _ = own.tracker.experiment  # connected before the race
        gate.wait()
        try:
            return own.registry.promote(MODEL, version).version
        except LeaseHeldError:
            return None

    with ThreadPoolExecutor(2) as pool:
        won = [version for version in pool.map(promote, versions) if version]
    entries = [entry["payload"] for entry in registry.history(MODEL) if entry["kind"] == "promoted"]
    assert [entry["version"] for entry in entries if entry["version"] in won] == [entry["version"] for entry in entries]
    assert len(won) == len(entries) >= 1
    assert registry.holder(MODEL, CHAMPION) == entries[-1]["version"]
    assert registry.holder(MODEL, PREVIOUS) == (entries[-2]["version"] if len(entries) == 2 else None)
    assert registry.ledger.broken_at() is None


def test_without_gates_nothing_has_to_hold(registry, run, monkeypatch):
    registry.settings = registry.settings.model_copy(update={"gates": ()})
    version = registry.register(MODEL, run, "key", "", {}, {})
    assert registry.promote(MODEL, version).verdicts == ()


NUMBERS = st.floats(-10, 10) | st.sampled_from([float("nan"), float("inf"), -float("inf")])
OPTIONAL = st.none() | st.floats(-10, 10)
GATES = st.builds(
    Gate,
    metric=st.just("m"),
    split=st.just("test"),
    at_least=OPTIONAL,
    at_most=OPTIONAL,
    worse_than_champion_by_at_most=st.none() | st.floats(0, 5),
    higher_is_better=st.booleans(),
)


@pytest.mark.parametrize(
    ("bounds", "value", "holds"),
    [({"at_most": 0.15}, 0.5, True), ({"at_most": 0.15}, 0.8, False), ({"at_least": 0.9}, 0.4, True)],
)
def test_bounds_give_way_by_what_chance_makes(bounds, value, holds):
    gate = Gate(metric="m", split="erasure", chance="c", **bounds)
    verdict = judge(gate, {"erasure": {"m": value, "c": 0.6}}, {})
    assert verdict.holds is holds
    assert "give or take 0.6 by chance" in verdict.bound
    assert not judge(gate, {"erasure": {"m": 0.5}}, {}).holds, "where chance was not measured, the bound stands"
    assert not judge(gate, {"erasure": {"c": 0.6}}, {}).holds, "what was not measured holds no bound"


@given(gate=GATES, mine=st.none() | NUMBERS, rival=st.none() | st.floats(-10, 10), better=st.floats(0, 5))
@example(gate=Gate(metric="m", split="test"), mine=None, rival=None, better=0.0)
def test_a_version_that_holds_is_measured_within_bounds_and_no_worse_than_accepted(gate, mine, rival, better):
    def figures(value):
        return {} if value is None else {"test": {"m": value}}

    verdict = judge(gate, figures(mine), figures(rival))
    assert verdict.measured is mine or verdict.measured == mine
    finite = mine is not None and abs(mine) < float("inf")
    if not finite:
        assert not verdict.holds
        return
    within = (gate.at_least is None or mine >= gate.at_least) and (gate.at_most is None or mine <= gate.at_most)
    slack = gate.worse_than_champion_by_at_most
    accepted = (
        slack is None or rival is None or (mine >= rival - slack if gate.higher_is_better else mine <= rival + slack)
    )
    assert verdict.holds == (within and accepted)
    improved = mine + better if gate.higher_is_better else mine - better
    if verdict.holds and gate.at_least is None and gate.at_most is None:
        assert judge(gate, figures(improved), figures(rival)).holds  # better never fails where worse holds
    if verdict.holds and rival is not None:
        assert judge(gate, figures(mine), {}).holds  # nobody to compare with asks for less


def test_verdict_reads_as_a_sentence():
    gate = Gate(metric="m", split="test", at_least=0.5, worse_than_champion_by_at_most=0.1)
    verdict = judge(gate, {"test": {"m": 0.65}}, {"test": {"m": 0.8}})
    assert str(verdict) == "m on test: 0.65 (bound >= 0.5 and >= 0.7 (champion 0.8)) fails"
    assert str(judge(Gate(metric="m", split="test"), {}, {})) == "m on test: not measured (bound measured) fails"

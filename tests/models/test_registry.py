"""Registration, look-up, and methods that come from other packages."""

import importlib
import pkgutil
import subprocess
import sys
import textwrap

import pytest

from models import registry
from models.registry import STAGES, UnknownMethodError, build_method, get_method, list_methods, register

FACTS = {"summary": "s", "paper": "p", "year": 2020, "link": "https://arxiv.org/abs/0000.00000", "licence": "MIT"}


@pytest.fixture
def shelf(monkeypatch):
    """An own, full registry that is gone after the test."""
    list_methods()  # everything is imported before the copy is made
    cards = dict(registry._CARDS)
    monkeypatch.setattr(registry, "_CARDS", cards)
    return cards


def test_a_registered_class_is_found_by_name_and_stage(shelf):
    @register("a-test", stage="curate", accepts=("text",), skips_checks={"check": "reason"}, **FACTS)
    class Mine:
        def __init__(self, width=3):
            self.width = width

    card = get_method("a-test")
    assert card.cls is Mine
    assert (card.stage, card.accepts, card.skips_checks) == ("curate", ("text",), {"check": "reason"})
    assert card.rows == "any"
    assert card in list_methods("curate")
    assert card not in list_methods("discover")
    assert build_method("a-test", "curate", width=5).width == 5


def test_a_name_is_held_by_one_class(shelf):
    @register("a-test", stage="curate", **FACTS)
    class First:
        pass

    with pytest.raises(ValueError, match=r"'a-test' is already taken by .*First"):

        @register("a-test", stage="curate", **FACTS)
        class Second:
            pass


def test_importing_a_module_again_is_no_clash(shelf):
    def enter():
        @register("a-test", stage="curate", **FACTS)
        class Same:
            pass

        return Same

    enter()
    again = enter()
    assert get_method("a-test").cls is again


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="asks for the rows 'round'; rows are any, unit, plane"):
        register("a-test", stage="curate", rows="round", **FACTS)
    with pytest.raises(ValueError, match="names the stage 'bake'; stages are validate, curate"):
        register("a-test", stage="bake", **FACTS)


def test_unknown_names_get_a_suggestion(shelf):
    register("a-long-name", stage="curate", **FACTS)(type("Mine", (), {}))
    with pytest.raises(UnknownMethodError, match=r"no method 'a-long-nam'\. Did you mean 'a-long-name'"):
        get_method("a-long-nam")
    with pytest.raises(UnknownMethodError, match="no method 'a-long-name' in the stage 'discover'"):
        get_method("a-long-name", "discover")
    with pytest.raises(UnknownMethodError, match=r"no stage 'currate'\. Did you mean 'curate'"):
        list_methods("currate")


def test_methods_come_in_the_order_of_the_stages():
    order = [(STAGES.index(card.stage), card.name) for card in list_methods()]
    assert order == sorted(order)


def test_every_module_of_a_stage_is_imported():
    for stage in STAGES:
        try:
            folder = importlib.import_module(f"models.{stage}")
        except ModuleNotFoundError:
            continue
        list_methods(stage)
        names = [f"{folder.__name__}.{module.name}" for module in pkgutil.iter_modules(folder.__path__)]
        assert [name for name in names if name not in sys.modules] == []


def test_a_method_of_an_installed_package_is_found(tmp_path):
    """A distribution as pip leaves it: a module beside its metadata with the entry point."""
    (tmp_path / "pumphouse.py").write_text(
        textwrap.dedent(
            """
            from sklearn.base import BaseEstimator
            from models.registry import register

            @register("pumphouse", stage="curate", summary="s", paper="p", year=2020, link="l", licence="MIT")
            class Pumphouse(BaseEstimator):
                def __init__(self, depth=1):
                    self.depth = depth
            """
        )
    )
    metadata = tmp_path / "pumphouse-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pumphouse\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[clearwell.methods]\npumphouse = pumphouse\n")
    (metadata / "RECORD").write_text("pumphouse.py,,\n")
    # its own process, as the modules an interpreter has imported can not be taken back; the stages stay out for speed
    program = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from models import registry
        registry.STAGES = ("curate",)
        from models.state import pack, unpack
        method = registry.build_method("pumphouse", depth=7)
        print([card.name for card in registry.list_methods("curate") if card.cls.__module__ == "pumphouse"])
        print(unpack(*pack(method)).depth)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["['pumphouse']", "7"]


def test_methods_are_found_by_their_place_in_the_taxonomy(shelf):
    place = {"goal": "diversification", "unit": "data point", "mechanism": "MinHash, threshold"}
    register("a-dedup", stage="curate", taxonomy=place, **FACTS)(type("Dedup", (), {}))
    register("a-mixture", stage="curate", taxonomy={"goal": "distribution matching", "unit": "data set"}, **FACTS)(
        type("Mixture", (), {})
    )
    register("no-place", stage="curate", **FACTS)(type("Plain", (), {}))

    def names(**axes):
        return {card.name for card in list_methods("curate", **axes)} & {"a-dedup", "a-mixture", "no-place"}

    assert get_method("a-dedup").taxonomy == place
    assert get_method("no-place").taxonomy == {}
    assert names() == {"a-dedup", "a-mixture", "no-place"}
    assert names(goal="diversification") == {"a-dedup"}
    assert names(goal="Matching", unit="data set") == {"a-mixture"}
    assert names(goal="diversification", unit="data set") == set()
    assert names(mechanism="minhash") == {"a-dedup"}
    assert names(goal=None) == names()


def test_a_wrong_place_in_the_taxonomy_is_refused(shelf):
    with pytest.raises(ValueError, match="names the axis 'colour'; axes are goal, utility"):
        register("a-test", stage="curate", taxonomy={"colour": "red"}, **FACTS)
    with pytest.raises(ValueError, match="names the goal 'fame'; goals are distribution matching and diversification"):
        register("a-test", stage="curate", taxonomy={"goal": "fame"}, **FACTS)
    register("a-dedup", stage="curate", taxonomy={"goal": "diversification"}, **FACTS)(type("Dedup", (), {}))
    with pytest.raises(UnknownMethodError, match=r"No method has the goal 'diversificatoin'\. Did you mean 'diver"):
        list_methods("curate", goal="diversificatoin")
    with pytest.raises(UnknownMethodError, match=r"no axis 'gaol'\. Did you mean 'goal'"):
        list_methods("curate", gaol="diversification")
    with pytest.raises(UnknownMethodError, match="None of them is placed on that axis"):
        list_methods("unlearn", goal="diversification")

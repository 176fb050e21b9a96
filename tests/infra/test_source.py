"""The code a result depends on: a module and, transitively, what it imports inside clearwell's layers."""

import sys

import pytest

from infra.source import source_files


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `models_for_test` whose modules import each other in every way Python knows."""
    sources = {
        "__init__.py": "",
        "top.py": "import os\nfrom models_for_test import left\nfrom models_for_test.sub import Thing\n",
        "left.py": "def late():\n    import models_for_test.deep as d\n    return d\n",
        "deep.py": "from . import top  # a circle\n",
        "sub/__init__.py": "from .thing import Thing\n",
        "sub/thing.py": "from ..beside import x\nclass Thing: ...\n",
        "beside.py": "x = 1\n",
        "unused.py": "raise RuntimeError('nothing is executed')\n",
    }
    root = tmp_path / "models_for_test"
    for name, text in sources.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield root
    source_files.cache_clear()
    for name in [name for name in sys.modules if name.startswith("models_for_test")]:
        del sys.modules[name]


def digests(module):
    source_files.cache_clear()
    return dict(source_files(module, ("models_for_test",)))


def test_imports_are_followed_through_the_whole_layer(package):
    names = {name.removeprefix("models_for_test").lstrip(".") for name in digests("models_for_test.top")}
    assert names == {"", "top", "left", "deep", "sub", "sub.thing", "beside"}


def test_nothing_is_executed(package):
    (package / "beside.py").write_text("raise RuntimeError('executed')\n")
    assert "models_for_test.beside" in digests("models_for_test.top")


@pytest.mark.parametrize("changed", ["top.py", "deep.py", "sub/thing.py", "beside.py"])
def test_a_change_anywhere_below_is_seen(package, changed):
    before = digests("models_for_test.top")
    (package / changed).write_text((package / changed).read_text() + "# changed\n")
    after = digests("models_for_test.top")
    assert {name for name in after if after[name] != before[name]} == {
        "models_for_test." + changed.removesuffix(".py").replace("/", ".")
    }


def test_a_change_elsewhere_is_not(package):
    before = digests("models_for_test.top")
    (package / "unused.py").write_text("x = 2\n")
    assert digests("models_for_test.top") == before


def test_real_stage_depends_on_its_method_and_not_on_others():
    found = dict(source_files("models.unlearn.laf", ("models",)))
    assert {"models.unlearn.laf", "models.registry", "models.training"} <= set(found)
    assert "models.compress.udfc" not in found


def test_missing_module_has_no_source():
    assert source_files("models.no_such_module") == ()

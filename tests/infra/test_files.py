"""Files are whole or absent; digests name contents and nothing else."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.files import (
    clear_drafts,
    draft_folder,
    file_digest,
    folder_digest,
    is_running,
    json_digest,
    publish,
    write_text,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value):
    """The same JSON value with the keys of every object in reverse order."""
    if isinstance(value, dict):
        return {key: shuffled(inner) for key, inner in reversed(value.items())}
    return [shuffled(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@given(VALUES)
def test_json_digest_knows_no_order_of_keys(value):
    assert json_digest(shuffled(value)) == json_digest(value)


@given(VALUES)
def test_json_digest_survives_writing_and_reading(value):
    assert json_digest(json.loads(json.dumps(value))) == json_digest(value)


@given(VALUES, VALUES)
def test_json_digest_tells_values_apart(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (json_digest(one) == json_digest(other)) == same


def test_json_digest_refuses_what_json_can_not_say():
    with pytest.raises(ValueError, match="JSON compliant"):
        json_digest({"loss": float("nan")})


def test_draft_vanishes_unless_it_is_published(tmp_path):
    with draft_folder(tmp_path) as lost:
        (lost / "half").write_text("half")
    with draft_folder(tmp_path) as kept:
        (kept / "whole").write_text("whole")
        final = publish(kept, tmp_path / "deep" / "final")
    assert not lost.exists()
    assert not kept.exists()
    assert (final / "whole").read_text() == "whole"


def test_draft_vanishes_when_its_writer_fails(tmp_path):
    with pytest.raises(RuntimeError, match="disk full"), draft_folder(tmp_path) as draft:
        (draft / "half").write_text("half")
        raise RuntimeError("disk full")
    assert list((tmp_path / ".drafts").iterdir()) == []


def test_publish_leaves_what_is_there(tmp_path):
    for text in ("first", "second"):
        with draft_folder(tmp_path) as draft:
            (draft / "file").write_text(text)
            publish(draft, tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "first"


def test_publish_reports_what_can_not_be_moved(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        publish(tmp_path / "absent", tmp_path / "final")


def test_drafts_of_dead_processes_are_cleared_and_others_stay(tmp_path, dead_pid):
    dead, mine = tmp_path / ".drafts" / f"{dead_pid}-aa", tmp_path / ".drafts" / f"{os.getpid()}-bb"
    for folder in (dead, mine):
        folder.mkdir(parents=True)
        (folder / "half").write_text("half")
    assert clear_drafts(tmp_path) == 1
    assert not dead.exists()
    assert mine.exists()
    assert clear_drafts(tmp_path / "no such place") == 0


@pytest.mark.parametrize("pid", ["", "x", "9" * 30])
def test_no_process_has_such_a_number(pid):
    assert not is_running(pid)


def test_running_process_is_seen_and_a_dead_one_is_not(dead_pid):
    assert is_running(str(os.getpid()))
    assert is_running("1")  # another user's, perhaps
    assert not is_running(str(dead_pid))


def test_text_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "note.txt"
    write_text(path, "first")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        write_text(path, "second")
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["note.txt"]


def test_folder_digest_depends_on_names_and_contents(tmp_path):
    def folder(name, **files):
        for file, text in files.items():
            write_text(tmp_path / name / file, text)
        return folder_digest(tmp_path / name)

    first = folder("a", x="1", y="2")
    assert folder("b", y="2", x="1") == first
    assert len({first, folder("c", x="2", y="1"), folder("d", x="1"), folder("e", x="1", z="2")}) == 4
    assert file_digest(tmp_path / "a" / "x") == file_digest(tmp_path / "d" / "x") != file_digest(tmp_path / "a" / "y")


def test_draft_on_another_disk_is_copied_to_its_place(tmp_path, monkeypatch):
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "file").write_text("whole")
    rename = Path.rename

    def refuse(self, target):
        if self.name == "draft":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    publish(tmp_path / "draft", tmp_path / "other" / "final")
    assert (tmp_path / "other" / "final" / "file").read_text() == "whole"
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["final"]

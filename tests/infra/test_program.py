"""Exported programs: opened when plain, refused when something in them would be unpickled."""

import io
import zipfile

import pytest
import torch

from infra.errors import StoreError
from infra.program import open_program


class Doubling(torch.nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(Doubling(), (torch.ones(2, 3),), dynamic_shapes=({0: batch},)), str(path))
    return path


class Payload:
    def __reduce__(self):
        return (print, ("ran code of the archive",))


def rewritten(path, change):
    """The archive with every member passed through `change(name, data)`."""
    copy = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return copy


def test_a_plain_program_answers(program):
    assert torch.equal(open_program(program)(torch.ones(5, 3)), 2 * torch.ones(5, 3))


def test_pickled_sample_inputs_are_refused(program, capsys):
    stream = io.BytesIO()
    torch.save(Payload(), stream)
    changed = rewritten(program, lambda name, data: stream.getvalue() if "/sample_inputs/" in name else data)
    with pytest.raises(StoreError, match="is damaged or is no exported program"):
        open_program(changed)
    assert "ran code" not in capsys.readouterr().out


def test_pickled_weights_are_refused(program):
    changed = rewritten(
        program, lambda name, data: b'{"config": {"w": {"use_pickle": true}}}' if "weights_config" in name else data
    )
    with pytest.raises(StoreError, match="holds pickled tensors"):
        open_program(changed)


def test_constants_are_refused(program):
    changed = rewritten(
        program, lambda name, data: b'{"config": {"c": {"use_pickle": false}}}' if "constants_config" in name else data
    )
    with pytest.raises(StoreError, match="holds constants of its own"):
        open_program(changed)


def test_a_spaced_flag_does_not_slip_through(program):
    hidden = b'{"config": {"w": {"use_pickle"\t:\ttrue}}}'
    with pytest.raises(StoreError, match="holds pickled tensors"):
        open_program(rewritten(program, lambda name, data: hidden if "weights_config" in name else data))


@pytest.mark.parametrize("member", ["serialized_example_inputs.pt", "version", "program/data/aotinductor/code.so"])
def test_members_of_other_formats_are_refused(program, member):
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr(member, b"anything")
    with pytest.raises(StoreError, match="it is not opened"):
        open_program(program)


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / "program.pt2").write_bytes(b"no archive")
    with pytest.raises(StoreError, match="is damaged"):
        open_program(tmp_path / "program.pt2")

"""Models come back as they were saved, or not at all."""

import json

import pytest
import torch

from infra.errors import StoreError
from infra.model_store import DESCRIPTION, PROGRAM, WEIGHTS, ModelStore

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3).T, "steps": torch.tensor(7), "mask": torch.tensor([True, False])}
DESCRIPTION_OF = {"network": "mlp", "widths": (4, 2), "names": {1: "one", 10: "ten", 2: "two"}}


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path)


def test_weights_and_description_come_back(store):
    ref = store.save("finetune", TENSORS, DESCRIPTION_OF)
    tensors, description = store.load(ref)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert description == json.loads(json.dumps(DESCRIPTION_OF))
    assert store.size(ref) == (store.path(ref) / WEIGHTS).stat().st_size


def test_digest_names_weights_and_description_but_not_who_made_them(store):
    ref = store.save("finetune", TENSORS, DESCRIPTION_OF)
    assert store.save("adapt", TENSORS, DESCRIPTION_OF).digest == ref.digest
    assert store.save("finetune", TENSORS, {"network": "other"}).digest != ref.digest
    assert store.save("finetune", TENSORS | {"steps": torch.tensor(8)}, DESCRIPTION_OF).digest != ref.digest


def test_tensors_that_share_memory_are_kept_apart(store):
    shared = torch.ones(3)
    tensors, _ = store.load(store.save("s", {"a": shared, "b": shared}, {}))
    assert torch.equal(tensors["a"], tensors["b"])


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["weights", "description", "program", "no weights", "no description", "garbage"])
def test_changed_model_is_refused_and_saving_it_again_mends_it(store, damage):
    def save():
        return store.save("compress", TENSORS, DESCRIPTION_OF, lambda path: path.write_bytes(b"program"))

    ref = save()
    folder = store.path(ref)
    if damage == "weights":
        flip_last_byte(folder / WEIGHTS)
    elif damage == "program":
        flip_last_byte(folder / PROGRAM)
    elif damage == "description":
        (folder / DESCRIPTION).write_text((folder / DESCRIPTION).read_text().replace('"mlp"', '"unet"'))
    elif damage == "garbage":
        (folder / DESCRIPTION).write_text("{")
    else:
        (folder / {"no weights": WEIGHTS, "no description": DESCRIPTION}[damage]).unlink()
    assert not store.intact(ref)
    with pytest.raises(StoreError, match=f"The model {ref} is missing .* or was changed"):
        store.load(ref)
    assert save() == ref
    assert store.intact(ref)


def test_program_is_kept_beside_the_weights(store):
    ref = store.save("compress", TENSORS, DESCRIPTION_OF, lambda path: path.write_bytes(b"program"))
    assert (store.path(ref) / PROGRAM).read_bytes() == b"program"
    store.save("compress", TENSORS, DESCRIPTION_OF)  # without: what is there stays
    assert (store.path(ref) / PROGRAM).read_bytes() == b"program"


def test_program_is_added_to_a_model_kept_before_without(store):
    ref = store.save("finetune", TENSORS, DESCRIPTION_OF)
    assert not (store.path(ref) / PROGRAM).exists()
    assert store.save("finetune", TENSORS, DESCRIPTION_OF, lambda path: path.write_bytes(b"program")) == ref
    assert (store.path(ref) / PROGRAM).read_bytes() == b"program"


def test_export_that_fails_leaves_nothing(store):
    with pytest.raises(RuntimeError, match="can not be exported"):
        store.save("s", TENSORS, {}, lambda _: (_ for _ in ()).throw(RuntimeError("can not be exported")))
    assert [p for p in store.folder.rglob("*") if p.is_file()] == []


def test_no_pickle_is_written(store):
    ref = store.save("s", TENSORS, DESCRIPTION_OF)
    assert {path.name for path in store.path(ref).iterdir()} == {WEIGHTS, DESCRIPTION}
    header = int.from_bytes((store.path(ref) / WEIGHTS).read_bytes()[:8], "little")
    assert json.loads((store.path(ref) / WEIGHTS).read_bytes()[8 : 8 + header])["steps"]["dtype"] == "I64"

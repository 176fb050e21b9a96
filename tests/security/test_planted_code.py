"""Code planted where data is expected is refused and not run: every payload here would leave a file behind."""

import io
import json
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from infra.errors import ClearwellError, ConfigurationError, StoreError
from infra.program import open_program
from infra.references import StageResult


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (open, (self.mark, "w"))


@pytest.fixture
def mark(tmp_path):
    """The file that a payload would leave; the test fails if one did."""
    path = tmp_path / "mark"
    yield path
    assert not path.exists(), "a payload ran"


@pytest.fixture
def pickled(mark):
    content = pickle.dumps(Payload(mark))
    with pickle.loads(content):  # noqa: S301 (the payload works)
        mark.unlink()
    return content


def tagged(mark):
    """YAML that runs the payload in an unsafe loader."""
    text = f"!!python/object/apply:builtins.open [{mark}, w]"
    with yaml.unsafe_load(text):
        mark.unlink()
    return text


# Models


@pytest.fixture
def model(project):
    return project.models.save("finetune", {"w": torch.arange(6.0)}, {"kind": "nothing"})


@pytest.mark.parametrize("file", ["weights.safetensors", "model.json", "program.pt2"])
def test_pickle_in_place_of_a_models_file(project, model, mark, pickled, file):
    (project.models.path(model) / file).write_bytes(pickled)
    if file == "program.pt2":  # one that the record knows nothing of is never opened by the store
        assert project.models.intact(model)
        with pytest.raises(StoreError, match="damaged or is no exported program"):
            open_program(project.models.path(model) / file)
        return
    with pytest.raises(StoreError, match=r"is missing from .* or was changed. Run the stage that made it again"):
        project.models.load(model)


def test_pickle_beside_a_model_is_not_looked_at(project, model, mark, pickled):
    for name in ("model.pkl", "pytorch_model.bin", "data.pkl"):
        (project.models.path(model) / name).write_bytes(pickled)
    assert project.models.load(model)[0]["w"].tolist() == list(range(6))


def test_description_that_names_a_class_of_its_own(mark):
    from models.state import unpack

    for description in (
        {"format": 1, "$": "network", "architecture": {"name": "os.system", "parameters": {}}, "tensors": {}},
        {"format": 1, "$": "method", "method": "builtins.open", "parameters": {"file": str(mark)}, "fitted": {}},
        {"format": 1, "$": "estimator", "class": "subprocess.Popen", "parameters": {}, "fitted": {}},
    ):
        with pytest.raises((ValueError, LookupError), match=r".+"):
            unpack({}, description)


def test_model_of_mlflow_that_is_a_pickle(project, tmp_path, mark, pickled):
    import mlflow.pyfunc

    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "model.pkl").write_bytes(pickled)
    flavors = {
        "python_function": {"loader_module": "mlflow.sklearn", "model_path": "model.pkl", "python_version": "3.11"},
        "sklearn": {"pickled_model": "model.pkl", "serialization_format": "cloudpickle", "sklearn_version": "1.8"},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, "mlflow_version": "3.17.2"}))
    with pytest.raises(Exception, match=r"(?i)pickle"):
        mlflow.pyfunc.load_model(str(folder))
    flavors["python_function"] = {"loader_module": "mlflow.pyfunc.model", "python_model": "model.pkl"}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, "mlflow_version": "3.17.2"}))
    with pytest.raises(Exception, match=r"(?i)pickle"):
        mlflow.pyfunc.load_model(str(folder))


# Exported programs


class Doubling(torch.nn.Module):
    def forward(self, x):
        return torch.relu(2 * x)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "program.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(Doubling(), (torch.ones(2, 3),), dynamic_shapes=({0: batch},)), str(path))
    return path


def rewritten(program, target, change):
    """A copy of the archive with every member passed through ``change(name, content)``."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.mark.parametrize("member", ["/sample_inputs/", "/weights/weight_0", "/constants/", "/models/model.json"])
def test_pickle_inside_a_program(program, tmp_path, mark, member):
    stream = io.BytesIO()
    torch.save(Payload(mark), stream)
    found = []

    def plant(name, content):
        found.append(member in name)
        return stream.getvalue() if member in name else content

    planted = rewritten(program, tmp_path / "planted.pt2", plant)
    if member == "/weights/weight_0":  # this program has no weights: one more member
        with zipfile.ZipFile(planted, "a") as archive:
            archive.writestr("program/data/weights/weight_0", stream.getvalue())
        open_program(planted)
        return
    assert any(found)
    with pytest.raises(StoreError, match=r"is damaged|is not opened"):
        open_program(planted)


def in_graph(change):
    """Changes the text of the graph, which PyTorch reads when it opens a program."""

    def plant(name, content):
        if not name.endswith("models/model.json"):
            return content
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph).encode()

    return plant


def sizes(graph, text):
    for value in graph["graph_module"]["graph"]["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = text


def call(graph, target, argument):
    node = graph["graph_module"]["graph"]["nodes"][-1]
    node["target"] = target
    node["inputs"] = [{"name": "", "arg": {"as_string": argument}, "kind": 1}]


@pytest.mark.parametrize(
    "plant",
    [
        lambda graph, mark: sizes(graph, f"open('{mark}', 'w')"),
        lambda graph, mark: sizes(graph, f"__import__('os').system('touch {mark}')"),
        lambda graph, mark: sizes(graph, "Symbol('s77', positive=True, integer=True).__class__"),
        lambda graph, mark: call(graph, "torch.os.system", f"touch {mark}"),
        lambda graph, mark: call(graph, "torch.load", str(mark)),
        lambda graph, mark: call(graph, "_operator.methodcaller", "touch"),
        lambda graph, mark: call(graph, "torch.ops.aten.from_file.default", str(mark)),
        lambda graph, mark: graph["guards_code"].append(f"open('{mark}', 'w')"),
        lambda graph, mark: graph["graph_module"]["graph"]["inputs"][0]["as_tensor"].update(
            name=f"x=open('{mark}', 'w')"
        ),
        lambda graph, mark: graph["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
        ),
    ],
    ids=["size", "import", "attribute", "shell", "unpickling", "operator", "file", "guard", "input", "structure"],
)
def test_code_in_the_graph_of_a_program(program, tmp_path, mark, plant):
    planted = rewritten(program, tmp_path / "planted.pt2", in_graph(lambda graph: plant(graph, mark)))
    with pytest.raises(StoreError, match=r"The graph in .*planted\.pt2 holds .*; it is not opened"):
        open_program(planted)


def test_members_that_only_one_reader_sees(program, tmp_path, mark):
    planted = rewritten(program, tmp_path / "planted.pt2", lambda name, content: content)
    with zipfile.ZipFile(planted, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"another")
    with pytest.raises(StoreError, match="holds a member twice, or a packed one"):
        open_program(planted)
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(planted, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(StoreError, match="holds a member twice, or a packed one"):
        open_program(planted)


def test_sound_program_still_opens(program):
    assert torch.equal(open_program(program)(torch.ones(5, 3)), 2 * torch.ones(5, 3))


# What stages keep


@pytest.mark.parametrize("file", ["result.json", "key.json"])
def test_pickle_as_a_cache_entry(project, mark, pickled, file):
    parts = {"inputs": {"data": "ab"}}
    project.cache.keep(StageResult(stage="finetune", method="none"), parts)
    record = project.cache.folder / "finetune" / project.cache.key(parts)
    (record / file).write_bytes(pickled)
    found, why = project.cache.find("finetune", parts)
    if file == "result.json":
        assert found is None
        assert "can not be read" in why
    assert project.cache.find("finetune", {"inputs": {"data": "cd"}})[0] is None
    kept = project.cache.keep(StageResult(stage="finetune", method="again"), parts)  # it heals
    assert project.cache.find("finetune", parts)[0].method == kept.method


@pytest.mark.parametrize("name", ["data.parquet", "data.csv", "a/one.png"])
def test_pickle_as_data(project, tmp_path, mark, pickled, name):
    from infra import datasets as ds
    from infra.errors import DatasetFormatError
    from infra.importing import import_path

    (tmp_path / "mine" / "a").mkdir(parents=True)
    (tmp_path / "mine" / name).write_bytes(pickled)
    path = tmp_path / "mine" if name.endswith("png") else tmp_path / "mine" / name
    if not name.endswith("png"):
        with pytest.raises(DatasetFormatError, match=r"can not be read as|must be numeric|holds no rows"):
            import_path(project.versions, path)
        return
    folder = project.versions.path(import_path(project.versions, path))
    assert [ds.decode(cell) for split in ds.splits_of(folder) for cell in ds.read_split(folder, split)["image"]] == [
        None
    ]


def test_objects_in_a_numpy_or_pandas_file_are_no_data(project, tmp_path, mark):
    from infra.importing import import_path

    np.save(tmp_path / "rows.npy", np.array([Payload(mark)], dtype=object), allow_pickle=True)
    pd.Series([Payload(mark)]).to_pickle(tmp_path / "rows.pkl")
    for name in ("rows.npy", "rows.pkl"):
        with pytest.raises(ClearwellError, match=r"can not be read|must be numeric"):
            import_path(project.versions, tmp_path / name)


# YAML


def test_tags_in_a_configuration_and_in_overrides(tmp_path, mark):
    from flows.config import load_config

    (tmp_path / "run.yaml").write_text(f"finetune: {tagged(mark)}\n")
    with pytest.raises(ConfigurationError, match=r"run.yaml can not be read: could not determine a constructor"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigurationError, match="the value is not readable"):
        load_config(overrides=[f"finetune.epochs={tagged(mark)}"])


def test_tags_in_the_settings(home, mark):
    from infra.settings import settings

    (home / "mlflow.yaml").write_text(f"tracking: {tagged(mark)}\n")
    with pytest.raises(ConfigurationError, match=r"mlflow.yaml .* can not be used:\n +could not determine a constr"):
        settings()


def test_tags_in_the_pin_of_a_version(project, tmp_path, mark):
    from infra.importing import import_path

    pd.DataFrame({"width": [1.0, 2.0]}).to_csv(tmp_path / "rows.csv", index=False)
    ref = import_path(project.versions, tmp_path / "rows.csv")
    pin = project.versions.pin(ref)
    pin.write_text(f"outs: {tagged(mark)}\n")
    assert not project.versions.intact(ref)
    assert project.versions.list() == []
    assert import_path(project.versions, tmp_path / "rows.csv") == ref  # the same data make the pin anew
    assert project.versions.intact(ref)
    pin.write_text("no pin at all")
    other = import_path(project.versions, tmp_path / "rows.csv", "other")  # one damaged pin holds up no other dataset
    assert project.versions.list() == [other]
    assert pin.with_name(f"{pin.name}.damaged").read_text() == "no pin at all"


def test_tags_in_data_dvc(home, mark):
    from infra.working_copy import pull

    (home / ".dvc").mkdir()
    (home / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    (home / "data.dvc").write_text(f"outs: {tagged(mark)}\n")
    with pytest.raises(StoreError, match=r"data that data.dvc names could not be fetched"):
        pull(home)

"""Packing and unpacking, always through JSON text and safetensors bytes as on disk."""

import json
import math
from collections import namedtuple
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from models import registry
from models.base import isolated_seed
from models.networks.convnet import ConvEncoder
from models.networks.heads import SplitClassifier
from models.networks.mlp import MLPEncoder
from models.registry import MethodCard, UnknownMethodError, list_methods, register
from models.state import NotPackableError, pack, unpack


@dataclass(frozen=True)
class Finding:
    row: int
    why: str
    scores: np.ndarray


ELSEWHERE = MethodCard  # a dataclass, but of another module
Pair = namedtuple("Pair", ["left", "right"])


class Tank(BaseEstimator):
    """A method that keeps whatever it is given."""

    def __init__(self, model=None, width=3, callback=None):
        self.model = model
        self.width = width
        self.callback = callback


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    list_methods()  # everything is imported before the copy is made
    monkeypatch.setattr(registry, "_CARDS", dict(registry._CARDS))
    register("tank", stage="curate", summary="s", paper="p", year=2020, link="l", licence="MIT")(Tank)


def there_and_back(model):
    tensors, config = pack(model)
    text = json.dumps(config, allow_nan=False)
    return unpack(load(save(tensors)), json.loads(text))


def kept(value):
    tank = Tank()
    tank.value_ = value
    again = there_and_back(tank)
    assert hasattr(again, "value_"), pack(tank)[1]["left_out"]
    return again.value_


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        7,
        2**70,
        0.1,
        -math.inf,
        "text",
        "",
        [],
        [1, [2.5, None]],
        (1, (2, "x"), []),
        {"a": 1, "b": {"c": (2,)}},
        {1: "one", (2, 3): "pair", "$": 4},
        {"$": "network"},
        {1, 2},
        frozenset({"a"}),
        [{"epoch": 0, "loss": 0.25}],
        np.float64(0.1),
        np.float32(0.1),
        np.int64(-3),
        np.bool_(True),
        np.str_("label"),
    ],
    ids=repr,
)
def test_plain_values_come_back_equal_and_of_the_same_type(value):
    again = kept(value)
    assert again == value
    assert type(again) is type(value)


def test_nan_comes_back():
    assert math.isnan(kept(math.nan))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u1", "u2", "u4", "u8", "?", "<U3", ">f8", "O"])
def test_arrays_keep_values_shape_and_type(dtype):
    array = np.array([["1", "0", "1"], ["0", "1", "1"]]).astype("i8" if dtype != "<U3" else dtype).astype(dtype)
    again = kept(array)
    assert again.dtype == array.dtype.newbyteorder("=")
    assert (again == array).all()
    assert again.shape == (2, 3)


@pytest.mark.parametrize(
    "array",
    [np.empty((0, 4)), np.array(2.5), np.arange(12.0).reshape(3, 4).T, np.arange(12)[::-2], np.eye(3)[:, 1:]],
    ids=["empty", "no axis", "by columns", "strided", "slice"],
)
def test_arrays_of_every_layout(array):
    again = kept(array)
    np.testing.assert_array_equal(again, array)
    assert again.shape == array.shape
    if array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous:
        assert again.flags.f_contiguous


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_keep_values_and_type(dtype):
    tensor = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.to(dtype)
    assert torch.equal(kept(tensor), tensor)
    assert kept(tensor).dtype == dtype


def test_records_of_a_methods_module_come_back():
    again = kept([Finding(3, "odd", np.arange(3.0)), Pair(1, "x")])
    assert type(again[0]) is Finding
    assert (again[0].row, again[0].why, again[0].scores.tolist()) == (3, "odd", [0.0, 1.0, 2.0])
    assert again[1] == Pair(1, "x")
    assert type(again[1]) is Pair


@pytest.mark.parametrize("kind", [nx.Graph, nx.DiGraph])
def test_graphs_come_back_with_what_their_nodes_and_edges_carry(kind):
    graph = kind(name="containment")
    graph.add_node("lonely", rows=3)
    graph.add_edge("whole", "part", exact=None, stages=("schema", "content"), share=np.float64(0.5))
    again = kept(graph)
    assert type(again) is kind
    assert again.graph == {"name": "containment"}
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    assert list(again.edges(data=True)) == list(graph.edges(data=True))


def test_the_description_of_a_set_does_not_depend_on_its_history():
    one, other = set(range(0, 80, 8)), set(range(72, -8, -8))
    other |= set(range(1000))
    other -= set(range(1000)) - one
    assert list(one) != list(other)
    first, second = Tank(), Tank()
    first.value_, second.value_ = one, other
    assert json.dumps(pack(first)[1]) == json.dumps(pack(second)[1])


def test_copies_share_no_memory():
    tank = Tank()
    tank.array_ = np.zeros(3)
    tank.tensor_ = torch.zeros(3)
    tensors, config = pack(tank)
    tank.array_ += 1
    tank.tensor_ += 1
    again = unpack(tensors, config)
    assert again.array_.sum() == again.tensor_.sum() == 0
    again.tensor_ += 5
    assert unpack(tensors, config).tensor_.sum() == 0


def test_names_that_collide_keep_their_own_tensor():
    value = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}
    again = kept(value)
    assert (again["a"]["b"].item(), again["a.b"].item()) == (0.0, 1.0)


# ---- networks --------------------------------------------------------------------------------------------


def trained(network):
    """`network` after a step that leaves marks on weights and batch statistics."""
    with isolated_seed(0):
        network.train()
        network(torch.rand(8, 1, 6, 6)).square().mean().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.1 * (parameter.grad if parameter.grad is not None else 0)
    return network.eval()


@pytest.mark.parametrize("normalised_head", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_network_comes_back_equal(normalised_head, training):
    network = trained(SplitClassifier(ConvEncoder((4, 6)), 3, 5, normalised_head)).train(training)
    again = there_and_back(network)
    assert again.training is training
    assert again.architecture == network.architecture
    assert list(again.state_dict()) == list(network.state_dict())
    x = torch.rand(4, 1, 6, 6)
    assert torch.equal(again.eval()(x), network.eval()(x))
    again.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


def test_a_folded_head_comes_back_plain():
    network = trained(SplitClassifier(MLPEncoder(36, (4,)), 3, 5, normalised_head=True)).fold_head()
    x = torch.rand(4, 1, 6, 6)
    assert torch.equal(there_and_back(network)(x), network(x))


def test_packing_leaves_the_network_alone():
    network = trained(ConvEncoder((4,))).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pack(network)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_network_without_architecture_is_refused():
    with pytest.raises(NotPackableError, match=r"network Linear carries no architecture\. Decorate its class"):
        pack(nn.Linear(1, 1))


# ---- methods ---------------------------------------------------------------------------------------------


def test_a_method_keeps_parameters_and_whatever_fit_left():
    tank = Tank(model=trained(ConvEncoder((4,))), width=9)
    tank.network_ = trained(SplitClassifier(ConvEncoder((4,)), 3))
    tank.history_ = [{"epoch": 0, "loss": 0.5}]
    tank._private = np.arange(3)
    again = there_and_back(tank)
    assert type(again) is Tank
    assert again.width == 9
    x = torch.rand(4, 1, 6, 6)
    assert torch.equal(again.network_(x), tank.network_(x))
    assert torch.equal(again.model(x), tank.model(x))
    assert again.history_ == tank.history_
    assert again._private.tolist() == [0, 1, 2]


def test_what_cannot_be_described_is_named_with_the_reason():
    tank = Tank(model=nn.Linear(2, 2), callback=print)
    tank.tree_ = DecisionTreeClassifier().fit([[0], [1]], [0, 1])
    tank.kept_ = [torch.zeros(2)]
    tank.mixed_ = [torch.ones(3), lambda x: x]
    tensors, config = pack(tank)
    assert set(config["left_out"]) == {"model", "callback", "tree_", "mixed_"}
    assert "carries no architecture" in config["left_out"]["model"]
    assert "DecisionTreeClassifier is not a registered method" in config["left_out"]["tree_"]
    assert list(tensors) == ["kept_.0"]  # nothing of what was left out
    again = unpack(tensors, config)
    assert (again.model, again.callback) == (None, None)
    assert not hasattr(again, "mixed_")


def test_an_unfitted_method_comes_back_unfitted():
    assert vars(there_and_back(Tank(width=4))) == {"model": None, "width": 4, "callback": None}


def test_methods_nest():
    outer = Tank(model=Tank(width=5))
    outer.parts_ = [Tank(width=6)]
    again = there_and_back(outer)
    assert (again.model.width, again.parts_[0].width) == (5, 6)


@pytest.mark.parametrize(
    "estimator",
    [
        KMeans(5, n_init=1, random_state=0),
        LogisticRegression(max_iter=300),
        StandardScaler(),
        PCA(4),
        GaussianMixture(2, covariance_type="diag", random_state=0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_common_scikit_learn_estimators_come_back_equal(estimator):
    X, y = load_digits(return_X_y=True)
    X, y = X[:200] / 16, y[:200]
    estimator.fit(X, y)
    again = kept(estimator)
    answer = "predict" if hasattr(estimator, "predict") else "transform"
    np.testing.assert_array_equal(getattr(again, answer)(X), getattr(estimator, answer)(X))
    assert again.get_params() == estimator.get_params()


@pytest.mark.parametrize(("thing", "kind"), [(KMeans(), "KMeans is not a registered"), (3, "got int")])
def test_what_is_no_method_is_refused(thing, kind):
    with pytest.raises(NotPackableError, match=kind):
        pack(thing)


# ---- descriptions that do not fit ------------------------------------------------------------------------


def test_a_foreign_format_is_refused():
    with pytest.raises(ValueError, match="descriptions of format 1, got None"):
        unpack({}, {})


def test_missing_tensors_are_named():
    tensors, config = pack(trained(ConvEncoder((4,))))
    del tensors["blocks.0.0.0.weight"]
    with pytest.raises(ValueError, match=r"names the tensor 'blocks.0.0.0.weight', which the \d+ given lack"):
        unpack(tensors, config)


RECORD = {"$": "record", "method": "tank", "module": __name__.rpartition(".")[2], "fields": {}}


@pytest.mark.parametrize(
    ("described", "error", "message"),
    [
        (
            {"$": "method", "method": "no-such", "parameters": {}, "fitted": {}},
            UnknownMethodError,
            "no method 'no-such'",
        ),
        ({"$": "network", "architecture": {"name": "os"}, "tensors": {}, "training": False}, ValueError, "no network"),
        ({"$": "scikit-learn", "class": "Pipeline", "state": {}}, ValueError, "names 'Pipeline', which is none of"),
        ({**RECORD, "class": "Tank"}, ValueError, "'tank' knows no record 'Tank'"),  # a class, but no record
        ({**RECORD, "class": "json"}, ValueError, "knows no record 'json'"),
        ({**RECORD, "class": "MethodCard"}, ValueError, "knows no record 'MethodCard'"),  # a record from elsewhere
        ({**RECORD, "module": "subprocess", "class": "Popen"}, ValueError, "knows no record 'Popen'"),
        ({"$": "pickle", "bytes": ""}, ValueError, "unknown kind 'pickle'"),
        ({"$": ["x"]}, ValueError, "unknown kind"),
    ],
)
def test_a_description_can_name_nothing_that_is_not_allowed(described, error, message):
    with pytest.raises(error, match=message):
        unpack({}, {"format": 1, **described})

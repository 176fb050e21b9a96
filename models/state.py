"""A trained network or fitted method as named tensors and a JSON description, and back. Nothing is pickled.

Only what is known beforehand is ever rebuilt: networks entered with ``@network``, methods entered with ``@register``
(and the plain records defined in their modules or beside them), and a short list of scikit-learn estimators. A
description from a stranger can therefore name no other class and run no code.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from typing import Any

import networkx as nx
import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from models.networks import build
from models.registry import MethodCard, get_method, list_methods

FORMAT = 1
TAG = "$"  # marks a mapping that stands for something JSON has no word for

SCIKIT_LEARN = {
    "GaussianMixture": "sklearn.mixture",
    "KMeans": "sklearn.cluster",
    "LinearRegression": "sklearn.linear_model",
    "LogisticRegression": "sklearn.linear_model",
    "MiniBatchKMeans": "sklearn.cluster",
    "PCA": "sklearn.decomposition",
    "StandardScaler": "sklearn.preprocessing",
}


class NotPackableError(TypeError):
    """A value of a kind that cannot be described; the message says which."""


def pack(model: nn.Module | BaseEstimator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Describe a network or a (fitted) registered method.

    Parameters
    ----------
    model : nn.Module or estimator
        A network that carries an ``architecture``, or an instance of a registered method.

    Returns
    -------
    tensors : dict of str to Tensor
        Contiguous copies on the CPU; none shares memory with the model or another.
    config : dict
        JSON values only. For methods ``config["left_out"]`` maps each attribute or parameter that could not
        be described to the reason; it comes back as None (parameter) or not at all (attribute).

    Raises
    ------
    NotPackableError
        If the network carries no architecture, or the estimator is not a registered method.

    Examples
    --------
    >>> import torch
    >>> from models.networks.mlp import MLPEncoder
    >>> network = MLPEncoder(4, widths=[3]).eval()
    >>> again = unpack(*pack(network))
    >>> x = torch.rand(5, 4)
    >>> bool((again(x) == network(x)).all())
    True
    """
    packer = _Packer()
    if isinstance(model, nn.Module):
        described = packer.network(model, "")
    elif isinstance(model, BaseEstimator):
        described = packer.method(model, "")
    else:
        raise NotPackableError(f"A network or a registered method can be packed, got {type(model).__name__}.")
    return packer.tensors, {"format": FORMAT, **described, "left_out": packer.left_out}


def unpack(tensors: dict[str, Tensor], config: dict[str, Any]) -> Any:
    """Rebuild what :func:`pack` described; predictions are equal to those of the original.

    Raises
    ------
    ValueError
        If the description has another format, names a class that is not allowed, or tensors are missing.
    UnknownMethodError
        If it names a method that is not registered here.
    """
    if config.get("format") != FORMAT:
        raise ValueError(f"This version reads model descriptions of format {FORMAT}, got {config.get('format')!r}.")
    return _Unpacker(tensors).value({key: config[key] for key in config if key not in ("format", "left_out")})


class _Packer:
    """Walks values, collecting tensors under dotted names; each kind returns its JSON description."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.left_out: dict[str, str] = {}

    def keep(self, tensor: Tensor, path: str) -> str:
        key, number = path, 1
        while key in self.tensors:
            key, number = f"{path}~{number}", number + 1
        self.tensors[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return key

    def network(self, network: nn.Module, path: str) -> dict[str, Any]:
        architecture = getattr(network, "architecture", None)
        if architecture is None:
            raise NotPackableError(
                f"The network {type(network).__name__} carries no architecture. Decorate its class with "
                "`models.networks.network` so that it can be rebuilt."
            )
        keys = {name: self.keep(value, _join(path, name)) for name, value in network.state_dict().items()}
        return {TAG: "network", "architecture": architecture, "tensors": keys, "training": network.training}

    def method(self, estimator: BaseEstimator, path: str) -> dict[str, Any]:
        card = _card_of(estimator)
        parameters = estimator.get_params(deep=False)
        fitted = {name: value for name, value in vars(estimator).items() if name not in parameters}
        return {
            TAG: "method",
            "method": card.name,
            "parameters": self.attributes(parameters, path),
            "fitted": self.attributes(fitted, path),
        }

    def attributes(self, values: dict[str, Any], path: str) -> dict[str, Any]:
        described = {}
        for name, value in values.items():
            before = set(self.tensors)
            try:
                described[name] = self.value(value, _join(path, name))
            except NotPackableError as error:
                self.left_out[_join(path, name)] = str(error)
                for key in set(self.tensors) - before:
                    del self.tensors[key]
        return described

    def value(self, value: Any, path: str) -> Any:
        """JSON description of `value`, which is known to its dotted name as `path`."""
        if isinstance(value, np.generic):
            return {TAG: "scalar", "dtype": value.dtype.str, "value": self.value(value.item(), path)}
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {TAG: "float", "value": str(value)}
        if isinstance(value, Tensor):
            return {TAG: "tensor", "key": self.keep(value, path)}
        if isinstance(value, np.ndarray):
            return self.array(value, path)
        if isinstance(value, nn.Module):
            return self.network(value, path)
        if isinstance(value, BaseEstimator):
            return self.estimator(value, path)
        return self.collection(value, path)

    def array(self, array: np.ndarray[Any, Any], path: str) -> dict[str, Any]:
        if array.dtype.kind in "OU":
            items = [self.value(item, f"{path}.{i}") for i, item in enumerate(array.ravel())]
            return {TAG: "list-array", "dtype": array.dtype.str, "shape": list(array.shape), "items": items}
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise NotPackableError(f"arrays of the type {array.dtype} cannot be described")
        by_columns = array.flags.f_contiguous and not array.flags.c_contiguous  # matters to the last bit in products
        plain = np.array(array.T if by_columns else array, dtype=array.dtype.newbyteorder("="), order="C")
        return {TAG: "array", "key": self.keep(torch.from_numpy(plain), path), "by_columns": by_columns}

    def estimator(self, estimator: BaseEstimator, path: str) -> dict[str, Any]:
        name = type(estimator).__name__
        if SCIKIT_LEARN.get(name) is None or not type(estimator).__module__.startswith("sklearn."):
            return self.method(estimator, path)
        state = {key: self.value(value, _join(path, key)) for key, value in vars(estimator).items()}
        return {TAG: "scikit-learn", "class": name, "state": state}

    def collection(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            if all(isinstance(key, str) for key in value) and TAG not in value:
                return {key: self.value(item, _join(path, key)) for key, item in value.items()}
            pairs = [[self.value(k, path), self.value(v, _join(path, str(k)))] for k, v in value.items()]
            return {TAG: "dict", "items": pairs}
        if isinstance(value, (list, tuple, set, frozenset)) and not hasattr(value, "_fields"):
            items = [self.value(item, f"{path}.{i}") for i, item in enumerate(value)]
            kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
            if kind in (set, frozenset):
                items.sort(key=json.dumps)  # the order of a set changes from run to run, a description must not
            return items if kind is list else {TAG: kind.__name__, "items": items}
        if type(value) in (nx.Graph, nx.DiGraph):
            return {
                TAG: "graph",
                "directed": value.is_directed(),
                "attributes": self.value(dict(value.graph), f"{path}.attributes"),
                "nodes": self.value([(node, dict(data)) for node, data in value.nodes(data=True)], f"{path}.nodes"),
                "edges": self.value([(*edge, dict(data)) for *edge, data in value.edges(data=True)], f"{path}.edges"),
            }
        cls = type(value)
        if _fields(cls) and (card := _record_home(cls)) is not None:
            fields = {name: self.value(getattr(value, name), _join(path, name)) for name in _fields(cls)}
            module = cls.__module__.rpartition(".")[2]
            return {TAG: "record", "method": card.name, "module": module, "class": cls.__qualname__, "fields": fields}
        raise NotPackableError(f"values of the type {type(value).__name__} cannot be described")


class _Unpacker:
    """Rebuilds values from their descriptions."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, key: str) -> Tensor:
        if key not in self.tensors:
            raise ValueError(f"The description names the tensor {key!r}, which the {len(self.tensors)} given lack.")
        return self.tensors[key].clone()

    def value(self, described: Any) -> Any:
        if isinstance(described, list):
            return [self.value(item) for item in described]
        if not isinstance(described, dict):
            return described
        kind = described.get(TAG)
        if kind is None:
            return {key: self.value(item) for key, item in described.items()}
        rebuild = getattr(self, f"rebuild_{str(kind).replace('-', '_')}", None)
        if rebuild is None:
            raise ValueError(f"The description holds something of the unknown kind {kind!r}.")
        return rebuild(described)

    def rebuild_float(self, described: dict[str, Any]) -> float:
        return float(described["value"])

    def rebuild_scalar(self, described: dict[str, Any]) -> Any:
        return np.dtype(described["dtype"]).type(self.value(described["value"]))

    def rebuild_tensor(self, described: dict[str, Any]) -> Tensor:
        return self.tensor(described["key"])

    def rebuild_array(self, described: dict[str, Any]) -> np.ndarray[Any, Any]:
        array = self.tensor(described["key"]).numpy()
        return array.T if described["by_columns"] else array

    def rebuild_list_array(self, described: dict[str, Any]) -> np.ndarray[Any, Any]:
        array = np.empty(math.prod(described["shape"]), dtype=described["dtype"])
        for i, item in enumerate(described["items"]):
            array[i] = self.value(item)
        return array.reshape(described["shape"])

    def rebuild_dict(self, described: dict[str, Any]) -> dict[Any, Any]:
        return {self.value(key): self.value(item) for key, item in described["items"]}

    def rebuild_tuple(self, described: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(self.value(described["items"]))

    def rebuild_set(self, described: dict[str, Any]) -> set[Any]:
        return set(self.value(described["items"]))

    def rebuild_frozenset(self, described: dict[str, Any]) -> frozenset[Any]:
        return frozenset(self.value(described["items"]))

    def rebuild_graph(self, described: dict[str, Any]) -> nx.Graph[Any]:
        graph: nx.Graph[Any] = nx.DiGraph() if described["directed"] else nx.Graph()
        graph.graph.update(self.value(described["attributes"]))
        graph.add_nodes_from(self.value(described["nodes"]))
        graph.add_edges_from(self.value(described["edges"]))
        return graph

    def rebuild_network(self, described: dict[str, Any]) -> nn.Module:
        state = {name: self.tensor(key) for name, key in described["tensors"].items()}
        network = build(described["architecture"])
        network.load_state_dict(state)
        return network.train(described["training"])

    def rebuild_method(self, described: dict[str, Any]) -> BaseEstimator:
        card = get_method(described["method"])
        names = card.cls._get_param_names()  # type: ignore[attr-defined]
        given = self.value(described["parameters"])
        estimator = card.cls(**{name: given.get(name) for name in names})
        vars(estimator).update(self.value(described["fitted"]))
        return estimator

    def rebuild_scikit_learn(self, described: dict[str, Any]) -> BaseEstimator:
        name = described["class"]
        if name not in SCIKIT_LEARN:
            raise ValueError(f"The description names {name!r}, which is none of {', '.join(sorted(SCIKIT_LEARN))}.")
        estimator = getattr(importlib.import_module(SCIKIT_LEARN[name]), name)()
        vars(estimator).update(self.value(described["state"]))
        return estimator

    def rebuild_record(self, described: dict[str, Any]) -> Any:
        home = get_method(described["method"]).cls.__module__.rpartition(".")[0]
        name = _join(home, described["module"])
        cls = vars(sys.modules[name]).get(described["class"]) if name in sys.modules else None
        if not (isinstance(cls, type) and _fields(cls) and cls.__module__ == name):
            raise ValueError(f"The method {described['method']!r} knows no record {described['class']!r}.")
        fields = self.value(described["fields"])
        if issubclass(cls, tuple):
            return cls(*(fields[name] for name in _fields(cls)))
        record = object.__new__(cls)
        for name in _fields(cls):
            object.__setattr__(record, name, fields[name])
        return record


def _card_of(estimator: BaseEstimator) -> MethodCard:
    for card in list_methods():
        if card.cls is type(estimator):
            return card
    raise NotPackableError(
        f"{type(estimator).__name__} is not a registered method. Enter its class with `models.registry.register`."
    )


def _fields(cls: type) -> tuple[str, ...]:
    """Field names of a dataclass or named tuple; none for any other class."""
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    return tuple(getattr(cls, "_fields", ())) if issubclass(cls, tuple) else ()


def _record_home(cls: type) -> MethodCard | None:
    """A method defined in the module of `cls` or in one beside it."""
    home = cls.__module__.rpartition(".")[0]
    for card in list_methods():
        beside = home and card.cls.__module__.rpartition(".")[0] == home
        if card.cls.__module__ == cls.__module__ or beside:
            return card
    return None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

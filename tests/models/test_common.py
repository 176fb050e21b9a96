"""The battery every registered method goes through, on its specimen of real data (see specimens.py).

A method opts out of a check through ``skips_checks`` of its card, by the check's name and with the reason.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load, save
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import Tensor, nn

from models.registry import MethodCard, get_method, list_methods
from models.state import pack, unpack
from tests.models.specimens import SPECIMENS, Specimen

ROOT = Path(__file__).parents[2]
OWN = [card for card in list_methods() if card.cls.__module__.startswith("models.")]
CLOCKS = ("seconds", "timings")  # attributes that tell the time differ between runs


# ---- what the checks compare -----------------------------------------------------------------------------


def same(first: Any, second: Any) -> bool:
    """Whether two values hold the same, bit for bit; NaN equals NaN."""
    if isinstance(first, nn.Module) and isinstance(second, nn.Module):
        flags = [[p.requires_grad for p in network.parameters()] for network in (first, second)]
        return (
            flags[0] == flags[1] and first.training == second.training and same(first.state_dict(), second.state_dict())
        )
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and same(first.detach().numpy(), second.detach().numpy())
    if isinstance(first, np.ndarray):
        return first.dtype == np.asarray(second).dtype and np.array_equal(
            first, second, equal_nan=first.dtype.kind == "f"
        )
    if isinstance(first, (pd.DataFrame, pd.Series)):
        return bool(first.equals(second))
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if hasattr(first, "__dict__") and type(first) is type(second) and not inspect.isroutine(first):
        return same(vars(first), vars(second))
    return bool(first == second) or (first != first and second != second)


def fingerprint(estimator: Any) -> tuple[dict[str, Any], str]:
    """Everything a fitted method holds, without the clocks."""
    timeless = copy.copy(estimator)
    for name in [name for name in vars(timeless) if any(word in name for word in CLOCKS)]:
        delattr(timeless, name)
    tensors, config = pack(timeless)
    return tensors, json.dumps(config, sort_keys=True)


def fitted(specimen: Specimen) -> Any:
    estimator = specimen.make()
    estimator.fit(**specimen.arguments())
    return estimator


@cache
def fitted_once(name: str) -> Any:
    """A fitted example for checks that only read it."""
    return fitted(SPECIMENS[name]())


def replaced(values: Any, change: Any) -> Any:
    """A changed copy of an array or tensor, as its own kind."""
    array = change(values.numpy().copy() if isinstance(values, Tensor) else np.array(values))
    return torch.from_numpy(array) if isinstance(values, Tensor) else array


# ---- the checks: one function each, given the card and the specimen ----------------------------------------


def check_reproducible(card: MethodCard, specimen: Specimen) -> None:
    """Equal seeds give equal results whatever the global generators did before."""
    first = fitted(specimen)
    torch.manual_seed(1234)
    np.random.seed(1234)
    second = fitted(specimen)
    assert same(fingerprint(first), fingerprint(second))
    assert same(specimen.answers(first), specimen.answers(second))


def check_global_state_untouched(card: MethodCard, specimen: Specimen) -> None:
    """The global generators stand where they stood."""
    estimator, arguments = specimen.make(), specimen.arguments()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    estimator.fit(**arguments)
    after_fit = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    assert same(before, after_fit)


def check_inputs_unchanged(card: MethodCard, specimen: Specimen) -> None:
    """Arrays, tensors, tables and networks given to the method are as before."""
    estimator, arguments = specimen.make(), specimen.arguments()
    parameters = estimator.get_params(deep=False)
    before = copy.deepcopy((arguments, parameters))
    estimator.fit(**arguments)
    specimen.answers(estimator)
    assert same(before[0], arguments)
    assert same(before[1], parameters)


def check_read_only_inputs(card: MethodCard, specimen: Specimen) -> None:
    """Memory-mapped rows, which can not be written to, do as well."""
    arguments = specimen.arguments()
    for value in arguments.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    estimator = specimen.make()
    estimator.fit(**arguments)
    assert same(specimen.answers(estimator), specimen.answers(fitted_once(card.name)))


def check_fits_twice_alike(card: MethodCard, specimen: Specimen) -> None:
    """A second fit of the same object starts afresh; fit returns the object and leaves its parameters."""
    estimator = specimen.make()
    parameters = estimator.get_params(deep=False)
    assert estimator.fit(**specimen.arguments()) is estimator
    first = fingerprint(estimator)
    estimator.fit(**specimen.arguments())
    assert same(first, fingerprint(estimator))
    after = estimator.get_params(deep=False)
    assert all(after[name] is value for name, value in parameters.items())


def check_clone(card: MethodCard, specimen: Specimen) -> None:
    """The constructor stores its parameters and nothing else; scikit-learn can clone the method."""
    estimator = specimen.make()
    parameters = estimator.get_params(deep=False)
    assert vars(estimator).keys() == parameters.keys()
    assert all(vars(estimator)[name] is value for name, value in parameters.items())
    copied = clone(estimator)
    assert same(copied.get_params(deep=False), parameters)
    assert vars(clone(fitted_once(card.name))).keys() == parameters.keys()


def check_defaults(card: MethodCard, specimen: Specimen) -> None:
    """What has no default is a network to start from; everything else may be left out."""
    needed = [
        name
        for name, parameter in inspect.signature(card.cls).parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    assert set(needed) <= {"model", "network", "backbone", "encoder"}


def check_not_fitted(card: MethodCard, specimen: Specimen) -> None:
    """Asked before fit, the method says that it is not fitted."""
    with pytest.raises(NotFittedError, match="fit"):
        specimen.answers(specimen.make())


def check_wrong_shape(card: MethodCard, specimen: Specimen) -> None:
    """A flat array is refused by name."""
    refuse_each(specimen, lambda rows: rows.ravel()[:30])


def check_nan(card: MethodCard, specimen: Specimen) -> None:
    """One NaN is refused by name."""

    def spoil(rows: np.ndarray) -> np.ndarray:
        rows.flat[rows.size // 2] = np.nan
        return rows

    refuse_each(specimen, spoil)


def check_empty(card: MethodCard, specimen: Specimen) -> None:
    """No rows are refused by name."""
    refuse_each(specimen, lambda rows: rows[:0])


def check_one_class(card: MethodCard, specimen: Specimen) -> None:
    """Labels of one class are refused by name."""
    refuse_labels(specimen, np.zeros_like)


def check_all_unlabelled(card: MethodCard, specimen: Specimen) -> None:
    """Labels that are all -1 are refused by name."""
    refuse_labels(specimen, lambda labels: np.full_like(labels, -1))


def check_labels_of_another_length(card: MethodCard, specimen: Specimen) -> None:
    """Fewer labels than rows are refused by name."""
    refuse_labels(specimen, lambda labels: labels[:-1])


def refuse_each(specimen: Specimen, change: Any) -> None:
    for name in specimen.rows:
        arguments = specimen.arguments()
        arguments[name] = replaced(arguments[name], change)
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            specimen.make().fit(**arguments)


def refuse_labels(specimen: Specimen, change: Any) -> None:
    if specimen.labels is None:
        return
    arguments = specimen.arguments()
    arguments[specimen.labels] = replaced(arguments[specimen.labels], change)
    with pytest.raises(ValueError, match=rf"\b{specimen.labels}\b"):
        specimen.make().fit(**arguments)


def check_survives_packing(card: MethodCard, specimen: Specimen) -> None:
    """Through JSON text and safetensors bytes the answers and parameters stay equal."""
    estimator = fitted_once(card.name)
    tensors, config = pack(estimator)
    again = unpack(load(save(tensors)), json.loads(json.dumps(config, allow_nan=False)))
    assert type(again) is card.cls
    assert same(specimen.answers(again), specimen.answers(estimator))
    assert same(again.get_params(deep=False), estimator.get_params(deep=False))


def check_documented(card: MethodCard, specimen: Specimen) -> None:
    """The docstring has every parameter, the references and an example; the summary is one line."""
    text = inspect.getdoc(card.cls) or ""
    assert [
        name for name in ("Parameters", "Attributes", "References", "Examples") if f"\n{name}\n---" not in text
    ] == []
    section = text.partition("\nParameters\n")[2].partition("\nAttributes\n")[0]
    named = {
        name.strip()
        for line in section.splitlines()
        if not line.startswith(" ")
        for name in line.split(":")[0].split(",")
    }
    assert [name for name in inspect.signature(card.cls).parameters if name not in named] == []
    public = [name for name in vars(card.cls) if not name.startswith("_") and callable(vars(card.cls)[name])]
    assert [name for name in public if not inspect.getdoc(getattr(card.cls, name))] == []
    assert "\n" not in card.summary
    assert card.link.startswith("https://")


def check_tested_and_measured(card: MethodCard, specimen: Specimen) -> None:
    """The module has its own tests and an evidence module."""
    _, stage, module = card.cls.__module__.split(".")
    assert stage == card.stage
    assert (ROOT / "tests" / "models" / stage / f"test_{module}.py").is_file()
    evidence = importlib.import_module(f"benchmarks.methods.{card.name.replace('-', '_')}")
    assert callable(evidence.collect)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
LARGE = ("curate", "discover")
"""Stages of a dozen methods and more: of each, `make test` runs the quick checks, and `make test-long` all of them."""
QUICK = ("clone", "defaults", "documented", "not_fitted", "tested_and_measured")


def in_turn(card: MethodCard, values: Any, marks: Any = (), quick: bool = False) -> Any:
    """A case, marked as long where its stage is large."""
    slow = [] if quick or card.stage not in LARGE else [pytest.mark.long]
    return pytest.param(*values, marks=[*marks, *slow])


@pytest.mark.parametrize(
    ("name", "check"),
    [
        in_turn(card, (card.name, check), quick=check in QUICK)
        for card in OWN
        for check in CHECKS
        if check not in card.skips_checks
    ],
)
def test_every_method(name: str, check: str) -> None:
    assert name in SPECIMENS, f"The method {name!r} has no specimen: add one to tests/models/specimens.py."
    CHECKS[check](get_method(name), SPECIMENS[name]())


def scikit_learn_checks() -> list[Any]:
    """scikit-learn's checks of the plain estimators; one that needs scipy set up before its import stays out."""
    pairs = []
    for card in OWN:
        specimen = SPECIMENS[card.name]() if card.name in SPECIMENS else None
        if specimen is not None and specimen.contract is not None:
            checked = (specimen.contract_on or specimen.make)()
            for pair in estimator_checks_generator(checked, expected_failed_checks=specimen.contract, mark="xfail"):
                pairs.append(in_turn(card, getattr(pair, "values", pair), getattr(pair, "marks", ())))
    return [pair for pair in pairs if "check_array_api_input" not in str(pair)]


def name_of(value: Any) -> str:
    return getattr(getattr(value, "func", None), "__name__", type(value).__name__)


@pytest.mark.filterwarnings("ignore::UserWarning")  # a clusterer may well warn of random rows without groups
@pytest.mark.parametrize(("estimator", "check"), scikit_learn_checks(), ids=name_of)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


def test_there_are_methods() -> None:
    assert len(OWN) > 0
    assert set(SPECIMENS) <= {card.name for card in OWN}


@pytest.mark.parametrize("name", [card.name for card in OWN])
def test_who_opts_out_names_a_check_and_a_reason(name: str) -> None:
    for check, reason in get_method(name).skips_checks.items():
        assert check in CHECKS
        assert len(reason.split()) >= 3

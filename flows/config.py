"""The lifecycle flow's parameters, and how a user overrides them: a YAML file, then ``--set stage.field=value``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError

from infra.errors import ConfigurationError
from infra.references import Reference
from infra.settings import explain_invalid
from tasks.adapt import AdaptConfig
from tasks.compress import CompressConfig
from tasks.curate import CurateConfig
from tasks.evaluate import EvaluateConfig
from tasks.finetune import FinetuneConfig, NaiveConfig
from tasks.label_noise import LabelNoiseConfig
from tasks.networks import NetworkConfig
from tasks.parameters import check_parameters
from tasks.pretrain import PretrainConfig
from tasks.register import RegisterConfig
from tasks.stage import StageConfig
from tasks.unlearn import UnlearnConfig
from tasks.validate import ValidateConfig

C = TypeVar("C", bound=StageConfig)


class LifecycleConfig(Reference):
    """Everything the lifecycle flow can be told, stage by stage."""

    data: str = Field("scans", description="Name of a dataset, NAME@VERSION, or a path to your own data.")
    network: NetworkConfig = NetworkConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    label_noise: LabelNoiseConfig = LabelNoiseConfig()
    curate: CurateConfig = CurateConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    adapt: AdaptConfig = AdaptConfig()
    unlearn: UnlearnConfig = UnlearnConfig()
    compress: CompressConfig = CompressConfig()
    naive: NaiveConfig = NaiveConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: RegisterConfig = Field(RegisterConfig(), alias="register")

    def stages(self) -> dict[str, StageConfig]:
        """Stage name -> its config."""
        named = {(field.alias or name): getattr(self, name) for name, field in type(self).model_fields.items()}
        return {name: config for name, config in named.items() if isinstance(config, StageConfig)}


def load_config(
    file: Path | None = None, overrides: Sequence[str] = (), data: str | None = None, seed: int | None = None
) -> LifecycleConfig:
    """Defaults, then the YAML file, then the overrides, checked as a whole.

    Parameters
    ----------
    file : Path, optional
        Mapping of stage to fields.
    overrides : sequence of str
        ``stage.field=value``; the value is read as YAML. ``stage.parameters.name=value`` sets one parameter.
    data : str, optional
        Same as the override ``data=…``.
    seed : int, optional
        Seed of every stage that does not set its own.

    Raises
    ------
    ConfigurationError
        For an unreadable file, an unknown name (with a suggestion) or an impossible value.
    """
    values = _read(file) if file is not None else {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigurationError(f"--set takes stage.field=value, got {override!r}.")
        _put(values, path.split("."), _value(text, override))
    if data is not None:
        values["data"] = data
    defaults = LifecycleConfig()
    for name, stage in defaults.stages().items():
        given = values.get(name)
        if isinstance(given, dict) and isinstance(given.get("parameters"), dict) and "method" not in given:
            given["parameters"] = {**stage.parameters, **given["parameters"]}
        elif isinstance(given, dict) and given.get("method", stage.method) != stage.method:
            given.setdefault("parameters", {})
    if seed is not None:
        for name in defaults.stages():
            if isinstance(values.setdefault(name, {}), dict):
                values[name].setdefault("seed", seed)
    try:
        return LifecycleConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(
            f"The parameters can not be used:\n{explain_invalid(error, LifecycleConfig)}\n"
            "See all of them with `clearwell run --show-config`."
        ) from None


def load_stage(cls: type[C], overrides: Sequence[str] = (), **given: Any) -> C:
    """The config of one stage: defaults, then ``field=value`` overrides, then what is `given` and not None.

    Raises
    ------
    ConfigurationError
        For an unknown name (with a suggestion) or an impossible value.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigurationError(f"--set takes field=value, got {override!r}.")
        _put(values, path.split("."), _value(text, override))
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"The parameters can not be used:\n{explain_invalid(error, cls)}") from None


def check_methods(config: LifecycleConfig, kind: str) -> None:
    """See that every enabled stage's method exists, takes these parameters and this kind of data.

    Raises
    ------
    ConfigurationError
        Before anything runs.
    """
    from models.registry import UnknownMethodError, get_method, list_methods

    for stage, given in config.stages().items():
        if not given.enabled or given.method == "none":
            continue
        try:
            card = get_method(given.method, stage)
        except UnknownMethodError as error:
            raise ConfigurationError(f"Stage {stage!r}: {error}") from None
        who = f"Stage {stage!r}: the method {given.method!r}"
        check_parameters(who, card.cls, given.parameters, ["random_state"])
        if kind not in card.accepts:
            others = [other.name for other in list_methods(stage) if kind in other.accepts]
            choice = f"choose {' or '.join(others)}" if others else "there is no other method yet"
            raise ConfigurationError(
                f"Stage {stage!r}: the method {given.method!r} takes {' or '.join(card.accepts)} data, and this is "
                f"{kind} data. Leave the stage out with `--set {stage}.enabled=false`, or {choice}.",
                stage=stage,
                kind=kind,
            )


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"The configuration {file} can not be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"The configuration {file} must be a mapping of stage to fields, got {values!r}.")
    return values


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere but in YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _value(text: str, override: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigurationError(f"--set {override!r}: the value is not readable; put text in quotes.") from None


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(f"--set {'.'.join(path)}: {part!r} is a value, not a group.")
        values = inner
    values[path[-1]] = value

"""One settings object: ``CLEARWELL_*`` variables, else the running stack, else ``mlflow.yaml``.

The stack leaves its addresses and credentials in ``.clearwell/stack/connection.json`` while it is up. Every product
is pointed at the same servers with the same credentials.
"""

from __future__ import annotations

import difflib
import os
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from infra.errors import ConfigurationError

SETTINGS_FILE = "mlflow.yaml"
CONNECTION_FILE = ".clearwell/stack/connection.json"
RESULT_STORAGE = "remote-file-system/clearwell-results"  # the block in which Prefect looks up its bucket
_OTHER_VARIABLES = ("actor", "data_cache")  # CLEARWELL_* variables that are no settings


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tracking(_Section):
    """Where MLflow keeps runs. Relative paths count from the project."""

    uri: str = Field("sqlite:///.clearwell/mlflow.db", description="Database or server of the runs and the registry.")
    artifacts: str = Field(".clearwell/artifacts", description="Folder or address of what runs leave behind.")
    experiment: str = Field("clearwell", description="Experiment that all runs belong to.")
    user: str | None = Field(None, description="User of a tracking server that asks for one.")
    password: SecretStr | None = Field(None, description="That user's password.")


class Orchestration(_Section):
    """The Prefect server. Without one, each run serves itself."""

    api: str | None = Field(None, description="Address of Prefect's API.")
    auth: SecretStr | None = Field(None, description="USER:PASSWORD that the server asks for.")


class Buckets(_Section):
    """What lies where in the object store."""

    data: str = Field("dvc", description="Dataset versions, pushed by DVC.")
    artifacts: str = Field("mlflow", description="What runs leave behind, and registered models.")
    results: str = Field("prefect", description="Results that Prefect keeps.")


class ObjectStore(_Section):
    """An S3-compatible store: one setting for boto3, DVC, MLflow and Prefect."""

    endpoint: str = Field(description="Address of the store.")
    region: str = Field("us-east-1", description="Its region; stores of one's own take any.")
    access_key: str = Field(description="Name of the key.")
    secret_key: SecretStr = Field(description="Its secret.")
    buckets: Buckets = Buckets()


class Stack(_Section):
    """Where `clearwell up` lets the servers listen, on 127.0.0.1 only."""

    postgres_port: int = Field(15432, ge=1, le=65535, description="PostgreSQL.")
    objects_port: int = Field(18333, ge=1, le=55535, description="Object store; its gRPC twin is 10,000 higher.")
    prefect_port: int = Field(14200, ge=1, le=65535, description="Prefect's API and pages.")
    mlflow_port: int = Field(15000, ge=1, le=65535, description="MLflow's API and pages.")
    runs_at_once: int = Field(2, ge=1, description="How many flow runs the worker lets run side by side.")
    start_seconds: float = Field(180.0, gt=0, description="How long a server may take until it answers.")


class Work(_Section):
    """Where work runs that can be divided. See docs/scale.md."""

    address: str = Field("local", description="local, ray (a cluster of this machine alone) or ray://host:port.")
    workers: int | None = Field(None, ge=1, description="Processes at once; by default 1, on Ray what there is.")
    processes: int = Field(1, ge=1, description="Processes that one training is spread over.")


class Notify(_Section):
    """Who is told when a run fails."""

    webhook: SecretStr | None = Field(None, description="Address that gets a JSON message; chat services take it.")


class Registry(_Section):
    """How models are registered."""

    model: str = Field("{data}-classifier", description="Name of the registered model; {data} is the dataset's name.")
    requires_approval: bool = Field(
        False, description="Whether a run stops at the alias `candidate`, for a person to promote."
    )
    lease_seconds: float = Field(60.0, gt=0, description="How long a promotion may hold the alias before it expires.")


class Gate(_Section):
    """A bound on one metric that a model version must meet to be promoted."""

    metric: str = Field(description="Name of the metric, as evaluation writes it.")
    split: str = Field(description="Where it was measured: test, target, erasure or model.")
    at_least: float | None = Field(None, description="Smallest value that is accepted.")
    at_most: float | None = Field(None, description="Largest value that is accepted.")
    worse_than_champion_by_at_most: float | None = Field(
        None, ge=0, description="Slack against the present champion, in the metric's own unit."
    )
    chance: str = Field(
        "", description="Metric of the split that says how far chance alone moves this one; the bounds give way by it."
    )
    only_if_measured: bool = Field(
        False, description="Let a version pass whose data has no such split, instead of holding it back."
    )
    higher_is_better: bool = Field(True, description="Which way the comparison with the champion goes.")


class Settings(BaseSettings):
    """Everything a deployment can set.

    Attributes
    ----------
    root : Path
        The project: the folder that holds ``mlflow.yaml``.
    """

    model_config = SettingsConfigDict(env_prefix="CLEARWELL_", env_nested_delimiter="__", frozen=True, extra="forbid")

    root: Path = Path()
    tracking: Tracking = Tracking()
    registry: Registry = Registry()
    gates: tuple[Gate, ...] = Field((), description="What a version must show before it becomes champion.")
    ledger: str = Field("sqlite:///.clearwell/ledger.db", repr=False, description="Database of the audit trail.")
    orchestration: Orchestration = Orchestration()
    object_store: ObjectStore | None = Field(None, description="S3-compatible store; without one, local folders.")
    stack: Stack = Stack()
    notify: Notify = Notify()
    runner: Work = Work()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the running stack, then ``mlflow.yaml``."""
        root = find_root()
        return (
            init_settings,
            env_settings,
            JsonConfigSettingsSource(settings_cls, root / CONNECTION_FILE),
            YamlConfigSettingsSource(settings_cls, root / SETTINGS_FILE),
        )

    @property
    def state(self) -> Path:
        """Folder of everything clearwell keeps: versions, models, cache, databases."""
        return self.root / ".clearwell"

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking address with an absolute path."""
        return self._absolute(self.tracking.uri)

    @property
    def artifact_root(self) -> str | None:
        """Where MLflow artifacts go, absolute; None leaves it to the tracking server."""
        target = self.tracking.artifacts
        if "://" in target:
            return target
        return None if self.tracking.uri.startswith("http") else (self.root / target).as_uri()

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy address of the ledger, absolute; it may hold a password."""
        return self._absolute(self.ledger)

    def _absolute(self, url: str) -> str:
        prefix = "sqlite:///"
        if not url.startswith(prefix) or url.startswith(prefix + "/"):
            return url
        path = self.root / url.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"{prefix}{path}"


def find_root() -> Path:
    """The project folder: ``CLEARWELL_ROOT``, else the nearest folder upwards that holds ``mlflow.yaml``, else here."""
    if os.environ.get("CLEARWELL_ROOT"):
        return Path(os.environ["CLEARWELL_ROOT"]).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / SETTINGS_FILE).exists()), here)


@cache
def settings() -> Settings:
    """The settings in force, read once a process.

    Raises
    ------
    ConfigurationError
        If ``mlflow.yaml`` or an environment variable holds an unknown name or an impossible value.
    """
    root = find_root()
    _reject_unknown_variables()
    try:
        loaded = Settings(root=root)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"{root / SETTINGS_FILE} (or a CLEARWELL_* variable) can not be used:\n{explain_invalid(error, Settings)}"
        ) from None
    prepare_environment(loaded)
    return loaded


def _reject_unknown_variables() -> None:
    """A misspelt ``CLEARWELL_*`` variable would otherwise be passed over in silence."""
    known = [*Settings.model_fields, *_OTHER_VARIABLES]
    for variable in os.environ:
        name = variable.removeprefix("CLEARWELL_").partition("__")[0].lower()
        near = difflib.get_close_matches(name, known, n=1)
        if variable.startswith("CLEARWELL_") and name not in known and near:
            raise ConfigurationError(
                f"The environment variable {variable} names no setting. Did you mean 'CLEARWELL_{near[0].upper()}'?"
            )


_written: dict[str, str] = {}  # what clearwell put into the environment; anything else there is the user's choice


def prepare_environment(current: Settings) -> None:
    """Point every product at the project and turn its telemetry off. Called before any of them is imported."""
    wanted = environment(current)
    for name in _written.keys() - wanted.keys():  # a stack that is down by now
        if os.environ.get(name) == _written.pop(name):
            del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) in (None, _written.get(name)):
            os.environ[name] = _written[name] = value


def environment(current: Settings) -> dict[str, str]:
    """Variables by which every product finds its server, and the door to it."""
    wanted = _quiet(current) | _servers(current) | _store(current)
    if current.object_store and current.orchestration.api:
        wanted["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"] = RESULT_STORAGE
    return wanted


def _quiet(current: Settings) -> dict[str, str]:
    return {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_CACHE": str(current.state / "arrow"),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_MODEL_CATALOG_URI": "",
        "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_TRACKING_URI": current.tracking_uri,
        "PREFECT_HOME": str(current.state / "prefect"),
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    }


def _servers(current: Settings) -> dict[str, str]:
    """Addresses and credentials of Prefect and MLflow."""
    prefect, tracking = current.orchestration, current.tracking
    found = {"PREFECT_API_URL": prefect.api, "MLFLOW_TRACKING_USERNAME": tracking.user}
    secrets = {"PREFECT_API_AUTH_STRING": prefect.auth, "MLFLOW_TRACKING_PASSWORD": tracking.password}
    found |= {name: secret.get_secret_value() if secret else None for name, secret in secrets.items()}
    return {name: value for name, value in found.items() if value is not None}


def _store(current: Settings) -> dict[str, str]:
    """Address and key of the object store, for everything built on boto3 or aiobotocore."""
    store = current.object_store
    if store is None:
        return {}
    if os.environ.get("AWS_ACCESS_KEY_ID") not in (None, _written.get("AWS_ACCESS_KEY_ID")):
        return {}  # keys of another store: a mixture of both would open neither
    return {
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key.get_secret_value(),
        "AWS_DEFAULT_REGION": store.region,
        "AWS_ENDPOINT_URL_S3": store.endpoint,
        "MLFLOW_S3_ENDPOINT_URL": store.endpoint,
    }


def explain_invalid(error: Exception, model: type[BaseModel]) -> str:
    """A pydantic error as one line a problem, with the nearest known name for an unknown one."""
    if not isinstance(error, ValidationError):
        return f"  {error}"
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _fields_at(model, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known))}."
            lines.append(f"  {where}: there is no such name. {hint}")
        else:
            lines.append(f"  {where}: {problem['msg']}, got {problem['input']!r}.")
    return "\n".join(lines)


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Names that the model at `path` knows, as a user writes them; numbers in the path are places in a list."""
    for part in (part for part in path if isinstance(part, str)):
        named = {field.alias or name: field for name, field in model.model_fields.items()}
        inner = named[part].annotation if part in named else None
        inner = next((item for item in get_args(inner) if isinstance(item, type)), inner)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]

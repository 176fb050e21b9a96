"""One settings object: mlflow.yaml, then the environment; what it does not know it says."""

import json
import os
import re

import pytest

from infra.errors import ConfigurationError
from infra.settings import CONNECTION_FILE, find_root, settings

CONNECTION = {
    "tracking": {"uri": "http://127.0.0.1:15000", "user": "clearwell", "password": "mlflow-secret"},
    "ledger": "postgresql+psycopg2://clearwell:pg-secret@127.0.0.1:15432/ledger",
    "orchestration": {"api": "http://127.0.0.1:14200/api", "auth": "clearwell:prefect-secret"},
    "object_store": {"endpoint": "http://127.0.0.1:18333", "access_key": "key", "secret_key": "s3-secret"},
}


@pytest.fixture
def written(home, monkeypatch):
    """Write mlflow.yaml and read the settings anew."""

    def read(text, **variables):
        (home / "mlflow.yaml").write_text(text)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        settings.cache_clear()
        return settings()

    return read


def test_file_is_read_and_the_rest_has_defaults(written, home):
    found = written("tracking: {experiment: trial}\ngates: [{metric: accuracy, split: test, at_least: 0.9}]\n")
    assert found.tracking.experiment == "trial"
    assert (found.gates[0].metric, found.gates[0].at_least, found.gates[0].higher_is_better) == ("accuracy", 0.9, True)
    assert found.registry.model == "{data}-classifier"
    assert found.root == home


def test_environment_overrides_the_file(written):
    found = written(
        "registry: {requires_approval: false, lease_seconds: 5}",
        CLEARWELL_REGISTRY__REQUIRES_APPROVAL="true",
        CLEARWELL_LEDGER="sqlite:////elsewhere/ledger.db",
    )
    assert found.registry.requires_approval
    assert found.registry.lease_seconds == 5
    assert found.ledger_url == "sqlite:////elsewhere/ledger.db"


def test_relative_addresses_count_from_the_project(written, home, monkeypatch):
    found = written("{}")
    monkeypatch.chdir("/")
    assert found.tracking_uri == f"sqlite:///{home}/.clearwell/mlflow.db"
    assert found.ledger_url == f"sqlite:///{home}/.clearwell/ledger.db"
    assert found.artifact_root == f"file://{home}/.clearwell/artifacts"
    assert found.state == home / ".clearwell"


def test_servers_are_left_as_they_are(written):
    found = written("tracking: {uri: 'http://localhost:5000', artifacts: 's3://bucket/runs'}")
    assert found.tracking_uri == "http://localhost:5000"
    assert found.artifact_root == "s3://bucket/runs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trackng: {}", r"trackng: there is no such name. Did you mean 'tracking'\?"),
        ("tracking: {exxperiment: x}", r"tracking\.exxperiment: .* Did you mean 'experiment'\?"),
        ("gates: [{metric: a, split: test, at_leest: 1}]", r"gates\.0\.at_leest: .* Did you mean 'at_least'\?"),
        ("registry: {zzz: 1}", r"registry\.zzz: .* Known: lease_seconds, model, requires_approval\."),
        ("registry: {lease_seconds: 0}", r"registry\.lease_seconds: .* greater than 0, got 0\."),
        ("gates: [{metric: accuracy}]", r"gates\.0\.split: Field required"),
        ("a: [", "mlflow.yaml .* can not be used"),
        ("- just\n- a list", "mlflow.yaml .* can not be used"),
    ],
)
def test_what_can_not_be_used_is_named(written, text, message):
    with pytest.raises(ConfigurationError, match=message):
        written(text)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CLEARWELL_TRACKING__URL", "x", r"Did you mean 'uri'\?"),
        ("CLEARWELL_TRACKNG__URI", "x", r"CLEARWELL_TRACKNG__URI names no setting. Did you mean 'CLEARWELL_TRACKING'"),
        ("CLEARWELL_GATES", "not json", "gates"),
        ("CLEARWELL_REGISTRY__LEASE_SECONDS", "soon", "valid number"),
    ],
)
def test_what_the_environment_says_wrong_is_named(written, variable, value, message):
    with pytest.raises(ConfigurationError, match=message):
        written("{}", **{variable: value})


def test_variables_of_other_use_are_no_settings(written):
    assert written("{}", CLEARWELL_ACTOR="someone", CLEARWELL_DATA_CACHE="/tmp").ledger.startswith("sqlite")


def test_settings_can_not_be_changed(written):
    with pytest.raises(ValueError, match="frozen"):
        written("{}").ledger = "elsewhere"


def test_root_is_the_nearest_folder_upwards_that_holds_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv("CLEARWELL_ROOT", raising=False)
    (tmp_path / "mlflow.yaml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert find_root() == tmp_path
    monkeypatch.setenv("CLEARWELL_ROOT", str(tmp_path / "a"))
    assert find_root() == tmp_path / "a"


def test_products_are_pointed_at_the_project_and_kept_silent(written, home):
    written("{}", PREFECT_CLI_PROMPT="true")
    assert os.environ["PREFECT_HOME"] == str(home / ".clearwell" / "prefect")
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["PREFECT_CLI_PROMPT"] == "true"  # what a user chose stays


@pytest.fixture
def connected(written, home):
    """A stack's connection file lies in the project."""
    (home / CONNECTION_FILE).parent.mkdir(parents=True)
    (home / CONNECTION_FILE).write_text(json.dumps(CONNECTION))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"):
        os.environ.pop(name, None)
    return written


def test_a_running_stack_is_used_by_every_product(connected):
    found = connected("tracking: {experiment: trial}\nledger: sqlite:///own.db\n")
    assert (found.tracking_uri, found.tracking.experiment) == ("http://127.0.0.1:15000", "trial")
    assert found.ledger_url == CONNECTION["ledger"]
    assert found.artifact_root is None  # the server knows where artifacts go
    assert found.object_store.buckets.data == "dvc"
    assert {name: os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")} == {
        "PREFECT_API_URL": "http://127.0.0.1:14200/api",
        "PREFECT_API_AUTH_STRING": "clearwell:prefect-secret",
    }
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == (
        "clearwell",
        "mlflow-secret",
    )
    assert (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]) == ("key", "s3-secret")
    assert os.environ["AWS_ENDPOINT_URL_S3"] == "http://127.0.0.1:18333"


def test_when_the_stack_is_down_its_addresses_are_forgotten(connected, home):
    connected("{}")
    (home / CONNECTION_FILE).unlink()
    settings.cache_clear()
    assert settings().object_store is None
    assert os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:///")
    assert not {"PREFECT_API_URL", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"} & set(os.environ)


def test_keys_of_another_store_are_not_mixed_with_ours(connected):
    connected("{}", AWS_ACCESS_KEY_ID="of another store", AWS_SECRET_ACCESS_KEY="its secret")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "its secret"
    assert "AWS_ENDPOINT_URL_S3" not in os.environ


def test_the_environment_overrides_the_stack(connected):
    found = connected("{}", CLEARWELL_TRACKING__URI="http://elsewhere:5000", PREFECT_API_URL="http://elsewhere/api")
    assert found.tracking_uri == "http://elsewhere:5000"
    assert os.environ["PREFECT_API_URL"] == "http://elsewhere/api"


def test_secrets_are_not_shown(connected):
    shown = repr(connected("{}"))
    assert not {"mlflow-secret", "prefect-secret", "s3-secret", "pg-secret"} & set(re.findall(r"[\w-]+", shown))

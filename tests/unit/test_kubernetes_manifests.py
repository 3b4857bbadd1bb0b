"""The manifests for Kubernetes, checked against the schemas of Kubernetes and against the appliance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import typer
import yaml

from appliance.cli.application import app
from appliance.config import load
from appliance.driver.service_manager import STOP_MARGIN
from tests.support.appliance_process import ROOT

MANIFESTS: Final = ROOT / "docker" / "kubernetes"
VERSIONS: Final = ("1.31.0", "1.37.0")


def documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def resources() -> Iterator[tuple[str, dict[str, Any]]]:
    kustomization = documents(MANIFESTS / "kustomization.yaml")[0]
    for name in kustomization["resources"]:
        for document in documents(MANIFESTS / name):
            yield f"{document['kind']}/{document['metadata']['name']}", document


RESOURCES: Final = dict(resources())
PODS: Final = {name: each["spec"]["template"] for name, each in RESOURCES.items() if "StatefulSet" in name}
SERVICES: Final = {name: each["spec"] for name, each in RESOURCES.items() if "Service" in name}


def container(role: str) -> dict[str, Any]:
    found: dict[str, Any] = PODS[f"StatefulSet/appliance-{role}"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", sorted(RESOURCES))
def test_a_resource_follows_the_schema_of_kubernetes(name: str, version: str) -> None:
    kubernetes_validate.validate(RESOURCES[name], version, strict=True)


def test_the_schema_finds_a_wrong_key() -> None:
    wrong = {**RESOURCES["Service/appliance"], "spec": {"ports": [{"name": "http", "prot": 8000}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_all_files_are_used() -> None:
    used = {"kustomization.yaml", "models.yaml", *documents(MANIFESTS / "kustomization.yaml")[0]["resources"]}
    assert used == {file.name for file in MANIFESTS.iterdir()}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_finds_pods_that_listen_on_its_port(name: str) -> None:
    service = SERVICES[name]
    chosen = [
        pod for pod in PODS.values() if service["selector"].items() <= pod["metadata"]["labels"].items()
    ]
    assert len(chosen) == (2 if name == "Service/appliance" else 1)
    for pod in chosen:
        listens = {(port["name"], port["containerPort"]) for port in pod["spec"]["containers"][0]["ports"]}
        assert {(port["name"], port["port"]) for port in service["ports"]} <= listens


@pytest.mark.parametrize("name", sorted(PODS))
def test_a_pod_runs_without_rights_and_gets_the_time_that_a_stop_takes(name: str) -> None:
    pod = PODS[name]["spec"]
    drain_timeout = load(ROOT / "models.yaml").server.drain_timeout
    assert pod["terminationGracePeriodSeconds"] >= drain_timeout + STOP_MARGIN
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    (only,) = pod["containers"]
    assert only["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    # The user of the image, who owns the volume.
    assert f"--uid {pod['securityContext']['runAsUser']} " in (ROOT / "docker" / "Dockerfile.cpu").read_text()
    assert {mount["mountPath"] for mount in only["volumeMounts"]} >= {"/data", "/dev/shm"}


@pytest.mark.parametrize("role", ["head", "node"])
def test_no_secret_is_in_the_arguments_or_in_the_files(role: str) -> None:
    secret = {"APPLIANCE_TOKEN", "APPLIANCE_CLUSTER_TOKEN"}
    for variable in container(role)["env"]:
        assert ("secretKeyRef" in variable["valueFrom"]) == (variable["name"] in secret)


@pytest.mark.parametrize("role", ["head", "node"])
def test_the_command_line_accepts_the_arguments(role: str) -> None:
    name, *arguments = container(role)["args"]
    commands = typer.main.get_group(app)
    with commands.make_context("appliance", [name]) as context:
        command = commands.get_command(context, name)
        assert command is not None
        command.make_context(name, arguments, parent=context).close()


def test_nodes_join_at_the_service_of_the_head() -> None:
    host, _, port = container("node")["args"][1].partition(":")
    assert RESOURCES[f"Service/{host}"]["spec"]["ports"][0]["port"] == int(port)


@pytest.mark.parametrize("role", ["head", "node"])
def test_a_pod_gets_requests_only_while_it_can_answer(role: str) -> None:
    probe = container(role)["readinessProbe"]
    assert probe["httpGet"] == {"path": "/healthz", "port": "http"}
    ports = {port["name"]: port["containerPort"] for port in container(role)["ports"]}
    if role == "node":
        assert f"--listen=0.0.0.0:{ports['http']}" in container(role)["args"]


def test_the_config_names_the_address_of_the_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_IP", "10.1.2.3")
    cluster = load(MANIFESTS / "models.yaml").cluster
    assert cluster is not None
    assert cluster.address == "10.1.2.3"
    assert "POD_IP" in {variable["name"] for variable in container("head")["env"]}

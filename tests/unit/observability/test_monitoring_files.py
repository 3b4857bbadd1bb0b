"""The files for Prometheus, Grafana and Compose, checked by Prometheus' own tool where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.driver.service_manager import STOP_MARGIN
from tests.support.appliance_process import ROOT

DOCKER = ROOT / "docker"
MONITORING = ROOT / "appliance" / "assets" / "monitoring"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing (Debian: prometheus)")


def promtool(*arguments: str | Path) -> str:
    assert PROMTOOL is not None
    ran = subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def loaded(name: str) -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return value


def services() -> dict[str, Any]:
    found: dict[str, Any] = loaded("compose.yaml")["services"]
    return found


@needs_promtool
def test_prometheus_accepts_its_config(tmp_path: Path) -> None:
    for file in (DOCKER / "prometheus.yml", MONITORING / "alerts.yml"):
        shutil.copy(file, tmp_path)
    (tmp_path / "appliance-token").write_text("secret")
    assert "SUCCESS: 1 rule files found" in promtool("check", "config", tmp_path / "prometheus.yml")


@needs_promtool
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", DOCKER / "alerts_test.yml")


def test_every_alert_has_a_test() -> None:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    rules = {rule["alert"] for group in groups for rule in group["rules"]}
    tested = {
        case["alertname"] for test in loaded("alerts_test.yml")["tests"] for case in test["alert_rule_test"]
    }
    assert rules == tested


def test_compose_mounts_files_that_exist() -> None:
    mounts = [volume.split(":")[0] for service in services().values() for volume in service["volumes"]]
    files = [DOCKER / mount for mount in mounts if mount.startswith(".")]
    assert len(files) == 6
    assert [file for file in files if not file.is_file()] == []
    assert {mount for mount in mounts if not mount.startswith(".")} == set(loaded("compose.yaml")["volumes"])


def test_compose_publishes_only_to_this_machine() -> None:
    ports = [port for service in services().values() for port in service["ports"]]
    assert len(ports) == 3
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_compose_gives_prometheus_the_token_of_the_appliance_where_it_reads_it() -> None:
    (scrape,) = loaded("prometheus.yml")["scrape_configs"]
    (secret,) = services()["prometheus"]["secrets"]
    assert Path(secret["target"]) == Path("/etc/prometheus") / scrape["authorization"]["credentials_file"]
    assert loaded("compose.yaml")["secrets"][secret["source"]] == {"environment": "APPLIANCE_TOKEN"}
    assert "APPLIANCE_TOKEN" in services()["appliance"]["environment"]
    assert scrape["static_configs"] == [{"targets": ["appliance:8000"]}]


def test_compose_waits_until_the_appliance_has_stopped() -> None:
    drain_timeout = 30.0  # the default
    assert services()["appliance"]["stop_grace_period"] == f"{drain_timeout + STOP_MARGIN:g}s"


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = loaded("grafana/datasources.yml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    (provider,) = loaded("grafana/dashboards.yml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    shipped = "../appliance/assets/monitoring/dashboard.json"
    assert mounts[shipped] == f"{provider['options']['path']}/appliance.json"
    assert json.loads((DOCKER / shipped).read_text())["uid"] == "appliance"


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_the_images_keep_their_promises(name: str) -> None:
    text = (DOCKER / name).read_text()
    first, _, last = text.rpartition("FROM ${BASE}")
    assert "ARG BASE=docker.io/library/python:3.11-slim-bookworm" in first
    copied = re.findall(r"^COPY --from=build (.*)$", last, re.MULTILINE)
    assert copied == [
        "/srv/appliance/.venv .venv",
        "/srv/appliance/appliance appliance",
        "/srv/appliance/models.yaml /srv/appliance/LICENSE ./",
    ]
    assert last.index("USER appliance") < last.index("ENTRYPOINT")
    assert "HEALTHCHECK" in last
    assert "STOPSIGNAL SIGTERM" in last

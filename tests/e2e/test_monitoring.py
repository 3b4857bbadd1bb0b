"""Prometheus, with the shipped config, reads the metrics of a running appliance."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import PATIENCE, ROOT, TOKEN, Appliance, free_port, wait_for

pytestmark = pytest.mark.e2e

PROMETHEUS = shutil.which("prometheus")
DOCKER = ROOT / "docker"


@pytest.fixture
def prometheus(appliance: Appliance, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a Prometheus that runs with the shipped config, but scrapes every second."""
    if PROMETHEUS is None:
        pytest.skip("prometheus is missing (Debian: prometheus)")
    config = (DOCKER / "prometheus.yml").read_text()
    for shipped, here in {
        '"appliance:8000"': f'"127.0.0.1:{appliance.port}"',
        "scrape_interval: 15s": "scrape_interval: 1s",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
    }.items():
        assert shipped in config
        config = config.replace(shipped, here)
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(ROOT / "appliance/assets/monitoring/alerts.yml", tmp_path)
    (tmp_path / "appliance-token").write_text(TOKEN)
    url = f"127.0.0.1:{free_port()}"
    command = [PROMETHEUS, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen([*command, f"--web.listen-address={url}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{url}", trust_env=False, timeout=PATIENCE) as client:
            wait_for(lambda: running.poll() is not None or ready(client), "Prometheus to be ready")
            assert running.poll() is None, (tmp_path / "log").read_text()
            yield client
    finally:
        running.terminate()
        running.wait(PATIENCE)


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False


def queried(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    reply = client.get("/api/v1/query", params={"query": query})
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["data"]["result"]
    return found


def test_prometheus_reads_the_metrics(prometheus: httpx.Client, client: httpx.Client) -> None:
    made = client.post(
        "/v1/models/test/stream/predictions", json={"input": {"text": "x"}}, headers={"Prefer": "wait"}
    )
    assert made.json()["status"] == "succeeded"
    for query in (
        'appliance_predictions_total{model="test/stream", status="succeeded"} >= 1',
        'appliance_model_state{model="test/stream", state="ready"} == 1',
        'up{job="appliance"} == 1',
    ):
        (series,) = wait_for(lambda query=query: queried(prometheus, query), query)  # type: ignore[misc]
        assert series["metric"]["job"] == "appliance"


def test_prometheus_evaluates_the_alerts(prometheus: httpx.Client) -> None:
    def rules() -> list[dict[str, Any]]:
        (group,) = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        found: list[dict[str, Any]] = group["rules"]
        return found if all(rule["health"] != "unknown" for rule in found) else []

    evaluated = wait_for(rules, "Prometheus to evaluate the rules")
    assert {rule["health"] for rule in evaluated} == {"ok"}
    assert "ApplianceDown" in {rule["name"] for rule in evaluated}

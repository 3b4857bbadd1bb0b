"""A model of a hub on loopback that is added to a running appliance over the API, and then predicts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.weights.locations import BUILTIN
from tests.support.appliance_process import Appliance, wait_for
from tests.support.stub_hub import StubHub, serving_hub

pytestmark = pytest.mark.integration

CONFIG = "# mine\nmodels:\n  - name: test/echo\n    kind: echo\n    memory: 64MiB\n"
SHAPES = BUILTIN / "tiny-shapes"


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with serving_hub() as served:
        files = [file for file in SHAPES.rglob("*") if file.is_file()]
        served.add("org/shapes", {file.relative_to(SHAPES).as_posix(): file.read_bytes() for file in files})
        yield served


@pytest.fixture
def appliance(hub: StubHub, tmp_path: Path) -> Iterator[Appliance]:
    config = tmp_path / "config" / "models.yaml"
    config.parent.mkdir()
    config.write_text(CONFIG)
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        **dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"), ""),
    }
    started = Appliance(tmp_path / "home", config, variables=variables)
    with started.running():
        yield started


def test_an_addition_survives_the_gateway_and_its_model_predicts(appliance: Appliance, hub: StubHub) -> None:
    hub.gate.clear()
    with appliance.client() as client:
        reply = client.post("/admin/additions", json={"source": "hub:org/shapes", "name": "me/shapes"})
        assert reply.status_code == 202, reply.text
        path = f"/admin/additions/{reply.json()['id']}"

        def addition() -> dict[str, Any] | None:
            try:
                reply = client.get(path)
            except httpx.TransportError:  # the gateway is being replaced
                return None
            return dict(reply.json()) if reply.status_code == 200 else None

        wait_for(lambda: (addition() or {}).get("step") == "downloading from the hub", "the download")
        appliance.kill_gateway()
        threading.Thread(target=hub.gate.set).start()
        wait_for(lambda: (addition() or {}).get("ended_at"), "the end of the addition")
        ended = addition()
        assert ended is not None
        assert (ended["state"], ended["problem"]) == ("succeeded", None)
        assert appliance.config.read_text().startswith(f"{CONFIG}  - name: me/shapes\n    kind: diffusers\n")
        assert not list((appliance.home / "additions").iterdir())

        reply = client.post(
            "/v1/models/me/shapes/predictions",
            json={"input": {"prompt": "a red circle on a white background", "num_inference_steps": 2}},
            headers={"Prefer": "wait=60"},
        )
        assert reply.status_code == 201, reply.text
        wait_for(
            lambda: client.get(f"/v1/predictions/{reply.json()['id']}").json()["completed_at"], "the end"
        )
        record = client.get(f"/v1/predictions/{reply.json()['id']}").json()
        assert record["status"] == "succeeded", record["error"]

        removal = client.delete("/admin/models/me/shapes", params={"prune": "true"})
        assert removal.status_code == 200, removal.text
        assert appliance.config.read_text() == CONFIG
        assert list((appliance.home / "weights" / "hub").iterdir()) == []

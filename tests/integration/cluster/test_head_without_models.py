"""A head that runs no models (``hardware.devices: none``), and two nodes that do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import wait_for
from tests.support.cluster import HeadAndNodes
from tests.support.network_namespaces import available

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="network namespaces need root and iproute2"),
]
CONFIG = """
cluster: {{address: {address}, name: head, lost_after: 4, devices: cpu}}
hardware: {{devices: none}}
models:
  - {{name: test/stream, kind: echo, memory: 250MiB, options: {{stream: true}}}}
  - {{name: test/pinned, kind: echo, memory: 250MiB, pin: true}}
  - {{name: test/apart, kind: echo, environment: {{requirements: [cowsay]}}}}
"""
FINAL = {"succeeded", "failed", "canceled"}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadAndNodes]:
    machines = HeadAndNodes(tmp_path_factory.mktemp("m"), CONFIG, ["one", "two"], "--device", "small=600MiB")
    try:
        machines.head.start()
        yield machines
    finally:
        machines.close()


@pytest.fixture
def client(machines: HeadAndNodes) -> Iterator[httpx.Client]:
    with machines.head.client() as http:
        yield http


def create(client: httpx.Client, **input: Any) -> str:
    reply = client.post("/v1/models/test/stream/predictions", json={"input": input})
    assert reply.status_code in {201, 202}, reply.text
    return str(reply.json()["id"])


def get(client: httpx.Client, id: str) -> dict[str, Any]:
    record: dict[str, Any] = client.get(f"/v1/predictions/{id}").json()
    return record


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    wait_for(lambda: get(client, id)["status"] in FINAL, f"prediction {id} to end")
    return get(client, id)


def status(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/admin/status").json()
    return found


def model(client: httpx.Client, name: str) -> dict[str, Any]:
    return next(each for each in status(client)["models"] if each["name"] == f"test/{name}")


def test_the_head_runs_nothing(machines: HeadAndNodes, client: httpx.Client) -> None:
    found = status(client)
    assert (found["devices"], found["runs_models"]) == ([], False)
    assert client.get("/v1/hardware").json() == []
    (apart,) = found["not_served"]
    assert apart["name"] == "test/apart"
    assert apart["problem"].startswith("environment of its own: it runs only on the head of the cluster")
    refused = client.post("/v1/models/test/apart/predictions", json={"input": {"text": "a"}})
    assert refused.status_code == 404
    log = (machines.head.home / "logs" / "appliance.log").read_text()
    assert "model test/apart is not served: environment of its own" in log
    assert not (machines.head.home / "logs" / "zygote.log").exists()


def test_a_prediction_waits_for_a_node_and_survives_gateway_and_node(
    machines: HeadAndNodes, client: httpx.Client
) -> None:
    waiting = create(client, text="a")
    wait_for(lambda: model(client, "stream")["fits_nowhere"] is not None, "the reason of the wait")
    assert get(client, waiting)["status"] == "starting"
    machines.join("one")
    assert ended(client, waiting)["output"] == ["a"]
    assert model(client, "stream")["devices"] == ["one/small"]
    wait_for(lambda: model(client, "pinned")["state"] == "ready", "the pinned model")
    assert client.get("/v1/hardware").json()[0]["sku"] == "small"

    running = create(client, text="a b c", chunk_delay=4)
    wait_for(lambda: get(client, running).get("output"), "the first word")
    machines.head.gateway().kill()
    wait_for(machines.head.answers, "the next gateway")
    assert ended(client, running)["output"] == ["a ", "b ", "c"]

    machines.join("two")
    silent = create(client, text="a", delay=15)
    wait_for(lambda: get(client, silent)["status"] != "starting", "the prediction to start")
    assert model(client, "stream")["devices"] == ["one/small"]
    machines.nodes["one"].kill()
    assert ended(client, silent)["status"] == "succeeded"
    assert model(client, "stream")["devices"] == ["two/small"]
    wait_for(partial(is_on, client, "pinned", "two/small"), "the pinned model on the other node")


def is_on(client: httpx.Client, name: str, device: str) -> bool:
    return bool(model(client, name)["devices"] == [device])

"""The HTTP API on the nodes of a cluster: a head and two nodes in network namespaces.

The nodes have hardly any memory, so all models run on the head.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.appliance_process import PATIENCE, fetch, wait_for
from tests.support.cluster import Head
from tests.support.http_node import HttpNode
from tests.support.network_namespaces import Network, available

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="network namespaces need root and iproute2"),
]
CONFIG = """
cluster: {{address: {address}, name: head, lost_after: 5}}
hardware: {{devices: [{{name: small, memory: 400MiB}}]}}
models:
  - {{name: test/echo, kind: echo, memory: 32MiB}}
  - {{name: test/stream, kind: echo, memory: 32MiB, options: {{stream: true}}}}
  - {{name: test/files, kind: echo, memory: 32MiB, options: {{files: true}}}}
"""
TEXT = "word "


class Machines:
    """The head and two nodes."""

    def __init__(self, folder: Path) -> None:
        self.network = Network(["head", "one", "two"])
        address = self.network.addresses["head"]
        config = folder / "models.yaml"
        config.write_text(CONFIG.format(address=address))
        self.head = Head(folder / "head", config, self.network, "head")
        self.one, self.two = (HttpNode(folder / name, self.network, name, address) for name in ("one", "two"))

    def close(self) -> None:
        for machine in (self.one, self.two, self.head):
            if machine.process is not None:
                machine.kill()
        self.network.close()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    machines = Machines(tmp_path_factory.mktemp("machines"))
    try:
        machines.head.start()
        for node in (machines.one, machines.two):
            node.start()
        for node in (machines.one, machines.two):
            wait_for(node.answers, "the node to answer HTTP")
        yield machines
    finally:
        machines.close()


@pytest.fixture
def client(machines: Machines) -> Iterator[httpx.Client]:
    """A client of node one."""
    with machines.one.client() as signed_in:
        yield signed_in


def create(client: httpx.Client, model: str = "test/echo", **input: Any) -> dict[str, Any]:
    reply = client.post("/v1/predictions", json={"version": model, "input": input})
    assert reply.status_code == 201, reply.text
    created: dict[str, Any] = reply.json()
    return created


def ended(client: httpx.Client, id: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        record: dict[str, Any] = client.get(f"/v1/predictions/{id}").json()
        return record if record["status"] in {"succeeded", "failed", "canceled"} else None

    record: dict[str, Any] = wait_for(found, f"the end of {id}")
    return record


def outputs(client: httpx.Client, url: str, last: str | None = None) -> Iterator[tuple[str, str]]:
    """The id and data of each output event of a stream, as they arrive."""
    headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": last})
    with client.stream("GET", url, headers=headers) as reply:
        assert reply.status_code == 200
        event: dict[str, str] = {}
        for line in reply.iter_lines():
            if line:
                name, _, value = line.partition(":")
                event[name] = value.removeprefix(" ")
            elif event:
                if event.get("event") == "output":
                    yield event["id"], event["data"]
                event = {}


def test_a_prediction_waits_and_its_urls_are_those_of_the_node(machines: Machines) -> None:
    for node in (machines.one, machines.two):
        with node.client() as client:
            reply = client.post(
                "/v1/predictions",
                json={"version": "test/echo", "input": {"text": "hello", "delay": 2}},
                headers={"Prefer": "wait"},
            )
            record = reply.json()
            assert (reply.status_code, record["output"]) == (201, "hello")
            assert all(url.startswith(f"{node.url}/") for url in record["urls"].values())
            assert client.get(record["urls"]["get"]).json()["id"] == record["id"]


def test_files_go_up_and_down(machines: Machines, client: httpx.Client) -> None:
    content = os.urandom(20_000_000)
    file = client.post("/v1/files", files={"content": ("big.bin", content)}).json()
    assert file["urls"]["get"].startswith(machines.one.url)
    record = ended(client, create(client, "test/files", file=file["urls"]["get"])["id"])
    assert record["status"] == "succeeded", record
    (output,) = record["output"]
    assert output.startswith(machines.one.url)
    assert client.get(output).content == content


def test_the_audit_log_has_the_address_of_the_client(machines: Machines, client: httpx.Client) -> None:
    forged = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    name = "of node one"
    created = client.post("/admin/tokens", json={"name": name}, headers=forged)
    assert created.status_code == 201, created.text
    records = client.get("/admin/audit").json()["results"]
    (record,) = [each for each in records if each["action"] == "token.create"]
    assert record["address"] == machines.network.own_address
    assert client.get("/v1/account", headers=forged).status_code == 200
    models = client.get("/v1/predictions", headers=forged).json()
    assert "evil.example" not in str(models)


def test_a_token_works_only_in_its_networks(machines: Machines, client: httpx.Client) -> None:
    def allowed(network: str) -> int:
        body = {"name": network, "networks": [network]}
        secret = client.post("/admin/tokens", json=body).json()["token"]
        return client.get("/v1/account", headers={"Authorization": f"Bearer {secret}"}).status_code

    assert allowed(f"{machines.network.own_address}/32") == 200
    assert allowed(f"{machines.network.addresses['one']}/32") == 403


def test_errors_are_those_of_the_head(machines: Machines, client: httpx.Client) -> None:
    with machines.head.client() as direct:
        for path in ("/v1/predictions/missing", "/nowhere", "/openai/v1/models/missing"):
            through, known = client.get(path), direct.get(path)
            assert (through.status_code, through.json()) == (known.status_code, known.json())
            assert through.headers["content-type"] == known.headers["content-type"]
    assert fetch(f"{machines.one.url}/v1/account").status_code == 401


def test_a_prediction_is_cancelled(client: httpx.Client) -> None:
    created = create(client, delay=600)
    wait_for(lambda: client.get(created["urls"]["get"]).json()["status"] == "processing", "the prediction")
    assert client.post(created["urls"]["cancel"]).status_code == 200
    assert ended(client, created["id"])["status"] == "canceled"


def test_a_stream_continues_on_another_machine(machines: Machines) -> None:
    with machines.one.client() as client:
        created = create(client, "test/stream", text=TEXT, repeat=100, chunk_delay=0.1)
        reading = outputs(client, created["urls"]["stream"])
        seen = list(itertools.islice(reading, 5))
        assert created["urls"]["stream"].startswith(machines.one.url)
        machines.one.kill()
        with contextlib.suppress(httpx.HTTPError):  # unless the whole stream has arrived
            seen += reading
    with machines.two.client() as other:
        path = created["urls"]["stream"].removeprefix(machines.one.url)
        seen += outputs(other, path, seen[-1][0])
        assert "".join(text for _, text in seen) == TEXT * 100
        assert len({id for id, _ in seen}) == len(seen)
        assert ended(other, created["id"])["status"] == "succeeded"
    machines.one.start()
    wait_for(machines.one.answers, "node one to answer again")


def test_a_request_waits_for_the_next_gateway(machines: Machines, client: httpx.Client) -> None:
    machines.head.kill_gateway()
    for path in ("/v1/account", "/healthz"):
        wait_for(lambda: _status(client, path) == 200, f"an answer of {path}")  # noqa: B023 - called at once


def _status(client: httpx.Client, path: str) -> int:
    """Return the status of the response; 0 if the connection broke, as on the head."""
    try:
        return client.get(path).status_code
    except httpx.HTTPError:
        return 0


def test_the_http_server_of_a_node_is_restarted(machines: Machines, client: httpx.Client) -> None:
    (server,) = machines.one.named("driver.node_http")
    server.kill()
    server.wait(PATIENCE)
    with machines.one.client() as other:  # its connection waits for the next process
        assert other.get("/v1/account").status_code in {200, 503}  # 503 if the head took too long
        wait_for(lambda: other.get("/v1/account").status_code == 200, "an answer of the head")


def test_a_node_whose_driver_was_killed_answers_at_the_same_port_again(machines: Machines) -> None:
    process = machines.two.process
    assert process is not None
    process.kill()
    process.wait(PATIENCE)
    machines.two.start()
    wait_for(machines.two.answers, "node two to answer again")


def test_a_node_says_that_the_head_is_away_and_works_when_it_is_back(machines: Machines) -> None:
    with machines.one.client() as client:
        created = create(client, text="kept", delay=3)
    machines.head.kill()

    def refused() -> httpx.Response | None:
        try:
            reply = fetch(f"{machines.one.url}/healthz")
        except httpx.HTTPError:  # the node joins again, and starts its processes anew
            return None
        return reply if reply.status_code == 503 else None

    reply: httpx.Response = wait_for(refused, "the node to say that the head is away")
    assert reply.headers["retry-after"] == "5"
    assert reply.json()["title"] == "Head unreachable"
    machines.head.start()
    wait_for(machines.one.answers, "node one to answer")
    with machines.one.client() as client:
        assert ended(client, created["id"])["output"] == "kept"


def test_a_node_ends_all_its_processes(machines: Machines) -> None:
    wait_for(machines.two.answers, "node two, which may be joining again")
    assert machines.two.stop() == 0
    assert machines.two.processes() == []
    assert not machines.two.answers()

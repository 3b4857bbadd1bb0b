"""An appliance of three machines under load: nodes and the head are killed, and a cable is cut."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest

from tests.support.appliance_process import PATIENCE, Appliance, wait_for
from tests.support.cluster import Head, Node
from tests.support.network_namespaces import Network, available

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="needs root and iproute2, for network namespaces"),
]

CLIENTS: Final = 20
PREDICTIONS: Final = 500  # accepted by the end
OVER: Final = {"succeeded", "failed", "canceled", "aborted"}
CONFIG: Final = """
cluster:
  name: head
  address: {address}
  lost_after: 3s
hardware:
  devices: [{{name: small, memory: 2GiB}}]
limits: {{attempts: 5}}
models:
"""


def _config(address: str) -> str:
    """Return a config with twelve models, which do not fit on one machine together."""
    options = ("{}", "{stream: true}", "{files: true}")
    models = [
        f"  - {{name: test/model-{n}, kind: echo, memory: 600MiB, options: {options[n % 3]}}}"
        for n in range(12)
    ]
    return CONFIG.format(address=address) + "\n".join(models) + "\n"


class Clients:
    """Threads that create predictions until enough are accepted, whatever happens to the appliance."""

    def __init__(self, head: Appliance) -> None:
        self._head = head
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.accepted: dict[str, str] = {}  # id: text of the input
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def wait_until(self, count: int) -> None:
        wait_for(lambda: len(self.accepted) >= count, f"{count} accepted predictions", 2 * PATIENCE)

    def stop(self) -> None:
        """Create no more predictions, because the test has ended."""
        self._stopped.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            assert not thread.is_alive()

    def _work(self, number: int) -> None:
        chance = random.Random(number)
        with self._head.client() as client:
            while len(self.accepted) < PREDICTIONS and not self._stopped.is_set():
                model, text = chance.randrange(12), f"{number} says {chance.random()}"
                input: dict[str, Any] = {"text": text, "delay": 0.2}
                if model % 3 == 2:
                    input = {"file": f"data:text/plain,{quote(text)}", "delay": 0.1}
                waits = chance.random() < 0.5
                try:
                    reply = client.post(
                        "/v1/predictions",
                        json={"version": f"test/model-{model}", "input": input},
                        headers={"Prefer": "wait=5"} if waits else {},
                    )
                except httpx.HTTPError:  # the head is unreachable
                    time.sleep(0.2)
                    continue
                if reply.status_code in {201, 202}:
                    with self._lock:
                        self.accepted[reply.json()["id"]] = text
                else:  # the head starts, and needs the processors
                    time.sleep(0.2)


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network(("head", "one", "two"))
    yield network
    network.close()


@pytest.fixture
def machines(network: Network, tmp_path: Path) -> Iterator[tuple[Head, dict[str, Node]]]:
    """The head and two nodes, not started."""
    address = network.addresses["head"]
    config = tmp_path / "models.yaml"
    config.write_text(_config(address))
    head = Head(tmp_path / "head", config, network, "head")
    devices = ("--device", "small=2GiB", "--device", "tiny=1GiB")
    nodes = {name: Node(tmp_path / name, network, name, address, *devices) for name in ("one", "two")}
    yield head, nodes
    for machine in (head, *nodes.values()):
        if machine.process is not None:
            machine.kill()


def test_nothing_accepted_is_lost(network: Network, machines: tuple[Head, dict[str, Node]]) -> None:
    head, nodes = machines
    head.start()
    for node in nodes.values():
        node.start()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(head.client())
        wait_for(lambda: members(client) == {"head", "one", "two"}, "both nodes")
        clients = Clients(head)
        stack.callback(clients.stop)
        clients.wait_until(PREDICTIONS // 6)
        nodes["one"].kill()
        nodes["one"].start()
        clients.wait_until(PREDICTIONS * 2 // 6)
        network.cut("two")
        wait_for(lambda: members(client) == {"head", "one"}, "the loss of a node without a network")
        network.mend("two")
        wait_for(lambda: members(client) == {"head", "one", "two"}, "the return of the node")
        clients.wait_until(PREDICTIONS * 3 // 6)
        head.kill_gateway()
        clients.wait_until(PREDICTIONS * 4 // 6)
        head.kill()
        head.start()
        wait_for(
            lambda: members(client) == {"head", "one", "two"}, "the nodes at the head that has started again"
        )
        clients.join()
        records = [
            wait_for(partial(ended, client, id), f"the end of {id}") for id in sorted(clients.accepted)
        ]
        loads = Counter(re.findall(r"loading model \S+ on (\w+)/", head.output.read_text()))
        print(len(records), Counter(record["status"] for record in records), loads)
        assert set(loads) == {"head", "one", "two"}
        wrong = [record for record in records if not is_right(client, record, clients.accepted[record["id"]])]
        assert wrong == []
    for machine in (*nodes.values(), head):
        assert machine.stop() == 0
        assert machine.processes() == []


def members(client: httpx.Client) -> set[str]:
    """Return the names of the machines whose devices the scheduler uses; none without the head."""
    try:
        devices = client.get("/admin/residency").raise_for_status().json()["devices"]
    except httpx.HTTPError:
        return set()
    return {device["name"].partition("/")[0] for device in devices}


def ended(client: httpx.Client, id: str) -> dict[str, Any] | None:
    record: dict[str, Any] = client.get(f"/v1/predictions/{id}").raise_for_status().json()
    return record if record["status"] in OVER else None


def is_right(client: httpx.Client, record: dict[str, Any], text: str) -> bool:
    """Return whether a prediction has the output of its input, or failed with a part of its output."""
    output = record["output"]
    if record["status"] == "succeeded":
        if "text" not in record["input"]:
            return [client.get(url).text for url in output] == [text]
        return ("".join(output) if isinstance(output, list) else output) == text
    return record["status"] == "failed" and bool(output) and "interrupted" in record["error"]

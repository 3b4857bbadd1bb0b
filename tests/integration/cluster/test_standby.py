"""A cluster with two machines that can be the head: one dies, or is cut off, and the other one takes over."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import psycopg
import pytest

from tests.support import postgres_server
from tests.support.appliance_process import PATIENCE, TOKEN, certificates, wait_for
from tests.support.cluster import Head, Node
from tests.support.network_namespaces import Network, available
from tests.support.postgres_server import PostgresServer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="needs root and iproute2, for network namespaces"),
    pytest.mark.skipif(postgres_server.programs() is None, reason=postgres_server.MISSING),
]

HEADS: Final = ("alpha", "beta")
NODES: Final = ("one", "two")
CLIENTS: Final = 8
PREDICTIONS: Final = 200  # accepted by the end
MODELS: Final = 6
OVER: Final = {"succeeded", "failed", "canceled", "aborted"}
CONFIG: Final = """
store:
  url: {url}
cluster:
  name: {name}
  address: {address}
  lost_after: 6s
hardware:
  devices: [{{name: small, memory: 1GiB}}]
limits: {{attempts: 6}}
models:
"""


def _config(url: str, name: str, address: str) -> str:
    """Return a config with models that do not fit on one machine together."""
    options = ("{}", "{stream: true}", "{files: true}")
    models = [
        f"  - {{name: test/model-{n}, kind: echo, memory: 500MiB, options: {options[n % 3]}}}"
        for n in range(MODELS)
    ]
    return CONFIG.format(url=url, name=name, address=address) + "\n".join(models) + "\n"


class Machines:
    """Two machines that can be the head, with one folder for files, and two nodes."""

    def __init__(self, network: Network, server: PostgresServer, folder: Path) -> None:
        self.network = network
        self.heads = {name: self._head(name, server, folder) for name in HEADS}
        addresses = ",".join(network.addresses[name] for name in HEADS)
        self.nodes = {
            name: Node(folder / name, network, name, addresses, "--device", "small=1GiB") for name in NODES
        }

    def _head(self, name: str, server: PostgresServer, folder: Path) -> Head:
        config = folder / f"{name}.yaml"
        config.write_text(_config(server.url("appliance"), name, self.network.addresses[name]))
        head = Head(folder / name, config, self.network, name)
        shared = folder / "shared"
        shared.mkdir(exist_ok=True)
        (head.home / "files").symlink_to(shared)
        return head

    def start(self) -> None:
        """Start the first head, then the standby and the nodes."""
        self.heads["alpha"].start()
        self.heads["beta"].start_waiting()
        for node in self.nodes.values():
            node.start()
        wait_for(lambda: "alpha at" in self.heads["beta"].output.read_text(), "the standby")
        wait_for(self.heads["beta"].answers, "the standby to forward requests")
        self.wait_for_members("alpha")

    def wait_for_members(self, head: str) -> None:
        with self.heads[head].client() as client:
            wait_for(lambda: members(client) == {head, *NODES}, f"the nodes at {head}")

    def by_role(self) -> list[Head]:
        """Return the standby and the head."""
        return sorted(self.heads.values(), key=lambda head: len(head.named("ServeReplica:gateway")))

    def stop(self) -> None:
        """Stop the nodes, then the standby, then the head, so that nothing takes over."""
        for machine in (*self.nodes.values(), *self.by_role()):
            if machine.process is not None and machine.process.poll() is None:
                assert machine.stop() == 0, machine.output.read_text()
            assert machine.processes() == []


class Clients:
    """Threads that create predictions at the machine that answers, until enough are accepted."""

    def __init__(self, machines: Machines) -> None:
        self._urls = [head.url for head in machines.heads.values()]
        self._lock = threading.Lock()
        self.accepted: dict[str, str] = {}  # id: text of the input
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def wait_until(self, count: int) -> None:
        wait_for(lambda: len(self.accepted) >= count, f"{count} accepted predictions", 2 * PATIENCE)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            assert not thread.is_alive()

    def _work(self, number: int) -> None:
        chance = random.Random(number)
        while len(self.accepted) < PREDICTIONS:
            model, text = chance.randrange(MODELS), f"{number} says {chance.random()}"
            input: dict[str, Any] = {"text": text, "delay": 0.2}
            if model % 3 == 2:
                input = {"file": f"data:text/plain,{quote(text)}", "delay": 0.1}
            for url in self._urls:
                try:
                    reply = httpx.post(
                        f"{url}/v1/predictions",
                        json={"version": f"test/model-{model}", "input": input},
                        headers={"Authorization": f"Bearer {TOKEN}"},
                        timeout=5.0,
                        trust_env=False,
                        verify=certificates(),
                    )
                except httpx.HTTPError:  # this machine is gone
                    time.sleep(0.1)
                    continue
                if reply.status_code in {201, 202}:
                    with self._lock:
                        self.accepted[reply.json()["id"]] = text
                    break
                time.sleep(0.1)


@pytest.fixture(scope="module")
def server_and_machines(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[PostgresServer, Machines]]:
    """The server and the machines of all tests; the first test changes which machine is the head."""
    network = Network((*HEADS, *NODES))
    try:
        with postgres_server.running(address=network.own_address) as server:
            server.query("CREATE DATABASE appliance")
            machines = Machines(network, server, tmp_path_factory.mktemp("m"))
            try:
                machines.start()
                yield server, machines
            finally:
                machines.stop()
    finally:
        network.close()


@pytest.fixture
def server(server_and_machines: tuple[PostgresServer, Machines]) -> PostgresServer:
    return server_and_machines[0]


@pytest.fixture
def machines(server_and_machines: tuple[PostgresServer, Machines]) -> Machines:
    return server_and_machines[1]


def test_a_standby_takes_over_after_the_death_of_the_head(machines: Machines, server: PostgresServer) -> None:
    alpha, beta = machines.heads["alpha"], machines.heads["beta"]
    with alpha.client() as client:
        stream = Stream(client)
    clients = Clients(machines)
    clients.wait_until(PREDICTIONS // 3)
    through_the_standby(beta, machines.network)
    with health_checks(beta) as answers:
        alpha.kill()
        wait_for(lambda: answers[-1:] == [200] and 503 in answers, "the standby as the head")
    print(Counter(answers))
    assert set(answers) == {200, 503}  # no connection is refused
    machines.wait_for_members("beta")
    clients.join()
    with beta.client() as client:
        stream.resume(client)
        record = client.get(f"/v1/predictions/{stream.id}").json()
    ids = [id for id, _, _ in stream.events]
    assert len(set(ids)) == len(ids)  # each event once
    assert [kind for _, kind, _ in stream.events[-2:]] == ["error", "done"]
    assert record["status"] == "failed"
    assert "".join(data for _, kind, data in stream.events if kind == "output") == "".join(record["output"])
    check(beta, clients, server)
    alpha.start_waiting()
    wait_for(lambda: "beta at" in alpha.output.read_text(), "the former head as the standby")
    wait_for(alpha.answers, "the former head to forward requests")


def test_a_head_without_a_network_stops_and_the_standby_takes_over(
    machines: Machines, server: PostgresServer
) -> None:
    standby, head = machines.by_role()
    clients = Clients(machines)
    clients.wait_until(PREDICTIONS // 3)
    driver, waits = head.process, times_waiting(head, standby)
    with gateway_writing(server):
        machines.network.cut(head.name)
    wait_for(lambda: not head.named("ServeReplica:gateway"), "the end of the gateway that is cut off")
    wait_for(lambda: not head.worker_pids(), "the end of its worker processes")
    wait_for(standby.answers, "the standby as the head")
    machines.wait_for_members(standby.name)
    machines.network.mend(head.name)
    wait_for(lambda: times_waiting(head, standby) > waits, "the former head as the standby")
    assert driver is not None
    assert driver.poll() is None  # the same process
    clients.join()
    check(standby, clients, server)


def times_waiting(machine: Head, head: Head) -> int:
    """Return how often a machine has printed that it is the standby of ``head``."""
    return machine.output.read_text().count(f"{head.name} at")


def through_the_standby(standby: Head, network: Network) -> None:
    """Check that the head answers requests that come to the standby."""
    with standby.client() as client:
        body = {"version": "test/model-0", "input": {"text": "through the standby"}}
        made = client.post("/v1/predictions", json=body).raise_for_status().json()
        assert made["urls"]["get"].startswith(f"{standby.url}/")
        record = wait_for(partial(ended, client, made["id"]), "the prediction")
        assert record["output"] == "through the standby"
        client.post("/admin/tokens", json={"name": "of the standby"}).raise_for_status()
        records = client.get("/admin/audit").raise_for_status().json()["results"]
        (record,) = [each for each in records if each["action"] == "token.create"]
        assert record["address"] == network.own_address
        assert client.get("/readyz").status_code == 200
    assert httpx.get(f"{standby.url}/v1/account", trust_env=False).status_code == 401


@contextlib.contextmanager
def health_checks(machine: Head) -> Iterator[list[int]]:
    """Send health checks to a machine, each on its own connection. Yield their statuses; 0: refused."""
    statuses: list[int] = []
    stop = threading.Event()

    def check_health() -> None:
        while not stop.wait(0.05):
            try:
                reply = httpx.get(f"{machine.url}/healthz", timeout=PATIENCE, trust_env=False)
                statuses.append(reply.status_code)
            except httpx.ConnectError:
                statuses.append(0)
            except httpx.HTTPError:
                pass  # the head had this request when it was killed

    thread = threading.Thread(target=check_health, daemon=True)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join(2 * PATIENCE)


@contextlib.contextmanager
def gateway_writing(server: PostgresServer) -> Iterator[None]:
    """Keep the gateway in a write, with the write lock, during the block."""
    waits = "SELECT 1 FROM pg_locks WHERE relation = 'predictions'::regclass AND NOT granted"
    with psycopg.connect(server.url("appliance")) as connection:
        connection.execute("LOCK TABLE predictions IN SHARE ROW EXCLUSIVE MODE")
        wait_for(lambda: connection.execute(waits).fetchone(), "a write of the gateway")
        yield


class Stream:
    """A prediction whose output would be streamed for more than half an hour."""

    def __init__(self, client: httpx.Client) -> None:
        """Create it, and read its first outputs."""
        input = {"text": " ".join(f"word-{n}" for n in range(2000)), "chunk_delay": 1.0}
        body = {"version": "test/model-1", "input": input, "stream": True}
        made = client.post("/v1/predictions", json=body).raise_for_status().json()
        self.id: str = made["id"]
        self._path = httpx.URL(made["urls"]["stream"]).path
        self.events: list[tuple[str, str, str]] = []  # id, type and data of each event that was received
        with client.stream("GET", self._path, headers={"Accept": "text/event-stream"}) as reply:
            for event in events(reply):
                self.events.append(event)
                if len(self.events) == 4:
                    return

    def resume(self, client: httpx.Client) -> None:
        """Read the other events, which begin after the last one that was received."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": self.events[-1][0]}
        with client.stream("GET", self._path, headers=headers) as reply:
            self.events += events(reply)


def events(reply: httpx.Response) -> Iterator[tuple[str, str, str]]:
    fields: dict[str, str] = {}
    for line in reply.iter_lines():
        if not line and "event" in fields:
            yield fields.get("id", ""), fields["event"], fields.get("data", "")
            fields = {}
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")


def check(head: Head, clients: Clients, server: PostgresServer) -> None:
    """Check that each accepted prediction has ended with its output, and was counted once."""
    with head.client() as client:
        records = [wait_for(partial(ended, client, id), f"the end of {id}") for id in clients.accepted]
        wrong = [record for record in records if not is_right(client, record, clients.accepted[record["id"]])]
    counts = Counter(record["status"] for record in records)
    print(len(records), counts)
    assert wrong == []
    server.wait_until_idle("appliance")  # also until the predictions of requests without an answer have ended
    ((rows, ids, used),) = server.query(
        "SELECT count(*), count(DISTINCT id), (SELECT sum(succeeded) + sum(failed) FROM usage)"
        " FROM predictions WHERE status IN ('succeeded', 'failed')",
        "appliance",
    )
    print(rows, ids, used)
    assert rows == ids == used


def members(client: httpx.Client) -> set[str]:
    """Return the names of the machines whose devices the scheduler uses; none while the head is away."""
    try:
        devices = client.get("/admin/residency").raise_for_status().json()["devices"]
    except httpx.HTTPError:
        return set()
    return {device["name"].partition("/")[0] for device in devices}


def ended(client: httpx.Client, id: str) -> dict[str, Any] | None:
    with contextlib.suppress(httpx.HTTPError):  # also while the gateway waits for the database
        record: dict[str, Any] = client.get(f"/v1/predictions/{id}").raise_for_status().json()
        return record if record["status"] in OVER else None
    return None


def is_right(client: httpx.Client, record: dict[str, Any], text: str) -> bool:
    """Return whether a prediction has the output of its input, or failed with a part of its output."""
    output = record["output"]
    if record["status"] == "succeeded":
        if "text" not in record["input"]:
            return [client.get(httpx.URL(url).path).text for url in output] == [text]
        return ("".join(output) if isinstance(output, list) else output) == text
    return record["status"] == "failed" and bool(output) and "interrupted" in record["error"]

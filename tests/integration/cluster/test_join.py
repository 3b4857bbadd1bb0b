"""`appliance join`: two machines in network namespaces become one cluster, and one of them fails."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.appliance_process import PATIENCE, Appliance, wait_for
from tests.support.cluster import Node
from tests.support.network_namespaces import Network, available

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not available(), reason="network namespaces need root and iproute2"),
]
CONFIG = """
cluster: {{address: {address}, name: head, lost_after: 4}}
hardware: {{devices: [{{name: small, memory: 200MiB}}]}}
models:
  - {{name: test/echo, kind: echo, options: {{weights: 10MiB}}}}
"""


class Machines:
    """The head, and the machine ``one``, which can join it."""

    def __init__(self, folder: Path) -> None:
        self.network = Network(["head", "one"])
        self.address = self.network.addresses["head"]
        self.folder = folder
        config = folder / "models.yaml"
        config.write_text(CONFIG.format(address=self.address))
        self.head = Appliance(folder / "head", config, host=self.address)
        self.head.prefix = self.network.prefix("head")
        self._nodes: list[Node] = []

    def token(self) -> str:
        return self.head.command("nodes", "token", "--config", str(self.head.config)).strip()

    def node(self, token: str, *options: str) -> Node:
        options = ("--device", "big=300MiB", *options)
        made = Node(self.folder / "one", self.network, "one", self.address, *options, token=token)
        self._nodes.append(made)
        return made

    def nodes(self) -> dict[str, dict[str, Any]]:
        with self.head.client() as client:
            return {node["name"]: node for node in client.get("/admin/nodes").json()["nodes"]}

    def close(self) -> None:
        for node in self._nodes:
            node.kill()
        if self.head.process is not None:
            self.head.kill()
        self.network.close()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    machines = Machines(tmp_path_factory.mktemp("machines"))
    try:
        machines.head.start()
        yield machines
    finally:
        machines.close()


@pytest.fixture(scope="module")
def node(machines: Machines) -> Node:
    """A node that has joined."""
    made = machines.node(machines.token())
    made.start()
    made.wait_until_joined()
    return made


def is_ready(machines: Machines) -> bool:
    return bool(machines.nodes().get("one", {}).get("state") == "ready")


def test_the_head_lists_the_node(machines: Machines, node: Node) -> None:
    found = machines.nodes()
    assert list(found) == ["head", "one"]
    assert found["head"]["role"] == "head"
    assert found["head"]["address"] == f"{machines.address}:8770"
    assert found["one"]["address"] == f"{machines.network.addresses['one']}:8770"
    assert [(each["name"], each["memory"]) for each in found["one"]["devices"]] == [("one/big", 300 * 2**20)]
    shown = machines.head.command("nodes")
    assert re.search(r"^\s*one\s+\S+:8770\s+ready\s", shown, re.MULTILINE)
    assert re.search(r"^\s*head\s+\S+:8770\s+ready, head\s", shown, re.MULTILINE)


def test_secrets_are_in_no_command_line_and_in_no_log(machines: Machines, node: Node) -> None:
    secret = machines.token().split(".")[1]
    files = [node.output, machines.head.output]
    files += [*(node.home / "logs").iterdir(), *(machines.head.home / "logs").iterdir()]
    assert [file for file in files if secret in file.read_text()] == []
    assert [*node.named(secret), *machines.head.named(secret)] == []
    folders = [node.home / "cluster", machines.head.home / "cluster"]
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir() if file.is_file())


def test_ray_accepts_only_members(machines: Machines, node: Node) -> None:
    """Every port that Ray opened needs a certificate of the cluster."""
    checked = []
    for name, machine in (("one", node), ("head", machines.head)):
        for process in machine.processes():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                ports = _listening(process)
                checked += [(machines.network.addresses[name], port) for port in ports]
    checked = [each for each in checked if each[1] != machines.head.port]
    assert len(checked) >= 5
    assert [each for each in dict.fromkeys(checked) if _talks_to_strangers(*each)] == []


def _listening(process: psutil.Process) -> list[int]:
    """Return the TCP ports on which a process listens, in its own network namespace."""
    inodes = set()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes and not words[1].startswith("0100007F"):
                ports.add(int(words[1].rpartition(":")[2], 16))
    return sorted(ports)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def _talks_to_strangers(host: str, port: int) -> bool:
    """Return whether a server answers a client without a certificate, with or without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=10) as plain:
        plain.sendall(PREFACE)
        answer = plain.recv(2)
        if answer not in {b"", b"\x15\x03"}:  # an alert of TLS
            return True
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), timeout=10) as plain,
        context.wrap_socket(plain) as tls,
    ):
        tls.sendall(PREFACE)
        return bool(tls.recv(1))
    return False


def test_a_node_stays_when_the_gateway_dies(machines: Machines, node: Node) -> None:
    joined = node.joined
    machines.head.kill_gateway()
    wait_for(machines.head.answers, "the next gateway")
    wait_for(lambda: is_ready(machines), "the node to be ready")
    assert node.joined == joined


def test_a_node_is_drained_and_used_again(machines: Machines, node: Node) -> None:
    assert machines.head.command("drain", "one").startswith("no more models are loaded on node one")
    assert machines.nodes()["one"]["state"] == "draining"
    assert "again" in machines.head.command("drain", "one", "--undo")
    assert is_ready(machines)
    with machines.head.client() as client:
        assert client.post("/admin/nodes/two/drain").status_code == 404
        assert client.post("/admin/nodes/head/drain").status_code == 409
        records = client.get("/admin/audit").json()["results"]
    actions = [each["action"] for each in records if each["object"] == "one"]
    assert actions == ["node.undrain", "node.drain"]


def test_a_node_joins_again_when_its_raylet_dies(machines: Machines, node: Node) -> None:
    joined = node.joined
    (raylet,) = node.named("raylet/raylet")
    raylet.kill()
    node.wait_until_joined(joined + 1)
    assert is_ready(machines)


def test_a_node_that_was_cut_off_is_lost_and_joins_again(machines: Machines, node: Node) -> None:
    joined = node.joined
    machines.network.cut("one")
    wait_for(lambda: machines.nodes()["one"]["state"] == "lost", "the head to lose the node")
    assert "has not answered" in machines.nodes()["one"]["reason"]
    wait_for(lambda: node.named("raylet/raylet") == [], "the node to end its processes")
    machines.network.mend("one")
    node.wait_until_joined(joined + 1)
    assert is_ready(machines)


def test_a_node_waits_for_a_head_that_is_away(machines: Machines, node: Node) -> None:
    joined = node.joined
    assert machines.head.stop() == 0
    wait_for(lambda: "trying again until it answers" in node.output.read_text(), "the node to wait")
    machines.head.start()
    node.wait_until_joined(joined + 1)
    assert is_ready(machines)


def test_a_killed_node_leaves_nothing_that_the_next_start_keeps(machines: Machines, node: Node) -> None:
    assert node.process is not None
    joined = node.joined
    node.process.kill()  # only the driver of the node: the kernel ends its children
    node.process.wait()
    node.start()
    node.wait_until_joined(joined + 1)
    wait_for(lambda: is_ready(machines), "the node to be ready")
    assert len(node.named("raylet/raylet")) == 1


def test_a_stopped_node_leaves_the_cluster(machines: Machines, node: Node) -> None:
    assert node.stop() == 0
    assert node.processes() == []
    assert list(machines.nodes()) == ["head"]


def test_a_wrong_token_ends_the_command(machines: Machines) -> None:
    prefix, _, fingerprint = machines.token().rpartition(".")
    assert prefix
    wrong = machines.node(f"appliance-join.wrong.{fingerprint}")
    wrong.start()
    assert wrong.process is not None
    assert wrong.process.wait(PATIENCE) == 1
    said = " ".join(wrong.output.read_text().split())
    assert (
        "the secret of the join token is wrong: print the current token with `appliance nodes token`" in said
    )

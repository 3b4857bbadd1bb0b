"""The agents of a head and of nodes in this process, on the loopback addresses."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from appliance.machine import Device
from appliance.nodes import identity
from appliance.nodes.admission import JoinSettings
from appliance.nodes.client import NodeClient
from appliance.nodes.identity import JoinToken
from appliance.nodes.joining import Head, join
from appliance.nodes.messages import NodeFacts
from appliance.nodes.node_agent import NodeAgent
from appliance.nodes.registry import NodeRegistry, bind
from appliance.nodes.server import AgentServer
from tests.support.appliance_process import until

HOST = "127.0.0.1"
VERSION = "1.2.3"
CPU = Device(name="cpu", kind="cpu", memory=10**9, label="Test CPU")


class Events:
    """Records what the registry tells."""

    def __init__(self) -> None:
        self.clients: dict[str, NodeClient] = {}
        self.notified: list[tuple[str, ...]] = []

    def joined(self, facts: NodeFacts, client: NodeClient) -> None:
        self.clients[facts.name] = client
        self.notified.append(("joined", facts.name))

    def lost(self, name: str, reason: str) -> None:
        self.notified.append(("lost", name))
        self.reason = reason

    def draining(self, name: str, draining: bool) -> None:
        self.notified.append(("draining" if draining else "not draining", name))


class TestHead:
    """The head of a cluster: its registry and its agent."""

    __test__ = False

    def __init__(self, home: Path, *, session: str = "one", lost_after: float = 30.0) -> None:
        self.folder = home / "cluster"
        self.home = home
        self.identity = identity.create_head(self.folder, "head", [HOST])
        self.events = Events()
        self.port = 0
        self.lost_after = lost_after
        self.session = session

    @property
    def token(self) -> JoinToken:
        return identity.join_token(self.folder)

    @property
    def join_settings(self) -> JoinSettings:
        return JoinSettings(
            head="head",
            version=VERSION,
            ray_address="127.0.0.1:6379",
            ray_token="the token of Ray",
            worker_ports=(10002, 19999),
            node_manager_port=8772,
            object_manager_port=8773,
            lost_after=lambda: self.lost_after,
            drain_timeout=lambda: 60.0,
            modules=lambda device: [f"module.for.{device}"],
        )

    async def start(self) -> None:
        self.listener = bind(HOST, self.port)
        self.port = self.listener.getsockname()[1]
        self.nodes = NodeRegistry(
            self.identity,
            self.join_settings,
            session=self.session,
            host=HOST,
            port=self.port,
            lost_after=lambda: self.lost_after,
        )
        self.nodes.listen_to(self.events)
        await self.nodes.start(self.listener)


class TestNode:
    """A node: its certificate and its agent."""

    __test__ = False

    def __init__(self, home: Path, name: str, head: TestHead) -> None:
        self.home = home
        self.name = name
        self.head = head
        self.incarnation = secrets.token_hex(8)
        self.prepared: list[str] = []
        (home / "run").mkdir(parents=True, exist_ok=True)

    async def start(self, port: int = 0) -> None:
        self.identity, self.admitted = await join(
            self.home / "cluster",
            self.head.token,
            HOST,
            self.head.port,
            name=self.name,
            version=VERSION,
            device="cpu",
        )
        listener = bind(HOST, port)
        self.facts = NodeFacts(
            name=self.name,
            host=HOST,
            port=listener.getsockname()[1],
            devices=(CPU,),
            threads=3,
            version=VERSION,
            labels={"system": "test"},
            run_dir=str(self.home / "run"),
            outputs=str(self.home / "run" / "outputs"),
        )
        self.agent = NodeAgent(
            self.identity, self.facts, in_use=lambda: {"cpu": 12345}, prepare=self._prepare
        )
        await self.agent.start(listener)

    async def announce(self) -> None:
        await self.as_member.announce(self.facts, self.incarnation)

    @property
    def as_member(self) -> Head:
        return Head(self.identity, "head", HOST, self.head.port, None)

    async def _prepare(self, modules: list[str]) -> None:
        self.prepared += modules


@asynccontextmanager
async def cluster(
    folder: Path, *names: str, lost_after: float = 30.0
) -> AsyncIterator[tuple[TestHead, list[TestNode]]]:
    """A head and nodes that are its members."""
    head = TestHead(folder / "head", lost_after=lost_after)
    await head.start()
    nodes = [TestNode(folder / name, name, head) for name in names]
    try:
        for node in nodes:
            await node.start()
            await node.announce()
        yield head, nodes
    finally:
        await head.nodes.close()
        for node in nodes:
            await node.agent.close()
        for server in (head.nodes._server, *(node.agent._server for node in nodes)):
            await until(partial(_is_unconnected, server))


def _is_unconnected(server: AgentServer) -> bool:
    """Return whether no connection is left, not even one whose TLS handshake has not ended."""
    listening = server._server
    return listening is None or cast("Any", listening)._active_count == 0


async def echo_socket(path: Path) -> asyncio.AbstractServer:
    """A Unix socket that sends a greeting, and then what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(echo, path)


__all__ = ["CPU", "HOST", "VERSION", "Events", "TestHead", "TestNode", "cluster", "echo_socket", "until"]

"""Agents on full and broken disks, files that are left over, and clients without a certificate."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from appliance.domain.errors import NodeError
from appliance.nodes import identity, registry
from appliance.nodes.channel import Channel
from appliance.nodes.messages import ErrorReply, Join, Reply
from appliance.nodes.node_agent import NodeAgent
from appliance.nodes.weight_index import WeightIndex
from tests.support.agents import HOST, VERSION, TestNode, cluster, echo_socket, until

BIG = os.urandom(3_000_000)


class Disk(NamedTuple):
    """What ``shutil.disk_usage`` returns."""

    total: int
    used: int
    free: int


async def test_a_complete_copy_replaces_an_older_file(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        client = head.events.clients["a"]
        target = tmp_path / "target"
        target.write_text("a part, because the gateway was killed")
        with pytest.raises(NodeError, match="cannot be read"):
            await client.fetch_file(f"{node.facts.outputs}/missing", target)
        assert target.read_text() == "a part, because the gateway was killed"
        source = Path(node.facts.outputs) / "file"
        source.write_bytes(BIG)
        await client.fetch_file(str(source), target)
        assert target.read_bytes() == BIG
        assert not list(tmp_path.glob(".*"))


async def test_files_of_predictions_that_nobody_holds_are_deleted(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        client = head.events.clients["a"]
        source = tmp_path / "photo.png"
        source.write_bytes(BIG)
        inputs = node.home / "run" / "inputs"
        sent = {id: Path(await client.send_file(source, id)) for id in ("held", "old")}
        assert [path.relative_to(inputs).parts[0] for path in sent.values()] == ["held", "old"]
        for id in sent:
            (Path(node.facts.outputs) / id).mkdir()
        await client.drop_others(["held"])
        assert [path.exists() for path in sent.values()] == [True, False]
        assert [path.name for path in Path(node.facts.outputs).iterdir()] == ["held"]
        await client.drop_files([str(inputs / "held")])
        assert not sent["held"].exists()
        with pytest.raises(NodeError, match="is not a file name"):
            await client.send_file(source, "../x")


async def test_only_missing_files_count_as_copied(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, _):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(BIG)
        client = head.events.clients["a"]
        await client.copy_weights([folder])
        (folder / "new.bin").write_bytes(b"0123456789")
        seen: list[tuple[int, int]] = []
        await client.copy_weights([folder], progress=lambda *bytes: seen.append(bytes))
        assert seen[-1] == (10, 10)


async def test_the_head_hears_of_deleted_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, "a") as (head, _):
        paths = [tmp_path / name for name in ("old", "new")]
        for path in paths:
            path.write_text(path.name)
        client = head.events.clients["a"]
        deleted: list[str] = []
        old = await client.copy_weights(paths[:1], on_deleted=deleted.extend)
        assert deleted == []
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(1000, 950, 50))
        await client.copy_weights(paths[1:], on_deleted=deleted.extend)
        assert deleted == list(old.values())
        assert not await client.has_weights(paths[:1])


async def test_an_agent_tells_why_it_cannot_use_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        client = head.events.clients["a"]

        def fail() -> dict[str, int]:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(node.agent, "_in_use", fail)
        with pytest.raises(NodeError, match=r"node a: AskInUse failed: .*Input/output error"):
            await client.in_use()
        assert "Input/output error" in caplog.text
        assert (await client.facts()).name == "a"


async def test_all_connections_detect_a_dead_machine(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        server = await echo_socket(node.home / "run" / "echo.sock")
        client = head.events.clients["a"]
        tunnel, _ = await client.open_socket("echo.sock", asyncio.Protocol)
        await client.ping()
        channels = [channel for _, channel in client._idle]
        assert channels
        transports = [tunnel, *(channel.writer.transport for channel in channels)]
        sockets = [transport.get_extra_info("socket") for transport in transports]
        for each in sockets:
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 4
            # else the connection would break when a reader pauses
            assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        tunnel.abort()
        server.close()


async def test_one_host_cannot_keep_others_from_joining(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (head, _):
        server = head.nodes._server
        context = identity.unauthenticated_context()
        channels = [await Channel.open(HOST, head.port, context) for _ in range(20)]
        await until(lambda: server._unauthenticated.total() == 8)
        for channel in channels:
            channel.abort()
        await until(lambda: server._unauthenticated.total() == 0)
        node = TestNode(tmp_path / "a", "a", head)
        await node.start()
        await node.agent.close()


async def test_a_client_with_a_wrong_secret_is_disconnected(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (head, _):
        channel = await Channel.open(HOST, head.port, identity.unauthenticated_context())
        await channel.send(Join("wrong", "a", VERSION, "cpu", b""))
        assert isinstance(await channel.receive(Reply), ErrorReply)
        with pytest.raises(EOFError):
            await channel.receive(Reply)


async def test_invalid_messages_of_a_host_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tmp_path) as (head, _):
        for _ in range(3):
            channel = await Channel.open(HOST, head.port, identity.unauthenticated_context())
            channel.writer.write(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(EOFError):
                await channel.receive(Reply)
        assert caplog.text.count("an invalid message") == 1


async def test_a_head_that_hung_does_not_lose_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs used the processors, or a task blocked the event loop, while a node answered."""
    lost_after, pings = 0.1, 0
    monkeypatch.setattr(registry, "HEARTBEAT", 0.01)
    answer = NodeAgent._ping

    async def block(*arguments: Any) -> None:
        nonlocal pings
        pings += 1
        await answer(*arguments)
        if pings < 4:
            time.sleep(2 * lost_after)  # noqa: ASYNC251 - the event loop is blocked

    monkeypatch.setattr(NodeAgent, "_ping", block)
    async with cluster(tmp_path, "a", lost_after=lost_after) as (head, (node,)):
        await until(lambda: pings > 4)
        assert list(head.nodes.members()) == ["a"]
        assert head.events.notified == [("joined", "a")]
        assert await node.as_member.is_listening(lost_after)


async def test_a_digest_that_has_changed_is_saved(tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    for content in ("old", "new content"):
        weights.write_text(content)
        (tree,) = await WeightIndex(tmp_path / "digests.json").trees([weights])
    assert tree.files[0].sha256 in (tmp_path / "digests.json").read_text()


async def test_a_client_that_has_disconnected_already_causes_no_error(tmp_path: Path) -> None:
    closed = socket.socket()
    closed.close()
    transport = SimpleNamespace(get_extra_info=lambda _: closed, is_closing=lambda: False)
    writer = SimpleNamespace(transport=transport, close=lambda: None)
    async with cluster(tmp_path) as (head, _):
        await head.nodes._server._accept(asyncio.StreamReader(), writer)  # type: ignore[arg-type]
        assert not head.nodes._server._tasks

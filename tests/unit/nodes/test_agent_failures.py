"""Agents on full and broken disks, and connections to machines that have died."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from appliance.domain.errors import NodeError
from tests.support.agents import cluster, echo_socket

BIG = os.urandom(3_000_000)


class Disk(NamedTuple):
    """What ``shutil.disk_usage`` returns."""

    total: int
    used: int
    free: int


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
        assert sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        # else a reader that pauses would break its connection
        assert sockets[1].getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        tunnel.abort()
        server.close()

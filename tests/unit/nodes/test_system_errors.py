"""Errors of the operating system, which must not count as a refusal, or end the watch of a node."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from appliance.domain.errors import ApplianceError, HeadUnreachable
from appliance.nodes import identity, joining, registry
from tests.support.agents import TestNode, cluster, until


async def test_a_head_that_cannot_read_its_disk_does_not_refuse_a_node(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (head, _):
        node = TestNode(tmp_path / "a", "a", head)
        token, secret = head.token, head.identity.secret.read_bytes()
        head.identity.secret.unlink()
        with pytest.raises(HeadUnreachable, match="cannot admit this machine now: AskAuthority failed"):
            await joining.join(
                tmp_path / "a", token, "127.0.0.1", head.port, name="a", version="1", device="cpu"
            )
        identity.write_private(head.identity.secret, secret)
        await node.start()
        await node.agent.close()


async def test_a_node_that_cannot_write_its_certificate_does_not_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as (head, _):
        write = identity.write_private

        def fails(file: Path, content: bytes) -> None:
            if file.parent.parent.name == "a" and "key" not in file.name:
                raise OSError(28, "No space left on device")
            write(file, content)

        monkeypatch.setattr(identity, "write_private", fails)
        with pytest.raises(ApplianceError, match=r"cannot be written to .*: No space left") as raised:
            await TestNode(tmp_path / "a", "a", head).start()
        assert not isinstance(raised.value, HeadUnreachable)


async def test_a_heartbeat_that_fails_with_any_error_removes_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry, "HEARTBEAT", 0.01)
    async with cluster(tmp_path, "a") as (head, _):

        async def fails(_: float) -> NoReturn:
            raise RuntimeError("the handler is closed")

        head.lost_after = 0.0
        monkeypatch.setattr(head.events.clients["a"], "ping", fails)
        await until(lambda: head.events.notified[-1] == ("lost", "a"))
        assert "a heartbeat of node a failed" in caplog.text


async def test_an_agent_starts_although_its_folders_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, a worker process that is just being killed still writes there."""
    async with cluster(tmp_path) as (head, _):
        node = TestNode(tmp_path / "a", "a", head)
        (node.home / "run" / "outputs").mkdir()
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
        await node.start()
        await node.agent.close()

"""Nodes that load no more models, because an operator drains them or because they stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.domain.errors import Conflict, NotFound
from tests.support.agents import cluster


async def test_drain_and_leave(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as (head, (a, _)):
        head.nodes.drain("b")
        head.nodes.drain("b")
        assert [status.state for status in head.nodes.statuses()] == ["ready", "draining"]
        head.nodes.drain("b", draining=False)
        await a.as_member.leave(a.incarnation)
        with pytest.raises(Conflict, match="node a is stopping"):
            head.nodes.drain("a", draining=False)
        await a.as_member.left(a.incarnation)
        assert head.events.notified[2:] == [
            ("draining", "b"),
            ("not draining", "b"),
            ("draining", "a"),
            ("lost", "a"),
        ]
        assert [status.facts.name for status in head.nodes.statuses()] == ["b"]
        with pytest.raises(NotFound, match=r"no node a in the cluster now \(nodes: b\)"):
            head.nodes.drain("a")


async def test_a_drained_node_is_drained_after_its_restart_too(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", "b") as (head, (a, b)):
        head.nodes.drain("a")
        for node in (a, b):
            await node.as_member.leave(node.incarnation)
            await node.as_member.left(node.incarnation)
        await head.nodes.close()
        head.session = "two"  # the head was started again too
        await head.start()
        for node in (a, b):
            await node.announce()
        assert [status.state for status in head.nodes.statuses()] == ["draining", "ready"]
        head.nodes.drain("a", draining=False)
        assert [status.state for status in head.nodes.statuses()] == ["ready", "ready"]

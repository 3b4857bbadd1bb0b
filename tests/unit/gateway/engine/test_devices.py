"""The devices of a cluster whose nodes come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from appliance.domain.errors import NodeLost
from appliance.gateway.engine.devices import Devices
from appliance.machine import Device, on_node
from appliance.machine.hardware import hardware

CPU = Device(name="cpu", kind="cpu", memory=10, label="a CPU")


class Memory:
    """Measures a node; ``problem`` is raised instead."""

    def __init__(self, used: int) -> None:
        self.used = used
        self.problem: Exception | None = None

    async def __call__(self) -> dict[str, int]:
        if self.problem is not None:
            raise self.problem
        return {"cpu": self.used}


@pytest.fixture
async def devices() -> AsyncIterator[Devices]:
    local = on_node((CPU,), "head")
    devices = Devices(local, lambda: {"cpu": 1}, 2, hardware(local, None))
    yield devices
    await devices.close()


async def test_on_a_single_machine_devices_have_their_own_names() -> None:
    devices = Devices((CPU,), lambda: {"cpu": 1}, 2, hardware((CPU,), None))
    assert ([each.name for each in devices], devices.node, devices.nodes) == (["cpu"], "", [])
    assert (devices.in_use(), devices.threads("cpu")) == ({"cpu": 1}, 2)


async def test_a_node_adds_its_devices_and_takes_them_away(devices: Devices) -> None:
    devices.add("box", on_node((CPU,), "box"), 7, Memory(5))
    await devices.refresh(["box/cpu"])
    assert [each.name for each in devices] == ["head/cpu", "box/cpu"]
    assert devices.in_use() == {"head/cpu": 1, "box/cpu": 5}
    assert (devices.threads("head/cpu"), devices.threads("box/cpu")) == (2, 7)
    assert devices.kinds == {"head/cpu": "cpu", "box/cpu": "cpu"}
    devices.remove("box")
    assert [each.name for each in devices] == ["head/cpu"]
    assert devices.in_use() == {"head/cpu": 1}
    assert devices.kinds == {"head/cpu": "cpu"}


async def test_a_node_that_does_not_answer_keeps_its_last_measurement(devices: Devices) -> None:
    memory = Memory(5)
    devices.add("box", on_node((CPU,), "box"), 7, memory)
    await devices.refresh(["box/cpu"])
    memory.problem, memory.used = NodeLost("no answer"), 6
    await devices.refresh(["box/cpu", "gone/cpu"])
    assert devices.in_use() == {"head/cpu": 1, "box/cpu": 5}


async def test_a_broken_connection_is_certain_once_the_node_answers_or_is_lost(devices: Devices) -> None:
    memory = Memory(5)
    devices.add("box", on_node((CPU,), "box"), 7, memory)
    async with asyncio.timeout(60):
        await devices.wait_until_reachable_or_lost("box/cpu")  # it answers
        memory.problem = NodeLost("no answer")
        waiting = asyncio.ensure_future(devices.wait_until_reachable_or_lost("box/cpu"))
        await asyncio.sleep(0)
        assert not waiting.done()
        devices.remove("box")
        await waiting
        await devices.wait_until_reachable_or_lost("box/cpu")

"""The devices that models can be placed on now. In a cluster, nodes join and are lost.

All parts of the gateway ask this object, so they agree about the devices.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final

from appliance.domain.errors import ApplianceError
from appliance.machine import Device
from appliance.machine.hardware import Hardware

_log = logging.getLogger(__name__)

Measure = Callable[[], Awaitable[dict[str, int]]]

#: Seconds between two measurements of the memory of a node.
_INTERVAL: Final = 1.0
#: Seconds after which a node that does not answer a measurement is not waited for.
_TIMEOUT: Final = 5.0


class _JoinedNode:
    """A node of the cluster that has joined, and its last measurement."""

    def __init__(self, name: str, threads: int, measure: Measure) -> None:
        self.name = name
        self.threads = threads
        self._measure = measure
        self.in_use: dict[str, int] = {}  # bytes by name of the device in the cluster
        self.polling: asyncio.Task[None] | None = None

    async def poll(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(_INTERVAL)

    async def refresh(self) -> bool:
        """Measure the memory of the devices; keep the last measurement and return false without an answer."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                found = await self._measure()
        except (ApplianceError, TimeoutError) as error:
            _log.debug("the memory of node %s could not be measured: %s", self.name, error)
            return False
        self.in_use = {f"{self.name}/{device}": size for device, size in found.items()}
        return True


class Devices:
    """The devices of this machine, and of the nodes that have joined. Use only on the event loop."""

    def __init__(
        self,
        local: Iterable[Device],
        in_use: Callable[[], dict[str, int]],
        threads: int,
        hardware: Hardware,
    ) -> None:
        """``local`` are the devices of this machine, with their names in the cluster.

        ``in_use`` returns the bytes in use by the local names of the devices that can be measured.

        ``threads`` is the number of CPU threads of this machine for a model that does not set its own.
        """
        #: Both are changed in place when a node joins or is lost.
        self.by_name = {device.name: device for device in local}
        self.kinds = {device.name: device.kind for device in self.by_name.values()}
        self._local = {device.local_name: device.name for device in self.by_name.values()}
        self._in_use = in_use
        self._threads = threads
        self._nodes: dict[str, _JoinedNode] = {}
        self.hardware = hardware
        self.node = hardware.node  # name of this machine; "" without a cluster

    def __iter__(self) -> Iterator[Device]:
        return iter(list(self.by_name.values()))

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes that have joined."""
        return list(self._nodes)

    def add(self, node: str, devices: Sequence[Device], threads: int, measure: Measure) -> None:
        """Add the devices of a node, with their names in the cluster, and measure them from now on.

        ``measure`` returns the bytes in use by the local names of the devices.
        """
        self.by_name |= {device.name: device for device in devices}
        self.kinds |= {device.name: device.kind for device in devices}
        added = self._nodes[node] = _JoinedNode(node, threads, measure)
        added.polling = asyncio.get_running_loop().create_task(added.poll())

    def remove(self, node: str) -> None:
        """Remove the devices of a node that is lost."""
        for device in [device for device in self.by_name.values() if device.node == node]:
            del self.by_name[device.name], self.kinds[device.name]
        removed = self._nodes.pop(node)
        if removed.polling is not None:
            removed.polling.cancel()

    async def close(self) -> None:
        """Stop the measurements of other nodes."""
        polling = [node.polling for node in self._nodes.values() if node.polling is not None]
        for task in polling:
            task.cancel()
        await asyncio.gather(*polling, return_exceptions=True)

    async def wait_until_reachable_or_lost(self, device: str) -> None:
        """Return once the node of a device answers a measurement or is lost."""
        node = None if device not in self.by_name else self._nodes.get(self.by_name[device].node)
        while node is not None and self._nodes.get(node.name) is node and not await node.refresh():
            await asyncio.sleep(_INTERVAL)

    def threads(self, device: str) -> int:
        """Return the CPU threads for a model on this device that does not set its own."""
        node = self._nodes.get(self.by_name[device].node)
        return self._threads if node is None else node.threads

    def in_use(self) -> dict[str, int]:
        """Return the bytes in use of each device that can be measured.

        Other nodes do not delay this: their last measurements are returned.
        """
        found = {self._local[device]: size for device, size in self._in_use().items()}
        for node in self._nodes.values():
            found |= node.in_use
        return found

    async def refresh(self, names: Iterable[str]) -> None:
        """Measure the nodes that have these devices. Afterwards ``in_use`` returns the new values."""
        nodes = {self.by_name[name].node for name in names if name in self.by_name}
        await asyncio.gather(*(self._nodes[node].refresh() for node in nodes if node in self._nodes))

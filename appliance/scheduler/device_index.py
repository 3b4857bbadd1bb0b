"""Devices sorted by the memory that a load may get, so that one load is compared on only some of them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from random import Random
from typing import Final, NamedTuple, TypeVar

from appliance.scheduler.facts import Demand, Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.locality import Locality
from appliance.scheduler.model import ModelState

# The number of devices that are compared for one load.
_MAX_FREE: Final = 4  # with free memory
_MAX_EVICTING: Final = 12  # on which models would be evicted
_MAX_WITH_WEIGHTS: Final = 12  # on nodes that have the weights
#: For a model with several devices, nodes are counted instead of devices: so many of each of the sorts above.
#: For a model on several nodes, it is one more for each further node.
_MAX_NODES: Final = 4
#: Devices that are checked to find one on a node without another instance of the model.
_MAX_CHECKED: Final = 64

_T = TypeVar("_T")

_LEAVING: Final = frozenset({Residency.DRAINING, Residency.FALLING_ASLEEP, Residency.UNLOADING})
_IDLE_STATES: Final = frozenset({Residency.READY, Residency.ASLEEP})


class _Memory(NamedTuple):
    """Bytes of one device that a load may get."""

    now: int  # without waiting; 0 while a model is loaded or unloaded there
    idle: int  # if all idle models that are not pinned are evicted, and models being unloaded are gone
    all: int  # if all models that are not pinned are evicted


class DeviceIndex:
    """Selects the devices to compare for one load. It has only devices of schedulable nodes."""

    def __init__(self, ledger: Ledger, locality: Locality) -> None:
        self._ledger = ledger
        self._locality = locality
        self._memory: dict[str, _Memory] = {}
        #: For GPUs and for main memory: (bytes, device), sorted, for each field of `_Memory`.
        self._sorted: dict[bool, tuple[list[tuple[int, str]], ...]] = {
            is_main_memory: tuple([] for _ in _Memory._fields) for is_main_memory in (False, True)
        }
        self._capacities: dict[str, tuple[bool, int]] = {}  # whether it is main memory, and its bytes
        self._changed: set[str] = set()
        self._searches = 0  # of devices on which models would be evicted
        self._random = Random(0)  # chooses combinations of nodes

    def take_changed(self) -> set[str]:
        """Return the schedulable devices that have changed since the last call."""
        self._refresh()
        found, self._changed = self._changed, set()
        return found

    def _refresh(self) -> None:
        changed = self._ledger.changed_devices
        while changed:
            device = changed.pop()
            self._drop(device)
            self._changed.discard(device)
            if self._ledger.is_schedulable(device):
                self._add(device)
                self._changed.add(device)

    def enough_memory(self, demand: Demand, device: str) -> bool:
        """Return whether the device has the memory for this demand if idle models are evicted."""
        capacity, memory = self._ledger.capacities.get(device), self._memory.get(device)
        if capacity is None or memory is None or capacity.is_main_memory is not demand.on_cpu:
            return False
        return demand.bytes_on(capacity) <= memory.idle

    def candidates(
        self, model: ModelState, reserved_for_others: Mapping[str, int], *, spare_busy: bool
    ) -> list[str]:
        """Return the devices to compare for a load of the model.

        These are devices of nodes that have the weights of the model, and devices with free memory. If no
        device has enough free memory, some devices on which models would be evicted are added, and each call
        adds others. ``reserved_for_others`` is memory that is not free for this model, by device.
        """
        self._refresh()
        demand = model.demand
        if demand.nodes is not None:
            found = self._devices_of(sorted(demand.nodes))
        elif demand.devices > 1 or demand.machines > 1:
            found = self._devices_of(self._nodes(model, reserved_for_others, spare_busy=spare_busy))
        else:
            free = list(self._free(model, reserved_for_others))
            found = [*self._with_weights(model, spare_busy=spare_busy), *free]
            if not free:
                found += self._evicting(demand, spare_busy=spare_busy)
        main = demand.on_cpu
        return [each for each in dict.fromkeys(found) if self._capacities.get(each, (not main,))[0] is main]

    def _devices_of(self, nodes: Iterable[str]) -> list[str]:
        """Return the schedulable devices of the nodes."""
        return [each for node in nodes for each in self._ledger.devices_of(node) if each in self._memory]

    def _enough(self, demand: Demand, device: str, *, spare_busy: bool) -> bool:
        """Return whether evictions can free the memory for this demand on the device."""
        memory = self._memory[device]
        return (memory.idle if spare_busy else memory.all) >= self._needed(demand, device)

    def _needed(self, demand: Demand, device: str) -> int:
        return demand.bytes_on(self._ledger.capacities[device])

    def _min_needed(self, demand: Demand) -> int:
        """Return the bytes that the model needs on the device where it needs the least."""
        if demand.memory is not None:
            return demand.memory
        smallest = min((each for main, each in self._capacities.values() if main is demand.on_cpu), default=0)
        return int((demand.share or 1.0) * smallest)

    def _nodes(
        self, model: ModelState, reserved_for_others: Mapping[str, int], *, spare_busy: bool
    ) -> list[str]:
        """Return the nodes to compare for a model with several devices, of those that are large enough."""
        demand, count = model.demand, model.demand.devices
        limit = _MAX_NODES + demand.machines - 1
        unused: dict[str, dict[str, int]] = {}  # by node and device: free bytes that the model does not need
        for device, (is_main_memory, _) in self._capacities.items():
            capacity = self._ledger.capacities[device]
            usable = is_main_memory is demand.on_cpu and demand.may_use(capacity)
            if usable and self._enough(demand, device, spare_busy=spare_busy):
                node = capacity.node
                unused.setdefault(node, {})[device] = self._memory[device].now - self._needed(demand, device)
        large = {node: found for node, found in sorted(unused.items()) if len(found) >= count}
        free = []
        for node in sorted(large, key=lambda each: -sorted(large[each].values())[-count])[:_MAX_CHECKED]:
            if sum(left >= reserved_for_others[each] for each, left in large[node].items()) >= count:
                free.append(node)
        free.sort(key=lambda node: self._locality.instances_on(model.name, node))
        with_weights = [node for node in large if self._locality.has_weights(model.name, node)]
        found = with_weights[:limit] + free[:limit]
        if len(free) >= demand.machines:
            return found
        if demand.machines == 1:
            return found + self._some(list(large), limit)
        # Evenly spread nodes would always be the same combinations.
        others = [node for node in large if node not in found]
        return found + self._random.sample(others, min(limit, len(others)))

    def _with_weights(self, model: ModelState, *, spare_busy: bool) -> list[str]:
        devices = self._devices_of(sorted(self._locality.nodes_with_weights(model.name)))
        enough = (each for each in devices if self._enough(model.demand, each, spare_busy=spare_busy))
        return list(islice(enough, _MAX_WITH_WEIGHTS))

    def _free(self, model: ModelState, reserved_for_others: Mapping[str, int]) -> Iterator[str]:
        """Yield devices with enough free memory, the device with the most first.

        If the model has other instances, some of the devices are on nodes without an instance.
        """
        demand, needed = model.demand, self._min_needed(model.demand)
        spread, number, count = self._locality.has_instances(model.name), 0, 0
        for memory, device in islice(reversed(self._sorted[demand.on_cpu][0]), _MAX_CHECKED):
            if memory < needed or count == _MAX_FREE:
                return
            if memory < self._needed(demand, device) + reserved_for_others[device]:
                continue
            others = spread and self._locality.instances_on(model.name, self._ledger.capacities[device].node)
            count += not others
            number += 1
            if number <= _MAX_FREE or not others:
                yield device

    def _evicting(self, demand: Demand, *, spare_busy: bool) -> list[str]:
        """Return devices on which models would be evicted, evenly spread over the sorted devices."""
        ordered = self._sorted[demand.on_cpu][1 if spare_busy else 2]
        first = bisect_left(ordered, (self._min_needed(demand), ""))
        return [device for _, device in self._some(ordered[first:], _MAX_EVICTING)]

    def _some(self, ordered: list[_T], limit: int) -> list[_T]:
        """Return up to ``limit`` elements, evenly spread over the list. Each call returns others."""
        count = len(ordered)
        if count <= limit:
            return ordered
        self._searches += 1
        offset, step = self._searches * 7919 % count, count / limit
        return [ordered[(offset + int(number * step)) % count] for number in range(limit)]

    def _add(self, device: str) -> None:
        capacity = self._ledger.capacities[device]
        memory = self._measure(device)
        self._memory[device] = memory
        self._capacities[device] = capacity.is_main_memory, capacity.memory
        for ordered, value in zip(self._sorted[capacity.is_main_memory], memory, strict=True):
            insort(ordered, (value, device))

    def _drop(self, device: str) -> None:
        memory = self._memory.pop(device, None)
        if memory is None:
            return
        is_main_memory, _ = self._capacities.pop(device)
        for ordered, value in zip(self._sorted[is_main_memory], memory, strict=True):
            del ordered[bisect_left(ordered, (value, device))]

    def _measure(self, device: str) -> _Memory:
        free = idle = most = self._ledger.free(device)
        for each in self._ledger.models_on(device):
            reserved = self._ledger.reserved_by(each, device)
            if each.state in _LEAVING or each.node_removed:
                idle += reserved
                most += reserved
            elif not each.pinned:
                most += reserved
                if each.idle and each.state in _IDLE_STATES:
                    idle += reserved
        busy = self._ledger.loading(device) is not None or self._ledger.unloading(device)
        return _Memory(0 if busy else max(0, free), idle, most)

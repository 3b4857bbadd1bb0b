"""Devices sorted by the memory that a load may get, so that a load need not look at each of many devices."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final, NamedTuple

from appliance.scheduler.facts import Demand, Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.locality import Locality
from appliance.scheduler.model import ModelState

#: Most devices of each sort that are compared for one load.
_FREE: Final = 4
_EVICTING: Final = 12
_WITH_WEIGHTS: Final = 12
#: Most devices that are passed over to find one on a node without another instance of the model.
_SEARCHED: Final = 64

_LEAVING: Final = frozenset({Residency.DRAINING, Residency.FALLING_ASLEEP, Residency.UNLOADING})
_IDLE_STATES: Final = frozenset({Residency.READY, Residency.ASLEEP})


class _Memory(NamedTuple):
    """What a load may get of one device, in bytes."""

    now: int  # without waiting; 0 while a model loads or leaves
    idle: int  # after models that leave, and idle ones, have left
    all: int  # after all models that are not pinned have left


class DeviceIndex:
    """The devices that are worth a look for one load. Knows only schedulable nodes."""

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
        self._turn = 0

    def take_changed(self) -> set[str]:
        """Return the schedulable devices that have changed since this was called before."""
        self._refresh()
        found, self._changed = self._changed, set()
        return found

    def _refresh(self) -> None:
        touched = self._ledger.touched
        while touched:
            device = touched.pop()
            self._drop(device)
            self._changed.discard(device)
            if self._ledger.is_schedulable(device):
                self._add(device)
                self._changed.add(device)

    def enough_memory(self, demand: Demand, device: str) -> bool:
        """Return whether the device may have the memory for this demand once idle models have left."""
        capacity, memory = self._ledger.capacities.get(device), self._memory.get(device)
        if capacity is None or memory is None or capacity.is_main_memory is not demand.on_cpu:
            return False
        return demand.bytes_on(capacity) <= memory.idle

    def candidates(self, model: ModelState, *, patient: bool) -> list[str]:
        """Return the devices to compare for a load of the model.

        First come devices with free memory, and devices of nodes that have the weights of the model. If
        there is no free memory, some devices follow on which models have to be evicted: others each time.
        """
        self._refresh()
        demand = model.demand
        if demand.nodes is not None:
            found = [each for node in sorted(demand.nodes) for each in self._ledger.devices_of(node)]
            found = [each for each in found if each in self._memory]
        else:
            needed = self._least_needed(demand)
            with_weights = list(self._with_weights(model, needed, patient=patient))
            found = with_weights + list(self._free(model, needed))
            if len(found) == len(with_weights):
                found += self._evicting(demand, needed, patient=patient)
        if demand.devices > 1:
            nodes = dict.fromkeys(self._ledger.capacities[each].node for each in found)
            found = [each for node in nodes for each in self._ledger.devices_of(node)]
        main = demand.on_cpu
        return [each for each in dict.fromkeys(found) if self._capacities.get(each, (not main,))[0] is main]

    def _least_needed(self, demand: Demand) -> int:
        """Return the bytes that the model needs at least, if they depend on the device."""
        if demand.memory is not None:
            return demand.memory
        smallest = min((each for main, each in self._capacities.values() if main is demand.on_cpu), default=0)
        return int((demand.share or 1.0) * smallest)

    def _with_weights(self, model: ModelState, needed: int, *, patient: bool) -> Iterator[str]:
        nodes = self._locality.nodes_with_weights(model.name)
        count = 0
        for node in sorted(nodes):
            for device in self._ledger.devices_of(node):
                memory = self._memory.get(device)
                if memory is not None and (memory.idle if patient else memory.all) >= needed:
                    yield device
                    count += 1
            if count >= _WITH_WEIGHTS:
                return

    def _free(self, model: ModelState, needed: int) -> Iterator[str]:
        """Yield devices with free memory, the most of it first; some on nodes without another instance."""
        ordered, count = self._sorted[model.demand.on_cpu][0], 0
        spread = self._locality.has_instances(model.name)
        for position, (memory, device) in enumerate(reversed(ordered)):
            if memory < needed or count == _FREE or position == _SEARCHED:
                return
            others = spread and self._locality.instances_on(model.name, self._ledger.capacities[device].node)
            count += not others
            if position < _FREE or not others:
                yield device

    def _evicting(self, demand: Demand, needed: int, *, patient: bool) -> list[str]:
        """Return devices on which models have to leave, from all over the sorted devices."""
        ordered = self._sorted[demand.on_cpu][1 if patient else 2]
        first = bisect_left(ordered, (needed, ""))
        count = len(ordered) - first
        if count <= _EVICTING:
            return [device for _, device in ordered[first:]]
        self._turn += 1
        step = count / _EVICTING
        offset = self._turn * 7919 % count
        return [ordered[first + (offset + int(number * step)) % count][1] for number in range(_EVICTING)]

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
            if each.state in _LEAVING:
                idle += reserved
                most += reserved
            elif not each.pinned:
                most += reserved
                if each.idle and each.state in _IDLE_STATES:
                    idle += reserved
        busy = self._ledger.loading(device) is not None or self._ledger.unloading(device)
        return _Memory(0 if busy else max(0, free), idle, most)

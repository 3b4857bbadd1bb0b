"""Reserved bytes of every device, by model.

A reservation is made before a load starts, and freed only when the unload is confirmed, so no device is
overbooked. On a machine with GPUs, main memory is a device too: for models that compute on the CPU, and for
the weights of sleeping models. Each node of a cluster has its own main memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from appliance.domain.errors import ModelTooLarge
from appliance.domain.units import readable_bytes
from appliance.scheduler.facts import Capacity, Demand, Origin, Residency
from appliance.scheduler.model import ModelState

_COMING: Final = frozenset({Residency.LOADING, Residency.WAKING})
_GOING: Final = frozenset({Residency.UNLOADING, Residency.FALLING_ASLEEP})


class Ledger:
    """Memory of every device: reserved, free, and used by other programs (foreign). Sizes are in bytes."""

    def __init__(self, capacities: Sequence[Capacity]) -> None:
        """Create a ledger with all memory free. ``capacities`` has at least one device; names are unique."""
        self.capacities: dict[str, Capacity] = {}
        self.draining_nodes: set[str] = set()  # not schedulable; their models are unloaded
        self.removed_nodes: set[str] = set()  # not schedulable; models are still reserved there
        #: Devices whose memory or models have changed. `DeviceIndex` empties the set.
        self.changed_devices: set[str] = set()
        self._by_node: dict[str, list[str]] = {}
        self._main_memory: dict[str, str] = {}  # the device by node; a node without GPUs has none
        self._models: dict[str, dict[str, ModelState]] = {}
        self._free: dict[str, int] = {}
        self._foreign: dict[str, int] = {}
        self.add(capacities)

    # -- changes -----------------------------------------------------------------------------------------

    def add(self, capacities: Iterable[Capacity]) -> None:
        """Add devices, with all their memory free.

        Raises:
            ValueError: A device with this name exists, or models are still reserved on its removed node.
        """
        capacities = list(capacities)
        for capacity in capacities:
            if capacity.device in self.capacities or capacity.node in self.removed_nodes:
                raise ValueError(
                    f"device {capacity.device} exists already: remove its node, and report its models lost"
                )
        for capacity in capacities:
            device = capacity.device
            self.capacities[device] = capacity
            self._by_node.setdefault(capacity.node, []).append(device)
            self.changed_devices.add(device)
            self._models[device], self._free[device], self._foreign[device] = {}, capacity.memory, 0
            if capacity.is_main_memory:
                self._main_memory.setdefault(capacity.node, device)

    def remove(self, node: str) -> list[ModelState]:
        """Make a node unschedulable for ever, and return the models that are reserved there.

        Its devices are deleted once the last of these models is released.
        """
        self.draining_nodes.discard(node)
        self.changed_devices.update(self.devices_of(node))
        found = self.models_of(node)
        if self.devices_of(node):
            self.removed_nodes.add(node)
        self._delete_if_removed(node)
        return found

    def _delete_if_removed(self, node: str) -> None:
        if node not in self.removed_nodes or self.models_of(node):
            return
        for device in self.devices_of(node):
            del self.capacities[device], self._models[device], self._free[device], self._foreign[device]
        del self._by_node[node]
        self.removed_nodes.discard(node)
        self._main_memory.pop(node, None)

    def set_draining(self, node: str, *, draining: bool) -> None:
        """Make the node unschedulable, or schedulable again."""
        if draining:
            self.draining_nodes.add(node)
        else:
            self.draining_nodes.discard(node)
        self.changed_devices.update(self.devices_of(node))

    def reserve(self, model: ModelState, devices: tuple[str, ...], memory: int) -> None:
        self.changed_devices.update(model.devices, devices)
        for device in model.devices:
            del self._models[device][model.name]
            self._free[device] += model.reserved
        model.devices, model.reserved = devices, memory
        for device in devices:
            self._models[device][model.name] = model
            self._free[device] -= memory

    def reserve_main_memory(self, model: ModelState, memory: int) -> None:
        """Replace the reservation of main memory for the weights of a sleeping model."""
        device = self.main_memory_of(model)
        if device is None:
            return
        self.changed_devices.add(device)
        self._free[device] += model.main_memory - memory
        model.main_memory = memory
        if memory:
            self._models[device][model.name] = model
        elif device not in model.devices:
            self._models[device].pop(model.name, None)

    def release(self, model: ModelState) -> None:
        """Free all memory of the model."""
        nodes = self.nodes_of(model)
        self.reserve_main_memory(model, 0)
        self.reserve(model, (), 0)
        for node in nodes:
            self._delete_if_removed(node)

    def resize(self, model: ModelState, memory: int) -> int:
        """Change the reservation of a loaded model, as far as memory is free; return the new reservation."""
        free = min(self.free(device) for device in model.devices)
        memory = min(memory, model.reserved + max(0, free))
        self.reserve(model, model.devices, memory)
        return memory

    def record_use(self, device: str, used: int) -> bool:
        """Compute the memory that other programs use: ``used`` minus all reservations.

        Returns whether the result has changed by more than a hundredth of the device's memory.
        """
        capacity = self.capacities[device].memory
        reserved = sum(self.reserved(device).values())
        before, foreign = self._foreign[device], min(capacity, max(0, used - reserved))
        self._foreign[device] = foreign
        self._free[device] += before - foreign
        if foreign != before:
            self.changed_devices.add(device)
        return abs(foreign - before) > capacity // 100

    # -- questions about a node --------------------------------------------------------------------------

    @property
    def is_cluster(self) -> bool:
        return any(capacity.node for capacity in self.capacities.values())

    @property
    def member_capacities(self) -> list[Capacity]:
        """The devices of all nodes that were not removed."""
        return [each for each in self.capacities.values() if each.node not in self.removed_nodes]

    def devices_of(self, node: str) -> list[str]:
        return list(self._by_node.get(node, ()))

    def models_of(self, node: str) -> list[ModelState]:
        """Return the models that hold memory on the node."""
        found = (each for device in self.devices_of(node) for each in self._models[device].values())
        return list({each.name: each for each in found}.values())

    def nodes_of(self, model: ModelState) -> list[str]:
        """Return the nodes that hold the model, the leader's first; empty for an unloaded model."""
        return list(dict.fromkeys(self.capacities[device].node for device in model.devices))

    def is_on(self, model: ModelState, node: str) -> bool:
        """Return whether the node holds the model, or a part of it."""
        return any(self.capacities[device].node == node for device in model.devices)

    def main_memory_of(self, model: ModelState) -> str | None:
        """Return the main-memory device of the model's node; None if the node has no GPUs.

        A model on several nodes does not sleep, so it never uses this memory.
        """
        return self._main_memory.get(self.capacities[model.devices[0]].node) if model.devices else None

    def is_schedulable_for(self, device: str, demand: Demand) -> bool:
        """Return whether the device's node is schedulable, and may hold a model with this demand."""
        if not self.is_schedulable(device):
            return False
        return demand.may_use(self.capacities[device])

    def is_schedulable(self, device: str) -> bool:
        """Return whether models may be loaded on the device's node: it is not draining and not removed."""
        capacity = self.capacities.get(device)
        return capacity is not None and capacity.node not in self.removed_nodes | self.draining_nodes

    def not_on(self, nodes: Collection[str], devices: Iterable[str]) -> list[str]:
        """Return those of the devices that are on none of ``nodes``."""
        return [each for each in devices if self.capacities[each].node not in nodes]

    def first_devices(self, devices: Iterable[str], demand: Demand) -> tuple[str, ...] | None:
        """Return the first devices that are enough for the demand, grouped by node.

        Returns None if fewer nodes have enough devices than the demand needs.
        """
        by_node: dict[str, list[str]] = {}
        chosen: list[str] = []
        for device in devices:
            found = by_node.setdefault(self.capacities[device].node, [])
            found.append(device)
            if len(found) == demand.devices:
                chosen += found
                if len(chosen) == demand.devices * demand.machines:
                    return tuple(chosen)
        return None

    # -- questions about a device ------------------------------------------------------------------------

    def free(self, device: str) -> int:
        """Return the unreserved bytes; negative while other programs use reserved memory."""
        return self._free[device]

    def foreign(self, device: str) -> int:
        return self._foreign[device]

    def models_on(self, device: str) -> list[ModelState]:
        return list(self._models[device].values())

    def reserved(self, device: str) -> dict[str, int]:
        return {name: self.reserved_by(model, device) for name, model in self._models[device].items()}

    def loading(self, device: str) -> ModelState | None:
        """Return the model that is being loaded or woken on the device, if any.

        No other model may leave the device meanwhile, because engines measure free memory while they load.
        """
        for each in self._models[device].values():
            if each.state in _COMING and device in each.devices:
                return each
        return None

    def none_loading(self, devices: Sequence[str]) -> bool:
        return all(self.loading(device) is None for device in devices)

    def unloading(self, device: str) -> bool:
        return any(each.state in _GOING and device in each.devices for each in self._models[device].values())

    # -- questions about a model -------------------------------------------------------------------------

    def reserved_by(self, model: ModelState, device: str) -> int:
        if device in model.devices:
            return model.reserved
        return model.main_memory if model.main_memory and device == self.main_memory_of(model) else 0

    def memory_for(self, demand: Demand, devices: Sequence[str]) -> int:
        """Return the bytes that a model with this demand reserves on each of ``devices``.

        A demand that is a fraction of a device is computed for the smallest of the devices.
        """
        return min(demand.bytes_on(self.capacities[device]) for device in devices)

    def limit(self, model: ModelState) -> int:
        """Return the bytes of each device that a loaded model may use before its worker process is killed.

        The limit is the reservation. If the size was not declared in models.yaml, free memory is added,
        because the estimate may be too low.
        """
        if model.demand.origin is Origin.DECLARED:
            return model.reserved
        return model.reserved + max(0, min(self.free(device) for device in model.devices))

    def eligible_devices(self, demand: Demand, *, draining: bool = False) -> list[str]:
        """Return all schedulable GPUs, or main memories for a model that computes on the CPU.

        With ``draining``, the devices of draining nodes are included.
        """
        return list(self._eligible(demand, draining=draining))

    def _eligible(self, demand: Demand, *, draining: bool) -> Iterator[str]:
        excluded = self.removed_nodes if draining else self.removed_nodes | self.draining_nodes
        for device, capacity in self.capacities.items():
            if (
                demand.on_cpu is capacity.is_main_memory
                and capacity.node not in excluded
                and demand.may_use(capacity)
            ):
                yield device

    def unused_nodes_note(self, demand: Demand) -> str:
        """Return a sentence that names the nodes that may hold no part of the model; "" if there are none."""
        found = sorted({each.node for each in self.member_capacities if not each.may_hold_parts})
        if demand.machines == 1 or not found:
            return ""
        return f". Outside of cluster.private_network, and so not used: {', '.join(found)}"

    def free_now(self, demand: Demand) -> bool:
        """Return whether enough devices of one node, or of several, have the free memory for this demand."""
        free = (
            device
            for device in self._eligible(demand, draining=False)
            if self.free(device) >= demand.bytes_on(self.capacities[device])
        )
        return self.first_devices(free, demand) is not None

    def devices_large_enough(self, model: ModelState) -> list[str]:
        """Return the devices that are large enough for the model if only pinned models stay loaded."""
        return list(self._large_enough(model, draining=True))

    def fits(self, model: ModelState, *, draining: bool, without: Collection[str] = ()) -> bool:
        """Return whether enough nodes are large enough for the model if only pinned models stay loaded.

        With ``draining``, draining nodes are included. The nodes ``without`` do not count.
        """
        devices = self.not_on(without, self._large_enough(model, draining=draining))
        return self.first_devices(devices, model.demand) is not None

    def has_enough_nodes(self, demand: Demand, *, draining: bool) -> bool:
        """Return whether enough nodes have enough devices for this demand, of any size."""
        return self.first_devices(self._eligible(demand, draining=draining), demand) is not None

    def _large_enough(self, model: ModelState, *, draining: bool) -> Iterator[str]:
        for device in self._eligible(model.demand, draining=draining):
            if model.demand.bytes_on(self.capacities[device]) <= self._memory_left_by_pinned(model, device):
                yield device

    def most_available(
        self, model: ModelState, *, draining: bool = True, enough: float = float("inf")
    ) -> int:
        """Return the bytes that the model gets on each of its devices on the best node, or nodes.

        Only pinned models are assumed to stay loaded. With ``draining``, draining nodes are included. The
        search for a single device ends at a device with ``enough`` bytes.
        """
        count, machines, by_node = model.demand.devices, model.demand.machines, dict[str, list[int]]()
        for device in self._eligible(model.demand, draining=draining):
            left = self._memory_left_by_pinned(model, device)
            if count == machines == 1 and left >= enough:
                return left
            by_node.setdefault(self.capacities[device].node, []).append(left)
        found = [
            (len(left) >= count, sorted(left, reverse=True)[min(count, len(left)) - 1])
            for left in by_node.values()
        ]
        if machines > 1 and found:
            return sorted(found, reverse=True)[min(machines, len(found)) - 1][1]
        return max(found)[1] if found else 0

    def _memory_left_by_pinned(self, model: ModelState, device: str) -> int:
        """Return the bytes of the device that are left if only the other pinned models stay loaded."""
        pinned = (each for each in self._models[device].values() if each.pinned and each is not model)
        return self.capacities[device].memory - sum(self.reserved_by(each, device) for each in pinned)

    def check_fits(self, model: ModelState) -> None:
        """Raise ``ModelTooLarge`` if the devices are too small for the model beside all pinned models."""
        demand = model.demand
        if model.devices and model.state is not Residency.ASLEEP:
            return
        if self.fits(model, draining=True):
            return
        devices = self.eligible_devices(demand, draining=True)
        if not devices:
            raise ModelTooLarge(f"model {model.name} cannot be loaded: {self._no_device(demand)}")
        if demand.machines > 1 and not self.has_enough_nodes(demand, draining=True):
            raise ModelTooLarge(
                f"model {model.name} cannot be loaded: it needs {demand.nodes_and_devices}, and the cluster "
                "has too few such machines: add a node, or lower the key machines of the model in models.yaml"
                f"{self.unused_nodes_note(demand)}"
            )
        sizes = ", ".join(f"{each} has {readable_bytes(self.capacities[each].memory)}" for each in devices)
        needs = f"{demand.share:.0%}" if demand.memory is None else readable_bytes(demand.memory)
        pinned = sorted({each.name for device in devices for each in self.models_on(device) if each.pinned})
        beside = f", partly reserved for the pinned models {', '.join(pinned)}" if pinned else ""
        advice = "lower its memory in models.yaml, or choose a smaller model"
        if demand.origin is Origin.ESTIMATED:
            needs = f"an estimated {needs}"
            advice = "declare its memory in models.yaml if it needs less, or choose a smaller model"
        raise ModelTooLarge(
            f"model {model.name} needs {needs}{demand.on_each}, but {sizes}{beside}: {advice}"
        )

    def _no_device(self, demand: Demand) -> str:
        if demand.nodes is not None:
            names = ", ".join(sorted(demand.nodes))
            return (
                f"it may only be on node {names}, which has no device for it now: add the node to the cluster"
            )
        return "no node of the cluster has a device for it: add a node that has one"

    # -- questions about main memory for sleeping models -------------------------------------------------

    def older_sleepers(self, model: ModelState) -> list[ModelState]:
        """Return sleeping models that use main memory and were used before ``model``, oldest use first."""
        device = self.main_memory_of(model)
        if device is None:
            return []
        older = [
            each
            for each in self.models_on(device)
            if each.state is Residency.ASLEEP and each.idle and each.last_used < model.last_used
        ]
        return sorted(older, key=lambda each: (each.last_used, each.name))

    def main_memory_for(self, model: ModelState) -> int:
        """Return the bytes of main memory free for the model's weights if ``older_sleepers`` are unloaded."""
        device = self.main_memory_of(model)
        if device is None:
            return 0
        older = sum(each.main_memory for each in self.older_sleepers(model))
        return self.free(device) + self.main_memory_being_freed(model) + older

    def main_memory_being_freed(self, model: ModelState) -> int:
        """Return the bytes of main memory on the model's node that running unloads will free."""
        device = self.main_memory_of(model)
        if device is None:
            return 0
        models = self._models[device].values()
        return sum(each.main_memory for each in models if each.state is Residency.UNLOADING)

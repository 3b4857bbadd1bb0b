"""Nodes of a cluster that are removed or drained, and models that fit on no node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from appliance.domain.units import readable_bytes
from appliance.scheduler.facts import Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.locality import Locality
from appliance.scheduler.model import ModelState
from appliance.scheduler.transitions import Transitions

#: States of a pinned model that is unloaded from a draining node and is not being loaded elsewhere yet.
_MOVING: Final = frozenset({Residency.DRAINING, Residency.UNLOADING, Residency.COLD})
_SLEEP_STATES: Final = frozenset({Residency.FALLING_ASLEEP, Residency.ASLEEP})


class NodeModels(NamedTuple):
    """The models on one node."""

    draining: bool
    models: tuple[str, ...]  # that hold memory on the node, sorted
    staying: dict[
        str, str
    ]  # by model: why it is still on the draining node; empty if the node is not draining


class UnplaceableModel(NamedTuple):
    """A model that waits to be loaded and fits on no schedulable node."""

    model: str
    predictions: int  # that wait for it
    devices: int  # that it needs on one node, or on each of its nodes
    memory: int  # bytes that it needs on each of the devices
    missing: int  # bytes that the best node lacks on each of the devices
    reason: str  # ends with what to do


class NodeChanges:
    """Removes nodes, and unloads models from draining nodes."""

    def __init__(
        self,
        models: Mapping[str, ModelState],
        ledger: Ledger,
        locality: Locality,
        transitions: Transitions,
    ) -> None:
        self._models = models
        self._ledger = ledger
        self._locality = locality
        self._transitions = transitions
        self._moving: set[str] = set()  # pinned models that are being moved away from a draining node

    def remove(self, node: str) -> list[str]:
        found = [entry for entry in self._ledger.remove(node) if not entry.node_removed]
        for entry in found:
            entry.node_removed = True
            entry.mark_changed()
        self._locality.remove_node(node)
        for entry in self._models.values():
            entry.avoided.pop(node, None)
        return sorted(entry.name for entry in found)

    def drain(self, node: str) -> None:
        self._ledger.set_draining(node, draining=True)

    def undrain(self, node: str) -> None:
        self._ledger.set_draining(node, draining=False)
        for entry in self._ledger.models_of(node):
            if entry.pending_unload == _reason(node):
                entry.pending_unload = ""
                entry.mark_changed()

    def drain_models(self, now: float) -> None:
        """Drain or unload the models on draining nodes, except pinned models that fit on no other node."""
        if not self._ledger.draining_nodes:
            return
        for node in sorted(self._ledger.draining_nodes):
            for entry in self._ledger.models_of(node):
                if entry.node_removed:  # it is on several nodes, and another one is lost
                    continue
                if entry.state is Residency.DRAINING:
                    entry.sleep_after_drain = False
                elif _can_be_unloaded(entry):
                    self._unload(entry, node, now)

    def _unload(self, entry: ModelState, node: str, now: float) -> None:
        """Unload a ready model after a drain, or a sleeping model. A pinned one is then loaded elsewhere."""
        if entry.pinned:
            if self._stays_pinned(entry):
                return
            self._moving.add(entry.name)
            entry.wanted = True
        if entry.state is Residency.READY:
            self._transitions.drain(entry, _reason(node), now)
        else:
            entry.pending_unload = _reason(node)
            entry.mark_changed()

    def _stays_pinned(self, entry: ModelState) -> str:
        """Return why a pinned model stays on a draining node; empty if it can be unloaded now.

        Pinned models move one after the other, because each changes the memory that is left for the next.
        """
        self._moving = {name for name in self._moving if self._is_moving(name)}
        if not self._ledger.fits(entry, draining=False):
            if self._lacks_nodes(entry):
                return f"pinned, and it needs {entry.demand.nodes_and_devices}: too few nodes are left"
            missing = readable_bytes(self._missing(entry))
            return f"pinned, and no other node has the memory: {missing} are missing{entry.demand.on_each}"
        if self._moving:
            return f"pinned, and waits until {', '.join(sorted(self._moving))} is loaded on another node"
        return ""

    def _is_moving(self, name: str) -> bool:
        """Return whether the pinned model is being moved. A model whose load has failed is not waited for."""
        model = self._models.get(name)
        if model is None or not model.pinned or model.failures:
            return False
        return model.state in _MOVING or (model.state in _SLEEP_STATES and bool(model.pending_unload))

    def status(self, node: str) -> NodeModels:
        draining = node in self._ledger.draining_nodes
        entries = sorted(self._ledger.models_of(node), key=lambda each: each.name)
        staying = {each.name: self._why_still_there(each) for each in entries} if draining else {}
        return NodeModels(draining, tuple(each.name for each in entries), staying)

    def _why_still_there(self, entry: ModelState) -> str:
        if entry.pinned and _can_be_unloaded(entry):
            return self._stays_pinned(entry) or "pinned, and is unloaded next"
        if entry.running:
            count = len(entry.running)
            return "1 prediction is running" if count == 1 else f"{count} predictions are running"
        return f"it is {entry.state}"

    def unplaceable(self, waiting: Iterable[ModelState]) -> list[UnplaceableModel]:
        """Return those of the waiting models that fit on no schedulable node."""
        return [
            UnplaceableModel(
                entry.name,
                len(entry.queue),
                entry.demand.devices,
                self._needed(entry),
                self._missing(entry),
                self._why_unplaceable(entry) + self._ledger.unused_nodes_note(entry.demand),
            )
            for entry in waiting
            if not self._ledger.fits(entry, draining=False)
        ]

    def _why_unplaceable(self, entry: ModelState) -> str:
        demand = entry.demand
        if self._ledger.fits(entry, draining=True):
            nodes = ", ".join(sorted(self._ledger.draining_nodes))
            return (
                f"it fits only on a draining node ({nodes}): use the node again with "
                "`appliance drain NODE --undo`, or add another one"
            )
        if not self._ledger.eligible_devices(demand):
            return "no schedulable node may hold it: add a node with a device for it"
        missing = readable_bytes(self._missing(entry))
        if not self._missing(entry) or self._lacks_nodes(entry):
            return f"it needs {demand.nodes_and_devices}: add a node with that many devices"
        return f"{missing} are missing{demand.on_each}: add a node with more memory on its devices"

    def _lacks_nodes(self, entry: ModelState) -> bool:
        """Return whether a model on several nodes has too few schedulable nodes with enough devices."""
        return entry.demand.machines > 1 and not self._ledger.has_enough_nodes(entry.demand, draining=False)

    def _needed(self, entry: ModelState) -> int:
        """Return the bytes that the model needs on each of its devices."""
        if entry.demand.memory is not None:
            return entry.demand.memory
        capacities = (self._ledger.capacities[each] for each in self._ledger.eligible_devices(entry.demand))
        return max(map(entry.demand.bytes_on, capacities), default=0)

    def _missing(self, entry: ModelState) -> int:
        return max(0, self._needed(entry) - self._ledger.most_available(entry, draining=False))


def _can_be_unloaded(entry: ModelState) -> bool:
    """Return whether the model is ready or sleeps, and its unload was not decided yet."""
    return entry.state is Residency.READY or (entry.state in _SLEEP_STATES and not entry.pending_unload)


def _reason(node: str) -> str:
    return f"node {node} is draining"

"""Read-only methods of the scheduler, for the engine and for reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from appliance.scheduler.backlog import MANY_DEVICES
from appliance.scheduler.children import Children
from appliance.scheduler.event_log import Event, EventLog
from appliance.scheduler.facts import Capacity, Demand, Residency
from appliance.scheduler.footprints import Footprints
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.locality import Locality
from appliance.scheduler.model_index import ModelIndex
from appliance.scheduler.nodes import NodeChanges, NodeModels, UnplaceableModel
from appliance.scheduler.placements import Placements
from appliance.scheduler.rebalancing import QueuedPrediction, Rebalancing
from appliance.scheduler.transitions import Transitions


class QueuedLoad(NamedTuple):
    """A model that waits to be loaded."""

    model: str
    predictions: int  # queued
    waited: float  # seconds
    claimed_devices: tuple[str, ...]  # from which other models are being evicted for it


class SchedulerQueries:
    """The state of a scheduler, with methods that return parts of it and change nothing."""

    def __init__(
        self,
        capacities: Sequence[Capacity],
        demands: Iterable[Demand],
        *,
        many_devices: int = MANY_DEVICES,
    ) -> None:
        """Start with all models unloaded. There is at least one device, and names of models are unique.

        If there are more devices than ``many_devices``, a decision compares only some of them (``backlog``).
        """
        self._ledger = Ledger(capacities)
        self._index = ModelIndex(self._ledger.changed_devices)
        self._models = {demand.model: self._index.new(demand) for demand in demands}
        self._queued: dict[str, QueuedPrediction] = {}  # by prediction id
        self._children = Children()
        self._event_log = EventLog()
        self._locality = Locality(self._models, self._ledger)
        self.footprints = Footprints(self._models, self._ledger, self._event_log)
        self._transitions = Transitions(self._ledger, self._event_log)
        self._node_changes = NodeChanges(self._models, self._ledger, self._locality, self._transitions)
        self._placements = Placements(
            self._models,
            self._index,
            self._ledger,
            self._locality,
            self._children,
            self._transitions,
            many_devices,
        )
        self._rebalancing = Rebalancing(self._models, self._queued, self._index)

    # -- predictions -------------------------------------------------------------------------------------

    def queued_for(self, id: str) -> str | None:
        """Return the model, or instance, in whose queue the prediction is; None if it is not queued."""
        queued = self._queued.get(id)
        return None if queued is None else queued.model

    def queue_position(self, id: str) -> int | None:
        """Return the prediction's position in its model's queue, from 1; None if it is not queued."""
        queued = self._queued.get(id)
        return None if queued is None else self._models[queued.model].queue.index(id) + 1

    def served_before_replacement(self, id: str) -> bool:
        """Return whether the prediction is queued and will run before its outdated model is replaced."""
        queued = self._queued.get(id)
        return queued is not None and id in self._models[queued.model].before_replacement

    # -- models ------------------------------------------------------------------------------------------

    @property
    def models(self) -> list[str]:
        return list(self._models)

    def knows(self, model: str) -> bool:
        """Return whether the model, or instance, was added and not removed."""
        return model in self._models

    def demand(self, model: str) -> Demand:
        return self._models[model].demand

    def residency(self, model: str) -> Residency:
        """Return the state of the model; COLD if the model is not known."""
        entry = self._models.get(model)
        return Residency.COLD if entry is None else entry.state

    def is_outdated(self, model: str) -> bool:
        """Return whether the model is unknown, or is loaded in a form that will be replaced."""
        entry = self._models.get(model)
        return entry is None or entry.outdated

    def pinned(self, model: str) -> bool:
        return self._models[model].pinned

    def devices(self, model: str) -> tuple[str, ...]:
        """Return the devices that hold the model, or are reserved for it."""
        return self._models[model].devices

    def running(self, model: str) -> frozenset[str]:
        """Return the ids of the predictions that hold a slot of the model."""
        entry = self._models.get(model)
        return frozenset() if entry is None else frozenset(entry.running)

    def queue_length(self, model: str | None = None) -> int:
        return len(self._queued) if model is None else len(self._models[model].queue)

    def load_seconds(self, model: str) -> float | None:
        """Return the duration of the model's last load; None before the first load."""
        return self._models[model].load_seconds

    def loading_seconds(self, model: str, now: float) -> float | None:
        """Return for how long the model has been loading or waking; None in other states."""
        return self._models[model].loading_seconds(now)

    def check_fits(self, model: str) -> None:
        self._ledger.check_fits(self._models[model])

    def fits_now(self, model: str) -> bool:
        """Return whether the model could be loaded or woken without evicting another model."""
        entry = self._models[model]
        if entry.state is Residency.ASLEEP:
            return all(
                self._ledger.is_schedulable_for(device, entry.demand)
                and self._placements.missing_memory(entry, device) <= self._ledger.free(device)
                for device in entry.devices
            )
        return self._ledger.free_now(entry.demand)

    # -- devices, nodes and decisions ---------------------------------------------------------------------

    @property
    def capacities(self) -> dict[str, int]:
        """The bytes that models may use, by device."""
        return {capacity.device: capacity.memory for capacity in self._ledger.member_capacities}

    def models_on_node(self, node: str) -> NodeModels:
        """Return the models on a node and, if the node is draining, why each of them is still there."""
        return self._node_changes.status(node)

    def unplaceable_models(self, now: float) -> list[UnplaceableModel]:
        """Return the models that wait to be loaded and fit on no schedulable node."""
        waiting = [self._models[entry.model] for entry in self.load_queue(now)]
        return self._node_changes.unplaceable(waiting)

    def reserved(self, device: str) -> dict[str, int]:
        return self._ledger.reserved(device)

    def free(self, device: str) -> int:
        """Return the bytes of the device that are neither reserved nor used by other programs."""
        return self._ledger.free(device)

    def load_queue(self, now: float) -> list[QueuedLoad]:
        """Return the models that wait to be loaded, the next one first."""
        waiting = [each for each in self._index.not_ready() if each.wants_load(now)]
        waiting.sort(key=lambda each: self._placements.rank(each, now))
        return [QueuedLoad(e.name, len(e.queue), e.waited(now), e.claimed_devices) for e in waiting]

    def has_waiting_models(self, now: float) -> bool:
        return self._index.any_wants_load(now)

    def events(self, after: int = 0) -> list[Event]:
        """Return the kept events with a number above ``after``, oldest first."""
        return self._event_log.since(after)

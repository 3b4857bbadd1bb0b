"""Chooses the waiting models to load or wake now, and the models to evict for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from appliance.scheduler import policy
from appliance.scheduler.backlog import Backlog
from appliance.scheduler.children import Children
from appliance.scheduler.deadlock import completable_predictions
from appliance.scheduler.device_index import DeviceIndex
from appliance.scheduler.facts import Decision, Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.locality import Locality
from appliance.scheduler.model import ModelState
from appliance.scheduler.model_index import ModelIndex
from appliance.scheduler.plan import Plan, plan
from appliance.scheduler.transitions import Transitions


class _Zeros(dict[str, int]):
    """0 bytes on every device."""

    def __missing__(self, device: str) -> int:
        return 0


_NOTHING_RESERVED: Final = _Zeros()


class Placements:
    """Decides which models are loaded, woken and evicted."""

    def __init__(
        self,
        models: Mapping[str, ModelState],
        index: ModelIndex,
        ledger: Ledger,
        locality: Locality,
        children: Children,
        transitions: Transitions,
        many_devices: int,
    ) -> None:
        self._models = models
        self._index = index
        self._ledger = ledger
        self._locality = locality
        self._children = children
        self._transitions = transitions
        self._devices = DeviceIndex(ledger, locality)
        self._backlog = Backlog(index, ledger, self._devices, self.rank, many_devices)
        self._devices_without_new_loads: Collection[str] = ()  # devices, see `decide`

    def decide(self, now: float, devices_without_new_loads: Collection[str]) -> list[Decision]:
        """Load waiting models, the most urgent first, and evict other models for them.

        Memory that a model waits for is kept for it: less urgent models do not get that memory. An exception
        is a model that a child prediction waits for, if its memory is free or held by idle models: the parent
        may hold the memory that is kept for others until its child has finished.

        No load begins on the devices ``devices_without_new_loads``. A drained model on several nodes can be
        unloaded from them only while no load runs on any of them. If new loads began there, this might never
        be the case.
        """
        decisions = self.load_for_children(now, devices_without_new_loads)
        if self._backlog.in_use:
            return decisions + self._decide_with_backlog(now)
        self._backlog.reset()
        waiting = [entry for entry in self._index.not_ready() if entry.wants_load(now)]
        if not waiting:
            return decisions
        waiting.sort(key=lambda entry: self.rank(entry, now))
        reserved_for_others: dict[str, int] = dict.fromkeys(self._ledger.capacities, 0)
        for entry in waiting:
            decided, missing = self._place(entry, reserved_for_others, now, None)
            decisions += decided
            for device, memory in missing.items():
                reserved_for_others[device] += memory
        return decisions

    def _decide_with_backlog(self, now: float) -> list[Decision]:
        """Decide for the models that the backlog selects. The plans of the others stay as they are."""
        decisions: list[Decision] = []
        for entry, among in self._backlog.models_to_plan(now):
            if not entry.wants_load(now):
                continue
            reserved_for_others = self._backlog.reserved_for_others(entry, now)
            had_plan = self._backlog.has_plan(entry)
            decided, missing = self._place(entry, reserved_for_others, now, among)
            lost_plan = among is not None and had_plan and not decided and not missing
            if lost_plan:  # search all devices
                decided, missing = self._place(entry, reserved_for_others, now, None)
            if entry.loadable:
                searched_all = lost_plan or among is None
                self._backlog.store_plan(entry, missing, now, new_due_time=searched_all)
            else:  # it is being loaded now, so its plan keeps no memory any more
                self._backlog.forget(entry)
            decisions += decided
        return decisions

    def next_times(self, now: float) -> list[float]:
        """Return the times at which ``decide`` has to be called although nothing happens."""
        at = self._backlog.next_time(now) if self._backlog.in_use else None
        return [] if at is None else [at]

    def _place(
        self,
        entry: ModelState,
        reserved_for_others: Mapping[str, int],
        now: float,
        among: Sequence[str] | None,
    ) -> tuple[list[Decision], dict[str, int]]:
        """Load or wake the model, or evict other models for it.

        Also returns the bytes by device that the model still waits for.
        """
        # A parent whose child waits for this model does not finish before this model is loaded.
        completable = self._completable_without(entry.name) if self._children else None
        chosen = self._plan(entry, reserved_for_others, now, completable, spare_busy=True, among=among)
        if chosen is None and entry.queue and entry.waited(now) >= policy.patience(entry):
            chosen = self._claim(entry, reserved_for_others, now, completable, among)
        if chosen is None and self._child_is_next(entry):
            chosen = self._plan(entry, _NOTHING_RESERVED, now, completable, spare_busy=True, among=among)
        if chosen is None:
            return [], {}
        if entry.state is Residency.ASLEEP and chosen.devices != entry.devices:
            if not self._ledger.none_loading(entry.devices):
                return [], {}
            reason = f"loading it on {', '.join(chosen.devices)} takes less time than waking it"
            return [self._transitions.unload(entry, reason, now)], {}
        # It may have been evicted in this decision, for a more urgent model.
        if entry.loadable and all(
            self._can_load_now(device, entry, reserved_for_others) for device in chosen.devices
        ):
            return [self._load_or_wake(entry, chosen.devices, now)], {}
        missing = self._missing(entry, chosen, reserved_for_others, now)
        return self._evict(chosen, entry, now), missing

    def _missing(
        self, entry: ModelState, chosen: Plan, reserved_for_others: Mapping[str, int], now: float
    ) -> dict[str, int]:
        """Return the bytes by device that the model of this plan waits for.

        This is all memory of a device, so that no load of a less urgent model begins there, if

        - a model on several nodes has the memory, but a load or an unload runs on one of its devices, or
        - a victim on several nodes could be evicted now, but a load runs on one of its devices.

        Otherwise there might never be a moment when no load runs on any of the devices.
        """
        missing = {device: self.missing_memory(entry, device) for device in chosen.devices}
        held: list[str] = []
        for victim in chosen.victims:
            if victim.demand.machines > 1 and self._waits_for_loads(victim, now):
                held += victim.devices
        if entry.demand.machines > 1 and all(
            self._ledger.free(device) >= needed + reserved_for_others[device]
            for device, needed in missing.items()
        ):
            held += chosen.devices
        for device in held:
            missing[device] = self._ledger.capacities[device].memory
        return missing

    def _waits_for_loads(self, victim: ModelState, now: float) -> bool:
        """Return whether only loads on its devices keep the idle victim from being evicted now."""
        elapsed = victim.idle and policy.residency_elapsed(victim, now)
        return elapsed and not self._ledger.none_loading(victim.devices)

    def load_for_children(
        self, now: float, devices_without_new_loads: Collection[str] = ()
    ) -> list[Decision]:
        self._devices_without_new_loads = devices_without_new_loads
        loads: list[Decision] = []
        if not self._children:
            return loads
        for entry in self._index.not_ready():
            if self._child_is_next(entry) and entry.wants_load(now):
                asleep = entry.state is Residency.ASLEEP
                among = entry.devices if asleep else sorted(self._ledger.eligible_devices(entry.demand))
                free = [
                    device
                    for device in among
                    if self._ledger.is_schedulable_for(device, entry.demand)
                    and self._can_load_now(device, entry, _NOTHING_RESERVED)
                ]
                if not asleep:
                    free = self._ledger.not_on(entry.avoided_nodes(now), free)
                devices = self._ledger.first_devices(free, entry.demand)
                if devices is not None:
                    loads.append(self._load_or_wake(entry, devices, now))
        return loads

    def rank(self, entry: ModelState, now: float) -> tuple[bool, float]:
        """Return a sort key for waiting models; the model to load first has the smallest key."""
        return not self._child_is_next(entry), -policy.urgency(entry, now)

    def missing_memory(self, entry: ModelState, device: str) -> int:
        """Return the bytes of the device that the model needs in addition to its present reservation."""
        needed = entry.demand.bytes_on(self._ledger.capacities[device])
        return needed - self._ledger.reserved_by(entry, device)

    def _child_is_next(self, entry: ModelState) -> bool:
        return bool(entry.queue) and entry.queue.first in self._children

    def _plan(
        self,
        entry: ModelState,
        reserved_for_others: Mapping[str, int],
        now: float,
        completable: set[str] | None,
        *,
        spare_busy: bool,
        among: Sequence[str] | None = None,
    ) -> Plan | None:
        """Plan a load; for a sleeping model return the better plan of waking it and loading it elsewhere."""
        load = self._plan_among(among, entry, reserved_for_others, now, completable, spare_busy=spare_busy)
        if entry.state is not Residency.ASLEEP:
            return load
        wake = self._plan_among(
            entry.devices, entry, reserved_for_others, now, completable, spare_busy=spare_busy
        )
        if wake is None or load is None:
            return wake or load
        slower_by = policy.expected_load(entry) - policy.expected_time_to_ready(entry)
        cost = load.cost + policy.predictions_weight(entry) * slower_by
        return load if cost < wake.cost else wake

    def _plan_among(
        self,
        among: Sequence[str] | None,
        entry: ModelState,
        reserved_for_others: Mapping[str, int],
        now: float,
        completable: set[str] | None,
        *,
        spare_busy: bool,
    ) -> Plan | None:
        if among is None and self._backlog.in_use and not entry.avoided_nodes(now):
            among = self._devices.candidates(entry, reserved_for_others, spare_busy=spare_busy)
        return plan(
            entry,
            self._ledger,
            self._locality,
            reserved_for_others,
            now,
            spare_busy=spare_busy,
            completable=completable,
            among=among,
        )

    def _claim(
        self,
        entry: ModelState,
        reserved_for_others: Mapping[str, int],
        now: float,
        completable: set[str] | None,
        among: Sequence[str] | None,
    ) -> Plan | None:
        """Plan with ``spare_busy=False`` for a model that has waited long, and let it claim the devices.

        Devices that the model has claimed before are tried first, because a change of devices would drain
        more models than necessary.
        """
        chosen = None
        if entry.claimed_devices:
            claimed = entry.claimed_devices
            chosen = self._plan(entry, reserved_for_others, now, completable, spare_busy=False, among=claimed)
        if chosen is None:
            chosen = self._plan(entry, reserved_for_others, now, completable, spare_busy=False, among=among)
        entry.claimed_devices = () if chosen is None else chosen.devices
        return chosen

    def _evict(self, chosen: Plan, waiter: ModelState, now: float) -> list[Decision]:
        """Evict idle victims and drain busy victims, except before the end of their minimum residency."""
        decisions: list[Decision] = []
        reason = f"memory is needed for {waiter.name}"
        for victim in chosen.victims:
            if victim.state is Residency.ASLEEP:
                if self._ledger.none_loading(victim.devices):
                    decisions.append(self._transitions.unload(victim, reason, now, waiter.name))
            elif not policy.residency_elapsed(victim, now):
                continue
            elif not victim.idle:
                why = f"{reason}, which has waited {waiter.waited(now):.1f} s"
                self._transitions.drain(victim, why, now, waiter.name, sleep=chosen.sleep)
            elif self._ledger.none_loading(victim.devices):
                decisions += self._transitions.evict(victim, reason, now, waiter, sleep=chosen.sleep)
        return decisions

    def _load_or_wake(self, entry: ModelState, devices: tuple[str, ...], now: float) -> Decision:
        if entry.state is Residency.ASLEEP:
            return self._transitions.wake(entry, now)
        return self._transitions.load(entry, devices, now)

    def _can_load_now(self, device: str, entry: ModelState, reserved_for_others: Mapping[str, int]) -> bool:
        """Return whether the memory is free, and no other model is being loaded or unloaded on the device.

        Engines measure free memory while they load, and a second change at a time would falsify the result.
        """
        if device in self._devices_without_new_loads:
            return False
        busy = self._ledger.loading(device) is not None or self._ledger.unloading(device)
        needed = self.missing_memory(entry, device) + reserved_for_others[device]
        return self._ledger.free(device) >= needed and not busy

    def _completable_without(self, model: str) -> set[str]:
        capacities = self._ledger.member_capacities
        return completable_predictions(self._models, self._children.unfinished, capacities, without=model)

"""Chooses the waiting models to load or wake now, and the models that leave their devices for them."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.scheduler import policy
from appliance.scheduler.children import Children
from appliance.scheduler.deadlock import completable_predictions
from appliance.scheduler.facts import Decision, Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState
from appliance.scheduler.plan import Plan, plan
from appliance.scheduler.transitions import Transitions


class Placements:
    """Decides loads, wakes and evictions. It keeps no state of its own."""

    def __init__(
        self, models: Mapping[str, ModelState], ledger: Ledger, children: Children, transitions: Transitions
    ) -> None:
        self._models = models
        self._ledger = ledger
        self._children = children
        self._transitions = transitions

    def decide(self, now: float) -> list[Decision]:
        """Load waiting models, the most urgent first, and evict others for them.

        Each model that cannot be loaded yet is promised memory, and less urgent ones get only what is left.
        Children that fit at once ignore promises: their parents hold memory, and may be what keeps a promise
        from being fulfilled.
        """
        decisions = self.load_for_children(now)
        waiting = [entry for entry in self._models.values() if entry.wants_load(now)]
        waiting.sort(key=lambda entry: self.rank(entry, now))
        promised: dict[str, int] = dict.fromkeys(self._ledger.capacities, 0)
        for entry in waiting:
            # A parent whose child waits for this model does not finish before this model is loaded.
            completable = self._completable_without(entry.name) if self._children else None
            chosen = self._plan(entry, promised, now, completable, patient=True)
            if chosen is None and entry.queue and entry.waited(now) >= policy.patience(entry):
                chosen = self._claim(entry, promised, now, completable)
            if chosen is None:
                continue
            if entry.state is Residency.ASLEEP and chosen.devices != entry.devices:
                if self._ledger.none_loading(entry.devices):
                    reason = f"it is loaded on {', '.join(chosen.devices)} sooner than it could be woken"
                    decisions.append(self._transitions.unload(entry, reason, now))
                continue
            if all(self._can_load_now(device, entry, promised) for device in chosen.devices):
                decisions.append(self._load_or_wake(entry, chosen.devices, now))
                continue
            for device in chosen.devices:
                promised[device] += self.missing_memory(entry, device)
            decisions += self._evict(chosen, entry, now)
        return decisions

    def load_for_children(self, now: float) -> list[Decision]:
        """Load or wake the models that children wait for, where memory is free."""
        loads: list[Decision] = []
        nothing = dict.fromkeys(self._ledger.capacities, 0)
        for entry in self._models.values():
            if self._child_is_next(entry) and entry.wants_load(now):
                asleep = entry.state is Residency.ASLEEP
                among = entry.devices if asleep else sorted(self._ledger.eligible_devices(entry.demand))
                free = [device for device in among if self._can_load_now(device, entry, nothing)]
                if len(free) >= entry.demand.devices:
                    loads.append(self._load_or_wake(entry, tuple(free[: entry.demand.devices]), now))
        return loads

    def rank(self, entry: ModelState, now: float) -> tuple[bool, float]:
        """Return the sort key by which the model to load next comes first."""
        return not self._child_is_next(entry), -policy.urgency(entry, now)

    def missing_memory(self, entry: ModelState, device: str) -> int:
        """Return the bytes of the device that the model needs besides those that it holds asleep."""
        needed = entry.demand.bytes_on(self._ledger.capacities[device])
        return needed - self._ledger.reserved_by(entry, device)

    def _child_is_next(self, entry: ModelState) -> bool:
        return bool(entry.queue) and entry.queue[0] in self._children

    def _plan(
        self,
        entry: ModelState,
        promised: dict[str, int],
        now: float,
        completable: set[str] | None,
        *,
        patient: bool,
        among: tuple[str, ...] | None = None,
    ) -> Plan | None:
        """Plan a load; for a sleeping model plan whichever is better, waking it or loading it elsewhere."""
        load = plan(entry, self._ledger, promised, now, patient=patient, completable=completable, among=among)
        if entry.state is not Residency.ASLEEP:
            return load
        wake = plan(
            entry, self._ledger, promised, now, patient=patient, completable=completable, among=entry.devices
        )
        if wake is None or load is None:
            return wake or load
        slower_by = policy.expected_load(entry) - policy.expected_time_to_ready(entry)
        cost = load.cost + policy.priority_weight(entry) * max(1, len(entry.queue)) * slower_by
        return load if cost < wake.cost else wake

    def _claim(
        self, entry: ModelState, promised: dict[str, int], now: float, completable: set[str] | None
    ) -> Plan | None:
        """Plan impatiently for a model that has waited long, on the devices that it has claimed before.

        Changing devices would drain more models than necessary.
        """
        chosen = None
        if entry.claimed_devices:
            claimed = entry.claimed_devices
            chosen = self._plan(entry, promised, now, completable, patient=False, among=claimed)
        if chosen is None:
            chosen = self._plan(entry, promised, now, completable, patient=False)
        entry.claimed_devices = () if chosen is None else chosen.devices
        return chosen

    def _evict(self, chosen: Plan, waiter: ModelState, now: float) -> list[Decision]:
        """Evict idle victims and drain busy ones, each once its minimum residency is over."""
        decisions: list[Decision] = []
        reason = f"makes room for {waiter.name}"
        for victim in chosen.victims:
            if victim.state is Residency.ASLEEP:
                if self._ledger.none_loading(victim.devices):
                    decisions.append(self._transitions.unload(victim, reason, now, waiter.name))
            elif not policy.residency_elapsed(victim, now):
                continue
            elif not victim.idle:
                why = f"{reason}, which waited {waiter.waited(now):.0f} s"
                self._transitions.drain(victim, why, now, waiter.name, sleep=chosen.sleep)
            elif self._ledger.none_loading(victim.devices):
                decisions += self._transitions.evict(victim, reason, now, waiter, sleep=chosen.sleep)
        return decisions

    def _load_or_wake(self, entry: ModelState, devices: tuple[str, ...], now: float) -> Decision:
        if entry.state is Residency.ASLEEP:
            return self._transitions.wake(entry, now)
        return self._transitions.load(entry, devices, now)

    def _can_load_now(self, device: str, entry: ModelState, promised: dict[str, int]) -> bool:
        """Return whether the memory is free and no other model is coming to, or leaving, the device.

        Engines measure free memory while they load, so two changes at a time would falsify each other's
        numbers.
        """
        busy = self._ledger.loading(device) is not None or self._ledger.unloading(device)
        needed = self.missing_memory(entry, device) + promised[device]
        return self._ledger.free(device) >= needed and not busy

    def _completable_without(self, model: str) -> set[str]:
        capacities = list(self._ledger.capacities.values())
        return completable_predictions(self._models, self._children.unfinished, capacities, without=model)

"""Which of the models that wait are loaded, or woken, and where, and who makes room for them there."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.scheduler import policy
from appliance.scheduler.children import Children
from appliance.scheduler.deadlock import completable
from appliance.scheduler.facts import Decision, Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState
from appliance.scheduler.plan import Plan, plan
from appliance.scheduler.transitions import Transitions


class Placements:
    """A part of the scheduler, to whom all that it is given belongs."""

    def __init__(
        self, models: Mapping[str, ModelState], ledger: Ledger, parts: Children, moves: Transitions
    ) -> None:
        """Nothing is kept here."""
        self._models = models
        self._ledger = ledger
        self._parts = parts
        self._moves = moves

    def rank(self, entry: ModelState, now: float) -> tuple[bool, float]:
        """Sorted by it, the next to be loaded comes first."""
        return not self._has_part(entry), -policy.urgency(entry, now)

    def _has_part(self, entry: ModelState) -> bool:
        return bool(entry.queue) and entry.queue[0] in self._parts

    def decide(self, now: float) -> list[Decision]:
        """Load what waits, the most urgent first; the others may use only what the earlier ones leave.

        Parts go first: what waits for them holds memory. Those that fit at once take it although it may be
        promised, since the promise may be one that their whole has to keep.
        """
        decisions = self.of_parts(now)
        waiting = [entry for entry in self._models.values() if entry.wants_load(now)]
        waiting.sort(key=lambda entry: self.rank(entry, now))
        promised: dict[str, int] = dict.fromkeys(self._ledger.capacities, 0)
        for entry in waiting:
            # What runs where a part of it waits for this model does not end before this one is loaded.
            ending = self._hope(entry.name) if self._parts else None
            chosen = self._plan(entry, promised, now, ending, patient=True)
            if chosen is None and entry.queue and entry.waited(now) >= policy.patience(entry):
                chosen = self._claim(entry, promised, now, ending)
            if chosen is None:
                continue
            if entry.state is Residency.ASLEEP and chosen.devices != entry.devices:
                if self._ledger.still(entry.devices):
                    reason = f"it is loaded on {', '.join(chosen.devices)} sooner than it could be woken"
                    decisions.append(self._moves.unload(entry, reason, now))
                continue
            if all(self._open(device, entry, promised) for device in chosen.devices):
                decisions.append(self._begin(entry, chosen.devices, now))
                continue
            for device in chosen.devices:
                promised[device] += self.lacks(entry, device)
            decisions += self._make_room(chosen, entry, now)
        return decisions

    def _plan(
        self,
        entry: ModelState,
        promised: dict[str, int],
        now: float,
        ending: set[str] | None,
        *,
        patient: bool,
        among: tuple[str, ...] | None = None,
    ) -> Plan | None:
        """Where it is loaded, or, if it sleeps, woken; it may be loaded elsewhere if that is sooner."""
        there = plan(entry, self._ledger, promised, now, patient=patient, ending=ending, among=among)
        if entry.state is not Residency.ASLEEP:
            return there
        here = plan(entry, self._ledger, promised, now, patient=patient, ending=ending, among=entry.devices)
        if here is None or there is None:
            return here or there
        slower = policy.expected_load(entry) - policy.expected_return(entry)
        cost = there.cost + policy.weight(entry) * max(1, len(entry.queue)) * slower
        return there if cost < here.cost else here

    def _claim(
        self, entry: ModelState, promised: dict[str, int], now: float, ending: set[str] | None
    ) -> Plan | None:
        """The devices that are cleared for a model that waited long: once chosen they stay the same."""
        chosen = None
        if entry.claim:
            chosen = self._plan(entry, promised, now, ending, patient=False, among=entry.claim)
        if chosen is None:
            chosen = self._plan(entry, promised, now, ending, patient=False)
        entry.claim = () if chosen is None else chosen.devices
        return chosen

    def _make_room(self, chosen: Plan, waiter: ModelState, now: float) -> list[Decision]:
        """Have the victims that are idle leave, and drain the others, as soon as each has had its time."""
        moves: list[Decision] = []
        reason = f"makes room for {waiter.name}"
        for victim in chosen.victims:
            if victim.state is Residency.ASLEEP:
                if self._ledger.still(victim.devices):
                    moves.append(self._moves.unload(victim, reason, now, waiter.name))
            elif not policy.had_its_time(victim, now):
                continue
            elif not victim.idle:
                why = f"{reason}, which waited {waiter.waited(now):.0f} s"
                self._moves.drain(victim, why, now, waiter.name, sleep=chosen.sleep)
            elif self._ledger.still(victim.devices):
                moves += self._moves.evict(victim, reason, now, waiter, sleep=chosen.sleep)
        return moves

    def of_parts(self, now: float) -> list[Decision]:
        """Load what parts wait for, as far as there is room."""
        loads: list[Decision] = []
        nothing = dict.fromkeys(self._ledger.capacities, 0)
        for entry in self._models.values():
            if self._has_part(entry) and entry.wants_load(now):
                asleep = entry.state is Residency.ASLEEP
                among = entry.devices if asleep else sorted(self._ledger.places(entry.demand))
                roomy = [device for device in among if self._open(device, entry, nothing)]
                if len(roomy) >= entry.demand.devices:
                    loads.append(self._begin(entry, tuple(roomy[: entry.demand.devices]), now))
        return loads

    def _begin(self, entry: ModelState, devices: tuple[str, ...], now: float) -> Decision:
        if entry.state is Residency.ASLEEP:
            return self._moves.wake(entry, now)
        return self._moves.load(entry, devices, now)

    def lacks(self, waiter: ModelState, device: str) -> int:
        """Bytes of the device that it needs besides what it holds as a sleeper."""
        need = waiter.demand.bytes_on(self._ledger.capacities[device])
        return need - self._ledger.held(waiter, device)

    def _open(self, device: str, waiter: ModelState, promised: dict[str, int]) -> bool:
        """Whether the waiter may load there now: the bytes are free, and nothing else comes or goes.

        Two at a time would mis-measure each other's memory.
        """
        busy = self._ledger.loading(device) is not None or self._ledger.unloading(device)
        return self._ledger.free(device) >= self.lacks(waiter, device) + promised[device] and not busy

    def _hope(self, without: str) -> set[str]:
        capacities = list(self._ledger.capacities.values())
        return completable(self._models, self._parts.unfinished, capacities, without=without)

"""The queues, the residency of every model and the ledger of every device: pure decisions.

The engine tells the scheduler what happened (``queued``, ``finished``, ``loaded``, ...) and asks ``decide``
what to do next; nothing here does I/O, reads a clock or awaits. Times are seconds on any one monotonic clock,
passed in by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.children import Children
from appliance.scheduler.deadlock import completable, why_never
from appliance.scheduler.event_log import Event, EventKind, EventLog
from appliance.scheduler.facts import Capacity, Decision, Demand, Level, Refuse, Residency, Start
from appliance.scheduler.footprints import Footprints
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import CHANGED, ModelState
from appliance.scheduler.placements import Placements
from appliance.scheduler.rebalancing import Rebalancing, Waiting
from appliance.scheduler.transitions import Transitions

#: Where nothing of a model is on its device, or little.
_AWAY: Final = frozenset({Residency.COLD, Residency.FALLING_ASLEEP, Residency.ASLEEP})
#: Where it is ready, or will be.
_HERE: Final = frozenset({Residency.LOADING, Residency.WAKING, Residency.READY})

#: Seconds after which what waits is looked at again although nothing happened.
WATCH: Final = 1.0


class QueueEntry(NamedTuple):
    """How a model stands that waits to be loaded."""

    model: str
    predictions: int  # that wait for it
    waited: float  # seconds
    claim: tuple[str, ...]  # devices that are being cleared for it


class Scheduler:
    """One per engine."""

    def __init__(self, capacities: Sequence[Capacity], demands: Iterable[Demand]) -> None:
        """At least one device; model names are unique."""
        self._ledger = Ledger(capacities)
        self._models = {demand.model: ModelState(demand) for demand in demands}
        self._queued: dict[str, Waiting] = {}  # by prediction id
        self._parts = Children()
        self._journal = EventLog()
        self.footprints = Footprints(self._models, self._ledger, self._journal)
        self._moves = Transitions(self._ledger, self._journal)
        self._placements = Placements(self._models, self._ledger, self._parts, self._moves)
        self._siblings = Rebalancing(self._models, self._queued)

    def knows(self, model: str) -> bool:
        """Whether it was told of this model."""
        return model in self._models

    def add(self, demand: Demand) -> None:
        """One more model; nothing happens if it is known."""
        self._models.setdefault(demand.model, ModelState(demand))

    def put(self, demand: Demand, now: float, *, anew: bool) -> None:
        """A model asks for this from now on; one that is not known is added.

        With ``anew`` what is loaded for it is something else than it asks for now: it is unloaded once what
        runs on it, and what waits for it already, is done, and then loaded as it is asked for.
        """
        entry = self._models.get(demand.model)
        if entry is None:
            self.add(demand)
            return
        before, entry.leaves = entry.successor or entry.demand, False
        if (demand.pin and not before.pin) or (demand.preload and not before.preload):
            entry.wanted = entry.state not in _HERE
        entry.blocked_until = 0.0
        if anew and entry.devices:
            entry.successor = demand
            self._replace(entry, now)
        elif entry.successor is not None:
            entry.successor = demand
        elif anew:
            entry.successor = demand
            entry.succeed()
        else:
            self.footprints.asked(entry, demand)

    def remove(self, model: str, now: float) -> None:
        """A model is not served any more: it is forgotten once what runs on it and waits for it is done."""
        entry = self._models[model]
        entry.leaves, entry.successor, entry.wanted, entry.kept = True, None, False, False
        if entry.devices:
            self._replace(entry, now)
        self._forget(entry)

    def _replace(self, entry: ModelState, now: float) -> None:
        entry.replace()
        if entry.state is Residency.READY:
            self._moves.drain(entry, CHANGED, now)

    def _gone(self, entry: ModelState, what: EventKind, now: float, *, why: str = "") -> None:
        self._moves.gone(entry, what, now, why=why)
        self.footprints.unloaded(entry)
        if entry.successor is not None:
            entry.wanted = entry.wanted or entry.drained_for is None  # it was loaded, so it is again
        entry.succeed()
        self._forget(entry)

    def _forget(self, entry: ModelState) -> None:
        if entry.leaves and entry.state is Residency.COLD and not entry.queue:
            self._models.pop(entry.name, None)

    # -- facts -------------------------------------------------------------------------------------------

    def check_fits(self, model: str) -> None:
        """Raise ``NeverFits`` with the numbers if no choice of devices could ever hold the model."""
        self._ledger.check_fits(self._models[model])

    def queued(
        self, id: str, model: str, now: float, *, front: bool = False, whole: str | None = None
    ) -> None:
        """A prediction waits for its model; ``front`` is for one that already had its turn.

        With ``whole`` it is a part of that prediction, which holds a slot while it waits for it: parts go
        before the others.
        """
        entry = self._models[model]
        self._parts.relate(id, whole)
        if front:
            entry.queue.appendleft(id)
        else:
            entry.arrived(now)
            if whole is not None:
                entry.queue.insert(sum(each in self._parts for each in entry.queue), id)
            else:
                entry.queue.append(id)
        self._queued[id] = Waiting(model, now)
        if entry.waiting_since is None:
            entry.waiting_since = now

    def withdrawn(self, id: str) -> bool:
        """A waiting prediction is no longer wanted; False if it was not waiting."""
        waiting = self._queued.pop(id, None)
        if waiting is None:
            return False
        entry = self._models[waiting.model]
        entry.left(id)
        self._parts.over(id)
        self._forget(entry)
        return True

    def finished(self, id: str, model: str, now: float) -> None:
        """A started prediction let go of its slot."""
        entry = self._models.get(model)
        if entry is not None:
            first = not entry.ran_once
            entry.ran(id, now)
            if first:  # what was measured before counts from now on
                self.footprints.measured(model, 0, now)
        self._parts.over(id)

    def loaded(self, model: str, now: float, levels: Iterable[Level] = ()) -> None:
        """The load that was decided is done; ``levels`` are the sleeps that the host is able to."""
        entry = self._models[model]
        self._moves.loaded(entry, frozenset(levels), now)
        self._came_in(entry, now)

    def asleep(self, model: str, now: float) -> None:
        """It has fallen asleep as was decided, and holds no more than its residue."""
        self._moves.asleep(self._models[model], now)

    def woken(self, model: str, now: float) -> None:
        """It was woken as was decided, and is ready."""
        entry = self._models[model]
        self._moves.woken(entry, now)
        self._came_in(entry, now)

    def _came_in(self, entry: ModelState, now: float) -> None:
        """It is ready, but may not be wanted any more."""
        if entry.replaced:
            self._moves.drain(entry, CHANGED, now)
        elif entry.dismissed and not entry.queue:
            self._moves.drain(entry, entry.dismissed, now)
        entry.dismissed = ""

    def sleepless(self, model: str) -> None:
        """Its host could not sleep or wake as was decided: from now on it is unloaded instead."""
        self._models[model].sleeps = False

    def load_failed(self, model: str, now: float, why: str = "") -> list[str]:
        """The load that was decided failed; returns the ids that were waiting, now forgotten.

        What waited for an instance whose siblings serve waits for one of these.
        """
        entry = self._models[model]
        entry.failures += 1
        first, longest = policy.BACKOFF
        entry.blocked_until = now + min(first * 2 ** (entry.failures - 1), longest)
        entry.wanted = entry.pinned
        self._siblings.relieve(entry, now)
        ids = list(entry.queue)
        for id in ids:
            self.withdrawn(id)
        self._gone(entry, EventKind.FAILED, now, why=why)
        return ids

    def unloaded(self, model: str, now: float) -> None:
        """The unload that was decided is confirmed: the memory is free."""
        self._gone(self._models[model], EventKind.UNLOADED, now)

    def lost(self, model: str, now: float, why: str = "") -> None:
        """The host died; its memory is free and nothing runs on it. What waits keeps waiting."""
        entry = self._models[model]
        for id in entry.running:
            self._parts.over(id)
        entry.running.clear()
        entry.began.clear()
        entry.wanted = entry.wanted or entry.pinned
        self._gone(entry, EventKind.LOST, now, why=why)

    def used(self, device: str, memory: int, now: float) -> None:
        """So many bytes of the device are in use, by models or by others."""
        if self._ledger.used(device, memory):
            self._journal.add(now, EventKind.FOREIGN, "", (device,), self._ledger.foreign(device))

    def adopted(
        self,
        model: str,
        devices: tuple[str, ...],
        memory: int,
        now: float,
        *,
        levels: Iterable[Level] = (),
        level: Level | None = None,
    ) -> None:
        """A host of an earlier gateway is still there; with ``level`` it sleeps."""
        entry = self._models[model]
        self._moves.adopt(entry, devices, memory, frozenset(levels), now)
        entry.ran_once = True  # for all that is known
        if level is not None:
            self._moves.sleep(entry, level, "it has slept since before the gateway began", now)
            self._moves.asleep(entry, now)

    def resumed(self, id: str, model: str, whole: str | None = None) -> None:
        """A prediction still runs on an adopted host: it holds a slot."""
        self._models[model].running.add(id)
        self._parts.relate(id, whole)

    def stopping(self, model: str, now: float, why: str = "") -> None:
        """The host is being killed: nothing may start there, its memory is still taken."""
        self._moves.stop(self._models[model], why, now)

    def keep(self, model: str, *, loaded: bool) -> None:
        """Whether something beside the config wants it loaded at all times."""
        entry = self._models[model]
        entry.kept = loaded
        if loaded and entry.state in _AWAY:
            entry.wanted = True

    def pin(self, model: str, *, pinned: bool) -> None:
        """Someone wants it loaded at all times, or evictable, whatever its demand says."""
        entry = self._models[model]
        entry.by_hand = pinned
        if entry.state is Residency.COLD:
            entry.wanted = entry.pinned

    def wanted(self, model: str) -> None:
        """Load it when there is room, although nothing waits for it."""
        entry = self._models[model]
        entry.wanted = entry.state not in _HERE
        entry.blocked_until = 0.0
        entry.dismissed = ""

    def unwanted(self, model: str, reason: str, now: float) -> None:
        """Unload it once what runs on it is done; later predictions load it again.

        What is on its way in is unloaded once it is there, unless predictions wait for it.
        """
        entry = self._models[model]
        entry.wanted = False
        if entry.state is Residency.READY:
            self._moves.drain(entry, reason, now)
        elif entry.state is Residency.DRAINING:
            entry.drained_to_sleep = False
        elif entry.devices and entry.state is not Residency.UNLOADING:
            entry.dismissed = reason

    # -- questions ---------------------------------------------------------------------------------------

    @property
    def models(self) -> list[str]:
        """Every model that it was told of."""
        return list(self._models)

    @property
    def capacities(self) -> dict[str, int]:
        """Bytes by device."""
        return {device: capacity.memory for device, capacity in self._ledger.capacities.items()}

    def demand(self, model: str) -> Demand:
        """What the model asks of the machine."""
        return self._models[model].demand

    def has_room(self, model: str) -> bool:
        """Whether it could be loaded now without another one making room."""
        entry = self._models[model]
        if entry.state is Residency.ASLEEP:
            return all(
                self._placements.lacks(entry, device) <= self._ledger.free(device) for device in entry.devices
            )
        return len(self._ledger.roomy(entry.demand)) >= entry.demand.devices

    def residency(self, model: str) -> Residency:
        """Where the model is now."""
        entry = self._models.get(model)
        return Residency.COLD if entry is None else entry.state

    def replaced(self, model: str) -> bool:
        """Whether what is loaded under this name, if anything, is not what is asked for now."""
        entry = self._models.get(model)
        return entry is None or entry.replaced

    def share(self, instances: Sequence[str], used: int) -> None:
        """These are instances of one model; the first ``used`` of them may take what waits for any."""
        self._siblings.share(instances, used)

    def waits_for(self, id: str) -> str | None:
        """What it waits to begin on; None: it does not wait."""
        waiting = self._queued.get(id)
        return None if waiting is None else waiting.model

    def place(self, id: str) -> int | None:
        """Its place among the predictions that wait for its model, from 1; None: it does not wait."""
        waiting = self._queued.get(id)
        return None if waiting is None else self._models[waiting.model].queue.index(id) + 1

    def stays(self, id: str) -> bool:
        """Whether this prediction waits for what is loaded now, although that is to be replaced."""
        waiting = self._queued.get(id)
        return waiting is not None and id in self._models[waiting.model].staying

    def pinned(self, model: str) -> bool:
        """Whether it is never evicted."""
        return self._models[model].pinned

    def load_seconds(self, model: str) -> float | None:
        """What the model's last load took, if there was one."""
        return self._models[model].load_seconds

    def loading_for(self, model: str, now: float) -> float | None:
        """Since how many seconds the model is loaded or woken, if it is."""
        known = self._models[model]
        if known.state not in {Residency.LOADING, Residency.WAKING} or known.load_began is None:
            return None
        return now - known.load_began

    def depth(self, model: str | None = None) -> int:
        """How many predictions wait, for one model or for all."""
        return len(self._queued) if model is None else len(self._models[model].queue)

    def level(self, model: str) -> Level | None:
        """How deeply the model sleeps, if it does, or is on its way there or back."""
        return self._models[model].level

    def running(self, model: str) -> frozenset[str]:
        """The ids that hold a slot of this model."""
        entry = self._models.get(model)
        return frozenset() if entry is None else frozenset(entry.running)

    def devices(self, model: str) -> tuple[str, ...]:
        """The devices that hold, or are reserved for, this model."""
        return self._models[model].devices

    def reserved(self, device: str) -> dict[str, int]:
        """Bytes by model on one device."""
        return self._ledger.reserved(device)

    def free(self, device: str) -> int:
        """Bytes of the device that no model has reserved."""
        return self._ledger.free(device)

    def standings(self, now: float) -> list[QueueEntry]:
        """The models that wait to be loaded, the next one first."""
        waiting = [each for each in self._models.values() if each.wants_load(now)]
        return [
            QueueEntry(each.name, len(each.queue), each.waited(now), each.claim)
            for each in sorted(waiting, key=lambda each: self._placements.rank(each, now))
        ]

    def happenings(self, after: int = 0) -> list[Event]:
        """What was decided, and what came of it, after this number; the last of it, oldest first."""
        return self._journal.since(after)

    def waits(self, now: float) -> bool:
        """Whether a model waits to be loaded."""
        return any(each.wants_load(now) for each in self._models.values())

    def next_wakeup(self, now: float) -> float | None:
        """When ``decide`` may have something new to say although nothing happens; None for never."""
        times = []
        waits = False
        for entry in self._models.values():
            if entry.state in {Residency.COLD, Residency.ASLEEP} and (entry.queue or entry.wanted):
                waits = True
                times.append(max(entry.blocked_until, now + WATCH))
                if entry.queue and entry.waiting_since is not None:
                    times.append(entry.waiting_since + policy.patience(entry))
        for entry in self._models.values():
            limit = entry.demand.idle_unload_after
            may_go = entry.state in {Residency.READY, Residency.ASLEEP} and not entry.pinned
            if may_go and entry.idle and limit is not None and self._ledger.still(entry.devices):
                times.append(entry.last_used + limit)
                if entry.state is Residency.READY and entry.may_sleep:
                    times.append(entry.last_used + limit * policy.IDLE_SLEEP)
            if waits and may_go and entry.state is Residency.READY:
                times.append(entry.state_since + policy.min_residency(entry))
        if self._siblings.crowded():
            times.append(now + WATCH)
        due = [at for at in times if at > now]
        return min(due, default=None)

    # -- decisions ---------------------------------------------------------------------------------------

    def decide(self, now: float, *, parts_only: bool = False) -> list[Decision]:
        """What to do now. The scheduler takes it as done, so carry out every decision, in order.

        With ``parts_only`` nothing begins but what running predictions may wait for.
        """
        decisions: list[Decision] = []
        for entry in self._models.values():
            decisions += self._starts(entry, now, parts_only=parts_only)
        for entry in self._siblings.fill(now, self._parts, parts_only=parts_only):
            decisions += self._starts(entry, now, parts_only=parts_only)
        decisions += self._refusals()
        if parts_only:
            return decisions + self._placements.of_parts(now)
        decisions += self._departures(now)
        self._siblings.spread(now, self.has_room)
        decisions += self._placements.decide(now)
        return decisions

    def _starts(self, entry: ModelState, now: float, *, parts_only: bool) -> list[Decision]:
        starts: list[Decision] = []
        while entry.slots:
            id = entry.next(now)
            if id is None or (parts_only and id not in self._parts):
                break
            entry.queue.remove(id)
            entry.staying.discard(id)
            entry.quota -= entry.state is Residency.DRAINING
            queued_at = self._queued.pop(id).since
            entry.running.add(id)
            entry.began[id] = now
            starts.append(Start(id, entry.name, entry.loaded_since(queued_at)))
        if not entry.queue:
            entry.waiting_since = None
        return starts

    def _refusals(self) -> list[Decision]:
        """Parts that could never begin, because what they need is held by those that wait for them.

        The last of them goes first: that may be all that the others need.
        """
        refused: list[Decision] = []
        while any(id in self._queued for id in self._parts):
            capacities = list(self._ledger.capacities.values())
            hope = completable(self._models, self._parts.unfinished, capacities)
            stuck = [id for id in self._queued if id in self._parts and id not in hope]
            if not stuck:
                break
            id = stuck[-1]
            entry = self._models[self._queued[id].model]
            refused.append(Refuse(id, why_never(entry, self._models.values(), capacities, hope)))
            self.withdrawn(id)
        return refused

    def _departures(self, now: float) -> list[Decision]:
        """What is drained, what was sent away in its sleep, and what nobody wanted for long."""
        due: list[Decision] = []
        for entry in self._models.values():
            if not entry.devices or not self._ledger.still(entry.devices):
                continue
            if entry.state is Residency.DRAINING:
                if not entry.running and entry.next(now) is None:
                    waiter = self._models.get(entry.drained_for or "")
                    sleep = entry.drained_to_sleep
                    due += self._moves.evict(entry, entry.drain_reason, now, waiter, sleep=sleep)
            elif entry.state is Residency.ASLEEP and entry.dismissed:
                due.append(self._moves.unload(entry, entry.dismissed, now))
            elif entry.state in {Residency.READY, Residency.ASLEEP} and entry.idle and not entry.pinned:
                due += self._moves.idle(entry, now)
        return due

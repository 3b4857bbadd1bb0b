"""The queues, the residency of every model and the ledger of every device: pure decisions.

The engine tells the scheduler what happened (``queued``, ``finished``, ``loaded``, ...) and asks ``decide``
what to do next; nothing here does I/O, reads a clock or awaits. Times are seconds on any one monotonic clock,
passed in by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.facts import Capacity, Decision, Demand, Load, Refuse, Residency, Start, Unload
from appliance.scheduler.journal import Happening, Journal, What
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import Model
from appliance.scheduler.parts import Parts
from appliance.scheduler.plan import Plan, plan
from appliance.scheduler.progress import free_at_last, hopeful

#: Seconds after which what waits is looked at again although nothing happened.
WATCH: Final = 1.0


class Standing(NamedTuple):
    """How a model stands that waits to be loaded."""

    model: str
    predictions: int  # that wait for it
    waited: float  # seconds
    claim: tuple[str, ...]  # devices that are being cleared for it


class _Waiting(NamedTuple):
    model: str
    since: float


class Scheduler:
    """One per engine."""

    def __init__(self, capacities: Sequence[Capacity], demands: Iterable[Demand]) -> None:
        """At least one device; model names are unique."""
        self._ledger = Ledger(capacities)
        self._models = {demand.model: Model(demand) for demand in demands}
        self._queued: dict[str, _Waiting] = {}  # by prediction id
        self._parts = Parts()
        self._journal = Journal()

    def knows(self, model: str) -> bool:
        """Whether it was told of this model."""
        return model in self._models

    def add(self, demand: Demand) -> None:
        """One more model; nothing happens if it is known."""
        self._models.setdefault(demand.model, Model(demand))

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
        self._queued[id] = _Waiting(model, now)
        if entry.waiting_since is None:
            entry.waiting_since = now

    def withdrawn(self, id: str) -> bool:
        """A waiting prediction is no longer wanted; False if it was not waiting."""
        waiting = self._queued.pop(id, None)
        if waiting is None:
            return False
        entry = self._models[waiting.model]
        entry.queue.remove(id)
        if not entry.queue:
            entry.waiting_since = None
            entry.claim = ()
        self._parts.over(id)
        return True

    def finished(self, id: str, model: str, now: float) -> None:
        """A started prediction let go of its slot."""
        self._models[model].ran(id, now)
        self._parts.over(id)

    def loaded(self, model: str, now: float) -> None:
        """The load that was decided is done."""
        entry = self._models[model]
        entry.load_seconds = entry.become(Residency.READY, now)
        entry.ready_since = entry.last_used = now
        entry.failures = 0
        entry.wanted = entry.pinned
        self._journal.add(now, What.READY, model, entry.devices, entry.reserved, seconds=entry.load_seconds)

    def load_failed(self, model: str, now: float, why: str = "") -> list[str]:
        """The load that was decided failed; returns the ids that were waiting, now forgotten."""
        entry = self._models[model]
        entry.failures += 1
        first, longest = policy.BACKOFF
        entry.blocked_until = now + min(first * 2 ** (entry.failures - 1), longest)
        entry.wanted = entry.pinned
        ids = list(entry.queue)
        for id in ids:
            self.withdrawn(id)
        seconds = now - entry.state_since
        self._journal.add(now, What.FAILED, model, entry.devices, entry.reserved, why=why, seconds=seconds)
        self._release(entry, now)
        return ids

    def unloaded(self, model: str, now: float) -> None:
        """The unload that was decided is confirmed: the memory is free."""
        entry = self._models[model]
        self._journal.add(
            now, What.UNLOADED, model, entry.devices, entry.reserved, seconds=now - entry.state_since
        )
        self._release(entry, now)

    def lost(self, model: str, now: float, why: str = "") -> None:
        """The host died; its memory is free and nothing runs on it. What waits keeps waiting."""
        entry = self._models[model]
        for id in entry.running:
            self._parts.over(id)
        entry.running.clear()
        entry.began.clear()
        entry.wanted = entry.wanted or entry.pinned
        self._journal.add(now, What.LOST, model, entry.devices, entry.reserved, why=why)
        self._release(entry, now)

    def adopted(self, model: str, devices: tuple[str, ...], memory: int, now: float) -> None:
        """A host of an earlier gateway is still there."""
        entry = self._models[model]
        entry.become(Residency.READY, now)
        self._ledger.reserve(entry, devices, memory)
        entry.ready_since = entry.last_used = now
        entry.wanted = False
        self._journal.add(now, What.ADOPTED, model, devices, memory)

    def resumed(self, id: str, model: str, whole: str | None = None) -> None:
        """A prediction still runs on an adopted host: it holds a slot."""
        self._models[model].running.add(id)
        self._parts.relate(id, whole)

    def stopping(self, model: str, now: float, why: str = "") -> None:
        """The host is being killed: nothing may start there, its memory is still taken."""
        entry = self._models[model]
        self._journal.add(
            now, What.UNLOAD, model, entry.devices, entry.reserved, why=why, seconds=now - entry.ready_since
        )
        entry.become(Residency.UNLOADING, now)

    def keep(self, model: str, *, loaded: bool) -> None:
        """Whether something beside the config wants it loaded at all times."""
        entry = self._models[model]
        entry.kept = loaded
        if loaded and entry.state is Residency.COLD:
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
        entry.wanted = entry.state not in {Residency.READY, Residency.LOADING}
        entry.blocked_until = 0.0

    def unwanted(self, model: str, reason: str, now: float) -> None:
        """Unload it once what runs on it is done; later predictions load it again."""
        entry = self._models[model]
        entry.wanted = False
        if entry.state is Residency.READY:
            self._drain(entry, reason, now)

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
        demand = self._models[model].demand
        return len(self._ledger.roomy(demand)) >= demand.devices

    def residency(self, model: str) -> Residency:
        """Where the model is now."""
        return self._models[model].state

    def pinned(self, model: str) -> bool:
        """Whether it is never evicted."""
        return self._models[model].pinned

    def load_seconds(self, model: str) -> float | None:
        """What the model's last load took, if there was one."""
        return self._models[model].load_seconds

    def depth(self, model: str | None = None) -> int:
        """How many predictions wait, for one model or for all."""
        return len(self._queued) if model is None else len(self._models[model].queue)

    def running(self, model: str) -> frozenset[str]:
        """The ids that hold a slot of this model."""
        return frozenset(self._models[model].running)

    def devices(self, model: str) -> tuple[str, ...]:
        """The devices that hold, or are reserved for, this model."""
        return self._models[model].devices

    def reserved(self, device: str) -> dict[str, int]:
        """Bytes by model on one device."""
        return self._ledger.reserved(device)

    def free(self, device: str) -> int:
        """Bytes of the device that no model has reserved."""
        return self._ledger.free(device)

    def standings(self, now: float) -> list[Standing]:
        """The models that wait to be loaded, the next one first."""
        waiting = [each for each in self._models.values() if each.wants_load(now)]
        return [
            Standing(each.name, len(each.queue), each.waited(now), each.claim)
            for each in sorted(waiting, key=lambda each: self._rank(each, now))
        ]

    def happenings(self, after: int = 0) -> list[Happening]:
        """What was decided, and what came of it, after this number; the last of it, oldest first."""
        return self._journal.since(after)

    def next_wakeup(self, now: float) -> float | None:
        """When ``decide`` may have something new to say although nothing happens; None for never."""
        times = []
        waits = False
        for entry in self._models.values():
            if entry.state is Residency.COLD and (entry.queue or entry.wanted):
                waits = True
                times.append(max(entry.blocked_until, now + WATCH))
                if entry.queue and entry.waiting_since is not None:
                    times.append(entry.waiting_since + policy.patience(entry))
        for entry in self._models.values():
            if entry.state is Residency.READY and not entry.pinned:
                limit = entry.demand.idle_unload_after
                if entry.idle and limit is not None and self._ledger.still(entry.devices):
                    times.append(entry.last_used + limit)
                if waits:
                    times.append(entry.state_since + policy.min_residency(entry))
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
        decisions += self._refusals()
        if parts_only:
            return decisions + self._loads_of_parts(now)
        decisions += self._unloads(now)
        decisions += self._placements(now)
        return decisions

    def _starts(self, entry: Model, now: float, *, parts_only: bool) -> list[Decision]:
        starts: list[Decision] = []
        drains = entry.state is Residency.DRAINING and now < entry.quota_until
        if entry.state is not Residency.READY and not drains:
            return starts
        while entry.queue and len(entry.running) < entry.demand.concurrency:
            if (parts_only and entry.queue[0] not in self._parts) or (drains and entry.quota == 0):
                break
            id = entry.queue.popleft()
            entry.quota -= drains
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
            hope = self._hope()
            stuck = [id for id in self._queued if id in self._parts and id not in hope]
            if not stuck:
                break
            id = stuck[-1]
            refused.append(Refuse(id, self._why_never(self._models[self._queued[id].model], hope)))
            self.withdrawn(id)
        return refused

    def _hope(self, without: str | None = None) -> set[str]:
        capacities = list(self._ledger.capacities.values())
        return hopeful(self._models, self._parts.unfinished, capacities, without=without)

    def _why_never(self, entry: Model, hope: set[str]) -> str:
        name, demand = entry.name, entry.demand
        if entry.state in {Residency.READY, Residency.LOADING}:
            return (
                f"this part could never begin: model {name} runs {demand.concurrency} at a time, and those "
                "that it runs wait for their own parts"
            )
        capacities = list(self._ledger.capacities.values())
        waiting = sorted(n for n, each in self._models.items() if each.devices and not each.running <= hope)
        free = free_at_last(entry, self._models.values(), capacities, hope)
        sizes = ", ".join(f"{device} has {left:,}" for device, left in free.items())
        needs = max(demand.bytes_on(capacity) for capacity in capacities)
        return (
            f"this part could never begin: model {name} needs {needs:,} bytes on {demand.devices} device(s), "
            f"but beside {', '.join(waiting)}, which waits for its parts, {sizes} bytes; "
            "lower their memory in models.yaml"
        )

    def _unloads(self, now: float) -> list[Decision]:
        """Those that are drained, and those that nobody wanted for long."""
        due: list[Decision] = []
        for entry in self._models.values():
            if not entry.devices or not self._ledger.still(entry.devices):
                continue
            limit = entry.demand.idle_unload_after
            if entry.state is Residency.DRAINING:
                takes_more = entry.queue and entry.quota > 0 and now < entry.quota_until
                if not entry.running and not takes_more:
                    due.append(self._unload(entry, entry.drain_reason, now, entry.drained_for))
            elif (
                entry.state is Residency.READY
                and entry.idle
                and not entry.pinned
                and limit is not None
                and now >= entry.last_used + limit
            ):
                due.append(self._unload(entry, f"idle for {limit:g} s", now))
        return due

    def _rank(self, entry: Model, now: float) -> tuple[bool, float]:
        return not self._has_part(entry), -policy.urgency(entry, now)

    def _has_part(self, entry: Model) -> bool:
        return bool(entry.queue) and entry.queue[0] in self._parts

    def _placements(self, now: float) -> list[Decision]:
        """Load what waits, the most urgent first; the others may use only what the earlier ones leave.

        Parts go first: what waits for them holds memory. Those that fit at once take it although it may be
        promised, since the promise may be one that their whole has to keep.
        """
        decisions = self._loads_of_parts(now)
        waiting = [entry for entry in self._models.values() if entry.wants_load(now)]
        waiting.sort(key=lambda entry: self._rank(entry, now))
        promised: dict[str, int] = dict.fromkeys(self._ledger.capacities, 0)
        for entry in waiting:
            # What runs where a part of it waits for this model does not end before this one is loaded.
            ending = self._hope(without=entry.name) if self._parts else None
            chosen = plan(entry, self._ledger, promised, now, patient=True, ending=ending)
            if chosen is None and entry.queue and entry.waited(now) >= policy.patience(entry):
                chosen = self._claim(entry, promised, now, ending)
            if chosen is None:
                continue
            if all(self._open(device, entry, promised) for device in chosen.devices):
                decisions.append(self._load(entry, chosen.devices, now))
                continue
            for device in chosen.devices:
                promised[device] += entry.demand.bytes_on(self._ledger.capacities[device])
            decisions += self._make_room(chosen, entry, now)
        return decisions

    def _claim(
        self, entry: Model, promised: dict[str, int], now: float, ending: set[str] | None
    ) -> Plan | None:
        """The devices that are cleared for a model that waited long: once chosen they stay the same."""
        chosen = None
        if entry.claim:
            chosen = plan(entry, self._ledger, promised, now, patient=False, ending=ending, among=entry.claim)
        if chosen is None:
            chosen = plan(entry, self._ledger, promised, now, patient=False, ending=ending)
        entry.claim = () if chosen is None else chosen.devices
        return chosen

    def _make_room(self, chosen: Plan, waiter: Model, now: float) -> list[Decision]:
        """Unload the victims that are idle, and drain the others, as soon as each has had its time."""
        unloads: list[Decision] = []
        for victim in chosen.victims:
            if not policy.had_its_time(victim, now):
                continue
            if not victim.idle:
                reason = f"makes room for {waiter.name}, which waited {waiter.waited(now):.0f} s"
                self._drain(victim, reason, now, waiter.name)
            elif self._ledger.still(victim.devices):
                unloads.append(self._unload(victim, f"makes room for {waiter.name}", now, waiter.name))
        return unloads

    def _loads_of_parts(self, now: float) -> list[Decision]:
        """Load what parts wait for, as far as there is room."""
        loads: list[Decision] = []
        nothing = dict.fromkeys(self._ledger.capacities, 0)
        for entry in self._models.values():
            if self._has_part(entry) and entry.wants_load(now):
                roomy = sorted(device for device in nothing if self._open(device, entry, nothing))
                if len(roomy) >= entry.demand.devices:
                    loads.append(self._load(entry, tuple(roomy[: entry.demand.devices]), now))
        return loads

    def _open(self, device: str, waiter: Model, promised: dict[str, int]) -> bool:
        """Whether the waiter may load there now: the bytes are free, and nothing else loads or unloads.

        Two at a time would mis-measure each other's memory.
        """
        need = waiter.demand.bytes_on(self._ledger.capacities[device]) + promised[device]
        busy = self._ledger.loading(device) is not None or self._ledger.unloading(device)
        return self._ledger.free(device) >= need and not busy

    def _load(self, entry: Model, devices: tuple[str, ...], now: float) -> Load:
        entry.become(Residency.LOADING, now)
        entry.load_began = now
        entry.claim = ()
        memory = self._ledger.need(entry.demand, devices)
        self._ledger.reserve(entry, devices, memory)
        why = "pinned" if entry.pinned else "asked for"
        if entry.queue:
            why = f"{len(entry.queue)} wait for it, for {entry.waited(now):.1f} s"
        self._journal.add(now, What.LOAD, entry.name, devices, memory, why=why)
        return Load(entry.name, devices, memory)

    def _drain(self, entry: Model, reason: str, now: float, on_behalf_of: str | None = None) -> None:
        """Let it finish what runs, and, if another model wants the room, what waits, for a bounded time."""
        quota = 0 if on_behalf_of is None else len(entry.queue)
        entry.quota, entry.quota_until = quota, now + policy.quantum(entry)
        entry.drain_reason, entry.drained_for = reason, on_behalf_of
        entry.become(Residency.DRAINING, now)
        if entry.queue:
            entry.waiting_since = now
        why = f"{reason}; {len(entry.running)} run and {quota} may begin"
        self._journal.add(
            now, What.DRAIN, entry.name, entry.devices, entry.reserved, why=why, on_behalf_of=on_behalf_of
        )

    def _unload(self, entry: Model, reason: str, now: float, on_behalf_of: str | None = None) -> Unload:
        entry.become(Residency.UNLOADING, now)
        self._journal.add(
            now,
            What.UNLOAD,
            entry.name,
            entry.devices,
            entry.reserved,
            why=reason,
            on_behalf_of=on_behalf_of,
            seconds=now - entry.ready_since,
        )
        return Unload(entry.name, reason)

    def _release(self, entry: Model, now: float) -> None:
        entry.become(Residency.COLD, now)
        self._ledger.release(entry)

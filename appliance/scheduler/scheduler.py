"""Which prediction runs, which model is loaded where, and which makes room: pure decisions.

The engine tells the scheduler what happened (``queued``, ``finished``, ``loaded``, ...) and asks ``decide``
what to do next; nothing here does I/O, reads a clock or awaits. Memory is kept in bytes per device in a
ledger of our own: a reservation is made when a load is decided and let go only when the unload is confirmed.
Times are seconds on any one monotonic clock, passed in by the caller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from appliance.errors import NeverFits
from appliance.scheduler.facts import Capacity, Decision, Demand, Load, Refuse, Residency, Start, Unload
from appliance.scheduler.progress import free_at_last, hopeful

#: A model that was just loaded is not evicted for this long, so that two models do not chase each other.
MIN_RESIDENCY: Final = 10.0  # seconds
#: How long a model waits for others to fall idle before a busy one is drained for it.
PATIENCE: Final = 20.0  # seconds
#: After a failed load the next one waits this long, doubling up to the second number.
BACKOFF: Final = (10.0, 300.0)  # seconds


class _Model:
    """Everything known of one model; only the scheduler writes it."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.state = Residency.COLD
        self.queue: deque[str] = deque()
        self.running: set[str] = set()
        self.devices: tuple[str, ...] = ()
        self.reserved = 0  # bytes on each of its devices
        self.wanted = demand.pin or demand.preload  # load it although nothing is queued
        self.waiting_since: float | None = None
        self.ready_since = 0.0
        self.last_used = 0.0
        self.kept = False  # as if it was pinned
        self.failures = 0
        self.blocked_until = 0.0
        self.drain_reason = ""

    def since(self, now: float) -> float:
        return now if self.waiting_since is None else self.waiting_since

    @property
    def waiting(self) -> deque[str]:
        return self.queue

    @property
    def pinned(self) -> bool:
        return self.demand.pin or self.kept

    @property
    def idle(self) -> bool:
        return not self.queue and not self.running

    def evictable(self, now: float) -> bool:
        return self.state is Residency.READY and not self.pinned and now - self.ready_since >= MIN_RESIDENCY

    def wants_load(self, now: float) -> bool:
        return (
            self.state is Residency.COLD and (bool(self.queue) or self.wanted) and now >= self.blocked_until
        )


class Scheduler:
    """The queues, the residency of every model and the ledger of every device."""

    def __init__(self, capacities: Sequence[Capacity], demands: Iterable[Demand]) -> None:
        """At least one device; model names are unique."""
        self._capacities = {capacity.device: capacity for capacity in capacities}
        self._models = {demand.model: _Model(demand) for demand in demands}
        self._queued: dict[str, str] = {}  # prediction id -> model
        self._whole: dict[str, str] = {}  # unfinished part -> the prediction that it is a part of
        self._parts: dict[str, set[str]] = {}  # the same the other way round

    def knows(self, model: str) -> bool:
        """Whether it was told of this model."""
        return model in self._models

    def add(self, demand: Demand) -> None:
        """One more model; nothing happens if it is known."""
        self._models.setdefault(demand.model, _Model(demand))

    # -- facts -------------------------------------------------------------------------------------------

    def check_fits(self, model: str) -> None:
        """Raise ``NeverFits`` with the numbers if no choice of devices could ever hold the model."""
        demand = self._models[model].demand
        roomy = [c for c in self._capacities.values() if demand.bytes_on(c) <= c.memory]
        if len(roomy) >= demand.devices:
            return
        sizes = ", ".join(f"{c.device} has {c.memory:,}" for c in self._capacities.values())
        needs = f"{demand.memory:,} bytes" if demand.memory is not None else f"a share of {demand.share}"
        raise NeverFits(
            f"model {model} needs {needs} on {demand.devices} device(s), but {sizes} bytes; "
            "lower its memory in models.yaml or choose a smaller model"
        )

    def queued(
        self, id: str, model: str, now: float, *, front: bool = False, whole: str | None = None
    ) -> None:
        """A prediction waits for its model; ``front`` is for one that already had its turn.

        With ``whole`` it is a part of that prediction, which holds a slot while it waits for it: parts go
        before the others.
        """
        entry = self._models[model]
        self._relate(id, whole)
        if front:
            entry.queue.appendleft(id)
        elif whole is not None:
            entry.queue.insert(sum(each in self._whole for each in entry.queue), id)
        else:
            entry.queue.append(id)
        self._queued[id] = model
        if entry.waiting_since is None:
            entry.waiting_since = now

    def withdrawn(self, id: str) -> bool:
        """A waiting prediction is no longer wanted; False if it was not waiting."""
        model = self._queued.pop(id, None)
        if model is None:
            return False
        self._models[model].queue.remove(id)
        self._over(id)
        return True

    def _relate(self, id: str, whole: str | None) -> None:
        if whole is not None:
            self._whole[id] = whole
            self._parts.setdefault(whole, set()).add(id)

    def _over(self, id: str) -> None:
        """``id`` is over, or begins anew: nobody waits for it, and it waits for nobody."""
        whole = self._whole.pop(id, None)
        if whole is not None:
            self._parts[whole].discard(id)
            if not self._parts[whole]:
                del self._parts[whole]
        for part in self._parts.pop(id, ()):
            del self._whole[part]

    def finished(self, id: str, model: str, now: float) -> None:
        """A started prediction let go of its slot."""
        entry = self._models[model]
        entry.running.discard(id)
        entry.last_used = now
        self._over(id)

    def loaded(self, model: str, now: float) -> None:
        """The load that was decided is done."""
        entry = self._models[model]
        entry.state = Residency.READY
        entry.ready_since = entry.last_used = now
        entry.failures = 0
        entry.wanted = entry.pinned

    def load_failed(self, model: str, now: float) -> list[str]:
        """The load that was decided failed; returns the ids that were waiting, now forgotten."""
        entry = self._models[model]
        entry.failures += 1
        entry.blocked_until = now + min(BACKOFF[0] * 2 ** (entry.failures - 1), BACKOFF[1])
        entry.wanted = entry.pinned
        ids = list(entry.queue)
        entry.queue.clear()
        for id in ids:
            del self._queued[id]
            self._over(id)
        self._release(entry)
        return ids

    def unloaded(self, model: str) -> None:
        """The unload that was decided is confirmed: the memory is free."""
        self._release(self._models[model])

    def lost(self, model: str) -> None:
        """The host died; its memory is free and nothing runs on it. What waits keeps waiting."""
        entry = self._models[model]
        for id in entry.running:
            self._over(id)
        entry.running.clear()
        entry.wanted = entry.wanted or entry.pinned
        self._release(entry)

    def adopted(self, model: str, devices: tuple[str, ...], memory: int, now: float) -> None:
        """A host of an earlier gateway is still there."""
        entry = self._models[model]
        entry.state = Residency.READY
        entry.devices = devices
        entry.reserved = memory
        entry.ready_since = entry.last_used = now
        entry.wanted = False

    def resumed(self, id: str, model: str, whole: str | None = None) -> None:
        """A prediction still runs on an adopted host: it holds a slot."""
        self._models[model].running.add(id)
        self._relate(id, whole)

    def stopping(self, model: str) -> None:
        """The host is being killed: nothing may start there, its memory is still taken."""
        self._models[model].state = Residency.UNLOADING

    def keep(self, model: str, *, loaded: bool) -> None:
        """Whether something beside the config wants it loaded at all times."""
        entry = self._models[model]
        entry.kept = loaded
        if loaded and entry.state is Residency.COLD:
            entry.wanted = True

    def wanted(self, model: str) -> None:
        """Load it when there is room, although nothing waits for it."""
        entry = self._models[model]
        entry.wanted = entry.state not in {Residency.READY, Residency.LOADING}
        entry.blocked_until = 0.0

    def unwanted(self, model: str, reason: str) -> None:
        """Unload it once what runs on it is done; later predictions load it again."""
        entry = self._models[model]
        entry.wanted = False
        if entry.state is Residency.READY:
            entry.state = Residency.DRAINING
            entry.drain_reason = reason

    # -- questions ---------------------------------------------------------------------------------------

    def demand(self, model: str) -> Demand:
        """What the model asks of the machine."""
        return self._models[model].demand

    def has_room(self, model: str) -> bool:
        """Whether it could be loaded now without another one making room."""
        demand = self._models[model].demand
        roomy = [c for c in self._capacities.values() if self.free(c.device) >= demand.bytes_on(c)]
        return len(roomy) >= demand.devices

    def residency(self, model: str) -> Residency:
        """Where the model is now."""
        return self._models[model].state

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
        return {name: entry.reserved for name, entry in self._models.items() if device in entry.devices}

    def free(self, device: str) -> int:
        """Bytes of the device that no model has reserved."""
        return self._capacities[device].memory - sum(self.reserved(device).values())

    def next_wakeup(self, now: float) -> float | None:
        """When ``decide`` may have something new to say although nothing happens; None for never."""
        times = []
        for entry in self._models.values():
            limit = entry.demand.idle_unload_after
            if entry.state is Residency.READY and entry.idle and limit is not None and not entry.pinned:
                times.append(entry.last_used + limit)
            if entry.state is Residency.COLD and (entry.queue or entry.wanted):
                times.append(max(entry.blocked_until, now + 1.0))
        return min(times, default=None)

    # -- decisions ---------------------------------------------------------------------------------------

    def decide(self, now: float, *, parts_only: bool = False) -> list[Decision]:
        """What to do now. The scheduler takes it as done, so carry out every decision, in order.

        With ``parts_only`` nothing begins but what running predictions may wait for.
        """
        decisions: list[Decision] = []
        for name, entry in self._models.items():
            decisions += self._starts(name, entry, parts_only=parts_only)
        decisions += self._refusals()
        if parts_only:
            return decisions + self._loads_of_parts(now)
        decisions += self._idle_unloads(now)
        decisions += self._placements(now)
        for name, entry in self._models.items():
            if entry.state is Residency.DRAINING and not entry.running:
                decisions.append(self._unload(name, entry.drain_reason))
        return decisions

    def _starts(self, name: str, entry: _Model, *, parts_only: bool) -> list[Decision]:
        starts: list[Decision] = []
        if entry.state is not Residency.READY:
            return starts
        while entry.queue and len(entry.running) < entry.demand.concurrency:
            if parts_only and entry.queue[0] not in self._whole:
                break
            id = entry.queue.popleft()
            del self._queued[id]
            entry.running.add(id)
            starts.append(Start(id, name))
        if not entry.queue:
            entry.waiting_since = None
        return starts

    def _refusals(self) -> list[Decision]:
        """Parts that could never begin, because what they need is held by those that wait for them.

        The last of them goes first: that may be all that the others need.
        """
        refused: list[Decision] = []
        while any(id in self._queued for id in self._whole):
            hope = self._hope()
            stuck = [id for id in self._queued if id in self._whole and id not in hope]
            if not stuck:
                break
            id = stuck[-1]
            refused.append(Refuse(id, self._why_never(self._models[self._queued[id]], hope)))
            self.withdrawn(id)
        return refused

    def _hope(self, without: str | None = None) -> set[str]:
        return hopeful(self._models, self._parts, list(self._capacities.values()), without=without)

    def _why_never(self, entry: _Model, hope: set[str]) -> str:
        name, demand = entry.demand.model, entry.demand
        if entry.state in {Residency.READY, Residency.LOADING}:
            return (
                f"this part could never begin: model {name} runs {demand.concurrency} at a time, and those "
                "that it runs wait for their own parts"
            )
        waiting = sorted(n for n, each in self._models.items() if each.devices and not each.running <= hope)
        free = free_at_last(entry, self._models.values(), list(self._capacities.values()), hope)
        sizes = ", ".join(f"{device} has {left:,}" for device, left in free.items())
        needs = max(demand.bytes_on(capacity) for capacity in self._capacities.values())
        return (
            f"this part could never begin: model {name} needs {needs:,} bytes on {demand.devices} device(s), "
            f"but beside {', '.join(waiting)}, which waits for its parts, {sizes} bytes; "
            "lower their memory in models.yaml"
        )

    def _idle_unloads(self, now: float) -> list[Decision]:
        due: list[Decision] = []
        for name, entry in self._models.items():
            limit = entry.demand.idle_unload_after
            if (
                entry.state is Residency.READY
                and entry.idle
                and not entry.pinned
                and limit is not None
                and now >= entry.last_used + limit
            ):
                due.append(self._unload(name, f"idle for {limit:g} s"))
        return due

    def _placements(self, now: float) -> list[Decision]:
        """Load what waits, longest wait first; the others may use only what the earlier ones leave.

        Parts go first: what waits for them holds memory. Those that fit at once take it although it may be
        promised, since the promise may be one that their whole has to keep.
        """
        decisions = self._loads_of_parts(now)
        waiting = [(name, entry) for name, entry in self._models.items() if entry.wants_load(now)]
        waiting.sort(key=lambda item: (not self._has_part(item[1]), item[1].since(now)))
        promised: dict[str, int] = dict.fromkeys(self._capacities, 0)
        for name, entry in waiting:
            plan = self._plan(entry, now, promised)
            if plan is None:
                continue
            devices, victims = plan
            if all(self._open(device, entry, promised) for device in devices):
                decisions.append(self._load(name, devices))
                continue
            for device in devices:
                promised[device] += entry.demand.bytes_on(self._capacities[device])
            decisions += [self._unload(victim, f"makes room for {name}") for victim in victims]
        return decisions

    def _has_part(self, entry: _Model) -> bool:
        return bool(entry.queue) and entry.queue[0] in self._whole

    def _loads_of_parts(self, now: float) -> list[Decision]:
        """Load what parts wait for, as far as there is room."""
        loads: list[Decision] = []
        for name, entry in self._models.items():
            if self._has_part(entry) and entry.wants_load(now):
                nothing = dict.fromkeys(self._capacities, 0)
                roomy = sorted(device for device in self._capacities if self._open(device, entry, nothing))
                if len(roomy) >= entry.demand.devices:
                    loads.append(self._load(name, tuple(roomy[: entry.demand.devices])))
        return loads

    def _plan(
        self, entry: _Model, now: float, promised: dict[str, int]
    ) -> tuple[tuple[str, ...], list[str]] | None:
        """The devices with the fewest evictions and whom to evict; None while there is no way."""
        options = []
        # What runs where a part of it waits for this model does not end before this one is loaded.
        ending = self._hope(without=entry.demand.model) if self._parts else None
        for device, capacity in self._capacities.items():
            need = entry.demand.bytes_on(capacity)
            missing = need + promised[device] - self.free(device)
            victims = self._victims(device, missing, entry, ending, now)
            if need <= capacity.memory and victims is not None:
                options.append((len(victims), -self.free(device), device, victims))
        if len(options) < entry.demand.devices:
            return None
        chosen = sorted(options)[: entry.demand.devices]
        evicted = sorted({victim for _, _, _, victims in chosen for victim in victims})
        return tuple(sorted(device for _, _, device, _ in chosen)), evicted

    def _victims(
        self, device: str, missing: int, waiter: _Model, ending: set[str] | None, now: float
    ) -> list[str] | None:
        """Models to unload for ``missing`` bytes, least recently used first; None if that is not possible.

        Bytes that are on their way back already count, without naming a victim. When the waiter has lost
        its patience a busy model is told to drain, which frees its bytes later. ``ending`` has what ends
        without the waiter; None for all.
        """
        if missing <= 0:
            return []
        here = [
            (name, entry)
            for name, entry in self._models.items()
            if device in entry.devices
            and (ending is None or entry.state is Residency.UNLOADING or entry.running <= ending)
        ]
        coming = sum(
            entry.reserved for _, entry in here if entry.state in {Residency.UNLOADING, Residency.DRAINING}
        )
        missing -= coming
        victims = []
        evictable = [
            (entry.last_used, name, entry) for name, entry in here if entry.idle and entry.evictable(now)
        ]
        for _, name, entry in sorted(evictable, key=lambda item: item[:2]):
            if missing <= 0:
                break
            victims.append(name)
            missing -= entry.reserved
        if missing > 0:
            self._drain(here, missing, waiter, now)
            return None
        return victims

    def _drain(self, here: list[tuple[str, _Model]], missing: int, waiter: _Model, now: float) -> None:
        since = waiter.waiting_since
        if since is None or now - since < PATIENCE:
            return
        busy = [(entry.last_used, name, entry) for name, entry in here if entry.evictable(now)]
        if sum(entry.reserved for _, _, entry in busy) < missing:
            return
        for _, _, entry in sorted(busy, key=lambda item: item[:2]):
            if missing <= 0:
                return
            entry.state = Residency.DRAINING
            entry.drain_reason = f"makes room for {waiter.demand.model}, which waited {now - since:.0f} s"
            if entry.queue:
                entry.waiting_since = now
            missing -= entry.reserved

    def _open(self, device: str, waiter: _Model, promised: dict[str, int]) -> bool:
        """Whether the waiter may load there now: the bytes are free, and nothing else loads or unloads.

        Two at a time would mis-measure each other's memory.
        """
        need = waiter.demand.bytes_on(self._capacities[device]) + promised[device]
        return self.free(device) >= need and not any(
            device in entry.devices and entry.state in {Residency.LOADING, Residency.UNLOADING}
            for entry in self._models.values()
        )

    def _load(self, name: str, devices: tuple[str, ...]) -> Load:
        entry = self._models[name]
        entry.state = Residency.LOADING
        entry.devices = devices
        entry.reserved = max(entry.demand.bytes_on(self._capacities[device]) for device in devices)
        return Load(name, devices, entry.reserved)

    def _unload(self, name: str, reason: str) -> Unload:
        self._models[name].state = Residency.UNLOADING
        return Unload(name, reason)

    def _release(self, entry: _Model) -> None:
        entry.state = Residency.COLD
        entry.devices = ()
        entry.reserved = 0

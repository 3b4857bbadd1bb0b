"""What others do, in short: each policy as its system has it, without its bugs, and in its best layout.

Each gets what its operator would have to know (the sizes, and for static groups the popularity of every
model), serves a ready model at once, shares a load among all who wait, and never exceeds the memory. None
of them counts failures, crashes or restarts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from appliance.scheduler import Decision, Load, Residency, SleepLevel, Start, Unload
from scripts.simulation.machine import Policy
from scripts.simulation.workload import SimulatedModel, Workload


class _Server:
    """States, running predictions and bytes, which all of them keep."""

    def __init__(self, workload: Workload) -> None:
        self.models = {model.name: model for model in workload.models}
        self.free = dict(workload.devices)
        self.state = dict.fromkeys(self.models, Residency.COLD)
        self.running = dict.fromkeys(self.models, 0)
        self.used = dict.fromkeys(self.models, -1.0)
        self.place: dict[str, str] = {}

    def finished(self, id: str, model: str, now: float) -> None:
        """A slot is free."""
        self.running[model] -= 1
        self.used[model] = now

    def loaded(self, model: str, now: float, levels: Iterable[SleepLevel]) -> None:
        """It is ready."""
        self.state[model] = Residency.READY
        self.used[model] = now

    def unloaded(self, model: str, now: float) -> None:
        """Its memory is free."""
        self.state[model] = Residency.COLD
        self.free[self.place.pop(model)] += self.models[model].memory

    def next_wakeup(self, now: float) -> float | None:
        """Nothing happens by time alone."""
        return None

    def here(self, device: str) -> list[str]:
        """What is on the device."""
        return [model for model, place in self.place.items() if place == device]

    def quiet(self, device: str) -> bool:
        """Whether nothing loads or unloads there."""
        return all(self.state[model] in {Residency.READY, Residency.DRAINING} for model in self.here(device))

    def start(self, id: str, model: str) -> Start:
        """Take a slot."""
        self.running[model] += 1
        return Start(id, model, (self.place[model],))

    def has_slot(self, model: str) -> bool:
        """Whether one more may run."""
        return self.running[model] < self.models[model].kind.concurrency

    def load(self, model: str, device: str) -> Load:
        """Take the memory."""
        self.state[model] = Residency.LOADING
        self.place[model] = device
        self.free[device] -= self.models[model].memory
        return Load(model, (device,), self.models[model].memory, may_sleep=False)

    def unload(self, model: str) -> Unload:
        """Give it back."""
        self.state[model] = Residency.UNLOADING
        return Unload(model, "", (self.place[model],), 0)


def by_size(workload: Workload) -> list[tuple[str, list[SimulatedModel]]]:
    """The models, smallest first, cut into one group of about equal bytes for every device."""
    models = sorted(workload.models, key=lambda model: model.memory)
    devices = list(workload.devices)
    share = sum(model.memory for model in models) / len(devices)
    groups: list[tuple[str, list[SimulatedModel]]] = [(device, []) for device in devices]
    taken = 0
    for model in models:
        groups[min(int(taken / share), len(devices) - 1)][1].append(model)
        taken += model.memory
    return groups


class CountLru(_Server):
    """Ray Serve's multiplexing: each replica, here a device, holds N models and drops the least recent.

    A request goes to a replica that has its model, else to the one with the fewest requests; a replica
    loads one model at a time, in the order of the requests. N is what fits whichever models meet there. A
    dropped model's requests are finished first.
    """

    def __init__(self, workload: Workload, *, sorted_by_size: bool) -> None:
        super().__init__(workload)
        everyone = [(device, list(workload.models)) for device in workload.devices]
        groups = by_size(workload) if sorted_by_size else everyone
        self._limit = {
            device: workload.devices[device] // max([model.memory for model in group], default=1)
            for device, group in groups
        }
        self._homes: dict[str, list[str]] = {name: [] for name in self.models}
        for device, group in groups:
            for model in group:
                self._homes[model.name].append(device)
        self._assigned: dict[str, str] = {}  # model -> the replica that it will be loaded on
        self._waiting: dict[str, deque[str]] = {name: deque() for name in self.models}
        self._to_load: dict[str, deque[str]] = {device: deque() for device in workload.devices}

    def queued(self, id: str, model: str, now: float) -> None:
        """Route it."""
        self.used[model] = now
        self._waiting[model].append(id)
        self._want(model)

    def _want(self, model: str) -> None:
        if self.state[model] in {Residency.READY, Residency.LOADING} or model in self._assigned:
            return
        device = min(self._homes[model], key=self._burden)
        self._assigned[model] = device
        self._to_load[device].append(model)

    def _burden(self, device: str) -> int:
        models = [*self.here(device), *self._to_load[device]]
        return sum(self.running[model] + len(self._waiting[model]) for model in models)

    def decide(self, now: float) -> list[Decision]:
        """Start, then load the first in each replica's line, then make room for it."""
        decisions: list[Decision] = []
        for model, waiting in self._waiting.items():
            while self.state[model] is Residency.READY and waiting and self.has_slot(model):
                decisions.append(self.start(waiting.popleft(), model))
        for device, line in self._to_load.items():
            for model in self.here(device):
                if self.state[model] is Residency.DRAINING and not self.running[model]:
                    decisions.append(self.unload(model))
            # The first may still be on its way out.
            if line and self.quiet(device) and self.state[line[0]] is Residency.COLD:
                decisions += self._next(device, line)
        return decisions

    def _next(self, device: str, line: deque[str]) -> list[Decision]:
        here = self.here(device)
        if len(here) < self._limit[device]:
            model = line.popleft()
            del self._assigned[model]
            return [self.load(model, device)]
        if any(self.state[model] is Residency.DRAINING for model in here):
            return []
        victim = min(here, key=lambda model: self.used[model])
        unloads: list[Decision] = []
        if self.running[victim]:
            self.state[victim] = Residency.DRAINING
        else:
            unloads.append(self.unload(victim))
        if self._waiting[victim]:
            self._want(victim)
        return unloads


class StaticGroups(_Server):
    """llama-swap's groups: of a group's models one is loaded at a time, and the group has memory of its own.

    Requests of a group are served in their order; a swap waits for what runs. Groups and devices are chosen
    by hand, and the popularity of every model is taken to be known then. With ``persistent`` the models
    that are worth it most have groups of their own, and are never swapped, as far as half of the memory
    goes.
    """

    def __init__(self, workload: Workload, *, persistent: bool) -> None:
        super().__init__(workload)
        popularity = workload.popularity()
        left = dict(workload.devices)
        worth = {
            model.name: popularity[model.name] * model.load_seconds / model.memory
            for model in workload.models
        }
        ordered = sorted(workload.models, key=lambda model: -worth[model.name])
        self._groups: list[tuple[str, set[str]]] = []
        swapped = []
        for model in ordered:
            device = max(left, key=lambda device: left[device])
            fits = persistent and left[device] - model.memory >= workload.devices[device] // 2
            if fits:
                left[device] -= model.memory
                self._groups.append((device, {model.name}))
            else:
                swapped.append(model)
        self._share_out(swapped, left, popularity)
        self._line: list[deque[tuple[str, str]]] = [deque() for _ in self._groups]
        self._group_of = {name: number for number, (_, names) in enumerate(self._groups) for name in names}

    def _share_out(
        self, models: list[SimulatedModel], left: dict[str, int], popularity: dict[str, float]
    ) -> None:
        """Slots as large as the largest that still needs one, while there is memory; then equal load."""
        slots: list[tuple[str, int]] = []
        sizes = sorted({model.memory for model in models}, reverse=True)
        share = {size: sum(popularity[m.name] for m in models if m.memory == size) for size in sizes}
        for size in sizes[:1]:
            device = max(left, key=lambda device: left[device])
            slots.append((device, size))
            left[device] -= size
        while True:  # the size with the most requests for each of its slots gets one more
            room = max(left.values())
            counts = {size: sum(slot >= size for _, slot in slots) for size in sizes}
            able = [
                size
                for size in sizes
                if size <= room and counts[size] < sum(m.memory <= size for m in models)
            ]
            if not able:
                break
            size = max(able, key=lambda size: share[size] / (0.5 + counts[size]))
            device = min((d for d in left if left[d] >= size), key=lambda device: left[device])
            slots.append((device, size))
            left[device] -= size
        loads = [0.0] * len(slots)
        members: list[set[str]] = [set() for _ in slots]
        for model in sorted(models, key=lambda model: -popularity[model.name]):
            fitting = [number for number, (_, size) in enumerate(slots) if size >= model.memory]
            best = min(fitting, key=lambda number: (loads[number], slots[number][1]))
            members[best].add(model.name)
            loads[best] += popularity[model.name] * model.load_seconds
        self._groups += [(device, names) for (device, _), names in zip(slots, members, strict=True)]

    def queued(self, id: str, model: str, now: float) -> None:
        """It joins its group's line."""
        self._line[self._group_of[model]].append((id, model))

    def decide(self, now: float) -> list[Decision]:
        """The first of each line."""
        decisions: list[Decision] = []
        for (device, names), line in zip(self._groups, self._line, strict=True):
            while line and self.state[line[0][1]] is Residency.READY and self.has_slot(line[0][1]):
                decisions.append(self.start(*line.popleft()))
            if not line or self.state[line[0][1]] is not Residency.COLD:
                continue
            loaded = next((name for name in names if name in self.place), None)
            if loaded is None and self.quiet(device):
                decisions.append(self.load(line[0][1], device))
            elif loaded is not None and self.state[loaded] is Residency.READY:
                loading = any(self.state[each] is Residency.LOADING for each in self.here(device))
                if not self.running[loaded] and not loading:
                    decisions.append(self.unload(loaded))
        return decisions


class KeepAlive(_Server):
    """Ollama's timers: a model stays for so long after its last request, or until the next one needs room.

    Requests for cold models are taken in their order, the first one blocks the others. It goes to the
    device with the most free memory; while it fits nowhere, the idle model that was used longest ago
    leaves, or, if all are busy, the one that was used longest ago takes nothing new.
    """

    def __init__(self, workload: Workload, *, keep: float) -> None:
        super().__init__(workload)
        self._keep = keep  # seconds
        self._waiting: dict[str, deque[str]] = {name: deque() for name in self.models}
        self._pending: deque[str] = deque()  # cold models in the order of their first request

    def queued(self, id: str, model: str, now: float) -> None:
        """It waits for its model."""
        self.used[model] = now
        self._waiting[model].append(id)
        self._want(model)

    def _want(self, model: str) -> None:
        if self.state[model] not in {Residency.READY, Residency.LOADING} and model not in self._pending:
            self._pending.append(model)

    def next_wakeup(self, now: float) -> float | None:
        """The next timer."""
        return min(
            (self.used[model] + self._keep for model in self._idle() if self._still(model)), default=None
        )

    def _idle(self) -> list[str]:
        return [
            model
            for model in self.place
            if self.state[model] is Residency.READY and not self.running[model] and not self._waiting[model]
        ]

    def _still(self, model: str) -> bool:
        return all(self.state[each] is not Residency.LOADING for each in self.here(self.place[model]))

    def decide(self, now: float) -> list[Decision]:
        """Start, stop what has had its time, then see to the first of those that wait for a load."""
        decisions: list[Decision] = []
        for model, waiting in self._waiting.items():
            while self.state[model] is Residency.READY and waiting and self.has_slot(model):
                decisions.append(self.start(waiting.popleft(), model))
        over = [model for model in self._idle() if now >= self.used[model] + self._keep]
        over += [m for m in self.place if self.state[m] is Residency.DRAINING and not self.running[m]]
        decisions += [self.unload(model) for model in over if self._still(model)]
        while self._pending:
            model = self._pending[0]
            if self.state[model] is not Residency.COLD:
                break
            device = max(self.free, key=lambda device: self.free[device])
            if self.free[device] < self.models[model].memory:
                decisions += self._make_room()
                break
            if not self.quiet(device):
                break
            self._pending.popleft()
            decisions.append(self.load(model, device))
        return decisions

    def _make_room(self) -> list[Decision]:
        if any(self.state[model] in {Residency.UNLOADING, Residency.DRAINING} for model in self.place):
            return []
        idle = [model for model in self._idle() if self._still(model)]
        if idle:
            return [self.unload(min(idle, key=lambda model: self.used[model]))]
        ready = [model for model in self.place if self.state[model] is Residency.READY]
        if ready:
            victim = min(ready, key=lambda model: self.used[model])
            self.state[victim] = Residency.DRAINING
            if self._waiting[victim]:
                self._want(victim)
        return []


#: system -> its layouts; the one with the least p99 wait counts.
BASELINES: Final[dict[str, dict[str, Callable[[Workload], Policy]]]] = {
    "count LRU (Ray Serve)": {
        "any model anywhere": lambda workload: CountLru(workload, sorted_by_size=False),
        "devices by size": lambda workload: CountLru(workload, sorted_by_size=True),
    },
    "static groups (llama-swap)": {
        "swapping only": lambda workload: StaticGroups(workload, persistent=False),
        "half persistent": lambda workload: StaticGroups(workload, persistent=True),
    },
    "keep-alive (Ollama)": {
        "5 minutes": lambda workload: KeepAlive(workload, keep=300.0),
        "for ever": lambda workload: KeepAlive(workload, keep=float("inf")),
    },
}

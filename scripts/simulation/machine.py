"""A machine that carries out decisions in simulated time, and measures what predictions see of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from appliance.scheduler import Decision, Load, Residency, SleepLevel, Start, Unload
from scripts.simulation.workload import UNLOAD, Workload


class Policy(Protocol):
    """What decides: the part of ``appliance.scheduler.Scheduler`` that a machine without failures needs."""

    def queued(self, id: str, model: str, now: float) -> None:
        """A prediction waits."""

    def finished(self, id: str, model: str, now: float) -> None:
        """It is over."""

    def loaded(self, model: str, now: float, levels: Iterable[SleepLevel]) -> None:
        """A load is done."""

    def unloaded(self, model: str, now: float) -> None:
        """An unload is done."""

    def decide(self, now: float) -> list[Decision]:
        """What to do now."""

    def next_wakeup(self, now: float) -> float | None:
        """When to ask again although nothing happens."""


class Outcome(NamedTuple):
    """What came of one workload under one policy."""

    waits: list[float]  # seconds until each prediction began
    hits: int  # predictions that waited for no load: their model was ready, and stayed so until they began
    loads: int
    moved: int  # bytes


class _Event(NamedTuple):
    at: float
    number: int
    kind: str
    model: str
    id: str


class Machine:
    """Devices with bytes, and models that take time to load."""

    def __init__(self, workload: Workload, policy: Policy) -> None:
        self._models = {model.name: model for model in workload.models}
        self._requests = {request.id: request for request in workload.requests}
        self._policy = policy
        self._free = dict(workload.devices)
        self._state = dict.fromkeys(self._models, Residency.COLD)
        self._place: dict[str, tuple[str, ...]] = {}
        self._running = dict.fromkeys(self._models, 0)
        self._events: list[_Event] = []
        self._number = 0
        self._waits: dict[str, float] = {}
        self._loads_of = dict.fromkeys(self._models, 0)
        self._ready_at_arrival: dict[str, int] = {}  # id -> loads of its model until then
        self._hits = self._loads = self._moved = 0
        for request in workload.requests:
            self._at(request.at, "come", request.model, request.id)

    def run(self, progress: Callable[[], None] = lambda: None) -> Outcome:
        """Until every prediction is over; ``progress`` is told of each.

        Raises:
            RuntimeError: the policy did what cannot be done, or leaves predictions waiting for ever.
        """
        wakeup: float | None = None
        while len(self._waits) < len(self._requests) or any(self._running.values()):
            now = min(self._events[0].at if self._events else float("inf"), wakeup or float("inf"))
            if now == float("inf"):
                raise RuntimeError(f"{len(self._requests) - len(self._waits)} predictions wait for ever")
            while self._events and self._events[0].at <= now:
                self._happen(heapq.heappop(self._events), progress)
            for decision in self._policy.decide(now):
                self._carry_out(decision, now)
            wakeup = self._policy.next_wakeup(now)
        waits = [self._waits[id] for id in self._requests]
        return Outcome(waits, self._hits, self._loads, self._moved)

    def _at(self, at: float, what: str, model: str, id: str = "") -> None:
        self._number += 1
        heapq.heappush(self._events, _Event(at, self._number, what, model, id))

    def _happen(self, event: _Event, progress: Callable[[], None]) -> None:
        match event.kind:
            case "come":
                if self._state[event.model] is Residency.READY:
                    self._ready_at_arrival[event.id] = self._loads_of[event.model]
                self._policy.queued(event.id, event.model, event.at)
            case "finished":
                self._running[event.model] -= 1
                self._policy.finished(event.id, event.model, event.at)
                progress()
            case "loaded":
                self._state[event.model] = Residency.READY
                self._policy.loaded(event.model, event.at, ())
            case "unloaded":
                self._state[event.model] = Residency.COLD
                for device in self._place.pop(event.model):
                    self._free[device] += self._models[event.model].memory
                self._policy.unloaded(event.model, event.at)

    def _carry_out(self, decision: Decision, now: float) -> None:
        match decision:
            case Start(id, model):
                self._start(id, model, now)
            case Load(model, devices):
                self._load(model, devices, now)
            case Unload(model):
                self._must(
                    self._state[model] is Residency.READY and not self._running[model], f"unload of {model}"
                )
                self._state[model] = Residency.UNLOADING
                self._at(now + UNLOAD, "unloaded", model)

    def _start(self, id: str, model: str, now: float) -> None:
        request = self._requests[id]
        self._must(self._state[model] is Residency.READY, f"start on {model}, which is not ready")
        self._must(id not in self._waits and request.model == model, f"start of {id}")
        self._running[model] += 1
        self._must(self._running[model] <= self._models[model].kind.concurrency, f"too many on {model}")
        self._waits[id] = now - request.at
        self._hits += self._ready_at_arrival.pop(id, None) == self._loads_of[model]
        self._at(now + request.seconds, "finished", model, id)

    def _load(self, name: str, devices: tuple[str, ...], now: float) -> None:
        model = self._models[name]
        self._must(self._state[name] is Residency.COLD, f"load of {name}")
        for device in devices:
            others = [each for each, place in self._place.items() if device in place]
            still = all(self._state[each] is Residency.READY for each in others)
            self._must(still, f"two loads or unloads at once on {device}")
            self._free[device] -= model.memory
            self._must(self._free[device] >= 0, f"{device} is over its capacity")
        self._state[name] = Residency.LOADING
        self._place[name] = devices
        self._loads += 1
        self._loads_of[name] += 1
        self._moved += model.memory * len(devices)
        self._at(now + model.load_seconds, "loaded", name)

    @staticmethod
    def _must(holds: bool, what: str) -> None:
        if not holds:
            raise RuntimeError(f"the policy decided what cannot be done: {what}")

"""A simulated machine for property tests of the scheduler, with random durations and failures."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from appliance.scheduler import (
    MIN_RESIDENCY,
    Capacity,
    Decision,
    Demand,
    Load,
    Residency,
    Scheduler,
    Sleep,
    SleepFootprint,
    SleepLevel,
    Start,
    Unload,
    Wake,
)
from appliance.scheduler.backlog import MANY_DEVICES

GIB = 1024**3
LOAD, RUN, UNLOAD = 8.0, 5.0, 2.0  # the longest of each, in seconds
SLEEP, WAKE = 3.0, 4.0
RESIDUE = GIB // 2


class World:
    """A clock, and a machine that carries decisions out in random times, and sometimes fails.

    It records reservations itself, so that its checks do not depend on the records of the scheduler.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        devices: int,
        seed: int,
        *,
        failing: bool = False,
        sleeping: bool = False,
        main: int = 10,
        many_devices: int = MANY_DEVICES,
    ) -> None:
        """With ``sleeping`` models can sleep, and there are ``main`` GiB of main memory for that."""
        self.names = [f"m/{number}" for number in range(len(sizes))]
        self.sizes = dict(zip(self.names, sizes, strict=True))
        self.random = random.Random(seed)
        self.failing = failing
        self.sleeping = sleeping
        self.main = main
        in_ram = {
            name: sleeping and size <= main and self.random.random() < 0.15
            for name, size in self.sizes.items()
        }
        self.subject = Scheduler(
            self.capacities(devices),
            [
                Demand(
                    model=name,
                    memory=size * GIB,
                    concurrency=self.random.randint(1, 3),
                    sleep_footprint=SleepFootprint(RESIDUE, size * GIB)
                    if sleeping and not in_ram[name]
                    else None,
                    on_cpu=in_ram[name],
                    idle_unload_after=self.random.choice([None, 20.0]) if sleeping else None,
                )
                for name, size in self.sizes.items()
            ],
            many_devices=many_devices,
        )
        self.now = 0.0
        self.events: list[tuple[float, str, str, str]] = []
        self.arrivals: list[tuple[float, str, str]] = []
        self.place: dict[str, tuple[str, ...]] = {}
        self.holds: dict[str, int] = {}  # model -> bytes on each device of its place
        self.keeps: dict[str, int] = {}  # sleeper -> bytes of main memory
        self.busy: dict[str, str] = {}  # model -> load | unload | sleep | wake
        self.asleep: set[str] = set()
        self.asked: dict[str, list[str]] = defaultdict(list)  # model -> ids in their order
        self.begun: dict[str, list[str]] = defaultdict(list)
        self.waits: dict[str, float] = {}
        self.at: dict[str, float] = {}
        self.ended: set[str] = set()
        self.ready: dict[str, tuple[float, float]] = {}  # model -> when, and what that took
        self.began: dict[str, float] = {}  # model -> when it began what it is busy with
        self.fell: dict[str, float] = {}  # model that slept, until it is ready -> what falling asleep took
        self.moving: dict[str, float] = defaultdict(float)  # seconds on the way in, or to sleep
        self.served: dict[str, float] = defaultdict(float)  # seconds ready, of those that are not any more

    def capacities(self, devices: int) -> list[Capacity]:
        return [
            *(Capacity(f"gpu{number}", 10 * GIB) for number in range(devices)),
            *([Capacity("ram", self.main * GIB, is_main_memory=True)] if self.sleeping else []),
        ]

    def arrive(self, at: float, id: str, model: str) -> None:
        self.arrivals.append((at, id, model))

    def run(self, steps: int) -> None:
        """Run until all predictions have ended, or up to a number of steps."""
        total = len(self.arrivals)
        self.arrivals.sort()
        for _ in range(steps):
            self.step()
            if len(self.ended) == total:
                return
            self.advance()

    def step(self) -> None:
        while self.arrivals and self.arrivals[0][0] <= self.now:
            at, id, model = self.arrivals.pop(0)
            self.asked[model].append(id)
            self.at[id] = at
            self.subject.queued(id, model, self.now)
        for decision in self.subject.decide(self.now):
            self.carry_out(decision)
        self.check()

    def advance(self) -> None:
        wakeup = self.subject.next_wakeup(self.now)
        times = [event[0] for event in self.events] + [at for at, *_ in self.arrivals[:1]]
        self.now = max(self.now, min(times + ([wakeup] if wakeup is not None else [])))
        due = sorted(event for event in self.events if event[0] <= self.now)
        self.events = [event for event in self.events if event[0] > self.now]
        for _, what, model, id in due:
            self.happen(what, model, id)

    def happen(self, what: str, model: str, id: str) -> None:
        if what == "finish":
            self.subject.finished(id, model, self.now)
            self.ended.add(id)
            return
        del self.busy[model]
        took = self.now - self.began[model]
        if what == "load":
            self.ready[model] = self.now, took + self.fell.pop(model, 0.0)
            self.moving[model] += took
            self.subject.loaded(model, self.now, list(SleepLevel) if self.sleeping else [])
        elif what == "sleep":
            self.asleep.add(model)
            self.fell[model] = took
            self.moving[model] += took
            self.holds[model] = RESIDUE
            self.subject.asleep(model, self.now)
        elif what == "wake":
            self.asleep.discard(model)
            self.keeps.pop(model, None)
            self.ready[model] = self.now, took + self.fell.pop(model)
            self.moving[model] += took
            self.subject.woken(model, self.now)
        else:
            self.gone(what, model)

    def gone(self, what: str, model: str) -> None:
        del self.place[model]
        self.keeps.pop(model, None)
        self.asleep.discard(model)
        if what == "unload":
            self.subject.unloaded(model, self.now)
        elif what == "lose":
            self.subject.lost(model, self.now, "")
        else:
            for failed in self.subject.load_failed(model, self.now, ""):
                self.ended.add(failed)
                self.asked[model].remove(failed)

    def begin(self, what: str, model: str, longest: float, *, failures: Sequence[str] = ()) -> None:
        self.busy[model] = what
        self.began[model] = self.now
        outcomes = [what, what, what, *failures] if self.failing else [what]
        self.events.append(
            (self.now + self.random.uniform(0.1, longest), self.random.choice(outcomes), model, "")
        )

    def beside(self, devices: tuple[str, ...], model: str) -> list[str]:
        return [each for each, place in self.place.items() if set(devices) & set(place) and each != model]

    def leave(self, model: str) -> None:
        assert not any(self.busy.get(each) in {"load", "wake"} for each in self.beside(self.place[model], ""))
        assert not self.subject.running(model)
        assert model not in self.busy
        if model not in self.asleep:
            since, took = self.ready[model]
            assert self.now - since >= max(MIN_RESIDENCY, took) - 1e-6, "the bound on thrash"
            self.served[model] += self.now - since

    def carry_out(self, decision: Decision) -> None:
        match decision:
            case Start(id, model):
                assert self.subject.residency(model) in {Residency.READY, Residency.DRAINING}
                assert model in self.place
                assert model not in self.busy
                assert model not in self.asleep
                self.begun[model].append(id)
                self.waits[id] = self.now - self.at[id]
                self.events.append((self.now + self.random.uniform(0.1, RUN), "finish", model, id))
            case Load(model, devices):
                assert model not in self.place, "one load of a model at a time"
                assert not any(each in self.busy for each in self.beside(devices, model)), "one at a time"
                self.place[model], self.holds[model] = devices, self.sizes[model] * GIB
                self.begin("load", model, LOAD, failures=["lose", "fail"])
            case Unload(model):
                self.leave(model)
                self.begin("unload", model, UNLOAD)
            case Sleep(model, level):
                self.leave(model)
                assert model not in self.asleep
                self.keeps[model] = self.sizes[model] * GIB if level is SleepLevel.KEPT else 0
                self.begin("sleep", model, SLEEP, failures=["lose"])
            case Wake(model):
                assert model in self.asleep
                assert not any(each in self.busy for each in self.beside(self.place[model], model))
                self.holds[model] = self.sizes[model] * GIB
                self.begin("wake", model, WAKE, failures=["lose"])

    def check(self) -> None:
        for device in {device for place in self.place.values() for device in place} - {"ram"}:
            held = sum(self.holds[model] for model, place in self.place.items() if device in place)
            assert held <= 10 * GIB, f"{device} is over its capacity"
        in_ram = sum(self.holds[model] for model, place in self.place.items() if "ram" in place)
        assert in_ram + sum(self.keeps.values()) <= self.main * GIB, "main memory is over its capacity"
        for model, ids in self.begun.items():
            assert ids == self.asked[model][: len(ids)], "first come, first served"

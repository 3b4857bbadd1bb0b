"""Measure the time of the scheduler's decisions, with a few to a thousand devices.

The workload grows with the number of devices: there are the same number of models and predictions for each
device. So the time of one decision is constant if it does not depend on the number of devices.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from appliance.scheduler import Capacity, Decision, Demand, Scheduler, SleepLevel
from scripts.simulation.comparison import quantile
from scripts.simulation.machine import Machine, Policy
from scripts.simulation.workload import GIB, Workload, fleet, poisson, requests_at, zipf_weights

#: Bytes of each device. With five models for each, the models need 1.7 times the memory of all devices.
DEVICE: Final = 40 * GIB
RATE: Final = 0.15  # predictions per second and device
#: Models in a group. Their popularity follows Zipf's law. All groups have the same popularities, so that no
#: model gets more predictions than one instance can serve, with any number of models.
GROUP: Final = 50


class ClusterSize(NamedTuple):
    """The size of a simulated cluster."""

    devices: int
    nodes: int
    models: int
    on_two_nodes: int = 0  # percent of the models that have one device on each of two nodes


class DecisionTimes(NamedTuple):
    """Measurements of one size. Decisions are in seconds of processor time, waits in simulated seconds."""

    size: ClusterSize
    events: int  # arrivals, ends, loads and unloads
    decide_p50: float
    decide_p99: float
    decide_mean: float
    wait_p50: float
    wait_p99: float
    loads: int


class Timed:
    """Measures the time of each decision of a policy, together with the events before it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._since_decision = 0.0
        self.seconds: list[float] = []  # by decision
        self.events = 0

    def queued(self, id: str, model: str, now: float) -> None:
        self._event(lambda: self._policy.queued(id, model, now))

    def finished(self, id: str, model: str, now: float) -> None:
        self._event(lambda: self._policy.finished(id, model, now))

    def loaded(self, model: str, now: float, levels: Iterable[SleepLevel]) -> None:
        self._event(lambda: self._policy.loaded(model, now, levels))

    def unloaded(self, model: str, now: float) -> None:
        self._event(lambda: self._policy.unloaded(model, now))

    def decide(self, now: float) -> list[Decision]:
        began = time.thread_time()
        decisions = self._policy.decide(now)
        self._since_decision += time.thread_time() - began
        return decisions

    def next_wakeup(self, now: float) -> float | None:
        began = time.thread_time()
        at = self._policy.next_wakeup(now)
        self.seconds.append(self._since_decision + time.thread_time() - began)
        self._since_decision = 0.0
        return at

    def _event(self, report: Callable[[], None]) -> None:
        began = time.thread_time()
        report()
        self._since_decision += time.thread_time() - began
        self.events += 1


def workload(size: ClusterSize, predictions: int, seed: int) -> Workload:
    """Return a workload with groups of models, of which a few are popular."""
    rng = random.Random(seed)
    models = fleet(rng, size.models)
    times = poisson(rng, RATE * size.devices, predictions / RATE)
    weights = [zipf_weights(GROUP)[number % GROUP] for number in range(size.models)]
    chosen = rng.choices(range(size.models), weights, k=len(times))
    devices = {capacity.device: capacity.memory for capacity in _capacities(size)}
    requests = requests_at(rng, models, list(zip(times, chosen, strict=True)))
    return Workload("scale", tuple(models), devices, requests)


def _capacities(size: ClusterSize) -> list[Capacity]:
    if size.nodes == 1:
        return [Capacity(f"gpu{number}", DEVICE) for number in range(size.devices)]
    places = (divmod(number, -(-size.devices // size.nodes)) for number in range(size.devices))
    return [Capacity(f"n{node}/gpu{number}", DEVICE, node=f"n{node}") for node, number in places]


def scheduler(size: ClusterSize, world: Workload) -> Scheduler:
    # Chosen at random, because the first models of each group are the most popular ones.
    two = set(random.Random(1).sample(world.models, len(world.models) * size.on_two_nodes // 100))
    demands = [
        Demand(
            model=model.name,
            concurrency=model.kind.concurrency,
            memory=model.memory,
            machines=2 if model in two else 1,
        )
        for model in world.models
    ]
    return Scheduler(_capacities(size), demands)


def measure(size: ClusterSize, predictions: int, seed: int, progress: Callable[[], None]) -> DecisionTimes:
    """Simulate a workload with ``predictions`` for each device, and measure the time of every decision."""
    world = workload(size, predictions, seed)
    timed = Timed(scheduler(size, world))
    outcome = Machine(world, timed).run(progress)
    seconds, waits = sorted(timed.seconds), sorted(outcome.waits)
    return DecisionTimes(
        size,
        timed.events,
        quantile(seconds, 0.5),
        quantile(seconds, 0.99),
        sum(seconds) / max(1, len(seconds)),
        quantile(waits, 0.5),
        quantile(waits, 0.99),
        outcome.loads,
    )


def growth(found: Sequence[DecisionTimes]) -> list[float | None]:
    """Return the mean time of a decision of each size, divided by that of the size before it."""
    return [None, *(after.decide_mean / before.decide_mean for before, after in pairwise(found))]

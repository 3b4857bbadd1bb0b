"""The scheduler's decisions, without clocks, tasks or Ray."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import NeverFits
from appliance.scheduler import (
    BACKOFF,
    MIN_RESIDENCY,
    PATIENCE,
    Capacity,
    Decision,
    Demand,
    Load,
    Residency,
    Scheduler,
    Start,
    Unload,
)

GIB = 1024**3


def scheduler(*demands: Demand, memory: int = 10 * GIB, devices: int = 1) -> Scheduler:
    return Scheduler([Capacity(f"gpu{number}", memory) for number in range(devices)], demands)


def model(name: str, gib: float = 4, **options: object) -> Demand:
    return Demand(model=name, memory=int(gib * GIB), **{"concurrency": 2, **options})  # type: ignore[arg-type]


def loaded(scheduler: Scheduler, name: str, now: float) -> None:
    scheduler.wanted(name)
    assert Load in {type(decision) for decision in scheduler.decide(now)}
    scheduler.loaded(name, now)


def test_a_prediction_loads_its_cold_model_and_then_starts() -> None:
    subject = scheduler(model("a/a"))
    subject.queued("p1", "a/a", 0.0)
    assert subject.decide(0.0) == [Load("a/a", ("gpu0",), 4 * GIB)]
    assert subject.decide(1.0) == []  # one load, however often it is asked
    subject.loaded("a/a", 2.0)
    assert subject.decide(2.0) == [Start("p1", "a/a", cold_start=2.0)]


def test_no_more_run_than_the_model_can_take_and_the_order_is_kept() -> None:
    subject = scheduler(model("a/a"))
    loaded(subject, "a/a", 0.0)
    for number in range(4):
        subject.queued(f"p{number}", "a/a", 1.0)
    assert subject.decide(1.0) == [Start("p0", "a/a"), Start("p1", "a/a")]
    subject.finished("p1", "a/a", 2.0)
    assert subject.decide(2.0) == [Start("p2", "a/a")]


def test_a_requeued_prediction_goes_first() -> None:
    subject = scheduler(model("a/a", concurrency=1))
    loaded(subject, "a/a", 0.0)
    subject.queued("new", "a/a", 1.0)
    subject.queued("again", "a/a", 1.0, front=True)
    assert subject.decide(1.0) == [Start("again", "a/a")]


def test_a_withdrawn_prediction_does_not_start() -> None:
    subject = scheduler(model("a/a"))
    loaded(subject, "a/a", 0.0)
    subject.queued("p", "a/a", 1.0)
    assert subject.withdrawn("p")
    assert not subject.withdrawn("p")
    assert subject.decide(1.0) == []


def test_an_idle_model_makes_room_and_its_memory_counts_until_it_is_gone() -> None:
    subject = scheduler(model("a/a", 6), model("b/b", 6))
    loaded(subject, "a/a", 0.0)
    subject.queued("p", "b/b", MIN_RESIDENCY)
    assert subject.decide(MIN_RESIDENCY) == [Unload("a/a", "makes room for b/b")]
    assert subject.decide(MIN_RESIDENCY + 1) == []
    assert subject.free("gpu0") == 4 * GIB
    subject.unloaded("a/a", 0.0)
    assert subject.decide(MIN_RESIDENCY + 2) == [Load("b/b", ("gpu0",), 6 * GIB)]


def test_the_least_recently_used_goes_first() -> None:
    subject = scheduler(model("a/a"), model("b/b"), model("c/c"))
    loaded(subject, "a/a", 0.0)
    loaded(subject, "b/b", 1.0)
    subject.queued("p", "a/a", 5.0)
    subject.decide(5.0)
    subject.finished("p", "a/a", 6.0)
    subject.queued("q", "c/c", 100.0)
    assert subject.decide(100.0) == [Unload("b/b", "makes room for c/c")]


def test_a_just_loaded_model_is_left_in_peace() -> None:
    subject = scheduler(model("a/a", 6), model("b/b", 6))
    loaded(subject, "a/a", 0.0)
    subject.queued("p", "b/b", 1.0)
    assert subject.decide(MIN_RESIDENCY - 1) == []
    assert subject.next_wakeup(MIN_RESIDENCY - 1) is not None


def test_a_pinned_model_is_loaded_at_once_and_never_evicted() -> None:
    subject = scheduler(model("a/a", 6, pin=True), model("b/b", 6))
    assert subject.decide(0.0) == [Load("a/a", ("gpu0",), 6 * GIB)]
    subject.loaded("a/a", 0.0)
    subject.queued("p", "b/b", 1.0)
    assert subject.decide(10_000.0) == []
    subject.lost("a/a", 0.0)
    assert [type(decision) for decision in subject.decide(10_001.0)] == [Load]


def test_a_busy_model_is_drained_for_one_that_waited_long() -> None:
    subject = scheduler(model("a/a", 6), model("b/b", 6))
    loaded(subject, "a/a", 0.0)
    subject.queued("running", "a/a", 1.0)
    subject.decide(1.0)
    subject.queued("p", "b/b", 2.0)
    assert subject.decide(PATIENCE) == []
    assert subject.decide(2.0 + PATIENCE) == []
    assert subject.residency("a/a") is Residency.DRAINING
    subject.queued("late", "a/a", 30.0)
    assert subject.decide(30.0) == []  # a draining model takes nothing new
    subject.finished("running", "a/a", 31.0)
    assert [type(decision) for decision in subject.decide(31.0)] == [Unload]
    subject.unloaded("a/a", 0.0)
    assert subject.decide(32.0) == [Load("b/b", ("gpu0",), 6 * GIB)]


def test_a_ready_model_runs_while_another_waits_for_room() -> None:
    subject = scheduler(model("a/a", 6), model("b/b", 6))
    loaded(subject, "a/a", 0.0)
    subject.queued("stuck", "b/b", 1.0)
    subject.queued("quick", "a/a", 2.0)
    assert Start("quick", "a/a") in subject.decide(2.0)


def test_two_models_do_not_load_on_one_device_at_once_but_on_two_they_do() -> None:
    one = scheduler(model("a/a"), model("b/b"))
    two = scheduler(model("a/a"), model("b/b"), devices=2)
    for subject in (one, two):
        subject.queued("p", "a/a", 0.0)
        subject.queued("q", "b/b", 0.0)
    assert len(one.decide(0.0)) == 1
    assert {load.devices for load in two.decide(0.0) if isinstance(load, Load)} == {("gpu0",), ("gpu1",)}


def test_a_model_on_two_devices_reserves_both() -> None:
    subject = scheduler(model("a/a", 6, devices=2), devices=2)
    subject.queued("p", "a/a", 0.0)
    assert subject.decide(0.0) == [Load("a/a", ("gpu0", "gpu1"), 6 * GIB)]
    assert subject.free("gpu0") == subject.free("gpu1") == 4 * GIB


def test_a_share_is_a_share_of_the_device() -> None:
    subject = scheduler(Demand(model="a/a", concurrency=1, share=0.5))
    subject.queued("p", "a/a", 0.0)
    assert subject.decide(0.0) == [Load("a/a", ("gpu0",), 5 * GIB)]


def test_what_can_never_fit_is_said_with_the_numbers() -> None:
    subject = scheduler(model("big/model", 11))
    with pytest.raises(NeverFits, match=r"big/model needs 11,811,160,064 bytes.*10,737,418,240"):
        subject.check_fits("big/model")


def test_idle_models_are_unloaded_after_their_time() -> None:
    subject = scheduler(model("a/a", idle_unload_after=60.0))
    loaded(subject, "a/a", 0.0)
    assert subject.next_wakeup(10.0) == 60.0
    assert subject.decide(59.0) == []
    assert subject.decide(60.0) == [Unload("a/a", "idle for 60 s")]


def test_a_failed_load_returns_what_waited_and_backs_off() -> None:
    subject = scheduler(model("a/a"))
    subject.queued("p", "a/a", 0.0)
    subject.decide(0.0)
    assert subject.load_failed("a/a", 1.0) == ["p"]
    subject.queued("q", "a/a", 2.0)
    assert subject.decide(2.0) == []
    assert subject.next_wakeup(2.0) == 1.0 + BACKOFF[0]
    assert [type(decision) for decision in subject.decide(1.0 + BACKOFF[0])] == [Load]


def test_what_waited_for_a_lost_model_waits_on_and_loads_it_again() -> None:
    subject = scheduler(model("a/a", concurrency=1))
    loaded(subject, "a/a", 0.0)
    subject.queued("p", "a/a", 1.0)
    subject.queued("q", "a/a", 1.0)
    subject.decide(1.0)
    subject.lost("a/a", 0.0)
    assert subject.running("a/a") == frozenset()
    assert subject.depth("a/a") == 1
    assert [type(decision) for decision in subject.decide(2.0)] == [Load]


def test_an_unwanted_model_finishes_first_and_is_loaded_again_on_demand() -> None:
    subject = scheduler(model("a/a"))
    loaded(subject, "a/a", 0.0)
    subject.queued("p", "a/a", 1.0)
    subject.decide(1.0)
    subject.unwanted("a/a", "asked for", 1.0)
    assert subject.decide(2.0) == []
    subject.finished("p", "a/a", 3.0)
    assert subject.decide(3.0) == [Unload("a/a", "asked for")]
    subject.unloaded("a/a", 0.0)
    subject.queued("q", "a/a", 4.0)
    assert [type(decision) for decision in subject.decide(4.0)] == [Load]


class World:
    """Carries out decisions after random delays, and checks the invariants at every step."""

    def __init__(self, subject: Scheduler, capacities: Sequence[int], seed: int) -> None:
        self.subject = subject
        self.capacities = capacities
        self.random = random.Random(seed)
        self.now = 0.0
        self.pending: list[tuple[float, str, str, str]] = []
        self.ended: set[str] = set()

    def act(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            at = self.now + self.random.uniform(0.1, 5.0)
            match decision:
                case Start(id, name):
                    self.pending.append((at, "finish", name, id))
                case Load(name):
                    outcome = self.random.choice(["load", "load", "load", "lose"])
                    self.pending.append((at, outcome, name, ""))
                case Unload(name):
                    self.pending.append((at, "unload", name, ""))

    def step(self) -> None:
        self.act(self.subject.decide(self.now))
        for number, capacity in enumerate(self.capacities):
            assert sum(self.subject.reserved(f"gpu{number}").values()) <= capacity
        wakeup = self.subject.next_wakeup(self.now)
        times = [at for at, *_ in self.pending] + ([wakeup] if wakeup is not None else [])
        self.now = max(self.now, min(times, default=self.now))
        due = sorted(item for item in self.pending if item[0] <= self.now)
        self.pending = [item for item in self.pending if item[0] > self.now]
        for _, what, name, id in due:
            match what:
                case "finish":
                    self.subject.finished(id, name, self.now)
                    self.ended.add(id)
                case "load":
                    self.subject.loaded(name, self.now)
                case "lose":
                    self.subject.lost(name, self.now)
                case "unload":
                    self.subject.unloaded(name, self.now)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=6),
    devices=st.integers(1, 3),
    arrivals=st.lists(st.tuples(st.integers(0, 5), st.floats(0, 60)), max_size=40),
    seed=st.integers(0, 2**32),
)
def test_nothing_is_overbooked_and_everything_ends(
    sizes: list[int], devices: int, arrivals: list[tuple[int, float]], seed: int
) -> None:
    names = [f"m/{number}" for number in range(len(sizes))]
    demands = [model(name, size) for name, size in zip(names, sizes, strict=True)]
    subject = Scheduler([Capacity(f"gpu{n}", 10 * GIB) for n in range(devices)], demands)
    world = World(subject, [10 * GIB] * devices, seed)
    waiting = sorted((at, f"p{n}", names[which % len(names)]) for n, (which, at) in enumerate(arrivals))
    for _ in range(5000):
        while waiting and waiting[0][0] <= world.now:
            at, id, name = waiting.pop(0)
            subject.queued(id, name, at)
        before = world.now
        world.step()
        if waiting and world.now == before and not world.pending:
            world.now = waiting[0][0]
        if not waiting and len(world.ended) == len(arrivals):
            break
    assert len(world.ended) == len(arrivals)

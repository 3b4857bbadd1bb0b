"""Models that fall asleep instead of being unloaded, and are woken: what is decided, and who holds what."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.errors import ModelTooLarge
from appliance.scheduler import (
    MIN_RESIDENCY,
    Capacity,
    Demand,
    EventKind,
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

GIB = 1024**3
LOAD = 20.0  # seconds that a load takes here
BOTH = (SleepLevel.KEPT, SleepLevel.DROPPED)
KEPT = (SleepLevel.KEPT,)


def scheduler(*demands: Demand, main: int = 100, devices: int = 1) -> Scheduler:
    """Devices of 10 GiB, and ``main`` GiB of main memory beside them."""
    gpus = [Capacity(f"gpu{number}", 10 * GIB) for number in range(devices)]
    return Scheduler([*gpus, Capacity("ram", main * GIB, is_main_memory=True)], demands)


def model(name: str, gib: int = 8, **options: Any) -> Demand:
    asleep = SleepFootprint(residue=GIB, main_memory=6 * GIB)
    return Demand(model=name, memory=gib * GIB, **{"concurrency": 1, "sleep_footprint": asleep, **options})


def loaded(subject: Scheduler, name: str, now: float, levels: tuple[SleepLevel, ...] = KEPT) -> None:
    """Ready at ``now``, after a load that took ``LOAD``; it was asked once, and that is over."""
    subject.queued(f"{name}@{now}", name, now - LOAD)
    assert Load in {type(decision) for decision in subject.decide(now - LOAD)}
    subject.loaded(name, now, levels)
    assert [type(decision) for decision in subject.decide(now)] == [Start]
    subject.finished(f"{name}@{now}", name, now)


def asleep(subject: Scheduler, name: str, now: float, waiter: str) -> None:
    """Asleep at ``now`` for ``waiter``, which is loaded next and asked nothing more."""
    subject.queued("waits", waiter, now - 1)
    assert [type(decision) for decision in subject.decide(now - 1)] == [Sleep]
    subject.asleep(name, now)
    assert [type(decision) for decision in subject.decide(now)] == [Load]
    subject.loaded(waiter, now + LOAD, KEPT)
    assert subject.decide(now + LOAD) == [Start("waits", waiter, ("gpu0",), cold_start=LOAD)]
    subject.finished("waits", waiter, now + LOAD)


def test_a_victim_falls_asleep_and_its_device_is_free_once_it_has() -> None:
    subject = scheduler(model("a/a"), model("b/b"))
    loaded(subject, "a/a", 20.0)
    subject.queued("p", "b/b", 60.0)
    assert subject.decide(60.0) == [Sleep("a/a", SleepLevel.KEPT, GIB, "memory is needed for b/b")]
    assert subject.residency("a/a") is Residency.FALLING_ASLEEP
    assert subject.free("gpu0") == 2 * GIB
    assert subject.reserved("ram") == {"a/a": 6 * GIB}
    assert subject.decide(61.0) == []
    subject.asleep("a/a", 62.0)
    assert subject.decide(62.0) == [Load("b/b", ("gpu0",), 8 * GIB, may_sleep=True)]
    assert subject.reserved("gpu0") == {"a/a": GIB, "b/b": 8 * GIB}
    happened = [each for each in subject.events() if each.kind is EventKind.ASLEEP]
    assert [(each.memory, each.seconds) for each in happened] == [(7 * GIB, 2.0)]


def test_a_sleeper_is_woken_where_it_sleeps_and_gives_main_memory_back() -> None:
    subject = scheduler(model("a/a"), model("b/b"))
    loaded(subject, "a/a", 20.0)
    asleep(subject, "a/a", 60.0, "b/b")
    subject.queued("p", "a/a", 200.0)
    assert subject.decide(200.0) == [Sleep("b/b", SleepLevel.KEPT, GIB, "memory is needed for a/a")]
    subject.asleep("b/b", 201.0)
    assert subject.decide(201.0) == [Wake("a/a")]
    assert subject.residency("a/a") is Residency.WAKING
    assert subject.reserved("gpu0") == {"a/a": 8 * GIB, "b/b": GIB}
    assert subject.reserved("ram") == {"a/a": 6 * GIB, "b/b": 6 * GIB}
    subject.woken("a/a", 203.0)
    assert subject.reserved("ram") == {"b/b": 6 * GIB}
    assert subject.decide(203.0) == [Start("p", "a/a", ("gpu0",), cold_start=2.0)]


def test_a_prediction_that_comes_while_its_model_falls_asleep_wakes_it() -> None:
    subject = scheduler(model("a/a", idle_unload_after=40.0))
    loaded(subject, "a/a", 20.0)
    assert [type(decision) for decision in subject.decide(40.0)] == [Sleep]
    subject.queued("p", "a/a", 41.0)
    assert subject.decide(41.0) == []
    subject.asleep("a/a", 42.0)
    assert subject.decide(42.0) == [Wake("a/a")]


def test_what_will_soon_be_asked_again_keeps_its_weights_and_what_will_not_drops_them() -> None:
    """Dropping them takes little of the waiter's time; reading them again takes its own predictions' time."""
    for gap, level in ((5.0, SleepLevel.KEPT), (2_000.0, SleepLevel.DROPPED)):
        subject = scheduler(model("a/a"), model("b/b"))
        loaded(subject, "a/a", 20.0, BOTH)
        now = 20.0 + gap
        subject.queued("again", "a/a", now)
        subject.decide(now)
        subject.finished("again", "a/a", now)
        subject.queued("p", "b/b", now + 20)
        assert subject.decide(now + 20) == [Sleep("a/a", level, GIB, "memory is needed for b/b")]


def test_without_free_main_memory_weights_are_dropped() -> None:
    subject = scheduler(model("a/a"), model("b/b"), main=5)
    loaded(subject, "a/a", 20.0, BOTH)
    subject.queued("p", "b/b", 60.0)
    assert subject.decide(60.0) == [Sleep("a/a", SleepLevel.DROPPED, GIB, "memory is needed for b/b")]
    assert subject.reserved("ram") == {}


def test_the_least_recently_used_sleeper_leaves_main_memory_for_the_next() -> None:
    subject = scheduler(model("a/a"), model("b/b", 7), model("c/c", 7), main=10)
    loaded(subject, "a/a", 20.0)
    asleep(subject, "a/a", 60.0, "b/b")
    subject.queued("p", "c/c", 200.0)
    (first,) = subject.decide(200.0)
    assert first == Unload("a/a", "main memory is needed for b/b, which falls asleep", ("gpu0",), 0)
    assert subject.decide(200.2) == []  # it has not gone yet
    subject.unloaded("a/a", 200.5)
    assert subject.decide(200.5) == [Sleep("b/b", SleepLevel.KEPT, GIB, "memory is needed for c/c")]


def test_a_worker_that_says_it_cannot_sleep_is_unloaded() -> None:
    subject = scheduler(model("a/a"), model("b/b"))
    loaded(subject, "a/a", 20.0, ())
    subject.queued("p", "b/b", 60.0)
    assert subject.decide(60.0) == [Unload("a/a", "memory is needed for b/b", ("gpu0",), 0)]


def test_what_failed_to_sleep_once_is_unloaded_from_then_on() -> None:
    subject = scheduler(model("a/a"), model("b/b"))
    loaded(subject, "a/a", 20.0)
    subject.sleep_failed("a/a")
    subject.queued("p", "b/b", 60.0)
    assert subject.decide(60.0) == [Unload("a/a", "memory is needed for b/b", ("gpu0",), 0)]


def test_what_would_leave_too_much_asleep_is_unloaded() -> None:
    """A model that needs the whole device cannot be loaded beside a sleeper."""
    subject = scheduler(model("a/a"), model("b/b", 10))
    loaded(subject, "a/a", 20.0)
    subject.queued("p", "b/b", 60.0)
    assert subject.decide(60.0) == [Unload("a/a", "memory is needed for b/b", ("gpu0",), 0)]


def test_a_model_that_is_hardly_ever_asked_is_unloaded_if_that_is_quicker() -> None:
    subject = scheduler(model("a/a"), model("b/b"))
    loaded(subject, "a/a", 20.0)
    subject.queued("p", "b/b", 20_000.0)
    assert subject.decide(20_000.0) == [Unload("a/a", "memory is needed for b/b", ("gpu0",), 0)]


def test_an_idle_model_falls_asleep_before_it_is_unloaded() -> None:
    subject = scheduler(model("a/a", idle_unload_after=40.0))
    loaded(subject, "a/a", 20.0)
    assert subject.next_wakeup(20.0) == 40.0
    assert subject.decide(40.0) == [Sleep("a/a", SleepLevel.KEPT, GIB, "idle for 20 s")]
    subject.asleep("a/a", 41.0)
    assert subject.next_wakeup(41.0) == 60.0
    assert subject.decide(60.0) == [Unload("a/a", "idle for 40 s", ("gpu0",), 0)]
    subject.unloaded("a/a", 61.0)
    assert subject.reserved("gpu0") == subject.reserved("ram") == {}


def test_an_idle_model_does_not_fall_asleep_before_its_minimum_residency_is_over() -> None:
    subject = scheduler(model("a/a", idle_unload_after=30.0))
    loaded(subject, "a/a", 20.0)
    assert subject.next_wakeup(20.0) == 20.0 + LOAD
    assert subject.decide(36.0) == []
    assert subject.decide(20.0 + LOAD) == [Sleep("a/a", SleepLevel.KEPT, GIB, "idle for 20 s")]


def test_falling_asleep_counts_for_the_residency_after_a_load_too() -> None:
    """A sleeper that is unloaded before it wakes has spent that time in vain."""
    subject = scheduler(model("a/a", idle_unload_after=60.0), model("b/b"))
    loaded(subject, "a/a", 20.0)
    assert [type(decision) for decision in subject.decide(50.0)] == [Sleep]
    subject.asleep("a/a", 53.0)
    assert [type(decision) for decision in subject.decide(80.0)] == [Unload]
    subject.unloaded("a/a", 81.0)
    loaded(subject, "a/a", 120.0)
    subject.queued("p", "b/b", 120.0 + LOAD)
    assert subject.decide(120.0 + LOAD) == []
    assert subject.next_wakeup(122.5 + LOAD) == 123.0 + LOAD
    assert [type(decision) for decision in subject.decide(123.0 + LOAD)] == [Sleep]


def test_a_sleeper_is_unloaded_when_it_is_sent_away() -> None:
    subject = scheduler(model("a/a", idle_unload_after=40.0))
    loaded(subject, "a/a", 20.0)
    subject.decide(40.0)
    subject.request_unload("a/a", "asked for", 41.0)
    assert subject.decide(41.0) == []  # it is on its way to sleep
    subject.asleep("a/a", 42.0)
    assert subject.decide(42.0) == [Unload("a/a", "asked for", ("gpu0",), 0)]


def test_a_model_that_is_to_free_memory_by_sleeping_is_unloaded_if_someone_asks_for_that() -> None:
    subject = scheduler(model("a/a"), model("b/b"))
    loaded(subject, "a/a", 20.0)
    subject.queued("long", "a/a", 21.0)
    subject.decide(21.0)
    subject.queued("p", "b/b", 22.0)
    assert subject.decide(200.0) == []  # it is drained for b/b
    assert subject.residency("a/a") is Residency.DRAINING
    subject.request_unload("a/a", "asked for", 201.0)
    subject.finished("long", "a/a", 202.0)
    assert [type(decision) for decision in subject.decide(202.0)] == [Unload]


def test_a_model_that_is_sent_away_while_it_wakes_is_unloaded_once_it_is_awake() -> None:
    subject = scheduler(model("a/a", idle_unload_after=40.0))
    loaded(subject, "a/a", 20.0)
    subject.decide(40.0)
    subject.asleep("a/a", 42.0)
    subject.request_load("a/a")
    assert subject.decide(43.0) == [Wake("a/a")]
    subject.request_unload("a/a", "asked for", 44.0)
    subject.woken("a/a", 45.0)
    assert subject.decide(45.0) == [Unload("a/a", "asked for", ("gpu0",), 0)]


def test_a_sleeper_whose_device_stays_busy_is_loaded_on_another() -> None:
    subject = scheduler(model("a/a"), model("b/b"), model("c/c", 9), devices=2)
    loaded(subject, "c/c", 20.0)
    loaded(subject, "a/a", 41.0)
    subject.queued("long", "c/c", 60.0)
    assert subject.decide(60.0) == [Start("long", "c/c", ("gpu0",))]
    subject.queued("p", "b/b", 100.0)
    assert [type(decision) for decision in subject.decide(100.0)] == [Sleep]
    subject.asleep("a/a", 101.0)
    subject.decide(101.0)
    subject.loaded("b/b", 121.0, BOTH)
    subject.decide(121.0)  # it runs, and goes on for long
    subject.finished("long", "c/c", 122.0)
    subject.request_unload("c/c", "asked for", 122.0)
    subject.decide(122.0)
    subject.unloaded("c/c", 123.0)
    subject.queued("q", "a/a", 200.0)
    (first,) = subject.decide(200.0)
    assert first == Unload("a/a", "loading it on gpu0 takes less time than waking it", ("gpu1",), 0)
    subject.unloaded("a/a", 200.5)
    assert subject.decide(200.5) == [Load("a/a", ("gpu0",), 8 * GIB, may_sleep=True)]


def test_what_computes_on_the_cpu_is_held_in_main_memory_and_pushes_sleepers_out() -> None:
    subject = scheduler(
        model("a/a"), model("b/b"), model("c/c", 7, on_cpu=True, sleep_footprint=None), main=12
    )
    loaded(subject, "a/a", 20.0)
    asleep(subject, "a/a", 60.0, "b/b")
    subject.queued("p", "c/c", 200.0)
    assert subject.decide(200.0) == [Unload("a/a", "memory is needed for c/c", ("gpu0",), 0)]
    subject.unloaded("a/a", 200.5)
    assert subject.decide(200.5) == [Load("c/c", ("ram",), 7 * GIB, may_sleep=False)]
    assert subject.free("ram") == 5 * GIB


def test_a_model_for_the_cpu_that_main_memory_cannot_hold_is_refused_with_the_numbers() -> None:
    subject = scheduler(model("c/c", 7, on_cpu=True), main=5)
    with pytest.raises(ModelTooLarge, match=r"ram has 5\.0 GiB"):
        subject.check_fits("c/c")


def test_after_waking_it_stays_for_as_long_as_going_and_coming_took() -> None:
    subject = scheduler(model("a/a"), model("b/b"))
    loaded(subject, "a/a", 20.0)
    asleep(subject, "a/a", 60.0, "b/b")
    subject.queued("p", "a/a", 200.0)
    subject.decide(200.0)
    subject.asleep("b/b", 205.0)
    subject.decide(205.0)
    subject.woken("a/a", 212.0)  # 7 s to wake, and it had taken one to fall asleep
    subject.decide(212.0)
    subject.finished("p", "a/a", 213.0)
    subject.queued("q", "b/b", 213.0)
    assert subject.decide(219.9) == []
    assert [type(decision) for decision in subject.decide(220.0)] == [Sleep]
    assert MIN_RESIDENCY < 8.0


def test_a_sleeper_that_an_earlier_gateway_left_is_woken() -> None:
    subject = scheduler(model("a/a"))
    subject.adopted("a/a", ("gpu0",), 8 * GIB, 0.0, levels=BOTH, level=SleepLevel.KEPT)
    assert subject.residency("a/a") is Residency.ASLEEP
    assert subject.reserved("gpu0") == {"a/a": GIB}
    subject.queued("p", "a/a", 1.0)
    assert subject.decide(1.0) == [Wake("a/a")]


def test_a_sleeper_that_dies_holds_nothing_and_is_loaded_again() -> None:
    subject = scheduler(model("a/a"), model("b/b"))
    loaded(subject, "a/a", 20.0)
    asleep(subject, "a/a", 60.0, "b/b")
    subject.lost("a/a", 100.0, "killed")
    assert subject.reserved("gpu0") == {"b/b": 8 * GIB}
    assert subject.reserved("ram") == {}
    subject.queued("p", "a/a", 200.0)
    subject.decide(200.0)
    subject.asleep("b/b", 201.0)
    assert subject.decide(201.0) == [Load("a/a", ("gpu0",), 8 * GIB, may_sleep=True)]

"""The scheduler's decisions, without clocks, tasks or Ray."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.errors import ModelTooLarge
from appliance.scheduler import (
    BACKOFF,
    MIN_RESIDENCY,
    PATIENCE,
    Capacity,
    Demand,
    EventKind,
    Load,
    Residency,
    Scheduler,
    Start,
    Unload,
)

GIB = 1024**3


def scheduler(*demands: Demand, memory: int = 10 * GIB, devices: int = 1) -> Scheduler:
    return Scheduler([Capacity(f"gpu{number}", memory) for number in range(devices)], demands)


def model(name: str, gib: float = 4, **options: Any) -> Demand:
    return Demand(model=name, memory=int(gib * GIB), **{"concurrency": 2, **options})


def loaded(scheduler: Scheduler, name: str, now: float, took: float = 0.0) -> None:
    """Ready at ``now``, after a load that took so long."""
    scheduler.request_load(name)
    assert Load in {type(decision) for decision in scheduler.decide(now - took)}
    scheduler.loaded(name, now, ())


def used(scheduler: Scheduler, name: str, *times: float) -> None:
    """A prediction at each of these times, over at once."""
    for now in times:
        scheduler.queued(f"{name}@{now}", name, now)
        assert Start(f"{name}@{now}", name, scheduler.devices(name)) in scheduler.decide(now)
        scheduler.finished(f"{name}@{now}", name, now)


def logged(scheduler: Scheduler, what: EventKind) -> list[tuple[str, str, str | None, int, float | None]]:
    return [
        (each.model, each.reason, each.on_behalf_of, each.memory, each.seconds)
        for each in scheduler.events()
        if each.kind is what
    ]


def test_a_prediction_loads_its_cold_model_and_then_starts() -> None:
    subject = scheduler(model("a/a"))
    subject.queued("p1", "a/a", 0.0)
    assert subject.decide(0.0) == [Load("a/a", ("gpu0",), 4 * GIB, may_sleep=False)]
    assert subject.decide(1.0) == []  # one load, however often it is asked
    subject.loaded("a/a", 2.0, ())
    assert subject.decide(2.0) == [Start("p1", "a/a", ("gpu0",), cold_start=2.0)]


def test_no_more_run_than_the_model_can_take_and_the_order_is_kept() -> None:
    subject = scheduler(model("a/a"))
    loaded(subject, "a/a", 0.0)
    for number in range(4):
        subject.queued(f"p{number}", "a/a", 1.0)
    assert subject.decide(1.0) == [Start("p0", "a/a", ("gpu0",)), Start("p1", "a/a", ("gpu0",))]
    subject.finished("p1", "a/a", 2.0)
    assert subject.decide(2.0) == [Start("p2", "a/a", ("gpu0",))]


def test_a_requeued_prediction_goes_first() -> None:
    subject = scheduler(model("a/a", concurrency=1))
    loaded(subject, "a/a", 0.0)
    subject.queued("new", "a/a", 1.0)
    subject.queued("again", "a/a", 1.0, front=True)
    assert subject.decide(1.0) == [Start("again", "a/a", ("gpu0",))]


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
    assert subject.decide(MIN_RESIDENCY) == [Unload("a/a", "memory is needed for b/b", ("gpu0",), 0)]
    assert subject.decide(MIN_RESIDENCY + 1) == []
    assert subject.free("gpu0") == 4 * GIB
    subject.unloaded("a/a", 0.0)
    assert subject.decide(MIN_RESIDENCY + 2) == [Load("b/b", ("gpu0",), 6 * GIB, may_sleep=False)]


def test_the_least_recently_used_goes_first() -> None:
    subject = scheduler(model("a/a"), model("b/b"), model("c/c"))
    loaded(subject, "a/a", 0.0)
    loaded(subject, "b/b", 1.0)
    subject.queued("p", "a/a", 5.0)
    subject.decide(5.0)
    subject.finished("p", "a/a", 6.0)
    subject.queued("q", "c/c", 100.0)
    assert subject.decide(100.0) == [Unload("b/b", "memory is needed for c/c", ("gpu0",), 0)]


def test_a_just_loaded_model_is_left_in_peace() -> None:
    subject = scheduler(model("a/a", 6), model("b/b", 6))
    loaded(subject, "a/a", 0.0)
    subject.queued("p", "b/b", 1.0)
    assert subject.decide(MIN_RESIDENCY - 1) == []
    assert subject.next_wakeup(MIN_RESIDENCY - 1) is not None


def test_a_pinned_model_is_loaded_at_once_and_never_evicted() -> None:
    subject = scheduler(model("a/a", 6, pin=True), model("b/b", 6))
    assert subject.decide(0.0) == [Load("a/a", ("gpu0",), 6 * GIB, may_sleep=False)]
    subject.loaded("a/a", 0.0, ())
    subject.queued("p", "b/b", 1.0)
    assert subject.decide(10_000.0) == []
    subject.lost("a/a", 0.0, "")
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
    assert subject.decide(32.0) == [Load("b/b", ("gpu0",), 6 * GIB, may_sleep=False)]


def test_a_ready_model_runs_while_another_waits_for_memory() -> None:
    subject = scheduler(model("a/a", 6), model("b/b", 6))
    loaded(subject, "a/a", 0.0)
    subject.queued("stuck", "b/b", 1.0)
    subject.queued("quick", "a/a", 2.0)
    assert Start("quick", "a/a", ("gpu0",)) in subject.decide(2.0)


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
    assert subject.decide(0.0) == [Load("a/a", ("gpu0", "gpu1"), 6 * GIB, may_sleep=False)]
    assert subject.free("gpu0") == subject.free("gpu1") == 4 * GIB


def test_a_share_is_a_share_of_the_device() -> None:
    subject = scheduler(Demand(model="a/a", concurrency=1, share=0.5))
    subject.queued("p", "a/a", 0.0)
    assert subject.decide(0.0) == [Load("a/a", ("gpu0",), 5 * GIB, may_sleep=False)]


def test_what_can_never_fit_is_said_with_the_numbers() -> None:
    subject = scheduler(model("big/model", 11))
    with pytest.raises(ModelTooLarge, match=r"big/model needs 11\.0 GiB.*10\.0 GiB"):
        subject.check_fits("big/model")


def test_idle_models_are_unloaded_after_their_time() -> None:
    subject = scheduler(model("a/a", idle_unload_after=60.0))
    loaded(subject, "a/a", 0.0)
    assert subject.next_wakeup(10.0) == 60.0
    assert subject.decide(59.0) == []
    assert subject.decide(60.0) == [Unload("a/a", "idle for 60 s", ("gpu0",), 0)]


def test_a_failed_load_returns_what_waited_and_backs_off() -> None:
    subject = scheduler(model("a/a"))
    subject.queued("p", "a/a", 0.0)
    subject.decide(0.0)
    assert subject.load_failed("a/a", 1.0, "") == ["p"]
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
    subject.lost("a/a", 0.0, "")
    assert subject.running("a/a") == frozenset()
    assert subject.queue_length("a/a") == 1
    assert [type(decision) for decision in subject.decide(2.0)] == [Load]


def test_an_unwanted_model_finishes_first_and_is_loaded_again_on_demand() -> None:
    subject = scheduler(model("a/a"))
    loaded(subject, "a/a", 0.0)
    subject.queued("p", "a/a", 1.0)
    subject.decide(1.0)
    subject.request_unload("a/a", "asked for", 1.0)
    assert subject.decide(2.0) == []
    subject.finished("p", "a/a", 3.0)
    assert subject.decide(3.0) == [Unload("a/a", "asked for", ("gpu0",), 0)]
    subject.unloaded("a/a", 0.0)
    subject.queued("q", "a/a", 4.0)
    assert [type(decision) for decision in subject.decide(4.0)] == [Load]


def test_a_model_that_is_unwanted_while_it_loads_is_unloaded_once_it_is_there() -> None:
    subject = scheduler(model("a/a"))
    subject.request_load("a/a")
    assert [type(decision) for decision in subject.decide(0.0)] == [Load]
    subject.request_unload("a/a", "asked for", 1.0)
    subject.loaded("a/a", 2.0, ())
    assert subject.decide(2.0) == [Unload("a/a", "asked for", ("gpu0",), 0)]
    subject.unloaded("a/a", 3.0)
    assert subject.decide(3.0) == []


def test_a_model_that_is_unwanted_while_it_loads_stays_for_whoever_waits_for_it() -> None:
    subject = scheduler(model("a/a"))
    subject.queued("p", "a/a", 0.0)
    subject.decide(0.0)
    subject.request_unload("a/a", "asked for", 1.0)
    subject.loaded("a/a", 2.0, ())
    assert subject.decide(2.0) == [Start("p", "a/a", ("gpu0",), 2.0)]
    subject.finished("p", "a/a", 3.0)
    assert subject.decide(3.0) == []


def test_a_model_that_is_wanted_again_while_it_loads_stays() -> None:
    subject = scheduler(model("a/a"))
    subject.request_load("a/a")
    subject.decide(0.0)
    subject.request_unload("a/a", "asked for", 1.0)
    subject.request_load("a/a")
    subject.loaded("a/a", 2.0, ())
    assert subject.decide(2.0) == []


def test_who_waits_shares_the_load_and_hears_how_long_it_waited_for_it() -> None:
    subject = scheduler(model("a/a"))
    subject.queued("early", "a/a", 0.0)
    subject.decide(1.0)
    subject.queued("late", "a/a", 7.0)
    assert subject.decide(7.0) == []
    subject.loaded("a/a", 9.0, ())
    assert subject.decide(9.0) == [
        Start("early", "a/a", ("gpu0",), 8.0),
        Start("late", "a/a", ("gpu0",), 2.0),
    ]
    subject.finished("early", "a/a", 10.0)
    subject.queued("warm", "a/a", 11.0)
    assert subject.decide(11.0) == [Start("warm", "a/a", ("gpu0",))]
    assert subject.load_seconds("a/a") == 8.0


def test_what_is_asked_for_often_stays_although_it_was_used_longer_ago() -> None:
    subject = scheduler(model("often/x"), model("seldom/x"), model("c/c"))
    loaded(subject, "often/x", 0.0)
    loaded(subject, "seldom/x", 0.0)
    used(subject, "often/x", *range(10, 50))
    used(subject, "seldom/x", 10.0, 51.0)
    subject.queued("p", "c/c", 55.0)
    assert subject.decide(55.0) == [Unload("seldom/x", "memory is needed for c/c", ("gpu0",), 0)]


def test_what_takes_long_to_load_again_stays() -> None:
    subject = scheduler(model("slow/x"), model("quick/x"), model("c/c"))
    loaded(subject, "slow/x", 60.0, took=60.0)
    loaded(subject, "quick/x", 61.0, took=1.0)
    subject.queued("p", "c/c", 300.0)
    assert subject.decide(300.0) == [Unload("quick/x", "memory is needed for c/c", ("gpu0",), 0)]


def test_one_large_model_leaves_rather_than_many_small_ones() -> None:
    subject = scheduler(*(model(f"small/{n}", 1) for n in range(4)), model("large/x", 6), model("c/c", 5))
    for number in range(4):
        loaded(subject, f"small/{number}", 1.0)
    loaded(subject, "large/x", 2.0)
    subject.queued("p", "c/c", 100.0)
    assert subject.decide(100.0) == [Unload("large/x", "memory is needed for c/c", ("gpu0",), 0)]


def test_a_free_device_is_taken_before_anyone_is_evicted() -> None:
    subject = scheduler(model("a/a", 6), model("b/b", 6), devices=2)
    loaded(subject, "a/a", 0.0)
    subject.queued("p", "b/b", 100.0)
    assert subject.decide(100.0) == [Load("b/b", ("gpu1",), 6 * GIB, may_sleep=False)]


def test_the_device_whose_models_are_missed_least_makes_room() -> None:
    subject = scheduler(model("often/x", 6), model("seldom/x", 6), model("c/c", 6), devices=2)
    loaded(subject, "often/x", 0.0)
    loaded(subject, "seldom/x", 0.0)
    used(subject, "seldom/x", 99.0)
    used(subject, "often/x", *range(60, 90, 2))
    subject.queued("p", "c/c", 100.0)
    assert subject.decide(100.0) == [Unload("seldom/x", "memory is needed for c/c", ("gpu1",), 0)]


def test_a_model_stays_for_as_long_as_its_load_took() -> None:
    subject = scheduler(model("a/a", 6), model("b/b", 6))
    loaded(subject, "a/a", 40.0, took=40.0)
    subject.queued("p", "b/b", 41.0)
    assert subject.decide(79.9) == []
    assert subject.next_wakeup(79.9) == 80.0
    assert subject.decide(80.0) == [Unload("a/a", "memory is needed for b/b", ("gpu0",), 0)]


def test_nothing_is_unloaded_where_another_is_being_loaded() -> None:
    subject = scheduler(model("idle/x", 2, idle_unload_after=50.0), model("b/b", 4), model("c/c", 8))
    loaded(subject, "idle/x", 0.0)
    subject.queued("p", "b/b", 49.0)
    assert subject.decide(49.0) == [Load("b/b", ("gpu0",), 4 * GIB, may_sleep=False)]
    subject.queued("q", "c/c", 50.0)
    assert subject.decide(60.0) == []
    subject.loaded("b/b", 61.0, ())
    assert Unload("idle/x", "idle for 50 s", ("gpu0",), 0) in subject.decide(61.0)


def drained(subject: Scheduler, *, at: float) -> None:
    """``a/a`` runs one prediction, two more wait for it, and ``b/b`` has waited too long for its memory."""
    loaded(subject, "a/a", 20.0, took=20.0)
    subject.queued("runs", "a/a", 20.0)
    assert subject.decide(20.0) == [Start("runs", "a/a", ("gpu0",))]
    subject.queued("p", "b/b", at - 1000.0)
    for id in ("second", "third"):
        subject.queued(id, "a/a", at - 1.0)
    assert subject.decide(at) == []
    assert subject.residency("a/a") is Residency.DRAINING


def test_a_drained_model_takes_what_was_queued_but_nothing_that_comes_later() -> None:
    subject = scheduler(model("a/a", 6, concurrency=1), model("b/b", 6))
    drained(subject, at=2000.0)
    subject.queued("late", "a/a", 2001.0)
    subject.finished("runs", "a/a", 2001.0)
    assert subject.decide(2001.0) == [Start("second", "a/a", ("gpu0",))]
    subject.finished("second", "a/a", 2002.0)
    assert subject.decide(2002.0) == [Start("third", "a/a", ("gpu0",))]
    subject.finished("third", "a/a", 2003.0)
    (unload,) = subject.decide(2003.0)
    assert unload == Unload("a/a", "memory is needed for b/b, which has waited 1000.0 s", ("gpu0",), 0)
    subject.unloaded("a/a", 2004.0)
    assert subject.decide(2004.0) == [Load("b/b", ("gpu0",), 6 * GIB, may_sleep=False)]
    subject.loaded("b/b", 2005.0, ())
    assert subject.decide(2005.0) == [Start("p", "b/b", ("gpu0",), 1.0)]
    assert subject.queue_length("a/a") == 1  # it was not revived: what came later queues again


def test_a_drained_model_takes_nothing_more_once_its_quantum_is_over() -> None:
    subject = scheduler(model("a/a", 6, concurrency=1), model("b/b", 6))
    drained(subject, at=2000.0)
    subject.finished("runs", "a/a", 2020.0)  # its load took 20 s
    assert [type(decision) for decision in subject.decide(2020.0)] == [Unload]
    assert subject.queue_length("a/a") == 2


def test_a_large_model_that_waited_long_gets_a_device_cleared_for_it() -> None:
    subject = scheduler(*(model(f"small/{n}", 3) for n in range(6)), model("large/x", 10))
    subject.queued("p", "large/x", 0.0)
    subject.decide(0.0)
    subject.load_failed("large/x", 0.0, "")
    subject.queued("p", "large/x", 0.0)  # it backs off, so the others come first
    now = 0.0
    for number in range(3):
        subject.queued(f"s{number}", f"small/{number}", now)
        assert subject.decide(now) == [Load(f"small/{number}", ("gpu0",), 3 * GIB, may_sleep=False)]
        subject.loaded(f"small/{number}", now, ())
        assert [type(decision) for decision in subject.decide(now)] == [Start]
    now = BACKOFF[0] + PATIENCE
    assert subject.decide(now) == []
    assert [subject.residency(f"small/{number}") for number in range(3)] == [Residency.DRAINING] * 3
    subject.finished("s0", "small/0", now)
    assert [type(decision) for decision in subject.decide(now)] == [Unload]
    subject.unloaded("small/0", now)
    subject.queued("s9", "small/5", now)
    assert subject.decide(now) == []  # the memory is kept for the model that waited
    assert [each.model for each in subject.load_queue(now)] == ["large/x", "small/5"]
    assert subject.load_queue(now)[0].claimed_devices == ("gpu0",)


def test_who_waited_longest_is_loaded_first_and_priority_counts_double() -> None:
    for priority, first in ((0, "a/a"), (3, "b/b")):
        subject = scheduler(model("x/x", 8), model("a/a", 8), model("b/b", 8, priority=priority))
        loaded(subject, "x/x", 0.0)
        subject.queued("p", "a/a", 0.0)
        subject.queued("q", "b/b", 1.0)
        subject.decide(MIN_RESIDENCY)
        subject.unloaded("x/x", 3.0)
        assert subject.decide(3.0) == [Load(first, ("gpu0",), 8 * GIB, may_sleep=False)]


def test_of_two_alike_the_one_of_lower_priority_makes_room() -> None:
    subject = scheduler(model("a/a", priority=-1), model("b/b"), model("c/c"))
    loaded(subject, "b/b", 0.0)
    loaded(subject, "a/a", 1.0)
    subject.queued("p", "c/c", 100.0)
    assert subject.decide(100.0) == [Unload("a/a", "memory is needed for c/c", ("gpu0",), 0)]


def hot() -> Scheduler:
    """``hot/x`` is asked for every second until 59, and has no memory for ``c/c`` beside it."""
    subject = scheduler(model("hot/x", 6), model("c/c", 6))
    loaded(subject, "hot/x", 5.0, took=5.0)
    used(subject, "hot/x", *range(20, 60))
    return subject


def test_what_is_asked_for_all_the_time_is_not_evicted_for_one_prediction_at_once() -> None:
    subject = hot()
    subject.queued("p", "c/c", 59.5)
    assert subject.decide(59.5) == []
    used(subject, "hot/x", 60.0)
    assert subject.decide(74.0) == [Unload("hot/x", "memory is needed for c/c", ("gpu0",), 0)]


def test_what_is_loaded_by_hand_evicts_whatever_is_idle() -> None:
    subject = hot()
    subject.request_load("c/c")
    assert subject.decide(59.5) == [Unload("hot/x", "memory is needed for c/c", ("gpu0",), 0)]


def test_what_is_preloaded_may_be_evicted() -> None:
    subject = scheduler(model("a/a", 6, preload=True), model("b/b", 6))
    assert subject.decide(0.0) == [Load("a/a", ("gpu0",), 6 * GIB, may_sleep=False)]
    subject.loaded("a/a", 1.0, ())
    subject.queued("p", "b/b", 50.0)
    assert subject.decide(50.0) == [Unload("a/a", "memory is needed for b/b", ("gpu0",), 0)]


def test_what_can_never_fit_beside_a_pinned_model_is_said() -> None:
    subject = scheduler(model("a/a", 6, pin=True), model("b/b", 6))
    subject.check_fits("b/b")  # not loaded yet: it may still fail
    subject.decide(0.0)
    with pytest.raises(ModelTooLarge, match=r"b/b needs .*pinned models a/a"):
        subject.check_fits("b/b")
    subject.check_fits("a/a")


def test_shares_of_unequal_devices_never_exceed_the_smaller() -> None:
    demand = Demand(model="a/a", concurrency=1, share=1.0, devices=2)
    subject = Scheduler([Capacity("small", 4 * GIB), Capacity("large", 12 * GIB)], [demand])
    subject.queued("p", "a/a", 0.0)
    assert subject.decide(0.0) == [Load("a/a", ("large", "small"), 4 * GIB, may_sleep=False)]
    assert subject.free("small") == 0


def test_every_decision_is_logged_with_its_reason_its_bytes_and_its_time() -> None:
    subject = scheduler(model("a/a", 6), model("b/b", 6))
    loaded(subject, "a/a", 5.0, took=5.0)
    subject.queued("p", "b/b", 20.0)
    subject.decide(21.0)
    subject.unloaded("a/a", 22.0)
    subject.decide(22.0)
    assert subject.load_failed("b/b", 25.0, "no such file") == ["p"]
    assert logged(subject, EventKind.UNLOAD) == [("a/a", "memory is needed for b/b", "b/b", 6 * GIB, 16.0)]
    assert logged(subject, EventKind.UNLOADED) == [("a/a", "", None, 6 * GIB, 1.0)]
    assert logged(subject, EventKind.LOAD)[1] == (
        "b/b",
        "1 prediction waiting for 2.0 s",
        None,
        6 * GIB,
        None,
    )
    assert logged(subject, EventKind.READY) == [("a/a", "", None, 6 * GIB, 5.0)]
    assert logged(subject, EventKind.FAILED) == [("b/b", "no such file", None, 6 * GIB, 3.0)]
    numbers = [each.number for each in subject.events()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [each.number for each in subject.events(after=numbers[-2])] == numbers[-1:]
    assert subject.events(after=numbers[-1]) == []


def test_a_changed_model_finishes_what_it_has_before_it_is_loaded_anew() -> None:
    subject = scheduler(model("a/a", concurrency=1), model("b/b"))
    loaded(subject, "a/a", 0.0)
    for id in ("runs", "waits"):
        subject.queued(id, "a/a", 1.0)
    assert subject.decide(1.0) == [Start("runs", "a/a", ("gpu0",))]
    subject.update(model("a/a", gib=6, concurrency=3), 2.0, replace=True)
    subject.queued("later", "a/a", 2.0)
    assert [subject.served_before_replacement(id) for id in ("waits", "later")] == [True, False]
    assert subject.decide(2.0) == []
    subject.finished("runs", "a/a", 3.0)
    assert subject.decide(3.0) == [
        Start("waits", "a/a", ("gpu0",))
    ]  # one at a time still: it is what was loaded
    subject.finished("waits", "a/a", 4.0)
    assert [type(each) for each in subject.decide(4.0)] == [Unload]
    subject.unloaded("a/a", 5.0)
    assert subject.decide(5.0) == [Load("a/a", ("gpu0",), 6 * GIB, may_sleep=False)]
    subject.loaded("a/a", 6.0, ())
    assert subject.decide(6.0) == [Start("later", "a/a", ("gpu0",), 1.0)]


def test_a_model_that_changes_while_it_loads_serves_those_who_came_before() -> None:
    subject = scheduler(model("a/a"))
    subject.queued("before", "a/a", 0.0)
    subject.decide(0.0)
    subject.update(model("a/a", gib=2), 1.0, replace=True)
    subject.queued("after", "a/a", 1.0)
    subject.loaded("a/a", 2.0, ())
    (begun,) = subject.decide(2.0)
    assert isinstance(begun, Start)
    assert begun.id == "before"
    subject.finished("before", "a/a", 3.0)
    assert [type(each) for each in subject.decide(3.0)] == [Unload]


def test_what_a_model_asks_for_changes_at_once_where_nothing_is_loaded_anew() -> None:
    subject = scheduler(model("a/a", concurrency=1), model("b/b", gib=8))
    loaded(subject, "a/a", 0.0)
    subject.update(model("a/a", concurrency=2, pin=True), 1.0, replace=False)
    for id in ("one", "two"):
        subject.queued(id, "a/a", 1.0)
    assert subject.decide(1.0) == [Start("one", "a/a", ("gpu0",)), Start("two", "a/a", ("gpu0",))]
    with pytest.raises(ModelTooLarge):
        subject.check_fits("b/b")  # beside what is pinned now


def test_a_removed_model_is_forgotten_once_nothing_of_it_is_left() -> None:
    subject = scheduler(model("a/a", pin=True), model("b/b"))
    loaded(subject, "a/a", 0.0)
    subject.queued("last", "a/a", 1.0)
    subject.decide(1.0)
    subject.remove("b/b", 2.0)
    subject.remove("a/a", 2.0)
    assert subject.models == ["a/a"]
    subject.finished("last", "a/a", 3.0)
    assert [type(each) for each in subject.decide(3.0)] == [Unload]
    subject.unloaded("a/a", 4.0)
    assert subject.models == []
    assert subject.decide(5.0) == []
    assert (subject.residency("a/a"), subject.running("a/a")) == (Residency.COLD, frozenset())


def test_a_removed_model_that_comes_back_while_it_goes_is_loaded_again() -> None:
    subject = scheduler(model("a/a"))
    loaded(subject, "a/a", 0.0)
    subject.queued("runs", "a/a", 1.0)
    subject.decide(1.0)
    subject.remove("a/a", 2.0)
    subject.update(model("a/a", gib=1), 3.0, replace=True)
    subject.queued("new", "a/a", 3.0)
    subject.finished("runs", "a/a", 4.0)
    assert [type(each) for each in subject.decide(4.0)] == [Unload]
    subject.unloaded("a/a", 5.0)
    assert subject.decide(5.0) == [Load("a/a", ("gpu0",), GIB, may_sleep=False)]

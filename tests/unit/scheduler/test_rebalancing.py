"""Instances of one model: what waits for one of them begins on whichever is free first."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.scheduler import Capacity, Demand, Load, Owner, Residency, Scheduler, Start

GIB = 1024**3
FIRST, SECOND, THIRD = KEYS = ["m/m", "m/m#2", "m/m#3"]
LOAD = 5.0  # seconds that the load of one that never was is taken to need


def scheduler(*loaded: str, used: int = 3, memory: int = 12 * GIB, concurrency: int = 1) -> Scheduler:
    """Three instances of one model, these of them ready at 0."""
    subject = Scheduler(
        [Capacity("gpu", memory)],
        [Demand(model=key, memory=4 * GIB, concurrency=concurrency) for key in KEYS]
        + [Demand(model="m/other", memory=4 * GIB, concurrency=1)],
    )
    subject.set_instances(KEYS, used)
    for key in loaded:
        load(subject, key, 0.0)
    return subject


def load(subject: Scheduler, key: str, now: float) -> None:
    subject.request_load(key)
    assert Load in {type(decision) for decision in subject.decide(now)}
    subject.loaded(key, now, ())


def ask(subject: Scheduler, now: float, **instances: str) -> None:
    for id, key in instances.items():
        subject.queued(id, key, now)


def test_what_waits_for_a_busy_instance_begins_on_one_that_is_free() -> None:
    subject = scheduler(FIRST, SECOND)
    ask(subject, 0.0, a=FIRST, b=SECOND, c=FIRST)
    assert subject.decide(0.0) == [Start("a", FIRST, ("gpu",)), Start("b", SECOND, ("gpu",))]
    subject.finished("b", SECOND, 1.0)
    assert subject.decide(1.0) == [Start("c", SECOND, ("gpu",))]
    assert subject.running(SECOND) == {"c"}
    assert (subject.queue_length(), subject.queue_length(FIRST)) == (0, 0)


def test_who_waited_longest_goes_first_and_children_before_all() -> None:
    subject = scheduler(FIRST, SECOND, THIRD)
    ask(subject, 0.0, a=FIRST, b=SECOND, c=THIRD)
    subject.decide(0.0)
    ask(subject, 1.0, late=FIRST)
    ask(subject, 0.5, early=SECOND)
    subject.queued("child", FIRST, 2.0, parent="a")
    subject.finished("c", THIRD, 3.0)
    assert subject.decide(3.0) == [Start("child", THIRD, ("gpu",))]
    subject.finished("child", THIRD, 4.0)
    assert subject.decide(4.0) == [Start("early", THIRD, ("gpu",))]


def test_as_many_begin_as_there_are_slots() -> None:
    subject = scheduler(FIRST, SECOND, concurrency=2)
    ask(subject, 0.0, **{f"p{number}": FIRST for number in range(5)})
    assert subject.decide(0.0) == [
        Start("p0", FIRST, ("gpu",)),
        Start("p1", FIRST, ("gpu",)),
        Start("p2", SECOND, ("gpu",)),
        Start("p3", SECOND, ("gpu",)),
    ]
    assert subject.queued_for("p4") == FIRST


def test_what_waits_for_an_instance_that_loads_begins_where_a_slot_is_free_before() -> None:
    subject = scheduler(FIRST)
    ask(subject, 0.0, a=FIRST)
    subject.decide(0.0)
    ask(subject, 0.0, b=SECOND)
    assert [type(decision) for decision in subject.decide(0.0)] == [Load]
    subject.finished("a", FIRST, 1.0)
    assert subject.decide(1.0) == [Start("b", FIRST, ("gpu",))]
    subject.loaded(SECOND, 3.0, ())
    assert subject.decide(3.0) == []


def test_an_instance_that_is_not_used_any_more_takes_nothing_and_gives_what_waits_for_it() -> None:
    subject = scheduler(FIRST, SECOND)
    ask(subject, 0.0, a=FIRST, b=SECOND, c=FIRST, d=SECOND)
    subject.decide(0.0)
    subject.set_instances(KEYS, 1)
    subject.finished("b", SECOND, 1.0)
    assert subject.decide(1.0) == [Start("d", SECOND, ("gpu",))]  # it was its own
    subject.finished("d", SECOND, 2.0)
    assert subject.decide(2.0) == []
    ask(subject, 2.0, e=SECOND)
    subject.decide(2.0)
    ask(subject, 3.0, f=SECOND)
    subject.finished("a", FIRST, 3.0)
    assert subject.decide(3.0) == [Start("c", FIRST, ("gpu",))]
    subject.finished("c", FIRST, 4.0)
    assert subject.decide(4.0) == [Start("f", FIRST, ("gpu",))]


def test_one_more_is_loaded_when_there_is_memory_for_what_waits_as_long_as_that_takes() -> None:
    subject = scheduler(FIRST, "m/other", memory=8 * GIB)
    ask(subject, 0.0, a=FIRST, b=FIRST, other="m/other")
    subject.decide(0.0)
    assert subject.decide(LOAD + 5) == []  # no memory is free
    subject.finished("other", "m/other", LOAD + 5)
    subject.request_unload("m/other", "asked for", LOAD + 5)
    subject.decide(LOAD + 5)
    subject.unloaded("m/other", LOAD + 6)
    assert subject.decide(LOAD + 6) == [Load(SECOND, ("gpu",), 4 * GIB, may_sleep=False)]
    assert subject.queued_for("b") == SECOND
    subject.loaded(SECOND, LOAD + 9, ())
    assert subject.decide(LOAD + 9) == [Start("b", SECOND, ("gpu",), cold_start=3.0)]


def test_nothing_is_loaded_for_what_has_not_waited_for_long() -> None:
    subject = scheduler(FIRST)
    ask(subject, 10.0, a=FIRST, b=FIRST)
    assert subject.decide(10.0) == [Start("a", FIRST, ("gpu",))]
    assert subject.decide(9.9 + LOAD) == []
    wake = subject.next_wakeup(9.9 + LOAD)
    assert wake is not None
    assert wake <= 11 + LOAD
    assert subject.decide(10.0 + LOAD) == [Load(SECOND, ("gpu",), 4 * GIB, may_sleep=False)]


def test_what_will_have_a_slot_once_its_instance_is_ready_stays_there() -> None:
    subject = scheduler(FIRST)
    ask(subject, 10.0, a=FIRST)
    subject.decide(10.0)
    ask(subject, 10.0, b=SECOND)
    assert subject.decide(10.0) == [Load(SECOND, ("gpu",), 4 * GIB, may_sleep=False)]
    assert subject.decide(100.0) == []  # no third one


def test_a_load_that_fails_fails_no_prediction_that_another_instance_can_run() -> None:
    subject = scheduler(FIRST)
    ask(subject, 0.0, a=FIRST)
    subject.decide(0.0)
    ask(subject, 1.0, b=SECOND)
    assert subject.decide(1.0) == [Load(SECOND, ("gpu",), 4 * GIB, may_sleep=False)]
    assert subject.load_failed(SECOND, 2.0, "no") == []
    assert subject.queued_for("b") == FIRST
    subject.finished("a", FIRST, 3.0)
    assert subject.decide(3.0) == [Start("b", FIRST, ("gpu",))]
    subject.lost(FIRST, 4.0, "died")
    ask(subject, 4.0, c=FIRST)
    assert subject.decide(4.0) == [Load(FIRST, ("gpu",), 4 * GIB, may_sleep=False)]
    assert subject.load_failed(FIRST, 5.0, "no") == ["c"]  # nobody else serves


def test_what_was_asked_of_the_old_config_is_not_run_by_an_instance_of_the_new_one() -> None:
    subject = scheduler(FIRST, SECOND)
    ask(subject, 0.0, a=FIRST, b=SECOND, old=FIRST)
    subject.decide(0.0)
    for key in (FIRST, SECOND):
        subject.update(Demand(model=key, memory=3 * GIB, concurrency=1), 1.0, replace=True)
    subject.finished("b", SECOND, 2.0)
    subject.decide(2.0)
    subject.unloaded(SECOND, 3.0)
    load(subject, SECOND, 3.0)
    assert subject.decide(7.0) == []
    assert subject.served_before_replacement("old")
    subject.finished("a", FIRST, 8.0)
    assert subject.decide(8.0) == [Start("old", FIRST, ("gpu",))]


def test_while_the_appliance_stops_only_children_begin() -> None:
    subject = scheduler(FIRST, SECOND, THIRD)
    ask(subject, 0.0, a=FIRST, b=SECOND)
    subject.decide(0.0)
    ask(subject, 1.0, c=FIRST)
    assert subject.decide(1.0, children_only=True) == []
    subject.queued("child", FIRST, 2.0, parent="a")
    assert subject.decide(2.0, children_only=True) == [Start("child", THIRD, ("gpu",))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3))
def test_no_slot_is_free_while_something_waits(seed: int, used: int, concurrency: int) -> None:
    """Whatever comes and ends, and wherever it was sent; everything begins, and once."""
    rng = random.Random(seed)
    subject = scheduler(used=used, concurrency=concurrency)
    waiting: set[str] = set()
    running: dict[str, str] = {}
    begun: list[str] = []
    now, made = 0.0, 0
    while made < 40 or waiting:
        now += rng.expovariate(1.0)
        choice = rng.random()
        if choice < 0.5 and made < 40:
            ask(subject, now, **{f"p{made}": rng.choice(KEYS[:used])})
            waiting.add(f"p{made}")
            made += 1
        elif choice < 0.8 and running:
            id = rng.choice(sorted(running))
            subject.finished(id, running.pop(id), now)
        for key in KEYS:
            if subject.residency(key) is Residency.LOADING and rng.random() < 0.5:
                subject.loaded(key, now, ())
        for decision in subject.decide(now):
            if isinstance(decision, Start):
                waiting.remove(decision.id)
                running[decision.id] = decision.model
                begun.append(decision.id)
        for key in KEYS[:used]:
            if waiting and subject.residency(key) is Residency.READY:
                assert len(subject.running(key)) == concurrency
    assert sorted(begun) == sorted(f"p{number}" for number in range(40))


def test_a_free_instance_takes_the_first_prediction_in_the_fair_order_of_all_instances() -> None:
    subject = scheduler(FIRST, SECOND, THIRD)
    ask(subject, 0.0, a=FIRST, b=SECOND, c=THIRD)
    subject.decide(0.0)
    for number in range(3):
        subject.queued(f"bulk{number}", FIRST, 1.0, owner=Owner("bulk"))
    subject.queued("other", SECOND, 2.0, owner=Owner("other"))
    subject.queued("urgent", SECOND, 3.0, owner=Owner("urgent", 2))
    order, last = [], "c"
    for now in range(4, 9):
        subject.finished(last, THIRD, float(now))
        (decision,) = subject.decide(float(now))
        assert isinstance(decision, Start)
        assert decision.model == THIRD
        order.append(last := decision.id)
    assert order == ["urgent", "bulk0", "other", "bulk1", "bulk2"]


def test_a_prediction_moves_although_predictions_of_higher_priority_arrive_for_ever() -> None:
    subject = scheduler(FIRST, SECOND, THIRD)
    ask(subject, 0.0, a=FIRST, b=SECOND, c=THIRD)
    subject.decide(0.0)
    subject.queued("low", FIRST, 1.0, owner=Owner("low", -1))
    last = "c"
    for number in range(20):
        subject.queued(f"urgent{number}", SECOND, 2.0 + number, owner=Owner("urgent", 2))
        subject.finished(last, THIRD, 2.0 + number)
        (decision,) = subject.decide(2.0 + number)
        assert isinstance(decision, Start)
        last = decision.id
        if last == "low":
            return
    raise AssertionError("the prediction of low priority did not start")

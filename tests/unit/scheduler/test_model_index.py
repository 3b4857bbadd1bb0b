"""The models that decisions have to consider, and the times of models."""

from __future__ import annotations

from typing import Any

from appliance.scheduler import Capacity, Demand, Load, Scheduler, Start
from appliance.scheduler.model_index import DueTimes, ModelIndex

GIB = 1024**3


def index() -> ModelIndex:
    return ModelIndex(set())


def demand(name: str, **options: Any) -> Demand:
    return Demand(model=name, memory=GIB, concurrency=1, **options)


def test_the_first_time_is_that_of_the_earliest_model_and_changes_replace_earlier_times() -> None:
    models = index()
    first, second = models.new(demand("a/a")), models.new(demand("b/b"))
    times = DueTimes()
    times.set(first, 5.0)
    times.set(second, 3.0)
    assert times.earliest() == 3.0
    times.set(second, 9.0)
    assert times.earliest() == 5.0
    assert times.earliest(lambda model: model is second) == 9.0
    assert times.earliest() == 5.0  # the other models keep their times
    times.set(first, None)
    assert times.earliest() == 9.0


def test_replaced_times_do_not_pile_up_behind_an_earlier_time() -> None:
    models = index()
    idle, busy = models.new(demand("a/a")), models.new(demand("b/b"))
    times = DueTimes()
    times.set(idle, 5.0)
    for number in range(1000):
        times.set(busy, 10.0 + number)
    assert len(times._heap) < 100
    assert times.earliest(lambda model: model is busy) == 1009.0
    assert times.take_due(1009.0) == [idle, busy]


def test_due_models_are_taken_once_and_at_most_as_many_as_asked_for() -> None:
    models = index()
    entries = [models.new(demand(f"m/{number}")) for number in range(3)]
    times = DueTimes()
    for number, each in enumerate(entries):
        times.set(each, float(number))
    assert times.take_due(5.0, 2) == entries[:2]
    assert times.take_due(1.5) == []
    assert times.take_due(5.0) == entries[2:]
    assert times.earliest() is None


def test_a_model_is_in_the_order_in_which_it_was_added() -> None:
    models = index()
    entries = [models.new(demand(name, preload=True)) for name in ("z/z", "a/a", "m/m")]
    assert models.not_ready() == entries
    assert models.any_wants_load(0.0)
    assert not models.all_stable


def test_a_removed_model_is_forgotten() -> None:
    models = index()
    entry = models.new(demand("a/a", preload=True))
    assert models.is_waiting(entry)
    models.removed(entry)
    assert not models.is_waiting(entry)
    assert models.not_ready() == []
    assert models.take_changed(0.0) == {entry}
    assert models.all_stable


def test_a_prediction_that_did_not_start_because_only_children_do_starts_later() -> None:
    subject = Scheduler([Capacity("gpu0", 10 * GIB)], [demand("a/a")])
    subject.request_load("a/a")
    assert subject.decide(0.0) == [Load("a/a", ("gpu0",), GIB, may_sleep=False)]
    subject.loaded("a/a", 1.0, ())
    subject.queued("p", "a/a", 2.0)
    assert subject.decide(2.0, children_only=True) == []
    assert subject.decide(3.0, children_only=True) == []
    assert subject.decide(4.0) == [Start("p", "a/a", ("gpu0",))]

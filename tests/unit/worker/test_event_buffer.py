"""Events that a replica keeps for a restarted gateway."""

from __future__ import annotations

import sys

import msgspec

from appliance.domain.prediction import Done, Event, Log, Output
from appliance.worker.event_buffer import EventBuffer
from appliance.worker.protocol import RelayedEvent


def emitted(id: str, n: int, event: Event, attempt: int = 1) -> RelayedEvent:
    return RelayedEvent(id, attempt, n, msgspec.Raw(msgspec.msgpack.encode(event)))


def test_a_job_is_admitted_once_per_attempt() -> None:
    event_buffer = EventBuffer()
    assert [event_buffer.admit(id, 1) for id in "aba"] == [True, True, False]
    assert not event_buffer.admit("a", 1)
    assert event_buffer.admit("a", 2)
    assert not event_buffer.admit("a", 1)
    assert event_buffer.ids == ["b", "a"]


def test_events_stay_until_the_end_is_acknowledged() -> None:
    event_buffer = EventBuffer()
    event_buffer.admit("a", 1)
    events = [emitted("a", 1, Output(["x"])), emitted("a", 2, Done("succeeded"))]
    assert event_buffer.record(events[:1], 0.0) == events[:1]
    assert event_buffer.events() == events[:1]
    assert event_buffer.record(events[1:], 0.0) == events[1:]
    assert (event_buffer.running, event_buffer.ids) == ([], ["a"])
    assert not event_buffer.admit("a", 1)
    event_buffer.acknowledge(["a", "unknown"])
    assert (event_buffer.events(), event_buffer.ids) == ([], [])


def test_an_acknowledgement_may_come_before_the_last_event() -> None:
    event_buffer = EventBuffer()
    event_buffer.admit("a", 1)
    events = [emitted("a", 1, Output(["x"])), emitted("a", 2, Done("succeeded"))]
    event_buffer.record(events[:1], 0.0)
    event_buffer.acknowledge(["a"])
    assert event_buffer.events() == events[:1]
    assert event_buffer.record(events[1:], 0.0) == events[1:]
    assert (event_buffer.events(), event_buffer.ids) == ([], [])


def test_events_of_unknown_predictions_and_old_attempts_are_dropped() -> None:
    event_buffer = EventBuffer()
    event_buffer.admit("a", 1)
    event_buffer.record([emitted("a", 1, Output(["old"]))], 0.0)
    event_buffer.admit("a", 2)
    late = [emitted("a", 2, Output(["old"])), emitted("b", 1, Done("succeeded"))]
    assert event_buffer.record(late, 0.0) == []
    fresh = [emitted("a", 1, Output(["new"]), attempt=2)]
    assert event_buffer.record(fresh, 0.0) == fresh
    assert event_buffer.events() == fresh


def finish(event_buffer: EventBuffer, id: str, now: float, text: str = "") -> None:
    event_buffer.admit(id, 1)
    event_buffer.record([emitted(id, 1, Output([text])), emitted(id, 2, Done("succeeded"))], now)


def test_finished_predictions_expire() -> None:
    event_buffer = EventBuffer(keep_seconds=10)
    event_buffer.admit("running", 1)
    finish(event_buffer, "a", 0.0)
    finish(event_buffer, "b", 5.0)
    finish(event_buffer, "c", 10.0)
    assert event_buffer.ids == ["running", "a", "b", "c"]
    finish(event_buffer, "d", 12.0)
    assert event_buffer.ids == ["running", "b", "c", "d"]


def test_the_oldest_finished_predictions_make_space_for_the_newest() -> None:
    event_buffer = EventBuffer(keep_bytes=1000)
    for id in "abc":
        finish(event_buffer, id, 0.0, "x" * 400)
    assert event_buffer.ids == ["b", "c"]
    finish(event_buffer, "large", 0.0, "x" * 5000)
    assert event_buffer.ids == ["large"]
    event_buffer.acknowledge(["large"])
    finish(event_buffer, "d", 0.0, "x" * 400)
    finish(event_buffer, "e", 0.0, "x" * 400)
    assert event_buffer.ids == ["d", "e"]


def test_a_cleared_buffer_is_empty() -> None:
    event_buffer = EventBuffer(keep_bytes=1000)
    event_buffer.admit("running", 1)
    finish(event_buffer, "large", 0.0, "x" * 5000)
    event_buffer.clear()
    assert (event_buffer.events(), event_buffer.ids) == ([], [])
    assert event_buffer.admit("running", 1)
    for id in "ab":
        finish(event_buffer, id, 0.0, "x" * 400)
    assert event_buffer.ids == ["running", "a", "b"]


def test_only_the_last_event_of_a_prediction_ends_it() -> None:
    event_buffer = EventBuffer()
    event_buffer.admit("a", 1)
    texts: list[Event] = [Log("done"), Output([{"type": "done"}]), Output(["done"], append=False)]
    for n, event in enumerate(texts, 1):
        event_buffer.record([emitted("a", n, event)], 0.0)
        assert event_buffer.running == ["a"]
    event_buffer.record([emitted("a", 4, Done("canceled"))], 0.0)
    assert event_buffer.running == []


def test_a_kept_event_does_not_keep_its_whole_message_in_memory() -> None:
    event_buffer = EventBuffer()
    event_buffer.admit("a", 1)
    frame = msgspec.msgpack.encode([emitted("unknown", 1, Log("x" * 10_000)), emitted("a", 1, Log("short"))])
    events = msgspec.msgpack.decode(frame, type=list[RelayedEvent])
    references = sys.getrefcount(frame)
    [held] = event_buffer.record(events, 0.0)
    del events
    assert bytes(held.event) == msgspec.msgpack.encode(Log("short"))
    assert sys.getrefcount(frame) < references

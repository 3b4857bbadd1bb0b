"""What a replica holds for a gateway that may come back."""

from __future__ import annotations

from appliance.domain.prediction import Done, Emitted, Event, Job, Output
from appliance.worker.event_buffer import EventBuffer


def job(id: str, attempt: int = 1) -> Job:
    return Job(id, attempt, {})


def emitted(id: str, n: int, event: Event, attempt: int = 1) -> Emitted:
    return Emitted(id, attempt, n, event)


def test_a_job_is_admitted_once_per_attempt() -> None:
    outbox = EventBuffer()
    assert outbox.admit([job("a"), job("b"), job("a")]) == [job("a"), job("b")]
    assert outbox.admit([job("a")]) == []
    assert outbox.admit([job("a", 2)]) == [job("a", 2)]
    assert outbox.admit([job("a", 1)]) == []
    assert outbox.ids == ["b", "a"]


def test_events_stay_until_the_end_is_acknowledged() -> None:
    outbox = EventBuffer()
    outbox.admit([job("a")])
    events = [emitted("a", 1, Output(["x"])), emitted("a", 2, Done("succeeded"))]
    assert outbox.record(events[:1], 0.0) == events[:1]
    outbox.acknowledge(["a"])
    assert outbox.events() == events[:1]
    assert outbox.record(events[1:], 0.0) == events[1:]
    assert (outbox.running, outbox.ids) == ([], ["a"])
    assert outbox.admit([job("a")]) == []
    outbox.acknowledge(["a", "unknown"])
    assert (outbox.events(), outbox.ids) == ([], [])


def test_events_of_unknown_predictions_and_old_attempts_are_dropped() -> None:
    outbox = EventBuffer()
    outbox.admit([job("a")])
    outbox.record([emitted("a", 1, Output(["old"]))], 0.0)
    outbox.admit([job("a", 2)])
    late = [emitted("a", 2, Output(["old"])), emitted("b", 1, Done("succeeded"))]
    assert outbox.record(late, 0.0) == []
    fresh = [emitted("a", 1, Output(["new"]), attempt=2)]
    assert outbox.record(fresh, 0.0) == fresh
    assert outbox.events() == fresh


def test_a_lost_host_takes_along_what_had_not_ended() -> None:
    outbox = EventBuffer()
    outbox.admit([job("a"), job("b")])
    end = emitted("a", 1, Done("succeeded"))
    outbox.record([end, emitted("b", 1, Output(["x"]))], 0.0)
    outbox.forget_running()
    assert outbox.events() == [end]
    assert outbox.admit([job("b", 1)]) == [job("b", 1)]


def finish(outbox: EventBuffer, id: str, now: float, text: str = "") -> None:
    outbox.admit([job(id)])
    outbox.record([emitted(id, 1, Output([text])), emitted(id, 2, Done("succeeded"))], now)


def test_the_oldest_ended_go_when_time_is_over() -> None:
    outbox = EventBuffer(keep_seconds=10)
    outbox.admit([job("running")])
    finish(outbox, "a", 0.0)
    finish(outbox, "b", 5.0)
    finish(outbox, "c", 10.0)
    assert outbox.ids == ["running", "a", "b", "c"]
    finish(outbox, "d", 12.0)
    assert outbox.ids == ["running", "b", "c", "d"]


def test_the_oldest_ended_go_when_space_is_over_but_never_the_last() -> None:
    outbox = EventBuffer(keep_bytes=1000)
    for id in "abc":
        finish(outbox, id, 0.0, "x" * 400)
    assert outbox.ids == ["b", "c"]
    finish(outbox, "large", 0.0, "x" * 5000)
    assert outbox.ids == ["large"]
    outbox.acknowledge(["large"])
    finish(outbox, "d", 0.0, "x" * 400)
    finish(outbox, "e", 0.0, "x" * 400)
    assert outbox.ids == ["d", "e"]

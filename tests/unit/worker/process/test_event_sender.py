"""Numbering, merging and batching of the events that a worker process sends."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from appliance.domain.errors import PredictionFailed
from appliance.domain.prediction import Done, Emitted, Job, Log, Metric, Output
from appliance.worker import protocol
from appliance.worker.process import event_sender
from appliance.worker.process.event_sender import MESSAGE_BYTES, EventSender, EventStream
from appliance.worker.protocol import Events


class Wire:
    """Collects frames and reads them back."""

    def __init__(self) -> None:
        self.batches: list[list[Emitted]] = []
        self._reader: protocol.MessageReader[Events] = protocol.MessageReader(msgspec.msgpack.Decoder(Events))
        self.outgoing = EventSender(self.write)

    def write(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self.batches.append(message.events)

    def stream(self, id: str) -> EventStream:
        return EventStream(Job(id, 1, {}), self.outgoing)

    @property
    def events(self) -> list[Emitted]:
        return [event for batch in self.batches for event in batch]


async def turn() -> None:
    """Let everything run that is due now."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_short_prediction_is_one_message() -> None:
    wire = Wire()
    stream = wire.stream("a")
    for event in (Output(["x"], append=False), Metric("predict_time", 0.1), Done("succeeded")):
        stream.emit(event)
    assert wire.batches == []
    await turn()
    assert wire.batches == [
        [
            Emitted("a", 1, 1, Output(["x"], append=False)),
            Emitted("a", 1, 2, Metric("predict_time", 0.1)),
            Emitted("a", 1, 3, Done("succeeded")),
        ]
    ]
    assert stream.done


async def test_pending_events_are_merged_and_numbered_without_gaps() -> None:
    wire = Wire()
    a, b = wire.stream("a"), wire.stream("b")
    a.emit(Output(["1"]))
    await turn()
    own = ["2"]
    a.emit(Output(own))
    b.emit(Output(["B"]))
    a.emit(Output(["3", "4"]))
    a.emit(Log("l"))
    a.emit(Log("og\n"))
    a.emit(Output(["5"]))
    a.emit(Output(["whole"], append=False))
    a.emit(Done("succeeded"))
    await turn()
    assert own == ["2"]
    assert wire.batches[0] == [Emitted("a", 1, 1, Output(["1"]))]
    assert [e for e in wire.events[1:] if e.id == "a"] == [
        Emitted("a", 1, 2, Output(["2", "3", "4"])),
        Emitted("a", 1, 3, Log("log\n")),
        Emitted("a", 1, 4, Output(["5"])),
        Emitted("a", 1, 5, Output(["whole"], append=False)),
        Emitted("a", 1, 6, Done("succeeded")),
    ]
    assert [e for e in wire.events if e.id == "b"] == [Emitted("b", 1, 1, Output(["B"]))]


async def test_only_the_events_between_the_first_and_the_last_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_sender, "WINDOW", 3600.0)
    monkeypatch.setattr(event_sender, "MESSAGES", 0)
    wire = Wire()
    stream = wire.stream("a")
    wire.stream("b").emit(Done("canceled"))
    await turn()
    stream.emit(Output(["first"]))
    await turn()
    stream.emit(Output(["second"]))
    await turn()
    assert [event.n for event in wire.events if event.id == "a"] == [1]
    stream.emit(Done("succeeded"))
    await turn()
    assert [event.n for event in wire.events if event.id == "a"] == [1, 2, 3]


async def test_a_message_in_each_iteration_until_the_window_has_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_sender, "WINDOW", 3600.0)
    monkeypatch.setattr(event_sender, "MESSAGES", 3)
    wire = Wire()
    stream = wire.stream("a")
    for text in ("1", "2", "3", "4", "5"):
        stream.emit(Output([text]))
        await turn()
    assert [event.n for event in wire.events] == [1, 2, 3, 4]  # the first event does not count
    stream.emit(Done("succeeded"))
    await turn()
    assert [event.event for event in wire.batches[-1]] == [Output(["5"]), Done("succeeded")]


async def test_pending_events_are_sent_after_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_sender, "MESSAGES", 0)
    wire = Wire()
    stream = wire.stream("a")
    for text in ("first", "second"):
        stream.emit(Output([text]))
        await turn()
    async with asyncio.timeout(60):
        while len(wire.events) < 2:
            await asyncio.sleep(0.001)
    assert [event.n for event in wire.events] == [1, 2]


async def test_large_output_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_sender, "WINDOW", 3600.0)
    monkeypatch.setattr(event_sender, "MESSAGES", 1)
    wire = Wire()
    stream = wire.stream("a")
    stream.emit(Output(["first"]))
    await turn()
    stream.emit(Output(["x" * MESSAGE_BYTES]))
    await turn()
    assert len(wire.batches) == 2


async def test_a_full_socket_delays_messages_but_loses_none() -> None:
    wire = Wire()
    stream = wire.stream("a")
    wire.outgoing.pause()
    stream.emit(Output(["1"]))
    await turn()
    stream.emit(Output(["2"]))
    stream.emit(Done("succeeded"))
    await turn()
    assert wire.batches == []
    wire.outgoing.resume()
    assert wire.events == [Emitted("a", 1, 1, Output(["1", "2"])), Emitted("a", 1, 2, Done("succeeded"))]


@pytest.mark.parametrize("value", [object(), "\udcff", 1 << 70, {1: object()}])
async def test_a_value_that_cannot_be_sent_fails_only_its_prediction(value: object) -> None:
    wire = Wire()
    stream = wire.stream("a")
    with pytest.raises(PredictionFailed, match="cannot be encoded"):
        stream.emit(Output([value]))
    stream.emit(Done("failed", "said"))
    await turn()
    assert wire.events == [Emitted("a", 1, 1, Done("failed", "said"))]

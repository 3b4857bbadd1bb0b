"""Messages are the same in whatever pieces their bytes arrive."""

from __future__ import annotations

import itertools
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain import file
from appliance.domain.prediction import Done, Emitted, Job, Log, Metric, Output
from appliance.worker import protocol
from appliance.worker.protocol import (
    Cancel,
    Events,
    Exited,
    FromZygote,
    RelayedEvent,
    RelayedEvents,
    Run,
    Stop,
    WorkerCommand,
    WorkerEvent,
    WorkerFailed,
    WorkerReady,
)

DOWN = msgspec.msgpack.Decoder(WorkerCommand)
UP = msgspec.msgpack.Decoder(WorkerEvent)

MESSAGES: list[WorkerReady | WorkerFailed | Events] = [
    WorkerReady([1, 2]),
    WorkerFailed("no weights\n"),
    Events([]),
    Events(
        [
            Emitted("a", 1, 1, Log("ü\n")),
            Emitted("a", 1, 2, Output(["x", {"y": [1, None]}])),
            Emitted("a", 1, 3, Output(["whole"], append=False)),
            Emitted("a", 1, 4, Metric("predict_time", 0.5)),
            Emitted("a", 1, 5, Done("failed", "why")),
        ]
    ),
]


def as_read(message: WorkerReady | WorkerFailed | Events) -> WorkerEvent:
    """``message`` as the replica reads it: the events of predictions stay encoded."""
    if not isinstance(message, Events):
        return message
    return RelayedEvents(
        [
            RelayedEvent(
                sent.id,
                sent.attempt,
                sent.n,
                msgspec.Raw(msgspec.msgpack.encode(sent.event, enc_hook=file.pack)),
            )
            for sent in message.events
        ]
    )


@given(st.lists(st.sampled_from(MESSAGES)), st.lists(st.integers(0, 400)))
def test_messages_survive_any_split(
    messages: list[WorkerReady | WorkerFailed | Events], cuts: list[int]
) -> None:
    data = b"".join(protocol.encode(message) for message in messages)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = protocol.MessageReader(UP)
    received = [
        message for start, end in itertools.pairwise(edges) for message in reader.feed(data[start:end])
    ]
    assert received == [as_read(message) for message in messages]


def test_a_large_message_arrives_whole_in_many_parts() -> None:
    message = Events([Emitted("a", 1, 1, Output(["x" * 1_000_000]))])
    data = protocol.encode(message) + protocol.encode(WorkerFailed("next"))
    reader = protocol.MessageReader(UP)
    received = [m for at in range(0, len(data), 4096) for m in reader.feed(data[at : at + 4096])]
    assert received == [as_read(message), WorkerFailed("next")]


def test_each_direction_has_its_own_messages() -> None:
    reader = protocol.MessageReader(DOWN)
    job = Job("a", 2, {"text": "hi"})
    data = b"".join(protocol.encode(message) for message in (Run([job]), Cancel(["a"]), Stop()))
    assert reader.feed(data) == [Run([job]), Cancel(["a"]), Stop()]
    with pytest.raises(msgspec.ValidationError):
        reader.feed(protocol.encode(WorkerFailed("the other way")))


def test_receive_reads_exactly_one_message() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(protocol.encode(Exited(3)) + protocol.encode(Exited(-9)))
        decoder = msgspec.msgpack.Decoder(FromZygote)
        assert protocol.receive(ours, decoder) == Exited(3)
        assert protocol.receive(ours, decoder) == Exited(-9)
        theirs.sendall(b"\0\0")
        theirs.close()
        with pytest.raises(EOFError):
            protocol.receive(ours, decoder)

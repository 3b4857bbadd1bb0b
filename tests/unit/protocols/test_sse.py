"""Server-sent events, read from bytes that are cut anywhere."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from appliance.protocols.sse import EventReader, ServerSentEvent

STREAM = (
    ": hi\n\n"
    "event: output\nid: 1:1\ndata: two\ndata: lines \u2028 and a separator\n\n"
    "data: without a name\n\n"
    "event: output\nid: 1:2\ndata:\ndata:  x\n\n"
    "event: done\ndata: {}\n\n"
    "event: cut off\ndata: x\n"
).encode()
EVENTS = [
    ServerSentEvent("output", "two\nlines \u2028 and a separator"),
    ServerSentEvent("output", "\n x"),
    ServerSentEvent("done", "{}"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_the_bytes_come(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    read = [event for begin, end in pairwise(places) for event in reader.feed(STREAM[begin:end])]
    assert read == EVENTS

"""Server-sent events, read. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class ServerSentEvent(NamedTuple):
    """One server-sent event."""

    name: str
    data: str


class EventReader:
    """Takes the bytes of a stream as they come, and gives the events that they complete."""

    def __init__(self) -> None:
        """At the beginning of a stream."""
        self._parts: list[bytes] = []  # parts of an incomplete line
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that end in ``chunk``; comments and events without a name are left out."""
        # Lines end in LF alone: `splitlines` and the like also break at characters that a model may say.
        if b"\n" not in chunk:  # a long line arrives in many chunks
            self._parts.append(chunk)
            return
        *lines, rest = b"".join((*self._parts, chunk)).split(b"\n")
        self._parts = [rest]
        for line in lines:
            field, _, value = line.decode(errors="replace").partition(":")
            if not line:
                if self._name:
                    yield ServerSentEvent(self._name, "\n".join(self._data))
                self._name, self._data = "", []
            elif field == "event":
                self._name = value.removeprefix(" ")
            elif field == "data":
                self._data.append(value.removeprefix(" "))

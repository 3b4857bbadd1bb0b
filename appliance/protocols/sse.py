"""Parser of server-sent events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class ServerSentEvent(NamedTuple):
    """A server-sent event; ``name`` is the value of its field ``event``."""

    name: str
    data: str


class EventReader:
    """Incremental parser of a stream of server-sent events."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []  # of an incomplete line
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that end in ``chunk``, without comments and unnamed events."""
        # Split at LF only: `splitlines` also splits at other characters, which may be in the output of a
        # model.
        if b"\n" not in chunk:  # joining a long line at each chunk would take quadratic time
            self._chunks.append(chunk)
            return
        *lines, rest = b"".join((*self._chunks, chunk)).split(b"\n")
        self._chunks = [rest]
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

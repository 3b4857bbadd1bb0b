"""The gateway's HTTP connections, with limits for requests that come in and never finish.

uvicorn waits for ever for the rest of a request. Here its headers have a time, its body has to make progress,
and one client address may hold few requests that are slow. So a client that opens a thousand connections and
drips bytes into them holds none for long, while the upload of a large file over a slow line goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: Seconds for the headers of a request, for each ``PROGRESS`` bytes of its body, and for what a client goes
#: on to send when its request is answered already.
PATIENCE: Final = 30.0
PROGRESS: Final = 16 * 1024
LONGEST_HEADERS: Final = 64 * 1024  # bytes
#: A request is slow that has not arrived after ``SLOW`` seconds; a client address may have ``MOST_SLOW``.
SLOW: Final = 10.0
MOST_SLOW: Final = 64
_EVERY: Final = 1.0  # seconds between looks

_PHRASES: Final = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class _Stage(enum.Enum):
    """Which part of a request is awaited."""

    NONE = enum.auto()
    HEADERS = enum.auto()
    BODY = enum.auto()


class Connection(HttpToolsProtocol):
    """A connection that knows how long its request has been on its way."""

    _entered = 0  # how many parts have begun
    _began: float  # the present part, by the loop's clock

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(cast("asyncio.Transport", transport))  # uvloop's are none by inheritance
        self._enter(_Stage.HEADERS)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        before = self._entered
        super().data_received(data)
        # How many bytes belong to a part that begins in the middle of them is not known.
        count = len(data) if self._entered == before else 1
        self._received += count
        self._window += count
        if self._stage is _Stage.HEADERS and self._received > LONGEST_HEADERS:
            self._refuse(431, f"The headers of the request are over {LONGEST_HEADERS:,} bytes")
        elif self._stage is _Stage.NONE and self._answered:
            self._enter(_Stage.HEADERS)  # line breaks in front of a request

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._enter(_Stage.HEADERS)

    def on_headers_complete(self) -> None:
        """The body follows, if there is one."""
        super().on_headers_complete()
        self._enter(_Stage.BODY)

    def on_message_complete(self) -> None:
        """The request is here."""
        super().on_message_complete()
        self._enter(_Stage.NONE)

    def on_response_complete(self) -> None:
        """The answer is sent; the client may still be sending."""
        super().on_response_complete()
        if self._stage is _Stage.BODY:
            self._enter(_Stage.BODY)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, msg)

    def slow_since(self, now: float) -> float | None:
        """Bytes per second of a request that is slow in arriving; None if there is none."""
        age = now - self._began
        if self._stage is _Stage.NONE or age < SLOW or self.flow.read_paused:
            return None
        return self._received / age

    def look(self, now: float) -> None:
        """End the connection if its request has taken too long at ``now`` (the loop's time)."""
        if self._stage is _Stage.NONE or self.transport.is_closing():
            return
        answered = self._answered
        if self._stage is _Stage.HEADERS:
            if not answered:  # of a further request, behind one that is being answered
                self._enter(_Stage.HEADERS)
            elif now - self._began >= PATIENCE:
                self.end(f"The headers of the request did not arrive within {PATIENCE:g} s")
        elif answered:
            if now - self._began >= PATIENCE:
                self.transport.close()
        elif self.flow.read_paused or self.cycle.waiting_for_100_continue:  # nobody has asked for more
            self._since, self._window = now, 0
        elif now - self._since >= PATIENCE:
            if self._window < PROGRESS:
                self.end(f"The request body brought under {PROGRESS:,} bytes within {PATIENCE:g} s")
            self._since, self._window = now, 0

    def end(self, why: str) -> None:
        """Close the connection, and say ``why`` where a request has begun that is not answered."""
        if self._stage is _Stage.HEADERS and not self._received:
            self.transport.close()
        elif self._stage is _Stage.BODY and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(408, why)

    @property
    def _answered(self) -> bool:
        """Whether no request is waiting for the rest of its answer."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def _enter(self, stage: _Stage) -> None:
        self._stage = stage
        self._entered += 1
        self._began = self._since = self.loop.time()
        self._received = self._window = 0  # bytes since then

    def _refuse(self, status: int, why: str) -> None:
        phrase = _PHRASES[status]
        body = msgspec.json.encode({"title": phrase, "detail": why, "status": status})
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if self._stage is _Stage.BODY:
            self.cycle.disconnected = True  # what answers it need not go on
            self.cycle.message_event.set()
        self._stage = _Stage.NONE
        self.transport.close()


def look(connections: Iterable[Any], now: float, trusted: Callable[[str], bool]) -> None:
    """End what has taken too long at ``now``, and the slowest of what one client address has too much of.

    ``trusted`` says of an address that it is a proxy, which speaks for many clients.
    """
    slow: dict[str, list[tuple[float, Connection]]] = {}
    for connection in list(connections):
        if not isinstance(connection, Connection):
            continue
        connection.look(now)
        rate = connection.slow_since(now)
        if rate is not None and connection.client is not None:
            slow.setdefault(connection.client[0], []).append((rate, connection))
    for client, found in slow.items():
        if len(found) > MOST_SLOW and not trusted(client):
            found.sort(key=lambda one: one[0])
            why = f"Over {MOST_SLOW} requests of {client} are slow to arrive: send fewer at once"
            for _, connection in found[:-MOST_SLOW]:
                connection.end(why)


async def serve(server: uvicorn.Server, listening: socket.socket, trusted: Callable[[str], bool]) -> None:
    """Serve until the server is told to exit; its ``http`` must be ``Connection``."""
    watching = asyncio.get_running_loop().create_task(_watch(server, trusted))
    try:
        await server.serve(sockets=[listening])
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def _watch(server: uvicorn.Server, trusted: Callable[[str], bool]) -> None:
    while True:
        await asyncio.sleep(_EVERY)
        look(server.server_state.connections, asyncio.get_running_loop().time(), trusted)

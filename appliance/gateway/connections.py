"""The gateway's HTTP connections, with limits for requests that arrive slowly or never finish.

uvicorn waits for ever for the rest of a request. Here the headers have a timeout, the body has a minimum
rate, and one client address may have few slow requests at a time. A client that opens a thousand connections
and sends single bytes soon loses them, while the upload of a large file over a slow line continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, NamedTuple, cast

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

#: Timeout in seconds for the headers of a request, for each ``PROGRESS`` bytes of its body, and for the rest
#: of a body that the client still sends after the response.
PATIENCE: Final = 30.0
PROGRESS: Final = 16 * 1024
LONGEST_HEADERS: Final = 64 * 1024  # bytes
#: A request that has not fully arrived after ``SLOW`` seconds is slow. One client address may have
#: ``MAX_SLOW`` of them.
SLOW: Final = 10.0
MAX_SLOW: Final = 64
_EVERY: Final = 1.0  # seconds between checks

_PHRASES: Final = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class _Stage(enum.Enum):
    """The part of a request that the connection waits for."""

    NONE = enum.auto()
    HEADERS = enum.auto()
    BODY = enum.auto()


class ConnectionEnds(NamedTuple):
    """The ends of a client's connection to a node."""

    client: tuple[str, int]  # IP address and port
    server: tuple[str, int]  # IP address and port
    scheme: Literal["http", "https"]


class _GatheringTransport:
    """Joins the head of a response and the first part of its body into one write.

    uvicorn writes them separately. Each write would be a system call that wakes the client. Later parts of a
    body, such as the events of a stream, are written at once.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._gathered:
            self._gathered.append(data)
            self.flush()
        elif data.startswith(b"HTTP/"):
            self._gathered.append(data)
            self._loop.call_soon(self.flush)  # if no body follows
        elif data:
            self._transport.write(data)

    def flush(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            self._transport.write(b"".join(gathered))

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Connection(HttpToolsProtocol):
    """A connection that measures how long its request takes to arrive."""

    _entered = 0  # number of stages entered so far
    _began: float  # start of the current stage, by the loop's clock

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._gathering = _GatheringTransport(cast("asyncio.Transport", transport), self.loop)
        super().connection_made(cast("asyncio.Transport", self._gathering))
        self._enter(_Stage.HEADERS)

    def data_received(self, data: bytes) -> None:
        before = self._entered
        super().data_received(data)
        # If a stage begins within ``data``, it is unknown how many of the bytes belong to it.
        count = len(data) if self._entered == before else 1
        self._received += count
        self._window += count
        if self._stage is _Stage.HEADERS and self._received > LONGEST_HEADERS:
            self._refuse(431, f"The headers of the request are over {LONGEST_HEADERS:,} bytes")
        elif self._stage is _Stage.NONE and self._answered:
            self._enter(_Stage.HEADERS)  # line breaks may precede a request

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._enter(_Stage.HEADERS)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._enter(_Stage.BODY)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._enter(_Stage.NONE)

    def on_response_complete(self) -> None:
        """Handle the end of a response; the client may still be sending the request body."""
        self._gathering.flush()
        super().on_response_complete()
        if self._stage is _Stage.BODY:
            self._enter(_Stage.BODY)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def slow_since(self, now: float) -> float | None:
        """Return the bytes per second of the current request if the request is slow, else None."""
        age = now - self._began
        if self._stage is _Stage.NONE or age < SLOW or self.flow.read_paused:
            return None
        return self._received / age

    def end_if_slow(self, now: float) -> None:
        """End the connection if its request has taken too long at ``now`` (the loop's time)."""
        if self._stage is _Stage.NONE or self.transport.is_closing():
            return
        answered = self._answered
        if self._stage is _Stage.HEADERS:
            if not answered:  # these are headers of the next request, while the first is being answered
                self._enter(_Stage.HEADERS)
            elif now - self._began >= PATIENCE:
                self.end(f"The headers of the request did not arrive within {PATIENCE:g} s")
        elif answered:
            if now - self._began >= PATIENCE:
                self.transport.close()
        elif self.flow.read_paused or self.cycle.waiting_for_100_continue:  # the application is not reading
            self._since, self._window = now, 0
        elif now - self._since >= PATIENCE:
            if self._window < PROGRESS:
                self.end(f"Under {PROGRESS:,} bytes of the request body arrived within {PATIENCE:g} s")
            self._since, self._window = now, 0

    def end(self, why: str) -> None:
        """Close the connection. If a request has no response yet, send the error ``why`` first."""
        if self._stage is _Stage.HEADERS and not self._received:
            self.transport.close()
        elif self._stage is _Stage.BODY and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(408, why)

    @property
    def _answered(self) -> bool:
        """Return whether every request so far has its full response."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def _enter(self, stage: _Stage) -> None:
        self._stage = stage
        self._entered += 1
        self._began = self._since = self.loop.time()
        self._received = self._window = 0  # bytes since the stage began

    def _refuse(self, status: int, why: str) -> None:
        phrase = _PHRASES[status]
        body = msgspec.json.encode({"title": phrase, "detail": why, "status": status})
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        if self._stage is _Stage.BODY:
            self.cycle.disconnected = True  # tells the application to stop
            self.cycle.message_event.set()
        self._stage = _Stage.NONE
        self.transport.close()


class ForwardedConnection(Connection):
    """A connection of a client to a node, whose bytes the node forwards to this process."""

    def __init__(self, server: uvicorn.Server, ends: ConnectionEnds, keep: object) -> None:
        """``keep`` is an object that must live as long as the connection."""
        super().__init__(server.config, server.server_state, app_state={})
        self._ends = ends
        self._keep = keep

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.client, self.server, self.scheme = self._ends


def end_slow(connections: Iterable[Any], now: float, trusted: Callable[[str], bool]) -> None:
    """End requests that take too long, and the slowest requests of a client address with too many.

    ``now`` is the loop's time. ``trusted`` returns whether an address is a proxy for many clients.
    """
    slow: dict[str, list[tuple[float, Connection]]] = {}
    for connection in list(connections):
        if not isinstance(connection, Connection):
            continue
        connection.end_if_slow(now)
        rate = connection.slow_since(now)
        if rate is not None and connection.client is not None:
            slow.setdefault(connection.client[0], []).append((rate, connection))
    for client, found in slow.items():
        if len(found) > MAX_SLOW and not trusted(client):
            found.sort(key=lambda pair: pair[0])
            why = f"Over {MAX_SLOW} requests from {client} arrive slowly: send fewer at once"
            for _, connection in found[:-MAX_SLOW]:
                connection.end(why)


async def serve(server: uvicorn.Server, listening: socket.socket, trusted: Callable[[str], bool]) -> None:
    """Serve until the server is told to exit. The server's config must have ``http=Connection``."""
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
        end_slow(server.server_state.connections, asyncio.get_running_loop().time(), trusted)

"""The TLS server of an agent: accepts connections, checks who connects, and answers requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import IO, Any, Final, NamedTuple, Protocol

import msgspec

from appliance.domain.errors import ApplianceError, NodeError
from appliance.nodes import messages
from appliance.nodes.channel import CONNECTION_ERRORS, Channel, reason
from appliance.nodes.identity import Role
from appliance.nodes.messages import Content, ErrorReply

_log = logging.getLogger(__name__)

_IDLE: Final = 300.0  # seconds after which a connection without requests is closed
_UNAUTHENTICATED_IDLE: Final = 15.0  # seconds; clients without a certificate
_HANDSHAKE: Final = 10.0  # seconds
_MAX_UNAUTHENTICATED: Final = 32  # connections of clients without a certificate
_MAX_UNAUTHENTICATED_PER_HOST: Final = 8  # so that one host cannot keep others from joining
#: Connections of one member, not counting those that were handed over. Each HTTP client of a node needs one
#: for a moment; while there are too many, the node tries again.
_MAX_PER_MEMBER: Final = 1024
_MAX_LOGGED_HOSTS: Final = 1000  # whose invalid messages are in the log
_BUFFER: Final = 256 * 1024  # bytes


class Peer(NamedTuple):
    """The other end of a connection."""

    role: Role | None  # None without a certificate
    name: str
    host: str


#: Answers one request: sends the reply, and the content of files.
Handler = Callable[[Any, Channel, Peer], Awaitable[None]]


class RequestRoute(NamedTuple):
    """Who may send a request, and what answers it."""

    handler: Handler
    roles: frozenset[Role | None]


class AgentServer:
    """Answers the requests in ``routes``, each only for clients with one of its roles."""

    def __init__(self, routes: Mapping[Any, RequestRoute], requests: Any, context: ssl.SSLContext) -> None:
        """``requests`` is the union of all types of requests; ``routes`` has a route for each of them."""
        self._routes = routes
        self._requests = requests
        self._context = context
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unauthenticated: Counter[str] = Counter()  # connections without a certificate, by host
        self._authenticated: Counter[Peer] = Counter()  # connections with a certificate, by member
        self._logged: set[str] = set()  # hosts whose invalid messages are in the log

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(
            self._accept, sock=listener, ssl=self._context, limit=_BUFFER, ssl_handshake_timeout=_HANDSHAKE
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("asyncio runs this in a task")
        try:
            channel = Channel(reader, writer)
        except OSError:  # the client has disconnected already
            writer.close()
            return
        self._tasks.add(task)
        try:
            role, name = channel.peer or (None, "")
            peer = Peer(role, name, channel.peer_host)
            if role is None:
                await self._serve_unauthenticated(channel, peer)
            else:
                await self._serve_member(channel, peer)
        except msgspec.DecodeError as error:
            self._log_invalid(channel.peer_host, error)
        except CONNECTION_ERRORS as error:
            _log.debug("a connection from %s ended: %s", channel.peer_host, reason(error))
        except asyncio.CancelledError:
            channel.abort()
        finally:
            self._tasks.discard(task)
            channel.close()

    def _log_invalid(self, host: str, error: msgspec.DecodeError) -> None:
        """Log the first invalid message of each host."""
        if host not in self._logged and len(self._logged) < _MAX_LOGGED_HOSTS:
            self._logged.add(host)
            _log.warning("closing a connection from %s: an invalid message: %s", host, error)

    async def _serve_member(self, channel: Channel, peer: Peer) -> None:
        if self._authenticated[peer] >= _MAX_PER_MEMBER:
            return
        self._authenticated[peer] += 1
        try:
            await self._serve(channel, peer, _IDLE, messages.MAX_MESSAGE)
        finally:
            self._authenticated[peer] -= 1
            if not self._authenticated[peer]:
                del self._authenticated[peer]

    async def _serve_unauthenticated(self, channel: Channel, peer: Peer) -> None:
        if (
            self._unauthenticated.total() >= _MAX_UNAUTHENTICATED
            or self._unauthenticated[peer.host] >= _MAX_UNAUTHENTICATED_PER_HOST
        ):
            return
        self._unauthenticated[peer.host] += 1
        try:
            await self._serve(channel, peer, _UNAUTHENTICATED_IDLE, messages.MAX_UNAUTHENTICATED_MESSAGE)
        finally:
            self._unauthenticated[peer.host] -= 1
            if not self._unauthenticated[peer.host]:
                del self._unauthenticated[peer.host]

    async def _serve(self, channel: Channel, peer: Peer, idle: float, largest: int) -> None:
        while not (channel.handed_over or channel.writer.is_closing()):
            try:
                request = await channel.receive(self._requests, seconds=idle, largest=largest)
            except asyncio.IncompleteReadError as error:
                if not error.partial:  # between two requests
                    return
                raise
            route = self._routes[type(request)]
            if peer.role not in route.roles:
                await channel.send(
                    ErrorReply("this request is not allowed with the certificate of the client")
                )
                return
            try:
                await route.handler(request, channel, peer)
            except ApplianceError as error:
                await channel.send(ErrorReply(error.detail))
                if peer.role is None:  # for example a wrong secret: make room for other clients
                    return
            except OSError as error:
                if not channel.is_usable or isinstance(error, (ConnectionError, TimeoutError)):
                    raise
                text = f"{type(request).__name__} failed: {error}"
                _log.warning("a request of %s %s could not be answered: %s", peer.role, peer.name, text)
                await channel.send(ErrorReply(text, temporary=True))
                return  # the client may expect more bytes, or the connection may break while it is used


async def send_file(channel: Channel, file: IO[bytes], size: int, offset: int = 0) -> None:
    """Answer a request with the content of a file from ``offset``, and close the file.

    Raises:
        NodeError: the file is shorter than ``offset``.
    """
    with file:
        if offset > size:
            raise NodeError(f"the file has {size} bytes, fewer than {offset}")
        file.seek(offset)
        await channel.send(Content(size - offset))
        await channel.send_content(file, size - offset)


class ByteReader(Protocol):
    """Reads like ``asyncio.StreamReader``."""

    async def read(self, limit: int, /) -> bytes:
        """Return up to ``limit`` bytes; none at the end."""


async def pipe(channel: Channel, reader: ByteReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes both ways between a connection and a local socket, until one of them closes."""

    async def copy(source: ByteReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_BUFFER):
                target.write(data)
                await target.drain()

    ways = {
        asyncio.ensure_future(copy(channel.reader, writer)),
        asyncio.ensure_future(copy(reader, channel.writer)),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        writer.close()
        channel.close()  # sends what is still in its buffer

"""The HTTP server of a node or standby: forwards the connections of clients to the gateway of the head.

This server parses only the first line of a request. The gateway gets all bytes as they are, and also the IP
address of the client. So requests work as on the head: bodies and streams are not stored here, and the
gateway notices when a client disconnects. This server itself responds only if it cannot forward a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from http import HTTPStatus
from typing import Any, Final, Literal, NamedTuple

import msgspec

from appliance.domain.errors import (
    ApplianceError,
    ForwardingRefused,
    HeadUnreachable,
    NodeError,
    NodeStopping,
)
from appliance.nodes.channel import CONNECTION_ERRORS, Channel, reason
from appliance.nodes.gateway_channels import GatewayChannels
from appliance.nodes.messages import OpenGateway
from appliance.nodes.server import pipe
from appliance.protocols.compat_errors import ANTHROPIC, OPENAI, anthropic_error, openai_error

_log = logging.getLogger(__name__)

#: Seconds that a request waits for a head that cannot be reached, such as while its gateway restarts.
RETRY_TIMEOUT: Final = 10.0
#: Seconds that a health check waits for the head: load balancers wait only a few.
HEALTH_TIMEOUT: Final = 2.0
HEALTH: Final = frozenset({"/healthz", "/readyz"})
_RETRY_DELAY: Final = 0.25  # seconds between attempts to connect to the head
_READ_TIMEOUT: Final = 30.0  # seconds in which the first line of a request must arrive
_MAX_LINE: Final = 64 * 1024  # bytes
MAX_WAITING: Final = 1024 * 1024  # bytes of a request that this server holds until it can forward them
#: Seconds for which a request with ``MAX_WAITING`` bytes still waits for the head. While no more bytes are
#: read, this server does not notice that the client disconnects.
FULL_TIMEOUT: Final = 2.0
_BUFFER: Final = 256 * 1024  # bytes
_LINGER_TIMEOUT: Final = 2.0  # seconds for which a client may still send its body after an error response
_HANDSHAKE_TIMEOUT: Final = 10.0  # seconds
_SHUTDOWN_TIMEOUT: Final = 4.0  # seconds that open connections get when this server stops

_UNREACHABLE: Final = (
    "This machine cannot reach the head of the cluster, so it did not pass on the request; "
    f"try again in {HeadUnreachable.retry_after} seconds."
)


class RequestLine(NamedTuple):
    """The method and the path of a request."""

    method: str
    path: str

    @classmethod
    def of(cls, received: bytes | bytearray) -> RequestLine:
        """Parse the first line of a request. Without a path, ``path`` is empty: the head then refuses it."""
        words = received.lstrip(b"\r\n").partition(b"\n")[0].decode("latin-1").split()
        method, target = [*words, "", ""][:2]
        if not target.startswith("/"):  # http://host/path, which servers must accept (RFC 9112, 3.2.2)
            _, absolute, rest = target.partition("://")
            target = f"/{rest.partition('/')[2]}" if absolute else target
        return cls(method, target.partition("?")[0])


class HttpServer:
    """Accepts connections of HTTP clients, and forwards them."""

    def __init__(self, channels: GatewayChannels, tls: ssl.SSLContext | None = None) -> None:
        self._channels = channels
        self._tls = tls
        self._scheme: Literal["http", "https"] = "http" if tls is None else "https"
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._is_unreachable = False
        self._is_stopping = False
        self._refusal: ApplianceError | None = None
        self._forwarded: set[asyncio.Task[None]] = set()  # clients whose connections are forwarded now

    def refuse(self, error: ApplianceError) -> None:
        """Forward nothing from now on: close forwarded connections, and answer requests with ``error``."""
        self._refusal = error
        self.abort_forwarded()

    def abort_forwarded(self) -> None:
        """Close the connections that are forwarded, because the head has changed."""
        for task in self._forwarded:
            task.cancel()

    def fail_health_checks(self) -> None:
        """Answer health checks with an error, so that load balancers send no more requests to this node."""
        self._is_stopping = True

    @property
    def fails_health_checks(self) -> bool:
        return self._is_stopping

    async def start(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(
            self._accept,
            sock=listener,
            limit=_BUFFER,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_TIMEOUT,
        )

    async def close(self) -> None:
        """Accept no more connections, and close the open ones after ``_SHUTDOWN_TIMEOUT`` seconds."""
        if self._server is not None:
            self._server.close()
        if self._clients:
            await asyncio.wait(self._clients, timeout=_SHUTDOWN_TIMEOUT)
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=1.0)
        await self._channels.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("asyncio runs this in a task")
        self._clients.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError) as error:
            _log.debug("a connection of a client ended: %s", reason(error))
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client, server = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        if not client or not server:  # the client has gone
            return
        received = await _first_line(reader)
        if not received:
            return
        line = RequestLine.of(received)
        if self._is_stopping and line.path in HEALTH:
            await _respond(reader, writer, line, NodeStopping())
            return
        if self._refusal is not None:
            await _respond(reader, writer, line, self._refusal)
            return
        request = OpenGateway((client[0], client[1]), (server[0], server[1]), self._scheme)
        try:
            channel = await self._open_for_client(request, line, reader, received)
        except ApplianceError as error:
            await _respond(reader, writer, line, error)
            return
        if channel is not None:
            channel.writer.write(received)
            await self._forward(channel, reader, writer)

    async def _forward(
        self, channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("asyncio runs this in a task")
        self._forwarded.add(task)
        try:
            await pipe(channel, _Requests(reader, self), writer)
        except asyncio.CancelledError:
            channel.abort()  # a head that does not answer would never take the last bytes
            raise
        finally:
            self._forwarded.discard(task)

    async def _open_for_client(
        self, request: OpenGateway, line: RequestLine, reader: asyncio.StreamReader, received: bytearray
    ) -> Channel | None:
        """Connect to the gateway while the client sends; append to ``received`` what it sends.

        Return None if the client disconnects first: it may have sent the request to another machine.

        Raises:
            ApplianceError: the client must get this error.
        """
        opening = asyncio.ensure_future(self._open(request, line))
        receiving = asyncio.ensure_future(_receive(reader, received))
        opened: Channel | None = None
        try:
            await asyncio.wait((opening, receiving), return_when=asyncio.FIRST_COMPLETED)
            if receiving.done() and receiving.result():
                await asyncio.wait((opening,), timeout=FULL_TIMEOUT)
                if not opening.done():
                    raise HeadUnreachable(_UNREACHABLE)
            elif receiving.done():
                return None
            await _cancelled(receiving)
            opened = opening.result()
            return opened
        finally:
            receiving.cancel()
            await _cancelled(opening)
            if opened is None and not opening.cancelled() and opening.exception() is None:
                opening.result().abort()  # it was opened at the moment in which the client disconnected

    async def _open(self, request: OpenGateway, line: RequestLine) -> Channel:
        """Connect to the gateway, with several attempts. The gateway has none of the request if this fails.

        Raises:
            HeadUnreachable: no gateway answered in time.
            ForwardingRefused: the gateway refuses requests that nodes forward.
            ApplianceError: this server refuses requests meanwhile.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + (HEALTH_TIMEOUT if line.path in HEALTH else RETRY_TIMEOUT)
        while True:
            if self._refusal is not None:
                raise self._refusal
            try:
                channel = await self._channels.open(request, deadline - clock())
            except NodeError as error:
                raise ForwardingRefused(f"The head refuses requests that nodes forward: {error}") from error
            except CONNECTION_ERRORS as error:
                if not self._is_unreachable:
                    _log.warning("the head cannot be reached: %s", reason(error))
                self._is_unreachable = True
                if clock() + _RETRY_DELAY >= deadline:
                    raise HeadUnreachable(_UNREACHABLE) from error
                await asyncio.sleep(_RETRY_DELAY)
            else:
                if self._is_unreachable:
                    _log.info("the head can be reached again")
                self._is_unreachable = False
                return channel


class _Requests:
    """Reads from a connection of a client that is forwarded. Ends at a health check that must fail."""

    def __init__(self, reader: asyncio.StreamReader, server: HttpServer) -> None:
        self._reader = reader
        self._server = server

    async def read(self, limit: int) -> bytes:
        """Return bytes of the client; none at the end, or if a health check begins while the node stops.

        The connection is then closed. Clients open another one, on which the health check gets its error.
        """
        data = await self._reader.read(limit)
        if self._server.fails_health_checks and data.startswith((b"GET ", b"HEAD ")):
            return b"" if RequestLine.of(data[:_MAX_LINE]).path in HEALTH else data
        return data


async def _first_line(reader: asyncio.StreamReader) -> bytearray:
    """Return what a client has sent, with at least the first line; no bytes if it has disconnected."""
    received = bytearray()
    async with asyncio.timeout(_READ_TIMEOUT):
        while b"\n" not in received.lstrip(b"\r\n") and len(received) < _MAX_LINE:
            data = await reader.read(_BUFFER)
            if not data:
                return bytearray()
            received += data
    return received


async def _receive(reader: asyncio.StreamReader, received: bytearray) -> bool:
    """Append to ``received`` what a client sends.

    Return true once there are ``MAX_WAITING`` bytes, and false if the client disconnects before.
    """
    with contextlib.suppress(OSError):
        while data := await reader.read(_BUFFER):
            received += data
            if len(received) >= MAX_WAITING:
                return True
    return False


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and isinstance(task.exception(), Exception):
        _log.debug("a connection to the head ended: %s", task.exception())


async def _respond(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: RequestLine, error: ApplianceError
) -> None:
    """Send an error response, and give the client time to read it before the connection closes."""
    writer.write(response(line, error))
    await writer.drain()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(
            _LINGER_TIMEOUT
        ):  # closing at once would reset the connection of an upload
            while await reader.read(_BUFFER):
                pass


def response(line: RequestLine, error: ApplianceError) -> bytes:
    """Return an HTTP response with an error, in the format of the API that was called."""
    media = "application/json"
    if line.path.startswith(f"{OPENAI}/"):
        body = msgspec.json.encode(openai_error(error.status, error.detail))
    elif line.path.startswith(f"{ANTHROPIC}/"):
        body = msgspec.json.encode(anthropic_error(error.status, error.detail))
    else:
        media, body = "application/problem+json", msgspec.json.encode(error.body())
    retry = f"retry-after: {error.retry_after}\r\n" if isinstance(error, HeadUnreachable) else ""
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        f"content-type: {media}\r\n"
        f"content-length: {len(body)}\r\n"
        f"{retry}"
        "cache-control: no-store\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if line.method == "HEAD" else body)

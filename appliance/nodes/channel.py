"""One TLS connection between two processes of a cluster, with messages and the contents of files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import IO, Any, Final, TypeVar, cast

import msgspec

from appliance.domain.errors import NodeError, TemporaryNodeError
from appliance.nodes import identity, messages
from appliance.nodes.messages import Digest, ErrorReply, Reply

CHUNK: Final = 1024 * 1024  # bytes of a file that are in memory at once
#: Seconds without progress after which the other end counts as dead.
READ_TIMEOUT: Final = 30.0
CONNECT_TIMEOUT: Final = 10.0  # seconds
LENGTH: Final = struct.Struct(">I")
_BUFFER: Final = 256 * 1024  # bytes that a connection reads ahead
_STEPS: Final = 10  # parts of the timeout of ``within``

T = TypeVar("T", bound=msgspec.Struct)
R = TypeVar("R")
#: Errors of a connection whose other end has gone, or does not speak this protocol.
CONNECTION_ERRORS: Final = (OSError, EOFError, TimeoutError, msgspec.DecodeError)


class Channel:
    """Sends and receives messages on a connection. One task at a time may use it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.handed_over = False
        detect_death(writer.transport)

    @classmethod
    async def open(
        cls, host: str, port: int, context: ssl.SSLContext, own_address: str | None = None
    ) -> Channel:
        """Connect to an agent. ``own_address`` is the local address from which to connect.

        Raises:
            OSError: the agent cannot be reached, or one end refuses the certificate of the other.
            TimeoutError: the agent does not answer.
        """
        async with asyncio.timeout(CONNECT_TIMEOUT):
            reader, writer = await asyncio.open_connection(
                host,
                port,
                ssl=context,
                limit=_BUFFER,
                local_addr=None if own_address is None else (own_address, 0),
            )
        return cls(reader, writer)

    @property
    def peer(self) -> tuple[identity.Role, str] | None:
        """Role and name in the certificate of the other end; None without a certificate."""
        return identity.peer(self.writer.get_extra_info("peercert"))

    @property
    def peer_certificate(self) -> bytes:
        """The certificate of the other end (DER), which may not have been verified."""
        return cast("bytes", self.writer.get_extra_info("ssl_object").getpeercert(True))

    @property
    def peer_host(self) -> str:
        name = self.writer.get_extra_info("peername")  # None if the connection has closed already
        return str(name[0]) if name else "unknown"

    async def send(self, message: msgspec.Struct) -> None:
        self.writer.write(encode(message))
        async with asyncio.timeout(READ_TIMEOUT):
            await self.writer.drain()

    async def receive(
        self,
        type: Any,
        *,
        seconds: float | None = READ_TIMEOUT,
        largest: int = messages.MAX_MESSAGE,
    ) -> Any:
        """Return the next message, of ``type``, which may be a union.

        Raises:
            EOFError: the other end has closed the connection.
            OSError: the connection broke.
            TimeoutError: no message came within ``seconds``.
            msgspec.DecodeError: the message is not of ``type``, or larger than ``largest`` bytes.
        """
        async with asyncio.timeout(seconds):
            (size,) = LENGTH.unpack(await self.reader.readexactly(LENGTH.size))
            if size > largest:
                raise msgspec.DecodeError(f"a message has {size} bytes, more than {largest}")
            return msgspec.msgpack.decode(await self.reader.readexactly(size), type=type)

    async def reply(self, type: type[T], *, seconds: float | None = READ_TIMEOUT) -> T:
        """Return the reply to a request.

        Raises:
            NodeError: the other end could not carry out the request; the message has its reason.
            TemporaryNodeError: the same, and a later attempt may succeed.
        """
        message = await self.receive(Reply, seconds=seconds)
        if isinstance(message, ErrorReply):
            raise (TemporaryNodeError if message.temporary else NodeError)(message.message)
        if not isinstance(message, type):
            raise msgspec.ValidationError(f"an unexpected reply: {message.__struct_config__.tag}")
        return message

    async def send_content(self, file: IO[bytes], size: int) -> None:
        """Send ``size`` bytes of a file from its current position, and their digest.

        Raises:
            EOFError: the file is shorter than ``size``; the connection is unusable then.
        """
        digest = hashlib.sha256()

        def read(limit: int) -> bytes:
            data = file.read(limit)
            digest.update(data)
            return data

        left = size
        while left:
            data = await asyncio.to_thread(read, min(CHUNK, left))
            if not data:
                raise EOFError("the file has become shorter while it was sent")
            left -= len(data)
            self.writer.write(data)
            async with asyncio.timeout(READ_TIMEOUT):
                await self.writer.drain()
        await self.send(Digest(digest.hexdigest()))

    async def receive_content(
        self,
        file: IO[bytes],
        size: int,
        on_progress: Callable[[int], None] | None = None,
        digest: hashlib._Hash | None = None,
    ) -> OSError | None:
        """Write ``size`` received bytes to a file. Return the error if the file could not be written.

        The connection stays usable if the file could not be written. ``on_progress`` gets the number of each
        part's bytes. ``digest`` is a SHA-256 without data, which gets the bytes.

        Raises:
            NodeError: the bytes were changed on the way.
            OSError: the connection broke.
        """
        received = digest or hashlib.sha256()
        failure: OSError | None = None

        def write(data: bytes) -> None:
            received.update(data)
            file.write(data)
            file.flush()

        async for data in self._parts(size):
            if failure is not None:
                continue
            try:
                await asyncio.to_thread(write, data)
            except OSError as error:
                failure = error
            if on_progress is not None:
                on_progress(len(data))
        sent = await self.reply(Digest)
        if failure is None and sent.sha256 != received.hexdigest():
            raise NodeError("a file was changed on the way: the SHA-256 of its content is wrong")
        return failure

    async def _parts(self, size: int) -> AsyncIterator[bytes]:
        left = size
        while left:
            part = bytearray()  # a connection gives small pieces, and each part costs a change of threads
            while len(part) < min(CHUNK, left):
                async with asyncio.timeout(READ_TIMEOUT):
                    data = await self.reader.read(min(CHUNK, left) - len(part))
                if not data:
                    raise EOFError("the connection closed in the middle of a file")
                part += data
            left -= len(part)
            yield bytes(part)

    def hand_over(self, last: msgspec.Struct, protocol: asyncio.Protocol) -> None:
        """Send ``last``, and then let ``protocol`` alone use the connection.

        The other end must not have sent anything after its request. From now on, ``close`` and ``abort`` do
        nothing. ``protocol`` must keep this channel: a garbage-collected writer closes its connection.

        Raises:
            ConnectionError: the other end has closed the connection.
        """
        if not self.is_usable:
            raise ConnectionError("the other end has closed the connection")
        self.handed_over = True
        transport = cast("asyncio.Transport", self.writer.transport)
        transport.write(encode(last))
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def close(self) -> None:
        if not self.handed_over:
            self.writer.close()

    def abort(self) -> None:
        """Close the connection at once, without waiting for data that is not sent yet."""
        if not self.handed_over:
            self.writer.transport.abort()

    @property
    def is_usable(self) -> bool:
        return not (self.reader.at_eof() or self.writer.is_closing())


async def within(seconds: float, work: Coroutine[Any, Any, R]) -> R:
    """Return the result of ``work``, or time out after ``seconds``.

    Time in which this process hung hardly counts: after a hang, the answer may already have arrived, but a
    timeout of asyncio would expire before the answer is read. A process hangs if other programs use the
    processors, or if a task blocks the event loop.

    Raises:
        TimeoutError: ``work`` took longer.
    """
    working = asyncio.ensure_future(work)
    try:
        for _ in range(_STEPS):
            if (await asyncio.wait({working}, timeout=seconds / _STEPS))[0]:
                return await working
        raise TimeoutError
    finally:
        working.cancel()
        await asyncio.wait({working})  # ``work`` may use objects that the caller closes next


def detect_death(transport: asyncio.BaseTransport) -> None:
    """Let an idle connection break about 10 s after the other machine or the network has failed.

    TCP_USER_TIMEOUT is not set: it would also end connections whose other end reads nothing for a while, see
    tcp(7).
    """
    found = transport.get_extra_info("socket")
    if found is None or transport.is_closing():
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 4)  # seconds
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)  # seconds
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def encode(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def reason(error: BaseException) -> str:
    """Return why a connection failed, for people."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, EOFError):
        return "the connection was closed"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror or error)
    return str(error) or type(error).__name__

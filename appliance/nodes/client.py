"""The gateway's access to the agent of one node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar, cast

import msgspec

from appliance.domain.errors import ApplianceError, DiskFull, NodeError, NodeLost
from appliance.nodes import identity
from appliance.nodes.channel import (
    CONNECTION_ERRORS,
    LENGTH,
    READ_TIMEOUT,
    Channel,
    detect_death,
    encode,
    reason,
    within,
)
from appliance.nodes.identity import Identity
from appliance.nodes.messages import (
    AskFacts,
    AskInUse,
    Content,
    Copied,
    Copying,
    CopyWeights,
    DropFiles,
    DropOthers,
    ErrorReply,
    Facts,
    FetchFile,
    FindWeights,
    InUse,
    NodeFacts,
    Ok,
    OpenSocket,
    Ping,
    PrepareModules,
    Reply,
    SendFile,
    SocketOpened,
    Source,
    Stored,
    WeightsFound,
    WeightTree,
)
from appliance.nodes.weight_index import WeightIndex

__all__ = ["NodeClient", "NodeFacts"]

_PART_NAME: Final = 50  # characters of the name of a file in the name of its partial copy
_KEEP_IDLE: Final = 60.0  # seconds; the agent closes idle connections later than this
_MAX_IDLE: Final = 8  # connections
_CONNECT_TIMEOUT: Final = 10.0  # seconds
P = TypeVar("P", bound=asyncio.Protocol)
R = TypeVar("R", bound=msgspec.Struct)


class NodeClient:
    """Calls the agent of one node. All methods must be called on the gateway's event loop.

    Methods other than ``open_socket`` raise ``NodeLost`` if the node cannot be reached, and ``NodeError`` if
    the node could not do what was asked.
    """

    def __init__(
        self,
        own: Identity,
        name: str,
        host: str,
        port: int,
        weights: WeightIndex,
        sources: Callable[[], Iterable[Source]] = tuple,
    ) -> None:
        """``sources`` returns the agents from which the node can copy weights, the best first."""
        self.name = name
        self.host = host
        self.port = port
        self._context = identity.client_context(own)
        self._weights = weights
        self._sources = sources
        self._idle: list[tuple[float, Channel]] = []
        self._open: set[Channel] = set()
        self._sockets: set[asyncio.Transport] = set()
        self._closed = False

    async def open_socket(self, name: str, protocol: Callable[[], P]) -> tuple[asyncio.Transport, P]:
        """Connect to the Unix socket ``name`` in the folder ``run`` of the node.

        Like ``create_unix_connection`` of the event loop: TLS carries the bytes.

        Raises:
            OSError: the node cannot be reached, or nothing listens at that socket.
        """
        self._check_open()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            transport, opening = await loop.create_connection(
                lambda: _Opening(name, protocol, self._check_certificate),
                self.host,
                self.port,
                ssl=self._context,
            )
            try:
                opened = await opening.opened
            except BaseException:
                transport.abort()
                raise
        self._sockets = {each for each in self._sockets if not each.is_closing()}
        try:
            self._check_open()
        except ConnectionError:
            transport.abort()
            raise
        detect_death(transport)
        self._sockets.add(transport)
        return transport, opened

    async def ping(self, seconds: float = READ_TIMEOUT) -> None:
        """Return once the agent has answered; raise ``NodeLost`` if this takes longer than ``seconds``."""
        async with self._channel() as channel:
            await channel.send(Ping())
            await within(seconds, channel.reply(Ok, seconds=None))

    async def facts(self) -> NodeFacts:
        return (await self._ask(AskFacts(), Facts)).facts

    async def in_use(self) -> dict[str, int]:
        """Return the bytes in use by local device name, without devices whose use is unknown."""
        return (await self._ask(AskInUse(), InUse)).devices

    async def prepare(self, modules: list[str]) -> None:
        """Ask the zygote of the node to import ``modules``; do not wait for the import."""
        await self._ask(PrepareModules(modules), Ok)

    async def send_file(self, source: Path, prediction: str | None = None) -> str:
        """Copy a file to the node as an input of a prediction; return its absolute path on the node.

        With ``prediction``, the id, the file is in the folder ``run/inputs/ID`` of the node.
        """
        try:
            file = source.open("rb")
        except OSError as error:
            raise NodeError(f"{source} cannot be read: {error.strerror}") from error
        with file:
            size = os.fstat(file.fileno()).st_size
            async with self._channel() as channel:
                await channel.send(SendFile(source.name, size, prediction))
                await channel.reply(Ok)
                await channel.send_content(file, size)
                return (await channel.reply(Stored)).path

    async def fetch_file(self, path: str, target: Path) -> None:
        """Copy the file ``path`` of the node to ``target``; replace an older file there at the end."""
        partial = target.with_name(f".{target.name[:_PART_NAME]}.part")
        try:
            with partial.open("wb") as file:
                async with self._channel() as channel:
                    await channel.send(FetchFile(path))
                    content = await channel.reply(Content)
                    failure = await channel.receive_content(file, content.size)
            if failure is not None:
                raise failure
            partial.replace(target)
        except OSError as error:
            raise _unwritable(target, error) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    async def drop_files(self, paths: list[str]) -> None:
        """Delete input and output files on the node."""
        await self._ask(DropFiles(paths), Ok)

    async def drop_others(self, predictions: list[str]) -> None:
        """Delete the input and output files of all predictions on the node except these (ids)."""
        await self._ask(DropOthers(predictions), Ok)

    async def copy_weights(
        self,
        paths: Sequence[Path],
        keep: Iterable[str] = (),
        progress: Callable[[int, int], None] | None = None,
        on_deleted: Callable[[list[str]], None] | None = None,
    ) -> dict[str, str]:
        """Copy the files and folders ``paths`` to the node, except what it has; return its paths for them.

        ``keep`` are paths on the node that its clean-up must not delete. ``progress`` is called now and then,
        and at the end, with the bytes that were copied and the bytes to copy. ``on_deleted`` gets the paths
        of other copies that the node has deleted, because its disk was almost full.
        """
        trees = await self._weights.trees(paths)
        async with self._channel() as channel:
            await channel.send(CopyWeights(trees, list(self._sources()), list(keep)))
            while True:
                reply = await channel.receive(Reply)
                if isinstance(reply, Copying):
                    if progress is not None:
                        progress(reply.copied, reply.total)
                elif isinstance(reply, Copied):
                    if progress is not None:
                        progress(reply.copied, reply.copied)
                    if on_deleted is not None and reply.deleted:
                        on_deleted(reply.deleted)
                    return dict(zip(map(str, paths), reply.paths, strict=True))
                elif isinstance(reply, ErrorReply):
                    raise NodeError(reply.message)
                else:
                    raise msgspec.ValidationError("an unexpected reply")

    async def has_weights(self, paths: Sequence[Path]) -> bool:
        """Return whether the node has a copy of all files below ``paths``.

        Files that were never copied to any node are not read: the answer is False.
        """
        if not await self._weights.are_known(paths):
            return False
        trees: list[WeightTree] = await self._weights.trees(paths)
        return (await self._ask(FindWeights(trees), WeightsFound)).complete

    async def close(self) -> None:
        """Close all connections at once. Protocols of open sockets get ``connection_lost``."""
        self.abort()

    def abort(self) -> None:
        """Do the same as ``close``, for callers that cannot wait."""
        self._closed = True
        for channel in self._open | {channel for _, channel in self._idle}:
            channel.abort()
        self._idle.clear()
        for transport in self._sockets:
            transport.abort()
        self._sockets.clear()

    async def _ask(self, request: msgspec.Struct, reply: type[R]) -> R:
        async with self._channel() as channel:
            await channel.send(request)
            return await channel.reply(reply)

    @contextlib.asynccontextmanager
    async def _channel(self) -> AsyncIterator[Channel]:
        """Lend a connection. It is kept for the next request if this one ends well, or with ``NodeError``."""
        try:
            channel = await self._take()
        except CONNECTION_ERRORS as error:
            raise self._lost(error) from error
        self._open.add(channel)
        keep = False
        try:
            yield channel
            keep = True
        except NodeError as error:
            raise NodeError(f"node {self.name}: {error}") from error
        except CONNECTION_ERRORS as error:
            raise self._lost(error) from error
        finally:
            self._open.discard(channel)
            if keep and channel.is_usable and len(self._idle) < _MAX_IDLE and not self._closed:
                self._idle.append((time.monotonic(), channel))
            else:
                channel.close()

    async def _take(self) -> Channel:
        self._check_open()
        while self._idle:
            since, channel = self._idle.pop()
            if channel.is_usable and time.monotonic() - since < _KEEP_IDLE:
                return channel
            channel.close()
        channel = await Channel.open(self.host, self.port, self._context)
        try:
            self._check_certificate(channel.peer)
        except ConnectionError:
            channel.close()
            raise
        return channel

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionError("it is no longer a member of the cluster")

    def _check_certificate(self, found: tuple[identity.Role, str] | None) -> None:
        if found != ("node", self.name):
            raise ConnectionError(f"the certificate there is of {' '.join(found or ('nobody',))}")

    def _lost(self, error: BaseException) -> NodeLost:
        return NodeLost(f"node {self.name} at {self.host}:{self.port} cannot be reached: {reason(error)}")


def _unwritable(target: Path, error: OSError) -> ApplianceError:
    if DiskFull.is_cause_of(error):
        return DiskFull(f"{target} cannot be written: {error.strerror}")
    return NodeError(f"{target} cannot be written: {error.strerror}")


class _Opening(asyncio.Protocol):
    """Asks the agent to open a socket, and then hands the connection to the caller's protocol."""

    def __init__(
        self,
        name: str,
        protocol: Callable[[], asyncio.Protocol],
        check: Callable[[tuple[identity.Role, str] | None], None],
    ) -> None:
        self.opened: asyncio.Future = asyncio.get_running_loop().create_future()  # type: ignore[type-arg]
        self._name = name
        self._protocol = protocol
        self._check = check
        self._data = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        try:
            self._check(identity.peer(transport.get_extra_info("peercert")))
        except ConnectionError as error:
            self._fail(error)
            return
        self._transport.write(encode(OpenSocket(self._name)))

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) < LENGTH.size:
            return
        end = LENGTH.size + LENGTH.unpack_from(self._data)[0]
        if len(self._data) < end:
            return
        try:
            reply = msgspec.msgpack.decode(self._data[LENGTH.size : end], type=SocketOpened | ErrorReply)
        except msgspec.DecodeError as error:
            self._fail(ConnectionError(f"an invalid reply: {error}"))
            return
        if isinstance(reply, ErrorReply):
            self._fail(ConnectionRefusedError(reply.message))
            return
        if self.opened.done():  # the caller has given up
            self._transport.abort()
            return
        protocol = self._protocol()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if rest := bytes(self._data[end:]):
            protocol.data_received(rest)
        self.opened.set_result(protocol)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error if isinstance(error, OSError) else ConnectionResetError("the connection was closed"))

    def _fail(self, error: OSError) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)

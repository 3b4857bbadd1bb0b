"""The Unix sockets that connect the gateway to a runner replica and to its worker process.

If these run on another node, ``appliance.nodes`` carries the bytes between the machines.

Models are loaded and unloaded through Ray Serve. Jobs and events bypass Serve, because its router would take
most of the time of a short prediction. A gateway that connects to a replica first gets all unacknowledged
events, so a new gateway misses none. Then it connects to the worker process: when the replica confirms this,
jobs and events also bypass the replica, which keeps the events for the next gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Final, Protocol, TypeVar, cast

import msgspec

from appliance.domain import file
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.prediction import Emitted
from appliance.worker.protocol import (
    Attach,
    Cancel,
    Commands,
    DirectAttached,
    Events,
    FromReplica,
    MessageReader,
    PeakMemory,
    RelayedEvent,
    RelayedEvents,
    Run,
    StreamEnd,
    ToGateway,
    encode,
)
from appliance.worker.replica import Replica

_LAST_EVENTS: Final = 2.0  # seconds, at most, between the end of a worker process and the end of its socket
_commands_decoder: Final = msgspec.msgpack.Decoder(Commands)
_decoder: Final = msgspec.msgpack.Decoder(FromReplica, ext_hook=file.unpack)
_events_decoder: Final = msgspec.msgpack.Decoder(Events, ext_hook=file.unpack)
P = TypeVar("P", bound=asyncio.Protocol)


class SocketOpener(Protocol):
    """Connects to a Unix socket, on this machine or on another node."""

    async def __call__(self, path: Path, protocol: Callable[[], P], /) -> tuple[object, P]:
        """Return the transport and the protocol object.

        Raises:
            OSError: no process listens there, or the node cannot be reached.
        """
        ...


async def open_unix_socket(path: Path, protocol: Callable[[], P], /) -> tuple[object, P]:
    """Connect to a Unix socket on this machine."""
    return await asyncio.get_running_loop().create_unix_connection(protocol, str(path))


async def listen(replica: Replica, path: Path) -> asyncio.AbstractServer:
    """Accept gateways at ``path``, in a folder that no other user may enter.

    The gateway that connected last gets the events.

    Raises:
        OSError: the socket cannot be created.
    """
    server = await asyncio.get_running_loop().create_unix_server(lambda: _ReplicaEnd(replica), path)
    path.chmod(0o600)
    return server


async def connect(
    replica: Path, worker: Path, held: Iterable[str] = (), open_socket: SocketOpener = open_unix_socket
) -> DataConnection:
    """Connect to the replica that listens at ``replica``, and to its worker process at ``worker``, if it can.

    ``held`` are ids of predictions that a previous gateway sent. ``open_socket`` connects to a socket.

    Raises:
        OSError: no replica listens there.
    """
    _, to_replica = await open_socket(replica, _ReplicaConnection)
    try:
        _, to_worker = await open_socket(worker, _WorkerConnection)
    except OSError:  # jobs and events go through the replica, which also knows why the worker process ended
        return DataConnection(to_replica, None, held)
    except BaseException:
        to_replica.close()
        raise
    return DataConnection(to_replica, to_worker, held)


class _ReplicaEnd(asyncio.Protocol):
    """The replica's end of a connection."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._reader: MessageReader[Commands] = MessageReader(_commands_decoder)
        self._transport: asyncio.Transport
        self._delayed: list[RelayedEvent] | None = None  # events, while the gateway reads too slowly

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses
        self._replica.attach(self.send)

    def data_received(self, data: bytes) -> None:
        for commands in self._reader.feed(data):
            self._replica.receive(commands)

    def connection_lost(self, _: Exception | None) -> None:
        self._replica.detach(self.send)

    def send(self, message: ToGateway) -> None:
        if self._delayed is not None and isinstance(message, RelayedEvents):
            self._delayed += message.events
            return
        if isinstance(message, StreamEnd | DirectAttached):  # they must not overtake events
            self.resume_writing()
        self._transport.write(encode(message))
        if isinstance(message, StreamEnd):
            self._transport.close()

    def pause_writing(self) -> None:
        self._delayed = []

    def resume_writing(self) -> None:
        delayed, self._delayed = self._delayed, None
        if delayed:
            self._transport.write(encode(RelayedEvents(delayed)))


class DataConnection:
    """The gateway's connections to a replica and to its worker process."""

    def __init__(
        self, replica: _ReplicaConnection, worker: _WorkerConnection | None, held: Iterable[str]
    ) -> None:
        self._replica = replica
        self._worker = worker
        self._direct = False  # jobs and events go between the gateway and the worker process
        #: Ids of predictions whose commands go through the replica: a cancel must not overtake its job, and
        #: the replica ignores a job that a previous gateway has sent.
        self._through_replica = set(held)

    def send(self, commands: Commands) -> None:
        """Send commands; they are dropped if the connection has closed, which ``messages`` reports."""
        if not self._direct or self._worker is None:
            self._through_replica.update(job.id for job in commands.jobs)
            self._replica.send(commands)
            return
        through_replica = self._through_replica
        if jobs := [job for job in commands.jobs if job.id not in through_replica]:
            self._worker.send(Run(jobs))
        if cancels := [id for id in commands.cancels if id not in through_replica]:
            self._worker.send(Cancel(cancels))
        rest = Commands(
            jobs=[job for job in commands.jobs if job.id in through_replica],
            cancels=[id for id in commands.cancels if id in through_replica],
            acknowledged=commands.acknowledged,
            limit=commands.limit,
        )
        if rest != Commands():
            self._replica.send(rest)

    async def messages(self) -> AsyncIterator[list[Emitted] | EngineMetrics | PeakMemory | StreamEnd]:
        """Yield events, engine metrics and memory peaks.

        The last message is ``StreamEnd``, unless the replica has died. After ``StreamEnd()`` of a model that
        is still loaded, connect again: the replica knows the reason.
        """
        while (message := await self._replica.received.get()) is not None:
            if isinstance(message, StreamEnd) and message.failure is not None:
                break
            if (visible := self._visible(message)) is not None:
                yield visible
        async for events in self._last_events():
            yield events
        if message is not None:
            yield message

    def _visible(self, message: _Message) -> list[Emitted] | EngineMetrics | PeakMemory | StreamEnd | None:
        """Return what ``messages`` yields for a message, if anything."""
        match message:
            case Events(events):
                return None if self._direct else events  # the worker process sends them too
            case DirectAttached(token):
                if self._worker is not None and token == self._worker.token:
                    self._direct = True
                    self._replica.send(Commands(direct=True))
                    self._worker.deliver(self._replica.received)
                return None
            case WorkerClosed():
                return StreamEnd()
            case list() | EngineMetrics() | PeakMemory() | StreamEnd():
                return message

    async def _last_events(self) -> AsyncIterator[list[Emitted]]:
        """Yield what a lost worker process has sent: the replica's message may arrive before it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_EVENTS):
                while self._direct:
                    message = await self._replica.received.get()
                    if isinstance(message, WorkerClosed):
                        return
                    if isinstance(message, list):
                        yield message

    def close(self) -> None:
        self._replica.close()
        if self._worker is not None:
            self._worker.close()


class WorkerClosed(msgspec.Struct):
    """The connection to the worker process has closed: no more events come from there."""


#: A message of a replica, or events of its worker process.
_Message = FromReplica | list[Emitted] | WorkerClosed
_Received = asyncio.Queue[_Message | None]  # None after the replica's last message


class _Connection(asyncio.Protocol):
    """The gateway's end of one socket."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def send(self, message: msgspec.Struct) -> None:
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        self._transport.close()


class _ReplicaConnection(_Connection):
    """The gateway's end of a connection to a replica."""

    def __init__(self) -> None:
        super().__init__()
        self._reader: MessageReader[FromReplica] = MessageReader(_decoder)
        self.received: _Received = asyncio.Queue()

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self.received.put_nowait(message)

    def connection_lost(self, _: Exception | None) -> None:
        self.received.put_nowait(None)


class _WorkerConnection(_Connection):
    """The gateway's end of a connection to a worker process.

    Events are kept until ``deliver``, because the replica has earlier ones.
    """

    def __init__(self) -> None:
        super().__init__()
        #: The replica repeats it when it has relayed all events that this connection does not get.
        self.token = secrets.token_hex(8)
        self._reader: MessageReader[Events] = MessageReader(_events_decoder)
        self._kept: list[list[Emitted] | WorkerClosed] = []
        self._received: _Received | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.send(Attach(self.token))

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._put(message.events)

    def connection_lost(self, _: Exception | None) -> None:
        self._put(WorkerClosed())

    def deliver(self, received: _Received) -> None:
        """Put the events so far, and all that follow, into ``received``."""
        for kept in self._kept:
            received.put_nowait(kept)
        self._kept.clear()
        self._received = received

    def _put(self, message: list[Emitted] | WorkerClosed) -> None:
        if self._received is None:
            self._kept.append(message)
        else:
            self._received.put_nowait(message)

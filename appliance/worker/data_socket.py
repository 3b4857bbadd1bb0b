"""The Unix socket between the gateway and a runner replica, for jobs and events.

Models are loaded and unloaded through Ray Serve. Jobs and events bypass Serve, because its router would take
most of the time of a short prediction. A gateway that connects first gets all unacknowledged events, so a new
gateway misses none.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final, cast

import msgspec

from appliance.domain import file
from appliance.worker.protocol import (
    Commands,
    FromReplica,
    MessageReader,
    RelayedEvent,
    RelayedEvents,
    StreamEnd,
    ToGateway,
    encode,
)
from appliance.worker.replica import Replica

_commands_decoder: Final = msgspec.msgpack.Decoder(Commands)
_decoder: Final = msgspec.msgpack.Decoder(FromReplica, ext_hook=file.unpack)


async def listen(replica: Replica, path: Path) -> asyncio.AbstractServer:
    """Accept gateways at ``path``, in a folder that no other user may enter.

    The gateway that connected last gets the events.

    Raises:
        OSError: the socket cannot be created.
    """
    server = await asyncio.get_running_loop().create_unix_server(lambda: _GatewayConnection(replica), path)
    path.chmod(0o600)
    return server


async def connect(path: Path) -> ReplicaConnection:
    """Connect to the replica that listens at ``path``.

    Raises:
        OSError: no replica listens there.
    """
    _, connection = await asyncio.get_running_loop().create_unix_connection(ReplicaConnection, str(path))
    return connection


class _GatewayConnection(asyncio.Protocol):
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
        if isinstance(message, StreamEnd):
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


class ReplicaConnection(asyncio.Protocol):
    """The gateway's end of a connection."""

    def __init__(self) -> None:
        self._reader: MessageReader[FromReplica] = MessageReader(_decoder)
        self.transport: asyncio.Transport
        #: Messages of the replica, in order; None after the last one.
        self.messages: asyncio.Queue[FromReplica | None] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self.messages.put_nowait(message)

    def connection_lost(self, _: Exception | None) -> None:
        self.messages.put_nowait(None)

    def send(self, commands: Commands) -> None:
        """Send commands; they are dropped if the connection has closed, which ``messages`` reports."""
        if not self.transport.is_closing():
            self.transport.write(encode(commands))

    def close(self) -> None:
        self.transport.close()

"""The socket of a worker process for the gateway: jobs and events without the hop through the replica.

The replica gets all events too, for the next gateway, and is used until this connection is established.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import msgspec

from appliance.domain.prediction import Job
from appliance.worker.process.event_sender import EventSender
from appliance.worker.protocol import Attach, Cancel, DirectCommand, MessageReader, Run

_log = logging.getLogger(__name__)
_decoder: Final = msgspec.msgpack.Decoder(DirectCommand)


Start = Callable[[list[Job]], None]
CancelIds = Callable[[list[str]], None]


async def listen(
    path: Path, sender: EventSender, start: Start, cancel: CancelIds
) -> asyncio.AbstractServer | None:
    """Accept gateways at ``path``, in a folder that no other user may enter; None if that is not possible.

    ``start`` runs predictions, ``cancel`` cancels those with the given ids, ``sender`` has their events.
    """
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_unix_server(lambda: GatewayConnection(sender, start, cancel), str(path))
        path.chmod(0o600)
    except OSError as error:
        _log.warning(
            "cannot create the socket %s: %s: predictions go through the runner replica, which takes longer",
            path,
            error,
        )
        return None
    return server


class GatewayConnection(asyncio.Protocol):
    """The worker process's end of a connection. The gateway that attached last gets the events."""

    def __init__(self, sender: EventSender, start: Start, cancel: CancelIds) -> None:
        self._sender = sender
        self._start = start
        self._cancel = cancel
        self._reader: MessageReader[DirectCommand] = MessageReader(_decoder)
        self._transport: asyncio.Transport
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            match message:
                case Attach(token):
                    self._sender.send_to_gateway(self._write, token)
                case Run(jobs):
                    self._sender.add_received(jobs)
                    self._start(jobs)
                case Cancel(ids):
                    self._cancel(ids)

    def pause_writing(self) -> None:
        self._paused = True
        self._sender.pause()

    def resume_writing(self) -> None:
        self._paused = False
        self._sender.resume()

    def connection_lost(self, _: Exception | None) -> None:
        self._sender.stop_sending_to_gateway(self._write)
        if self._paused:
            self.resume_writing()

    def _write(self, message: bytes) -> None:
        self._transport.write(message)

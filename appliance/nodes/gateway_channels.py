"""Connections of a node or standby to the gateway of the head: one for each connection of an HTTP client."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance.domain.errors import HeadUnreachable
from appliance.nodes import identity
from appliance.nodes.channel import CONNECTION_ERRORS, Channel
from appliance.nodes.identity import Identity
from appliance.nodes.messages import GatewayOpened, OpenGateway

_SPARE_COUNT: Final = 4  # connections that are opened before clients need them, because TLS takes some time
_MAX_HANDSHAKES: Final = 16  # at once; many more would all take too long on a busy machine
_NEXT_HEAD_DELAY: Final = 2.0  # seconds after which the next machine that can be the head is tried
_MAX_SPARE_AGE: Final = 60.0  # seconds; the head closes idle connections later than this

_NOT_JOINED: Final = (
    "This machine has not joined the cluster yet, so it did not pass on the request; "
    f"try again in {HeadUnreachable.retry_after} seconds."
)


class GatewayChannels:
    """Opens connections to the gateway of the head."""

    def __init__(
        self, folder: Path, heads: Sequence[tuple[str, int]], own_address: str | None = None
    ) -> None:
        """``folder`` has the certificate of this machine. ``own_address`` is the IP address to connect from.

        ``heads`` are host and port of each machine that can be the head.
        """
        self._identity = Identity(folder)
        self._heads = list(heads)
        self._own_address = own_address
        self._context: tuple[int, ssl.SSLContext] | None = None  # with the time of the certificate in ns
        self._spare: list[tuple[float, Channel]] = []
        self._filling: asyncio.Task[None] | None = None
        self._handshakes = asyncio.Semaphore(_MAX_HANDSHAKES)

    def set_heads(self, heads: Sequence[tuple[str, int]]) -> None:
        """Connect only to these machines from now on."""
        self._heads = list(heads)
        self._close_spare()

    async def open(self, request: OpenGateway, seconds: float) -> Channel:
        """Return a connection for the bytes of a client. Nothing of the client has been sent on it yet.

        Raises:
            HeadUnreachable: this machine has never joined the cluster, or does not know the head.
            NodeError: the gateway refuses; the message has the reason.
            OSError, EOFError, TimeoutError, msgspec.DecodeError: the head cannot be reached now, or no
                gateway answers within ``seconds``.
        """
        async with asyncio.timeout(seconds):
            opened = await self._open(request)
        if self._filling is None or self._filling.done():
            self._filling = asyncio.ensure_future(self._fill())
        return opened

    async def _open(self, request: OpenGateway) -> Channel:
        while (spare := self._take_spare()) is not None:
            try:
                return await self._ask(spare, request)
            except CONNECTION_ERRORS:  # the head was unreachable for a while
                continue
        return await self._ask(await self._connect(), request)

    async def close(self) -> None:
        """Close the connections that no client uses."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait({self._filling})  # it may be in the middle of a TLS handshake
        self._close_spare()

    def _close_spare(self) -> None:
        for _, channel in self._spare:
            channel.close()
        self._spare.clear()

    async def _ask(self, channel: Channel, request: OpenGateway) -> Channel:
        try:
            await channel.send(request)
            await channel.reply(GatewayOpened, seconds=None)
        except BaseException:
            channel.abort()
            raise
        return channel

    def _take_spare(self) -> Channel | None:
        while self._spare:
            since, channel = self._spare.pop()
            if channel.is_usable and time.monotonic() - since < _MAX_SPARE_AGE:
                return channel
            channel.close()
        return None

    async def _fill(self) -> None:
        try:
            while len(self._spare) < _SPARE_COUNT:
                self._spare.append((time.monotonic(), await self._connect()))
        except (*CONNECTION_ERRORS, HeadUnreachable):  # clients get the error when they need a connection
            return

    async def _connect(self) -> Channel:
        """Connect to the head. Other machines that can be the head refuse, or have no certificate of it."""
        if not self._heads:
            raise HeadUnreachable(_NOT_JOINED)
        for head in self._heads[:-1]:
            try:
                async with asyncio.timeout(_NEXT_HEAD_DELAY):
                    return await self._connect_to(*head)
            except CONNECTION_ERRORS:
                if self._heads[0] == head:  # try it last from now on
                    self._heads.append(self._heads.pop(0))
        return await self._connect_to(*self._heads[0])

    async def _connect_to(self, host: str, port: int) -> Channel:
        async with self._handshakes:
            channel = await Channel.open(host, port, self._settings(), self._own_address)
        try:
            if channel.peer is None or channel.peer[0] != "head":
                raise ConnectionError("the machine there is not the head of the cluster")
        except BaseException:
            channel.abort()
            raise
        return channel

    def _settings(self) -> ssl.SSLContext:
        """Return the TLS settings. The certificate changes when the node joins again."""
        try:
            changed = self._identity.certificate.stat().st_mtime_ns
            if self._context is None or self._context[0] != changed:
                self._context = changed, identity.client_context(self._identity)
        except OSError as error:
            raise HeadUnreachable(_NOT_JOINED) from error
        return self._context[1]

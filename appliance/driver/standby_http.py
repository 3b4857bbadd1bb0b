"""HTTP on a standby: a process forwards requests to the head, in the same way as on a node.

The process uses the listening socket of this machine until the gateway of this machine uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

from rich.console import Console

from appliance import __version__
from appliance.domain.errors import ApplianceError, HeadUnreachable
from appliance.driver import node_http
from appliance.driver.node_http import HttpSettings, Listen
from appliance.driver.supervisor import Supervisor
from appliance.gateway.listener import ListeningSocket
from appliance.gateway.settings import GatewaySettings
from appliance.nodes.identity import Identity, JoinToken
from appliance.nodes.joining import join_as_standby
from appliance.nodes.registry import cluster_folder

_log = logging.getLogger(__name__)

_RETRY_DELAY: Final = 1.0  # seconds between attempts to reach the head; doubles with each attempt
_MAX_RETRY_DELAY: Final = 5.0  # seconds
_REFUSED_DELAY: Final = 60.0  # seconds after the head has refused this machine


class StandbyHttp:
    """Answers HTTP while this machine is the standby. Use ``forwarding``, which ends it."""

    def __init__(self, settings: GatewaySettings, listener: ListeningSocket, console: Console) -> None:
        self._settings = settings
        self._listener = listener
        self._console = console
        self._folder = cluster_folder(settings.home)
        self._child: Supervisor | None = None
        self._head: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def forward_to(self, head: str | None) -> None:
        """Forward requests to the head at the IP address ``head``.

        With None, which means that the head is not known now, continue with the last known head.
        """
        if self._child is None:
            self._child = await self._start()
        if head is None or head == self._head:
            return
        self._head = head
        self._cancel()
        self._run(self._join(head))

    def take_over(self) -> None:
        """Answer requests with status 503 until the gateway of this machine uses the listening socket."""
        if self._child is None:
            return
        child = self._child
        self._cancel()
        child.send_line(node_http.TAKING_OVER)
        self._listener.on_hand_out = lambda: self._run(child.stop())

    async def close(self) -> None:
        """End the process and close the listening socket. Call this while the event loop runs."""
        self._listener.close()
        self._cancel()
        if self._child is not None:
            await self._child.stop()

    async def _start(self) -> Supervisor:
        settings, tls = self._settings, self._settings.config.server.tls
        listen = Listen(settings.host, settings.port)
        if tls is not None:
            listen = Listen(settings.host, settings.port, str(tls.certificate), str(tls.key))
        http = HttpSettings(
            listen=listen,
            listener=str(settings.listener_socket),
            cluster=str(self._folder / "standby"),
            heads=(),
            own_address=self._own_address,
        )
        self._listener.hand_out()
        child = node_http.supervisor(http, settings.home / "logs" / "http.log")
        await child.start()
        return child

    async def _join(self, head: str) -> None:
        """Get a certificate of the head, and let the process forward requests to it."""
        cluster = self._settings.config.cluster
        assert cluster is not None, "only a machine with a section `cluster` can be the standby"
        delay, shown = _RETRY_DELAY, ""
        while True:
            try:
                await self._join_once(head, cluster.port)
                break
            except (ApplianceError, OSError) as error:
                text = f"requests get status 503, because they cannot be forwarded to the head: {error}"
                temporary = isinstance(error, HeadUnreachable)
            if text != shown:
                _log.warning("%s", text)
                if not temporary:
                    self._console.print(f"standby: {text}", highlight=False, markup=False, soft_wrap=True)
                shown = text
            await asyncio.sleep(delay if temporary else _REFUSED_DELAY)
            delay = min(2 * delay, _MAX_RETRY_DELAY)
        _log.info("requests are forwarded to the head at %s:%d", head, cluster.port)
        if self._child is not None:
            self._child.send_line(node_http.head_line(head, cluster.port))

    async def _join_once(self, head: str, port: int) -> None:
        # The token that operators choose has no fingerprint: the head proves that it knows the token.
        token = JoinToken(Identity(self._folder).secret.read_text().strip(), None)
        await join_as_standby(
            self._folder / "standby",
            token,
            head,
            port,
            name=self._settings.node,
            version=__version__,
            own_address=self._own_address,
        )

    @property
    def _own_address(self) -> str:
        assert self._settings.head is not None, "only a machine with a section `cluster` can be the standby"
        return self._settings.head.host

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def forwarding(
    settings: GatewaySettings, listener: ListeningSocket, console: Console
) -> AsyncIterator[StandbyHttp]:
    """Yield a ``StandbyHttp``; at the end of the block, end its process and close ``listener``.

    The first call of ``forward_to`` starts the process.
    """
    http = StandbyHttp(settings, listener, console)
    try:
        yield http
    finally:
        await http.close()

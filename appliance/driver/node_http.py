"""``python -m appliance.driver.node_http``: the HTTP server of a node, which ``appliance join`` starts.

It is a process of its own, which the driver of the node restarts. It also responds while the node joins.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from appliance.domain.errors import ConfigError
from appliance.driver.supervisor import Supervisor
from appliance.gateway.listener import ListeningSocket, receive_listener
from appliance.nodes.gateway_channels import GatewayChannels
from appliance.nodes.http_server import HttpServer
from appliance.observability import logs

#: Line on the standard input of the process: this node is going to stop.
STOPPING: Final = "stopping"


class Listen(msgspec.Struct, frozen=True):
    """Where a node answers HTTP. Paths are absolute."""

    host: str
    port: int
    certificate: str | None = None  # without a certificate, the node answers HTTP without TLS
    key: str | None = None

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS settings.

        Raises:
            ConfigError: the files cannot be used.
        """
        if self.certificate is None or self.key is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{self.certificate} and {self.key} cannot be used: {error}: give PEM files of one key pair",
                key="--certificate",
            ) from error
        return context


class HttpSettings(msgspec.Struct, frozen=True):
    """The settings of the process. Paths are absolute."""

    listen: Listen
    listener: str  # Unix socket from which the process gets the listening socket of the driver
    cluster: str  # folder with the certificate of this node
    heads: tuple[tuple[str, int], ...]  # host and port of each machine that can be the head
    own_address: str | None  # from which the node connects to the head


@contextlib.asynccontextmanager
async def serving(settings: HttpSettings | None, log: Path) -> AsyncIterator[Callable[[], None]]:
    """Run the HTTP server as a child process, if there are settings for it.

    The result is a function to call when this node is going to stop: health checks then fail, and other
    requests are still forwarded.

    Raises:
        ApplianceError: the address cannot be bound, or the certificate cannot be used.
    """
    if settings is None:
        yield lambda: None
        return
    listen = settings.listen
    listen.tls()
    encoded = msgspec.json.encode(settings).decode()
    command = [sys.executable, "-m", "appliance.driver.node_http", encoded]
    with ListeningSocket(listen.host, listen.port, Path(settings.listener), keys="--listen") as listener:
        listener.hand_out()
        child = Supervisor("HTTP server", lambda: command, log)
        await child.start()
        try:
            yield partial(child.send_line, STOPPING)
        finally:
            listener.close()
            await child.stop()


async def serve(settings: HttpSettings) -> None:
    """Serve until the process gets SIGTERM or the driver ends."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)

    channels = GatewayChannels(Path(settings.cluster), settings.heads, settings.own_address)
    server = HttpServer(channels, settings.listen.tls())

    def read_driver() -> None:
        if os.read(0, 1024):  # the driver sends only the line ``STOPPING``
            server.fail_health_checks()
        else:  # the driver has ended
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, read_driver)
    await server.start(await asyncio.to_thread(receive_listener, Path(settings.listener)))
    await stop.wait()
    await server.close()


def main() -> None:
    """Serve, until the driver ends and so closes this process's standard input."""
    parser = argparse.ArgumentParser(prog="python -m appliance.driver.node_http")
    parser.add_argument("settings", help="HttpSettings as JSON")
    arguments = parser.parse_args()
    logs.configure()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each connection of a client needs two
    uvloop.run(serve(msgspec.json.decode(arguments.settings, type=HttpSettings)))


if __name__ == "__main__":
    main()

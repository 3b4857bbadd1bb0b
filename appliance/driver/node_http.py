"""``python -m appliance.driver.node_http``: the HTTP server of a node or standby, which its driver starts.

It is a process of its own, which the driver restarts. It also responds while the machine joins.
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

from appliance.domain.errors import ConfigError, HeadUnreachable
from appliance.driver.supervisor import Supervisor
from appliance.gateway.listener import ListeningSocket, receive_listener
from appliance.nodes.gateway_channels import GatewayChannels
from appliance.nodes.http_server import HttpServer
from appliance.observability import logs

#: Lines on the standard input of the process: this node is going to stop; this standby is becoming the head.
STOPPING: Final = "stopping"
TAKING_OVER: Final = "taking over"
_HEAD: Final = "head "  # begins a line with the host and port of the head
_TAKING_OVER: Final = (
    f"This machine is becoming the head of the cluster; try again in {HeadUnreachable.retry_after} seconds."
)


def head_line(host: str, port: int) -> str:
    """Return the line on the standard input of the process that names the head to forward requests to."""
    return f"{_HEAD}{host} {port}"


class Listen(msgspec.Struct, frozen=True):
    """Where a machine answers HTTP. Paths are absolute."""

    host: str
    port: int
    certificate: str | None = None  # without a certificate, HTTP is answered without TLS
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
    cluster: str  # folder with the certificate of this machine
    heads: tuple[tuple[str, int], ...]  # host and port of each machine that can be the head
    own_address: str | None  # from which this machine connects to the head


def supervisor(settings: HttpSettings, log: Path) -> Supervisor:
    """Return the supervisor of the process."""
    command = [sys.executable, "-m", "appliance.driver.node_http", msgspec.json.encode(settings).decode()]
    return Supervisor("HTTP server", lambda: command, log)


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
    with ListeningSocket(listen.host, listen.port, Path(settings.listener), keys="--listen") as listener:
        listener.hand_out()
        child = supervisor(settings, log)
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

    received = bytearray()

    def read_driver() -> None:
        data = os.read(0, 4096)
        if not data:  # the driver has ended
            loop.remove_reader(0)
            stop.set()
        *lines, received[:] = (received + data).split(b"\n")
        for line in lines:
            _handle_line(line.decode(), server, channels)

    loop.add_reader(0, read_driver)
    await server.start(await asyncio.to_thread(receive_listener, Path(settings.listener)))
    await stop.wait()
    await server.close()


def _handle_line(line: str, server: HttpServer, channels: GatewayChannels) -> None:
    """Do what a line from the driver says."""
    if line == STOPPING:
        server.fail_health_checks()
    elif line == TAKING_OVER:
        server.refuse(HeadUnreachable(_TAKING_OVER))
    elif line.startswith(_HEAD):
        host, port = line.removeprefix(_HEAD).split()
        channels.set_heads([(host, int(port))])
        server.abort_forwarded()


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

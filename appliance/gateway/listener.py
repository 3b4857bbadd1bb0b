"""The listening socket: the driver owns it, gateways accept connections from it.

The socket stays open when a gateway dies. Connections made before the next gateway starts wait in the
kernel's queue instead of being refused.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

from appliance.domain.errors import ApplianceError
from appliance.domain.local_url import host_and_port

_log = logging.getLogger(__name__)

_BACKLOG: Final = 2048  # connections that wait to be accepted; the kernel's net.core.somaxconn may be lower
_PATIENCE: Final = 30.0  # seconds within which the driver must hand over the socket
_ADVICE: Final = "choose another port (--port, APPLIANCE_PORT, server.port) or address (--host, server.host)"
_LISTENING: Final = b"\0"  # message sent with the descriptor; any other message is an error


class ListeningSocket:
    """The driver's listening socket, handed to gateways through a Unix socket, on the driver's event loop."""

    def __init__(self, host: str, port: int, path: Path, *, keys: str | None = None) -> None:
        """Bind ``host``, an IP address or a name, and ``port``. ``keys`` are those of models.yaml for both.

        Connections are refused until a gateway has asked for the socket at ``path``.

        Raises:
            ApplianceError: the address cannot be bound.
        """
        self._bind_address = host_and_port(host, port)
        self._advice = _ADVICE if keys is None else f"choose another one in {keys}"
        self._path = path
        self._handing_out = False
        #: Called each time that a process has got the socket.
        self.on_hand_out: Callable[[], None] | None = None
        try:
            family, address = socket_address(host, port)
        except OSError as error:
            raise ApplianceError(f"cannot listen on {self._bind_address}: {self._reason(error)}") from error
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._handout = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(address)
        except OSError as error:
            self.close()
            raise ApplianceError(f"cannot listen on {self._bind_address}: {self._reason(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hand_out(self) -> None:
        """Hand the socket to processes of this user that connect to ``path``, from now on."""
        if self._handing_out:
            return
        self._path.unlink(missing_ok=True)
        self._handout.bind(str(self._path))
        self._path.chmod(0o600)
        self._handout.listen()
        self._handout.setblocking(False)
        asyncio.get_running_loop().add_reader(self._handout, self._answer)
        self._handing_out = True

    def close(self) -> None:
        """Close the socket. Once gateways have closed theirs too, connections are refused."""
        if self._handing_out:
            self._handing_out = False
            asyncio.get_running_loop().remove_reader(self._handout)
            self._path.unlink(missing_ok=True)
        self._handout.close()
        self._socket.close()

    def _answer(self) -> None:
        try:
            client, _ = self._handout.accept()
        except OSError:  # the client has gone
            return
        with client:
            try:
                self._socket.listen(_BACKLOG)
            except OSError as error:
                client.send(f"cannot listen on {self._bind_address}: {self._reason(error)}".encode())
            else:
                socket.send_fds(client, [_LISTENING], [self._socket.fileno()])
                if self.on_hand_out is not None:
                    self.on_hand_out()

    def _reason(self, error: OSError) -> str:
        return f"{error.strerror}; {self._advice}"


def socket_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Return the family and address to bind for ``host``. A name with both families means IPv4.

    Raises:
        ApplianceError: ``host`` is an IPv6 address with a zone.
        OSError: the name ``host`` cannot be resolved.
    """
    if "%" in host:
        zone = host[host.index("%") :]
        raise ApplianceError(
            f"cannot listen on {host}: a URL cannot have the zone {zone}: listen on an address without a "
            'zone, or on "::", which means all addresses (--host, server.host)'
        )
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, address


def receive_listener(path: Path) -> socket.socket:
    """Return the listening socket from the driver's Unix socket at ``path``.

    Raises:
        ApplianceError: the driver hands out no socket at ``path``.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(str(path))
            message, descriptors, _, _ = socket.recv_fds(connection, 1024, 1)
    except OSError as error:
        raise ApplianceError(f"cannot get the listening socket from the driver at {path}: {error}") from error
    if message != _LISTENING:
        raise ApplianceError(message.decode() or f"the driver has no listening socket at {path}")
    listener = socket.socket(fileno=descriptors[0])
    listener.setblocking(False)
    return listener

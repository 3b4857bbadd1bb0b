"""The listening socket: the driver owns it, gateways accept connections from it.

It stays open when a gateway dies, so connections that are made until the next one is there wait in the
kernel's queue and are answered then, instead of being refused.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Final, Self

from appliance.domain.errors import ApplianceError

_log = logging.getLogger(__name__)

_BACKLOG: Final = 2048  # connections that wait to be accepted; the kernel's net.core.somaxconn may be lower
_PATIENCE: Final = 30.0  # seconds within which the driver must hand over the socket
_GIVEN: Final = b"\0"  # message sent with the descriptor; any other message is an error


class ListeningSocket:
    """The driver's listening socket, which gateways get through a Unix socket. Lives on the driver's loop."""

    def __init__(self, host: str, port: int, path: Path) -> None:
        """Bind ``host:port``. Connections are refused until a gateway has asked for the socket at ``path``.

        Raises:
            ApplianceError: the address cannot be bound.
        """
        self._called = f"{host}:{port}"
        self._path = path
        self._lent = False
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self.close()
            raise ApplianceError(f"cannot listen on {self._called}: {_reason(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lend(self) -> None:
        """Begin to hand the socket to processes that connect to ``path``; only this user's processes can."""
        self._path.unlink(missing_ok=True)
        self._asked.bind(str(self._path))
        self._path.chmod(0o600)
        self._asked.listen()
        self._asked.setblocking(False)
        asyncio.get_running_loop().add_reader(self._asked, self._answer)
        self._lent = True

    def close(self) -> None:
        """Close the socket. Connections are refused when no gateway holds it either."""
        if self._lent:
            self._lent = False
            asyncio.get_running_loop().remove_reader(self._asked)
            self._path.unlink(missing_ok=True)
        self._asked.close()
        self._socket.close()

    def _answer(self) -> None:
        try:
            asker, _ = self._asked.accept()
        except OSError:  # the client has gone
            return
        with asker:
            try:
                self._socket.listen(_BACKLOG)
            except OSError as error:
                asker.send(f"cannot listen on {self._called}: {_reason(error)}".encode())
            else:
                socket.send_fds(asker, [_GIVEN], [self._socket.fileno()])


def borrow(path: Path) -> socket.socket:
    """Return the listening socket from the driver's Unix socket at ``path``.

    Raises:
        ApplianceError: the driver does not hand one out.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(_PATIENCE)
            asking.connect(str(path))
            said, descriptors, _, _ = socket.recv_fds(asking, 1024, 1)
    except OSError as error:
        raise ApplianceError(f"the driver hands out no listening socket at {path}: {error}") from error
    if said != _GIVEN:
        raise ApplianceError(said.decode() or f"the driver has no listening socket at {path}")
    listener = socket.socket(fileno=descriptors[0])
    listener.setblocking(False)
    return listener


def _reason(error: OSError) -> str:
    return (
        f"{error.strerror}; choose another port (--port, APPLIANCE_PORT, server.port) "
        "or address (--host, server.host)"
    )

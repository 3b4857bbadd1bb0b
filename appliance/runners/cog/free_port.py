"""A port of the loopback interface that is reserved for a program until it listens there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved() -> Iterator[int]:
    """Reserve a port: no other program gets it as a free port, but a server can listen on this port.

    Linux never assigns a port with a bound socket. It lets a second socket listen on the port if both set
    SO_REUSEADDR and no other socket listens. Servers set it, those of tokio and uvicorn among them.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield int(keeper.getsockname()[1])

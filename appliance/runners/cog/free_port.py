"""Reserves a port of the loopback interface for a server that is about to start."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved() -> Iterator[int]:
    """Reserve a port: the system assigns it to no other program, but a server can listen on it.

    Linux does not assign a port to which a socket is bound. A second socket may listen on the port if both
    sockets set SO_REUSEADDR, as servers do (tokio, uvicorn), and if the first socket does not listen.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield int(keeper.getsockname()[1])

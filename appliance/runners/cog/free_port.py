"""A port of the loopback interface that is kept for a program until it listens there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved() -> Iterator[int]:
    """A port that nobody is given meanwhile, and that a program may listen on which is told to.

    Linux gives a port that a socket is bound to to nobody who asks for any, but lets a listener have it, if
    both are reusable (SO_REUSEADDR) and no other listens. Servers set that, tokio's and uvicorn's among them.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield int(keeper.getsockname()[1])

"""A reserved port is left to its program."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from appliance.runners.cog import free_port


def listening(number: int, *, reuse: bool = True) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        listener.bind(("127.0.0.1", number))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def test_the_program_can_listen_on_the_port() -> None:
    with free_port.reserved() as number, listening(number):
        with socket.create_connection(("127.0.0.1", number), timeout=60):
            pass
        with pytest.raises(OSError, match="in use"):
            listening(number)
    with listening(number):
        pass


def test_no_other_socket_gets_the_port() -> None:
    """With so many sockets, at least one would get a reserved port with a probability of two thirds."""
    with ExitStack() as kept:
        ours = {kept.enter_context(free_port.reserved()) for _ in range(80)}
        assert len(ours) == 80
        given = [kept.enter_context(listening(0)) for _ in range(400)]
        assert not ours & {each.getsockname()[1] for each in given}

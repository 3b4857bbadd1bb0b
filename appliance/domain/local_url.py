"""The URL under which a server on this machine is reached from this machine."""

from __future__ import annotations

from typing import Final

#: Bind addresses that mean all interfaces -> the loopback address.
LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here


def local_url(bind_address: str, port: int, *, tls: bool) -> str:
    host = LOOPBACK.get(bind_address, bind_address)
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

"""The URL under which a server on this machine is reached from this machine."""

from __future__ import annotations

import ipaddress
from typing import Final

#: The addresses of the loopback interface, for IPv4 and IPv6.
LOOPBACK: Final = ("127.0.0.1", "::1")


def local_host(bind_address: str) -> str:
    """Return the host under which this machine reaches a server: a loopback address for all interfaces."""
    try:
        address = ipaddress.ip_address(bind_address)
    except ValueError:  # a name
        return bind_address
    if address.is_unspecified:
        return LOOPBACK[address.version == 6]
    return bind_address


def is_loopback(host: str) -> bool:
    """Return whether a host of a URL is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_and_port(host: str, port: int) -> str:
    """Return both as in a URL: IPv6 addresses get brackets."""
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def local_url(bind_address: str, port: int, *, tls: bool) -> str:
    return f"{'https' if tls else 'http'}://{host_and_port(local_host(bind_address), port)}"

"""The IP address of the client of a request: through trusted proxies, and through the pages."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

#: Header with which a request to the UI carries the address of the browser. The UI sends it back with the
#: requests that it makes for the browser.
HEADER: Final = "x-appliance-client"
_KEY: Final = secrets.token_bytes(32)  # of this gateway: nobody else can make such a header


def of(scope: Scope, trusted_proxies: Sequence[str]) -> str | None:
    """Return the address of the client; None if it is unknown.

    ``X-Forwarded-For`` counts only if a trusted proxy has sent it: then the last address in it that is not
    a trusted proxy itself.
    """
    headers = Headers(scope=scope)
    signed, _, code = headers.get(HEADER, "").partition(" ")
    if signed and hmac.compare_digest(code.encode(), _code(signed).encode()):
        return signed
    client = scope.get("client")
    if client is None or not client[0]:
        return None
    address: str = client[0]
    for forwarded in reversed(headers.get("x-forwarded-for", "").split(",")):
        if not is_in(address, trusted_proxies) or not _is_address(forwarded.strip()):
            break
        address = forwarded.strip()
    return address


def signed(scope: Scope, trusted_proxies: Sequence[str]) -> str:
    """Return the value of the header for the UI; empty if the address is unknown."""
    address = of(scope, trusted_proxies)
    return "" if address is None else f"{address} {_code(address)}"


def is_in(address: str, networks: Sequence[str]) -> bool:
    """Return whether the IP address is in one of the networks."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped  # a client with IPv4 of a socket that listens on "::"
    return any(
        parsed in network
        for network in map(ipaddress.ip_network, networks)
        if network.version == parsed.version
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _code(address: str) -> str:
    return hmac.digest(_KEY, address.encode(errors="replace"), "sha256").hex()

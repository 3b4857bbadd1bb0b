"""The IP address of the client of a request: through trusted proxies, and through the pages of the UI."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Scope

from appliance.domain import access

#: Header with which a request to the UI carries the address of the browser. The UI sends it back with the
#: requests that it makes for the browser.
HEADER: Final = "x-appliance-client"
#: The address of a request whose client is unknown.
UNKNOWN: Final = "unknown"
_KEY: Final = secrets.token_bytes(32)  # of this gateway: nobody else can make such a header


def of(scope: Scope, proxies: Collection[str]) -> str | None:
    """Return the address of the client; None if it is unknown. ``proxies`` are the trusted proxies' networks.

    Each proxy appends to ``X-Forwarded-For`` the address from which it received the request. The list is read
    from its end up to the first address that is not a trusted proxy: a client can forge those before it.
    """
    headers = Headers(scope=scope)
    if from_ui(scope):
        return headers[HEADER].partition(" ")[0]
    client = scope.get("client")
    if client is None or not client[0]:
        return None
    found = _plain(client[0])
    for forwarded in reversed(",".join(headers.getlist("x-forwarded-for")).split(",")):
        if not access.is_within(found, proxies) or not _is_address(forwarded.strip()):
            break
        found = _plain(forwarded.strip())
    return found


def from_ui(scope: Scope) -> bool:
    """Return whether the UI process sent the request: only the UI knows headers that this gateway signed."""
    address, _, code = Headers(scope=scope).get(HEADER, "").partition(" ")
    return bool(address) and hmac.compare_digest(code.encode(), _code(address).encode())


def signed(address: str) -> str:
    """Return the value of ``HEADER`` for the UI."""
    return f"{address} {_code(address)}"


def _code(address: str) -> str:
    return hmac.digest(_KEY, address.encode(errors="replace"), "sha256").hex()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _plain(host: str) -> str:
    """Return an IP address in its usual notation, and an IPv4 address written as IPv6 as IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)

"""The IP address of an HTTP client of a node, as the gateway of the head sees it."""

from __future__ import annotations

import ipaddress

import msgspec

from appliance.domain.errors import NodeError
from appliance.nodes.messages import OpenGateway

_MAX_PORT = 65535

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def seen_by_head(request: OpenGateway, node_host: str) -> OpenGateway:
    """Return ``request`` with a client address that means the same machine on the head.

    Clients on the node itself have a loopback address or a link-local address. On the head, these would be
    addresses of the head or of its neighbours, which tokens and ``server.trusted_proxies`` may trust. They
    are replaced by ``node_host``, the IP address from which the node connects to the head. If that is a
    loopback address, the node is on the machine of the head, and local addresses mean the same there.

    Raises:
        NodeError: an address or a port is not valid.
    """
    client = _checked(request.client)
    _checked(request.server)
    is_local = client.is_loopback or client.is_link_local or client.is_unspecified
    if not is_local or _checked((node_host, 0)).is_loopback:
        return request
    return msgspec.structs.replace(request, client=(node_host, request.client[1]))


def _checked(end: tuple[str, int]) -> _Address:
    host, port = end
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise NodeError("the node sent an IP address of its client or of itself that is not valid") from None
    if not 0 <= port <= _MAX_PORT:
        raise NodeError(f"the node sent a port that is not valid: {port}")
    return getattr(address, "ipv4_mapped", None) or address

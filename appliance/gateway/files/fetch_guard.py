"""HTTP requests to URLs from API callers, without access to private networks.

The check applies to the IP address of the connection, after the name was resolved. So a name cannot resolve
to a public address for the check and to a private address for the connection (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from typing import Final

import httpx

from appliance.domain.errors import UrlRefused
from appliance.protocols import content_encodings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: IPv6 networks whose addresses embed IPv4 addresses (NAT64, 6to4, Teredo); all are refused.
_TUNNELS: Final = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32"))
_PORTS: Final = {"http": 80, "https": 443}


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Return the trusted certificates. Reading them takes 20 ms, so all clients share them."""
    return httpx.create_ssl_context()


class FetchGuard:
    """Checks IP addresses, and makes HTTP clients that connect to permitted addresses only."""

    def __init__(self, allowed: Sequence[str]) -> None:
        """Allow public addresses, and the networks in ``allowed``, e.g. ``10.0.0.0/8``."""
        self._allowed: tuple[Network, ...]
        self.allow(allowed)

    def allow(self, allowed: Sequence[str]) -> None:
        """Replace the networks that are allowed in addition to public addresses."""
        self._allowed = tuple(ipaddress.ip_network(text) for text in allowed)

    def permits(self, address: Address) -> bool:
        mapped = getattr(address, "ipv4_mapped", None)
        if mapped is not None:
            return self.permits(mapped)
        if any(address in network for network in self._allowed if network.version == address.version):
            return True
        return (
            address.is_global
            and not address.is_multicast
            and not any(address in network for network in _TUNNELS if network.version == address.version)
        )

    def check(self, url: httpx.URL) -> None:
        """Check a URL without resolving names: only an IP address or ``localhost`` can be refused.

        Raises:
            UrlRefused: connections to the host of the URL are not permitted.
        """
        try:
            address = ipaddress.ip_address(url.host)
        except ValueError:
            if url.host.lower().rstrip(".").endswith("localhost"):
                self._refuse_unless(url.host, [ipaddress.ip_address("127.0.0.1")])
            return
        self._refuse_unless(url.host, [address])

    def client(self, timeout: float, *, redirects: int = 0) -> httpx.AsyncClient:
        """Return a client without proxies that connects to permitted addresses only, also after redirects.

        Read response bodies with ``aiter_raw``: httpx's other methods decompress untrusted data in memory
        without a limit. ``timeout`` is the most seconds to connect, and between two chunks.
        """
        return httpx.AsyncClient(
            transport=_Guarded(self),
            headers=content_encodings.IDENTITY,
            timeout=timeout,
            follow_redirects=redirects > 0,
            max_redirects=redirects,
            trust_env=False,
        )

    async def resolve(self, hostname: str, port: int) -> str:
        """Return the first permitted IP address of ``hostname``.

        Raises:
            UrlRefused: none of the addresses is permitted.
            httpx.ConnectError: the name cannot be resolved.
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(hostname, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx.ConnectError(f"{hostname} cannot be resolved: {error}") from error
        addresses = [ipaddress.ip_address(str(endpoint[0]).partition("%")[0]) for *_, endpoint in found]
        return self._refuse_unless(hostname, addresses)

    def _refuse_unless(self, hostname: str, addresses: Sequence[Address]) -> str:
        for address in addresses:
            if self.permits(address):
                return str(address)
        raise UrlRefused(
            f"{hostname} is at {', '.join(map(str, dict.fromkeys(addresses)))}, which is not public; "
            "egress.allow in models.yaml can permit its network"
        )


class _Guarded(httpx.AsyncBaseTransport):
    """Connects to the checked IP address, with the requested name in the Host header and in TLS."""

    def __init__(self, guard: FetchGuard) -> None:
        self._guard = guard
        # No connection is reused: names that resolve to one address would share it, whatever its certificate.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._inner = httpx.AsyncHTTPTransport(verify=_certificates(), limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        port = request.url.port or _PORTS.get(request.url.scheme)
        if port is None:
            raise httpx.UnsupportedProtocol(f"{request.url.scheme or 'no scheme'} is neither http nor https")
        address = await self._guard.resolve(request.url.host, port)
        checked = httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,  # the Host header keeps the name
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": request.url.host},
        )
        response = await self._inner.handle_async_request(checked)
        if not response.has_redirect_location:
            return response
        await response.aclose()  # otherwise httpx reads the body of a redirect without a limit
        return httpx.Response(response.status_code, headers=response.headers, content=b"")

    async def aclose(self) -> None:
        await self._inner.aclose()

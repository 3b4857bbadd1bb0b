"""Requests that are made because a caller asked for them: never to a network that is none of theirs.

What is checked is the address that is connected to, after its name has been resolved, so a name cannot be one
thing when it is checked and another when it is used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

import httpx

from appliance.domain.errors import UrlRefused
from appliance.protocols import content_encodings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Other addresses inside of IPv6 ones (NAT64, 6to4, Teredo): what they lead to is not looked into.
_TUNNELS: Final = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "2002::/16", "2001::/32"))


_PORTS: Final = {"http": 80, "https": 443}


class FetchGuard:
    """Decides which addresses may be reached, and makes clients that keep to it."""

    def __init__(self, allowed: Sequence[str]) -> None:
        """``allowed`` are networks that may be reached although they are not public: ``10.0.0.0/8``."""
        self._allowed: tuple[Network, ...]
        self.allow(allowed)

    def allow(self, allowed: Sequence[str]) -> None:
        """These, and no others, from now on."""
        self._allowed = tuple(ipaddress.ip_network(text) for text in allowed)

    def permits(self, address: Address) -> bool:
        """Whether a caller may have this address reached."""
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
        """Refuse at once what can be refused without asking anyone: an address in plain sight.

        Raises:
            AddressRefused: it may not be reached.
        """
        try:
            address = ipaddress.ip_address(url.host)
        except ValueError:
            if url.host.lower().rstrip(".").endswith("localhost"):
                self._refuse_unless(url.host, [ipaddress.ip_address("127.0.0.1")])
            return
        self._refuse_unless(url.host, [address])

    def client(self, timeout: float, *, redirects: int = 0) -> httpx.AsyncClient:
        """A client without proxies that connects to permitted addresses only, also after redirects.

        Read response bodies with ``aiter_raw``: httpx's other methods decompress untrusted data in memory
        without a limit. ``timeout`` is in seconds, for connecting and between two chunks.
        """
        return httpx.AsyncClient(
            transport=_Guarded(self),
            headers=content_encodings.IDENTITY,
            timeout=timeout,
            follow_redirects=redirects > 0,
            max_redirects=redirects,
            trust_env=False,
        )

    async def resolve(self, host: str, port: int) -> str:
        """The first permitted address of ``host``.

        Raises:
            AddressRefused: it has none that may be reached.
            httpx.ConnectError: it has none.
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx.ConnectError(f"{host} cannot be resolved: {error}") from error
        addresses = [ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in found]
        return self._refuse_unless(host, addresses)

    def _refuse_unless(self, host: str, addresses: Sequence[Address]) -> str:
        for address in addresses:
            if self.permits(address):
                return str(address)
        raise UrlRefused(
            f"{host} is at {', '.join(map(str, dict.fromkeys(addresses)))}, which is not public; "
            "egress.allow in models.yaml can permit its network"
        )


class _Guarded(httpx.AsyncBaseTransport):
    """Connects to the address that was checked, and speaks to it as to the name that was asked for."""

    def __init__(self, egress: FetchGuard) -> None:
        self._egress = egress
        # No connection is kept: names that resolve to one address would share it, whatever its certificate.
        self._inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        port = request.url.port or _PORTS.get(request.url.scheme)
        if port is None:
            raise httpx.UnsupportedProtocol(f"{request.url.scheme or 'no scheme'} is neither http nor https")
        address = await self._egress.resolve(request.url.host, port)
        checked = httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,  # Host is the name
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": request.url.host},
        )
        answer = await self._inner.handle_async_request(checked)
        if not answer.has_redirect_location:
            return answer
        await answer.aclose()  # otherwise httpx reads the body of a redirect without a limit
        return httpx.Response(answer.status_code, headers=answer.headers, content=b"")

    async def aclose(self) -> None:
        await self._inner.aclose()

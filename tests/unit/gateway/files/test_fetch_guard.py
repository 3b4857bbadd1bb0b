"""Which addresses may be reached because a caller asks for it."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from typing import Any

import httpx
import pytest

from appliance.domain.errors import UrlRefused
from appliance.gateway.files.fetch_guard import FetchGuard


@pytest.mark.parametrize(
    ("address", "permitted"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:1::", False),
    ],
)
def test_only_public_addresses_are_permitted(address: str, permitted: bool) -> None:
    assert FetchGuard(()).permits(ipaddress.ip_address(address)) is permitted


def test_a_network_can_be_allowed() -> None:
    egress = FetchGuard(["10.1.0.0/16", "::1/128"])
    assert egress.permits(ipaddress.ip_address("10.1.2.3"))
    assert egress.permits(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert egress.permits(ipaddress.ip_address("::1"))
    assert not egress.permits(ipaddress.ip_address("10.2.0.1"))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "http://localhost:1/", "http://x.LOCALHOST./", "http://[fe80::1]/"]
)
def test_what_is_in_plain_sight_is_refused_at_once(url: str) -> None:
    with pytest.raises(UrlRefused, match=r"egress\.allow"):
        FetchGuard(()).check(httpx.URL(url))


def test_a_name_is_not_judged_before_it_is_resolved() -> None:
    FetchGuard(()).check(httpx.URL("https://example.org/"))


@pytest.mark.parametrize("hostname", ["harmless.example", "2130706433", "127.1", "0x7f.1"])
async def test_what_a_name_resolves_to_is_what_counts(hostname: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    async with FetchGuard(()).client(5.0) as client:
        with pytest.raises(UrlRefused, match=r"127\.0\.0\.1, which is not public"):
            await client.post(f"http://{hostname}/")


async def test_of_several_addresses_a_permitted_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
            for address in ("10.0.0.1", "93.184.215.14")
        ]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    assert await FetchGuard(()).resolve("mixed.example", 80) == "93.184.215.14"


async def test_a_name_without_an_address_is_a_failed_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    with pytest.raises(httpx.ConnectError, match=r"nowhere\.example cannot be resolved"):
        await FetchGuard(()).resolve("nowhere.example", 80)


async def test_clients_share_the_certificates() -> None:
    """Reading them for each file of an input would delay all other requests."""
    guard = FetchGuard(())
    async with guard.client(1.0) as one, guard.client(1.0) as two:
        transports: list[Any] = [one._transport, two._transport]
        first, second = (each._inner._pool._ssl_context for each in transports)
    assert first is second
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert first.check_hostname

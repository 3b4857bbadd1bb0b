"""Connections wait for the next gateway when one dies."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from appliance.domain.errors import ApplianceError
from appliance.domain.local_url import host_and_port
from appliance.gateway.listener import ListeningSocket, receive_listener, socket_address
from tests.support.appliance_process import free_port, has_ipv6


@pytest.fixture
def port() -> int:
    return free_port()


async def test_connections_wait_while_no_gateway_lives(tmp_path: Path, port: int) -> None:
    path = tmp_path / "listener.sock"
    with ListeningSocket("127.0.0.1", port, path) as listener:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        listener.hand_out()
        assert path.stat().st_mode & 0o777 == 0o600
        for _ in range(2):  # gateways, one after the other
            (await asyncio.to_thread(receive_listener, path)).close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"asked")
        await writer.drain()

        async def answer(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
            writing.write(await reading.readexactly(5) + b" and answered")
            writing.close()

        async with await asyncio.start_server(answer, sock=await asyncio.to_thread(receive_listener, path)):
            assert await reader.read() == b"asked and answered"
        writer.close()
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_the_driver_notices_that_a_gateway_has_the_socket(tmp_path: Path, port: int) -> None:
    path, times = tmp_path / "listener.sock", []
    with ListeningSocket("127.0.0.1", port, path) as listener:
        listener.hand_out()
        (await asyncio.to_thread(receive_listener, path)).close()
        listener.on_hand_out = lambda: times.append(1)
        listener.hand_out()  # it is handed out already
        assert times == []
        (await asyncio.to_thread(receive_listener, path)).close()
        assert times == [1]


def test_an_address_that_is_taken_is_reported(tmp_path: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ApplianceError) as caught:
        ListeningSocket("127.0.0.1", port, tmp_path / "listener.sock")
    assert caught.value.detail.startswith(
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose"
    )


@pytest.mark.parametrize("address", ["192.0.2.77", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_reported(tmp_path: Path, port: int, address: str) -> None:
    with pytest.raises(
        ApplianceError, match=f"cannot listen on {address}:{port}: .*; choose another port .*address"
    ):
        ListeningSocket(address, port, tmp_path / "listener.sock")


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="the machine has no IPv6")


@pytest.mark.parametrize(
    ("address", "family"),
    [pytest.param("::1", socket.AF_INET6, marks=needs_ipv6), ("localhost", socket.AF_INET)],
)
def test_ipv6_addresses_and_names_are_bound(
    tmp_path: Path, port: int, address: str, family: socket.AddressFamily
) -> None:
    with ListeningSocket(address, port, tmp_path / "listener.sock"):
        assert socket_address(address, port)[0] is family
        again = f"cannot listen on {host_and_port(address, port)}: Address already in use".replace("[", r"\[")
        with socket.socket(family) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(socket_address(address, port)[1])
            other.listen()
            with pytest.raises(ApplianceError, match=again):
                ListeningSocket(address, port, tmp_path / "listener.sock")


@needs_ipv6
async def test_a_socket_on_all_ipv6_addresses_also_accepts_ipv4(tmp_path: Path, port: int) -> None:
    path = tmp_path / "listener.sock"
    with ListeningSocket("::", port, path) as listener:
        listener.hand_out()
        (await asyncio.to_thread(receive_listener, path)).close()
        for address in ("::1", "127.0.0.1"):
            _, writer = await asyncio.open_connection(address, port)
            writer.close()


@needs_ipv6
def test_a_name_that_has_only_an_ipv6_address_is_bound(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *given, **named: resolve("::1", *given, **named))
    with ListeningSocket("ip6.example.org", port, tmp_path / "listener.sock") as listener:
        assert listener._socket.getsockname()[:2] == ("::1", port)


def test_an_address_with_a_zone_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(ApplianceError, match="cannot listen on fe80::1%lo: a URL cannot have the zone %lo"):
        ListeningSocket("fe80::1%lo", port, tmp_path / "listener.sock")


async def test_an_address_that_is_taken_meanwhile_is_reported_to_the_gateway(
    tmp_path: Path, port: int
) -> None:
    path = tmp_path / "listener.sock"
    with ListeningSocket("127.0.0.1", port, path) as listener, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        listener.hand_out()
        with pytest.raises(
            ApplianceError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"
        ):
            await asyncio.to_thread(receive_listener, path)


def test_a_driver_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(ApplianceError, match="cannot get the listening socket from the driver at"):
        receive_listener(tmp_path / "listener.sock")

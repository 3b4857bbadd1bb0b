"""URLs of servers on this machine, for each way to write a bind address."""

from __future__ import annotations

import pytest

from appliance.domain.local_url import host_and_port, local_url


@pytest.mark.parametrize(
    ("bind_address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("localhost", "http://localhost:80"),
        ("192.0.2.7", "http://192.0.2.7:80"),
        ("::1", "http://[::1]:80"),
        ("::", "http://[::1]:80"),
        ("0:0:0:0:0:0:0:0", "http://[::1]:80"),
        ("fd00::2", "http://[fd00::2]:80"),
    ],
)
def test_a_bind_address_is_reached_at_a_url(bind_address: str, url: str) -> None:
    assert local_url(bind_address, 80, tls=False) == url
    assert local_url(bind_address, 80, tls=True) == url.replace("http:", "https:")


def test_ipv6_addresses_get_brackets() -> None:
    assert host_and_port("::", 1) == "[::]:1"
    assert host_and_port("0.0.0.0", 1) == "0.0.0.0:1"

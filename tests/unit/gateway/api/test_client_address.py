"""The address of a client: its own, that behind trusted proxies, and that which the UI returns."""

from __future__ import annotations

import pytest
from starlette.types import Scope

from appliance.gateway.api import client_address
from appliance.gateway.api.client_address import HEADER

PROXIES = ("10.0.0.0/8",)


def scope(peer: str | None, **headers: str) -> Scope:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "client": None if peer is None else (peer, 1), "headers": raw}


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("::ffff:192.0.2.1", "", "192.0.2.1"),
        (None, "", None),
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),  # not a trusted proxy
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),  # the first may be made up
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("::ffff:10.0.0.1", "2001:db8::1", "2001:db8::1"),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str | None, forwarded: str, found: str | None) -> None:
    assert client_address.of(scope(peer, x_forwarded_for=forwarded), PROXIES) == found


def test_only_a_signed_address_is_believed() -> None:
    name = HEADER.replace("-", "_")
    signed = client_address.signed("203.0.113.9")
    assert client_address.of(scope("127.0.0.1", **{name: signed}), ()) == "203.0.113.9"
    other_key = "203.0.113.9 " + "0" * 64
    for forged in (other_key, "203.0.113.9", "203.0.113.8" + signed[11:]):
        assert client_address.of(scope("127.0.0.1", **{name: forged}), ()) == "127.0.0.1"

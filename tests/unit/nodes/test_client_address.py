"""Addresses of HTTP clients of a node on the head."""

from __future__ import annotations

import pytest

from appliance.domain.errors import NodeError
from appliance.nodes.client_address import seen_by_head
from appliance.nodes.messages import OpenGateway

NODE = "192.0.2.7"
SERVER = ("192.0.2.7", 8000)


@pytest.mark.parametrize(
    ("client", "seen"),
    [
        ("198.51.100.4", "198.51.100.4"),
        ("2001:db8::4", "2001:db8::4"),
        ("::ffff:198.51.100.4", "::ffff:198.51.100.4"),
        ("127.0.0.1", NODE),
        ("127.9.9.9", NODE),
        ("::1", NODE),
        ("::ffff:127.0.0.1", NODE),
        ("169.254.1.1", NODE),
        ("fe80::1%eth0", NODE),
        ("0.0.0.0", NODE),
    ],
)
def test_an_address_that_is_local_to_the_node_becomes_that_of_the_node(client: str, seen: str) -> None:
    request = OpenGateway((client, 1234), SERVER, "https")
    assert seen_by_head(request, NODE) == OpenGateway((seen, 1234), SERVER, "https")


def test_a_node_on_the_machine_of_the_head_keeps_local_addresses() -> None:
    request = OpenGateway(("127.0.0.1", 1234), SERVER, "http")
    assert seen_by_head(request, "127.0.0.3") == request


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (("not an address\nforged line", 1), SERVER),
        (("198.51.100.4", 70_000), SERVER),
        (("198.51.100.4", -1), SERVER),
        (("198.51.100.4", 1), ("x", 1)),
    ],
)
def test_addresses_are_checked(client: tuple[str, int], server: tuple[str, int]) -> None:
    with pytest.raises(NodeError, match="not valid"):
        seen_by_head(OpenGateway(client, server, "http"), NODE)

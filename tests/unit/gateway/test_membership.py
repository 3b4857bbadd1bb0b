"""Whether the gateway answers requests that come through nodes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn

from appliance.config import Config
from appliance.domain.errors import NodeError
from appliance.gateway.connections import ForwardedConnection
from appliance.gateway.membership import serve_nodes
from appliance.gateway.settings import GatewaySettings
from appliance.nodes.channel import Channel
from appliance.nodes.messages import OpenGateway
from appliance.nodes.registry import Http, NodeRegistry

REQUEST = OpenGateway(("192.0.2.9", 1234), ("192.0.2.1", 8000), "http")


async def http(tmp_path: Path, **tls: str) -> Http:
    """Return what the registry of nodes gets."""
    server = {"tls": {"certificate": "/c.pem", "key": "/k.pem", **tls}} if tls else {}
    config = Config.model_validate({"models": [{"name": "test/echo", "kind": "echo"}], "server": server})
    settings = GatewaySettings(
        config=config,
        home=tmp_path,
        host="127.0.0.1",
        port=8000,
        devices=(),
        config_file=tmp_path / "models.yaml",
        ui=False,
        pull=False,
    )
    given: list[Http] = []
    nodes = cast("NodeRegistry", SimpleNamespace(serve_http=given.append))
    serve_nodes(nodes, uvicorn.Server(uvicorn.Config(cast("Any", None), lifespan="off")), settings)
    return given[0]


async def test_a_connection_has_the_ends_of_the_clients_connection(tmp_path: Path) -> None:
    channel = cast("Channel", None)
    made = (await http(tmp_path))(REQUEST, channel)
    assert isinstance(made, ForwardedConnection)
    server, client = await _connected(made)
    assert (made.client, made.server, made.scheme) == (REQUEST.client, REQUEST.server, "http")
    client.close()
    server.close()


async def _connected(made: asyncio.Protocol) -> tuple[asyncio.Server, asyncio.StreamWriter]:
    server = await asyncio.get_running_loop().create_server(lambda: made, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    while made.transport is None:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    return server, writer


async def test_requests_that_need_a_client_certificate_do_not_come_through_nodes(tmp_path: Path) -> None:
    connection = await http(tmp_path, client_ca="/ca.pem")
    with pytest.raises(NodeError, match=r"server\.tls\.client_ca"):
        connection(REQUEST, cast("Channel", None))


async def test_without_a_cluster_there_is_nothing_to_do(tmp_path: Path) -> None:
    serve_nodes(None, cast("uvicorn.Server", None), cast("GatewaySettings", None))

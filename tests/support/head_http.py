"""An HTTP server on the head of a cluster in this process, and the HTTP server of a node of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from appliance.gateway import connections
from appliance.gateway.connections import ConnectionEnds, ForwardedConnection
from appliance.nodes.channel import Channel
from appliance.nodes.gateway_channels import GatewayChannels
from appliance.nodes.http_server import HttpServer
from appliance.nodes.messages import OpenGateway
from tests.support.agents import HOST, TestHead, TestNode, cluster, until


class HeadHttp:
    """The HTTP server of a gateway, which only nodes reach."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", port=0, http=connections.Connection, proxy_headers=False
        )
        self.server = uvicorn.Server(config)

    async def start(self) -> None:
        self._serving = asyncio.ensure_future(self.server.serve())
        await until(lambda: self.server.started)

    def connection(self, request: OpenGateway, channel: Channel) -> asyncio.Protocol:
        return ForwardedConnection(
            self.server, ConnectionEnds(request.client, request.server, request.scheme), channel
        )

    async def close(self) -> None:
        """End all connections, as a gateway that dies."""
        self.server.should_exit = self.server.force_exit = True
        await self._serving
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()


class NodeHttp:
    """The HTTP server of a node."""

    def __init__(self, folder: Path, head_port: int, tls: ssl.SSLContext | None = None) -> None:
        self.member: TestNode | None = None
        self.channels = GatewayChannels(folder, [(HOST, head_port)])
        self.server = HttpServer(self.channels, tls)
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://{HOST}:{self.port}"


@asynccontextmanager
async def forwarding(
    folder: Path, app: ASGIApp, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[TestHead, HeadHttp, NodeHttp]]:
    """A head that answers with ``app``, and the HTTP server of a node that forwards to it."""
    members: list[TestNode]
    async with cluster(folder, "a") as (head, members):
        http = HeadHttp(app)
        await http.start()
        head.nodes.serve_http(http.connection)
        node = NodeHttp(members[0].home / "cluster", head.port, tls)
        node.member = members[0]
        await node.server.start(node.listener)
        try:
            yield head, http, node
        finally:
            await http.close()
            await node.server.close()

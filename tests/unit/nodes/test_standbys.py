"""A standby, which has a certificate of the head only to forward HTTP requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from appliance.domain.errors import HeadUnreachable, JoinRefused, NodeError
from appliance.nodes import http_server, identity
from appliance.nodes.channel import Channel
from appliance.nodes.identity import Identity, JoinToken
from appliance.nodes.joining import join_as_standby
from appliance.nodes.messages import Announce, AskMembership, Leave, Membership, Ok, Ping, ReadWeights
from tests.support.agents import HOST, VERSION, TestHead, cluster, until
from tests.support.appliance_process import PATIENCE
from tests.support.head_http import HeadHttp, NodeHttp, forwarding
from tests.unit.nodes.test_http_server import App, client


async def join(
    folder: Path, head: TestHead, *, version: str = VERSION, secret: str | None = None
) -> Identity:
    """Get a certificate of a standby that has the same name as a node, or as the head."""
    token = JoinToken(secret or head.token.secret, None)
    await join_as_standby(folder, token, HOST, head.port, name="a", version=version, own_address=HOST)
    return Identity(folder)


async def test_a_standby_can_send_no_requests_of_nodes(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as (head, (node,)):
        own = await join(tmp_path / "standby", head)
        requests = Announce(node.facts, "x"), AskMembership("x"), Leave("x"), ReadWeights("0" * 64, 0)
        for request in requests:
            channel = await Channel.open(HOST, head.port, identity.client_context(own))
            await channel.send(request)
            with pytest.raises(NodeError, match="is not allowed with the certificate of the client"):
                await channel.reply(Membership)
            channel.close()
        channel = await Channel.open(HOST, node.facts.port, identity.client_context(own))
        await channel.send(Ping())
        with pytest.raises(NodeError, match="is not allowed with the certificate of the client"):
            await channel.reply(Ok)
        channel.close()


async def test_a_standby_that_the_head_refuses(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (head, _):
        with pytest.raises(
            JoinRefused, match=f"has version 0.0.1 of the appliance, and the head has {VERSION}"
        ):
            await join(tmp_path / "old", head, version="0.0.1")
        with pytest.raises(JoinRefused, match="is not the head that this join token is for"):
            await join(tmp_path / "other", head, secret="another secret of more than 32 characters")
        assert not (tmp_path / "other" / "certificate.pem").exists()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait long for the head: other programs may use the processors."""
    for name in ("RETRY_TIMEOUT", "HEALTH_TIMEOUT"):
        monkeypatch.setattr(http_server, name, PATIENCE)


@asynccontextmanager
async def standby(folder: Path, app: App) -> AsyncIterator[tuple[TestHead, HeadHttp, NodeHttp]]:
    """A head that answers with ``app``, and the HTTP server of a standby that has joined."""
    async with forwarding(folder, app.app) as (head, http, _):
        await join(folder / "standby", head)
        server = NodeHttp(folder / "standby", head.port)
        await server.server.start(server.listener)
        try:
            yield head, http, server
        finally:
            await server.server.close()


@pytest.mark.usefixtures("patient")
async def test_a_standby_forwards_requests_to_the_head_once_it_is_known(tmp_path: Path) -> None:
    async with standby(tmp_path, App()) as (head, _, server):
        server.channels.set_heads([])
        async with client(server) as http:
            reply = await http.get("/echo")
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert reply.json()["title"] == "Head unreachable"
        server.channels.set_heads([(HOST, head.port)])
        async with client(server) as http:
            seen = (await http.get("/echo")).json()
        assert (seen["client"][0], seen["server"]) == (HOST, [HOST, server.port])


@pytest.mark.usefixtures("patient")
async def test_a_standby_that_becomes_the_head_closes_streams_and_answers_requests(tmp_path: Path) -> None:
    app = App()
    async with (
        standby(tmp_path, app) as (_, _, server),
        client(server) as http,
        http.stream("GET", "/stream") as reply,
    ):
        parts = reply.aiter_raw()
        assert await anext(parts) == b"first"
        server.server.refuse(HeadUnreachable("not yet"))
        with pytest.raises(httpx.TransportError):
            await anext(parts)
        await until(lambda: app.left == 1)
        refused = await http.post("/echo", content=b"text")
        assert (refused.status_code, refused.json()["detail"]) == (503, "not yet")
        assert app.requests == 0


@pytest.mark.usefixtures("patient")
async def test_a_request_that_waits_for_the_former_head_is_answered(tmp_path: Path) -> None:
    async with standby(tmp_path, App()) as (head, gateway, server), client(server) as http:
        await gateway.close()
        await head.nodes.close()
        asking = asyncio.ensure_future(http.get("/echo"))
        await until(lambda: server.server._is_unreachable)
        server.server.refuse(HeadUnreachable("not yet"))
        assert (await asking).json()["detail"] == "not yet"

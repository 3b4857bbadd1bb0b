"""The HTTP server of a node, with a head in this process: what is forwarded, and responses without a head."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from appliance.domain.errors import HeadUnreachable, NodeError
from appliance.driver import certificate
from appliance.nodes import gateway_channels, http_server
from appliance.nodes.channel import Channel
from appliance.nodes.http_server import RequestLine, response
from appliance.nodes.messages import GatewayOpened, OpenGateway
from tests.support.agents import HOST, TestHead, until
from tests.support.appliance_process import PATIENCE
from tests.support.head_http import HeadHttp, NodeHttp, forwarding

STREAMS = 256


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait long for the head: other programs may use the processors."""
    for name in ("RETRY_TIMEOUT", "HEALTH_TIMEOUT"):
        monkeypatch.setattr(http_server, name, PATIENCE)


class App:
    """The application of the head, and what happens to its requests."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.open = 0
        self.requests = 0
        self.received = 0
        self.left = 0
        self.app = Starlette(
            routes=[
                Route("/echo", self.echo, methods=["GET", "POST"]),
                Route("/stream", self.stream),
                Route("/upload", self.upload, methods=["POST"]),
                Route("/refuse", self.refuse, methods=["POST"]),
                Route("/healthz", self.healthz),
            ]
        )

    async def healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def echo(self, request: Request) -> Response:
        self.requests += 1
        body = await request.body()
        assert request.client is not None
        return JSONResponse(
            {
                "client": [request.client.host, request.client.port],
                "server": request.scope["server"],
                "scheme": request.scope["scheme"],
                "headers": request.headers.items(),
                "body": body.decode(),
            }
        )

    async def stream(self, _: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            self.open += 1
            try:
                yield b"first"
                await self.go_on.wait()
                yield b"second"
            except asyncio.CancelledError:
                self.left += 1
                raise
            finally:
                self.open -= 1

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def upload(self, request: Request) -> Response:
        try:
            async for chunk in request.stream():
                self.received += len(chunk)
        except ClientDisconnect:
            self.left += 1
            raise
        return Response(str(self.received))

    async def refuse(self, _: Request) -> Response:
        return JSONResponse({"detail": "no"}, 403)


def client(node: NodeHttp, **more: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=node.url,
        timeout=PATIENCE,
        trust_env=False,
        limits=httpx.Limits(max_connections=None),
        **more,
    )


async def test_the_head_sees_the_addresses_of_the_client_and_all_its_headers(tmp_path: Path) -> None:
    async with forwarding(tmp_path, App().app) as (_, _, node), client(node) as http:
        headers = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Host": "evil.example"}
        seen = (await http.post("/echo", content=b"text", headers=headers)).json()
        assert seen["body"] == "text"
        assert seen["client"][0] == HOST
        assert seen["client"][1] not in {node.port, 0}
        assert seen["server"] == [HOST, node.port]
        assert seen["scheme"] == "http"
        given = dict(seen["headers"])
        assert given["host"] == f"{HOST}:{node.port}"
        assert given["x-forwarded-for"] == "1.2.3.4"  # the head decides whom to believe


async def test_requests_share_a_connection_of_the_client(tmp_path: Path) -> None:
    async with forwarding(tmp_path, App().app) as (_, _, node), client(node) as http:
        ports = {(await http.get("/echo")).json()["client"][1] for _ in range(5)}
        assert len(ports) == 1


async def test_connections_to_the_head_are_opened_in_advance_after_each_use(tmp_path: Path) -> None:
    async with forwarding(tmp_path, App().app) as (_, _, node):
        for _ in range(2):
            before = {channel for _, channel in node.channels._spare}
            async with client(node) as http:
                assert (await http.get("/echo")).status_code == 200
            await until(lambda: len(node.channels._spare) == gateway_channels._SPARE_COUNT)
            assert {channel for _, channel in node.channels._spare} != before


async def test_the_scheme_is_that_between_the_client_and_the_node(tmp_path: Path) -> None:
    file, key = certificate.write(tmp_path, [HOST])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file, key)
    trusted = ssl.create_default_context(cafile=str(file))
    async with forwarding(tmp_path, App().app, tls) as (_, _, node), client(node, verify=trusted) as http:
        assert (await http.get("/echo")).json()["scheme"] == "https"


async def test_parts_of_a_stream_arrive_one_by_one(tmp_path: Path) -> None:
    app = App()
    async with (
        forwarding(tmp_path, app.app) as (_, _, node),
        client(node) as http,
        http.stream("GET", "/stream") as reply,
    ):
        parts = reply.aiter_raw()
        assert await anext(parts) == b"first"
        app.go_on.set()
        assert await anext(parts) == b"second"


async def test_many_streams_are_open_at_once(tmp_path: Path) -> None:
    app = App()

    async def read(http: httpx.AsyncClient) -> bytes:
        return (await http.get("/stream")).content

    async with forwarding(tmp_path, app.app) as (_, _, node), client(node) as http:
        reading = [asyncio.ensure_future(read(http)) for _ in range(STREAMS)]
        await until(lambda: app.open == STREAMS)
        assert (await http.get("/echo")).status_code == 200
        app.go_on.set()
        assert await asyncio.gather(*reading) == [b"firstsecond"] * STREAMS


async def test_a_stream_ends_properly_when_the_head_stops(tmp_path: Path) -> None:
    """The gateway closes the agent of the head before its HTTP server, which waits for open streams."""
    app = App()
    async with (
        forwarding(tmp_path, app.app) as (head, _, node),
        client(node) as http,
        http.stream("GET", "/stream") as reply,
    ):
        parts = reply.aiter_raw()
        assert await anext(parts) == b"first"
        await head.nodes.close()
        app.go_on.set()
        assert [part async for part in parts] == [b"second"]


async def test_a_node_has_only_so_many_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()
    async with forwarding(tmp_path, app.app) as (head, _, node), client(node) as http:
        head.nodes.max_forwarded = 1
        async with http.stream("GET", "/stream") as reply:
            parts = reply.aiter_raw()
            assert await anext(parts) == b"first"
            wait_briefly(monkeypatch)
            assert (await http.get("/echo")).status_code == 503
        await until(lambda: app.left == 1)
        assert (await http.get("/echo")).status_code == 200


async def test_the_head_notices_that_a_client_disconnects(tmp_path: Path) -> None:
    app = App()
    async with forwarding(tmp_path, app.app) as (_, _, node):
        async with client(node) as http, http.stream("GET", "/stream") as reply:
            assert await anext(reply.aiter_raw()) == b"first"
        await until(lambda: app.left == 1)


async def test_connections_through_a_lost_node_are_closed(tmp_path: Path) -> None:
    app = App()
    async with (
        forwarding(tmp_path, app.app) as (head, _, node),
        client(node) as http,
        http.stream("GET", "/stream") as reply,
    ):
        parts = reply.aiter_raw()
        assert await anext(parts) == b"first"
        (transport,) = head.nodes._forwarded["node", "a"]
        connection = transport.get_extra_info("socket")
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        # a client may pause while it reads a response, so bytes that wait for it do not end the connection
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        assert node.member is not None
        head.lost_after = 0.1
        await node.member.agent.close()
        await until(lambda: app.left == 1)
        assert not head.nodes.members()


async def test_connections_through_a_node_that_has_left_end_by_themselves(tmp_path: Path) -> None:
    app = App()
    async with (
        forwarding(tmp_path, app.app) as (head, _, node),
        client(node) as http,
        http.stream("GET", "/stream") as reply,
    ):
        parts = reply.aiter_raw()
        assert await anext(parts) == b"first"
        assert node.member is not None
        await node.member.as_member.left(node.member.incarnation)
        assert not head.nodes.members()
        app.go_on.set()
        assert [part async for part in parts] == [b"second"]


@pytest.mark.usefixtures("impatient")
async def test_a_node_that_is_not_a_member_cannot_forward(tmp_path: Path) -> None:
    app = App()
    async with forwarding(tmp_path, app.app) as (_, _, node), client(node) as http:
        assert node.member is not None
        await node.member.as_member.left(node.member.incarnation)
        assert (await http.get("/echo")).status_code == 503
        assert app.requests == 0


async def test_forged_addresses_are_refused(tmp_path: Path) -> None:
    async with forwarding(tmp_path, App().app) as (_, _, node):
        request = OpenGateway(("1.2.3.4\nforged", 1), (HOST, 1), "http")
        with pytest.raises(NodeError, match="not valid"):
            await node.channels.open(request, PATIENCE)


async def test_a_connection_that_the_node_has_closed_is_not_handed_over() -> None:
    channels: list[Channel] = []
    server = await asyncio.start_server(lambda *ends: channels.append(Channel(*ends)), HOST, 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await until(lambda: len(channels) == 1)
    writer.close()
    await until(channels[0].reader.at_eof)
    with pytest.raises(ConnectionError, match="closed"):
        channels[0].hand_over(GatewayOpened(), asyncio.Protocol())
    assert not channels[0].handed_over
    channels[0].abort()
    server.close()


async def test_an_upload_is_forwarded_while_it_arrives(tmp_path: Path) -> None:
    app = App()
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"x" * 1_000_000
        await go_on.wait()
        for _ in range(29):
            yield b"x" * 1_000_000

    async with forwarding(tmp_path, app.app) as (_, _, node), client(node) as http:
        posting = asyncio.ensure_future(http.post("/upload", content=parts()))
        await until(lambda: app.received == 1_000_000)
        go_on.set()
        assert (await posting).text == "30000000"


async def test_the_head_notices_that_an_upload_breaks_off(tmp_path: Path) -> None:
    app = App()
    async with forwarding(tmp_path, app.app) as (_, _, node):
        _, writer = await asyncio.open_connection(HOST, node.port)
        writer.write(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfive!")
        await until(lambda: app.received == 5)
        writer.transport.abort()
        await until(lambda: app.left == 1)


async def test_a_response_may_come_before_the_end_of_the_body(tmp_path: Path) -> None:
    async with forwarding(tmp_path, App().app) as (_, _, node):
        reader, writer = await asyncio.open_connection(HOST, node.port)
        writer.write(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nfive!")
        assert b"403" in await reader.readline()
        writer.close()


async def test_a_refusal_of_the_head_is_told_to_the_client(tmp_path: Path) -> None:
    def refuse(_: OpenGateway, __: Channel) -> asyncio.Protocol:
        raise NodeError("clients need a certificate")

    async with forwarding(tmp_path, App().app) as (head, _, node), client(node) as http:
        head.nodes._http = None
        head.nodes.serve_http(refuse)
        reply = await http.get("/echo")
        assert (reply.status_code, reply.reason_phrase) == (421, "Misdirected Request")
        assert reply.json() == {
            "title": "Misdirected request",
            "detail": "The head refuses requests that nodes forward: clients need a certificate",
            "status": 421,
        }
        assert "retry-after" not in reply.headers  # another attempt would not help
        error = (await http.post("/openai/v1/chat/completions", json={})).json()["error"]
        assert error["type"] == "invalid_request_error"


# -- while the head is unreachable --------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    """Do not wait long for the head, which does not answer in the whole test."""
    wait_briefly(monkeypatch)


def wait_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_TIMEOUT", "HEALTH_TIMEOUT"):
        monkeypatch.setattr(http_server, name, 0.3)


async def leave(head: TestHead, http: HeadHttp) -> None:
    await http.close()
    await head.nodes.close()


async def back(head: TestHead, app: App) -> HeadHttp:
    """Start the head again, at the same port."""
    http = HeadHttp(app.app)
    await http.start()
    await head.start()
    head.nodes.serve_http(http.connection)
    return http


async def test_without_the_head_clients_get_an_error_of_their_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with forwarding(tmp_path, App().app) as (head, gateway, node), client(node) as http:
        assert (await http.get("/healthz")).status_code == 200
        await leave(head, gateway)
        wait_briefly(monkeypatch)
        reply = await http.get("/healthz")
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "5"
        reply = await http.post("/v1/predictions", json={})
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json() == {
            "title": "Head unreachable",
            "detail": "This machine cannot reach the head of the cluster, so it did not pass on the request; "
            "try again in 5 seconds.",
            "status": 503,
            "retry_after": 5,
        }
        error = (await http.post("/openai/v1/chat/completions?x=y", json={})).json()["error"]
        assert error["type"] == "server_error"
        error = (await http.post("/anthropic/v1/messages", json={})).json()
        assert error["error"]["type"] == "overloaded_error"


@pytest.mark.usefixtures("impatient")
async def test_an_upload_without_the_head_gets_the_error_not_a_reset(tmp_path: Path) -> None:
    async with forwarding(tmp_path, App().app) as (head, gateway, node), client(node) as http:
        await leave(head, gateway)
        assert (await http.post("/upload", content=b"x" * 3_000_000)).status_code == 503


async def test_a_request_waits_for_the_head_and_is_sent_once(tmp_path: Path) -> None:
    app = App()
    async with forwarding(tmp_path, app.app) as (head, gateway, node), client(node) as http:
        await leave(head, gateway)
        posting = asyncio.ensure_future(http.post("/echo", content=b"y" * 1000))
        await until(lambda: node.server._is_unreachable)
        returned = await back(head, app)
        assert (await posting).json()["body"] == "y" * 1000
        assert app.requests == 1
        await returned.close()


async def test_a_request_waits_for_the_gateway_that_starts(tmp_path: Path) -> None:
    app = App()
    async with forwarding(tmp_path, app.app) as (head, gateway, node), client(node) as http:
        head.nodes._http = None
        asking = asyncio.ensure_future(http.get("/echo"))
        await until(lambda: len(head.nodes._server._tasks) > 0)
        head.nodes.serve_http(gateway.connection)
        assert (await asking).status_code == 200


async def test_nothing_is_sent_for_a_client_that_leaves_while_the_head_is_unreachable(tmp_path: Path) -> None:
    app = App()
    async with forwarding(tmp_path, app.app) as (head, gateway, node), client(node) as http:
        await leave(head, gateway)
        _, writer = await asyncio.open_connection(HOST, node.port)
        writer.write(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: node.server._is_unreachable)
        writer.close()
        await until(lambda: not node.server._clients)
        returned = await back(head, app)
        assert (await http.get("/healthz")).status_code == 200
        assert app.requests == 0
        await returned.close()


async def test_a_large_request_is_refused_while_no_gateway_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While so much waits, the node does not notice a client that disconnects to ask another machine."""
    monkeypatch.setattr(http_server, "FULL_TIMEOUT", 0.1)
    app = App()
    async with forwarding(tmp_path, app.app) as (head, gateway, node), client(node) as http:
        head.nodes._http = None  # the gateway starts
        reply = await http.post("/echo", content=b"z" * 2 * http_server.MAX_WAITING)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "5"
        head.nodes.serve_http(gateway.connection)
        assert (await http.get("/healthz")).status_code == 200
        assert app.requests == 0


async def test_a_connection_that_opens_when_the_client_disconnects_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App()
    async with forwarding(tmp_path, app.app) as (_, _, node):
        open_channel = node.channels.open
        opened: list[Channel] = []
        both = asyncio.Event()

        async def open_and_tell(request: OpenGateway, seconds: float) -> Channel:
            opened.append(await open_channel(request, seconds))
            both.set()
            return opened[0]

        async def disconnected(_: asyncio.StreamReader, __: bytearray) -> bool:
            await both.wait()
            return False

        monkeypatch.setattr(node.channels, "open", open_and_tell)
        monkeypatch.setattr(http_server, "_receive", disconnected)
        _, writer = await asyncio.open_connection(HOST, node.port)
        writer.write(b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: len(opened) == 1 and opened[0].writer.is_closing())
        assert app.requests == 0
        writer.close()


@pytest.mark.usefixtures("impatient")
async def test_a_machine_that_has_not_joined_says_so(tmp_path: Path) -> None:
    node = NodeHttp(tmp_path / "nothing", 1)
    await node.server.start(node.listener)
    async with client(node) as http:
        reply = await http.get("/healthz")
    assert reply.status_code == 503
    assert "has not joined" in reply.json()["detail"]
    await node.server.close()


async def test_a_node_that_stops_fails_health_checks_and_forwards_requests(tmp_path: Path) -> None:
    async with forwarding(tmp_path, App().app) as (_, _, node), client(node) as http:
        node.server.fail_health_checks()
        reply = await http.get("/healthz")
        assert reply.status_code == 503
        assert reply.json()["title"] == "Node stopping"
        assert "another machine" in reply.json()["detail"]
        assert "retry-after" not in reply.headers
        assert (await http.get("/echo")).status_code == 200


async def test_health_checks_on_open_connections_fail_too_while_a_node_stops(tmp_path: Path) -> None:
    async with forwarding(tmp_path, App().app) as (_, _, node):
        reader, writer = await asyncio.open_connection(HOST, node.port)

        async def status(path: str) -> bytes:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
            return head.split()[1]

        assert await status("/healthz") == b"200"
        node.server.fail_health_checks()
        assert await status("/echo") == b"200"
        with pytest.raises(EOFError):
            await status("/healthz")
        writer.close()


# -- parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("received", "line"),
    [
        (b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n", ("GET", "/a")),
        (b"\r\nPOST /x HTTP/1.1\r\n", ("POST", "/x")),
        (b"GET http://x:80/healthz?a HTTP/1.1\r\n", ("GET", "/healthz")),
        (b"GET http://x HTTP/1.1\r\n", ("GET", "/")),
        (b"OPTIONS * HTTP/1.1\r\n", ("OPTIONS", "*")),
        (b"nonsense\n", ("nonsense", "")),
        (b"\xff\xfe \x00\n", ("\xff\xfe", "\x00")),
    ],
)
def test_the_first_line_of_a_request(received: bytes, line: tuple[str, str]) -> None:
    assert RequestLine.of(received) == line


def test_the_response_to_head_has_no_body() -> None:
    head, _, body = response(RequestLine("HEAD", "/healthz"), HeadUnreachable()).partition(b"\r\n\r\n")
    _, _, full = response(RequestLine("GET", "/healthz"), HeadUnreachable()).partition(b"\r\n\r\n")
    assert body == b""
    assert f"content-length: {len(full)}".encode() in head
    assert json.loads(full)["status"] == 503

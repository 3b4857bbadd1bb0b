"""Requests that never finish arriving, on real connections; the tests pass in the time instead of waiting."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from appliance.gateway import connections
from appliance.gateway.connections import LONGEST_HEADERS, MAX_SLOW, PATIENCE, PROGRESS, SLOW
from tests.support.appliance_process import until

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]
UPLOAD = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"


class Running:
    """A server with our connections, and what has become of its requests."""

    def __init__(self) -> None:
        self.left = 0
        self.go_on = asyncio.Event()
        self.lines: list[Line] = []
        routes = [
            Route("/read", self.read, methods=["POST"]),
            Route("/refuse", self.refuse, methods=["POST"]),
            Route("/stream", self.stream),
            Route("/held", self.held, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), log_config=None, lifespan="off", port=0, http=connections.Connection
        )
        self.server = uvicorn.Server(config)

    @property
    def connections(self) -> list[Any]:
        return list(self.server.server_state.connections)

    async def read(self, request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            self.left += 1
            raise
        return Response(str(len(body)))

    async def refuse(self, request: Request) -> Response:
        return Response("no", 403)

    async def stream(self, request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            await self.go_on.wait()
            yield b"second"

        return StreamingResponse(parts())

    async def held(self, request: Request) -> Response:
        await self.go_on.wait()
        return Response(str(len(await request.body())))

    async def opened(self, first: bytes = b"") -> Line:
        port = self.server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self.lines.append((reader, writer))
        await self.sent(self.lines[-1], first)
        return self.lines[-1]

    async def sent(self, line: Line, data: bytes) -> None:
        """Send, and wait until it is there."""
        before = self.arrived
        line[1].write(data)
        await until(lambda: not data or self.arrived != before)

    @property
    def arrived(self) -> list[Any]:
        return [(id(one), one._entered, one._received, one._stage) for one in self.connections]

    def after(self, seconds: float, *, trusted: bool = False) -> None:
        """What is done when so much time has passed."""
        now = asyncio.get_running_loop().time() + seconds
        connections.end_slow(self.connections, now, lambda _: trusted)


async def answer(line: Line) -> tuple[int, str, Any]:
    """Status, type and JSON of the answer that ends a connection."""
    head, _, body = (await line[0].read()).partition(b"\r\n\r\n")
    kind = next(row for row in head.decode().splitlines() if row.startswith("content-type: "))
    return int(head.split()[1]), kind.partition(": ")[2], json.loads(body)


@pytest.fixture(scope="module")
def event_loop_policy() -> uvloop.EventLoopPolicy:
    """The gateway's loop: its transports are of other classes than asyncio's."""
    return uvloop.EventLoopPolicy()


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = Running()
    task = asyncio.create_task(running.server.serve())
    await until(lambda: running.server.started)
    yield running
    running.go_on.set()
    for _, writer in running.lines:
        writer.close()
    running.server.should_exit = True
    running.server.force_exit = True
    await task


async def test_a_connection_that_says_nothing_is_closed(running: Running) -> None:
    line = await running.opened()
    await until(lambda: len(running.connections) == 1)
    running.after(PATIENCE - 1)
    assert not line[0].at_eof()
    running.after(PATIENCE + 1)
    assert await line[0].read() == b""


async def test_headers_have_a_time_however_they_drip(running: Running) -> None:
    line = await running.opened(b"GET /stream HTTP/1.1\r\nX-A: ")
    await running.sent(line, b"b")
    running.after(PATIENCE + 1)
    status, kind, problem = await answer(line)
    assert (status, kind) == (408, "application/problem+json")
    assert problem == {
        "title": "Request Timeout",
        "detail": "The headers of the request did not arrive within 30 s",
        "status": 408,
    }


async def test_headers_of_a_later_request_have_a_time_too(running: Running) -> None:
    line = await running.opened(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    await line[0].readuntil(b"no")
    for begun in (b"\r\n", b"GET /"):
        await running.sent(line, begun)
    running.after(PATIENCE + 1)
    assert (await answer(line))[0] == 408


async def test_headers_have_a_size(running: Running) -> None:
    line = await running.opened(b"GET /stream HTTP/1.1\r\nX-A: ")
    for _ in range(LONGEST_HEADERS // 8192 + 2):
        line[1].write(b"x" * 8192)
    status, _, problem = await answer(line)
    assert (status, problem["detail"]) == (
        431,
        f"The headers of the request are over {LONGEST_HEADERS:,} bytes",
    )


async def test_a_body_must_make_progress(running: Running) -> None:
    line = await running.opened(UPLOAD)
    await running.sent(line, b"x" * PROGRESS)
    running.after(PATIENCE + 1)  # slow, but it goes on
    await running.sent(line, b"x" * 100)
    running.after(2 * PATIENCE + 3)
    status, _, told = await answer(line)
    assert (status, told["title"]) == (408, "Request Timeout")
    assert told["detail"] == "Under 16,384 bytes of the request body arrived within 30 s"
    await until(lambda: running.left == 1)


async def test_what_the_appliance_does_not_read_is_not_the_clients_fault(running: Running) -> None:
    line = await running.opened(b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    line[1].write(b"x" * 99_000)
    await until(lambda: running.connections[0].flow.read_paused)
    running.after(PATIENCE + 1)
    running.go_on.set()
    line[1].write(b"x" * 1000)
    assert (await line[0].readuntil(b"100000")).startswith(b"HTTP/1.1 200")


async def test_what_follows_a_refusal_is_thrown_away_for_a_while(running: Running) -> None:
    line = await running.opened(UPLOAD.replace(b"/read", b"/refuse"))
    assert b"403" in await line[0].readuntil(b"no")
    await running.sent(line, b"x" * 1000)
    running.after(PATIENCE - 1)
    assert len(running.connections) == 1
    running.after(PATIENCE + 1)
    assert await line[0].read() == b""


async def test_answers_may_take_as_long_as_they_like(running: Running) -> None:
    line = await running.opened(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
    await line[0].readuntil(b"first")
    await running.sent(line, b"GET /str")  # a further request behind it
    running.after(100 * PATIENCE)
    running.go_on.set()
    await line[0].readuntil(b"second")


async def test_one_client_has_few_slow_requests(running: Running) -> None:
    lines = [await running.opened(UPLOAD) for _ in range(MAX_SLOW + 3)]
    await running.sent(lines[0], b"x" * 1000)  # the fastest
    running.after(SLOW + 1, trusted=True)
    assert len(running.connections) == len(lines)
    running.after(SLOW + 1)
    await until(lambda: len(running.connections) == MAX_SLOW)
    ended = [line for line in lines if line[0].at_eof() or line[0]._buffer]  # type: ignore[attr-defined]
    await until(lambda: running.left == 3)
    assert len(ended) == 3
    assert lines[0] not in ended
    assert (await answer(ended[0]))[2]["detail"].startswith("Over 64 requests from 127.0.0.1 arrive slowly")


@pytest.mark.parametrize(
    "head", [b"not http\r\n\r\n", b"CONNECT x:443 HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"]
)
async def test_what_is_no_request_is_400_in_the_one_shape(running: Running, head: bytes) -> None:
    line = await running.opened(head)
    status, kind, problem = await answer(line)
    assert (status, kind, problem["status"]) == (400, "application/problem+json", 400)


async def test_requests_are_checked_while_a_server_serves(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()
    monkeypatch.setattr(connections, "end_slow", lambda *_: looked.set())
    monkeypatch.setattr(connections, "_EVERY", 0.0)
    other = Running()
    config = other.server.config
    task = asyncio.create_task(connections.serve(other.server, config.bind_socket(), lambda _: False))
    async with asyncio.timeout(60):
        await looked.wait()
    other.server.should_exit = True
    await task


class _Written:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)


async def test_head_and_body_are_one_write_and_later_parts_are_written_at_once() -> None:
    written = _Written()
    gathering: Any = connections._GatheringTransport(written, asyncio.get_running_loop())  # type: ignore[arg-type]
    gathering.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert written.writes == []
    gathering.write(b"first")
    gathering.write(b"second")
    gathering.write(b"")
    assert written.writes == [b"HTTP/1.1 200 OK\r\n\r\nfirst", b"second"]
    gathering.write(b"HTTP/1.1 204 No Content\r\n\r\n")  # without a body
    await asyncio.sleep(0)
    assert written.writes[2:] == [b"HTTP/1.1 204 No Content\r\n\r\n"]

"""HTTP on a standby, with its process and a head in this process."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance import __version__
from appliance import config as configuration
from appliance.driver import standby_http
from appliance.driver.standby_http import StandbyHttp
from appliance.gateway.listener import ListeningSocket, receive_listener
from appliance.gateway.settings import GatewaySettings, HeadSettings
from appliance.nodes import identity
from appliance.nodes.registry import cluster_folder
from tests.support import agents
from tests.support.agents import CPU, HOST, TestHead
from tests.support.appliance_process import PATIENCE, free_port
from tests.support.head_http import HeadHttp

SECRET = "a secret that the operator has chosen"
CONFIG = """
store: {{url: "postgresql://appliance@db.example.org/appliance"}}
cluster: {{address: 10.0.0.1, name: beta, port: {port}}}
models: [{{name: test/echo, kind: echo}}]
"""


async def healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


class Standby:
    """A standby and its clients."""

    def __init__(self, home: Path, agent_port: int, secret: str) -> None:
        home.mkdir()
        (home / "run").mkdir()
        (home / "logs").mkdir()
        file = home / "models.yaml"
        file.write_text(CONFIG.format(port=agent_port))
        self.port = free_port()
        self.settings = GatewaySettings(
            config=configuration.load(file),
            home=home,
            host=HOST,
            port=self.port,
            devices=(CPU,),
            config_file=file,
            ui=False,
            pull=False,
            head=HeadSettings("beta", HOST, "session"),
        )
        identity.create_head(cluster_folder(home), "beta", [HOST], secret)
        self.listener = ListeningSocket(HOST, self.port, self.settings.listener_socket)
        self.shown = io.StringIO()
        self.http: StandbyHttp

    async def get(self, path: str = "/healthz") -> httpx.Response:
        """Return the response on a connection of its own; wait until the process accepts connections."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
                        return await client.get(f"http://{HOST}:{self.port}{path}")
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)

    async def until_answer(self, condition: Callable[[httpx.Response], bool]) -> httpx.Response:
        async with asyncio.timeout(PATIENCE):
            while True:
                reply = await self.get()
                if condition(reply):
                    return reply
                await asyncio.sleep(0.05)


@asynccontextmanager
async def standing_by(
    folder: Path, secret: str = SECRET
) -> AsyncIterator[tuple[TestHead, HeadHttp, Standby]]:
    """A head, and a standby that waits."""
    head = TestHead(folder / "head")
    identity.create_head(head.folder, "alpha", [HOST], SECRET)
    await head.start()
    http = HeadHttp(Starlette(routes=[Route("/healthz", healthz)]))
    await http.start()
    head.nodes.serve_http(http.connection)
    standby = Standby(folder / "standby", head.port, secret)
    with standby.listener as listener:
        console = Console(file=standby.shown, width=1000)
        async with standby_http.forwarding(standby.settings, listener, console) as standby.http:
            yield head, http, standby
        assert not standby.settings.listener_socket.exists()
    await http.close()
    await head.nodes.close()


@pytest.fixture(autouse=True)
def same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "VERSION", __version__)


async def test_a_standby_forwards_requests_until_it_is_the_head(tmp_path: Path) -> None:
    async with standing_by(tmp_path) as (_, _, standby):
        await standby.http.forward_to(None)  # the database has not named the head yet
        reply = await standby.get()
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        assert reply.json()["title"] == "Head unreachable"
        await standby.http.forward_to(HOST)
        reply = await standby.until_answer(lambda reply: reply.status_code == 200)
        assert reply.json() == {"status": "ok"}
        await standby.http.forward_to(None)  # the database does not answer: the head may still be the head
        assert (await standby.get()).status_code == 200

        standby.http.take_over()
        reply = await standby.until_answer(lambda reply: reply.status_code == 503)
        assert reply.json() == {
            "title": "Head unreachable",
            "detail": "This machine is becoming the head of the cluster; try again in 5 seconds.",
            "status": 503,
            "retry_after": 5,
        }

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            writer.close()

        gateway = await asyncio.to_thread(receive_listener, standby.settings.listener_socket)
        async with await asyncio.start_server(answer, sock=gateway):
            await standby.until_answer(lambda reply: reply.status_code == 204)
            child = standby.http._child
            assert child is not None
            assert child._process is not None
            async with asyncio.timeout(PATIENCE):
                await child._process.wait()
            assert [(await standby.get()).status_code for _ in range(5)] == [204] * 5


async def test_requests_are_not_forwarded_to_a_machine_that_does_not_know_the_token(tmp_path: Path) -> None:
    async with standing_by(tmp_path, "another secret, which the head does not know") as (_, _, standby):
        await standby.http.forward_to(HOST)
        async with asyncio.timeout(PATIENCE):
            while not standby.shown.getvalue():
                await asyncio.sleep(0.01)
        assert "is not the head that this join token is for" in standby.shown.getvalue()
        assert identity.TOKEN_VARIABLE in standby.shown.getvalue()
        assert (await standby.get()).status_code == 503


async def test_a_machine_that_never_waits_as_a_standby_starts_no_http_process(tmp_path: Path) -> None:
    async with standing_by(tmp_path) as (_, _, standby):
        standby.http.take_over()
        assert standby.http._child is None
        assert not standby.settings.listener_socket.exists()

"""The way from the gateway to the UI: what is passed on, what is not, and what happens when one side goes."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from msgspec import structs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from appliance.config import Config
from appliance.gateway.api import create_api
from tests.support.api_client import Api


class Pages:
    """What a UI would be: it tells what it was asked, streams, and notices who leaves."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.go_on = asyncio.Event()
        self.begun = asyncio.Event()

    async def echo(self, request: Request) -> Response:
        body = await request.body()
        path = request.scope["raw_path"].decode()
        told = {
            "path": path,
            "query": request.url.query,
            "headers": dict(request.headers),
            "body": body.decode("latin-1"),
        }
        answer = JSONResponse({**told, "method": request.method}, 418, {"x-page": "yes"})
        answer.set_cookie("a", "1")
        answer.set_cookie("b", "2")
        return answer

    async def stream(self, request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            try:
                yield b"first"
                await self.go_on.wait()
                yield b"second"
            except asyncio.CancelledError:
                self.left.set()
                raise

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def packed(self, request: Request) -> Response:
        return Response(gzip.compress(b"small"), headers={"content-encoding": "gzip"})

    async def taken(self, request: Request) -> Response:
        """Takes a body as slowly as it comes."""
        total = 0
        try:
            async for chunk in request.stream():
                total += len(chunk)
                self.begun.set()
        except Exception:
            self.left.set()
            raise
        return JSONResponse(total)


def serving(app: Any, **where: Any) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", proxy_headers=False, **where))


async def started(server: uvicorn.Server) -> asyncio.Task[None]:
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    return task


@pytest.fixture
async def pages(tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages()
    app = Starlette(
        routes=[
            Route("/stream", pages.stream),
            Route("/packed", pages.packed),
            Route("/taken", pages.taken, methods=["POST"]),
            Route("/{rest:path}", pages.echo, methods=["GET", "POST", "PUT"]),
        ]
    )
    server = serving(app, uds=str(tmp_path / "ui.sock"))
    task = await started(server)
    yield pages
    pages.go_on.set()
    server.should_exit = True
    await task


@pytest.fixture
def public_url() -> str | None:
    """``server.public_url`` of the gateway."""
    return None


@pytest.fixture
async def gateway(api: Api, tmp_path: Path, public_url: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """A client, without a token, of a gateway that really listens."""
    config = Config.model_validate(
        {"server": {"public_url": public_url}, "models": [{"name": "a/b", "kind": "echo"}]}
    )
    app = create_api(structs.replace(api.services, config=config), tmp_path / "ui.sock")
    server = serving(app, port=0)
    task = await started(server)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client
    server.should_exit = True
    await task
    await app.close()


async def test_what_is_not_the_apis_reaches_the_pages_as_it_came(
    gateway: httpx.AsyncClient, pages: Pages
) -> None:
    headers = {
        "Host": "models.example.org",
        "Cookie": "who=me",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "1.2.3.4",
        "X-Forwarded-Prefix": "/evil",
        "Origin": "http://elsewhere.example",
    }
    reply = await gateway.post("/explore/a%2Fb/?q=%20x&q=y", headers=headers, content=b"\x00\xffbody")
    told = reply.json()
    assert reply.status_code == 418
    assert (told["path"], told["query"]) == ("/explore/a%2Fb/", "q=%20x&q=y")
    assert told["headers"]["host"] == "models.example.org"
    assert (told["method"], told["body"]) == ("POST", "\x00\xffbody")
    assert told["headers"]["cookie"] == "who=me"
    assert told["headers"]["x-forwarded-proto"] == "http"  # what this gateway knows, not what the client says
    assert "x-forwarded-for" not in told["headers"]
    assert "x-forwarded-prefix" not in told["headers"]
    assert reply.headers["x-page"] == "yes"
    assert reply.headers.get_list("set-cookie") == ["a=1; Path=/; SameSite=lax", "b=2; Path=/; SameSite=lax"]
    assert "access-control-allow-origin" not in reply.headers  # of the API only
    assert (await gateway.get("/packed")).text == "small"


@pytest.mark.parametrize("public_url", ["https://public.example/shared/ai"])
async def test_the_pages_are_told_the_public_url(gateway: httpx.AsyncClient, pages: Pages) -> None:
    headers = (await gateway.get("/explore")).json()["headers"]
    assert headers["host"] == "public.example"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["x-forwarded-prefix"] == "/shared/ai"


async def test_cookies_of_one_browser_are_not_sent_for_another(
    gateway: httpx.AsyncClient, pages: Pages
) -> None:
    assert "set-cookie" in (await gateway.get("/explore")).headers
    gateway.cookies.clear()
    assert "cookie" not in (await gateway.get("/explore")).json()["headers"]


async def test_paths_of_the_api_stay_the_apis(gateway: httpx.AsyncClient, pages: Pages) -> None:
    for path in ("/v1/nothing", "/v1/v1/nothing", "/admin/nothing", "/openai/v1/nothing", "/docs/nothing"):
        reply = await gateway.get(path)
        assert reply.status_code == 404, path
        assert "x-page" not in reply.headers
    assert (await gateway.get("/healthz")).json() == {"status": "ok"}
    assert (await gateway.get("/v1/account")).status_code == 401
    lost = await gateway.get("/predictions", headers={"Authorization": "Bearer x"})  # a base URL without /v1
    assert lost.json() == {"detail": "The requested resource could not be found.", "status": 404}


async def test_a_stream_is_passed_on_as_it_comes_and_ends_with_its_reader(
    gateway: httpx.AsyncClient, pages: Pages
) -> None:
    async with asyncio.timeout(60):
        async with gateway.stream("GET", "/stream") as reply:
            parts = reply.aiter_raw()
            assert await anext(parts) == b"first"
            pages.go_on.set()
            assert await anext(parts) == b"second"
        pages.go_on.clear()
        async with gateway.stream("GET", "/stream") as reply:
            assert await anext(reply.aiter_raw()) == b"first"
        await pages.left.wait()


async def test_an_upload_is_passed_on_as_it_comes_and_ends_with_its_sender(
    gateway: httpx.AsyncClient, pages: Pages
) -> None:
    more = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await more.wait()
        yield b"y" * 1000

    async with asyncio.timeout(60):
        sending = asyncio.create_task(gateway.post("/taken", content=parts()))
        await pages.begun.wait()
        more.set()
        assert (await sending).json() == 2000
        more.clear()
        pages.begun.clear()
        sending = asyncio.create_task(gateway.post("/taken", content=parts()))
        await pages.begun.wait()
        sending.cancel()
        await pages.left.wait()


async def test_while_no_pages_are_there_a_browser_is_told_to_come_back(gateway: httpx.AsyncClient) -> None:
    page = await gateway.get("/explore", headers={"Accept": "text/html,*/*"})
    assert (page.status_code, page.headers["retry-after"]) == (503, "2")
    assert '<meta http-equiv="refresh"' in page.text
    other = await gateway.get("/explore/gradio_api/queue/data")
    assert (other.status_code, other.json()["status"]) == (503, 503)
    assert (await gateway.get("/healthz")).status_code == 200


async def test_without_a_ui_everything_is_the_apis(api: Api) -> None:
    for path in ("/", "/explore"):
        assert (await api.get(path)).status_code == 404


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "QUERY"])
async def test_what_is_no_path_is_refused(gateway: httpx.AsyncClient, pages: Pages, method: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.base_url.port)
    writer.write(f"{method} * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400")
    assert b'"detail":"\\"*\\" is not a path; paths begin with \\"/\\"."' in body

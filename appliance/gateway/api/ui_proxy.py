"""Forwards requests that are not for the API to the UI process.

Bodies are streamed both ways. When the client disconnects, the connection to the UI is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from appliance.gateway.api import client_address, requests, responses

#: Request headers that are not forwarded: those of one connection, and those that this server sets.
_NOT_FORWARDED: Final = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-prefix",
    b"x-forwarded-proto",
    client_address.HEADER.encode(),
    b"host",
}
#: Response headers that this server sets itself.
_SET_BY_SERVER: Final = {b"connection", b"keep-alive", b"transfer-encoding", b"server", b"date"}
#: Seconds after which an idle connection to the UI is closed. The UI closes it later, so that no request is
#: sent over a connection that the UI is closing.
IDLE: Final = 5.0
_STARTING: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="2">
<link rel="icon" href="data:,">
<title>Starting</title>
<style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 20vh auto; max-width: 28rem; padding: 0 1rem }
</style>
</head>
<body>
<h1>The pages are starting</h1>
<p>The API answers already. This page looks again every two seconds; if it stays, <code>logs/ui.log</code> in
the data folder says why.</p>
</body>
</html>
"""


class UiProxy:
    """Forwards requests to the UI process."""

    def __init__(self, socket: Path, api: frozenset[str]) -> None:
        """``socket`` is the Unix socket of the UI, ``api`` the first segments of the API's paths."""
        self._api = api
        limits = httpx.Limits(
            max_connections=None,  # pages hold streams open
            max_keepalive_connections=20,
            keepalive_expiry=IDLE,
        )
        # Not `httpx.AsyncClient`: that would store the cookies of one browser and send them for all others.
        self._transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits)

    def takes(self, scope: Scope) -> bool:
        """Return whether a request is for the UI. All requests with a token are for the API."""
        first: str = scope["path"].split("/", 2)[1]
        return first not in self._api and "authorization" not in Headers(scope=scope)

    async def close(self) -> None:
        await self._transport.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        body = _Body(receive, complete=not has_body)
        passing = asyncio.ensure_future(self._forward(request, body, send))
        leaving = asyncio.ensure_future(body.disconnected())
        try:
            await asyncio.wait((passing, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (passing, leaving):
                task.cancel()
            ended, _ = await asyncio.gather(passing, leaving, return_exceptions=True)
        if isinstance(ended, Exception) and not body.broken:
            raise ended

    async def _forward(self, request: Request, body: _Body, send: Send) -> None:
        path = request.scope["raw_path"] + (b"?" + request.scope["query_string"]).removesuffix(b"?")
        scheme, _, rest = requests.base_url(request).partition("://")
        host, slash, prefix = rest.partition("/")
        headers = [pair for pair in request.headers.raw if pair[0] not in _NOT_FORWARDED]
        headers += [(b"host", host.encode()), (b"x-forwarded-proto", scheme.encode())]
        signed = client_address.signed(requests.address_of(request))
        headers.append((client_address.HEADER.encode(), signed.encode()))
        headers += [(b"x-forwarded-prefix", (slash + prefix).encode())] if prefix else []
        url = httpx.URL("http://ui", raw_path=path)
        content = None if body.complete else body.chunks()
        asked = httpx.Request(request.method, url, headers=headers, content=content)
        try:
            reply = await self._transport.handle_async_request(asked)
        except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
            if not body.broken:
                await _starting(request)(request.scope, request.receive, send)
            return
        try:
            await _answer(reply, send)
        finally:
            await reply.aclose()


async def _answer(reply: httpx.Response, send: Send) -> None:
    headers = [(name.lower(), value) for name, value in reply.headers.raw]
    kept = [pair for pair in headers if pair[0] not in _SET_BY_SERVER]
    await send({"type": "http.response.start", "status": reply.status_code, "headers": kept})
    async for chunk in reply.aiter_raw():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _starting(request: Request) -> Response:
    """Return the response while the UI process does not listen."""
    headers = {"retry-after": "2", "cache-control": "no-store"}
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(_STARTING, 503, headers)
    return responses.json(
        {
            "detail": "The UI is starting; try again in 2 seconds, or see logs/ui.log in the data folder.",
            "status": 503,
        },
        503,
        headers,
    )


class _Body:
    """The body of a request, and the disconnect of its client: ASGI delivers both through ``receive``."""

    def __init__(self, receive: Receive, *, complete: bool) -> None:
        self._receive = receive
        self._all_read = asyncio.Event()
        self.broken = False
        if complete:
            self._all_read.set()

    @property
    def complete(self) -> bool:
        return self._all_read.is_set()

    async def chunks(self) -> AsyncIterator[bytes]:
        while not self.complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.broken = True
                raise httpx.ReadError("the client disconnected")
            if not message.get("more_body", False):
                self._all_read.set()
            yield message.get("body", b"")

    async def disconnected(self) -> None:
        """Return when the client has disconnected after its whole body."""
        await self._all_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.broken = True

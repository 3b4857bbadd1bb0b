"""The way to the UI: requests that the API does not answer are passed on to the process that makes the pages.

Bytes flow both ways as they come. Whoever hangs up here hangs up there.
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

from appliance.gateway.api import requests, responses

#: Of one connection, not of what travels over it; the last four are written anew.
_NOT_PASSED_ON: Final = {
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
    b"x-forwarded-proto",
    b"host",
}
#: Of an answer, what this server writes itself.
_WRITTEN_HERE: Final = {b"connection", b"keep-alive", b"transfer-encoding", b"server", b"date"}
#: Seconds after which a connection to the UI that nobody uses is closed from here. The UI waits for longer: a
#: request must not be sent over one that is being closed there.
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
    """The forwarder."""

    def __init__(self, socket: Path, api: frozenset[str]) -> None:
        """``socket`` is where the UI listens, ``api`` the first segments of the paths that are the API's."""
        self._api = api
        limits = httpx.Limits(
            max_connections=None,  # pages hold streams open
            max_keepalive_connections=20,
            keepalive_expiry=IDLE,
        )
        # Not a client of httpx: that would keep the cookies of one browser, and send them for all others.
        self._transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits)

    def takes(self, scope: Scope) -> bool:
        """Whether a request is for the UI. One with a token in it is for the API, whatever its path is."""
        first: str = scope["path"].split("/", 2)[1]
        return first not in self._api and "authorization" not in Headers(scope=scope)

    async def close(self) -> None:
        """Close every connection to it."""
        await self._transport.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and its answer back."""
        request = Request(scope, receive)
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        body = _Body(receive, complete=not has_body)
        passing = asyncio.ensure_future(self._pass_on(request, body, send))
        leaving = asyncio.ensure_future(body.disconnected())
        try:
            await asyncio.wait((passing, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (passing, leaving):
                task.cancel()
            ended, _ = await asyncio.gather(passing, leaving, return_exceptions=True)
        if isinstance(ended, Exception) and not body.broken:
            raise ended

    async def _pass_on(self, request: Request, body: _Body, send: Send) -> None:
        path = request.scope["raw_path"] + (b"?" + request.scope["query_string"]).removesuffix(b"?")
        scheme, _, host = requests.origin(request).partition("://")
        headers = [pair for pair in request.headers.raw if pair[0] not in _NOT_PASSED_ON]
        headers += [(b"host", host.encode()), (b"x-forwarded-proto", scheme.encode())]
        address = httpx.URL("http://ui", raw_path=path)
        content = None if body.complete else body.chunks()
        asked = httpx.Request(request.method, address, headers=headers, content=content)
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
    kept = [pair for pair in headers if pair[0] not in _WRITTEN_HERE]
    await send({"type": "http.response.start", "status": reply.status_code, "headers": kept})
    async for chunk in reply.aiter_raw():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _starting(request: Request) -> Response:
    """The answer while nothing listens there, or when what did has just died."""
    headers = {"retry-after": "2", "cache-control": "no-store"}
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(_STARTING, 503, headers)
    return responses.json({"detail": "The UI is starting; try again shortly.", "status": 503}, 503, headers)


class _Body:
    """The body of a request, and the news that its client has gone, which come the same way."""

    def __init__(self, receive: Receive, *, complete: bool) -> None:
        self._receive = receive
        self._all_read = asyncio.Event()
        self.broken = False
        if complete:
            self._all_read.set()

    @property
    def complete(self) -> bool:
        """Whether nothing more will come."""
        return self._all_read.is_set()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while not self.complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.broken = True
                raise httpx.ReadError("the client hung up")
            if not message.get("more_body", False):
                self._all_read.set()
            yield message.get("body", b"")

    async def disconnected(self) -> None:
        """Return when the client has hung up behind its whole body."""
        await self._all_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.broken = True

"""The HTTP API as the pages use it: one connection pool, and a caller for each person who is signed in."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, Final, NoReturn

import httpx

from appliance.domain.errors import (
    ApplianceError,
    FieldProblem,
    InvalidInput,
    NotFound,
    PermissionDenied,
    Throttled,
    Unauthenticated,
)
from appliance.protocols import content_encodings
from appliance.protocols.sse import EventReader, ServerSentEvent

#: No time for an answer: models take theirs. A connection is there at once, or the gateway is not.
_PATIENCE: Final = httpx.Timeout(None, connect=10.0)


class Api:
    """One appliance."""

    def __init__(self, address: str, certificates: Path | None = None) -> None:
        """``address`` is where it answers on this machine; ``certificates`` are those to believe there."""
        self.address = address
        trust: ssl.SSLContext | bool = False  # never asked where there is no TLS
        if address.startswith("https:"):
            trust = ssl.create_default_context(cafile=certificates)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)  # streams are held open
        self._http = httpx.AsyncClient(
            base_url=address,
            verify=trust,
            limits=limits,
            timeout=_PATIENCE,
            trust_env=False,
            headers=content_encodings.IDENTITY,
            event_hooks={"response": [content_encodings.refuse_later]},
        )

    def caller(self, secret: str, origin: str) -> Caller:
        """Calls with a token, for a browser that knows the appliance as ``origin``, as addresses begin."""
        return Caller(self._http, secret, origin)

    async def file(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        """The answer at the address of an output, to be read and closed by the caller; it needs no token.

        Raises:
            ApplianceError: the API does not answer.
        """
        asked = self._http.build_request("GET", path, headers=dict(headers))
        try:
            return await self._http.send(asked, stream=True)
        except httpx.HTTPError as error:
            raise ApplianceError("The API does not answer just now; try again in a moment.") from error

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()


class Caller:
    """Calls the API with one person's token. Every failure is an ``ApplianceError`` that can be shown."""

    def __init__(self, http: httpx.AsyncClient, secret: str, origin: str) -> None:
        """Made by ``Api.caller``."""
        self.origin = origin
        scheme, _, host = origin.partition("://")
        # The answers name addresses for whoever asks: for that browser, then, and not for this process.
        self._headers = httpx.Headers(
            {
                b"authorization": b"Bearer " + secret.encode(),
                b"host": host.encode(),
                b"x-forwarded-host": host.encode(),
                b"x-forwarded-proto": scheme.encode(),
            }
        )
        self._http = http

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON at ``path``; of ``query``, what is None is left out."""
        asked = {key: value for key, value in query.items() if value is not None}
        return (await self._call("GET", path, params=asked)).json()

    async def every(self, path: str, **query: Any) -> list[Any]:
        """The results on all pages of the list at ``path``."""
        page = await self.get(path, **query)
        found: list[Any] = page["results"]
        while page["next"]:
            page = await self.get(httpx.URL(page["next"]).raw_path.decode())
            found += page["results"]
        return found

    async def text(self, path: str) -> str:
        """The text at ``path``."""
        return (await self._call("GET", path)).text

    async def send(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON that answers ``body``; None if the answer is empty."""
        reply = await self._call(method, path, json=body)
        return reply.json() if reply.content else None

    async def post(self, path: str, body: Any = None) -> Any:
        """The JSON that answers a POST."""
        return await self.send("POST", path, body)

    async def upload(self, name: str, content: IO[bytes], kind: str) -> Any:
        """The description of an upload, once it is complete."""
        return (await self._call("POST", "/v1/files", files={"content": (name, content, kind)})).json()

    async def stream(self, address: str) -> AsyncIterator[ServerSentEvent]:
        """The server-sent events at an address that the API has named, until it ends them."""
        path = httpx.URL(address).raw_path.decode()
        async with self._translated(), self._http.stream("GET", path, headers=self._headers) as reply:
            if not reply.is_success:
                await reply.aread()
                _refuse(reply)
            reader = EventReader()
            async for chunk in reply.aiter_bytes():
                for event in reader.feed(chunk):
                    yield event

    async def _call(self, method: str, path: str, **given: Any) -> httpx.Response:
        async with self._translated():
            reply = await self._http.request(method, path, headers=self._headers, **given)
        if not reply.is_success:
            _refuse(reply)
        return reply

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ApplianceError(
                "The API does not answer just now; try again in a moment. If it stays so, "
                "the terminal of `appliance serve` says why."
            ) from error


def _refuse(reply: httpx.Response) -> NoReturn:
    try:
        body = reply.json()
    except ValueError:
        body = {}
    detail = str(body.get("detail") or f"The API answered with HTTP {reply.status_code}.").strip()
    match reply.status_code:
        case 401:
            raise Unauthenticated(token_given=True)
        case 403:
            raise PermissionDenied(detail)
        case 404:
            raise NotFound(detail)
        case 422 if body.get("invalid_fields"):
            raise InvalidInput([FieldProblem(**problem) for problem in body["invalid_fields"]])
        case 429:
            raise Throttled(detail, retry_after=int(body.get("retry_after", 1)))
    raise ApplianceError(detail)

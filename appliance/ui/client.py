"""The client of the HTTP API behind the pages: one connection pool for the tokens of all users."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import httpx

from appliance.domain.errors import ApplianceError
from appliance.protocols import api_client, content_encodings
from appliance.protocols.sse import EventReader, ServerSentEvent

#: Responses have no timeout, since a model may compute for long; connecting has one.
_TIMEOUT: Final = httpx.Timeout(None, connect=10.0)


class Api:
    """The connections to one appliance."""

    def __init__(self, url: str, certificates: Path | None = None) -> None:
        """``url`` is the base URL of the API; ``certificates`` is a file with those to trust there."""
        self.url = url
        trust: ssl.SSLContext | bool = False  # not used without TLS
        if url.startswith("https:"):
            trust = ssl.create_default_context(cafile=certificates)
        self._http = httpx.AsyncClient(
            base_url=url,
            verify=trust,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),  # streams stay open
            timeout=_TIMEOUT,
            trust_env=False,
            headers=content_encodings.IDENTITY,
            event_hooks={"response": [content_encodings.refuse_async]},
        )

    def caller(self, token: str, origin: str) -> Caller:
        """Return a client with ``token``; ``origin`` is the scheme and host that the browser uses."""
        return Caller(self._http, token, origin)

    async def file(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        """Return the response for an output file, which needs no token. The caller reads and closes it.

        Raises:
            ApplianceError: the API does not answer.
        """
        request = self._http.build_request("GET", path, headers=dict(headers))
        with _translated():
            return await self._http.send(request, stream=True)

    async def close(self) -> None:
        await self._http.aclose()


class Caller:
    """Calls the API with the token of one user. Every failure is an ``ApplianceError`` for that user."""

    def __init__(self, http: httpx.AsyncClient, token: str, origin: str) -> None:
        self.origin = origin
        scheme, _, host = origin.partition("://")
        # URLs in responses are for the browser, so the API must see the host that the browser uses.
        forwarded = {"host": host, "x-forwarded-host": host, "x-forwarded-proto": scheme}
        encoded = {name.encode(): value.encode() for name, value in forwarded.items()}
        self._headers = httpx.Headers(api_client.authorization(token) | encoded)
        self._http = http

    async def get(self, path: str, **query: Any) -> Any:
        """Return the JSON at ``path``; parameters of ``query`` that are None are left out."""
        given = {key: value for key, value in query.items() if value is not None}
        return (await self._request("GET", path, params=given)).json()

    async def all_pages(self, path: str, **query: Any) -> list[Any]:
        """Return the results on all pages of the list at ``path``."""
        page = await self.get(path, **query)
        found: list[Any] = page["results"]
        while page["next"]:
            page = await self.get(api_client.path_of(page["next"]))
            found += page["results"]
        return found

    async def text(self, path: str) -> str:
        """Return the text at ``path``."""
        return (await self._request("GET", path)).text

    async def send(self, method: str, path: str, **request: Any) -> Any:
        """Return the JSON of the response, or None if the response is empty."""
        response = await self._request(method, path, **request)
        return response.json() if response.content else None

    async def post(self, path: str, body: Any = None) -> Any:
        """Send ``body`` as JSON and return the JSON of the response."""
        return await self.send("POST", path, json=body)

    async def upload(self, name: str, content: IO[bytes], kind: str) -> Any:
        """Upload a file and return its description."""
        return await self.send("POST", "/v1/files", files={"content": (name, content, kind)})

    async def stream(self, url: str) -> AsyncIterator[ServerSentEvent]:
        """Yield the server-sent events at a URL from a response of the API, until the API ends the stream."""
        with _translated():
            async with self._http.stream("GET", api_client.path_of(url), headers=self._headers) as response:
                if not response.is_success:
                    await response.aread()
                    raise api_client.error_from(response)
                reader = EventReader()
                async for chunk in response.aiter_bytes():
                    for event in reader.feed(chunk):
                        yield event

    async def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        with _translated():
            response = await self._http.request(method, path, headers=self._headers, **request)
        if not response.is_success:
            raise api_client.error_from(response)
        return response


@contextmanager
def _translated() -> Iterator[None]:
    """Raise connection errors as ``ApplianceError``."""
    try:
        yield
    except httpx.HTTPError as error:
        raise ApplianceError(
            "The API does not answer: try again in a moment. If this lasts, read the output of "
            "`appliance serve` for the reason."
        ) from error

"""HTTP clients with which pages call the appliance's API. All users share one connection pool."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, TypeVar
from urllib.parse import quote

import httpx

from appliance.domain.errors import ApplianceError
from appliance.protocols import api_client, content_encodings
from appliance.protocols.sse import EventReader, ServerSentEvent

#: Only connecting has a timeout: a model may compute for a long time before the response.
_TIMEOUT: Final = httpx.Timeout(None, connect=10.0)

#: Characters that need no quotation in a path.
_PATH: Final = "/!$&'()*+,;=:@~-._"

#: Header of the browser's address, signed by the gateway, for the audit log.
BROWSER: Final = "x-appliance-client"

T = TypeVar("T")


class Api:
    """The connection pool to one appliance."""

    def __init__(
        self, url: str, certificates: Path | None = None, client_certificate: Path | None = None
    ) -> None:
        """``certificates`` is a PEM file of the certificates to trust if ``url`` is https.

        ``client_certificate`` is a PEM file with the certificate, and its key, that the appliance demands.
        """
        self.url = url
        trust: ssl.SSLContext | bool = False  # not used without TLS
        if url.startswith("https:"):
            trust = ssl.create_default_context(cafile=certificates)
            if client_certificate is not None:
                trust.load_cert_chain(client_certificate)
        self._http = httpx.AsyncClient(
            base_url=url,
            verify=trust,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),  # streams stay open
            timeout=_TIMEOUT,
            trust_env=False,
            headers=content_encodings.IDENTITY,
            event_hooks={"response": [content_encodings.refuse_async]},
        )

    def caller(
        self,
        token: str | None,
        base_url: str,
        before_run: Callable[[], None] | None = None,
        browser: str = "",
    ) -> Caller:
        """Return a client that uses ``token``; None for routes that need no token.

        ``base_url`` is the URL of the appliance in the browser.

        ``browser`` is the address of the browser as the gateway has written it into the header ``BROWSER``.

        ``before_run`` is called before each prediction is created, and raises an error to refuse it.
        """
        return Caller(self._http, token, base_url, before_run, browser)

    async def file(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        """Open an output file, for which no token is needed. The caller reads and closes the response.

        Raises:
            ApplianceError: the API does not answer.
        """
        request = self._http.build_request("GET", path, headers=dict(headers))
        with _translated():
            return await self._http.send(request, stream=True)

    async def close(self) -> None:
        await self._http.aclose()


class Caller:
    """Calls the API with the token of one user, or with none.

    Failures are ``ApplianceError`` with a message for users.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        token: str | None,
        base_url: str,
        before_run: Callable[[], None] | None = None,
        browser: str = "",
    ) -> None:
        self.base_url = base_url
        self._before_run = before_run
        scheme, _, rest = base_url.partition("://")
        host = rest.partition("/")[0]
        # URLs in responses are for the browser, so the API must see the host that the browser uses.
        forwarded = {"host": host, "x-forwarded-host": host, "x-forwarded-proto": scheme}
        if browser:
            forwarded[BROWSER] = browser
        encoded = {name.encode(): value.encode() for name, value in forwarded.items()}
        signed_in = {} if token is None else api_client.authorization(token)
        self._headers = httpx.Headers(signed_in | encoded)
        self._http = http

    async def get(self, path: str, **query: Any) -> Any:
        """Return the JSON at ``path``. Query parameters that are None are left out."""
        given = {key: value for key, value in query.items() if value is not None}
        # With an empty dict, httpx would remove the query that `path` has.
        return (await self._request("GET", path, params=given or None)).json()

    async def get_as(self, type: type[T], path: str, **query: Any) -> T:
        """Return the response as ``type``, a struct of ``protocols``."""
        return api_client.convert(await self.get(path, **query), type)

    async def all_pages(self, path: str, **query: Any) -> list[Any]:
        """Return the items of all pages of the list at ``path``."""
        page = await self.get(path, **query)
        found: list[Any] = page["results"]
        while page["next"]:
            page = await self.get(api_client.next_page(path, page["next"]))
            found += page["results"]
        return found

    async def text(self, path: str) -> str:
        return (await self._request("GET", path)).text

    async def send(self, method: str, path: str, **request: Any) -> Any:
        """Send a request and return the JSON of the response; None if the response is empty."""
        if self._before_run is not None and method == "POST" and path.endswith("/predictions"):
            self._before_run()
        response = await self._request(method, path, **request)
        return response.json() if response.content else None

    async def post(self, path: str, body: Any = None) -> Any:
        return await self.send("POST", path, json=body)

    async def upload(self, name: str, content: IO[bytes], kind: str) -> Any:
        return await self.send("POST", "/v1/files", files={"content": (name, content, kind)})

    async def stream(self, url: str) -> AsyncIterator[ServerSentEvent]:
        """Yield the server-sent events at ``url`` until the stream ends."""
        with _translated():
            async with self._http.stream(
                "GET", api_client.stream_path(url), headers=self._headers
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise api_client.error_from(response)
                reader = EventReader()
                async for chunk in response.aiter_bytes():
                    for event in reader.feed(chunk):
                        yield event

    async def open(
        self,
        method: str,
        path: str,
        *,
        query: bytes = b"",
        headers: Mapping[str, str],
        content: AsyncIterable[bytes] | None = None,
    ) -> httpx.Response:
        """Send a request and return its response, whatever its status. The caller reads and closes it.

        Raises:
            ApplianceError: the API does not answer.
        """
        url = self._http.base_url.copy_with(
            raw_path=quote(path, safe=_PATH).encode() + (b"?" + query if query else b"")
        )
        all_headers = httpx.Headers(self._headers)
        all_headers.update(headers)
        request = self._http.build_request(method, url, headers=all_headers, content=content)
        with _translated():
            return await self._http.send(request, stream=True)

    async def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        with _translated():
            response = await self._http.request(method, path, headers=self._headers, **request)
        if not response.is_success:
            raise api_client.error_from(response)
        return response


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise ApplianceError(
            "The API does not answer: try again in a moment. If it still does not answer, the output of "
            "`appliance serve` has the reason."
        ) from error

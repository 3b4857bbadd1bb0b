"""The HTTP client behind the commands that talk to a running appliance."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx

from appliance.domain import input_schema
from appliance.domain.errors import ApplianceError, NotFound, Unauthenticated
from appliance.protocols import api_client, content_encodings
from appliance.protocols.media import from_data
from appliance.protocols.sse import EventReader, ServerSentEvent

T = TypeVar("T")


class Client:
    """Calls one appliance with one token. Failures are ``ApplianceError`` and name a remedy."""

    def __init__(
        self,
        url: str,
        token: str | None,
        certificate: Path | None = None,
        client_certificate: Path | None = None,
    ) -> None:
        """``url`` may end in /v1. ``certificate`` is trusted in addition to the system's authorities.

        ``client_certificate`` is a PEM file with the certificate, and its key, that the appliance demands.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        if token is None:
            raise ApplianceError(
                "there is no token: set APPLIANCE_TOKEN (or REPLICATE_API_TOKEN) to the token that "
                "`appliance serve` printed at its first start, or make a token with `appliance token create`"
            )
        if not token.isprintable():  # httpx would print the header that it refuses
            raise ApplianceError("the token in the environment contains a control character: set it again")
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ApplianceError(f"{url!r} is not a URL of an appliance: write it like http://127.0.0.1:8000")
        self._authorization = httpx.Headers(api_client.authorization(token))
        # No timeout: loading a large model can take minutes, and Ctrl-C ends the wait.
        context = _tls(parsed, certificate, client_certificate)
        self._http = _client(base_url=parsed, timeout=None, verify=context)

    def get(self, path: str) -> Any:
        return self.send("GET", path)

    def get_as(self, type: type[T], path: str) -> T:
        """Return the response as ``type``, a struct of ``protocols``."""
        return api_client.convert(self.get(path), type)

    def send_as(self, type: type[T], method: str, path: str) -> T:
        """Send a request without a body, and return the response as ``type``, a struct of ``protocols``."""
        return api_client.convert(self.send(method, path), type)

    def all_pages(self, path: str) -> list[Any]:
        """Return the items of all pages of the list at ``path``."""
        page = self.get(path)
        found: list[Any] = page["results"]
        while page.get("next"):
            page = self.get(api_client.next_page(path, page["next"]))
            found += page["results"]
        return found

    def text(self, path: str) -> str:
        return self._request("GET", path).text

    def post(self, path: str, body: Any = None) -> Any:
        return self.send("POST", path, json=body)

    def upload(self, name: str, content: IO[bytes], kind: str) -> Any:
        return self.send("POST", "/v1/files", files={"content": (name, content, kind)})

    def send(self, method: str, path: str, **request: Any) -> Any:
        """Send a request and return the JSON of the response; None if the response is empty."""
        response = self._request(method, path, **request)
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise ApplianceError(
                f"the server at {self.url} is not an appliance: correct --url or APPLIANCE_URL"
            ) from error

    def save(self, output: Any, folder: Path) -> list[Path]:
        """Download all files in ``output`` to ``folder`` and return their paths. Never overwrites a file."""
        folder.mkdir(parents=True, exist_ok=True)
        return [self._save(url, folder) for url in api_client.file_urls(output)]

    def _save(self, url: str, folder: Path) -> Path:
        if url.startswith("data:"):
            try:
                kind, content = from_data(url)
            except ValueError as error:
                raise ApplianceError(f"the output {url[:50]}... is not a valid data URL: {error}") from error
            path = _unused_path(folder / f"output{mimetypes.guess_extension(kind) or ''}")
            path.write_bytes(content)
            return path
        path = _unused_path(folder / (Path(httpx.URL(url).path).name or "output"))
        # The appliance's own certificate is not trusted for files on other servers.
        ours = url.startswith(f"{self.url}/")
        opened = nullcontext(self._http) if ours else _client()
        with self._translated(), opened as client, client.stream("GET", url) as response:
            if not response.is_success:
                response.read()
                raise _error_from(response)
            with path.open("xb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
        return path

    def stream(self, url: str) -> Iterator[ServerSentEvent]:
        """Yield the server-sent events at ``url`` until the stream ends. Sends no token."""
        with self._translated(), self._http.stream("GET", url) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise _error_from(response)
            reader = EventReader()
            for chunk in response.iter_bytes():
                yield from reader.feed(chunk)

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        with self._translated():
            response = self._http.request(method, path, headers=self._authorization, **request)
        if not response.is_success:
            raise _error_from(response)
        return response

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise ApplianceError(
                f"cannot connect to {self.url}: start the appliance with `appliance serve`, "
                "or correct --url or APPLIANCE_URL"
            ) from error
        except httpx.HTTPError as error:
            remedy = "try again"
            if self.url.startswith("https:"):
                remedy += (
                    ", or, if the appliance demands client certificates (server.tls.client_ca), set "
                    "APPLIANCE_CLIENT_CERTIFICATE to a PEM file with an accepted certificate and its key"
                )
            raise ApplianceError(
                f"the connection to {self.url} broke: {str(error) or type(error).__name__}: {remedy}"
            ) from error


def _client(**given: Any) -> httpx.Client:
    hooks = {"response": [content_encodings.refuse]}
    return httpx.Client(trust_env=False, headers=content_encodings.IDENTITY, event_hooks=hooks, **given)


def _tls(url: httpx.URL, certificate: Path | None, client_certificate: Path | None) -> ssl.SSLContext | bool:
    """Return a TLS context that trusts the system's authorities, SSL_CERT_FILE, and ``certificate``."""
    if url.scheme != "https":
        return False  # not used without TLS, and creating a context is slow
    context = ssl.create_default_context()
    try:
        for file in (certificate, os.environ.get("SSL_CERT_FILE")):
            if file:
                context.load_verify_locations(file)
        file = client_certificate
        if file is not None:
            context.load_cert_chain(file)
    except (OSError, ssl.SSLError) as error:
        raise ApplianceError(f"the certificate {file} cannot be read: {error}: correct its path") from error
    return context


def connect(url: str, certificate: Path | None = None, client_certificate: Path | None = None) -> Client:
    """Return a client for ``url`` with the token from the environment."""
    token = os.environ.get("APPLIANCE_TOKEN") or os.environ.get("REPLICATE_API_TOKEN")
    return Client(url, token, certificate, client_certificate)


def parse_input(given: str, properties: dict[str, Any]) -> tuple[str, Any]:
    """Parse a ``key=value`` option by the key's type in ``properties``; ``@file`` means a file's content.

    Raises:
        ApplianceError: the option is not ``key=value``, the file cannot be read, or a number is not finite.
    """
    key, equals, text = given.partition("=")
    if not equals or not key:
        raise ApplianceError(f"-i {given}: write key=value, or key=@file")
    declared = properties.get(key, {})
    if text.startswith("@"):
        return key, _file(Path(text[1:]).expanduser(), key, as_uri=declared.get("format") == "uri")
    as_list = bool(declared.get("x-appliance-list")) and text.startswith("[")
    if declared.get("type") == "string" and not as_list:
        return key, text
    try:
        value = json.loads(text)
    except ValueError:  # sent as text: the error of the API names the expected type
        return key, text
    if input_schema.fits(text, declared) and not input_schema.fits(value, declared):
        return key, text
    if input_schema.non_finite(value) is not None:
        raise ApplianceError(f"-i {given}: the value must be a finite number")
    return key, value


def declared_inputs(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    inputs = {}
    for name, declared in schemas["Input"]["properties"].items():
        merged: dict[str, Any] = {}
        for part in declared.get("allOf", ()):
            merged |= schemas.get(part.get("$ref", "").rpartition("/")[2], part)
        inputs[name] = merged | declared
    return inputs


def _unused_path(path: Path) -> Path:
    """Return ``path``, with a number added to its name if the file exists."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _file(path: Path, key: str, *, as_uri: bool) -> str:
    try:
        content = path.read_bytes()
        if not as_uri:
            return content.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except OSError as error:
        raise ApplianceError(f"-i {key}=@{path}: the file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ApplianceError(f"-i {key}=@{path}: the file must be UTF-8 text") from error
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _error_from(response: httpx.Response) -> ApplianceError:
    error = api_client.error_from(response)
    if isinstance(error, Unauthenticated):
        return ApplianceError(
            f"the appliance does not accept this token ({error.detail.rstrip('.')}): "
            "correct APPLIANCE_TOKEN (or REPLICATE_API_TOKEN), "
            "or make a token with `appliance token create`"
        )
    message = f"{error.detail.strip()} (HTTP {response.status_code})"
    return NotFound(message) if isinstance(error, NotFound) else ApplianceError(message)

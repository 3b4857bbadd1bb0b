"""An HTTP server for the server of a Cog project: input files, output files and webhooks."""

from __future__ import annotations

import asyncio
import base64
import http.server
import io
import itertools
import json
import mimetypes
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote, unquote, urlsplit

from appliance.domain.interface import Interface
from appliance.domain.prediction import Job

_CHUNK: Final = 1024 * 1024  # bytes that are read at once


class LoopbackServer:
    """Serves input files, and receives output files and webhooks, at URLs that cannot be guessed.

    GET  /<token>/inputs/<n>/<name>   an input file of a running prediction
    PUT  /<token>/outputs/<name>      stores an output file, and redirects to a URL that identifies the file
    GET  /<token>/outputs/<n>/<name>  the target of this redirect
    POST /<token>/webhooks            reports the state of a prediction
    """

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self._numbers = itertools.count()  # of files
        self._inputs: dict[str, tuple[str, Path]] = {}  # URL -> (prediction, file)
        self._outputs: dict[str, Path] = {}  # URL -> file
        self._folder = Path()
        self._server: http.server.ThreadingHTTPServer
        self._on_webhook: Callable[[dict[str, Any]], object]
        self._loop: asyncio.AbstractEventLoop

    def start(
        self,
        folder: Path,
        on_webhook: Callable[[dict[str, Any]], object] = lambda _: None,
        listener: socket.socket | None = None,
    ) -> None:
        """Answer requests, in threads that end with the process.

        Args:
            folder: a folder for output files.
            on_webhook: called on the running event loop.
            listener: the socket to accept connections from; by default a new one on the loopback interface.
        """
        self._folder, self._on_webhook = folder, on_webhook
        self._loop = asyncio.get_running_loop()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler, bind_and_activate=listener is None)
        if listener is not None:
            self._server.socket.close()
            self._server.socket = listener
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._server.socket.getsockname()[1]}/{self.token}"

    @property
    def upload_url(self) -> str:
        return f"{self._url}/outputs/"

    @property
    def webhook_url(self) -> str:
        return f"{self._url}/webhooks"

    def with_urls(self, job: Job, interface: Interface) -> dict[str, Any]:
        """Return the input of a prediction with a URL for every file: Cog's servers accept no paths."""
        given = dict(job.input)
        for name in interface.file_inputs:
            value = given.get(name)
            if isinstance(value, str):
                given[name] = self.input_url(job.id, value)
            elif isinstance(value, list):
                given[name] = [self.input_url(job.id, each) for each in value]
        return given

    def input_url(self, prediction: str, path: str) -> str:
        """Serve a file for a prediction; return its URL, which ends in the name of the file."""
        url = f"{self._url}/inputs/{next(self._numbers)}/{quote(Path(path).name)}"
        self._inputs[url] = prediction, Path(path)
        return url

    def forget(self, prediction: str) -> None:
        """Stop serving the input files of a prediction."""
        for url in [url for url, (owner, _) in self._inputs.items() if owner == prediction]:
            del self._inputs[url]

    def input_file(self, path: str) -> Path | None:
        """Return the input file at the path of a URL; None if there is none."""
        found = self._inputs.get(f"{self._url}/{path}")
        return None if found is None else found[1]

    def output_file(self, url: str) -> Path | None:
        """Return the output file with this URL; None if there is none."""
        return self._outputs.get(url)

    def store(self, name: str, data: Iterator[bytes]) -> str:
        """Store an output file, and return its URL."""
        number = str(next(self._numbers))
        safe = name.encode(errors="replace").decode().replace("/", "_").replace("\0", "_")
        path = self._folder / number / ("output" if safe in {"", ".", ".."} else safe)
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            for chunk in data:
                file.write(chunk)
        url = f"{self._url}/outputs/{number}/{quote(path.name)}"
        self._outputs[url] = path
        return url

    def store_data_url(self, url: str) -> Path | None:
        """Store the content of a data URL in Base64 as an output file; None if it is not such a URL."""
        head, _, data = url.partition(",")
        media, *parameters = head.removeprefix("data:").split(";")
        try:
            content = base64.b64decode(data, validate=True) if "base64" in parameters else None
        except ValueError:
            return None
        if content is None:
            return None
        stored = self.store(f"output{mimetypes.guess_extension(media) or '.bin'}", iter([content]))
        return self._outputs.pop(stored)

    def report(self, body: bytes) -> HTTPStatus:
        """Pass the body of a webhook on; return the status of the response."""
        try:
            state = json.loads(body)
        except ValueError:
            return HTTPStatus.BAD_REQUEST
        if not isinstance(state, dict):
            return HTTPStatus.BAD_REQUEST
        self._loop.call_soon_threadsafe(self._on_webhook, state)
        return HTTPStatus.OK


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Do nothing: the other end has closed the connection."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ClassVar[LoopbackServer]

    def do_POST(self) -> None:
        kind, _ = self._path()
        body = b"".join(self._body())
        self._empty(self.owner.report(body) if kind == "webhooks" else HTTPStatus.NOT_FOUND)

    def do_PUT(self) -> None:
        kind, name = self._path()
        if kind != "outputs":
            self.close_connection = True
            self._empty(HTTPStatus.NOT_FOUND)
            return
        try:
            url = self.owner.store(unquote(name), self._body())
        except OSError as error:
            self.close_connection = True
            self.log_error("%s", error)
            self._empty(HTTPStatus.INSUFFICIENT_STORAGE)
            return
        # Versions of Cog before 0.9 know a file only by the URL that the last response came from.
        self._empty(HTTPStatus.SEE_OTHER, Location=url)

    def do_GET(self) -> None:
        kind, rest = self._path()
        if kind == "outputs":
            self._empty(HTTPStatus.OK)
            return
        file = self.owner.input_file(f"inputs/{rest}") if kind == "inputs" else None
        if file is None:
            self._empty(HTTPStatus.NOT_FOUND)
            return
        with file.open("rb") as opened:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(file.stat().st_size))
            self.send_header("Content-Type", mimetypes.guess_type(file.name)[0] or "application/octet-stream")
            self.end_headers()
            shutil.copyfileobj(opened, self.wfile)

    def log_message(self, *_: Any) -> None:
        pass

    def _path(self) -> tuple[str, str]:
        """Return the two parts of the path after the token; two empty texts if the token is wrong."""
        token, _, path = urlsplit(self.path).path.lstrip("/").partition("/")
        kind, _, rest = path.partition("/")
        return (kind, rest) if secrets.compare_digest(token, self.owner.token) else ("", "")

    def _empty(self, status: HTTPStatus, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            yield from _chunks(self.rfile)
            return
        left = int(self.headers.get("Content-Length", 0))
        while left > 0 and (data := self.rfile.read(min(left, _CHUNK))):
            left -= len(data)
            yield data


def _chunks(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Yield the data of a body in chunked transfer coding."""
    while (left := int(stream.readline().partition(b";")[0], 16)) > 0:
        while left > 0 and (data := stream.read(min(left, _CHUNK))):
            left -= len(data)
            yield data
        stream.readline()
    stream.readline()

"""An HTTP server for Cog's server in a sandbox: webhooks, output files and input files."""

from __future__ import annotations

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
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

_CHUNK: Final = 1024 * 1024  # bytes

#: Gets the id of a prediction and the body of a webhook about it. Called in other threads.
OnWebhook = Callable[[str, dict[str, Any]], object]


class SandboxServer:
    """Answers the requests of one sandbox. It accepts requests from all who can connect to the listener.

    POST /webhooks/<id>         reports the state of a prediction
    PUT  /upload/<name>         stores an output file, and redirects to a URL that identifies the file
    GET  /uploaded/<n>/<name>   the target of this redirect
    GET  /inputs/<token>/<name> an input file of a running prediction
    """

    def __init__(self, listener: socket.socket, folder: Path, on_webhook: OnWebhook) -> None:
        """``folder`` is an empty folder for output files."""
        self._listener = listener
        self._folder = folder
        self._on_webhook = on_webhook
        self._numbers = itertools.count()
        self._inputs: dict[str, tuple[str, Path]] = {}  # token -> (prediction, file)
        self._outputs: dict[str, Path] = {}  # URL -> file
        self._url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    @property
    def upload_url(self) -> str:
        return f"{self._url}/upload/"

    def webhook_url(self, id: str) -> str:
        return f"{self._url}/webhooks/{id}"

    def input_url(self, prediction: str, path: str) -> str:
        """Serve a file for a prediction; return its URL, which ends in the name of the file."""
        token = secrets.token_urlsafe(24)
        self._inputs[token] = prediction, Path(path)
        return f"{self._url}/inputs/{token}/{quote(Path(path).name)}"

    def forget(self, prediction: str) -> None:
        """Stop serving the input files of a prediction."""
        for token in [token for token, (owner, _) in self._inputs.items() if owner == prediction]:
            del self._inputs[token]

    def output_file(self, url: str) -> Path | None:
        """Return the output file with this URL; None if there is none."""
        return self._outputs.get(url)

    def start(self) -> None:
        """Begin to answer, in threads that end with the process."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        owner = self

        class Handler(_Handler):
            server_owner = owner

        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=_answer, args=(Handler, connection), daemon=True).start()

    def report(self, id: str, body: bytes) -> HTTPStatus:
        """Pass the body of a webhook on; return the status of the response."""
        try:
            found = json.loads(body)
        except ValueError:
            return HTTPStatus.BAD_REQUEST
        if not isinstance(found, dict):
            return HTTPStatus.BAD_REQUEST
        self._on_webhook(id, found)
        return HTTPStatus.OK

    def store(self, name: str, data: Iterator[bytes]) -> str:
        """Store an output file, and return its URL."""
        number = str(next(self._numbers))
        safe = name.encode(errors="replace").decode().replace("/", "_").replace("\0", "_")
        path = self._folder / number / ("output" if safe in {"", ".", ".."} else safe)
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            for chunk in data:
                file.write(chunk)
        url = f"{self._url}/uploaded/{number}/{quote(path.name)}"
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

    def input_file(self, token: str) -> Path | None:
        """Return the input file with this token; None if there is none."""
        found = self._inputs.get(token)
        return None if found is None else found[1]


def _answer(handler: type[_Handler], connection: socket.socket) -> None:
    try:
        handler(connection, ("127.0.0.1", 0), None)  # type: ignore[arg-type]  # the handler uses no server
    except OSError:  # the other end has closed the connection
        pass
    finally:
        connection.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_owner: SandboxServer

    def do_POST(self) -> None:
        kind, rest = self._path()
        body = b"".join(self._body())
        status = self.server_owner.report(rest, body) if kind == "webhooks" else HTTPStatus.NOT_FOUND
        self._empty(status)

    def do_PUT(self) -> None:
        kind, name = self._path()
        if kind != "upload":
            self.close_connection = True
            self._empty(HTTPStatus.NOT_FOUND)
            return
        try:
            url = self.server_owner.store(unquote(name), self._body())
        except OSError as error:
            self.close_connection = True
            self.log_error("%s", error)
            self._empty(HTTPStatus.INSUFFICIENT_STORAGE)
            return
        # Versions of Cog before 0.9 know a file only by the URL that the last response came from.
        self._empty(HTTPStatus.SEE_OTHER, Location=url)

    def do_GET(self) -> None:
        kind, rest = self._path()
        if kind == "uploaded":
            self._empty(HTTPStatus.OK)
            return
        file = self.server_owner.input_file(rest.split("/")[0]) if kind == "inputs" else None
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
        kind, _, rest = urlsplit(self.path).path.lstrip("/").partition("/")
        return kind, rest

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

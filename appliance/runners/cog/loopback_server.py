"""An HTTP server on the loopback interface, for the runtime of a Cog project."""

from __future__ import annotations

import asyncio
import http.server
import itertools
import json
import mimetypes
import secrets
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

_PIECE: Final = 1024 * 1024  # bytes that are read at once


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: ClassVar[LoopbackServer]

    def do_GET(self) -> None:
        file = self.owner.file(self.path.split("/")[1])
        if file is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        self.send_header("Content-Type", kind)
        self.end_headers()
        with file.open("rb") as opened:
            shutil.copyfileobj(opened, self.wfile)

    def do_PUT(self) -> None:
        """Store an output file. A redirection gives files with the same name different URLs."""
        token, *place = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).split("/")[1:]
        folder = self.owner.folder
        if folder is None or token != self.owner.uploads or ".." in place or len(place) not in {1, 2}:
            self.send_error(404)
        elif len(place) == 1:
            for _ in self._body():
                pass
            number = next(self.owner.numbers)
            location = f"{self.owner.upload_url}/{number}/{urllib.parse.quote(place[0])}"
            self._reply(307, {"Location": location})
        else:
            stored = folder.joinpath(*place)
            stored.parent.mkdir(exist_ok=True)
            with stored.open("wb") as file:
                for piece in self._body():
                    file.write(piece)
            self._reply(200, {})

    def do_POST(self) -> None:
        if self.path != f"/{self.owner.webhooks}":
            self.send_error(404)
            return
        self.owner.receive(json.loads(b"".join(self._body())))
        self._reply(200, {})

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0 and (piece := self.rfile.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece

    def _reply(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class LoopbackServer:
    """Serves input files, and receives output files and webhooks, at URLs that cannot be guessed."""

    def __init__(self) -> None:
        self._paths: dict[str, tuple[str, Path]] = {}  # token -> (prediction, file)
        self.uploads = secrets.token_urlsafe(24)
        self.numbers = itertools.count()  # of the output files
        self.folder: Path | None = None
        self.webhooks = secrets.token_urlsafe(24)
        self._server: http.server.ThreadingHTTPServer
        self._on_webhook: Callable[[Any], object] = lambda _body: None
        self._loop: asyncio.AbstractEventLoop

    def start(self, folder: Path | None = None, on_webhook: Callable[[Any], object] | None = None) -> None:
        """Listen. Output files go to ``folder``; ``on_webhook`` is called on the running event loop."""
        self.folder = folder
        self._loop = asyncio.get_running_loop()
        self._on_webhook = on_webhook or self._on_webhook
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def file(self, token: str) -> Path | None:
        """Return the input file with this token in its URL."""
        return self._paths[token][1] if token in self._paths else None

    def receive(self, webhook: Any) -> None:
        self._loop.call_soon_threadsafe(self._on_webhook, webhook)

    @property
    def _address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def upload_url(self) -> str:
        """URL below which output files are stored. ``number/name`` below it is the path in the folder."""
        return f"{self._address}/{self.uploads}"

    @property
    def webhook_url(self) -> str:
        return f"{self._address}/{self.webhooks}"

    def url(self, prediction: str, path: str) -> str:
        """Serve a file for a prediction; return its URL, which ends in the name of the file."""
        token = secrets.token_urlsafe(24)
        self._paths[token] = prediction, Path(path)
        return f"{self._address}/{token}/{Path(path).name}"

    def forget(self, prediction: str) -> None:
        """Stop serving the files of a prediction."""
        for token in [token for token, (owner, _) in self._paths.items() if owner == prediction]:
            del self._paths[token]

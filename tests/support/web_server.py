"""A web server on loopback whose answers the test sets."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """The response to a GET of one path."""

    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})
    status: int = 200


class Origin:
    """The responses by path, and the headers of all received requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, Answer] = {}
        self.posted: dict[str, Answer] = {}  # to a POST
        self.asked: list[dict[str, str]] = []


@contextmanager
def serving() -> Iterator[Origin]:
    """Run the server until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(origin.answers)

        def do_HEAD(self) -> None:
            self._answer(origin.answers)

        def do_POST(self) -> None:
            self._answer(origin.posted)

        def _answer(self, answers: Mapping[str, Answer]) -> None:
            origin.asked.append({key.lower(): value for key, value in self.headers.items()})
            answer = answers[self.path.partition("?")[0]]
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    origin = Origin(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

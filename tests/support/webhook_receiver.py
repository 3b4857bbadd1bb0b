"""A receiver of webhooks whose responses the test sets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Received(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def record(self) -> dict[str, Any]:
        """The prediction in the body."""
        found: dict[str, Any] = json.loads(self.body)
        return found


class Receiver:
    """The received requests, and the status of the next responses."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.received: list[Received] = []
        self.answer: Callable[[Received], int] = lambda _: 200

    def about(self, id: str, *, terminal: bool = True) -> list[Received]:
        """Return the requests about one prediction; by default only those of its end."""
        possible = [one for one in self.received if id.encode() in one.body]  # faster than to decode all
        found = [one for one in possible if one.record["id"] == id]
        return [one for one in found if not terminal or "completed_at" in one.record]


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Run a receiver until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if len(body) < int(self.headers["content-length"]):
                return  # the sender was killed in the middle
            one = Received(self.path, {key.lower(): value for key, value in self.headers.items()}, body)
            receiver.received.append(one)
            status = receiver.answer(one)
            self.send_response(status)
            if status in {301, 302, 307}:
                self.send_header("Location", f"{receiver.url}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A Hugging Face hub on loopback, with the routes that huggingface_hub calls."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 4096  # bytes; larger files are in LFS


class StubHub:
    """Repositories by name, with one commit each, and ways to disturb their downloads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.storage = url.replace(
            "127.0.0.1", "localhost"
        )  # another host, as the real hub has for large files
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.gated: set[str] = set()
        self.cut: list[int] = []  # the next LFS downloads break off after so many bytes
        self.gate = threading.Event()  # LFS downloads wait for it
        self.gate.set()
        self.damaged = False  # LFS downloads have the right size and wrong content
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.authorizations: set[str | None] = set()  # headers of the requests for files and their metadata

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Set the files of a repository in a new commit, and return the commit."""
        content = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in files.items()})
        self.repositories[name] = files
        self.commits[name] = hashlib.sha1(content.encode()).hexdigest()
        return self.commits[name]


@contextmanager
def serving_hub() -> Iterator[StubHub]:
    """Run a hub until the end of the block."""

    class Handler(_Handler):
        def setup(self) -> None:
            self.hub = hub
            super().setup()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = StubHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StubHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.hub.authorizations.add(self.headers.get("Authorization"))
        if found := re.fullmatch(r"/lfs/([^/]+/[^/]+)/(.+)", path):
            self._lfs(self.hub.repositories[found[1]][found[2]])
            return
        if path == "/api/models":
            self._search()
            return
        patterns = (
            r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?",
            r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)",
        )
        match = next((match for each in patterns if (match := re.fullmatch(each, path))), None)
        name = match[1] if match else ""
        if match is None or name not in self.hub.repositories:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif name in self.hub.gated and (match[2] == "resolve"):
            self._refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        elif match[3] not in {None, "main", self.hub.commits[name]}:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match[3]}")
        elif match[2] == "resolve":
            self._resolve(name, match[4])
        else:
            self._describe(name, tree=match[2] == "tree")

    do_HEAD = do_GET  # noqa: N815 - the base class's names

    def _search(self) -> None:
        (word,) = parse_qs(urlsplit(self.path).query)["search"]
        found = [
            {"id": name, "tags": ["license:apache-2.0"], "downloads": 7, "pipeline_tag": "text-generation"}
            for name in self.hub.repositories
            if word.lower() in name.lower()
        ]
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _describe(self, name: str, *, tree: bool) -> None:
        files = [_described(path, data) for path, data in self.hub.repositories[name].items()]
        if tree:
            self._send(200, json.dumps(files).encode())
            return
        siblings = [
            {"rfilename": file["path"], "size": file["size"], "blobId": file["oid"]}
            | (
                {"lfs": {"sha256": file["lfs"]["oid"], "size": file["size"], "pointerSize": 134}}
                if "lfs" in file
                else {}
            )
            for file in files
        ]
        about = {"id": name, "sha": self.hub.commits[name], "siblings": siblings, "private": False}
        self._send(200, json.dumps({**about, "tags": [], "cardData": {"license": "apache-2.0"}}).encode())

    def _resolve(self, name: str, path: str) -> None:
        data = self.hub.repositories[name].get(path)
        if data is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        described = _described(path, data)
        headers = {"X-Repo-Commit": self.hub.commits[name], "ETag": f'"{described["oid"]}"'}
        if "lfs" not in described:
            self._send(200, data, headers)
            return
        linked = {"X-Linked-Etag": f'"{described["lfs"]["oid"]}"', "X-Linked-Size": str(len(data))}
        self._send(302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/lfs/{name}/{path}"})

    def _lfs(self, data: bytes) -> None:
        etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.hub.gate.wait()
        if self.hub.damaged:
            data = bytes(len(data))
        start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].partition("-")[0])
        if start:
            etag["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if self.command == "GET" and self.hub.cut:
            self._send(
                206 if start else 200, body[: self.hub.cut.pop(0)], {**etag, "Content-Length": str(len(body))}
            )
            self.close_connection = True
        else:
            self._send(206 if start else 200, body, etag)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(
            status,
            json.dumps({"error": message}).encode(),
            {"X-Error-Code": code, "X-Error-Message": message},
        )

    def _send(self, status: int, body: bytes, headers: dict[str, Any] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _described(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    file: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if len(data) > LARGE:
        file["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return file

"""The HTTP server for the server of a Cog project: input files, output files and webhooks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from appliance.runners.cog.loopback_server import LoopbackServer


class Receiver:
    """A server, and what it has received."""

    def __init__(self, folder: Path, listener: socket.socket | None = None) -> None:
        self.webhooks: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.folder = folder
        self.server = LoopbackServer()
        self.server.start(folder, self.webhooks.put_nowait, listener)

    async def upload(self, name: str, content: bytes | Iterator[bytes]) -> Path:
        """Upload a file as Cog does: the URL of the last response identifies the file."""
        response = await ask("PUT", f"{self.server.upload_url}{name}", content=content)
        assert response.status_code == 200
        stored = self.server.output_file(str(response.url))
        assert stored is not None
        return stored


async def ask(method: str, url: str, **more: Any) -> httpx.Response:
    return await asyncio.to_thread(httpx.request, method, url, follow_redirects=True, trust_env=False, **more)


@pytest.fixture(params=[False, True], ids=["own socket", "given socket"])
async def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Receiver:
    listener = socket.create_server(("127.0.0.1", 0)) if request.param else None
    return Receiver(tmp_path / "files", listener)


async def test_files_of_the_same_name_are_kept_apart(receiver: Receiver) -> None:
    stored = [await receiver.upload("out.png", content) for content in (b"first", b"second", b"")]
    assert [path.name for path in stored] == ["out.png"] * 3
    assert [path.read_bytes() for path in stored] == [b"first", b"second", b""]
    assert (await receiver.upload("with%20space%3F.txt", b"x")).name == "with space?.txt"


async def test_a_chunked_upload_is_put_together(receiver: Receiver) -> None:
    assert (await receiver.upload("x", iter([b"first ", b"", b"second"]))).read_bytes() == b"first second"


@pytest.mark.parametrize("name", ["..%2F..%2Foutside", "..", "%2Fetc%2Fpasswd", "a%00b", "."])
async def test_no_name_leads_out_of_the_folder(receiver: Receiver, name: str) -> None:
    address = urlsplit(receiver.server.upload_url)

    def upload() -> str:
        connection = HTTPConnection(str(address.hostname), address.port)
        connection.request("PUT", f"{address.path}{name}", body=b"data")
        location = connection.getresponse().headers["Location"]
        connection.close()
        return str(location)

    stored = receiver.server.output_file(await asyncio.to_thread(upload))
    assert stored is not None
    assert stored.resolve().parent.parent == receiver.folder.resolve()
    assert stored.read_bytes() == b"data"


async def test_a_url_without_the_token_is_refused(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("content")
    server = receiver.server
    asked = (
        ("PUT", f"{server.upload_url}a.txt"),
        ("POST", server.webhook_url),
        ("GET", server.input_url("p", str(tmp_path / "in.txt"))),
    )
    for method, url in asked:
        body: dict[str, Any] = {"json": {}} if method == "POST" else {}
        assert (await ask(method, url.replace(server.token, "wrong"), **body)).status_code == 404
    assert not receiver.folder.exists()
    assert receiver.webhooks.empty()


async def test_a_data_url_becomes_a_file(receiver: Receiver) -> None:
    stored = receiver.server.store_data_url("data:text/plain;base64,aGk=")
    assert stored is not None
    assert (stored.name, stored.read_bytes()) == ("output.txt", b"hi")
    assert receiver.server.store_data_url("data:,hi") is None
    assert receiver.server.store_data_url("data:text/plain;base64,?") is None


async def test_input_files_are_served_until_their_prediction_has_ended(
    receiver: Receiver, tmp_path: Path
) -> None:
    file = tmp_path / "a name.txt"
    file.write_text("content")
    url = receiver.server.input_url("p", str(file))
    assert url.endswith("/a%20name.txt")
    assert (await ask("GET", url)).text == "content"
    receiver.server.forget("p")
    assert (await ask("GET", url)).status_code == 404


async def test_webhooks_are_passed_on_in_their_order_if_they_are_objects(receiver: Receiver) -> None:
    url = receiver.server.webhook_url
    for number in range(3):
        assert (await ask("POST", url, json={"number": number})).status_code == 200
    assert [(await ask("POST", url, content=body)).status_code for body in ("[1]", "{")] == [400, 400]
    assert [await receiver.webhooks.get() for _ in range(3)] == [{"number": number} for number in range(3)]
    assert receiver.webhooks.empty()

"""The HTTP server for the runtime of a Cog project: input files, output files and webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.runners.cog.loopback_server import LoopbackServer


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, follow_redirects=False) as client:
        yield client


def pieces() -> Iterator[bytes]:
    """Return a body without a length, which is sent in chunks."""
    yield b"two "
    yield b"pieces"


async def test_output_files_of_the_same_name_have_urls_of_their_own(
    tmp_path: Path, client: httpx.Client
) -> None:
    server = LoopbackServer()
    server.start(tmp_path)

    def upload(name: str, body: Any) -> str:
        """Upload as Cog does: follow the redirection with the same body."""
        asked = client.put(f"{server.upload_url}/{name}", content=body())
        assert asked.status_code == httpx.codes.TEMPORARY_REDIRECT
        stored = client.put(asked.headers["location"], content=body())
        assert stored.status_code == httpx.codes.OK
        return str(stored.url)

    urls = [
        await asyncio.to_thread(upload, "a.txt", lambda: b"one"),
        await asyncio.to_thread(upload, "a.txt", pieces),
        await asyncio.to_thread(upload, "with%20space%3F.txt", lambda: b""),
    ]
    places = [httpx.URL(url).path.removeprefix(httpx.URL(server.upload_url).path + "/") for url in urls]
    assert places == ["0/a.txt", "1/a.txt", "2/with space?.txt"]
    assert [(tmp_path / place).read_bytes() for place in places] == [b"one", b"two pieces", b""]


async def test_a_url_without_the_token_or_outside_of_the_folder_is_refused(
    tmp_path: Path, client: httpx.Client
) -> None:
    server = LoopbackServer()
    server.start(tmp_path / "folder")
    address = server.upload_url.rpartition("/")[0]
    for url in (
        f"{address}/wrong/0/a.txt",
        f"{server.upload_url}/%2e%2e/a.txt",
        f"{server.upload_url}/..%2fa.txt",
        f"{server.upload_url}/0/1/a.txt",
    ):
        response = await asyncio.to_thread(client.put, url, content=b"x")
        assert response.status_code == httpx.codes.NOT_FOUND, url
    assert (await asyncio.to_thread(client.post, f"{address}/wrong", json={})).status_code == 404
    assert (await asyncio.to_thread(client.get, f"{address}/wrong/a.txt")).status_code == 404
    assert list(tmp_path.rglob("*")) == []


async def test_webhooks_arrive_in_their_order(client: httpx.Client) -> None:
    server = LoopbackServer()
    bodies: asyncio.Queue[Any] = asyncio.Queue()
    server.start(on_webhook=bodies.put_nowait)
    for number in range(3):
        await asyncio.to_thread(client.post, server.webhook_url, json={"number": number})
    assert [await bodies.get() for _ in range(3)] == [{"number": 0}, {"number": 1}, {"number": 2}]


async def test_an_input_file_is_served_until_its_prediction_has_ended(
    tmp_path: Path, client: httpx.Client
) -> None:
    (tmp_path / "in.txt").write_text("content")
    server = LoopbackServer()
    server.start()
    url = server.url("prediction", str(tmp_path / "in.txt"))
    assert (await asyncio.to_thread(client.get, url)).text == "content"
    server.forget("prediction")
    assert (await asyncio.to_thread(client.get, url)).status_code == 404

"""Answers that are compressed although nobody asked for it, or to become large in memory."""

from __future__ import annotations

import functools
import gzip
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.client import Client
from appliance.domain.errors import ApplianceError, WeightsError
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.ui.client import Api as UiApi
from appliance.weights import http_download, index
from tests.support.api_client import Api
from tests.support.engine_bench import Bench
from tests.support.web_server import Answer, Origin, serving

MIB = 1024 * 1024


@functools.cache
def bomb(layers: int) -> bytes:
    """A few kilobytes that are 64 MiB in ``layers`` times gzip."""
    packer = zlib.compressobj(9, wbits=31)
    data = b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()
    for _ in range(layers - 1):
        data = gzip.compress(data)
    return data


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving() as origin:
        yield origin


@pytest.fixture
async def reachable(api: Api, bench: Bench) -> Api:
    bench.inputs._fetch_guard.allow(("127.0.0.0/8",))
    return api


async def given(api: Api, url: str) -> dict[str, Any]:
    """The prediction that had the file at ``url`` as its input, once it is over."""
    reply = await api.post("/v1/models/test/files/predictions", json={"input": {"file": url}})
    assert reply.status_code == 201, reply.text
    return await api.ended(reply.json())


@pytest.mark.parametrize(
    ("encoding", "layers", "reason"),
    [
        ("gzip", 1, "it is over 1,000,000 bytes (files.max_input in models.yaml)"),
        ("gzip, gzip", 2, "its content encoding gzip, gzip is not supported"),
        ("br", 1, "its content encoding br is not supported"),
        ("deflate", 1, "its content encoding deflate is not supported"),
    ],
)
async def test_a_compressed_input_takes_no_more_memory_than_its_limit(
    reachable: Api, origin: Origin, encoding: str, layers: int, reason: str
) -> None:
    origin.answers["/bomb"] = Answer(bomb(layers), {"Content-Encoding": encoding})
    tracemalloc.start()
    try:
        record = await given(reachable, f"{origin.url}/bomb")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert record["status"] == "failed"
    assert reason in record["error"]
    assert origin.asked[0]["accept-encoding"] == "identity"
    assert peak < 32 * MIB


async def test_an_input_that_is_stored_compressed_is_decoded(reachable: Api, origin: Origin) -> None:
    text = "twice as long " * 1000
    body = gzip.compress(text[:100].encode()) + gzip.compress(text[100:].encode())
    origin.answers["/a.txt"] = Answer(body, {"Content-Encoding": "gzip"})
    record = await given(reachable, f"{origin.url}/a.txt")
    assert record["status"] == "succeeded", record["error"]
    assert (await reachable.get(record["output"][0])).text == text


@pytest.mark.parametrize(("damage", "reason"), [(-3, "is truncated"), (0, "is damaged")])
async def test_damaged_gzip_is_said(reachable: Api, origin: Origin, damage: int, reason: str) -> None:
    body = gzip.compress(b"x" * 1000)[:damage] if damage else b"no gzip at all"
    origin.answers["/a.txt"] = Answer(body, {"Content-Encoding": "gzip"})
    record = await given(reachable, f"{origin.url}/a.txt")
    assert record["status"] == "failed"
    assert reason in record["error"]


async def test_the_body_of_a_redirect_is_not_read(reachable: Api, origin: Origin) -> None:
    origin.answers["/moved"] = Answer(bomb(1), {"Location": "/a.txt", "Content-Encoding": "gzip"}, status=302)
    origin.answers["/a.txt"] = Answer(b"here")
    tracemalloc.start()
    try:
        record = await given(reachable, f"{origin.url}/moved")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (await reachable.get(record["output"][0])).text == "here"
    assert peak < 32 * MIB


async def test_a_receiver_of_webhooks_may_answer_as_it_likes(origin: Origin) -> None:
    origin.answers["/hook"] = Answer(bomb(2), {"Content-Encoding": "gzip, gzip"})
    egress = FetchGuard(("127.0.0.0/8",))
    async with egress.client(5.0) as client, client.stream("GET", f"{origin.url}/hook") as reply:
        assert reply.is_success


async def test_clients_of_the_api_refuse_what_is_encoded(origin: Origin, tmp_path: Path) -> None:
    for path in ("/v1/account", "/outputs/x/file.bin"):
        origin.answers[path] = Answer(bomb(2), {"Content-Encoding": "gzip, gzip"})
    client = Client(origin.url, "secret")
    with pytest.raises(ApplianceError, match="content encoding gzip, gzip"):
        client.get("/v1/account")
    for url in (origin.url, origin.url.replace("127.0.0.1", "localhost")):  # ours, and elsewhere
        with pytest.raises(ApplianceError, match="content encoding gzip, gzip"):
            client.save(f"{url}/outputs/x/file.bin", tmp_path)
    api = UiApi(origin.url)
    with pytest.raises(ApplianceError, match="The API does not answer"):
        await api.caller("secret", origin.url).get("/v1/account")
    await api.close()
    assert {headers["accept-encoding"] for headers in origin.asked} == {"identity"}


def test_weights_are_refused_when_they_are_encoded(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_settings", dict)  # pip's
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    origin.answers["/a.whl"] = Answer(bomb(2), {"Content-Encoding": "gzip, gzip"})
    with (
        index.client(origin.url) as client,
        pytest.raises(WeightsError, match=r"a\.whl cannot be fetched: .* content encoding gzip, gzip"),
    ):
        http_download.fetch(client, f"{origin.url}/a.whl", tmp_path / "a.whl", "0" * 64, lambda *_: None)

"""Ranges of stored files, with and without encryption, on the disk and in a bucket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.gateway.files.encrypted_file import FileCipher
from tests.support.api_client import Api
from tests.support.appliance_process import until
from tests.support.engine_bench import Bench
from tests.support.memory_bucket import MemoryBucket

CONTENT = bytes(range(100))


@pytest.fixture(params=["clear", "encrypted", "bucket", "encrypted bucket"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    if "encrypted" in request.param:
        bench.cipher = FileCipher(os.urandom(32))
    if "bucket" in request.param:
        bench.bucket = MemoryBucket()
    await bench.start()
    yield bench
    await bench.stop()
    await bench.cluster.close()


async def download(api: Api, bench: Bench, range: str) -> tuple[int, bytes]:
    file = (await api.post("/v1/files", files={"content": ("a.bin", CONTENT)})).json()
    if bench.bucket is not None:
        await until(lambda: not list((bench.folder / "files" / "uploads").iterdir()))
    reply = await api.get(f"/v1/files/{file['id']}/download", headers={"Range": range})
    return reply.status_code, reply.content


@pytest.mark.parametrize(
    ("range", "part"),
    [("bytes=10-19", CONTENT[10:20]), ("bytes=90-", CONTENT[90:]), ("bytes=-5", CONTENT[-5:])],
)
async def test_a_range_is_sent(api: Api, bench: Bench, range: str, part: bytes) -> None:
    assert await download(api, bench, range) == (206, part)


@pytest.mark.parametrize(
    "range", ["", "bytes", "bytes=", "bytes=x-1", "bytes=9-2", "items=1-2", f"bytes={'9' * 5000}-"]
)
async def test_a_range_that_is_not_valid_is_ignored(api: Api, bench: Bench, range: str) -> None:
    assert await download(api, bench, range) == (200, CONTENT)


@pytest.mark.parametrize("bench", ["clear", "encrypted"], indirect=True)
async def test_a_file_in_a_bucket_that_is_not_configured_any_more(api: Api, bench: Bench) -> None:
    file = (await api.post("/v1/files", files={"content": ("a.bin", CONTENT)})).json()
    path = f"uploads/{file['id']}"
    assert await bench.store.files.objects.begin(path, file["id"]) == "uploading"
    assert await bench.store.files.objects.complete(path)
    (bench.folder / "files" / path).unlink()
    reply = await api.get(f"/v1/files/{file['id']}/download")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "30")
    input = {"text": "x", "file": file["urls"]["get"]}
    made = await api.post("/v1/models/test/files/predictions", json={"input": input})
    assert "The storage with the content of the file" in (await api.ended(made.json()))["error"]

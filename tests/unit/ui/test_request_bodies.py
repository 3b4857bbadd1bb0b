"""Request bodies of visitors of a demo have limits: on sizes and total size."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from appliance.ui.client import Api as Reached
from appliance.ui.demo import Demo
from appliance.ui.request_bodies import BodyLimits
from tests.support.api_client import SECRET, Api
from tests.support.ui_client import BASE, built_page

UPLOAD = "/gradio_api/upload"
FORM = {"content-type": "multipart/form-data; boundary=xyz", "accept": "*/*"}
PART = b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n%s\r\n'


@pytest.fixture
def folder(uploads: Path) -> Path:
    shutil.rmtree(uploads, ignore_errors=True)
    return uploads


@pytest.fixture
async def visitor(api: Api, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    reached = Reached(BASE)
    reached._http = httpx.AsyncClient(transport=api._transport, base_url=BASE)
    demo = Demo(reached, SECRET, {"test/echo": built_page()})
    names = ("--max-input", "--max-upload", "the quota")
    demo._bodies._limits = BodyLimits(64 * 1024, 10**6, 2 * 10**6, *names)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(demo), base_url=BASE) as visitor:
        yield visitor
    await reached.close()


async def pick(visitor: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await visitor.post(UPLOAD, files={"files": ("a.txt", content)}, headers={"accept": "*/*"})


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


async def test_files_that_are_picked_have_a_size_and_a_quota(
    visitor: httpx.AsyncClient, folder: Path
) -> None:
    large = await pick(visitor, b"x" * 1_500_000)
    assert (large.status_code, "--max-upload" in large.text) == (413, True)
    assert (await pick(visitor, b"x" * 900_000)).status_code == 200
    assert (await pick(visitor, b"y" * 900_000)).status_code == 200
    full = await pick(visitor, b"z" * 900_000)
    assert full.status_code == 413
    assert "use 1,800,000 of the 2,000,000 bytes" in full.json()["detail"]
    assert size(folder) == 1_800_000


async def test_a_form_that_does_not_say_its_size_is_cut_off(visitor: httpx.AsyncClient) -> None:
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 100_000
            yield PART % (b"x" * 100_000)

    reply = await visitor.post(UPLOAD, content=pieces(), headers=FORM)
    assert (reply.status_code, "--max-upload" in reply.text) == (413, True)
    assert taken <= 1_500_000


async def test_uploads_under_way_count_towards_the_quota(visitor: httpx.AsyncClient) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> AsyncIterator[bytes]:
        begun.set()
        await go_on.wait()
        yield PART % b"x" + b"--xyz--\r\n"

    first = asyncio.create_task(visitor.post(UPLOAD, content=held(), headers=FORM))
    await begun.wait()
    full = await pick(visitor, b"x" * 900_000)
    go_on.set()
    assert (await first).status_code == 200
    assert full.status_code == 413
    assert (await pick(visitor, b"x" * 900_000)).status_code == 200


async def test_what_uploads_that_broke_off_have_left_is_removed(
    visitor: httpx.AsyncClient, folder: Path
) -> None:
    (folder / "digest").mkdir(parents=True)
    old, new, finished = folder / "tmpold", folder / "tmpnew", folder / "digest" / "a.txt"
    for file in (old, new, finished):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    os.utime(finished, (0, 0))
    assert (await pick(visitor, b"y")).status_code == 200
    assert [file.exists() for file in (old, new, finished)] == [False, True, True]


async def test_bodies_of_nothing_are_clear_refusals(visitor: httpx.AsyncClient) -> None:
    for path, kind, body, status in (
        ("/gradio_api/queue/join", "application/json", b'["\\ud800"]', 400),
        (UPLOAD, "multipart/form-data; boundary=x", b"abc", 400),
        (UPLOAD, "multipart/form-data; boundary=", b"abc", 400),
        (UPLOAD, "multipart/form-data", b"abc", 400),
        (UPLOAD, 'multipart/form-data; boundary=""', b"abc", 400),
        ("/gradio_api/process_recording", FORM["content-type"], PART % b"x", 404),
        ("/gradio_api/queue/join", FORM["content-type"], PART % b"x", 404),
        ("/gradio_api/queue/join", "application/json", b"[" + b" " * 70_000, 413),
    ):
        reply = await visitor.post(path, content=body, headers={"content-type": kind, "accept": "*/*"})
        assert reply.status_code == status, (path, kind, reply.text)
        assert reply.json()["detail"], (path, kind)

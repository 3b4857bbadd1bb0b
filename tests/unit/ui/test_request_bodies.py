"""Request bodies from browsers have the limits of the API: on scopes, sizes and total size."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from appliance.domain import token
from appliance.domain.token import Scope, Token
from appliance.ui.request_bodies import BodyLimits
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench
from tests.support.ui_client import Pages

UPLOAD = "/test/echo/gradio_api/upload"
FORM = {"content-type": "multipart/form-data; boundary=xyz", "accept": "*/*"}
PART = b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n%s\r\n'


@pytest.fixture
def folder(uploads: Path) -> Path:
    shutil.rmtree(uploads, ignore_errors=True)
    return uploads


@pytest.fixture
async def pages(api: Api, folder: Path, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    bodies = pages.server._bodies
    bodies._limits = BodyLimits(body=64 * 1024, upload=10**6, quota=2 * 10**6)
    yield pages
    await pages.server.close()


async def pick(browser: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await browser.post(UPLOAD, files={"files": ("a.txt", content)}, headers={"accept": "*/*"})


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


async def test_a_token_that_may_only_read_uploads_nothing(pages: Pages, bench: Bench, folder: Path) -> None:
    for scope in (Scope.READ, Scope.RUN):
        digest = token.digest(scope)
        await bench.store.add_token(
            Token(id=scope, name="x", owner="me", digest=digest, created_at=0, scope=scope)
        )
    async with pages.signed_in(Scope.READ) as browser:
        reply = await pick(browser, b"x" * 1000)
        assert reply.status_code == 403
        assert reply.json()["detail"] == 'This token has the scope "read"; this request needs "run".'
        assert size(folder) == 0
    async with pages.signed_in(Scope.RUN) as browser:
        reply = await pick(browser, b"x" * 1000)
        assert reply.status_code == 200, reply.text
        assert Path(reply.json()[0]).read_bytes() == b"x" * 1000


async def test_files_that_are_picked_have_a_size_and_a_quota(pages: Pages, folder: Path) -> None:
    async with pages.signed_in(SECRET) as browser:
        large = await pick(browser, b"x" * 1_500_000)
        assert (large.status_code, "files.max_upload" in large.text) == (413, True)
        assert (await pick(browser, b"x" * 900_000)).status_code == 200
        assert (await pick(browser, b"y" * 900_000)).status_code == 200
        full = await pick(browser, b"z" * 900_000)
        assert full.status_code == 413
        assert "use 1,800,000 of the 2,000,000 bytes" in full.json()["detail"]
    assert size(folder) == 1_800_000


async def test_a_form_that_does_not_say_its_size_is_cut_off(pages: Pages) -> None:
    taken = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 100_000
            yield PART % (b"x" * 100_000)

    async with pages.signed_in(SECRET) as browser:
        reply = await browser.post(UPLOAD, content=pieces(), headers=FORM)
    assert (reply.status_code, "files.max_upload" in reply.text) == (413, True)
    assert taken <= 1_500_000


async def test_uploads_under_way_count_towards_the_quota(pages: Pages) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> AsyncIterator[bytes]:
        begun.set()
        await go_on.wait()
        yield PART % b"x" + b"--xyz--\r\n"

    async with pages.signed_in(SECRET) as browser:
        first = asyncio.create_task(browser.post(UPLOAD, content=held(), headers=FORM))
        await begun.wait()
        full = await pick(browser, b"x" * 900_000)
        go_on.set()
        assert (await first).status_code == 200
        assert full.status_code == 413
        assert (await pick(browser, b"x" * 900_000)).status_code == 200


async def test_what_uploads_that_broke_off_have_left_is_removed(pages: Pages, folder: Path) -> None:
    (folder / "digest").mkdir(parents=True)
    old, new, finished = folder / "tmpold", folder / "tmpnew", folder / "digest" / "a.txt"
    for file in (old, new, finished):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    os.utime(finished, (0, 0))
    async with pages.signed_in(SECRET) as browser:
        assert (await pick(browser, b"y")).status_code == 200
    assert [file.exists() for file in (old, new, finished)] == [False, True, True]


async def test_paths_of_nothing_are_clear_refusals(pages: Pages) -> None:
    paths = (
        "/assets/..%2f..%2fx",
        "/static/..%2f",
        "/assets/%00",
        "/test/echo/%00",
        "/assets/nothing.js",
        *(f"/{start}{'a' * 9000}" for start in ("", "assets/", "built/", "built/static/", "test/")),
    )
    async with pages.browser() as stranger, pages.signed_in(SECRET) as browser:
        for client in (stranger, browser):
            for method in ("GET", "HEAD", "POST", "QUERY", "PROPFIND"):
                for path in paths:
                    reply = await client.request(method, path, headers={"accept": "*/*"})
                    assert 400 <= reply.status_code < 500, (method, path)
                    assert method == "HEAD" or reply.json()["detail"], (method, path)


async def test_bodies_of_nothing_are_clear_refusals(pages: Pages) -> None:
    plain = "application/x-www-form-urlencoded"
    for path, kind, body, status in (
        ("/signin", "multipart/form-data; boundary=", b"abc", 401),
        ("/signin", "multipart/form-data", b"abc", 401),
        ("/signin", plain, b"token=x&" * 20, 400),
        ("/signin", plain, b"token=\xff", 400),
        ("/signin", plain, b"token=" + b"x" * 70_000, 413),
        ("/test/echo/gradio_api/queue/join", "application/json", b'["\\ud800"]', 400),
        (UPLOAD, "multipart/form-data; boundary=x", b"abc", 400),
        (UPLOAD, "multipart/form-data; boundary=", b"abc", 400),
        (UPLOAD, "multipart/form-data", b"abc", 400),
        (UPLOAD, 'multipart/form-data; boundary=""', b"abc", 400),
        ("/test/echo/gradio_api/process_recording", FORM["content-type"], PART % b"x", 404),
        ("/test/echo/gradio_api/queue/join", FORM["content-type"], PART % b"x", 404),
        ("/test/echo/gradio_api/queue/join", "application/json", b"[" + b" " * 70_000, 413),
    ):
        async with pages.signed_in(SECRET) as browser:
            reply = await browser.post(path, content=body, headers={"content-type": kind, "accept": "*/*"})
        assert reply.status_code == status, (path, kind, reply.text)
        assert status == 401 or reply.json()["detail"], (path, kind)

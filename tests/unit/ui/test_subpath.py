"""The UI below a path of ``server.public_url``: the reverse proxy removes the path, the gateway names it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.support.api_client import SECRET, Api
from tests.support.ui_client import BASE, HTML, Pages

PREFIX = "/shared/ai"


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "index.html").write_text("<title>Manual</title>")
    pages = Pages(api, tmp_path, manual=manual)
    yield pages
    await pages.server.close()


@pytest.fixture
async def browser(pages: Pages) -> AsyncIterator[httpx.AsyncClient]:
    """A browser of a site that has the UI below ``PREFIX``, and nothing else."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"].startswith(f"{PREFIX}/"), scope["path"]
        path = scope["path"].removeprefix(PREFIX)
        headers = [*scope["headers"], (b"x-forwarded-prefix", PREFIX.encode())]
        inner = {**scope, "path": path, "raw_path": path.encode(), "headers": headers}
        await pages.server(inner, receive, send)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(proxy), base_url=BASE, headers=HTML, follow_redirects=True
    ) as client:
        yield client


async def test_redirects_and_the_sign_in_stay_below_the_path(browser: httpx.AsyncClient) -> None:
    form = await browser.get(f"{PREFIX}/test/echo?x=1")
    assert form.url.path == f"{PREFIX}/signin"
    assert form.url.params["next"] == f"{PREFIX}/test/echo?x=1"
    assert f'<base href="{PREFIX}/">' in form.text
    assert 'action="./signin"' in form.text
    signed_in = await browser.post(
        f"{PREFIX}/signin",
        data={"token": SECRET, "next": "https://evil.example"},
        headers={"Origin": BASE},
    )
    assert signed_in.url.path == f"{PREFIX}/explore"
    (cookie,) = browser.cookies.jar
    assert cookie.path == PREFIX  # other applications of the site do not get it
    signed_out = await browser.post(f"{PREFIX}/signout")
    assert signed_out.url.path == f"{PREFIX}/signin"
    assert not browser.cookies.jar


async def test_a_page_and_its_requests_stay_below_the_path(browser: httpx.AsyncClient) -> None:
    await browser.post(f"{PREFIX}/signin", data={"token": SECRET})
    page = await browser.get(f"{PREFIX}/test/echo")
    assert f'<base href="{PREFIX}/"' in page.text
    assert re.findall(r'(?:href|src|action)="/(?!shared/ai/)[^"]*', page.text) == []
    assets = re.findall(r'"\.(/_ui/static/[^"]+)"', page.text)
    assert assets
    for asset in assets:
        assert (await browser.get(PREFIX + asset)).status_code == 200
    assert (await browser.get(f"{PREFIX}/test/echo/state", headers={"Accept": "*/*"})).status_code == 200


async def test_the_manual_is_below_the_path(browser: httpx.AsyncClient) -> None:
    manual = await browser.get(f"{PREFIX}/manual")
    assert manual.url.path == f"{PREFIX}/manual/"
    assert "<title>Manual</title>" in manual.text


async def test_an_error_links_the_models_below_the_path(browser: httpx.AsyncClient) -> None:
    await browser.post(f"{PREFIX}/signin", data={"token": SECRET})
    missing = await browser.get(f"{PREFIX}/nothing")
    assert missing.status_code == 404
    assert f'<base href="{PREFIX}/">' in missing.text
    assert 'href="./"' in missing.text

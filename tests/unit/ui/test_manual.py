"""The manual at /manual/: who may read it, and which files are there."""

from __future__ import annotations

import base64
import hashlib
import logging
from pathlib import Path

import pytest

from appliance.ui.manual import Manual
from tests.support.api_client import SECRET, Api
from tests.support.ui_client import Pages

SCRIPT = "document.title = 'built'"
PAGE = f"<!DOCTYPE html><title>Contents</title><script>{SCRIPT}</script><a href='install/'>Install</a>"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A built site of two pages, beside a file that is not part of it."""
    folder = tmp_path / "manual"
    (folder / "install").mkdir(parents=True)
    (folder / "index.html").write_text(PAGE)
    (folder / "install" / "index.html").write_text("<!DOCTYPE html><title>Install</title>")
    (folder / "link.html").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.txt").write_text("a secret")
    return folder


async def test_everyone_may_read_it(api: Api, site: Path, tmp_path: Path) -> None:
    pages = Pages(api, tmp_path, site)
    async with pages.browser() as browser:
        moved = await browser.get("/manual")
        assert moved.headers["location"].endswith("/manual/")
        first = await browser.get("/manual/")
        assert (first.status_code, first.text) == (200, PAGE)
        assert "Install" in (await browser.get("/manual/install/")).text
        assert (await browser.post("/manual/")).status_code == 405
        assert (await browser.get("/manual/nothing/")).status_code == 404
    await pages.server.close()


async def test_its_pages_run_their_own_scripts_only(api: Api, site: Path, tmp_path: Path) -> None:
    pages = Pages(api, tmp_path, site)
    async with pages.browser() as browser:
        headers = (await browser.get("/manual/")).headers
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    await pages.server.close()


async def test_no_other_file_can_be_read(api: Api, site: Path, tmp_path: Path) -> None:
    pages = Pages(api, tmp_path, site)
    async with pages.browser() as browser:
        for path in (
            "../secret.txt",
            "%2e%2e/secret.txt",
            "..%2fsecret.txt",
            "install/..%5c..%5csecret.txt",
            "link.html",
        ):
            reply = await browser.get(f"/manual/{path}")
            assert "a secret" not in reply.text, path
            assert reply.status_code != 200, path
    await pages.server.close()


async def test_the_navigation_links_it_only_where_it_was_built(
    api: Api, site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = '<a href="./manual/">Manual</a>'
    with_manual = Pages(api, tmp_path, site)
    async with with_manual.signed_in(SECRET) as browser:
        assert link in (await browser.get("/explore")).text
    (tmp_path / "other").mkdir()
    without = Pages(api, tmp_path / "other")
    async with without.signed_in(SECRET) as browser:
        assert link not in (await browser.get("/explore")).text
        assert (await browser.get("/manual/")).status_code == 404
    for pages in (with_manual, without):
        await pages.server.close()
    with caplog.at_level(logging.WARNING):
        assert not Manual(tmp_path / "nothing").available
    assert "run scripts/install" in caplog.text

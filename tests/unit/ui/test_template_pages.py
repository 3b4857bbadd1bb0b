"""Pages without Gradio, their scripts and styles, and the calls of scripts to the API."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.ui import static_files
from tests.support.api_client import SECRET, Api
from tests.support.ui_client import Pages


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


async def test_a_page_and_its_parts_have_the_filters_of_the_address(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/predictions?model=test/echo&status=failed")
        assert page.status_code == 200
        assert '<option value="failed" selected>' in page.text
        assert 'href="./predictions?model=test/echo&amp;status=failed#main"' in page.text
        assert re.search(r'<a href="./predictions" aria-current="page">', page.text)
        assert "unsafe-eval" not in page.headers["content-security-policy"]
        part = await browser.get("/predictions/list?status=failed&made=", headers={"HX-Request": "true"})
        assert "<html" not in part.text
        assert "No predictions" in part.text
        assert part.headers["hx-replace-url"] == "/predictions?status=failed"


async def test_the_filters_of_a_page_are_those_of_its_refresh_and_downloads(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = (await browser.get("/predictions?model=test/echo&status=failed")).text
        refresh = re.findall(r'hx-get="(\./predictions/list[^"]*)"', page)[-1]
        assert refresh == "./predictions/list?model=test%2Fecho&amp;status=failed"
        page = (await browser.get("/predictions?search=two+words")).text
        assert 'href="./predictions/download/csv?search=two+words"' in page
        assert 'id="predictions"' in page
        assert 'hx-get="./predictions/list?' not in page  # a search is not repeated by itself


async def test_a_part_is_sent_only_if_it_has_changed(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = (await browser.get("/predictions")).text
        (shown,) = re.findall(r'"X-Shown": "(\w+)"', page)
        path = "/predictions/list"
        same = await browser.get(path, headers={"HX-Request": "true", "X-Shown": shown})
        assert (same.status_code, same.text) == (204, "")
        assert same.headers["hx-replace-url"] == "/predictions"
        assert (await browser.get(path, headers={"HX-Request": "true"})).status_code == 200


async def test_errors_in_a_part_of_a_page_are_json_for_its_script(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        part = await browser.get("/predictions/list?cursor=wrong", headers={"HX-Request": "true"})
        assert (part.status_code, part.json()["status"]) == (404, 404)
        assert "cursor" in part.json()["detail"]
        page = await browser.get("/predictions?cursor=wrong")
        assert page.status_code == 404
        assert "<h1>Not found</h1>" in page.text
    async with pages.browser() as browser:
        part = await browser.get("/predictions/list", headers={"HX-Request": "true"})
        assert part.status_code == 401


async def test_scripts_and_styles_need_no_session_and_are_kept_for_ever(pages: Pages) -> None:
    async with pages.browser() as browser:
        script = await browser.get(f"{static_files.PATH}/common.js")
        assert script.status_code == 200
        assert "immutable" in script.headers["cache-control"]
        missing = await browser.get(f"{static_files.PATH}/%2e%2e/server.py")
        assert missing.status_code == 404
        old = await browser.get("/_ui/static/0123456789abcdef/common.js")
        assert (old.status_code, old.headers["location"][:7]) == (303, "/signin")


async def test_scripts_call_the_api_with_the_users_token(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        listed = await browser.get("/_ui/api/v1/models?sort_by=model_created_at")
        assert listed.status_code == 200
        assert "test/echo" in [f"{one['owner']}/{one['name']}" for one in listed.json()["results"]]
        refused = await browser.post("/_ui/api/v1/predictions", json={"version": "x"})
        assert (refused.status_code, refused.json()["status"]) == (422, 422)
        elsewhere = {"origin": "https://other.example.org"}
        forged = await browser.post("/_ui/api/v1/predictions", json={}, headers=elsewhere)
        assert forged.status_code == 403
        assert (await browser.get("/_ui/api/docs")).status_code == 404  # HTML would run as this site's
    async with pages.browser() as browser:
        assert (await browser.get("/_ui/api/v1/models", headers={"accept": "*/*"})).status_code == 401


def test_libraries_of_others_are_unchanged() -> None:
    folder = static_files.FOLDER / "vendor"
    table = (folder / "README.md").read_text()
    listed = dict(re.findall(r"^\| (\S+) \|.* (\w{64}) \|$", table, re.MULTILINE))
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert set(listed) == {file.name for file in folder.iterdir()} - {"README.md"}


def test_every_script_that_a_script_imports_exists() -> None:
    folder = Path(static_files.__file__).parent / "static"
    scripts = {file.name: file.read_text() for file in folder.glob("*.js")}
    pattern = r'(?:from|import|import\()\s*"\./([^"]+)"'
    missing = [
        f"{name}: {imported}"
        for name, text in scripts.items()
        for imported in re.findall(pattern, text)
        if not (folder / imported).is_file()
    ]
    assert "common.js" in re.findall(pattern, scripts["model.js"])
    assert missing == []

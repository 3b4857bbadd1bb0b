"""The pages on which models are added, changed and removed, and the config is edited."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.ui.client import Caller
from tests.support.api_client import SECRET, Api
from tests.support.stub_hub import StubHub
from tests.support.ui_client import Pages
from tests.unit.gateway.api.admin import test_additions
from tests.unit.gateway.api.admin.test_additions import api, file, hub, no_process

__all__ = ["api", "hub", "no_process"]
PART = {"HX-Request": "true"}


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


async def test_the_catalogue_and_the_hub_are_searched(pages: Pages, hub: StubHub) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/add?query=whisper-smal")
        assert page.status_code == 200
        assert 'href="./add?source=whisper-small&amp;query=whisper-smal"' in page.text
        assert '<span class="badge fits">fits</span>' in page.text
        part = await browser.get("/add/found?query=Model&on=hub", headers=PART)
        assert "<html" not in part.text
        assert "./add?source=hub%3AOrg%2FModel" in part.text.replace("%253A", "%3A").replace("%252F", "%2F")
        assert part.headers["hx-replace-url"] == "/add?query=Model&on=hub"


async def test_a_proposal_has_numbers_per_device_and_the_change(pages: Pages, hub: StubHub) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/add?source=hub:Org/Model")
        assert 'hx-get="./add/proposal?source=hub' in page.text
        part = await browser.get("/add/proposal?source=hub:Org/Model&name=me/mine", headers=PART)
        assert "Download 195.3 KiB and add it" in part.text
        assert '<span class="badge ready">fits</span>' in part.text
        assert '<span class="added">+- name: me/mine</span>' in part.text
        assert part.headers["hx-replace-url"] == "/add?source=hub%3AOrg%2FModel&name=me%2Fmine"
        wrong = await browser.get("/add/proposal?source=hub:Org/Model&kind=no", headers=PART)
        assert (wrong.status_code, 'role="alert"' in wrong.text) == (200, True)
        assert not [path for _, path, _ in hub.requests if path.startswith("/lfs/")]


@pytest.mark.parametrize("source", ["pypi:some==1/x", "git:https://example.org/a.git"])
async def test_a_source_that_must_be_downloaded_is_not_without_a_click(pages: Pages, source: str) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/add", params={"source": source})
        assert "Download and inspect" in page.text
        assert "/add/proposal" not in page.text
        page = await browser.get("/add", params={"source": source, "download": "yes"})
        assert "/add/proposal" in page.text


@pytest.mark.usefixtures("no_process")
async def test_a_model_is_added_and_its_page_shows_the_end(pages: Pages, api: Api, hub: StubHub) -> None:
    async with pages.signed_in(SECRET) as browser:
        form = {"source": "hub:Org/Model", "name": "me/mine"}
        started = await browser.post("/add/start", data=form, headers=PART)
        address = started.headers["hx-redirect"]
        id = address.partition("?")[0].rpartition("/")[2]
        assert (await test_additions.ended(api, {"id": id}))["state"] == "succeeded"
        page = await browser.get(address)
        assert "The model is added" in page.text
        assert "Added me/mine" in page.text
        assert 'href="./me/mine"' in page.text
        again = await browser.post("/add/start", data=form, headers=PART)
        assert (again.status_code, "has a model me/mine already" in again.text) == (200, True)

        settings = await browser.get("/models/me/mine/settings")
        assert "name: me/mine" in settings.text
        found = await browser.get("/models/me/mine/settings/update", headers=PART)
        assert "The model is at the newest revision" in found.text
        removed = await browser.post("/models/me/mine/settings/remove", data={"prune": "yes"}, headers=PART)
        assert removed.headers["hx-redirect"] == "/explore"
        assert "me/mine" not in file(api.services).read_text()
        gone = await browser.get("/models/me/mine/settings")
        assert "models.yaml has no model me/mine." in gone.text


async def test_the_text_of_the_config_cannot_become_html(pages: Pages, api: Api) -> None:
    path = file(api.services)
    path.write_text(path.read_text() + "# </textarea></script><script>window.evil=1</script>\n")
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/config")
        assert page.status_code == 200
        assert "&lt;script&gt;window.evil" in page.text
        entry = await browser.get("/models/test/echo/settings")
        for shown in (page, entry):
            assert "<script>window.evil" not in shown.text


@pytest.mark.parametrize(("changes", "steady"), [(1, True), (2, False)])
async def test_lines_of_a_model_and_those_around_them_are_of_one_version_of_the_file(
    pages: Pages, api: Api, monkeypatch: pytest.MonkeyPatch, changes: int, steady: bool
) -> None:
    path, get, left = file(api.services), Caller.get, [changes]

    async def changed_before(caller: Caller, url: str, **query: Any) -> Any:
        if url == "/admin/config/file" and left[0] > 0:
            left[0] -= 1
            path.write_text(f"# one more line\n{path.read_text()}")
        return await get(caller, url, **query)

    monkeypatch.setattr(Caller, "get", changed_before)
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/models/test/echo/settings")
    assert ("models.yaml is being changed" in page.text) is not steady
    if steady:
        (rest,) = re.findall(r'<script type="application/json" id="rest">(.*?)</script>', page.text)
        (text,) = re.findall(r'<textarea id="text"[^>]*>\n(.*?)</textarea>', page.text, re.DOTALL)
        around = json.loads(rest)
        assert around["before"] + html.unescape(text) + around["after"] == path.read_text()


async def test_only_administrators_open_the_pages(pages: Pages, api: Api) -> None:
    made = (await api.post("/admin/tokens", json={"name": "reader", "scope": "read"})).json()["token"]
    async with pages.signed_in(made) as browser:
        for path in ("/add", "/config", "/models/test/echo/settings"):
            assert (await browser.get(path)).status_code == 404

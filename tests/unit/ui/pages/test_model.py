"""The page of a model: its form, its tabs, example programs and the list of runs."""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.api_client import SECRET, Api
from tests.support.ui_client import Pages


@pytest.fixture
async def browser(api: Api, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    pages = Pages(api, tmp_path)
    async with pages.signed_in(SECRET) as browser:
        yield browser
    await pages.server.close()


async def made(api: Api, **input: object) -> str:
    created = (await api.post("/v1/predictions", json={"version": "test/echo", "input": input})).json()
    return str((await api.ended(created))["id"])


async def test_the_form_has_a_control_for_each_input(browser: httpx.AsyncClient) -> None:
    page = (await browser.get("/test/echo")).text
    data = json.loads(re.findall(r'id="model-data">(.*?)</script>', page, re.DOTALL)[0])
    assert data["version"] == "test/echo"
    for field in data["fields"]:
        assert f'id="input-{field["name"]}"' in page
        assert f'for="input-{field["name"]}"' in page
        assert f'id="input-{field["name"]}-error"' in page
    assert "more inputs" in page


async def test_the_input_of_a_prediction_in_the_address_fills_the_form(
    browser: httpx.AsyncClient, api: Api
) -> None:
    id = await made(api, text="as <before>", repeat=2)
    for name in ("run", "from"):
        page = (await browser.get(f"/test/echo?{name}={id}")).text
        assert "as &lt;before&gt;</textarea>" in page
        assert re.search(r'id="input-repeat"[^>]* value="2"', page)
    missing = await browser.get("/test/echo?run=nothing")
    assert missing.status_code == 200
    assert re.search(r'id="run-error" role="alert">[^<]+</p>', missing.text)


async def test_without_a_prediction_in_the_address_the_form_has_an_example(
    browser: httpx.AsyncClient, api: Api
) -> None:
    assert "Hello!</textarea>" in (await browser.get("/test/echo")).text, "the example of the kind"
    id = await made(api, text="the model's own", repeat=3)
    assert (await api.put(f"/admin/models/test/echo/examples/{id}")).is_success
    page = (await browser.get("/test/echo")).text
    assert "the model&#39;s own</textarea>" in page
    assert re.search(r'id="input-repeat"[^>]* value="3"', page)
    other = await made(api)
    assert "Hello!</textarea>" not in (await browser.get(f"/test/echo?run={other}")).text


async def test_a_tab_in_the_address_is_open(browser: httpx.AsyncClient) -> None:
    page = (await browser.get("/test/echo?tab=versions")).text
    assert re.search(r'id="tab-versions"[^>]*aria-selected="true"', page)
    assert "/test/echo/versions/" in page
    assert (await browser.get("/test/echo?tab=nothing")).status_code == 200
    assert (await browser.get("/test/echo/panels/nothing")).status_code == 404


async def test_example_programs_have_the_inputs_and_names_of_uploads(browser: httpx.AsyncClient) -> None:
    url = "http://models.example.org:8000/v1/files/abc"
    body = {"input": {"text": "say <this>", "file": url}, "files": {url: "../it's.png"}}
    reply = await browser.post("/test/echo/code", json=body)
    text = html.unescape(reply.text)
    assert '"text": "say <this>"' in text
    assert 'open("it\'s.png", "rb")' in text
    assert "<this>" not in reply.text
    for wrong in (b"", b"[]", b'{"input": 1, "files": {}}'):
        assert (await browser.post("/test/echo/code", content=wrong)).status_code == 400


async def test_the_last_runs_of_this_account_are_listed(browser: httpx.AsyncClient, api: Api) -> None:
    assert "Your last runs" not in (await browser.get("/test/echo/runs")).text
    id = await made(api, text='a "quoted" text')
    listed = html.unescape((await browser.get("/test/echo/runs")).text)
    assert id[:8] in listed
    assert 'data-again="{"text": "a \\"quoted\\" text"}"' in listed
    output = await browser.get(f"/p/{id}/output")
    assert "quoted" in output.text

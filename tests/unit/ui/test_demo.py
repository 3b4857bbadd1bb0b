"""The page of `appliance demo`: what others can do with it, and what they cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from appliance.domain.errors import NotFound
from appliance.ui.client import Api as Reached
from appliance.ui.demo import Demo
from tests.support.api_client import SECRET, Api
from tests.support.ui_client import built_page

BASE = "http://models.example.org:8000"


@pytest.fixture
async def reached(api: Api) -> AsyncIterator[Reached]:
    reached = Reached(BASE)
    reached._http = httpx.AsyncClient(transport=api._transport, base_url=BASE)
    yield reached
    await reached.close()


@pytest.fixture
async def visitor(reached: Reached) -> AsyncIterator[httpx.AsyncClient]:
    async with browser_of(Demo(reached, SECRET, built_page())) as visitor:
        yield visitor


def browser_of(demo: Demo) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(demo), base_url="http://demo.example.org")


async def test_it_may_stand_in_a_frame_and_shows_no_token(reached: Reached) -> None:
    demo = await Demo.create(reached, SECRET, "test/files")
    async with browser_of(demo) as visitor:
        page = await visitor.get("/")
        assert page.status_code == 200
        assert "test/files" in page.text
        assert "frame-ancestors *" in page.headers["content-security-policy"]
        assert "Sign out" not in page.text
        assert SECRET not in page.text
        for path in ("/explore", "/v1/account", "/admin/status", "/signin"):
            assert (await visitor.get(path)).status_code == 404, path
    await demo.close()


async def test_other_sites_cannot_run_it(visitor: httpx.AsyncClient) -> None:
    reply = await visitor.post("/gradio_api/queue/join", headers={"Origin": "https://evil.example"})
    assert reply.status_code == 403


async def test_files_that_were_made_are_passed_on(visitor: httpx.AsyncClient, api: Api) -> None:
    created = (
        await api.post("/v1/predictions", json={"version": "test/files", "input": {"text": "made"}})
    ).json()
    made = (await api.ended(created))["output"]
    address = (made[0] if isinstance(made, list) else made).removeprefix(BASE)
    file = await visitor.get(address)
    assert (file.status_code, file.text) == (200, "made")
    assert (
        file.headers["content-security-policy"] == (await api.get(address)).headers["content-security-policy"]
    )
    part = await visitor.get(address, headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.text) == (206, "ad")
    assert (await visitor.get("/outputs/none/x")).status_code == 404


async def test_there_must_be_such_a_model(reached: Reached) -> None:
    with pytest.raises(NotFound):
        await Demo.create(reached, SECRET, "no/model")

"""The page of `appliance demo`: what others can do with it, and what they cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator

import gradio as gr
import httpx
import pytest

from appliance.domain.errors import NotFound, Throttled
from appliance.protocols.response_types import PredictionResponse
from appliance.runners.echo.runner import EchoRunner
from appliance.ui.client import Api as Reached
from appliance.ui.demo import Demo, DemoLimits, build
from appliance.ui.pages.model import ModelPageData
from appliance.ui.visitors import Visitors
from tests.support.api_client import SECRET, Api
from tests.support.response_examples import completed
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
    async with browser_of(Demo(reached, SECRET, {"test/echo": built_page()})) as visitor:
        yield visitor


def browser_of(demo: Demo) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(demo), base_url="http://demo.example.org")


async def test_it_may_stand_in_a_frame_and_shows_no_token(reached: Reached) -> None:
    demo = await Demo.create(reached, SECRET, ["test/files"])
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
        await Demo.create(reached, SECRET, ["test/echo", "no/model"])


async def test_several_models_have_a_page_each_with_links_to_the_others(reached: Reached) -> None:
    demo = await Demo.create(reached, SECRET, ["test/files", "test/echo", "test/files"])
    async with browser_of(demo) as visitor:
        first = await visitor.get("/")
        assert (first.status_code, first.headers["location"]) == (303, "/test/files")
        page = await visitor.get("/test/echo")
        assert '<a href="./test/files">test/files</a>' in page.text
        assert '<a href="./test/echo" aria-current="page">' in page.text
        assert page.text.count("</a>") == 2
        assert "frame-ancestors *" in page.headers["content-security-policy"]
        assert (await visitor.get("/test/echo/gradio_api/startup-events")).status_code == 200
        for path in ("/test/stream", "/test/echoes", "/gradio_api/startup-events", "/test"):
            assert (await visitor.get(path)).status_code == 404, path
    await demo.close()


async def test_a_demo_shows_the_description_and_the_example_of_the_model() -> None:
    interface = EchoRunner.interface({})
    schemas = {"Input": interface.input, "Output": interface.output, **interface.components}
    data = ModelPageData("test/echo", "Says <b>it</b> again.", (), {"components": {"schemas": schemas}}, {})
    example = completed(PredictionResponse, {"input": {"text": "for <example>"}, "output": "an <output>"})
    shown = "".join(
        str(part.value) for part in build(data, example).blocks.values() if isinstance(part, gr.HTML)
    )
    for text in ("test/</span>echo", "Says &lt;b&gt;it", "for &lt;example&gt;", "an &lt;output&gt;"):
        assert text in shown
    assert "Example" not in "".join(
        str(part.value) for part in build(data, None).blocks.values() if isinstance(part, gr.HTML)
    )


async def test_visitors_cannot_send_more_than_the_limits(reached: Reached) -> None:
    limits = DemoLimits(max_upload=1000, max_input=100)
    async with browser_of(Demo(reached, SECRET, {"test/echo": built_page()}, limits)) as visitor:
        refused = await visitor.post("/gradio_api/queue/join", content=b"x" * 101)
        assert refused.status_code == 413
        assert "100 bytes (--max-input of the demo)" in refused.json()["detail"]
        file = {"files": ("a", b"x" * 300_000)}
        refused = await visitor.post("/gradio_api/upload", files=file)
        assert refused.status_code == 413
        assert "(--max-upload of the demo)" in refused.json()["detail"]


def test_a_visitor_has_a_number_of_runs_in_an_hour() -> None:
    now = 0.0
    visitors = Visitors(2, clock=lambda: now)
    for host in ("192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"):
        visitors.count(host)
    for host in ("192.0.2.1", "2001:db8::3"):  # addresses of one /64 network may be one visitor
        with pytest.raises(Throttled, match=r"2 times in an hour: try again in 60 min"):
            visitors.count(host)
    visitors.count("2001:db8:0:1::1")
    now = 3600.0
    visitors.count("192.0.2.1")
    unlimited = Visitors(None)
    for _ in range(5):
        unlimited.count("192.0.2.1")


async def test_runs_are_counted_before_they_are_created_and_nothing_else_is(reached: Reached) -> None:
    counted: list[str] = []
    caller = reached.caller(SECRET, BASE, lambda: counted.append("run"))
    created = await caller.post("/v1/predictions", {"version": "test/echo", "input": {}})
    await caller.get(f"/v1/predictions/{created['id']}")
    await caller.post(f"/v1/predictions/{created['id']}/cancel")
    assert counted == ["run"]

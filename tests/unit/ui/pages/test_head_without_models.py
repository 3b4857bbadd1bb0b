"""The pages of a head that runs no models, before a node has joined."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench
from tests.support.stub_hub import StubHub
from tests.support.ui_client import Pages
from tests.unit.gateway.api.admin.test_additions import api_of, hub, no_process

__all__ = ["hub", "no_process"]
PART = {"HX-Request": "true"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    bench = Bench(tmp_path / "home")
    bench.node, bench.runs_models = "head", False
    async with api_of(bench) as client:
        yield client


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


async def test_the_machine_page_says_that_nodes_run_the_models(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = (await browser.get("/machine")).text
    assert "This machine runs no models: the nodes of its cluster do." in page
    assert page.count("No node is ready, so predictions wait until one joins.") == 1
    assert "does not fit" not in page


async def test_a_model_can_be_added_without_knowing_whether_it_fits(pages: Pages, hub: StubHub) -> None:
    async with pages.signed_in(SECRET) as browser:
        found = (await browser.get("/add?query=whisper-smal")).text
        assert '<span class="badge not-known">not known</span>' in found
        part = (await browser.get("/add/proposal?source=hub:Org/Model", headers=PART)).text
    assert "No node has joined, so it is not known whether the model fits." in part
    assert "It needs about" in part
    assert "Add it although it does not fit" not in part

"""The load test on the page of a model's settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api_client import SECRET, Api
from tests.support.ui_client import Pages
from tests.unit.gateway.api.admin.test_additions import api, hub

__all__ = ["api", "hub"]

PATH = "/models/test/echo/settings/load-test"
PART = {"HX-Request": "true"}


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


async def test_a_load_test_shows_its_figures(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/models/test/echo/settings")
        assert "Load test" in page.text
        form = {"clients": "2", "seconds": "1", "input": '{"text": "hello"}'}
        done = await browser.post(PATH, data=form, headers=PART)
    assert done.status_code == 200
    for shown in ("Requests per second", "0.0 %", "p99", "Duration"):
        assert shown in done.text
    assert "Time to first token" not in done.text  # the model's output is not a stream


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"clients": "33"}, "clients must be a whole number from 1 to 32."),
        ({"seconds": "0"}, "seconds must be a whole number from 1 to 60."),
        ({"input": "{"}, "The input is not valid JSON"),
        ({"input": "[1]"}, "The input must be a JSON object"),
        ({"input": '{"repeat": 0}'}, "input.repeat"),
    ],
)
async def test_a_wrong_field_is_named(pages: Pages, changes: dict[str, str], problem: str) -> None:
    form = {"clients": "1", "seconds": "1", "input": "{}"} | changes
    async with pages.signed_in(SECRET) as browser:
        refused = await browser.post(PATH, data=form, headers=PART)
    assert problem in refused.text


async def test_only_administrators_run_load_tests(pages: Pages, api: Api) -> None:
    made = (await api.post("/admin/tokens", json={"name": "runner", "scope": "run"})).json()["token"]
    async with pages.signed_in(made) as browser:
        refused = await browser.post(PATH, data={"clients": "1", "seconds": "1"}, headers=PART)
    assert refused.status_code == 404

"""The page that compares models: which models it offers, and what its script learns of them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.protocols.response_types import ModelResponse
from appliance.ui.pages import compare
from tests.support.api_client import SECRET, Api
from tests.support.response_examples import completed
from tests.support.ui_client import Pages

TEXT = {"type": "string"}
STREAM = {"type": "array", "items": TEXT, "x-cog-array-type": "iterator"}
IMAGES = {"type": "array", "items": {"type": "string", "format": "uri"}}


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


def model(output: dict[str, Any], required: tuple[str, ...] = (), **inputs: Any) -> ModelResponse:
    schemas = {"Input": {"properties": inputs, "required": list(required)}, "Output": output}
    version = {"id": "1", "openapi_schema": {"components": {"schemas": schemas}}}
    return completed(ModelResponse, {"owner": "test", "name": "one", "latest_version": version})


def test_the_prompt_is_the_input_named_so_or_the_first_text_that_is_required() -> None:
    assert compare.comparable(model(STREAM, system_prompt=TEXT, text=TEXT, prompt=TEXT)) == {
        "name": "test/one",
        "prompt": "prompt",
        "output": "text",
        "streams": True,
    }
    found = compare.comparable(model(IMAGES, ("wish",), mood=TEXT, wish=TEXT))
    assert found is not None
    assert (found["prompt"], found["output"], found["streams"]) == ("wish", "files", False)


@pytest.mark.parametrize(
    "inputs",
    [{}, {"image": {"type": "string", "format": "uri"}}, {"mood": TEXT}, {"prompt": {"enum": ["a"]}}],
)
def test_a_model_without_a_text_to_ask_is_not_offered(inputs: dict[str, Any]) -> None:
    assert compare.comparable(model(STREAM, **inputs)) is None
    assert compare.comparable(completed(ModelResponse, {"latest_version": None})) is None


async def test_the_page_names_the_models_and_hides_running_from_readers(pages: Pages, api: Api) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/compare?prompt=<script>")
        assert page.status_code == 200
        data = json.loads(re.findall(r'id="data">(.*?)</script>', page.text)[0])
        assert data["currency"] is None
        assert "test/echo" in [one["name"] for one in data["models"]]
        assert '<button id="run" class="primary">' in page.text
        assert "prompt=<script>" not in page.text
    reader = (await api.post("/admin/tokens", json={"name": "reader", "scope": "read"})).json()["token"]
    async with pages.signed_in(reader) as browser:
        page = await browser.get("/compare")
        assert '<button id="run" class="primary" disabled' in page.text
        assert "Your token cannot run models" in page.text

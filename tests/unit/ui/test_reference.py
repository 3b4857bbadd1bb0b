"""The operations of the API as the page about the API lists them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.gateway.api import openapi
from appliance.ui import reference
from appliance.ui.reference import DocumentedOperation
from tests.support.api_client import SECRET, Api
from tests.support.ui_client import Pages

BASE = "https://models.example.org/ai"


@pytest.fixture(scope="module")
def operations() -> dict[str, DocumentedOperation]:
    groups = reference.groups(openapi.document("/ai"), BASE)
    return {each.id: each for _name, listed in groups for each in listed}


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


def test_every_operation_is_listed(operations: dict[str, DocumentedOperation]) -> None:
    document = openapi.document()
    described = {each["operationId"] for path in document["paths"].values() for each in path.values()}
    assert set(operations) == described


def test_paths_are_whole(operations: dict[str, DocumentedOperation]) -> None:
    assert operations["predictions.create"].path == "/v1/predictions"
    assert operations["openai.chat.completions.create"].path == "/openai/v1/chat/completions"
    assert operations["admin.status"].path == "/admin/status"


def test_an_operation_has_its_parameters_and_the_fields_of_its_body(
    operations: dict[str, DocumentedOperation],
) -> None:
    fields = {each.name: each for each in operations["predictions.create"].fields}
    assert fields["Prefer"].place == "header"
    assert fields["version"].required
    assert fields["input"].type == "object"
    assert not fields["webhook"].required
    assert fields["webhook"].type == "string (uri)"
    assert "stream" not in fields, "it is deprecated"
    path = {each.name: each for each in operations["models.get"].fields}
    assert path["owner"].place == "path"
    assert path["owner"].required


def test_the_example_calls_this_appliance(operations: dict[str, DocumentedOperation]) -> None:
    created = operations["predictions.create"].curl
    assert created.startswith(f"curl -X POST {BASE}/v1/predictions")
    assert '-H "Authorization: Bearer $REPLICATE_API_TOKEN"' in created
    assert '"version":' in created
    assert "-X" not in operations["predictions.get"].curl
    assert "-X DELETE" in operations["files.delete"].curl
    assert "-F content=@content" in operations["files.create"].curl
    assert "Authorization" not in operations["monitoring.health"].curl


async def test_the_page_lists_all_operations_and_programs(pages: Pages) -> None:
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/api", headers={"X-Forwarded-Prefix": "/ai"})
    assert page.status_code == 200
    assert (
        '<pre class="text code" id="base-url" tabindex="0">http://models.example.org:8000/ai</pre>'
        in page.text
    )
    assert 'id="predictions.create"' in page.text
    assert 'href="./docs"' in page.text
    assert 'href="./api" aria-current="page"' in page.text
    assert 'id="program-python"' in page.text

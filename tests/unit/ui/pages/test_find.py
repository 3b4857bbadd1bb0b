"""What the dialog finds: models, predictions, pages, settings and sections of the manual."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.domain import token
from appliance.domain.token import Scope, Token
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench
from tests.support.ui_client import Pages


@pytest.fixture
async def pages(api: Api, tmp_path: Path) -> AsyncIterator[Pages]:
    manual = tmp_path / "manual"
    (manual / "search").mkdir(parents=True)
    (manual / "index.html").write_text("<html></html>")
    section = {
        "location": "install/#gpu",
        "title": "GPU &amp; drivers",
        "text": "Install <b>drivers</b> first.",
    }
    (manual / "search" / "search_index.json").write_text(json.dumps({"docs": [section]}))
    pages = Pages(api, tmp_path, manual)
    yield pages
    await pages.server.close()


async def found(pages: Pages, query: str, secret: str = SECRET) -> list[tuple[str, str, str]]:
    async with pages.signed_in(secret) as browser:
        reply = await browser.get("/_ui/find", params={"q": query})
        assert reply.status_code == 200, reply.text
        return [(one["kind"], one["title"], one["path"]) for one in reply.json()["results"]]


async def test_models_pages_and_sections_of_the_manual_are_found(pages: Pages) -> None:
    assert ("Model", "test/echo", "./test/echo") in await found(pages, "trial")
    assert ("Page", "Usage", "./usage") in await found(pages, "statistics")
    assert ("Setting", "Tokens", "./settings#tokens") in await found(pages, "revoke")
    assert ("Manual", "GPU & drivers", "./manual/install/#gpu") in await found(pages, "drivers")
    assert await found(pages, "qqqqqq") == []
    assert ("Page", "Models", "./explore") in await found(pages, "")


async def test_predictions_are_found_by_id_and_input(pages: Pages, api: Api) -> None:
    body = {"input": {"text": "the Quick fox"}}
    made = (await api.post("/v1/models/test/echo/predictions", json=body)).json()
    expected = ("Prediction", made["id"], f"./p/{made['id']}")
    for query in ("quick FOX", made["id"], made["id"][:8]):
        assert expected in await found(pages, query), query
    assert expected not in await found(pages, "quick dog")


async def test_a_deleted_input_is_found_no_more(pages: Pages, api: Api) -> None:
    made = await api.ended(await api.create(text="the private fox"))
    expected = ("Prediction", made["id"], f"./p/{made['id']}")
    assert expected in await found(pages, "private fox")
    assert (await api.delete(f"/admin/predictions/{made['id']}")).status_code == 204
    assert await found(pages, "private fox") == []
    assert expected in await found(pages, made["id"])


async def test_others_find_neither_the_predictions_nor_the_settings(
    pages: Pages, api: Api, bench: Bench
) -> None:
    body = {"input": {"text": "the secret fox"}}
    made = (await api.post("/v1/models/test/echo/predictions", json=body)).json()
    assert await found(pages, "secret fox")
    await bench.store.add_token(
        Token(id="t", name="t", owner="them", digest=token.digest("theirs"), created_at=0, scope=Scope.RUN)
    )
    for query in ("secret fox", made["id"], "revoke"):
        assert await found(pages, query, "theirs") == [], query

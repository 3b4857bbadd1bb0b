"""The chat page: its models, its conversations, and that text in them stays text."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain import token
from appliance.domain.token import Scope, Token
from appliance.ui.pages import chat
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench
from tests.support.ui_client import Pages

HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture
async def pages(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pages]:
    """The echo models of the bench count as models that can chat."""
    monkeypatch.setattr(chat, "KINDS", {"echo"})
    pages = Pages(api, tmp_path)
    yield pages
    await pages.server.close()


async def store(api: Api, title: str) -> str:
    message = {"id": "m", "parent": None, "role": "user", "text": title, "created_at": "2026-01-02T03:04:05Z"}
    body = {"title": title, "model": "test/echo", "settings": {}, "messages": [message], "leaf": "m"}
    reply = await api.post("/admin/conversations", json=body)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["id"])


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="chat-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


async def test_the_page_has_models_and_conversations_as_inert_data(pages: Pages, api: Api) -> None:
    id = await store(api, HOSTILE)
    async with pages.signed_in(SECRET) as browser:
        page = await browser.get("/chat")
        assert page.status_code == 200
        assert HOSTILE not in page.text
        data = data_of(page.text)
        assert {"name": "test/echo", "images": False} in data["models"]
        assert [each["title"] for each in data["conversations"]] == [HOSTILE]
        assert (data["account"], data["mayRun"], data["conversation"]) == ("me", True, None)
        assert '<a href="./chat" aria-current="page">' in page.text
        opened = await browser.get(f"/chat/{id}")
        assert HOSTILE not in opened.text
        assert data_of(opened.text)["conversation"]["messages"][0]["text"] == HOSTILE
        assert 'href="./predictions"' in opened.text


async def test_another_account_finds_no_page_of_the_conversation(pages: Pages, api: Api) -> None:
    id = await store(api, "private words")
    async with pages.signed_in("other") as browser:
        page = await browser.get(f"/chat/{id}")
        assert (page.status_code, "private words" in page.text) == (404, False)
        assert "it was deleted, or it belongs to another account" in page.text
        assert data_of((await browser.get("/chat")).text)["conversations"] == []


async def test_a_token_that_may_only_look_has_no_field_for_messages(pages: Pages, bench: Bench) -> None:
    await bench.store.add_token(
        Token(id="r", name="r", owner="me", digest=token.digest("r"), created_at=0, scope=Scope.READ)
    )
    async with pages.signed_in("r") as browser:
        page = (await browser.get("/chat")).text
    assert re.search(r'id="composer"[^>]* hidden', page)
    assert "it cannot send messages" in page
    assert data_of(page)["mayRun"] is False


async def test_models_that_accept_images_are_known_by_their_inputs(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "_IMAGES", {"text"})
    async with pages.signed_in(SECRET) as browser:
        assert {"name": "test/echo", "images": True} in data_of((await browser.get("/chat")).text)["models"]


async def test_without_a_chat_model_the_page_says_what_to_do(
    pages: Pages, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "KINDS", set())
    await bench.store.add_token(
        Token(id="u", name="u", owner="me", digest=token.digest("u"), created_at=0, scope=Scope.RUN)
    )
    for secret, advice in ((SECRET, 'href="./add"'), ("u", "Ask an administrator")):
        async with pages.signed_in(secret) as browser:
            page = (await browser.get("/chat")).text
        assert "No model can chat yet" in page
        assert advice in page
        assert "chat-data" not in page

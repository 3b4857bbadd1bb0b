"""Conversations of the chat page: stored, changed, deleted, and hidden from all other accounts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance.domain import conversation, token
from appliance.domain.prediction import Status
from appliance.domain.token import Scope, Token
from appliance.gateway.api.admin import conversations
from appliance.runners import KINDS
from appliance.runners.base import Kind
from appliance.store import conversations as table
from tests.support.api_client import Api
from tests.support.engine_bench import Bench

PATH = "/admin/conversations"
QUESTION: dict[str, Any] = {
    "id": "m-1",
    "parent": None,
    "role": "user",
    "text": "What is the capital of France?",
    "created_at": "2026-01-02T03:04:05Z",
}
IMAGE = {"name": "dot.png", "url": "data:image/png;base64,iVBORw0KGgo="}


def body(*messages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "title": "Capitals",
        "model": "test/echo",
        "settings": {"system": "Be brief.", "temperature": 0.5},
        "messages": list(messages or (QUESTION,)),
        "leaf": "m-1",
        **changes,
    }


async def create(client: Api, *messages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    reply = await client.post(PATH, json=body(*messages, **changes))
    assert reply.status_code == 201, reply.text
    made: dict[str, Any] = reply.json()
    return made


@pytest.fixture
async def other(api: Api) -> AsyncIterator[Api]:
    """An administrator of another account."""
    async with Api(api.services, "other") as client:
        yield client


@pytest.fixture
async def reader(api: Api, bench: Bench) -> AsyncIterator[Api]:
    """A token of the same account that may only look."""
    await bench.store.add_token(
        Token(id="r", name="r", owner="me", digest=token.digest("r"), created_at=0, scope=Scope.READ)
    )
    async with Api(api.services, "r") as client:
        yield client


async def test_a_conversation_is_stored_changed_and_deleted(api: Api) -> None:
    made = await create(api, {**QUESTION, "images": [IMAGE]})
    path = f"{PATH}/{made['id']}"
    found = (await api.get(path)).json()
    assert found == {
        **made,
        "settings": {"system": "Be brief.", "temperature": 0.5},
        "messages": [{**QUESTION, "images": [IMAGE]}],
        "leaf": "m-1",
    }
    answer = {
        **QUESTION, "id": "m-2", "parent": "m-1", "role": "assistant", "text": "Paris", "state": "stopped",
        "metrics": {"output_tokens": 1, "time_to_first_token": 0.25},
    }  # fmt: skip
    changed = await api.put(path, json=body(QUESTION, answer, title="Renamed", leaf="m-2", revision=0))
    assert (changed.status_code, changed.json()["revision"], changed.json()["title"]) == (200, 1, "Renamed")
    assert (await api.get(path)).json()["messages"] == [QUESTION, answer]
    listed = (await api.get(PATH)).json()
    assert listed == {"next": None, "previous": None, "results": [changed.json()]}
    assert (await api.delete(path)).status_code == 204
    assert (await api.get(path)).status_code == 404
    assert (await api.put(path, json=body(revision=1))).status_code == 404
    assert (await api.delete(path)).status_code == 404


async def test_the_last_changed_is_listed_first(api: Api) -> None:
    first, second = await create(api, title="first"), await create(api, title="second")
    assert [each["id"] for each in (await api.get(PATH)).json()["results"]] == [second["id"], first["id"]]
    await api.put(f"{PATH}/{first['id']}", json=body(revision=0))
    assert [each["id"] for each in (await api.get(PATH)).json()["results"]] == [first["id"], second["id"]]


async def test_no_other_account_sees_or_changes_it_and_neither_do_administrators(
    api: Api, other: Api
) -> None:
    made = await create(api)
    path = f"{PATH}/{made['id']}"
    assert (await other.get(PATH)).json()["results"] == []
    for reply in (
        await other.get(path),
        await other.put(path, json=body(title="stolen", revision=0)),
        await other.delete(path),
    ):
        assert reply.status_code == 404
        assert "belongs to another account" in reply.json()["detail"]
    assert (await api.get(path)).json()["title"] == "Capitals"


async def test_a_token_that_may_only_look_changes_nothing(api: Api, reader: Api) -> None:
    made = await create(api)
    path = f"{PATH}/{made['id']}"
    assert (await reader.get(path)).status_code == 200
    for reply in (
        await reader.post(PATH, json=body()),
        await reader.put(path, json=body(revision=0)),
        await reader.delete(path),
    ):
        assert reply.status_code == 403


async def test_the_code_of_a_running_prediction_sees_none(api: Api, bench: Bench) -> None:
    made = await create(api)
    record = await bench.engine.get((await api.create(delay=30))["id"], "me")
    await bench.until(record, Status.PROCESSING)
    async with Api(api.services, bench.run_tokens.make(record.id, 1)) as program:
        for path in (PATH, f"{PATH}/{made['id']}"):
            reply = await program.get(path)
            assert (reply.status_code, "use another token" in reply.json()["detail"]) == (403, True)
    await bench.engine.cancel(record.id, "me")


async def test_a_change_of_an_older_revision_is_refused(api: Api) -> None:
    made = await create(api)
    path = f"{PATH}/{made['id']}"
    assert (await api.put(path, json=body(title="one", revision=0))).status_code == 200
    refused = await api.put(path, json=body(title="two", revision=0))
    assert (refused.status_code, refused.json()["title"]) == (409, "Conflict")
    assert made["id"] in refused.json()["detail"]
    assert (await api.get(path)).json()["title"] == "one"


async def test_a_change_that_is_sent_twice_is_stored_once(api: Api) -> None:
    path = f"{PATH}/{(await create(api))['id']}"
    first, again = [await api.put(path, json=body(title="one", revision=0)) for _ in range(2)]
    assert (again.status_code, again.json()) == (200, first.json())
    for changes in ({"title": "two"}, {"model": "test/other"}, {"leaf": None}):
        assert (await api.put(path, json=body(**{"title": "one", **changes}, revision=0))).status_code == 409


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"title": ""}, "title"),
        ({"surplus": 1}, ""),
        ({"messages": [{**QUESTION, "text": 1}]}, "messages[0].text"),
        ({"messages": [{**QUESTION, "role": "system"}]}, "messages[0].role"),
        ({"messages": [{**QUESTION, "prediction": "../x"}]}, "messages[0].prediction"),
        ({"messages": [{**QUESTION, "images": [{"name": "x", "url": "https://example.org/x.png"}]}]},
         "messages[0].images[0].url"),
        ({"messages": [{**QUESTION, "images": [{"name": "x", "url": "data:image/svg+xml;base64,PHN2"}]}]},
         "messages[0].images[0].url"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named(api: Api, changes: dict[str, Any], field: str) -> None:
    reply = await api.post(PATH, json=body(**changes))
    assert reply.status_code == 422
    assert reply.json()["invalid_fields"][0]["field"] == field


async def test_size_and_number_have_limits(api: Api, other: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_SIZE", 2**20 // 32)
    large = await api.post(PATH, json=body({**QUESTION, "text": "x" * 40_000}))
    assert large.status_code == 413
    assert "begin a new conversation" in large.json()["detail"]
    monkeypatch.setattr(table, "MAX_COUNT", 1)
    made = await create(api)
    second = await api.post(PATH, json=body())
    assert (second.status_code, "delete old ones" in second.json()["detail"]) == (409, True)
    await create(other)  # each account has limits of its own
    assert (await api.put(f"{PATH}/{made['id']}", json=body(revision=0))).status_code == 200
    monkeypatch.setattr(table, "MAX_TOTAL_SIZE", 10)
    grown = await api.put(f"{PATH}/{made['id']}", json=body(revision=1))
    assert (grown.status_code, "is the maximum" in grown.json()["detail"]) == (409, True)
    assert conversation.MAX_COUNT > 1


async def test_a_deletion_takes_the_predictions_of_the_answers_along(
    api: Api, other: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking = Kind(
        name="echo", runner="tests.support.chat_kind:TalkingRunner", operations=KINDS["vllm"].operations
    )
    monkeypatch.setitem(KINDS, "echo", talking)
    asked = {"model": "test/echo", "messages": [{}], "words": ["secret"]}
    ids = []
    for client in (api, other):
        reply = await client.post("/openai/v1/chat/completions", json=asked)
        ids.append(reply.headers["x-request-id"])
    plain = await api.ended(await api.create(text="kept"))
    mine, theirs = ids
    messages = [
        {**QUESTION, "id": f"m-{number}", "prediction": id}
        for number, id in enumerate([mine, theirs, plain["id"], "0" * 26])
    ]
    made = await create(api, *messages)
    assert (await api.delete(f"{PATH}/{made['id']}")).status_code == 204
    gone = (await api.get(f"/v1/predictions/{mine}")).json()
    assert (gone["data_removed"], gone["input"], gone.get("output")) == (True, {}, None)
    assert (await other.get(f"/v1/predictions/{theirs}")).json()["data_removed"] is False
    assert (await api.get(f"/v1/predictions/{plain['id']}")).json()["output"] == "kept"

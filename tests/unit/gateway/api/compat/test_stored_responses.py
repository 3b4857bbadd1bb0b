"""Responses of OpenAI's Responses API are read, continued, cancelled and deleted by their id."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from appliance.runners import KINDS
from appliance.runners.base import Kind
from tests.support.api_client import Api

PATH = "/openai/v1/responses"


@pytest.fixture(autouse=True)
def talking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The echo models of the bench take operations."""
    kind = Kind(
        name="echo", runner="tests.support.chat_kind:TalkingRunner", operations=KINDS["vllm"].operations
    )
    monkeypatch.setitem(KINDS, "echo", kind)


async def create(api: Api, **fields: Any) -> dict[str, Any]:
    reply = await api.post(PATH, json={"model": "test/echo", "input": "hello", "say": "hi there", **fields})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def ended(api: Api, id: str) -> dict[str, Any]:
    while True:
        found: dict[str, Any] = (await api.get(f"{PATH}/{id}")).json()
        if found["status"] not in {"queued", "in_progress"}:
            return found
        await asyncio.sleep(0.01)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(part.partition("data: ")[2]) for part in text.split("\n\n") if "data: " in part]


async def test_a_response_is_read_by_its_id_and_only_by_its_owner(api: Api) -> None:
    made = await create(api)
    assert (await api.get(f"{PATH}/{made['id']}")).json() == made
    async with Api(api.services, "other") as stranger:
        told = await stranger.get(f"{PATH}/{made['id']}")
    assert told.status_code == 404
    assert told.json()["error"]["message"] == f"Response with id '{made['id']}' not found."


async def test_a_stream_is_read_as_the_response_at_its_end(api: Api) -> None:
    reply = await api.post(PATH, json={"model": "test/echo", "input": "x", "say": "a b", "stream": True})
    last = events(reply.text)[-1]
    assert (await api.get(f"{PATH}/{last['response']['id']}")).json() == last["response"]
    again = await api.get(f"{PATH}/{last['response']['id']}?stream=true&starting_after=1")
    assert events(again.text) == events(reply.text)[2:]
    assert (await api.get(f"{PATH}/{last['response']['id']}?stream=true")).text == reply.text


async def test_a_conversation_goes_on_from_each_of_its_responses(api: Api) -> None:
    first = await create(api, say="one")
    second = await create(api, input=[{"role": "user", "content": "and?"}], say="two",
                          previous_response_id=first["id"])  # fmt: skip
    other = await create(api, input="or?", previous_response_id=first["id"], stream=False)
    third = await create(api, input="last", previous_response_id=second["id"])
    items = (await api.get(f"{PATH}/{third['id']}/input_items?order=asc")).json()
    assert [(each["role"], each["content"][0]["text"]) for each in items["data"]] == [
        ("user", "hello"),
        ("assistant", "one"),
        ("user", "and?"),
        ("assistant", "two"),
        ("user", "last"),
    ]
    assert [each["content"][0]["type"] for each in items["data"][:2]] == ["input_text", "output_text"]
    branch = (await api.get(f"{PATH}/{other['id']}/input_items")).json()["data"]
    assert [each["content"][0]["text"] for each in branch] == ["or?", "one", "hello"]


async def test_input_items_come_in_pages(api: Api) -> None:
    turns = [{"role": "user", "content": str(number)} for number in range(5)]
    made = await create(api, input=[*turns, {"type": "function_call", "call_id": "c", "name": "f"}])
    path = f"{PATH}/{made['id']}/input_items"
    first = (await api.get(path, params={"limit": 2})).json()
    assert [each.get("name") or each["content"][0]["text"] for each in first["data"]] == ["f", "4"]
    assert (first["has_more"], first["last_id"]) == (True, first["data"][1]["id"])
    rest = (await api.get(path, params={"after": first["last_id"]})).json()
    assert [each["content"][0]["text"] for each in rest["data"]] == ["3", "2", "1", "0"]
    assert not rest["has_more"]
    assert (await api.get(path, params={"after": "msg_of_another"})).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_in_the_background_outlives_its_request(api: Api, stream: bool) -> None:
    if stream:
        async with api.stream(
            "POST", PATH,
            json={"model": "test/echo", "input": "x", "say": "a b", "stream": True, "background": True,
                  "delay": 0.1},
        ) as reply:  # fmt: skip
            id = "resp_" + reply.headers["x-request-id"]
    else:
        made = await create(api, background=True, delay=0.1, metadata={"for": "me"}, instructions="be brief")
        id = made["id"]
        assert made["status"] in {"queued", "in_progress"}
        assert (made["output"], made["background"], made["metadata"]) == ([], True, {"for": "me"})
        assert (made["object"], made["model"], made["instructions"]) == ("response", "test/echo", "be brief")
    found = await ended(api, id)
    assert found["status"] == "completed"
    assert found["output"][0]["content"][0]["text"] == ("a b" if stream else "hi there")


async def test_a_response_in_the_background_can_be_canceled(api: Api) -> None:
    made = await create(api, background=True, delay=60)
    canceled = (await api.post(f"{PATH}/{made['id']}/cancel")).json()
    assert (canceled["status"], canceled["id"]) == ("cancelled", made["id"])
    assert (await api.post(f"{PATH}/{made['id']}/cancel")).json()["status"] == "cancelled"
    plain = await create(api)
    told = await api.post(f"{PATH}/{plain['id']}/cancel")
    assert (told.status_code, told.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_failed_response_says_why(api: Api) -> None:
    error = {"message": "it is too long", "code": 400, "param": "input", "type": "any"}
    reply = await api.post(
        PATH, json={"model": "test/echo", "input": "x", "background": True, "error": error}
    )
    found = await ended(api, reply.json()["id"])
    assert (found["status"], found["error"]) == (
        "failed",
        {"code": "invalid_prompt", "message": "it is too long"},
    )
    again = {"model": "test/echo", "input": "y", "previous_response_id": found["id"]}
    told = (await api.post(PATH, json=again)).json()["error"]
    assert told["param"] == "previous_response_id"
    assert f"the response {found['id']} is failed" in told["message"]


async def test_a_deleted_response_is_gone_with_its_input(api: Api) -> None:
    made = await create(api, input="a secret")
    path = f"{PATH}/{made['id']}"
    assert (await api.delete(path)).json() == {"id": made["id"], "object": "response", "deleted": True}
    for reply in (await api.get(path), await api.delete(path), await api.get(f"{path}/input_items")):
        assert reply.status_code == 404
    record = (await api.get(f"/v1/predictions/{made['id'].removeprefix('resp_')}")).json()
    assert (record["status"], record["data_removed"], record["input"]) == ("succeeded", True, {})
    told = await api.post(PATH, json={"model": "test/echo", "input": "x", "previous_response_id": made["id"]})
    assert (told.status_code, told.json()["error"]["param"]) == (400, "previous_response_id")


async def test_a_running_response_is_not_deleted(api: Api) -> None:
    made = await create(api, background=True, delay=60)
    assert (await api.delete(f"{PATH}/{made['id']}")).status_code == 400
    await api.post(f"{PATH}/{made['id']}/cancel")
    assert (await api.delete(f"{PATH}/{made['id']}")).status_code == 200


async def test_a_response_that_is_not_to_be_stored_is_not_found(api: Api) -> None:
    made = await create(api, store=False)
    assert (await api.get(f"{PATH}/{made['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"background": True, "store": False}, "store"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"previous_response_id": "resp_unknown"}, "previous_response_id"),
        ({"previous_response_id": 5}, "previous_response_id"),
        ({"background": "yes"}, "background"),
    ],
)
async def test_what_cannot_be_is_refused_by_its_field(api: Api, fields: dict[str, Any], field: str) -> None:
    told = await api.post(PATH, json={"model": "test/echo", "input": "x", "say": "a", **fields})
    assert (told.status_code, told.json()["error"]["param"]) == (400, field)


async def test_other_predictions_are_no_responses(api: Api) -> None:
    record = await api.ended(await api.create(text="x"))
    assert (await api.get(f"{PATH}/resp_{record['id']}")).status_code == 404
    made = await create(api)
    assert (await api.get(f"{PATH}/{made['id']}?stream=true")).status_code == 400
    assert (await api.get(f"{PATH}/{made['id']}?stream=perhaps")).status_code == 400

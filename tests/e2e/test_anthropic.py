"""Anthropic's own Python client against the routes of its dialect, streaming included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic

from tests.e2e.clients import LANGUAGE_MODEL
from tests.support.appliance_process import TOKEN, Appliance, wait_for

pytestmark = pytest.mark.e2e

ASKED: dict[str, Any] = {
    "model": LANGUAGE_MODEL,
    "max_tokens": 24,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "extra_body": {"temperature": 0},  # the client itself has no word for it any more
}


@pytest.fixture(scope="module")
def claude(appliance: Appliance) -> Iterator[Anthropic]:
    with Anthropic(
        base_url=f"{appliance.url}/anthropic",
        api_key=TOKEN,
        max_retries=0,
        http_client=anthropic.DefaultHttpxClient(trust_env=False),
    ) as client:
        yield client


def test_a_message_is_answered_and_is_a_prediction(claude: Anthropic, client: httpx.Client) -> None:
    message = claude.messages.create(**ASKED, system="You know about countries.")
    (block,) = message.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert (message.role, message.model, message.stop_reason) == ("assistant", LANGUAGE_MODEL, "end_turn")
    record = client.get(f"/v1/predictions/{message._request_id}").json()
    assert message.id == f"msg_{record['id']}"
    assert (record["status"], record["operation"]) == ("succeeded", "messages")
    assert record["metrics"]["input_token_count"] == message.usage.input_tokens > 20
    assert record["metrics"]["output_token_count"] == message.usage.output_tokens > 3


def test_models_are_listed(claude: Anthropic) -> None:
    names = [model.id for model in claude.models.list(limit=1)]
    assert LANGUAGE_MODEL in names
    assert claude.models.retrieve(LANGUAGE_MODEL).display_name == LANGUAGE_MODEL


def test_a_streamed_message_says_the_same(claude: Anthropic, client: httpx.Client) -> None:
    whole = claude.messages.create(**ASKED)
    with claude.messages.stream(**ASKED) as stream:
        pieces = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert whole.content[0].type == "text"
    assert "".join(pieces) == whole.content[0].text
    assert len(pieces) > 1
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (
        whole.stop_reason,
        whole.usage.output_tokens,
    )
    record = client.get(f"/v1/predictions/{streamed.id.removeprefix('msg_')}").json()
    assert record["status"] == "succeeded"
    assert record["metrics"]["output_token_count"] == whole.usage.output_tokens
    assert [item["type"] for item in record["output"]][:2] == ["message_start", "content_block_start"]


def test_a_stop_sequence_and_the_end_of_patience(claude: Anthropic) -> None:
    stopped = claude.messages.create(**ASKED, stop_sequences=["Paris"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    assert claude.messages.create(**{**ASKED, "max_tokens": 2}).stop_reason == "max_tokens"


def test_a_tool_is_used_with_input_that_fits(claude: Anthropic) -> None:
    weather: Any = {
        "name": "weather",
        "description": "The weather in a city",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    asked: Any = {
        **ASKED,
        "max_tokens": 120,
        "tools": [weather],
        "tool_choice": {"type": "tool", "name": "weather"},
    }
    message = claude.messages.create(**asked)
    (used,) = (block for block in message.content if block.type == "tool_use")
    assert used.name == "weather"
    assert isinstance(used.input, dict)
    assert list(used.input) == ["city"]
    assert message.stop_reason == "tool_use"
    with claude.messages.stream(**asked) as stream:
        (streamed,) = (block for block in stream.get_final_message().content if block.type == "tool_use")
    assert streamed.input == used.input


def test_tokens_are_counted(claude: Anthropic) -> None:
    asked = {key: ASKED[key] for key in ("model", "messages")}
    assert (
        claude.messages.count_tokens(**asked).input_tokens
        == claude.messages.create(**ASKED).usage.input_tokens
    )


def test_what_is_refused_is_refused_in_its_words(claude: Anthropic, appliance: Appliance) -> None:
    with pytest.raises(anthropic.NotFoundError, match="The model `no/model` does not exist") as missing:
        claude.messages.create(**{**ASKED, "model": "no/model"})
    assert missing.value.body == {
        "type": "error",
        "error": {
            "type": "not_found_error",
            "message": "The model `no/model` does not exist, or has no version yet.",
        },
    }
    with pytest.raises(anthropic.AuthenticationError, match="valid authentication token"):
        claude.with_options(api_key="wrong").messages.create(**ASKED)
    long = {**ASKED, "messages": [{"role": "user", "content": "word " * 100_000}]}
    for create in (
        claude.messages.create,
        lambda **asked: list(claude.messages.create(**asked, stream=True)),
    ):
        with pytest.raises(anthropic.BadRequestError, match="maximum context length is 8192 tokens"):
            create(**long)
    bearer = Anthropic(base_url=f"{appliance.url}/anthropic", auth_token=TOKEN, max_retries=0)
    with bearer, pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        bearer.post("/v1/messages", cast_to=object, body={key: ASKED[key] for key in ("model", "messages")})


def test_who_hangs_up_has_cancelled(claude: Anthropic, client: httpx.Client) -> None:
    asked = {**ASKED, "max_tokens": 4000, "extra_body": {"temperature": 1}}
    asked["messages"] = [{"role": "user", "content": "Write all numbers from one to one thousand, in words."}]
    with claude.messages.stream(**asked) as stream:
        next(iter(stream.text_stream))
        id = stream.current_message_snapshot.id.removeprefix("msg_")

    def ended() -> Any:
        record = client.get(f"/v1/predictions/{id}").json()
        return record if record["status"] not in {"starting", "processing"} else None

    assert wait_for(ended, "the prediction to end")["status"] == "canceled"

"""OpenAI's and Anthropic's routes, over a model that says what it is told to: what clients get of that."""

from __future__ import annotations

import asyncio
import json
import struct
from base64 import b64decode
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from starlette.types import Message

from appliance.domain.access import Policy
from appliance.domain.errors import InvalidInput
from appliance.domain.interface import Interface
from appliance.domain.prediction import Status
from appliance.gateway.api import create_api
from appliance.gateway.api.compat import anthropic, audio, calls, embeddings, forms, images, openai
from appliance.gateway.catalogue.catalogue import Catalogue, ServedVersion, describe
from appliance.protocols.compat_types import TranscriptionFields
from appliance.runners import KINDS
from appliance.runners.base import Kind
from tests.support.api_client import SECRET, Api
from tests.support.engine_bench import Bench, entry

CHAT, MESSAGES, RESPONSES = "/openai/v1/chat/completions", "/anthropic/v1/messages", "/openai/v1/responses"
ASKED: dict[str, Any] = {"model": "test/echo", "messages": [{}, {}], "input": "x", "max_tokens": 5}
NAMED = "".join(f'event: word\ndata: {{"type":"word","word":"{word}"}}\n\n' for word in "ab")
FULL = {"message": "it is over the limit", "code": 400, "param": "messages", "type": "any"}


@pytest.fixture(autouse=True)
def talking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The echo models of the bench take operations."""
    talking = Kind(
        name="echo", runner="tests.support.chat_kind:TalkingRunner", operations=KINDS["vllm"].operations
    )
    monkeypatch.setitem(KINDS, "echo", talking)


async def test_an_answer_is_the_output_of_a_prediction(api: Api) -> None:
    asked = {**ASKED, "words": ["a", "b"], "unknown": {"to": ["us"]}, "temperature": None}
    reply = await api.post(CHAT, json=asked)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    record = (await api.get(f"/v1/predictions/{reply.headers['x-request-id']}")).json()
    assert reply.json() == record["output"]
    assert reply.json()["asked"] == record["input"] == asked  # nothing left out, nothing filled in
    assert (record["operation"], record["status"]) == ("chat.completions", "succeeded")
    assert record["metrics"]["input_token_count"] == 2
    plain = await api.ended(await api.create(text="x"))
    assert "operation" not in plain


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (CHAT, 'data: {"type":"word","word":"a"}\n\ndata: {"type":"word","word":"b"}\n\ndata: [DONE]\n\n'),
        (MESSAGES, NAMED),
        (RESPONSES, NAMED),
    ],
)
async def test_each_api_writes_its_streams_in_its_way(api: Api, path: str, expected: str) -> None:
    reply = await api.post(path, json={**ASKED, "words": ["a", "b"], "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text == expected
    record = (await api.get(f"/v1/predictions/{reply.headers['request-id']}")).json()
    assert [item["word"] for item in record["output"]] == ["a", "b"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_model_refuses_has_its_status_and_the_shape_of_the_api(api: Api, stream: bool) -> None:
    asked = {**ASKED, "error": FULL, "stream": stream}
    told = await api.post(CHAT, json=asked)
    assert told.status_code == 400
    assert told.json() == {
        "error": {
            "message": FULL["message"], "type": "invalid_request_error", "param": "messages", "code": None
        }
    }  # fmt: skip
    claude = await api.post(MESSAGES, json={**asked, "error": {**FULL, "code": 404}})
    assert claude.status_code == 404
    assert claude.json() == {
        "type": "error",
        "error": {"type": "not_found_error", "message": FULL["message"]},
    }
    record = (await api.get(f"/v1/predictions/{told.headers['x-request-id']}")).json()
    assert (record["status"], record["error"]) == ("failed", FULL["message"])


async def test_an_error_in_a_stream_is_its_last_event_but_one(api: Api) -> None:
    asked = {**ASKED, "words": ["a"], "error": FULL, "stream": True}
    lines = (await api.post(CHAT, json=asked)).text.split("\n\n")
    assert json.loads(lines[1].removeprefix("data: "))["error"]["message"] == FULL["message"]
    assert lines[2:] == ["data: [DONE]", ""]
    assert "event: error\ndata: " in (await api.post(MESSAGES, json=asked)).text
    last = (await api.post(RESPONSES, json=asked)).text.split("\n\n")[-2]
    told = json.loads(last.removeprefix("event: error\ndata: "))
    assert (told["type"], told["sequence_number"], told["message"]) == ("error", 1, FULL["message"])


ROUTES = (
    ("POST", CHAT),
    ("POST", "/openai/v1/completions"),
    ("POST", RESPONSES),
    ("GET", f"{RESPONSES}/resp_x"),
    ("DELETE", f"{RESPONSES}/resp_x"),
    ("POST", f"{RESPONSES}/resp_x/cancel"),
    ("GET", f"{RESPONSES}/resp_x/input_items"),
    ("POST", "/openai/v1/embeddings"),
    ("POST", "/openai/v1/rerank"),
    ("POST", "/openai/v2/rerank"),
    ("POST", "/openai/v1/images/generations"),
    ("POST", "/openai/v1/images/edits"),
    ("POST", "/openai/v1/audio/transcriptions"),
    ("POST", "/openai/v1/audio/translations"),
    ("POST", "/openai/v1/audio/speech"),
    ("GET", "/openai/v1/models"),
    ("GET", "/openai/v1/models/test/echo"),
    ("POST", MESSAGES),
    ("POST", f"{MESSAGES}/count_tokens"),
    ("GET", "/anthropic/v1/models"),
    ("GET", "/anthropic/v1/models/test/echo"),
)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_is_answered_without_a_token(shared_api: Api, method: str, path: str) -> None:
    async with Api(shared_api.services, None) as stranger:
        reply = await stranger.request(method, path)
    assert reply.status_code == 401
    error = reply.json()["error"]
    assert error["type"] == "authentication_error"
    assert error["message"] == "You did not pass an authentication token"


def test_every_route_is_in_the_list_above() -> None:
    from appliance.gateway.api import application

    for route in application.ROUTES:
        if route.path.startswith(("/openai/", "/anthropic/")):
            assert any(
                method in (route.methods or ()) and route.path_regex.match(path) for method, path in ROUTES
            ), route.path


async def test_anthropics_models_come_in_pages(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anthropic, "KINDS", ("echo",))
    models = "/anthropic/v1/models"
    listed = (await api.get(models)).json()
    names = [model["id"] for model in listed["data"]]
    assert "test/echo" in names
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (names[0], names[-1], False)
    shown = (await api.get(f"{models}/test/echo")).json()
    assert shown in listed["data"]
    assert (shown["type"], shown["display_name"]) == ("model", "test/echo")
    first = (await api.get(f"{models}?limit=1")).json()
    assert ([model["id"] for model in first["data"]], first["has_more"]) == (names[:1], len(names) > 1)
    rest = (await api.get(models, params={"after_id": names[0]})).json()
    assert ([model["id"] for model in rest["data"]], rest["has_more"]) == (names[1:], False)
    back = (await api.get(models, params={"before_id": names[-1], "limit": 1})).json()
    assert ([model["id"] for model in back["data"]], back["has_more"]) == (names[-2:-1], len(names) > 2)
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after_id": "not/there"}):
        told = await api.get(models, params=wrong)
        assert (told.status_code, told.json()["error"]["type"]) == (400, "invalid_request_error")
    assert (await api.get(f"{models}/not/there")).status_code == 404


async def test_anthropics_header_carries_a_token_there_only(api: Api) -> None:
    async with Api(api.services, None) as client:
        client.headers["x-api-key"] = SECRET
        assert (await client.post(MESSAGES, json={**ASKED, "words": ["a"]})).status_code == 200
        assert (await client.post(CHAT, json=ASKED)).status_code == 401


@pytest.mark.parametrize(
    ("path", "changes", "status", "message"),
    [
        (CHAT, {"model": None}, 400, "model is required"),
        (CHAT, {"model": 7}, 400, "model: Invalid type. Expected: string, given: integer"),
        (CHAT, {"stream": "yes"}, 400, "stream: Invalid type. Expected: boolean, given: string"),
        (CHAT, {"messages": None}, 400, "messages is required"),
        (CHAT, {"seed": 2**70}, 400, "Integers must fit in 64 bits"),
        (MESSAGES, {"max_tokens": None}, 400, "max_tokens is required"),
        (CHAT, {"model": "no/model"}, 404, "The model `no/model` does not exist"),
        (CHAT, {"model": "test/big"}, 503, "needs"),
        (
            "/openai/v1/embeddings",
            {"input": "x", "messages": None, "max_tokens": None},
            400,
            "is of kind echo; this route needs a model of kind embeddings",
        ),
    ],
)
async def test_what_cannot_be_asked(
    api: Api, path: str, changes: dict[str, Any], status: int, message: str
) -> None:
    asked = {key: value for key, value in {**ASKED, **changes}.items() if value is not None}
    if path.endswith("embeddings"):
        asked = {"model": asked["model"], "input": asked["input"]}
    reply = await api.post(path, json=asked)
    assert reply.status_code == status, reply.text
    assert message in reply.json()["error"]["message"]
    assert reply.headers.get("x-should-retry") == ("false" if status >= 500 else None)


BODIES = (
    b"",
    b"[]",
    b"7",
    b"\xff",
    b'{"model": []}',
    b'{"model": "\\ud800"}',
    b'{"model": "test/echo", "messages": [], "prompt": [], "input": [], "max_tokens": [], "stream": []}',
    b'{"model": "test/files", "messages": [], "prompt": 7, "input": {}, "max_tokens": {}, "n": "x"}',
    b"[" * 5000,
    b"--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--\r\n",
    b"--x\r\nContent-Disposition: form-data; name=model\r\n\r\n\xff\r\n--x--\r\n",
    b'--x\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n--x--\r\n',
)


@pytest.mark.parametrize("path", [path for method, path in ROUTES if method == "POST"])
async def test_no_body_is_the_servers_fault(api: Api, path: str) -> None:
    for body in BODIES:
        for kind in ("application/json", "multipart/form-data; boundary=x"):
            reply = await api.post(path, content=body, headers={"content-type": kind})
            assert 200 <= reply.status_code < 500, reply.text
            if reply.status_code != 200:
                assert reply.json()["error"]["message"]


async def test_errors_around_the_routes_have_the_shape_too(api: Api) -> None:
    assert (await api.get("/openai/v1/nothing")).json()["error"]["code"] == "not_found"
    assert (await api.get(CHAT)).json()["error"]["message"] == 'Method "GET" not allowed.'
    assert (await api.post(CHAT, content="{")).json()["error"]["type"] == "invalid_request_error"
    large = await api.post(MESSAGES, json={**ASKED, "messages": ["x" * 100_000]})
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


async def test_a_full_queue_says_when_to_come_back(api: Api, bench: Bench) -> None:
    bench.engine.limit(bench.limits.model_copy(update={"queue": 0}), Policy())
    reply = await api.post(CHAT, json=ASKED)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "5")
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(("path", "stream"), [(CHAT, False), (CHAT, True), (MESSAGES, True)])
async def test_who_hangs_up_has_cancelled(api: Api, bench: Bench, path: str, stream: bool) -> None:
    body = json.dumps({**ASKED, "words": ["a", "b"], "delay": 30, "stream": stream}).encode()
    hung_up = asyncio.Event()
    sent: list[Message] = []
    given = [{"type": "http.request", "body": body}]

    async def receive() -> Message:
        if given:
            return given.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "scheme": "http", "query_string": b"",
        "headers": [(b"authorization", f"Bearer {SECRET}".encode()), (b"host", b"here")],
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    task = asyncio.ensure_future(create_api(api.services)(scope, receive, send))
    async with asyncio.timeout(60):
        while not (listed := await bench.engine.list("me")) or listed[0].status is not Status.PROCESSING:
            await asyncio.sleep(0.005)
        if stream:
            while not any(b'"a"' in message.get("body", b"") for message in sent):
                await asyncio.sleep(0.005)
        hung_up.set()
        await task
    ended = await bench.ended(listed[0])
    assert ended.status is Status.CANCELED


async def test_who_is_cancelled_by_another_hears_of_it(api: Api, bench: Bench) -> None:
    asking = asyncio.create_task(api.post(CHAT, json={**ASKED, "delay": 30}))
    async with asyncio.timeout(60):
        while not (listed := await bench.engine.list("me")) or listed[0].status is not Status.PROCESSING:
            await asyncio.sleep(0.005)
    await api.post(f"/v1/predictions/{listed[0].id}/cancel")
    reply = await asking
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "canceled")


async def test_a_stream_that_is_silent_begins_all_the_same(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "IDLE", 0.02)
    monkeypatch.setattr(calls, "PATIENCE", 0.04)
    asked = {**ASKED, "words": ["a"], "stream": True, "delay": 0.2}
    text = (await api.post(CHAT, json=asked)).text
    assert ": hi\n\n" in text
    assert text.endswith("data: [DONE]\n\n")


async def test_a_prediction_taken_up_again_is_what_it_was(bench: Bench) -> None:
    asked = {**ASKED, "words": ["a", "b"], "unknown": 1, "delay": 30, "stream": True}
    first = await bench.engine.submit(
        bench.echo, asked, owner="me", operation="chat.completions", parent=None, token=None, trace=None
    )
    assert first.status is Status.STARTING
    waiting = await bench.engine.submit(
        bench.echo,
        {**asked, "delay": 0},
        owner="me",
        operation="chat.completions",
        parent=None,
        token=None,
        trace=None,
    )
    await bench.restart()
    ended = await bench.engine.wait(waiting.id, 5)
    assert ended is not None
    assert (ended.status, ended.operation) == (Status.SUCCEEDED, "chat.completions")
    assert ended.output == [{"type": "word", "word": "a"}, {"type": "word", "word": "b"}]
    seen = [item async for item in bench.engine.follow(ended)]
    assert seen == [[(1, ended.output[0]), (2, ended.output[1])], ended]


async def test_pictures_are_fetched_for_the_model_under_the_rules_for_files(api: Api) -> None:
    kept = await api.post("/v1/files", files={"content": ("x.png", b"a picture", "image/png")})
    address = kept.json()["urls"]["get"]

    def asking(url: str) -> dict[str, Any]:
        return {**ASKED, "messages": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]}

    reply = await api.post(CHAT, json=asking(address))
    (part,) = reply.json()["asked"]["messages"][0]["content"]
    assert part["image_url"]["url"] == "data:image/png;base64,YSBwaWN0dXJl"
    record = (await api.get(f"/v1/predictions/{reply.headers['x-request-id']}")).json()
    assert record["input"] == asking(address)
    private = await api.post(MESSAGES, json=asking("http://127.0.0.1:9/secret.png"))
    assert private.status_code == 400
    assert "127.0.0.1:9/secret.png cannot be fetched" in private.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/predictions", CHAT, MESSAGES, RESPONSES, "/openai/v1/embeddings"])
@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
async def test_numbers_that_are_not_finite_are_refused_by_name(api: Api, path: str, number: str) -> None:
    content = f'{{"model": "test/echo", "input": {{"n": [1, {number}]}}}}'
    reply = await api.post(path, content=content.encode())
    assert reply.status_code == 400
    assert "input.n.1 must be a finite number" in reply.text


async def test_forms_become_uploads_that_go_if_nothing_comes_of_them(api: Api, bench: Bench) -> None:
    def uploads() -> list[Path]:
        return list((bench.folder / "files" / "uploads").iterdir())

    sound = {"file": ("speech.wav", b"sound", "audio/wav")}
    path = "/openai/v1/audio/transcriptions"
    unknown = await api.post(path, data={"model": "no/model"}, files=sound)
    assert unknown.status_code == 404
    wrong = await api.post(path, data={"model": "test/echo"}, files=sound)
    assert "this route needs a model of kind whisper" in wrong.json()["error"]["message"]
    large = await api.post(path, data={"model": "x/y"}, files={"file": ("speech.wav", b"x" * 2_000_000)})
    assert large.status_code == 413
    assert (await api.post(path, json={"model": "test/echo"})).status_code == 400
    assert uploads() == []


@pytest.mark.parametrize("stream", ["false", "False"])
async def test_a_form_may_say_that_it_wants_no_stream(
    api: Api, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """The echo model makes no pictures, which is found out after the form was read."""
    monkeypatch.setattr(images, "KINDS", ("echo",))
    given = {"model": "test/echo", "prompt": "a cat", "stream": stream}
    reply = await api.post("/openai/v1/images/edits", data=given, files={"image": ("x.png", b"x")})
    assert reply.status_code == 400
    assert "does not generate images" in reply.json()["error"]["message"]


async def test_a_mask_needs_a_model_that_repaints(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "KINDS", ("echo",))
    given = {"model": "test/echo", "prompt": "a cat"}
    image, mask = ("image", ("x.png", b"x")), ("mask", ("m.png", b"m"))
    for files, error in (
        ([image, mask], "The model test/echo does not support masks; omit the mask"),
        ([image, mask, mask], "Must be at most one file; there are 2"),
        ([image, image], "The model test/echo accepts one image; there are 2 files"),
        ([mask], "image: Must be a file; there is none"),
    ):
        reply = await api.post("/openai/v1/images/edits", data=given, files=files)
        assert reply.status_code == 400
        assert error in reply.json()["error"]["message"]
    assert list((bench.folder / "files" / "uploads").iterdir()) == []


def test_what_images_are_asked_for() -> None:
    model = described_image_model()
    asked = images.inputs(
        {
            "model": "m",
            "prompt": "a cat",
            "n": 2,
            "size": "64x64",
            "output_format": "jpeg",
            "seed": 7,
            "user": "u",
        },
        model,
    )
    assert asked == {"prompt": "a cat", "num_outputs": 2, "size": "64x64", "output_format": "jpg", "seed": 7}
    assert images.inputs({"model": "m", "prompt": "a cat", "size": "auto"}, model) == {
        "prompt": "a cat", "output_format": "png"
    }  # fmt: skip
    for wrong in ({"colour": "red"}, {"quality": "hd"}, {"size": "1x"}, {"stream": True}, {"n": "2"}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            images.inputs({"model": "m", "prompt": "a cat", **wrong}, model)
    with pytest.raises(InvalidInput, match="output_compression: The model test/echo has no such input"):
        images.inputs({"model": "m", "prompt": "a cat", "output_compression": 50}, model)


def described_image_model() -> ServedVersion:
    """An entry that takes what small image models do."""
    names = ("prompt", "num_outputs", "size", "output_format", "seed")
    properties: dict[str, Any] = {name: {} for name in names}
    whole = Interface(input={"type": "object", "properties": properties}, output={})
    return msgspec.structs.replace(entry(), interface=whole)


def test_what_models_that_hear_are_asked_for() -> None:
    plain = TranscriptionFields(model="m", response_format="json")
    assert audio.transcription_input(plain, translate=False) == {"transcription": "plain text"}
    given = TranscriptionFields(
        model="m",
        response_format="srt",
        language="en",
        prompt="Names: Zoe",
        temperature="0.2",
        timestamp_granularities=["word", "segment"],
    )
    assert audio.transcription_input(given, translate=True) == {
        "transcription": "srt", "language": "en", "initial_prompt": "Names: Zoe", "temperature": 0.2,
        "translate": True, "word_timestamps": True,
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="temperature: Must be a number"):
        audio.transcription_input(replace(plain, temperature="hot"), translate=False)
    for infinite in ("nan", "inf", "-Infinity", "1e999"):
        with pytest.raises(InvalidInput, match="temperature: Must be a finite number"):
            audio.transcription_input(replace(plain, temperature=infinite), translate=False)


def test_fields_of_forms_that_come_often_are_lists() -> None:
    form = forms.Form()
    for name, value in (("a", "1"), ("b[]", "2"), ("b[]", "3"), ("c", "4"), ("c", "5")):
        form.put(name, value)
    assert form.fields == {"a": "1", "b": ["2", "3"], "c": ["4", "5"]}


def test_embeddings_are_packed_as_numpy_would() -> None:
    vector = [0.5, -1.25, 3.0]
    assert struct.unpack("<3f", b64decode(embeddings.base64_floats(vector))) == tuple(vector)


@pytest.mark.parametrize("given", [[], ["a", 1], 7, {"a": "b"}, [[]], [[1], []], [[1], "a"], [[True]]])
def test_only_texts_and_token_ids_are_embedded(given: Any) -> None:
    with pytest.raises(InvalidInput, match="Must be a text, token ids, or a list of"):
        embeddings.texts(given)


@pytest.mark.parametrize(
    ("given", "texts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], "[[1,2]]"), ([[1, 2], [3]], "[[1,2],[3]]")],
)
def test_forms_of_the_input_of_embeddings(given: Any, texts: Any) -> None:
    assert embeddings.texts(given) == texts


async def test_a_name_without_a_slash_is_known_here_only(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "KINDS", ("echo",))
    aliased = bench.echo.model.model_copy(update={"aliases": ("gpt-4o-mini", "Llama3:8b", "other/name")})
    entries = [replace(bench.echo, model=aliased), bench.stream]
    cards = [describe(each.model, "none", 0.0)[0] for each in entries]
    bench.catalogue.replace_with(Catalogue(cards, entries, ()))
    for path in (CHAT, MESSAGES):
        for name in ("gpt-4o-mini", "Llama3:8b", "other/name"):
            reply = await api.post(path, json={**ASKED, "model": name, "words": ["a"]})
            assert reply.status_code == 200, reply.text
            record = (await api.get(f"/v1/predictions/{reply.headers['x-request-id']}")).json()
            assert record["model"] == "test/echo"
    listed = (await api.get("/openai/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["test/echo", "gpt-4o-mini", "Llama3:8b", "test/stream"]
    assert (await api.get("/openai/v1/models/gpt-4o-mini")).json()["id"] == "gpt-4o-mini"
    assert (await api.get("/openai/v1/models/gpt-4o")).status_code == 404
    body = {"version": "gpt-4o-mini", "input": {"text": "x"}}
    assert (await api.post("/v1/predictions", json=body)).status_code == 422
    assert (await api.post("/v1/predictions", json={**body, "version": "other/name"})).status_code == 201

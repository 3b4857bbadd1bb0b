"""OpenAI's own Python client against the routes of its dialect, streaming included."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from scripts.tiny_image_model.seen import seen
from tests.e2e.clients import LANGUAGE_MODEL, posting
from tests.support.appliance_process import TOKEN, Appliance, fetch, wait_for
from tests.support.runner_calls import word_error_rate

pytestmark = pytest.mark.e2e

MODEL = LANGUAGE_MODEL
ALIAS = "meta/meta-llama-3-70b-instruct"
EMBEDDER = "appliance/all-minilm-l6-v2"
PAINTER = "appliance/tiny-shapes"
LISTENER = "appliance/whisper-tiny-en"
SPEAKER = "appliance/piper-joe"
VOICE = "en_US-joe-medium"
SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank."
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "population": {"type": "integer", "maximum": 9999},
    },
    "required": ["city", "population"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather in a city", "parameters": CITY},
}


@pytest.fixture(scope="module")
def gpt(appliance: Appliance) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{appliance.url}/openai/v1",
        api_key=TOKEN,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    ) as client:
        yield client


def prediction(client: httpx.Client, id: str) -> dict[str, Any]:
    """The prediction that a call was."""
    found: dict[str, Any] = client.get(f"/v1/predictions/{id}").raise_for_status().json()
    return found


def test_a_chat_is_answered_and_is_a_prediction(gpt: OpenAI, client: httpx.Client) -> None:
    answer = gpt.chat.completions.create(
        model=ALIAS, messages=QUESTION, temperature=0, max_completion_tokens=24
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.model == ALIAS
    record = prediction(client, str(answer._request_id))
    assert answer.id == f"chatcmpl-{record['id']}"
    assert (record["status"], record["model"], record["operation"]) == (
        "succeeded",
        MODEL,
        "chat.completions",
    )
    assert record["input"]["messages"] == QUESTION
    assert record["output"]["choices"][0]["message"]["content"] == answer.choices[0].message.content
    assert answer.usage is not None
    assert record["metrics"]["input_token_count"] == answer.usage.prompt_tokens > 20
    assert record["metrics"]["output_token_count"] == answer.usage.completion_tokens > 3
    assert record["metrics"]["predict_time"] > 0
    listed = client.get("/v1/predictions").json()["results"]
    assert record["id"] in {each["id"] for each in listed}


def test_a_streamed_chat_says_the_same(gpt: OpenAI, client: httpx.Client) -> None:
    asked: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_completion_tokens": 24}
    whole = gpt.chat.completions.create(**asked)
    stream = gpt.chat.completions.create(**asked, stream=True)
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 1
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)
    record = prediction(client, chunks[0].id.removeprefix("chatcmpl-"))
    assert record["status"] == "succeeded"
    assert len(record["output"]) == len(chunks)
    assert whole.usage is not None
    assert record["metrics"]["output_token_count"] == whole.usage.completion_tokens
    counted = list(gpt.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert counted[-1].choices == []
    assert counted[-1].usage is not None
    assert counted[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_log_probabilities_are_those_of_the_likeliest(gpt: OpenAI) -> None:
    answer = gpt.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=5, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for token in logprobs.content:
        top = [other.logprob for other in token.top_logprobs]
        assert len(top) == 3
        assert token.logprob == max(top) <= 0
        assert len(set(top)) > 1
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content


def test_structured_output_fits_its_schema(gpt: OpenAI) -> None:
    answer = gpt.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name the capital of France and its population, as JSON."}],
        temperature=0,
        max_completion_tokens=120,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": CITY, "strict": True},
        },
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"city", "population"}
    assert isinstance(found["city"], str)
    assert isinstance(found["population"], int)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called_with_arguments_that_fit(gpt: OpenAI, choice: Any) -> None:
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "temperature": 0,
        "max_completion_tokens": 120,
        "tools": [WEATHER],
        "tool_choice": choice,
    }
    answer = gpt.chat.completions.create(**asked)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city", "population"}
    streamed = ""
    for chunk in gpt.chat.completions.create(**asked, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            streamed += (part.function and part.function.arguments) or ""
    assert json.loads(streamed) == json.loads(call.function.arguments)


def test_completions_go_on(gpt: OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    whole = gpt.completions.create(**asked)
    assert "Paris" in whole.choices[0].text
    assert (
        "".join(part.choices[0].text for part in gpt.completions.create(**asked, stream=True))
        == whole.choices[0].text
    )


def test_responses_respond(gpt: OpenAI, client: httpx.Client) -> None:
    asked: Any = {
        "model": MODEL,
        "input": "What is the capital of France?",
        "temperature": 0,
        "max_output_tokens": 24,
    }
    whole = gpt.responses.create(**asked, instructions="Answer in one sentence.")
    assert "Paris" in whole.output_text
    record = prediction(client, whole.id.removeprefix("resp_"))
    assert record["operation"] == "responses"
    assert whole.usage is not None
    assert record["metrics"]["output_token_count"] == whole.usage.output_tokens
    whole, events = gpt.responses.create(**asked), list(gpt.responses.create(**asked, stream=True))
    assert (
        "".join(event.delta for event in events if event.type == "response.output_text.delta")
        == whole.output_text
    )
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    shaped = gpt.responses.create(
        model=MODEL,
        input="Name the capital of France and its population, as JSON.",
        temperature=0,
        max_output_tokens=120,
        text={"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}},
    )
    assert set(json.loads(shaped.output_text)) == {"city", "population"}


def test_responses_are_kept_and_continued(gpt: OpenAI, client: httpx.Client) -> None:
    asked: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
    first = gpt.responses.create(**asked, input="What is the capital of France?")
    found = gpt.responses.retrieve(first.id)
    assert (found.output_text, found.status, found.usage) == (first.output_text, first.status, first.usage)
    second = gpt.responses.create(**asked, input="And of Italy?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    items = list(gpt.responses.input_items.list(second.id, order="asc", limit=1))
    assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]
    whole: Any = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And of Italy?"},
    ]
    assert gpt.responses.create(**asked, input=whole).output_text == second.output_text
    gpt.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match=f"Response with id '{first.id}' not found"):
        gpt.responses.retrieve(first.id)
    assert prediction(client, first.id.removeprefix("resp_"))["data_removed"]
    with pytest.raises(openai.BadRequestError, match=f"'{first.id}' not found"):
        gpt.responses.create(**asked, input="And of Spain?", previous_response_id=first.id)


def test_responses_run_in_the_background(gpt: OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": "Tell a long story about the sea.", "background": True}
    first = gpt.responses.create(**asked, max_output_tokens=24)
    assert first.status in {"queued", "in_progress"}
    ended = wait_for(lambda: _ended(gpt, first.id), "the response")
    assert ended.output_text
    assert ended.background is True
    stream = gpt.responses.create(**asked, max_output_tokens=2000, stream=True)
    events = [next(stream) for _ in range(6)]
    stream.close()  # the response goes on without this client
    id = events[0].response.id
    assert gpt.responses.retrieve(id).status == "in_progress"
    more = gpt.responses.retrieve(id, stream=True, starting_after=events[3].sequence_number)
    assert [next(more).sequence_number for _ in range(3)] == [4, 5, 6]
    more.close()
    assert gpt.responses.cancel(id).status == "cancelled"
    assert gpt.responses.retrieve(id).status == "cancelled"


def _ended(gpt: OpenAI, id: str) -> Any:
    found = gpt.responses.retrieve(id)
    return found if found.status not in {"queued", "in_progress"} else None


def test_several_choices_and_a_banned_token(gpt: OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": QUESTION, "max_completion_tokens": 6}
    answer = gpt.chat.completions.create(**asked, n=3, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    asked |= {"temperature": 0, "logprobs": True, "extra_body": {"return_tokens_as_token_ids": True}}
    usual = tokens(gpt.chat.completions.create(**asked))
    banned = tokens(gpt.chat.completions.create(**asked, logit_bias={usual[0].partition(":")[2]: -100}))
    assert usual[0] not in banned


def tokens(answer: Any) -> list[str]:
    """The tokens of a chat completion: ``token_id:`` and a number."""
    return [each.token for each in answer.choices[0].logprobs.content]


def test_embeddings_are_unit_vectors_of_meaning(gpt: OpenAI, client: httpx.Client) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    packed = gpt.embeddings.create(model=EMBEDDER, input=texts)
    plain = gpt.embeddings.create(model=EMBEDDER, input=texts, encoding_format="float")
    vectors = [each.embedding for each in packed.data]
    assert [each.index for each in packed.data] == [0, 1, 2]
    for mine, theirs in zip(vectors, plain.data, strict=True):
        assert mine == pytest.approx(theirs.embedding, abs=1e-6)
        assert sum(number * number for number in mine) == pytest.approx(1, abs=1e-4)
    alike, unlike = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert alike > 0.5 > unlike
    record = prediction(client, str(packed._request_id))
    assert record["model"] == EMBEDDER
    assert record["metrics"]["input_token_count"] == packed.usage.prompt_tokens > 10
    (one,) = gpt.embeddings.create(model="replicate/all-mpnet-base-v2", input=texts[0]).data
    assert one.embedding == pytest.approx(vectors[0], abs=1e-4)


def decoded(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def test_images_show_what_they_were_asked_for(gpt: OpenAI, client: httpx.Client) -> None:
    asked: Any = {"model": PAINTER, "prompt": "a red circle", "extra_body": {"seed": 1}}
    made = gpt.images.generate(**asked, n=2, size="128x128", response_format="b64_json", output_format="webp")
    assert made.data is not None
    assert len(made.data) == 2
    images = []
    for image in map(decoded, made.data):
        assert (image.format, image.size) == ("WEBP", (128, 128))
        images.append(image)
    record = prediction(client, str(made._request_id))
    assert record["model"] == PAINTER
    assert record["input"]["num_outputs"] == 2
    linked = gpt.images.generate(**asked)
    assert linked.data is not None
    url = linked.data[0].url
    assert url is not None
    bytes = fetch(url).raise_for_status().content  # no token
    assert Image.open(io.BytesIO(bytes)).format == "PNG"
    edited = gpt.images.edit(
        model=PAINTER,
        image=("circle.png", bytes, "image/png"),
        prompt="a red circle",
        response_format="b64_json",
        stream=False,
        extra_body={"prompt_strength": "0.1"},
    )
    assert edited.data is not None
    images.append(decoded(edited.data[0]))
    assert "/v1/files/" in prediction(client, str(edited._request_id))["input"]["image"]
    for image in images:
        found = seen(image)
        assert found is not None
        assert (found.colour, found.shape) == ("red", "circle")


def test_the_transparent_part_of_a_mask_is_repainted(gpt: OpenAI) -> None:
    given, mask = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (128, 128), "white").save(given, "png")
    clear = Image.new("RGBA", (128, 128), "black")
    clear.paste((0, 0, 0, 0), (0, 0, 64, 128))  # the left half
    clear.save(mask, "png")
    edited = gpt.images.edit(
        model=PAINTER,
        image=("image.png", given.getvalue()),
        mask=("mask.png", mask.getvalue()),
        prompt="a large red square",
        response_format="b64_json",
        extra_body={"seed": "2", "prompt_strength": "1.0"},
    )
    assert edited.data is not None
    image = decoded(edited.data[0]).convert("RGB")
    left, right = image.getpixel((52, 64)), image.getpixel((96, 64))
    assert isinstance(left, tuple)
    assert isinstance(right, tuple)
    assert left[0] - left[1] > 50, left
    assert min(right) > 200, right


def test_images_that_cannot_be_made(gpt: OpenAI) -> None:
    def refusal(**changes: Any) -> str:
        with pytest.raises(openai.BadRequestError) as caught:
            gpt.images.generate(**{"model": PAINTER, "prompt": "a red circle"} | changes)
        return caught.value.message

    assert "this route needs a model of kind diffusers" in refusal(model=MODEL)
    assert "size: Does not match pattern" in refusal(size="large")
    assert "both sides must be from" in refusal(size="99999x99999")
    assert "quality must be one of the following" in refusal(quality="hd")
    assert "num_outputs: Must be less than or equal to" in refusal(n=500)
    assert "Additional property colour is not allowed" in refusal(extra_body={"colour": "red"})
    with pytest.raises(openai.BadRequestError, match="image"):
        gpt.images.edit(model=PAINTER, image=b"this is no image", prompt="a red circle")


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


@pytest.fixture(scope="module")
def speech(gpt: OpenAI) -> bytes:
    return gpt.audio.speech.create(model=SPEAKER, voice=VOICE, input=SENTENCE, response_format="wav").content


def test_what_is_spoken_is_heard(gpt: OpenAI, client: httpx.Client, speech: bytes) -> None:
    assert speech[:4] == b"RIFF"
    heard = gpt.audio.transcriptions.create(model=LISTENER, file=("speech.wav", speech))
    assert word_error_rate(SENTENCE, heard.text) < 0.2
    record = prediction(client, str(heard._request_id))
    assert record["model"] == LISTENER
    assert record["output"]["transcription"].strip() == heard.text.strip()
    with gpt.audio.speech.with_streaming_response.create(
        model=SPEAKER, voice=VOICE, input=SENTENCE, speed=1.5
    ) as reply:
        faster = reply.read()
        assert reply.headers["content-type"] == "audio/mpeg"
    formats: dict[Literal["opus", "flac", "aac"], bytes] = {
        "opus": b"OggS",
        "flac": b"fLaC",
        "aac": b"\xff\xf1",
    }
    for form, begin in formats.items():
        made = gpt.audio.speech.create(model=SPEAKER, voice=VOICE, input="Hello.", response_format=form)
        assert made.content.startswith(begin)
    again = gpt.audio.transcriptions.create(model=LISTENER, file=("speech.mp3", faster), language="en")
    assert len(set(words(again.text)) & set(words(SENTENCE))) > 5


def test_speech_comes_while_it_is_made(gpt: OpenAI, client: httpx.Client) -> None:
    text = "The quick brown fox jumps over the lazy dog. It rests near the river bank. Then it goes home."
    asked: Any = {"model": SPEAKER, "voice": VOICE, "input": text}
    with gpt.audio.speech.with_streaming_response.create(
        **asked, response_format="pcm", stream_format="audio"
    ) as reply:
        assert reply.headers["content-type"] == "audio/pcm"
        pieces = list(reply.iter_bytes())
        record = prediction(client, reply.headers["x-request-id"])
    assert len(pieces) > 1
    seconds = sum(map(len, pieces)) / 48_000  # 24,000 samples of 2 bytes
    assert seconds == pytest.approx(record["metrics"]["audio_duration"], abs=0.1)
    assert seconds > 3
    with gpt.audio.speech.with_streaming_response.create(
        **asked, response_format="wav", stream_format="sse"
    ) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: ")]
    assert [event["type"] for event in events[-2:]] == ["speech.audio.delta", "speech.audio.done"]
    sound = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    heard = gpt.audio.transcriptions.create(model=LISTENER, file=("speech.wav", sound), stream=True)
    parts = list(heard)
    assert (parts[0].type, parts[-1].type) == ("transcript.text.delta", "transcript.text.done")
    assert parts[-1].type == "transcript.text.done"
    assert "".join(part.delta for part in parts if part.type == "transcript.text.delta") == parts[-1].text
    assert word_error_rate(text, parts[-1].text) < 0.3


def test_transcripts_in_every_form(gpt: OpenAI, client: httpx.Client) -> None:
    steady = {"text": SENTENCE, "noise_scale": 0, "noise_w": 0}  # the same sound every time
    body = {"version": SPEAKER, "input": steady}
    made = client.post("/v1/predictions", json=body, headers={"Prefer": "wait"}).json()
    sound = fetch(made["output"]).content

    def asking(**changes: Any) -> Any:
        return gpt.audio.transcriptions.create(model=LISTENER, file=("speech.wav", sound), **changes)

    assert words(asking(response_format="text")) == words(SENTENCE)
    assert asking(response_format="srt").startswith("1\n00:00:0")
    assert asking(response_format="vtt").startswith("WEBVTT")
    told = asking(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert (told.task, told.words[0].start < told.words[-1].start) == ("transcribe", True)
    assert words(" ".join(word.word for word in told.words)) == words(SENTENCE)
    assert told.segments[0].start < told.segments[-1].end <= told.duration + 0.5
    assert asking(response_format="verbose_json").words is None


def test_sound_that_cannot_be_made_or_heard(gpt: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="audio"):
        gpt.audio.transcriptions.create(model=LISTENER, file=("speech.wav", b"this is no sound"))
    with pytest.raises(openai.BadRequestError, match="this route needs a model of kind whisper"):
        gpt.audio.transcriptions.create(model=MODEL, file=("speech.wav", b"x"))
    with pytest.raises(openai.BadRequestError, match="response_format must be one of"):
        gpt.audio.speech.create(model=SPEAKER, voice=VOICE, input="x", response_format="midi")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(openai.BadRequestError, match="over 4096 characters cannot be streamed"):
        gpt.audio.speech.create(model=SPEAKER, voice=VOICE, input="x" * 4097, stream_format="sse")
    with pytest.raises(openai.BadRequestError, match="voice must be one of"):
        gpt.audio.speech.create(model=SPEAKER, voice="nobody", input="x", stream_format="audio")
    with pytest.raises(openai.BadRequestError, match="voice"):
        gpt.audio.speech.create(model=SPEAKER, voice="nobody", input="x")


def test_models_are_listed_by_the_names_they_are_called_by(gpt: OpenAI) -> None:
    names = [model.id for model in gpt.models.list()]
    assert {MODEL, EMBEDDER} <= set(names)
    assert "appliance/echo" not in names
    assert gpt.models.retrieve(MODEL).owned_by == "appliance"
    assert gpt.models.retrieve(ALIAS).id == ALIAS
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        gpt.models.retrieve("no/model")


def test_what_is_refused_is_refused_in_its_words(
    gpt: OpenAI, appliance: Appliance, client: httpx.Client
) -> None:
    def asking(**changes: Any) -> Any:
        return {"model": MODEL, "messages": QUESTION, "max_completion_tokens": 5} | changes

    with pytest.raises(openai.NotFoundError, match="The model `no/model` does not exist"):
        gpt.chat.completions.create(**asking(model="no/model"))
    with pytest.raises(
        openai.BadRequestError, match="kind embeddings; this route needs a model of kind vllm"
    ):
        gpt.chat.completions.create(**asking(model=EMBEDDER))
    with pytest.raises(
        openai.BadRequestError, match="kind vllm; this route needs a model of kind embeddings"
    ):
        gpt.embeddings.create(model=MODEL, input="x")
    with pytest.raises(openai.BadRequestError, match=r"token id 30522, but the tokens .* are 0 to 30521"):
        gpt.embeddings.create(model=EMBEDDER, input=[1, 30522, 3])
    with pytest.raises(openai.BadRequestError, match="available only without dimensions"):
        gpt.embeddings.create(model=EMBEDDER, input="x", dimensions=64)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        gpt.chat.completions.create(**asking(temperature=-1))
    long: Any = [{"role": "user", "content": "word " * 100_000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="maximum context length is 8192 tokens") as caught:
            gpt.chat.completions.create(**asking(messages=long, stream=stream))
        record = prediction(client, str(caught.value.request_id))
        assert record["status"] == "failed"
        assert "maximum context length" in record["error"]
        assert caught.value.type == "invalid_request_error"
    stranger = gpt.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError, match="valid authentication token"):
        stranger.chat.completions.create(**asking())
    huge: Any = [{"role": "user", "content": "x" * (21 << 20)}]
    with pytest.raises(openai.APIStatusError, match="over the limit") as refused:
        gpt.chat.completions.create(**asking(messages=huge))
    assert refused.value.status_code == 413


def test_a_reader_cannot_call(gpt: OpenAI, new_token: Callable[..., str]) -> None:
    reader = gpt.with_options(api_key=new_token("for reading", scope="read"))
    assert list(reader.models.list())
    with pytest.raises(openai.PermissionDeniedError, match="read"):
        reader.chat.completions.create(model=MODEL, messages=QUESTION)


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_has_cancelled(
    gpt: OpenAI, appliance: Appliance, client: httpx.Client, stream: bool
) -> None:
    mark = f"Count to a thousand, stream {stream}."
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "user", "content": mark}],
        "max_completion_tokens": 4000,
    }
    on_and_on = {"ignore_eos": True}

    def status() -> str | None:
        for record in client.get("/v1/predictions").json()["results"]:
            if record["input"].get("messages", [{}])[0].get("content") == mark:
                return str(record["status"])
        return None

    if stream:
        with gpt.chat.completions.create(**asked, extra_body=on_and_on, stream=True) as events:
            next(iter(events))
    else:
        with posting(appliance, "/openai/v1/chat/completions", asked | on_and_on):
            wait_for(lambda: status() == "processing", "the prediction to run")
    assert wait_for(lambda: (now := status()) != "processing" and now, "the prediction to end") == "canceled"
